"""The store: the first writer of a key wins, for good, in every process."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dmr_gym.errors import CacheError
from dmr_gym.store import FILE_NAME, CompletionCache


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CompletionCache:
    """A fresh store of either kind."""
    return CompletionCache(None if request.param == "memory" else tmp_path / "cache")


def _key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def test_the_first_writer_wins(store: CompletionCache) -> None:
    """A second value for a key is ignored, and everybody is told the first."""
    assert store.put_many({_key(1): b"a"}) == {_key(1): b"a"}
    assert store.put_many({_key(1): b"b", _key(2): b"c"}) == {_key(1): b"a", _key(2): b"c"}
    assert store.get_many([_key(1), _key(3), _key(2), _key(1)]) == {_key(1): b"a", _key(2): b"c"}
    assert len(store) == 2


def test_entries_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    """Another store on the same folder reads them, more than one query's worth at a time."""
    entries = {_key(i): str(i).encode() for i in range(1200)}
    first = CompletionCache(tmp_path)
    first.put_many(entries)
    first.close()
    second = CompletionCache(tmp_path)
    assert second.get_many(list(entries)) == entries
    assert second.path == tmp_path / FILE_NAME


def test_memory_is_bounded_and_the_file_is_not(tmp_path: Path) -> None:
    """Entries beyond the limit leave the dictionary, oldest first; the file still has them."""
    value = b"x" * (200 << 10)
    entries = {_key(i): value for i in range(10)}
    memory, file = CompletionCache(None, memory_mib=1), CompletionCache(tmp_path, memory_mib=1)
    for key in entries:
        memory.put_many({key: value})
        file.put_many({key: value})
        memory.get_many([_key(0)])
    assert set(memory.get_many(list(entries))) == {_key(i) for i in (0, 6, 7, 8, 9)}
    assert file.get_many(list(entries)) == entries


def test_copies_open_the_file_anew(tmp_path: Path) -> None:
    """Pickles and deep copies hold no connection and see the same entries; without a file they start empty."""
    original = CompletionCache(tmp_path)
    original.put_many({_key(1): b"a"})
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other._connection is not original._connection
        assert other.get_many([_key(1)]) == {_key(1): b"a"}
    memory = CompletionCache()
    memory.put_many({_key(1): b"a"})
    assert len(copy.deepcopy(memory)) == 0


def test_a_closed_store_opens_again(tmp_path: Path) -> None:
    """Closing is not the end."""
    store = CompletionCache(tmp_path, memory_mib=0)
    store.put_many({_key(1): b"a"})
    store.close()
    store.close()
    assert store.get_many([_key(1)]) == {_key(1): b"a"}


def _write(folder: Path, worker: int, start: object) -> dict[bytes, bytes]:
    start.wait()  # type: ignore[attr-defined]
    store = CompletionCache(folder)
    seen: dict[bytes, bytes] = {}
    for i in range(0, 60, 3):
        seen |= store.put_many({_key(j): f"{worker}".encode() for j in range(i, i + 3)})
    return seen


def _write_into(queue: object, folder: Path, worker: int, start: object) -> None:
    queue.put(_write(folder, worker, start))  # type: ignore[attr-defined]


def test_processes_agree_on_every_entry(tmp_path: Path) -> None:
    """Three processes create the file and write the same keys at once; all are told the same values."""
    context = multiprocessing.get_context("spawn")
    queue, start = context.Queue(), context.Barrier(3)
    workers = [context.Process(target=_write_into, args=(queue, tmp_path, i, start)) for i in range(3)]
    for worker in workers:
        worker.start()
    seen = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert all(entries == seen[0] for entries in seen)
    assert CompletionCache(tmp_path).get_many([_key(i) for i in range(60)]) == seen[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_uses_its_own_connection(tmp_path: Path) -> None:
    """Parent and child go on writing through the same object after a fork."""
    code = f"""
import os
from dmr_gym.cache import CompletionCache
store = CompletionCache({str(tmp_path)!r}, memory_mib=0)
store.put_many({{b"a" * 32: b"parent"}})
before = store._connection
pid = os.fork()
if pid == 0:
    store.put_many({{b"b" * 32: b"child"}})
    os._exit(0 if store._connection is not before else 1)
assert os.waitpid(pid, 0)[1] == 0
store.put_many({{b"c" * 32: b"parent"}})
assert store._connection is before
print(len(store), store._connection.execute("PRAGMA integrity_check").fetchone()[0])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["3", "ok"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_writer_loses_no_committed_batch(tmp_path: Path) -> None:
    """After kill -9 in the middle of writing, every batch that was reported as stored is there, and whole."""
    code = f"""
import itertools
from dmr_gym.cache import CompletionCache
store = CompletionCache({str(tmp_path)!r})
for i in itertools.count():
    store.put_many({{(10 * i + j).to_bytes(32, "big"): b"x" * 1000 for j in range(10)}})
    print(i, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        reported = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
        reported += process.stdout.readlines()
    last = int([line for line in reported if line.endswith("\n")][-1])
    store = CompletionCache(tmp_path)
    assert len(store.get_many([_key(i) for i in range(10 * last + 10)])) == 10 * last + 10
    assert len(store) % 10 == 0


def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    """The message says which versions, and the way out."""
    CompletionCache(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(
        CacheError, match="made by version 99, this is version 1; delete it or choose another cache_dir"
    ):
        CompletionCache(tmp_path)


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    """Another program's database, and no database at all."""
    (tmp_path / "foreign").mkdir()
    with sqlite3.connect(tmp_path / "foreign" / FILE_NAME) as connection:
        connection.execute("CREATE TABLE songs (title)")
    connection.close()
    with pytest.raises(CacheError, match="made by another program"):
        CompletionCache(tmp_path / "foreign")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / FILE_NAME).write_bytes(b"no database" * 1000)
    with pytest.raises(CacheError, match=r"not a database.*delete the file or choose another cache_dir"):
        CompletionCache(tmp_path / "damaged")
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="check that its folder is writable"):
        CompletionCache(tmp_path / "file")
