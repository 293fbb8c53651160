"""agents/evaluate.py with three and four precisions, with alternatives, and on the official data of both worlds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmr_gym.alternatives import Alternatives, read_alternatives
from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.router import PrecisionRouter, RouterConfig
from dmr_gym.tasks.toy import make_signs
from tests.recipes import TINY, load_recipe, no_picture, one_thread

__all__ = ["one_thread"]  # a fixture for all tests here

WORDS = {"A sign points left.": "go left", "A sign points right.": "go right"}
FALLEN = ("A fallen sign shows left.", "A fallen sign shows right.")
ANSWERS = {
    "w2": WORDS | dict(zip(FALLEN, ("go left", "go right"), strict=True)),
    "w3": WORDS | dict(zip(FALLEN, ("go right", "go right"), strict=True)),
    "w4": WORDS | dict(zip(FALLEN, ("go right", "go left"), strict=True)),
    "bf16": WORDS | dict(zip(FALLEN, ("go right", "go left"), strict=True)),
}
"""Two bits take every sign at its word, three know one kind of fallen sign, four and sixteen know both."""
PRICES = {"w2": 12.0, "w3": 14.0, "w4": 16.0, "bf16": 25.0}

SCRIPT = """
precisions = ["low", "high"]
latency = {ms_per_token = {low = 10.0, high = 20.0}, router_ms = 1.0}
encoder = {kind = "hash", dim = 16}
max_steps = 4
[backend]
kind = "scripted"
policy = "hash"
"""
"""Two precisions without weights that say one thing or another."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes that are loaded from here on draw no picture of an evaluation."""
    monkeypatch.setattr("dmr_gym.figures.draw_accuracy_latency", no_picture)


def world(folder: Path, names: list[str]) -> list[str]:
    """Options for corridors with these precisions."""
    text = f"""
task = "toy"
precisions = {json.dumps(names)}
latency = {{ms_per_token = {{{", ".join(f"{n} = {PRICES[n]}" for n in names)}}}, router_ms = 1.0}}
encoder = {{kind = "hash", dim = 64}}
[backend]
kind = "scripted"
"""
    for name in names:
        text += f"[backend.answers.{name}]\n" + "".join(
            f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in ANSWERS[name].items()
        )
    (folder / "world.toml").write_text(text)
    return ["--config", str(folder / "world.toml"), "--num-envs", "4"]


def lines_of(out: Path) -> list[dict[str, Any]]:
    """The lines of episodes.jsonl."""
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def write_kls(folder: Path, names: list[str]) -> None:
    """Give a data set the KLs of these precisions: 1 nat where one would go the wrong way, else 1e-4."""
    path = folder / "kl.safetensors"
    dataset, settings = KLDataset.load(path), read_settings(path)
    signs = [sign for task in dataset.task_ids for sign in make_signs(task, 8)]
    wrong = [[ANSWERS[name][sign.text] != f"go {sign.way}" for name in names[:-1]] for sign in signs]
    kls = np.where(wrong, 1.0, 1e-4).astype(np.float32)
    columns = {name: getattr(dataset, name) for name in dataset.__dataclass_fields__}
    KLDataset(**columns | {"kl_action": kls, "kl_all": kls}).save(path, settings)


