"""Read all runs, world by world, and say what they lack."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from dmr_gym.report.evaluation import read_evaluation
from dmr_gym.report.kl import read_kls
from dmr_gym.report.records import MissingRecord, WorldRecord
from dmr_gym.report.runs import Run, read_object
from dmr_gym.report.training import read_training

_REPEATED = ("set", "grpo", "ppo")
"""Options of agents/evaluate.py that may be given more than once."""


def read_worlds(runs: Sequence[Run], budget: int) -> list[WorldRecord]:
    """Gather runs of the same world and precisions; a run that does not tell its world joins the only one, if it can.

    Args:
        runs: of `dmr_gym.report.runs.find_runs`.
        budget: bytes that the episodes of all evaluations may take together.

    Raises:
        ConfigError: damaged files.
    """
    keys = list(dict.fromkeys((run.task, run.precisions) for run in runs if run.task))
    keys = keys if len(keys) == 1 else [*keys, *({("", ())} if any(not run.task for run in runs) else ())]
    share = budget // max(1, sum(run.kind == "evaluation" for run in runs))
    worlds = []
    for task, precisions in keys:
        mine = [
            run for run in runs if (run.task, run.precisions) == (task, precisions) or (not run.task and len(keys) == 1)
        ]
        worlds.append(_world(task, precisions, mine, share))
    return worlds


def _world(task: str, precisions: tuple[str, ...], runs: Sequence[Run], budget: int) -> WorldRecord:
    titles = [run.env_id for run in runs if run.env_id]
    return WorldRecord(
        title=titles[0] if titles else task or "other runs",
        precisions=precisions,
        evaluations=tuple(read_evaluation(run, runs, budget) for run in runs if run.kind == "evaluation"),
        kls=tuple(record for run in runs if run.kind == "kl" for record in read_kls(run, runs)),
        trainings=tuple(read_training(run) for run in runs if run.kind == "training"),
        missing=tuple(_missing(runs)),
    )


def _missing(runs: Sequence[Run]) -> list[MissingRecord]:
    """What a report could show beside what it has, each with its command."""
    first = {run.kind: run for run in reversed(runs)}
    env = next((f" --env {run.env_id}" for run in runs if run.env_id), "")
    data = first["kl"].path if "kl" in first else "runs/kl"
    router = f"{first['training'].path if 'training' in first else 'runs/kl-st'}/router"
    evaluation = first["evaluation"].path if "evaluation" in first else "runs/evaluation"
    evaluate = f"python agents/evaluate.py{env} --router {router} --out {evaluation}"
    trees = first["trees"].path.parent if "trees" in first else "runs/trees"
    parts = {
        "kl": ("the histogram of KLs", f"python agents/collect_kl.py{env} --out {data}"),
        "training": ("training curves", f"python agents/train_kl_st.py --data {data} --out runs/kl-st"),
        "evaluation": ("results, the use of precisions, and the step viewer", evaluate),
        "trees": ("where each choice leads, exactly", f"python agents/build_trees.py{env} --out {trees}"),
        "tree-report": (
            "the oracle and the exact frontier",
            f"python agents/tree_report.py{env} --trees {trees} --out runs/tree-report",
        ),
    }
    missing = [MissingRecord(*parts[kind]) for kind in parts if kind not in first]
    # Trees stand for the LLM, which cannot be asked then.
    asked = [run for run in runs if run.kind == "evaluation" and not _settings(run).get("trees")]
    if asked and not any(run.has_alternatives for run in asked):
        missing.append(MissingRecord("what every precision says at each step", _with_alternatives(asked[0])))
    return missing


def _with_alternatives(run: Run) -> str:
    """The command that made an evaluation, which then plays nothing anew, with alternatives of its first tasks."""
    settings = _settings(run) | {"out": str(run.path), "no_texts": False, "alternatives": 5}
    words = ["python", "agents/evaluate.py"]
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list) and name in _REPEATED:
            words += [str(word) for each in value for word in (flag, *(each if isinstance(each, list) else [each]))]
        elif isinstance(value, list):
            # Forced types alone mean something where none is named.
            words += [flag, *map(str, value)] if value or name == "force_high" else []
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return shlex.join(words)


def _settings(run: Run) -> dict[str, Any]:
    """The command line of an evaluation, as it has it on record."""
    settings: dict[str, Any] = read_object(run.path / "results.json").get("settings", {})
    return settings
