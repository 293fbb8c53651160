"""Fuzzy comparison of short phrases: `token_set_ratio` as thefuzz 0.19.0 computes it on the standard library's difflib.

WebShop's recorded rewards rest on these whole numbers. Later releases of thefuzz rest on rapidfuzz, whose ratio is that
of the longest common subsequence; difflib's is that of some common subsequence, so rapidfuzz bounds it from above.
`is_similar` therefore asks rapidfuzz first and difflib only about what could pass.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from functools import lru_cache

from rapidfuzz.distance import Indel

THRESHOLD = 85
_LATIN_1_REST = dict.fromkeys(range(128, 256))
_NOT_A_WORD = re.compile(r"\W")
# From this length of the second text on, difflib leaves frequent characters out, and nothing is known in advance.
_AUTOJUNK_CHARS = 200


@lru_cache(maxsize=1 << 16)
def tokens(text: str) -> frozenset[str]:
    """The set of words of a phrase: characters 128 to 255 dropped, what is no word character parted, lower-cased."""
    return frozenset(_NOT_A_WORD.sub(" ", text.translate(_LATIN_1_REST)).lower().split())


def token_set_ratio(first: str, second: str) -> int:
    """How alike two phrases are when the order and the repeats of words do not matter.

    The greatest of three ratios: common words against all words of either phrase, and the two phrases, each sorted with
    the common words in front, against each other. It is 100 when one phrase's words are a subset of the other's, and 0
    when a phrase has no words.

    Returns:
        A whole number from 0 to 100. Not symmetric in rare cases, as difflib is not.
    """
    first_words, second_words = tokens(first), tokens(second)
    if not first_words or not second_words:
        return 0
    common, whole_first, whole_second = _arranged(first_words, second_words)
    return max(_ratio(common, whole_first), _ratio(common, whole_second), _ratio(whole_first, whole_second))


@lru_cache(maxsize=1 << 16)
def is_similar(first: str, second: str) -> bool:
    """Whether `token_set_ratio` of two phrases exceeds `THRESHOLD`; the same answer, sooner."""
    first_words, second_words = tokens(first), tokens(second)
    if not first_words or not second_words:
        return False
    if first_words <= second_words or second_words <= first_words:
        return True
    common, whole_first, whole_second = _arranged(first_words, second_words)
    return (
        _passes(whole_first, whole_second)
        or (bool(common) and _passes(common, whole_first))
        or (bool(common) and _passes(common, whole_second))
    )


def _arranged(first: frozenset[str], second: frozenset[str]) -> tuple[str, str, str]:
    """The common words, then each phrase as common words followed by its own; sorted, joined by spaces."""
    common = " ".join(sorted(first & second))
    own_first, own_second = " ".join(sorted(first - second)), " ".join(sorted(second - first))
    return common, f"{common} {own_first}".strip(), f"{common} {own_second}".strip()


def _ratio(first: str, second: str) -> int:
    """Difflib's ratio in whole percent; halves go to the even number."""
    if first == second:
        return 100
    if not first or not second:
        return 0
    return round(100 * SequenceMatcher(None, first, second).ratio())


def _passes(first: str, second: str) -> bool:
    # Half a percent below the first whole number that passes, less a little for other rounding.
    if 100 * Indel.normalized_similarity(first, second) < THRESHOLD + 0.499:
        return False
    return _ratio(first, second) > THRESHOLD
