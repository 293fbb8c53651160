"""Pictures of KL-ST: that they can be drawn of whatever a run may find."""

from __future__ import annotations

import numpy as np
import pytest

from dmr_gym.calibration import budget_threshold, find_plateau
from dmr_gym.kl_figures import draw_kls, draw_score_pools


@pytest.mark.parametrize(
    ("kls", "thresholds"),
    [
        (np.zeros((12, 1)), [0.0]),
        (np.full((12, 2), 0.3), [0.1, 5.0]),
        (np.array([[0.1, 0.0]] * 11 + [[np.inf, 2.0]]), [0.1, 1e6]),
    ],
)
def test_any_kls_and_thresholds_can_be_drawn(kls, thresholds, tmp_path):
    """Zeros, equal values, infinite ones, and thresholds outside them."""
    names = ["low", "mid"][: kls.shape[1]]
    draw_kls(kls.astype(np.float32), names, thresholds, None, tmp_path / "kl.png")
    assert (tmp_path / "kl.png").read_bytes().startswith(b"\x89PNG")


def test_a_plateau_is_drawn_where_there_is_one(tmp_path, monkeypatch):
    """A grey band and its share in the legend; without a plateau the legend says how τ was found."""
    from matplotlib.axes import Axes

    spans, labels = [], []
    real = Axes.axvline
    monkeypatch.setattr(Axes, "axvspan", lambda self, *args, **kwargs: spans.append((*args[:2], kwargs["label"])))
    monkeypatch.setattr(Axes, "axvline", lambda self, *a, **k: labels.append(k["label"]) or real(self, *a, **k))
    rng = np.random.default_rng(0)
    two = 10 ** np.concatenate([rng.normal(-5, 0.4, 900), rng.normal(0, 0.3, 100)])
    one = 10 ** rng.normal(-3, 0.5, 1000)
    plateaus = [find_plateau(two), find_plateau(one)]
    kls = np.stack([two, one], axis=1).astype(np.float32)
    taus = [plateau.threshold for plateau in plateaus]
    draw_kls(kls, ["low", "mid"], taus, plateaus, tmp_path / "kl.png", bound=True)
    assert spans == [(plateaus[0].low, plateaus[0].high, f"plateau: {plateaus[0].share_inside:.1%} of steps")]
    assert labels == [f"τ = {taus[0]:.2g} nats", f"τ = {taus[1]:.2g} nats (Otsu: no plateau found)"]


def test_budgets_of_no_step_and_saturated_scores_can_be_drawn(tmp_path):
    """An infinite threshold has no place on the axis; one pool alone needs no partner."""
    scores = np.array([0.0] * 5 + [1.0] * 5)
    thresholds = [budget_threshold(scores, budget) for budget in (0.0, 0.2, 1.0)]
    draw_score_pools({"calibration": scores}, thresholds, tmp_path / "a.png")
    draw_score_pools({"training": scores[:7], "calibration": scores}, thresholds, tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
