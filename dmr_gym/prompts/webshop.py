"""Prompts of WebShop and the reader of their answers: pure functions of plain values.

Two renderings show the task, the number of the step, the last observations with the actions that followed, the present
page, and what can be done on it. `short_prompt` is plain text of few tokens, for models trained on it::

    Task: i need a gluten free snack bar with cocoa flavor, and price lower than 30.00 dollars
    Step 4
    was results 1 "gluten free snack bar": click[3]
    was item 3: click[features]
    features of item 3
    gluten free and ready to eat
    made with real cocoa
    [ back to search] [ < prev]
    Task: i need a gluten free snack bar with cocoa flavor, and price lower than 30.00 dollars
    >

The task stands before the page and behind it: a causal model reads a page with the task in mind, and then the task with
the page in mind. Products looked at and options chosen are marked, as WebShop's mode "text_rich" does.

Products go by their place among the results, from 1 on the first page of them: WebShop's links, ten letters and digits
each, would be most of what a small model has to read, remember and copy. An answer may name either.

Whatever can be clicked stands in brackets behind a space, and so it stands in the answer, ``click[ sea salt]``: pieces
of byte pairs differ behind a space, and this way a value has the same tokens in the task, on the page and in the
answer. The page is in lower case, as actions are and tasks nearly always, so that a word of the task and the same word
of a title are the same tokens. The prompt ends with ">" and no space; the answer is one line, see
`dmr_gym.prompts.webshop_answers.short_answer`. It does not show all of a page: 120 characters of a title and of the
keywords, 40 values of an option, 400 characters of a sub-page (`MAX_TITLE_CHARS` and the constants after it), no
ratings, no number of results, and of earlier pages only their summary.

`chat_prompt` is one user message for models from a hub, built as the instructions of verl-agent (Feng et al., 2025)
are, in other words; the answer stands in ``<action></action>`` after reasoning in ``<think></think>``. It shows pages
whole; beyond 13,000 characters (`MAX_CHAT_CHARS`) the oldest are left out, never the present one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from dmr_gym.types import Message

PROMPT_STYLES = ("short", "chat")
MAX_TITLE_CHARS = 120
MAX_KEYWORDS_CHARS = 120
MAX_VALUES = 40
MAX_TEXT_CHARS = 400
MAX_INVALID_CHARS = 60
MAX_CHAT_CHARS = 13_000
NO_ACTION = "(no action)"
INVALID = " (invalid)"
"""Behind an action of the short history that changed nothing."""

_CHAT_TASK = "You are shopping on the website WebShop for a customer.\nThe customer's task for you: {goal}"
_CHAT_TAKEN = "You have taken {taken} step(s) so far."
_CHAT_HISTORY = " The last {shown} observation(s), each with the action you chose:\n{pairs}"
_CHAT_NOW = "This is step {number}. The page you see now:\n{observation}"
_CHAT_ACTIONS = "Actions that are admissible now:\n{actions}"
_CHAT_ANSWER = (
    "Choose one admissible action. First reason step by step about the page and about which action brings you closer "
    "to buying what the customer asked for, inside <think></think>. Then write that one action inside "
    "<action></action>, as it is listed; in a search, your own words stand in place of <your query>."
)


class PageView(NamedTuple):
    """What the short prompt shows of a page.

    Attributes:
        summary: the page in a few words, from `page_summary`.
        body: the lines under it, from `results_body`, `item_body` or `text_body`.
        buttons: fixed buttons in page order, as they are clicked: lower case.
        has_search_bar: whether the page has the search bar.
        links: asins in lower case by the number that stands for them: the products listed, or the one shown.
    """

    summary: str
    body: tuple[str, ...] = ()
    buttons: tuple[str, ...] = ()
    has_search_bar: bool = False
    links: Mapping[str, str] = MappingProxyType({})

    @property
    def text(self) -> str:
        """Summary and body, a line each."""
        return "\n".join((self.summary, *self.body))


def page_summary(kind: str, product: str = "", keywords: str = "", number: int = 1) -> str:
    """The page in a few words: ``results 2 "green tea"``, ``item 13``, ``features of item 13``.

    Args:
        kind: "start", "results", "item", "description", "features", "reviews", "attributes" or "done".
        product: number of the product of an item page, its sub-pages and the last page.
        keywords: what was searched for, on results pages.
        number: of a results page, from 1.
    """
    if kind == "results":
        return f'results {number} "{cut(keywords, MAX_KEYWORDS_CHARS)}"'
    if kind == "item":
        return f"item {product}"
    if kind == "done":
        return f"bought item {product}"
    return f"{kind} of item {product}" if product else kind


def results_body(products: Iterable[tuple[str, str, str]], visited: Collection[str] = ()) -> tuple[str, ...]:
    """Lines of a results page, one a product; those looked at since the start page are "seen" and lose their brackets.

    Args:
        products: (number, price label, title) in page order; titles longer than `MAX_TITLE_CHARS` are cut.
        visited: numbers of the products looked at.
    """
    lines = []
    for number, price, title in products:
        mark = f"seen {number}" if number in visited else f"[ {number}]"
        lines.append(f"{mark} {price} {cut(title, MAX_TITLE_CHARS)}".rstrip())
    return tuple(lines)


def item_body(
    price: str,
    title: str,
    options: Iterable[tuple[str, Sequence[str]]],
    clickables: Iterable[str],
    chosen: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Lines of an item page: price label, title, and a line an option with at most `MAX_VALUES` values.

    Args:
        price: the price label.
        title: the product's title.
        options: (name, values) in page order.
        clickables: what can be clicked; other values stand without brackets.
        chosen: option name -> value chosen, shown behind "=".
    """
    chosen = chosen or {}
    known = frozenset(clickables)
    lines = [price, cut(title, MAX_TITLE_CHARS)]
    for name, values in options:
        shown = (f"[ {value}]" if value in known else _one_line(value) for value in values[:MAX_VALUES])
        mark = f" = {_one_line(chosen[name])}" if name in chosen else ""
        lines.append(f"{_one_line(name)}: {' '.join(shown)}".rstrip() + mark)
    return tuple(line for line in lines if line)


