"""From ``episodes.jsonl`` to ``results.json``: rows, paired differences, returns, selection, gaps.

Every number is a function of the episodes, of λ, and of an oracle where one is given; docs/evaluation.md has the
formulas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dmr_gym.errors import ConfigError
from dmr_gym.metrics import (
    Difference,
    EpisodeResult,
    Interval,
    OperatingPoint,
    Selection,
    Summary,
    average_gap_recovered,
    gap_recovered,
    mean_return,
    oracle_gap,
    paired_difference,
    pareto_distance,
    select_by_rank,
    summarize,
    task_means,
)
from dmr_gym.metrics.bootstrap import UNKNOWN
from dmr_gym.oracle_origin import MADE_FOR
from dmr_gym.records import PlayedPolicy

TRAINED = ("grpo", "ppo")
"""Kinds of policies whose router was trained on a return, at some λ."""

ROUTED = ("router", "start", *TRAINED)
"""Kinds of policies that a router decides for: KL-ST's at thresholds, at its likeliest action as `TRAINED` began."""

TIMES = {"solved": "time_success_s", "all": "time_all_s"}
"""Which episodes a mean time is over: the paper's, and all of them."""


class OracleEpisode(NamedTuple):
    """The best routing of one task at one λ: its return (Eq. 8), success, and seconds (Eq. 9)."""

    value: float
    success: bool
    time_s: float


Oracle = Mapping[float, Mapping[str, OracleEpisode]]
"""By λ, then by task id."""


