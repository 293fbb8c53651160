"""From episodes to a row of the paper's Table 1, with its uncertainty.

Episode time in the paper is the mean over successful episodes alone. That flatters a policy which solves only what is
quick to solve, so the mean over all episodes stands beside it.

Shapes: N episodes, P precisions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.metrics.bootstrap import UNKNOWN, Interval, bootstrap_ratio, group_index


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """What one finished episode contributes.

    Attributes:
        task_id: which task was played.
        success: whether it was solved.
        time_s: T of Eq. 9 in seconds; routing decisions count only where a router decided.
        precision_steps: decisions for each of P precisions, the lowest first.
        completion_tokens: tokens generated.
        seed: tells repeated episodes of a task apart.
        score: the world's own score at the end, in [0, 1]; NaN where it is not known.
    """

    task_id: str
    success: bool
    time_s: float
    precision_steps: tuple[int, ...]
    completion_tokens: int
    seed: int = 0
    score: float = math.nan

    @property
    def steps(self) -> int:
        """Decisions made."""
        return sum(self.precision_steps)

    @property
    def high_steps(self) -> int:
        """Decisions for the highest precision."""
        return self.precision_steps[-1]


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
        shares: share of all decisions that chose each of P precisions, the lowest first.
        shares_ci: their intervals.
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
    shares: tuple[float, ...]
    shares_ci: tuple[Interval, ...]
    steps: float
    completion_tokens: float
    mean_return: float
    mean_return_ci: Interval
    speedup_success: float = math.nan
    speedup_all: float = math.nan
    score: float = math.nan
    score_ci: Interval = UNKNOWN

    @property
    def high_share(self) -> float:
        """Share of all decisions that chose the highest precision."""
        return self.shares[-1]


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
    precision_steps = np.array([e.precision_steps for e in episodes], dtype=np.float64)  # (N, P)
    steps = precision_steps.sum(axis=1)
    returns = success - lambda_ * time_s
    score = np.array([e.score for e in episodes])
    ones = np.ones(len(episodes))
    groups = group_index([e.task_id for e in episodes])

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
        shares=tuple(_ratio(column, steps) for column in precision_steps.T),
        shares_ci=tuple(interval(column, steps) for column in precision_steps.T),
        steps=float(steps.mean()),
        completion_tokens=float(np.mean([e.completion_tokens for e in episodes])),
        mean_return=float(returns.mean()),
        mean_return_ci=interval(returns, ones),
        speedup_success=reference.time_success_s / time_success if reference and time_success else math.nan,
        speedup_all=reference.time_all_s / time_all if reference and time_all else math.nan,
        score=float(score.mean()),
        score_ci=interval(score, ones),
    )


def mean_return(
    episodes: Sequence[EpisodeResult], lambda_: float, resamples: int = 2000, seed: int = 0
) -> tuple[float, Interval]:
    """Mean of R = success - lambda * T (Eq. 8) over episodes, and its 95 % interval over tasks."""
    returns = np.array([e.success - lambda_ * e.time_s for e in episodes], dtype=np.float64)
    groups = group_index([e.task_id for e in episodes])
    interval = bootstrap_ratio(returns, np.ones(len(returns)), groups, resamples, np.random.default_rng(seed))
    return float(returns.mean()), interval


@dataclass(frozen=True, slots=True)
class Difference:
    """One policy against another on the same tasks; each ``_ci`` is a 95 % interval over tasks, drawn in pairs.

    Attributes:
        policy: the policy.
        minus: the other.
        success: difference of the shares solved.
        success_ci: its interval.
        time_all_s: difference of the mean episode times over all episodes, in seconds.
        time_all_s_ci: its interval.
        mean_return: difference of the mean returns (Eq. 8).
        mean_return_ci: its interval.
        speedup_all: the other's mean episode time over this one's, over all episodes.
        speedup_all_ci: its interval.
    """

    policy: str
    minus: str
    success: float
    success_ci: Interval
    time_all_s: float
    time_all_s_ci: Interval
    mean_return: float
    mean_return_ci: Interval
    speedup_all: float
    speedup_all_ci: Interval


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
    mine, theirs = task_means(episodes, lambda_), task_means(others, lambda_)
    gaps = mine - theirs  # (tasks, 3)
    ones, groups = np.ones(len(gaps)), np.arange(len(gaps), dtype=np.int64)

    def interval(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> Interval:
        return bootstrap_ratio(numerator, denominator, groups, resamples, np.random.default_rng(seed))

    success, time_all, mean_return = gaps.mean(axis=0).tolist()
    success_ci, time_all_ci, mean_return_ci = (interval(gap, ones) for gap in gaps.T)
    return Difference(
        policy=policy,
        minus=minus,
        success=success,
        success_ci=success_ci,
        time_all_s=time_all,
        time_all_s_ci=time_all_ci,
        mean_return=mean_return,
        mean_return_ci=mean_return_ci,
        speedup_all=_ratio(theirs[:, 1], mine[:, 1]),
        speedup_all_ci=interval(theirs[:, 1], mine[:, 1]),
    )


def task_means(episodes: Sequence[EpisodeResult], lambda_: float) -> NDArray[np.float64]:
    """Mean success, time in seconds and return (Eq. 8) of each task, (tasks, 3), tasks in the order of their ids."""
    values = np.array([(e.success, e.time_s, e.success - lambda_ * e.time_s) for e in episodes], dtype=np.float64)
    groups = group_index([e.task_id for e in episodes])
    sums = np.stack([np.bincount(groups, column) for column in values.T], axis=1)
    means: NDArray[np.float64] = sums / np.bincount(groups)[:, None]
    return means


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> float:
    total = float(denominator.sum())
    return float(numerator.sum()) / total if total else math.nan
