"""Who decides the precision of each step: the policies that `dmr_gym.rollout.rollout` runs.

A policy is anything with `Policy`'s two methods. Chance comes from a generator per episode, seeded by the policy's
seed, the task and the repeat, so a decision does not depend on how many episodes run side by side or in which order.

Shapes: B sub-environments, L history length, D embedding width, P precisions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np

from dmr_gym.errors import ConfigError
from dmr_gym.history import valid_mask
from dmr_gym.types import FloatArray, IntArray

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dmr_gym.router import PrecisionRouter


class EpisodeKey(NamedTuple):
    """Which episode a sub-environment plays: the ``repeat``-th of a task."""

    task_id: str
    repeat: int = 0

    def generator(self, seed: int) -> np.random.Generator:
        """Return the episode's own source of chance under a policy's seed."""
        digest = hashlib.sha256(self.task_id.encode()).digest()
        return np.random.default_rng([seed, self.repeat, int.from_bytes(digest[:8], "big")])


@dataclass(frozen=True, slots=True)
class Decisions:
    """What a policy decided for each sub-environment.

    Attributes:
        actions: (B,) int64 precision indices.
        p_high: (B,) float32 probability of the highest precision; NaN where no router was asked.
        logprobs: (B,) float32 log-probability of the action under the policy as it draws; 0 where nothing is drawn.
        router_called: (B,) bool, whether the decision costs router time.
    """

    actions: IntArray
    p_high: FloatArray
    logprobs: FloatArray
    router_called: NDArray[np.bool_]

    @classmethod
    def without_router(cls, actions: IntArray, logprobs: FloatArray | None = None) -> Decisions:
        """Decisions that no router made."""
        size = len(actions)
        return cls(
            actions=actions,
            p_high=np.full(size, np.nan, dtype=np.float32),
            logprobs=np.zeros(size, dtype=np.float32) if logprobs is None else logprobs,
            router_called=np.zeros(size, dtype=np.bool_),
        )


class Policy(Protocol):
    """Chooses precisions for B episodes side by side."""

    def reset(self, slots: Sequence[int], episodes: Sequence[EpisodeKey], batch_size: int) -> None:
        """Episodes begin in these sub-environments (of ``batch_size``); forget what was played there before."""
        ...

    def act(self, observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide for every sub-environment, once a step.

        Args:
            observations: (B, L, D) float32 as the environment gives them.
            infos: of the same step.
        """
        ...


