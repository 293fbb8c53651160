"""Small environments on the toy world, for several test files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dmr_gym import ENV_IDS
from dmr_gym.env import PrecisionRoutingEnv


def toy_env(**settings: Any) -> PrecisionRoutingEnv:
    """The environment of DMR-Toy-v0 with some settings replaced."""
    return PrecisionRoutingEnv(**(ENV_IDS["DMR-Toy-v0"] | settings))


def play(env: PrecisionRoutingEnv, actions: Sequence[int]) -> list[tuple[Any, ...]]:
    """Step through actions; the episode must not end before the last one."""
    steps = [env.step(action) for action in actions]
    assert not any(step[2] for step in steps[:-1])
    return steps
