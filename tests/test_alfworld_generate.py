"""Tests of the generator of ALFWorld houses: same seed same game, official format, and every game can be won."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.tasks.alfworld import vocabulary
from dmr_gym.tasks.alfworld.engine import AlfworldEngine, load_game
from dmr_gym.tasks.alfworld.generate import generate_game, write_game
from dmr_gym.tasks.alfworld.house import HOMES, TREATMENTS, possible_goals
from dmr_gym.tasks.alfworld.panels import house_hash
from dmr_gym.tasks.alfworld.pddl import TASK_TYPES
from dmr_gym.tasks.alfworld.problem import display_names

SEEDS_PER_TYPE = 60
FIRST_GAME = "bb9cb958b639d2a05da7c2fc6f67c747709b323ac750cf51c4702a8a2f05e92e"
FIRST_200_GAMES = "578c29f299fca11567c69b237a411770ecb21d1ca78d0e6f10440213350494dd"
ID = re.compile(r"[A-Z]\w*?(_bar_(_plus_|_minus_)?\d\d_dot_\d\d){3}(_bar_(Sink|Bathtub)Basin)?")


def text_hash(game: dict[str, Any]) -> str:
    """SHA-256 of a game's very text, ids included: its problem, task sentence and walkthrough."""
    return hashlib.sha256(json.dumps([game["pddl_problem"], game["task"], game["walkthrough"]]).encode()).hexdigest()


