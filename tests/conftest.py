"""Fixtures, the report header, and limits that hold for every test.

Tests need no network and no data set. Those that compare with recorded or official data take the fixtures
``shared_data`` and ``shared_conformance``, which skip with a reason where the folder is absent.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fake_openai import FakeServer, Serve

    from dmr_gym.backends import LocalBackend, VLLMBackend

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DMR_GYM_SHARED") or ROOT.parent / "shared")
HEADER_PACKAGES = ("torch", "transformers", "compressed-tensors", "gymnasium", "numpy", "sentence-transformers")

# Set before anything imports torch or a hub client, both of which read them once: more threads than cores make small
# models slower, forked tokenizer threads warn, and a test that reaches for a hub has to fail rather than wait.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, min(2, (os.cpu_count() or 1) // _WORKERS))))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def pytest_report_header() -> list[str]:
    """Name the versions that results depend on, and where real data is looked for."""
    versions = ", ".join(f"{package} {_version(package)}" for package in HEADER_PACKAGES)
    return [
        f"{platform.python_implementation()} {platform.python_version()}, {versions}",
        f"threads: {os.environ['OMP_NUM_THREADS']}, real data: {SHARED if SHARED.is_dir() else 'absent'}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked gpu where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _shared_folder(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set DMR_GYM_SHARED to the folder that has {name}/")
    return folder


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    """Undo what a recipe sets: two workers with two threads each on two cores are ten times slower."""
    torch = sys.modules.get("torch")
    before = int(os.environ["OMP_NUM_THREADS"]) if torch is None else torch.get_num_threads()
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the official benchmark data (alfworld/, webshop/); skips where it is absent."""
    return _shared_folder("data")


@pytest.fixture(scope="session")
def shared_conformance() -> Path:
    """The folder with episodes recorded from the original environments; skips where it is absent."""
    return _shared_folder("conformance")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of two random checkpoints, "low" and "high"; a test that changes one changes a copy."""
    from backend_contract import write_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    return {name: str(write_checkpoint(root / name, seed)) for seed, name in enumerate(("low", "high"))}


@pytest.fixture(scope="module")
def shared_local(checkpoints: dict[str, str]) -> LocalBackend:
    """One loaded backend for tests that leave nothing behind that matters."""
    from dmr_gym.backends import LocalBackend

    return LocalBackend(checkpoints)


@pytest.fixture(scope="module")
def cold_local(checkpoints: dict[str, str]) -> LocalBackend:
    """Reuses nothing and computes two requests at a time."""
    from dmr_gym.backends import LocalBackend

    return LocalBackend(checkpoints, prefix_cache_mib=0, max_batch_size=2)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start stand-ins of vLLM, which end with the test."""
    from fake_openai import FakeServer

    servers: list[FakeServer] = []

    def start(*args: Any, **kwargs: Any) -> FakeServer:
        servers.append(FakeServer(*args, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def connect() -> Iterator[Callable[..., VLLMBackend]]:
    """Make backends that close with the test: precisions "low" and "high", each a server or a list of servers."""
    from dmr_gym.backends import VLLMBackend
    from dmr_gym.backends._replicas import Patience

    backends: list[VLLMBackend] = []
    quick = Patience(timeout_s=10.0, max_retries=2, recovery_s=10.0, backoff_s=0.01)

    def make(*servers: FakeServer | list[FakeServer], patience: Patience = quick, **options: Any) -> VLLMBackend:
        groups = [entry if isinstance(entry, list) else [entry] for entry in servers]
        names = ("low", "high")[: len(groups)]
        model = {name: group[0].model for name, group in zip(names, groups, strict=True)}
        urls = {name: [server.url for server in group] for name, group in zip(names, groups, strict=True)}
        backends.append(VLLMBackend(model, urls, patience, **options))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()
