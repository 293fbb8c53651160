"""dmr_gym.latency: Eq. 9 to 11, Table 3, and the numbers that follow from them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.latency import (
    TABLE_3,
    PriceSource,
    TokenLinearLatency,
    break_even_tokens,
    lambda_per_second,
    make_latency_model,
    per_token_speedup,
    pooled_ms_per_token,
    pooled_router_ms,
    price_source,
    trajectory_seconds,
)
from dmr_gym.types import LatencyModel, LLMCall

# Table 3 as printed, and what follows: l_h, l_l, l_r, sessions, l_h/l_l, break-even tokens at K = 0, .2, .4, .7,
# and the largest per-token speed-up at K = .2.
GOLDEN = {
    "webshop-1.7b-awq-w4": (12.64, 10.29, 22.81, 256, 1.228, (9.7, 12.1, 16.2, 32.4), 1.175),
    "webshop-1.7b-gptq-w4": (12.64, 11.51, 22.81, 256, 1.098, (20.2, 25.2, 33.6, 67.3), 1.077),
    "webshop-4b-awq-w4": (23.89, 16.36, 29.15, 256, 1.460, (3.9, 4.8, 6.5, 12.9), 1.337),
    "webshop-4b-gptq-w4": (23.89, 16.73, 29.15, 256, 1.428, (4.1, 5.1, 6.8, 13.6), 1.315),
    "alfworld-1.7b-awq-w4": (13.08, 10.23, 17.13, 64, 1.279, (6.0, 7.5, 10.0, 20.0), 1.211),
    "alfworld-1.7b-gptq-w4": (13.08, 10.30, 17.13, 64, 1.270, (6.2, 7.7, 10.3, 20.5), 1.205),
    "alfworld-4b-awq-w4": (25.02, 16.77, 19.90, 64, 1.492, (2.4, 3.0, 4.0, 8.0), 1.358),
    "alfworld-4b-gptq-w3": (25.02, 14.58, 19.90, 64, 1.716, (1.9, 2.4, 3.2, 6.4), 1.501),
}
ROW = "alfworld-4b-gptq-w3"


def test_table_3_has_exactly_the_papers_rows() -> None:
    """Eight rows, each with the printed coefficients; only W3 is projected."""
    printed = {name: golden[:4] for name, golden in GOLDEN.items()}
    assert {name: (row.high_ms, row.low_ms, row.router_ms, row.sessions) for name, row in TABLE_3.items()} == printed
    assert [name for name, row in TABLE_3.items() if row.projected] == [ROW]


def test_w3_is_the_awq_w4_value_over_1_15() -> None:
    """The projected coefficient is the one that the paper's rule gives, to the printed digits."""
    assert round(TABLE_3["alfworld-4b-awq-w4"].low_ms / 1.15, 2) == TABLE_3[ROW].low_ms


@pytest.mark.parametrize("name", GOLDEN)
def test_break_even_and_speedup_follow_from_the_table(name: str) -> None:
    """Break-even tokens and speed-up limits match the hand-derived ones of every row."""
    row = TABLE_3[name]
    _, _, _, _, ratio, tokens, speedup = GOLDEN[name]
    shares = (0.0, 0.2, 0.4, 0.7)
    # The golden values were derived from unrounded numbers and printed with one digit.
    assert tuple(break_even_tokens(row.high_ms, row.low_ms, row.router_ms, share) for share in shares) == pytest.approx(
        tokens, abs=0.051
    )
    assert per_token_speedup(row.high_ms, row.low_ms) == pytest.approx(ratio, abs=6e-4)
    assert per_token_speedup(row.high_ms, row.low_ms, 0.2) == pytest.approx(speedup, abs=6e-4)


def test_break_even_balances_both_sides() -> None:
    """At the break-even length a routed step takes as long as one at high precision."""
    tokens = break_even_tokens(20.0, 10.0, 30.0, 0.4)
    assert tokens == pytest.approx(5.0)
    assert 30.0 + tokens * (0.4 * 20.0 + 0.6 * 10.0) == pytest.approx(tokens * 20.0)
    assert break_even_tokens(20.0, 20.0, 30.0) == math.inf
    assert break_even_tokens(20.0, 10.0, 30.0, 1.0) == math.inf


def test_trajectory_seconds_is_eq_9() -> None:
    """N = 3, n_h = 10, n_l = 7 + 5: T = 3·19.90 + 10·25.02 + 12·14.58 ms = 484.86 ms."""
    model = make_latency_model(ROW, ("w3", "bf16"))
    calls = [LLMCall("w3", 100, 7), LLMCall("bf16", 120, 10), LLMCall("w3", 140, 5)]
    assert trajectory_seconds(model, calls) == pytest.approx(0.48486)
    assert isinstance(model, LatencyModel)


