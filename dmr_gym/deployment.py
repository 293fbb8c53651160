"""A trained router at work: whether it fits an environment, what it is not asked, and the thresholds of its budgets.

The recipes share it. Calibration plays a panel once at the default threshold 0.5 and takes the thresholds of Eq. 7 from
the scores of the router-eligible steps; ``thresholds.json`` keeps them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmr_gym import trained_on
from dmr_gym.calibration import StepShare, Threshold, budget_threshold, describe_scores, step_share
from dmr_gym.command_line import first_tasks, make_envs
from dmr_gym.config import EnvConfig
from dmr_gym.encoders import make_encoder
from dmr_gym.errors import ConfigError
from dmr_gym.kl import STEPS, Steps, counted_steps
from dmr_gym.kl_dataset import KLDataset
from dmr_gym.metrics import Interval
from dmr_gym.policies import ForcedHigh, Policy, RouterPolicy
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.runs import content_address, write_json
from dmr_gym.types import FloatArray

if TYPE_CHECKING:
    from dmr_gym.router import PrecisionRouter

BUDGETS = (0.2, 0.4, 0.7)
"""Shares of high-precision steps that the paper reports."""

DEFAULT_TAU = 0.5
"""Threshold at which calibration plays."""

THRESHOLDS_FILE = "thresholds.json"

_WITHOUT_EFFECT = ("cache_dir", "info_text", "render_mode", "lambda_", "invalid_action_penalty")


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one run of the calibration panel gives.

    Attributes:
        steps: which of the router-decided steps are in the pool (`dmr_gym.kl.counted_steps`).
        forced: types of steps that take the highest precision unasked; they are in no pool.
        models: digest of each precision's model.
        thresholds: one a budget.
        shares: one a threshold, on the calibration pool.
        scores: how the pool's scores lie (`dmr_gym.calibration.describe_scores`).
    """

    steps: str
    forced: tuple[str, ...]
    models: dict[str, str]
    thresholds: tuple[Threshold, ...]
    shares: tuple[StepShare, ...]
    scores: dict[str, Any]


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


def calibration_options(args: argparse.Namespace) -> list[str]:
    """The options of `add_calibration_options` as another recipe is to be given them."""
    options = []
    for name in ("calibration_panel", "calibration_tasks", "budgets", "steps", "force_high", "resamples", "device"):
        value = getattr(args, name)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            options += [f"--{name.replace('_', '-')}", *map(str, values)]
    return options + (["--split-ties"] if args.split_ties else [])


def check_calibration_args(args: argparse.Namespace) -> None:
    """Refuse numbers that would end a run only after something was played.

    Raises:
        ConfigError: budgets outside [0, 1] or given twice, or counts below 1.
    """
    for budget in args.budgets or ():
        if not 0.0 <= budget <= 1.0:
            raise ConfigError(f"--budgets are shares of steps in [0, 1], got {budget}")
    if args.budgets and len(set(args.budgets)) < len(args.budgets):
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
    """Types of steps that go to the highest precision without asking the router, told in a printed line.

    Args:
        asked: of ``--force-high``; None leaves it to what the router was trained on.
        router: with its record.
    """
    forced = trained_on.unlearnt_types(router.trained_on) if asked is None else tuple(asked)
    if forced:
        why = "the router was trained on click steps alone" if asked is None else "as asked for"
        print(f"{' and '.join(forced)} steps go to the highest precision: {why}")
    return forced


def forcing(policy: Policy, high: int, forced: Sequence[str]) -> Policy:
    """Wrap a policy so that steps of these types go to the highest precision; as it is where there are none."""
    return ForcedHigh(policy, high, forced) if forced else policy


def calibrate(
    router: PrecisionRouter, config: EnvConfig, args: argparse.Namespace, forced: Sequence[str]
) -> tuple[Calibration, FloatArray]:
    """Play the calibration panel at threshold 0.5 and take the thresholds of Eq. 7 from its scores.

    Args:
        router: in evaluation mode.
        config: keywords of the environment.
        args: with the options of `add_calibration_options`, and ``num_envs``.
        forced: types of steps that the router is not asked at.

    Returns:
        The calibration, and the pool's scores (N,).

    Raises:
        ConfigError: no step of the panel is router-eligible, or a type was to be forced and no step has it.
    """
    envs = make_envs(config, args.calibration_panel, args.num_envs, whole=True)
    tasks = first_tasks(envs, args.calibration_tasks)
    models = {name: envs.backend.digest(name) for name in envs.precisions}
    policy = forcing(RouterPolicy(router, tau=DEFAULT_TAU), len(config.precisions) - 1, forced)
    trajectories = rollout(envs, policy, tasks, on_episode=share_shown(config), progress="calibration")
    envs.close()
    if forced and all(t.router_called.all() for t in trajectories):
        raise ConfigError(
            f"no step was known beforehand to be of type {' or '.join(forced)}, so none was forced to the highest "
            "precision: give --force-high without a TYPE"
        )
    pairs = [(t.p_high, t.router_called & counted_steps(t.step_types, args.steps)) for t in trajectories]
    scores = [p_high[eligible] for p_high, eligible in pairs]
    pool: FloatArray = np.concatenate(scores)
    if not len(pool):
        raise ConfigError(f"the calibration panel has no step that a router decides and --steps {args.steps} counts")
    budgets = args.budgets or BUDGETS
    thresholds = tuple(budget_threshold(pool, budget, args.split_ties) for budget in budgets)
    steps = np.array([len(part) for part in scores], dtype=np.int64)
    shares = tuple(
        step_share(np.array([threshold.high_steps(part) for part in scores]), steps, args.resamples)
        for threshold in thresholds
    )
    found = Calibration(args.steps, tuple(forced), models, thresholds, shares, describe_scores(pool))
    return found, pool


