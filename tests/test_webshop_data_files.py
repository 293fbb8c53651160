"""The official files and the arguments that name them: which are taken, and what is said of those that cannot be."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.webshop import shop
from dmr_gym.tasks.webshop.data_files import DataFile, find_data_files
from dmr_gym.tasks.webshop.goals import GoalBook
from dmr_gym.tasks.webshop.shop import INDEX_FOLDER, open_shop
from tests.webshop_rows import make_entry, make_row, write_data

ROWS = [make_row(f"B00000000{number}") for number in range(3)]
ENTRIES = {row["asin"]: make_entry() for row in ROWS}
HUMAN = {"B000000001": [{"instruction": "a lamp.", "instruction_attributes": ["x"], "instruction_options": []}]}
FOLDER = "items_shuffle_1000"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of official files with three products, in a process that has no shop open."""
    shop._open.cache_clear()
    return write_data(tmp_path / "data", ROWS, ENTRIES, HUMAN)


def test_unreadable_data_is_not_taken_for_an_unwritable_index(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the data file, whether it has to be read for the index or for its checksum."""
    real_open = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "items_shuffle_1000.json":
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        with pytest.raises(TaskError, match=r"items_shuffle_1000.json: cannot be read \(Permission denied\)"):
            open_shop(data)
    open_shop(data)
    os.utime(data / "items_shuffle_1000.json", ns=(1, 1))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(TaskError, match=r"items_shuffle_1000.json: cannot be read \(Permission denied\); give"):
        open_shop(data)


def test_folder_that_cannot_be_entered_is_told(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    """Looking for files and looking at them end in our errors."""

    def refuse(path: Path, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(TaskError, match=r"cannot be read \(Permission denied\)"):
        DataFile.of(data / "items_shuffle_1000.json")


@pytest.mark.parametrize("number", [-1, 2.0, "3", True, np.True_])
def test_numbers_are_checked(data: Path, number: Any) -> None:
    """What is no whole number is a setting error; NumPy's are whole."""
    with pytest.raises(ConfigError, match="num_products must be a whole number, at least 1, or None for all; got"):
        open_shop(data, num_products=number)
    with pytest.raises(ConfigError, match="build_workers must be a whole number, at least 0; got"):
        open_shop(data, build_workers=number)
    with pytest.raises(ConfigError, match="num_products must be"):
        open_shop(data, num_products=0)
    assert open_shop(data, np.int64(2)) is open_shop(data, 2)


@pytest.mark.parametrize("path", [3, b"data", "", "~nobody-at-all/data"])
def test_paths_are_checked(data: Path, path: Any) -> None:
    """What is no path of a folder is a setting error, for both folders."""
    with pytest.raises(ConfigError, match="index_dir must be the path of a folder; got"):
        open_shop(data, index_dir=path)
    with pytest.raises(ConfigError, match="data_dir must be the path of a folder; got"):
        open_shop(path)


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


def test_small_instructions_do_not_serve_the_full_catalogue(data: Path) -> None:
    """Said at once, with the ways out, and not after a million products without instructions."""
    (data / "items_shuffle.json").write_text("[]", encoding="utf-8")
    with pytest.raises(TaskError, match=r"items_shuffle.json needs items_ins_v2.json; .* with num_products=1000"):
        open_shop(data)
    assert len(open_shop(data, num_products=1000).catalogue) == 3


def test_missing_files_are_named(data: Path) -> None:
    """Files that are needed are asked for by name; the human instructions are needed for human goals only."""
    with pytest.raises(TaskError, match=r"none: expected items_shuffle.json or items_shuffle_1000.json.*such folder"):
        open_shop(data / "none")
    with pytest.raises(TaskError, match=r"items_human_ins.json: is a file, expected a folder"):
        open_shop(data / "items_human_ins.json")
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
