"""Products, and the catalogue that numbers them.

A catalogue is immutable and knows two things of its products: every product as a record, read when it is asked for, and
a few columns of all products at once, which goals and searches need at the start. N counts products.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import TaskError
from dmr_gym.tasks.webshop.columns import MAX_ASIN_LENGTH, Columns, ColumnsBuilder
from dmr_gym.tasks.webshop.goal_table import GoalTable, make_goal_table
from dmr_gym.types import IntArray


@dataclass(frozen=True, slots=True)
class Product:
    """One product, normalised as the shop shows it.

    Attributes:
        asin: the product's id, at most 10 characters.
        title: ``name`` of the row.
        description: ``full_description`` of the row.
        bullets: ``small_description`` of the row.
        prices: one price, or the two ends of a range, in dollars.
        price_label: the price as pages show it.
        options: values by option name, lower-cased, in the row's order.
        attributes: attributes from the instruction file; ("DUMMY_ATTR",) when it has none for the product.
        category: one of the shop's five departments.
        product_category: path of category levels, separated by U+203A.
        query: the search that found the product, stripped and lower-cased.
        image: address of the first image.
        instruction: synthetic instruction without options and price; None when there is none.
        instruction_attributes: attributes that the instruction asks for.
    """

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    prices: tuple[float, ...]
    options: dict[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    category: str
    product_category: str
    query: str
    image: str
    instruction: str | None = None
    instruction_attributes: tuple[str, ...] = ()

    @property
    def price_label(self) -> str:
        """The price as pages show it: "$12.5" or "$3.0 to $9.99"."""
        return " to ".join(f"${price}" for price in self.prices)

    @property
    def index_text(self) -> str:
        """The lower-cased text that the search indexes: title, description, first bullet, options."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        first_bullet = self.bullets[0] if self.bullets else ""
        return f"{self.title} {self.description} {first_bullet} {options}".lower()


class Catalogue(Sequence[Product]):
    """Products by number, in the order of the data file.

    Args:
        products: the products; anything that can be indexed and has a length.
        columns: the columns of the same products.
        source: names the data in error messages.
        goal_table: what synthetic goals need; made from the columns when it is first used if None.
        asin_order: (N,) product numbers sorted by asin; made from the columns if None.
    """

    def __init__(
        self,
        products: Sequence[Product],
        columns: Columns,
        source: str,
        goal_table: GoalTable | None = None,
        asin_order: IntArray | None = None,
    ) -> None:
        self.columns = columns
        self.source = source
        self._products = products
        self._goal_table = goal_table
        self._asin_order = np.argsort(columns.asins, kind="stable") if asin_order is None else asin_order

    @classmethod
    def from_rows(
        cls,
        items: Iterable[Any],
        instructions: Mapping[str, Any],
        source: str = "items",
        instructions_source: str = "instructions",
    ) -> Catalogue:
        """Build a catalogue in memory from rows in the official format.

        Args:
            items: rows of ``items_shuffle.json``.
            instructions: content of ``items_ins_v2.json``.
            source: names the rows in error messages.
            instructions_source: names the instructions in error messages.

        Raises:
            TaskError: a row or an instruction entry is broken; names source, row and key.
        """
        # Imported here because rows are made of the records that this module defines.
        from dmr_gym.tasks.webshop.rows import RowReader

        reader = RowReader(instructions, source, instructions_source)
        columns = ColumnsBuilder()
        products = []
        for product, listed in reader.read(items):
            products.append(product)
            columns.add(product, listed)
        return cls(products, columns.finish(), source)

    def __len__(self) -> int:
        return len(self.columns.asins)

    @overload
    def __getitem__(self, number: SupportsIndex) -> Product: ...

    @overload
    def __getitem__(self, number: slice) -> list[Product]: ...

    def __getitem__(self, number: SupportsIndex | slice) -> Product | list[Product]:
        """The product of a number, or a list of products of a slice."""
        if isinstance(number, slice):
            return [self._products[i] for i in range(*number.indices(len(self)))]
        return self._products[operator.index(number)]

    def __iter__(self) -> Iterator[Product]:
        return iter(self._products)

    @property
    def asins(self) -> NDArray[np.str_]:
        """(N,) unicode of width 10."""
        return self.columns.asins

    @cached_property
    def goal_table(self) -> GoalTable:
        """What synthetic goals need and no seed changes."""
        return make_goal_table(self.columns) if self._goal_table is None else self._goal_table

    def index_of(self, asin: str) -> int:
        """Number of the product with this asin.

        Raises:
            TaskError: there is none.
        """
        number = self.find(asin)
        if number is None:
            raise TaskError(
                f"no product has the asin {asin!r:.60} among the {len(self):,} of {self.source}; asins are "
                "case-sensitive"
            )
        return number

    def find(self, asin: str) -> int | None:
        """Number of the product with this asin, or None."""
        # A longer key would make numpy widen, and so copy, the whole column.
        if not isinstance(asin, str) or not 0 < len(asin) <= MAX_ASIN_LENGTH:
            return None
        asins = self.columns.asins
        place = int(np.searchsorted(asins, np.array(asin, asins.dtype), sorter=self._asin_order))
        if place == len(asins) or asins[self._asin_order[place]] != asin:
            return None
        return int(self._asin_order[place])

    def numbers_in_category(self, category: str) -> IntArray:
        """Numbers of all products of a department, ascending, int64; none when it is unknown."""
        return _numbers_of(self.columns.categories, self.columns.category_ids, category)

    def numbers_with_query(self, query: str) -> IntArray:
        """Numbers of all products with exactly this query, ascending, int64; none when it is unknown."""
        return _numbers_of(self.columns.queries, self.columns.query_ids, query)


def _numbers_of(names: tuple[str, ...], ids: NDArray[np.int32], name: str) -> IntArray:
    if name not in names:
        return np.zeros(0, np.int64)
    return np.flatnonzero(ids == names.index(name))
