"""Calibration: thresholds on the calibration panel, their file, the shift of scores, steps that no router decides."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dmr_gym.calibration import describe_scores
from dmr_gym.deployment import THRESHOLDS_FILE, read_calibration, training_scores
from dmr_gym.errors import ConfigError
from dmr_gym.kl_dataset import KLDataset
from dmr_gym.router import PrecisionRouter, RouterConfig
from dmr_gym.runs import write_json
from tests.explained import check_recorded
from tests.recipes import TINY, TOY, load_recipe, write_critical

SHOP = """
task = "webshop"
task_kwargs = {n_goals = 12}
precisions = ["low", "high"]
latency = {ms_per_token = {low = 10.0, high = 20.0}, router_ms = 1.0}
encoder = {kind = "hash", dim = 64}
max_steps = 6
[backend]
kind = "scripted"
[backend.answers]
high = {"Step 1" = "search[tea]", "Step 2" = "click[next >]", "Step 3" = "click[back to search]", "Step 4" = "search[mix]", "Step 5" = "click[next >]", "Step 6" = "click[back to search]"}
low = {"Step 1" = "search[milk]", "Step 2" = "click[back to search]", "Step 3" = "click[back to search]", "Step 4" = "search[mix]", "Step 5" = "click[< prev]", "Step 6" = "click[back to search]"}
"""  # noqa: E501 (inline tables of TOML take one line)
"""High precision searches at steps 1 and 4 and clicks elsewhere; low precision clicks something else at 2 and 5."""


@pytest.fixture(scope="module")
def agents() -> dict[str, ModuleType]:
    """The recipes as modules."""
    return {name: load_recipe(name) for name in ("collect_kl", "train_kl_st", "calibrate", "evaluate")}


@pytest.fixture(scope="module")
def data(agents, tmp_path_factory) -> Path:
    """Corridors whose KL is large exactly at fallen signs."""
    collected = tmp_path_factory.mktemp("kl")
    agents["collect_kl"].main(["--out", str(collected), *TOY])
    return write_critical(collected, tmp_path_factory.mktemp("critical"))


@pytest.fixture(scope="module")
def router(agents, data, tmp_path_factory) -> Path:
    """A router for them that has not learnt everything, so that its scores differ."""
    out = tmp_path_factory.mktemp("kl-st")
    agents["train_kl_st"].main(["--data", str(data), "--out", str(out), "--lr", "3e-3", "--epochs", "3", *TINY])
    return out / "router"


@pytest.fixture(scope="module")
def calibrated(agents, data, router, tmp_path_factory) -> Path:
    """What calibrate writes, with the shift and a check."""
    out = tmp_path_factory.mktemp("calibration")
    options = ["--router", str(router), "--out", str(out), "--data", str(data), "--resamples", "200"]
    agents["calibrate"].main([*options, "--check-panel", "validation", "--check-tasks", "8", *TOY])
    return out


def read(folder: Path) -> dict:
    """The record of a calibration."""
    record = json.loads((folder / "results.json").read_text())
    assert record.items() >= json.loads((folder / THRESHOLDS_FILE).read_text()).items()
    return record


def test_calibrate_writes_a_threshold_and_its_shares_for_each_budget(calibrated):
    """K = 0.2, 0.4 and 0.7 on 32 corridors; each realised share lies in its intervals, and a check stands beside it."""
    record = read(calibrated)
    calibration = record["calibration"]
    assert [t["budget"] for t in calibration["thresholds"]] == [0.2, 0.4, 0.7]
    values = [t["value"] for t in calibration["thresholds"]]
    assert values == sorted(values, reverse=True)
    for threshold, share in zip(calibration["thresholds"], calibration["shares"], strict=True):
        assert threshold["realised_share"] == pytest.approx(share["share"])
        assert share["n_episodes"] == 32
        assert share["n_steps"] == threshold["n_steps"] == record["pools"]["calibration"]["steps"]
        for interval in (share["binomial_ci"], share["episodes_ci"]):
            assert interval["low"] <= share["share"] <= interval["high"]
    assert [check["n_episodes"] for check in record["checks"]] == [8, 8, 8]
    assert set(record["calibration"]["models"]) == {"low", "high"}
    assert {"versions", "git", "python"} <= set(record)


def test_every_number_of_a_calibrations_tables_is_one_of_its_file(calibrated, tmp_path):
    """A line a budget with the check beside it, and a line a pool."""
    text = (calibrated / "tables.md").read_text()
    for t, check in zip(read(calibrated)["calibration"]["thresholds"], read(calibrated)["checks"], strict=True):
        assert f"| {100 * t['budget']:g} | {t['value']:.4g} | {t['tied_steps']} |" in text
        assert f" | {100 * check['share']:.1f} | [" in text
    assert "| training | " in text
    check_recorded(calibrated, tmp_path)


def test_calibrate_describes_both_pools_of_appendix_d(calibrated, data, router):
    """The training pool is the router's scores on the data's own histories; the picture shows both."""
    record, dataset = read(calibrated), KLDataset.load(data / "kl.safetensors")
    scores = training_scores(PrecisionRouter.load(router), dataset, "action", ())
    assert record["pools"]["training"] == describe_scores(scores)
    assert record["pools"]["calibration"] == record["calibration"]["scores"]
    assert (calibrated / "score_shift.png").read_bytes().startswith(b"\x89PNG")


def test_training_scores_are_those_of_the_full_pass_without_forced_and_uncounted_steps():
    """Trajectories of 3 and 2 steps, in batches of one: five scores in order, less searches and thoughts."""
    config = RouterConfig(embedding_dim=4, n_layers=1, d_model=8, n_heads=2, d_ff=8, max_length=4)
    router = PrecisionRouter(config).eval()
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    dataset = KLDataset(
        rows=rows,
        kl_action=np.zeros((5, 1), np.float32),
        kl_all=np.zeros((5, 1), np.float32),
        lengths=np.array([3, 2]),
        success=np.ones(2, dtype=bool),
        completion_tokens=np.ones(5, dtype=np.int64),
        step_types=("search", "click", "think", "click", "search"),
        task_ids=("a", "b"),
    )
    every = []
    for part in (rows[:3], rows[3:]):
        for t in range(len(part)):
            observation = np.zeros((1, 4, 4), np.float32)
            observation[0, : t + 1] = part[: t + 1]
            every.append(router.act(observation)[0, -1])
    every = np.array(every)
    np.testing.assert_allclose(training_scores(router, dataset, "all", (), batch_size=1), every, atol=1e-6)
    np.testing.assert_allclose(training_scores(router, dataset, "action", ()), every[[0, 1, 3, 4]], atol=1e-6)
    np.testing.assert_allclose(training_scores(router, dataset, "action", ("search",)), every[[1, 3]], atol=1e-6)


def test_evaluate_takes_the_thresholds_of_a_file(agents, router, calibrated, tmp_path, monkeypatch):
    """The calibration panel is not played again, and what is recorded is what the file says."""
    monkeypatch.setattr(agents["evaluate"], "calibrate_once", None)
    options = [
        "--router",
        str(router),
        "--out",
        str(tmp_path),
        "--tasks",
        "4",
        "--seeds",
        "1",
        "--resamples",
        "50",
    ]
    agents["evaluate"].main(
        [*options, "--thresholds", str(calibrated / THRESHOLDS_FILE), "--budgets", "0.7", "0.2", *TOY]
    )
    record = json.loads((tmp_path / "results.json").read_text())
    expected = {t["budget"]: t for t in read(calibrated)["calibration"]["thresholds"]}
    [found] = record["calibrations"]
    assert found["thresholds"] == [expected[0.7], expected[0.2]]
    assert found["scores"] == read(calibrated)["calibration"]["scores"]
    assert [row["policy"] for row in record["results"] if row["kind"] == "router"] == [
        "router K=0.70",
        "router K=0.20",
        "router p≥0.5",
    ]


def test_evaluate_and_calibrate_find_the_same_thresholds(agents, router, calibrated, tmp_path):
    """One calls what the other calls."""
    options = [
        "--router",
        str(router),
        "--out",
        str(tmp_path),
        "--tasks",
        "2",
        "--no-random",
        "--resamples",
        "50",
    ]
    agents["evaluate"].main([*options, *TOY])
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["calibrations"][0]["thresholds"] == read(calibrated)["calibration"]["thresholds"]


def test_ties_are_split_where_that_is_asked_for(agents, router, tmp_path):
    """The expected share is each budget exactly, and evaluate draws with the probabilities of the file."""
    options = ["--router", str(router), "--resamples", "50", "--budgets", "0.0", "0.25", "1.0", *TOY]
    agents["calibrate"].main([*options, "--out", str(tmp_path / "c"), "--split-ties", "--calibration-tasks", "7"])
    thresholds = read(tmp_path / "c")["calibration"]["thresholds"]
    assert [t["realised_share"] for t in thresholds] == pytest.approx([0.0, 0.25, 1.0])
    assert thresholds[0]["value"] is None  # infinity, which JSON does not have
    read_back = read_calibration(tmp_path / "c" / THRESHOLDS_FILE, PrecisionRouter.load(router)).thresholds
    assert math.isinf(read_back[0].value)
    assert read_back[1].tie_probability == thresholds[1]["tie_probability"] > 0


def test_a_calibration_is_not_overwritten_by_another(agents, router, calibrated):
    """Thresholds in use would change under whoever reads them."""
    with pytest.raises(ConfigError, match=r"was begun with other .*budgets.*: choose another --out"):
        agents["calibrate"].main(["--router", str(router), "--out", str(calibrated), "--budgets", "0.3", *TOY])


@pytest.mark.parametrize(
    ("change", "asked", "message"),
    [
        ({"router_digest": "0" * 64}, {}, "belongs to another router: expected digest .*, found 000000000000"),
        ({}, {"asked": ["search"]}, "was made with --force-high , not search"),
        ({}, {"budgets": [0.2, 0.3]}, r"has thresholds for the budgets \[0.2, 0.4, 0.7\], not for \[0.3\]"),
        ({"calibration": {"thresholds": 1}}, {}, "is no file of thresholds"),
    ],
)
def test_thresholds_that_do_not_fit_are_refused(router, calibrated, tmp_path, change, asked, message):
    """Of another router, with other forced steps, without a budget, or not thresholds at all."""
    write_json(tmp_path / "t.json", read(calibrated) | change)
    with pytest.raises(ConfigError, match=message):
        read_calibration(tmp_path / "t.json", PrecisionRouter.load(router), **asked)


@pytest.mark.parametrize("option", [["--split-ties"], ["--calibration-tasks", "3"]])
def test_what_a_file_of_thresholds_settles_is_not_asked_for_again(agents, router, calibrated, tmp_path, option):
    """An option without effect is a mistake."""
    options = ["--router", str(router), "--out", str(tmp_path), "--thresholds", str(calibrated / THRESHOLDS_FILE)]
    with pytest.raises(ConfigError, match="have no effect with --thresholds"):
        agents["evaluate"].main([*options, *option, *TOY])


def test_missing_thresholds_say_who_writes_them(router, tmp_path):
    """The way out is named."""
    with pytest.raises(ConfigError, match=r"no thresholds at .*: agents/calibrate\.py writes them"):
        read_calibration(tmp_path / "t.json", PrecisionRouter.load(router))


@pytest.mark.parametrize("recipe", ["calibrate", "evaluate"])
def test_forcing_a_type_that_no_step_has_is_refused(agents, router, tmp_path, recipe):
    """The toy world tells no type beforehand, so nothing would be forced; a typing mistake ends the same way."""
    options = ["--router", str(router), "--out", str(tmp_path), "--force-high", "search", "--calibration-tasks", "2"]
    with pytest.raises(ConfigError, match="no step was known beforehand to be of type search, so none was forced"):
        agents[recipe].main([*options, *TOY])


@pytest.fixture(scope="module")
def shop(agents, tmp_path_factory) -> Path:
    """A router that learnt from WebShop's clicks alone, its data, and a calibration of it."""
    out = tmp_path_factory.mktemp("shop")
    (out / "shop.toml").write_text(SHOP)
    world = ["--config", str(out / "shop.toml"), "--num-envs", "4"]
    agents["collect_kl"].main(["--out", str(out / "kl"), *world])
    options = ["--steps", "click", "--threshold", "0.2", "--lr", "3e-3", "--epochs", "3", *TINY]
    agents["train_kl_st"].main(["--data", str(out / "kl"), "--out", str(out / "st"), *options])
    options = ["--router", str(out / "st" / "router"), "--resamples", "50", *world]
    agents["calibrate"].main([*options, "--out", str(out / "calibration"), "--data", str(out / "kl")])
    return out


