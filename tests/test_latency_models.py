"""dmr_gym.latency: the kinds beside the paper's, on hand-computed calls."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.latency import PriceSource, make_latency_model, price_source, trajectory_seconds
from dmr_gym.types import LatencyModel, LLMCall

PAIR = ("w3", "bf16")
PREFILL_DECODE: dict[str, Any] = {
    "kind": "prefill-decode",
    "ms_per_prefill_token": {"w3": 0.5, "bf16": 1.0},
    "ms_per_decode_token": {"w3": 10.0, "bf16": 20.0},
    "ms_per_call": {"w3": 5.0, "bf16": 0.0},
    "router_ms": 4.0,
}
MONEY: dict[str, Any] = {
    "kind": "money",
    "dollars_per_million": {
        "w3": {"prompt": 2.0, "cached": 0.5, "completion": 10.0},
        "bf16": {"prompt": 4.0, "completion": 20.0},
    },
}
ENERGY: dict[str, Any] = {
    "kind": "energy",
    "joules_per_token": {"w3": 0.5, "bf16": 1.5},
    "joules_per_prefill_token": {"w3": 0.01, "bf16": 0.03},
    "router_joules": 0.2,
}


def test_prefill_counts_what_is_not_in_whole_cached_blocks() -> None:
    """50 cached tokens are 3 blocks of 16: (100 − 48)·0.5 + 7·10 + 5 = 101 ms, and 4 ms of router."""
    model = make_latency_model(PREFILL_DECODE, PAIR)
    call = LLMCall("w3", 100, 7, cached_tokens=50)
    assert isinstance(model, LatencyModel)
    assert model.llm_seconds(call) == pytest.approx(0.101)
    assert model.router_seconds(call) == pytest.approx(0.004)
    assert model.router_seconds(LLMCall("w3", 100, 7, router_called=False)) == 0.0


@pytest.mark.parametrize(
    ("settings", "cached", "computed"),
    [
        ({"block_tokens": 1}, 50, 50),
        ({"block_tokens": 1}, 99, 1),
        ({"block_tokens": 1, "warm_tokens": 70}, 50, 30),
        ({"block_tokens": 1, "warm_tokens": 70}, 0, 30),
        ({"block_tokens": 1, "warm_tokens": 500}, 0, 1),
        ({"warm_tokens": 70}, 0, 100 - 64),
        ({}, 0, 100),
    ],
)
def test_blocks_and_warm_heads_decide_what_is_computed(settings: dict[str, int], cached: int, computed: int) -> None:
    """A head that every episode shares counts as cached; the last token of a prompt never does."""
    free = {"ms_per_call": {"w3": 0.0, "bf16": 0.0}, "ms_per_decode_token": {"w3": 0.0, "bf16": 0.0}}
    model = make_latency_model(PREFILL_DECODE | free | settings, PAIR)
    assert model.llm_seconds(LLMCall("bf16", 100, 7, cached_tokens=cached)) == pytest.approx(computed / 1000)


def test_money_is_prompt_cached_and_completion_tokens_at_their_prices() -> None:
    """W3: 60·2 + 40·0.5 + 7·10 = 210 millionths; bf16 gives no rebate: 100·4 + 7·20 = 540. The router is free."""
    model = make_latency_model(MONEY, PAIR)
    assert model.llm_seconds(LLMCall("w3", 100, 7, cached_tokens=40)) == pytest.approx(210e-6)
    assert model.llm_seconds(LLMCall("bf16", 100, 7, cached_tokens=40)) == pytest.approx(540e-6)
    assert model.router_seconds(LLMCall("w3", 100, 7)) == 0.0
    priced = make_latency_model(MONEY | {"router_dollars": 1e-5}, PAIR)
    assert priced.router_seconds(LLMCall("w3", 100, 7)) == 1e-5


def test_energy_is_joules_a_token() -> None:
    """(100 − 32)·0.01 + 7·0.5 = 4.18 J at w3; without a price of prefill, 7·1.5 J at bf16."""
    model = make_latency_model(ENERGY, PAIR)
    assert model.llm_seconds(LLMCall("w3", 100, 7, cached_tokens=40)) == pytest.approx(4.18)
    assert model.router_seconds(LLMCall("w3", 100, 7)) == 0.2
    decode_only = make_latency_model({k: v for k, v in ENERGY.items() if k != "joules_per_prefill_token"}, PAIR)
    assert decode_only.llm_seconds(LLMCall("bf16", 100, 7)) == pytest.approx(10.5)


def test_wall_clock_is_what_the_backend_measured() -> None:
    """The call's own seconds, and a router time that is given, 0 unless it is."""
    call = LLMCall("w3", 100, 7, seconds=0.25)
    assert make_latency_model({"kind": "wall-clock"}, PAIR).llm_seconds(call) == 0.25
    assert make_latency_model({"kind": "wall-clock"}, PAIR).router_seconds(call) == 0.0
    assert make_latency_model({"kind": "wall-clock", "router_ms": 20}, PAIR).router_seconds(call) == 0.02


