"""agents/compare_grpo.py: every setting is trained, every policy plays, and its figures follow from the episodes."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dmr_gym.errors import ConfigError
from tests.explained import check_recorded
from tests.recipes import GRPO, load_recipe, one_thread

__all__ = ["one_thread"]  # a fixture for all tests here


@pytest.mark.slow
def test_the_comparison_trains_every_setting_and_plays_every_policy(tmp_path: Path) -> None:
    """Two λ, two kinds of advantages, two seeds; started again it trains nothing; numbers follow from the episodes."""
    first, out = tmp_path / "first", tmp_path / "out"
    load_recipe("train_grpo").main([*GRPO, "--out", str(first), "--updates", "1"])
    compare = load_recipe("compare_grpo")
    options = [*GRPO, "--router", str(first / "router"), "--out", str(out), "--seeds", "2", "--updates", "2"]
    options += ["--lambdas", "0", "0.1", "--advantages", "mean", "group_std", "--test-tasks", "5"]
    compare.main([*options, "--calibration-tasks", "4"])
    record = json.loads((out / "results.json").read_text())
    kinds = [row["kind"] for row in record["results"]]
    assert kinds == ["grpo", "high", "low", "kl-st", "random"] * 4
    assert (out / "returns.png").stat().st_size > 5000
    assert len(list((out / "runs").iterdir())) == 8
    episodes = [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]
    grpo = next(row for row in record["results"] if row["kind"] == "grpo" and row["lambda"] == 0.1)
    mine = [e for e in episodes if e["policy"] == grpo["policy"]]
    assert len(mine) == 2 * 5
    assert grpo["return"] == pytest.approx(np.mean([e["success"] - 0.1 * e["time_s"] for e in mine]))
    lines = [
        line for line in (out / "returns.md").read_text(encoding="utf-8").splitlines() if "GRPO mean λ=0.1" in line
    ]
    assert [line.startswith(f"| 0.1 | GRPO mean λ=0.1 | {grpo['return']:.3f} [") for line in lines] == [True]
    check_recorded(out, tmp_path)
    states = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/state.safetensors")}
    compare.main([*options, "--calibration-tasks", "4"])
    assert len(states) == 8
    assert states == {path: path.stat().st_mtime_ns for path in out.glob("runs/*/state.safetensors")}
    batches = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / "batches").iterdir()}
    lost = min(batches)
    lost.unlink()
    compare.main([*options, "--calibration-tasks", "4"])
    assert {path: path.read_bytes() for path in (out / "batches").iterdir()} == {p: b for p, (b, _) in batches.items()}
    assert {p for p, (_, written) in batches.items() if p.stat().st_mtime_ns != written} == {lost}
    results = (out / "results.json").read_bytes()
    for changed in (["--lr", "0.5"], ["--test-panel", "validation"], ["--test-tasks", "4"], ["--lambdas", "0.1"]):
        with pytest.raises(ConfigError, match=f"begun with other .*{changed[0][2:].replace('-', '_')}: choose"):
            compare.main([*options, "--calibration-tasks", "4", *changed])
    assert (out / "results.json").read_bytes() == results
    compare.main([*options, "--calibration-tasks", "4", "--lambdas", "0", "0.1", "0.2"])
    assert len(json.loads((out / "results.json").read_text())["results"]) == 30
    check_rivals(compare, [*options, "--calibration-tasks", "4", "--lambdas", "0", "0.1", "0.2"], first, out)


def check_rivals(compare: ModuleType, command: list[str], first: Path, out: Path) -> None:
    """A rival that is the first router by another name earns what that earns; one may join, and none may leave."""
    twin = out.parent / "twin" / "router"
    shutil.copytree(first / "router", twin)
    compare.main([*command, "--rivals", str(twin)])
    rows = json.loads((out / "results.json").read_text())["results"]
    assert [row["kind"] for row in rows] == ["grpo", "high", "low", "kl-st", "rival", "random"] * 6
    for mine, rival in zip(rows[3::6], rows[4::6], strict=True):
        assert rival["policy"] == mine["policy"].replace("KL-ST", "twin")
        assert (rival["return"], rival["grpo_minus"]) == (mine["return"], mine["grpo_minus"])
    with pytest.raises(ConfigError, match="begun with other rivals: choose"):
        compare.main(command)
    with pytest.raises(ConfigError, match=r"names of their runs, which must differ, got \['twin', 'twin'\]"):
        compare.main([*command, "--rivals", str(twin), str(twin.parent)])


def test_the_gap_of_advantages_is_paired_by_seed_and_task() -> None:
    """At λ = 0.1: seed 0 gains 1 on a task, seed 1 loses 0.1 on another; the mean of four is (1 + 0 + 0 - 0.1) / 4."""
    compare = load_recipe("compare_grpo")
    ends = {
        "mean": ([[1, 1], [1, 1]], [[1, 2], [1, 3]]),
        "group_std": ([[0, 1], [1, 1]], [[1, 2], [1, 2]]),
    }
    contenders = [
        compare.Played(f"GRPO {way}", f"grpo {way} 0.1", np.array(success), np.array(seconds), np.ones(2))
        for way, (success, seconds) in ends.items()
    ]
    args = argparse.Namespace(advantages=["mean", "group_std"], lambdas=[0.1], resamples=200)
    [gap] = compare.advantage_gaps(contenders, args)
    assert (gap["policy"], gap["minus"]) == ("GRPO mean", "GRPO group_std")
    assert gap["return"] == pytest.approx(0.9 / 4)
    assert (gap["return_ci"]["low"], gap["return_ci"]["high"]) == pytest.approx((-0.1, 1.0))
    args.advantages = ["mean"]
    assert compare.advantage_gaps(contenders, args) == []


def test_the_interval_of_a_comparison_draws_seeds_and_tasks() -> None:
    """Equal seeds and tasks have no spread; two seeds at 0 and 1 spread over both, and so do two tasks."""
    interval = load_recipe("compare_grpo").interval
    assert interval(np.full((3, 4), 0.5), 200).low == interval(np.full((3, 4), 0.5), 200).high == 0.5
    seeds = interval(np.array([[0.0] * 4, [1.0] * 4]), 400)
    assert (seeds.low, seeds.high) == (0.0, 1.0)
    tasks = interval(np.array([[0.0, 1.0]] * 3), 400)
    assert (tasks.low, tasks.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lambdas", "0.1", "0.1"], "--lambdas must be different numbers"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--budgets", "1.5"], "--budgets are shares of steps"),
        (["--group-size", "1"], "--group-size must be at least 2"),
        (["--seed", "7"], "--seed is set for each run"),
    ],
)
def test_a_comparison_refuses_what_a_training_would(tmp_path: Path, options: list[str], message: str) -> None:
    """Before anything is played, options of the training among them."""
    command = ["--router", str(tmp_path), "--out", str(tmp_path / "out"), *options]
    with pytest.raises(ConfigError, match=message):
        load_recipe("compare_grpo").main(command)
