"""The paper's ablations as tables: what was varied, and what it did (Tables 2, 4 and 5, Appendix D).

Shapes: N steps, P precisions, S seeds, T tasks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.calibration import KL_FLOOR, find_plateau
from dmr_gym.errors import ConfigError
from dmr_gym.kl_dataset import KLDataset
from dmr_gym.metrics import Difference, Interval
from dmr_gym.result_tables import TIME_NOTE
from dmr_gym.tables import Table, number, percent, with_interval
from dmr_gym.types import FloatArray

PLACES = ("edge", "plateau", "plateau edge", "dense mode")
"""Where the paper puts the threshold on KL (section 5.5)."""

NEAR_ZERO_KL, LARGE_KL = 0.01, 0.1
"""Bounds of Table 4 in nats; the paper's second one is not known."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One setting of an ablation, trained with S seeds and evaluated.

    Attributes:
        name: of the setting.
        balanced_accuracy: on held-out tasks, the mean over seeds.
        singles: rows of the single precisions in ``results.json``.
        budgets: rows of the router at each budget K.
        threshold: τ of each lower precision that the labels were made with, in nats, from the first seed.
    """

    name: str
    balanced_accuracy: float
    singles: tuple[Row, ...]
    budgets: tuple[Row, ...]
    threshold: tuple[float, ...]

    @property
    def mean_success(self) -> float:
        """Success averaged over the budgets, as in Table 2."""
        return float(np.mean([row["success"] for row in self.budgets]))

    def as_data(self) -> dict[str, Any]:
        """All of it as plain data."""
        rows = {"singles": list(self.singles), "budgets": list(self.budgets)}
        accuracy = {"balanced_accuracy": self.balanced_accuracy, "mean_success": self.mean_success}
        return {"variant": self.name, **accuracy, "threshold": list(self.threshold), **rows}

    @classmethod
    def read(cls, name: str, trained: Sequence[Path], evaluated: Path) -> Variant:
        """Read what the recipes left.

        Args:
            name: of the setting.
            trained: folders of agents/train_kl_st.py, one a seed.
            evaluated: folder of agents/evaluate.py.
        """
        records = [json.loads((folder / "run.json").read_text(encoding="utf-8")) for folder in trained]
        rows = json.loads((evaluated / "results.json").read_text(encoding="utf-8"))["results"]
        return cls(
            name=name,
            balanced_accuracy=float(np.mean([record["best"]["balanced_accuracy"] for record in records])),
            singles=tuple(row for row in rows if row["kind"] in ("high", "low")),
            budgets=tuple(row for row in rows if row["kind"] == "router" and row["budget"] is not None),
            threshold=tuple(records[0]["labelling"]["thresholds"]),
        )


def threshold_places(kls: FloatArray) -> dict[str, tuple[float, ...]]:
    """Four thresholds on KL by where they lie in its distribution (section 5.5, Table 2a).

    * edge: the far left of the low mode, where only nearly identical steps, a twentieth of the mode, lie below;
    * plateau: its middle, what agents/train_kl_st.py takes;
    * plateau edge: its right end;
    * dense mode: the median of the high mode.

    Args:
        kls: (N, P - 1) KL of each lower precision in nats.

    Returns:
        P - 1 thresholds in nats for each of `PLACES`.

    Raises:
        ConfigError: the KLs of a precision have no plateau.
    """
    found: list[tuple[float, ...]] = []
    for index, column in enumerate(kls.T):
        plateau = find_plateau(column)
        if not plateau.bimodal:
            raise ConfigError(
                f"the KLs of lower precision {index} have no plateau to place thresholds by: name four with --taus"
            )
        values = np.clip(column.astype(np.float64), KL_FLOOR, None)
        edge = float(np.quantile(values[values <= plateau.low], 0.05))
        dense = float(np.median(values[values > plateau.high]))
        found.append((edge, plateau.threshold, plateau.high, dense))
    return dict(zip(PLACES, zip(*found, strict=True), strict=True))


def depth_table(variants: Sequence[Variant], where: str) -> Table:
    """Table 2b: a group of lines a depth, a line a budget."""
    return _size_table("Router depth (Table 2b)", "layers", variants, where)


def width_table(variants: Sequence[Variant], where: str) -> Table:
    """As Table 2b, for routers of different widths."""
    return _size_table("Router width", "width", variants, where)


def _size_table(title: str, size: str, variants: Sequence[Variant], where: str) -> Table:
    rows = []
    for variant in variants:
        for index, row in enumerate(variant.budgets):
            head = (variant.name, percent(variant.balanced_accuracy), percent(variant.mean_success))
            rows.append((*(head if index == 0 else ("", "", "")), *_budget_cells(row)))
    columns = (size, "bAcc. %", "mean success %", "K", "success %", "EP time, s", "time of all, s")
    note = "bAcc.: balanced accuracy on held-out tasks. Mean success: over the budgets."
    return Table(title, columns, tuple(rows), (note, *_notes(variants, where)))


def threshold_table(variants: Sequence[Variant], where: str) -> Table:
    """Table 2a: a group of lines a threshold, a line a budget."""
    rows = []
    for variant in variants:
        tau = " / ".join(f"{value:.2g}" for value in variant.threshold)
        for index, row in enumerate(variant.budgets):
            k, success, *times = _budget_cells(row)
            head = (variant.name, tau, percent(variant.mean_success)) if index == 0 else ("", "", "")
            rows.append((*head, k, success, number(row["score"], 3), *times))
    columns = ("place", "τ, nats", "mean success %", "K", "success %", "score", "EP time, s", "time of all, s")
    return Table("Threshold on KL (Table 2a)", columns, tuple(rows), _notes(variants, where), left=2)


def tokens_table(action: Variant, everything: Variant, differences: Sequence[Difference], where: str) -> Table:
    """Table 5: action-only against all steps and tokens, a line a budget.

    Args:
        action: the variant AO.
        everything: the variant AS.
        differences: AO minus AS at each budget, task by task.
        where: id and panel.
    """
    rows = [
        (
            f"{ao['budget']:g}",
            percent(ao["success"], 2),
            number(ao["time_success_s"], 2),
            percent(all_steps["success"], 2),
            number(all_steps["time_success_s"], 2),
            with_interval(d.success, d.success_ci, 2, 100, sign=True),
            f"{number(ao['speedup_success'], 2)}x",
        )
        for ao, all_steps, d in zip(action.budgets, everything.budgets, differences, strict=True)
    ]
    columns = ("K", "AO %", "AO EP time, s", "AS %", "AS EP time, s", "Δ, points", "Spd.")
    note = "AO: action steps alone. AS: all steps, and the KL over all tokens. Spd.: of AO over the highest precision."
    return Table("Action-only against all tokens (Table 5)", columns, tuple(rows), (note, *_notes([action], where)))


def step_type_rows(cells: Mapping[str, tuple[KLDataset, Sequence[str]]]) -> list[dict[str, Any]]:
    """The numbers of Table 4 as plain data: one row a data set and lower precision, and one of all pooled.

    Args:
        cells: data set and names of its lower precisions, by the name of the cell.

    Returns:
        Rows of the cell's name and, by type of step, the number of steps, their mean KL of the action block in nats,
        and the shares of them near zero and large.
    """
    rows: list[dict[str, Any]] = []
    pooled: dict[str, list[FloatArray]] = {}
    for name, (dataset, lower) in cells.items():
        for index, precision in enumerate(lower):
            parts = kl_by_type(dataset, index)
            rows.append({"cell": f"{name} {precision}".strip(), "types": _type_figures(parts)})
            for kind, values in parts.items():
                pooled.setdefault(kind, []).append(values)
    if len(rows) > 1:
        joined = {kind: np.concatenate(parts) for kind, parts in pooled.items()}
        rows.append({"cell": "Pooled", "types": _type_figures(joined)})
    return rows


def step_type_table(rows: Sequence[Row]) -> Table:
    """Table 4: the KL of the action block by type of step, a line a row of `step_type_rows`."""
    types = sorted({kind for row in rows for kind in row["types"]})
    titles = ("mean KL", f"% KL < {NEAR_ZERO_KL:g}", f"% KL > {LARGE_KL:g}")
    columns = (
        "cell",
        *(f"{title}, {kind}" for title in titles for kind in types),
        *(f"{kind} steps" for kind in types),
    )
    lines = tuple((row["cell"], *_type_cells(row["types"], types)) for row in rows)
    note = "KL of the action block in nats, on the highest precision's own episodes."
    return Table("KL by type of step (Table 4)", columns, lines, (note,))


def kl_by_type(dataset: KLDataset, index: int) -> dict[str, FloatArray]:
    """The action-block KLs (N,) of one lower precision, by type of step."""
    types = np.array(dataset.step_types)
    return {str(kind): dataset.kl_action[types == kind, index] for kind in np.unique(types)}


def advantage_table(record: Mapping[str, Any]) -> Table:
    """GRPO's two ways to compute advantages side by side, a line a λ and way.

    Args:
        record: a ``results.json`` that agents/compare_grpo.py wrote with ``--advantages`` of two.
    """
    grpo = [row for row in record["results"] if row["kind"] == "grpo"]
    ways = list(dict.fromkeys(row["advantages"] for row in grpo))
    gaps = {gap["lambda"]: gap for gap in record["advantage_gaps"]}
    lines = []
    for lambda_ in dict.fromkeys(row["lambda"] for row in grpo):
        for row in (row for row in grpo if row["lambda"] == lambda_):
            first = row["advantages"] == ways[0]
            runs = [c for c in record["courses"] if (c["lambda"], c["advantages"]) == (lambda_, row["advantages"])]
            between = gaps[lambda_]
            gap = with_interval(between["return"], Interval(**between["return_ci"]), 3, sign=True) if first else ""
            lines.append(
                (
                    f"{lambda_:g}" if first else "",
                    row["advantages"],
                    with_interval(row["return"], Interval(**row["return_ci"]), 3),
                    percent(row["success"]),
                    number(row["time_s"], 2),
                    percent(row["high_share"], 0),
                    gap,
                    " / ".join(number(run["returns"][-1], 3) for run in runs),
                    " / ".join(percent(run["high_shares"][-1], 0) for run in runs),
                )
            )
    numbers = ("return", "success %", "time of all, s", "high %", " − ".join(ways))
    columns = ("λ", "advantages", *numbers, "held-out return, last update", "high %, last update")
    notes = (
        f"{record['settings']['seeds']} training seeds; 95 % intervals over seeds and tasks, differences paired by "
        "seed and task.",
        "Returns are of the routers that were kept, the best on held-out tasks, which may be the first one. The last "
        "two columns are those tasks at the end of training, a number a seed: where it leads to.",
    )
    return Table("Advantages of GRPO", columns, tuple(lines), notes, left=2)


def _budget_cells(row: Row) -> tuple[str, str, str, str]:
    success = with_interval(row["success"], Interval(**row["success_ci"]), 1, 100)
    return f"{row['budget']:g}", success, number(row["time_success_s"], 2), number(row["time_all_s"], 2)


def _type_figures(parts: Mapping[str, FloatArray]) -> dict[str, dict[str, float]]:
    return {
        kind: {
            "steps": len(values),
            "mean_kl": float(values.mean()),
            "near_zero": float((values < NEAR_ZERO_KL).mean()),
            "large": float((values > LARGE_KL).mean()),
        }
        for kind, values in parts.items()
    }


def _type_cells(figures: Mapping[str, Row], types: Sequence[str]) -> tuple[str, ...]:
    def cells(name: str, text: Callable[[float], str]) -> list[str]:
        return [text(figures[kind][name]) if kind in figures else "–" for kind in types]

    steps = [str(figures[kind]["steps"] if kind in figures else 0) for kind in types]
    means = cells("mean_kl", lambda value: f"{value:.3g}")
    return (*means, *cells("near_zero", percent), *cells("large", percent), *steps)


def _notes(variants: Sequence[Variant], where: str) -> tuple[str, ...]:
    seeds, single = len(variants[0].budgets[0]["seeds"]), variants[0].singles
    beside = "; ".join(
        f"{row['policy']} {percent(row['success'])} %, {number(row['time_success_s'], 2)} s" for row in single
    )
    return f"{where}, {seeds} router seeds. Brackets: 95 % intervals over tasks. {beside}.", TIME_NOTE
