"""Arithmetic of an evaluation: from episodes to the numbers of the paper's Table 1, with their uncertainty.

Episode time in the paper is the mean over successful episodes alone. That flatters a policy which solves only what is
quick to solve, so the mean over all episodes stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.types import IntArray


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """What one finished episode contributes.

    Attributes:
        task_id: which task was played.
        success: whether it was solved.
        time_s: T of Eq. 9 in seconds; routing decisions count only where a router decided.
        steps: decisions made.
        high_steps: decisions for the highest precision.
        completion_tokens: tokens generated.
        seed: tells repeated episodes of a task apart.
        score: the world's own score at the end, in [0, 1]; NaN where it is not known.
    """

    task_id: str
    success: bool
    time_s: float
    steps: int
    high_steps: int
    completion_tokens: int
    seed: int = 0
    score: float = math.nan


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval; each field and function that has one says of which kind."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Summary:
    """One policy on one panel; each ``_ci`` is a 95 % interval over tasks.

    Attributes:
        policy: its name.
        episodes: number played.
        success: share solved.
        success_ci: its interval.
        time_success_s: mean episode time over solved episodes in seconds (the paper's EP time); NaN if none is solved.
        time_success_s_ci: its interval.
        time_all_s: mean episode time over all episodes in seconds.
        time_all_s_ci: its interval.
        high_share: share of all decisions that chose the highest precision.
        steps: mean decisions an episode.
        completion_tokens: mean tokens an episode.
        mean_return: mean of R = success - lambda * T (Eq. 8).
        mean_return_ci: its interval.
        speedup_success: the reference's ``time_success_s`` over this one's; NaN without a reference.
        speedup_all: the same with ``time_all_s``.
        score: mean of the world's own score; NaN where one is not known.
        score_ci: its interval.
    """

    policy: str
    episodes: int
    success: float
    success_ci: Interval
    time_success_s: float
    time_success_s_ci: Interval
    time_all_s: float
    time_all_s_ci: Interval
    high_share: float
    steps: float
    completion_tokens: float
    mean_return: float
    mean_return_ci: Interval
    speedup_success: float = math.nan
    speedup_all: float = math.nan
    score: float = math.nan
    score_ci: Interval = Interval(math.nan, math.nan)


def summarize(
    policy: str,
    episodes: Sequence[EpisodeResult],
    lambda_: float,
    reference: Summary | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Reduce the episodes of one policy to its row of the result table.

    Args:
        policy: name of the row.
        episodes: at least one.
        lambda_: price of a second of latency in units of reward (Eq. 8).
        reference: always-high on the same panel, for the speedups.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ConfigError: no episodes.
    """
    if not episodes:
        raise ConfigError(f"{policy}: there are no episodes to summarize")
    success = np.array([e.success for e in episodes], dtype=np.float64)
    time_s = np.array([e.time_s for e in episodes])
    steps = np.array([e.steps for e in episodes], dtype=np.float64)
    high_steps = np.array([e.high_steps for e in episodes], dtype=np.float64)
    returns = success - lambda_ * time_s
    score = np.array([e.score for e in episodes])
    ones = np.ones(len(episodes))
    groups = _group_index([e.task_id for e in episodes])

    def interval(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> Interval:
        return bootstrap_ratio(numerator, denominator, groups, resamples, np.random.default_rng(seed))

    time_success, time_all = _ratio(time_s * success, success), float(time_s.mean())
    return Summary(
        policy=policy,
        episodes=len(episodes),
        success=float(success.mean()),
        success_ci=interval(success, ones),
        time_success_s=time_success,
        time_success_s_ci=interval(time_s * success, success),
        time_all_s=time_all,
        time_all_s_ci=interval(time_s, ones),
        high_share=_ratio(high_steps, steps),
        steps=float(steps.mean()),
        completion_tokens=float(np.mean([e.completion_tokens for e in episodes])),
        mean_return=float(returns.mean()),
        mean_return_ci=interval(returns, ones),
        speedup_success=reference.time_success_s / time_success if reference and time_success else math.nan,
        speedup_all=reference.time_all_s / time_all if reference and time_all else math.nan,
        score=float(score.mean()),
        score_ci=interval(score, ones),
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """One policy minus another on the same tasks; each ``_ci`` is a 95 % interval over tasks, drawn in pairs.

    Attributes:
        policy: the policy.
        minus: the other.
        success: difference of the shares solved.
        success_ci: its interval.
        time_all_s: difference of the mean episode times over all episodes, in seconds.
        time_all_s_ci: its interval.
        mean_return: difference of the mean returns (Eq. 8).
        mean_return_ci: its interval.
    """

    policy: str
    minus: str
    success: float
    success_ci: Interval
    time_all_s: float
    time_all_s_ci: Interval
    mean_return: float
    mean_return_ci: Interval


def paired_difference(
    policy: str,
    episodes: Sequence[EpisodeResult],
    minus: str,
    others: Sequence[EpisodeResult],
    lambda_: float,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare two policies task by task; most of what makes tasks differ cancels, so the intervals are narrow.

    Args:
        policy: name of the policy.
        episodes: its episodes; several of a task count as their mean.
        minus: name of the other policy.
        others: its episodes, on the same tasks.
        lambda_: price of a second of latency in units of reward (Eq. 8).
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ConfigError: no episodes, or other tasks.
    """
    if not episodes or {e.task_id for e in episodes} != {e.task_id for e in others}:
        raise ConfigError(f"{policy} minus {minus}: both need episodes of the same tasks")
    gaps = _task_means(episodes, lambda_) - _task_means(others, lambda_)  # (tasks, 3)
    ones, groups = np.ones(len(gaps)), np.arange(len(gaps), dtype=np.int64)
    intervals = [bootstrap_ratio(gap, ones, groups, resamples, np.random.default_rng(seed)) for gap in gaps.T]
    success, time_all, mean_return = gaps.mean(axis=0).tolist()
    return Difference(policy, minus, success, intervals[0], time_all, intervals[1], mean_return, intervals[2])


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
        return Interval(math.nan, math.nan)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def balanced_accuracy(labels: IntArray, predictions: IntArray) -> float:
    """Mean over the classes that occur of the share of their labels that were predicted.

    Args:
        labels: (N,) int64.
        predictions: (N,) int64.

    Raises:
        ConfigError: shapes differ, or there are no labels.
    """
    if labels.shape != predictions.shape or labels.ndim != 1 or not labels.size:
        raise ConfigError(f"balanced accuracy needs two (N,) arrays, got {labels.shape} and {predictions.shape}")
    return float(np.mean([(predictions[labels == c] == c).mean() for c in np.unique(labels)]))


def average_ranks(success: Sequence[float], time_s: Sequence[float]) -> list[float]:
    """Rank operating points as in section 5.3: the mean of the success rank (descending) and the time rank (ascending).

    Ties share the mean of their ranks. Ranks start at 1, and a lower average is better.

    Args:
        success: success rate of each point.
        time_s: episode time of each point in seconds; NaN (nothing solved) ranks last.
    """
    times = [float("inf") if np.isnan(t) else t for t in time_s]
    pairs = zip(_ranks([-s for s in success]), _ranks(times), strict=True)
    return [(a + b) / 2 for a, b in pairs]


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> float:
    total = float(denominator.sum())
    return float(numerator.sum()) / total if total else math.nan


def _task_means(episodes: Sequence[EpisodeResult], lambda_: float) -> NDArray[np.float64]:
    """Mean success, time and return of each task, (tasks, 3), tasks in the order of their ids."""
    values = np.array([(e.success, e.time_s, e.success - lambda_ * e.time_s) for e in episodes], dtype=np.float64)
    groups = _group_index([e.task_id for e in episodes])
    sums = np.stack([np.bincount(groups, column) for column in values.T], axis=1)
    means: NDArray[np.float64] = sums / np.bincount(groups)[:, None]
    return means


def _group_index(names: Sequence[str]) -> IntArray:
    index: IntArray = np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)
    return index
