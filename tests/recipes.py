"""The recipes of agents/ as modules, small data for them, and runs of them that can be killed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors import safe_open

from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.tasks.toy import make_signs

ROOT = Path(__file__).resolve().parents[1]
TOY = ["--env", "DMR-Toy-v0", "--num-envs", "4"]
TINY = ["--n-layers", "1", "--d-model", "32", "--n-heads", "2", "--d-ff", "64", "--dropout", "0"]
GRPO_TASKS = ["--set", "task_kwargs.num_signs=3", "--set", "task_kwargs.num_tasks=8"]
GRPO = [*TOY, *TINY, *GRPO_TASKS, "--groups", "3", "--group-size", "4", "--validation-tasks", "4"]

_SERVER = """
import importlib, json, os, runpy, sys
for module in sys.argv[2:]:  # which recipes import late
    importlib.import_module(module)
recipe = runpy.run_path(sys.argv[1], run_name="recipe")
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(2, 1)
        recipe["run"](lambda: recipe["main"](json.loads(line)))
        sys.exit(0)
    print(pid, flush=True)
    sys.stdin.readline()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """With more threads the last bits of a product can differ from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def no_picture(points: object, prices: str, path: Path, oracle: object = ()) -> None:
    """Stands in for `dmr_gym.figures.draw_accuracy_latency`, which takes longer than a small evaluation."""
    path.write_bytes(b"")


def read_tensors(path: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Tensors and metadata of a safetensors file; the library orders the latter by chance."""
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}, file.metadata()  # noqa: SIM118


def load_recipe(name: str) -> ModuleType:
    """Import agents/<name>.py."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", ROOT / "agents" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_critical(collected: Path, out: Path) -> Path:
    """Copy a data set of corridors, with a KL that is large exactly at fallen signs: the right routing is known."""
    dataset = KLDataset.load(collected / "kl.safetensors")
    fallen = np.concatenate([[sign.fallen for sign in make_signs(task_id, 8)] for task_id in dataset.task_ids])
    noise = np.random.default_rng(0).normal(0, 0.3, len(fallen))
    kls = (10 ** (np.where(fallen, 0.0, -4.0) + noise)).astype(np.float32)[:, None]
    columns = {name: getattr(dataset, name) for name in dataset.__dataclass_fields__}
    settings = read_settings(collected / "kl.safetensors")
    KLDataset(**columns | {"kl_action": kls, "kl_all": kls}).save(out / "kl.safetensors", settings)
    return out


class Runs:
    """Runs of one recipe, each in a process of its own that can be killed; imports are paid for once.

    Args:
        name: of the recipe.
        log: file that takes what the runs print.
        imports: modules that the recipe imports late.
    """

    def __init__(
        self, name: str, log: Path, imports: Sequence[str] = ("matplotlib.pyplot", "torch.utils.tensorboard")
    ) -> None:
        self._log = log.open("w")
        command = [sys.executable, "-c", _SERVER, str(ROOT / "agents" / f"{name}.py"), *imports]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, env=env
        )
        assert self._server.stdout.readline() == "ready\n"

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._server.stdout.close()
        self._log.close()

    def run(
        self, argv: Sequence[str], when: Callable[[float], bool] | None = None, number: int = signal.SIGKILL
    ) -> int:
        """Run to the end, or send a signal as soon as ``when`` says so, which gets the seconds since the start.

        Returns:
            The exit status; -9 where it was killed before it ended.
        """
        self._say(json.dumps(list(argv)))
        pid = int(self._server.stdout.readline())
        if when is not None:
            began = time.perf_counter()
            while not when(time.perf_counter() - began):
                time.sleep(0.005)
            os.kill(pid, number)  # a run that has ended keeps its number until the server is told to wait for it
        self._say("wait")
        return int(self._server.stdout.readline())

    def _say(self, line: str) -> None:
        self._server.stdin.write(f"{line}\n")
        self._server.stdin.flush()


def kill_often(
    runs: Runs,
    argv: Sequence[str],
    out: Path,
    saved: str,
    kills: int,
    check: Callable[[], None],
    end: str = "run.json",
    found: str = "",
) -> None:
    """Start a run again and again, and kill it each time at a random moment, until so many kills have hit.

    A kill comes within a fifth of a second after the run has saved something, in every fourth run within a second
    after its start. A run that comes to its end, and the last one, which is left alone, is checked; then its folder is
    cleared.

    Args:
        runs: of the recipe.
        argv: that goes on with what ``out`` holds.
        out: folder of the run.
        saved: pattern of the files in which it saves what it has done.
        kills: that hit a run before its end.
        check: called when a run has ended in ``out``.
        end: name of the file that a run writes at its end.
        found: what that file has only at the end of a run.
    """
    chance = random.Random(0)

    def stamp() -> tuple[tuple[str, int], ...]:
        return tuple(sorted((path.name, path.stat().st_mtime_ns) for path in out.glob(saved)))

    def has_ended() -> bool:
        return (out / end).is_file() and found in (out / end).read_text(encoding="utf-8")

    going_on, wanted = 0, kills // 4
    while kills:
        before, wait_s, blindly = stamp(), chance.uniform(0.0, 0.2), chance.random() < 0.25
        since = []

        def when(seconds: float, before=before, wait_s=wait_s, blindly=blindly, since=since) -> bool:
            if blindly:
                return seconds > 5 * wait_s
            if not since and (stamp() != before or has_ended() or seconds > 60):
                since.append(seconds)
            return bool(since) and seconds - since[0] > wait_s

        status = runs.run(argv, when)
        assert status in (0, -signal.SIGKILL)
        kills -= status == -signal.SIGKILL
        going_on += status == -signal.SIGKILL and stamp() != before and not has_ended()
        if status == 0:
            check()
            shutil.rmtree(out)
    assert going_on >= wanted, "too few kills have hit a run in the middle of its work"
    assert runs.run(argv) == 0
    check()
