"""dmr_gym.tree.values: the oracle is the best of all episodes, bounds hold, and every way of counting agrees."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tree_worlds import HASHED, TOY, grow, play, play_all, prices_of, random_actions, walk_settings

from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import ConfigError
from dmr_gym.latency import make_latency_model
from dmr_gym.metrics import Interval
from dmr_gym.tree import growth
from dmr_gym.tree.decisions import NO, YES, Decisions
from dmr_gym.tree.graph import RoutingTree
from dmr_gym.tree.report import label_rows
from dmr_gym.tree.values import (
    Prices,
    best_actions,
    best_values,
    episode_return,
    fixed_values,
    least_seconds,
    regret,
)

WORLDS = pytest.mark.parametrize("settings", [TOY, HASHED, walk_settings()], ids=["toy", "three", "walk"])
LAMBDAS = (0.0, 0.2, 3.0, 40.0)


@WORLDS
def test_the_oracle_is_the_best_of_all_episodes(settings: dict[str, Any]) -> None:
    """Dynamic programming finds what playing every sequence of precisions in the real environment finds."""
    for lambda_ in LAMBDAS:
        priced = settings | {"lambda_": lambda_}
        prices = prices_of(priced)
        for tree in grow(priced, tasks=2, budget=5000):
            values = best_values(tree, prices)
            best = max(episode.total for episode in play_all(priced, tree.task_id))
            assert values.is_exact
            assert values.start.low == pytest.approx(best, abs=1e-9)
            assert values.start.high == pytest.approx(best, abs=1e-9)


@WORLDS
def test_the_oracles_choices_earn_its_value_in_the_environment(settings: dict[str, Any]) -> None:
    """The rewards of the real environment sum to the value, within rounding of the sum."""
    prices = prices_of(settings)
    for tree in grow(settings, tasks=3, budget=5000):
        values = best_values(tree, prices)
        played = play(PrecisionRoutingEnv(**settings), tree.task_id, best_actions(tree, values))
        assert abs(played.total - values.start.low) < 1e-9
        assert regret(values.start, episode_return(tree, prices, played.actions)).high < 1e-9


@WORLDS
def test_every_episode_is_worth_what_the_environment_pays(settings: dict[str, Any]) -> None:
    """Each reward is the environment's to the last bit; only the oracle's episode has no regret."""
    prices = prices_of(settings)
    [tree] = grow(settings, tasks=1, budget=5000)
    values = best_values(tree, prices)
    regrets = []
    for episode in play_all(settings, tree.task_id):
        states = tree.path(episode.actions)[: len(episode.actions)]
        assert tuple(values.reward[states, episode.actions].tolist()) == episode.rewards
        earned = episode_return(tree, prices, episode.actions)
        assert earned.low == earned.high == pytest.approx(episode.total, abs=1e-9)
        found = regret(values.start, earned)
        assert found.low == found.high
        regrets.append(found.low)
    assert min(regrets) == pytest.approx(0.0, abs=1e-9)
    assert max(regrets) > 0.01


@WORLDS
def test_decisions_are_worth_the_best_episode_that_takes_them(settings: dict[str, Any]) -> None:
    """Q of each first and second decision is the best return among the episodes that begin so."""
    prices = prices_of(settings)
    [tree] = grow(settings, tasks=1, budget=5000)
    values, episodes = best_values(tree, prices), play_all(settings, tree.task_id)
    for p in range(len(tree.precisions)):
        best = max(episode.total for episode in episodes if episode.actions[0] == p)
        assert values.q_low[0, p] == pytest.approx(best, abs=1e-9)
        for q in range(len(tree.precisions)):
            of_both = [e for e in episodes if e.actions[:2] == (p, q)]
            second = max(sum(e.rewards[1:]) for e in of_both)
            assert values.q_high[tree.path([p])[1], q] == pytest.approx(second, abs=1e-9)


def test_what_follows_can_be_one_precision_alone() -> None:
    """The value of a decision that high precision follows is the return of that very episode."""
    prices = prices_of(HASHED)
    [tree] = grow(HASHED, tasks=1, budget=5000)
    values = fixed_values(tree, prices, 2)
    env = PrecisionRoutingEnv(**HASHED)
    for p in range(3):
        assert values.q_low[0, p] == pytest.approx(play(env, tree.task_id, [p, 2, 2, 2, 2]).total, abs=1e-9)
    assert values.start.low == values.q_low[0, 2] <= best_values(tree, prices).start.low


@WORLDS
@pytest.mark.parametrize("lambda_", LAMBDAS)
def test_bounds_hold_and_close_with_the_budget(settings: dict[str, Any], lambda_: float) -> None:
    """The truth lies within, and a larger budget never loosens either bound; a complete tree is exact."""
    prices = prices_of(settings, lambda_=lambda_)
    [whole] = grow(settings, tasks=1, budget=5000)
    truth = best_values(whole, prices).start.low
    first = [best_values(whole, prices).q_low[0, p] for p in range(len(whole.precisions))]
    before = Interval(-math.inf, math.inf)
    widths = []
    for budget in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 400):
        [tree] = grow(settings, tasks=1, budget=budget, states_at_once=1)
        values = best_values(tree, prices)
        low, high = values.start.low, values.start.high
        assert low - 1e-9 <= truth <= high + 1e-9
        assert low >= before.low - 1e-9
        assert high <= before.high + 1e-9
        assert (values.q_low[0] <= np.array(first) + 1e-9).all()
        assert (values.q_high[0] >= np.array(first) - 1e-9).all()
        before = values.start
        widths.append(high - low)
    assert widths[0] > 0.1
    assert widths[-1] == pytest.approx(0.0, abs=1e-9)


@WORLDS
def test_regret_holds_under_any_budget(settings: dict[str, Any]) -> None:
    """An episode that leaves a cut tree has bounds of its return and of its regret around the truth."""
    prices = prices_of(settings)
    [whole] = grow(settings, tasks=1, budget=5000)
    [cut] = grow(settings, tasks=1, budget=4)
    best, bounded = best_values(whole, prices), best_values(cut, prices)
    rng = np.random.default_rng(0)
    left = 0
    for _ in range(30):
        actions = random_actions(whole, rng)
        true = episode_return(whole, prices, actions)
        inside = next((n for n in range(1, len(actions) + 1) if _leaves(cut, actions[:n])), len(actions))
        left += inside < len(actions)
        earned = episode_return(cut, prices, actions[:inside])
        assert earned.low - 1e-9 <= true.low <= earned.high + 1e-9
        wrong, right = regret(bounded.start, earned), regret(best.start, true)
        assert wrong.low - 1e-9 <= right.low <= wrong.high + 1e-9
    assert left > 5


def _leaves(tree: RoutingTree, actions: list[int]) -> bool:
    states = tree.path(actions)
    return len(states) > len(actions) and bool(tree.is_open[states[-1]])


def test_merging_keeps_every_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """With states told apart by their whole history, the tree is larger and worth the same."""
    settings = walk_settings()
    [merged] = grow(settings, tasks=1, budget=5000)
    counter = iter(range(10**6))
    monkeypatch.setattr(growth, "state_key", lambda state: next(counter))
    [apart] = grow(settings, tasks=1, budget=5000)
    assert len(apart) > 1.5 * len(merged)
    for lambda_ in LAMBDAS:
        prices = prices_of(settings, lambda_=lambda_)
        one, other = best_values(merged, prices), best_values(apart, prices)
        assert one.start.low == pytest.approx(other.start.low, abs=1e-9)
        np.testing.assert_allclose(one.q_low[0], other.q_low[0], atol=1e-9)


def test_values_of_a_tree_worked_out_by_hand() -> None:
    """Low costs .01 s a token, high .02 s, the router nothing; λ is 1.

    Both say "go left" or "go right" in 8 or 9 tokens, their end included. The first sign stands, the second has fallen,
    the third stands: low is right at the first and the third, and only high at the second.
    """
    task_id = next(t.task_id for t in grow(TOY, tasks=32, budget=1) if _pattern(t) == (False, True, False))
    latency = {"ms_per_token": {"low": 10.0, "high": 20.0}, "router_ms": 0.0}
    settings = TOY | {"latency": latency, "lambda_": 1.0}
    [tree] = [tree for tree in grow(settings, tasks=32, budget=500) if tree.task_id == task_id]
    values = best_values(tree, prices_of(settings))
    tokens = tree.completion_tokens[tree.path([0, 1, 0]), [0, 1, 0]]
    expected = 1.0 - 0.01 * tokens[0] - 0.02 * tokens[1] - 0.01 * tokens[2]
    assert best_actions(tree, values) == [0, 1, 0]
    assert values.start.low == pytest.approx(expected, abs=1e-12)
    # High at the first sign costs .01 s a token more, and nothing else.
    assert values.q_low[0, 1] == pytest.approx(expected - 0.01 * tokens[0], abs=1e-12)


def _pattern(tree: RoutingTree) -> tuple[bool, ...]:
    from dmr_gym.tasks.toy import make_signs

    return tuple(sign.fallen for sign in make_signs(tree.task_id, 3))


@WORLDS
def test_least_times_are_those_of_the_quickest_episodes(settings: dict[str, Any]) -> None:
    """The quickest success and the quickest failure of all episodes; infinite where there is none."""
    prices = prices_of(settings)
    for tree in grow(settings, tasks=2, budget=5000):
        episodes = play_all(settings, tree.task_id)
        for success in (True, False):
            known, bound = least_seconds(tree, prices, success)
            least = min((e.latency_s for e in episodes if e.success == success), default=math.inf)
            assert known[0] == bound[0] == pytest.approx(least, abs=1e-9)


def test_policies_that_ask_no_router_are_not_charged_for_one() -> None:
    """A fixed precision without the router's time earns λ · steps · ℓ_r more."""
    prices = prices_of(TOY)
    [tree] = grow(TOY, tasks=1, budget=500)
    actions = tree.fixed_path(1)
    asked, unasked = (episode_return(tree, p, actions).low for p in (prices, prices.without_router()))
    assert unasked - asked == pytest.approx(TOY["lambda_"] * len(actions) * 19.9e-3, abs=1e-12)


