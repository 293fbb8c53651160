"""Trees of real worlds with the embedded agents: what they say an episode earns, it earns in the environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tree_worlds import parts_of, play, random_actions

from dmr_gym import ENV_IDS
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.tree.build import grow_trees
from dmr_gym.tree.values import Prices, best_actions, best_values, episode_return, step_rewards

WORLDS: dict[str, tuple[dict[str, Any], int, int]] = {
    "webshop": (ENV_IDS["DMR-WebShop-v0"] | {"precisions": ["w3-gptq", "bf16"]}, 3, 12),
    "alfworld": (ENV_IDS["DMR-ALFWorld-v0"], 2, 30),
}
"""Keywords of an environment, how many tasks to take, and the budget of a tree."""

PATHS = 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", list(WORLDS))
def test_the_oracle_and_random_paths_earn_in_the_environment_what_the_tree_says(name: str) -> None:
    """To 1e-9, the return and every step; also where invalid actions cost something, and where a tree is cut off."""
    settings, tasks, budget = WORLDS[name]
    world = {**settings["task_kwargs"], "panel": "test"}
    settings = settings | {"task_kwargs": world, "encoder": {"kind": "hash"}, "invalid_action_penalty": 0.03}
    parts = parts_of(settings)
    prices = Prices(parts.rules.latency, parts.rules.lambda_, parts.rules.invalid_action_penalty)
    trees = grow_trees(parts, parts.task_ids[:tasks], budget)
    env = PrecisionRoutingEnv(**settings | {"backend": parts.backend})
    rng = np.random.default_rng(0)
    solved, mixed, exact = 0, 0, 0
    for tree in trees:
        values = best_values(tree, prices)
        oracle = best_actions(tree, values)
        exact += values.is_exact
        for actions in [oracle, *(random_actions(tree, rng) for _ in range(PATHS))]:
            played = play(env, tree.task_id, actions)
            assert list(played.actions) == actions
            states = tree.path(actions)
            assert played.rewards == pytest.approx(
                step_rewards(tree, prices)[states[: len(actions)], actions], abs=1e-9
            )
            solved += played.success
            mixed += len(set(actions)) > 1
            if len(states) == len(actions):  # to the end of the episode
                assert played.total == pytest.approx(episode_return(tree, prices, actions).low, abs=1e-9)
                assert played.total <= values.start.high + 1e-9
            if actions is oracle and values.is_exact:
                assert played.total == pytest.approx(values.start.low, abs=1e-9)
    parts.close()
    assert solved > tasks
    assert mixed > tasks
    assert exact > 0
