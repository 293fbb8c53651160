"""Goals, prices and caps are those of WebShop under the same seed, draw for draw."""

from __future__ import annotations

import bisect
import gzip
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.webshop.catalogue import Catalogue, Product
from dmr_gym.tasks.webshop.draws import draw_caps, draw_prices
from dmr_gym.tasks.webshop.goal_table import MAX_GOALS, make_goal_table, shuffle_goals
from dmr_gym.tasks.webshop.goals import GoalBook
from tests.webshop_rows import Row, make_entry, make_row, shops


def reference_cap(price: float, rng: random.Random) -> float:
    """A price cap by the library's sample()."""
    candidates = [10.0 * step for step in range(1, 100) if 10.0 * step > price][:4]
    return max(rng.sample(candidates, 2)) if len(candidates) >= 2 else 1_000_000.0


def reference_prices(products: list[Product], rng: random.Random) -> list[float]:
    """A price for each product by the library's uniform()."""
    return [rng.uniform(*product.prices) if len(product.prices) == 2 else product.prices[0] for product in products]


def reference_goals(products: list[Product], rng: random.Random) -> list[tuple[Any, ...]]:
    """Every synthetic goal as (asin, options, cap, weight), shuffled as a list."""
    prices = reference_prices(products, rng)
    goals = []
    counts: Counter[str] = Counter()
    for product, price in zip(products, prices, strict=True):
        if product.instruction is None:
            continue
        cap = reference_cap(price, rng)
        names = sorted(product.options)
        for values in itertools.product(*(product.options[name] for name in names)):
            goals.append((product, dict(zip(names, values, strict=True)), cap))
            counts.update(product.instruction_attributes)
    weighted = []
    for product, options, cap in goals:
        weight = 0.0
        for attribute in product.instruction_attributes:
            weight += 1.0 / counts[attribute]
        weighted.append((product.asin, options, cap, weight / len(product.instruction_attributes)))
    rng.seed(233)
    rng.shuffle(weighted)
    return weighted


@settings(max_examples=60, deadline=None)
@given(shops(), st.integers(0, 2**64))
def test_synthetic_goals_are_those_of_a_plain_list(shop: tuple[list[Row], Row, Row], seed: int) -> None:
    """Order, options, caps, weights and the state of the generator equal an implementation with lists."""
    rows, entries, _ = shop
    catalogue = Catalogue.from_rows(rows, entries)
    reference = random.Random(seed)
    expected = reference_goals(list(catalogue), reference)
    if not expected:
        with pytest.raises(TaskError, match="no synthetic goals"):
            GoalBook.build(catalogue, None, "synthetic", random.Random(seed))
        return
    rng = random.Random(seed)
    goals = GoalBook.build(catalogue, None, "synthetic", rng)
    assert [(goal.asin, goal.options, goal.price_upper, goal.weight) for goal in goals] == expected
    assert [list(goal.options) for goal in goals] == [sorted(goal.options) for goal in goals]
    assert rng.getstate() == reference.getstate()


@settings(max_examples=60, deadline=None)
@given(shops(), st.integers(0, 2**64))
def test_human_goals_follow_the_catalogue(shop: tuple[list[Row], Row, Row], seed: int) -> None:
    """Instructions without attributes or about unknown products are left out; each other one gets a cap of its own."""
    rows, entries, human = shop
    catalogue = Catalogue.from_rows(rows, entries)
    reference = random.Random(seed)
    expected = []
    for product, price in zip(catalogue, reference_prices(list(catalogue), reference), strict=True):
        for entry in human.get(product.asin, []):
            if entry["instruction_attributes"]:
                cap = reference_cap(price, reference)
                text = f", and price lower than {cap:.2f} dollars" if cap < 1000 else ""
                options = tuple(entry["instruction_options"])
                expected.append((product.asin, entry["instruction"].strip(".") + text, options, cap, 1.0))
    reference.seed(233)
    reference.shuffle(expected)
    if not expected:
        with pytest.raises(TaskError, match="no human instruction"):
            GoalBook.build(catalogue, human, "human", random.Random(seed))
        return
    rng = random.Random(seed)
    goals = GoalBook.build(catalogue, human, "human", rng)
    found = [(goal.asin, goal.instruction_text, goal.options, goal.price_upper, goal.weight) for goal in goals]
    assert found == expected
    assert rng.getstate() == reference.getstate()


