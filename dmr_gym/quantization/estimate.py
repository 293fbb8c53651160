"""What a quantization will take: disk and memory from shapes alone, time from a timed piece of the model's own work.

All of it is known before the weights are loaded, and all but the size of the copy is an estimate. Time is that of this
machine at its present load, and is meant to tell minutes from hours and days.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from dmr_gym.backends.checkpoint import Layout
from dmr_gym.errors import ConfigError
from dmr_gym.quantization.settings import Settings

SPARE = 1.2
"""Free disk asked for, over the bytes that will be written."""

PROGRAM_BYTES = 900_000_000
"""Memory of Python with PyTorch, transformers and llmcompressor loaded."""

GRID_POINTS = 20
"""Scales that AWQ tries for each of its groups of layers, in llmcompressor."""

BLOCK_OVER_LINEAR = 2.0
"""Time of a whole block over that of its Linear layers; attention, norms and activations are the rest."""

COLUMN_S = 1e-3
"""Seconds that GPTQ takes for a column beside its arithmetic: it walks through them one by one."""

TIMED_TOKENS, TIMED_ROWS, TIMED_S = 256, 1024, 0.1
"""Size of the products that are timed, and how long each of them is repeated; larger ones count in proportion."""


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens that go through the model.

    Attributes:
        calibration: tokens of all calibration texts.
        longest: tokens of the longest text of all.
        held_out: tokens of all texts of the perplexity.
    """

    calibration: int
    longest: int
    held_out: int


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds a token.

    Attributes:
        forward: all Linear layers in the dtype and on the device of the quantization.
        scoring: all Linear layers and the output head in float32 on the CPU, as the perplexity takes them.
        hessian: the squares of all inputs in float32, as GPTQ sums them.
        flop: seconds of one floating-point operation in float32 on the device.
    """

    forward: float
    scoring: float
    hessian: float
    flop: float


def copy_bytes(layout: Layout, bits: int, group_size: int | None) -> int:
    """Size of the packed copy: weights, a 16-bit scale a group, and everything else as it is.

    Args:
        layout: of the checkpoint.
        bits: of a weight.
        group_size: weights of a row that share a scale; None is a row.
    """
    numbers = sum(rows * columns for rows, columns in layout.linear.values())
    scales = sum(rows * (columns // group_size if group_size else 1) for rows, columns in layout.linear.values())
    return numbers * bits // 8 + layout.dtype.itemsize * (scales + layout.other_parameters)


def memory_bytes(layout: Layout, method: str, work: Work) -> int:
    """Most memory at one time, of the quantization or of the perplexity, whichever is more.

    Quantizing holds the weights, what goes into a block and comes out of it for every calibration token, and the
    method's own: GPTQ a float32 square of each layer's input width of a block, three times over while it solves one;
    AWQ the inputs of a block's layers, and the outputs with and without quantization. The perplexity is computed in
    float32, with logits of one text.

    Args:
        layout: of the checkpoint.
        method: "gptq", "awq" or "rtn".
        work: tokens.
    """
    item, (vocabulary, width) = layout.dtype.itemsize, layout.head_shape
    blocks = _blocks(layout)
    held = 2 * work.calibration * width * item
    if method == "gptq":
        widest = max(columns for _, columns in layout.linear.values())
        held += 4 * max(sum(columns**2 for _, columns in block) for block in blocks) + 3 * 4 * widest**2
    if method == "awq":
        inputs = max(sum({columns for _, columns in block}) + 4 * width for block in blocks)
        held += work.calibration * inputs * item
    quantizing = layout.parameters * item + (held if method != "rtn" else 0)
    scoring = 4 * layout.parameters + 3 * 4 * work.longest * vocabulary
    return PROGRAM_BYTES + max(quantizing, scoring)


def seconds(layout: Layout, method: str, work: Work, rates: Rates) -> float:
    """Time of the quantization and of both perplexities.

    GPTQ sends every token through every block twice, sums the squares of the inputs, and walks through the columns;
    AWQ sends every token through each part of a block once for each of its `GRID_POINTS`, where half of the layers are
    in two parts.

    Args:
        layout: of the checkpoint.
        method: "gptq", "awq" or "rtn".
        work: tokens.
        rates: of this machine.
    """
    block = BLOCK_OVER_LINEAR * rates.forward * work.calibration
    total = 2 * BLOCK_OVER_LINEAR * rates.scoring * work.held_out
    if method == "gptq":
        columns = sum(columns for _, columns in layout.linear.values())
        flops = sum(rows * columns**2 + 2 * columns**3 for rows, columns in layout.linear.values())
        total += 2 * block + rates.hessian * work.calibration + COLUMN_S * columns + rates.flop * flops
    if method == "awq":
        total += (2 + 1.5 * (GRID_POINTS + 1)) * block
    return total


def measure_rates(layout: Layout, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Time a product of each shape that the model has, or of a part of it, a tenth of a second or once.

    Args:
        layout: of the checkpoint.
        clock: seconds.
    """
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device, cpu = device or torch.device("cpu"), torch.device("cpu")
    shapes = Counter(layout.linear.values())
    widths = Counter(columns for _, columns in layout.linear.values())

    def product(rows: int, columns: int, dtype: torch.dtype, place: torch.device) -> float:
        timed = min(rows, TIMED_ROWS)
        x, weight = (torch.ones(n, columns, dtype=dtype, device=place) for n in (TIMED_TOKENS, timed))
        return _timed(lambda: torch.nn.functional.linear(x, weight), place, clock) * rows / (timed * TIMED_TOKENS)

    def square(columns: int) -> float:
        timed = min(columns, TIMED_ROWS)
        x = torch.ones(TIMED_TOKENS, columns, device=device)
        return _timed(lambda: x[:, :timed].T @ x, device, clock) * columns / (timed * TIMED_TOKENS)

    linear = {shape: product(*shape, layout.dtype, device) for shape in shapes}
    scored = (
        linear
        if device == cpu and layout.dtype == torch.float32
        else {s: product(*s, torch.float32, cpu) for s in shapes}
    )
    squares = {columns: square(columns) for columns in widths}
    widest = max(widths)
    return Rates(
        forward=sum(count * linear[shape] for shape, count in shapes.items()),
        scoring=sum(count * scored[shape] for shape, count in shapes.items())
        + product(*layout.head_shape, torch.float32, cpu),
        hessian=sum(count * squares[columns] for columns, count in widths.items()),
        flop=squares[widest] / (2 * widest**2),
    )


