"""Rows in WebShop's official format for tests, and hypothesis strategies for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Row = dict[str, Any]

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ATTRIBUTES = st.sampled_from(["long lasting", "easy clean", "non slip", "bpa free"])


def make_row(asin: str = "B000000001", **changes: Any) -> Row:
    """A whole row with two options; keyword arguments replace its values."""
    row: Row = {
        "asin": asin,
        "name": f"Lamp {asin}",
        "full_description": "A lamp.",
        "small_description": ["Bright", "Warm"],
        "pricing": "$12.5",
        "customization_options": {
            "Size": [{"value": "Small "}, {"value": "Large"}],
            "Color": [{"value": "Red/Blue"}, {"value": "Green", "image": "x"}],
        },
        "images": ["https://example.org/1.jpg"],
        "product_category": "Home \u203a Lamps",
        "category": "garden",
        "query": " Desk Lamps ",
    }
    return row | changes


def make_entry(**changes: Any) -> Row:
    """An instruction entry with two attributes; keyword arguments replace its values."""
    entry = {
        "attributes": ["long lasting", "easy clean", "non slip"],
        "instruction": "Find me long lasting, easy clean lamps",
        "instruction_attributes": ["long lasting", "easy clean"],
    }
    return entry | changes


def write_data(folder: Path, rows: list[Row], entries: Row, human: Row | None = None, suffix: str = "_1000") -> Path:
    """Write official files into a folder, with every title's words as its nouns, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"items_shuffle{suffix}.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / f"items_ins_v2{suffix}.json").write_text(json.dumps(entries), encoding="utf-8")
    if human is not None:
        (folder / "items_human_ins.json").write_text(json.dumps(human), encoding="utf-8")
    nouns = {row["asin"]: row["name"].lower().split() for row in rows}
    (folder / "title_nouns.json").write_text(json.dumps(nouns), encoding="utf-8")
    return folder


@st.composite
def shops(draw: st.DrawFn, max_products: int = 5) -> tuple[list[Row], Row, Row]:
    """Rows, instruction entries and human instructions of a small random shop."""
    asins = draw(st.lists(st.text("AB01", min_size=1, max_size=10), unique=True, max_size=max_products))
    option_values = st.lists(TEXTS.map(lambda text: {"value": text}), max_size=3)
    price = st.decimals(0, 2000, places=2).map(lambda amount: f"${amount:,}")
    rows = [
        make_row(
            asin,
            name=draw(TEXTS),
            full_description=draw(TEXTS),
            small_description=draw(st.one_of(TEXTS, st.lists(TEXTS, max_size=3))),
            pricing=draw(st.one_of(st.just(""), price, st.tuples(price, price).map(" - ".join))),
            customization_options=draw(
                st.one_of(
                    st.just(""), st.dictionaries(TEXTS, st.one_of(st.none(), option_values), min_size=1, max_size=3)
                )
            ),
            query=draw(TEXTS),
        )
        for asin in asins
    ]
    wanted = st.lists(ATTRIBUTES, min_size=1, max_size=4)
    entry = st.one_of(
        st.just({}),
        st.builds(dict, attributes=wanted),
        st.builds(dict, attributes=wanted, instruction=TEXTS, instruction_attributes=wanted),
    )
    instruction = st.builds(
        dict,
        instruction=TEXTS,
        instruction_attributes=st.lists(ATTRIBUTES, max_size=2),
        instruction_options=st.lists(TEXTS, max_size=2),
    )
    human = draw(st.dictionaries(st.sampled_from([*asins, "unknown"]), st.lists(instruction, max_size=3)))
    return rows, {asin: draw(entry) for asin in asins}, human
