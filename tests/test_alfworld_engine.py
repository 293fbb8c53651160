"""The native engine: texts, admissible commands, goals and snapshots, on a house written by hand and many others."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.errors import TaskError
from dmr_gym.tasks.alfworld.engine import HELP, AlfworldEngine, EngineState, load_game
from dmr_gym.tasks.alfworld.generate import generate_game, write_game
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


def test_introduction_lists_all_receptacles_and_the_task() -> None:
    """Sorted ids, numbered in descending order; basin names; the task sentence unescaped."""
    assert house().reset() == (
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, you see "
        "a drawer 1, a fridge 1, a microwave 1, a shelf 2, a shelf 1, and a sinkbasin 1.\n\n"
        'Your task is to: say "hi".'
    )


def test_admissible_commands_at_the_start_and_at_receptacles() -> None:
    """Sorted; co-located receptacles are not gone to; a lamp can be used, a painting cannot be taken."""
    engine = house()
    start = [
        "go to drawer 1",
        "go to fridge 1",
        "go to microwave 1",
        "go to shelf 1",
        "go to shelf 2",
        "go to sinkbasin 1",
    ]
    assert engine.admissible == [*start, "help", "inventory", "look"]
    engine.step("go to drawer 1")
    assert engine.admissible == [
        "examine drawer 1", "examine shelf 1", "examine shelf 2", "go to fridge 1", "go to microwave 1",
        "go to sinkbasin 1", "help", "inventory", "look", "open drawer 1", "take apple 2 from shelf 2",
        "take box 1 from shelf 1",
        "take knife 1 from shelf 2", "use desklamp 1",
    ]  # fmt: skip
    engine.step("take knife 1 from shelf 2")
    assert engine.admissible == [
        "examine drawer 1", "examine knife 1", "examine shelf 1", "examine shelf 2", "go to fridge 1",
        "go to microwave 1", "go to sinkbasin 1", "help", "inventory", "look", "move knife 1 to shelf 1",
        "move knife 1 to shelf 2",
        "open drawer 1", "slice apple 1 with knife 1", "slice apple 2 with knife 1", "use desklamp 1",
    ]  # fmt: skip


def test_looking_around() -> None:
    """Only the introduction lists the room; later ``look`` names what one faces, in sorted order."""
    engine = house()
    assert engine.step("look") == "You are in the middle of a room. Looking quickly around you, you see nothing."
    engine.step("go to sinkbasin 1")
    assert engine.step("look") == "You are facing the sinkbasin 1. Next to it, you see nothing."
    engine.step("go to shelf 1")
    assert engine.step("look") == "You are facing the drawer 1, shelf 2, and shelf 1. Next to it, you see nothing."


def test_look_lists_an_object_once_for_each_receptacle_here_it_was_taken_from() -> None:
    """TextWorld lists it again for the second one; putting it back ends that, taking it away hides it."""
    engine = house()
    play(engine, "go to shelf 1", "take apple 2 from shelf 2", "move apple 2 to shelf 1")
    assert engine.step("look").endswith("Next to it, you see a apple 2.")
    play(engine, "take apple 2 from shelf 1")
    assert engine.step("look").endswith("Next to it, you see nothing.")
    play(engine, "move apple 2 to shelf 2", "take apple 2 from shelf 2", "go to fridge 1", "open fridge 1")
    play(engine, "move apple 2 to fridge 1")
    assert engine.step("look") == "You are facing the fridge 1, and microwave 1. Next to it, you see nothing."

    engine.reset()
    play(engine, "go to shelf 1", "open drawer 1", "take apple 1 from drawer 1", "move apple 1 to shelf 1")
    play(engine, "take apple 1 from shelf 1", "move apple 1 to shelf 2")
    assert engine.step("look").endswith("Next to it, you see a apple 1, and a apple 1.")


def test_texts_of_commands() -> None:
    """Each command's answer, word for word."""
    engine = house()
    assert engine.step("go to drawer 1") == "You arrive at drawer 1. The drawer 1 is closed."
    assert engine.step("open drawer 1") == "You open the drawer 1. The drawer 1 is open. In it, you see a apple 1."
    assert engine.step("examine drawer 1") == "The drawer 1 is open. In it, you see a apple 1."
    assert engine.step("take apple 1 from drawer 1") == "You pick up the apple 1 from the drawer 1."
    assert engine.step("examine drawer 1") == "The drawer 1 is open. In it, you see nothing."
    assert engine.step("close drawer 1") == "You close the drawer 1."
    assert engine.step("inventory") == "You are carrying: a apple 1."
    assert engine.step("go to shelf 1") == NOTHING
    assert engine.step("examine shelf 1") == "On the shelf 1, you see a box 1, a desklamp 1, and a painting 1."
    assert engine.step("use desklamp 1") == "You turn on the desklamp 1."
    assert engine.step("use desklamp 1") == "You turn on the desklamp 1."
    assert engine.step("move apple 1 to shelf 2") == "You move the apple 1 to the shelf 2."
    assert engine.step("examine shelf 2") == "On the shelf 2, you see a apple 2, a apple 1, and a knife 1."
    assert engine.step("take knife 1 from shelf 2") == "You pick up the knife 1 from the shelf 2."
    assert engine.step("slice apple 2 with knife 1") == "You sliced the apple 2 with the knife 1."
    assert engine.step("inventory") == "You are carrying: a knife 1."
    assert engine.step("move knife 1 to shelf 2") == "You move the knife 1 to the shelf 2."
    assert engine.step("inventory") == "You are not carrying anything."
    assert engine.step("take box 1 from shelf 1") == "You pick up the box 1 from the shelf 1."
    assert engine.step("examine box 1") == "This is a normal box 1. In it, you see a knife 1."
    assert engine.step("  help \n") == HELP
    assert HELP.startswith("Available commands:\n  look: ")
    assert HELP.endswith(" a sharp object\n")


