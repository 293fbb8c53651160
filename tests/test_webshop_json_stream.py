"""Big JSON files are read value by value, whatever the size of the buffer; damaged ones say where and why."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmr_gym.errors import TaskError
from dmr_gym.tasks.webshop import json_stream
from dmr_gym.tasks.webshop.json_stream import JsonStream

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path to write to."""
    return tmp_path_factory.mktemp("stream") / "data.json"


@settings(max_examples=80, deadline=None)
@given(st.lists(VALUES, max_size=5), st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
def test_elements_are_those_of_json_load(
    file: Path, values: list[Any], chunk_bytes: int, is_ascii: bool, indent: int | None
) -> None:
    """An array read in chunks of any size has the elements that json.load finds; the digest is the file's sha256."""
    data = json.dumps(values, ensure_ascii=is_ascii, indent=indent).encode("utf-8", "replace")
    file.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
        stream = JsonStream(file)
        assert list(stream.elements()) == json.loads(data)
    assert stream.digest == hashlib.sha256(data).hexdigest()


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=5), st.integers(1, 40))
def test_members_are_those_of_json_load(file: Path, values: dict[str, Any], chunk_bytes: int) -> None:
    """An object's members have their keys and texts that parse to their values."""
    file.write_text(json.dumps(values), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
        members = list(JsonStream(file).members())
    assert {key: json.loads(text) for key, text in members} == values


@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
@pytest.mark.parametrize(
    ("data", "row", "problem"),
    [
        (b"", 0, "expected '[', the file ends"),
        (b"{}", 0, "expected '[', found '{'"),
        (b"\xef\xbb\xbf" * 2 + b"[]", 0, "expected '[', found '\\ufeff'"),
        (b"[", 0, "Expecting value, the file ends"),
        (b'[{"a": 1}', 1, "expected ',', the file ends"),
        (b'[{"a": 1}, {"b', 1, "Unterminated string starting at, the file ends"),
        (b'[{"a": 1}, {"b": tr', 1, "Expecting value, the file ends"),
        (b'[{"a": 1},]', 1, "Expecting value"),
        (b"[1 2]", 1, "expected ',', found '2'"),
        (b"[] x", 0, "more text follows the end of the data"),
        (b'[{"a" 5, "' + b"b" * 40 + b'": 1}]', 0, "Expecting ':' delimiter"),
        (b'[{"a":' + b"[" * 20_000, 0, "nested too deep"),
    ],
)
def test_damaged_file_names_file_row_and_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, row: int, problem: str, chunk_bytes: int
) -> None:
    """What is no JSON, or only the beginning of it, is an error that tells the row and the way out."""
    path = tmp_path / "items.json"
    path.write_bytes(data)
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
    with pytest.raises(TaskError) as failure:
        list(JsonStream(path).elements())
    assert str(failure.value).startswith(f"{path}: not readable as JSON at row {row}: {problem}")
    assert str(failure.value).endswith("not downloaded whole; get it from WebShop's release again")


@pytest.mark.parametrize("chunk_bytes", [2, 1 << 20])
def test_text_that_is_not_utf_8_names_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    """A byte of another encoding, and a character cut at the end of the file, are told by their place."""
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "items.json"
    path.write_bytes('["é", "'.encode() + b'\xe9t\xe9"]')
    with pytest.raises(TaskError, match="not UTF-8 at byte 8 "):
        list(JsonStream(path).elements())
    path.write_bytes(b'["\xc3')
    with pytest.raises(TaskError, match="not UTF-8 at byte 2 "):
        list(JsonStream(path).elements())


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A file that does not exist is an error with the way out."""
    with pytest.raises(TaskError, match=r"none.json: cannot be read \(No such file or directory\); give the folder"):
        list(JsonStream(tmp_path / "none.json").elements())


def test_value_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text that is never closed is given up after the longest allowed value."""
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", 16)
    monkeypatch.setattr(json_stream, "MAX_VALUE_CHARACTERS", 100)
    path = tmp_path / "items.json"
    path.write_bytes(b'["' + b"a" * 10_000)
    with pytest.raises(TaskError, match="at row 0: longer than 100 characters"):
        list(JsonStream(path).elements())
    stream = JsonStream(path)
    with pytest.raises(TaskError):
        list(stream.elements())
    assert stream.digest is None


@pytest.mark.parametrize("chunk_bytes", [1, 2, 1 << 20])
def test_byte_order_mark_is_skipped(file: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """At the start of the file only; in a text the character stays."""
    monkeypatch.setattr(json_stream, "CHUNK_BYTES", chunk_bytes)
    file.write_text('\ufeff["\ufeffa", 2]', encoding="utf-8")
    assert list(JsonStream(file).elements()) == ["\ufeffa", 2]
    file.write_text('\ufeff\ufeff["a"]', encoding="utf-8")
    with pytest.raises(TaskError, match="expected '\\['"):
        list(JsonStream(file).elements())


def test_number_of_thousands_of_digits_is_told(file: Path) -> None:
    """Python refuses to read it; the message names the file as for any other damage."""
    file.write_text(f"[1, {'9' * 5000}]", encoding="utf-8")
    with pytest.raises(TaskError, match=r"data.json: not readable as JSON at row 1: .* digits"):
        list(JsonStream(file).elements())
