"""The shopping expert: what it does on a page follows from the prompt alone."""

from __future__ import annotations

import pytest

from dmr_gym.tasks.webshop.expert import Past, ShoppingExpert, View, read_prompt

TASK = (
    "Task: i need non slip, wide fit men's slippers with memory foam in navy blue, size 9, "
    "and price lower than 40.00 dollars"
)
EXPERT = ShoppingExpert(("memory foam", "non slip", "wide fit"), ("navy blue", "9"), "men's slippers")
CORE = "non slip, wide fit men's slippers with memory foam"
RESULTS = f'results 1 "{CORE}"'
LISTINGS = """
[1] $12.0 Bramley Non Slip Wide Fit Women's Slippers With Memory Foam
[2] $45.5 Bramley Non Slip Wide Fit Men's Slippers With Memory Foam
[3] $10.0 to $50.0 Corvane Wide Fit Non Slip Men's Slippers
[4] $39.99 Corvane Wide Fit Non Slip Memory Foam Men's Slippers
[5] $20.0 Tamsin Wide Fit Men's Slippers
[back to search] [next >]""".strip()
ITEM = """item 4
$39.99
Corvane Wide Fit Non Slip Memory Foam Men's Slippers
color: [black] [navy blue]
size: [8] [9] [9.5]
[back to search] [< prev] [description] [features] [reviews] [buy now]"""
PLAIN_ITEM = ITEM.replace(" Memory Foam", "")
FEATURES = "features of item 4\n{text}\n[back to search] [< prev]"


def prompt(page: str, *history: str) -> str:
    """A prompt of the style "short" with the task of this module."""
    return "\n".join((TASK, f"Step {len(history) + 1}", *(f"was {step}" for step in history), page, TASK, ">"))


def test_prompt_is_taken_apart() -> None:
    """Task, history, summary and body are found; keywords may hold what separates other parts."""
    history = 'was start: search[x: [y]]\nwas results 1 "x: [y]": click[b]'
    text = f"Task: a: b\nStep 3\n{history}\nitem b\n$1.0\nT\n[buy now]\nTask: a: b\n>"
    assert read_prompt(text) == View(
        "a: b", (Past("start", "search[x: [y]]"), Past('results 1 "x: [y]"', "click[b]")), "item b", ("$1.0", "T")
    )


def test_search_takes_the_piece_of_the_task_with_type_and_attributes() -> None:
    """The keywords are copied from the task's sentence."""
    assert EXPERT.act(prompt("start\nsearch[...]")) == f"search[{CORE}]"


@pytest.mark.parametrize(
    ("task", "core"),
    [
        ("find me a men's slipper which is wide fit for my dad", "men's slipper which is wide fit"),
        (
            "Find me wide fit men's slippers with color: red, and size: 9",
            "wide fit men's slippers with color: red, and size: 9",
        ),
        ("wide fit feels good: i need wide fit men's slippers", "wide fit men's slippers"),
        ("get me shoes", "wide fit men's slippers"),
    ],
)
def test_core_is_the_shortest_piece(task: str, core: str) -> None:
    """The attribute nearest to the type counts; a script's request is taken whole; labels replace what is not found."""
    assert ShoppingExpert(("wide fit",), (), "men's slippers").core(task) == core


def test_results_are_taken_in_order_by_type_price_and_title() -> None:
    """The first is for women, the second too dear, the third says nothing of memory foam."""
    assert EXPERT.act(prompt(f"{RESULTS}\n{LISTINGS}", "start: search[x]")) == "click[4]"


def test_products_that_lack_an_attribute_come_after_the_product_that_was_left() -> None:
    """After the fourth, the fifth is missing two attributes; so the page is turned."""
    page = f"{RESULTS}\n{LISTINGS}"
    assert EXPERT.act(prompt(page, "item 4: click[< prev]")) == "click[next >]"
    page = page.replace("Tamsin", "Tamsin Non Slip")
    assert EXPERT.act(prompt(page, "item 4: click[< prev]", f"{RESULTS}: click[0]")) == "click[5]"


