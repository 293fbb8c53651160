"""Build of a search index on disk: batches of texts become runs, the runs are merged into the index's arrays.

Memory stays bounded whatever the number of products; the disk holds the postings twice for a while. A build that was
interrupted leaves a folder ``runs`` behind, which the next build of the same folder removes.
"""

from __future__ import annotations

import functools
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dmr_gym.tasks.webshop.index_arrays import Progress
from dmr_gym.tasks.webshop.index_merge import DENSE_FROM_PRODUCTS, merge
from dmr_gym.tasks.webshop.index_runs import Inverter, Run, batches

BATCH_CHARACTERS = 1 << 26


def build_index(
    texts: Iterable[str],
    asins: Sequence[str] | NDArray[Any],
    folder: Path | str,
    progress: Progress | None = None,
    workers: int = 0,
    batch_characters: int = BATCH_CHARACTERS,
    dense_from: int = DENSE_FROM_PRODUCTS,
) -> None:
    """Build an index on disk, for `SearchIndex.open`. The texts are read once and never held all together.

    Args:
        texts: text of each product.
        asins: asin of each product.
        folder: where the files go; made if missing. Its ``index.json`` is written last.
        progress: called after each batch of texts ("texts") and each block of terms ("terms").
        workers: processes that analyse texts beside this one; 0 does it here.
        batch_characters: size of a batch; memory grows with it, and with the number of workers.
        dense_from: smallest number of products with which frequent terms get dense rows.

    Raises:
        ConfigError: there are not as many texts as asins.
    """
    folder = Path(folder)
    runs_folder = folder / "runs"
    shutil.rmtree(runs_folder, ignore_errors=True)
    runs_folder.mkdir(parents=True)
    try:
        groups = _tell(batches(texts, batch_characters), len(asins), progress)
        stems = list(_pooled_runs(groups, runs_folder, workers) if workers else _runs(groups, runs_folder))
        merge([Run.open(stem) for stem in stems], asins, folder, progress, dense_from)
    finally:
        shutil.rmtree(runs_folder, ignore_errors=True)


def _tell(groups: Iterator[Sequence[str]], n_products: int, progress: Progress | None) -> Iterator[Sequence[str]]:
    """Pass batches on, and report each when the next one is asked for."""
    done = 0
    for group in groups:
        yield group
        done += len(group)
        if progress is not None:
            progress("texts", done, n_products)


def _runs(groups: Iterator[Sequence[str]], folder: Path) -> Iterator[Path]:
    """Invert batches in this process."""
    inverter, done = Inverter(), 0
    for number, group in enumerate(groups):
        yield _write_run(inverter, group, done, folder / f"{number:05d}")
        done += len(group)


def _pooled_runs(groups: Iterator[Sequence[str]], folder: Path, workers: int) -> Iterator[Path]:
    """Invert batches in worker processes; one batch more than there are workers is under way."""
    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor

    pending: deque[Future[Path]] = deque()
    done = 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for number, group in enumerate(groups):
            pending.append(pool.submit(_write_run_in_worker, group, done, folder / f"{number:05d}"))
            done += len(group)
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _write_run(inverter: Inverter, texts: Sequence[str], first_product: int, stem: Path) -> Path:
    inverter.invert(texts, first_product).write(stem)
    return stem


@functools.cache
def _process_inverter() -> Inverter:
    """The inverter that this process keeps from batch to batch."""
    return Inverter()


def _write_run_in_worker(texts: Sequence[str], first_product: int, stem: Path) -> Path:
    return _write_run(_process_inverter(), texts, first_product, stem)
