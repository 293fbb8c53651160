"""bench/: the driver finds every benchmark and records its figures, and the environment's benchmark measures."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from fake_openai import FakeServer, Serve

from bench import bench_env, bench_router, bench_training, bench_vllm, run
from dmr_gym.config import EnvConfig
from dmr_gym.encoders import HashEncoder
from dmr_gym.router import PrecisionRouter, RouterConfig


def test_driver_runs_what_is_named_and_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures that a benchmark returns are in the file, with the versions they were measured on."""
    monkeypatch.setitem(sys.modules, "bench_env", types.SimpleNamespace(main=lambda argv: {"answer": 42, "argv": argv}))
    run.main(["env", "--out", str(tmp_path / "bench.json")])
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["figures"] == {"env": {"answer": 42, "argv": []}}
    assert "numpy" in record["versions"]
    assert "== env" in capsys.readouterr().out


def test_driver_refuses_unknown_names(capsys: pytest.CaptureFixture[str]) -> None:
    """A benchmark that does not exist is an error that lists those that do."""
    with pytest.raises(SystemExit):
        run.main(["nothing"])
    assert "no benchmark nothing; there are alfworld, env" in capsys.readouterr().err


def test_environment_is_measured_alone_and_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """All four speeds are positive, and the parts of a step add up to no more than its whole time."""
    monkeypatch.setattr(bench_env, "WARM_STEPS", 64)
    figures = bench_env.main(["--env", "DMR-Toy-v0", "--steps", "32"])["DMR-Toy-v0"]
    assert len(figures["steps_per_second"]) == 4
    assert all(value > 0 for value in figures["steps_per_second"].values())
    for state in ("cold", "warm"):
        assert all(value >= 0 for value in figures["ms_per_step"][state].values())
    assert figures["ms_per_step"]["warm"]["LLM"] == 0


def test_stopwatch_adds_up_the_calls_of_one_object() -> None:
    """Attributes pass through, methods pass through with their time added under the object's name."""
    seconds = {"list": 0.0}
    inner = [1, 2]
    timed = bench_env.Timed(inner, seconds, "list")
    timed.append(3)
    assert inner == [1, 2, 3]
    assert seconds["list"] > 0


