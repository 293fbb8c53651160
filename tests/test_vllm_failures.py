"""Servers that fail, go away, come back, or were set up wrongly: what is tried again, and what the message says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_openai import Failure, FakeServer, Serve

from dmr_gym.backends import VLLMBackend, make_backend
from dmr_gym.backends._replicas import Patience
from dmr_gym.env import PrecisionRoutingEnv
from dmr_gym.errors import BackendError
from dmr_gym.types import DistributionRequest, Message, Request
from dmr_gym.vector import PrecisionRoutingVectorEnv

Connect = Callable[..., VLLMBackend]


def _later(seconds: float, action: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, action)
    timer.start()
    return timer


# -------------------------------------------------------------------------------------------------- tried again


@pytest.mark.parametrize("status", [429, 500, 503, -1, 0], ids=["429", "500", "503", "broken off", "dropped"])
def test_what_passes_is_tried_again(serve: Serve, connect: Connect, status: int) -> None:
    """Two failures in a row cost no answer; its seconds are those of the attempt that succeeded."""
    server = serve("m")
    backend = connect(server, patience=Patience(backoff_s=0.2, max_retries=2))
    [expected] = backend.generate([Request("p", "low")])
    server.failures = [Failure(status), Failure(status)]
    [found] = backend.generate([Request("p", "low")])
    assert (found.text, found.completion_tokens) == (expected.text, expected.completion_tokens)
    assert len(server.completions) == 1 + 3
    assert found.seconds < 0.3  # the pauses alone were (0.5 to 1) · (0.2 + 0.4) s


def test_a_server_that_names_a_time_is_left_alone_until_then(serve: Serve, connect: Connect) -> None:
    """Retry-After of a 429 is longer than our own pause, and holds."""
    server = serve("m")
    backend = connect(server)
    server.failures = [Failure(429, headers={"Retry-After": "0.4"})]
    start = time.perf_counter()
    backend.generate([Request("p", "low")])
    assert time.perf_counter() - start >= 0.4


def test_pauses_double_up_to_a_limit_and_differ() -> None:
    """Half to all of 0.5, 1, 2, 4, 8, 8 seconds."""
    delays = [[Patience().delay_s(attempt) for _ in range(50)] for attempt in (1, 2, 3, 4, 5, 9)]
    for longest, drawn in zip((0.5, 1, 2, 4, 8, 8), delays, strict=True):
        assert longest / 2 <= min(drawn) < max(drawn) <= longest


def test_pauses_have_no_last_one() -> None:
    """A wait of hours has thousands of repetitions; a power of two that overflows would end it."""
    assert Patience(recovery_s=1e6).delay_s(5000) <= 8


def test_a_server_that_keeps_failing_is_given_up_with_its_reason(serve: Serve, connect: Connect) -> None:
    """After max_retries repetitions, with what to look at."""
    server = serve("m")
    server.failures = [Failure(503, "engine is dead")] * 9
    with pytest.raises(BackendError, match=r"failed 3 times \(engine is dead\): look at its log; lower max_conc"):
        connect(server).generate([Request("p", "low")])
    assert len(server.completions) == 3


def test_a_server_that_is_too_slow_is_given_up(serve: Serve, connect: Connect) -> None:
    """A timeout is told with its length and the setting."""
    server = serve("m")
    server.delay_s = 0.5
    backend = connect(server, patience=Patience(timeout_s=0.1, max_retries=1, backoff_s=0.01))
    with pytest.raises(BackendError, match=r"failed 2 times \(no answer within 0.1 s\).*raise timeout_s"):
        backend.generate([Request("p", "low")])


def test_a_server_that_never_was_there_is_a_mistake(serve: Serve, connect: Connect) -> None:
    """A wrong address does not wait for a recovery, and the message names the setting and the recipe."""
    server = serve("m")
    server.stop()
    start = time.perf_counter()
    with pytest.raises(BackendError, match=rf"no server answers at {server.url} .*agents/serve_pair.py.*urls.low"):
        connect(server).generate([Request("p", "low")])
    with pytest.raises(BackendError, match="no server answers at"):
        connect(server).digest("low")
    assert time.perf_counter() - start < 5


def test_a_server_that_stays_away_is_waited_for_and_then_given_up(
    serve: Serve, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """For recovery_s, whatever max_retries is; a warning tells for what the call waits, once."""
    server = serve("m")
    backend = connect(server, patience=Patience(recovery_s=0.5, max_retries=0, backoff_s=0.02))
    backend.generate([Request("p", "low")])
    server.stop()
    start = time.perf_counter()
    with caplog.at_level(logging.WARNING), pytest.raises(BackendError, match=r"did not return within 0.5 s: start it"):
        backend.generate([Request("p", "low")])
    assert time.perf_counter() - start >= 0.5
    assert caplog.text.count("went away") == 1


def test_another_server_takes_over_and_keeps_the_session(serve: Serve, connect: Connect) -> None:
    """The session moves at once, and does not move back when the first one returns."""
    first, second = serve("m"), serve("m")
    backend = connect([first, second])
    backend.generate([Request("a1", "low", session="a"), Request("b1", "low", session="b")])
    first.stop()
    start = time.perf_counter()
    backend.generate([Request("a2", "low", session="a")])
    assert time.perf_counter() - start < 5
    first.start()
    backend.generate([Request("a3", "low", session="a")])
    assert [call.body["prompt"] for call in first.completions] == ["a1"]
    assert [call.body["prompt"] for call in second.completions] == ["b1", "a2", "a3"]


# ------------------------------------------------------------------------------------------------ in an environment


def _settings(*servers: FakeServer) -> dict[str, Any]:
    names = ("low", "high")
    return {
        "task": "toy",
        "precisions": names,
        "encoder": {"kind": "hash", "dim": 8},
        "latency": {"ms_per_token": {"low": 1.0, "high": 2.0}, "router_ms": 0.0},
        "backend": {
            "kind": "vllm",
            "model": {name: server.model for name, server in zip(names, servers, strict=True)},
            "urls": {name: [server.url] for name, server in zip(names, servers, strict=True)},
        },
    }


def test_a_server_that_dies_and_returns_costs_no_transition(serve: Serve) -> None:
    """The episode is the one that an undisturbed server gives, step by step."""

    def answer(prompt: str, seed: int) -> str:
        return "go left" if len(prompt) % 2 else "go right"

    def play(*, disturb: bool) -> list[Any]:
        low, high = serve("low", answer), serve("high", answer)
        env = PrecisionRoutingEnv(**_settings(low, high))
        found: list[Any] = [env.reset(seed=1)[0].tolist()]
        for step in range(6):
            if disturb and step == 3:
                low.stop()
                _later(0.4, low.start)
            observation, reward, terminated, _, info = env.step(0)
            found.append([observation.tolist(), reward, terminated, info])
            if terminated:
                break
        env.close()
        return found

    assert play(disturb=True) == play(disturb=False)


def test_a_step_that_failed_can_be_tried_again(serve: Serve) -> None:
    """Of sixteen sub-environments some had their answers: all are as before, and the next try goes on from there."""
    low, high = serve("low", lambda prompt, seed: "go left"), serve("high", lambda prompt, seed: "go right")
    actions = np.arange(16) % 2

    def after_two_steps(fail: bool) -> tuple[Any, ...]:
        envs = PrecisionRoutingVectorEnv(16, **_settings(low, high))
        envs.reset(seed=0)
        envs.step(actions)
        if fail:
            before = envs.snapshot()
            high.failures = [Failure(404, "gone")] * 8
            with pytest.raises(BackendError, match="has nothing at"):
                envs.step(actions)
            assert envs.snapshot() == before
            high.failures = []
        found = envs.step(actions)
        envs.close()
        return found[0].tolist(), found[1].tolist(), found[2].tolist()

    assert after_two_steps(fail=True) == after_two_steps(fail=False)


# ---------------------------------------------------------------------------------------------------- set up wrongly


def test_a_wrong_model_name_is_told_with_those_that_are_served(serve: Serve) -> None:
    """By a call, and by the digest, which recipes ask for first."""
    server = serve("qwen-awq")
    config = {"kind": "vllm", "model": {"w4": "qwen", "bf16": "qwen-awq"}, "urls": {"w4": [server.url]}}
    config["urls"] |= {"bf16": [server.url]}
    backend = make_backend(config, ("w4", "bf16"))
    expected = r"no model 'qwen'; it serves \['qwen-awq'\]: set model.w4 of the backend .*--served-model-name"
    for call in (lambda: backend.generate([Request("p", "w4")]), lambda: backend.digest("w4")):
        with pytest.raises(BackendError, match=expected):
            call()
    assert backend.digest("bf16")
    backend.close()


def test_a_full_context_says_what_to_change(serve: Serve, connect: Connect) -> None:
    """Both sides can: the server's length, and what is sent."""
    backend = connect(serve("m", context=20))
    with pytest.raises(BackendError, match=r"maximum context length is 20.*--max-model-len, or lower max_tokens"):
        backend.generate([Request("x" * 30, "low")])


