"""The model card of a copy, and the same as data."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmr_gym.backends.checkpoint import REPORT
from dmr_gym.backends.kernels import no_kernel
from dmr_gym.quantization.settings import HELD_OUT_PANEL, Settings, name_of
from dmr_gym.runs import content_address, file_digest, provenance, write_atomically, write_json

CARD_FILE = "README.md"
PROJECTED = (
    " Its width has no kernel: it is unpacked to 16 bits at load, so a latency that is measured of it is that of 16 "
    "bits (dequantized), and its own can only be projected."
)
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


def describe(
    settings: Settings, base_digest: str, texts: Sequence[str], tokens: int, made: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """What the copy is and what made it, as plain data.

    Args:
        settings: of the run.
        base_digest: `dmr_gym.backends.checkpoint.checkpoint_digest` of the original.
        texts: of the calibration; none for a method without one.
        tokens: that were kept of them.
        made: "before" and "after", the perplexities, "seconds" that the quantization took, and "peak_memory_bytes" of
            the process that did it.
        folder: of the copy.
    """
    origin = provenance()
    del origin["process_s"]  # "seconds" says what the quantization took
    origin["versions"] |= {name: importlib.metadata.version(name) for name in ("llmcompressor", "compressed-tensors")}
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in (REPORT, CARD_FILE))
    return {
        "base_model": name_of(settings.model),
        "method": settings.method,
        "scheme": settings.scheme,
        "group_size": settings.group_size or "channel",
        "not_quantized": "output head, embeddings, norms",
        "runs": no_kernel(settings.bits) or "packed where the engine has a kernel; transformers unpacks it",
        "calibration": name_of(settings.calibration) if texts else "none",
        "calibration_samples": len(texts),
        "calibration_tokens": tokens,
        "calibration_texts": content_address(list(texts)) if texts else "none",
        "max_length": settings.max_length,
        "perplexity_on": f"{settings.held_out} {settings.transcript_world} transcripts of the {HELD_OUT_PANEL} panel",
        "perplexity": {"before": made["before"], "after": made["after"]},
        "bytes": sum(path.stat().st_size for path in files),
        "seconds": made["seconds"],
        "peak_memory_bytes": made["peak_memory_bytes"],
        "settings": settings.identity(),
        "base_digest": base_digest,
        "sha256": {path.name: file_digest(path) for path in files},
        **origin,
    }


def write_card(settings: Settings, facts: Mapping[str, Any], folder: Path) -> None:
    """Write the model card beside the weights, and ``quantization.json`` after it: whoever finds that has all."""
    table = {key.replace("_", " "): value for key, value in facts.items() if isinstance(value, str | int | float)}
    before, after = facts["perplexity"]["before"], facts["perplexity"]["after"]
    table |= {f"perplexity, {key}": f"{shown(before[key])} before, {shown(after[key])} after" for key in before}
    table |= {name: version for name, version in facts["versions"].items() if version}
    options = {key: value for key, value in facts["settings"].items() if key != "calibration_file"}
    options["out"] = settings.out.name
    text = CARD.format(
        base=facts["base_model"],
        how=f"{settings.method.upper()} {settings.scheme}",
        note=PROJECTED if no_kernel(settings.bits) else "",
        rows="\n".join(f"| {key} | {value} |" for key, value in table.items()),
        options=shlex.join(
            str(part) for key, value in options.items() for part in (f"--{key.replace('_', '-')}", value)
        ),
    )
    write_atomically(folder / CARD_FILE, lambda part: part.write_text(text, encoding="utf-8"))
    write_json(folder / REPORT, facts)


def shown(perplexity: float | None) -> str:
    """A perplexity with four decimals; records have None for one that is not finite."""
    return "infinite" if perplexity is None else f"{perplexity:.4f}"


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What ``quantization.json`` of a folder says; None where there is none, or it is of another kind."""
    try:
        facts = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None


def damaged_files(facts: Mapping[str, Any], folder: Path) -> list[str]:
    """Names of the files of a copy that are not what they were when it was made."""
    return [
        name
        for name, digest in facts.get("sha256", {}).items()
        if not (folder / name).is_file() or file_digest(folder / name) != digest
    ]
