"""The environment options that recipes share."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import pytest

import dmr_gym  # noqa: F401  (registers the ids)
from dmr_gym.command_line import (
    add_env_options,
    chosen_env,
    env_config,
    env_options,
    first_tasks,
    make_envs,
    recipe_parser,
    run,
)
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


def parse(*options: str):
    """The options of a recipe."""
    parser = recipe_parser("A recipe.\n\nWith more to read.")
    add_env_options(parser)
    return parser.parse_args(options)


def test_a_recipe_without_options_takes_the_default_id():
    """Its registered keywords, with the recipe's cache folder."""
    assert chosen_env(parse()) == ("DMR-ALFWorld-v0", env_config("DMR-ALFWorld-v0"))
    assert chosen_env(parse("--env", "DMR-Toy-v0"), Path("out")) == ("DMR-Toy-v0", env_config("DMR-Toy-v0", (), "out"))


def test_a_config_file_takes_the_place_of_the_id(tmp_path):
    """The id is that of its world, what it leaves out has its default, and --set goes before it."""
    path = tmp_path / "mine.toml"
    path.write_text('task = "toy"\nlambda_ = 0.7\nmax_steps = 9\n[encoder]\nkind = "hash"\n')
    env_id, config = chosen_env(parse("--config", str(path), "--set", "max_steps=8", "--set", "encoder.dim=16"))
    assert env_id == "DMR-Toy-v0"
    assert (config.lambda_, config.max_steps, config.history_length) == (0.7, 8, 64)
    assert config.encoder == {"kind": "hash", "dim": 16}
    assert config.cache_dir is None
    assert chosen_env(parse("--config", str(path), "--env", "DMR-Toy-v0"))[0] == "DMR-Toy-v0"


def test_shipped_file_and_registered_id_are_one(root):
    """--config configs/toy.toml is --env DMR-Toy-v0."""
    path = root / "configs" / "toy.toml"
    assert chosen_env(parse("--config", str(path))) == chosen_env(parse("--env", "DMR-Toy-v0"))


def test_a_file_of_a_world_is_recorded_under_the_worlds_id(root):
    """The chat file of WebShop can be given to a recipe as its first lines say."""
    env_id, config = chosen_env(parse("--config", str(root / "configs" / "webshop-chat.toml")))
    assert (env_id, config.task) == ("DMR-WebShop-v0", "webshop")


def test_cache_folder_of_the_command_line_then_of_the_file_then_of_the_recipe(tmp_path):
    """The nearest one wins."""
    path = tmp_path / "mine.toml"
    path.write_text('task = "toy"\ncache_dir = "theirs"\n')
    assert chosen_env(parse("--config", str(path), "--cache-dir", "mine"), "out")[1].cache_dir == "mine"
    assert chosen_env(parse("--config", str(path)), "out")[1].cache_dir == "theirs"
    assert chosen_env(parse("--env", "DMR-Toy-v0"), "out")[1].cache_dir == "out"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ('task = "toy"', ["--env", "DMR-ALFWorld-v0"], "is for the world 'toy', but --env DMR-ALFWorld-v0 is another"),
        ('task = "mars"', [], "unknown task 'mars'"),
        ("lamda_ = 1", [], "unknown EnvConfig setting 'lamda_'; did you mean 'lambda_'"),
        ("task = ", [], "is not a TOML file"),
        ('task = "toy"', ["--set", "max_steps"], "--set expects KEY=VALUE, got 'max_steps'"),
    ],
)
def test_mistakes_with_a_file_are_named(tmp_path, text, options, message):
    """Each with what came and the way out."""
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        chosen_env(parse("--config", str(tmp_path / "mine.toml"), *options))


@pytest.mark.parametrize("setting", ["task_kwargs.panel=test", 'task_kwargs={panel = "test"}'])
def test_panel_is_chosen_by_the_recipes_option_alone(setting):
    """--set would be overruled, so it is refused with the options to use; other settings of the task are welcome."""
    parser = recipe_parser("A recipe.")
    parser.add_argument("--panel")
    parser.add_argument("--calibration-panel")
    add_env_options(parser)
    toy = ("--env", "DMR-Toy-v0", "--set")
    with pytest.raises(ConfigError, match=r"task_kwargs\.panel has no effect .* use --panel or --calibration-panel"):
        chosen_env(parser.parse_args([*toy, setting]))
    with pytest.raises(ConfigError, match="use an option of the recipe"):
        chosen_env(parse(*toy, setting))
    assert chosen_env(parse(*toy, "task_kwargs.num_tasks=3"))[1].task_kwargs["num_tasks"] == 3


def test_options_have_to_be_written_out(capsys):
    """An abbreviation would change its meaning with the next option that begins like it."""
    with pytest.raises(SystemExit):
        parse("--num", "3")
    assert "unrecognized arguments: --num 3" in capsys.readouterr().err


def test_make_envs_takes_the_panel_that_the_recipe_asks_for():
    """Whatever panel the id has registered."""
    envs = make_envs(env_config("DMR-Toy-v0", ["task_kwargs.num_tasks=3"]), "test", 2)
    assert envs.num_envs == 2
    assert first_tasks(envs, None) == ["toy-test-000", "toy-test-001", "toy-test-002"]
    assert first_tasks(envs, 2) == ["toy-test-000", "toy-test-001"]
    with pytest.raises(ConfigError, match="the panel has 3 tasks, but 4 were asked for"):
        first_tasks(envs, 4)
    assert first_tasks(envs, None, skip=1) == ["toy-test-001", "toy-test-002"]
    assert first_tasks(envs, 1, skip=2) == ["toy-test-002"]
    with pytest.raises(ConfigError, match="the panel has 2 tasks after the 1 skipped, but 3 were asked for"):
        first_tasks(envs, 3, skip=1)
    for skip in (3, -1):
        with pytest.raises(ConfigError, match=f"has 3 tasks, so between 0 and 2 can be skipped, got {skip}"):
            first_tasks(envs, None, skip)


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


def test_another_recipe_gets_every_option_of_the_environment():
    """What is handed on parses to the same values, and no option is forgotten when one is added."""
    parser = recipe_parser("A recipe.")
    add_env_options(parser)
    given = ["--env", "DMR-Toy-v0", "--config", "c.toml", "--set", "lambda_=0.2", "--set", "max_steps=9"]
    args = parser.parse_args([*given, "--num-envs", "3", "--cache-dir", "cache", "--trees", "trees"])
    assert None not in vars(args).values()
    assert parser.parse_args(env_options(args)) == args
