"""Evaluate a router against single precisions and random routing: the paper's Table 1 and Figure 4 for one model.

Policies: always high, always low, the router at each budget K (threshold of Eq. 7 from a calibration panel), the router
at its default threshold 0.5, and, for each of these, random routing with the same share of each precision. Paired
bootstrap differences over tasks set the router against random routing and against always high.

How this differs from the paper:

1. Episode time is reported over solved episodes, as there, and over all episodes: the first flatters a policy that
   solves only what is quick.
2. Each number has a 95 % bootstrap interval over tasks.
3. Time is modelled, Eq. 9 with the environment's coefficients, or whatever ``latency`` of the environment says; router
   time counts only where a router decides.
4. The calibration scores come from one run at the default threshold 0.5, as there; tied scores can make the share of
   high-precision steps exceed K, so the realised shares are reported. ``--thresholds`` reads what agents/calibrate.py
   found instead.
5. In WebShop the paper sends every search to the highest precision. Here that is so for routers trained on click steps
   alone, or with ``--force-high search``; random routing then decides at the same steps as the router.

    python agents/evaluate.py --router runs/kl-st/router --out runs/eval --tasks 60 --calibration-tasks 60
    python agents/evaluate.py --router runs/kl-st/router --out runs/eval --thresholds runs/calibration/thresholds.json

``--out`` then holds results.json, episodes.jsonl (one line an episode), and accuracy_latency.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym import trained_on
from dmr_gym.command_line import add_env_options, chosen_env, first_tasks, make_envs, recipe_parser, run
from dmr_gym.deployment import (
    DEFAULT_TAU,
    Calibration,
    add_calibration_options,
    budget_text,
    calibrate,
    check_calibration_args,
    check_router,
    forced_types,
    forcing,
    read_calibration,
)
from dmr_gym.errors import ConfigError
from dmr_gym.figures import draw_accuracy_latency
from dmr_gym.latency import PriceSource, price_source
from dmr_gym.metrics import Difference, Summary, paired_difference, summarize
from dmr_gym.policies import FixedPrecision, Policy, RandomPolicy, RouterPolicy
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.router import PrecisionRouter
from dmr_gym.runs import provenance, write_atomically, write_json
from dmr_gym.vector import PrecisionRoutingVectorEnv

Played = dict[tuple[str, str], list[Trajectory]]
"""Episodes by kind and name of the policy that played them."""


@dataclass(frozen=True)
class Row:
    """One line of the result table: its kind ("high", "low", "router", "random") decides how it is drawn."""

    kind: str
    summary: Summary


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__, "evaluate")
    add = parser.add_argument
    add(
        "--router",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder that agents/train_kl_st.py wrote router files to",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--panel", default="test", help="panel to report (default: %(default)s)")
    add("--tasks", type=int, metavar="N", help="first N tasks of that panel (default: all)")
    add("--random-seeds", type=int, default=3, metavar="N", help="runs of each random policy (default: %(default)s)")
    add(
        "--thresholds",
        type=Path,
        metavar="FILE",
        help="thresholds.json of agents/calibrate.py, in place of playing the calibration panel; it says the budgets "
        "and the forced types too",
    )
    add_calibration_options(parser)
    add_env_options(parser)
    args = parser.parse_args(argv)
    check_calibration_args(args)
    if args.thresholds is not None and (args.split_ties or args.calibration_tasks is not None):
        raise ConfigError("--split-ties and --calibration-tasks have no effect with --thresholds: leave them out")
    if args.random_seeds < 0:
        raise ConfigError(f"--random-seeds must be at least 0, got {args.random_seeds}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate, play every policy, and write the table and the picture."""
    args = parse_args(argv)
    env_id, config = chosen_env(args, args.out / "cache")
    router = PrecisionRouter.load(args.router, args.device)
    check_router(router, config)
    envs = make_envs(config, args.panel, args.num_envs)
    task_ids = first_tasks(envs, args.tasks)
    models = {name: envs.backend.digest(name) for name in envs.precisions}
    here = trained_on.environment_record(env_id, args.panel, config, models)
    for warning in trained_on.check(router.trained_on, here, config.max_steps):
        print(f"warning: {warning}")
    prices = price_source(config.latency, config.precisions)
    if args.thresholds is not None:
        calibration = read_calibration(args.thresholds, router, args.budgets, args.force_high)
        forced_types(calibration.forced, router)
        if calibration.models != models:
            print(f"warning: {args.thresholds} was made with other models of the same precisions")
    else:
        calibration, _ = calibrate(router, config, args, forced_types(args.force_high, router))

    played = play(envs, router, calibration, task_ids, args)
    high = len(envs.precisions) - 1
    rows = tabulate(played, high, config.lambda_, args.resamples)
    differences = compare(played, high, config.lambda_, args.resamples)
    envs.close()

    write_atomically(args.out / "episodes.jsonl", lambda part: part.write_text(episode_lines(played), encoding="utf-8"))
    record = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "env_id": env_id,
        "env": asdict(config),
        "latency": asdict(prices),
        "models": models,
        "router_digest": router.digest(),
        "router_trained_on": router.trained_on,
        "calibration": calibration.scores,
        "forced_high": calibration.forced,
        "thresholds": [asdict(threshold) for threshold in calibration.thresholds],
        "results": [{"kind": row.kind, **asdict(row.summary)} for row in rows],
        "differences": [asdict(difference) for difference in differences],
        **provenance(),
    }
    write_json(args.out / "results.json", record)
    picture = args.out / "accuracy_latency.png"
    policies = [(row.kind, row.summary) for row in rows]
    write_atomically(picture, lambda part: draw_accuracy_latency(policies, prices.title, part))
    show(rows, differences, prices)
    print(f"picture: {picture}\nnumbers: {args.out / 'results.json'} and {args.out / 'episodes.jsonl'}")


