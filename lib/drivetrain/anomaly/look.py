"""What a model says of silver as it stands, for a person; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from drivetrain import sqltext
from drivetrain.anomaly import drift, udf
from drivetrain.anomaly.backtest import Choice, choose
from drivetrain.anomaly.distribution import Drift
from drivetrain.anomaly.fit import Comparison, encoder, sampled, scores
from drivetrain.anomaly.judge import features, taken
from drivetrain.anomaly.reference import some
from drivetrain.anomaly.registry import History
from drivetrain.anomaly.udf import Fitted, kernel
from drivetrain.anomaly.worker import SCORE
from drivetrain.contracts import Dataset
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.session import carefully

if TYPE_CHECKING:
    from drivetrain.pipeline import Pipeline

TRIED: Final = 50_000  # rows of each sort
SEEDS: Final = 10


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
        told = rows.where(taken(dataset, careful)).select(*kept, tell(features(dataset, careful)).alias("_told"))
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


def trial(pipeline: Pipeline, history: History) -> Comparison | None:
    """The version in shadow beside the one that acts, over what both were given of the loads since it is there; None
    where that is nothing."""
    table, acting = pipeline.table("ops", "trials"), history.acting
    if acting is None or history.shadow is None or not table.exists():
        return None
    mine = (F.col("version") == history.shadow) & (F.col("acting") == acting.version)
    rows = table.read().where((F.col("dataset") == history.dataset) & mine)
    total = rows.agg(*[F.sum(name) for name in ("rows", "both", "only_old", "only_new")]).collect()[0]
    return Comparison(acting.version, *total) if total[0] else None


def tried(pipeline: Pipeline, dataset: Dataset, truth: str) -> Choice:
    """Which sort of forest finds silver's anomalies that are known: the rows for which the SQL condition holds.

    Raises:
        DrivetrainError: the condition is none or names a column that silver does not have; silver has no rows of the
            reference, or it holds for none of them, or for all.
    """
    anomaly, rows = dataset.anomaly, _silver(pipeline, dataset)
    assert anomaly
    fix = "write a condition that holds for the known anomalies, as order_id IN ('a', 'b')"
    known = [column.name for column in dataset.columns]
    sqltext.check_condition(truth, known, f"{dataset.name} has", "--truth", fix)
    is_odd = F.coalesce(F.expr(truth).try_cast("boolean"), F.lit(False))

    def found(careful: bool) -> list[pa.Table]:
        wanted = rows.where(taken(dataset, careful))
        sorts = [wanted.where(is_odd), wanted.where(~is_odd)]
        columns = [*features(dataset, careful).values()]
        return [some(one, dataset, columns, one.count(), TRIED) for one in sorts]

    sample = sampled(rows, dataset)
    odd, usual = carefully(found)
    encoded = encoder(sample, anomaly)
    reference, scored = (np.column_stack(encoded.columns(one)) for one in (sample, pa.concat_tables([odd, usual])))
    labels = np.arange(len(scored)) < odd.num_rows
    return choose(
        reference, scored, labels, trees=anomaly.trees, size=anomaly.sample, seeds=range(SEEDS), code=kernel()
    )


def chosen(pipeline: Pipeline, dataset: Dataset, version: int | None) -> int:
    """That version, by default the one that judges.

    Raises:
        DrivetrainError: there is no such model.
    """
    history = pipeline.judges.registry.history(dataset.name)
    if version is not None:
        return history.checked(version)
    if (standing := history.judging) is None:
        fix = f"{pipeline.conf.command('anomalies')} fit {dataset.name}"
        raise DrivetrainError(Problem("model-unknown", dataset.name, "no model judges it", fix))
    return standing.version


def _model(pipeline: Pipeline, dataset: Dataset, version: int | None) -> tuple[int, Fitted]:
    number = chosen(pipeline, dataset, version)
    return number, pipeline.judges.fitted(dataset, number)


def _silver(pipeline: Pipeline, dataset: Dataset) -> DataFrame:
    table = pipeline.table("silver", dataset.name)
    if not table.exists():
        raise DrivetrainError(Problem("no-rows", dataset.name, "silver has no rows yet", "run etl or batch first"))
    return table.read(table.version())
