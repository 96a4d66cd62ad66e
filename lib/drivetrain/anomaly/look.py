"""What a model says of silver as it stands, for a person; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from drivetrain.anomaly import drift, udf
from drivetrain.anomaly.distribution import Drift
from drivetrain.anomaly.fit import sampled, scores
from drivetrain.anomaly.judge import features, taken
from drivetrain.anomaly.udf import Fitted
from drivetrain.anomaly.worker import SCORE
from drivetrain.contracts import Dataset
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.session import carefully

if TYPE_CHECKING:
    from drivetrain.pipeline import Pipeline


@dataclass(frozen=True)
class Look:
    """``groups``: (group, rows, flagged), the most flagged first. ``examples``: score, the key as far as everybody may
    see it (its ``names``), and the reason; the strangest first."""

    version: int
    judged: int
    flagged: int
    groups: Sequence[tuple[object, ...]]
    names: Sequence[str]
    examples: Sequence[tuple[object, ...]]


@dataclass(frozen=True)
class Moved:
    """How far silver's reference window of now lies from the reference of the version."""

    version: int
    rate: float
    stale: bool
    each: Sequence[Drift]


def look(pipeline: Pipeline, dataset: Dataset, version: int | None, most: int) -> Look:
    """Raises:
    DrivetrainError: there is no such model, or it does not fit the contract; or silver has no rows.
    """
    number, fitted = _model(pipeline, dataset, version)
    tell, rows = udf.teller(pipeline.spark, fitted), _silver(pipeline, dataset)
    group = dataset.anomaly.group if dataset.anomaly else None
    names = [name for name in dataset.key if dataset.is_open(name)]

    def found(careful: bool) -> Look:
        kept = dict.fromkeys([*dataset.key, *([group] if group else [])])
        # Kept, as each count and list of it would have every row scored again.
        told = rows.where(taken(dataset, careful)).select(*kept, tell(*features(dataset, careful)).alias("_told"))
        told.persist()
        try:
            return shown(told)
        finally:
            told.unpersist()

    def shown(told: DataFrame) -> Look:
        odd = F.col("_told.score") > fitted.threshold
        counts = F.count(F.lit(1)).alias("rows"), F.count_if(odd).alias("flagged")
        by = F.col(group).cast("string") if group else F.lit(None).cast("string")
        groups = told.groupBy(by.alias("name")).agg(*counts)
        total = groups.agg(F.sum("rows"), F.sum("flagged")).collect()[0]
        worst = groups.where("flagged > 0").orderBy(F.desc("flagged"), "name").limit(most).collect() if group else []
        strangest = told.where(odd).orderBy(F.desc("_told.score"), *dataset.key).limit(most)
        listed = strangest.select(F.round("_told.score", 4), *names, "_told.reason").collect()
        by_group, examples = ([tuple(one) for one in found] for found in (worst, listed))
        return Look(number, total[0] or 0, total[1] or 0, by_group, names, examples)

    return carefully(found)


def moved(pipeline: Pipeline, dataset: Dataset) -> Moved:
    """Raises:
    DrivetrainError: as `look`.
    """
    number, fitted = _model(pipeline, dataset, None)
    sample = sampled(_silver(pipeline, dataset), dataset)
    report = drift.measured(sample.append_column(SCORE, [scores(fitted.model, sample)]), fitted.model).report
    return Moved(number, report.rate, report.stale, (*report.features, report.scores))


def _model(pipeline: Pipeline, dataset: Dataset, version: int | None) -> tuple[int, Fitted]:
    history = pipeline.judges.registry.history(dataset.name)
    if version is None:
        if (standing := history.judging) is None:
            fix = f"{pipeline.conf.command('anomalies')} fit {dataset.name}"
            raise DrivetrainError(Problem("model-unknown", dataset.name, "no model judges it", fix))
        version = standing.version
    return version, pipeline.judges.fitted(dataset, history.checked(version))


def _silver(pipeline: Pipeline, dataset: Dataset) -> DataFrame:
    table = pipeline.table("silver", dataset.name)
    if not table.exists():
        raise DrivetrainError(Problem("no-rows", dataset.name, "silver has no rows yet", "run etl or batch first"))
    return table.read(table.version())
