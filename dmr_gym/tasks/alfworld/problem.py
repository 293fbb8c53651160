"""Writes a house as an ALFWorld PDDL problem, and its things by the names that the game's texts give them."""

from __future__ import annotations

from collections.abc import Iterator

from dmr_gym.tasks.alfworld import vocabulary as words
from dmr_gym.tasks.alfworld.house import HOMES, TREATMENTS, Goal, House, Rand, choose

_PROPERTIES = (
    ("isReceptacleObject", words.RECEPTACLE_OBJECTS),
    ("cleanable", words.CLEANABLE),
    ("heatable", words.HEATABLE),
    ("coolable", words.COOLABLE),
    ("sliceable", words.SLICEABLE),
    ("toggleable", words.TOGGLEABLE),
)
_LOOK_GOAL = """
             (and
                 (exists (?ot - object
                          ?r - receptacle
                          ?a - agent
                          ?l - location)
                     (and
                         (objectType ?ot DeskLampType)
                         (toggleable ?ot)
                         (isToggled ?ot)
                         (receptacleAtLocation ?r ?l)
                         (atLocation ?a ?l)
                         (inReceptacle ?ot ?r)
                     )
                 )
                 (exists (?o - object
                          ?a - agent)
                     (and
                         (objectType ?o {target}Type)
                         (holds ?a ?o)
                     )
                 )
             )
"""
_PLACE_GOAL = """
            (and
                (exists (?r - receptacle)
                    (exists (?o - object)
                        (and
                            (inReceptacle ?o ?r)
                            (objectType ?o {target}Type)
                            (receptacleType ?r {destination}Type)
                        )
                    )
                )
            )
"""
_TREAT_GOAL = """
            (and
                (exists (?r - receptacle)
                    (exists (?o - object)
                        (and
                            ({able} ?o)
                            (objectType ?o {target}Type)
                            (receptacleType ?r {destination}Type)
                            ({state} ?o)
                            (inReceptacle ?o ?r)
                        )
                    )
                )
            )
"""
_TWO_GOAL = """
            (and
                (exists (?r - receptacle)
                    (exists (?o1 - object)
                        (and
                            (objectType ?o1 {target}Type)
                            (receptacleType ?r {destination}Type)
                            (inReceptacle ?o1 ?r)
                            (exists (?o2 - object)
                                (and
                                    (not (= ?o1 ?o2))
                                    (objectType ?o2 {target}Type)
                                    (receptacleType ?r {destination}Type)
                                    (inReceptacle ?o2 ?r)
                                )
                            )
                        )
                    )
                )
            )
"""
# The domain's conditions name these types whether or not a house has them.
_RECEPTACLE_TYPES = sorted({name for homes in HOMES.values() for name in homes} | {"Toaster"})
_OBJECT_TYPES = sorted([*HOMES, "Sink"])
_TYPE_LINES = "".join(
    [f"        {name}Type - otype\n" for name in _OBJECT_TYPES]
    + [f"        {name}Type - rtype\n" for name in _RECEPTACLE_TYPES]
)


def _signed(value: int, text: str, plus: str = "") -> str:
    return f"_minus_{text}" if value < 0 else f"{plus if value else ''}{text}"


_COORDINATES = [_signed(c, f"{abs(c) // 100:02d}_dot_{abs(c) % 100:02d}", "_plus_") for c in range(-350, 351)]
_HEIGHTS = _COORDINATES[350:550]
_STEPS = [_signed(c, str(abs(c))) for c in range(-12, 13)]
_HORIZONS = ("_minus_30", "0", "15", "30", "45", "60")


def new_id(rand: Rand, kind: str, used: set[str]) -> str:
    """Draw an id in ALFWorld's form, ``Type_bar_x_bar_y_bar_z``; a basin is a part of its sink or bathtub."""
    base = kind.removesuffix("Basin")
    while True:
        x, y, z = choose(rand, _COORDINATES), choose(rand, _HEIGHTS), choose(rand, _COORDINATES)
        name = f"{base}_bar_{x}_bar_{y}_bar_{z}" + (f"_bar_{kind}" if kind != base else "")
        if name not in used:
            used.add(name)
            return name


