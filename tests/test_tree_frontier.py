"""dmr_gym.tree.frontier and decisions: frontiers by brute force, and what makes a step critical."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from tree_worlds import HASHED, TOY, grow, play_all, prices_of

from dmr_gym.errors import ConfigError
from dmr_gym.tasks.toy import make_signs
from dmr_gym.tree.decisions import NO, UNKNOWN, YES, average_precision, decide, label_quality
from dmr_gym.tree.frontier import panel_frontier, panel_times
from dmr_gym.tree.values import TIE, best_actions, best_values, fixed_values

INF = math.inf


def test_a_frontier_worked_out_by_hand() -> None:
    """Three tasks: one that success makes 1 s longer, one 3 s longer, one that cannot be solved."""
    frontier = panel_frontier(np.array([3.0, 5.0, INF]), np.array([2.0, 2.0, 5.0]))
    np.testing.assert_allclose(frontier.success, [0, 1 / 3, 2 / 3])
    np.testing.assert_allclose(frontier.time_s, [3, 10 / 3, 13 / 3])
    assert frontier.best_return(0.1) == pytest.approx(2 / 3 - 0.1 * 13 / 3)
    assert frontier.best_return(0.5) == pytest.approx(1 / 3 - 0.5 * 10 / 3)
    assert frontier.best_return(5.0) == pytest.approx(-15.0)
    assert frontier.least_time(0.5) == pytest.approx(13 / 3)
    assert frontier.least_time(0.9) == INF


def test_successes_that_save_time_dominate() -> None:
    """Where success is quicker than failure, no efficient point fails; tasks that cannot fail count as solved."""
    frontier = panel_frontier(np.array([1.0, 4.0, 2.0]), np.array([6.0, 3.0, INF]))
    np.testing.assert_allclose(frontier.success, [2 / 3, 1.0])
    np.testing.assert_allclose(frontier.time_s, [2.0, 7 / 3])


def test_tasks_without_any_end_have_no_frontier() -> None:
    """Nor has an empty panel."""
    for times in (np.array([INF]), np.zeros(0)):
        with pytest.raises(ConfigError, match="raise the budget"):
            panel_frontier(times, times)


@pytest.mark.parametrize("settings", [TOY, HASHED | {"max_steps": 3}], ids=["toy", "three"])
def test_a_panels_frontier_is_that_of_all_combinations_of_episodes(settings: dict) -> None:
    """No combination of one episode a task beats a point of the frontier, and each point is a combination."""
    trees, prices = grow(settings, tasks=3, budget=5000), prices_of(settings)
    frontier = panel_times(trees, prices).shown()
    ends = []
    for tree in trees:
        episodes = play_all(settings, tree.task_id)
        ends.append({(e.success, round(e.latency_s, 12)) for e in episodes})
    combined = {
        (sum(s for s, _ in chosen) / 3, round(sum(t for _, t in chosen) / 3, 9)) for chosen in itertools.product(*ends)
    }
    efficient = {(s, t) for s, t in combined if not any(o >= s and u <= t and (o, u) != (s, t) for o, u in combined)}
    found = {(float(s), round(float(t), 9)) for s, t in zip(frontier.success, frontier.time_s, strict=True)}
    assert {(round(s, 9), t) for s, t in found} == {(round(s, 9), t) for s, t in efficient}


def test_the_oracle_lies_on_the_frontier_at_every_lambda() -> None:
    """The mean of the oracle's returns is the best point's, from free time to time that is worth failing for."""
    settings = HASHED | {"invalid_action_penalty": 0.0}
    trees = grow(settings, tasks=6, budget=5000)
    for lambda_ in (0.0, 0.1, 1.0, 5.0, 30.0, 200.0):
        prices = prices_of(settings, lambda_=lambda_)
        frontier = panel_times(trees, prices).shown()
        oracle = np.mean([best_values(tree, prices).start.low for tree in trees])
        assert frontier.best_return(lambda_) == pytest.approx(oracle, abs=1e-9)


def test_cut_trees_bound_the_frontier() -> None:
    """At every λ, what they show is at most the truth, and their bound at least; the truth closes the gap."""
    settings = HASHED | {"invalid_action_penalty": 0.0}
    whole, cut = (grow(settings, tasks=6, budget=budget) for budget in (5000, 12))
    gaps = []
    for lambda_ in (0.1, 1.0, 5.0):
        prices = prices_of(settings, lambda_=lambda_)
        truth = panel_times(whole, prices).shown().best_return(lambda_)
        times = panel_times(cut, prices)
        assert times.shown().best_return(lambda_) <= truth + 1e-9
        assert times.bound().best_return(lambda_) >= truth - 1e-9
        gaps.append(times.bound().best_return(lambda_) - times.shown().best_return(lambda_))
    assert max(gaps) > 0.01


def test_fallen_signs_are_the_critical_steps_of_a_corridor() -> None:
    """Along the best path, exactly at fallen signs: there low precision walks back to the entrance."""
    prices = prices_of(TOY, lambda_=0.2)
    for tree in grow(TOY, tasks=6, budget=500):
        values = best_values(tree, prices)
        actions = best_actions(tree, values)
        decisions = decide(tree, prices, values, actions)
        fallen = [sign.fallen for sign in make_signs(tree.task_id, 3)]
        assert (decisions.critical[:, 0] == YES).tolist() == fallen
        assert (~decisions.same).tolist() == fallen
        assert not (decisions.critical == UNKNOWN).any()
        assert decisions.low[0].max() == pytest.approx(values.start.low)


def test_a_step_is_fatal_where_no_routing_can_make_up_for_it() -> None:
    """With a step cap of three signs, a wrong turn cannot be mended; with six, the first one can."""
    for max_steps, fatal in ((3, YES), (6, NO)):
        settings = TOY | {"max_steps": max_steps}
        [tree] = [t for t in grow(settings, tasks=32, budget=500) if make_signs(t.task_id, 3)[0].fallen][:1]
        prices = prices_of(settings)
        decisions = decide(tree, prices, best_values(tree, prices), tree.fixed_path(1))
        assert decisions.critical[0, 0] == YES
        assert decisions.fatal[0, 0] == fatal


def test_what_follows_decides_what_is_critical() -> None:
    """A step that the same precision would not mend is critical if it goes on alone, and less so under the best."""
    prices = prices_of(HASHED)
    worse = 0
    for tree in grow(HASHED, tasks=8, budget=5000):
        actions = tree.fixed_path(2)
        best = decide(tree, prices, best_values(tree, prices), actions)
        alone = decide(tree, prices, fixed_values(tree, prices, 2), actions)
        assert (alone.high <= best.high + 1e-9).all()
        worse += int((best.critical != alone.critical).sum())
    assert worse > 0


def test_cut_trees_leave_decisions_open_and_never_wrong() -> None:
    """What a cut tree calls critical or not is so in the whole one."""
    prices = prices_of(HASHED)
    unknown = 0
    for whole, cut in zip(grow(HASHED, tasks=8, budget=5000), grow(HASHED, tasks=8, budget=16), strict=True):
        actions = whole.fixed_path(2)
        truth = decide(whole, prices, best_values(whole, prices), actions)
        found = decide(cut, prices, best_values(cut, prices), actions)
        for name in ("critical", "fatal"):
            known = getattr(found, name) != UNKNOWN
            assert (getattr(truth, name)[known] == getattr(found, name)[known]).all()
            assert not (getattr(truth, name) == UNKNOWN).any()
            unknown += int((~known).sum())
    assert unknown > 0


def test_steps_that_all_precisions_share_are_judged_where_the_tree_is_cut() -> None:
    """Their futures are one, so neither is what follows a reason to need the highest, nor is a success lost."""
    prices, below = prices_of(TOY), 0
    settings = TOY | {"task_kwargs": {**TOY["task_kwargs"], "num_signs": 6}, "max_steps": 14}
    for cut in grow(settings, tasks=4, budget=30):
        values = best_values(cut, prices)
        found = decide(cut, prices, values, cut.fixed_path(1))
        same = found.same
        below += int((found.high - found.low)[same].max(initial=0.0) > TIE)
        assert (found.critical[same] == NO).all()
        assert (found.fatal[same] == NO).all()
    assert below > 0  # bounds alone would have left some open


def test_precision_and_recall_of_labels_worked_out_by_hand() -> None:
    """Five steps, two of them critical."""
    scores = np.array([0.9, 0.8, 0.8, 0.2, 0.1])
    critical = np.array([True, False, True, False, False])
    high, low, none = label_quality(scores, critical, [0.85, 0.15, 1.0])
    assert (high.labelled, high.precision, high.recall) == (0.2, 1.0, 0.5)
    assert (low.labelled, low.precision, low.recall) == (0.8, 0.5, 1.0)
    assert (none.labelled, none.recall) == (0.0, 0.0)
    assert math.isnan(none.precision)
    # At .9 half of the recall with precision 1; at .8 the other half with precision 2/3.
    assert average_precision(scores, critical) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision(np.zeros(5), critical) == pytest.approx(0.4)
    assert math.isnan(average_precision(scores, np.zeros(5, dtype=bool)))
    with pytest.raises(ConfigError, match=r"two \(M,\) arrays"):
        label_quality(scores, critical[:2], [0.5])
