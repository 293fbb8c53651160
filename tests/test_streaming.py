"""Answers as they come: through the cache, into episodes, and back out of them after an error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from fake_openai import Serve
from gymnasium.error import ResetNeeded

from dmr_gym.backends import ScriptedBackend
from dmr_gym.backends.streaming import StreamingBackend, generate_each, open_stream
from dmr_gym.cache import CachedBackend, CompletionCache
from dmr_gym.encoders import HashEncoder
from dmr_gym.errors import BackendError, CacheError
from dmr_gym.policies import FixedPrecision, ForcedHigh, Policy, RandomPolicy, RouterPolicy, SlotPolicy
from dmr_gym.rollout import rollout
from dmr_gym.router import PrecisionRouter, RouterConfig
from dmr_gym.tasks.toy import ANSWERS
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


def _envs(backend: Any, log: list[str], num_envs: int = 3, **options: Any) -> PrecisionRoutingVectorEnv:
    encoder = Noted(dim=8)
    encoder.log = log
    latency = {"ms_per_token": {"low": 1.0, "high": 2.0}, "router_ms": 0.0}
    settings: dict[str, Any] = {"task": "toy", "precisions": ("low", "high"), "latency": latency, **options}
    return PrecisionRoutingVectorEnv(num_envs, backend=backend, encoder=encoder, **settings)


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


def test_requests_that_are_refused_leave_nothing_behind_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a send that failed, the same requests can be sent again, and each is answered once."""
    inner = OneByOne(_answer, name="t")
    inner.log = []
    cached = CachedBackend(inner, CompletionCache())
    cached.generate([Request("known", "low")])
    counted, stream = (cached.hits, cached.misses), cached.stream()
    requests = {0: Request("known", "low"), 1: Request("a", "low"), 2: Request("a", "low")}

    def refuse(self: Backwards, requests: Mapping[int, Request]) -> None:
        raise BackendError("refused")

    with monkeypatch.context() as patch:
        patch.setattr(Backwards, "send", refuse)
        with pytest.raises(BackendError, match="refused"):
            stream.send(requests)
    assert (cached.hits, cached.misses) == counted
    stream.send(requests)
    groups = [stream.receive(), stream.receive()]
    assert [[(i, completion.cached) for i, completion in group] for group in groups] == [
        [(0, True)],
        [(1, False), (2, True)],
    ]
    with pytest.raises(KeyError):
        stream.receive()


