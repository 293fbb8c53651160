"""Dynamic programming on a routing tree: the best return from every state, what each decision is worth, and regret.

Where a tree was cut off, values are bounds. An open state is worth at most a success at its next step in the least
time a step can take, and at least a failure at the step cap in the most time that the cheapest precision can take.
Both hold for latency models whose seconds grow with the tokens, and where prompts are free, as under Eq. 9, more states
never loosen a bound. Where prompts cost time, the lower bound takes those to come to be no longer than the tree's
longest.

Shapes: N states, P precisions, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.latency import CachedPrefixCost, WallClockLatency
from dmr_gym.metrics import Interval
from dmr_gym.tree.graph import RoutingTree
from dmr_gym.types import IntArray, LatencyModel, LLMCall

Floats = NDArray[np.float64]

TIE = 1e-9
"""Values that differ by no more count as equal: their sums were rounded in different orders."""


def prices_by_tokens(latency: LatencyModel) -> bool:
    """Whether the price of a call is a function of its tokens, so that a state has one, whichever way led there."""
    return not isinstance(latency, CachedPrefixCost | WallClockLatency)


@dataclass(frozen=True, slots=True)
class Prices:
    """What an episode on a tree is worth; fields as in `dmr_gym.episode.Rules`.

    Attributes:
        latency: prices calls in seconds.
        lambda_: reward per second of latency that is taken off.
        invalid_action_penalty: reward that an invalid action costs.
        router_called: whether steps are charged the router's time, as the environment does; False for policies that
            ask no router.

    Raises:
        ConfigError: the price of a call depends on more than its tokens, such as on what a server has cached.
    """

    latency: LatencyModel
    lambda_: float
    invalid_action_penalty: float = 0.0
    router_called: bool = True

    def __post_init__(self) -> None:
        """Check that a state has one price for an answer, whichever way led there."""
        if not prices_by_tokens(self.latency):
            raise ConfigError(
                "routing trees price a step by its tokens alone, so that all ways to a state share it: take a latency "
                f"of kind 'token-linear', got {type(self.latency).__name__}"
            )

    def without_router(self) -> Prices:
        """The same where no router is asked."""
        return replace(self, router_called=False)

    def seconds(self, precision: str, prompt_tokens: int, completion_tokens: int) -> tuple[float, float]:
        """Latency of a step: of the LLM, and of the router where it is asked."""
        call = LLMCall(precision, prompt_tokens, completion_tokens, self.router_called)
        return self.latency.llm_seconds(call), self.latency.router_seconds(call)


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """Bounds of the best return to come; they meet where the tree has all that matters.

    Attributes:
        reward: (N, P) float64 of each step, as the environment gives it; 0 at open states.
        low: (N,) float64 lower bound from each state.
        high: (N,) float64 upper bound from each state.
        q_low: (N, P) float64 lower bound of each decision: its reward and the best that follows; NaN at open states.
        q_high: (N, P) float64 its upper bound.
    """

    reward: Floats
    low: Floats
    high: Floats
    q_low: Floats
    q_high: Floats

    @property
    def start(self) -> Interval:
        """Bounds of the return of the whole episode."""
        return Interval(float(self.low[0]), float(self.high[0]))

    @property
    def is_exact(self) -> bool:
        """Whether the bounds of the whole episode meet."""
        return bool(self.high[0] - self.low[0] <= TIE)


def step_seconds(tree: RoutingTree, prices: Prices) -> tuple[Floats, Floats]:
    """LLM and router seconds of each step, (N, P) float64 each; 0 at open states."""
    llm_s, router_s = np.zeros(tree.child.shape), np.zeros(tree.child.shape)
    for p, name in enumerate(tree.precisions):
        calls = np.stack([tree.prompt_tokens[:, p], tree.completion_tokens[:, p]], axis=1)
        different, which = np.unique(calls, axis=0, return_inverse=True)
        parts = np.array([prices.seconds(name, *call) for call in different.tolist()])
        llm_s[:, p], router_s[:, p] = parts[which.reshape(-1)].T
    llm_s[tree.is_open] = router_s[tree.is_open] = 0.0
    return llm_s, router_s


def step_rewards(tree: RoutingTree, prices: Prices) -> Floats:
    """Reward of each step, (N, P) float64, as the environment gives it; 0 at open states."""
    llm_s, router_s = step_seconds(tree, prices)
    rewards: Floats = tree.success - prices.lambda_ * (llm_s + router_s)
    rewards -= prices.invalid_action_penalty * tree.invalid
    rewards[tree.is_open] = 0.0
    return rewards


def best_values(tree: RoutingTree, prices: Prices) -> Values:
    """The oracle: the value of each state and decision under the best routing of all that follows."""
    return _values(tree, prices, range(len(tree.precisions)))


def fixed_values(tree: RoutingTree, prices: Prices, precision: int) -> Values:
    """The value of each state and decision where one precision takes all steps that follow."""
    return _values(tree, prices, [precision])


def best_actions(tree: RoutingTree, values: Values, state: int = 0) -> list[int]:
    """The oracle's choices from a state on, those of the larger lower bound and the lower precision among equals.

    They end where the episode does, or at an open state.
    """
    q = values.q_low
    return tree.follow(np.argmax(q >= q.max(axis=1, keepdims=True) - TIE, axis=1), state)


def episode_return(tree: RoutingTree, prices: Prices, actions: Sequence[int] | IntArray) -> Interval:
    """Return of an episode by its actions, without any backend: Σ success − λ·latency − penalties.

    Args:
        tree: of the task.
        prices: see `Prices`.
        actions: T precision indices, up to the end of the episode or to an open state.

    Returns:
        Twice the same, or bounds of whatever may follow the open state.

    Raises:
        ConfigError: a step from an open state or after the end, or actions that stop before either.
    """
    states = tree.path(actions)
    earned = float(step_rewards(tree, prices)[states[: len(actions)], np.asarray(actions, dtype=np.int64)].sum())
    if len(states) == len(actions):
        return Interval(earned, earned)
    if not tree.is_open[states[-1]]:
        raise ConfigError(f"{tree.task_id}: after {len(actions)} steps the episode is not over yet")
    low, high = open_bounds(tree, prices, range(len(tree.precisions)), worst=max)
    return Interval(earned + float(low[states[-1]]), earned + float(high[states[-1]]))


def regret(oracle: Interval, earned: Interval) -> Interval:
    """How much an episode lacks to the best routing: bounds of V − R.

    It is at least 0 under equal prices. A policy that asks no router, and is not charged for one, can beat an oracle
    that pays for its router.

    Args:
        oracle: bounds of the best return, `Values.start`.
        earned: from `episode_return`.
    """
    return Interval(oracle.low - earned.high, oracle.high - earned.low)


def least_seconds(tree: RoutingTree, prices: Prices, success: bool) -> tuple[Floats, Floats]:
    """Least time from each state to an end of one kind.

    Args:
        tree: of the task.
        prices: see `Prices`; λ does not matter.
        success: whether the task is to be solved, or not.

    Returns:
        (N,) float64 seconds that the tree shows, and a lower bound of what it may still hide: infinite where no such
        end is known, or can be.
    """
    seconds = np.add(*step_seconds(tree, prices))
    ends = np.where(tree.success == success, 0.0, math.inf)
    least = min(sum(prices.seconds(name, 0, 1)) for name in tree.precisions)
    bounds = []
    for open_value in (math.inf, least):
        values = np.where(tree.is_open, open_value, 0.0)
        for states in tree.levels():
            states = states[~tree.is_open[states]]
            after = np.where(tree.over[states], ends[states], values[tree.child[states]])
            values[states] = (seconds[states] + after).min(axis=1)
        bounds.append(values)
    return bounds[0], bounds[1]


def _values(tree: RoutingTree, prices: Prices, allowed: Sequence[int]) -> Values:
    """Values where the steps to come are taken by the best of some precisions."""
    reward = step_rewards(tree, prices)
    bounds, decisions = [], []
    for values in open_bounds(tree, prices, allowed, worst=min):
        q = np.full(tree.child.shape, np.nan)
        for states in tree.levels():
            states = states[~tree.is_open[states]]
            q[states] = reward[states] + np.where(tree.over[states], 0.0, values[tree.child[states]])
            values[states] = q[states][:, allowed].max(axis=1)
        bounds.append(values)
        decisions.append(q)
    return Values(reward, *bounds, *decisions)


def open_bounds(
    tree: RoutingTree, prices: Prices, allowed: Sequence[int], worst: Callable[[Iterable[float]], float]
) -> tuple[Floats, Floats]:
    """Bounds of what follows each open state, (N,) float64; 0 elsewhere.

    Args:
        tree: of the task.
        prices: see `Prices`.
        allowed: precisions that may take the steps to come.
        worst: ``min`` where the precisions are chosen for the best, as the cheapest of them can always be taken;
            ``max`` where anything may be chosen.
    """
    names = [tree.precisions[p] for p in allowed]
    prompt = int(tree.prompt_tokens.max(initial=0))
    most = worst(sum(prices.seconds(name, prompt, tree.max_tokens)) for name in names)
    least = min(sum(prices.seconds(name, 0, 1)) for name in names)
    steps = tree.max_steps - tree.depth
    low = np.where(tree.is_open, -steps * (prices.lambda_ * most + prices.invalid_action_penalty), 0.0)
    high = np.where(tree.is_open, 1.0 - prices.lambda_ * least, 0.0)
    return low, high
