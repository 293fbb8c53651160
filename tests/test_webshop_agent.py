"""The embedded WebShop agent: its tokens can be copied, and it shops."""

from __future__ import annotations

from importlib.resources import files

import pytest
from tokenizers import Tokenizer

from dmr_gym.policies import FixedPrecision
from dmr_gym.rollout import rollout
from dmr_gym.tasks.webshop.task import WebshopTask
from dmr_gym.vector import PrecisionRoutingVectorEnv

WEIGHTS = files("dmr_gym") / "weights" / "webshop"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The one that all precisions share."""
    return Tokenizer.from_str((WEIGHTS / "bf16" / "tokenizer.json").read_text(encoding="utf-8"))


def contains(tokens: list[int], part: list[int]) -> bool:
    """Whether one sequence stands in another without a gap."""
    return any(tokens[place : place + len(part)] == part for place in range(len(tokens) - len(part) + 1))


@pytest.mark.parametrize("panel", ["validation", "test"])
def test_values_have_the_same_tokens_in_task_page_and_answer(tokenizer: Tokenizer, panel: str) -> None:
    """A wanted value can be copied token by token from the task into the answer, and found on the page by them."""
    task = WebshopTask(panel=panel, n_goals=60)
    seen = 0
    for task_id in task.task_ids:
        task.reset(task_id)
        goal = task.engine.goal
        words = tokenizer.encode(f"Task: {goal.instruction_text}").ids
        for value in goal.options:
            ids = tokenizer.encode(f" {value}").ids
            assert contains(tokenizer.encode(f" click[ {value}]\n").ids, ids)
            assert contains(tokenizer.encode(f"size: [ small] [ {value}] [ large]").ids, ids)
            seen += contains(words, ids)
    # Where a comma or a quotation mark stands before a value, its first piece is another.
    assert seen >= 0.9 * sum(len(task.engine.goals[n].options) for n in task._numbers.values())


def test_numbers_and_prices_are_read_back(tokenizer: Tokenizer) -> None:
    """A number has the same tokens on page, in answer and history, up to 20 a single one; prices decode unchanged."""
    for number in range(1, 51):
        ids = tokenizer.encode(f" {number}").ids
        assert len(ids) == 1 or number > 20
        for text in (f"[ {number}] $1.0", f" click[ {number}]\n", f"was item {number}: click[features]"):
            assert contains(tokenizer.encode(text).ids, ids)
    for price in ("$3.0", "$1004.5", "$58.62 to $62.54"):
        assert tokenizer.decode(tokenizer.encode(price).ids) == price


@pytest.mark.slow
def test_the_agent_shops_and_fewer_bits_cost_it_success() -> None:
    """On 40 validation goals bf16 solves more than half, and w3 clearly fewer."""
    envs = PrecisionRoutingVectorEnv(
        16,
        autoreset_mode="Disabled",
        task="webshop",
        task_kwargs={"panel": "validation"},
        precisions=("w3", "bf16"),
        max_steps=30,
        encoder={"kind": "hash", "dim": 8},
        latency={"ms_per_token": {"w3": 1.0, "bf16": 2.0}, "router_ms": 0.0},
        sampling={"max_tokens": 32},
    )
    tasks = list(envs.task_ids)[:40]
    low, high = (sum(t.success for t in rollout(envs, FixedPrecision(p), tasks)) / len(tasks) for p in (0, 1))
    assert high >= 0.5
    assert low <= high - 0.1
