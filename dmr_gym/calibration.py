"""Thresholds: the one on KL that makes labels, and the one on router scores that keeps a budget.

* `find_plateau` chooses τ of Eq. 5 on the logarithmic scale, between the mass of harmless steps and the critical tail.
* `budget_threshold` is Eq. 7: the score above which the budgeted share of steps lies.

Shapes: N steps.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError

KL_FLOOR = 1e-8
"""Smaller KLs, in nats, count as this: float32 log-probabilities cannot tell them from zero."""

_GRID = 512


@dataclass(frozen=True, slots=True)
class Plateau:
    """The sparse stretch between the two modes of log10 KL.

    Attributes:
        threshold: τ in nats, the plateau's middle on the logarithmic scale.
        low: its lower edge in nats.
        high: its upper edge in nats.
        share_inside: share of steps with a KL between the edges: those whose label depends on the exact τ.
        share_above: share of steps with a KL above τ, labelled as needing high precision.
        bimodal: whether there are two modes with a valley between them; if not, τ is Otsu's threshold, which splits
            any distribution, and the edges coincide with it.
    """

    threshold: float
    low: float
    high: float
    share_inside: float
    share_above: float
    bimodal: bool


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold τ_K on p_high: a step goes to high precision iff its score is at least ``value``.

    Attributes:
        budget: K, the share of steps that was asked for.
        value: τ_K.
        realised_share: share of the calibration steps at or above it; more than K where scores are tied at τ_K.
        n_steps: router-eligible steps of the calibration pool.
    """

    budget: float
    value: float
    realised_share: float
    n_steps: int


def find_plateau(
    kls: NDArray[np.floating],
    bandwidth: float = 0.25,
    shares: tuple[float, float] = (0.01, 0.5),
    min_kl: float = 1e-3,
) -> Plateau:
    """Choose τ from the sparse plateau between the low-divergence mass and the high-divergence tail (section 4.2).

    The density of log10 KL is estimated with a Gaussian kernel. Of all pairs of modes, the pair with the deepest
    valley wins: the one whose smaller mode rises highest above the lowest point between them. The plateau is the
    stretch around that point where the density stays within a tenth of the rise.

    The paper's critical steps are rare and their deviation is significant, so only valleys count that leave a minority
    of the steps above and do not lie where both sides act alike: near-certain steps can form a mode of their own far
    below, of KLs that differ by decades and mean nothing.

    Args:
        kls: (N,) KL of each step in nats, at least 0.
        bandwidth: width of the kernel in decades.
        shares: least and greatest share of steps above the valley; the least keeps a few outliers from being a mode.
        min_kl: lowest place of a valley in nats. By Pinsker's inequality 1e-3 moves no probability by more than 2.3 %.

    Raises:
        ConfigError: fewer than 10 steps, or a KL that is negative or no number.
    """
    values = np.asarray(kls, dtype=np.float64)
    if values.ndim != 1 or len(values) < 10:
        raise ConfigError(f"a threshold needs the KLs of at least 10 steps, (N,), got shape {values.shape}")
    if not (values >= 0).all():
        raise ConfigError("KLs must be at least 0, got a negative number or NaN")
    logs = np.log10(np.clip(values, KL_FLOOR, 1e8))
    grid = np.linspace(logs.min() - 3 * bandwidth, logs.max() + 3 * bandwidth, _GRID)
    cells = np.rint((logs - grid[0]) / (grid[1] - grid[0])).astype(np.int64)
    counts = np.bincount(cells, minlength=_GRID).astype(np.float64)
    density: NDArray[np.float64] = np.exp(-0.5 * ((grid[:, None] - grid) / bandwidth) ** 2) @ counts
    valley = _deepest_valley(density, grid, logs, shares, np.log10(min_kl))
    if valley is None:
        middle = low = high = _otsu(logs)
    else:
        low, high = valley
        middle = (low + high) / 2
    return Plateau(
        threshold=float(10**middle),
        low=float(10**low),
        high=float(10**high),
        share_inside=float(((logs > low) & (logs <= high)).mean()),
        share_above=float((logs > middle).mean()),
        bimodal=valley is not None,
    )


def budget_threshold(scores: NDArray[np.floating], budget: float) -> Threshold:
    """Eq. 7: τ_K = Quantile_{1-K} of the calibration scores, as the score of the round(K·N)-th highest step.

    With distinct scores the realised share is within 1/N of K. Saturated scores are tied and then go together: the
    realised share says by how much the budget is exceeded.

    Args:
        scores: (N,) p_high of the router-eligible steps of a calibration pool.
        budget: K in [0, 1].

    Raises:
        ConfigError: no scores, or a budget outside [0, 1].
    """
    values = np.asarray(scores)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ConfigError(f"a budget threshold needs (N,) scores of router-decided steps, got {values!r}")
    if not 0.0 <= budget <= 1.0:
        raise ConfigError(f"budget must be a share of steps in [0, 1], got {budget}")
    count = round(budget * len(values))
    tau = np.inf if count == 0 else np.sort(values)[-count]
    return Threshold(budget, float(tau), float((values >= tau).mean()), len(values))


def _deepest_valley(
    density: NDArray[np.float64],
    grid: NDArray[np.float64],
    logs: NDArray[np.float64],
    shares: tuple[float, float],
    lowest: float,
) -> tuple[float, float] | None:
    """Edges of the plateau in log10 nats; None where the density has no valley worth the name."""
    inner = density[1:-1]
    modes = [int(i) + 1 for i in np.flatnonzero((inner > density[:-2]) & (inner >= density[2:]))]
    best: tuple[float, int, int, int] | None = None
    for left, right in itertools.combinations(modes, 2):
        bottom = left + int(np.argmin(density[left : right + 1]))
        above = float((logs > grid[bottom]).mean())
        rise = float(min(density[left], density[right]) - density[bottom])
        allowed = shares[0] <= above <= shares[1] and grid[bottom] >= lowest
        if allowed and (best is None or rise > best[0]):
            best = (rise, left, bottom, right)
    # A dip of less than a third of the smaller mode is noise of the estimate, not a gap between two kinds of steps.
    if best is None or best[0] < min(density[best[1]], density[best[3]]) / 3:
        return None
    rise, left, bottom, right = best
    flat = density[left : right + 1] <= density[bottom] + 0.1 * rise
    at = bottom - left
    start = at - int(np.argmin(flat[at::-1])) + 1
    stop = at + int(np.argmin(flat[at:])) - 1
    return float(grid[left + start]), float(grid[left + stop])


def _otsu(logs: NDArray[np.float64]) -> float:
    """The split with the largest variance between its two sides."""
    values = np.sort(logs)
    below = np.arange(1, len(values))
    left, total = np.cumsum(values)[:-1], values.sum()
    gap = left / below - (total - left) / (len(values) - below)
    at = int(np.argmax(below * (len(values) - below) * gap**2))
    return float((values[at] + values[at + 1]) / 2)
