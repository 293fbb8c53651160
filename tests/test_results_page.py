"""RESULTS.md: every number in it is one of the results file that its block names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.errors import ConfigError
from tests.recipes import load_recipe

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "RESULTS.md"
BLOCK = re.compile(r"<!-- results: ([a-z0-9-]+) -->\n(.*?)<!-- end of results -->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:\.\d+)?(?![\w.]*\.(?:png|json|md))")
NAMES = ("policy", "minus", "policies")
FREE_TEXT = re.compile(r"`[^`]*`|\([^()]*\.(?:png|md|json|html)\)|95 %|Eq\. \d+|Figure \d+|Table \d+")


def numbers(data: Any) -> Iterator[float]:
    """All numbers in plain data."""
    if isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from numbers(value)
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield float(data)
    elif isinstance(data, str):
        yield from (float(found) for found in re.findall(r"\d+(?:\.\d+)?", data))


def named(data: Any, cells: set[str]) -> Iterator[dict[str, Any]]:
    """The objects in plain data whose names are all among some cells."""
    if isinstance(data, dict):
        names = {data[key] for key in NAMES if isinstance(data.get(key), str)}
        if names and names <= cells:
            yield data
        data = list(data.values())
    if isinstance(data, list):
        for value in data:
            yield from named(value, cells)


def unexplained(text: str, data: Any) -> list[str]:
    """The numbers of a text that are not numbers of the data, as they are or in percent, at the digits shown.

    A row of a table whose first cells name a policy, or two with a minus between them, is held against the objects of
    that name alone.
    """
    wrong = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        own = list(named(data, {name for cell in cells for name in (cell, *cell.split(" − "))}))
        known = [v for value in numbers(own or data) for v in (value, 100 * value)]
        shown = line
        for name in {value for each in own for key, value in each.items() if key in NAMES}:
            shown = shown.replace(str(name), "")
        for token in NUMBER.findall(FREE_TEXT.sub("", shown)):
            plain = token.replace("−", "-").replace("+", "")
            half = 0.5 * 10.0 ** -len(plain.partition(".")[2]) * (1 + 1e-9)
            if not any(math.isclose(float(plain), value, rel_tol=0, abs_tol=half) for value in known):
                wrong.append(f"{token} in: {line}")
    return wrong


def blocks() -> list[tuple[str, str]]:
    """Name and text of every block of the page."""
    return BLOCK.findall(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "text"), blocks(), ids=[name for name, _ in blocks()])
def test_every_number_of_a_block_is_one_of_its_file(name: str, text: str) -> None:
    """Tables and sentences alike."""
    data = json.loads((ROOT / "results" / name / "results.json").read_text(encoding="utf-8"))
    assert unexplained(text, data) == []


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


def test_recording_replaces_a_block_and_leaves_the_prose(tmp_path: Path) -> None:
    """Numbers and pictures are copied; a second recording changes its own block alone."""
    record, run, page = load_recipe("record_results"), tmp_path / "run", tmp_path / "RESULTS.md"
    run.mkdir()
    with pytest.raises(ConfigError, match=r"has no results\.json, or none of tables\.md, returns\.md: is that run"):
        record.main(["one", str(run), "--page", str(page)])
    (run / "results.json").write_text('{"success": 0.5}')
    (run / "tables.md").write_text("## Policies\n\n| success % |\n| ---: |\n| 50.0 |\n")
    (run / "curve.png").write_bytes(b"picture")
    page.write_text("# Results\n\nBefore.\n\n<!-- results: one -->\nold\n<!-- end of results -->\n\nAfter.\n")
    record.main(["one", str(run), "--page", str(page)])
    record.main(["two", str(run), "--page", str(page)])
    text = page.read_text(encoding="utf-8")
    assert [name for name, _ in BLOCK.findall(text)] == ["one", "two"]
    assert text.startswith("# Results\n\nBefore.\n\n<!-- results: one -->\n### Policies\n\n| success % |")
    assert "\n\nAfter.\n" in text
    assert "old" not in text
    assert "![curve](results/one/curve.png)\n<!-- end of results -->" in text
    assert (tmp_path / "results" / "two" / "curve.png").read_bytes() == b"picture"
    with pytest.raises(ConfigError, match="NAME must be small letters"):
        record.main(["One", str(run), "--page", str(page)])
