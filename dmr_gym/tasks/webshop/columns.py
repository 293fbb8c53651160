"""Columns of a catalogue: the few numbers of every product that goals and searches need at the start."""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmr_gym.types import IntArray

if TYPE_CHECKING:
    from dmr_gym.tasks.webshop.catalogue import Product

MAX_ASIN_LENGTH = 10
NOT_LISTED, NO_INSTRUCTION, HAS_INSTRUCTION = 0, 1, 2
MAX_COMBINATIONS = 1 << 40  # keeps sums over a catalogue within 64 bits; far more than can be played


@dataclass(frozen=True, slots=True)
class Columns:
    """What is known of all N products without reading one.

    Attributes:
        asins: (N,) unicode of width 10.
        prices: (N, 2) float64 in dollars; the second is NaN where there is one price.
        combinations: (N,) int64, number of ways to choose one value of every option, at most 2**40.
        listings: (N,) uint8: 0 not in the instruction file, 1 there without an instruction, 2 with one.
        attribute_starts: (N + 1,) int64, where a product's part of ``attribute_ids`` begins.
        attribute_ids: int32 numbers of the attributes that instructions ask for.
        category_ids: (N,) int32 into ``categories``.
        query_ids: (N,) int32 into ``queries``.
        categories: names of departments.
        queries: names of queries.
        checksum: CRC-32 of all that is known of the products, 0 of none.
    """

    asins: NDArray[np.str_]
    prices: NDArray[np.float64]
    combinations: IntArray
    listings: NDArray[np.uint8]
    attribute_starts: IntArray
    attribute_ids: NDArray[np.int32]
    category_ids: NDArray[np.int32]
    query_ids: NDArray[np.int32]
    categories: tuple[str, ...]
    queries: tuple[str, ...]
    checksum: int


class ColumnsBuilder:
    """Collects `Columns` product by product, in a few bytes each."""

    def __init__(self) -> None:
        self._asins: list[str] = []
        self._prices = array("d")
        self._combinations = array("q")
        self._listings = bytearray()
        self._attribute_starts = array("q", [0])
        self._attribute_ids = array("i")
        self._category_ids = array("i")
        self._query_ids = array("i")
        self._attributes: dict[str, int] = {}
        self._categories: dict[str, int] = {}
        self._queries: dict[str, int] = {}
        self._checksum = 0

    def add(self, product: Product, listed: bool) -> None:
        """Append a product; ``listed`` tells whether the instruction file has it."""
        self._checksum = zlib.crc32(ascii(product).encode("ascii"), self._checksum)
        self._asins.append(product.asin)
        self._prices.extend((*product.prices, float("nan"))[:2])
        self._combinations.append(min(count_combinations(product.options), MAX_COMBINATIONS))
        has_instruction = HAS_INSTRUCTION if product.instruction is not None else NO_INSTRUCTION
        self._listings.append(has_instruction if listed else NOT_LISTED)
        self._attribute_ids.extend(
            self._attributes.setdefault(name, len(self._attributes)) for name in product.instruction_attributes
        )
        self._attribute_starts.append(len(self._attribute_ids))
        self._category_ids.append(self._categories.setdefault(product.category, len(self._categories)))
        self._query_ids.append(self._queries.setdefault(product.query, len(self._queries)))

    def finish(self) -> Columns:
        """Return the columns of everything added."""
        return Columns(
            asins=np.array(self._asins, f"<U{MAX_ASIN_LENGTH}"),
            prices=np.array(self._prices, np.float64).reshape(-1, 2),
            combinations=np.array(self._combinations, np.int64),
            listings=np.frombuffer(bytes(self._listings), np.uint8),
            attribute_starts=np.array(self._attribute_starts, np.int64),
            attribute_ids=np.array(self._attribute_ids, np.int32),
            category_ids=np.array(self._category_ids, np.int32),
            query_ids=np.array(self._query_ids, np.int32),
            categories=tuple(self._categories),
            queries=tuple(self._queries),
            checksum=self._checksum,
        )


def count_combinations(options: Mapping[str, Sequence[str]]) -> int:
    """Number of ways to choose one value of every option; 1 without options, 0 when an option has no values."""
    product = 1
    for values in options.values():
        product *= len(values)
    return product
