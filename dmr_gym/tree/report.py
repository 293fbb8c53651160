"""Tables of a panel's trees, as plain data: what policies lose against the oracle, which steps matter, what KLs find.

Shapes: S steps of all episodes at the highest precision, P precisions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.metrics import Interval, bootstrap_ratio
from dmr_gym.tree.decisions import UNKNOWN, YES, Decisions, average_precision, decide, label_quality
from dmr_gym.tree.figures import LabelCurve
from dmr_gym.tree.graph import RoutingTree
from dmr_gym.tree.values import (
    Prices,
    Values,
    best_actions,
    episode_return,
    regret,
    step_seconds,
)
from dmr_gym.types import FloatArray, IntArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

KL_LADDER = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
"""Thresholds in nats at which labels are judged, whatever KL-ST takes."""


@dataclass(frozen=True, slots=True)
class TreeEpisode:
    """One episode of a policy.

    Attributes:
        tree: number of its task's tree.
        actions: precision indices.
        router_called: whether its steps are charged the router's time.
        played: success and seconds, where it was played to its end.
    """

    tree: int
    actions: list[int]
    router_called: bool
    played: tuple[bool, float] | None


def on_tree(number: int, tree: RoutingTree, actions: list[int], prices: Prices) -> TreeEpisode:
    """An episode by its actions alone, priced as ``prices`` say (λ does not matter)."""
    states = tree.path(actions)
    end = None
    if len(states) == len(actions):
        seconds = np.add(*step_seconds(tree, prices))[states, actions].sum()
        end = (bool(tree.success[states[-1], actions[-1]]), float(seconds))
    return TreeEpisode(number, actions, prices.router_called, end)


def oracle_records(
    trees: Sequence[RoutingTree], values: Mapping[float, Sequence[Values]], prices: Mapping[float, Prices]
) -> dict[str, dict[str, dict[str, Any]]]:
    """The best routing of each task where it is known exactly: return, success and time by λ and task.

    Args:
        trees: of the panel.
        values: `best_values` of each tree, by λ.
        prices: by λ.
    """
    records: dict[str, dict[str, dict[str, Any]]] = {}
    for lambda_, each in values.items():
        records[repr(lambda_)] = {}
        for number, (tree, value) in enumerate(zip(trees, each, strict=True)):
            end = on_tree(number, tree, best_actions(tree, value), prices[lambda_]).played
            if value.is_exact and end is not None:
                record = {"return": value.start.low, "success": end[0], "time_s": end[1]}
                records[repr(lambda_)][tree.task_id] = record
    return records


def policy_row(
    kind: str,
    name: str,
    played: Sequence[TreeEpisode],
    trees: Sequence[RoutingTree],
    oracle: Mapping[float, Sequence[Interval]],
    prices: Mapping[float, Prices],
    resamples: int,
) -> dict[str, Any]:
    """What a policy earns, and what it lacks to the oracle: bounds where episodes left a cut tree.

    Args:
        kind: key of `dmr_gym.figures.STYLES`, or "oracle".
        name: of the policy.
        played: its episodes.
        trees: of the panel.
        oracle: for each λ, the bounds of the oracle's return on each tree.
        prices: by λ.
        resamples: of the bootstrap over tasks.

    Returns:
        Plain data. "success" and "time_s" are means over the episodes that did not leave their tree.
    """
    ends = [episode.played for episode in played if episode.played is not None]
    actions = np.concatenate([episode.actions for episode in played])
    row: dict[str, Any] = {
        "kind": kind,
        "policy": name,
        "episodes": len(played),
        "left_tree": len(played) - len(ends),
        "success": float(np.mean([success for success, _ in ends])) if ends else math.nan,
        "time_s": float(np.mean([seconds for _, seconds in ends])) if ends else math.nan,
        "high_share": float((actions == len(trees[0].precisions) - 1).mean()),
        "by_lambda": {},
    }
    groups = np.unique([episode.tree for episode in played], return_inverse=True)[1].astype(np.int64)
    ones = np.ones(len(played))
    for x, price in prices.items():
        earned = [earnings(trees[episode.tree], price, episode) for episode in played]
        lacks = [regret(oracle[x][e.tree], r) for e, r in zip(played, earned, strict=True)]
        ends_of = {end: np.array([getattr(bound, end) for bound in lacks]) for end in ("low", "high")}
        cis = [bootstrap_ratio(gap, ones, groups, resamples, np.random.default_rng(0)) for gap in ends_of.values()]
        row["by_lambda"][f"{x:g}"] = {
            "return": mean_bounds(earned),
            "regret": mean_bounds(lacks),
            "regret_ci": (cis[0].low, cis[1].high),
        }
    return row


def earnings(tree: RoutingTree, prices: Prices, episode: TreeEpisode) -> Interval:
    """Return of an episode; the router's time counts where one was asked."""
    if episode.played is not None:
        success, seconds = episode.played
        return Interval(success - prices.lambda_ * seconds, success - prices.lambda_ * seconds)
    prices = prices if episode.router_called else prices.without_router()
    return episode_return(tree, prices, episode.actions)


def mean_bounds(bounds: Sequence[Interval]) -> tuple[float, float]:
    """Means of the lower and of the upper ends."""
    return float(np.mean([bound.low for bound in bounds])), float(np.mean([bound.high for bound in bounds]))


