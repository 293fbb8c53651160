"""The tables of an evaluation: the paper's Table 1 with intervals, paired differences, and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dmr_gym.latency import PriceSource
from dmr_gym.metrics import Interval
from dmr_gym.results import ROUTED, TRAINED, Results
from dmr_gym.tables import Table, number, percent, with_interval

STYLES = {"router": "bold", "start": "bold", "grpo": "bold", "ppo": "bold", "random": "dim"}
"""Of the rows on the terminal."""

DIGITS = {"s": 2, "J": 2, "$": 6}
"""Decimals of a time, an energy, or a price: an episode costs small parts of a dollar."""

TIME_NOTE = (
    "EP time is the mean over solved episodes, the paper's measure. It flatters a policy that solves only what is quick"
    " to solve, so compare the time of all episodes."
)


def result_tables(results: Results, precisions: Sequence[str], prices: PriceSource) -> list[Table]:
    """All tables of an evaluation.

    Args:
        results: of `dmr_gym.results.tabulate`.
        precisions: names, ascending.
        prices: where the times come from, and their unit.
    """
    return [policy_table(results, precisions, prices), difference_table(results, prices.unit), return_table(results)]


def policy_table(results: Results, precisions: Sequence[str], prices: PriceSource) -> Table:
    """A line a policy; the world's own score has a column where it says more than success, as WebShop's reward does."""
    summaries, unit, digits = results.summaries, prices.unit, DIGITS[prices.unit]
    has_score = any(s.score != s.success for s in summaries if not np.isnan(s.score))
    columns = ["policy", "success %", *(["score"] if has_score else []), f"EP time, {unit}", "speedup"]
    columns += [f"time of all, {unit}", "speedup", f"{' / '.join(precisions)} %", "steps", "return", "behind"]
    rows = []
    for summary, row in zip(summaries, results.data["results"], strict=True):
        s = summary
        rows.append(
            (
                s.policy,
                with_interval(s.success, s.success_ci, 1, 100),
                *([number(s.score, 3)] if has_score else []),
                with_interval(s.time_success_s, s.time_success_s_ci, digits),
                number(s.speedup_success, 2),
                with_interval(s.time_all_s, s.time_all_s_ci, digits),
                number(s.speedup_all, 2),
                " / ".join(percent(share, 0) for share in s.shares),
                number(s.steps, 1),
                number(s.mean_return, 3),
                number(row["pareto_distance_all"], 3),
            )
        )
    tasks = len({episode.task_id for episode in results.policies[0].episodes})
    notes = [
        TIME_NOTE,
        f"{prices.title[0].upper()}{prices.title[1:]}. Brackets: 95 % intervals over tasks. Return: success − λ·T. "
        "Behind: Pareto distance to the frontier of all policies here, by success and time of all.",
        *_selection_notes(results),
        *_gap_notes(results),
    ]
    styles = tuple(STYLES.get(policy.kind) for policy in results.policies)
    return Table(f"Policies on {tasks} tasks", tuple(columns), tuple(rows), tuple(notes), styles=styles)


def difference_table(results: Results, unit: str) -> Table:
    """A line a pair of policies, task by task; times in the unit of the prices."""
    rows = tuple(
        (
            f"{d.policy} − {d.minus}",
            with_interval(d.success, d.success_ci, 1, 100, sign=True),
            with_interval(d.time_all_s, d.time_all_s_ci, DIGITS[unit], sign=True),
            with_interval(d.speedup_all, d.speedup_all_ci, 2),
            with_interval(d.mean_return, d.mean_return_ci, 3, sign=True),
        )
        for d in results.differences
    )
    columns = ("policies", "success, points", f"time of all, {unit}", "speedup of all", "return")
    notes = ["Brackets: 95 % intervals over tasks."]
    if any(policy.kind in TRAINED for policy in results.policies):
        began = any(policy.kind == "start" for policy in results.policies)
        start = ", the router that they began from" if began else ""
        notes.append(
            f"GRPO and PPO are also set against the KL-ST point that earns most on these very tasks{start}, and "
            "a lower precision where that alone earns more than the highest."
        )
    return Table("Paired differences, the same tasks", columns, rows, tuple(notes))


def return_table(results: Results) -> Table:
    """A line a policy, a column a λ, and the gap to the oracle where one is known."""
    returns = results.data["returns"]
    cells = {(row["policy"], row["lambda"]): row for row in returns}
    lambdas = sorted({row["lambda"] for row in returns})
    columns, rows = ["policy"], []
    for lambda_ in lambdas:
        columns.append(f"return, λ={lambda_:g}")
        if any("oracle_gap" in row for row in returns if row["lambda"] == lambda_):
            columns.append("oracle − this")
    for policy in results.policies:
        line = [policy.name]
        for lambda_ in lambdas:
            row = cells[policy.name, lambda_]
            line.append(with_interval(row["mean_return"], Interval(**row["mean_return_ci"]), 3))
            if "oracle_gap" in row:
                line.append(with_interval(row["oracle_gap"], Interval(**row["oracle_gap_ci"]), 3))
        rows.append(tuple(line))
    styles = tuple(STYLES.get(policy.kind) for policy in results.policies)
    return Table("Returns, success − λ·T", tuple(columns), tuple(rows), styles=styles)


def _selection_notes(results: Results) -> list[str]:
    notes = []
    for name, selection in results.data["selection"].items():
        if selection is not None:
            rank = min(r for n, r in zip(selection["names"], selection["ranks"], strict=True) if n in selection["best"])
            pool = f"{len(selection['names'])} points, time of {name} episodes"
            notes.append(f"Best router by average rank ({pool}): {', '.join(selection['best'])} with {rank:g}.")
    return notes


def _gap_notes(results: Results) -> list[str]:
    found = results.data["gap_recovered"]
    notes = []
    for kind in ROUTED:
        if kind in found and not np.isnan(found[kind]["apgr"]):
            like = found.get(f"random {kind}")
            beside = f", random routing with the same shares {_apgr(like)}" if like else ""
            notes.append(f"Average performance gap recovered, {kind}: {_apgr(found[kind])}{beside}.")
    return notes


def _apgr(found: Mapping[str, Any]) -> str:
    return with_interval(found["apgr"], Interval(**found["apgr_ci"]), 3)