@pytest.mark.parametrize(
    "names", [pytest.param(["w2", "w3", "bf16"], marks=pytest.mark.slow), ["w2", "w3", "w4", "bf16"]], ids=len
)
def test_several_precisions_are_collected_learnt_and_evaluated(tmp_path: Path, names: list[str]) -> None:
    """Each alone, budgets of the highest, random routing with every share; the router uses the middle ones, too."""
    env = world(tmp_path, names)
    load_recipe("collect_kl").main(["--out", str(tmp_path / "kl"), *env])
    write_kls(tmp_path / "kl", names)
    train = ["--threshold", "0.1", "--lr", "3e-3", "--epochs", "8", *TINY]
    load_recipe("train_kl_st").main(["--data", str(tmp_path / "kl"), "--out", str(tmp_path / "st"), *train])
    options = ["--router", str(tmp_path / "st" / "router"), "--out", str(tmp_path / "out"), "--tasks", "16", *env]
    options += ["--seeds", "1", "--calibration-tasks", "8", "--budgets", "0.4", "--resamples", "50"]
    load_recipe("evaluate").main(options)
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = {row["policy"]: row for row in record["results"]}
    assert list(rows)[: len(names)] == ["always bf16", *(f"always {name}" for name in names[:-1])]
    for row in rows.values():
        assert len(row["shares"]) == len(row["shares_ci"]) == len(names)
        assert sum(row["shares"]) == pytest.approx(1.0)
    assert rows["always w3"]["shares"] == [0.0, 1.0] + [0.0] * (len(names) - 2)
    routed, random = rows["router p≥0.5"], rows["random p≥0.5"]
    assert routed["success"] > 0.9
    assert routed["time_all_s"] < rows["always bf16"]["time_all_s"]
    assert all(share > 0.05 for share in routed["shares"][:2])
    # Episodes are of chance, so shares are met roughly; those of a wandering episode most of all.
    np.testing.assert_allclose(random["shares"], routed["shares"], atol=0.15)
    assert f"| {' / '.join(names)} % |" in (tmp_path / "out" / "tables.md").read_text()
    for line in lines_of(tmp_path / "out"):
        prices = [PRICES[names[step["precision"]]] for step in line["steps"]]
        tokens_ms = sum(step["completion_tokens"] * ms for step, ms in zip(line["steps"], prices, strict=True))
        router_ms = len(line["steps"]) * (line["kind"] == "router")
        assert line["time_s"] == pytest.approx((tokens_ms + router_ms) / 1000)


def new_router(path: Path, dim: int, n_precisions: int = 2) -> Path:
    """A router that has learnt nothing."""
    torch.manual_seed(0)
    sizes = {"n_layers": 1, "d_model": 16, "n_heads": 2, "d_ff": 16, "max_length": 64}
    PrecisionRouter(RouterConfig(embedding_dim=dim, n_precisions=n_precisions, **sizes)).eval().save(path)
    return path


def test_alternatives_are_recorded_for_the_first_tasks(tmp_path: Path) -> None:
    """What each of four precisions would have said, in the states that a policy itself visited; kept over runs."""
    env = world(tmp_path, list(PRICES))
    router = new_router(tmp_path / "router", 64, 4)
    options = ["--router", str(router), "--out", str(tmp_path / "out"), "--tasks", "3", "--budgets", "0.4", *env]
    options += ["--no-random", "--resamples", "10"]
    load_recipe("evaluate").main(options)
    episodes = (tmp_path / "out" / "episodes.jsonl").read_bytes()
    load_recipe("evaluate").main([*options, "--alternatives", "2"])
    assert (tmp_path / "out" / "episodes.jsonl").read_bytes() == episodes
    found = read_alternatives(tmp_path / "out" / "alternatives.jsonl")
    lines = [line for line in lines_of(tmp_path / "out") if not line["task_id"].endswith("002")]
    assert [(line["policy"], line["task_id"], line["seed"]) for line in lines] == list(found)
    for line, steps in zip(lines, found.values(), strict=True):
        signs, place = make_signs(line["task_id"], 8), 0
        for step, others in zip(line["steps"], steps, strict=True):
            said = [other["action"] for other in others]
            assert said == [ANSWERS[name][signs[place].text] for name in PRICES]
            assert said[step["precision"]] == step["action"]
            assert others[step["precision"]]["observation"] == step["observation"]
            assert [other["kl"] is None for other in others] == [False, False, False, True]
            place = place + 1 if step["action"] == f"go {signs[place].way}" else 0


