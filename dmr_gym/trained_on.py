"""What a router learnt from, kept in its file, and whether it fits the environment that it shall decide in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmr_gym.config import EnvConfig
from dmr_gym.encoders import make_encoder
from dmr_gym.errors import ConfigError


def record(
    *,
    env_id: str,
    panel: str,
    precisions: Sequence[str],
    embedding_dim: int,
    encoder: str,
    models: Mapping[str, str],
    history_length: int,
    steps: str = "all",
) -> dict[str, Any]:
    """Return the record as plain data.

    Args:
        env_id: registered id of the environment.
        panel: of tasks.
        precisions: names in ascending order.
        embedding_dim: width D of the step embeddings.
        encoder: digest of the encoder.
        models: digest of each precision's model.
        history_length: rows L of the observation.
        steps: which steps it learnt from, see `dmr_gym.kl.counted_steps`.
    """
    return {
        "env_id": env_id,
        "panel": panel,
        "precisions": list(precisions),
        "embedding_dim": embedding_dim,
        "encoder": encoder,
        "models": dict(models),
        "history_length": history_length,
        "steps": steps,
    }


def environment_record(env_id: str, panel: str, config: EnvConfig, models: Mapping[str, str]) -> dict[str, Any]:
    """Return the `record` of training in an environment, from its keywords and the digests of its models."""
    encoder = make_encoder(config.encoder)
    return record(
        env_id=env_id,
        panel=panel,
        precisions=config.precisions,
        embedding_dim=encoder.dim,
        encoder=encoder.digest,
        models=models,
        history_length=config.history_length,
    )


def unlearnt_types(trained_on: Mapping[str, Any]) -> tuple[str, ...]:
    """Types of steps that a router has learnt nothing of, and that the paper sends to the highest precision unasked.

    Args:
        trained_on: its `record`; one without a word on steps is taken to have learnt from all.
    """
    return ("search",) if trained_on.get("steps") == "click" else ()


def check(trained_on: Mapping[str, Any], here: Mapping[str, Any], max_steps: int) -> list[str]:
    """Compare a router's record with the environment's.

    Args:
        trained_on: of the router; empty where nothing is known.
        here: `record` of the environment that the router shall decide in.
        max_steps: step cap of that environment.

    Returns:
        Warnings, one line each: differences under which the router still decides, but has not learnt to.

    Raises:
        ConfigError: other precisions, or step embeddings of another width or encoder.
    """
    if not trained_on:
        return ["the router has no record of what it was trained on, so nothing can be compared"]
    for key, what, way_out in (
        ("precisions", "the precisions", "set the environment's precisions to these"),
        ("embedding_dim", "step embeddings of width", "use the encoder that it was trained with"),
        ("encoder", "step embeddings of the encoder with digest", "use the encoder that it was trained with"),
    ):
        if trained_on[key] != here[key]:
            raise ConfigError(
                f"the router was trained on {what} {trained_on[key]}, but the environment has {here[key]}: {way_out}, "
                "or train a router for this environment (agents/collect_kl.py, agents/train_kl_st.py)"
            )
    warnings = []
    changed = [name for name in here["precisions"] if trained_on["models"].get(name) != here["models"][name]]
    if changed:
        warnings.append(f"the router was trained on other models of {', '.join(changed)}")
    if trained_on["env_id"] != here["env_id"]:
        warnings.append(f"the router was trained on {trained_on['env_id']}, not on {here['env_id']}")
    if here["history_length"] < min(max_steps, trained_on["history_length"]):
        warnings.append(
            f"the router was trained on windows of {trained_on['history_length']} rows "
            f"and sees {here['history_length']}"
        )
    return warnings
