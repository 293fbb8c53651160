"""Training losses of the router, as pure functions of tensors.

Shapes: B batch, T steps, N labels, P precisions, M groups of G trajectories. Each function checks ranks and dtypes
first.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from dmr_gym.errors import ConfigError, MissingDependency
from dmr_gym.types import FloatArray, IntArray

try:
    import torch
    from torch import Tensor
    from torch.nn import functional
except ImportError as error:
    raise MissingDependency("torch", "train", "a loss") from error

import numpy as np
from numpy.typing import NDArray

AdvantageMode = Literal["mean", "batch_std", "group_std", "loo"]
ADVANTAGE_MODES: tuple[AdvantageMode, ...] = ("mean", "batch_std", "group_std", "loo")
Normaliser = Literal["constant", "steps"]
STD_EPSILON = 1e-4
"""Added to standard deviations, as in TRL."""


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


def group_advantages(returns: NDArray[np.float64], mode: AdvantageMode = "mean") -> NDArray[np.float64]:
    """Turn the returns of groups of equal tasks into advantages (paper section 4.3).

    The paper reads as ``group_std``. Where all members of a group succeed, or none does, the returns differ by λ·T
    alone; dividing by their spread makes that difference as large as one between success and failure, whatever λ is.
    So ``mean`` is the default: it keeps the scale of the return, in which λ is the price of a second.

    Args:
        returns: (M, G) R of Eq. 8, a row a group; NaN marks a trajectory that cannot be scored.
        mode: "mean" subtracts the group's mean; "group_std" divides by its standard deviation as well; "batch_std"
            by that of all returns; "loo" subtracts the mean of the other members.

    Returns:
        (M, G) float64; 0 for NaN returns, and for a member that has nobody to be compared with.

    Raises:
        ConfigError: an unknown mode, or returns that are no (M, G) floats.
    """
    if mode not in ADVANTAGE_MODES:
        raise ConfigError(f"advantage mode must be one of {', '.join(ADVANTAGE_MODES)}, got {mode!r}")
    if returns.ndim != 2 or returns.dtype != np.float64 or not returns.size:
        raise ConfigError(f"advantages need (M, G) float64 returns, got {returns.shape} {returns.dtype}")
    scored = ~np.isnan(returns)
    count = scored.sum(axis=1, keepdims=True)
    mean = np.where(scored, returns, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
    centred = np.where(scored, returns - mean, 0.0)
    if mode == "loo":
        return np.asarray(centred * count / np.maximum(count - 1, 1))
    if mode == "group_std":
        spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
        return np.asarray(centred / (spread + STD_EPSILON))
    if mode == "batch_std":
        spread = returns[scored].std(ddof=1) if scored.sum() > 1 else 0.0
        return np.asarray(centred / (spread + STD_EPSILON))
    return centred


def state_advantages(
    rewards: Sequence[NDArray[np.float64]], states: Sequence[Sequence[Hashable]], successors: bool = False
) -> list[NDArray[np.float64]]:
    """Give every decision of a group an advantage of its own, from the members that stood in the same state.

    Under greedy decoding the members of a group often reach the same state, as two precisions often say the same.
    There, the mean of what they got from then on estimates the state's value V(s), and a decision is credited with what
    came after it alone::

        A_t = Σ_{u >= t} r_u − V(s_t)             or, with successors,             A_t = r_t + V(s_{t+1}) − V(s_t)

    With ``successors`` a decision is not credited with later ones either, where others came to the same next state: if
    all precisions lead there, nothing but their latency tells them apart, and the advantage has no noise at all.

    A member that stands alone keeps the advantage of its last step in company: that is where it parted. No baseline
    depends on the decision but through the member's own part in the mean, so the gradient's expectation is that of
    `group_advantages`' mode "mean", up to a factor near 1; its variance is less.

    Args:
        rewards: of G trajectories of one task, (T_i,) float64 each.
        states: of the same trajectories, T_i keys each, equal where everything that was observed is.
        successors: value the next state by all members that reached it.

    Returns:
        G arrays (T_i,) float64.

    Raises:
        ConfigError: no trajectory, or numbers of rewards and states that differ.
    """
    if not rewards or [len(r) for r in rewards] != [len(s) for s in states]:
        raise ConfigError("state advantages need a group of trajectories with a state for each reward")
    to_go = [np.cumsum(r[::-1])[::-1] for r in rewards]
    members: dict[tuple[int, Hashable], list[float]] = {}
    for later, keys in zip(to_go, states, strict=True):
        for place, value in zip(enumerate(keys), later.tolist(), strict=True):
            members.setdefault(place, []).append(value)
    values = {place: float(np.mean(found)) for place, found in members.items()}
    advantages = [np.zeros(len(r)) for r in rewards]
    for advantage, later, reward, keys in zip(advantages, to_go, rewards, states, strict=True):
        for t, place in enumerate(enumerate(keys)):
            if len(members[place]) > 1:
                gained = later[t]
                if successors and t + 1 < len(keys):
                    gained = reward[t] + values[t + 1, keys[t + 1]]
                advantage[t] = gained - values[place]
            elif t > 0:
                advantage[t] = advantage[t - 1]
    return advantages


def mixed_groups(success: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which groups have both solved and unsolved trajectories.

    Args:
        success: (M, G) bool.

    Returns:
        (M,) bool; False where all members ended alike, so that their returns differ by latency alone.
    """
    return np.asarray(success.any(axis=1) & ~success.all(axis=1))


