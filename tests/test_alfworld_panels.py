"""Panels: disjoint, fixed, and recorded by content."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.tasks.alfworld import panels
from dmr_gym.tasks.alfworld.generate import generate_game
from dmr_gym.tasks.alfworld.pddl import TASK_TYPES
from tests.released_games import released_games, write_released_game

SIZES = {"train": 2000, "calibration": 200, "validation": 200, "test": 200}
OFFICIAL_SIZES = {"train": 3553, "calibration": 73, "validation": 67, "test": 134}


def test_panels_have_their_sizes_and_share_no_seed() -> None:
    """Ranges are disjoint, even when the train panel is made a hundred times longer."""
    assert {panel: len(panels.embedded_seeds(panel)) for panel in panels.PANELS} == SIZES
    seeds = [seed for panel in ("calibration", "validation", "test") for seed in panels.embedded_seeds(panel)]
    seeds += panels.embedded_seeds("train", 200_000)
    assert len(seeds) == len(set(seeds))


def test_no_house_of_a_panel_is_met_in_another_or_twice() -> None:
    """The recorded hashes, which ignore ids and coordinates, are all different."""
    hashes = panels.known_hashes()
    assert len(hashes) == sum(SIZES.values())
    assert [house for house, count in Counter(hashes.values()).items() if count > 1] == []


def test_recorded_hashes_hold_for_some_houses_of_each_panel() -> None:
    """The generator still makes the recorded houses."""
    for panel in panels.PANELS:
        some = list(panels.embedded_seeds(panel))[::50]
        assert panels.compute_hashes(some) == {
            panels.house_id(s): panels.known_hashes()[panels.house_id(s)] for s in some
        }


@pytest.mark.slow
def test_recorded_hashes_hold_for_every_house(capsys: pytest.CaptureFixture[str]) -> None:
    """The command that checks all panels finds no difference."""
    assert panels.main([]) == 0
    assert capsys.readouterr().out.startswith("2600 games, 0 differ")


def test_panels_are_recorded_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--write`` writes a panel and a hash a line, in the order of the panels, as the shipped file has them."""
    some = {panel: panels.embedded_seeds(panel)[:2] for panel in panels.PANELS}
    known = panels.known_hashes()
    expected = [f"{panel} {known[panels.house_id(seed)]}" for panel, seeds in some.items() for seed in seeds]
    monkeypatch.setattr(panels, "_SEEDS", some)
    file = tmp_path / "hashes.txt"
    assert panels.main(["--write", str(file)]) == 0
    assert file.read_text().splitlines() == expected


