"""Draws that come out the same on every machine and Python version."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Chance:
    """Chance from ``random.Random(str).random()`` alone, the one sequence that Python guarantees for ever."""

    def __init__(self, seed: str) -> None:
        """Start the sequence that belongs to a text."""
        self._random = random.Random(seed).random

    def happens(self, probability: float) -> bool:
        """True with a probability."""
        return self._random() < probability

    def integer(self, low: int, high: int) -> int:
        """One of low, low + 1, ..., high."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[_T]) -> _T:
        """One item, all equally likely."""
        return items[int(self._random() * len(items))]

    def weighted(self, weights: Sequence[float]) -> int:
        """An index, as likely as its weight."""
        point = self._random() * sum(weights)
        for index, weight in enumerate(weights):
            point -= weight
            if point < 0:
                return index
        return len(weights) - 1

    def sample(self, items: Sequence[_T], size: int) -> list[_T]:
        """So many different places of a sequence, or all of them, in random order."""
        pool = list(items)
        size = min(size, len(pool))
        for place in range(size):
            other = self.integer(place, len(pool) - 1)
            pool[place], pool[other] = pool[other], pool[place]
        return pool[:size]

    def shuffled(self, items: Sequence[_T]) -> list[_T]:
        """All items in random order."""
        return self.sample(items, len(items))
