"""Latency of a step in seconds: the paper's cost model (Eq. 9), its calibrated coefficients (Table 3), and estimators.

An episode of N steps that generates n_h tokens at high and n_l tokens at low precision takes
T = N·ℓ_r + n_h·ℓ_h + n_l·ℓ_l (Eq. 9), with ℓ_r per router call and ℓ_h, ℓ_l per completion token. Prefill is part of
ℓ_h and ℓ_l: they divide the whole wall clock of a call by its completion tokens. Times are milliseconds in tables and
settings, as the paper prints them, and seconds everywhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dmr_gym.config import unknown_name
from dmr_gym.errors import ConfigError
from dmr_gym.factory import build
from dmr_gym.types import LatencyModel, LLMCall


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """One row of Table 3, measured on one A6000 under 16 concurrent shards.

    Attributes:
        high_ms: ℓ_h, ms per completion token at bf16.
        low_ms: ℓ_l, ms per completion token of the quantized copy.
        router_ms: ℓ_r, ms per routing decision, the sentence encoder included.
        sessions: tasks that were pooled.
        projected: ``low_ms`` is not measured: no 3-bit kernel ran, and the paper divides the AWQ W4 value by 1.15.
    """

    high_ms: float
    low_ms: float
    router_ms: float
    sessions: int
    projected: bool = False


TABLE_3: Mapping[str, CalibrationRow] = MappingProxyType(
    {
        "webshop-1.7b-awq-w4": CalibrationRow(12.64, 10.29, 22.81, 256),
        "webshop-1.7b-gptq-w4": CalibrationRow(12.64, 11.51, 22.81, 256),
        "webshop-4b-awq-w4": CalibrationRow(23.89, 16.36, 29.15, 256),
        "webshop-4b-gptq-w4": CalibrationRow(23.89, 16.73, 29.15, 256),
        "alfworld-1.7b-awq-w4": CalibrationRow(13.08, 10.23, 17.13, 64),
        "alfworld-1.7b-gptq-w4": CalibrationRow(13.08, 10.30, 17.13, 64),
        "alfworld-4b-awq-w4": CalibrationRow(25.02, 16.77, 19.90, 64),
        "alfworld-4b-gptq-w3": CalibrationRow(25.02, 14.58, 19.90, 64, projected=True),
    }
)
"""The paper's Table 3 by name: benchmark, size of the Qwen3 model, quantization."""


@dataclass(frozen=True, slots=True)
class TokenLinearLatency:
    """Eq. 9: a price per completion token and precision, and one per routing decision.

    Attributes:
        ms_per_token: ms per completion token of each precision.
        router_ms: ms per routing decision; 0 for a policy that asks no router.

    Raises:
        ConfigError: if a coefficient is negative or not finite.
    """

    ms_per_token: Mapping[str, float]
    router_ms: float

    def __post_init__(self) -> None:
        """Check the coefficients."""
        named = {"router_ms": self.router_ms} | {f"ms_per_token.{key}": ms for key, ms in self.ms_per_token.items()}
        for name, value in named.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be a finite number of milliseconds of at least 0, got {value!r}")

    def llm_seconds(self, call: LLMCall) -> float:
        """Time of the LLM call: completion tokens times the precision's price."""
        return call.completion_tokens * self.ms_per_token[call.precision] / 1000

    def router_seconds(self, call: LLMCall) -> float:
        """Time of the routing decision; 0 when the router was not asked."""
        return self.router_ms / 1000 if call.router_called else 0.0


def trajectory_seconds(model: LatencyModel, calls: Iterable[LLMCall]) -> float:
    """T of Eq. 9, in seconds: the LLM calls and the routing decisions of one trajectory."""
    return sum(model.llm_seconds(call) + model.router_seconds(call) for call in calls)


def _token_linear(
    precisions: Sequence[str],
    *,
    row: str | None = None,
    ms_per_token: Mapping[str, float] | None = None,
    router_ms: float | None = None,
    allow_other_bits: bool = False,
) -> TokenLinearLatency:
    known = None if row is None else _row(row)
    if ms_per_token is None:
        ms_per_token = _row_prices(row, precisions, allow_other_bits)
    if router_ms is None and known is not None:
        router_ms = known.router_ms
    if not isinstance(ms_per_token, Mapping) or set(ms_per_token) != set(precisions):
        got = list(ms_per_token) if isinstance(ms_per_token, Mapping) else ms_per_token
        raise ConfigError(f"latency ms_per_token must price exactly the precisions {list(precisions)}, got {got!r}")
    if router_ms is None:
        raise ConfigError("latency needs router_ms, ms per routing decision (0 where no router runs)")
    return TokenLinearLatency(dict(ms_per_token), router_ms)


