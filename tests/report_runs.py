"""Runs made by hand for a report: an evaluation with any texts, and the records of its episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmr_gym.config import EnvConfig
from dmr_gym.records import FORMAT, read_policies
from dmr_gym.results import tabulate
from dmr_gym.runs import write_json

Record = dict[str, Any]
PRICES = {"w2": 10.0, "w4": 15.0, "bf16": 20.0}


def step(precision: int, action: str, observation: str, **changes: Any) -> Record:
    """A step as ``episodes.jsonl`` has it."""
    found = {"precision": precision, "router_called": False, "p_high": None, "step_type": "action"}
    found |= {"latency_llm_s": 0.1, "latency_router_s": 0.0, "prompt_tokens": 20, "completion_tokens": 3}
    found |= {"invalid_action": False, "action": action, "observation": observation}
    return found | {"completion": f" {action}", "invalid_reason": None} | changes


def episode(policy: str, kind: str, task: str, steps: Sequence[Record], **changes: Any) -> Record:
    """An episode as ``episodes.jsonl`` has it; it solves its task."""
    record = {"format": FORMAT, "policy": policy, "kind": kind, "like": None, "budget": None, "lambda": None}
    record |= {"task_id": task, "seed": 0, "success": True, "score": 1.0, "cap_reached": False}
    record |= {"time_s": sum(each["latency_llm_s"] + each["latency_router_s"] for each in steps)}
    return record | {"instruction": "do it", "observation": "a room", "steps": list(steps)} | changes


def write_evaluation(
    folder: Path, records: Sequence[Record], precisions: Sequence[str] = ("w2", "bf16"), **changes: Any
) -> Path:
    """Write episodes and the results of them into a folder, as agents/evaluate.py does."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "episodes.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    prices = {name: PRICES[name] for name in precisions}
    latency: Mapping[str, Any] = {"ms_per_token": prices, "router_ms": 1.0}
    env = asdict(EnvConfig(task="toy", precisions=tuple(precisions), latency=latency, lambda_=0.1))
    data = tabulate(read_policies(path, len(precisions)), 0.1, 50).data
    entry = {"settings": {"panel": "test"}, "env_id": "DMR-Toy-v0", "env": env, "precisions": list(precisions)}
    entry |= {"latency": {"row": None, "projected": False, "label": "prices of your own"}}
    entry |= {"models": dict.fromkeys(precisions, "digest"), "versions": {"numpy": "2"}, "git": "abc", "python": "3.11"}
    write_json(folder / "results.json", entry | data | changes)
    (folder / "journal.jsonl").touch()
    return folder


def two_ways(task: str = "t0") -> list[Record]:
    """High goes right and solves; low goes left, then both go right; a router goes right, low, then high.

    High and the router share the first state, and after it the second.
    """
    right, left, end = ("go right", "a hall"), ("go left", "a wall"), ("go on", "the exit")
    asked = {"router_called": True, "latency_router_s": 0.01}
    return [
        episode("always bf16", "high", task, [step(1, *right), step(1, *end)]),
        episode("always w2", "low", task, [step(0, *left), step(0, *left)], success=False, score=0.0, cap_reached=True),
        episode(
            "router p≥0.5",
            "router",
            task,
            [step(1, *right, p_high=0.75, **asked), step(0, "go on", "the exit", p_high=0.25, **asked)],
        ),
    ]
