"""The record of an evaluation: ``episodes.jsonl``, one JSON object a line, one episode each with all of its steps.

Tables, pictures and reports are drawn from it alone. docs/evaluation.md describes every key.

Shapes: T steps, P precisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.errors import ConfigError
from dmr_gym.metrics import EpisodeResult
from dmr_gym.rollout import Trajectory
from dmr_gym.types import Completion, TaskStep

FORMAT = 1
"""Raised whenever a key of a record changes its meaning."""

Record = dict[str, Any]


def episode_record(trajectory: Trajectory, *, texts: bool = True) -> Record:
    """Reduce an episode to plain data.

    Args:
        trajectory: with its turns.
        texts: whether observations, actions and completions are kept.
    """
    t, steps = trajectory, []
    for i, turn in enumerate(t.turns):
        called = bool(t.router_called[i])
        step: Record = {
            "precision": int(t.actions[i]),
            "router_called": called,
            "p_high": None if np.isnan(t.p_high[i]) else float(t.p_high[i]),
            "step_type": t.step_types[i],
            "latency_llm_s": float(t.latency_llm_s[i]),
            "latency_router_s": float(t.latency_router_s[i]) if called else 0.0,
            "prompt_tokens": int(t.prompt_tokens[i]),
            "completion_tokens": int(t.completion_tokens[i]),
            "invalid_action": turn.step.invalid_reason is not None,
        }
        if texts:
            step |= said(turn.completion, turn.step)
        steps.append(step)
    last = t.turns[-1].step
    record: Record = {
        "format": FORMAT,
        "task_id": t.key.task_id,
        "seed": t.key.repeat,
        "success": t.success,
        "score": t.score,
        "time_s": t.time_s,
        "cap_reached": not (last.success or last.done),
    }
    if texts and t.start is not None:
        record |= {"instruction": t.start.instruction, "observation": t.start.observation}
    return record | {"steps": steps}


@dataclass(frozen=True)
class PlayedPolicy:
    """One policy of a record, with its episodes.

    Attributes:
        name: of the policy.
        kind: "high", "low", "router", "start", "grpo", "ppo" or "random".
        like: for random routing, the policy whose shares it has; else None.
        budget: K of a calibrated threshold, or None.
        lambda_: λ that it was trained with, or None.
        episodes: in the order of the file.
    """

    name: str
    kind: str
    like: str | None
    budget: float | None
    lambda_: float | None
    episodes: tuple[EpisodeResult, ...]


def read_records(path: Path) -> Iterator[Record]:
    """Yield the objects of ``episodes.jsonl``, one at a time: a file can be larger than memory.

    Raises:
        ConfigError: no such file, a line that is no record, or one of another format.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = json.loads(line)
                    found = record["format"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(f"{path}, line {number}: not the record of an episode") from error
                if found != FORMAT:
                    raise ConfigError(
                        f"{path}, line {number} has format {found}, expected {FORMAT}: run agents/evaluate.py again"
                    )
                yield record
    except OSError as error:
        raise ConfigError(f"no record of episodes at {path}: agents/evaluate.py writes one (--out)") from error


def read_policies(path: Path, n_precisions: int) -> list[PlayedPolicy]:
    """Read ``episodes.jsonl`` as an evaluation needs it, policies in the order of the file.

    Args:
        path: of the file.
        n_precisions: P.

    Raises:
        ConfigError: see `read_records`.
    """
    heads: dict[str, Record] = {}
    episodes: dict[str, list[EpisodeResult]] = {}
    for record in read_records(path):
        name = record["policy"]
        heads.setdefault(name, record)
        episodes.setdefault(name, []).append(episode_result(record, n_precisions))
    return [
        PlayedPolicy(name, head["kind"], head["like"], head["budget"], head["lambda"], tuple(episodes[name]))
        for name, head in heads.items()
    ]


def episode_result(record: Mapping[str, Any], n_precisions: int) -> EpisodeResult:
    """What an evaluation needs of one record."""
    precisions = [step["precision"] for step in record["steps"]]
    return EpisodeResult(
        task_id=record["task_id"],
        success=record["success"],
        time_s=record["time_s"],
        precision_steps=tuple(np.bincount(precisions, minlength=n_precisions).tolist()),
        completion_tokens=sum(step["completion_tokens"] for step in record["steps"]),
        seed=record["seed"],
        score=record["score"],
    )


def said(completion: Completion, step: TaskStep) -> Record:
    """The texts of a step: what was said, how it was read, and what came of it."""
    return {
        "action": step.action,
        "observation": step.observation,
        "completion": completion.text,
        "invalid_reason": step.invalid_reason,
    }
