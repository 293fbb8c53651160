"""The byte-level BPE tokenizer of an embedded agent, made so that names can be copied.

No piece spans two words or numbers, a space belongs to what follows it, brackets stand alone, and WebShop's product
numbers fall into pieces of two characters: rare enough on a page to be copied one after the other.
"""

from __future__ import annotations

import itertools
import re
import string
from collections import Counter
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
"""Ends a completion and pads a batch; id 0."""

PRODUCT_NUMBER = "|".join(
    [r" ?(?<![0-9a-z])b0(?=[0-9a-z]{8}(?![0-9a-z]))"]
    + [rf"(?<=b0[0-9a-z]{{{n}}})[0-9a-z]{{2}}(?=[0-9a-z]{{{6 - n}}}(?![0-9a-z]))" for n in (0, 2, 4, 6)]
)
"""Matches one of the five pieces of "b0" and eight more digits or letters."""

WORDS = PRODUCT_NUMBER + r"| ?[\[\]]| ?\p{L}+| ?\p{N}+|\n| ?[^\s\p{L}\p{N}\[\]]+|\s"
"""Matches what no piece of the vocabulary may span."""

_NUMBERS = range(1, 41)
_NUMBER_COUNT = 100
_PAIR_COUNT = 200
_BRACKETED_SHARE = 4


def train_tokenizer(texts: Sequence[str], vocab_size: int, product_numbers: bool = False) -> Tokenizer:
    """Train the tokenizer on a world's texts; the same texts give the same one.

    Args:
        texts: prompts with their answers. Numbers from 1 to 40 are added, so that each is a token.
        vocab_size: entries, the 256 bytes and `END_OF_TEXT` included.
        product_numbers: whether texts are a shop's: all pairs of digits and letters are added, and its words behind a
            bracket, where no space begins them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    numbers = "".join(f" {number}" for number in _NUMBERS)
    texts = [*texts, *[numbers] * _NUMBER_COUNT]
    tokenizer.train_from_iterator([*texts, *_shop_texts(texts)] if product_numbers else texts, trainer)
    return tokenizer


def _shop_texts(texts: Sequence[str]) -> list[str]:
    """Words behind brackets, a quarter as often as behind spaces, and product numbers of all pairs."""
    pairs = ["".join(pair) for pair in itertools.product(string.digits + string.ascii_lowercase, repeat=2)]
    words = Counter(word for text in texts for word in re.findall(r" ([a-z]{2,})", text))
    bracketed = [f"[{word}]" * (count // _BRACKETED_SHARE) for word, count in words.items()]
    return bracketed + [f"[b0{''.join(pairs[first : first + 4])}]" for first in range(0, len(pairs), 4)] * _PAIR_COUNT
