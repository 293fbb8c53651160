"""KL-ST from collection to training: runs that are stopped and killed, several precisions, and WebShop's clicks."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dmr_gym.calibration import share_threshold
from dmr_gym.errors import ConfigError
from dmr_gym.kl import precision_labels
from dmr_gym.kl_dataset import KLDataset
from dmr_gym.router import PrecisionRouter
from dmr_gym.training import HISTORY_FILE, STATE_FILE, read_history
from tests.recipes import ROOT, TINY, TOY, Runs, kill_often, load_recipe, one_thread, read_tensors, write_critical

THREE = """
task = "toy"
precisions = ["low", "mid", "high"]
latency = {ms_per_token = {low = 10.0, mid = 15.0, high = 20.0}, router_ms = 1.0}
encoder = {kind = "hash", dim = 64}
[backend]
kind = "scripted"
[backend.answers]
low = {"A sign points left." = "go left", "A sign points right." = "go right", "A fallen sign" = "go left"}
mid = {"A sign points left." = "go left", "A sign points right." = "go right", "A fallen sign" = "go right"}
[backend.answers.high]
"A sign points left." = "go left"
"A sign points right." = "go right"
"A fallen sign shows left." = "go right"
"A fallen sign shows right." = "go left"
"""
"""Three precisions: at a fallen sign the lowest always goes left and the middle one always right."""

LEARN = [*TINY[:-1], "0.1", "--epochs", "16", "--patience", "10", "--batch-size", "4", "--lr", "3e-3"]

__all__ = ["one_thread"]  # a fixture for all tests here


@pytest.fixture(scope="module")
def collect() -> ModuleType:
    """The recipe that collects."""
    return load_recipe("collect_kl")


@pytest.fixture(scope="module")
def train() -> ModuleType:
    """The recipe that trains."""
    return load_recipe("train_kl_st")


@pytest.fixture(scope="module")
def critical(collect, tmp_path_factory) -> Path:
    """32 corridors whose KL is large exactly at fallen signs."""
    collected = tmp_path_factory.mktemp("kl")
    collect.main(["--out", str(collected), *TOY])
    return write_critical(collected, tmp_path_factory.mktemp("critical"))


@pytest.fixture(scope="module")
def uninterrupted(train, critical, tmp_path_factory) -> Path:
    """A training run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    train.main(["--data", str(critical), "--out", str(out), *LEARN])
    return out


@pytest.fixture(scope="module")
def three(collect, tmp_path_factory) -> Path:
    """A data set of three precisions."""
    out = tmp_path_factory.mktemp("three")
    (out / "three.toml").write_text(THREE)
    collect.main(["--out", str(out), "--config", str(out / "three.toml"), "--num-envs", "4"])
    return out


def same_run(out: Path, whole: Path) -> bool:
    """Whether two runs ended in the same weights, state and course, bit by bit."""
    records = [json.loads((folder / "run.json").read_text()) for folder in (out, whole)]
    files = ("router/router.safetensors", STATE_FILE)
    if any(read_tensors(out / name) != read_tensors(whole / name) for name in files):
        return False
    return (out / HISTORY_FILE).read_bytes() == (whole / HISTORY_FILE).read_bytes() and all(
        records[0][key] == records[1][key] for key in ("history", "best_epoch", "best", "router_digest", "labelling")
    )


