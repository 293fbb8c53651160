"""Pieces of KL-ST training (paper section 4.2): labelled episodes, their batches, and the score that stops training.

`agents/train_kl_st.py` is the loop around them.

Shapes: B batch, T steps, D embedding width, P precisions, N steps of all trajectories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmr_gym import trained_on
from dmr_gym.calibration import LabelStability, Plateau, find_plateau, label_stability, share_threshold
from dmr_gym.errors import ConfigError
from dmr_gym.kl import Steps, counted_steps, precision_labels
from dmr_gym.kl_dataset import KLDataset
from dmr_gym.losses import weighted_cross_entropy
from dmr_gym.metrics import balanced_accuracy
from dmr_gym.router import PrecisionRouter, pad_rows
from dmr_gym.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class LabelledEpisode:
    """One trajectory to learn from.

    Attributes:
        rows: (T, D) float32, what the decisions saw, newest row of each.
        labels: (T,) int64, the precision that each step needs.
        counted: (T,) bool, the steps that are learnt from; the others are seen all the same.
    """

    rows: FloatArray
    labels: IntArray
    counted: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Labelling:
    """How KLs became labels.

    Attributes:
        steps: which steps count.
        thresholds: τ in nats of each lower precision, in ascending precision.
        plateaus: where they lie; None where they were given.
        stability: labels of the counted steps that change when every τ moves.
    """

    steps: Steps
    thresholds: tuple[float, ...]
    plateaus: tuple[Plateau, ...] | None
    stability: tuple[LabelStability, ...]

    def counted_kls(self, dataset: KLDataset) -> FloatArray:
        """The KLs (N, P - 1) of the steps that count, see `KLDataset.kls`."""
        counted: FloatArray = dataset.kls(self.steps)[counted_steps(dataset.step_types, self.steps)]
        return counted


@dataclass(frozen=True, slots=True)
class Score:
    """Quality on held-out tasks.

    Attributes:
        balanced_accuracy: mean over the labels that occur of the share that was predicted.
        loss: mean class-weighted cross-entropy in nats.
        high_share: share of counted steps for which the highest precision is the likeliest.
    """

    balanced_accuracy: float
    loss: float
    high_share: float

    @property
    def merit(self) -> tuple[float, float]:
        """What a better score has more of: balanced accuracy, then a lower loss."""
        return self.balanced_accuracy, -self.loss

    def figures(self) -> dict[str, float]:
        """The fields as a run's log names them."""
        return {f"validation/{name}": value for name, value in asdict(self).items()}

    @classmethod
    def from_figures(cls, figures: Mapping[str, float]) -> Score:
        """Read what `figures` gave, to the bit."""
        return cls(**{name: figures[f"validation/{name}"] for name in cls.__slots__})


