"""agents/ablate.py: each ablation once on the toy world, small, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import dmr_gym.evaluation
from dmr_gym.errors import ConfigError
from dmr_gym.kl_dataset import KLDataset
from dmr_gym.router import PrecisionRouter
from tests.explained import check_recorded
from tests.recipes import TINY, TOY, load_recipe, no_picture, one_thread, write_critical

__all__ = ["one_thread"]  # a fixture for all tests here

LEARN = [*TINY[2:], "--lr", "3e-3", "--epochs", "2"]
SMALL = ["--tasks", "6", "--calibration-tasks", "4", "--budgets", "0.2", "0.6", "--resamples", "20", *TOY]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The recipe as a module."""
    return load_recipe("ablate")


@pytest.fixture(autouse=True)
def quick(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluations within draw no picture."""
    monkeypatch.setattr(recipe.evaluate, "draw_accuracy_latency", no_picture)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corridors whose KL is large exactly at fallen signs."""
    collected = tmp_path_factory.mktemp("kl")
    load_recipe("collect_kl").main(["--out", str(collected), *TOY])
    return write_critical(collected, tmp_path_factory.mktemp("critical"))


@pytest.fixture(scope="module")
def router(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A router for them."""
    out = tmp_path_factory.mktemp("router")
    load_recipe("train_kl_st").main(["--data", str(data), "--out", str(out), "--n-layers", "1", *LEARN])
    return str(out / "router")


def tables(out: Path) -> str:
    """What an ablation writes."""
    return (out / "tables.md").read_text()


@pytest.mark.slow
def test_the_depth_of_routers_is_varied(
    recipe: ModuleType, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two depths of two seeds each; started again it trains and plays nothing, and writes the same."""
    out = tmp_path / "out"
    command = ["depth", "--data", str(data), "--out", str(out), "--depths", "1", "2", "--seeds", "2", *SMALL, *LEARN]
    recipe.main(command)
    for layers in (1, 2):
        folders = [out / str(layers) / f"seed-{seed}" / "router" for seed in range(2)]
        assert [PrecisionRouter.load(folder).config.n_layers for folder in folders] == [layers] * 2
        assert PrecisionRouter.load(folders[0]).digest() != PrecisionRouter.load(folders[1]).digest()
    lines = [line for line in tables(out).splitlines() if line.startswith("| 1 |") or line.startswith("| 2 |")]
    assert len(lines) == 2
    rows = json.loads((out / "2" / "evaluation" / "results.json").read_text())["results"]
    assert [row["episodes"] for row in rows] == [6, 6, 12, 12, 12]
    # Single precisions are played once for both depths.
    assert len(list((out / "batches").iterdir())) == 2 + 2 * 3 * 2
    before = tables(out)
    monkeypatch.setattr(dmr_gym.evaluation, "rollout", None)
    states = {path: path.stat().st_mtime_ns for path in out.glob("*/seed-*/state.safetensors")}
    recipe.main(command)
    assert tables(out) == before
    assert states == {path: path.stat().st_mtime_ns for path in states}
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    check_recorded(out, tmp_path)


@pytest.mark.slow
def test_the_width_of_routers_is_varied(recipe: ModuleType, data: Path, tmp_path: Path) -> None:
    """Heads are 32 numbers wide, feed-forward layers four times as wide as the rows; a line a width and budget."""
    out = tmp_path / "out"
    command = ["width", "--data", str(data), "--out", str(out), "--widths", "32", "96", "--seeds", "1", *SMALL]
    recipe.main([*command, "--budgets", "0.5", "--n-layers", "1", "--lr", "3e-3", "--epochs", "2"])
    configs = [PrecisionRouter.load(out / name / "seed-0" / "router").config for name in ("32", "96")]
    assert [(c.d_model, c.n_heads, c.d_ff, c.n_layers) for c in configs] == [(32, 1, 128, 1), (96, 3, 384, 1)]
    assert [line.split(" | ")[0] for line in tables(out).splitlines() if " | 0.5 | " in line] == ["| 32", "| 96"]
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    check_recorded(out, tmp_path)


@pytest.mark.slow
def test_the_threshold_on_kl_is_put_at_four_places(recipe: ModuleType, data: Path, tmp_path: Path) -> None:
    """The labels of each run are those of its place: more high ones at the edge, fewer in the dense mode."""
    out = tmp_path / "out"
    recipe.main(
        ["threshold", "--data", str(data), "--out", str(out), "--seeds", "1", *SMALL, "--n-layers", "1", *LEARN]
    )
    places = ("edge", "plateau", "plateau-edge", "dense-mode")
    high = [json.loads((out / p / "seed-0" / "run.json").read_text())["label_counts"][1] for p in places]
    assert high[0] > high[1] == high[2] > high[3] > 0
    assert all(f"| {place.replace('-', ' ')} |" in tables(out) for place in places)
    check_recorded(out, tmp_path)


@pytest.mark.slow
def test_action_steps_are_compared_with_all_steps(recipe: ModuleType, data: Path, tmp_path: Path) -> None:
    """Labels, loss and calibration pool follow; in corridors without thoughts both are the same router."""
    out = tmp_path / "out"
    recipe.main(["tokens", "--data", str(data), "--out", str(out), "--seeds", "1", *SMALL, "--n-layers", "1", *LEARN])
    records = [json.loads((out / name / "seed-0" / "run.json").read_text()) for name in ("AO", "AS")]
    assert [record["labelling"]["steps"] for record in records] == ["action", "all"]
    found = [json.loads((out / name / "evaluation" / "results.json").read_text()) for name in ("AO", "AS")]
    assert [result["calibrations"][0]["steps"] for result in found] == ["action", "all"]
    assert "| 0.2 |" in tables(out)
    assert "+0.00 [+0.00, +0.00]" in tables(out)
    check_recorded(out, tmp_path)


@pytest.mark.slow
def test_thoughts_are_labelled_and_calibrated_on_with_all_steps_alone(recipe: ModuleType, tmp_path: Path) -> None:
    """In a world that thinks, AO and AS have other labels and pools of scores, and so other routers and thresholds."""
    backend = 'backend={kind = "scripted", policy = "hash", choices = ["go left", "go right", "think: which way?"]}'
    world = ["--set", backend, "--set", "max_steps=8"]
    load_recipe("collect_kl").main(["--out", str(tmp_path / "kl"), *TOY, *world])
    dataset = KLDataset.load(tmp_path / "kl" / "kl.safetensors")
    held_out = np.random.default_rng(0).permutation(32)[:6]  # a fifth of the tasks, by --seed 0
    trains = ~np.isin(np.repeat(np.arange(32), dataset.lengths), held_out)
    acts = np.array([kind == "action" for kind in dataset.step_types])
    command = ["tokens", "--data", str(tmp_path / "kl"), "--out", str(tmp_path / "out"), "--seeds", "1", *SMALL]
    recipe.main([*command, *world, "--n-layers", "1", "--threshold", "0.25", *LEARN])
    found = {}
    for name, counted in (("AO", trains & acts), ("AS", trains)):
        record = json.loads((tmp_path / "out" / name / "seed-0" / "run.json").read_text())
        high = int((dataset.kls("action" if name == "AO" else "all")[counted] > 0.25).sum())
        assert record["label_counts"] == [int(counted.sum()) - high, high]
        assert high > 0
        result = json.loads((tmp_path / "out" / name / "evaluation" / "results.json").read_text())
        [calibration] = result["calibrations"]
        values = [threshold["value"] for threshold in calibration["thresholds"]]
        found[name] = [record["router_digest"], calibration["scores"]["steps"], values]
    assert found["AO"][1] < found["AS"][1]
    assert all(ours != theirs for ours, theirs in zip(found["AO"], found["AS"], strict=True))
    check_recorded(tmp_path / "out", tmp_path)


def test_step_types_are_compared_in_data_that_is_there(recipe: ModuleType, data: Path, tmp_path: Path) -> None:
    """Two cells and both pooled; the figure has a panel each."""
    recipe.main(["step-types", "--data", f"a={data}", f"b={data}", "--out", str(tmp_path)])
    mean = KLDataset.load(data / "kl.safetensors").kl_action.mean()
    assert f"| a low | {mean:.3g} |" in tables(tmp_path)
    assert f"| Pooled | {mean:.3g} |" in tables(tmp_path)
    assert (tmp_path / "ablation.png").is_file()
    check_recorded(tmp_path, tmp_path)


def test_the_shift_of_scores_is_tabled(recipe: ModuleType, data: Path, router: str, tmp_path: Path) -> None:
    """Both pools of Appendix D, from what agents/calibrate.py found."""
    recipe.main(["shift", "--out", str(tmp_path), "--router", router, "--data", str(data), "--resamples", "20", *TOY])
    pools = json.loads((tmp_path / "results.json").read_text())["pools"]
    for name in ("training", "calibration"):
        assert f"| {name} | {pools[name]['steps']} | {pools[name]['mean']:.3f} |" in tables(tmp_path)
    assert (tmp_path / "score_shift.png").is_file()
    check_recorded(tmp_path, tmp_path)


@pytest.mark.slow
def test_advantages_are_compared(recipe: ModuleType, router: str, tmp_path: Path) -> None:
    """The difference of the two ways is that of their rows."""
    command = ["advantages", "--out", str(tmp_path), "--router", router, "--lambdas", "0.1", "--seeds", "2"]
    command += ["--test-tasks", "4", "--calibration-tasks", "4", "--resamples", "20", *TOY]
    command += ["--set", "task_kwargs.num_tasks=8", "--set", "task_kwargs.num_signs=3", "--validation-tasks", "2"]
    recipe.main([*command, "--updates", "1", "--groups", "2", "--group-size", "2"])
    rows = json.loads((tmp_path / "results.json").read_text())["results"]
    mean, std = (row["return"] for row in rows if row["kind"] == "grpo")
    assert f"| {mean - std:+z.3f} [" in tables(tmp_path)
    assert (tmp_path / "returns.png").is_file()
    assert (tmp_path / "courses.png").is_file()
    check_recorded(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["depth", "--data", "x", "--depths", "2", "2"], "--depths must differ"),
        (["depth", "--data", "x", "--n-layers=3"], "depth varies --n-layers, --seed itself: leave --n-layers=3 out"),
        (["width", "--data", "x", "--widths", "32", "48"], r"different multiples of 32, got \[32, 48\]"),
        (["width", "--data", "x", "--d-ff", "64"], "width varies --d-ff, --d-model, --n-heads, --seed itself"),
        (["depth", "--data", "x", "--seed", "3"], "leave --seed out"),
        (["depth", "--data", "x", "--seeds", "0"], "--seeds must be at least 1"),
        (["depth", "--data", "x", "--epochs", "0"], "--epochs must be at least 1"),
        (["tokens", "--data", "x", "--steps", "all"], "leave --steps out"),
        (["step-types", "--data", "x"], "--data takes NAME=DIR"),
        (["step-types", "--data", "a=x", "--epochs", "3"], "trains nothing and takes no further options"),
        (["shift", "--router", "x"], "give --data, what the router was trained on"),
        (["advantages", "--advantages", "loo"], "compares mean and group_std"),
    ],
)
def test_mistakes_end_it_before_anything_is_trained(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], message: str
) -> None:
    """Each with the way out."""
    for name in ("train_kl_st", "evaluate", "calibrate", "compare_grpo"):
        monkeypatch.setattr(getattr(recipe, name), "main", None)
    with pytest.raises(ConfigError, match=message):
        recipe.main([command[0], "--out", str(tmp_path), *command[1:]])


def test_help_names_every_command(recipe: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Seven of them, with the tables and figures of the paper."""
    with pytest.raises(SystemExit, match="0"):
        recipe.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in recipe.HELP)
    for name in recipe.HELP:
        with pytest.raises(SystemExit, match="0"):
            recipe.main([name, "--help"])
        assert "--out DIR" in capsys.readouterr().out