def _row_prices(row: str | None, precisions: Sequence[str], allow_other_bits: bool) -> dict[str, float]:
    if row is None or len(precisions) != 2:
        example = ", ".join(f"{name!r}: ..." for name in precisions)
        why = f"has two prices, but there are {len(precisions)} precisions" if row else "or a row of Table 3 is needed"
        raise ConfigError(f"latency {why}: pass {{'ms_per_token': {{{example}}}, 'router_ms': ...}}")
    if allow_other_bits is not True:
        _check_bits(row, precisions)
    prices = _row(row)
    return dict(zip(precisions, (prices.low_ms, prices.high_ms), strict=True))


def _row(name: str) -> CalibrationRow:
    if not isinstance(name, str) or name not in TABLE_3:
        raise ConfigError(unknown_name("latency row of Table 3", name, TABLE_3))
    return TABLE_3[name]


def _check_bits(row: str, precisions: Sequence[str]) -> None:
    """Refuse to price a precision whose name says other bits than the row has: W4 prices are not those of W2."""
    family, _, low_bits = row.rpartition("-w")
    for name, bits in zip(precisions, (int(low_bits), 16), strict=True):
        named = re.match(r"w(\d+)", name, re.IGNORECASE)
        if named is None or int(named[1]) == bits:
            continue
        fitting = [other for other in TABLE_3 if other.endswith(f"-w{named[1]}")] if bits != 16 else []
        fitting.sort(key=lambda other: not other.startswith(family.rpartition("-")[0]))
        hint = f"use {fitting[0]!r}" if fitting else f"no row of Table 3 has a W{named[1]} price at that place"
        example = ", ".join(f"{precision!r}: ..." for precision in precisions)
        raise ConfigError(
            f"latency row {row!r} prices {bits} bits, but it would price the precision {name!r}: {hint}; or pass "
            f"{{'ms_per_token': {{{example}}}, 'router_ms': ...}} or {{'row': {row!r}, 'allow_other_bits': True}}"
        )


@dataclass(frozen=True, slots=True)
class PriceSource:
    """Where the prices of a latency setting come from, to stand beside every time computed with them.

    Attributes:
        row: name of the row of Table 3 that prices the tokens; None where they are given.
        projected: whether that row's lower price is projected rather than measured.
        label: both in words, for example "prices of alfworld-4b-gptq-w3, W3 projected".
    """

    row: str | None
    projected: bool
    label: str


def price_source(name_or_mapping: str | Mapping[str, Any]) -> PriceSource:
    """Say where the token prices of a latency setting that `make_latency_model` accepts come from."""
    settings = {"row": name_or_mapping} if isinstance(name_or_mapping, str) else name_or_mapping
    if "ms_per_token" in settings:
        return PriceSource(None, False, "prices of your own")
    row: str = settings["row"]
    projected = _row(row).projected
    note = f", W{row.rpartition('-w')[2]} projected" if projected else ""
    return PriceSource(row, projected, f"prices of {row}{note}")


def make_latency_model(name_or_mapping: str | Mapping[str, Any], precisions: Sequence[str]) -> LatencyModel:
    """Build a latency model from plain data.

    Args:
        name_or_mapping: the name of a row in `TABLE_3`, whose ℓ_l prices the lower and ℓ_h the higher of two
            precisions; or ``{"ms_per_token": {"w3": 14.58, "w4": 16.77, "bf16": 25.02}, "router_ms": 19.9}``; or
            ``{"row": name, "router_ms": 0}``, a row with some settings replaced. A row prices names that begin with
            other bits than its own, such as w2 or w4-awq, only with ``"allow_other_bits": True``.
        precisions: the names to price, in ascending precision.

    Raises:
        ConfigError: for an unknown name or setting, or prices that do not match the precisions.
    """
    if isinstance(name_or_mapping, str):
        name_or_mapping = {"row": name_or_mapping}
    if not isinstance(name_or_mapping, Mapping):
        raise ConfigError(f"latency must be a row of Table 3 or a mapping, got {name_or_mapping!r}")
    builders: dict[str, Callable[..., LatencyModel]] = {"token-linear": _token_linear}
    return build("latency", builders, {"kind": "token-linear", **name_or_mapping}, precisions)


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