def test_switching_costs_the_prefill_of_what_the_other_server_was_sent() -> None:
    """Three steps of 100, 150 and 200 prompt tokens, 5 new tokens each, blocks of one token.

    Bf16 alone: 100 + 50 + 50 ms of prefill. Through w3 in the middle: 100 ms, 150·0.5 ms, and then 200 − 100 at bf16.
    """
    model = make_latency_model(PREFILL_DECODE | {"block_tokens": 1, "router_ms": 0.0}, PAIR)
    stay = [LLMCall("bf16", p, 5, cached_tokens=c) for p, c in ((100, 0), (150, 100), (200, 150))]
    switch = [stay[0], LLMCall("w3", 150, 5), LLMCall("bf16", 200, 5, cached_tokens=100)]
    assert trajectory_seconds(model, stay) == pytest.approx(0.200 + 0.300)
    assert trajectory_seconds(model, switch) == pytest.approx(0.1 + 0.1 + 0.075 + 0.05 + 0.005 + 0.1 + 0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "prefill-decode", "router_ms": 1},
            "'prefill-decode' needs the option ms_per_decode_token, ms_per_pr",
        ),
        (
            PREFILL_DECODE | {"ms_per_call": {"w3": 1}},
            r"ms_per_call must price exactly the precisions \['w3', 'bf16'\]",
        ),
        (PREFILL_DECODE | {"router_ms": -1}, "the router's price must be a finite number of at least 0"),
        (PREFILL_DECODE | {"router_ms": "much"}, "latency router_ms must be a number, got 'much'"),
        (
            PREFILL_DECODE | {"ms_per_decode_token": {"w3": math.nan, "bf16": 1}},
            r"the completion price of w3 must be a finite number of at least 0 \(s\), got nan",
        ),
        (
            PREFILL_DECODE | {"ms_per_decode_token": {"w3": "1", "bf16": 1}},
            "latency ms_per_decode_token.w3 must be a number, got '1'",
        ),
        (PREFILL_DECODE | {"block_tokens": 0}, "block_tokens must be a whole number of at least 1, got 0"),
        (PREFILL_DECODE | {"warm_tokens": -3}, "warm_tokens must be a whole number of at least 0, got -3"),
        (
            {"kind": "money", "dollars_per_million": {"w3": {"prompt": 1}, "bf16": {}}},
            r"dollars_per_million.w3 needs prompt and completion, and may have cached, got \{'prompt': 1\}",
        ),
        (
            {
                "kind": "money",
                "dollars_per_million": {name: {"prompt": 1, "completion": 1, "cache": 1} for name in PAIR},
            },
            "unknown price dollars_per_million.w3: 'cache'; did you mean 'cached'",
        ),
        ({"kind": "money", "dollars_per_million": 3}, "dollars_per_million must price exactly the precisions"),
        ({"kind": "energy", "joules_per_token": {"w3": 1}}, "joules_per_token must price exactly the precisions"),
        ({"kind": "wall-clock", "router_ms": -1}, "router_ms must be a finite number of at least 0"),
        ({"kind": "wall-clok"}, "unknown latency kind 'wall-clok'; did you mean 'wall-clock'"),
    ],
)
def test_wrong_settings_say_the_way_out(settings: dict[str, Any], message: str) -> None:
    """Each mistake has its own message."""
    with pytest.raises(ConfigError, match=message):
        make_latency_model(settings, PAIR)


@pytest.mark.parametrize(
    ("settings", "title", "unit"),
    [
        (PREFILL_DECODE, "modelled seconds, prices of your own", "s"),
        (MONEY, "dollars, prices of your own", "$"),
        (ENERGY, "joules, prices of your own", "J"),
        ({"kind": "wall-clock"}, "measured seconds, wall clock of the calls", "s"),
        ("alfworld-4b-gptq-w3", "modelled seconds, prices of alfworld-4b-gptq-w3, W3 projected", "s"),
    ],
)
def test_every_kind_says_what_its_numbers_are(settings: Any, title: str, unit: str) -> None:
    """The words and the unit that tables and pictures show."""
    source = price_source(settings)
    assert isinstance(source, PriceSource)
    assert (source.title, source.unit) == (title, unit)
