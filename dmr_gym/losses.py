"""Training losses of the router, as pure functions of tensors.

Shapes: B batch, T steps, N labels, P precisions. Each function checks ranks and dtypes first.
"""

from __future__ import annotations

from dmr_gym.errors import ConfigError, MissingDependency
from dmr_gym.types import FloatArray, IntArray

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise MissingDependency("torch", "train", "a loss") from error

import numpy as np


def class_weights(labels: IntArray, n_classes: int) -> FloatArray:
    """Weights w_c inversely proportional to class frequency (Eq. 6), with mean 1 over the given labels.

    Args:
        labels: (N,) int64 in [0, n_classes).
        n_classes: P.

    Returns:
        (P,) float32; N / (classes that occur * count of c), and 0 for a class that never occurs.

    Raises:
        ConfigError: there are no labels, or one is out of range.
    """
    if labels.ndim != 1 or labels.size == 0 or labels.min() < 0 or labels.max() >= n_classes:
        raise ConfigError(f"class weights need (N,) labels in [0, {n_classes}), got shape {labels.shape}: {labels!r}")
    counts = np.bincount(labels, minlength=n_classes)
    occurring = np.count_nonzero(counts)
    weights = np.zeros(n_classes, dtype=np.float32)
    weights[counts > 0] = len(labels) / (occurring * counts[counts > 0])
    return weights


def weighted_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
    """Eq. 6: -Σ w_y log π(y | x) over the steps that count, divided by their number.

    The paper writes the sum; the mean keeps the learning rate independent of the batch's size. It is divided by the
    number of steps and not by their weights: otherwise a batch with few rare labels would count as much as one with
    many.

    Args:
        logits: (B, T, P) float.
        labels: (B, T) int64; what stands where ``mask`` is False is never read.
        mask: (B, T) bool, the steps that count.
        weights: (P,) float class weights.

    Returns:
        Scalar, in nats.

    Raises:
        ConfigError: shapes or dtypes are wrong, or no step counts.
    """
    if logits.ndim != 3 or not logits.is_floating_point():
        raise ConfigError(f"cross-entropy: logits must be (B, T, P) float, got {tuple(logits.shape)} {logits.dtype}")
    steps = logits.shape[:2]
    if labels.shape != steps or labels.dtype != torch.int64:
        came = f"{tuple(labels.shape)} {labels.dtype}"
        raise ConfigError(f"cross-entropy: labels must be {tuple(steps)} int64, got {came}")
    if mask.shape != steps or mask.dtype != torch.bool:
        raise ConfigError(f"cross-entropy: mask must be {tuple(steps)} bool, got {tuple(mask.shape)} {mask.dtype}")
    if weights.shape != logits.shape[2:]:
        raise ConfigError(f"cross-entropy: weights must be ({logits.shape[2]},), got {tuple(weights.shape)}")
    if not bool(mask.any()):
        raise ConfigError("cross-entropy: no step of the batch counts")
    return functional.cross_entropy(logits[mask], labels[mask], weight=weights, reduction="sum") / mask.sum()
