"""What the command lines of the recipes share: which environment, with which settings, and how mistakes end."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium

from dmr_gym.backends import check_backend
from dmr_gym.config import EnvConfig, load_config, read_toml, unknown_name
from dmr_gym.encoders import check_encoder, make_encoder
from dmr_gym.errors import ConfigError, DMRGymError
from dmr_gym.parts import Parts
from dmr_gym.tasks import TASKS, make_task
from dmr_gym.tree.answers import check_world
from dmr_gym.tree.graph import load_trees, trees_digest
from dmr_gym.tree.replay import TreeVectorEnv
from dmr_gym.vector import PrecisionRoutingVectorEnv

if TYPE_CHECKING:
    from dmr_gym.router import RouterConfig

DEFAULT_ENV = "DMR-ALFWorld-v0"
TREES = "trees"
"""Kind of backend that `chosen_env` puts where ``--trees`` names a folder; `make_envs` alone knows it."""

_NOT_IN_TABLES = ("help", "config", "env", "set")
"""Options that choose the file, or change what it says otherwise."""

ROUTER_SIZES = {
    "n_layers": "Transformer blocks of a new router",
    "d_model": "width of its residual stream, numbers a step",
    "n_heads": "its attention heads, a divisor of that width",
    "d_ff": "inner width of its feed-forward layers, numbers a step",
    "max_length": "most steps of a history that it sees",
}
"""Sizes of a router that recipes have options for, with their help texts."""


class RecipeParser(argparse.ArgumentParser):
    """A parser whose options take their defaults from a table of the file in ``--config``, where it has one.

    The table is named after the recipe, and its keys are the options' names with underscores::

        [compare_grpo]
        lambdas = [0.005, 0.01, 0.02]
        seeds = 3

    stands for ``--lambdas 0.005 0.01 0.02 --seeds 3`` in front of the command line, which overrides it. Only
    a flag that the table sets stays set, and an option that may be repeated is added to.

    Args:
        documentation: its first line describes the recipe.
        table: name of the table; None for a recipe without one.
    """

    def __init__(self, documentation: str, table: str | None) -> None:
        super().__init__(description=documentation.splitlines()[0], allow_abbrev=False)
        self._table = table

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse as `argparse` does, the table's options first.

        Raises:
            ConfigError: a key of the table that is no option, or a value that no option can have.
        """
        given = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args([*self._from_table(given), *given], namespace)

    def _from_table(self, given: Sequence[str]) -> list[str]:
        if self._table is None or "--config" not in self._option_string_actions:
            return []
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.add_argument("--config")
        path = finder.parse_known_args(given)[0].config
        table = {} if path is None else read_toml(path).get(self._table, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {self._table} must be a table, [{self._table}], got {table!r}")
        known = {action.dest: action for action in self._actions if action.dest not in _NOT_IN_TABLES}
        tokens: list[str] = []
        for key, value in table.items():
            if key not in known:
                raise ConfigError(f"{path}: {unknown_name(f'option of [{self._table}]', key, known)}")
            tokens += _tokens(known[key], value, f"{path}: {self._table}.{key}")
        return tokens


def recipe_parser(documentation: str, table: str | None = None) -> RecipeParser:
    """A parser that takes options by their whole name, described by the first line of a recipe's documentation.

    Args:
        documentation: of the recipe.
        table: name of the table that may hold its options in the file of ``--config``, see `RecipeParser`.
    """
    return RecipeParser(documentation, table)


def add_env_options(parser: argparse.ArgumentParser, trees: bool = True) -> None:
    """Add the options that `chosen_env` and `make_envs` read.

    Args:
        parser: of a recipe.
        trees: whether the recipe can play on trees; one that asks an LLM cannot, and has no ``--trees``.
    """
    group = parser.add_argument_group("environment")
    group.add_argument(
        "--env", metavar="ID", help=f"registered id (default: {DEFAULT_ENV}, or that of the world in --config)"
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        help="keywords of the environment as TOML, such as configs/alfworld.toml (default: those of the id); may hold "
        "a table with options of this recipe",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a keyword of the environment, VALUE as in TOML; may be repeated: --set lambda_=0.02 (the price "
        "of a second, in units of reward) "
        '--set backend.device=cuda --set \'precisions=["w3", "w4", "bf16"]\'',
    )
    group.add_argument(
        "--num-envs", type=int, default=8, metavar="N", help="episodes played side by side (default: %(default)s)"
    )
    group.add_argument(
        "--cache-dir",
        metavar="DIR",
        help="folder of the completion cache, shared between recipes (default: the --out folder's 'cache')",
    )
    if not trees:
        parser.set_defaults(trees=None)
        return
    group.add_argument(
        "--trees",
        metavar="DIR",
        help="play on the routing trees that agents/build_trees.py wrote there, without world and LLM",
    )


def env_options(args: argparse.Namespace) -> list[str]:
    """The options of `add_env_options` as another recipe is to be given them."""
    given = {"--env": args.env, "--config": args.config, "--num-envs": args.num_envs}
    given |= {"--cache-dir": args.cache_dir, "--trees": args.trees}
    options = [text for name, value in given.items() if value is not None for text in (name, str(value))]
    return options + [text for setting in args.set for text in ("--set", setting)]


def add_router_options(parser: argparse.ArgumentParser) -> None:
    """Add the sizes of a new router, which `router_config` reads."""
    from dmr_gym.router import RouterConfig

    group, defaults = parser.add_argument_group("router"), RouterConfig()
    for name, text in ROUTER_SIZES.items():
        flag, value = f"--{name.replace('_', '-')}", getattr(defaults, name)
        group.add_argument(flag, type=int, default=value, metavar="N", help=f"{text} (default: %(default)s)")
    group.add_argument(
        "--dropout",
        type=float,
        default=defaults.dropout,
        metavar="X",
        help="share of its activations set to zero by train_kl_st.py, in [0, 1); elsewhere none is "
        "(default: %(default)s)",
    )


def router_config(args: argparse.Namespace, embedding_dim: int, n_precisions: int) -> RouterConfig:
    """The sizes of a new router, from the options of `add_router_options`.

    Args:
        args: the command line.
        embedding_dim: width D of the step embeddings.
        n_precisions: P.

    Raises:
        ConfigError: sizes that no router can have.
    """
    from dmr_gym.router import RouterConfig

    sizes = {name: getattr(args, name) for name in ROUTER_SIZES}
    return RouterConfig(embedding_dim=embedding_dim, n_precisions=n_precisions, dropout=args.dropout, **sizes)


def chosen_env(args: argparse.Namespace, cache_dir: str | Path | None = None) -> tuple[str, EnvConfig]:
    """The registered id and the keywords that the options of `add_env_options` choose.

    Args:
        args: with ``env``, ``config``, ``set``, ``cache_dir`` and ``trees``, which takes the backend's place.
        cache_dir: of the completion cache, where neither ``--cache-dir`` nor the file names one.

    Raises:
        ConfigError: an unknown id or key, also among the options of backend and encoder, a value of the wrong type, an
            unreadable file, or one for another world; or ``--set`` names the panel, which `make_envs` gets from an
            option of the recipe.
    """
    if args.config is None:
        env_id = args.env or DEFAULT_ENV
        config = env_config(env_id, args.set)
    else:
        config = load_config(EnvConfig, args.config, _overrides(args.set))
        env_id = _id_of_world(config.task, args.config, args.env)
    if "panel" in load_config(EnvConfig, overrides=_overrides(args.set)).task_kwargs:
        options = " or ".join(f"--{name.replace('_', '-')}" for name in vars(args) if name.endswith("panel"))
        raise ConfigError(f"--set task_kwargs.panel has no effect here: use {options or 'an option of the recipe'}")
    check_backend(config.backend)
    check_encoder(config.encoder)
    folder = args.cache_dir or config.cache_dir or cache_dir
    if args.trees is not None:
        config = replace(config, backend={"kind": TREES, "folder": args.trees})
    return env_id, replace(config, cache_dir=None if folder is None else str(folder))


def env_config(env_id: str, settings: Sequence[str] = (), cache_dir: str | None = None) -> EnvConfig:
    """Resolve a registered id and ``KEY=VALUE`` changes to the environment's keywords.

    Args:
        env_id: for example "DMR-ALFWorld-v0".
        settings: dotted keys and TOML values; a value that is no TOML counts as text.
        cache_dir: of the completion cache.

    Raises:
        ConfigError: an unknown id or key, or a value of the wrong type.
    """
    config = load_config(EnvConfig, overrides=_overrides(settings), base=_registered(env_id))
    return replace(config, cache_dir=cache_dir or config.cache_dir)


def make_envs(
    config: EnvConfig, panel: str, num_envs: int, *, whole: bool = False, **live: Any
) -> PrecisionRoutingVectorEnv:
    """Build the vector environment for one panel of tasks, to be run by `dmr_gym.rollout.rollout`.

    Args:
        config: its keywords; a panel among those of the task gives way to this one.
        panel: "train", "calibration", "validation" or "test".
        num_envs: sub-environments.
        whole: whether trees that are cut off are refused, not only told of: an episode that leaves one ends early, and
            would count as one that failed in little time.
        **live: parts that stand in for those that the keywords describe, such as ``backend``.

    Raises:
        ConfigError: ``--trees`` names a folder without trees of the panel, or with those of another world, or with
            cut ones where they must be whole; or trees are to be played with live parts.
    """
    config = replace(config, task_kwargs={**config.task_kwargs, "panel": panel})
    if config.backend.get("kind") != TREES:
        return PrecisionRoutingVectorEnv(num_envs, autoreset_mode="Disabled", **config.kwargs() | live)
    if live:
        raise ConfigError(f"--trees has no place for a {' and '.join(live)} of the recipe's own: leave it out here")
    trees = load_trees(Path(config.backend["folder"]) / panel)
    check_world(trees, config)
    cut = sum(not tree.is_complete for tree in trees)
    told = f"{cut} of {len(trees)} trees of {panel} are cut off, and an episode that leaves one ends there"
    if cut and whole:
        raise ConfigError(f"{told}: build them with more --budget; agents/tree_report.py has bounds for cut ones")
    if cut:
        print(f"warning: {told}")
    return TreeVectorEnv(trees, config, num_envs, autoreset_mode="Disabled")


def part_digests(config: EnvConfig, panels: Sequence[str]) -> dict[str, Any]:
    """What episodes depend on beside keywords and models: digests of the encoder, and of the panels or their trees."""
    found: dict[str, Any] = {"encoder": make_encoder(config.encoder).digest}
    if config.backend.get("kind") == TREES:
        folder = Path(config.backend["folder"])
        found["trees_digest"] = {panel: trees_digest(folder / panel) for panel in dict.fromkeys(panels)}
    else:
        found["tasks_digest"] = {panel: _tasks_digest(config, panel) for panel in dict.fromkeys(panels)}
    return found


def _tasks_digest(config: EnvConfig, panel: str) -> str:
    """SHA-256 of a panel's task ids and of how eight of its episodes begin, which tells most other data."""
    task = make_task(config.task, **{**config.task_kwargs, "panel": panel})
    ids = list(task.task_ids)
    some = ids[:: max(1, len(ids) // 8)][:8]
    starts = [(start.instruction, start.observation) for start in map(task.reset, some)]
    return hashlib.sha256(json.dumps([ids, starts]).encode()).hexdigest()


def add_task_range(parser: argparse.ArgumentParser) -> None:
    """Add ``--tasks`` and ``--skip-tasks``, for `first_tasks`."""
    add = parser.add_argument
    add("--tasks", type=int, metavar="N", help="first N tasks of that panel, behind those skipped (default: all)")
    add(
        "--skip-tasks",
        type=int,
        default=0,
        metavar="N",
        help="leave out the first N tasks of that panel: those that a router has learnt from (default: %(default)s)",
    )


def first_tasks(envs: PrecisionRoutingVectorEnv | Parts, number: int | None, skip: int = 0) -> list[str]:
    """Return the first ``number`` task ids of the panel after ``skip`` of them, or all of these for None.

    Raises:
        ConfigError: the panel has fewer.
    """
    total = len(envs.task_ids)
    if not 0 <= skip < total:
        raise ConfigError(f"the panel has {total} tasks, so between 0 and {total - 1} can be skipped, got {skip}")
    number = total - skip if number is None else number
    if not 1 <= number <= total - skip:
        after = f" after the {skip} skipped" if skip else ""
        raise ConfigError(f"the panel has {total - skip} tasks{after}, but {number} were asked for")
    return list(envs.task_ids[skip : skip + number])


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """A command line as plain data: paths become texts."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {key: plain(value) for key, value in vars(args).items()}


def run(main: Callable[[], object]) -> None:
    """Run a recipe's main: a mistake of the user ends it with the message alone, without a traceback."""
    try:
        main()
    except DMRGymError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped")


def _tokens(option: argparse.Action, value: object, where: str) -> list[str]:
    """What would be written on the command line for a value of a table."""
    flag = option.option_strings[0]
    if option.nargs == 0:
        if not isinstance(value, bool):
            raise ConfigError(f"{where} must be true or false, got {value!r}")
        return [flag] if value else []
    values = value if isinstance(value, list) else [value]
    if isinstance(value, list) != (option.nargs in ("*", "+")) or any(
        isinstance(v, bool | dict | list) for v in values
    ):
        expected = "a list" if option.nargs in ("*", "+") else "one value"
        raise ConfigError(f"{where} must be {expected}, as {flag} takes it, got {value!r}")
    for text in map(str, values):
        try:
            entry = option.type(text) if callable(option.type) else text
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise ConfigError(f"{where} cannot be {text!r}, which {flag} does not take: {error}") from error
        if option.choices is not None and entry not in option.choices:
            raise ConfigError(f"{where}: {unknown_name(f'value of {flag}', text, option.choices)}")
    return [flag, *map(str, values)]


def _registered(env_id: str) -> dict[str, Any]:
    try:
        return gymnasium.spec(env_id).kwargs
    except gymnasium.error.Error as error:
        raise ConfigError(unknown_name("environment id", env_id, _known_ids())) from error


def _known_ids() -> list[str]:
    return sorted(name for name in gymnasium.registry if name.startswith("DMR-"))


def _id_of_world(task: str, path: str, env_id: str | None) -> str:
    """What results are recorded under: the id that was given, else the first of the file's world."""
    if env_id is None:
        if task not in TASKS:
            raise ConfigError(f"{path}: {unknown_name('task', task, TASKS)}")
        return next(name for name in _known_ids() if gymnasium.spec(name).kwargs.get("task") == task)
    if _registered(env_id).get("task") != task:
        raise ConfigError(f"{path} is for the world {task!r}, but --env {env_id} is another: leave one of them out")
    return env_id


def _overrides(settings: Sequence[str]) -> list[str]:
    overrides = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set expects KEY=VALUE, got {setting!r}")
        overrides.append(f"--{key.strip()}={value.strip()}")
    return overrides
