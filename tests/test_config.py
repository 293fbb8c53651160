"""dmr_gym.config: files and overrides become dataclasses, mistakes are named, and what is written can be read."""

from __future__ import annotations

import dataclasses
import inspect
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym import ENV_IDS
from dmr_gym.config import EnvConfig, from_mapping, load_config, to_toml, unknown_name
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import ConfigError


@dataclass(frozen=True)
class Grpo:
    """A nested part."""

    lr: float = 1e-4
    epochs: int = 2
    clip: tuple[float, float] = (0.2, 0.2)
    norm: Literal["mean", "std"] = "mean"


@dataclass(frozen=True)
class Config:
    """A recipe's settings."""

    seed: int = 0
    name: str = "run"
    resume: bool = False
    layers: tuple[int, ...] = (8,)
    limit: int | None = None
    latency: str | Mapping[str, Any] = "row"
    prices: Mapping[str, float] = field(default_factory=dict)
    backend: Mapping[str, Any] = field(default_factory=dict)
    grpo: Grpo = field(default_factory=Grpo)


@dataclass(frozen=True)
class Needs:
    """A part without defaults."""

    path: str


def test_file_then_overrides(tmp_path: Path) -> None:
    """The file replaces defaults, and the command line replaces the file."""
    path = tmp_path / "config.toml"
    path.write_text('seed = 1\nlayers = [2, 4]\n[grpo]\nlr = 1\nclip = [0.2, 0.28]\n[backend]\nkind = "local"\n')
    config = load_config(Config, path, ["--grpo.epochs", "4", "--seed=-3", "--backend.options.device", "cuda"])
    assert config == Config(
        seed=-3,
        layers=(2, 4),
        backend={"kind": "local", "options": {"device": "cuda"}},
        grpo=Grpo(lr=1.0, epochs=4, clip=(0.2, 0.28)),
    )
    assert isinstance(config.grpo.lr, float)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["--name", "7"], {"name": "7"}),
        (["--name=a = b"], {"name": "a = b"}),
        (["--name", "1\nseed = 2"], {"name": "1\nseed = 2"}),
        (["--resume", "true"], {"resume": True}),
        (["--limit", "5"], {"limit": 5}),
        (["--limit", "none"], {"limit": None}),
        (["--layers", "[2, 8]"], {"layers": (2, 8)}),
        (["--latency", "alfworld-4b-awq-w4"], {"latency": "alfworld-4b-awq-w4"}),
        (["--latency", "{router_ms = 1}"], {"latency": {"router_ms": 1}}),
        (["--latency.router_ms", "1"], {"latency": {"router_ms": 1}}),
        (["--prices.w3", "14"], {"prices": {"w3": 14.0}}),
        (["--backend.models.w3", "a/b"], {"backend": {"models": {"w3": "a/b"}}}),
        (["--grpo.norm", "std"], {"grpo": Grpo(norm="std")}),
    ],
)
def test_overrides_take_the_type_of_their_field(overrides: list[str], expected: dict[str, Any]) -> None:
    """Text from the command line becomes what the field holds."""
    assert load_config(Config, overrides=overrides) == dataclasses.replace(Config(), **expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["--grpo.lrr", "1"],
            r"unknown Grpo setting 'grpo.lrr'; did you mean 'grpo.lr'\? known: grpo.lr, grpo.epochs",
        ),
        (["--sed", "1"], r"unknown Config setting 'sed'; did you mean 'seed'\?"),
        (["--seed", "1.5"], r"seed must be int, got 1.5 \(float\)"),
        (["--seed", "true"], r"seed must be int, got True \(bool\)"),
        (["--grpo.lr", "fast"], r"grpo.lr must be float, got 'fast' \(str\)"),
        (["--grpo.clip", "[1]"], r"grpo.clip must have 2 entries, got 1: \[1\]"),
        (["--grpo.norm", "max"], r"grpo.norm must be Literal\['mean', 'std'\], got 'max'"),
        (["--layers", '["a"]'], r"layers\[0\] must be int, got 'a'"),
        (["--prices.w3", "high"], "prices.w3 must be float, got 'high'"),
        (["--grpo", "3"], "grpo must be Grpo, got 3"),
        (["--limit", "many"], "limit must be int, got 'many'"),
        (["--seed"], "the override --seed needs a value: --seed VALUE"),
        (["--seed", "--name", "x"], "the override --seed needs a value"),
        (["seed", "1"], "expected an override like --section.key value, got 'seed'"),
        (["--seed", "1", "--seed.x", "2"], "cannot set seed.x: seed is '1', not a table"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    """Each mistake raises a ConfigError that says where it is and what would do."""
    with pytest.raises(ConfigError, match=message):
        load_config(Config, overrides=overrides)


def test_file_mistakes_are_named(tmp_path: Path) -> None:
    """A missing file, a file that is no TOML, and a missing value are told apart."""
    with pytest.raises(ConfigError, match=r"cannot read the config file '.*absent.toml': No such file"):
        load_config(Config, tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("seed = ")
    with pytest.raises(ConfigError, match=r"bad.toml is not a TOML file"):
        load_config(Config, tmp_path / "bad.toml")
    with pytest.raises(ConfigError, match="Needs needs a value for path: add it to the file or pass --path"):
        load_config(Needs)


def test_resolved_config_reads_back(tmp_path: Path) -> None:
    """What to_toml writes beside a run is the same configuration."""
    config = Config(
        name='quo"te\\ \n ü',
        limit=3,
        latency={"ms_per_token": {"w 3": 1.5}, "router_ms": 2},
        backend={"models": {"a": "b"}, "list": [1, "x", {"y": True}], "empty": {}},
        grpo=Grpo(lr=1e-9),
    )
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(Config, path) == config
    assert load_config(Config, overrides=["--name", "x"]) == from_mapping(
        Config, tomllib.loads(to_toml(Config(name="x")))
    )


PLAIN = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), PLAIN))
def test_any_plain_data_survives_toml(data: dict[str, Any]) -> None:
    """Whatever plain data a mapping field holds, TOML's own reader gives it back."""
    assert tomllib.loads(to_toml(Config(backend=data)))["backend"] == data


