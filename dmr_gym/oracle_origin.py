"""What an oracle was made for: the prices and models that its returns and times hold for, and no others.

Task ids alone do not tell: the same tasks have another best routing under other prices, by other models, or where an
episode may take other steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dmr_gym.config import EnvConfig
from dmr_gym.errors import ConfigError
from dmr_gym.latency import make_latency_model
from dmr_gym.types import SamplingParams

MADE_FOR = "made_for"
"""The key of an origin in ``oracle.json``, beside the values of λ, and in ``results.json`` of a report on trees."""

REMEDY = "agents/tree_report.py with the environment of the evaluation makes one"


def oracle_origin(config: EnvConfig, models: Mapping[str, str]) -> dict[str, Any]:
    """What the best routing of a task depends on beside λ, as plain data.

    Args:
        config: keywords of the environment.
        models: digest of each precision's model.

    Raises:
        ConfigError: prices that cannot be read.
    """
    latency: Any = make_latency_model(config.latency, config.precisions)
    sampling = asdict(SamplingParams(**config.sampling))
    del sampling["seed"]  # greedy decoding draws nothing
    origin = {
        "prices": {"kind": type(latency).__name__, **asdict(latency)},
        "models": {name: models.get(name) for name in config.precisions},
        "max_steps": config.max_steps,
        "sampling": sampling,
    }
    plain: dict[str, Any] = json.loads(json.dumps(origin))
    return plain


def differences(has: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say in words in what an origin differs from the wanted one; empty where it does not."""
    found = ["other prices"] if has.get("prices") != wanted["prices"] else []
    models = has.get("models") or {}
    changed = [name for name, digest in wanted["models"].items() if models.get(name) != digest]
    found += [f"other models of {', '.join(changed)}"] if changed else []
    if has.get("max_steps") != wanted["max_steps"]:
        found.append(f"episodes of {has.get('max_steps')} steps, not {wanted['max_steps']}")
    return found + (["other sampling"] if has.get("sampling") != wanted["sampling"] else [])


def read_origin(path: Path) -> dict[str, Any] | None:
    """The origin in a file that `dmr_gym.results.read_oracle` can read; None where it does not say.

    Raises:
        ConfigError: it has something else in the place of one.
    """
    origin = json.loads(path.read_text(encoding="utf-8")).get(MADE_FOR)
    if origin is not None and not isinstance(origin, dict):
        raise ConfigError(f"{path} is damaged: {MADE_FOR} must be an object, got {origin!r:.80}")
    return origin


def check_origin(path: Path, here: Mapping[str, Any]) -> list[str]:
    """Compare an oracle's origin with that of the environment.

    Args:
        path: of the oracle.
        here: `oracle_origin` of the environment.

    Returns:
        Warnings: one where the file does not say what it was made for.

    Raises:
        ConfigError: it was made for something else.
    """
    origin = read_origin(path)
    if origin is None:
        return [f"{path} does not say for which prices and models it was made, so nothing can be compared"]
    found = differences(origin, here)
    if found:
        raise ConfigError(f"the oracle at {path} was made for {', '.join(found)}: {REMEDY}")
    return []
