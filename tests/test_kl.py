"""KL divergences by hand-computed numbers, and the bound that truncation gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmr_gym.errors import ConfigError
from dmr_gym.kl import action_tokens, counted_steps, precision_labels, step_kl, token_kl
from dmr_gym.types import TokenDistributions

# Token 0: KL(P || Q) = 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4); token 1: the same distribution on both sides.
P = [[0.5, 0.5], [0.9, 0.1]]
Q = [[0.25, 0.75], [0.9, 0.1]]
KL_PQ = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
KL_QP = 0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2)


def _full(probabilities) -> TokenDistributions:
    with np.errstate(divide="ignore"):
        logprobs = np.log(np.array(probabilities, dtype=np.float64)).astype(np.float32)
    steps = len(logprobs)
    return TokenDistributions(np.arange(steps), tuple("abcdefgh"[:steps]), logprobs)


def _top(full: TokenDistributions, k: int) -> TokenDistributions:
    order = np.argsort(-full.logprobs, axis=1, kind="stable")[:, :k]
    kept = np.take_along_axis(full.logprobs, order, axis=1)
    return TokenDistributions(full.token_ids, full.tokens, kept, order.astype(np.int64))


def test_token_kl_by_hand_in_both_directions():
    """The two directions differ, and equal distributions are at distance zero."""
    np.testing.assert_allclose(token_kl(_full(P), _full(Q)), [KL_PQ, 0.0], atol=1e-7)
    np.testing.assert_allclose(token_kl(_full(Q), _full(P)), [KL_QP, 0.0], atol=1e-7)


@pytest.mark.parametrize(
    ("direction", "reduce", "expected"),
    [
        ("high_low", "mean", KL_PQ / 2),
        ("high_low", "sum", KL_PQ),
        ("high_low", "max", KL_PQ),
        ("low_high", "mean", KL_QP / 2),
        ("low_high", "max", KL_QP),
    ],
)
def test_step_kl_directions_and_reductions(direction, reduce, expected):
    """P is the high precision: "high_low" is KL(P || Q)."""
    value = step_kl(_full(P), _full(Q), direction=direction, reduce=reduce)
    assert value == pytest.approx(expected, abs=1e-7)


def test_step_kl_counts_masked_tokens_alone():
    """The mean over the first token is not halved by the second."""
    assert step_kl(_full(P), _full(Q), token_mask=np.array([True, False])) == pytest.approx(KL_PQ, abs=1e-7)


def test_impossible_tokens_cost_nothing_on_the_left_and_everything_on_the_right():
    """0 log 0 is 0; a token that q excludes and p allows is infinitely surprising."""
    certain, mixed = _full([[1.0, 0.0]]), _full([[0.5, 0.5]])
    np.testing.assert_allclose(token_kl(certain, mixed), [math.log(2)], rtol=1e-6)
    assert token_kl(mixed, certain).tolist() == [math.inf]


def test_truncated_kl_by_hand():
    """Top 2 of 4 on both sides, one token in common: the events are {0} and the rest."""
    p, q = _full([[0.6, 0.3, 0.06, 0.04]]), _full([[0.4, 0.1, 0.45, 0.05]])
    expected = 0.6 * math.log(0.6 / 0.4) + 0.4 * math.log(0.4 / 0.6)
    np.testing.assert_allclose(token_kl(_top(p, 2), _top(q, 2)), [expected], rtol=1e-5)


def test_truncation_to_the_whole_vocabulary_is_exact():
    """Nothing is merged when K is V."""
    p, q = _full([[0.6, 0.3, 0.1]]), _full([[0.2, 0.3, 0.5]])
    np.testing.assert_allclose(token_kl(_top(p, 3), _top(q, 3)), token_kl(p, q), rtol=1e-4)


@given(
    p=st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6),
    q=st.lists(st.floats(0.01, 1.0), min_size=6, max_size=6),
    k_p=st.integers(1, 6),
    k_q=st.integers(1, 6),
)
def test_truncated_kl_is_a_lower_bound(p, q, k_p, k_q):
    """Whatever is cut on either side, the value lies between 0 and the exact one."""
    full_p, full_q = (_full([np.array(v) / sum(v)]) for v in (p, q))
    exact, bound = token_kl(full_p, full_q)[0], token_kl(_top(full_p, k_p), _top(full_q, k_q))[0]
    assert 0.0 <= bound <= exact + 1e-5
    mixed = token_kl(full_p, _top(full_q, k_q))[0]
    assert 0.0 <= mixed <= exact + 1e-5


def test_different_tokens_are_refused():
    """Precisions with different tokenizers cannot be compared token by token."""
    other = TokenDistributions(np.array([5, 6]), ("x", "y"), _full(P).logprobs)
    with pytest.raises(ConfigError, match="must share one tokenizer"):
        token_kl(_full(P), other)


def test_different_vocabularies_are_refused():
    """Whole vocabularies must have one size."""
    with pytest.raises(ConfigError, match="vocabularies of different size"):
        token_kl(_full([[0.5, 0.5]]), _full([[0.2, 0.3, 0.5]]))


@pytest.mark.parametrize("options", [{"direction": "up"}, {"reduce": "median"}, {"token_mask": np.zeros(2, bool)}])
def test_unusable_options_are_refused(options):
    """Unknown names, and a mask that leaves nothing."""
    with pytest.raises(ConfigError, match="KL: "):
        step_kl(_full(P), _full(Q), **options)


@pytest.mark.parametrize(
    ("tokens", "action", "mask"),
    [
        ([" go", " to", " desk", " 1", "\n"], "go to desk 1", [1, 1, 1, 1, 1]),
        (["<think>", "go left", "</think>", "<action>", "go left", "</action>"], "go left", [0, 0, 0, 0, 1, 1]),
        (["say", " fl", "y"], "", [1, 1, 1]),
        (["put x", " in y"], "move x to y", [1, 1]),
        ([" examine", " mug", "\n"], "examine mug 1", [1, 1, 1]),
        (["a", "b", "a", "b", "a"], "aba", [0, 0, 1, 1, 1]),
        (["hm ", "click[B0", "00BAR]"], "click[b000bar]", [0, 1, 1]),
        (["<think>click[B0]</think>", "<action>", "Click[", "B0", "]", "</action>"], "click[b0]", [0, 0, 1, 1, 1, 1]),
        ([">", " search", "[", " red", " tea", "]", "\n"], "search[red tea]", [0, 1, 1, 1, 1, 1, 1]),
        (["hm\n", "Search[\t", "Red Tea", "  ]"], "search[red tea]", [0, 1, 1, 1]),
        (["so ", "click[odd ", "[8]]"], "click[odd [8]]", [0, 1, 1]),
        (["so ", "click[a.c]"], "click[abc]", [1, 1]),
        (["so ", "search[red\ttea]"], "search[red\ufffdtea]", [1, 1]),
    ],
)
def test_action_tokens_run_from_the_last_action_to_the_end(tokens, action, mask):
    """A stop or closing tag belongs to the block, and so do letters and spaces that the reader changed.

    An action that is not in the text even so makes everything count.
    """
    assert action_tokens(tokens, action).astype(int).tolist() == mask


def test_counted_steps_leaves_thoughts_out_of_action_only():
    """AO drops think steps, AS keeps all."""
    types = ("action", "think", "action")
    assert counted_steps(types, "action").tolist() == [True, False, True]
    assert counted_steps(types, "all").tolist() == [True, True, True]
    with pytest.raises(ConfigError, match="steps must be one of action, all, click, got 'some'"):
        counted_steps(types, "some")


def test_counted_steps_keeps_clicks_alone():
    """WebShop's searches do not count; in a world without clicks nothing does."""
    assert counted_steps(("search", "click", "click"), "click").tolist() == [False, True, True]
    assert counted_steps(("search", "click"), "action").tolist() == [True, True]
    assert not counted_steps(("action", "think"), "click").any()


