"""agents/quantize.py with llmcompressor: the copies that it makes, killed in between or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from agents import quantize
from dmr_gym.backends import LocalBackend
from dmr_gym.backends.checkpoint import load_checkpoint
from dmr_gym.errors import BackendError
from dmr_gym.quantization import engine
from dmr_gym.quantization.card import read_facts
from dmr_gym.tasks.alfworld.demonstrations import panel_transcripts
from dmr_gym.types import Request, SamplingParams
from tests.quantizing import RELATED, base, run, third_party_warns, write_base
from tests.recipes import Runs

__all__ = ["base"]  # a fixture for tests here


@pytest.mark.slow
@third_party_warns
def test_c4_is_refused_before_weights_are_loaded(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client, with the hub out of reach."""
    monkeypatch.setattr(quantize, "perplexity", lambda *args: pytest.fail("weights were loaded"))
    with pytest.raises(BackendError, match="without a network give --calibration FILE"):
        run(base, tmp_path / "out", "--calibration", "c4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@third_party_warns
def test_pinning_is_left_out_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an accelerator pin_memory does nothing inside the context, and is the original again after it."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    original = IntermediatesCache.pin_memory
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with engine.unpinned_without_accelerator():
        assert IntermediatesCache.empty(1, torch.device("cpu")).pin_memory(0) is None
        assert IntermediatesCache.pin_memory is not original
    assert IntermediatesCache.pin_memory is original


@pytest.mark.slow
@third_party_warns
@pytest.mark.parametrize(
    ("method", "scheme", "group_size"),
    [
        ("gptq", "W4A16", "128"),
        ("gptq", "W3A16", "64"),
        ("awq", "W4A16", "128"),
        ("rtn", "W2A16", "32"),
        ("rtn", "W8A8", "channel"),
    ],
)
def test_copy_is_packed_loads_and_has_a_card(
    base: Path, tmp_path: Path, method: str, scheme: str, group_size: str
) -> None:
    """A copy is as small as its bits say, keeps the embeddings, sits on its grid, answers, and says what it is."""
    out = tmp_path / "copy"
    run(base, out, "--method", method, "--scheme", scheme, "--group-size", group_size)
    original, packed = (load_file(folder / "model.safetensors") for folder in (base, out))
    torch.testing.assert_close(packed["model.embed_tokens.weight"], original["model.embed_tokens.weight"])
    scaled = {name.removesuffix(".weight_scale") for name in packed if name.endswith(".weight_scale")}
    assert len(scaled) == 14
    assert "lm_head" not in scaled
    bits = int(scheme[1])
    weight = packed.get("model.layers.0.mlp.up_proj.weight_packed", packed.get("model.layers.0.mlp.up_proj.weight"))
    assert weight.numel() * weight.element_size() * 8 == 256 * 128 * bits

    model, _ = load_checkpoint(out, torch.device("cpu"), torch.float32, "sdpa")
    width = 128 if group_size == "channel" else int(group_size)
    groups = model.model.layers[0].mlp.up_proj.weight.detach().reshape(-1, width)
    assert max(len(row.unique()) for row in groups) <= 2**bits

    facts = json.loads((out / "quantization.json").read_text())
    assert facts["scheme"] == scheme
    assert str(facts["group_size"]) == group_size
    assert facts["calibration_samples"] == (0 if method == "rtn" else 4)
    assert facts["perplexity"]["after"]["commands"] > 1
    assert f"base, {method.upper()} {scheme}" in (out / "README.md").read_text()
    assert str(tmp_path) not in (out / "README.md").read_text()

    backend = LocalBackend({"copy": str(out)})
    [answer] = backend.generate([Request("You see a bed 1.\n>", "copy", SamplingParams(max_tokens=4))])
    assert answer.completion_tokens > 0


@pytest.mark.slow
@third_party_warns
@pytest.mark.parametrize("kind", list(RELATED))
def test_logits_of_a_copy_are_near_the_originals(kind: str, tmp_path: Path) -> None:
    """Quantized, loaded by the local backend and asked: 8 bits change logits by some 1 % of their spread, 4 by more."""
    original = write_base(tmp_path / "base", kind)
    for scheme in ("W8A16", "W4A16"):
        run(original, tmp_path / scheme, "--scheme", scheme)
    folders = {"W4A16": tmp_path / "W4A16", "W8A16": tmp_path / "W8A16", "original": original}
    ids = AutoTokenizer.from_pretrained(original)(panel_transcripts("validation", 1), return_tensors="pt")["input_ids"]
    logits = {}
    for name, folder in folders.items():
        model, _ = load_checkpoint(folder, torch.device("cpu"), torch.float32, "sdpa")
        with torch.inference_mode():
            logits[name] = model(ids[:, :64]).logits
    wanted = logits["original"]
    errors = {name: ((logits[name] - wanted).norm() / (wanted - wanted.mean()).norm()).item() for name in logits}
    assert errors["W8A16"] < 0.03
    assert errors["W8A16"] < errors["W4A16"] < 0.4
    backend = LocalBackend({name: str(folder) for name, folder in folders.items()})
    answers = backend.generate(
        [Request("You see a bed 1.\n>", name, SamplingParams(max_tokens=4, stop=())) for name in folders]
    )
    assert all(answer.completion_tokens > 0 for answer in answers)


@pytest.mark.slow
@third_party_warns
@pytest.mark.parametrize(
    ("world", "method", "scheme"),
    [  # each method with each world and each scheme, but not all three with all
        ("alfworld", "gptq", "W4A16"),
        ("alfworld", "awq", "W8A8"),
        ("alfworld", "rtn", "W3A16"),
        ("alfworld", "awq", "W3A16"),
        ("webshop", "gptq", "W3A16"),
        ("webshop", "gptq", "W8A8"),
        ("webshop", "awq", "W4A16"),
        ("webshop", "rtn", "W8A8"),
    ],
)
def test_every_method_and_scheme_quantizes_the_embedded_agents(
    world: str, method: str, scheme: str, tmp_path: Path
) -> None:
    """On the CPU, with a few of its own world's texts; the copy answers, and has not forgotten its commands."""
    out = tmp_path / "copy"
    small = ["--samples", "2", "--max-length", "48", "--held-out", "1"]
    quantize.main(
        ["--model", f"embedded:{world}/bf16", "--method", method, "--scheme", scheme, "--out", str(out), *small]
    )
    facts = read_facts(out)
    assert facts["runs"].startswith("dequantized") == (scheme == "W3A16")
    # So few texts calibrate badly; one that had lost its commands would be in the hundreds.
    bound = {"W8A8": 1.1, "W4A16": 1.5, "W3A16": 3.0}[scheme]
    assert facts["perplexity"]["after"]["commands"] < bound * facts["perplexity"]["before"]["commands"]
    backend = LocalBackend({"copy": str(out)})
    [answer] = backend.generate([Request("You see a bed 1.\n>", "copy", SamplingParams(max_tokens=4))])
    assert answer.completion_tokens > 0


@pytest.mark.slow
@third_party_warns
def test_texts_of_a_file_calibrate(base: Path, tmp_path: Path) -> None:
    """The same documents make the same copy, from a text file or from JSON lines; other ones make another."""
    documents = panel_transcripts("train", 4)
    (tmp_path / "a.txt").write_text("\n\n".join(documents))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text.strip()}) + "\n" for text in documents))
    (tmp_path / "b.txt").write_text("\n\n".join(panel_transcripts("validation", 4)))
    for name in ("a.txt", "a.jsonl", "b.txt"):
        run(base, tmp_path / f"copy-{name}", "--scheme", "W3A16", "--calibration", str(tmp_path / name))
    copies = {name: tmp_path / f"copy-{name}" for name in ("a.txt", "a.jsonl", "b.txt")}
    weights = {name: (copy / "model.safetensors").read_bytes() for name, copy in copies.items()}
    assert weights["a.txt"] == weights["a.jsonl"] != weights["b.txt"]
    facts = read_facts(copies["a.jsonl"])
    assert (facts["calibration"], facts["calibration_samples"]) == ("a.jsonl", 4)


