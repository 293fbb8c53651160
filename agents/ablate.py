r"""The paper's ablations, one command each: what to vary, a table in the paper's format, a figure.

========== ====================================================================== ==================
command    what is compared                                                       in the paper
========== ====================================================================== ==================
depth      routers of 2, 4, 8, 12 and 16 Transformer blocks                       Table 2b
width      routers whose rows are 64, 128, 256 and 384 numbers wide               (none)
threshold  thresholds on KL: at the edge, in the plateau, at its edge, in a mode  Table 2a, Figure 5
tokens     labels from action steps alone, and from all steps and tokens          Table 5
step-types KLs of clicks and of searches                                          Table 4, Figure 6
shift      router scores on training histories and at deployment                  Figure 7
advantages GRPO with R - mean, and with (R - mean) / std as the paper reads       section 4.3
========== ====================================================================== ==================

Each is made of the other recipes: agents/train_kl_st.py with ``--seeds`` seeds and agents/evaluate.py at each budget,
agents/calibrate.py, or agents/compare_grpo.py. Options that are not listed are handed on to the training.

How this differs from the paper:

1. Of the depths only 8 and 16 can be read there, and none of the thresholds: both are ours.
2. Intervals stand beside each success, and the mean time of all episodes beside that of solved ones.

    python agents/ablate.py depth --data runs/kl --out runs/depth
    python agents/ablate.py width --data runs/kl --out runs/width
    python agents/ablate.py threshold --data runs/kl --out runs/threshold
    python agents/ablate.py tokens --data runs/kl --out runs/tokens
    python agents/ablate.py step-types --data shop=runs/shop/kl --out runs/step-types
    python agents/ablate.py shift --data runs/kl --router runs/kl-st/router --out runs/shift
    python agents/ablate.py advantages --router runs/kl-st/router --out runs/advantages --lambdas 0.05 0.1 0.2

``--out`` then holds tables.md, the numbers in results.json, a picture, and the folders of all runs. Started again, it
goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import calibrate
import compare_grpo
import evaluate
import train_kl_st

from dmr_gym.ablation_figures import draw_budgets, draw_kl_types, draw_sizes
from dmr_gym.ablations import (
    LARGE_KL,
    NEAR_ZERO_KL,
    PLACES,
    Variant,
    advantage_table,
    depth_table,
    kl_by_type,
    step_type_rows,
    step_type_table,
    threshold_places,
    threshold_table,
    tokens_table,
    width_table,
)
from dmr_gym.command_line import add_env_options, chosen_env, env_options, recipe_parser, run, settings_of
from dmr_gym.deployment import add_calibration_options, calibration_options, check_calibration_args
from dmr_gym.errors import ConfigError
from dmr_gym.evaluation import EPISODES_FILE
from dmr_gym.figures import pyplot
from dmr_gym.kl import counted_steps
from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.metrics import Difference, paired_difference
from dmr_gym.parts import prices_of
from dmr_gym.records import read_policies
from dmr_gym.runs import file_digest, provenance, write_atomically, write_json
from dmr_gym.serving.settings import served_device
from dmr_gym.tables import Table, write_tables
from dmr_gym.training import SETTINGS_FILE

DEPTHS = (2, 4, 8, 12, 16)
WIDTHS = (64, 128, 256, 384)
HEAD_WIDTH, FF_WIDTHS = 32, 4  # of a router of any width: of a head, and of the feed-forward layers in its own width
PICTURE = "ablation.png"
HELP = {
    "depth": "depth of the router (Table 2b)",
    "width": "width of the router",
    "threshold": "threshold on KL at four places (Table 2a, Figure 5)",
    "tokens": "action steps alone against all steps and tokens (Table 5)",
    "step-types": "KL of clicks and of searches (Table 4, Figure 6)",
    "shift": "shift of scores at deployment (Figure 7)",
    "advantages": "ways to compute GRPO's advantages",
}


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what is not known here is for the training."""
    parser = recipe_parser(__doc__)
    commands = parser.add_subparsers(
        help="what to vary", dest="command", required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    for name in ("depth", "width", "threshold", "tokens"):
        command = commands.add_parser(name, allow_abbrev=False, help=HELP[name])
        add = command.add_argument
        add("--data", type=Path, required=True, metavar="DIR", help="folder that agents/collect_kl.py wrote")
        add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
        add("--seeds", type=int, default=3, metavar="N", help="routers of each setting (default: %(default)s)")
        add("--panel", default="test", help="panel to report (default: %(default)s)")
        add("--tasks", type=int, metavar="N", help="first N tasks of that panel (default: all)")
        if name == "depth":
            add(
                "--depths",
                type=int,
                nargs="+",
                default=list(DEPTHS),
                metavar="N",
                help="layers of the routers (default: 2 4 8 12 16)",
            )
        if name == "width":
            add(
                "--widths",
                type=int,
                nargs="+",
                default=list(WIDTHS),
                metavar="N",
                help="--d-model of the routers, multiples of 32; heads are 32 wide, --d-ff is 4 N "
                "(default: 64 128 256 384)",
            )
        if name == "threshold":
            add("--taus", type=float, nargs=4, metavar="NATS", help="four thresholds (default: by the plateau)")
        add_calibration_options(command)
        add_env_options(command)
    command = commands.add_parser("step-types", allow_abbrev=False, help=HELP["step-types"])
    add = command.add_argument
    add("--data", nargs="+", required=True, metavar="NAME=DIR", help="folders of agents/collect_kl.py, a cell each")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for the table and the picture")
    for name, recipe in (("shift", "calibrate.py"), ("advantages", "compare_grpo.py")):
        text = f"{HELP[name]}; takes the options of agents/{recipe}"
        command = commands.add_parser(name, allow_abbrev=False, help=text)
        command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything")
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one ablation."""
    args, rest = parse_args(argv)
    pyplot()  # where nothing can be drawn that is said now, not after the last training
    commands = {
        "depth": depth,
        "width": width,
        "threshold": threshold,
        "tokens": tokens,
        "step-types": step_types,
        "shift": shift,
        "advantages": advantages,
    }
    commands[args.command](args, rest)


def depth(args: argparse.Namespace, rest: list[str]) -> None:
    """Train and evaluate a router of each depth."""
    if len(set(args.depths)) < len(args.depths):
        raise ConfigError(f"--depths must differ from each other, got {args.depths}")
    variants = sweep(args, rest, {str(n): ["--n-layers", str(n)] for n in args.depths})
    write_atomically(args.out / PICTURE, lambda part: draw_sizes(variants, "layers of the router", part))
    finish(args, rest, depth_table(variants, where(args)), evaluated(args, variants))


def width(args: argparse.Namespace, rest: list[str]) -> None:
    """Train and evaluate a router of each width."""
    if len(set(args.widths)) < len(args.widths) or any(n < 1 or n % HEAD_WIDTH for n in args.widths):
        raise ConfigError(f"--widths must be different multiples of {HEAD_WIDTH}, got {args.widths}")
    sizes = {n: {"--d-model": n, "--n-heads": n // HEAD_WIDTH, "--d-ff": FF_WIDTHS * n} for n in args.widths}
    options = {str(n): [text for pair in size.items() for text in map(str, pair)] for n, size in sizes.items()}
    variants = sweep(args, rest, options)
    write_atomically(args.out / PICTURE, lambda part: draw_sizes(variants, "width of the router", part))
    finish(args, rest, width_table(variants, where(args)), evaluated(args, variants))


def threshold(args: argparse.Namespace, rest: list[str]) -> None:
    """Train and evaluate a router with the threshold on KL at each of four places."""
    dataset = KLDataset.load(args.data / "kl.safetensors")
    kls = dataset.kls(args.steps)[counted_steps(dataset.step_types, args.steps)]
    if args.taus is None:
        places = threshold_places(kls)
    else:
        places = {place: (tau,) for place, tau in zip(PLACES, args.taus, strict=True)}
    options = {place: ["--threshold", *map(repr, taus)] for place, taus in places.items()}
    variants = sweep(args, rest, options)
    lower = read_settings(args.data / "kl.safetensors")["env"]["precisions"][:-1]
    write_atomically(args.out / PICTURE, lambda part: draw_budgets(variants, part, kls, lower))
    finish(args, rest, threshold_table(variants, where(args)), evaluated(args, variants))


def tokens(args: argparse.Namespace, rest: list[str]) -> None:
    """Train, calibrate and evaluate on action steps alone (AO), and on all steps and tokens (AS)."""
    if args.steps != "action":
        raise ConfigError("tokens compares --steps action and --steps all: leave --steps out")
    options = {"AO": ["--steps", "action"], "AS": ["--steps", "all"]}
    action, everything = sweep(args, rest, options, by_steps=True)
    differences = paired(args, action, everything)
    write_atomically(args.out / PICTURE, lambda part: draw_budgets([action, everything], part))
    found = {**evaluated(args, [action, everything]), "differences": [asdict(each) for each in differences]}
    finish(args, rest, tokens_table(action, everything, differences, where(args)), found)


def step_types(args: argparse.Namespace, rest: list[str]) -> None:
    """Compare the KLs of the types of steps in data sets that are there."""
    if rest:
        raise ConfigError(f"step-types trains nothing and takes no further options, got {' '.join(rest)}")
    cells: dict[str, tuple[KLDataset, list[str]]] = {}
    collected: dict[str, Any] = {}
    for entry in args.data:
        name, equals, folder = entry.partition("=")
        if not equals or name in cells:
            raise ConfigError(f"--data takes NAME=DIR with different names, got {entry!r}")
        path = Path(folder) / "kl.safetensors"
        dataset, settings = KLDataset.load(path), read_settings(path)
        cells[name] = dataset, settings["env"]["precisions"][:-1]
        collected[name] = {"sha256": file_digest(path), "settings": settings}
    pairs = [(f"{n} {low}", data, i) for n, (data, lower) in cells.items() for i, low in enumerate(lower)]
    parts = {name: kl_by_type(dataset, index) for name, dataset, index in pairs}
    write_atomically(args.out / PICTURE, lambda part: draw_kl_types(parts, part))
    rows, bounds = step_type_rows(cells), {"near_zero_kl": NEAR_ZERO_KL, "large_kl": LARGE_KL}
    finish(args, rest, step_type_table(rows), {"data": collected, **bounds, "results": rows})


def shift(args: argparse.Namespace, rest: list[str]) -> None:
    """Calibrate with the training histories beside it; agents/calibrate.py writes tables, numbers and the picture."""
    if not any(option.split("=")[0] == "--data" for option in rest):
        raise ConfigError("the shift is between two pools: give --data, what the router was trained on")
    calibrate.main(["--out", str(args.out), *rest])


def advantages(args: argparse.Namespace, rest: list[str]) -> None:
    """Train GRPO with either way to compute advantages; agents/compare_grpo.py writes the numbers and the picture."""
    if any(option.split("=")[0] == "--advantages" for option in rest):
        raise ConfigError("advantages compares mean and group_std; for others use agents/compare_grpo.py")
    compare_grpo.main(["--out", str(args.out), "--advantages", "mean", "group_std", *rest])
    table = advantage_table(json.loads((args.out / "results.json").read_text(encoding="utf-8")))
    path = write_tables(args.out, [table])
    table.show()
    print(f"tables: {path}")


def sweep(
    args: argparse.Namespace, rest: Sequence[str], options: Mapping[str, list[str]], by_steps: bool = False
) -> list[Variant]:
    """Train every variant with every seed, and evaluate it at each budget.

    Args:
        args: the command line.
        rest: options of agents/train_kl_st.py that all variants share.
        options: those that make a variant, by its name.
        by_steps: whether the options say which steps count, for the calibration too; else ``--steps`` does.
    """
    check_calibration_args(args)
    if args.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {args.seeds}")
    _, config = chosen_env(args, args.out / "cache")
    varied = {"--seed", *(option for variant in options.values() for option in variant if option.startswith("--"))}
    taken = [option for option in rest if option.split("=")[0] in varied]
    if taken:
        raise ConfigError(f"{args.command} varies {', '.join(sorted(varied))} itself: leave {', '.join(taken)} out")
    for variant in options.values():  # a wrong option ends the run here, not after the first training
        train_kl_st.parse_args(["--data", "x", "--out", "x", *variant, *rest])
    variants = []
    for name, variant in options.items():
        folder = args.out / name.replace(" ", "-")
        steps = variant if by_steps else ["--steps", args.steps]
        trained = [folder / f"seed-{seed}" for seed in range(args.seeds)]
        for seed, out in enumerate(trained):
            print(f"\n{name}, seed {seed}", flush=True)
            command = ["--data", str(args.data), "--out", str(out), "--seed", str(seed), "--device", args.device]
            resume = ["--resume"] if (out / SETTINGS_FILE).is_file() else []
            train_kl_st.main([*command, *(variant if by_steps else [*steps, *variant]), *rest, *resume])
        command = ["--router", *(str(out / "router") for out in trained), "--out", str(folder / "evaluation")]
        command += ["--seeds", str(args.seeds), "--no-random", "--no-texts", "--panel", args.panel]
        command += [] if args.tasks is None else ["--tasks", str(args.tasks)]
        # Every variant's single precisions play the same episodes.
        command += ["--batches", str(args.out / "batches"), *env_options(args), "--cache-dir", str(config.cache_dir)]
        evaluate.main([*command, *calibration_options(args), *steps])
        variants.append(Variant.read(name, trained, folder / "evaluation"))
    return variants


def paired(args: argparse.Namespace, first: Variant, second: Variant) -> list[Difference]:
    """Success of one variant minus another at each budget, task by task."""
    names = [row["policy"] for row in first.budgets]
    each = []
    for variant in (first, second):
        path = args.out / variant.name / "evaluation" / EPISODES_FILE
        each.append({policy.name: policy.episodes for policy in read_policies(path, len(first.singles))})
    # λ prices the return alone, which no table of these shows.
    return [paired_difference(first.name, each[0][n], second.name, each[1][n], 0.0, args.resamples) for n in names]


def where(args: argparse.Namespace) -> str:
    """Environment and panel, for the notes."""
    return f"{chosen_env(args)[0]}, panel {args.panel}"


def finish(args: argparse.Namespace, rest: Sequence[str], table: Table, found: Mapping[str, Any]) -> None:
    """Write the numbers and their table, print it, and say where everything lies."""
    record = {"settings": settings_of(args), "training_options": list(rest), **found, **provenance()}
    write_json(args.out / "results.json", record)
    path = write_tables(args.out, [table])
    table.show()
    print(f"picture: {args.out / PICTURE}\ntables: {path}\nnumbers: {args.out / 'results.json'}")


def evaluated(args: argparse.Namespace, variants: Sequence[Variant]) -> dict[str, Any]:
    """Where variants were evaluated, and what was found, as plain data."""
    env_id, config = chosen_env(args, args.out / "cache")
    world = {"env_id": env_id, "env": asdict(config), "latency": asdict(prices_of(config, served_device(args.config)))}
    return {**world, "variants": [variant.as_data() for variant in variants]}


if __name__ == "__main__":
    run(main)
