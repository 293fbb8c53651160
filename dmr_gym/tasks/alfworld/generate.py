"""Generator of ALFWorld houses: fresh games without end, in ALFWorld's own file format, that TextWorld plays too.

A game is a function of ``(seed, task_type)`` alone, on every machine and Python version: the only source of chance is
``random.Random(str).random()``, whose sequence Python guarantees, and nothing depends on the order of a set.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import permutations
from pathlib import Path
from typing import Any

from dmr_gym.errors import ConfigError
from dmr_gym.tasks.alfworld import vocabulary as words
from dmr_gym.tasks.alfworld.house import TREATMENTS, Goal, House, choose, draw_house
from dmr_gym.tasks.alfworld.pddl import TASK_TYPES
from dmr_gym.tasks.alfworld.problem import display_names, new_id, problem_text

_TASK_PLACEHOLDER = "UNKNOWN GOAL."
_SENTENCES = {
    "pick_and_place_simple": ("put a {x} in {y}.", "put some {x} on {y}."),
    "look_at_obj_in_light": ("look at {x} under the desklamp.", "examine the {x} with the desklamp."),
    "pick_clean_then_place_in_recep": ("put a clean {x} in {y}.", "clean some {x} and put it in {y}."),
    "pick_heat_then_place_in_recep": ("put a hot {x} in {y}.", "heat some {x} and put it in {y}."),
    "pick_cool_then_place_in_recep": ("put a cool {x} in {y}.", "cool some {x} and put it in {y}."),
    "pick_two_obj_and_place": ("put two {x} in {y}.", "find two {x} and put them in {y}."),
}


def generate_game(seed: int, task_type: str | None = None) -> dict[str, Any]:
    """Make one game, the same one for the same arguments everywhere.

    Args:
        seed: any integer.
        task_type: one of ALFWorld's six task types; None lets the seed draw one, all equally likely.

    Returns:
        The fields of an official ``game.tw-pddl`` (pddl_domain, grammar, pddl_problem, solvable, walkthrough), and
        "traj_data" ({"task_type", "pddl_params"}), "task" (the sentence) and "id".

    Raises:
        ConfigError: ``task_type`` is none of the six.
    """
    if task_type is None:
        task_type = choose(random.Random(f"dmr-gym alfworld task type {seed}").random, TASK_TYPES)
    elif task_type not in TASK_TYPES:
        raise ConfigError(f"task_type must be one of {', '.join(TASK_TYPES)}, or None; got {task_type!r}")
    rand = random.Random(f"dmr-gym alfworld house {task_type} {seed}").random
    house, goal = draw_house(rand, task_type)
    used: set[str] = set()
    receptacle_ids = [new_id(rand, name, used) for name in house.receptacles]
    object_ids = [new_id(rand, name, used) for name in house.objects]
    target, destination = goal.target.lower(), goal.destination.lower()
    task = choose(rand, _SENTENCES[task_type]).format(x=target, y=destination)
    trial = f"trial_{seed:08d}" if seed >= 0 else f"trial_minus_{-seed:08d}"
    scene = f"{task_type}-{goal.target}-None-{goal.destination or 'DeskLamp'}"
    domain, before_task, after_task = _official_texts()
    return {
        "id": f"{scene}/{trial}",
        "pddl_domain": domain,
        "grammar": before_task + task + after_task,
        "pddl_problem": problem_text(rand, trial, house, goal, receptacle_ids, object_ids),
        "solvable": True,
        "walkthrough": _walkthrough(house, goal, display_names(receptacle_ids), display_names(object_ids)),
        "task": task,
        "traj_data": {
            "task_type": task_type,
            "pddl_params": {
                "mrecep_target": "",
                "object_sliced": False,
                "object_target": goal.target,
                "parent_target": goal.destination,
                "toggle_target": "" if goal.destination else "DeskLamp",
            },
        },
    }


def write_game(game: Mapping[str, Any], folder: str | Path) -> Path:
    """Write a game in ALFWorld's layout: ``<folder>/<id>/game.tw-pddl`` with ``traj_data.json`` beside it.

    Returns:
        Path of the written ``game.tw-pddl``.
    """
    path = Path(folder, str(game["id"]), "game.tw-pddl")
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = ("pddl_domain", "grammar", "pddl_problem", "solvable", "walkthrough")
    path.write_text(json.dumps({key: game[key] for key in keys}), encoding="utf-8")
    path.with_name("traj_data.json").write_text(json.dumps(game["traj_data"]), encoding="utf-8")
    return path


@cache
def _official_texts() -> tuple[str, str, str]:
    """Return the domain, and the grammar before and after the task sentence."""
    data = files("dmr_gym.tasks.alfworld") / "data"
    before, _, after = (data / "alfred.twl2").read_text(encoding="utf-8").partition(_TASK_PLACEHOLDER)
    return (data / "alfred.pddl").read_text(encoding="utf-8"), before, after


def _walkthrough(house: House, goal: Goal, receptacles: list[str], objects: list[str]) -> list[str]:
    """Return the shortest of the winning plans that fetch the needed objects one after another."""
    plans = (_commands(house, plan, receptacles, objects) for plan in _plans(house, goal))
    return min(plans, key=len)


def _plans(house: House, goal: Goal) -> Iterator[list[tuple[str, int, int]]]:
    """Yield plans as (verb, object, receptacle) steps; walking and opening are left out."""
    targets = [index for index, kind in enumerate(house.objects) if kind == goal.target]
    if not goal.destination:
        lamps = [index for index, kind in enumerate(house.objects) if kind == "DeskLamp"]
        for target in targets:
            for lamp in lamps:
                yield [("take", target, house.inside[target]), ("use", lamp, house.inside[lamp])]
        return
    ends = [index for index, kind in enumerate(house.receptacles) if kind == goal.destination]
    if goal.task_type not in TREATMENTS:
        for chosen in permutations(targets, 2 if goal.task_type == "pick_two_obj_and_place" else 1):
            for end in ends:
                yield [step for t in chosen for step in (("take", t, house.inside[t]), ("move", t, end))]
        return
    treatment = TREATMENTS[goal.task_type]
    for target in targets:
        for place in (index for index, kind in enumerate(house.receptacles) if kind == treatment.appliance):
            for end in ends:
                yield [("take", target, house.inside[target]), (treatment.verb, target, place), ("move", target, end)]


def _commands(
    house: House, plan: Iterable[tuple[str, int, int]], receptacles: list[str], objects: list[str]
) -> list[str]:
    """Spell a plan out, going and opening where it must."""
    commands: list[str] = []
    spot, opened = -1, set[int]()
    joins = {"take": "from", "move": "to"}
    for verb, item, place in plan:
        thing, at = objects[item], receptacles[place]
        if house.spots[place] != spot:
            commands.append(f"go to {at}")
            spot = house.spots[place]
        if verb in joins and house.receptacles[place] in words.OPENABLE and place not in opened:
            commands.append(f"open {at}")
            opened.add(place)
        commands.append(f"use {thing}" if verb == "use" else f"{verb} {thing} {joins.get(verb, 'with')} {at}")
    return commands
