"""What an oracle was made for: it is the same for equal prices, and told apart from others in words."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.config import EnvConfig
from dmr_gym.errors import ConfigError
from dmr_gym.oracle_origin import MADE_FOR, check_origin, differences, oracle_origin, read_origin

PRICES = {"ms_per_token": {"low": 10.0, "high": 20.0}, "router_ms": 1.0}
CONFIG = EnvConfig(task="toy", precisions=("low", "high"), latency=PRICES)
MODELS = {"low": "a", "high": "b"}


def test_equal_prices_are_equal_however_they_are_written() -> None:
    """A row of Table 3 and its numbers; λ, which an oracle has beside it, and the seed of greedy decoding."""
    row = replace(CONFIG, latency="alfworld-4b-gptq-w3", precisions=("w3", "bf16"))
    models = {"w3": "a", "bf16": "b"}
    origin = oracle_origin(row, models)
    written = {"ms_per_token": origin["prices"]["ms_per_token"], "router_ms": origin["prices"]["router_ms"]}
    other = replace(row, latency=written, lambda_=0.7, sampling={**row.sampling, "seed": 5})
    assert differences(oracle_origin(other, models), origin) == []


@pytest.mark.parametrize(
    ("changes", "models", "said"),
    [
        ({"latency": PRICES | {"router_ms": 2.0}}, MODELS, "other prices"),
        ({"latency": {"kind": "wall-clock", "router_ms": 1.0}}, MODELS, "other prices"),
        ({}, {"low": "c", "high": "b"}, "other models of low"),
        ({}, {"high": "b"}, "other models of low"),
        ({"max_steps": 7}, MODELS, "episodes of 7 steps, not 30"),
        ({"sampling": {"max_tokens": 8}}, MODELS, "other sampling"),
    ],
)
def test_each_difference_is_said(changes: dict[str, Any], models: dict[str, str], said: str) -> None:
    """In the words of the message."""
    wanted = oracle_origin(replace(CONFIG, max_steps=30), MODELS)
    changed = replace(CONFIG, **{"max_steps": 30, **changes})
    assert differences(oracle_origin(changed, models), wanted) == [said]


def test_an_oracle_for_something_else_is_refused_and_one_without_a_word_is_warned_of(tmp_path: Path) -> None:
    """The way out is named; the origin that fits is nothing to speak of."""
    path, here = tmp_path / "oracle.json", oracle_origin(CONFIG, MODELS)
    path.write_text(json.dumps({"0.1": {}, MADE_FOR: here}))
    assert (read_origin(path), check_origin(path, here)) == (here, [])
    path.write_text(json.dumps({"0.1": {}}))
    assert read_origin(path) is None
    assert "does not say for which prices and models it was made" in check_origin(path, here)[0]
    path.write_text(json.dumps({MADE_FOR: oracle_origin(replace(CONFIG, max_steps=7), {})}))
    message = "was made for other models of low, high, episodes of 7 steps.*tree_report.py with the environment"
    with pytest.raises(ConfigError, match=message):
        check_origin(path, here)
    path.write_text(json.dumps({MADE_FOR: 3}))
    with pytest.raises(ConfigError, match="is damaged: made_for must be an object, got 3"):
        read_origin(path)