def decisions_at_highest(trees: Sequence[RoutingTree], prices: Prices, values: Sequence[Values]) -> list[Decisions]:
    """The decisions of the highest precision's own episodes.

    Args:
        trees: of the panel.
        prices: see `Prices`.
        values: of each tree, by what follows a decision: `best_values`, or `fixed_values` of one precision alone.
    """
    high = len(trees[0].precisions) - 1
    return [decide(tree, prices, v, tree.fixed_path(high)) for tree, v in zip(trees, values, strict=True)]


def decision_row(decisions: Sequence[Decisions]) -> dict[str, Any]:
    """Shares of steps by what they are; lists have a number a lower precision."""
    row: dict[str, Any] = {"steps": len(joined(decisions, "same")), "same": float(joined(decisions, "same").mean())}
    for name in ("critical", "fatal"):
        verdicts = joined(decisions, name)
        row[name] = (verdicts == YES).mean(axis=0).tolist()
        row[f"{name}_unknown"] = (verdicts == UNKNOWN).mean(axis=0).tolist()
    return row


def joined(decisions: Sequence[Decisions], name: str) -> Any:
    """An array over the steps of all episodes."""
    return np.concatenate([getattr(one, name) for one in decisions])


def label_rows(
    lower: Sequence[str],
    decisions: Sequence[Decisions],
    kls: FloatArray,
    thresholds: Sequence[float],
    resamples: int = 2000,
) -> tuple[list[dict[str, Any]], list[LabelCurve]]:
    """How well KLs find critical steps. Steps whose bounds leave that open do not count.

    Args:
        lower: names of the P - 1 lower precisions.
        decisions: of the highest precision's episodes, S steps in all.
        kls: (S, P - 1) nats.
        thresholds: P - 1, those of KL-ST, in nats.
        resamples: of the episodes, for the intervals.

    Returns:
        A row of plain data, and a curve to draw, for each lower precision.
    """
    differs = ~joined(decisions, "same")
    episodes = np.repeat(np.arange(len(decisions)), [len(one.actions) for one in decisions])
    rows, curves = [], []
    for p, (name, tau) in enumerate(zip(lower, thresholds, strict=True)):
        verdicts = joined(decisions, "critical")[:, p]
        known = verdicts != UNKNOWN
        if not known.any():
            raise ConfigError(f"the trees are too small to judge any step of {name}: build them with more --budget")
        scores, critical = kls[known, p].astype(np.float64), verdicts[known] == YES
        groups = np.unique(episodes[known], return_inverse=True)[1]
        judge = partial(_judged, critical=critical, groups=groups, resamples=resamples)
        grid = np.unique(np.concatenate([[0.0, tau], np.quantile(scores, np.linspace(0, 1, 101))]))
        points = label_quality(scores, critical, grid.tolist())
        differ = judge(differs[known].astype(np.float64), 0.5)
        row = {
            "precision": name,
            "steps": int(known.sum()),
            "unknown": int((~known).sum()),
            "critical": float(critical.mean()),
            "average_precision": average_precision(scores, critical),
            "kl_st": judge(scores, tau),
            "at": [judge(scores, threshold) for threshold in KL_LADDER],
            "actions_differ": differ,
            "by_threshold": [asdict(point) for point in points],
        }
        rows.append(row)
        curves.append(LabelCurve(name, points, tau, differ["precision"]))
    return rows, curves


def _judged(scores: Floats, threshold: float, critical: Bools, groups: IntArray, resamples: int) -> dict[str, Any]:
    """Quality of one label, with 95 % intervals over episodes."""
    [quality] = label_quality(scores, critical, [threshold])
    labelled = scores > threshold
    hits = (labelled & critical).astype(np.float64)
    found: dict[str, Any] = asdict(quality)
    for key, whole in (("precision", labelled), ("recall", critical)):
        interval = bootstrap_ratio(hits, whole.astype(np.float64), groups, resamples, np.random.default_rng(0))
        found[f"{key}_ci"] = [interval.low, interval.high]
    return found


def matching_kls(
    trees: Sequence[RoutingTree], decisions: Sequence[Decisions], found: Mapping[str, FloatArray]
) -> FloatArray:
    """KLs (S, P - 1) of the steps of the decisions.

    Args:
        trees: of the panel.
        decisions: of the highest precision's episodes.
        found: KLs (T, P - 1) of each task's episode.

    Raises:
        ConfigError: the data set lacks a task, or has another episode of it.
    """
    for tree, one in zip(trees, decisions, strict=True):
        if len(found.get(tree.task_id, ())) != len(one.actions):
            raise ConfigError(
                f"the KLs have no episode of {tree.task_id:.120} with {len(one.actions)} steps: collect them with "
                "agents/collect_kl.py on the panel of the trees, with the same models"
            )
    return np.concatenate([found[tree.task_id] for tree in trees])


def decision_lines(trees: Sequence[RoutingTree], decisions: Sequence[Decisions], kls: FloatArray | None = None) -> str:
    """One JSON object a step of the highest precision's episodes: what each precision does there, and its worth.

    Args:
        trees: of the panel.
        decisions: see `decisions_at_highest`.
        kls: (S, P - 1) nats, where they are known.
    """
    lines, number = [], 0
    for tree, one in zip(trees, decisions, strict=True):
        for step, state in enumerate(one.states):
            line = {
                "task_id": tree.task_id,
                "step": step,
                "rows": [tree.texts[row] for row in tree.row[state]],
                "same": bool(one.same[step]),
                "value_low": one.low[step].tolist(),
                "value_high": one.high[step].tolist(),
                "critical": one.critical[step].tolist(),
                "fatal": one.fatal[step].tolist(),
                "kl": None if kls is None else kls[number].tolist(),
            }
            number += 1
            lines.append(json.dumps(line) + "\n")
    return "".join(lines)
