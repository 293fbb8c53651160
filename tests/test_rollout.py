"""The loop over env.step: which episode is played where, and what is recorded of it."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv

from dmr_gym.errors import ConfigError
from dmr_gym.policies import Decisions, EpisodeKey, FixedPrecision, RandomPolicy
from dmr_gym.rollout import rollout

L, D = 8, 3


class CountingEnvs(VectorEnv):
    """B episodes whose task id "x-4" says that they last 4 steps; solved iff the last action is 1.

    Row t of an episode is (length, t + 1, sample index + 1), so that every number can be traced. It is as strict as
    gymnasium's own vector environments: an episode that is over may not be stepped.
    """

    def __init__(self, num_envs: int, mode: AutoresetMode = AutoresetMode.DISABLED) -> None:
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": mode}
        self.single_observation_space = gym.spaces.Box(-99, 99, (L, D), dtype=np.float32)
        self.single_action_space = gym.spaces.Discrete(2)
        self.started: list[str] = []
        self.tasks = [""] * num_envs
        self.samples = [0] * num_envs
        self.time = np.zeros(num_envs, dtype=np.int64)
        self.over = np.ones(num_envs, dtype=np.bool_)
        self.turns: list[tuple[str, ...]] = [()] * num_envs
        self.starts: list[str | None] = [None] * num_envs

    def reset(self, *, seed=None, options=None):
        """Start the episodes that the mask names."""
        for i in np.flatnonzero(options["reset_mask"]):
            self.tasks[i], self.samples[i] = options["task_id"][i], options["sample_index"][i]
            self.time[i], self.over[i], self.turns[i] = 0, False, ()
            self.started.append(self.tasks[i])
            self.starts[i] = f"start of {self.tasks[i]}"
        return self._observations(), self._infos(options["reset_mask"], np.zeros(self.num_envs, dtype=np.int64))

    def step(self, actions):
        """Let a step of every episode pass."""
        assert not self.over.any(), "an episode that is over was stepped"
        self.time += 1
        self.over = self.time >= self._lengths()
        self.turns = [(*turns, f"turn {t}") for turns, t in zip(self.turns, self.time, strict=True)]
        infos = self._infos(np.ones(self.num_envs, dtype=np.bool_), actions)
        return self._observations(), actions * 0.5, self.over.copy(), np.zeros_like(self.over), infos

    def _lengths(self):
        return np.array([int(task.split("-")[1]) for task in self.tasks])

    def _observations(self):
        observations = np.zeros((self.num_envs, L, D), dtype=np.float32)
        for i, length in enumerate(self._lengths()):
            for row, t in enumerate(range(max(0, self.time[i] + 1 - L), self.time[i] + 1)):
                observations[i, row] = (length, t + 1, self.samples[i] + 1)
        return observations

    def _infos(self, mask, actions):
        infos = {
            "latency_llm_s": 0.1 * (1 + actions),
            "latency_router_s": np.full(self.num_envs, 0.01),
            "prompt_tokens": 10 * self.time,
            "completion_tokens": self.time.copy(),
            "step_type": np.array(["think" if t % 2 else "action" for t in self.time], dtype=object),
            "success": self.over & (actions == 1),
            "score": self.time / np.maximum(self._lengths(), 1),
        }
        infos |= {f"_{key}": np.asarray(mask, dtype=np.bool_) for key in list(infos)}
        return infos


TASKS = ["a-3", "b-1", "c-5", "d-2", "e-4"]


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5, 9])
def test_each_task_is_played_once_and_returned_in_order(num_envs):
    """However many run side by side; lengths and rows are each task's own."""
    trajectories = rollout(CountingEnvs(num_envs), FixedPrecision(1), TASKS)
    assert [t.key for t in trajectories] == [EpisodeKey(task) for task in TASKS]
    for trajectory in trajectories:
        steps = int(trajectory.key.task_id[2:])
        assert trajectory.rows.tolist() == [[steps, t + 1, 1] for t in range(steps + 1)]
        assert trajectory.rows.dtype == np.float32
        assert trajectory.actions.tolist() == [1] * steps


def test_everything_a_step_tells_is_recorded():
    """Arrays over the steps, aligned with the decision that caused them."""
    [trajectory] = rollout(CountingEnvs(1), FixedPrecision(1), ["a-3"])
    np.testing.assert_allclose(trajectory.rewards, [0.5, 0.5, 0.5])
    np.testing.assert_allclose(trajectory.latency_llm_s, [0.2, 0.2, 0.2])
    np.testing.assert_allclose(trajectory.latency_router_s, [0.01, 0.01, 0.01])
    assert trajectory.prompt_tokens.tolist() == [10, 20, 30]
    assert trajectory.completion_tokens.tolist() == [1, 2, 3]
    assert trajectory.step_types == ("think", "action", "think")
    assert trajectory.success is True
    assert trajectory.score == 1.0
    assert np.isnan(trajectory.p_high).all()
    assert trajectory.turns == ()


def test_time_charges_the_router_only_where_it_was_asked():
    """Baselines without a router cost 3 * 0.2 s; a router at the middle step costs 0.01 s more."""

    class MiddleAsks(FixedPrecision):
        def act(self, observations, infos):
            decided = super().act(observations, infos)
            asked = np.array([(row != 0).any(-1).sum() == 2 for row in observations])
            return Decisions(decided.actions, decided.p_high, decided.logprobs, asked)

    [alone] = rollout(CountingEnvs(1), FixedPrecision(1), ["a-3"])
    [routed] = rollout(CountingEnvs(1), MiddleAsks(1), ["a-3"])
    assert alone.time_s == pytest.approx(0.6)
    assert routed.time_s == pytest.approx(0.61)


