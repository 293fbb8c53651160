"""A small ALFWorld house written by hand, for the tests of the engine."""

from __future__ import annotations

from dmr_gym.tasks.alfworld.engine import AlfworldEngine
from dmr_gym.tasks.alfworld.pddl import TASK_TYPES

NOTHING = "Nothing happens."
PLACES = {
    "Shelf_bar_a": ("ShelfType", "loc_bar_1"),
    "Shelf_bar_b": ("ShelfType", "loc_bar_1"),
    "Drawer_bar_a": ("DrawerType", "loc_bar_1"),
    "Fridge_bar_a": ("FridgeType", "loc_bar_2"),
    "Microwave_bar_a": ("MicrowaveType", "loc_bar_2"),
    "Sink_bar_a_bar_SinkBasin": ("SinkBasinType", "loc_bar_3"),
}
THINGS = {
    "Apple_bar_a": ("AppleType", "Shelf_bar_a"),
    "Apple_bar_b": ("AppleType", "Drawer_bar_a"),
    "Knife_bar_a": ("KnifeType", "Shelf_bar_a"),
    "DeskLamp_bar_a": ("DeskLampType", "Shelf_bar_b"),
    "Box_bar_a": ("BoxType", "Shelf_bar_b"),
    "Painting_bar_a": ("PaintingType", "Shelf_bar_b"),
}
PICK = "(and (exists (?r - receptacle) (exists (?o - object) (and {states}(inReceptacle ?o ?r) (objectType ?o AppleType) (receptacleType ?r {place})))))"  # noqa: E501
GOALS = {
    TASK_TYPES[0]: PICK.format(states="", place="FridgeType"),
    TASK_TYPES[
        1
    ]: "(and (exists (?ot - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?ot DeskLampType) "
    "(toggleable ?ot) (isToggled ?ot) (receptacleAtLocation ?r ?l) (atLocation ?a ?l) (inReceptacle ?ot ?r))) "
    "(exists (?o - object ?a - agent) (and (objectType ?o AppleType) (holds ?a ?o))))",
    TASK_TYPES[2]: PICK.format(states="(cleanable ?o) (isClean ?o) ", place="ShelfType"),
    TASK_TYPES[3]: PICK.format(states="(heatable ?o) (isHot ?o) ", place="ShelfType"),
    TASK_TYPES[4]: PICK.format(states="(coolable ?o) (isCool ?o) ", place="ShelfType"),
    TASK_TYPES[5]: "(and (exists (?r - receptacle) (exists (?o1 - object) (and (objectType ?o1 AppleType) "
    "(receptacleType ?r ShelfType) (inReceptacle ?o1 ?r) (exists (?o2 - object) (and (not (= ?o1 ?o2)) "
    "(objectType ?o2 AppleType) (receptacleType ?r ShelfType) (inReceptacle ?o2 ?r)))))))",
}


def house(task_type: str = TASK_TYPES[0]) -> AlfworldEngine:
    """A house of three spots: two shelves and a drawer; fridge and microwave; sink."""
    objects = [f"{name} - receptacle" for name in PLACES] + [f"{name} - object" for name in THINGS]
    types = {kind for kind, _ in PLACES.values()} | {kind for kind, _ in THINGS.values()}
    objects += (
        [f"{kind} - otype" for kind in types] + [f"loc_bar_{n} - location" for n in range(4)] + ["agent1 - agent"]
    )
    facts = ["(atLocation agent1 loc_bar_0)", "(openable Drawer_bar_a)", "(openable Fridge_bar_a)"]
    facts += ["(openable Microwave_bar_a) ; a comment (opened Drawer_bar_a)", "(isReceptacleObject Box_bar_a)"]
    facts += ["(toggleable DeskLamp_bar_a)", "(inReceptacleObject Knife_bar_a Box_bar_a)"]
    for name, (kind, location) in PLACES.items():
        facts += [f"(receptacleType {name} {kind})", f"(receptacleAtLocation {name} {location})"]
        facts += [f"(canContain {kind} {thing})" for thing in ("AppleType", "KnifeType") if kind != "DrawerType"]
    for name, (kind, place) in THINGS.items():
        facts += [f"(objectType {name} {kind})", f"(inReceptacle {name} {place})"]
        facts += [f"(objectAtLocation {name} {PLACES[place][1]})"]
        facts += [f"(pickupable {name})"] if "Lamp" not in name and "Painting" not in name else []
        if kind == "AppleType":
            facts += [f"({word} {name})" for word in ("cleanable", "heatable", "coolable", "sliceable")]
    problem = f"(define (:objects {' '.join(objects)}) (:init {chr(10).join(facts)}) (:goal {GOALS[task_type]}))"
    data = {"pddl_problem": problem, "walkthrough": [], "grammar": r'{"rhs": "Your task is to: say \"hi\"."}'}
    return AlfworldEngine.from_json(data, "house", task_type)


def play(engine: AlfworldEngine, *commands: str) -> str:
    """Carry out commands that all must be admissible; the last answer."""
    answer = ""
    for command in commands:
        answer = engine.step(command)
        assert answer != NOTHING, command
    return answer
