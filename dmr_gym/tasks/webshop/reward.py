"""WebShop's reward for a purchase, number for number as the original computes it.

``reward = (matched attributes + matched options + [price within the cap]) / (attributes + options + 1) * r_type``,
where r_type tells whether the bought product is of the wanted kind.

Options are compared after a reduction to colour words. For synthetic goals the original applies that reduction to a
(name, value) pair and to a chosen value alike, with two consequences: a pair is reduced only when its value *is* a
colour word, and a chosen value is reduced to a colour word found inside any word ("standard" becomes "tan"). Some
goals therefore cannot score 1.0 even when the exact product is bought with the exact options. `score_purchase` does the
same unless it is told to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from dmr_gym.tasks.webshop.fuzzy import is_similar

if TYPE_CHECKING:
    from dmr_gym.tasks.webshop.catalogue import Product
    from dmr_gym.tasks.webshop.goals import Goal

# The order matters: a value is reduced to the first of these that it contains.
COLORS = tuple(
    """
    alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo
    caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream crystal
    dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather indigo
    ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor
    mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal rust sand
    sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut
    wheat white wine yellow
    """.split()
)
_COLOR_SET = frozenset(COLORS)
_CATEGORY_SEPARATOR = "\u203a"
_NO_NOUN_TITLE_SCORE = 0.2


class Score(NamedTuple):
    """The reward of a purchase and what it is made of.

    Attributes:
        value: the reward, 0.0 to 1.0; a goal is reached when it is exactly 1.0.
        r_type: 1.0 for the wanted kind of product; 0.5, 0.1 or 0.0 otherwise.
        r_att: share of the goal's attributes that the product has; 1.0 when the goal has none.
        r_option: share of the goal's options that were chosen; None when the goal has none.
        r_price: whether the price is at most the cap; None, and no part of `value`, for a cap of zero or less.
        query_match: whether product and goal were found by the same query.
        category_match: whether they share at least two levels of their category paths.
        title_score: shared nouns of the two titles over the number of nouns of the goal's title.
        n_att: number of the goal's attributes that the product has.
        n_opt: number of the goal's options that were chosen.
        w_att: weight of the attributes in `value`, before r_type.
        w_option: weight of the options; None when the goal has none.
        w_price: weight of the price.
    """

    value: float
    r_type: float
    r_att: float
    r_option: float | None
    r_price: bool | None
    query_match: bool
    category_match: bool
    title_score: float
    n_att: int
    n_opt: int
    w_att: float
    w_option: float | None
    w_price: float


def score_purchase(
    product: Product,
    goal: Goal,
    real_price: float,
    chosen: Mapping[str, str],
    product_nouns: Sequence[str],
    goal_nouns: Sequence[str],
    *,
    fix_option_colors: bool = False,
) -> Score:
    """Score the purchase of a product under a goal.

    Args:
        product: what was bought.
        goal: what was wanted; its options are values (human goals) or name -> value (synthetic goals).
        real_price: the product's price in this shop, in dollars.
        chosen: the chosen options, name -> value.
        product_nouns: nouns of the product's title, repeats kept.
        goal_nouns: nouns of the goal's title, repeats kept.
        fix_option_colors: also count an option of the goal whose very value was chosen (under its name, where the goal
            gives one), whatever colour words it contains. It only ever adds matches.
    """
    query_match = product.query == goal.query
    category_match = _count_shared_levels(product.product_category, goal.product_category) >= 2
    title_score = _title_score(product_nouns, goal_nouns)
    r_type = _type_factor(query_match or category_match, title_score)
    n_att = _count_attributes(product, goal.attributes)
    n_opt = _count_options(chosen, goal.options, fix_option_colors)
    r_price = real_price <= goal.price_upper if goal.price_upper > 0 else None
    n_goal_att, n_goal_opt = len(goal.attributes), len(goal.options)
    weight = n_goal_att + n_goal_opt + 1
    return Score(
        # The quotient first: with r_type in front of it the last bit differs.
        value=(n_att + n_opt + bool(r_price)) / weight * r_type,
        r_type=r_type,
        r_att=n_att / n_goal_att if n_goal_att else 1.0,
        r_option=n_opt / n_goal_opt if n_goal_opt else None,
        r_price=r_price,
        query_match=query_match,
        category_match=category_match,
        title_score=title_score,
        n_att=n_att,
        n_opt=n_opt,
        w_att=n_goal_att / weight,
        w_option=n_goal_opt / weight if n_goal_opt else None,
        w_price=1 / weight,
    )


@lru_cache(maxsize=1 << 14)
def reduce_color(value: str) -> str:
    """The first colour word, in alphabetical order, that occurs anywhere in a value; the value itself if none does."""
    return next((color for color in COLORS if color in value), value)


def _count_shared_levels(first: str, second: str) -> int:
    return len(_levels(first) & _levels(second))


@lru_cache(maxsize=1 << 12)
def _levels(path: str) -> frozenset[str]:
    return frozenset(level.strip() for level in path.split(_CATEGORY_SEPARATOR))


def _title_score(product_nouns: Sequence[str], goal_nouns: Sequence[str]) -> float:
    """Different shared nouns over all nouns of the goal's title, so repeats keep it below 1.0."""
    if not goal_nouns:
        return _NO_NOUN_TITLE_SCORE
    return len(set(product_nouns) & set(goal_nouns)) / len(goal_nouns)


def _type_factor(match: bool, title_score: float) -> float:
    """Titles that share next to nothing decide alone, even against an equal query or category."""
    if title_score == 0.0:
        return 0.0
    if title_score < 0.1:
        return 0.1
    return 1.0 if match or title_score > 0.2 else 0.5


def _count_attributes(product: Product, wanted: Sequence[str]) -> int:
    """Number of wanted attributes that are like one of the product's, or occur in its texts."""
    missing = [name for name in wanted if not any(is_similar(own, name) for own in product.attributes)]
    found = len(wanted) - len(missing)
    if not missing:
        return found
    texts = (product.title.lower(), " ".join(product.bullets).lower(), product.description.lower())
    return found + sum(any(name in text for text in texts) for name in missing)


def _count_options(chosen: Mapping[str, str], wanted: Mapping[str, str] | Iterable[str], fix: bool) -> int:
    """Number of wanted options that some chosen value is like; option names of what was chosen play no part."""
    values = [reduce_color(value) for value in chosen.values()]
    if isinstance(wanted, Mapping):
        pairs = [(_pair_text(name, value), fix and chosen.get(name) == value) for name, value in wanted.items()]
    else:
        pairs = [(reduce_color(value), fix and value in chosen.values()) for value in wanted]
    return sum(same or any(is_similar(value, text) for value in values) for text, same in pairs)


def _pair_text(name: str, value: str) -> str:
    """A (name, value) pair as the original compares it: a colour word if either is one, else the pair's Python text."""
    colors = _COLOR_SET & {name, value}
    return min(colors) if colors else str((name, value))
