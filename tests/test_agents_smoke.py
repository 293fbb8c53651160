"""Each routing recipe once, end to end, on the toy world."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.rollout import Trajectory
from dmr_gym.router import PrecisionRouter
from tests.recipes import TINY, TOY, load_recipe, write_critical


@pytest.fixture(scope="module")
def agents() -> dict[str, ModuleType]:
    """The recipes as modules."""
    return {name: load_recipe(name) for name in ("collect_kl", "train_kl_st", "calibrate", "evaluate")}


@pytest.fixture(scope="module")
def root_folder() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def collected(agents, tmp_path_factory) -> Path:
    """What collect_kl writes for all 32 training corridors."""
    out = tmp_path_factory.mktemp("kl")
    agents["collect_kl"].main(["--out", str(out), *TOY])
    return out


@pytest.fixture(scope="module")
def critical(collected, tmp_path_factory) -> Path:
    """The same data set with a KL that is large exactly at fallen signs, so that the right routing is known."""
    return write_critical(collected, tmp_path_factory.mktemp("critical"))


@pytest.fixture(scope="module")
def trained(agents, critical, tmp_path_factory) -> Path:
    """What train_kl_st writes."""
    out = tmp_path_factory.mktemp("kl-st")
    agents["train_kl_st"].main(["--data", str(critical), "--out", str(out), "--lr", "3e-3", "--epochs", "12", *TINY])
    return out


def test_collect_kl_plays_every_task_and_labels_every_step(collected):
    """32 corridors of 8 signs, all solved by high precision; data, record and picture are there."""
    dataset = KLDataset.load(collected / "kl.safetensors")
    assert dataset.task_ids == tuple(f"toy-train-{i:03d}" for i in range(32))
    assert dataset.lengths.tolist() == [8] * 32
    assert dataset.success.all()
    assert dataset.rows.shape == (256, 64)
    np.testing.assert_allclose(np.linalg.norm(dataset.rows, axis=1), 1.0, rtol=1e-5)
    assert dataset.kl_action.shape == (256, 1)
    assert (dataset.kl_action >= 0).all()
    record = json.loads((collected / "run.json").read_text())
    assert record["settings"]["direction"] == "high_low"
    assert set(record["settings"]["models"]) == {"low", "high"}
    assert record["summary"]["steps"] == 256
    assert record["kl_is_lower_bound"] is False
    assert len(record["summary"]["labelling"]["stability"]) == 4
    assert (collected / "kl_histogram.png").read_bytes().startswith(b"\x89PNG")


def test_a_collection_from_a_config_file_is_that_of_the_id(agents, collected, root_folder, tmp_path):
    """configs/toy.toml gives the data set of DMR-Toy-v0, its record included, byte for byte."""
    config = str(root_folder / "configs" / "toy.toml")
    agents["collect_kl"].main(["--out", str(tmp_path), "--config", config, "--num-envs", "4"])
    assert (tmp_path / "kl.safetensors").read_bytes() == (collected / "kl.safetensors").read_bytes()


def test_an_interrupted_collection_goes_on_where_it_stopped(agents, collected, tmp_path, monkeypatch):
    """Killed at the third episode and started again: the finished two are kept, and the data set is the same."""
    collect = agents["collect_kl"]
    real, calls = collect.label_trajectory, []

    def dying(trajectory: Trajectory, *args, **kwargs):
        calls.append(trajectory.key.task_id)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(trajectory, *args, **kwargs)

    options = ["--out", str(tmp_path), *TOY]
    monkeypatch.setattr(collect, "label_trajectory", dying)
    with pytest.raises(KeyboardInterrupt):
        collect.main(options)
    assert len(list((tmp_path / "episodes").iterdir())) == 2
    assert not (tmp_path / "kl.safetensors").exists()
    collect.main(options)
    assert len(calls) == 3 + 30
    assert (tmp_path / "kl.safetensors").read_bytes() == (collected / "kl.safetensors").read_bytes()


def test_a_collection_is_not_continued_with_other_settings(agents, collected):
    """Episodes of two divergences in one data set would be worthless."""
    with pytest.raises(ConfigError, match="was begun with other reduce: choose another --out"):
        agents["collect_kl"].main(["--out", str(collected), "--reduce", "sum", *TOY])


def test_train_kl_st_learns_the_critical_steps(trained):
    """Fallen signs can be told from the observation, so held-out accuracy is nearly perfect."""
    record = json.loads((trained / "run.json").read_text())
    [plateau] = record["labelling"]["plateaus"]
    assert plateau["bimodal"]
    assert record["labelling"]["thresholds"] == [plateau["threshold"]]
    assert [moved["raised"] for moved in record["labelling"]["stability"]] == [0.0] * 4
    assert record["kl_is_lower_bound"] is False
    assert (trained / "kl_histogram.png").read_bytes().startswith(b"\x89PNG")
    assert record["best"]["balanced_accuracy"] > 0.95
    assert record["router_digest"] == PrecisionRouter.load(trained / "router").digest()
    assert len(list((trained / "tensorboard").glob("events.out.tfevents.*"))) == 1


def test_training_twice_gives_the_same_router(agents, critical, tmp_path):
    """One seed, one router, bit by bit."""
    digests = []
    for name in ("a", "b"):
        out = tmp_path / name
        agents["train_kl_st"].main(["--data", str(critical), "--out", str(out), "--epochs", "2", *TINY])
        digests.append(PrecisionRouter.load(out / "router").digest())
    assert digests[0] == digests[1]


def test_training_stops_when_held_out_tasks_no_longer_gain(agents, critical, tmp_path):
    """With a learning rate of almost zero nothing improves: patience plus one epochs, the first of them kept."""
    options = ["--lr", "1e-12", "--epochs", "9", "--patience", "2", "--weight-decay", "0", *TINY]
    agents["train_kl_st"].main(["--data", str(critical), "--out", str(tmp_path), *options])
    record = json.loads((tmp_path / "run.json").read_text())
    assert len(record["history"]) <= 5
    assert record["best_epoch"] == len(record["history"]) - 2


def test_labels_of_one_kind_are_refused(agents, critical, tmp_path):
    """A threshold above every KL teaches nothing; the message says what to change."""
    with pytest.raises(ConfigError, match="every step has the same label, precision 0: choose another --threshold"):
        agents["train_kl_st"].main(["--data", str(critical), "--out", str(tmp_path), "--threshold", "1e6", *TINY])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epochs", "0", "--epochs must be at least 1, got 0"),
        ("--batch-size", "0", "--batch-size must be at least 1, got 0"),
        ("--lr", "nan", "--lr must be a finite number above 0, got nan"),
        ("--validation-share", "nan", "--validation-share must lie between 0 and 1, got nan"),
        ("--threshold", "nan", "--threshold must be a number of nats"),
        ("--device", "foo", "device 'foo' cannot be used"),
    ],
)
def test_training_refuses_numbers_that_train_nothing(agents, tmp_path, option, value, message):
    """Before the data is read."""
    with pytest.raises(ConfigError, match=message):
        agents["train_kl_st"].main(["--data", str(tmp_path), "--out", str(tmp_path), option, value])


def test_episodes_longer_than_the_window_are_not_learnt_from(agents, critical, tmp_path):
    """Training would show a whole episode of which deployment shows the newest rows alone."""
    settings = read_settings(critical / "kl.safetensors")
    settings["env"]["history_length"] = 5
    KLDataset.load(critical / "kl.safetensors").save(tmp_path / "kl.safetensors", settings)
    with pytest.raises(ConfigError, match="episodes of up to 8 steps, but a router deployed there sees 5 rows"):
        agents["train_kl_st"].main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), *TINY])


def test_data_without_its_environment_is_refused(agents, critical, tmp_path):
    """What a router was trained on must be known."""
    KLDataset.load(critical / "kl.safetensors").save(tmp_path / "kl.safetensors", {"env_id": "DMR-Toy-v0"})
    with pytest.raises(ConfigError, match="does not say its panel, env, models, encoder: collect it again"):
        agents["train_kl_st"].main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), *TINY])


def test_the_router_says_what_it_was_trained_on(trained):
    """The environment of the data, in the weights file and in the JSON beside it."""
    record = PrecisionRouter.load(trained / "router").trained_on
    assert record == json.loads((trained / "router" / "router.json").read_text())["trained_on"]
    assert (record["env_id"], record["panel"], record["precisions"]) == ("DMR-Toy-v0", "train", ["low", "high"])
    assert (record["embedding_dim"], record["history_length"]) == (64, 64)
    assert set(record["models"]) == {"low", "high"}


@pytest.mark.slow
def test_the_demo_runs_all_stages_and_writes_the_report(root_folder, tmp_path):
    """What `make demo` runs, on the toy world: every stage's result is there and is named on the terminal."""
    options = ["--out", str(tmp_path), "--world", "toy", "--tasks", "16", "--evaluation-tasks", "6"]
    options += ["--epochs", "2", "--seeds", "1"]
    done = subprocess.run(
        [sys.executable, "agents/demo.py", *options],
        cwd=root_folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name in ("kl/kl_histogram.png", "evaluation/accuracy_latency.png", "evaluation/results.json", "kl-st/run.json"):
        assert (tmp_path / "toy" / name).is_file()
    assert "always high" in done.stdout
    paths = [
        str(tmp_path / "toy" / "evaluation" / "accuracy_latency.png"),
        str(tmp_path / "toy" / "kl" / "kl_histogram.png"),
        f"tensorboard --logdir {tmp_path / 'toy' / 'kl-st' / 'tensorboard'}",
        str(tmp_path / "report.html"),
    ]
    ends = [done.stdout.rindex(path) for path in paths]
    assert done.stdout.rindex("Paired differences") < ends[0] < ends[1] < ends[2] < ends[3]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f'"{part}":[{{' in page for part in ("evaluations", "kls", "trainings"))
    assert '"asked_tasks":2' in page


@pytest.mark.parametrize("recipe", ["collect_kl", "train_kl_st", "calibrate", "evaluate"])
def test_help_explains_every_option(agents, recipe, capsys):
    """Every option has a help text."""
    with pytest.raises(SystemExit, match="0"):
        agents[recipe].main(["--help"])
    text = capsys.readouterr().out
    assert "--out DIR" in text
    assert "default" in text
