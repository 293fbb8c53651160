"""The local backend: what it decodes equals the plain model, and reuse changes nothing."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from backend_contract import PROMPT, PROMPTS
from safetensors.torch import load, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dmr_gym.backends import LocalBackend
from dmr_gym.backends._decoding import choose_token
from dmr_gym.backends._ragged import KVRow, PrefixCache, common_prefix
from dmr_gym.errors import BackendError, ConfigError
from dmr_gym.types import DistributionRequest, Request, SamplingParams

GREEDY = SamplingParams(max_tokens=8, stop=())


def _reference_greedy(folder: str, prompt: str, steps: int) -> list[int]:
    """Greedy tokens from the plain model, the whole sequence computed at every step."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(prompt)["input_ids"]
    with torch.inference_mode():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids


def test_local_greedy_equals_the_plain_model(checkpoints: dict[str, str], shared_local: LocalBackend) -> None:
    """Packed attention, key-value rows and fused norms change no text against transformers' own forward."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["high"])
    for found, prompt in zip(
        shared_local.generate([Request(prompt, "high", GREEDY) for prompt in PROMPTS]), PROMPTS, strict=True
    ):
        ids = _reference_greedy(checkpoints["high"], prompt, found.completion_tokens)
        assert found.prompt_tokens == len(tokenizer(prompt)["input_ids"])
        assert found.text == tokenizer.decode(ids[found.prompt_tokens :], skip_special_tokens=True)


def test_local_scores_equal_the_plain_model(checkpoints: dict[str, str], shared_local: LocalBackend) -> None:
    """Log-probabilities are those of the plain forward pass over prompt and completion tokens joined."""
    completion = " go to desk 1\n"
    model = AutoModelForCausalLM.from_pretrained(checkpoints["low"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["low"])
    prompt, answer = tokenizer(PROMPT)["input_ids"], tokenizer(completion)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    shared_local.generate([Request(PROMPT, "low", GREEDY)])
    [found] = shared_local.token_distributions([DistributionRequest(PROMPT, completion, "low")])
    assert found.token_ids.tolist() == answer
    np.testing.assert_allclose(found.logprobs, torch.log_softmax(logits, -1).numpy(), atol=1e-4)


def test_local_reuse_changes_no_answer(checkpoints: dict[str, str], cold_local: LocalBackend) -> None:
    """A transcript that grows, branches and restarts gives the same answers with and without reuse."""
    warm = LocalBackend(checkpoints)
    transcript, prompts = PROMPT, []
    for turn in range(2):
        prompts += [transcript, transcript + " look\n>", PROMPT]
        transcript += f" go to desk {turn}\nYou see a book {turn}.\n>"
    for prompt in prompts:
        request = Request(prompt, "high", replace(GREEDY, temperature=0.0))
        sampled = replace(request, sampling=replace(GREEDY, temperature=1.0, top_p=0.9))
        for batch in ([request], [request, sampled, request]):
            assert [c.text for c in warm.generate(batch)] == [c.text for c in cold_local.generate(batch)]


def test_local_reuse_computes_only_what_is_new(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a prompt that continues an answered one only the suffix passes through the model; equal prompts share."""
    computed: list[int] = []
    forward = sys.modules["dmr_gym.backends._decoding"].forward

    def counting(model: object, rows: object, new: list[list[int]], keep: object) -> torch.Tensor:
        computed.append(sum(map(len, new)))
        return forward(model, rows, new, keep)

    monkeypatch.setattr("dmr_gym.backends._decoding.forward", counting)
    monkeypatch.setattr("dmr_gym.backends._decoding.MARGIN", 0.0)
    backend = LocalBackend(checkpoints)
    long = PROMPT * 4
    one = SamplingParams(max_tokens=1, stop=())
    [first] = backend.generate([Request(long, "low", one)])
    assert computed == [first.prompt_tokens]
    [second] = backend.generate([Request(long + "abc", "low", one)])
    assert computed[1:] == [second.prompt_tokens - first.prompt_tokens]
    del computed[:]
    backend.clear_prefix_cache()
    backend.generate([Request(long, "low", one, sample_index=i) for i in range(5)])
    assert computed == [first.prompt_tokens, 4]


