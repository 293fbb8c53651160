"""The reward of a purchase: hand-computed scores, and every purchase recorded from the original."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dmr_gym.tasks.webshop.catalogue import Catalogue, Product
from dmr_gym.tasks.webshop.goals import Goal, GoalBook
from dmr_gym.tasks.webshop.reward import COLORS, Score, reduce_color, score_purchase

NOUNS = ("lamp", "desk", "light", "lamp", "shade")


def make_product(**changes: Any) -> Product:
    """A desk lamp, changed as told."""
    values: dict[str, Any] = {
        "asin": "B0LAMP0001",
        "title": "Glowly Desk Lamp, Easy Assemble",
        "description": "A lamp with a Heavy Duty base.",
        "bullets": ("Made of solid", "wood and brass"),
        "prices": (25.0,),
        "options": {"color": ("black", "navy blue"), "size": ("large", "x-large", "standard")},
        "attributes": ("energy efficient", "long lasting"),
        "category": "garden",
        "product_category": "Home \u203a Lighting \u203a Lamps",
        "query": "desk lamps",
        "image": "",
    }
    return Product(**{**values, **changes})


def make_goal(**changes: Any) -> Goal:
    """A wish for that desk lamp with one attribute and no option, changed as told."""
    values: dict[str, Any] = {
        "asin": "B0LAMP0001",
        "instruction_text": "find me a lamp",
        "attributes": ("long lasting",),
        "options": {},
        "price_upper": 30.0,
        "weight": 1.0,
        "title": "Glowly Desk Lamp, Easy Assemble",
        "category": "garden",
        "product_category": "Home \u203a Lighting \u203a Lamps",
        "query": "desk lamps",
    }
    return Goal(**{**values, **changes})


def score(
    product: Product | None = None,
    goal: Goal | None = None,
    price: float = 25.0,
    chosen: dict[str, str] | None = None,
    nouns: tuple[tuple[str, ...], tuple[str, ...]] = (NOUNS, NOUNS),
    fix: bool = False,
) -> Score:
    """Score with defaults."""
    return score_purchase(
        product or make_product(), goal or make_goal(), price, chosen or {}, *nouns, fix_option_colors=fix
    )


def test_colors_are_the_102_in_alphabetical_order(shared_data: Path) -> None:
    """The reduction takes the first that occurs, so the order is part of the rule."""
    assert list(COLORS) == json.loads((shared_data / "webshop" / "colors.json").read_text())
    assert sorted(set(COLORS)) == list(COLORS)
    assert len(COLORS) == 102


def test_exact_purchase_scores_one() -> None:
    """One attribute, two options and the price: four of four."""
    goal = make_goal(options={"color": "black", "size": "large"})
    result = score(goal=goal, chosen={"size": "large", "color": "black"})
    assert result.value == 1.0
    assert (result.n_att, result.n_opt, result.r_price) == (1, 2, True)
    assert (result.w_att, result.w_option, result.w_price) == (0.25, 0.5, 0.25)


def test_attribute_is_found_in_list_title_bullets_or_description() -> None:
    """Fuzzily in the list; as a substring of each lower-cased text; bullets are joined by a space."""
    wanted = ("long-lasting", "easy assemble", "solid wood", "heavy duty", "water proof")
    result = score(goal=make_goal(attributes=wanted))
    assert result.n_att == 4
    assert result.r_att == 4 / 5
    assert result.value == (4 + 1) / (5 + 0 + 1)


def test_attribute_in_capitals_is_not_in_a_lower_cased_text() -> None:
    """Only the texts are lower-cased, not what is looked for; the fuzzy comparison lower-cases both."""
    assert score(goal=make_goal(attributes=("Heavy Duty", "Long Lasting"))).n_att == 1


def test_goal_without_attributes_and_options_is_about_the_price() -> None:
    """The denominator is one then."""
    result = score(goal=make_goal(attributes=()))
    assert (result.value, result.r_att, result.r_option, result.w_option) == (1.0, 1.0, None, None)
    assert score(goal=make_goal(attributes=()), price=31.0).value == 0.0


@pytest.mark.parametrize(("price", "within"), [(29.99, True), (30.0, True), (30.01, False)])
def test_price_may_equal_the_cap(price: float, within: bool) -> None:
    """One attribute and the price: a half is lost above the cap."""
    result = score(price=price)
    assert result.r_price is within
    assert result.value == (1.0 if within else 0.5)


@pytest.mark.parametrize(
    ("chosen", "wanted", "counts"),
    [
        ("large", "x-large", True),  # its words are a subset
        ("navy blue", "black", False),
        ("navy blue", "sky blue", True),  # navy blue becomes blue, and the pair keeps the word
        ("blue", "navy blue", True),
        ("standard", "standard", False),  # becomes tan, the pair stays
        ("tan", "standard", False),
        ("tan", "tan", True),
        ("light", "highlight", False),
    ],
)
def test_synthetic_option_is_compared_as_a_pair(chosen: str, wanted: str, counts: bool) -> None:
    """A chosen value is reduced by substring, a (name, value) pair only when its value is a colour word."""
    result = score(goal=make_goal(options={"size": wanted}), chosen={"size": chosen})
    assert result.n_opt == counts
    assert result.value == (3 if counts else 2) / 3


@pytest.mark.parametrize(
    ("chosen", "wanted", "counts"),
    [("standard", "standard", True), ("tan", "standard", True), ("navy blue", "sky blue", True), ("m", "l", False)],
)
def test_human_option_is_reduced_like_a_choice(chosen: str, wanted: str, counts: bool) -> None:
    """Both sides are strings, so a value always matches itself."""
    assert score(goal=make_goal(options=(wanted,)), chosen={"any": chosen}).n_opt == counts


def test_names_of_chosen_options_play_no_part() -> None:
    """A value counts under whatever name it was chosen, and may count for two options."""
    goal = make_goal(options={"color": "black", "trim": "black"})
    assert score(goal=goal, chosen={"base": "black"}).n_opt == 2


def test_option_that_no_words_are_left_of_never_matches() -> None:
    """A chosen value of Latin-1 signs has no words to compare."""
    assert score(goal=make_goal(options=("½",)), chosen={"size": "½"}).n_opt == 0


@pytest.mark.parametrize("value", ["standard", "12 pack tank top", "2005grey", "½"])
@pytest.mark.parametrize("human", [False, True])
def test_mended_options_match_themselves(value: str, human: bool) -> None:
    """With `fix_option_colors` the very value always counts."""
    goal = make_goal(options=(value,) if human else {"size": value})
    assert score(goal=goal, chosen={"size": value}, fix=True).value == 1.0


def test_mended_options_still_need_the_right_name() -> None:
    """The mend compares a synthetic value under its own name, and takes no other match away."""
    goal = make_goal(options={"size": "standard"})
    assert score(goal=goal, chosen={"fit": "standard"}, fix=True).n_opt == 0
    assert score(goal=make_goal(options={"size": "x-large"}), chosen={"fit": "large"}, fix=True).n_opt == 1


@pytest.mark.parametrize(
    ("shared_nouns", "all_nouns", "same_query", "r_type"),
    [
        (0, 20, True, 0.0),  # titles decide against the query
        (1, 20, True, 0.1),
        (2, 20, True, 1.0),  # 0.1 exactly is enough with a match
        (2, 20, False, 0.5),
        (4, 20, False, 0.5),  # 0.2 exactly is no match
        (5, 20, False, 1.0),
    ],
)
def test_type_depends_on_shared_nouns(shared_nouns: int, all_nouns: int, same_query: bool, r_type: float) -> None:
    """Thresholds 0, 0.1 and 0.2 are strict, and the low ones override a match."""
    wanted = tuple(f"n{i}" for i in range(all_nouns))
    product = make_product(query="desk lamps" if same_query else "other", product_category="A \u203a B")
    result = score(product, nouns=(wanted[:shared_nouns], wanted))
    assert (result.r_type, result.title_score) == (r_type, shared_nouns / all_nouns)


def test_repeated_nouns_keep_the_title_score_below_one() -> None:
    """Four different nouns of five for the identical title."""
    assert score().title_score == 4 / 5


def test_goal_title_without_nouns_scores_a_fifth() -> None:
    """0.2 is no match by itself, and overrides nothing."""
    assert score(nouns=(NOUNS, ())).title_score == 0.2
    other = make_product(query="other", product_category="A")
    assert score(other, nouns=(NOUNS, ())).r_type == 0.5


@pytest.mark.parametrize(
    ("path", "match"), [("Lamps \u203a Home", True), ("Home \u203a Home", False), ("Home\u203aLamps", True)]
)
def test_two_shared_category_levels_are_a_match(path: str, match: bool) -> None:
    """Levels are compared as a set, without blanks around them."""
    result = score(make_product(query="other", product_category=path), nouns=(("n0",), tuple("n0 n1 n2 n3 n4".split())))
    assert result.category_match is match
    assert result.r_type == (1.0 if match else 0.5)


def test_type_multiplies_the_quotient() -> None:
    """The last bit depends on the order: 0.1 * 3 / 7 is another number than 3 / 7 * 0.1."""
    goal = make_goal(attributes=("long lasting", "easy assemble", "w1", "w2", "w3", "w4"), price_upper=30.0)
    nouns = (("n0",), tuple(f"n{i}" for i in range(11)))
    assert score(goal=goal, nouns=nouns).value == 3 / 7 * 0.1
    assert 3 / 7 * 0.1 != 0.1 * 3 / 7


def test_first_color_in_the_list_wins() -> None:
    """Not the first in the value."""
    assert reduce_color("white and black") == "black"
    assert reduce_color("rust red") == "red"
    assert reduce_color("clear") == "clear"


class Recorded(NamedTuple):
    """The real shop under the recordings' seed."""

    catalogue: Catalogue
    goals: GoalBook
    nouns: dict[str, list[str]]

    def score(self, asin: str, chosen: dict[str, str], goal: Goal, fix: bool = False) -> Score:
        """Score a purchase of this shop."""
        number = self.catalogue.index_of(asin)
        price = float(self.goals.real_prices[number])
        return score_purchase(
            self.catalogue[number], goal, price, chosen, self.nouns[asin], self.nouns[goal.asin], fix_option_colors=fix
        )


