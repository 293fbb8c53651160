"""Generator of shops: catalogues, attributes and requests without end, in WebShop's own file format.

A shop is a function of its seed, size and style alone, on every machine and Python version. Products come in families
of near-duplicates that differ in one attribute, in the values they offer, or in their price, so the first search result
is often not the right one. All words are our own: there is no text of a real shop.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dmr_gym.errors import ConfigError
from dmr_gym.tasks.webshop.chance import Chance
from dmr_gym.tasks.webshop.reward import COLORS
from dmr_gym.tasks.webshop.shop import Shop
from dmr_gym.tasks.webshop.shop_style import ShopStyle
from dmr_gym.tasks.webshop.shop_text import (
    Title,
    write_bullets,
    write_description,
    write_request,
    write_synthetic_instruction,
    write_title,
)
from dmr_gym.tasks.webshop.shop_words import KINDS, Option, ProductType, made_up_word, odd_value, shop_words

EMBEDDED_SEED = 20_240_601
EMBEDDED_PRODUCTS = 1600
_ASIN_CHARS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DETAILS = ("Set of 2", "Gift Box", "Classic Line", "New Model", "Pack of 1", "2 Piece Set", "Limited Edition")
_CHANGES = ("attribute", "values", "price", "brand")
_OPTION_COUNTS = (0.05, 0.3, 0.65)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class GeneratedShop:
    """A shop as WebShop's files have it.

    Attributes:
        items: rows of ``items_shuffle.json``.
        instructions: ``items_ins_v2.json``: attributes and a synthetic instruction for each product.
        human: ``items_human_ins.json``: one or two natural requests for each product.
        nouns: ``title_nouns.json``: the nouns of each title.
    """

    items: list[dict[str, Any]]
    instructions: dict[str, dict[str, Any]]
    human: dict[str, list[dict[str, Any]]]
    nouns: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a product is before it is written down; relatives share most of it."""

    kind: ProductType
    brand: str
    shown: tuple[str, ...]
    hidden: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    cents: int


def generate_shop(seed: int, num_products: int = EMBEDDED_PRODUCTS, style: ShopStyle | None = None) -> GeneratedShop:
    """Make a shop, the same one for the same arguments everywhere.

    Args:
        seed: any integer.
        num_products: how many products.
        style: how it is written; None for the embedded shop's style.

    Raises:
        ConfigError: ``num_products`` is below 1.
    """
    if num_products < 1:
        raise ConfigError(f"num_products must be at least 1, found {num_products}")
    style = style or ShopStyle()
    chance = Chance(f"dmr-gym webshop shop {seed}")
    drafts = _drafts(chance, style, num_products)
    shop = GeneratedShop([], {}, {}, {})
    for draft in chance.shuffled(drafts):
        asin = _new_asin(chance, shop.nouns)
        title = _title(chance, style, draft)
        shop.items.append(_item(chance, asin, title, draft, _chatter(chance, style, draft.kind)))
        shop.instructions[asin] = _instruction(chance, style, draft)
        shop.human[asin] = [_request(chance, style, asin, draft) for _ in range(chance.integer(1, 2))]
        shop.nouns[asin] = list(title.nouns)
    return shop


