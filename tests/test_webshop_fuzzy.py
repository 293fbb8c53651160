"""The fuzzy comparison of phrases: numbers of thefuzz 0.19.0, and the shortcut that must agree with them."""

from __future__ import annotations

from difflib import SequenceMatcher
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Indel

from dmr_gym.tasks.webshop.fuzzy import THRESHOLD, is_similar, token_set_ratio, tokens

# Computed by thefuzz 0.19.0 without python-Levenshtein.
RECORDED = [
    ("machine wash", "machine washable", 86),
    ("water resistant", "water resistance", 90),
    ("noise cancelling", "noise canceling", 97),
    ("gluten free", "glutenfree", 57),
    ("dry skin", "skin dryness", 80),
    ("ab cd ef", "cd gh ij", 50),
    ("queen", "king", 22),
    ("5 feet", "6 feet", 83),
    ("8 ounce (pack of 2)", "8 ounce (pack of 3)", 94),
    ("abcdef", "abcdefgh", 86),
    # Words of one are a subset of the other's.
    ("easy clean", "easy to clean", 100),
    ("stainless steel", "steel", 100),
    ("large", "('size', 'x-large')", 100),
    ("tan", "('size', 'standard')", 38),
    # An underscore belongs to a word; characters 128 to 255 vanish, later ones stay.
    ("black_white", "black white", 91),
    ("café crème", "caf crme", 100),
    ("\xa03 pack", "('style', '\\xa03 pack')", 80),
    ("٣ pack", "3 pack", 83),
    ("½", "half", 0),
    ("½", "½", 0),
    ("!!!", "!!!", 0),
    ("", "anything", 0),
    # Difflib takes the longest block first, so a longer common subsequence does not help.
    ("dacdadb", "dadbadb", 57),
    ("cbbcbbbc", "cbbacbbc", 50),
    ("adbadadbacaabb", "addadbdbacaabb", 79),
    # From 200 characters on, difflib leaves frequent characters out.
    ("ab" * 99, "ba" * 99, 99),
    ("ab" * 110, "ba" * 110, 0),
]

phrases = st.text(st.sampled_from("abcde  -_|/'é½★中9"), max_size=24)
words = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=6)


@pytest.mark.parametrize(("first", "second", "ratio"), RECORDED)
def test_ratio_is_the_recorded_one(first: str, second: str, ratio: int) -> None:
    """Every number is thefuzz 0.19.0's."""
    assert token_set_ratio(first, second) == ratio


def test_ratio_of_a_single_pair_of_words_by_hand() -> None:
    """The whole phrases share 10 of 12 and 10 characters; "wall" alone would give less."""
    assert token_set_ratio("wall mounted", "wall mount") == round(100 * 2 * 10 / 22) == 91


@pytest.mark.parametrize(("first", "second", "ratio"), RECORDED)
def test_shortcut_agrees_with_recorded_ratios(first: str, second: str, ratio: int) -> None:
    """`is_similar` is the strict comparison of the recorded number with the threshold."""
    assert is_similar(first, second) is (ratio > THRESHOLD)


@given(phrases, phrases)
def test_shortcut_agrees_with_ratio_on_unrelated_phrases(first: str, second: str) -> None:
    """The bound never rejects what difflib would accept."""
    assert is_similar(first, second) is (token_set_ratio(first, second) > THRESHOLD)


@given(st.text("abcdefgh  ", min_size=8, max_size=40), st.integers(0, 39), st.sampled_from("abz "))
def test_shortcut_agrees_with_ratio_on_near_duplicates(text: str, place: int, char: str) -> None:
    """Phrases that differ in one character lie around the threshold."""
    other = text[: place % len(text)] + char + text[place % len(text) + 1 :]
    assert is_similar(text, other) is (token_set_ratio(text, other) > THRESHOLD)


@given(st.text("abcd ", max_size=260), st.text("abcd ", max_size=260))
def test_common_subsequence_bounds_difflib(first: str, second: str) -> None:
    """What the shortcut rests on: difflib never finds more than the longest common subsequence."""
    bound = Indel.normalized_similarity(first, second)
    assert SequenceMatcher(None, first, second).ratio() <= bound + 1e-12


def test_shortcut_lets_a_half_through() -> None:
    """342 of 400 characters are 85.5 percent, which rounds to the even 86, in whichever order it is computed."""
    first, second = "ab" * 85 + "a" + "x" * 29, "ab" * 85 + "a" + "y" * 29
    assert len(first) + len(second) == 400
    assert token_set_ratio(first, second) == 86
    assert is_similar(first, second)


@given(words, st.randoms(use_true_random=False))
def test_order_and_repeats_of_words_do_not_matter(parts: list[str], rng: Random) -> None:
    """A phrase equals its shuffled self said twice."""
    shuffled = sorted(parts * 2, key=lambda _: rng.random())
    assert token_set_ratio(" ".join(parts), " ".join(shuffled)) == 100


@given(words, words)
def test_subset_of_words_is_a_full_match(parts: list[str], more: list[str]) -> None:
    """Extra words on one side cost nothing."""
    assert token_set_ratio(" ".join(parts), " ".join(more + parts)) == 100
    assert is_similar(" ".join(more + parts), " ".join(parts))


def test_tokens_split_at_what_is_no_word_character() -> None:
    """Latin-1 letters vanish before words are split, so they do not part a word."""
    assert tokens("Crème-Brûlée | 2 Pack's") == {"crme", "brle", "2", "pack", "s"}
