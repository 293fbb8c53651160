"""The part of synthetic goals that no seed changes: which goals there are, their weights, and their fixed order.

WebShop shuffles its goals after ``random.seed(233)``, so the order depends on nothing but their number, and so does the
state in which the generator goes on. Legend: N products, M products with an instruction, G goals.
"""

from __future__ import annotations

import random
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import TaskError
from dmr_gym.tasks.webshop.columns import HAS_INSTRUCTION, Columns
from dmr_gym.types import IntArray

SHUFFLE_SEED = 233
MAX_GOALS = 1 << 28


@dataclass(frozen=True, slots=True)
class GoalOrder:
    """A shuffle and what the generator is like after it.

    Attributes:
        order: (G,) int64, the goal at each place after the shuffle.
        state: (625,) uint32, the generator's 624 words and its position.
    """

    order: IntArray
    state: NDArray[np.uint32]

    def set_state(self, rng: random.Random) -> None:
        """Put a generator into the state that the shuffle has left."""
        rng.setstate((3, tuple(int(word) for word in self.state), None))


@dataclass(frozen=True, slots=True)
class GoalTable:
    """All synthetic goals of a catalogue.

    Attributes:
        products: (M,) int64 numbers of the products with an instruction.
        starts: (M + 1,) int64, number of a product's first goal before the shuffle; the last is G.
        weights: (M,) float64, weight of each goal of a product.
        cumulative: (G + 1,) float64, 0 and the running sum of weights in shuffled order.
        shuffled: the shuffle.
    """

    products: IntArray
    starts: IntArray
    weights: NDArray[np.float64]
    cumulative: NDArray[np.float64]
    shuffled: GoalOrder


def count_goals(columns: Columns) -> int:
    """Number of synthetic goals of a catalogue."""
    return int(columns.combinations[columns.listings == HAS_INSTRUCTION].sum())


def make_goal_table(columns: Columns) -> GoalTable:
    """Compute the goal table of a catalogue.

    Raises:
        TaskError: the options of its products have more than 268 million combinations.
    """
    products = np.flatnonzero(columns.listings == HAS_INSTRUCTION)
    counts = columns.combinations[products]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    if starts[-1] > MAX_GOALS:
        asin = str(columns.asins[products[np.argmax(counts)]])
        raise TaskError(
            f"expected at most {MAX_GOALS:,} synthetic goals, found {int(starts[-1]):,}, {int(counts.max()):,} of them "
            f"for the product {asin!r}; remove its instruction or some of its options, or use goals='human'"
        )
    weights = _goal_weights(columns, products, counts)
    shuffled = shuffle_goals(int(starts[-1]))
    places = np.searchsorted(starts, shuffled.order, side="right") - 1
    return GoalTable(products, starts, weights, cumulate(weights[places]), shuffled)


def shuffle_goals(count: int) -> GoalOrder:
    """Shuffle ``count`` goals as WebShop does."""
    rng = random.Random(SHUFFLE_SEED)
    # Shuffling numbers permutes as shuffling the goals would; an array takes a fraction of a list's memory.
    numbers = array("q", range(count))
    rng.shuffle(numbers)
    return GoalOrder(np.array(numbers, np.int64), np.array(rng.getstate()[1], np.uint32))


def cumulate(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 and the running sum of weights, added one after the other: (G,) float64 to (G + 1,) float64."""
    cumulative = np.zeros(len(weights) + 1)
    np.cumsum(weights, out=cumulative[1:])
    return cumulative


def _goal_weights(columns: Columns, products: IntArray, counts: IntArray) -> NDArray[np.float64]:
    """Mean over a goal's attributes of 1 / (number of goals with this attribute), (M,) float64.

    Attributes are added from left to right, one rank at a time, because floating-point sums depend on the order.
    """
    starts = columns.attribute_starts[products]
    lengths = columns.attribute_starts[products + 1] - starts
    n_attributes = int(columns.attribute_ids.max(initial=-1)) + 1
    frequency = np.zeros(n_attributes, np.int64)
    for rank in range(int(lengths.max(initial=0))):
        has = lengths > rank
        np.add.at(frequency, columns.attribute_ids[starts[has] + rank], counts[has])
    totals = np.zeros(len(products))
    for rank in range(int(lengths.max(initial=0))):
        # Without goals an attribute has frequency 0; no goal uses that weight.
        has = (lengths > rank) & (counts > 0)
        totals[has] += 1.0 / frequency[columns.attribute_ids[starts[has] + rank]]
    means: NDArray[np.float64] = np.divide(totals, lengths, out=np.zeros(len(products)), where=lengths > 0)
    return means
