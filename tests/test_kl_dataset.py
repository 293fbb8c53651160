"""The KL data set: what is measured at each step, and that files keep it."""

from __future__ import annotations

import numpy as np
import pytest

from dmr_gym.episode import Turn
from dmr_gym.errors import ConfigError
from dmr_gym.kl_dataset import KLDataset, label_trajectory, read_settings
from dmr_gym.policies import EpisodeKey
from dmr_gym.rollout import Trajectory
from dmr_gym.types import Completion, Request, SamplingParams, TaskStep, TokenDistributions


class ByteBackend:
    """Two tokens to choose from at each character; P(first token) depends on precision and character."""

    precisions = ("w3", "w4", "bf16")

    def __init__(self) -> None:
        self.asked = []
        self.batches = []

    def token_distributions(self, requests):
        """Answer with 0.5 for bf16; 0.25 for w3 and 0.4 for w4 at digits; 0.5 elsewhere."""
        self.asked += requests
        self.batches.append(len(requests))
        answers = []
        for request in requests:
            digit = {"w3": 0.25, "w4": 0.4, "bf16": 0.5}[request.precision]
            first = np.array([digit if char.isdigit() else 0.5 for char in request.completion])
            logprobs = np.log(np.stack([first, 1 - first], axis=1)).astype(np.float32).reshape(-1, 2)
            token_ids = np.array([ord(char) for char in request.completion], dtype=np.int64)
            answers.append(TokenDistributions(token_ids, tuple(request.completion), logprobs))
        return answers


def _kl(q: float) -> float:
    return 0.5 * np.log(0.5 / q) + 0.5 * np.log(0.5 / (1 - q))


def _turn(text: str, action: str, step_type: str = "action", finish_reason: str = "stop") -> Turn:
    request = Request("prompt>", "bf16", SamplingParams(stop=("\n",)))
    completion = Completion(text, 5, len(text) + 1, 0.1, finish_reason)
    step = TaskStep(action, "seen", 0.0, False, False, step_type)
    return Turn(request, completion, step, 0.1, 0.01, 0.0)


def _trajectory(*turns: Turn, task_id: str = "a") -> Trajectory:
    steps = len(turns)
    return Trajectory(
        key=EpisodeKey(task_id),
        rows=np.arange(2 * (steps + 1), dtype=np.float32).reshape(-1, 2),
        actions=np.full(steps, 2),
        rewards=np.zeros(steps),
        p_high=np.full(steps, np.nan, dtype=np.float32),
        logprobs=np.zeros(steps, dtype=np.float32),
        router_called=np.zeros(steps, dtype=np.bool_),
        latency_llm_s=np.full(steps, 0.1),
        latency_router_s=np.full(steps, 0.01),
        prompt_tokens=np.full(steps, 5),
        completion_tokens=np.array([turn.completion.completion_tokens for turn in turns]),
        step_types=tuple(turn.step.step_type for turn in turns),
        success=True,
        score=1.0,
        turns=turns,
    )


def test_each_lower_precision_is_compared_with_the_highest_token_by_token():
    """Completion "11: go 1" and its stop: 3 of all 9 tokens are digits, and 1 of the 5 in the action block."""
    dataset = label_trajectory(_trajectory(_turn("11: go 1", "go 1")), ByteBackend())
    np.testing.assert_allclose(dataset.kl_all, [[_kl(0.25) * 3 / 9, _kl(0.4) * 3 / 9]], rtol=1e-5)
    np.testing.assert_allclose(dataset.kl_action, [[_kl(0.25) / 5, _kl(0.4) / 5]], rtol=1e-5)


def test_the_stop_is_scored_only_where_the_completion_stopped():
    """A completion cut by its length has no stop string."""
    backend = ByteBackend()
    label_trajectory(_trajectory(_turn("go", "go"), _turn("go", "go", finish_reason="length")), backend)
    assert [r.completion for r in backend.asked] == ["go\n"] * 3 + ["go"] * 3
    assert [r.precision for r in backend.asked] == ["w3", "w4", "bf16"] * 2