def test_a_server_without_logprobs_says_what_to_change(serve: Serve, connect: Connect) -> None:
    """Neither a limit of 0 nor an answer without them becomes a KL."""
    with pytest.raises(BackendError, match=r"max allowed: 0.*--max-logprobs -1"):
        connect(serve("m", max_logprobs=0)).logprob_limit("low")
    silent = serve("m")
    complete = silent._complete
    silent._complete = lambda body, tokens: complete({**body, "logprobs": None}, tokens)  # type: ignore[method-assign]
    with pytest.raises(BackendError, match=r"gives no log-probabilities.*--max-logprobs -1"):
        connect(silent).token_distributions([DistributionRequest("p", " go", "low")])


def test_tokens_named_by_their_text_are_refused(serve: Serve, connect: Connect) -> None:
    """Two tokens of equal text would become one."""
    server = serve("m")
    complete = server._complete
    server._complete = lambda body, tokens: complete(  # type: ignore[method-assign]
        {**body, "return_tokens_as_token_ids": False}, tokens
    )
    with pytest.raises(BackendError, match="return_tokens_as_token_ids asked for their ids: KL needs vLLM"):
        connect(server).token_distributions([DistributionRequest("p", " go", "low")])


def test_chat_turns_need_a_template(serve: Serve, connect: Connect) -> None:
    """The server's refusal is told with both ways out."""
    with pytest.raises(BackendError, match=r"cannot render chat turns .*use text prompts, or start it with --chat-tem"):
        connect(serve("m", chat=False)).generate([Request((Message("user", "x"),), "low")])


