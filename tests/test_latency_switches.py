"""dmr_gym.latency_switches: what is timed, and what a switch costs, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from dmr_gym.backends import ScriptedBackend
from dmr_gym.episode import Turn
from dmr_gym.latency import make_latency_model
from dmr_gym.latency.models import CachedPrefixCost
from dmr_gym.latency_switches import TimedSwitch, switch_costs, switch_steps, switch_table, time_switches
from dmr_gym.types import Completion, Request, TaskStep

STEP = TaskStep("go", "seen", 0.0, False, False, "action")


class Server(ScriptedBackend):
    """Counts a token a character; takes a second for each that it has not seen in a prompt or an answer."""

    def __init__(self, log: list[tuple[str, ...]]) -> None:
        super().__init__(lambda request: "go", ("low", "high"), name="server")
        self.log, self.asked, self.seen = log, [], ""

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answer one request."""
        [request] = requests
        text = str(request.prompt)
        known = next(n for n in range(len(text), -1, -1) if self.seen.startswith(text[:n]))
        self.asked.append(f"{request.precision}:{text}")
        self.seen = f"{text} go"
        return [Completion(" go", len(text), 3, float(len(text) - known))]

    def close(self) -> None:
        """Note what was asked."""
        self.log.append(tuple(self.asked))


def _turns(steps: int) -> list[Turn]:
    prompts = ["start" + " go seen" * t for t in range(steps)]
    return [Turn(Request(p, "high"), Completion(" go", len(p), 3, 0.0), STEP, 0.0, 0.0, 0.0) for p in prompts]


def test_switches_come_at_powers_of_two_before_the_end() -> None:
    """An episode of one step has none: nobody could have been asked before."""
    assert [switch_steps(n) for n in (1, 2, 5, 9)] == [[], [1], [1, 2, 4], [1, 2, 4, 8]]


def test_a_call_is_timed_behind_an_empty_cache_and_behind_the_step_before() -> None:
    """13 and 21 tokens cold; warm, the step before and its answer are known but for the last token, which is read anew.

    Cold comes first at the first switch and last at the second; each has a backend of its own, which is closed.
    """
    log: list[tuple[str, ...]] = []
    found = time_switches(lambda: Server(log), _turns(3), "low")
    first, second, third = (f"low:{turn.request.prompt}" for turn in _turns(3))
    assert log == [("low:a", second), (first, second), (second, third), ("low:a", third)]
    assert found == [
        TimedSwitch(1, 13, 7, 3, 3, cold_s=13.0, warm_s=5.0),
        TimedSwitch(2, 21, 15, 3, 3, cold_s=21.0, warm_s=5.0),
    ]


def _model() -> CachedPrefixCost:
    settings = {"ms_per_prefill_token": {"low": 2.0}, "ms_per_decode_token": {"low": 10.0}, "ms_per_call": {"low": 5.0}}
    model = make_latency_model(
        {"kind": "prefill-decode", "router_ms": 0.0, "block_tokens": 16, "warm_tokens": 64, **settings}, ["low"]
    )
    assert isinstance(model, CachedPrefixCost)
    return model


def test_costs_are_means_of_differences_over_the_sessions_that_came_so_far() -> None:
    """50 cached tokens are 48 in blocks of 16: 96 ms more when cold, and 10 ms less for the token fewer.

    Two sessions came to step 1, with 0.2 and 0.4 s; draws of either twice are the ends of the interval. One came to
    step 2, which has none. Warm heads of other episodes do not count, as the caches were empty.
    """
    sessions = [
        [TimedSwitch(1, 100, 50, 4, 4, 0.5, 0.3), TimedSwitch(2, 120, 110, 4, 5, 0.5, 0.4)],
        [TimedSwitch(1, 80, 50, 4, 4, 0.6, 0.2)],
    ]
    one, two = switch_costs(sessions, "low", _model(), resamples=200)
    assert (one.step, one.sessions, one.prompt_tokens, one.computed) == (1, 2, 90.0, (90.0, 42.0))
    assert [one.cold_ms, one.warm_ms, one.switch_ms] == pytest.approx([550, 250, 300])
    assert one.interval is not None
    assert [one.interval.low, one.interval.high] == pytest.approx([200, 400])
    assert one.predicted_ms == pytest.approx(96)
    assert (two.step, two.sessions, two.computed) == (2, 1, (120.0, 24.0))
    assert two.interval is None
    assert two.predicted_ms == pytest.approx(96 * 2 - 10)
    table = switch_table({"low": [one, two]})
    assert table.rows[0] == ("low", "1", "2", "90", "90", "42", "550.0", "250.0", "300.0 [200.0, 400.0]", "96.0")
    assert table.rows[1][8] == "100.0 [–]"