@pytest.mark.slow
def test_a_collection_killed_again_and_again_is_the_same_data_set(tmp_path):
    """Twenty kills at random moments: kl.safetensors is byte for byte that of a collection that was left alone."""
    options = [*TOY, "--set", "task_kwargs.num_tasks=96"]
    with Runs("collect_kl", tmp_path / "log") as runs:
        assert runs.run(["--out", str(tmp_path / "whole"), *options]) == 0
        whole = (tmp_path / "whole" / "kl.safetensors").read_bytes()

        def check() -> None:
            assert (tmp_path / "killed" / "kl.safetensors").read_bytes() == whole

        argv = ["--out", str(tmp_path / "killed"), *options]
        kill_often(runs, argv, tmp_path / "killed", "episodes/[!.]*", kills=20, check=check, found='"summary"')


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_in_the_same_router(critical, uninterrupted, tmp_path):
    """Ten kills at random moments, dropout and early stopping included: weights, state and course are the same."""
    with Runs("train_kl_st", tmp_path / "log") as runs:
        argv = ["--data", str(critical), "--out", str(tmp_path / "killed"), "--resume", *LEARN]

        def check() -> None:
            assert same_run(tmp_path / "killed", uninterrupted)

        kill_often(runs, argv, tmp_path / "killed", STATE_FILE, kills=10, check=check, found='"best"')


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_recipes_end_cleanly_when_they_are_asked_to(tmp_path, critical, number):
    """A signal ends a run with the shell's status for it once what it has is saved, and it says how to go on."""
    cases = {
        "collect_kl": (["--env", "DMR-Toy-v0", "--num-envs", "1", "--set", "task_kwargs.num_tasks=300"], []),
        "train_kl_st": (["--data", str(critical), *LEARN[:-6], "--epochs", "400", "--patience", "400"], ["--resume"]),
    }
    for name, (options, resume) in cases.items():
        out = tmp_path / name
        saved = {"collect_kl": out / "episodes", "train_kl_st": out / STATE_FILE}[name]

        def begun(seconds: float, saved=saved) -> bool:
            """Something is saved and more is to do; a run that saves nothing is told by the status."""
            return saved.exists() or seconds > 60

        with Runs(name, tmp_path / f"{name}.log") as runs:
            assert runs.run(["--out", str(out), *options], when=begun, number=number) == 128 + number
            before = len(list((out / "episodes").glob("[!.]*"))) if name == "collect_kl" else len(read_history(out))
            log = (tmp_path / f"{name}.log").read_text()
            assert "Traceback" not in log
            assert f"stopped by {number.name} after" in log
            assert f"{resume[0] if resume else 'the same command'} goes on from there" in log
            assert list(out.rglob("*.part*")) == []
            assert before >= 1
            assert not {"best", "summary"} & set(json.loads((out / "run.json").read_text()))


def test_a_run_stopped_between_gradient_steps_goes_on_bit_identically(
    train, critical, uninterrupted, tmp_path, monkeypatch
):
    """A signal at the second batch of the third epoch: the state is saved there, and the end is the same."""
    real, calls = train.weighted_cross_entropy, []

    def counting(*args):
        calls.append(1)
        if len(calls) == 2 * 7 + 2:  # 26 episodes make seven batches of four
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(train, "weighted_cross_entropy", counting)
    monkeypatch.setattr("dmr_gym.runs._commit", lambda: "first")
    options = ["--data", str(critical), "--out", str(tmp_path), *LEARN]
    with pytest.raises(SystemExit) as caught:
        train.main(options)
    assert caught.value.code == 128 + signal.SIGTERM
    assert len((tmp_path / HISTORY_FILE).read_text().splitlines()) == 2
    begun = json.loads((tmp_path / "run.json").read_text())
    assert (begun["git"], begun["resumptions"]) == ("first", [])
    assert "best" not in begun
    monkeypatch.setattr("dmr_gym.runs._commit", lambda: "second")
    train.main([*options, "--resume"])
    ended = json.loads((tmp_path / "run.json").read_text())
    assert ended["git"] == "first"
    assert [entry["git"] for entry in ended["resumptions"]] == ["second"]
    assert len(calls) == 7 * len((tmp_path / HISTORY_FILE).read_text().splitlines())  # nothing was done twice
    assert same_run(tmp_path, uninterrupted)


def test_early_stopping_remembers_across_a_resumption(train, critical, tmp_path):
    """Nothing improves after the first epoch: a run that is resumed counts its patience from there, not anew."""
    options = ["--data", str(critical), "--out", str(tmp_path), *TINY, "--lr", "1e-12", "--weight-decay", "0"]
    train.main([*options, "--epochs", "2", "--patience", "3"])
    digest = PrecisionRouter.load(tmp_path / "router").digest()
    train.main([*options, "--epochs", "9", "--patience", "3", "--resume"])
    record = json.loads((tmp_path / "run.json").read_text())
    best = max(record["history"], key=lambda score: (score["balanced_accuracy"], -score["loss"]))
    assert record["history"].index(best) + 1 == record["best_epoch"]
    assert len(record["history"]) == record["best_epoch"] + 3
    if record["best_epoch"] <= 2:
        assert PrecisionRouter.load(tmp_path / "router").digest() == digest
    train.main([*options, "--epochs", "9", "--patience", "3", "--resume"])  # there is nothing left to do
    assert json.loads((tmp_path / "run.json").read_text())["history"] == record["history"]


