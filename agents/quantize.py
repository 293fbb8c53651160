"""Make a quantized copy of a causal language model with llmcompressor, and say in its card what it is.

The protocol is that of the paper's Appendix E: one-shot GPTQ or AWQ of every Linear layer but the output head, weights
packed as compressed-tensors writes them, so that transformers and vLLM load the copy as it is. Differences: calibration
texts are an expert's transcripts in the model's embedded world by default (``--calibration c4`` is the paper's 128 C4
documents of 2,048 tokens, and needs a network), round-to-nearest is there as a third method, and the group size is a
flag and always recorded: W4A16 means groups of 128 in llmcompressor, where the paper says "per channel".

    python agents/quantize.py --model embedded:alfworld/bf16 --method gptq --scheme W3A16 --out runs/w3-gptq
    python agents/quantize.py --model runs/webshop/model --world webshop --scheme W4A16 --out runs/webshop-w4
    python agents/quantize.py --model Qwen/Qwen3-1.7B --method awq --scheme W4A16 --calibration c4 --out runs/w4-awq

W3 and W2 have no kernel in the engines we know: they are unpacked to 16 bits at load, and their speed is projected.
``--out`` appears when everything is done; an interrupted run leaves nothing there and starts anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmr_gym.backends.checkpoint import Layout, read_layout, resolve_checkpoint
from dmr_gym.command_line import recipe_parser, run
from dmr_gym.errors import ConfigError, MissingDependency
from dmr_gym.perplexity import perplexity
from dmr_gym.runs import file_digest, provenance, write_json
from dmr_gym.tasks.alfworld import demonstrations as alfworld
from dmr_gym.tasks.webshop import demonstrations as webshop

METHODS = ("gptq", "awq", "rtn")
SCHEMES = ("W2A16", "W3A16", "W4A16", "W8A16", "W8A8")
CALIBRATION_PANEL, HELD_OUT_PANEL = "calibration", "validation"
SAMPLES_HELP = "calibration texts; a transcript is a whole episode in ALFWorld, a single step in WebShop (128)"
WORLD_HELP = (
    "whose transcripts calibrate and give the perplexity (default: that of an embedded model; of any other it must be "
    "given for calibration by transcripts, and alfworld gives the perplexity elsewhere)"
)
TRANSCRIPTS = {"alfworld": alfworld.panel_transcripts, "webshop": webshop.panel_transcripts}


@dataclass(frozen=True)
class Settings:
    """What to make of which model: the command line's options; ``group_size`` None is one scale an output channel."""

    model: str
    method: str
    scheme: str
    group_size: int | None
    calibration: str
    out: Path
    samples: int
    max_length: int
    held_out: int
    world: str | None = None

    def __post_init__(self) -> None:
        named = world_of(self.model)
        if self.world and named and self.world != named:
            raise ConfigError(f"{self.model} is an agent of {named}, but --world {self.world} is another: leave it out")
        if not (self.world or named) and self.calibration == "transcripts" and self.method != "rtn":
            raise ConfigError(f"--world must say whose transcripts calibrate {self.model}: {' or '.join(TRANSCRIPTS)}")
        if self.scheme == "W8A8" and self.group_size is not None:
            raise ConfigError("W8A8 has one weight scale a channel: give --group-size channel")
        if min(self.samples, self.max_length, self.held_out, self.group_size or 1) < 1:
            raise ConfigError("--samples, --max-length, --held-out and --group-size must be at least 1")
        if self.out.exists():
            raise ConfigError(f"{self.out} exists already: remove it, or choose another --out")

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return int(self.scheme[1])

    @property
    def transcript_world(self) -> str:
        """The world whose transcripts calibrate and give the perplexity; ALFWorld for the latter where none is said."""
        return self.world or world_of(self.model) or "alfworld"


