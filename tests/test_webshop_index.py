"""The search index against a plain scorer on random catalogues, and against rankings recorded from the original."""

from __future__ import annotations

import gzip
import json
import math
import random
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import bench_webshop_scale
from dmr_gym.errors import CacheError, ConfigError
from dmr_gym.tasks.webshop import bm25, index_memory
from dmr_gym.tasks.webshop.analyzer import analyse
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.index import SearchIndex, build_index
from dmr_gym.tasks.webshop.index_arrays import map_array
from dmr_gym.tasks.webshop.index_memory import release_pages

ALWAYS, NEVER = 1, 1 << 40
"""Catalogue sizes from which frequent terms get dense rows."""


def plain_search(texts: Sequence[str], asins: Sequence[str], query: str, k: int = 50) -> list[int]:
    """BM25 by its definition: one product and one term after the other, numbers as Lucene rounds them."""
    counts = [Counter(analyse(text)) for text in texts]
    n_documents = sum(1 for count in counts if count)
    average = np.float32(sum(map(Counter.total, counts)) / max(1, n_documents))
    one, k1, b = np.float32(1), np.float32(0.9), np.float32(0.4)
    scores: dict[int, float] = {}
    for number, count in enumerate(counts):
        length = np.float32(bm25.code_length(bm25.length_code(count.total())))
        for term, repeated in Counter(analyse(query)).items():
            if not count[term]:
                continue
            df = sum(1 for other in counts if other[term])
            weight = np.float32(repeated) * np.float32(math.log(1 + (n_documents - df + 0.5) / (df + 0.5)))
            inverse = one / (k1 * ((one - b) + b * length / average))
            part = weight - weight / (one + np.float32(count[term]) * inverse)
            scores[number] = scores.get(number, 0.0) + float(part)
    return sorted(scores, key=lambda number: (-np.float32(scores[number]), asins[number]))[:k]


def random_catalogue(seed: int, n_products: int, n_words: int = 12) -> tuple[list[str], list[str], list[str]]:
    """Texts, asins in no order, and queries over a small vocabulary: many ties, empty texts, words in all texts."""
    chance = random.Random(seed)
    words = [f"w{number}" for number in range(n_words)]
    weights = [1 / (rank + 1) ** 1.5 for rank in range(n_words)]
    texts = [" ".join(chance.choices(words, weights, k=chance.choice((0, 1, 2, 3, 8, 50)))) for _ in range(n_products)]
    asins = [f"B{number:05d}" for number in chance.sample(range(99999), n_products)]
    queries = [" ".join(chance.choices([*words, "absent"], k=chance.randint(1, 12))) for _ in range(6)]
    return texts, asins, queries


@pytest.fixture
def catalogue() -> tuple[list[str], list[str], list[str]]:
    """Sixty products."""
    return random_catalogue(5, 60)


@pytest.mark.parametrize("dense_from", [ALWAYS, NEVER])
def test_recorded_queries_are_ranked_as_by_the_original(
    shared_conformance: Path, shared_data: Path, dense_from: int
) -> None:
    """All ranks of all 400 recorded queries are the same, with and without pruning."""
    folder = shared_data / "webshop"
    rows = json.loads((folder / "items_shuffle_1000.json").read_text(encoding="utf-8"))
    instructions = json.loads((folder / "items_ins_v2_1000.json").read_text(encoding="utf-8"))
    shop = Catalogue.from_rows(rows, instructions, "items_shuffle_1000.json")
    products = [shop[number] for number in range(len(shop))]
    index = SearchIndex.build((p.index_text for p in products), [p.asin for p in products], dense_from)
    with gzip.open(shared_conformance / "webshop_search.jsonl.gz", "rt", encoding="utf-8") as file:
        recorded = [json.loads(line) for line in file]
    assert len(recorded) == 400
    differences = [
        row["query"] for row in recorded if [products[n].asin for n in index.search(row["query"])] != row["asins"]
    ]
    assert differences == []


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 90), st.sampled_from([3, 12, 40]), st.sampled_from([1, 3, 50]))
def test_ranking_is_that_of_the_plain_scorer(seed: int, n_products: int, n_words: int, k: int) -> None:
    """With and without pruning the ranking is the plain scorer's: ties, repeated words, empty texts, frequent words."""
    texts, asins, queries = random_catalogue(seed, n_products, n_words)
    expected = [plain_search(texts, asins, query, k) for query in queries]
    for dense_from in (ALWAYS, NEVER):
        index = SearchIndex.build(texts, asins, dense_from)
        assert [index.search(query, k) for query in queries] == expected


