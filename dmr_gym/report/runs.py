"""Find the runs in folders: which recipe wrote a folder is seen from its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmr_gym.alternatives import ALTERNATIVES_FILE
from dmr_gym.errors import ConfigError
from dmr_gym.evaluation import BATCHES_FOLDER, EPISODES_FILE
from dmr_gym.journal import JOURNAL_FILE
from dmr_gym.kl_dataset import read_settings
from dmr_gym.training import HISTORY_FILE, SETTINGS_FILE
from dmr_gym.tree.graph import INDEX_FILE

KL_FILE = "kl.safetensors"

MARKS = {
    "evaluation": ("results.json", EPISODES_FILE, JOURNAL_FILE),
    "kl": (KL_FILE,),
    "tree-report": ("results.json", "oracle.json", "decisions.jsonl"),
    "trees": (INDEX_FILE, "trees"),
    "training": (HISTORY_FILE, SETTINGS_FILE),
}
"""Files and folders by which the kinds of runs are known."""

_INSIDE = {BATCHES_FOLDER, "cache", "calibrations", "episodes", "router", "tensorboard"}
"""Folders of a run that hold no run."""

_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Run:
    """A folder that a recipe has written.

    Attributes:
        kind: a key of `MARKS`.
        path: of the folder.
        task: name of its world, such as "alfworld"; "" where it cannot be told.
        precisions: names in ascending order; empty where they cannot be told.
        env_id: registered id; "" where it is not on record.
    """

    kind: str
    path: Path
    task: str
    precisions: tuple[str, ...]
    env_id: str

    @property
    def has_alternatives(self) -> bool:
        """Whether an evaluation has recorded what else could have been done."""
        return (self.path / ALTERNATIVES_FILE).is_file()


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs that folders are or hold, each once, in the order in which they are found.

    Args:
        folders: of runs, or of folders with runs, such as what agents/demo.py leaves behind.

    Raises:
        ConfigError: no such folder, or one without any run, or a run that cannot be read.
    """
    found: dict[Path, Run] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is no folder: expected the --out of a recipe, or a folder that holds some")
        inside = list(_search(folder, _DEPTH))
        if not inside:
            files = "; ".join(f"{kind}: {' and '.join(names)}" for kind, names in MARKS.items())
            raise ConfigError(f"{folder} holds no run that a report could show. Runs are known by their files: {files}")
        for run in inside:
            found.setdefault(run.path.resolve(), run)
    return list(found.values())


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: the file is absent, or holds something else.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is damaged: expected a JSON object; run the recipe that wrote it again") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is damaged: expected a JSON object, got {type(data).__name__}")
    return data


def training_record(folder: Path) -> dict[str, Any]:
    """All that a training run has on record of itself: its settings, and at its end its results."""
    record = read_object(folder / SETTINGS_FILE)
    return record | (read_object(folder / "run.json") if (folder / "run.json").is_file() else {})


def _search(folder: Path, depth: int) -> Iterator[Run]:
    kind = next((kind for kind, names in MARKS.items() if all((folder / name).exists() for name in names)), None)
    if kind is not None:
        yield _identified(kind, folder)
    elif depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and child.name not in _INSIDE and not child.name.startswith("."):
                yield from _search(child, depth - 1)


def _identified(kind: str, folder: Path) -> Run:
    record = _record(kind, folder)
    try:
        env, env_id = record.get("env") or {}, record.get("env_id") or ""
        return Run(kind, folder, str(env.get("task", "")), tuple(map(str, env.get("precisions", ()))), str(env_id))
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{folder} does not say of which environment it is: run its recipe again") from error


def _record(kind: str, folder: Path) -> dict[str, Any]:
    """What has the environment among its keys."""
    if kind == "kl":
        return read_settings(folder / KL_FILE)
    if kind == "trees":
        settings: dict[str, Any] = read_object(folder / INDEX_FILE).get("settings", {})
        return settings
    if kind != "training":
        return read_object(folder / "results.json")
    record = training_record(folder)
    if "env" in record:
        return record
    if "data_settings" in record:
        return dict(record["data_settings"])
    settings = record.get("settings", {})
    if isinstance(settings, dict) and isinstance(settings.get("env"), dict):
        return settings
    # A training on KLs that has not come to its end tells no more than where its data lies.
    data = Path(str(record.get("data", ""))) / KL_FILE
    return read_settings(data) if data.is_file() else {}
