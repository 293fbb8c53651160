"""Which decisions of an episode matter: what each precision would have been worth at each step, and critical steps.

Shapes: T steps, P precisions, M labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.tree.graph import RoutingTree
from dmr_gym.tree.values import TIE, Floats, Prices, Values, least_seconds
from dmr_gym.types import IntArray

NO, YES, UNKNOWN = 0, 1, -1


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """The decisions along one episode.

    Attributes:
        states: (T,) int64 states at which they were made.
        actions: (T,) int64 precisions that were chosen.
        low: (T, P) float64 lower bound of the return to come after each precision.
        high: (T, P) float64 its upper bound.
        same: (T,) bool, whether all precisions take the same step there.
        critical: (T, P - 1) int64, for each lower precision whether it costs more, in what follows, than the latency it
            saves against the highest: 1, 0, or -1 where the bounds leave it open.
        fatal: (T, P - 1) int64, whether a success is within reach after the highest precision, but not after the lower.
    """

    states: IntArray
    actions: IntArray
    low: Floats
    high: Floats
    same: NDArray[np.bool_]
    critical: IntArray
    fatal: IntArray


def decide(tree: RoutingTree, prices: Prices, values: Values, actions: Sequence[int] | IntArray) -> Decisions:
    """Value every decision of an episode: what if step 7 had been low?

    Args:
        tree: of the task.
        prices: those of the values.
        values: what follows each decision: the best routing (`best_values`), or one precision alone (`fixed_values`).
        actions: T precision indices.
    """
    actions = np.asarray(actions, dtype=np.int64)
    states = tree.path(actions)[: len(actions)]
    low, high = values.q_low[states], values.q_high[states]
    # Two precisions that lead to one state have one future, whatever the tree leaves open there: rewards decide.
    shared = np.logical_and.reduce([a[states, :-1] == a[states, -1:] for a in (tree.child, tree.over)])
    rewards = values.reward[states]
    critical = _above(low[:, -1:], high[:, -1:], low[:, :-1], high[:, :-1])
    critical = np.where(shared, np.where(rewards[:, -1:] > rewards[:, :-1] + TIE, YES, NO), critical)
    shown, bound = least_seconds(tree, prices, success=True)
    reachable = np.where(np.isfinite(_after(tree, shown)), YES, np.where(np.isinf(_after(tree, bound)), NO, UNKNOWN))
    reachable = reachable[states]
    fatal = np.where((reachable[:, -1:] == NO) | (reachable[:, :-1] == YES), NO, UNKNOWN)
    fatal[(reachable[:, -1:] == YES) & (reachable[:, :-1] == NO)] = YES
    fatal[shared & (tree.success[states, :-1] == tree.success[states, -1:])] = NO
    return Decisions(
        states=states,
        actions=actions,
        low=low,
        high=high,
        same=tree.same_step()[states],
        critical=critical,
        fatal=fatal.astype(np.int64),
    )


def harmless_actions(tree: RoutingTree) -> list[int]:
    """The episode of the highest precision, each step taken by the lowest precision that takes the same one.

    It is what a router would do that foresees every difference between precisions and nothing else: the best that
    imitating the highest precision can reach. The actions end where the tree does.
    """
    return tree.follow(np.argmax(tree.agrees(), axis=1))


@dataclass(frozen=True, slots=True)
class LabelQuality:
    """How well labels "this step needs the highest precision" find the steps that do.

    Attributes:
        threshold: label where the score is above it.
        labelled: share of steps that get the label.
        precision: share of labelled steps that are critical; NaN where none is labelled.
        recall: share of critical steps that are labelled; NaN where none is critical.
    """

    threshold: float
    labelled: float
    precision: float
    recall: float


def label_quality(scores: Floats, critical: NDArray[np.bool_], thresholds: Sequence[float]) -> list[LabelQuality]:
    """Precision and recall of ``score > threshold`` for some thresholds.

    Args:
        scores: (M,) such as KLs in nats.
        critical: (M,) bool.
        thresholds: in the scores' unit.

    Raises:
        ConfigError: shapes that do not fit, or no steps.
    """
    if scores.shape != critical.shape or scores.ndim != 1 or not scores.size:
        raise ConfigError(f"label quality needs two (M,) arrays, got {scores.shape} and {critical.shape}")
    found = []
    for threshold in thresholds:
        labelled = scores > threshold
        hits = float((labelled & critical).sum())
        precision, recall = (hits / total if total else float("nan") for total in (labelled.sum(), critical.sum()))
        found.append(LabelQuality(float(threshold), float(labelled.mean()), precision, recall))
    return found


def average_precision(scores: Floats, critical: NDArray[np.bool_]) -> float:
    """Area under precision over recall, equal scores taken together; a score without meaning gets the share critical.

    Args:
        scores: (M,).
        critical: (M,) bool.

    Returns:
        Σ (R_i − R_{i−1}) · P_i over the different scores in descending order; NaN where nothing is critical.
    """
    levels = np.unique(scores)[::-1]
    below = [np.nextafter(level, -np.inf) for level in levels]
    points = label_quality(scores, critical, below)
    recalls = np.array([0.0, *(point.recall for point in points)])
    return float(sum(np.diff(recalls) * np.array([point.precision for point in points])))


def _after(tree: RoutingTree, seconds: Floats) -> Floats:
    """Seconds to a success behind each decision, (N, P): 0 where it succeeds itself, infinite where there is none."""
    after = np.where(tree.over, np.inf, seconds[tree.child])
    return np.where(tree.success, 0.0, after)


def _above(low: Floats, high: Floats, other_low: Floats, other_high: Floats) -> IntArray:
    """Whether one value is above another, by their bounds."""
    verdict = np.where(low > other_high + TIE, YES, np.where(high <= other_low + TIE, NO, UNKNOWN))
    return verdict.astype(np.int64)