def test_examining_a_held_object_tells_its_state() -> None:
    """Clean, hot, cool and sliced combine as the grammar has it; heat ends cool, and cool ends hot."""
    engine = house()
    play(engine, "go to shelf 1", "take apple 2 from shelf 2")
    assert engine.step("examine apple 2") == "There's nothing special about apple 2."
    play(engine, "go to fridge 1", "cool apple 2 with fridge 1")
    assert engine.step("examine apple 2") == "This is a cold apple 2."
    assert engine.step("heat apple 2 with microwave 1") == "You heat the apple 2 using the microwave 1."
    assert engine.step("examine apple 2") == "This is a hot apple 2."
    play(engine, "go to sinkbasin 1", "clean apple 2 with sinkbasin 1")
    assert engine.step("examine apple 2") == "This is a hot and clean apple 2."
    play(engine, "go to fridge 1")
    assert engine.step("cool apple 2 with fridge 1") == "You cool the apple 2 using the fridge 1."
    assert engine.step("examine apple 2") == "This is a cool and clean apple 2."
    play(engine, "go to shelf 1", "move apple 2 to shelf 1", "take knife 1 from shelf 2", "slice apple 2 with knife 1")
    play(engine, "slice apple 1 with knife 1", "move knife 1 to shelf 1", "take apple 2 from shelf 1")
    assert engine.step("examine apple 2") == "This is a cool and clean sliced apple 2."
    play(engine, "move apple 2 to shelf 1", "open drawer 1", "take apple 1 from drawer 1")
    assert engine.step("examine apple 1") == "This is a sliced apple 1."


@pytest.mark.parametrize(
    ("before", "command", "reason"),
    [
        ((), "", "empty command"),
        ((), "jump", "unknown command 'jump'"),
        ((), "Look", "unknown command 'Look'"),
        ((), "go to apple 1", "apple 1 is not a place to go to"),
        ((), "open drawer 1", "not at drawer 1"),
        ((), "take apple 1 from drawer 1", "not at drawer 1"),
        ((), "move apple 1 to shelf 1", "not carrying apple 1"),
        ((), "examine shelf 1", "shelf 1 is not at hand"),
        ((), "use desklamp 1", "no switch of desklamp 1 within reach"),
        (("go to shelf 1",), "go to shelf 2", "already at shelf 2"),
        (("go to shelf 1",), "take apple 1 from drawer 1", "drawer 1 is closed"),
        (("go to shelf 1",), "close drawer 1", "drawer 1 is already closed"),
        (("go to shelf 1",), "open shelf 1", "shelf 1 has no door"),
        (("go to shelf 1",), "take painting 1 from shelf 1", "painting 1 cannot be picked up"),
        (("go to shelf 1",), "take apple 1 from shelf 1", "apple 1 is not in shelf 1"),
        (("go to shelf 1",), "slice apple 2 with knife 1", "not carrying knife 1, or it is no knife"),
        (("go to shelf 1", "take box 1 from shelf 1"), "take apple 2 from shelf 2", "hands are full: carrying box 1"),
        (("go to shelf 1", "take box 1 from shelf 1"), "move box 1 to shelf 2", "box 1 does not belong in shelf 2"),
        (("go to shelf 1", "take box 1 from shelf 1"), "move box 1 to drawer 1", "drawer 1 is closed"),
        (
            ("go to shelf 1", "take apple 2 from shelf 2"),
            "heat apple 2 with shelf 1",
            "cannot heat apple 2 with shelf 1",
        ),
        (
            ("go to shelf 1", "take knife 1 from shelf 2", "go to fridge 1"),
            "slice apple 2 with knife 1",
            "apple 2 is not here, or cannot be sliced",
        ),
        ((), "go to moon 1", "'go' names something that is not in this house, or lacks a part: see 'help'"),
    ],
)
def test_inadmissible_command_has_a_reason_and_changes_nothing(
    before: tuple[str, ...], command: str, reason: str
) -> None:
    """Each obstacle is told apart, and asking or trying leaves the state as it was."""
    engine = house()
    play(engine, *before)
    state = engine.snapshot()
    assert engine.inadmissible_reason(command) == reason
    assert engine.step(command) == NOTHING
    assert engine.snapshot() == state


