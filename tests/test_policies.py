"""Policies: what they decide, and that decoding row by row is the full pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmr_gym.errors import ConfigError
from dmr_gym.policies import Decisions, EpisodeKey, FixedPrecision, ForcedHigh, RandomPolicy, RouterPolicy, SlotPolicy
from dmr_gym.router import PrecisionRouter, RouterConfig

D = 6


def _router(n_precisions: int = 2, max_length: int = 8) -> PrecisionRouter:
    torch.manual_seed(0)
    config = RouterConfig(
        embedding_dim=D, n_precisions=n_precisions, n_layers=2, d_model=16, n_heads=2, d_ff=32, max_length=max_length
    )
    router = PrecisionRouter(config).eval()
    with torch.no_grad():
        router.head.weight *= 8  # far from 0.5, so that decisions differ
    return router


def _episode(steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, D)).astype(np.float32)


def _window(rows: np.ndarray, t: int, length: int) -> np.ndarray:
    """The observation after t + 1 rows: the newest ``length``, zeros behind."""
    observation = np.zeros((length, D), dtype=np.float32)
    newest = rows[max(0, t + 1 - length) : t + 1]
    observation[: len(newest)] = newest
    return observation


def _p_high(policy: RouterPolicy, episodes: list[np.ndarray], length: int) -> np.ndarray:
    """Play episodes of equal length side by side; returns (T, B)."""
    policy.reset(range(len(episodes)), [EpisodeKey(str(i)) for i in range(len(episodes))], len(episodes))
    steps = len(episodes[0])
    return np.array(
        [policy.act(np.stack([_window(rows, t, length) for rows in episodes]), {}).p_high for t in range(steps)]
    )


def test_a_fixed_precision_never_calls_the_router():
    """Single-precision baselines pay no router time and draw nothing."""
    decided = FixedPrecision(2).act(np.zeros((3, 4, D), np.float32), {})
    assert decided.actions.tolist() == [2, 2, 2]
    assert not decided.router_called.any()
    assert np.isnan(decided.p_high).all()
    assert decided.logprobs.tolist() == [0, 0, 0]


def test_random_keeps_its_share_and_its_logprobs():
    """Of 4000 draws at 0.3 about 30 % are high; the log-probability is that of the action."""
    policy = RandomPolicy(0.3, n_precisions=3, seed=1)
    policy.reset(range(4000), [EpisodeKey(str(i)) for i in range(4000)], 4000)
    decided = policy.act(np.zeros((4000, 1, D), np.float32), {})
    assert set(decided.actions.tolist()) == {0, 2}
    high = decided.actions == 2
    assert high.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_allclose(decided.logprobs[high], np.log(0.3), rtol=1e-6)
    np.testing.assert_allclose(decided.logprobs[~high], np.log(0.7), rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_random_at_the_ends_is_certain(share):
    """A share of 0 or 1 is a fixed precision, without warnings about logarithms of zero."""
    policy = RandomPolicy(share)
    policy.reset(range(9), [EpisodeKey(str(i)) for i in range(9)], 9)
    decided = policy.act(np.zeros((9, 1, D), np.float32), {})
    assert decided.actions.tolist() == [int(share)] * 9
    assert decided.logprobs.tolist() == [0.0] * 9


def test_random_follows_a_whole_histogram():
    """Of 4000 draws each precision gets its share, and the log-probability is that of the action."""
    shares = [0.5, 0.2, 0.3]
    policy = RandomPolicy(shares, n_precisions=3, seed=1)
    policy.reset(range(4000), [EpisodeKey(str(i)) for i in range(4000)], 4000)
    decided = policy.act(np.zeros((4000, 1, D), np.float32), {})
    np.testing.assert_allclose(np.bincount(decided.actions, minlength=3) / 4000, shares, atol=0.03)
    np.testing.assert_allclose(decided.logprobs, np.log(shares)[decided.actions], rtol=1e-6)


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.5, 0.5, 0.5], [1.5, -0.5, 0.0], [float("nan"), 0.5, 0.5]])
def test_shares_that_are_no_distribution_are_refused(shares):
    """Another number of them, another sum, outside [0, 1]."""
    with pytest.raises(ConfigError, match="shares must be 3 probabilities that sum to 1"):
        RandomPolicy(shares, n_precisions=3)


def test_draws_belong_to_the_episode_not_to_its_place():
    """Seed, task and repeat fix the draws; the sub-environment does not matter."""

    def draws(slot: int, key: EpisodeKey, seed: int = 0) -> list[int]:
        policy = RandomPolicy(0.5, seed=seed)
        policy.reset([0, 1], [EpisodeKey("other"), EpisodeKey("another")], 2)
        policy.reset([slot], [key], 2)
        return [int(policy.act(np.zeros((2, 1, D), np.float32), {}).actions[slot]) for _ in range(40)]

    first = draws(0, EpisodeKey("a"))
    assert first == draws(1, EpisodeKey("a"))
    assert first != draws(0, EpisodeKey("a", repeat=1))
    assert first != draws(0, EpisodeKey("b"))
    assert first != draws(0, EpisodeKey("a"), seed=1)


def test_deployment_gives_the_numbers_of_the_full_pass():
    """p_high decoded row by row equals one causal pass over the trajectory."""
    router = _router()
    episodes = [_episode(8, seed) for seed in range(3)]
    decoded = _p_high(RouterPolicy(router), episodes, length=8)
    with torch.no_grad():
        full = router(torch.from_numpy(np.stack(episodes)), torch.ones(3, 8, dtype=torch.bool)).softmax(-1)[..., -1]
    np.testing.assert_allclose(decoded, full.numpy().T, atol=1e-5)


@pytest.mark.parametrize(("length", "max_length"), [(5, 8), (8, 5), (5, 5)])
def test_a_sliding_window_is_scored_as_the_observation_shows_it(length, max_length):
    """Once the history slides, the score is that of the visible rows, positions counted from the oldest of them."""
    router, episode = _router(max_length=max_length), _episode(9, 4)
    decoded = _p_high(RouterPolicy(router), [episode], length)[:, 0]
    for t in range(9):
        visible = torch.from_numpy(episode[max(0, t + 1 - 5) : t + 1])[None]
        with torch.no_grad():
            logits = router.last_logits(visible, torch.ones(visible.shape[:2], dtype=torch.bool))
        assert decoded[t] == pytest.approx(float(logits.softmax(-1)[0, -1]), abs=1e-5)


def test_a_new_episode_forgets_the_old_one():
    """After a reset of one place its scores are those of a fresh policy; the neighbour goes on undisturbed."""
    router = _router()
    a, b, c = _episode(6, 1), _episode(3, 2), _episode(3, 3)
    policy, seen = RouterPolicy(router), []
    policy.reset([0, 1], [EpisodeKey("a"), EpisodeKey("b")], 2)
    for t in range(6):
        if t == 3:
            policy.reset([1], [EpisodeKey("c")], 2)
        second = _window(b, t, 8) if t < 3 else _window(c, t - 3, 8)
        seen.append(policy.act(np.stack([_window(a, t, 8), second]), {}).p_high)
    seen = np.array(seen)
    np.testing.assert_allclose(seen[:, :1], _p_high(RouterPolicy(router), [a], 8), atol=1e-6)
    np.testing.assert_allclose(seen[3:, 1:], _p_high(RouterPolicy(router), [c], 8), atol=1e-6)


def test_an_episode_may_be_taken_up_in_its_middle():
    """From a restored snapshot the first observation has several rows: all are read."""
    router, episode = _router(), _episode(6, 5)
    policy = RouterPolicy(router)
    policy.reset([0], [EpisodeKey("a")], 1)
    resumed = [policy.act(_window(episode, t, 8)[None], {}).p_high[0] for t in (3, 4, 5)]
    np.testing.assert_allclose(resumed, _p_high(RouterPolicy(router), [episode], 8)[3:, 0], atol=1e-5)


def test_the_threshold_decides_with_equality_for_high():
    """Route high iff p >= tau (Eq. 7)."""
    router, episode = _router(), _episode(1, 6)
    p = _p_high(RouterPolicy(router), [episode], 8)[0, 0]
    for tau, action in ((float(p), 1), (float(np.nextafter(p, np.float32(1))), 0), (np.inf, 0), (0.0, 1)):
        policy = RouterPolicy(router, tau=tau)
        policy.reset([0], [EpisodeKey("a")], 1)
        assert policy.act(_window(episode, 0, 8)[None], {}).actions.tolist() == [action]


def test_below_the_threshold_the_likeliest_lower_precision_is_taken():
    """With three precisions a step that does not go high still has a choice."""
    router, episodes = _router(3), [_episode(1, seed) for seed in range(40)]
    policy = RouterPolicy(router, tau=np.inf)
    policy.reset(range(40), [EpisodeKey(str(i)) for i in range(40)], 40)
    observations = np.stack([_window(rows, 0, 8) for rows in episodes])
    expected = router.act(observations)[:, :2].argmax(1)
    assert policy.act(observations, {}).actions.tolist() == expected.tolist()
    assert set(expected.tolist()) == {0, 1}


def test_argmax_takes_the_likeliest():
    """And never draws: its log-probability is 0."""
    router, observations = _router(3), np.stack([_window(_episode(1, seed), 0, 8) for seed in range(40)])
    policy = RouterPolicy(router, "argmax")
    policy.reset(range(40), [EpisodeKey(str(i)) for i in range(40)], 40)
    decided = policy.act(observations, {})
    assert decided.actions.tolist() == router.act(observations).argmax(1).tolist()
    assert not decided.logprobs.any()
    assert decided.router_called.all()


def test_sampling_follows_the_distribution_and_reports_its_logprobs():
    """Frequencies over 3000 episodes match the probabilities; the log-probability is that of the drawn action."""
    router, observation = _router(3), _window(_episode(1, 7), 0, 8)
    policy = RouterPolicy(router, "sample", seed=3)
    policy.reset(range(3000), [EpisodeKey(str(i)) for i in range(3000)], 3000)
    decided = policy.act(np.repeat(observation[None], 3000, axis=0), {})
    probabilities = router.act(observation[None])[0]
    np.testing.assert_allclose(np.bincount(decided.actions, minlength=3) / 3000, probabilities, atol=0.03)
    np.testing.assert_allclose(decided.logprobs, np.log(probabilities)[decided.actions], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reduced_dtypes_decide_alike(dtype):
    """On random episodes p_high stays within 0.02 of float32's, and 99 of 100 decisions are the same."""
    router, episodes = _router(), [_episode(8, seed) for seed in range(64)]
    found, expected = (
        _p_high(RouterPolicy(router, dtype=dtype), episodes, 8),
        _p_high(RouterPolicy(router), episodes, 8),
    )
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert ((found >= 0.5) == (expected >= 0.5)).mean() >= 0.99


