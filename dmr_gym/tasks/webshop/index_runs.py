"""Inversion of texts into runs: the postings of some consecutive documents, sorted by term.

A run is small enough for memory; `dmr_gym.tasks.webshop.index_merge` merges the runs of a catalogue.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.tasks.webshop.analyzer import chunk_terms, split_chunks
from dmr_gym.tasks.webshop.index_arrays import MAX_TF, ArraySlices, map_array

_MAX_VOCABULARY = 1 << 20
_MAX_KEPT_CHUNK = 48
_TERMS_A_READ = 4096
_SLICED = ("term_bytes", "term_ends", "docs", "tfs")


@dataclass(frozen=True)
class Run:
    """Postings of consecutive documents. V distinct terms, P postings, D documents.

    Attributes:
        term_bytes: uint8, the terms in UTF-8, ascending, one after the other.
        term_ends: (V + 1,) int64, where each begins in ``term_bytes``, and the end of the last.
        dfs: (V,) int32, postings of each term.
        docs: (P,) int32, document numbers by term, ascending within a term.
        tfs: (P,) uint8, term frequencies, at most `MAX_TF`.
        large_tfs: (n, 3) int64, rows (term, document, term frequency) of the frequencies from `MAX_TF` on.
        lengths: (D,) int32, terms of each document.
    """

    term_bytes: NDArray[np.uint8] | ArraySlices
    term_ends: NDArray[np.int64] | ArraySlices
    dfs: NDArray[np.int32]
    docs: NDArray[np.int32] | ArraySlices
    tfs: NDArray[np.uint8] | ArraySlices
    large_tfs: NDArray[np.int64]
    lengths: NDArray[np.int32]

    def terms(self) -> Iterator[bytes]:
        """The terms in ascending order, read some thousands at a time."""
        for first in range(0, len(self.dfs), _TERMS_A_READ):
            last = min(first + _TERMS_A_READ, len(self.dfs))
            ends = self.term_ends[first : last + 1].tolist()
            block = self.term_bytes[ends[0] : ends[-1]].tobytes()
            base = ends[0]
            for start, end in pairwise(ends):
                yield block[start - base : end - base]

    def write(self, stem: Path) -> None:
        """Write one file an array, named ``<stem>-<array>.npy``."""
        for field in fields(self):
            np.save(f"{stem}-{field.name}.npy", getattr(self, field.name), allow_pickle=False)

    @classmethod
    def open(cls, stem: Path) -> Run:
        """Open what `write` wrote; large arrays stay on disk."""
        files = {field.name: Path(f"{stem}-{field.name}.npy") for field in fields(cls)}
        sliced: dict[str, Any] = {name: ArraySlices(files.pop(name)) for name in _SLICED}
        return cls(**sliced, **{name: map_array(file) for name, file in files.items()})


class _ChunkNumbers(dict[str, tuple[int, ...]]):
    """Chunk of text to the numbers of its terms, which are numbered as they appear."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, int] = {}

    def __missing__(self, chunk: str) -> tuple[int, ...]:
        number = self.terms.setdefault
        numbers = tuple([number(term, len(self.terms)) for term in chunk_terms(chunk)])
        if len(chunk) <= _MAX_KEPT_CHUNK and len(self) < _MAX_VOCABULARY:
            self[chunk] = numbers
        return numbers


class Inverter:
    """Makes runs, one after the other; what it learns of the vocabulary serves the next one, within bounds."""

    def __init__(self) -> None:
        self._chunks = _ChunkNumbers()

    def invert(self, texts: Iterable[str], first_document: int) -> Run:
        """Invert texts, the first of which is the document ``first_document``."""
        if len(self._chunks.terms) >= _MAX_VOCABULARY or len(self._chunks) >= _MAX_VOCABULARY:
            self._chunks = _ChunkNumbers()
        tokens, ends = array("i"), array("q", [0])
        for text in texts:
            tokens.extend(chain.from_iterable(map(self._chunks.__getitem__, split_chunks(text))))
            ends.append(len(tokens))
        return _invert(
            np.frombuffer(tokens, np.int32), np.diff(ends).astype(np.int32), self._chunks.terms, first_document
        )


def _invert(tokens: NDArray[np.int32], lengths: NDArray[np.int32], numbers: dict[str, int], first_document: int) -> Run:
    """Sort tokens by term and document, and count them.

    Args:
        tokens: (n,) int32, term numbers of all documents, one document after the other.
        lengths: (D,) int32, tokens of each document.
        numbers: number of each term.
        first_document: number of the first document.
    """
    used = np.bincount(tokens, minlength=len(numbers)) > 0
    names = sorted(term for term, number in numbers.items() if used[number])
    ranks = np.zeros(len(numbers), np.int64)
    ranks[[numbers[name] for name in names]] = np.arange(len(names))
    n_documents = max(1, len(lengths))
    keys = ranks[tokens] * n_documents
    keys += np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    keys.sort()
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(firsts, append=len(keys))
    terms, docs = np.divmod(keys[firsts], n_documents)
    docs += first_document
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    is_large = counts >= MAX_TF
    return Run(
        term_bytes=np.frombuffer(b"".join(encoded), np.uint8),
        term_ends=np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        dfs=np.bincount(terms, minlength=len(names)).astype(np.int32),
        docs=docs.astype(np.int32),
        tfs=np.minimum(counts, MAX_TF).astype(np.uint8),
        large_tfs=np.stack([terms[is_large], docs[is_large], counts[is_large]], axis=1),
        lengths=lengths,
    )


def batches(texts: Iterable[str], n_characters: int) -> Iterator[Sequence[str]]:
    """Cut a stream of texts into lists of about ``n_characters`` characters together."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + 64
        if size >= n_characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
