"""What actions do: from one `Play` to the next, as the original's server has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.draws import Draws
from dmr_gym.tasks.webshop.pages import DONE, ITEM, PAGE_SIZE, RESULTS, START, SUB_PAGES
from dmr_gym.tasks.webshop.play import SUB_PAGE, Play, kind_in_url, make_url
from dmr_gym.tasks.webshop.reward import Score
from dmr_gym.types import IntArray

MAX_RESULTS = 50
KEPT_ASINS = 256
_RANDOM, _ATTRIBUTE, _CATEGORY, _QUERY = "<r>", "<a>", "<c>", "<q>"

Clickables = Mapping[str, str | None]
"""What can be clicked, lower-cased, in page order: option values with their names, the rest with None."""


class Rules:
    """The rules of one shop.

    Args:
        catalogue: the products.
        search: numbers of the products that a plain search finds, best first.
        score: scores the purchase of a play's product.
        draws: used by the search for random products.
        fix_page_kind: see `dmr_gym.tasks.webshop.fixes.FIXES`.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        search: Callable[[str], tuple[int, ...]],
        score: Callable[[Play], Score],
        draws: Draws,
        fix_page_kind: bool,
    ) -> None:
        self._catalogue = catalogue
        # Asked twice a click: whether it can be carried out, and when it is.
        self._find_asin = lru_cache(KEPT_ASINS)(catalogue.find)
        self._search = search
        self._score = score
        self._draws = draws
        self._fix_page_kind = fix_page_kind

    def obstacle(self, play: Play, clickables: Clickables, name: str, argument: str) -> str | None:
        """Why an action would change nothing; None when it does something."""
        if name == "search":
            return self._search_obstacle(argument)
        if name != "click":
            return f'unknown action {name!r:.40}: it must be exactly "search" or "click"'
        if argument == "search":
            return "the search button needs no click: use search[words]"
        if argument not in clickables:
            return f"{argument!r:.80} cannot be clicked on this page"
        if self._is_link(play, argument) and self._linked(play, argument) is None:
            return f"no product has the asin {argument.upper()!r:.40}: asins with small letters cannot be clicked"
        return None

    def carry_out(self, play: Play, clickables: Clickables, name: str, argument: str) -> Play:
        """The play after an action that `obstacle` found nothing against."""
        play = play._replace(reward=0.0, done=False)
        if name == "search":
            return self._show_results(play, argument, 1)
        if self._is_link(play, argument):  # first, because an asin can be a button's text
            product = self._linked(play, argument)
            return play._replace(kind=ITEM, product=product, visited=play.visited | {argument.upper()})
        if argument == "buy now":
            score = self._score(play)
            return play._replace(kind=DONE, reward=score.value, done=True, score=score)
        if argument == "back to search":
            return play._replace(
                kind=START, query=None, number=0, total=0, results=(), product=None, options=(), visited=frozenset()
            )
        if argument in ("next >", "< prev"):
            return self._turn(play, clickables, argument)
        if argument in SUB_PAGES:
            return play._replace(kind=argument)
        return self._choose(play, clickables, argument)

    # ------------------------------------------------------------------ pages

    def _turn(self, play: Play, clickables: Clickables, button: str) -> Play:
        kind = self._supposed_kind(play)
        if kind == RESULTS:
            return self._show_results(play, play.query or "", play.number + (1 if button == "next >" else -1))
        if kind == ITEM and button == "< prev":
            return self._show_results(play, play.query or "", play.number)
        return self._choose(play, clickables, button)

    def _supposed_kind(self, play: Play) -> str | None:
        """The kind of page that the original takes this one for."""
        if self._fix_page_kind:
            return SUB_PAGE if play.kind in SUB_PAGES else play.kind
        asin = "" if play.product is None else str(self._catalogue.asins[play.product])
        return kind_in_url(make_url(play, asin))

    def _show_results(self, play: Play, query: str, number: int) -> Play:
        """Search (again, also for another page) and forget the chosen product and options."""
        found = self._find(query)
        shown = tuple(int(product) for product in found[(number - 1) * PAGE_SIZE : number * PAGE_SIZE])
        return play._replace(
            kind=RESULTS, query=query, number=number, total=len(found), results=shown, product=None, options=()
        )

    def _choose(self, play: Play, clickables: Clickables, argument: str) -> Play:
        """Show the item, with an option value chosen if that was clicked."""
        name = clickables[argument]
        if name is None:
            return play._replace(kind=ITEM)
        return play._replace(kind=ITEM, options=tuple({**dict(play.options), name: argument}.items()))

    def _is_link(self, play: Play, argument: str) -> bool:
        return play.kind == RESULTS and argument not in ("back to search", "< prev", "next >")

    def _linked(self, play: Play, argument: str) -> int | None:
        """Number of the product that a link leads to: the one whose asin is the link's text in capitals."""
        return self._find_asin(argument.upper())

    # ------------------------------------------------------------------ searches

    def _search_obstacle(self, query: str) -> str | None:
        words = query.split(" ")
        if words[0] == _RANDOM and len(self._catalogue) < MAX_RESULTS:
            return f"{_RANDOM} draws {MAX_RESULTS} products; this shop has {len(self._catalogue)}"
        if words[0] == _ATTRIBUTE:
            return f"{_ATTRIBUTE} is not available in the text environment"
        if words[0] == _CATEGORY and len(words) == 1:
            return f"{_CATEGORY} needs a category after a space"
        return None

    def _find(self, query: str) -> Sequence[int] | IntArray:
        """Numbers of the products of a search, best first; the first word can ask for a special search."""
        words = query.split(" ")
        if words[0] == _RANDOM:
            return self._draws.sample(len(self._catalogue), MAX_RESULTS)
        if words[0] == _CATEGORY:
            return self._catalogue.numbers_in_category(words[1].strip())
        if words[0] == _QUERY:
            return self._catalogue.numbers_with_query(" ".join(words[1:]).strip())
        return self._search(query)
