"""What a run leaves behind: files written whole or not at all, and a record of what made them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "dmr-gym",
    "gymnasium",
    "numpy",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "sentence-transformers",
    "stable-baselines3",
    "sb3-contrib",
)
"""Distributions whose versions can change results, where they are installed."""

_BEGAN = time.perf_counter()  # imported by every recipe before it does anything


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it: readers never see half a file.

    Args:
        path: the final name; missing folders are made.
        write: called with the temporary path, which has the same suffix.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        part.touch()
        mode = stat.S_IMODE(part.stat().st_mode)
        write(part)
        # Writers that make the file anew, as safetensors does, may leave it readable to its owner alone.
        part.chmod(mode)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object atomically, indented, keys in their given order; NaN and infinity become null."""
    text = json.dumps(finite(data), indent=2, allow_nan=False)
    write_atomically(path, lambda part: part.write_text(text + "\n", encoding="utf-8"))


def finite(data: Any) -> Any:
    """Plain data with null in place of NaN and infinity, which JSON does not have."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def content_address(data: Any) -> str:
    """A name for plain data, 32 hexadecimal digits: equal data have equal names, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]


def task_file_stem(task_id: str) -> str:
    """A name for the files of a task, 20 hexadecimal digits: ids of official games are long paths."""
    return hashlib.sha256(task_id.encode()).hexdigest()[:20]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class RunRecord:
    """``run.json`` of a run that can be resumed: there from the beginning, whose versions and commit it keeps.

    Each resumption that saves anything has an entry of its own under "resumptions": time, processor, versions and
    commit. A resumption that finds nothing to do leaves no trace. "process_s" comes with the end: of a run that was
    resumed it is its last part alone.

    Args:
        folder: of the run, claimed already.
        data: settings, digests, and whatever else is known at the beginning.
    """

    def __init__(self, folder: Path, data: Mapping[str, Any]) -> None:
        self.path = folder / "run.json"
        made = provenance()
        del made["process_s"]
        self._resumption: dict[str, Any] | None = None
        if self.path.is_file():
            self._record = json.loads(self.path.read_text(encoding="utf-8"))
            kept = {name: self._record[name] for name in made if name in self._record}
            self._going_on = {**data, **kept, "resumptions": self._record.get("resumptions", [])}
            self._resumption = {"time": utc_time(), **made}
        else:
            self._record = {**data, **made, "resumptions": []}
            write_json(self.path, self._record)

    def work(self) -> None:
        """Say that something is about to be saved; any number of times.

        What a run that goes on had found at its earlier end leaves the record until there is a new end.
        """
        if self._resumption is not None:
            self._going_on["resumptions"].append(self._resumption)
            self._record, self._resumption = self._going_on, None
            write_json(self.path, self._record)

    def end(self, found: Mapping[str, Any]) -> None:
        """Add what the run has found, and how long this process has taken unless it found nothing to do."""
        taken = {"process_s": process_s()} if self._resumption is None else {}
        write_json(self.path, {**self._record, **found, **taken})


def utc_time() -> str:
    """The time as ISO 8601 has it, to the second, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def process_s() -> float:
    """Wall clock in seconds since this process began, counted from the first import of this module."""
    return time.perf_counter() - _BEGAN


def provenance() -> dict[str, Any]:
    """Return what a result depends on beside its settings, and how long it took.

    Returns:
        "python", "machine" (its architecture), "processor" (model, AMX or AVX, CPUs that this process may use),
        "process_s" (wall clock in seconds since this process began: of a run that was resumed its last part alone, of
        one of several runs in a process those before it too), installed "versions", and the "git" commit if any.
    """
    versions: dict[str, str] = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "process_s": process_s(),
        "versions": versions,
        "git": _commit(),
    }


_VECTOR_UNITS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
"""What Linux calls the units that decide how fast matrices are multiplied, the fastest first."""


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model of the processor, its fastest units, and how many CPUs this process may use, as far as known."""
    model, units = platform.processor(), None
    if cpuinfo.is_file():
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()]
        told = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # of the first processor
        model, flags = told.get("model name", model), told.get("flags", "").split()
        units = next((unit for flag, unit in _VECTOR_UNITS.items() if flag in flags), None)
    # Not everywhere: macOS has no affinity.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join(part for part in (model, units, f"{cpus} CPUs" if cpus else "") if part)


def _commit() -> str | None:
    """Return the checkout's commit, "+" appended when files differ from it; None outside a checkout."""
    checkout = Path(__file__).parents[1]
    if not (checkout / ".git").exists():  # installed: git would answer for whatever repository lies around
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
