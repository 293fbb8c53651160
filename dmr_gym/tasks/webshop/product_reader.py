"""Streams the products of the official files: rows joined with their instruction entries, in the file's order."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from dmr_gym.errors import TaskError
from dmr_gym.tasks.webshop.build_progress import bytes_bar
from dmr_gym.tasks.webshop.catalogue import Product
from dmr_gym.tasks.webshop.data_files import DataFile, DataFiles, ObjectFile
from dmr_gym.tasks.webshop.json_stream import JsonStream
from dmr_gym.tasks.webshop.rows import RowReader


class ProductReader:
    """A pass through the data files.

    Args:
        files: the files.
        num_products: read only so many rows; None reads all.
    """

    def __init__(self, files: DataFiles, num_products: int | None) -> None:
        self._files = files
        self._num_products = num_products
        self._digests: dict[Path, str | None] = {}

    def read(self) -> Iterator[tuple[Product, bool]]:
        """Yield each product with whether the instruction file has it, under a progress bar if that takes long.

        Raises:
            TaskError: a file is broken; names file, row and key.
        """
        items, instructions = self._files.items, self._files.instructions
        with bytes_bar("reading products", instructions.size + items.size) as advance:
            entries = JsonStream(instructions.path, "entry", advance)
            texts = ObjectFile(entries.members())
            rows = JsonStream(items.path, "row", advance)
            yield from RowReader(texts, str(items.path), str(instructions.path)).read(
                islice(rows.elements(), self._num_products)
            )
            self._digests = {instructions.path: entries.digest, items.path: rows.digest}

    def records(self) -> list[dict[str, Any]]:
        """What a manifest keeps of the files that were read.

        Raises:
            TaskError: a file has changed since it was found.
        """
        records = []
        for file in (self._files.items, self._files.instructions):
            if DataFile.of(file.path) != file:
                raise TaskError(f"{file.path} has changed while it was read; wait until it is complete and try again")
            records.append(file.record(self._digests.get(file.path)))
        return records