def test_steps_that_no_router_decided_pay_no_router() -> None:
    """A forced step costs its tokens alone."""
    model = TokenLinearLatency({"w3": 10.0, "bf16": 20.0}, router_ms=5.0)
    assert model.router_seconds(LLMCall("bf16", 1, 4)) == 0.005
    assert trajectory_seconds(model, [LLMCall("bf16", 1, 4, router_called=False)]) == pytest.approx(0.08)


def test_a_row_prices_the_lower_and_the_higher_precision() -> None:
    """Names are the environment's own, in ascending order."""
    model = make_latency_model("webshop-1.7b-awq-w4", ("int4", "full"))
    assert model == TokenLinearLatency({"int4": 10.29, "full": 12.64}, 22.81)


def test_a_mapping_prices_any_number_of_precisions() -> None:
    """Three precisions take three prices."""
    settings = {"ms_per_token": {"w3": 14.58, "w4": 16.77, "bf16": 25.02}, "router_ms": 19.9}
    model = make_latency_model(settings, ("w3", "w4", "bf16"))
    assert model.llm_seconds(LLMCall("w4", 0, 100)) == pytest.approx(1.677)


def test_a_row_with_replaced_settings() -> None:
    """A policy without a router keeps the row's token prices."""
    model = make_latency_model({"row": ROW, "router_ms": 0}, ("w3", "bf16"))
    assert model == TokenLinearLatency({"w3": 14.58, "bf16": 25.02}, 0)


@pytest.mark.parametrize(
    ("settings", "precisions", "message"),
    [
        (
            "alfworld-4b-gptq-w4",
            ("a", "b"),
            r"unknown latency row .*did you mean 'alfworld-4b-gptq-w3'\? known: webshop",
        ),
        (ROW, ("a", "b", "c"), r"has two prices, but there are 3 precisions: pass \{'ms_per_token': \{'a': ..."),
        ({"router_ms": 1}, ("a", "b"), "or a row of Table 3 is needed"),
        (
            {"ms_per_tokn": {}},
            ("a", "b"),
            r"option of latency .*: 'ms_per_tokn'; did you mean 'ms_per_token'\?",
        ),
        ({"ms_per_token": {"a": 1.0}, "router_ms": 1}, ("a", "b"), r"exactly the precisions \['a', 'b'\], got \['a'\]"),
        ({"ms_per_token": {"a": 1, "b": 2}}, ("a", "b"), "needs router_ms"),
        ({"ms_per_token": {"a": -1, "b": 2}, "router_ms": 1}, ("a", "b"), "ms_per_token.a must be a finite number"),
        ({"ms_per_token": {"a": 1, "b": 2}, "router_ms": math.nan}, ("a", "b"), "router_ms must be a finite number"),
        ({"kind": "quadratic"}, ("a", "b"), "unknown latency kind 'quadratic'; known: token-linear"),
        (3.0, ("a", "b"), "must be a row of Table 3 or a mapping, got 3.0"),
    ],
)
def test_wrong_settings_say_the_way_out(settings: object, precisions: tuple[str, ...], message: str) -> None:
    """Each mistake has its own message."""
    with pytest.raises(ConfigError, match=message):
        make_latency_model(settings, precisions)


def test_estimators_are_ratios_of_sums() -> None:
    """Sessions of 1 s / 100 tokens and 9 s / 300 tokens pool to 25 ms a token; the mean of ratios would be 20."""
    assert pooled_ms_per_token([1.0, 9.0], [100, 300]) == pytest.approx(25.0)
    assert pooled_router_ms([0.1, 0.5], [10, 20]) == pytest.approx(20.0)


@pytest.mark.parametrize(("seconds", "counts"), [([1.0], [1, 2]), ([1.0], [0]), ([], [])])
def test_estimators_refuse_what_has_no_ratio(seconds: list[float], counts: list[int]) -> None:
    """Lengths must match and something must have been counted."""
    with pytest.raises(ConfigError):
        pooled_router_ms(seconds, counts)


def test_lambda_per_second_prices_a_reference_episode() -> None:
    """λ·T of the reference episode is the normalized price."""
    lambda_ = lambda_per_second(0.3, 19.89)
    assert lambda_ * 19.89 == pytest.approx(0.3)
    with pytest.raises(ConfigError, match="reference_s must be a positive number of seconds, got 0"):
        lambda_per_second(0.3, 0)


