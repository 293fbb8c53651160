"""The words of the generated shops: five categories, their product types, attributes, options, and made-up words."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from dmr_gym.tasks.webshop.chance import Chance

KINDS = ("before", "with", "for")
"""Where an attribute stands: "gluten free bars", "slippers with rubber sole", "lotions for dry skin"."""

_PAIRS = frozenset({"earbuds", "loafers", "slippers", "sandals", "leggings", "boots", "shoes", "socks", "pants"})
_SIBILANT_PLURAL = re.compile(r"(ss|sh|ch|x)es$")


@dataclass(frozen=True, slots=True)
class Option:
    """A choice that a product type has: "color", and the values that a shop may offer."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProductType:
    """A kind of product.

    Attributes:
        category: one of WebShop's five.
        query: the name in the catalogue, in the plural: "men's t-shirts".
        path: its shelf, as levels with a single angle quotation mark between.
        attributes: the phrases that its products may have, under each of `KINDS`.
        options: its choices, most usual first.
    """

    category: str
    query: str
    path: str
    attributes: Mapping[str, tuple[str, ...]]
    options: tuple[Option, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        """The words of the name that a tagger calls nouns."""
        return tuple(word for word in re.findall(r"\w+", self.query) if word != "s")

    @property
    def is_pair(self) -> bool:
        """Whether one speaks of a pair of them."""
        return self.query.rpartition(" ")[2] in _PAIRS

    @property
    def singular(self) -> str:
        """The name of one of them; of a pair, the plural."""
        return self.query if self.is_pair else singular(self.query)


@dataclass(frozen=True, slots=True)
class ShopWords:
    """The vocabulary. ``more_types`` are names alone; ``more_attributes``, by kind, fit any; fillers mean nothing."""

    brands: tuple[str, ...]
    syllables: tuple[str, ...]
    types: tuple[ProductType, ...]
    all_options: tuple[Option, ...]
    more_types: tuple[str, ...]
    more_attributes: Mapping[str, tuple[str, ...]]
    fillers: tuple[str, ...]
    more_fillers: tuple[str, ...]


def singular(plural: str) -> str:
    """One of them: "brush" of "brushes"; a name that is no plural stays."""
    if not plural.endswith("s") or plural.endswith("ss"):
        return plural
    shorter = _SIBILANT_PLURAL.sub(r"\1", plural)
    return shorter if shorter != plural else plural[:-1]


@cache
def shop_words() -> ShopWords:
    """The vocabulary shipped with the package, read once."""
    text = files("dmr_gym.tasks.webshop").joinpath("data", "shop_words.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    options = {key: _option(line) for key, line in table["options"].items()}
    groups = {name: dict(zip(KINDS, map(_phrases, lists), strict=True)) for name, lists in table["groups"].items()}
    more = table["more"]
    return ShopWords(
        brands=tuple(table["brands"].split()),
        syllables=tuple(table["syllables"].split()),
        types=tuple(
            _product_type(category, line, groups, options)
            for category, lines in table["types"].items()
            for line in lines
        ),
        all_options=tuple(options.values()),
        more_types=_phrases(more["types"]),
        more_attributes={kind: _phrases(more[kind]) for kind in KINDS},
        fillers=tuple(table["fillers"].split()),
        more_fillers=tuple(more["fillers"].split()),
    )


def made_up_word(chance: Chance, syllables: int = 3) -> str:
    """A word that no dictionary has."""
    return "".join(chance.pick(shop_words().syllables) for _ in range(syllables))


def odd_value(chance: Chance) -> str:
    """An option value as careless sellers write them: "a-velmor2041", "tx31x47in+9", "kalbel 12(m)"."""
    word, number = made_up_word(chance, 2), chance.integer(2, 2999)
    shapes = (
        f"{word}{number}{made_up_word(chance, 1)}",
        f"{chance.pick('abcdefg')}-{word}{chance.integer(1, 99)}",
        f"{chance.integer(9, 90)}x{chance.integer(9, 90)}in+{chance.integer(9, 90)}.{chance.integer(1, 9)}x{number}in",
        f"{word} {chance.integer(2, 48)}({chance.pick('smlx')})",
        f"{chance.integer(1, 60)}*{chance.integer(1, 60)}cm {word}",
        f"{number}{chance.pick('abcdexz')}{chance.integer(1, 9)}",
    )
    return chance.pick(shapes)


def _phrases(line: str) -> tuple[str, ...]:
    return tuple(line.split(", "))


def _option(line: str) -> Option:
    name, _, values = line.partition(" | ")
    return Option(name, tuple(values.split("; ")))


def _product_type(
    category: str, line: str, groups: Mapping[str, Mapping[str, tuple[str, ...]]], options: Mapping[str, Option]
) -> ProductType:
    query, path, group, choices = line.split(" | ")
    return ProductType(category, query, path, groups[group], tuple(options[name] for name in choices.split()))
