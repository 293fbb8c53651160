"""Read an evaluation: tables and points from results.json, use of precisions and episodes from episodes.jsonl."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.alternatives import ALTERNATIVES_FILE, LARGEST_KL, read_alternatives
from dmr_gym.errors import ConfigError
from dmr_gym.evaluation import EPISODES_FILE
from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.latency import PriceSource
from dmr_gym.metrics import OperatingPoint
from dmr_gym.oracle_origin import MADE_FOR, REMEDY, differences, oracle_origin, read_origin
from dmr_gym.records import PlayedPolicy, read_policies, read_records
from dmr_gym.report.records import EvaluationRecord, Pair, PointRecord, TableRecord, UseRecord, ViewerRecord
from dmr_gym.report.runs import KL_FILE, Run, read_object
from dmr_gym.report.steps import choose_tasks, gather, size_of
from dmr_gym.report.trees import config_of, read_outcomes
from dmr_gym.result_tables import result_tables
from dmr_gym.results import TIMES, Results, oracle_points, read_oracle, read_results
from dmr_gym.runs import content_address
from dmr_gym.tables import Table
from dmr_gym.tree.graph import INDEX_FILE
from dmr_gym.types import SamplingParams

_SHARE_OF_LINES = 0.4
"""Bytes that an episode takes on the page, for each byte of its line: first guess, corrected by measuring."""


@dataclass
class _Counts:
    """What is added up over a policy's episodes."""

    high: Counter[int] = field(default_factory=Counter)
    steps: Counter[int] = field(default_factory=Counter)
    by_type: dict[str, Counter[int]] = field(default_factory=dict)


def read_evaluation(run: Run, runs: Sequence[Run], budget: int) -> EvaluationRecord:
    """Read an evaluation, and what other runs say of its tasks.

    Args:
        run: the evaluation.
        runs: all runs of its world: trees, oracles and KLs of its panel are taken from them.
        budget: bytes that its episodes may take on the page.

    Raises:
        ConfigError: files that are damaged or of another format.
    """
    data = read_object(run.path / "results.json")
    try:
        return _read(run, runs, data, budget)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{run.path}: results.json or {EPISODES_FILE} lacks {error}: run agents/evaluate.py again, which writes "
            "them anew"
        ) from error


def _read(run: Run, runs: Sequence[Run], data: dict[str, Any], budget: int) -> EvaluationRecord:
    names, panel = data["precisions"], data["settings"]["panel"]
    policies = read_policies(run.path / EPISODES_FILE, len(names))
    counts, sizes = _count(run.path / EPISODES_FILE, len(names) - 1)
    prices, results = PriceSource(**data["latency"]), read_results(data, policies)
    tables = tuple(_table(table, results) for table in result_tables(results, names, prices))
    reports = [each.path for each in runs if each.kind == "tree-report"]
    oracle, notes = _oracle(data, reports, list(sizes))
    reach, more = _reach(reports, data, list(sizes))
    return EvaluationRecord(
        folder=str(run.path),
        panel=panel,
        tasks=len(sizes),
        unit=prices.unit,
        prices=prices.title,
        tables=tables,
        points=_points(policies, data["results"]),
        oracle=oracle,
        reach=reach,
        notes=(*notes, *more),
        use=tuple(_use(policy, counts[policy.name], len(names)) for policy in policies),
        viewer=_viewer(run, runs, data, sizes, budget),
        made=_made(data, run.path),
    )


def _count(path: Path, high: int) -> tuple[dict[str, _Counts], dict[str, int]]:
    """The use of precisions by policy, and bytes of each task's lines, roughly."""
    counts: dict[str, _Counts] = {}
    sizes: Counter[str] = Counter()
    for record in read_records(path):
        count = counts.setdefault(record["policy"], _Counts())
        for t, step in enumerate(record["steps"]):
            count.steps[t] += 1
            count.high[t] += step["precision"] == high
            count.by_type.setdefault(step["step_type"], Counter())[step["precision"]] += 1
            sizes[record["task_id"]] += 200 + sum(len(step.get(key) or "") for key in ("observation", "completion"))
    return counts, dict(sizes)


def _table(table: Table, results: Results) -> TableRecord:
    kinds = {policy.name: policy.kind for policy in results.policies}
    kinds_of_rows = tuple(kinds.get(row[0], "") for row in table.rows)
    return TableRecord(table.title, table.columns, table.rows, table.notes, table.left, kinds_of_rows)


def _points(policies: Sequence[PlayedPolicy], rows: Sequence[Mapping[str, Any]]) -> tuple[PointRecord, ...]:
    points = []
    for policy, row in zip(policies, rows, strict=True):
        front = {name: _is_efficient(row, rows, column) for name, column in TIMES.items()}
        points.append(
            PointRecord(
                name=policy.name,
                kind=policy.kind,
                success=row["success"],
                success_ci=_pair(row["success_ci"]),
                solved=row["time_success_s"],
                solved_ci=_pair(row["time_success_s_ci"]),
                all=row["time_all_s"],
                all_ci=_pair(row["time_all_s_ci"]),
                front=front,
            )
        )
    return tuple(points)


