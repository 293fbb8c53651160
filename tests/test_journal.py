"""dmr_gym.journal: two lines a run, whatever a kill has left behind."""

from __future__ import annotations

import json
from pathlib import Path

from dmr_gym import journal
from dmr_gym.journal import JOURNAL_FILE, Journal


def entries(folder: Path) -> list[str]:
    """The lines of the journal."""
    return (folder / JOURNAL_FILE).read_text().splitlines()


def test_a_run_has_a_line_at_its_start_and_one_at_its_end(tmp_path: Path) -> None:
    """Versions and commit stand in the first, the wall clock in the second; NaN becomes null."""
    run = Journal(tmp_path / "new")
    assert run.start({"settings": {"x": float("nan")}}) == []
    run.end({"episodes_played": 3})
    start, end = map(json.loads, entries(tmp_path / "new"))
    assert start["settings"] == {"x": None}
    assert {"event", "time", "versions", "git", "python", "processor"} <= set(start)
    assert "process_s" not in start
    assert (end["event"], end["episodes_played"]) == ("end", 3)
    assert end["wall_s"] >= 0


def test_a_line_that_was_cut_stays_alone(tmp_path: Path) -> None:
    """The next one begins a line of its own, and the cut one is passed over."""
    Journal(tmp_path).start({})
    path = tmp_path / JOURNAL_FILE
    path.write_bytes(path.read_bytes() + b'{"event": "st')
    assert Journal(tmp_path).start({"n": 2}) == []
    lines = entries(tmp_path)
    assert lines[1] == '{"event": "st'
    assert json.loads(lines[2])["n"] == 2


def test_other_versions_are_told(tmp_path: Path, monkeypatch) -> None:
    """Results of two versions in one folder would be taken for one."""
    monkeypatch.setattr(journal, "provenance", lambda: {"versions": {"torch": "1", "numpy": "2"}})
    Journal(tmp_path).start({})
    monkeypatch.setattr(journal, "provenance", lambda: {"versions": {"torch": "3", "numpy": "2"}})
    assert Journal(tmp_path).start({}) == [
        f"{tmp_path} holds results of torch 1, this is 3: another --out plays everything anew"
    ]
    assert Journal(tmp_path).start({}) == []
