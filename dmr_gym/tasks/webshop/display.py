"""Shows a `Play`: as a view of its page, and as an observation in one of the modes."""

from __future__ import annotations

from collections.abc import Collection

from dmr_gym.tasks.webshop import pages
from dmr_gym.tasks.webshop.fixes import CLICKED_OPTIONS, REWARD_ON_LAST_PAGE
from dmr_gym.tasks.webshop.markup import page_html
from dmr_gym.tasks.webshop.play import Play, make_url
from dmr_gym.tasks.webshop.storefront import Storefront

OBSERVATION_MODES = ("text", "text_rich", "html", "url")


class Display:
    """How one engine shows pages.

    Args:
        front: makes pieces of pages.
        mode: one of `OBSERVATION_MODES`.
        show_attributes: whether item pages have the button "Attributes".
        fixes: names from `dmr_gym.tasks.webshop.fixes.FIXES`.
    """

    def __init__(self, front: Storefront, mode: str, show_attributes: bool, fixes: frozenset[str]) -> None:
        self._front = front
        self._mode = mode
        self._show_attributes = show_attributes
        self._is_reward_shown = REWARD_ON_LAST_PAGE not in fixes
        self._are_choices_marked = CLICKED_OPTIONS in fixes

    def view(self, play: Play, goal_text: str) -> pages.View:
        """What the page is made of."""
        pieces = self._front.pieces
        return pages.View(
            play.kind,
            goal_text,
            play.number,
            play.total,
            tuple(map(pieces, play.results)) if play.kind == pages.RESULTS else (),
            None if play.product is None else pieces(play.product),
            play.options,
            play.score.value if play.score is not None and self._is_reward_shown else None,
            self._show_attributes,
        )

    def observation(self, view: pages.View, play: Play) -> str:
        """The page in the display's mode."""
        if self._mode == "text":
            return pages.page_text(view)
        if self._mode == "text_rich":
            return pages.page_text_rich(view, self._clicked_options(view, play), play.visited)
        return page_html(view) if self._mode == "html" else self.url(play)

    def url(self, play: Play) -> str:
        """The page's address."""
        return make_url(play, self.asin(play))

    def asin(self, play: Play) -> str:
        """The chosen product's asin; "" when there is none."""
        return "" if play.product is None else self._front.pieces(play.product).product.asin

    def _clicked_options(self, view: pages.View, play: Play) -> Collection[tuple[str, str]]:
        """Options, (name, value), that "text_rich" marks as clicked."""
        if view.kind != pages.ITEM or self._are_choices_marked:
            return play.options
        assert view.product is not None
        url, options = self.url(play), view.product.product.options.items()
        return {(name, value) for name, values in options for value in values if f'"{value}"' in url}
