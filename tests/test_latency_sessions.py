"""dmr_gym.latency_sessions: what is timed, and the coefficients that sessions give, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from dmr_gym.backends import ScriptedBackend
from dmr_gym.encoders import HashEncoder
from dmr_gym.errors import ConfigError
from dmr_gym.latency_sessions import Session, TimedBackend, TimedEncoder, TimedPolicy, estimate, warm_tokens
from dmr_gym.policies import Decisions, EpisodeKey
from dmr_gym.types import Backend, Request


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowEncoder(HashEncoder):
    """Takes a second a text."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(4)
        self.clock = clock

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.clock.now += len(texts)
        return super().encode(texts)


class SlowPolicy:
    """Takes ten seconds a batch, and asks its router where ``asked`` says."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.asked = [True, True]
        self.begun: list[list[int]] = []

    def reset(self, slots: Sequence[int], episodes: Sequence[EpisodeKey], batch_size: int) -> None:
        self.begun.append(list(slots))

    def act(self, observations: np.ndarray, infos: dict[str, object]) -> Decisions:
        self.clock.now += 10
        decided = Decisions.without_router(np.zeros(2, dtype=np.int64))
        return Decisions(decided.actions, decided.p_high, decided.logprobs, np.array(self.asked))


def test_a_decision_takes_the_batch_and_the_encoding_of_its_rows() -> None:
    """Two rows and a batch are 12 s for either session; a forced step counts neither seconds nor a decision."""
    clock = Clock()
    encoder = TimedEncoder(SlowEncoder(clock), clock)
    inner = SlowPolicy(clock)
    policy = TimedPolicy(inner, encoder, clock)
    one, other = EpisodeKey("one"), EpisodeKey("other")
    policy.reset([0, 1], [one, other], 2)
    encoder.encode(["a", "b"])
    policy.act(np.zeros((2, 1, 4)), {})
    inner.asked = [True, False]
    encoder.encode(["a"])
    clock.now += 100  # of an LLM, which is no router's
    policy.act(np.zeros((2, 1, 4)), {})
    assert policy.sessions == {one: [12 + 11, 2], other: [12, 1]}
    assert inner.begun == [[0, 1]]


def test_answers_of_a_process_carry_the_seconds_of_the_given_clock() -> None:
    """Two requests at low wait 2 s for each other, one at high 1 s; what loads at the first request counts nowhere."""
    clock = Clock()

    def answer(request: Request) -> str:
        clock.now += 1 if request.prompt != "warm up" else 50
        return f"{request.precision} {request.prompt}"

    backend = TimedBackend(ScriptedBackend(answer, ("low", "high"), name="slow"), clock)
    assert isinstance(backend, Backend)
    assert backend.digest("low") == ScriptedBackend(answer, ("low", "high"), name="slow").digest("low")
    for _ in range(2):
        found = backend.generate([Request("a", "low"), Request("b", "high"), Request("c", "low")])
        assert [(each.text, each.seconds) for each in found] == [("low a", 2.0), ("high b", 1.0), ("low c", 2.0)]
    assert clock.now == 2 * 50 + 2 * 3


def test_an_episode_that_fills_an_idle_place_is_not_counted() -> None:
    """Neither beside the one that counts nor after it."""
    clock = Clock()
    policy = TimedPolicy(SlowPolicy(clock), TimedEncoder(SlowEncoder(clock), clock), clock)
    key = EpisodeKey("one")
    policy.reset([0, 1], [key, key], 2)
    policy.act(np.zeros((2, 1, 4)), {})
    policy.reset([0], [key], 2)
    policy.act(np.zeros((2, 1, 4)), {})
    assert policy.sessions == {key: [10, 1]}


def session(*calls: tuple[float, int, int, int], first: str = "prompt", router: tuple[float, int] = (0, 0)) -> Session:
    """Calls of seconds, prompt, cached and completion tokens."""
    return Session(list(calls), first, *router)


FAST = [session((1.0, 50, 0, 60), (1.0, 80, 49, 40)), session((9.0, 50, 0, 300))]
SLOW = [session((4.0, 50, 0, 100)), session((2.0, 50, 0, 20), (1.0, 70, 50, 20))]
ROUTED = [session((0.0, 1, 0, 1), router=(0.1, 10)), session((0.0, 1, 0, 1), router=(0.5, 20))]


def test_coefficients_are_ratios_of_sums_over_sessions() -> None:
    """11 s / 400 tokens = 27.5 ms (the mean of ratios is 25), 7 s / 140 = 50 ms, and 0.6 s / 30 decisions = 20 ms.

    Sessions of 20 and 30 ms a token can be drawn as both, either twice: the interval ends there.
    """
    found = estimate({"w4": FAST, "bf16": SLOW}, ROUTED, {}, block_tokens=16, resamples=200)
    assert found.kinds["token-linear"] == {"router_ms": 20.0, "ms_per_token": {"w4": 27.5, "bf16": 50.0}}
    assert found.intervals["token-linear"]["ms_per_token"]["w4"] == [20.0, 30.0]
    assert found.intervals["token-linear"]["router_ms"] == [10.0, 25.0]
    assert found.fit["w4"]["calls"] == 3


def test_the_fit_sees_what_the_server_had_to_compute() -> None:
    """1 ms a computed token and 10 ms a new one: cached tokens count in blocks of 16, from the common head at least.

    First prompts share 40 of 50 characters, so 40 of their 50 tokens are warm, 32 in whole blocks.
    """
    head = "h" * 40

    def timed(prompt: int, cached: int, new: int) -> tuple[float, int, int, int]:
        return (0.001 * (prompt - cached // 16 * 16) + 0.010 * new, prompt, cached, new)

    def cold(new: int) -> tuple[float, int, int, int]:
        seconds, _, _, _ = timed(50, 40, new)
        return (seconds, 50, 0, new)

    sessions = [
        session(cold(5), timed(90, 60, 9), timed(140, 100, 2), first=head + "a" * 10),
        session(cold(8), timed(100, 63, 3), timed(170, 111, 12), first=head + "b" * 10),
    ]
    found = estimate({"w4": sessions}, ROUTED, {}, block_tokens=16, resamples=10)
    assert found.kinds["prefill-decode"]["warm_tokens"] == 40
    assert found.kinds["prefill-decode"]["ms_per_prefill_token"]["w4"] == pytest.approx(1.0, abs=1e-3)
    assert found.kinds["prefill-decode"]["ms_per_decode_token"]["w4"] == pytest.approx(10.0, abs=1e-3)
    assert found.kinds["prefill-decode"]["ms_per_call"]["w4"] == pytest.approx(0.0, abs=1e-3)
    assert found.fit["w4"]["r_squared"] == 1.0


def test_a_projected_precision_decodes_1_15_times_as_fast_as_its_source() -> None:
    """Its prefill is that of its source, and it has no interval, as nothing was measured.

    Calls of 2 ms a prompt token, 10 ms a new one and 50 ms besides: 360 + 180 + 200 ms for 18 new tokens.
    """
    calls = [(0.002 * p + 0.010 * n + 0.050, p, 0, n) for p, n in ((50, 9), (20, 3), (100, 5), (10, 1))]
    found = estimate({"w4": [session(*calls)]}, ROUTED, {"w3": "w4"}, block_tokens=1, resamples=10)
    seconds = 0.002 * 180 + 0.010 * 18 + 4 * 0.050
    assert found.kinds["token-linear"]["ms_per_token"]["w4"] == pytest.approx(1000 * seconds / 18, abs=1e-4)
    assert found.kinds["token-linear"]["ms_per_token"]["w3"] == pytest.approx(1000 * seconds / 18 / 1.15, abs=1e-4)
    fitted = found.kinds["prefill-decode"]
    assert fitted["ms_per_prefill_token"] == pytest.approx({"w4": 2.0, "w3": 2.0}, abs=1e-4)
    assert fitted["ms_per_decode_token"] == pytest.approx({"w4": 10.0, "w3": 10 / 1.15}, abs=1e-4)
    assert fitted["ms_per_call"] == pytest.approx({"w4": 50.0, "w3": 50.0}, abs=1e-4)
    assert "w3" not in found.intervals["token-linear"]["ms_per_token"]
    assert "w3" not in found.fit


def test_warm_tokens_are_what_every_first_prompt_shares_with_another() -> None:
    """Heads of two kinds, 8 and 6 of 10 characters, at 2 tokens a character; one that stands alone has none."""
    firsts = ["a" * 8 + "xy", "a" * 8 + "zz", "b" * 6 + "qrst", "b" * 6 + "uvwx"]
    sessions = [session((0.1, 20, 0, 1), first=text) for text in firsts]
    assert warm_tokens(sessions) == 12
    assert warm_tokens([*sessions, session((0.1, 20, 0, 1), first="c" * 10)]) == 0
    assert warm_tokens(sessions[:1]) == 0


def test_a_router_that_decided_nothing_has_no_time() -> None:
    """Every step was forced: the message of Eq. 11's estimator."""
    idle = [session((0.0, 1, 0, 1))]
    with pytest.raises(ConfigError, match="the sum of decided_steps must be positive"):
        estimate({"w4": FAST}, idle, {}, block_tokens=1, resamples=10)
