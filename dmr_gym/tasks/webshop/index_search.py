"""The best products for some terms: by scoring all, or by scoring those that can still be among the best.

A large catalogue has for each posting a code, an upper bound of what its term adds to the product's score. Adding codes
is cheap: those of frequent terms are rows of bytes. The products with the largest sums are scored first; then only
those whose sum is not below the k-th best score so far. Both ways give the same ranking, that of the exact scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.tasks.webshop import bm25, index_memory
from dmr_gym.tasks.webshop.index_arrays import MAX_TF, IndexArrays
from dmr_gym.tasks.webshop.index_memory import ResidentTerms
from dmr_gym.tasks.webshop.index_merge import MAX_DENSE_CODE

_KEPT_POSTINGS = 1 << 22
_SAMPLED = 1 << 15
_FIRST_CANDIDATES = 6  # times k
_MORE_CANDIDATES = 8  # times as many in the next round
_BYTE = 255
_INFINITY_BITS = np.int64(0x7F800000)
_LARGEST_CODE = 250  # of 2^31 products' rarest term


@dataclass(frozen=True)
class QueryTerm:
    """A term of a query that the index has.

    Attributes:
        number: of the term.
        count: how often it stands in the query.
        weight: count · idf.
    """

    number: int
    count: int
    weight: np.float32


class Ranker:
    """Ranks products.

    Args:
        arrays: the index.
    """

    def __init__(self, arrays: IndexArrays) -> None:
        self._arrays = arrays
        self._inverse_norms = bm25.inverse_norms(arrays.meta.n_documents, arrays.meta.n_terms)
        self._dense_rows = {term: row for row, term in enumerate(arrays.dense_terms.tolist())}
        self._terms_with_large_tfs = frozenset(arrays.large_tfs[:, 0].tolist())
        self._kept: dict[tuple[int, int], tuple[NDArray[np.intp], NDArray[np.float64]]] = {}
        self._n_kept = 0
        self._resident = ResidentTerms(arrays, self._dense_rows, index_memory.RESIDENT_BYTES)

    def query_term(self, number: int, count: int) -> QueryTerm:
        """A term of a query with its weight."""
        idf = bm25.idf(self._arrays.meta.n_documents, int(self._arrays.dfs[number]))
        return QueryTerm(number, count, np.float32(count) * idf)

    def rank(self, terms: list[QueryTerm], k: int) -> list[int]:
        """The k best products.

        Args:
            terms: different terms of the index.
            k: how many products at most.

        Returns:
            Product numbers, best first, equal scores by asin; only products that have one of the terms
        """
        if not terms or k < 1:
            return []
        docs, scores = self._score_promising(terms, k) if len(self._arrays.dense_terms) else self._score_all(terms)
        best: list[int] = self._best(docs, scores, k).tolist()
        for term in terms:
            self._resident.read(term.number)
        return best

    def _best(self, docs: NDArray[np.intp], scores: NDArray[np.float32], k: int) -> NDArray[np.intp]:
        """The k best of some products in order."""
        # The bits of positive floats are ordered as the floats are: one number for falling score and rising asin.
        keys = _INFINITY_BITS - scores.view(np.int32).astype(np.int64) << 32 | self._arrays.asin_ranks[docs]
        if len(docs) > k:
            chosen = np.argpartition(keys, k - 1)[:k]
            docs, keys = docs[chosen], keys[chosen]
        return docs[np.argsort(keys)]

    # ------------------------------------------------------------------------------------------- all products

    def _score_all(self, terms: list[QueryTerm]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """All products that have a term, and their scores."""
        columns = [self._kept_parts(term) for term in terms]
        docs = np.concatenate([column[0] for column in columns])
        parts = np.concatenate([column[1] for column in columns])
        scores = np.bincount(docs, parts, self._arrays.meta.n_products).astype(np.float32)
        # A product that has a term has a score above 0: no document is so long that single precision would lose it.
        found = np.flatnonzero(scores)
        return found, scores[found]

    def _kept_parts(self, term: QueryTerm) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Products of a term and what it adds to their scores, from memory if it was asked for before."""
        key = (term.number, term.count)
        kept = self._kept.get(key)
        if kept is None:
            docs, parts = self._parts(term)
            kept = docs.astype(np.intp), parts.astype(np.float64)
            self._n_kept += len(docs)
            if self._n_kept > _KEPT_POSTINGS:
                self._kept.clear()
                self._n_kept = len(docs)
            self._kept[key] = kept
        return kept

    def _parts(self, term: QueryTerm) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Products of a rare term and what it adds to their scores."""
        postings = slice(int(self._arrays.starts[term.number]), int(self._arrays.starts[term.number + 1]))
        docs = self._arrays.docs[postings]
        return docs, self._weigh(term, docs, self._arrays.tfs[postings])

    def _weigh(self, term: QueryTerm, docs: NDArray[Any], tfs: NDArray[np.uint8]) -> NDArray[np.float32]:
        """What a term adds to the scores of products, given its frequencies in them; (n,) float32."""
        frequencies = tfs.astype(np.float32)
        if term.number in self._terms_with_large_tfs:
            first, last = np.searchsorted(self._arrays.large_tfs[:, 0], [term.number, term.number + 1])
            rows = self._arrays.large_tfs[first:last]
            is_large = tfs == MAX_TF
            frequencies[is_large] = rows[np.searchsorted(rows[:, 1], docs[is_large]), 2]
        return bm25.parts(term.weight, frequencies * self._inverse_norms[self._arrays.norms[docs]])

    # ------------------------------------------------------------------------------------- promising products

    def _score_promising(self, terms: list[QueryTerm], k: int) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Scored products, the k best among them, and all that tie with the k-th."""
        bounds = self._bounds(terms)
        levels = _Levels(bounds)
        slack = 1e-5 * float(sum(term.weight for term in terms))
        docs, scores = np.empty(0, np.intp), np.empty(0, np.float32)
        wanted, high, least_bound = _FIRST_CANDIDATES * k, levels.top + 1, 1
        while high > least_bound:
            low = max(least_bound, min(levels.level(wanted), high - 1))
            found = np.flatnonzero(bounds >= low if high > levels.top else (bounds >= low) & (bounds < high))
            docs = np.concatenate([docs, found])
            scores = np.concatenate([scores, self._scores(found.astype(np.int32), terms)])
            if len(docs) >= k:
                kth = float(np.partition(scores, len(docs) - k)[len(docs) - k])
                is_good = scores >= kth
                docs, scores = docs[is_good], scores[is_good]
                least_bound = max(1, math.ceil((kth - slack) / self._arrays.meta.code_unit))
            high, wanted = low, wanted * _MORE_CANDIDATES
        return docs, scores

    def _bounds(self, terms: list[QueryTerm]) -> NDArray[Any]:
        """Sums of codes: (D,) uint8, uint16 or uint32, an upper bound of each product's score in code units."""
        dense = [term for term in terms if term.number in self._dense_rows]
        rare = [term for term in terms if term.number not in self._dense_rows]
        total_count = sum(term.count for term in terms)
        if not rare and total_count * MAX_DENSE_CODE <= _BYTE:
            return self._add_rows(dense)
        bounds: NDArray[Any] = np.zeros(
            self._arrays.meta.n_products, np.uint16 if total_count * _LARGEST_CODE < 1 << 16 else np.uint32
        )
        group: list[QueryTerm] = []
        for term in dense:
            if term.count * MAX_DENSE_CODE > _BYTE:
                bounds += self._dense_codes(term) * bounds.dtype.type(term.count)
                continue
            if (term.count + sum(other.count for other in group)) * MAX_DENSE_CODE > _BYTE:
                bounds += self._add_rows(group)
                group = []
            group.append(term)
        if group:
            bounds += self._add_rows(group)
        for term in rare:
            postings = slice(int(self._arrays.starts[term.number]), int(self._arrays.starts[term.number + 1]))
            docs = self._arrays.docs[postings].astype(np.intp)
            bounds[docs] += self._arrays.codes[postings] * bounds.dtype.type(term.count)
        return bounds

    def _dense_codes(self, term: QueryTerm) -> NDArray[np.uint8]:
        row: NDArray[np.uint8] = self._arrays.dense_codes[self._dense_rows[term.number]]
        return row

    def _add_rows(self, terms: list[QueryTerm]) -> NDArray[np.uint8]:
        """Sum of the codes of frequent terms that fits in a byte; (D,) uint8."""
        first, *others = (
            self._dense_codes(term) if term.count == 1 else self._dense_codes(term) * np.uint8(term.count)
            for term in terms
        )
        if not others:
            return first
        total = first + others[0]
        for row in others[1:]:
            np.add(total, row, out=total)
        return total

    def _scores(self, docs: NDArray[np.int32], terms: list[QueryTerm]) -> NDArray[np.float32]:
        """Exact scores of some products, given in ascending order."""
        totals = np.zeros(len(docs), np.float64)
        for term in terms:
            row = self._dense_rows.get(term.number)
            if row is not None:
                totals += self._weigh(term, docs, self._arrays.dense_tfs[row][docs])
                continue
            postings = slice(int(self._arrays.starts[term.number]), int(self._arrays.starts[term.number + 1]))
            places, posts = _common(docs, self._arrays.docs[postings])
            totals[places] += self._weigh(term, docs[places], self._arrays.tfs[postings][posts])
        return totals.astype(np.float32)


def _common(left: NDArray[np.int32], right: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where two ascending arrays without repetitions have their common numbers: places in each."""
    if len(left) > len(right):
        second, first = _common(right, left)
        return first, second
    places = np.searchsorted(right, left)
    places[places == len(right)] = 0
    is_common = right[places] == left if len(right) else np.zeros(len(left), np.bool_)
    return np.flatnonzero(is_common), places[is_common]


class _Levels:
    """Which bound about so many products reach, judged from a sample.

    Args:
        bounds: (D,) unsigned integers.
    """

    def __init__(self, bounds: NDArray[Any]) -> None:
        self.top = int(bounds.max())
        step = max(1, len(bounds) // _SAMPLED)
        counts = np.bincount(bounds[::step], minlength=self.top + 1)
        self._reaching = np.cumsum(counts[::-1]) * step

    def level(self, wanted: int) -> int:
        """The largest bound that about ``wanted`` products reach, 1 at least."""
        return max(1, self.top - int(np.searchsorted(self._reaching, wanted)))
