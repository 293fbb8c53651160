"""agents/evaluate.py on the toy world: what it plays, what it writes, and that a kill changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dmr_gym.evaluation
from dmr_gym.calibration import Threshold
from dmr_gym.errors import ConfigError
from dmr_gym.router import PrecisionRouter, RouterConfig
from dmr_gym.tasks.toy import best_actions
from tests.explained import check_recorded
from tests.recipes import TINY, TOY, Runs, kill_often, load_recipe, no_picture, one_thread, write_critical
from tests.toy_env import play, toy_env

__all__ = ["one_thread"]  # a fixture for all tests here

SMALL = ["--tasks", "12", "--calibration-tasks", "8", "--resamples", "200", "--seeds", "2", *TOY]
FILES = ("episodes.jsonl", "tables.md")


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The recipe as a module."""
    return load_recipe("evaluate")


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two routers of the same data and other seeds, which know the fallen signs."""
    root = tmp_path_factory.mktemp("routers")
    load_recipe("collect_kl").main(["--out", str(root / "kl"), *TOY])
    (root / "critical").mkdir()
    data = ["--data", str(write_critical(root / "kl", root / "critical")), "--lr", "3e-3", "--epochs", "12", *TINY]
    for seed in range(2):
        load_recipe("train_kl_st").main([*data, "--out", str(root / f"{seed}"), "--seed", str(seed)])
    return [str(root / f"{seed}" / "router") for seed in range(2)]


@pytest.fixture(scope="module")
def evaluated(recipe: ModuleType, routers: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What evaluate writes for one router."""
    out = tmp_path_factory.mktemp("evaluation")
    recipe.main(["--router", routers[0], "--out", str(out), *SMALL])
    return out


