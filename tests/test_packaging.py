"""The installed package: what the wheel holds, what `import dmr_gym` costs, and what it shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

WHEEL_LIMIT_MB = 30
WEIGHTS_LIMIT_MB = 24
IMPORT_LIMIT_S = 0.5
HEAVY = {"alfworld", "llmcompressor", "matplotlib", "sentence_transformers", "textworld", "torch", "transformers"}


def run_python(code: str, cwd: Path) -> str:
    """Run code in a fresh interpreter that finds only what `cwd` and the environment offer."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the checkout without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    assert path.stat().st_size < WHEEL_LIMIT_MB * 1e6
    return zipfile.ZipFile(path)


def test_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile, root: Path) -> None:
    """The wheel has dmr_gym/ as in the checkout, its metadata, and no agents, tests or benchmarks."""
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(root).as_posix()
        for path in (root / "dmr_gym").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected
    assert "dmr_gym/py.typed" in names


def test_wheel_carries_the_licence_and_the_extras(wheel: zipfile.ZipFile) -> None:
    """The metadata names the licence file and every optional dependency group."""
    (metadata_name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    metadata = wheel.read(metadata_name).decode()
    assert any(name.endswith("/licenses/LICENSE") for name in wheel.namelist())
    for extra in ("train", "alfworld", "quantize", "dev"):
        assert f"Provides-Extra: {extra}" in metadata


def test_shipped_weights_stay_small(wheel: zipfile.ZipFile) -> None:
    """All copies of the embedded agents together are at most 24 MB."""
    size = sum(item.file_size for item in wheel.infolist() if item.filename.startswith("dmr_gym/weights/"))
    assert size <= WEIGHTS_LIMIT_MB * 1e6


def test_wheel_imports_from_another_folder(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """The unpacked wheel registers its ids without the checkout in sight."""
    wheel.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import dmr_gym, gymnasium; print(dmr_gym.__file__);"
        " print([spec for spec in gymnasium.registry if spec.startswith('DMR-')])"
    )
    output = run_python(code, tmp_path)
    assert output.startswith(str(tmp_path))
    assert "DMR-ALFWorld-v0" in output


def test_import_loads_nothing_heavy(root: Path) -> None:
    """`import dmr_gym` loads no torch, no model library and no world."""
    code = "import sys, json, dmr_gym; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    loaded = set(json.loads(run_python(code, root)))
    assert not loaded & HEAVY


def test_import_is_fast(root: Path) -> None:
    """`import dmr_gym` costs less than half a second of processor time; the best of three tries counts."""
    code = "import time; start = time.process_time(); import dmr_gym; print(time.process_time() - start)"
    assert min(float(run_python(code, root)) for _ in range(3)) < IMPORT_LIMIT_S


def test_all_lists_the_public_names() -> None:
    """`dmr_gym.__all__` has no double, every name in it exists, and no public name is missing from it."""
    import dmr_gym

    assert len(dmr_gym.__all__) == len(set(dmr_gym.__all__))
    assert [name for name in dmr_gym.__all__ if not hasattr(dmr_gym, name)] == []
    public = {
        name
        for name, value in vars(dmr_gym).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("dmr_gym")
    }
    assert public <= set(dmr_gym.__all__)
