"""Muon's update is orthogonal, and its state moves the way the definition says."""

from __future__ import annotations

import pytest
import torch

from dmr_gym.optim import Muon, orthogonalise


def test_newton_schulz_makes_singular_values_nearly_one() -> None:
    """Muon's update has singular values between 0.6 and 1.3 whatever those of the gradient were."""
    torch.manual_seed(0)
    stack = torch.randn(2, 16, 32) * torch.logspace(-1, 1, 16)[:, None]
    values = torch.linalg.svdvals(orthogonalise(stack))
    assert 0.6 < values.min() < values.max() < 1.3


@pytest.mark.parametrize("shape", [(8, 4), (4, 8)])
def test_a_step_moves_each_matrix_by_the_orthogonalised_gradient(shape: tuple[int, int]) -> None:
    """At the first step the update is Newton-Schulz of the gradient, scaled by lr and sqrt(rows / columns) if tall."""
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(shape))
    p.grad = torch.randn(shape)
    Muon([p], lr=0.1).step()
    wide = p.grad if shape[0] <= shape[1] else p.grad.T
    expected = orthogonalise(wide[None])[0]
    expected = expected if shape[0] <= shape[1] else expected.T
    scale = 0.1 * max(1, shape[0] / shape[1]) ** 0.5
    torch.testing.assert_close(p.detach(), -scale * expected, atol=1e-5, rtol=1e-4)


def test_the_second_step_blends_the_gradients_as_nesterov_momentum() -> None:
    """With momentum 0.5 the buffer is 0.5 g1, then 0.25 g1 + 0.5 g2; the update is half of it and half of g2.

    The gradients are diag(4, 0) and diag(0, 4), so the second update is that of diag(0.5, 3), orthogonalised.
    """
    p = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([p], lr=1.0, momentum=0.5)
    p.grad = torch.diag(torch.tensor([4.0, 0.0]))
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["momentum"], torch.diag(torch.tensor([2.0, 0.0])))
    before = p.detach().clone()
    p.grad = torch.diag(torch.tensor([0.0, 4.0]))
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["momentum"], torch.diag(torch.tensor([1.0, 2.0])))
    expected = orthogonalise(torch.diag(torch.tensor([0.5, 3.0]))[None])[0]
    torch.testing.assert_close(before - p.detach(), expected)


def test_parameters_without_gradient_stay() -> None:
    """A matrix that took no part in the loss is left alone."""
    used, unused = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    used.grad = torch.eye(2)
    Muon([used, unused], lr=0.1).step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert not torch.equal(used, torch.ones(2, 2))