@pytest.fixture(autouse=True)
def quick(recipe: ModuleType, evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the evaluation that all tests share draws its picture."""
    monkeypatch.setattr(recipe, "draw_accuracy_latency", no_picture)


def read(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results and the lines of the episodes."""
    lines = (out / "episodes.jsonl").read_text().splitlines()
    return json.loads((out / "results.json").read_text()), [json.loads(line) for line in lines]


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """The rows of the result table by policy."""
    return {row["policy"]: row for row in read(out)[0]["results"]}


def test_the_router_lies_between_the_single_precisions(evaluated: Path) -> None:
    """High solves all, low nothing, and a good router all, with high precision at fallen signs alone."""
    rows = rows_of(evaluated)
    assert rows["always high"]["success"] == 1.0
    assert rows["always high"]["speedup_all"] == 1.0
    assert rows["always low"]["success"] == 0.0
    assert rows["always low"]["time_success_s"] is None
    routed, random = rows["router p≥0.5"], rows["random p≥0.5"]
    assert routed["success"] > 0.9 > random["success"]
    assert 0.1 < routed["shares"][1] < 0.5
    assert random["episodes"] == 2 * routed["episodes"] == 24
    assert [t["budget"] for t in read(evaluated)[0]["calibrations"][0]["thresholds"]] == [0.2, 0.4, 0.7]


def test_times_follow_equation_nine(evaluated: Path) -> None:
    """T = tokens at their price, plus the router's price at each step of routed episodes alone."""
    lines = read(evaluated)[1]
    assert len(lines) == (2 + 4 + 2 * 4) * 12
    for line in lines:
        steps = line["steps"]
        expected_ms = sum(step["completion_tokens"] * (14.58, 25.02)[step["precision"]] for step in steps)
        expected_ms += 19.90 * len(steps) * (line["kind"] == "router")
        assert math.isclose(line["time_s"], expected_ms / 1000, rel_tol=1e-9)
        assert math.isclose(
            line["time_s"], sum(step["latency_llm_s"] + step["latency_router_s"] for step in steps), rel_tol=1e-9
        )
        assert all((step["p_high"] is not None) == (line["kind"] == "router") for step in steps)


def test_each_point_is_compared_with_random_and_with_high(evaluated: Path) -> None:
    """Each of four operating points minus random and minus always high; differences are those of the rows."""
    record, rows = read(evaluated)[0], rows_of(evaluated)
    assert [d["minus"] for d in record["differences"][-2:]] == ["random p≥0.5", "always high"]
    assert len(record["differences"]) == 8
    for d in record["differences"]:
        mine, other = rows[d["policy"]], rows[d["minus"]]
        for column in ("success", "time_all_s", "mean_return"):
            assert math.isclose(d[column], mine[column] - other[column], abs_tol=1e-9)
            assert d[f"{column}_ci"]["low"] <= d[column] + 1e-9
            assert d[column] <= d[f"{column}_ci"]["high"] + 1e-9
        assert math.isclose(d["speedup_all"], other["time_all_s"] / mine["time_all_s"], rel_tol=1e-9)


def test_the_record_says_where_prices_come_from_and_what_decided(evaluated: Path) -> None:
    """The row of Table 3 and that it is projected, the digests, and both lines of the journal."""
    record = read(evaluated)[0]
    assert record["latency"]["label"] == "prices of alfworld-4b-gptq-w3, W3 projected"
    assert set(record["models"]) == {"low", "high"}
    assert record["routers"][0]["seeds"][0]["trained_on"]["env_id"] == "DMR-Toy-v0"
    start, end = map(json.loads, (evaluated / "journal.jsonl").read_text().splitlines())
    assert (start["event"], end["event"]) == ("start", "end")
    assert start["models"] == record["models"]
    assert {"versions", "git", "python"} <= set(start)
    assert end["episodes_played"] == (2 + 4 + 2 * 4) * 12
    from dmr_gym.runs import file_digest

    assert end["sha256"] == {name: file_digest(evaluated / name) for name in ("episodes.jsonl", "results.json")}


def test_the_tables_warn_of_the_biased_time(evaluated: Path) -> None:
    """EP time is over solved episodes alone, and the note below the table says what that does; the picture is there."""
    text = (evaluated / "tables.md").read_text()
    assert "| policy | success % | score | EP time, s | speedup | time of all, s | speedup | low / high % |" in text
    assert "It flatters a policy that solves only what is quick to solve" in text
    assert (evaluated / "accuracy_latency.png").read_bytes().startswith(b"\x89PNG")


def test_every_number_of_the_tables_is_one_of_the_results(evaluated: Path, tmp_path: Path) -> None:
    """Titles and notes too: the run can be put on the page of results."""
    check_recorded(evaluated, tmp_path)


def test_the_same_command_plays_nothing_and_writes_the_same(
    recipe: ModuleType, routers: list[str], evaluated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the panel nor the calibration panel is played again; only the journal grows."""
    monkeypatch.setattr(dmr_gym.evaluation, "rollout", None)
    monkeypatch.setattr("dmr_gym.deployment.rollout", None)
    names = (*FILES, "results.json")  # with the time that playing took
    before = [(evaluated / name).read_bytes() for name in names]
    recipe.main(["--router", routers[0], "--out", str(evaluated), *SMALL])
    assert [(evaluated / name).read_bytes() for name in names] == before
    *_, last = map(json.loads, (evaluated / "journal.jsonl").read_text().splitlines())
    assert last["episodes_played"] == 0


def test_a_larger_evaluation_plays_what_is_new(
    recipe: ModuleType, routers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two more tasks and another λ only the last batch of each policy is played; episodes are those of one go."""
    options = ["--router", routers[0], *SMALL[2:], "--batch", "4", "--budgets", "0.4", "--no-random"]
    calls: list[list[str]] = []
    real = dmr_gym.evaluation.rollout

    def counting(envs: Any, policy: Any, tasks: list[str], **rest: Any) -> Any:
        calls.append(tasks)
        return real(envs, policy, tasks, **rest)

    monkeypatch.setattr(dmr_gym.evaluation, "rollout", counting)
    recipe.main([*options, "--out", str(tmp_path / "a"), "--tasks", "8"])
    assert len(calls) == 4 * 2
    calls.clear()
    recipe.main([*options, "--out", str(tmp_path / "a"), "--tasks", "10", "--set", "lambda_=0.5"])
    assert [len(tasks) for tasks in calls] == [2] * 4
    recipe.main([*options, "--out", str(tmp_path / "b"), "--tasks", "10", "--set", "lambda_=0.5"])
    assert (tmp_path / "a" / "episodes.jsonl").read_bytes() == (tmp_path / "b" / "episodes.jsonl").read_bytes()


def test_a_stopped_evaluation_goes_on_and_ends_the_same(
    recipe: ModuleType, routers: list[str], evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at the start of its seventh batch it keeps six; started again it plays the rest."""
    real, calls = dmr_gym.evaluation.rollout, []

    def dying(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    options = ["--router", routers[0], "--out", str(tmp_path), *SMALL]
    monkeypatch.setattr(dmr_gym.evaluation, "rollout", dying)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(options)
    assert len([path for path in (tmp_path / "batches").iterdir() if not path.match("*.part.jsonl")]) == 6
    assert not (tmp_path / "episodes.jsonl").exists()
    recipe.main(options)
    assert (tmp_path / "episodes.jsonl").read_bytes() == (evaluated / "episodes.jsonl").read_bytes()
    assert len(calls) == 7 + 14 - 6


@pytest.mark.slow
def test_an_evaluation_killed_again_and_again_has_the_same_results(
    recipe: ModuleType, routers: list[str], tmp_path: Path
) -> None:
    """Twelve kills at random moments, also within batches: every number is that of a run that was left alone."""
    options = ["--router", *routers, *SMALL, "--tasks", "32", "--batch", "4"]
    with Runs("evaluate", tmp_path / "log") as runs:
        assert runs.run([*options, "--out", str(tmp_path / "whole")]) == 0

        def check() -> None:
            for name in ("episodes.jsonl", "tables.md"):
                assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
            one, other = (read(tmp_path / name)[0] for name in ("killed", "whole"))
            own = ("settings", "env", "process_s")
            assert {k: v for k, v in one.items() if k not in own} == {k: v for k, v in other.items() if k not in own}

        argv = [*options, "--out", str(tmp_path / "killed")]
        kill_often(runs, argv, tmp_path / "killed", "batches/[!.]*", kills=12, check=check, end="tables.md")


def test_seeds_have_routers_of_their_own(recipe: ModuleType, routers: list[str], tmp_path: Path) -> None:
    """Two routers are the two seeds of each routed policy; single precisions, without chance, are played once."""
    recipe.main(["--router", *routers, "--out", str(tmp_path), *SMALL, "--budgets", "0.4"])
    record, lines = read(tmp_path)
    rows = {row["policy"]: row for row in record["results"]}
    assert [rows[name]["episodes"] for name in ("always high", "router K=0.40", "random K=0.40")] == [12, 24, 24]
    assert len(record["calibrations"]) == 2
    by_seed = rows["router K=0.40"]["seeds"]
    assert [each["seed"] for each in by_seed] == [0, 1]
    assert sum(each["success"] for each in by_seed) / 2 == pytest.approx(rows["router K=0.40"]["success"])
    scores = [[s["p_high"] for s in line["steps"]] for line in lines if line["policy"] == "router p≥0.5"]
    assert scores[:12] != scores[12:]


def test_sampled_completions_are_played_with_every_seed(recipe: ModuleType, routers: list[str], tmp_path: Path) -> None:
    """At a temperature above 0 the seed is the sample index of every policy, single precisions too."""
    options = ["--set", "sampling.temperature=0.5", "--tasks", "2", "--budgets", "0.4", "--no-random"]
    recipe.main(["--router", routers[0], "--out", str(tmp_path), *SMALL, *options])
    assert [row["episodes"] for row in read(tmp_path)[0]["results"]] == [4] * 4


def test_trained_routers_join_the_selection(recipe: ModuleType, routers: list[str], tmp_path: Path) -> None:
    """The paper's pool: three budgets, three λ, and both single precisions; returns at every λ."""
    trained = [part for x in ("0.05", "0.1", "0.3") for part in ("--grpo", x, routers[1])]
    recipe.main(["--router", routers[0], "--out", str(tmp_path), *SMALL, *trained, "--ppo", "0.1", *routers])
    record = read(tmp_path)[0]
    assert [row["lambda"] for row in record["results"] if row["kind"] == "grpo"] == [0.05, 0.1, 0.3]
    assert [row["episodes"] for row in record["results"] if row["kind"] == "ppo"] == [24]
    pool = record["selection"]["solved"]["names"]
    assert pool[:5] == ["always high", "always low", *(f"router K={k}" for k in ("0.20", "0.40", "0.70"))]
    assert pool[5:] == ["GRPO λ=0.05", "GRPO λ=0.1", "GRPO λ=0.3"]
    assert set(record["selection"]["solved"]["best"]) <= set(pool[2:])
    assert sorted({row["lambda"] for row in record["returns"]}) == [0.05, 0.1, 0.2, 0.3]
    # GRPO takes the likeliest precision, which between two is the one above 0.5.
    greedy = [line["steps"] for line in read(tmp_path)[1] if line["policy"] == "GRPO λ=0.1"]
    assert all(s["precision"] == (s["p_high"] >= 0.5) for steps in greedy for s in steps)


def test_where_training_began_is_played_as_what_was_trained(
    recipe: ModuleType, routers: list[str], evaluated: Path, tmp_path: Path
) -> None:
    """At its likeliest precision: the episodes of GRPO with the same router; forced and selected it is not."""
    options = ["--start", *routers, "--grpo", "0.1", *routers, "--ppo", "0.1", routers[0], "--budgets", "0.4"]
    recipe.main(["--router", routers[0], "--out", str(tmp_path), *SMALL, *options])
    record, lines = read(tmp_path)
    names = [row["policy"] for row in record["results"]]
    assert names[6:10] == ["KL-ST start", "random KL-ST start", "GRPO λ=0.1", "random GRPO λ=0.1"]
    steps = {name: [line["steps"] for line in lines if line["policy"] == name] for name in names}
    assert steps["KL-ST start"] == steps["GRPO λ=0.1"]
    assert len(steps["KL-ST start"]) == 24
    assert record["selection"]["all"]["names"] == [*names[:3], "GRPO λ=0.1"]
    assert [team["kind"] for team in record["routers"]] == ["router", "start", "grpo", "ppo"]
    minus = [(d["minus"], d["success"]) for d in record["differences"] if d["policy"] == "GRPO λ=0.1"]
    assert [name for name, _ in minus][:2] == ["random GRPO λ=0.1", "always high"]
    assert minus[3] == ("KL-ST start", 0.0)
    assert [d["minus"] for d in record["differences"] if d["policy"] == "KL-ST start"] == [
        "random KL-ST start",
        "always high",
    ]
    assert "the router that they began from" in (tmp_path / "tables.md").read_text()


def test_nothing_is_forced_where_training_began(recipe: ModuleType) -> None:
    """Of the same router, trained on clicks alone, K = 0.4 and 0.5 send searches to the highest precision."""
    router = PrecisionRouter(RouterConfig(embedding_dim=4, n_layers=1, d_model=8, n_heads=1, d_ff=8))
    teams = [recipe.Team(kind, (router,), λ) for kind, λ in (("router", None), ("start", None), ("grpo", 0.1))]
    threshold = Threshold(0.4, 0.7, 0.4, 10)
    calibration = recipe.Calibration("click", ("search",), {}, (threshold,), (), {})
    found = recipe.contenders(teams, [calibration], 2, True)
    assert [(c.name, c.kind, forced) for c, forced in found] == [
        ("router K=0.40", "router", ("search",)),
        ("router p≥0.5", "router", ("search",)),
        ("KL-ST start", "start", ()),
        ("GRPO λ=0.1", "grpo", ()),
    ]
    assert [c.identities[0]["forced"] for c, _ in found] == [["search"], ["search"], [], []]


def test_the_gap_to_an_oracle_is_what_its_returns_say(recipe: ModuleType, routers: list[str], tmp_path: Path) -> None:
    """The oracle goes up at fallen signs alone: a good router is near, a policy that solves nothing far away."""
    env, best = toy_env(task_kwargs={"panel": "test"}), {}
    for task in env.task_ids[:12]:
        env.reset(options={"task_id": task})
        steps = play(env, best_actions(task))
        seconds = sum(step[4]["latency_s"] for step in steps)
        best[task] = {"return": 1 - 0.2 * seconds, "success": True, "time_s": seconds}
    (tmp_path / "oracle.json").write_text(json.dumps({"0.2": best}))
    options = ["--oracle", str(tmp_path / "oracle.json"), "--no-random"]
    recipe.main(["--router", routers[0], "--out", str(tmp_path / "out"), *SMALL, *options])
    record = read(tmp_path / "out")[0]
    mean = sum(task["return"] for task in best.values()) / 12
    for row in record["returns"]:
        assert row["oracle_gap"] == pytest.approx(mean - row["mean_return"])
    gaps = {row["policy"]: row["oracle_gap"] for row in record["returns"]}
    assert gaps["router p≥0.5"] < 0.05 < mean < gaps["always low"]
    assert "oracle − this" in (tmp_path / "out" / "tables.md").read_text()
    assert rows_of(tmp_path / "out")["always low"]["pareto_distance_oracle"] > 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budgets", "0.2", "1.5"], r"--budgets are shares of steps in \[0, 1\], got 1.5"),
        (["--budgets", "nan"], r"--budgets are shares of steps in \[0, 1\], got nan"),
        (["--budgets", "0.2", "0.20"], "--budgets must differ"),
        (["--resamples", "0"], "--resamples must be at least 1, got 0"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--tasks", "1000"], "the panel has 32 tasks, but 1000 were asked for"),
        (["--lambdas", "-1"], "--lambdas must be finite numbers of at least 0"),
        (["--grpo", "runs/x"], "--grpo takes λ and a folder or more, such as --grpo 0.1 DIR, got runs/x"),
        (["--grpo", "0.1", "a", "--grpo", "0.10", "b"], "--grpo names a λ twice"),
        (["--start", "a", "b"], "one router or one for each of 3 --seeds, got 2"),
        (["--grpo", "0.1", "a", "b"], "one router or one for each of 3 --seeds, got 2"),
        (["--alternatives", "--no-texts"], "--alternatives are texts"),
        (["--alternatives", "0"], "--alternatives takes a number of tasks of at least 1, or all, got '0'"),
        (["--oracle", "nowhere.json"], "no oracle at nowhere.json"),
        (["--thresholds", "a", "b"], "--thresholds needs one file a router: 2 for 1"),
        (["--set", "encoder.dim=32"], "step embeddings of width 64, but the environment's encoder gives 32"),
        (["--set", 'precisions=["high", "low"]'], r"trained on the precisions \['low', 'high'\]"),
        (["--set", 'precisions=["a", "b", "c"]'], "chooses among 2 precisions"),
    ],
)
def test_mistakes_end_it_before_anything_is_played(
    recipe: ModuleType,
    routers: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    """Numbers out of range, and a router that does not fit."""
    monkeypatch.setattr(dmr_gym.evaluation, "rollout", None)
    monkeypatch.setattr("dmr_gym.deployment.rollout", None)
    with pytest.raises(ConfigError, match=message):
        recipe.main(["--router", routers[0], "--out", str(tmp_path), *TOY, *options])


def test_budgets_that_two_digits_cannot_tell_apart_get_more(recipe: ModuleType) -> None:
    """No policy overwrites another's episodes."""
    assert [recipe.budget_text(k) for k in (0.2, 0.201, 0.2049, 1.0)] == ["0.20", "0.201", "0.2049", "1.00"]
