"""dmr_gym.tables: how numbers are written."""

from __future__ import annotations

import math

from dmr_gym.metrics import Interval
from dmr_gym.tables import number, percent, with_interval


def test_what_rounds_to_zero_has_no_minus() -> None:
    """-0.0004 to three digits is 0.000, with its sign +0.000; -0.0006 keeps the minus, and no number is a dash."""
    assert [number(value, 3) for value in (-0.0004, -0.0006, None, math.nan)] == ["0.000", "-0.001", "–", "–"]
    assert percent(-0.0001) == "0.0"
    assert with_interval(-0.0001, Interval(-0.2, -0.0), 2) == "0.00 [-0.20, 0.00]"
    assert with_interval(-0.0001, Interval(-0.2, 0.1), 2, sign=True) == "+0.00 [-0.20, +0.10]"
