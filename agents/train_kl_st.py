"""Train the router on KL labels: KL-ST, the first stage of the paper (section 4.2).

A step is labelled with the lowest precision whose KL stays under a threshold (Eq. 5), and the router learns the labels
by class-weighted cross-entropy (Eq. 6): one causal pass scores all decisions of an episode.

How this differs from the paper, which does not state the first two choices:

1. The threshold is the middle of the plateau that `dmr_gym.calibration.find_plateau` finds; ``--threshold`` sets it.
2. AdamW 3e-4 with weight decay 0.01, 20 epochs at most, stopped early on the balanced accuracy of held-out tasks.
3. ``--steps action`` (AO) takes the threshold and the loss from action steps alone, ``--steps all`` (AS) from all.
   In WebShop the paper trains on click steps only; here searches are action steps as well.

    python agents/train_kl_st.py --data runs/kl --out runs/kl-st
    tensorboard --logdir runs/kl-st/tensorboard

``--out`` then holds the best epoch's router in router/, run.json with every setting and version, and curves.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dmr_gym import trained_on
from dmr_gym.calibration import find_plateau
from dmr_gym.command_line import recipe_parser, run
from dmr_gym.device import torch_device
from dmr_gym.errors import ConfigError
from dmr_gym.kl import counted_steps, precision_labels
from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.losses import class_weights, weighted_cross_entropy
from dmr_gym.metrics import balanced_accuracy
from dmr_gym.router import PrecisionRouter, RouterConfig, pad_rows
from dmr_gym.runs import file_digest, provenance, write_json


@dataclass(frozen=True)
class Episode:
    """One trajectory to learn from: rows (T, D) float32, labels (T,) int64, and (T,) bool of the steps that count."""

    rows: np.ndarray
    labels: np.ndarray
    counted: np.ndarray


@dataclass(frozen=True)
class Score:
    """Quality on held-out tasks: balanced accuracy, mean loss in nats, share of steps sent to the highest precision."""

    balanced_accuracy: float
    loss: float
    high_share: float


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = recipe_parser(__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR", help="folder that agents/collect_kl.py wrote")
    add("--out", type=Path, required=True, metavar="DIR", help="folder for everything this run writes")
    add("--threshold", type=float, metavar="NATS", help="KL above which a precision is too low (default: the plateau)")
    add("--steps", choices=("action", "all"), default="action", help="steps that count (default: %(default)s)")
    add("--epochs", type=int, default=20, metavar="N", help="most passes over the data (default: %(default)s)")
    add("--patience", type=int, default=5, metavar="N", help="epochs without a better score (default: %(default)s)")
    add("--batch-size", type=int, default=16, metavar="N", help="episodes a gradient step (default: %(default)s)")
    add("--lr", type=float, default=3e-4, metavar="X", help="learning rate of AdamW (default: %(default)s)")
    add("--weight-decay", type=float, default=0.01, metavar="X", help="of AdamW (default: %(default)s)")
    add("--grad-clip", type=float, default=1.0, metavar="X", help="largest gradient norm (default: %(default)s)")
    add("--validation-share", type=float, default=0.2, metavar="X", help="of tasks, in (0, 1) (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, split, order and dropout (default: %(default)s)")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    sizes = parser.add_argument_group("router")
    defaults = RouterConfig()
    for name in ("n_layers", "d_model", "n_heads", "d_ff", "max_length"):
        flag, value = f"--{name.replace('_', '-')}", getattr(defaults, name)
        sizes.add_argument(flag, type=int, default=value, metavar="N", help=f"see RouterConfig (default: {value})")
    sizes.add_argument("--dropout", type=float, default=defaults.dropout, metavar="X", help="(default: %(default)s)")
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
    if args.threshold is not None and not args.threshold >= 0:
        raise ConfigError(f"--threshold must be a number of nats of at least 0, got {args.threshold}")
    torch_device(args.device)


def main(argv: Sequence[str] | None = None) -> None:
    """Label, split, train, and keep the best router."""
    args = parse_args(argv)
    data_file = args.data / "kl.safetensors"
    dataset = KLDataset.load(data_file)
    data_settings = read_settings(data_file)
    trained_on_record = describe_data(dataset, data_settings)
    counted = counted_steps(dataset.step_types, args.steps)
    kls = dataset.kl_action if args.steps == "action" else dataset.kl_all
    plateau = find_plateau(kls[counted].ravel()) if args.threshold is None else None
    threshold = plateau.threshold if plateau is not None else args.threshold
    labels = precision_labels(kls, threshold)
    columns = zip(dataset.split(dataset.rows), dataset.split(labels), dataset.split(counted), strict=True)
    episodes = [Episode(*column) for column in columns]
    training, validation = split_by_task(episodes, dataset.task_ids, args.validation_share, args.seed)
    n_precisions = kls.shape[1] + 1
    weights = class_weights(_counted_labels(training), n_precisions)
    check_labels(weights, threshold)

    torch.manual_seed(args.seed)
    router = PrecisionRouter(
        RouterConfig(
            embedding_dim=dataset.rows.shape[1],
            n_precisions=n_precisions,
            n_layers=args.n_layers,
            d_model=args.d_model,
            n_heads=args.n_heads,
            d_ff=args.d_ff,
            dropout=args.dropout,
            max_length=args.max_length,
        )
    ).to(args.device)
    router.trained_on = trained_on_record
    counts = np.bincount(_counted_labels(training), minlength=n_precisions).tolist()
    print(
        f"{len(training)} training and {len(validation)} validation episodes; τ = {threshold:.3g} nats; labels {counts}"
    )
    print(f"router of {router.n_parameters / 1e6:.1f} M parameters on {args.device}")

    history = train(router, training, validation, torch.from_numpy(weights), args)
    best = max(history, key=_merit)
    router = PrecisionRouter.load(args.out / "router")
    record = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "data_sha256": file_digest(data_file),
        "data_settings": data_settings,
        "threshold": threshold,
        "plateau": asdict(plateau) if plateau is not None else None,
        "label_counts": counts,
        "class_weights": weights.tolist(),
        "router": asdict(router.config),
        "router_parameters": router.n_parameters,
        "router_digest": router.digest(),
        "best_epoch": history.index(best) + 1,
        "best": asdict(best),
        "history": [asdict(score) for score in history],
        **provenance(),
    }
    write_json(args.out / "run.json", record)
    print(f"best epoch {history.index(best) + 1}: balanced accuracy {best.balanced_accuracy:.1%} on held-out tasks")
    print(f"wrote {args.out / 'router'} and {args.out / 'run.json'}")


def describe_data(dataset: KLDataset, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the router learns from, as it will stand in its file.

    Raises:
        ConfigError: the data set does not say where it is from, or an episode outgrew the environment's window, which
            training would show whole.
    """
    missing = [key for key in ("env_id", "panel", "env", "models", "encoder") if key not in settings]
    if missing:
        raise ConfigError(
            f"the data set does not say its {', '.join(missing)}: collect it again (agents/collect_kl.py)"
        )
    env = settings["env"]
    longest, window = int(dataset.lengths.max()), env["history_length"]
    if longest > window:
        raise ConfigError(
            f"the data has episodes of up to {longest} steps, but a router deployed there sees {window} rows: collect "
            f"again with --set history_length={longest} or more"
        )
    return trained_on.record(
        env_id=settings["env_id"],
        panel=settings["panel"],
        precisions=env["precisions"],
        embedding_dim=dataset.rows.shape[1],
        encoder=settings["encoder"],
        models=settings["models"],
        history_length=window,
    )