@pytest.mark.parametrize(
    ("row", "precisions", "message"),
    [
        (ROW, ("w4-awq", "bf16"), r"prices 3 bits, but .* 'w4-awq': use 'alfworld-4b-awq-w4'; or pass"),
        ("alfworld-1.7b-gptq-w4", ("w3", "bf16"), "prices 4 bits, but .* 'w3': use 'alfworld-4b-gptq-w3'; or pass"),
        (
            "alfworld-4b-awq-w4",
            ("w3", "bf16"),
            r"but .* 'w3': {'row': 'alfworld-4b-awq-w4', 'project_w3': True} prices",
        ),
        (ROW, ("w2", "bf16"), "no row of Table 3 has a W2 price at that place; or pass .*'w2': .*'allow_other_bits'"),
        (ROW, ("w3", "w4"), "prices 16 bits, but it would price the precision 'w4': no row"),
    ],
)
def test_a_row_does_not_price_other_bits(row: str, precisions: tuple[str, ...], message: str) -> None:
    """The message names a row that fits where there is one, and the way out."""
    with pytest.raises(ConfigError, match=message):
        make_latency_model(row, precisions)
    allowed = make_latency_model({"row": row, "allow_other_bits": True}, precisions)
    assert allowed.llm_seconds(LLMCall(precisions[0], 0, 1000)) == TABLE_3[row].low_ms


def test_w3_is_projected_from_awqs_w4() -> None:
    """16.36 / 1.15 = 14.226 ms for the lower precision; bf16, the router and the bits that a name may say follow."""
    settings = {"row": "webshop-4b-awq-w4", "project_w3": True}
    model = make_latency_model(settings, ("w3", "bf16"))
    assert 1000 * model.llm_seconds(LLMCall("w3", 0, 1000)) == pytest.approx(14226.09, abs=0.01)
    assert model.llm_seconds(LLMCall("bf16", 0, 1000)) == 23.89
    assert make_latency_model(settings | {"router_ms": 5}, ("w3", "bf16")).router_seconds(LLMCall("w3", 0, 1)) == 0.005
    assert price_source(settings).title == "modelled seconds, prices of webshop-4b-awq-w4, W3 projected"
    with pytest.raises(ConfigError, match=r"row 'webshop-4b-awq-w4' prices 3 bits, .* the precision 'w4'"):
        make_latency_model(settings, ("w4", "bf16"))
    with pytest.raises(ConfigError, match=r"divides the W4 price of AWQ by 1\.15: use one of .*'webshop-4b-awq-w4'"):
        make_latency_model({"row": "webshop-4b-gptq-w4", "project_w3": True}, ("w3", "bf16"))


def test_prices_say_where_they_come_from() -> None:
    """The row and whether it is projected; prices of one's own are neither."""
    assert price_source(ROW) == PriceSource(ROW, True, "prices of alfworld-4b-gptq-w3, W3 projected")
    assert price_source({"row": "alfworld-4b-awq-w4"}).label == "prices of alfworld-4b-awq-w4"
    own = price_source({"row": ROW, "ms_per_token": {"w3": 1, "bf16": 2}})
    assert own == PriceSource(None, False, "prices of your own")


HAND = {"ms_per_token": {"w3": 14.58, "w4": 16.77, "w8": 19.52, "bf16": 25.02}, "router_ms": 5.0}


def test_prices_by_hand_say_which_of_them_are_projected() -> None:
    """Those that the setting names, in the order of the prices; the prices themselves stay what they are."""
    settings = HAND | {"projected": ["w8", "w3"]}
    source = price_source(settings, list(HAND["ms_per_token"]))
    assert source == PriceSource(None, True, "prices of your own, w3 and w8 projected")
    assert source.title == "modelled seconds, prices of your own, w3 and w8 projected"
    assert price_source(HAND | {"projected": []}) == price_source(HAND)
    models = [make_latency_model(each, list(HAND["ms_per_token"])) for each in (settings, HAND)]
    prices = [[model.llm_seconds(LLMCall(name, 0, 1000)) for name in HAND["ms_per_token"]] for model in models]
    assert prices[0] == prices[1] == list(HAND["ms_per_token"].values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (HAND | {"projected": ["w3-gptq"]}, "names prices of ms_per_token: 'w3-gptq'.*known: w3, w4, w8, bf16"),
        (HAND | {"projected": "w3"}, "latency projected must be a list of precisions, got 'w3'"),
        ({"row": ROW, "projected": ["w3"]}, "names prices of ms_per_token: 'w3'; known: none"),
        ({"profile": "alfworld-embedded-cpu", "projected": ["w2"]}, "names prices of ms_per_token: 'w2'; known: none"),
        ({"kind": "wall-clock", "projected": ["w3"]}, "names prices of ms_per_token: 'w3'; known: none"),
    ],
)
def test_what_has_no_price_by_hand_is_not_called_projected(settings: dict[str, Any], message: str) -> None:
    """Rows and profiles know themselves what is projected, and other names are mistakes."""
    with pytest.raises(ConfigError, match=message):
        make_latency_model(settings, list(HAND["ms_per_token"]))
    with pytest.raises(ConfigError, match=message):
        price_source(settings)
