"""The vLLM backend on a server of this process: the contract, what calls say, which server they go to, and KL."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from backend_contract import PROMPT, BackendContract
from fake_openai import VOCABULARY, FakeServer, Serve

from dmr_gym.backends import ScriptedBackend, logprob_limit, make_backend
from dmr_gym.backends._openai import NEUTRAL
from dmr_gym.backends._replicas import Replicas
from dmr_gym.cache import CachedBackend, CompletionCache
from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.kl import token_kl
from dmr_gym.types import Backend, Completion, DistributionRequest, Message, Request, SamplingParams

TURNS = (Message("system", "Play."), Message("user", "You see a bed 1."))


class TestVLLMBackend(BackendContract):
    """The contract on two servers."""

    @pytest.fixture
    def backend(self, serve: Serve) -> Iterator[Backend]:
        """As a configuration makes it."""
        servers = {name: serve(f"model-{name}") for name in ("w4", "bf16")}
        config = {
            "kind": "vllm",
            "model": {name: server.model for name, server in servers.items()},
            "urls": {name: [server.url] for name, server in servers.items()},
        }
        backend = make_backend(config, tuple(servers))
        yield backend
        backend.close()


# ---------------------------------------------------------------------------------------------------- what calls say


def test_a_text_prompt_goes_out_as_it_stands_with_every_setting(serve: Serve, connect: Any) -> None:
    """No default of the server's model decides anything; a greedy call draws nothing, so it has no seed."""
    server = serve("m")
    connect(server).generate([Request("In.\n>", "low", SamplingParams(max_tokens=7, stop=("\n", "", "</a>")))])
    [call] = server.completions
    assert call.path == "/v1/completions"
    assert call.body == {
        "model": "m",
        "prompt": "In.\n>",
        "max_tokens": 7,
        "temperature": 0.0,
        "top_p": 1.0,
        "stop": ["\n", "</a>"],
        **NEUTRAL,
    }


def test_a_salt_goes_with_every_call_that_fills_the_prefix_cache(serve: Serve, connect: Any) -> None:
    """Answers and scores find each other's prefixes and nobody else's; the digest is that without."""
    server = serve("m")
    backend = connect(server, cache_salt="pepper")
    backend.generate([Request("p", "low")])
    backend.token_distributions([DistributionRequest("p", "ab", "low")])
    asked = [call.body for call in server.completions if call.body["prompt"] != "a"]  # that tells what is allowed
    assert [body.get("cache_salt") for body in asked] == ["pepper"] * 3
    assert backend.digest("low") == connect(server).digest("low")


def test_chat_turns_are_rendered_by_the_server(serve: Serve, connect: Any) -> None:
    """They go to the chat endpoint with the options of the template, and the answer's content is the text."""
    server = serve("m", lambda prompt, seed: "said")
    backend = connect(server, chat_template_options={"enable_thinking": False})
    sampling = SamplingParams(temperature=0.4, top_p=0.9, max_tokens=9, stop=(), seed=3)
    [found] = backend.generate([Request(TURNS, "low", sampling)])
    [call] = server.completions
    assert call.path == "/v1/chat/completions"
    assert call.body["messages"] == [
        {"role": "system", "content": "Play."},
        {"role": "user", "content": "You see a bed 1."},
    ]
    assert call.body["chat_template_kwargs"] == {"enable_thinking": False}
    assert (call.body["temperature"], call.body["top_p"], call.body["max_tokens"]) == (0.4, 0.9, 9)
    assert "stop" not in call.body
    assert (found.text, found.completion_tokens, found.finish_reason) == ("said", 5, "stop")


