"""The index directory of a shop: its catalogue, goals and search index in one folder, built once and then mapped.

A folder is used as long as it was made by the same code and from these data files; otherwise it is built again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from dmr_gym.errors import CacheError
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.data_files import DataFiles, ProductReader
from dmr_gym.tasks.webshop.index import SearchIndex
from dmr_gym.tasks.webshop.index_build import build_index
from dmr_gym.tasks.webshop.index_folder import build_lock, find_damage, read_manifest, stage_bars, write_folder
from dmr_gym.tasks.webshop.store import open_catalogue, write_catalogue

FORMAT = "dmr-gym webshop index"
SEARCH_FOLDER = "search"
CODE = (
    *("analyzer", "bm25", "catalogue", "character_classes", "columns", "goal_table", "index_arrays", "index_build"),
    *("index_merge", "index_runs", "porter", "rows", "store"),
)
"""The modules that decide what an index of the same data files contains."""
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
        TaskError: a data file is broken or cannot be read; names file, row and key.
        CacheError: the index cannot be opened though it was built.
        OSError: the folder cannot be written.
    """
    opened = _open_if_current(folder, files, num_products)
    if opened is not None:
        return opened
    with build_lock(folder):
        # Another process may have built it while this one waited.
        opened = _open_if_current(folder, files, num_products)
        if opened is None:
            _log.info("building the index %s of %s", folder, files.items.path)
            write_folder(folder, lambda part: _fill(part, files, num_products, workers))
            opened = _open_if_current(folder, files, num_products)
    if opened is None:
        raise CacheError(f"index {folder} cannot be opened after it was built; delete it, or give another index_dir")
    return opened


@cache
def code_digest() -> str:
    """Digest of the modules `CODE`, which changes when one of them does, whatever the change."""
    package = resources.files("dmr_gym.tasks.webshop")
    texts = [(package / f"{name}.py").read_bytes().replace(b"\r\n", b"\n") for name in CODE]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def _open_if_current(folder: Path, files: DataFiles, num_products: int | None) -> StoredShop | None:
    manifest = read_manifest(folder)
    if manifest is None or not _is_current(manifest, files, num_products):
        return None
    damage = find_damage(folder, manifest)
    opened = None
    if damage is None:
        try:
            opened = StoredShop(open_catalogue(folder, str(files.items.path)), SearchIndex.open(folder / SEARCH_FOLDER))
        except (OSError, ValueError, KeyError, TypeError, CacheError) as error:
            damage = str(error)
    # Files of two builds are mixed if another process has replaced the folder meanwhile.
    if read_manifest(folder) != manifest:
        return None
    if damage is not None:
        _log.warning("index %s is damaged and built again: %s", folder, damage)
    return opened


def _is_current(manifest: Mapping[str, Any], files: DataFiles, num_products: int | None) -> bool:
    made = (manifest.get("format"), manifest.get("code"), manifest.get("num_products"))
    sources = manifest.get("sources")
    if made != (FORMAT, code_digest(), num_products) or not isinstance(sources, list) or len(sources) != 2:
        return False
    return files.items.is_as_recorded(sources[0]) and files.instructions.is_as_recorded(sources[1])


def _fill(part: Path, files: DataFiles, num_products: int | None, workers: int) -> dict[str, Any]:
    """Write all of an index but the manifest, and return what the manifest says."""
    reader = ProductReader(files, num_products)
    catalogue = write_catalogue(reader.read(), part, str(files.items.path))
    texts = (product.index_text for product in catalogue)
    with stage_bars("indexing products") as progress:
        build_index(texts, catalogue.asins, part / SEARCH_FOLDER, progress, workers)
    return {
        "format": FORMAT,
        "code": code_digest(),
        "num_products": num_products,
        "products": len(catalogue),
        "sources": reader.records(),
    }
