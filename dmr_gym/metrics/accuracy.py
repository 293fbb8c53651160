"""How well labels are predicted."""

from __future__ import annotations

import numpy as np

from dmr_gym.errors import ConfigError
from dmr_gym.types import IntArray


def balanced_accuracy(labels: IntArray, predictions: IntArray) -> float:
    """Mean over the classes that occur of the share of their labels that were predicted.

    Args:
        labels: (N,) int64.
        predictions: (N,) int64.

    Raises:
        ConfigError: shapes differ, or there are no labels.
    """
    if labels.shape != predictions.shape or labels.ndim != 1 or not labels.size:
        raise ConfigError(f"balanced accuracy needs two (N,) arrays, got {labels.shape} and {predictions.shape}")
    return float(np.mean([(predictions[labels == c] == c).mean() for c in np.unique(labels)]))
