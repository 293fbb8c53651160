"""agents/report.py: runs are found and read, texts cannot leave their place, and what is missing is named."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dmr_gym.command_line import settings_of
from dmr_gym.errors import ConfigError
from dmr_gym.figures import STYLES
from dmr_gym.kl_dataset import KLDataset
from dmr_gym.latency import make_latency_model
from dmr_gym.oracle_origin import MADE_FOR
from dmr_gym.report import page
from dmr_gym.report.page import SCRIPTS, embed, render
from dmr_gym.report.runs import find_runs
from dmr_gym.report.steps import LONGEST_TEXT, Viewer, choose_tasks
from dmr_gym.report.trees import outcomes
from dmr_gym.report.worlds import _with_alternatives, read_worlds
from dmr_gym.results import read_oracle
from dmr_gym.runs import write_json
from dmr_gym.tree.graph import load_trees
from dmr_gym.tree.values import Prices, best_values
from dmr_gym.types import LLMCall
from tests.recipes import TINY, TOY, load_recipe, no_picture, one_thread, write_critical
from tests.report_runs import episode, step, two_ways, write_evaluation

__all__ = ["one_thread"]  # a fixture for all tests here

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "\"'`${window.hacked = 1}\\",
    "{{DATA}} {{SCRIPT}}",
    "‮right to left‬ ⁦isolate⁩ \u2028\u2029 \x00\x1b[31m",
    "<!-- <script>",
    "&lt;b&gt; &amp; ]]>",
    "\ud800 alone",
]
ACTION, OBSERVATION, COMPLETION, REASON, END, PROMPT, COUNT, KL, PLAYED, TREE, SOURCE = range(11)


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """The recipe as a module."""
    return load_recipe("report")


def data_of(page: str) -> Any:
    """The JSON block of a page."""
    [block] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    return json.loads(block)


def viewer_of(folder: Path, **options: Any) -> Any:
    """The step viewer of an evaluation."""
    [world] = read_worlds(find_runs([folder]), options.get("budget", 10**6))
    return world.evaluations[0].viewer


def answers(viewer: Any, number: int, t: int) -> list[Any]:
    """What each precision does in the state of a step of an episode, with texts in place of their numbers."""
    found = []
    for answer in viewer.states[viewer.episodes[number][-1][t][0]]:
        texts = None if answer is None else [viewer.strings[i] if i >= 0 else None for i in answer[:4]]
        found.append(None if texts is None else [*texts, *answer[4:]])
    return found


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_can_end_the_data_block(text: str) -> None:
    """Nothing that HTML or a script reads as markup is left, and the text comes back as it was."""
    block = embed({"text": text, text: [1, None, float("nan")]})
    assert not set("<>&\u2028\u2029") & set(block)
    assert block.isascii()
    assert json.loads(block) == {"text": text, text: [1, None, None]}


def test_hostile_texts_stay_in_the_data_block_of_a_page(recipe: ModuleType, tmp_path: Path) -> None:
    """Of models, worlds, tasks, policies and folders; the page around it has the scripts of the package alone."""
    records = [
        episode(
            policy,
            ("high", "low", "router")[min(number, 2)],
            text,
            [step(int(number != 1), text, text, completion=text, invalid_reason=text, step_type=text)],
            instruction=text,
            observation=text,
        )
        for number, policy in enumerate(["always bf16", "always w2", *HOSTILE])
        for text in HOSTILE
    ]
    folder = write_evaluation(tmp_path / "<b>runs", records)
    recipe.main([str(folder), "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script>") == 2
    assert "<b>" not in page
    [evaluation] = data_of(page)["worlds"][0]["evaluations"]
    assert set(HOSTILE) <= set(evaluation["viewer"]["strings"])
    assert evaluation["viewer"]["tasks"] == HOSTILE
    assert evaluation["viewer"]["policies"] == ["always bf16", "always w2", *HOSTILE]


def test_the_policy_of_the_page_names_its_script_and_style(tmp_path: Path) -> None:
    """Hashes of the very texts in it, and nothing may be loaded."""
    page = render(read_worlds(find_runs([write_evaluation(tmp_path / "e", two_ways())]), 10**6), "made")
    [policy] = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    for tag, name in (("style", "style-src"), ("script", "script-src")):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"\b(src|href)=[\"']?(https?:)?//", page)


def test_the_script_never_reads_texts_as_markup(root: Path) -> None:
    """No part of it has a way to do so."""
    for name in SCRIPTS:
        text = (root / "dmr_gym" / "report" / name).read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|Function\(|srcdoc", text)


def test_another_choice_is_known_from_an_episode_in_the_same_state(tmp_path: Path) -> None:
    """At the start low's episode shows what low does; after "go right" the router's shows it, high's what high does."""
    viewer = viewer_of(write_evaluation(tmp_path / "e", two_ways()))
    low, high = answers(viewer, 0, 0)
    assert low[:2] == ["go left", "a wall"]
    assert (low[END], low[PLAYED], low[SOURCE]) == (0, [1, 0], "played")
    assert (high[ACTION], high[PLAYED], high[PROMPT], high[COUNT]) == ("go right", [0, 0], 20, 3)
    low, high = answers(viewer, 0, 1)
    assert (low[ACTION], low[END], low[PLAYED]) == ("go on", 1, [2, 1])
    assert (high[END], high[PLAYED]) == (1, [0, 1])
    assert answers(viewer, 1, 1)[1] is None
    assert viewer.episodes[2][-1][0][1:6] == [1, 1, 0.75, 0.1, 0.01]


