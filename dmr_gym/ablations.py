"""The paper's ablations as tables: what was varied, and what it did (Tables 2, 4 and 5, Appendix D).

Shapes: N steps, P precisions, S seeds, T tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
    rows = []
    for variant in variants:
        for index, row in enumerate(variant.budgets):
            head = (variant.name, percent(variant.balanced_accuracy), percent(variant.mean_success))
            rows.append((*(head if index == 0 else ("", "", "")), *_budget_cells(row)))
    columns = ("layers", "bAcc. %", "mean success %", "K", "success %", "EP time, s", "time of all, s")
    note = "bAcc.: balanced accuracy on held-out tasks. Mean success: over the budgets."
    return Table("Router depth (Table 2b)", columns, tuple(rows), (note, *_notes(variants, where)))


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


def step_type_table(cells: Mapping[str, tuple[KLDataset, Sequence[str]]]) -> Table:
    """Table 4: the KL of the action block by type of step, a line a data set and lower precision, and all pooled.

    Args:
        cells: data set and names of its lower precisions, by the name of the cell.
    """
    types = sorted({kind for dataset, _ in cells.values() for kind in dataset.step_types})
    titles = ("mean KL", f"% KL < {NEAR_ZERO_KL:g}", f"% KL > {LARGE_KL:g}")
    columns = (
        "cell",
        *(f"{title}, {kind}" for title in titles for kind in types),
        *(f"{kind} steps" for kind in types),
    )
    pooled: dict[str, list[FloatArray]] = {kind: [] for kind in types}
    rows = []
    for name, (dataset, lower) in cells.items():
        for index, precision in enumerate(lower):
            parts = kl_by_type(dataset, index)
            for kind, values in parts.items():
                pooled[kind].append(values)
            rows.append((f"{name} {precision}".strip(), *_type_cells(parts, types)))
    if len(rows) > 1:
        joined = {kind: np.concatenate(parts) for kind, parts in pooled.items() if parts}
        rows.append(("Pooled", *_type_cells(joined, types)))
    note = "KL of the action block in nats, on the highest precision's own episodes."
    return Table("KL by type of step (Table 4)", columns, tuple(rows), (note,))


def kl_by_type(dataset: KLDataset, index: int) -> dict[str, FloatArray]:
    """The action-block KLs (N,) of one lower precision, by type of step."""
    types = np.array(dataset.step_types)
    return {str(kind): dataset.kl_action[types == kind, index] for kind in np.unique(types)}


def shift_table(record: Mapping[str, Any]) -> Table:
    """Appendix D in numbers: how the scores lie on training histories and at deployment.

    Args:
        record: a ``thresholds.json`` that agents/calibrate.py wrote with ``--data``.
    """
    rows = tuple(
        (
            name,
            str(pool["steps"]),
            number(pool["mean"], 3),
            number(pool["percentile_of_half"], 1),
            percent(pool["share_at_least_half"]),
            *(number(pool["quantiles"][q], 3) for q in ("0.05", "0.50", "0.95")),
        )
        for name, pool in record["pools"].items()
    )
    columns = ("pool", "steps", "mean p(high)", "percentile of 0.5", "routed high at 0.5, %", "5 %", "median", "95 %")
    note = "Scores p(high) on router-eligible steps; the last three columns are quantiles."
    return Table("Shift of scores from training to deployment (Appendix D)", columns, rows, (note,))


def advantage_table(rows: Sequence[Row], gaps: Mapping[float, tuple[float, Interval]], seeds: int) -> Table:
    """GRPO's ways to compute advantages side by side, a line a λ and way.

    Args:
        rows: of the ``results.json`` that agents/compare_grpo.py wrote.
        gaps: by λ, the return with the first way minus that with the second.
        seeds: training runs of each.
    """
    grpo = [row for row in rows if row["kind"] == "grpo"]
    ways = list(dict.fromkeys(row["advantages"] for row in grpo))
    lines = []
    for lambda_ in dict.fromkeys(row["lambda"] for row in grpo):
        for row in (row for row in grpo if row["lambda"] == lambda_):
            first = row["advantages"] == ways[0]
            gap = with_interval(*gaps[lambda_], 3, sign=True) if first else ""
            lines.append(
                (
                    f"{lambda_:g}" if first else "",
                    row["advantages"],
                    with_interval(row["return"], Interval(**row["return_ci"]), 3),
                    percent(row["success"]),
                    number(row["time_s"], 2),
                    percent(row["high_share"], 0),
                    gap,
                )
            )
    columns = ("λ", "advantages", "return", "success %", "time of all, s", "high %", " − ".join(ways))
    note = f"{seeds} training seeds; 95 % intervals over seeds and tasks, differences paired by seed and task."
    return Table("Advantages of GRPO", columns, tuple(lines), (note,), left=2)


def _budget_cells(row: Row) -> tuple[str, str, str, str]:
    success = with_interval(row["success"], Interval(**row["success_ci"]), 1, 100)
    return f"{row['budget']:g}", success, number(row["time_success_s"], 2), number(row["time_all_s"], 2)


def _type_cells(parts: Mapping[str, FloatArray], types: Sequence[str]) -> tuple[str, ...]:
    known = [parts.get(kind, np.zeros(0, np.float32)) for kind in types]

    def cells(figure: Any) -> list[str]:
        return [figure(values) if len(values) else "–" for values in known]

    means = cells(lambda values: f"{values.mean():.3g}")
    near = cells(lambda values: percent(float((values < NEAR_ZERO_KL).mean())))
    large = cells(lambda values: percent(float((values > LARGE_KL).mean())))
    return (*means, *near, *large, *(str(len(values)) for values in known))


def _notes(variants: Sequence[Variant], where: str) -> tuple[str, ...]:
    seeds, single = len(variants[0].budgets[0]["seeds"]), variants[0].singles
    beside = "; ".join(
        f"{row['policy']} {percent(row['success'])} %, {number(row['time_success_s'], 2)} s" for row in single
    )
    return f"{where}, {seeds} router seeds. Brackets: 95 % intervals over tasks. {beside}.", TIME_NOTE