def test_episodes_that_stop_early_are_no_episodes() -> None:
    """Their return is not known, and nobody is told a wrong one."""
    [tree] = grow(TOY, tasks=1, budget=500)
    with pytest.raises(ConfigError, match="after 1 steps the episode is not over yet"):
        episode_return(tree, prices_of(TOY), [1])


def test_prices_that_depend_on_the_way_to_a_state_are_refused() -> None:
    """Ways that meet share a state: what servers have cached, or a clock measured, is not the same on all of them."""
    for settings in ({"kind": "wall-clock"}, {"profile": "alfworld-embedded-cpu", "kind": "prefill-decode"}):
        with pytest.raises(ConfigError, match="by its tokens alone"):
            Prices(make_latency_model(settings, ("w2", "bf16")), 0.1)


def eight_decisions(critical: int) -> Decisions:
    """An episode of eight steps, at each of which the lower precision is critical, or at none."""
    zeros, bounds = np.zeros(8, dtype=np.int64), np.zeros((8, 2))
    verdicts = np.full((8, 1), critical)
    return Decisions(zeros, zeros, bounds, bounds, np.zeros(8, dtype=np.bool_), verdicts, verdicts)


def test_intervals_of_labels_draw_whole_episodes() -> None:
    """One labelled in vain, one rightly: precision is 0, a half or 1. Steps drawn one by one come to neither end."""
    episodes = [eight_decisions(NO), eight_decisions(YES)]
    kls = np.repeat(np.array([[0.2], [0.4]], dtype=np.float32), 8, axis=0)
    [row], [curve] = label_rows(["low"], episodes, kls, [0.3], resamples=200)
    assert row["kl_st"]["precision"] == row["kl_st"]["recall"] == 1.0
    assert row["kl_st"]["precision_ci"] == row["kl_st"]["recall_ci"] == [1.0, 1.0]
    [at_tenth] = [each for each in row["at"] if each["threshold"] == 0.1]
    assert (at_tenth["labelled"], at_tenth["precision"], at_tenth["precision_ci"]) == (1.0, 0.5, [0.0, 1.0])
    assert curve.threshold == 0.3