def test_drawn_answers_belong_to_their_seed(tmp_path: Path) -> None:
    """At a temperature above 0 an episode of another seed says nothing of this one."""
    records = [record | {"seed": number} for number, record in enumerate(two_ways())]
    folder = write_evaluation(tmp_path / "e", records)
    assert answers(viewer_of(folder), 0, 0)[0] is not None
    data = json.loads((folder / "results.json").read_text())
    data["env"]["sampling"]["temperature"] = 0.5
    write_json(folder / "results.json", data)
    assert answers(viewer_of(folder), 0, 0)[0] is None


def test_alternatives_fill_what_no_episode_shows(tmp_path: Path) -> None:
    """With their KL; those of another episode than the one on record are left alone."""
    folder = write_evaluation(tmp_path / "e", two_ways())

    def other(action: str, kl: float | None) -> dict[str, Any]:
        texts = {"action": action, "observation": "x", "completion": action, "invalid_reason": None}
        return texts | {"success": False, "kl": kl}

    steps = [[other("go left", 0.5), other("go right", None)], [other("go left", 0.25), other("go home", None)]]
    lines = [{"format": 1, "policy": "always w2", "task_id": "t0", "seed": 0, "steps": steps}]
    lines.append({"format": 1, "policy": "always bf16", "task_id": "t0", "seed": 0, "steps": steps})  # not "go on"
    (folder / "alternatives.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    viewer = viewer_of(folder)
    assert viewer.asked_tasks == 1
    low, high = answers(viewer, 1, 1)
    assert (low[ACTION], low[OBSERVATION], low[KL], low[SOURCE]) == ("go left", "a wall", 0.25, "played")
    assert (high[ACTION], high[KL], high[PLAYED], high[SOURCE]) == ("go home", None, None, "asked")
    assert answers(viewer, 0, 1)[0][KL] is None


def test_kls_of_the_same_panel_stand_at_the_steps_of_the_highest_precision(tmp_path: Path) -> None:
    """By the same models alone."""
    folder = write_evaluation(tmp_path / "runs" / "e", two_ways())
    kls = np.concatenate([[0.5, 2.0], np.geomspace(1e-4, 1, 60)]).astype(np.float32)[:, None]
    columns = {"kl_action": kls, "kl_all": kls, "rows": np.zeros((62, 4), dtype=np.float32)}
    columns |= {"lengths": np.array([2, 60]), "success": np.array([True, True])}
    columns |= {"completion_tokens": np.full(62, 3), "step_types": ("action",) * 62, "task_ids": ("t0", "t9")}
    dataset = KLDataset(**columns)
    results = json.loads((folder / "results.json").read_text())
    settings = {key: results[key] for key in ("env_id", "env", "models")} | {"panel": "test"}
    dataset.save(tmp_path / "runs" / "kl" / "kl.safetensors", settings)
    [world] = read_worlds(find_runs([tmp_path / "runs"]), 10**6)
    viewer = world.evaluations[0].viewer
    assert [answers(viewer, 0, t)[0][KL] for t in range(2)] == [0.5, 2.0]
    [histogram] = world.kls[0].histograms
    assert (sum(histogram.counts), histogram.precision) == (62, "w2")
    dataset.save(tmp_path / "runs" / "kl" / "kl.safetensors", settings | {"models": {"w2": "a", "bf16": "b"}})
    [world] = read_worlds(find_runs([tmp_path / "runs"]), 10**6)
    assert answers(world.evaluations[0].viewer, 0, 0)[0][KL] is None


def test_use_and_points_are_counted_by_hand(tmp_path: Path) -> None:
    """The router takes high, then low; high solves all in 0.2 s, in which low fails, and the router takes longer."""
    records = [record for task in ("t0", "t1") for record in two_ways(task)]
    [world] = read_worlds(find_runs([write_evaluation(tmp_path / "e", records)]), 10**6)
    [evaluation] = world.evaluations
    use = {one.policy: one for one in evaluation.use}
    assert (use["router p≥0.5"].high, use["router p≥0.5"].steps) == ((2, 0), (2, 2))
    assert use["router p≥0.5"].by_type == {"action": (2, 2)}
    points = {point.name: point for point in evaluation.points}
    assert (points["always bf16"].success, points["always bf16"].all) == (1.0, 0.2)
    assert points["always w2"].solved is None
    assert [point.front["all"] for point in evaluation.points] == [True, False, False]
    assert evaluation.tables[0].kinds == ("high", "low", "router")
    assert evaluation.tables[0].rows[0][0] == "always bf16"


def test_an_answer_takes_the_place_of_a_mere_kl() -> None:
    """The KL of low precision is known from high's episode; what it would have done, from another policy's."""
    viewer = Viewer(2, greedy=True)
    high, _, router = two_ways()
    viewer.add(high, kls=[[0.5], [0.25]])
    text = {"observation": "a wall", "completion": "said", "invalid_reason": None, "success": False, "kl": None}
    viewer.add(router, others=[[text | {"action": action} for action in ("go left", "go right")],
                               [text | {"action": action} for action in ("go on", "go back")]])  # fmt: skip
    low = viewer.record(0).states[0][0]
    assert (low[SOURCE], low[KL], viewer.record(0).strings[low[ACTION]]) == ("asked", 0.5, "go left")


def test_a_kl_data_set_that_is_too_small_is_named(tmp_path: Path) -> None:
    """Of several runs the message says which."""
    rows, kls = np.zeros((3, 4), np.float32), np.ones((3, 1), np.float32)
    dataset = KLDataset(rows, kls, kls, np.array([3]), np.array([True]), np.ones(3, np.int64), ("action",) * 3, ("t",))
    env = {"task": "toy", "precisions": ["w2", "bf16"]}
    (tmp_path / "kl").mkdir()
    dataset.save(tmp_path / "kl" / "kl.safetensors", {"env": env, "env_id": "DMR-Toy-v0", "panel": "train"})
    with pytest.raises(ConfigError, match=r"kl\.safetensors: a threshold needs the KLs of at least 10 steps"):
        read_worlds(find_runs([tmp_path]), 10**6)


def test_three_precisions_have_three_answers(tmp_path: Path) -> None:
    """Each in its place."""
    records = [
        episode("always bf16", "high", "t", [step(2, "a", "x")]),
        episode("always w2", "low", "t", [step(0, "b", "y")]),
        episode("always w4", "low", "t", [step(1, "c", "z")]),
    ]
    folder = write_evaluation(tmp_path / "e", records, ("w2", "w4", "bf16"))
    assert [answer[ACTION] for answer in answers(viewer_of(folder), 0, 0)] == ["b", "c", "a"]


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    """100 kB become some thousand characters that say how many are left out."""
    long = "é" * 100_000
    sides = (("always bf16", "high", 1), ("always w2", "low", 0))
    records = [episode(*side, "t", [step(p, "go", long)]) for *side, p in sides]
    viewer = viewer_of(write_evaluation(tmp_path / "e", records))
    [text] = [text for text in viewer.strings if text.startswith("é")]
    assert text == "é" * LONGEST_TEXT + " … (94,000 more characters are left out here)"
    assert viewer.cut == 1


def test_a_page_keeps_whole_tasks_within_its_budget(tmp_path: Path) -> None:
    """The first ones, with the episodes of every policy; one task is there in any case."""
    records = [
        episode(policy, kind, f"t{i:02}", [step(p, f"go {i}", f"{i} " * 200)])
        for policy, kind, p in (("always bf16", "high", 1), ("always w2", "low", 0))
        for i in range(20)
    ]
    folder = write_evaluation(tmp_path / "e", records)
    viewer = viewer_of(folder, budget=4000)
    assert 1 < len(viewer.tasks) < 20
    assert viewer.tasks == tuple(f"t{i:02}" for i in range(len(viewer.tasks)))
    assert (len(viewer.episodes), viewer.left_out) == (2 * len(viewer.tasks), 20 - len(viewer.tasks))
    assert len(viewer_of(folder, budget=10).tasks) == 1
    assert viewer_of(folder).left_out == 0
    assert choose_tasks({"a": 5, "b": 5, "c": 1}, 10) == ["a", "b"]


def test_an_evaluation_without_texts_is_shown_by_its_numbers(tmp_path: Path) -> None:
    """States are told apart by the precisions before them."""
    texts = ("action", "observation", "completion", "invalid_reason")
    records = two_ways()
    for record in records:
        record["steps"] = [{k: v for k, v in each.items() if k not in texts} for each in record["steps"]]
        del record["instruction"], record["observation"]
    viewer = viewer_of(write_evaluation(tmp_path / "e", records))
    assert answers(viewer, 0, 0)[0][:4] == [None] * 4
    assert answers(viewer, 0, 1)[0][PLAYED] == [2, 1]


def test_missing_parts_are_named_with_their_commands(recipe: ModuleType, tmp_path: Path, capsys: Any) -> None:
    """Everything but the evaluation, each by a command of the repository that takes these options."""
    folder = write_evaluation(tmp_path / "e", two_ways())
    recipe.main([str(folder)])
    printed = capsys.readouterr().out
    commands = re.findall(r"python (agents/\w+\.py)", printed)
    assert {Path(command).name for command in commands} == {
        "collect_kl.py",
        "train_kl_st.py",
        "build_trees.py",
        "tree_report.py",
        "evaluate.py",
    }
    missing = data_of((folder / "report.html").read_text(encoding="utf-8"))["worlds"][0]["missing"]
    assert len(missing) == 5
    for line in missing:
        script, *options = line["command"].removeprefix("python ").split()
        flags = [option for option in options if option.startswith("--")]
        with pytest.raises(SystemExit):
            load_recipe(Path(script).stem).main(["--help"])
        text = capsys.readouterr().out
        assert [flag for flag in flags if flag not in text] == []


def test_the_command_for_alternatives_is_that_of_the_evaluation(toy: Path) -> None:
    """With all of its options, so that it plays nothing anew: parsed, they are the recorded ones but for that one."""
    record = json.loads((toy / "evaluation" / "results.json").read_text())["settings"]
    words = shlex.split(_with_alternatives(next(run for run in find_runs([toy]) if run.kind == "evaluation")))
    assert words[:2] == ["python", "agents/evaluate.py"]
    args = load_recipe("evaluate").parse_args(words[2:])
    assert settings_of(args) == record | {"alternatives": "5"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nothing", "is no folder: expected the --out of a recipe"),
        (lambda folder: folder, "holds no run that a report could show"),
        (lambda folder: damaged(folder, "{"), "is damaged: expected a JSON object"),
        (lambda folder: damaged(folder, "[]"), "is damaged: expected a JSON object, got list"),
        (lambda folder: damaged(folder, '{"env": {"task": "toy", "precisions": ["a"]}}'), "lacks 'precisions'"),
    ],
)
def test_mistakes_say_what_was_expected(recipe: ModuleType, tmp_path: Path, make: Any, message: str) -> None:
    """Of folders and of files."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        recipe.main([str(make(tmp_path))])


def damaged(folder: Path, text: str) -> Path:
    """An evaluation whose results are something else."""
    write_evaluation(folder / "e", two_ways())
    (folder / "e" / "results.json").write_text(text)
    return folder / "e"


def test_results_of_other_episodes_are_refused(tmp_path: Path) -> None:
    """Where a file was copied from elsewhere."""
    folder = write_evaluation(tmp_path / "e", two_ways())
    (folder / "episodes.jsonl").write_text("".join(json.dumps(record) + "\n" for record in two_ways()[:2]))
    with pytest.raises(ConfigError, match="are of different runs"):
        read_worlds(find_runs([folder]), 10**6)


def test_a_size_that_is_none_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    """No page has less than nothing."""
    with pytest.raises(ConfigError, match="--mb must be a finite number above 0"):
        recipe.main([str(tmp_path), "--mb", "0"])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every recipe on the toy world: KLs, two trainings, trees with their report, an evaluation."""
    root = tmp_path_factory.mktemp("runs")
    small = [*TOY, "--set", "max_steps=10", "--set", "task_kwargs.num_signs=4"]
    load_recipe("collect_kl").main(["--out", str(root / "kl"), *TOY])
    (root / "critical").mkdir()
    data = ["--data", str(write_critical(root / "kl", root / "critical")), "--lr", "3e-3", "--epochs", "3", *TINY]
    load_recipe("train_kl_st").main([*data, "--out", str(root / "kl-st")])
    router = str(root / "kl-st" / "router")
    grpo = ["--updates", "2", "--groups", "2", "--group-size", "2", "--tasks", "4", "--validation-tasks", "4"]
    load_recipe("train_grpo").main([*TOY, *grpo, "--router", router, "--out", str(root / "grpo")])
    load_recipe("build_trees").main([*small, "--out", str(root / "trees"), "--tasks", "6"])
    trees = ["--trees", str(root / "trees"), "--random-seeds", "1", "--resamples", "20"]
    load_recipe("tree_report").main([*small, *trees, "--out", str(root / "tree-report")])
    evaluate = load_recipe("evaluate")
    evaluate.draw_accuracy_latency = no_picture
    options = ["--tasks", "6", "--calibration-tasks", "6", "--seeds", "1", "--budgets", "0.4", "--resamples", "50"]
    evaluate.main([*small, *options, "--router", router, "--out", str(root / "evaluation"), "--alternatives", "2"])
    return root


