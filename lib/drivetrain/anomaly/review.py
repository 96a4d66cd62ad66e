"""What people say of the anomalies: released or confirmed, and what that tells of the models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from drivetrain import ops, quarantine, sqltext
from drivetrain.anomaly import look, udf
from drivetrain.anomaly.flow import REVIEWED
from drivetrain.anomaly.judge import features, taken
from drivetrain.anomaly.thresholds import FEW_LABELS, Proposal, measure, propose
from drivetrain.contracts import Dataset
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.session import carefully
from drivetrain.sink import Txn

if TYPE_CHECKING:
    from drivetrain.pipeline import Pipeline

Label = Literal["released", "confirmed"]
COLUMNS: Final = (
    "anomaly_id", "dataset", "key", "version", "stage", "score", "threshold", "features", "reason", "removed", "_file",
    "_block", "_line", "_load", "run", "at",
)  # fmt: skip
NOTHING: Final = (
    "anomaly_id string, dataset string, key string, version bigint, stage string, score double, threshold double,"
    " features array<string>, reason string, removed boolean, _file string, _block bigint, _line bigint, _load bigint,"
    " run string, at timestamp, label string"
)
IDS: Final = re.compile(r"[0-9a-f]{32}(,[0-9a-f]{32})*")
WEEK: Final = "date_trunc('week', at)"
MOST_LABELS: Final = 100_000
WANTED: Final = 0.9  # precision at which a threshold is proposed


@dataclass(frozen=True)
class Week:
    """Of a version's anomalies of a week those that people have judged: how many they confirmed and released; and how
    many rows they named in that week which it had ``missed``."""

    version: int
    week: str
    flagged: int = 0
    confirmed: int = 0
    released: int = 0
    missed: int = 0

    @property
    def precision(self) -> float | None:
        return _share(self.confirmed, self.released)

    @property
    def recall(self) -> float | None:
        """None where nobody has looked for what was missed, or has found nothing."""
        return _share(self.confirmed, self.missed) if self.missed else None


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None


def any_flagged(pipeline: Pipeline, dataset: Dataset) -> bool:
    table = pipeline.table("ops", "anomalies")
    return table.exists() and not table.read().where(F.col("dataset") == dataset.name).isEmpty()


def entries(pipeline: Pipeline, dataset: Dataset) -> DataFrame:
    """Each anomaly of the loads that silver has, with its newest label, null where nobody has said anything; without
    rows that came before, and are nowhere. Who releases one as rows with other reasons are released has said it too.
    """
    table = pipeline.table("ops", "anomalies")
    if not table.exists():
        return pipeline.spark.createDataFrame([], NOTHING)
    done = pipeline.table("silver", dataset.name).last_txn(dataset.name)
    there = (F.col("dataset") == dataset.name) & (F.col("_load") <= done) & F.col("outcome").isin(*REVIEWED)
    rows = table.read()
    known = rows if "key" in rows.columns else rows.withColumn("key", F.lit(None).cast("string"))  # as of old ones
    told = known.where(there).select(*COLUMNS).join(newest_labels(pipeline, dataset), "anomaly_id", "left")
    if not pipeline.quarantine.exists():
        return told
    gone = "rule = 'anomaly' AND state IN ('released', 'requeued') AND repaired IS NULL"
    released = pipeline.quarantine.read().where((F.col("dataset") == dataset.name) & F.expr(gone))
    ids = released.select(F.col("quarantine_id").alias("anomaly_id"), F.lit("released").alias("_gone"))
    return told.join(ids, "anomaly_id", "left").select(*COLUMNS, F.coalesce("label", "_gone").alias("label"))


def newest_labels(pipeline: Pipeline, dataset: Dataset) -> DataFrame:
    """anomaly_id, label."""
    table = pipeline.table("ops", "labels")
    if not table.exists():
        return pipeline.spark.createDataFrame([], "anomaly_id string, label string")
    mine = table.read().where(F.col("dataset") == dataset.name)
    return mine.groupBy("anomaly_id").agg(F.max_by("label", "at").alias("label"))


def label(pipeline: Pipeline, dataset: Dataset, which: str, said: Label) -> int:
    """Say it of the anomalies that have these ids, parted by commas, or fulfil the SQL condition. Returns how many
    those are. Removed rows that are released go into silver with the next ``batch --requeue``, once.

    Raises:
        DrivetrainError: no model has flagged a row yet; the condition is none, or names a column that anomalies do not
            have.
    """
    if not any_flagged(pipeline, dataset):
        fix = f"{pipeline.conf.command('anomalies')} list shows the models; in shadow they only count"
        raise DrivetrainError(Problem("anomalies", dataset.name, "no row has been flagged yet", fix))
    found = entries(pipeline, dataset).where(condition(which, said)).where(~F.col("label").eqNullSafe(said))
    chosen = found.select(
        "anomaly_id", "dataset", "version", "score", F.lit(said).alias("label"), F.lit(ops.now()).alias("at"),
        F.lit(pipeline.outcome.run).alias("run"),
    ).persist()  # fmt: skip
    return _said(pipeline, dataset, chosen, said)


def missed(pipeline: Pipeline, dataset: Dataset, which: str) -> int:
    """Say of silver's rows that fulfil the SQL condition, and that the model which judges does not flag, that they are
    anomalies. They stay where they are; their scores tell what the model misses. Returns how many were not named yet.

    Raises:
        DrivetrainError: the condition is none, or names a column that silver does not have; no model judges the
            dataset, or it does not fit the contract.
    """
    version = look.chosen(pipeline, dataset, None)
    fitted, table = pipeline.judges.fitted(dataset, version), pipeline.table("silver", dataset.name)
    fix = "write a condition over silver's columns, as order_id = 'o17'"
    sqltext.check_condition(which, [one.name for one in dataset.columns], f"{dataset.name} has", "--missed", fix)
    tell, rows = udf.teller(pipeline.spark, fitted), table.read(table.version()).where(which)

    def found(careful: bool) -> int:
        score = tell(features(dataset, careful)).getField("score")
        ids = quarantine.row_id(dataset).alias("anomaly_id")
        scored = rows.where(taken(dataset, careful)).select(ids, score.alias("score"))
        known = newest_labels(pipeline, dataset).where("label = 'missed'")
        new = scored.where(F.col("score") <= fitted.threshold).join(known, "anomaly_id", "left_anti")
        said = new.select(
            "anomaly_id", F.lit(dataset.name).alias("dataset"), F.lit(version).cast("bigint").alias("version"), "score",
            F.lit("missed").alias("label"), F.lit(ops.now()).alias("at"), F.lit(pipeline.outcome.run).alias("run"),
        ).persist()  # fmt: skip
        return _said(pipeline, dataset, said, "missed")

    return carefully(found)


def _said(pipeline: Pipeline, dataset: Dataset, chosen: DataFrame, said: Label | Literal["missed"]) -> int:
    """Append persisted labels, if there are any; how many there are."""
    try:
        if count := chosen.count():
            if said != "missed":
                _move(pipeline, chosen, said)  # first, as without a label it is asked for again
            txn = Txn(f"label:{dataset.name}:{pipeline.outcome.run}:{said}", 1)
            pipeline.table("ops", "labels").append(chosen, txn, {"run": pipeline.outcome.run}, {})
        return count
    finally:
        chosen.unpersist()


def condition(which: str, said: str) -> str:
    """Ids or a condition as SQL.

    Raises:
        DrivetrainError: as `label`.
    """
    if IDS.fullmatch(which):
        return f"anomaly_id IN ({', '.join(repr(one) for one in which.split(','))})"
    fix = 'write ids parted by commas, or e.g. "score < 0.6 AND _load = 12"'
    sqltext.check_condition(which, (*COLUMNS, "label"), "anomalies have", f"--{said}", fix)
    return which


def _move(pipeline: Pipeline, chosen: DataFrame, said: Label) -> None:
    """The same rows in quarantine, as far as they have not gone on from there."""
    if not pipeline.quarantine.exists():
        return
    ids = chosen.select(F.col("anomaly_id").alias("quarantine_id"))
    held = pipeline.quarantine.read().where("state IN ('open', 'confirmed', 'released')")
    rows = held.join(F.broadcast(ids), "quarantine_id", "left_semi").withColumn("state", F.lit(said))
    txn = Txn(f"review:{pipeline.outcome.run}:{said}", 1)
    pipeline.quarantine.merge(rows.select(*quarantine.COLUMNS), ["quarantine_id"], txn, {"run": pipeline.outcome.run})


def weeks(pipeline: Pipeline, dataset: Dataset) -> list[Week]:
    """By version and week of the verdict, of missed rows of the label; oldest first."""
    counts = [F.count(F.lit(1)), F.count_if(F.col("label") == "confirmed"), F.count_if(F.col("label") == "released")]
    week = F.date_format(F.expr(WEEK), "yyyy-MM-dd").alias("week")
    rows = entries(pipeline, dataset).groupBy("version", week).agg(*counts).collect()
    found = {tuple(row)[:2]: Week(*row) for row in rows}
    for version, when, count in _missed(pipeline, dataset).groupBy("version", week).count().collect():
        found[version, when] = replace(found.get((version, when), Week(version, when)), missed=count)
    return [found[key] for key in sorted(found)]


def _missed(pipeline: Pipeline, dataset: Dataset) -> DataFrame:
    """version, score, at of the rows that people have named as missed."""
    table = pipeline.table("ops", "labels")
    if not table.exists():
        return pipeline.spark.createDataFrame([], "version bigint, score double, at timestamp")
    mine = (F.col("dataset") == dataset.name) & (F.col("label") == "missed")
    return table.read().where(mine).select("version", "score", "at")


def proposal(pipeline: Pipeline, dataset: Dataset, version: int) -> Proposal:
    """Whether another threshold would do better on what people have labelled of a version's anomalies, and of what it
    missed."""
    mine = (F.col("version") == version) & F.col("label").isNotNull()
    said = entries(pipeline, dataset).where(mine).orderBy(F.desc("at")).limit(MOST_LABELS)
    rows = said.select("score", "label", "threshold").collect()
    unseen = _missed(pipeline, dataset).where(F.col("version") == version).orderBy(F.desc("at")).limit(MOST_LABELS)
    below = [row["score"] for row in unseen.select("score").collect()]
    scores = np.array([*(row["score"] for row in rows), *below], np.float64)
    confirmed = np.array([*(row["label"] == "confirmed" for row in rows), *[True] * len(below)], np.bool_)
    threshold = max((row["threshold"] for row in rows), default=1.0)  # what was missed lies below, wherever it is
    if not rows:
        why = f"none of its flagged rows is reviewed yet; {FEW_LABELS} reviewed rows are needed"
        return Proposal(None, measure(scores, confirmed, threshold), why)
    return propose(scores, confirmed, threshold, WANTED)


def examples(pipeline: Pipeline, dataset: Dataset, most: int) -> Sequence[tuple[object, ...]]:
    """Those that nobody has judged, the strangest first."""
    waiting = entries(pipeline, dataset).where("label IS NULL").orderBy(F.desc("score"), "anomaly_id").limit(most)
    columns = ("anomaly_id", "key", "version", F.round("score", 4), "removed", "reason", "_file", "_line")
    return [tuple(row) for row in waiting.select(*columns).collect()]