def test_labels_may_be_asked_for_by_their_share(train, three, tmp_path, capsys):
    """Each lower precision gets its own τ, above which about that share of the steps lies; the record has both."""
    options = ["--data", str(three), "--epochs", "1", *TINY]
    train.main([*options, "--out", str(tmp_path / "st"), "--label-share", "0.25"])
    record = json.loads((tmp_path / "st" / "run.json").read_text())
    kls = KLDataset.load(three / "kl.safetensors").kl_action
    taus = record["labelling"]["thresholds"]
    assert taus == [share_threshold(column, 0.25) for column in kls.T]
    assert record["settings"]["label_share"] == 0.25
    assert "nats, given" in capsys.readouterr().out
    train.main([*options, "--out", str(tmp_path / "same"), "--threshold", *map(repr, taus)])
    assert read_tensors(tmp_path / "same" / "router/router.safetensors") == read_tensors(
        tmp_path / "st" / "router/router.safetensors"
    )
    with pytest.raises(ConfigError, match="--threshold and --label-share both say"):
        train.main([*options, "--out", str(tmp_path / "x"), "--threshold", "0.1", "--label-share", "0.1"])
    with pytest.raises(ConfigError, match=r"--label-share must lie between 0 and 1, got 1\.5"):
        train.main([*options, "--out", str(tmp_path / "x"), "--label-share", "1.5"])


def test_a_training_folder_belongs_to_its_settings(train, critical, uninterrupted):
    """Without --resume, with other settings, or with other data the run in the folder is left alone."""
    options = ["--data", str(critical), "--out", str(uninterrupted), *LEARN]
    with pytest.raises(ConfigError, match="holds a run: --resume"):
        train.main(options)
    with pytest.raises(ConfigError, match="begun with other seed: choose another --out"):
        train.main([*options, "--resume", "--seed", "1"])


def test_a_truncated_distribution_is_recorded_as_a_lower_bound(collect, train, tmp_path, capsys):
    """With --top-k the record, the printed lines and the training say so, and no KL exceeds the exact one."""
    exact, bound = tmp_path / "exact", tmp_path / "bound"
    collect.main(["--out", str(exact), "--tasks", "6", *TOY])
    collect.main(["--out", str(bound), "--tasks", "6", "--top-k", "3", *TOY])
    assert "the KLs are lower bounds: only the 3 likeliest tokens" in capsys.readouterr().out
    assert json.loads((bound / "run.json").read_text())["kl_is_lower_bound"] is True
    pair = [KLDataset.load(folder / "kl.safetensors") for folder in (exact, bound)]
    for block in ("kl_action", "kl_all"):
        high, low = (getattr(dataset, block) for dataset in pair)
        assert (low <= high + 1e-6).all()
        assert (low < high - 1e-4).any()
    train.main(["--data", str(bound), "--out", str(tmp_path / "st"), "--epochs", "1", *TINY])
    assert "the KLs are lower bounds" in capsys.readouterr().out
    assert json.loads((tmp_path / "st" / "run.json").read_text())["kl_is_lower_bound"] is True


def test_a_collection_may_grow(collect, tmp_path, monkeypatch):
    """Two tasks and then four are the four tasks collected at once, byte for byte; the record says who did what."""
    for commit, tasks in (("first", "2"), ("second", "4"), ("third", "4")):
        monkeypatch.setattr("dmr_gym.runs._commit", lambda commit=commit: commit)
        collect.main(["--out", str(tmp_path / "grown"), "--tasks", tasks, *TOY])
    record = json.loads((tmp_path / "grown" / "run.json").read_text())
    assert (record["git"], [entry["git"] for entry in record["resumptions"]]) == ("first", ["second"])
    assert record["tasks"] == 4
    collect.main(["--out", str(tmp_path / "whole"), "--tasks", "4", *TOY])
    grown, whole = (tmp_path / name / "kl.safetensors" for name in ("grown", "whole"))
    assert grown.read_bytes() == whole.read_bytes()


def test_the_course_of_a_collection_is_that_of_all_its_episodes(collect, tmp_path):
    """A line an episode, with the means of all up to there, also where it was gone on with, or fewer were asked for."""
    out = tmp_path / "kl"
    for tasks in ("2", "5", "3"):
        collect.main(["--out", str(out), "--tasks", tasks, *TOY])
    history = read_history(out)
    assert [entry["update"] for entry in history] == [1, 2, 3, 4, 5]
    collect.main(["--out", str(out), "--tasks", "5", *TOY])
    data = KLDataset.load(out / "kl.safetensors")
    assert history[-1]["collect/success"] == data.success.mean()
    assert history[-1]["collect/steps"] == len(data.rows) / 5
    assert history[-1]["collect/kl_low"] == pytest.approx(data.kl_action.mean(), rel=1e-6)
    assert len({entry["collect/kl_low"] for entry in history}) == 5
    assert list((out / "tensorboard").iterdir())