def world_of(model: str) -> str | None:
    """The world of an embedded agent, "embedded:WORLD/NAME"; None for other models. Raises ConfigError for a third."""
    if not model.startswith("embedded:"):
        return None
    world = model.removeprefix("embedded:").partition("/")[0]
    if world not in TRANSCRIPTS:
        raise ConfigError(f'expected "embedded:WORLD/NAME" with WORLD {" or ".join(TRANSCRIPTS)}, found {model!r}')
    return world


def parse(argv: Sequence[str] | None) -> Settings:
    """Read the command line."""
    parser = recipe_parser(__doc__)
    parser.add_argument("--model", required=True, help='checkpoint folder, hub id, or "embedded:WORLD/NAME"')
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="gptq",
        help="GPTQ, AWQ, or rounding to nearest, which needs no text (gptq)",
    )
    parser.add_argument("--scheme", choices=SCHEMES, default="W4A16", help="bits of weights and activations (W4A16)")
    parser.add_argument("--group-size", help='weights that share a scale, or "channel" (default: 128; W8A8: channel)')
    parser.add_argument("--calibration", default="transcripts", help='"transcripts", "c4", or a .txt or .jsonl file')
    parser.add_argument("--out", type=Path, required=True, help="folder of the copy; must not exist")
    parser.add_argument("--samples", type=int, default=128, help=SAMPLES_HELP)
    parser.add_argument("--max-length", type=int, default=2048, help="tokens kept of each of them (2048)")
    parser.add_argument("--held-out", type=int, default=64, help="transcripts for the perplexity (64)")
    parser.add_argument("--world", choices=sorted(TRANSCRIPTS), help=WORLD_HELP)
    values = vars(parser.parse_args(argv))
    group = values["group_size"] or ("channel" if values["scheme"] == "W8A8" else "128")
    if group != "channel" and not group.isdigit():
        raise ConfigError(f'--group-size must be a number or "channel", found {group!r}')
    return Settings(**values | {"group_size": None if group == "channel" else int(group)})


# ---------------------------------------------------------------- before any work


