"""agents/train_grpo.py: what it leaves behind, and what it refuses."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dmr_gym.command_line import make_envs
from dmr_gym.errors import ConfigError
from dmr_gym.policies import RouterPolicy
from dmr_gym.rollout import mean_episode_reward, rollout
from dmr_gym.router import PrecisionRouter
from dmr_gym.training import STATE_FILE, RunLog, read_history
from dmr_gym.vector import PrecisionRoutingVectorEnv
from tests.recipes import GRPO, load_recipe, one_thread, read_tensors

__all__ = ["one_thread"]  # a fixture for all tests here

recipe = load_recipe("train_grpo")


def test_a_run_leaves_router_figures_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures that the page promises are there for every update; the record tells settings and digests."""
    out = tmp_path / "run"
    recipe.main([*GRPO, "--out", str(out), "--updates", "3", "--validate-every", "2", "--lr", "1e-3"])
    router = PrecisionRouter.load(out / "router")
    assert router.trained_on["env_id"] == "DMR-Toy-v0"
    record = json.loads((out / "run.json").read_text())
    assert record["best_digest"] == router.digest()
    assert record["settings"]["lr"] == 1e-3
    assert set(record["models"]) == {"low", "high"}
    history = read_history(out)
    assert [entry["update"] for entry in history if "train/kl" in entry] == [1, 2, 3]
    assert [entry["update"] for entry in history if "validation/return" in entry] == [0, 2, 3]
    first = next(entry for entry in history if "train/kl" in entry)
    assert first["rollout/share_low"] + first["rollout/share_high"] == pytest.approx(1.0)
    assert {"groups/zero_spread", "groups/same_success", "train/clip_fraction", "time/update_s"} <= set(first)
    assert list((out / "tensorboard").iterdir())
    assert "wrote" in capsys.readouterr().out


def test_the_router_that_is_kept_has_the_best_validation_return(tmp_path: Path) -> None:
    """Played again, it gets what the history says was the best."""
    out = tmp_path / "run"
    recipe.main([*GRPO, "--out", str(out), "--updates", "6", "--validate-every", "1", "--lr", "1e-2"])
    best = max(entry["validation/return"] for entry in read_history(out) if "validation/return" in entry)
    settings = json.loads((out / "run.json").read_text())["env"]
    settings["task_kwargs"]["panel"] = "validation"
    envs = PrecisionRoutingVectorEnv(4, autoreset_mode="Disabled", **settings)
    policy = RouterPolicy(PrecisionRouter.load(out / "router"), mode="argmax")
    played = rollout(envs, policy, list(envs.task_ids)[:4])
    assert np.mean([trajectory.rewards.sum() for trajectory in played]) == pytest.approx(best)


def test_the_averaged_weights_are_kept_and_the_rate_falls_to_zero(tmp_path: Path) -> None:
    """After one update at decay 0.75 the kept weights lie a quarter of the way; an annealed rate falls linearly."""
    recipe.main([*GRPO, "--out", str(tmp_path / "begun"), "--updates", "1", "--lr", "1e-9"])
    command = [*GRPO, "--router", str(tmp_path / "begun" / "router"), "--lr", "1e-2"]
    recipe.main([*command, "--out", str(tmp_path / "run"), "--updates", "1", "--average", "0.75"])
    begun = dict(PrecisionRouter.load(tmp_path / "begun" / "router").named_parameters())
    state = load_file(tmp_path / "run" / STATE_FILE)
    moved = 0.0
    for name, first in begun.items():
        last, mean = state[f"model.{name}"], state[f"extra.{name}"]
        torch.testing.assert_close(mean, 0.75 * first.detach() + 0.25 * last)
        moved += float((last - first.detach()).abs().sum())
    assert moved > 1
    rates = []
    with pytest.MonkeyPatch.context() as patch:
        learn = recipe.Trainer.learn

        def spy(trainer: Any, batch: Any) -> Any:
            rates.append(trainer.optimizer.param_groups[0]["lr"])
            return learn(trainer, batch)

        patch.setattr(recipe.Trainer, "learn", spy)
        recipe.main([*command, "--out", str(tmp_path / "linear"), "--updates", "4", "--anneal"])
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_groups_have_one_task_and_differ_by_draws_alone(tmp_path: Path) -> None:
    """Each update plays M different tasks, G times each; another seed plays others."""
    chosen: dict[int, list[list[str]]] = {}
    for seed in (0, 1):
        calls: list[list[str]] = []

        def spy(envs: Any, policy: Any, task_ids: Any, calls: list[list[str]] = calls, **options: Any) -> Any:
            if options:
                assert options == {"repeats": 4, "first_repeat": 0}
                calls.append(list(task_ids))
            return rollout(envs, policy, task_ids, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recipe, "rollout", spy)
            recipe.main([*GRPO, "--out", str(tmp_path / str(seed)), "--updates", "2", "--seed", str(seed)])
        chosen[seed] = calls
    assert all(len(set(tasks)) == 3 for calls in chosen.values() for tasks in calls)
    assert chosen[0][0] != chosen[0][1]
    assert chosen[0] != chosen[1]


