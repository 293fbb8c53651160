"""Imported by the workers of vLLM's servers on a CPU, in their environment: asks Linux for the tile registers of AMX.

Linux kills a process that uses them without having asked ("illegal instruction"). oneDNN asks before it multiplies 16
bits; vLLM's own kernel for 4 bits does not, so a server whose first product is that one dies at its first call.
Elsewhere than on a processor with AMX this does nothing.
"""

from __future__ import annotations

import torch

if not torch.cpu._init_amx() and torch.cpu._is_amx_tile_supported():
    raise RuntimeError(
        "this processor has AMX, but Linux does not give this process its tile registers, and would kill it in vLLM's "
        "kernel for 4 bits: use Linux 5.16 or later, outside a sandbox that forbids arch_prctl"
    )


class AmxTiles:
    """What ``--worker-extension-cls`` asks for: a base of the worker's class. It adds nothing."""