def test_the_runs_of_all_recipes_make_one_world(recipe: ModuleType, toy: Path, capsys: Any) -> None:
    """Nothing is missing; curves, histograms, the exact frontier and the oracle are there."""
    recipe.main([str(toy)])
    assert "without" not in capsys.readouterr().out
    [world] = data_of((toy / "report.html").read_text(encoding="utf-8"))["worlds"]
    assert (world["title"], world["missing"]) == ("DMR-Toy-v0", [])
    assert sorted(one["method"] for one in world["trainings"]) == ["GRPO", "KL-ST"]
    curves = {curve["title"]: curve for one in world["trainings"] for curve in one["curves"]}
    assert set(curves["return"]["series"]) == {"rollout", "validation"}
    assert set(curves["share"]["series"]) == {"low", "high"}
    assert [point[0] for point in curves["balanced accuracy"]["series"]["validation"]] == [1, 2, 3]
    [evaluation] = world["evaluations"]
    lambdas = sorted(read_oracle(toy / "tree-report" / "oracle.json"))
    assert [point["name"] for point in evaluation["oracle"]] == [f"oracle λ={x:g}" for x in lambdas]
    assert evaluation["reach"]
    assert evaluation["notes"] == []
    assert (evaluation["viewer"]["asked_tasks"], evaluation["viewer"]["tree_tasks"]) == (2, 6)


