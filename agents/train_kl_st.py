"""Train a router on KL supervision: which steps need high precision (paper section 4.2).

Each step's KL becomes the label "low is enough" or "high is needed" by a threshold (Eq. 5), and the router learns the
labels by class-weighted cross-entropy (Eq. 6): one causal pass scores all decisions of an episode.

How this differs from the paper, which does not state the first two choices:

1. The threshold is the middle of the plateau that `dmr_gym.calibration.find_plateau` finds; ``--threshold`` sets it,
   ``--label-share`` takes it from the share of steps that shall lie above.
2. AdamW 3e-4 with weight decay 0.01, 20 epochs at most, stopped early on the balanced accuracy of held-out tasks.
3. ``--steps action`` (AO) takes the threshold and the loss from action steps alone, ``--steps all`` (AS) from all.
   In WebShop the paper learns from clicks alone: that is ``--steps click``, and then `agents/calibrate.py` and
   `agents/evaluate.py` send searches to the highest precision, as the paper does.
4. With more than two precisions the label is the lowest one whose KL stays under its own threshold.

    python agents/train_kl_st.py --data runs/kl --out runs/kl-st
    tensorboard --logdir runs/kl-st/tensorboard

``--out`` then holds the best epoch's router in router/, run.json with every setting and version, kl_histogram.png, and
the curves. A stopped or killed run goes on with ``--resume`` and ends in the same router, bit by bit: order and dropout
are functions of the seed and the number of the epoch and of the update.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dmr_gym.command_line import add_router_options, recipe_parser, router_config, run, settings_of
from dmr_gym.device import torch_device
from dmr_gym.errors import ConfigError
from dmr_gym.kl import STEPS
from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.kl_figures import draw_kls
from dmr_gym.kl_training import (
    LabelledEpisode,
    Labelling,
    Score,
    batches,
    counted_labels,
    describe_data,
    label_dataset,
    labelling_lines,
    score_router,
    share_thresholds,
    split_by_task,
)
from dmr_gym.losses import class_weights, weighted_cross_entropy
from dmr_gym.router import PrecisionRouter
from dmr_gym.runs import RunRecord, file_digest, write_atomically
from dmr_gym.training import (
    STATE_FILE,
    RunLog,
    Stop,
    claim_folder,
    load_training_state,
    save_training_state,
    stop_on_signal,
    update_seed,
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__, "train_kl_st")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder that agents/collect_kl.py wrote")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--config", metavar="FILE", help="TOML file whose table [train_kl_st] holds options of this recipe")
    add("--resume", action="store_true", help="go on with the run in --out; its settings must be the same")
    add(
        "--threshold",
        type=float,
        nargs="+",
        metavar="NATS",
        help="KL above which a precision is too low: one for all, or one a lower precision in ascending order "
        "(default: each from its own plateau)",
    )
    add(
        "--label-share",
        type=float,
        metavar="X",
        help="share of steps that are too hard for a precision, in (0, 1), instead of --threshold: τ is the KL that so "
        "many exceed (default: none)",
    )
    add(
        "--steps",
        choices=STEPS,
        default="action",
        help="steps that count for thresholds, labels and loss: all but thoughts (action), all with the KL over all "
        "tokens (all), or WebShop's clicks alone (click) (default: %(default)s)",
    )
    add("--epochs", type=int, default=20, metavar="N", help="most passes over the data (default: %(default)s)")
    add("--patience", type=int, default=5, metavar="N", help="epochs without a better score (default: %(default)s)")
    add("--batch-size", type=int, default=16, metavar="N", help="episodes a gradient step (default: %(default)s)")
    add("--lr", type=float, default=3e-4, metavar="X", help="learning rate of AdamW (default: %(default)s)")
    add("--weight-decay", type=float, default=0.01, metavar="X", help="of AdamW (default: %(default)s)")
    add("--grad-clip", type=float, default=1.0, metavar="X", help="largest gradient norm (default: %(default)s)")
    add("--validation-share", type=float, default=0.2, metavar="X", help="of tasks, in (0, 1) (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, split, order and dropout (default: %(default)s)")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    add_router_options(parser)
    args = parser.parse_args(argv)
    check_args(args)
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuse numbers with which nothing can be trained, and a device that is not there."""
    for name in ("epochs", "patience", "batch_size"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    for name, low in (("lr", "above 0"), ("grad_clip", "above 0"), ("weight_decay", "of at least 0")):
        value = getattr(args, name)
        if not math.isfinite(value) or value < 0 or (value == 0 and low == "above 0"):
            raise ConfigError(f"--{name.replace('_', '-')} must be a finite number {low}, got {value}")
    if not 0 < args.validation_share < 1:
        raise ConfigError(f"--validation-share must lie between 0 and 1, got {args.validation_share}")
    for threshold in args.threshold or ():
        if not threshold >= 0:
            raise ConfigError(f"--threshold must be a number of nats of at least 0, got {threshold}")
    if args.label_share is not None and args.threshold is not None:
        raise ConfigError("--threshold and --label-share both say where the thresholds lie: give one of them")
    if args.label_share is not None and not 0 < args.label_share < 1:
        raise ConfigError(f"--label-share must lie between 0 and 1, got {args.label_share}")
    torch_device(args.device)


def main(argv: Sequence[str] | None = None) -> None:
    """Label, split, train, and keep the best router."""
    args = parse_args(argv)
    data_file = args.data / "kl.safetensors"
    dataset, data_settings = KLDataset.load(data_file), read_settings(data_file)
    trained_on_record = describe_data(dataset, data_settings, args.steps)
    thresholds = args.threshold
    if args.label_share is not None:
        thresholds = share_thresholds(dataset, args.steps, args.label_share)
    episodes, labelling = label_dataset(dataset, args.steps, thresholds)
    training, validation = split_by_task(episodes, dataset.task_ids, args.validation_share, args.seed)
    n_precisions = len(labelling.thresholds) + 1
    weights = class_weights(counted_labels(training), n_precisions)
    check_labels(weights, labelling)

    torch.manual_seed(args.seed)
    router = PrecisionRouter(router_config(args, dataset.rows.shape[1], n_precisions)).to(args.device)
    router.trained_on = trained_on_record
    settings = settings_of(args)
    settings["data_sha256"] = file_digest(data_file)
    # Where the data lies does not matter, and neither is any epoch changed by how many may follow.
    free = ("data", "out", "config", "resume", "epochs", "patience")
    claim_folder(args.out, settings, args.resume, free)

    counts = np.bincount(counted_labels(training), minlength=n_precisions).tolist()
    bound = data_settings.get("top_k") is not None
    known = {
        "settings": settings,
        "data_settings": data_settings,
        "kl_is_lower_bound": bound,
        "labelling": asdict(labelling),
        "label_counts": counts,
        "class_weights": weights.tolist(),
        "router": asdict(router.config),
        "router_parameters": router.n_parameters,
    }
    record = RunRecord(args.out, known)
    lower = data_settings["env"]["precisions"][:-1]
    print(f"{len(training)} training and {len(validation)} validation episodes, {args.steps} steps; labels {counts}")
    for line in labelling_lines(labelling, lower):
        print(line)
    if bound:
        print("the KLs are lower bounds: the data was collected with --top-k")
    kls, taus, plateaus = labelling.counted_kls(dataset), labelling.thresholds, labelling.plateaus
    write_atomically(
        args.out / "kl_histogram.png",
        lambda part: draw_kls(kls, lower, taus, plateaus, part, steps=args.steps, bound=bound),
    )
    print(f"router of {router.n_parameters / 1e6:.1f} M parameters on {args.device}")

    scores = train(router, training, validation, torch.from_numpy(weights), record, args)
    best = max(scores, key=lambda score: score.merit)
    router = PrecisionRouter.load(args.out / "router")
    found = {
        "router_digest": router.digest(),
        "best_epoch": scores.index(best) + 1,
        "best": asdict(best),
        "history": [asdict(score) for score in scores],
    }
    record.end(found)
    print(f"best epoch {scores.index(best) + 1}: balanced accuracy {best.balanced_accuracy:.1%} on held-out tasks")
    print(f"wrote {args.out / 'router'} and {record.path}")


def train(
    router: PrecisionRouter,
    training: Sequence[LabelledEpisode],
    validation: Sequence[LabelledEpisode],
    weights: Tensor,
    record: RunRecord,
    args: argparse.Namespace,
) -> list[Score]:
    """Fit the router from where the run in ``--out`` stands, save it whenever it is better than before.

    Returns:
        The score after each epoch, those before a resumption included.
    """
    optimizer = torch.optim.AdamW(router.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    weights = weights.to(router.device)
    state = args.out / STATE_FILE
    progress = load_training_state(state, router, [optimizer])
    done = int(progress.get("epoch", 0))
    with (
        RunLog(args.out, done) as log,
        stop_on_signal() as stop,
        tqdm(total=args.epochs, initial=done, unit="epoch") as bar,
    ):
        scores = [Score.from_figures(figures) for figures in log.history]
        while len(scores) < args.epochs and not is_stalled(scores, args.patience):
            epoch = len(scores)
            figures = train_epoch(router, optimizer, training, weights, epoch, progress, record, stop, args)
            score = score_router(router, validation, weights, args.batch_size)
            log.write(epoch + 1, figures | score.figures())
            if all(score.merit > earlier.merit for earlier in scores):
                router.save(args.out / "router")
            scores.append(score)
            progress = {"epoch": epoch + 1}
            record.work()
            save_training_state(state, router, [optimizer], progress)
            bar.update()
            bar.set_postfix(balanced_accuracy=f"{score.balanced_accuracy:.3f}", loss=f"{score.loss:.3f}")
            stop.leave(f"epoch {epoch + 1}")
    return scores


def train_epoch(
    router: PrecisionRouter,
    optimizer: torch.optim.Optimizer,
    training: Sequence[LabelledEpisode],
    weights: Tensor,
    epoch: int,
    progress: dict[str, Any],
    record: RunRecord,
    stop: Stop,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Take the gradient steps of an epoch that are still to be taken; a signal saves after any of them.

    Returns:
        Means over the epoch's gradient steps, those before a resumption included.
    """
    router.train()
    order = torch.Generator().manual_seed(update_seed(args.seed, epoch, "order"))
    episodes = torch.randperm(len(training), generator=order).tolist()
    begun = int(progress.get("batch", 0))
    losses, norms, steps = progress.get("losses", 0.0), progress.get("norms", 0.0), progress.get("steps", 0)
    todo = batches(training, args.batch_size, episodes[begun * args.batch_size :])
    for number, batch in enumerate(todo, begun + 1):
        rows, labels, valid, counted = (tensor.to(router.device) for tensor in batch)
        if not counted.any():
            continue
        torch.manual_seed(update_seed(args.seed, epoch * len(training) + number, "dropout"))
        loss = weighted_cross_entropy(router(rows, valid), labels, counted, weights)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(router.parameters(), args.grad_clip)
        optimizer.step()
        losses, norms, steps = losses + loss.item(), norms + norm.item(), steps + 1
        if stop.signal is not None:
            saved = {"epoch": epoch, "batch": number, "losses": losses, "norms": norms, "steps": steps}
            record.work()
            save_training_state(args.out / STATE_FILE, router, [optimizer], saved)
            stop.leave(f"batch {number} of epoch {epoch + 1}")
    return {"train/loss": losses / steps, "train/gradient_norm": norms / steps}


def is_stalled(scores: Sequence[Score], patience: int) -> bool:
    """Whether so many epochs have passed since the best one."""
    best = max(range(len(scores)), key=lambda epoch: scores[epoch].merit, default=0)
    return len(scores) - 1 - best >= patience


def check_labels(weights: np.ndarray, labelling: Labelling) -> None:
    """Refuse labels that teach nothing."""
    if np.count_nonzero(weights) < 2:
        only = int(np.flatnonzero(weights)[0])
        taus = ", ".join(f"{tau:.3g}" for tau in labelling.thresholds)
        raise ConfigError(
            f"at a threshold of {taus} nats every step has the same label, precision {only}: "
            "choose another --threshold (kl_histogram.png shows the KLs) or collect more tasks"
        )


if __name__ == "__main__":
    run(main)
