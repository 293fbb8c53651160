"""Gymnasium environments in which every action picks the numeric precision of the LLM that acts next.

Importing the package registers the ids below with Gymnasium and loads nothing heavy: models, encoders and worlds load
when an environment is made. `gymnasium.make_vec` uses `PrecisionRoutingVectorEnv` by default, which batches LLM calls.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

from dmr_gym.errors import BackendError, CacheError, ConfigError, DMRGymError, MissingDependency, TaskError
from dmr_gym.tasks.toy import ANSWERS

if TYPE_CHECKING:
    from dmr_gym.config import EnvConfig, load_config, to_toml
    from dmr_gym.env import PrecisionRoutingEnv
    from dmr_gym.history import valid_mask
    from dmr_gym.latency import TokenLinearLatency
    from dmr_gym.vector import PrecisionRoutingVectorEnv

__version__ = "0.1.0"

__all__ = [
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

ENV_IDS: dict[str, dict[str, Any]] = {
    "DMR-ALFWorld-v0": {
        "task": "alfworld",
        "task_kwargs": {"source": "embedded", "panel": "train"},
        "precisions": ["w2", "bf16"],
        "backend": {"kind": "embedded"},
        "encoder": {"kind": "minilm"},
        # No 2-bit price has been published: w2 costs what the paper projects for its W3. docs/latency.md: router_ms.
        "latency": {"row": "alfworld-4b-gptq-w3", "allow_other_bits": True, "router_ms": 5.0},
        "lambda_": 0.1,
        "sampling": {"max_tokens": 32},
    },
    "DMR-WebShop-v0": {
        "task": "webshop",
        "task_kwargs": {"source": "embedded", "panel": "train"},
        "precisions": ["w3", "bf16"],
        "backend": {"kind": "embedded"},
        "encoder": {"kind": "minilm"},
        # The paper prices no 3 bits in WebShop: w3 is projected as in ALFWorld. docs/latency.md: router_ms.
        "latency": {"row": "webshop-4b-awq-w4", "project_w3": True, "router_ms": 5.0},
        "lambda_": 0.1,
        "max_steps": 30,
        "sampling": {"max_tokens": 32},
    },
    "DMR-Toy-v0": {
        "task": "toy",
        "task_kwargs": {"panel": "train"},
        "precisions": ["low", "high"],
        "backend": {"kind": "scripted", "answers": ANSWERS},
        "encoder": {"kind": "hash", "dim": 64},
        "latency": "alfworld-4b-gptq-w3",
        "lambda_": 0.2,
    },
}
"""Registered ids and their keywords for `PrecisionRoutingEnv`: plain data, so that specs go to JSON and workers."""

_LAZY = {
    "EnvConfig": "dmr_gym.config",
    "PrecisionRoutingEnv": "dmr_gym.env",
    "PrecisionRoutingVectorEnv": "dmr_gym.vector",
    "TokenLinearLatency": "dmr_gym.latency",
    "load_config": "dmr_gym.config",
    "to_toml": "dmr_gym.config",
    "valid_mask": "dmr_gym.history",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register() -> None:
    # A reload, or a second copy of the module in a worker, must not warn about overriding an id.
    for env_id, kwargs in ENV_IDS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                id=env_id,
                entry_point="dmr_gym.env:PrecisionRoutingEnv",
                vector_entry_point="dmr_gym.vector:PrecisionRoutingVectorEnv",
                kwargs=kwargs,
            )


_register()