def label_dataset(
    dataset: KLDataset, steps: Steps, thresholds: Sequence[float] | None
) -> tuple[list[LabelledEpisode], Labelling]:
    """Turn the KLs of a data set into labels (Eq. 5).

    Args:
        dataset: of M trajectories.
        steps: which count. "all" (AS) takes the KL over all tokens of a completion, the others that of the action.
        thresholds: τ in nats, one for all lower precisions or P - 1; None takes each from its own plateau.

    Returns:
        M episodes, and how they were labelled.

    Raises:
        ConfigError: no step counts, too few for a plateau, or another number of thresholds.
    """
    counted = _counted(dataset, steps)
    kls = dataset.kls(steps)
    lower = kls.shape[1]
    plateaus = None
    if thresholds is None:
        plateaus = tuple(find_plateau(column) for column in kls[counted].T)
        taus = tuple(plateau.threshold for plateau in plateaus)
    elif len(thresholds) in (1, lower):
        taus = tuple(thresholds) * (lower // len(thresholds))
    else:
        raise ConfigError(f"expected one threshold or {lower}, one a lower precision, got {len(thresholds)}")
    labels = precision_labels(kls, taus)
    columns = zip(dataset.split(dataset.rows), dataset.split(labels), dataset.split(counted), strict=True)
    stability = tuple(label_stability(kls[counted], taus))
    return [LabelledEpisode(*column) for column in columns], Labelling(steps, taus, plateaus, stability)


def share_thresholds(dataset: KLDataset, steps: Steps, share: float) -> list[float]:
    """τ in nats of each of the P - 1 lower precisions, above which a share of the counted steps lies.

    Args:
        dataset: of M trajectories.
        steps: which count, as for `label_dataset`.
        share: of the counted steps, in (0, 1); where KLs are tied, the nearest that can be had.

    Raises:
        ConfigError: no step counts, or another share.
    """
    return [share_threshold(column, share) for column in dataset.kls(steps)[_counted(dataset, steps)].T]


def _counted(dataset: KLDataset, steps: Steps) -> NDArray[np.bool_]:
    """`counted_steps`, at least one of which must count."""
    counted = counted_steps(dataset.step_types, steps)
    if not counted.any():
        found = ", ".join(sorted(set(dataset.step_types)))
        raise ConfigError(f"no step of the data counts with --steps {steps}: its types are {found}")
    return counted


def labelling_lines(labelling: Labelling, lower: Sequence[str]) -> list[str]:
    """Say where each threshold comes from, a line a lower precision, and how many labels depend on it."""
    lines = []
    for index, (name, tau) in enumerate(zip(lower, labelling.thresholds, strict=True)):
        plateau = labelling.plateaus[index] if labelling.plateaus else None
        origin = "given" if plateau is None else "by Otsu's method: the KLs have no plateau"
        if plateau is not None and plateau.bimodal:
            span = f"from {plateau.low:.2g} to {plateau.high:.2g}"
            origin = f"in the plateau {span} nats that holds {plateau.share_inside:.1%} of the steps"
        lines.append(f"τ of {name}: {tau:.3g} nats, {origin}")
    moves = [f"{s.decades:g} ({s.lowered:.1%} down, {s.raised:.1%} up)" for s in labelling.stability]
    return [*lines, f"labels that change when log10 τ moves by {', '.join(moves)}"]


def counted_labels(episodes: Sequence[LabelledEpisode]) -> IntArray:
    """The (N,) int64 labels that are learnt from."""
    labels: IntArray = np.concatenate([episode.labels[episode.counted] for episode in episodes])
    return labels


def split_by_task(
    episodes: Sequence[LabelledEpisode], task_ids: Sequence[str], share: float, seed: int
) -> tuple[list[LabelledEpisode], list[LabelledEpisode]]:
    """Hold out a share of the tasks, with all their episodes.

    Args:
        episodes: in the order of the data.
        task_ids: one an episode.
        share: of the tasks that is held out.
        seed: of the choice.

    Returns:
        Training episodes, and those held out.

    Raises:
        ConfigError: one side would be empty, or have no step that counts.
    """
    tasks = sorted(set(task_ids))
    number = round(share * len(tasks))
    if not 0 < number < len(tasks):
        raise ConfigError(f"a validation share of {share} leaves {number} of {len(tasks)} tasks on one side")
    held_out = {tasks[i] for i in np.random.default_rng(seed).permutation(len(tasks))[:number]}
    pairs = list(zip(episodes, task_ids, strict=True))
    sides = [e for e, task in pairs if task not in held_out], [e for e, task in pairs if task in held_out]
    for name, side in zip(("training", "validation"), sides, strict=True):
        if not any(episode.counted.any() for episode in side):
            raise ConfigError(f"the {name} tasks have no step that counts: collect more tasks")
    return sides


def batches(
    episodes: Sequence[LabelledEpisode], size: int, order: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield episodes in batches, padded to the longest of each.

    Args:
        episodes: to choose from.
        size: most episodes of a batch.
        order: indices of episodes.

    Yields:
        rows (B, T, D) float32, labels (B, T) int64, and the bool masks (B, T) of valid and of counted steps.
    """
    for start in range(0, len(order), size):
        chosen = [episodes[i] for i in order[start : start + size]]
        rows, valid = pad_rows([episode.rows for episode in chosen])
        labels = torch.zeros(valid.shape, dtype=torch.int64)
        counted = torch.zeros_like(valid)
        labels[valid] = torch.from_numpy(np.concatenate([episode.labels for episode in chosen]))
        counted[valid] = torch.from_numpy(np.concatenate([episode.counted for episode in chosen]))
        yield rows, labels, valid, counted


def score_router(
    router: PrecisionRouter, episodes: Sequence[LabelledEpisode], weights: Tensor, batch_size: int
) -> Score:
    """Score the likeliest precision of every step that counts; leaves the router in evaluation mode.

    Args:
        router: on any device.
        episodes: with at least one step that counts.
        weights: (P,) float class weights on the router's device.
        batch_size: episodes scored together.
    """
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


def describe_data(dataset: KLDataset, settings: Mapping[str, Any], steps: Steps) -> dict[str, Any]:
    """Say what a router learns from, as it will stand in its file.

    Args:
        dataset: of KLs.
        settings: that it was collected with (`dmr_gym.kl_dataset.read_settings`).
        steps: that are learnt from.

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
        steps=steps,
    )