@runtime_checkable
class SlotPolicy(Policy, Protocol):
    """A policy that decides for some of the B episodes, so that each may go at its own pace.

    What it decides for one must not depend on which others are decided beside it. A rollout asks `Policy.act` or
    `act_in`, as the backend allows, so a subclass that changes one changes the other.
    """

    def act_in(self, slots: Sequence[int], observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide for n of the sub-environments.

        Args:
            slots: which ones.
            observations: (n, L, D) float32, theirs.
            infos: arrays over all B.

        Returns:
            n decisions.
        """
        ...


class FixedPrecision:
    """Always the same precision: the single-precision baselines.

    Args:
        index: of the precision, 0 the lowest.
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def reset(self, slots: Sequence[int], episodes: Sequence[EpisodeKey], batch_size: int) -> None:
        """Nothing to forget."""

    def act(self, observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide; see `Policy.act`."""
        return self.act_in(range(len(observations)), observations, infos)

    def act_in(self, slots: Sequence[int], observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide; see `SlotPolicy.act_in`."""
        return Decisions.without_router(np.full(len(slots), self.index, dtype=np.int64))


class _Drawing:
    """One generator a sub-environment, replaced when an episode begins there."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[int, np.random.Generator] = {}

    def reset(self, slots: Sequence[int], episodes: Sequence[EpisodeKey]) -> None:
        for slot, episode in zip(slots, episodes, strict=True):
            self._generators[slot] = episode.generator(self._seed)

    def uniform(self, slots: Sequence[int]) -> NDArray[np.float64]:
        return np.array([self._generators[slot].random() for slot in slots])


class RandomPolicy:
    """Precisions drawn with fixed probabilities at each step, whatever the history: what a router must beat.

    Args:
        shares: probability of each precision in ascending order, P numbers that sum to 1; or that of the highest alone,
            in [0, 1], with the lowest otherwise.
        n_precisions: P.
        seed: of its draws.

    Raises:
        ConfigError: shares outside [0, 1], not P of them, or another sum.
    """

    def __init__(self, shares: float | Sequence[float], n_precisions: int = 2, seed: int = 0) -> None:
        if isinstance(shares, int | float):
            if not 0.0 <= shares <= 1.0:
                raise ConfigError(f"the share of the highest precision must lie in [0, 1], got {shares}")
            shares = (1.0 - shares, *[0.0] * (n_precisions - 2), shares)
        self.shares = np.asarray(shares, dtype=np.float64)
        valid = self.shares.shape == (n_precisions,) and bool((self.shares >= 0).all())
        if not valid or not np.isclose(self.shares.sum(), 1.0):
            raise ConfigError(f"shares must be {n_precisions} probabilities that sum to 1, got {list(shares)}")
        edges = self.shares[::-1].cumsum()
        self._edges = edges / edges[-1]  # from the highest down; the last is exactly 1, above every draw
        self._draws = _Drawing(seed)

    def reset(self, slots: Sequence[int], episodes: Sequence[EpisodeKey], batch_size: int) -> None:
        """Start the draws of new episodes."""
        self._draws.reset(slots, episodes)

    def act(self, observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide; see `Policy.act`."""
        return self.act_in(range(len(observations)), observations, infos)

    def act_in(self, slots: Sequence[int], observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide; see `SlotPolicy.act_in`."""
        below_top = np.searchsorted(self._edges, self._draws.uniform(slots), side="right")
        actions = (len(self._edges) - 1 - below_top).astype(np.int64)
        return Decisions.without_router(actions, np.log(self.shares[actions]).astype(np.float32))


class RouterPolicy:
    """A router at work, one new row a decision.

    When an environment's window slides or outgrows the router's ``max_length``, positions shift and cached keys no
    longer apply; from then on the router reads the newest rows anew.

    Args:
        router: in evaluation mode, on any device.
        mode: "threshold" takes the highest precision iff p_high >= tau and otherwise the likeliest lower one (Eq. 7);
            "argmax" takes the likeliest; "sample" draws from the distribution.
        tau: threshold on p_high.
        seed: of the draws in "sample" mode, and of those between tied scores.
        tie_probability: how often a score of exactly tau goes to the highest precision; 1, the paper's rule, draws
            nothing (`dmr_gym.calibration.budget_threshold` with ``split_ties`` gives the one that keeps a budget).
        dtype: of the products; "float16" and "bfloat16" are faster on a CPU, see `PrecisionRouter.for_inference`.
            Whatever it is, the policy follows a router that is being trained.

    Raises:
        ConfigError: an unknown mode or dtype, or a probability outside [0, 1].
    """

    def __init__(
        self,
        router: PrecisionRouter,
        mode: Literal["threshold", "argmax", "sample"] = "threshold",
        tau: float = 0.5,
        seed: int = 0,
        tie_probability: float = 1.0,
        dtype: str = "float32",
    ) -> None:
        if not 0.0 <= tie_probability <= 1.0:
            raise ConfigError(f"tie_probability must lie in [0, 1], got {tie_probability}")
        if mode not in ("threshold", "argmax", "sample"):
            raise ConfigError(f'mode must be "threshold", "argmax" or "sample", got {mode!r}')
        self.router = router if dtype == "float32" else router.for_inference(dtype)
        self.mode = mode
        self.tau = tau
        self.tie_probability = tie_probability
        self._draws = _Drawing(seed)
        self._state = router.initial_state(0)
        self._seen = np.zeros(0, dtype=np.int64)  # (B,): rows of each episode so far, also those that slid away

    def reset(self, slots: Sequence[int], episodes: Sequence[EpisodeKey], batch_size: int) -> None:
        """Forget the histories of these sub-environments."""
        if len(self._seen) != batch_size:
            self._state = self.router.initial_state(batch_size)
            self._seen = np.zeros(batch_size, dtype=np.int64)
        self._state.lengths[list(slots)] = 0
        self._seen[list(slots)] = 0
        self._draws.reset(slots, episodes)

    def act(self, observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide; see `Policy.act`."""
        return self.act_in(range(len(observations)), observations, infos)

    def act_in(self, slots: Sequence[int], observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide; see `SlotPolicy.act_in`.

        It costs as much as deciding for all B, so that no bit depends on the company, as long as the window holds.
        """
        probabilities = self._probabilities(slots, observations)  # (n, P)
        if self.mode == "sample":
            edges = probabilities.cumsum(axis=1)
            draws = self._draws.uniform(slots) * edges[:, -1]
            actions = (draws[:, None] >= edges[:, :-1]).sum(axis=1)
        elif self.mode == "threshold":
            lower = probabilities[:, :-1].argmax(axis=1)
            actions = np.where(self._passes(slots, probabilities[:, -1]), probabilities.shape[1] - 1, lower)
        else:
            actions = probabilities.argmax(axis=1)
        chosen = np.take_along_axis(probabilities, actions[:, None], axis=1)[:, 0]
        return Decisions(
            actions=actions.astype(np.int64),
            p_high=probabilities[:, -1].copy(),
            logprobs=np.log(chosen) if self.mode == "sample" else np.zeros_like(chosen),
            router_called=np.ones(len(actions), dtype=np.bool_),
        )

    def _passes(self, slots: Sequence[int], p_high: FloatArray) -> NDArray[np.bool_]:
        """Whether each score goes to the highest precision in "threshold" mode."""
        passes: NDArray[np.bool_] = p_high >= self.tau
        if self.tie_probability < 1.0:
            # Drawn at every step, so that the draws of an episode do not depend on how many of its scores are tied.
            passes &= (p_high > self.tau) | (self._draws.uniform(slots) < self.tie_probability)
        return passes

    def _probabilities(self, slots: Sequence[int], observations: FloatArray) -> FloatArray:
        import torch

        index, device = np.asarray(slots, dtype=np.int64), self.router.device
        valid = valid_mask(observations).sum(axis=1)  # (n,)
        # An episode taken up in its middle, from a snapshot, starts with several rows.
        self._seen[index] = seen = np.where(self._seen[index] == 0, valid, self._seen[index] + 1)
        window = min(observations.shape[1], self.router.config.max_length)
        slid = seen > window
        rows, places = torch.as_tensor(observations, device=device), torch.as_tensor(index, device=device)
        newest = torch.zeros(len(self._seen), rows.shape[2], device=device)
        scores = torch.zeros(len(self._seen), self.router.config.n_precisions, device=device)
        wanted = torch.zeros_like(self._state.lengths)
        wanted[places] = torch.as_tensor(np.where(slid, 0, seen), device=device, dtype=wanted.dtype)
        while bool((behind := self._state.lengths < wanted).any()):
            order = self._state.lengths[places].clamp_max(rows.shape[1] - 1)
            newest[places] = rows[torch.arange(len(rows), device=device), order]
            scored, self._state = self.router.step(newest, self._state, behind)
            scores[behind] = scored[behind]
        logits = scores[places]
        if slid.any():
            recent = [row[max(n - window, 0) : n] for row, n in zip(rows[slid], valid[slid], strict=True)]
            full = torch.stack(recent)
            with torch.no_grad():
                mask = torch.ones(full.shape[:2], dtype=torch.bool, device=full.device)
                logits[slid] = self.router.last_logits(full, mask)
        probabilities: FloatArray = logits.softmax(-1).cpu().numpy()
        return probabilities


class ForcedHigh:
    """A policy that is not asked at some types of steps, which take the highest precision: WebShop's searches.

    The paper sends every search of a KL-ST router to the highest precision (appendix C.1). The policy within still sees
    every row, so its history stays right; what it says at a forced step is dropped. Forced steps ask no router: they
    cost no router time, and their scores are NaN and so in no calibration pool.

    Args:
        policy: decides elsewhere.
        high: index of the highest precision.
        step_types: values of ``infos["next_step_type"]`` at which the highest precision is taken.

    Raises:
        ConfigError: no types, or the empty one, which stands for a type that is not known beforehand.
    """

    def __init__(self, policy: Policy, high: int, step_types: Sequence[str] = ("search",)) -> None:
        if not step_types or "" in step_types or isinstance(step_types, str):
            raise ConfigError(f'step_types must name types of steps such as ("search",), got {step_types!r}')
        self.policy = policy
        self.high = high
        self.step_types = tuple(step_types)
        if isinstance(policy, SlotPolicy):  # else this is none either
            self.act_in = self._act_in

    def reset(self, slots: Sequence[int], episodes: Sequence[EpisodeKey], batch_size: int) -> None:
        """Hand on; see `Policy.reset`."""
        self.policy.reset(slots, episodes, batch_size)

    def act(self, observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide; see `Policy.act`.

        Raises:
            ConfigError: the infos do not tell the types of the coming steps.
        """
        types = self._types(infos)
        return self._force(self.policy.act(observations, infos), types)

    def _act_in(self, slots: Sequence[int], observations: FloatArray, infos: Mapping[str, Any]) -> Decisions:
        """Decide; see `SlotPolicy.act_in`."""
        types, inner = self._types(infos), cast(SlotPolicy, self.policy)
        return self._force(inner.act_in(slots, observations, infos), types[list(slots)])

    def _types(self, infos: Mapping[str, Any]) -> NDArray[np.str_]:
        if "next_step_type" not in infos:
            raise ConfigError("steps can be forced by type only where infos have next_step_type, as dmr_gym's do")
        return np.asarray(infos["next_step_type"], dtype=object).astype(str)  # (B,)

    def _force(self, decided: Decisions, types: NDArray[np.str_]) -> Decisions:
        forced = np.isin(types, self.step_types)
        return Decisions(
            actions=np.where(forced, self.high, decided.actions).astype(np.int64),
            p_high=np.where(forced, np.float32("nan"), decided.p_high).astype(np.float32),
            logprobs=np.where(forced, np.float32(0), decided.logprobs).astype(np.float32),
            router_called=decided.router_called & ~forced,
        )