def play(
    envs: PrecisionRoutingVectorEnv,
    router: PrecisionRouter,
    calibration: Calibration,
    task_ids: Sequence[str],
    args: argparse.Namespace,
) -> Played:
    """Run every policy on the same tasks; keys are (kind, name)."""
    high = len(envs.precisions) - 1

    def run_policy(name: str, policy: Policy) -> list[Trajectory]:
        return rollout(envs, policy, task_ids, progress=name)

    played = {
        ("high", f"always {envs.precisions[-1]}"): run_policy(f"always {envs.precisions[-1]}", FixedPrecision(high)),
        ("low", f"always {envs.precisions[0]}"): run_policy(f"always {envs.precisions[0]}", FixedPrecision(0)),
    }
    forced = calibration.forced
    points = {f"K={budget_text(t.budget)}": (t.value, t.tie_probability) for t in calibration.thresholds}
    for label, (tau, tie_probability) in (points | {"p≥0.5": (DEFAULT_TAU, 1.0)}).items():
        policy = RouterPolicy(router, tau=tau, tie_probability=tie_probability)
        routed = run_policy(f"router {label}", forcing(policy, high, forced))
        actions = np.concatenate([t.actions[t.router_called] for t in routed])
        shares = (np.bincount(actions, minlength=high + 1) / len(actions)).tolist()
        played["router", f"router {label}"] = routed
        drawn: list[Trajectory] = []
        for seed in range(args.random_seeds):
            random = forcing(RandomPolicy(shares, len(envs.precisions), seed), high, forced)
            runs = run_policy(f"random {label}, seed {seed}", random)
            # Seeds repeat a task, so they are told apart as repeats and stay one group of the bootstrap.
            drawn += [replace(t, key=t.key._replace(repeat=seed)) for t in runs]
        if drawn:
            played["random", f"random {label}"] = drawn
    return played


def tabulate(played: dict[tuple[str, str], list[Trajectory]], high: int, lambda_: float, resamples: int) -> list[Row]:
    """Summarize every policy, speedups against always high."""
    rows: list[Row] = []
    for (kind, name), trajectories in played.items():
        reference = rows[0].summary if rows else None
        results = [trajectory.result(high) for trajectory in trajectories]
        rows.append(Row(kind, summarize(name, results, lambda_, reference, resamples)))
    rows[0] = replace(rows[0], summary=replace(rows[0].summary, speedup_success=1.0, speedup_all=1.0))
    return rows