@cache
def recorded_shop(folder: Path, mode: str) -> Recorded:
    """Load the 1,000 products, their nouns and the goals, seeded as the recordings were."""

    def read(name: str) -> Any:
        return json.loads((folder / name).read_text(encoding="utf-8"))

    catalogue = Catalogue.from_rows(read("items_shuffle_1000.json"), read("items_ins_v2_1000.json"))
    goals = GoalBook.build(catalogue, read("items_human_ins.json"), mode, random.Random(0))
    return Recorded(catalogue, goals, read("title_nouns.json"))


def purchases(path: Path) -> Iterator[tuple[Any, str, str, dict[str, str], float]]:
    """Session, goal text, bought asin, chosen options and reward of every episode that ends with a purchase."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            episode = json.loads(line)
            text = episode["steps"][0]["observation"].split(" [SEP] ")[2]
            for step in episode["steps"]:
                if step["done"]:
                    pieces = step["observation"].split(" [SEP] ")
                    yield episode["session"], text, pieces[6], json.loads(pieces[8]), step["reward"]


@pytest.mark.parametrize(
    ("recording", "mode", "n_purchases"),
    [("episodes", "synthetic", 174), ("human", "human", 19), ("quirks", "synthetic", 1)],
)
def test_recorded_rewards_are_met_bit_for_bit(
    shared_data: Path, shared_conformance: Path, recording: str, mode: str, n_purchases: int
) -> None:
    """Product, options and goal of each recorded purchase give the recorded reward."""
    shop = recorded_shop(shared_data / "webshop", mode)
    by_text = {goal.instruction_text: goal for goal in shop.goals}
    n_seen = 0
    for session, text, asin, chosen, reward in purchases(shared_conformance / f"webshop_{recording}.jsonl.gz"):
        goal = shop.goals[session] if isinstance(session, int) else by_text[text]
        assert goal.instruction_text == text
        assert shop.score(asin, chosen, goal).value == reward, (session, asin, chosen)
        n_seen += 1
    assert n_seen == n_purchases


def test_ceiling_of_synthetic_goals(shared_data: Path) -> None:
    """Buying exactly what is wanted scores 1.0 for 6,452 of 6,910 goals; for all of them once options are mended."""
    shop = recorded_shop(shared_data / "webshop", "synthetic")
    table = {}
    for fix in (False, True):
        reached = [shop.score(goal.asin, dict(goal.options), goal, fix).value == 1.0 for goal in shop.goals]
        table[fix] = {size: sum(reached[:size]) for size in (500, len(reached))}
        print(f"fix_option_colors={fix}:", *(f"{count} of {size} goals" for size, count in table[fix].items()))
    assert table == {False: {500: 480, 6910: 6452}, True: {500: 500, 6910: 6910}}


def test_all_human_goals_can_be_reached(shared_data: Path) -> None:
    """The wanted values, found among the target's options, score 1.0 for all 13."""
    shop = recorded_shop(shared_data / "webshop", "human")
    scores = [shop.score(goal.asin, dict(enumerate(goal.options)), goal).value for goal in shop.goals]  # type: ignore[arg-type]
    assert scores == [1.0] * 13