def text_body(pieces: Iterable[str]) -> tuple[str, ...]:
    """Lines of a sub-page: its pieces of text, cut to `MAX_TEXT_CHARS` characters in all."""
    lines: list[str] = []
    chars_left = MAX_TEXT_CHARS
    for piece in pieces:
        line = cut(piece, chars_left)
        if line:
            lines.append(line)
        chars_left -= len(line)
        if chars_left <= 0 or line != _one_line(piece):
            break
    return tuple(lines)


def short_prompt(goal: str, number: int, history: Iterable[tuple[str, str]], view: PageView) -> str:
    """The plain prompt of a step.

    Args:
        goal: the instruction with its price cap.
        number: of the step to take, from 1.
        history: (page summary, action) of the last steps, oldest first; see `shown_action`.
        view: the present page.

    Returns:
        Text that ends with ">"; the answer follows it with one space in front.
    """
    lines = [f"Task: {_one_line(goal)}", f"Step {number}"]
    lines += [f"was {summary}: {action}" for summary, action in history]
    lines.append(view.text.lower())
    buttons = [f"[ {button}]" for button in view.buttons]
    if view.has_search_bar:
        buttons.insert(0, "search[...]")
    if buttons:
        lines.append(" ".join(buttons))
    return "\n".join((*lines, lines[0], ">"))


def chat_prompt(
    goal: str,
    taken: int,
    history: Sequence[tuple[str, str]],
    observation: str,
    actions: Sequence[str],
) -> tuple[Message, ...]:
    """The prompt of a step as one user message; while it exceeds `MAX_CHAT_CHARS`, it shows fewer earlier pages.

    Args:
        goal: the instruction with its price cap.
        taken: steps so far.
        history: (observation, action) of the last steps, oldest first; see `shown_action`.
        observation: the present page, from `quoted_pieces`.
        actions: what is admissible, from `admissible_actions`.
    """
    for first in range(len(history) + 1):
        parts = [
            _CHAT_TASK.format(goal=goal),
            _chat_history(taken, history[first:]),
            _CHAT_NOW.format(number=taken + 1, observation=observation),
            _CHAT_ACTIONS.format(actions="\n".join(actions)),
            _CHAT_ANSWER,
        ]
        content = "\n\n".join(part for part in parts if part)
        if len(content) <= MAX_CHAT_CHARS:
            break
    return (Message("user", content),)


def quoted_pieces(pieces: Iterable[str]) -> str:
    """Pieces of an observation as the chat prompt shows them: ``'Back to Search' [SEP] 'Next >'``."""
    return " [SEP] ".join(f"'{piece}'" for piece in pieces)


def admissible_actions(has_search_bar: bool, clickables: Iterable[str]) -> list[str]:
    """What the chat prompt lists: the search with its placeholder, then each click; the search button is no click."""
    actions = ["search[<your query>]"] if has_search_bar else []
    return actions + [f"click[{name}]" for name in clickables if name != "search"]


def shown_action(action: str, is_valid: bool) -> str:
    """An action as history shows it: invalid ones are cut to `MAX_INVALID_CHARS`, an empty one is named."""
    return (action if is_valid else action[:MAX_INVALID_CHARS].rstrip()) or NO_ACTION


def cut(text: str, max_chars: int) -> str:
    """Text on one line with single spaces, cut to ``max_chars`` at the end of a word where it has one."""
    line = " ".join(text.split())
    if len(line) <= max_chars:
        return line
    head, space, _ = line[: max_chars + 1].rpartition(" ")
    return head if space else line[:max_chars]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _chat_history(taken: int, pairs: Sequence[tuple[str, str]]) -> str:
    if not taken:
        return ""
    lines = (
        f"Observation {i}: {seen}\nAction {i}: {did}" for i, (seen, did) in enumerate(pairs, taken - len(pairs) + 1)
    )
    shown = _CHAT_HISTORY.format(shown=len(pairs), pairs="\n".join(lines)) if pairs else ""
    return _CHAT_TAKEN.format(taken=taken) + shown