def compare(played: Played, high: int, lambda_: float, resamples: int) -> list[Difference]:
    """Each router minus random routing with the same shares, and minus always high, task by task."""
    results = {name: [trajectory.result(high) for trajectory in episodes] for (_, name), episodes in played.items()}
    always_high = next(name for kind, name in played if kind == "high")
    differences = []
    for kind, name in played:
        if kind == "router":
            others = [name.replace("router", "random", 1), always_high]
            pairs = [(name, results[name], other, results[other]) for other in others if other in results]
            differences += [paired_difference(*pair, lambda_, resamples) for pair in pairs]
    return differences


def episode_lines(played: Played) -> str:
    """One JSON object a line: what each policy did in each episode."""
    lines = []
    for (kind, name), trajectories in played.items():
        for t in trajectories:
            line = {
                "policy": name,
                "kind": kind,
                "task_id": t.key.task_id,
                "repeat": t.key.repeat,
                "success": t.success,
                "score": t.score,
                "time_s": t.time_s,
                "steps": len(t.actions),
                "completion_tokens": t.completion_tokens.tolist(),
                "actions": t.actions.tolist(),
                "p_high": [None if np.isnan(p) else float(p) for p in t.p_high] if t.router_called.any() else None,
                "step_types": list(t.step_types),
            }
            lines.append(json.dumps(line) + "\n")
    return "".join(lines)


def show(rows: Sequence[Row], differences: Sequence[Difference], prices: PriceSource) -> None:
    """Print the table of policies and that of paired differences."""
    from rich.console import Console

    console = Console()
    # A file or a narrow window gets whole lines rather than numbers cut in the middle.
    console.width = max(console.width, 120)
    console.print(policy_table(rows, prices), difference_table(differences, prices.unit))


def policy_table(rows: Sequence[Row], prices: PriceSource) -> Any:
    """A line a policy; the world's own score has a column where it says more than success, as WebShop's reward does."""
    from rich import box
    from rich.table import Table

    has_score = any(row.summary.score != row.summary.success for row in rows if not np.isnan(row.summary.score))
    table = Table(title=f"95 % intervals over tasks in brackets\n{prices.title}", box=box.SIMPLE_HEAD)
    table.add_column("policy", no_wrap=True)
    cost = "time" if prices.unit == "s" else prices.unit
    times = (f"{cost},\nsolved", "speed-\nup", f"{cost},\nall", "speed-\nup")
    for title in ("success %", *(["score"] if has_score else []), *times, "high\n%", "steps", "return"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        s = row.summary
        table.add_row(
            s.policy,
            f"{100 * s.success:.1f} [{100 * s.success_ci.low:.0f}, {100 * s.success_ci.high:.0f}]",
            *([_number(s.score, 3)] if has_score else []),
            *(_amount(value) for value in (s.time_success_s, s.speedup_success, s.time_all_s, s.speedup_all)),
            _number(100 * s.high_share, 0),
            _number(s.steps, 1),
            _number(s.mean_return, 3),
            style={"router": "bold", "random": "dim"}.get(row.kind),
        )
    return table


def difference_table(differences: Sequence[Difference], unit: str) -> Any:
    """A line a pair of policies, task by task; times in the unit of the prices."""
    from rich import box
    from rich.table import Table

    table = Table(title="paired differences, the same tasks", box=box.SIMPLE_HEAD)
    table.add_column("policy", no_wrap=True)
    for title in ("success, points", "time of all, s" if unit == "s" else f"{unit} of all", "return"):
        table.add_column(title, justify="right", no_wrap=True)
    for d in differences:
        table.add_row(
            f"{d.policy} − {d.minus}",
            _gap(100 * d.success, 100 * d.success_ci.low, 100 * d.success_ci.high, 1),
            _gap(d.time_all_s, d.time_all_s_ci.low, d.time_all_s_ci.high, 2 if unit == "s" else 6),
            _gap(d.mean_return, d.mean_return_ci.low, d.mean_return_ci.high, 3),
        )
    return table


def _gap(value: float, low: float, high: float, digits: int) -> str:
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def _amount(value: float) -> str:
    """Two decimals, or two digits where decimals would show none: dollars of an episode are small."""
    return f"{value:.2g}" if 0 < value < 0.1 else _number(value, 2)


def _number(value: float, digits: int) -> str:
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


if __name__ == "__main__":
    run(main)
