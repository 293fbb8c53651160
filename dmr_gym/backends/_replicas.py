"""The servers of one precision: which of them a call goes to, when it is tried again, and what an error should say.

Three kinds of failure:

* a server answers that it cannot now (429, 5xx), or not in time: tried again ``max_retries`` times;
* a server that has answered before takes no connection, or drops one: it is being restarted, and the call goes to
  another server of the precision, or waits up to ``recovery_s``. One that never answered is a mistake in the settings
  and gets ``max_retries``;
* anything else is a mistake that no repetition mends: `BackendError` at once.

Everything here runs in one event loop, so plain attributes need no locks.
"""

from __future__ import annotations

import json
import logging
import random
import re
import ssl
import time
from asyncio import sleep
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import httpx

from dmr_gym.errors import BackendError

LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|::1")
KEPT_SESSIONS = 10_000
CONNECT_TIMEOUT_S = 10.0
LONGEST_BACKOFF_S = 8.0
KEEP_ALIVE_S = 4.0
"""Less than the 5 s after which vLLM closes an idle connection: none is used that is just being closed."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call is tried.

    Attributes:
        timeout_s: seconds until an answer counts as missing.
        max_retries: repetitions after answers that say "not now", and after timeouts.
        recovery_s: seconds to wait for a server that has answered before and is gone.
        backoff_s: seconds before the first repetition; they double each time, to at most 8, and vary at random between
            half and all of that.
    """

    timeout_s: float = 120.0
    max_retries: int = 5
    recovery_s: float = 300.0
    backoff_s: float = 0.5

    def delay_s(self, attempt: int) -> float:
        """Seconds before repetition number ``attempt``, counted from 1."""
        longest = min(self.backoff_s * 2.0 ** min(attempt - 1, 30), LONGEST_BACKOFF_S)
        return longest * random.uniform(0.5, 1.0)


@cache
def _tls() -> ssl.SSLContext:
    """How servers are checked under https: read once, since reading the list of authorities takes milliseconds."""
    return httpx.create_ssl_context()


class Server:
    """One address, ending in /v1, and its connections."""

    def __init__(self, url: str, key: str | None, patience: Patience) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self.outstanding = 0
        self.reached = False
        self.down_until = 0.0
        # A proxy of the environment cannot reach this machine's own loopback.
        here = LOOPBACK.fullmatch(urlsplit(url).hostname or "") is not None
        self.client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(patience.timeout_s, connect=min(patience.timeout_s, CONNECT_TIMEOUT_S), pool=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
            trust_env=not here,
            verify=_tls(),
        )

    def address(self, path: str) -> str:
        """The whole address of a path: "/completions" below /v1, "//tokenize" beside it."""
        return self.url.removesuffix("/v1") + path[1:] if path.startswith("//") else self.url + path

    def redact(self, text: str) -> str:
        """What it said, without the API key, in case it says that back. To be called before a text is cut."""
        return text.replace(self._key, "***") if self._key else text


class Lease:
    """The server that a call has now, and the session that moves with it."""

    def __init__(self, server: Server, session: str) -> None:
        self.server = server
        self.session = session
        server.outstanding += 1

    def move(self, server: Server) -> None:
        """Go to another server."""
        self.release()
        self.server = server
        server.outstanding += 1

    def release(self) -> None:
        """Leave the server to others."""
        self.server.outstanding -= 1


