"""WebShop's prompts, page by page in both styles, and the reader of completions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmr_gym.prompts.webshop import (
    MAX_CHAT_CHARS,
    NO_ACTION,
    PageView,
    admissible_actions,
    chat_prompt,
    cut,
    item_body,
    page_summary,
    quoted_pieces,
    results_body,
    short_prompt,
    shown_action,
    text_body,
)
from dmr_gym.prompts.webshop_answers import MAX_ACTION_CHARS, Reading, read_completion

GOAL = "i need a gluten free snack bar with cocoa flavor, and price lower than 30.00 dollars"
NUMBER = "11"
START = PageView(page_summary("start"), has_search_bar=True)
RESULTS = PageView(
    page_summary("results", keywords="gluten free  snack bar", number=2),
    results_body([(NUMBER, "$24.99", "Oat & Co gluten free snack bar"), ("12", "$3.0 to $10.0", " Plain\nbar ")]),
    ("back to search", "< prev", "next >"),
)
ITEM = PageView(
    page_summary("item", NUMBER),
    item_body(
        "$24.99",
        "Oat & Co gluten free snack bar",
        [("flavor name", ["cocoa", "sea salt"]), ("size", ["8 ounce (pack of 2)", "odd [8]"]), ("color", [])],
        ["description", "cocoa", "sea salt", "8 ounce (pack of 2)"],
    ),
    ("back to search", "< prev", "description", "features", "reviews", "buy now"),
)
FEATURES = PageView(
    page_summary("features", NUMBER),
    text_body(["gluten free and ready to eat", "", "made  with real\ncocoa"]),
    ("back to search", "< prev"),
)


@pytest.mark.parametrize(
    ("number", "history", "view", "expected"),
    [
        (1, [], START, f"Task: {GOAL}\nStep 1\nstart\nsearch[...]\nTask: {GOAL}\n>"),
        (
            2,
            [("start", "search[gluten free snack bar]")],
            RESULTS,
            f"Task: {GOAL}\n"
            "Step 2\n"
            "was start: search[gluten free snack bar]\n"
            'results 2 "gluten free snack bar"\n'
            "[ 11] $24.99 oat & co gluten free snack bar\n"
            "[ 12] $3.0 to $10.0 plain bar\n"
            "[ back to search] [ < prev] [ next >]\n"
            f"Task: {GOAL}\n>",
        ),
        (
            3,
            [],
            ITEM,
            f"Task: {GOAL}\n"
            "Step 3\n"
            "item 11\n"
            "$24.99\n"
            "oat & co gluten free snack bar\n"
            "flavor name: [ cocoa] [ sea salt]\n"
            "size: [ 8 ounce (pack of 2)] odd [8]\n"
            "color:\n"
            "[ back to search] [ < prev] [ description] [ features] [ reviews] [ buy now]\n"
            f"Task: {GOAL}\n>",
        ),
        (
            4,
            [('results 1 "gluten free snack bar"', "click[11]"), ("item 11", "click[features]")],
            FEATURES,
            f"Task: {GOAL}\n"
            "Step 4\n"
            'was results 1 "gluten free snack bar": click[11]\n'
            "was item 11: click[features]\n"
            "features of item 11\n"
            "gluten free and ready to eat\n"
            "made with real cocoa\n"
            "[ back to search] [ < prev]\n"
            f"Task: {GOAL}\n>",
        ),
        (
            5,
            [],
            PageView(page_summary("reviews", NUMBER), text_body([]), ("back to search", "< prev")),
            f"Task: {GOAL}\nStep 5\nreviews of item 11\n[ back to search] [ < prev]\nTask: {GOAL}\n>",
        ),
        (6, [], PageView(page_summary("done", NUMBER)), f"Task: {GOAL}\nStep 6\nbought item 11\nTask: {GOAL}\n>"),
    ],
    ids=["start", "results", "item", "features", "reviews", "done"],
)
def test_short_prompt_is_exact(number: int, history: list[tuple[str, str]], view: PageView, expected: str) -> None:
    """Every page kind has exactly these lines, and nothing follows the last ">"."""
    assert short_prompt(GOAL, number, history, view) == expected


def test_products_looked_at_and_options_chosen_are_marked() -> None:
    """A visited product is "seen", and a chosen value stands behind "="."""
    products = [("1", "$1.0", "tea"), ("2", "$2.0", "bar")]
    assert results_body(products, {"1"}) == ("seen 1 $1.0 tea", "[ 2] $2.0 bar")
    options, chosen = [("size", ["s", "m"]), ("color", ["red"])], {"size": "m"}
    assert item_body("$1.0", "tea", options, ["s", "m", "red"], chosen)[2:] == ("size: [ s] [ m] = m", "color: [ red]")


def test_short_prompt_keeps_the_task_on_one_line() -> None:
    """Line breaks of a goal do not look like facts of the page."""
    assert short_prompt("red\n\nshoes", 1, [], START).startswith("Task: red shoes\nStep 1\n")


def test_long_page_parts_are_cut_at_words() -> None:
    """Titles, keywords, values and texts have an end, so that a prompt has one."""
    title = "word " * 30
    assert results_body([("1", "$1.0", title)]) == (f"[ 1] $1.0 {('word ' * 24).strip()}",)
    assert page_summary("results", keywords="k" * 200) == f'results 1 "{"k" * 120}"'
    values = [str(number) for number in range(50)]
    [_, line] = item_body("$1.0", "", [("size", values)], values)
    assert line == "size: " + " ".join(f"[ {number}]" for number in range(40))
    assert text_body(["a" * 300, "b " * 100, "c"]) == ("a" * 300, ("b " * 50).strip())
    assert sum(map(len, text_body(["ab " * 30] * 20))) <= 400


@pytest.mark.parametrize(
    ("text", "max_chars", "expected"),
    [
        ("one two three", 13, "one two three"),
        ("one two three", 12, "one two"),
        ("one two three", 7, "one two"),
        ("one two three", 6, "one"),
        ("onetwothree", 6, "onetwo"),
        (" one \n two ", 20, "one two"),
        ("", 5, ""),
    ],
)
def test_cut_ends_at_a_word(text: str, max_chars: int, expected: str) -> None:
    """Nothing longer than asked, whole words where there are any, single spaces."""
    assert cut(text, max_chars) == expected


def test_chat_prompt_is_exact_without_history() -> None:
    """The first prompt has the task, the page, the actions and the form of the answer."""
    [message] = chat_prompt(GOAL, 0, [], quoted_pieces(["Search"]), admissible_actions(True, ["search"]))
    assert message.role == "user"
    assert message.content == (
        "You are shopping on the website WebShop for a customer.\n"
        f"The customer's task for you: {GOAL}\n\n"
        "This is step 1. The page you see now:\n"
        "'Search'\n\n"
        "Actions that are admissible now:\n"
        "search[<your query>]\n\n"
        "Choose one admissible action. First reason step by step about the page and about which action brings you "
        "closer to buying what the customer asked for, inside <think></think>. Then write that one action inside "
        "<action></action>, as it is listed; in a search, your own words stand in place of <your query>."
    )


def test_chat_prompt_shows_the_last_steps_by_number() -> None:
    """After five steps with two shown, they are steps 4 and 5, each with its page, and step 6 is next."""
    pairs = [("'Search'", "search[bar]"), ("'Back to Search' [SEP] 'Next >'", "click[b0k3m9x2qa]")]
    actions = admissible_actions(False, ["back to search", "< prev", "cocoa"])
    [message] = chat_prompt("a {bar}", 5, pairs, quoted_pieces(["Back to Search", "< Prev"]), actions)
    parts = message.content.split("\n\n")
    assert parts[0].endswith("The customer's task for you: a {bar}")
    assert parts[1] == (
        "You have taken 5 step(s) so far. The last 2 observation(s), each with the action you chose:\n"
        "Observation 4: 'Search'\n"
        "Action 4: search[bar]\n"
        "Observation 5: 'Back to Search' [SEP] 'Next >'\n"
        "Action 5: click[b0k3m9x2qa]"
    )
    assert parts[2] == "This is step 6. The page you see now:\n'Back to Search' [SEP] '< Prev'"
    assert parts[3] == ("Actions that are admissible now:\nclick[back to search]\nclick[< prev]\nclick[cocoa]")
    assert len(parts) == 5


def test_chat_prompt_drops_the_oldest_pages_when_long() -> None:
    """Pages that would overflow the context go, oldest first; the task and the present page stay."""
    pairs = [("A" * 9000, "click[a]"), ("B" * 9000, "click[b]")]
    [message] = chat_prompt(GOAL, 2, pairs, "now", [])
    assert "A" * 9000 not in message.content
    assert "The last 1 observation(s)" in message.content
    assert f"Observation 2: {'B' * 9000}\nAction 2: click[b]" in message.content
    assert len(message.content) <= MAX_CHAT_CHARS
    [message] = chat_prompt(GOAL, 2, pairs, "C" * 20_000, [])
    assert "You have taken 2 step(s) so far.\n\nThis is step 3. The page you see now:\nC" in message.content
    assert "BBBB" not in message.content


def test_history_names_actions_as_read() -> None:
    """Valid actions stay whole, invalid ones are cut, and what could not be read at all says so."""
    assert shown_action("search[" + "a" * 100 + "]", True) == "search[" + "a" * 100 + "]"
    assert shown_action("a" * 100, False) == "a" * 60
    assert shown_action("", False) == NO_ACTION


@pytest.mark.parametrize(
    ("completion", "has_search_bar", "action", "step_type", "reason"),
    [
        (" click[buy now]", False, "click[buy now]", "click", None),
        ("search[Red Shoes]\nclick[x]", True, "search[red shoes]", "search", None),
        (" > Action:\n Click[B0K3M9X2QA] because it fits", False, "click[b0k3m9x2qa]", "click", None),
        ("<action>\nclick[< prev]\n</action> then", False, "click[< prev]", "click", None),
        ("search[ a ]", False, "search[a]", "search", None),
        ("click[a]b]", False, "click[a]b]", "click", None),
        ("click[x\u00a0large]", False, "click[x\u00a0large]", "click", None),
        ("click[a\x07]", False, "click[a\ufffd]", "click", None),
        ("search []", True, "search []", "search", "expected search[...] or click[...], found 'search []'"),
        ("search[]", True, "search[]", "search", "expected search[...] or click[...], found 'search[]'"),
        ("click[a] click[b]", False, "click[a] click[b]", "click", "expected search[...] or click[...], found 'click"),
        ("buy it", True, "buy it", "search", "expected search[...] or click[...], found 'buy it'"),
        ("", False, "", "click", "there is no action"),
        (" \n> ", True, "", "search", "there is no action"),
        ("<action></action>", True, "", "search", "<action></action> is empty"),
        ("<action>click[a]", False, "", "click", "expected one <action></action>, found 1 <action> and 0 </action>"),
    ],
)
def test_short_answer_is_read(
    completion: str, has_search_bar: bool, action: str, step_type: str, reason: str | None
) -> None:
    """Bare lines, prefixes, tags, trailing words, and what is no action."""
    reading = read_completion(completion, has_search_bar)
    assert reading[:2] == (action, step_type)
    assert reading.invalid_reason is None if reason is None else (reading.invalid_reason or "").startswith(reason)


GOOD = "<think>it fits</think><action>click[buy now]</action>"


@pytest.mark.parametrize(
    ("completion", "action", "reason"),
    [
        (GOOD, "click[buy now]", None),
        ("<THINK>\n</THINK>\n<Action> Click[Buy Now] </Action>\n", "click[buy now]", None),
        ("click[buy now]", "", "the completion has no <think></think>"),
        ("<think>a</think> click[buy now]", "", "expected one <action></action>, found 0 <action> and 0 </action>"),
        (GOOD + GOOD, "click[buy now]", "expected one <action></action>, found 2 <action> and 2 </action>"),
        (GOOD + "</action>", "click[buy now]", "expected one <action></action>, found 1 <action> and 2 </action>"),
        ("<think>a</think><action>click[a]", "", "expected one <action></action>, found 1 <action> and 0 </action>"),
        ("<think>a</think></action>click[a]<action>", "", "</action> stands before <action>"),
        ("<think>a</think><action> \n</action>", "", "<action></action> is empty"),
        ("<action>click[buy now]</action>", "click[buy now]", "the completion has no <think></think>"),
        ("</think><think><action>click[a]</action>", "click[a]", "the completion has no <think></think>"),
        ("<think>买</think><action>click[a]</action>", "click[a]", "the completion has characters of another script"),
        ("<think>カ</think><action>click[a]</action>", "click[a]", "the completion has characters of another script"),
        ("<think>한</think><action>click[a]</action>", "click[a]", "the completion has characters of another script"),
        ("<think>é ü ж ☆</think><action>click[a]</action>", "click[a]", None),
        ("<think>a</think><action>buy</action>", "buy", "expected search[...] or click[...], found 'buy'"),
    ],
)
def test_chat_answer_is_read(completion: str, action: str, reason: str | None) -> None:
    """Exactly one pair of action tags, reasoning tags before, no foreign script; the action is shown all the same."""
    assert read_completion(completion, style="chat") == Reading(action, "click", reason)


def test_reasoning_tags_can_be_left_to_the_template() -> None:
    """A template that opens <think> itself leaves half a pair in the completion."""
    completion = "it fits</think><action>click[buy now]</action>"
    assert read_completion(completion, style="chat").invalid_reason == "the completion has no <think></think>"
    assert read_completion(completion, style="chat", require_think=False) == Reading("click[buy now]", "click", None)


def test_brackets_in_an_argument_can_be_read() -> None:
    """WebShop's last "[" begins the argument, so such a value cannot be clicked; mended, the first one does."""
    assert read_completion("click[red [new]]").invalid_reason is not None
    assert read_completion("click[red [new]]", fix_brackets=True) == Reading("click[red [new]]", "click", None)