def read_oracle(path: Path) -> dict[float, dict[str, OracleEpisode]]:
    """Read ``{"0.1": {task_id: {"return": 0.8, "success": true, "time_s": 2.0}}}``: the best routing, by λ.

    What `dmr_gym.oracle_origin` reads beside it is left out.

    Raises:
        ConfigError: no such file, or something else in it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {
            float(lambda_): {
                task: OracleEpisode(float(best["return"]), bool(best["success"]), float(best["time_s"]))
                for task, best in tasks.items()
            }
            for lambda_, tasks in data.items()
            if lambda_ != MADE_FOR
        }
    except OSError as error:
        raise ConfigError(f"no oracle at {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{path} is no oracle: expected {{λ: {{task_id: {{"return": ..., "success": ..., "time_s": ...}}}}}}'
        ) from error


def of_tasks(oracle: Oracle | None, task_ids: Sequence[str]) -> Oracle | None:
    """The oracle of these tasks alone, so that its points are means over the tasks that policies play.

    Raises:
        ConfigError: it lacks one of them.
    """
    if oracle is None:
        return None
    for lambda_, tasks in oracle.items():
        missing = [task for task in task_ids if task not in tasks]
        if missing:
            raise ConfigError(
                f"the oracle at λ={lambda_:g} lacks {len(missing)} of the {len(task_ids)} tasks, such as "
                f"{missing[0]!r}: use one of the same panel"
            )
    return {lambda_: {task: tasks[task] for task in task_ids} for lambda_, tasks in oracle.items()}


class Results(NamedTuple):
    """What an evaluation found.

    Attributes:
        policies: kind, budget, λ of training, and name of the matched policy, in the order of the rows.
        summaries: a row each.
        differences: each routed policy against random routing with its shares, and against always-high; one trained on
            a return against the best of KL-ST's points, the router that it began from, and a lower precision that
            alone earns more than the highest too.
        data: all of it and the rest as plain data, for ``results.json``.
    """

    policies: list[PlayedPolicy]
    summaries: list[Summary]
    differences: list[Difference]
    data: dict[str, Any]


def tabulate(
    policies: Sequence[PlayedPolicy],
    lambda_: float,
    resamples: int = 2000,
    lambdas: Sequence[float] = (),
    oracle: Oracle | None = None,
) -> Results:
    """Reduce what was played.

    Args:
        policies: of `dmr_gym.records.read_policies`; one of them of the kind "high".
        lambda_: price of a second of latency in units of reward (Eq. 8), for the rows and the differences.
        resamples: bootstrap samples.
        lambdas: further λ at which returns are compared.
        oracle: best returns, for the gap to them.

    Raises:
        ConfigError: no policy of the kind "high", or an oracle of other tasks.
    """
    high = next((policy for policy in policies if policy.kind == "high"), None)
    if high is None:
        raise ConfigError("an evaluation needs the highest precision alone as its reference, and has no such policy")
    reference = summarize(high.name, high.episodes, lambda_, None, resamples)
    summaries = [summarize(policy.name, policy.episodes, lambda_, reference, resamples) for policy in policies]
    pairs = list(zip(policies, summaries, strict=True))
    differences = _differences(pairs, high, lambda_, resamples)
    rows = [_row(policy, summary, pairs, reference, oracle) for policy, summary in pairs]
    data = {
        "results": rows,
        "differences": [asdict(difference) for difference in differences],
        "returns": _returns(policies, sorted({lambda_, *lambdas}), resamples, oracle or {}),
        "selection": {name: _selection(pairs, column) for name, column in TIMES.items()},
        "gap_recovered": _gap_recovered(pairs, resamples),
    }
    return Results(list(policies), summaries, differences, data)


def read_results(data: Mapping[str, Any], policies: Sequence[PlayedPolicy]) -> Results:
    """What `tabulate` returned, from the ``results.json`` that an evaluation has made of it.

    Args:
        data: the object in the file.
        policies: of the episodes beside it.

    Raises:
        ConfigError: rows of other policies.
    """
    rows = {row["policy"]: row for row in data["results"]}
    if list(rows) != [policy.name for policy in policies]:
        raise ConfigError("results.json and episodes.jsonl are of different runs: run agents/evaluate.py again")
    summaries = [
        Summary(**{field.name: _number(row[field.name]) for field in fields(Summary)}) for row in rows.values()
    ]
    names = [field.name for field in fields(Difference)]
    differences = [Difference(**{name: _number(row[name]) for name in names}) for row in data["differences"]]
    gaps = {
        kind: gap | {"apgr": _number(gap["apgr"]), "apgr_ci": _ends(gap["apgr_ci"])}
        for kind, gap in data["gap_recovered"].items()
    }
    return Results(list(policies), summaries, differences, {**data, "gap_recovered": gaps})


def _ends(interval: Mapping[str, Any]) -> dict[str, Any]:
    return {end: _number(value) for end, value in interval.items()}


def _number(value: Any) -> Any:
    """A value of a row as it was before JSON: null was NaN, lists were tuples, pairs of ends intervals."""
    if value is None:
        return math.nan
    if isinstance(value, Mapping):
        return Interval(_number(value["low"]), _number(value["high"]))
    return tuple(map(_number, value)) if isinstance(value, list) else value


def point(policy: PlayedPolicy, summary: Summary, column: str) -> OperatingPoint:
    """Where a policy lies, its time of one of the columns of `TIMES`."""
    return OperatingPoint(policy.name, policy.kind, summary.success, getattr(summary, column))


def oracle_points(oracle: Oracle) -> list[OperatingPoint]:
    """Mean success and time of the oracle at each λ."""
    return [
        OperatingPoint(
            f"oracle λ={lambda_:g}",
            "oracle",
            float(np.mean([best.success for best in tasks.values()])),
            float(np.mean([best.time_s for best in tasks.values()])),
        )
        for lambda_, tasks in sorted(oracle.items())
    ]


def _row(
    policy: PlayedPolicy,
    summary: Summary,
    pairs: Sequence[tuple[PlayedPolicy, Summary]],
    reference: Summary,
    oracle: Oracle | None,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "kind": policy.kind,
        "like": policy.like,
        "budget": policy.budget,
        "lambda": policy.lambda_,
        **asdict(summary),
        "seeds": _by_seed(policy.episodes),
    }
    for name, column in TIMES.items():
        others = [point(other, its, column) for other, its in pairs]
        row[f"pareto_distance_{name}"] = _distance(point(policy, summary, column), others, getattr(reference, column))
    if oracle:
        mine = point(policy, summary, "time_all_s")
        row["pareto_distance_oracle"] = _distance(mine, oracle_points(oracle), reference.time_all_s)
    return row


def _distance(mine: OperatingPoint, others: Sequence[OperatingPoint], reference_s: float) -> float | None:
    """The Pareto distance; None where always-high has no time: it solves nothing, or calls cost nothing."""
    return pareto_distance(mine, others, reference_s) if reference_s > 0 else None


def _by_seed(episodes: Sequence[EpisodeResult]) -> list[dict[str, Any]]:
    """Success and times of each seed by itself."""
    found = []
    for seed in sorted({episode.seed for episode in episodes}):
        mine = [episode for episode in episodes if episode.seed == seed]
        solved = [episode.time_s for episode in mine if episode.success]
        found.append(
            {
                "seed": seed,
                "success": len(solved) / len(mine),
                "time_success_s": sum(solved) / len(solved) if solved else None,
                "time_all_s": sum(episode.time_s for episode in mine) / len(mine),
            }
        )
    return found


def _differences(
    pairs: Sequence[tuple[PlayedPolicy, Summary]], high: PlayedPolicy, lambda_: float, resamples: int
) -> list[Difference]:
    def best(*kinds: str) -> PlayedPolicy:
        return max((pair for pair in pairs if pair[0].kind in kinds), key=lambda pair: pair[1].mean_return)[0]

    policies = [policy for policy, _ in pairs]
    rivals = [best("router")] if any(policy.kind == "router" for policy in policies) else []
    rivals += [policy for policy in policies if policy.kind == "start"]
    rivals += [alone for alone in (best("high", "low"),) if alone is not high]
    differences = []
    for policy in policies:
        if policy.kind in ROUTED:
            matched = [other for other in policies if other.like == policy.name]
            for other in [*matched, high, *(rivals if policy.kind in TRAINED else [])]:
                pair = (policy.name, policy.episodes, other.name, other.episodes)
                differences.append(paired_difference(*pair, lambda_, resamples))
    return differences


def _returns(
    policies: Sequence[PlayedPolicy], lambdas: Sequence[float], resamples: int, oracle: Oracle
) -> list[dict[str, Any]]:
    """Mean return of each policy at each λ, and how far it is from the oracle's at the same λ."""
    rows = []
    for lambda_ in lambdas:
        best = next((tasks for key, tasks in oracle.items() if math.isclose(key, lambda_, rel_tol=1e-9)), None)
        for policy in policies:
            value, interval = mean_return(policy.episodes, lambda_, resamples)
            row: dict[str, Any] = {"lambda": lambda_, "policy": policy.name}
            row |= {"mean_return": value, "mean_return_ci": asdict(interval)}
            if best is not None:
                values = {task: each.value for task, each in best.items()}
                gap, interval = oracle_gap(policy.episodes, values, lambda_, resamples)
                row |= {"oracle_gap": gap, "oracle_gap_ci": asdict(interval)}
            rows.append(row)
    return rows


