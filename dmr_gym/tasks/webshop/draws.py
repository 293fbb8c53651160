"""WebShop's random draws, one by one those of Python's ``random``: prices and caps at loading, then those of sessions.

N counts products, M caps.
"""

from __future__ import annotations

import random
import string
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dmr_gym.tasks.webshop.goals import GoalBook

NAME_LENGTH = 10
NO_CAP = 1_000_000.0
PRICE_STEPS = 10.0 * np.arange(1, 100)
MAX_CANDIDATES = 4
_NO_CANDIDATE = -1
RngState = tuple[Any, ...]


class Draws:
    """A ``random.Random`` that draws as the original does and knows its own state for nothing while it stands still.

    Args:
        state: where to begin, as ``random.Random.getstate`` gives it.
    """

    def __init__(self, state: RngState) -> None:
        self._rng = random.Random()
        self._state: RngState | None = state
        self._rng.setstate(state)

    def name(self) -> str:
        """Draw a session's name."""
        self._state = None
        return "".join(self._rng.choices(string.ascii_lowercase, k=NAME_LENGTH))

    def goal(self, goals: GoalBook) -> int:
        """Draw a goal's number by weight."""
        self._state = None
        return goals.draw(self._rng)

    def sample(self, count: int, size: int) -> tuple[int, ...]:
        """Draw ``size`` different numbers below ``count``."""
        self._state = None
        return tuple(self._rng.sample(range(count), size))

    @property
    def state(self) -> RngState:
        """The generator's state, immutable."""
        if self._state is None:
            self._state = self._rng.getstate()
        return self._state

    @state.setter
    def state(self, state: RngState) -> None:
        if state is not self._state:
            self._rng.setstate(state)
            self._state = state


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
