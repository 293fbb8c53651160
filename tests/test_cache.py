"""Cached backends and encoders: what was computed once is never computed again."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dmr_gym.backends import ScriptedBackend
from dmr_gym.cache import (
    CachedBackend,
    CachedEncoder,
    CompletionCache,
    _pack_completion,
    _pack_distributions,
    _unpack_completion,
    _unpack_distributions,
)
from dmr_gym.encoders import HashEncoder
from dmr_gym.errors import CacheError
from dmr_gym.types import (
    Backend,
    Completion,
    DistributionRequest,
    Encoder,
    FloatArray,
    Message,
    Request,
    SamplingParams,
    TokenDistributions,
)

REQUEST = Request("You see a bed 1.\n>", "low", SamplingParams(temperature=0.7))
GREEDY = Request(REQUEST.prompt, "low")


class CountingBackend(ScriptedBackend):
    """Answers with the number of completions it has computed, so that no two calls agree."""

    def __init__(self) -> None:
        super().__init__(lambda request: "", name="counting")
        self.batches: list[list[Request]] = []

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer, and remember the batch."""
        start = sum(map(len, self.batches))
        self.batches.append(list(requests))
        return [Completion(f"answer {start + i}", 7, 3, 0.25) for i in range(len(requests))]


class CountingEncoder(HashEncoder):
    """Remembers the texts it was asked for."""

    def __init__(self) -> None:
        super().__init__(8)
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Encode, and remember the batch."""
        self.batches.append(list(texts))
        return super().encode(texts)


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> CompletionCache:
    """A fresh store of either kind."""
    return CompletionCache(None if request.param == "memory" else tmp_path / "cache")


# ---------------------------------------------------------------------------------------------------- backend


def test_wrappers_are_what_they_wrap(store: CompletionCache) -> None:
    """Nothing above a wrapper can tell."""
    assert isinstance(CachedBackend(CountingBackend(), store), Backend)
    assert isinstance(CachedEncoder(HashEncoder(8), store), Encoder)
    assert CachedBackend(CountingBackend(), store).precisions == ("low", "high")


def test_a_found_completion_keeps_the_record_of_its_making(store: CompletionCache) -> None:
    """Text, counts and seconds are those of the first call; only ``cached`` differs."""
    backend = CachedBackend(CountingBackend(), store)
    [first], [second] = backend.generate([REQUEST]), backend.generate([REQUEST])
    assert first == Completion("answer 0", 7, 3, 0.25)
    assert second == replace(first, cached=True)
    assert (backend.hits, backend.misses) == (1, 1)


def test_only_misses_are_computed_in_one_batch_without_duplicates(store: CompletionCache) -> None:
    """Of six requests with one known and two pairs of equals, three go to the backend together."""
    inner = CountingBackend()
    backend = CachedBackend(inner, store)
    backend.generate([REQUEST])
    others = [replace(REQUEST, sample_index=i) for i in (1, 2, 3)]
    found = backend.generate([others[0], REQUEST, others[1], others[0], others[2], others[1]])
    assert inner.batches[1:] == [others]
    assert [c.text for c in found] == [f"answer {i}" for i in (1, 0, 2, 1, 3, 2)]
    assert [c.cached for c in found] == [False, True, False, True, False, True]
    assert (backend.hits, backend.misses) == (3, 4)


@pytest.mark.parametrize(
    "other",
    [
        replace(REQUEST, precision="high"),
        replace(REQUEST, prompt=REQUEST.prompt + " "),
        replace(REQUEST, sample_index=1),
        replace(REQUEST, sampling=SamplingParams(temperature=0.5)),
        replace(REQUEST, sampling=SamplingParams(temperature=0.7, top_p=0.5)),
        replace(REQUEST, sampling=SamplingParams(temperature=0.7, max_tokens=5)),
        replace(REQUEST, sampling=SamplingParams(temperature=0.7, stop=())),
        replace(REQUEST, sampling=SamplingParams(temperature=0.7, seed=1)),
        replace(REQUEST, prompt=(Message("user", str(REQUEST.prompt)),)),
    ],
)
def test_everything_an_answer_depends_on_is_in_its_key(store: CompletionCache, other: Request) -> None:
    """A request that differs in one field is another request."""
    backend = CachedBackend(CountingBackend(), store)
    assert [c.text for c in backend.generate([REQUEST, other])] == ["answer 0", "answer 1"]


@pytest.mark.parametrize(
    "other",
    [
        replace(GREEDY, sample_index=1),
        replace(GREEDY, sampling=SamplingParams(seed=1)),
        replace(GREEDY, sampling=SamplingParams(top_p=0.5)),
    ],
)
def test_greedy_requests_share_an_entry_whatever_their_draw(store: CompletionCache, other: Request) -> None:
    """Greedy decoding draws nothing, so a group of equal episodes costs one call a step."""
    backend = CachedBackend(CountingBackend(), store)
    assert [c.text for c in backend.generate([GREEDY, other])] == ["answer 0", "answer 0"]


def test_another_model_has_other_answers(store: CompletionCache) -> None:
    """Two models share a store and no entry."""
    for name in ("first", "second"):
        backend = CachedBackend(ScriptedBackend(lambda request, name=name: name, name=name), store)
        assert backend.generate([REQUEST])[0].text == name


def test_role_and_content_of_a_turn_do_not_run_together(store: CompletionCache) -> None:
    """Equal concatenations are not equal prompts."""
    backend = CachedBackend(CountingBackend(), store)
    prompts = [(Message("user", "ab"),), (Message("usera", "b"),), (Message("user", "a"), Message("user", "b"))]
    assert len({c.text for c in backend.generate([Request(prompt, "low") for prompt in prompts])}) == 3


def test_a_losing_writer_returns_the_stored_answer(tmp_path: Path) -> None:
    """While one process computes, another stores; the slower one hands out the faster one's answer as found."""
    store = CompletionCache(tmp_path)

    class Overtaken(CountingBackend):
        def generate(self, requests: Sequence[Request]) -> list[Completion]:
            CachedBackend(ScriptedBackend(lambda r: "faster", name="counting"), CompletionCache(tmp_path)).generate(
                requests
            )
            return super().generate(requests)

    backend = CachedBackend(Overtaken(), store)
    [found] = backend.generate([REQUEST])
    assert (found.text, found.cached) == ("faster", True)
    assert (backend.hits, backend.misses) == (1, 0)


