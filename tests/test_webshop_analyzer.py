"""The analyzer against hand-checked texts, the tokenizer's grammar, and terms recorded from the original."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.tasks.webshop import analyzer
from dmr_gym.tasks.webshop.analyzer import MAX_WORD_UNITS, STOP_WORDS, analyse, split_chunks
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.character_classes import OTHER, character_class
from dmr_gym.tasks.webshop.porter import stem

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
ASCII_TEXT = st.text(alphabet=st.sampled_from("abcIS019 _.,:;'\"-#*!"), max_size=40)
ANY_TEXT = st.text(max_size=60) | st.text(
    alphabet=st.sampled_from(
        "ab1 _.:,'\u0301\u200d\ufe0f\u20e3#\U0001f44d\U0001f3fd\U0001f1e9★漢ひカ한\u05d0\"\u0e01\u0e31"
    ),
    max_size=30,
)


def test_terms_of_every_product_are_those_of_the_original(shared_conformance: Path, shared_data: Path) -> None:
    """The index text of each of the 1000 products gives the recorded terms."""
    folder = shared_data / "webshop"
    rows = json.loads((folder / "items_shuffle_1000.json").read_text(encoding="utf-8"))
    instructions = json.loads((folder / "items_ins_v2_1000.json").read_text(encoding="utf-8"))
    catalogue = Catalogue.from_rows(rows, instructions, "items_shuffle_1000.json")
    with gzip.open(shared_conformance / "webshop_doc_tokens.jsonl.gz", "rt", encoding="utf-8") as file:
        recorded = {row["asin"]: row["tokens"] for row in map(json.loads, file)}
    assert len(recorded) == 1000
    differences = [p.asin for p in map(catalogue.__getitem__, range(1000)) if analyse(p.index_text) != recorded[p.asin]]
    assert differences == []


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("Dog's DOGS\u2019S o'neil", ["dog", "dog", "o'neil"]),
        ("the Cats ARE running with it", ["cat", "run"]),
        ("4,000 3.5 1;2 10:30 a,b", ["4,000", "3.5", "1;2", "10", "30", "b"]),
        ("x.y x:y x;y x..y x.1 1.x", ["x.y", "x:y", "x", "y", "x", "y", "x", "1", "1", "x"]),
        ("12ab ab12.5 8-inch", ["12ab", "ab12.5", "8", "inch"]),
        ("_ __ _x_ x__y x_.y", ["_x_", "x__y", "x_", "y"]),
        ("½ ① ² € …", []),
        ("★best★ ♡ © 4™", ["★", "best", "★", "♡", "©", "4", "™"]),
        ("漢字 ひら", ["漢", "字", "ひ", "ら"]),
        ("カタカナ 한국어 カx", ["カタカナ", "한국어", "カ", "x"]),
        ("สวัสดีx", ["สวัสดี", "x"]),
        ("e\u0301a \u0301", ["e\u0301a"]),
        ("\uff11\uff12\u0660", ["\uff11\uff12\u0660"]),
        (f"a{FAMILY}b", [FAMILY, "b"]),
        ("\U0001f44d\U0001f3fd \U0001f44d\ufe0f\U0001f44d", ["\U0001f44d\U0001f3fd", "\U0001f44d\ufe0f", "\U0001f44d"]),
        ("1\ufe0f\u20e3 #\ufe0f\u20e3 #", ["1\ufe0f\u20e3", "#\ufe0f\u20e3"]),
        ("\U0001f1e9\U0001f1ea\U0001f1eb", ["\U0001f1e9\U0001f1ea"]),
        ('\u05d0\u05d1"\u05d2 \u05d0\' \u05d0"', ['\u05d0\u05d1"\u05d2', "\u05d0'", "\u05d0"]),
        ("a\u202fb a\u00a0b", ["a\u202fb", "b"]),
        ("\ud83d x", ["x"]),
        ("STRAẞE ΣΑΣ", ["straße", "σασ"]),
    ],
)
def test_words_are_cut_and_lowered_by_the_rules(text: str, terms: list[str]) -> None:
    """Marks join, emoji sequences and single characters stand alone, symbols vanish; "a" is a stop word."""
    assert analyse(text) == terms


def test_there_are_33_stop_words_and_none_is_a_term() -> None:
    """The list is Lucene's; upper case and possessives of them go as well."""
    assert len(STOP_WORDS) == 33
    assert analyse(" ".join(STOP_WORDS).upper() + " it's") == []


def test_a_long_word_is_cut_every_255_units() -> None:
    """Letters beyond the 16-bit planes count as two units, and are not halved."""
    assert [len(term) for term in analyse("z" * 600)] == [255, 255, 90]
    assert [len(term) for term in analyse("x" + "\U0001d400" * 200)] == [128, 73]
    # The mark between two digits needs the second one within the same 255 units.
    assert [len(term) for term in analyse("1" * 254 + ".22")] == [254, 2]


@given(ANY_TEXT)
def test_any_text_has_terms_without_white_space(text: str) -> None:
    """Nothing raises; terms are not empty, hold no white space, and no more than 255 UTF-16 units."""
    for term in analyse(text):
        assert term
        assert term.replace("\u202f", "").split() == [term.replace("\u202f", "")]
        assert len(term.encode("utf-16-le", "surrogatepass")) <= 2 * MAX_WORD_UNITS


@given(ANY_TEXT, ANY_TEXT)
def test_terms_of_joined_texts_are_joined_terms(left: str, right: str) -> None:
    """White space always parts words."""
    assert analyse(f"{left} {right}") == analyse(left) + analyse(right)
    assert analyse(f"{left}\n{right}") == analyse(left) + analyse(right)


