"""The paper's Table 3 by name, and the rule by which its 3-bit row is projected."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from dmr_gym.config import unknown_name
from dmr_gym.errors import ConfigError

W3_SPEEDUP = 1.15
"""How much faster than AWQ's W4 a 3-bit kernel would decode (appendix A.3): ℓ_W3 = ℓ_AWQ-W4 / 1.15, never measured."""


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


def table_row(name: object) -> CalibrationRow:
    """Return a row of Table 3.

    Raises:
        ConfigError: there is none of that name.
    """
    if not isinstance(name, str) or name not in TABLE_3:
        raise ConfigError(unknown_name("latency row of Table 3", name, TABLE_3))
    return TABLE_3[name]


def project_w3_row(name: str) -> CalibrationRow:
    """Return a row for 3 bits, made from one of AWQ's W4 as appendix A.3 makes it: ℓ_W3 = ℓ_AWQ-W4 / 1.15.

    Raises:
        ConfigError: the row is not one of AWQ's W4.
    """
    measured = table_row(name)
    if not name.endswith("-awq-w4"):
        fitting = [row for row in TABLE_3 if row.endswith("-awq-w4")]
        raise ConfigError(
            f"latency project_w3 divides the W4 price of AWQ by {W3_SPEEDUP}: use one of {fitting}, not {name!r}"
        )
    return replace(measured, low_ms=measured.low_ms / W3_SPEEDUP, projected=True)


def check_bits(row: str, precisions: Sequence[str], low_bits: int | None = None) -> None:
    """Refuse to price a precision whose name says other bits than the row has: W4 prices are not those of W2.

    Args:
        row: a name in `TABLE_3`.
        precisions: the lower and the higher one.
        low_bits: what the lower price was projected to; None for the row's own.

    Raises:
        ConfigError: a name begins with other bits; the message says which row would do.
    """
    family, _, measured_bits = row.rpartition("-w")
    for name, bits in zip(precisions, (low_bits or int(measured_bits), 16), strict=True):
        named = re.match(r"w(\d+)", name, re.IGNORECASE)
        if named is None or int(named[1]) == bits:
            continue
        fitting = [other for other in TABLE_3 if other.endswith(f"-w{named[1]}")] if bits != 16 else []
        fitting.sort(key=lambda other: not other.startswith(family.rpartition("-")[0]))
        hint = f"use {fitting[0]!r}" if fitting else f"no row of Table 3 has a W{named[1]} price at that place"
        if bits == 4 and named[1] == "3" and row.endswith("-awq-w4"):
            hint = f"{{'row': {row!r}, 'project_w3': True}} prices W3 as the paper does"
        example = ", ".join(f"{precision!r}: ..." for precision in precisions)
        raise ConfigError(
            f"latency row {row!r} prices {bits} bits, but it would price the precision {name!r}: {hint}; or pass "
            f"{{'ms_per_token': {{{example}}}, 'router_ms': ...}} or {{'row': {row!r}, 'allow_other_bits': True}}"
        )
