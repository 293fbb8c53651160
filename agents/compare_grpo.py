"""Train GRPO at several λ with several seeds, and compare its returns with everything that needs no such training.

For each λ and way to compute advantages, ``--seeds`` runs of agents/train_grpo.py start from one KL-ST router. All of
them, always high, always low, the KL-ST router at each budget K and at its default threshold, and random routing with
the shares of each GRPO run then play the test panel. Returns are R = success - λ·T (Eq. 8), router time counted where a
router decided. GRPO's routers decide greedily.

Intervals are 95 %: over tasks for policies without training seeds; for GRPO, training seeds and tasks are both drawn
anew. Differences are paired by task. Of the settings of a KL-ST router, each λ shows the one with the best return on
the test panel itself, which favours KL-ST. ``--rivals`` adds further KL-ST routers, of other seeds or of more data,
each shown in the same way.

    python agents/compare_grpo.py --router runs/kl-st/router --out runs/compare --lambdas 0.05 0.1 0.2
    python agents/compare_grpo.py --router runs/kl-st/router --out runs/compare --advantages mean group_std

Options of agents/train_grpo.py are handed on: --updates 40 --tasks 64 --lr 3e-4. ``--out`` holds a folder a run,
results.json, episodes.jsonl, returns.md, returns.png, and courses.png: how each run went on held-out tasks. Started
again, it goes on with the runs and episodes that are missing; then there may be more λ, seeds, and ways to compute
advantages.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

import train_grpo

from dmr_gym.ablation_figures import draw_courses, draw_returns
from dmr_gym.command_line import (
    add_env_options,
    chosen_env,
    env_options,
    first_tasks,
    make_envs,
    part_digests,
    recipe_parser,
    run,
    settings_of,
)
from dmr_gym.config import EnvConfig
from dmr_gym.deployment import (
    DEFAULT_TAU,
    add_calibration_options,
    budget_text,
    calibrate_once,
    check_calibration_args,
    check_router,
    forced_types,
)
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
from dmr_gym.figures import pyplot
from dmr_gym.grpo_batch import STATE_MODES
from dmr_gym.latency import PriceSource
from dmr_gym.losses import ADVANTAGE_MODES
from dmr_gym.metrics import Interval
from dmr_gym.parts import prices_of
from dmr_gym.records import PlayedPolicy, read_policies
from dmr_gym.result_tables import DIGITS
from dmr_gym.router import PrecisionRouter
from dmr_gym.runs import provenance, write_atomically, write_json
from dmr_gym.serving.settings import served_device
from dmr_gym.tables import Table, number, percent, with_interval
from dmr_gym.training import claim_folder, read_history, stop_on_signal
from dmr_gym.types import SamplingParams


@dataclass(frozen=True)
class Played:
    """A policy on the test panel: success and seconds of its episodes, (seeds, tasks), and (P,) shares of its steps."""

    name: str
    kind: str
    success: np.ndarray
    time_s: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, policy: PlayedPolicy, kind: str, tasks: int) -> Played:
        """From the record of its episodes, which has one seed after the other."""
        steps = np.array([episode.precision_steps for episode in policy.episodes]).sum(axis=0)
        return cls(
            name=policy.name,
            kind=kind,
            success=np.array([episode.success for episode in policy.episodes], dtype=np.float64).reshape(-1, tasks),
            time_s=np.array([episode.time_s for episode in policy.episodes]).reshape(-1, tasks),
            shares=steps / steps.sum(),
        )

    def returns(self, lambda_: float) -> np.ndarray:
        """R of Eq. 8, (seeds, tasks)."""
        return np.asarray(self.success - lambda_ * self.time_s)


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what is not known here is for agents/train_grpo.py."""
    parser = recipe_parser(__doc__, "compare_grpo")
    add = parser.add_argument
    add("--router", type=Path, required=True, metavar="DIR", help="KL-ST router to begin with")
    add("--rivals", type=Path, nargs="+", default=[], metavar="DIR", help="further KL-ST routers to compare with")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add(
        "--lambdas",
        type=float,
        nargs="+",
        default=[0.05, 0.1, 0.2],
        metavar="X",
        help="λ: reward that a second of latency costs, a training each (default: 0.05 0.1 0.2)",
    )
    add(
        "--advantages",
        nargs="+",
        choices=(*ADVANTAGE_MODES, *STATE_MODES),
        default=["mean"],
        help="ways to compute advantages, a training each; see agents/train_grpo.py (default: mean)",
    )
    add("--seeds", type=int, default=5, metavar="N", help="training runs of each setting (default: %(default)s)")
    add("--test-panel", default="test", help="panel to report (default: %(default)s)")
    add("--test-tasks", type=int, metavar="N", help="first N tasks of that panel (default: all)")
    add_calibration_options(parser)
    add_env_options(parser)
    parser.set_defaults(num_envs=32)
    args, rest = parser.parse_known_args(argv)
    check_calibration_args(args)
    if args.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {args.seeds}")
    if min(args.lambdas) < 0 or len(set(args.lambdas)) < len(args.lambdas):
        raise ConfigError(f"--lambdas must be different numbers of at least 0, got {args.lambdas}")
    names = [rival_name(folder) for folder in args.rivals]
    if len(set(names)) < len(names):
        raise ConfigError(f"--rivals go by the names of their runs, which must differ, got {names}")
    if any(option.split("=")[0] == "--seed" for option in rest):
        raise ConfigError("--seed is set for each run: --seeds N makes runs of the seeds 0 to N - 1")
    return args, rest


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, play the test panel, and write table and picture."""
    args, rest = parse_args(argv)
    pyplot()  # where nothing can be drawn that is said now, not after the last training
    env_id, config = chosen_env(args, args.out / "cache")
    digests = part_digests(config, (args.calibration_panel, args.test_panel))
    claim(args, rest, env_id, config, digests)
    prices = prices_of(config, served_device(args.config))
    settings = list(itertools.product(args.advantages, args.lambdas, range(args.seeds)))
    for advantages, lambda_, seed in settings:
        train(args, rest, config, advantages, lambda_, seed)
    with (
        closing(make_envs(config, args.test_panel, args.num_envs)) as envs,
        stop_on_signal("calibration or episode", "the same command") as stop,
    ):
        precisions, tasks = envs.precisions, first_tasks(envs, args.test_tasks)
        digests["models"] = {name: envs.backend.digest(name) for name in precisions}
        basis = {"panel": args.test_panel, **digests}
        arena = Arena(envs, tasks, args.out / BATCHES_FOLDER, config, basis, texts=False, stop=stop)
        kinds = play(arena, config, args, digests)
        arena.write_episodes(args.out / EPISODES_FILE)
    policies = read_policies(args.out / EPISODES_FILE, len(precisions))
    contenders = [Played.of(policy, kinds[policy.name], len(tasks)) for policy in policies]
    rows = tabulate(contenders, args, precisions[-1])
    record = {
        "settings": settings_of(args),
        "training_options": rest,
        "env_id": env_id,
        "env": asdict(config),
        "precisions": precisions,
        "latency": asdict(prices),
        "tasks": len(tasks),
        "results": rows,
        "advantage_gaps": advantage_gaps(contenders, args),
        "courses": courses(args),
        **provenance(),
    }
    write_json(args.out / "results.json", record)
    picture = args.out / "returns.png"
    write_atomically(picture, lambda part: draw_returns(rows, prices.title, part))
    write_atomically(args.out / "courses.png", lambda part: draw_courses(record["courses"], precisions[-1], part))
    table = as_table(rows, args, prices)
    write_atomically(args.out / "returns.md", lambda part: part.write_text(table.markdown(), encoding="utf-8"))
    table.show()
    print(f"picture: {picture}\nnumbers: {args.out / 'results.json'} and {args.out / EPISODES_FILE}")


def claim(
    args: argparse.Namespace, rest: Sequence[str], env_id: str, config: EnvConfig, digests: dict[str, Any]
) -> None:
    """Refuse wrong options of the training, and a folder of other results.

    More λ, seeds, ways to compute advantages, and rivals may join those that are there.
    """
    training = train_grpo.parse_args(["--router", str(args.router), "--out", str(args.out), *env_options(args), *rest])
    settings = settings_of(training) | settings_of(args) | {"env_id": env_id, "env": asdict(config)}
    settings["env"].pop("cache_dir")
    settings["router_digest"] = PrecisionRouter.load(args.router).digest()
    settings["rivals"] = [f"{rival_name(path)} {PrecisionRouter.load(path).digest()}" for path in args.rivals]
    settings |= digests
    claim_folder(args.out, settings, True, train_grpo.FREE, growing=("lambdas", "seeds", "advantages", "rivals"))


def rival_name(folder: Path) -> str:
    """What a rival is called: the run whose ``router`` it is, or its own folder."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "router" else folder.name


