"""WebShop's random prices and price caps, draw for draw those of Python's ``random``. N products, M caps."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from numpy.typing import NDArray

NO_CAP = 1_000_000.0
PRICE_STEPS = 10.0 * np.arange(1, 100)
MAX_CANDIDATES = 4
_NO_CANDIDATE = -1


def draw_prices(prices: NDArray[np.float64], rng: random.Random) -> NDArray[np.float64]:
    """Draw a price for every range, in catalogue order.

    Args:
        prices: (N, 2) float64 in dollars; NaN in the second column where there is one price.
        rng: advanced by one draw a range.

    Returns:
        (N,) float64 in dollars.
    """
    real = np.array(prices[:, 0])
    is_range = ~np.isnan(prices[:, 1])
    low, high = prices[is_range, 0], prices[is_range, 1]
    # The draws of random.uniform, a million times faster: numpy has the same generator behind random_sample.
    version, state, gauss = rng.getstate()
    twin = np.random.MT19937(0)
    twin.state = {
        "bit_generator": "MT19937",
        "state": {"key": np.array(state[:-1], np.uint32), "pos": state[-1]},
    }
    real[is_range] = low + (high - low) * np.random.RandomState(twin).random_sample(len(low))
    left: Any = twin.state["state"]
    rng.setstate((version, (*(int(word) for word in left["key"]), int(left["pos"])), gauss))
    return real


def draw_caps(prices: NDArray[np.float64], rng: random.Random) -> NDArray[np.float64]:
    """Draw a price cap for every price, in order: the larger of two of the next four multiples of ten dollars.

    Args:
        prices: (M,) float64 in dollars.
        rng: advanced as ``random.sample(candidates, 2)`` would, where there are two candidates or more.

    Returns:
        (M,) float64 in dollars; 1,000,000 where fewer than two candidates are left below a thousand.
    """
    first = np.searchsorted(PRICE_STEPS, prices, side="right")
    candidates = np.minimum(len(PRICE_STEPS) - first, MAX_CANDIDATES)
    drawn = [_larger_of_two(count, rng) if count >= 2 else _NO_CANDIDATE for count in candidates.tolist()]
    places = np.array(drawn, np.int64)
    has_cap = places != _NO_CANDIDATE
    caps = np.full(len(prices), NO_CAP)
    caps[has_cap] = PRICE_STEPS[first[has_cap] + places[has_cap]]
    return caps


def _larger_of_two(count: int, rng: random.Random) -> int:
    """The larger of two different places below ``count``, by the draws of ``random.sample(range(count), 2)``."""
    getrandbits = rng.getrandbits
    bits = count.bit_length()
    first = getrandbits(bits)
    while first >= count:
        first = getrandbits(bits)
    left = count - 1
    bits = left.bit_length()
    second = getrandbits(bits)
    while second >= left:
        second = getrandbits(bits)
    # sample() moves the last place into the gap that the first draw leaves.
    return max(first, left if second == first else second)
