"""agents/agent_card.py: its numbers, its table, and a model card that keeps what others wrote into it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agents import agent_card
from dmr_gym.errors import ConfigError, TaskError
from dmr_gym.tasks.alfworld.generate import generate_game, write_game


def run(out: Path, *options: str) -> dict[str, object]:
    """Measure on four games of the toy world, or of the world that the options name."""
    small = ("--tasks", "4", "--num-envs", "2", "--cache-dir", str(out / "cache"))
    return agent_card.main(["--env", "DMR-Toy-v0", "--out", str(out), *small, *options])


def test_precisions_ascend_by_their_bits() -> None:
    """The number in a name orders it, not the alphabet."""
    assert agent_card.ascending(["bf16", "w4-gptq", "w8", "w2", "w4-awq"]) == ("w2", "w4-awq", "w4-gptq", "w8", "bf16")


def test_kl_figures_are_those_of_the_steps() -> None:
    """Mean, median, 90th percentile and share above 0.1 of five steps, worked out by hand."""
    kl = np.array([0.0, 0.05, 0.1, 0.35, 2.0], dtype=np.float32)
    figures = agent_card.kl_figures(kl)
    assert figures["steps"] == 5
    assert figures["mean"] == pytest.approx(0.5)
    assert figures["median"] == pytest.approx(0.1)
    assert figures["p90"] == pytest.approx(0.35 + 0.6 * 1.65)
    assert figures["share_above_0.1"] == pytest.approx(0.4)


def test_copies_without_a_kernel_are_called_dequantized() -> None:
    """Three bits are, four are not; the line below the table that explains it stands only where it is needed."""
    made = {"method": "gptq", "group_size": 128, "bytes": 1_000_000}
    facts = {"w3": made | {"scheme": "W3A16"}, "w4": made | {"scheme": "W4A16"}, "bf16": {"bytes": 4_000_000}}
    cell = {"episodes": 4, "success": 0.5, "success_ci": [0.0, 1.0], "score": 0.5, "steps": 8.0}
    results = {"precisions": facts, "panels": {"embedded test": dict.fromkeys(facts, cell)}, "kl": {}}
    rows = [line.split(" | ")[:3] for line in agent_card.table(results).splitlines()[2:]]
    assert rows == [
        ["| bf16", "–", "4.00"],
        ["| w4", "GPTQ W4A16, g 128", "1.00"],
        ["| w3", "GPTQ W3A16, g 128, dequantized", "1.00"],
    ]


def test_toy_card_has_table_picture_and_record(tmp_path: Path) -> None:
    """In the toy world high precision always succeeds in 8 steps and low precision, misled by signs, does not."""
    results = run(tmp_path)
    recorded = json.loads((tmp_path / "agent_card.json").read_text())
    assert recorded["panels"] == results["panels"]
    cells = recorded["panels"]["embedded test"]
    assert cells["high"]["success"] == 1.0
    assert cells["high"]["steps"] == 8.0
    assert cells["low"]["success"] < 1.0
    assert recorded["kl"]["low"]["steps"] == 4 * 8
    card = (tmp_path / "README.md").read_text()
    assert "| high | – | – | 100.0 % (100.0 to 100.0) | 1.000 | 8.0 | – | – | – |" in card
    assert "equantized" not in card
    assert (tmp_path / "kl_histogram.png").read_bytes().startswith(b"\x89PNG")


def test_card_keeps_what_others_wrote(tmp_path: Path) -> None:
    """A second run replaces the text between the marks and nothing else; a card without marks gets them at its end."""
    (tmp_path / "README.md").write_text("# My agent\n\nTrained by hand.\n")
    run(tmp_path)
    first = (tmp_path / "README.md").read_text()
    assert first.startswith("# My agent\n\nTrained by hand.\n\n<!-- results")
    (tmp_path / "README.md").write_text(first + "\n## Licence\n")
    run(tmp_path)
    assert (tmp_path / "README.md").read_text() == first + "\n## Licence\n"


def test_official_games_are_a_second_panel(tmp_path: Path) -> None:
    """With a folder in ALFWorld's layout the table has columns for its games, measured for the precisions asked for."""
    for seed in range(3):
        write_game(generate_game(seed), tmp_path / "data" / "json_2.1.1" / "valid_unseen")
    backend = 'backend={kind = "scripted", answers = {low = "look", mid = "help", high = "inventory"}}'
    world = ("--env", "DMR-ALFWorld-v0", "--precisions", "low", "mid", "high", "--set", backend, "--set", "max_steps=2")
    official = ("--official", str(tmp_path / "data"), "--official-panel", "valid_unseen")
    results = run(tmp_path / "card", *world, "--tasks", "2", *official, "--official-precisions", "low", "high")
    assert list(results["panels"]) == ["embedded test", "official valid_unseen"]
    assert results["panels"]["official valid_unseen"]["high"]["episodes"] == 2
    assert results["panels"]["official valid_unseen"]["high"]["steps"] == 2.0
    assert "mid" not in results["panels"]["official valid_unseen"]
    assert "success, official valid_unseen (2 tasks)" in (tmp_path / "card" / "README.md").read_text()


def test_wrong_folder_is_told_before_anything_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All panels are opened first, so that nobody waits for the first one to learn that the second is not there."""
    monkeypatch.setattr(agent_card, "rollout", lambda *args, **kwargs: pytest.fail("an episode was played"))
    world = ("--env", "DMR-ALFWorld-v0", "--precisions", "low", "high", "--official", str(tmp_path / "absent"))
    with pytest.raises((ConfigError, TaskError), match="absent"):
        run(tmp_path / "card", *world, "--set", 'backend={kind = "scripted", answers = {low = "look", high = "look"}}')
    with pytest.raises(ConfigError, match="the panel has 32 tasks, but 65 were asked for"):
        agent_card.main(["--env", "DMR-Toy-v0", "--out", str(tmp_path), "--cache-dir", str(tmp_path), "--tasks", "65"])


def test_one_precision_is_no_card(tmp_path: Path) -> None:
    """There is nothing to compare with one precision, and the message says so."""
    with pytest.raises(ConfigError, match="two precisions or more, found high"):
        run(tmp_path, "--precisions", "high")
    with pytest.raises(ConfigError, match="must be two or more of low, high; found high"):
        run(tmp_path, "--official", str(tmp_path), "--official-precisions", "high")