def run_folder(args: argparse.Namespace, advantages: str, lambda_: float, seed: int) -> Path:
    """Where a training run lies."""
    folder: Path = args.out / "runs" / f"{advantages}-lambda-{lambda_!r}-seed-{seed}"
    return folder


def train(
    args: argparse.Namespace, rest: Sequence[str], config: EnvConfig, advantages: str, lambda_: float, seed: int
) -> None:
    """Train one run, or what is left of it; nothing is left of a finished one, but its settings are compared."""
    folder = run_folder(args, advantages, lambda_, seed)
    print(f"\n{folder.name}", flush=True)
    command: list[object] = ["--router", args.router, "--out", folder, "--advantages", advantages, "--seed", seed]
    command += [*env_options(args), "--cache-dir", config.cache_dir, "--device", args.device]
    command += ["--set", f"lambda_={lambda_}"]
    command += ["--resume"] if (folder / "args.json").is_file() else []
    train_grpo.main([*map(str, command), *rest])


def courses(args: argparse.Namespace) -> list[dict[str, Any]]:
    """How each run went on held-out tasks: return and share of the highest precision."""
    found = []
    for advantages, lambda_, seed in itertools.product(args.advantages, args.lambdas, range(args.seeds)):
        history = read_history(run_folder(args, advantages, lambda_, seed))
        points = [entry for entry in history if "validation/return" in entry]
        columns = {"updates": "update", "returns": "validation/return", "high_shares": "validation/high"}
        of_run = {name: [point[key] for point in points] for name, key in columns.items()}
        found.append({"advantages": advantages, "lambda": lambda_, "seed": seed, **of_run})
    return found