def test_a_tree_says_where_every_choice_leads(toy: Path) -> None:
    """At the start of a corridor: both actions, and the value of each as the oracle has it."""
    viewer = next(w for w in read_worlds(find_runs([toy]), 10**6)).evaluations[0].viewer
    tree = load_trees(toy / "trees" / "test")[0]
    results = json.loads((toy / "evaluation" / "results.json").read_text())
    latency = make_latency_model(results["env"]["latency"], tuple(results["precisions"]))
    prices = Prices(latency, results["env"]["lambda_"])
    values = best_values(tree, prices)
    for p, answer in enumerate(answers(viewer, 0, 0)):
        value, success, seconds, *_ = answer[TREE]
        assert value == pytest.approx(values.q_low[0, p], rel=1e-4)
        assert success - prices.lambda_ * seconds == pytest.approx(value, rel=1e-3)
    high = outcomes(tree, prices).high[0, -1]
    always = json.loads((toy / "evaluation" / "episodes.jsonl").read_text().splitlines()[0])
    assert always["policy"] == "always high"
    # The choice itself pays for a router, which the highest precision alone does not ask.
    router_s = latency.router_seconds(LLMCall("high", 1, 1))
    assert high.tolist() == pytest.approx([float(always["success"]), always["time_s"] + router_s])


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        ("env", {"latency": {"ms_per_token": {"low": 1.0, "high": 90.0}, "router_ms": 1.0}}, "other prices"),
        ("env", {"max_steps": 11}, "episodes of 10 steps, not 11"),
        ("models", {"low": "another"}, "other models of low"),
    ],
)
def test_an_oracle_and_a_frontier_of_something_else_are_left_out_with_a_note(
    recipe: ModuleType, toy: Path, tmp_path: Path, capsys: Any, place: str, change: dict[str, Any], said: str
) -> None:
    """Of other prices, of longer episodes, and of other models; what they are is on the page and on the terminal."""
    shutil.copytree(toy / "evaluation", tmp_path / "evaluation")
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    results[place] |= change
    write_json(tmp_path / "evaluation" / "results.json", results)
    runs = [tmp_path / "evaluation", toy / "trees", toy / "tree-report"]
    recipe.main([*map(str, runs), "--out", str(tmp_path / "page.html")])
    printed = capsys.readouterr().out
    [world] = data_of((tmp_path / "page.html").read_text(encoding="utf-8"))["worlds"]
    [evaluation] = world["evaluations"]
    assert (evaluation["oracle"], evaluation["reach"]) == ([], [])
    for note, name in zip(evaluation["notes"], ("oracle.json", "results.json"), strict=True):
        assert note.startswith(f"{toy / 'tree-report' / name} was made for {said}, and is left out")
        assert note in printed
    # Trees hold under any prices of tokens.
    assert evaluation["viewer"]["tree_tasks"] == (6 if said == "other prices" else 0)


