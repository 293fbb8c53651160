"""What a calibration found as tables: budgets with thresholds and shares, and the pools of scores (Appendix D)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmr_gym.calibration import StepShare, Threshold
from dmr_gym.metrics import Interval
from dmr_gym.tables import Table, number, percent


def budget_table(
    thresholds: Sequence[Threshold], shares: Sequence[StepShare], checks: Sequence[StepShare] = (), panel: str = ""
) -> Table:
    """A line a budget: its threshold, and the shares of steps at or above it.

    Args:
        thresholds: one a budget.
        shares: one a threshold, on the calibration panel.
        checks: one a threshold, on another panel; none where none was played.
        panel: name of that panel.
    """
    rows = []
    for index, (threshold, share) in enumerate(zip(thresholds, shares, strict=True)):
        row = [f"{100 * threshold.budget:g}", f"{threshold.value:.4g}", str(threshold.tied_steps)]
        row += [percent(share.share), _bracket(share.binomial_ci), _bracket(share.episodes_ci)]
        if checks:
            row += [percent(checks[index].share), _bracket(checks[index].episodes_ci)]
        rows.append(tuple(row))
    checked = [f"{panel} %", "episodes resampled"] if checks else []
    columns = ("K %", "τ", "tied steps", "realised %", "steps independent", "episodes resampled", *checked)
    pool = shares[0]
    note = (
        f"{pool.n_steps} router-eligible steps of {pool.n_episodes} calibration episodes. Brackets: 95 % intervals of "
        "the share before them, as if steps were independent, and with whole episodes resampled."
    )
    return Table("Thresholds that keep budgets of high-precision steps", columns, tuple(rows), (note,), left=0)


def shift_table(pools: Mapping[str, Mapping[str, Any]]) -> Table:
    """Appendix D in numbers: how the scores lie, on training histories where they are known, and at deployment.

    Args:
        pools: what `describe_scores` says of each pool, by its name.
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
        for name, pool in pools.items()
    )
    columns = ("pool", "steps", "mean p(high)", "percentile of 0.5", "routed high at 0.5, %", "5 %", "median", "95 %")
    note = "Scores p(high) on router-eligible steps; the last three columns are quantiles."
    title = "Shift of scores from training to deployment (Appendix D)" if len(pools) > 1 else "Scores at deployment"
    return Table(title, columns, rows, (note,))


def _bracket(interval: Interval) -> str:
    return f"[{percent(interval.low)}, {percent(interval.high)}]"
