"""Demonstrations: fixed by their number, real prompts, and mistakes that the expert recovers from."""

from __future__ import annotations

import re
from itertools import pairwise, zip_longest

import pytest

from dmr_gym.tasks.webshop.chance import Chance
from dmr_gym.tasks.webshop.demonstrations import (
    FIRST_SEED,
    SHOP_EPISODES,
    Piece,
    _mistake,
    demonstration,
    expert_for,
)
from dmr_gym.tasks.webshop.engine import WebShopEngine
from dmr_gym.tasks.webshop.generate import EMBEDDED_SEED, embedded_shop, generate_shop
from dmr_gym.tasks.webshop.panels import EMBEDDED_GOAL_SEED, embedded_goals
from dmr_gym.tasks.webshop.shop_style import draw_style
from dmr_gym.tasks.webshop.task import WebshopTask

ANSWER = re.compile(r" (click|search)\[ [^\n]+\]\n")


@pytest.fixture(scope="module")
def clean() -> list[list[Piece]]:
    """Demonstrations of two shops, one with human and one with synthetic goals, without mistakes."""
    return [list(demonstration(seed)) for seed in range(2 * SHOP_EPISODES)]


@pytest.fixture(scope="module")
def noisy() -> list[list[Piece]]:
    """The same with mistakes in every episode."""
    return [list(demonstration(seed, 1.0, 0.3)) for seed in range(2 * SHOP_EPISODES)]


def test_demonstration_is_a_function_of_its_number(noisy: list[list[Piece]]) -> None:
    """It does not depend on what was played before."""
    assert list(demonstration(13, 1.0, 0.3)) == noisy[13]
    assert list(demonstration(3, 1.0, 0.3)) == noisy[3]


@pytest.mark.parametrize("other", [4, 13])
def test_demonstrations_can_be_read_side_by_side(noisy: list[list[Piece]], other: int) -> None:
    """Two readers at a time do not disturb each other, in one shop or in two."""
    pairs = list(zip_longest(demonstration(3, 1.0, 0.3), demonstration(other, 1.0, 0.3)))
    assert [piece for piece, _ in pairs if piece] == noisy[3]
    assert [piece for _, piece in pairs if piece] == noisy[other]


def test_no_demonstration_asks_what_a_held_out_goal_asks() -> None:
    """No request of 60 shops, those of a tokenizer among them, is a sentence of calibration, validation or test.

    Letter case apart, no customer's request is one either; WebShop's script has few words, and one of the 500 sentences
    is among what it writes.
    """
    goals = WebShopEngine(embedded_shop(), EMBEDDED_GOAL_SEED, "human").goals
    numbers = [n for panel in ("calibration", "validation", "test") for n in embedded_goals(panel).values()]
    held_out = {goals[n].instruction_text.partition(", and price lower than")[0] for n in numbers}
    human, script = set(), set()
    for seed in range(FIRST_SEED - 20, FIRST_SEED + 40):
        shop = generate_shop(seed, 100, draw_style(seed))
        human |= {entry["instruction"].strip(".") for entries in shop.human.values() for entry in entries}
        script |= {entry["instruction"] for entry in shop.instructions.values()}
    assert len(held_out) == 500
    assert len(human) > 8000
    assert len(script) > 4000
    assert not (human | script) & held_out
    lower = {sentence.lower() for sentence in held_out}
    assert not {sentence.lower() for sentence in human} & lower
    assert {sentence.lower() for sentence in script} & lower <= {"find me heavy duty console tables"}
    assert FIRST_SEED - 1_000_000 > EMBEDDED_SEED


def test_prompts_and_answers_have_the_short_form(clean: list[list[Piece]]) -> None:
    """A prompt begins with the task and ends with ">"; an answer is one line with a space in front."""
    for episode in clean:
        assert [f"Step {number}" for number in range(1, len(episode) + 1)] == [
            piece.prompt.split("\n")[1] for piece in episode
        ]
        assert all(piece.prompt.startswith("Task: ") and piece.prompt.endswith("\n>") for piece in episode)
        assert all(ANSWER.fullmatch(piece.answer) for piece in episode)
        assert {piece.author for piece in episode} == {"expert"}


def test_most_demonstrations_end_with_a_purchase(clean: list[list[Piece]], noisy: list[list[Piece]]) -> None:
    """Without mistakes nearly all do; with many mistakes still most."""
    bought = [sum(e[-1].answer == " click[ buy now]\n" for e in episodes) for episodes in (clean, noisy)]
    assert bought[0] >= 18
    assert bought[1] >= 13


def test_mistakes_are_marked_and_followed_by_the_expert(noisy: list[list[Piece]]) -> None:
    """Some episodes have both authors, and a mistake never buys."""
    mistakes = [piece for episode in noisy for piece in episode if piece.author == "mistake"]
    assert len(mistakes) >= 20
    assert all(piece.answer != " click[ buy now]\n" or "buy now" not in piece.prompt for piece in mistakes)
    assert sum(any(p.author == "expert" for p in e) for e in noisy) == len(noisy)


def test_requests_alternate_between_customers_and_script(clean: list[list[Piece]]) -> None:
    """Every other shop asks as WebShop's script does."""
    starts = [episode[0].prompt.startswith("Task: Find me ") for episode in clean]
    assert starts == [False] * SHOP_EPISODES + [True] * SHOP_EPISODES


