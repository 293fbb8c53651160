"""dmr_gym.latency.prefix_cache: which part of a prompt a server has seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmr_gym.latency import cached_prompt_tokens
from dmr_gym.latency.prefix_cache import common_prefix
from dmr_gym.types import Completion, Message, Prompt, Request

TRANSCRIPT = "You see a desk 1.\n>"


def cached(prompt: Prompt, prompt_tokens: int, before: Prompt, completion: Completion) -> int:
    """Count for a new prompt, from the last call."""
    return cached_prompt_tokens(prompt, prompt_tokens, Request(before, "low"), completion)


def test_a_prompt_that_grows_is_cached_to_the_end_of_the_last_answer() -> None:
    """10 tokens of the last prompt and 5 of the answer's 6: the newline that stopped it was drawn, not read."""
    answer = Completion(" go to desk 1", prompt_tokens=10, completion_tokens=6, seconds=0.1)
    grown = f"{TRANSCRIPT} go to desk 1\nOn it is a book 1.\n>"
    assert cached(grown, 30, TRANSCRIPT, answer) == 15


def test_an_answer_that_the_prompt_does_not_repeat_is_not_cached() -> None:
    """The world put "move" for "put", so the texts part after the last prompt and the space behind it."""
    answer = Completion(" put", prompt_tokens=10, completion_tokens=5, seconds=0.1)
    assert cached(f"{TRANSCRIPT} move x\n>", 30, TRANSCRIPT, answer) == 10 + 4 * 1 // 4
    assert cached(f"{TRANSCRIPT}move x\n>", 30, TRANSCRIPT, answer) == 10


def test_a_prompt_that_is_rebuilt_is_cached_in_proportion_to_its_common_start() -> None:
    """The texts part after 40 of 100 characters, which had 20 tokens: 8 of them are cached."""
    before = "t" * 40 + "a" * 60
    answer = Completion(" click", prompt_tokens=20, completion_tokens=2, seconds=0.1)
    assert cached("t" * 40 + "b" * 90, 33, before, answer) == 8


def test_chat_prompts_are_compared_turn_by_turn_and_their_answers_are_not_taken_as_known() -> None:
    """A conversation that goes on has the earlier turns cached; one that begins otherwise has nothing."""
    system, user = Message("system", "Shop."), Message("user", "Buy tea.")
    answer = Completion("ok", prompt_tokens=12, completion_tokens=3, seconds=0.1)
    longer = (system, user, Message("assistant", "ok"), Message("user", "And milk."))
    assert cached(longer, 40, (system, user), answer) == 12
    assert cached((user,), 9, (system, user), answer) == 0


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    """The same prompt again has all but one token cached; a prompt without tokens has none."""
    answer = Completion("", prompt_tokens=10, completion_tokens=0, seconds=0.1)
    assert cached(TRANSCRIPT, 10, TRANSCRIPT, answer) == 9
    assert cached("", 0, "", Completion("", 0, 0, 0.0)) == 0


@given(st.text("ab", max_size=20), st.text("ab", max_size=20), st.text("ab", max_size=20))
def test_common_prefix_is_where_two_texts_part(start: str, first: str, second: str) -> None:
    """The texts are equal up to there, and not one character further."""
    one, other = start + first, start + second
    found = common_prefix(one, other)
    assert len(start) <= found <= min(len(one), len(other))
    assert one[:found] == other[:found]
    assert found == min(len(one), len(other)) or one[found] != other[found]


@given(
    st.text("ab", max_size=12),
    st.text("ab", max_size=12),
    st.text("ab", max_size=6),
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(0, 9),
)
@pytest.mark.parametrize("chat", [False, True])
def test_counts_stay_inside_the_prompt(
    chat: bool, before: str, prompt: str, answer: str, tokens: int, prompt_tokens: int, completion_tokens: int
) -> None:
    """Never negative, never the whole prompt, whatever a server reports."""
    texts: list[Prompt] = [before, prompt]
    if chat:
        texts = [(Message("user", text),) for text in (before, prompt)]
    found = cached(texts[1], prompt_tokens, texts[0], Completion(answer, tokens, completion_tokens, 0.0))
    assert 0 <= found <= max(prompt_tokens - 1, 0)