@given(st.lists(st.floats(0, 1200), max_size=30), st.integers())
def test_caps_are_drawn_like_sample(prices: list[float], seed: int) -> None:
    """Caps and the generator's state equal those of random.sample over the candidates."""
    reference, rng = random.Random(seed), random.Random(seed)
    expected = [reference_cap(price, reference) for price in prices]
    assert draw_caps(np.array(prices, float), rng).tolist() == expected
    assert rng.getstate() == reference.getstate()


@pytest.mark.parametrize(("price", "caps"), [(0.0, {20, 30, 40}), (9.99, {20, 30, 40}), (10.0, {30, 40, 50})])
def test_cap_is_never_the_lowest_candidate(price: float, caps: set[float]) -> None:
    """Candidates are the next four multiples of ten strictly above the price, and the larger of two is drawn."""
    assert set(draw_caps(np.full(200, price), random.Random(1)).tolist()) == caps


def test_cap_is_absent_where_fewer_than_two_candidates_are_left() -> None:
    """At $970 two candidates are left and the cap is sure; at $980 one, at $990 none."""
    caps = draw_caps(np.array([969.0, 970.0, 980.0, 990.0, 5000.0]), random.Random(0))
    assert caps[0] in {980.0, 990.0}
    assert caps[1:].tolist() == [990.0, 1e6, 1e6, 1e6]


@given(st.lists(st.tuples(st.floats(0, 999), st.booleans()), max_size=900), st.integers())
@settings(max_examples=30, deadline=None)
def test_prices_are_drawn_like_uniform(rows: list[tuple[float, bool]], seed: int) -> None:
    """Ranges take one uniform draw each, in order; single prices take none."""
    reference, rng = random.Random(seed), random.Random(seed)
    expected = [reference.uniform(low, low * 1.7) if is_range else low for low, is_range in rows]
    prices = np.array([(low, low * 1.7 if is_range else np.nan) for low, is_range in rows]).reshape(-1, 2)
    assert draw_prices(prices, rng).tolist() == expected
    assert rng.getstate() == reference.getstate()


def test_weights_are_means_over_attributes() -> None:
    """Two goals share "soft", one more has it twice: weights are (1/4 + 1/2) / 2 and (1/4 + 1/4) / 2."""
    two, one = {"Size": [{"value": "S"}, {"value": "M"}]}, ""
    rows = [make_row("A", customization_options=two), make_row("B", customization_options=one)]
    entries = {
        "A": make_entry(instruction_attributes=["soft", "warm"]),
        "B": make_entry(instruction_attributes=["soft", "soft"]),
    }
    goals = GoalBook.build(Catalogue.from_rows(rows, entries), None, "synthetic", random.Random(0))
    assert sorted((goal.asin, goal.weight) for goal in goals) == [("A", 0.375), ("A", 0.375), ("B", 0.25)]
    assert goals.cumulative.tolist() == [0.0, *itertools.accumulate(goal.weight for goal in goals)]


@given(st.integers(1, 50), st.integers())
def test_goals_are_drawn_by_weight_like_bisect(count: int, seed: int) -> None:
    """A draw is uniform over the sum of weights, bisected on 0 and the running sum, and clipped to the last goal."""
    options = {"Size": [{"value": str(value)} for value in range(count)]}
    catalogue = Catalogue.from_rows([make_row("A", customization_options=options)], {"A": make_entry()})
    goals = GoalBook.build(catalogue, None, "synthetic", random.Random(0))
    reference, rng = random.Random(seed), random.Random(seed)
    cumulative = [0, *itertools.accumulate(goal.weight for goal in goals)]
    expected = min(bisect.bisect(cumulative, reference.uniform(0, cumulative[-1])), count - 1)
    assert goals.draw(rng) == expected


def test_shuffle_is_that_of_a_list() -> None:
    """Goal numbers are shuffled as a list is after random.seed(233)."""
    rng = random.Random(233)
    numbers = list(range(1000))
    rng.shuffle(numbers)
    shuffled = shuffle_goals(1000)
    assert shuffled.order.tolist() == numbers
    other = random.Random(5)
    shuffled.set_state(other)
    assert other.getstate() == rng.getstate()


