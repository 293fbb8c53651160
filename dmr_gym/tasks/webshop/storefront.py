"""What all engines of one shop share: ready pieces of pages, answers to searches, and goals by seed, each bounded."""

from __future__ import annotations

import random
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from dmr_gym.tasks.webshop.goals import GoalBook
from dmr_gym.tasks.webshop.pages import ProductPieces
from dmr_gym.tasks.webshop.rules import MAX_RESULTS

if TYPE_CHECKING:
    from dmr_gym.tasks.webshop.shop import Shop

KEPT_PRODUCTS = 2048
KEPT_SEARCHES = 1024
KEPT_GOAL_BOOKS = 4


class SeededGoals(NamedTuple):
    """The goals of a shop under a seed, and the state in which drawing them leaves the generator."""

    book: GoalBook
    rng_state: tuple[Any, ...]


class Storefront:
    """Caches of one shop, which has them as `Shop.storefront`."""

    def __init__(self, shop: Shop) -> None:
        """Begin with empty caches."""
        self._shop = shop
        self.pieces = lru_cache(KEPT_PRODUCTS)(self._make_pieces)
        self.search = lru_cache(KEPT_SEARCHES)(self._search)
        self.nouns = lru_cache(KEPT_PRODUCTS)(self._nouns_of)
        self.goals = lru_cache(KEPT_GOAL_BOOKS)(self._make_goals)

    def _make_pieces(self, number: int) -> ProductPieces:
        return ProductPieces(self._shop.catalogue[number])

    def _search(self, query: str) -> tuple[int, ...]:
        return tuple(self._shop.index.search(query, MAX_RESULTS))

    def _nouns_of(self, asin: str) -> tuple[str, ...]:
        return self._shop.nouns.nouns_of(asin)

    def _make_goals(self, seed: int, mode: str) -> SeededGoals:
        rng = random.Random(seed)
        human = self._shop.human if mode == "human" else None
        book = GoalBook.build(self._shop.catalogue, human, mode, rng)
        return SeededGoals(book, rng.getstate())
