"""dmr_gym.perplexity: over all tokens, and over commands alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmr_gym.errors import ConfigError
from dmr_gym.perplexity import perplexity

BEFORE, COMMAND, AFTER = "You see a bed 1.\n>", " go to bed 1\n", "You arrive at bed 1."


def test_a_model_that_knows_nothing_has_its_vocabulary_as_perplexity(
    checkpoints: dict[str, str], tmp_path: Path
) -> None:
    """With all logits equal, every token has probability 1/V, so both perplexities are V."""
    model = AutoModelForCausalLM.from_pretrained(checkpoints["low"])
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoints["low"]).save_pretrained(tmp_path)
    size = pytest.approx(model.config.vocab_size, rel=1e-4)
    assert perplexity(tmp_path, [BEFORE + COMMAND + AFTER], "nothing") == {"all": size, "commands": size}


def test_commands_are_the_tokens_behind_the_prompt_sign(checkpoints: dict[str, str]) -> None:
    """Each token counts with its loss in the plain model, those between ">" and the end of the line as commands."""
    folder = Path(checkpoints["low"])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).float(), AutoTokenizer.from_pretrained(folder)
    parts = [len(tokenizer(text)["input_ids"]) for text in (BEFORE, COMMAND, AFTER)]
    ids = torch.tensor([tokenizer(BEFORE + COMMAND + AFTER)["input_ids"]])
    assert ids.shape[1] == sum(parts)
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
    commands = loss[parts[0] - 1 : parts[0] + parts[1] - 1]
    expected = {"all": loss.mean().exp().item(), "commands": commands.mean().exp().item()}
    assert perplexity(folder, [BEFORE + COMMAND + AFTER], "low") == pytest.approx(expected, rel=1e-4)


def test_texts_without_a_command_are_refused(checkpoints: dict[str, str]) -> None:
    """A mean over nothing is no number."""
    with pytest.raises(ConfigError, match="there is no command in the 1 texts"):
        perplexity(Path(checkpoints["low"]), [AFTER], "low")
