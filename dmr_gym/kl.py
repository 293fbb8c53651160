"""How far a low precision's next-token distributions are from the high precision's (paper section 4.2).

The paper does not say in which direction, nor how the tokens of a step become one number. Ours by default:
KL(high || low), the mean over the tokens of the action block, on the completion that high precision generated.

Shapes: T tokens of a completion, V vocabulary, K kept entries, N steps, P precisions in ascending order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dmr_gym.errors import ConfigError
from dmr_gym.types import FloatArray, IntArray, TokenDistributions

Direction = Literal["high_low", "low_high"]
Reduction = Literal["mean", "sum", "max"]
Steps = Literal["action", "all", "click"]

STEPS: tuple[Steps, ...] = ("action", "all", "click")
"""Which steps can count; see `counted_steps`."""

THINK = "think"
"""Step type of a private thought: it changes nothing in the world (paper appendix C.2)."""


def token_kl(p: TokenDistributions, q: TokenDistributions) -> NDArray[np.float64]:
    """KL(p || q) at each token, in nats.

    Exact over the whole vocabulary. Where either side is truncated to its top K, the tokens kept on both sides stay
    apart and all others form one bucket; merging events never raises a divergence, so that value is a lower bound.

    Args:
        p: one precision's distributions along a completion of T tokens.
        q: another's along the same tokens.

    Returns:
        (T,) float64, at least 0; infinite where q excludes what p allows.

    Raises:
        ConfigError: the two score different tokens, or vocabularies of different size.
    """
    if not np.array_equal(p.token_ids, q.token_ids):
        raise ConfigError(
            f"KL needs the same completion on both sides: {p.token_ids.tolist()} is not {q.token_ids.tolist()}; "
            "the precisions must share one tokenizer"
        )
    if p.indices is None and q.indices is None:
        if p.logprobs.shape != q.logprobs.shape:
            raise ConfigError(f"KL over vocabularies of different size: {p.logprobs.shape} and {q.logprobs.shape}")
        return _kl(p.logprobs.astype(np.float64), q.logprobs.astype(np.float64))
    return np.array([_kl(*_common_events(p, q, t)) for t in range(len(p.token_ids))], dtype=np.float64)


def step_kl(
    high: TokenDistributions,
    low: TokenDistributions,
    *,
    direction: Direction = "high_low",
    reduce: Reduction = "mean",
    token_mask: NDArray[np.bool_] | None = None,
) -> float:
    """One number for one step: the KL between two precisions along a completion, in nats.

    Args:
        high: the high precision's distributions.
        low: a lower precision's along the same tokens.
        direction: "high_low" is KL(high || low), "low_high" is KL(low || high).
        reduce: how the tokens become one number; the mean does not grow with the length of the completion.
        token_mask: (T,) bool, the tokens that count; None counts all.

    Raises:
        ConfigError: an unknown option, tokens that differ, or no token that counts.
    """
    pairs = {"high_low": (high, low), "low_high": (low, high)}
    reductions: dict[str, Callable[[NDArray[np.float64]], Any]] = {"mean": np.mean, "sum": np.sum, "max": np.max}
    if direction not in pairs or reduce not in reductions:
        came = f"direction={direction!r}, reduce={reduce!r}"
        raise ConfigError(f"KL: direction must be one of {list(pairs)} and reduce of {list(reductions)}, got {came}")
    values = token_kl(*pairs[direction])
    if token_mask is not None:
        if token_mask.shape != values.shape:
            raise ConfigError(f"KL: token_mask must be {values.shape}, got {token_mask.shape}")
        values = values[token_mask]
    if not values.size:
        raise ConfigError("KL: the completion has no token that counts")
    return float(reductions[reduce](values))


def action_tokens(tokens: Sequence[str], action: str) -> NDArray[np.bool_]:
    """Mark the action block of a completion: from where the action last begins to the end.

    The end belongs to it because a stop or a closing tag is what tells ``go to desk 1`` from ``go to desk 10``. Worlds
    read ``Search[ red tea ]`` as ``search[red tea]``, so the case of letters and spaces just inside brackets do not
    matter. A completion in which the action does not stand even so counts whole: none could be read, or the reader
    changed more than that.

    Args:
        tokens: texts of the T tokens.
        action: the command that was read from the completion.

    Returns:
        (T,) bool.
    """
    words = re.escape(action).replace(r"\[", r"\[\s*").replace(r"\]", r"\s*\]")
    # A lookahead finds matches that overlap too.
    found = list(re.finditer(f"(?={words})", "".join(tokens), re.IGNORECASE)) if action else []
    start = found[-1].start() if found else -1
    ends = np.cumsum([len(token) for token in tokens])
    return np.asarray(ends > start)


def counted_steps(step_types: Sequence[str], steps: Steps) -> NDArray[np.bool_]:
    """Choose steps by their type.

    "action" leaves thoughts out (action-only, AO) and "all" keeps every step (AS; paper appendix C.2). "click" keeps
    WebShop's clicks alone: searches have KLs of their own, by which a router would learn to tell the type of a step
    (paper appendix C.1).

    Args:
        step_types: type of each of N steps.
        steps: which to keep.

    Returns:
        (N,) bool.
    """
    if steps not in STEPS:
        raise ConfigError(f"steps must be one of {', '.join(STEPS)}, got {steps!r}")
    counted = {"action": set(step_types) - {THINK}, "all": set(step_types), "click": {"click"}}[steps]
    return np.array([kind in counted for kind in step_types], dtype=np.bool_)


def precision_labels(kls: FloatArray, thresholds: float | Sequence[float] | NDArray[np.floating]) -> IntArray:
    """Eq. 5: the lowest precision whose KL does not exceed its threshold; the highest where none qualifies.

    With two precisions that is y = 1[KL > τ].

    Args:
        kls: (N, P - 1) KL of each lower precision to the highest, in ascending precision.
        thresholds: τ in nats: one number for all, or (P - 1,), one a lower precision.

    Returns:
        (N,) int64 indices of precisions.

    Raises:
        ConfigError: shapes that do not fit.
    """
    taus = np.asarray(thresholds, dtype=np.float64)
    if kls.ndim != 2:
        raise ConfigError(f"labels: kls must be (N, P - 1), got shape {kls.shape}")
    if taus.shape not in ((), (1,), kls.shape[1:]):
        raise ConfigError(f"labels: expected one threshold or {kls.shape[1]}, one a lower precision, got {taus.size}")
    enough = np.concatenate([kls <= taus, np.ones((len(kls), 1), dtype=np.bool_)], axis=1)
    labels: IntArray = enough.argmax(axis=1).astype(np.int64)
    return labels


def _kl(log_p: NDArray[np.float64], log_q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the last axis of p (log p - log q), where 0 log 0 = 0."""
    possible = np.isfinite(log_p)
    ratio = np.where(possible, log_p, 0.0) - np.where(possible, log_q, 0.0)
    # Rounding of float32 log-probabilities can leave a sum of -1e-8.
    return np.asarray(np.maximum((np.exp(log_p) * ratio).sum(axis=-1), 0.0))


def _common_events(
    p: TokenDistributions, q: TokenDistributions, t: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probabilities at token t of the tokens kept on both sides, then of everything else together."""
    ids_p, ids_q = (np.arange(d.logprobs.shape[1]) if d.indices is None else d.indices[t] for d in (p, q))
    _, at_p, at_q = np.intersect1d(ids_p, ids_q, assume_unique=True, return_indices=True)
    return _with_rest(p.logprobs[t, at_p]), _with_rest(q.logprobs[t, at_q])


def _with_rest(logprobs: FloatArray) -> NDArray[np.float64]:
    kept = logprobs.astype(np.float64)
    rest = max(1.0 - float(np.exp(kept).sum()), 0.0)
    # Less than float32 can tell from a full sum counts as nothing, not as an infinitely surprising event.
    return np.append(kept, np.log(max(rest, 1e-7)))
