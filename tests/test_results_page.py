"""RESULTS.md: every number in it is one of the results file that its block names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.errors import ConfigError
from tests.explained import BLOCK, FREE_TEXT, unexplained
from tests.rebuilt import rebuilt, rows_of
from tests.recipes import load_recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "RESULTS.md"


def blocks() -> list[tuple[str, str]]:
    """Name and text of every block of the page."""
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "text"), blocks(), ids=[name for name, _ in blocks()])
def test_every_number_of_a_block_is_one_of_its_file(name: str, text: str) -> None:
    """Tables and sentences alike."""
    data = json.loads((ROOT / "results" / name / "results.json").read_text(encoding="utf-8"))
    assert unexplained(text, data) == []


@pytest.mark.parametrize(("name", "text"), blocks(), ids=[name for name, _ in blocks()])
def test_a_block_shows_the_tables_and_pictures_of_its_folder(name: str, text: str) -> None:
    """Letter by letter, so a number cannot take the place of another that the file has too."""
    assert text == load_recipe("record_results").body(ROOT / "results" / name)


FOLDERS = sorted(path.name for path in (ROOT / "results").iterdir())
NOT_REBUILT: dict[str, str] = {}
"""Folders whose tables cannot be made from their results.json, with the reason."""


@pytest.mark.parametrize("name", [name for name in FOLDERS if name not in NOT_REBUILT])
def test_tables_are_those_that_the_numbers_make(name: str) -> None:
    """Titles, columns and rows letter by letter, each number in its place; notes are words around numbers, and grow."""
    folder = ROOT / "results" / name
    data = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    files = [folder / table for table in load_recipe("record_results").TABLES]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    assert rows_of(text) == rows_of("\n".join(table.markdown() for table in rebuilt(name, data, text)))
    if text.startswith("# "):
        assert text.splitlines()[0] == f"# {data['env_id']}, panel {data['settings']['panel']}"


def test_a_number_in_the_place_of_another_is_noticed() -> None:
    """Of a row that has both, so that each is still one of the file's own."""
    folder = ROOT / "results" / "webshop-depth"
    data = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    text = (folder / "tables.md").read_text(encoding="utf-8")
    row = data["variants"][0]["budgets"][0]
    row["time_success_s"], row["time_all_s"] = row["time_all_s"], row["time_success_s"]
    assert unexplained(text, data) == []
    [(_, shown)], [(_, made)] = rows_of(text), rows_of(rebuilt("webshop-depth", data, text)[0].markdown())
    assert [one != other for one, other in zip(shown, made, strict=True)] == [n == 2 for n in range(len(shown))]


def test_prose_outside_of_blocks_has_no_measured_numbers() -> None:
    """A decimal or a percentage can only stand where it is held against a file; commands and links are free."""
    prose = re.sub(r"```.*?```", "", BLOCK.sub("", PAGE.read_text(encoding="utf-8")), flags=re.DOTALL)
    assert re.findall(r"\d+\.\d+(?! M parameters)|\d+ %", FREE_TEXT.sub("", prose)) == []


def test_a_number_that_is_not_in_the_file_is_found() -> None:
    """A digit that changed, a number of another policy, and a rounding that is off are each named."""
    data = {
        "tasks": 8,
        "results": [{"policy": "A", "success": 0.875}, {"policy": "B", "success": 0.5, "time_s": 1.234}],
    }
    assert unexplained("| A | 87.5 |\n| B | 50.0 | 1.23 |\n8 tasks", data) == []
    assert unexplained("| A | 87.4 |", data) == ["87.4 in: | A | 87.4 |"]
    assert unexplained("| A | 50.0 |", data) == ["50.0 in: | A | 50.0 |"]
    assert unexplained("| B | 1.24 |", data) == ["1.24 in: | B | 1.24 |"]
    assert unexplained("9 tasks", data) == ["9 in: 9 tasks"]


@pytest.mark.parametrize(
    ("text", "data", "wrong"),
    [
        ("1,509 steps", {"steps": 1509}, []),
        ("1,509 steps", {"steps": 1508}, ["1,509"]),
        ("| 1.2e-05 |", {"threshold": 1.23e-5}, []),
        ("| 1.2e-05 |", {"threshold": 1.26e-5}, ["1.2e-05"]),
        ("| λ=0.25 |", {"by_lambda": {"0.25": None}}, []),
        ("7 steps", {"git": "7abcdef12345+"}, ["7"]),
    ],
)
def test_numbers_are_read_however_they_are_written(text: str, data: dict[str, Any], wrong: list[str]) -> None:
    """Thousands, powers of ten, and keys; what a digest has is no number."""
    assert [entry.partition(" in: ")[0] for entry in unexplained(text, data)] == wrong


def test_rows_of_a_group_are_held_against_its_head() -> None:
    """A first cell that is empty stands for the one above; a number as a name leaves the digits of others alone."""
    data = {"variants": [{"variant": "2", "k": [0.2, 0.42]}, {"variant": "4", "k": [0.7]}], "other": 9}
    table = "| 2 | 0.2 |\n|  | 0.42 |\n| 4 | 0.7 |"
    assert unexplained(table, data) == []
    assert unexplained(f"{table}\n|  | 0.42 |", data) == ["0.42 in: |  | 0.42 |"]
    assert unexplained("| 9 |  |", data) == []
    assert unexplained("| B * | 50.0 |", [{"policy": "B", "success": 0.4}, 0.5]) == ["50.0 in: | B * | 50.0 |"]


def test_recording_replaces_a_block_and_leaves_the_prose(tmp_path: Path) -> None:
    """Numbers and pictures are copied; a second recording changes its own block alone."""
    record, run, page = load_recipe("record_results"), tmp_path / "run", tmp_path / "RESULTS.md"
    run.mkdir()
    with pytest.raises(ConfigError, match=r"has no results\.json, or none of tables\.md, returns\.md: is that run"):
        record.main(["one", str(run), "--page", str(page)])
    (run / "results.json").write_text('{"success": 0.5}')
    (run / "tables.md").write_text("# A world\n\n## Policies\n\n| success % |\n| ---: |\n| 50.0 |\n")
    (run / "curve.png").write_bytes(b"picture")
    page.write_text("# Results\n\nBefore.\n\n<!-- results: one -->\nold\n<!-- end of results -->\n\nAfter.\n")
    record.main(["one", str(run), "--page", str(page)])
    record.main(["two", str(run), "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert [name for name, _ in BLOCK.findall(text)] == ["one", "two"]
    assert text.startswith("# Results\n\nBefore.\n\n<!-- results: one -->\n**A world**\n\n### Policies\n\n| ")
    assert "\n\nAfter.\n" in text
    assert "old" not in text
    assert "![curve](results/one/curve.png)\n<!-- end of results -->" in text
    assert (tmp_path / "results" / "two" / "curve.png").read_bytes() == b"picture"
    with pytest.raises(ConfigError, match="NAME must be small letters"):
        record.main(["One", str(run), "--page", str(page)])
