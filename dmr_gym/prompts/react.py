"""Prompts in the style of ReAct (Yao et al., 2023) for language models from a hub: worked examples with thoughts.

Two examples of the same task type stand before the episode. They were played in generated houses, so no official game
is given away, and they use the commands of ALFWorld since 0.4.0 (``move X to Y``). A line that begins with ``think:``
counts as a step, is answered ``OK.``, and leaves the world alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

from dmr_gym.errors import ConfigError
from dmr_gym.prompts import transcript

_OPENING = "Interact with a household to solve a task. Here are two examples.\n"
_CLOSING = "\nHere is the task.\n"
_TITLE = re.compile(r"^# (\S+)\n", re.MULTILINE)


@cache
def task_types() -> tuple[str, ...]:
    """The task types that have worked examples, sorted: the files of the folder ``examples``."""
    folder = resources.files("dmr_gym.prompts").joinpath("examples")
    return tuple(sorted(file.name.removesuffix(".txt") for file in folder.iterdir()))


@cache
def examples(task_type: str) -> tuple[tuple[str, str], ...]:
    """The worked examples of a task type.

    Returns:
        Pairs (id of the embedded house it was played in, transcript without the last ">").

    Raises:
        ConfigError: the task type is unknown.
    """
    if task_type not in task_types():
        raise ConfigError(f"unknown task type {task_type!r}: worked examples exist for {', '.join(task_types())}")
    text = resources.files("dmr_gym.prompts").joinpath("examples", f"{task_type}.txt").read_text(encoding="utf-8")
    _, *parts = _TITLE.split(text)
    return tuple((house, body.strip() + "\n") for house, body in zip(parts[::2], parts[1::2], strict=True))


@cache
def head(task_type: str) -> str:
    """Everything before the episode's own transcript. Raises ConfigError for an unknown task type."""
    return _OPENING + "".join(body for _, body in examples(task_type)) + _CLOSING


def render(task_type: str, intro: str, turns: Iterable[tuple[str, str]]) -> str:
    """Return the prompt after some steps; it ends with ">" as `transcript.render` does.

    Args:
        task_type: one of the six task types; chooses the worked examples.
        intro: the engine's introduction, with or without TextWorld's banner.
        turns: (command or thought, answer) of each step so far, in order.
    """
    return head(task_type) + transcript.render(intro, turns)