def test_instruction_text_names_options_and_cap() -> None:
    """Option names are sorted; the text is instruction, options, cap."""
    rows = [make_row("A", pricing="$960")]
    goal = GoalBook.build(Catalogue.from_rows(rows, {"A": make_entry()}), None, "synthetic", random.Random(0))[0]
    color, size = goal.options["color"], goal.options["size"]
    beginning = f"Find me long lasting, easy clean lamps with color: {color}, and size: {size}, and price lower than "
    assert goal.instruction_text == f"{beginning}{goal.price_upper:.2f} dollars"
    assert (goal.title, goal.query, goal.category) == ("Lamp A", "desk lamps", "garden")


def test_unknown_mode_is_refused() -> None:
    """A mode other than the two is a setting error."""
    with pytest.raises(ConfigError, match="goals must be one of synthetic, human; got 'all'"):
        GoalBook.build(Catalogue.from_rows([], {}), {}, "all", random.Random(0))


def test_missing_instructions_tell_the_way_out() -> None:
    """Human goals without their file, and synthetic goals of a product without an entry, name what is missing."""
    catalogue = Catalogue.from_rows([make_row("A"), make_row("B")], {"A": make_entry()}, "items.json")
    with pytest.raises(TaskError, match=r"items.json: human goals need items_human_ins.json beside it"):
        GoalBook.build(catalogue, None, "human", random.Random(0))
    with pytest.raises(TaskError, match=r"items.json: 1 products, the first with asin 'B', have no entry"):
        GoalBook.build(catalogue, None, "synthetic", random.Random(0))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (5, "entry 'A': key 'A' must be a list of objects"),
        (["x"], "entry 'A', item 0: must be an object"),
        ([{"instruction": "a"}], "entry 'A', item 0: key 'instruction_attributes' is missing"),
        ([{"instruction": None}], "entry 'A', item 0: key 'instruction' must be text; found NoneType None"),
        ([{"instruction": "", "instruction_attributes": "x"}], "key 'instruction_attributes' must be a list of texts"),
        (
            [{"instruction": "", "instruction_attributes": ["x"], "instruction_options": {"a": "b"}}],
            "key 'instruction_options' must be a list of texts; found dict",
        ),
    ],
)
def test_broken_human_instruction_is_named(entries: object, expected: str) -> None:
    """Errors name file, asin, item and key."""
    catalogue = Catalogue.from_rows([make_row("A")], {})
    with pytest.raises(TaskError) as failure:
        GoalBook.build(catalogue, {"A": entries}, "human", random.Random(0), "human.json")
    assert str(failure.value).startswith("human.json, entry 'A'")
    assert expected in str(failure.value)


def test_more_combinations_than_can_be_played_are_refused() -> None:
    """Options with 10**12 combinations raise an error that names the product, without building them."""
    options = {f"Option {number}": [{"value": str(value)} for value in range(10)] for number in range(12)}
    rows = [make_row("A"), make_row("B", customization_options=options)]
    columns = Catalogue.from_rows(rows, {"A": make_entry(), "B": make_entry()}).columns
    with pytest.raises(TaskError, match=rf"at most {MAX_GOALS:,} synthetic goals, found .* for the product 'B'"):
        make_goal_table(columns)


def official_catalogue(shared_data: Path) -> tuple[Catalogue, dict[str, Any]]:
    """The 1000-product release and its human instructions."""
    names = ("items_shuffle_1000", "items_ins_v2_1000", "items_human_ins")
    items, entries, human = (json.loads((shared_data / f"webshop/{name}.json").read_text("utf-8")) for name in names)
    return Catalogue.from_rows(items, entries), human


def first_observations(path: Path) -> Iterator[tuple[int, str]]:
    """Session and goal text of each recorded episode."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            episode = json.loads(line)
            yield episode["session"], episode["steps"][0]["observation"].split(" [SEP] ")[2]


@pytest.mark.parametrize(
    ("mode", "recording", "n_goals", "n_episodes"),
    [("synthetic", "webshop_episodes", 6910, 234), ("human", "webshop_human", 13, 26)],
)
def test_goals_are_those_recorded_from_webshop(
    mode: str, recording: str, n_goals: int, n_episodes: int, shared_data: Path, shared_conformance: Path
) -> None:
    """Under seed 0 goal i has the text, cap included, that session i began with."""
    goals = GoalBook.build(*official_catalogue(shared_data), mode, random.Random(0))
    assert len(goals) == n_goals
    episodes = list(first_observations(shared_conformance / f"{recording}.jsonl.gz"))
    assert len(episodes) == n_episodes
    assert [goals[session].instruction_text for session, _ in episodes] == [text for _, text in episodes]
