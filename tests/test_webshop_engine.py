"""The WebShop engine on small shops made by hand: actions, sessions, quirks and their fixes."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.webshop.engine import WebShopEngine
from dmr_gym.tasks.webshop.fixes import FIXES
from dmr_gym.tasks.webshop.nouns import TitleNouns
from dmr_gym.tasks.webshop.shop import Loaders, Shop
from tests.webshop_shops import BIG_SHOP, LAMP, SHIRT, SHOP, SMALL, do, make_engine


def test_purchase_ends_the_session_with_its_score() -> None:
    """The goal's product with the goal's options scores 1.0 once, and the last page prints it."""
    engine = make_engine()
    number = next(n for n, goal in enumerate(engine.goals) if goal.options == {"color": "red"})
    engine.reset(number)
    observation = do(engine, "search[desk lamp]", f"click[{LAMP.lower()}]", "click[red]", "click[buy now]")
    assert (engine.reward, engine.done, engine.score.value) == (1.0, True, 1.0)
    assert "Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP]" in observation
    assert engine.available == {"has_search_bar": False, "clickables": []}
    assert engine.page.kind == "done"
    assert engine.step("click[buy now]") == observation
    assert (engine.reward, engine.done) == (0.0, False)


def test_searching_is_possible_everywhere_and_forgets_the_choice() -> None:
    """Also on an item page and after the purchase; product and options are gone."""
    engine = make_engine()
    do(engine, "search[lamp]", f"click[{LAMP}]", "click[red]", "search[shirt]")
    assert (engine.page.kind, engine.page.asin, engine.page.options) == ("results", None, {})
    do(engine, f"click[{SHIRT}]", "click[slim]", "click[buy now]", "search[standard]")
    assert engine.available["clickables"] == ["back to search", "next >", LAMP.lower()]


def test_options_survive_sub_pages_but_not_the_way_back() -> None:
    """One value an option; "< Prev" leads from a sub-page to the item and from there to the results."""
    engine = make_engine()
    do(engine, "search[lamp]", f"click[{LAMP}]", "click[red]", "click[standard]", "click[features]", "click[< prev]")
    assert (engine.page.kind, engine.page.options) == ("item", {"color": "standard"})
    do(engine, "click[< prev]")
    assert (engine.page.kind, engine.page.options) == ("results", {})
    do(engine, "click[back to search]")
    assert (engine.page.kind, engine.page.query, engine.page.number) == ("start", None, 0)


def test_next_never_disappears() -> None:
    """The sixth page of at most fifty results is empty, and there is a seventh."""
    engine = make_engine(BIG_SHOP)
    observation = do(engine, "search[filler]", *["click[next >]"] * 5)
    assert observation.endswith("Page 6 (Total results: 50) [SEP] < Prev [SEP] Next >")
    do(engine, "click[next >]", "click[< prev]")
    assert engine.page.number == 6


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("", "an action is"),
        ("search[]", "an action is"),
        ("click", "an action is"),
        ("search[a\nb]", "an action is"),
        ("Search[lamp]", "unknown action 'Search'"),
        (" search[lamp]", "unknown action ' search'"),
        ("think: click[back to search]", "unknown action"),
        ("click[search]", "use search"),
        ("click[buy now]", "cannot be clicked on this page"),
        ("click[search[lamp]]", "unknown action 'click[search'"),
        ("search[<a> long lasting]", "not available"),
        ("search[<c>]", "needs a category"),
        ("search[<r>]", "this shop has 3"),
    ],
)
def test_what_cannot_be_carried_out_changes_nothing(action: str, reason: str) -> None:
    """Same page, no reward, and a reason that says what is wrong."""
    engine = make_engine()
    before, observation = engine.snapshot(), engine.observation
    assert reason in str(engine.inadmissible_reason(action))
    assert engine.step(action) == observation
    assert (engine.snapshot(), engine.reward, engine.done) == (before, 0.0, False)


def test_text_after_the_last_bracket_is_ignored() -> None:
    """Arguments are lower-cased, names are not, and what follows on the line does not matter."""
    engine = make_engine()
    do(engine, "search[LAMP] please", f"click[{LAMP.upper()}]\nclick[buy now]")
    assert (engine.page.kind, engine.page.query, engine.page.asin) == ("item", "lamp", LAMP)


def test_asins_with_small_letters_cannot_be_clicked() -> None:
    """WebShop looks up the capitals and stops; here it is a step that does nothing."""
    engine = make_engine()
    do(engine, "search[small letters]")
    assert SMALL in engine.available["clickables"]
    assert "small letters cannot be clicked" in str(engine.inadmissible_reason(f"click[{SMALL}]"))


def test_special_searches_list_whole_groups() -> None:
    """<c> finds a category, <q> a query, <r> fifty products anew on each page; a leading space makes them plain."""
    engine = make_engine(BIG_SHOP)
    do(engine, "search[<c> garden shed]")
    assert (engine.page.total, engine.available["clickables"][2]) == (61, LAMP.lower())
    do(engine, "search[<q> shirts]")
    assert engine.available["clickables"][2:] == [SHIRT.lower()]
    do(engine, "search[<c> ]")
    assert engine.page.total == 0
    do(engine, "search[ <r>]")
    assert engine.page.total == 0
    pages = {tuple(engine.snapshot().play.results) for _ in range(4) if do(engine, "search[<r>]")}
    do(engine, "click[next >]")
    assert len(pages | {engine.snapshot().play.results}) == 5


def test_random_searches_go_on_from_the_generator_of_the_goals() -> None:
    """The draws are those of ``random`` after loading and the constructor's own session."""
    engine = WebShopEngine(BIG_SHOP, seed=5)
    rng = random.Random()
    rng.setstate(WebShopEngine(BIG_SHOP, seed=5)._front.goals(5, "synthetic").rng_state)
    rng.choices("abcdefghijklmnopqrstuvwxyz", k=10)
    rng.uniform(0, 1)
    do(engine, "search[<r>]")
    assert engine.snapshot().play.results == tuple(rng.sample(range(62), 50)[:10])


