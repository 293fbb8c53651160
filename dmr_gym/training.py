"""What a training run needs to survive a kill: settings on record, state in one file, a course that resuming trims.

The order of a loop that resumes bit-identically::

    claim_folder(out, settings, resume)
    progress = load_training_state(out / STATE_FILE, model, [optimizer])
    with RunLog(out, int(progress.get("update", 0))) as log, stop_on_signal() as stop:
        for update in range(log.start, updates):
            torch.manual_seed(update_seed(seed, update))  # all chance of an update is a function of (seed, update)
            ...
            log.write(update + 1, {"loss": loss})
            if (update + 1) % every == 0 or update + 1 == updates or stop.signal:
                save_training_state(out / STATE_FILE, model, [optimizer], {"update": update + 1})
            stop.leave(f"update {update + 1}")

Every recipe that trains uses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dmr_gym.errors import ConfigError
from dmr_gym.runs import write_atomically, write_json

SETTINGS_FILE = "args.json"
STATE_FILE = "state.safetensors"
HISTORY_FILE = "history.jsonl"


def update_seed(seed: int, update: int, purpose: str = "") -> int:
    """A seed in [0, 2^63) for the chance of one update, so that no generator's state has to be saved.

    Args:
        seed: of the run.
        update: number of the update.
        purpose: tells generators of the same update apart.
    """
    digest = hashlib.sha256(f"{seed} {update} {purpose}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass
class Stop:
    """Whether a signal asked the run to end; ``signal`` is its number, or None, and ``way_on`` what continues it."""

    signal: signal.Signals | None = None
    way_on: str = "--resume"

    def leave(self, where: str) -> None:
        """End the process if a signal came: call it once everything is saved.

        Args:
            where: what was finished last, for the message.

        Raises:
            SystemExit: with the shell's status for that signal, 128 + its number.
        """
        if self.signal is not None:
            print(f"\nstopped by {self.signal.name} after {where}; {self.way_on} goes on from there", file=sys.stderr)
            raise SystemExit(128 + self.signal)


@contextlib.contextmanager
def stop_on_signal(unit: str = "update", way_on: str = "--resume") -> Iterator[Stop]:
    """Let SIGINT and SIGTERM ask for an end instead of causing it; a second one ends the process at once.

    Outside the main thread, where Python takes no handlers, signals stay as they are.

    Args:
        unit: what is finished first, for the message.
        way_on: what continues the run, for the message of `Stop.leave`.
    """
    stop = Stop(way_on=way_on)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.signal = signal.Signals(number)
        for each, handler in previous.items():
            signal.signal(each, handler)
        print(f"\n{stop.signal.name}: saving after this {unit}; once more ends at once", file=sys.stderr)

    for number in previous:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class RunLog:
    """A run's course: figures by update, in TensorBoard and in ``history.jsonl``.

    Both forget what lies behind the update that the run goes on from, so a resumed run leaves the same course as one
    that was never stopped.

    Args:
        folder: of the run; TensorBoard's files go to its "tensorboard".
        start: updates done so far; -1 where nothing was saved yet, so that figures of update 0 are written anew.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.start = start
        self._path = folder / HISTORY_FILE
        self.history = [entry for entry in read_history(folder) if entry["update"] <= start]
        write_atomically(self._path, lambda part: part.write_text("".join(map(_line, self.history)), encoding="utf-8"))
        self._file = self._path.open("a", encoding="utf-8")
        # Logging begins at step 0, so that step 0 survives a purge.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start > 0 else None)

    def write(self, update: int, figures: Mapping[str, float]) -> None:
        """Add the figures of an update, names as TensorBoard groups them ("train/loss"); a line of the history each."""
        entry = {"update": update, **figures}
        self.history.append(entry)
        self._file.write(_line(entry))
        self._file.flush()
        for name, value in figures.items():
            self._writer.add_scalar(name, value, update)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._writer.close()