def test_an_address_of_something_else_is_told(serve: Serve, connect: Connect) -> None:
    """A path that is not there, and an answer that is no JSON."""
    server = serve("m")
    server._route = lambda call: (404, {"detail": "Not Found"})  # type: ignore[method-assign]
    with pytest.raises(BackendError, match=r"has nothing at http://127.0.0.1:\d+/v1/completions: URLs end in /v1"):
        connect(server).generate([Request("p", "low")])
    server._route = lambda call: (200, {"hello": 1})  # type: ignore[method-assign]
    with pytest.raises(BackendError, match=r'answered \{"hello": 1\}; expected a choice with its text, and usage'):
        connect(server).generate([Request("p", "low")])
    with pytest.raises(BackendError, match=r"expected tokens from /tokenize"):
        connect(server).token_distributions([DistributionRequest("p", "a", "low", top_k=1)])


def test_a_reasoning_parser_is_refused(serve: Serve, connect: Connect) -> None:
    """It would take away the thoughts that prompts show and that count as tokens."""
    server = serve("m")
    message = {"content": "look", "reasoning_content": "I should look."}
    usage = {"prompt_tokens": 3, "completion_tokens": 9}
    server._route = lambda call: (200, {"choices": [{"message": message}], "usage": usage})  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="start it without --reasoning-parser"):
        connect(server).generate([Request((Message("user", "x"),), "low")])


def test_what_cannot_be_sent_is_refused_before_it_is(serve: Serve, connect: Connect) -> None:
    """An empty prompt has no tokens; nothing goes out."""
    server = serve("m")
    with pytest.raises(BackendError, match="the prompt has no tokens"):
        connect(server).generate([Request("p", "low"), Request("", "low")])
    assert server.completions == []
