"""An expert that reads nothing but the short prompt, and what the customer's words mean.

Its action is a function of the prompt's text and of three labels: the wanted attributes, option values and product
type, all of which stand in the task's sentence. It keeps no memory and never learns which product is the target. So
whatever it does can be inferred from the prompt, which makes it a teacher that a language model can imitate, also from
the pages that somebody else's mistakes have led to.

The rule for a request in a customer's words: search the phrase that names attributes and type. Take products in the
order of the results, those first whose title tells every wanted attribute; where one is missing, read the features. Go
back if an option value is not offered or an attribute is told nowhere, and go on after the product that was left.
Choose the values in page order, then buy.

The rule for a request that WebShop's script wrote ("Find me ... with color: red"): search all its words, for they name
the very option values that the index holds, and take the first affordable product that offers these values. Titles of
real shops seldom name the attributes, or even the type.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dmr_gym.prompts.webshop import INVALID
from dmr_gym.tasks.webshop.shop_words import singular

LAST_PAGE = 3
"""On this page of results the expert no longer insists on attributes."""

_CAP = re.compile(r"price lower than (\d+(?:\.\d+)?) dollars")
_PRICE_TEXT = re.compile(r",? and price lower than ")
_SYNTHETIC = "Find me "  # how all instructions of WebShop's script begin; customers write in lower case
_RESULT = re.compile(r"\[ ([^\[\]]+)\] \$(\d+(?:\.\d+)?)(?: to \$\d+(?:\.\d+)?)? (.*)")
_PRICE = re.compile(r"\$(\d+(?:\.\d+)?)")
_OPTION = re.compile(r"([^\[\]]+): (\[.*\])(?: = (.*))?")
_WAS = re.compile(r'was (start|results \d+ ".*"|(?:\w+ of )?item \S+): (.*)')
_PRODUCT = re.compile(r"(?:(description|features|reviews|attributes) of )?item (\S+)")
_RESULTS = re.compile(r'results (\d+) "(.*)"')
_WORD = re.compile(r"\w+")
_SEXES = {"men", "women"}


class Past(NamedTuple):
    """A step shown in the prompt: the page's summary, and the action taken there."""

    summary: str
    action: str

    @property
    def product(self) -> str:
        """Number of the product of an item page or sub-page; "" elsewhere."""
        match = _PRODUCT.fullmatch(self.summary)
        return match[2] if match else ""

    @property
    def clicked(self) -> str:
        """What was clicked; "" for a search or for no action."""
        return self.action.removesuffix(INVALID)[6:-1] if self.action.startswith("click[") else ""


class View(NamedTuple):
    """A short prompt, taken apart.

    Attributes:
        task: the instruction with its price cap.
        history: the last steps, oldest first.
        summary: the present page in a few words.
        body: its lines, without the buttons.
    """

    task: str
    history: tuple[Past, ...]
    summary: str
    body: tuple[str, ...]


class Listing(NamedTuple):
    """A line of a results page: number, price in dollars, of a range the lower end, and title."""

    number: str
    price: float
    title: str


def read_prompt(prompt: str) -> View:
    """Take a prompt of the style "short" apart."""
    lines = prompt.removesuffix("\n>").split("\n")
    task = lines[0].removeprefix("Task: ")
    first = next((place for place, line in enumerate(lines[2:], 2) if not line.startswith("was ")), len(lines) - 1)
    matches = (_WAS.fullmatch(line) for line in lines[2:first])
    history = tuple(Past(match[1], match[2]) for match in matches if match)
    return View(task, history, lines[first], tuple(lines[first + 1 : -2]))


