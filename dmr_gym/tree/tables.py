"""A report on trees as tables: what policies earn, what the highest precision's steps are, what labels find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmr_gym.latency import PriceSource
from dmr_gym.result_tables import DIGITS
from dmr_gym.tables import Table, number, percent

Row = Mapping[str, Any]


def report_tables(record: Mapping[str, Any]) -> list[Table]:
    """All tables of a report.

    Args:
        record: a ``results.json`` of agents/tree_report.py.
    """
    tables = [policy_table(record), step_table(record["steps_of_highest"])]
    return tables + ([label_table(record["kl_labels"])] if record["kl_labels"] else [])


def policy_table(record: Mapping[str, Any]) -> Table:
    """A line a policy: what it earns at each λ, and what it lacks to the oracle at the environment's, the first."""
    prices, lambdas, trees = PriceSource(**record["latency"]), list(record["oracle"]), record["trees"]
    rows = []
    for row in record["results"]:
        at, first = row["by_lambda"], row["by_lambda"][lambdas[0]]
        low, high = first["regret_ci"]
        rows.append(
            (
                f"{row['policy']}{' *' if row['left_tree'] else ''}",
                percent(row["success"]),
                number(row["time_s"], DIGITS[prices.unit]),
                percent(row["high_share"], 0),
                *(_bounds(at[x]["return"]) for x in lambdas),
                f"{_bounds(first['regret'])} [{number(low, 3)}, {number(high, 3)}]",
            )
        )
    returns = (f"return, λ={x}" for x in lambdas)
    columns = ("policy", "success %", f"time, {prices.unit}", "high %", *returns, f"regret at λ={lambdas[0]}")
    reach = f"{trees['complete']} of {trees['trees']} trees are complete, {trees['states_of_all']:,} states in all."
    notes = (
        f"{reach} {prices.title[0].upper()}{prices.title[1:]}. Regret: oracle minus this; bounds where trees are cut "
        "off. Brackets: 95 % intervals over tasks.",
        *(("* Some episodes left their trees.",) if any(row["left_tree"] for row in record["results"]) else ()),
    )
    return Table("Returns and regret, success − λ·T", columns, tuple(rows), notes)


def step_table(by_lambda: Mapping[str, Mapping[str, Row]]) -> Table:
    """A line a λ and a way to go on: what the steps of the highest precision's episodes are, for each lower one.

    Args:
        by_lambda: rows of `dmr_gym.tree.report.decision_row` by λ, and by what follows a decision.
    """
    rows = []
    for x, ways in by_lambda.items():
        for after, row in ways.items():
            shares = [row["critical"], row["critical_unknown"], row["fatal"], row["fatal_unknown"]]
            cells = (" / ".join(map(percent, each)) for each in shares)
            rows.append((f"λ={x}, then {after}", str(row["steps"]), percent(row["same"]), *cells))
    columns = ("", "steps", "same", "critical", "unknown", "fatal", "unknown")
    note = "Shares in percent, of each lower precision."
    return Table("Steps of the episodes at the highest precision", columns, tuple(rows), (note,))


def label_table(labels: Sequence[Row]) -> Table:
    """A line a label: how well it finds critical steps.

    Args:
        labels: rows of `dmr_gym.tree.report.label_rows`.
    """
    rows = []
    for row in labels:
        critical, area = percent(row["critical"]), percent(row["average_precision"])
        by_kl = [(f"KL > {each['threshold']:.2g} nats", each) for each in row["at"]]
        by_kl.append((f"KL > {row['kl_st']['threshold']:.2g} nats, τ of KL-ST", row["kl_st"]))
        for label, quality in (*by_kl, ("actions differ", row["actions_differ"])):
            cells = [percent(quality["labelled"])]
            for key in ("precision", "recall"):
                low, high = quality[f"{key}_ci"]
                cells.append(f"{percent(quality[key])} [{percent(low)}, {percent(high)}]")
            rows.append((f"{row['precision']}: {label}", *cells, "" if label == "actions differ" else area, critical))
    columns = ("label", "labelled %", "precision %", "recall %", "average precision %", "critical %")
    return Table("Labels of critical steps", columns, tuple(rows), ("Brackets: 95 % intervals over episodes.",))


def _bounds(bounds: Sequence[float]) -> str:
    low, high = bounds
    return number(low, 3) if high - low < 5e-4 else f"{number(low, 3)} to {number(high, 3)}"
