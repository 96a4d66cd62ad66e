"""What the report shows of the models: asked of the tables that they write, by a few bounded queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import reduce
from operator import or_
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from drivetrain.anomaly.registry import Registry, Standing
from drivetrain.sink import Table

LOADS, EXAMPLES, GROUPS, REASONS = 30, 8, 20, 12
Rows = Sequence[Any]


@dataclass(frozen=True)
class Judged:
    """One load's rows: judged, of these flagged, of these removed; ``held`` says why none was although the model
    enforces."""

    at: datetime
    judged: int
    flagged: int
    removed: int
    held: str | None = None

    @property
    def share(self) -> float:
        return self.flagged / self.judged if self.judged else 0.0


@dataclass(frozen=True)
class Example:
    """A flagged row by its place; the reason holds no personal value."""

    score: float
    removed: bool
    reason: str
    place: str


@dataclass(frozen=True)
class Shown:
    """The model that judges a dataset, and what its last loads came to, oldest first.

    Attributes:
        edges, scores: the histogram of the loads' scores: rows up to each edge, and above the last.
        reasons: feature -> flagged rows that it isolated.
        groups: group -> judged and flagged rows, the most flagged ones.
        drift: the newest rate, and the features that have drifted.
    """

    dataset: str
    version: int
    stage: str
    threshold: float
    declared: float
    loads: tuple[Judged, ...] = ()
    edges: tuple[float, ...] = ()
    scores: tuple[int, ...] = ()
    reasons: tuple[tuple[str, int], ...] = ()
    groups: tuple[tuple[str, int, int], ...] = ()
    examples: tuple[Example, ...] = ()
    drift: float | None = None
    drifted: tuple[str, ...] = ()

    @property
    def judged(self) -> int:
        return sum(load.judged for load in self.loads)

    @property
    def flagged(self) -> int:
        return sum(load.flagged for load in self.loads)

    @property
    def held(self) -> tuple[Judged, ...]:
        return tuple(load for load in self.loads if load.held)


def collect(spark: SparkSession, warehouse: str, datasets: Sequence[str]) -> tuple[Shown, ...]:
    """Of each dataset that has a model which judges it."""
    registry = Registry(spark, warehouse)
    standing = {one.dataset: one.judging for one in registry.histories(datasets)}
    models = {name: one for name, one in standing.items() if one}
    if not models:
        return ()
    cards = registry.table.read().where(_of(models) & F.col("card").isNotNull()).select("dataset", "card").collect()
    ops = {name: Table(spark, f"{warehouse}/ops/{name}") for name in ("verdicts", "anomalies", "drift")}
    frames = {name: table.read().where(_of(models)) for name, table in ops.items() if table.exists()}
    verdicts = _newest(frames.get("verdicts"), F.desc("at"), LOADS)
    examples = _newest(frames.get("anomalies"), F.desc("score"), EXAMPLES)
    reasons, drift = _reasons(frames.get("anomalies")), _drift(frames.get("drift"))

    def shown(name: str, one: Standing, card: Mapping[str, Any]) -> Shown:
        told = sorted(_own(verdicts, name), key=lambda row: row["at"])
        moved = _own(drift, name)
        return Shown(
            name, one.version, one.stage, float(card["threshold"]), float(card["share"]),
            loads=tuple(map(_judged, told)), **_histogram(told), groups=_groups(told),
            reasons=tuple((row["feature"], row["rows"]) for row in _own(reasons, name))[:REASONS],
            examples=tuple(map(_example, _own(examples, name))),
            drift=max((row["rate"] for row in moved), default=None),
            drifted=tuple(row["feature"] for row in moved if row["drifted"]),
        )  # fmt: skip

    return tuple(shown(row["dataset"], models[row["dataset"]], json.loads(row["card"])) for row in cards)


def _of(models: Mapping[str, Standing]) -> Column:
    """Whether a row is of one of these versions."""
    each = [(F.col("dataset") == name) & (F.col("version") == one.version) for name, one in models.items()]
    return reduce(or_, each)


def _newest(frame: DataFrame | None, order: Column, most: int) -> Rows:
    """The first rows of each dataset in that order."""
    if frame is None:
        return []
    place = F.row_number().over(Window.partitionBy("dataset").orderBy(order))
    return frame.withColumn("_place", place).where(F.col("_place") <= most).orderBy("_place").collect()


def _reasons(frame: DataFrame | None) -> Rows:
    if frame is None:
        return []
    each = frame.select("dataset", F.explode("features").alias("feature")).groupBy("dataset", "feature")
    return each.agg(F.count(F.lit(1)).alias("rows")).orderBy(F.desc("rows"), "feature").limit(1000).collect()


def _drift(frame: DataFrame | None) -> Rows:
    """Each dataset's rows of its newest measurement."""
    if frame is None:
        return []
    newest = F.rank().over(Window.partitionBy("dataset").orderBy(F.desc("at")))
    return frame.withColumn("_place", newest).where("_place = 1").orderBy(F.desc("psi")).limit(1000).collect()


def _own(rows: Rows, dataset: str) -> Rows:
    return [row for row in rows if row["dataset"] == dataset]


def _judged(row: Any) -> Judged:
    at = row["at"].astimezone(timezone.utc)
    return Judged(at, row["judged"], row["flagged"], row["removed"], row["held"])


def _histogram(rows: Rows) -> dict[str, Any]:
    """All loads together: one model counts in one set of bins. The last bin, of missing scores, is always empty."""
    told = [one for row in rows if (one := json.loads(row["scores"]))]  # of a load that was not measured there is none
    if not told:
        return {}
    sums = [sum(counts) for counts in zip(*(one["rows"] for one in told), strict=True)]
    return {"edges": tuple(told[0]["edges"]), "scores": tuple(sums[:-1])}


def _groups(rows: Rows) -> tuple[tuple[str, int, int], ...]:
    total: dict[str, tuple[int, int]] = {}
    for row in rows:
        for name, judged, flagged in json.loads(row["groups"] or "[]"):
            before = total.get(name, (0, 0))
            total[name] = before[0] + judged, before[1] + flagged
    worst = sorted(total.items(), key=lambda item: (-item[1][1], item[0]))[:GROUPS]
    return tuple((name, judged, flagged) for name, (judged, flagged) in worst if flagged)


def _example(row: Any) -> Example:
    line = f" line {row['_line']}" if row["_line"] is not None else ""
    return Example(row["score"], row["removed"], row["reason"] or "", f"{row['_file']}{line}")
