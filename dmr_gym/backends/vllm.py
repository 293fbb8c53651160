"""LLM copies behind vLLM, or another OpenAI-compatible server: one or more servers a precision.

Text prompts go to ``/v1/completions`` as they are, chat turns to ``/v1/chat/completions``, where the server renders
them with its model's template. A server adds defaults of its model to what a call does not say (top_k = 20 for Qwen3),
so a call says everything: its answer has the distribution that `SamplingParams` describes.

Next-token distributions along a given completion come from calls of one new token, one a position, with the prompt and
the completion so far as token ids; the server's prefix cache computes each token once. Entries are named by token ids:
the texts by which servers name them else are not unique.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dmr_gym.backends._event_loop import EventLoop, Once, all_of, result_of
from dmr_gym.backends._openai import (
    completion_fields,
    next_token_fields,
    prompt_fields,
    read_completion,
    read_logprobs,
    read_token_ids,
    read_token_text,
    to_distributions,
)
from dmr_gym.backends._replicas import Lease, Patience, Replicas
from dmr_gym.backends.streaming import NOTHING_UNDER_WAY, Stream, generate_each
from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.types import Completion, DistributionRequest, Request, TokenDistributions


class VLLMBackend:
    """Asks servers, all requests of a batch at once.

    ``Completion.seconds`` is the wall clock of the call that answered, from sending it to having its answer, the
    server's queue included; failed attempts before it are not part. Threads may share an instance. Copies and pickles
    carry the settings, without the API key, and connect anew.

    Args:
        model: precision -> name under which its servers know the model, the lowest precision first.
        urls: precision -> base addresses of its servers, each ending in "/v1".
        patience: timeouts and retries.
        max_concurrency: most calls in flight at once, over all servers.
        api_key_env: environment variable with the API key of all servers; "" sends none.
        chat_template_options: variables for the chat template, such as {"enable_thinking": False}. Part of the digest.
        cache_salt: calls find in a server's prefix cache what calls with the same salt have left there, and nothing
            else: a new salt begins cold, as measurements have to. It changes no answer. "" sends none.
        clock: seconds for `Completion.seconds`.

    Raises:
        ConfigError: ``api_key_env`` names no variable of the environment.
    """

    def __init__(
        self,
        model: Mapping[str, str],
        urls: Mapping[str, Sequence[str]],
        patience: Patience | None = None,
        *,
        max_concurrency: int = 64,
        api_key_env: str = "",
        chat_template_options: Mapping[str, Any] | None = None,
        cache_salt: str = "",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = dict(model)
        self._urls = {name: tuple(urls[name]) for name in self._model}
        self._patience = patience or Patience()
        self._max_concurrency = max_concurrency
        self._api_key_env = api_key_env
        self._template_options = dict(chat_template_options or {})
        self._salt = {"cache_salt": cache_salt} if cache_salt else {}
        self._clock = clock
        self._lock = threading.Lock()
        self._open: _Open | None = None
        read_api_key(api_key_env)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _open=None)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names in ascending precision."""
        return tuple(self._model)

    def digest(self, precision: str) -> str:
        """Content address of a copy.

        Where a server names a folder of this machine, its files count. Otherwise the name does: a model that changes
        then needs another name, or another cache.

        Raises:
            BackendError: an unknown precision, no server answers, or it has no such model.
        """
        link = self._link()
        root = link.loop.run(_root(link.of(precision)))
        parts = ["vllm", 1, self._model[precision], _content(root), self._template_options]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete every prompt, all at once.

        Raises:
            BackendError: an unknown precision, settings out of range, or servers that cannot answer; the message says
                what to change.
        """
        found = dict(pair for group in generate_each(self, requests) for pair in group)
        return [found[i] for i in range(len(requests))]

    def stream(self) -> Stream:
        """Open a stream of answers that come as the servers have them; see `Stream`."""
        return _Answers(self._link, lambda request: completion_fields(request, self._template_options) | self._salt)

    def token_distributions(self, requests: Sequence[DistributionRequest]) -> list[TokenDistributions]:
        """Score completions under teacher forcing.

        Prompt and completion are tokenized apart and joined. Without ``top_k`` the whole vocabulary comes back where
        the server's --max-logprobs allows it, and otherwise as many entries as it does, see `logprob_limit`.

        Raises:
            BackendError: as `generate`; also ``top_k`` below 1 or above what a server allows, or no log-probabilities.
        """
        link = self._link()
        for request in requests:
            link.of(request.precision)
            if request.top_k is not None and request.top_k < 1:
                raise BackendError(f"top_k must be at least 1 or None, got {request.top_k}")
        prompts = [prompt_fields(request.prompt, self._template_options) for request in requests]
        calls = [link.score(r, prompt) for r, prompt in zip(requests, prompts, strict=True)]
        return link.loop.run(all_of(calls))

    def logprob_limit(self, precision: str) -> int | None:
        """Most entries a token that a precision's servers give; None for the whole vocabulary. Asked once.

        Raises:
            BackendError: an unknown precision, or a server that gives no log-probabilities.
        """
        link = self._link()
        return link.loop.run(link.limit(link.of(precision)))

    def server_versions(self) -> tuple[str, ...]:
        """Versions of vLLM that its servers tell, each once; nothing of servers that do not tell."""
        link = self._link()
        servers = [(link.of(name), server) for name in self._model for server in link.of(name).servers]
        answers = link.loop.run(all_of([replicas.get(server, "//version") for replicas, server in servers]))
        told = {answer.get("version") for answer in answers if isinstance(answer, dict)}
        return tuple(sorted(version for version in told if isinstance(version, str)))

    def close(self) -> None:
        """Close all connections; the next call opens new ones."""
        with self._lock:
            if self._open is not None:
                self._open.finalize()
            self._open = None

    def _link(self) -> _Open:
        with self._lock:
            if self._open is None or not self._open.loop.is_usable:
                key = read_api_key(self._api_key_env)
                replicas = {
                    name: Replicas(name, model, self._urls[name], self._patience, key, self._clock)
                    for name, model in self._model.items()
                }
                self._open = _Open(replicas, self._max_concurrency, self._salt)
                self._open.finalize = weakref.finalize(self, self._open.loop.close)
            return self._open


def read_api_key(variable: str) -> str | None:
    """The API key in an environment variable; None where "" names none.

    Raises:
        ConfigError: the variable is not set.
    """
    if not variable:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(
            f"api_key_env names the environment variable {variable}, which is not set: export it with the servers' API "
            "key, or leave api_key_env out where they want none"
        )
    return key


class _Open:
    """Servers and the loop in which they are called.

    Attributes:
        loop: runs everything below.
        finalize: closes it, at the latest when the backend goes.
    """

    finalize: Callable[[], object]

    def __init__(self, replicas: Mapping[str, Replicas], max_concurrency: int, salt: dict[str, str]) -> None:
        self._replicas = replicas
        self._salt = salt
        self._free = asyncio.Semaphore(max_concurrency)
        self._limits: Once[str, int | None] = Once()
        self._texts: Once[tuple[str, int], str] = Once()
        self.loop = EventLoop(self._close)

    def of(self, precision: str) -> Replicas:
        """The servers of a precision."""
        if precision not in self._replicas:
            raise BackendError(f"no precision {precision!r}; this backend has {list(self._replicas)}")
        return self._replicas[precision]

    async def complete(self, replicas: Replicas, request: Request, body: dict[str, Any]) -> Completion:
        """Complete one prompt."""
        path = "/completions" if "prompt" in body else "/chat/completions"
        with replicas.lease(request.session) as lease:
            async with self._free:
                data, seconds = await replicas.post(lease, path, body)
            return read_completion(data, seconds, lease.server.url, lease.server.redact)

    async def score(self, request: DistributionRequest, prompt: dict[str, Any]) -> TokenDistributions:
        """Score one completion, all of it at one server."""
        replicas = self.of(request.precision)
        top_k = request.top_k if request.top_k is not None else await self.limit(replicas)
        special = {"add_generation_prompt": True} if "messages" in prompt else {"add_special_tokens": True}
        with replicas.lease(request.session) as lease:
            url, redact = lease.server.url, lease.server.redact
            before = read_token_ids(await self._ask(replicas, lease, "//tokenize", prompt | special), url, redact)
            text = {"prompt": request.completion, "add_special_tokens": False}
            answer = read_token_ids(await self._ask(replicas, lease, "//tokenize", text), url, redact)

            async def row(t: int) -> dict[int, float]:
                body = next_token_fields(before + answer[:t], top_k) | self._salt
                return read_logprobs(await self._ask(replicas, lease, "/completions", body), url, redact)

            async def text_of(token: int) -> str:
                data = await self._ask(replicas, lease, "//detokenize", {"tokens": [token]})
                return read_token_text(data, url, redact)

            # The longest prefix goes first, alone: all others find theirs in the server's cache.
            last = [await row(len(answer) - 1)] if answer else []
            rows = await all_of([row(t) for t in range(len(answer) - 1)]) + last
            texts = [await self._texts.get((replicas.precision, token), partial(text_of, token)) for token in answer]
        return to_distributions(answer, texts, rows, top_k, url)

    async def limit(self, replicas: Replicas) -> int | None:
        """Entries a token that the servers allow, found by asking one for all of them."""

        async def ask() -> int | None:
            with replicas.lease() as lease:
                try:
                    data = await self._ask(replicas, lease, "/completions", next_token_fields("a", None))
                    read_logprobs(data, lease.server.url, lease.server.redact)
                except BackendError as error:
                    allowed = re.search(r"max allowed:? (\d+)", str(error))
                    if allowed is None or int(allowed[1]) < 1:
                        raise
                    return int(allowed[1])
            return None

        return await self._limits.get(replicas.precision, ask)

    async def _ask(self, replicas: Replicas, lease: Lease, path: str, body: dict[str, Any]) -> Any:
        async with self._free:
            return (await replicas.post(lease, path, body))[0]

    async def _close(self) -> None:
        for replicas in self._replicas.values():
            await replicas.close()


class _Answers:
    """The stream of a `VLLMBackend`.

    Args:
        link: gives the backend's open connections.
        body: of the call for a request.
    """

    def __init__(self, link: Callable[[], _Open], body: Callable[[Request], dict[str, Any]]) -> None:
        self._link, self._body = link, body
        self._open: dict[int, Future[Completion]] = {}
        self._arrived: _Arrivals = SimpleQueue()

    def send(self, requests: Mapping[int, Request]) -> None:
        """Ask; see `Stream.send`."""
        link = self._link()
        calls = {i: (link.of(r.precision), r, self._body(r)) for i, r in requests.items()}
        # Sessions go to their servers first: only then is it known which of those has the fewest calls.
        for i in sorted(calls, key=lambda i: not calls[i][0].knows(calls[i][1].session)):
            self._open[i] = link.loop.start(link.complete(*calls[i]))
            self._open[i].add_done_callback(partial(_note, self._arrived, i))

    def receive(self) -> list[tuple[int, Completion]]:
        """Wait; see `Stream.receive`."""
        if not self._open:
            raise BackendError(NOTHING_UNDER_WAY)
        group = [self._arrived.get()]
        while not self._arrived.empty():
            group.append(self._arrived.get())
        answers = [(i, future.result()) for i, future in group if _has_answer(future)]
        for i, _ in answers:
            del self._open[i]
        failed = [(i, future) for i, future in group if not _has_answer(future)]
        if answers:  # what came before an error is handed out first
            for entry in failed:
                self._arrived.put(entry)
            return answers
        self.close()
        result_of(failed[0][1])
        raise AssertionError("unreachable: a call that failed has an error")

    def close(self) -> None:
        """Give up what is under way."""
        given_up, self._open, self._arrived = self._open, {}, SimpleQueue()
        for future in given_up.values():
            future.cancel()


_Arrivals = SimpleQueue[tuple[int, Future[Completion]]]


def _note(arrived: _Arrivals, i: int, future: Future[Completion]) -> None:
    """Tell of an answer; one that was given up is told to the queue of its time, which nobody reads any more."""
    arrived.put((i, future))


def _has_answer(future: Future[Completion]) -> bool:
    return not future.cancelled() and future.exception() is None


async def _root(replicas: Replicas) -> str:
    """What the first server that answers calls the origin of its model: a folder or a hub id."""
    found = await _listed_root(replicas)
    if found is None:
        # Nobody answered, or not with this model: a small call says which, and waits for servers that restart.
        with replicas.lease() as lease:
            await replicas.post(lease, "/completions", {"prompt": "a", "max_tokens": 1})
        found = await _listed_root(replicas)
    return found or replicas.model


async def _listed_root(replicas: Replicas) -> str | None:
    """The origin of the model in the first list of models that has it; None where no list does."""
    for server in replicas.servers:
        for entry in await replicas.served_models(server):
            if entry.get("id") == replicas.model:
                return str(entry.get("root") or replicas.model)
    return None


def _content(root: str) -> str:
    """Stands for a model's files: their digest where they are on this machine, else the name."""
    folder = Path(root)
    if not folder.is_absolute() or not (folder / "config.json").is_file():
        return root
    from dmr_gym.backends.checkpoint import checkpoint_digest

    return checkpoint_digest(folder)
