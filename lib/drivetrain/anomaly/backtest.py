"""Which sort of forest finds the known anomalies of a backtest: the plain one, unless the extended wins for certain.

Over six sets of published data neither dominates, and an extended forest costs four times as much to score; so it must
show that it is worth it, on the data that it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from drivetrain.anomaly import grow
from drivetrain.anomaly.forest import Floats
from drivetrain.anomaly.native import Code
from drivetrain.anomaly.scoring import Scorer
from drivetrain.anomaly.thresholds import Labels, auroc

WORTH: Final = 0.001  # of the area: less is not seen in what is told


@dataclass(frozen=True)
class Choice:
    """``extended``: whether that one is to be fitted. The areas under the curve are by seed."""

    extended: bool
    plain_areas: tuple[float, ...]
    extended_areas: tuple[float, ...]

    def __str__(self) -> str:
        plain, other = np.mean(self.plain_areas), np.mean(self.extended_areas)
        return f"AUROC {plain:.3f} by single features, {other:.3f} by planes, mean of {len(self.plain_areas)} seeds"


def choose(
    sample: Floats, rows: Floats, anomalies: Labels, *, trees: int = 100, size: int = 256, seeds: Sequence[int],
    code: Code | None = None,
) -> Choice:  # fmt: skip
    """Fit both sorts on ``sample`` with each seed, and score ``rows`` (rows, features), whose ``anomalies`` are known.

    The extended one wins where its gain, paired by seed, is above two standard errors of its mean, and WORTH it; 10
    seeds are a beginning.

    Raises:
        DrivetrainError: as grow.isolation() and thresholds.auroc().
    """
    areas = []
    for seed in seeds:
        forests = (fit(sample, trees=trees, rows=size, seed=seed) for fit in (grow.isolation, grow.extended))
        areas.append([auroc(Scorer(forest, code).score(rows), anomalies) for forest in forests])
    plain, extended = np.array(areas).T
    gain = extended - plain
    sure = gain.std(ddof=1) / np.sqrt(len(gain)) if len(gain) > 1 else np.inf
    return Choice(bool(gain.mean() > max(2 * sure, WORTH)), tuple(plain.tolist()), tuple(extended.tolist()))
