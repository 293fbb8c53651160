"""agents/calibrate_latency.py on the toy world, end to end."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from fake_openai import FakeServer

from dmr_gym.errors import ConfigError
from dmr_gym.latency import Profile, load_profile
from dmr_gym.latency_sessions import PREFILL_DECODE, TimedEncoder
from dmr_gym.latency_tables import break_even_rows, latency_table
from tests.explained import check_recorded
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


def test_every_number_of_the_tables_is_one_of_the_results(out, tmp_path):
    """Prices, the router's time, the tokens from which on routing pays: the page of results takes the run."""
    check_recorded(out, tmp_path)


def test_the_tokens_from_which_on_routing_pays_by_hand():
    """20 ms a token against 10, 15 a decision: 15 / 10 tokens at K = 0, 15 / 5 at K = 0.5; none where low is slower."""
    linear = {"ms_per_token": {"a": 25.0, "b": 10.0, "c": 20.0}, "router_ms": 15.0}
    fitted = {name: dict.fromkeys("abc", 0.0) for name in PREFILL_DECODE}
    ends = {"token-linear": {"ms_per_token": {"b": [9.0, 11.5]}, "router_ms": [14.0, 16.0]}}
    profile = Profile("", "", {}, {}, {"token-linear": linear, "prefill-decode": fitted}, intervals=ends)
    profile = replace(profile, measurement={"sessions": 2, "concurrency": 1, "clock": "wall clock"})
    rows = break_even_rows(profile, "abc", (0.0, 0.5))
    assert [(row["precision"], row["tokens"]) for row in rows] == [("a", None), ("a", None), ("b", 1.5), ("b", 3.0)]
    table = latency_table(profile, "abc", rows)
    assert table.rows[1] == ("b", "10.00 [9.00, 11.50]", "0.000", "0.000", "0.000", "")
    assert table.rows[2][1] == "20.00"
    assert "A routing decision (Eq. 11): 15.00 [14.00, 16.00] ms." in table.notes[0]
    assert table.notes[1:] == (
        "Routing between a and c saves no time: a is no faster.",
        "Routing between b and c saves time in steps of more tokens than: 1.5 at K=0, 3.0 at K=0.5.",
    )


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
    assert "Routing between w4 and bf16 saves no time: w4 is no faster" in printed
    assert "Routing between w3 and bf16 saves time in steps of more tokens than: " in printed
    assert "dequantized" not in printed
    assert profile.dequantized == {}


