"""Curves of a training run from its history."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dmr_gym.report.records import CurveRecord, TrainingRecord
from dmr_gym.report.runs import Run, training_record
from dmr_gym.training import read_history

UNITS = {
    "return": "reward",
    "success": "share of episodes",
    "balanced_accuracy": "share",
    "high_share": "share of steps",
    "high": "share of steps",
    "share": "share of steps",
    "loss": "nats",
    "kl": "nats",
    "entropy": "nats",
    "time_s": "seconds",
    "steps": "steps",
    "rollout_s": "seconds",
    "update_s": "seconds",
}
"""Of figures by the last part of their name."""

MAIN = ("balanced_accuracy", "return", "success", "loss", "share", "high_share", "high", "entropy", "kl")
"""Charts that are shown at first, in this order."""


def read_training(run: Run) -> TrainingRecord:
    """Gather a run's figures into charts: those of the same quantity share one."""
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for entry in read_history(run.path):
        for name, value in entry.items():
            if name != "update" and isinstance(value, int | float) and math.isfinite(value):
                quantity, label = _quantity(name)
                points = series.setdefault(quantity, {}).setdefault(label, [])
                points.append((float(entry["update"]), float(f"{value:.5g}")))
    order = {name: place for place, name in enumerate(MAIN)}
    curves = tuple(
        CurveRecord(
            title="KL" if quantity == "kl" else quantity.replace("_", " "),
            unit=UNITS.get(quantity, ""),
            main=quantity in order,
            series={label: tuple(points) for label, points in lines.items()},
        )
        for quantity, lines in sorted(series.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))
    )
    method = _method(training_record(run.path))
    return TrainingRecord(str(run.path), method, "epoch" if method == "KL-ST" else "update", curves)


def _quantity(name: str) -> tuple[str, str]:
    """What a figure measures, and whose it is: shares of single precisions are lines of one chart."""
    group, _, last = name.rpartition("/")
    if last.startswith("share_"):
        return "share", last.removeprefix("share_")
    if group == "share":
        return "share", last
    return last, group or "run"


def _method(record: Mapping[str, object]) -> str:
    """Which recipe trained: each has an option that the others lack."""
    settings = record.get("settings", record)
    names = {*record, *(settings if isinstance(settings, Mapping) else ())}
    known = {"group_size": "GRPO", "n_steps": "PPO", "validation_share": "KL-ST"}
    return next((method for name, method in known.items() if name in names), "training")
