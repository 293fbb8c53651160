"""Grow routing trees: ask every precision at every state, cheapest states first, many tasks in one batch.

Growing a tree keeps nothing between runs. Answers are pinned by the completion cache, so a run that was stopped is
started again and finds them there, and the same tree grows, byte for byte.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dmr_gym.config import check_count, unknown_name
from dmr_gym.errors import ConfigError
from dmr_gym.parts import Parts
from dmr_gym.tree.graph import RoutingTree
from dmr_gym.tree.growth import UNTIL, Growth, Until
from dmr_gym.tree.values import Prices

TASKS_AT_ONCE = 8
STATES_AT_ONCE = 4


def grow_trees(
    parts: Parts,
    task_ids: Sequence[str],
    budget: int = 2000,
    until: Until = "complete",
    *,
    settings: Mapping[str, Any] | None = None,
    tasks_at_once: int = TASKS_AT_ONCE,
    states_at_once: int = STATES_AT_ONCE,
    on_tree: Callable[[RoutingTree], None] | None = None,
    on_round: Callable[[], None] | None = None,
    progress: str | None = None,
) -> list[RoutingTree]:
    """Grow the trees of some tasks.

    The episodes that one precision plays alone come first, the highest precision's before the others'. Then come the
    states that differ from what is known, in the order of the least time, LLM and router, in which they can be reached.
    So when a tree is cut off at its budget, whatever is not in it takes longer than what is, and bounds close from the
    cheap side.

    Args:
        parts: of an environment, see `dmr_gym.parts.build_parts`; its encoder is not used.
        task_ids: of the panel.
        budget: most states of a tree at which the precisions answer; each costs P completions.
        until: "complete" grows a tree until its budget is used up or nothing is left; "decided" also stops where every
            state that is still open takes as long as the cheapest success is known to, and as long as the highest
            precision's own episode where that succeeds. The oracle is then exact at every λ, where invalid actions cost
            nothing.
        settings: plain data to keep with the trees.
        tasks_at_once: trees that grow side by side.
        states_at_once: states that each of them adds to a batch; the trees depend on it where a budget cuts them off.
        on_tree: called with each tree when it is done, in order of ending.
        on_round: called after each batch.
        progress: title of a progress bar on the terminal; None shows none.

    Returns:
        The trees in the order of the tasks.

    Raises:
        ConfigError: a temperature above 0, where an episode is no function of its precisions; a number below 1; or a
            latency model that `Prices` refuses.
    """
    temperature = parts.rules.sampling.temperature
    if temperature > 0:
        raise ConfigError(
            "a routing tree needs greedy decoding, in which equal prompts have equal answers: set sampling.temperature "
            f"to 0, it is {temperature}"
        )
    if until not in UNTIL:
        raise ConfigError(unknown_name("until", until, UNTIL))
    for name, value in (("budget", budget), ("tasks_at_once", tasks_at_once), ("states_at_once", states_at_once)):
        check_count(name, value)
    prices = Prices(parts.rules.latency, parts.rules.lambda_)
    from tqdm import tqdm

    done: dict[str, RoutingTree] = {}
    waiting = iter(task_ids)
    growing: list[Growth] = []
    # A log file gets a line every ten seconds, not a screenful.
    interval, drawn = 0.2 if sys.stderr.isatty() else 10.0, time.monotonic()
    with tqdm(total=len(task_ids), desc=progress, unit="tree", disable=progress is None, mininterval=interval) as bar:
        while True:
            for _, task_id in zip(range(tasks_at_once - len(growing)), waiting, strict=False):
                growing.append(Growth(parts.episodes[0], prices, task_id, budget, until))
            if not growing:
                return [done[task_id] for task_id in task_ids]
            _grow(parts, growing, states_at_once)
            for growth in [growth for growth in growing if growth.is_done]:
                growing.remove(growth)
                tree = done[growth.task_id] = growth.tree(settings or {})
                bar.update()
                if on_tree is not None:
                    on_tree(tree)
            states = sum(tree.expanded for tree in done.values()) + sum(growth.expanded for growth in growing)
            bar.set_postfix_str(f"{states:,} states", refresh=False)
            if time.monotonic() - drawn > interval:  # large trees take minutes
                bar.refresh()
                drawn = time.monotonic()
            if on_round is not None:
                on_round()


def _grow(parts: Parts, growing: Sequence[Growth], states_at_once: int) -> None:
    """One batch: some states of each tree."""
    precisions = range(len(parts.rules.precisions))
    episode = parts.episodes[0]
    chosen = [(growth, state) for growth in growing for state in growth.choose(states_at_once)]
    requests = []
    for growth, state in chosen:
        episode.restore(growth.snapshot(state))
        requests += [episode.request(precision) for precision in precisions]
    completions = iter(parts.backend.generate(requests))
    for growth, state in chosen:
        growth.expand(state, [next(completions) for _ in precisions])
