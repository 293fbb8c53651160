"""One routing tree while it grows: which state is next, what its answers lead to, and when it is done."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from dmr_gym.episode import Episode, EpisodeState
from dmr_gym.tree.graph import EDGE_ARRAYS, NOWHERE, RoutingTree
from dmr_gym.tree.values import Prices
from dmr_gym.types import Completion

Until = Literal["complete", "decided"]
UNTIL: tuple[Until, ...] = ("complete", "decided")


class Answer(NamedTuple):
    """What one precision does at a state; fields as the arrays of `RoutingTree`, and its price in seconds."""

    child: int
    over: bool
    done: bool
    success: bool
    invalid: bool
    score: float
    prompt_tokens: int
    completion_tokens: int
    row: int
    step_type: int
    next_step_type: int
    invalid_reason: int
    seconds: float


class Growth:
    """A tree while it grows.

    Args:
        episode: plays the steps; shared, so every use begins with restoring a state.
        prices: which states are cheap.
        task_id: of the panel.
        budget: most states to expand.
        until: see `dmr_gym.tree.build.grow_trees`.
    """

    def __init__(self, episode: Episode, prices: Prices, task_id: str, budget: int, until: Until) -> None:
        self.task_id = task_id
        self.expanded = 0
        self.is_done = False
        self._episode, self._prices, self._budget, self._until = episode, prices, budget, until
        self._texts: dict[str, int] = {}
        # Texts are embedded when the tree is played; until then any unit vector stands for them.
        self._unit = np.eye(1, episode.rules.dim, dtype=np.float32)[0]
        self._start_text = episode.begin(task_id, sample_index=0)
        episode.append(self._unit)
        assert episode.start is not None
        self._start_step_type = episode.start.next_step_type
        self._snapshots: list[EpisodeState | None] = []
        self._depth: list[int] = []
        self._seconds: list[float] = []  # least time in which each state can be reached
        self._answers: list[tuple[Answer, ...] | None] = []
        self._known: dict[Any, int] = {}
        self._cheapest: list[tuple[float, int]] = []
        self._success_s = math.inf
        self._lines = {p: 0 for p in reversed(range(len(episode.rules.precisions)))}
        start = episode.snapshot()
        self._enter(start, 0, state_key(start))
        self._reach(0, 0.0)

    def snapshot(self, state: int) -> EpisodeState:
        """The episode at an open state."""
        snapshot = self._snapshots[state]
        assert snapshot is not None
        return snapshot

    def choose(self, count: int) -> list[int]:
        """Open states to expand next, at most ``count`` and what the budget allows."""
        count = min(count, self._budget - self.expanded)
        chosen: list[int] = []
        for precision in list(self._lines):
            state = self._follow(precision)
            if state == NOWHERE:
                del self._lines[precision]
            elif state not in chosen:
                chosen.append(state)
        if self._lines:
            return chosen[:count]
        while len(chosen) < count and self._open_seconds() < math.inf:
            chosen.append(heapq.heappop(self._cheapest)[1])
        return chosen

    def expand(self, state: int, completions: Sequence[Completion]) -> None:
        """Carry out what each precision says at a state."""
        names = self._episode.rules.precisions
        steps: dict[str, Answer] = {}
        for precision, completion in enumerate(completions):
            if completion.text not in steps:
                steps[completion.text] = self._step(state, precision, completion)
        self._answers[state] = tuple(
            steps[completion.text]._replace(
                prompt_tokens=completion.prompt_tokens,
                completion_tokens=completion.completion_tokens,
                seconds=sum(
                    self._prices.seconds(names[precision], completion.prompt_tokens, completion.completion_tokens)
                ),
            )
            for precision, completion in enumerate(completions)
        )
        self._snapshots[state] = None
        self.expanded += 1
        self._relax(state)
        self.is_done = self.expanded >= self._budget or (not self._lines_left() and self._is_enough())

    def tree(self, settings: Mapping[str, Any]) -> RoutingTree:
        """The tree as it stands."""
        rules = self._episode.rules
        blank = Answer(NOWHERE, False, False, False, False, 0.0, 0, 0, 0, 0, 0, 0, 0.0)
        answers = [found or (blank,) * len(rules.precisions) for found in self._answers]
        return RoutingTree(
            task_id=self.task_id,
            precisions=rules.precisions,
            max_steps=rules.max_steps,
            max_tokens=rules.sampling.max_tokens,
            start_text=self._start_text,
            start_step_type=self._start_step_type,
            depth=np.array(self._depth, dtype=np.int64),
            is_open=np.array([found is None for found in self._answers], dtype=np.bool_),
            texts=tuple(self._texts),
            settings=settings,
            **{
                name: np.array([[getattr(one, name) for one in each] for each in answers], dtype=kind)
                for name, kind in EDGE_ARRAYS.items()
            },
        )

    def _step(self, state: int, precision: int, completion: Completion) -> Answer:
        episode = self._episode
        episode.restore(self.snapshot(state))
        row = episode.apply(episode.request(precision), completion)
        episode.append(self._unit)
        step, after = episode.turns[-1].step, episode.snapshot()
        child = NOWHERE
        if not after.over:
            key = state_key(after)
            child = self._known.get(key, NOWHERE)
            if child == NOWHERE:
                child = self._enter(after, self._depth[state] + 1, key)
        return Answer(
            child=child,
            over=after.over,
            done=step.done,
            success=step.success,
            invalid=step.invalid_reason is not None,
            score=float(step.score),
            prompt_tokens=0,
            completion_tokens=0,
            row=self._text(row),
            step_type=self._text(step.step_type),
            next_step_type=self._text(step.next_step_type),
            invalid_reason=self._text(step.invalid_reason or ""),
            seconds=0.0,
        )

    def _enter(self, snapshot: EpisodeState, depth: int, key: Any) -> int:
        state = self._known[key] = len(self._depth)
        self._snapshots.append(snapshot)
        self._depth.append(depth)
        self._seconds.append(math.inf)
        self._answers.append(None)
        return state

    def _reach(self, state: int, seconds: float) -> bool:
        """Note a way to a state; whether it is the quickest so far."""
        if seconds >= self._seconds[state]:
            return False
        self._seconds[state] = seconds
        if self._answers[state] is None:
            heapq.heappush(self._cheapest, (seconds, state))
        return True

    def _relax(self, state: int) -> None:
        """Carry the times of a state on to all that follow it."""
        changed = [state]
        while changed:
            state = changed.pop()
            for answer in self._answers[state] or ():
                seconds = self._seconds[state] + answer.seconds
                if answer.success:
                    self._success_s = min(self._success_s, seconds)
                elif not answer.over and self._reach(answer.child, seconds):
                    changed.append(answer.child)

    def _open_seconds(self) -> float:
        """Least time to a state that is open and not chosen; infinite where there is none."""
        heap = self._cheapest
        while heap and (self._answers[heap[0][1]] is not None or heap[0][0] != self._seconds[heap[0][1]]):
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def _is_enough(self) -> bool:
        open_s = self._open_seconds()
        if self._until == "complete" or open_s == math.inf:
            return open_s == math.inf
        return open_s >= max(self._success_s, self._alone_s())

    def _alone_s(self) -> float:
        """Time of the highest precision's own episode where it succeeds, else 0."""
        seconds, state = 0.0, 0
        while True:
            answers = self._answers[state]
            assert answers is not None
            seconds += answers[-1].seconds
            if answers[-1].over:
                return seconds if answers[-1].success else 0.0
            state = answers[-1].child

    def _lines_left(self) -> bool:
        return any(self._follow(precision) != NOWHERE for precision in self._lines)

    def _follow(self, precision: int) -> int:
        """Where the episode that one precision plays alone gets to; `NOWHERE` once it is over."""
        state = self._lines[precision]
        while state != NOWHERE and (answers := self._answers[state]) is not None:
            state = answers[precision].child
        self._lines[precision] = state
        return state

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))


def state_key(state: EpisodeState) -> Any:
    """A key that two states of a task share only if their futures are equal.

    It is the number of steps and the task's own snapshot, which holds all that `Task.restore` needs: what the world and
    the prompts to come depend on. Where a snapshot holds anything that cannot be compared by value, the key is the
    history of completions instead, and only equal histories merge.
    """
    try:
        return len(state.turns), _comparable(state.task)
    except TypeError:
        return tuple(turn.completion.text for turn in state.turns)


def _comparable(value: Any) -> Any:
    """A hashable stand-in, equal for equal values. Raises TypeError for a value that has none."""
    try:
        hash(value)
        return value
    except TypeError:
        pass
    if is_dataclass(value):
        return type(value), *(_comparable(getattr(value, entry.name)) for entry in fields(value))
    if isinstance(value, Mapping):
        return type(value), frozenset((key, _comparable(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), *map(_comparable, value)
    if isinstance(value, set):
        return set, frozenset(value)
    raise TypeError(f"no value to compare by: {type(value).__name__}")
