"""The routing tree of one task: every state its episodes can reach, and what each precision does there.

Under greedy decoding an episode is a function of its task and of the precisions chosen, so all episodes of a task form
a tree. Where two histories lead to the same state, world, prompt and step number alike, their futures are equal and
the tree has one state for both: it is a directed acyclic graph whose edges go one step down.

Shapes: N states, P precisions, S texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dmr_gym.errors import ConfigError
from dmr_gym.runs import file_digest, write_atomically
from dmr_gym.types import IntArray

FORMAT = 1
INDEX_FILE = "index.json"
NOWHERE = -1
"""The child where the episode is over, or of a state at which no precision has answered yet."""

STATE_ARRAYS = {"depth": np.int64, "is_open": np.bool_}
EDGE_ARRAYS = {
    "child": np.int64,
    "over": np.bool_,
    "done": np.bool_,
    "success": np.bool_,
    "invalid": np.bool_,
    "score": np.float64,
    "prompt_tokens": np.int64,
    "completion_tokens": np.int64,
    "row": np.int64,
    "step_type": np.int64,
    "next_step_type": np.int64,
    "invalid_reason": np.int64,
}
"""Arrays of a tree and their types: over states (N,), and over the answers (N, P) of the precisions at each state."""


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTree:
    """States in the order in which they were found; the first is the start.

    Attributes:
        task_id: the task.
        precisions: P names in ascending order.
        max_steps: step cap of an episode.
        max_tokens: most completion tokens of a step.
        start_text: the first row of every history: instruction and first observation.
        start_step_type: type of the first step where the world fixes it beforehand; else "".
        depth: (N,) int64 steps before the state.
        is_open: (N,) bool, whether the budget ended before the precisions were asked there; what the arrays below hold
            for an open state means nothing.
        child: (N, P) int64 state after the step, `NOWHERE` where the episode is over.
        over: (N, P) bool, whether the step ends the episode.
        done: (N, P) bool, whether the world ends it, not the step cap.
        success: (N, P) bool, whether it solves the task.
        invalid: (N, P) bool, whether its action was not carried out.
        score: (N, P) float64 task score after it.
        prompt_tokens: (N, P) int64 of the call.
        completion_tokens: (N, P) int64 of the call.
        row: (N, P) int64, the text that the step adds to the history, an index into ``texts``.
        step_type: (N, P) int64, its type, an index into ``texts``.
        next_step_type: (N, P) int64, see `dmr_gym.types.TaskStep`, an index into ``texts``.
        invalid_reason: (N, P) int64, an index into ``texts``; that of "" where the action was valid.
        texts: S different texts.
        settings: plain data that tells how the tree was made.
    """

    task_id: str
    precisions: tuple[str, ...]
    max_steps: int
    max_tokens: int
    start_text: str
    start_step_type: str
    depth: IntArray
    is_open: NDArray[np.bool_]
    child: IntArray
    over: NDArray[np.bool_]
    done: NDArray[np.bool_]
    success: NDArray[np.bool_]
    invalid: NDArray[np.bool_]
    score: NDArray[np.float64]
    prompt_tokens: IntArray
    completion_tokens: IntArray
    row: IntArray
    step_type: IntArray
    next_step_type: IntArray
    invalid_reason: IntArray
    texts: tuple[str, ...]
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        """Number of states N."""
        return len(self.depth)

    @property
    def expanded(self) -> int:
        """Number of states at which every precision has answered."""
        return len(self) - int(self.is_open.sum())

    @property
    def is_complete(self) -> bool:
        """Whether the tree has every state that any routing can reach."""
        return not self.is_open.any()

    def agrees(self) -> NDArray[np.bool_]:
        """Where a precision takes the step that the highest takes: (N, P) bool; open states tell nothing."""
        arrays = (self.child, self.row, self.over)
        return np.asarray(np.logical_and.reduce([array == array[:, -1:] for array in arrays]))

    def same_step(self) -> NDArray[np.bool_]:
        """Where all precisions take the same step: (N,) bool, False at open states."""
        return np.asarray(self.agrees().all(axis=1) & ~self.is_open)

    def levels(self) -> list[IntArray]:
        """States by their depth, from the deepest to the start."""
        order = np.argsort(-self.depth, kind="stable")
        edges = np.flatnonzero(np.diff(self.depth[order])) + 1
        return np.split(order, edges)

    def path(self, actions: Sequence[int] | IntArray) -> IntArray:
        """States that an episode visits.

        Args:
            actions: T precision indices.

        Returns:
            T + 1 states, or T where the last step ends the episode: one for each decision, and the state after them.

        Raises:
            ConfigError: a step from an open state, or one after the end.
        """
        states = [0]
        for step, action in enumerate(actions):
            if len(states) == step:
                raise ConfigError(f"{self.task_id}: the episode is over after {step} steps, not {len(actions)}")
            if self.is_open[states[-1]]:
                raise ConfigError(f"{self.task_id}: step {step} starts at a state that the tree's budget left open")
            if not self.over[states[-1], action]:
                states.append(int(self.child[states[-1], action]))
        return np.array(states, dtype=np.int64)

    def fixed_path(self, precision: int) -> list[int]:
        """Actions of the episode in which one precision takes every step, as far as the tree has it."""
        return self.follow(np.full(len(self), precision))

    def follow(self, choices: IntArray, state: int = 0) -> list[int]:
        """Actions of the episode that takes a chosen precision at each state, as far as the tree has it.

        Args:
            choices: (N,) int64 precision indices; those at open states do not matter.
            state: where to begin.
        """
        actions: list[int] = []
        while state != NOWHERE and not self.is_open[state]:
            actions.append(int(choices[state]))
            state = int(self.child[state, actions[-1]])
        return actions

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in (*STATE_ARRAYS, *EDGE_ARRAYS)}
        record = {name: getattr(self, name) for name in _PLAIN} | {"settings": dict(self.settings), "format": FORMAT}
        metadata = {"routing_tree": json.dumps(record, sort_keys=True)}
        write_atomically(path, lambda part: save_file(tensors, part, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> RoutingTree:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is absent, damaged, something else, or of another format.
        """
        record = _read_record(path)
        settings = record.pop("settings")
        fields = record | {name: tuple(record[name]) for name in ("precisions", "texts")}
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in (*STATE_ARRAYS, *EDGE_ARRAYS)}
            return cls(**fields, **arrays, settings=settings)
        except (SafetensorError, TypeError) as error:
            raise ConfigError(f"{path} is a damaged routing tree; build it again") from error


