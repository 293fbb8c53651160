"""Pictures of the ablations: success and time by size or budget (Figure 5), and KL by type of step (Figure 6).

matplotlib is imported when a picture is drawn. Shapes: N steps, P precisions.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.ablations import LARGE_KL, NEAR_ZERO_KL, Variant
from dmr_gym.calibration import KL_FLOOR
from dmr_gym.figures import pyplot, save, tidy
from dmr_gym.kl_figures import KL_CEILING
from dmr_gym.types import FloatArray

COLORS = ("#1f4e9c", "#2e8b57", "#d9822b", "#c0392b", "#8e4fa8")
"""Of the lines, in order; they begin anew after the last."""


def draw_sizes(variants: Sequence[Variant], size: str, path: Path) -> None:
    """Draw success and time of solved episodes by a size of the router, a line a budget, with the mean over budgets.

    Args:
        variants: named by that size.
        size: what it is the size of.
        path: of the picture.
    """
    figure, panels = _panels(2)
    places = np.arange(len(variants))
    for index, row in enumerate(variants[0].budgets):
        mine = [variant.budgets[index] for variant in variants]
        label = f"K = {row['budget']:g}"
        _line(panels[0], places, mine, label, COLORS[index % len(COLORS)])
        _time(panels[1], places, mine, label, COLORS[index % len(COLORS)])
    means = [100 * variant.mean_success for variant in variants]
    panels[0].plot(places, means, color="black", linewidth=2, label="mean over K")
    for axes in panels:
        axes.set(xticks=places, xlabel=size)
        axes.set_xticklabels([variant.name for variant in variants])
    _finish(figure, panels, variants, path)


def draw_courses(courses: Sequence[Mapping[str, Any]], highest: str, path: Path) -> None:
    """Draw how runs of GRPO went on held-out tasks: a thin line a seed, a thick one their mean; a column a λ.

    Args:
        courses: ``courses`` of a ``results.json`` of agents/compare_grpo.py; seeds of a λ were validated at the same
            updates.
        highest: name of the highest precision.
        path: of the picture.
    """
    lambdas = list(dict.fromkeys(course["lambda"] for course in courses))
    ways = list(dict.fromkeys(course["advantages"] for course in courses))
    figure, panels = pyplot().subplots(
        2, len(lambdas), figsize=(3.2 * len(lambdas) + 1.5, 5), sharex=True, squeeze=False, layout="constrained"
    )
    rows = (("returns", 1.0, "return, success − λ·T"), ("high_shares", 100.0, f"steps at {highest}, %"))
    for column, lambda_ in enumerate(lambdas):
        panels[0, column].set_title(f"λ = {lambda_:g} a second")
        panels[1, column].set_xlabel("update")
        for way, color in zip(ways, itertools.cycle(COLORS)):
            mine = [course for course in courses if (course["lambda"], course["advantages"]) == (lambda_, way)]
            for axes, (key, scale, _) in zip(panels[:, column], rows, strict=True):
                values = scale * np.array([course[key] for course in mine])
                axes.plot(mine[0]["updates"], values.T, color=color, alpha=0.3, linewidth=0.8)
                axes.plot(mine[0]["updates"], values.mean(axis=0), color=color, linewidth=2, label=way)
    for axes, (_, _, label) in zip(panels[:, 0], rows, strict=True):
        axes.set_ylabel(label)
    for axes in panels.flat:
        tidy(axes)
    panels[0, -1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle("Held-out tasks while training, precisions taken greedily", fontsize=9)
    save(figure, path)


def draw_returns(rows: Sequence[Mapping[str, Any]], prices: str, path: Path) -> None:
    """Draw returns on the test panel, a panel each λ: GRPO by advantages with a dot a seed, the others as lines.

    Args:
        rows: ``results`` of a ``results.json`` of agents/compare_grpo.py.
        prices: where times come from, for the title.
        path: of the picture.
    """
    lambdas = list(dict.fromkeys(row["lambda"] for row in rows))
    ways = list(dict.fromkeys(row["advantages"] for row in rows))
    styles = {"high": ("0.15", "-"), "low": ("0.6", "-"), "kl-st": ("tab:blue", "--"), "rival": ("tab:purple", ":")}
    labels = {"kl-st": "best KL-ST", "rival": "other KL-ST routers"}
    figure, panels = pyplot().subplots(
        1, len(lambdas), figsize=(3.2 * len(lambdas) + 1.5, 4), squeeze=False, layout="constrained"
    )
    for axes, lambda_ in zip(panels[0], lambdas, strict=True):
        here = [row for row in rows if row["lambda"] == lambda_]
        for row in here:
            if row["kind"] in styles and row["advantages"] == ways[0]:
                color, line = styles[row["kind"]]
                label = labels.get(row["kind"], row["policy"])
                known = label in axes.get_legend_handles_labels()[1]  # several rivals are one entry of the legend
                axes.axhline(row["return"], color=color, linestyle=line, linewidth=1.2, label=None if known else label)
        for place, advantages in enumerate(ways):
            for kind, color, shift in (("grpo", "tab:red", -0.1), ("random", "tab:green", 0.15)):
                row = next(r for r in here if r["kind"] == kind and r["advantages"] == advantages)
                bar = [[row["return"] - row["return_ci"]["low"]], [row["return_ci"]["high"] - row["return"]]]
                label = {"grpo": "GRPO (dots: seeds)", "random": "random, GRPO's share"}[kind] if place == 0 else None
                axes.errorbar(
                    [place + shift], [row["return"]], yerr=bar, fmt="s", color=color, markersize=5, label=label
                )
                if kind == "grpo":
                    dots = row["returns_of_seeds"]
                    axes.plot([place - 0.22] * len(dots), dots, ".", color=color, alpha=0.5)
        axes.set(
            title=f"λ = {lambda_:g} a second",
            xticks=range(len(ways)),
            xlim=(-0.6, len(ways) - 0.4),
        )
        axes.set_xticklabels(ways)
        tidy(axes, grid=False)
    panels[0][0].set_ylabel("return on the test panel: success − λ·T")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.suptitle(prices, fontsize=9)
    save(figure, path)


def draw_budgets(
    variants: Sequence[Variant], path: Path, kls: FloatArray | None = None, lower: Sequence[str] = ()
) -> None:
    """Draw success and time of solved episodes by budget, a line a variant; before them the KLs with each threshold.

    Args:
        variants: with the same budgets.
        path: of the picture.
        kls: (N, P - 1) nats; None leaves the histogram out.
        lower: names of the P - 1 lower precisions.
    """
    figure, panels = _panels(2 if kls is None else 3)
    if kls is not None:
        _kls(panels[0], variants, kls, lower)
    budgets = [row["budget"] for row in variants[0].budgets]
    for index, variant in enumerate(variants):
        # Side by side, so that equal ones do not hide each other.
        places = np.array(budgets) + 0.008 * (index - (len(variants) - 1) / 2)
        _line(panels[-2], places, variant.budgets, variant.name, COLORS[index % len(COLORS)])
        _time(panels[-1], places, variant.budgets, variant.name, COLORS[index % len(COLORS)])
    for axes in panels[-2:]:
        axes.set(xlabel="budget K", xticks=budgets)
    _finish(figure, panels[-2:], variants, path)


def draw_kl_types(parts: Mapping[str, Mapping[str, FloatArray]], path: Path) -> None:
    """Draw how the KLs of each type of step lie on a logarithmic scale, a panel a cell (Figure 6).

    Args:
        parts: KLs (N,) in nats by type of step, by the name of the cell.
        path: of the picture.
    """
    figure, panels = _panels(len(parts), height=3.6)
    every = np.concatenate([values for cell in parts.values() for values in cell.values()]).clip(KL_FLOOR, KL_CEILING)
    edges = np.geomspace(every.min() * 0.8, every.max() * 1.25, 48)
    for axes, (name, cell) in zip(panels, parts.items(), strict=True):
        for index, (kind, values) in enumerate(sorted(cell.items())):
            weights = np.full(len(values), 100 / len(values))
            shown = values.clip(KL_FLOOR, KL_CEILING)
            label = f"{kind}: {len(values)} steps, mean {values.mean():.2g}"
            axes.hist(shown, bins=edges, weights=weights, color=COLORS[index % len(COLORS)], alpha=0.55, label=label)
        for bound in (NEAR_ZERO_KL, LARGE_KL):
            axes.axvline(bound, color="0.4", linestyle=":", linewidth=1)
        axes.set(xscale="log", xlabel="KL of the action, nats (log scale)", ylabel="share of its steps (%)")
        axes.set_title(name, fontsize=10, loc="left")
        tidy(axes)
        axes.legend(frameon=False, fontsize=8.5)
    save(figure, path)


def _panels(number: int, height: float = 4.2) -> tuple[Any, list[Any]]:
    figure, panels = pyplot().subplots(1, number, figsize=(4.9 * number, height), squeeze=False, layout="constrained")
    return figure, list(panels[0])


def _line(
    axes: Any, places: Sequence[float] | NDArray[Any], rows: Sequence[Mapping[str, Any]], label: str, color: str
) -> None:
    success = np.array([row["success"] for row in rows])
    ends = np.array([[row["success_ci"]["low"], row["success_ci"]["high"]] for row in rows]).T
    bars = np.abs(ends - success)
    axes.errorbar(
        places, 100 * success, yerr=100 * bars, color=color, marker="o", capsize=2, linewidth=1.2, label=label
    )


def _time(
    axes: Any, places: Sequence[float] | NDArray[Any], rows: Sequence[Mapping[str, Any]], label: str, color: str
) -> None:
    seconds = [np.nan if row["time_success_s"] is None else row["time_success_s"] for row in rows]
    axes.plot(places, seconds, color=color, marker="o", linewidth=1.2, label=label)


def _kls(axes: Any, variants: Sequence[Variant], kls: FloatArray, lower: Sequence[str]) -> None:
    for index, name in enumerate(lower):
        values = kls[:, index].clip(KL_FLOOR, KL_CEILING)
        edges = np.geomspace(values.min() * 0.8, values.max() * 1.25, 60)
        axes.hist(values, bins=edges, alpha=0.45, color="0.5", histtype="stepfilled", label=f"KL of {name}")
        for number, variant in enumerate(variants):
            tau, color = max(variant.threshold[index], KL_FLOOR), COLORS[number % len(COLORS)]
            label = f"τ at {variant.name}: {tau:.2g}"
            axes.axvline(tau, color=color, linestyle="--", linewidth=1.4, label=label)
    axes.set(xscale="log", xlabel="KL to the highest precision, nats (log scale)", ylabel="steps")
    tidy(axes)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def _finish(figure: Any, panels: Sequence[Any], variants: Sequence[Variant], path: Path) -> None:
    """Single precisions as lines, the same titles, and one legend."""
    for row in variants[0].singles:
        style = {"color": "0.2" if row["kind"] == "high" else "0.6", "linewidth": 1, "linestyle": "--", "zorder": 1}
        panels[0].axhline(100 * row["success"], **style, label=row["policy"])
        if row["time_success_s"] is not None:
            panels[1].axhline(row["time_success_s"], **style)
    panels[0].set_ylabel("tasks solved (%)")
    panels[1].set_ylabel("EP time of solved episodes (s)")
    for axes in panels:
        tidy(axes)
    panels[0].legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    save(figure, path)
