"""WebShop's pages: their texts in every mode, what can be clicked, their addresses, and how actions are read."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.display import page_html
from dmr_gym.tasks.webshop.pages import (
    DONE,
    ITEM,
    RESULTS,
    START,
    SUB_PAGES,
    ProductPieces,
    View,
    page_clickables,
    page_nodes,
    page_text,
    page_text_rich,
    to_text,
)
from dmr_gym.tasks.webshop.play import Play, kind_in_url, make_url, parse_action, with_history
from tests.webshop_rows import TEXTS, make_entry, make_row, shops

KINDS = [START, RESULTS, ITEM, *SUB_PAGES, DONE]
GOAL = "find me a lamp"
HEAD = f"Instruction: [SEP] {GOAL} [SEP] Back to Search"
DONE_MIDDLE = (
    "attrs [SEP] None [SEP] category [SEP] None [SEP] query [SEP] None [SEP] product category [SEP] None [SEP] "
    "Target [SEP] asin [SEP] options [SEP] attrs [SEP] price upper [SEP] instuction text [SEP] category [SEP] "
    "product category [SEP] query [SEP] Goal [SEP] None"
)


def pieces(**changes: Any) -> ProductPieces:
    """The pieces of one product made from a row."""
    row = make_row(**changes)
    return ProductPieces(Catalogue.from_rows([row], {row["asin"]: make_entry()})[0])


def view(kind: str, **changes: Any) -> View:
    """A page of the given kind about the usual product."""
    usual = {"results": (pieces(),)} if kind == RESULTS else {} if kind == START else {"product": pieces()}
    return View(kind, GOAL, **usual | changes)


class Reader(HTMLParser):
    """Texts and buttons of a page as a program finds them in HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.clickables: list[str] = []
        self._open: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "input" and values.get("type") == "radio":
            self.clickables.append(values["value"] or "")
        if tag not in ("br", "img", "input"):
            self._open.append((tag, values.get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if "title" in (tag for tag, _ in self._open) or (not data.strip(" \t\n\r\f") and "\n" in data):
            return
        self.texts.append(data.strip())
        if self._open[-1][1] in ("btn", "product-link"):
            self.clickables.append(data.lower())


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        (START, {}, f"WebShop [SEP] Instruction: [SEP] {GOAL} [SEP] Search"),
        (
            RESULTS,
            {"number": 1, "total": 7},
            f"{HEAD} [SEP] Page 1 (Total results: 7) [SEP] Next > [SEP] B000000001 [SEP] Lamp B000000001 [SEP] $12.5",
        ),
        (
            RESULTS,
            {"number": 6, "total": 50, "results": ()},
            f"{HEAD} [SEP] Page 6 (Total results: 50) [SEP] < Prev [SEP] Next >",
        ),
        (
            ITEM,
            {},
            f"{HEAD} [SEP] < Prev [SEP] size [SEP] small [SEP] large [SEP] color [SEP] red | blue [SEP] green [SEP] "
            "Lamp B000000001 [SEP] Price: $12.5 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews "
            "[SEP] Buy Now",
        ),
        ("description", {}, f"{HEAD} [SEP] < Prev [SEP] A lamp."),
        ("features", {}, f"{HEAD} [SEP] < Prev [SEP] Bright [SEP] Warm"),
        ("reviews", {}, f"{HEAD} [SEP] < Prev"),
        (
            "attributes",
            {},
            f"{HEAD} [SEP] < Prev [SEP] long lasting [SEP] easy clean [SEP] non slip [SEP] garden [SEP] desk lamps "
            "[SEP] Home \u203a Lamps",
        ),
        (
            DONE,
            {"options": (("size", "5'<6&"), ("color", "é")), "reward": 0.5},
            "Thank you for shopping with us! [SEP] Your code: [SEP] None [SEP] (Paste it in your MTurk interface.) "
            r"[SEP] Purchased [SEP] asin [SEP] B000000001 [SEP] options [SEP] "
            r'{"color": "\u00e9", "size": "5\u0027\u003c6\u0026"} [SEP] '
            f"{DONE_MIDDLE} [SEP] Reward [SEP] Your score (min 0.0, max 1.0) [SEP] 0.5 [SEP] Reward Details [SEP] None",
        ),
    ],
)
def test_each_page_has_its_exact_text(kind: str, changes: dict[str, Any], expected: str) -> None:
    """Mode "text" of every kind of page."""
    assert page_text(view(kind, **changes)) == expected