def check_groups(layout: Layout, group_size: int | None) -> None:
    """Refuse a group that does not divide the input width of every layer.

    Raises:
        ConfigError: with the layers, by the part of their name that repeats, and the groups that would do.
    """
    if not layout.linear:
        raise ConfigError(f"{layout.architecture} has no Linear layer but its output head: nothing to quantize")
    odd: dict[str, int] = {}
    for name, (_, columns) in layout.linear.items():
        if group_size and columns % group_size:
            odd[re.sub(r"\.\d+\.", ".*.", name)] = columns
    if odd:
        fitting = [str(n) for n in (128, 64, 32) if all(columns % n == 0 for _, columns in layout.linear.values())]
        raise ConfigError(
            f"--group-size {group_size} must divide the input width of every layer; it does not divide that of "
            f"{', '.join(f'{name} ({columns})' for name, columns in odd.items())}: give --group-size "
            f"{' or '.join([*fitting, 'channel'])}"
        )


def check_disk(needs: Mapping[Path, int]) -> None:
    """Refuse work for which a disk has too little room.

    Args:
        needs: bytes that will be written below each folder; what lies on one disk is added up.

    Raises:
        ConfigError: with what is needed and what is free.
    """
    wanted: dict[int, int] = defaultdict(int)
    places: dict[int, Path] = {}
    for folder, size in needs.items():
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
        disk = there.stat().st_dev
        wanted[disk] += round(SPARE * size)
        places[disk] = there
    for disk, size in wanted.items():
        free = shutil.disk_usage(places[disk]).free
        if free < size:
            raise ConfigError(
                f"{places[disk]}: expected {in_bytes(size)} of free disk, found {in_bytes(free)}: make room, or choose "
                "another place"
            )


def available_memory() -> int | None:
    """Bytes of memory that programs can still have; None where the system does not say."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def peak_memory() -> int | None:
    """Most bytes of memory that this process has had at one time; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux KiB


def size_line(layout: Layout, settings: Settings, download: int) -> str:
    """What is known from ``config.json`` alone, for people."""
    size = copy_bytes(layout, settings.bits, settings.group_size)
    fetched = f", and {in_bytes(download)} to download" if download else ""
    return (
        f"{layout.architecture}: {len(layout.linear)} Linear layers, {layout.parameters / 1e6:,.1f} M parameters; "
        f"disk: {in_bytes(size)} for the copy{fetched}"
    )


def work_line(layout: Layout, settings: Settings, work: Work, rates: Rates) -> str:
    """Estimates of memory and time, for people; a warning where memory is short."""
    memory, free = memory_bytes(layout, settings.method, work), available_memory()
    beside = "" if free is None else f" ({in_bytes(free)} free)"
    line = (
        f"estimates: {in_bytes(memory)} of memory{beside}, {in_time(seconds(layout, settings.method, work, rates))} "
        f"for {work.calibration:,} calibration and {work.held_out:,} held-out tokens, by products timed on this machine"
    )
    if free is not None and free < memory:
        line += "\nwarning: that is more memory than is free; fewer --samples or a shorter --max-length take less"
    return line


def in_bytes(size: float) -> str:
    """Bytes in words: "1.2 GB" or "3.4 MB"."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def in_time(duration_s: float) -> str:
    """Seconds in words, as roughly as they are known: "40 s", "12 min" or "5.0 h"."""
    if duration_s < 100:
        return f"{max(duration_s, 1):.0f} s"
    return f"{duration_s / 60:.0f} min" if duration_s < 6000 else f"{duration_s / 3600:,.1f} h"


def _blocks(layout: Layout) -> list[list[tuple[int, int]]]:
    """Shapes of the Linear layers, by the numbered block that they are in."""
    blocks: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, shape in layout.linear.items():
        blocks[(re.match(r".*?\.\d+\.", name) or [""])[0]].append(shape)
    return list(blocks.values())


def _timed(call: Callable[[], object], device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds of a call: the median of as many as fit into `TIMED_S`, one at least, after one to warm up."""

    def once() -> float:
        start = clock()
        call()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        return clock() - start

    once()
    times = [once()]
    while sum(times) < TIMED_S:
        times.append(once())
    return sorted(times)[len(times) // 2]
