"""A catalogue on disk: products as lines of JSON, columns and goals as memory-mapped arrays.

Opening it reads a few pages; a product is parsed when it is asked for. N counts products.
"""

from __future__ import annotations

import json
import mmap
import os
import threading
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import CacheError
from dmr_gym.tasks.webshop.catalogue import Catalogue, Product
from dmr_gym.tasks.webshop.columns import Columns, ColumnsBuilder
from dmr_gym.tasks.webshop.goal_table import MAX_GOALS, GoalOrder, GoalTable, count_goals
from dmr_gym.tasks.webshop.index_arrays import map_array
from dmr_gym.types import IntArray

PRODUCTS_FILE, STARTS, ORDER = "products.jsonl", "product_starts", "asin_order"
NAMES_FILE = "names.json"
KEPT_PRODUCTS = 1024
READ_BYTES = 1 << 20
_NAME_COLUMNS = ("categories", "queries")
_ARRAY_COLUMNS = tuple(field.name for field in fields(Columns) if field.name not in (*_NAME_COLUMNS, "checksum"))
_GOAL_ARRAYS = ("products", "starts", "weights", "cumulative")
_PRODUCT_KEYS = tuple(field.name for field in fields(Product))
_LISTS = tuple(
    place
    for place, name in enumerate(_PRODUCT_KEYS)
    if name in ("bullets", "prices", "attributes", "instruction_attributes")
)
_OPTIONS = _PRODUCT_KEYS.index("options")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class StoredProducts(Sequence[Product]):
    """Products in a file of JSON lines; the last thousand that were asked for are kept as records.

    The file stays open, so that the products are those it had at first also when another one takes its name.

    Args:
        path: the file.
        starts: (N + 1,) int64, byte at which each line begins, and the file's size.
    """

    def __init__(self, path: Path, starts: IntArray) -> None:
        self._path = path
        self._starts = starts
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        self._reading = threading.Lock()
        self._bytes: mmap.mmap | bytes = b""
        if len(self) > 0:
            self._bytes = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        self._kept = lru_cache(maxsize=KEPT_PRODUCTS)(self._read)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: Any) -> Any:
        """The product of a number; slices are left to `Catalogue`. Raises CacheError when its line is damaged."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"product number {number} of {len(self)}")
        return self._kept(int(number) % len(self))

    def __iter__(self) -> Iterator[Product]:
        """All products in order; none of them is kept."""
        first = 0
        while first < len(self):
            start = int(self._starts[first])
            last = max(first + 1, int(np.searchsorted(self._starts, start + READ_BYTES, side="right")) - 1)
            ends = self._starts[first : last + 1].tolist()
            # Read rather than mapped: pages of a mapping count as this process's memory once they were touched.
            block = self._read_bytes(start, ends[-1] - start)
            for number, (begin, end) in enumerate(pairwise(ends), first):
                yield self._decode(number, block[begin - start : end - start])
            first = last

    def _read_bytes(self, start: int, size: int) -> bytes:
        # Forked processes share the file's position, so it is left alone where the system allows that.
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, start)
        with self._reading:
            self._file.seek(start)
            return self._file.read(size)

    def _read(self, number: int) -> Product:
        return self._decode(number, self._bytes[int(self._starts[number]) : int(self._starts[number + 1])])

    def _decode(self, number: int, line: bytes) -> Product:
        try:
            return decode_product(line)
        except (ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise CacheError(
                f"{self._path}: product {number} cannot be read ({error}), so the index is damaged; delete the folder "
                f"{self._path.parent} and it is built again"
            ) from error


def encode_product(product: Product) -> bytes:
    """A product as a line of JSON in UTF-8."""
    line = _encode([getattr(product, name) for name in _PRODUCT_KEYS])
    # The official files may have halves of surrogate pairs as escapes, which plain UTF-8 cannot hold.
    return line.encode("utf-8", "surrogatepass") + b"\n"


def decode_product(line: bytes) -> Product:
    """The product of a line."""
    values = json.loads(line.decode("utf-8", "surrogatepass"))
    for place in _LISTS:
        values[place] = tuple(values[place])
    values[_OPTIONS] = {name: tuple(texts) for name, texts in values[_OPTIONS].items()}
    return Product(*values)


def write_catalogue(products: Iterable[tuple[Product, bool]], folder: Path, source: str) -> Catalogue:
    """Write a catalogue and its goals into a folder, and open it.

    Args:
        products: each product with whether the instruction file has it.
        folder: an empty folder.
        source: names the data in messages.
    """
    builder = ColumnsBuilder()
    starts = array("q", [0])
    with (folder / PRODUCTS_FILE).open("wb") as file:
        for product, listed in products:
            builder.add(product, listed)
            starts.append(starts[-1] + file.write(encode_product(product)))
    columns = builder.finish()
    _save(folder, STARTS, np.array(starts, np.int64))
    _save(folder, ORDER, np.argsort(columns.asins, kind="stable"))
    for name in _ARRAY_COLUMNS:
        _save(folder, name, getattr(columns, name))
    names = {name: getattr(columns, name) for name in (*_NAME_COLUMNS, "checksum")}
    (folder / NAMES_FILE).write_text(json.dumps(names) + "\n", encoding="ascii")
    del builder, columns
    catalogue = open_catalogue(folder, source)
    if count_goals(catalogue.columns) <= MAX_GOALS:
        _save_goals(folder, catalogue.goal_table)
    return catalogue


def open_catalogue(folder: Path, source: str) -> Catalogue:
    """Open a folder that `write_catalogue` filled; arrays and products stay on disk.

    Args:
        folder: the folder.
        source: names the data in messages.

    Raises:
        OSError: a file is missing.
        ValueError, KeyError, TypeError: a file is damaged.
    """
    names: dict[str, Any] = json.loads((folder / NAMES_FILE).read_text(encoding="ascii"))
    values: dict[str, Any] = {name: tuple(names[name]) for name in _NAME_COLUMNS}
    values["checksum"] = int(names["checksum"])
    values.update((name, _load(folder, name)) for name in _ARRAY_COLUMNS)
    columns = Columns(**values)
    products = StoredProducts(folder / PRODUCTS_FILE, _load(folder, STARTS))
    return Catalogue(products, columns, source, _load_goals(folder), _load(folder, ORDER))


def _save_goals(folder: Path, table: GoalTable) -> None:
    for name in _GOAL_ARRAYS:
        _save(folder, f"goal_{name}", getattr(table, name))
    _save(folder, "goal_order", table.shuffled.order)
    _save(folder, "goal_state", table.shuffled.state)


def _load_goals(folder: Path) -> GoalTable | None:
    if not (folder / "goal_state.npy").is_file():
        return None
    order = GoalOrder(_load(folder, "goal_order"), _load(folder, "goal_state"))
    return GoalTable(**{name: _load(folder, f"goal_{name}") for name in _GOAL_ARRAYS}, shuffled=order)


def _save(folder: Path, name: str, values: NDArray[Any]) -> None:
    np.save(folder / f"{name}.npy", values, allow_pickle=False)


def _load(folder: Path, name: str) -> NDArray[Any]:
    return map_array(folder / f"{name}.npy")
