"""Importing this makes the last bits of hashed embeddings depend on the batch they are computed in, as MiniLM's do."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from dmr_gym.encoders import HashEncoder
from dmr_gym.types import FloatArray

steady = HashEncoder.encode


def encode(self: HashEncoder, texts: Sequence[str]) -> FloatArray:
    """The same vectors up to 256 units in the last place shorter, a number that the whole batch decides."""
    shorter = hashlib.sha256("\n".join(texts).encode()).digest()[0]
    return steady(self, texts) * np.float32(1 - shorter * 2.0**-24)


HashEncoder.encode = encode
