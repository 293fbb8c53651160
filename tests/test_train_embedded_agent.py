"""The recipe that trains the embedded agent, on a model of one layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents import train_embedded_agent as recipe
from dmr_gym.backends import LocalBackend
from dmr_gym.errors import ConfigError
from dmr_gym.types import Request

OPTIONS = (
    "--updates 4 --checkpoint-every 2 --tokens-per-update 1024 --hidden-size 128 --intermediate-size 128 --layers 1 "
    "--threads 1 --out"
).split()


def test_the_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    """Hand-computed points of the schedule: 10 updates of warm-up, the last half falling linearly."""
    args = recipe.Args(updates=100, warmup=10, decay=0.5)
    assert [recipe.learning_rate_scale(t, args) for t in (0, 4, 30, 75, 100)] == [0.1, 0.5, 1.0, 0.5, 0.0]


def test_a_drill_asks_only_for_what_its_prompt_shows() -> None:
    """Each answer repeats a name in brackets or words of the task; easy drills show two names, hard ones the page."""
    prompt = "Task: i need a tea, price lower than 30.00 dollars\nStep 1\n[b0k3m9x2qa] $3.0 green tea\n[next >]\n>"
    for hardness in (0.0, 1.0):
        (shown, _), (answers, weight) = recipe.drill(prompt, 0, hardness)
        assert weight == 1.0
        for answer in answers.splitlines():
            name = answer[answer.index("[") + 1 : -1].strip()
            assert name in shown
        assert answers.endswith("]\n")
    assert "green tea" in shown
    assert "next >" not in answers


def test_a_product_number_is_five_pieces_wherever_it_stands() -> None:
    """Behind a bracket, a space or a word: the same four pairs follow the first, so they can be copied."""
    tokenizer = recipe.train_tokenizer(recipe.Args(world="webshop", vocab_size=2048), episodes=20)
    for text in ("[b0k3m9x2qa] $3.0", " click[b0k3m9x2qa]\n", "item b0k3m9x2qa\n", "was item b0k3m9x2qa: click"):
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        start = next(index for index, piece in enumerate(pieces) if piece.endswith("b0"))
        assert pieces[start + 1 : start + 5] == ["k3", "m9", "x2", "qa"]
    assert tokenizer.decode(tokenizer("b000")["input_ids"]) == "b000"


def test_padding_and_mistakes_carry_no_loss() -> None:
    """Positions of weight 0 do not change the loss."""
    torch.manual_seed(0)
    logits, ids, weights = torch.randn(1, 4, 7), torch.tensor([[1, 2, 3, 4]]), torch.tensor([[1.0, 1.0, 0.0, 0.2]])
    changed = logits.clone()
    changed[0, 1] += torch.randn(7)  # predicts the token at index 2, which weighs nothing
    assert torch.equal(recipe.weighted_loss(logits, ids, weights)[0], recipe.weighted_loss(changed, ids, weights)[0])


@pytest.mark.slow
def test_a_shop_run_drills_then_learns_and_leaves_a_model_that_answers(tmp_path: Path) -> None:
    """Two pools, the first of drills, with written induction heads; the model's answers end."""
    options = "--world webshop --updates 18 --drill-updates 16 --induction --layers 2 --vocab-size 2048 --threads 1"
    sizes = "--tokens-per-update 512 --intermediate-size 128 --checkpoint-every 18"
    recipe.main([*options.split(), *sizes.split(), "--out", str(tmp_path / "run")])
    backend = LocalBackend({"bf16": str(tmp_path / "run" / "model")})
    assert backend.generate([Request("Task: i need tea\nStep 1\nstart\nsearch[...]\n>", "bf16")])[0].completion_tokens


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights_and_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its checkpoint at update 2 and resumed, a run ends in the weights of an uninterrupted one."""
    recipe.main([*OPTIONS, str(tmp_path / "whole")])
    schedule = recipe.learning_rate_scale

    def kill(update: int, args: recipe.Args) -> float:
        if update == 3:
            raise KeyboardInterrupt
        return schedule(update, args)

    with monkeypatch.context() as patch:
        patch.setattr(recipe, "learning_rate_scale", kill)
        with pytest.raises(KeyboardInterrupt):
            recipe.main([*OPTIONS, str(tmp_path / "killed")])
    with pytest.raises(ConfigError, match="holds a run"):
        recipe.main([*OPTIONS, str(tmp_path / "killed")])
    with pytest.raises(ConfigError, match="other seed"):
        recipe.main([*OPTIONS, str(tmp_path / "killed"), "--resume", "--seed", "1"])
    recipe.main([*OPTIONS, str(tmp_path / "killed"), "--resume"])
    whole, resumed = (load_file(tmp_path / name / recipe.CHECKPOINT) for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    backend = LocalBackend({"bf16": str(tmp_path / "killed" / "model")})
    assert backend.generate([Request("You are in a room.\n>", "bf16")])[0].completion_tokens > 0
