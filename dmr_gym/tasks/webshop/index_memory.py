"""How much of a mapped index stays in memory: the pages of the terms that were read last."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from dmr_gym.tasks.webshop.index_arrays import IndexArrays

RESIDENT_BYTES = 1 << 30
"""So much of what grows with postings stays resident at most; without an end to it all 5 GB of a million products would
after some thousand searches."""
FAULT_AROUND_BYTES = 1 << 16
"""So much of a file Linux maps at once where a page of it is missing."""


def release_pages(array: NDArray[Any], start: int = 0, stop: int | None = None) -> None:
    """Give the pages of a mapped array back to the system, which keeps them as long as it has memory to spare.

    What is read again costs a minor page fault. Arrays in memory, and systems that cannot do it, stay as they are.

    Args:
        array: of `map_array`.
        start: first number that is let go, counted over all dimensions; what Linux mapped around it goes, too.
        stop: the first one that is not; None means all from ``start`` on.
    """
    mapped = getattr(array.base, "_mmap", None)
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    header = int(getattr(array.base, "offset", 0)) % mmap.ALLOCATIONGRANULARITY
    first = header + start * array.itemsize
    last = len(mapped) if stop is None else header + stop * array.itemsize
    first -= first % FAULT_AROUND_BYTES
    last = min(len(mapped), -(-last // FAULT_AROUND_BYTES) * FAULT_AROUND_BYTES)
    if last > first:
        mapped.madvise(mmap.MADV_DONTNEED, first, last - first)


class ResidentTerms:
    """The terms whose pages can be resident. Those that were read longest ago are let go of first.

    Args:
        arrays: the index.
        rows: of frequent terms in the dense arrays, by term.
        limit: bytes.
    """

    def __init__(self, arrays: IndexArrays, rows: Mapping[int, int], limit: int) -> None:
        self._arrays, self._rows, self._limit = arrays, rows, limit
        large = (arrays.dense_codes, arrays.dense_tfs, arrays.docs, arrays.tfs, arrays.codes)
        self._is_bounded = sum(array.nbytes for array in large) > limit
        self._bytes: OrderedDict[int, int] = OrderedDict()
        self._total = 0

    def read(self, term: int) -> None:
        """Note that a search has read a term."""
        if not self._is_bounded:
            return
        if term in self._bytes:
            self._bytes.move_to_end(term)
            return
        parts = self._parts(term)
        size = sum((stop - start) * array.itemsize + FAULT_AROUND_BYTES for array, start, stop in parts)
        self._bytes[term] = size
        self._total += size
        while self._total > self._limit:
            oldest, size = self._bytes.popitem(last=False)
            self._total -= size
            for part in self._parts(oldest):
                release_pages(*part)

    def _parts(self, term: int) -> list[tuple[NDArray[Any], int, int]]:
        """Arrays that have something of a term, and from where to where."""
        arrays, row = self._arrays, self._rows.get(term)
        if row is not None:
            start = row * arrays.meta.n_products
            return [(array, start, start + arrays.meta.n_products) for array in (arrays.dense_codes, arrays.dense_tfs)]
        start, stop = int(arrays.starts[term]), int(arrays.starts[term + 1])
        return [(array, start, stop) for array in (arrays.docs, arrays.tfs, arrays.codes)]
