"""dmr_gym.minari_export and its recipe: a data set shows what the environment showed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest

from dmr_gym.command_line import env_config, make_envs
from dmr_gym.errors import ConfigError
from dmr_gym.minari_export import environment_spec, export_minari, windows
from dmr_gym.policies import RandomPolicy
from dmr_gym.rollout import rollout
from dmr_gym.router import PrecisionRouter, RouterConfig

minari = pytest.importorskip("minari")
pytest.importorskip("h5py")

ROOT = Path(__file__).resolve().parents[1]
TOY = ["--env", "DMR-Toy-v0", "--num-envs", "2", "--tasks", "3"]


@pytest.fixture(autouse=True)
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data sets go to a folder of the test."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    """agents/export_minari.py."""
    spec = importlib.util.spec_from_file_location("recipe_export_minari", ROOT / "agents" / "export_minari.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_recovered_environment_repeats_the_data(recipe: ModuleType) -> None:
    """Reset with an episode's options and given its actions, it shows the same observations, rewards and infos."""
    recipe.main(["--dataset-id", "dmr/toy/random-v0", "--panel", "test", "--texts", "--set", "max_steps=12", *TOY])
    dataset = minari.load_dataset("dmr/toy/random-v0")
    env = dataset.recover_environment()
    assert env.spec.id == "DMR-Toy-v0"
    assert (dataset.observation_space, dataset.action_space) == (env.observation_space, env.action_space)
    episodes, metadata = list(dataset.iterate_episodes()), list(dataset.storage.get_episode_metadata([0, 1, 2]))
    assert dataset.total_steps == sum(len(episode.actions) for episode in episodes)
    lengths = set()
    for episode, recorded in zip(episodes, metadata, strict=True):
        options = recorded["options"]
        assert options["task_id"].startswith("toy-test-")
        observation, info = env.reset(options={"task_id": options["task_id"], "sample_index": options["sample_index"]})
        steps = [(observation, 0.0, False, False, info), *(env.step(action) for action in episode.actions)]
        assert episode.observations.tobytes() == np.stack([step[0] for step in steps]).tobytes()
        assert episode.rewards.tolist() == [step[1] for step in steps[1:]]
        assert episode.terminations.tolist() == [step[2] for step in steps[1:]]
        assert not episode.truncations.any()
        for name in ("success", "precision", "latency_s", "latency_llm_s", "completion_tokens", "prompt_tokens"):
            assert episode.infos[name].tolist() == [step[4][name] for step in steps], name
        assert [text.decode() for text in episode.infos["step_type"]] == [step[4]["step_type"] for step in steps]
        texts = [turn.completion.text for turn in env.unwrapped.turns]
        assert [text.decode() for text in episode.infos["completion"]] == ["", *texts]
        lengths.add(len(episode.actions))
    assert len(lengths) > 1


def test_the_spec_makes_the_environment_where_nothing_is_registered(recipe: ModuleType) -> None:
    """A process that imports Minari alone recovers it, settings included."""
    recipe.main(["--dataset-id", "toy-v0", "--policy", "high", "--set", "lambda_=0.5", *TOY])
    code = "import minari; env = minari.load_dataset('toy-v0').recover_environment(); print(env.spec.kwargs['lambda_'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == ["0.5"], done.stderr


def test_a_world_without_an_id_is_recorded_by_its_name() -> None:
    """The spec still says how to make it."""
    spec = environment_spec("corridor", env_config("DMR-Toy-v0", ["max_steps=3"]))
    assert gym.make(spec).unwrapped.task_ids[0] == "toy-train-000"
    assert spec.kwargs["cache_dir"] is None


def test_windows_keep_the_newest_rows() -> None:
    """Rows a, b, c in a window of two: (a, 0), (a, b), (b, c)."""
    a, b, c = np.eye(3, dtype=np.float32)
    expected = [[a, 0 * a], [a, b], [b, c]]
    assert windows(np.stack([a, b, c]), 2).tolist() == np.array(expected).tolist()


def test_a_router_draws_its_episodes(recipe: ModuleType, tmp_path: Path) -> None:
    """The data set names the router and keeps its probabilities."""
    router = PrecisionRouter(RouterConfig(embedding_dim=64, n_layers=1, d_model=32, n_heads=2, d_ff=64))
    router.save(tmp_path / "router")
    options = ["--dataset-id", "routed-v0", "--policy", "router", "--router", str(tmp_path / "router")]
    recipe.main([*options, "--repeats", "2", *TOY])
    dataset = minari.load_dataset("routed-v0")
    assert dataset.total_episodes == 6
    assert dataset.storage.metadata["algorithm_name"] == f"router {router.digest()[:12]}"
    for episode in dataset.iterate_episodes():
        chosen = np.where(episode.actions == 1, episode.infos["p_high"][1:], 1 - episode.infos["p_high"][1:])
        assert np.log(chosen) == pytest.approx(episode.infos["logprob"][1:], abs=1e-5)


def test_an_id_is_written_once(recipe: ModuleType) -> None:
    """A second data set of the id is refused, and so is an empty one, and a router without its policy."""
    recipe.main(["--dataset-id", "toy-v0", *TOY])
    with pytest.raises(ConfigError, match="a data set 'toy-v0' is there already"):
        recipe.main(["--dataset-id", "toy-v0", *TOY])
    config = env_config("DMR-Toy-v0")
    with pytest.raises(ConfigError, match="no episodes to write"):
        export_minari([], "empty-v0", "DMR-Toy-v0", config, algorithm_name="none", description="none")
    with pytest.raises(ConfigError, match="belong together"):
        recipe.main(["--dataset-id", "other-v0", "--policy", "router", *TOY])


def test_sampled_episodes_name_their_sample_index() -> None:
    """The repeat is the sample index that the environment needs to draw the same completions."""
    settings = ["sampling.temperature=0.5"]
    config = env_config("DMR-Toy-v0", settings)
    envs = make_envs(config, "train", 2)
    played = rollout(envs, RandomPolicy(0.5), envs.task_ids[:1], repeats=2)
    dataset = export_minari(played, "hot-v0", "DMR-Toy-v0", config, algorithm_name="random", description="two")
    recorded = dataset.storage.get_episode_metadata([0, 1])
    assert [int(each["options"]["sample_index"]) for each in recorded] == [0, 1]
