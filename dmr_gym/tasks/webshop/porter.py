"""The Porter stemmer in Martin Porter's own revision: "bli" becomes "ble", "logi" becomes "log", short words stay.

The rules are those of M. F. Porter, "An algorithm for suffix stripping", Program 14(3), 1980, with the departures that
its author published later: a word of one or two letters is left alone, step 2 has the pairs (bli, ble) and (logi, log).
Every character other than a, e, i, o, u and y counts as a consonant, digits and punctuation too.
"""

from __future__ import annotations


class _Shapes(dict[int, str]):
    """Translation of a character to "v" for a vowel, "c" for a consonant, and "y" for the one that is either."""

    def __missing__(self, code: int) -> str:
        return "c"


_SHAPES = _Shapes({**dict.fromkeys(map(ord, "aeiou"), "v"), ord("y"): "y"})

# Keyed by the last letter but one, as each ending of a step is found by it; the longest ending of a step wins.
_STEP_2 = {
    "a": (("ational", "ate"), ("tional", "tion")),
    "c": (("enci", "ence"), ("anci", "ance")),
    "e": (("izer", "ize"),),
    "l": (("bli", "ble"), ("alli", "al"), ("entli", "ent"), ("eli", "e"), ("ousli", "ous")),
    "o": (("ization", "ize"), ("ation", "ate"), ("ator", "ate")),
    "s": (("alism", "al"), ("iveness", "ive"), ("fulness", "ful"), ("ousness", "ous")),
    "t": (("aliti", "al"), ("iviti", "ive"), ("biliti", "ble")),
    "g": (("logi", "log"),),
}
_STEP_3 = {
    "t": (("icate", "ic"), ("iciti", "ic")),
    "v": (("ative", ""),),
    "z": (("alize", "al"),),
    "a": (("ical", "ic"),),
    "u": (("ful", ""),),
    "s": (("ness", ""),),
}
_STEP_4 = {
    "a": ("al",),
    "c": ("ance", "ence"),
    "e": ("er",),
    "i": ("ic",),
    "l": ("able", "ible"),
    "n": ("ement", "ment", "ent", "ant"),
    "o": ("sion", "tion", "ou"),
    "s": ("ism",),
    "t": ("ate", "iti"),
    "u": ("ous",),
    "v": ("ive",),
    "z": ("ize",),
}


def stem(word: str) -> str:
    """The stem of a word in lower case."""
    if len(word) <= 2:
        return word
    word = _plural(word)
    word = _past(word)
    if word[-1] == "y" and _has_vowel(word[:-1]):
        word = word[:-1] + "i"
    word = _replace(word, _STEP_2)
    word = _replace(word, _STEP_3)
    word = _remove(word)
    return _final(word)


def _shape(part: str) -> str:
    """One letter a character: "v" for a vowel, "c" for a consonant; "y" is a vowel after a consonant."""
    shape = part.translate(_SHAPES)
    while "y" in shape:
        place = shape.index("y")
        shape = shape[:place] + ("v" if shape[place - 1 : place] == "c" else "c") + shape[place + 1 :]
    return shape


def _measure(part: str) -> int:
    """How often a consonant follows a vowel: m in [C](VC)^m[V]."""
    return _shape(part).count("vc")


def _has_vowel(part: str) -> bool:
    return "v" in _shape(part)


def _ends_double(word: str) -> bool:
    """Whether the word ends with the same consonant twice."""
    return len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == "c"


def _ends_short(word: str) -> bool:
    """Whether the word ends consonant, vowel, consonant, the last none of w, x and y."""
    return len(word) > 2 and word[-1] not in "wxy" and _shape(word).endswith("cvc")


def _plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word[-1] == "s" and not word.endswith("ss") else word


def _past(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    ending = "ed" if word.endswith("ed") else "ing" if word.endswith("ing") else ""
    if not ending or not _has_vowel(word[: -len(ending)]):
        return word
    word = word[: -len(ending)]
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _ends_double(word):
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _ends_short(word) else word


def _replace(word: str, step: dict[str, tuple[tuple[str, str], ...]]) -> str:
    for ending, replacement in step.get(word[-2:-1], ()):
        if word.endswith(ending):
            kept = word[: -len(ending)]
            return kept + replacement if _measure(kept) else word
    return word


def _remove(word: str) -> str:
    for ending in _STEP_4.get(word[-2:-1], ()):
        if word.endswith(ending):
            kept = word[: -len(ending)] + (ending[0] if ending in ("sion", "tion") else "")
            return kept if _measure(kept) > 1 else word
    return word


def _final(word: str) -> str:
    if word[-1] == "e":
        measure = _measure(word[:-1])
        if measure > 1 or (measure == 1 and not _ends_short(word[:-1])):
            word = word[:-1]
    return word[:-1] if word.endswith("ll") and _measure(word) > 1 else word
