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

The content of every game of every panel is recorded by hash. ``python -m dmr_gym.tasks.alfworld.panels`` generates
each embedded game and compares it with the hashes shipped in ``panel_hashes.txt``; with ``--official DIR`` it reads the
games of ALFWorld's data folder instead and compares them with ``official_panel_hashes.txt``. ``--write FILE`` records
the hashes. No hash stands in two places: no game is met in two panels, and no embedded house is an official game.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
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
_OFFICIAL_HASH_FILE = "official_panel_hashes.txt"
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
    """The shipped table of embedded houses: task id to the first 16 hexadecimal digits of the game's `house_hash`."""
    recorded = _recorded(_HASH_FILE)
    pairs = (pair for panel in PANELS for pair in zip(_SEEDS[panel], recorded[panel], strict=True))
    return {house_id(seed): value for seed, value in pairs}


@cache
def known_official_hashes() -> Mapping[str, tuple[str, ...]]:
    """The shipped table of official games: panel to the first 16 digits of their `house_hash`, in the order of ids."""
    return _recorded(_OFFICIAL_HASH_FILE)


def compute_hashes(seeds: Sequence[int]) -> dict[str, str]:
    """Generate the houses of some seeds and hash them, in the form that `known_hashes` has."""
    return {house_id(seed): house_hash(generate_game(seed))[:_HASH_DIGITS] for seed in seeds}


def compute_official_hashes(folder: str | Path) -> dict[str, dict[str, str]]:
    """Read and hash all games of ALFWorld's data folder: for each panel, id to hash, by sorted ids.

    Raises:
        ConfigError: the folder holds no official games, or none of a panel.
        TaskError: a game is broken.
    """
    from dmr_gym.tasks.alfworld.games import OfficialGames  # games.py asks this module which panel a game is in

    source = OfficialGames(folder)
    return {
        panel: {task_id: house_hash(source.read(task_id).data)[:_HASH_DIGITS] for task_id in source.task_ids(panel)}
        for panel in PANELS
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Check, or record with ``--write``, the content hashes of all panels; 0 when they hold.

    Raises:
        ConfigError, TaskError: what ``--official`` names cannot be read.
    """
    parser = argparse.ArgumentParser(description="content hashes of the ALFWorld panels")
    parser.add_argument("--official", metavar="DIR", type=Path, help="hash the games of ALFWorld's data folder instead")
    parser.add_argument("--write", metavar="FILE", type=Path, help="record the hashes in FILE instead of checking them")
    arguments = parser.parse_args(argv)
    if arguments.official:
        found = compute_official_hashes(arguments.official)
    else:
        found = {panel: compute_hashes(seeds) for panel, seeds in _SEEDS.items()}
    lines = [f"{panel} {value}\n" for panel, hashes in found.items() for value in hashes.values()]
    if arguments.write:
        arguments.write.write_text("".join(lines), encoding="ascii")
        print(f"{len(lines)} hashes written to {arguments.write}")
        return 0
    recorded = _recorded(_OFFICIAL_HASH_FILE if arguments.official else _HASH_FILE)
    changed = [name for panel in PANELS for name in _differences(panel, found[panel], recorded[panel])]
    print(f"{len(lines)} games, {len(changed)} differ from the shipped hashes {', '.join(changed[:10])}".rstrip())
    return 1 if changed else 0


def _differences(panel: str, found: Mapping[str, str], recorded: Sequence[str]) -> list[str]:
    """Name the games of a panel that are not as recorded, and the panel itself where its size is another."""
    if len(found) == len(recorded):
        return [task_id for (task_id, value), known in zip(found.items(), recorded, strict=True) if value != known]
    strangers = [task_id for task_id, value in found.items() if value not in recorded]
    return [f"{panel} (has {len(found)} games, {len(recorded)} are recorded)", *strangers]


def _recorded(name: str) -> dict[str, tuple[str, ...]]:
    """Read a shipped table, a panel and a hash a line: the hashes of each panel in their order."""
    text = resources.files("dmr_gym.tasks.alfworld").joinpath("data", name).read_text(encoding="ascii")
    table: dict[str, list[str]] = {panel: [] for panel in PANELS}
    for line in text.splitlines():
        panel, value = line.split()
        table[panel].append(value)
    return {panel: tuple(values) for panel, values in table.items()}


if __name__ == "__main__":
    from dmr_gym.command_line import run  # only as a command: it loads the environments

    run(lambda: sys.exit(main()))
