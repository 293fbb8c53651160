"""Properties of the router: causality, masking, incremental decoding, saving."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dmr_gym import linear
from dmr_gym.errors import ConfigError
from dmr_gym.router import PrecisionRouter, RouterConfig, last_valid_index, pad_rows

SMALL = RouterConfig(embedding_dim=6, n_precisions=3, n_layers=2, d_model=16, n_heads=4, d_ff=32, max_length=8)


@pytest.fixture
def router() -> PrecisionRouter:
    """A small router with fixed weights, in evaluation mode."""
    torch.manual_seed(0)
    return PrecisionRouter(SMALL).eval()


def _rows(batch: int, steps: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, steps, SMALL.embedding_dim, generator=torch.Generator().manual_seed(seed))


def test_default_size_is_two_percent_of_the_smallest_routed_llm():
    """The default has 8 layers of width 384: the count by hand, about 14.2 M in the blocks."""
    block = (3 * 384 * 384 + 3 * 384) + (384 * 384 + 384) + (2 * 384 * 1536 + 1536 + 384) + 4 * 384
    expected = 8 * block + (384 * 384 + 384) + 64 * 384 + 2 * 384 + (384 * 2 + 2)
    assert 8 * block == 14_195_712
    assert PrecisionRouter().n_parameters == expected == 14_369_666


def test_logits_have_one_row_a_step_and_one_column_a_precision(router):
    """(B, T, D) becomes (B, T, P)."""
    assert router(_rows(4, 5), torch.ones(4, 5, dtype=torch.bool)).shape == (4, 5, 3)


def test_padding_content_never_changes_logits(router):
    """Garbage, even NaN and infinity, in padded rows leaves every valid row's logits bitwise the same."""
    rows, mask = _rows(2, 6), torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    expected = router(rows.masked_fill(~mask[..., None], 0.0), mask)
    for garbage in (1e6, float("nan"), float("inf")):
        assert torch.equal(router(rows.masked_fill(~mask[..., None], garbage), mask)[mask], expected[mask])


def test_the_place_of_padding_does_not_matter(router):
    """The same valid rows behind, in front of, or around padding give the same last logits."""
    rows = _rows(1, 3)
    expected = router.last_logits(rows, torch.ones(1, 3, dtype=torch.bool))
    for places in ([0, 1, 2], [3, 4, 5], [0, 2, 5]):
        padded, mask = torch.full((1, 6, SMALL.embedding_dim), 9.0), torch.zeros(1, 6, dtype=torch.bool)
        padded[:, places], mask[:, places] = rows, True
        torch.testing.assert_close(router.last_logits(padded, mask), expected, rtol=0, atol=1e-6)


def test_a_decision_does_not_see_later_rows(router):
    """Changing row 3 changes the logits at rows 3 and later alone."""
    rows, mask = _rows(1, 6), torch.ones(1, 6, dtype=torch.bool)
    changed = rows.clone()
    changed[:, 3] += 1.0
    before, after = router(rows, mask), router(changed, mask)
    torch.testing.assert_close(before[:, :3], after[:, :3], rtol=0, atol=1e-6)
    assert (before[:, 3:] - after[:, 3:]).abs().amax(-1).min() > 1e-4


def test_a_decision_sees_all_earlier_rows_and_their_order(router):
    """Swapping two early rows changes the last logits: positions count."""
    rows, mask = _rows(1, 4), torch.ones(1, 4, dtype=torch.bool)
    assert not torch.allclose(router.last_logits(rows, mask), router.last_logits(rows[:, [1, 0, 2, 3]], mask))


@pytest.mark.parametrize(
    ("mask", "last"), [([1, 1, 0, 0], 1), ([0, 0, 1, 1], 3), ([1, 0, 1, 0], 2), ([0, 0, 0, 1], 3), ([1, 0, 0, 0], 0)]
)
def test_pooling_takes_the_last_valid_row(mask, last):
    """The index of the last True, also where it is not the count minus one."""
    assert last_valid_index(torch.tensor([mask], dtype=torch.bool)).tolist() == [last]


def test_an_empty_mask_is_refused():
    """A history without rows has no decision to read."""
    with pytest.raises(ConfigError, match=r"at least one valid row; those at \[1\] have none"):
        last_valid_index(torch.tensor([[True], [False]]))


def test_incremental_decoding_equals_the_full_pass(router):
    """Row by row with the key-value cache gives the numbers of one causal pass."""
    rows = _rows(3, 8)
    full, state = router(rows, torch.ones(3, 8, dtype=torch.bool)), router.initial_state(3)
    for t in range(8):
        logits, state = router.step(rows[:, t], state)
        torch.testing.assert_close(logits, full[:, t], rtol=0, atol=1e-5)


