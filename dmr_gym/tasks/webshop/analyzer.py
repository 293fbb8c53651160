"""Turn text into the index terms of Lucene 8's English analyzer, as WebShop's search engine does.

The chain: words by the rules of UAX #29 (each emoji sequence, Han or Hiragana character is a word of its own), at most
255 UTF-16 units each; a possessive 's goes; lower case; English stop words go; Porter's stemmer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping

from dmr_gym.tasks.webshop.character_classes import OTHER, character_class
from dmr_gym.tasks.webshop.porter import stem

MAX_WORD_UNITS = 255
"""Longest word in UTF-16 units; a longer one is cut and goes on as the next word."""

STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
_APOSTROPHES = "'\u2019\uff07"
_NARROW_SPACE = "\u202f"  # white space to Python, a joiner of words to UAX #29
_WHITE_SPACE = re.compile(rf"[^\S{_NARROW_SPACE}]+")
_CACHED_CHUNK_LENGTH = 48

# Words of ASCII text: letters, digits and underscores, joined by . and ' between two letters or two digits, by a colon
# between letters, by a comma or semicolon between digits. Underscores alone are no word.
_ASCII_WORD = re.compile(
    r"(?=_*[A-Za-z0-9])\w+(?:(?:(?<=[0-9])[.',;](?=[0-9])|(?<=[A-Za-z])[.':](?=[A-Za-z]))\w+)*", re.ASCII
)

_Machine = Mapping[str, Mapping[str, str]]


def _machine(rows: Mapping[str, str]) -> _Machine:
    """Expand a table of a deterministic automaton: state to "classes>next state ..."; "" is the start."""
    expanded: dict[str, dict[str, str]] = {}
    for state, row in rows.items():
        expanded[state] = {}
        for item in row.split():
            symbols, _, target = item.rpartition(">")
            expanded[state].update(dict.fromkeys(symbols, target))
    return expanded


# The automata read class symbols. A state in capitals accepts. "+" stands for what UAX #29 lets follow any character
# without a break (Extend, Format, joiners, selectors, tags); "-" for the same without the presentation selectors.
_EXTENDING = "xscZFVtT"
_EXTENDING_EMOJI = "xsctT"


def _rules(rows: Mapping[str, str]) -> _Machine:
    return _machine({state: row.replace("+", _EXTENDING).replace("-", _EXTENDING_EMOJI) for state, row in rows.items()})


# Letters (A, Hebrew B), digits N, Katakana K, joiners E such as the underscore. HEB is a Hebrew letter, which a quote
# may follow; QUO one with its single quote; let and num wait for the letter or digit after a mark between two of them.
_CORE = "Aa>LET B>HEB N1>NUM K>KAT"
_WORD = _rules(
    {
        "": f"{_CORE} E>pre",
        "pre": f"{_CORE} E+>pre",
        "LET": "Aa+>LET B>HEB N1>NUM E>JOI :.'>let",
        "HEB": "Aa>LET B+>HEB N1>NUM E>JOI :.>let '>QUO \">heb",
        "QUO": "Aa>LET B>HEB N1>NUM E>JOI +>QUO",
        "heb": "B>END +>heb",
        "END": "Aa>LET B>HEB N1>NUM E>JOI +>END",
        "NUM": "Aa>LET B>HEB N1+>NUM E>JOI ,.'>num",
        "KAT": "K+>KAT E>JOI",
        "JOI": f"{_CORE} E+>JOI",
        "let": "AaB>LET +>let",
        "num": "N1>NUM +>num",
    }
)
# Pictographs P (a: one that is also a letter), those that take a skin tone Q, skin tones M, joiner Z, selector F, tags
# t closed by T, flags of two R, keycaps of 1 or # and c. join, joins: one and more joiners after a selector.
_PICTURE = "Pa>PIC Q>BAS"
_EMOJI = _rules(
    {
        "": f"{_PICTURE} M>TON Z>lead 1#>key R>flag",
        "lead": f"{_PICTURE} Z>lead",
        "PIC": "->PIC Z>PICJ F>SEL",
        "PICJ": f"{_PICTURE} M>TON ->PIC Z>PICJ F>SEL",
        "BAS": "M>TON ->BAS Z>BASJ F>SEL",
        "BASJ": f"{_PICTURE} M>TON ->BAS Z>BASJ F>SEL",
        "TON": "->TON Z>TONJ",
        "TONJ": f"{_PICTURE} M>TON ->TON Z>TONJ",
        "SEL": "Z>join t>tag",
        "join": f"{_PICTURE} M>TON Z>joins",
        "joins": f"{_PICTURE} Z>joins",
        "tag": "t>tag T>CLOSED",
        "CLOSED": "",
        "key": "xstTZ>key c>KEY F>keys",
        "keys": "c>KEY",
        "KEY": "xsctTZ>KEY F>keys",
        "flag": "+>flag R>FLAG",
        "FLAG": "+>FLAG",
    }
)
_SOUTH_EAST_ASIAN = _rules({"": "Ss>RUN", "RUN": "S+>RUN"})
_SINGLE = _rules({"": "I>ONE", "ONE": "+>ONE"})
_MACHINES = (_WORD, _EMOJI, _SOUTH_EAST_ASIAN, _SINGLE)


def analyse(text: str) -> list[str]:
    """The index terms of a text, in its order.

    Args:
        text: any text; upper case is lowered character by character.

    Returns:
        The terms; a word that is a stop word gives none.
    """
    return [term for chunk in split_chunks(text) for term in chunk_terms(chunk)]


def split_chunks(text: str) -> list[str]:
    """Cut a text at white space. No word spans two chunks, so the terms of a text are those of its chunks."""
    return _WHITE_SPACE.split(text) if _NARROW_SPACE in text else text.split()


def chunk_terms(chunk: str) -> tuple[str, ...]:
    """The index terms of a text without white space, from a bounded cache if it is short."""
    return _cached_terms(chunk) if len(chunk) <= _CACHED_CHUNK_LENGTH else _terms(chunk)


def _terms(chunk: str) -> tuple[str, ...]:
    is_simple = chunk.isascii() and len(chunk) <= MAX_WORD_UNITS
    words = _ASCII_WORD.findall(chunk) if is_simple else _words(chunk)
    return tuple(term for word in words if (term := word_term(word)))


_cached_terms = functools.lru_cache(maxsize=1 << 15)(_terms)


@functools.lru_cache(maxsize=1 << 15)
def word_term(word: str) -> str:
    """The index term of a word as the tokenizer cut it, "" for a stop word."""
    if word[-1] in "sS" and word[-2:-1] and word[-2] in _APOSTROPHES:
        word = word[:-2]
    # Lucene lowers each character by itself: a capital sigma at the end of a word is no final sigma.
    word = word.lower() if word.isascii() else "".join(character.lower()[0] for character in word)
    if word in STOP_WORDS:
        return ""
    if word.isascii() or max(word) <= "\uffff":
        return stem(word)
    units = word.encode("utf-16-le", "surrogatepass")
    halves = "".join(chr(units[i] | units[i + 1] << 8) for i in range(0, len(units), 2))
    return stem(halves).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _words(chunk: str) -> Iterator[str]:
    """Cut a chunk into words: at each place the longest that a rule allows; a character that begins none is skipped."""
    classes = "".join(map(character_class, chunk))
    start = 0
    while start < len(chunk):
        if classes[start] == OTHER:
            start += 1
            continue
        limit = _window_end(chunk, start)
        end = max(_longest(machine, classes, start, limit) for machine in _MACHINES)
        if end > start:
            yield chunk[start:end]
        start = max(end, start + 1)


def _window_end(chunk: str, start: int) -> int:
    """Where a word that begins at ``start`` has to end at the latest: after `MAX_WORD_UNITS` UTF-16 units."""
    end = min(len(chunk), start + MAX_WORD_UNITS)
    window = chunk[start:end]
    if window.isascii() or max(window) <= "\uffff":
        return end
    units = 0
    for place, character in enumerate(window):
        units += 2 if character > "\uffff" else 1
        if units > MAX_WORD_UNITS:
            return start + place
    return end


def _longest(machine: _Machine, classes: str, start: int, limit: int) -> int:
    """End of the longest match of an automaton from ``start``, or ``start`` where it has none."""
    state: str | None = ""
    end = start
    for place in range(start, limit):
        state = machine[state or ""].get(classes[place])
        if state is None:
            break
        if state.isupper():
            end = place + 1
    return end
