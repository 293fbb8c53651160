"""Small checkpoints to quantize, and the recipe with a budget that fits a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from agents import quantize
from dmr_gym.tasks.alfworld.demonstrations import panel_transcripts
from tests.backend_contract import write_tokenizer

VOCABULARY = 384

# llmcompressor, torch.fx and datasets warn of their own deprecations; they are not ours to mend.
third_party_warns = pytest.mark.filterwarnings("default")


SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
RELATED = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"tie_word_embeddings": True}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
}


def write_base(folder: Path, kind: str) -> Path:
    """A checkpoint of random weights, 0.4 M parameters, in bfloat16, with a tokenizer of ALFWorld's transcripts."""
    config, model, options = RELATED[kind]
    write_tokenizer(folder, panel_transcripts("train", 20), VOCABULARY, "<|end|>", chat_template=None)
    torch.manual_seed(0)
    model(config(**SHAPE | options)).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 with its head tied to the embeddings."""
    return write_base(tmp_path_factory.mktemp("models") / "base", "qwen3")


def run(base: Path, out: Path, *options: str) -> None:
    """Quantize with a budget that fits a test."""
    small = ("--world", "alfworld", "--samples", "4", "--max-length", "64", "--held-out", "2")
    quantize.main(["--model", str(base), "--out", str(out), *small, *options])