def test_files_that_do_not_say_what_they_were_made_for_are_noted(toy: Path, tmp_path: Path) -> None:
    """Those of a report on trees are left out; one that was given with --oracle is drawn."""
    for name in ("evaluation", "tree-report"):
        shutil.copytree(toy / name, tmp_path / name)
    for name in ("oracle.json", "results.json"):
        path = tmp_path / "tree-report" / name
        record = json.loads(path.read_text())
        del record[MADE_FOR]
        write_json(path, record)
    [world] = read_worlds(find_runs([tmp_path]), 10**6)
    [evaluation] = world.evaluations
    assert (evaluation.oracle, evaluation.reach) == ((), ())
    assert ["does not say" in note and "is left out" in note for note in evaluation.notes] == [True, True]
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    results["settings"]["oracle"] = str(tmp_path / "tree-report" / "oracle.json")
    write_json(tmp_path / "evaluation" / "results.json", results)
    [world] = read_worlds(find_runs([tmp_path]), 10**6)
    [evaluation] = world.evaluations
    assert (len(evaluation.oracle) > 0, evaluation.reach) == (True, ())
    assert "does not say" in evaluation.notes[0]
    assert "given with --oracle" in evaluation.notes[0]


def test_the_frontier_of_other_tasks_is_not_taken(toy: Path, tmp_path: Path) -> None:
    """As many tasks of the same panel are not the same tasks."""
    for name in ("evaluation", "tree-report"):
        shutil.copytree(toy / name, tmp_path / name)
    record = json.loads((tmp_path / "tree-report" / "results.json").read_text())
    write_json(tmp_path / "tree-report" / "results.json", record | {"tasks_digest": "of others"})
    [world] = read_worlds(find_runs([tmp_path]), 10**6)
    assert world.evaluations[0].reach == ()
    assert world.evaluations[0].oracle


