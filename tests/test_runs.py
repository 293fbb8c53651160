"""Files of a run: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import stat

import pytest

from dmr_gym import runs
from dmr_gym.runs import PACKAGES, RunRecord, file_digest, provenance, write_atomically, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """A reader sees the old content, and no half file stays behind."""
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})

    def fail(part):
        part.write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_folders_are_made_and_suffixes_kept(tmp_path):
    """Writers that choose the format by suffix, as matplotlib does, see the final one."""
    seen = []
    write_atomically(tmp_path / "new" / "picture.png", lambda part: (seen.append(part.suffix), part.write_bytes(b"x")))
    assert seen == [".png"]
    assert (tmp_path / "new" / "picture.png").read_bytes() == b"x"


def test_numbers_that_json_lacks_become_null(tmp_path):
    """NaN and infinity, at any depth; everything else is as it was."""
    write_json(tmp_path / "r.json", {"a": float("nan"), "b": [1.5, (float("inf"), None)], "c": {"d": -float("inf")}})
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [1.5, [None, None]], "c": {"d": None}}


def test_file_digest_is_sha256(tmp_path):
    """Comparable with sha256sum."""
    (tmp_path / "f").write_bytes(b"content")
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"content").hexdigest()


def test_provenance_names_versions_and_is_json():
    """What made a result, as plain data."""
    record = json.loads(json.dumps(provenance()))
    assert record["versions"]["numpy"]
    assert record["versions"]["torch"]
    assert record["python"].startswith("3.")
    assert {"stable-baselines3", "sb3-contrib", "tokenizers"} <= set(PACKAGES)
    assert None not in record["versions"].values()


def test_provenance_names_the_processor_and_the_time_taken(tmp_path, monkeypatch):
    """The model that Linux tells with the CPUs that this process may use; elsewhere what Python knows."""
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 5, 7}, raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Xeon: 2 GHz\n\nprocessor\t: 1\nmodel name\t: other\n")
    assert runs._processor(cpuinfo) == "Xeon: 2 GHz, 3 CPUs"
    flags = "flags\t\t: fma avx2 avx512f\n"
    for found, units in (
        (flags, "AVX-512"),
        (flags.replace("avx512f", "f16c"), "AVX2"),
        (flags[:-1] + " amx_tile\n", "AMX"),
    ):
        cpuinfo.write_text(f"processor\t: 0\nmodel name\t: EPYC\n{found}\nprocessor\t: 1\nflags\t: none\n")
        assert runs._processor(cpuinfo) == f"EPYC, {units}, 3 CPUs"
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50\n")
    assert runs._processor(cpuinfo) == "arm, 3 CPUs"
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert runs._processor(tmp_path / "none") == "arm, 8 CPUs"
    first, second = provenance(), provenance()
    assert first["processor"] == runs._processor()
    assert 0 < first["process_s"] < second["process_s"] <= runs.process_s()


def test_a_record_keeps_the_commit_of_its_beginning(tmp_path, monkeypatch):
    """Resumptions that save something are added once each; others leave the file as it is, results included."""

    def record():
        return json.loads((tmp_path / "run.json").read_text())

    monkeypatch.setattr("dmr_gym.runs._commit", lambda: "first")
    run = RunRecord(tmp_path, {"epochs": 1})
    assert (record()["git"], record()["resumptions"]) == ("first", [])
    run.work()
    run.end({"best": 0.5})
    done = record()
    assert done["resumptions"] == []
    monkeypatch.setattr("dmr_gym.runs._commit", lambda: "second")
    RunRecord(tmp_path, {"epochs": 1}).end({"best": 0.5})
    assert record() == done
    run = RunRecord(tmp_path, {"epochs": 2})
    run.work()
    run.work()
    assert "best" not in record()
    run.end({"best": 0.75})
    assert (record()["git"], record()["epochs"], record()["best"]) == ("first", 2, 0.75)
    [entry] = record()["resumptions"]
    assert entry["git"] == "second"
    assert set(entry) == {"time", "python", "machine", "processor", "versions", "git"}


def test_a_record_tells_the_time_of_its_last_part(tmp_path, monkeypatch):
    """Of the process that worked last, unchanged where nothing was to be done; files from before there was one load."""

    def record():
        return json.loads((tmp_path / "run.json").read_text())

    old = {"epochs": 1, "python": "3.11.7", "machine": "x86_64", "versions": {}, "git": "old", "resumptions": []}
    write_json(tmp_path / "run.json", {**old, "best": 0.5})
    RunRecord(tmp_path, {"epochs": 1}).end({"best": 0.5})
    assert record() == {**old, "best": 0.5}
    for seconds, works in ((7.0, True), (9.0, False)):
        monkeypatch.setattr(runs, "process_s", lambda seconds=seconds: seconds)
        run = RunRecord(tmp_path, {"epochs": 1})
        if works:
            run.work()
            assert "process_s" not in record()
        run.end({"best": 0.5})
        assert record()["process_s"] == 7.0
    assert "processor" not in record()
    assert "processor" in record()["resumptions"][0]


def test_files_get_the_mode_of_the_umask(tmp_path):
    """Also where the writer makes the file anew for its owner alone."""

    def private(part):
        part.unlink()
        part.touch(0o600)

    before = os.umask(0o022)
    try:
        write_atomically(tmp_path / "f", private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o644
