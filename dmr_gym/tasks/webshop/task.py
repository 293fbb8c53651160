"""WebShop as a task: completions go in, the shop answers, and its pages become the next prompt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmr_gym.config import unknown_name
from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.prompts.webshop import (
    INVALID,
    PROMPT_STYLES,
    PageView,
    admissible_actions,
    chat_prompt,
    quoted_pieces,
    short_prompt,
    shown_action,
)
from dmr_gym.prompts.webshop_answers import read_completion
from dmr_gym.tasks.webshop import panels
from dmr_gym.tasks.webshop.display import OBSERVATION_MODES
from dmr_gym.tasks.webshop.engine import WebShopEngine
from dmr_gym.tasks.webshop.fixes import FIXES, OPTION_BRACKETS
from dmr_gym.tasks.webshop.generate import embedded_shop
from dmr_gym.tasks.webshop.goals import MODES
from dmr_gym.tasks.webshop.pages import RESULTS
from dmr_gym.tasks.webshop.shop import Shop, open_shop
from dmr_gym.tasks.webshop.views import clickable_names, page_pieces, page_view
from dmr_gym.types import Prompt, TaskStart, TaskStep

DATA_VARIABLE = "WEBSHOP_DATA"
PANELS = (*panels.PANELS, "all")
TEXT_MODES = tuple(mode for mode in OBSERVATION_MODES if mode.startswith("text"))
AFTER_PURCHASE = "the purchase is made, and the episode over"


@dataclass(frozen=True, slots=True)
class WebshopState:
    """Snapshot of an episode.

    Attributes:
        task_id: the goal.
        engine_state: the engine's own snapshot.
        taken: steps so far.
        history: (page, action) of the last steps, as prompts show them.
        score: reward of the purchase; None before it.
    """

    task_id: str
    engine_state: Any
    taken: int
    history: tuple[tuple[str, str], ...]
    score: float | None


class WebshopTask:
    """Shopping by instruction, in the embedded shop or in official data. Implements `dmr_gym.types.Task`."""

    def __init__(
        self,
        source: str | os.PathLike[str] | Shop = "embedded",
        panel: str = "train",
        goals: str | None = None,
        prompt_style: str = "short",
        history_length: int = 2,
        seed: int = 0,
        n_goals: int | None = None,
        observation_mode: str = "text",
        show_attributes: bool = False,
        num_products: int | None = None,
        index_dir: str | os.PathLike[str] | None = None,
        require_think: bool = True,
        fixes: Sequence[str] = (),
    ) -> None:
        """Open the shop and choose the goals. Tasks of one process share the shop.

        Args:
            source: "embedded", "official" (folder in ``WEBSHOP_DATA``), the path of a folder with WebShop's data
                files, or an open `Shop`.
            panel: "train", "calibration", "validation" or "test", see `dmr_gym.tasks.webshop.panels`; "all" takes
                every goal of official data or an open shop.
            goals: "synthetic" or "human"; None takes human ones in the embedded shop, which has no panels of others,
                and else WebShop's default, synthetic.
            prompt_style: "short" for models trained on it; "chat" for models from a hub.
            history_length: how many earlier pages a prompt shows, each with the action that followed.
            seed: of prices and price caps, what ``random.seed`` is for WebShop; 0 in the embedded shop.
            n_goals: only the first so many goals of the panel; None for all.
            observation_mode: WebShop's "text" or "text_rich", for chat prompts; the short style has its own.
            show_attributes: WebShop's option to show a page of attributes.
            num_products: only the first products of official data; None for all. Not for an open shop.
            index_dir: folder of search indexes of official data; see `dmr_gym.tasks.webshop.shop.open_shop`. Not for
                an open shop.
            require_think: whether a chat answer without ``<think></think>`` is invalid; short answers have none.
            fixes: quirks of WebShop to mend; see `WebShopEngine`.

        Raises:
            ConfigError: an argument is unknown or out of range.
            TaskError: the data is missing or broken.
        """
        self._style = _known("prompt_style", prompt_style, PROMPT_STYLES)
        self._mode = _known("observation_mode", observation_mode, TEXT_MODES)
        if self._style == "short" and self._mode != "text":
            raise ConfigError(f"observation_mode={self._mode!r} needs prompt_style='chat'; the short style has its own")
        self._history_length = _count("history_length", history_length, 0)
        self._require_think = _flag("require_think", require_think)
        if self._style == "short" and not self._require_think:
            raise ConfigError("require_think=False needs prompt_style='chat'; short answers have no <think></think>")
        fixes = _fixes(fixes)
        _known("panel", panel, PANELS)
        is_embedded = isinstance(source, str) and source == "embedded"
        if is_embedded:
            _check_embedded(panel, goals=goals, seed=seed, num_products=num_products, index_dir=index_dir)
        self._engine = WebShopEngine(
            _shop(source, num_products, index_dir),
            seed=_count("seed", seed, 0),
            goals="human" if is_embedded else _known("goals", MODES[0] if goals is None else goals, MODES),
            observation_mode=self._mode,
            show_attributes=_flag("show_attributes", show_attributes),
            fixes=fixes,
        )
        numbers = panels.embedded_goals(panel) if is_embedded else _official_goals(panel, len(self._engine.goals))
        self._numbers = dict(list(numbers.items())[: _panel_size(n_goals, len(numbers))])
        self._task_ids = tuple(self._numbers)
        self._fix_brackets = OPTION_BRACKETS in fixes
        self._first_state = self._engine.snapshot()
        self._state: WebshopState | None = None
        self._view = PageView("")
        self._names: list[str] = []
        self._pieces: list[str] = []

    @property
    def task_ids(self) -> Sequence[str]:
        """Ids of the panel in a fixed order."""
        return self._task_ids

    @property
    def engine(self) -> WebShopEngine:
        """The shop as the current episode has it. Raises TaskError before the first `reset`."""
        self._current()
        return self._engine

    def reset(self, task_id: str) -> TaskStart:
        """Begin an episode.

        Raises:
            TaskError: the id is not in the panel.
        """
        number = self._numbers.get(task_id)
        if number is None:
            raise TaskError(f"{task_id!r:.120} is not in this panel of {len(self._numbers)} goals; see task_ids")
        # Back to the first state, so that searches that draw products do not depend on earlier episodes.
        self._engine.restore(self._first_state)
        self._engine.reset(number)
        self._enter(WebshopState(task_id, self._engine.snapshot(), 0, (), None))
        return TaskStart(task_id, self._engine.instruction, self._observation(), self._next_step_type())

    def prompt(self) -> Prompt:
        """The prompt of the next step: task, step number, the last pages and actions, the page, what can be done."""
        state, goal = self._current(), self._engine.instruction
        if self._style == "short":
            return short_prompt(goal, state.taken + 1, state.history, self._view)
        actions = admissible_actions(self._view.has_search_bar, self._names)
        return chat_prompt(goal, state.taken, state.history, self._page(), actions)

    def step(self, completion: str) -> TaskStep:
        """Carry out what a completion says. Where that is invalid, only the step number and the history change.

        Returns:
            ``observation`` is the page without the instruction, a fact a line; ``score`` is WebShop's reward once
            something is bought, and success is a reward of exactly 1.0; ``next_step_type`` is "search" on the start
            page and "click" on every other.

        Raises:
            TaskError: there is no episode yet. No completion makes it raise.
        """
        state, engine = self._current(), self._engine
        reading = read_completion(
            completion, self._view.has_search_bar, self._style, self._require_think, self._fix_brackets
        )
        action, reason, score = self._meant(reading.action), reading.invalid_reason, state.score
        if score is not None:
            reason = AFTER_PURCHASE
        elif reason is None:
            reason = engine.inadmissible_reason(action)
        shown = shown_action(reading.action, reason is None)
        pair = (self._page(), f"{shown}{INVALID}" if reason is not None and self._style == "short" else shown)
        if reason is None:
            engine.step(action)
            score = engine.reward if engine.done else None
        history = (*state.history, pair)[-self._history_length :] if self._history_length else ()
        self._enter(WebshopState(state.task_id, engine.snapshot(), state.taken + 1, history, score))
        return TaskStep(
            action=action,
            observation=self._observation(),
            score=score or 0.0,
            done=score is not None,
            success=score == 1.0,
            step_type=reading.step_type,
            invalid_reason=reason,
            next_step_type=self._next_step_type(),
        )

    def snapshot(self) -> WebshopState:
        """The episode's state, immutable."""
        return self._current()

    def restore(self, state: WebshopState) -> None:
        """Go back to a state that `snapshot` returned, on this goal or another of the panel."""
        if state.task_id not in self._numbers:
            raise TaskError(f"{state.task_id!r:.120} is not in this panel of {len(self._numbers)} goals; see task_ids")
        self._engine.restore(state.engine_state)
        self._enter(state)

    def _current(self) -> WebshopState:
        if self._state is None:
            raise TaskError("no episode yet: call reset(task_id) first")
        return self._state

    def _enter(self, state: WebshopState) -> None:
        """Take a state on; the engine is in it already."""
        self._state = state
        self._names = clickable_names(self._engine)
        self._view = page_view(self._engine, self._names)
        if self._style == "chat":
            self._pieces = page_pieces(self._engine, self._mode)

    @property
    def links(self) -> Mapping[str, str]:
        """Asins by the number that stands for them on the present page of the short style; see `PageView`."""
        return self._view.links

    def _meant(self, action: str) -> str:
        """The action with the product's asin where the short style has its number."""
        if self._style == "short" and self._engine.page.kind == RESULTS and action.startswith("click["):
            asin = self._view.links.get(action[6:-1])
            return action if asin is None else f"click[{asin}]"
        return action

    def _page(self) -> str:
        """The page as a prompt's history shows it; in a chat also the present one."""
        if self._style == "short":
            return self._view.summary
        return quoted_pieces(self._pieces) if self._mode == "text" else "\n".join(self._pieces)

    def _next_step_type(self) -> str:
        """The start page has nothing but its search bar, and no other page has one."""
        return "search" if self._view.has_search_bar else "click"

    def _observation(self) -> str:
        return self._view.text if self._style == "short" else "\n".join(self._pieces)