def test_option_values_that_are_button_texts_act_as_the_original_says() -> None:
    """The value "features" opens the page, "next >" is chosen, "search" and one with "[" cannot be clicked."""
    engine = make_engine()
    do(engine, "search[shirt]", f"click[{SHIRT}]", "click[next >]")
    assert engine.page.options == {"fit": "next >"}
    assert engine.inadmissible_reason("click[search]") is not None
    assert engine.inadmissible_reason("click[wide [x]]") is not None
    do(engine, "click[features]")
    assert engine.page.kind == "features"


def test_queries_can_forge_the_kind_of_page() -> None:
    """A search for "item_page" makes "< Prev" of a sub-page lead to the results, one for "search_results" to page 0."""
    engine = make_engine()
    do(engine, "search[shirt item_page]", f"click[{SHIRT}]", "click[reviews]", "click[< prev]")
    assert engine.page.kind == "results"
    observation = do(engine, "search[shirt search_results]", f"click[{SHIRT}]", "click[< prev]")
    assert observation.endswith("Page 0 (Total results: 1) [SEP] Next >")
    mended = make_engine(fixes=["page_kind"])
    do(mended, "search[shirt item_page]", f"click[{SHIRT}]", "click[reviews]", "click[< prev]")
    assert mended.page.kind == "item"
    do(mended, "click[< prev]")
    assert mended.page.number == 1


