"""Checkpoints: content addresses, refusals, and packed weights that become what they stand for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from backend_contract import PROMPT
from safetensors.torch import load, save_file

from dmr_gym.backends import LocalBackend
from dmr_gym.backends.checkpoint import read_layout
from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.kl import token_kl
from dmr_gym.types import DistributionRequest, Message, Request, SamplingParams

GREEDY = SamplingParams(max_tokens=10, stop=())


def test_digest_follows_the_files(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """A moved checkpoint keeps its digest; a changed weight, tokenizer or template changes it."""
    folder = Path(shutil.copytree(checkpoints["low"], tmp_path / "moved"))
    before = LocalBackend({"a": str(folder)}).digest("a")
    assert before == LocalBackend(checkpoints).digest("low")
    (folder / "README.md").write_text("notes")
    assert LocalBackend({"a": str(folder)}).digest("a") == before
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    changed = LocalBackend({"a": str(folder)})
    assert changed.digest("a") != before
    other = LocalBackend({"a": str(folder)}, chat_template_options={"enable_thinking": False})
    assert other.digest("a") != changed.digest("a")


def test_missing_checkpoints_say_so(tmp_path: Path) -> None:
    """Folders, embedded names and hub ids that are not there are told apart."""
    cases = {
        str(tmp_path / "nowhere"): "no config.json in",
        "embedded:mars/w3": "reinstall dmr-gym",
        "nobody/nothing": "check the name and the network",
    }
    for model, message in cases.items():
        with pytest.raises(BackendError, match=message):
            LocalBackend({"a": model}).generate([Request(PROMPT, "a")])
        with pytest.raises(BackendError, match=message):
            LocalBackend({"a": model}).digest("a")


def test_pickled_weights_are_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """A checkpoint without safetensors is not opened."""
    folder = Path(shutil.copytree(checkpoints["low"], tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BackendError, match=r"found \['pytorch_model.bin'\]; pickled weights are refused"):
        LocalBackend({"a": str(folder)}).generate([Request(PROMPT, "a")])


def test_damaged_and_incomplete_weights_are_refused(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """A truncated file and a missing tensor are errors, never random weights."""
    folder = Path(shutil.copytree(checkpoints["low"], tmp_path / "damaged"))
    weights = folder / "model.safetensors"
    tensors = load(weights.read_bytes())
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(BackendError, match="cannot be loaded") as caught:
        LocalBackend({"a": str(folder)}).generate([Request(PROMPT, "a")])
    assert caught.value.__cause__ is not None
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(BackendError, match=r"does not hold all weights.*up_proj"):
        LocalBackend({"a": str(folder)}).generate([Request(PROMPT, "a")])


def test_checkpoint_code_is_not_run(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """A checkpoint that asks for its own Python code is refused, and the code stays unread."""
    folder = Path(shutil.copytree(checkpoints["low"], tmp_path / "code"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BackendError, match="cannot be loaded"):
        LocalBackend({"a": str(folder)}).generate([Request(PROMPT, "a")])
    assert not (tmp_path / "ran").exists()


def test_models_without_chat_template_refuse_messages(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """The error says which kind of prompt works."""
    folder = Path(shutil.copytree(checkpoints["low"], tmp_path / "plain"))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BackendError, match="use text prompts"):
        LocalBackend({"a": str(folder)}).generate([Request((Message("user", "hi"),), "a")])


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Write codes (rows, columns) in 0..2**bits-1 into int32 words, low bits first, as a stream without gaps."""
    rows = []
    for row in codes.tolist():
        stream = sum(code << (bits * i) for i, code in enumerate(row))
        words = [(stream >> (32 * i)) & 0xFFFFFFFF for i in range(-(-len(row) * bits // 32))]
        rows.append([word - (1 << 32) if word >= 1 << 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def quantize_by_hand(source: str, folder: Path, bits: int) -> dict[str, torch.Tensor]:
    """Write a compressed-tensors checkpoint with symmetric groups of 32, and return the weights it stands for."""
    shutil.copytree(source, folder)
    tensors, expected = load((folder / "model.safetensors").read_bytes()), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors.pop(name).float()
        groups = weight.reshape(len(weight), -1, 32)
        scale = (groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 0.5)).to(torch.bfloat16).float()
        codes = (groups / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        expected[name] = (codes * scale).reshape(weight.shape)
        unsigned = (codes + 2 ** (bits - 1)).to(torch.int64).reshape(weight.shape)
        stem = name.removesuffix("weight")
        tensors[stem + "weight_packed"] = _pack(unsigned, bits)
        tensors[stem + "weight_scale"] = scale.squeeze(-1).to(torch.bfloat16)
        tensors[stem + "weight_shape"] = torch.tensor(weight.shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    weights = {"num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return expected


@pytest.mark.parametrize("bits", [8, 4, 3])
def test_packed_weights_are_dequantized_at_load(checkpoints: dict[str, str], tmp_path: Path, bits: int) -> None:
    """Codes times scales, computed by hand, are what the plain linear layers hold after loading."""
    expected = quantize_by_hand(checkpoints["high"], tmp_path / "packed", bits)
    backend = LocalBackend({"low": str(tmp_path / "packed"), "high": checkpoints["high"]})
    [found] = backend.generate([Request(PROMPT, "low", GREEDY)])
    assert found.completion_tokens >= 1
    model = backend._decoders["low"].model
    for name, weight in expected.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        torch.testing.assert_close(module.weight.detach(), weight, atol=1e-7, rtol=1e-6)
        assert "forward" not in module.__dict__, "a wrapper would quantize again at each call"
    low, high = backend.token_distributions([DistributionRequest(PROMPT, " look\n", n) for n in ("low", "high")])
    assert token_kl(high, low).mean() > 0


def test_a_layout_is_read_without_the_weights(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """Shapes of the Linear layers, and how many parameters lie outside them: embeddings of width 64, and norms."""
    folder = tmp_path / "bare"
    folder.mkdir()
    config = json.loads((Path(checkpoints["low"]) / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    layout = read_layout(folder)
    assert len(layout.linear) == 2 * 7
    assert layout.linear["model.layers.1.mlp.down_proj"] == (64, 128)
    assert layout.linear["model.layers.0.self_attn.k_proj"] == (2 * 32, 64)
    assert layout.head == "lm_head"
    norms = 2 * (64 + 64 + 32 + 32) + 64
    assert layout.other_parameters == config["vocab_size"] * 64 + norms
    assert (layout.architecture, layout.head_shape) == ("Qwen3ForCausalLM", (config["vocab_size"], 64))
    assert layout.parameters == layout.other_parameters + sum(
        rows * columns for rows, columns in layout.linear.values()
    )
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ConfigError, match="is quantized already: start from its full-precision checkpoint"):
        read_layout(folder)
