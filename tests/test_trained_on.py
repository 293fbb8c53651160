"""A router's record of its training, compared with the environment that it shall decide in."""

from __future__ import annotations

import pytest

from dmr_gym.config import EnvConfig
from dmr_gym.errors import ConfigError
from dmr_gym.trained_on import check, environment_record, unlearnt_types

CONFIG = EnvConfig(task="toy", precisions=("low", "high"), encoder={"kind": "hash", "dim": 8}, history_length=16)
RECORD = environment_record("DMR-Toy-v0", "train", CONFIG, {"low": "aa", "high": "bb"})


def test_the_same_environment_gives_no_warning():
    """Another panel is what evaluation is for."""
    assert check(RECORD, RECORD | {"panel": "test"}, max_steps=50) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precisions": ["high", "low"]}, r"precisions \['low', 'high'\], but the environment has \['high', 'low'\]"),
        ({"embedding_dim": 384}, "width 8, but the environment has 384: use the encoder"),
        ({"encoder": "other"}, "but the environment has other: use the encoder"),
    ],
)
def test_what_the_router_cannot_read_is_refused(change, message):
    """Expected, found, and the way out."""
    with pytest.raises(ConfigError, match=message):
        check(RECORD, RECORD | change, max_steps=50)


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"models": {"low": "cc", "high": "bb"}}, "the router was trained on other models of low"),
        ({"env_id": "DMR-ALFWorld-v0"}, "the router was trained on DMR-Toy-v0, not on DMR-ALFWorld-v0"),
        ({"history_length": 4}, "the router was trained on windows of 16 rows and sees 4"),
    ],
)
def test_what_it_has_not_learnt_is_a_warning(change, warning):
    """It decides all the same."""
    assert check(RECORD, RECORD | change, max_steps=50) == [warning]


def test_a_window_that_never_fills_needs_no_warning():
    """Episodes of 4 steps look the same in windows of 4 and 16 rows."""
    assert check(RECORD, RECORD | {"history_length": 4}, max_steps=4) == []


def test_a_router_without_a_record_is_named():
    """Nothing can be compared."""
    assert "no record" in check({}, RECORD, max_steps=50)[0]


def test_a_router_of_clicks_has_learnt_nothing_of_searches():
    """Others, and those whose record does not say, are taken to know all types."""
    assert unlearnt_types(RECORD | {"steps": "click"}) == ("search",)
    assert unlearnt_types(RECORD | {"steps": "action"}) == ()
    assert unlearnt_types(RECORD) == unlearnt_types({}) == ()
