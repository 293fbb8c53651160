"""What a step costs: the paper's cost model (Eq. 9) with its coefficients (Table 3), and others behind one protocol.

An episode of N steps that generates n_h tokens at high and n_l tokens at low precision takes
T = N·ℓ_r + n_h·ℓ_h + n_l·ℓ_l (Eq. 9), with ℓ_r per router call and ℓ_h, ℓ_l per completion token. Prefill is part of
ℓ_h and ℓ_l: they divide the whole wall clock of a call by its completion tokens. Other kinds count the prompt tokens
that a server has to compute, dollars or joules, or take the measured wall clock. Times are milliseconds in tables and
settings, as the paper prints them, and seconds everywhere else. All kinds are explained in docs/latency.md.
"""

from __future__ import annotations

from dmr_gym.latency.estimators import (
    PrefillDecodeFit,
    break_even_tokens,
    fit_prefill_decode,
    lambda_per_second,
    per_token_speedup,
    pooled_ms_per_token,
    pooled_router_ms,
)
from dmr_gym.latency.models import (
    CachedPrefixCost,
    TokenLinearLatency,
    TokenPrices,
    WallClockLatency,
    trajectory_seconds,
)
from dmr_gym.latency.prefix_cache import cached_prompt_tokens
from dmr_gym.latency.profiles import Profile, load_profile, packaged_profiles
from dmr_gym.latency.settings import PriceSource, make_latency_model, price_source
from dmr_gym.latency.table import TABLE_3, W3_SPEEDUP, CalibrationRow

__all__ = [
    "TABLE_3",
    "W3_SPEEDUP",
    "CachedPrefixCost",
    "CalibrationRow",
    "PrefillDecodeFit",
    "PriceSource",
    "Profile",
    "TokenLinearLatency",
    "TokenPrices",
    "WallClockLatency",
    "break_even_tokens",
    "cached_prompt_tokens",
    "fit_prefill_decode",
    "lambda_per_second",
    "load_profile",
    "make_latency_model",
    "packaged_profiles",
    "per_token_speedup",
    "pooled_ms_per_token",
    "pooled_router_ms",
    "price_source",
    "trajectory_seconds",
]