@pytest.mark.parametrize("fails", ["server", "store"])
def test_after_an_error_a_cached_stream_is_as_new(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """A request that is equal to one that got no answer is computed, and does not wait for the lost one."""
    inner = OneByOne(_answer, name="t")
    inner.log = []
    cached = CachedBackend(inner, CompletionCache())
    stream = cached.stream()
    stream.send({0: Request("a", "low"), 1: Request("b", "low")})
    with monkeypatch.context() as patch:
        if fails == "server":
            patch.setattr(inner, "fails_at", 0)
        else:
            patch.setattr(cached.store, "put_many", lambda entries: (_ for _ in ()).throw(CacheError("disk full")))
        with pytest.raises((BackendError, CacheError)):
            stream.receive()
    stream.send({2: Request("a", "low"), 3: Request("b", "low")})
    assert sorted(i for _ in range(2) for i, _ in stream.receive()) == [2, 3]


def test_a_cache_around_another_backend_makes_one_group() -> None:
    """A backend that has all its answers at once keeps its batches, hits and misses together."""
    cached = CachedBackend(ScriptedBackend(_answer, name="t"), CompletionCache())
    cached.generate([Request("known", "low")])
    [group] = generate_each(cached, [Request("a", "low"), Request("known", "low")])
    assert [(i, completion.cached) for i, completion in group] == [(0, False), (1, True)]


def test_a_server_that_is_slow_with_one_answer_holds_up_no_other(serve: Serve, connect: Any) -> None:
    """The quick answer is there while the slow one is still being computed."""
    release = threading.Event()
    backend = connect(serve("m", _slow_until(release)))
    groups = generate_each(backend, [Request("slow", "low"), Request("quick", "low")])
    assert [i for i, _ in next(groups)] == [1]
    release.set()
    assert [[i for i, _ in group] for group in groups] == [[0]]


def test_what_was_given_up_never_comes(serve: Serve, connect: Any) -> None:
    """A stream that was closed with a call under way can be used again, and has the new answers alone."""
    release = threading.Event()
    stream = connect(serve("m", _slow_until(release))).stream()
    stream.send({0: Request("slow", "low")})
    stream.close()
    with pytest.raises(BackendError, match="no request is under way"):
        stream.receive()
    stream.send({1: Request("quick", "low")})
    assert [(i, completion.text) for i, completion in stream.receive()] == [(1, "said")]
    release.set()


def test_an_error_gives_up_the_other_requests_of_a_stream(serve: Serve, connect: Any) -> None:
    """Their numbers are free again, and the answers are those of the new requests."""
    release = threading.Event()
    stream = connect(serve("m", _slow_until(release), context=20)).stream()
    stream.send({0: Request("slow", "low"), 1: Request("too long" * 9, "low")})
    with pytest.raises(BackendError, match="do not fit into the context"):
        stream.receive()
    stream.send({0: Request("quick", "low")})
    assert [(i, completion.text) for i, completion in stream.receive()] == [(0, "said")]
    release.set()


def test_a_stream_outlives_the_connections_of_its_backend(serve: Serve, connect: Any) -> None:
    """After `close` of the backend the stream connects anew, as the backend does; calls under way end with an error."""
    release = threading.Event()
    backend = connect(serve("m", _slow_until(release)))
    stream = backend.stream()
    stream.send({0: Request("slow", "low")})
    backend.close()
    with pytest.raises(BackendError, match="closed while a call was under way"):
        stream.receive()
    stream.send({0: Request("quick", "low")})
    assert [i for i, _ in stream.receive()] == [0]
    release.set()


def test_a_stream_of_batches_has_nothing_before_it_is_asked() -> None:
    """As with servers, waiting for nothing is an error."""
    stream = open_stream(ScriptedBackend(_answer, name="t"))
    with pytest.raises(BackendError, match="no request is under way"):
        stream.receive()
    stream.send({7: Request("a", "low")})
    assert [i for i, _ in stream.receive()] == [7]


def _slow_until(release: threading.Event) -> Callable[[str, int], str]:
    """What a server says: "said", to the prompt "slow" only after an event."""

    def answer(prompt: str, seed: int) -> str:
        if prompt == "slow":
            assert release.wait(10)
        return "said"

    return answer


# ------------------------------------------------------------------------------------ episodes at a pace of their own


def _walk(request: Request) -> str:
    """Finds the way at high, and now and then thinks first, so that episodes differ in length."""
    prompt = str(request.prompt)
    if len(prompt) % 3 == 0:
        return "think: which way"
    answers = ANSWERS[request.precision]
    return next(answers[line] for line in reversed(prompt.splitlines()) if line in answers)


def _one_by_one() -> OneByOne:
    backend = OneByOne(_walk, name="t")
    backend.log = []
    return backend


def _played(backend: Any, num_envs: int, policy: Any, **options: Any) -> list[Any]:
    envs = _envs(backend, [], num_envs, autoreset_mode="Disabled")
    episodes = rollout(envs, policy, envs.task_ids[:7], keep_turns=True, **options)
    envs.close()
    columns = ("rows", "actions", "rewards", "logprobs", "latency_llm_s", "prompt_tokens", "completion_tokens")
    rest = ("key", "step_types", "success", "score", "turns", "start")
    return [[*(getattr(e, c).tolist() for c in columns), *(getattr(e, name) for name in rest)] for e in episodes]


def _router(max_length: int = 64) -> PrecisionRouter:
    torch.manual_seed(4)
    sizes = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 32}
    return PrecisionRouter(RouterConfig(embedding_dim=8, max_length=max_length, **sizes)).eval()