def _shop(
    source: str | os.PathLike[str] | Shop, num_products: int | None, index_dir: str | os.PathLike[str] | None
) -> Shop:
    if isinstance(source, Shop):
        if num_products is not None or index_dir is not None:
            raise ConfigError("num_products and index_dir are for data files; an open Shop has its products and index")
        return source
    if source == "embedded":
        return embedded_shop()
    if source == "official":
        folder = os.environ.get(DATA_VARIABLE, "")
        if not folder:
            raise ConfigError(f"source='official' needs the folder of WebShop's data files in {DATA_VARIABLE}, not set")
        source = folder
    elif not isinstance(source, str | os.PathLike):
        raise ConfigError(f"source must be 'embedded', 'official', a folder or a Shop, found {source!r:.120}")
    elif not Path(source).expanduser().is_dir():
        raise ConfigError(f"source must be 'embedded', 'official' or a folder; there is no folder {str(source)!r:.120}")
    return open_shop(source, num_products, index_dir)


def _official_goals(panel: str, n_goals: int) -> Mapping[str, int]:
    if panel == "all":
        return {f"webshop-{number}": number for number in range(n_goals)}
    return panels.official_goals(panel, n_goals)


def _check_embedded(panel: str, **settings: object) -> None:
    """The embedded shop has its panels, human goals, and one seed; what asks for others is a mistake."""
    if panel == "all":
        raise ConfigError(f"the embedded shop has the panels {', '.join(panels.PANELS)}; 'all' is for official data")
    allowed = {"goals": (None, "human"), "seed": (panels.EMBEDDED_GOAL_SEED,), "num_products": (None,)}
    for name, value in settings.items():
        if value not in allowed.get(name, (None,)):
            raise ConfigError(f"{name} is for official data; the embedded shop has its own, found {value!r:.120}")


def _panel_size(n_goals: int | None, available: int) -> int:
    if n_goals is None:
        return available
    if _count("n_goals", n_goals, 1) > available:
        raise ConfigError(f"n_goals must lie in 1 to {available} for this panel, found {n_goals}")
    return n_goals


def _fixes(fixes: object) -> tuple[str, ...]:
    """A name alone stands for itself; which names there are is the engine's to check."""
    names = (fixes,) if isinstance(fixes, str) else fixes
    if not isinstance(names, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"fixes must be a list of names among {', '.join(FIXES)}; found {fixes!r:.60}")
    return tuple(names)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, found {value!r:.60}")
    return value


def _known(name: str, value: str, known: Sequence[str]) -> str:
    """Settings come from configuration files, so their types are checked too."""
    if value not in known:
        raise ConfigError(unknown_name(name, value, known))
    return value


def _count(name: str, value: int, least: int) -> int:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, found {value!r:.60}")
    return value
