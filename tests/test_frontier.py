"""Operating points by hand-computed numbers: ranks, gap recovered, Pareto distance, and gap to an oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.metrics import (
    EpisodeResult,
    OperatingPoint,
    average_gap_recovered,
    average_ranks,
    gap_recovered,
    oracle_gap,
    pareto_distance,
    select_by_rank,
)

NAN = float("nan")

POOL = [
    OperatingPoint("bf16", "high", 0.80, 10.0),
    OperatingPoint("w4", "low", 0.30, 12.0),
    OperatingPoint("K=0.2", "router", 0.60, 6.0),
    OperatingPoint("K=0.4", "router", 0.70, 7.0),
    OperatingPoint("K=0.7", "router", 0.82, 9.0),
    OperatingPoint("λ=0.1", "grpo", 0.82, 8.0),
    OperatingPoint("λ=0.2", "grpo", 0.50, 5.0),
    OperatingPoint("λ=0.3", "grpo", 0.30, 4.0),
]
"""The paper's eight points."""


def test_average_ranks_by_hand():
    """Success ranks 1, 2.5, 2.5, 4 and time ranks 3, 1, 2, 4 (an unsolved panel ranks last)."""
    assert average_ranks([0.9, 0.5, 0.5, 0.0], [3.0, 1.0, 2.0, NAN]) == [2.0, 1.75, 2.25, 4.0]


def test_the_selection_of_section_5_3_by_hand():
    """Success ranks 3, 7.5, 5, 4, 1.5, 1.5, 6, 7.5 and time ranks 7, 8, 3, 4, 6, 5, 2, 1: GRPO at λ = 0.1 wins."""
    found = select_by_rank(POOL, ("router", "grpo"))
    assert found.names == tuple(point.name for point in POOL)
    assert found.ranks == (5.0, 7.75, 4.0, 4.0, 3.75, 3.25, 4.0, 4.25)
    assert found.best == ("λ=0.1",)
    assert found.kinds == ("grpo",)


def test_single_precisions_anchor_the_ranks_but_cannot_win():
    """The best rank of this pool is that of bf16, and both routers tie behind it: the win is of both kinds."""
    pool = [
        OperatingPoint("bf16", "high", 0.9, 1.0),
        OperatingPoint("a", "router", 0.8, 3.0),
        OperatingPoint("b", "grpo", 0.7, 2.0),
    ]
    found = select_by_rank(pool, ("router", "grpo"))
    assert found.ranks == (1.0, 2.5, 2.5)
    assert found.best == ("a", "b")
    assert found.kinds == ("router", "grpo")
    with pytest.raises(ConfigError, match="the pool has none"):
        select_by_rank(pool[:1], ("router", "grpo"))


def test_gap_recovered_by_hand():
    """From 0.5 to 0.9: 0.7 is half of it, 1.0 more than all, 0.4 less than nothing; without a gap there is no share."""
    assert [gap_recovered(v, 0.5, 0.9) for v in (0.7, 1.0, 0.4)] == pytest.approx([0.5, 1.25, -0.25])
    assert math.isnan(gap_recovered(0.7, 0.9, 0.9))


def test_average_gap_recovered_by_hand():
    """PGR 0.5 at share 0.2 and 1 at 0.5: areas 0.05, 0.225 and 0.5, whatever the order of the points."""
    assert average_gap_recovered([0.2, 0.5], [0.7, 0.9], 0.5, 0.9) == pytest.approx(0.775)
    assert average_gap_recovered([0.5, 0.2], [0.9, 0.7], 0.5, 0.9) == pytest.approx(0.775)


def test_routing_that_gains_in_proportion_recovers_half():
    """Where success is linear in the share, as with a random mixture of whole episodes."""
    shares = [0.1, 0.35, 0.8]
    assert average_gap_recovered(shares, [0.2 + 0.6 * s for s in shares], 0.2, 0.8) == pytest.approx(0.5)


