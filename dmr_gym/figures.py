"""The picture of an evaluation, Figure 4 of the paper: success against episode time, one point a policy.

matplotlib is imported when a picture is drawn. Shapes: N labels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import MissingDependency
from dmr_gym.metrics import OperatingPoint, Summary

STYLES: dict[str, dict[str, Any]] = {
    "high": {"color": "#1f4e9c", "marker": "s", "markersize": 9},
    "low": {"color": "#d9822b", "marker": "s", "markersize": 9},
    "router": {"color": "#2e8b57", "marker": "o", "markersize": 8},
    "start": {"color": "#1a9ba3", "marker": "D", "markersize": 7},
    "grpo": {"color": "#c0392b", "marker": "^", "markersize": 9},
    "ppo": {"color": "#8e4fa8", "marker": "v", "markersize": 9},
    "random": {"color": "#8a8a8a", "marker": "x", "markersize": 6},
    "oracle": {"color": "#c9a227", "marker": "*", "markersize": 12},
}
"""How each kind of policy is drawn."""

_LEGEND = {
    "router": "router",
    "start": "KL-ST where GRPO and PPO began",
    "grpo": "GRPO",
    "ppo": "PPO",
    "random": "random routing with the same shares of precisions",
    "oracle": "best routing of each task",
}
_RADII_PX = (12, 18, 26, 36, 48, 62, 78, 96, 116, 138, 162)
_DIRECTIONS = (40, -40, 140, -140, 90, -90, 0, 180, 20, -20, 65, -65, 115, -115, 160, -160)  # off the bars first
_LEADER_PX = 16
_MARKER_PX = 7
_SEEN_PX = 3


def draw_accuracy_latency(
    policies: Sequence[tuple[str, Summary]], prices: str, path: Path, oracle: Sequence[OperatingPoint] = ()
) -> None:
    """Draw success against episode time, over solved episodes and over all, with 95 % intervals.

    Args:
        policies: (kind, summary) of each, its kind a key of `STYLES`; random routing is drawn without its name.
        prices: what the times are and where they come from, in words (`dmr_gym.latency.PriceSource.title`).
        path: of the picture.
        oracle: the best routing, drawn where times are over all episodes.
    """
    figure, panels = pyplot().subplots(1, 2, figsize=(12, 5.4), sharey=True, layout="constrained")
    for axes, column, title in zip(panels, ("time_success_s", "time_all_s"), ("solved", "all"), strict=True):
        for kind, summary in policies:
            _point(axes, summary, column, STYLES[kind])
        axes.margins(x=0.12, y=0.1)
        axes.set_xlabel(f"mean time of {title} episodes\n({prices})")
        tidy(axes)
    for best in oracle:
        panels[1].plot([best.time_s], [100 * best.success], **STYLES["oracle"], linestyle="none", zorder=2)
    panels[0].set_ylabel("tasks solved (%)")
    kinds = {kind for kind, _ in policies} | ({"oracle"} if oracle else set())
    shown = [kind for kind in _LEGEND if kind in kinds]
    marks = [panels[0].plot([], [], **STYLES[kind], linestyle="none")[0] for kind in shown]
    figure.legend(marks, [_LEGEND[kind] for kind in shown], loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("Accuracy and latency (bars: 95 % bootstrap intervals over tasks)")
    figure.canvas.draw()  # names are placed by where the points end up, and must not move them
    for axes, column in zip(panels, ("time_success_s", "time_all_s"), strict=True):
        axes.autoscale(False)
        _name_points(axes, policies, column)
    save(figure, path)


def pyplot() -> Any:
    """matplotlib.pyplot, which draws into files alone.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", "train", "drawing a picture") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def tidy(axes: Any, *, grid: bool = True) -> None:
    """Take the frame's upper and right lines away, and draw a pale grid behind everything."""
    axes.spines[["top", "right"]].set_visible(False)
    if grid:
        axes.grid(color="0.93")
        axes.set_axisbelow(True)


def save(figure: Any, path: Path) -> None:
    """Write a picture and free its memory."""
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def together(names: Sequence[str], places: Sequence[tuple[float, float]]) -> list[tuple[int, str]]:
    """One name for the points at one place, which could not be told apart: those of all, "A = B".

    Args:
        names: N.
        places: N, the points; only those that are exactly equal are one.

    Returns:
        Index of the first point at each place, and the name.
    """
    found: dict[tuple[float, float], tuple[int, str]] = {}
    for index, (name, place) in enumerate(zip(names, places, strict=True)):
        first, before = found.get(place, (index, ""))
        found[place] = first, f"{before} = {name}" if before else name
    return list(found.values())