def test_text_rich_hides_some_clicked_options_unless_mended() -> None:
    """Values with quotes or other than ASCII letters are chosen without a mark; a quoted word of the query gets one."""
    for fixes, marked in (
        ((), {"slim": True, "café": False, '28" x 28"': False}),
        (["clicked_options"], {"café": True}),
    ):
        for value, is_marked in marked.items():
            engine = make_engine(observation_mode="text_rich", fixes=fixes)
            observation = do(engine, "search[shirt]", f"click[{SHIRT}]", f"click[{value}]")
            assert engine.page.options == {"fit": value}
            assert observation.startswith(f"You have clicked {value}.\n") == is_marked
    engine = make_engine(observation_mode="text_rich")
    assert "[clicked button] slim [clicked button_]" in do(engine, 'search["slim" shirt]', f"click[{SHIRT}]")
    assert "[clicked button] B000SHIRT1" in do(engine, "click[< prev]")
    assert "[button] B000SHIRT1" in do(engine, "click[back to search]", "search[shirt]")


def test_brackets_in_option_values_can_be_mended() -> None:
    """With the fix the value with a bracket can be chosen."""
    engine = make_engine(fixes=["option_brackets"])
    do(engine, "search[shirt]", f"click[{SHIRT}]", "click[wide [x]]")
    assert engine.page.options == {"fit": "wide [x]"}


def test_option_colors_can_be_mended() -> None:
    """A value of "standard" contains "tan", so it does not match itself, unless that is mended."""
    values = []
    for fixes in ((), ["option_colors"]):
        engine = WebShopEngine(SHOP, fixes=fixes)
        number = next(n for n, goal in enumerate(engine.goals) if goal.options == {"color": "standard"})
        engine.reset(number)
        do(engine, "search[lamp]", f"click[{LAMP}]", "click[standard]", "click[buy now]")
        values.append(engine.reward)
    assert values == [0.75, 1.0]


def test_reward_can_be_kept_off_the_last_page() -> None:
    """With the fix the last page ends with what is said of the goal."""
    engine = make_engine(fixes=["reward_on_last_page"])
    observation = do(engine, "search[lamp]", f"click[{LAMP}]", "click[buy now]")
    assert observation.endswith("Goal [SEP] None")
    assert engine.reward > 0


def test_sessions_keep_their_goal_unless_mended() -> None:
    """A name drawn once, also one that is written like a number, keeps its goal; with the fix nothing is kept."""
    engine = WebShopEngine(SHOP, goals="human")
    for _ in range(20):
        engine.reset("1")
        number = engine.snapshot().play.goal_number
        engine.reset(1)
        assert engine.snapshot().play.goal_number == number
    drawn = {engine.reset(f"name {turn}") for turn in range(40)}
    assert len(drawn) == 1  # the weighted draw never gives goal 0
    mended = WebShopEngine(SHOP, goals="human", fixes=["goal_history"])
    for _ in range(3):
        mended.reset("0")
        assert mended.snapshot().play.goal_number == 1
        mended.reset(0)
        assert mended.snapshot().play.goal_number == 0
    assert mended._sessions == {}


def test_negative_sessions_count_from_the_end() -> None:
    """As in a list; numbers beyond the goals are refused with their count."""
    engine = make_engine()
    assert engine.reset(-1) == engine.reset(len(engine.goals) - 1)
    for session in (2, -3):
        with pytest.raises(TaskError, match=r"there are 2 goals, numbered from 0; got session -?\d"):
            engine.reset(session)
    with pytest.raises(TaskError, match=r"a goal's number, a name, or None; got 1\.5"):
        engine.reset(1.5)


def test_seed_settles_prices_and_caps() -> None:
    """The same seed gives the same instructions, another one other caps in the same order."""
    texts = [[goal.instruction_text for goal in WebShopEngine(BIG_SHOP, seed=seed).goals] for seed in (0, 0, 1, 2, 3)]
    assert texts[0] == texts[1]
    assert len({tuple(text) for text in texts}) > 1
    stems = [[text.split(", and price")[0] for text in each] for each in texts]
    assert all(each == stems[0] for each in stems)