@dataclass(frozen=True, slots=True)
class ShoppingExpert:
    """Shops by the rule of this module.

    Attributes:
        attributes: the wanted attributes.
        values: the wanted option values, as the shop writes them.
        query: the wanted product type, "men's slippers".
    """

    attributes: tuple[str, ...]
    values: tuple[str, ...]
    query: str

    def act(self, prompt: str) -> str:
        """The action for a prompt of the style "short": ``search[...]`` or ``click[...]``."""
        view = read_prompt(prompt)
        if view.summary == "start":
            return f"search[{self._keywords(view)}]"
        results = _RESULTS.fullmatch(view.summary)
        if results is not None:
            return f"click[{self._on_results(view, int(results[1]), results[2])}]"
        page = _PRODUCT.fullmatch(view.summary)
        if page is not None and page[1] is None:
            return f"click[{self._on_item(view)}]"
        is_checked = page is not None and page[1] == "features" and not view.task.startswith(_SYNTHETIC)
        is_bad = is_checked and self._missing(" ".join(view.body))
        return f"click[{'back to search' if is_bad else '< prev'}]"

    def core(self, task: str) -> str:
        """What to search: the shortest piece of the task's sentence that has the type and every attribute.

        Of a request that WebShop's script wrote, all but its opening and its price.
        """
        text = _PRICE_TEXT.split(task)[0]
        if text.startswith(_SYNTHETIC):
            return text.removeprefix(_SYNTHETIC).lower()
        text = text.lower()
        places = [match.span() for form in (self.query, singular(self.query)) for match in _finds(form, text)]
        if not places:
            return " ".join((*self.attributes, self.query))
        start, end = noun = places[0]
        for attribute in self.attributes:
            found = [match.span() for match in _finds(attribute, text)]
            if found:
                nearest = min(found, key=lambda span: abs(span[0] - noun[0]))
                start, end = min(start, nearest[0]), max(end, nearest[1])
        return text[start:end]

    def _keywords(self, view: View) -> str:
        """The core of the task; where it has been searched to the end, the type alone."""
        searched = _RESULTS.fullmatch(view.history[-1].summary) if view.history else None
        is_searched = searched is not None and searched[2] != self.query and int(searched[1]) >= LAST_PAGE
        return self.query if is_searched else self.core(view.task)

    def _on_results(self, view: View, page: int, searched: str) -> str:
        """The next product that promises most, behind the one that was left; where none does, on or back."""
        is_lenient = page >= LAST_PAGE or searched == self.query
        listings = [Listing(m[1], float(m[2]), m[3]) for m in map(_RESULT.fullmatch, view.body) if m]
        left = next((past.product for past in reversed(view.history) if past.product), "")
        after = next((place for place, each in enumerate(listings, 1) if each.number == left), 0)
        promises = [self._promise(each, view.task, is_lenient) for each in listings]
        levels = (2, 1) if max(promises, default=0) > 0 else (0,)
        for level in levels:
            if level in promises[after:]:
                return listings[promises.index(level, after)].number
        return "back to search" if page >= LAST_PAGE or not listings else "next >"

    def _promise(self, listing: Listing, task: str, is_lenient: bool) -> int:
        """What a title promises: 2 all, 1 all but one attribute, 0 a product of this kind, -1 nothing."""
        if listing.price > _cap(task):
            return -1
        if task.startswith(_SYNTHETIC):
            return 0
        if not self._is_of_kind(listing.title):
            return -1
        if not _stems(self.query) <= _stems(listing.title):
            return 0
        missing = len(self._missing(listing.title))
        return 2 if missing == 0 else int(missing == 1 or is_lenient)

    def _on_item(self, view: View) -> str:
        price = _PRICE.match(view.body[0])
        title = view.body[1] if len(view.body) > 1 else ""
        lines = [match for match in map(_OPTION.fullmatch, view.body[2:]) if match]
        options = [_values(match[2]) for match in lines]
        wanted = [next((value for value in values if value in self.values), "") for values in options]
        if (price and float(price[1]) > _cap(view.task)) or set(self.values) - set(wanted):
            return "< prev"
        if not view.task.startswith(_SYNTHETIC):
            if not self._is_of_kind(title):
                return "< prev"
            is_doubtful = _stems(self.query) <= _stems(title) and len(self._missing(title)) == 1
            if is_doubtful and not _is_checked(view, options):
                return "features"
        missing = (value for value, match in zip(wanted, lines, strict=True) if value and match[3] != value)
        return next(missing, "buy now")

    def _is_of_kind(self, title: str) -> bool:
        """Whether a title shares a word with the wanted type, and is not for the other sex."""
        query, words = _stems(self.query), _stems(title)
        return bool(query & words) and query & _SEXES in (words & _SEXES, set())

    def _missing(self, text: str) -> list[str]:
        text = text.lower()
        return [attribute for attribute in self.attributes if attribute not in text]


def _cap(task: str) -> float:
    match = _CAP.search(task)
    return float(match[1]) if match else float("inf")


def _finds(phrase: str, text: str) -> Sequence[re.Match[str]]:
    return list(re.finditer(rf"(?<!\w){re.escape(phrase)}(?!\w)", text))


def _stems(text: str) -> set[str]:
    return {singular(word) for word in _WORD.findall(text.lower())}


def _values(line: str) -> list[str]:
    return line[2:-1].split("] [ ")


def _is_checked(view: View, options: Sequence[Sequence[str]]) -> bool:
    """Whether the features were read and found good, or are not worth reading any more."""
    if not view.history:
        return False
    last = view.history[-1]
    results = _RESULTS.fullmatch(last.summary)
    if results is not None:
        return int(results[1]) > 1
    return last.summary.startswith("features of") or any(last.clicked in values for values in options)