def test_local_near_ties_are_settled_alone(checkpoints: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a margin that trusts no lead, every token comes from the sequence computed alone, and no answer changes."""
    requests = [Request(p, "low", replace(GREEDY, temperature=t, top_p=0.8)) for p in PROMPTS for t in (0.0, 1.0)]
    trusted = LocalBackend(checkpoints).generate(requests)
    monkeypatch.setattr("dmr_gym.backends._decoding.MARGIN", 1e9)
    settled = LocalBackend(checkpoints).generate(requests)
    assert [c.text for c in trusted] == [c.text for c in settled]


def test_a_model_full_of_near_ties_answers_alike_in_any_batch(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """Where two tokens share one embedding but for a few millionths, rounding would decide at every step."""
    folder = Path(shutil.copytree(checkpoints["high"], tmp_path / "ties"))
    tensors = {name: tensor.float() for name, tensor in load((folder / "model.safetensors").read_bytes()).items()}
    rows = tensors["model.embed_tokens.weight"]
    even = rows[0 : 2 * len(rows[1::2]) : 2]
    rows[1::2] = even * (1 + 1e-6 * torch.randn(even.shape, generator=torch.Generator().manual_seed(0)))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    warm, cold = LocalBackend({"a": str(folder)}), LocalBackend({"a": str(folder)}, prefix_cache_mib=0)
    requests = [Request(prompt + f" go to desk {i}\n>", "a", GREEDY) for i in range(4) for prompt in PROMPTS]
    warm.generate([replace(request, prompt=str(request.prompt)[:-5]) for request in requests])
    alone = [cold.generate([request])[0].text for request in requests]
    assert [c.text for c in warm.generate(requests)] == alone
    assert [c.text for c in cold.generate(requests)] == alone


def test_equal_scores_go_to_the_lowest_id() -> None:
    """Ties are broken by id, and a tie is unsure as long as there is a margin."""
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0])
    assert choose_token(logits, GREEDY, None, 1e-3) == (1, False)
    assert choose_token(logits, GREEDY, None, 0.0) == (1, True)
    assert choose_token(torch.tensor([0.0, 2.0, 1.99]), GREEDY, None, 1e-3) == (1, True)


def test_nucleus_keeps_the_fewest_tokens_that_reach_the_mass() -> None:
    """Of probabilities 0.5, 0.3, 0.2 a nucleus of 0.7 keeps two, whatever the noise says."""
    logits = torch.log(torch.tensor([0.3, 0.2, 0.5]))
    noise = torch.tensor([0.0, 100.0, 0.0])
    assert choose_token(logits, SamplingParams(temperature=1.0, top_p=0.7), noise, 1e-3) == (2, True)
    assert choose_token(logits, SamplingParams(temperature=1.0, top_p=0.9), noise, 1e-3) == (1, True)
    # A nucleus that ends exactly at a token's mass leaves it open whether the next one belongs to it.
    assert choose_token(logits, SamplingParams(temperature=1.0, top_p=0.8), noise, 1e-3)[1] is False


def test_sampling_draws_from_the_softmax(shared_local: LocalBackend) -> None:
    """First tokens of 600 draws have the frequencies of the model's distribution."""
    sampling = SamplingParams(temperature=1.0, max_tokens=1, stop=())
    requests = [Request(PROMPT, "high", sampling, sample_index=i) for i in range(600)]
    drawn = [completion.text for completion in shared_local.generate(requests)]
    [found] = shared_local.token_distributions([DistributionRequest(PROMPT, " ", "high")])
    tokenizer = shared_local._decoders["high"].tokenizer
    probabilities = np.exp(found.logprobs[0])
    best = int(probabilities.argmax())
    expected = float(probabilities[best])
    frequency = drawn.count(tokenizer.decode([best])) / 600
    assert abs(frequency - expected) < 5 * np.sqrt(expected * (1 - expected) / 600) + 1e-3


def test_stop_strings_cut_the_text_and_count_the_token(shared_local: LocalBackend) -> None:
    """Decoding ends with the token that completes a stop string, even one spread over tokens."""
    [free] = shared_local.generate([Request(PROMPT, "high", GREEDY)])
    for start in range(len(free.text) - 2):
        stop = free.text[start : start + 2]
        [found] = shared_local.generate([Request(PROMPT, "high", replace(GREEDY, stop=("never", stop)))])
        assert found.text == free.text[: free.text.index(stop)]
        assert found.finish_reason == "stop"
        assert found.completion_tokens <= free.completion_tokens


def test_the_end_token_stops_and_counts(checkpoints: dict[str, str], tmp_path: Path) -> None:
    """A model whose favourite token is its end token answers nothing, in one token."""
    [free] = LocalBackend(checkpoints).generate([Request(PROMPT, "high", replace(GREEDY, max_tokens=1))])
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["high"])
    [token] = tokenizer(free.text)["input_ids"]
    folder = Path(shutil.copytree(checkpoints["high"], tmp_path / "ends"))
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [token, 0]}))
    [found] = LocalBackend({"a": str(folder)}).generate([Request(PROMPT, "a", GREEDY)])
    assert (found.text, found.completion_tokens, found.finish_reason) == ("", 1, "stop")


