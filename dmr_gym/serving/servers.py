"""Start servers, wait until they are healthy, end them."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from dmr_gym.backends.kernels import served_dequantized
from dmr_gym.errors import BackendError, ConfigError, MissingDependency
from dmr_gym.serving.settings import ServeSettings, check_interpreter

GUARD = Path(__file__).with_name("guard.py")
TAIL_LINES = 25
POLL_S = 0.5


@dataclass
class Server:
    """One server.

    Attributes:
        precision: of its model.
        index: which of the precision's servers it is.
        port: it listens on.
        log: file with all that it prints.
        process: its guard; None while it is not running.
    """

    precision: str
    index: int
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """For people: precision and port."""
        return f"{self.precision} on port {self.port}"

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        return "\n".join(lines[-TAIL_LINES:])


class Servers:
    """The servers of a table [serve], for the length of a ``with`` block.

    They end with the block, and with this process, in whatever way it ends. Linux and macOS alone.

    Args:
        settings: which servers, and how they start.
        folder: for their logs, and for dequantized copies.
        api_key: that they ask of callers; None for none.
        progress: whether a bar shows how many are healthy.
        say: called with news for people.

    Raises:
        ConfigError: no vLLM, or a port that is taken.
        BackendError: a server ended, or was not healthy in time; the message has the end of its log.
    """

    def __init__(
        self,
        settings: ServeSettings,
        folder: Path,
        *,
        api_key: str | None = None,
        progress: bool = True,
        say: Callable[[str], None] = print,
    ) -> None:
        self.settings = settings
        self._folder = folder
        self._api_key = api_key
        self._progress = progress
        self._say = say
        self._places: dict[str, str] = {}
        self.servers = [
            Server(name, index, port, folder / f"{name}-{port}.log")
            for name in settings.models
            for index, port in enumerate(settings.ports[name])
        ]

    @property
    def urls(self) -> dict[str, list[str]]:
        """Base addresses by precision, as ``urls`` of the backend has them."""
        return self.settings.urls()

    def __enter__(self) -> Servers:
        check_interpreter(self.settings.interpreter)
        for server in self.servers:
            self._check_port(server)
        for name, model in self.settings.models.items():
            self._places[name] = self._place(name, model)
        try:
            # On a GPU each measures how much memory is left, which another one that starts would disturb.
            groups = [self.servers] if self.settings.device == "cpu" else [[server] for server in self.servers]
            for group in groups:
                for server in group:
                    self.start(server)
                self.wait(group)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, server: Server) -> None:
        """Start one server that is not running; `wait` tells when it is healthy."""
        self.stop([server])  # one that died leaves a pipe to close
        settings, name = self.settings, server.precision
        server.log.parent.mkdir(parents=True, exist_ok=True)
        command = settings.command(name, server.port, self._places[name])
        guard = [sys.executable, "-S", str(GUARD), str(settings.grace_s), *command]
        with server.log.open("wb") as log:
            server.process = subprocess.Popen(
                guard,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=settings.environment(name, server.index, self._api_key),
                start_new_session=True,  # an interrupt of the terminal is ours to pass on
            )

    def wait(self, servers: list[Server] | None = None) -> None:
        """Wait until servers are healthy; all of them without an argument.

        Raises:
            BackendError: one ended, or took longer than start_timeout_s.
        """
        from tqdm import tqdm

        waiting = list(self.servers if servers is None else servers)
        end = time.monotonic() + self.settings.start_timeout_s
        # A log file gets a line every ten seconds, not a screenful.
        interval, shown = 0.5 if sys.stderr.isatty() else 10.0, 0.0
        with tqdm(total=len(waiting), desc="healthy servers", disable=not self._progress, mininterval=interval) as bar:
            while waiting:
                for server in list(waiting):
                    if self.is_healthy(server):
                        waiting.remove(server)
                        bar.update()
                    elif server.process is None or server.process.poll() is not None:
                        status = None if server.process is None else server.process.returncode
                        raise BackendError(
                            f"the server of {server.name} ended with status {status} while it started; the end of "
                            f"{server.log}:\n{server.tail()}"
                        )
                if waiting and time.monotonic() > end:
                    names = ", ".join(server.name for server in waiting)
                    raise BackendError(
                        f"not healthy within {self.settings.start_timeout_s:g} s: {names}; raise start_timeout_s of "
                        f"[serve] if it is only slow. The end of {waiting[0].log}:\n{waiting[0].tail()}"
                    )
                if waiting and time.monotonic() - shown > interval:
                    shown = time.monotonic()
                    bar.set_postfix_str("waiting for " + ", ".join(server.name for server in waiting))
                if waiting:
                    time.sleep(POLL_S)

    def is_healthy(self, server: Server) -> bool:
        """Whether a server answers that it can work."""
        try:
            import httpx
        except ImportError as error:
            raise MissingDependency("httpx", "vllm", "agents/serve_pair.py") from error
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host, self.settings.host)
        host = f"[{host}]" if ":" in host else host
        try:
            return httpx.get(f"http://{host}:{server.port}/health", timeout=5.0, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, servers: list[Server] | None = None) -> None:
        """End servers, and wait until they are gone; all of them without an argument."""
        chosen = self.servers if servers is None else servers
        running = [server.process for server in chosen if server.process is not None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        for server in chosen:
            if server.process is not None:
                self._wait_for_end(server.process)
                server.process = None

    def _wait_for_end(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(self.settings.grace_s + 10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()

    def _check_port(self, server: Server) -> None:
        family = socket.AF_INET6 if ":" in self.settings.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.settings.host, server.port))
            except OSError as error:
                raise ConfigError(
                    f"[serve] cannot listen on {self.settings.host}:{server.port} for {server.precision} "
                    f"({error.strerror}): end what runs there, or give another port in ports, and in urls of [backend]"
                ) from error

    def _place(self, name: str, model: str) -> str:
        """Where vLLM finds a model: an absolute folder, a copy that it can compute with, or a hub id."""
        if not model.startswith("embedded:") and not Path(model).expanduser().is_dir():
            return model
        from dmr_gym.backends.checkpoint import resolve_checkpoint

        folder = resolve_checkpoint(model).absolute()
        why = served_dequantized(folder, self.settings.device)
        if why is None:
            return str(folder)
        from dmr_gym.serving.dequantized import dequantized_copy

        self._say(f"{name}: {model} is served {why}; unpacked to 16 bits, at the speed of those")
        return str(dequantized_copy(folder, self._folder / "dequantized"))


def on_free_ports(settings: ServeSettings) -> ServeSettings:
    """The same servers on ports of 127.0.0.1 that are free now, for tests and benchmarks.

    On a CPU each gets a core of those that this process may use, in turn.
    """
    ports = {name: [free_port() for _ in given] for name, given in settings.ports.items()}
    settings = replace(settings, host="127.0.0.1", ports=ports)
    if settings.device != "cpu" or not hasattr(os, "sched_getaffinity"):
        return settings
    cores = itertools.cycle(sorted(os.sched_getaffinity(0)))
    return replace(settings, cores={name: [str(next(cores)) for _ in given] for name, given in ports.items()})


def free_port() -> int:
    """A port of 127.0.0.1 that is free now, for tests and benchmarks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
