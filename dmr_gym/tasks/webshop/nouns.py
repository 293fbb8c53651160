"""Nouns of product titles, by which the reward tells what kind of thing a product is.

The original tags titles with spaCy while it scores. Its published rewards used spaCy 2.3.9 and en_core_web_sm 2.2.5;
newer models take other words for nouns (spaCy 3.8.18 with model 3.8.0 gives the same list for 3 titles in 10, and the
same r_type for 94 to 97 pairs of products in 100). So the tagger is a part of the data, not of the engine:

1. ``title_nouns.json`` beside the products, ``{asin: [noun, ...]}`` in the title's order with repeats: tokens that are
   tagged NOUN or PROPN, lower-cased. Made once with the old versions, it gives the original's rewards exactly.
2. Otherwise an installed spaCy tags the titles once, in about an hour a million, and the table is kept in the index
   directory, under a name that tells these products and this tagger from others. Without spaCy a table that is there
   already is used.
3. Otherwise all words of a title that begin with a letter, but for stop words, pass for nouns, with a warning. Most
   words of product titles are nouns, and r_type is the original's for 91 to 95 pairs of products in 100.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dmr_gym.errors import TaskError
from dmr_gym.tasks.webshop.analyzer import STOP_WORDS
from dmr_gym.tasks.webshop.catalogue import Catalogue
from dmr_gym.tasks.webshop.index_folder import build_lock
from dmr_gym.tasks.webshop.json_stream import JsonStream
from dmr_gym.tasks.webshop.noun_table import NounTable

FILE_NAME = "title_nouns.json"
MODEL = "en_core_web_sm"
WORDS_TAGGER = "none: all words of the title"
_NOUN_TAGS = frozenset({"NOUN", "PROPN"})
# They change no tag, and take most of the time.
_NEEDLESS_PIPES = ("parser", "ner", "lemmatizer")
_MAPPED_FROM_BYTES = 8 << 20
_FILE_WAY_OUT = "make it again for these products, or move it away"
_WORD = re.compile(r"\b[^\W\d_]\w*")


class TitleNounsWarning(UserWarning):
    """The nouns of titles, and so r_type, are not the original's, or are made again at every start."""


class Tagger(NamedTuple):
    """Something that tells nouns: its name and version, and a function from titles to their nouns, in order."""

    name: str
    nouns: Callable[[Iterable[str]], Iterator[Sequence[str]]]


class TitleNouns:
    """The nouns of each product's title. Immutable."""

    def __init__(self, lookup: Callable[[str], Sequence[str] | None], tagger: str) -> None:
        """Wrap a function from an asin to its nouns (None when it is unknown), and the name of what told the nouns."""
        self._lookup = lookup
        self._tagger = tagger

    @classmethod
    def from_mapping(cls, nouns: Mapping[str, Sequence[str]], tagger: str = "as given") -> TitleNouns:
        """Use a mapping asin -> nouns of the title, repeats kept. It is not copied."""
        return cls(nouns.get, tagger)

    @classmethod
    def from_words(cls, title_of: Callable[[str], str]) -> TitleNouns:
        """Take a title's words for its nouns; ``title_of`` gives the title of an asin."""
        return cls(lambda asin: title_words(title_of(asin)), WORDS_TAGGER)

    @property
    def tagger(self) -> str:
        """What told nouns from other words, with its version where known."""
        return self._tagger

    def nouns_of(self, asin: str) -> tuple[str, ...]:
        """The nouns of a product's title, lower-cased, in order, repeats kept.

        Raises:
            TaskError: there is no such product here.
        """
        nouns = self._lookup(asin)
        if nouns is None:
            raise TaskError(f"no title nouns for asin {asin!r:.40} (made by: {self._tagger}); see {FILE_NAME}")
        return tuple(nouns)


def title_words(title: str) -> tuple[str, ...]:
    """The words of a title that begin with a letter, lower-cased, in order, without stop words."""
    return tuple(word for word in _WORD.findall(title.lower()) if word not in STOP_WORDS)


def load_title_nouns(catalogue: Catalogue, data_dir: Path | None, table_dir: Path | None) -> TitleNouns:
    """Find the nouns of a catalogue's titles: from the file, else tagged by spaCy once, else the titles' words.

    Args:
        catalogue: the products.
        data_dir: their folder; None for products that have none.
        table_dir: where tables are kept; None keeps none.

    Raises:
        TaskError: ``title_nouns.json`` cannot be read, or lacks products.
        CacheError: a table on disk is damaged.
    """
    if data_dir is not None and (data_dir / FILE_NAME).is_file():
        return _from_file(data_dir / FILE_NAME, catalogue, table_dir)
    stem = f"title_nouns-{len(catalogue)}-{catalogue.columns.checksum:08x}-"
    installed = installed_tagger()
    if table_dir is not None and installed is None:
        made_elsewhere = sorted(table_dir.glob(f"{stem}*"))
        if made_elsewhere:
            return _from_table(NounTable.open(made_elsewhere[0]))
    folder = None if table_dir is None else table_dir / f"{stem}{_short_digest(str(installed))}"
    if folder is not None and folder.is_dir():
        return _from_table(NounTable.open(folder))
    try:
        tagger = load_tagger()
    except (ImportError, OSError, ValueError) as error:
        _warn_of_words(data_dir, error)
        return TitleNouns.from_words(lambda asin: catalogue[catalogue.index_of(asin)].title)
    if folder is None:
        if data_dir is not None:
            _warn_of_no_table(data_dir)
        return _from_table(_tag(tagger, catalogue))
    return _from_table(_kept(lambda: _tag(tagger, catalogue), folder))


