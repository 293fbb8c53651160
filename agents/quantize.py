"""Make a quantized copy of a causal language model with llmcompressor, and say in its card what it is.

The protocol is that of the paper's Appendix E: one-shot GPTQ or AWQ of every Linear layer but the output head, weights
packed as compressed-tensors writes them, so that transformers and vLLM load the copy as it is, calibrated on 128
documents of 2,048 tokens of English C4, which need a network. Differences: an embedded agent, or a model whose
``--world`` is given, is calibrated on an expert's transcripts in that world unless ``--calibration`` says otherwise;
round-to-nearest is there as a third method; and the group size is a flag and always recorded: W4A16 means groups of 128
in llmcompressor, where the paper says "per channel".

    python agents/quantize.py --model embedded:alfworld/bf16 --method gptq --scheme W3A16 --out runs/w3-gptq
    python agents/quantize.py --model runs/webshop/model --world webshop --scheme W4A16 --out runs/webshop-w4
    python agents/quantize.py --model Qwen/Qwen3-1.7B --method awq --scheme W4A16 --out runs/w4-awq
    python agents/quantize.py --config configs/paper/alfworld-1.7b-awq-w4.toml

The last takes its options from the file's table [quantize]; those of the command line go before them.
W3 and W2 have no kernel in the engines we know: they are unpacked to 16 bits at load, and their speed is projected.
What cannot end well is refused, and disk, memory and time are said, before any weights are loaded. ``--out`` appears
when everything in it is done. The same command goes on after a kill: texts, the original's perplexity and a copy that
was written are kept in a hidden folder beside ``--out``; the quantization itself starts anew.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from dmr_gym.backends.checkpoint import WEIGHTS, Layout, checkpoint_digest, read_layout, resolve_checkpoint
from dmr_gym.command_line import recipe_parser, run
from dmr_gym.config import EnvConfig, load_config
from dmr_gym.errors import ConfigError
from dmr_gym.perplexity import perplexity
from dmr_gym.quantization.card import describe, shown, write_card
from dmr_gym.quantization.engine import check_awq, check_llmcompressor, quantize
from dmr_gym.quantization.estimate import (
    Work,
    check_disk,
    check_groups,
    copy_bytes,
    measure_rates,
    peak_memory,
    size_line,
    work_line,
)
from dmr_gym.quantization.settings import HELD_OUT_PANEL, METHODS, SCHEMES, TRANSCRIPTS, Settings, world_of
from dmr_gym.quantization.texts import calibration_texts, encode
from dmr_gym.quantization.work import WorkFolder, finished

SAMPLES_HELP = "calibration texts; a transcript is a whole episode in ALFWorld, a single step in WebShop (128)"
CALIBRATION_HELP = (
    '"c4" as in the paper, "transcripts" of an expert, or a .txt or .jsonl file (default: c4; transcripts for an '
    "embedded model or where --world is given)"
)
WORLD_HELP = (
    "whose transcripts calibrate and give the perplexity (default: that of an embedded model; of any other it must be "
    "given for calibration by transcripts, and alfworld gives the perplexity elsewhere)"
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line, behind the table [quantize] of a file in --config."""
    parser = recipe_parser(__doc__, "quantize")
    add = parser.add_argument
    add("--model", required=True, help='checkpoint folder, hub id, or "embedded:WORLD/NAME"')
    add(
        "--method",
        choices=METHODS,
        default="gptq",
        help="GPTQ, AWQ, or rounding to nearest, which reads no text (gptq)",
    )
    add("--scheme", choices=SCHEMES, default="W4A16", help="bits of weights and activations (W4A16)")
    add("--group-size", help='weights that share a scale, or "channel" (default: 128; W8A8: channel)')
    add("--calibration", help=CALIBRATION_HELP)
    add("--out", type=Path, required=True, help="folder of the copy")
    add("--samples", type=int, default=128, help=SAMPLES_HELP)
    add("--max-length", type=int, default=2048, help="tokens kept of each of them (2048)")
    add("--held-out", type=int, default=64, help="transcripts for the perplexity (64)")
    add("--world", choices=sorted(TRANSCRIPTS), help=WORLD_HELP)
    add("--config", metavar="FILE", help="configuration whose table [quantize] holds options of this recipe")
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    if (config := first.parse_known_args(argv)[0].config) is not None:
        load_config(EnvConfig, config)  # a misspelt [quantize] would else show as missing options
    return parser.parse_args(argv)


