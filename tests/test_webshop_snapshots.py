"""Snapshots of the WebShop engine, and any text as an action: properties over random walks."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.errors import TaskError
from dmr_gym.tasks.webshop.engine import WebShopEngine
from dmr_gym.tasks.webshop.fixes import FIXES
from tests.webshop_rows import make_row
from tests.webshop_shops import BIG_SHOP, LAMP, SMALL, do, make_engine, make_shop


def draw_action(engine: WebShopEngine, chance: random.Random) -> str:
    """A search now and then, else a click on something."""
    clickables = engine.available["clickables"]
    if not clickables or chance.random() < 0.25:
        return f"search[{chance.choice(['lamp', 'shirt item_page', '<r>', '<q> shirts', 'filler', '<a>'])}]"
    return f"click[{chance.choice(clickables)}]"


def follow(engine: WebShopEngine, seed: int, steps: int) -> list[Any]:
    """What a random walk sees; it also begins sessions, so that the generator's state counts."""
    chance, seen = random.Random(seed), []
    for turn in range(steps):
        if chance.random() < 0.1:
            seen.append(engine.reset(chance.choice([None, 0, 1, "0", "name"])))
        seen.append((engine.step(draw_action(engine, chance)), engine.available, engine.reward, engine.done, turn))
        seen.append((engine.page, engine.score, engine.url, engine.instruction))
    return seen


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    before=st.integers(0, 12),
    mode=st.sampled_from(["text", "text_rich"]),
    n_obs=st.integers(0, 2),
    goals=st.sampled_from(["synthetic", "human"]),
)
def test_walks_repeat_after_restoring(seed: int, before: int, mode: str, n_obs: int, goals: str) -> None:
    """From a snapshot the same actions show the same, on this engine and on another of the same shop and seed."""
    kinds: dict[str, Any] = {"observation_mode": mode, "num_prev_obs": n_obs, "num_prev_actions": 1, "goals": goals}
    engine, other = (WebShopEngine(BIG_SHOP, seed=3, **kinds) for _ in range(2))
    follow(engine, seed, before)
    state, observation = engine.snapshot(), engine.observation
    first = follow(engine, seed + 1, 12)
    for player in (engine, other):
        player.restore(state)
        assert (player.snapshot(), player.observation) == (state, observation)
        assert follow(player, seed + 1, 12) == first


def test_snapshots_share_the_generator_that_stood_still() -> None:
    """A state of the generator is taken once a draw, not once a snapshot."""
    engine = make_engine(BIG_SHOP)
    first = engine.snapshot()
    do(engine, "search[lamp]")
    assert engine.snapshot().rng_state is first.rng_state
    do(engine, "search[<r>]")
    assert engine.snapshot().rng_state != first.rng_state


def test_states_of_other_worlds_are_refused() -> None:
    """Another seed, kind of goals or shop has other goals, also when all asins are the same."""
    state = make_engine().snapshot()
    with pytest.raises(TaskError, match=r"plays with seed 1, 2 synthetic goals, 3 products of checksum \w{8}; the"):
        make_engine(seed=1).restore(state)
    renamed = make_shop(make_row(SMALL, name="Other letters"))
    for engine in (make_engine(goals="human"), make_engine(BIG_SHOP), make_engine(renamed)):
        with pytest.raises(TaskError, match=r"the state is of one with seed 0, 2 synthetic goals, 3 products"):
            engine.restore(state)


@pytest.mark.parametrize("state", [None, (), "state", make_engine().snapshot().play, {"world": 1}])
def test_what_is_no_state_is_refused(state: Any) -> None:
    """Whatever was given instead."""
    with pytest.raises(TaskError, match=r"a state is what snapshot\(\) returned; got"):
        make_engine().restore(state)


@pytest.mark.parametrize("asin", ["FEATURES", "REVIEWS", "BUY NOW", "ATTRIBUTES", "SEARCH", "NEXT >", "< PREV"])
def test_asins_that_are_button_texts_raise_nothing(asin: str) -> None:
    """Among the results a link is a link, except for those two buttons that are there too, and "search"."""
    engine = make_engine(make_shop(make_row(asin, name="Odd lamp")))
    do(engine, "search[odd]")
    assert asin.lower() in engine.available["clickables"]
    engine.step(f"click[{asin}]")
    assert engine.page.asin == (None if asin in ("SEARCH", "NEXT >", "< PREV") else asin)
    for action in ("click[features]", "click[< prev]", "click[< prev]", "click[< prev]", "click[buy now]"):
        assert isinstance(engine.step(action), str)


ENGINES = [make_engine(), make_engine(BIG_SHOP, fixes=list(FIXES), observation_mode="text_rich", show_attributes=True)]


@settings(deadline=None)
@given(
    actions=st.lists(
        st.one_of(
            st.text(),
            st.text().map("search[{}]".format),
            st.text(st.characters()).map("click[{}]".format),
            st.sampled_from([f"click[{LAMP}]", "click[red]", "click[buy now]", "click[< prev]", "click[reviews]"]),
            st.sampled_from(["search[<r> x]", "search[<c>  ]", "search[<q>]", "search[lamp]", "search[\udcff]"]),
        ),
        max_size=8,
    )
)
def test_no_action_makes_it_raise(actions: list[str]) -> None:
    """Whatever is said, there is an observation, and what has a reason changes nothing."""
    for engine in ENGINES:
        engine.reset(0)
        for action in actions:
            before, reason = engine.snapshot(), engine.inadmissible_reason(action)
            assert isinstance(engine.step(action), str)
            after = engine.snapshot()
            assert reason is None or after.play == before.play._replace(reward=0.0, done=False)