def check_feasible(settings: Settings, layout: Layout) -> None:
    """Refuse what cannot end well before anything is loaded, and say how large the copy will be.

    Raises:
        ConfigError: a layer's width is not a multiple of the group, or the disk is too full.
    """
    group, shapes = settings.group_size, layout.linear
    odd = {name: columns for name, (_, columns) in shapes.items() if group and columns % group}
    if odd:
        name, columns = next(iter(odd.items()))
        fitting = [str(size) for size in (128, 64, 32) if all(width % size == 0 for _, width in shapes.values())]
        raise ConfigError(
            f"--group-size {group} must divide the input width of every layer; it does not divide {columns} of {name}"
            f" ({len(odd)} such layers): give --group-size {' or '.join([*fitting, 'channel'])}"
        )
    numbers = sum(rows * columns for rows, columns in shapes.values())
    scales = sum(rows * (columns // group if group else 1) for rows, columns in shapes.values())
    size = numbers * settings.bits // 8 + 2 * scales + 2 * layout.other_parameters
    folder = next(parent for parent in settings.out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < 1.2 * size:
        raise ConfigError(f"{folder}: expected {1.2 * size / 1e6:,.0f} MB of free disk, found {free / 1e6:,.0f} MB")
    millions = (numbers + layout.other_parameters) / 1e6
    print(f"{len(shapes)} layers, {millions:,.1f} M parameters: {size / 1e6:,.1f} MB when packed", flush=True)


# ---------------------------------------------------------------- texts


def c4_documents(tokenizer: Any, count: int, length: int) -> list[str]:
    """The first documents of English C4 that have at least ``length`` tokens: the paper's calibration set."""
    import datasets

    stream = datasets.load_dataset("allenai/c4", "en", split="train", streaming=True)
    # A token is seldom shorter than two characters: this spares most of the tokenizing.
    texts = (row["text"] for row in stream if len(row["text"]) >= 2 * length)
    return list(itertools.islice((text for text in texts if len(tokenizer(text)["input_ids"]) >= length), count))


def read_documents(path: Path) -> list[str]:
    """The "text" of each line of a .jsonl file, else blocks parted by blank lines; ConfigError for other files."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            return [str(json.loads(line)["text"]) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        known = '"transcripts", "c4", a UTF-8 text file, or a .jsonl file with a "text" in each line'
        raise ConfigError(f"{path}: --calibration takes {known}; got {error!r}") from error
    return [block for block in re.split(r"\n\s*\n", text.strip()) if block]


def calibration_texts(settings: Settings, tokenizer: Any) -> list[str]:
    """The texts that `Settings.calibration` names, at most `Settings.samples` of them. Raises ConfigError for none."""
    if settings.method == "rtn":
        return []
    if settings.calibration == "transcripts":
        texts = TRANSCRIPTS[settings.transcript_world](CALIBRATION_PANEL, settings.samples)
    elif settings.calibration == "c4":
        texts = c4_documents(tokenizer, settings.samples, settings.max_length)
    else:
        texts = read_documents(Path(settings.calibration))[: settings.samples]
    if not texts:
        raise ConfigError(f"--calibration {settings.calibration}: no text found")
    return texts


# ---------------------------------------------------------------- quantization


@contextlib.contextmanager
def unpinned_without_accelerator() -> Iterator[None]:
    """Let AWQ run on a machine without an accelerator.

    llmcompressor 0.14 pins the activations that AWQ caches, whatever device they go to, and pinning raises a
    RuntimeError where PyTorch finds no accelerator. Pinned memory serves only copies to one, so it is left out here.
    """
    from llmcompressor.pipelines.cache import IntermediatesCache

    original = IntermediatesCache.pin_memory
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = original


def recipe(settings: Settings, head: str) -> list[Any]:
    """The llmcompressor modifiers of a method and scheme."""
    from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    scheme = preset_name_to_scheme(settings.scheme, ["Linear"])
    strategy = "channel" if settings.group_size is None else "group"
    scheme.weights = QuantizationArgs(
        num_bits=settings.bits, type="int", symmetric=True, strategy=strategy, group_size=settings.group_size
    )
    arguments: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": [head]}
    if settings.method == "gptq":
        return [GPTQModifier(**arguments)]
    return [*([AWQModifier()] if settings.method == "awq" else []), QuantizationModifier(**arguments)]


def quantize(settings: Settings, source: Path, tokenizer: Any, texts: list[str], head: str, folder: Path) -> float:
    """Save a packed copy of a checkpoint in ``folder``; returns the seconds that took."""
    from datasets import Dataset
    from llmcompressor import oneshot

    arguments: dict[str, Any] = {"pipeline": "datafree"}
    if texts:
        rows = [{"input_ids": tokenizer(text)["input_ids"][: settings.max_length]} for text in texts]
        arguments = {
            "dataset": Dataset.from_list(rows),
            "num_calibration_samples": len(rows),
            "max_seq_length": settings.max_length,
            "shuffle_calibration_samples": False,  # sums depend on the order: the same texts, the same copy
        }
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto", use_safetensors=True, trust_remote_code=False)
    with unpinned_without_accelerator(), warnings.catch_warnings():
        # Said of every model on a CPU; what it warns of is a checkpoint larger than the memory.
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        oneshot(model=model, tokenizer=tokenizer, recipe=recipe(settings, head), output_dir=str(folder), **arguments)
    return time.perf_counter() - start


# ---------------------------------------------------------------- card

PROJECTED = " Its width has no kernel: it is unpacked at load, and its speed can only be projected."
CARD = """---
base_model: {base}
library_name: transformers
---

# {base}, {how}

Quantized with llmcompressor and packed as compressed-tensors; transformers loads it as it is.{note}

| | |
|---|---|
{rows}

`quantization.json` has the same and the SHA-256 of every file. Made with:

    python agents/quantize.py {options}
"""


def name_of(source: str) -> str:
    """A folder's or file's own name; a hub id as it is."""
    return Path(source).resolve().name if Path(source).exists() else source


def describe(settings: Settings, count: int, seconds: float, scores: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the copy is and what made it, as plain data."""
    origin = provenance()
    origin["versions"] |= {name: importlib.metadata.version(name) for name in ("llmcompressor", "compressed-tensors")}
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {
        "base_model": name_of(settings.model),
        "method": settings.method,
        "scheme": settings.scheme,
        "group_size": settings.group_size or "channel",
        "not_quantized": "output head, embeddings, norms",
        "calibration": name_of(settings.calibration) if count else "none",
        "calibration_samples": count,
        "max_length": settings.max_length,
        "perplexity_on": f"{settings.held_out} {settings.transcript_world} transcripts of the {HELD_OUT_PANEL} panel",
        "perplexity": scores,
        "bytes": sum(path.stat().st_size for path in files),
        "seconds": round(seconds, 1),
        "sha256": {path.name: file_digest(path) for path in files},
        **origin,
    }


def write_card(settings: Settings, facts: dict[str, Any], folder: Path) -> None:
    """Write ``quantization.json`` and the model card ``README.md`` beside the weights."""
    write_json(folder / "quantization.json", facts)
    table = {key.replace("_", " "): value for key, value in facts.items() if isinstance(value, str | int | float)}
    before, after = facts["perplexity"]["before"], facts["perplexity"]["after"]
    table |= {f"perplexity, {key}": f"{before[key]:.4f} before, {after[key]:.4f} after" for key in before}
    table |= {name: version for name, version in facts["versions"].items() if version}
    options = {**dataclasses.asdict(settings), "group_size": facts["group_size"], "out": settings.out.name}
    options |= {key: name_of(options[key]) for key in ("model", "calibration")}
    card = CARD.format(
        base=facts["base_model"],
        how=f"{settings.method.upper()} {settings.scheme}",
        note=PROJECTED if settings.bits < 4 else "",
        rows="\n".join(f"| {key} | {value} |" for key, value in table.items()),
        options=" ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items() if value is not None),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def make_copy(settings: Settings, folder: Path) -> dict[str, Any]:
    """Quantize into ``folder``, measure original and copy as a backend loads them, return the card's facts."""
    source = resolve_checkpoint(settings.model)
    layout = read_layout(source)
    check_feasible(settings, layout)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    texts = calibration_texts(settings, tokenizer)
    held_out = TRANSCRIPTS[settings.transcript_world](HELD_OUT_PANEL, settings.held_out)
    scores = {"before": perplexity(source, held_out, "the original")}
    seconds = quantize(settings, source, tokenizer, texts, layout.head, folder)
    scores["after"] = perplexity(folder, held_out, "the copy")
    facts = describe(settings, len(texts), seconds, scores, folder)
    write_card(settings, facts, folder)
    return facts


def main(argv: Sequence[str] | None = None) -> None:
    """Make the copy that the command line asks for.

    Raises:
        ConfigError, BackendError: the settings cannot work, or there is no such model; said before weights are loaded.
        MissingDependency: llmcompressor is not installed.
    """
    settings = parse(argv)
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    try:
        import llmcompressor  # noqa: F401 - its absence is to be one sentence, not a traceback
    except ImportError as error:
        raise MissingDependency("llmcompressor", "quantize", "agents/quantize.py") from error
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    part = settings.out.with_name(f".{settings.out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        facts = make_copy(settings, part)
        part.replace(settings.out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    before, after = facts["perplexity"]["before"]["commands"], facts["perplexity"]["after"]["commands"]
    size = f"{facts['bytes'] / 1e6:.2f} MB in {facts['seconds']} s"
    print(f"{settings.out}: {size}; perplexity on commands {before:.4f} before, {after:.4f} after")


if __name__ == "__main__":
    run(main)
