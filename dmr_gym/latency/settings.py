"""From plain settings to a cost model, and where its prices come from, in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dmr_gym.config import unknown_name
from dmr_gym.errors import ConfigError
from dmr_gym.factory import build
from dmr_gym.latency.models import CachedPrefixCost, TokenLinearLatency, TokenPrices, WallClockLatency
from dmr_gym.latency.profiles import load_profile, profile_settings
from dmr_gym.latency.table import CalibrationRow, check_bits, project_w3_row, table_row
from dmr_gym.types import LatencyModel

QUANTITIES = {
    "token-linear": ("modelled seconds", "s"),
    "prefill-decode": ("modelled seconds", "s"),
    "wall-clock": ("measured seconds", "s"),
    "money": ("dollars", "$"),
    "energy": ("joules", "J"),
}
"""What each kind of latency model gives, in words, and its unit."""

_VLLM_BLOCK = 16


def make_latency_model(name_or_mapping: str | Mapping[str, Any], precisions: Sequence[str]) -> LatencyModel:
    """Build a latency model from plain data.

    Args:
        name_or_mapping: the name of a row in `TABLE_3`, whose ℓ_l prices the lower and ℓ_h the higher of two
            precisions; or ``{"ms_per_token": {"w3": 14.58, "w4": 16.77, "bf16": 25.02}, "router_ms": 19.9}``, with
            ``"projected": ["w3"]`` where prices among them are not measured, which labels then say; or
            ``{"row": name, "router_ms": 0}``, a row with some settings replaced. A row prices names that begin with
            other bits than its own, such as w2 or w4-awq, only with ``"allow_other_bits": True``;
            ``{"row": "webshop-4b-awq-w4", "project_w3": True}`` prices W3 as the paper does: AWQ's W4 / 1.15.
            ``{"kind": ...}`` chooses another model: "prefill-decode", "money", "energy" or "wall-clock", whose settings
            docs/latency.md lists. ``{"profile": name or path}`` takes what `agents/calibrate_latency.py` measured.
        precisions: the names to price, in ascending precision.

    Raises:
        ConfigError: for an unknown name or setting, or prices that do not match the precisions.
    """
    settings = _settings(name_or_mapping)
    if "profile" in settings:
        measured = profile_settings(settings.pop("profile"), settings["kind"], tuple(precisions))
        settings = measured | settings
    builders: dict[str, Callable[..., LatencyModel]] = {
        "token-linear": _token_linear,
        "prefill-decode": _prefill_decode,
        "money": _money,
        "energy": _energy,
        "wall-clock": _wall_clock,
    }
    return build("latency", builders, settings, precisions)


@dataclass(frozen=True, slots=True)
class PriceSource:
    """Where the prices of a latency setting come from, to stand beside every time computed with them.

    Attributes:
        row: name of the row of Table 3 that prices the tokens; None where they are given.
        projected: whether a price among them is projected rather than measured.
        label: in words, for example "prices of alfworld-4b-gptq-w3, W3 projected", or "wall clock of the calls, w3
            dequantized" where a time is that of weights unpacked to 16 bits.
        quantity: what they make of a call: "modelled seconds", "measured seconds", "dollars" or "joules".
        unit: of that: "s", "$" or "J".
    """

    row: str | None
    projected: bool
    label: str
    quantity: str = "modelled seconds"
    unit: str = "s"

    @property
    def title(self) -> str:
        """Quantity and label, for tables and pictures."""
        return f"{self.quantity}, {self.label}"


def price_source(
    name_or_mapping: str | Mapping[str, Any],
    precisions: Sequence[str] | None = None,
    dequantized: Collection[str] = (),
) -> PriceSource:
    """Say where the token prices of a latency setting that `make_latency_model` accepts come from.

    Args:
        name_or_mapping: the setting.
        precisions: that it prices; None stands for all that it can.
        dequantized: those that the backend computes with unpacked weights, `dmr_gym.backends.kernels`: the wall clock
            of their calls is not that of their bits.

    Raises:
        ConfigError: an unknown row or profile.
    """
    settings = _settings(name_or_mapping)
    quantity, unit = QUANTITIES[settings["kind"]]
    if settings["kind"] == "wall-clock":
        unpacked = [p for p in precisions or dequantized if p in dequantized]
        return PriceSource(None, False, f"wall clock of the calls{_note(unpacked, 'dequantized')}", quantity, unit)
    if "profile" in settings and not any(key.startswith(("ms_per_", "joules_", "dollars_")) for key in settings):
        name = settings["profile"]
        profile = load_profile(name)
        guessed, unpacked = (
            [p for p in names if precisions is None or p in precisions]
            for names in (profile.projected, profile.dequantized)
        )
        note = _note(guessed, "projected") + _note(unpacked, "dequantized")
        return PriceSource(None, bool(guessed), f"profile {name}{note}", quantity, unit)
    if "row" not in settings or "ms_per_token" in settings:
        declared = settings.get("projected", ())
        guessed = [p for p in settings.get("ms_per_token") or () if p in declared]
        return PriceSource(None, bool(guessed), f"prices of your own{_note(guessed, 'projected')}", quantity, unit)
    row: str = settings["row"]
    projected = table_row(row).projected or settings.get("project_w3") is True
    note = ", W3 projected" if projected else ""
    return PriceSource(row, projected, f"prices of {row}{note}", quantity, unit)


def _note(names: Sequence[str], how: str) -> str:
    return f", {' and '.join(names)} {how}" if names else ""


def _settings(name_or_mapping: object) -> dict[str, Any]:
    if isinstance(name_or_mapping, str):
        name_or_mapping = {"row": name_or_mapping}
    if not isinstance(name_or_mapping, Mapping):
        raise ConfigError(f"latency must be a row of Table 3 or a mapping, got {name_or_mapping!r}")
    settings = {"kind": "token-linear", **name_or_mapping}
    if settings["kind"] not in QUANTITIES:
        raise ConfigError(unknown_name("latency kind", settings["kind"], QUANTITIES))
    if "profile" in settings and "row" in settings:
        raise ConfigError(
            "latency takes its prices from a row of Table 3 or from a profile, and got both: "
            f"set it to {{'profile': {settings['profile']!r}}} as a whole"
        )
    _check_projected(settings.get("projected", ()), settings.get("ms_per_token"))
    return settings


def _check_projected(names: object, prices: object) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"latency projected must be a list of precisions, got {names!r}")
    priced = list(prices) if isinstance(prices, Mapping) else []
    for name in names:
        if name not in priced:
            what = "precision in latency projected, which names prices of ms_per_token:"
            raise ConfigError(unknown_name(what, name, priced))


def _token_linear(
    precisions: Sequence[str],
    *,
    row: str | None = None,
    ms_per_token: Mapping[str, float] | None = None,
    router_ms: float | None = None,
    allow_other_bits: bool = False,
    project_w3: bool = False,
    projected: Sequence[str] = (),  # changes no price: `price_source` says it
) -> TokenLinearLatency:
    known = None if row is None else project_w3_row(row) if project_w3 is True else table_row(row)
    if ms_per_token is None:
        ms_per_token = _row_prices(row, known, precisions, allow_other_bits, 3 if project_w3 is True else None)
    if router_ms is None and known is not None:
        router_ms = known.router_ms
    _check_precisions("ms_per_token", ms_per_token, precisions)
    if router_ms is None:
        raise ConfigError("latency needs router_ms, ms per routing decision (0 where no router runs)")
    return TokenLinearLatency(dict(ms_per_token), router_ms)


def _prefill_decode(
    precisions: Sequence[str],
    *,
    ms_per_prefill_token: Mapping[str, float],
    ms_per_decode_token: Mapping[str, float],
    router_ms: float,
    ms_per_call: Mapping[str, float] | None = None,
    block_tokens: int = _VLLM_BLOCK,
    warm_tokens: int = 0,
) -> CachedPrefixCost:
    prefill = _scaled("ms_per_prefill_token", ms_per_prefill_token, precisions, 1000)
    decode = _scaled("ms_per_decode_token", ms_per_decode_token, precisions, 1000)
    call = _scaled("ms_per_call", ms_per_call, precisions, 1000)
    prices = {p: TokenPrices(prompt=prefill[p], completion=decode[p], call=call[p]) for p in precisions}
    return CachedPrefixCost(prices, _per("router_ms", router_ms, 1000), "s", block_tokens, warm_tokens)


def _money(
    precisions: Sequence[str],
    *,
    dollars_per_million: Mapping[str, Mapping[str, float]],
    router_dollars: float = 0.0,
    block_tokens: int = 1,
    warm_tokens: int = 0,
) -> CachedPrefixCost:
    _check_precisions("dollars_per_million", dollars_per_million, precisions)
    prices = {}
    for name, table in dollars_per_million.items():
        where = f"dollars_per_million.{name}"
        if not isinstance(table, Mapping) or not {"prompt", "completion"} <= set(table):
            raise ConfigError(f"latency {where} needs prompt and completion, and may have cached, got {table!r}")
        for kind in table:
            if kind not in ("prompt", "cached", "completion"):
                raise ConfigError(unknown_name(f"price {where}:", kind, ("prompt", "cached", "completion")))
        full = {"cached": table["prompt"], **table}  # without a rebate a cached token costs what any costs
        prices[name] = TokenPrices(**{kind: _per(f"{where}.{kind}", value, 1e6) for kind, value in full.items()})
    return CachedPrefixCost(prices, router_dollars, "$", block_tokens, warm_tokens)


def _energy(
    precisions: Sequence[str],
    *,
    joules_per_token: Mapping[str, float],
    joules_per_prefill_token: Mapping[str, float] | None = None,
    router_joules: float = 0.0,
    block_tokens: int = _VLLM_BLOCK,
    warm_tokens: int = 0,
) -> CachedPrefixCost:
    decode = _scaled("joules_per_token", joules_per_token, precisions, 1)
    prefill = _scaled("joules_per_prefill_token", joules_per_prefill_token, precisions, 1)
    prices = {p: TokenPrices(prompt=prefill[p], completion=decode[p]) for p in precisions}
    return CachedPrefixCost(prices, router_joules, "J", block_tokens, warm_tokens)


def _wall_clock(precisions: Sequence[str], *, router_ms: float = 0.0) -> WallClockLatency:
    return WallClockLatency(router_ms)


def _row_prices(
    row: str | None,
    prices: CalibrationRow | None,
    precisions: Sequence[str],
    allow_other_bits: bool,
    low_bits: int | None,
) -> dict[str, float]:
    if row is None or prices is None or len(precisions) != 2:
        example = ", ".join(f"{name!r}: ..." for name in precisions)
        why = f"has two prices, but there are {len(precisions)} precisions" if row else "or a row of Table 3 is needed"
        raise ConfigError(f"latency {why}: pass {{'ms_per_token': {{{example}}}, 'router_ms': ...}}")
    if allow_other_bits is not True:
        check_bits(row, precisions, low_bits)
    return dict(zip(precisions, (prices.low_ms, prices.high_ms), strict=True))


def _check_precisions(name: str, values: object, precisions: Sequence[str]) -> None:
    if not isinstance(values, Mapping) or set(values) != set(precisions):
        got = list(values) if isinstance(values, Mapping) else values
        raise ConfigError(f"latency {name} must price exactly the precisions {list(precisions)}, got {got!r}")


def _scaled(
    name: str, values: Mapping[str, float] | None, precisions: Sequence[str], divisor: float
) -> dict[str, float]:
    """One number a precision, in the model's unit; zeros where none are given."""
    if values is None:
        return dict.fromkeys(precisions, 0.0)
    _check_precisions(name, values, precisions)
    return {key: _per(f"{name}.{key}", value, divisor) for key, value in values.items()}


def _per(name: str, value: object, divisor: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"latency {name} must be a number, got {value!r}")
    return value / divisor
