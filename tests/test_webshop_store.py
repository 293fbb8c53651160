"""A catalogue on disk equals the one in memory, and its folder appears whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from dmr_gym.errors import CacheError
from dmr_gym.tasks.webshop import index_folder, store
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.columns import Columns
from dmr_gym.tasks.webshop.goals import GoalBook
from dmr_gym.tasks.webshop.index_folder import build_lock, find_damage, read_manifest, write_folder
from dmr_gym.tasks.webshop.rows import RowReader
from dmr_gym.tasks.webshop.store import decode_product, encode_product, open_catalogue, write_catalogue
from tests.webshop_rows import Row, make_entry, make_row, shops


def write_rows(folder: Path, rows: list[Row], entries: Row) -> None:
    """Write a catalogue to disk from rows."""
    write_catalogue(RowReader(entries, "items", "ins").read(rows), folder, "items")


@settings(max_examples=40, deadline=None)
@given(shops())
def test_stored_catalogue_equals_the_one_in_memory(shop: tuple[list[Row], Row, Row]) -> None:
    """Products, columns, look-ups and goals of any shop survive the way to disk."""
    rows, entries, human = shop
    memory = Catalogue.from_rows(rows, entries)
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name), rows, entries)
        stored = open_catalogue(Path(name), "items")
        assert list(stored) == list(memory)
        assert [stored[number] for number in range(len(stored))] == list(memory)
        for column in Columns.__slots__:
            np.testing.assert_array_equal(getattr(stored.columns, column), getattr(memory.columns, column))
        assert [stored.find(asin) for asin in (*human, "C")] == [memory.find(asin) for asin in (*human, "C")]
        if any("instruction" in entry for entry in entries.values()) and len(memory.goal_table.shuffled.order):
            goals = [GoalBook.build(each, human, "synthetic", random.Random(7)) for each in (memory, stored)]
            assert list(goals[0]) == list(goals[1])
            assert goals[0].cumulative.tolist() == goals[1].cumulative.tolist()


def test_large_columns_are_mapped_rather_than_read(tmp_path: Path) -> None:
    """Arrays from 64 KiB on stay on disk: they do not own their memory and cannot be written to."""
    rows = [make_row(f"{number:010}") for number in range(5000)]
    write_rows(tmp_path, rows, {row["asin"]: make_entry() for row in rows})
    stored = open_catalogue(tmp_path, "items")
    for values in (stored.asins, stored.columns.prices, stored.goal_table.shuffled.order):
        assert not values.flags.owndata
        assert not values.flags.writeable
    assert stored.index_of("0000004999") == 4999
    assert stored[4999] is stored[4999]


@pytest.mark.parametrize("read_bytes", [1, 700, 1 << 20])
def test_open_catalogue_outlives_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    """When another catalogue takes the folder's name, products still are those that were opened, one by one or all."""
    monkeypatch.setattr(store, "READ_BYTES", read_bytes)
    rows = [make_row(f"A{number}") for number in range(5)]
    (tmp_path / "index").mkdir()
    write_rows(tmp_path / "index", rows, {})
    opened = open_catalogue(tmp_path / "index", "items")
    (tmp_path / "index").rename(tmp_path / "old")
    (tmp_path / "index").mkdir()
    write_rows(tmp_path / "index", [make_row(f"B{number}") for number in range(5)], {})
    first, second = iter(opened), iter(opened)
    for number in range(5):
        assert next(first) == next(second) == opened[number]
    assert [product.asin for product in opened] == [row["asin"] for row in rows]


def test_damaged_line_of_a_product_is_told_when_it_is_read(tmp_path: Path) -> None:
    """A byte that breaks a line names the product and the folder to delete; the other products can be read."""
    write_rows(tmp_path, [make_row("A"), make_row("B")], {})
    path = tmp_path / "products.jsonl"
    content = path.read_bytes()
    for byte in (b"\xff", b'"', b"\n"):
        place = content.index(b"A lamp.", content.index(b"\n"))
        path.write_bytes(content[:place] + byte + content[place + 1 :])
        opened = open_catalogue(tmp_path, "items")
        assert opened[0].asin == "A"
        for read in (lambda opened=opened: opened[1], lambda opened=opened: list(opened)):
            with pytest.raises(CacheError, match=rf"product 1 cannot be read .* delete the folder {tmp_path} and it"):
                read()


def test_checksum_tells_catalogues_apart(tmp_path: Path) -> None:
    """It is the same in memory and on disk, and another one when a title changes."""
    write_rows(tmp_path, [make_row("A", name="é \ud83d")], {})
    same, other = (Catalogue.from_rows([make_row("A", name=name)], {}) for name in ("é \ud83d", "e"))
    assert open_catalogue(tmp_path, "items").columns.checksum == same.columns.checksum != other.columns.checksum


