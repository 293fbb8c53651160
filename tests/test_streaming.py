"""Answers as they come: through the cache, into episodes, and back out of them after an error."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from fake_openai import Serve

from dmr_gym.backends import ScriptedBackend
from dmr_gym.backends.streaming import StreamingBackend, generate_each
from dmr_gym.cache import CachedBackend, CompletionCache
from dmr_gym.encoders import HashEncoder
from dmr_gym.errors import BackendError
from dmr_gym.types import Completion, FloatArray, Request
from dmr_gym.vector import PrecisionRoutingVectorEnv


class OneByOne(ScriptedBackend):
    """Hands out the last request's answer first, each when the one before was taken.

    Attributes:
        log: "answer i" when request i is answered.
        fails_at: number of answers after which it fails; None for never.
    """

    log: list[str]
    fails_at: int | None = None

    def stream(self) -> Backwards:
        return Backwards(self)


class Backwards:
    """The stream of a `OneByOne`."""

    def __init__(self, backend: OneByOne) -> None:
        self._backend = backend
        self._waiting: dict[int, Request] = {}
        self._count = 0

    def send(self, requests: Mapping[int, Request]) -> None:
        self._waiting |= requests

    def receive(self) -> list[tuple[int, Completion]]:
        if self._count == self._backend.fails_at:
            raise BackendError("gone")
        self._count += 1
        i, request = self._waiting.popitem()
        self._backend.log.append(f"answer {i}")
        return [(i, self._backend.generate([request])[0])]

    def close(self) -> None:
        self._waiting = {}


class Noted(HashEncoder):
    """Notes what it encodes."""

    log: list[str]

    def encode(self, texts: Sequence[str]) -> FloatArray:
        self.log.append(f"encode {len(texts)}")
        return super().encode(texts)


def _answer(request: Request) -> str:
    return "go left" if len(str(request.prompt)) % 2 else "go right"


def _envs(backend: Any, log: list[str], **options: Any) -> PrecisionRoutingVectorEnv:
    encoder = Noted(dim=8)
    encoder.log = log
    latency = {"ms_per_token": {"low": 1.0, "high": 2.0}, "router_ms": 0.0}
    settings: dict[str, Any] = {"task": "toy", "precisions": ("low", "high"), "latency": latency, **options}
    return PrecisionRoutingVectorEnv(3, backend=backend, encoder=encoder, **settings)


def test_each_answer_is_carried_out_before_the_next_one_is_waited_for() -> None:
    """Embedding the first answers takes no time from a backend that works on the others."""
    backend, log = OneByOne(_answer, name="t"), []
    backend.log = log
    envs = _envs(backend, log)
    envs.reset(seed=0)
    log.clear()
    envs.step([0, 1, 0])
    assert log == ["answer 2", "encode 1", "answer 1", "encode 1", "answer 0", "encode 1"]


def test_the_order_of_answers_changes_nothing() -> None:
    """Observations, rewards, ends and infos are those of a backend that answers all at once, resets included."""

    def play(backend: Any) -> list[Any]:
        envs = _envs(backend, [])
        found: list[Any] = [envs.reset(seed=3)]
        for step in range(30):
            found.append(envs.step(np.arange(3) % 2 if step % 3 else [1, 1, 0]))
        return [[np.asarray(part).tolist() for part in (*row[:-1], *row[-1].values())] for row in found]

    backend = OneByOne(_answer, name="t")
    backend.log = []
    assert play(backend) == play(ScriptedBackend(_answer, name="t"))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_after_an_error_every_episode_is_as_before(mode: str) -> None:
    """Two of three answers had been carried out; the step that failed can be taken again."""
    backend = OneByOne(_answer, name="t")
    backend.log = []
    envs = _envs(backend, [], autoreset_mode=mode)
    envs.reset(seed=0)
    envs.step([0, 1, 0])
    before = envs.snapshot()
    expected = envs.step([1, 1, 1])
    envs.restore(before)
    backend.fails_at = 2
    with pytest.raises(BackendError, match="gone"):
        envs.step([1, 1, 1])
    assert envs.snapshot() == before
    backend.fails_at = None
    for found, wanted in zip(envs.step([1, 1, 1])[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_the_cache_passes_answers_on_as_they_come() -> None:
    """Found ones first, each computed one when it is there, equal requests once; all of it is stored and counted."""
    inner, log = OneByOne(_answer, name="t"), []
    inner.log = log
    cached = CachedBackend(inner, CompletionCache())
    assert isinstance(cached, StreamingBackend)
    cached.generate([Request("known", "low")])
    log.clear()
    requests = [Request("a", "low"), Request("known", "low"), Request("a", "low"), Request("b", "high")]
    groups = []
    for group in generate_each(cached, requests):
        groups.append([(i, completion.cached) for i, completion in group])
        log.append("taken")
    assert groups == [[(1, True)], [(3, False)], [(0, False), (2, True)]]
    assert log == ["taken", "answer 3", "taken", "answer 0", "taken"]
    assert (cached.hits, cached.misses) == (2, 3)
    assert [completion.cached for completion in cached.generate(requests)] == [True] * 4


def test_answers_that_came_before_an_error_are_kept() -> None:
    """Who asks for a whole batch does not pay again for the part that was there when a call failed."""
    inner = OneByOne(_answer, name="t")
    inner.log, inner.fails_at = [], 2
    cached = CachedBackend(inner, CompletionCache())
    requests = [Request(text, "low") for text in ("a", "b", "c")]
    with pytest.raises(BackendError, match="gone"):
        cached.generate(requests)
    inner.log.clear()
    inner.fails_at = None
    assert [completion.cached for completion in cached.generate(requests)] == [False, True, True]
    assert inner.log == ["answer 0"]


def test_a_cache_around_another_backend_makes_one_group() -> None:
    """A backend that has all its answers at once keeps its batches, hits and misses together."""
    cached = CachedBackend(ScriptedBackend(_answer, name="t"), CompletionCache())
    cached.generate([Request("known", "low")])
    [group] = generate_each(cached, [Request("a", "low"), Request("known", "low")])
    assert [(i, completion.cached) for i, completion in group] == [(0, False), (1, True)]


def test_a_server_that_is_slow_with_one_answer_holds_up_no_other(serve: Serve, connect: Any) -> None:
    """The quick answer is there while the slow one is still being computed."""
    release = threading.Event()

    def answer(prompt: str, seed: int) -> str:
        if prompt == "slow":
            assert release.wait(10)
        return "said"

    backend = connect(serve("m", answer))
    groups = generate_each(backend, [Request("slow", "low"), Request("quick", "low")])
    assert [i for i, _ in next(groups)] == [1]
    release.set()
    assert [[i for i, _ in group] for group in groups] == [[0]]
