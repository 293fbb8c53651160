"""Opening a shop from official files: which files, when the index is built, and what happens where it cannot be."""

from __future__ import annotations

import json
import os
import random
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.errors import CacheError, TaskError
from dmr_gym.tasks.webshop import data_files, index_folder, json_stream, shop, stored_shop
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

    monkeypatch.setattr(data_files, "JsonStream", CountingStream)
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
    assert len(list((tmp_path / "a/b").glob(f"{FOLDER}-*/manifest.json"))) == 1
    assert sorted(os.listdir(data)) == before


def test_data_folders_can_share_an_index_folder(data: Path, tmp_path: Path, builds: list[Path]) -> None:
    """Each has an index of its own, also under the name of a link, so none is built twice."""
    other = write_data(tmp_path / "other", [row | {"name": "sofa"} for row in ROWS], ENTRIES)
    (tmp_path / "link").symlink_to(data)
    for _ in range(2):
        first = reopen(data, index_dir=tmp_path / "index")
        assert set(titles(reopen(other, index_dir=tmp_path / "index"))) == {"sofa"}
        assert titles(first) == titles(reopen(tmp_path / "link", index_dir=tmp_path / "index"))
    assert len(builds) == 2


def test_open_shop_keeps_its_products_while_the_data_changes(data: Path) -> None:
    """Another index in the place of the one that is open changes nothing for who has it open."""
    first = open_shop(data)
    expected = titles(first)
    write_data(data, [row | {"name": "sofa"} for row in ROWS], ENTRIES)
    assert set(titles(open_shop(data))) == {"sofa"}
    assert titles(first) == expected == [first.catalogue[number].title for number in range(3)]


def test_threads_get_one_shop(data: Path, builds: list[Path]) -> None:
    """Threads that open the same data at once share shop, nouns and human instructions, and one of them builds."""
    together = threading.Barrier(8)

    def open_together(_: int) -> tuple[Shop, Any, Any, Any]:
        together.wait()
        opened = open_shop(data)
        return opened, opened.nouns, opened.human, opened.storefront

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(open_together, range(8)))
    assert len({tuple(map(id, parts)) for parts in found}) == 1
    assert len(builds) == 1


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


def test_index_is_rebuilt_when_the_code_changes(
    data: Path, builds: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An index made by another version of any module that decides what is in it is not used."""
    open_shop(data)
    package = Path(stored_shop.__file__).parent
    for name in stored_shop.CODE:
        assert (package / f"{name}.py").is_file()
        (tmp_path / f"{name}.py").write_bytes((package / f"{name}.py").read_bytes())
    monkeypatch.setattr(stored_shop.resources, "files", lambda package: tmp_path)
    stored_shop.code_digest.cache_clear()
    reopen(data)
    assert len(builds) == 1
    with (tmp_path / "analyzer.py").open("a", encoding="utf-8") as file:
        file.write("# changed")
    stored_shop.code_digest.cache_clear()
    reopen(data)
    reopen(data)
    stored_shop.code_digest.cache_clear()
    assert len(builds) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"sources": [1, 2]},
        {"sources": [{"name": []}, {}]},
        {"files": {"products.jsonl": {"bytes": "x", "crc32": 0}}},
        {"files": {"products.jsonl": 5}},
        {"files": []},
        {"code": None},
    ],
)
def test_index_with_a_junk_manifest_is_built_again(data: Path, builds: list[Path], changes: dict[str, Any]) -> None:
    """What was not written by the library counts as damage, whatever it is."""
    expected = titles(open_shop(data))
    path = data / INDEX_FOLDER / FOLDER / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    assert titles(reopen(data)) == expected
    assert len(builds) == 2


def test_index_that_its_manifest_does_not_know_is_built_again(data: Path, builds: list[Path]) -> None:
    """A manifest that lists no files cannot vouch for them: what cannot be opened is made anew."""
    open_shop(data)
    folder = data / INDEX_FOLDER / FOLDER
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps(manifest | {"files": {}}), encoding="utf-8")
    (folder / "names.json").write_text("{}", encoding="utf-8")
    assert len(reopen(data).catalogue) == 3
    assert len(builds) == 2


def test_byte_changed_in_a_large_index_file_is_told(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files above the threshold are not read at opening; what breaks a product is told when the product is read."""
    open_shop(data)
    monkeypatch.setattr(index_folder, "CHECKED_AT_OPEN_BYTES", 0)
    path = data / INDEX_FOLDER / FOLDER / "products.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"\xff" + content[3:])
    opened = reopen(data)
    assert opened.catalogue[1].title == "tall lamp"
    with pytest.raises(CacheError, match=rf"product 0 cannot be read .*; delete the folder {path.parent} and it is"):
        assert opened.catalogue[0]


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
