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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--warmup 0", "--warmup must be at least 1, got 0"),
        ("--decay 0", r"--decay is a share of the run in \(0, 1\], got 0.0"),
        ("--decay 1.5", "got 1.5"),
        ("--drill-updates 16", "--drill-updates must be at least 0, and 0 but for --world webshop; got 16"),
        ("--world webshop --other-tasks -1", "--other-tasks must be at least 0"),
        ("--vocab-size 1000", "--vocab-size must be a multiple of 128, got 1000"),
        ("--heads 3", "--heads must be even"),
        ("--induction --heads 8", "induction needs two key-value heads of half the width"),
        ("--induction --layers 1", "in two layers or more"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_a_folder_is_claimed(
    tmp_path: Path, options: str, message: str
) -> None:
    """The error names the option, and the folder is free for the next try."""
    with pytest.raises(ConfigError, match=message):
        recipe.main([*options.split(), "--threads", "1", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_every_setting_is_an_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    """No option gives the defaults, the recorded shop command gives its own, and the help says what each is for."""
    assert recipe.parse_args([]) == recipe.Args()
    shop = recipe.parse_args(["--world", "webshop", "--induction", "--drill-updates", "128", "--muon-lr", "0.005"])
    assert shop == recipe.Args(world="webshop", induction=True, drill_updates=128, muon_lr=0.005)
    with pytest.raises(SystemExit):
        recipe.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--decay DECAY last share of the run in which the rates fall linearly to zero (default: 0.6)" in text


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