def test_a_sliced_apple_in_a_closed_drawer_can_be_sliced_from_outside() -> None:
    """Slicing asks only for the location, as the PDDL domain does."""
    engine = house()
    play(engine, "go to shelf 1", "take knife 1 from shelf 2", "slice apple 1 with knife 1")


@pytest.mark.parametrize(
    ("task_type", "commands"),
    [
        (
            TASK_TYPES[0],
            "go to shelf 1/take apple 2 from shelf 2/go to fridge 1/open fridge 1/move apple 2 to fridge 1",
        ),
        (TASK_TYPES[1], "go to shelf 1/take apple 2 from shelf 2/use desklamp 1"),
        (TASK_TYPES[1], "go to shelf 1/use desklamp 1/take apple 2 from shelf 2"),
        (
            TASK_TYPES[2],
            "go to shelf 1/take apple 2 from shelf 2/go to sinkbasin 1/clean apple 2 with sinkbasin 1/"
            "go to shelf 1/move apple 2 to shelf 1",
        ),
        (
            TASK_TYPES[3],
            "go to shelf 1/take apple 2 from shelf 2/go to fridge 1/heat apple 2 with microwave 1/"
            "go to shelf 2/move apple 2 to shelf 2",
        ),
        (
            TASK_TYPES[4],
            "go to shelf 1/take apple 2 from shelf 2/go to fridge 1/heat apple 2 with microwave 1/"
            "cool apple 2 with fridge 1/go to shelf 2/move apple 2 to shelf 2",
        ),
        (TASK_TYPES[5], "go to shelf 1/open drawer 1/take apple 1 from drawer 1/move apple 1 to shelf 2"),
    ],
)
def test_goal_of_each_type_is_won_by_the_last_command_and_lost_again(task_type: str, commands: str) -> None:
    """The goal is checked on the state: undoing the last deed ends it, as in TextWorld."""
    engine = house(task_type)
    assert engine.task_type == task_type
    for command in commands.split("/"):
        assert not engine.won
        play(engine, command)
    assert engine.won
    undo = engine.admissible
    play(engine, next((c for c in undo if c.startswith("take apple")), "go to sinkbasin 1"))
    assert not engine.won


def test_two_objects_in_two_receptacles_of_the_type_do_not_win() -> None:
    """Both must lie in the same one."""
    engine = house(TASK_TYPES[5])
    play(engine, "go to shelf 1", "open drawer 1", "take apple 1 from drawer 1", "move apple 1 to shelf 1")
    assert not engine.won
    play(engine, "take apple 1 from shelf 1", "move apple 1 to shelf 2")
    assert engine.won


def test_task_type_that_is_not_the_goals_is_a_task_error() -> None:
    """traj_data.json and the PDDL must agree."""
    game = generate_game(0, TASK_TYPES[0])
    with pytest.raises(
        TaskError, match="task_type is 'pick_heat_then_place_in_recep', but the goal is one of 'pick_and"
    ):
        AlfworldEngine.from_json(game, "game", TASK_TYPES[3])


