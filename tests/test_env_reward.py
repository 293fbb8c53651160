"""dmr_gym.env: rewards are Eq. 8 by hand, and an episode ends when it should."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from dmr_gym.latency import make_latency_model, trajectory_seconds
from dmr_gym.tasks.toy import ToyTask, best_actions, make_signs
from dmr_gym.types import LLMCall, TaskStep
from tests.toy_env import play, toy_env

PRICES = {"ms_per_token": {"low": 10.0, "high": 20.0}, "router_ms": 5.0}


def test_reward_is_eq_8_by_hand() -> None:
    """Three signs, λ = 0.5 a second; "go left" has 7 bytes and an end, "go right" one more.

    The ways are right, left, left, the second sign has fallen. Low, high, low takes 9·10 + 8·20 + 8·10 = 330 ms of LLM
    and 3·5 ms of router: R = 1 − 0.5·0.345.
    """
    signs = [("right", False), ("left", True), ("left", False)]
    assert [tuple(sign) for sign in make_signs("toy-train-001", 3)] == signs
    env = toy_env(task_kwargs={"num_signs": 3}, latency=PRICES, lambda_=0.5)
    env.reset(options={"task_id": "toy-train-001"})
    steps = play(env, [0, 1, 0])
    rewards = [step[1] for step in steps]
    assert rewards == pytest.approx([-0.5 * 0.095, -0.5 * 0.165, 1 - 0.5 * 0.085])
    assert sum(rewards) == pytest.approx(1 - 0.5 * 0.345)
    assert [step[2] for step in steps] == [False, False, True]
    info = steps[-1][4]
    assert info["episode_latency_s"] == pytest.approx(0.345)
    assert (info["latency_llm_s"], info["latency_router_s"]) == pytest.approx((0.08, 0.005))
    assert info["latency_s"] == info["latency_llm_s"] + info["latency_router_s"]
    assert info["episode_completion_tokens"] == 25
    assert info["high_precision_share"] == pytest.approx(1 / 3)
    assert (info["success"], info["is_success"], info["score"], info["cap_reached"]) == (True, True, 1.0, False)


def test_return_is_success_less_lambda_times_eq_9() -> None:
    """For any actions, the undiscounted sum equals r_success − λ·T with T from the calls alone."""
    env = toy_env(lambda_=0.3)
    env.reset(seed=11)
    rng = np.random.default_rng(0)
    total, over = 0.0, False
    while not over:
        _, reward, over, _, info = env.step(rng.integers(2))
        total += reward
    calls = [LLMCall(turn.request.precision, 0, turn.completion.completion_tokens) for turn in env.turns]
    seconds = trajectory_seconds(make_latency_model("alfworld-4b-gptq-w3", ("low", "high")), calls)
    assert total == pytest.approx(info["success"] - 0.3 * seconds)
    assert info["episode_latency_s"] == pytest.approx(seconds)


def test_known_best_actions_beat_every_fixed_precision() -> None:
    """High precision at fallen signs alone has the highest return, always-low never arrives."""
    env = toy_env()
    for task_id in env.task_ids[:4]:
        returns = []
        for actions in (best_actions(task_id), [1] * 8, [0] * 50):
            env.reset(options={"task_id": task_id})
            steps = play(env, actions)
            returns.append(sum(step[1] for step in steps))
        assert returns[0] > returns[1] > 0 > returns[2]
        assert steps[-1][4]["cap_reached"]


def test_best_actions_are_the_optimum_of_all_routings() -> None:
    """On three signs, no sequence of up to six decisions has a higher return than the known best one."""
    env = toy_env(task_kwargs={"num_signs": 3}, max_steps=6)
    env.reset(options={"task_id": "toy-train-002"})
    start = env.snapshot()

    def best(state: Any) -> float:
        values = []
        for action in (0, 1):
            env.restore(state)
            _, reward, over, _, _ = env.step(action)
            values.append(reward if over else reward + best(env.snapshot()))
        return max(values)

    optimum = best(start)
    env.restore(start)
    assert sum(step[1] for step in play(env, best_actions("toy-train-002", 3))) == pytest.approx(optimum)


def test_cap_terminates_and_never_truncates() -> None:
    """The step cap ends the task as failed: terminated, cap_reached, no success."""
    env = toy_env(max_steps=3)
    env.reset(seed=0)
    steps = play(env, [0, 0, 0])
    assert [step[2] for step in steps] == [False, False, True]
    assert [step[3] for step in steps] == [False, False, False]
    assert [step[4]["cap_reached"] for step in steps] == [False, False, True]
    assert not steps[-1][4]["success"]
    assert steps[-1][1] < 0


def test_solving_at_the_cap_is_success() -> None:
    """A task that is solved on the last allowed step is solved; the cap did not end it."""
    env = toy_env(task_kwargs={"num_signs": 3}, max_steps=3)
    env.reset(seed=0)
    *_, (_, reward, terminated, _, info) = play(env, [1, 1, 1])
    assert terminated
    assert (info["success"], info["cap_reached"]) == (True, False)
    assert reward > 0


class DeadEnd(ToyTask):
    """A corridor whose first step ends the world without success."""

    def step(self, completion: str) -> TaskStep:
        """End."""
        return dataclasses.replace(super().step(completion), done=True, success=False, score=0.25)


def test_a_world_can_end_without_success() -> None:
    """Done without success terminates with no bonus, and the cap did not do it."""
    env = toy_env(task=DeadEnd(), task_kwargs=None)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(1)
    assert (terminated, truncated) == (True, False)
    assert reward == -0.2 * info["latency_s"]
    assert (info["success"], info["score"], info["cap_reached"]) == (False, 0.25, False)


def test_a_row_without_router_time_prices_baselines() -> None:
    """With router_ms = 0, a fixed-precision episode costs its LLM time alone; else each step adds the router's."""
    latency = {"row": "alfworld-4b-gptq-w3"}
    infos = []
    for settings in (latency, latency | {"router_ms": 0}):
        env = toy_env(latency=settings)
        env.reset(seed=0)
        infos.append(play(env, [1] * 8)[-1][4])
    assert infos[1]["latency_s"] == infos[1]["latency_llm_s"] == infos[0]["latency_llm_s"]
    router_s = make_latency_model("alfworld-4b-gptq-w3", ("low", "high")).router_seconds(LLMCall("low", 0, 0))
    assert infos[0]["episode_latency_s"] - infos[1]["episode_latency_s"] == pytest.approx(8 * router_s)
