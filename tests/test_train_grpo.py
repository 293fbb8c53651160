"""agents/train_grpo.py: what it leaves behind, kills, and λ on worlds whose best routing is known."""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dmr_gym.command_line import make_envs
from dmr_gym.errors import ConfigError
from dmr_gym.policies import RouterPolicy
from dmr_gym.rollout import rollout
from dmr_gym.router import CONFIG_FILE, PrecisionRouter
from dmr_gym.tasks.toy import best_actions
from dmr_gym.training import HISTORY_FILE, STATE_FILE, RunLog, read_history
from dmr_gym.vector import PrecisionRoutingVectorEnv
from tests.recipes import TINY, TOY, Runs, kill_often, load_recipe, one_thread, read_tensors

__all__ = ["one_thread"]  # a fixture for all tests here

recipe = load_recipe("train_grpo")
SHORT = ["--set", "task_kwargs.num_signs=3", "--set", "task_kwargs.num_tasks=8", "--groups", "3", "--group-size", "4"]
SMALL = [*TOY, *TINY, *SHORT, "--validation-tasks", "4"]


def test_a_run_leaves_router_figures_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures that the page promises are there for every update; the record tells settings and digests."""
    out = tmp_path / "run"
    recipe.main([*SMALL, "--out", str(out), "--updates", "3", "--validate-every", "2", "--lr", "1e-3"])
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
    recipe.main([*SMALL, "--out", str(out), "--updates", "6", "--validate-every", "1", "--lr", "1e-2"])
    best = max(entry["validation/return"] for entry in read_history(out) if "validation/return" in entry)
    settings = json.loads((out / "run.json").read_text())["env"]
    settings["task_kwargs"]["panel"] = "validation"
    envs = PrecisionRoutingVectorEnv(4, autoreset_mode="Disabled", **settings)
    policy = RouterPolicy(PrecisionRouter.load(out / "router"), mode="argmax")
    played = rollout(envs, policy, list(envs.task_ids)[:4])
    assert np.mean([trajectory.rewards.sum() for trajectory in played]) == pytest.approx(best)


def test_the_averaged_weights_are_kept_and_the_rate_falls_to_zero(tmp_path: Path) -> None:
    """After one update at decay 0.75 the kept weights lie a quarter of the way; an annealed rate falls linearly."""
    recipe.main([*SMALL, "--out", str(tmp_path / "begun"), "--updates", "1", "--lr", "1e-9"])
    command = [*SMALL, "--router", str(tmp_path / "begun" / "router"), "--lr", "1e-2"]
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
            recipe.main([*SMALL, "--out", str(tmp_path / str(seed)), "--updates", "2", "--seed", str(seed)])
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
    recipe.main([*SMALL, "--out", str(tmp_path / "run"), "--updates", "5", "--skip-tasks", "3", "--tasks", "4"])
    assert seen == {f"toy-train-{number:03d}" for number in (3, 4, 5, 6)}
    with pytest.raises(ConfigError, match="the panel has 5 tasks after the 3 skipped, but 6 were asked for"):
        recipe.main([*SMALL, "--out", str(tmp_path / "other"), "--skip-tasks", "3", "--tasks", "6"])


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
    recipe.main([*SMALL, "--out", str(tmp_path / "run"), *options])
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
        recipe.main([*SMALL, "--out", str(tmp_path / "run"), "--updates", "1", *options])


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    """Without --resume a second start is refused, with it another learning rate or λ is."""
    command = [*SMALL, "--out", str(tmp_path / "run"), "--updates", "1"]
    recipe.main(command)
    with pytest.raises(ConfigError, match="holds a run: --resume"):
        recipe.main(command)
    with pytest.raises(ConfigError, match="begun with other lr"):
        recipe.main([*command, "--resume", "--lr", "0.5"])
    with pytest.raises(ConfigError, match="begun with other env, set"):
        recipe.main([*command, "--resume", "--set", "lambda_=0.7"])


def test_a_moved_run_goes_on_and_another_router_is_refused(tmp_path: Path) -> None:
    """Folders of the run and of its first router may have moved; what the router weighs is compared."""
    command = [*SMALL, "--updates", "1"]
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


def test_a_signal_in_the_first_validation_saves_and_the_record_keeps_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is played after it; resumed elsewhere, the run ends as any other, and says who did what."""
    command = [*SMALL, "--updates", "2", "--average", "0.5", "--resume"]
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
    recipe.main([*SMALL, "--out", str(tmp_path / "first"), "--updates", "1", "--lr", "1e-9"])
    router = PrecisionRouter.load(tmp_path / "first" / "router")
    with torch.no_grad():
        router.head.weight.zero_()
        router.head.bias.copy_(torch.tensor([1.0, -1.0]))
    router.save(tmp_path / "low")
    capsys.readouterr()
    command = [*SMALL, "--router", str(tmp_path / "low"), "--out", str(tmp_path / "run"), "--updates", "1"]
    recipe.main([*command, "--lr", "1e-9"])
    announced = [line for line in capsys.readouterr().out.splitlines() if "collapse" in line]
    assert announced == ["update 1: collapse, low takes 100.0% of the steps of held-out tasks"]
    history = read_history(tmp_path / "run")
    assert [entry["validation/collapsed"] for entry in history if "validation/collapsed" in entry] == [1.0, 1.0]
    assert 0 < next(entry["rollout/share_high"] for entry in history if "rollout/share_high" in entry) < 0.4


