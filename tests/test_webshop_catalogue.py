"""Rows of the official files become products, and broken rows are told apart from those that WebShop skips."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmr_gym.errors import TaskError
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.rows import Place, read_prices
from tests.webshop_rows import make_entry, make_row


def catalogue_of(*rows: Any, entries: dict[str, Any] | None = None) -> Catalogue:
    """A catalogue in memory of rows and instruction entries."""
    return Catalogue.from_rows(rows, {} if entries is None else entries, "items.json", "ins.json")


def test_product_has_normalised_values() -> None:
    """Options are stripped, lower-cased and get " | " for "/"; the query is stripped and lower-cased; order is kept."""
    product = catalogue_of(make_row(), entries={"B000000001": make_entry()})[0]
    assert product.options == {"size": ("small", "large"), "color": ("red | blue", "green")}
    assert list(product.options) == ["size", "color"]
    assert (product.title, product.description, product.bullets) == ("Lamp B000000001", "A lamp.", ("Bright", "Warm"))
    assert (product.query, product.category, product.product_category) == ("desk lamps", "garden", "Home \u203a Lamps")
    assert product.attributes == ("long lasting", "easy clean", "non slip")
    assert product.instruction == "Find me long lasting, easy clean lamps"
    assert product.instruction_attributes == ("long lasting", "easy clean")
    assert product.image == "https://example.org/1.jpg"


def test_index_text_is_title_description_first_bullet_and_options() -> None:
    """The indexed text has its parts in WebShop's order, lower-cased."""
    text = catalogue_of(make_row())[0].index_text
    assert text == "lamp b000000001 a lamp. bright size: small, large, and color: red | blue, green"


def test_product_without_entry_has_the_dummy_attribute() -> None:
    """No entry, and an entry without attributes, give DUMMY_ATTR; an empty list stays empty."""
    rows = [make_row(asin) for asin in ("A", "B", "C")]
    catalogue = catalogue_of(*rows, entries={"B": {}, "C": {"attributes": []}})
    assert [product.attributes for product in catalogue] == [("DUMMY_ATTR",), ("DUMMY_ATTR",), ()]
    assert catalogue.columns.listings.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("pricing", "prices", "label"),
    [
        (None, (100.0,), "$100.0"),
        ("", (100.0,), "$100.0"),
        ("$36", (36.0,), "$36.0"),
        ("$1,234.50", (1234.5,), "$1234.5"),
        ("$19.99 - $27.99", (19.99, 27.99), "$19.99 to $27.99"),
        ("$5$6$7", (5.0, 6.0), "$5.0 to $6.0"),
        ("from 7 to $8 each", (8.0,), "$8.0"),
    ],
)
def test_price_is_parsed_as_webshop_does(pricing: str | None, prices: tuple[float, ...], label: str) -> None:
    """All text but digits and dots is dropped after each dollar sign; the label is Python's float."""
    product = catalogue_of(make_row(pricing=pricing))[0]
    assert (product.prices, product.price_label) == (prices, label)


@pytest.mark.parametrize("pricing", ["12.5", "$", "$free", "$1.2.3", float("nan"), 12.5, ["$1"], "$" + "9" * 400])
def test_price_that_webshop_cannot_read_is_an_error(pricing: object) -> None:
    """A price that is no number after a dollar sign names file, row, key and value."""
    with pytest.raises(TaskError, match=r"items.json, row 0 \(A\): key 'pricing' must be empty or a text such as"):
        read_prices(pricing, Place("items.json", "row 0 (A)"))


def test_small_description_may_be_a_text() -> None:
    """A text counts as one bullet, an empty list as none."""
    rows = [make_row("A", small_description="One"), make_row("B", small_description=[])]
    catalogue = catalogue_of(*rows)
    assert [product.bullets for product in catalogue] == [("One",), ()]


def test_options_without_content_are_left_out_and_equal_names_merge() -> None:
    """A null option vanishes; names equal in lower case keep the first place and the last values."""
    options = {"Size": [{"value": "S"}], "Fit": None, "Color": [], "SIZE": [{"value": "M"}]}
    product = catalogue_of(make_row(customization_options=options))[0]
    assert list(product.options.items()) == [("size", ("m",)), ("color", ())]


def test_rows_that_webshop_skips_are_skipped_with_one_warning() -> None:
    """The asin "nan", one of eleven characters and a repeated one are counted in one warning."""
    rows = [make_row("nan"), make_row("A"), make_row("A", name="other"), make_row("B" * 11), make_row("B" * 10)]
    with pytest.warns(UserWarning, match="skipped 3 rows, as WebShop does: 1 with an asin seen before, 2 with") as seen:
        catalogue = catalogue_of(*rows)
    assert len(seen) == 1
    assert [(product.asin, product.title) for product in catalogue] == [("A", "Lamp A"), ("B" * 10, f"Lamp {'B' * 10}")]


