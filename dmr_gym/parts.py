"""From plain settings to the live parts of an environment. Whatever is alive is built here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from dmr_gym.backends import make_backend
from dmr_gym.cache import CachedBackend, CachedEncoder, CompletionCache
from dmr_gym.config import EnvConfig, check_settings, from_mapping
from dmr_gym.encoders import make_encoder
from dmr_gym.episode import Episode, Rules
from dmr_gym.errors import ConfigError
from dmr_gym.latency import make_latency_model
from dmr_gym.tasks import make_task
from dmr_gym.types import Backend, Encoder, FloatArray, LatencyModel, SamplingParams, Task


@dataclass(frozen=True)
class Parts:
    """What an environment is made of; ``episodes`` has one entry a sub-environment."""

    episodes: tuple[Episode, ...]
    backend: Backend
    encoder: Encoder
    store: CompletionCache
    rules: Rules
    task_ids: Sequence[str]

    def close(self) -> None:
        """Close what can be closed; more than once does no harm."""
        for part in (self.store, self.backend, self.encoder, *(episode.task for episode in self.episodes)):
            close = getattr(part, "close", None)
            if callable(close):
                close()


def build_parts(settings: Mapping[str, Any], copies: int = 1) -> Parts:
    """Build the parts.

    Args:
        settings: keywords of `PrecisionRoutingEnv`, all of them but render_mode.
        copies: episodes that run side by side.

    Raises:
        ConfigError: for a setting that is unknown or out of range.
    """
    precisions = tuple(settings["precisions"])
    check_settings(precisions, settings["lambda_"], settings["max_steps"], settings["history_length"])
    latency = settings["latency"]
    if isinstance(latency, str | Mapping) or not isinstance(latency, LatencyModel):
        latency = make_latency_model(latency, precisions)
    tasks = _tasks(settings["task"], settings["task_kwargs"] or {}, copies)
    backend, encoder, store = _models(settings, precisions)
    rules = Rules(
        precisions=precisions,
        latency=latency,
        lambda_=float(settings["lambda_"]),
        max_steps=settings["max_steps"],
        history_length=settings["history_length"],
        dim=encoder.dim,
        sampling=_sampling(settings["sampling"] or {}),
        info_text=bool(settings["info_text"]),
    )
    episodes = tuple(Episode(task, rules) for task in tasks)
    return Parts(episodes, backend, encoder, store, rules, tuple(tasks[0].task_ids))


def routing_spaces(rules: Rules) -> tuple[spaces.Space[FloatArray], spaces.Space[np.int64]]:
    """The observation space Box(-1, 1, (L, D), float32) and the action space Discrete(P) of one episode."""
    box = spaces.Box(-1.0, 1.0, (rules.history_length, rules.dim), dtype=np.float32)
    return cast("spaces.Space[FloatArray]", box), spaces.Discrete(len(rules.precisions))


def _tasks(task: str | Task, kwargs: Mapping[str, Any], copies: int) -> list[Task]:
    if isinstance(task, str):
        return [make_task(task, **kwargs) for _ in range(copies)]
    if copies > 1 or kwargs:
        raise ConfigError(
            "a live task serves one episode and takes no task_kwargs: pass its kind, for example 'alfworld'"
        )
    return [task]


def _sampling(fields: Mapping[str, Any]) -> SamplingParams:
    sampling = from_mapping(SamplingParams, fields, "sampling.")
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_tokens < 1:
        raise ConfigError(f"sampling needs temperature >= 0, top_p in (0, 1] and max_tokens >= 1, got {sampling}")
    return sampling


def _models(settings: Mapping[str, Any], precisions: tuple[str, ...]) -> tuple[Backend, Encoder, CompletionCache]:
    backend, encoder, cache_dir = settings["backend"], settings["encoder"], settings["cache_dir"]
    store = CompletionCache(cache_dir)
    if backend is None or isinstance(backend, Mapping):
        config = EnvConfig().backend if backend is None else backend
        backend = make_backend(config, precisions)
        # A script answers faster than a cache in memory.
        if cache_dir is not None or config["kind"] != "scripted":
            backend = CachedBackend(backend, store)
    elif tuple(backend.precisions) != precisions:
        raise ConfigError(f"the backend's precisions are {tuple(backend.precisions)}, the environment's {precisions}")
    if encoder is None or isinstance(encoder, Mapping):
        config = EnvConfig().encoder if encoder is None else encoder
        encoder = CachedEncoder(make_encoder(config), store)
    return backend, encoder, store
