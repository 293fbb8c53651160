"""ALFWorld as a task: completions go in, the household answers, and the transcript becomes the next prompt."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.prompts import react, transcript
from dmr_gym.tasks.alfworld.engine import NOTHING_HAPPENS, AlfworldEngine
from dmr_gym.tasks.alfworld.games import GameSource, open_source
from dmr_gym.types import Prompt, TaskStart, TaskStep

ENGINES = ("native", "textworld")
PROMPT_STYLES = ("transcript", "react")
THOUGHT_ANSWER = "OK."
MAX_COMPLETION_CHARS = 1000
_PREFIX = re.compile(r"(?:>|\s|action\s*:)*", re.IGNORECASE)
_THOUGHT = re.compile(r"(?:think|thought)\s*:", re.IGNORECASE)
_PUT = re.compile(r"put (.+?) (?:in/on|into|onto|in|on) (.+)")


class Engine(Protocol):
    """What `AlfworldTask` needs of a world; the native engine and TextWorld's both have it."""

    @property
    def task(self) -> str:
        """The task sentence."""
        ...

    @property
    def task_type(self) -> str:
        """One of the six task types."""
        ...

    @property
    def walkthrough(self) -> tuple[str, ...]:
        """Commands that win."""
        ...

    @property
    def admissible(self) -> list[str]:
        """Commands that do something now, sorted."""
        ...

    @property
    def won(self) -> bool:
        """Whether the goal holds now."""
        ...

    def reset(self) -> str:
        """Start again; returns the introduction."""
        ...

    def step(self, command: str) -> str:
        """Carry out a command; returns the answer."""
        ...

    def inadmissible_reason(self, command: str) -> str | None:
        """Why a command does nothing; None when it does something."""
        ...

    def snapshot(self) -> Any:
        """The state of play."""
        ...

    def restore(self, state: Any) -> None:
        """Go back to a state."""
        ...


class Reading(NamedTuple):
    """What a completion says: the line as shown in the transcript, the command it means, and "action" or "think"."""

    line: str
    command: str
    step_type: str


@dataclass(frozen=True, slots=True)
class AlfworldState:
    """Snapshot of an episode: its task, the engine's state, and the transcript so far."""

    task_id: str
    engine_state: Any
    transcript: str


def read_completion(completion: str) -> Reading:
    """Read a completion's first line that is not blank.

    A leading ">" or "Action:" is dropped, ``put X in/on Y`` (also ``in``, ``on``, ``into``, ``onto``) means
    ``move X to Y``, and a line that begins with "think:" or "Thought:" is a thought. Unprintable characters become
    U+FFFD, and what exceeds `MAX_COMPLETION_CHARS` is cut off. Any text can be read.
    """
    stripped = completion[: 16 * MAX_COMPLETION_CHARS].lstrip()
    line = stripped.splitlines()[0] if stripped else ""
    line = _PREFIX.sub("", line, count=1)[:MAX_COMPLETION_CHARS].strip()
    line = "".join(char if char.isprintable() else "\ufffd" for char in line)
    if _THOUGHT.match(line):
        return Reading(line, line, "think")
    put = _PUT.fullmatch(line)
    return Reading(line, f"move {put[1]} to {put[2]}" if put else line, "action")