def test_clicks_alone_are_labelled_and_learnt_from(shop):
    """Of 12 episodes of two searches and four clicks 48 steps count, and the router says that it knows clicks."""
    dataset = KLDataset.load(shop / "kl" / "kl.safetensors")
    assert dataset.step_types[:6] == ("search", "click", "click", "search", "click", "click")
    record = json.loads((shop / "st" / "run.json").read_text())
    clicks = dataset.kl_action[[kind == "click" for kind in dataset.step_types], 0]
    assert len(clicks) == 48
    assert sum(record["label_counts"]) == 48 * 10 // 12  # two of twelve tasks are held out
    assert record["labelling"]["steps"] == "click"
    assert PrecisionRouter.load(shop / "st" / "router").trained_on["steps"] == "click"


def test_searches_are_forced_high_for_a_router_of_clicks(agents, shop, tmp_path, capsys):
    """By default, with a line that says so: no pool has them, they ask no router; random routing is forced alike."""
    record = read(shop / "calibration")
    assert record["calibration"]["forced"] == ["search"]
    assert record["pools"]["training"]["steps"] == 48
    assert record["pools"]["calibration"]["steps"] < 12 * 6
    options = [
        "--router",
        str(shop / "st" / "router"),
        "--out",
        str(tmp_path),
        "--tasks",
        "6",
        "--calibration-tasks",
        "6",
    ]
    options += ["--seeds", "1", "--resamples", "50", "--config", str(shop / "shop.toml"), "--num-envs", "4"]
    agents["evaluate"].main(options)
    assert (
        "search steps go to the highest precision: the router was trained on click steps alone"
        in capsys.readouterr().out
    )
    result = json.loads((tmp_path / "results.json").read_text())
    assert result["calibrations"][0]["forced"] == ["search"]
    for line in map(json.loads, (tmp_path / "episodes.jsonl").read_text().splitlines()):
        steps = line["steps"]
        if line["kind"] in ("router", "random"):
            assert steps[0]["precision"] == 1  # every episode begins on the start page
        if line["kind"] == "router":
            asked = [step["p_high"] is not None for step in steps]
            assert asked == [step["router_called"] for step in steps]
            assert not asked[0]
            assert any(asked)
            tokens_ms = sum(step["completion_tokens"] * (10.0, 20.0)[step["precision"]] for step in steps)
            assert line["time_s"] == pytest.approx((tokens_ms + 1.0 * sum(asked)) / 1000)


def test_the_default_of_forced_steps_can_be_turned_off(agents, shop, tmp_path, capsys):
    """--force-high without a type asks the router everywhere."""
    options = ["--router", str(shop / "st" / "router"), "--out", str(tmp_path), "--force-high", "--resamples", "50"]
    agents["calibrate"].main(
        [*options, "--config", str(shop / "shop.toml"), "--num-envs", "4", "--calibration-tasks", "6"]
    )
    assert read(tmp_path)["calibration"]["forced"] == []
    assert read(tmp_path)["pools"]["calibration"]["steps"] == 6 * 6
    assert "go to the highest precision" not in capsys.readouterr().out
