"""Thresholds on distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmr_gym.calibration import (
    KL_FLOOR,
    binomial_interval,
    budget_threshold,
    describe_scores,
    find_plateau,
    label_stability,
    share_threshold,
    step_share,
)
from dmr_gym.errors import ConfigError


def _two_modes(share_high: float = 0.12, n: int = 2000) -> np.ndarray:
    """log10 KL around -5 and around 0, with 2 % of the steps spread between."""
    rng = np.random.default_rng(0)
    high = int(share_high * n)
    logs = [rng.normal(-5, 0.5, n - high), rng.normal(0, 0.3, high), rng.uniform(-4, -0.5, n // 50)]
    return 10 ** np.concatenate(logs)


def test_the_plateau_lies_between_the_modes():
    """The threshold separates the modes, few steps lie inside, and the share above is the rare mode's."""
    plateau = find_plateau(_two_modes())
    assert plateau.bimodal
    assert 1e-4 < plateau.low < plateau.threshold < plateau.high < 0.3
    assert plateau.threshold == pytest.approx(np.sqrt(plateau.low * plateau.high))
    assert plateau.share_inside < 0.05
    assert plateau.share_above == pytest.approx(0.12, abs=0.02)


@pytest.mark.parametrize("share_high", [0.03, 0.1, 0.3, 0.45])
def test_the_share_of_the_high_mode_is_found(share_high):
    """From rare to frequent critical steps."""
    assert find_plateau(_two_modes(share_high)).share_above == pytest.approx(share_high, abs=0.02)


def test_moving_the_threshold_inside_the_plateau_changes_few_labels():
    """What the paper wants of the plateau: labels that are robust to small changes."""
    kls = _two_modes()
    plateau = find_plateau(kls)
    changed = ((kls > plateau.low) != (kls > plateau.high)).mean()
    assert changed == pytest.approx(plateau.share_inside)
    assert changed < 0.05


def test_the_threshold_scales_with_the_kls():
    """A hundred times the KL, a hundred times the threshold: only the shape on the logarithmic scale counts."""
    kls = _two_modes()
    assert find_plateau(100 * kls).threshold == pytest.approx(100 * find_plateau(kls).threshold, rel=0.05)


def test_a_long_low_tail_is_no_plateau():
    """KLs of near-certain steps reach far down; the gap that counts is the one below the high mode."""
    rng = np.random.default_rng(1)
    logs = np.concatenate([rng.normal(-4, 0.4, 800), rng.uniform(-8, -5, 60), rng.normal(-0.5, 0.3, 140)])
    plateau = find_plateau(10**logs)
    assert plateau.bimodal
    assert 1e-3 < plateau.threshold < 0.2


def test_the_gap_below_near_certain_steps_is_not_taken():
    """A heavy mode of meaningless KLs far below leaves the deepest valley under the bulk: the critical tail counts."""
    rng = np.random.default_rng(4)
    logs = np.concatenate([rng.normal(-7, 0.2, 450), rng.normal(-3, 0.3, 450), rng.normal(0, 0.2, 100)])
    plateau = find_plateau(10**logs)
    assert plateau.bimodal
    assert 1e-2 < plateau.threshold < 1
    assert plateau.share_above == pytest.approx(0.1, abs=0.01)


def test_a_valley_among_meaningless_kls_is_not_taken():
    """Two modes of which both act like high precision are not the two kinds of steps."""
    rng = np.random.default_rng(5)
    kls = 10 ** np.concatenate([rng.normal(-7, 0.2, 800), rng.normal(-4.5, 0.2, 200)])
    assert not find_plateau(kls).bimodal
    assert find_plateau(kls, min_kl=1e-8).bimodal


def test_a_few_outliers_are_no_mode():
    """Three of a thousand steps far above do not make a second mode."""
    rng = np.random.default_rng(2)
    plateau = find_plateau(10 ** np.concatenate([rng.normal(-4, 0.5, 1000), np.full(3, 1.0)]))
    assert not plateau.bimodal
    assert 1e-5 < plateau.threshold < 1e-3


