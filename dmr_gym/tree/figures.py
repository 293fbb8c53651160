"""The picture of a panel's trees: what routing can reach and where policies are, and what KL labels find.

matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.calibration import KL_FLOOR
from dmr_gym.figures import STYLES, place_labels, pyplot, save, tidy, together
from dmr_gym.tree.decisions import LabelQuality
from dmr_gym.tree.frontier import Frontier


@dataclass(frozen=True, slots=True)
class Point:
    """A policy: its kind (a key of `dmr_gym.figures.STYLES`), its name, success in [0, 1], mean time in seconds."""

    kind: str
    name: str
    success: float
    time_s: float


@dataclass(frozen=True, slots=True)
class LabelCurve:
    """Quality of KL labels at many thresholds.

    Attributes:
        name: of the lower precision.
        points: by ascending threshold.
        threshold: the one that KL-ST takes, in nats.
        differ: precision of the label "the actions differ", which has recall 1.
    """

    name: str
    points: Sequence[LabelQuality]
    threshold: float
    differ: float


def draw_report(
    shown: Frontier,
    bound: Frontier,
    policies: Sequence[Point],
    curves: Sequence[LabelCurve],
    prices: str,
    path: Path,
) -> None:
    """Draw the frontier with policies, and precision and recall of labels over their threshold.

    Args:
        shown: frontier that the trees reach.
        bound: frontier that nothing can beat; drawn where it is another.
        policies: points beside it; those of the kind "random" are drawn without their names.
        curves: one a lower precision; without any, only the frontier is drawn.
        prices: where the times come from, in words.
        path: of the picture.
    """
    panels = 1 + len(curves)
    figure, rows = pyplot().subplots(1, panels, figsize=(6.6 * panels, 5.2), squeeze=False, layout="constrained")
    axes = rows[0, 0]
    _frontier(axes, shown, "oracle: least time at each success", "-")
    if not np.array_equal(shown.success, bound.success) or not np.allclose(shown.time_s, bound.time_s):
        _frontier(axes, bound, "bound of what cut trees hide", ":")
    policies = _together(policies)
    for point in policies:
        axes.plot([point.time_s], [100 * point.success], **STYLES[point.kind], linestyle="none", zorder=3)
    if any(point.kind == "random" for point in policies):
        axes.plot([], [], **STYLES["random"], linestyle="none", label="random routing, the shares of a router")
    axes.set(xlabel=f"mean time of all episodes\n(modelled seconds, {prices})", ylabel="tasks solved (%)")
    axes.margins(x=0.12, y=0.1)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=9)  # no point is there
    for place, curve in enumerate(curves, 1):
        _labels(rows[0, place], curve)
    for each in rows[0]:
        tidy(each)
    figure.canvas.draw()  # names are placed by where the points end up, and must not move them
    axes.autoscale(False)
    _name(axes, policies)
    save(figure, path)


def _frontier(axes: Any, frontier: Frontier, label: str, linestyle: str) -> None:
    axes.plot(
        frontier.time_s,
        100 * frontier.success,
        color="black",
        linewidth=1.4,
        linestyle=linestyle,
        drawstyle="steps-post",
        marker="." if len(frontier.success) == 1 else "",
        label=label,
        zorder=2,
    )


def _labels(axes: Any, curve: LabelCurve) -> None:
    thresholds = [max(point.threshold, KL_FLOOR) for point in curve.points]
    for name, color in (("precision", "#1f4e9c"), ("recall", "#d9822b"), ("labelled", "#8a8a8a")):
        label = "share of steps labelled" if name == "labelled" else f"{name} for critical steps"
        axes.plot(thresholds, [100 * getattr(point, name) for point in curve.points], color=color, label=label)
    tau = max(curve.threshold, KL_FLOOR)
    axes.axvline(tau, color="black", linestyle="--", linewidth=1.1, label=f"τ of KL-ST = {curve.threshold:.2g} nats")
    axes.axhline(
        100 * curve.differ, color="#1f4e9c", linestyle=":", linewidth=1.1, label="precision of “actions differ”"
    )
    axes.set(xscale="log", ylim=(-2, 102), ylabel="%", xlabel=f"threshold on the KL of {curve.name}, nats (log scale)")
    axes.legend(frameon=False, fontsize=9)


def _together(policies: Sequence[Point]) -> list[Point]:
    """The same points, those at one place as one with the names of all; crosses come first and have none."""
    named = [point for point in policies if point.kind != "random"]
    labels = together([point.name for point in named], [(point.success, point.time_s) for point in named])
    crosses = [point for point in policies if point.kind == "random"]
    return [*crosses, *(replace(named[index], name=name) for index, name in labels)]


def _name(axes: Any, policies: Sequence[Point]) -> None:
    """Write each policy's name beside its point."""
    named = [point for point in policies if point.kind != "random"]
    if not named:
        return
    pixels = axes.transData.transform([(point.time_s, 100 * point.success) for point in policies])
    is_named = np.array([point.kind != "random" for point in policies], dtype=bool)
    fonts = [{"color": STYLES[point.kind]["color"], "fontsize": 9, "zorder": 4} for point in named]
    texts = [axes.text(0, 0, point.name, va="bottom", **font) for point, font in zip(named, fonts, strict=True)]
    boxes = [text.get_window_extent() for text in texts]
    sizes = np.array([(box.width, box.height) for box in boxes]).reshape(-1, 2)
    area = axes.get_window_extent()
    corners = place_labels(pixels[is_named], sizes, (area.x0, area.y0, area.x1, area.y1), pixels[~is_named])
    back = axes.transData.inverted()
    for text, corner in zip(texts, corners, strict=True):
        text.set_position(back.transform(corner))