def test_incremental_decoding_equals_the_full_pass_at_default_size():
    """The same at the size that ships, over a full history."""
    torch.manual_seed(1)
    router, rows = PrecisionRouter().eval(), torch.randn(2, 64, 384)
    rows /= rows.norm(dim=-1, keepdim=True)
    with torch.no_grad():
        full, state = router(rows, torch.ones(2, 64, dtype=torch.bool)), router.initial_state(2)
    for t in range(64):
        logits, state = router.step(rows[:, t], state)
        torch.testing.assert_close(logits, full[:, t], rtol=0, atol=1e-5)


def test_slots_decode_independently_of_each_other(router):
    """Histories of different ages, pauses and fresh starts in one batch equal each history alone."""
    a, b, c = _rows(1, 6, 1), _rows(1, 4, 2), _rows(1, 2, 3)
    state = router.initial_state(2)
    seen = {"a": [], "b": [], "c": []}
    for t in range(6):  # slot 0 plays a; slot 1 plays b while t < 4 but pauses at t == 1, then c from a fresh start
        if t == 5:
            state.lengths[1] = 0
        second = {0: b[0, 0], 1: torch.full((6,), 99.0), 2: b[0, 1], 3: b[0, 2], 4: b[0, 3], 5: c[0, 0]}[t]
        logits, state = router.step(torch.stack([a[0, t], second]), state, torch.tensor([True, t != 1]))
        seen["a"].append(logits[0])
        if t != 1:
            seen["c" if t == 5 else "b"].append(logits[1])
    for rows, logits in ((a, seen["a"]), (b, seen["b"]), (c[:, :1], seen["c"])):
        expected = router(rows, torch.ones(rows.shape[:2], dtype=torch.bool))[0]
        torch.testing.assert_close(torch.stack(logits), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("d_model", "n_heads", "max_length"), [(8, 2, 64), (384, 6, 64), (40, 2, 43)])
def test_a_history_has_the_same_bits_whatever_is_beside_it(d_model, n_heads, max_length):
    """In another slot, beside histories of other lengths: an evaluation that goes on after a kill ends the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = RouterConfig(6, n_layers=1, d_model=d_model, n_heads=n_heads, d_ff=2 * d_model, max_length=max_length)
    router = PrecisionRouter(config).eval()
    others, mine = _rows(4, max_length, 1), _rows(1, max_length - 3, 2)[0]

    def scores(slot: int, older: int) -> list[bytes]:
        state = router.initial_state(4)
        for t in range(older):
            _, state = router.step(others[:, t], state, torch.arange(4) != slot)
        found = []
        for t, row in enumerate(mine):
            rows = others[:, min(t + older, max_length - 1)].clone()
            rows[slot] = row
            logits, state = router.step(rows, state, (torch.arange(4) == slot) | (state.lengths < max_length))
            found.append(logits[slot].numpy().tobytes())
        return found

    alone = scores(0, 0)
    assert all(scores(slot, older) == alone for slot in range(4) for older in (0, 5, 30))
    torch.set_num_threads(threads)


def test_a_full_cache_refuses_another_row(router):
    """Positions of a sliding window shift, so the cache would be wrong; the message says what to do."""
    state = router.initial_state(1)
    for t in range(8):
        _, state = router.step(_rows(1, 8)[:, t], state)
    with pytest.raises(ConfigError, match="longer than max_length=8"):
        router.step(_rows(1, 1)[:, 0], state)


def test_act_reads_zero_rows_as_padding(router):
    """`act` on an (B, L, D) observation equals the softmax of the last valid row's logits."""
    rows = _rows(1, 3)
    observation = np.zeros((1, 8, SMALL.embedding_dim), dtype=np.float32)
    observation[:, :3] = rows.numpy()
    expected = router(rows, torch.ones(1, 3, dtype=torch.bool))[:, -1].softmax(-1)
    np.testing.assert_allclose(router.act(observation), expected.detach().numpy(), atol=1e-6)


def test_act_ignores_dropout_and_keeps_the_mode(router):
    """Deployment is deterministic even when called between training steps."""
    router.train()
    observation = _rows(2, 4).numpy()
    assert np.array_equal(router.act(observation), router.act(observation))
    assert router.training


