"""Recorded episodes as a Minari data set, for offline reinforcement learning with other people's code.

A data set holds what `gymnasium` would have shown step by step: observations (T + 1, L, D), actions, rewards,
terminations, truncations (never), and infos of T + 1 entries whose first is that of the reset. Each episode's metadata
has the options of its reset, and the data set has the environment's spec: ``dataset.recover_environment()`` makes it.

Shapes: T steps of an episode, L history length, D embedding width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from dmr_gym.config import EnvConfig
from dmr_gym.errors import ConfigError, MissingDependency
from dmr_gym.history import History
from dmr_gym.rollout import Trajectory
from dmr_gym.types import FloatArray

ENTRY_POINT = "dmr_gym.env:PrecisionRoutingEnv"


def export_minari(
    trajectories: Sequence[Trajectory],
    dataset_id: str,
    env_id: str,
    config: EnvConfig,
    *,
    algorithm_name: str,
    description: str,
) -> Any:
    """Write a data set into the folder that Minari uses, ``MINARI_DATASETS_PATH`` or ``~/.minari/datasets``.

    Args:
        trajectories: at least one. Those with turns bring their texts: action, observation and completion.
        dataset_id: Minari's, for example "dmr/toy/always-high-v0".
        env_id: registered id, or the name of a world that has none.
        config: keywords of the environment that was played, its panel included.
        algorithm_name: what chose the precisions.
        description: of the data set.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        MissingDependency: Minari or h5py is not installed.
        ConfigError: nothing to write, or a data set of that id is there.
    """
    try:
        import h5py  # noqa: F401  Minari asks for it only when it writes
        import minari
        from minari.data_collector import EpisodeBuffer
    except ImportError as error:
        raise MissingDependency("minari", "minari", "writing Minari data sets") from error
    if not trajectories:
        raise ConfigError("there are no episodes to write: play at least one")
    if dataset_id in minari.list_local_datasets():
        raise ConfigError(f"a data set {dataset_id!r} is there already: choose another id, or minari.delete_dataset it")
    spec = environment_spec(env_id, config)
    env = gymnasium.make(spec)
    buffers = [EpisodeBuffer(**_episode(number, t, config.history_length)) for number, t in enumerate(trajectories)]
    dataset = minari.create_dataset_from_buffers(
        dataset_id=dataset_id,
        buffer=buffers,
        env=env,
        eval_env=spec,
        algorithm_name=algorithm_name,
        description=description,
        author="dmr-gym",
        author_email="none",
        code_permalink="none",
        requirements=["dmr-gym"],
        data_format="hdf5",
    )
    env.close()
    return dataset


def environment_spec(env_id: str, config: EnvConfig) -> EnvSpec:
    """The spec that makes this environment again, in a process that has imported nothing of dmr_gym too."""
    kwargs = replace(config, cache_dir=None).kwargs()
    if env_id in gymnasium.registry:
        spec = copy.deepcopy(gymnasium.spec(env_id))
        spec.kwargs = kwargs
        return spec
    return EnvSpec(id=env_id, entry_point=ENTRY_POINT, kwargs=kwargs)


def _episode(number: int, trajectory: Trajectory, length: int) -> dict[str, Any]:
    """The fields of Minari's ``EpisodeBuffer``."""
    steps = len(trajectory.actions)
    ends = [step == steps - 1 for step in range(steps)]
    return {
        "id": number,
        "options": {"task_id": trajectory.key.task_id, "sample_index": trajectory.key.repeat},
        "observations": windows(trajectory.rows, length),
        "actions": trajectory.actions,
        "rewards": trajectory.rewards.tolist(),
        "terminations": ends,
        "truncations": [False] * steps,
        "infos": _infos(trajectory, ends),
    }


def _infos(trajectory: Trajectory, ends: Sequence[bool]) -> dict[str, Any]:
    """Columns of T + 1 entries, the first as the reset gives it."""
    t = trajectory
    seconds = t.latency_llm_s + t.latency_router_s
    infos = {
        "success": [False, *(end and t.success for end in ends)],
        "precision": [-1, *t.actions.tolist()],
        "latency_s": [0.0, *seconds.tolist()],
        "latency_llm_s": [0.0, *t.latency_llm_s.tolist()],
        "latency_router_s": [0.0, *t.latency_router_s.tolist()],
        "prompt_tokens": [0, *t.prompt_tokens.tolist()],
        "completion_tokens": [0, *t.completion_tokens.tolist()],
        "step_type": ["reset", *t.step_types],
        "p_high": [np.nan, *t.p_high.tolist()],
        "logprob": [0.0, *t.logprobs.tolist()],
    }
    if t.turns:
        infos["action"] = ["", *(turn.step.action for turn in t.turns)]
        infos["observation"] = ["", *(turn.step.observation for turn in t.turns)]
        infos["completion"] = ["", *(turn.completion.text for turn in t.turns)]
    return infos


def windows(rows: FloatArray, length: int) -> FloatArray:
    """What the environment showed at each step of an episode.

    Args:
        rows: (T + 1, D) float32 step embeddings.
        length: L.

    Returns:
        (T + 1, L, D) float32, as `dmr_gym.history.History` lays them out.
    """
    history = History(length, rows.shape[1])
    observations = np.empty((len(rows), length, rows.shape[1]), dtype=np.float32)
    for row, observation in zip(rows, observations, strict=True):
        history.append(row)
        history.observation(observation)
    return observations
