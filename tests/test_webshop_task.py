"""The WebShop task: prompts on a real engine, invalid completions, scores, snapshots, sources."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.prompts.webshop import admissible_actions
from dmr_gym.tasks import make_task
from dmr_gym.tasks.webshop.shop import Shop
from dmr_gym.tasks.webshop.task import AFTER_PURCHASE, WebshopTask
from dmr_gym.types import Task
from tests.task_contract import check

BAR, SHIRT = "B000000BAR", "B00000SHRT"
BAR_GOAL = "i need a gluten free snack bar with cocoa flavor"
SHOP = Shop.from_rows(
    [
        {
            "asin": BAR,
            "name": "Oat & Co Gluten Free Snack Bar",
            "full_description": "A bar of oats.",
            "small_description": ["gluten free  and ready", "made with cocoa"],
            "pricing": "$1,004.50",
            "customization_options": {
                "Flavor Name": [{"value": "Cocoa"}, {"value": "Sea Salt"}],
                "size": [{"value": "8 ounce (pack of 2)"}, {"value": "odd [8]"}],
            },
            "images": [""],
            "product_category": "Grocery › Snacks › Bars",
            "category": "grocery",
            "query": "snack bar",
        },
        {
            "asin": SHIRT,
            "name": "Plain Shirt",
            "full_description": "",
            "small_description": [],
            "pricing": "$10.00 - $20",
            "customization_options": "",
            "images": [""],
            "product_category": "Clothing › Shirts",
            "category": "fashion",
            "query": "shirt",
        },
    ],
    {},
    {
        BAR: [
            {"instruction": f"{BAR_GOAL}.", "instruction_attributes": ["gluten free"], "instruction_options": ["cocoa"]}
        ]
    },
    {BAR: ["oat", "snack", "bar"], SHIRT: ["shirt"]},
)
GOLDEN = [
    ("search[Snack Bar]", f"Task: {BAR_GOAL}\nStep 1\nstart\nsearch[...]\nTask: {BAR_GOAL}\n>"),
    (
        f"click[{BAR.lower()}]",
        f"Task: {BAR_GOAL}\n"
        "Step 2\n"
        "was start: search[snack bar]\n"
        'results 1 "snack bar"\n'
        "[ 1] $1004.5 oat & co gluten free snack bar\n"
        "[ back to search] [ next >]\n"
        f"Task: {BAR_GOAL}\n>",
    ),
    (
        "click[features]",
        f"Task: {BAR_GOAL}\n"
        "Step 3\n"
        "was start: search[snack bar]\n"
        'was results 1 "snack bar": click[1]\n'
        "item 1\n"
        "$1004.5\n"
        "oat & co gluten free snack bar\n"
        "flavor name: [ cocoa] [ sea salt]\n"
        "size: [ 8 ounce (pack of 2)] odd [8]\n"
        "[ back to search] [ < prev] [ description] [ features] [ reviews] [ buy now]\n"
        f"Task: {BAR_GOAL}\n>",
    ),
    (
        "click[< prev]",
        f"Task: {BAR_GOAL}\n"
        "Step 4\n"
        'was results 1 "snack bar": click[1]\n'
        "was item 1: click[features]\n"
        "features of item 1\n"
        "gluten free and ready\n"
        "made with cocoa\n"
        "[ back to search] [ < prev]\n"
        f"Task: {BAR_GOAL}\n>",
    ),
]


def small_task(**kwargs: Any) -> WebshopTask:
    """The task of buying a bar, in a shop of two products."""
    task = WebshopTask(SHOP, panel="all", goals="human", **kwargs)
    task.reset("webshop-0")
    return task


def thought(action: str) -> str:
    """A chat answer."""
    return f"<think>hm</think>\n<action>{action}</action>"


def text(task: WebshopTask) -> str:
    """The present prompt's words."""
    prompt = task.prompt()
    return prompt if isinstance(prompt, str) else prompt[0].content


def test_task_satisfies_the_protocol() -> None:
    """It has every member of `Task`, and names its goal and its first page."""
    task = small_task()
    assert isinstance(task, Task)
    assert task.task_ids == ("webshop-0",)
    start = task.reset("webshop-0")
    assert (start.task_id, start.instruction, start.observation) == ("webshop-0", BAR_GOAL, "start")


def test_a_products_number_and_its_link_are_the_same_answer() -> None:
    """The world gets the link either way; a number that the page does not have is an invalid action."""
    for answer in ("click[1]", f"click[{BAR.lower()}]"):
        task = small_task()
        task.step("search[snack bar]")
        assert dict(task.links) == {"1": BAR.lower()}
        step = task.step(answer)
        assert (step.action, step.invalid_reason) == (f"click[{BAR.lower()}]", None)
        assert dict(task.links) == {"1": BAR.lower()}
    task = small_task()
    task.step("search[snack bar]")
    assert task.step("click[2]").invalid_reason is not None