def play(arena: Arena, config: EnvConfig, args: argparse.Namespace, digests: dict[str, Any]) -> dict[str, str]:
    """Let every policy play the test panel; returns what each is, by its name."""
    kinds: dict[str, str] = {}

    def enter(contender: Contender, kind: str) -> Contender:
        kinds[contender.name] = kind
        arena.play(contender)
        return contender

    high, greedy = len(config.precisions) - 1, SamplingParams(**config.sampling).temperature == 0
    for index in (high, *range(high)):
        single = single_precision(index, config.precisions)
        enter(single, single.kind)
    for index, folder in enumerate((args.router, *args.rivals)):
        name, kind = (rival_name(folder), f"kl-st rival {index}") if index else ("KL-ST", "kl-st")
        router = PrecisionRouter.load(folder, args.device)
        check_router(router, config)
        forced = forced_types(args.force_high, router)
        calibration = calibrate_once(args.out / "calibrations", router, config, args, forced, digests)
        points = {f"K={budget_text(t.budget)}": (t.value, t.tie_probability) for t in calibration.thresholds}
        for label, (tau, ties) in (points | {"p≥0.5": (DEFAULT_TAU, 1.0)}).items():
            enter(routed(f"{name} {label}", "router", [RoutedPoint(router, tau, ties, forced)], 1, greedy), kind)
    for advantages, lambda_ in itertools.product(args.advantages, args.lambdas):
        folders = [run_folder(args, advantages, lambda_, seed) for seed in range(args.seeds)]
        trained = [RoutedPoint(PrecisionRouter.load(folder / "router", args.device)) for folder in folders]
        name, way = f"GRPO {advantages} λ={lambda_!r}", f"{advantages} {lambda_}"
        grpo = enter(routed(name, "grpo", trained, args.seeds, greedy, lambda_=lambda_), f"grpo {way}")
        # Random routing has the shares of all seeds together, and as many seeds of its own.
        enter(random_like(grpo, arena.shares(grpo), (), args.seeds), f"random {way}")
    return kinds