def test_one_mode_falls_back_to_otsu():
    """A single bump is split near its middle, and the answer says that there is no plateau."""
    plateau = find_plateau(10 ** np.random.default_rng(3).normal(-3, 0.5, 1000))
    assert not plateau.bimodal
    assert plateau.low == plateau.threshold == plateau.high
    assert plateau.share_inside == 0.0
    assert 0.4 < plateau.share_above < 0.6


def test_a_share_of_labels_gives_its_threshold():
    """Of 1e-4 ... 1e-1 a quarter lies above 10^-1.5; ties go together, to the nearest share; one KL is not split."""
    assert share_threshold(np.array([1e-4, 1e-3, 1e-2, 1e-1]), 0.25) == pytest.approx(10**-1.5)
    assert share_threshold(np.array([1e-4, 1e-3, 1e-2, 1e-1]), 0.5) == pytest.approx(10**-2.5)
    tied = np.array([0.0] * 6 + [0.04] * 3 + [0.16])
    assert share_threshold(tied, 0.2) == pytest.approx(0.08)  # 0.1 and 0.4 can be had
    assert share_threshold(tied, 0.3) == pytest.approx(np.sqrt(KL_FLOOR * 0.04))
    assert share_threshold(np.full(5, 0.3), 0.5) == 0.3
    assert share_threshold(np.array([0.0, 1e-12, 1e-11]), 0.5) == KL_FLOOR


@given(st.lists(st.floats(0, 10), min_size=2, max_size=40).filter(lambda kls: len(set(kls)) > 1), st.floats(0.01, 0.99))
def test_no_other_threshold_comes_nearer_to_a_share(kls, share):
    """Over every place where KLs could be split, those below the floor apart."""
    values = np.maximum(np.array(kls), KL_FLOOR)
    places = np.unique(values)[:-1]
    found = abs((values > share_threshold(values, share)).mean() - share)
    assert all(found <= abs((values > place).mean() - share) + 1e-12 for place in places)


@pytest.mark.parametrize(
    ("kls", "share", "message"),
    [
        (np.array([]), 0.5, r"KLs of at least 0, \(N,\), got shape \(0,\)"),
        (np.array([0.1, np.nan]), 0.5, "KLs of at least 0"),
        (np.array([0.1, 0.2]), 1.0, "must lie between 0 and 1, got 1.0"),
    ],
)
def test_shares_that_give_no_threshold_are_refused(kls, share, message):
    """Nothing to split, no numbers, and a share of all."""
    with pytest.raises(ConfigError, match=message):
        share_threshold(kls, share)


def test_zeros_count_as_the_floor():
    """Identical distributions have KL 0, which has no logarithm."""
    kls = np.concatenate([np.zeros(90), np.full(10, 0.5)])
    plateau = find_plateau(kls)
    assert 0 < plateau.threshold < 0.5
    assert plateau.share_above == pytest.approx(0.1)


def test_equal_kls_still_give_a_threshold():
    """Degenerate data ends in some finite threshold, not in an exception of NumPy."""
    plateau = find_plateau(np.full(20, 0.01))
    assert np.isfinite(plateau.threshold)
    assert not plateau.bimodal


@pytest.mark.parametrize("kls", [np.zeros(9), np.zeros((5, 5)), np.array([0.1] * 10 + [-0.1]), np.array([np.nan] * 12)])
def test_unusable_kls_are_refused(kls):
    """Too few, of another rank, negative, or no numbers."""
    with pytest.raises(ConfigError, match="KLs"):
        find_plateau(kls)


def test_budget_threshold_by_hand():
    """Of ten distinct scores a budget of 0.3 takes the three highest."""
    threshold = budget_threshold(np.arange(10) / 10, 0.3)
    assert threshold.value == pytest.approx(0.7)
    assert threshold.realised_share == pytest.approx(0.3)
    assert threshold.n_steps == 10


@given(
    scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60, unique=True),
    budget=st.floats(0, 1),
)
def test_distinct_scores_realise_the_budget_within_one_step(scores, budget):
    """|realised share - K| <= 1 / N."""
    values = np.array(scores, dtype=np.float32)
    threshold = budget_threshold(values, budget)
    assert abs(threshold.realised_share - budget) <= 1 / len(values)
    assert threshold.realised_share == (values >= threshold.value).mean()


