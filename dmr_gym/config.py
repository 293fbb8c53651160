"""Settings: TOML file -> frozen dataclass -> constructor keywords, and back to TOML.

`EnvConfig` at the end mirrors the environment's keywords; nothing else here knows of a particular dataclass::

    config = load_config(EnvConfig, "configs/alfworld.toml", ["--lambda_", "0.02", "--task_kwargs.panel=test"])
    env = PrecisionRoutingEnv(**config.kwargs())
    (run / "env.toml").write_text(to_toml(config))

The recipes read ``--config``, ``--env`` and ``--set`` with it (`dmr_gym.command_line`), and their own tables in a file.
A table replaces the default of a mapping field as a whole: ``[backend]`` is not merged with the default backend.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import math
import numbers
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dmr_gym.errors import ConfigError

T = TypeVar("T")
_SHOWN = 12


class _Text(str):
    """A value from the command line, whose type only the field tells."""

    __slots__ = ()


def unknown_name(what: str, name: object, known: Iterable[object]) -> str:
    """Word an error for a name that is not known, with the nearest one that is.

    Args:
        what: what the name should name, for example "precision".
        name: the name that came.
        known: the names that would have done.
    """
    names = [str(entry) for entry in known]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    shown = ", ".join(names[:_SHOWN]) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {name!r}; {hint}known: {shown or 'none'}"


def load_config(
    cls: type[T],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
) -> T:
    """Read a dataclass from a TOML file and command-line overrides.

    Args:
        cls: a dataclass whose fields are plain data or dataclasses; every field needs a default or a value.
        path: a TOML file; None takes the defaults.
        overrides: ``["--section.key", "value", "--other.key=value"]``; values are TOML, or bare text.
        base: plain data that stands where the file is silent, before the dataclass's own defaults; it is not changed.

    Raises:
        ConfigError: for an unreadable file, an unknown key, or a value of the wrong type.
    """
    data = copy.deepcopy(dict(base or {}))
    if path is not None:
        aside = getattr(cls, "recipe_tables", ())
        data |= {key: value for key, value in read_toml(path).items() if key not in aside}
    for key, value in _pairs(overrides):
        _put(data, key, value)
    return from_mapping(cls, data)


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: for an unreadable file, or one that is no TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {str(path)!r}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}") from error


def from_mapping(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass from plain data, checking names and types.

    Args:
        cls: the dataclass.
        data: its fields by name; what is missing takes its default.
        where: dotted path of this table, for messages.

    Raises:
        ConfigError: for an unknown or missing key, or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            known = [where + name for name in fields] + list(() if where else getattr(cls, "recipe_tables", ()))
            raise ConfigError(unknown_name(f"{cls.__name__} setting", f"{where}{key}", known))
    for name, entry in fields.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in data:
            raise ConfigError(
                f"{cls.__name__} needs a value for {where}{name}: add it to the file or pass --{where}{name}"
            )
    return cls(**{key: _convert(value, hints[key], where + key) for key, value in data.items()})


def to_toml(config: Any) -> str:
    """Write a dataclass as TOML that `load_config` reads back as an equal one; None is left out, as TOML has none.

    Raises:
        ConfigError: for a value that is not plain data.
    """
    lines: list[str] = []
    _write_table(lines, (), _fields(config))
    return "\n".join(lines).strip() + "\n"


def _pairs(overrides: Sequence[str]) -> Iterable[tuple[str, _Text]]:
    tokens = iter(overrides)
    for token in tokens:
        if not token.startswith("--"):
            raise ConfigError(f"expected an override like --section.key value, got {token!r}")
        key, equals, value = token[2:].partition("=")
        text = value if equals else next(tokens, None)
        if text is None or (not equals and text.startswith("--")):
            raise ConfigError(f"the override --{key} needs a value: --{key} VALUE")
        yield key, _Text(text)


def _put(data: dict[str, Any], key: str, value: _Text) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = data.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"cannot set {key}: {section} is {inner!r}, not a table")
        data = inner
    data[last] = value


def _parse(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return str(text)
    return parsed["value"] if len(parsed) == 1 else str(text)


def _plain(value: Any) -> Any:
    """Give command-line texts inside untyped data the type that TOML sees in them."""
    if isinstance(value, _Text):
        return _parse(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return value


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if isinstance(value, _Text):
        value = str(value) if hint is str else _parse(value)
    if hint is Any:
        return _plain(value)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(typing.cast(type, hint), value, f"{where}.")
    if origin is typing.Literal and value in arguments:
        return value
    if origin in (tuple, Sequence) and isinstance(value, list | tuple):
        return _convert_items(value, arguments, where)
    if (origin or hint) in (dict, Mapping) and isinstance(value, Mapping):
        inner = arguments[1] if arguments else Any
        return {key: _convert(item, inner, f"{where}.{key}") for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (bool, int, str) and type(value) is hint:
        return value
    expected = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    raise ConfigError(f"{where} must be {expected.replace('typing.', '')}, got {value!r} ({type(value).__name__})")


def _convert_items(value: Sequence[Any], hints: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if len(hints) == 1 or hints[1:] == (Ellipsis,):  # Sequence[X] or tuple[X, ...]
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise ConfigError(f"{where} must have {len(hints)} entries, got {len(value)}: {list(value)!r}")
    items = enumerate(zip(value, hints, strict=True))
    return tuple(_convert(item, hint, f"{where}[{index}]") for index, (item, hint) in items)


def _convert_union(value: Any, hints: tuple[Any, ...], where: str) -> Any:
    if type(None) in hints and (value is None or (isinstance(value, _Text) and value.lower() == "none")):
        return None
    # str last: a command-line text could always be one.
    reasons = []
    for hint in sorted((hint for hint in hints if hint is not type(None)), key=lambda hint: hint is str):
        try:
            return _convert(value, hint, where)
        except ConfigError as error:
            reasons.append(str(error))
    raise ConfigError("; or ".join(reasons))


def _fields(config: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(config):
        raise ConfigError(f"expected a dataclass, got {config!r}")
    values = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if value is not None:
            values[entry.name] = value
        elif entry.default is not None:
            raise ConfigError(f"{entry.name} is None, which TOML cannot say, and its default is not None")
    return values


def _write_table(lines: list[str], path: tuple[str, ...], table: Mapping[str, Any]) -> None:
    if path:
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    inner = {}
    for key, value in table.items():
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            inner[key] = value if isinstance(value, Mapping) else _fields(value)
        else:
            lines.append(f"{_key(key)} = {_value(value, key)}")
    for key, value in inner.items():
        _write_table(lines, (*path, key), value)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key, key)


def _value(value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)  # also "inf" and "nan", as TOML spells them
    if isinstance(value, str | Path):
        # JSON's escapes are TOML's, but TOML wants DEL escaped too.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(item, where)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item, where) for item in value) + "]"
    raise ConfigError(f"{where} holds {value!r}, which is not plain data (text, numbers, booleans, lists, tables)")


@dataclass(frozen=True, slots=True)
class EnvConfig:
    """The keywords of `PrecisionRoutingEnv`, with the same defaults and meaning.

    ``from_mapping(EnvConfig, dmr_gym.ENV_IDS[env_id])`` is the configuration of a registered id.

    Attributes:
        task: kind of world, "alfworld", "webshop" or "toy".
        task_kwargs: its settings, for example ``{"panel": "train"}``.
        precisions: names in ascending precision; action 0 is the lowest.
        backend: kind and settings of the LLM copies; the world of embedded ones is ``task`` where none is named.
        encoder: kind and settings of the text encoder.
        latency: a row of the paper's Table 3 by name, or settings of `dmr_gym.latency.make_latency_model`.
        lambda_: price of a second of latency in units of reward, at least 0 (λ of Eq. 8).
        max_steps: step cap of an episode.
        history_length: rows L of the observation.
        sampling: fields of `SamplingParams` that differ from its defaults.
        cache_dir: folder of a cache that outlives the process; None keeps answers in memory.
        info_text: whether info carries texts too.
        invalid_action_penalty: reward that an invalid action costs, at least 0; not part of Eq. 8.
        render_mode: "ansi", "human", "rgb_array" or None.
    """

    recipe_tables: ClassVar[tuple[str, ...]] = (
        "serve",
        "quantize",
        "collect_kl",
        "train_kl_st",
        "calibrate",
        "evaluate",
        "train_grpo",
        "train_ppo",
        "compare_grpo",
        "calibrate_latency",
    )
    """Tables that a file may hold besides: its servers, and defaults of recipes' options (`dmr_gym.command_line`)."""

    task: str = "alfworld"
    task_kwargs: Mapping[str, Any] = field(default_factory=dict)
    precisions: tuple[str, ...] = ("w3", "bf16")
    backend: Mapping[str, Any] = field(default_factory=lambda: {"kind": "embedded"})
    encoder: Mapping[str, Any] = field(default_factory=lambda: {"kind": "minilm"})
    latency: str | Mapping[str, Any] = "alfworld-4b-gptq-w3"
    lambda_: float = 0.1
    max_steps: int = 50
    history_length: int = 64
    sampling: Mapping[str, Any] = field(default_factory=dict)
    cache_dir: str | None = None
    info_text: bool = False
    invalid_action_penalty: float = 0.0
    render_mode: str | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        check_settings(self.precisions, self.lambda_, self.max_steps, self.history_length)
        check_amount("invalid_action_penalty", self.invalid_action_penalty, "reward")

    def kwargs(self) -> dict[str, Any]:
        """The keywords for `PrecisionRoutingEnv`, or for `gymnasium.make` to replace those of an id: plain data."""
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        return values | {"precisions": list(self.precisions)}  # a list, as an EnvSpec read from JSON has it


def check_settings(precisions: object, lambda_: object, max_steps: object, history_length: object) -> None:
    """Check the names and numbers that every environment needs.

    Raises:
        ConfigError: if one is of the wrong type or out of range.
    """
    names = list(precisions) if isinstance(precisions, Sequence) and not isinstance(precisions, str) else []
    if len(names) < 2 or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise ConfigError(f"precisions must be two or more different names, lowest first, got {precisions!r}")
    check_amount("lambda_", lambda_, "reward per second")
    for name, value in (("max_steps", max_steps), ("history_length", history_length)):
        check_count(name, value)


def check_amount(name: str, value: object, unit: str) -> None:
    """Raise ConfigError unless a value is a finite number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) < math.inf:
        raise ConfigError(f"{name} must be a finite number of at least 0 ({unit}), got {value!r}")


def check_count(name: str, value: object) -> None:
    """Raise ConfigError unless a value is a whole number of at least 1, a Python or NumPy integer."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
