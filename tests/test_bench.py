"""bench/: the driver finds every benchmark and records its figures, and the environment's benchmark measures."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from bench import bench_env, bench_router, bench_training, run
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
def test_training_is_measured_cold_and_warm() -> None:
    """Warm asks neither LLM nor encoder anew, and the parts of an update add up to no more than its whole time."""
    options = ["--env", "DMR-Toy-v0", "--groups", "2", "--group-size", "2", "--num-envs", "4"]
    figures = bench_training.main([*options, "--n-layers", "1", "--d-model", "32", "--n-heads", "2", "--d-ff", "64"])
    for seconds in figures["grpo_s"].values():
        parts = {name: value for name, value in seconds.items() if name != "update"}
        assert set(parts) == {"embedding", "router", "forward", "backward", "rollout"}
        assert all(value >= 0 for value in parts.values())
        assert sum(parts.values()) <= seconds["update"]
    assert set(figures["ppo_steps_per_s"]) == {"cold", "warm"}
    assert figures["steps"] >= 4