@pytest.mark.parametrize("tau", [0.05, 0.35, 0.8])
def test_a_moved_threshold_decides_at_one_half_as_before_at_tau(router, tau):
    """Odds of the highest precision are multiplied by (1 - τ) / τ; those of the others among each other stay."""
    rows, mask = 3.0 * _rows(16, 8), torch.ones(16, 8, dtype=torch.bool)
    with torch.no_grad():
        before = router(rows, mask).softmax(-1)
        router.move_threshold(tau)
        after = router(rows, mask).softmax(-1)
    odds = [p[..., -1] / (1 - p[..., -1]) for p in (before, after)]
    torch.testing.assert_close(odds[1], odds[0] * (1 - tau) / tau, rtol=1e-4, atol=1e-6)
    sure = (before[..., -1] - tau).abs() > 1e-5
    assert torch.equal((after[..., -1] >= 0.5)[sure], (before[..., -1] >= tau)[sure])
    torch.testing.assert_close(after[..., 0] / after[..., 1], before[..., 0] / before[..., 1], rtol=1e-4, atol=1e-6)


def test_a_threshold_of_one_half_moves_nothing(router):
    """Not a bit of it; what no score can pass is refused."""
    before = router.digest()
    router.move_threshold(0.5)
    assert router.digest() == before
    for tau in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match="must lie between 0 and 1"):
            router.move_threshold(tau)


def test_saving_and_loading_keeps_numbers_and_digest(router, tmp_path):
    """A loaded router is the saved one, and its JSON names the sizes and the digest."""
    router.save(tmp_path)
    loaded = PrecisionRouter.load(tmp_path)
    assert loaded.config == SMALL
    assert not loaded.training
    assert loaded.digest() == router.digest() == json.loads((tmp_path / "router.json").read_text())["digest"]
    assert np.array_equal(loaded.act(_rows(2, 4).numpy()), router.act(_rows(2, 4).numpy()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["router.json", "router.safetensors"]


def test_the_digest_changes_with_one_weight(router):
    """A digest addresses content, not names."""
    before = router.digest()
    with torch.no_grad():
        router.head.bias[0] += 1e-3
    assert router.digest() != before


def test_a_damaged_file_is_refused(router, tmp_path):
    """Flipping one bit of a weight is noticed on loading."""
    router.save(tmp_path)
    path = tmp_path / "router.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        PrecisionRouter.load(tmp_path)


def test_a_missing_router_is_named(tmp_path):
    """The message says which recipe writes one."""
    with pytest.raises(ConfigError, match=r"no router at .*train_kl_st\.py"):
        PrecisionRouter.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_precisions": 1}, "n_precisions must be at least 2"),
        ({"n_heads": 5}, "must be a multiple of n_heads=5"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"n_layers": 0}, "n_layers must be at least 1, got 0"),
    ],
)
def test_impossible_sizes_are_refused(settings, message):
    """Each setting out of range raises with what came."""
    with pytest.raises(ConfigError, match=message):
        RouterConfig(**settings)


@pytest.mark.parametrize(
    ("rows", "mask", "message"),
    [
        (torch.zeros(2, 3, 5), torch.ones(2, 3, dtype=torch.bool), r"rows must be \(B, T, 6\) float"),
        (torch.zeros(2, 3, 6), torch.ones(2, 4, dtype=torch.bool), r"valid_mask must be \(2, 3\) bool"),
        (torch.zeros(2, 3, 6), torch.ones(2, 3), r"valid_mask must be \(2, 3\) bool, got \(2, 3\) torch.float32"),
        (torch.zeros(2, 9, 6), torch.ones(2, 9, dtype=torch.bool), r"up to 8 rows \(max_length\), got 9"),
    ],
)
def test_wrong_shapes_are_refused(router, rows, mask, message):
    """Shapes and dtypes are checked before anything is computed."""
    with pytest.raises(ConfigError, match=message):
        router(rows, mask)


def test_pad_rows_stacks_histories_of_different_lengths():
    """Zeros behind each end, and a mask that tells them from rows."""
    rows, mask = pad_rows([np.ones((2, 3), np.float32), np.full((1, 3), 2, np.float32)])
    assert rows.tolist() == [[[1, 1, 1], [1, 1, 1]], [[2, 2, 2], [0, 0, 0]]]
    assert mask.tolist() == [[True, True], [True, False]]


