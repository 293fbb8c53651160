"""Perplexity of a checkpoint on transcripts: what quantization costs before any episode is played."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from dmr_gym.backends.checkpoint import load_checkpoint
from dmr_gym.errors import ConfigError

_COMMAND = re.compile(r"^>(.*\n)", re.MULTILINE)


def perplexity(folder: Path, texts: Sequence[str], name: str) -> dict[str, float]:
    """Perplexity of a checkpoint on transcripts, computed in float32 on the CPU.

    Args:
        folder: of the checkpoint.
        texts: transcripts in which a command stands behind ">" at the beginning of a line.
        name: of the checkpoint, for the progress bar.

    Returns:
        "all": exp of the mean negative log-likelihood in nats of every token but a text's first; "commands": the same
        over the tokens of commands alone.

    Raises:
        BackendError: the checkpoint cannot be loaded.
        ConfigError: there is no command in the texts.
    """
    model, tokenizer = load_checkpoint(folder, torch.device("cpu"), torch.float32, "sdpa")
    losses, are_commands = [], []
    for text in tqdm(texts, desc=f"perplexity of {name}", unit="text", leave=False):
        encoded = tokenizer(text, return_offsets_mapping=True)
        ids = torch.tensor([encoded["input_ids"]])
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
        spans = [match.span(1) for match in _COMMAND.finditer(text)]
        starts = (start for start, _ in encoded["offset_mapping"][1:])
        are_commands.append(torch.tensor([any(first <= at < last for first, last in spans) for at in starts]))
    if not any(is_command.any() for is_command in are_commands):
        raise ConfigError(f"perplexity of {name}: there is no command in the {len(texts)} texts")
    loss, is_command = torch.cat(losses), torch.cat(are_commands)
    return {"all": loss.mean().exp().item(), "commands": loss[is_command].mean().exp().item()}
