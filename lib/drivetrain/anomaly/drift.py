"""How far the rows that a model judges have moved from those that it was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from drivetrain.anomaly import distribution, reference
from drivetrain.anomaly.distribution import Report
from drivetrain.anomaly.judge import features
from drivetrain.anomaly.modelfile import Model
from drivetrain.anomaly.worker import SCORE
from drivetrain.contracts import Dataset
from drivetrain.session import carefully

MOST: Final = 50_000  # chance alone makes a PSI of 0.001 in that many rows


@dataclass(frozen=True)
class Measured:
    """How far some rows have moved from a model's reference. ``scores`` is a histogram: the edges of its
    bins, and rows in each."""

    report: Report
    scores: Mapping[str, Any]

    @property
    def stale(self) -> str | None:
        """Why the model is stale; None where it is not."""
        if not self.report.stale:
            return None
        moved = [one for one in (*self.report.features, self.report.scores) if one.drifted]
        told = ", ".join(f"{one.name} (PSI {one.psi:.2f})" for one in sorted(moved, key=lambda one: -one.psi)[:5])
        return f"its drift rate is {self.report.rate:.2f}: {told}"


def sample(rows: DataFrame, dataset: Dataset, judged: int) -> pa.Table:
    """Features and SCORE of typed rows that were judged, of which there are ``judged``; of many up to MOST, always the
    same ones: more would not tell more, and all of them would go to Python once more."""
    scored = rows.where(F.col(SCORE).isNotNull())

    def found(careful: bool) -> pa.Table:
        return reference.some(scored, dataset, [*features(dataset, careful).values(), F.col(SCORE)], judged, MOST)

    return carefully(found)


def measured(rows: pa.Table, model: Model) -> Measured:
    """Rows with features and SCORE against the model's reference."""
    pairs = list(zip(model.encoding.encoders, model.references, strict=True))
    bins = {encoder.feature.name: (one.bins, one.array) for encoder, one in pairs}
    found = {
        encoder.feature.name: distribution.count_feature(one.bins, encoder, rows[encoder.feature.name])
        for encoder, one in pairs
    }
    scores = model.scores.bins.count(rows[SCORE].to_numpy())
    report = distribution.report(bins, found, (model.scores.bins, model.scores.array), scores)
    return Measured(report, {"edges": model.scores.bins.edges, "rows": scores.tolist()})
