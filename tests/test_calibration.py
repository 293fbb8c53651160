"""Thresholds on distributions whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmr_gym.calibration import budget_threshold, find_plateau
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