def write_shop(shop: GeneratedShop, folder: str | Path) -> None:
    """Write a shop as the files that WebShop and `WebShopEngine` read, and the nouns of its titles beside them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "items_shuffle.json": shop.items,
        "items_ins_v2.json": shop.instructions,
        "items_human_ins.json": shop.human,
        "title_nouns.json": shop.nouns,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def as_shop(shop: GeneratedShop, source: str) -> Shop:
    """A generated shop as the engine takes it, without files; ``source`` names it in messages."""
    return Shop.from_rows(shop.items, shop.instructions, human=shop.human, nouns=shop.nouns, source=source)


@cache
def embedded_shop() -> Shop:
    """The shop that comes with the package, made once a process."""
    return as_shop(generate_shop(EMBEDDED_SEED), "embedded shop")


def is_safe_value(value: str) -> bool:
    """Whether buying this option value can fulfil a wish for it.

    The reward shortens a chosen value to the first colour name in it, also in the middle of a word ("standard" becomes
    "tan"), and then no longer finds it in a synthetic goal.
    """
    color = next((color for color in COLORS if color in value), None)
    return color is None or color in _WORD.findall(value)


def _drafts(chance: Chance, style: ShopStyle, num_products: int) -> list[_Draft]:
    types = _types(chance, style)
    drafts: list[_Draft] = []
    while len(drafts) < num_products:
        family = _family(chance, style, types[len(drafts) * len(types) // num_products])
        drafts += family[: num_products - len(drafts)]
    return drafts


def _types(chance: Chance, style: ShopStyle) -> list[ProductType]:
    types = chance.shuffled(shop_words().types)
    types = types[: style.types or len(types)]
    return [_unusual_type(chance, style, kind) if chance.happens(style.more_types) else kind for kind in types]


def _unusual_type(chance: Chance, style: ShopStyle, kind: ProductType) -> ProductType:
    """Another type for the same shelf, from the reserve list or with a made-up word, and other attributes."""
    words = shop_words()
    name = chance.pick(words.more_types)
    if chance.happens(0.5):
        name = f"{made_up_word(chance, chance.integer(2, 3))} {name.rpartition(' ')[2]}"
    elif chance.happens(0.15):
        name = f"{chance.pick(('men', 'women'))}'s {name}"
    more = words.more_attributes
    attributes = {place: tuple(chance.sample(kind.attributes[place] + more[place], 12)) for place in KINDS}
    if chance.happens(style.made_up):
        invented = [f"{made_up_word(chance, 2)} {chance.pick(words.more_fillers)}" for _ in range(4)]
        attributes["before"] += tuple(phrase for phrase in invented if phrase not in attributes["before"])
    options = tuple({option.name: option for option in chance.sample(words.all_options, 2)}.values())
    return ProductType(kind.category, name, f"{kind.path} \u203a {name.title()}", attributes, options)


def _family(chance: Chance, style: ShopStyle, kind: ProductType) -> list[_Draft]:
    first = _founder(chance, style, kind)
    family = [first]
    for _ in range(chance.weighted(style.relatives)):
        family.append(_relative(chance, style, first))
    return family


def _founder(chance: Chance, style: ShopStyle, kind: ProductType) -> _Draft:
    counts = {"before": chance.integer(1, 3), "with": chance.integer(0, 1), "for": chance.integer(0, 1)}
    attributes = [a for place in KINDS for a in chance.sample(kind.attributes[place], counts[place])]
    attributes = chance.shuffled(list(dict.fromkeys(attributes)))
    if len(attributes) == 1:
        attributes.append(_other_attribute(chance, kind, attributes))
    shown = min(len(attributes), chance.integer(2, 3))
    options = list(kind.options[: chance.weighted(_OPTION_COUNTS)])
    if chance.happens(style.extra_option):
        spare = chance.pick(shop_words().all_options)
        options += [spare] if all(spare.name != option.name for option in options) else []
    return _Draft(
        kind,
        _brand(chance, style),
        tuple(attributes[:shown]),
        tuple(attributes[shown:]),
        _offer(chance, style, options),
        chance.integer(399, 6999),
    )


def _relative(chance: Chance, style: ShopStyle, first: _Draft) -> _Draft:
    """A near-duplicate: the same but for the brand, and one thing that matters."""
    change = _CHANGES[chance.weighted(style.changes)]
    shown, options, cents = first.shown, dict(first.options), first.cents
    if change == "attribute":
        place = chance.integer(0, len(shown) - 1)
        other = _other_attribute(chance, first.kind, [*shown, *first.hidden])
        shown = (*shown[:place], other, *shown[place + 1 :])
    elif change == "price":
        cents += chance.integer(4000, 12000)
    if change == "values" or chance.happens(0.6):
        options = _offer(chance, style, first.kind.options)
        options = {name: options.get(name, first.options[name]) for name in first.options}
    brand = first.brand if chance.happens(0.4) else _brand(chance, style)
    return _Draft(first.kind, brand, shown, first.hidden, options, cents)


def _other_attribute(chance: Chance, kind: ProductType, taken: Sequence[str]) -> str:
    return chance.pick([a for place in KINDS for a in kind.attributes[place] if a not in taken])


def _brand(chance: Chance, style: ShopStyle) -> str:
    return made_up_word(chance) if chance.happens(style.made_up) else chance.pick(shop_words().brands)


def _offer(chance: Chance, style: ShopStyle, options: Sequence[Option]) -> dict[str, tuple[str, ...]]:
    """Values of each option; no value is offered under two names."""
    offer: dict[str, tuple[str, ...]] = {}
    taken: set[str] = set()
    for option in options:
        size = chance.integer(*style.values)
        pool = list(option.values)
        if chance.happens(style.odd_values):
            pool = [odd_value(chance) for _ in range(size)] + chance.sample(pool, chance.integer(0, 2))
        values = [v for v in dict.fromkeys(chance.sample(pool, size)) if v not in taken and is_safe_value(v)]
        if values:
            values.sort(key=pool.index)
            offer[option.name] = tuple(values)
            taken.update(values)
    return offer


def _new_asin(chance: Chance, known: Mapping[str, Any]) -> str:
    while True:
        asin = "B0" + "".join(chance.pick(_ASIN_CHARS) for _ in range(8))
        if asin not in known:
            return asin


def _title(chance: Chance, style: ShopStyle, draft: _Draft) -> Title:
    words = shop_words().more_fillers if style.odd_fillers else shop_words().fillers
    fillers = [
        made_up_word(chance, 2) if chance.happens(style.made_up) else chance.pick(words)
        for _ in range(chance.integer(*style.fillers))
    ]
    detail = chance.pick(_DETAILS) if chance.happens(0.25) else ""
    return write_title(chance, draft.brand, draft.kind, draft.shown, fillers, detail)


def _chatter(chance: Chance, style: ShopStyle, kind: ProductType) -> str:
    if not style.chatter:
        return ""
    values = [value for option in kind.options for value in option.values]
    named = [chance.pick(values) for _ in range(chance.integer(0, style.chatter))]
    return f" Our shop also has {', '.join(named)}." if named else ""


def _item(chance: Chance, asin: str, title: Title, draft: _Draft, chatter: str) -> dict[str, Any]:
    attributes = [*draft.shown, *draft.hidden]
    price = draft.cents / 100
    highest = (draft.cents + chance.integer(100, 500)) / 100
    told = draft.hidden if chance.happens(0.6) else ()
    return {
        "asin": asin,
        "name": title.text,
        "full_description": write_description(chance, draft.brand, draft.kind, told) + chatter,
        "small_description": write_bullets(chance, draft.kind, attributes),
        "pricing": f"${price:.2f} - ${highest:.2f}" if chance.happens(0.07) else f"${price:.2f}",
        "customization_options": {
            name.title(): [{"value": value, "image": ""} for value in values] for name, values in draft.options.items()
        },
        "images": [f"{asin.lower()}.jpg"],
        "product_category": draft.kind.path,
        "category": draft.kind.category,
        "query": draft.kind.query,
    }


def _wanted(chance: Chance, style: ShopStyle, draft: _Draft) -> list[str]:
    """Attributes of a request: those of the title, and in every fourth request one that only the features tell."""
    number = 1 + chance.weighted(style.wanted)
    hidden = chance.sample(draft.hidden, 1) if chance.happens(0.25) else []
    wanted = hidden + chance.sample(draft.shown, max(1, number - len(hidden)))
    return chance.shuffled(wanted)


def _instruction(chance: Chance, style: ShopStyle, draft: _Draft) -> dict[str, Any]:
    wanted = _wanted(chance, style, draft)
    return {
        "attributes": [*draft.shown, *draft.hidden],
        "instruction": write_synthetic_instruction(draft.kind, wanted),
        "instruction_attributes": wanted,
    }


def _request(chance: Chance, style: ShopStyle, asin: str, draft: _Draft) -> dict[str, Any]:
    wanted = _wanted(chance, style, draft)
    options = {name: chance.pick(values) for name, values in draft.options.items() if chance.happens(0.9)}
    return {
        "asin": asin,
        "instruction": write_request(chance, draft.kind, wanted, options),
        "attributes": [*draft.shown, *draft.hidden],
        "options": [f"{name}: {value}" for name, values in draft.options.items() for value in values],
        "instruction_attributes": wanted,
        "instruction_options": list(options.values()),
    }
