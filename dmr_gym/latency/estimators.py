"""From measurements to coefficients (Eq. 10 and 11), and what follows from coefficients: break-even, speed-up, λ.

Shapes: S sessions, N calls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError


def break_even_tokens(high_ms: float, low_ms: float, router_ms: float, high_share: float = 0.0) -> float:
    """Tokens a step above which routing is faster than high precision alone, at equal trajectories.

    Solves router_ms + n·(K·high_ms + (1 − K)·low_ms) = n·high_ms for n.

    Args:
        high_ms: ms per token at high precision.
        low_ms: ms per token at low precision.
        router_ms: ms per routing decision.
        high_share: share K of the steps that go to high precision, in [0, 1].

    Returns:
        Completion tokens a step; infinity where the router can never pay for itself.
    """
    saved_ms = (1 - high_share) * (high_ms - low_ms)
    return router_ms / saved_ms if saved_ms > 0 else math.inf


def per_token_speedup(high_ms: float, low_ms: float, high_share: float = 0.0) -> float:
    """Most that routing can gain over high precision at equal lengths: ℓ_h / (K·ℓ_h + (1 − K)·ℓ_l)."""
    return high_ms / (high_share * high_ms + (1 - high_share) * low_ms)


def pooled_ms_per_token(elapsed_s: Sequence[float], completion_tokens: Sequence[int]) -> float:
    """Eq. 10: ms per token as the ratio of sums over sessions, not the mean of their ratios.

    Args:
        elapsed_s: seconds spent in calls of one precision, one entry a session.
        completion_tokens: tokens generated in these calls, one entry a session.

    Raises:
        ConfigError: if the lengths differ or no token was generated.
    """
    return _ratio_of_sums_ms(elapsed_s, completion_tokens, "completion_tokens")


def pooled_router_ms(router_s: Sequence[float], decided_steps: Sequence[int]) -> float:
    """Eq. 11: ms per routing decision as the ratio of sums over sessions.

    Args:
        router_s: seconds spent in the router, one entry a session.
        decided_steps: steps that the router decided, one entry a session; steps forced by a rule do not count.

    Raises:
        ConfigError: if the lengths differ or no step was decided.
    """
    return _ratio_of_sums_ms(router_s, decided_steps, "decided_steps")


def _ratio_of_sums_ms(seconds: Sequence[float], counts: Sequence[int], name: str) -> float:
    if len(seconds) != len(counts):
        raise ConfigError(f"one entry a session is needed in both: {len(seconds)} times but {len(counts)} {name}")
    total = sum(counts)
    if total <= 0:
        raise ConfigError(f"the sum of {name} must be positive, got {total}")
    return 1000 * sum(seconds) / total


def lambda_per_second(normalized: float, reference_s: float) -> float:
    """Turn a price per reference episode into λ per second, so that λ·T = normalized·T / reference_s.

    Args:
        normalized: reward that one reference episode costs; comparable across models and benchmarks.
        reference_s: mean episode time at high precision alone, in seconds.

    Raises:
        ConfigError: if ``reference_s`` is not positive.
    """
    if not reference_s > 0:
        raise ConfigError(f"reference_s must be a positive number of seconds, got {reference_s!r}")
    return normalized / reference_s


@dataclass(frozen=True, slots=True)
class PrefillDecodeFit:
    """Coefficients of seconds = prefill · tokens computed of the prompt + decode · tokens generated + call.

    Attributes:
        ms_per_prefill_token: ms per prompt token that the server did not have.
        ms_per_decode_token: ms per generated token.
        ms_per_call: ms of any call.
        r_squared: share of the variance of the calls' seconds that the three explain.
    """

    ms_per_prefill_token: float
    ms_per_decode_token: float
    ms_per_call: float
    r_squared: float


def fit_prefill_decode(
    sessions: Sequence[NDArray[np.float64]], resamples: int = 0, seed: int = 0
) -> tuple[PrefillDecodeFit, dict[str, tuple[float, float]]]:
    """Least squares over all calls, no coefficient below 0, with bootstrap intervals over sessions.

    Args:
        sessions: S arrays (N_i, 3) float64, a row a call: seconds, prompt tokens computed, tokens generated.
        resamples: how often the sessions are drawn anew; 0 makes no intervals.
        seed: of the draws.

    Returns:
        The fit, and a 95 % interval for each of its coefficients by name.

    Raises:
        ConfigError: fewer than three calls.
    """
    if sum(len(session) for session in sessions) < 3:
        raise ConfigError("three coefficients need at least three calls: play more tasks")
    moments = np.stack([_moments(session) for session in sessions])  # (S, 4, 4)
    total = moments.sum(axis=0)
    best = _nonnegative(total)
    spread = total[3, 3] - total[2, 3] ** 2 / total[2, 2]
    r_squared = float(1 - _residual(total, best) / spread) if spread > 0 else math.nan
    prefill_ms, decode_ms, call_ms = (1000 * best).tolist()
    fit = PrefillDecodeFit(prefill_ms, decode_ms, call_ms, r_squared)
    if not resamples:
        return fit, {}
    draws = np.random.default_rng(seed).integers(len(moments), size=(resamples, len(moments)))
    fitted = np.array([1000 * _nonnegative(moments[draw].sum(axis=0)) for draw in draws])  # (resamples, 3)
    ends = np.quantile(fitted, [0.025, 0.975], axis=0).T.tolist()
    names = ("ms_per_prefill_token", "ms_per_decode_token", "ms_per_call")
    return fit, {name: (low, high) for name, (low, high) in zip(names, ends, strict=True)}


def _moments(session: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of products of a session's columns, (4, 4): prompt tokens, generated tokens, 1, seconds."""
    columns = np.column_stack([session[:, 1], session[:, 2], np.ones(len(session)), session[:, 0]])
    moments: NDArray[np.float64] = columns.T @ columns
    return moments


def _nonnegative(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """The (3,) coefficients of least squared residual among those that are not negative: every support is tried."""
    best = np.zeros(3)
    for size in (1, 2, 3):
        for support in itertools.combinations(range(3), size):
            chosen = list(support)
            found = np.zeros(3)
            found[chosen] = np.linalg.lstsq(moments[np.ix_(chosen, chosen)], moments[chosen, 3], rcond=None)[0]
            if (found >= 0).all() and _residual(moments, found) < _residual(moments, best):
                best = found
    return best


def _residual(moments: NDArray[np.float64], coefficients: NDArray[np.float64]) -> float:
    signed = np.append(coefficients, -1.0)
    return float(signed @ moments @ signed)
