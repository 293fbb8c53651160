"""Finds WebShop's data files in a folder, streams their products, and tells whether they are still the same files."""

from __future__ import annotations

import hashlib
import json
import numbers
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.webshop.catalogue import Product
from dmr_gym.tasks.webshop.index_folder import bytes_bar
from dmr_gym.tasks.webshop.json_stream import JsonStream
from dmr_gym.tasks.webshop.rows import RowReader

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
            raise _unreadable(path, error) from error
        return cls(path, entry.st_size, entry.st_mtime_ns)

    def record(self, digest: str | None) -> dict[str, Any]:
        """What a manifest keeps of the file; ``digest`` is its sha256, None when not all of it was read."""
        return {"name": self.path.name, "bytes": self.size, "mtime_ns": self.mtime_ns, "sha256": digest}

    def is_as_recorded(self, record: object) -> bool:
        """Whether the file is the one that a manifest tells of; hashes it if only its time has changed.

        Raises:
            TaskError: it has to be read, and cannot be.
        """
        if not isinstance(record, Mapping):
            return False
        if (self.path.name, self.size) != (record.get("name"), record.get("bytes")):
            return False
        if self.mtime_ns == record.get("mtime_ns"):
            return True
        digest = record.get("sha256")
        if digest is None:
            return False
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == str(digest)
        except OSError as error:
            raise _unreadable(self.path, error) from error


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
        ConfigError: ``data_dir`` is no path.
        TaskError: a file that is needed is missing.
    """
    folder = read_path("data_dir", data_dir)
    if folder.is_file():
        raise TaskError(f"{folder}: is a file, expected a folder with WebShop's data files")
    small_first = num_products is not None and num_products <= SMALL_PRODUCTS
    suffixes = (SMALL, "") if small_first else ("", SMALL)
    items = _first_file(folder, [f"{ITEMS}{suffix}.json" for suffix in suffixes])
    names = [f"{INSTRUCTIONS}.json"]
    if items.path.stem.endswith(SMALL):
        names.insert(0, f"{INSTRUCTIONS}{SMALL}.json")
    elif not _is_file(folder / names[0]) and _is_file(folder / f"{INSTRUCTIONS}{SMALL}.json"):
        raise TaskError(
            f"{folder}: {items.path.name} needs {names[0]}; {INSTRUCTIONS}{SMALL}.json knows the products of "
            f"{ITEMS}{SMALL}.json alone. Add the full file, or play these with num_products={SMALL_PRODUCTS}"
        )
    human = folder / f"{HUMAN}.json"
    return DataFiles(items, _first_file(folder, names), DataFile.of(human) if _is_file(human) else None)


def read_path(name: str, value: object) -> Path:
    """A folder that the user gave, as an absolute path. Raises ConfigError when it is no path."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text or "\0" in text:
        raise ConfigError(f"{name} must be the path of a folder; got {value!r:.120}")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # "~name" of an unknown user
        raise ConfigError(f"{name} must be the path of a folder; got {value!r:.120} ({error})") from error


def read_number(name: str, value: object, least: int | None = None, or_else: str = "") -> int:
    """A whole number that the user gave, NumPy's included. Raises ConfigError when it is none, or too small."""
    is_bool = isinstance(value, bool)  # which is an Integral too
    whole = int(value) if isinstance(value, numbers.Integral) and not is_bool else None
    if whole is None or (least is not None and whole < least):
        bound = "" if least is None else f", at least {least}"
        raise ConfigError(f"{name} must be a whole number{bound}{or_else}; got {value!r:.60}")
    return whole


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


class ProductReader:
    """A pass through the data files: rows joined with their instruction entries, in the file's order.

    Args:
        files: the files.
        num_products: read only so many rows; None reads all.
    """

    def __init__(self, files: DataFiles, num_products: int | None) -> None:
        self._files = files
        self._num_products = num_products
        self._digests: dict[Path, str | None] = {}

    def read(self) -> Iterator[tuple[Product, bool]]:
        """Yield each product with whether the instruction file has it, under a progress bar if that takes long.

        Raises:
            TaskError: a file is broken; names file, row and key.
        """
        items, instructions = self._files.items, self._files.instructions
        with bytes_bar("reading products", instructions.size + items.size) as advance:
            entries = JsonStream(instructions.path, "entry", advance)
            texts = ObjectFile(entries.members())
            rows = JsonStream(items.path, "row", advance)
            yield from RowReader(texts, str(items.path), str(instructions.path)).read(
                islice(rows.elements(), self._num_products)
            )
            self._digests = {instructions.path: entries.digest, items.path: rows.digest}

    def records(self) -> list[dict[str, Any]]:
        """What a manifest keeps of the files that were read.

        Raises:
            TaskError: a file has changed since it was found.
        """
        records = []
        for file in (self._files.items, self._files.instructions):
            if DataFile.of(file.path) != file:
                raise TaskError(f"{file.path} has changed while it was read; wait until it is complete and try again")
            records.append(file.record(self._digests.get(file.path)))
        return records


def _first_file(folder: Path, names: list[str]) -> DataFile:
    for name in names:
        if _is_file(folder / name):
            return DataFile.of(folder / name)
    raise TaskError(
        f"{folder}: expected {' or '.join(dict.fromkeys(names))}, as WebShop's setup.sh downloads them; found "
        f"{'no such file' if folder.is_dir() else 'no such folder'}"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # the folder cannot be entered
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> TaskError:
    return TaskError(f"{path}: cannot be read ({error.strerror}); give this user the right to read it")
