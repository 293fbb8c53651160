"""Title nouns of many products as flat arrays, memory-mapped from disk.

Legend: N titles, M nouns over all titles, V different nouns, B bytes of the vocabulary's text.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import CacheError

FORMAT = "dmr-gym title nouns"
VERSION = 1
_MANIFEST = "manifest.json"
_ARRAYS = ("asins", "offsets", "ids", "words", "word_offsets")


class NounTable:
    """An immutable table asin -> nouns of the product's title, order and repeats kept."""

    def __init__(self, arrays: dict[str, NDArray[Any]], tagger: str) -> None:
        """Wrap the arrays that `build` makes.

        Args:
            arrays: "asins" (N,) bytes in ascending order; "offsets" (N + 1,) int64 into "ids"; "ids" (M,) int32 into
                the vocabulary; "words" (B,) uint8, the vocabulary's UTF-8 text; "word_offsets" (V + 1,) int64 into it.
            tagger: what told nouns from other words.
        """
        self._arrays = arrays
        self._asins, self._offsets, self._ids, self._words, self._word_offsets = (arrays[name] for name in _ARRAYS)
        self.tagger = tagger

    def __len__(self) -> int:
        """Number of titles."""
        return len(self._asins)

    @classmethod
    def build(cls, rows: Iterable[tuple[str, Sequence[str]]], tagger: str) -> NounTable:
        """Make a table in memory of (asin, nouns) rows, each looked at once; of equal asins the last one counts."""
        asins: list[bytes] = []
        offsets, ids = array("q", [0]), array("i")
        vocabulary: dict[str, int] = {}
        for asin, nouns in rows:
            asins.append(_key(asin))
            ids.extend(vocabulary.setdefault(noun, len(vocabulary)) for noun in nouns)
            offsets.append(len(ids))
        keys = np.array(asins, dtype=f"S{max(map(len, asins), default=1) or 1}")
        order = np.argsort(keys, kind="stable")
        order = order[np.append(keys[order][1:] != keys[order][:-1], True)] if len(order) else order
        new_offsets, places = _reordered(np.array(offsets, dtype=np.int64), order)
        encoded = [word.encode(errors="surrogatepass") for word in vocabulary]
        arrays: dict[str, NDArray[Any]] = {
            "asins": keys[order],
            "offsets": new_offsets,
            "ids": np.array(ids, dtype=np.int32)[places],
            "words": np.frombuffer(b"".join(encoded), dtype=np.uint8),
            "word_offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        }
        return cls(arrays, tagger)

    def get(self, asin: str) -> tuple[str, ...] | None:
        """The nouns of a product's title; None for a product that is not in the table."""
        key = _key(asin)
        # A key that is wider than the column would make numpy copy the whole column.
        if len(key) > self._asins.dtype.itemsize or not len(self._asins):
            return None
        row = int(np.searchsorted(self._asins, np.array(key, dtype=self._asins.dtype)))
        if row == len(self._asins) or self._asins[row] != key:
            return None
        ids = self._ids[self._offsets[row] : self._offsets[row + 1]]
        spans = zip(self._word_offsets[ids].tolist(), self._word_offsets[ids + 1].tolist(), strict=True)
        return tuple(self._words[start:stop].tobytes().decode(errors="surrogatepass") for start, stop in spans)

    def missing(self, asins: Sequence[str]) -> list[str]:
        """Those of the given asins that are not in the table."""
        known = np.isin(np.array([_key(asin) for asin in asins], dtype=np.bytes_), self._asins)
        return [asin for asin, is_known in zip(asins, known, strict=True) if not is_known]

    def write(self, folder: Path) -> None:
        """Write the table to a folder that is whole when it appears; one that exists already is left as it is.

        Raises:
            OSError: the folder cannot be made.
        """
        part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
        try:
            part.mkdir(parents=True)
            for name, values in self._arrays.items():
                np.save(part / f"{name}.npy", values, allow_pickle=False)
            manifest = {"format": FORMAT, "version": VERSION, "tagger": self.tagger, **self._sizes()}
            (part / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            try:
                part.rename(folder)
            except OSError:
                # Another process was sooner: a folder that is not empty cannot be renamed onto.
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)

    @classmethod
    def open(cls, folder: Path) -> NounTable:
        """Open a folder that `write` made; its arrays stay on disk.

        Raises:
            CacheError: the folder holds something else, another version, or is damaged.
        """
        hint = f"delete {folder} and it is made again"
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            kind = (manifest["format"], manifest["version"])
            tagger = str(manifest["tagger"])
            # Plain views of the mapped files: indexing the memmap class itself is slower.
            arrays = {
                name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False).view(np.ndarray)
                for name in _ARRAYS
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CacheError(f"{folder} is not a whole table of title nouns ({error}); {hint}") from error
        if kind != (FORMAT, VERSION):
            raise CacheError(f"{folder} is {kind!r}, expected {(FORMAT, VERSION)!r}; {hint}")
        table = cls(arrays, tagger)
        if table._sizes() != {name: manifest.get(name) for name in table._sizes()}:
            raise CacheError(f"{folder} has arrays of other sizes than its {_MANIFEST} says; {hint}")
        return table

    def _sizes(self) -> dict[str, int]:
        return {"titles": len(self._asins), "nouns": len(self._ids), "vocabulary": len(self._word_offsets) - 1}


def _key(asin: str) -> bytes:
    return asin.encode(errors="surrogatepass")


def _reordered(offsets: NDArray[np.int64], order: NDArray[np.intp]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets after rows are put in the given order, which may leave some out, and each element's place before."""
    lengths = np.diff(offsets)[order]
    new_offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
    places = np.repeat(offsets[:-1][order] - new_offsets[:-1], lengths) + np.arange(new_offsets[-1], dtype=np.int64)
    return new_offsets, places
