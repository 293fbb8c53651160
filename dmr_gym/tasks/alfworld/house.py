"""Draws a furnished room and a goal for it: the part of the game generator that decides what is where.

All chance comes from the callable ``rand`` (uniform in [0, 1)), and nothing depends on the order of a set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, TypeVar

from dmr_gym.tasks.alfworld import vocabulary as words

Rand = Callable[[], float]
_Item = TypeVar("_Item")


class Treatment(NamedTuple):
    """How a task type changes its target: the command's verb, where, and the PDDL predicates and types concerned."""

    verb: str
    appliance: str
    able: str
    state: str
    kinds: frozenset[str]


PICKS = ("pick_and_place_simple", "pick_two_obj_and_place")
TREATMENTS = {
    "pick_clean_then_place_in_recep": Treatment("clean", "SinkBasin", "cleanable", "isClean", words.CLEANABLE),
    "pick_heat_then_place_in_recep": Treatment("heat", "Microwave", "heatable", "isHot", words.HEATABLE),
    "pick_cool_then_place_in_recep": Treatment("cool", "Fridge", "coolable", "isCool", words.COOLABLE),
}
HOMES = {**words.HOMES, **words.FIXTURES}
MOST_INSTANCES = 3
_FEWEST_OBJECTS, _MOST_OBJECTS = 8, 25
_TRIES = 200


@dataclass(frozen=True, slots=True)
class Goal:
    """What the task asks for; ``destination`` is "" where nothing is to be put anywhere."""

    task_type: str
    target: str
    destination: str


@dataclass(slots=True)
class House:
    """A furnished room. Receptacles and objects are indices into parallel lists.

    Attributes:
        receptacles: type of each receptacle.
        spots: number of the location at which each receptacle stands; two may share one.
        objects: type of each object.
        inside: the receptacle in which each object starts.
    """

    receptacles: list[str]
    spots: list[int]
    objects: list[str] = field(default_factory=list)
    inside: list[int] = field(default_factory=list)


def choose(rand: Rand, items: Sequence[_Item]) -> _Item:
    """Draw one item, all equally likely."""
    return items[int(rand() * len(items))]


def weighted(rand: Rand, weights: Mapping[str, int]) -> str:
    """Draw a key with probability in proportion to its weight."""
    mark = rand() * sum(weights.values())
    for name, weight in weights.items():
        mark -= weight
        if mark < 0:
            return name
    raise ValueError("no weight is positive")


@cache
def possible_goals(task_type: str, room_kind: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """List (target, destinations) pairs that a room of this kind can offer whatever else it holds.

    A pick needs a start outside the destination, so one of the receptacles that every such room has must do for it.
    """
    room = words.ROOMS[room_kind]
    allowed = words.DESTINATIONS_OF_TASK[task_type]
    treatment = TREATMENTS.get(task_type)
    goals = []
    for target in room.objects:
        homes = words.HOMES.get(target, {})
        start = [name for name in room.required if name in homes]
        if not start or (treatment is not None and target not in treatment.kinds):
            continue
        destinations = tuple(
            name
            for name in homes
            if name in allowed
            and (name in room.required or name in room.extras)
            and (task_type not in PICKS or any(home != name for home in start))
        )
        if destinations or task_type == "look_at_obj_in_light":
            goals.append((target, destinations))
    return tuple(goals)


def draw_house(rand: Rand, task_type: str) -> tuple[House, Goal]:
    """Draw a room of a kind that suits the task, what stands and lies in it, and the goal."""
    kind = weighted(rand, words.ROOMS_OF_TASK[task_type])
    target, destinations = choose(rand, possible_goals(task_type, kind))
    goal = Goal(task_type, target, choose(rand, destinations) if destinations else "")
    receptacles = _draw_receptacles(rand, words.ROOMS[kind], goal.destination)
    house = House(receptacles, _draw_spots(rand, len(receptacles)))
    _draw_objects(rand, house, words.ROOMS[kind], goal)
    return house, goal


def _draw_receptacles(rand: Rand, room: words.Room, destination: str) -> list[str]:
    """6 to 14 receptacles in most houses, up to 18 in some."""
    wanted = 6 + int(rand() * 9) if rand() < 0.88 else 15 + int(rand() * 4)
    types = list(room.required)
    left = {name: most for name, (_, most) in room.extras.items()}
    weights = {name: weight for name, (weight, _) in room.extras.items()}
    if destination and destination not in types:
        types.append(destination)
        left[destination] -= 1
    while len(types) < wanted:
        name = weighted(rand, weights)
        if left[name]:
            left[name] -= 1
            types.append(name)
    return types


def _draw_spots(rand: Rand, count: int) -> list[int]:
    """Give each receptacle a location of its own; in 8 % of houses two of them share one."""
    spots = list(range(count))
    if rand() < 0.08:
        first = int(rand() * (count - 1))
        spots[first + 1] = first
    return spots


def _draw_objects(rand: Rand, house: House, room: words.Room, goal: Goal) -> None:
    """Place the target instances, a lamp where the task needs one, then objects of other types."""
    free = [words.CAPACITY.get(name, words.TABLE_TOP_CAPACITY) for name in house.receptacles]
    shunned = goal.destination if goal.task_type in PICKS else ""
    copies = (2 if goal.task_type == "pick_two_obj_and_place" else 1) + (rand() < 0.35)
    for _ in range(copies):
        _place(rand, house, free, goal.target, shunned)
    if goal.task_type == "look_at_obj_in_light":
        _place(rand, house, free, "DeskLamp", "")
    size = len(house.receptacles)
    wanted = min(_MOST_OBJECTS, max(_FEWEST_OBJECTS, size + int(rand() * size)))
    present = {goal.target: MOST_INSTANCES}
    for _ in range(_TRIES):
        if len(house.objects) >= wanted:
            return
        name = weighted(rand, room.objects)
        most = 1 if name in words.FIXTURES else MOST_INSTANCES
        if present.get(name, 0) < most and _place(rand, house, free, name, ""):
            present[name] = present.get(name, 0) + 1


def _place(rand: Rand, house: House, free: list[int], name: str, shunned: str) -> bool:
    """Put an object into a receptacle by the prior; False when none has room for it."""
    homes = HOMES[name]
    weights = [
        homes.get(kind, 0) if room > 0 and kind != shunned else 0
        for kind, room in zip(house.receptacles, free, strict=True)
    ]
    mark = rand() * sum(weights)
    for index, weight in enumerate(weights):
        mark -= weight
        if mark < 0:
            house.objects.append(name)
            house.inside.append(index)
            free[index] -= 1
            return True
    return False