def test_alternatives_of_an_earlier_run_are_not_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies at the fourth episode keeps three; the next one ends in the same file as one left alone."""
    env, router = world(tmp_path, ["w2", "bf16"]), new_router(tmp_path / "router", 64)
    options = ["--router", str(router), "--tasks", "4", "--budgets", "0.4", "--no-random", "--resamples", "10", *env]
    options += ["--alternatives"]
    load_recipe("evaluate").main([*options, "--out", str(tmp_path / "whole")])
    real, asked = Alternatives.of, []

    def dying(self: Alternatives, record: dict[str, Any]) -> Any:
        asked.append(record["task_id"])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return real(self, record)

    monkeypatch.setattr(Alternatives, "of", dying)
    with pytest.raises(KeyboardInterrupt):
        load_recipe("evaluate").main([*options, "--out", str(tmp_path / "broken")])
    load_recipe("evaluate").main([*options, "--out", str(tmp_path / "broken")])
    lines = lines_of(tmp_path / "whole")
    different = {(line["task_id"], *(step["precision"] for step in line["steps"])) for line in lines}
    assert len(asked) == len(different) + 1
    files = [(tmp_path / name / "alternatives.jsonl").read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]


def test_texts_can_be_left_out(tmp_path: Path) -> None:
    """The numbers are the same."""
    env, router = world(tmp_path, ["w2", "bf16"]), new_router(tmp_path / "router", 64)
    options = ["--router", str(router), "--tasks", "2", "--budgets", "0.4", "--no-random", "--resamples", "10", *env]
    for name, more in (("with", []), ("without", ["--no-texts"])):
        load_recipe("evaluate").main([*options, *more, "--out", str(tmp_path / name)])
    texts = {"instruction", "observation", "action", "completion", "invalid_reason"}
    for one, other in zip(lines_of(tmp_path / "with"), lines_of(tmp_path / "without"), strict=True):
        assert {key for step in other["steps"] for key in step}.isdisjoint(texts)
        one["steps"] = [{k: v for k, v in step.items() if k not in texts} for step in one["steps"]]
        assert {k: v for k, v in one.items() if k not in texts} == other


@pytest.fixture(scope="module")
def alfworld(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some official games in ALFWorld's own layout."""
    folder = tmp_path_factory.mktemp("alfworld")
    for split in ("valid_unseen", "valid_seen"):
        command = [sys.executable, str(shared_data / "alfworld" / "unpack.py"), split, str(folder), "--limit", "6"]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("name", ["alfworld", "webshop"])
def test_the_same_command_plays_official_data(
    name: str, shared_data: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Tasks of the official test panel, thresholds from the official calibration panel, the folder by the config."""
    if name == "alfworld":
        kwargs = {"source": str(request.getfixturevalue("alfworld"))}
    else:
        kwargs = {"source": str(shared_data / "webshop"), "index_dir": str(tmp_path / "index")}
    settings = f'task = "{name}"\ntask_kwargs = {{{", ".join(f"{k} = {json.dumps(v)}" for k, v in kwargs.items())}}}\n'
    (tmp_path / "official.toml").write_text(settings + SCRIPT)
    options = ["--router", str(new_router(tmp_path / "router", 16)), "--out", str(tmp_path / "out")]
    options += ["--config", str(tmp_path / "official.toml"), "--tasks", "3", "--calibration-tasks", "2"]
    load_recipe("evaluate").main([*options, "--budgets", "0.4", "--seeds", "1", "--resamples", "10", "--num-envs", "3"])
    lines = lines_of(tmp_path / "out")
    assert len({line["task_id"] for line in lines}) == 3
    assert len(lines) == 6 * 3
    assert all(line["cap_reached"] and len(line["steps"]) == 4 for line in lines)
    if name == "alfworld":
        assert all("valid_unseen" in line["task_id"] for line in lines)
    else:
        assert [line["task_id"] for line in lines[:3]] == ["webshop-0", "webshop-1", "webshop-2"]
