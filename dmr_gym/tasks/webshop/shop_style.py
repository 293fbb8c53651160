"""How generated shops are written, so that no two need look alike."""

from __future__ import annotations

from dataclasses import dataclass

from dmr_gym.tasks.webshop.chance import Chance


@dataclass(frozen=True, slots=True)
class ShopStyle:
    """How a shop is written. The defaults are those of the embedded shop.

    Attributes:
        fillers: fewest and most words without meaning in a title.
        made_up: chance that such a word, or a brand, is in no dictionary.
        odd_values: chance that an option is offered in values like "rabbit3555x".
        odd_fillers: words without meaning come from a larger list, where they may be out of place.
        more_types: share of the product types that come from the reserve list, or are made up.
        values: fewest and most values of an option.
        extra_option: chance of one more option than the type has.
        types: how many product types the shop sells; 0 for all.
        wanted: weights of requests with one, two, three, ... attributes.
        chatter: most option values that a description names though the product need not have them, as real ones do.
        relatives: weights of families of one, two, three, ... near-duplicates.
        changes: weights of what a near-duplicate differs in: attribute, option values, price, brand alone.
    """

    fillers: tuple[int, int] = (0, 2)
    made_up: float = 0.0
    odd_values: float = 0.0
    odd_fillers: bool = False
    more_types: float = 0.0
    values: tuple[int, int] = (2, 5)
    extra_option: float = 0.0
    types: int = 0
    wanted: tuple[float, ...] = (0.3, 0.45, 0.25)
    chatter: int = 0
    relatives: tuple[float, ...] = (0.3, 0.2, 0.2, 0.15, 0.15)
    changes: tuple[float, ...] = (0.35, 0.35, 0.2, 0.1)


def draw_style(seed: int) -> ShopStyle:
    """A style unlike the embedded shop's: longer titles, other types, odd values. Agents are trained in such shops."""
    chance = Chance(f"dmr-gym webshop style {seed}")
    if chance.happens(0.3):
        return ShopStyle(types=chance.integer(6, 20), extra_option=0.1)
    longest = chance.pick((3, 5, 8, 12, 16))
    return ShopStyle(
        fillers=(longest // 3, longest),
        odd_fillers=True,
        made_up=chance.pick((0.0, 0.1, 0.3, 0.5)),
        odd_values=chance.pick((0.0, 0.1, 0.3, 0.6)),
        more_types=chance.pick((0.2, 0.5, 0.8, 1.0)),
        values=(1, chance.pick((2, 3, 5, 8, 12, 20))),
        extra_option=chance.pick((0.0, 0.2, 0.4)),
        types=chance.integer(6, 20),
        wanted=(0.3, 0.35, 0.25, 0.1),
        chatter=chance.pick((0, 15, 40)),
        relatives=chance.pick(((0.3, 0.2, 0.2, 0.15, 0.15), (0.1, 0.1, 0.2, 0.2, 0.2, 0.2))),
        changes=chance.pick(((0.35, 0.35, 0.2, 0.1), (0.05, 0.5, 0.4, 0.05))),
    )
