"""Copies of packed checkpoints with plain 16-bit weights, for widths that vLLM has no kernel for.

The weights keep the values to which they were rounded, so the answers are those of the packed copy; time and memory are
those of 16 bits.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dmr_gym.backends.checkpoint import checkpoint_digest, load_checkpoint


def dequantized_copy(folder: Path, store: Path) -> Path:
    """Write a copy with bfloat16 weights, unless it is there.

    Args:
        folder: packed checkpoint, as compressed-tensors writes it.
        store: folder for copies, each under the content address of its original.

    Returns:
        Folder of the copy.

    Raises:
        BackendError: the checkpoint cannot be loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    target = store.absolute() / checkpoint_digest(folder)[:20]
    if target.is_dir():
        return target
    packed, _ = load_checkpoint(folder, torch.device("cpu"), torch.bfloat16, "sdpa")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    del config.quantization_config
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    weights = packed.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()}, assign=True)
    plain.tie_weights()
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    plain.save_pretrained(part)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".model", ".txt") and not (part / path.name).exists():
            shutil.copy(path, part / path.name)
    try:
        part.rename(target)
    except OSError:  # somebody else was faster
        shutil.rmtree(part)
    return target
