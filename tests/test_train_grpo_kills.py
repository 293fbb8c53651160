"""agents/train_grpo.py: runs that were killed or stopped end like any others."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from dmr_gym.router import CONFIG_FILE, PrecisionRouter
from dmr_gym.training import HISTORY_FILE, STATE_FILE, read_history
from tests.recipes import GRPO, GRPO_TASKS, TINY, TOY, Runs, kill_often, load_recipe, one_thread, read_tensors

__all__ = ["one_thread"]  # a fixture for all tests here


@pytest.fixture(scope="module")
def kl_st(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router of the first stage, for the corridors of `GRPO`."""
    folder = tmp_path_factory.mktemp("kl-st")
    load_recipe("collect_kl").main([*TOY, *GRPO_TASKS, "--out", str(folder / "kl")])
    options = ["--data", str(folder / "kl"), "--out", str(folder), "--epochs", "3", "--lr", "3e-3"]
    load_recipe("train_kl_st").main([*options, *TINY])
    return folder / "router"


def without_times(folder: Path) -> list[dict[str, float]]:
    """A run's history but for its seconds, which no two runs share."""
    return [
        {name: value for name, value in entry.items() if not name.startswith("time/")} for entry in read_history(folder)
    ]


def check_same(out: Path, whole: Path) -> None:
    """State, best router and history of two runs are the same byte for byte."""
    assert read_tensors(out / STATE_FILE) == read_tensors(whole / STATE_FILE)
    assert PrecisionRouter.load(out / "router").digest() == PrecisionRouter.load(whole / "router").digest()
    assert (out / "router" / CONFIG_FILE).read_text() == (whole / "router" / CONFIG_FILE).read_text()
    assert without_times(out) == without_times(whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_stopped_runs_end_in_the_weights_of_an_uninterrupted_one(tmp_path: Path, kl_st: Path) -> None:
    """After 20 kills at random moments, and a SIGTERM, beside a router of KL-ST that they are kept near."""
    options = [
        *GRPO,
        "--router",
        str(kl_st),
        "--kl-weight",
        "0.1",
        "--updates",
        "60",
        "--validate-every",
        "10",
        "--checkpoint-every",
        "1",
        "--lr",
        "1e-3",
        "--anneal",
        "--average",
        "0.5",
        "--resume",
    ]
    whole, out = tmp_path / "whole", tmp_path / "killed"

    with Runs("train_grpo", tmp_path / "log.txt") as runs:
        assert runs.run([*options, "--out", str(whole)]) == 0
        assert min(entry["train/kl"] for entry in read_history(whole) if "train/kl" in entry) > 0
        command = [*options, "--out", str(out)]
        kill_often(runs, command, out, STATE_FILE, 20, lambda: check_same(out, whole), found="best_digest")
        (out / STATE_FILE).unlink()
        (out / "run.json").unlink()
        stopped = runs.run(command, lambda _: (out / STATE_FILE).exists(), signal.SIGTERM)
        assert stopped == 128 + signal.SIGTERM
        assert "best_digest" not in json.loads((out / "run.json").read_text())
        assert runs.run(command) == 0
        check_same(out, whole)
    assert "stopped by SIGTERM after" in (tmp_path / "log.txt").read_text()
    assert (out / HISTORY_FILE).is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_runs_need_their_cache_where_embeddings_depend_on_the_batch(tmp_path: Path) -> None:
    """With the cache they end in the weights of an uninterrupted run, bit for bit; without it they do not."""
    options = [*GRPO, "--updates", "12", "--validate-every", "4", "--checkpoint-every", "2", "--lr", "1e-3"]
    options += ["--set", "max_steps=12", "--resume"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    late = ("matplotlib.pyplot", "torch.utils.tensorboard", "tests.unsteady_encoder")
    with Runs("train_grpo", tmp_path / "log.txt", late) as runs:
        assert runs.run([*options, "--out", str(whole)]) == 0
        command = [*options, "--out", str(out)]
        kill_often(runs, command, out, STATE_FILE, 4, lambda: check_same(out, whole), found="best_digest")
        shutil.rmtree(out)
        runs.run(command, lambda _: (out / STATE_FILE).exists(), signal.SIGTERM)
        shutil.rmtree(out / "cache")
        assert runs.run(command) == 0
        assert read_tensors(out / STATE_FILE) != read_tensors(whole / STATE_FILE)
