"""Merge of runs, term by term, into the arrays of an index."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.tasks.webshop import bm25
from dmr_gym.tasks.webshop.index_arrays import (
    MAX_TF,
    ArrayFile,
    IndexArrays,
    IndexMeta,
    Progress,
    array_type,
    write_meta,
)
from dmr_gym.tasks.webshop.index_runs import Run

DENSE_FROM_PRODUCTS = 1 << 14
"""Catalogues of this size get dense rows for frequent terms; smaller ones are scored whole."""
DENSE_SHARE = 16
"""A term is frequent when one product in so many that have a term has it."""
MAX_DENSE_CODE = 31
"""Largest code of a frequent term: eight of them add up within a byte."""
_CODE_MARGIN = 1e-3  # makes up for rounding, here and in the scores of terms that a query repeats
_BLOCK_POSTINGS = 1 << 23


@dataclass(frozen=True)
class _Vocabulary:
    """The terms of all runs, and the number of each run's terms among them."""

    term_bytes: NDArray[np.uint8]
    term_ends: NDArray[np.int64]
    numbers: list[NDArray[np.int32]]
    dfs: NDArray[np.int64]


@dataclass(frozen=True)
class _Block:
    """Postings of the terms ``first`` to ``last`` (not included), by term and product."""

    first: int
    last: int
    docs: NDArray[np.int32]
    tfs: NDArray[np.uint8]


