"""agents/build_trees.py, agents/tree_report.py, and recipes that play on trees."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recipes import TINY, TOY, Runs, load_recipe

from bench import bench_tree
from dmr_gym.backends import ScriptedBackend
from dmr_gym.command_line import add_env_options, chosen_env, make_envs, recipe_parser
from dmr_gym.errors import ConfigError
from dmr_gym.oracle_origin import MADE_FOR
from dmr_gym.router import PrecisionRouter
from dmr_gym.tree.graph import load_trees, trees_digest
from dmr_gym.tree.replay import TreeVectorEnv
from dmr_gym.tree.report import matching_kls
from dmr_gym.tree.values import best_actions, best_values
from tests.explained import check_recorded

SMALL = [*TOY, "--set", "max_steps=10", "--set", "task_kwargs.num_signs=4"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trees of six tasks of each panel."""
    out = tmp_path_factory.mktemp("trees")
    for panel in ("train", "validation", "calibration", "test"):
        load_recipe("build_trees").main([*SMALL, "--out", str(out), "--panel", panel, "--tasks", "6"])
    return out


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def test_trees_are_written_with_what_they_show(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six complete trees, an index of them, and the oracle above both precisions; again, nothing is built."""
    trees = load_trees(built / "test")
    assert [tree.task_id for tree in trees] == list(read(built / "test" / "index.json")["trees"])
    assert all(tree.is_complete for tree in trees)
    run = read(built / "test" / "run.json")
    assert (run["built_now"], run["summary"]["complete"], run["summary"]["trees"]) == (6, 6, 6)
    low, high = run["summary"]["oracle_return"]
    assert low == pytest.approx(high)
    assert low > max(run["summary"]["always_high_return"][0], run["summary"]["always_low_return"][0])
    assert run["settings"]["models"].keys() == {"low", "high"}
    load_recipe("build_trees").main([*SMALL, "--out", str(built), "--tasks", "6"])
    assert read(built / "test" / "run.json")["built_now"] == 0
    assert "6 of 6 trees are complete" in capsys.readouterr().out


def test_other_budgets_grow_anew_and_other_worlds_are_refused(tmp_path: Path) -> None:
    """The same folder takes another budget, but no other step cap."""
    recipe = load_recipe("build_trees")
    options = [*SMALL, "--out", str(tmp_path), "--tasks", "2"]
    recipe.main([*options, "--budget", "5"])
    assert [tree.expanded for tree in load_trees(tmp_path / "test")] == [5, 5]
    recipe.main([*options, "--budget", "40", "--tasks", "3"])
    assert [tree.is_complete or tree.expanded == 40 for tree in load_trees(tmp_path / "test")] == [True] * 3
    with pytest.raises(ConfigError, match="begun with other env"):
        recipe.main([*options, "--set", "max_steps=11"])
    with pytest.raises(ConfigError, match="the panel has 32 tasks, but 33 were asked for"):
        recipe.main([*options, "--tasks", "33"])
    recipe.main([*options, "--skip-tasks", "2"])
    assert [tree.task_id for tree in load_trees(tmp_path / "test")] == ["toy-test-002", "toy-test-003"]
    assert read(tmp_path / "test" / "run.json")["built_now"] == 2
    with pytest.raises(ConfigError, match="no trees of 1 tasks"):
        load_trees(tmp_path / "test", ["toy-test-009"])


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Killed and stopped in the middle and run again, the files are those of a run that was left alone."""
    options = [*TOY, "--tasks", "12", "--budget", "400"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    load_recipe("build_trees").main([*options, "--out", str(whole)])
    argv = [*options, "--out", str(broken)]

    def done() -> int:
        return len(list(broken.glob("test/trees/[!.]*")))

    with Runs("build_trees", tmp_path / "log.txt") as runs:
        assert runs.run(argv, lambda seconds: seconds > 60 or done() > 0, signal.SIGKILL) == -signal.SIGKILL
        begun = done()
        assert 0 < begun < 12
        stopped = runs.run(argv, lambda seconds: seconds > 60 or done() > begun, signal.SIGTERM)
        assert stopped in (0, 128 + signal.SIGTERM)
        assert runs.run(argv) == 0
    names = sorted(path.name for path in (whole / "test" / "trees").iterdir())
    for name in names:
        assert (whole / "test" / "trees" / name).read_bytes() == (broken / "test" / "trees" / name).read_bytes()
    assert names == sorted(path.name for path in (broken / "test" / "trees").glob("[!.]*"))


def env_args(*options: str) -> Any:
    """The environment options of a recipe."""
    parser = recipe_parser("A recipe.")
    add_env_options(parser)
    return parser.parse_args([*SMALL, *options])


def test_recipes_play_on_trees(built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--trees makes an environment on them, which earns what the real one does; cut trees are told."""
    _, config = chosen_env(env_args("--trees", str(built)))
    envs = make_envs(config, "test", 2)
    assert isinstance(envs, TreeVectorEnv)
    assert capsys.readouterr().out == ""
    _, real_config = chosen_env(env_args())
    real = make_envs(real_config, "test", 2)
    for each in (envs, real):
        each.reset(options={"task_id": list(real.task_ids[:2])})
    for _ in range(3):
        ours, theirs = envs.step(np.array([0, 1])), real.step(np.array([0, 1]))
        assert ours[0].tobytes() == theirs[0].tobytes()
        assert ours[1].tolist() == theirs[1].tolist()
    assert [envs.backend.digest(name) for name in ("low", "high")] == [
        real.backend.digest(name) for name in ("low", "high")
    ]
    load_recipe("build_trees").main([*SMALL, "--out", str(tmp_path), "--tasks", "3", "--budget", "12"])
    make_envs(chosen_env(env_args("--trees", str(tmp_path)))[1], "test", 1)
    assert "warning: 3 of 3 trees of test are cut off" in capsys.readouterr().out


def test_trees_of_another_world_are_refused(built: Path) -> None:
    """Other settings of the world, another panel, and live parts of a recipe's own."""
    _, config = chosen_env(env_args("--trees", str(built), "--set", "task_kwargs.num_signs=5"))
    with pytest.raises(ConfigError, match="was built with task_kwargs"):
        make_envs(config, "test", 1)
    with pytest.raises(ConfigError, match="no routing trees in"):
        make_envs(chosen_env(env_args("--trees", str(built)))[1], "other", 1)
    with pytest.raises(ConfigError, match="no place for a backend of the recipe's own: leave it out here"):
        make_envs(chosen_env(env_args("--trees", str(built)))[1], "test", 1, backend=ScriptedBackend({}))


def test_collecting_asks_an_llm_and_offers_no_trees(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The option is unknown there."""
    with pytest.raises(SystemExit, match="2"):
        load_recipe("collect_kl").main([*SMALL, "--trees", str(built), "--panel", "test", "--out", str(tmp_path)])
    assert "unrecognized arguments: --trees" in capsys.readouterr().err


def test_trainings_and_calibrations_claim_the_trees_they_play_on(built: Path, tmp_path: Path) -> None:
    """Trees that were built anew with another budget are others, and a training on them does not go on."""
    trees, digests = tmp_path / "trees", {}
    shutil.copytree(built, trees)
    grpo = [*SMALL, *TINY, "--trees", str(trees), "--out", str(tmp_path / "grpo"), "--groups", "2", "--updates", "1"]
    load_recipe("train_grpo").main(grpo)
    router = ["--router", str(tmp_path / "grpo" / "router")]
    calibrate = [*SMALL, *router, "--trees", str(trees), "--out", str(tmp_path / "calibration")]
    load_recipe("calibrate").main(calibrate)
    for name in ("grpo", "calibration"):
        claimed = read(tmp_path / name / "args.json")
        assert claimed["encoder"] == PrecisionRouter.load(tmp_path / "grpo" / "router").trained_on["encoder"]
        digests |= claimed["trees_digest"]
    assert digests == {panel: trees_digest(trees / panel) for panel in ("train", "validation", "calibration")}
    for panel in ("train", "calibration"):
        load_recipe("build_trees").main([*SMALL, "--out", str(trees), "--panel", panel, "--tasks", "5"])
    with pytest.raises(ConfigError, match="begun with other trees_digest"):
        load_recipe("train_grpo").main([*grpo, "--resume"])
    with pytest.raises(ConfigError, match="begun with other trees_digest"):
        load_recipe("calibrate").main(calibrate)


def test_reports_of_another_world_are_refused_before_anything_is_valued(built: Path, tmp_path: Path) -> None:
    """Another environment, or another step cap, also where policies play live."""
    report = load_recipe("tree_report")
    with pytest.raises(ConfigError, match="has precisions"):
        report.main(["--trees", str(built), "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match="has max_steps"):
        report.main([*SMALL, "--trees", str(built), "--out", str(tmp_path), "--live", "--set", "max_steps=20"])


def test_a_damaged_tree_grows_anew(built: Path, tmp_path: Path) -> None:
    """What the message about it advises: the same command builds it again."""
    out = tmp_path / "trees"
    shutil.copytree(built, out)
    whole = load_trees(out / "test")
    damaged = next((out / "test" / "trees").iterdir())
    damaged.write_bytes(b"????")
    with pytest.raises(ConfigError, match="damaged; build it again"):
        load_trees(out / "test")
    load_recipe("build_trees").main([*SMALL, "--out", str(out), "--tasks", "6"])
    assert read(out / "test" / "run.json")["built_now"] == 1
    assert [tree.expanded for tree in load_trees(out / "test")] == [tree.expanded for tree in whole]
    (out / "test" / "index.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"index\.json is damaged"):
        load_trees(out / "test")


def test_prices_that_trees_cannot_have_are_refused_before_any_tree_grows(tmp_path: Path) -> None:
    """An evening of LLM calls would otherwise end in the message."""
    latency = ["--set", 'latency={kind = "wall-clock"}']
    with pytest.raises(ConfigError, match="by its tokens alone"):
        load_recipe("build_trees").main([*SMALL, *latency, "--out", str(tmp_path), "--tasks", "2"])
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture(scope="module")
def trained(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A router that GRPO has trained on trees for two updates."""
    out = tmp_path_factory.mktemp("grpo")
    options = ["--trees", str(built), "--out", str(out), "--groups", "2", "--updates", "2"]
    load_recipe("train_grpo").main([*SMALL, *TINY, *options])
    return out


def test_routers_are_trained_and_evaluated_on_trees(built: Path, trained: Path, tmp_path: Path) -> None:
    """GRPO and the evaluation, calibration included, need no LLM; the numbers are those of the real environment."""
    results = []
    for options in (["--trees", str(built)], []):
        out = tmp_path / str(len(results))
        tasks = ["--tasks", "6", "--calibration-tasks", "6", "--seeds", "1", "--resamples", "20"]
        router = ["--router", str(trained / "router"), "--out", str(out)]
        load_recipe("evaluate").main([*SMALL, *options, *router, *tasks])
        results.append(read(out / "results.json")["results"])
    assert results[0] == results[1]


def test_the_evaluation_reads_the_oracle_that_the_report_writes(built: Path, trained: Path, tmp_path: Path) -> None:
    """No policy beats it on the tasks that were played, and it is the oracle of these tasks alone."""
    report = ["--trees", str(built), "--out", str(tmp_path / "report"), "--lambdas", "0.5", "--random-seeds", "0"]
    load_recipe("tree_report").main([*SMALL, *report])
    oracle = read(tmp_path / "report" / "oracle.json")
    assert {len(tasks) for key, tasks in oracle.items() if key != MADE_FOR} == {6}
    run = [
        "--router",
        str(trained / "router"),
        "--trees",
        str(built),
        "--out",
        str(tmp_path / "evaluation"),
        "--tasks",
        "4",
    ]
    run += ["--calibration-tasks", "6", "--oracle", str(tmp_path / "report" / "oracle.json"), "--lambdas", "0.5"]
    load_recipe("evaluate").main([*SMALL, *run, "--seeds", "1", "--resamples", "20"])
    found = read(tmp_path / "evaluation" / "results.json")
    routed = {row["policy"] for row in found["results"] if row["kind"] == "router"}
    gaps = [row["oracle_gap"] for row in found["returns"] if row["policy"] in routed and "oracle_gap" in row]
    assert gaps
    assert min(gaps) >= -1e-9
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"0.5": {"absent": {"return": 1.0, "success": True, "time_s": 0.0}}}), encoding="utf-8")
    run[run.index("--oracle") + 1] = str(other)
    with pytest.raises(ConfigError, match="lacks 4 of the 4 tasks"):
        load_recipe("evaluate").main([*SMALL, *run, "--seeds", "1"])


def test_an_oracle_of_other_prices_or_models_is_refused(built: Path, trained: Path, tmp_path: Path) -> None:
    """Before anything is played; the file says what it was made for."""
    report = ["--trees", str(built), "--out", str(tmp_path / "report"), "--random-seeds", "0"]
    load_recipe("tree_report").main([*SMALL, *report])
    path = tmp_path / "report" / "oracle.json"
    run = ["--router", str(trained / "router"), "--trees", str(built), "--out", str(tmp_path / "evaluation")]
    run += ["--calibration-tasks", "6", "--oracle", str(path), "--tasks", "4", "--seeds", "1"]
    dear = ["--set", "latency={ms_per_token={low=1.0, high=90.0}, router_ms=1.0}"]
    with pytest.raises(ConfigError, match="was made for other prices"):
        load_recipe("evaluate").main([*SMALL, *run, *dear])
    oracle = read(path)
    oracle[MADE_FOR]["models"]["low"] = "another"
    path.write_text(json.dumps(oracle), encoding="utf-8")
    with pytest.raises(ConfigError, match="was made for other models of low"):
        load_recipe("evaluate").main([*SMALL, *run])
    assert not (tmp_path / "evaluation" / "episodes.jsonl").exists()


def test_an_evaluation_on_cut_trees_is_refused_and_rebuilt_trees_are_played_anew(
    built: Path, trained: Path, tmp_path: Path
) -> None:
    """An episode that leaves a cut tree is no failure; and what was saved belongs to the trees it was played on."""
    trees, out = tmp_path / "trees", tmp_path / "evaluation"
    shutil.copytree(built, trees)
    run = [*SMALL, "--router", str(trained / "router"), "--trees", str(trees), "--out", str(out), "--no-random"]
    run += ["--tasks", "6", "--calibration-tasks", "6", "--seeds", "1", "--resamples", "20"]
    build = [*SMALL, "--out", str(trees), "--tasks", "6"]
    evaluate, build_trees = load_recipe("evaluate"), load_recipe("build_trees")
    evaluate.main(run)
    ended = read_journal(out)
    assert ended["episodes_played"] > 0
    evaluate.main(run)
    assert read_journal(out)["episodes_played"] == 0
    build_trees.main([*build, "--budget", "5"])
    with pytest.raises(ConfigError, match=r"6 of 6 trees of test are cut off.*more --budget"):
        evaluate.main(run)
    build_trees.main([*build, "--budget", "4000"])
    evaluate.main(run)
    assert read_journal(out)["episodes_played"] == ended["episodes_played"]


def read_journal(folder: Path) -> Any:
    """The last line of an evaluation's journal."""
    return json.loads((folder / "journal.jsonl").read_text(encoding="utf-8").splitlines()[-1])


@pytest.mark.slow
def test_ppo_trains_and_resumes_on_trees(built: Path, tmp_path: Path) -> None:
    """Snapshots of trees carry a stopped run on to the router of one that was left alone."""
    options = ["--trees", str(built), "--n-steps", "8", "--minibatch-size", "16", "--checkpoint-every", "1"]
    options += ["--updates", "6", "--validation-tasks", "4"]
    whole, stopped = ([*SMALL, *TINY[:8], *options, "--out", str(tmp_path / name)] for name in ("whole", "stopped"))

    def has_saved(seconds: float) -> bool:
        return seconds > 60 or (tmp_path / "stopped" / "state.safetensors").exists()

    with Runs("train_ppo", tmp_path / "log.txt") as runs:
        assert runs.run(whole) == 0
        assert runs.run(stopped, has_saved, signal.SIGTERM) == 128 + signal.SIGTERM
        assert runs.run([*stopped, "--resume"]) == 0
    digests = [read(tmp_path / name / "run.json")["router_digest"] for name in ("whole", "stopped")]
    assert digests[0] == digests[1]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KLs of the test panel."""
    out = tmp_path_factory.mktemp("kl")
    load_recipe("collect_kl").main([*SMALL, "--panel", "test", "--tasks", "6", "--out", str(out)])
    return out


@pytest.mark.parametrize("live", [False, True])
def test_the_report_has_the_oracle_above_everybody(
    built: Path, trained: Path, labelled: Path, tmp_path: Path, live: bool
) -> None:
    """Policies, steps, labels and the picture; regrets are differences to the oracle; corridors' KLs are right."""
    options = ["--trees", str(built), "--kl", str(labelled), "--grpo", str(trained / "router"), "--random-seeds", "2"]
    options += ["--threshold", "0.25"]
    load_recipe("tree_report").main(
        [*SMALL, *options, "--out", str(tmp_path), "--resamples", "50", *(["--live"] if live else [])]
    )
    report = read(tmp_path / "results.json")
    rows = {row["policy"]: row for row in report["results"]}
    name = f"{trained.name} p≥0.5"
    assert list(rows) == [
        "oracle",
        "always high",
        "always low",
        "lowest that agrees",
        name,
        f"random like {name}",
    ]
    trees, here = load_trees(built / "test"), rows["oracle"]["by_lambda"]["0.2"]
    assert here["return"] == pytest.approx(report["oracle"]["0.2"])
    for row in rows.values():
        for x, at in row["by_lambda"].items():
            assert at["return"][0] + at["regret"][1] == pytest.approx(report["oracle"][x][1])
        assert row["left_tree"] == 0
    assert rows["lowest that agrees"]["by_lambda"]["0.2"]["regret"][0] == pytest.approx(0, abs=1e-9)
    assert rows["always low"]["by_lambda"]["0.2"]["regret"][0] > 0.3
    steps = report["steps_of_highest"]["0.2"]["best"]
    assert steps["critical"][0] == pytest.approx(1 - steps["same"])
    [label] = report["kl_labels"]
    assert label["average_precision"] == pytest.approx(1.0)
    assert rows[name]["kind"] == "grpo"
    perfect = {"labelled": label["critical"], "precision": 1.0, "recall": 1.0}
    perfect |= {"precision_ci": [1.0, 1.0], "recall_ci": [1.0, 1.0]}
    assert label["actions_differ"] == {"threshold": 0.5, **perfect}
    assert label["kl_st"] == {"threshold": 0.25, **perfect}
    lines = [json.loads(line) for line in (tmp_path / "decisions.jsonl").read_text().splitlines()]
    assert len(lines) == steps["steps"] == sum(len(tree.fixed_path(1)) for tree in trees)
    assert all((line["kl"][0] > 0.3) == (not line["same"]) == bool(line["critical"][0]) for line in lines)
    assert (tmp_path / "tree_report.png").stat().st_size > 10_000
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert (
        f"| always low | {100 * rows['always low']['success']:.1f} | {rows['always low']['time_s']:.2f} | 0 |" in text
    )
    assert f"| λ=0.2, then best | {steps['steps']} | {100 * steps['same']:.1f} |" in text
    assert "| low: KL > 0.25 nats, τ of KL-ST |" in text
    check_recorded(tmp_path, tmp_path)


def test_the_report_bounds_what_cut_trees_hide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random routing leaves small trees: its regret has bounds, and the table says so."""
    load_recipe("build_trees").main([*SMALL, "--out", str(tmp_path), "--tasks", "4", "--budget", "22"])
    load_recipe("tree_report").main([*SMALL, "--trees", str(tmp_path), "--out", str(tmp_path), "--resamples", "20"])
    rows = {row["policy"]: row for row in read(tmp_path / "results.json")["results"]}
    assert rows["random"]["left_tree"] > 0
    low, high = rows["random"]["by_lambda"]["0.2"]["regret"]
    assert low < high
    assert rows["always high"]["left_tree"] == 0
    printed = capsys.readouterr().out
    assert "random *" in printed
    assert f"{low:.3f} to {high:.3f} [" in printed
    assert "no KLs: --kl compares labels" in printed
    check_recorded(tmp_path, tmp_path)


def test_mistakes_of_the_report_are_refused(built: Path, labelled: Path, tmp_path: Path) -> None:
    """No trees, thresholds of nobody, KLs of other episodes."""
    recipe = load_recipe("tree_report")
    with pytest.raises(ConfigError, match="needs --trees"):
        recipe.main([*SMALL, "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match="name it with --router"):
        recipe.main([*SMALL, "--out", str(tmp_path), "--trees", str(built), "--thresholds", "thresholds.json"])
    train = ["--trees", str(built), "--panel", "train", "--kl", str(labelled), "--out", str(tmp_path)]
    with pytest.raises(ConfigError, match=r"the KLs have no episode of toy-train-000 with \d+ steps"):
        recipe.main([*SMALL, *train])
    with pytest.raises(ConfigError, match="collect them with agents/collect_kl"):
        matching_kls(load_trees(built / "test"), [_one_decision()] * 6, {})


def _one_decision() -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(actions=np.zeros(1, dtype=np.int64))


def test_the_oracle_of_files_is_the_oracle(built: Path) -> None:
    """Trees from files name the best routing of a corridor: high at fallen signs."""
    from dmr_gym.tasks.toy import best_actions as known

    _, config = chosen_env(env_args())
    from dmr_gym.latency import make_latency_model
    from dmr_gym.tree.values import Prices

    prices = Prices(make_latency_model(config.latency, config.precisions), config.lambda_)
    for tree in load_trees(built / "test"):
        assert tuple(best_actions(tree, best_values(tree, prices))) == known(tree.task_id, 4)


def test_steps_on_trees_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Cached environment, trees and views, in both sizes, and rollouts of the first two."""
    figures = bench_tree.main(["--env", "DMR-Toy-v0", "--set", "max_steps=8", "--tasks", "2", "--steps", "320"])
    speeds = figures["steps_per_second"]
    assert set(speeds) == {"cached", "trees", "trees, views"}
    assert all(value > 0 for row in speeds.values() for value in row.values())
    assert "rollout, batch of 16" in capsys.readouterr().out
