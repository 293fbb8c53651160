"""What a switch of precision costs on servers: the same call with a cold and with a warm prefix, timed and predicted.

A switch at step t sends a server the whole prompt, of which it has nothing; a precision that stays has been asked at
step t - 1, and its server has that prompt and its answer. `agents/calibrate_latency.py --switches` measures both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from dmr_gym.episode import Turn
from dmr_gym.latency.models import CachedPrefixCost
from dmr_gym.latency.prefix_cache import cached_prompt_tokens
from dmr_gym.metrics import Interval, bootstrap_ratio
from dmr_gym.tables import Table, number, with_interval
from dmr_gym.types import Backend, Completion, LLMCall, Request, SamplingParams

SWITCH_COLUMNS = (
    "to",
    "at step",
    "sessions",
    "prompt tokens",
    "computed cold",
    "computed warm",
    "cold, ms",
    "warm, ms",
    "switch, ms",
    "predicted, ms",
)


class ClosingBackend(Backend, Protocol):
    """A backend that is closed after use."""

    def close(self) -> None:
        """Close its connections."""
        ...


class TimedSwitch(NamedTuple):
    """One call, cold and warm.

    Attributes:
        step: of the episode, counted from 0.
        prompt_tokens: of the call.
        cached_tokens: of them, those that the server had when it was warm, see `LLMCall`.
        cold_tokens: new tokens of the answer when it was cold.
        warm_tokens: new tokens of the answer when it was warm; rounding can make the answers differ.
        cold_s: seconds when it was cold.
        warm_s: seconds when it was warm.
    """

    step: int
    prompt_tokens: int
    cached_tokens: int
    cold_tokens: int
    warm_tokens: int
    cold_s: float
    warm_s: float


def switch_steps(steps: int) -> list[int]:
    """Steps at which switches are timed in an episode of so many: 1, 2, 4, 8 and so on."""
    return [2**power for power in range(steps.bit_length()) if 2**power < steps]


def time_switches(connect: Callable[[], ClosingBackend], turns: Sequence[Turn], precision: str) -> list[TimedSwitch]:
    """Time the calls of an episode at one precision, one after the other.

    Args:
        connect: makes a backend whose servers begin with an empty prefix cache.
        turns: of the episode, whatever precision played it.
        precision: that is asked.
    """
    found = []
    for number_, step in enumerate(switch_steps(len(turns))):
        before, request = (replace(turns[t].request, precision=precision) for t in (step - 1, step))
        # What comes first changes, so that neither gains by it. The opening call connects, and warms up one of them.
        openings = {"cold": Request("a", precision, SamplingParams(max_tokens=1)), "warm": before}
        answers: dict[str, tuple[Completion, Completion]] = {}
        for kind in sorted(openings, reverse=number_ % 2 == 1):
            with closing(connect()) as backend:
                [opening] = backend.generate([openings[kind]])
                answers[kind] = opening, backend.generate([request])[0]
        (_, cold), (opening, warm) = answers["cold"], answers["warm"]
        cached = cached_prompt_tokens(request.prompt, warm.prompt_tokens, before, opening)
        new = (cold.completion_tokens, warm.completion_tokens)
        found.append(TimedSwitch(step, warm.prompt_tokens, cached, *new, cold.seconds, warm.seconds))
    return found


@dataclass(frozen=True, slots=True)
class SwitchCost:
    """Switches at one step, means over the sessions that came so far; times in ms.

    Attributes:
        step: of the switch.
        sessions: how many.
        prompt_tokens: of the call.
        computed: prompt tokens that the server computes, cold and warm, as the cost model counts them.
        cold_ms: measured with a cold prefix.
        warm_ms: measured with a warm prefix.
        switch_ms: measured difference.
        interval: 95 %, of the difference; sessions are drawn with replacement. None for fewer than two.
        predicted_ms: the difference by the cost model, of the same calls.
    """

    step: int
    sessions: int
    prompt_tokens: float
    computed: tuple[float, float]
    cold_ms: float
    warm_ms: float
    switch_ms: float
    interval: Interval | None
    predicted_ms: float


def switch_costs(
    sessions: Sequence[Sequence[TimedSwitch]], precision: str, model: CachedPrefixCost, resamples: int, seed: int = 0
) -> list[SwitchCost]:
    """What switching to a precision costs at each step, beside what a cost model says.

    Args:
        sessions: what was timed, an entry an episode.
        precision: that was asked.
        model: in seconds. Its ``warm_tokens`` do not count: the caches were empty.
        resamples: bootstrap samples.
        seed: of the bootstrap.
    """
    model = replace(model, warm_tokens=0)
    costs = []
    for step in sorted({timed.step for session in sessions for timed in session}):
        timed = [one for session in sessions for one in session if one.step == step]
        cold = [LLMCall(precision, one.prompt_tokens, one.cold_tokens) for one in timed]
        warm = [LLMCall(precision, t.prompt_tokens, t.warm_tokens, cached_tokens=t.cached_tokens) for t in timed]
        predicted = [model.llm_seconds(c) - model.llm_seconds(w) for c, w in zip(cold, warm, strict=True)]
        measured = np.array([one.cold_s - one.warm_s for one in timed])
        interval = None  # drawn again and again, one session would look as if it were certain
        if len(timed) > 1:
            everyone, rng = np.arange(len(timed), dtype=np.int64), np.random.default_rng(seed)
            interval = bootstrap_ratio(1000 * measured, np.ones(len(timed)), everyone, resamples, rng)
        prompt = float(np.mean([one.prompt_tokens for one in timed]))
        costs.append(
            SwitchCost(
                step=step,
                sessions=len(timed),
                prompt_tokens=prompt,
                computed=(prompt, prompt - float(np.mean([model.cached_tokens(call) for call in warm]))),
                cold_ms=1000 * float(np.mean([one.cold_s for one in timed])),
                warm_ms=1000 * float(np.mean([one.warm_s for one in timed])),
                switch_ms=1000 * float(measured.mean()),
                interval=interval,
                predicted_ms=1000 * float(np.mean(predicted)),
            )
        )
    return costs


def switch_table(costs: Mapping[str, Sequence[SwitchCost]]) -> Table:
    """What switches to each precision cost, a row a step."""
    rows = [
        (
            name,
            str(cost.step),
            str(cost.sessions),
            number(cost.prompt_tokens, 0),
            *(number(tokens, 0) for tokens in cost.computed),
            number(cost.cold_ms, 1),
            number(cost.warm_ms, 1),
            with_interval(cost.switch_ms, cost.interval, 1) if cost.interval else f"{number(cost.switch_ms, 1)} [–]",
            number(cost.predicted_ms, 1),
        )
        for name, found in costs.items()
        for cost in found
    ]
    note = (
        "Means over sessions; the switch is cold less warm of the same call, with its 95 % interval, which takes two "
        "sessions."
    )
    return Table("What a switch of precision costs", SWITCH_COLUMNS, tuple(rows), (note,))