POLICIES: dict[str, Callable[[], Policy]] = {
    "fixed": lambda: FixedPrecision(1),
    "random": lambda: RandomPolicy(0.5, seed=3),
    "router that draws": lambda: RouterPolicy(_router(), "sample", seed=3),
    "router with ties": lambda: RouterPolicy(_router(), tau=0.2137, tie_probability=0.5),
    "router of a short history": lambda: RouterPolicy(_router(max_length=4), "sample", seed=3),
    "router forced": lambda: ForcedHigh(RouterPolicy(_router(), "sample", seed=3), 1),
}


@pytest.mark.parametrize("num_envs", [1, 3, 9])
@pytest.mark.parametrize("kind", POLICIES)
def test_episodes_at_their_own_pace_are_those_in_step(num_envs: int, kind: str) -> None:
    """Rows, decisions, rewards and texts, with fewer and with more places than episodes, repeats included."""
    torch.set_num_threads(1)  # the fixture of all tests sets it back
    policy = POLICIES[kind]()
    assert isinstance(policy, SlotPolicy)
    found = _played(_one_by_one(), num_envs, policy, repeats=2)
    assert found == _played(ScriptedBackend(_walk, name="t"), num_envs, policy, repeats=2)
    assert len({len(episode[1]) for episode in found}) > 1, "episodes of one length would hide what is mixed up"


def test_a_server_has_as_many_requests_as_there_are_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until no task is left, each answer is followed by the next request of its episode, or of a new one."""
    under_way: list[int] = []
    receive = Backwards.receive

    def counting(self: Backwards) -> list[tuple[int, Completion]]:
        under_way.append(len(self._waiting))
        return receive(self)

    monkeypatch.setattr(Backwards, "receive", counting)
    episodes = _played(_one_by_one(), 3, FixedPrecision(0))
    assert len(under_way) == sum(len(episode[1]) for episode in episodes)
    assert under_way == sorted(under_way, reverse=True)
    assert under_way[: under_way.index(2)] == [3] * under_way.index(2)
    assert under_way.index(2) > len(under_way) / 2


def test_what_is_done_with_an_episode_takes_no_time_from_the_servers() -> None:
    """When an episode is handed over, the next requests are out already; and no request is left when it is the last."""
    backend = _one_by_one()
    envs = _envs(backend, [], autoreset_mode="Disabled")
    seen: list[int] = []
    rollout(envs, FixedPrecision(0), envs.task_ids[:7], on_episode=lambda _: seen.append(len(envs._under_way)))
    assert seen[:4] == [3] * 4
    assert seen[-1] == 0


def test_an_interrupted_rollout_leaves_nothing_under_way() -> None:
    """The same environments can play on."""

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    envs = _envs(_one_by_one(), [], autoreset_mode="Disabled")
    with pytest.raises(KeyboardInterrupt):
        rollout(envs, FixedPrecision(0), envs.task_ids[:7], on_episode=stop)
    assert len(rollout(envs, FixedPrecision(0), envs.task_ids[:7])) == 7


def test_steps_under_way_are_given_up_after_an_error() -> None:
    """One of three had ended and stays; the other two are as before, and can be sent again."""
    backend = _one_by_one()
    envs = _envs(backend, [], autoreset_mode="Disabled")
    envs.reset(seed=0)
    before = envs.snapshot()
    backend.fails_at = 1
    envs.send([0, 1, 2], [0, 1, 0])
    with pytest.raises(ResetNeeded, match=r"steps are under way in sub-environments \[0, 1, 2\]: call envs.receive"):
        envs.step([0, 0, 0])
    indices, observations, rewards, over, infos = envs.receive()
    assert indices == [2]
    assert observations.shape == (1, *envs.single_observation_space.shape)
    assert rewards.shape == over.shape == (1,)
    assert infos["_success"].tolist() == [False, False, True]
    with pytest.raises(ResetNeeded, match=r"sub-environments \[0\]"):
        envs.send([0], [0])
    with pytest.raises(BackendError, match="gone"):
        envs.receive()
    assert envs.snapshot()[:2] == before[:2]
    assert envs.snapshot()[2] != before[2]
    backend.fails_at = None
    envs.send([0, 1], [0, 1])
    assert sorted(envs.receive()[0] + envs.receive()[0]) == [0, 1]
    with pytest.raises(ResetNeeded, match="no step is under way"):
        envs.receive()
