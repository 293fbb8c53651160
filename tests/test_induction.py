"""A fresh model with written induction heads copies what it has never seen."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from dmr_gym.errors import ConfigError
from dmr_gym.induction import absent_rows_kept, write_induction


def make_model(**changes: int) -> Qwen3ForCausalLM:
    """An untrained model of the embedded agents' shape, with fewer layers."""
    torch.manual_seed(0)
    settings = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64} | changes
    config = Qwen3Config(vocab_size=1024, hidden_size=128, intermediate_size=384, tie_word_embeddings=True, **settings)
    return Qwen3ForCausalLM(config).eval()


def copy_accuracy(model: Qwen3ForCausalLM) -> float:
    """Share of tokens predicted right in the second half of random sequences that repeat their first half."""
    half = torch.randint(1, 1024, (8, 50), generator=torch.Generator().manual_seed(1))
    ids = torch.cat([half, half], dim=1)
    with torch.inference_mode():
        predicted = model(ids).logits[:, 50:-1].argmax(-1)
    return (predicted == ids[:, 51:]).float().mean().item()


def test_a_model_with_written_induction_copies_before_it_is_trained() -> None:
    """Most of a random sequence is repeated right, which a random model does not do at all."""
    model = make_model()
    assert copy_accuracy(model) < 0.05
    write_induction(model)
    assert copy_accuracy(model) > 0.6


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 4}, {"num_hidden_layers": 1}, {"head_dim": 32}])
def test_models_of_another_shape_are_refused(changes: dict[str, int]) -> None:
    """The message says what is needed and what was found."""
    with pytest.raises(ConfigError, match="two key-value heads of half the width in two layers or more, found"):
        write_induction(make_model(**changes))


def test_tokens_that_a_batch_does_not_have_keep_their_embeddings() -> None:
    """Of five rows that a step moves, the two of the batch's tokens are moved, the others are as they were."""
    embedding = torch.nn.Parameter(torch.arange(10.0).view(5, 2))
    optimizer = torch.optim.Adam([embedding], 0.5)
    embedding.sum().backward()
    with absent_rows_kept(embedding, torch.tensor([[3, 1], [1, 3]])):
        optimizer.step()
    expected = torch.tensor([[0.0, 1.0], [1.5, 2.5], [4.0, 5.0], [5.5, 6.5], [8.0, 9.0]])
    torch.testing.assert_close(embedding.detach(), expected)
