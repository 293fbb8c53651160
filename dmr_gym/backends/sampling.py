"""What every backend does with `SamplingParams`, whatever computes the answer."""

from __future__ import annotations

import hashlib

from dmr_gym.errors import BackendError
from dmr_gym.types import SamplingParams


def check_sampling(sampling: SamplingParams) -> None:
    """Refuse settings outside their range.

    Raises:
        BackendError: temperature < 0, top_p outside (0, 1], or max_tokens < 1.
    """
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_tokens < 1:
        raise BackendError(
            f"sampling needs temperature >= 0, 0 < top_p <= 1 and max_tokens >= 1, got temperature="
            f"{sampling.temperature}, top_p={sampling.top_p}, max_tokens={sampling.max_tokens}"
        )


def draw_seed(seed: int, sample_index: int, prompt: str) -> int:
    """A seed in [0, 2^63) that depends on seed, sample index and prompt, not on precision, batch or order of calls."""
    digest = hashlib.sha256(f"{seed}/{sample_index}/".encode() + prompt.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1
