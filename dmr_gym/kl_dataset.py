"""The data set of KL supervision (paper section 4.2): what `agents/collect_kl.py` writes and `train_kl_st.py` reads.

Only the high precision acts in it, so every history is one that high precision has made; Appendix D of the paper is
about what that does to the scores of a router at deployment.

Shapes: M trajectories, S steps of all of them together, D embedding width, P precisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dmr_gym.episode import Turn
from dmr_gym.errors import ConfigError
from dmr_gym.kl import Direction, Reduction, Steps, action_tokens, step_kl
from dmr_gym.rollout import Trajectory
from dmr_gym.runs import write_atomically
from dmr_gym.types import Backend, DistributionRequest, FloatArray, IntArray, TokenDistributions

_TURNS_AT_ONCE = 8
"""Steps scored together: exact distributions take 600 kB a token and precision with a vocabulary of 150,000."""

_ARRAYS = ("rows", "kl_action", "kl_all", "lengths", "success", "completion_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class KLDataset:
    """Trajectories of the high precision with the KL of each lower precision at each step.

    Attributes:
        rows: (S, D) float32, the newest step embedding at each decision, trajectories one after the other.
        kl_action: (S, P - 1) float32 nats, reduced over the action block, in ascending precision.
        kl_all: (S, P - 1) float32 nats, reduced over all tokens of the completion.
        lengths: (M,) int64 steps of each trajectory; they sum to S.
        success: (M,) bool.
        completion_tokens: (S,) int64.
        step_types: S names.
        task_ids: M ids.
    """

    rows: FloatArray
    kl_action: FloatArray
    kl_all: FloatArray
    lengths: IntArray
    success: NDArray[np.bool_]
    completion_tokens: IntArray
    step_types: tuple[str, ...]
    task_ids: tuple[str, ...]

    def __len__(self) -> int:
        """Number of trajectories M."""
        return len(self.lengths)

    def split(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Cut an array over steps, (S, ...), into M arrays, one a trajectory."""
        return np.split(values, np.cumsum(self.lengths)[:-1])

    def kls(self, steps: Steps) -> FloatArray:
        """The KLs (S, P - 1) by which steps are labelled: "all" takes those over all tokens, others the action's."""
        return self.kl_all if steps == "all" else self.kl_action

    def save(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Write one safetensors file, whole or not at all.

        Args:
            path: of the file.
            settings: plain data that tells how the set was made; `read_settings` gives it back.
        """
        names = sorted(set(self.step_types))
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        tensors["step_types"] = np.array([names.index(name) for name in self.step_types], dtype=np.int64)
        record = {"step_types": names, "task_ids": self.task_ids, "settings": dict(settings)}
        metadata = {"kl_dataset": json.dumps(record, sort_keys=True)}
        write_atomically(path, lambda part: save_file(tensors, part, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> KLDataset:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is absent, damaged, or something else.
        """
        record = _read_record(path)
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in (*_ARRAYS, "step_types")}
        arrays["step_types"] = tuple(record["step_types"][code] for code in arrays["step_types"])
        return cls(**arrays, task_ids=tuple(record["task_ids"]))

    @classmethod
    def concatenate(cls, parts: Sequence[KLDataset]) -> KLDataset:
        """Join data sets, trajectories in order."""
        joined: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(part, field.name) for part in parts]
            joined[field.name] = np.concatenate(values) if field.name in _ARRAYS else sum(values, start=())
        return cls(**joined)


def label_trajectory(
    trajectory: Trajectory,
    backend: Backend,
    *,
    direction: Direction = "high_low",
    reduce: Reduction = "mean",
    top_k: int | None = None,
) -> KLDataset:
    """Measure at each step of an episode how far every lower precision is from the highest.

    Args:
        trajectory: an episode of the highest precision, with its turns.
        backend: scores the completions under every precision.
        direction: see `dmr_gym.kl.step_kl`.
        reduce: see `dmr_gym.kl.step_kl`.
        top_k: vocabulary entries kept a token; None is exact, less is a lower bound.

    Returns:
        A data set of one trajectory.
    """
    kls = turn_kls(trajectory.turns, backend, direction=direction, reduce=reduce, top_k=top_k)
    return KLDataset(
        rows=trajectory.rows[:-1],
        kl_action=kls[0],
        kl_all=kls[1],
        lengths=np.array([len(trajectory.turns)], dtype=np.int64),
        success=np.array([trajectory.success]),
        completion_tokens=trajectory.completion_tokens,
        step_types=trajectory.step_types,
        task_ids=(trajectory.key.task_id,),
    )


def turn_kls(
    turns: Sequence[Turn],
    backend: Backend,
    *,
    direction: Direction = "high_low",
    reduce: Reduction = "mean",
    top_k: int | None = None,
) -> FloatArray:
    """How far every lower precision is from the highest along what was said in each of T turns.

    Args:
        turns: of the highest precision.
        backend: scores the completions under every precision.
        direction: see `dmr_gym.kl.step_kl`.
        reduce: see `dmr_gym.kl.step_kl`.
        top_k: vocabulary entries kept a token; None is exact, less is a lower bound.

    Returns:
        (2, T, P - 1) float32 nats: over the tokens of the action, and over all of the completion.
    """
    kls = np.zeros((2, len(turns), len(backend.precisions) - 1), dtype=np.float32)
    for t, turn, (*lower_answers, high_answer) in _scored(turns, backend, top_k):
        if not len(high_answer.token_ids):
            continue  # nothing was said, so nothing can differ
        masks = (action_tokens(high_answer.tokens, turn.step.action), None)
        for p, answer in enumerate(lower_answers):
            for block, mask in enumerate(masks):
                kls[block, t, p] = step_kl(high_answer, answer, direction=direction, reduce=reduce, token_mask=mask)
    return kls


def _scored(
    turns: Sequence[Turn], backend: Backend, top_k: int | None
) -> Iterator[tuple[int, Turn, list[TokenDistributions]]]:
    """Yield each turn's index, the turn, and its completion under each precision in ascending order."""
    for start in range(0, len(turns), _TURNS_AT_ONCE):
        chunk = turns[start : start + _TURNS_AT_ONCE]
        requests = []
        for turn in chunk:
            completion = turn.completion
            stop = turn.request.sampling.stop[:1] if completion.finish_reason == "stop" else ()
            text = completion.text + "".join(stop)
            prompt, session = turn.request.prompt, turn.request.session
            requests += [DistributionRequest(prompt, text, name, top_k, session) for name in backend.precisions]
        answers = iter(backend.token_distributions(requests))
        for t, turn in enumerate(chunk, start):
            yield t, turn, [next(answers) for _ in backend.precisions]


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that a data set was saved with.

    Raises:
        ConfigError: the file is absent, damaged, or something else.
    """
    settings: dict[str, Any] = _read_record(path)["settings"]
    return settings


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no KL data set at {path}: agents/collect_kl.py writes one (--out)")
    try:
        with safe_open(path, framework="numpy") as file:
            record: dict[str, Any] = json.loads((file.metadata() or {})["kl_dataset"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is not a KL data set or is damaged; collect it again") from error
    return record
