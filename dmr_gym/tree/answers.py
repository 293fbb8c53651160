"""What `dmr_gym.tree.replay.TreeVectorEnv` looks up: the answers of trees in one table, and what stands for the LLM.

Shapes: N states, P precisions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.config import EnvConfig
from dmr_gym.episode import Rules
from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.tree.graph import EDGE_ARRAYS, RoutingTree
from dmr_gym.tree.values import Prices, open_bounds, step_rewards, step_seconds
from dmr_gym.types import Completion, DistributionRequest, IntArray, Request, TokenDistributions

_INDICES = ("row", "step_type", "next_step_type", "invalid_reason")
"""Arrays of a tree that point into its texts."""


class TreeBackend:
    """Stands where an environment has its LLM: it knows which copies answered when the trees were built, and no more.

    Args:
        precisions: names in ascending order.
        digests: of the copies by precision.
    """

    def __init__(self, precisions: Sequence[str], digests: Mapping[str, str]) -> None:
        self.precisions = tuple(precisions)
        self._digests = digests

    def digest(self, precision: str) -> str:
        """Content address of a copy, as the trees have it.

        Raises:
            BackendError: they do not.
        """
        if precision not in self._digests:
            raise BackendError(f"the trees do not tell which model {precision!r} was")
        return self._digests[precision]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Raises BackendError: there is no LLM."""
        raise BackendError("an environment on routing trees has no LLM; make one from an id")

    def token_distributions(self, requests: Sequence[DistributionRequest]) -> list[TokenDistributions]:
        """Raises BackendError: there is no LLM."""
        raise BackendError("an environment on routing trees has no LLM; make one from an id")


def answer_table(tree: RoutingTree, rules: Rules, first: int, number: IntArray) -> dict[str, NDArray[Any]]:
    """The arrays of a tree over its N * P answers, and what they are worth, for `TreeVectorEnv`.

    Args:
        tree: one of them.
        rules: of the environment.
        first: number of its start among the states of all trees.
        number: of each of its texts among the texts of all trees.
    """
    found: dict[str, NDArray[Any]] = {name: getattr(tree, name) for name in EDGE_ARRAYS}
    found |= {name: number[found[name]] for name in _INDICES}
    prices = Prices(rules.latency, rules.lambda_, rules.invalid_action_penalty)
    left = ~tree.over & tree.is_open[tree.child] & ~tree.is_open[:, None]
    worst, _ = open_bounds(tree, prices, range(len(rules.precisions)), worst=max)
    llm_s, router_s = step_seconds(tree, prices)
    found |= {
        "child": tree.child + first,
        "llm_s": llm_s,
        "router_s": router_s,
        "reward": step_rewards(tree, prices) + np.where(left, worst[tree.child], 0.0),
        "left_tree": left,
        "ends": tree.over | left,
        "cap_reached": tree.over & ~(tree.done | tree.success),
    }
    return {name: values.reshape(-1) for name, values in found.items()}


def check_trees(trees: Sequence[RoutingTree], config: EnvConfig) -> None:
    """Raise ConfigError unless these are trees of different tasks, made for such an environment."""
    if not trees:
        raise ConfigError("an environment on routing trees needs at least one tree")
    if len({tree.task_id for tree in trees}) < len(trees):
        raise ConfigError("an environment on routing trees needs one tree a task, but a task has two")
    for tree in trees:
        for name in ("precisions", "max_steps"):
            has, wanted = getattr(tree, name), getattr(config, name)
            if has != wanted:
                raise ConfigError(f"the tree of {tree.task_id} has {name} {has}, the environment {wanted}")
        if tree.is_open[0]:
            raise ConfigError(f"the tree of {tree.task_id} has nothing but its start: build it with a larger budget")


def check_world(trees: Sequence[RoutingTree], config: EnvConfig) -> None:
    """Raise ConfigError unless trees from files were built in the world that an environment's keywords describe.

    Args:
        trees: with the settings that agents/build_trees.py keeps.
        config: keywords of the environment.
    """
    wanted = json.loads(json.dumps({name: getattr(config, name) for name in ("task", "task_kwargs", "sampling")}))
    for tree in trees:
        built = tree.settings.get("env", {})
        changed = [name for name, value in wanted.items() if name in built and built[name] != value]
        if changed:
            has = ", ".join(f"{name} {built[name]!r}" for name in changed)
            raise ConfigError(f"the tree of {tree.task_id:.120} was built with {has}, not {wanted[changed[0]]!r}")
