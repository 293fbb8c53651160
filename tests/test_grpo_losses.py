"""GRPO's advantages and objective: hand-computed numbers, invariances, gradients, and the formula of TRL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dmr_gym.errors import ConfigError
from dmr_gym.losses import (
    ADVANTAGE_MODES,
    STD_EPSILON,
    GRPOTerms,
    group_advantages,
    grpo_loss,
    mixed_groups,
    state_advantages,
)

RETURNS = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
finite = arrays(np.float64, (3, 4), elements=st.floats(-10, 10, width=32))


# ---------------------------------------------------------------- advantages of trajectories


@pytest.mark.parametrize(
    ("mode", "first"),
    [
        ("mean", [0.5, -0.5, -0.5, 0.5]),
        # Unbiased variance of 1, 0, 0, 1 is 4 * 0.25 / 3.
        ("group_std", np.array([0.5, -0.5, -0.5, 0.5]) / (math.sqrt(1 / 3) + STD_EPSILON)),
        # All eight returns: mean 0.5, squared deviations sum to 1, unbiased variance 1 / 7.
        ("batch_std", np.array([0.5, -0.5, -0.5, 0.5]) / (math.sqrt(1 / 7) + STD_EPSILON)),
        # 1 against the mean of 0, 0, 1; 0 against the mean of 1, 0, 1.
        ("loo", [2 / 3, -2 / 3, -2 / 3, 2 / 3]),
    ],
)
def test_advantages_by_hand(mode: Any, first: Any) -> None:
    """Two groups: one with spread, and one without, whose advantages are 0 in every mode."""
    advantages = group_advantages(RETURNS, mode)
    np.testing.assert_allclose(advantages[0], first, rtol=1e-12)
    assert not advantages[1].any()


@pytest.mark.parametrize("mode", ADVANTAGE_MODES)
def test_a_group_of_one_has_nobody_to_be_compared_with(mode: Any) -> None:
    """Its advantage is 0, not NaN or infinity."""
    assert group_advantages(np.array([[0.7]]), mode).tolist() == [[0.0]]


@pytest.mark.parametrize("mode", ADVANTAGE_MODES)
def test_a_trajectory_that_cannot_be_scored_changes_nothing(mode: Any) -> None:
    """NaN gets 0, and the others get what they get without it."""
    with_nan = group_advantages(np.array([[1.0, math.nan, 0.0, 0.5]]), mode)
    without = group_advantages(np.array([[1.0, 0.0, 0.5]]), mode)
    np.testing.assert_allclose(with_nan[0, [0, 2, 3]], without[0])
    assert with_nan[0, 1] == 0.0
    assert group_advantages(np.full((1, 3), math.nan), mode).tolist() == [[0.0] * 3]


@pytest.mark.parametrize("mode", ADVANTAGE_MODES)
@given(returns=finite)
@settings(deadline=None, max_examples=50)
def test_advantages_of_a_group_sum_to_zero_and_ignore_a_shift(mode: Any, returns: np.ndarray) -> None:
    """A constant reward for all members teaches nothing."""
    advantages = group_advantages(returns, mode)
    # A group of almost equal returns is divided by the epsilon alone, which blows rounding up.
    tolerance = 1e-11 / STD_EPSILON
    np.testing.assert_allclose(advantages.sum(axis=1), 0.0, atol=tolerance)
    np.testing.assert_allclose(group_advantages(returns + 3.0, mode), advantages, atol=tolerance)


def test_dividing_by_the_groups_spread_forgets_the_scale_of_the_return() -> None:
    """In a group that differs by latency alone, group_std gives λ = 0.01 the weight of λ = 1; the mean does not."""
    latency_s = np.array([[2.0, 3.0, 4.0]])
    small, large = 1.0 - 0.01 * latency_s, 1.0 - 1.0 * latency_s
    np.testing.assert_allclose(group_advantages(small, "group_std"), [[1.0, 0.0, -1.0]], atol=0.02)
    np.testing.assert_allclose(group_advantages(large, "group_std"), [[1.0, 0.0, -1.0]], atol=0.02)
    np.testing.assert_allclose(group_advantages(small, "mean"), [[0.01, 0.0, -0.01]], atol=1e-12)
    np.testing.assert_allclose(group_advantages(large, "mean"), [[1.0, 0.0, -1.0]], atol=1e-12)


def trl_advantages(rewards: torch.Tensor, size: int, scale: str) -> torch.Tensor:
    """TRL 1.16.0, `GRPOTrainer._generate_and_score_completions`: scale_rewards "group", "batch" or "none".

    With multi_objective_aggregation "sum_then_normalize"; a flat (M * G,) tensor, NaN where nothing could be scored.
    """

    def nanstd(tensor: torch.Tensor, dim: int | None) -> torch.Tensor:
        count = (~torch.isnan(tensor)).sum(dim=dim, keepdim=True)
        spread = torch.nanmean((tensor - torch.nanmean(tensor, dim=dim, keepdim=True)) ** 2, dim=dim, keepdim=True)
        return torch.sqrt(spread * count / (count - 1))

    grouped = rewards.view(-1, size)
    advantages = rewards - torch.nanmean(grouped, dim=1).repeat_interleave(size, dim=0)
    if scale != "none":
        std = nanstd(grouped, 1).expand_as(grouped) if scale == "group" else nanstd(grouped, None).expand_as(grouped)
        advantages = advantages / (std.flatten() + 1e-4)
    return torch.nan_to_num(advantages, nan=0.0)


@pytest.mark.parametrize(("mode", "scale"), [("group_std", "group"), ("batch_std", "batch"), ("mean", "none")])
def test_advantages_equal_trls(mode: Any, scale: str) -> None:
    """On random returns, some of them NaN, to rounding."""
    returns = np.random.default_rng(0).normal(size=(6, 8))
    returns[1, 2] = returns[4, 0] = returns[4, 5] = math.nan
    expected = trl_advantages(torch.from_numpy(returns).flatten(), 8, scale).view(6, 8).numpy()
    np.testing.assert_allclose(group_advantages(returns, mode), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("returns", "mode", "message"),
    [
        (RETURNS, "std", "mode must be one of mean, batch_std, group_std, loo, got 'std'"),
        (RETURNS[0], "mean", r"need \(M, G\) float64 returns, got \(4,\) float64"),
        (RETURNS.astype(np.float32), "mean", r"got \(2, 4\) float32"),
        (np.zeros((0, 4)), "mean", r"got \(0, 4\) float64"),
    ],
)
def test_what_has_no_advantages_is_refused(returns: np.ndarray, mode: Any, message: str) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(ConfigError, match=message):
        group_advantages(returns, mode)


def test_groups_are_mixed_when_some_succeed() -> None:
    """All, none, and some."""
    success = np.array([[True, True], [False, False], [True, False]])
    assert mixed_groups(success).tolist() == [False, False, True]


# ---------------------------------------------------------------- advantages of decisions


def test_a_decision_is_compared_with_those_in_the_same_state() -> None:
    """Three trajectories by hand.

    At t=0 all stand in s: to go 0.8, 0.9, -0.3, mean 0.4666. At t=1 two stand in a (to go 0.9 and 1.0, mean 0.95); the
    third stands alone in b and keeps what its parting was worth, also at t=2.
    """
    rewards = [np.array([-0.1, 0.9]), np.array([-0.1, 1.0]), np.array([-0.1, -0.1, -0.1])]
    states = [["s", "a"], ["s", "a"], ["s", "b", "c"]]
    mean = (0.8 + 0.9 - 0.3) / 3
    first, second, third = state_advantages(rewards, states)
    np.testing.assert_allclose(first, [0.8 - mean, -0.05])
    np.testing.assert_allclose(second, [0.9 - mean, 0.05])
    np.testing.assert_allclose(third, [-0.3 - mean] * 3)


def test_what_was_paid_before_does_not_count() -> None:
    """Two members reach the same state at different cost; what follows is equal, and so is their advantage there: 0."""
    first, second = state_advantages([np.array([-0.5, 1.0]), np.array([-0.1, 1.0])], [["s", "a"], ["s", "a"]])
    np.testing.assert_allclose(first, [-0.2, 0.0])
    np.testing.assert_allclose(second, [0.2, 0.0])


def test_the_same_state_at_another_time_is_another_state() -> None:
    """A history has a length; equal keys at different steps are no company."""
    _, second = state_advantages([np.array([1.0]), np.array([0.0, 0.5])], [["s"], ["s", "s"]])
    np.testing.assert_allclose(second, [0.5 - 0.75, 0.5 - 0.75])


def test_state_advantages_are_trajectory_advantages_where_everyone_parts_at_once() -> None:
    """With the first state alone in common, every step has its trajectory's return minus the group's mean."""
    rewards = [np.array([0.0, 1.0]), np.array([-0.2, -0.2])]
    each = state_advantages(rewards, [["s", "a"], ["s", "b"]])
    expected = group_advantages(np.array([[1.0, -0.4]]), "mean")[0]
    for advantages, value in zip(each, expected, strict=True):
        np.testing.assert_allclose(advantages, value)


def test_decisions_that_lead_to_one_state_differ_by_what_they_cost_alone() -> None:
    """Both go from s to a, one for 0.1 and one for 0.3, and only the second then fails: V(a) = 0.5, V(s) = 0.3.

    With the value of a in place of what each got there, the dearer decision is worth 0.2 less and no luck comes in.
    """
    rewards, states = [np.array([-0.1, 1.0]), np.array([-0.3, 0.0])], [["s", "a"], ["s", "a"]]
    first, second = state_advantages(rewards, states, successors=True)
    np.testing.assert_allclose(first, [-0.1 + 0.5 - 0.3, 0.5])
    np.testing.assert_allclose(second, [-0.3 + 0.5 - 0.3, -0.5])
    apart = state_advantages(rewards, [["s", "a"], ["s", "b"]], successors=True)
    for advantages, as_before in zip(apart, state_advantages(rewards, [["s", "a"], ["s", "b"]]), strict=True):
        np.testing.assert_allclose(advantages, as_before)


def test_states_that_do_not_fit_the_rewards_are_refused() -> None:
    """A state for each reward."""
    with pytest.raises(ConfigError, match="a state for each reward"):
        state_advantages([np.zeros(2)], [["s"]])
    with pytest.raises(ConfigError, match="a state for each reward"):
        state_advantages([], [])


# ---------------------------------------------------------------- objective


def random_batch(batch: int = 3, steps: int = 4, precisions: int = 3) -> dict[str, torch.Tensor]:
    """A batch of random numbers in float64, some of its steps padding."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(batch, steps, precisions, generator=generator, dtype=torch.float64)
    actions = torch.randint(precisions, (batch, steps), generator=generator)
    old = logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    mask = torch.arange(steps) < torch.tensor([[4], [2], [3]])
    advantages = torch.randn(batch, 1, generator=generator, dtype=torch.float64).expand(batch, steps)
    return {"logits": logits, "actions": actions, "old_logprobs": old, "advantages": advantages, "mask": mask}


