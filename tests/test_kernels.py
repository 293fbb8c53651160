"""Which copies are computed with unpacked weights, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import dmr_gym
from dmr_gym.backends.checkpoint import resolve_checkpoint
from dmr_gym.backends.kernels import activation_bits, dequantized_copies, has_kernel, no_kernel, packed_bits
from dmr_gym.config import EnvConfig
from dmr_gym.parts import prices_of

W2, W4 = "dequantized: no kernel for 2-bit weights", "dequantized: unpacked at load"


def test_only_four_and_eight_bits_have_kernels() -> None:
    """What is not packed needs none."""
    assert [bits for bits in range(1, 17) if no_kernel(bits) is None] == [4, 8, 16]
    assert no_kernel(3) == "dequantized: no kernel for 3-bit weights"


@pytest.mark.parametrize("kind", ["embedded", "local"])
def test_copies_in_this_process_are_all_unpacked(kind: str) -> None:
    """Two bits have no kernel anywhere; four have one, but not here; bf16 is as it is."""
    models = {name: f"embedded:alfworld/{name}" for name in ("w2", "w4", "bf16")}
    backend = {"kind": "embedded", "world": "alfworld"} if kind == "embedded" else {"kind": "local", "models": models}
    assert dequantized_copies(backend, tuple(models)) == {"w2": W2, "w4": W4}
    assert dequantized_copies(backend, ("w4", "bf16")) == {"w4": W4}


def test_servers_unpack_only_what_has_no_kernel() -> None:
    """A folder tells its bits; of a model that only the server sees, its name's bits say what may be."""
    folder = {name: str(resolve_checkpoint(f"embedded:alfworld/{name}")) for name in ("w2", "w4", "bf16")}
    assert packed_bits(Path(folder["w2"])) == 2
    assert dequantized_copies({"kind": "vllm", "model": folder}, tuple(folder)) == {"w2": W2}
    remote = {name: f"org/model-{name}" for name in ("w3", "w4", "w16", "bf16")}
    assert dequantized_copies({"kind": "vllm", "model": remote}, tuple(remote)) == {
        "w3": "dequantized, unless its server has a kernel for 3-bit weights"
    }


def test_four_bits_need_avx_512_on_x86_processors_and_eight_need_rounded_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it they have no kernel on the CPU, as 3 bits never have; GPUs and other processors need no flag."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("model name : x\nflags\t\t: fpu avx avx2\n")
    new.write_text("model name : x\nflags\t\t: fpu avx avx2 avx512f\n")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert [has_kernel(4, 16, "cpu", old), has_kernel(4, 16, "cpu", new)] == [False, True]
    assert [has_kernel(4, 16, "cuda", old), has_kernel(4, 16, "cpu", tmp_path / "none")] == [True, True]
    assert [has_kernel(8, 8, "cpu", old), has_kernel(8, 16, "cpu", new), has_kernel(8, 16, "cuda")] == [
        True,
        False,
        True,
    ]
    assert not any(has_kernel(3, 16, device, new) for device in ("cpu", "cuda"))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert has_kernel(4, 16, "cpu", old)


def test_servers_on_a_cpu_unpack_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """W8A16 always, W4 where the processor lacks AVX-512; on a GPU neither."""
    models = {name: f"embedded:alfworld/{name}" for name in ("w4", "w8", "bf16")}
    backend, names = {"kind": "vllm", "model": models}, tuple(models)
    notes = {name: f"dequantized: no kernel for {name[1]}-bit weights on this CPU" for name in ("w4", "w8")}
    assert dequantized_copies(backend, names) == {}
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert dequantized_copies(backend, names, "cpu") == {"w8": notes["w8"]}
    monkeypatch.setattr("dmr_gym.backends.kernels.has_kernel", lambda bits, activations, device: device != "cpu")
    assert dequantized_copies(backend, names, "cpu") == notes


def test_backends_without_weights_have_nothing_to_unpack(tmp_path: Path) -> None:
    """Scripts, trees, and a folder that is not there, which whoever loads it reports."""
    for backend in ({"kind": "scripted", "answers": {"*": "look"}}, {"kind": "trees", "folder": "x"}):
        assert dequantized_copies(backend, ("w2", "bf16")) == {}
    models = {"w2": str(tmp_path), "bf16": "org/model"}
    assert dequantized_copies({"kind": "local", "models": models}, tuple(models)) == {}


def test_the_wall_clock_of_unpacked_copies_is_labelled() -> None:
    """The default pair of ALFWorld by the wall clock; modelled prices keep their own label."""
    settings = dmr_gym.ENV_IDS["DMR-ALFWorld-v0"]
    config = EnvConfig(**settings | {"latency": {"kind": "wall-clock"}})
    assert prices_of(config).label == "wall clock of the calls, w2 dequantized"
    models = {"w8": "embedded:alfworld/w8", "bf16": "embedded:alfworld/bf16"}
    backend = {"kind": "vllm", "model": models, "urls": {}}
    served = EnvConfig(precisions=("w8", "bf16"), backend=backend, latency={"kind": "wall-clock"})
    assert [prices_of(served, device).label for device in ("cuda", "cpu")] == [
        "wall clock of the calls",
        "wall clock of the calls, w8 dequantized",
    ]
    assert prices_of(EnvConfig(**settings)).label == "prices of alfworld-4b-gptq-w3, W3 projected"


def test_activations_have_16_bits_unless_the_layers_round_them(tmp_path: Path) -> None:
    """W8A8 has 8, weight-only copies and models that are not quantized have 16."""
    groups = {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"config_groups": groups}}))
    assert (packed_bits(tmp_path), activation_bits(tmp_path)) == (8, 8)
    assert [activation_bits(resolve_checkpoint(f"embedded:alfworld/{name}")) for name in ("w8", "bf16")] == [16, 16]
