"""A shop: products, their search index and the nouns of their titles, shared by all engines that play in it."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dmr_gym.errors import CacheError
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.columns import ColumnsBuilder
from dmr_gym.tasks.webshop.data_files import (
    DataFiles,
    ProductReader,
    find_data_files,
    read_number,
    read_object,
    read_path,
)

if TYPE_CHECKING:
    from dmr_gym.tasks.webshop.index import SearchIndex
    from dmr_gym.tasks.webshop.nouns import TitleNouns
    from dmr_gym.tasks.webshop.storefront import Storefront

INDEX_FOLDER = ".dmr-gym-index"
IN_MEMORY_BYTES = 64 << 20
KEPT_SHOPS = 4
_OPENING = threading.RLock()
_Part = TypeVar("_Part")


class _Once(Generic[_Part]):
    """A part that the first thread to ask for it makes, while the others wait."""

    def __init__(self, make: Callable[[], _Part]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[_Part] = []

    def __call__(self) -> _Part:
        """The part."""
        with self._lock:
            if not self._made:
                self._made.append(self._make())
            return self._made[0]


@dataclass(frozen=True)
class Loaders:
    """How a shop gets the parts that are made or read when they are first used."""

    index: Callable[[], SearchIndex]
    nouns: Callable[[], TitleNouns]
    human: Callable[[], Mapping[str, Any] | None]


class Shop:
    """Everything of a shop that no seed changes. Prices and goals depend on the seed, so engines have those.

    Args:
        catalogue: the products.
        loaders: make the search index, the nouns and the human instructions.
        source: names the data in messages.
    """

    def __init__(self, catalogue: Catalogue, loaders: Loaders, source: str) -> None:
        self.catalogue = catalogue
        self.source = source
        self._index, self._nouns, self._human = _Once(loaders.index), _Once(loaders.nouns), _Once(loaders.human)
        self._storefront = _Once(lambda: _make_storefront(self))

    @classmethod
    def from_rows(
        cls,
        items: Iterable[Any],
        instructions: Mapping[str, Any],
        human: Mapping[str, Any] | None = None,
        nouns: Mapping[str, Sequence[str]] | None = None,
        source: str = "items",
    ) -> Shop:
        """Build a shop in memory from data in the official format.

        Args:
            items: rows of ``items_shuffle.json``.
            instructions: content of ``items_ins_v2.json``.
            human: content of ``items_human_ins.json``, for human goals.
            nouns: nouns of each title by asin; told by spaCy, or taken from all words, when None.
            source: names the data in messages.

        Raises:
            TaskError: a row or an entry is broken; names source, row and key.
        """
        catalogue = Catalogue.from_rows(items, instructions, source, f"instructions of {source}")
        loaders = Loaders(
            index=lambda: _build_index(catalogue),
            nouns=lambda: _load_nouns(catalogue, None, None) if nouns is None else _given_nouns(nouns),
            human=lambda: human,
        )
        return cls(catalogue, loaders, source)

    @property
    def index(self) -> SearchIndex:
        """The search index over all products."""
        return self._index()

    @property
    def nouns(self) -> TitleNouns:
        """The nouns of the products' titles."""
        return self._nouns()

    @property
    def storefront(self) -> Storefront:
        """What the engines of this shop share."""
        return self._storefront()

    @property
    def human(self) -> Mapping[str, Any] | None:
        """Human instructions by asin; None when the data has none."""
        return self._human()


def open_shop(
    data_dir: str | os.PathLike[str],
    num_products: int | None = None,
    index_dir: str | os.PathLike[str] | None = None,
    build_workers: int = 0,
) -> Shop:
    """Open a folder of official data files; the same arguments give the same shop, while the files stay as they are.

    The first call builds an index, which later calls and other processes only map into memory. Where the index cannot
    be written, shops of at most 64 MiB are built in memory instead, unless ``index_dir`` was given.

    Args:
        data_dir: folder with ``items_shuffle[_1000].json``, ``items_ins_v2[_1000].json`` and, for human goals,
            ``items_human_ins.json``. With both releases in it, the full one is taken unless ``num_products`` <= 1000.
        num_products: take the first rows only; None takes all. A file with fewer rows is taken whole.
        index_dir: folder for indexes, which several data folders may share; ``.dmr-gym-index`` in the data folder if
            None.
        build_workers: processes that analyse texts beside this one when a large index is built; a script that uses
            them needs the guard ``if __name__ == "__main__"``.

    Raises:
        ConfigError: an argument has the wrong type or is out of range.
        TaskError: a file is missing or broken; names file, row and key.
        CacheError: the index cannot be written.
    """
    count = None if num_products is None else read_number("num_products", num_products, 1, ", or None for all")
    workers = read_number("build_workers", build_workers, 0)
    files = find_data_files(data_dir, count)
    folder = None if index_dir is None else read_path("index_dir", index_dir)
    with _OPENING:  # a cache alone would let two threads build the same index
        return _open(files, count, folder, workers)