def test_skipped_tasks_are_not_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With eight training tasks, ``--skip-tasks 3 --tasks 4`` learns from the fourth to the seventh, and no others."""
    seen: set[str] = set()

    def spy(envs: Any, policy: Any, task_ids: Any, **options: Any) -> Any:
        if options:
            seen.update(task_ids)
        return rollout(envs, policy, task_ids, **options)

    monkeypatch.setattr(recipe, "rollout", spy)
    recipe.main([*GRPO, "--out", str(tmp_path / "run"), "--updates", "5", "--skip-tasks", "3", "--tasks", "4"])
    assert seen == {f"toy-train-{number:03d}" for number in (3, 4, 5, 6)}
    with pytest.raises(ConfigError, match="the panel has 5 tasks after the 3 skipped, but 6 were asked for"):
        recipe.main([*GRPO, "--out", str(tmp_path / "other"), "--skip-tasks", "3", "--tasks", "6"])


@pytest.mark.parametrize(("temperature", "firsts"), [(0.0, [0, 0, 0]), (0.7, [0, 4, 8])])
def test_every_update_has_draws_of_its_own_where_the_llm_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float, firsts: list[int]
) -> None:
    """Update u takes the sample indices u·G to u·G + G - 1; greedy decoding draws nothing and always has the same."""
    seen: list[int] = []

    def spy(envs: Any, policy: Any, task_ids: Any, **options: Any) -> Any:
        played = rollout(envs, policy, task_ids, **options)
        if options:
            repeats = [t.key.repeat for t in played]
            assert repeats == list(range(repeats[0], repeats[0] + 4)) * 3
            seen.append(repeats[0])
        return played

    monkeypatch.setattr(recipe, "rollout", spy)
    options = ["--updates", "3", "--set", f"sampling.temperature={temperature}"]
    recipe.main([*GRPO, "--out", str(tmp_path / "run"), *options])
    assert seen == firsts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group-size", "1"], "--group-size must be at least 2: an episode is compared"),
        (["--groups", "0"], "--groups must be at least 1, got 0"),
        (["--groups", "9"], "--groups 9 needs as many tasks, the panel has 8"),
        (["--lr", "0"], "--lr must be a finite number above 0, got 0.0"),
        (["--average", "1"], "--average must be at least 0 and below 1, got 1.0"),
        (["--kl-weight", "-1"], "--kl-weight must be a finite number of at least 0"),
        (["--max-length", "8"], "the router sees 8 rows at most, episodes have up to 50"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, options: list[str], message: str) -> None:
    """The error names the option, and says what would do."""
    with pytest.raises(ConfigError, match=message):
        recipe.main([*GRPO, "--out", str(tmp_path / "run"), "--updates", "1", *options])


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    """Without --resume a second start is refused, with it another learning rate or λ is."""
    command = [*GRPO, "--out", str(tmp_path / "run"), "--updates", "1"]
    recipe.main(command)
    with pytest.raises(ConfigError, match="holds a run: --resume"):
        recipe.main(command)
    with pytest.raises(ConfigError, match="begun with other lr"):
        recipe.main([*command, "--resume", "--lr", "0.5"])
    with pytest.raises(ConfigError, match="begun with other env, set"):
        recipe.main([*command, "--resume", "--set", "lambda_=0.7"])


def test_a_moved_run_goes_on_and_another_router_is_refused(tmp_path: Path) -> None:
    """Folders of the run and of its first router may have moved; what the router weighs is compared."""
    command = [*GRPO, "--updates", "1"]
    recipe.main([*command, "--out", str(tmp_path / "first")])
    recipe.main([*command, "--out", str(tmp_path / "other"), "--seed", "1"])
    options = [*command, "--out", str(tmp_path / "run"), "--router", str(tmp_path / "first" / "router")]
    recipe.main(options)
    (tmp_path / "run").rename(tmp_path / "moved")
    (tmp_path / "first" / "router").rename(tmp_path / "router")
    recipe.main([*command, "--out", str(tmp_path / "moved"), "--router", str(tmp_path / "router"), "--resume"])
    other = ["--out", str(tmp_path / "moved"), "--router", str(tmp_path / "other" / "router"), "--resume"]
    with pytest.raises(ConfigError, match="begun with other router_digest: choose"):
        recipe.main([*command, *other])
    with pytest.raises(ConfigError, match="begun with other kept_near_router"):
        recipe.main([*command, "--out", str(tmp_path / "moved"), "--resume"])


def test_training_begins_at_the_threshold_that_it_is_given(tmp_path: Path) -> None:
    """The first validation is that of the router at τ, the KL is to it, and the kept router decides so at one half."""
    recipe.main([*GRPO, "--out", str(tmp_path / "first"), "--updates", "2", "--lr", "1e-2"])
    router = PrecisionRouter.load(tmp_path / "first" / "router")
    config = recipe.chosen_env(recipe.parse_args([*GRPO, "--out", "x"]))[1]
    envs = make_envs(config, "validation", 4)
    scores = rollout(envs, RouterPolicy(router, mode="argmax"), envs.task_ids[:4])[0].p_high
    tau = float(np.mean([scores.min(), scores.max()]))
    expected = mean_episode_reward(rollout(envs, RouterPolicy(router, tau=tau), envs.task_ids[:4]))
    envs.close()
    command = [*GRPO, "--router", str(tmp_path / "first" / "router"), "--updates", "1", "--lr", "1e-9"]
    recipe.main([*command, "--out", str(tmp_path / "run"), "--start-threshold", repr(tau), "--kl-weight", "1"])
    history = read_history(tmp_path / "run")
    assert history[0]["validation/return"] == pytest.approx(expected)
    assert [entry["train/kl"] for entry in history if "train/kl" in entry] == [pytest.approx(0.0, abs=1e-6)]
    router.move_threshold(tau)
    assert PrecisionRouter.load(tmp_path / "run" / "router").digest() == router.digest()
    with pytest.raises(ConfigError, match=r"begun with other router_digest, start_threshold: choose"):
        recipe.main([*command, "--out", str(tmp_path / "run"), "--kl-weight", "1", "--resume"])
    with pytest.raises(ConfigError, match="--start-threshold is one of a router that there is"):
        recipe.main([*GRPO, "--out", str(tmp_path / "x"), "--start-threshold", "0.3"])
    with pytest.raises(ConfigError, match=r"--start-threshold must lie between 0 and 1, got 0\.0"):
        recipe.main([*command, "--out", str(tmp_path / "x"), "--start-threshold", "0"])


def test_a_signal_in_the_first_validation_saves_and_the_record_keeps_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is played after it; resumed elsewhere, the run ends as any other, and says who did what."""
    command = [*GRPO, "--updates", "2", "--average", "0.5", "--resume"]
    recipe.main([*command, "--out", str(tmp_path / "whole")])
    validate, out = recipe.Trainer.validate, tmp_path / "run"

    def validate_and_be_told(trainer: Any, *args: Any) -> float:
        assert json.loads((out / "run.json").read_text())["git"] == "first"
        signal.raise_signal(signal.SIGTERM)
        return validate(trainer, *args)

    monkeypatch.setattr(recipe.Trainer, "validate", validate_and_be_told)
    monkeypatch.setattr("dmr_gym.runs._commit", lambda: "first")
    with pytest.raises(SystemExit) as caught:
        recipe.main([*command, "--out", str(out)])
    assert caught.value.code == 128 + signal.SIGTERM
    assert [entry["update"] for entry in read_history(out)] == [0]
    monkeypatch.setattr(recipe.Trainer, "validate", validate)
    monkeypatch.setattr("dmr_gym.runs._commit", lambda: "second")
    recipe.main([*command, "--out", str(out)])
    assert read_tensors(out / STATE_FILE) == read_tensors(tmp_path / "whole" / STATE_FILE)
    record = json.loads((out / "run.json").read_text())
    assert (record["git"], [entry["git"] for entry in record["resumptions"]]) == ("first", ["second"])
    monkeypatch.setattr("dmr_gym.runs._commit", lambda: "third")
    recipe.main([*command, "--out", str(out)])
    assert json.loads((out / "run.json").read_text()) == record


