"""A native engine for WebShop's text environment: the same observations, actions and rewards, without Java.

The state is one small immutable record, so `WebShopEngine.snapshot` costs next to nothing. The engine is exact,
quirks included; `dmr_gym.tasks.webshop.fixes` lists those that it mends on request.
"""

from __future__ import annotations

import numbers
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.webshop import fixes as known_fixes
from dmr_gym.tasks.webshop import pages
from dmr_gym.tasks.webshop.data_files import read_number
from dmr_gym.tasks.webshop.display import OBSERVATION_MODES, Display, page_html
from dmr_gym.tasks.webshop.draws import Draws, RngState
from dmr_gym.tasks.webshop.goals import MODES, Goal
from dmr_gym.tasks.webshop.play import Page, Play, parse_action, with_history
from dmr_gym.tasks.webshop.reward import Score, score_purchase
from dmr_gym.tasks.webshop.rules import Clickables, Rules
from dmr_gym.tasks.webshop.shop import Shop, open_shop

KEPT_GOALS = 64


class EngineState(NamedTuple):
    """What `WebShopEngine.snapshot` returns. Nothing in it is changed afterwards.

    Attributes:
        world: seed, goals and products, in words; states are for engines with the same.
        play: the moment of the shopping trip.
        rng_state: state of the random generator.
        sessions: goal numbers of the sessions so far, by name.
    """

    world: str
    play: Play
    rng_state: RngState
    sessions: dict[str, int]