def test_unknown_settings_are_refused():
    """The message lists what is allowed."""
    with pytest.raises(ConfigError, match='mode must be "threshold", "argmax" or "sample", got \'greedy\''):
        RouterPolicy(_router(), "greedy")
    with pytest.raises(ConfigError, match="3 probabilities that sum to 1"):
        RandomPolicy([0.2, 0.2, 0.2], 3)
    with pytest.raises(ConfigError, match=r"share of the highest precision must lie in \[0, 1\], got 1.5"):
        RandomPolicy(1.5)


def _tied(tie_probability: float, size: int, seed: int = 0) -> np.ndarray:
    """Actions of 1500 equal steps whose score is exactly tau."""
    router, observation = _router(), _window(_episode(1, 6), 0, 8)
    scores = RouterPolicy(router)
    scores.reset(range(size), [EpisodeKey(str(i)) for i in range(size)], size)
    tau = float(scores.act(np.repeat(observation[None], size, axis=0), {}).p_high[0])
    policy = RouterPolicy(router, tau=tau, seed=seed, tie_probability=tie_probability)
    policy.reset(range(size), [EpisodeKey(str(i)) for i in range(size)], size)
    return policy.act(np.repeat(observation[None], size, axis=0), {}).actions


def test_tied_scores_go_high_as_often_as_asked():
    """A score of exactly tau: always by default, never at 0, and 30 % of the time at 0.3."""
    assert _tied(1.0, 50).tolist() == [1] * 50
    assert _tied(0.0, 50).tolist() == [0] * 50
    assert _tied(0.3, 1500).mean() == pytest.approx(0.3, abs=0.04)


