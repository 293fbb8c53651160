"""Timed episodes, and the coefficients of latency models that they give (Eq. 10 and 11, appendix A of the paper).

A session is an episode of one task. `agents/calibrate_latency.py` plays them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.latency import W3_SPEEDUP, fit_prefill_decode, pooled_ms_per_token, pooled_router_ms
from dmr_gym.latency.models import CachedPrefixCost
from dmr_gym.latency.prefix_cache import common_prefix
from dmr_gym.metrics import bootstrap_ratio
from dmr_gym.policies import Decisions, EpisodeKey, Policy
from dmr_gym.types import (
    Backend,
    Completion,
    DistributionRequest,
    Encoder,
    FloatArray,
    LLMCall,
    Request,
    SamplingParams,
    TokenDistributions,
)

PREFILL_DECODE = ("ms_per_prefill_token", "ms_per_decode_token", "ms_per_call")
"""Coefficients of the kind "prefill-decode", each a number a precision."""

_DIGITS = 4


@dataclass(frozen=True, slots=True)
class Session:
    """What was timed in one episode.

    Attributes:
        calls: of each LLM call its seconds, and its prompt, cached and completion tokens, see `LLMCall`.
        first_prompt: text of the first prompt.
        router_s: seconds that the routing decisions took.
        decisions: how many steps a router decided.
    """

    calls: Sequence[Sequence[float]]
    first_prompt: str
    router_s: float = 0.0
    decisions: int = 0


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Settings by kind of latency model, their 95 % intervals, and the quality of fits; as `Profile` has them."""

    kinds: dict[str, dict[str, Any]]
    intervals: dict[str, Any]
    fit: dict[str, dict[str, float]]


class TimedEncoder:
    """An encoder that adds up the seconds it takes.

    Args:
        encoder: does the work.
        clock: seconds.
    """

    def __init__(self, encoder: Encoder, clock: Callable[[], float]) -> None:
        self._encoder, self._clock, self._seconds = encoder, clock, 0.0
        self.dim, self.digest = encoder.dim, encoder.digest

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Encode; see `dmr_gym.types.Encoder`."""
        start = self._clock()
        rows = self._encoder.encode(texts)
        self._seconds += self._clock() - start
        return rows

    def take(self) -> float:
        """Seconds since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


class TimedBackend:
    """A backend whose answers carry the seconds of another clock, such as processor time, and come all at once.

    All requests of a precision wait for each other, and what loads at the first of them is not counted.

    Args:
        backend: answers.
        clock: seconds.
    """

    def __init__(self, backend: Backend, clock: Callable[[], float]) -> None:
        self._backend, self._clock = backend, clock
        self._loaded: set[str] = set()

    @property
    def precisions(self) -> tuple[str, ...]:
        """Names in ascending precision."""
        return self._backend.precisions

    def digest(self, precision: str) -> str:
        """Content address of a copy."""
        return self._backend.digest(precision)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer; see `dmr_gym.types.Backend`."""
        answers: dict[int, Completion] = {}
        for precision in dict.fromkeys(request.precision for request in requests):
            if precision not in self._loaded:
                self._backend.generate([Request("warm up", precision, SamplingParams(max_tokens=1))])
                self._loaded.add(precision)
            indices = [i for i, request in enumerate(requests) if request.precision == precision]
            start = self._clock()
            found = self._backend.generate([requests[i] for i in indices])
            seconds = self._clock() - start
            answers |= {i: replace(answer, seconds=seconds) for i, answer in zip(indices, found, strict=True)}
        return [answers[i] for i in range(len(requests))]

    def token_distributions(self, requests: Sequence[DistributionRequest]) -> list[TokenDistributions]:
        """Score completions."""
        return self._backend.token_distributions(requests)


class TimedPolicy:
    """A policy whose decisions are timed, each with the encoding of the rows that it was the first to see.

    Args:
        policy: decides.
        encoder: of the environment.
        clock: seconds.

    Attributes:
        sessions: [seconds, decisions] of each episode, steps that no router decided left out. An episode that a
            rollout repeats in an idle place is not counted.
    """

    def __init__(self, policy: Policy, encoder: TimedEncoder, clock: Callable[[], float]) -> None:
        self.sessions: dict[EpisodeKey, list[float]] = {}
        self._policy, self._encoder, self._clock = policy, encoder, clock
        self._counted: dict[int, list[float] | None] = {}

    def reset(self, slots: Sequence[int], episodes: Sequence[EpisodeKey], batch_size: int) -> None:
        """Begin sessions; see `Policy.reset`."""
        for slot, key in zip(slots, episodes, strict=True):
            self._counted[slot] = None if key in self.sessions else self.sessions.setdefault(key, [0.0, 0])
        self._policy.reset(slots, episodes, batch_size)

    def act(self, observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide; see `Policy.act`."""
        start = self._clock()
        decided = self._policy.act(observations, infos)
        seconds = self._clock() - start + self._encoder.take()
        for slot, session in self._counted.items():
            if session is not None and decided.router_called[slot]:
                session[0] += seconds
                session[1] += 1
        return decided