def test_attributes_have_a_button_where_they_are_shown() -> None:
    """With `show_attributes` the item page offers them between the reviews and the purchase."""
    shown = view(ITEM, show_attributes=True)
    assert page_text(shown).endswith("Reviews [SEP] Attributes [SEP] Buy Now")
    assert list(page_clickables(shown))[2:7] == ["description", "features", "reviews", "attributes", "buy now"]


def test_text_rich_marks_what_was_clicked() -> None:
    """Options clicked are announced at the top, the last first; buttons, options and links have their marks."""
    clicked = [("size", "small"), ("color", "green")]
    assert page_text_rich(view(ITEM), clicked, ()) == (
        "You have clicked green.\nYou have clicked small.\n"
        f"Instruction:\n{GOAL}\n[button] Back to Search [button_]\n[button] < Prev [button_]\n"
        "size\n  [clicked button] small [clicked button_]\n  [button] large [button_]\n"
        "color\n  [button] red | blue [button_]\n  [clicked button] green [clicked button_]\n"
        "Lamp B000000001\nPrice: $12.5\nRating: N.A.\n"
        "[button] Description [button_]\n[button] Features [button_]\n[button] Reviews [button_]\n"
        "[button] Buy Now [button_]\n"
    )
    results = page_text_rich(view(RESULTS, number=1, total=1), (), {"B000000001"})
    assert results.endswith("\n\n[clicked button] B000000001 [clicked button_]\nLamp B000000001\n$12.5\n")
    assert page_text_rich(view(START), (), ()) == f"WebShop\nInstruction: \n{GOAL}\n[button] Search [button_]\n"
    assert page_text_rich(view("features"), (), ()).endswith("[button] < Prev [button_]\n Bright\n Warm\n")


@pytest.mark.parametrize(
    ("bullets", "features"),
    [
        ([""], " [SEP] "),  # the original puts a space before each bullet
        (["\n"], ""),
        ([], ""),
        (["  one  ", "\t", "a\nb"], " [SEP] one [SEP]  [SEP] a\nb"),
        (["\u3000"], " [SEP] "),
    ],
)
def test_blank_texts_are_shown_as_the_original_parses_them(bullets: list[str], features: str) -> None:
    """A node of spaces alone is an empty piece, and no piece at all with a line break in it."""
    shown = view("features", product=pieces(small_description=bullets))
    assert page_text(shown) == f"{HEAD} [SEP] < Prev{features}"


@pytest.mark.parametrize(("description", "text"), [("", ""), (" ", " [SEP] "), ("\r\n", ""), ("x", " [SEP] x")])
def test_empty_descriptions_show_nothing(description: str, text: str) -> None:
    """An empty description makes no piece."""
    shown = view("description", product=pieces(full_description=description))
    assert page_text(shown) == f"{HEAD} [SEP] < Prev{text}"


def test_clickables_are_unique_and_the_last_option_wins() -> None:
    """A value that is also a button's text, or another option's value, keeps the first place and the last name."""
    options = {"A": [{"value": "Buy Now"}, {"value": "x"}], "B": [{"value": "x"}, {"value": ""}]}
    clickables = page_clickables(view(ITEM, product=pieces(customization_options=options)))
    assert list(clickables) == ["back to search", "< prev", "description", "features", "reviews", "buy now", "x", ""]
    assert (clickables["buy now"], clickables["x"], clickables["< prev"]) == ("a", "b", None)


@pytest.mark.parametrize(
    ("kind", "number", "expected"),
    [
        (START, 0, ["search"]),
        (RESULTS, 1, ["back to search", "next >", "b000000001"]),
        (RESULTS, 2, ["back to search", "< prev", "next >", "b000000001"]),
        ("reviews", 1, ["back to search", "< prev"]),
        (DONE, 1, []),
    ],
)
def test_each_page_offers_its_buttons(kind: str, number: int, expected: list[str]) -> None:
    """What can be clicked on pages without options, in page order."""
    assert list(page_clickables(view(kind, number=number))) == expected


