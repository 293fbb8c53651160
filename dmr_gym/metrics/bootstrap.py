"""Intervals by drawing whole tasks anew: episodes of one task are not independent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmr_gym.types import IntArray


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval; each field and function that has one says of which kind."""

    low: float
    high: float


UNKNOWN = Interval(math.nan, math.nan)
"""The interval of what is not known."""


def bootstrap_ratio(
    numerator: NDArray[np.float64],
    denominator: NDArray[np.float64],
    groups: IntArray,
    resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> Interval:
    """Interval of Σ numerator / Σ denominator when whole tasks are drawn anew.

    Episodes of one task are not independent, so a task is drawn with all of them. A mean is the ratio to ones; a mean
    over solved episodes is the ratio of (value · success) to success.

    Args:
        numerator: (N,) one entry an episode.
        denominator: (N,) one entry an episode.
        groups: (N,) int64 index of the episode's task, from 0 without gaps.
        resamples: how often the tasks are drawn.
        rng: source of the draws.
        level: share of the resampled ratios that the interval holds.

    Returns:
        The interval; NaN at both ends where no resample has a positive denominator.
    """
    n_tasks = int(groups.max()) + 1
    top = np.bincount(groups, numerator, n_tasks)
    bottom = np.bincount(groups, denominator, n_tasks)
    draws = rng.integers(n_tasks, size=(resamples, n_tasks))
    tops, bottoms = top[draws].sum(axis=1), bottom[draws].sum(axis=1)
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    if not ratios.size:
        return UNKNOWN
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def group_index(names: Sequence[str]) -> IntArray:
    """Number the groups: (N,) int64, equal where the names are equal, in the order of the sorted names."""
    index: IntArray = np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)
    return index
