"""Reads rows of the official files into products, and says what is wrong with the rows that cannot be read.

A row is one object of ``items_shuffle.json``; an entry is the value of an asin in ``items_ins_v2.json``.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from dmr_gym.errors import TaskError
from dmr_gym.tasks.webshop.catalogue import Product
from dmr_gym.tasks.webshop.columns import MAX_ASIN_LENGTH

DEFAULT_PRICE = 100.0
NO_ATTRIBUTES = ("DUMMY_ATTR",)
_NOT_IN_PRICE = re.compile(r"[^\d.]")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands, for messages: the file, the row in it, and the row's asin when it is known."""

    source: str
    row: str

    def fail(self, key: str, expected: str, found: object) -> NoReturn:
        """Raise TaskError about the value of a key."""
        raise TaskError(
            f"{self.source}, {self.row}: key {key!r} must be {expected}; found {_show(found)}. "
            "Correct or remove the row, or take the file from WebShop's release again"
        )


class RowReader:
    """Reads rows in order, and skips those that WebShop skips: asins "nan", longer than 10 characters, or seen before.

    Args:
        instructions: entry by asin.
        source: names the rows in messages.
        instructions_source: names the entries in messages.
    """

    def __init__(self, instructions: Mapping[str, Any], source: str, instructions_source: str) -> None:
        self._instructions = instructions
        self._source = source
        self._instructions_source = instructions_source

    def read(self, rows: Iterable[Any]) -> Iterator[tuple[Product, bool]]:
        """Yield each product with whether the instruction file has it; warn once of all rows that were skipped.

        Raises:
            TaskError: a row or an entry is broken; names source, row and key.
        """
        seen: set[str] = set()
        repeated = unusable = 0
        for number, row in enumerate(rows):
            place = Place(self._source, f"row {number}")
            asin = _read_asin(read_object(row, place), place)
            if asin == "nan" or len(asin) > MAX_ASIN_LENGTH:
                unusable += 1
            elif asin in seen:
                repeated += 1
            else:
                seen.add(asin)
                yield self._read_product(asin, row, Place(self._source, f"row {number} ({asin})"))
        if repeated or unusable:
            warnings.warn(
                f"{self._source}: skipped {repeated + unusable} rows, as WebShop does: {repeated} with an asin seen "
                f'before, {unusable} with the asin "nan" or one of more than {MAX_ASIN_LENGTH} characters',
                stacklevel=2,
            )

    def _read_product(self, asin: str, row: Mapping[str, Any], place: Place) -> tuple[Product, bool]:
        attributes, instruction, instruction_attributes = self._read_entry(asin)
        product = Product(
            asin=asin,
            title=read_text(row, "name", place),
            description=read_text(row, "full_description", place),
            bullets=_read_bullets(row, place),
            prices=read_prices(row.get("pricing"), place),
            options=_read_options(row, place),
            attributes=attributes,
            category=read_text(row, "category", place),
            product_category=read_text(row, "product_category", place),
            query=read_text(row, "query", place).lower().strip(),
            image=_read_image(row, place),
            instruction=instruction,
            instruction_attributes=instruction_attributes,
        )
        return product, asin in self._instructions

    def _read_entry(self, asin: str) -> tuple[tuple[str, ...], str | None, tuple[str, ...]]:
        """Attributes, instruction, and the attributes that the instruction asks for."""
        place = Place(self._instructions_source, f"entry {asin!r}")
        entry = read_object(self._instructions.get(asin, {}), place)
        attributes = read_texts(entry["attributes"], "attributes", place) if "attributes" in entry else NO_ATTRIBUTES
        instruction = entry.get("instruction")
        if instruction is None:
            return attributes, None, ()
        if not isinstance(instruction, str):
            place.fail("instruction", "text", instruction)
        wanted = read_texts(entry.get("instruction_attributes"), "instruction_attributes", place)
        if not wanted:
            place.fail("instruction_attributes", "a list of at least one text beside an instruction", [])
        return attributes, instruction, wanted