def test_a_copy_that_was_measured_unpacked_is_labelled(recipe, tmp_path, capsys, monkeypatch):
    """In the profile, in the table, below it, and beside what is projected from it."""
    asked = []

    def dequantized(backend, precisions, device):
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
    assert "w4 is dequantized: unpacked at load; it was measured with unpacked weights." in printed
    assert "Warning: w3 is projected from a precision that was measured with unpacked weights." in printed
    check_recorded(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--project", "w3=w4"], r"NAME=SOURCE with two of the precisions \['low', 'high'\].* got w3=w4"),
        (["--project", "low"], "got low="),
        (["--project", "low=high", "high=low"], "SOURCE measured"),
        (["--block-tokens", "0"], "--block-tokens must be at least 1, got 0"),
        (["--switches"], "--switches times single calls.* --num-envs 1, got 4"),
        (["--switches", "--num-envs", "1"], "--switches times servers .backend kind vllm."),
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


def _served(
    serve, folder: Path, flags: str = "[]", device: str = "cuda", low: str = "low"
) -> tuple[list[str], list[FakeServer]]:
    """Options for the toy world behind two stand-ins of vLLM, with [serve] that says so; and the two."""
    signs = re.compile("left|right")  # the last one in the prompt, where it has any
    servers = [serve(name, lambda text, seed: f"go {['left', *signs.findall(text)][-1]}") for name in (low, "high")]
    urls = ", ".join(f'{name} = ["{server.url}"]' for name, server in zip(("low", "high"), servers, strict=True))
    config = folder / "served.toml"
    config.write_text(
        'task = "toy"\nprecisions = ["low", "high"]\nmax_steps = 5\n'
        "latency = {ms_per_token = {low = 1, high = 1}, router_ms = 0}\n"
        'encoder = {kind = "hash", dim = 8}\n'
        f'[backend]\nkind = "vllm"\nmodel = {{low = "{low}", high = "high"}}\nurls = {{{urls}}}\n'
        f'[serve]\nmodels = {{low = "{low}", high = "high"}}\nports = {{low = [1], high = [2]}}\nflags = {flags}\n'
        f'device = "{device}"\n'
    )
    return ["--config", str(config), "--resamples", "10", "--tasks", "2", *TINY], servers


def test_switches_are_timed_on_servers_and_set_beside_the_fit(recipe, serve, tmp_path, capsys):
    """Episodes of five steps have switches at 1, 2 and 4; the same command times none again; the file has the table."""
    options, _ = _served(serve, tmp_path, '["--block-size", "32"]')
    options += ["--out", str(tmp_path / "out"), "--num-envs", "1", "--switches"]
    recipe.main(options)
    files = sorted((tmp_path / "out" / "switches").iterdir())
    timed = [json.loads(path.read_text()) for path in files]
    assert [[one[0] for one in session[name]] for session in timed for name in ("low", "high")] == [[1, 2, 4]] * 4
    check_recorded(tmp_path / "out", tmp_path)
    table = (tmp_path / "out" / "tables.md").read_text().partition("## What a switch of")[2].splitlines()
    assert [line.split("|")[1:4] for line in table if line.startswith(("| low", "| high"))] == [
        [f" {name} ", f" {step} ", " 2 "] for name in ("low", "high") for step in (1, 2, 4)
    ]
    profile = str(tmp_path / "out" / "profile.toml")
    assert load_profile(profile).kinds["prefill-decode"]["block_tokens"] == 32
    stamps = [path.stat().st_mtime_ns for path in files]
    recipe.main([*options, "--block-tokens", "8"])
    assert [path.stat().st_mtime_ns for path in files] == stamps
    assert load_profile(profile).kinds["prefill-decode"]["block_tokens"] == 8
    assert "What a switch of precision costs" in capsys.readouterr().out


def test_servers_are_measured_with_prefix_caches_that_begin_empty(recipe, serve, tmp_path):
    """What a run plays shares a salt that no other run has; each switch has two of its own."""
    options, servers = _served(serve, tmp_path)
    salts = []
    for number in range(2):
        recipe.main([*options, "--out", str(tmp_path / str(number)), "--num-envs", "2"])
        salts.append({call.body["cache_salt"] for server in servers for call in server.completions})
        for server in servers:
            server.calls.clear()
    assert [len(each) for each in salts] == [1, 1]
    assert salts[0] != salts[1]
    recipe.main([*options, "--out", str(tmp_path / "2"), "--num-envs", "1", "--switches"])
    asked = [call.body["cache_salt"] for server in servers for call in server.completions]
    switches = 2 * 2 * 3  # tasks, precisions, steps
    assert sorted(asked.count(salt) for salt in set(asked))[:-1] == [2] * (2 * switches)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_copies_that_servers_on_a_cpu_unpack_are_labelled(recipe, serve, tmp_path, device):
    """W8A16 is served unpacked where [serve] says "cpu", so its latency is not that of 8 bits."""
    options, _ = _served(serve, tmp_path, device=device, low="embedded:alfworld/w8")
    recipe.main([*options, "--out", str(tmp_path / "out"), "--num-envs", "2"])
    found = json.loads((tmp_path / "out" / "results.json").read_text())["profile"]["dequantized"]
    assert found == ({} if device == "cuda" else {"low": "dequantized: no kernel for 8-bit weights on this CPU"})
    assert load_profile(str(tmp_path / "out" / "profile.toml")).dequantized == found


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        (("0.11.0", "0.11.0"), "0.11.0"),
        (("0.12.0", "0.11.0"), "0.11.0, 0.12.0"),
        (("", "0.11.0"), "0.11.0"),
        (("", ""), None),
    ],
)
def test_the_version_of_vllm_is_told_by_its_servers(recipe, serve, tmp_path, versions, told):
    """In the profile and in the results; servers that do not tell are left out."""
    options, servers = _served(serve, tmp_path)
    for server, version in zip(servers, versions, strict=True):
        server.version = version
    recipe.main([*options, "--out", str(tmp_path / "out"), "--num-envs", "2"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    profile = load_profile(str(tmp_path / "out" / "profile.toml"))
    assert [kept.get("vllm") for kept in (results["versions"], profile.versions)] == [told, told]


def test_decisions_are_timed_in_step_on_servers_too(recipe, serve, tmp_path, monkeypatch):
    """Rows of both episodes are embedded together, not one by one as the answers come."""
    sizes = []
    encode = TimedEncoder.encode

    def counting(self, texts):
        sizes.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(TimedEncoder, "encode", counting)
    recipe.main([*_served(serve, tmp_path)[0], "--out", str(tmp_path / "out"), "--num-envs", "2"])
    assert sizes == [1, *[2] * 6]  # warming up; starts and five steps