def estimate(
    sessions: Mapping[str, Sequence[Session]],
    routed: Sequence[Session],
    projected: Mapping[str, str],
    *,
    block_tokens: int,
    resamples: int,
    seed: int = 0,
) -> Coefficients:
    """Coefficients of the kinds "token-linear" and "prefill-decode" in milliseconds.

    Args:
        sessions: played by one precision each, by its name.
        routed: played by a router with random weights.
        projected: precisions that were not measured, each with the one whose decoding it is 1.15 times as fast as
            (appendix A.3). The factor is one of decoding: prefill is bound by arithmetic, not by memory.
        block_tokens: a server caches whole blocks of so many tokens.
        resamples: bootstrap samples; sessions are drawn with replacement.
        seed: of the bootstrap.

    Raises:
        ConfigError: nothing was generated, or a router decided nothing.
    """
    linear: dict[str, float] = {}
    linear_ci: dict[str, list[float]] = {}
    fitted: dict[str, dict[str, float]] = {name: {} for name in PREFILL_DECODE}
    fitted_ci: dict[str, dict[str, list[float]]] = {name: {} for name in PREFILL_DECODE}
    quality: dict[str, dict[str, float]] = {}
    head = warm_tokens(next(iter(sessions.values())))
    servers = CachedPrefixCost({}, block_tokens=block_tokens, warm_tokens=head)
    for name, played in sessions.items():
        calls = [np.array(session.calls, dtype=np.float64) for session in played]  # (N, 4) each
        elapsed, tokens = [float(c[:, 0].sum()) for c in calls], [int(c[:, 3].sum()) for c in calls]
        linear[name] = round(pooled_ms_per_token(elapsed, tokens), _DIGITS)
        linear_ci[name] = _ratio_interval(elapsed, tokens, resamples, seed)
        fit, intervals = fit_prefill_decode([_computed(c, servers) for c in calls], resamples, seed)
        for kind in PREFILL_DECODE:
            fitted[kind][name] = round(getattr(fit, kind), _DIGITS)
            fitted_ci[kind][name] = [round(end, _DIGITS) for end in intervals[kind]]
        quality[name] = {"r_squared": round(fit.r_squared, _DIGITS), "calls": sum(map(len, calls))}
    for name, source in projected.items():
        linear[name] = round(linear[source] / W3_SPEEDUP, _DIGITS)
        for kind in PREFILL_DECODE:
            faster = W3_SPEEDUP if kind == "ms_per_decode_token" else 1.0
            fitted[kind][name] = round(fitted[kind][source] / faster, _DIGITS)
    waited, decided = [s.router_s for s in routed], [s.decisions for s in routed]
    router_ms = round(pooled_router_ms(waited, decided), _DIGITS)
    router_ci = _ratio_interval(waited, decided, resamples, seed)
    return Coefficients(
        kinds={
            "token-linear": {"router_ms": router_ms, "ms_per_token": linear},
            "prefill-decode": {"router_ms": router_ms, "block_tokens": block_tokens, "warm_tokens": head, **fitted},
        },
        intervals={"token-linear": {"router_ms": router_ci, "ms_per_token": linear_ci}, "prefill-decode": fitted_ci},
        fit=quality,
    )


def warm_tokens(sessions: Sequence[Session]) -> int:
    """Leading tokens that the first prompt of every session shares with that of another: worked examples, for one.

    A server has them from other episodes. They are counted in proportion to the characters.
    """
    firsts = sorted((session.first_prompt, int(session.calls[0][1])) for session in sessions)
    shared = [common_prefix(one[0], other[0]) for one, other in itertools.pairwise(firsts)]
    longest = np.maximum([0, *shared], [*shared, 0])  # a text shares most with a neighbour in their order
    return min(int(tokens * chars // max(len(text), 1)) for (text, tokens), chars in zip(firsts, longest, strict=True))


def _computed(calls: NDArray[np.float64], servers: CachedPrefixCost) -> NDArray[np.float64]:
    """Calls (N, 4) as `fit_prefill_decode` takes them (N, 3): seconds, prompt tokens computed, tokens generated."""
    counts = calls[:, 1:].astype(np.int64).tolist()
    known = [servers.cached_tokens(LLMCall("", prompt, new, cached_tokens=cached)) for prompt, cached, new in counts]
    return np.column_stack([calls[:, 0], calls[:, 1] - known, calls[:, 3]])


def _ratio_interval(seconds: Sequence[float], counts: Sequence[int], resamples: int, seed: int) -> list[float]:
    """95 % interval of a ratio of sums in ms, sessions drawn with replacement."""
    groups, rng = np.arange(len(seconds), dtype=np.int64), np.random.default_rng(seed)
    interval = bootstrap_ratio(1000 * np.array(seconds), np.array(counts, dtype=np.float64), groups, resamples, rng)
    return [round(interval.low, _DIGITS), round(interval.high, _DIGITS)]