def facts_of(game: dict[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """The facts of the initial state, by predicate."""
    text = game["pddl_problem"]
    facts: dict[str, list[tuple[str, ...]]] = {}
    for fact in re.findall(r"\(([^()]+)\)", text[text.index("(:init") : text.index("(:goal")]):
        predicate, *arguments = fact.split()
        facts.setdefault(predicate, []).append(tuple(arguments))
    return facts


def types_of(facts: dict[str, list[tuple[str, ...]]], predicate: str) -> dict[str, str]:
    """Id to type name, without the ending "Type"."""
    return {name: kind.removesuffix("Type") for name, kind in facts[predicate]}


@pytest.fixture(scope="module")
def games() -> list[dict[str, Any]]:
    """Some games of each task type."""
    return [generate_game(seed, task_type) for task_type in TASK_TYPES for seed in range(SEEDS_PER_TYPE)]


def test_a_seed_always_makes_the_same_game() -> None:
    """The content is pinned: a change here makes every published panel another one."""
    hashes = [text_hash(generate_game(seed)) for seed in range(200)]
    assert hashes[0] == FIRST_GAME
    assert hashlib.sha256("".join(hashes).encode()).hexdigest() == FIRST_200_GAMES


def test_games_do_not_depend_on_the_hash_seed_of_the_process(root: Path) -> None:
    """No order of a set or a dictionary of strings leaks into a game."""
    code = (
        "import hashlib, json\n"
        "from dmr_gym.tasks.alfworld.generate import generate_game\n"
        "games = [generate_game(seed) for seed in range(40)]\n"
        "print(hashlib.sha256(json.dumps(games).encode()).hexdigest())"
    )
    expected = hashlib.sha256(json.dumps([generate_game(seed) for seed in range(40)]).encode()).hexdigest()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == expected


def test_without_a_task_type_the_seed_draws_one_and_the_game_is_that_types_game() -> None:
    """All six types turn up, and naming the drawn type changes nothing."""
    drawn = Counter(generate_game(seed)["traj_data"]["task_type"] for seed in range(300))
    assert set(drawn) == set(TASK_TYPES)
    assert min(drawn.values()) > 25
    game = generate_game(11)
    assert generate_game(11, game["traj_data"]["task_type"]) == game


def test_different_seeds_make_different_games(games: list[dict[str, Any]]) -> None:
    """Neither ids nor contents repeat, not even where only the ids of the file would differ."""
    assert len({game["id"] for game in games}) == len(games)
    assert len({house_hash(game) for game in games}) == len(games)


def test_unknown_task_type_raises_with_the_known_ones() -> None:
    """The message names what is allowed and what came."""
    with pytest.raises(ConfigError, match=r"task_type must be one of pick_and_place_simple, .*; got 'juggle'"):
        generate_game(0, "juggle")


def test_a_game_has_the_fields_of_an_official_file() -> None:
    """Keys and types are those of ALFWorld's game.tw-pddl and traj_data.json."""
    game = generate_game(3, "pick_heat_then_place_in_recep")
    assert game["solvable"] is True
    assert f'"rhs": "Your task is to: {game["task"]}"' in game["grammar"]
    assert "UNKNOWN GOAL" not in game["grammar"]
    assert "(domain alfred)" in game["pddl_domain"]
    assert game["traj_data"]["task_type"] == "pick_heat_then_place_in_recep"
    parameters = game["traj_data"]["pddl_params"]
    assert list(parameters) == ["mrecep_target", "object_sliced", "object_target", "parent_target", "toggle_target"]
    assert f"(objectType ?o {parameters['object_target']}Type)" in game["pddl_problem"]
    assert f"(receptacleType ?r {parameters['parent_target']}Type)" in game["pddl_problem"]
    assert parameters["object_target"].lower() in game["task"]
    assert parameters["parent_target"].lower() in game["task"]


def test_written_games_lie_in_the_official_layout(tmp_path: Path) -> None:
    """A written game loads, and its file holds the official keys alone."""
    game = generate_game(5)
    path = write_game(game, tmp_path)
    assert path == tmp_path / game["id"] / "game.tw-pddl"
    keys = {"pddl_domain", "grammar", "pddl_problem", "solvable", "walkthrough"}
    assert json.loads(path.read_text()) == {key: game[key] for key in keys}
    assert json.loads(path.with_name("traj_data.json").read_text()) == game["traj_data"]
    engine = load_game(path)
    assert engine.task == game["task"]
    assert engine.task_type == game["traj_data"]["task_type"]


def test_every_walkthrough_wins_with_its_last_command_only(games: list[dict[str, Any]]) -> None:
    """Each command is admissible, the goal does not hold before the last one, and it does after."""
    for game in games:
        engine = AlfworldEngine.from_json(game, game["id"], game["traj_data"]["task_type"])
        engine.reset()
        for command in game["walkthrough"]:
            assert not engine.won, game["id"]
            assert command in engine.admissible, (game["id"], command)
            engine.step(command)
        assert engine.won, game["id"]


def test_searching_every_receptacle_leaves_steps_to_do_the_task(games: list[dict[str, Any]]) -> None:
    """Visit and open everything, then walk through: no more than 50 commands, so no house needs luck."""
    for game in games:
        facts = facts_of(game)
        search = len(facts["receptacleType"]) + len(facts.get("openable", ()))
        assert search + len(game["walkthrough"]) <= 50, game["id"]


def test_houses_are_well_formed(games: list[dict[str, Any]]) -> None:
    """Sizes, ids, placement and the start spot keep the rules of real houses."""
    for game in games:
        facts = facts_of(game)
        receptacles, objects = types_of(facts, "receptacleType"), types_of(facts, "objectType")
        assert 6 <= len(receptacles) <= 18
        assert 8 <= len(objects) <= 25
        assert all(ID.fullmatch(name) for name in [*receptacles, *objects])
        assert not set(receptacles.values()) & set(objects.values())
        places = dict(facts["receptacleAtLocation"])
        assert set(places) == set(receptacles)
        [(_, start)] = facts["atLocation"]
        assert start not in places.values()
        can_contain = {(holder, kind) for holder, kind in facts["canContain"]}
        inside = dict(facts["inReceptacle"])
        assert set(inside) == set(objects)
        spots = dict(facts["objectAtLocation"])
        for name, receptacle in inside.items():
            assert spots[name] == places[receptacle]
            kinds = (f"{receptacles[receptacle]}Type", f"{objects[name]}Type")
            assert kinds in can_contain or objects[name] in vocabulary.FIXTURES


def test_goals_can_be_reached_and_do_not_hold_by_accident(games: list[dict[str, Any]]) -> None:
    """Enough targets, a receptacle that may hold them, the appliance, and picks start outside the destination."""
    for game in games:
        facts = facts_of(game)
        receptacles, objects = types_of(facts, "receptacleType"), types_of(facts, "objectType")
        task_type, parameters = game["traj_data"]["task_type"], game["traj_data"]["pddl_params"]
        target, destination = parameters["object_target"], parameters["parent_target"]
        starts = [receptacles[at] for name, at in facts["inReceptacle"] if objects[name] == target]
        assert len(starts) >= (2 if task_type == "pick_two_obj_and_place" else 1), game["id"]
        assert len(set(objects.values()) - {target}) >= 2, game["id"]
        if task_type == "look_at_obj_in_light":
            assert "DeskLamp" in objects.values()
            continue
        assert (f"{destination}Type", f"{target}Type") in facts["canContain"]
        assert destination in receptacles.values()
        if task_type.startswith("pick_and_place") or "two" in task_type:
            assert destination not in starts, game["id"]
        else:
            treatment = TREATMENTS[task_type]
            assert treatment.appliance in receptacles.values()
            assert {name for name, kind in objects.items() if kind == target} <= {n for (n,) in facts[treatment.able]}


def test_the_numbers_of_things_say_nothing_about_where_targets_start(games: list[dict[str, Any]]) -> None:
    """Among houses with several instances of the target, the walkthrough takes number 1 in some and another in some."""
    numbers = Counter(
        command.split()[2]
        for game in games
        for command in game["walkthrough"]
        if command.startswith("take ") and f"{command.split()[1]} 2" in json.dumps(game["walkthrough"])
    )
    assert min(numbers["1"], numbers["2"]) > 20


def test_numbers_follow_the_sorted_ids_in_descending_order() -> None:
    """The first sorted id of a type gets the highest number, and basins are counted by their own name."""
    ids = ["Mug_bar__plus_01", "Mug_bar__minus_01", "Sink_bar_00_bar_SinkBasin", "Mug_bar_00"]
    assert display_names(ids) == ["mug 1", "mug 2", "sinkbasin 1", "mug 3"]


def test_some_receptacles_share_a_location() -> None:
    """About 8 % of houses have two receptacles at one spot, as many official houses do."""
    shared = 0
    for seed in range(400):
        spots = [spot for _, spot in facts_of(generate_game(seed))["receptacleAtLocation"]]
        shared += len(set(spots)) < len(spots)
    assert 15 <= shared <= 55


def test_every_room_kind_offers_goals_to_the_tasks_set_in_it() -> None:
    """The tables agree: destinations may hold their targets, and each task type has a choice of goals."""
    for task_type, rooms in vocabulary.ROOMS_OF_TASK.items():
        for kind in rooms:
            goals = possible_goals(task_type, kind)
            assert len(goals) >= 3, (task_type, kind)
            for target, destinations in goals:
                assert set(destinations) <= set(HOMES[target])


def test_vocabulary_tables_use_one_set_of_names() -> None:
    """Rooms hold only receptacles and objects that the tables describe; nothing is both."""
    receptacles = {name for homes in HOMES.values() for name in homes} | {"Toaster"}
    for room in vocabulary.ROOMS.values():
        assert {*room.required, *room.extras} <= receptacles
        assert set(room.objects) <= set(HOMES)
    assert not receptacles & set(HOMES)
    assert set(vocabulary.CAPACITY) <= receptacles
    kinds = vocabulary.CLEANABLE | vocabulary.HEATABLE | vocabulary.COOLABLE | vocabulary.SLICEABLE
    assert kinds | vocabulary.RECEPTACLE_OBJECTS | vocabulary.TOGGLEABLE <= set(HOMES)


def test_vocabulary_agrees_with_official_games(shared_data: Path) -> None:
    """What holds what, and what can be done to what, is what the official games say; so are the shipped texts."""
    with lzma.open(shared_data / "alfworld" / "valid_unseen.json.xz", "rt") as file:
        official = json.load(file)
    abilities = {
        "cleanable": vocabulary.CLEANABLE,
        "heatable": vocabulary.HEATABLE,
        "coolable": vocabulary.COOLABLE,
        "sliceable": vocabulary.SLICEABLE,
        "isReceptacleObject": vocabulary.RECEPTACLE_OBJECTS,
    }
    for game in official["games"]:
        facts = facts_of(game)
        for holder, kind in facts["canContain"]:
            assert holder.removesuffix("Type") in vocabulary.HOMES[kind.removesuffix("Type")]
        objects, receptacles = types_of(facts, "objectType"), types_of(facts, "receptacleType")
        assert {receptacles[name] for (name,) in facts.get("openable", ())} <= vocabulary.OPENABLE
        for ability, kinds in abilities.items():
            assert {objects[name] for (name,) in facts.get(ability, ())} <= kinds
    made = generate_game(0)
    assert made["pddl_domain"] == official["pddl_domain"]
    assert made["grammar"] == official["grammar"].replace("UNKNOWN GOAL.", made["task"])


def test_goals_have_the_official_shapes(shared_data: Path) -> None:
    """Each goal, with its type names blanked, reads like that of an official game of its task type."""

    def shape(problem: str) -> str:
        return re.sub(r"[A-Z]\w*Type\b", "T", " ".join(problem[problem.index("(:goal") :].split()))

    with lzma.open(shared_data / "alfworld" / "valid_unseen.json.xz", "rt") as file:
        official = json.load(file)["games"]
    for task_type in TASK_TYPES:
        shapes = {shape(game["pddl_problem"]) for game in official if game["task_type"] == task_type}
        assert shape(generate_game(0, task_type)["pddl_problem"]) in shapes, task_type