def test_halves_of_surrogate_pairs_survive() -> None:
    """An escape that no UTF-8 text can hold comes back as it was read."""
    product = Catalogue.from_rows([make_row("A", name=json.loads('"\\ud83d!"'))], {})[0]
    assert decode_product(encode_product(product)) == product


def test_catalogue_with_too_many_goals_is_stored_without_them(tmp_path: Path) -> None:
    """Ten thousand million combinations do not stop the build; only synthetic goals are refused."""
    options = {f"Option {number}": [{"value": str(value)} for value in range(10)] for number in range(10)}
    write_rows(tmp_path, [make_row("A", customization_options=options)], {"A": make_entry()})
    stored = open_catalogue(tmp_path, "items")
    assert len(stored[0].options) == 10
    human = {"A": [{"instruction": "x.", "instruction_attributes": ["y"], "instruction_options": []}]}
    assert len(GoalBook.build(stored, human, "human", random.Random(0))) == 1


def fill_with(text: str, fail: bool = False):
    """A function that fills a folder with a file, and then fails if told so."""

    def fill(part: Path) -> dict[str, str]:
        (part / "inner").mkdir()
        (part / "inner/file.txt").write_text(text, encoding="ascii")
        if fail:
            raise KeyboardInterrupt
        return {"text": text}

    return fill


def test_folder_appears_with_a_manifest_of_its_files(tmp_path: Path) -> None:
    """The manifest has what the filler says, and size and checksum of each file; checking finds no damage."""
    write_folder(tmp_path / "index", fill_with("abc"))
    manifest = read_manifest(tmp_path / "index")
    assert manifest == {"text": "abc", "files": {"inner/file.txt": {"bytes": 3, "crc32": 0x352441C2}}}
    assert find_damage(tmp_path / "index", manifest) is None
    assert os.listdir(tmp_path) == ["index"]


def test_interrupted_build_leaves_the_old_folder(tmp_path: Path) -> None:
    """An exception in the middle of a build leaves nothing new; the former index stays whole."""
    folder = tmp_path / "index"
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, fill_with("abc", fail=True))
    assert os.listdir(tmp_path) == []
    write_folder(folder, fill_with("old"))
    with pytest.raises(KeyboardInterrupt):
        write_folder(folder, fill_with("new", fail=True))
    assert (folder / "inner/file.txt").read_text(encoding="ascii") == "old"
    assert os.listdir(tmp_path) == ["index"]
    write_folder(folder, fill_with("new"))
    assert (folder / "inner/file.txt").read_text(encoding="ascii") == "new"
    assert os.listdir(tmp_path) == ["index"]


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """Parts of the same index go; those of another index, which may be in work, stay."""
    for name in (".index.1-a.part", ".index.1-a.old", ".index-2.1-a.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with build_lock(tmp_path / "index"):
        assert sorted(os.listdir(tmp_path)) == [".index-2.1-a.part", ".index.lock"]


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_damage_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """Another byte, a shorter file and a missing one are found, the first only in files small enough to be read."""
    folder = tmp_path / "index"
    write_folder(folder, fill_with("abc"))
    manifest = read_manifest(folder)
    assert manifest is not None
    file = folder / "inner/file.txt"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("abd" if damage == "changed" else "ab", encoding="ascii")
    assert find_damage(folder, manifest) is not None
    monkeypatch.setattr(index_folder, "CHECKED_AT_OPEN_BYTES", 2)
    assert (find_damage(folder, manifest) is None) == (damage == "changed")


@pytest.mark.parametrize(
    "files", [{"inner/file.txt": 3}, {"inner/file.txt": {"bytes": "x", "crc32": 1}}, {"a\0b": {}}, {"": {}}]
)
def test_junk_in_a_manifest_is_damage(tmp_path: Path, files: dict[str, Any]) -> None:
    """Entries of another form than written ones are told like damaged files."""
    write_folder(tmp_path / "index", fill_with("abc"))
    assert find_damage(tmp_path / "index", {"files": files}) is not None


def test_folder_without_a_manifest_is_not_an_index(tmp_path: Path) -> None:
    """A missing manifest, one that is no JSON, and one without files count as none."""
    assert read_manifest(tmp_path) is None
    for text in ("{", "[]", '{"files": 1}'):
        (tmp_path / "manifest.json").write_text(text, encoding="ascii")
        assert read_manifest(tmp_path) is None


def _count_builds(folder: Path, log: Path) -> None:
    """What each of two processes does."""
    with build_lock(folder):
        if read_manifest(folder) is None:
            with log.open("a") as file:
                file.write("built\n")
            write_folder(folder, fill_with("x" * 100_000))


def test_two_processes_build_once(tmp_path: Path) -> None:
    """Processes that find no index at the same time wait for the first; one builds."""
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=_count_builds, args=(tmp_path / "index", tmp_path / "log")) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
    manifest = read_manifest(tmp_path / "index")
    assert manifest is not None
    assert find_damage(tmp_path / "index", manifest) is None
