"""agents/quantize.py: what it refuses before any work, what it measures, and the copies that llmcompressor makes."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from backend_contract import write_tokenizer
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from agents import quantize
from dmr_gym.backends import LocalBackend
from dmr_gym.backends.checkpoint import load_checkpoint
from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.tasks.alfworld.demonstrations import panel_transcripts
from dmr_gym.types import Request, SamplingParams

VOCABULARY = 384

# llmcompressor, torch.fx and datasets warn of their own deprecations; they are not ours to mend.
third_party_warns = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, 0.4 M parameters, in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "base"
    write_tokenizer(folder, panel_transcripts("train", 20), VOCABULARY, "<|end|>", chat_template=None)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=0,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def run(base: Path, out: Path, *options: str) -> None:
    """Quantize with a budget that fits a test."""
    small = ("--world", "alfworld", "--samples", "4", "--max-length", "64", "--held-out", "2")
    quantize.main(["--model", str(base), "--out", str(out), *small, *options])


@pytest.mark.parametrize(
    ("options", "bits", "group_size"),
    [
        ([], 4, 128),
        (["--scheme", "W3A16", "--group-size", "32"], 3, 32),
        (["--scheme", "W2A16", "--group-size", "channel"], 2, None),
        (["--scheme", "W8A8"], 8, None),
    ],
)
def test_command_line_means_what_it_says(tmp_path: Path, options: list[str], bits: int, group_size: int | None) -> None:
    """Groups of 128 are the default, W8A8 has one scale a channel, and the scheme's first number is the weights'."""
    settings = quantize.parse(["--model", "m", "--world", "webshop", "--out", str(tmp_path / "new"), *options])
    assert (settings.bits, settings.group_size) == (bits, group_size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--group-size", "many"], "--group-size must be a number or \"channel\", found 'many'"),
        (["--scheme", "W8A8", "--group-size", "128"], "W8A8 has one weight scale a channel"),
        (["--samples", "0"], "must be at least 1"),
        (["--out", "."], "exists already"),
    ],
)
def test_impossible_settings_are_refused_at_once(tmp_path: Path, options: list[str], message: str) -> None:
    """A setting that cannot work is refused while the command line is read."""
    with pytest.raises(ConfigError, match=message):
        quantize.parse(["--model", "m", "--world", "webshop", "--out", str(tmp_path / "new"), *options])


@pytest.mark.parametrize(
    ("options", "world"),
    [
        (["--model", "embedded:webshop/bf16"], "webshop"),
        (["--model", "embedded:alfworld/bf16", "--world", "alfworld"], "alfworld"),
        (["--model", "m", "--world", "webshop"], "webshop"),
        (["--model", "m", "--calibration", "c4"], "alfworld"),
        (["--model", "m", "--method", "rtn"], "alfworld"),
    ],
)
def test_transcripts_are_of_the_models_own_world(tmp_path: Path, options: list[str], world: str) -> None:
    """An embedded agent's name says its world; what is calibrated on other texts needs none."""
    assert quantize.parse([*options, "--out", str(tmp_path / "new")]).transcript_world == world


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "embedded:webshop/bf16", "--world", "alfworld"], "is an agent of webshop, but --world alfworld"),
        (["--model", "m"], "--world must say whose transcripts calibrate m: alfworld or webshop"),
        (["--model", "embedded:bf16"], r'expected "embedded:WORLD/NAME" with WORLD alfworld or webshop'),
    ],
)
def test_a_world_that_is_not_said_or_said_twice_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    """Nothing is calibrated on the transcripts of a world that the model was not made for."""
    with pytest.raises(ConfigError, match=message):
        quantize.parse([*options, "--out", str(tmp_path / "new")])


def test_width_that_the_group_does_not_divide_is_refused_before_any_text_is_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the width, a layer, and the groups that would fit; no text is generated and nothing written."""
    monkeypatch.setitem(quantize.TRANSCRIPTS, "alfworld", lambda *args: pytest.fail("texts were read"))
    message = (
        r"does not divide 128 of model.layers.0.self_attn.q_proj \(14 such layers\): give --group-size 128 or 64 or 32 "
    )
    with pytest.raises(ConfigError, match=message):
        run(base, tmp_path / "out", "--group-size", "96")
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_refused_before_any_text_is_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With less free space than the copy takes there is an error that says how much it takes."""
    monkeypatch.setitem(quantize.TRANSCRIPTS, "alfworld", lambda *args: pytest.fail("texts were read"))
    monkeypatch.setattr(quantize.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match="MB of free disk, found 0 MB"):
        run(base, tmp_path / "out")


def test_models_that_cannot_be_quantized_are_refused(base: Path, tmp_path: Path) -> None:
    """A folder without a model and a model that is quantized already are refused."""
    with pytest.raises(BackendError, match=r"no config.json"):
        run(tmp_path / "nothing", tmp_path / "out")
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    for file in base.iterdir():
        (quantized / file.name).write_bytes(file.read_bytes())
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="quantized already"):
        run(quantized, tmp_path / "out")


def test_interrupted_run_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the work breaks off in the middle, neither --out nor a part of it remains."""

    def break_off(
        settings: object, source: object, tokenizer: object, texts: object, head: object, folder: Path
    ) -> None:
        folder.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "quantize", break_off)
    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_documents_are_read_from_text_and_jsonl(tmp_path: Path) -> None:
    """Blank lines part the documents of a text file; a .jsonl file has one in each line; anything else is an error."""
    (tmp_path / "a.txt").write_text("one\nline two\n\n  \nsecond\n")
    (tmp_path / "b.jsonl").write_text('{"text": "one\\n\\nstill one"}\n{"text": "second"}\n')
    (tmp_path / "c.jsonl").write_text('{"body": "one"}\n')
    assert quantize.read_documents(tmp_path / "a.txt") == ["one\nline two", "second"]
    assert quantize.read_documents(tmp_path / "b.jsonl") == ["one\n\nstill one", "second"]
    for name in ("c.jsonl", "absent.txt"):
        with pytest.raises(ConfigError, match="--calibration takes"):
            quantize.read_documents(tmp_path / name)


def test_c4_protocol_takes_the_first_long_documents(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only documents with enough tokens count, in their order, and no more than asked for."""
    rows = [{"text": "x " * count} for count in (3, 40, 5, 50, 60)]
    fake = types.SimpleNamespace(load_dataset=lambda *args, **kwargs: iter(rows))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    texts = quantize.c4_documents(AutoTokenizer.from_pretrained(base), 2, 40)
    assert texts == [rows[1]["text"], rows[3]["text"]]


@pytest.mark.slow
@third_party_warns
def test_pinning_is_left_out_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an accelerator pin_memory does nothing inside the context, and is the original again after it."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    original = IntermediatesCache.pin_memory
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with quantize.unpinned_without_accelerator():
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
def test_same_command_makes_the_same_copy(base: Path, tmp_path: Path) -> None:
    """Two runs of GPTQ on the same texts write the same bytes."""
    for name in ("one", "two"):
        run(base, tmp_path / name, "--scheme", "W3A16")
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "two" / "model.safetensors"
    ).read_bytes()