def read_prices(pricing: object, place: Place) -> tuple[float, ...]:
    """Parse a price text: nothing is $100, "$a" is one price, "$a - $b" is a range; further prices are dropped.

    Raises:
        TaskError: it is no text, or a part after a dollar sign is no finite number.
    """
    if pricing is None or pricing == "":
        return (DEFAULT_PRICE,)
    expected = 'empty or a text such as "$12.5" or "$3.99 - $10"'
    if not isinstance(pricing, str):
        place.fail("pricing", expected, pricing)
    try:
        prices = tuple(float(_NOT_IN_PRICE.sub("", part)) for part in pricing.split("$")[1:])
    except ValueError:
        place.fail("pricing", expected, pricing)
    if not prices or not all(map(math.isfinite, prices)):
        place.fail("pricing", expected, pricing)
    return prices[:2]


def read_texts(value: object, key: str, place: Place) -> tuple[str, ...]:
    """Read a list of texts. Raises TaskError when it is anything else."""
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        place.fail(key, "a list of texts", value)
    return tuple(value)


def read_key(row: Mapping[str, Any], key: str, place: Place) -> Any:
    """The value of a key. Raises TaskError when the row lacks it."""
    if key not in row:
        raise TaskError(
            f"{place.source}, {place.row}: key {key!r} is missing. Correct or remove the row, or take the file from "
            "WebShop's release again"
        )
    return row[key]


def read_object(value: object, place: Place) -> Mapping[str, Any]:
    """Take a value as an object. Raises TaskError when it is anything else."""
    if not isinstance(value, Mapping):
        raise TaskError(
            f"{place.source}, {place.row}: must be an object; found {_show(value)}. Correct or remove it, or take the "
            "file from WebShop's release again"
        )
    return value


def _read_asin(row: Mapping[str, Any], place: Place) -> str:
    asin = read_text(row, "asin", place)
    if not asin or asin != asin.strip("\0"):
        place.fail("asin", "a product's id", asin)
    return asin


def read_text(row: Mapping[str, Any], key: str, place: Place) -> str:
    """The text of a key. Raises TaskError when the row lacks it, or it is anything else."""
    value = read_key(row, key, place)
    if not isinstance(value, str):
        place.fail(key, "text", value)
    return value


def _read_bullets(row: Mapping[str, Any], place: Place) -> tuple[str, ...]:
    value = read_key(row, "small_description", place)
    return (value,) if isinstance(value, str) else read_texts(value, "small_description", place)


def _read_image(row: Mapping[str, Any], place: Place) -> str:
    images = read_texts(read_key(row, "images", place), "images", place)
    if not images:
        place.fail("images", "a list with at least one address", [])
    return images[0]


def _read_options(row: Mapping[str, Any], place: Place) -> dict[str, tuple[str, ...]]:
    """Values by option name, both lower-cased; options without content are left out."""
    key = "customization_options"
    raw = read_key(row, key, place)
    if not raw:  # the release has "" for no options
        return {}
    if not isinstance(raw, Mapping):
        place.fail(key, 'an object of lists, or ""', raw)
    options = {}
    for name, contents in raw.items():
        if contents is None:
            continue
        if not isinstance(contents, list | tuple):
            place.fail(key, f"an object of lists, also at {name!r}", contents)
        options[name.lower()] = tuple(_read_option_value(content, name, place) for content in contents)
    return options


def _read_option_value(content: object, name: str, place: Place) -> str:
    value = content.get("value") if isinstance(content, Mapping) else None
    if not isinstance(value, str):
        place.fail("customization_options", f'a list of objects with a text "value" at {name!r}', content)
    return value.strip().replace("/", " | ").lower()


def _show(value: object) -> str:
    return f"{type(value).__name__} {value!r:.60}"
