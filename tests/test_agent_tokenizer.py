"""The embedded agents' tokenizer: what is to be copied has the same pieces wherever it stands."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from dmr_gym.agent_tokenizer import END_OF_TEXT, train_tokenizer

TEXT = "Task: i need green tea\n[3] $3.00 green tea\n> search[ green tea]\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Of a shop with one page."""
    return train_tokenizer([TEXT] * 50, 2048, shop=True)


@pytest.mark.parametrize("text", ["[37] $3.0", " click[37]\n", "[37]"])
def test_a_products_number_is_one_piece_behind_a_bracket(tokenizer: Tokenizer, text: str) -> None:
    """On a page and in an answer, so it can be copied at once; behind a space it is another single piece."""
    assert "37" in tokenizer.encode(text).tokens
    assert "Ġ37" in tokenizer.encode("was item 37: click").tokens


@pytest.mark.parametrize("text", ["b000", "Größe 7½\n\n [x]", TEXT])
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    """Any text has pieces, bytes where no word is known, and they are the text."""
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_words_and_numbers_are_one_piece_behind_a_space_and_a_bracket(tokenizer: Tokenizer) -> None:
    """A word of the texts, also as an option's value, and each number up to 40."""
    assert tokenizer.encode("[green] need 37").tokens == ["[", "green", "]", "Ġneed", "Ġ37"]


def test_in_another_world_nothing_of_a_shop_is_learned() -> None:
    """The words and numbers behind brackets belong to WebShop; the end of text is token 0 in any world."""
    plain = train_tokenizer([TEXT], 1024)
    assert plain.token_to_id(END_OF_TEXT) == 0
    assert plain.encode("[47]").tokens == ["[", "4", "7", "]"]


def test_the_module_needs_no_torch() -> None:
    """Importing it does not load torch."""
    code = "import sys, dmr_gym.agent_tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