def test_last_page_takes_what_has_the_right_type_and_price() -> None:
    """On page 3 attributes no longer count; with nothing left, the type alone is searched."""
    page = f"{RESULTS}\n{LISTINGS}".replace("results 1", "results 3").replace("Memory Foam", "")
    assert EXPERT.act(prompt(page, "item 4: click[< prev]")) == "click[5]"
    assert EXPERT.act(prompt(page, "item 5: click[< prev]")) == "click[back to search]"
    start = prompt("start\nsearch[...]", f'results 3 "{CORE}": click[back to search]')
    assert EXPERT.act(start) == "search[men's slippers]"


def test_item_is_left_when_a_value_is_not_offered() -> None:
    """Size 9 is gone; 9.5 is not 9."""
    assert EXPERT.act(prompt(ITEM.replace(" [9]", ""), f"{RESULTS}: click[4]")) == "click[< prev]"


def test_item_is_left_when_type_or_price_is_wrong() -> None:
    """A product that was opened by mistake is not examined any further."""
    past = f"{RESULTS}: click[4]"
    assert EXPERT.act(prompt(ITEM.replace("39.99", "40.01"), past)) == "click[< prev]"
    assert EXPERT.act(prompt(ITEM.replace("Men's", "Women's"), past)) == "click[< prev]"


def with_chosen(page: str, *values: str) -> str:
    """The page after these values were chosen."""
    for value in values:
        page = "\n".join(f"{line} = {value}" if f"[{value}]" in line else line for line in page.split("\n"))
    return page


def test_values_are_chosen_in_page_order_and_then_bought() -> None:
    """Color, size, buy now; a wrong value is corrected at once."""
    past = f"{RESULTS}: click[4]"
    assert EXPERT.act(prompt(ITEM, past)) == "click[navy blue]"
    assert EXPERT.act(prompt(with_chosen(ITEM, "navy blue"), past)) == "click[9]"
    assert EXPERT.act(prompt(with_chosen(ITEM, "navy blue", "9"), past)) == "click[buy now]"
    assert EXPERT.act(prompt(with_chosen(ITEM, "navy blue", "9.5"), past)) == "click[9]"


def test_features_are_read_when_the_title_lacks_an_attribute() -> None:
    """Found there, the choice goes on; told nowhere, the search begins again after this product."""
    assert EXPERT.act(prompt(PLAIN_ITEM, f"{RESULTS}: click[4]")) == "click[features]"
    step = "item 4: click[features]"
    told = FEATURES.format(text="wide fit and non slip\nmade with memory foam")
    assert EXPERT.act(prompt(told, step)) == "click[< prev]"
    back = "features of item 4: click[< prev]"
    assert EXPERT.act(prompt(PLAIN_ITEM, step, back)) == "click[navy blue]"
    assert EXPERT.act(prompt(FEATURES.format(text="wide fit and non slip"), step)) == "click[back to search]"
    again = ("features of item 4: click[back to search]", f"start: search[{CORE}]")
    assert EXPERT.act(prompt(f"{RESULTS}\n{LISTINGS}", *again)) == "click[next >]"


def test_needless_pages_are_left() -> None:
    """Description and reviews decide nothing; afterwards the values are chosen from the first on."""
    page = "reviews of item 4\n[back to search] [< prev]"
    assert EXPERT.act(prompt(page, "item 4: click[reviews]")) == "click[< prev]"
    past = ("item 4: click[reviews]", "reviews of item 4: click[< prev]")
    assert EXPERT.act(prompt(ITEM, *past)) == "click[navy blue]"


def test_requests_of_the_script_are_served_by_values_alone() -> None:
    """The first affordable product is opened whatever its title says, and bought if it offers the values."""
    task = "Task: Find me wide fit men's slippers with color: black, and size: 9, and price lower than 30.00 dollars"
    expert = ShoppingExpert(("wide fit",), ("black", "9"), "men's slippers")
    page = f"{RESULTS}\n{LISTINGS}"
    assert expert.act(prompt(page, "start: search[x]").replace(TASK, task)) == "click[1]"
    page = prompt(page, "item 3: click[< prev]").replace(TASK, task)
    assert expert.act(page) == "click[5]"
    item = ITEM.replace("39.99", "29.99").replace("Slippers", "Mat")
    assert expert.act(prompt(item, f"{RESULTS}: click[4]").replace(TASK, task)) == "click[black]"
