"""Pictures of an episode: its transcript as text, in colour on the terminal, or as a small raster."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmr_gym.config import unknown_name
from dmr_gym.episode import Episode, Turn
from dmr_gym.errors import ConfigError, MissingDependency

WIDTH, HEIGHT = 640, 480
_MARGIN, _LINE_HEIGHT, _COLUMNS = 8, 14, 100
_PALETTE = (
    ("green", (110, 200, 120)),
    ("cyan", (100, 190, 220)),
    ("yellow", (225, 200, 90)),
    ("magenta", (230, 120, 200)),
)
_TEXT, _BACKGROUND = (220, 220, 220), (24, 24, 28)


class _Line(NamedTuple):
    text: str
    precision: int | None = None


def check_render_mode(mode: str | None, known: Sequence[str]) -> str | None:
    """Return the mode, or raise ConfigError when it is not among the known ones."""
    if mode is not None and mode not in known:
        raise ConfigError(unknown_name("render_mode", mode, known))
    return mode


def render_frame(mode: str, episode: Episode) -> Any:
    """Render an episode that has begun.

    Args:
        mode: "ansi", "human" or "rgb_array".
        episode: the episode.

    Returns:
        The whole transcript for "ansi"; (480, 640, 3) uint8 with its last lines for "rgb_array"; None for "human",
        which prints what the last step added.
    """
    if mode == "human":
        return _print_last(episode)
    lines = [*_opening(episode), *(line for index in range(len(episode.turns)) for line in _turn(episode, index))]
    lines += _closing(episode)
    return (
        _raster(lines, len(episode.rules.precisions)) if mode == "rgb_array" else "\n".join(line.text for line in lines)
    )


def _opening(episode: Episode) -> Iterator[_Line]:
    assert episode.start is not None
    yield _Line(f"{episode.start.task_id}: {episode.start.instruction}")
    yield from map(_Line, episode.start.observation.splitlines())


def _turn(episode: Episode, index: int) -> Iterator[_Line]:
    turn: Turn = episode.turns[index]
    name = turn.request.precision
    precision = episode.rules.precisions.index(name)
    said = turn.step.action or turn.completion.text.strip()
    cost = _cost(turn.latency_llm_s + turn.latency_router_s, episode)
    yield _Line(f"{index + 1:3d} {name:>5s} {cost:>8s} > {said}", precision)
    yield from map(_Line, turn.step.observation.splitlines())


def _closing(episode: Episode) -> Iterator[_Line]:
    if episode.over:
        info = episode.info()
        outcome = "solved" if info["success"] else "step cap reached" if info["cap_reached"] else "not solved"
        share = f"{info['high_precision_share']:.0%} at {episode.rules.precisions[-1]}"
        cost = _cost(info["episode_latency_s"], episode)
        yield _Line(f"-- {outcome} after {info['step_index']} steps, {cost}, {share}")


def _cost(value: float, episode: Episode) -> str:
    """Seconds, or the unit of a latency model that names another."""
    unit = getattr(episode.rules.latency, "unit", "s")
    return f"{value:.3f} s" if unit == "s" else f"{value:.3g} {unit}"


def _colour(precision: int, count: int) -> tuple[str, tuple[int, int, int]]:
    return _PALETTE[round(precision * (len(_PALETTE) - 1) / (count - 1))]


def _print_last(episode: Episode) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    new = _turn(episode, len(episode.turns) - 1) if episode.turns else _opening(episode)
    for line in (*new, *_closing(episode)):
        style = "" if line.precision is None else f"bold {_colour(line.precision, len(episode.rules.precisions))[0]}"
        # Text takes observations as they are: "[...]" in them is not markup.
        console.print(Text(line.text, style=style))


def _raster(lines: Sequence[_Line], precisions: int) -> NDArray[np.uint8]:
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise MissingDependency("pillow", "train", 'render_mode="rgb_array"') from error
    wrapped = [
        line._replace(text=part) for line in lines for part in textwrap.wrap(line.text, _COLUMNS, tabsize=4) or [""]
    ]
    shown = wrapped[-((HEIGHT - 2 * _MARGIN) // _LINE_HEIGHT) :]
    image = Image.new("RGB", (WIDTH, HEIGHT), _BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default()
    for row, line in enumerate(shown):
        colour = _TEXT if line.precision is None else _colour(line.precision, precisions)[1]
        # The fallback font of a Pillow without FreeType knows Latin-1 only.
        text = line.text.encode("latin-1", "replace").decode("latin-1")
        draw.text((_MARGIN, _MARGIN + row * _LINE_HEIGHT), text, fill=colour, font=font)
    return np.asarray(image, dtype=np.uint8).copy()