def contents(copy: Path) -> dict[str, object]:
    """All of a copy but the seconds and the memory that it took."""
    files = {path.name: path.read_bytes() for path in copy.iterdir()}
    taken = ("| seconds |", "| peak memory bytes |")
    card = [line for line in files.pop("README.md").decode().splitlines() if not line.startswith(taken)]
    facts = json.loads(files.pop("quantization.json"))
    assert facts.pop("seconds") > 0
    assert facts.pop("peak_memory_bytes") > 100e6  # PyTorch alone takes more
    return {**files, "card": card, "facts": facts}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_ends_as_one_that_was_left_alone(base: Path, tmp_path: Path) -> None:
    """SIGKILL in every stage: --out is whole or not there, no stage is made twice, and the end has the same bytes."""
    argv = ["--model", str(base), "--world", "alfworld", "--scheme", "W3A16", "--samples", "4", "--max-length", "64"]
    argv += ["--held-out", "2", "--out"]
    out, part = tmp_path / "killed" / "copy", tmp_path / "killed" / ".copy.part"
    moments = ["identity.json", "texts.json", "before.json", "copy.part", "copy.part/model.safetensors"]
    moments += ["copy", "after.json", "copy/README.md", "copy/quantization.json"]
    hits, stamps = [], {}
    with Runs("quantize", tmp_path / "log.txt", ["llmcompressor", "datasets"]) as runs:
        assert runs.run([*argv, str(tmp_path / "alone" / "copy")]) == 0
        for moment in moments:
            status = runs.run([*argv, str(out)], lambda s, m=moment: (part / m).exists() or out.exists() or s > 400)
            assert status in (0, -9)
            if status == 0 or out.exists():
                break
            hits.append(moment)
            for name in ("texts.json", "before.json", "after.json"):
                if (part / name).exists():
                    stamp = (part / name).stat().st_mtime_ns
                    assert stamps.setdefault(name, stamp) == stamp
            with pytest.raises(BackendError):
                LocalBackend({"a": str(out)}).digest("a")
        assert runs.run([*argv, str(out)]) == 0
        assert contents(out) == contents(tmp_path / "alone" / "copy")
        assert runs.run([*argv, str(out)]) == 0  # nothing to do
    assert set(moments[:5]) <= set(hits)
    assert [path.name for path in out.parent.iterdir()] == ["copy"]
    assert "holds this copy already, whole" in (tmp_path / "log.txt").read_text()