def parse(argv: Sequence[str] | None) -> Settings:
    """Read the command line, as settings."""
    values = vars(parse_args(argv))
    del values["config"]
    group = values["group_size"] or ("channel" if values["scheme"] == "W8A8" else "128")
    if group != "channel" and not group.isdecimal():
        raise ConfigError(f'--group-size must be a number or "channel", found {group!r}')
    if values["calibration"] is None:
        has_world = values["world"] or world_of(values["model"])
        values["calibration"] = "transcripts" if has_world or values["method"] == "rtn" else "c4"
    return Settings(**values | {"group_size": None if group == "channel" else int(group)})


def check(settings: Settings) -> Layout:
    """Refuse what cannot end well from ``config.json`` alone, and say how large the copy will be.

    Raises:
        BackendError: there is no such model, or the hub does not deliver it.
        ConfigError: the method or the scheme does not fit the model, or a disk is too full.
    """
    folder = resolve_checkpoint(settings.model, weights=False)
    layout = read_layout(folder)
    check_groups(layout, settings.group_size)
    if settings.method == "awq":
        check_awq(layout.architecture, list(layout.linear))
    download = 0 if list(folder.glob(WEIGHTS)) else layout.parameters * layout.dtype.itemsize
    needs = {settings.out.absolute().parent: copy_bytes(layout, settings.bits, settings.group_size)}
    check_disk(needs | ({folder: download} if download else {}))
    print(size_line(layout, settings, download), flush=True)
    return layout


def make_copy(settings: Settings, layout: Layout, work: WorkFolder) -> None:
    """Quantize, measure original and copy as a backend loads them, write the card, and publish the copy."""
    tokenizer = AutoTokenizer.from_pretrained(
        resolve_checkpoint(settings.model, weights=False), trust_remote_code=False
    )
    identity = settings.identity()
    if work.begin(identity):
        print(f"going on with what {work.path} holds", flush=True)
    texts = work.data("texts", lambda: calibration_texts(settings, tokenizer))
    held_out = TRANSCRIPTS[settings.transcript_world](HELD_OUT_PANEL, settings.held_out)
    rows = encode(texts, tokenizer, settings.max_length)
    lengths, others = [len(row) for row in rows], [len(tokenizer(text)["input_ids"]) for text in held_out]
    amount = Work(sum(lengths), max(lengths + others), sum(others))
    print(work_line(layout, settings, amount, measure_rates(layout)), flush=True)

    source = resolve_checkpoint(settings.model)
    digest = checkpoint_digest(source)
    if work.data("base", lambda: digest) != digest:
        raise ConfigError(f"{source} has changed since the run in {work.path} began: remove that folder")

    def write(folder: Path) -> None:
        start = time.perf_counter()
        quantize(settings, source, tokenizer, rows, layout.head, folder)
        work.data("seconds", lambda: round(time.perf_counter() - start, 1))
        work.data("peak_memory_bytes", peak_memory)

    made = {"before": work.data("before", lambda: perplexity(source, held_out, "the original"))}
    copy = work.folder("copy", write)
    made |= {"after": work.data("after", lambda: perplexity(copy, held_out, "the copy"))}
    made |= {name: work.data(name, lambda: None) for name in ("seconds", "peak_memory_bytes")}
    facts = describe(settings, digest, texts, sum(lengths), made, copy)
    write_card(settings, facts, copy)
    work.publish(copy)
    before, after = (shown(made[key]["commands"]) for key in ("before", "after"))
    size = f"{facts['bytes'] / 1e6:.2f} MB in {facts['seconds']} s"
    print(f"{settings.out}: {size}; perplexity on commands {before} before, {after} after")


def main(argv: Sequence[str] | None = None) -> None:
    """Make the copy that the command line asks for.

    Raises:
        ConfigError, BackendError: the settings cannot work, or there is no such model; said before weights are loaded.
        MissingDependency: llmcompressor is not installed.
    """
    settings = parse(argv)
    check_llmcompressor()
    layout = None if finished(settings) else check(settings)
    with WorkFolder(settings.out) as work:
        if layout is None or finished(settings):  # by whoever held the folder until now
            work.discard()  # of a run that was killed between the copy's last step and this one
            print(f"{settings.out} holds this copy already, whole: nothing to do")
        else:
            make_copy(settings, layout, work)


if __name__ == "__main__":
    run(main)