@dataclass(frozen=True, slots=True)
class GRPOTerms:
    """What `grpo_loss` is made of; all scalars.

    Attributes:
        loss: to be minimised.
        surrogate: clipped objective, higher is better.
        kl: mean KL(policy || reference) a step in nats; 0 without a reference.
        entropy: mean entropy of the policy a step in nats.
        clip_fraction: share of steps at which the clip cut the gradient off.
    """

    loss: Tensor
    surrogate: Tensor
    kl: Tensor
    entropy: Tensor
    clip_fraction: Tensor


def grpo_loss(
    logits: Tensor,
    actions: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    reference_logits: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_weight: float = 0.0,
    entropy_floor: float = 0.0,
    entropy_weight: float = 0.0,
    normaliser: Normaliser = "constant",
    max_steps: int | None = None,
) -> GRPOTerms:
    """GRPO's objective for a categorical policy, all decisions of a trajectory scored in one pass (paper section 4.3).

    With ratio ρ = π(a) / π_old(a), each step contributes min(ρ A, clip(ρ, 1 − clip_low, 1 + clip_high) A). The KL to
    the reference policy is exact, Σ_p π(p) log(π(p) / π_ref(p)): with so few precisions no estimate is needed. Entropy
    costs only while its mean is below a floor.

    Args:
        logits: (B, T, P) float of the policy that is trained.
        actions: (B, T) int64; what stands where ``mask`` is False is never read, also below.
        old_logprobs: (B, T) float, log-probability of each action when it was drawn.
        advantages: (B, T) float; the same at all steps of a trajectory, or from `state_advantages`.
        mask: (B, T) bool, the decisions made.
        reference_logits: (B, T, P) float of the policy to stay near; None leaves the KL out.
        clip_low: how far below 1 the ratio still counts.
        clip_high: how far above 1.
        kl_weight: weight of the mean KL.
        entropy_floor: nats that the mean entropy should not fall below.
        entropy_weight: weight of what it falls short of the floor.
        normaliser: "constant" divides the sum over steps by B · max_steps (Dr. GRPO), so that a step weighs the same in
            every batch and trajectory; "steps" divides by the number of steps in the batch.
        max_steps: step cap of the environment, for "constant".

    Raises:
        ConfigError: shapes or dtypes are wrong, no step counts, or an unknown normaliser.
    """
    _check_grpo(logits, actions, old_logprobs, advantages, mask, reference_logits)
    count = mask.sum()
    if normaliser == "constant" and max_steps is not None and max_steps > 0:
        size: Tensor | int = len(mask) * max_steps
    elif normaliser == "steps":
        size = count
    else:
        raise ConfigError(
            f'GRPO: normaliser must be "constant", with max_steps above 0, or "steps"; got {normaliser!r}, {max_steps}'
        )
    logprobs = logits[mask].log_softmax(-1)  # (N, P), N the decisions that count
    chosen = logprobs.gather(-1, actions[mask].unsqueeze(-1)).squeeze(-1)
    advantage = advantages[mask].to(chosen.dtype)
    ratio = (chosen - old_logprobs[mask]).exp()
    free, clipped = ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage
    surrogate = torch.minimum(free, clipped).sum() / size
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).sum(-1).mean()
    kl = torch.zeros_like(entropy)
    if reference_logits is not None:
        kl = (probabilities * (logprobs - reference_logits[mask].log_softmax(-1))).sum(-1).mean()
    loss = -surrogate + kl_weight * kl + entropy_weight * (entropy_floor - entropy).clamp_min(0)
    return GRPOTerms(loss, surrogate, kl, entropy, (clipped < free).float().mean())


def _check_grpo(
    logits: Tensor,
    actions: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    reference_logits: Tensor | None,
) -> None:
    if logits.ndim != 3 or not logits.is_floating_point():
        raise ConfigError(f"GRPO: logits must be (B, T, P) float, got {tuple(logits.shape)} {logits.dtype}")
    steps = tuple(logits.shape[:2])
    expected = {
        "actions": (actions, steps, torch.int64),
        "old_logprobs": (old_logprobs, steps, None),
        "advantages": (advantages, steps, None),
        "mask": (mask, steps, torch.bool),
    }
    if reference_logits is not None:
        expected["reference_logits"] = (reference_logits, tuple(logits.shape), None)
    for name, (tensor, shape, dtype) in expected.items():
        fits = tensor.is_floating_point() if dtype is None else tensor.dtype == dtype
        if tuple(tensor.shape) != shape or not fits:
            came = f"{tuple(tensor.shape)} {tensor.dtype}"
            raise ConfigError(f"GRPO: {name} must be {shape} {dtype or 'float'}, got {came}")
    if not bool(mask.any()):
        raise ConfigError("GRPO: no step of the batch counts")
