"""Reads a JSON file of any size value by value: the elements of one big array, or the members of one big object.

Only the value being read is in memory, beside a buffer of a few megabytes.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from dmr_gym.errors import TaskError

CHUNK_BYTES = 1 << 20
MAX_VALUE_CHARACTERS = 1 << 26
_NEAR_END = 16  # an escape or a number cut at the buffer's end is reported this close to it, or closer
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonStream:
    """A pass through a JSON file; one of `elements` and `members` may be called, once.

    Args:
        path: the file, in UTF-8, with a byte order mark or without.
        noun: what a value is, for messages, such as "row".
        on_bytes: called with the size of each chunk that was read.
        way_out: ends the message about a file that cannot be read as JSON.

    Raises:
        TaskError: from the iterators, when the file cannot be read, is not UTF-8, ends early, or is not JSON.
    """

    def __init__(
        self,
        path: Path,
        noun: str = "row",
        on_bytes: Callable[[int], object] | None = None,
        way_out: str = "get it from WebShop's release again",
    ) -> None:
        self._path = path
        self._noun = noun
        self._on_bytes = on_bytes
        self._way_out = way_out
        self._chunks: Iterator[str] = self._read_chunks()
        self._hash = hashlib.sha256()
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._place = 0
        self._values = 0
        self._ended = False

    @property
    def digest(self) -> str | None:
        """sha256 of the file, in hexadecimal; None before the whole of it was read."""
        return self._hash.hexdigest() if self._ended else None

    def elements(self) -> Iterator[Any]:
        """Yield the elements of an array."""
        for _ in self._separated("[", "]"):
            yield self._value()[0]

    def members(self) -> Iterator[tuple[str, str]]:
        """Yield key and value of an object's members; the value as the text that stands in the file."""
        for _ in self._separated("{", "}"):
            key = self._value()[0]
            if not isinstance(key, str) or self._peek() != ":":
                self._fail("expected a key in quotes and a colon")
            self._place += 1
            yield key, self._value()[1]

    def _separated(self, opening: str, closing: str) -> Iterator[None]:
        """Yield before each value; the caller reads it."""
        self._expect(opening)
        if self._peek() == closing:
            self._place += 1
            return self._finish()
        while True:
            self._peek()
            yield
            self._values += 1
            if self._peek() == closing:
                self._place += 1
                return self._finish()
            self._expect(",")

    def _expect(self, character: str) -> None:
        found = self._peek()
        if found != character:
            self._fail(
                f"expected {character!r}, found {found!r}" if found else f"expected {character!r}, the file ends"
            )
        self._place += 1

    def _finish(self) -> None:
        if self._peek():
            self._fail("more text follows the end of the data")

    def _peek(self) -> str:
        """The next character that is no space, at which the place then is; "" at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._place)
            assert match is not None
            self._place = match.end()
            if self._place < len(self._text):
                return self._text[self._place]
            if not self._fill(CHUNK_BYTES):
                return ""

    def _value(self) -> tuple[Any, str]:
        """Read the value at the place, and its text."""
        self._peek()
        wanted = CHUNK_BYTES
        while True:
            try:
                value, end = self._decode(self._text, self._place)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _NEAR_END
                if not is_cut or not self._fill(wanted):
                    self._fail(f"{error.msg}{', the file ends' if self._ended and is_cut else ''}")
            except RecursionError:
                self._fail("nested too deep")
            except ValueError as error:  # a number of thousands of digits
                self._fail(str(error), error)
            else:
                # A number at the end of the buffer, or one before "e-" there, may go on in the next chunk.
                if end < len(self._text) - 2 or not self._fill(wanted):
                    text = self._text[self._place : end]
                    self._place = end
                    return value, text
            wanted *= 2

    def _fill(self, wanted: int) -> bool:
        """Read at least ``wanted`` more bytes; False at the end of the file."""
        if self._ended:
            return False
        parts = [self._text[self._place :]]
        if len(parts[0]) > MAX_VALUE_CHARACTERS:
            self._fail(f"longer than {MAX_VALUE_CHARACTERS:,} characters")
        self._place = 0
        while wanted > 0 and not self._ended:
            part = next(self._chunks, None)
            self._ended = part is None
            parts.append(part or "")
            wanted -= CHUNK_BYTES
        self._text = "".join(parts)
        return True

    def _read_chunks(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        done = 0
        is_first = True
        try:
            with self._path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    self._hash.update(chunk)
                    start = done - len(decoder.getstate()[0])
                    done += len(chunk)
                    if self._on_bytes is not None:
                        self._on_bytes(len(chunk))
                    text = decoder.decode(chunk)
                    yield text.removeprefix("\ufeff") if is_first else text
                    is_first = is_first and not text
                start = done - len(decoder.getstate()[0])
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            self._fail(f"not UTF-8 at byte {start + error.start:,} ({error.reason})", error)
        except OSError as error:
            raise TaskError(
                f"{self._path}: cannot be read ({error.strerror}); give the folder that has WebShop's data files"
            ) from error

    def _fail(self, problem: str, cause: Exception | None = None) -> NoReturn:
        raise TaskError(
            f"{self._path}: not readable as JSON at {self._noun} {self._values}: {problem}. The file is damaged or was "
            f"not downloaded whole; {self._way_out}"
        ) from cause
