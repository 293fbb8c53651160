"""Checkpoints on disk: where they are, what they are, and how they become a model.

Only safetensors weights are read and no code of a checkpoint is run. Compressed-tensors checkpoints (W3, W4, W8) are
dequantized once, at load: their weights stay on the quantization grid and every forward pass is a plain matrix product.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from dmr_gym.errors import BackendError, ConfigError, MissingDependency

WEIGHTS = "*.safetensors"
CONTENT = ("*.json", "*.jinja", "*.model", WEIGHTS, "*.txt")
REPORT = "quantization.json"
HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?")


def resolve_checkpoint(model: str, weights: bool = True) -> Path:
    """Find the folder of a checkpoint.

    Args:
        model: a folder, "embedded:<name>" for one inside this package, or a hub id "org/name" or "org/name@revision".
        weights: False downloads configuration and tokenizer of a hub id alone, kilobytes of gigabytes.

    Raises:
        BackendError: there is no such folder, the hub cannot deliver it, or it has no safetensors weights.
    """
    if model.startswith("embedded:"):
        folder = Path(str(files("dmr_gym"))) / "weights" / model.removeprefix("embedded:")
        hint = "reinstall dmr-gym, or name a checkpoint folder"
    elif Path(model).expanduser().is_dir() or not HUB_ID.fullmatch(model):
        folder = Path(model).expanduser()
        hint = 'give an existing folder, a hub id "org/name", or "embedded:<name>"'
    else:
        folder, hint = _download(model, weights), ""
    if not (folder / "config.json").is_file():
        raise BackendError(f"checkpoint {model!r}: no config.json in {folder}; {hint}")
    if (weights or hint) and not list(folder.glob(WEIGHTS)):
        found = sorted(path.name for path in folder.glob("*.bin")) or "no weights"
        raise BackendError(
            f"checkpoint {model!r}: expected *.safetensors in {folder}, found {found}; "
            "pickled weights are refused: convert them with save_pretrained"
        )
    return folder


def checkpoint_digest(folder: Path) -> str:
    """Return the sha256 over configuration, tokenizer and weights of a checkpoint folder.

    Each file is read once a process, and again when its size or modification time has changed.
    """
    # A report of how a copy was made, with its seconds, is no part of the copy.
    paths = sorted({p for pattern in CONTENT for p in folder.glob(pattern) if p.is_file() and p.name != REPORT})
    listing = [(path.name, _file_sha256(path, path.stat().st_size, path.stat().st_mtime_ns)) for path in paths]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def load_checkpoint(folder: Path, device: torch.device, dtype: torch.dtype, attention: str) -> tuple[Any, Any]:
    """Load model and tokenizer for inference.

    Args:
        folder: checkpoint folder.
        device: where the weights go.
        dtype: compute dtype; weights are converted to it.
        attention: name of a registered attention function.

    Raises:
        BackendError: files are damaged or do not belong together, or need code of the checkpoint.
        MissingDependency: a quantized checkpoint needs compressed-tensors.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    try:
        if _quantization_method(folder) == "compressed-tensors":
            options["quantization_config"] = _dequantize_at_load()
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **options,
            )
    except MissingDependency:
        raise
    except Exception as error:  # loaders raise a dozen kinds; the cause stays attached
        raise BackendError(
            f"checkpoint {folder} cannot be loaded ({type(error).__name__}: {error}); expected a folder written by "
            "save_pretrained, whose weights safetensors can open"
        ) from error
    wrong = {key: sorted(map(str, report[key])) for key in ("missing_keys", "mismatched_keys") if report.get(key)}
    if wrong:
        raise BackendError(
            f"checkpoint {folder} does not hold all weights of its config.json: {wrong}; export it again"
        )
    model = model.to(device).eval()
    _unwrap_quantized(model, device)
    if dtype == torch.float32:
        _fuse_norms(model)
    return model, tokenizer


@dataclass(frozen=True, slots=True)
class Layout:
    """What a checkpoint's model is made of.

    Attributes:
        architecture: class of the model, such as "Qwen3ForCausalLM".
        linear: (outputs, inputs) of each Linear layer but the output head, by name.
        head: name of the output head.
        head_shape: (vocabulary, width) of the output head.
        other_parameters: number of all parameters outside ``linear``; what is tied counts once.
        dtype: of the weights.
    """

    architecture: str
    linear: dict[str, tuple[int, int]]
    head: str
    head_shape: tuple[int, int]
    other_parameters: int
    dtype: torch.dtype

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        return self.other_parameters + sum(rows * columns for rows, columns in self.linear.values())


