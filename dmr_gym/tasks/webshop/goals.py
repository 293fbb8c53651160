"""The goals of a shop under a seed: instructions with a price cap, in WebShop's fixed shuffled order.

Prices and caps are drawn from one ``random.Random`` in WebShop's order, and the engine goes on drawing from it. Goals
are numbers until they are asked for. Legend: N products, M products with an instruction, G goals.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, SupportsIndex, overload

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.columns import NOT_LISTED
from dmr_gym.tasks.webshop.draws import NO_CAP, draw_caps, draw_prices
from dmr_gym.tasks.webshop.goal_table import GoalTable, cumulate, shuffle_goals
from dmr_gym.tasks.webshop.rows import Place, read_key, read_object, read_text, read_texts
from dmr_gym.types import IntArray

MODES = ("synthetic", "human")


@dataclass(frozen=True, slots=True)
class Goal:
    """What the shopper is asked to buy.

    Attributes:
        asin: the target product.
        instruction_text: the instruction as pages show it, with the price text.
        attributes: attributes that count for the reward.
        options: the wanted values: by option name (synthetic), or alone (human).
        price_upper: price cap in dollars; 1,000,000 when there is none.
        weight: weight in the weighted draw.
        title: title of the target.
        category: department of the target.
        product_category: category path of the target.
        query: query of the target.
    """

    asin: str
    instruction_text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...] | dict[str, str]
    price_upper: float
    weight: float
    title: str
    category: str
    product_category: str
    query: str


class _Goals(Protocol):
    """Goals before the shuffle."""

    def goal(self, number: int) -> Goal:
        """Make one goal."""
        ...


class GoalBook(Sequence[Goal]):
    """All goals in shuffled order, each made when it is asked for. Built by `build`.

    Attributes:
        real_prices: (N,) float64, the price in dollars that each product is sold at.
        cumulative: (G + 1,) float64, 0 and the running sum of weights.
    """

    def __init__(
        self, goals: _Goals, order: IntArray, cumulative: NDArray[np.float64], real_prices: NDArray[np.float64]
    ) -> None:
        self.cumulative = cumulative
        self.real_prices = real_prices
        self._goals = goals
        self._order = order

    @classmethod
    def build(
        cls,
        catalogue: Catalogue,
        human: Mapping[str, Any] | None,
        mode: str,
        rng: random.Random,
        human_source: str = "items_human_ins.json",
    ) -> GoalBook:
        """Draw prices and caps, and shuffle.

        Args:
            catalogue: the products.
            human: content of ``items_human_ins.json``; needed by mode "human".
            mode: "synthetic" or "human".
            rng: seeded by the caller; it is left in the state in which WebShop goes on.
            human_source: names the human instructions in messages.

        Raises:
            ConfigError: the mode is unknown.
            TaskError: the instructions are missing or broken, or there are no goals.
        """
        if mode not in MODES:
            raise ConfigError(f"goals must be one of {', '.join(MODES)}; got {mode!r:.60}")
        if mode == "human" and human is None:
            raise TaskError(
                f"{catalogue.source}: human goals need {human_source} beside it; add the file or use goals='synthetic'"
            )
        prices = draw_prices(catalogue.columns.prices, rng)
        if human is not None and mode == "human":
            return cls._build_human(catalogue, _read_human(catalogue, human, human_source), prices, rng)
        return cls._build_synthetic(catalogue, prices, rng)

    @classmethod
    def _build_synthetic(cls, catalogue: Catalogue, prices: NDArray[np.float64], rng: random.Random) -> GoalBook:
        missing = np.flatnonzero(catalogue.columns.listings == NOT_LISTED)
        if len(missing):
            raise TaskError(
                f"{catalogue.source}: {len(missing):,} products, the first with asin "
                f"{str(catalogue.asins[missing[0]])!r}, have no entry in the file of synthetic instructions, and "
                "WebShop stops at them; add entries (an empty object will do) or use goals='human'"
            )
        table = catalogue.goal_table
        caps = draw_caps(prices[table.products], rng)
        if len(table.shuffled.order) == 0:
            raise TaskError(f"{catalogue.source}: no product has an instruction, so there are no synthetic goals")
        table.shuffled.set_state(rng)
        return cls(_SyntheticGoals(catalogue, table, caps), table.shuffled.order, table.cumulative, prices)

    @classmethod
    def _build_human(
        cls,
        catalogue: Catalogue,
        instructions: list[_HumanInstruction],
        prices: NDArray[np.float64],
        rng: random.Random,
    ) -> GoalBook:
        numbers = np.array([instruction.product for instruction in instructions], np.int64)
        caps = draw_caps(prices[numbers], rng)
        if not instructions:
            raise TaskError(f"{catalogue.source}: no human instruction is about one of its products")
        shuffled = shuffle_goals(len(instructions))
        shuffled.set_state(rng)
        goals = _HumanGoals(catalogue, instructions, caps)
        return cls(goals, shuffled.order, cumulate(np.ones(len(instructions))), prices)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, number: SupportsIndex) -> Goal: ...

    @overload
    def __getitem__(self, number: slice) -> list[Goal]: ...

    def __getitem__(self, number: SupportsIndex | slice) -> Goal | list[Goal]:
        """The goal of a number, or a list of goals of a slice."""
        if isinstance(number, slice):
            return [self._goals.goal(int(place)) for place in self._order[number]]
        return self._goals.goal(int(self._order[operator.index(number)]))

    def draw(self, rng: random.Random) -> int:
        """Number of a goal, drawn by weight as WebShop does; that never gives goal 0 unless it is the only one."""
        position = rng.uniform(0, float(self.cumulative[-1]))
        return min(int(np.searchsorted(self.cumulative, position, side="right")), len(self) - 1)


class _SyntheticGoals:
    """Goal = product with an instruction + combination of option values; the last option name varies fastest."""

    def __init__(self, catalogue: Catalogue, table: GoalTable, caps: NDArray[np.float64]) -> None:
        self._catalogue = catalogue
        self._table = table
        self._caps = caps

    def goal(self, number: int) -> Goal:
        row = self._row(number)
        product = self._catalogue[int(self._table.products[row])]
        combination = number - int(self._table.starts[row])
        options: dict[str, str] = {}
        for name in sorted(product.options, reverse=True):
            combination, place = divmod(combination, len(product.options[name]))
            options[name] = product.options[name][place]
        options = dict(reversed(options.items()))
        wanted = ", and ".join(f"{name}: {value}" for name, value in options.items())
        cap = float(self._caps[row])
        return Goal(
            asin=product.asin,
            instruction_text=f"{product.instruction}{' with ' if wanted else ''}{wanted}{price_text(cap)}",
            attributes=product.instruction_attributes,
            options=options,
            price_upper=cap,
            weight=float(self._table.weights[row]),
            title=product.title,
            category=product.category,
            product_category=product.product_category,
            query=product.query,
        )

    def _row(self, number: int) -> int:
        return int(np.searchsorted(self._table.starts, number, side="right")) - 1


@dataclass(frozen=True, slots=True)
class _HumanInstruction:
    product: int
    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


class _HumanGoals:
    def __init__(self, catalogue: Catalogue, instructions: list[_HumanInstruction], caps: NDArray[np.float64]) -> None:
        self._catalogue = catalogue
        self._instructions = instructions
        self._caps = caps

    def goal(self, number: int) -> Goal:
        instruction = self._instructions[number]
        product = self._catalogue[instruction.product]
        cap = float(self._caps[number])
        return Goal(
            asin=product.asin,
            instruction_text=instruction.text.strip(".") + price_text(cap),
            attributes=instruction.attributes,
            options=instruction.options,
            price_upper=cap,
            weight=1.0,
            title=product.title,
            category=product.category,
            product_category=product.product_category,
            query=product.query,
        )


def price_text(cap: float) -> str:
    """The end of an instruction that tells the price cap; "" when there is none."""
    return f", and price lower than {cap:.2f} dollars" if cap < NO_CAP else ""


def _read_human(catalogue: Catalogue, human: Mapping[str, Any], source: str) -> list[_HumanInstruction]:
    """Instructions about products of the catalogue, in its order; those without attributes are left out."""
    numbers = {number: asin for asin in human if (number := catalogue.find(asin)) is not None}
    instructions = []
    for number, asin in sorted(numbers.items()):
        if not isinstance(human[asin], list | tuple):
            Place(source, f"entry {asin!r}").fail(asin, "a list of objects", human[asin])
        for position, entry in enumerate(human[asin]):
            instruction = _read_instruction(entry, number, Place(source, f"entry {asin!r}, item {position}"))
            if instruction.attributes:
                instructions.append(instruction)
    return instructions


def _read_instruction(entry: object, product: int, place: Place) -> _HumanInstruction:
    entry = read_object(entry, place)
    text = read_text(entry, "instruction", place)
    attributes = read_texts(read_key(entry, "instruction_attributes", place), "instruction_attributes", place)
    options = read_texts(read_key(entry, "instruction_options", place), "instruction_options", place)
    return _HumanInstruction(product, text, attributes, options)
