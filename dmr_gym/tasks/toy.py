"""A tiny world with a known best routing, for tests, examples and first steps. It needs no weights and no files.

A corridor has signs. An upright sign tells the way; a fallen one shows the wrong way, and whoever follows it walks back
to the entrance. The scripted low precision of ``DMR-Toy-v0`` takes every sign at its word, the high precision does not.
So fallen signs are the critical steps of the paper, they can be told from the observation, and the best policy is high
precision at fallen signs and low precision elsewhere::

    Follow the signs to the exit.
    A sign points left.
    > go left
    A fallen sign shows left.
    > go right
    You reach the exit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from dmr_gym.config import unknown_name
from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.types import TaskStart, TaskStep

INSTRUCTION = "Follow the signs to the exit."
PANELS = ("train", "calibration", "validation", "test")
OPPOSITE = {"left": "right", "right": "left"}
_UPRIGHT = {f"A sign points {way}.": f"go {way}" for way in OPPOSITE}
ANSWERS = {
    "low": _UPRIGHT | {f"A fallen sign shows {way}.": f"go {way}" for way in OPPOSITE},
    "high": _UPRIGHT | {f"A fallen sign shows {way}.": f"go {OPPOSITE[way]}" for way in OPPOSITE},
}
"""What the last sign in the prompt makes either precision say: scripts for the backend ``{"kind": "scripted"}``."""


class Sign(NamedTuple):
    """The way that leads on, and whether the sign has fallen and so shows the other one."""

    way: str
    fallen: bool

    @property
    def text(self) -> str:
        """What the walker sees."""
        return f"A fallen sign shows {OPPOSITE[self.way]}." if self.fallen else f"A sign points {self.way}."


class ToyState(NamedTuple):
    """Everything that changes in an episode."""

    task_id: str
    position: int
    transcript: str


class ToyTask:
    """Corridors of signs; implements `dmr_gym.types.Task`.

    Args:
        panel: "train", "calibration", "validation" or "test"; panels share no corridor id.
        num_tasks: corridors in the panel.
        num_signs: signs in a corridor, which is also the length of the shortest episode.

    Raises:
        ConfigError: for an unknown panel or a size below 1.
    """

    def __init__(self, panel: str = "train", num_tasks: int = 32, num_signs: int = 8) -> None:
        if panel not in PANELS:
            raise ConfigError(unknown_name("toy panel", panel, PANELS))
        if num_tasks < 1 or num_signs < 1:
            raise ConfigError(f"num_tasks and num_signs must be at least 1, got {num_tasks} and {num_signs}")
        self._task_ids = tuple(f"toy-{panel}-{index:03d}" for index in range(num_tasks))
        self._num_signs = num_signs
        self._signs: tuple[Sign, ...] = ()
        self._state = ToyState("", 0, "")

    @property
    def task_ids(self) -> Sequence[str]:
        """Ids of the panel in a fixed order."""
        return self._task_ids

    def reset(self, task_id: str) -> TaskStart:
        """Stand at the first sign of a corridor. Raises TaskError for an id that is not in the panel."""
        if task_id not in self._task_ids:
            raise TaskError(unknown_name("task id", task_id, self._task_ids))
        self._signs = make_signs(task_id, self._num_signs)
        observation = self._signs[0].text
        self._state = ToyState(task_id, 0, f"{INSTRUCTION}\n{observation}\n>")
        return TaskStart(task_id, INSTRUCTION, observation)

    def prompt(self) -> str:
        """The transcript so far; each step only appends to it."""
        return self._state.transcript

    def step(self, completion: str) -> TaskStep:
        """Walk "go left" or "go right"; "think: ..." changes nothing, and neither does anything else."""
        task_id, position, transcript = self._state
        text = completion.strip()
        way = text.removeprefix("go ")
        reason = None
        if text.startswith("think:"):
            observation = "OK."
        elif position == len(self._signs) or text == way or way not in OPPOSITE:
            observation, reason = "Nothing happens.", f"expected 'go left' or 'go right', got {text!r}"
        else:
            position = position + 1 if way == self._signs[position].way else 0
            observation = self._signs[position].text if position < len(self._signs) else "You reach the exit."
        self._state = ToyState(task_id, position, f"{transcript} {text}\n{observation}\n>")
        success = position == len(self._signs)
        step_type = "think" if text.startswith("think:") else "action"
        return TaskStep(
            action=text,
            observation=observation,
            score=position / len(self._signs),
            done=success,
            success=success,
            step_type=step_type,
            invalid_reason=reason,
        )

    def snapshot(self) -> ToyState:
        """The state: an immutable tuple."""
        return self._state

    def restore(self, state: ToyState) -> None:
        """Go back to a snapshot of any corridor of the same length."""
        self._state = state
        self._signs = make_signs(state.task_id, self._num_signs)


def make_signs(task_id: str, num_signs: int) -> tuple[Sign, ...]:
    """The signs of a corridor, a pure function of its id: about a quarter has fallen, and at least one."""
    signs = []
    for index in range(num_signs):
        byte = hashlib.sha256(f"{task_id}/{index}".encode()).digest()[0]
        signs.append(Sign("left" if byte & 1 else "right", fallen=byte >> 6 == 0))
    if not any(sign.fallen for sign in signs):
        signs[num_signs // 2] = signs[num_signs // 2]._replace(fallen=True)
    return tuple(signs)


def best_actions(task_id: str, num_signs: int = 8) -> tuple[int, ...]:
    """The best routing of a corridor under `ANSWERS`: 1 (high) at fallen signs, 0 (low) elsewhere."""
    return tuple(int(sign.fallen) for sign in make_signs(task_id, num_signs))
