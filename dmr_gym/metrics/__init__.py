"""Arithmetic of an evaluation, as pure functions.

* `summary`: from episodes to the numbers of the paper's Table 1, and paired differences of policies;
* `bootstrap`: their intervals over tasks;
* `frontier`: policies as operating points: the average rank of section 5.3, the gap recovered, Pareto distance, and the
  gap to an oracle;
* `accuracy`: of predicted labels.
"""

from __future__ import annotations

from dmr_gym.metrics.accuracy import balanced_accuracy
from dmr_gym.metrics.bootstrap import Interval, bootstrap_ratio
from dmr_gym.metrics.frontier import (
    OperatingPoint,
    Selection,
    average_gap_recovered,
    average_ranks,
    gap_recovered,
    oracle_gap,
    pareto_distance,
    select_by_rank,
)
from dmr_gym.metrics.summary import (
    Difference,
    EpisodeResult,
    Summary,
    mean_return,
    paired_difference,
    summarize,
    task_means,
)

__all__ = [
    "Difference",
    "EpisodeResult",
    "Interval",
    "OperatingPoint",
    "Selection",
    "Summary",
    "average_gap_recovered",
    "average_ranks",
    "balanced_accuracy",
    "bootstrap_ratio",
    "gap_recovered",
    "mean_return",
    "oracle_gap",
    "paired_difference",
    "pareto_distance",
    "select_by_rank",
    "summarize",
    "task_means",
]