def display_names(ids: list[str]) -> list[str]:
    """Names as the game's texts write them: ids of one type are numbered in descending order."""
    counts: dict[str, int] = {}
    names = {}
    for full in sorted(ids, reverse=True):
        base = full.partition("_bar_")[0].lower() + ("basin" if "Basin" in full else "")
        counts[base] = counts.get(base, 0) + 1
        names[full] = f"{base} {counts[base]}"
    return [names[full] for full in ids]


def _locations(rand: Rand, count: int) -> list[str]:
    """Draw ids of distinct locations."""
    found: dict[str, None] = {}
    while len(found) < count:
        x, z, turn, horizon = choose(rand, _STEPS), choose(rand, _STEPS), int(rand() * 4), choose(rand, _HORIZONS)
        found[f"loc_bar_{x}_bar_{z}_bar_{turn}_bar_{horizon}"] = None
    return list(found)


def problem_text(rand: Rand, trial: str, house: House, goal: Goal, receptacles: list[str], objects: list[str]) -> str:
    """Write the PDDL problem in the official layout."""
    start, *places = _locations(rand, len(receptacles) + 1)
    lines = [f"{name} - object" for name in sorted(objects)]
    lines += [f"{name} - receptacle" for name in sorted(receptacles)]
    spots = [places[spot] for spot in house.spots]
    lines += [f"{name} - location" for name in [start, *dict.fromkeys(spots)]]
    facts = [f"(receptacleType {name} {kind}Type)" for name, kind in zip(receptacles, house.receptacles, strict=True)]
    facts += [f"(objectType {name} {kind}Type)" for name, kind in zip(objects, house.objects, strict=True)]
    facts += _can_contain(house)
    pairs = list(zip(objects, house.objects, strict=True))
    facts += [f"(pickupable {name})" for name, kind in pairs if kind not in words.FIXTURES]
    openable = zip(receptacles, house.receptacles, strict=True)
    facts += [f"(openable {name})" for name, kind in openable if kind in words.OPENABLE]
    facts.append(f"(atLocation agent1 {start})")
    facts += [f"({fact} {name})" for fact, kinds in _PROPERTIES for name, kind in pairs if kind in kinds]
    facts += [f"(inReceptacle {name} {receptacles[at]})" for name, at in zip(objects, house.inside, strict=True)]
    facts += [f"(receptacleAtLocation {name} {spot})" for name, spot in zip(receptacles, spots, strict=True)]
    facts += [f"(objectAtLocation {name} {spots[at]})" for name, at in zip(objects, house.inside, strict=True)]
    indent = "\n        "
    return (
        f"\n(define (problem plan_{trial})\n(:domain alfred)\n(:objects\n        agent1 - agent\n{_TYPE_LINES}"
        f"        {indent.join(lines)}\n        )\n\n(:init\n        {indent.join(facts)}\n        )\n\n"
        f"        (:goal{_goal_text(goal)}        )\n    )\n"
    )


def _can_contain(house: House) -> Iterator[str]:
    kinds = list(dict.fromkeys(house.objects))
    for receptacle in dict.fromkeys(house.receptacles):
        for kind in kinds:
            if receptacle in words.HOMES.get(kind, ()):
                yield f"(canContain {receptacle}Type {kind}Type)"


def _goal_text(goal: Goal) -> str:
    if goal.task_type == "look_at_obj_in_light":
        return _LOOK_GOAL.format(target=goal.target)
    if goal.task_type == "pick_two_obj_and_place":
        return _TWO_GOAL.format(target=goal.target, destination=goal.destination)
    if goal.task_type not in TREATMENTS:
        return _PLACE_GOAL.format(target=goal.target, destination=goal.destination)
    treatment = TREATMENTS[goal.task_type]
    return _TREAT_GOAL.format(
        able=treatment.able, state=treatment.state, target=goal.target, destination=goal.destination
    )
