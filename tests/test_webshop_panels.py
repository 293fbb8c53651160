"""Panels of goals: disjoint, fixed, recorded by content, and each goal can be reached."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.tasks.webshop import panels
from dmr_gym.tasks.webshop.engine import WebShopEngine
from dmr_gym.tasks.webshop.generate import embedded_shop, generate_shop, write_shop

SIZES = {"train": 1938, "calibration": 200, "validation": 100, "test": 200}


@pytest.fixture(scope="module")
def engine() -> WebShopEngine:
    """The embedded shop as the panels are played."""
    return WebShopEngine(embedded_shop(), seed=panels.EMBEDDED_GOAL_SEED, goals="human")


def buy_target(engine: WebShopEngine, number: int) -> float:
    """Find a goal's own product by its title, choose the goal's values, and buy."""
    engine.reset(number)
    goal = engine.goal
    engine.step(f"search[{goal.title}]")
    while goal.asin.lower() not in engine.available["clickables"]:
        assert engine.page.number <= 5
        engine.step("click[next >]")
    engine.step(f"click[{goal.asin}]")
    for value in goal.options.values() if isinstance(goal.options, dict) else goal.options:
        engine.step(f"click[{value}]")
    engine.step("click[buy now]")
    return engine.reward


def test_panels_have_their_sizes_and_share_no_goal() -> None:
    """No goal number stands in two panels; ids are numbered from 0."""
    assert {panel: len(panels.embedded_goals(panel)) for panel in panels.PANELS} == SIZES
    numbers = [number for panel in panels.PANELS for number in panels.embedded_goals(panel).values()]
    assert len(numbers) == len(set(numbers))
    assert next(iter(panels.embedded_goals("test"))) == "shop-test-0000"


def test_panels_share_neither_target_nor_sentence(engine: WebShopEngine) -> None:
    """A product is asked for in one panel alone, and no sentence occurs twice at all."""
    targets: dict[str, set[str]] = {}
    sentences: Counter[str] = Counter()
    for panel in panels.PANELS:
        goals = [engine.goals[number] for number in panels.embedded_goals(panel).values()]
        targets[panel] = {goal.asin for goal in goals}
        sentences.update(goal.instruction_text.partition(", and price")[0] for goal in goals)
    assert sum(map(len, targets.values())) == len(set().union(*targets.values()))
    assert max(sentences.values()) == 1


def test_every_test_goal_can_be_bought_for_the_full_score(engine: WebShopEngine) -> None:
    """The goal's product with the goal's values scores exactly 1.0."""
    numbers = panels.embedded_goals("test").values()
    assert [number for number in numbers if buy_target(engine, number) != 1.0] == []


@pytest.mark.slow
def test_every_goal_can_be_bought_for_the_full_score(engine: WebShopEngine) -> None:
    """So do the goals of all panels."""
    numbers = [number for panel in panels.PANELS for number in panels.embedded_goals(panel).values()]
    assert [number for number in numbers if buy_target(engine, number) != 1.0] == []


def test_generated_shop_in_official_files_is_played_alike(tmp_path: Path) -> None:
    """An engine reads the written files; synthetic goals of the shop can be reached too."""
    shop = generate_shop(11, 60)
    write_shop(shop, tmp_path)
    engine = WebShopEngine(tmp_path, seed=0, goals="synthetic", index_dir=tmp_path / "index")
    assert len(engine.goals) >= 100
    assert [number for number in range(0, len(engine.goals), 20) if buy_target(engine, number) != 1.0] == []


def test_recorded_hashes_hold() -> None:
    """The generator still makes the recorded goals and products."""
    known = panels.known_hashes()
    assert len(known) == sum(SIZES.values()) == len(set(known.values()))
    assert panels.compute_hashes("test") == {task_id: known[task_id] for task_id in panels.embedded_goals("test")}


def test_command_checks_and_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--write`` writes the shipped file; a goal that has changed is named, and the status is 1."""
    assert panels.main([]) == 0
    assert capsys.readouterr().out.startswith(f"{sum(SIZES.values())} goals, 0 differ")
    file = tmp_path / "hashes.txt"
    assert panels.main(["--write", str(file)]) == 0
    written = dict(line.split() for line in file.read_text(encoding="ascii").splitlines())
    assert written == panels.known_hashes()
    capsys.readouterr()
    monkeypatch.setattr(panels, "known_hashes", lambda: {**written, "shop-test-0003": "0" * 16})
    assert panels.main([]) == 1
    assert "1 differ from the shipped hashes shop-test-0003" in capsys.readouterr().out


def test_official_panels_are_ranges_of_the_shuffled_goals() -> None:
    """WebShop's splits, with the first 200 goals of its train split for calibration."""
    sizes = {panel: len(panels.official_goals(panel, 6910)) for panel in panels.PANELS}
    assert sizes == {"train": 5210, "calibration": 200, "validation": 1000, "test": 500}
    assert panels.official_goals("validation", 6910)["webshop-500"] == 500
    assert list(panels.official_goals("test", 3)) == ["webshop-0", "webshop-1", "webshop-2"]


def test_wrong_names_are_refused() -> None:
    """Unknown panels, and panels without goals."""
    with pytest.raises(ConfigError, match=r"unknown panel 'eval': the embedded shop has"):
        panels.embedded_goals("eval")
    with pytest.raises(ConfigError, match=r"unknown panel 'eval': official data has"):
        panels.official_goals("eval", 6910)
    with pytest.raises(ConfigError, match=r"panel 'train' begins at goal 1700, but this data has 13 goals"):
        panels.official_goals("train", 13)
