"""Latency profiles: coefficients measured on some hardware, in a TOML file that an environment takes by name or path.

`agents/calibrate_latency.py` writes them. Those in this folder come with the package and go by their file's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from dmr_gym.config import load_config, unknown_name
from dmr_gym.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Profile:
    """What was measured, on what, and how.

    Attributes:
        date: of the measurement, YYYY-MM-DD.
        command: that made the file.
        hardware: what ran, in words and numbers.
        versions: of the software, by package.
        kinds: settings by kind of latency model, such as {"token-linear": {"ms_per_token": ..., "router_ms": ...}}.
        projected: how coefficients came about that were not measured, by precision.
        dequantized: precisions whose copies were measured with weights unpacked to 16 bits, each with the reason.
        measurement: environment, tasks, concurrency and models.
        intervals: 95 % intervals [low, high], laid out as ``kinds``.
        fit: how well the fitted coefficients explain the calls, by precision.
    """

    date: str
    command: str
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    kinds: Mapping[str, Mapping[str, Any]]
    projected: Mapping[str, str] = field(default_factory=dict)
    dequantized: Mapping[str, str] = field(default_factory=dict)
    measurement: Mapping[str, Any] = field(default_factory=dict)
    intervals: Mapping[str, Any] = field(default_factory=dict)
    fit: Mapping[str, Any] = field(default_factory=dict)


def packaged_profiles() -> dict[str, Path]:
    """Files of the profiles that come with the package, by name."""
    folder = Path(str(resources.files("dmr_gym.latency"))) / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_profile(name: object) -> Profile:
    """Read a profile.

    Args:
        name: of a packaged profile, or the path of a file that ends in ".toml".

    Raises:
        ConfigError: no such name or file, or a file that is no profile.
    """
    if not isinstance(name, str):
        raise ConfigError(f"latency profile must be a name or the path of a TOML file, got {name!r}")
    known = packaged_profiles()
    if name not in known and not name.endswith(".toml"):
        raise ConfigError(f"{unknown_name('latency profile', name, known)}; or give the path of a .toml file")
    return load_config(Profile, known.get(name, Path(name).expanduser()))


def profile_settings(name: object, kind: str, precisions: tuple[str, ...]) -> dict[str, Any]:
    """The settings of one kind of latency model in a profile, for some of its precisions.

    Args:
        name: as in `load_profile`.
        kind: of latency model.
        precisions: whose prices are wanted; others of the profile are left out.

    Raises:
        ConfigError: as `load_profile`; or the profile has not that kind.
    """
    profile = load_profile(name)
    if kind not in profile.kinds:
        raise ConfigError(unknown_name(f"latency kind in the profile {name!r}:", kind, profile.kinds))
    return {
        key: {p: value[p] for p in precisions if p in value} if isinstance(value, Mapping) else value
        for key, value in profile.kinds[kind].items()
    }
