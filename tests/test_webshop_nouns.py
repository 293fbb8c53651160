"""Title nouns: where they come from, the table on disk, and what is said when they are not the original's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmr_gym.errors import CacheError, TaskError
from dmr_gym.tasks.webshop import nouns as nouns_module
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.noun_table import NounTable
from dmr_gym.tasks.webshop.nouns import (
    WORDS_TAGGER,
    Tagger,
    TitleNouns,
    TitleNounsWarning,
    load_title_nouns,
    title_words,
)
from tests.webshop_rows import make_row

TITLES = {"B000000002": "The Red Lamp of 12V", "B000000001": "Sofa and Sofa", "B000000003": "½ — 3"}


def tag(titles: Iterable[str]) -> Iterator[Sequence[str]]:
    """Take capitalised words for nouns."""
    for title in titles:
        yield [word.lower() for word in title.split() if word[0].isupper()]


@pytest.fixture
def tagger(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Install a stand-in for spaCy; the list grows by one at each loading."""
    loadings: list[int] = []

    def load(model: str = "") -> Tagger:
        loadings.append(1)
        return Tagger("stand-in 1.0", tag)

    monkeypatch.setattr(nouns_module, "load_tagger", load)
    monkeypatch.setattr(nouns_module, "installed_tagger", lambda: "stand-in 1.0")
    return loadings


@pytest.fixture
def no_tagger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make as if spaCy were not installed."""

    def load(model: str = "") -> Tagger:
        raise ImportError("No module named 'spacy'")

    monkeypatch.setattr(nouns_module, "load_tagger", load)
    monkeypatch.setattr(nouns_module, "installed_tagger", lambda: None)


def load(data_dir: Path | None, table_dir: Path | None = None, titles: dict[str, str] = TITLES) -> TitleNouns:
    """Load the nouns of the titles above."""
    catalogue = Catalogue.from_rows([make_row(asin, name=title) for asin, title in titles.items()], {})
    return load_title_nouns(catalogue, data_dir, table_dir)


def tables(folder: Path) -> list[Path]:
    """The tables in a folder."""
    return [path for path in folder.iterdir() if path.is_dir()]


asins = st.text("AB01", min_size=1, max_size=10)
noun_lists = st.lists(st.text(max_size=6), max_size=5)


@given(st.dictionaries(asins, noun_lists, max_size=12))
def test_table_returns_what_it_was_built_of(rows: dict[str, list[str]]) -> None:
    """Any words, repeats and order kept; other asins are unknown."""
    table = NounTable.build(rows.items(), "hand")
    assert {asin: table.get(asin) for asin in rows} == {asin: tuple(nouns) for asin, nouns in rows.items()}
    assert len(table) == len(rows)
    assert table.get("Z") is None
    assert table.get("A" * 11) is None
    assert table.missing([*rows, "Z"]) == ["Z"]


def test_last_of_equal_asins_counts() -> None:
    """As in a dict; the rows around it are not moved."""
    rows = [("B", ["old", "b"]), ("A", ["a"]), ("B", ["new"]), ("C", []), ("A", ["x", "a"])]
    table = NounTable.build(rows, "hand")
    assert len(table) == 3
    assert {asin: table.get(asin) for asin in "ABC"} == {"A": ("x", "a"), "B": ("new",), "C": ()}


def test_table_on_disk_is_the_same_and_mapped(tmp_path: Path) -> None:
    """Arrays stay on disk, and the manifest names the tagger."""
    NounTable.build([("B2", ["lamp", "lämp"]), ("B1", [])], "hand 1.0").write(tmp_path / "deep" / "table")
    table = NounTable.open(tmp_path / "deep" / "table")
    assert (table.get("B2"), table.get("B1"), table.tagger) == (("lamp", "lämp"), (), "hand 1.0")
    assert isinstance(table._ids.base, np.memmap)
    assert json.loads((tmp_path / "deep" / "table" / "manifest.json").read_text())["titles"] == 2
    assert os.listdir(tmp_path / "deep") == ["table"]


def test_table_keeps_what_another_process_wrote(tmp_path: Path) -> None:
    """The first writer wins, and the second leaves nothing behind."""
    NounTable.build([("B1", ["first"])], "one").write(tmp_path / "table")
    NounTable.build([("B1", ["second"])], "two").write(tmp_path / "table")
    assert NounTable.open(tmp_path / "table").get("B1") == ("first",)
    assert os.listdir(tmp_path) == ["table"]


@pytest.mark.parametrize("damage", ["no manifest", "other version", "cut array", "other sizes"])
def test_damaged_table_is_refused(tmp_path: Path, damage: str) -> None:
    """The message names the folder and says to delete it."""
    folder = tmp_path / "table"
    NounTable.build([("B1", ["lamp"])], "hand").write(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    if damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "cut array":
        (folder / "ids.npy").write_bytes((folder / "ids.npy").read_bytes()[:-2])
    else:
        key = "version" if damage == "other version" else "titles"
        (folder / "manifest.json").write_text(json.dumps({**manifest, key: 7}))
    with pytest.raises(CacheError, match=r"delete .*table and it is made again"):
        NounTable.open(folder)


def test_mapping_is_used_as_it_is() -> None:
    """Nouns come back as a tuple; an unknown product is an error."""
    nouns = TitleNouns.from_mapping({"B1": ["sofa", "sofa"]})
    assert nouns.nouns_of("B1") == ("sofa", "sofa")
    with pytest.raises(TaskError, match="no title nouns for asin 'B2'"):
        nouns.nouns_of("B2")


def test_file_beside_the_data_comes_first(tmp_path: Path, tagger: list[int]) -> None:
    """No tagger is loaded when the file is there."""
    (tmp_path / "title_nouns.json").write_text(json.dumps({asin: ["x", "y", "x"] for asin in TITLES}))
    nouns = load(tmp_path)
    assert nouns.nouns_of("B000000001") == ("x", "y", "x")
    assert nouns.tagger == "title_nouns.json"
    assert tagger == []
    assert os.listdir(tmp_path) == ["title_nouns.json"]


def test_large_file_is_mapped_from_the_index_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is parsed once, and again only after it has changed."""
    monkeypatch.setattr(nouns_module, "_MAPPED_FROM_BYTES", 1)
    path, index_dir = tmp_path / "data" / "title_nouns.json", tmp_path / "index"
    path.parent.mkdir()
    path.write_text(json.dumps({asin: ["old"] for asin in TITLES}))
    assert load(path.parent, index_dir).nouns_of("B000000002") == ("old",)
    assert len(tables(index_dir)) == 1
    with monkeypatch.context() as patch:
        patch.setattr(nouns_module, "_read", None)
        assert load(path.parent, index_dir).nouns_of("B000000002") == ("old",)
    path.write_text(json.dumps({asin: ["newer"] for asin in TITLES}))
    assert load(path.parent, index_dir).nouns_of("B000000002") == ("newer",)


