"""Fixed panels of tasks: which games train, calibrate, validate and test.

=========== =========================== =========================== =====================================
panel       embedded houses (seeds)     official games              for
=========== =========================== =========================== =====================================
train       2,000, from 1,000,000       train                       gradient steps, KL labels
calibration 200, from 300,000           one part of valid_seen      quantisation, thresholds
validation  200, from 200,000           the rest of valid_seen      choosing hyper-parameters
test        200, from 100,000           valid_unseen                the numbers one reports
=========== =========================== =========================== =====================================

Never train or tune on ``test``. The two parts of valid_seen, about half each, are told apart by a hash of the game's id
alone, so a game stays on its side whatever else lies in the folder. Official files may also be asked for by the name
of a split, ``valid_seen`` or ``valid_unseen``. The train panel of embedded houses can be made longer, without end.

``python -m dmr_gym.tasks.alfworld.panels`` generates every embedded game and compares its content with the hashes
shipped in ``panel_hashes.txt``; with ``--write FILE`` it records them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.alfworld.generate import generate_game
from dmr_gym.tasks.alfworld.pddl import parse_game

PANELS = ("train", "calibration", "validation", "test")
SPLITS = ("train", "valid_seen", "valid_unseen")
_SEEDS = {
    "train": range(1_000_000, 1_002_000),
    "calibration": range(300_000, 300_200),
    "validation": range(200_000, 200_200),
    "test": range(100_000, 100_200),
}
_SPLIT_OF_PANEL = {"train": "train", "calibration": "valid_seen", "validation": "valid_seen", "test": "valid_unseen"}
_HOUSE_ID = re.compile(r"house-(0|[1-9][0-9]{0,17})")
_HASH_FILE = "panel_hashes.txt"
_HASH_DIGITS = 16


def embedded_seeds(panel: str, n_games: int | None = None) -> range:
    """Seeds of a panel of embedded houses.

    Args:
        panel: one of `PANELS`.
        n_games: the first so many of them; more than 2,000 only in the train panel. None takes the whole panel.

    Raises:
        ConfigError: the panel is unknown, or has not so many games.
    """
    if panel not in _SEEDS:
        raise ConfigError(f"unknown panel {panel!r}: embedded houses have the panels {', '.join(PANELS)}")
    seeds = _SEEDS[panel]
    if n_games is None:
        return seeds
    if n_games < 1 or (n_games > len(seeds) and panel != "train"):
        raise ConfigError(f"n_games must lie in 1 to {len(seeds)} for panel {panel!r}, found {n_games}")
    return range(seeds.start, seeds.start + n_games)


def house_id(seed: int) -> str:
    """The task id of an embedded house."""
    return f"house-{seed}"


def house_seed(task_id: str) -> int:
    """The seed in the task id of an embedded house.

    Raises:
        TaskError: the id has another form.
    """
    match = _HOUSE_ID.fullmatch(task_id)
    if match is None:
        raise TaskError(f"no such embedded house: {task_id!r:.80}; ids have the form 'house-<seed>'")
    return int(match[1])


def official_split(panel: str) -> str:
    """The official split that holds a panel's games; a split's own name stands for the whole split.

    Raises:
        ConfigError: the panel is unknown.
    """
    if panel in SPLITS:
        return panel
    if panel not in _SPLIT_OF_PANEL:
        names = ", ".join(dict.fromkeys(PANELS + SPLITS))
        raise ConfigError(f"unknown panel {panel!r}: official games have the panels {names}")
    return _SPLIT_OF_PANEL[panel]


def is_in_official_panel(panel: str, task_id: str) -> bool:
    """Whether an official game belongs to a panel, judged by its id alone."""
    split = official_split(panel)
    if not task_id.startswith(f"{split}/"):
        return False
    if panel not in ("calibration", "validation"):
        return True
    is_even = hashlib.sha256(task_id.encode()).digest()[0] % 2 == 0
    return is_even == (panel == "calibration")


def house_hash(game: Mapping[str, Any]) -> str:
    """Hash of what a player can meet in a game, the same for houses that differ in the ids of their file alone.

    It covers the task, the goal, the walkthrough, and each fact with names in place of ids ("mug 1"), and with a
    location written as the receptacles that stand there.

    Args:
        game: a game file's JSON object.

    Returns:
        64 hexadecimal digits of SHA-256.

    Raises:
        TaskError: the game is broken.
    """
    parsed = parse_game(game, str(game.get("id", "game")))
    standing: dict[str, str] = {}
    for receptacle, location in sorted(parsed.facts.get("receptacleatlocation", ())):
        standing[location] = f"{standing.get(location, 'at')} {parsed.names[receptacle]}"
    spots = (fact[1] for p in ("atlocation", "objectatlocation") for fact in parsed.facts.get(p, ()))
    words = {**parsed.names, **dict.fromkeys(spots, "elsewhere"), **standing}
    facts = {
        predicate: sorted(" | ".join(words.get(name, name) for name in fact) for fact in facts)
        for predicate, facts in parsed.facts.items()
    }
    content = [parsed.task, repr(parsed.goal), parsed.walkthrough, facts]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def known_hashes() -> Mapping[str, str]:
    """The shipped table: task id to the first 16 hexadecimal digits of the game's `house_hash`."""
    text = resources.files("dmr_gym.tasks.alfworld").joinpath("data", _HASH_FILE).read_text(encoding="ascii")
    hashes = iter(text.split())
    return {house_id(seed): next(hashes) for panel in PANELS for seed in _SEEDS[panel]}


def compute_hashes(seeds: Sequence[int]) -> dict[str, str]:
    """Generate the houses of some seeds and hash them, in the form that `known_hashes` has."""
    return {house_id(seed): house_hash(generate_game(seed))[:_HASH_DIGITS] for seed in seeds}


def main(argv: Sequence[str] | None = None) -> int:
    """Check, or record with ``--write``, the content hashes of all embedded panels; 0 when they hold."""
    parser = argparse.ArgumentParser(description="content hashes of the embedded ALFWorld panels")
    parser.add_argument("--write", metavar="FILE", type=Path, help="record the hashes in FILE instead of checking them")
    arguments = parser.parse_args(argv)
    hashes = compute_hashes([seed for panel in PANELS for seed in _SEEDS[panel]])
    if arguments.write:
        arguments.write.write_text("\n".join(hashes.values()) + "\n", encoding="ascii")
        print(f"{len(hashes)} hashes written to {arguments.write}")
        return 0
    changed = [task_id for task_id, value in hashes.items() if known_hashes()[task_id] != value]
    print(f"{len(hashes)} games, {len(changed)} differ from the shipped hashes {', '.join(changed[:10])}".rstrip())
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
