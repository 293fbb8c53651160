"""Start the vLLM servers of a configuration file, and end them cleanly.

The file's table [serve] says which models, on which ports, with which flags (docs/serving.md). The recipe waits until
all are healthy, prints their addresses, and serves until it is stopped, or for as long as a command runs. A server that
dies after it had been healthy is started again, and callers wait for it.

    python agents/serve_pair.py --config configs/vllm-cpu.toml
    python agents/serve_pair.py --config configs/vllm-cpu.toml -- python agents/collect_kl.py --config configs/vllm-cpu.toml --out runs/kl-vllm --tasks 20

Whatever ends the recipe, a kill included, ends its servers with all their processes.
"""  # noqa: E501 (a command in one line)

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmr_gym.backends.vllm import read_api_key
from dmr_gym.command_line import recipe_parser, run
from dmr_gym.config import EnvConfig, load_config
from dmr_gym.errors import BackendError
from dmr_gym.serving import Servers, ServeSettings, read_serve_settings

STABLE_S = 60.0
"""A server that dies sooner after it was healthy is not started again: something is wrong with it."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__)
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="TOML file with a table [serve], such as configs/vllm-cpu.toml")
    add("--out", type=Path, default=Path("runs/serve"), metavar="DIR", help="folder of the logs (default: %(default)s)")
    add("command", nargs="*", metavar="COMMAND", help="after --: serve while this runs, and end with its status")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Start, serve, end."""
    args = parse_args(argv)
    settings = read_serve_settings(args.config)
    backend = load_config(EnvConfig, args.config).backend
    for note in mismatches(settings, backend):
        print(f"note: {note}")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    with Servers(settings, args.out, api_key=read_api_key(backend.get("api_key_env", ""))) as servers:
        for name, urls in servers.urls.items():
            print(f"{name}: {settings.models[name]} at {', '.join(urls)}", flush=True)
        if not args.command:
            print("serving; Ctrl-C ends", flush=True)
        status = serve(servers, args.command)
    if status:
        sys.exit(status)


def serve(servers: Servers, command: Sequence[str]) -> int:
    """Keep servers up while a command runs, or for good without one; returns the command's exit status.

    Raises:
        BackendError: a server dies within a minute of being healthy.
    """
    process = subprocess.Popen(command) if command else None
    healthy_since = dict.fromkeys((server.name for server in servers.servers), time.monotonic())
    try:
        while process is None or process.poll() is None:
            time.sleep(0.2)
            for server in servers.servers:
                if server.process is not None and server.process.poll() is None:
                    continue
                end = f"the server of {server.name} ended; the end of {server.log}:\n{server.tail()}"
                if time.monotonic() - healthy_since[server.name] < STABLE_S:
                    raise BackendError(end)
                print(f"{end}\nstarting it again", file=sys.stderr, flush=True)
                servers.start(server)
                servers.wait([server])
                healthy_since[server.name] = time.monotonic()
    finally:
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait()
    return process.returncode


def mismatches(settings: ServeSettings, backend: Mapping[str, Any]) -> list[str]:
    """Where [backend] of the same file would not reach these servers, which may be meant so."""
    if backend.get("kind") != "vllm":
        return [f"[backend] is of the kind {backend.get('kind')!r}, which asks no server"]
    notes = []
    for name, urls in settings.urls().items():
        called, model = backend.get("urls", {}).get(name, []), backend.get("model", {}).get(name)
        if sorted(called) != sorted(urls):
            notes.append(f"[backend] looks for {name} at {called}, served at {urls}")
        if model != settings.models[name]:
            notes.append(f"[backend] asks for {name} as {model!r}, served as {settings.models[name]!r}")
    return notes


if __name__ == "__main__":
    run(main)
