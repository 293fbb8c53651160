"""The reference engine: ALFWorld's own games played by TextWorld, behind the face of `AlfworldEngine`.

Use it to check the native engine; it is thousands of times slower. TextWorld evaluates Python that it finds in a game's
``grammar``, so only give it files you trust (the native engine evaluates nothing). What it does about TextWorld's ways:

- parsers at module level break under threads: one lock around every call;
- loading overwrites ``sys.argv``: saved and put back;
- every environment object maps a 33 MB library and never frees it: a game that is no longer used hands its environment
  to the next one;
- PDDL mistakes end the process with SystemExit: they become TaskError;
- "Nothing happens." gives no reason: the native engine, led along, gives it.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dmr_gym.errors import MissingDependency, TaskError
from dmr_gym.tasks.alfworld.engine import AlfworldEngine

_LOCK = threading.RLock()
_IDLE: list[Any] = []

Commands = tuple[str, ...]


class TextworldEngine:
    """One game in TextWorld. `snapshot` is the list of commands so far, and `restore` plays it again."""

    def __init__(self, data: Mapping[str, Any], source: str = "game", task_type: str | None = None) -> None:
        """Load a game.

        Args:
            data: JSON object of a ``game.tw-pddl`` file.
            source: file name or id, named in errors.
            task_type: checked against the goal when given.

        Raises:
            MissingDependency: the package ``alfworld`` is not installed.
            TaskError: the game is broken.
        """
        self._native = AlfworldEngine.from_json(data, source, task_type)
        for key in ("pddl_domain", "grammar", "pddl_problem"):
            if not isinstance(data.get(key), str):
                raise TaskError(f"{source}: key {key!r} must be a string, found {type(data.get(key)).__name__}")
        self._source = source
        self._commands: list[str] = []
        self._state: Any = None
        with _LOCK:
            self._env = _IDLE.pop() if _IDLE else _make_environment()
            weakref.finalize(self, _IDLE.append, self._env)
            with _tamed(source):
                self._env.load(dict(data))

    @property
    def task(self) -> str:
        """The task sentence."""
        return self._native.task

    @property
    def task_type(self) -> str:
        """One of ALFWorld's six task types."""
        return self._native.task_type

    @property
    def walkthrough(self) -> tuple[str, ...]:
        """Commands that win the game."""
        return self._native.walkthrough

    @property
    def admissible(self) -> list[str]:
        """The commands that do something now, sorted."""
        return list(self._current()["admissible_commands"])

    @property
    def won(self) -> bool:
        """Whether the goal holds now."""
        return bool(self._current()["won"])

    def reset(self) -> str:
        """Go back to the start and return the intro."""
        with _LOCK, _tamed(self._source):
            self._state = self._env.reset()
        self._native.reset()
        self._commands.clear()
        return str(self._state.feedback).rstrip()

    def step(self, command: str) -> str:
        """Carry out a command; an inadmissible one is answered "Nothing happens."."""
        self._current()
        with _LOCK, _tamed(self._source):
            self._state, _, _ = self._env.step(command)
        self._native.step(command)
        self._commands.append(command)
        return str(self._state.feedback)

    def inadmissible_reason(self, command: str) -> str | None:
        """Why a command would be answered "Nothing happens."; None when it is admissible."""
        if command.strip() in self._current()["admissible_commands"]:
            return None
        return self._native.inadmissible_reason(command) or "not admissible here"

    def snapshot(self) -> Commands:
        """The commands since `reset`."""
        return tuple(self._commands)

    def restore(self, state: Commands) -> None:
        """Play the commands of a snapshot again, or only those that are missing."""
        done = len(self._commands)
        if self._state is None or tuple(self._commands) != state[:done]:
            self.reset()
            done = 0
        for command in state[done:]:
            self.step(command)

    def _current(self) -> Any:
        if self._state is None:
            self.reset()
        return self._state


def _make_environment() -> Any:
    try:
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
        from textworld import EnvInfos
        from textworld.envs.pddl import PddlEnv
    except ImportError as error:
        raise MissingDependency("alfworld", "alfworld", 'engine="textworld"') from error
    return AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True)), shuffle=False)


@contextmanager
def _tamed(source: str) -> Iterator[None]:
    """Keep ``sys.argv``, and turn whatever TextWorld dies of into a TaskError."""
    arguments = sys.argv
    try:
        yield
    except SystemExit as error:
        raise TaskError(f"{source}: TextWorld rejects the PDDL of this game (exit status {error.code})") from error
    except Exception as error:
        raise TaskError(f"{source}: TextWorld cannot play this game: {type(error).__name__}: {error}") from error
    finally:
        sys.argv = arguments