class Replicas:
    """Servers of one model.

    A session stays with the server that it was given, whose prefix cache knows its prompts. A new one, and a call
    without, gets the server with the fewest calls.

    Args:
        precision: its name, for messages.
        model: name under which the servers know the model.
        urls: base addresses, ending in /v1.
        patience: see `Patience`.
        key: API key, or None. It is in no message.
        clock: seconds.
    """

    def __init__(
        self,
        precision: str,
        model: str,
        urls: Sequence[str],
        patience: Patience,
        key: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.precision = precision
        self.model = model
        self.servers = [Server(url, key, patience) for url in urls]
        self._patience = patience
        self._clock = clock
        self._sessions: OrderedDict[str, Server] = OrderedDict()

    async def close(self) -> None:
        """Close all connections."""
        for server in self.servers:
            await server.client.aclose()

    def knows(self, session: str) -> bool:
        """Whether a session has a server already."""
        return session in self._sessions

    @contextmanager
    def lease(self, session: str = "") -> Iterator[Lease]:
        """Give a call its server."""
        lease = Lease(self._sessions.get(session) or self._idlest(), session)
        self._remember(session, lease.server)
        try:
            yield lease
        finally:
            lease.release()

    async def post(self, lease: Lease, path: str, body: dict[str, Any]) -> tuple[Any, float]:
        """Send a call, as often as it takes.

        Args:
            lease: where it goes first; moved when that server is gone and another is there.
            path: "/completions", or "//tokenize" for one beside /v1.
            body: JSON object; the model's name is added.

        Returns:
            The answer's JSON, and the seconds from sending it to having it: of the last attempt alone.

        Raises:
            BackendError: see the module.
        """
        body = {"model": self.model, **body}
        attempt = answered = 0
        gone_since: float | None = None
        while True:
            server, start = lease.server, self._clock()
            attempt += 1
            wait = self._patience.delay_s(attempt)
            try:
                response = await server.client.post(server.address(path), json=body)
                seconds = self._clock() - start
                problem, is_gone = _problem(response, server), False
                if not problem:
                    data = _json(response, server)
                    if not _is_cut_off(data):
                        self._found(server)
                        return data, seconds
                    problem, is_gone = "it broke its answer off", True
                elif not _is_temporary(response.status_code):
                    raise BackendError(await self._refusal(server, path, response.status_code, problem))
                wait = max(wait, _retry_after_s(response))
            except httpx.TransportError as error:
                problem = str(error) or type(error).__name__
                is_gone = isinstance(error, httpx.ConnectTimeout) or not isinstance(error, httpx.TimeoutException)
                if not is_gone:
                    problem = f"no answer within {self._patience.timeout_s:g} s"
            if is_gone and server.reached:
                gone_since = start if gone_since is None else gone_since
                if self._clock() - gone_since > self._patience.recovery_s:
                    raise BackendError(
                        f"the server at {server.url} went away ({problem}) and did not return within "
                        f"{self._patience.recovery_s:g} s: start it again and repeat the call; nothing has changed"
                    )
            else:
                answered += 1
                if answered > self._patience.max_retries:
                    raise BackendError(self._given_up(server, problem, is_gone, answered))
            if is_gone:
                self._lost(server, problem, wait)
                lease.move(self._idlest())
                self._remember(lease.session, lease.server)
            if lease.server is server or lease.server.down_until > self._clock():
                await sleep(wait)

    async def get(self, server: Server, path: str) -> Any:
        """Ask one server once; None where it does not answer with JSON."""
        try:
            response = await server.client.get(server.address(path))
            return response.json() if response.status_code == 200 else None
        except (httpx.TransportError, ValueError):
            return None

    async def served_models(self, server: Server) -> list[dict[str, Any]]:
        """What /v1/models lists; nothing where the server has no such list."""
        data = await self.get(server, "/models")
        found = data.get("data") if isinstance(data, dict) else None
        return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []

    def _idlest(self) -> Server:
        now = self._clock()
        return min(self.servers, key=lambda s: (max(s.down_until - now, 0.0), s.outstanding))

    def _remember(self, session: str, server: Server) -> None:
        if session:
            self._sessions[session] = server
            self._sessions.move_to_end(session)
            if len(self._sessions) > KEPT_SESSIONS:
                self._sessions.popitem(last=False)

    def _lost(self, server: Server, problem: str, wait: float) -> None:
        if server.reached and not server.down_until:
            _log.warning("%s of precision %s went away (%s); waiting for it", server.url, self.precision, problem)
        server.down_until = self._clock() + wait

    def _found(self, server: Server) -> None:
        if server.reached and server.down_until:
            _log.warning("%s of precision %s is back", server.url, self.precision)
        server.reached, server.down_until = True, 0.0

    def _given_up(self, server: Server, problem: str, is_gone: bool, attempts: int) -> str:
        if is_gone:
            return (
                f"no server answers at {server.url} ({problem}): start it (agents/serve_pair.py starts those of a "
                f"config), or correct urls.{self.precision} of the backend"
            )
        return (
            f"the server at {server.url} failed {attempts} times ({problem}): look at its log; lower max_concurrency "
            "of the backend if it is overloaded, raise timeout_s if it is slow"
        )

    async def _refusal(self, server: Server, path: str, status: int, said: str) -> str:
        """Word an answer that no repetition mends, with what to change."""
        where = f"the server at {server.url}"
        lowered = said.lower()
        if status in (401, 403):
            return f"{where} refuses the API key ({said}): put it into an environment variable, named by api_key_env"
        if status == 404:
            served = [str(entry.get("id")) for entry in await self.served_models(server)]
            if served and self.model not in served:
                return (
                    f"{where} has no model {self.model!r}; it serves {served}: set model.{self.precision} of the "
                    "backend to one of them, or start it with --served-model-name"
                )
            return f"{where} has nothing at {server.address(path)}: URLs end in /v1, and vLLM's own paths are needed"
        if re.search(r"context length|max_model_len|maximum model length|longer than the maximum", lowered):
            return (
                f"the prompt and its answer do not fit into the context of {where} ({said}): start it with a larger "
                "--max-model-len, or lower max_tokens, max_steps or the prompt's history_length"
            )
        if "chat template" in lowered:
            return f"{where} cannot render chat turns ({said}): use text prompts, or start it with --chat-template FILE"
        if "logprobs" in lowered:
            return f"{where} gives fewer log-probabilities ({said}): start it with --max-logprobs -1, or lower top_k"
        return f"{where} refuses the call with status {status}: {said}"


def _problem(response: httpx.Response, server: Server) -> str:
    """What a server says is wrong; "" if nothing is."""
    return "" if response.status_code < 400 else _message(response, server) or "no reason given"


def _is_temporary(status: int) -> bool:
    return status in (408, 425, 429) or status >= 500


def _is_cut_off(data: Any) -> bool:
    """Whether a server that shuts down ended an answer early, which vLLM calls "abort"."""
    choices = data.get("choices") if isinstance(data, dict) else None
    reasons = [choice.get("finish_reason") for choice in choices or [] if isinstance(choice, dict)]
    return bool({"abort", "error"} & set(reasons))


def _json(response: httpx.Response, server: Server) -> Any:
    try:
        return response.json()
    except ValueError as error:
        raise BackendError(
            f"{server.url} is no OpenAI-compatible server: it answered {server.redact(response.text)[:80]!r}"
        ) from error


def _message(response: httpx.Response, server: Server) -> str:
    """The reason inside an error, in any of the forms that servers give it."""
    try:
        data = json.loads(response.text)
    except ValueError:
        return server.redact(response.text.strip())[:300]
    for key in ("error", "message", "detail"):
        if isinstance(data, dict) and data.get(key):
            data = data[key]
    return server.redact(data) if isinstance(data, str) else server.redact(json.dumps(data))[:300]


def _retry_after_s(response: httpx.Response) -> float:
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), 60.0)
    except ValueError:
        return 0.0