def test_numbers_stand_for_products_on_results_pages_alone() -> None:
    """An option's value that is a number is that value, and a chat names links."""
    task = small_task(prompt_style="chat")
    task.step(thought("search[snack bar]"))
    assert task.step(thought("click[1]")).invalid_reason is not None


def test_numbers_go_on_from_page_to_page() -> None:
    """The second page of results begins with 11, and its item keeps that number."""
    task = WebshopTask(panel="validation")
    task.reset(task.task_ids[0])
    task.step("search[tea]")
    first = dict(task.links)
    task.step("click[next >]")
    assert list(first) == [str(number) for number in range(1, 11)]
    assert list(task.links) == [str(number) for number in range(11, 21)]
    asin = task.links["13"]
    assert task.step("click[13]").action == f"click[{asin}]"
    assert text(task).splitlines()[4] == "item 13"


def test_short_prompts_are_exact_along_an_episode() -> None:
    """Task, step, two earlier pages with their actions, the page, and what can be clicked: nothing else."""
    task = small_task()
    for action, expected in GOLDEN:
        assert text(task) == expected
        said = action.replace(BAR.lower(), "1")
        assert task.step(f" {said}\n").invalid_reason is None
    assert text(task).splitlines()[1:5] == [
        "Step 5",
        "was item 1: click[features]",
        "was features of item 1: click[< prev]",
        "item 1",
    ]


def test_chat_prompts_show_the_same_episode() -> None:
    """The observation is WebShop's without the instruction, quoted; the actions are those that do something."""
    task = small_task(prompt_style="chat", history_length=1)
    for action, _ in GOLDEN[:2]:
        assert task.step(thought(action)).invalid_reason is None
    item = (
        "'Back to Search' [SEP] '< Prev' [SEP] 'flavor name' [SEP] 'cocoa' [SEP] 'sea salt' [SEP] 'size' [SEP] "
        "'8 ounce (pack of 2)' [SEP] 'odd [8]' [SEP] 'Oat & Co Gluten Free Snack Bar' [SEP] 'Price: $1004.5' [SEP] "
        "'Rating: N.A.' [SEP] 'Description' [SEP] 'Features' [SEP] 'Reviews' [SEP] 'Buy Now'"
    )
    names = ["back to search", "< prev", "description", "features", "reviews", "buy now", "cocoa", "sea salt"]
    parts = text(task).split("\n\n")
    assert parts[0].endswith(f"The customer's task for you: {BAR_GOAL}")
    assert parts[1] == (
        "You have taken 2 step(s) so far. The last 1 observation(s), each with the action you chose:\n"
        "Observation 2: 'Back to Search' [SEP] 'Page 1 (Total results: 1)' [SEP] 'Next >' [SEP] 'B000000BAR' [SEP] "
        "'Oat & Co Gluten Free Snack Bar' [SEP] '$1004.5'\n"
        "Action 2: click[b000000bar]"
    )
    assert parts[2] == f"This is step 3. The page you see now:\n{item}"
    assert parts[3].splitlines()[1:] == admissible_actions(False, [*names, "8 ounce (pack of 2)"])


def test_every_listed_action_does_something() -> None:
    """On each page kind, what the chat prompt lists is carried out when copied."""
    for first in ([], ["search[bar]"], ["search[bar]", f"click[{BAR.lower()}]"]):
        task = small_task(prompt_style="chat")
        for action in first:
            task.step(thought(action))
        state = task.snapshot()
        listed = text(task).split("admissible now:\n")[1].split("\n\n")[0].splitlines()
        assert listed
        for action in listed:
            task.restore(state)
            assert task.step(thought(action.replace("<your query>", "bar"))).invalid_reason is None


def test_text_rich_shows_chosen_options_in_chats() -> None:
    """WebShop's rich mode tells what was clicked, and its instruction is not repeated."""
    task = small_task(prompt_style="chat", observation_mode="text_rich")
    for action in ("search[bar]", f"click[{BAR.lower()}]", "click[cocoa]"):
        step = task.step(thought(action))
    lines = step.observation.splitlines()
    assert lines[:2] == ["You have clicked cocoa.", "[button] Back to Search [button_]"]
    assert "  [clicked button] cocoa [clicked button_]" in lines
    assert text(task).count(BAR_GOAL) == 1


