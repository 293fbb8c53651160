"""Imported by the workers of vLLM's servers on a CPU, in their environment: asks Linux for the tile registers of AMX.

Linux kills a process that uses them without having asked ("illegal instruction"). oneDNN asks before it multiplies 16
bits; vLLM's own kernel for 4 bits does not, so a server whose first product is that one dies at its first call.
Elsewhere than on a processor with AMX this does nothing.
"""

from __future__ import annotations

import torch

torch.cpu._init_amx()


class AmxTiles:
    """What ``--worker-extension-cls`` asks for: a base of the worker's class. It adds nothing."""