class AlfworldTask:
    """ALFWorld's household tasks, embedded or official. Implements `dmr_gym.types.Task`."""

    def __init__(
        self,
        source: str = "embedded",
        panel: str = "train",
        engine: str = "native",
        prompt_style: str = "transcript",
        n_games: int | None = None,
        cache_size: int = 64,
    ) -> None:
        """Choose the games; none is read yet.

        Args:
            source: "embedded", "official" (folder in ``ALFWORLD_DATA``), or the path of ALFWorld's data folder.
            panel: "train", "calibration", "validation" or "test"; official files also know "valid_seen" and
                "valid_unseen". See `dmr_gym.tasks.alfworld.panels`.
            engine: "native", or "textworld" for the reference engine (slow; needs ``dmr-gym[alfworld]``).
            prompt_style: "transcript" is the bare episode, for models trained on it; "react" puts two worked examples
                in front, for models from a hub.
            n_games: only the first so many games of the panel; None for all.
            cache_size: how many native games stay loaded; with TextWorld it is always one.

        Raises:
            ConfigError: an argument is unknown or out of range, or the folder holds no games.
        """
        _check(source, panel, engine, prompt_style, n_games, cache_size)
        self._games = open_source(source)
        self._task_ids = self._games.task_ids(panel, n_games)
        self._known = frozenset(self._task_ids)
        self._engine_kind, self._prompt_style = engine, prompt_style
        self._cache_size = cache_size if engine == "native" else 1
        self._cache: OrderedDict[str, Engine] = OrderedDict()
        self._engine: Engine | None = None
        self._task_id = self._head = self._transcript = ""

    @property
    def task_ids(self) -> Sequence[str]:
        """Ids of the panel in a fixed order."""
        return self._task_ids

    @property
    def engine(self) -> Engine:
        """The world of the current episode. Raises TaskError before the first `reset`."""
        if self._engine is None:
            raise TaskError("no episode yet: call reset(task_id) first")
        return self._engine

    def reset(self, task_id: str) -> TaskStart:
        """Begin an episode.

        Raises:
            TaskError: the id is not in the panel, or its game is broken.
        """
        engine = self._select(task_id)
        intro = engine.reset()
        self._transcript = transcript.initial(intro)
        return TaskStart(task_id, engine.task, transcript.strip_banner(intro))

    def prompt(self) -> Prompt:
        """The transcript so far, ending in ">"; each step appends to it and changes nothing before."""
        return self._head + self._transcript

    def step(self, completion: str) -> TaskStep:
        """Carry out a completion's first line. A thought is answered "OK." and leaves the world alone.

        Returns:
            ``score`` is 1.0 once the goal holds, else 0.0; ``invalid_reason`` says why a command did nothing.

        Raises:
            TaskError: there is no episode yet. No completion makes it raise.
        """
        engine = self.engine
        line, command, step_type = read_completion(completion)
        reason = None
        if step_type == "think":
            observation = THOUGHT_ANSWER
        else:
            reason = engine.inadmissible_reason(command)
            observation = engine.step(command).strip() if reason is None else NOTHING_HAPPENS
        self._transcript += transcript.turn(line, observation)
        won = engine.won
        return TaskStep(command, observation, float(won), won, won, step_type, reason)

    def snapshot(self) -> AlfworldState:
        """The episode's state, immutable."""
        return AlfworldState(self._task_id, self.engine.snapshot(), self._transcript)

    def restore(self, state: AlfworldState) -> None:
        """Go back to a state that `snapshot` returned, on this game or another of the panel."""
        self._select(state.task_id).restore(state.engine_state)
        self._transcript = state.transcript

    def _select(self, task_id: str) -> Engine:
        """Make a game the current one, from the cache or its source."""
        if task_id not in self._known:
            raise TaskError(f"{task_id!r:.120} is not in this panel of {len(self._known)} games; see task_ids")
        if task_id not in self._cache:
            self._engine = None
            while len(self._cache) >= self._cache_size:
                self._cache.popitem(last=False)
            self._cache[task_id] = _make_engine(self._games, task_id, self._engine_kind)
        self._cache.move_to_end(task_id)
        engine = self._cache[task_id]
        self._engine, self._task_id = engine, task_id
        self._head = react.head(engine.task_type) if self._prompt_style == "react" else ""
        return engine


def _make_engine(games: GameSource, task_id: str, kind: str) -> Engine:
    if kind == "native":
        return AlfworldEngine(games.world(task_id))
    from dmr_gym.tasks.alfworld.textworld import TextworldEngine

    game = games.read(task_id)
    return TextworldEngine(game.data, game.source, game.task_type)


def _check(
    source: object, panel: object, engine: object, prompt_style: object, n_games: object, cache_size: object
) -> None:
    """Settings come from configuration files, so their types are checked too."""
    for name, value, known in (("engine", engine, ENGINES), ("prompt_style", prompt_style, PROMPT_STYLES)):
        if value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}; found {value!r}")
    for name, text in (("source", source), ("panel", panel)):
        if not isinstance(text, str):
            raise ConfigError(f"{name} must be a string, found {text!r}")
    for name, number in (("n_games", n_games), ("cache_size", cache_size)):
        if type(number) is not int and not (name == "n_games" and number is None):
            raise ConfigError(f"{name} must be a whole number, found {number!r}")
        if name == "cache_size" and isinstance(number, int) and number < 1:
            raise ConfigError(f"{name} must be at least 1, found {number}")