@pytest.mark.parametrize(("length", "shown"), [(0, 0), (1, 1), (3, 3), (9, 4)])
def test_history_has_the_asked_length(length: int, shown: int) -> None:
    """As many earlier pages as asked for, at most those there were."""
    task = small_task(history_length=length)
    for action, _ in GOLDEN:
        task.step(action)
    assert sum(line.startswith("was ") for line in text(task).splitlines()) == shown


@pytest.mark.parametrize(
    ("completion", "step_type", "shown", "reason"),
    [
        ("dance", "click", "dance", "expected search[...] or click[...], found 'dance'"),
        ("", "click", "(no action)", "there is no action"),
        ("click[b0nothere]", "click", "click[b0nothere]", "b0nothere"),
        ("click[search]", "click", "click[search]", "search"),
        ("click[odd [8]]", "click", "click[odd [8]]", "expected"),
        ("x" * 100, "click", "x" * 60, "expected"),
        ("search[<a> snack]", "search", "search[<a> snack]", "<a>"),
        ("search[<c>]", "search", "search[<c>]", "<c>"),
        ("search[<r>]", "search", "search[<r>]", "<r>"),
    ],
)
def test_invalid_completions_change_step_and_history_alone(
    completion: str, step_type: str, shown: str, reason: str
) -> None:
    """They have a reason, the page stays as it is, and the prompt shows what was read, marked as invalid."""
    task = small_task()
    task.step("search[bar]")
    opened = task.step(f"click[{BAR.lower()}]")
    page = task.engine.page
    step = check(task.step(completion))
    assert reason in (step.invalid_reason or "")
    assert (step.step_type, step.score, step.done, step.observation) == (step_type, 0.0, False, opened.observation)
    assert task.engine.page == page
    lines = text(task).splitlines()
    assert lines[1] == "Step 4"
    assert lines[3] == f"was item 1: {shown} (invalid)"


def test_unreadable_answers_count_as_what_the_page_suggests() -> None:
    """On the start page it is a failed search, which KL-ST leaves to high precision, elsewhere a failed click."""
    task = small_task()
    assert task.step("hm").step_type == "search"
    task.step("search[bar]")
    assert task.step("hm").step_type == "click"


def test_chat_answers_without_reasoning_are_invalid_unless_allowed() -> None:
    """verl-agent's rule is the default."""
    answer = "<action>search[bar]</action>"
    assert small_task(prompt_style="chat").step(answer).invalid_reason == "the completion has no <think></think>"
    assert small_task(prompt_style="chat", require_think=False).step(answer).invalid_reason is None


def test_mended_brackets_are_clickable() -> None:
    """With WebShop's fix, a value with brackets stands in brackets and is clicked as shown."""
    task = small_task(fixes=["option_brackets"])
    task.step("search[bar]")
    task.step(f"click[{BAR.lower()}]")
    assert "[ odd [8]]" in text(task)
    assert task.step("click[odd [8]]").invalid_reason is None
    assert task.engine.page.options == {"size": "odd [8]"}


def test_success_is_a_reward_of_exactly_one() -> None:
    """Attribute, option and price are a third each: all three are a success, without the option it is 2/3."""
    task = small_task()
    for completion in ("search[bar]", f"click[{BAR.lower()}]"):
        task.step(completion)
    state = task.snapshot()
    step = check(task.step("click[buy now]"))
    assert (step.score, step.done, step.success) == (pytest.approx(2 / 3), True, False)
    task.restore(state)
    assert task.step("click[cocoa]").score == 0.0
    step = check(task.step("click[buy now]"))
    assert (step.score, step.done, step.success, step.observation) == (1.0, True, True, "bought item 1")


@pytest.mark.parametrize("style", ["short", "chat"])
def test_nothing_happens_after_the_purchase(style: str) -> None:
    """The score stays, every completion is invalid, and neither prompt nor observation tells the reward."""
    task = small_task(prompt_style=style)
    for action in ("search[bar]", f"click[{BAR.lower()}]", "click[cocoa]", "click[buy now]"):
        step = task.step(thought(action))
    assert step.score == 1.0
    assert "1.0" not in step.observation + text(task)
    after = check(task.step(thought("search[bar]")))
    assert (after.invalid_reason, after.score, after.done, after.success) == (AFTER_PURCHASE, 1.0, True, True)


def test_snapshots_are_frozen_and_hold_the_history() -> None:
    """Playing on does not change one, and another task continues it with the same prompt."""
    task, other = small_task(), small_task()
    for action, _ in GOLDEN[:3]:
        task.step(action)
    state, prompt = task.snapshot(), task.prompt()
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.taken = 0  # type: ignore[misc]
    task.step("click[< prev]")
    task.step("hm")
    other.restore(state)
    assert other.prompt() == prompt
    assert other.snapshot() == state
    assert other.step("click[< prev]").observation.startswith("item 1\n")


