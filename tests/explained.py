"""Which numbers of a text are those of a results file: what RESULTS.md, and the tables of every recipe, are held to."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.recipes import load_recipe

BLOCK = re.compile(r"<!-- results: ([a-z0-9-]+) -->\n(.*?)<!-- end of results -->", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]\d+)?(?![\w.]*\.(?:png|json|md))")
NAMES = ("policy", "minus", "variant", "cell")
MACHINE = ("processor", "process_s")
DIGEST = re.compile(r"[0-9a-f]{12,}\+?")
FREE_TEXT = re.compile(r"`[^`]*`|\([^()]*\.(?:png|md|json|html)\)|95 %|Eq\. \d+|Figure \d+|Table \d+")


def numbers(data: Any) -> Iterator[float]:
    """All numbers in plain data, those in texts and in keys too; digests have none, and no table is of the machine."""
    if isinstance(data, dict):
        for pair in data.items():
            yield from numbers(list(pair)) if pair[0] not in MACHINE else ()
    elif isinstance(data, list):
        for value in data:
            yield from numbers(value)
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield float(data)
    elif isinstance(data, str) and not DIGEST.fullmatch(data):
        yield from (float(found) for found in re.findall(r"\d+(?:\.\d+)?", data))


def named(data: Any, cells: set[str]) -> Iterator[dict[str, Any]]:
    """The objects in plain data whose names are all among some cells."""
    if isinstance(data, dict):
        names = names_of(data)
        if names and names <= cells:
            yield data
        data = list(data.values())
    if isinstance(data, list):
        for value in data:
            yield from named(value, cells)


def names_of(data: dict[str, Any]) -> set[str]:
    """What an object calls itself."""
    return {data[key] for key in NAMES if isinstance(data.get(key), str)}


def parts(cell: str) -> list[str]:
    """The names that a cell of a table may have: one, perhaps with a star, or two with a minus between them."""
    return cell.removesuffix(" *").split(" − ")


def unexplained(text: str, data: Any) -> list[str]:
    """The numbers of a text that are not numbers of the data, as they are or in percent, at the digits shown.

    A row of a table whose cells name a policy, or two with a minus between them, is held against the objects of that
    name alone; so is a row that leaves its first cell to the row above.
    """
    wrong: list[str] = []
    own: list[dict[str, Any]] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        found = list(named(data, {name for cell in cells for name in parts(cell)}))
        own = found or (own if cells and not cells[0] else [])
        known = [v for value in numbers(own or data) for v in (value, 100 * value)]
        names = {name for each in own for name in names_of(each)}
        shown = " | ".join(cell for cell in cells if not names.issuperset(parts(cell))) if cells else line
        for token in NUMBER.findall(FREE_TEXT.sub("", shown)):
            plain, _, exponent = token.replace("−", "-").replace("+", "", 1).replace(",", "").partition("e")
            scale = 10.0 ** int(exponent or 0)
            half = 0.5 * 10.0 ** -len(plain.partition(".")[2]) * scale * (1 + 1e-9)
            if not any(math.isclose(float(plain) * scale, value, rel_tol=1e-12, abs_tol=half) for value in known):
                wrong.append(f"{token} in: {line}")
    return wrong


def check_recorded(run: Path, folder: Path) -> None:
    """Assert that agents/record_results.py takes a run, and that every number of its tables is one of its file.

    Args:
        run: folder that a recipe has written.
        folder: for the page.
    """
    page = folder / "page" / "RESULTS.md"
    load_recipe("record_results").main(["run", str(run), "--page", str(page)])
    [(_, text)] = BLOCK.findall(page.read_text(encoding="utf-8"))
    data = json.loads((page.parent / "results" / "run" / "results.json").read_text(encoding="utf-8"))
    wrong = unexplained(text, data)
    assert not wrong, "\n".join(wrong)
    assert unexplained(text, {}), "the tables have no number to explain"
    assert "git" in data
    assert "settings" in data