def test_a_collection_does_not_move_into_the_folder_of_another_run(collect, uninterrupted):
    """What a training run has left is not mixed with a collection."""
    with pytest.raises(ConfigError, match=r"was begun with other .*env_id.*: choose another --out"):
        collect.main(["--out", str(uninterrupted), *TOY])


def test_no_vocabulary_entry_is_too_few(collect, tmp_path):
    """Before anything is played."""
    with pytest.raises(ConfigError, match="--top-k must be at least 1, got 0"):
        collect.main(["--out", str(tmp_path), "--top-k", "0", *TOY])


def test_each_lower_precision_has_its_own_threshold(three, train, tmp_path):
    """Labels are the cheapest precision whose KL stays under its own plateau's threshold, and a router learns them."""
    dataset = KLDataset.load(three / "kl.safetensors")
    assert dataset.kl_action.shape == (256, 2)
    train.main(["--data", str(three), "--out", str(tmp_path), "--lr", "3e-3", "--epochs", "8", *TINY])
    record = json.loads((tmp_path / "run.json").read_text())
    taus = record["labelling"]["thresholds"]
    assert taus == [plateau["threshold"] for plateau in record["labelling"]["plateaus"]]
    assert taus[0] != taus[1]
    assert PrecisionRouter.load(tmp_path / "router").config.n_precisions == 3
    given = tmp_path / "given"
    train.main(["--data", str(three), "--out", str(given), "--threshold", "0.25", "0.15", "--epochs", "1", *TINY])
    record = json.loads((given / "run.json").read_text())
    assert (record["labelling"]["thresholds"], record["labelling"]["plateaus"]) == ([0.25, 0.15], None)
    total = np.bincount(precision_labels(dataset.kl_action, [0.25, 0.15]), minlength=3)
    assert (np.array(record["label_counts"]) <= total).all()
    assert (np.array(record["label_counts"]) > 0).all()


def test_a_threshold_for_each_or_one_for_all(three, train, tmp_path):
    """Three numbers for two lower precisions fit nothing."""
    with pytest.raises(ConfigError, match="expected one threshold or 2, one a lower precision, got 3"):
        train.main(["--data", str(three), "--out", str(tmp_path), "--threshold", "1", "2", "3", *TINY])


def test_clicks_of_a_world_without_pages_are_refused(critical, train, tmp_path):
    """The message names the types that there are."""
    with pytest.raises(ConfigError, match="no step of the data counts with --steps click: its types are action"):
        train.main(["--data", str(critical), "--out", str(tmp_path), "--steps", "click", *TINY])


def test_the_commands_of_the_page_are_understood():
    """Each command line of docs/training/kl-st.md is one that its recipe takes."""
    page = (ROOT / "docs" / "training" / "kl-st.md").read_text(encoding="utf-8")
    commands = [line for line in page.splitlines() if line.startswith("python agents/")]
    recipes = {"collect_kl", "train_kl_st", "calibrate", "evaluate"}
    modules = {name: load_recipe(name) for name in recipes}
    for command in commands:
        _, path, *argv = shlex.split(command)
        modules[Path(path).stem].parse_args(argv)
    assert {Path(command.split()[1]).stem for command in commands} == recipes


def test_progress_bars_show_what_is_found(collect, critical, uninterrupted, tmp_path, capsys):
    """Success and mean KL of a collection, the share of the highest precision of a calibration."""
    collect.main(["--out", str(tmp_path / "kl"), "--tasks", "4", *TOY])
    mean = KLDataset.load(tmp_path / "kl" / "kl.safetensors").kl_action.mean()
    assert f"success=1.00, KL={mean:.3g} nats]" in capsys.readouterr().err
    options = ["--router", str(uninterrupted / "router"), "--out", str(tmp_path / "calibration"), *TOY]
    load_recipe("calibrate").main([*options, "--calibration-tasks", "4"])
    record = json.loads((tmp_path / "calibration" / "results.json").read_text())
    share = record["pools"]["calibration"]["share_at_least_half"]
    assert f"high={share:.1%}]" in capsys.readouterr().err