def test_a_long_episode_is_scored_a_few_turns_at_a_time():
    """Nineteen turns under three precisions: 8, 8 and 3 turns, each with its own numbers."""
    backend = ByteBackend()
    turns = [_turn("go 1" if t % 2 else "go a", "go") for t in range(19)]
    dataset = label_trajectory(_trajectory(*turns), backend)
    assert backend.batches == [24, 24, 9]
    assert (dataset.kl_all[:, 0] > 0).tolist() == [bool(t % 2) for t in range(19)]


def test_options_reach_the_divergence():
    """The sum over the five action tokens is that of the one digit; K reaches the backend."""
    backend = ByteBackend()
    dataset = label_trajectory(_trajectory(_turn("go 1", "go 1")), backend, reduce="sum", top_k=2)
    np.testing.assert_allclose(dataset.kl_action, [[_kl(0.25), _kl(0.4)]], rtol=1e-5)
    assert {r.top_k for r in backend.asked} == {2}


def test_the_direction_reaches_the_divergence():
    """KL(low || high) at the one digit: 0.25 ln(0.25 / 0.5) + 0.75 ln(0.75 / 0.5), over five tokens."""
    dataset = label_trajectory(_trajectory(_turn("go 1", "go 1")), ByteBackend(), direction="low_high")
    expected = (0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)) / 5
    np.testing.assert_allclose(dataset.kl_action[0, 0], expected, rtol=1e-5)
    assert not np.isclose(expected, _kl(0.25) / 5)


def test_an_empty_completion_differs_in_nothing():
    """Cut before its first token."""
    dataset = label_trajectory(_trajectory(_turn("", "", finish_reason="length")), ByteBackend())
    assert not dataset.kl_all.any()


def test_rows_are_those_that_decisions_saw():
    """T rows for T decisions: the row after the end is left out."""
    dataset = label_trajectory(_trajectory(_turn("a", "a"), _turn("b", "b")), ByteBackend())
    assert dataset.rows.tolist() == [[0, 1], [2, 3]]
    assert dataset.lengths.tolist() == [2]


@pytest.fixture
def dataset() -> KLDataset:
    """Two trajectories, one with a thought."""
    first = _trajectory(_turn("think: 1", "think: 1", "think"), _turn("go 1", "go 1"))
    second = _trajectory(_turn("go 2", "go 2"), task_id="b")
    return KLDataset.concatenate([label_trajectory(t, ByteBackend()) for t in (first, second)])


def test_concatenation_keeps_order(dataset):
    """Arrays over steps and over trajectories, names and ids."""
    assert len(dataset) == 2
    assert dataset.lengths.tolist() == [2, 1]
    assert dataset.step_types == ("think", "action", "action")
    assert dataset.task_ids == ("a", "b")
    assert [part.tolist() for part in dataset.split(np.array([1, 2, 3]))] == [[1, 2], [3]]


def test_saving_and_loading_keeps_everything(dataset, tmp_path):
    """All arrays bitwise, all names, and the settings."""
    dataset.save(tmp_path / "kl.safetensors", {"reduce": "mean", "top_k": None})
    loaded = KLDataset.load(tmp_path / "kl.safetensors")
    for name in ("rows", "kl_action", "kl_all", "lengths", "success", "completion_tokens"):
        assert np.array_equal(getattr(loaded, name), getattr(dataset, name))
        assert getattr(loaded, name).dtype == getattr(dataset, name).dtype
    assert loaded.step_types == dataset.step_types
    assert loaded.task_ids == dataset.task_ids
    assert read_settings(tmp_path / "kl.safetensors") == {"reduce": "mean", "top_k": None}
    assert [path.name for path in tmp_path.iterdir()] == ["kl.safetensors"]


def test_files_that_are_no_data_set_are_refused(tmp_path):
    """Absent, and not a safetensors file at all."""
    with pytest.raises(ConfigError, match=r"no KL data set at .*collect_kl\.py"):
        KLDataset.load(tmp_path / "kl.safetensors")
    (tmp_path / "kl.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="not a KL data set or is damaged"):
        KLDataset.load(tmp_path / "kl.safetensors")
