"""Finds WebShop's data files in a folder, and tells whether they are still those that an index was made of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmr_gym.errors import TaskError
from dmr_gym.tasks.webshop.json_stream import JsonStream

SMALL = "_1000"
SMALL_PRODUCTS = 1000
ITEMS, INSTRUCTIONS, HUMAN = "items_shuffle", "items_ins_v2", "items_human_ins"


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file and what its directory entry said when it was found."""

    path: Path
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> DataFile:
        """Look at a file. Raises TaskError when it cannot be looked at."""
        try:
            entry = path.stat()
        except OSError as error:
            raise TaskError(f"{path}: cannot be read ({error.strerror})") from error
        return cls(path, entry.st_size, entry.st_mtime_ns)

    def record(self, digest: str | None) -> dict[str, Any]:
        """What a manifest keeps of the file; ``digest`` is its sha256, None when not all of it was read."""
        return {"name": self.path.name, "bytes": self.size, "mtime_ns": self.mtime_ns, "sha256": digest}

    def is_as_recorded(self, record: Mapping[str, Any]) -> bool:
        """Whether the file is the one that a manifest tells of; hashes it if only its time has changed."""
        if (self.path.name, self.size) != (record.get("name"), record.get("bytes")):
            return False
        if self.mtime_ns == record.get("mtime_ns"):
            return True
        digest = record.get("sha256")
        if digest is None:
            return False
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == str(digest)


@dataclass(frozen=True, slots=True)
class DataFiles:
    """The files of one shop.

    Attributes:
        items: the products.
        instructions: attributes and synthetic instructions.
        human: human instructions; None when the folder has none.
    """

    items: DataFile
    instructions: DataFile
    human: DataFile | None

    @property
    def folder(self) -> Path:
        """The folder that has them."""
        return self.items.path.parent


def find_data_files(data_dir: str | os.PathLike[str], num_products: int | None = None) -> DataFiles:
    """Find the official files; of a folder with both releases, the full one unless 1000 products are enough.

    Args:
        data_dir: folder with ``items_shuffle[_1000].json``, ``items_ins_v2[_1000].json``, ``items_human_ins.json``.
        num_products: how many rows will be read; None for all.

    Raises:
        TaskError: a file that is needed is missing.
    """
    folder = Path(data_dir).expanduser().absolute()
    small_first = num_products is not None and num_products <= SMALL_PRODUCTS
    suffixes = (SMALL, "") if small_first else ("", SMALL)
    items = _first_file(folder, [f"{ITEMS}{suffix}.json" for suffix in suffixes])
    same = SMALL if items.path.stem.endswith(SMALL) else ""
    # The full instruction file also serves the small catalogue, but not the other way round.
    names = [f"{INSTRUCTIONS}{suffix}.json" for suffix in dict.fromkeys((same, "", SMALL))]
    human = folder / f"{HUMAN}.json"
    return DataFiles(items, _first_file(folder, names), DataFile.of(human) if human.is_file() else None)


def read_object(file: DataFile) -> Mapping[str, Any]:
    """Read a file that holds one object, whose values are parsed when they are asked for.

    Raises:
        TaskError: it cannot be read.
    """
    return ObjectFile(JsonStream(file.path, "entry").members())


class ObjectFile(Mapping[str, Any]):
    """A JSON object whose values stay text until they are asked for, at about a fifth of the memory."""

    def __init__(self, members: Iterator[tuple[str, str]]) -> None:
        self._texts = {key: value.encode("utf-8") for key, value in members}

    def __getitem__(self, key: str) -> Any:
        return json.loads(self._texts[key])

    def __contains__(self, key: object) -> bool:
        return key in self._texts

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __len__(self) -> int:
        return len(self._texts)


def _first_file(folder: Path, names: list[str]) -> DataFile:
    for name in names:
        if (folder / name).is_file():
            return DataFile.of(folder / name)
    raise TaskError(
        f"{folder}: expected {' or '.join(dict.fromkeys(names))}, as WebShop's setup.sh downloads them; found "
        f"{'no such file' if folder.is_dir() else 'no such folder'}"
    )
