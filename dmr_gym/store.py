"""The content-addressed store behind every cache: bytes by key, in memory and in one file.

A key is the sha256 of everything an answer depends on, so an entry is never out of date and never overwritten. The file
is SQLite in WAL mode: several processes may share it, the first writer of a key wins, and everybody returns the stored
entry. So answers are pinned even where an engine is not reproducible to the last bit. A batch is committed before it is
returned; killing a process loses at most the batch it was computing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmr_gym.errors import CacheError

FILE_NAME = "dmr-gym-cache.sqlite3"
APPLICATION_ID = 0x444D5247
VERSION = 1
BUSY_SECONDS = 60.0
ENTRY_OVERHEAD = 150  # bytes of Python objects around a key and a value in memory

_ABANDONED: list[sqlite3.Connection] = []
"""Connections that a fork has copied. A child must neither use nor close them, so they stay referenced here."""


class CompletionCache:
    """Bytes by 32-byte key: a bounded dictionary in front of an SQLite file.

    Copies, pickles and forked processes open the file anew. Without a file, a copy starts empty, and entries beyond the
    memory limit are computed again.

    Args:
        cache_dir: folder for the file, made if absent; None keeps everything in memory.
        memory_mib: memory in MiB for the dictionary; the least recently used entries leave first.

    Raises:
        CacheError: the file is of another version, damaged, or cannot be opened.
    """

    def __init__(self, cache_dir: str | os.PathLike[str] | None = None, memory_mib: int = 256) -> None:
        self._path = None if cache_dir is None else Path(cache_dir).expanduser() / FILE_NAME
        self._memory_mib = memory_mib
        self._front: OrderedDict[bytes, bytes] = OrderedDict()
        self._front_bytes = 0
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._pid = os.getpid()
        if self._path is not None:
            self._open()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (None if self._path is None else self._path.parent, self._memory_mib)

    @property
    def path(self) -> Path | None:
        """The file, or None when entries live in memory only."""
        return self._path

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the entries that exist.

        Raises:
            CacheError: the file cannot be read.
        """
        with self._lock:
            found = {key: self._front[key] for key in keys if key in self._front}
            for key in found:
                self._front.move_to_end(key)
            missing = [key for key in dict.fromkeys(keys) if key not in found]
            if missing and self._path is not None:
                with self._errors():
                    stored = dict(self._select(self._open(), missing))
                self._remember(stored)
                found.update(stored)
        return found

    def put_many(self, entries: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Store entries whose key is new, and return what is stored under each key now.

        Raises:
            CacheError: the file cannot be written.
        """
        with self._lock:
            if self._path is None:
                stored = {key: self._front.get(key, value) for key, value in entries.items()}
            else:
                with self._errors():
                    connection = self._open()
                    with _transaction(connection):
                        connection.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?)", list(entries.items()))
                        stored = dict(self._select(connection, list(entries)))
            self._remember(stored)
        return stored

    def __len__(self) -> int:
        with self._lock:
            if self._path is None:
                return len(self._front)
            with self._errors():
                return int(self._open().execute("SELECT count(*) FROM entries").fetchone()[0])

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            if self._connection is not None and self._pid == os.getpid():
                self._connection.close()
                self._connection = None

    def __del__(self) -> None:
        try:
            if self._connection is not None and self._pid != os.getpid():
                _ABANDONED.append(self._connection)
            self.close()
        except (AttributeError, TypeError):  # the constructor raised, or the interpreter has unloaded os by now
            pass

    def _select(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        for start in range(0, len(keys), 500):
            part = list(keys[start : start + 500])
            marks = ",".join("?" * len(part))
            yield from connection.execute(f"SELECT key, value FROM entries WHERE key IN ({marks})", part)

    def _remember(self, entries: Mapping[bytes, bytes]) -> None:
        for key, value in entries.items():
            if key not in self._front:
                self._front[key] = value
                self._front_bytes += len(value) + ENTRY_OVERHEAD
        while self._front and self._front_bytes > self._memory_mib << 20:
            _, value = self._front.popitem(last=False)
            self._front_bytes -= len(value) + ENTRY_OVERHEAD

    def _open(self) -> sqlite3.Connection:
        """Return this process's connection."""
        assert self._path is not None
        if self._connection is not None and self._pid != os.getpid():
            _ABANDONED.append(self._connection)
            self._connection = None
        if self._connection is None:
            self._pid = os.getpid()
            with self._errors():
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._connection = _connect(self._path)
        return self._connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise CacheError(
                f"cache file {self._path} cannot be used ({error}); check that its folder is writable and its disk not "
                "full, or delete the file or choose another cache_dir: answers will be computed again"
            ) from error


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, and stamp it if it is new."""
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        _use_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")  # a killed process loses nothing; a power cut the last commits
        with _transaction(connection):
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                connection.execute("CREATE TABLE entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)")
                connection.execute(f"PRAGMA user_version={VERSION}")
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            elif (application, version) != (APPLICATION_ID, VERSION):
                made_by = f"version {version}" if application == APPLICATION_ID else "another program"
                raise CacheError(
                    f"cache file {path} was made by {made_by}, this is version {VERSION}; delete it or choose another "
                    "cache_dir: answers will be computed again"
                )
    except BaseException:
        connection.close()
        raise
    return connection


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; processes that open a new file at the same moment wait for each other here."""
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:  # SQLite does not wait for this lock by itself
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