def train(
    router: PrecisionRouter,
    training: Sequence[Episode],
    validation: Sequence[Episode],
    weights: Tensor,
    args: argparse.Namespace,
) -> list[Score]:
    """Fit the router, save it whenever it is better than before, and return the score after each epoch."""
    optimizer = torch.optim.AdamW(router.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    weights = weights.to(router.device)
    order = torch.Generator().manual_seed(args.seed)
    history: list[Score] = []
    steps = 0
    with SummaryWriter(str(args.out / "tensorboard")) as writer, tqdm(total=args.epochs, unit="epoch") as bar:
        for epoch in range(args.epochs):
            router.train()
            for batch in batches(training, args.batch_size, torch.randperm(len(training), generator=order).tolist()):
                rows, labels, valid, counted = (tensor.to(router.device) for tensor in batch)
                if not counted.any():
                    continue
                loss = weighted_cross_entropy(router(rows, valid), labels, counted, weights)
                optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(router.parameters(), args.grad_clip)
                optimizer.step()
                steps += 1
                writer.add_scalar("train/loss", loss.item(), steps)
                writer.add_scalar("train/gradient_norm", norm.item(), steps)
            score = evaluate(router, validation, weights, args.batch_size)
            if all(_merit(score) > _merit(earlier) for earlier in history):
                router.save(args.out / "router")
            history.append(score)
            for name, value in asdict(score).items():
                writer.add_scalar(f"validation/{name}", value, epoch + 1)
            bar.update()
            bar.set_postfix(balanced_accuracy=f"{score.balanced_accuracy:.3f}", loss=f"{score.loss:.3f}")
            if len(history) - 1 - history.index(max(history, key=_merit)) >= args.patience:
                break
    return history


def evaluate(router: PrecisionRouter, episodes: Sequence[Episode], weights: Tensor, batch_size: int) -> Score:
    """Score the likeliest precision of every step that counts."""
    router.eval()
    labels, predictions, losses = [], [], []
    with torch.no_grad():
        for batch in batches(episodes, batch_size, range(len(episodes))):
            rows, targets, valid, counted = (tensor.to(router.device) for tensor in batch)
            if not counted.any():
                continue
            logits = router(rows, valid)
            loss = weighted_cross_entropy(logits, targets, counted, weights)
            losses.append((loss.item(), int(counted.sum())))
            labels.append(targets[counted].cpu().numpy())
            predictions.append(logits[counted].argmax(-1).cpu().numpy())
    predicted = np.concatenate(predictions)
    total = sum(number for _, number in losses)
    return Score(
        balanced_accuracy=balanced_accuracy(np.concatenate(labels), predicted),
        loss=sum(loss * number for loss, number in losses) / total,
        high_share=float((predicted == router.config.n_precisions - 1).mean()),
    )


def batches(episodes: Sequence[Episode], size: int, order: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
    """Yield rows (B, T, D), labels (B, T), valid (B, T) and counted (B, T), padded to a batch's longest episode."""
    for start in range(0, len(order), size):
        chosen = [episodes[i] for i in order[start : start + size]]
        rows, valid = pad_rows([episode.rows for episode in chosen])
        labels = torch.zeros(valid.shape, dtype=torch.int64)
        counted = torch.zeros_like(valid)
        labels[valid] = torch.from_numpy(np.concatenate([episode.labels for episode in chosen]))
        counted[valid] = torch.from_numpy(np.concatenate([episode.counted for episode in chosen]))
        yield rows, labels, valid, counted


def split_by_task(
    episodes: Sequence[Episode], task_ids: Sequence[str], share: float, seed: int
) -> tuple[list[Episode], list[Episode]]:
    """Hold out a share of the tasks, with all their episodes."""
    tasks = sorted(set(task_ids))
    number = round(share * len(tasks))
    if not 0 < number < len(tasks):
        raise ConfigError(f"a validation share of {share} leaves {number} of {len(tasks)} tasks on one side")
    held_out = {tasks[i] for i in np.random.default_rng(seed).permutation(len(tasks))[:number]}
    pairs = list(zip(episodes, task_ids, strict=True))
    return [e for e, task in pairs if task not in held_out], [e for e, task in pairs if task in held_out]


def check_labels(weights: np.ndarray, threshold: float) -> None:
    """Refuse labels that teach nothing."""
    if np.count_nonzero(weights) < 2:
        only = int(np.flatnonzero(weights)[0])
        raise ConfigError(
            f"at a threshold of {threshold:.3g} nats every step has the same label, precision {only}: "
            "choose another --threshold (kl_histogram.png shows the KLs) or collect more tasks"
        )


def _counted_labels(episodes: Sequence[Episode]) -> np.ndarray:
    return np.concatenate([episode.labels[episode.counted] for episode in episodes])


def _merit(score: Score) -> tuple[float, float]:
    return score.balanced_accuracy, -score.loss


if __name__ == "__main__":
    run(main)
