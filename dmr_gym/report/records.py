"""What a page shows, as plain frozen records; `dmr_gym.report.page` writes them into it as JSON.

Shapes: P precisions, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Pair = tuple[float, float]


@dataclass(frozen=True, slots=True)
class TableRecord:
    """A table of text; fields as in `dmr_gym.tables.Table`, ``kinds`` those of its rows' policies or ""."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    left: int
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PointRecord:
    """Where a policy lies: success as a share, times of ``solved`` and of ``all`` episodes, with 95 % intervals.

    ``front`` tells for either time whether no other policy beats it on both. Times are None where nothing was solved,
    intervals where none is known.
    """

    name: str
    kind: str
    success: float
    success_ci: Pair | None
    solved: float | None
    solved_ci: Pair | None
    all: float | None
    all_ci: Pair | None
    front: dict[str, bool]


@dataclass(frozen=True, slots=True)
class UseRecord:
    """Which precisions a policy used.

    Attributes:
        policy: its name.
        kind: of policy.
        like: policy whose shares random routing has; else None.
        high: for each step index, decisions for the highest precision.
        steps: for each step index, decisions in all.
        by_type: for each step type, decisions for each of P precisions.
    """

    policy: str
    kind: str
    like: str | None
    high: tuple[int, ...]
    steps: tuple[int, ...]
    by_type: dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ViewerRecord:
    """Episodes for the step viewer; texts are indices into ``strings``, of which -1 is none.

    Attributes:
        strings: all texts, each once, long ones cut.
        policies: names.
        tasks: ids.
        types: names of step types.
        states: a list of P answers each, None where one is not known. An answer is (action, observation, completion,
            invalid_reason, end, prompt_tokens, completion_tokens, kl, played, tree, source): ``end`` is 0 where the
            episode goes on, 1 where it is solved, 2 where it ends otherwise; ``played`` (episode, step) names one that
            took it; ``tree`` is what `dmr_gym.report.trees` says of it; ``source`` is "played", "asked", "tree", or
            "unknown" where only the KL is known.
        episodes: (policy, task, seed, success, score, time_s, cap_reached, instruction, observation, steps), a step
            (state, precision, router_called, p_high, latency_llm_s, latency_router_s, type).
        left_out: tasks that the page has no room for.
        cut: texts that were cut.
        asked_tasks: tasks for which every precision was asked.
        tree_tasks: tasks whose routing trees are known.
    """

    strings: tuple[str, ...]
    policies: tuple[str, ...]
    tasks: tuple[str, ...]
    types: tuple[str, ...]
    states: tuple[Any, ...]
    episodes: tuple[Any, ...]
    left_out: int
    cut: int
    asked_tasks: int
    tree_tasks: int


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One run of agents/evaluate.py.

    Attributes:
        folder: of the run.
        panel: of the tasks.
        tasks: how many.
        unit: of times: "s", "$" or "J".
        prices: where they come from, in words.
        tables: of results.
        points: of the policies.
        oracle: the best routing at each λ.
        reach: success and time of the exact frontier of the panel's routing trees.
        notes: what was left out of the figure because it belongs to other prices or models, in words.
        use: of precisions.
        viewer: the episodes.
        made: what made the run, in words.
    """

    folder: str
    panel: str
    tasks: int
    unit: str
    prices: str
    tables: tuple[TableRecord, ...]
    points: tuple[PointRecord, ...]
    oracle: tuple[PointRecord, ...]
    reach: tuple[Pair, ...]
    notes: tuple[str, ...]
    use: tuple[UseRecord, ...]
    viewer: ViewerRecord
    made: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class HistogramRecord:
    """KLs of a lower precision: counts between log10 edges in nats, and the threshold with its plateau where found."""

    precision: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    threshold: float
    origin: str
    plateau: Pair | None
    above: float


@dataclass(frozen=True, slots=True)
class KLRecord:
    """A KL data set of agents/collect_kl.py, as it was labelled for a training.

    Attributes:
        folder: of the data set.
        panel: of its tasks.
        kind: which steps count, as ``--steps`` of agents/train_kl_st.py names them.
        steps: how many count.
        episodes: how many there are.
        is_lower_bound: whether only the likeliest tokens were told apart.
        trainings: folders of the trainings that took these steps and thresholds; empty where none is known.
        histograms: one a lower precision.
    """

    folder: str
    panel: str
    kind: str
    steps: int
    episodes: int
    is_lower_bound: bool
    trainings: tuple[str, ...]
    histograms: tuple[HistogramRecord, ...]


@dataclass(frozen=True, slots=True)
class CurveRecord:
    """A chart of a training: series by name, each of (update, value); ``main`` ones are shown at first."""

    title: str
    unit: str
    main: bool
    series: dict[str, tuple[Pair, ...]]


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """A training run; ``x`` names what is counted on its axis."""

    folder: str
    method: str
    x: str
    curves: tuple[CurveRecord, ...]


@dataclass(frozen=True, slots=True)
class MissingRecord:
    """A part that the runs do not have, and the command that makes it."""

    part: str
    command: str


@dataclass(frozen=True, slots=True)
class WorldRecord:
    """All runs of one world with the same precisions."""

    title: str
    precisions: tuple[str, ...]
    evaluations: tuple[EvaluationRecord, ...]
    kls: tuple[KLRecord, ...]
    trainings: tuple[TrainingRecord, ...]
    missing: tuple[MissingRecord, ...]