def test_history_precedes_observations_of_steps_alone() -> None:
    """Earlier observations and actions come before the page in `step`, not in `reset` and `observation`."""
    engine = WebShopEngine(SHOP, num_prev_obs=1, num_prev_actions=2)
    start = engine.reset(0)
    first = engine.step("search[lamp]")
    page = engine.observation
    assert first == f"{start} [SEP] search[lamp] [SEP] {page}"
    assert engine.step("nothing") == f"search[lamp] [SEP] {page} [SEP] nothing [SEP] {page}"


def test_modes_show_the_same_page() -> None:
    """The state has all of them, and the modes return their part of it."""
    engines = {mode: make_engine(observation_mode=mode) for mode in ("text", "text_rich", "html", "url")}
    seen = {mode: do(engine, "search[lamp]", f"click[{LAMP}]") for mode, engine in engines.items()}
    state = engines["text"].state
    assert (seen["html"], seen["url"]) == (state["html"], state["url"])
    assert state["url"] == f"http://127.0.0.1:3000/item_page/0/{LAMP}/lamp/1/{{}}"
    assert state["instruction_text"] == f"Instruction: {engines['text'].instruction}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"goals": "other"}, "goals must be one of synthetic, human; got 'other'"),
        ({"observation_mode": "image"}, "observation_mode must be one of text, text_rich, html, url; got 'image'"),
        ({"seed": None}, "seed must be a whole number; got None"),
        ({"num_prev_obs": -1}, "num_prev_obs must be a whole number, at least 0; got -1"),
        ({"fixes": ["colors"]}, f"fixes must be among {', '.join(FIXES)}; got 'colors'"),
        ({"fixes": "page_kind"}, "fixes must be a collection of names, such as"),
        ({"fixes": None}, "fixes must be a collection of names; got None"),
        ({"fixes": [["page_kind"]]}, "fixes must be among"),
        ({"seed": True}, "seed must be a whole number; got True"),
        ({"seed": np.float64(1)}, "seed must be a whole number; got"),
        ({"show_attributes": "false"}, "show_attributes must be True or False; got 'false'"),
        ({"num_products": 3}, "num_products is for a folder; an open shop has its own, got 3"),
        ({"index_dir": "x"}, "index_dir is for a folder; an open shop has its own, got 'x'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    """Each with what was expected and what came."""
    with pytest.raises(ConfigError) as error:
        WebShopEngine(SHOP, **settings)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("data_dir", [None, 3, b"data", "", "a\0b"])
def test_what_is_no_folder_is_refused(data_dir: Any) -> None:
    """With what came instead."""
    with pytest.raises(ConfigError, match="data_dir must be the path of a folder; got"):
        WebShopEngine(data_dir)


def test_numpy_integers_are_whole_numbers() -> None:
    """As a seed they give the same prices as Python's."""
    engine = WebShopEngine(BIG_SHOP, seed=np.int64(3), num_prev_obs=np.int32(1))
    assert list(engine.goals) == list(WebShopEngine(BIG_SHOP, seed=3).goals)


def test_queries_that_are_no_text_are_refused() -> None:
    """As actions are."""
    engine = make_engine()
    for call in (engine.search, engine.step, engine.inadmissible_reason):
        with pytest.raises(TaskError, match="must be a text; got 5"):
            call(5)


def test_nouns_are_there_before_the_first_purchase() -> None:
    """They are loaded when the first engine is made, once, not while somebody shops."""
    loaded = []
    nouns = TitleNouns.from_mapping({})
    loaders = Loaders(lambda: SHOP.index, lambda: loaded.append(1) or nouns, lambda: None)
    shop = Shop(SHOP.catalogue, loaders, "items")
    WebShopEngine(shop)
    WebShopEngine(shop)
    assert loaded == [1]


def test_import_is_light() -> None:
    """The engine needs neither torch nor transformers nor spaCy."""
    code = (
        "import sys, dmr_gym.tasks.webshop.engine; "
        "print(sorted({'torch', 'transformers', 'spacy', 'matplotlib', 'sentence_transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
