"""Opening a shop from official files: which files, when the index is built, and what happens where it cannot be."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.errors import CacheError, ConfigError, TaskError
from dmr_gym.tasks.webshop import json_stream, product_reader, shop, stored_shop
from dmr_gym.tasks.webshop.data_files import find_data_files
from dmr_gym.tasks.webshop.goals import GoalBook
from dmr_gym.tasks.webshop.shop import INDEX_FOLDER, Shop, open_shop
from tests.webshop_rows import make_entry, make_row, write_data

ROWS = [make_row(f"B00000000{number}", name=f"{word} lamp") for number, word in enumerate(("red", "tall", "old"))]
ENTRIES = {row["asin"]: make_entry() for row in ROWS}
HUMAN = {"B000000001": [{"instruction": "a tall lamp.", "instruction_attributes": ["x"], "instruction_options": []}]}
FOLDER = "items_shuffle_1000"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of official files with three products."""
    return write_data(tmp_path / "data", ROWS, ENTRIES, HUMAN)


@pytest.fixture(autouse=True)
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Items files that were read from here on, in a process that has no shop open."""
    shop._open.cache_clear()
    read: list[Path] = []

    class CountingStream(json_stream.JsonStream):
        def __init__(self, path: Path, *args: Any) -> None:
            super().__init__(path, *args)
            if path.name.startswith("items_shuffle"):
                read.append(path)

    monkeypatch.setattr(product_reader, "JsonStream", CountingStream)
    return read


def reopen(*args: Any, **kwargs: Any) -> Shop:
    """Open a shop as another process would."""
    shop._open.cache_clear()
    return open_shop(*args, **kwargs)


def titles(opened: Shop) -> list[str]:
    """Titles of all products."""
    return [product.title for product in opened.catalogue]


def test_shop_from_files_is_the_shop_from_rows(data: Path) -> None:
    """Products, search, nouns, human instructions and goals are the same."""
    nouns = json.loads((data / "title_nouns.json").read_text(encoding="utf-8"))
    memory, stored = Shop.from_rows(ROWS, ENTRIES, HUMAN, nouns), open_shop(data)
    assert list(stored.catalogue) == list(memory.catalogue)
    assert stored.index.search("tall lamp") == memory.index.search("tall lamp") == [1, 0, 2]
    assert stored.nouns.nouns_of("B000000002") == memory.nouns.nouns_of("B000000002") == ("old", "lamp")
    assert stored.human is not None
    assert dict(stored.human) == memory.human == HUMAN
    for mode in ("synthetic", "human"):
        books = [GoalBook.build(each.catalogue, each.human, mode, random.Random(3)) for each in (memory, stored)]
        assert list(books[0]) == list(books[1])


def test_index_is_built_once_and_then_mapped(data: Path, builds: list[Path]) -> None:
    """The first call writes the index beside the data; later processes do not read the items again."""
    first = open_shop(data)
    assert open_shop(str(data)) is first
    assert len(builds) == 1
    assert (data / INDEX_FOLDER / FOLDER / "manifest.json").is_file()
    assert titles(reopen(data)) == titles(first)
    assert len(builds) == 1


def test_index_goes_where_it_is_told(data: Path, tmp_path: Path) -> None:
    """With index_dir, nothing is written beside the data."""
    before = sorted(os.listdir(data))
    open_shop(data, index_dir=tmp_path / "a/b")
    assert (tmp_path / "a/b" / FOLDER / "manifest.json").is_file()
    assert sorted(os.listdir(data)) == before


@pytest.mark.parametrize("name", ["items_shuffle_1000.json", "items_ins_v2_1000.json"])
def test_index_is_rebuilt_when_the_data_changes(data: Path, builds: list[Path], name: str) -> None:
    """Other content gives another index, even of the same size and within one process; a new time alone does not."""
    open_shop(data)
    text = (data / name).read_text(encoding="utf-8")
    (data / name).write_text(text.replace("lamp", "lump"), encoding="utf-8")
    os.utime(data / name, ns=(1, 1))
    changed = open_shop(data)
    assert len(builds) == 2
    assert "lump" in titles(changed)[0] + str(changed.catalogue[0].instruction)
    os.utime(data / name, ns=(2, 2))
    reopen(data)
    assert len(builds) == 2


@pytest.mark.parametrize("version", ["VERSION", "SEARCH_FORMAT"])
def test_index_is_rebuilt_when_the_format_changes(
    data: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """An index of another version of the catalogue or of the search is not used."""
    open_shop(data)
    monkeypatch.setattr(stored_shop, version, 999)
    reopen(data)
    reopen(data)
    assert len(builds) == 2


@pytest.mark.parametrize("name", ["products.jsonl", "prices.npy", "search/docs.npy", "manifest.json"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_damaged_index_is_built_again(data: Path, builds: list[Path], name: str, is_gone: bool) -> None:
    """A missing file, and one with another byte, are noticed at the next opening."""
    expected = titles(open_shop(data))
    path = data / INDEX_FOLDER / FOLDER / name
    if is_gone:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert titles(reopen(data)) == expected
    assert len(builds) == 2


def test_interrupted_build_starts_again(data: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that ends in the middle leaves no index, and the next one is whole."""
    with monkeypatch.context() as patch:
        patch.setattr(stored_shop, "build_index", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_shop(data)
    assert os.listdir(data / INDEX_FOLDER) == [f".{FOLDER}.lock"]
    assert len(open_shop(data).catalogue) == 3
    assert len(builds) == 2


def test_data_that_changes_during_the_build_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A download that goes on while it is read is told apart from a whole file."""

    def build_while_writing(*args: Any) -> None:
        with (data / f"{FOLDER}.json").open("a") as file:
            file.write(" ")

    monkeypatch.setattr(stored_shop, "build_index", build_while_writing)
    with pytest.raises(TaskError, match=r"items_shuffle_1000.json has changed while it was read; wait until"):
        open_shop(data)
    assert not (data / INDEX_FOLDER / FOLDER).exists()


def test_read_only_data_is_used_in_memory(data: Path, builds: list[Path]) -> None:
    """Where the folder's mode forbids writing, a small shop is built in memory each time."""
    data.chmod(0o555)
    try:
        opened = open_shop(data)
        assert len(opened.catalogue) == 3
        assert opened.index.search("tall") == [1]
        assert opened.nouns.nouns_of("B000000001") == ("tall", "lamp")
        assert not (data / INDEX_FOLDER).exists()
        reopen(data)
        assert len(builds) == 2
    finally:
        data.chmod(0o755)


def test_large_data_needs_a_writable_folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the index cannot be written, a large shop is refused with the way out."""
    monkeypatch.setattr(shop, "IN_MEMORY_BYTES", 10)
    data.chmod(0o555)
    try:
        with pytest.raises(CacheError, match=r"dmr-gym-index cannot be written \(the data folder is read-only\); give"):
            open_shop(data)
        assert len(open_shop(data, index_dir=tmp_path / "index").catalogue) == 3
    finally:
        data.chmod(0o755)


def test_index_folder_that_cannot_be_made_is_an_error(data: Path, tmp_path: Path) -> None:
    """A given index_dir that is a file raises; a default one that is a file leads to a shop in memory."""
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cannot be written .* as index_dir"):
        open_shop(data, index_dir=tmp_path / "file")
    (data / INDEX_FOLDER).touch()
    assert len(open_shop(data).catalogue) == 3


def test_first_rows_have_an_index_of_their_own(data: Path) -> None:
    """num_products takes rows from the beginning, a duplicate among them counted; more rows than there are take all."""
    rows = [ROWS[0], ROWS[0], *ROWS[1:]]
    write_data(data, rows, ENTRIES)
    with pytest.warns(UserWarning, match="skipped 1 rows"):
        assert titles(open_shop(data, num_products=3)) == ["red lamp", "tall lamp"]
    with pytest.warns(UserWarning, match="skipped 1 rows"):
        assert len(open_shop(data, num_products=100).catalogue) == 3
    assert sorted(path.name for path in (data / INDEX_FOLDER).iterdir() if path.is_dir()) == [
        f"{FOLDER}-100",
        f"{FOLDER}-3",
    ]


@pytest.mark.parametrize("num_products", [0, -1, 2.0, "3", True])
def test_number_of_products_is_checked(data: Path, num_products: Any) -> None:
    """What is no positive whole number is a setting error."""
    with pytest.raises(ConfigError, match="num_products must be"):
        open_shop(data, num_products=num_products)


def test_full_release_is_preferred_unless_a_thousand_will_do(data: Path) -> None:
    """Of both releases in a folder the full one is read, with the full instructions, but not for 1000 products."""
    write_data(data, ROWS[:2], ENTRIES, suffix="")
    names = {
        number: [file.path.name for file in (files.items, files.instructions)]
        for number in (None, 5, 1000, 1001)
        for files in [find_data_files(data, number)]
    }
    full, small = ["items_shuffle.json", "items_ins_v2.json"], ["items_shuffle_1000.json", "items_ins_v2_1000.json"]
    assert names == {None: full, 5: small, 1000: small, 1001: full}
    (data / "items_ins_v2_1000.json").unlink()
    assert find_data_files(data, 5).instructions.path.name == "items_ins_v2.json"


def test_missing_files_are_named(data: Path) -> None:
    """Files that are needed are asked for by name; the human instructions are needed for human goals only."""
    with pytest.raises(TaskError, match=r"none: expected items_shuffle.json or items_shuffle_1000.json.*such folder"):
        open_shop(data / "none")
    (data / "items_human_ins.json").unlink()
    opened = open_shop(data)
    assert opened.human is None
    assert len(GoalBook.build(opened.catalogue, opened.human, "synthetic", random.Random(0))) == 12
    with pytest.raises(TaskError, match=r"human goals need items_human_ins.json"):
        GoalBook.build(opened.catalogue, opened.human, "human", random.Random(0))
    (data / "items_ins_v2_1000.json").unlink()
    with pytest.raises(TaskError, match=r"expected items_ins_v2_1000.json or items_ins_v2.json, .*no such file"):
        open_shop(data)


def test_broken_files_are_named(data: Path) -> None:
    """Errors of rows and entries have the file's path, whichever file it is."""
    for name, text in [
        ("items_shuffle_1000.json", '[{"asin": "A"}]'),
        ("items_shuffle_1000.json", '[{"asin": "A"'),
        ("items_ins_v2_1000.json", '{"B000000000": []}'),
        ("items_ins_v2_1000.json", "[]"),
    ]:
        write_data(data, ROWS, ENTRIES)
        (data / name).write_text(text, encoding="utf-8")
        with pytest.raises(TaskError) as failure:
            open_shop(data)
        assert str(failure.value).startswith(str(data / name))
        assert not (data / INDEX_FOLDER / FOLDER).exists()


def test_official_release_opens_alike_from_memory_and_from_disk(shared_data: Path, tmp_path: Path) -> None:
    """The 1000 products and 6910 goals are the same whether the index is on disk or not."""
    for name in ("items_shuffle_1000", "items_ins_v2_1000", "items_human_ins", "title_nouns"):
        shutil.copy(shared_data / f"webshop/{name}.json", tmp_path)
    tmp_path.chmod(0o555)
    memory = open_shop(tmp_path)
    tmp_path.chmod(0o755)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = reopen(tmp_path)
    assert (tmp_path / INDEX_FOLDER).is_dir()
    assert list(memory.catalogue) == list(stored.catalogue)
    books = [GoalBook.build(each.catalogue, each.human, "synthetic", random.Random(0)) for each in (memory, stored)]
    assert len(books[0]) == 6910
    assert all(first == second for first, second in zip(books[0][:500], books[1][:500], strict=True))
    for query in ("red lamp", "Find me machine wash men's dress shirts"):
        assert memory.index.search(query) == stored.index.search(query)