def test_seeds_tell_draws_apart_and_fit_into_64_bits(serve: Serve, connect: Any) -> None:
    """Seed, sample index and prompt change it; the precision does not, so that precisions draw alike."""
    low, high = serve("m"), serve("m")
    backend = connect(low, high)
    hot = SamplingParams(temperature=1.0)
    for request in (
        Request("a", "low", hot),
        Request("a", "low", hot, sample_index=1),
        Request("b", "low", hot),
        Request("a", "low", SamplingParams(temperature=1.0, seed=1)),
        Request("a", "high", hot),
    ):
        backend.generate([request])
    seeds = [call.body["seed"] for call in low.completions]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert [call.body["seed"] for call in high.completions] == seeds[:1]


def test_seconds_are_those_of_the_call_and_a_batch_goes_out_at_once(serve: Serve, connect: Any) -> None:
    """Six calls of 0.1 s take no 0.6 s together, and each says that it took 0.1 s."""
    server = serve("m")
    backend = connect(server)
    backend.generate([Request("warm up", "low")])
    server.delay_s = 0.1
    start = time.perf_counter()
    found = backend.generate([Request(str(i), "low") for i in range(6)])
    assert time.perf_counter() - start < 0.5
    assert all(0.1 <= completion.seconds < 0.5 for completion in found)


def test_no_more_calls_are_in_flight_than_allowed(serve: Serve, connect: Any) -> None:
    """Three at a time of twelve, scoring included."""
    server = serve("m")
    server.delay_s = 0.05
    backend = connect(server, max_concurrency=3)
    backend.generate([Request(str(i), "low") for i in range(12)])
    backend.token_distributions([DistributionRequest("p", " go to bed", "low")])
    assert server.busiest == 3


# ------------------------------------------------------------------------------------------------------- replicas


def _served(servers: list[FakeServer]) -> list[list[str]]:
    return [sorted(call.body["prompt"] for call in server.completions) for server in servers]


def test_a_session_stays_with_its_server_and_new_ones_go_where_least_is_to_do(serve: Serve, connect: Any) -> None:
    """Four sessions on two servers: two each, and in the next step the same, in whatever order they come."""
    servers = [serve("m"), serve("m")]
    backend = connect(servers)
    sessions = ("a", "b", "c", "d")
    backend.generate([Request(f"{s}1", "low", session=s) for s in sessions])
    assert _served(servers) == [["a1", "c1"], ["b1", "d1"]]
    backend.generate([Request(f"{s}2", "low", session=s) for s in reversed(sessions)])
    assert _served(servers) == [["a1", "a2", "c1", "c2"], ["b1", "b2", "d1", "d2"]]
    # Two old sessions of the first server come after two new ones, which know of them all the same.
    backend.generate([Request(f"{s}3", "low", session=s) for s in ("e", "f", "a", "c")])
    assert _served(servers)[1] == ["b1", "b2", "d1", "d2", "e3", "f3"]


def test_calls_without_a_session_spread(serve: Serve, connect: Any) -> None:
    """Each goes to the server with the fewest calls."""
    servers = [serve("m"), serve("m"), serve("m")]
    connect(servers).generate([Request(str(i), "low") for i in range(6)])
    assert [len(server.completions) for server in servers] == [2, 2, 2]


def test_a_completion_is_scored_by_the_server_of_its_session(serve: Serve, connect: Any) -> None:
    """All positions of one completion are asked where its prompt is in the cache."""
    servers = [serve("m"), serve("m")]
    backend = connect(servers)
    backend.generate([Request("x", "low"), Request("y", "low", session="s")])
    backend.token_distributions([DistributionRequest("y", " go", "low", session="s")])
    assert [len(server.completions) for server in servers] == [1 + 1, 1 + 3]  # the first also told what it allows


# ------------------------------------------------------------------------------------------------------------- KL


def test_the_longest_prefix_is_scored_first_and_alone(serve: Serve, connect: Any) -> None:
    """So that one call fills the prefix cache for all others."""
    server = serve("m")
    backend = connect(server)
    backend.logprob_limit("low")
    server.calls.clear()
    backend.token_distributions([DistributionRequest("abc", "defg", "low")])
    prompts = [bytes(call.body["prompt"]).decode() for call in server.completions]
    assert prompts[0] == "abcdef"
    assert sorted(prompts) == ["abc", "abcd", "abcde", "abcdef"]


