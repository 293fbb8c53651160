"""From the episodes of an update of GRPO to the tensors that its loss takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dmr_gym.losses import AdvantageMode, group_advantages, mixed_groups, state_advantages
from dmr_gym.rollout import Trajectory
from dmr_gym.router import PrecisionRouter, pad_rows

STATE_MODES = ("state", "successor")
"""Ways to compute advantages that give every decision its own, see `state_advantages`."""

HISTORIES_AT_ONCE = 64
"""Histories that are scored in one pass, of similar lengths, so that little of it is padding."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Trajectories of one update, padded to T steps.

    Where precisions said the same, members of a group saw the same. Each history is there once, U <= B of them.

    Attributes:
        rows: (U, T, D) float32, what the decisions saw, shortest histories first.
        valid: (U, T) bool, True where a row is real.
        histories: (B,) int64, the history of each trajectory.
        actions: (B, T) int64.
        old_logprobs: (B, T) float32, of the policy that acted.
        advantages: (B, T) float32.
        mask: (B, T) bool, True at decisions.
    """

    rows: Tensor
    valid: Tensor
    histories: Tensor
    actions: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor


def decision_advantages(
    played: Sequence[Trajectory], group_size: int, mode: str, drop_same_success: bool = False
) -> list[NDArray[np.float64]]:
    """Compute an advantage for every decision.

    Args:
        played: M groups of G trajectories, the members of a group side by side.
        group_size: G.
        mode: one of `STATE_MODES`, or of `dmr_gym.losses.ADVANTAGE_MODES`, where all decisions of a trajectory have the
            same.
        drop_same_success: 0 in groups that solved or failed their task with every member.

    Returns:
        M * G arrays (T_i,) float64.
    """
    groups = [played[start : start + group_size] for start in range(0, len(played), group_size)]
    if mode in STATE_MODES:
        each = [
            advantage
            for group in groups
            for advantage in state_advantages(
                [t.rewards for t in group], [t.state_keys() for t in group], mode == "successor"
            )
        ]
    else:
        returns = np.array([[t.rewards.sum() for t in group] for group in groups], dtype=np.float64)
        values = group_advantages(returns, cast(AdvantageMode, mode)).ravel()
        each = [np.full(len(t.actions), value) for t, value in zip(played, values, strict=True)]
    if not drop_same_success:
        return each
    kept = np.repeat(mixed_groups(np.array([[t.success for t in group] for group in groups])), group_size)
    return [advantage * weight for advantage, weight in zip(each, kept, strict=True)]


def to_batch(played: Sequence[Trajectory], advantages: Sequence[NDArray[Any]], device: str = "cpu") -> Batch:
    """Stack trajectories on a device.

    Args:
        played: B trajectories.
        advantages: of their decisions, B arrays (T_i,).
        device: torch's name.
    """
    keys = [trajectory.rows[:-1].tobytes() for trajectory in played]
    seen = {key: trajectory.rows[:-1] for key, trajectory in zip(keys, played, strict=True)}
    order = sorted(seen, key=lambda key: len(seen[key]))
    rows, valid = pad_rows([seen[key] for key in order])
    place = {key: number for number, key in enumerate(order)}
    histories = torch.tensor([place[key] for key in keys])
    mask = valid[histories]

    def stack(values: Sequence[NDArray[Any]], dtype: torch.dtype) -> Tensor:
        stacked = torch.zeros(mask.shape, dtype=dtype)
        stacked[mask] = torch.from_numpy(np.concatenate(values)).to(dtype)
        return stacked.to(device)

    return Batch(
        rows=rows.to(device),
        valid=valid.to(device),
        histories=histories.to(device),
        actions=stack([trajectory.actions for trajectory in played], torch.int64),
        old_logprobs=stack([trajectory.logprobs for trajectory in played], torch.float32),
        advantages=stack(advantages, torch.float32),
        mask=mask.to(device),
    )


def batch_logits(router: PrecisionRouter, batch: Batch) -> Tensor:
    """Score all decisions of a batch, each history once.

    Returns:
        (B, T, P) logits; those at steps that were not taken mean nothing.
    """
    parts = []
    for start in range(0, len(batch.rows), HISTORIES_AT_ONCE):
        rows, valid = (each[start : start + HISTORIES_AT_ONCE] for each in (batch.rows, batch.valid))
        longest = int(valid[-1].sum())  # the last of a part, as they come shortest first
        logits = router(rows[:, :longest], valid[:, :longest])
        parts.append(functional.pad(logits, (0, 0, 0, rows.shape[1] - longest)))
    return torch.cat(parts)[batch.histories]
