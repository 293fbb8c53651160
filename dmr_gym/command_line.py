"""What the command lines of the recipes share: which environment, with which settings, and how mistakes end."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import gymnasium

from dmr_gym.config import EnvConfig, from_mapping, unknown_name
from dmr_gym.errors import ConfigError, DMRGymError
from dmr_gym.vector import PrecisionRoutingVectorEnv


def add_env_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `env_config` and `make_envs` read."""
    group = parser.add_argument_group("environment")
    group.add_argument("--env", default="DMR-ALFWorld-v0", metavar="ID", help="registered id (default: %(default)s)")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a keyword of the environment, VALUE as in TOML; may be repeated: --set lambda_=0.02 "
        '--set backend.device=cuda --set \'precisions=["w3", "w4", "bf16"]\'',
    )
    group.add_argument(
        "--num-envs", type=int, default=8, metavar="N", help="episodes played side by side (default: %(default)s)"
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="folder of the completion cache, shared between recipes (default: the --out folder's 'cache')",
    )


def env_config(env_id: str, settings: Sequence[str] = (), cache_dir: str | None = None) -> EnvConfig:
    """Resolve a registered id and ``KEY=VALUE`` changes to the environment's keywords.

    Args:
        env_id: for example "DMR-ALFWorld-v0".
        settings: dotted keys and TOML values; a value that is no TOML counts as text.
        cache_dir: of the completion cache.

    Raises:
        ConfigError: an unknown id or key, or a value of the wrong type.
    """
    try:
        spec = gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        known = sorted(name for name in gymnasium.registry if name.startswith("DMR-"))
        raise ConfigError(unknown_name("environment id", env_id, known)) from error
    data: dict[str, Any] = _copied(spec.kwargs)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set expects KEY=VALUE, got {setting!r}")
        *tables, last = key.strip().split(".")
        inner = data
        for table in tables:
            inner = inner.setdefault(table, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {key}: {table} is {inner!r}, not a table")
        inner[last] = _parsed(value.strip())
    return replace(from_mapping(EnvConfig, data), cache_dir=cache_dir)


def make_envs(config: EnvConfig, panel: str, num_envs: int) -> PrecisionRoutingVectorEnv:
    """Build the vector environment for one panel of tasks, to be run by `dmr_gym.rollout.rollout`.

    Args:
        config: its keywords.
        panel: "train", "calibration", "validation" or "test".
        num_envs: sub-environments.
    """
    config = replace(config, task_kwargs={**config.task_kwargs, "panel": panel})
    return PrecisionRoutingVectorEnv(num_envs, autoreset_mode="Disabled", **config.kwargs())


def first_tasks(envs: PrecisionRoutingVectorEnv, number: int | None) -> list[str]:
    """Return the first ``number`` task ids of the panel, or all of them for None.

    Raises:
        ConfigError: the panel has fewer.
    """
    number = len(envs.task_ids) if number is None else number
    if not 1 <= number <= len(envs.task_ids):
        raise ConfigError(f"the panel has {len(envs.task_ids)} tasks, but {number} were asked for")
    return list(envs.task_ids[:number])


def run(main: Callable[[], None]) -> None:
    """Run a recipe's main: a mistake of the user ends it with the message alone, without a traceback."""
    try:
        main()
    except DMRGymError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")


def _parsed(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _copied(data: Any) -> Any:
    """Copy plain data, so that changes do not reach the registry."""
    if isinstance(data, dict):
        return {key: _copied(value) for key, value in data.items()}
    return [_copied(value) for value in data] if isinstance(data, list) else data
