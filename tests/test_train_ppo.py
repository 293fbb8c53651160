"""agents/train_ppo.py and agents/tune_ppo.py: what they leave behind, and that killed runs end like any others."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dmr_gym.errors import ConfigError
from dmr_gym.router import PrecisionRouter, RouterConfig
from dmr_gym.training import read_history
from tests.recipes import ROOT, one_thread
from tests.recipes import load_recipe as recipe

__all__ = ["one_thread"]  # a fixture for all tests here

pytest.importorskip("stable_baselines3")

SIZES = ["--n-layers", "1", "--d-model", "32", "--n-heads", "2", "--d-ff", "64"]
TOY = ["--env", "DMR-Toy-v0", "--num-envs", "4"]
FAST = [*TOY, "--n-steps", "16", "--minibatch-size", "32", "--epochs", "2", "--validation-tasks", "4"]
SHORT = [*FAST, *SIZES, "--updates", "6", "--evaluate-every", "2", "--checkpoint-every", "2"]


@pytest.fixture(scope="module")
def train_ppo() -> ModuleType:
    """The recipe."""
    return recipe("train_ppo")


@pytest.fixture(scope="module")
def uninterrupted(train_ppo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train_ppo.main(["--out", str(out), *SHORT])
    return out


def course(out: Path) -> list[dict[str, float]]:
    """The history without what depends on the clock."""
    return [{name: value for name, value in entry.items() if "time/" not in name} for entry in read_history(out)]


def assert_same_run(one: Path, other: Path) -> None:
    """Equal weights, optimizer states, positions of episodes, figures and routers, bit for bit."""
    first, second = (load_file(out / "state.safetensors") for out in (one, other))
    assert first.keys() == second.keys()
    assert any(name.startswith("optimizer.0.0.exp_avg") for name in first)
    assert any(name.startswith("extra.episode.") for name in first)
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name
    assert course(one) == course(other)
    assert PrecisionRouter.load(one / "router").digest() == PrecisionRouter.load(other / "router").digest()


def test_a_run_leaves_its_router_its_settings_and_its_course(uninterrupted: Path) -> None:
    """An ordinary router with a record, run.json with versions, figures of every update, held-out ones when due."""
    record = json.loads((uninterrupted / "run.json").read_text())
    router = PrecisionRouter.load(uninterrupted / "router")
    assert router.digest() == record["router_digest"]
    assert router.trained_on["env_id"] == "DMR-Toy-v0"
    assert router.trained_on["panel"] == "train"
    assert router.trained_on == record["trained_on"]
    assert (router.config.n_layers, router.config.max_length, router.config.embedding_dim) == (1, 64, 64)
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert record["settings"]["env"]["lambda_"] == 0.2
    history = read_history(uninterrupted)
    assert [entry["update"] for entry in history] == list(range(7))
    assert [entry["update"] for entry in history if "validation/return" in entry] == [0, 2, 4, 6]
    for entry in history[1:]:
        assert entry["share/low"] + entry["share/high"] == pytest.approx(1.0)
        assert {"train/kl", "train/entropy", "train/clip_fraction", "time/steps_per_s"} <= entry.keys()
        assert 0 < entry["train/entropy"] <= np.log(2) + 1e-6
    assert record["best"]["validation/return"] == max(e.get("validation/return", -9.0) for e in history)
    assert list((uninterrupted / "tensorboard").iterdir())


def test_held_out_return_is_that_of_the_kept_router(train_ppo: ModuleType, uninterrupted: Path) -> None:
    """Playing the saved router on the validation panel gives the recorded return: success less λ · T (Eq. 8, 9)."""
    from dmr_gym.command_line import env_config, make_envs
    from dmr_gym.policies import RouterPolicy
    from dmr_gym.rollout import rollout

    best = json.loads((uninterrupted / "run.json").read_text())["best"]
    envs = make_envs(env_config("DMR-Toy-v0"), "validation", 2)
    router = PrecisionRouter.load(uninterrupted / "router")
    played = rollout(envs, RouterPolicy(router, mode="argmax"), envs.task_ids[:4])
    returns = [trajectory.rewards.sum() for trajectory in played]
    assert np.mean(returns) == pytest.approx(best["validation/return"], abs=1e-9)


def test_equal_seeds_give_equal_runs_and_others_others(
    train_ppo: ModuleType, uninterrupted: Path, tmp_path: Path
) -> None:
    """A second run with the seed is the first one, whatever was drawn before it; another seed is another run."""
    torch.manual_seed(99)
    np.random.seed(99)
    train_ppo.main(["--out", str(tmp_path / "same"), *SHORT])
    assert_same_run(uninterrupted, tmp_path / "same")
    train_ppo.main(["--out", str(tmp_path / "other"), *SHORT, "--seed", "1"])
    assert course(tmp_path / "other") != course(uninterrupted)


def test_a_signal_saves_and_resuming_ends_in_the_same_weights(
    train_ppo: ModuleType, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM in the third update, which no checkpoint is due after: it is finished and saved, and the run goes on."""
    update = train_ppo.Trainer.update

    def update_and_be_told(self: Any, number: int) -> dict[str, float]:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, number)

    monkeypatch.setattr(train_ppo.Trainer, "update", update_and_be_told)
    monkeypatch.setattr("dmr_gym.runs._commit", lambda: "first")
    with pytest.raises(SystemExit) as caught:
        train_ppo.main(["--out", str(tmp_path / "run"), *SHORT])
    assert caught.value.code == 128 + signal.SIGTERM
    assert [entry["update"] for entry in read_history(tmp_path / "run")] == [0, 1, 2, 3]
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="holds a run: --resume"):
        train_ppo.main(["--out", str(tmp_path / "run"), *SHORT])
    with pytest.raises(ConfigError, match="begun with other lr: choose another --out"):
        train_ppo.main(["--out", str(tmp_path / "run"), *SHORT, "--resume", "--lr", "0.1"])
    with pytest.raises(ConfigError, match="begun with other env, set: choose another --out"):
        train_ppo.main(["--out", str(tmp_path / "run"), *SHORT, "--resume", "--set", "lambda_=0.7"])
    for commit in ("second", "third"):
        monkeypatch.setattr("dmr_gym.runs._commit", lambda commit=commit: commit)
        train_ppo.main(["--out", str(tmp_path / "run"), *SHORT, "--resume"])
    assert_same_run(uninterrupted, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["git"], [entry["git"] for entry in record["resumptions"]]) == ("first", ["second"])
    assert record["best"]["validation/return"] == max(
        e.get("validation/return", -9.0) for e in course(tmp_path / "run")
    )


