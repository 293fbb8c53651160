"""The native engine: texts, commands, snapshots and files, on a house written by hand and many others."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.errors import TaskError
from dmr_gym.tasks.alfworld.engine import HELP, AlfworldEngine, load_game
from dmr_gym.tasks.alfworld.generate import generate_game, write_game
from tests.alfworld_house import NOTHING, house, play


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
