r"""The plain transcript of an ALFWorld episode: the first observation, then commands and answers.

The text of an episode is::

    You are in the middle of a room. Looking quickly around you, you see a bed 1, and a desk 1.
    Your task is to: put a book in desk.
    > go to bed 1
    You arrive at bed 1. On the bed 1, you see a book 1.
    >

It ends with ">" and no space, so that a completion begins with the space that byte-pair vocabularies glue to the next
word. Each step only appends: the prompt of step t is a prefix of the prompt of step t + 1, which keeps prefix caches
warm. Everything here is a pure function of strings.
"""

from __future__ import annotations

from collections.abc import Iterable

BANNER = "-= Welcome to TextWorld, ALFRED! =-"


def strip_banner(intro: str) -> str:
    """Return a world's introduction without TextWorld's banner and without blank lines."""
    lines = (line.strip() for line in intro.splitlines())
    return "\n".join(line for line in lines if line and line != BANNER)


def initial(intro: str) -> str:
    """Return the prompt before the first step.

    Args:
        intro: the engine's introduction, with or without TextWorld's banner.
    """
    return f"{strip_banner(intro)}\n>"


def turn(command: str, observation: str) -> str:
    """Return what one step appends to the prompt: the command, the answer, and the next ">"."""
    return f" {command}\n{observation}\n>"


def render(intro: str, turns: Iterable[tuple[str, str]]) -> str:
    """Return the prompt after some steps.

    Args:
        intro: the engine's introduction, with or without TextWorld's banner.
        turns: (command, observation) of each step so far, in order.

    Returns:
        Text that ends with ">"; a command follows it with one space in front.
    """
    return initial(intro) + "".join(turn(command, observation) for command, observation in turns)