def test_a_signal_in_the_first_play_of_held_out_tasks_ends_the_run_there(
    train_ppo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No update follows, and what was found is saved."""
    evaluate = train_ppo.Trainer.evaluate

    def evaluate_and_be_told(self: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return evaluate(self)

    monkeypatch.setattr(train_ppo.Trainer, "evaluate", evaluate_and_be_told)
    with pytest.raises(SystemExit):
        train_ppo.main(["--out", str(tmp_path), *SHORT])
    assert [entry["update"] for entry in read_history(tmp_path)] == [0]
    assert (tmp_path / "state.safetensors").is_file()


def _run(argv: Sequence[str]) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        recipe("train_ppo").main(list(argv))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_runs_killed_at_random_moments_end_in_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    """SIGKILL 20 times, anywhere from the first moment to the last: weights, figures and router are the same ones."""
    processes = multiprocessing.get_context("forkserver")  # imports torch once, not at every start
    processes.set_forkserver_preload(["stable_baselines3", "dmr_gym.sb3", "torch.utils.tensorboard", "tqdm"])
    options = [*FAST, *SIZES, "--updates", "12", "--evaluate-every", "3", "--checkpoint-every", "1", "--anneal"]
    options += ["--set", "sampling.temperature=0.7", "--set", "max_steps=20"]

    def start(out: Path) -> Any:
        resume = ["--resume"] if (out / "args.json").exists() else []
        process = processes.Process(target=_run, args=(["--out", str(out), *options, *resume],))
        process.start()
        return process

    began = time.perf_counter()
    whole = start(tmp_path / "whole")
    whole.join()
    seconds = time.perf_counter() - began
    assert whole.exitcode == 0
    draws, kills, finished = random.Random(0), 0, 0
    while kills < 20 or not finished:
        out = tmp_path / f"killed-{finished}"
        process = start(out)
        process.join(draws.uniform(0.05, 0.6) * seconds if kills < 20 else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            assert_same_run(tmp_path / "whole", out)
            finished += 1
    assert kills == 20


def test_training_starts_from_a_router_and_keeps_it_where_nothing_is_better(
    train_ppo: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a learning rate of almost zero the kept router is the given one, and its record names this environment."""
    router = PrecisionRouter(RouterConfig(embedding_dim=64, n_layers=1, d_model=32, n_heads=2, d_ff=64, max_length=50))
    router.save(tmp_path / "start")
    options = [*FAST, "--router", str(tmp_path / "start"), "--updates", "1", "--lr", "1e-12"]
    train_ppo.main(["--out", str(tmp_path / "run"), *options])
    kept = PrecisionRouter.load(tmp_path / "run" / "router")
    assert kept.digest() == router.digest()
    assert kept.trained_on["env_id"] == "DMR-Toy-v0"
    assert "no record of what it was trained on" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"--router brings its sizes: leave out --n-layers"):
        train_ppo.main(["--out", str(tmp_path / "other"), *options, *SIZES])


