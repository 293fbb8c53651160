"""Evaluation arithmetic by hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.metrics import (
    EpisodeResult,
    balanced_accuracy,
    bootstrap_ratio,
    paired_difference,
    summarize,
)


def _episode(
    task: str, success: bool, time_s: float, steps: int = 10, high_steps: int = 5, seed: int = 0
) -> EpisodeResult:
    return EpisodeResult(
        task, success, time_s, (steps - high_steps, high_steps), completion_tokens=4 * steps, seed=seed
    )


EPISODES = [
    _episode("a", True, 2.0, steps=10, high_steps=5),
    _episode("b", True, 4.0, steps=20, high_steps=0),
    _episode("c", False, 9.0, steps=50, high_steps=15),
]


def test_summary_by_hand():
    """Success 2/3; times 3 s over solved and 5 s over all; high share 20 of 80 decisions; return 2/3 - 0.1 * 5."""
    summary = summarize("p", EPISODES, lambda_=0.1)
    assert summary.success == pytest.approx(2 / 3)
    assert summary.time_success_s == pytest.approx(3.0)
    assert summary.time_all_s == pytest.approx(5.0)
    assert summary.shares == pytest.approx((0.75, 0.25))
    assert summary.high_share == summary.shares[-1]
    assert summary.steps == pytest.approx(80 / 3)
    assert summary.completion_tokens == pytest.approx(4 * 80 / 3)
    assert summary.mean_return == pytest.approx(2 / 3 - 0.5)
    assert summary.episodes == 3


def test_the_score_is_the_mean_of_the_worlds_own_and_unknown_without_one():
    """Scores 1 and 0.25 have the mean 0.625, also where only one episode succeeds; without scores there is no mean."""
    scores = {"a": 1.0, "b": 0.25}
    scored = [EpisodeResult(task, score == 1.0, 1.0, (0, 5), 20, score=score) for task, score in scores.items()]
    summary = summarize("p", scored, 0.0)
    assert (summary.success, summary.score) == (0.5, 0.625)
    assert summary.score_ci.low == pytest.approx(0.25)
    assert summary.score_ci.high == pytest.approx(1.0)
    assert math.isnan(summarize("p", EPISODES, 0.0).score)


def test_the_high_share_pools_decisions():
    """The ratio of sums, not the mean of the episodes' ratios, which would be (0.5 + 0 + 0.3) / 3."""
    assert summarize("p", EPISODES, 0.0).high_share != pytest.approx((0.5 + 0.0 + 0.3) / 3)


def test_every_precision_has_its_share_with_an_interval():
    """Of 8 decisions of three precisions 1, 3 and 4; a task alone has 1 : 1 : 0 or 0 : 2 : 4, which bound the draws."""
    episodes = [EpisodeResult("a", True, 1.0, (1, 1, 0), 2), EpisodeResult("b", True, 1.0, (0, 2, 4), 6)]
    summary = summarize("p", episodes, 0.0)
    assert summary.shares == pytest.approx((1 / 8, 3 / 8, 4 / 8))
    assert [ci.low for ci in summary.shares_ci] == pytest.approx([0, 1 / 3, 0])
    assert [ci.high for ci in summary.shares_ci] == pytest.approx([1 / 2, 1 / 2, 2 / 3])


def test_speedup_is_the_references_time_over_this_one():
    """Reference 6 s on solved and on all; here 3 s on solved and 5 s on all."""
    reference = summarize("high", [_episode("a", True, 6.0)], 0.0)
    summary = summarize("p", EPISODES, 0.0, reference)
    assert summary.speedup_success == pytest.approx(2.0)
    assert summary.speedup_all == pytest.approx(6 / 5)


def test_a_policy_that_solves_nothing_has_no_time_on_solved_episodes():
    """NaN rather than a number that looks fast."""
    summary = summarize("low", [_episode("a", False, 9.0)], 0.1, summarize("high", EPISODES, 0.1))
    assert math.isnan(summary.time_success_s)
    assert math.isnan(summary.speedup_success)
    assert math.isnan(summary.time_success_s_ci.low)
    assert summary.time_all_s == 9.0


def test_no_episodes_are_refused():
    """A mean over nothing is a mistake of the caller."""
    with pytest.raises(ConfigError, match="no episodes"):
        summarize("p", [], 0.1)


def test_bootstrap_interval_agrees_with_the_binomial():
    """Of 400 tasks with 100 solved, 95 % of resampled means lie within about 1.96 * sqrt(0.25 * 0.75 / 400)."""
    success = np.array([1.0] * 100 + [0.0] * 300)
    interval = bootstrap_ratio(success, np.ones(400), np.arange(400), 4000, np.random.default_rng(0))
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert interval.low == pytest.approx(0.25 - half, abs=0.006)
    assert interval.high == pytest.approx(0.25 + half, abs=0.006)


def test_bootstrap_draws_tasks_not_episodes():
    """Ten equal episodes of a task add no information: the interval is that of the tasks."""
    success, ones = np.array([1.0, 0.0, 1.0, 0.0]), np.ones(4)
    once = bootstrap_ratio(success, ones, np.arange(4), 2000, np.random.default_rng(0))
    often = bootstrap_ratio(
        np.repeat(success, 10), np.ones(40), np.repeat(np.arange(4), 10), 2000, np.random.default_rng(0)
    )
    assert once == often
    assert once.high - once.low > 0.5


def test_the_same_seed_gives_the_same_interval():
    """Results are reproducible."""
    first, again = (summarize("p", EPISODES, 0.1, seed=3) for _ in range(2))
    assert first.success_ci == again.success_ci
    assert first.time_success_s_ci == again.time_success_s_ci


def test_balanced_accuracy_by_hand():
    """Recall 3/4 on the common class and 0 on the rare one: 3/8, although 3 of 5 are right."""
    labels, predictions = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 0])
    assert balanced_accuracy(labels, predictions) == pytest.approx(3 / 8)


def test_balanced_accuracy_ignores_classes_that_do_not_occur():
    """Predicting a class that no label has only costs recall of the others."""
    assert balanced_accuracy(np.array([0, 0]), np.array([0, 2])) == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="balanced accuracy"):
        balanced_accuracy(np.array([0, 1]), np.array([0]))


def test_paired_differences_by_hand():
    """Tasks a and b, the other policy twice each: success +1/4, time -1 s, return 1/4 + 0.1."""
    others = [_episode("a", True, 3.0), _episode("a", True, 3.0), _episode("b", True, 4.0), _episode("b", False, 6.0)]
    found = paired_difference("p", EPISODES[1::-1], "q", others, lambda_=0.1)
    assert found.success == pytest.approx(0.25)
    assert found.time_all_s == pytest.approx(-1.0)
    assert found.mean_return == pytest.approx(0.25 + 0.1)
    assert (found.success_ci.low, found.success_ci.high) == pytest.approx((0.0, 0.5))
    # Both tasks are one second faster, so no draw of tasks can say anything else.
    assert (found.time_all_s_ci.low, found.time_all_s_ci.high) == pytest.approx((-1.0, -1.0))
    # 3 s and 5 s of the other over 2 s and 4 s: 8 / 6; one task alone gives 3 / 2 or 5 / 4.
    assert found.speedup_all == pytest.approx(8 / 6)
    assert (found.speedup_all_ci.low, found.speedup_all_ci.high) == pytest.approx((5 / 4, 3 / 2))
    with pytest.raises(ConfigError, match="p minus q: both need episodes of the same tasks"):
        paired_difference("p", EPISODES, "q", others, 0.1)
