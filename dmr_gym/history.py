"""The observation: the newest L step embeddings of an episode, oldest first, then zero rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.types import FloatArray

_ONE = np.float32(1)


def valid_mask(observation: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which rows of an observation hold a step.

    Exact, because `History` takes no all-zero row.

    Args:
        observation: (..., L, D), one observation or a batch of them.

    Returns:
        (..., L) bool, True for rows in use.
    """
    return np.asarray((np.asarray(observation) != 0).any(axis=-1))


def checked_row(embedding: FloatArray, dim: int) -> FloatArray:
    """A row as observations hold it: a read-only copy of an embedding, (D,) float32 within [-1, 1].

    Args:
        embedding: (D,) float32 of unit norm.
        dim: embedding width D.

    Raises:
        ConfigError: if it has another shape or is not of unit norm; a zero row would read as an unused one.
    """
    if embedding.shape != (dim,):
        raise ConfigError(f"expected an embedding of shape ({dim},), got {embedding.shape}")
    # Rounding may leave a coordinate of a unit vector one step outside the observation space.
    row = np.minimum(np.asarray(embedding, dtype=np.float32), _ONE)
    np.maximum(row, -_ONE, out=row)
    if not 0.98 < (square := float(row @ row)) < 1.02:
        raise ConfigError(f"the encoder must return unit vectors, got one of squared norm {square:.4g}")
    row.flags.writeable = False
    return row


class History:
    """Stacked embeddings of one episode.

    Args:
        length: most rows kept, L; when full, the oldest row gives way.
        dim: embedding width D.
    """

    def __init__(self, length: int, dim: int) -> None:
        self._rows: tuple[FloatArray, ...] = ()
        self._array = np.zeros((length, dim), dtype=np.float32)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> tuple[FloatArray, ...]:
        """The rows in use, each (D,) float32 and read-only; a free snapshot, since nobody can change it."""
        return self._rows

    def clear(self) -> None:
        """Forget everything."""
        self._array[: len(self._rows)] = 0
        self._rows = ()

    def append(self, embedding: FloatArray) -> None:
        """Add one step.

        Args:
            embedding: (D,) float32 of unit norm; it is copied.

        Raises:
            ConfigError: if it has another shape or is not of unit norm; a zero row would read as an unused one.
        """
        length, dim = self._array.shape
        row = checked_row(embedding, dim)
        if len(self._rows) < length:
            self._array[len(self._rows)] = row
            self._rows = (*self._rows, row)
        else:
            self._array[:-1] = self._array[1:]
            self._array[-1] = row
            self._rows = (*self._rows[1:], row)

    def restore(self, rows: tuple[FloatArray, ...]) -> None:
        """Go back to what `rows` was at some time, in this history or in another of the same shape."""
        self.clear()
        for index, row in enumerate(rows):
            self._array[index] = row
        self._rows = rows

    def observation(self, out: FloatArray | None = None) -> FloatArray:
        """Copy the stack.

        Args:
            out: (L, D) float32 to write into; None makes a new array.

        Returns:
            (L, D) float32 that shares no memory with the history.
        """
        if out is None:
            return self._array.copy()
        out[...] = self._array
        return out