def test_training_may_play_a_part_of_its_panel(train_ppo: ModuleType, tmp_path: Path) -> None:
    """Behind the skipped ones and no more than asked for; other tasks are another run."""
    seen: set[str] = set()

    class Spy(train_ppo.Episodes):  # type: ignore[misc, name-defined]
        def _on_step(self) -> bool:
            seen.update(start.task_id for start in self.training_env.envs.starts)
            return super()._on_step()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_ppo, "Episodes", Spy)
        options = ["--out", str(tmp_path / "run"), *SHORT, "--skip-tasks", "5"]
        train_ppo.main([*options, "--tasks", "2"])
    assert seen == {"toy-train-005", "toy-train-006"}
    with pytest.raises(ConfigError, match="begun with other tasks: choose"):
        train_ppo.main([*options, "--tasks", "3", "--resume"])


def test_ppo_and_grpo_choose_their_router_by_the_same_return(train_ppo: ModuleType, tmp_path: Path) -> None:
    """The sum of rewards: an LLM that only talks nonsense pays its price, here 0.5 at each of four steps."""
    options = ["--env", "DMR-Toy-v0", *SIZES, "--num-envs", "2", "--updates", "1", "--validation-tasks", "2"]
    for setting in (
        "max_steps=4",
        "lambda_=0",
        "invalid_action_penalty=0.5",
        "backend={kind='scripted', answers='sing'}",
    ):
        options += ["--set", setting]
    recipe("train_grpo").main([*options, "--out", str(tmp_path / "grpo"), "--groups", "2", "--group-size", "2"])
    train_ppo.main([*options, "--out", str(tmp_path / "ppo"), "--n-steps", "8", "--minibatch-size", "16"])
    for name in ("grpo", "ppo"):
        assert read_history(tmp_path / name)[0]["validation/return"] == pytest.approx(-2.0)


@pytest.mark.slow
def test_ppo_finds_the_best_routing_of_the_toy_world(train_ppo: ModuleType, tmp_path: Path) -> None:
    """High precision at fallen signs and low elsewhere, on held-out corridors: the best return to within 0.01."""
    from dmr_gym.command_line import env_config, make_envs
    from dmr_gym.tasks.toy import best_actions

    train_ppo.main(["--out", str(tmp_path), "--env", "DMR-Toy-v0", *SIZES, "--updates", "30", "--separate-values"])
    best = json.loads((tmp_path / "run.json").read_text())["best"]
    envs = make_envs(env_config("DMR-Toy-v0"), "validation", 1)
    returns = []
    for task_id in envs.task_ids:
        envs.reset(options={"task_id": task_id})
        returns.append(sum(float(envs.step([action])[1][0]) for action in best_actions(task_id)))
    assert best["validation/success"] == 1.0
    assert best["validation/return"] == pytest.approx(np.mean(returns), abs=0.01)
    assert best["validation/return"] <= np.mean(returns) + 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--minibatch-size", "48"], "--minibatch-size must divide n_steps · num_envs = 64, got 48"),
        (["--minibatch-size", "1"], "--minibatch-size must divide"),
        (["--gamma", "1.1"], r"--gamma must lie in \(0, 1.0\], got 1.1"),
        (["--gae-lambda", "-0.1"], r"--gae-lambda must lie in \[0, 1.0\], got -0.1"),
        (["--lr", "nan"], "--lr must lie in"),
        (["--clip", "inf"], "--clip must lie in"),
        (["--entropy", "-1"], "--entropy must be a number of at least 0, got -1.0"),
        (["--device", "foo"], "device 'foo' cannot be used"),
        (["--validation-tasks", "1000"], "the panel has 32 tasks, but 1000 were asked for"),
        (["--set", "task_kwargs.panel=test"], "use --panel or --validation-panel"),
        (["--n-layers", "0"], "router: n_layers must be at least 1, got 0"),
    ],
)
def test_numbers_that_train_nothing_are_refused(
    train_ppo: ModuleType, tmp_path: Path, options: list[str], message: str
) -> None:
    """With what was expected and what came, and before the folder is claimed."""
    with pytest.raises(ConfigError, match=message):
        train_ppo.main(["--out", str(tmp_path / "run"), *FAST, *options])
    assert not (tmp_path / "run" / "args.json").exists()


