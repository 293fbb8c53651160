"""The generated shops: a function of the seed, in the official format, where choosing matters."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.tasks.webshop.chance import Chance
from dmr_gym.tasks.webshop.generate import (
    GeneratedShop,
    generate_shop,
    is_safe_value,
    write_shop,
)
from dmr_gym.tasks.webshop.shop_style import ShopStyle, draw_style
from dmr_gym.tasks.webshop.shop_words import KINDS, made_up_word, odd_value, shop_words, singular


@pytest.fixture(scope="module")
def shop() -> GeneratedShop:
    """A shop of two hundred products in the embedded shop's style."""
    return generate_shop(7, 200)


def test_shop_is_a_function_of_its_seed(shop: GeneratedShop) -> None:
    """The same seed gives the same shop, another seed another one."""
    assert generate_shop(7, 200) == shop
    assert generate_shop(8, 200).items != shop.items


def test_first_product_of_a_seed_is_known() -> None:
    """A change of the generator that would change every shop is noticed without the table of hashes."""
    item = generate_shop(7, 200).items[0]
    assert (item["asin"], item["name"]) == (
        "B0KZG1ZKUU",
        "Bellhaven Natural Flavors Rice Cracker For Gift Baskets",
    )


def test_asins_and_titles_are_well_formed(shop: GeneratedShop) -> None:
    """Ten characters, no asin twice, titles of at most 16 words."""
    asins = [item["asin"] for item in shop.items]
    assert len(asins) == len(set(asins)) == 200
    assert all(re.fullmatch(r"B0[0-9A-Z]{8}", asin) for asin in asins)
    assert all(3 <= len(item["name"].split()) <= 16 for item in shop.items)


def test_every_attribute_is_told_in_the_bullets(shop: GeneratedShop) -> None:
    """The features, which fit into a prompt, have all attributes; the title has some of them."""
    hidden = 0
    for item in shop.items:
        bullets = " ".join(item["small_description"])
        attributes = shop.instructions[item["asin"]]["attributes"]
        assert all(attribute in bullets for attribute in attributes)
        assert len(bullets) <= 400
        shown = [a for a in attributes if a in item["name"].lower()]
        assert shown
        hidden += len(shown) < len(attributes)
    assert 40 <= hidden <= 160


def test_requests_name_what_is_wanted(shop: GeneratedShop) -> None:
    """A human request has the wanted attributes and values word by word, and its product offers the values."""
    for item in shop.items:
        offered = [v["value"] for values in item["customization_options"].values() for v in values]
        for request in shop.human[item["asin"]]:
            wanted = [*request["instruction_attributes"], *request["instruction_options"]]
            assert all(phrase in request["instruction"] for phrase in wanted)
            assert set(request["instruction_options"]) <= set(offered)


@pytest.mark.parametrize("seed", range(12))
def test_option_values_are_safe_and_unique_within_a_product(seed: int) -> None:
    """In every style, no value stands under two names, and none is spoiled by the reward's colour words."""
    for item in generate_shop(seed, 60, draw_style(seed)).items:
        values = [v["value"] for values in item["customization_options"].values() for v in values]
        assert len(values) == len(set(values))
        assert all(is_safe_value(value) for value in values)


def test_colour_words_inside_other_words_are_not_safe() -> None:
    """A "standard" has "tan" in it; "light grey" is reduced to "grey", a word of its own."""
    assert not is_safe_value("standard")
    assert not is_safe_value("2005grey")
    assert is_safe_value("light grey")
    assert is_safe_value("8 ounce (pack of 2)")


def test_titles_follow_the_style() -> None:
    """Many fillers make long titles; made-up words are in no list."""
    style = ShopStyle(fillers=(12, 16), made_up=1.0)
    titles = [item["name"] for item in generate_shop(3, 50, style).items]
    assert all(len(title.split()) >= 15 for title in titles)
    assert not any(title.split()[0] in shop_words().brands for title in titles)


def test_families_differ_in_what_matters(shop: GeneratedShop) -> None:
    """Some products share type and shown attributes, and most of these differ in price or in the values offered."""
    groups: dict[tuple[str, ...], list[dict[str, object]]] = {}
    for item in shop.items:
        known = shop.instructions[item["asin"]]["attributes"]
        shown = sorted(a for a in known if a in item["name"].lower())
        groups.setdefault((item["query"], *shown), []).append(item)
    alike = [group for group in groups.values() if len(group) > 1]
    assert len(alike) >= 20
    differing = [len({(json.dumps(i["customization_options"]), str(i["pricing"])) for i in g}) for g in alike]
    assert sum(count > 1 for count in differing) >= 0.8 * len(alike)


def test_shop_is_written_under_the_official_names(shop: GeneratedShop, tmp_path: Path) -> None:
    """Four JSON files hold the shop as it is."""
    write_shop(shop, tmp_path)
    names = ("items_shuffle", "items_ins_v2", "items_human_ins", "title_nouns")
    read = [json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    assert read == [shop.items, shop.instructions, shop.human, shop.nouns]


def test_a_shop_needs_a_product() -> None:
    """Zero products are refused."""
    with pytest.raises(ConfigError, match=r"^num_products must be at least 1, found 0$"):
        generate_shop(0, 0)


def test_words_are_consistent() -> None:
    """Phrases are lower-case pairs, each type has attributes of each kind, and names are plurals."""
    words = shop_words()
    assert len(words.types) == 44
    for kind in words.types:
        assert singular(kind.query) != kind.query
        for place in KINDS:
            assert len(kind.attributes[place]) >= 4
            assert all(re.fullmatch(r"[a-z]+ [a-z]+", phrase) for phrase in kind.attributes[place])
    assert {kind.category for kind in words.types} == {"beauty", "electronics", "fashion", "garden", "grocery"}
    assert all(is_safe_value(value) for option in words.all_options for value in option.values)


def test_singular_of_names() -> None:
    """The plural's ending goes, after a sibilant with its e; other names stay."""
    assert [singular(word) for word in ("trail mixes", "dresses", "hot sauces", "jewelry", "dress")] == [
        "trail mix",
        "dress",
        "hot sauce",
        "jewelry",
        "dress",
    ]


def test_chance_is_the_same_everywhere() -> None:
    """Draws are fixed by the text alone; the numbers were written down once."""
    chance = Chance("words")
    assert [chance.integer(1, 6) for _ in range(8)] == [1, 4, 5, 1, 5, 3, 2, 4]
    assert chance.shuffled("abcd") == ["d", "a", "c", "b"]
    assert made_up_word(chance) == "belkonlu"
    assert odd_value(chance) == "a-miyan22"
    assert chance.weighted((0.0, 1.0, 0.0)) == 1
    assert sorted(chance.sample("abc", 5)) == ["a", "b", "c"]
