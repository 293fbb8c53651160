"""The whole method once, small: collect KL labels, train the router, evaluate it, and write a report of all that.

This is what ``make demo`` runs.

Each stage is one of the recipes beside this file, started with the command line that is printed, so any of them can be
run again with other options. All stages share one completion cache; a demo that was interrupted goes on quickly.

    python agents/demo.py --out runs/demo
    python agents/demo.py --out runs/demo --world webshop
    python agents/demo.py --out runs/demo --world toy --tasks 32 --evaluation-tasks 32    (some seconds)
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

RECIPES = Path(__file__).resolve().parent
# So few tasks teach 0.9 million parameters as much as the 14 million of the default, in a tenth of the time.
ROUTER = ("--n-layers", 4, "--d-model", 128, "--n-heads", 4, "--d-ff", 512, "--lr", 1e-3)
# Neither LLM's KLs have a plateau; labels on about an eighth of the steps made the best routers in both worlds.
LABELS = {"alfworld": ("--label-share", 0.12), "webshop": ("--label-share", 0.12), "toy": ()}
WORLDS = {"alfworld": "DMR-ALFWorld-v0", "webshop": "DMR-WebShop-v0", "toy": "DMR-Toy-v0"}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="folder of the run (default: %(default)s)")
    add(
        "--world",
        nargs="+",
        choices=list(WORLDS),
        default=["alfworld", "webshop"],
        help="one world or more (default: alfworld webshop)",
    )
    add("--config", type=Path, metavar="FILE", help="a world's keywords as TOML (default: those of its registered id)")
    add("--tasks", type=int, default=240, metavar="N", help="training tasks (default: %(default)s)")
    add(
        "--evaluation-tasks",
        type=int,
        default=64,
        metavar="N",
        help="calibration tasks and as many test tasks (default: %(default)s)",
    )
    add("--epochs", type=int, default=24, metavar="N", help="most epochs of training (default: %(default)s)")
    add("--num-envs", type=int, default=16, metavar="N", help="episodes played side by side (default: %(default)s)")
    add("--seeds", type=int, default=1, metavar="N", help="runs of each random policy (default: %(default)s)")
    add(
        "--alternatives",
        type=int,
        default=2,
        metavar="N",
        help="test tasks at whose steps every precision is asked, for the report; 0 for none (default: %(default)s)",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the three stages in each world, write the report, and say where their results lie."""
    args = parse_args(argv)
    if args.config is not None and len(args.world) > 1:
        sys.exit("--config is for one world: name it with --world")
    began = time.perf_counter()
    for world in args.world:
        play(world, args)
    report = args.out / "report.html"
    run("report.py", *(args.out / world for world in args.world), "--out", report)
    print(f"\nDone in {(time.perf_counter() - began) / 60:.1f} minutes.")
    for world in args.world:
        out = args.out / world
        print(f"\n{WORLDS[world]}")
        print(f"accuracy and latency:  {out / 'evaluation' / 'accuracy_latency.png'}")
        print(f"KL of each step:       {out / 'kl' / 'kl_histogram.png'}")
        print(f"training curves:       tensorboard --logdir {out / 'kl-st' / 'tensorboard'}")
    print(f"\nall of it, step by step: {report}")


def play(world: str, args: argparse.Namespace) -> None:
    """Collect, train and evaluate in one world."""
    out = args.out / world
    kl, trained, evaluated = out / "kl", out / "kl-st", out / "evaluation"
    options: list[object] = ["--env", WORLDS[world], "--cache-dir", out / "cache", "--num-envs", args.num_envs]
    if args.config is not None:
        options += ["--config", args.config]
    tasks: list[object] = ["--tasks", args.evaluation_tasks, "--calibration-tasks", args.evaluation_tasks]
    tasks += ["--seeds", args.seeds]
    if args.alternatives:
        tasks += ["--alternatives", min(args.alternatives, args.evaluation_tasks)]
    run("collect_kl.py", "--out", kl, "--tasks", args.tasks, *options)
    run("train_kl_st.py", "--data", kl, "--out", trained, "--epochs", args.epochs, *ROUTER, *LABELS[world])
    run("evaluate.py", "--router", trained / "router", "--out", evaluated, *tasks, *options)


def run(recipe: str, *options: object) -> None:
    """Run a recipe in its own process and stop the demo if it fails."""
    command = [sys.executable, str(RECIPES / recipe), *map(str, options)]
    print(f"\n$ python agents/{recipe} {shlex.join(command[2:])}", flush=True)
    # A checkout that is not installed works too.
    path = os.pathsep.join([str(RECIPES.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    status = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path}).returncode
    if status:
        sys.exit(f"{recipe} failed with exit status {status}; the output above says why")


if __name__ == "__main__":
    main()
