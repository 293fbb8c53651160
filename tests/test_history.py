"""dmr_gym.history: what is kept, what is handed out, and which rows count."""

from __future__ import annotations

import numpy as np
import pytest

from dmr_gym.errors import ConfigError
from dmr_gym.history import History, valid_mask


def one_hot(index: int, dim: int = 4) -> np.ndarray:
    """A unit vector that says which step it was."""
    row = np.zeros(dim, dtype=np.float32)
    row[index % dim] = 1.0
    return row


def test_rows_are_oldest_first_and_unused_rows_are_zero() -> None:
    """Two steps fill the first two of three rows."""
    history = History(3, 4)
    history.append(one_hot(2))
    history.append(one_hot(0))
    expected = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    assert np.array_equal(history.observation(), expected)
    assert history.observation().dtype == np.float32
    assert len(history) == 2


def test_keeps_the_newest_rows_when_full() -> None:
    """After five steps a history of three holds steps 2, 3 and 4, oldest first."""
    history = History(3, 8)
    for step in range(5):
        history.append(one_hot(step, 8))
    assert history.observation().argmax(axis=1).tolist() == [2, 3, 4]
    assert len(history) == len(history.rows) == 3


def test_observation_shares_no_memory() -> None:
    """Writing into an observation changes neither the history nor earlier observations."""
    history = History(2, 4)
    history.append(one_hot(1))
    first = history.observation()
    first[:] = 7
    history.append(one_hot(2))
    assert history.observation()[0].tolist() == [0, 1, 0, 0]
    assert (first == 7).all()


def test_embedding_is_copied() -> None:
    """Reusing the array that was appended does not rewrite the past."""
    history = History(2, 4)
    row = one_hot(1)
    history.append(row)
    row[:] = one_hot(3)
    assert history.observation()[0].tolist() == [0, 1, 0, 0]


def test_observation_writes_into_out() -> None:
    """With `out` the stack is written in place, stale values included."""
    history = History(2, 4)
    history.append(one_hot(1))
    batch = np.full((3, 2, 4), 9, dtype=np.float32)
    history.observation(batch[1])
    assert batch[1].tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert (batch[[0, 2]] == 9).all()


@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_valid_mask_counts_the_rows_in_use(steps: int) -> None:
    """The mask is True exactly for rows in use, also when the history is full."""
    history = History(3, 4)
    for step in range(steps):
        history.append(one_hot(step))
    used = min(steps, 3)
    assert valid_mask(history.observation()).tolist() == [True] * used + [False] * (3 - used)


def test_valid_mask_takes_batches() -> None:
    """A batch (B, L, D) gives (B, L)."""
    batch = np.zeros((2, 3, 4), dtype=np.float32)
    batch[0, 0, 1], batch[1, :2, 3] = -1.0, 0.5
    assert valid_mask(batch).tolist() == [[True, False, False], [True, True, False]]


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_restore_goes_back_and_forth(steps: int) -> None:
    """Rows taken at one time give the same observation later, here and in another history."""
    history, other = History(3, 4), History(3, 4)
    for step in range(steps):
        history.append(one_hot(step))
    rows, expected = history.rows, history.observation()
    for step in range(4):
        history.append(one_hot(step + 1))
        other.append(one_hot(step))
    for restored in (history, other):
        restored.restore(rows)
        assert np.array_equal(restored.observation(), expected)
        assert len(restored) == min(steps, 3)


def test_snapshot_rows_are_read_only() -> None:
    """Nobody can change a row that a snapshot shares."""
    history = History(3, 4)
    history.append(one_hot(0))
    with pytest.raises(ValueError, match="read-only"):
        history.rows[0][0] = 3.0


def test_clear_forgets_everything() -> None:
    """After clear all rows are zero and unused."""
    history = History(2, 4)
    for step in range(3):
        history.append(one_hot(step))
    history.clear()
    assert not history.observation().any()
    assert len(history) == 0


def test_coordinates_stay_inside_the_space() -> None:
    """A coordinate that rounding pushed over 1 is put back to 1."""
    history = History(1, 4)
    history.append(np.array([np.nextafter(np.float32(1), np.float32(2)), 0, 0, 0], dtype=np.float32))
    assert history.observation().max() == 1.0


@pytest.mark.parametrize("row", [np.zeros(4), np.full(4, 0.1), np.full(4, np.nan)], ids=["zero", "short", "nan"])
def test_refuses_what_is_not_a_unit_vector(row: np.ndarray) -> None:
    """A zero row would read as unused, so only unit vectors are taken."""
    history = History(2, 4)
    with pytest.raises(ConfigError, match="the encoder must return unit vectors, got one of squared norm"):
        history.append(row.astype(np.float32))
    assert len(history) == 0


def test_refuses_another_width() -> None:
    """The message names both shapes."""
    with pytest.raises(ConfigError, match=r"expected an embedding of shape \(4,\), got \(5,\)"):
        History(2, 4).append(one_hot(0, 5))
