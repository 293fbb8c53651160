"""The native engine against what was recorded from the original WebShop.

Needs the folders ``conformance`` and ``data`` beside the checkout; the tests skip where they are absent.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dmr_gym.tasks.webshop.engine import WebShopEngine


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Episodes or searches, one JSON object a line."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from (json.loads(line) for line in file)


@pytest.fixture(scope="module")
def engines(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, WebShopEngine]:
    """Engines on the released data as recorded from, by whether the goals are human."""
    index_dir = tmp_path_factory.mktemp("index")
    return {
        is_human: WebShopEngine(
            shared_data / "webshop", seed=0, goals="human" if is_human else "synthetic", index_dir=index_dir
        )
        for is_human in (False, True)
    }


# Quirks come first: the fifty random products of one follow from the generator's state after loading.
@pytest.mark.parametrize(("name", "count", "n_steps"), [("quirks", 3, 38), ("episodes", 234, 1751), ("human", 26, 158)])
def test_every_recorded_step_is_the_same(
    name: str, count: int, n_steps: int, shared_conformance: Path, engines: dict[bool, WebShopEngine]
) -> None:
    """Observation, what can be clicked, reward and done of every step are the original's."""
    differences, steps, episodes = [], 0, 0
    for episode in read_records(shared_conformance / f"webshop_{name}.jsonl.gz"):
        engine = engines[episode.get("human_goals", False)]
        episodes += 1
        for recorded in episode["steps"]:
            action, steps = recorded["action"], steps + 1
            observation = engine.reset(episode["session"]) if action is None else engine.step(action)
            found = (observation, engine.available, engine.reward, engine.done)
            if found != tuple(recorded[key] for key in ("observation", "available", "reward", "done")):
                differences.append((episode["session"], action))
    assert differences == []
    assert (episodes, steps) == (count, n_steps)


def test_reasons_are_given_exactly_for_what_did_nothing(
    shared_conformance: Path, engines: dict[bool, WebShopEngine]
) -> None:
    """An action of the recordings has a reason where the original left the page alone and gave the reward 0 as int."""
    for name in ("episodes", "human", "quirks"):
        for episode in read_records(shared_conformance / f"webshop_{name}.jsonl.gz"):
            engine = engines[episode.get("human_goals", False)]
            engine.reset(episode["session"])
            for recorded in episode["steps"][1:]:
                # The original tells the two apart by the type alone.
                did_nothing = isinstance(recorded["reward"], int)
                assert (engine.inadmissible_reason(recorded["action"]) is not None) == did_nothing
                engine.step(recorded["action"])


def test_every_recorded_search_is_the_same(shared_conformance: Path, engines: dict[bool, WebShopEngine]) -> None:
    """The same products in the same order."""
    records = list(read_records(shared_conformance / "webshop_search.jsonl.gz"))
    assert len(records) == 400
    assert [record["query"] for record in records if engines[False].search(record["query"]) != record["asins"]] == []


def test_every_recorded_episode_replays_from_any_step(
    shared_conformance: Path, engines: dict[bool, WebShopEngine]
) -> None:
    """Each step taken from a restored snapshot, on an engine that was elsewhere, is the recorded one."""
    engine = engines[False]
    for episode in list(read_records(shared_conformance / "webshop_episodes.jsonl.gz"))[:40]:
        states = []
        engine.reset(episode["session"])
        for recorded in episode["steps"][1:]:
            states.append(engine.snapshot())
            engine.step(recorded["action"])
        for state, recorded in reversed(list(zip(states, episode["steps"][1:], strict=True))):
            engine.restore(state)
            assert engine.step(recorded["action"]) == recorded["observation"]
            assert (engine.available, engine.reward) == (recorded["available"], recorded["reward"])