def test_what_a_server_tells_once_is_asked_once_in_a_cold_batch(serve: Serve, connect: Any) -> None:
    """Eight requests at the same time ask once what the server allows, and once for the text of each of five tokens."""
    server = serve("m", max_logprobs=20)
    server.delay_s = 0.02
    found = connect(server).token_distributions([DistributionRequest(f"p{i}", "abca d", "low") for i in range(8)])
    assert all(each.tokens == ("a", "b", "c", "a", " ", "d") for each in found)
    allowed = [call for call in server.completions if call.body["prompt"] == "a"]
    texts = [call.body["tokens"] for call in server.calls if call.path == "/detokenize"]
    assert len(allowed) == 1
    assert sorted(texts) == [[ord(letter)] for letter in " abcd"]


def test_a_question_that_failed_is_asked_again(serve: Serve, connect: Any) -> None:
    """An error is no answer that is kept."""
    server = serve("m", max_logprobs=20)
    server.key = "wanted"
    backend = connect(server)
    with pytest.raises(BackendError, match="refuses the API key"):
        backend.logprob_limit("low")
    server.key = ""
    assert backend.logprob_limit("low") == 20


def test_a_server_that_limits_logprobs_gives_as_many_as_it_does(serve: Serve, connect: Any) -> None:
    """Without top_k the arrays say that they are truncated; the KL is a lower bound of the exact one."""
    exact = connect(serve("m"), serve("n"))
    limited = connect(serve("m", max_logprobs=20), serve("n"))
    assert (exact.logprob_limit("low"), logprob_limit(exact)) == (None, None)
    assert (limited.logprob_limit("low"), limited.logprob_limit("high"), logprob_limit(limited)) == (20, None, 20)
    assert logprob_limit(CachedBackend(limited, CompletionCache())) == 20
    requests = [DistributionRequest(PROMPT, " look\n", name) for name in ("high", "low")]
    high, low = limited.token_distributions(requests)
    assert low.logprobs.shape == (6, 20)
    assert high.logprobs.shape == (6, VOCABULARY)
    whole = exact.token_distributions(requests)
    assert np.all(token_kl(high, low) <= token_kl(*whole) + 1e-6)


def test_only_backends_with_servers_have_a_limit() -> None:
    """One that computes by itself gives whole vocabularies."""
    assert logprob_limit(ScriptedBackend(str)) is None


def test_more_entries_than_a_server_allows_are_refused(serve: Serve, connect: Any) -> None:
    """The message has both ways out."""
    backend = connect(serve("m", max_logprobs=20))
    with pytest.raises(BackendError, match=r"max allowed: 20.*--max-logprobs -1, or lower top_k"):
        backend.token_distributions([DistributionRequest("p", " go", "low", top_k=21)])
    with pytest.raises(BackendError, match="top_k must be at least 1 or None, got 0"):
        backend.token_distributions([DistributionRequest("p", " go", "low", top_k=0)])


def test_chat_turns_are_scored_behind_the_template(serve: Serve, connect: Any) -> None:
    """The server renders them, with the options, as it does for an answer."""
    server = serve("m")
    backend = connect(server, chat_template_options={"enable_thinking": False})
    backend.token_distributions([DistributionRequest(TURNS, "a", "low")])
    scored = server.completions[-1].body["prompt"]
    assert bytes(scored).decode() == '<system>Play.<user>You see a bed 1.<assistant>{"enable_thinking": false}'


# ------------------------------------------------------------------------------------- digests, copies, loops, keys