def test_file_that_lacks_products_is_refused(tmp_path: Path) -> None:
    """Otherwise an episode would fail at its purchase."""
    (tmp_path / "title_nouns.json").write_text(json.dumps({"B000000001": []}))
    with pytest.raises(TaskError, match="has no nouns for 2 of 3 products, such as 'B000000002': make it again"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[", "[]", '{"B000000001": "sofa"}', '{"B000000001": [1]}', "\xff", "[" * 99_999, '{"B": ' + "[" * 99_999],
)
def test_file_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    """The message says what is expected."""
    (tmp_path / "title_nouns.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(TaskError, match=r"title_nouns\.json(: not readable as JSON| must be \{asin).*make it again"):
        load(tmp_path)


def test_titles_are_tagged_once(tmp_path: Path, tagger: list[int]) -> None:
    """The table is kept where tables go, not beside the data."""
    data_dir, index_dir = tmp_path / "data", tmp_path / "index"
    data_dir.mkdir()
    assert load(data_dir, index_dir).nouns_of("B000000002") == ("the", "red", "lamp")
    assert load(data_dir, index_dir).nouns_of("B000000001") == ("sofa", "sofa")
    assert load(data_dir, index_dir).tagger == "stand-in 1.0"
    assert (len(tagger), len(tables(index_dir)), os.listdir(data_dir)) == (1, 1, [])


def test_other_titles_or_taggers_have_tables_of_their_own(
    tmp_path: Path, tagger: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer products, the same asins with other titles, and another version of the tagger: each is tagged anew."""
    load(None, tmp_path)
    load(None, tmp_path, {"B000000001": TITLES["B000000001"]})
    changed = load(None, tmp_path, TITLES | {"B000000001": "Blue Chair"})
    assert changed.nouns_of("B000000001") == ("blue", "chair")
    monkeypatch.setattr(nouns_module, "installed_tagger", lambda: "stand-in 2.0")
    load(None, tmp_path)
    assert len(tagger) == len(tables(tmp_path)) == 4


def test_table_made_elsewhere_is_used_without_a_tagger(
    tmp_path: Path, tagger: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where spaCy is not installed, nobody else's table of these titles is better than their words."""
    load(None, tmp_path)
    monkeypatch.setattr(nouns_module, "installed_tagger", lambda: None)
    assert load(None, tmp_path).tagger == "stand-in 1.0"
    assert len(tagger) == 1


def test_table_that_cannot_be_kept_is_used_with_a_warning(tmp_path: Path, tagger: list[int]) -> None:
    """Nothing is lost but time. A file stands for a folder that cannot be written: root may write anywhere."""
    (tmp_path / "file").touch()
    with pytest.warns(TitleNounsWarning, match=f"cannot be written to {tmp_path}/file: every start .* set index_dir"):
        nouns = load(tmp_path, tmp_path / "file")
    assert nouns.nouns_of("B000000001") == ("sofa", "sofa")
    with pytest.warns(TitleNounsWarning, match=f"cannot be written to {tmp_path}: every start"):
        load(tmp_path)
    assert len(tagger) == 2


def test_products_without_a_folder_are_tagged_in_memory(tagger: list[int]) -> None:
    """Nothing is kept, and there is nothing to warn of."""
    assert load(None).nouns_of("B000000003") == ()
    assert len(tagger) == 1


@pytest.mark.usefixtures("no_tagger")
def test_without_a_tagger_words_pass_for_nouns_with_a_warning(tmp_path: Path) -> None:
    """The warning says what changes and how to get exact rewards; nothing is written."""
    with pytest.warns(TitleNounsWarning) as caught:
        nouns = load(tmp_path)
    message = str(caught[0].message)
    assert message.startswith(f"{tmp_path} has no title_nouns.json, and spaCy with en_core_web_sm cannot be loaded")
    assert 'pip install "dmr-gym[webshop]" && python -m spacy download en_core_web_sm' in message
    assert "r_type compares all words" in message
    assert nouns.nouns_of("B000000002") == ("red", "lamp")
    assert nouns.tagger == WORDS_TAGGER
    assert os.listdir(tmp_path) == []


def test_title_words_begin_with_a_letter_and_are_no_stop_words() -> None:
    """Order and repeats are kept; digits may follow a letter."""
    assert title_words("The Lamp for a LAMP, 12V mp3-player's Café") == (
        "lamp", "lamp", "mp3", "player", "s", "café",
    )  # fmt: skip


def test_a_missing_model_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether spaCy or its model is absent, `load_tagger` raises what `load_title_nouns` expects."""

    class Spacy:
        __version__ = "3.8"

        @staticmethod
        def load(model: str, exclude: list[str]) -> None:
            raise OSError(f"[E050] Can't find model {model!r}.")

    monkeypatch.setattr(nouns_module.importlib, "import_module", lambda name: Spacy)
    with pytest.warns(TitleNounsWarning, match="E050"):
        assert load(None).tagger == WORDS_TAGGER


def test_installed_spacy_finds_the_nouns() -> None:
    """With the extra and the model installed, nouns and proper nouns come back in order."""
    pytest.importorskip("spacy", reason="spaCy is not installed (extra webshop)")
    try:
        tagger = nouns_module.load_tagger()
    except OSError as error:
        pytest.skip(f"the model is not installed: {error}")
    assert list(tagger.nouns(["The lamp is on the table", "We sleep"])) == [["lamp", "table"], []]
    assert tagger.name.startswith("spaCy ")


def test_real_file_becomes_the_same_table(shared_data: Path, tmp_path: Path) -> None:
    """All 1,000 lists survive the way to disk and back."""
    rows = json.loads((shared_data / "webshop" / "title_nouns.json").read_text(encoding="utf-8"))
    NounTable.build(rows.items(), "file").write(tmp_path / "table")
    table = NounTable.open(tmp_path / "table")
    assert {asin: list(table.get(asin) or ()) for asin in rows} == rows
