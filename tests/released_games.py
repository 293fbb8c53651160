"""The released ALFWorld games, as the folder of real data has them."""

from __future__ import annotations

import json
import lzma
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dmr_gym.tasks.alfworld.games import GAME_FILE, TRAJECTORY_FILE

PLACEHOLDER = "Your task is to: UNKNOWN GOAL."


@cache
def released_games(folder: Path, split: str) -> dict[str, dict[str, Any]]:
    """A split's games by id, each with the keys of its game file and its task type."""
    with lzma.open(folder / "alfworld" / f"{split}.json.xz", "rt", encoding="utf-8") as file:
        data = json.load(file)
    return {
        game["id"]: {
            "pddl_domain": data["pddl_domain"],
            "grammar": data["grammar"].replace(PLACEHOLDER, f"Your task is to: {game['task']}", 1),
            "pddl_problem": game["pddl_problem"],
            "solvable": True,
            "walkthrough": game["walkthrough"],
            "task_type": game["task_type"],
        }
        for game in data["games"]
    }


def write_released_game(folder: Path, task_id: str, game: Mapping[str, Any]) -> None:
    """Write a game as alfworld-download lays it out."""
    target = folder / "json_2.1.1" / task_id
    target.mkdir(parents=True)
    (target / GAME_FILE).write_text(json.dumps(game), encoding="utf-8")
    (target / TRAJECTORY_FILE).write_text(json.dumps({"task_type": game["task_type"]}), encoding="utf-8")
