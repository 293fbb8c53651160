"""The state of a shopping trip, its address, and how WebShop reads actions and addresses.

WebShop knows the kind of the current page by looking for "search_results", "item_page", "item_sub_page" and "done" in
its address, which also holds the query, the session's name and the chosen options. So a query such as "item_page"
changes what "< Prev" does, and addresses have to be made exactly.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from dmr_gym.tasks.webshop.pages import DONE, ITEM, RESULTS, SEPARATOR, START, SUB_PAGES
from dmr_gym.tasks.webshop.reward import Score

BASE_URL = "http://127.0.0.1:3000"
SUB_PAGE = "sub-page"
_ADDRESS_NAMES = {"search_results": RESULTS, "item_page": ITEM, "item_sub_page": SUB_PAGE, "done": DONE}


class Play(NamedTuple):
    """A moment of a shopping trip.

    Attributes:
        session: the session's name.
        goal_number: its goal.
        kind: kind of page, as in `dmr_gym.tasks.webshop.pages.View`.
        query: the last search; None before the first and after "Back to Search".
        number: page number of the results.
        total: number of products found.
        results: numbers of the products on this page of the results.
        product: number of the chosen product; None when there is none.
        options: chosen options, (name, value) in the order in which their names were first chosen.
        visited: asins of the products looked at since the start page.
        reward: reward of the last action.
        done: whether the last action was the purchase.
        score: what the reward of the last purchase is made of; None before it.
        previous_observations: the last observations, as many as are asked for, the newest last.
        previous_actions: the last actions likewise.
    """

    session: str
    goal_number: int
    kind: str = START
    query: str | None = None
    number: int = 0
    total: int = 0
    results: tuple[int, ...] = ()
    product: int | None = None
    options: tuple[tuple[str, str], ...] = ()
    visited: frozenset[str] = frozenset()
    reward: float = 0.0
    done: bool = False
    score: Score | None = None
    previous_observations: tuple[str, ...] = ()
    previous_actions: tuple[str, ...] = ()


class Page(NamedTuple):
    """Where the shopper is.

    Attributes:
        kind: "start", "results", "item", "description", "features", "reviews", "attributes" or "done".
        query: the last search; None before it and after "Back to Search".
        number: page number of the results, from 1; 0 before a search.
        total: number of products found.
        asin: the chosen product; None when there is none.
        options: chosen options, name -> value.
    """

    kind: str
    query: str | None
    number: int
    total: int
    asin: str | None
    options: dict[str, str]


def make_url(play: Play, asin: str) -> str:
    """The address of a page; ``asin`` is the chosen product's, or "" when there is none."""
    if play.kind == START:
        return f"{BASE_URL}/{play.session}"
    options = dict(play.options)
    if play.kind == DONE:
        return f"{BASE_URL}/done/{play.session}/{asin}/{options}"
    query = (play.query or "").replace(" ", "+")
    if play.kind == RESULTS:
        return f"{BASE_URL}/search_results/{play.session}/{query}/{play.number}"
    if play.kind == ITEM:
        return f"{BASE_URL}/item_page/{play.session}/{asin}/{query}/{play.number}/{json.dumps(options)}"
    sub_page = SUB_PAGES[play.kind]
    return f"{BASE_URL}/item_sub_page/{play.session}/{asin}/{query}/{play.number}/{sub_page}/{options}"


def kind_in_url(url: str) -> str | None:
    """The kind of page that WebShop takes an address for: "results", "item", "sub-page", "done", or None."""
    return next((kind for name, kind in _ADDRESS_NAMES.items() if name in url), None)


def parse_action(action: str, fix_brackets: bool = False) -> tuple[str, str] | None:
    r"""Split "name[argument]" as WebShop does: what the regular expression ``(.+)\[(.+)\]`` matches at the start.

    The first line alone counts; its last "]" ends the argument, and the last "[" before that begins it, so the name of
    "click[a [b]]" is "click[a ".

    Args:
        action: any text.
        fix_brackets: let the first "[" begin the argument.

    Returns:
        Name and argument, neither of them empty; None when the action has another form.
    """
    line = action.split("\n", 1)[0]
    end = line.rfind("]")
    # One character at least stands before "[", and one between the brackets.
    start = line.find("[", 1, max(end - 1, 0)) if fix_brackets else line.rfind("[", 1, max(end - 1, 0))
    return None if start < 0 else (line[:start], line[start + 1 : end])


def with_history(play: Play, action: str, observation: str, n_obs: int, n_actions: int) -> tuple[str, Play]:
    """Put earlier observations and actions in front of an observation, the oldest first.

    Args:
        play: the play after the action.
        action: what led to the observation; it counts as an earlier action.
        observation: what the shopper sees now.
        n_obs: so many earlier observations are put in front.
        n_actions: so many actions are put in front.

    Returns:
        The text, and the play that remembers this action and observation.
    """
    observations = _last(play.previous_observations, n_obs)
    actions = _last((*play.previous_actions, action), n_actions)
    texts = [observation]
    for place in range(1, 1 + max(len(observations), len(actions))):
        texts += [earlier[-place] for earlier in (actions, observations) if place <= len(earlier)]
    text = SEPARATOR.join(reversed(texts))
    seen = _last((*observations, observation), n_obs)
    return text, play._replace(previous_observations=seen, previous_actions=actions)


def _last(texts: tuple[str, ...], count: int) -> tuple[str, ...]:
    return texts[-count:] if count else ()
