"""Runs that are not like the others: what one did with a dataset or gold table, by a forest over what those before did.

The run stands among its past when the forest is grown, so that in a quiet history it is as likely as any other to
score high. It is told of where few past runs score as high, and either the score lies far beyond theirs, or one of its
metrics far beyond all that they were: one odd metric among many moves a score but little.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from drivetrain import ops
from drivetrain.anomaly import features, grow, reasons
from drivetrain.anomaly.features import Feature
from drivetrain.anomaly.forest import Floats
from drivetrain.anomaly.reference import FAILED
from drivetrain.anomaly.scoring import Scorer
from drivetrain.session import reason
from drivetrain.sink import Table

if TYPE_CHECKING:
    from drivetrain.pipeline import Pipeline

Metrics = Mapping[str, float]  # what is not known of a run is NaN
PROFILED: Final = ("sampled", "nulls")
LEAST, MOST = 20, 200  # past runs that are needed, and that are looked at
SAMPLE: Final = 64  # runs of a tree
RATE: Final = 0.1  # share of past runs that may score as high
FAR: Final = 5.0  # deviations of the past scores from their median
# Of amounts factors count, of shares differences.
AMOUNTS: Final = ("rows", "files", "seconds", "hours since the last run")
DOUBLE, POINT = math.log(2), 0.01  # the least by which they must leave the past's range, beside half of that range
SMALL: Final = 10.0  # an amount below which factors say little

# Jobs that publish gold tables once; a stream does so every so often, and a replay beside them.
PUBLISHERS: Final = ("etl", "batch")
TOLD: Final = ("started", "rows", "seconds")
FEW: Final = 100  # rows of a table that are nothing to be told of
NO_RUN: Final = {"before": None, "rows_before": None}


@dataclass(frozen=True)
class Odd:
    """A run that is not like the ``past`` ones, by its score (0 to 1), and why, in words."""

    past: int
    score: float
    why: str


def judge(past: Sequence[Metrics], now: Metrics) -> Odd | None:
    """None where the run is like the others, or where these are too few to tell. Metrics that the past does not know
    are left out."""
    count = len(past)
    names = [name for name in now if any(not math.isnan(one.get(name, math.nan)) for one in past)]
    if count < LEAST or not names:
        return None
    table = pa.table({name: [one.get(name, math.nan) for one in (*past, now)] for name in names})
    encoding = features.fit([Feature(name) for name in names], table)
    columns = encoding.columns(table)
    forest = grow.extended(np.column_stack(columns), rows=SAMPLE, terms=1)
    *before, score = Scorer(forest).score(columns).tolist()
    if 1 + sum(one >= score for one in before) > max(1, RATE * (count + 1)):
        return None
    if score <= _far(before) and not any(map(_beyond, names, columns)):
        return None
    ranges = [reasons.range_of(column[:-1]) for column in columns]
    why = reasons.reasons(forest, encoding, ranges, table.slice(count))[0]
    told = "; ".join(one.text for one in why).replace("the reference", f"the last {count} runs")
    return Odd(count, score, told)


def _far(scores: Sequence[float]) -> float:
    """Median and deviation, as a past run that was odd itself does not move them."""
    middle = float(np.median(scores))
    return middle + FAR * 1.4826 * float(np.median(np.abs(np.array(scores) - middle)))


def _beyond(name: str, column: Floats) -> bool:
    """Whether the last value lies far outside of the range of those before it."""
    values, least = (np.log(SMALL + column), DOUBLE) if name in AMOUNTS else (column, POINT)
    low, high = np.nanmin(values[:-1]), np.nanmax(values[:-1])
    return bool(max(low - values[-1], values[-1] - high) > max((high - low) / 2, least))


# --- in the flow ---


def look(pipeline: Pipeline) -> None:
    """A note and an alert for each dataset and gold table with which this run did what none before it did. Nothing that
    is found, or goes wrong here, stops a job."""
    outcome = pipeline.outcome
    try:
        for name, odd in chain(_odd_datasets(pipeline), _odd_tables(pipeline)):
            what = f"this run is not like the {odd.past} before it: {odd.why}"
            outcome.notes.append(f"{name}: {what}")
            ops.alert(pipeline.table("ops", "alerts"), outcome.run, "run", name, what)
    except FAILED as error:
        outcome.notes.append(f"this run was not compared with those before it: {reason(error)}")


def _odd_datasets(pipeline: Pipeline) -> Iterator[tuple[str, Odd]]:
    ledger = pipeline.table("ops", "ledger")
    mine = ops.together([row for row in pipeline.outcome.ledger if row.run == pipeline.outcome.run])
    if not mine or _young(ledger):
        return
    past = _past(pipeline, ledger.read().where(F.col("dataset").isin(*[row.dataset for row in mine])))
    for row in mine:
        before = [one for one in past if one["dataset"] == row.dataset]
        now = {**asdict(row), **_own(pipeline, row.dataset), "before": before[0]["at"] if before else None}
        if odd := judge(list(map(metrics, before)), metrics(now)):
            yield row.dataset, odd


def _odd_tables(pipeline: Pipeline) -> Iterator[tuple[str, Odd]]:
    steps = pipeline.table("ops", "steps")
    mine = [step for step in pipeline.steps.done if step.step == "gold" and not step.failed]
    if not mine or pipeline.steps.job not in PUBLISHERS or _young(steps):
        return
    gold = (F.col("step") == "gold") & F.col("dataset").isin(*[step.dataset for step in mine])
    published = steps.read().where(gold & F.col("job").isin(*PUBLISHERS) & ~F.col("failed"))
    told = _latest(published.select("dataset", *TOLD), "started", {"before": "started", "rows_before": "rows"})
    past: Sequence[Any] = told.orderBy("place").collect()
    for step in mine:
        before = [one for one in past if one["dataset"] == step.dataset]
        last = {"before": before[0]["started"], "rows_before": before[0]["rows"]} if before else NO_RUN
        if odd := judge(list(map(table_metrics, before)), table_metrics({**asdict(step), **last})):
            yield step.dataset, odd


def _young(table: Table) -> bool:
    """A run is a commit: without enough of them there is no need to ask."""
    return not table.exists() or table.version() < LEAST - 1


def table_metrics(step: Mapping[str, Any]) -> Metrics:
    """Of a step that published a gold table, with ``before`` and ``rows_before`` of the one before it. Most tables grow
    by and by: what is told is which share of the rows went, or is new, by twentieths."""
    rows, before = step["rows"], step["rows_before"]
    ratio = math.nan if before is None else (FEW + rows) / (FEW + before)
    return {
        "lost share": _twentieths(1 - ratio), "new share": _twentieths(1 - 1 / ratio),
        "seconds": step["seconds"], "hours since the last run": _hours(step["before"], step["started"]),
    }  # fmt: skip


def _twentieths(share: float) -> float:
    return math.nan if math.isnan(share) else max(0, math.floor(20 * share)) / 20


def metrics(row: Mapping[str, Any]) -> Metrics:
    """Of a row of the ledger with ``seconds`` of its steps, ``nulls`` of ``sampled`` values, and ``before``: when the
    run before it was."""
    rows = row["rows_in"]
    shares = {f"{name} share": _share(row[name], rows) for name in ("quarantined", "duplicate", "late", "updated")}
    return {
        "rows": float(rows), "files": float(row["files"]), **shares,
        "missing share": _share(row["nulls"], row["sampled"]),
        "seconds": math.nan if row["seconds"] is None else row["seconds"],
        "hours since the last run": _hours(row["before"], row["at"]),
    }  # fmt: skip


def _hours(since: datetime | None, until: datetime) -> float:
    return (until.timestamp() - since.timestamp()) / 3600 if since else math.nan


def _share(part: int | None, whole: int | None) -> float:
    return part / whole if whole and part is not None else math.nan


def _past(pipeline: Pipeline, ledger: DataFrame) -> Sequence[Any]:
    """Each dataset's last rows of the ledger, the newest first, with what `metrics` asks for."""
    runs = _latest(ledger, "at", {"before": "at"})
    sums = {"steps": [F.sum("seconds").alias("seconds")], "profiles": [F.sum(one).alias(one) for one in PROFILED]}
    for name, wanted in sums.items():
        table = pipeline.table("ops", name)
        if table.exists():
            runs = runs.join(table.read().groupBy("run", "dataset").agg(*wanted), ["run", "dataset"], "left")
    missing = [name for name in ("seconds", *PROFILED) if name not in runs.columns]
    return runs.withColumns({name: F.lit(None) for name in missing}).orderBy("place").collect()


def _latest(rows: DataFrame, at: str, before: Mapping[str, str]) -> DataFrame:
    """Each dataset's last rows by that time (``place``: 1 for the newest), with columns of the row ``before`` each."""
    by = Window.partitionBy("dataset").orderBy(F.desc(at))
    told = {name: F.lead(column).over(by) for name, column in before.items()}
    placed = rows.withColumns({**told, "place": F.row_number().over(by)})
    return placed.where(F.col("place") <= MOST)


def _own(pipeline: Pipeline, dataset: str) -> Mapping[str, Any]:
    """What this run's steps took, and what it saw, before that is written."""
    steps = [step.seconds for step in pipeline.steps.done if step.dataset == dataset]
    seen = [row for row in pipeline.outcome.profiles if row.dataset == dataset]
    sums = {name: sum(getattr(row, name) for row in seen) if seen else None for name in PROFILED}
    return {"seconds": sum(steps) if steps else None, **sums}
