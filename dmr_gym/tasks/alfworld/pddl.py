"""Reader of ALFWorld game files: JSON around a PDDL problem, turned into the tables the engine plays on.

Only ``pddl_problem``, ``walkthrough`` and the task sentence of ``grammar`` are read. TextWorld evaluates Python found
in ``grammar``; nothing of a game file is evaluated here, so an untrusted file is only data.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmr_gym.errors import TaskError

MAX_GAME_BYTES = 20_000_000
TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
_STATE_OF_TASK = {"isclean": TASK_TYPES[2], "ishot": TASK_TYPES[3], "iscool": TASK_TYPES[4]}
_STATES = frozenset({"isclean", "ishot", "iscool", "issliced", "cleanable", "heatable", "coolable", "sliceable"})
_FACT = re.compile(r"\(\s*([a-z]\w*)((?:\s+[^\s()]+)*)\s*\)")
_COMMENT = re.compile(r";[^\n]*")
_TASK_SENTENCE = re.compile(r'"rhs"\s*:\s*"Your task is to: ((?:[^"\\]|\\.)*)"')
_ARITY = {
    "atlocation": 2, "receptacleatlocation": 2, "objectatlocation": 2, "inreceptacle": 2, "inreceptacleobject": 2,
    "objecttype": 2, "receptacletype": 2, "cancontain": 2, "holds": 2, "openable": 1, "opened": 1, "pickupable": 1,
    "cleanable": 1, "heatable": 1, "coolable": 1, "toggleable": 1, "sliceable": 1, "isreceptacleobject": 1,
    "isclean": 1, "ishot": 1, "iscool": 1, "ison": 1, "istoggled": 1, "issliced": 1,
}  # fmt: skip

Facts = Mapping[str, list[tuple[str, ...]]]


@dataclass(frozen=True)
class Goal:
    """One of ALFWorld's six goals.

    Attributes:
        task_type: one of `TASK_TYPES`.
        object_type: type of the object to move or to examine, such as "appletype".
        receptacle_type: where it must lie in the end; "" for look_at_obj_in_light.
        lamp_type: what must be switched on where the agent stands; "" for the others.
        count: how many such objects must lie in one receptacle.
        states: predicates that must hold of the object, such as ("isclean", "cleanable").
    """

    task_type: str
    object_type: str
    receptacle_type: str = ""
    lamp_type: str = ""
    count: int = 1
    states: tuple[str, ...] = ()


@dataclass(frozen=True)
class GameData:
    """A parsed game: everything that stays constant while it is played, and its first state as facts."""

    source: str
    task: str
    goal: Goal
    walkthrough: tuple[str, ...]
    names: Mapping[str, str]
    facts: Facts


def read_game(path: str | Path) -> dict[str, Any]:
    """Read a ``game.tw-pddl`` file, or the one in a folder.

    Raises:
        TaskError: the file is missing, too large, not UTF-8, or not a JSON object.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "game.tw-pddl"
    try:
        if path.stat().st_size > MAX_GAME_BYTES:
            raise TaskError(f"{path}: expected at most {MAX_GAME_BYTES:,} bytes, found {path.stat().st_size:,}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"{path}: cannot be read as a game file: {error}") from error
    if not isinstance(data, dict):
        raise TaskError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def parse_game(data: Mapping[str, Any], source: str) -> GameData:
    """Parse a game's JSON object.

    Args:
        data: with the keys ``pddl_problem``, ``grammar`` and ``walkthrough``.
        source: file name or id, named in errors.

    Raises:
        TaskError: a key is missing or has another type, a fact names an unknown object, or the goal is none of the six.
    """
    problem = _COMMENT.sub("", _text(data, "pddl_problem", source)).lower()
    start, end = problem.find("(:init"), problem.find("(:goal")
    declared = problem.find("(:objects")
    if not 0 <= declared < start < end:
        raise TaskError(f"{source}: pddl_problem needs (:objects, (:init and (:goal in this order; it may be truncated")
    ids = {word for word in problem[declared + len("(:objects") : start].replace(")", " ").split() if word != "-"}
    facts = _parse_facts(problem[start:end], ids, source)
    walkthrough = data.get("walkthrough")
    if not isinstance(walkthrough, list) or not all(isinstance(command, str) for command in walkthrough):
        raise TaskError(f"{source}: key 'walkthrough' must be a list of commands, found {walkthrough!r:.80}")
    return GameData(
        source=source,
        task=_parse_task(_text(data, "grammar", source), source),
        goal=_parse_goal(problem[end:], source),
        walkthrough=tuple(walkthrough),
        names=_number_names(ids),
        facts=facts,
    )


def _text(data: Mapping[str, Any], key: str, source: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        found = "nothing" if key not in data else type(value).__name__
        raise TaskError(f"{source}: key {key!r} must be a string, found {found}")
    return value


def _parse_facts(text: str, ids: set[str], source: str) -> Facts:
    facts: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for predicate, arguments in _FACT.findall(text):
        arity = _ARITY.get(predicate)
        if arity is None:
            continue
        fact = tuple(arguments.split())
        if len(fact) != arity:
            raise TaskError(f"{source}: fact ({predicate}{arguments}) needs {arity} arguments, found {len(fact)}")
        for name in fact:
            if name not in ids:
                raise TaskError(f"{source}: fact ({predicate}{arguments}) names {name!r}, which (:objects lacks")
        facts[predicate].append(fact)
    if len(facts["atlocation"]) != 1:
        raise TaskError(f"{source}: expected one (atLocation agent location) fact, found {len(facts['atlocation'])}")
    return dict(facts)


def _parse_task(grammar: str, source: str) -> str:
    match = _TASK_SENTENCE.search(grammar)
    if match is None:
        raise TaskError(f'{source}: grammar lacks its line "rhs": "Your task is to: ..."')
    try:
        return str(json.loads(f'"{match[1]}"'))
    except json.JSONDecodeError as error:
        raise TaskError(f"{source}: the task sentence {match[1]!r:.80} is not a JSON string: {error}") from error


def _parse_goal(text: str, source: str) -> Goal:
    """Recognise the six goal shapes by their predicates."""
    facts: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for predicate, arguments in _FACT.findall(text):
        variable, *rest = arguments.split() or [""]
        facts[predicate][variable] = rest[0] if rest else ""
    types, receptacles = facts["objecttype"], set(facts["receptacletype"].values())
    held = next((name for name in facts["holds"].values()), None)
    if held in types and "istoggled" in facts:
        lamps = [types[variable] for variable in facts["istoggled"] if variable in types]
        if len(lamps) == 1:
            return Goal(TASK_TYPES[1], types[held], lamp_type=lamps[0])
    states = tuple(predicate for predicate in facts if predicate in _STATES)
    tasks = [_STATE_OF_TASK[state] for state in states if state in _STATE_OF_TASK]
    is_placing = set(facts) - {"holds"} == {"inreceptacle", "objecttype", "receptacletype", *states}
    if is_placing and len(receptacles) == 1 and len(set(types.values())) == 1 and len(types) <= 2 and len(tasks) <= 1:
        task_type = TASK_TYPES[5] if len(types) == 2 else tasks[0] if tasks else TASK_TYPES[0]
        count = len(types)
        return Goal(task_type, types.popitem()[1], receptacle_type=receptacles.pop(), count=count, states=states)
    raise TaskError(f"{source}: the goal is none of ALFWorld's six: {' '.join(text.split())[:200]}")


def _number_names(ids: set[str]) -> dict[str, str]:
    """Names as TextWorld shows them: the first of a base name's sorted ids gets the highest number."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for identifier in sorted(name for name in ids if "_bar_" in name):
        base = identifier.split("_bar_", 1)[0] + ("basin" if "basin" in identifier else "")
        groups[base].append(identifier)
    return {
        identifier: f"{base} {len(group) - index}"
        for base, group in groups.items()
        for index, identifier in enumerate(group)
    }