def test_points_of_equal_share_count_as_their_mean():
    """PGR 0.2 and 0.6 at share 0.5 are 0.4; a router that sends all steps up, and solves less, pulls the end down."""
    assert average_gap_recovered([0.5, 0.5], [0.2, 0.6], 0.0, 1.0) == pytest.approx(0.25 * 0.4 + 0.25 * 1.4)
    assert average_gap_recovered([1.0], [0.5], 0.0, 1.0) == pytest.approx(0.75 / 2)


def test_average_gap_recovered_needs_points_and_a_gap():
    """Nothing to integrate, nothing to recover; and arguments that do not fit."""
    assert math.isnan(average_gap_recovered([], [], 0.0, 1.0))
    assert math.isnan(average_gap_recovered([0.5], [0.9], 0.9, 0.9))
    with pytest.raises(ConfigError, match="APGR needs a value for each share"):
        average_gap_recovered([0.5], [0.9, 0.8], 0.5, 0.9)
    with pytest.raises(ConfigError, match="APGR needs a value for each share"):
        average_gap_recovered([1.5], [0.9], 0.5, 0.9)


def test_pareto_distance_by_hand():
    """With 10 s for a unit: K=0.2 is on the frontier, and K=0.7 beats bf16 by 0.02 and 0.1."""
    by_name = {point.name: point for point in POOL}
    assert pareto_distance(by_name["K=0.2"], POOL, 10.0) == 0.0
    assert pareto_distance(by_name["bf16"], POOL[:5], 10.0) == pytest.approx(0.02)
    # Others beat w4 by min(0.30, 0.6), min(0.40, 0.5), min(0.52, 0.3) and min(0.52, 0.4).
    assert pareto_distance(by_name["w4"], POOL, 10.0) == pytest.approx(0.4)


def test_a_point_that_solves_nothing_is_behind_by_success_alone():
    """It has no time of solved episodes, as if it took for ever; nobody is behind such a point."""
    nothing, some = OperatingPoint("n", "low", 0.0, NAN), OperatingPoint("s", "router", 0.3, 5.0)
    assert pareto_distance(nothing, [some], 10.0) == pytest.approx(0.3)
    assert pareto_distance(some, [nothing], 10.0) == 0.0
    with pytest.raises(ConfigError, match="reference time must be a positive"):
        pareto_distance(some, [nothing], 0.0)


def test_moving_by_the_distance_reaches_the_frontier():
    """A point that gains ε on both axes is beaten on both by nobody, and by less than ε it still is."""
    rng = np.random.default_rng(0)
    points = [OperatingPoint(str(i), "router", *pair) for i, pair in enumerate(rng.random((12, 2)))]
    for point in points:
        gap = pareto_distance(point, points, 1.0)
        for share, beaten in ((1.0001, False), (0.999, bool(gap > 0))):
            s, t = point.success + share * gap, point.time_s - share * gap
            assert any(o.success > s + 1e-9 and o.time_s < t - 1e-9 for o in points) == beaten


def test_the_gap_to_an_oracle_by_hand():
    """Task a is played at returns 0.8 and 0.6, b at -0.2: gaps 0.9 - 0.7 and 0.4 + 0.2, in the mean 0.4."""
    episodes = [
        EpisodeResult("b", False, 2.0, (1, 0), 1),
        EpisodeResult("a", True, 2.0, (1, 0), 1),
        EpisodeResult("a", True, 4.0, (1, 0), 1, seed=1),
    ]
    gap, interval = oracle_gap(episodes, {"a": 0.9, "b": 0.4, "c": 1.0}, lambda_=0.1)
    assert gap == pytest.approx(0.4)
    assert (interval.low, interval.high) == pytest.approx((0.2, 0.6))


def test_an_oracle_of_other_tasks_is_refused():
    """A mean over some of the tasks would be another panel's."""
    episodes = [EpisodeResult("a", True, 2.0, (1, 0), 1), EpisodeResult("b", True, 2.0, (1, 0), 1)]
    with pytest.raises(ConfigError, match="the oracle lacks 1 of the 2 tasks that were played, such as 'b'"):
        oracle_gap(episodes, {"a": 1.0}, 0.1)
