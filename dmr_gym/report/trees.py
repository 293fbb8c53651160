"""What a routing tree says of the other choices: the action of each precision, and where it would have led.

Shapes: N states, P precisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.config import EnvConfig, load_config
from dmr_gym.errors import ConfigError
from dmr_gym.latency import make_latency_model
from dmr_gym.tree.graph import RoutingTree, load_trees
from dmr_gym.tree.values import TIE, Prices, best_values, prices_by_tokens, step_seconds
from dmr_gym.types import IntArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class TreeOutcomes:
    """Where each answer of a tree leads; NaN where the tree's budget left that open.

    Attributes:
        tree: of the task.
        best: (N, P, 2) float64 success and seconds, the step's own included, under the best routing of what follows.
        high: (N, P, 2) float64 the same where the highest precision takes all steps that follow.
        value: (N, P) float64 return of the best routing that follows, the step's own reward included.
    """

    tree: RoutingTree
    best: Floats
    high: Floats
    value: Floats

    def answer(self, state: int, precision: int) -> tuple[str, str, tuple[float, ...]]:
        """Action and observation of an answer, and its outcomes: (value, best's success, seconds, high's ...)."""
        action, _, observation = self.tree.texts[int(self.tree.row[state, precision])].partition("\n")
        numbers = [self.value[state, precision], *self.best[state, precision], *self.high[state, precision]]
        return action, observation, tuple(float(number) for number in numbers)


def read_outcomes(folder: Path, results: Mapping[str, Any], task_ids: Sequence[str]) -> dict[str, TreeOutcomes]:
    """The outcomes of the trees that belong to an evaluation, by task; none where prices depend on the way to a state.

    Args:
        folder: of a panel, which agents/build_trees.py wrote.
        results: of the evaluation.
        task_ids: which tasks; those without a tree of the same models and step cap are left out.

    Raises:
        ConfigError: the trees are damaged, or of other precisions.
    """
    config = config_of(results)
    latency = make_latency_model(config.latency, config.precisions)
    if not prices_by_tokens(latency):
        return {}
    prices = Prices(latency, config.lambda_, config.invalid_action_penalty)
    found = {}
    wanted = set(task_ids)
    for tree in load_trees(folder):
        same = tree.settings.get("models") == results["models"] and tree.max_steps == config.max_steps
        if tree.task_id in wanted and same:
            if tree.precisions != config.precisions:
                raise ConfigError(f"{folder} has trees of {tree.precisions}, the evaluation has {config.precisions}")
            found[tree.task_id] = outcomes(tree, prices)
    return found


def config_of(results: Mapping[str, Any]) -> EnvConfig:
    """Keywords of the environment that an evaluation was made in, but for its backend, which nobody asks here."""
    env = {key: value for key, value in results["env"].items() if value is not None}
    return load_config(EnvConfig, base=env | {"backend": {"kind": "scripted"}})


def outcomes(tree: RoutingTree, prices: Prices) -> TreeOutcomes:
    """Value every answer of a tree.

    Args:
        tree: of a task.
        prices: of the environment; steps of the highest precision alone pay for no router.
    """
    values = best_values(tree, prices)
    exact = np.where(values.q_high - values.q_low <= TIE, values.q_low, np.nan)
    q = values.q_low
    best = np.argmax(q >= q.max(axis=1, keepdims=True) - TIE, axis=1).astype(np.int64)
    high = np.full(len(tree), len(tree.precisions) - 1, dtype=np.int64)
    return TreeOutcomes(tree, _ends(tree, prices, best), _ends(tree, prices, high, router=False), exact)


def _ends(tree: RoutingTree, prices: Prices, choices: IntArray, router: bool = True) -> Floats:
    """Success and seconds behind each answer where these choices follow it, (N, P, 2) float64."""
    own = np.add(*step_seconds(tree, prices))
    later = own if router else step_seconds(tree, prices)[0]
    from_state = np.full((len(tree), 2), np.nan)
    for states in tree.levels():
        states = states[~tree.is_open[states]]
        taken = choices[states]
        over, child = tree.over[states, taken], tree.child[states, taken]
        after = np.where(over[:, None], np.stack([tree.success[states, taken], np.zeros(len(states))], axis=1), 0.0)
        after[~over] = from_state[child[~over]]
        after[:, 1] += later[states, taken]
        from_state[states] = after
    ends = np.zeros((*tree.child.shape, 2))
    ends[..., 0] = np.where(tree.over, tree.success, from_state[tree.child, 0])
    ends[..., 1] = own + np.where(tree.over, 0.0, from_state[tree.child, 1])
    ends[tree.is_open] = np.nan
    return ends