def place_labels(
    anchors: NDArray[np.float64],
    sizes: NDArray[np.float64],
    bounds: tuple[float, float, float, float],
    obstacles: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Put a label near each point so that labels cover neither each other nor a point.

    Each label takes the nearest place around its point that is free and no nearer to another labelled point, aslant
    first; where there is none, it goes where it overlaps and misleads least.

    Args:
        anchors: (N, 2) float64, the points in pixels.
        sizes: (N, 2) float64, width and height of the labels in pixels.
        bounds: left, bottom, right and top of the area that labels stay in, in pixels.
        obstacles: (M, 2) float64, further points that no label covers.

    Returns:
        (N, 2) float64, the labels' lower left corners in pixels.
    """
    points = anchors if obstacles is None else np.concatenate([anchors, obstacles])
    taken = np.concatenate([points - _MARKER_PX, points + _MARKER_PX], axis=1)  # (K, 4) left, bottom, right, top
    corners = np.zeros_like(anchors)
    for index, (anchor, size) in enumerate(zip(anchors, sizes, strict=True)):
        places = [_beside(anchor, size, *place) for place in itertools.product(_RADII_PX, _DIRECTIONS)]
        # Rounded, so that places which are free but for the arithmetic are equally free.
        overlaps = [round(_overlap(place, size, taken, bounds), 6) for place in places]
        free = [place for place, overlap in zip(places, overlaps, strict=True) if overlap == min(overlaps)]
        corners[index] = min(free, key=lambda place: _misleading(place, size, anchor, anchors))  # the first of equals
        box = np.concatenate([corners[index], corners[index] + size])
        taken = np.concatenate([taken, box[None]])
    return corners


def _beside(anchor: NDArray[np.float64], size: NDArray[np.float64], radius: float, degrees: float) -> Any:
    """Lower left corner of a label whose nearest edge or corner lies in a direction from its point."""
    direction = np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))])
    # From the label's corner where it stands aslant, from the middle of its edge where it stands straight.
    return anchor + radius * direction - size * (1 - (1.6 * direction).clip(-1, 1)) / 2


def _overlap(
    corner: NDArray[np.float64],
    size: NDArray[np.float64],
    taken: NDArray[np.float64],
    bounds: tuple[float, float, float, float],
) -> float:
    """Area in square pixels that a label shares with what is there, plus ten times what lies outside the bounds."""
    low, high = corner, corner + size
    shared = np.minimum(high, taken[:, 2:]) - np.maximum(low, taken[:, :2])
    inside = np.minimum(high, bounds[2:]) - np.maximum(low, bounds[:2])
    area = np.prod(shared.clip(0), axis=1).sum()
    return float(area + 10 * (size.prod() - inside.clip(0).prod()))


def _misleading(
    corner: NDArray[np.float64], size: NDArray[np.float64], anchor: NDArray[np.float64], anchors: NDArray[np.float64]
) -> float:
    """How much nearer a label stands to another point than to its own, in pixels; 0 where that cannot be seen."""
    own = np.linalg.norm(anchor.clip(corner, corner + size) - anchor)
    gaps = np.linalg.norm(anchors.clip(corner, corner + size) - anchors, axis=1)
    excess = float(own - gaps.min())
    return excess if excess > _SEEN_PX else 0.0


def _point(axes: Any, s: Summary, column: str, style: dict[str, Any]) -> None:
    x, y, x_ci = getattr(s, column), 100 * s.success, getattr(s, f"{column}_ci")
    bars = {"color": style["color"], "linewidth": 1, "alpha": 0.45, "zorder": 1}
    axes.plot([x_ci.low, x_ci.high], [y, y], **bars)
    axes.plot([x, x], [100 * s.success_ci.low, 100 * s.success_ci.high], **bars)
    axes.plot([x], [y], **style, linestyle="none", zorder=3)


def _name_points(axes: Any, policies: Sequence[tuple[str, Summary]], column: str) -> None:
    """Write the names of policies beside their points, with a thin line where a name had to move away."""
    from matplotlib import patheffects

    shown = [(kind, s) for kind, s in policies if not np.isnan(getattr(s, column))]
    crosses = [(getattr(s, column), 100 * s.success) for kind, s in shown if kind == "random"]
    named = [(kind, s) for kind, s in shown if kind != "random"]
    places = [(getattr(s, column), 100 * s.success) for _, s in named]
    labels = together([s.policy.removeprefix("router ") for _, s in named], places)
    to_pixels = axes.transData.transform
    anchors = to_pixels([places[index] for index, _ in labels] or np.zeros((0, 2)))
    fonts = [{"color": STYLES[named[index][0]]["color"], "fontsize": 9, "zorder": 4} for index, _ in labels]
    texts = [axes.text(0, 0, name, va="bottom", **font) for (_, name), font in zip(labels, fonts, strict=True)]
    for text in texts:
        text.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])
    boxes = [text.get_window_extent() for text in texts]
    sizes = np.array([(box.width, box.height) for box in boxes]).reshape(-1, 2)
    area = axes.get_window_extent()
    obstacles = to_pixels(crosses or np.zeros((0, 2)))
    corners = place_labels(anchors, sizes, (area.x0, area.y0, area.x1, area.y1), obstacles)
    back = axes.transData.inverted()
    for text, corner, size, anchor in zip(texts, corners, sizes, anchors, strict=True):
        text.set_position(back.transform(corner))
        nearest = anchor.clip(corner, corner + size)
        if _misleading(corner, size, anchor, anchors) or np.hypot(*(nearest - anchor)) > _LEADER_PX:
            axes.plot(*back.transform([anchor, nearest]).T, color=text.get_color(), linewidth=0.6, zorder=2)