def test_labels_for_two_precisions_are_the_papers():
    """Eq. 5, y = 1[KL > tau]; equality stays low."""
    assert precision_labels(np.array([[0.0], [0.1], [0.2]], np.float32), np.float32(0.1)).tolist() == [0, 0, 1]


def test_labels_for_three_precisions_take_the_lowest_that_is_close_enough():
    """The cheapest precision under the threshold, also where KL does not fall with precision."""
    kls = np.array([[0.0, 0.0], [0.5, 0.05], [0.5, 0.4], [0.05, 0.4]], np.float32)
    assert precision_labels(kls, 0.1).tolist() == [0, 1, 2, 0]
    with pytest.raises(ConfigError, match=r"must be \(N, P - 1\)"):
        precision_labels(np.zeros(3, np.float32), 0.1)


def test_each_lower_precision_may_have_its_own_threshold():
    """At 1 nat for the lowest and 0.1 for the middle one; a list of one is for both."""
    kls = np.array([[0.9, 0.0], [1.1, 0.05], [1.1, 0.2], [0.5, 0.5]], np.float32)
    assert precision_labels(kls, [1.0, 0.1]).tolist() == [0, 1, 2, 0]
    assert precision_labels(kls, [0.6]).tolist() == [1, 1, 1, 0]
    with pytest.raises(ConfigError, match="expected one threshold or 2, one a lower precision, got 3"):
        precision_labels(kls, [1.0, 0.1, 0.1])
