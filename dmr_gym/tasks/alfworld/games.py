"""Sources of games: embedded houses made from seeds, and official files in ALFWorld's own folder layout.

A source lists the task ids of a panel and reads one game by its id. Nothing is read before it is asked for.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.alfworld import panels
from dmr_gym.tasks.alfworld.generate import generate_game
from dmr_gym.tasks.alfworld.pddl import MAX_GAME_BYTES, TASK_TYPES, read_game
from dmr_gym.tasks.alfworld.world import World

DATA_VARIABLE = "ALFWORLD_DATA"
GAME_FILE = "game.tw-pddl"
TRAJECTORY_FILE = "traj_data.json"
_UNSOLVABLE = re.compile(rb'"solvable"\s*:\s*false')
_UNSUPPORTED = ("movable", "Sliced")


@dataclass(frozen=True, slots=True)
class Game:
    """One game as read from its source.

    Attributes:
        task_id: id in the source's listing.
        source: file path or id, for error messages.
        data: the JSON object of the ``game.tw-pddl`` file.
        task_type: one of the six task types, as ``traj_data.json`` has it.
    """

    task_id: str
    source: str
    data: Mapping[str, Any]
    task_type: str


class GameSource(Protocol):
    """Where games come from."""

    def task_ids(self, panel: str, n_games: int | None = None) -> tuple[str, ...]:
        """Ids of a panel in a fixed order; the first ``n_games`` of them."""
        ...

    def read(self, task_id: str) -> Game:
        """Read one game. Raises TaskError when it is unknown or broken."""
        ...

    def world(self, task_id: str) -> World:
        """Read one game for the native engine. Raises TaskError as `read`."""
        ...


def open_source(source: str | os.PathLike[str]) -> GameSource:
    """Open a source of games by its name.

    Args:
        source: "embedded" for generated houses; "official" for the folder that the environment variable
            ``ALFWORLD_DATA`` names; else the path of a folder that holds ``json_2.1.1``.

    Raises:
        ConfigError: the folder does not exist or holds no official games, or ``ALFWORLD_DATA`` is not set.
    """
    if source == "embedded":
        return EmbeddedGames()
    if source == "official":
        if not os.environ.get(DATA_VARIABLE):
            raise ConfigError(
                f'source "official" needs the environment variable {DATA_VARIABLE} (the folder that alfworld-download '
                "fills), which is not set; or give the folder as source"
            )
        source = os.environ[DATA_VARIABLE]
    return OfficialGames(source)


class EmbeddedGames:
    """Houses that `dmr_gym.tasks.alfworld.generate` makes from seeds; the id "house-7" is the house of seed 7."""

    def task_ids(self, panel: str, n_games: int | None = None) -> tuple[str, ...]:
        """Ids of a panel, by seed. Raises ConfigError for an unknown panel or one without so many games."""
        return tuple(panels.house_id(seed) for seed in panels.embedded_seeds(panel, n_games))

    def read(self, task_id: str) -> Game:
        """Generate a house. Raises TaskError when the id is not of the form "house-<seed>"."""
        data = generate_game(panels.house_seed(task_id))
        return Game(task_id, task_id, data, data["traj_data"]["task_type"])

    def world(self, task_id: str) -> World:
        """Generate a house for the native engine. Raises TaskError as `read`."""
        return _generated_world(task_id)


class OfficialGames:
    """Games in the layout of ``alfworld-download``: ``json_2.1.1/<split>/<task>/<trial>/game.tw-pddl``.

    An id is the part ``<split>/<task>/<trial>``. Like ALFWorld, the listing leaves out tasks that it does not support
    (``movable``, ``Sliced``) and games marked ``"solvable": false``; unlike ALFWorld, a game without a ``solvable``
    key or without a ``traj_data.json`` is listed, and reading a broken one says what is wrong.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Find the splits under a folder. Raises ConfigError when there are none."""
        given = Path(folder)
        candidates = (given / "json_2.1.1", given)
        root = next((c for c in candidates if any((c / split).is_dir() for split in panels.SPLITS)), None)
        if root is None:
            raise ConfigError(
                f"{given}: expected a folder with json_2.1.1/{{{','.join(panels.SPLITS)}}}, as alfworld-download "
                'makes; source "embedded" needs no files'
            )
        self._root = root

    def task_ids(self, panel: str, n_games: int | None = None) -> tuple[str, ...]:
        """Ids of a panel in sorted order.

        Raises:
            ConfigError: the panel is unknown, its folder is missing, or it has not so many games.
        """
        folder = self._root / panels.official_split(panel)
        if not folder.is_dir():
            raise ConfigError(f"{folder}: panel {panel!r} needs this folder, which does not exist")
        ids = sorted(file.parent.relative_to(self._root).as_posix() for file in folder.glob(f"*/*/{GAME_FILE}"))
        chosen = [
            task_id
            for task_id in ids
            if panels.is_in_official_panel(panel, task_id)
            and not any(word in task_id for word in _UNSUPPORTED)
            and _is_solvable(self._root / task_id / GAME_FILE)
        ]
        if not chosen or (n_games is not None and not 1 <= n_games <= len(chosen)):
            raise ConfigError(f"{folder}: panel {panel!r} has {len(chosen)} games, asked for {n_games or 'some'}")
        return tuple(chosen[:n_games])

    def read(self, task_id: str) -> Game:
        """Read a game file and the ``traj_data.json`` beside it.

        Raises:
            TaskError: a file is missing, too large, not UTF-8, not JSON, or lacks a key; names the file and the cause.
        """
        parts = task_id.split("/")
        if len(parts) != 3 or parts[0] not in panels.SPLITS or any(part in ("", ".", "..") for part in parts):
            raise TaskError(f"no such game: {task_id!r:.120}; ids have the form '<split>/<task>/<trial>'")
        folder = self._root.joinpath(*parts)
        return Game(task_id, str(folder / GAME_FILE), read_game(folder), _read_task_type(folder / TRAJECTORY_FILE))

    def world(self, task_id: str) -> World:
        """Read a game for the native engine. Raises TaskError as `read`, or where its goal is not of its task type."""
        return _index(self.read(task_id))


def _index(game: Game) -> World:
    return World.from_json(game.data, game.source, game.task_type)


@lru_cache(maxsize=256)
def _generated_world(task_id: str) -> World:
    """A house, the same object for all that play in it now: the G repeats of a group are made from one."""
    return _index(EmbeddedGames().read(task_id))


def _is_solvable(file: Path) -> bool:
    """False for a game marked as unsolvable. Files that cannot be read count as solvable: reading them explains."""
    try:
        data = b"" if file.stat().st_size > MAX_GAME_BYTES else file.read_bytes()
    except OSError:
        return True
    return _UNSOLVABLE.match(data, max(data.rfind(b'"solvable"'), 0)) is None


def _read_task_type(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_GAME_BYTES:
            raise TaskError(f"{path}: expected at most {MAX_GAME_BYTES:,} bytes, found {path.stat().st_size:,}")
        trajectory = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TaskError(f"{path}: cannot be read as ALFWorld's trajectory file: {error}") from error
    task_type = trajectory.get("task_type") if isinstance(trajectory, dict) else None
    if task_type not in TASK_TYPES:
        raise TaskError(f"{path}: key 'task_type' must be one of {', '.join(TASK_TYPES)}; found {task_type!r:.60}")
    return str(task_type)