def test_whole_vocabularies_are_not_stored(store: CompletionCache) -> None:
    """A token's distribution over a large vocabulary is megabytes: only truncated ones are kept."""
    backend = CachedBackend(ScriptedBackend(lambda request: "", name="t"), store)
    whole, cut = DistributionRequest("p", "look", "low"), DistributionRequest("p", "look", "low", 3)
    first = backend.token_distributions([cut, whole])
    again = backend.token_distributions([whole, cut])
    assert (backend.hits, backend.misses) == (1, 3)
    for before, after in zip(first, reversed(again), strict=True):
        np.testing.assert_array_equal(before.logprobs, after.logprobs)


@pytest.mark.parametrize("top_k", [1, 3])
def test_distributions_come_back_bit_for_bit(tmp_path: Path, top_k: int | None) -> None:
    """Arrays, dtypes, shapes and texts survive the file; another top_k is another entry."""
    inner = ScriptedBackend(lambda request: "", name="t")
    request = DistributionRequest("p", "löok", "low", top_k)
    [expected] = inner.token_distributions([request])
    CachedBackend(inner, CompletionCache(tmp_path)).token_distributions([request])
    backend = CachedBackend(inner, CompletionCache(tmp_path))
    [found] = backend.token_distributions([request])
    assert backend.hits == 1
    assert found.tokens == expected.tokens
    for name in ("token_ids", "logprobs", "indices"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(ours, theirs)
    backend.token_distributions([replace(request, top_k=2)])
    assert backend.misses == 1


@given(
    logprobs=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=4)),
    truncated=st.booleans(),
    text=st.text(max_size=5),
)
@settings(max_examples=60, deadline=None)
def test_any_distributions_survive_packing(logprobs: FloatArray, truncated: bool, text: str) -> None:
    """Packing and unpacking are inverse for any shape, number and text, infinities included."""
    steps = len(logprobs)
    indices = np.arange(logprobs.size, dtype=np.int64).reshape(logprobs.shape) if truncated else None
    original = TokenDistributions(np.arange(steps, dtype=np.int64), (text,) * steps, logprobs, indices)
    found = _unpack_distributions(_pack_distributions(original))
    assert found.tokens == original.tokens
    np.testing.assert_array_equal(found.token_ids, original.token_ids)
    assert found.logprobs.shape == logprobs.shape
    np.testing.assert_array_equal(found.logprobs, logprobs)
    assert (found.indices is None) == (not truncated)


