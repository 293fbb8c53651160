"""Tables of recipes in the file of --config: defaults of options, checked as the command line is."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from dmr_gym.command_line import RecipeParser, add_env_options, chosen_env, recipe_parser
from dmr_gym.config import EnvConfig, load_config
from dmr_gym.errors import ConfigError


def parser(table: str | None = "evaluate") -> RecipeParser:
    """A recipe with options of every kind."""
    made = recipe_parser("A recipe.", table)
    made.add_argument("--out", required=True)
    made.add_argument("--budgets", type=float, nargs="+")
    made.add_argument("--force-high", nargs="*")
    made.add_argument("--steps", choices=("action", "click"), default="action")
    made.add_argument("--tasks", type=int)
    made.add_argument("--threshold", type=float)
    made.add_argument("--split-ties", action="store_true")
    add_env_options(made)
    return made


def parse(folder: Path, text: str, *options: str, table: str | None = "evaluate") -> argparse.Namespace:
    """The options with a file of this text."""
    path = folder / "mine.toml"
    path.write_text('task = "toy"\n' + text, encoding="utf-8")
    return parser(table).parse_args(["--out", "x", "--config", str(path), *options])


TABLE = """
[evaluate]
budgets = [0.2, 0.4]
force_high = []
steps = "click"
tasks = 7
threshold = -1.5
split_ties = true
num_envs = 3
"""


def test_a_table_gives_the_options_their_values(tmp_path: Path) -> None:
    """Lists, choices, numbers below 0, flags and shared options, as if they were on the command line."""
    args = parse(tmp_path, TABLE)
    assert (args.budgets, args.force_high, args.steps, args.tasks) == ([0.2, 0.4], [], "click", 7)
    assert (args.threshold, args.split_ties, args.num_envs, args.out) == (-1.5, True, 3, "x")


def test_the_command_line_goes_before_the_table(tmp_path: Path) -> None:
    """Whole options are replaced, a list too; --config=FILE is read as well."""
    args = parse(tmp_path, TABLE, "--budgets", "0.7", "--tasks", "9")
    assert (args.budgets, args.tasks, args.steps) == ([0.7], 9, "click")
    path = tmp_path / "mine.toml"
    assert parser().parse_args(["--out", "x", f"--config={path}"]).tasks == 7


def test_a_recipe_reads_its_own_table_alone(tmp_path: Path) -> None:
    """Another's table, or none, leaves the defaults; a flag that is false is not set."""
    assert parse(tmp_path, TABLE, table="calibrate").tasks is None
    assert parse(tmp_path, TABLE, table=None).tasks is None
    assert parse(tmp_path, "[evaluate]\nsplit_ties = false").split_ties is False
    assert parser().parse_args(["--out", "x"]).tasks is None


def test_options_that_are_not_known_are_handed_on(tmp_path: Path) -> None:
    """parse_known_args leaves what is for another recipe, and the table is still read."""
    path = tmp_path / "mine.toml"
    path.write_text(TABLE)
    args, rest = parser().parse_known_args(["--out", "x", "--config", str(path), "--updates", "4"])
    assert (args.tasks, rest) == (7, ["--updates", "4"])


def test_the_environment_does_not_see_the_tables(tmp_path: Path) -> None:
    """Neither through a recipe nor through load_config."""
    args = parse(tmp_path, 'lambda_ = 0.5\n[serve]\nports = {a = 1}\n[encoder]\nkind = "hash"\n' + TABLE)
    env_id, config = chosen_env(args)
    assert (env_id, config.lambda_, config.encoder) == ("DMR-Toy-v0", 0.5, {"kind": "hash"})
    assert load_config(EnvConfig, tmp_path / "mine.toml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[evaluate]\nbudgest = [1]", r"mine.toml: unknown option of \[evaluate\] 'budgest'; did you mean 'budgets'\?"),
        ("[evaluate]\nset = 'a=1'", r"unknown option of \[evaluate\] 'set'"),
        ("[evaluate]\nbudgets = 0.2", "evaluate.budgets must be a list, as --budgets takes it, got 0.2"),
        ("[evaluate]\nbudgets = [[0.2]]", r"evaluate.budgets must be a list, as --budgets takes it, got \[\[0.2\]\]"),
        ("[evaluate]\ntasks = [1]", r"evaluate.tasks must be one value, as --tasks takes it, got \[1\]"),
        ("[evaluate]\ntasks = true", "evaluate.tasks must be one value, as --tasks takes it, got True"),
        ("[evaluate]\ntasks = 1.5", "evaluate.tasks cannot be '1.5', which --tasks does not take: invalid literal"),
        ("[evaluate]\nsteps = 'clik'", r"evaluate.steps: unknown value of --steps 'clik'; did you mean 'click'\?"),
        ("[evaluate]\nsplit_ties = 1", "evaluate.split_ties must be true or false, got 1"),
        ("evaluate = 3", r"evaluate must be a table, \[evaluate\], got 3"),
    ],
)
def test_mistakes_in_a_table_are_named(tmp_path: Path, text: str, message: str) -> None:
    """With the file, the key, and what would do."""
    with pytest.raises(ConfigError, match=message):
        parse(tmp_path, text)


def test_a_table_of_no_recipe_is_no_setting(tmp_path: Path) -> None:
    """A misspelt table does not pass for one that another recipe reads."""
    with pytest.raises(ConfigError, match="unknown EnvConfig setting 'evalute'; did you mean 'evaluate'"):
        chosen_env(parse(tmp_path, "[evalute]\ntasks = 1"))
