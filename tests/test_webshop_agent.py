"""The embedded shopping agent's tokenizer: what has to be copied is the same tokens on a page and in an answer."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dmr_gym.tasks.webshop.demonstrations import expert_for
from dmr_gym.tasks.webshop.task import WebshopTask

CLICKABLE = re.compile(r"\[(?!\.\.\.)([^\[\]]+)\]")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """That of the shipped bf16 copy."""
    folder = resources.files("dmr_gym") / "weights" / "webshop" / "bf16"
    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def pieces(tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int) -> list[int]:
    """Ids of the tokens that touch text[start:end]."""
    encoded = tokenizer(text, return_offsets_mapping=True)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [token for token, (first, last) in spans if first < end and last > start]


def test_clickable_names_are_the_same_tokens_on_the_page_and_in_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Product numbers, option values and buttons of expert episodes can be copied one by one."""
    task, compared = WebshopTask(panel="test", n_goals=12), 0
    for task_id in task.task_ids:
        task.reset(task_id)
        expert, done = expert_for(task.engine.goal), False
        while not done:
            prompt = str(task.prompt())
            for match in CLICKABLE.finditer(prompt):
                answer = f" click[{match[1]}]\n"
                on_page = pieces(tokenizer, prompt, *match.span(1))
                in_answer = pieces(tokenizer, answer, 7, 7 + len(match[1]))
                assert on_page == in_answer, match[1]
                compared += 1
            done = task.step(f" {expert.act(prompt)}\n").done
    assert compared > 500


def test_prices_are_the_same_tokens_in_every_line(tokenizer: PreTrainedTokenizerBase) -> None:
    """A price label behind a product number and alone on its line has the same pieces of digits."""
    for price in ("$24.99", "$7.5", "$104.0", "$10.25"):
        listed, alone = f"[b0k3m9x2qa] {price} tea", f"item b0k3m9x2qa\n{price}\ntea"
        digits = [
            pieces(tokenizer, text, text.index("$") + 1, text.index("$") + len(price)) for text in (listed, alone)
        ]
        assert digits[0] == digits[1]
        assert len(digits[0]) <= 5