@given(text=st.text(), seconds=st.floats(min_value=0, allow_nan=False, allow_infinity=False))
@settings(max_examples=60, deadline=None)
def test_any_completion_survives_packing(text: str, seconds: float) -> None:
    """Every text and every float is the same afterwards."""
    completion = Completion(text, 1, 2, seconds, "length")
    assert _unpack_completion(_pack_completion(completion), False) == completion


@pytest.mark.parametrize("value", [b"", b"{}", b"[1]", b"\xff", json.dumps({"texts": "a"}).encode(), b"\x02\0\0\0{}"])
def test_damaged_values_are_cache_errors(value: bytes) -> None:
    """A row that is not what was written is never an answer."""
    with pytest.raises(CacheError, match="damaged completions; delete the cache file"):
        _unpack_completion(value, True)
    with pytest.raises(CacheError, match="damaged token distributions; delete the cache file"):
        _unpack_distributions(value)


# ---------------------------------------------------------------------------------------------------- encoder


def test_embeddings_are_computed_once(store: CompletionCache) -> None:
    """Known and equal texts are not computed again, and all rows are in the order of the texts."""
    inner = CountingEncoder()
    encoder = CachedEncoder(inner, store)
    encoder.encode(["a"])
    found = encoder.encode(["b", "a", "c", "b"])
    assert inner.batches == [["a"], ["b", "c"]]
    assert found.dtype == np.float32
    assert found.flags.writeable
    np.testing.assert_array_equal(found, HashEncoder(8).encode(["b", "a", "c", "b"]))
    assert (encoder.hits, encoder.misses) == (2, 3)
    assert encoder.encode([]).shape == (0, 8)
    assert (encoder.dim, encoder.digest) == (8, HashEncoder(8).digest)


def test_encoders_share_a_store_and_no_entry(store: CompletionCache) -> None:
    """The width is part of the digest."""
    assert CachedEncoder(HashEncoder(4), store).encode(["a"]).shape == (1, 4)
    assert CachedEncoder(HashEncoder(8), store).encode(["a"]).shape == (1, 8)


def test_closing_reaches_the_wrapped_part_and_not_the_store(store: CompletionCache) -> None:
    """What can be closed is closed, what cannot is left alone, and others go on using the store."""
    closed = []
    backend, encoder = CountingBackend(), CountingEncoder()
    CachedBackend(backend, store).close()
    CachedEncoder(encoder, store).close()
    backend.close = lambda: closed.append("backend")
    encoder.close = lambda: closed.append("encoder")
    CachedBackend(backend, store).close()
    CachedEncoder(encoder, store).close()
    assert closed == ["backend", "encoder"]
    assert CachedEncoder(encoder, store).encode(["a"]).shape == (1, encoder.dim)


def test_warm_look_ups_are_fast() -> None:
    """A found completion costs microseconds, not a model call: 0.2 ms would already be far too slow."""
    backend = CachedBackend(CountingBackend(), CompletionCache())
    request = replace(REQUEST, prompt="You see a bed 1.\n> look\n" * 100)
    backend.generate([request])
    times = []
    for _ in range(200):
        start = time.perf_counter()
        backend.generate([request])
        times.append(time.perf_counter() - start)
    assert sorted(times)[10] < 2e-4
