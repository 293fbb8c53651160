"""The optional penalty for invalid actions: what it costs, where, and that Eq. 8 holds without it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dmr_gym import ENV_IDS
from dmr_gym.backends import ScriptedBackend
from dmr_gym.config import EnvConfig, load_config, to_toml
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import ConfigError
from dmr_gym.latency import TokenLinearLatency
from dmr_gym.tasks.toy import make_signs
from dmr_gym.vector import PrecisionRoutingVectorEnv
from tests.toy_env import toy_env


def answers(request: Any) -> str:
    """Low precision always answers nonsense, high precision goes where the first sign says."""
    return "dance" if request.precision == "low" else f"go {make_signs('toy-train-000', 8)[0].way}"


def penal_env(penalty: float | None) -> PrecisionRoutingEnv:
    """A toy environment without price of time, so that rewards are success and penalty alone."""
    settings = {} if penalty is None else {"invalid_action_penalty": penalty}
    return toy_env(backend=ScriptedBackend(answers, ("low", "high")), lambda_=0.0, **settings)


@pytest.mark.parametrize(("penalty", "expected"), [(None, 0.0), (0.0, 0.0), (0.1, -0.1), (2, -2.0)])
def test_an_invalid_action_costs_the_penalty(penalty: float | None, expected: float) -> None:
    """The penalty comes off the reward of the invalid step and of no other; by default there is none."""
    env = penal_env(penalty)
    env.reset(options={"task_id": "toy-train-000"})
    *_, info = valid = env.step(1)
    assert (valid[1], info["invalid_action"]) == (0.0, False)
    *_, info = invalid = env.step(0)
    assert (invalid[1], info["invalid_action"]) == (pytest.approx(expected), True)


def test_the_penalty_adds_to_the_price_of_time() -> None:
    """Reward = success − λ·latency − penalty, on hand-made prices: 0 − 0.5 · (6 · 0.010 + 0.004) − 0.25."""
    latency = TokenLinearLatency({"low": 10.0, "high": 20.0}, router_ms=4.0)
    env = toy_env(
        backend=ScriptedBackend(lambda request: "dance", ("low", "high")),
        latency=latency,
        lambda_=0.5,
        invalid_action_penalty=0.25,
    )
    env.reset(seed=0)
    _, reward, _, _, info = env.step(0)
    assert info["completion_tokens"] == 6
    assert reward == pytest.approx(-0.5 * 0.064 - 0.25)


def test_the_vector_environment_takes_the_same_penalty() -> None:
    """Each sub-environment pays for its own invalid actions."""
    backend = ScriptedBackend(answers, ("low", "high"))
    settings = ENV_IDS["DMR-Toy-v0"] | {"backend": backend, "lambda_": 0.0, "invalid_action_penalty": 0.5}
    envs = PrecisionRoutingVectorEnv(2, **settings)
    envs.reset(options={"task_id": "toy-train-000"})
    rewards = envs.step(np.array([0, 1]))[1]
    assert rewards.tolist() == [-0.5, 0.0]


@pytest.mark.parametrize("penalty", [-0.1, math.inf, math.nan, True, "0.1", None])
def test_a_wrong_penalty_is_refused(penalty: Any) -> None:
    """It has to be a finite number of at least 0: a reward for nonsense would be a mistake of the sign."""
    message = r"invalid_action_penalty must be a finite number of at least 0 \(reward\), got"
    with pytest.raises(ConfigError, match=message):
        toy_env(invalid_action_penalty=penalty)


def test_the_penalty_is_a_setting_of_configurations(tmp_path: Any) -> None:
    """It can stand in a TOML file, and a wrong one is refused there."""
    path = tmp_path / "env.toml"
    path.write_text(to_toml(EnvConfig(invalid_action_penalty=0.1)))
    assert load_config(EnvConfig, path).kwargs()["invalid_action_penalty"] == 0.1
    with pytest.raises(ConfigError, match="invalid_action_penalty must be a finite number"):
        EnvConfig(invalid_action_penalty=-1.0)
