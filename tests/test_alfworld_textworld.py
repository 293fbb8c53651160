"""The native engine against TextWorld itself, step by step. Needs the package alfworld, else the tests skip."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.errors import MissingDependency, TaskError
from dmr_gym.tasks.alfworld import textworld
from dmr_gym.tasks.alfworld.engine import AlfworldEngine
from dmr_gym.tasks.alfworld.generate import generate_game, write_game
from dmr_gym.tasks.alfworld.panels import embedded_seeds, house_id
from dmr_gym.tasks.alfworld.pddl import TASK_TYPES
from dmr_gym.tasks.alfworld.task import AlfworldTask
from dmr_gym.tasks.alfworld.textworld import TextworldEngine

HAS_ALFWORLD = importlib.util.find_spec("alfworld") is not None
needs_alfworld = pytest.mark.skipif(
    not HAS_ALFWORLD, reason='needs the package alfworld: pip install "dmr-gym[alfworld]"'
)
pytestmark = pytest.mark.filterwarnings("ignore")  # third-party modules warn at import
ODDITIES = ("Look", "  look ", "take x", "use desklamp 1", "move a to b", "go  to desk 1", "put mug 1 in/on desk 1")
DULL = ("go", "examine", "look", "inventory", "help", "close")


def differences(game: dict[str, Any], source: str, n_random: int) -> list[str]:
    """Play random commands, then the walkthrough, in both engines; what was not the same."""
    chance = random.Random(source)
    native, reference = AlfworldEngine.from_json(game, source), TextworldEngine(game, source)
    found = [] if native.reset() == reference.reset() else ["intro"]
    commands: Iterator[str] = iter(native.walkthrough)
    for step in range(n_random + len(native.walkthrough)):
        if step < n_random:
            admissible = native.admissible
            weights = [1 if command.startswith(DULL) else 4 for command in admissible]
            command = chance.choice(ODDITIES) if chance.random() < 0.05 else chance.choices(admissible, weights)[0]
        else:
            command = next(commands)
        reason = native.inadmissible_reason(command)
        mine = (native.step(command), native.admissible, native.won)
        theirs = (reference.step(command), reference.admissible, reference.won)
        if mine != theirs or (reason is None) != (theirs[0] != "Nothing happens."):
            found.append(f"{source} step {step} {command!r}: {mine} is not {theirs}; reason {reason}")
    return found


@needs_alfworld
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(20))
def test_generated_house_plays_the_same_in_textworld(seed: int) -> None:
    """20 houses of all six types, random and walkthrough commands: no difference."""
    game = generate_game(500_000 + seed, TASK_TYPES[seed % 6])
    assert differences(game, house_id(500_000 + seed), n_random=20) == []


@needs_alfworld
@pytest.mark.slow
def test_crowded_spot_plays_the_same_in_textworld() -> None:
    """Objects moved among receptacles that all stand together: ``look`` lists them as TextWorld does."""
    game = generate_game(0, TASK_TYPES[5])
    declared, begin, facts = game["pddl_problem"].partition("(:init")
    locations = re.findall(r"\(receptacleAtLocation \S+ ([^\s)]+)\)", facts)
    crowded = re.sub("|".join(rf"{re.escape(place)}(?=\))" for place in set(locations)), locations[0], facts)
    game["pddl_problem"] = declared + begin + crowded
    native, reference = AlfworldEngine.from_json(game, "crowd"), TextworldEngine(game, "crowd")
    chance = random.Random(0)
    native.reset()
    repeated = 0
    for _ in range(40):
        handling = [c for c in native.admissible if c.startswith(("take", "move", "open"))]
        command = chance.choice(handling or [c for c in native.admissible if c.startswith("go")])
        assert native.step(command) == reference.step(command)
        beside = native.step("look")
        assert (beside, native.admissible, native.won) == (reference.step("look"), reference.admissible, reference.won)
        names = re.findall(r"a (\w+ \d+)", beside.split("Next to it")[1])
        repeated += len(names) > len(set(names))
    assert repeated


@needs_alfworld
@pytest.mark.slow
def test_task_on_textworld_is_the_task_on_the_native_engine(tmp_path: Path) -> None:
    """Prompts, steps and reasons are equal; snapshots are replayed, also across games; environments are reused."""
    fast, slow = AlfworldTask(panel="test", n_games=2), AlfworldTask(panel="test", n_games=2, engine="textworld")
    for task in (fast, slow):
        task.reset(house_id(embedded_seeds("test")[0]))
    completions = [" think: hm", f" {fast.engine.walkthrough[0]}", " dance", " put x in y", " look"]
    assert [fast.step(c) for c in completions] == [slow.step(c) for c in completions]
    states = fast.snapshot(), slow.snapshot()
    environments = len(textworld._IDLE) + 1
    for task in (fast, slow):
        task.reset(house_id(embedded_seeds("test")[1]))
        task.step(" inventory")
    assert len(textworld._IDLE) + 1 == environments
    fast.restore(states[0])
    slow.restore(states[1])
    assert fast.prompt() == slow.prompt()
    assert [fast.step(c) for c in completions] == [slow.step(c) for c in completions]
    assert fast.engine.walkthrough == slow.engine.walkthrough
    assert (fast.engine.task, fast.engine.task_type) == (slow.engine.task, slow.engine.task_type)


@needs_alfworld
@pytest.mark.slow
def test_official_layout_is_played_by_textworld(tmp_path: Path) -> None:
    """A written game is found by its id; ``sys.argv`` is left alone."""
    game = generate_game(1)
    folder = write_game(game, tmp_path / "json_2.1.1" / "valid_unseen")
    arguments = sys.argv
    task = AlfworldTask(source=str(tmp_path), panel="test", engine="textworld")
    start = task.reset(task.task_ids[0])
    assert start.instruction == game["task"]
    assert sys.argv is arguments
    assert folder.exists()


@needs_alfworld
@pytest.mark.slow
def test_threads_take_turns() -> None:
    """Two threads play at once and get what one alone gets."""
    game = generate_game(2)
    native = AlfworldEngine.from_json(game, "threads")
    native.reset()
    expected = [native.step(command) for command in native.walkthrough[:4]]
    answers: dict[int, list[str]] = {}

    def play(number: int) -> None:
        engine = TextworldEngine(game, f"thread {number}")
        engine.reset()
        answers[number] = [engine.step(command) for command in engine.walkthrough[:4]]

    threads = [threading.Thread(target=play, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {0: expected, 1: expected}


@needs_alfworld
@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "old", "new"),
    [("pddl_problem", "(:init", "(:init (wasEaten Apple)"), ("pddl_domain", "(:action", "(:act"), ("grammar", "{", "")],
)
def test_what_textworld_dies_of_is_a_task_error(key: str, old: str, new: str) -> None:
    """PDDL mistakes end TextWorld's process; here they name the game. The environment can be used again."""
    game = generate_game(3)
    with pytest.raises(TaskError, match="broken: TextWorld "):
        TextworldEngine({**game, key: game[key].replace(old, new, 1)}, "broken").reset()
    assert TextworldEngine(game, "whole").reset().startswith("-= Welcome")


@pytest.mark.skipif(HAS_ALFWORLD, reason="the package alfworld is installed")
def test_missing_package_says_what_to_install() -> None:
    """The message has the pip command with the extra."""
    with pytest.raises(MissingDependency, match=r'pip install "dmr-gym\[alfworld\]"'):
        AlfworldTask(engine="textworld").reset(house_id(1_000_000))


def test_engine_without_the_domain_is_a_task_error() -> None:
    """TextWorld needs more of a file than the native engine does; what is missing is named."""
    game = generate_game(0)
    del game["pddl_domain"]
    with pytest.raises(TaskError, match="game: key 'pddl_domain' must be a string"):
        TextworldEngine(game)