def read_history(folder: Path) -> list[dict[str, float]]:
    """The figures of a run by update, as `RunLog` wrote them; empty where there are none.

    A line that a kill has cut ends the history.
    """
    path = folder / HISTORY_FILE
    entries: list[dict[str, float]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def _line(entry: Mapping[str, float]) -> str:
    return json.dumps(entry) + "\n"


ADDED = {"tasks_digest", "learning_rates"}
"""Settings that folders of earlier versions lack; those are taken as they are."""

EARLIER: dict[str, Any] = {"tasks": None, "skip_tasks": 0, "rivals": [], "label_share": None, "start_threshold": 0.5}
"""What earlier versions did, by settings that their folders lack."""


def claim_folder(
    folder: Path,
    settings: Mapping[str, Any],
    resume: bool,
    free: Collection[str] = (),
    growing: Collection[str] = (),
) -> None:
    """Write a run's settings into its folder, or compare them with those of the run that is there.

    Args:
        folder: of the run; made where missing.
        settings: plain data.
        resume: whether the run in the folder is to go on.
        free: names of settings that may differ on resuming, such as the number of threads.
        growing: names of settings that may only add work: numbers that do not fall, lists that keep all they had.

    Raises:
        ConfigError: the folder holds a run, and it is not to be resumed or has other settings.
    """
    path = folder / SETTINGS_FILE
    if path.is_file():
        if not resume:
            raise ConfigError(f"{folder} holds a run: --resume goes on with it, another --out starts a new one")
        given = json.loads(json.dumps(dict(settings)))
        found = {name: value for name, value in EARLIER.items() if name in given}
        found |= json.loads(path.read_text(encoding="utf-8"))
        grown = {name for name in growing if name in found and _has_grown(found[name], given.get(name))}
        names = {*found, *given} - set(free) - grown - (ADDED - found.keys())
        changed = sorted(name for name in names if found.get(name) != given.get(name))
        if changed:
            raise ConfigError(f"{folder} was begun with other {', '.join(changed)}: choose another --out")
    write_json(path, settings)


def _has_grown(before: Any, now: Any) -> bool:
    if isinstance(before, list) and isinstance(now, list):
        return all(value in now for value in before)
    return isinstance(before, int) and isinstance(now, int) and before <= now


def save_training_state(
    path: Path,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Mapping[str, int | float],
    extra: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write weights, optimizer state and progress as one safetensors file, whole or not at all.

    Args:
        path: of the file.
        model: its parameters are saved.
        optimizers: in a fixed order; every value of their state must be a tensor.
        progress: numbers that `load_training_state` gives back.
        extra: tensors that `load_extra` gives back.
    """
    tensors = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{number}.{key}": value for key, value in state.items()}
    tensors |= {f"extra.{name}": value for name, value in (extra or {}).items()}
    metadata = {name: repr(value) for name, value in progress.items()}
    write_atomically(path, lambda part: save_file(tensors, part, metadata=metadata))


def load_training_state(
    path: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, float]:
    """Read what `save_training_state` wrote into a model and its optimizers.

    Returns:
        The progress; empty where there is no file.

    Raises:
        ConfigError: the file belongs to a model of other shapes.
    """
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        progress = {name: float(value) for name, value in (file.metadata() or {}).items()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            found = tensors.get(f"model.{name}")
            if found is None or found.shape != p.shape:
                shape = None if found is None else tuple(found.shape)
                raise ConfigError(f"{path} does not fit the model: expected {name} of {tuple(p.shape)}, found {shape}")
            p.copy_(found)
    for index, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"optimizer.{index}."):
                number, key = name.split(".")[2:]
                state.setdefault(int(number), {})[key] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def load_extra(path: Path) -> dict[str, torch.Tensor]:
    """Read the further tensors that `save_training_state` was given; empty where there is no file."""
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("extra.")]  # noqa: SIM118 (not a mapping)
        return {name.removeprefix("extra."): file.get_tensor(name) for name in names}