PARTS = st.sampled_from(
    ["<action>", "</action>", "<think>", "</think>", "click[", "search[", "]", "> ", "Action: ", "\n", " ", "İ", "é"]
)
COMPLETIONS = st.lists(PARTS | st.text(max_size=8), max_size=12).map("".join)


@given(COMPLETIONS, st.booleans(), st.sampled_from(["short", "chat"]))
def test_any_text_is_read(completion: str, has_search_bar: bool, style: str) -> None:
    """The reader is total, and its action is one clean line of bounded length."""
    action, step_type, reason = read_completion(completion, has_search_bar, style)
    assert len(action) <= MAX_ACTION_CHARS
    assert len(action.splitlines()) <= 1
    assert step_type in ("search", "click")
    if reason is None:
        assert action.startswith(f"{step_type}[")
        assert action.endswith("]")
    else:
        assert reason


@given(COMPLETIONS, st.booleans())
def test_reading_what_was_read_changes_nothing(completion: str, has_search_bar: bool) -> None:
    """The action of a short answer reads as itself, so transcripts can be replayed."""
    first = read_completion(completion, has_search_bar)
    if "<action>" in completion.lower():
        return
    assert read_completion(first.action, has_search_bar) == first


@given(st.text(alphabet=st.characters(exclude_characters="[]"), min_size=1, max_size=30).map(str.lower))
def test_listed_clicks_read_as_listed(name: str) -> None:
    """Copying a listed action is a valid answer in either style, wherever its name is one clean line.

    Spaces around a name are not: WebShop strips its values, and the short style puts one there.
    """
    name = name.strip() or "x"
    [action] = admissible_actions(False, [name]) or ["click[search]"]
    if read_completion(f"click[{name}]").action != f"click[{name}]":
        assert any(ord(char) < 32 or 127 <= ord(char) < 160 or not char.isprintable() for char in name)
        return
    assert read_completion(f" {action}\n") == Reading(action, "click", None)
    reading = read_completion(f"<think></think><action>{action}</action>", style="chat")
    assert reading.action == action
