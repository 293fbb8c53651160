"""Let policies play a panel of tasks so that a kill loses only the episodes being played, and keep every other on disk.

A batch of episodes lies in a file of its own, named by everything that decides what is in it: environment, models,
policy, seed and tasks. The file appears whole or not at all; until then each episode is appended to a part file beside
it as it ends. What is there is not played again, so the same evaluation started anew goes on where it stopped, and a
larger one plays what is new. Chance belongs to the episode and scores do not depend on what is played beside it, so the
episodes are the same whether a run was killed or not.

Shapes: P precisions.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dmr_gym.alternatives import Alternatives
from dmr_gym.config import EnvConfig
from dmr_gym.deployment import deciding_settings, forcing
from dmr_gym.policies import FixedPrecision, Policy, RandomPolicy, RouterPolicy
from dmr_gym.records import FORMAT, Record, episode_record, read_records
from dmr_gym.rollout import Trajectory, rollout
from dmr_gym.runs import content_address, write_atomically
from dmr_gym.training import Stop
from dmr_gym.vector import PrecisionRoutingVectorEnv

if TYPE_CHECKING:
    from dmr_gym.router import PrecisionRouter

EPISODES_FILE = "episodes.jsonl"
BATCHES_FOLDER = "batches"


@dataclass(frozen=True)
class Contender:
    """A policy to be evaluated: one object a seed, and plain data that says what decides.

    Attributes:
        name: as it stands in tables.
        kind: "high", "low", "router", "start", "grpo", "ppo" or "random".
        policies: one a seed; a single one where every seed would be the same.
        identities: of the policies.
        like: for random routing, the contender whose shares it has.
        budget: K of its threshold, where it has one.
        lambda_: λ that it was trained with, where it was.
    """

    name: str
    kind: str
    policies: tuple[Policy, ...]
    identities: tuple[Mapping[str, Any], ...]
    like: str | None = None
    budget: float | None = None
    lambda_: float | None = None

    def head(self) -> Record:
        """What each of its records begins with."""
        return {
            "policy": self.name,
            "kind": self.kind,
            "like": self.like,
            "budget": self.budget,
            "lambda": self.lambda_,
        }


@dataclass(frozen=True)
class RoutedPoint:
    """How one router decides: by a threshold, or by the likeliest precision where ``tau`` is None."""

    router: PrecisionRouter
    tau: float | None = None
    tie_probability: float = 1.0
    forced: tuple[str, ...] = ()


def single_precision(index: int, precisions: Sequence[str], seeds: int = 1) -> Contender:
    """A precision alone.

    Args:
        index: of the precision, 0 the lowest.
        precisions: names, ascending.
        seeds: runs; more than one where decoding is by chance.
    """
    kind = "high" if index == len(precisions) - 1 else "low"
    policies = tuple(FixedPrecision(index) for _ in range(seeds))
    return Contender(f"always {precisions[index]}", kind, policies, ({"fixed": index},) * seeds)


def routed(name: str, kind: str, points: Sequence[RoutedPoint], seeds: int, greedy: bool, **setting: Any) -> Contender:
    """A router, or one router a seed.

    Args:
        name: of the contender.
        kind: of the contender.
        points: one, or one a seed.
        seeds: runs.
        greedy: whether decoding is without chance: then one router that draws nothing is run once.
        **setting: ``budget`` or ``lambda_`` of the contender.
    """
    draws = any(point.tie_probability < 1 for point in points)
    number = 1 if greedy and len(points) == 1 and not draws else seeds
    each = [points[seed % len(points)] for seed in range(number)]
    policies = []
    for point in each:
        mode: Any = "argmax" if point.tau is None else "threshold"
        tau = 0.5 if point.tau is None else point.tau
        policy = RouterPolicy(point.router, mode, tau=tau, tie_probability=point.tie_probability)
        policies.append(forcing(policy, point.router.config.n_precisions - 1, point.forced))
    digests = {id(point.router): point.router.digest() for point in points}
    identities = [
        {
            "router": digests[id(point.router)],
            "tau": None if point.tau is None else repr(point.tau),  # JSON has no infinity
            "tie_probability": point.tie_probability,
            "forced": list(point.forced),
        }
        for point in each
    ]
    return Contender(name, kind, tuple(policies), tuple(identities), **setting)


def random_like(contender: Contender, shares: Sequence[float], forced: Sequence[str], seeds: int) -> Contender:
    """Random routing with the shares of a routed contender: what a router must beat.

    Args:
        contender: to be matched.
        shares: P probabilities, of the contender's own decisions.
        forced: types of steps that take the highest precision, as with the contender.
        seeds: runs.
    """
    n_precisions = len(shares)
    policies = tuple(forcing(RandomPolicy(shares, n_precisions), n_precisions - 1, forced) for _ in range(seeds))
    identity = {"random": list(shares), "forced": list(forced)}
    name = f"random {contender.name.removeprefix('router ')}"
    return Contender(name, "random", policies, (identity,) * seeds, like=contender.name)


class Arena:
    """A panel of tasks on which contenders play, and the folder that keeps their batches.

    Args:
        envs: that play; closed by whoever made them.
        task_ids: of their panel.
        folder: of the batches; several evaluations may share it.
        config: keywords of the environments.
        digests: plain data on which episodes depend beside the settings: panel, digests of models and of the encoder.
        batch: episodes that share a file.
        texts: whether records keep what was said.
        stop: asked after each episode whether the run is to end.
    """

    def __init__(
        self,
        envs: PrecisionRoutingVectorEnv,
        task_ids: Sequence[str],
        folder: Path,
        config: EnvConfig,
        digests: Mapping[str, Any],
        *,
        batch: int = 32,
        texts: bool = True,
        stop: Stop | None = None,
    ) -> None:
        self.envs, self.task_ids, self.batch, self._folder = envs, list(task_ids), batch, folder
        self._texts, self._stop = texts, stop
        self._basis = {"format": FORMAT, "env": deciding_settings(config), **digests, "texts": texts}
        self._played: list[tuple[Contender, list[Path]]] = []
        self.new_episodes = 0

    def play(self, contender: Contender) -> None:
        """Play whatever episodes of a contender are missing."""
        paths: list[Path] = []
        total = len(contender.policies) * len(self.task_ids)
        with tqdm(total=total, desc=contender.name, unit="episode", mininterval=_interval()) as bar:
            for seed, (policy, identity) in enumerate(zip(contender.policies, contender.identities, strict=True)):
                for start in range(0, len(self.task_ids), self.batch):
                    tasks = self.task_ids[start : start + self.batch]
                    path = self._path(identity, seed, tasks)
                    if path.is_file():
                        bar.update(len(tasks))
                    else:
                        self._play_batch(path, policy, seed, tasks, bar)
                    _part_file(path).unlink(missing_ok=True)  # here, as a kill can come between the two
                    paths.append(path)
        self._played.append((contender, paths))

    def shares(self, contender: Contender) -> list[float]:
        """Share of each of P precisions among the decisions that a contender's routers made.

        Where they made none, because every step was forced, all goes to the highest.
        """
        counts = np.zeros(len(self.envs.precisions))
        for record in self._records(contender):
            decided = [step["precision"] for step in record["steps"] if step["router_called"]]
            counts += np.bincount(decided, minlength=len(counts))
        if not counts.any():
            counts[-1] = 1
        shares: list[float] = (counts / counts.sum()).tolist()
        return shares

    def write_episodes(self, path: Path) -> None:
        """Join all batches into one file, in the order in which the contenders played."""

        def write(part: Path) -> None:
            with part.open("w", encoding="utf-8") as file:
                for contender, _ in self._played:
                    for record in self._records(contender):
                        line = {"format": record.pop("format"), **contender.head(), **record}
                        file.write(json.dumps(line) + "\n")

        write_atomically(path, write)

    def write_alternatives(self, path: Path, task_ids: Sequence[str], alternatives: Alternatives) -> None:
        """Ask every precision at each step of the episodes of some tasks; those asked about earlier are on disk.

        Args:
            path: of the file, a line an episode in the order of `write_episodes`.
            task_ids: which tasks.
            alternatives: that asks.
        """
        chosen, lines = set(task_ids), []
        episodes = [(c.name, record) for c, _ in self._played for record in self._records(c, chosen)]
        for policy, record in tqdm(episodes, desc="alternatives", unit="episode", mininterval=_interval()):
            line = {"format": FORMAT, "policy": policy, "task_id": record["task_id"], "seed": record["seed"]}
            lines.append(json.dumps(line | {"steps": self._alternatives_of(record, alternatives)}) + "\n")
        _write_lines(path, lines)

    def _alternatives_of(self, record: Record, alternatives: Alternatives) -> list[list[Record]]:
        """From disk, or asked for and kept there: an episode is a function of task, seed and precisions."""
        precisions = [step["precision"] for step in record["steps"]]
        name = content_address([self._basis, "alternatives", record["task_id"], record["seed"], precisions])
        path = self._folder / f"{name}.jsonl"
        if path.is_file():
            [kept] = read_records(path)
            alternatives.remember(record, kept["steps"])
            found: list[list[Record]] = kept["steps"]
            return found
        found = alternatives.of(record)
        _write_lines(path, [json.dumps({"format": FORMAT, "steps": found}) + "\n"])
        if self._stop is not None:
            self._stop.leave("the alternatives of an episode")
        return found

    def _records(self, contender: Contender, tasks: Collection[str] | None = None) -> Iterator[Record]:
        for path in next(paths for played, paths in self._played if played is contender):
            yield from (record for record in read_records(path) if tasks is None or record["task_id"] in tasks)

    def _play_batch(self, path: Path, policy: Policy, seed: int, tasks: list[str], bar: Any) -> None:
        """Play the tasks of a batch that its part file lacks, then write its file in the order of the tasks."""
        lines = _finished_lines(_part_file(path))
        bar.update(len(lines))
        _write_lines(_part_file(path), lines.values())  # without a line that was cut, behind which nothing may stand
        with _part_file(path).open("a", encoding="utf-8") as file:

            def keep(trajectory: Trajectory) -> None:
                task_id = trajectory.key.task_id
                lines[task_id] = json.dumps(episode_record(trajectory, texts=self._texts)) + "\n"
                file.write(lines[task_id])
                file.flush()
                self.new_episodes += 1
                bar.update()
                if self._stop is not None:
                    self._stop.leave(f"the episode of {task_id}")

            missing = [task_id for task_id in tasks if task_id not in lines]
            rollout(self.envs, policy, missing, first_repeat=seed, keep_turns=True, on_episode=keep)
        _write_lines(path, [lines[task_id] for task_id in tasks])

    def _path(self, identity: Mapping[str, Any], seed: int, tasks: Sequence[str]) -> Path:
        name = content_address([self._basis, dict(identity), seed, list(tasks)])
        return self._folder / f"{name}.jsonl"


def _part_file(path: Path) -> Path:
    """Where the finished episodes of a batch lie until all are."""
    return path.with_suffix(".part.jsonl")


def _finished_lines(path: Path) -> dict[str, str]:
    """The lines of a part file by task; a line that a kill has cut ends them."""
    lines: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines[json.loads(line)["task_id"]] = f"{line}\n"
        except ValueError:
            break
    return lines


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_atomically(path, lambda part: part.write_text("".join(lines), encoding="utf-8"))


def _interval() -> float:
    """Seconds between two pictures of a progress bar: a log file gets fewer."""
    return 0.2 if sys.stderr.isatty() else 10.0