def merge(
    runs: Sequence[Run],
    asins: Sequence[str] | NDArray[Any],
    folder: Path | None = None,
    progress: Progress | None = None,
    dense_from: int = DENSE_FROM_PRODUCTS,
) -> IndexArrays:
    """Merge runs into an index.

    Args:
        runs: of consecutive products, in order.
        asins: asin of each product.
        folder: where the arrays are written; they stay in memory when None.
        progress: called with the stage "terms".
        dense_from: smallest number of products with which frequent terms get dense rows.

    Returns:
        The arrays, mapped when they were written.

    Raises:
        ConfigError: there are not as many products as asins.
    """
    lengths = np.concatenate([np.empty(0, np.int32), *(run.lengths for run in runs)])
    if len(lengths) != len(asins):
        raise ConfigError(f"expected as many texts as asins, got {len(lengths):,} texts and {len(asins):,} asins")
    vocabulary = _merge_terms(runs)
    n_products, n_documents = len(lengths), int(np.count_nonzero(lengths))
    has_dense = n_products >= dense_from
    is_dense = (vocabulary.dfs * DENSE_SHARE >= n_documents) & has_dense
    code_unit = float(bm25.idf(n_documents, max(1, n_documents // DENSE_SHARE))) / (MAX_DENSE_CODE - 2 * _CODE_MARGIN)
    meta = IndexMeta(n_products, n_documents, int(lengths.sum(dtype=np.int64)), code_unit)
    columns: dict[str, NDArray[Any]] = {
        "term_bytes": vocabulary.term_bytes,
        "term_ends": vocabulary.term_ends,
        "dfs": vocabulary.dfs,
        "starts": np.cumsum(np.where(is_dense, 0, vocabulary.dfs), dtype=np.int64),
        "norms": bm25.length_codes(lengths),
        "asin_ranks": _ranks(asins),
        "dense_terms": np.flatnonzero(is_dense),
        "large_tfs": _large_tfs(runs, vocabulary),
    }
    columns["starts"] = np.concatenate([np.zeros(1, np.int64), columns["starts"]])
    return _Assembly(meta, columns, folder, is_dense).fill(runs, vocabulary, progress)


class _Assembly:
    """Takes the blocks of postings apart into rare and frequent terms, and gives each posting its code."""

    def __init__(
        self, meta: IndexMeta, columns: dict[str, NDArray[Any]], folder: Path | None, is_dense: NDArray[np.bool_]
    ) -> None:
        self._meta = meta
        self._columns = columns
        self._folder = folder
        self._is_dense = is_dense
        n_postings, n_rows = (int(columns["starts"][-1]),), (len(columns["dense_terms"]), meta.n_products)
        shapes: dict[str, tuple[int, ...]] = {"docs": n_postings, "tfs": n_postings, "codes": n_postings}
        shapes |= {"dense_tfs": n_rows, "dense_codes": n_rows}
        self._files = {name: self._file(name, shape) for name, shape in shapes.items()}
        self._inverse_norms = bm25.inverse_norms(meta.n_documents, meta.n_terms)

    def _file(self, name: str, shape: tuple[int, ...]) -> ArrayFile:
        path = None if self._folder is None else self._folder / f"{name}.npy"
        return ArrayFile(path, array_type(name), shape)

    def fill(self, runs: Sequence[Run], vocabulary: _Vocabulary, progress: Progress | None) -> IndexArrays:
        """Write all postings and then the other arrays."""
        for block in _blocks(runs, vocabulary):
            self._add(block, vocabulary.dfs[block.first : block.last])
            if progress is not None:
                progress("terms", block.last, len(vocabulary.dfs))
        arrays = {name: file.finish() for name, file in self._files.items()}
        for name, values in self._columns.items():
            file = self._file(name, values.shape)
            file.append(values)
            arrays[name] = file.finish()
        if self._folder is not None:
            write_meta(self._folder, self._meta)
        return IndexArrays(meta=self._meta, **arrays)

    def _add(self, block: _Block, dfs: NDArray[np.int64]) -> None:
        codes = self._codes(block, dfs)
        is_dense = self._is_dense[block.first : block.last]
        ends = np.cumsum(dfs)
        for term in np.flatnonzero(is_dense).tolist():
            own = slice(int(ends[term] - dfs[term]), int(ends[term]))
            for name, values in (("dense_tfs", block.tfs), ("dense_codes", codes)):
                row = np.zeros(self._meta.n_products, np.uint8)
                row[block.docs[own]] = values[own]
                self._files[name].append(row)
        rare = np.repeat(~is_dense, dfs) if is_dense.any() else slice(None)
        postings: dict[str, NDArray[Any]] = {"docs": block.docs, "tfs": block.tfs, "codes": codes}
        for name, values in postings.items():
            self._files[name].append(values[rare])

    def _codes(self, block: _Block, dfs: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Codes of a block's postings, (n,) uint8."""
        unit = np.float32(self._meta.code_unit)
        idfs = np.array([bm25.idf(self._meta.n_documents, df) for df in dfs.tolist()], np.float32)
        weights = np.repeat(idfs / unit, dfs)
        products = block.tfs * self._inverse_norms[self._columns["norms"][block.docs]]
        products[block.tfs == MAX_TF] = np.inf  # the frequency may be larger: a bound for all
        scores = weights - weights / (1 + products)
        codes: NDArray[np.uint8] = np.ceil(scores + np.float32(_CODE_MARGIN)).astype(np.uint8)
        return codes


def _merge_terms(runs: Sequence[Run]) -> _Vocabulary:
    term_bytes, term_ends = bytearray(), array("q", [0])
    numbers = [array("i") for _ in runs]
    last, number = b"", -1
    for term, run in heapq.merge(*(zip(run.terms(), repeat(place)) for place, run in enumerate(runs))):
        if term != last or number < 0:
            last, number = term, number + 1
            term_bytes += term
            term_ends.append(len(term_bytes))
        numbers[run].append(number)
    arrays = [np.array(values, dtype=np.int32) for values in numbers]
    dfs = np.zeros(number + 1, np.int64)
    for run_numbers, values in zip(arrays, runs, strict=True):
        dfs[run_numbers] += values.dfs
    return _Vocabulary(np.frombuffer(term_bytes, np.uint8), np.array(term_ends, dtype=np.int64), arrays, dfs)


def _blocks(runs: Sequence[Run], vocabulary: _Vocabulary) -> Iterator[_Block]:
    """All postings in the order of the terms, some millions at a time, one term at least."""
    ends = np.cumsum(vocabulary.dfs)
    run_starts = [np.concatenate([[0], np.cumsum(run.dfs, dtype=np.int64)]) for run in runs]
    first = done = 0
    while first < len(ends):
        last = max(first + 1, int(np.searchsorted(ends, done + _BLOCK_POSTINGS, "right")))
        size = int(ends[last - 1]) - done
        docs, tfs = np.empty(size, np.int32), np.empty(size, np.uint8)
        free = ends[first:last] - vocabulary.dfs[first:last] - done
        for run, starts, numbers in zip(runs, run_starts, vocabulary.numbers, strict=True):
            low, high = np.searchsorted(numbers, [first, last]).tolist()
            start, end = int(starts[low]), int(starts[high])
            terms, counts = numbers[low:high] - first, run.dfs[low:high]
            places = np.repeat(free[terms] - (starts[low:high] - start), counts) + np.arange(end - start)
            docs[places], tfs[places] = run.docs[start:end], run.tfs[start:end]
            free[terms] += counts
        yield _Block(first, last, docs, tfs)
        first, done = last, done + size


def _large_tfs(runs: Sequence[Run], vocabulary: _Vocabulary) -> NDArray[np.int64]:
    """The rows (term, product, frequency) of all runs, by term and product."""
    rows = [np.empty((0, 3), np.int64)]
    for run, numbers in zip(runs, vocabulary.numbers, strict=True):
        own = run.large_tfs.copy()
        own[:, 0] = numbers[own[:, 0]]
        rows.append(own)
    joined = np.concatenate(rows)
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]


def _ranks(asins: Sequence[str] | NDArray[Any]) -> NDArray[np.int64]:
    """Place of each asin in ascending order."""
    ranks = np.empty(len(asins), np.int64)
    ranks[np.argsort(np.asarray(asins), kind="stable")] = np.arange(len(asins))
    return ranks
