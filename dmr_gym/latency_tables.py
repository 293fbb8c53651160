"""A measured latency profile as a table, with the lengths of steps from which on routing saves time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmr_gym.backends.kernels import DEQUANTIZED
from dmr_gym.latency import Profile, break_even_tokens
from dmr_gym.latency_sessions import PREFILL_DECODE
from dmr_gym.metrics import Interval
from dmr_gym.tables import Table, number, with_interval

Row = Mapping[str, Any]


def break_even_rows(profile: Profile, precisions: Sequence[str], budgets: Sequence[float]) -> list[dict[str, Any]]:
    """The tokens of a step from which on routing to each lower precision saves time, at equal trajectories.

    Args:
        profile: that was measured.
        precisions: names, ascending.
        budgets: shares of steps at the highest precision.

    Returns:
        Rows of the lower precision, the budget, and the tokens; these are None where it is no faster than the highest.
    """
    linear = profile.kinds["token-linear"]
    *lower, high_ms = (linear["ms_per_token"][name] for name in precisions)
    rows = []
    for name, low_ms in zip(precisions, lower, strict=False):
        for budget in budgets:
            saves = low_ms < high_ms
            tokens = break_even_tokens(high_ms, low_ms, linear["router_ms"], budget) if saves else None
            rows.append({"precision": name, "budget": budget, "tokens": tokens})
    return rows


def latency_table(profile: Profile, precisions: Sequence[str], break_even: Sequence[Row]) -> Table:
    """A line a precision; below it the router's time, and the tokens from which on routing pays.

    Args:
        profile: that was measured.
        precisions: names, ascending.
        break_even: of `break_even_rows`.
    """
    linear, fitted, ends = (
        profile.kinds["token-linear"],
        profile.kinds["prefill-decode"],
        profile.intervals["token-linear"],
    )
    rows = []
    for name in precisions:
        label = f"{name} projected: {profile.projected[name]}" if name in profile.projected else name
        label += f" {DEQUANTIZED}" if name in profile.dequantized else ""
        per_token, interval = linear["ms_per_token"][name], ends["ms_per_token"].get(name)
        measured = with_interval(per_token, Interval(*interval), 2) if interval else number(per_token, 2)
        fit = profile.fit.get(name)
        coefficients = (number(fitted[kind][name], 3) for kind in PREFILL_DECODE)
        rows.append((label, measured, *coefficients, number(fit["r_squared"], 3) if fit else ""))
    columns = ("precision", "a token (Eq. 10)", "a prefill token", "a decode token", "a call", "R² of the fit")
    played = profile.measurement
    router = with_interval(linear["router_ms"], Interval(*ends["router_ms"]), 2)
    notes = (
        f"{played['sessions']} sessions, {played['concurrency']} at a time, {played['clock']}. Brackets: 95 % "
        f"intervals over sessions. A routing decision (Eq. 11): {router} ms.",
        *_unpacked(profile),
        *_paying(precisions, break_even),
    )
    return Table("Latency, ms", columns, tuple(rows), notes)


def _unpacked(profile: Profile) -> list[str]:
    notes = [f"{name} is {why}; it was measured with unpacked weights." for name, why in profile.dequantized.items()]
    for name, how in profile.projected.items():
        if how.partition(" ")[0] in profile.dequantized:
            notes.append(f"Warning: {name} is projected from a precision that was measured with unpacked weights.")
    return notes


def _paying(precisions: Sequence[str], break_even: Sequence[Row]) -> list[str]:
    notes = []
    for name in precisions[:-1]:
        mine, pair = [row for row in break_even if row["precision"] == name], f"{name} and {precisions[-1]}"
        if any(row["tokens"] is None for row in mine):
            notes.append(f"Routing between {pair} saves no time: {name} is no faster.")
        else:
            told = ", ".join(f"{row['tokens']:.1f} at K={row['budget']:g}" for row in mine)
            notes.append(f"Routing between {pair} saves time in steps of more tokens than: {told}.")
    return notes