def _goal_by_definition(engine: AlfworldEngine, state: EngineState) -> bool:
    """The goal as its PDDL reads, without counts."""
    goal, facts = engine.game.goal, engine.game.facts
    kinds, places = dict(facts["objecttype"]), dict(facts["receptacleatlocation"])
    rtypes, receptacles = dict(facts["receptacletype"]), sorted(places)
    inside = dict(zip(receptacles, state.inside, strict=True))
    if goal.lamp_type:
        lit = any(
            kinds.get(o) == goal.lamp_type and ("istoggled", o) in state.states and places[r] == state.location
            for r, content in inside.items()
            for o in content
        )
        return lit and state.held is not None and kinds.get(state.held) == goal.object_type
    able = {p: {fact[0] for fact in facts.get(p, ())} for p in ("cleanable", "heatable", "coolable")}
    return any(
        sum(
            kinds.get(o) == goal.object_type
            and all(o in able[p] if p in able else (p, o) in state.states for p in goal.states)
            for o in content
        )
        >= goal.count
        for r, content in inside.items()
        if rtypes.get(r) == goal.receptacle_type
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), task_type=st.sampled_from(TASK_TYPES), chance=st.randoms(use_true_random=False))
def test_counted_goal_is_the_goal_by_definition(seed: int, task_type: str, chance: random.Random) -> None:
    """Random play, detours from the walkthrough, and restored snapshots keep the counts right."""
    engine = AlfworldEngine.from_json(generate_game(seed, task_type), str(seed))
    engine.reset()
    states = [engine.snapshot()]
    for command in engine.walkthrough:
        for _ in range(chance.randrange(4)):
            handling = [c for c in engine.admissible if not c.startswith(("go", "examine", "help", "look", "inv"))]
            engine.step(chance.choice(handling or engine.admissible))
            assert engine.won == _goal_by_definition(engine, engine.snapshot())
        engine.step(command)
        states.append(engine.snapshot())
        if chance.random() < 0.2:
            engine.restore(chance.choice(states))
        assert engine.won == _goal_by_definition(engine, engine.snapshot())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), chance=st.randoms(use_true_random=False))
def test_admissible_commands_are_exactly_those_without_a_reason(seed: int, chance: random.Random) -> None:
    """Of all commands met in a game, those listed do something and have no reason, the others the reverse."""
    engine = AlfworldEngine.from_json(generate_game(seed), str(seed))
    engine.reset()
    met: set[str] = set()
    for _ in range(25):
        admissible = engine.admissible
        assert admissible == sorted(set(admissible))
        met.update(admissible)
        state = engine.snapshot()
        for command in met:
            is_listed = command in admissible
            assert (engine.inadmissible_reason(command) is None) == is_listed
            assert (engine.step(command) != NOTHING) == is_listed
            engine.restore(state)
        engine.step(chance.choice(admissible))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=20))
def test_any_command_is_answered(commands: list[str]) -> None:
    """No text makes the engine raise."""
    engine = house()
    for command in commands:
        assert engine.step(command)
        assert engine.inadmissible_reason(command) is None or engine.step(command) == NOTHING


def test_snapshot_brings_back_every_answer() -> None:
    """After restoring, the same commands give the same answers, and the snapshot itself never changes."""
    engine = AlfworldEngine.from_json(generate_game(7), "7")
    engine.reset()
    commands = list(engine.walkthrough)
    play(engine, *commands[:2])
    state = engine.snapshot()
    first = [(engine.step(c), engine.admissible, engine.won) for c in commands[2:]]
    engine.restore(state)
    assert engine.snapshot() == state
    assert [(engine.step(c), engine.admissible, engine.won) for c in commands[2:]] == first
    assert engine.won
    engine.reset()
    assert not engine.won


def test_game_written_to_a_folder_is_loaded_by_folder_or_file(tmp_path: Path) -> None:
    """`load_game` takes both, and code hidden in the grammar is never evaluated."""
    game = generate_game(3)
    game["grammar"] += '{__import__("os").abort()}'
    folder = write_game(game, tmp_path)
    file = next(Path(tmp_path).rglob("game.tw-pddl"))
    assert json.loads(file.read_text())["walkthrough"] == game["walkthrough"]
    assert load_game(file).reset() == load_game(file.parent).reset()
    assert folder is not None


def test_missing_game_file_is_a_task_error(tmp_path: Path) -> None:
    """The path is named."""
    with pytest.raises(TaskError, match=r"game\.tw-pddl: cannot be read as a game file"):
        load_game(tmp_path)