@pytest.mark.parametrize("seed", range(3))
def test_pruning_keeps_the_ranking_of_a_larger_catalogue(seed: int) -> None:
    """Pruned and whole scoring agree on thousands of products, where candidates come in several rounds."""
    texts, asins, queries = random_catalogue(seed, 6000, 300)
    pruned, whole = SearchIndex.build(texts, asins, ALWAYS), SearchIndex.build(texts, asins, NEVER)
    for query in [*queries, "w0", "w0 w1", "w0 w0 w0 w5", " ".join(["w0", "w1"] * 20), "w1 " * 300 + "w2"]:
        for k in (1, 50, 1000):
            assert pruned.search(query, k) == whole.search(query, k), query


def test_codes_are_upper_bounds_of_scores(catalogue: tuple[list[str], list[str], list[str]]) -> None:
    """No product scores more than its codes allow."""
    texts, asins, queries = catalogue
    index = SearchIndex.build(texts, asins, ALWAYS)
    ranker, unit = index._ranker, index._arrays.meta.code_unit
    everything = np.arange(len(texts), dtype=np.int32)
    for query in [*queries, "w0 " * 9 + "w1 " * 5, "w0 " * 100, "w3 " * 300]:
        terms = index._query_terms(query)
        assert np.all(ranker._bounds(terms) * unit >= ranker._scores(everything, terms) * (1 - 1e-5))


def test_score_of_a_term_by_hand() -> None:
    """Two products of 2 and 6 terms, average 4: ln(1 + 1.5 / 1.5) · 2 / (2 + 0.9 · (0.6 + 0.4 · 2 / 4))."""
    assert bm25.idf(2, 1) == pytest.approx(math.log(2))
    inverse = bm25.inverse_norms(2, 8)
    assert 1 / inverse[2] == pytest.approx(0.72)
    part = bm25.parts(bm25.idf(2, 1), np.float32(2) * inverse[[2]])
    assert part == pytest.approx([math.log(2) * 2 / 2.72])
    assert part.dtype == np.float32


def test_lengths_are_rounded_down_to_four_significant_bits() -> None:
    """Exact to 40; then steps of 2 from 40 on, of 4 from 56 on, of 8 from 88 on, of 16 from 152 on."""
    assert [bm25.code_length(bm25.length_code(n)) for n in range(41)] == list(range(41))
    rounded = {41: 40, 42: 42, 55: 54, 57: 56, 87: 84, 88: 88, 95: 88, 151: 144, 167: 152, 1000: 984}
    assert {n: bm25.code_length(bm25.length_code(n)) for n in rounded} == rounded
    lengths = np.arange(5000, dtype=np.int32)
    assert bm25.length_codes(lengths).tolist() == [bm25.length_code(n) for n in range(5000)]
    assert bm25.length_code(2**31 - 1) == 255


def test_equal_scores_are_ordered_by_asin() -> None:
    """The same text everywhere: the smallest asins come first, whatever the products' order."""
    asins = [f"B{(number * 37) % 101:03d}" for number in range(101)]
    for dense_from in (ALWAYS, NEVER):
        found = SearchIndex.build(["red shoes"] * 101, asins, dense_from).search("red", 50)
        assert [asins[number] for number in found] == [f"B{number:03d}" for number in range(50)]


def test_products_without_a_word_of_the_query_are_not_returned() -> None:
    """Empty texts, unknown words, stop words and k below one give nothing."""
    index = SearchIndex.build(["red shoes", "", "the of", "blue hat"], ["d", "c", "b", "a"])
    assert index.search("red hats") == [3, 0]
    assert index.search("green") == index.search("the") == index.search("") == index.search("red", 0) == []
    assert len(index) == 4
    for dense_from in (ALWAYS, NEVER):
        assert SearchIndex.build([], [], dense_from).search("red") == []
        assert SearchIndex.build(["", ""], ["a", "b"], dense_from).search("red") == []


def test_a_result_is_a_list_of_its_own() -> None:
    """Changing a result does not change the next one."""
    index = SearchIndex.build(["red", "red"], ["a", "b"])
    index.search("red").clear()
    assert index.search("red") == [0, 1]


@pytest.mark.parametrize("dense_from", [ALWAYS, NEVER])
def test_term_frequencies_of_any_size_are_exact(dense_from: int) -> None:
    """Frequencies around 255 and far above are told apart."""
    texts = ["red " * n + "blue " * (900 - n) for n in (254, 255, 256, 700, 2)] + ["blue " * 900]
    asins = list("abcdef")
    index = SearchIndex.build(texts, asins, dense_from)
    assert index.search("red") == plain_search(texts, asins, "red") == [3, 2, 1, 0, 4]
    assert index.search("red blue blue") == plain_search(texts, asins, "red blue blue")


