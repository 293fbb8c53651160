"""Calibrate a router: the thresholds that keep budgets of high-precision steps, and how far its scores have shifted.

The router plays the calibration panel once at the default threshold 0.5. Each budget K gets the threshold τ_K of Eq. 7,
the score above which the share K of the router-eligible steps lies. With ``--data`` the scores are set beside those on
the histories that the router was trained on (Appendix D of the paper): there high precision alone had acted.

How this differs from the paper:

1. The realised share stands beside each budget, since tied scores go together; ``--split-ties`` draws between them, so
   that the expected share is K.
2. Each share has two 95 % intervals: Clopper and Pearson's, as if steps were independent, and a bootstrap over whole
   episodes, whose steps are not. The second is the one to trust.
3. ``--check-panel`` plays further tasks at each τ_K: states move with the threshold, so the share there is another.

    python agents/calibrate.py --router runs/kl-st/router --out runs/calibration --data runs/kl
    python agents/calibrate.py --router runs/kl-st/router --out runs/calibration --check-panel validation

``--out`` then holds thresholds.json, which agents/evaluate.py reads (``--thresholds``), score_shift.png, tables.md, and
all numbers in results.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dmr_gym import trained_on
from dmr_gym.calibration import StepShare, describe_scores, step_share
from dmr_gym.calibration_tables import budget_table, shift_table
from dmr_gym.command_line import (
    add_env_options,
    chosen_env,
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
    THRESHOLDS_FILE,
    Calibration,
    add_calibration_options,
    budget_text,
    calibrate,
    check_calibration_args,
    check_router,
    forced_types,
    forcing,
    share_shown,
    training_scores,
)
from dmr_gym.figures import pyplot
from dmr_gym.kl import counted_steps
from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.kl_figures import draw_score_pools
from dmr_gym.kl_training import describe_data
from dmr_gym.policies import RouterPolicy
from dmr_gym.rollout import rollout
from dmr_gym.router import PrecisionRouter
from dmr_gym.runs import file_digest, provenance, write_atomically, write_json
from dmr_gym.tables import write_tables
from dmr_gym.training import claim_folder

PICTURE = "score_shift.png"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__, "calibrate")
    add = parser.add_argument
    add("--router", type=Path, required=True, metavar="DIR", help="router/ folder that agents/train_kl_st.py wrote")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--data", type=Path, metavar="DIR", help="folder of agents/collect_kl.py that the router was trained on")
    add("--check-panel", metavar="NAME", help="panel to play at each threshold (default: none)")
    add("--check-tasks", type=int, metavar="N", help="first N tasks of that panel (default: all)")
    add_calibration_options(parser)
    add_env_options(parser)
    args = parser.parse_args(argv)
    check_calibration_args(args)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Calibrate, compare the pools, check the shares, and write the thresholds."""
    args = parse_args(argv)
    pyplot()  # where nothing can be drawn that is said now, not after the last task
    env_id, config = chosen_env(args, args.out / "cache")
    router = PrecisionRouter.load(args.router, args.device)
    check_router(router, config)
    data_file = None if args.data is None else args.data / "kl.safetensors"
    dataset = None if data_file is None else KLDataset.load(data_file)
    if dataset is not None and data_file is not None:
        learnt = describe_data(dataset, read_settings(data_file), args.steps)
        show_warnings(trained_on.check(router.trained_on, learnt, config.max_steps))
    forced = forced_types(args.force_high, router)
    settings = {
        **settings_of(args),
        "env_id": env_id,
        "env": {key: value for key, value in asdict(config).items() if key != "cache_dir"},
        "router_digest": router.digest(),
        "data_sha256": None if data_file is None else file_digest(data_file),
        **part_digests(config, [panel for panel in (args.calibration_panel, args.check_panel) if panel is not None]),
    }
    # Answers are cached, so the same command again is cheap; another one would replace thresholds that are in use.
    claim_folder(args.out, settings, True, ("router", "data", "out", "cache_dir", "num_envs", "device"))

    calibration, scores = calibrate(router, config, args, forced)
    here = trained_on.environment_record(env_id, args.calibration_panel, config, calibration.models)
    show_warnings(trained_on.check(router.trained_on, here, config.max_steps))
    pools: dict[str, NDArray[np.floating]] = {"calibration": scores}
    if dataset is not None:
        pools = {"training": training_scores(router, dataset, args.steps, forced), **pools}
    checks = check_shares(router, config, calibration, args) if args.check_panel is not None else []

    picture = args.out / PICTURE
    write_atomically(picture, lambda part: draw_score_pools(pools, calibration.thresholds, part))
    described = {name: describe_scores(pool) for name, pool in pools.items()}
    record = {
        "settings": settings,
        "router_digest": router.digest(),
        "router_trained_on": router.trained_on,
        "calibration": asdict(calibration),
        **provenance(),
    }
    found = {"default_threshold": DEFAULT_TAU, "pools": described, "checks": [asdict(share) for share in checks]}
    write_json(args.out / THRESHOLDS_FILE, record)
    write_json(args.out / "results.json", record | found)
    budgets = budget_table(calibration.thresholds, calibration.shares, checks, args.check_panel or "")
    tables = [budgets, shift_table(described)]
    path = write_tables(args.out, tables)
    for table in tables:
        table.show()
    print(f"picture: {picture}\ntables: {path}\nwrote {args.out / THRESHOLDS_FILE} and {args.out / 'results.json'}")


def check_shares(
    router: PrecisionRouter, config: EnvConfig, calibration: Calibration, args: argparse.Namespace
) -> list[StepShare]:
    """Play another panel at each threshold and count the steps that went to the highest precision."""
    high = len(config.precisions) - 1
    envs = make_envs(config, args.check_panel, args.num_envs, whole=True)
    tasks = first_tasks(envs, args.check_tasks)
    shares = []
    for threshold in calibration.thresholds:
        policy = RouterPolicy(router, tau=threshold.value, tie_probability=threshold.tie_probability)
        title = f"{args.check_panel}, K={budget_text(threshold.budget)}"
        policy = forcing(policy, high, calibration.forced)
        played = rollout(envs, policy, tasks, on_episode=share_shown(config), progress=title)
        eligible = [t.router_called & counted_steps(t.step_types, args.steps) for t in played]
        high_steps = np.array([(t.actions[e] == high).sum() for t, e in zip(played, eligible, strict=True)])
        steps = np.array([e.sum() for e in eligible], dtype=np.int64)
        shares.append(step_share(high_steps, steps, args.resamples))
    envs.close()
    return shares


def show_warnings(warnings: Sequence[str]) -> None:
    """Print differences under which the router still decides."""
    for warning in warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    run(main)
