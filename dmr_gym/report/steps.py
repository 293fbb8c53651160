"""Episodes for the step viewer: states that episodes share, and what each precision does there.

In one state of a task a precision does one thing, so what a precision that was not chosen would have done is often
known from another episode, which was in the same state and chose it. Where an evaluation has asked every precision
(``--alternatives``), or a routing tree is there, it is known everywhere.

Shapes: P precisions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dmr_gym.records import Record
from dmr_gym.report.records import ViewerRecord
from dmr_gym.report.trees import TreeOutcomes

LONGEST_TEXT = 6_000
"""Characters of a text that a page keeps."""

NONE = -1
GOES_ON, SOLVED, ENDED = 0, 1, 2

Alternatives = Mapping[tuple[str, str, int], list[list[Record]]]
Answer = list[Any]
_KL, _PLAYED, _TREE, _SOURCE = 7, 8, 9, 10  # places in an answer, see `ViewerRecord`


class Numbers:
    """Numbers things in the order in which they come, each once."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def __call__(self, thing: str) -> int:
        """The number of a thing."""
        return self.of.setdefault(thing, len(self.of))


class Texts:
    """Numbers texts, and cuts long ones; ``cut`` counts them."""

    def __init__(self) -> None:
        self.numbers, self.cut = Numbers(), 0

    def __call__(self, text: str | None) -> int:
        """The number of a text, `NONE` where there is none."""
        if text is None:
            return NONE
        if len(text) > LONGEST_TEXT:
            text = f"{text[:LONGEST_TEXT]} … ({len(text) - LONGEST_TEXT:,} more characters are left out here)"
            self.cut += text not in self.numbers.of
        return self.numbers(text)