def read_layout(folder: Path) -> Layout:
    """Lay a model out from its ``config.json`` alone, without its weights.

    Raises:
        ConfigError: the checkpoint is quantized, or is of no causal language model that transformers knows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if _quantization_method(folder) is not None:
        raise ConfigError(f"{folder} is quantized already: start from its full-precision checkpoint")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as error:
        raise ConfigError(
            f"{folder}: expected a causal language model that transformers knows without code of the checkpoint, "
            f"found a config.json that gives {type(error).__name__}: {error}"
        ) from error
    head = model.get_output_embeddings()
    head_name = next((name for name, module in model.named_modules() if module is head), "lm_head")
    layers = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    shapes = {name: (m.out_features, m.in_features) for name, m in layers.items()}
    total = sum(parameter.numel() for parameter in model.parameters())
    return Layout(
        architecture=type(model).__name__,
        linear=shapes,
        head=head_name,
        head_shape=(head.weight.shape[0], head.weight.shape[1]),
        other_parameters=total - sum(rows * columns for rows, columns in shapes.values()),
        dtype=config.dtype or torch.float32,
    )


def _download(model: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = model.partition("@")
    patterns = [pattern for pattern in CONTENT if weights or pattern != WEIGHTS]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # network, authentication, unknown repository: all of them mean "not here"
        raise BackendError(
            f"hub model {model!r} is not available ({type(error).__name__}: {error}); check the name and the network, "
            f"unset HF_HUB_OFFLINE, or give a checkpoint folder: `hf download {name} --local-dir FOLDER` makes one "
            "where there is a network"
        ) from error


@cache
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash one file; size and time are arguments so that a changed file is another cache entry."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _quantization_method(folder: Path) -> str | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return (config.get("quantization_config") or {}).get("quant_method")


def _dequantize_at_load() -> Any:
    try:
        import compressed_tensors  # noqa: F401 - transformers would report its absence less clearly
    except ImportError as error:
        raise MissingDependency("compressed-tensors", "", "a quantized checkpoint") from error
    from transformers import CompressedTensorsConfig

    return CompressedTensorsConfig(dequantize=True)


def _unwrap_quantized(model: torch.nn.Module, device: torch.device) -> None:
    """Remove the fake-quantization wrapper from layers that quantize weights only, and the offloading of weights.

    Dequantized weights already lie on the grid; the wrapper would cost half the time of a small layer at each call.
    Schemes with quantized activations (W8A8) keep it, because it rounds the inputs.
    """
    for module in model.modules():
        parameters: Any = module._parameters
        if not isinstance(parameters, dict) and device.type == "cpu":
            # A mapping that would move weights from another device at each access: there is none.
            module._parameters = dict(parameters)
        scheme: Any = getattr(module, "quantization_scheme", None)
        dequantized = getattr(getattr(module, "quantization_status", None), "value", None) == "decompressed"
        if dequantized and scheme.input_activations is None and scheme.output_activations is None:
            module.__dict__.pop("forward", None)


def _fuse_norms(model: torch.nn.Module) -> None:
    """Let RMS norms run as four operators; decoding small models is bound by the number of operators.

    PyTorch's own takes ten on a CPU, and twice as long.

    Only in float32: there, both ways round alike.
    """
    for module in model.modules():
        epsilon = getattr(module, "variance_epsilon", None)
        if type(module).__name__.endswith("RMSNorm") and isinstance(epsilon, float):
            module.forward = _FusedNorm(module.weight, epsilon)  # type: ignore[arg-type]


class _FusedNorm:
    """x / sqrt(mean(x^2) + epsilon) * weight, as x / hypot(|x|, sqrt(d epsilon)) * (sqrt(d) weight)."""

    def __init__(self, weight: torch.nn.Parameter, epsilon: float) -> None:
        width = weight.numel()
        self.weight = weight.detach() * width**0.5
        self.floor = torch.tensor((width * epsilon) ** 0.5, device=weight.device)

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(hidden_states, dim=-1, keepdim=True)
        return torch.div(hidden_states, torch.hypot(length, self.floor)).mul_(self.weight)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars and the notice that a checkpoint's quantization settings win over ours, which is intended."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        yield
