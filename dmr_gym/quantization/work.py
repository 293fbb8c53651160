"""Where a copy is made, stage by stage, so that a killed run goes on with what it has done.

``--out`` appears in one step, when everything in it is written. Until then the stages lie in a hidden folder beside it,
each of them whole or not there.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from dmr_gym.backends.checkpoint import checkpoint_digest, resolve_checkpoint
from dmr_gym.errors import ConfigError
from dmr_gym.quantization.card import damaged_files, read_facts
from dmr_gym.quantization.settings import Settings
from dmr_gym.runs import write_json

try:
    import fcntl
except ImportError:  # not on Windows, where two runs with one --out are not told apart
    fcntl = None  # type: ignore[assignment]


def finished(settings: Settings) -> dict[str, Any] | None:
    """What ``quantization.json`` in ``settings.out`` says, if the same settings made it; None where nothing is there.

    Raises:
        ConfigError: there is something else: other files, the copy of another run, or a damaged one; or a file of the
            settings cannot be read.
    """
    out, mine = settings.out, settings.identity()
    if not out.exists():
        return None
    facts, way_out = read_facts(out), "choose another --out, or remove it"
    if facts is None or "settings" not in facts:
        raise ConfigError(f"{out} exists already and is no copy that agents/quantize.py has made: {way_out}")
    made_with = facts["settings"]
    changed = sorted(name for name in {*mine, *made_with} if mine.get(name) != made_with.get(name))
    if changed:
        told = ", ".join(f"{name} {made_with.get(name)!r} and not {mine.get(name)!r}" for name in changed)
        raise ConfigError(f"{out} holds the copy of another command, with {told}: {way_out}")
    damaged = damaged_files(facts, out)
    if damaged:
        raise ConfigError(f"{out} holds a damaged copy, {', '.join(damaged)} changed since it was made: {way_out}")
    is_here = settings.model.startswith("embedded:") or Path(settings.model).expanduser().is_dir()
    if is_here and checkpoint_digest(resolve_checkpoint(settings.model)) != facts["base_digest"]:
        raise ConfigError(f"{out} holds a copy of {settings.model} as it was before its files changed: {way_out}")
    return facts


class WorkFolder:
    """The hidden folder beside ``out``, held by one run at a time for the length of a ``with`` block.

    It goes away when the copy is published; a run that ends before leaves it to the next one.

    Args:
        out: of the copy.

    Raises:
        ConfigError: another run holds it.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self.path = out.absolute().with_name(f".{out.absolute().name}.part")
        self._lock: BinaryIO | None = None

    def __enter__(self) -> WorkFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / "lock").open("wb")
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
            except OSError as error:
                self._lock.close()
                raise ConfigError(f"another run is making {self._out}: wait for it, or choose another --out") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.path.is_dir() and {entry.name for entry in self.path.iterdir()} <= {"lock", "identity.json"}:
            self.discard()  # refused before there was anything to keep
        if self._lock is not None:
            self._lock.close()

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Say what will be made; stages of anything else are removed.

        Args:
            identity: plain data that decides what the stages are.

        Returns:
            Whether there are stages to go on with.
        """
        record = self.path / "identity.json"
        try:
            same = json.loads(record.read_text(encoding="utf-8")) == json.loads(json.dumps(dict(identity)))
        except (OSError, ValueError):
            same = False
        if not same:
            record.unlink(missing_ok=True)  # first, or a kill in between would leave half of a stage under its name
        for entry in self.path.iterdir():
            half = entry.name.endswith(".part") or entry.name.startswith(".")
            if entry.name != "lock" and (half or not same):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        write_json(record, identity)
        return same and len(list(self.path.iterdir())) > 2

    def data(self, name: str, make: Callable[[], Any]) -> Any:
        """Plain data of a stage: what is kept of it, or what ``make`` gives, which is then kept."""
        file = self.path / f"{name}.json"
        if not file.is_file():
            write_json(file, {"value": make()})
        return json.loads(file.read_text(encoding="utf-8"))["value"]

    def folder(self, name: str, make: Callable[[Path], None]) -> Path:
        """Folder of a stage: what is kept of it, or what ``make`` writes into the path that it is given."""
        folder, part = self.path / name, self.path / f"{name}.part"
        if not folder.is_dir():
            make(part)
            _sync(part)
            part.rename(folder)
        for half in folder.glob(".*"):  # of a card that a kill has cut
            half.unlink()
        return folder

    def publish(self, folder: Path) -> None:
        """Move a finished folder to ``out`` in one step, and remove everything else."""
        mode = stat.S_IMODE((self.path / "identity.json").stat().st_mode)
        for path in folder.iterdir():
            path.chmod(mode)  # safetensors makes files that only their owner can read
        _sync(folder)
        folder.rename(self._out)
        self.discard()

    def discard(self) -> None:
        """Remove the folder and what is in it."""
        (self.path / "identity.json").unlink(missing_ok=True)
        shutil.rmtree(self.path)


def _sync(folder: Path) -> None:
    """See to it that files are on the disk before a name says that they are."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