class Viewer:
    """Gathers episodes, states and answers.

    Args:
        n_precisions: P.
        greedy: whether an episode is a function of its task and precisions; drawn answers belong to their seed.
    """

    def __init__(self, n_precisions: int, greedy: bool) -> None:
        self._n, self._greedy = n_precisions, greedy
        self._texts, self._policies, self._tasks, self._types = Texts(), Numbers(), Numbers(), Numbers()
        self._states: list[list[Answer | None]] = []
        self._known: dict[Any, int] = {}
        self._episodes: list[list[Any]] = []
        self._asked: set[str] = set()
        self._grown: set[str] = set()

    def add(
        self,
        record: Record,
        others: Sequence[Sequence[Record]] | None = None,
        outcomes: TreeOutcomes | None = None,
        kls: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Add an episode.

        Args:
            record: of ``episodes.jsonl``.
            others: what every precision would have done at each step, if it was asked.
            outcomes: of the task's routing tree, if there is one.
            kls: of each lower precision at each step, in nats, if they are known.
        """
        steps, number = record["steps"], len(self._episodes)
        if others is not None and not fits(others, steps):
            others = None
        path = None if outcomes is None else tree_path(outcomes, steps)
        self._asked |= {record["task_id"]} if others is not None else set()
        self._grown |= {record["task_id"]} if path is not None else set()
        rows: list[list[Any]] = []
        before: list[Any] = []
        for t, step in enumerate(steps):
            state = self._state(record, before)
            answer = self._answer(step, GOES_ON if t + 1 < len(steps) else SOLVED if record["success"] else ENDED)
            held = self._states[state][step["precision"]]
            if held is not None and held[0] != NONE and held[:2] != answer[:2]:  # a server that does not repeat itself
                state = self._state(record, [*before, ("alone", number)])
                held = self._states[state][step["precision"]]
            self._put(state, step["precision"], answer)
            held = self._states[state][step["precision"]]
            assert held is not None
            held[_PLAYED] = held[_PLAYED] or [number, t]
            held[:7] = answer[:7]
            held[_SOURCE] = "played"
            for p, other in enumerate(() if others is None else others[t]):
                self._put(state, p, self._asked_answer(other))
            if outcomes is not None and path is not None:
                self._add_tree(state, outcomes, path[t])
            for p, kl in enumerate(() if kls is None else kls[t]):
                self._put_kl(state, p, kl)
            called, score = int(step["router_called"]), step.get("p_high")
            prices = (_round(step["latency_llm_s"]), _round(step["latency_router_s"]))
            rows.append([state, step["precision"], called, _round(score), *prices, self._types(step["step_type"])])
            before.append(mark(step))
        head = [self._policies(record["policy"]), self._tasks(record["task_id"]), record["seed"]]
        head += [int(record["success"]), _round(record["score"]), _round(record["time_s"]), int(record["cap_reached"])]
        texts = [self._texts(record.get(name)) for name in ("instruction", "observation")]
        self._episodes.append([*head, *texts, rows])

    def record(self, left_out: int) -> ViewerRecord:
        """All that was added; ``left_out`` counts the tasks that were not."""
        return ViewerRecord(
            strings=tuple(self._texts.numbers.of),
            policies=tuple(self._policies.of),
            tasks=tuple(self._tasks.of),
            types=tuple(self._types.of),
            states=tuple(self._states),
            episodes=tuple(self._episodes),
            left_out=left_out,
            cut=self._texts.cut,
            asked_tasks=len(self._asked),
            tree_tasks=len(self._grown),
        )

    def _state(self, record: Record, before: Sequence[Any]) -> int:
        key = (record["task_id"], 0 if self._greedy else record["seed"], *before)
        if key not in self._known:
            self._known[key] = len(self._states)
            self._states.append([None] * self._n)
        return self._known[key]

    def _answer(self, step: Record, end: int) -> Answer:
        texts = [self._texts(step.get(name)) for name in ("action", "observation", "completion", "invalid_reason")]
        return [*texts, end, step["prompt_tokens"], step["completion_tokens"], None, None, None, "played"]

    def _asked_answer(self, other: Record) -> Answer:
        texts = [self._texts(other[name]) for name in ("action", "observation", "completion", "invalid_reason")]
        end = SOLVED if other["success"] else GOES_ON
        return [*texts, end, None, None, _round(other["kl"]), None, None, "asked"]

    def _add_tree(self, state: int, outcomes: TreeOutcomes, place: int) -> None:
        tree = outcomes.tree
        for p in range(self._n):
            action, observation, numbers = outcomes.answer(place, p)
            reason = tree.texts[int(tree.invalid_reason[place, p])] or None
            texts = [self._texts(action), self._texts(observation), NONE, self._texts(reason)]
            end = SOLVED if tree.success[place, p] else ENDED if tree.over[place, p] else GOES_ON
            counts = [int(tree.prompt_tokens[place, p]), int(tree.completion_tokens[place, p])]
            self._put(state, p, [*texts, end, *counts, None, None, None, "tree"])
            held = self._states[state][p]
            assert held is not None
            held[_TREE] = [_round(number) for number in numbers]

    def _put(self, state: int, precision: int, answer: Answer) -> None:
        """Note an answer where none is known yet; a KL is taken over in any case."""
        held = self._states[state][precision]
        is_known = held is not None and held[_SOURCE] != "unknown"
        kept, other = (held, answer) if is_known else (answer, held)
        assert kept is not None
        if other is not None and kept[_KL] is None:
            kept[_KL] = other[_KL]
        self._states[state][precision] = kept

    def _put_kl(self, state: int, precision: int, kl: float) -> None:
        self._put(state, precision, [*[NONE] * 4, GOES_ON, None, None, _round(kl), None, None, "unknown"])


def mark(step: Record) -> Any:
    """What tells a step from another one in the same state: its texts, or without texts its precision."""
    return (step["completion"], step["action"], step["observation"]) if "action" in step else step["precision"]


def fits(others: Sequence[Sequence[Record]], steps: Sequence[Record]) -> bool:
    """Whether alternatives are of these very steps, and not of an earlier evaluation in the same folder."""
    if len(others) != len(steps):
        return False
    return all(
        each[step["precision"]]["action"] == step.get("action") for each, step in zip(others, steps, strict=True)
    )


def tree_path(outcomes: TreeOutcomes, steps: Sequence[Record]) -> list[int] | None:
    """States of the tree at each step of an episode; None where it leaves what the tree has, or does something else."""
    tree, place, path = outcomes.tree, 0, []
    for t, step in enumerate(steps):
        if place < 0 or tree.is_open[place]:
            return None
        path.append(place)
        said = outcomes.answer(place, step["precision"])[:2]
        if "action" in step and said[0] != step["action"].partition("\n")[0]:
            return None
        over = bool(tree.over[place, step["precision"]])
        if over is not (t + 1 == len(steps)):
            return None
        place = int(tree.child[place, step["precision"]])
    return path


def choose_tasks(sizes: Mapping[str, int], budget: int) -> list[str]:
    """The first tasks whose sizes fit into a budget together; at least one."""
    chosen: list[str] = []
    total = 0
    for task, size in sizes.items():
        total += size
        if chosen and total > budget:
            break
        chosen.append(task)
    return chosen


def gather(
    records: Iterable[Record],
    tasks: Sequence[str],
    n_precisions: int,
    greedy: bool,
    alternatives: Alternatives,
    trees: Mapping[str, TreeOutcomes],
    kls: Mapping[str, Sequence[Sequence[float]]],
    left_out: int,
) -> ViewerRecord:
    """Put the episodes of some tasks into one record.

    Args:
        records: of ``episodes.jsonl``.
        tasks: which.
        n_precisions: P.
        greedy: see `Viewer`.
        alternatives: by policy, task and seed.
        trees: by task.
        kls: of the steps of the highest precision's episode of a task, in nats.
        left_out: tasks that are not shown.
    """
    viewer, chosen = Viewer(n_precisions, greedy), set(tasks)
    for record in records:
        task = record["task_id"]
        if task not in chosen:
            continue
        known = kls.get(task) if record["kind"] == "high" else None
        if known is not None and len(known) != len(record["steps"]):
            known = None
        viewer.add(record, alternatives.get((record["policy"], task, record["seed"])), trees.get(task), known)
    return viewer.record(left_out)


def size_of(viewer: ViewerRecord) -> int:
    """Bytes of a record's JSON, roughly."""
    return len(json.dumps([viewer.strings, viewer.states, viewer.episodes], separators=(",", ":")))


def _round(value: float | None) -> float | None:
    """Five significant digits: a page shows fewer."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
