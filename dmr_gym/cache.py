"""Caching as a wrapper: a cached backend is a backend, a cached encoder is an encoder.

A key is the sha256 of (kind, model digest, precision, prompt, sampling settings, sample index), or of what the other
calls depend on. Chat prompts enter it as their turns: the model digest covers the chat template that renders them.
Values are JSON, or a JSON header and raw little-endian numbers; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from dmr_gym.backends.streaming import BatchStream, Stream, StreamingBackend, generate_each
from dmr_gym.errors import CacheError
from dmr_gym.store import CompletionCache
from dmr_gym.types import (
    Backend,
    Completion,
    DistributionRequest,
    Encoder,
    FloatArray,
    Prompt,
    Request,
    TokenDistributions,
)

__all__ = ["CachedBackend", "CachedEncoder", "CompletionCache"]

R = TypeVar("R")
A = TypeVar("A")

_encode = json.JSONEncoder(separators=(",", ":")).encode


class _Cached:
    """A store around a part that computes what the store does not have.

    Attributes:
        store: where answers are kept.
        hits: requests answered without computing.
        misses: requests computed.
    """

    def __init__(self, part: object, store: CompletionCache) -> None:
        self.store = store
        self.hits = 0
        self.misses = 0
        self._part = part

    def close(self) -> None:
        """Close the part inside, where it can be closed; the store stays open."""
        close = getattr(self._part, "close", None)
        if callable(close):
            close()

    def _look_up(
        self,
        keys: Sequence[bytes],
        requests: Sequence[R],
        compute: Callable[[list[R]], Sequence[A]],
        pack: Callable[[A], bytes],
    ) -> tuple[list[bytes], set[int]]:
        """Return the stored bytes of every request, and which requests were computed and stored by this call."""
        found = self.store.get_many(keys)
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in found}
        indices = sorted(first.values())
        computed: set[int] = set()
        if indices:
            answers = compute([requests[i] for i in indices])
            fresh = {keys[i]: pack(answer) for i, answer in zip(indices, answers, strict=True)}
            found.update(self.store.put_many(fresh))
            computed = {i for i in indices if found[keys[i]] == fresh[keys[i]]}
        self.misses += len(computed)
        self.hits += len(requests) - len(computed)
        return [found[key] for key in keys], computed


class CachedBackend(_Cached):
    """A backend that computes only what the store does not have.

    Requests found in the store come back with ``cached=True`` and the seconds and token counts of the call that made
    them. Equal requests of a batch are computed once; the first is the computed one, the others count as found.

    Args:
        backend: computes misses, all misses of a call in one batch.
        store: where answers are kept.
    """

    def __init__(self, backend: Backend, store: CompletionCache) -> None:
        super().__init__(backend, store)
        self.backend = backend
        self._digests: dict[str, str] = {}

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names in ascending precision."""
        return self.backend.precisions

    def digest(self, precision: str) -> str:
        """Content address of a copy, asked of the backend once."""
        if precision not in self._digests:
            self._digests[precision] = self.backend.digest(precision)
        return self._digests[precision]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete every prompt, from the store where possible.

        Raises:
            BackendError: the backend cannot answer a miss.
            CacheError: the store cannot be read or written.
        """
        if isinstance(self.backend, StreamingBackend):  # what came before an error is kept
            found = dict(answer for group in generate_each(self, requests) for answer in group)
            return [found[i] for i in range(len(requests))]
        keys = [self.completion_key(request) for request in requests]
        values, computed = self._look_up(keys, requests, self.backend.generate, _pack_completion)
        return [_unpack_completion(value, i not in computed) for i, value in enumerate(values)]

    def stream(self) -> Stream:
        """Open a stream of answers, found ones first; a backend that has all its answers at once makes batches."""
        if isinstance(self.backend, StreamingBackend):
            return _CachedStream(self, self.backend.stream())
        return BatchStream(self)

    def token_distributions(self, requests: Sequence[DistributionRequest]) -> list[TokenDistributions]:
        """Score completions: those with a ``top_k`` from the store where possible, whole vocabularies always anew.

        A whole vocabulary of 150,000 entries takes 600 kB a token; a store of those would fill the disk.

        Raises:
            BackendError: the backend cannot answer a miss.
            CacheError: the store cannot be read or written.
        """
        whole = [i for i, request in enumerate(requests) if request.top_k is None]
        kept = [request for request in requests if request.top_k is not None]
        keys = [
            _key("distributions", self.digest(r.precision), r.precision, _plain(r.prompt), r.completion, r.top_k)
            for r in kept
        ]
        compute = self.backend.token_distributions
        fresh = compute([requests[i] for i in whole]) if whole else []
        self.misses += len(whole)
        values, _ = self._look_up(keys, kept, compute, _pack_distributions)
        answers = dict(zip(whole, fresh, strict=True))
        stored = iter(values)
        return [answers[i] if i in answers else _unpack_distributions(next(stored)) for i in range(len(requests))]

    def completion_key(self, request: Request) -> bytes:
        """Under which the store keeps the answer of a request."""
        s = request.sampling
        # Nothing is drawn in greedy decoding, so seed, nucleus and sample index cannot tell two calls apart.
        draw = [s.temperature, s.top_p, s.seed, request.sample_index] if s.temperature > 0 else []
        digest = self.digest(request.precision)
        return _key("completion", digest, request.precision, _plain(request.prompt), [s.max_tokens, s.stop], draw)


class _CachedStream:
    """The stream of a `CachedBackend` around one that streams; equal requests under way are computed once."""

    def __init__(self, cached: CachedBackend, inner: Stream) -> None:
        self._cached, self._inner = cached, inner
        self._found: list[tuple[int, Completion]] = []
        self._keys: dict[int, bytes] = {}  # of the requests that are computed
        self._waiting: dict[bytes, list[int]] = {}  # who gets the answer; the first is the one that is computed

    def send(self, requests: Mapping[int, Request]) -> None:
        """Look up, and ask for the rest; see `Stream.send`."""
        keys = {i: self._cached.completion_key(request) for i, request in requests.items()}
        found = self._cached.store.get_many(list(keys.values()))
        waiting: dict[bytes, list[int]] = {}
        for i, key in keys.items():
            if key not in found:
                waiting.setdefault(key, []).append(i)
        computed = {numbers[0]: key for key, numbers in waiting.items() if key not in self._waiting}
        if computed:
            self._inner.send({i: requests[i] for i in computed})  # first: what it refuses leaves nothing behind
        self._keys |= computed
        for key, numbers in waiting.items():
            self._waiting.setdefault(key, []).extend(numbers)
        present = [(i, _unpack_completion(found[key], True)) for i, key in keys.items() if key in found]
        self._found += present
        self._cached.hits += len(present)

    def receive(self) -> list[tuple[int, Completion]]:
        """Hand out what was found, else what is computed next; see `Stream.receive`."""
        if self._found:
            found, self._found = self._found, []
            return found
        try:
            fresh = {self._keys[i]: _pack_completion(completion) for i, completion in self._inner.receive()}
            stored = self._cached.store.put_many(fresh)
        except BaseException:
            self.close()  # or who sends an equal request later would wait for one that nobody computes
            raise
        answers = []
        for key, packed in fresh.items():
            first, *others = self._waiting.pop(key)
            del self._keys[first]
            is_ours = stored[key] == packed
            answers += [(first, _unpack_completion(stored[key], not is_ours))]
            answers += [(i, _unpack_completion(stored[key], True)) for i in others]
            self._cached.misses += is_ours
            self._cached.hits += len(others) + (not is_ours)
        return answers

    def close(self) -> None:
        """Give up what is under way."""
        self._found, self._keys, self._waiting = [], {}, {}
        self._inner.close()


class CachedEncoder(_Cached):
    """An encoder that computes only what the store does not have; equal texts of a call are computed once.

    Args:
        encoder: computes misses, all misses of a call in one batch.
        store: where embeddings are kept.
    """

    def __init__(self, encoder: Encoder, store: CompletionCache) -> None:
        super().__init__(encoder, store)
        self.encoder = encoder

    @property
    def dim(self) -> int:
        """Embedding width D."""
        return self.encoder.dim

    @property
    def digest(self) -> str:
        """Content address of the encoder."""
        return self.encoder.digest

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return unit-norm embeddings (n, D) float32, from the store where possible.

        Raises:
            CacheError: the store cannot be read or written, or holds a row of another width.
        """
        keys = [_key("embedding", self.digest, text) for text in texts]
        values, _ = self._look_up(keys, texts, lambda missing: list(self.encoder.encode(missing)), _pack_row)
        if any(len(value) != 4 * self.dim for value in values):
            raise CacheError(f"the store holds an embedding that is not {self.dim} wide; delete {self.store.path}")
        return np.frombuffer(b"".join(values), dtype="<f4").astype(np.float32).reshape(len(texts), self.dim)


