"""The environment options that recipes share."""

from __future__ import annotations

import gymnasium
import pytest

import dmr_gym  # noqa: F401  (registers the ids)
from dmr_gym.command_line import env_config, first_tasks, make_envs, run
from dmr_gym.errors import ConfigError


def test_an_id_becomes_its_registered_keywords():
    """Nothing changed, nothing lost; the cache folder is the recipe's."""
    config = env_config("DMR-Toy-v0", cache_dir="somewhere")
    kwargs = gymnasium.spec("DMR-Toy-v0").kwargs
    assert config.precisions == tuple(kwargs["precisions"])
    assert config.backend == kwargs["backend"]
    assert config.cache_dir == "somewhere"


def test_settings_are_toml_with_dotted_keys():
    """Numbers, lists, tables inside tables, and bare text."""
    config = env_config(
        "DMR-Toy-v0", ["lambda_=0.5", "task_kwargs.num_signs=3", 'precisions=["a", "b"]', "latency=webshop-4b-awq-w4"]
    )
    assert config.lambda_ == 0.5
    assert config.task_kwargs["num_signs"] == 3
    assert config.precisions == ("a", "b")
    assert config.latency == "webshop-4b-awq-w4"


def test_changes_do_not_reach_the_registry():
    """A changed table belongs to this run alone."""
    env_config("DMR-Toy-v0", ["task_kwargs.num_signs=3", "backend.ms_per_token=2.0"])
    assert "num_signs" not in gymnasium.spec("DMR-Toy-v0").kwargs["task_kwargs"]
    assert "ms_per_token" not in gymnasium.spec("DMR-Toy-v0").kwargs["backend"]


@pytest.mark.parametrize(
    ("env_id", "settings", "message"),
    [
        ("DMR-Tpy-v0", [], "did you mean 'DMR-Toy-v0'"),
        ("DMR-Toy-v0", ["lambda_"], "expects KEY=VALUE, got 'lambda_'"),
        ("DMR-Toy-v0", ["lamda_=1"], "did you mean 'lambda_'"),
        ("DMR-Toy-v0", ["lambda_=much"], "lambda_ must be float"),
        ("DMR-Toy-v0", ["lambda_.x=1"], "not a table"),
    ],
)
def test_mistakes_are_named(env_id, settings, message):
    """Each with what came and the way out."""
    with pytest.raises(ConfigError, match=message):
        env_config(env_id, settings)


def test_make_envs_takes_the_panel_that_the_recipe_asks_for():
    """Whatever panel the id has registered."""
    envs = make_envs(env_config("DMR-Toy-v0", ["task_kwargs.num_tasks=3"]), "test", 2)
    assert envs.num_envs == 2
    assert first_tasks(envs, None) == ["toy-test-000", "toy-test-001", "toy-test-002"]
    assert first_tasks(envs, 2) == ["toy-test-000", "toy-test-001"]
    with pytest.raises(ConfigError, match="the panel has 3 tasks, but 4 were asked for"):
        first_tasks(envs, 4)


def test_a_mistake_ends_a_recipe_with_its_message_alone():
    """No traceback for what the user can mend; other errors pass."""

    def mistaken():
        raise ConfigError("expected this, got that")

    def broken():
        raise ZeroDivisionError

    with pytest.raises(SystemExit, match="ConfigError: expected this, got that"):
        run(mistaken)
    with pytest.raises(ZeroDivisionError):
        run(broken)