def test_result_counts_high_steps():
    """What the evaluation needs, from one trajectory."""
    [trajectory] = rollout(CountingEnvs(1), FixedPrecision(1), ["a-3"])
    result = trajectory.result(high=1)
    assert (result.task_id, result.success, result.steps, result.high_steps, result.completion_tokens) == (
        "a-3",
        True,
        3,
        3,
        6,
    )
    assert result.precision_steps == (0, 3)
    assert trajectory.result(high=2).precision_steps == (0, 3, 0)


def test_groups_lie_side_by_side_with_their_sample_index():
    """Repeats of a task follow each other, and each has its own sample index."""
    trajectories = rollout(CountingEnvs(2), FixedPrecision(0), ["a-2", "b-1"], repeats=3)
    assert [t.key for t in trajectories] == [EpisodeKey(task, r) for task in ("a-2", "b-1") for r in range(3)]
    assert [t.rows[0, 2] for t in trajectories] == [1, 2, 3, 1, 2, 3]


def test_decisions_do_not_depend_on_the_number_of_environments():
    """The same seeds, tasks and repeats draw the same actions alone and side by side."""
    drawn = [
        [t.actions.tolist() for t in rollout(CountingEnvs(n), RandomPolicy(0.5, seed=7), TASKS, repeats=2)]
        for n in (1, 3, 4)
    ]
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[0][0::2] != drawn[0][1::2]


def test_repeats_can_be_played_in_calls_of_their_own():
    """The third repeat alone is the third of three: key and sample index."""
    together = rollout(CountingEnvs(2), FixedPrecision(0), ["a-2", "b-1"], repeats=3)
    alone = rollout(CountingEnvs(2), FixedPrecision(0), ["a-2", "b-1"], first_repeat=2)
    assert [t.key for t in alone] == [EpisodeKey("a-2", 2), EpisodeKey("b-1", 2)]
    assert [t.rows.tolist() for t in alone] == [t.rows.tolist() for t in together if t.key.repeat == 2]
    with pytest.raises(ConfigError, match="first_repeat must be at least 0, got -1"):
        rollout(CountingEnvs(2), FixedPrecision(0), ["a-2"], first_repeat=-1)


def test_idle_environments_repeat_their_own_episode():
    """At the end nothing new is started: the only tasks that are reset again are those played before in that place."""
    envs = CountingEnvs(3)
    rollout(envs, FixedPrecision(0), ["a-1", "b-1", "c-6"])
    assert set(envs.started) == {"a-1", "b-1", "c-6"}
    assert envs.started.count("c-6") == 1


def test_a_history_that_slides_still_gives_every_row():
    """Episodes longer than L: rows are collected one a step, not read from the last window."""
    [trajectory] = rollout(CountingEnvs(1), FixedPrecision(0), ["a-12"])
    assert trajectory.rows[:, 1].tolist() == list(range(1, 14))


def test_turns_are_kept_on_request():
    """The texts of an episode are those of the episode that ended, not of the next one."""
    trajectories = rollout(CountingEnvs(2), FixedPrecision(0), TASKS, keep_turns=True)
    assert [len(t.turns) for t in trajectories] == [3, 1, 5, 2, 4]
    assert [t.start for t in trajectories] == [f"start of {task}" for task in TASKS]
    assert rollout(CountingEnvs(1), FixedPrecision(0), ["a-1"])[0].start is None


def test_on_episode_sees_each_trajectory_as_it_ends():
    """Shorter episodes of a batch are handed over before longer ones."""
    seen = []
    rollout(CountingEnvs(2), FixedPrecision(0), ["a-3", "b-1"], on_episode=lambda t: seen.append(t.key.task_id))
    assert seen == ["b-1", "a-3"]


def test_the_policy_sees_infos_of_new_episodes():
    """After an episode is replaced, its entry in infos is that of the reset, not of the old episode's last step."""
    seen = []

    class Watcher(FixedPrecision):
        def act(self, observations, infos):
            seen.append(infos["completion_tokens"].tolist())
            return super().act(observations, infos)

    rollout(CountingEnvs(2), Watcher(0), ["a-2", "b-1", "c-1"])
    assert seen == [[0, 0], [1, 0]]


def test_no_tasks_play_nothing():
    """An empty list is not an error, and nothing is reset."""
    envs = CountingEnvs(2)
    assert rollout(envs, FixedPrecision(0), []) == []
    assert envs.started == []


def test_other_autoreset_modes_are_refused():
    """An environment that resets itself would choose tasks on its own."""
    with pytest.raises(ConfigError, match='autoreset_mode="Disabled"'):
        rollout(CountingEnvs(1, AutoresetMode.NEXT_STEP), FixedPrecision(0), TASKS)
    with pytest.raises(ConfigError, match="repeats must be at least 1, got 0"):
        rollout(CountingEnvs(1), FixedPrecision(0), TASKS, repeats=0)


def test_a_progress_bar_is_shown_on_request(capsys):
    """Its title is the caller's; without one nothing is printed."""
    rollout(CountingEnvs(1), FixedPrecision(0), TASKS)
    assert capsys.readouterr().err == ""
    rollout(CountingEnvs(1), FixedPrecision(0), TASKS, progress="playing")
    assert "playing: 100%" in capsys.readouterr().err
