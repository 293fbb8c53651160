"""From plain settings to the live parts of an environment. Whatever is alive is built here and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
from gymnasium import spaces

from dmr_gym.backends import ScriptedBackend, make_backend, with_world
from dmr_gym.backends.kernels import dequantized_copies
from dmr_gym.cache import CachedBackend, CachedEncoder, CompletionCache
from dmr_gym.config import EnvConfig, check_amount, check_settings, from_mapping
from dmr_gym.encoders import make_encoder
from dmr_gym.episode import Episode, Rules
from dmr_gym.errors import ConfigError
from dmr_gym.latency import PriceSource, make_latency_model, price_source
from dmr_gym.tasks import make_task
from dmr_gym.types import Backend, Encoder, FloatArray, LatencyModel, SamplingParams, Task

T = TypeVar("T")


@dataclass(frozen=True)
class Parts:
    """What an environment is made of.

    Attributes:
        episodes: one a sub-environment.
        backend: the LLM copies, with the cache around them.
        encoder: the text encoder, with the cache around it.
        rules: what all episodes have in common.
        task_ids: the panel.
        built: the parts that were built here; a live object that came from the caller is not among them.
    """

    episodes: tuple[Episode, ...]
    backend: Backend
    encoder: Encoder
    rules: Rules
    task_ids: Sequence[str]
    built: tuple[object, ...]

    def close(self) -> None:
        """Close what was built here and can be closed; more than once does no harm."""
        for part in self.built:
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
    check_settings(settings["precisions"], settings["lambda_"], settings["max_steps"], settings["history_length"])
    check_amount("invalid_action_penalty", settings["invalid_action_penalty"], "reward")
    precisions = tuple(settings["precisions"])
    latency = settings["latency"]
    live = isinstance(latency, LatencyModel) and not isinstance(latency, type)
    if not live:
        latency = make_latency_model(latency, precisions)
    sampling = _sampling(_mapping("sampling", settings["sampling"]))
    tasks = _tasks(settings["task"], _mapping("task_kwargs", settings["task_kwargs"]), copies)
    backend, encoder, built = _models(settings, precisions)
    rules = Rules(
        precisions=precisions,
        latency=latency,
        lambda_=float(settings["lambda_"]),
        max_steps=int(settings["max_steps"]),
        history_length=int(settings["history_length"]),
        dim=encoder.dim,
        sampling=sampling,
        info_text=bool(settings["info_text"]),
        invalid_action_penalty=float(settings["invalid_action_penalty"]),
    )
    episodes = tuple(Episode(task, rules) for task in tasks)
    built += [task for task in tasks if task is not settings["task"]]
    return Parts(episodes, backend, encoder, rules, tuple(tasks[0].task_ids), tuple(built))


def prices_of(config: EnvConfig, device: str = "cuda") -> PriceSource:
    """Where an environment's times come from, and which of them are projected, or those of unpacked weights.

    Args:
        config: the environment.
        device: that its servers compute on, where it has any.
    """
    backend = with_world(config.backend, config.task)
    return price_source(config.latency, config.precisions, dequantized_copies(backend, config.precisions, device))


def routing_spaces(rules: Rules) -> tuple[spaces.Space[FloatArray], spaces.Space[np.int64]]:
    """The observation space Box(-1, 1, (L, D), float32) and the action space Discrete(P) of one episode."""
    box = spaces.Box(-1.0, 1.0, (rules.history_length, rules.dim), dtype=np.float32)
    return cast("spaces.Space[FloatArray]", box), spaces.Discrete(len(rules.precisions))


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must be a mapping or None, got {value!r} ({type(value).__name__})")
    return value


def _live(name: str, value: T, protocol: type) -> T:
    """Return a caller's own object, or raise ConfigError if it is not what the protocol asks for."""
    # A class has the methods of its instances, but cannot be asked.
    if isinstance(value, type) or not isinstance(value, protocol):
        raise ConfigError(
            f"{name} must be a kind, plain data with a kind, or an object of the protocol "
            f"dmr_gym.types.{protocol.__name__}, got {value!r} ({type(value).__name__})"
        )
    return value


def _tasks(task: str | Task, kwargs: Mapping[str, Any], copies: int) -> list[Task]:
    if isinstance(task, str):
        return [make_task(task, **kwargs) for _ in range(copies)]
    _live("task", task, Task)
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


def _models(settings: Mapping[str, Any], precisions: tuple[str, ...]) -> tuple[Backend, Encoder, list[object]]:
    """The backend, the encoder, and what of them was built here, the store included."""
    backend, encoder, cache_dir = settings["backend"], settings["encoder"], settings["cache_dir"]
    if not isinstance(cache_dir, str | os.PathLike | None):
        raise ConfigError(f"cache_dir must be a folder or None, got {cache_dir!r} ({type(cache_dir).__name__})")
    plain_backend = backend is None or isinstance(backend, str | Mapping)
    plain_encoder = encoder is None or isinstance(encoder, str | Mapping)
    if plain_backend:
        backend = with_world(EnvConfig().backend if backend is None else backend, settings["task"])
        backend = make_backend(backend, precisions)
    elif tuple(_live("backend", backend, Backend).precisions) != precisions:
        raise ConfigError(f"the backend's precisions are {tuple(backend.precisions)}, the environment's {precisions}")
    if plain_encoder:
        encoder = make_encoder(EnvConfig().encoder if encoder is None else encoder)
    else:
        _live("encoder", encoder, Encoder)
    store = CompletionCache(cache_dir)
    # A script answers faster than a cache in memory.
    if plain_backend and (cache_dir is not None or not isinstance(backend, ScriptedBackend)):
        backend = CachedBackend(backend, store)
    if plain_encoder:
        encoder = CachedEncoder(encoder, store)
    built = [part for part, plain in ((backend, plain_backend), (encoder, plain_encoder)) if plain]
    return backend, encoder, [*built, store]
