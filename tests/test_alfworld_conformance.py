"""The native engine against what was recorded from TextWorld, and on every released game.

Needs the folders ``conformance`` and ``data`` beside the checkout; the tests skip where they are absent.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.tasks.alfworld import panels
from dmr_gym.tasks.alfworld.engine import AlfworldEngine
from dmr_gym.tasks.alfworld.games import GAME_FILE, OfficialGames
from dmr_gym.tasks.alfworld.task import AlfworldTask
from tests.released_games import released_games, write_released_game


def recorded_episodes(folder: Path) -> Iterator[dict[str, Any]]:
    """Episodes that TextWorld played."""
    with gzip.open(folder / "alfworld_episodes.jsonl.gz", "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


def test_every_recorded_step_is_the_same(shared_conformance: Path, shared_data: Path) -> None:
    """Introduction, observation, admissible commands and won of each step are TextWorld's."""
    differences, steps = [], 0
    for episode in recorded_episodes(shared_conformance):
        task_id = episode["game"]
        game = released_games(shared_data, task_id.split("/")[0])[task_id]
        engine = AlfworldEngine.from_json(game, task_id, game["task_type"])
        if (engine.reset(), engine.admissible) != (episode["intro"], episode["admissible"]):
            differences.append((task_id, "intro"))
        for step in episode["steps"]:
            found = (engine.step(step["action"]), engine.admissible, engine.won)
            steps += 1
            if found != (step["observation"], step["admissible"], step["won"]):
                differences.append((task_id, step["action"]))
    assert steps > 700
    assert differences == []


def test_every_recorded_step_is_the_same_through_the_task(
    shared_conformance: Path, shared_data: Path, tmp_path: Path
) -> None:
    """Official files on disk, read by the task, give the recorded texts, and reasons exactly for what does nothing."""
    episodes = list(recorded_episodes(shared_conformance))[:10]
    for episode in episodes:
        game = released_games(shared_data, episode["game"].split("/")[0])[episode["game"]]
        write_released_game(tmp_path, episode["game"], game)
    for split in {episode["game"].split("/")[0] for episode in episodes}:
        task = AlfworldTask(source=str(tmp_path), panel=split)
        for episode in (e for e in episodes if e["game"].startswith(f"{split}/")):
            start = task.reset(episode["game"])
            assert "\n".join(episode["intro"].split("\n\n")[1:]) == start.observation
            for recorded in episode["steps"]:
                step = task.step(f" {recorded['action']}\n> and more")
                assert (step.observation, step.done) == (recorded["observation"].strip(), recorded["won"])
                assert (step.invalid_reason is not None) == (recorded["observation"] == "Nothing happens.")


@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("train", 3553), ("valid_seen", 140), ("valid_unseen", 134)])
def test_every_released_game_is_won_by_its_walkthrough(shared_data: Path, split: str, count: int) -> None:
    """Each game loads with its task type, is not won before the last command of its walkthrough, and is won by it."""
    games = released_games(shared_data, split)
    lost = []
    for task_id, game in games.items():
        engine = AlfworldEngine.from_json(game, task_id, game["task_type"])
        engine.reset()
        for command in engine.walkthrough:
            if engine.won or engine.inadmissible_reason(command) is not None:
                lost.append((task_id, command))
            engine.step(command)
        if not engine.won:
            lost.append((task_id, "end"))
    assert len(games) == count
    assert lost == []


@pytest.mark.slow
def test_panels_of_the_released_games_are_disjoint(shared_data: Path, tmp_path: Path) -> None:
    """3,553 games train, 140 in two parts calibrate and validate, and the 134 of valid_unseen test."""
    for split in panels.SPLITS:
        for task_id in released_games(shared_data, split):
            folder = tmp_path / "json_2.1.1" / task_id
            folder.mkdir(parents=True)
            (folder / GAME_FILE).write_text("{}")
    games = OfficialGames(tmp_path)
    sizes = {panel: len(games.task_ids(panel)) for panel in (*panels.PANELS, "valid_seen")}
    assert sizes == {"train": 3553, "calibration": 73, "validation": 67, "test": 134, "valid_seen": 140}
    listed = Counter(task_id for panel in panels.PANELS for task_id in games.task_ids(panel))
    assert set(listed.values()) == {1}
    assert len(listed) == 3827
