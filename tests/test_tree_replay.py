"""dmr_gym.tree.replay: the environment on trees is the real one, without world and LLM."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from tree_worlds import HASHED, TOY, config_of, grow, prices_of

from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.policies import FixedPrecision, Policy, RandomPolicy
from dmr_gym.rollout import rollout
from dmr_gym.tree.graph import RoutingTree
from dmr_gym.tree.replay import TreeVectorEnv
from dmr_gym.tree.values import best_actions, best_values, episode_return
from dmr_gym.vector import PrecisionRoutingVectorEnv

WORLDS = pytest.mark.parametrize("settings", [TOY, HASHED], ids=["toy", "three"])
MANY = {"task_kwargs": {"num_signs": 3, "num_tasks": 4}}


def both(
    settings: dict[str, Any], num_envs: int = 3, mode: str = "Disabled", **options: Any
) -> tuple[TreeVectorEnv, PrecisionRoutingVectorEnv]:
    """The environment on complete trees of a panel of four tasks, and the real one."""
    settings = settings | MANY
    trees = grow(settings, tasks=4, budget=5000)
    ours = TreeVectorEnv(trees, config_of(settings), num_envs, autoreset_mode=mode, **options)
    return ours, PrecisionRoutingVectorEnv(num_envs, autoreset_mode=mode, **settings)


def assert_same_infos(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Every key of the real environment, with equal types, masks and, where the mask is set, values."""
    assert ours.keys() - theirs.keys() == {"left_tree", "_left_tree"}
    assert theirs.keys() <= ours.keys()
    for key, values in theirs.items():
        assert ours[key].dtype == values.dtype, key
        mask = np.ones(len(values), dtype=bool) if key.startswith("_") else theirs[f"_{key}"]
        assert ours[key][mask].tolist() == values[mask].tolist(), key


def assert_same_step(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    """Equal bytes of observations, rewards and ends, and equal infos."""
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()
    assert_same_infos(ours[-1], theirs[-1])


@WORLDS
def test_equals_the_real_environment_through_autoresets(settings: dict[str, Any]) -> None:
    """Forty steps over many ends, tasks drawn from the same seeds, histories longer than their window."""
    ours, theirs = both(settings, mode="NextStep")
    assert_same_step(ours.reset(seed=7), theirs.reset(seed=7))
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(40):
        actions = rng.integers(len(ours.precisions), size=3)
        step = ours.step(actions)
        assert_same_step(step, theirs.step(actions))
        ends += step[2].sum()
    assert ends > 8


@WORLDS
def test_equals_the_real_environment_without_autoreset(settings: dict[str, Any]) -> None:
    """With reset_mask and named tasks."""
    ours, theirs = both(settings)
    assert_same_step(ours.reset(seed=1), theirs.reset(seed=1))
    rng = np.random.default_rng(1)
    resets = 0
    for _ in range(30):
        actions = rng.integers(len(ours.precisions), size=3)
        step = ours.step(actions)
        assert_same_step(step, theirs.step(actions))
        if step[2].any():
            resets += 1
            options = {"reset_mask": step[2], "task_id": [ours.task_ids[resets % 4], None, ours.task_ids[0]]}
            assert_same_step(ours.reset(options=dict(options)), theirs.reset(options=dict(options)))
    assert resets > 5


@WORLDS
@pytest.mark.parametrize("number", [0, 1])
def test_rollouts_are_the_same(settings: dict[str, Any], number: int) -> None:
    """The trajectories of fixed and random policies agree with those of the real environment in every field."""
    ours, theirs = both(settings)
    n = len(ours.precisions)
    policy: Policy = [FixedPrecision(0), RandomPolicy([1 / n] * n, n, seed=4)][number]
    for one, other in zip(
        rollout(ours, policy, ours.task_ids, repeats=3),
        rollout(theirs, policy, theirs.task_ids, repeats=3),
        strict=True,
    ):
        for name in other.__dataclass_fields__:
            found, expected = getattr(one, name), getattr(other, name)
            if isinstance(expected, np.ndarray):
                assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes()), name
            else:
                assert found == expected, name


def test_snapshots_go_back() -> None:
    """After other steps, a restored episode looks as it did and goes on as it would have."""
    ours, theirs = both(HASHED)
    ours.reset(seed=3)
    theirs.reset(seed=3)
    for actions in ([0, 1, 2], [2, 2, 0]):
        ours.step(actions)
        theirs.step(actions)
    states, real = ours.snapshot(), theirs.snapshot()
    for one, other in zip(states, real, strict=True):
        assert (one.start.task_id, one.sample_index, one.accounts, one.over) == (
            other.start.task_id,
            other.sample_index,
            other.accounts,
            other.over,
        )
        assert [np.array_equal(*pair) for pair in zip(one.rows, other.rows, strict=True)] == [True] * len(one.rows)
        for turn, same in zip(one.turns, other.turns, strict=True):
            assert turn.request.precision == same.request.precision
            assert turn[2:] == same[2:]
    before = ours.restore(states)
    ours.reset(seed=9)
    ours.step([1, 1, 1])
    swapped = [states[2], states[0], states[1]]
    after = ours.restore(swapped)
    assert after[0][[1, 2, 0]].tobytes() == before[0].tobytes()
    assert after[1]["episode_latency_s"][[1, 2, 0]].tolist() == before[1]["episode_latency_s"].tolist()
    theirs.restore([real[2], real[0], real[1]])
    if not after[1]["cap_reached"].any() and not after[1]["success"].any():
        assert_same_step(ours.step([0, 1, 2]), theirs.step([0, 1, 2]))


