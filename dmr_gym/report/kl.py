"""Histograms of a KL data set, with the thresholds that trainings of KL-ST took from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmr_gym.calibration import KL_FLOOR, Plateau
from dmr_gym.errors import ConfigError
from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.kl_figures import KL_CEILING
from dmr_gym.kl_training import Labelling, label_dataset
from dmr_gym.report.records import HistogramRecord, KLRecord
from dmr_gym.report.runs import KL_FILE, Run, training_record
from dmr_gym.runs import file_digest

BINS = 48


def read_kls(run: Run, runs: Sequence[Run]) -> tuple[KLRecord, ...]:
    """Count the KLs of each lower precision, once for all trainings that took the same steps and thresholds.

    Args:
        run: the data set.
        runs: all runs of its world, among them trainings on it.

    Returns:
        One record for each way in which the data was labelled; without a training, one for the way of
        agents/train_kl_st.py without options.

    Raises:
        ConfigError: a damaged file, or fewer steps than a threshold needs.
    """
    path = run.path / KL_FILE
    dataset, settings = KLDataset.load(path), read_settings(path)
    found: list[tuple[Labelling, list[str]]] = []
    for folder, record in _trainings(path, runs):
        labelling = _labelling_of(record, dataset, folder)
        # Two that find the same threshold in different ways stay apart.
        same = next((names for other, names in found if _way(other) == _way(labelling)), None)
        if same is None:
            found.append((labelling, [str(folder)]))
        else:
            same.append(str(folder))
    if not found:
        try:
            found.append((label_dataset(dataset, "action", None)[1], []))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}; leave this run out, or collect more tasks") from error
    return tuple(
        KLRecord(
            folder=str(run.path),
            panel=str(settings["panel"]),
            kind=labelling.steps,
            steps=len(labelling.counted_kls(dataset)),
            episodes=len(dataset),
            is_lower_bound=settings.get("top_k") is not None,
            trainings=tuple(names),
            histograms=_histograms(labelling, dataset, run.precisions[:-1]),
        )
        for labelling, names in found
    )


def _trainings(path: Path, runs: Sequence[Run]) -> list[tuple[Path, dict[str, Any]]]:
    """The trainings whose data this file was, by its digest."""
    records = [(run.path, training_record(run.path)) for run in runs if run.kind == "training"]
    digests = [(folder, record, record.get("settings", record).get("data_sha256")) for folder, record in records]
    own = file_digest(path) if any(digest for _, _, digest in digests) else None
    return [(folder, record) for folder, record, digest in digests if digest and digest == own]


def _labelling_of(record: Mapping[str, Any], dataset: KLDataset, folder: Path) -> Labelling:
    """How a training labelled the data: as it has it on record, or before its end as its options say."""
    try:
        if "labelling" not in record:
            settings = record.get("settings", record)
            return label_dataset(dataset, settings["steps"], settings["threshold"])[1]
        kept = record["labelling"]
        plateaus = None if kept["plateaus"] is None else tuple(Plateau(**plateau) for plateau in kept["plateaus"])
        # JSON has null for the infinite threshold of a precision that is never too low.
        taus = tuple(math.inf if tau is None else tau for tau in kept["thresholds"])
        return Labelling(kept["steps"], taus, plateaus, ())
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{folder} does not say how it labelled its data: run agents/train_kl_st.py again") from error


def _way(labelling: Labelling) -> tuple[Any, ...]:
    return labelling.steps, labelling.thresholds, labelling.plateaus


def _histograms(labelling: Labelling, dataset: KLDataset, lower: Sequence[str]) -> tuple[HistogramRecord, ...]:
    kls = labelling.counted_kls(dataset)
    values = np.log10(np.clip(kls, KL_FLOOR, KL_CEILING))
    taus = np.log10(np.clip(labelling.thresholds, KL_FLOOR, KL_CEILING))
    edges = np.linspace(min(values.min(), taus.min()) - 0.1, max(values.max(), taus.max()) + 0.1, BINS + 1)
    histograms = []
    for p, (name, tau) in enumerate(zip(lower, labelling.thresholds, strict=True)):
        plateau = None if labelling.plateaus is None else labelling.plateaus[p]
        is_plateau = plateau is not None and plateau.bimodal
        origin = "middle of the plateau" if is_plateau else "Otsu: no plateau found"
        histograms.append(
            HistogramRecord(
                precision=name,
                edges=tuple(edges.round(4).tolist()),
                counts=tuple(np.histogram(values[:, p], edges)[0].tolist()),
                threshold=tau,
                origin="given by --threshold" if plateau is None else origin,
                plateau=(plateau.low, plateau.high) if plateau is not None and is_plateau else None,
                above=float((kls[:, p] > tau).mean()),
            )
        )
    return tuple(histograms)
