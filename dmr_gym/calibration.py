"""Thresholds: the one on KL that makes labels, and the one on router scores that keeps a budget.

* `find_plateau` chooses τ of Eq. 5 on the logarithmic scale, between the mass of harmless steps and the critical tail;
  `label_stability` says how much the labels depend on it.
* `budget_threshold` is Eq. 7: the score above which the budgeted share of steps lies; `step_share` says how well a pool
  of episodes fixes such a share.

Shapes: N steps, E episodes, P precisions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.kl import precision_labels
from dmr_gym.metrics import Interval, bootstrap_ratio
from dmr_gym.types import FloatArray

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
        value: τ_K; infinite for a budget of none.
        realised_share: share of the calibration steps that go to high precision: more than K where scores are tied at
            τ_K and go together, K in expectation where ties are split.
        n_steps: router-eligible steps of the calibration pool.
        tied_steps: calibration steps with a score of exactly τ_K, the one that gave it among them.
        tie_probability: how often such a step goes to high precision; 1 unless ties are split.
    """

    budget: float
    value: float
    realised_share: float
    n_steps: int
    tied_steps: int = 0
    tie_probability: float = 1.0

    def high_steps(self, scores: NDArray[np.floating]) -> float:
        """How many steps with these scores (N,) go to high precision, in expectation where ties are split."""
        return float((scores > self.value).sum() + self.tie_probability * (scores == self.value).sum())


@dataclass(frozen=True, slots=True)
class LabelStability:
    """How many labels change when every τ of Eq. 5 moves by some decades.

    Attributes:
        decades: δ, the move of log10 τ.
        lowered: share of labels that differ at τ·10^-δ.
        raised: share of labels that differ at τ·10^δ.
    """

    decades: float
    lowered: float
    raised: float


@dataclass(frozen=True, slots=True)
class StepShare:
    """The share of steps at high precision in a pool of episodes, with what such a pool leaves open.

    Attributes:
        share: of the pool's steps.
        binomial_ci: 95 % interval of Clopper and Pearson, as if steps were independent.
        episodes_ci: 95 % bootstrap interval that draws whole episodes, whose steps depend on each other.
        n_steps: of the pool.
        n_episodes: of the pool.
    """

    share: float
    binomial_ci: Interval
    episodes_ci: Interval
    n_steps: int
    n_episodes: int


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


