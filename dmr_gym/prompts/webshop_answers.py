"""What WebShop's agents answer: from any completion to an action, or to the reason why there is none."""

from __future__ import annotations

import re
from typing import NamedTuple

STEP_TYPES = ("search", "click")
MAX_ACTION_CHARS = 1000
_SHOWN_CHARS = 60
_ACTION = re.compile(r"(.+)\[(.+)\]")
_ACTION_WITH_BRACKETS = re.compile(r"([^\[]+)\[(.+)\]")
_PREFIX = re.compile(r"(?:>|\s|action\s*:)*")
# Not all that is unprintable: option values hold no-break spaces and the like, and have to be clicked as they are.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# A model that drifts into another script has lost the instruction. verl-agent looks for U+4E00 to U+9FFF alone.
_FOREIGN = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")


def short_answer(action: str) -> str:
    """An action as a model of the style "short" says it: one line behind a space.

    What is in the brackets stands behind a space too, as it does in the task and on the page, so that its first word is
    the same token.
    """
    return f" {action.replace('[', '[ ', 1)}\n"


class Reading(NamedTuple):
    """What a completion says.

    Attributes:
        action: ``search[...]`` or ``click[...]`` in lower case; where it is neither, the line as read, "" if empty.
        step_type: "search" or "click".
        invalid_reason: why no action can be carried out; None where one can be tried.
    """

    action: str
    step_type: str
    invalid_reason: str | None


def read_completion(
    completion: str,
    has_search_bar: bool = False,
    style: str = "short",
    require_think: bool = True,
    fix_brackets: bool = False,
) -> Reading:
    """Read the action from a completion. Any text can be read; whether the page allows the action is not asked here.

    In the style "chat" exactly one ``<action></action>`` is expected, reasoning in ``<think></think>``, and no CJK
    ideographs, as verl-agent has it; ours refuses rarer ideographs, kana and hangul too. Tags are found in any case. In
    the style "short" the first line that is not blank counts, without a leading ">" or "Action:"; ``<action></action>``
    is read too, and spaces just inside the brackets count for nothing, see `short_answer`. An action is WebShop's:
    a name, then an argument up to the last "]"; what follows is ignored. Letters become lower case, control characters
    U+FFFD, and what exceeds `MAX_ACTION_CHARS` is cut off.

    Args:
        completion: any text.
        has_search_bar: what an unreadable action was meant for: "search" where the page has the bar, else "click".
        style: "short" or "chat".
        require_think: whether the chat style insists on its reasoning tags; False suits models whose template has
            opened them already.
        fix_brackets: whether the first "[" begins the argument; WebShop takes the last.
    """
    text, reason = completion.lower(), None
    if style == "chat":
        reason = _chat_flaw(text, require_think)
    if style == "chat" or "<action>" in text:
        text, flaw = _inside_tags(text)
        reason = reason or flaw
    line = _first_line(text)
    match = (_ACTION_WITH_BRACKETS if fix_brackets else _ACTION).match(line)
    name, argument = match.groups() if match else ("", "")
    if style == "short":
        argument = argument.strip()
    if name in STEP_TYPES and argument:
        return Reading(f"{name}[{argument}]", name, reason)
    flaw = f"expected search[...] or click[...], found {line[:_SHOWN_CHARS]!r}" if line else "there is no action"
    return Reading(line, "search" if has_search_bar else "click", reason or flaw)


def _chat_flaw(text: str, require_think: bool) -> str | None:
    if _FOREIGN.search(text):
        return "the completion has characters of another script"
    if require_think and not 0 <= text.find("<think>") < text.find("</think>"):
        return "the completion has no <think></think>"
    return None


def _inside_tags(text: str) -> tuple[str, str | None]:
    """What stands between the action tags, and what is wrong with them."""
    opened, closed = text.count("<action>"), text.count("</action>")
    content, end, _ = text.partition("<action>")[2].partition("</action>")
    if (opened, closed) != (1, 1):
        return content if end else "", f"expected one <action></action>, found {opened} <action> and {closed} </action>"
    if not end:
        return "", "</action> stands before <action>"
    return content, None if content.strip() else "<action></action> is empty"


def _first_line(text: str) -> str:
    rest = text[: 16 * MAX_ACTION_CHARS]
    lines = rest[_PREFIX.match(rest).end() :].splitlines()  # type: ignore[union-attr]  # it matches nothing too
    line = lines[0][:MAX_ACTION_CHARS].strip() if lines else ""
    return _CONTROL.sub("\ufffd", line)