def test_a_digest_is_the_same_while_a_server_restarts(
    serve: Serve, connect: Any, checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list of models comes too early; once the server answers, it is asked again."""
    server = serve("m")
    server.root = checkpoints["low"]
    backend = connect(server)
    before = backend.digest("low")
    asked = Replicas.served_models
    early = iter([True])

    async def restarting(self: Replicas, one: Any) -> Any:
        return [] if next(early, False) else await asked(self, one)

    monkeypatch.setattr(Replicas, "served_models", restarting)
    assert backend.digest("low") == before
    assert next(early, None) is None


def test_closing_ends_the_calls_of_other_threads(serve: Serve, connect: Any) -> None:
    """A caller that waits for a slow answer gets an error instead of waiting for ever, whatever it asked for."""
    server = serve("m")
    backend = connect(server)
    backend.generate([Request("warm up", "low")])
    server.delay_s = 3.0
    errors: list[BaseException] = []

    def call(ask: Any) -> None:
        try:
            ask()
        except BackendError as error:
            errors.append(error)

    asks = [lambda: backend.generate([Request("slow", "low")]), lambda: backend.logprob_limit("low")]
    threads = [threading.Thread(target=call, args=(ask,), daemon=True) for ask in asks]
    for thread in threads:
        thread.start()
    while server.running < len(threads):
        time.sleep(0.01)
    backend.close()
    for thread in threads:
        thread.join(2.0)
    assert [str(error) for error in errors] == ["the backend was closed while a call was under way"] * 2


def test_a_digest_covers_the_files_of_a_folder_on_this_machine(
    serve: Serve, connect: Any, checkpoints: dict[str, str]
) -> None:
    """The same name with other weights is another model; of a model elsewhere the name is all there is."""
    server = serve("m")
    backend = connect(server)
    named = backend.digest("low")
    server.root = checkpoints["low"]
    low = backend.digest("low")
    server.root = checkpoints["high"]
    assert len({named, low, backend.digest("low")}) == 3
    server.root = "m"
    assert backend.digest("low") == named
    assert connect(server, chat_template_options={"a": 1}).digest("low") != named


def test_copies_connect_anew(serve: Serve, connect: Any) -> None:
    """A pickle and a deep copy of a backend in use answer as it does, and so does a closed one."""
    backend = connect(serve("m"))
    request = Request(PROMPT, "low")
    [text] = [found.text for found in backend.generate([request])]
    for other in (pickle.loads(pickle.dumps(backend)), copy.deepcopy(backend)):
        assert [found.text for found in other.generate([request])] == [text]
        other.close()
    backend.close()
    assert [found.text for found in backend.generate([request])] == [text]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_connects_anew(serve: Serve, connect: Any) -> None:
    """It has neither its parent's thread nor its connections."""
    backend = connect(serve("m"))
    text = backend.generate([Request(PROMPT, "low")])[0].text
    child = os.fork()
    if child == 0:
        os._exit(0 if backend.generate([Request(PROMPT, "low")])[0].text == text else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert backend.generate([Request(PROMPT, "low")])[0].text == text


def test_it_works_inside_a_running_event_loop(serve: Serve, connect: Any) -> None:
    """As in a notebook."""
    backend = connect(serve("m"))

    async def cell() -> list[Completion]:
        return backend.generate([Request(PROMPT, "low")])

    assert asyncio.run(cell())[0].completion_tokens > 1


def test_the_key_comes_from_the_environment_and_shows_nowhere(
    serve: Serve, connect: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls carry it; messages of servers that repeat it, representations, pickles and logs do not."""
    monkeypatch.setenv("SERVER_KEY", "sk-secret")
    server = serve("m", key="sk-secret")
    backend = connect(server, api_key_env="SERVER_KEY")
    backend.generate([Request("p", "low")])
    assert server.completions[0].headers["Authorization"] == "Bearer sk-secret"
    assert b"sk-secret" not in pickle.dumps(backend)
    assert "sk-secret" not in repr(backend) + repr(vars(backend))
    server.key = "another"
    with pytest.raises(BackendError, match=r"refuses the API key \(Incorrect API key: Bearer \*\*\*\).*api_key_env"):
        backend.generate([Request("p", "low")])
    assert "sk-secret" not in caplog.text
    monkeypatch.delenv("SERVER_KEY")
    with pytest.raises(ConfigError, match="SERVER_KEY, which is not set: export it"):
        connect(server, api_key_env="SERVER_KEY")


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize(
    "answer",
    [b"sk-secret is welcome", {"hello": "sk-secret"}, b"x" * 76 + b"sk-secret", {"hello": "x" * 105 + "sk-secret"}],
)
def test_the_key_is_not_quoted_from_answers_that_are_not_understood(
    serve: Serve, connect: Any, monkeypatch: pytest.MonkeyPatch, path: str, answer: Any
) -> None:
    """Of status 200, JSON or not; nor a part of the key, where it lies across the end of the quotation."""
    monkeypatch.setenv("SERVER_KEY", "sk-secret")
    server = serve("m", key="sk-secret")
    understood = server._route
    server._route = lambda call: (200, answer) if call.path == path else understood(call)  # type: ignore[method-assign]
    backend = connect(server, api_key_env="SERVER_KEY")
    with pytest.raises(BackendError, match="answered ") as scored:
        backend.token_distributions([DistributionRequest("p", "a", "low", top_k=1)])
    assert "sk-" not in str(scored.value)
    if path == "/v1/completions":
        with pytest.raises(BackendError, match="answered ") as generated:
            backend.generate([Request("p", "low")])
        assert "sk-" not in str(generated.value)


def test_a_proxy_of_the_environment_does_not_stand_before_this_machine(
    serve: Serve, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loopback addresses are called directly."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert connect(serve("m")).generate([Request("p", "low")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"bf16": "m"}}, r"model must have an entry for each of \['w4', 'bf16'\]"),
        ({"urls": []}, "urls must have an entry for each of"),
        ({"model": {"w4": "", "bf16": "m"}}, "model.w4 must be the name under which its server knows it, got ''"),
        ({"urls": {"w4": "http://a/v1", "bf16": ["http://b/v1"]}}, "urls.w4 must be a list such as"),
        ({"urls": {"w4": ["http://a:1"], "bf16": ["http://b/v1"]}}, "addresses like http://127.0.0.1:8001/v1"),
        ({"urls": {"w4": ["http://me:pw@a/v1"], "bf16": ["http://b/v1"]}}, r"got 'http://\*\*\*@a/v1'"),
        ({"urls": {"w4": ["http://a/v1", "http://a/v1"], "bf16": ["http://b/v1"]}}, "urls.w4 has an address twice"),
        ({"timeout_s": 0}, "expected timeout_s > 0"),
        ({"max_retries": 1.5}, "whole number max_retries >= 0, got 120.0 and 1.5"),
        ({"max_concurrency": 0}, "max_concurrency must be a whole number of at least 1, got 0"),
        ({"recovery_s": -1}, "recovery_s must be a finite number"),
        ({"cache_salt": 3}, "cache_salt must be a text, got 3"),
        ({"api_key_env": 3}, "api_key_env must be the name of an environment variable, got int"),
        ({"url": "x"}, "option of backend kind 'vllm': 'url'; did you mean 'urls'"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    """What is wrong is named, with what would do, before anything is called."""
    settings = {"model": {"w4": "m", "bf16": "m"}, "urls": {"w4": ["http://a/v1"], "bf16": ["http://b/v1"]}}
    with pytest.raises(ConfigError, match=message):
        make_backend({"kind": "vllm", **settings, **change}, ("w4", "bf16"))


def test_a_backend_that_reconnects_keeps_nothing_of_earlier_connections(serve: Serve, connect: Any) -> None:
    """Neither threads nor clients, however often it is closed."""
    backend = connect(serve("m"))
    loops = []
    for _ in range(3):
        backend.generate([Request("p", "low")])
        loops.append(weakref.ref(backend._link().loop))
        backend.close()
    gc.collect()
    assert [loop() for loop in loops] == [None] * 3