@pytest.mark.slow
def test_tuning_ranks_settings_by_seeds_that_did_not_choose_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defaults and two draws: every run is made, a second start makes none, and the table names the winner."""
    tune_ppo = recipe("tune_ppo")
    space = {"lr": (1.0,), "n_steps": (64,), "minibatch_size": (128,), "epochs": (8,)}
    options = ["--out", str(tmp_path), "--env", "DMR-Toy-v0", "--settings", "3", "--seeds", "1", "--finalists", "1"]
    options += ["--finalist-seeds", "1", "--num-envs", "2", "--env-steps", "1280", "--learning-rates", "1e-9", "1e-2"]
    options += ["--", *SIZES]
    options += ["--validation-tasks", "4"]
    monkeypatch.setattr(tune_ppo, "SPACE", space)
    tune_ppo.main(options)
    record = json.loads((tmp_path / "tuning.json").read_text())
    assert [row["lr"] for row in record["search"] if row["setting"] == 0] == [3e-4]
    assert record["search"][-1]["lr"] == 1e-9
    assert [row["seeds"] for row in record["search"]] == [[0]] * 3
    assert all(row["seeds"] == [1] for row in record["finalists"])
    assert 0 in [row["setting"] for row in record["finalists"]]  # the defaults, whatever their rank
    scores = [row["mean_return"] for row in record["search"]]
    assert scores == sorted(scores, reverse=True)
    winner = record["finalists"][0]
    assert f"| {winner['setting']} | {winner['lr']} | 64 | 128 | 8 |" in capsys.readouterr().out
    train = recipe("train_ppo")
    without_training = SimpleNamespace(parse_args=train.parse_args, FREE=train.FREE)
    monkeypatch.setattr(tune_ppo, "load_recipe", lambda: without_training)
    tune_ppo.main(options)
    at = options.index("--")
    with pytest.raises(ConfigError, match="--learning-rates must be above 0"):
        tune_ppo.main([*options[:at], "--learning-rates", "0", *options[at:]])
    changes = {"learning_rates, space": ["--learning-rates", "1e-3"]}
    changes |= {"search_seed": ["--search-seed", "1"], "env_steps": ["--env-steps", "2560"]}
    for name, change in changes.items():
        with pytest.raises(ConfigError, match=f"begun with other {name}: choose"):
            tune_ppo.main([*options[:at], *change, *options[at:]])
    with pytest.raises(ConfigError, match="begun with other train_ppo: choose"):
        tune_ppo.main([*options, "--gamma", "0.9"])
    with pytest.raises(ConfigError, match="begun with other env: choose"):
        tune_ppo.main([*options, "--set", "lambda_=0.7"])


def test_the_page_names_options_and_figures_that_there_are(
    train_ppo: ModuleType, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands of docs/training/ppo.md parse, and its table of figures is that of a run."""
    text = (ROOT / "docs" / "training" / "ppo.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="0"):
        train_ppo.main(["--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    commands = re.findall(r"^python agents/train_ppo.py (.*)$", text, flags=re.MULTILINE)
    used = set(re.findall(r"--[a-z-]+", " ".join(commands))) | set(re.findall(r"`(--[a-z-]+)", text))
    assert used - {"--router", "--resume"} <= known
    assert len(commands) == 2
    table = text.partition("## Figures")[2].partition("## ")[0]
    named = set()
    for row in re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE):
        names = re.findall(r"`([\w/]+)`", row)
        group = names[0].partition("/")[0]
        named |= {name if "/" in name else f"{group}/{name}" for name in names}
    found = {name for entry in read_history(uninterrupted) for name in entry if name != "update"}
    assert named == {"share/NAME" if name.startswith("share/") else name for name in found}
