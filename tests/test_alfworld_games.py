"""Game sources: official layout, embedded houses, and broken files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.alfworld.engine import AlfworldEngine
from dmr_gym.tasks.alfworld.games import EmbeddedGames, OfficialGames, open_source
from dmr_gym.tasks.alfworld.generate import generate_game

TRAINING_GAME = "train/pick_and_place_simple-Mug-None-Desk-1/trial_T1"


def _write(root: Path, task_id: str, seed: int = 1, **changes: Any) -> Path:
    """Write a game as alfworld-download lays it out; a changed value of None removes the key."""
    game = generate_game(seed)
    folder = root / "json_2.1.1" / task_id
    folder.mkdir(parents=True)
    keys = ("pddl_domain", "grammar", "pddl_problem", "solvable", "walkthrough")
    data = {key: game[key] for key in keys} | changes
    (folder / "game.tw-pddl").write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    (folder / "traj_data.json").write_text(json.dumps(game["traj_data"]))
    return folder


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A small data folder with one game a split, and what ALFWorld leaves out."""
    _write(tmp_path, TRAINING_GAME)
    _write(tmp_path, "train/pick_and_place_simple-Cup-None-Desk-2/trial_T2", seed=2)
    _write(tmp_path, "train/pick_and_place_simple-Pan-None-Desk-2/trial_T3", seed=3, solvable=False)
    _write(tmp_path, "train/pick_and_place_with_movable_recep-Pen-Mug-Desk-2/trial_T4", seed=4)
    _write(tmp_path, "train/pick_heat_then_place_in_recep-AppleSliced-None-Desk-2/trial_T5", seed=5)
    _write(tmp_path, "valid_unseen/look_at_obj_in_light-Box-None-DeskLamp-3/trial_T6", seed=6, solvable=None)
    return tmp_path


def test_official_listing_is_sorted_and_leaves_out_what_alfworld_leaves_out(official: Path) -> None:
    """Unsolvable games, movable receptacles and sliced objects are not listed; a game without ``solvable`` is."""
    games = OfficialGames(official)
    assert games.task_ids("train") == ("train/pick_and_place_simple-Cup-None-Desk-2/trial_T2", TRAINING_GAME)
    assert games.task_ids("train", 1) == ("train/pick_and_place_simple-Cup-None-Desk-2/trial_T2",)
    assert games.task_ids("test") == ("valid_unseen/look_at_obj_in_light-Box-None-DeskLamp-3/trial_T6",)


