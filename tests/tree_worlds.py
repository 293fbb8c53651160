"""Small worlds for tests of routing trees, and the slow way to what a tree knows: play every sequence of precisions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dmr_gym import ENV_IDS
from dmr_gym.backends import ScriptedBackend
from dmr_gym.config import EnvConfig, from_mapping
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.parts import Parts, build_parts
from dmr_gym.tree.build import grow_trees
from dmr_gym.tree.graph import RoutingTree
from dmr_gym.tree.values import Prices
from dmr_gym.types import Request, TaskStart, TaskStep

TOY = ENV_IDS["DMR-Toy-v0"] | {"task_kwargs": {"num_signs": 3}, "max_steps": 6, "history_length": 5}
HASHED = TOY | {
    "precisions": ["low", "middle", "high"],
    "backend": {"kind": "scripted", "policy": "hash", "choices": ["go left", "go right", "think: which way?", "swim"]},
    "latency": {"ms_per_token": {"low": 5.0, "middle": 9.0, "high": 21.0}, "router_ms": 7.0},
    "max_steps": 5,
    "invalid_action_penalty": 0.03,
}
"""Three precisions that answer by chance, at several prices, with a price of invalid actions."""


class WalkState(NamedTuple):
    """Position on a line, and steps so far."""

    position: int
    steps: int


class WalkTask:
    """A walk on a line from 0 to 3 whose prompts tell the position alone, so that different histories come together.

    "ahead" goes one step on, "back" one back, "jump" two on, anything else nowhere. At -2 the walker falls off.
    """

    task_ids = ("walk",)

    def __init__(self) -> None:
        self.state = WalkState(0, 0)

    def reset(self, task_id: str) -> TaskStart:
        """Stand at 0."""
        self.state = WalkState(0, 0)
        return TaskStart(task_id, "Walk to 3.", "You are at 0.")

    def prompt(self) -> str:
        """Where the walker is, and how many steps were taken."""
        return f"{self.state.position} after {self.state.steps}\n>"

    def step(self, completion: str) -> TaskStep:
        """Walk."""
        way = {"ahead": 1, "back": -1, "jump": 2}.get(completion, 0)
        self.state = WalkState(self.state.position + way, self.state.steps + 1)
        position = self.state.position
        success = position >= 3
        return TaskStep(
            action=completion,
            observation=f"You are at {position}.",
            score=max(0.0, min(1.0, position / 3)),
            done=success or position == -2,
            success=success,
            step_type="action",
            invalid_reason=None if way else "nobody walks like that",
        )

    def snapshot(self) -> WalkState:
        """The state."""
        return self.state

    def restore(self, state: WalkState) -> None:
        """Go back."""
        self.state = state


WALKS = {
    "low": ["ahead", "back", "back", "stay", "ahead", "jump", "back"],
    "high": ["ahead", "ahead", "stay", "jump", "back", "ahead", "jump"],
}


def _walk_answer(request: Request) -> str:
    position, _, steps = str(request.prompt).removesuffix("\n>").split(" ")
    walks = WALKS[request.precision]
    return walks[(3 * int(position) + int(steps)) % len(walks)]


def walk_settings() -> dict[str, Any]:
    """Keywords of an environment on `WalkTask`; its task is new in each."""
    return TOY | {
        "task": WalkTask(),
        "task_kwargs": None,
        "backend": ScriptedBackend(_walk_answer, name="walk"),
        "max_steps": 7,
    }


def parts_of(settings: dict[str, Any], **changes: Any) -> Parts:
    """Live parts from keywords of an environment."""
    return build_parts(EnvConfig().kwargs() | settings | changes)


def grow(world: dict[str, Any], tasks: int = 3, **options: Any) -> list[RoutingTree]:
    """Trees of the first tasks of the panel."""
    parts = parts_of(world)
    return grow_trees(parts, parts.task_ids[:tasks], **options)


def prices_of(settings: dict[str, Any], **changes: Any) -> Prices:
    """Prices of an environment."""
    rules = parts_of(settings, **changes).rules
    return Prices(rules.latency, rules.lambda_, rules.invalid_action_penalty)


class Played(NamedTuple):
    """An episode of the real environment: its choices, rewards, and how it ended."""

    actions: tuple[int, ...]
    rewards: tuple[float, ...]
    success: bool
    latency_s: float

    @property
    def total(self) -> float:
        """Its return."""
        return sum(self.rewards)


def play(env: PrecisionRoutingEnv, task_id: str, actions: Sequence[int]) -> Played:
    """Play choices in the real environment, up to the end of the episode or of the choices."""
    env.reset(options={"task_id": task_id})
    rewards: list[float] = []
    info: dict[str, Any] = {"success": False, "episode_latency_s": 0.0}
    for action in actions:
        _, reward, over, _, info = env.step(action)
        rewards.append(reward)
        if over:
            break
    return Played(tuple(actions[: len(rewards)]), tuple(rewards), info["success"], info["episode_latency_s"])


def play_all(settings: dict[str, Any], task_id: str) -> list[Played]:
    """Every different episode of a task."""
    env = PrecisionRoutingEnv(**settings)
    sequences = itertools.product(range(len(env.precisions)), repeat=settings["max_steps"])
    episodes: dict[tuple[int, ...], Played] = {}
    for sequence in sequences:
        if not any(sequence[:n] in episodes for n in range(1, len(sequence) + 1)):
            episode = play(env, task_id, sequence)
            episodes[episode.actions] = episode
    return list(episodes.values())


def random_actions(tree: RoutingTree, rng: np.random.Generator) -> list[int]:
    """Choices by chance up to the end of an episode, or to an open state."""
    actions, state = [], 0
    while not tree.is_open[state]:
        actions.append(int(rng.integers(len(tree.precisions))))
        if tree.over[state, actions[-1]]:
            break
        state = int(tree.child[state, actions[-1]])
    return actions


def each_world() -> Iterator[dict[str, Any]]:
    """Keywords of the corridor, of the corridor with three precisions, and of the walk."""
    yield from (TOY, HASHED, walk_settings())


def config_of(settings: dict[str, Any]) -> EnvConfig:
    """The configuration for an environment on trees of a world; a live task and backend have no place in it."""
    plain = {name: value for name, value in settings.items() if name not in ("task", "task_kwargs", "backend")}
    return from_mapping(EnvConfig, plain)
