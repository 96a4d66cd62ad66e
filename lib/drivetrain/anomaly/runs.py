"""Runs that are not like the others: what a run did with a dataset, by a forest over what the runs before it did.

The run stands among its past when the forest is grown, so that in a quiet history it is as likely as any other to
score high. It is told of where few past runs score as high, and either the score lies far beyond theirs, or one of its
metrics far beyond all that they were: one odd metric among many moves a score but little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
    """A note and an alert for each dataset with which this run did what none before it did. Nothing that is found, or
    goes wrong here, stops a job."""
    outcome, ledger = pipeline.outcome, pipeline.table("ops", "ledger")
    mine = ops.together([row for row in outcome.ledger if row.run == outcome.run])
    if not mine or not ledger.exists() or ledger.version() < LEAST - 1:  # a run is a commit: spare young ones the query
        return
    try:
        past = _past(pipeline, ledger.read().where(F.col("dataset").isin(*[row.dataset for row in mine])))
        for row in mine:
            before = [one for one in past if one["dataset"] == row.dataset]
            now = {**asdict(row), **_own(pipeline, row.dataset), "before": before[0]["at"] if before else None}
            if odd := judge(list(map(metrics, before)), metrics(now)):
                what = f"this run is not like the {odd.past} before it: {odd.why}"
                outcome.notes.append(f"{row.dataset}: {what}")
                ops.alert(pipeline.table("ops", "alerts"), outcome.run, "run", row.dataset, what)
    except FAILED as error:
        outcome.notes.append(f"this run was not compared with those before it: {reason(error)}")


def metrics(row: Mapping[str, Any]) -> Metrics:
    """Of a row of the ledger with ``seconds`` of its steps, ``nulls`` of ``sampled`` values, and ``before``: when the
    run before it was."""
    rows, at, before = row["rows_in"], row["at"], row["before"]
    shares = {f"{name} share": _share(row[name], rows) for name in ("quarantined", "duplicate", "late", "updated")}
    hours = (at.timestamp() - before.timestamp()) / 3600 if before else math.nan
    return {
        "rows": float(rows), "files": float(row["files"]), **shares,
        "missing share": _share(row["nulls"], row["sampled"]),
        "seconds": math.nan if row["seconds"] is None else row["seconds"], "hours since the last run": hours,
    }  # fmt: skip


def _share(part: int | None, whole: int | None) -> float:
    return part / whole if whole and part is not None else math.nan


def _past(pipeline: Pipeline, ledger: DataFrame) -> Sequence[Any]:
    """Each dataset's last rows of the ledger, the newest first, with what `metrics` asks for."""
    by = Window.partitionBy("dataset").orderBy(F.desc("at"))
    runs = ledger.withColumns({"before": F.lead("at").over(by), "place": F.row_number().over(by)})
    runs = runs.where(F.col("place") <= MOST)
    sums = {"steps": [F.sum("seconds").alias("seconds")], "profiles": [F.sum(one).alias(one) for one in PROFILED]}
    for name, wanted in sums.items():
        table = pipeline.table("ops", name)
        if table.exists():
            runs = runs.join(table.read().groupBy("run", "dataset").agg(*wanted), ["run", "dataset"], "left")
    missing = [name for name in ("seconds", *PROFILED) if name not in runs.columns]
    return runs.withColumns({name: F.lit(None) for name in missing}).orderBy("place").collect()


def _own(pipeline: Pipeline, dataset: str) -> Mapping[str, Any]:
    """What this run's steps took, and what it saw, before that is written."""
    steps = [step.seconds for step in pipeline.steps.done if step.dataset == dataset]
    seen = [row for row in pipeline.outcome.profiles if row.dataset == dataset]
    sums = {name: sum(getattr(row, name) for row in seen) if seen else None for name in PROFILED}
    return {"seconds": sum(steps) if steps else None, **sums}