def test_data_folder_is_found_by_itself_by_its_parent_and_by_the_environment(
    official: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder json_2.1.1, its parent, and ALFWORLD_DATA name the same games."""
    monkeypatch.setenv("ALFWORLD_DATA", str(official))
    listings = {
        open_source(source).task_ids("train") for source in (str(official), official / "json_2.1.1", "official")
    }
    assert len(listings) == 1


def test_folder_name_with_movable_hides_no_game(tmp_path: Path) -> None:
    """Only the id decides what is left out, not where the data lies."""
    _write(tmp_path / "movable disk", TRAINING_GAME)
    assert OfficialGames(tmp_path / "movable disk").task_ids("train") == (TRAINING_GAME,)


def test_official_game_is_read_with_its_task_type(official: Path) -> None:
    """The file's JSON object and the trajectory's task type come back together."""
    game = OfficialGames(official).read(TRAINING_GAME)
    assert game.task_type == generate_game(1)["traj_data"]["task_type"]
    assert AlfworldEngine.from_json(game.data, game.source, game.task_type).walkthrough


def test_folder_without_games_is_a_config_error(tmp_path: Path) -> None:
    """The message says what the folder should hold and what needs no folder."""
    with pytest.raises(ConfigError, match=r"expected a folder with json_2\.1\.1/.*source \"embedded\" needs no files"):
        open_source(str(tmp_path))


def test_missing_environment_variable_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Source "official" without ALFWORLD_DATA says which variable to set."""
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(ConfigError, match="ALFWORLD_DATA"):
        open_source("official")


@pytest.mark.parametrize(("panel", "n_games"), [("holdout", None), ("validation", None), ("train", 3), ("train", 0)])
def test_panel_that_the_folder_cannot_fill_is_a_config_error(official: Path, panel: str, n_games: int | None) -> None:
    """An unknown panel, a split without a folder, and too many games are refused."""
    with pytest.raises(ConfigError, match=panel):
        OfficialGames(official).task_ids(panel, n_games)


def test_embedded_houses_are_listed_without_end_in_the_train_panel() -> None:
    """The train panel has 2,000 fixed houses and grows on demand; equal seeds give equal games."""
    games = EmbeddedGames()
    assert len(games.task_ids("train")) == 2000
    assert games.task_ids("train", 2500)[:2000] == games.task_ids("train")
    task_id = games.task_ids("train", 2500)[-1]
    assert games.read(task_id).data == EmbeddedGames().read(task_id).data


@pytest.mark.parametrize("task_id", ["", "house-", "house-x", "house--1", "house-01", "house-1 ", "house-" + "9" * 99])
def test_malformed_house_id_is_a_task_error(task_id: str) -> None:
    """Ids that no listing has are refused."""
    with pytest.raises(TaskError, match="no such embedded house"):
        EmbeddedGames().read(task_id)


@pytest.mark.parametrize(
    "task_id", ["", "train", "train/a", "train/../x", "../train/a", "etc/a/b", "train/a/\0", "/a/b"]
)
def test_malformed_official_id_is_a_task_error(official: Path, task_id: str) -> None:
    """No id reaches outside the data folder or raises anything else."""
    with pytest.raises(TaskError):
        OfficialGames(official).read(task_id)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def _not_utf8(file: Path) -> None:
    file.write_bytes(b'{"pddl_problem": "\xff\xfe"}')


def _huge(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(20_000_001)


def _list(file: Path) -> None:
    file.write_text("[]")


def _nested(file: Path) -> None:
    file.write_text("[" * 200_000)


def _long_number(file: Path) -> None:
    file.write_text('{"walkthrough": ' + "1" * 10_000 + "}")


@pytest.mark.parametrize("name", ["game.tw-pddl", "traj_data.json"])
@pytest.mark.parametrize("damage", [Path.unlink, _truncate, _not_utf8, _huge, _list, _nested, _long_number])
def test_broken_file_is_a_task_error_that_names_it(official: Path, damage: Callable[[Path], None], name: str) -> None:
    """Missing, truncated, not UTF-8, oversized, wrong JSON: the file is named, and nothing else is raised."""
    file = official / "json_2.1.1" / TRAINING_GAME / name
    if damage is _truncate and name == "traj_data.json":
        file.write_text('{"task_type": "pick')
    else:
        damage(file)
    games = OfficialGames(official)
    assert TRAINING_GAME in games.task_ids("train") or damage is Path.unlink
    with pytest.raises(TaskError) as caught:
        games.read(TRAINING_GAME)
    assert str(file) in str(caught.value)


def _replace(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.__setitem__(key, value)


def _delete(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.__delitem__(key)


def _swap(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda data: data.__setitem__("pddl_problem", data["pddl_problem"].replace(old, new))


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (_delete("pddl_problem"), "'pddl_problem' must be a string, found nothing"),
        (_delete("grammar"), "'grammar' must be a string, found nothing"),
        (_delete("walkthrough"), "'walkthrough' must be a list of commands"),
        (_replace("pddl_problem", 3), "'pddl_problem' must be a string, found int"),
        (_replace("walkthrough", [1]), "'walkthrough' must be a list of commands"),
        (_replace("grammar", "{}"), "grammar lacks its line"),
        (_replace("pddl_problem", "(define"), "it may be truncated"),
        (_swap("(:init", "(:init (inReceptacle Ghost_bar_1 Shelf_bar_1)"), "'ghost_bar_1'"),
        (_swap("(:init", "(:init (openable a b)"), "needs 1 arguments, found 2"),
        (_swap("(atLocation", "(wasAt"), "expected one (atLocation agent location) fact, found 0"),
        (_swap("inReceptacle ?o", "isBroken ?o"), "none of ALFWorld's six"),
    ],
)
def test_broken_game_is_a_task_error_that_names_the_cause(damage: Callable[[dict[str, Any]], None], cause: str) -> None:
    """Keys that are missing or of another type, unknown objects, and unknown goals are told apart."""
    game = generate_game(1, "pick_and_place_simple")
    damage(game)
    with pytest.raises(TaskError) as caught:
        AlfworldEngine.from_json(game, "some/game.tw-pddl")
    assert str(caught.value).startswith("some/game.tw-pddl: ")
    assert cause in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_mutilated_problem_is_playable_or_a_task_error(data: st.DataObject) -> None:
    """Cutting, doubling or overwriting any piece of the PDDL raises nothing but TaskError."""
    game = generate_game(data.draw(st.integers(0, 5)))
    text = game["pddl_problem"]
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, min(len(text), begin + 400)))
    filler = data.draw(st.one_of(st.text(max_size=20), st.sampled_from([text[begin:end] * 2, ")", "(", ";", " ?x "])))
    game["pddl_problem"] = text[:begin] + filler + text[end:]
    try:
        engine = AlfworldEngine.from_json(game, "mutilated")
    except TaskError:
        return
    engine.reset()
    for command in engine.walkthrough:
        engine.step(command)
        assert engine.admissible