@pytest.mark.parametrize(
    "latency",
    [
        {"kind": "wall-clock"},
        {
            "kind": "prefill-decode",
            "ms_per_prefill_token": {"low": 1.0, "high": 2.0},
            "ms_per_decode_token": {"low": 10.0, "high": 20.0},
            "router_ms": 1.0,
        },
    ],
    ids=lambda latency: latency["kind"],
)
def test_trees_say_nothing_where_prices_depend_on_the_way(
    recipe: ModuleType, toy: Path, tmp_path: Path, latency: dict[str, Any]
) -> None:
    """The page is made all the same, without outcomes of trees."""
    shutil.copytree(toy / "evaluation", tmp_path / "evaluation")
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    results["env"]["latency"] = latency
    write_json(tmp_path / "evaluation" / "results.json", results)
    recipe.main([str(tmp_path / "evaluation"), str(toy / "trees"), "--out", str(tmp_path / "page.html")])
    [world] = data_of((tmp_path / "page.html").read_text(encoding="utf-8"))["worlds"]
    viewer = world["evaluations"][0]["viewer"]
    assert viewer["tree_tasks"] == 0
    assert {answer[TREE] for state in viewer["states"] for answer in state if answer} == {None}


def test_the_threshold_on_the_page_is_the_one_that_a_training_took(toy: Path, tmp_path: Path) -> None:
    """Of the trainings on the very data, given or found, before and after their end; another data set keeps its own."""
    options = ["--data", str(toy / "critical"), "--lr", "3e-3", "--epochs", "1", *TINY]
    load_recipe("train_kl_st").main([*options, "--threshold", "0.05", "--out", str(tmp_path / "given")])
    shutil.copytree(tmp_path / "given", tmp_path / "begun")
    (tmp_path / "begun" / "run.json").unlink()
    names = ("kl", "critical", "kl-st")
    [world] = read_worlds(find_runs([*(toy / name for name in names), tmp_path]), 10**6)
    found = {(Path(kl.folder).name, tuple(Path(one).name for one in kl.trainings)): kl.histograms for kl in world.kls}
    assert set(found) == {("kl", ()), ("critical", ("kl-st",)), ("critical", ("begun", "given"))}
    [given], [plateau] = found["critical", ("begun", "given")], found["critical", ("kl-st",)]
    assert (given.threshold, given.origin, given.plateau) == (0.05, "given by --threshold", None)
    kls = KLDataset.load(toy / "critical" / "kl.safetensors").kl_action
    assert given.above == pytest.approx((kls > 0.05).mean())
    taken = json.loads((toy / "kl-st" / "run.json").read_text())["labelling"]["thresholds"]
    assert [plateau.threshold] == taken
    assert plateau.origin == "middle of the plateau"