def one_step(logit: float, old_probability: float, advantage: float, **options: Any) -> GRPOTerms:
    """A single decision for the second of two precisions, whose logit is given; the first's is 0."""
    return grpo_loss(
        torch.tensor([[[0.0, logit]]], dtype=torch.float64),
        torch.tensor([[1]]),
        torch.tensor([[math.log(old_probability)]], dtype=torch.float64),
        torch.tensor([[advantage]], dtype=torch.float64),
        torch.ones(1, 1, dtype=torch.bool),
        normaliser="steps",
        **options,
    )


def test_surrogate_by_hand() -> None:
    """π = 3/4 against 1/2 when it was drawn: the ratio 1.5 counts as 1.2 for a good decision, in full for a bad one."""
    logit = math.log(3.0)
    assert one_step(logit, 0.5, 2.0).surrogate.item() == pytest.approx(1.2 * 2.0)
    assert one_step(logit, 0.5, -2.0).surrogate.item() == pytest.approx(1.5 * -2.0)
    assert one_step(logit, 0.5, 2.0, clip_high=0.6).surrogate.item() == pytest.approx(1.5 * 2.0)
    assert one_step(-logit, 0.5, -2.0).surrogate.item() == pytest.approx(0.8 * -2.0)
    assert one_step(-logit, 0.5, 2.0).surrogate.item() == pytest.approx(0.5 * 2.0)


