"""Losses by hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dmr_gym.errors import ConfigError
from dmr_gym.losses import class_weights, weighted_cross_entropy


def test_class_weights_are_inverse_frequencies_with_mean_one():
    """Three of one class and one of the other: 4 / (2 * 3) and 4 / (2 * 1); over the labels they average to 1."""
    labels = np.array([0, 0, 0, 1])
    weights = class_weights(labels, 2)
    np.testing.assert_allclose(weights, [2 / 3, 2.0], rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1.0)


def test_a_class_that_never_occurs_weighs_nothing():
    """With three precisions of which two occur, the third has no part in the loss."""
    np.testing.assert_allclose(class_weights(np.array([0, 2, 2, 2]), 3), [2.0, 0.0, 2 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    "labels", [np.array([], dtype=np.int64), np.array([0, 2]), np.array([-1, 0]), np.zeros((1, 1), int)]
)
def test_impossible_labels_are_refused(labels):
    """Labels outside the classes, none at all, or of another rank."""
    with pytest.raises(ConfigError, match=r"need \(N,\) labels in \[0, 2\)"):
        class_weights(labels, 2)


def test_weighted_cross_entropy_by_hand():
    """Two steps: p = (1/4, 3/4) labelled 0 at weight 2, p = (1/2, 1/2) labelled 1 at weight 1; mean over the steps."""
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, 0.0]]])
    loss = weighted_cross_entropy(
        logits, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool), torch.tensor([2.0, 1.0])
    )
    assert loss.item() == pytest.approx((2 * math.log(4) + 1 * math.log(2)) / 2, rel=1e-6)


def test_masked_steps_do_not_count():
    """Extra padded steps with extreme logits and impossible labels change neither loss nor gradient."""
    logits = torch.tensor([[[0.3, -0.2], [0.1, 0.4]]], requires_grad=True)
    labels, weights = torch.tensor([[0, 1]]), torch.tensor([0.5, 1.5])
    loss = weighted_cross_entropy(logits, labels, torch.ones(1, 2, dtype=torch.bool), weights)
    (gradient,) = torch.autograd.grad(loss, logits)
    padded = torch.cat([logits.detach(), torch.full((1, 3, 2), 1e9)], dim=1).requires_grad_()
    mask = torch.tensor([[True, True, False, False, False]])
    padded_loss = weighted_cross_entropy(padded, torch.cat([labels, torch.full((1, 3), 77)], 1), mask, weights)
    (padded_gradient,) = torch.autograd.grad(padded_loss, padded)
    assert padded_loss.item() == loss.item()
    assert torch.equal(padded_gradient[:, :2], gradient)
    assert not padded_gradient[:, 2:].any()


def test_a_batch_with_few_rare_labels_weighs_less():
    """The sum is divided by the number of steps, not by their weights: 100 times the weight, 100 times the loss."""
    logits, mask, weights = torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool), torch.tensor([0.1, 10.0])
    common = weighted_cross_entropy(logits, torch.zeros(1, 3, dtype=torch.int64), mask, weights)
    rare = weighted_cross_entropy(logits, torch.ones(1, 3, dtype=torch.int64), mask, weights)
    assert rare.item() == pytest.approx(100 * common.item())


def test_uniform_weights_give_plain_cross_entropy():
    """With all weights 1 it is PyTorch's mean over the steps."""
    logits, labels = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12).view(3, 4) % 3
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    loss = weighted_cross_entropy(logits, labels, torch.ones(3, 4, dtype=torch.bool), torch.ones(3))
    torch.testing.assert_close(loss, expected)


GOOD = {
    "logits": torch.zeros(2, 3, 2),
    "labels": torch.zeros(2, 3, dtype=torch.int64),
    "mask": torch.ones(2, 3, dtype=torch.bool),
    "weights": torch.ones(2),
}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("logits", torch.zeros(6, 2), r"logits must be \(B, T, P\) float, got \(6, 2\)"),
        ("labels", torch.zeros(2, 3), r"labels must be \(2, 3\) int64, got \(2, 3\) torch.float32"),
        ("mask", torch.ones(2, 3), r"mask must be \(2, 3\) bool"),
        ("mask", torch.zeros(2, 3, dtype=torch.bool), "no step of the batch counts"),
        ("weights", torch.ones(3), r"weights must be \(2,\), got \(3,\)"),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(name, value, message):
    """Each argument is checked before anything is computed."""
    with pytest.raises(ConfigError, match=message):
        weighted_cross_entropy(**GOOD | {name: value})
