"""A trained router at work: whether it fits an environment, what it is not asked, and the thresholds of its budgets.

`agents/calibrate.py` and `agents/evaluate.py` share it. Calibration plays a panel once at the default threshold 0.5 and
takes the thresholds of Eq. 7 from the scores of the router-eligible steps; ``thresholds.json`` keeps them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmr_gym import trained_on
from dmr_gym.calibration import StepShare, Threshold, budget_threshold, step_share
from dmr_gym.command_line import first_tasks, make_envs
from dmr_gym.config import EnvConfig
from dmr_gym.encoders import make_encoder
from dmr_gym.errors import ConfigError
from dmr_gym.kl import STEPS, counted_steps
from dmr_gym.policies import ForcedHigh, Policy, RouterPolicy
from dmr_gym.rollout import rollout
from dmr_gym.types import FloatArray

if TYPE_CHECKING:
    from dmr_gym.router import PrecisionRouter

BUDGETS = (0.2, 0.4, 0.7)
"""Shares of high-precision steps that the paper reports."""

DEFAULT_TAU = 0.5
"""Threshold at which calibration plays."""

THRESHOLDS_FILE = "thresholds.json"


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What one run of the calibration panel gives.

    Attributes:
        thresholds: one a budget.
        shares: one a threshold, on the calibration pool.
        scores: p_high (n,) float32 of the router-eligible steps of each of E episodes.
    """

    thresholds: tuple[Threshold, ...]
    shares: tuple[StepShare, ...]
    scores: tuple[FloatArray, ...]


