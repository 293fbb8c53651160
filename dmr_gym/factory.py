"""Plain data to live objects: the one rule by which every part reads its configuration.

A configuration is a mapping with a "kind" and options, or the kind alone as text. The options are the keyword-only
parameters of the kind's builder, so the signature is the list of what is allowed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dmr_gym.config import unknown_name
from dmr_gym.errors import ConfigError

T = TypeVar("T")


def check_options(
    part: str, builders: Mapping[str, Callable[..., T]], config: str | Mapping[str, Any]
) -> tuple[Callable[..., T], dict[str, Any]]:
    """Find the builder that ``config["kind"]`` names, and its options; nothing is built.

    Args:
        part: what is described, for messages: "backend", "encoder".
        builders: kind -> function with keyword-only options.
        config: plain data with a "kind" and the kind's options; a text is ``{"kind": text}``.

    Raises:
        ConfigError: no mapping, an unknown kind, or an unknown option.
    """
    if isinstance(config, str):
        config = {"kind": config}
    if not isinstance(config, Mapping):
        raise ConfigError(f'{part} must be a mapping with a "kind", got {type(config).__name__}: {config!r}')
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in builders:
        raise ConfigError(unknown_name(f"{part} kind", kind, sorted(builders)))
    options = {name: value for name, value in config.items() if name != "kind"}
    allowed = _allowed(builders[kind])
    for name in options:
        if name not in allowed:
            raise ConfigError(unknown_name(f"option of {part} kind {kind!r}:", name, sorted(allowed)))
    return builders[kind], options


def build(part: str, builders: Mapping[str, Callable[..., T]], config: str | Mapping[str, Any], *args: Any) -> T:
    """Call the builder that ``config["kind"]`` names.

    Args:
        part: what is built, for messages: "backend", "encoder".
        builders: kind -> function of ``*args`` and keyword-only options.
        config: plain data with a "kind" and the kind's options; a text is ``{"kind": text}``.
        *args: passed on before the options.

    Raises:
        ConfigError: no mapping, an unknown kind, an unknown option, or an option without default is missing.
    """
    builder, options = check_options(part, builders, config)
    allowed = _allowed(builder)
    missing = sorted(n for n, p in allowed.items() if p.default is inspect.Parameter.empty and n not in options)
    if missing:
        kind = config if isinstance(config, str) else config["kind"]
        raise ConfigError(f"{part} kind {kind!r} needs the option {', '.join(missing)}")
    return builder(*args, **options)


def _allowed(builder: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(builder).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