def test_tied_scores_go_together_and_say_so():
    """Half the steps are saturated at 1: a budget of 0.2 cannot be kept, and the realised share tells."""
    threshold = budget_threshold(np.array([1.0] * 5 + [0.1] * 5), 0.2)
    assert threshold.value == 1.0
    assert threshold.realised_share == 0.5


def test_the_extreme_budgets_route_nothing_and_everything():
    """K = 0 lies above every score, K = 1 at the lowest."""
    scores = np.array([0.2, 0.9, 1.0])
    assert budget_threshold(scores, 0.0).realised_share == 0.0
    assert budget_threshold(scores, 1.0).realised_share == 1.0


@pytest.mark.parametrize(("scores", "budget"), [(np.zeros(0), 0.2), (np.array([np.nan, 0.5]), 0.2), (np.ones(3), 1.2)])
def test_unusable_budgets_are_refused(scores, budget):
    """No scores, scores of steps that no router decided, or a share above 1."""
    with pytest.raises(ConfigError, match="budget"):
        budget_threshold(scores, budget)


def test_label_stability_by_hand():
    """Half a decade below 0.1 lie 0.05 and 0.09, half a decade above lies 0.2; a whole one adds 0.011 and 0.9."""
    kls = np.array([[0.001], [0.011], [0.05], [0.09], [0.2], [0.9], [5.0], [9.0]], dtype=np.float32)
    [half, whole] = label_stability(kls, 0.1, (0.5, 1.0))
    assert (half.decades, half.lowered, half.raised) == (0.5, 2 / 8, 1 / 8)
    assert (whole.decades, whole.lowered, whole.raised) == (1.0, 3 / 8, 2 / 8)


def test_label_stability_of_several_precisions_moves_all_thresholds():
    """Of the first step only the label of its middle precision changes upwards, of the second the lowest's down."""
    kls = np.array([[9.0, 0.2], [0.9, 0.001]], dtype=np.float32)
    [moved] = label_stability(kls, (1.0, 0.1), (0.5,))
    # At (1, 0.1) the labels are 2 and 0; at (3.2, 0.32) they are 1 and 0; at (0.32, 0.032) they are 2 and 1.
    assert (moved.raised, moved.lowered) == (0.5, 0.5)


def test_label_stability_needs_steps():
    """No share of nothing."""
    with pytest.raises(ConfigError, match="at least one step"):
        label_stability(np.zeros((0, 1), dtype=np.float32), 0.1)


def test_split_ties_keep_the_budget_by_hand():
    """Half of ten steps are saturated: 0.2 takes two fifths of them, 0.7 all of them and two fifths of the others."""
    scores = np.array([1.0] * 5 + [0.1] * 5)
    few, many = (budget_threshold(scores, budget, split_ties=True) for budget in (0.2, 0.7))
    assert (few.value, few.tied_steps, few.realised_share) == (1.0, 5, pytest.approx(0.2))
    assert few.tie_probability == pytest.approx(2 / 5)
    assert (many.value, many.tied_steps, many.tie_probability) == (0.1, 5, pytest.approx(2 / 5))
    assert few.high_steps(scores) == pytest.approx(2)
    assert many.high_steps(scores[:6]) == pytest.approx(5 + 2 / 5)


@given(
    scores=st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.875, 1.0]), min_size=1, max_size=60),
    budget=st.floats(0, 1),
)
def test_split_ties_realise_every_budget_in_expectation(scores, budget):
    """However many steps are tied, the expected share is K."""
    values = np.array(scores, dtype=np.float32)
    threshold = budget_threshold(values, budget, split_ties=True)
    assert 0.0 <= threshold.tie_probability <= 1.0
    assert threshold.realised_share == pytest.approx(budget, abs=1e-6)
    assert threshold.high_steps(values) == pytest.approx(budget * len(values), abs=1e-6)