@pytest.mark.parametrize("dense_from", [ALWAYS, NEVER])
def test_index_on_disk_is_that_in_memory(
    tmp_path: Path, catalogue: tuple[list[str], list[str], list[str]], dense_from: int
) -> None:
    """Built from a stream in runs of any size: all arrays are the same."""
    texts, asins, queries = catalogue
    texts[3] = "w0 " * 400 + "\u6f22\ud83d★"
    index = SearchIndex.build(texts, asins, dense_from)
    for size in (1, 700, 10**9):
        build_index(iter(texts), np.array(asins), tmp_path / str(size), batch_characters=size, dense_from=dense_from)
    for name in ("1", "700", str(10**9)):
        opened = SearchIndex.open(tmp_path / name)
        assert opened._arrays.meta == index._arrays.meta
        for array, values in vars(index._arrays).items():
            assert np.array_equal(getattr(opened._arrays, array), values), (name, array)
        assert [opened.search(query) for query in queries] == [index.search(query) for query in queries]
        assert not (tmp_path / name / "runs").exists()


def test_progress_is_told_to_the_end(tmp_path: Path, catalogue: tuple[list[str], list[str], list[str]]) -> None:
    """Both stages count up to all texts and all terms."""
    texts, asins, _ = catalogue
    told: list[tuple[str, int, int]] = []
    build_index(texts, asins, tmp_path, lambda *stage: told.append(stage), batch_characters=1000)
    assert told == sorted(told, key=lambda stage: (stage[0] == "terms", stage[1]))
    assert ("texts", 60, 60) in told
    assert told[-1] == ("terms", 12, 12)


def test_worker_processes_build_the_same_index(
    tmp_path: Path, catalogue: tuple[list[str], list[str], list[str]]
) -> None:
    """Two workers and small batches give the files that one process writes."""
    texts, asins, _ = catalogue
    build_index(texts, asins, tmp_path / "0")
    build_index(texts, asins, tmp_path / "2", workers=2, batch_characters=500)
    for path in (tmp_path / "0").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()


@pytest.mark.slow
def test_scale_benchmark_measures_each_size(tmp_path: Path) -> None:
    """Figures of all stages are there, texts have about 5 kB, and the record is written."""
    (row,) = bench_webshop_scale.main(["--products", "300", "--out", str(tmp_path)])["sizes"]
    assert 4000 < row["text_bytes_a_product"] < 6000
    assert 350 < row["terms_a_product"] < 550
    assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
    assert min(row["build_s"], row["disk_mb"], row["open_ms"]) > 0
    assert row["goals"] == 300 * 3 * 2
    assert 0 < row["engine_made_s"] <= row["start_s"] < row["open_s"] + 1
    assert row["open_disk_mb"] > row["disk_mb"]
    record = json.loads((tmp_path / "webshop_scale.json").read_text(encoding="utf-8"))
    assert record["sizes"] == [row]
    assert sorted(path.suffix for path in tmp_path.iterdir()) in ([".json", ".png"], [".json"])


def test_interrupted_build_is_no_index_and_does_not_disturb_the_next(tmp_path: Path) -> None:
    """A stream that fails leaves nothing to open; what a killed build left behind is removed."""

    def texts() -> Iterator[str]:
        yield "red"
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        build_index(texts(), ["a", "b"], tmp_path / "index")
    with pytest.raises(CacheError):
        SearchIndex.open(tmp_path / "index")
    (tmp_path / "index" / "runs").mkdir()
    (tmp_path / "index" / "runs" / "00007-docs.npy").write_bytes(b"half a file")
    build_index(["red", "blue"], ["a", "b"], tmp_path / "index", batch_characters=1)
    assert SearchIndex.open(tmp_path / "index").search("red") == [0]
    assert not (tmp_path / "index" / "runs").exists()


def test_numbers_of_texts_and_asins_have_to_agree(tmp_path: Path) -> None:
    """The message has both numbers."""
    message = "^expected as many texts as asins, got 1 texts and 2 asins$"
    with pytest.raises(ConfigError, match=message):
        SearchIndex.build(["red"], ["a", "b"])
    with pytest.raises(ConfigError, match=message):
        build_index(["red"], ["a", "b"], tmp_path)


