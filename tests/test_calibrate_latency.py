"""agents/calibrate_latency.py on the toy world, end to end."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.latency import load_profile
from tests.recipes import TINY, TOY, load_recipe
from tests.toy_env import toy_env

BACKEND = ["--set", "backend.ms_per_token=3.0"]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The recipe as a module."""
    return load_recipe("calibrate_latency")


@pytest.fixture(scope="module")
def out(recipe, tmp_path_factory) -> Path:
    """What it writes for six corridors, four at a time."""
    folder = tmp_path_factory.mktemp("latency")
    recipe.main(
        ["--out", str(folder), "--tasks", "6", "--resamples", "50", "--hardware", "a desk", *TOY, *TINY, *BACKEND]
    )
    return folder


def test_the_scripts_prices_are_found(out):
    """A backend that reports 3 ms a token has ℓ = 3 ms, whatever it is asked; a router takes some time."""
    profile = load_profile(str(out / "profile.toml"))
    linear = profile.kinds["token-linear"]
    assert linear["ms_per_token"] == {"low": 3.0, "high": 3.0}
    assert profile.intervals["token-linear"]["ms_per_token"]["low"] == [3.0, 3.0]
    assert linear["router_ms"] > 0
    ends = profile.intervals["token-linear"]["router_ms"]
    assert ends[0] <= linear["router_ms"] <= ends[1]
    fitted = profile.kinds["prefill-decode"]
    assert fitted["ms_per_decode_token"] == {"low": 3.0, "high": 3.0}
    assert fitted["ms_per_prefill_token"] == {"low": 0.0, "high": 0.0}


def test_the_profile_says_what_was_measured_and_how(out):
    """Hardware, versions, date, command, tasks and models."""
    record = tomllib.loads((out / "profile.toml").read_text())
    assert record["hardware"]["models"] == "a desk"
    assert record["hardware"]["processor"]
    assert {"python", "dmr-gym", "numpy"} <= set(record["versions"])
    assert record["date"].count("-") == 2
    assert record["command"].startswith("python agents/calibrate_latency.py --out ")
    measurement = record["measurement"]
    assert (measurement["env_id"], measurement["panel"]) == ("DMR-Toy-v0", "test")
    assert (measurement["sessions"], measurement["concurrency"]) == (6, 4)
    assert set(measurement["models"]) == {"low", "high"}


def test_each_session_is_kept_with_its_calls(out):
    """Six files a stage: always-high walks the eight signs, and its cached prompts grow."""
    stages = {folder.name: sorted(folder.iterdir()) for folder in (out / "sessions").iterdir()}
    assert {name: len(files) for name, files in stages.items()} == {"low": 6, "high": 6, "router": 6}
    for path in stages["high"]:
        calls = json.loads(path.read_text())["calls"]
        assert len(calls) == 8
        assert all(seconds == pytest.approx(0.003 * new) for seconds, _, _, new in calls)
        assert calls[0][2] == 0
        assert [call[2] for call in calls[1:]] == [call[1] for call in calls[:-1]]
    routed = [json.loads(path.read_text()) for path in stages["router"]]
    assert all(session["decisions"] == len(session["calls"]) for session in routed)
    assert all(session["router_s"] > 0 for session in routed)


def test_an_environment_takes_the_profile(out):
    """By its path, with the coefficients that were found."""
    env = toy_env(latency={"profile": str(out / "profile.toml"), "router_ms": 0})
    env.reset(seed=0)
    info = env.step(1)[4]
    assert info["latency_s"] == pytest.approx(0.003 * info["completion_tokens"])


def test_the_same_command_plays_what_is_missing(recipe, out, monkeypatch, capsys):
    """One session of one stage is gone, and two more tasks are asked for: 3 + 2 + 2 episodes are played."""
    lost = next((out / "sessions" / "low").iterdir())
    lost.unlink()
    played = []
    real = recipe.rollout

    def counting(envs, policy, tasks, **options):
        played.append(len(tasks))
        return real(envs, policy, tasks, **options)

    monkeypatch.setattr(recipe, "rollout", counting)
    options = ["--out", str(out), "--tasks", "8", "--resamples", "50", "--hardware", "a desk", *TOY, *TINY, *BACKEND]
    recipe.main(options)
    assert played == [3, 2, 2]
    assert lost.is_file()
    assert load_profile(str(out / "profile.toml")).measurement["sessions"] == 8
    with pytest.raises(ConfigError, match="was begun with other num_envs: choose another --out"):
        recipe.main([*options, "--num-envs", "2"])