def test_whole_budgets_of_distinct_scores_draw_nothing():
    """0.7 of ten is seven steps, though 0.7 * 10 is none too exact: the last of them is sure to pass."""
    for budget in (0.1, 0.2, 0.3, 0.6, 0.7):
        threshold = budget_threshold(np.arange(10) / 10, budget, split_ties=True)
        assert threshold.tied_steps == 1
        assert threshold.tie_probability == pytest.approx(1.0)


def test_binomial_intervals_by_hand():
    """One of two: P(X >= 1) = 1 - (1-p)^2 and P(X <= 1) = 1 - p^2 are 2.5 %; none and all of n solve p^n = 2.5 %."""
    one_of_two = binomial_interval(1, 2)
    assert one_of_two.low == pytest.approx(1 - 0.975**0.5)
    assert one_of_two.high == pytest.approx(0.975**0.5)
    assert binomial_interval(0, 10).low == 0.0
    assert binomial_interval(0, 10).high == pytest.approx(1 - 0.025**0.1)
    assert binomial_interval(300, 300).low == pytest.approx(0.025 ** (1 / 300))
    assert binomial_interval(300, 300).high == 1.0


def test_binomial_intervals_are_those_of_the_beta_distribution():
    """Clopper and Pearson's ends are quantiles of Beta(k, n - k + 1) and Beta(k + 1, n - k)."""
    from scipy.stats import beta

    for count, n in ((1, 7), (3, 7), (37, 256), (2000, 5000)):
        interval = binomial_interval(count, n)
        assert interval.low == pytest.approx(beta.ppf(0.025, count, n - count + 1), rel=1e-6)
        assert interval.high == pytest.approx(beta.ppf(0.975, count + 1, n - count), rel=1e-6)


@pytest.mark.parametrize(("count", "n"), [(-1, 3), (4, 3), (0, 0)])
def test_impossible_counts_are_refused(count, n):
    """More successes than trials, fewer than none, or no trials."""
    with pytest.raises(ConfigError, match="binomial interval"):
        binomial_interval(count, n)


def test_the_share_of_fresh_steps_at_a_fitted_threshold_is_covered():
    """On 2000 pools of 40 distinct scores the interval holds the true share of steps above τ_K 95 times of 100."""
    rng = np.random.default_rng(0)
    interval, covered = binomial_interval(16, 40), 0
    for _ in range(2000):
        threshold = budget_threshold(rng.random(40), 0.4)
        assert threshold.realised_share == 16 / 40
        covered += interval.low <= 1 - threshold.value <= interval.high  # uniform scores pass with probability 1 - τ
    assert covered / 2000 > 0.95


def test_episodes_that_are_alike_inside_widen_the_interval():
    """Ten episodes of ten steps, four of them all high: as good as ten coin flips, not a hundred."""
    share = step_share(np.array([10] * 4 + [0] * 6), np.full(10, 10), resamples=4000)
    assert (share.share, share.n_steps, share.n_episodes) == (0.4, 100, 10)
    assert share.binomial_ci == binomial_interval(40, 100)
    # Of ten episodes drawn anew, a binomial number with p = 0.4 is high: its quantiles are 1 and 7.
    assert (share.episodes_ci.low, share.episodes_ci.high) == (0.1, 0.7)


def test_an_expected_count_lies_between_whole_ones():
    """2.5 of 5 steps: the lower end of two and the upper end of three."""
    share = step_share(np.array([2.5]), np.array([5]), resamples=10)
    assert share.binomial_ci.low == binomial_interval(2, 5).low
    assert share.binomial_ci.high == binomial_interval(3, 5).high


def test_a_share_of_no_steps_is_refused():
    """Where every step was forced nothing can be said."""
    with pytest.raises(ConfigError, match="at least one step"):
        step_share(np.zeros(2), np.zeros(2, dtype=np.int64))


def test_scores_are_described_by_hand():
    """Of four scores one lies below 0.5 and one on it: 0.5 sits at percentile 25."""
    described = describe_scores(np.array([0.1, 0.5, 0.9, 1.0]))
    assert described["steps"] == 4
    assert described["mean"] == pytest.approx(0.625)
    assert described["percentile_of_half"] == 25.0
    assert described["share_at_least_half"] == 0.75
    assert described["quantiles"]["0.50"] == pytest.approx(0.7)
