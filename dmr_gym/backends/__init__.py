"""LLM backends: copies of one base model, one a precision, behind the protocol `dmr_gym.types.Backend`.

Kinds for `make_backend`:

* ``embedded``: the small agents shipped inside the package, computed by `LocalBackend`;
* ``local``: checkpoints of your own, folders or hub ids, computed by `LocalBackend`;
* ``vllm``: models behind vLLM or another OpenAI-compatible server, asked by `VLLMBackend` (docs/serving.md);
* ``scripted``: answers without weights, for tests, examples and continuous integration.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmr_gym.backends.scripted import ScriptedBackend, scripted_from_config
from dmr_gym.config import check_amount, check_count
from dmr_gym.errors import BackendError, ConfigError, MissingDependency
from dmr_gym.factory import build, check_options
from dmr_gym.types import Backend

if TYPE_CHECKING:
    from dmr_gym.backends.local import LocalBackend
    from dmr_gym.backends.vllm import VLLMBackend

__all__ = [
    "LocalBackend",
    "ScriptedBackend",
    "VLLMBackend",
    "check_backend",
    "embedded_precisions",
    "logprob_limit",
    "make_backend",
    "with_world",
]

SERVER_URL = re.compile(r"https?://[^/?#@\s]+(/[^?#@\s]*)?/v1/?")


def __getattr__(name: str) -> Any:
    """Import `LocalBackend` and `VLLMBackend`, and what they need, only when they are asked for."""
    if name == "LocalBackend":
        return _local_backend()
    if name == "VLLMBackend":
        return _vllm_backend()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def make_backend(config: str | Mapping[str, Any], precisions: Sequence[str]) -> Backend:
    """Build a backend from plain data.

    Args:
        config: {"kind": "embedded", "world": "alfworld"} | {"kind": "local", "models": {precision: folder or hub id}}
            | {"kind": "vllm", "model": {precision: name}, "urls": {precision: ["http://127.0.0.1:8001/v1"]}}
            | {"kind": "scripted", "answers": ...}, each with the options of its class; a text is a kind. An
            environment names the world itself, see `with_world`.
        precisions: names in ascending precision; index 0 is the lowest.

    Raises:
        ConfigError: an unknown kind, option or precision; the message lists what is allowed. Also a checkpoint folder
            that is not there; hub ids are looked up on the first call.
        MissingDependency: the kind needs a package that is not installed.
    """
    names = tuple(precisions)
    if isinstance(precisions, str) or not names or len(set(names)) != len(names):
        raise ConfigError(f"precisions must be distinct names, the lowest first, got {precisions!r}")
    return build("backend", _builders(), config, names)


def check_backend(config: str | Mapping[str, Any]) -> None:
    """Refuse what `make_backend` does not know, and build nothing.

    Raises:
        ConfigError: an unknown kind or option; the message lists what is allowed.
    """
    check_options("backend", _builders(), config)


def with_world(config: Any, task: object) -> Any:
    """Name the world of an embedded backend where its configuration does not: the one that the task is.

    Args:
        config: of a backend, as in `make_backend`.
        task: kind of task; a live one does not tell its kind.

    Returns:
        The configuration; what is not of the kind "embedded", or names a world, stays as it is.
    """
    settings = {"kind": config} if isinstance(config, str) else config
    if not isinstance(settings, Mapping) or settings.get("kind") != "embedded" or settings.get("world") is not None:
        return config
    return {**settings, "world": task if isinstance(task, str) else None}


def logprob_limit(backend: Backend) -> int | None:
    """Fewest entries a token that the precisions of a backend can give for KL; None if each gives its whole vocabulary.

    Args:
        backend: one whose servers may limit it, alone or in a cache; any other gives everything.
    """
    inner = getattr(backend, "backend", backend)
    ask = getattr(inner, "logprob_limit", None)
    limits = [ask(name) for name in inner.precisions] if callable(ask) else []
    return min((limit for limit in limits if limit is not None), default=None)


def embedded_precisions(world: str | None) -> tuple[str, ...]:
    """Return the precisions whose weights this installation carries for a world, sorted by name.

    Raises:
        ConfigError: no world, or no weights for it; the message lists the worlds there are.
    """
    from importlib.resources import files

    root = files("dmr_gym") / "weights"
    worlds = {entry.name: entry for entry in root.iterdir() if entry.is_dir()} if root.is_dir() else {}
    if world is None:
        raise ConfigError(
            "backend kind 'embedded' needs the option world, which a live task cannot fill in; this installation "
            f"carries {sorted(worlds)}"
        )
    if not isinstance(world, str) or world not in worlds:
        raise ConfigError(f"no embedded weights for world {world!r}; this installation carries {sorted(worlds)}")
    return tuple(sorted(entry.name for entry in worlds[world].iterdir() if (entry / "config.json").is_file()))


def _builders() -> dict[str, Callable[..., Backend]]:
    return {"embedded": _embedded, "local": _local, "scripted": scripted_from_config, "vllm": _vllm}


def _local_backend() -> type[LocalBackend]:
    for package in ("torch", "transformers", "safetensors"):
        try:
            __import__(package)
        except ImportError as error:
            raise MissingDependency(package, "", "LocalBackend") from error
    from dmr_gym.backends.local import LocalBackend

    return LocalBackend


def _vllm_backend() -> type[VLLMBackend]:
    try:
        import httpx  # noqa: F401 - its absence is reported with the extra that brings it
    except ImportError as error:
        raise MissingDependency("httpx", "vllm", "VLLMBackend") from error
    from dmr_gym.backends.vllm import VLLMBackend

    return VLLMBackend


def _embedded(
    precisions: tuple[str, ...],
    *,
    world: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    max_batch_size: int = 16,
    prefix_cache_mib: int = 512,
) -> Backend:
    available = embedded_precisions(world)
    unknown = [name for name in precisions if name not in available]
    if unknown:
        raise ConfigError(
            f"no embedded weights for precision {', '.join(map(repr, unknown))} in world {world!r}; "
            f"this installation carries {list(available)}"
        )
    backend = _local_backend()
    models = {name: f"embedded:{world}/{name}" for name in precisions}
    _check_folders(models)
    return backend(
        models,
        device=device,
        dtype=dtype,
        max_batch_size=max_batch_size,
        prefix_cache_mib=prefix_cache_mib,
    )


def _local(
    precisions: tuple[str, ...],
    *,
    models: Mapping[str, str],
    device: str = "cpu",
    dtype: str | None = None,
    max_batch_size: int = 16,
    prefix_cache_mib: int = 512,
    chat_template_options: Mapping[str, Any] | None = None,
) -> Backend:
    if not isinstance(models, Mapping) or set(precisions) - set(models):
        raise ConfigError(
            f"models must map each of {list(precisions)} to a checkpoint folder or hub id, got {models!r}"
        )
    backend = _local_backend()
    chosen = {name: models[name] for name in precisions}
    _check_folders(chosen)
    return backend(
        chosen,
        device=device,
        dtype=dtype,
        max_batch_size=max_batch_size,
        prefix_cache_mib=prefix_cache_mib,
        chat_template_options=chat_template_options,
    )


def _vllm(
    precisions: tuple[str, ...],
    *,
    model: Mapping[str, str],
    urls: Mapping[str, Sequence[str]],
    timeout_s: float = 120.0,
    max_retries: int = 5,
    recovery_s: float = 300.0,
    max_concurrency: int = 64,
    api_key_env: str = "",
    chat_template_options: Mapping[str, Any] | None = None,
    cache_salt: str = "",
) -> Backend:
    for option, table in (("model", model), ("urls", urls)):
        if not isinstance(table, Mapping) or set(precisions) - set(table):
            raise ConfigError(f"{option} must have an entry for each of {list(precisions)}, got {table!r}")
    for name in precisions:
        addresses = urls[name]
        if not isinstance(model[name], str) or not model[name]:
            raise ConfigError(f"model.{name} must be the name under which its server knows it, got {model[name]!r}")
        if isinstance(addresses, str) or not isinstance(addresses, Sequence) or not addresses:
            raise ConfigError(f'urls.{name} must be a list such as ["http://127.0.0.1:8001/v1"], got {addresses!r}')
        for url in addresses:
            # One with a password in it would show it in every message.
            if not isinstance(url, str) or not SERVER_URL.fullmatch(url):
                shown = re.sub(r"//[^/]*@", "//***@", url) if isinstance(url, str) else url
                raise ConfigError(
                    f"urls.{name} must be addresses like http://127.0.0.1:8001/v1, without a password (api_key_env "
                    f"names a variable for it), got {shown!r}"
                )
        if len(set(addresses)) < len(addresses):
            raise ConfigError(f"urls.{name} has an address twice: {list(addresses)}")
    check_count("max_concurrency", max_concurrency)
    for option, value, unit in (("timeout_s", timeout_s, "s"), ("recovery_s", recovery_s, "s")):
        check_amount(option, value, unit)
    if timeout_s <= 0 or type(max_retries) is not int or max_retries < 0:
        raise ConfigError(
            f"expected timeout_s > 0 and a whole number max_retries >= 0, got {timeout_s!r} and {max_retries!r}"
        )
    if not isinstance(api_key_env, str):
        raise ConfigError(f"api_key_env must be the name of an environment variable, got {type(api_key_env).__name__}")
    if not isinstance(cache_salt, str):
        raise ConfigError(f"cache_salt must be a text, got {cache_salt!r}")
    backend = _vllm_backend()
    from dmr_gym.backends._replicas import Patience

    return backend(
        {name: model[name] for name in precisions},
        {name: urls[name] for name in precisions},
        Patience(float(timeout_s), max_retries, float(recovery_s)),
        max_concurrency=max_concurrency,
        api_key_env=api_key_env,
        chat_template_options=chat_template_options,
        cache_salt=cache_salt,
    )


def _check_folders(models: Mapping[str, str | os.PathLike[str]]) -> None:
    """Find every checkpoint that is no hub id; its weights load on the first call of their precision."""
    from dmr_gym.backends.checkpoint import HUB_ID, resolve_checkpoint

    for name, model in models.items():
        if not isinstance(model, str | os.PathLike):
            raise ConfigError(f"models[{name!r}] must be a checkpoint folder or hub id, got {model!r}")
        place, folder = str(model), Path(model).expanduser()
        named_as_hub_id = isinstance(model, str) and HUB_ID.fullmatch(place) and not place.startswith(".")
        if named_as_hub_id and not folder.is_dir():
            continue
        if not place.startswith("embedded:"):
            place = str(folder.absolute())  # what starts at the root is never taken for a hub id
        try:
            resolve_checkpoint(place)
        except BackendError as error:
            raise ConfigError(f"models[{name!r}]: {error}") from error