def add_calibration_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `check_calibration_args` and `calibrate` read."""
    group = parser.add_argument_group("calibration")
    add = group.add_argument
    add("--calibration-panel", default="calibration", help="panel for the thresholds (default: %(default)s)")
    add("--calibration-tasks", type=int, metavar="N", help="first N tasks of that panel (default: all)")
    add(
        "--budgets",
        type=float,
        nargs="+",
        metavar="K",
        help="shares of high-precision steps, in [0, 1] (default: 0.2 0.4 0.7)",
    )
    add(
        "--steps",
        choices=STEPS,
        default="action",
        help="router-decided steps whose scores give the thresholds: all but thoughts, all, or WebShop's clicks alone "
        "(default: %(default)s)",
    )
    add(
        "--force-high",
        nargs="*",
        metavar="TYPE",
        help='types of steps that go to the highest precision unasked, such as "search"; none with no TYPE (default: '
        "search for a router that was trained on click steps alone, else none)",
    )
    add(
        "--split-ties",
        action="store_true",
        help="draw between steps whose score is exactly the threshold, so that the expected share is the budget",
    )
    add("--resamples", type=int, default=2000, metavar="N", help="bootstrap resamples (default: %(default)s)")
    add("--device", default="cpu", help="torch device of the router (default: %(default)s)")


def check_calibration_args(args: argparse.Namespace) -> None:
    """Refuse numbers that would end a run only after something was played; fill in the default budgets."""
    args.budgets = list(BUDGETS) if args.budgets is None else args.budgets
    for budget in args.budgets:
        if not 0.0 <= budget <= 1.0:
            raise ConfigError(f"--budgets are shares of steps in [0, 1], got {budget}")
    if len(set(args.budgets)) < len(args.budgets):
        raise ConfigError(f"--budgets must differ from each other, got {args.budgets}")
    for name in ("resamples", "num_envs"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")


def check_router(router: PrecisionRouter, config: EnvConfig) -> None:
    """Refuse a router of other sizes, before anything is loaded.

    Raises:
        ConfigError: another number of precisions, or step embeddings of another width.
    """
    if router.config.n_precisions != len(config.precisions):
        raise ConfigError(
            f"the router chooses among {router.config.n_precisions} precisions, "
            f"but the environment has {list(config.precisions)}"
        )
    width = make_encoder(config.encoder).dim
    if router.config.embedding_dim != width:
        raise ConfigError(
            f"the router reads step embeddings of width {router.config.embedding_dim}, but the environment's encoder "
            f"gives {width}: use the encoder that the router was trained with (--set encoder.kind=...)"
        )


def forced_types(asked: Sequence[str] | None, router: PrecisionRouter) -> tuple[str, ...]:
    """Types of steps that go to the highest precision without asking the router.

    Args:
        asked: of ``--force-high``; None leaves it to what the router was trained on.
        router: with its record.
    """
    return trained_on.unlearnt_types(router.trained_on) if asked is None else tuple(asked)


def forcing(policy: Policy, high: int, forced: Sequence[str]) -> Policy:
    """Wrap a policy so that steps of these types go to the highest precision; as it is where there are none."""
    return ForcedHigh(policy, high, forced) if forced else policy


def calibrate(
    router: PrecisionRouter, config: EnvConfig, args: argparse.Namespace, forced: Sequence[str]
) -> Calibration:
    """Play the calibration panel at threshold 0.5 and take the thresholds of Eq. 7 from its scores.

    Args:
        router: in evaluation mode.
        config: keywords of the environment.
        args: with the options of `add_calibration_options`, and ``num_envs``.
        forced: types of steps that the router is not asked at; they are in no pool.

    Raises:
        ConfigError: no step of the panel is router-eligible, or a type was to be forced and no step has it.
    """
    envs = make_envs(config, args.calibration_panel, args.num_envs)
    tasks = first_tasks(envs, args.calibration_tasks)
    policy = forcing(RouterPolicy(router, tau=DEFAULT_TAU), len(config.precisions) - 1, forced)
    trajectories = rollout(envs, policy, tasks, progress="calibration")
    envs.close()
    if forced and all(t.router_called.all() for t in trajectories):
        raise ConfigError(
            f"no step was known beforehand to be of type {' or '.join(forced)}, so none was forced to the highest "
            "precision: give --force-high without a TYPE"
        )
    pairs = [(t.p_high, t.router_called & counted_steps(t.step_types, args.steps)) for t in trajectories]
    scores = tuple(p_high[eligible] for p_high, eligible in pairs)
    pool = np.concatenate(scores)
    if not len(pool):
        raise ConfigError(f"the calibration panel has no step that a router decides and --steps {args.steps} counts")
    thresholds = tuple(budget_threshold(pool, budget, args.split_ties) for budget in args.budgets)
    steps = np.array([len(part) for part in scores], dtype=np.int64)
    shares = tuple(
        step_share(np.array([threshold.high_steps(part) for part in scores]), steps, args.resamples)
        for threshold in thresholds
    )
    return Calibration(thresholds, shares, scores)


def read_thresholds(path: Path, router: PrecisionRouter) -> dict[str, Any]:
    """Read what `agents/calibrate.py` wrote for a router.

    Args:
        path: of the file.
        router: that shall decide by it.

    Returns:
        The record; "thresholds" is a list of `Threshold`, "forced" a list of types of steps.

    Raises:
        ConfigError: no such file, not of thresholds, or of another router.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        names = {field.name for field in fields(Threshold)}
        listed = [{name: entry[name] for name in names} for entry in record["thresholds"]]
        # JSON has no infinity, the threshold of a budget of no step.
        record["thresholds"] = [Threshold(**entry | {"value": _value(entry["value"])}) for entry in listed]
        digest, _ = record["router_digest"], record["forced"]
    except OSError as error:
        raise ConfigError(f"no thresholds at {path}: agents/calibrate.py writes them (--out)") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no file of thresholds: agents/calibrate.py writes one") from error
    if digest != router.digest():
        raise ConfigError(
            f"{path} belongs to another router: expected digest {router.digest()[:12]}, found {str(digest)[:12]}; "
            "calibrate this one (agents/calibrate.py --router)"
        )
    return record


def thresholds_record(thresholds: Sequence[Threshold], shares: Sequence[StepShare]) -> list[dict[str, Any]]:
    """Thresholds as they stand in ``thresholds.json``, each with its share on the calibration pool."""
    pairs = zip(thresholds, shares, strict=True)
    return [{**asdict(threshold), "share": asdict(share)} for threshold, share in pairs]


def _value(value: float | None) -> float:
    return math.inf if value is None else float(value)


def budget_text(budget: float) -> str:
    """Two digits where they say it all, else as many as it takes: no two budgets share a text."""
    return f"{budget:.2f}" if round(budget, 2) == budget else repr(budget)