def installed_tagger(model: str = MODEL) -> str | None:
    """Name and version of spaCy and its model, told without loading them; None when one of them is absent."""
    try:
        return f"spaCy {importlib.metadata.version('spacy')}, {model} {importlib.metadata.version(model)}"
    except importlib.metadata.PackageNotFoundError:
        return None


def load_tagger(model: str = MODEL) -> Tagger:
    """Load spaCy and one of its English models.

    Raises:
        ImportError: spaCy is not installed.
        OSError: the model is not installed.
    """
    spacy = importlib.import_module("spacy")
    nlp = spacy.load(model, exclude=list(_NEEDLESS_PIPES))

    def nouns(titles: Iterable[str]) -> Iterator[Sequence[str]]:
        for document in nlp.pipe(titles, batch_size=64):
            yield [token.text.lower() for token in document if token.pos_ in _NOUN_TAGS]

    return Tagger(f"spaCy {spacy.__version__}, {model} {nlp.meta['version']}", nouns)


def _from_table(table: NounTable) -> TitleNouns:
    return TitleNouns(table.get, table.tagger)


def _from_file(path: Path, catalogue: Catalogue, table_dir: Path | None) -> TitleNouns:
    """Read the file; a large one is turned into a table once, which every process then maps."""
    stat = path.stat()
    if table_dir is None or stat.st_size < _MAPPED_FROM_BYTES:
        return _from_table(_read(path, catalogue))
    origin = f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns} {len(catalogue)} {catalogue.columns.checksum}"
    return _from_table(_kept(lambda: _read(path, catalogue), table_dir / f"title_nouns-{_short_digest(origin)}"))


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _read(path: Path, catalogue: Catalogue) -> NounTable:
    table = NounTable.build(_rows(path), FILE_NAME)
    asins = catalogue.asins.tolist()
    missing = table.missing(asins)
    if missing:
        raise TaskError(
            f"{path} has no nouns for {len(missing)} of {len(asins)} products, such as {missing[0]!r}: {_FILE_WAY_OUT}"
        )
    return table


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    for asin, text in JsonStream(path, "entry", way_out=_FILE_WAY_OUT).members():
        nouns = json.loads(text)
        if not isinstance(nouns, list) or not all(isinstance(noun, str) for noun in nouns):
            raise TaskError(
                f"{path} must be {{asin: [noun, ...]}}, one list of texts a product; found {nouns!r:.60} for "
                f"{asin!r:.40}: {_FILE_WAY_OUT}"
            )
        yield asin, nouns


def _tag(tagger: Tagger, catalogue: Catalogue) -> NounTable:
    from tqdm import tqdm

    titles = (product.title for product in catalogue)
    # disable=None: a bar where there is a terminal, silence elsewhere.
    bar = tqdm(tagger.nouns(titles), total=len(catalogue), desc="nouns of titles", unit="title", disable=None)
    return NounTable.build(zip(catalogue.asins.tolist(), bar, strict=True), tagger.name)


def _kept(make: Callable[[], NounTable], folder: Path) -> NounTable:
    """The table of a folder, made once however many processes ask for it; as it is where it cannot be written."""
    if folder.is_dir():
        return NounTable.open(folder)
    table: NounTable | None = None
    try:
        with build_lock(folder):
            if not folder.is_dir():
                table = make()
                table.write(folder)
            return NounTable.open(folder)
    except OSError:
        _warn_of_no_table(folder.parent)
        return make() if table is None else table


def _warn_of_no_table(folder: Path) -> None:
    message = f"the table of title nouns cannot be written to {folder}: every start makes it again; set index_dir"
    warnings.warn(message, TitleNounsWarning, stacklevel=4)


def _warn_of_words(data_dir: Path | None, error: Exception) -> None:
    place = "" if data_dir is None else f"{data_dir} has no {FILE_NAME}, and "
    message = (
        f"{place}spaCy with {MODEL} cannot be loaded ({str(error).splitlines()[0]:.100}): r_type compares all words "
        "of two titles instead of their nouns, which changes it for 5 to 9 pairs of products in 100. For exact rewards "
        f"put {FILE_NAME} ({{asin: [noun, ...]}}) beside the products; for close ones: "
        f'pip install "dmr-gym[webshop]" && python -m spacy download {MODEL}'
    )
    warnings.warn(message, TitleNounsWarning, stacklevel=3)
