"""What else could have been done: the answer of every precision at each step of recorded episodes.

An evaluation keeps them in ``alternatives.jsonl``, one JSON object a line, one episode each. docs/evaluation.md
describes every key.

Shapes: T steps, P precisions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dmr_gym.episode import Turn
from dmr_gym.errors import ConfigError
from dmr_gym.kl_dataset import turn_kls
from dmr_gym.records import Record, read_records, said
from dmr_gym.types import Backend, Completion, Request, SamplingParams, Task

ALTERNATIVES_FILE = "alternatives.jsonl"

ALL = "all"

LARGEST_KL = 1e4
"""What an infinite KL is written as, in nats."""


class Alternatives:
    """Asks every precision at each state of recorded episodes, and carries out each answer for one step.

    Policies share many states, so each state is asked about once. The KL is the one that KL-ST learns from
    (`dmr_gym.kl_dataset.turn_kls`): of each lower precision to the highest, along the highest's answer.

    Args:
        task: a world of the episodes' panel, which nobody else uses.
        backend: the LLM copies.
        sampling: how completions are decoded.
    """

    def __init__(self, task: Task, backend: Backend, sampling: SamplingParams) -> None:
        self._task, self._backend, self._sampling = task, backend, sampling
        self._known: dict[tuple[object, ...], list[Record]] = {}

    def of(self, record: Record) -> list[list[Record]]:
        """What each precision would have done at each step of an episode, in the state that the episode was in.

        Args:
            record: of `dmr_gym.records.episode_record`, with texts.

        Returns:
            T lists of P objects in ascending precision: action, observation, completion, invalid_reason, success, and
            kl in nats, None for the highest and at most `LARGEST_KL`, as JSON has no infinity.
        """
        states = self._states(record)
        if any(state not in self._known for state in states):
            self._ask(record, states)
        return [self._known[state] for state in states]

    def remember(self, record: Record, found: Sequence[list[Record]]) -> None:
        """Take what `of` said of an episode earlier, so that its states are not asked about again."""
        self._known.update(zip(self._states(record), found, strict=True))

    def _states(self, record: Record) -> list[tuple[object, ...]]:
        """A state is what was said before it; sampled answers depend on the seed too."""
        seed = record["seed"] if self._sampling.temperature > 0 else 0
        completions = [step["completion"] for step in record["steps"]]
        return [(record["task_id"], seed, *completions[:t]) for t in range(len(completions))]

    def _ask(self, record: Record, states: Sequence[tuple[object, ...]]) -> None:
        task, names, seed = self._task, self._backend.precisions, record["seed"]
        task.reset(record["task_id"])
        worlds, requests, unknown = [], [], []
        for state, step in zip(states, record["steps"], strict=True):
            if state not in self._known:
                call = Request(task.prompt(), names[-1], self._sampling, seed, f"{record['task_id']}#{seed}")
                requests.append(call)
                worlds.append(task.snapshot())
                unknown.append(state)
            task.step(step["completion"])
        calls = [replace(request, precision=name) for request in requests for name in names]
        answers = iter(self._backend.generate(calls))
        found, turns = [], []
        for request, world in zip(requests, worlds, strict=True):
            each = [self._carry_out(world, request, next(answers)) for _ in names]
            turns.append(each[-1])
            found.append([said(turn.completion, turn.step) | {"success": turn.step.success} for turn in each])
        kls = turn_kls(turns, self._backend)[0]  # (T, P - 1)
        for state, alternatives, row in zip(unknown, found, kls.tolist(), strict=True):
            for alternative, kl in zip(alternatives, [*row, None], strict=True):
                alternative["kl"] = None if kl is None else min(kl, LARGEST_KL)
            self._known[state] = alternatives

    def _carry_out(self, world: object, request: Request, completion: Completion) -> Turn:
        """What an answer does in a state of the world, which stays as it is; its price is left out."""
        self._task.restore(world)
        return Turn(request, completion, self._task.step(completion.text), 0.0, 0.0, 0.0)


def add_alternatives_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--alternatives [N]``, which `check_alternatives` and `chosen_tasks` read."""
    parser.add_argument(
        "--alternatives",
        nargs="?",
        const=ALL,
        metavar="N",
        help="record what every precision would have done at each step of the first N tasks (default: of all), and its "
        "KL; costs LLM calls",
    )


def check_alternatives(args: argparse.Namespace) -> None:
    """Raise ConfigError where alternatives cannot be had."""
    if args.alternatives is None:
        return
    if args.trees is not None:
        raise ConfigError("--alternatives asks the LLM, which trees stand for: leave --trees out")
    if args.no_texts:
        raise ConfigError("--alternatives are texts: leave --no-texts out")
    if args.alternatives != ALL and not (args.alternatives.isdecimal() and int(args.alternatives)):
        raise ConfigError(f"--alternatives takes a number of tasks of at least 1, or {ALL}, got {args.alternatives!r}")


def chosen_tasks(number: str, task_ids: Sequence[str]) -> Sequence[str]:
    """The tasks that the value of ``--alternatives`` stands for."""
    return task_ids if number == ALL else task_ids[: int(number)]


def read_alternatives(path: Path) -> dict[tuple[str, str, int], list[list[Record]]]:
    """Read ``alternatives.jsonl``: by policy, task and seed, what every precision would have done at each step.

    Raises:
        ConfigError: a file that holds something else, see `dmr_gym.records.read_records`.
    """
    if not path.is_file():
        return {}
    return {(line["policy"], line["task_id"], line["seed"]): line["steps"] for line in read_records(path)}
