"""Latency profiles: files of measured coefficients that an environment takes by name or path."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from dmr_gym.config import to_toml
from dmr_gym.errors import ConfigError
from dmr_gym.latency import (
    CachedPrefixCost,
    Profile,
    TokenLinearLatency,
    TokenPrices,
    load_profile,
    make_latency_model,
    packaged_profiles,
    price_source,
)
from tests.toy_env import toy_env

PROFILE = Profile(
    date="2026-01-31",
    command="python agents/calibrate_latency.py --out runs/latency",
    hardware={"models": "1 A6000", "threads": 8},
    versions={"vllm": "0.33.0"},
    kinds={
        "token-linear": {"router_ms": 20.0, "ms_per_token": {"w3": 14.0, "w4": 16.0, "bf16": 25.0}},
        "prefill-decode": {
            "router_ms": 20.0,
            "block_tokens": 16,
            "warm_tokens": 32,
            "ms_per_prefill_token": {"w3": 0.5, "w4": 0.5, "bf16": 0.25},
            "ms_per_decode_token": {"w3": 8.0, "w4": 9.0, "bf16": 16.0},
            "ms_per_call": {"w3": 4.0, "w4": 4.0, "bf16": 5.0},
        },
    },
    projected={"w3": "w4 / 1.15"},
)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The profile as a file."""
    file = tmp_path / "a6000.toml"
    file.write_text(to_toml(PROFILE), encoding="utf-8")
    return str(file)


def test_a_profile_survives_its_file(path: str) -> None:
    """What is written is read as an equal profile."""
    assert load_profile(path) == PROFILE


def test_an_environment_takes_the_prices_of_its_precisions(path: str) -> None:
    """Two of the three; Eq. 9 unless another kind is asked for, and given settings replace measured ones."""
    assert make_latency_model({"profile": path}, ("w4", "bf16")) == TokenLinearLatency({"w4": 16.0, "bf16": 25.0}, 20.0)
    free = make_latency_model({"profile": path, "router_ms": 0}, ("w3", "w4", "bf16"))
    assert free == TokenLinearLatency({"w3": 14.0, "w4": 16.0, "bf16": 25.0}, 0)
    prices = {"w4": TokenPrices(0.0005, 0.0, 0.009, 0.004), "bf16": TokenPrices(0.00025, 0.0, 0.016, 0.005)}
    kind = {"profile": path, "kind": "prefill-decode"}
    assert make_latency_model(kind, ("w4", "bf16")) == CachedPrefixCost(prices, 0.02, "s", 16, 32)


def test_times_of_an_environment_follow_its_profile(path: str, tmp_path: Path) -> None:
    """Eight tokens, "go left" and their end, take 8·16 + 20 ms at w4."""
    env = toy_env(
        latency={"profile": path},
        precisions=["w4", "bf16"],
        backend={"kind": "scripted", "answers": {"*": "go left"}},
    )
    env.reset(seed=0)
    assert env.step(0)[4]["latency_s"] == pytest.approx(0.148)


def test_projected_prices_are_labelled_where_they_are_used(path: str) -> None:
    """Only where the precision is among those that are priced."""
    source = price_source({"profile": path}, ("w3", "bf16"))
    assert (source.projected, source.label) == (True, f"profile {path}, w3 projected")
    assert price_source({"profile": path}, ("w4", "bf16")).label == f"profile {path}"
    assert price_source({"profile": path}).projected
    assert price_source({"profile": path, "kind": "prefill-decode", "warm_tokens": 0}).projected
    own = price_source({"profile": path, "ms_per_token": {"w3": 1, "bf16": 2}}, ("w3", "bf16"))
    assert (own.projected, own.label) == (False, "prices of your own")


def test_times_of_unpacked_copies_are_labelled_where_they_are_used(tmp_path: Path) -> None:
    """In a profile and by the wall clock; a measured time is no projection, and modelled prices are not its own."""
    file = tmp_path / "cpu.toml"
    reasons = {"w4": "dequantized: unpacked at load"}
    file.write_text(to_toml(replace(PROFILE, dequantized=reasons)), encoding="utf-8")
    assert load_profile(str(file)).dequantized == reasons
    label = price_source({"profile": str(file)}, ("w3", "w4", "bf16")).label
    assert label == f"profile {file}, w3 projected, w4 dequantized"
    source = price_source({"profile": str(file)}, ("w4", "bf16"))
    assert (source.projected, source.label) == (False, f"profile {file}, w4 dequantized")
    clock = price_source({"kind": "wall-clock"}, ("w3", "w4", "bf16"), ["w4", "w3"])
    assert clock.title == "measured seconds, wall clock of the calls, w3 and w4 dequantized"
    assert price_source({"kind": "wall-clock"}, ("bf16",), ["w4"]).label == "wall clock of the calls"
    assert price_source("alfworld-4b-awq-w4", ("w4", "bf16"), ["w4"]).label == "prices of alfworld-4b-awq-w4"
    packaged = price_source({"profile": "alfworld-embedded-cpu"}, ("w2", "bf16"))
    assert packaged.label == "profile alfworld-embedded-cpu, w2 dequantized"


@pytest.mark.parametrize(
    ("settings", "precisions", "message"),
    [
        ({"profile": "a100"}, ("w4", "bf16"), r"unknown latency profile 'a100'; .*or give the path of a \.toml file"),
        ({"profile": "absent.toml"}, ("w4", "bf16"), "cannot read the config file 'absent.toml'"),
        (
            {"profile": "PATH", "row": "alfworld-4b-awq-w4"},
            ("w4", "bf16"),
            r"a row of Table 3 or from a profile, and got both: set it to \{'profile': '.*a6000.toml'\} as a whole",
        ),
        ({"profile": 3}, ("w4", "bf16"), "must be a name or the path of a TOML file, got 3"),
        ({"profile": "PATH"}, ("w2", "bf16"), r"exactly the precisions \['w2', 'bf16'\], got \['bf16'\]"),
        (
            {"profile": "PATH", "kind": "money"},
            ("w4", "bf16"),
            "unknown latency kind in the profile .*'money'; known: t",
        ),
    ],
)
def test_mistakes_are_named(path: str, settings: dict[str, object], precisions: tuple[str, ...], message: str) -> None:
    """A name, a file, a precision or a kind that is not there."""
    if settings["profile"] == "PATH":
        settings = settings | {"profile": path}
    with pytest.raises(ConfigError, match=message):
        make_latency_model(settings, precisions)


def test_a_file_that_is_no_profile_is_refused(tmp_path: Path) -> None:
    """Unknown keys and missing ones."""
    (tmp_path / "other.toml").write_text('task = "toy"\n')
    with pytest.raises(ConfigError, match="unknown Profile setting 'task'"):
        load_profile(str(tmp_path / "other.toml"))
    (tmp_path / "short.toml").write_text('date = "2026-01-31"\n')
    with pytest.raises(ConfigError, match="Profile needs a value for command"):
        load_profile(str(tmp_path / "short.toml"))


@pytest.mark.parametrize("name", sorted(packaged_profiles()))
def test_packaged_profiles_price_all_that_they_name(name: str) -> None:
    """Each kind of each profile makes a model, and the header says what it is."""
    profile = load_profile(name)
    precisions = tuple(profile.kinds["token-linear"]["ms_per_token"])
    for kind in profile.kinds:
        make_latency_model({"profile": name, "kind": kind}, precisions)
    text = packaged_profiles()[name].read_text(encoding="utf-8")
    assert text.startswith("# A latency profile")
    assert tomllib.loads(text)["command"].startswith("python agents/calibrate_latency.py")