def test_draws_between_ties_belong_to_the_seed():
    """The same seed decides alike, another one otherwise."""
    assert _tied(0.5, 60).tolist() == _tied(0.5, 60).tolist()
    assert _tied(0.5, 60).tolist() != _tied(0.5, 60, seed=1).tolist()


def test_scores_that_are_not_tied_are_never_drawn():
    """Above tau is high and below is low, whatever the draw says."""
    router, observation = _router(), _window(_episode(1, 6), 0, 8)
    p = float(router.act(observation[None])[0, 1])
    for tau, action in ((p - 1e-3, 1), (p + 1e-3, 0)):
        policy = RouterPolicy(router, tau=tau, tie_probability=0.5)
        policy.reset(range(40), [EpisodeKey(str(i)) for i in range(40)], 40)
        assert policy.act(np.repeat(observation[None], 40, axis=0), {}).actions.tolist() == [action] * 40


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_tie_probabilities_lie_between_none_and_all(probability):
    """Anything else is a mistake."""
    with pytest.raises(ConfigError, match=r"tie_probability must lie in \[0, 1\]"):
        RouterPolicy(_router(), tie_probability=probability)


class Talker:
    """Takes the lowest precision at a score of 0.25, and remembers how many rows it was shown."""

    def __init__(self) -> None:
        self.seen = []
        self.started = []

    def reset(self, slots, episodes, batch_size):
        self.started.append((list(slots), list(episodes), batch_size))

    def act(self, observations, infos):
        self.seen.append(len(observations))
        size = len(observations)
        fill = np.full(size, 0.25, dtype=np.float32)
        return Decisions(np.zeros(size, dtype=np.int64), fill, fill - 1, np.ones(size, dtype=np.bool_))