class WebShopEngine:
    """One shopper in a shop. `reset` starts a session; `step` takes "search[words]" or "click[what the page offers]".

    Args:
        data_dir: folder of official files, or a `Shop`, which engines can share.
        seed: what ``random.seed`` was for the original before it loaded: real prices and price caps depend on it.
        goals: "synthetic" or "human" instructions.
        observation_mode: "text", "text_rich", "html" (the same texts and buttons, not the original's markup) or "url".
        show_attributes: whether item pages have the button "Attributes".
        num_products: only the first so many rows of the file; None for all, and for an open shop.
        index_dir: where the on-disk index is kept; None for beside the data, and for an open shop.
        num_prev_obs: so many earlier observations are put before each one that `step` returns.
        num_prev_actions: likewise earlier actions.
        fixes: names from `dmr_gym.tasks.webshop.fixes.FIXES`; none of them is on by default.

    Raises:
        ConfigError: an argument is unknown or out of range.
        TaskError: the data is missing or broken.
    """

    def __init__(
        self,
        data_dir: str | Path | Shop,
        seed: int = 0,
        goals: str = "synthetic",
        *,
        observation_mode: str = "text",
        show_attributes: bool = False,
        num_products: int | None = None,
        index_dir: str | Path | None = None,
        num_prev_obs: int = 0,
        num_prev_actions: int = 0,
        fixes: Collection[str] = (),
    ) -> None:
        _check_choices(goals, observation_mode, show_attributes)
        seed = read_number("seed", seed)
        self._num_prev_obs = read_number("num_prev_obs", num_prev_obs, 0)
        self._num_prev_actions = read_number("num_prev_actions", num_prev_actions, 0)
        self._fixes = known_fixes.check_fixes(fixes)
        self._shop = _open(data_dir, num_products, index_dir)
        self._front = self._shop.storefront
        self._display = Display(self._front, observation_mode, show_attributes, self._fixes)
        self._goals, rng_state = self._front.goals(seed, goals)
        self._goal_of = lru_cache(KEPT_GOALS)(self._goals.__getitem__)
        self._draws = Draws(rng_state)
        self._rules = Rules(
            self._shop.catalogue, self._front.search, self._score, self._draws, known_fixes.PAGE_KIND in self._fixes
        )
        columns = self._shop.catalogue.columns
        self._world = (
            f"seed {seed}, {len(self._goals):,} {goals} goals, {len(columns.asins):,} products of checksum "
            f"{columns.checksum:08x}"
        )
        # Here rather than at the first purchase: spaCy may have to tag the titles first.
        _ = self._shop.nouns
        self._sessions: dict[str, int] = {}
        self._is_history_shared = False
        self._play = Play("", 0)
        self._view: pages.View | None = None
        self._clicks: Clickables | None = None
        # The original's constructor begins a session too, and what it draws moves the generator.
        self.reset()

    # ------------------------------------------------------------------ public face

    def reset(self, session: int | str | None = None) -> str:
        """Start a session and return its first observation.

        Args:
            session: a number is the goal of that number, counted from the end if negative. A name, or None for a
                random name, draws a goal by weight. A session seen before keeps its goal.

        Raises:
            TaskError: there is no goal of that number, or the session is neither a number, a name nor None.
        """
        session = _check_session(session)
        name = self._draws.name() if session is None else str(session)
        number = self._sessions.get(name)
        if number is None:
            number = self._choose_goal(session)
            self._remember(name, number)
        self._set_play(Play(name, number))
        observation = self.observation
        if self._num_prev_obs:
            self._play = self._play._replace(previous_observations=(observation,))
        return observation

    def step(self, action: str) -> str:
        """Carry out an action and return what the shopper then sees; `reward` and `done` tell the rest.

        An action that cannot be carried out changes nothing; `inadmissible_reason` says why. So do the three searches
        that crash the original: ``search[<a> ...]``, ``search[<c>]``, and ``search[<r>]`` with less than 50 products.
        A search is carried out on every page, also after the purchase.
        """
        parsed = self._read(action)
        if parsed is None or self._rules.obstacle(self._play, self._clickables(), *parsed) is not None:
            # The page stays, and so does the view of it.
            self._play = self._play._replace(reward=0.0, done=False)
        else:
            self._set_play(self._rules.carry_out(self._play, self._clickables(), *parsed))
        if not self._num_prev_obs and not self._num_prev_actions:
            return self.observation
        text, self._play = with_history(
            self._play, action, self.observation, self._num_prev_obs, self._num_prev_actions
        )
        return text

    @property
    def observation(self) -> str:
        """The current page in the observation mode, without earlier observations and actions."""
        return self._display.observation(self._current_view(), self._play)

    @property
    def available(self) -> dict[str, Any]:
        """``has_search_bar``, True on the start page alone, and ``clickables``, what can be clicked, in page order."""
        return {"has_search_bar": self._play.kind == pages.START, "clickables": list(self._clickables())}

    def inadmissible_reason(self, action: str) -> str | None:
        """Why an action would change nothing; None when it does something."""
        parsed = self._read(action)
        if parsed is None:
            return 'an action is "search[words]" or "click[something on the page]"'
        return self._rules.obstacle(self._play, self._clickables(), *parsed)

    def search(self, query: str) -> list[str]:
        """Asins of the products that a search finds, at most 50, best first. It changes nothing.

        Raises:
            TaskError: the query is no text.
        """
        if not isinstance(query, str):
            raise TaskError(f"a query must be a text; got {query!r:.60}")
        asins = self._shop.catalogue.asins
        return [str(asins[number]) for number in self._front.search(query)]

    @property
    def shop(self) -> Shop:
        """The shop; give it to other engines to share it."""
        return self._shop

    @property
    def goals(self) -> Sequence[Goal]:
        """All goals in the order of their numbers."""
        return self._goals

    @property
    def goal(self) -> Goal:
        """The current goal."""
        goal: Goal = self._goal_of(self._play.goal_number)
        return goal

    @property
    def instruction(self) -> str:
        """The current goal's instruction."""
        return self.goal.instruction_text

    @property
    def reward(self) -> float:
        """Reward of the last action, in [0, 1]; 0.0 for all but the purchase."""
        return self._play.reward

    @property
    def done(self) -> bool:
        """Whether the last action was the purchase. The original does not stop there, so a further action clears it."""
        return self._play.done

    @property
    def score(self) -> Score | None:
        """What the reward of this session's last purchase is made of; None before it."""
        return self._play.score

    @property
    def page(self) -> Page:
        """Where the shopper is."""
        play = self._play
        return Page(
            play.kind, play.query, play.number, play.total, self._display.asin(play) or None, dict(play.options)
        )

    @property
    def url(self) -> str:
        """The page's address."""
        return self._display.url(self._play)

    @property
    def html(self) -> str:
        """The page as HTML."""
        return page_html(self._current_view())

    @property
    def state(self) -> dict[str, str]:
        """The original's ``state``: url, html and instruction_text."""
        return {"url": self.url, "html": self.html, "instruction_text": f"Instruction: {self.instruction}"}

    def snapshot(self) -> EngineState:
        """The state of play, of the random generator and of the sessions' history, immutable; give it to `restore`."""
        self._is_history_shared = True
        return EngineState(self._world, self._play, self._draws.state, self._sessions)

    def restore(self, state: EngineState) -> None:
        """Go back to a state of this engine, or of another one of the same shop, seed and kind of goals.

        Raises:
            TaskError: it is no such state, or one of another world.
        """
        if not isinstance(state, EngineState):
            raise TaskError(f"a state is what snapshot() returned; got {state!r:.60}")
        if state.world != self._world:
            raise TaskError(f"this engine plays with {self._world}; the state is of one with {state.world}")
        self._draws.state = state.rng_state
        self._sessions, self._is_history_shared = state.sessions, True
        self._set_play(state.play)

    # ------------------------------------------------------------------ sessions

    def _choose_goal(self, session: int | str | None) -> int:
        if not isinstance(session, int):
            return self._draws.goal(self._goals)
        if not -len(self._goals) <= session < len(self._goals):
            raise TaskError(f"there are {len(self._goals)} goals, numbered from 0; got session {session}")
        return session

    def _remember(self, name: str, goal_number: int) -> None:
        if known_fixes.GOAL_HISTORY in self._fixes:
            return
        if self._is_history_shared:
            self._sessions, self._is_history_shared = dict(self._sessions), False
        self._sessions[name] = goal_number

    def _read(self, action: str) -> tuple[str, str] | None:
        """Name and lower-cased argument of an action."""
        if not isinstance(action, str):
            raise TaskError(f"an action must be a text; got {action!r:.60}")
        parsed = parse_action(action, known_fixes.OPTION_BRACKETS in self._fixes)
        return None if parsed is None else (parsed[0], parsed[1].lower())

    def _score(self, play: Play) -> Score:
        assert play.product is not None
        product, goal, nouns_of = self._front.pieces(play.product).product, self.goal, self._front.nouns
        return score_purchase(
            product,
            goal,
            float(self._goals.real_prices[play.product]),
            dict(play.options),
            nouns_of(product.asin),
            nouns_of(goal.asin),
            fix_option_colors=known_fixes.OPTION_COLORS in self._fixes,
        )

    # ------------------------------------------------------------------ the page

    def _set_play(self, play: Play) -> None:
        self._play = play
        self._view = self._clicks = None

    def _current_view(self) -> pages.View:
        if self._view is None:
            self._view = self._display.view(self._play, self.instruction)
        return self._view

    def _clickables(self) -> Clickables:
        if self._clicks is None:
            self._clicks = pages.page_clickables(self._current_view())
        return self._clicks


def _open(data_dir: object, num_products: int | None, index_dir: str | Path | None) -> Shop:
    if not isinstance(data_dir, Shop):
        return open_shop(cast("str | Path", data_dir), num_products, index_dir)
    for name, value in (("num_products", num_products), ("index_dir", index_dir)):
        if value is not None:
            raise ConfigError(f"{name} is for a folder; an open shop has its own, got {value!r:.60}")
    return data_dir


def _check_choices(goals: object, observation_mode: object, show_attributes: object) -> None:
    """Settings come from configuration files, so their types are checked too."""
    for name, value, known in (("goals", goals, MODES), ("observation_mode", observation_mode, OBSERVATION_MODES)):
        if not isinstance(value, str) or value not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}; got {value!r:.60}")
    if not isinstance(show_attributes, bool):
        raise ConfigError(f"show_attributes must be True or False; got {show_attributes!r:.60}")


def _check_session(session: object) -> int | str | None:
    if isinstance(session, numbers.Integral):
        return int(session)
    if session is None or isinstance(session, str):
        return session
    raise TaskError(f"session must be a goal's number, a name, or None; got {session!r:.60}")