def test_a_collapse_is_announced_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nineteen in twenty greedy decisions on held-out tasks are of one precision; after a way back, once more.

    Either precision can take over, updates in between change nothing, and a resumed run remembers what was before.
    """
    trainer = argparse.Namespace(envs=argparse.Namespace(precisions=("low", "high")))

    def feed(log: RunLog, first: int, highs: Sequence[float]) -> list[str]:
        for done, high in enumerate(highs, first):
            collapsed = recipe.Trainer.alarm(trainer, log, done, np.array([1 - high, high]))
            assert collapsed == (max(high, 1 - high) >= 0.95)
            log.write(done, {"validation/collapsed": float(collapsed)})
            log.write(done, {"rollout/share_high": 0.5})
        return capsys.readouterr().out.splitlines()

    with RunLog(tmp_path, 0) as log:
        assert feed(log, 1, [0.9, 0.94]) == []
        assert feed(log, 3, [0.96]) == ["update 3: collapse, high takes 96.0% of the steps of held-out tasks"]
        assert feed(log, 4, [1.0, 1.0]) == []
        assert feed(log, 6, [0.5]) == []
        assert feed(log, 7, [0.03]) == ["update 7: collapse, low takes 97.0% of the steps of held-out tasks"]
    with RunLog(tmp_path, 7) as log:
        assert feed(log, 8, [0.0]) == []


def test_a_router_that_has_collapsed_sets_off_the_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that takes the low precision everywhere does after the first update, though it still draws the other."""
    recipe.main([*GRPO, "--out", str(tmp_path / "first"), "--updates", "1", "--lr", "1e-9"])
    router = PrecisionRouter.load(tmp_path / "first" / "router")
    with torch.no_grad():
        router.head.weight.zero_()
        router.head.bias.copy_(torch.tensor([1.0, -1.0]))
    router.save(tmp_path / "low")
    capsys.readouterr()
    command = [*GRPO, "--router", str(tmp_path / "low"), "--out", str(tmp_path / "run"), "--updates", "1"]
    recipe.main([*command, "--lr", "1e-9"])
    announced = [line for line in capsys.readouterr().out.splitlines() if "collapse" in line]
    assert announced == ["update 1: collapse, low takes 100.0% of the steps of held-out tasks"]
    history = read_history(tmp_path / "run")
    assert [entry["validation/collapsed"] for entry in history if "validation/collapsed" in entry] == [1.0, 1.0]
    assert 0 < next(entry["rollout/share_high"] for entry in history if "rollout/share_high" in entry) < 0.4