def test_the_router_can_learn_to_read_an_early_row(router):
    """Trained on "was the first row positive?", the last decision finds out: gradients reach every part."""
    torch.manual_seed(0)
    router.train()
    optimizer = torch.optim.AdamW(router.parameters(), lr=3e-3)
    for seed in range(80):
        rows = _rows(32, 4, seed)
        loss = torch.nn.functional.cross_entropy(
            router.last_logits(rows, torch.ones(32, 4, dtype=torch.bool)), (rows[:, 0, 0] > 0).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in router.parameters())
    rows = _rows(256, 4, 999)
    accuracy = (router.act(rows.numpy()).argmax(1) == (rows[:, 0, 0] > 0).numpy()).mean()
    assert accuracy > 0.9


# ---------------------------------------------------------------------------------------------------- inference

WIDE = RouterConfig(embedding_dim=6, n_layers=2, d_model=32, n_heads=2, d_ff=64, max_length=8, dropout=0.0)
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 2e-2}


@pytest.fixture(scope="module")
def trained() -> PrecisionRouter:
    """A router that has learnt to find the sign of the first row, so that its probabilities spread over [0, 1]."""
    torch.manual_seed(0)
    router = PrecisionRouter(WIDE)
    optimizer = torch.optim.AdamW(router.parameters(), lr=3e-3)
    for seed in range(60):
        rows = _rows(32, 8, seed)
        logits = router(rows, torch.ones(32, 8, dtype=torch.bool))
        targets = (rows[:, :1, 0] > 0).long().expand(32, 8)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimizer.step()
    return router.eval()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_inference_decides_as_the_router_it_came_from(trained, dtype):
    """Probabilities agree to the tolerance, in one pass and row by row, and so do all decisions but near-ties."""
    rows, mask = _rows(256, 8, 777), torch.ones(256, 8, dtype=torch.bool)
    fast = trained.for_inference(dtype)
    state, columns = fast.initial_state(256), []
    for t in range(8):
        logits, state = fast.step(rows[:, t], state)
        columns.append(logits)
    with torch.no_grad():
        expected = trained(rows, mask).softmax(-1)[..., 1]
        for found in (fast(rows, mask).softmax(-1)[..., 1], torch.stack(columns, dim=1).softmax(-1)[..., 1]):
            torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype])
            equal = (found >= 0.5) == (expected >= 0.5)
            assert equal.float().mean() >= 0.995
            assert ((expected - 0.5).abs()[~equal] <= TOLERANCE[dtype]).all()
    assert expected.min() < 0.1
    assert expected.max() > 0.9


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reduced_dtypes_are_really_computed(trained, dtype):
    """Where this CPU has the units, numbers differ from float32's in the last bits; else they are float32's."""
    rows, mask = _rows(8, 8), torch.ones(8, 8, dtype=torch.bool)
    with torch.no_grad():
        moved = (trained.for_inference(dtype)(rows, mask) - trained.for_inference("float32")(rows, mask)).abs().max()
    assert (moved > 1e-5) == linear.is_fast(dtype)


def test_cpus_without_the_units_get_float32(trained, monkeypatch):
    """A dtype that would be slower than float32 is not used."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    rows, mask = _rows(4, 8), torch.ones(4, 8, dtype=torch.bool)
    with torch.no_grad():
        found, expected = trained.for_inference("bfloat16")(rows, mask), trained(rows, mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_inference_follows_the_training(router, dtype):
    """After a gradient step the packed weights are the new ones, though the copy was made before."""
    rows, mask = _rows(4, 8), torch.ones(4, 8, dtype=torch.bool)
    fast = router.for_inference(dtype)
    optimizer = torch.optim.AdamW(router.parameters(), lr=0.05)
    with torch.no_grad():
        before = fast(rows, mask)
    router(rows, mask).square().sum().backward()
    optimizer.step()
    with torch.no_grad():
        expected = router(rows, mask)
        torch.testing.assert_close(fast(rows, mask), expected, rtol=0.02, atol=0.05)
        assert (before - expected).abs().max() > 0.2
    assert fast.digest() == router.digest()


def test_unknown_dtypes_are_refused(router):
    """The message lists what is allowed."""
    with pytest.raises(ConfigError, match=r"dtype must be one of \['float32', 'bfloat16', 'float16'\], got 'int4'"):
        router.for_inference("int4")


@pytest.mark.gpu
def test_the_gpu_gives_the_cpu_numbers(router, tmp_path):
    """Loaded on CUDA, the router decides as on the CPU."""
    router.save(tmp_path)
    on_gpu = PrecisionRouter.load(tmp_path, device="cuda")
    np.testing.assert_allclose(on_gpu.act(_rows(4, 8).numpy()), router.act(_rows(4, 8).numpy()), atol=1e-4)
    assert on_gpu.digest() == router.digest()