def test_damaged_index_is_told(tmp_path: Path, catalogue: tuple[list[str], list[str], list[str]]) -> None:
    """A missing, cut, exchanged or older file raises CacheError, which says what to do."""
    texts, asins, _ = catalogue
    build_index(texts, asins, tmp_path / "good", dense_from=ALWAYS)

    def damage(name: str, content: bytes | None) -> None:
        bad = tmp_path / "bad"
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(tmp_path / "good", bad)
        (bad / name).unlink()
        if content is not None:
            (bad / name).write_bytes(content)
        with pytest.raises(CacheError, match="build it again"):
            SearchIndex.open(bad)

    for name in ("docs.npy", "index.json"):
        content = (tmp_path / "good" / name).read_bytes()
        for changed in (None, b"", content[:-9], content[:40]):
            damage(name, changed)
    damage("docs.npy", (tmp_path / "good" / "tfs.npy").read_bytes())
    damage("norms.npy", (tmp_path / "good" / "term_bytes.npy").read_bytes())
    damage("index.json", (tmp_path / "good" / "index.json").read_bytes().replace(b'"format": 1', b'"format": 0'))
    damage("index.json", b"[1]")


def test_impossible_numbers_on_disk_are_told_when_they_are_met(tmp_path: Path) -> None:
    """A product number that no product has leads to an error that names the folder."""
    build_index(["red lamp", "red"], ["A", "B"], tmp_path)
    docs = np.load(tmp_path / "docs.npy")
    np.save(tmp_path / "docs.npy", np.full_like(docs, 99))
    with pytest.raises(CacheError, match=r"is damaged \(.*\); delete the folder and build it again"):
        SearchIndex.open(tmp_path).search("lamp")


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Bytes a number, start and stop of every stretch that an index lets go of."""
    stretches: list[tuple[int, int, int]] = []

    def release(array: np.ndarray, start: int, stop: int) -> None:
        stretches.append((array.itemsize, start, stop))
        release_pages(array, start, stop)

    monkeypatch.setattr(index_memory, "release_pages", release)
    return stretches


@pytest.mark.parametrize("dense_from", [ALWAYS, NEVER], ids=["frequent", "rare"])
def test_an_index_larger_than_its_limit_lets_go_of_pages_and_ranks_as_before(
    tmp_path: Path,
    catalogue: tuple[list[str], list[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    released: list[tuple[int, int, int]],
    dense_from: int,
) -> None:
    """With room for nothing every term goes at once; with room for all none does. The ranking is the same."""
    texts, asins, queries = catalogue
    build_index(texts, asins, tmp_path / "index", dense_from=dense_from)
    expected = [SearchIndex.open(tmp_path / "index").search(query, 50) for query in queries]
    assert released == []
    monkeypatch.setattr(index_memory, "RESIDENT_BYTES", 1)
    index = SearchIndex.open(tmp_path / "index")
    assert [index.search(query, 50) for query in queries] == expected
    assert len(released) >= 2 * sum(map(bool, expected)) > 0


def test_the_term_that_was_read_longest_ago_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, released: list[tuple[int, int, int]]
) -> None:
    """Room for two terms of two products each: reading a, b, a, c lets go of b, whose postings are in three arrays."""
    build_index(["red lamp", "red lamp", "oak desk", "oak desk"], ["A", "B", "C", "D"], tmp_path, dense_from=NEVER)
    arrays = SearchIndex.open(tmp_path)._arrays
    size = 2 * (4 + 1 + 1) + 3 * index_memory.FAULT_AROUND_BYTES
    resident = index_memory.ResidentTerms(arrays, {}, 2 * size)
    resident._is_bounded = True  # as if the arrays were larger than that
    for term in (0, 1, 0, 2):
        resident.read(term)
    first = int(arrays.starts[1])
    assert released == [(4, first, first + 2), (1, first, first + 2), (1, first, first + 2)]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is resident")
def test_released_pages_are_not_resident_and_can_be_read_again(tmp_path: Path) -> None:
    """Eight megabytes are resident after reading; a released half, or all of it, is not. Arrays in memory stay."""
    values = np.arange(1 << 20, dtype=np.int64)
    np.save(tmp_path / "values.npy", values)

    def resident_kb() -> int:
        lines = Path("/proc/self/smaps").read_text().split("\n")
        start = next(place for place, line in enumerate(lines) if line.endswith("values.npy"))
        return int(next(line for line in lines[start:] if line.startswith("Rss:")).split()[1])

    mapped = map_array(tmp_path / "values.npy")
    total = int(mapped.sum())
    assert resident_kb() > 8000
    release_pages(mapped, 0, 1 << 19)
    assert 1900 < resident_kb() < 4200  # a large page of 2 MB goes as a whole
    release_pages(mapped)
    release_pages(values)
    assert resident_kb() < 100
    assert int(mapped.sum()) == total == int(values.sum())