def test_a_precision_that_is_never_too_low_has_no_steps_above_its_threshold(toy: Path, tmp_path: Path) -> None:
    """An infinite threshold, which JSON does not have, is read as such."""
    shutil.copytree(toy / "kl-st", tmp_path / "never")
    record = json.loads((tmp_path / "never" / "run.json").read_text())
    record["labelling"] |= {"thresholds": [None], "plateaus": None}
    write_json(tmp_path / "never" / "run.json", record)
    [world] = read_worlds(find_runs([toy / "critical", tmp_path]), 10**6)
    [histogram] = world.kls[0].histograms
    assert (histogram.threshold, histogram.above) == (float("inf"), 0.0)


def test_two_worlds_stand_side_by_side(tmp_path: Path, toy: Path) -> None:
    """Other precisions are another world."""
    write_evaluation(tmp_path / "e", two_ways())
    worlds = read_worlds(find_runs([tmp_path, toy]), 10**6)
    assert [world.precisions for world in worlds] == [("w2", "bf16"), ("low", "high")]


def test_every_kind_of_policy_has_a_mark_a_colour_and_a_name() -> None:
    """Those that the picture of an evaluation knows."""
    folder = Path(page.__file__).parent
    marks, names, colours = ((folder / name).read_text() for name in ("charts.js", "figures.js", "page.css"))
    for kind in STYLES:
        assert re.search(rf"const MARKS = .*\b{kind}: \"", marks)
        assert re.search(rf"\b{kind}: \"", names[: names.index("};")])
        assert f"--{kind}: light-dark(" in colours
