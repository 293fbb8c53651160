"""Evaluate routers by the paper's protocol: Table 1, Figure 4, and the selection of section 5.3, for one model.

Policies: each precision alone; the router of ``--router`` at each budget K (threshold of Eq. 7 from a calibration
panel) and at its default threshold 0.5; routers trained at some λ (``--grpo``, ``--ppo``), which take the likeliest
precision, and the KL-ST router that they began from (``--start``), which then does so too and is forced nowhere; and,
for each of these, random routing with the same share of each precision.

How this differs from the paper:

1. Episode time is reported over solved episodes, as there, and over all episodes: the first flatters a policy that
   solves only what is quick.
2. Each number has a 95 % bootstrap interval over tasks; policies are compared task by task.
3. Seeds are runs with a router of their own, or with draws of their own. One router under greedy decoding has neither:
   every seed would be the same, and it is played once.
4. Time is modelled, Eq. 9 with the environment's coefficients, or whatever ``latency`` of the environment says; router
   time counts only where a router decides.
5. Tied scores can make the share of high-precision steps exceed K, so the realised shares are reported.
6. In WebShop the paper sends every search to the highest precision. Here that is so for routers trained on click steps
   alone, or with ``--force-high search``; random routing then decides at the same steps as the router.

    python agents/evaluate.py --router runs/kl-st/router --out runs/eval --tasks 60 --calibration-tasks 60
    python agents/evaluate.py --router runs/kl-st-0/router runs/kl-st-1/router runs/kl-st-2/router --out runs/eval \
        --grpo 0.05 runs/grpo-0.05/router --grpo 0.1 runs/grpo-0.1/router --grpo 0.2 runs/grpo-0.2/router

``--out`` then holds episodes.jsonl (one line an episode, with its steps), from which results.json, tables.md and
accuracy_latency.png are drawn, and journal.jsonl, with versions and digests of each run. Each episode is saved as it
ends: started again after it was stopped or killed, or with more policies or tasks, it plays only what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dmr_gym import trained_on
from dmr_gym.alternatives import (
    ALTERNATIVES_FILE,
    Alternatives,
    add_alternatives_option,
    check_alternatives,
    chosen_tasks,
)
from dmr_gym.command_line import add_env_options, chosen_env, first_tasks, make_envs, recipe_parser, run, settings_of
from dmr_gym.config import EnvConfig
from dmr_gym.deployment import (
    DEFAULT_TAU,
    Calibration,
    add_calibration_options,
    budget_text,
    calibrate_once,
    check_calibration_args,
    check_router,
    forced_types,
    read_calibration,
)
from dmr_gym.encoders import make_encoder
from dmr_gym.errors import ConfigError
from dmr_gym.evaluation import (
    BATCHES_FOLDER,
    EPISODES_FILE,
    Arena,
    Contender,
    RoutedPoint,
    random_like,
    routed,
    single_precision,
)
from dmr_gym.figures import draw_accuracy_latency, pyplot
from dmr_gym.journal import Journal
from dmr_gym.latency import PriceSource
from dmr_gym.oracle_origin import check_origin, oracle_origin
from dmr_gym.parts import prices_of
from dmr_gym.records import read_policies
from dmr_gym.result_tables import result_tables
from dmr_gym.results import TRAINED, Results, of_tasks, oracle_points, read_oracle, tabulate
from dmr_gym.router import PrecisionRouter
from dmr_gym.runs import file_digest, provenance, write_atomically, write_json
from dmr_gym.serving.settings import served_device
from dmr_gym.tables import write_tables
from dmr_gym.tasks import make_task
from dmr_gym.training import stop_on_signal
from dmr_gym.tree.graph import trees_digest
from dmr_gym.types import SamplingParams

PICTURE = "accuracy_latency.png"
START = "KL-ST start"
"""Name of the policy of ``--start``."""


@dataclass(frozen=True)
class Team:
    """Routers that count as one policy, one or one a seed: of ``--router``, of ``--start``, or trained at a λ."""

    kind: str
    routers: tuple[PrecisionRouter, ...]
    lambda_: float | None = None


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__, "evaluate")
    add = parser.add_argument
    add(
        "--router",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="router/ folder of a training, to be run at each budget; or one a seed",
    )
    add(
        "--start",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="router/ folder of KL-ST that GRPO and PPO began from, or one a seed: it is played as theirs are",
    )
    for name in TRAINED:
        add(
            f"--{name}",
            nargs="+",
            action="append",
            default=[],
            metavar=("LAMBDA", "DIR"),
            help=f"λ and the router/ folder of agents/train_{name}.py, or one folder a seed; may be repeated",
        )
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--panel", default="test", help="panel to report (default: %(default)s)")
    add("--tasks", type=int, metavar="N", help="first N tasks of that panel (default: all)")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each policy with chance (default: %(default)s)")
    add("--no-random", action="store_true", help="leave random routing out")
    add("--lambdas", type=float, nargs="+", default=[], metavar="X", help="further λ to compare returns at")
    add("--oracle", type=Path, metavar="FILE", help="best return of each task by λ, for the gap to it")
    add(
        "--thresholds",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="thresholds.json of agents/calibrate.py, one a router, in place of playing the calibration panel; it says "
        "the budgets and the forced types too",
    )
    add("--batch", type=int, default=32, metavar="N", help="episodes that share a file (default: %(default)s)")
    add(
        "--batches", type=Path, metavar="DIR", help="folder of saved batches, shared by evaluations (default: in --out)"
    )
    add("--no-texts", action="store_true", help="leave observations, actions and completions out of episodes.jsonl")
    add_alternatives_option(parser)
    add_calibration_options(parser)
    add_env_options(parser)
    args = parser.parse_args(argv)
    check_calibration_args(args)
    check_alternatives(args)
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse what would end the run only after something was played."""
    if args.thresholds is not None and (args.split_ties or args.calibration_tasks is not None):
        raise ConfigError("--split-ties and --calibration-tasks have no effect with --thresholds: leave them out")
    if args.thresholds is not None and len(args.thresholds) != len(args.router):
        raise ConfigError(f"--thresholds needs one file a router: {len(args.thresholds)} for {len(args.router)}")
    for name in ("seeds", "batch"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not all(0 <= lambda_ < float("inf") for lambda_ in args.lambdas):
        raise ConfigError(f"--lambdas must be finite numbers of at least 0, got {args.lambdas}")
    for name in TRAINED:
        found = [trained_at(name, values)[0] for values in getattr(args, name)]
        if len(set(found)) < len(found):
            raise ConfigError(f"--{name} names a λ twice: give the folders of its seeds behind one")
    start = [args.start] if args.start else []
    for folders in [args.router, *start, *(values[1:] for name in TRAINED for values in getattr(args, name))]:
        if len(folders) not in (1, args.seeds):
            raise ConfigError(f"a policy has one router or one for each of {args.seeds} --seeds, got {len(folders)}")


def trained_at(name: str, values: Sequence[str]) -> tuple[float, list[Path]]:
    """λ and folders of one ``--grpo`` or ``--ppo``."""
    try:
        lambda_ = float(values[0])
    except ValueError:
        lambda_ = -1.0
    if not 0 <= lambda_ < float("inf") or len(values) < 2:
        raise ConfigError(f"--{name} takes λ and a folder or more, such as --{name} 0.1 DIR, got {' '.join(values)}")
    return lambda_, [Path(value) for value in values[1:]]


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate, play every policy, and write what was found."""
    args = parse_args(argv)
    pyplot()  # where nothing can be drawn that is said now, not after the last task
    journal = Journal(args.out)
    env_id, config = chosen_env(args, args.out / "cache")
    oracle = None if args.oracle is None else read_oracle(args.oracle)
    teams = load_teams(args, config)
    with (
        closing(make_envs(config, args.panel, args.num_envs, whole=True)) as envs,
        stop_on_signal("calibration or episode", "the same command") as stop,
    ):
        task_ids = first_tasks(envs, args.tasks)
        models = {name: envs.backend.digest(name) for name in envs.precisions}
        check_training(teams, trained_on.environment_record(env_id, args.panel, config, models), config)
        if args.oracle is not None:
            warn(check_origin(args.oracle, oracle_origin(config, models)))
        oracle = of_tasks(oracle, task_ids)
        digests: dict[str, Any] = {"models": models, "encoder": make_encoder(config.encoder).digest}
        if args.trees is not None:
            panels = [args.panel] if args.thresholds is not None else [args.panel, args.calibration_panel]
            digests["trees"] = {panel: trees_digest(Path(args.trees) / panel) for panel in panels}
        calibrations = [calibration_of(i, router, config, args, digests) for i, router in enumerate(teams[0].routers)]
        check_calibrations(calibrations)
        stop.leave("the calibration")
        entry = {
            "settings": settings_of(args),
            "env_id": env_id,
            "env": asdict(config),
            "precisions": list(config.precisions),
            "latency": asdict(prices_of(config, served_device(args.config))),
            **digests,
            "routers": [describe(team) for team in teams],
            "calibrations": [asdict(calibration) for calibration in calibrations],
        }
        warn(journal.start(entry))
        arena = Arena(
            envs,
            task_ids,
            args.batches or args.out / BATCHES_FOLDER,
            config,
            {"panel": args.panel, **digests},
            batch=args.batch,
            texts=not args.no_texts,
            stop=stop,
        )
        play(arena, teams, calibrations, config, args)
        episodes = args.out / EPISODES_FILE
        arena.write_episodes(episodes)
        if args.alternatives is not None:
            task = make_task(config.task, **{**config.task_kwargs, "panel": args.panel})
            asked = Alternatives(task, envs.backend, SamplingParams(**config.sampling))
            arena.write_alternatives(args.out / ALTERNATIVES_FILE, chosen_tasks(args.alternatives, task_ids), asked)
    lambdas = [*args.lambdas, *(team.lambda_ for team in teams if team.lambda_ is not None)]
    policies = read_policies(episodes, len(config.precisions))
    results = tabulate(policies, config.lambda_, args.resamples, lambdas, oracle)
    path = args.out / "results.json"
    cost = provenance()
    if arena.new_episodes == 0 and path.is_file():  # what it took is that of the run that played them
        before = json.loads(path.read_text(encoding="utf-8"))
        cost |= {name: before[name] for name in ("processor", "process_s") if name in before}
    write_json(path, {**entry, **results.data, **cost})
    show(results, args, entry, oracle)
    names = (episodes.name, "results.json", *([ALTERNATIVES_FILE] if args.alternatives else []))
    made = {name: file_digest(args.out / name) for name in names}
    journal.end({"episodes_played": arena.new_episodes, "sha256": made})


def load_teams(args: argparse.Namespace, config: EnvConfig) -> list[Team]:
    """Load every router, that of ``--router`` first."""
    named: list[tuple[str, float | None, list[Path]]] = [("router", None, args.router)]
    named += [("start", None, args.start)] if args.start else []
    named += [(kind, *trained_at(kind, values)) for kind in TRAINED for values in getattr(args, kind)]
    teams = []
    for kind, lambda_, folders in named:
        routers = tuple(PrecisionRouter.load(folder, args.device) for folder in folders)
        for router in routers:
            check_router(router, config)
        teams.append(Team(kind, routers, lambda_))
    return teams


def check_training(teams: Sequence[Team], here: dict[str, Any], config: EnvConfig) -> None:
    """Print how the environment differs from those that the routers were trained in."""
    found = [trained_on.check(router.trained_on, here, config.max_steps) for team in teams for router in team.routers]
    warn(list(dict.fromkeys(warning for warnings in found for warning in warnings)))


def warn(warnings: Sequence[str]) -> None:
    """Print what does not stop an evaluation but should be known."""
    for warning in warnings:
        print(f"warning: {warning}")


def calibration_of(
    index: int, router: PrecisionRouter, config: EnvConfig, args: argparse.Namespace, digests: dict[str, Any]
) -> Calibration:
    """The thresholds of a router: from a file, from an earlier run, or from playing the calibration panel."""
    if args.thresholds is None:
        forced = forced_types(args.force_high, router)
        return calibrate_once(args.out / "calibrations", router, config, args, forced, digests)
    path = args.thresholds[index]
    calibration = read_calibration(path, router, args.budgets, args.force_high)
    forced_types(calibration.forced, router)
    if calibration.models != digests["models"]:
        warn([f"{path} was made with other models of the same precisions"])
    return calibration


def check_calibrations(calibrations: Sequence[Calibration]) -> None:
    """Refuse routers that cannot count as one policy."""
    if len({(c.forced, tuple(t.budget for t in c.thresholds)) for c in calibrations}) > 1:
        raise ConfigError("the routers of --router differ in their budgets or forced steps: evaluate them one by one")


def describe(team: Team) -> dict[str, Any]:
    """What the record says of routers."""
    each = [{"digest": router.digest(), "trained_on": router.trained_on} for router in team.routers]
    return {"kind": team.kind, "lambda": team.lambda_, "seeds": each}


def play(
    arena: Arena,
    teams: Sequence[Team],
    calibrations: Sequence[Calibration],
    config: EnvConfig,
    args: argparse.Namespace,
) -> None:
    """Let every policy play the panel: single precisions, then each router with random routing behind it."""
    greedy = SamplingParams(**config.sampling).temperature == 0
    high = len(config.precisions) - 1
    for index in (high, *range(high)):
        arena.play(single_precision(index, config.precisions, 1 if greedy else args.seeds))
    for contender, forced in contenders(teams, calibrations, args.seeds, greedy):
        arena.play(contender)
        if not args.no_random:
            arena.play(random_like(contender, arena.shares(contender), forced, args.seeds))


def contenders(
    teams: Sequence[Team], calibrations: Sequence[Calibration], seeds: int, greedy: bool
) -> list[tuple[Contender, tuple[str, ...]]]:
    """Every routed policy, and the types of steps that it is not asked at."""
    [first, *trained], forced = teams, calibrations[0].forced
    found = []
    for number, threshold in enumerate(calibrations[0].thresholds):
        points = [
            RoutedPoint(router, c.thresholds[number].value, c.thresholds[number].tie_probability, c.forced)
            for router, c in zip(first.routers, calibrations, strict=True)
        ]
        budget = threshold.budget
        found.append(routed(f"router K={budget_text(budget)}", "router", points, seeds, greedy, budget=budget))
    points = [RoutedPoint(router, DEFAULT_TAU, 1.0, forced) for router in first.routers]
    found.append(routed(f"router p≥{DEFAULT_TAU:g}", "router", points, seeds, greedy))
    pairs = [(contender, forced) for contender in found]
    for team in trained:
        points = [RoutedPoint(router) for router in team.routers]
        name = START if team.kind == "start" else f"{team.kind.upper()} λ={team.lambda_!r}"
        pairs.append((routed(name, team.kind, points, seeds, greedy, lambda_=team.lambda_), ()))
    return pairs


def show(results: Results, args: argparse.Namespace, entry: dict[str, Any], oracle: Any) -> None:
    """Print the tables, write them, and draw the picture."""
    prices = PriceSource(**entry["latency"])
    tables = result_tables(results, entry["precisions"], prices)
    path = write_tables(args.out, tables, f"{entry['env_id']}, panel {args.panel}")
    points = [(policy.kind, summary) for policy, summary in zip(results.policies, results.summaries, strict=True)]
    picture, best = args.out / PICTURE, oracle_points(oracle or {})
    write_atomically(picture, lambda part: draw_accuracy_latency(points, prices.title, part, best))
    for table in tables:
        table.show()
    print(f"picture: {picture}\ntables: {path}")
    print(f"numbers: {args.out / 'results.json'} and {args.out / EPISODES_FILE}")


if __name__ == "__main__":
    run(main)
