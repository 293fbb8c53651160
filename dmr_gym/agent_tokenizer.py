"""The byte-level BPE tokenizer of an embedded agent, made so that names can be copied.

No piece spans two words or numbers, a space belongs to what follows it, and brackets stand alone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
"""Ends a completion and pads a batch; id 0."""

WORDS = r" ?[\[\]]| ?\p{L}+| ?\p{N}+|\n| ?[^\s\p{L}\p{N}\[\]]+|\s"
"""Matches what no piece of the vocabulary may span."""

_NUMBERS = range(1, 41)
_NUMBER_COUNT = 100
_BRACKETED_SHARE = 4
_RESULTS = range(1, 51)


def train_tokenizer(texts: Sequence[str], vocab_size: int, shop: bool = False) -> Tokenizer:
    """Train the tokenizer on a world's texts; the same texts give the same one.

    Args:
        texts: prompts with their answers. Numbers from 1 to 40 are added, so that each is a token.
        vocab_size: entries, the 256 bytes and `END_OF_TEXT` included.
        shop: whether texts are a shop's: its words and the numbers of its results are added behind a bracket, where
            no space begins them.
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
    tokenizer.train_from_iterator([*texts, *_shop_texts(texts)] if shop else texts, trainer)
    return tokenizer


def _shop_texts(texts: Sequence[str]) -> list[str]:
    """Words behind brackets, a quarter as often as behind spaces, and the numbers of results, with and without."""
    words = Counter(word for text in texts for word in re.findall(r" ([a-z]{2,})", text))
    bracketed = [f"[{word}]" * (count // _BRACKETED_SHARE) for word, count in words.items()]
    return bracketed + [f"[{number}] {number}" for number in _RESULTS] * _NUMBER_COUNT
