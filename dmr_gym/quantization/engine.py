"""llmcompressor behind one function: a checkpoint and token ids in, a folder with the packed copy out."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from dmr_gym.errors import ConfigError, MissingDependency
from dmr_gym.quantization.settings import Settings


def check_llmcompressor() -> None:
    """Raises MissingDependency where llmcompressor is not installed."""
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
    try:
        import llmcompressor  # noqa: F401 - its absence is to be one sentence, not a traceback
    except ImportError as error:
        raise MissingDependency("llmcompressor", "quantize", "agents/quantize.py") from error


def check_awq(architecture: str, layers: Sequence[str]) -> None:
    """Refuse AWQ for a model whose layers llmcompressor cannot pair with what comes before them.

    Args:
        architecture: class of the model.
        layers: names of its Linear layers.

    Raises:
        ConfigError: llmcompressor has no mappings for the architecture, and one of its defaults fits no layer.
    """
    from llmcompressor.modifiers.transform.awq.dynamic_mappings import AWQ_DYNAMIC_MAPPING_REGISTRY
    from llmcompressor.modifiers.transform.awq.mappings import AWQ_MAPPING_REGISTRY, default_mappings

    if architecture in AWQ_DYNAMIC_MAPPING_REGISTRY or architecture in AWQ_MAPPING_REGISTRY:
        return
    patterns = [name.removeprefix("re:") for mapping in default_mappings for name in mapping.balance_layers]
    if not all(any(re.match(pattern, layer) for layer in layers) for pattern in patterns):
        raise ConfigError(
            f"llmcompressor does not know which layers of {architecture} AWQ may scale together: take --method gptq"
        )


def quantize(
    settings: Settings, source: Path, tokenizer: Any, rows: Sequence[Sequence[int]], head: str, out: Path
) -> None:
    """Save a packed copy of a checkpoint.

    Args:
        settings: method, scheme and group size.
        source: folder of the checkpoint.
        tokenizer: saved with the copy.
        rows: token ids of the calibration texts; none for a method without calibration.
        head: name of the output head, which stays as it is.
        out: folder of the copy.
    """
    from datasets import Dataset
    from llmcompressor import oneshot, reset_session
    from transformers import AutoModelForCausalLM

    arguments: dict[str, Any] = {"pipeline": "datafree"}
    if rows:
        arguments = {
            "dataset": Dataset.from_list([{"input_ids": list(row)} for row in rows]),
            "num_calibration_samples": len(rows),
            "max_seq_length": settings.max_length,
            "shuffle_calibration_samples": False,  # sums depend on the order: the same texts, the same copy
        }
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype="auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
    )
    with unpinned_without_accelerator(), warnings.catch_warnings():
        # Said of every model on a CPU; what it warns of is a checkpoint larger than the memory.
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        oneshot(model=model, tokenizer=tokenizer, recipe=modifiers(settings, head), output_dir=str(out), **arguments)
    reset_session()  # it would keep the model in memory


def modifiers(settings: Settings, head: str) -> list[Any]:
    """The llmcompressor modifiers of a method and scheme: every Linear layer but the output head."""
    from compressed_tensors.quantization import QuantizationArgs, preset_name_to_scheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    scheme = preset_name_to_scheme(settings.scheme, ["Linear"])
    strategy = "channel" if settings.group_size is None else "group"
    scheme.weights = QuantizationArgs(
        num_bits=settings.bits, type="int", symmetric=True, strategy=strategy, group_size=settings.group_size
    )
    arguments: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": [head]}
    if settings.method == "gptq":
        return [GPTQModifier(**arguments)]
    return [*([AWQModifier()] if settings.method == "awq" else []), QuantizationModifier(**arguments)]


@contextlib.contextmanager
def unpinned_without_accelerator() -> Iterator[None]:
    """Let AWQ run on a machine without an accelerator.

    llmcompressor 0.14 pins the activations that AWQ caches, whatever device they go to, and pinning raises a
    RuntimeError where PyTorch finds no accelerator. Pinned memory serves only copies to one, so it is left out here.
    """
    from llmcompressor.pipelines.cache import IntermediatesCache

    original = IntermediatesCache.pin_memory
    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None
    try:
        yield
    finally:
        IntermediatesCache.pin_memory = original
