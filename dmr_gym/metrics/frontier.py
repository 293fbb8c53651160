"""Policies as operating points, success against time: ranks, frontier, gap recovered, and the gap to an oracle.

Shapes: N points.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dmr_gym.errors import ConfigError
from dmr_gym.metrics.bootstrap import Interval, bootstrap_ratio
from dmr_gym.metrics.summary import EpisodeResult, task_means


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where one policy lies.

    Attributes:
        name: of the policy.
        kind: "high", "low", "router", "grpo", ...
        success: share of tasks solved.
        time_s: mean episode time in seconds; NaN where nothing was solved and only solved episodes count.
    """

    name: str
    kind: str
    success: float
    time_s: float


@dataclass(frozen=True, slots=True)
class Selection:
    """The choice of section 5.3 in one pool of operating points.

    Attributes:
        names: of the pool's points.
        ranks: average rank of each, lower is better.
        best: names of the candidates with the best rank: more than one where they tie.
        kinds: the kinds that have a best candidate, to which the paper attributes the win.
    """

    names: tuple[str, ...]
    ranks: tuple[float, ...]
    best: tuple[str, ...]
    kinds: tuple[str, ...]


def average_ranks(success: Sequence[float], time_s: Sequence[float]) -> list[float]:
    """Rank operating points as in section 5.3: the mean of the success rank (descending) and the time rank (ascending).

    Ties share the mean of their ranks. Ranks start at 1, and a lower average is better.

    Args:
        success: success rate of each point.
        time_s: episode time of each point in seconds; NaN (nothing solved) ranks last.
    """
    times = [math.inf if math.isnan(t) else t for t in time_s]
    pairs = zip(_ranks([-s for s in success]), _ranks(times), strict=True)
    return [(a + b) / 2 for a, b in pairs]


def select_by_rank(pool: Sequence[OperatingPoint], candidates: Collection[str]) -> Selection:
    """Choose the best-ranked router of a pool; the other points only anchor the ranks (section 5.3).

    The paper's pool has eight points: KL-ST at three budgets, GRPO at three λ, and both single precisions.

    Args:
        pool: the points that are ranked together.
        candidates: kinds among which the best is chosen.

    Raises:
        ConfigError: the pool has no candidate.
    """
    ranks = average_ranks([point.success for point in pool], [point.time_s for point in pool])
    eligible = [(rank, point) for rank, point in zip(ranks, pool, strict=True) if point.kind in candidates]
    if not eligible:
        raise ConfigError(f"a selection needs a point of the kinds {', '.join(sorted(candidates))}, the pool has none")
    lowest = min(rank for rank, _ in eligible)
    best = [point for rank, point in eligible if rank == lowest]
    return Selection(
        names=tuple(point.name for point in pool),
        ranks=tuple(ranks),
        best=tuple(point.name for point in best),
        kinds=tuple(dict.fromkeys(point.kind for point in best)),
    )


def gap_recovered(value: float, low: float, high: float) -> float:
    """PGR: the share of the gap between always low (0) and always high (1) that a policy recovers; NaN without a gap.

    Args:
        value: performance of the policy, such as its success rate.
        low: of the lowest precision alone.
        high: of the highest precision alone.
    """
    return (value - low) / (high - low) if high != low else math.nan


def average_gap_recovered(shares: Sequence[float], values: Sequence[float], low: float, high: float) -> float:
    """APGR: the mean of PGR over the share of high-precision steps, the area under its curve from 0 to 1.

    RouteLLM (Ong et al., 2025) averages PGR over ten shares; here the curve through the measured points is integrated
    by the trapezoid rule, with always low at share 0 and always high at share 1 for its ends. Points of equal share
    count as their mean. Routing that gains in proportion to its share has 0.5.

    Args:
        shares: realised share of high-precision steps of each operating point, in [0, 1].
        values: its performance.
        low: performance of the lowest precision alone.
        high: performance of the highest precision alone.

    Returns:
        APGR; NaN where there is no gap to recover, or no point.

    Raises:
        ConfigError: another number of values than of shares, or a share outside [0, 1].
    """
    if len(shares) != len(values) or not all(0.0 <= share <= 1.0 for share in shares):
        raise ConfigError(f"APGR needs a value for each share in [0, 1], got {list(shares)} and {list(values)}")
    if not shares or high == low:
        return math.nan
    curve: dict[float, list[float]] = {0.0: [0.0], 1.0: [1.0]}
    for share, value in zip(shares, values, strict=True):
        # What a router does at an end stands beside the single precision there.
        curve.setdefault(share, []).append(gap_recovered(value, low, high))
    knots = sorted(curve)
    heights = [sum(curve[knot]) / len(curve[knot]) for knot in knots]
    return float(np.trapezoid(heights, knots))


def pareto_distance(point: OperatingPoint, others: Sequence[OperatingPoint], reference_s: float) -> float:
    """How far a point lies behind the frontier of others: 0 where none of them beats it on both axes.

    The least ε by which it would have to gain in success, and in time as a share of the reference's, to be beaten on
    both axes by nobody: max over the others of min(success gap, time gap), at least 0. It is the Chebyshev distance to
    the region that the others do not dominate.

    Args:
        point: to be judged.
        others: that span the frontier; the point itself among them does no harm.
        reference_s: episode time that counts as one unit, that of always-high, in seconds.

    Raises:
        ConfigError: a reference time that is not positive.
    """
    if not reference_s > 0:
        raise ConfigError(f"the reference time must be a positive number of seconds, got {reference_s!r}")

    def behind(other: OperatingPoint) -> float:
        mine = math.inf if math.isnan(point.time_s) else point.time_s
        if math.isnan(other.time_s):
            return 0.0
        return min(other.success - point.success, (mine - other.time_s) / reference_s)

    return max([0.0, *map(behind, others)])


def oracle_gap(
    episodes: Sequence[EpisodeResult],
    oracle: Mapping[str, float],
    lambda_: float,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, Interval]:
    """How much return a policy leaves on the table: the mean of the oracle's return minus its own, task by task.

    Args:
        episodes: of the policy; several of a task count as their mean.
        oracle: best return of each task at this λ (Eq. 8).
        lambda_: price of a second of latency in units of reward.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Returns:
        The gap, and its 95 % interval over tasks.

    Raises:
        ConfigError: no episodes, or a task that the oracle does not know.
    """
    tasks = sorted({episode.task_id for episode in episodes})
    missing = [task for task in tasks if task not in oracle]
    if missing or not tasks:
        raise ConfigError(
            f"the oracle lacks {len(missing)} of the {len(tasks)} tasks that were played"
            + (f", such as {missing[0]!r}: use one of the same panel" if missing else "")
        )
    gaps = np.array([oracle[task] for task in tasks]) - task_means(episodes, lambda_)[:, 2]
    interval = bootstrap_ratio(
        gaps, np.ones(len(gaps)), np.arange(len(gaps), dtype=np.int64), resamples, np.random.default_rng(seed)
    )
    return float(gaps.mean()), interval


def _ranks(values: Sequence[float]) -> list[float]:
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]