def test_a_changed_generator_fails_the_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A house that is not as recorded is named, and the exit status is 1."""
    known = {**panels.known_hashes(), "house-100000": "0" * 16}
    monkeypatch.setattr(panels, "compute_hashes", lambda seeds: {i: known[i] for i in map(panels.house_id, seeds)})
    assert panels.main([]) == 1
    assert "1 differ from the shipped hashes house-100000\n" in capsys.readouterr().out


def test_hash_of_a_house_ignores_ids_and_spots_but_no_fact() -> None:
    """Renamed locations give the same hash; an object that moves, or another task sentence, does not."""
    game = generate_game(5)
    value = panels.house_hash(game)
    moved = re.sub(r"\(inReceptacle \S+ \S+\)", "", game["pddl_problem"], count=1)
    assert panels.house_hash({**game, "pddl_problem": game["pddl_problem"].replace("loc_bar_", "loc_bar_x")}) == value
    assert panels.house_hash({**game, "pddl_problem": moved}) != value
    assert panels.house_hash({**game, "grammar": '"rhs": "Your task is to: rest."'}) != value


def test_every_panel_has_every_task_type() -> None:
    """Each evaluation panel holds at least a tenth of each of the six types."""
    for panel in ("calibration", "validation", "test"):
        types = Counter(generate_game(seed)["traj_data"]["task_type"] for seed in panels.embedded_seeds(panel))
        assert min(types[task_type] for task_type in TASK_TYPES) >= 20


@pytest.mark.parametrize(("panel", "n_games"), [("holdout", None), ("valid_seen", None), ("test", 201), ("train", 0)])
def test_impossible_embedded_panel_is_a_config_error(panel: str, n_games: int | None) -> None:
    """Unknown panels and sizes are refused by name."""
    with pytest.raises(ConfigError, match=panel):
        panels.embedded_seeds(panel, n_games)


def test_halves_of_valid_seen_are_disjoint_and_complete() -> None:
    """Every valid_seen game is in calibration or in validation, never in both, and nothing else is."""
    ids = [f"valid_seen/task-{n}/trial_{n}" for n in range(300)]
    calibration = [i for i in ids if panels.is_in_official_panel("calibration", i)]
    validation = [i for i in ids if panels.is_in_official_panel("validation", i)]
    assert sorted(calibration + validation) == sorted(ids)
    assert min(len(calibration), len(validation)) > 100
    assert not panels.is_in_official_panel("validation", "valid_unseen/task-1/trial_1")
    assert panels.is_in_official_panel("test", "valid_unseen/task-1/trial_1")


def panel_of(task_id: str) -> str:
    """The one panel that holds an official game."""
    [panel] = [panel for panel in panels.PANELS if panels.is_in_official_panel(panel, task_id)]
    return panel


def test_no_official_game_is_in_two_panels_or_listed_twice_or_an_embedded_house() -> None:
    """All 3,827 recorded contents are different from each other, and from those of the embedded panels."""
    recorded = panels.known_official_hashes()
    assert {panel: len(hashes) for panel, hashes in recorded.items()} == OFFICIAL_SIZES
    listed = Counter(value for hashes in recorded.values() for value in hashes)
    assert [value for value, count in listed.items() if count > 1] == []
    assert not set(listed) & set(panels.known_hashes().values())


def official_hashes(folder: Path, *splits: str) -> dict[str, tuple[str, ...]]:
    """Contents of the released games of some splits, computed anew: by panel, in the order of ids."""
    found: dict[str, list[str]] = {}
    for split in splits:
        for task_id, game in sorted(released_games(folder, split).items()):
            found.setdefault(panel_of(task_id), []).append(panels.house_hash(game)[:16])
    return {panel: tuple(hashes) for panel, hashes in found.items()}


def test_recorded_hashes_hold_for_some_official_games(shared_data: Path) -> None:
    """Every game of valid_seen and valid_unseen is recorded, in the panel that its id puts it in and at its place."""
    expected = {panel: panels.known_official_hashes()[panel] for panel in ("calibration", "validation", "test")}
    assert official_hashes(shared_data, "valid_seen", "valid_unseen") == expected


@pytest.mark.slow
def test_recorded_hashes_hold_for_every_official_game(shared_data: Path) -> None:
    """The hashes of all released games, computed anew, are those that are shipped."""
    assert official_hashes(shared_data, *panels.SPLITS) == panels.known_official_hashes()


def test_official_games_are_checked_and_recorded_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--official DIR`` records a folder's games, finds them unchanged, and names a game that is another or gone."""
    names = [f"{split}/pick-Mug-None-Desk-1/trial_{n}" for split in panels.SPLITS for n in range(9)]
    ids = {panel_of(task_id): task_id for task_id in names}
    assert sorted(ids) == sorted(panels.PANELS)
    games = {panel: generate_game(seed) for seed, panel in enumerate(panels.PANELS)}
    for panel, game in games.items():
        write_released_game(tmp_path, ids[panel], game | game["traj_data"])
    assert panels.main(["--official", str(tmp_path), "--write", str(tmp_path / "hashes.txt")]) == 0
    lines = (tmp_path / "hashes.txt").read_text().splitlines()
    assert lines == [f"{panel} {panels.house_hash(game)[:16]}" for panel, game in games.items()]

    recorded = {panel: (value,) for panel, value in map(str.split, lines)}
    monkeypatch.setattr(panels, "_recorded", lambda name: recorded)
    assert panels.main(["--official", str(tmp_path)]) == 0
    assert "4 games, 0 differ" in capsys.readouterr().out
    recorded |= {"train": ("0" * 16,), "test": (*recorded["test"], "1" * 16)}
    assert panels.main(["--official", str(tmp_path)]) == 1
    changed = f"{ids['train']}, test (has 1 games, 2 are recorded)"
    assert f"4 games, 2 differ from the shipped hashes {changed}\n" in capsys.readouterr().out
