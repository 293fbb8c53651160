"""The tables of a recorded run, made anew from its results.json alone."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from dmr_gym.ablations import (
    Variant,
    advantage_table,
    depth_table,
    step_type_table,
    threshold_table,
    tokens_table,
    width_table,
)
from dmr_gym.calibration import StepShare, Threshold
from dmr_gym.calibration_tables import budget_table, shift_table
from dmr_gym.latency import PriceSource, Profile
from dmr_gym.latency_switches import SwitchCost, switch_table
from dmr_gym.latency_tables import latency_table
from dmr_gym.metrics import Difference, EpisodeResult, Interval
from dmr_gym.records import PlayedPolicy
from dmr_gym.result_tables import result_tables
from dmr_gym.results import read_results
from dmr_gym.tables import Table
from dmr_gym.tree.tables import report_tables
from tests.recipes import load_recipe

Data = Mapping[str, Any]


def rebuilt(name: str, data: Data, text: str) -> list[Table]:
    """The tables of a run by the recipe that its folder's name tells.

    Args:
        name: of the folder below results/.
        data: its results.json.
        text: its tables, for what the numbers lack.
    """
    _, _, kind = name.partition("-")
    return BUILDERS[kind](data, text)


def evaluation(data: Data, text: str) -> list[Table]:
    """Of agents/evaluate.py; how many tasks were played only the title of its first table tells."""
    [tasks] = map(int, re.findall(r"^## Policies on (\d+) tasks$", text, flags=re.MULTILINE))
    episodes = tuple(EpisodeResult(str(n), False, 0.0, (0,), 1) for n in range(tasks))
    policies = [
        PlayedPolicy(row["policy"], row["kind"], row["like"], row["budget"], row["lambda"], episodes)
        for row in data["results"]
    ]
    return result_tables(read_results(data, policies), data["precisions"], PriceSource(**data["latency"]))


def grpo(data: Data, _: str) -> list[Table]:
    """Of agents/compare_grpo.py."""
    settings = argparse.Namespace(**data["settings"])
    return [load_recipe("compare_grpo").as_table(data["results"], settings, PriceSource(**data["latency"]))]


def variants(data: Data) -> list[Variant]:
    """Those of an ablation that trains."""
    return [
        Variant(
            each["variant"],
            each["balanced_accuracy"],
            tuple(each["singles"]),
            tuple(each["budgets"]),
            tuple(each["threshold"]),
        )
        for each in data["variants"]
    ]


def tokens(data: Data, _: str) -> list[Table]:
    """Of agents/ablate.py tokens."""
    differences = [Difference(**{key: interval(value) for key, value in each.items()}) for each in data["differences"]]
    return [tokens_table(*variants(data), differences, "")]


def shift(data: Data, _: str) -> list[Table]:
    """Of agents/calibrate.py."""
    thresholds = [Threshold(**each) for each in data["calibration"]["thresholds"]]
    shares, checks = (
        [StepShare(**{key: interval(value) for key, value in each.items()}) for each in given]
        for given in (data["calibration"]["shares"], data["checks"])
    )
    return [
        budget_table(thresholds, shares, checks, data["settings"]["check_panel"] or ""),
        shift_table(data["pools"]),
    ]


def switches(data: Data, _: str) -> list[Table]:
    """Of agents/calibrate_latency.py --switches."""
    profile, names = Profile(**data["profile"]), data["env"]["precisions"]
    costs = {
        name: [SwitchCost(**{key: interval(value) for key, value in cost.items()}) for cost in each]
        for name, each in data["switches"].items()
    }
    return [latency_table(profile, names, data["break_even"]), switch_table(costs)]


def interval(value: Any) -> Any:
    """A pair of ends as it was before JSON; anything else as it is."""
    return Interval(**value) if isinstance(value, dict) and set(value) == {"low", "high"} else value


BUILDERS = {
    "evaluation": evaluation,
    "official": evaluation,
    "four": evaluation,
    "grpo": grpo,
    "advantages": lambda data, text: [advantage_table(data), *grpo(data, text)],
    "depth": lambda data, _: [depth_table(variants(data), "")],
    "width": lambda data, _: [width_table(variants(data), "")],
    "threshold": lambda data, _: [threshold_table(variants(data), "")],
    "tokens": tokens,
    "step-types": lambda data, _: [step_type_table(data["results"])],
    "shift": shift,
    "tree": lambda data, _: report_tables(data),
    "switches": switches,
}
"""By what a folder's name ends in."""


def rows_of(text: str) -> list[tuple[str, list[str]]]:
    """Title and lines of each table in Markdown, without the notes."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    lines = [section.splitlines() for section in sections]
    return [(title, [line for line in rest if line.startswith("|")]) for title, *rest in lines]
