"""The index directory of a shop: its catalogue, goals and search index in one folder, built once and then mapped.

A folder is used as long as it was made in this format and from these data files; otherwise it is built again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmr_gym.errors import CacheError
from dmr_gym.tasks.webshop.build_progress import stage_bars
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.data_files import DataFiles
from dmr_gym.tasks.webshop.index import SearchIndex
from dmr_gym.tasks.webshop.index_arrays import FORMAT as SEARCH_FORMAT
from dmr_gym.tasks.webshop.index_build import build_index
from dmr_gym.tasks.webshop.index_folder import build_lock, find_damage, read_manifest, write_folder
from dmr_gym.tasks.webshop.product_reader import ProductReader
from dmr_gym.tasks.webshop.store import open_catalogue, write_catalogue

FORMAT = "dmr-gym webshop index"
VERSION = 1
"""Raised whenever the same data files would give another index: catalogue, goals, or words of the search."""
SEARCH_FOLDER = "search"
_OPEN_ATTEMPTS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredShop:
    """What an index folder has, open."""

    catalogue: Catalogue
    index: SearchIndex


def open_or_build(folder: Path, files: DataFiles, num_products: int | None, workers: int = 0) -> StoredShop:
    """Open an index folder; build it first if it is absent, out of date or damaged.

    Args:
        folder: the index of these files and this number of products.
        files: the data files.
        num_products: rows to take of the items; None for all.
        workers: processes that analyse texts beside this one during a build.

    Raises:
        TaskError: a data file is broken; names file, row and key.
        CacheError: other processes keep replacing the folder.
        OSError: the folder cannot be written.
    """
    for _ in range(_OPEN_ATTEMPTS):
        opened = _open_if_current(folder, files, num_products)
        if opened is not None:
            return opened
        with build_lock(folder):
            # Another process may have built it while this one waited.
            if not _is_current(read_manifest(folder), folder, files, num_products):
                _log.info("building the index %s of %s", folder, files.items.path)
                write_folder(folder, lambda part: _fill(part, files, num_products, workers))
    raise CacheError(f"index {folder} was replaced {_OPEN_ATTEMPTS} times while it was opened; use another index_dir")


def _open_if_current(folder: Path, files: DataFiles, num_products: int | None) -> StoredShop | None:
    manifest = read_manifest(folder)
    if not _is_current(manifest, folder, files, num_products):
        return None
    try:
        opened = StoredShop(open_catalogue(folder, str(files.items.path)), SearchIndex.open(folder / SEARCH_FOLDER))
    except (OSError, ValueError, KeyError, CacheError):
        if read_manifest(folder) == manifest:
            raise
        return None
    # Files of two builds are mixed if another process has replaced the folder meanwhile.
    return opened if read_manifest(folder) == manifest else None


def _is_current(manifest: dict[str, Any] | None, folder: Path, files: DataFiles, num_products: int | None) -> bool:
    if manifest is None:
        return False
    made = (manifest.get("format"), manifest.get("versions"), manifest.get("num_products"))
    sources = manifest.get("sources")
    if made != (FORMAT, [VERSION, SEARCH_FORMAT], num_products) or not isinstance(sources, list) or len(sources) != 2:
        return False
    if not files.items.is_as_recorded(sources[0]) or not files.instructions.is_as_recorded(sources[1]):
        return False
    damage = find_damage(folder, manifest)
    if damage is not None:
        _log.warning("index %s is damaged and built again: %s", folder, damage)
    return damage is None


def _fill(part: Path, files: DataFiles, num_products: int | None, workers: int) -> dict[str, Any]:
    """Write all of an index but the manifest, and return what the manifest says."""
    reader = ProductReader(files, num_products)
    catalogue = write_catalogue(reader.read(), part, str(files.items.path))
    texts = (product.index_text for product in catalogue)
    with stage_bars("indexing products") as progress:
        build_index(texts, catalogue.asins, part / SEARCH_FOLDER, progress, workers)
    return {
        "format": FORMAT,
        "versions": [VERSION, SEARCH_FORMAT],
        "num_products": num_products,
        "products": len(catalogue),
        "sources": reader.records(),
    }
