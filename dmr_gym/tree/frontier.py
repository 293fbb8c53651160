"""What routing can reach on a panel: the exact frontier of success and latency.

Under greedy decoding a task ends in success or in failure, and a routing that cares for success and latency alone needs
of each task two numbers: the least time to a success and the least time to a failure. So a task has at most two points
that are not dominated, and the best panel with k successes solves the k tasks in which success costs the least extra
time. That is exact for every k, not only on the convex hull that a sweep of λ finds.

Shapes: N tasks, K points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.tree.graph import RoutingTree
from dmr_gym.tree.values import Prices, least_seconds

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Frontier:
    """Points that no routing of the panel beats in both, by ascending success; empty where nothing is known.

    Attributes:
        success: (K,) float64 share of tasks solved.
        time_s: (K,) float64 mean latency of all episodes in seconds.
    """

    success: Floats
    time_s: Floats

    def best_return(self, lambda_: float) -> float:
        """The largest mean of success − λ·latency on the frontier: the oracle's. NaN where there are no points."""
        return float((self.success - lambda_ * self.time_s).max(initial=-math.inf)) if self.success.size else math.nan

    def least_time(self, success: float) -> float:
        """Least mean latency, in seconds, at which at least this share is solved; infinite where none is known."""
        enough = self.time_s[self.success >= success - 1e-12]
        return float(enough.min(initial=math.inf))


@dataclass(frozen=True, slots=True, eq=False)
class PanelTimes:
    """Least times of each task of a panel, in seconds; infinite where there is no such end.

    Attributes:
        success_s: (N,) float64 to a success that the trees show.
        failure_s: (N,) float64 to a failure that they show.
        success_bound_s: (N,) float64 lower bound of the first, over what the trees may still hide.
        failure_bound_s: (N,) float64 lower bound of the second.
    """

    success_s: Floats
    failure_s: Floats
    success_bound_s: Floats
    failure_bound_s: Floats

    def shown(self) -> Frontier:
        """The frontier of what the trees show: it can be reached."""
        return panel_frontier(self.success_s, self.failure_s)

    def bound(self) -> Frontier:
        """A frontier that cannot be beaten; the same as `shown` where the trees have all that matters."""
        return panel_frontier(self.success_bound_s, self.failure_bound_s)


def panel_times(trees: Sequence[RoutingTree], prices: Prices) -> PanelTimes:
    """Least times of each tree.

    Args:
        trees: one a task.
        prices: what a second is; λ does not matter.
    """
    columns = []
    for tree in trees:
        success, failure = (least_seconds(tree, prices, kind) for kind in (True, False))
        columns.append([success[0][0], failure[0][0], success[1][0], failure[1][0]])
    success_s, failure_s, success_bound_s, failure_bound_s = np.array(columns, dtype=np.float64).reshape(-1, 4).T
    return PanelTimes(success_s, failure_s, success_bound_s, failure_bound_s)


def panel_frontier(success_s: Floats, failure_s: Floats) -> Frontier:
    """The exact frontier of a panel whose tasks each end in success or failure.

    Args:
        success_s: (N,) least seconds to a success; infinite where there is none.
        failure_s: (N,) least seconds to a failure; infinite where there is none.

    Raises:
        ConfigError: no tasks, or one that can end in neither way.
    """
    if not len(success_s) or np.isinf(np.minimum(success_s, failure_s)).any():
        raise ConfigError("a frontier needs tasks whose trees hold at least one whole episode each: raise the budget")
    both = np.isfinite(success_s) & np.isfinite(failure_s)
    always = np.isfinite(success_s) & ~both  # solved whatever is done
    extra = np.sort(success_s[both] - failure_s[both])
    least = success_s[always].sum() + failure_s[~always].sum()
    times = (least + np.concatenate([[0.0], extra.cumsum()])) / len(success_s)
    shares = (always.sum() + np.arange(len(times))) / len(success_s)
    # A success that takes less time than a failure comes first and makes all before it pointless.
    efficient = np.array([times[k] < times[k + 1 :].min(initial=math.inf) for k in range(len(times))], dtype=np.bool_)
    return Frontier(shares[efficient].astype(np.float64), times[efficient].astype(np.float64))
