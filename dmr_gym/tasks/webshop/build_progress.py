"""Progress bars of an index build, on terminals only, and only for stages that take seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

DELAY_S = 2.0


@contextmanager
def bytes_bar(description: str, total_bytes: int) -> Iterator[Callable[[int], object]]:
    """Show a bar of bytes; yields what is called with the size of each part that is done."""
    with _bar(desc=description, total=total_bytes, unit="B", unit_scale=True) as bar:
        yield bar.update


@contextmanager
def stage_bars(description: str) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each stage of a job; yields what is called with stage, things done, and things in all."""
    bars: dict[str, Any] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in bars:
            bars[stage] = _bar(desc=f"{description}: {stage}", total=total)
        bars[stage].update(done - bars[stage].n)

    try:
        yield tell
    finally:
        for bar in bars.values():
            bar.close()


def _bar(**settings: Any) -> Any:
    from tqdm import tqdm

    return tqdm(delay=DELAY_S, disable=None, **settings)