@pytest.mark.parametrize("value", [object(), {"a": object()}, {"a": None}, [None]])
def test_only_plain_data_is_written(value: object) -> None:
    """Anything else raises instead of being written as text."""
    with pytest.raises(ConfigError, match="which is not plain data"):
        to_toml(Config(backend={"part": value}))


def test_none_is_left_out_only_where_it_is_the_default() -> None:
    """TOML has no None, so a None that is not the default cannot be written."""
    assert "limit" not in to_toml(Config())
    with pytest.raises(ConfigError, match="name is None, which TOML cannot say, and its default is not None"):
        to_toml(dataclasses.replace(Config(), name=None))


def test_env_config_mirrors_the_environment() -> None:
    """Same keywords in the same order with the same defaults; None stands for a default that is a mapping."""
    parameters = list(inspect.signature(PrecisionRoutingEnv).parameters.values())
    kwargs = EnvConfig().kwargs()
    assert [parameter.name for parameter in parameters] == list(kwargs)
    for parameter in parameters:
        default = kwargs[parameter.name]
        expected = None if isinstance(default, Mapping) else tuple(default) if isinstance(default, list) else default
        assert parameter.default == expected, parameter.name


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_every_id_is_a_configuration(env_id: str) -> None:
    """The keywords of a registered id are an EnvConfig, and its keywords go to JSON."""
    config = from_mapping(EnvConfig, ENV_IDS[env_id])
    assert json.loads(json.dumps(config.kwargs())) == config.kwargs()
    assert config.kwargs() == EnvConfig().kwargs() | ENV_IDS[env_id]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_": -0.1}, r"lambda_ must be a finite number of at least 0 \(reward per second\), got -0.1"),
        ({"lambda_": float("nan")}, "lambda_ must be a finite number"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"history_length": 2.0}, "history_length must be a whole number of at least 1, got 2.0"),
        ({"precisions": ("bf16",)}, "precisions must be two or more different names, lowest first"),
        ({"precisions": ("w3", "w3")}, "precisions must be two or more different names, lowest first"),
        ({"precisions": "w3"}, "precisions must be two or more different names, lowest first, got 'w3'"),
        ({"precisions": None}, "precisions must be two or more different names, lowest first, got None"),
        ({"precisions": (1, 2)}, "precisions must be two or more different names"),
        ({"lambda_": True}, "lambda_ must be a finite number"),
        ({"max_steps": True}, "max_steps must be a whole number of at least 1, got True"),
    ],
)
def test_env_config_checks_ranges(settings: dict[str, Any], message: str) -> None:
    """Values that no environment can have are refused when the dataclass is made."""
    with pytest.raises(ConfigError, match=message):
        EnvConfig(**settings)


def test_numpy_numbers_are_numbers() -> None:
    """Settings that were computed with NumPy are taken."""
    EnvConfig(lambda_=np.float32(0.5), max_steps=np.int64(3), history_length=np.int32(4))


def test_env_config_round_trip() -> None:
    """The environment's settings survive TOML, mappings and tuples included."""
    config = EnvConfig(
        task="toy",
        precisions=("w3", "w4", "bf16"),
        latency={"ms_per_token": {"w3": 1.0, "w4": 2.0, "bf16": 3.0}, "router_ms": 0.5},
        sampling={"temperature": 0.4, "stop": ["\n", "</action>"]},
    )
    assert from_mapping(EnvConfig, tomllib.loads(to_toml(config))) == config


def test_unknown_name_hints_and_shortens() -> None:
    """The nearest name comes first, and a long list is cut."""
    known = [f"task-{index:02d}" for index in range(40)]
    message = unknown_name("task id", "task-7", known)
    assert message.startswith("unknown task id 'task-7'; did you mean 'task-")
    assert message.endswith("task-11, and 28 more")
    assert unknown_name("mode", "zzz", ["a"]) == "unknown mode 'zzz'; known: a"