def _selection(pairs: Sequence[tuple[PlayedPolicy, Summary]], column: str) -> dict[str, Any] | None:
    """Section 5.3: single precisions, calibrated budgets, and GRPO at each λ, ranked together."""
    pool = [
        point(policy, summary, column)
        for policy, summary in pairs
        if policy.kind in ("high", "low", "grpo") or policy.budget is not None
    ]
    if not any(each.kind in ROUTED for each in pool):
        return None
    selection: Selection = select_by_rank(pool, ROUTED)
    return asdict(selection)


def _gap_recovered(pairs: Sequence[tuple[PlayedPolicy, Summary]], resamples: int) -> dict[str, Any]:
    """APGR of each kind of routed policy, beside that of random routing with the same shares."""
    low, high = (next(pair for pair in pairs if pair[0].kind == kind) for kind in ("low", "high"))
    found: dict[str, Any] = {}
    for kind in ROUTED:
        names = {policy.name for policy, _ in pairs if policy.kind == kind}
        for label, chosen in (
            (kind, [pair for pair in pairs if pair[0].kind == kind]),
            (f"random {kind}", [pair for pair in pairs if pair[0].like in names]),
        ):
            if chosen:
                ends = low[1].success, high[1].success
                shares, values = [s.high_share for _, s in chosen], [s.success for _, s in chosen]
                found[label] = {
                    "apgr": average_gap_recovered(shares, values, *ends),
                    "apgr_ci": asdict(_apgr_interval([low[0], high[0], *(p for p, _ in chosen)], shares, resamples)),
                    "pgr": {s.policy: gap_recovered(s.success, *ends) for _, s in chosen},
                }
    return found


def _apgr_interval(policies: Sequence[PlayedPolicy], shares: Sequence[float], resamples: int) -> Interval:
    """95 % interval of APGR over tasks, at the shares that were measured; always low and always high come first."""
    success = np.stack([task_means(policy.episodes, 0.0)[:, 0] for policy in policies])
    rng = np.random.default_rng(0)
    drawn = [success[:, rng.integers(success.shape[1], size=success.shape[1])].mean(axis=1) for _ in range(resamples)]
    values = [average_gap_recovered(shares, each[2:].tolist(), float(each[0]), float(each[1])) for each in drawn]
    known = [value for value in values if not math.isnan(value)]
    return Interval(*map(float, np.quantile(known, [0.025, 0.975]))) if known else UNKNOWN
