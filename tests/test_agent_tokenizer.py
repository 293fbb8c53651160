"""The embedded agents' tokenizer: what is to be copied has the same pieces wherever it stands."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from dmr_gym.agent_tokenizer import END_OF_TEXT, train_tokenizer

TEXT = "Task: i need green tea\n[ 3] $3.00 green tea\n> search[ green tea]\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Of a shop with one page."""
    return train_tokenizer([TEXT] * 50, 2048)


@pytest.mark.parametrize("text", ["[ 37] $3.0", " click[ 37]\n", "was item 37: click"])
def test_a_products_number_is_the_same_piece_everywhere(tokenizer: Tokenizer, text: str) -> None:
    """On a page, in an answer, and in the history, so it can be copied at once."""
    assert "Ġ37" in tokenizer.encode(text).tokens


@pytest.mark.parametrize("text", ["b000", "Größe 7½\n\n [x]", TEXT])
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    """Any text has pieces, bytes where no word is known, and they are the text."""
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_word_is_one_piece_that_brackets_do_not_change(tokenizer: Tokenizer) -> None:
    """A word of the texts has the piece in brackets that it has in a sentence; a bracket is a piece of its own."""
    assert tokenizer.encode("[ green] need").tokens == ["[", "Ġgreen", "]", "Ġneed"]


def test_the_end_of_text_is_token_zero(tokenizer: Tokenizer) -> None:
    """It ends completions and pads batches."""
    assert tokenizer.token_to_id(END_OF_TEXT) == 0


def test_the_module_needs_no_torch() -> None:
    """Importing it does not load torch."""
    code = "import sys, dmr_gym.agent_tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
