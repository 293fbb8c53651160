"""Search the hyper-parameters of agents/train_ppo.py: random settings, then the best ones again with fresh seeds.

Setting 0 is the recipe's defaults, the others are drawn from `SPACE`. Each is trained with the seeds 0, 1, ... for
``--env-steps`` steps of the environment. Its score is the mean
over seeds of the held-out return, averaged over ten plays of the validation panel that lie evenly in the run: a setting
that learns fast and one that ends high both gain. The ``--finalists`` best, and the defaults, are trained again with
seeds that nobody has seen, and the best of those wins: the numbers that are reported did not choose the finalists.

    python agents/tune_ppo.py --out runs/tune-ppo --env DMR-Toy-v0 -- --n-layers 1 --d-model 32 --n-heads 2 --d-ff 64

What stands behind ``--`` goes to every run of agents/train_ppo.py. A search that was interrupted goes on when it is
started again. ``--out`` then holds tuning.json and the runs; the table of the finalists is printed as Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev
from types import ModuleType
from typing import Any

from tqdm import tqdm

from dmr_gym.command_line import chosen_env, recipe_parser, run, settings_of
from dmr_gym.errors import ConfigError
from dmr_gym.router import PrecisionRouter
from dmr_gym.runs import provenance, write_json
from dmr_gym.training import SETTINGS_FILE, claim_folder, read_history

RECIPE = Path(__file__).with_name("train_ppo.py")
SPACE: dict[str, tuple[float, ...]] = {
    "lr": (3e-4, 1e-3, 3e-3),
    "n_steps": (32, 64, 128),
    "minibatch_size": (64, 128, 256),
    "epochs": (2, 4, 8),
    "gae_lambda": (0.9, 0.95, 1.0),
    "entropy": (0.0, 0.003, 0.01),
    "clip": (0.1, 0.2, 0.3),
}
PLAYS = 10
FREE = ("out", "settings", "seeds", "finalists", "finalist_seeds")
"""Options that may differ when a search goes on: how many runs there are changes none of them."""


@dataclass
class Setting:
    """One point of `SPACE`.

    Attributes:
        number: names its runs; 0 is the recipe's defaults.
        values: by option.
        curves: by seed, the held-out return at each play after the first.
    """

    number: int
    values: dict[str, float]
    curves: dict[int, list[float]] = field(default_factory=dict)

    def score(self, seeds: Sequence[int]) -> float:
        """Mean over seeds of the mean over the run."""
        return mean(mean(self.curves[seed]) for seed in seeds)

    def record(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Plain data: means over the seeds, and their spread."""
        averages = [mean(self.curves[seed]) for seed in seeds]
        bests = [max(self.curves[seed]) for seed in seeds]
        spread = stdev(averages) / len(averages) ** 0.5 if len(averages) > 1 else None
        return {
            "setting": self.number,
            **self.values,
            "seeds": list(seeds),
            "mean_return": mean(averages),
            "standard_error": spread,
            "best_return": mean(bests),
        }


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; the second part goes to train_ppo.py as it stands."""
    argv = sys.argv[1:] if argv is None else list(argv)
    own, passed_on = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = recipe_parser(__doc__)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this search writes")
    add("--env", required=True, metavar="ID", help="registered id of the environment")
    add("--settings", type=int, default=24, metavar="N", help="settings to try (default: %(default)s)")
    add("--seeds", type=int, default=2, metavar="N", help="runs of each (default: %(default)s)")
    add("--finalists", type=int, default=3, metavar="N", help="settings to run again (default: %(default)s)")
    add("--finalist-seeds", type=int, default=5, metavar="N", help="fresh runs of each of them (default: %(default)s)")
    add(
        "--env-steps",
        type=int,
        default=20480,
        metavar="N",
        help="steps of the environment a run (default: %(default)s)",
    )
    add(
        "--learning-rates",
        type=float,
        nargs="+",
        default=list(SPACE["lr"]),
        metavar="X",
        help="to draw from; a router that has been trained wants smaller ones (default: %(default)s)",
    )
    add("--num-envs", type=int, default=8, metavar="N", help="episodes played side by side (default: %(default)s)")
    add("--search-seed", type=int, default=0, help="of the settings drawn (default: %(default)s)")
    args = parser.parse_args(own)
    for name in ("settings", "seeds", "finalists", "finalist_seeds", "num_envs"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if min(args.learning_rates) <= 0:
        raise ConfigError(f"--learning-rates must be above 0, got {args.learning_rates}")
    if args.env_steps < PLAYS * args.num_envs * max(SPACE["n_steps"]):
        least = int(PLAYS * args.num_envs * max(SPACE["n_steps"]))
        raise ConfigError(f"--env-steps must be at least {least}, {PLAYS} updates of the longest, got {args.env_steps}")
    return args, passed_on


def draw(number: int, args: argparse.Namespace, recipe: ModuleType) -> Setting:
    """Setting 0 is the recipe's defaults; the others are a function of the search's seed and their number."""
    if number == 0:
        defaults = vars(recipe.parse_args(["--out", str(args.out), "--num-envs", str(args.num_envs)]))
        return Setting(0, {name: defaults[name] for name in SPACE})
    rng = random.Random(f"{args.search_seed} {number}")
    return Setting(number, {name: rng.choice(choices) for name, choices in space(args).items()})


def space(args: argparse.Namespace) -> dict[str, tuple[float, ...]]:
    """What settings are drawn from."""
    return SPACE | {"lr": tuple(args.learning_rates)}


def load_recipe() -> ModuleType:
    """agents/train_ppo.py as a module; runs in this process spare the imports."""
    spec = importlib.util.spec_from_file_location("train_ppo", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(setting: Setting, seed: int, args: argparse.Namespace, passed_on: Sequence[str], recipe: ModuleType) -> None:
    """Run the recipe, or go on with it, and note its held-out returns; what it prints goes to a file beside its run."""
    out = args.out / f"setting-{setting.number:02d}-seed-{seed}"
    updates = args.env_steps // int(args.num_envs * setting.values["n_steps"])
    options = {"out": out, "env": args.env, "seed": seed, "num_envs": args.num_envs, "updates": updates}
    options |= {"evaluate_every": updates // PLAYS, "checkpoint_every": updates // PLAYS}
    options |= {"cache_dir": args.out / "cache", **setting.values}
    command = list(passed_on)
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    history = read_history(out)
    if not history or history[-1]["update"] < updates:
        command += ["--resume"] if (out / SETTINGS_FILE).is_file() else []
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.with_suffix(".log").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            recipe.main(command)
        history = read_history(out)
    setting.curves[seed] = [entry["validation/return"] for entry in history[1:] if "validation/return" in entry]


def claim(args: argparse.Namespace, passed_on: Sequence[str], recipe: ModuleType) -> None:
    """Refuse a folder whose runs were made with other options; more settings, seeds and finalists may join them."""
    command = [*passed_on, "--out", str(args.out), "--env", args.env, "--num-envs", str(args.num_envs)]
    handed_on = recipe.parse_args(command)
    env_id, config = chosen_env(handed_on)
    settings = {"train_ppo": settings_of(handed_on), "env_id": env_id, "env": asdict(config), "space": space(args)}
    for name in (*recipe.FREE, "set"):  # the environment that they result in is compared
        settings["train_ppo"].pop(name, None)
    settings["env"].pop("cache_dir")
    if handed_on.router is not None:
        settings["start_digest"] = PrecisionRouter.load(handed_on.router).digest()
    claim_folder(args.out, settings_of(args) | settings, True, FREE)


def main(argv: Sequence[str] | None = None) -> None:
    """Search, run the finalists again, and name the winner."""
    args, passed_on = parse_args(argv)
    recipe = load_recipe()
    claim(args, passed_on, recipe)
    settings = [draw(number, args, recipe) for number in range(args.settings)]
    first = range(args.seeds)
    fresh = range(args.seeds, args.seeds + args.finalist_seeds)
    with tqdm(total=len(settings) * len(first) + (args.finalists + 1) * len(fresh), unit="run") as bar:
        for setting in settings:
            for seed in first:
                train(setting, seed, args, passed_on, recipe)
                bar.update()
            bar.set_postfix(best=f"{max(s.score(first) for s in settings if len(s.curves) == len(first)):.3f}")
        ranked = sorted(settings, key=lambda setting: -setting.score(first))
        finalists = ranked[: args.finalists]
        finalists += [] if settings[0] in finalists else [settings[0]]
        bar.total = len(settings) * len(first) + len(finalists) * len(fresh)
        for setting in finalists:
            for seed in fresh:
                train(setting, seed, args, passed_on, recipe)
                bar.update()
    winners = sorted(finalists, key=lambda setting: -setting.score(fresh))
    record = {
        "settings": settings_of(args),
        "passed_on": list(passed_on),
        "space": space(args),
        "search": [setting.record(first) for setting in ranked],
        "finalists": [setting.record(fresh) for setting in winners],
        **provenance(),
    }
    write_json(args.out / "tuning.json", record)
    print(table(json.loads(json.dumps(record["finalists"]))))
    print(f"wrote {args.out / 'tuning.json'}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a line a setting."""
    columns = ["setting", *SPACE, "mean_return", "standard_error", "best_return"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [
            f"{row[c]:.3f}" if c.endswith(("return", "error")) and row[c] is not None else str(row[c]) for c in columns
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
