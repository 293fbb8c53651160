"""Small environments on the toy world, for several test files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from dmr_gym import ENV_IDS
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.policies import FixedPrecision
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.vector import PrecisionRoutingVectorEnv

TASK = "toy-train-000"


@pytest.fixture(scope="module")
def envs() -> PrecisionRoutingVectorEnv:
    """Two corridors side by side."""
    return PrecisionRoutingVectorEnv(2, autoreset_mode="Disabled", **ENV_IDS["DMR-Toy-v0"])


@pytest.fixture(scope="module")
def solved(envs: PrecisionRoutingVectorEnv) -> Trajectory:
    """The corridor of `TASK` that high precision leaves, with its turns."""
    return rollout(envs, FixedPrecision(1), [TASK], first_repeat=2, keep_turns=True)[0]


def toy_env(**settings: Any) -> PrecisionRoutingEnv:
    """The environment of DMR-Toy-v0 with some settings replaced."""
    return PrecisionRoutingEnv(**(ENV_IDS["DMR-Toy-v0"] | settings))


def play(env: PrecisionRoutingEnv, actions: Sequence[int]) -> list[tuple[Any, ...]]:
    """Step through actions; the episode must not end before the last one."""
    steps = [env.step(action) for action in actions]
    assert not any(step[2] for step in steps[:-1])
    return steps