def test_leaving_a_cut_tree_ends_the_episode_at_its_worst() -> None:
    """The rewards sum to the lower bound of the return, and the info tells."""
    settings = HASHED | MANY | {"max_steps": 8}
    trees = grow(settings, tasks=4, budget=25)
    envs = TreeVectorEnv(trees, config_of(settings), 4, autoreset_mode="Disabled")
    prices = prices_of(settings)
    left = 0
    for trajectory in rollout(envs, RandomPolicy([0.4, 0.3, 0.3], 3), envs.task_ids, repeats=10):
        [tree] = [tree for tree in trees if tree.task_id == trajectory.key.task_id]
        earned = episode_return(tree, prices, trajectory.actions)
        assert trajectory.rewards.sum() == pytest.approx(earned.low, abs=1e-9)
        left += earned.low < earned.high
    assert 10 < left < 40
    _, infos = envs.reset(seed=0)
    assert not infos["left_tree"].any()
    for _ in range(7):
        _, _, over, _, infos = envs.step(np.zeros(4, dtype=np.int64))
        assert not (infos["left_tree"] & ~over).any()
        if over.any():
            envs.reset(options={"reset_mask": over})


def test_the_oracle_can_be_played() -> None:
    """Its choices on the trees earn its values."""
    settings = TOY | MANY
    trees, prices = grow(settings, tasks=4, budget=5000), prices_of(settings)
    envs = TreeVectorEnv(trees, config_of(settings), 1, autoreset_mode="Disabled")
    for tree in trees:
        values = best_values(tree, prices)
        envs.reset(options={"task_id": tree.task_id})
        rewards = [float(envs.step([action])[1][0]) for action in best_actions(tree, values)]
        assert sum(rewards) == pytest.approx(values.start.low, abs=1e-9)


def test_observations_are_copies_unless_asked() -> None:
    """A kept observation stays as it was; without copies it changes with the next step."""
    for copy in (True, False):
        envs, _ = both(TOY, copy=copy)
        first, _ = envs.reset(seed=0)
        kept = first.copy()
        second = envs.step([0, 0, 0])[0]
        assert np.array_equal(first, kept) is copy
        assert (second is first) is not copy


def test_it_has_no_llm_but_tells_which_there_was() -> None:
    """Digests are the trees' own; asking for answers is an error that says so."""
    trees = grow(TOY, tasks=2, settings={"models": {"low": "aa", "high": "bb"}})
    envs = TreeVectorEnv(trees, config_of(TOY), 2)
    assert [envs.backend.digest(name) for name in envs.precisions] == ["aa", "bb"]
    with pytest.raises(BackendError, match="has no LLM"):
        envs.backend.generate([])
    with pytest.raises(BackendError, match="has no LLM"):
        envs.backend.token_distributions([])
    with pytest.raises(BackendError, match="do not tell which model 'other' was"):
        envs.backend.digest("other")
    envs.close()


def test_mistakes_are_refused() -> None:
    """Trees and settings that do not fit, and steps that nobody can take."""
    trees = grow(TOY, tasks=2)
    config = config_of(TOY)
    for bad, message in [
        ([], "needs at least one tree"),
        ([trees[0], trees[0]], "a task has two"),
        (grow(TOY | {"max_steps": 5}, tasks=1), r"has max_steps 5, the environment 6"),
        (grow(HASHED | {"max_steps": 6}, tasks=1), r"has precisions \('low', 'middle', 'high'\), the environment"),
        ([_opened(trees[0])], "nothing but its start"),
    ]:
        with pytest.raises(ConfigError, match=message):
            TreeVectorEnv(bad, config)
    with pytest.raises(ConfigError, match='"NextStep" and "Disabled"'):
        TreeVectorEnv(trees, config, autoreset_mode="SameStep")
    envs = TreeVectorEnv(trees, config, 2, autoreset_mode="Disabled")
    with pytest.raises(ResetNeeded, match="cannot step before reset"):
        envs.step([0, 0])
    with pytest.raises(ResetNeeded, match="no episode to take a snapshot of"):
        envs.snapshot()
    envs.reset(seed=0)
    for actions in ([0], [0, 2], [0, -1], [0.0, 1.0], ["low", "high"]):
        with pytest.raises(InvalidAction):
            envs.step(actions)
    while not envs.step([0, 0])[2].any():
        pass
    with pytest.raises(ResetNeeded, match="an episode is over"):
        envs.step([0, 0])


def _opened(tree: RoutingTree) -> RoutingTree:
    from dataclasses import replace

    return replace(tree, is_open=np.ones_like(tree.is_open))