def test_forced_steps_take_the_highest_precision_and_ask_no_router():
    """Searches are high with no score and no router time; clicks are what the policy says."""
    inner = Talker()
    policy = ForcedHigh(inner, high=2)
    policy.reset([1], [EpisodeKey("a")], 3)
    infos = {"next_step_type": np.array(["search", "click", "search"], dtype=object)}
    decided = policy.act(np.zeros((3, 4, D), np.float32), infos)
    assert decided.actions.tolist() == [2, 0, 2]
    assert decided.router_called.tolist() == [False, True, False]
    np.testing.assert_array_equal(decided.p_high, np.array([np.nan, 0.25, np.nan], dtype=np.float32))
    assert decided.logprobs.tolist() == [0, -0.75, 0]
    assert inner.seen == [3]
    assert inner.started == [([1], [EpisodeKey("a")], 3)]


def test_forced_steps_are_those_of_the_slots_that_are_asked():
    """Each by its own type; a policy that decides for all at once does not become one that decides for some."""
    policy = ForcedHigh(FixedPrecision(0), high=2)
    infos = {"next_step_type": np.array(["search", "click", "click"], dtype=object)}
    assert isinstance(policy, SlotPolicy)
    assert policy.act_in([2, 0], np.zeros((2, 4, D), np.float32), infos).actions.tolist() == [0, 2]
    assert not isinstance(ForcedHigh(Talker(), high=2), SlotPolicy)


def test_what_is_not_forced_stays_unasked_where_it_was():
    """A policy without a router does not get one."""
    policy = ForcedHigh(FixedPrecision(0), high=1)
    decided = policy.act(np.zeros((2, 4, D), np.float32), {"next_step_type": ["search", "click"]})
    assert decided.actions.tolist() == [1, 0]
    assert not decided.router_called.any()


def test_scores_behind_a_forced_step_are_those_of_the_whole_history():
    """The router sees the row of a forced step too, so its later scores are as if it had been asked."""
    router, episode = _router(), _episode(6, 8)
    expected = _p_high(RouterPolicy(router), [episode], 8)[:, 0]
    policy = ForcedHigh(RouterPolicy(router), high=1)
    policy.reset([0], [EpisodeKey("a")], 1)
    types = ["search", "click", "click", "search", "click", "click"]
    found = [policy.act(_window(episode, t, 8)[None], {"next_step_type": [types[t]]}).p_high[0] for t in range(6)]
    asked = [t for t, kind in enumerate(types) if kind == "click"]
    np.testing.assert_array_equal(np.array(found)[asked], expected[asked])
    assert np.isnan(np.array(found)[[0, 3]]).all()


def test_forcing_says_what_it_needs():
    """Types that mean something, and infos that tell them."""
    with pytest.raises(ConfigError, match="step_types must name types"):
        ForcedHigh(FixedPrecision(0), 1, ())
    with pytest.raises(ConfigError, match="step_types must name types"):
        ForcedHigh(FixedPrecision(0), 1, "search")
    with pytest.raises(ConfigError, match="infos have next_step_type"):
        ForcedHigh(FixedPrecision(0), 1).act(np.zeros((1, 4, D), np.float32), {})