@given(ASCII_TEXT)
def test_upper_case_makes_no_difference(text: str) -> None:
    """Terms of ASCII text depend on letters only up to case."""
    assert analyse(text.upper()) == analyse(text) == analyse(text.lower())


@given(ASCII_TEXT)
def test_the_rules_for_ascii_are_the_general_ones(text: str) -> None:
    """The pattern for ASCII finds the words of the automata."""
    for chunk in split_chunks(text):
        assert analyzer._ASCII_WORD.findall(chunk) == list(analyzer._words(chunk))


# The tokenizer's grammar over class symbols, written as its rules are, with single choices instead of automata.
_EX = "[xscZFVtT]*"
_SANS = "[xsctTZ]*"
_EMOJI_ITEM = f"(?:Z*[PaQ]{_SANS}F?|(?:Z*Q{_SANS})?M{_SANS})"
_NUMBERS = f"[N1]{_EX}(?:(?:(?:E{_EX})*|[,.']{_EX})[N1]{_EX})*"
_LETTERS = f"[AaB]{_EX}(?:(?:(?:E{_EX})*|[:.']{_EX})[AaB]{_EX})*"
_HEBREW = f"B{_EX}(?:'{_EX}|\"{_EX}B{_EX})"
_CORE = f"(?:K{_EX}(?:(?:E{_EX})*K{_EX})*|(?:{_HEBREW}|{_NUMBERS}|{_LETTERS})+)"
GRAMMAR = [
    re.compile(rule)
    for rule in (
        f"{_EMOJI_ITEM}(?:(?:Z{_EMOJI_ITEM})*|t+T)",
        f"[1#]{_SANS}F?c{_SANS}",
        f"(?:R{_EX}){{2}}",
        f"(?:E{_EX})*{_CORE}(?:(?:E{_EX})+{_CORE})*(?:E{_EX})*",
        f"(?:[Ss]{_EX})+",
        f"I{_EX}",
    )
]
SYMBOLS = "ABNK1#:,.'\"ExsSIRPaQMZFVtTc"
CHARACTERS = (
    "a\u05d0\u0660カ1#:,.'\"_\u0301\u0e31\u0e01漢\U0001f1e9★\u24c2\u261d\U0001f3fd"
    "\u200d\ufe0f\ufe0e\U000e0061\U000e007f\u20e3"
)
EXAMPLES = dict(zip(SYMBOLS, CHARACTERS, strict=True))


def test_each_class_has_its_example() -> None:
    """The examples that the next test composes texts from are of the classes that they stand for."""
    assert {symbol: character_class(example) for symbol, example in EXAMPLES.items()} == {s: s for s in EXAMPLES}
    assert {character_class(c) for c in "½① !$\ud800\U0001f3f0"} == {OTHER, "P"}


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet=st.sampled_from(sorted(EXAMPLES)), max_size=9))
def test_the_automata_find_the_longest_match_of_the_grammar(classes: str) -> None:
    """At each place the word is the longest that one of the grammar's rules matches, else the character is skipped."""
    expected, start = [], 0
    text = "".join(map(EXAMPLES.__getitem__, classes))
    while start < len(classes):
        ends = (end for end in range(len(classes), start, -1) if any(r.fullmatch(classes, start, end) for r in GRAMMAR))
        end = next(ends, start)
        expected += [text[start:end]] if end > start else []
        start = max(end, start + 1)
    assert list(analyzer._words(text)) == expected


@pytest.mark.parametrize(
    ("ending", "pairs"),
    {
        "plurals": "caresses caress ponies poni ties ti caress caress cats cat us us",
        "past": "feed feed agreed agre plastered plaster bled bled motoring motor sing sing",
        "restored": "conflated conflat troubled troubl sized size hopping hop tanned tan falling fall hissing hiss "
        "fizzed fizz failing fail filing file",
        "y": "happy happi sky sky may mai",
        "step 2": "relational relat conditional condit rational ration valenci valenc digitizer digit conformabli "
        "conform radicalli radic differentli differ vileli vile analogousli analog vietnamization vietnam predication "
        "predic operator oper feudalism feudal decisiveness decis hopefulness hope callousness callous formaliti "
        "formal sensitiviti sensit sensibiliti sensibl",
        "step 3": "triplicate triplic formative form formalize formal electriciti electr electrical electr hopeful "
        "hope goodness good",
        "step 4": "revival reviv allowance allow inference infer airliner airlin gyroscopic gyroscop adjustable adjust "
        "defensible defens irritant irrit replacement replac adjustment adjust dependent depend adoption adopt "
        "homologou homolog communism commun activate activ angulariti angular homologous homolog effective effect "
        "bowdlerize bowdler union union",
        "step 5": "probate probat rate rate cease ceas controll control roll roll",
        "revised": "assembly assembl archaeology archaeolog possibly possibl is is as as",
        "others": "1990s 1990 café café x.ys x.y syzygy syzygi yy yy",
    }.items(),
)
def test_stems_are_those_of_the_revised_porter_stemmer(ending: str, pairs: str) -> None:
    """The examples of Porter's paper, the two later rules, and words of other characters."""
    words = pairs.split()
    assert [stem(word) for word in words[::2]] == words[1::2], ending


@given(st.text(alphabet=st.sampled_from("aeiouybcdlstrnmgwxz1é."), max_size=12))
def test_stems_are_no_longer_and_begin_alike(word: str) -> None:
    """A stem has no more characters than its word, and shares all of it but an ending."""
    result = stem(word)
    assert len(result) <= len(word)
    assert result[: len(word) // 3] == word[: len(word) // 3]
    assert bool(result) == bool(word)
