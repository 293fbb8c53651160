"""bench/: the driver finds every benchmark and records its figures, and the environment's benchmark measures."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest

from bench import bench_env, run


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
    figures = bench_env.main(["--env", "DMR-Toy-v0", "--steps", "32"])
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
