"""Pictures of KL-ST: the KLs with their thresholds (Figure 3, left), and router scores in two pools (Figure 7).

matplotlib is imported when a picture is drawn. Shapes: N steps, P precisions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.calibration import KL_FLOOR, Plateau, Threshold
from dmr_gym.deployment import DEFAULT_TAU, budget_text
from dmr_gym.figures import pyplot, save, tidy
from dmr_gym.types import FloatArray

KL_CEILING = 1e4
"""Larger KLs, in nats, are drawn as this: one precision may exclude what the other says."""

COLORS = ("#1f4e9c", "#d9822b", "#2e8b57", "#8e4fa8")
"""Of the lower precisions, and of the pools."""


def draw_kls(
    kls: FloatArray,
    lower: Sequence[str],
    thresholds: Sequence[float],
    plateaus: Sequence[Plateau] | None,
    path: Path,
    *,
    steps: str = "action",
    bound: bool = False,
) -> None:
    """Draw the KLs of each lower precision on a logarithmic scale, with τ, and the plateau where one was found.

    Args:
        kls: (N, P - 1) nats.
        lower: names of the P - 1 lower precisions, ascending.
        thresholds: P - 1, in nats.
        plateaus: P - 1; None where the thresholds were given.
        path: of the picture.
        steps: which steps these are, for the axis.
        bound: whether the KLs are lower bounds.
    """
    values, taus = np.clip(kls, KL_FLOOR, KL_CEILING), np.clip(thresholds, KL_FLOOR, KL_CEILING)
    edges = np.geomspace(min(values.min(), taus.min()) * 0.8, max(values.max(), taus.max()) * 1.25, 64)
    size = (7.5, 0.9 + 2.6 * len(lower))
    figure, rows = pyplot().subplots(len(lower), 1, figsize=size, sharex=True, squeeze=False, layout="constrained")
    for p, name in enumerate(lower):
        axes, color, tau = rows[p, 0], COLORS[p % len(COLORS)], thresholds[p]
        plateau = None if plateaus is None or not plateaus[p].bimodal else plateaus[p]
        if plateau is not None:
            inside = f"plateau: {plateau.share_inside:.1%} of steps"
            axes.axvspan(plateau.low, plateau.high, color="0.9", linewidth=0, zorder=0, label=inside)
        axes.hist(values[:, p], bins=edges, color=color, alpha=0.8, zorder=2)
        origin = "" if plateau is not None else " (given)" if plateaus is None else " (Otsu: no plateau found)"
        axes.axvline(
            taus[p], color="black", linestyle="--", linewidth=1.2, zorder=3, label=f"τ = {tau:.2g} nats{origin}"
        )
        axes.set(xscale="log", ylabel=f"{steps} steps")
        axes.set_title(
            f"{name}: {np.mean(kls[:, p] > tau):.1%} of {len(kls)} steps lie above τ", fontsize=10, loc="left"
        )
        axes.yaxis.get_major_locator().set_params(integer=True)
        tidy(axes, grid=False)
        # Above the bars: a legend among them would hide steps, wherever it lay.
        axes.legend(frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    prefix = "lower bound of the " if bound else ""
    rows[-1, 0].set_xlabel(f"{prefix}KL to the highest precision, nats (log scale)")
    save(figure, path)


def draw_score_pools(pools: Mapping[str, NDArray[np.floating]], thresholds: Sequence[Threshold], path: Path) -> None:
    """Draw how p_high lies in each pool, with the default threshold and those of the budgets (Appendix D, Figure 7).

    Args:
        pools: scores (N,) of each by its name.
        thresholds: of the budgets.
        path: of the picture.
    """
    figure, panels = pyplot().subplots(2, 1, figsize=(7.5, 6), sharex=True, layout="constrained")
    edges = np.linspace(0, 1, 41)
    for (name, scores), color in zip(pools.items(), COLORS, strict=False):
        weights = np.full(len(scores), 100 / len(scores))
        label = f"{name}: {len(scores)} steps, mean {scores.mean():.2f}"
        style: dict[str, Any] = {"bins": edges, "weights": weights, "color": color}
        panels[0].hist(scores, **style, alpha=0.35)
        panels[0].hist(scores, **style, histtype="step", linewidth=1.4, label=label)
        ordered = np.sort(scores)
        percent = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
        half = 100 * float((scores < DEFAULT_TAU).mean())
        label = f"{name}: {DEFAULT_TAU} at percentile {half:.0f}"
        panels[1].step([0.0, *ordered, 1.0], [0.0, *percent, 100.0], where="post", color=color, label=label)
    for axes in panels:
        axes.axvline(DEFAULT_TAU, color="0.45", linestyle=":", linewidth=1.2)
        tidy(axes, grid=False)
        axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    for threshold in thresholds:
        if not 0.0 <= threshold.value <= 1.0:
            continue  # a budget of no step has an infinite one
        share = 100 * (1 - threshold.budget)
        panels[1].plot([threshold.value] * 2, [0, share], color="black", linewidth=0.8, linestyle="--")
        panels[1].plot([threshold.value], [share], "k.")
        panels[1].annotate(
            f"K = {budget_text(threshold.budget)}",
            (threshold.value, share),
            xytext=(5, -11) if threshold.value < 0.85 else (-5, -11),
            textcoords="offset points",
            ha="left" if threshold.value < 0.85 else "right",
            fontsize=8.5,
        )
    panels[0].set(ylabel="share of steps (%)", xlim=(-0.02, 1.02))
    panels[1].set(ylabel="steps below (%)", xlabel="router score p(high)", ylim=(0, 103))
    save(figure, path)