def test_expert_reaches_nine_of_ten_goals_of_the_embedded_shop() -> None:
    """Within 15 steps and for the full score, told nothing but the prompt and what the words mean."""
    task = WebshopTask(embedded_shop(), panel="all", goals="human")
    won = 0
    numbers = list(embedded_goals("validation").values())
    for number in numbers:
        task.reset(f"webshop-{number}")
        expert = expert_for(task.engine.goal)
        for _ in range(15):
            step = task.step(expert.act(str(task.prompt())))
            if step.done:
                won += step.success
                break
    assert won >= 0.9 * len(numbers)


@pytest.mark.parametrize(
    ("action", "page", "possible"),
    [
        ("search[red tea]", "start\nsearch[...]", {"search[red]", "search[tea]"}),
        ("search[tea]", "start\nsearch[...]", {"search[tea]"}),
        ("click[< prev]", "reviews of b0\n[< prev]", {"click[back to search]", "click[buy now]", "click[b0]"}),
    ],
)
def test_mistakes_on_simple_pages(action: str, page: str, possible: set[str]) -> None:
    """A word of the search is dropped; a page without the button is asked to buy."""
    prompt = f"Task: tea\nStep 1\n{page}\n>"
    seen = {_mistake(Chance(f"{number}"), action, prompt, ()) for number in range(60)}
    assert seen == possible


def test_mistakes_on_results_stand_before_the_right_product() -> None:
    """The expert, who goes on after the product it has left, finds the right one from there."""
    prompt = 'Task: tea\nStep 2\nresults 1 "tea"\n[ 1] $1.0 A\n[ 2] $1.0 B\n[ 3] $1.0 C\n[x]\nTask: tea\n>'
    seen = {_mistake(Chance(f"{number}"), "click[2]", prompt, ()) for number in range(200)}
    assert "click[1]" in seen
    assert not seen & {"click[3]"}
    assert "click[back to search]" in seen
    assert any(action[6:-1].isdigit() and f"[ {action[6:-1]}]" not in prompt for action in seen)


def test_mistakes_on_items_choose_another_value_of_the_same_option() -> None:
    """No wanted value is chosen in the wrong place; needless pages are opened; values are cut short."""
    prompt = "Task: tea\nStep 2\nitem 1\n$1.0\nTea\nsize: [ 1 lb] [ 2 lb]\nflavor: [ rose] [ mint]\n[buy now]\n>"
    seen = {_mistake(Chance(f"{number}"), "click[1 lb]", prompt, ("1 lb", "rose")) for number in range(200)}
    pages = {"click[description]", "click[features]", "click[reviews]"}
    assert seen == {"click[2 lb]", "click[1]", "click[any rose]", "click[< prev]", *pages}


def test_further_tasks_change_nothing_else() -> None:
    """The episode is the one without them; at most so many are asked on a page, each once, never the task itself."""
    for seed in (3, 13):
        asked = list(demonstration(seed, 1.0, 0.3, other_tasks=4))
        assert [piece._replace(others=()) for piece in asked] == list(demonstration(seed, 1.0, 0.3))
        assert any(len(piece.others) >= 3 for piece in asked)
        for piece in asked:
            tails = [tail for tail, _ in piece.others]
            assert len(tails) == len(set(tails)) <= 4
            assert all(tail not in piece.prompt for tail in tails)


def test_further_tasks_are_answered_from_the_page_they_are_asked_about() -> None:
    """Each begins as a prompt ends, and its answer is a search, a button of the page, or a name that it shows."""
    for seed in (3, 13):
        for piece in demonstration(seed, 1.0, 0.3, other_tasks=4):
            for tail, answer in piece.others:
                assert re.fullmatch(r"Task: [^\n]+\n>", tail)
                assert ANSWER.fullmatch(answer)
                if answer.startswith(" click"):
                    assert answer.strip()[5:] in piece.prompt


def test_nobody_buys_on_the_page_of_a_product_for_another_task() -> None:
    """On an item's page a further task either wants this product, or its answer is the way back."""
    answers = {
        answer
        for seed in range(20)
        for piece in demonstration(seed, other_tasks=4)
        if re.search(r"^item \d+$", piece.prompt, re.MULTILINE)
        for _, answer in piece.others
    }
    assert " click[ < prev]\n" in answers
    assert len(answers) > 10


def test_what_a_product_does_not_offer_is_asked_for_and_left() -> None:
    """In episodes with mistakes, wanted values are clicked where they are missing, and the expert then goes back."""
    followed = []
    for seed in range(40):
        pieces = list(demonstration(seed, 1.0, 0.1))
        followed += [
            after
            for piece, after in pairwise(pieces)
            if piece.author == "mistake" and f": {piece.answer.strip().replace('[ ', '[')} (invalid)" in after.prompt
            if after.author == "expert" and piece.answer.strip()[5:] not in piece.prompt
        ]
    assert len(followed) >= 5
    assert sum(after.answer == " click[ < prev]\n" for after in followed) >= len(followed) / 2
    assert not any("(invalid)" in piece.prompt for seed in range(10) for piece in demonstration(seed))
