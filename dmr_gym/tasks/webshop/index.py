"""The search index of a shop: the products that match a query best, ranked as Lucene ranks them.

::

    index = SearchIndex.build(texts, asins)               # in memory
    build_index(texts, asins, folder, progress=None)      # files of arrays and index.json, in bounded memory
    index = SearchIndex.open(folder)                      # mapped to memory
    index.search("red shoes", k=50)                       # product numbers, best first
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dmr_gym.errors import CacheError
from dmr_gym.tasks.webshop.analyzer import analyse
from dmr_gym.tasks.webshop.index_arrays import IndexArrays
from dmr_gym.tasks.webshop.index_build import build_index
from dmr_gym.tasks.webshop.index_merge import DENSE_FROM_PRODUCTS, merge
from dmr_gym.tasks.webshop.index_runs import Inverter
from dmr_gym.tasks.webshop.index_search import QueryTerm, Ranker

__all__ = ["SearchIndex", "build_index"]

_KEPT_TERMS = 1 << 16


class SearchIndex:
    """Ranks products by BM25. Immutable, so engines can share it; words of recent queries are kept in a bounded memory.

    Args:
        arrays: what `build` makes and `open` reads.
        folder: where the arrays are on disk; None for arrays in memory.
    """

    def __init__(self, arrays: IndexArrays, folder: Path | None = None) -> None:
        self._arrays = arrays
        self._folder = folder
        self._ranker = Ranker(arrays)
        self._terms: dict[tuple[str, int], QueryTerm | None] = {}

    @classmethod
    def build(
        cls, texts: Iterable[str], asins: Sequence[str] | NDArray[Any], dense_from: int = DENSE_FROM_PRODUCTS
    ) -> SearchIndex:
        """Index texts in memory.

        Args:
            texts: text of each product.
            asins: asin of each product.
            dense_from: smallest number of products with which frequent terms get dense rows.

        Raises:
            ConfigError: there are not as many texts as asins.
        """
        return cls(merge([Inverter().invert(texts, 0)], asins, dense_from=dense_from))

    @classmethod
    def open(cls, folder: Path | str) -> SearchIndex:
        """Map an index to memory.

        Raises:
            CacheError: the folder holds no index, or one of another format, or it is damaged.
        """
        return cls(IndexArrays.open(Path(folder)), Path(folder))

    def __len__(self) -> int:
        """Number of products."""
        return self._arrays.meta.n_products

    def search(self, query: str, k: int = 50) -> list[int]:
        """The k products that match a query best.

        Args:
            query: any text; words that no product has are ignored, repeated ones weigh more.
            k: how many products at most.

        Returns:
            Product numbers, best first, equal scores by asin; only products that have a word of the query.

        Raises:
            CacheError: a number on disk is impossible, because a file was changed after it was written.
        """
        try:
            return self._ranker.rank(self._query_terms(query), k)
        except (IndexError, ValueError) as error:
            if self._folder is None:
                raise
            raise CacheError(
                f"index {self._folder} is damaged ({error}); delete the folder and build it again"
            ) from error

    def _query_terms(self, query: str) -> list[QueryTerm]:
        counts: dict[str, int] = {}  # several times as fast as a Counter for a few words
        for word in analyse(query):
            counts[word] = counts.get(word, 0) + 1
        return [term for item in counts.items() if (term := self._query_term(*item)) is not None]

    def _query_term(self, word: str, count: int) -> QueryTerm | None:
        """A word of a query, from memory if it was asked for before; None when no product has it."""
        try:
            return self._terms[word, count]
        except KeyError:
            number = self._find(word.encode("utf-8", "surrogatepass"))
        if len(self._terms) >= _KEPT_TERMS:
            self._terms.clear()
        term = self._terms[word, count] = None if number < 0 else self._ranker.query_term(number, count)
        return term

    def _find(self, term: bytes) -> int:
        """Binary search for a term; -1 when it is absent."""
        low, high = 0, len(self._arrays.dfs)
        while low < high:
            middle = (low + high) // 2
            if self._term(middle) < term:
                low = middle + 1
            else:
                high = middle
        return low if low < len(self._arrays.dfs) and self._term(low) == term else -1

    def _term(self, number: int) -> bytes:
        ends = self._arrays.term_ends
        return self._arrays.term_bytes[ends[number] : ends[number + 1]].tobytes()
