"""Which quantized copies run on kernels of their own, and which are unpacked to 16 bits, with the speed of those.

A latency that was measured of an unpacked copy is not that of its bits, so whatever shows one says `DEQUANTIZED`.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmr_gym.errors import BackendError

KERNEL_BITS = (4, 8)
"""Widths of packed weights that vLLM has kernels for, on GPUs; `has_kernel` knows of CPUs."""

DEQUANTIZED = "dequantized"


def packed_bits(folder: Path) -> int | None:
    """Bits of the packed weights of a checkpoint; None where they are not packed."""
    return _fewest_bits(folder, "weights")


def activation_bits(folder: Path) -> int:
    """Bits to which a checkpoint's layers round what they are given; 16 where they do not."""
    return _fewest_bits(folder, "input_activations") or 16


def _fewest_bits(folder: Path, part: str) -> int | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    groups = (config.get("quantization_config") or {}).get("config_groups") or {}
    found = [(group.get(part) or {}).get("num_bits") for group in groups.values()]
    return min((bits for bits in found if isinstance(bits, int)), default=None)


def no_kernel(bits: int) -> str | None:
    """How packed weights of some bits run where no kernel is known for them, in words; None where there is one."""
    return None if bits in KERNEL_BITS or bits >= 16 else f"{DEQUANTIZED}: no kernel for {bits}-bit weights"


def has_kernel(bits: int, activations: int, device: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether vLLM computes with packed weights of so many bits on a device of this machine.

    On a CPU it has none for 8 bits with activations of 16, and a server would not start. The one for 4 bits needs
    AVX-512 on x86 processors: without, a server starts, and dies at its first call.

    Args:
        bits: of a weight.
        activations: bits of what the layers are given.
        device: "cuda" or "cpu".
        cpuinfo: where Linux tells what the processor can do.
    """
    if no_kernel(bits) is not None:
        return False
    if device != "cpu":
        return True
    if bits == 8:
        return activations == 8
    if platform.machine() != "x86_64" or not cpuinfo.is_file():
        return True
    return "avx512f" in cpuinfo.read_text(encoding="utf-8").split()


def served_dequantized(folder: Path, device: str) -> str | None:
    """Why servers are given a checkpoint with its weights unpacked, in words; None where vLLM takes it as it is."""
    bits = packed_bits(folder)
    if bits is None or has_kernel(bits, activation_bits(folder), device):
        return None
    return no_kernel(bits) or f"{DEQUANTIZED}: no kernel for {bits}-bit weights on this CPU"


def dequantized_copies(backend: Mapping[str, Any], precisions: Sequence[str], device: str = "cuda") -> dict[str, str]:
    """The precisions whose weights a backend unpacks to 16 bits, each with the reason.

    The backends "embedded" and "local" unpack every copy at load. vLLM computes with the packed weights where it has a
    kernel. Nothing is said of a copy that only its server can see, unless its name begins with bits that have none.

    Args:
        backend: its configuration as plain data; an embedded one names its world.
        precisions: names.
        device: that servers compute on, "cuda" or "cpu".
    """
    kind = backend.get("kind")
    models = dict(backend.get("model" if kind == "vllm" else "models") or {})
    if kind == "embedded":
        models = {name: f"embedded:{backend['world']}/{name}" for name in precisions}
    notes = {name: _note(kind, name, str(models[name]), device) for name in precisions if name in models}
    return {name: note for name, note in notes.items() if note is not None}


def _note(kind: object, precision: str, model: str, device: str) -> str | None:
    folder = _folder_of(model)
    if folder is not None and kind == "vllm":
        return served_dequantized(folder, device)
    bits = None if folder is None else packed_bits(folder)
    if bits is not None:
        return no_kernel(bits) or f"{DEQUANTIZED}: unpacked at load"
    named = re.match(r"w(\d+)", precision)
    if kind == "vllm" and named and no_kernel(int(named[1])):
        return f"{DEQUANTIZED}, unless its server has a kernel for {named[1]}-bit weights"
    return None


def _folder_of(model: str) -> Path | None:
    """Folder of a checkpoint that lies here; None for one that does not."""
    from dmr_gym.backends.checkpoint import resolve_checkpoint

    if not model.startswith("embedded:") and not Path(model).expanduser().is_dir():
        return None
    try:
        return resolve_checkpoint(model)
    except BackendError:  # whoever loads it says what is wrong
        return None