def share_threshold(kls: NDArray[np.floating], share: float) -> float:
    """Choose τ so that a given share of the steps has a larger KL, or the nearest share that can be had.

    τ lies between two KLs that occur, in the middle on the logarithmic scale, so that equal KLs stay together and no
    label hangs on a rounding. What KLs without a plateau leave to choose is how rare the critical steps are.

    Args:
        kls: (N,) KL of each step in nats, at least 0.
        share: of the steps, in (0, 1).

    Returns:
        τ in nats. Where all KLs are equal, or too small to be told from zero, that KL, and no step lies above it.

    Raises:
        ConfigError: no KL, one that is negative or no number, or a share outside (0, 1).
    """
    values = np.asarray(kls, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not (values >= 0).all():
        raise ConfigError(f"a threshold needs KLs of at least 0, (N,), got shape {values.shape}")
    if not 0 < share < 1:
        raise ConfigError(f"the share of steps above a threshold must lie between 0 and 1, got {share}")
    occurring, counts = np.unique(np.maximum(values, KL_FLOOR), return_counts=True)
    if len(occurring) == 1:
        return float(occurring[0])
    above = 1 - np.cumsum(counts)[:-1] / len(values)
    at = int(np.argmin(np.abs(above - share)))
    return float(np.sqrt(occurring[at] * occurring[at + 1]))


def label_stability(
    kls: FloatArray, thresholds: float | Sequence[float], decades: Sequence[float] = (0.1, 0.25, 0.5, 1.0)
) -> list[LabelStability]:
    """Count the labels of Eq. 5 that change when log10 τ moves: few do where τ lies in a sparse plateau (section 5.5).

    Args:
        kls: (N, P - 1) KLs in nats, in ascending precision.
        thresholds: τ in nats, one for all or P - 1; all move together.
        decades: the moves δ, above 0.

    Raises:
        ConfigError: no steps, or shapes that do not fit.
    """
    if not len(kls):
        raise ConfigError("label stability needs the KLs of at least one step")
    taus = np.asarray(thresholds, dtype=np.float64)
    labels = precision_labels(kls, taus)

    def changed(factor: float) -> float:
        return float((precision_labels(kls, taus * factor) != labels).mean())

    return [LabelStability(delta, changed(10**-delta), changed(10**delta)) for delta in decades]


def budget_threshold(scores: NDArray[np.floating], budget: float, split_ties: bool = False) -> Threshold:
    """Eq. 7: τ_K = Quantile_{1-K} of the calibration scores, as the score of the round(K·N)-th highest step.

    With distinct scores the realised share is within 1/N of K. Saturated scores are tied and then go together: the
    realised share says by how much the budget is exceeded. With ``split_ties`` τ_K is the score of the ceil(K·N)-th
    highest step, and a step of that very score goes to high precision with the probability that makes the expected
    share exactly K (`dmr_gym.policies.RouterPolicy`).

    Args:
        scores: (N,) p_high of the router-eligible steps of a calibration pool.
        budget: K in [0, 1].
        split_ties: whether steps tied at τ_K are drawn.

    Raises:
        ConfigError: no scores, or a budget outside [0, 1].
    """
    values = np.asarray(scores)
    if values.ndim != 1 or not values.size or np.isnan(values).any():
        raise ConfigError(f"a budget threshold needs (N,) scores of router-decided steps, got {values!r}")
    if not 0.0 <= budget <= 1.0:
        raise ConfigError(f"budget must be a share of steps in [0, 1], got {budget}")
    wanted = budget * len(values)
    # Rounding of K·N, such as 0.07 * 100 = 7.000000000000001, asks for no further step.
    count = math.ceil(wanted - 1e-9) if split_ties else round(wanted)
    tau = np.inf if count == 0 else np.sort(values)[-count]
    above, tied = int((values > tau).sum()), int((values == tau).sum())
    probability = min((wanted - above) / tied, 1.0) if split_ties and tied else 1.0
    share = (above + probability * tied) / len(values)
    return Threshold(budget, float(tau), share, len(values), tied, probability)


def step_share(
    high_steps: NDArray[np.floating], steps: NDArray[np.integer], resamples: int = 2000, seed: int = 0
) -> StepShare:
    """Say what share of steps takes the highest precision, and what the size of the pool leaves open.

    Both intervals are those of a share at a threshold that is given. Where the threshold was chosen on the same N
    distinct scores so that the k highest pass, the share of fresh steps that pass follows Beta(k, N + 1 - k), as in
    conformal prediction; the interval of Clopper and Pearson has its lower end and a slightly higher upper one, so it
    holds there too. Steps of an episode depend on each other, so the interval over episodes is the one to trust; it is
    usually the wider one.

    Args:
        high_steps: (E,) steps at the highest precision of each episode, in expectation where ties are split.
        steps: (E,) steps of each episode that are counted.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        ConfigError: no steps.
    """
    total, high = int(steps.sum()), float(high_steps.sum())
    if not total:
        raise ConfigError("a share of steps needs at least one step that a router decided")
    # An expected count lies between two whole ones.
    low, up = binomial_interval(math.floor(high), total).low, binomial_interval(math.ceil(high), total).high
    groups = np.arange(len(steps), dtype=np.int64)
    rng = np.random.default_rng(seed)
    episodes = bootstrap_ratio(high_steps.astype(np.float64), steps.astype(np.float64), groups, resamples, rng)
    return StepShare(high / total, Interval(low, up), episodes, total, len(steps))


def binomial_interval(count: int, n: int, level: float = 0.95) -> Interval:
    """Return the interval of Clopper and Pearson for a probability, whose coverage is at least ``level`` for every n.

    Its ends are the probabilities at which so many successes or more, or so many or fewer, have half of 1 - level.

    Args:
        count: successes.
        n: independent trials.
        level: of confidence.

    Raises:
        ConfigError: a count outside 0 to n, or no trials.
    """
    if not 0 <= count <= n or n < 1:
        raise ConfigError(f"a binomial interval needs 0 <= count <= n and n >= 1, got {count} of {n}")
    tail = (1 - level) / 2
    low = 0.0 if count == 0 else _solve(lambda p: 1 - _binomial_cdf(count - 1, n, p), tail)
    high = 1.0 if count == n else _solve(lambda p: -_binomial_cdf(count, n, p), -tail)
    return Interval(low, high)


def describe_scores(scores: NDArray[np.floating]) -> dict[str, Any]:
    """Say how router scores lie: what Appendix D of the paper compares between two pools.

    Args:
        scores: (N,) p_high.

    Returns:
        steps, mean, five quantiles, share_at_least_half, and percentile_of_half: the percentile at which the default
        threshold 0.5 sits, in [0, 100].
    """
    return {
        "steps": len(scores),
        "mean": float(scores.mean()),
        "quantiles": {f"{q:.2f}": float(np.quantile(scores, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)},
        "share_at_least_half": float((scores >= 0.5).mean()),
        "percentile_of_half": float(100 * (scores < 0.5).mean()),
    }


def _binomial_cdf(count: int, n: int, p: float) -> float:
    """P(X <= count) of n trials at probability 0 < p < 1, from the terms' logarithms."""
    k = np.arange(count + 1)
    factorials = np.concatenate([[0.0], np.log(np.arange(1, n + 1)).cumsum()])
    logs = factorials[n] - factorials[k] - factorials[n - k] + k * math.log(p) + (n - k) * math.log1p(-p)
    return float(np.exp(logs).sum())


def _solve(rising: Callable[[float], float], target: float) -> float:
    """The p in (0, 1) at which a rising function reaches a target, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


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