def tabulate(contenders: Sequence[Played], args: argparse.Namespace, highest: str) -> list[dict[str, Any]]:
    """A row for each λ and policy: return with its interval, and GRPO's paired differences to the others."""
    rows: list[dict[str, Any]] = []
    for advantages, lambda_ in itertools.product(args.advantages, args.lambdas):
        grpo = next(c for c in contenders if c.kind == f"grpo {advantages} {lambda_}")
        others = [c for c in contenders if c.kind in ("high", "low")]
        # Of each KL-ST router, that with which GRPO begins and then the rivals, its best setting here.
        for kind in dict.fromkeys(c.kind for c in contenders if c.kind.startswith("kl-st")):
            others.append(best_setting([c for c in contenders if c.kind == kind], lambda_))
        random = next(c for c in contenders if c.kind == f"random {advantages} {lambda_}")
        others.append(replace(random, name=f"random {grpo.shares[-1]:.0%} {highest}"))
        for each in (grpo, *others):
            values = each.returns(lambda_)
            row = {
                "advantages": advantages,
                "lambda": lambda_,
                "policy": each.name,
                "kind": "rival" if each.kind.startswith("kl-st rival") else each.kind.split()[0],
                "return": float(values.mean()),
                "return_ci": asdict(interval(values, args.resamples)),
                "returns_of_seeds": values.mean(axis=1).tolist(),
                "success": float(each.success.mean()),
                "time_s": float(each.time_s.mean()),
                "high_share": float(each.shares[-1]),
            }
            if each is not grpo:
                gap = grpo.returns(lambda_) - values.mean(axis=0)
                row |= {"grpo_minus": float(gap.mean()), "grpo_minus_ci": asdict(interval(gap, args.resamples))}
            rows.append(row)
    return rows


def best_setting(settings: Sequence[Played], lambda_: float) -> Played:
    """The one with the largest mean return at a λ; the first of equals."""
    return max(settings, key=lambda played: float(played.returns(lambda_).mean()))


def advantage_gaps(contenders: Sequence[Played], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return of GRPO with the first way to compute advantages minus that with each other, paired by seed and task."""
    [first, *others], kinds = args.advantages, {c.kind: c for c in contenders}
    gaps = []
    for other, lambda_ in itertools.product(others, args.lambdas):
        one, two = kinds[f"grpo {first} {lambda_}"], kinds[f"grpo {other} {lambda_}"]
        gap = one.returns(lambda_) - two.returns(lambda_)  # (seeds, tasks)
        figures = {"return": float(gap.mean()), "return_ci": asdict(interval(gap, args.resamples))}
        gaps.append({"lambda": lambda_, "policy": one.name, "minus": two.name, **figures})
    return gaps


def interval(values: np.ndarray, resamples: int) -> Interval:
    """95 % bootstrap interval of the mean of (seeds, tasks) values; seeds and tasks are both drawn with replacement."""
    rng = np.random.default_rng(0)
    seeds, tasks = values.shape
    means = np.empty(resamples)
    for i in range(resamples):
        means[i] = values[np.ix_(rng.integers(seeds, size=seeds), rng.integers(tasks, size=tasks))].mean()
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Interval(low, high)


def as_table(rows: Sequence[dict[str, Any]], args: argparse.Namespace, prices: PriceSource) -> Table:
    """A block of lines each λ: GRPO, and below it what it is compared with."""
    lines = []
    for row in rows:
        is_grpo = row["kind"] == "grpo"
        lines.append(
            (
                f"{row['lambda']:g}" if is_grpo else "",
                row["policy"],
                with_interval(row["return"], Interval(**row["return_ci"]), 3),
                percent(row["success"]),
                number(row["time_s"], DIGITS[prices.unit]),
                percent(row["high_share"], 0),
                "" if is_grpo else with_interval(row["grpo_minus"], Interval(**row["grpo_minus_ci"]), 3, sign=True),
            )
        )
    return Table(
        "Returns of GRPO, and of what needs no such training",
        ("λ", "policy", "return", "success %", f"time, {prices.unit}", "high %", "GRPO minus this"),
        tuple(lines),
        (f"{args.seeds} training seeds; {prices.title}. Brackets: 95 % intervals over tasks and training seeds.",),
        left=2,
        styles=tuple("bold" if row["kind"] == "grpo" else None for row in rows),
    )


if __name__ == "__main__":
    run(main)