def _is_efficient(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    """Whether no policy is as good in success and in time, and better in one of them."""
    if row[column] is None:
        return False
    others = [(other["success"], other[column]) for other in rows if other[column] is not None]
    mine = (row["success"], row[column])
    return not any(success >= mine[0] and time <= mine[1] and (success, time) != mine for success, time in others)


def _pair(interval: Mapping[str, float | None]) -> Pair | None:
    low, high = interval["low"], interval["high"]
    return None if low is None or high is None else (low, high)


def _oracle(
    data: Mapping[str, Any], reports: Sequence[Path], task_ids: Sequence[str]
) -> tuple[tuple[PointRecord, ...], list[str]]:
    """The best routing of these tasks, from the evaluation's own oracle or from a report on trees, and what to note."""
    given = data["settings"].get("oracle")
    own = Path(given).resolve() if given else None
    paths = [*([Path(given)] if given else []), *(report / "oracle.json" for report in reports)]
    notes: list[str] = []
    for path in {path.resolve(): path for path in paths if path.is_file()}.values():
        oracle = read_oracle(path)
        whole = {x: {t: best[t] for t in task_ids} for x, best in oracle.items() if all(t in best for t in task_ids)}
        if not whole:
            continue
        origin = read_origin(path)
        fits, note = _fits(path, origin, data, is_vouched_for=path.resolve() == own)
        notes += note
        if fits:
            return tuple(map(_oracle_point, oracle_points(whole))), notes
    return (), notes


def _fits(
    path: Path, origin: Mapping[str, Any] | None, data: Mapping[str, Any], is_vouched_for: bool = False
) -> tuple[bool, list[str]]:
    """Whether what a file says holds for the prices and models of an evaluation, and what to note of it."""
    if origin is None:
        unsaid = f"{path} does not say for which prices and models it was made"
        if is_vouched_for:
            return True, [f"{unsaid}; it was given with --oracle."]
        return False, [f"{unsaid}, and is left out: {REMEDY}."]
    found = differences(origin, oracle_origin(config_of(data), data["models"]))
    return not found, [f"{path} was made for {', '.join(found)}, and is left out: {REMEDY}."] if found else []


def _oracle_point(point: OperatingPoint) -> PointRecord:
    front = dict.fromkeys(TIMES, True)
    return PointRecord(point.name, point.kind, point.success, None, None, None, point.time_s, None, front)


def _reach(
    reports: Sequence[Path], data: Mapping[str, Any], task_ids: Sequence[str]
) -> tuple[tuple[Pair, ...], list[str]]:
    """The exact frontier of a report on the trees of these tasks, and what to note."""
    notes: list[str] = []
    for path in (report / "results.json" for report in reports):
        report = read_object(path)
        same = (report["settings"].get("panel"), report["trees"]["trees"]) == (data["settings"]["panel"], len(task_ids))
        if not same or report.get("tasks_digest") not in (None, content_address(sorted(task_ids))):
            continue
        fits, note = _fits(path, report.get(MADE_FOR), data)
        notes += note
        if fits:
            return tuple(zip(report["frontier"]["success"], report["frontier"]["time_s"], strict=True)), notes
    return (), notes


def _use(policy: PlayedPolicy, count: _Counts, n_precisions: int) -> UseRecord:
    last = max(count.steps) + 1
    by_type = {kind: tuple(uses[p] for p in range(n_precisions)) for kind, uses in sorted(count.by_type.items())}
    high, steps = (tuple(numbers[t] for t in range(last)) for numbers in (count.high, count.steps))
    return UseRecord(policy.name, policy.kind, policy.like, high, steps, by_type)


def _viewer(
    run: Run, runs: Sequence[Run], data: Mapping[str, Any], sizes: Mapping[str, int], budget: int
) -> ViewerRecord:
    """As many tasks as there is room for, with all their episodes."""
    greedy = SamplingParams(**data["env"]["sampling"]).temperature == 0
    alternatives = read_alternatives(run.path / ALTERNATIVES_FILE)
    tasks = choose_tasks(sizes, int(budget / _SHARE_OF_LINES))
    trees: dict[str, Any] = {}
    for each in runs:
        if greedy and each.kind == "trees" and _panel(each) == data["settings"]["panel"]:
            trees |= read_outcomes(each.path, data, tasks)
    kls = _kls(runs, data) if greedy else {}
    while True:
        path, left_out = run.path / EPISODES_FILE, len(sizes) - len(tasks)
        records = read_records(path)
        viewer = gather(records, tasks, len(data["precisions"]), greedy, alternatives, trees, kls, left_out)
        size = size_of(viewer)
        if size <= budget or len(tasks) == 1:
            return viewer
        tasks = tasks[: max(1, min(len(tasks) - 1, int(len(tasks) * 0.95 * budget / size)))]


def _panel(run: Run) -> str:
    return str(read_object(run.path / INDEX_FILE).get("settings", {}).get("panel"))


def _kls(runs: Sequence[Run], data: Mapping[str, Any]) -> dict[str, Sequence[Sequence[float]]]:
    """KLs of the highest precision's own episodes on the evaluation's panel, by the same models."""
    for each in runs:
        if each.kind == "kl":
            settings = read_settings(each.path / KL_FILE)
            if (settings["panel"], settings["models"]) == (data["settings"]["panel"], data["models"]):
                dataset = KLDataset.load(each.path / KL_FILE)
                rows = [part.tolist() for part in dataset.split(np.minimum(dataset.kl_action, LARGEST_KL))]
                return dict(zip(dataset.task_ids, rows, strict=True))
    return {}


def _made(data: Mapping[str, Any], folder: Path) -> tuple[tuple[str, str], ...]:
    """What made the run, as lines of name and text."""
    found = [("folder", str(folder)), ("environment", f"{data['env_id']}, panel {data['settings']['panel']}")]
    found.append(("λ", f"{data['env']['lambda_']:g}"))
    found += [(f"model {name}", str(digest)) for name, digest in data["models"].items()]
    found += [("commit", str(data.get("git") or "unknown")), ("Python", str(data.get("python")))]
    found += [(name, str(version)) for name, version in data.get("versions", {}).items() if version]
    return tuple(found)