def test_states_and_ids_of_other_panels_are_refused() -> None:
    """A goal outside the panel is named."""
    task = small_task()
    with pytest.raises(TaskError, match=r"'shop-test-0000' is not in this panel of 1 goals"):
        task.reset("shop-test-0000")
    with pytest.raises(TaskError, match=r"'x' is not in this panel"):
        task.restore(dataclasses.replace(task.snapshot(), task_id="x"))
    with pytest.raises(TaskError, match="call reset"):
        WebshopTask(SHOP, panel="all", goals="human").prompt()


def test_embedded_tasks_share_their_shop_and_goals() -> None:
    """Many environments cost one shop."""
    first, second = WebshopTask(panel="test"), make_task("webshop", panel="train", prompt_style="chat", n_goals=3)
    assert len(first.task_ids) == 200
    assert len(second.task_ids) == 3
    first.reset(first.task_ids[0])
    second.reset(second.task_ids[0])
    assert first.engine.shop is second.engine.shop
    assert first.engine.goals is second.engine.goals


def test_random_searches_repeat_with_the_episode() -> None:
    """What ``search[<r>]`` draws depends on the steps of this episode, not on those before."""
    task = WebshopTask(panel="validation", n_goals=2)
    first, second = task.task_ids
    task.reset(first)
    drawn = [task.step("search[<r>]").observation for _ in range(2)]
    task.reset(second)
    task.step("search[<r>]")
    task.reset(first)
    assert [task.step("search[<r>]").observation for _ in range(2)] == drawn
    assert drawn[0] != drawn[1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["search[", "click[", "buy now", "cocoa", "]", "<r>", "<c> x", " "]) | st.text()))
def test_any_completion_can_be_stepped_with(parts: list[str]) -> None:
    """No text raises, in either style."""
    for style in ("short", "chat"):
        task = small_task(prompt_style=style)
        check(task.step("".join(parts)))
        check(task.step(thought("".join(parts))))
        assert text(task)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"panel": "trian"}, "unknown panel 'trian'; did you mean 'train'"),
        ({"panel": "all"}, "'all' is for official data"),
        ({"goals": "synthetic"}, "goals is for official data"),
        ({"seed": 3}, "seed is for official data"),
        ({"num_products": 100}, "num_products is for official data"),
        ({"source": SHOP, "goals": "humane"}, "unknown goals 'humane'; did you mean 'human'"),
        ({"source": SHOP, "goals": "human", "panel": "train"}, "panel 'train' begins at goal"),
        ({"source": 3}, "source must be 'embedded', 'official', a folder or a Shop, found 3"),
        ({"prompt_style": "react"}, "unknown prompt_style 'react'"),
        ({"observation_mode": "html"}, "unknown observation_mode 'html'"),
        ({"observation_mode": "text_rich"}, "observation_mode='text_rich' needs prompt_style='chat'"),
        ({"history_length": -1}, "history_length must be a whole number of at least 0, found -1"),
        ({"history_length": True}, "history_length must be a whole number"),
        ({"panel": "test", "n_goals": 201}, "n_goals must lie in 1 to 200 for this panel, found 201"),
        ({"n_goals": 0}, "n_goals must be a whole number of at least 1, found 0"),
        ({"fixes": ["colours"]}, "colours"),
        ({"fixes": 3}, "fixes must be a list of names among option_colors, .*; found 3"),
        ({"fixes": None}, "fixes must be a list of names among option_colors, .*; found None"),
        ({"fixes": [["page_kind"]]}, "fixes must be a list of names"),
        ({"require_think": "no", "prompt_style": "chat"}, "require_think must be true or false, found 'no'"),
        ({"show_attributes": 1}, "show_attributes must be true or false, found 1"),
        ({"require_think": False}, "require_think=False needs prompt_style='chat'"),
        ({"source": SHOP, "num_products": 5}, "num_products and index_dir are for data files"),
        ({"source": SHOP, "index_dir": "somewhere"}, "num_products and index_dir are for data files"),
        ({"source": SHOP, "goals": ""}, "unknown goals ''"),
        ({"source": "embeded"}, "must be 'embedded', 'official' or a folder; there is no folder 'embeded'"),
    ],
)
def test_wrong_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    """Each says what was expected and what came."""
    with pytest.raises(ConfigError, match=message.replace("'", ".")):
        WebshopTask(**kwargs)


def test_official_data_is_found_by_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Without it the message names the variable; a folder without the files is named."""
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    with pytest.raises(ConfigError, match="WEBSHOP_DATA"):
        WebshopTask("official")
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    with pytest.raises(TaskError, match=tmp_path.name):
        WebshopTask("official")
