"""The journal of a folder of results: what made them, and when, one JSON object a line."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmr_gym.runs import finite, provenance, utc_time

JOURNAL_FILE = "journal.jsonl"


class Journal:
    """Two lines a run: settings, versions and digests at its start; what it has done at its end.

    A run without a second line was stopped or killed.

    Args:
        folder: of the results.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL_FILE
        self._began = time.perf_counter()

    def start(self, entry: Mapping[str, Any]) -> list[str]:
        """Write what a run is made of; processor, versions and commit are added.

        Returns:
            Warnings, a line each: with which other versions the last run in this folder was made.
        """
        before, now = self._last("start"), provenance()
        now.pop("process_s", None)  # the end has the wall clock
        self._append({"event": "start", "time": utc_time(), **entry, **now})
        changed = {
            name: (before["versions"].get(name), version)
            for name, version in (now["versions"].items() if before else ())
            if before["versions"].get(name) != version
        }
        return [
            f"{self._path.parent} holds results of {name} {old}, this is {new}: another --out plays everything anew"
            for name, (old, new) in changed.items()
        ]

    def end(self, entry: Mapping[str, Any]) -> None:
        """Write what the run has done; its wall clock in seconds is added."""
        self._append({"event": "end", "time": utc_time(), "wall_s": time.perf_counter() - self._began, **entry})

    def _last(self, event: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines() if self._path.is_file() else ():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut by a kill
            found = entry if entry.get("event") == event else found
        return found

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            # A line that a kill has cut stays a line of its own.
            begin = b"\n" if size and file.read(1) != b"\n" else b""
            file.write(begin + json.dumps(finite(entry), allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
