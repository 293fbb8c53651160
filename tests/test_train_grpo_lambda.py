"""agents/train_grpo.py: what λ does on worlds whose best routing is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmr_gym.command_line import make_envs
from dmr_gym.policies import RouterPolicy
from dmr_gym.rollout import rollout
from dmr_gym.router import PrecisionRouter
from dmr_gym.tasks.toy import best_actions
from dmr_gym.vector import PrecisionRoutingVectorEnv
from tests.recipes import TINY, TOY, load_recipe, one_thread

__all__ = ["one_thread"]  # a fixture for all tests here

recipe = load_recipe("train_grpo")


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