@pytest.fixture(scope="module")
def kl_st(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router of the first stage, for the corridors of `SHORT`."""
    folder = tmp_path_factory.mktemp("kl-st")
    load_recipe("collect_kl").main([*TOY, *SHORT[:4], "--out", str(folder / "kl")])
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
        *SMALL,
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
    options = [*SMALL, "--updates", "20", "--validate-every", "4", "--checkpoint-every", "2", "--lr", "1e-3"]
    options += ["--set", "max_steps=12", "--resume"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    late = ("matplotlib.pyplot", "torch.utils.tensorboard", "tests.unsteady_encoder")
    with Runs("train_grpo", tmp_path / "log.txt", late) as runs:
        assert runs.run([*options, "--out", str(whole)]) == 0
        command = [*options, "--out", str(out)]
        kill_often(runs, command, out, STATE_FILE, 8, lambda: check_same(out, whole), found="best_digest")
        shutil.rmtree(out)
        runs.run(command, lambda _: (out / STATE_FILE).exists(), signal.SIGTERM)
        shutil.rmtree(out / "cache")
        assert runs.run(command) == 0
        assert read_tensors(out / STATE_FILE) != read_tensors(whole / STATE_FILE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float, str], dict[str, float]]:
    """Greedy return, success and share of high on the test panel, after training at a λ in a way; each once."""
    root, found = tmp_path_factory.mktemp("grpo"), {}

    def train(lambda_: float, advantages: str) -> dict[str, float]:
        if (lambda_, advantages) not in found:
            out = root / f"{advantages}-{lambda_}"
            options = ["--set", "task_kwargs.num_signs=4", "--set", f"lambda_={lambda_}", "--groups", "8"]
            options += ["--updates", "60", "--lr", "3e-3", "--advantages", advantages, "--validation-tasks", "8"]
            recipe.main([*TOY, *TINY, *options, "--num-envs", "32", "--out", str(out)])
            found[lambda_, advantages] = evaluate(RouterPolicy(PrecisionRouter.load(out / "router")), lambda_)
        return found[lambda_, advantages]

    return train


def evaluate(policy: Any, lambda_: float) -> dict[str, float]:
    """Play the test panel of short corridors."""
    config = load_recipe("train_grpo").chosen_env(
        recipe.parse_args([*TOY, "--out", "x", "--set", "task_kwargs.num_signs=4", "--set", f"lambda_={lambda_}"])
    )[1]
    settings = config.kwargs() | {"task_kwargs": {**config.task_kwargs, "panel": "test"}}
    envs = PrecisionRoutingVectorEnv(16, autoreset_mode="Disabled", **settings)
    played = rollout(envs, policy, envs.task_ids)
    envs.close()
    return {
        "return": float(np.mean([t.rewards.sum() for t in played])),
        "success": float(np.mean([t.success for t in played])),
        "high": float(np.concatenate([t.actions for t in played]).mean()),
    }


class Constant:
    """Always the same precision, at the router's price in the environment's reward."""

    def __init__(self, index: int) -> None:
        self.index = index

    def reset(self, *_: Any) -> None:
        """Nothing to forget."""

    def act(self, observations: Any, infos: Any) -> Any:
        from dmr_gym.policies import Decisions

        return Decisions.without_router(np.full(len(observations), self.index, dtype=np.int64))


class BestRouting:
    """High at fallen signs alone: no routing of these corridors has a better return."""

    def reset(self, slots: Any, episodes: Any, batch_size: int) -> None:
        """Learn which corridors begin."""
        self.left = getattr(self, "left", [[]] * batch_size)
        for slot, episode in zip(slots, episodes, strict=True):
            self.left[slot] = list(best_actions(episode.task_id, 4))

    def act(self, observations: Any, infos: Any) -> Any:
        """The next sign's action; whatever at the end of the last corridor, which is over."""
        from dmr_gym.policies import Decisions

        return Decisions.without_router(np.array([left.pop(0) if left else 0 for left in self.left], dtype=np.int64))


@pytest.mark.slow
@pytest.mark.parametrize("advantages", ["mean", "state"])
def test_no_lambda_costs_success_where_the_best_routing_solves_every_task(
    trained: Callable[[float, str], dict[str, float]], advantages: str
) -> None:
    """On corridors every task can be solved at any λ; the best routing takes high at fallen signs alone.

    λ = 0 reaches always high or better, a tiny λ does not collapse to low, and at a λ that matters the return lies
    between always high and the best there is.
    """
    results = {lambda_: trained(lambda_, advantages) for lambda_ in (0.0, 0.01, 0.3)}
    assert all(result["success"] == 1.0 for result in results.values())
    assert results[0.0]["return"] == 1.0
    assert results[0.01]["return"] >= evaluate(Constant(1), 0.01)["return"] - 0.005
    high = evaluate(Constant(1), 0.3)["return"]
    assert high + 0.02 < results[0.3]["return"] <= evaluate(BestRouting(), 0.3)["return"] + 1e-9


PRICED = """
task = "toy"
precisions = ["low", "high"]
latency = {ms_per_token = {low = 1.0, high = 10.0}, router_ms = 0.0}
encoder = {kind = "hash", dim = 64}
max_steps = 2
sampling = {max_tokens = 100}
task_kwargs = {num_signs = 2}
[backend]
kind = "scripted"
[backend.answers.low]
"A sign points left." = "go left"
"A sign points right." = "go right"
"A fallen sign shows left." = "go left"
"A fallen sign shows right." = "go right"
[backend.answers.high]
"A sign points left." = "go left"
"A sign points right." = "go right"
"A fallen sign shows left." = "go right"
"A fallen sign shows right." = "go left                                                    "
"""
"""Two signs, two steps, so that one mistake is the end; at one kind of fallen sign the right answer takes 0.6 s."""


class Plan:
    """The same precisions step by step, whatever is seen."""

    def __init__(self, actions: tuple[int, ...]) -> None:
        self.actions = actions

    def reset(self, *_: Any) -> None:
        """All episodes have one length and begin together."""
        self.step = 0

    def act(self, observations: Any, infos: Any) -> Any:
        from dmr_gym.policies import Decisions

        action, self.step = self.actions[self.step], self.step + 1
        return Decisions.without_router(np.full(len(observations), action, dtype=np.int64))


def best_routing(envs: PrecisionRoutingVectorEnv, steps: int) -> tuple[float, float]:
    """Mean return and share of high of the best routing by what is seen, the cheapest of equals; by trying everything.

    Tasks that have shown the same so far are one state, since no routing can tell them apart.
    """
    plans = list(itertools.product((0, 1), repeat=steps))
    played = {plan: rollout(envs, Plan(plan), envs.task_ids) for plan in plans}
    seen = {plan: [trajectory.state_keys() for trajectory in played[plan]] for plan in plans}

    def best(tasks: list[int], done: tuple[int, ...]) -> tuple[float, int]:
        """Sum of rewards from here on, and minus the decisions for high."""
        if len(done) == steps:
            return 0.0, 0
        any_plan = (*done, *[0] * (steps - len(done)))
        states: dict[str, list[int]] = {}
        for task in tasks:
            states.setdefault(seen[any_plan][task][len(done)], []).append(task)
        return add(max(decide(state, (*done, action)) for action in (0, 1)) for state in states.values())

    def decide(tasks: list[int], done: tuple[int, ...]) -> tuple[float, int]:
        plan = (*done, *[0] * (steps - len(done)))
        now = sum(float(played[plan][task].rewards[len(done) - 1]) for task in tasks)
        return add([(now, -done[-1] * len(tasks)), best(tasks, done)])

    def add(parts: Iterable[tuple[float, int]]) -> tuple[float, int]:
        rewards, highs = zip(*parts, strict=True)
        return round(sum(rewards), 12), sum(highs)

    total, highs = best(list(range(len(envs.task_ids))), ())
    return total / len(envs.task_ids), -highs / (steps * len(envs.task_ids))


@pytest.mark.slow
def test_the_learnt_routing_is_the_best_one_at_every_lambda(tmp_path: Path) -> None:
    """Where the best share of high falls as λ rises, that of GRPO does, and its return is the best there is.

    By hand: high costs up to 0.1 s a step, but 0.6 s at signs that show right. So high is worth it at all fallen signs
    for λ = 0 and 0.5, not at the dear ones for λ = 3 (1 < 3 · 0.6), and at none for λ = 15 (1 < 15 · 0.1).
    """
    (tmp_path / "priced.toml").write_text(PRICED)
    learnt, best = {}, {}
    for lambda_ in (0.0, 0.5, 3.0, 15.0):
        options = ["--config", str(tmp_path / "priced.toml"), "--set", f"lambda_={lambda_}", "--num-envs", "32"]
        options += ["--out", str(tmp_path / str(lambda_)), "--validation-panel", "train", *TINY]
        recipe.main([*options, "--groups", "32", "--updates", "30", "--validate-every", "5", "--lr", "1e-2"])
        envs = make_envs(recipe.chosen_env(recipe.parse_args(options))[1], "train", 32)
        policy = RouterPolicy(PrecisionRouter.load(tmp_path / str(lambda_) / "router"))
        played = rollout(envs, policy, envs.task_ids)
        actions = np.concatenate([trajectory.actions for trajectory in played])
        learnt[lambda_] = float(np.mean([t.rewards.sum() for t in played])), float(actions.mean())
        best[lambda_] = best_routing(envs, steps=2)
        envs.close()
    for lambda_, (value, _) in learnt.items():
        assert best[lambda_][0] - 0.01 <= value <= best[lambda_][0] + 1e-9, lambda_
    shares = [best[lambda_][1] for lambda_ in best]
    assert shares[0] == shares[1] > shares[2] > shares[3] == 0
    assert learnt[0.0][1] >= shares[0]  # upright signs cost nothing at λ = 0
    assert learnt[0.5][1] > learnt[3.0][1] > learnt[15.0][1]
    assert [learnt[lambda_][1] for lambda_ in (3.0, 15.0)] == shares[2:]