@given(shop=shops(), goal=TEXTS, number=st.integers(0, 7), show_attributes=st.booleans(), data=st.data())
def test_all_modes_show_the_same(shop: Any, goal: str, number: int, show_attributes: bool, data: st.DataObject) -> None:
    """The ready parts of "text" are the page's nodes joined, and "html" has the same texts and buttons."""
    rows, entries, _ = shop
    products = tuple(map(ProductPieces, Catalogue.from_rows(rows, entries)))
    kind = data.draw(st.sampled_from(KINDS if products else [START, RESULTS]))
    is_one = kind not in (START, RESULTS)
    page = View(kind, goal, number, len(products), products, products[0] if is_one else None, (), 1.0, show_attributes)
    assert page_text(page) == to_text(page_nodes(page))
    reader = Reader(page_html(page))
    assert " [SEP] ".join(reader.texts) == page_text(page)
    assert set(reader.clickables) == set(page_clickables(page))


@pytest.mark.parametrize(
    ("play", "expected"),
    [
        (Play("7", 7), "/7"),
        (Play("7", 7, RESULTS, query="red  lamp", number=2), "/search_results/7/red++lamp/2"),
        (
            Play("7", 7, ITEM, query="a", number=1, product=0, options=(("size", 'é"'),)),
            '/item_page/7/B1/a/1/{"size": "\\u00e9\\""}',
        ),
        (
            Play("7", 7, "features", query="a", number=1, product=0, options=(("size", "é"),)),
            "/item_sub_page/7/B1/a/1/Features/{'size': 'é'}",
        ),
        (Play("7", 7, DONE, query="a", number=1, product=0), "/done/7/B1/{}"),
    ],
)
def test_addresses_are_exact(play: Play, expected: str) -> None:
    """Each kind of page has its form of address."""
    assert make_url(play, "B1") == f"http://127.0.0.1:3000{expected}"


@pytest.mark.parametrize(
    ("url", "kind"),
    [("x/item_page/done", ITEM), ("item_sub_page/item_page", ITEM), ("item_sub_page", "sub-page"), ("start", None)],
)
def test_kinds_are_told_by_the_first_known_word(url: str, kind: str | None) -> None:
    """The order of the words is WebShop's, not that of the address."""
    assert kind_in_url(url) == kind


@given(st.text(st.sampled_from("ab[]\n "), max_size=9))
def test_actions_are_read_like_the_regular_expression(action: str) -> None:
    """Name and argument are the groups of the original's greedy pattern."""
    match = re.match(r"(.+)\[(.+)\]", action)
    assert parse_action(action) == (match.groups() if match else None)


def test_brackets_in_arguments_can_be_kept() -> None:
    """The first bracket begins the argument when that is mended, else the last one."""
    assert parse_action("click[a [b]] x") == ("click[a ", "b]")
    assert parse_action("click[a [b]] x", fix_brackets=True) == ("click", "a [b]")
    assert parse_action("click[]", fix_brackets=True) is None


@pytest.mark.parametrize(
    ("n_obs", "n_actions", "expected"),
    [
        (0, 1, "a2 | o2"),
        (1, 0, "o1 | o2"),
        (2, 1, "o0 | o1 | a2 | o2"),
        (1, 3, "a1 | o1 | a2 | o2"),
    ],
)
def test_history_is_put_in_front(n_obs: int, n_actions: int, expected: str) -> None:
    """Earlier observations and actions, the oldest first, an observation before the action that followed it."""
    play = Play("0", 0, previous_observations=("o0",))
    for action, observation in (("a1", "o1"), ("a2", "o2")):
        text, play = with_history(play, action, observation, n_obs, n_actions)
    assert text.replace(" [SEP] ", " | ") == expected
    assert len(play.previous_observations) <= n_obs
    assert len(play.previous_actions) <= n_actions
