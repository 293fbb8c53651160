"""Calibration texts: transcripts of an expert, English C4 as in the paper, or a file."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.quantization.settings import CALIBRATION_PANEL, TRANSCRIPTS, Settings

OFFLINE = (
    "without a network give --calibration FILE, a .txt file with a blank line between documents or a .jsonl file with "
    'a "text" in each line, or calibrate on transcripts: --calibration transcripts --world alfworld or webshop'
)


def calibration_texts(settings: Settings, tokenizer: Any) -> list[str]:
    """The texts that `Settings.calibration` names, at most `Settings.samples` of them; none for "rtn".

    Raises:
        ConfigError: there is no text, or the file is of another kind.
        BackendError: C4 is out of reach.
    """
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


def c4_documents(tokenizer: Any, count: int, length: int) -> list[str]:
    """The first documents of English C4 that have at least ``length`` tokens: the paper's calibration set.

    Raises:
        BackendError: the hub does not deliver them; the message says what works without a network.
    """
    import datasets
    from tqdm import tqdm

    try:
        stream = datasets.load_dataset("allenai/c4", "en", split="train", streaming=True)
        # A token is seldom shorter than two characters: this spares most of the tokenizing.
        texts = (row["text"] for row in stream if len(row["text"]) >= 2 * length)
        long_enough = (text for text in texts if len(tokenizer(text)["input_ids"]) >= length)
        found = itertools.islice(long_enough, count)
        return list(tqdm(found, desc="documents of C4", total=count, unit="text", leave=False))
    except Exception as error:  # network, hub and readers raise whatever they like: all of them mean "not here"
        raise BackendError(
            f"--calibration c4 streams allenai/c4 from the hub, which cannot be reached ({type(error).__name__}: "
            f"{error}); {OFFLINE}"
        ) from error


def read_documents(path: Path) -> list[str]:
    """The "text" of each line of a .jsonl file, else blocks parted by blank lines; empty texts are left out.

    Raises:
        ConfigError: the file cannot be read, or is of another kind.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            # Only line feeds part lines of JSON: splitlines would cut texts at U+2028, which JSON does not escape.
            texts = [str(json.loads(line)["text"]) for line in text.split("\n") if line.strip()]
            return [text for text in texts if text.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        known = '"transcripts", "c4", a UTF-8 text file, or a .jsonl file with a "text" in each line'
        raise ConfigError(f"{path}: --calibration takes {known}; got {error!r}") from error
    return [block for block in re.split(r"\n\s*\n", text.strip()) if block]


def encode(texts: list[str], tokenizer: Any, max_length: int) -> list[list[int]]:
    """Token ids of each text, at most ``max_length`` of them."""
    return [tokenizer(text)["input_ids"][:max_length] for text in texts]
