"""Tables of results: the same one in Markdown for a file and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmr_gym.metrics import Interval
from dmr_gym.runs import write_atomically

TABLES_FILE = "tables.md"


@dataclass(frozen=True)
class Table:
    """Cells of text.

    Attributes:
        title: above it.
        columns: headings.
        rows: as many cells each.
        notes: sentences below it.
        left: how many columns, from the first, are aligned to the left; numbers go to the right.
        styles: of the rows on the terminal, as rich names them; none where there are fewer.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    left: int = 1
    styles: tuple[str | None, ...] = ()

    def markdown(self) -> str:
        """The table in Markdown, with a heading."""
        rules = ["---" if index < self.left else "---:" for index in range(len(self.columns))]
        lines = ["| " + " | ".join(map(_escape, row)) + " |" for row in (self.columns, rules, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines, *(f"\n{note}" for note in self.notes)]) + "\n"

    def show(self) -> None:
        """Print it; a file or a narrow window gets whole lines rather than numbers cut in the middle."""
        from rich import box
        from rich.console import Console
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(title=Text(self.title), box=box.SIMPLE_HEAD, caption_justify="left", title_justify="left")
        for index, name in enumerate(self.columns):
            grid.add_column(Text(name), justify="left" if index < self.left else "right", no_wrap=True)
        for index, row in enumerate(self.rows):
            grid.add_row(*map(Text, row), style=self.styles[index] if index < len(self.styles) else None)
        console = Console()
        console.width = max(console.width, 180)
        console.print(grid)
        console.width = min(console.width, 120)
        for note in self.notes:
            console.print(Text(note))


def write_tables(folder: Path, tables: Sequence[Table], heading: str | None = None) -> Path:
    """Write tables one below the other into ``tables.md``, below a heading where there is one; returns its path."""
    text = f"# {heading}\n\n" if heading else ""
    text += "\n".join(table.markdown() for table in tables)
    path = folder / TABLES_FILE
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def number(value: float | None, digits: int) -> str:
    """A number, or a dash where there is none. Nothing is "-0.0"."""
    return "–" if value is None or math.isnan(value) else f"{value:z.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign; a dash where there is none."""
    return number(None if value is None else 100 * value, digits)


def with_interval(value: float, interval: Interval, digits: int, scale: float = 1.0, sign: bool = False) -> str:
    """A number with its interval in brackets; a dash where there is none."""
    if math.isnan(value):
        return "–"
    plus = "+" if sign else ""
    low, high = (f"{scale * end:{plus}z.{digits}f}" for end in (interval.low, interval.high))
    return f"{scale * value:{plus}z.{digits}f} [{low}, {high}]"


def _escape(cell: Any) -> str:
    return str(cell).replace("|", "\\|").replace("\n", " ")