def test_alternating_counts_calls_after_the_warm_up() -> None:
    """Each action runs in every block; the first two calls of a block do not count."""
    calls: list[str] = []

    def action(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    seconds = bench_router.alternate({name: lambda name=name: action(name) for name in ("a", "b")}, 8)
    assert "".join(calls) == ("a" * 4 + "b" * 4) * 4
    assert seconds["a"] == [3, 4, 11, 12, 19, 20, 27, 28]
    assert seconds["b"] == [7, 8, 15, 16, 23, 24, 31, 32]


def test_histories_start_anew_when_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five decisions in histories of two rows leave one row in each."""
    monkeypatch.setattr(bench_router, "STEPS", 2)
    config = RouterConfig(embedding_dim=4, n_layers=1, d_model=8, n_heads=2, d_ff=8, max_length=2)
    histories = bench_router.Histories(PrecisionRouter(config).eval(), None, 3, time.perf_counter)
    assert all(histories.seconds() > 0 for _ in range(5))
    assert histories._state.lengths.tolist() == [1, 1, 1]


def test_every_way_of_embedding_has_the_same_router_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "with a miss" compares is the encoders alone, in the dtype that decides fastest."""
    behind: dict[bool, list[PrecisionRouter]] = {True: [], False: []}

    def histories(router: PrecisionRouter, encode: object, size: int, clock: object) -> types.SimpleNamespace:
        behind[encode is not None].append(router)
        return types.SimpleNamespace(seconds=lambda: 1.0)

    monkeypatch.setattr(bench_router, "Histories", histories)
    monkeypatch.setattr(bench_router, "is_fast", lambda dtype: dtype == "float16")
    monkeypatch.setattr(bench_router, "sentence_transformers_encode", lambda: lambda texts: texts)
    router = PrecisionRouter(RouterConfig(embedding_dim=4, n_layers=1, d_model=8, n_heads=2, d_ff=8)).eval()
    records = bench_router.measure_decisions(router, 1, time.perf_counter)
    assert next(r["name"] for r in records if r["kind"] == "with a miss") == "sentence-transformers"
    assert len(behind[True]) == 2 * 3
    assert {id(each) for each in behind[True]} == {id(behind[False][1])}
    assert behind[False][0] is router is not behind[False][1]


@pytest.mark.slow
def test_router_is_measured_in_every_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Each way of deciding has a median no longer than its 95th percentile, and the goals stand beside them."""
    figures = bench_router.main(["--decisions", "4", "--episodes", "16"])
    ways = {(record["kind"], record["histories"]) for record in figures["decisions"]}
    assert ways == set(bench_router.GOALS_MS)
    assert all(0 < record["p50_ms"] <= record["p95_ms"] for record in figures["decisions"])
    assert all(rate > 0 for rate in figures["decisions_per_second_in_one_pass"].values())
    assert figures["kl_st"]["epoch_s"] > 0
    assert figures["threads"] == torch.get_num_threads()
    assert "<= 15" in capsys.readouterr().out


@pytest.mark.slow
def test_training_is_measured_cold_and_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warm asks neither LLM nor encoder anew, the parts of an update add up to no more than its whole time.

    Every gradient step of GRPO has the KL to a reference router in it.
    """
    references: list[object] = []
    loss = bench_training.train_grpo.grpo_loss

    def spy(*args: object, **options: object) -> object:
        references.append(options["reference_logits"])
        return loss(*args, **options)

    monkeypatch.setattr(bench_training.train_grpo, "grpo_loss", spy)
    options = ["--env", "DMR-Toy-v0", "--groups", "2", "--group-size", "2", "--num-envs", "4"]
    figures = bench_training.main([*options, "--n-layers", "1", "--d-model", "32", "--n-heads", "2", "--d-ff", "64"])
    for seconds in figures["grpo_s"].values():
        parts = {name: value for name, value in seconds.items() if name != "update"}
        assert set(parts) == {"embedding", "router", "forward", "backward", "rollout"}
        assert all(value >= 0 for value in parts.values())
        assert sum(parts.values()) <= seconds["update"]
    assert len(references) == 4
    assert all(isinstance(each, torch.Tensor) for each in references)
    assert set(figures["ppo_steps_per_s"]) == {"cold", "warm"}
    assert figures["steps"] >= 4


def _served(serve: Serve, num_envs: int) -> tuple[EnvConfig, argparse.Namespace, list[FakeServer]]:
    """The toy world behind two stand-ins of vLLM that walk as the prompt's last sign says, each call in 5 ms."""
    way = re.compile(r"(left|right)\.\n>$")
    servers = [serve(name, lambda prompt, seed: f"go {way.search(prompt)[1]}") for name in ("low", "high")]
    for server in servers:
        server.delay_s = 0.005
    backend = {
        "kind": "vllm",
        "model": {server.model: server.model for server in servers},
        "urls": {server.model: [server.url] for server in servers},
    }
    latency = {"ms_per_token": {"low": 1.0, "high": 1.0}, "router_ms": 0.0}
    config = EnvConfig(
        task="toy",
        precisions=("low", "high"),
        backend=backend,
        latency=latency,
        max_steps=6,
        encoder={"kind": "hash", "dim": 8},
    )
    return config, argparse.Namespace(panel="test", num_envs=num_envs, episodes=6, rounds=2), servers


def test_raw_calls_are_those_of_the_rollout(serve: Serve) -> None:
    """The same bodies in the same order but for the salt, which is another in every round; tokens are counted alike."""
    config, args, servers = _served(serve, 4)
    played = bench_vllm.play(config, HashEncoder(8), args, in_step=False)
    # Calls that were under way when enough episodes had ended are no part of the round.
    asked = [[call.body for call in server.completions] for server in servers]
    for server in servers:
        server.calls.clear()
    raw = bench_vllm.send_raw(config, played.calls, 1)
    sent = [[call.body for call in server.completions] for server in servers]
    assert len(played.calls) == sum(map(len, sent)) >= 6 * 6
    assert [call.request for call in raw.calls] == [call.request for call in played.calls]
    assert [call.tokens for call in raw.calls] == [call.tokens for call in played.calls]
    salts = [{body.pop("cache_salt") for bodies in both for body in bodies} for both in (asked, sent)]
    assert all(len(salt) == 1 for salt in salts)
    assert salts[0] != salts[1]
    for before, after in zip(asked, sent, strict=True):
        assert all(body in before for body in after)
    assert sum(played.parts.values()) == pytest.approx(played.seconds)
    assert all(seconds > 0 for seconds in played.parts.values())
    assert played.in_flight > raw.in_flight
    assert raw.in_flight <= 1


def test_rollouts_and_raw_calls_take_turns_and_are_compared_round_by_round(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rounds of three ways; the ratio is that of rounds side by side, not of the medians."""
    config, args, _ = _served(serve, 4)
    rounds = bench_vllm.measure(config, args)
    assert {way: len(each) for way, each in rounds.items()} == dict.fromkeys(bench_vllm.WAYS, 2)
    figures = bench_vllm.summarize(rounds)
    bench_vllm.show(figures, args)
    assert f"(goal >= 90%: {'reached' if figures['rollout']['of_raw'] >= 0.9 else 'missed'})" in capsys.readouterr().out
    call = bench_vllm.Call(rounds["raw"][0].calls[0].request, 10, 1.0)
    parts = {"waiting": 0.5, "encoder": 0.25, "environment": 0.25}
    by_hand = {
        "rollout": [bench_vllm.Round([call], 1.0, parts), bench_vllm.Round([call], 4.0, parts)],
        "raw": [bench_vllm.Round([call], 0.5, {}), bench_vllm.Round([call], 4.0, {})],
        "in step": [bench_vllm.Round([call], 2.0, parts)] * 2,
    }
    found = bench_vllm.summarize(by_hand)
    assert found["rollout"]["tokens_per_s_range"] == [2.5, 10.0]
    assert found["rollout"]["of_raw_range"] == [0.5, 1.0]
    assert found["rollout"]["of_raw"] == 0.75
    assert found["raw"]["calls_in_flight"] == pytest.approx((2 + 0.25) / 2)


def test_a_benchmark_of_servers_says_so_where_there_is_no_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line with the way out, and the same in the figures."""
    monkeypatch.chdir(tmp_path)  # without a .venv-vllm
    figures = bench_vllm.main([])
    assert "has no vLLM: `make vllm` builds .venv-vllm" in figures["skipped"]
    assert capsys.readouterr().out == f"skipped: {figures['skipped']}\n"
