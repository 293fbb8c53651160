"""Registered ids: Gymnasium's and Stable-Baselines3's checks, specs, workers, wrappers, and the package's face."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

import dmr_gym
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import ConfigError

ALL_IDS = [pytest.param(name, marks=() if "Toy" in name else pytest.mark.slow) for name in dmr_gym.ENV_IDS]


def make(env_id: str, **settings: Any) -> gym.Env[Any, Any]:
    """Make an id, or skip where this checkout carries no weights for it."""
    try:
        return gym.make(env_id, **settings)
    except ConfigError as error:
        if "no embedded weights" in str(error):
            pytest.skip(str(error))
        raise


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_gymnasium_checker_is_content(env_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    """check_env finds nothing, not even something to warn about, with all render modes tried."""
    check_env(make(env_id).unwrapped)


def test_gymnasium_checker_is_content_with_a_cold_cache(tmp_path: Path) -> None:
    """What is computed and what is found in a cache cannot be told apart from outside."""
    check_env(make("DMR-Toy-v0", cache_dir=str(tmp_path)).unwrapped, skip_render_check=True)


@pytest.mark.slow
def test_gymnasium_checker_is_content_with_the_real_world_and_encoder() -> None:
    """ALFWorld's houses and MiniLM pass too, whatever the LLM says."""
    backend = {"kind": "scripted", "policy": "hash", "choices": ["look", "inventory"]}
    check_env(make("DMR-ALFWorld-v0", backend=backend).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_sb3_checker_is_content(env_id: str) -> None:
    """Stable-Baselines3's check has one remark alone: that a history is a matrix."""
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        checker.check_env(make(env_id))
    assert all("unconventional shape" in str(warning.message) for warning in caught)
    checker.check_env(gym.wrappers.FlattenObservation(make(env_id)))


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_same_seed_same_episode(env_id: str) -> None:
    """Two environments with one seed agree on every observation, reward and info of an episode."""
    envs = make(env_id), make(env_id)
    results = [env.reset(seed=42) for env in envs]
    actions = np.random.default_rng(0)
    for _ in range(12):
        assert np.array_equal(results[0][0], results[1][0])
        assert results[0][1:] == results[1][1:]
        if len(results[0]) == 5 and results[0][2]:
            break
        action = actions.integers(2)
        results = [env.step(action) for env in envs]


@pytest.mark.parametrize("env_id", dmr_gym.ENV_IDS)
def test_specs_are_plain_data(env_id: str) -> None:
    """A spec goes to JSON and back unchanged, and states versions and entry points as text."""
    spec = gym.spec(env_id)
    assert EnvSpec.from_json(spec.to_json()) == spec
    assert json.loads(json.dumps(spec.kwargs)) == spec.kwargs
    assert (spec.version, spec.nondeterministic, spec.max_episode_steps) == (0, False, None)
    assert (spec.entry_point, spec.vector_entry_point) == (
        "dmr_gym.env:PrecisionRoutingEnv",
        "dmr_gym.vector:PrecisionRoutingVectorEnv",
    )


def test_made_environments_can_be_remade() -> None:
    """From its spec, a pickle or a deep copy, an environment comes back with the same settings and numbers."""
    env = gym.make("DMR-Toy-v0", max_steps=7, lambda_=0.5, task_kwargs={"panel": "test"})
    expected = env.reset(seed=1)[0], env.step(0)
    remade = gym.make(EnvSpec.from_json(env.spec.to_json()))
    for other in (remade, pickle.loads(pickle.dumps(env)), copy.deepcopy(env)):
        assert other.spec == env.spec
        assert np.array_equal(other.reset(seed=1)[0], expected[0])
        assert other.step(0)[1:] == expected[1][1:]


def test_made_in_another_process() -> None:
    """A fresh interpreter that knows nothing but the prefixed id sees the same bytes."""
    code = (
        "import gymnasium; env = gymnasium.make('dmr_gym:DMR-Toy-v0');"
        "obs, info = env.reset(seed=3); print(obs.sum(dtype='float64').hex(), info['task_id'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    observation, info = gym.make("DMR-Toy-v0").reset(seed=3)
    assert done.stdout.split() == [float(observation.sum(dtype="float64")).hex(), info["task_id"]]


def test_registration_is_idempotent() -> None:
    """Importing the package again neither warns nor replaces what a user has registered."""
    before = dict(gym.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(dmr_gym)
    assert gym.registry == before


def test_settings_of_an_id_are_not_shared() -> None:
    """Changing the spec of a made environment leaves the registry alone."""
    env = gym.make("DMR-Toy-v0")
    env.unwrapped.spec.kwargs["backend"]["answers"]["low"].clear()
    assert gym.spec("DMR-Toy-v0").kwargs["backend"]["answers"]["low"]


def test_gymnasium_wrappers_work() -> None:
    """Statistics, flattening, reward scaling and time limits wrap it as any environment."""
    env = gym.make("DMR-Toy-v0")
    env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.FlattenObservation(env))
    env = gym.wrappers.TransformReward(env, lambda reward: 10 * reward)
    observation, _ = env.reset(seed=0)
    assert observation.shape == (64 * 64,)
    info: dict[str, Any] = {}
    for _ in range(8):
        *_, info = env.step(1)
    assert info["episode"]["l"] == 8
    limited = gym.make("DMR-Toy-v0", max_episode_steps=2)
    limited.reset(seed=0)
    limited.step(1)
    assert limited.step(1)[3] is True


def test_sb3_monitor_records_info(tmp_path: Path) -> None:
    """Stable-Baselines3's Monitor writes our keys, and a policy can be trained on it."""
    sb3 = pytest.importorskip("stable_baselines3")
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    keys = ("success", "episode_latency_s", "high_precision_share")
    env = monitor.Monitor(gym.make("DMR-Toy-v0"), str(tmp_path / "log"), info_keywords=keys)
    model = sb3.PPO("MlpPolicy", env, n_steps=64, batch_size=32, n_epochs=1, device="cpu", seed=0)
    model.learn(64)
    header = (tmp_path / "log.monitor.csv").read_text().splitlines()[1]
    assert header == "r,l,t,success,episode_latency_s,high_precision_share"
    action, _ = model.predict(env.reset(seed=0)[0], deterministic=True)
    env.step(action)
    env.close()


def test_unknown_attribute_is_named() -> None:
    """A name that the package lacks raises AttributeError with the name; dir lists the lazy ones."""
    with pytest.raises(AttributeError, match="module 'dmr_gym' has no attribute 'PrecisionEnv'"):
        _ = dmr_gym.PrecisionEnv
    assert set(dmr_gym.__all__) <= set(dir(dmr_gym))
    assert dmr_gym.PrecisionRoutingEnv is PrecisionRoutingEnv


def test_all_is_the_public_face() -> None:
    """`__all__` is exactly what the package promises."""
    assert dmr_gym.__all__ == [
        "ENV_IDS",
        "BackendError",
        "CacheError",
        "ConfigError",
        "DMRGymError",
        "EnvConfig",
        "MissingDependency",
        "PrecisionRoutingEnv",
        "PrecisionRoutingVectorEnv",
        "TaskError",
        "TokenLinearLatency",
        "load_config",
        "to_toml",
        "valid_mask",
    ]
