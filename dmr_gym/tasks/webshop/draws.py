"""What a session draws at random, from the generator that drew the prices before."""

from __future__ import annotations

import random
import string
from typing import Any

from dmr_gym.tasks.webshop.goals import GoalBook

NAME_LENGTH = 10
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
