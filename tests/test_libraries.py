"""docs/libraries.md: its Python blocks run as printed, and Gymnasium's wrappers and vector modes work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

SMALL = {"total_timesteps": 128, "n_steps": 16, "batch_size": 16, "frames_per_batch": 64, "total_frames": 128}
WRAPPERS = gym.wrappers


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    """The text of docs/libraries.md."""
    return (root / "docs" / "libraries.md").read_text(encoding="utf-8")


def block(page: str, title: str) -> str:
    """The Python block of a section."""
    [section] = [part for part in re.split(r"^## ", page, flags=re.MULTILINE) if part.startswith(f"{title}\n")]
    [code] = re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    return code


def script(file: Path, *options: str) -> str:
    """Code that runs a file as ``python file options`` does."""
    return f"import runpy, sys; sys.argv = {[str(file), *options]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"


def shrink(code: str) -> str:
    """The same script with budgets that fit a test."""
    for name, value in SMALL.items():
        code = re.sub(rf"\b{name}( ?)=( ?)\d+\b", rf"{name}\1=\g<2>{value}", code)
    return code


def execute(code: str, folder: Path, **environment: str) -> str:
    """Run a script in a fresh interpreter and return what it printed."""
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("title", "package", "shown"),
    [
        ("Stable-Baselines3", "stable_baselines3", r"^$"),
        ("sb3-contrib", "sb3_contrib", r"^(low|high)\n(low|high)\n$"),
        ("TorchRL", "torchrl", r"(mean return (-?\d\.\d{3}|nan)\n){2}$"),
        ("Gymnasium", "gymnasium", r"^$"),
    ],
)
def test_an_example_runs_as_printed(page: str, tmp_path: Path, title: str, package: str, shown: str) -> None:
    """In a fresh interpreter, small totals aside; a saved router can be loaded."""
    pytest.importorskip(package)
    assert re.search(shown, execute(shrink(block(page, title)), tmp_path))
    if title == "Stable-Baselines3":
        from dmr_gym.router import PrecisionRouter

        assert PrecisionRouter.load(tmp_path / "runs" / "sb3" / "router").config.d_model == 32


@pytest.mark.slow
def test_the_example_of_minari_reads_what_the_recipe_wrote(page: str, root: Path, tmp_path: Path) -> None:
    """The command above the block, then the block."""
    pytest.importorskip("minari")
    pytest.importorskip("h5py")
    recipe, *options = re.findall(r"^python (agents/export_minari.py .*)$", page, flags=re.MULTILINE)[0].split()
    written = execute(script(root / recipe, *options, "--tasks", "2", "--datasets", str(tmp_path)), tmp_path)
    assert "wrote dmr/toy/random-v0: 8 episodes" in written
    lines = execute(block(page, "Minari"), tmp_path, MINARI_DATASETS_PATH=str(tmp_path)).splitlines()
    assert len(lines) == 8
    assert all(re.fullmatch(r"\d+ -?\d\.\d+ (True|False)", line) for line in lines)


def test_flat_ids_have_vectors(page: str, tmp_path: Path) -> None:
    """The module for CleanRL registers an id with flat observations, made through its prefix."""
    (tmp_path / "flat_ids.py").write_text(block(page, "CleanRL"))
    code = "import gymnasium; print(gymnasium.make('flat_ids:DMR-Toy-Flat-v0').reset(seed=0)[0].shape)"
    assert execute(code, tmp_path) == "(4096,)\n"


@pytest.mark.slow
def test_cleanrl_trains_unmodified(page: str, tmp_path: Path) -> None:
    """Its ppo.py, where DMR_GYM_CLEANRL names it, makes the environment from a prefixed id and learns."""
    pytest.importorskip("tyro")
    file = Path(os.environ.get("DMR_GYM_CLEANRL", ""))
    if not file.is_file():
        pytest.skip("set DMR_GYM_CLEANRL to CleanRL's cleanrl/ppo.py")
    (tmp_path / "flat_ids.py").write_text(block(page, "CleanRL"))
    options = ["--env-id", "flat_ids:DMR-Toy-Flat-v0", "--total-timesteps", "256", "--num-steps", "32"]
    assert execute(script(file, *options), tmp_path).count("SPS:") == 2
    assert list((tmp_path / "runs").glob("flat_ids:DMR-Toy-Flat-v0__ppo__*/events*"))


def test_wrappers_that_change_observations_work() -> None:
    """Flattened, the history is one vector; stacked, the newest observation comes last; both stay in their space."""
    env = WRAPPERS.FlattenObservation(gym.make("dmr_gym:DMR-Toy-v0"))
    stacked = WRAPPERS.FrameStackObservation(gym.make("dmr_gym:DMR-Toy-v0"), 3)
    flat, histories = env.reset(seed=0)[0], stacked.reset(seed=0)[0]
    assert (flat.shape, histories.shape) == ((64 * 64,), (3, 64, 64))
    for action in (0, 1, 1):
        flat, histories = env.step(action)[0], stacked.step(action)[0]
        assert flat.tolist() == histories[-1].ravel().tolist()
        assert env.observation_space.contains(flat)
        assert stacked.observation_space.contains(histories)
    assert not np.array_equal(histories[1], histories[2])


def test_episode_statistics_are_the_sum_of_rewards() -> None:
    """RecordEpisodeStatistics counts the steps and adds up the rewards of an episode that always-high solves."""
    env = WRAPPERS.RecordEpisodeStatistics(gym.make("dmr_gym:DMR-Toy-v0"))
    env.reset(seed=1)
    steps = [env.step(1) for _ in range(8)]
    assert [step[2] for step in steps] == [False] * 7 + [True]
    assert steps[-1][4]["episode"]["l"] == 8
    assert steps[-1][4]["episode"]["r"] == pytest.approx(sum(step[1] for step in steps))


def test_a_time_limit_truncates_and_our_cap_terminates() -> None:
    """Three steps of the wrapper are no end of the task; three steps of max_steps are."""
    limited = WRAPPERS.TimeLimit(gym.make("dmr_gym:DMR-Toy-v0"), 3)
    capped = gym.make("dmr_gym:DMR-Toy-v0", max_steps=3)
    for env, expected in ((limited, (False, True)), (capped, (True, False))):
        env.reset(seed=0)
        assert [env.step(0)[2:4] for _ in range(3)][-1] == expected


@pytest.mark.parametrize("mode", ["sync", "vector_entry_point", None])
def test_vector_modes_agree(mode: str | None) -> None:
    """Observations, rewards and ends of Gymnasium's loop are those of the batched environment, resets included."""
    reference = gym.make_vec("dmr_gym:DMR-Toy-v0", num_envs=2, vectorization_mode="sync")
    envs = gym.make_vec("dmr_gym:DMR-Toy-v0", num_envs=2, vectorization_mode=mode)
    assert envs.reset(seed=3)[0].tobytes() == reference.reset(seed=3)[0].tobytes()
    actions, ends = np.random.default_rng(0), 0
    for _ in range(40):
        chosen = np.where(actions.random(2) < 0.9, 1, 0)
        one, other = envs.step(chosen), reference.step(chosen)
        for mine, expected in zip(one[:4], other[:4], strict=True):
            assert mine.tobytes() == expected.tobytes()
        ends += int(one[2].sum())
    assert ends > 1
