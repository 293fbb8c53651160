"""The arrays of a search index, in memory or mapped from the files of a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import CacheError

Progress = Callable[[str, int, int], None]
"""Called during a build with the stage, how many of its things are done, and how many there are."""

FORMAT = 1
META_FILE = "index.json"
MAX_TF = 255
"""Term frequencies from here on are stored as this number, and exactly in a list of exceptions."""
_MAPPED_FROM_BYTES = 1 << 16

# Data type and number of dimensions.
_ARRAYS: dict[str, tuple[str, int]] = {
    "term_bytes": ("uint8", 1),
    "term_ends": ("int64", 1),
    "dfs": ("int32", 1),
    "starts": ("int64", 1),
    "docs": ("int32", 1),
    "tfs": ("uint8", 1),
    "codes": ("uint8", 1),
    "norms": ("uint8", 1),
    "asin_ranks": ("int32", 1),
    "dense_terms": ("int32", 1),
    "dense_tfs": ("uint8", 2),
    "dense_codes": ("uint8", 2),
    "large_tfs": ("int64", 2),
}


@dataclass(frozen=True)
class IndexMeta:
    """Numbers of an index.

    Attributes:
        n_products: D, products with and without terms.
        n_documents: products that have a term.
        n_terms: terms of all products together, repeated ones too.
        code_unit: score that one step of a code stands for.
    """

    n_products: int
    n_documents: int
    n_terms: int
    code_unit: float


@dataclass(frozen=True)
class IndexArrays:
    """Everything that a search reads: D products, V terms, P postings of rare terms, R frequent terms.

    A code is the score that a term adds to a product when it stands once in the query, divided by ``code_unit`` and
    rounded up.

    Attributes:
        meta: numbers.
        term_bytes: uint8, the terms in UTF-8, ascending, one after the other.
        term_ends: (V + 1,) int64, where each begins in ``term_bytes``, and the end of the last.
        dfs: (V,) int32, how many products have the term.
        starts: (V + 1,) int64, where the postings of each term begin, and the end of the last; frequent ones have none.
        docs: (P,) int32, product numbers, ascending within a term.
        tfs: (P,) uint8, term frequencies, at most `MAX_TF`.
        codes: (P,) uint8
        norms: (D,) uint8, `bm25.length_codes` of the products' lengths.
        asin_ranks: (D,) int32, place of each product in the order of the asins.
        dense_terms: (R,) int32, the frequent terms, ascending.
        dense_tfs: (R, D) uint8, their frequencies in every product, at most `MAX_TF`.
        dense_codes: (R, D) uint8, their codes in every product.
        large_tfs: (n, 3) int64, rows (term, product number, frequency) of the frequencies from `MAX_TF` on, by term.
    """

    meta: IndexMeta
    term_bytes: NDArray[np.uint8]
    term_ends: NDArray[np.int64]
    dfs: NDArray[np.int32]
    starts: NDArray[np.int64]
    docs: NDArray[np.int32]
    tfs: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    norms: NDArray[np.uint8]
    asin_ranks: NDArray[np.int32]
    dense_terms: NDArray[np.int32]
    dense_tfs: NDArray[np.uint8]
    dense_codes: NDArray[np.uint8]
    large_tfs: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> IndexArrays:
        """Map the files of a folder. Raises CacheError when it is no index, of another format, or damaged."""
        try:
            content = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise CacheError(f"index {folder}: expected format {FORMAT}; delete it and build it again")
            meta = IndexMeta(**content)
            arrays = {name: _open_array(folder / f"{name}.npy", *_ARRAYS[name]) for name in _ARRAYS}
        except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CacheError(
                f"index {folder} is missing or damaged ({error}); delete the folder and build it again"
            ) from error
        opened = cls(meta=meta, **arrays)
        opened._check(folder)
        return opened

    def _check(self, folder: Path) -> None:
        """Compare lengths. Raises CacheError when they do not fit together."""
        n_terms, n_products, n_dense = len(self.dfs), self.meta.n_products, len(self.dense_terms)
        n_postings = int(self.starts[-1]) if len(self.starts) else -1
        found = (*(len(a) for a in (self.term_ends, self.starts, self.docs, self.tfs, self.codes, self.norms)),)
        expected = (n_terms + 1, n_terms + 1, n_postings, n_postings, n_postings, n_products)
        shapes = (self.asin_ranks.shape, self.dense_tfs.shape, self.dense_codes.shape, self.large_tfs.shape[1:])
        if found != expected or shapes != ((n_products,), (n_dense, n_products), (n_dense, n_products), (3,)):
            raise CacheError(f"index {folder}: its arrays do not fit together; delete the folder and build it again")


def write_meta(folder: Path, meta: IndexMeta) -> None:
    """Write the numbers of an index, the last of its files."""
    text = json.dumps({"format": FORMAT, **asdict(meta)}, indent=1)
    (folder / META_FILE).write_text(text + "\n", encoding="utf-8")


def map_array(path: Path) -> NDArray[Any]:
    """An array file, mapped to memory unless it is small."""
    is_large = path.stat().st_size >= _MAPPED_FROM_BYTES
    # A plain view: indexing a memmap object itself is several times slower.
    return np.asarray(np.load(path, mmap_mode="r" if is_large else None, allow_pickle=False))


def _open_array(path: Path, dtype: str, ndim: int) -> NDArray[Any]:
    """An array of an index. Raises ValueError when its type is another."""
    array = map_array(path)
    if array.dtype != np.dtype(dtype) or array.ndim != ndim:
        raise ValueError(f"{path.name}: expected {ndim} dimensions of {dtype}, got {array.ndim} of {array.dtype}")
    return array


class ArraySlices:
    """An array file of one dimension that is read a slice at a time: unlike pages of a mapped file, what was read goes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            _, _, self._dtype = np.lib.format.read_array_header_1_0(file)
            self._offset = file.tell()

    def __getitem__(self, part: slice) -> NDArray[Any]:
        """Elements ``part.start`` to ``part.stop``, not included."""
        offset = self._offset + part.start * self._dtype.itemsize
        return np.fromfile(self._path, self._dtype, part.stop - part.start, offset=offset)


class ArrayFile:
    """An array whose rows come one after the other, written to a file as they come, or kept in memory.

    Args:
        path: the file; None keeps the rows.
        dtype: data type.
        shape: shape of the whole array.
    """

    def __init__(self, path: Path | None, dtype: str, shape: tuple[int, ...]) -> None:
        self._path = path
        self._dtype = np.dtype(dtype)
        self._shape = shape
        self._kept: list[NDArray[Any]] = []
        if path is not None:
            self._file = path.open("wb")
            header = {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows; converted to the data type."""
        rows = np.ascontiguousarray(rows, dtype=self._dtype)
        if self._path is None:
            self._kept.append(rows.ravel())
        else:
            self._file.write(rows.data)

    def finish(self) -> NDArray[Any]:
        """Close the file; the whole array."""
        if self._path is not None:
            self._file.close()
            return map_array(self._path)
        return np.concatenate([np.empty(0, self._dtype), *self._kept]).reshape(self._shape)


def array_type(name: str) -> str:
    """Data type of one of the arrays."""
    return _ARRAYS[name][0]
