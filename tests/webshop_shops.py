"""Small WebShop shops made by hand, and engines in them."""

from __future__ import annotations

from typing import Any

from dmr_gym.tasks.webshop.engine import WebShopEngine
from dmr_gym.tasks.webshop.shop import Shop
from tests.webshop_rows import make_entry, make_row

LAMP, SHIRT, SMALL = "B0000LAMP1", "B000SHIRT1", "b0000small"


def options(**values: list[str]) -> dict[str, list[dict[str, str]]]:
    """Options in the format of the data files."""
    return {name: [{"value": value} for value in content] for name, content in values.items()}


def make_shop(*extra: dict[str, Any], filler: int = 0) -> Shop:
    """A lamp with colours, a shirt with awkward option values, more rows, and so many products of no interest."""
    rows = [
        make_row(LAMP, name="Red desk lamp", customization_options=options(color=["red", "standard"])),
        make_row(
            SHIRT,
            name="Cotton shirt item_page",
            query="shirts",
            category="fashion",
            customization_options=options(
                fit=["next >", "features", "search", "wide [x]", '28" x 28"', "café", "slim"]
            ),
        ),
        *extra,
        *(make_row(f"B1{number:08d}", name=f"Filler {number}") for number in range(filler)),
    ]
    entries = {row["asin"]: {} for row in rows} | {LAMP: make_entry(instruction="Find me lamps")}
    human = {
        row["asin"]: [{"instruction": "get it.", "instruction_attributes": ["x"], "instruction_options": []}]
        for row in rows[:2]
    }
    return Shop.from_rows(rows, entries, human, {row["asin"]: row["name"].lower().split() for row in rows})


SHOP = make_shop(make_row(SMALL, name="Small letters"))
BIG_SHOP = make_shop(filler=60)


def make_engine(shop: Shop = SHOP, **settings: Any) -> WebShopEngine:
    """An engine at the start page of goal 0."""
    engine = WebShopEngine(shop, **settings)
    engine.reset(0)
    return engine


def do(engine: WebShopEngine, *actions: str) -> str:
    """Carry out actions, each of which must do something; the last observation."""
    observation = ""
    for action in actions:
        assert engine.inadmissible_reason(action) is None, action
        observation = engine.step(action)
    return observation