def test_the_clip_works_on_its_side_alone() -> None:
    """It cuts the gradient off where the policy has moved far enough in the direction of the advantage, only there."""
    for logit, advantage, is_cut in [(1.1, 1.0, True), (1.1, -1.0, False), (-1.1, -1.0, True), (-1.1, 1.0, False)]:
        assert one_step(logit, 0.5, advantage).clip_fraction.item() == is_cut
        x = torch.tensor([[[0.0, logit]]], dtype=torch.float64, requires_grad=True)
        arguments = (torch.tensor([[1]]), torch.full((1, 1), math.log(0.5)), torch.full((1, 1), advantage))
        terms = grpo_loss(x, *arguments, torch.ones(1, 1, dtype=torch.bool), normaliser="steps")
        (gradient,) = torch.autograd.grad(terms.loss, x)
        assert bool((gradient == 0).all()) == is_cut


def trl_loss(
    per_token_logps: torch.Tensor,
    old_per_token_logps: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    loss_type: str,
    epsilon_low: float,
    epsilon_high: float,
    max_completion_length: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """TRL 1.16.0, `GRPOTrainer._compute_loss` with one process and one step of accumulation, and without KL.

    Returns:
        The loss, and what it logs as clip_ratio/region_mean.
    """
    coef_1 = torch.exp(per_token_logps - old_per_token_logps)
    coef_2 = torch.clamp(coef_1, 1 - epsilon_low, 1 + epsilon_high)
    per_token_loss = -torch.min(coef_1 * advantages, coef_2 * advantages)
    if loss_type == "grpo":
        loss = ((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    elif loss_type == "bnpo":
        loss = (per_token_loss * mask).sum() / mask.sum().clamp(min=1.0)
    else:
        loss = (per_token_loss * mask).sum() / (per_token_loss.size(0) * max_completion_length)
    is_low_clipped = (coef_1 < 1 - epsilon_low) & (advantages < 0)
    is_high_clipped = (coef_1 > 1 + epsilon_high) & (advantages > 0)
    is_region_clipped = is_low_clipped | is_high_clipped
    return loss, (is_region_clipped * mask).sum() / mask.sum()


def random_update(lengths: Sequence[int], seed: int) -> dict[str, torch.Tensor]:
    """A policy that has moved away from the one that acted, on trajectories of these lengths, padded to 7 steps."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), 7)
    old_logits = torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    actions = torch.randint(3, shape, generator=generator)
    return {
        "logits": old_logits + 0.5 * torch.randn(*shape, 3, generator=generator, dtype=torch.float64),
        "actions": actions,
        "old_logprobs": old_logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1),
        "advantages": torch.randn(len(lengths), 1, generator=generator, dtype=torch.float64).expand(shape),
        "mask": torch.arange(7) < torch.tensor(lengths).unsqueeze(1),
    }


@pytest.mark.parametrize("clip", [(0.2, 0.2), (0.1, 0.4)])
@pytest.mark.parametrize(
    ("normaliser", "loss_type", "lengths"),
    [
        ("steps", "bnpo", (7, 1, 4, 2, 6)),
        ("constant", "dr_grpo", (7, 1, 4, 2, 6)),
        # TRL's mean over sequences of means over tokens has no counterpart here, but for sequences of one length.
        ("steps", "grpo", (3, 3, 3, 3, 3)),
    ],
)
def test_the_loss_its_gradient_and_its_clips_equal_trls(
    normaliser: Any, loss_type: str, lengths: Sequence[int], clip: tuple[float, float]
) -> None:
    """On random tensors, for each normaliser, with symmetric clips and with others, to rounding."""
    clipped = []
    for seed in range(5):
        batch = random_update(lengths, seed)
        logits = batch["logits"].requires_grad_()
        terms = grpo_loss(**batch, clip_low=clip[0], clip_high=clip[1], normaliser=normaliser, max_steps=9)
        chosen = logits.log_softmax(-1).gather(-1, batch["actions"].unsqueeze(-1)).squeeze(-1)
        given = (chosen, batch["old_logprobs"], batch["advantages"], batch["mask"].double())
        loss, clip_ratio = trl_loss(*given, loss_type, *clip, max_completion_length=9)
        torch.testing.assert_close(terms.loss, loss, rtol=1e-12, atol=1e-14)
        mine, trls = (torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (terms.loss, loss))
        torch.testing.assert_close(mine, trls, rtol=1e-10, atol=1e-14)
        assert terms.clip_fraction.item() == pytest.approx(clip_ratio.item(), rel=1e-6)
        clipped.append(terms.clip_fraction.item())
    assert 0.1 < np.mean(clipped) < 0.9


def test_at_ratio_one_the_gradient_is_that_of_reinforce_with_baseline() -> None:
    """Against finite differences of Σ A log π(a) / (B · max_steps), worked out without autograd."""
    batch = random_batch()
    logits = batch["logits"].clone().requires_grad_()
    terms = grpo_loss(**(batch | {"logits": logits}), max_steps=10)
    (gradient,) = torch.autograd.grad(-terms.loss, logits)

    def objective(x: torch.Tensor) -> float:
        chosen = x.log_softmax(-1).gather(-1, batch["actions"].unsqueeze(-1)).squeeze(-1)
        return float((batch["advantages"] * chosen)[batch["mask"]].sum() / (3 * 10))

    step = 1e-6
    for index in np.ndindex(*logits.shape):
        up, down = batch["logits"].clone(), batch["logits"].clone()
        up[index] += step
        down[index] -= step
        difference = (objective(up) - objective(down)) / (2 * step)
        assert gradient[index].item() == pytest.approx(difference, abs=1e-8)


def test_kl_is_exact_and_zero_at_the_start() -> None:
    """KL(3/4, 1/4 || 1/2, 1/2) = 3/4 log 3/2 + 1/4 log 1/2; a policy at its reference has none, and no gradient."""
    reference = torch.zeros(1, 1, 2, dtype=torch.float64)
    value = one_step(-math.log(3.0), 0.5, 0.0, reference_logits=reference).kl.item()
    assert value == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    batch = random_batch()
    logits = batch["logits"].clone().requires_grad_()
    terms = grpo_loss(**(batch | {"logits": logits}), reference_logits=batch["logits"], kl_weight=1.0, max_steps=4)
    (gradient,) = torch.autograd.grad(terms.kl, logits)
    assert terms.kl.item() == pytest.approx(0.0, abs=1e-15)
    assert gradient.abs().max() < 1e-12


def test_away_from_its_reference_the_gradient_of_kl_is_as_derived() -> None:
    """By z_k it is π_k (log(π_k / ρ_k) - KL) at each of 9 steps, over 9; finite differences agree."""
    batch = random_batch()
    reference = torch.roll(batch["logits"], 1, -1)
    logits = batch["logits"].clone().requires_grad_()

    def kl(x: torch.Tensor) -> torch.Tensor:
        return grpo_loss(**(batch | {"logits": x}), reference_logits=reference, kl_weight=1.0, normaliser="steps").kl

    (gradient,) = torch.autograd.grad(kl(logits), logits)
    gaps = batch["logits"].log_softmax(-1) - reference.log_softmax(-1)
    policy = batch["logits"].softmax(-1)
    expected = policy * (gaps - (policy * gaps).sum(-1, keepdim=True)) * batch["mask"].unsqueeze(-1) / 9
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradcheck(kl, (logits,), eps=1e-6, atol=1e-8)


def test_entropy_costs_only_below_its_floor() -> None:
    """Two equal precisions have log 2 nats: a floor of 1 costs weight · (1 - log 2), a floor of 0.5 nothing."""
    entropy = math.log(2.0)
    terms = one_step(0.0, 0.5, 0.0, entropy_floor=1.0, entropy_weight=0.1)
    assert terms.entropy.item() == pytest.approx(entropy)
    assert terms.loss.item() == pytest.approx(0.1 * (1 - entropy))
    assert one_step(0.0, 0.5, 0.0, entropy_floor=0.5, entropy_weight=0.1).loss.item() == 0.0


@pytest.mark.parametrize("options", [{"normaliser": "steps"}, {"normaliser": "constant", "max_steps": 10}])
def test_padding_changes_nothing(options: dict[str, Any]) -> None:
    """Extra padded steps with absurd contents change neither the loss nor the gradient."""
    batch = random_batch()
    reference = torch.roll(batch["logits"], 1, -1)
    weights = {"kl_weight": 0.3, "entropy_floor": 5.0, "entropy_weight": 0.2, **options}
    absurd = {"logits": 1e9, "actions": 99, "old_logprobs": -1e9, "advantages": 1e9, "mask": False}
    padded = {
        name: torch.cat([tensor, torch.full((3, 2, *tensor.shape[2:]), absurd[name], dtype=tensor.dtype)], dim=1)
        for name, tensor in batch.items()
    }
    wide = torch.cat([reference, torch.full((3, 2, 3), -1e9, dtype=torch.float64)], dim=1)
    results = []
    for tensors, other in ((batch, reference), (padded, wide)):
        logits = tensors["logits"].clone().requires_grad_()
        terms = grpo_loss(**(tensors | {"logits": logits}), reference_logits=other, **weights)
        (gradient,) = torch.autograd.grad(terms.loss, logits)
        results.append((terms.loss.item(), gradient))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1][:, :4])
    assert not results[1][1][:, 4:].any()


def test_the_constant_normaliser_ignores_what_else_is_in_the_batch() -> None:
    """A trajectory's gradient times its batch's size is the same alone and beside a shorter one; per step it is not."""

    def gradient(count: int, **options: Any) -> torch.Tensor:
        batch = {name: tensor[3 - count :] for name, tensor in random_batch().items()}
        logits = batch["logits"].clone().requires_grad_()
        terms = grpo_loss(**(batch | {"logits": logits}), **options)
        (all_of_them,) = torch.autograd.grad(terms.surrogate, logits)
        return all_of_them[-1] * count

    assert torch.allclose(gradient(1, max_steps=10), gradient(2, max_steps=10))
    assert not torch.allclose(gradient(1, normaliser="steps"), gradient(2, normaliser="steps"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 4)}, r"logits must be \(B, T, P\) float"),
        ({"actions": torch.zeros(3, 4)}, r"actions must be \(3, 4\) torch.int64, got \(3, 4\) torch.float32"),
        ({"advantages": torch.zeros(3)}, r"advantages must be \(3, 4\) float, got \(3,\)"),
        ({"mask": torch.zeros(3, 4, dtype=torch.bool)}, "no step of the batch counts"),
        ({"reference_logits": torch.zeros(3, 4, 2)}, r"reference_logits must be \(3, 4, 3\) float"),
        ({"normaliser": "tokens"}, 'normaliser must be "constant", with max_steps above 0, or "steps"'),
        ({"max_steps": None}, "max_steps above 0"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    """The message names the argument, what it must be, and what came."""
    with pytest.raises(ConfigError, match=message):
        grpo_loss(**({**random_batch(), "max_steps": 4} | change))