def test_a_projected_precision_is_not_played_alone_and_is_labelled(recipe, tmp_path, capsys):
    """W3 = W4 / 1.15 in the profile, in the table, and in what an environment with it says of its prices."""
    settings = ["--set", 'precisions=["w3", "w4", "bf16"]', "--set", 'backend.answers={"*" = "go left"}']
    options = ["--out", str(tmp_path), "--tasks", "4", "--resamples", "10", "--project", "w3=w4"]
    recipe.main([*options, *TOY, *TINY, *BACKEND, *settings])
    profile = load_profile(str(tmp_path / "profile.toml"))
    assert profile.kinds["token-linear"]["ms_per_token"] == {"w3": round(3 / 1.15, 4), "w4": 3.0, "bf16": 3.0}
    assert profile.projected == {"w3": "w4 / 1.15"}
    assert {folder.name for folder in (tmp_path / "sessions").iterdir()} == {"w4", "bf16", "router"}
    printed = capsys.readouterr().out
    assert "w3 projected: w4 / 1.15" in printed
    assert "routing between w4 and bf16 saves no time: w4 is no faster" in printed
    assert "routing between w3 and bf16 saves time in steps of more tokens than: " in printed
    assert "dequantized" not in printed
    assert profile.dequantized == {}


def test_a_copy_that_was_measured_unpacked_is_labelled(recipe, tmp_path, capsys, monkeypatch):
    """In the profile, in the table, below it, and beside what is projected from it."""
    asked = []

    def dequantized(backend, precisions):
        asked.append((backend["kind"], list(precisions)))
        return {"w4": "dequantized: unpacked at load"}

    monkeypatch.setattr(recipe, "dequantized_copies", dequantized)
    settings = ["--set", 'precisions=["w3", "w4", "bf16"]', "--set", 'backend.answers={"*" = "go left"}']
    options = ["--out", str(tmp_path), "--tasks", "4", "--resamples", "10", "--project", "w3=w4"]
    recipe.main([*options, *TOY, *TINY, *BACKEND, *settings])
    assert asked == [("scripted", ["w4", "bf16"])]
    assert load_profile(str(tmp_path / "profile.toml")).dequantized == {"w4": "dequantized: unpacked at load"}
    printed = capsys.readouterr().out
    assert "w4 dequantized " in printed
    assert "w4 is dequantized: unpacked at load; it was measured with weights of 16 bits" in printed
    assert "warning: w3 is projected from a precision that was measured with weights of 16 bits" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--project", "w3=w4"], r"NAME=SOURCE with two of the precisions \['low', 'high'\].* got w3=w4"),
        (["--project", "low"], "got low="),
        (["--project", "low=high", "high=low"], "SOURCE measured"),
        (["--cache-dir", "x"], "--cache-dir has no place here"),
        (["--processor-time"], "counts what this process computes: servers need the wall clock"),
        (["--num-envs", "0"], "--num-envs must be at least 1, got 0"),
        (["--resamples", "0"], "--resamples must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named_before_anything_is_played(recipe, tmp_path, options, message):
    """Each with what came."""
    with pytest.raises(ConfigError, match=message):
        recipe.main(["--out", str(tmp_path / "out"), *TOY, *options])
    assert not (tmp_path / "out").exists()


def test_steps_that_are_forced_are_no_decisions(recipe, tmp_path):
    """WebShop's searches: the router decides at clicks alone."""
    config = tmp_path / "shop.toml"
    config.write_text(
        'task = "webshop"\ntask_kwargs = {n_goals = 4}\nprecisions = ["low", "high"]\nmax_steps = 4\n'
        "latency = {ms_per_token = {low = 1, high = 1}, router_ms = 0}\n"
        'encoder = {kind = "hash", dim = 8}\n[backend]\nkind = "scripted"\n'
        '[backend.answers]\n"*" = {"Step 1" = "search[tea]", "" = "click[back to search]"}\n'
        "[calibrate_latency]\ntasks = 2\nnum_envs = 2\nresamples = 10\n"
        'force_high = ["search"]\n'
    )
    recipe.main(["--out", str(tmp_path / "out"), "--config", str(config), *TINY])
    sessions = [json.loads(p.read_text()) for p in (tmp_path / "out" / "sessions" / "router").iterdir()]
    assert len(sessions) == 2
    assert all(0 < session["decisions"] < len(session["calls"]) for session in sessions)
