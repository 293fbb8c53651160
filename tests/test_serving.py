"""Servers of a configuration: how vLLM is started, what is waited for, and that nothing stays behind."""

from __future__ import annotations

import os
import runpy
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
from dmr_gym.serving.settings import IN_WORKER, WORKER_EXTENSION
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
