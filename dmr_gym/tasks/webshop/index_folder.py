"""Folders of files that appear whole or not at all, with a manifest that tells what they were made of.

A folder is written under another name and renamed when it is complete, so an interrupted build leaves nothing that
could be taken for an index; the next build removes what it left. Builds of the same folder wait for each other, and
show progress bars on terminals, for stages that take seconds.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows, where two builds at once do the same work twice
    fcntl = None  # type: ignore[assignment]

MANIFEST = "manifest.json"
CHECKED_AT_OPEN_BYTES = 1 << 22
DELAY_S = 2.0
_READ_BYTES = 1 << 20


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None when there is none, or none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def find_damage(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Compare a folder's files with its manifest; those of more than `CHECKED_AT_OPEN_BYTES` by their size alone.

    Args:
        folder: where the files are.
        manifest: what `write_folder` wrote, or anything that was found in its place.

    Returns:
        What is wrong with the first file that differs; None when all agree.
    """
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size:,} bytes, expected {expected['bytes']}"
            if size <= CHECKED_AT_OPEN_BYTES and _checksum(path) != expected["crc32"]:
                return f"{name} has another checksum than when it was written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{name}: {error!r}"
    return None


def write_folder(folder: Path, fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Make a folder appear, or replace one, in one step.

    Args:
        folder: the final name.
        fill: writes the files into the folder that it is given, and returns what the manifest says besides.

    Raises:
        OSError: it cannot be written.
    """
    part = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    old = part.with_suffix(".old")
    try:
        part.mkdir()
        manifest = dict(fill(part))
        names = sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())
        manifest["files"] = {
            name: {"bytes": (part / name).stat().st_size, "crc32": _checksum(part / name, flush=True)} for name in names
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(old)  # a folder that is not empty cannot be renamed onto
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Hold the right to build a folder; what interrupted builds of it have left is removed.

    Raises:
        OSError: the folder's parent cannot be made or written to.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)  # ends with the process, however that ends
            for left in (*folder.parent.glob(f".{folder.name}.*.part"), *folder.parent.glob(f".{folder.name}.*.old")):
                shutil.rmtree(left, ignore_errors=True)
        yield


def _checksum(path: Path, flush: bool = False) -> int:
    checksum = 0
    with path.open("r+b" if flush else "rb") as file:
        while chunk := file.read(_READ_BYTES):
            checksum = zlib.crc32(chunk, checksum)
        if flush:
            os.fsync(file.fileno())
    return checksum


@contextmanager
def bytes_bar(description: str, total_bytes: int) -> Iterator[Callable[[int], object]]:
    """Show a bar of bytes; yields what is called with the size of each part that is done."""
    with _bar(desc=description, total=total_bytes, unit="B", unit_scale=True) as bar:
        yield bar.update


@contextmanager
def stage_bars(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each stage of a job; yields what is called with stage, things done, and things in all."""
    bars: dict[str, Any] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = _bar(desc=f"{description}: {stage}", total=total)
        bars[stage].update(done - bars[stage].n)

    try:
        yield tell
    finally:
        for bar in bars.values():
            bar.close()


def _bar(**settings: Any) -> Any:
    from tqdm import tqdm

    return tqdm(delay=DELAY_S, disable=None, **settings)
