"""dmr_gym.latency.estimators: prefill and decode coefficients from timed calls."""

from __future__ import annotations

import numpy as np
import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.latency import PrefillDecodeFit, fit_prefill_decode


def timed_sessions(noise_s: float, sessions: int = 40) -> list[np.ndarray]:
    """Calls that take 2 ms a prompt token, 10 ms a new token and 50 ms besides."""
    rng = np.random.default_rng(5)
    found = []
    for _ in range(sessions):
        prompt, new = rng.integers(1, 400, 12), rng.integers(2, 30, 12)
        seconds = 0.002 * prompt + 0.010 * new + 0.050 + noise_s * rng.normal(size=12)
        found.append(np.column_stack([seconds, prompt, new]))
    return found


def test_calls_without_noise_give_their_coefficients() -> None:
    """All three, and they explain everything."""
    fit, intervals = fit_prefill_decode(timed_sessions(0.0))
    assert fit.ms_per_prefill_token == pytest.approx(2.0)
    assert fit.ms_per_decode_token == pytest.approx(10.0)
    assert fit.ms_per_call == pytest.approx(50.0)
    assert fit.r_squared == pytest.approx(1.0)
    assert intervals == {}


def test_intervals_hold_the_coefficients_and_shrink_with_the_noise() -> None:
    """95 % intervals from resampled sessions, the same for the same seed."""
    truth = {"ms_per_prefill_token": 2.0, "ms_per_decode_token": 10.0, "ms_per_call": 50.0}
    noisy = fit_prefill_decode(timed_sessions(0.05), 300, seed=1)
    calm = fit_prefill_decode(timed_sessions(0.005), 300, seed=1)
    for name, value in truth.items():
        low, high = noisy[1][name]
        assert low < value < high
        assert low < getattr(noisy[0], name) < high
        assert calm[1][name][1] - calm[1][name][0] < high - low
    assert noisy == fit_prefill_decode(timed_sessions(0.05), 300, seed=1)
    assert 0.5 < noisy[0].r_squared < calm[0].r_squared < 1


def test_one_session_has_no_spread() -> None:
    """Sessions are drawn whole: drawing the only one gives the fit again."""
    fit, intervals = fit_prefill_decode(timed_sessions(0.05, sessions=1), 20)
    assert intervals["ms_per_decode_token"] == pytest.approx((fit.ms_per_decode_token,) * 2)


def test_no_coefficient_is_negative() -> None:
    """1, 2, 3 tokens in 0, 1, 2 s: a line of slope 1 begins at −1, so the best without is 8/14 s a token.

    The sum of squares about the mean is 2; (4/7)² + (1/7)² + (2/7)² = 3/7 of it is left.
    """
    session = np.array([[0.0, 0, 1], [1.0, 0, 2], [2.0, 0, 3]])
    fit, _ = fit_prefill_decode([session])
    assert (fit.ms_per_prefill_token, fit.ms_per_call) == (0.0, 0.0)
    assert fit.ms_per_decode_token == pytest.approx(8000 / 14)
    assert fit.r_squared == pytest.approx(1 - (3 / 7) / 2)


def test_columns_that_never_vary_share_what_they_explain() -> None:
    """With equal calls nothing can be told apart, but the fit still gives their seconds."""
    fit, _ = fit_prefill_decode([np.tile([0.3, 100.0, 10.0], (5, 1))])
    told = 100 * fit.ms_per_prefill_token + 10 * fit.ms_per_decode_token + fit.ms_per_call
    assert told == pytest.approx(300.0)
    assert isinstance(fit, PrefillDecodeFit)
    assert np.isnan(fit.r_squared)


def test_too_few_calls_are_refused() -> None:
    """Two calls cannot give three coefficients."""
    with pytest.raises(ConfigError, match="at least three calls: play more tasks"):
        fit_prefill_decode([np.ones((2, 3))])