@lru_cache(maxsize=KEPT_SHOPS)
def _open(files: DataFiles, num_products: int | None, index_dir: Path | None, workers: int) -> Shop:
    folder = index_dir or files.folder / INDEX_FOLDER
    can_build_in_memory = index_dir is None and files.items.size <= IN_MEMORY_BYTES
    if index_dir is None and not folder.is_dir() and is_read_only(files.folder):
        if not can_build_in_memory:
            raise _cannot_write(folder, "the data folder is read-only")
        return _open_in_memory(files, num_products)
    from dmr_gym.tasks.webshop.stored_shop import open_or_build

    try:
        stored = open_or_build(folder / _index_name(files, num_products, index_dir), files, num_products, workers)
    except OSError as error:  # of the index: what is wrong with data files has become a TaskError
        if not can_build_in_memory:
            raise _cannot_write(folder, error.strerror or str(error)) from error
        return _open_in_memory(files, num_products)
    loaders = Loaders(
        index=lambda: stored.index,
        nouns=lambda: _load_nouns(stored.catalogue, files.folder, folder),
        human=lambda: None if files.human is None else read_object(files.human),
    )
    return Shop(stored.catalogue, loaders, str(files.items.path))


def _index_name(files: DataFiles, num_products: int | None, index_dir: Path | None) -> str:
    """Files and number of rows; the data folder too where several may share the index folder."""
    parts = [files.items.path.stem]
    if num_products is not None:
        parts.append(str(num_products))
    if index_dir is not None:
        origin = os.fsencode(files.folder.resolve())
        parts.append(hashlib.sha256(origin).hexdigest()[:12])
    return "-".join(parts)


def _open_in_memory(files: DataFiles, num_products: int | None) -> Shop:
    products, columns = [], ColumnsBuilder()
    for product, listed in ProductReader(files, num_products).read():
        products.append(product)
        columns.add(product, listed)
    catalogue = Catalogue(products, columns.finish(), str(files.items.path))
    loaders = Loaders(
        index=lambda: _build_index(catalogue),
        nouns=lambda: _load_nouns(catalogue, files.folder, None),
        human=lambda: None if files.human is None else read_object(files.human),
    )
    return Shop(catalogue, loaders, str(files.items.path))


def is_read_only(folder: Path) -> bool:
    """Whether a folder's mode, or the file system that it is on, forbids writing to it.

    The superuser may write where the mode forbids it, but whoever set the mode did not want that.
    """
    return not os.access(folder, os.W_OK) or not folder.stat().st_mode & 0o222


def _cannot_write(folder: Path, reason: str) -> CacheError:
    return CacheError(
        f"the index folder {folder} cannot be written ({reason}); give a folder on a writable disk with enough space "
        "as index_dir"
    )


def _build_index(catalogue: Catalogue) -> SearchIndex:
    from dmr_gym.tasks.webshop.index import SearchIndex

    return SearchIndex.build((product.index_text for product in catalogue), catalogue.asins)


def _make_storefront(shop: Shop) -> Storefront:
    from dmr_gym.tasks.webshop.storefront import Storefront

    return Storefront(shop)


def _load_nouns(catalogue: Catalogue, data_dir: Path | None, table_dir: Path | None) -> TitleNouns:
    from dmr_gym.tasks.webshop.nouns import load_title_nouns

    return load_title_nouns(catalogue, data_dir, table_dir)


def _given_nouns(nouns: Mapping[str, Sequence[str]]) -> TitleNouns:
    from dmr_gym.tasks.webshop.nouns import TitleNouns

    return TitleNouns.from_mapping(nouns)