_PLAIN = ("task_id", "precisions", "max_steps", "max_tokens", "start_text", "start_step_type", "texts")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a tree was saved with.

    Raises:
        ConfigError: as `RoutingTree.load`.
    """
    settings: dict[str, Any] = _read_record(path)["settings"]
    return settings


def load_trees(folder: Path, task_ids: Sequence[str] | None = None) -> list[RoutingTree]:
    """Read the trees of a folder that agents/build_trees.py wrote.

    Args:
        folder: holds index.json and the trees.
        task_ids: which, in this order; None takes all in the order of the index.

    Raises:
        ConfigError: no index, no tree of a task, or a file that cannot be read.
    """
    files = _index(folder)
    missing = [task_id for task_id in task_ids or () if task_id not in files]
    if missing:
        raise ConfigError(
            f"{folder} has no trees of {len(missing)} tasks, {missing[0]!r:.120} first: agents/build_trees.py --out "
            f"{folder} with more --tasks builds them"
        )
    return [RoutingTree.load(folder / files[task_id]) for task_id in (files if task_ids is None else task_ids)]


def trees_digest(folder: Path) -> str:
    """SHA-256 of all trees in a folder: another one after they were built with other limits.

    Raises:
        ConfigError: there are none, or a file is missing.
    """
    digests = {task_id: file_digest(folder / name) for task_id, name in _index(folder).items()}
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _index(folder: Path) -> dict[str, str]:
    path = folder / INDEX_FILE
    if not path.is_file():
        raise ConfigError(f"no routing trees in {folder}: agents/build_trees.py --out writes them")
    try:
        files: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["trees"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged: run agents/build_trees.py again, which writes it anew") from error
    return files


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no routing tree at {path}: agents/build_trees.py writes them")
    try:
        with safe_open(path, framework="numpy") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})["routing_tree"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a routing tree or is damaged; build it again") from error
    if record.pop("format", None) != FORMAT:
        raise ConfigError(f"{path} is a routing tree of another format than {FORMAT}: build it again")
    return record