def _key(*parts: Any) -> bytes:
    return hashlib.sha256(_encode(parts).encode()).digest()


def _plain(prompt: Prompt) -> str | list[list[str]]:
    return prompt if isinstance(prompt, str) else [[message.role, message.content] for message in prompt]


def _pack_completion(completion: Completion) -> bytes:
    fields = asdict(completion)
    del fields["cached"]
    return json.dumps(fields).encode()


def _unpack_completion(value: bytes, cached: bool) -> Completion:
    try:
        return Completion(**json.loads(value), cached=cached)
    except (ValueError, TypeError) as error:
        raise _damaged("completions") from error


def _pack_row(row: FloatArray) -> bytes:
    return row.astype("<f4").tobytes()


def _pack_distributions(found: TokenDistributions) -> bytes:
    """Return a header length (4 bytes), a JSON header, and the raw arrays behind it."""
    header = {"tokens": found.tokens, "shape": found.logprobs.shape, "truncated": found.indices is not None}
    encoded = json.dumps(header).encode()
    arrays = [found.token_ids.astype("<i8"), found.logprobs.astype("<f4")]
    if found.indices is not None:
        arrays.append(found.indices.astype("<i8"))
    return len(encoded).to_bytes(4, "little") + encoded + b"".join(array.tobytes() for array in arrays)


def _unpack_distributions(value: bytes) -> TokenDistributions:
    try:
        start = 4 + int.from_bytes(value[:4], "little")
        header = json.loads(value[4:start])
        shape = tuple(header["shape"])
        steps, entries = shape[0], math.prod(shape)
        token_ids = np.frombuffer(value, "<i8", steps, start).astype(np.int64)
        logprobs = np.frombuffer(value, "<f4", entries, start + 8 * steps).astype(np.float32).reshape(shape)
        indices = None
        if header["truncated"]:
            indices = np.frombuffer(value, "<i8", entries, start + 8 * steps + 4 * entries).astype(np.int64)
            indices = indices.reshape(shape)
        return TokenDistributions(token_ids, tuple(header["tokens"]), logprobs, indices)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise _damaged("token distributions") from error


def _damaged(what: str) -> CacheError:
    return CacheError(f"the store holds damaged {what}; delete the cache file: answers will be computed again")