@pytest.mark.parametrize(
    "key", ["asin", "name", "full_description", "small_description", "customization_options", "images", "query"]
)
def test_missing_key_is_named_with_file_and_row(key: str) -> None:
    """A row that lacks a key WebShop needs is an error, in whichever row it is."""
    broken = make_row("B")
    del broken[key]
    with pytest.raises(TaskError, match=rf"items.json, row 1.*: key '{key}' is missing. Correct or remove the row"):
        catalogue_of(make_row("A"), broken)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("asin", 7, "text; found int 7"),
        ("asin", "", "a product's id; found str ''"),
        ("name", None, "text; found NoneType None"),
        ("name", float("nan"), "text; found float nan"),
        ("small_description", [1], "a list of texts"),
        ("images", [], "a list with at least one address"),
        ("customization_options", ["x"], "an object of lists"),
        ("customization_options", {"Size": "S"}, "an object of lists, also at 'Size'"),
        ("customization_options", {"Size": ["S"]}, "a list of objects with a text \"value\" at 'Size'"),
        ("customization_options", {"Size": [{"value": None}]}, "a list of objects with a text"),
    ],
)
def test_wrong_type_is_named_with_file_row_and_key(key: str, value: object, expected: str) -> None:
    """A value of another type tells what was expected and what was found."""
    with pytest.raises(TaskError) as failure:
        catalogue_of(make_row(**{key: value}))
    assert f"key {key!r} must be {expected}" in str(failure.value)
    assert str(failure.value).startswith("items.json, row 0")


def test_row_that_is_no_object_is_an_error() -> None:
    """A row may be any JSON value; only an object has a product."""
    with pytest.raises(TaskError, match=r"items.json, row 1: must be an object; found list"):
        catalogue_of(make_row(), [1])


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ([], "must be an object; found list"),
        ({"attributes": "soft"}, "key 'attributes' must be a list of texts"),
        (make_entry(instruction=5), "key 'instruction' must be text"),
        (make_entry(instruction_attributes=None), "key 'instruction_attributes' must be a list of texts"),
        (make_entry(instruction_attributes=[]), "a list of at least one text beside an instruction"),
    ],
)
def test_broken_instruction_entry_is_named(entry: object, expected: str) -> None:
    """Errors in the instruction file name it and the asin."""
    with pytest.raises(TaskError) as failure:
        catalogue_of(make_row("A"), entries={"A": entry})
    assert str(failure.value).startswith("ins.json, entry 'A': ")
    assert expected in str(failure.value)


def test_products_are_found_by_asin() -> None:
    """Each asin gives its number, whatever the order; others give None or a clear error."""
    asins = ["C", "A", "B00", "B0", "b0"]
    catalogue = catalogue_of(*map(make_row, asins))
    assert [catalogue.index_of(asin) for asin in asins] == [0, 1, 2, 3, 4]
    assert [catalogue.find(asin) for asin in ("", "B", "B000", "B00000000000", "Z")] == [None] * 5
    with pytest.raises(TaskError, match=r"no product has the asin 'c' among the 5 of items.json"):
        catalogue.index_of("c")


def test_products_are_found_by_category_and_query() -> None:
    """Searches for a department or a query get all its products in catalogue order."""
    rows = [
        make_row("A", category="beauty", query="Soap"),
        make_row("B", category="garden", query="soap "),
        make_row("C", category="beauty", query="soap dish"),
    ]
    catalogue = catalogue_of(*rows)
    assert catalogue.numbers_in_category("beauty").tolist() == [0, 2]
    assert catalogue.numbers_with_query("soap").tolist() == [0, 1]
    assert len(catalogue.numbers_in_category("Beauty")) == len(catalogue.numbers_with_query("")) == 0


def test_columns_hold_prices_and_combinations() -> None:
    """One price leaves NaN beside it; combinations multiply the numbers of values."""
    rows = [make_row("A"), make_row("B", pricing="$2 - $4", customization_options={"Size": []})]
    columns = catalogue_of(*rows).columns
    np.testing.assert_array_equal(columns.prices, [[12.5, np.nan], [2.0, 4.0]])
    assert columns.combinations.tolist() == [4, 0]


def test_catalogue_is_a_sequence() -> None:
    """Slices, negative numbers and iteration work as for a list; numbers out of range raise IndexError."""
    catalogue = catalogue_of(*map(make_row, "ABC"))
    assert [product.asin for product in catalogue[1:]] == ["B", "C"]
    assert catalogue[-1].asin == "C"
    with pytest.raises(IndexError):
        catalogue[3]


def test_official_products_are_read_without_warnings(shared_data: Path) -> None:
    """The 1000-product release has 1000 products, 415 of them with an instruction."""
    folder = shared_data / "webshop"
    items = json.loads((folder / "items_shuffle_1000.json").read_text(encoding="utf-8"))
    entries = json.loads((folder / "items_ins_v2_1000.json").read_text(encoding="utf-8"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        catalogue = Catalogue.from_rows(items, entries)
    assert len(catalogue) == 1000
    assert (catalogue.columns.listings == 2).sum() == 415
    assert len(catalogue.numbers_in_category("garden")) == 216
