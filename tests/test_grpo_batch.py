"""dmr_gym.grpo_batch: an advantage for every decision, and padded tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmr_gym import grpo_batch
from dmr_gym.grpo_batch import batch_logits, decision_advantages, to_batch
from dmr_gym.policies import EpisodeKey
from dmr_gym.rollout import Trajectory
from dmr_gym.router import PrecisionRouter, RouterConfig


def played(rewards: list[float], success: bool, rows: list[float], actions: list[int]) -> Trajectory:
    """An episode with one number a row."""
    steps = len(rewards)
    return Trajectory(
        key=EpisodeKey("task"),
        rows=np.array(rows, dtype=np.float32).reshape(-1, 1),
        actions=np.array(actions),
        rewards=np.array(rewards),
        p_high=np.full(steps, 0.5, dtype=np.float32),
        logprobs=np.log(np.full(steps, 0.5, dtype=np.float32)),
        router_called=np.ones(steps, dtype=np.bool_),
        latency_llm_s=np.zeros(steps),
        latency_router_s=np.zeros(steps),
        prompt_tokens=np.ones(steps, dtype=np.int64),
        completion_tokens=np.ones(steps, dtype=np.int64),
        step_types=("action",) * steps,
        success=success,
        score=float(success),
    )


SOLVED = played([-0.1, 0.9], True, [1, 2, 3], [0, 1])
FAILED = played([-0.1, -0.1, -0.2], False, [1, 5, 6, 7], [1, 0, 0])
QUICK = played([0.5], True, [9, 9], [0])
"""Returns 0.8, -0.4 and 0.5."""


def test_a_trajectory_s_advantage_is_that_of_all_its_decisions() -> None:
    """Groups of two: 0.8 and -0.4 have the mean 0.2; two equal episodes have nothing to be told apart by."""
    found = decision_advantages([SOLVED, FAILED, QUICK, QUICK], 2, "mean")
    assert [advantage.tolist() for advantage in found] == [
        pytest.approx([0.6, 0.6]),
        pytest.approx([-0.6, -0.6, -0.6]),
        [0.0],
        [0.0],
    ]


def test_a_decision_s_own_advantage_is_from_its_group_alone() -> None:
    """Both begin in the same state, worth (0.8 - 0.4) / 2 = 0.2; there 0.6 and -0.6, and the same alone."""
    found = decision_advantages([SOLVED, FAILED], 2, "state")
    assert [advantage.tolist() for advantage in found] == [
        pytest.approx([0.6, 0.6]),
        pytest.approx([-0.6, -0.6, -0.6]),
    ]
    apart = decision_advantages([SOLVED, SOLVED, FAILED, FAILED], 2, "state")
    assert [advantage.tolist() for advantage in apart] == [[0.0, 0.0]] * 2 + [[0.0, 0.0, 0.0]] * 2


def test_groups_whose_members_ended_alike_can_be_dropped() -> None:
    """Both of the second group are solved, with returns 0.8 and 0.5."""
    every = [SOLVED, FAILED, SOLVED, QUICK]
    assert decision_advantages(every, 2, "mean")[2].tolist() == pytest.approx([0.15, 0.15])
    found = decision_advantages(every, 2, "mean", drop_same_success=True)
    assert found[0].tolist() == pytest.approx([0.6, 0.6])
    assert [advantage.tolist() for advantage in found[2:]] == [[0.0, 0.0], [0.0]]


def test_a_batch_has_the_rows_that_decisions_saw_and_zeros_behind_them() -> None:
    """Two steps and three: the row after the last step is left out, and the mask tells steps from padding."""
    batch = to_batch([SOLVED, FAILED], [np.array([0.6, 0.7]), np.array([-0.6, -0.5, -0.4])])
    assert batch.histories.tolist() == [0, 1]
    assert batch.rows.squeeze(-1).tolist() == [[1, 2, 0], [1, 5, 6]]
    assert batch.actions.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert batch.mask.tolist() == [[True, True, False], [True, True, True]]
    torch.testing.assert_close(batch.advantages, torch.tensor([[0.6, 0.7, 0.0], [-0.6, -0.5, -0.4]]))
    torch.testing.assert_close(batch.old_logprobs[0], torch.tensor([np.log(0.5), np.log(0.5), 0.0]).float())


def test_a_history_is_scored_once_and_as_if_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five trajectories of three histories, two at once: logits and gradients are those of each by itself."""
    monkeypatch.setattr(grpo_batch, "HISTORIES_AT_ONCE", 2)
    torch.manual_seed(0)
    router = PrecisionRouter(RouterConfig(embedding_dim=1, n_layers=1, d_model=8, n_heads=2, d_ff=8)).eval()
    members = [FAILED, SOLVED, QUICK, SOLVED, FAILED]
    batch = to_batch(members, [np.zeros(len(member.actions)) for member in members])
    assert batch.rows.squeeze(-1).tolist() == [[9, 0, 0], [1, 2, 0], [1, 5, 6]]
    assert batch.histories.tolist() == [2, 1, 0, 1, 2]
    logits = batch_logits(router, batch)
    assert logits.shape == (5, 3, 2)
    logits[batch.mask].square().sum().backward()
    together = [parameter.grad.clone() for parameter in router.parameters() if parameter.grad is not None]
    router.zero_grad()
    for member, found in zip(members, logits, strict=True):
        rows = torch.from_numpy(member.rows[None, :-1])
        alone = router(rows, torch.ones(rows.shape[:2], dtype=torch.bool))[0]
        torch.testing.assert_close(found[: len(alone)], alone)
        alone.square().sum().backward()
    torch.testing.assert_close(together, [p.grad for p in router.parameters() if p.grad is not None])
