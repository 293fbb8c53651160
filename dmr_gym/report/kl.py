"""Histograms of a KL data set, with the threshold that KL-ST takes from it."""

from __future__ import annotations

import numpy as np

from dmr_gym.calibration import KL_FLOOR
from dmr_gym.errors import ConfigError
from dmr_gym.kl_dataset import KLDataset, read_settings
from dmr_gym.kl_figures import KL_CEILING
from dmr_gym.kl_training import label_dataset
from dmr_gym.report.records import HistogramRecord, KLRecord
from dmr_gym.report.runs import KL_FILE, Run

BINS = 48


def read_kls(run: Run) -> KLRecord:
    """Count the KLs of the action steps of each lower precision.

    Raises:
        ConfigError: a damaged file, or fewer steps than a threshold needs.
    """
    path = run.path / KL_FILE
    dataset, settings = KLDataset.load(path), read_settings(path)
    try:
        _, labelling = label_dataset(dataset, "action", None)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; leave this run out, or collect more tasks") from error
    kls = labelling.counted_kls(dataset)
    values = np.log10(np.clip(kls, KL_FLOOR, KL_CEILING))
    taus = np.log10(np.clip(labelling.thresholds, KL_FLOOR, KL_CEILING))
    edges = np.linspace(min(values.min(), taus.min()) - 0.1, max(values.max(), taus.max()) + 0.1, BINS + 1)
    histograms = []
    for p, (name, tau) in enumerate(zip(run.precisions[:-1], labelling.thresholds, strict=True)):
        plateau = None if labelling.plateaus is None else labelling.plateaus[p]
        is_plateau = plateau is not None and plateau.bimodal
        histograms.append(
            HistogramRecord(
                precision=name,
                edges=tuple(edges.round(4).tolist()),
                counts=tuple(np.histogram(values[:, p], edges)[0].tolist()),
                threshold=tau,
                origin="middle of the plateau" if is_plateau else "Otsu: no plateau found",
                plateau=(plateau.low, plateau.high) if plateau is not None and is_plateau else None,
                above=float((kls[:, p] > tau).mean()),
            )
        )
    bound = settings.get("top_k") is not None
    return KLRecord(str(run.path), str(settings["panel"]), len(kls), len(dataset), bound, tuple(histograms))