def share_shown(config: EnvConfig) -> Callable[[Trajectory], dict[str, str]]:
    """For `rollout`'s progress bar: the share of steps so far that took the highest precision."""
    counts = np.zeros(len(config.precisions), dtype=np.int64)

    def count(trajectory: Trajectory) -> dict[str, str]:
        counts[:] += np.bincount(trajectory.actions, minlength=len(counts))
        return {config.precisions[-1]: f"{counts[-1] / counts.sum():.1%}"}

    return count


def calibrate_once(
    folder: Path,
    router: PrecisionRouter,
    config: EnvConfig,
    args: argparse.Namespace,
    forced: Sequence[str],
    digests: Mapping[str, Any],
) -> Calibration:
    """`calibrate`, or read what the same calibration has found before.

    Args:
        folder: keeps a file of thresholds for each calibration, named by all that it depends on.
        router: in evaluation mode.
        config: keywords of the environment.
        args: as for `calibrate`.
        forced: types of steps that the router is not asked at.
        digests: plain data on which the episodes depend beside the settings: digests of models and of the encoder.

    Raises:
        ConfigError: see `calibrate`.
    """
    names = ("calibration_panel", "calibration_tasks", "steps", "split_ties", "resamples")
    settings = {name: getattr(args, name) for name in names} | {"budgets": list(args.budgets or BUDGETS)}
    settings |= {"forced": list(forced), "env": deciding_settings(config), **digests}
    path = folder / f"{content_address([router.digest(), settings])}.json"
    if path.is_file():
        return read_calibration(path, router)
    calibration, _ = calibrate(router, config, args, forced)
    record = {"settings": settings, "router_digest": router.digest(), "calibration": asdict(calibration)}
    write_json(path, record)
    return calibration


def deciding_settings(config: EnvConfig) -> dict[str, Any]:
    """The settings of an environment that change what is said in an episode, or how long it takes.

    λ and the penalty of invalid actions change neither, only what an episode is worth.
    """
    return {key: value for key, value in config.kwargs().items() if key not in _WITHOUT_EFFECT}


def training_scores(
    router: PrecisionRouter, dataset: KLDataset, steps: Steps, forced: Sequence[str], batch_size: int = 32
) -> FloatArray:
    """Score the histories that KL-ST trains on, which the high precision made: the first pool of Appendix D.

    Args:
        router: in evaluation mode.
        dataset: of KLs.
        steps: that are in the pool.
        forced: types of steps that are not.
        batch_size: trajectories scored together.

    Returns:
        p_high (N,) float32 of the steps in the pool, in the order of the data.
    """
    import torch

    from dmr_gym.router import pad_rows

    scores = []
    episodes = dataset.split(dataset.rows)
    for start in range(0, len(episodes), batch_size):
        rows, valid = (part.to(router.device) for part in pad_rows(episodes[start : start + batch_size]))
        with torch.no_grad():
            scores.append(router(rows, valid).softmax(-1)[..., -1][valid].cpu().numpy())
    asked = counted_steps(dataset.step_types, steps) & ~np.isin(dataset.step_types, forced or [""])
    pool: FloatArray = np.concatenate(scores)[asked]
    return pool


def read_calibration(
    path: Path, router: PrecisionRouter, budgets: Sequence[float] | None = None, asked: Sequence[str] | None = None
) -> Calibration:
    """Read the "calibration" of a ``thresholds.json`` that `agents/calibrate.py` wrote for a router.

    Args:
        path: of the file.
        router: that shall decide by it.
        budgets: those that are wanted; None takes all of the file.
        asked: of ``--force-high``; None takes the file's.

    Raises:
        ConfigError: no such file, not of thresholds, or of another router, of other forced types, or without a budget.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        digest, found = record["router_digest"], dict(record["calibration"])
        # JSON has no infinity, the threshold of a budget of no step.
        thresholds = [
            Threshold(**t | {"value": math.inf if t["value"] is None else t["value"]}) for t in found["thresholds"]
        ]
        ends = ("binomial_ci", "episodes_ci")
        shares = [StepShare(**s | {name: Interval(**s[name]) for name in ends}) for s in found["shares"]]
        known = {t.budget: (t, s) for t, s in zip(thresholds, shares, strict=True)}
        forced, rest = tuple(found["forced"]), {name: found[name] for name in ("steps", "models", "scores")}
    except OSError as error:
        raise ConfigError(f"no thresholds at {path}: agents/calibrate.py writes them (--out)") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no file of thresholds: agents/calibrate.py writes one") from error
    if digest != router.digest():
        raise ConfigError(
            f"{path} belongs to another router: expected digest {router.digest()[:12]}, found {str(digest)[:12]}; "
            "calibrate this one (agents/calibrate.py --router)"
        )
    if asked is not None and tuple(asked) != forced:
        raise ConfigError(
            f"{path} was made with --force-high {' '.join(forced)}, not {' '.join(asked)}: calibrate anew"
        )
    lacking = [budget for budget in budgets or () if budget not in known]
    if lacking:
        raise ConfigError(f"{path} has thresholds for the budgets {sorted(known)}, not for {lacking}: calibrate anew")
    chosen = [known[budget] for budget in budgets or known]
    return Calibration(
        forced=forced, thresholds=tuple(t for t, _ in chosen), shares=tuple(s for _, s in chosen), **rest
    )


def budget_text(budget: float) -> str:
    """Two digits where they say it all, else as many as it takes: no two budgets share a text."""
    return f"{budget:.2f}" if round(budget, 2) == budget else repr(budget)