def test_long_prompts_say_what_to_change(shared_local: LocalBackend) -> None:
    """A prompt that fills the context is refused; one that nearly fills it is answered as far as it goes."""
    length = len(AutoTokenizer.from_pretrained(shared_local._models["low"])("x" * 254)["input_ids"])
    assert length == 254
    [found] = shared_local.generate([Request("x" * 254, "low", GREEDY)])
    assert (found.completion_tokens, found.finish_reason) == (2, "length")
    with pytest.raises(BackendError, match="has 256 tokens and the model reads at most 256"):
        shared_local.generate([Request("x" * 256, "low", GREEDY)])
    with pytest.raises(BackendError, match=r"254 \+ 3 tokens"):
        shared_local.token_distributions([DistributionRequest("x" * 254, "xxx", "low")])
    with pytest.raises(BackendError, match="no tokens"):
        shared_local.generate([Request("", "low", GREEDY)])


def test_sampling_out_of_range_is_refused(shared_local: LocalBackend) -> None:
    """Temperature, top_p and max_tokens have ranges; so has top_k."""
    for sampling in (SamplingParams(temperature=-1), SamplingParams(top_p=0), SamplingParams(max_tokens=0)):
        with pytest.raises(BackendError, match="sampling needs"):
            shared_local.generate([Request(PROMPT, "low", sampling)])
    with pytest.raises(BackendError, match="top_k must be at least 1"):
        shared_local.token_distributions([DistributionRequest(PROMPT, "a", "low", top_k=0)])


def test_seconds_are_those_of_the_batch(checkpoints: dict[str, str]) -> None:
    """A clock that advances by 3 s at every look gives each of three requests 3 s: all wait for their batch."""
    ticks = iter(range(0, 1000, 3))
    backend = LocalBackend(checkpoints, clock=lambda: float(next(ticks)))
    assert [c.seconds for c in backend.generate([Request(p, "low", GREEDY) for p in PROMPTS[:3]])] == [3.0] * 3


def test_copies_of_a_backend_load_anew(shared_local: LocalBackend) -> None:
    """Pickles and deep copies carry settings only, and answer alike."""
    expected = shared_local.generate([Request(PROMPT, "low", GREEDY)])[0].text
    for other in (copy.deepcopy(shared_local), pickle.loads(pickle.dumps(shared_local))):
        assert not other._decoders
        assert other.generate([Request(PROMPT, "low", GREEDY)])[0].text == expected


def test_settings_are_checked(checkpoints: dict[str, str]) -> None:
    """Wrong settings are refused before anything loads."""
    for options, message in (
        ({"dtype": "float8"}, "dtype must be one of"),
        ({"max_batch_size": 0}, "max_batch_size >= 1"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ):
        with pytest.raises(ConfigError, match=message):
            LocalBackend(checkpoints, **options)
    with pytest.raises(ConfigError, match="at least one precision"):
        LocalBackend({})


def test_half_precision_runs(checkpoints: dict[str, str], shared_local: LocalBackend) -> None:
    """Bfloat16 is another copy with its own digest and answers of the same shape."""
    backend = LocalBackend(checkpoints, dtype="bfloat16")
    assert backend.digest("low") != shared_local.digest("low")
    [found] = backend.token_distributions([DistributionRequest(PROMPT, " look\n", "low")])
    [exact] = shared_local.token_distributions([DistributionRequest(PROMPT, " look\n", "low")])
    assert found.logprobs.dtype == np.float32
    assert np.abs(np.exp(found.logprobs) - np.exp(exact.logprobs)).max() < 0.2
    assert backend.generate([Request(PROMPT, "low", GREEDY)])[0].completion_tokens >= 1


def _row(tokens: list[int]) -> KVRow:
    return KVRow(tokens, torch.zeros(1, 2, 1, 256, 4))


def test_prefix_cache_finds_the_longest_prefix_and_drops_the_oldest() -> None:
    """A row of 8 KiB fits three times into 24 KiB; a row that continues another replaces it."""
    cache = PrefixCache(24 << 10)
    first, second = _row([1, 2, 3]), _row([1, 2, 3, 4, 5])
    cache.put(first)
    assert cache.match([1, 2, 9]) == (first, 2)
    cache.put(second)
    assert len(cache) == 1
    assert cache.match([1, 2, 3, 4, 6]) == (second, 4)
    assert cache.match([7]) == (None, 0)
    for start in (10, 20, 30):
        cache.put(_row([start]))
    assert len(cache) == 3
    assert cache.match([1, 2]) == (None, 0)
    assert cache.take(second) is False


def test_common_prefix_counts_equal_leading_tokens() -> None:
    """By hand."""
    assert [common_prefix(*pair) for pair in (([], [1]), ([1, 2], [1, 2, 3]), ([1, 2, 3], [1, 3]))] == [0, 2, 1]
