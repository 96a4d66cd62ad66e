"""The rows by which others are judged: a window of silver, and a sample of it that is the same each time.

One pass over few columns counts what the window holds; then the features are read once, and of the rows those stay
whose key's hash is small. Neither partitions nor order change which these are, and however long the table is, the
driver gets the same number of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from drivetrain import ops, silver
from drivetrain.anomaly.judge import features, taken
from drivetrain.contracts import Dataset
from drivetrain.session import FAILURES, carefully

MOST: Final = 200_000
VALUES: Final = 20_000_000  # that a driver takes at most, whatever the number of features: 160 MB
FAILED: Final = (*FAILURES, pa.ArrowException, ValueError)  # what bringing many rows to the driver may raise
SPARE: Final = 1.1  # hashes are not quite even
BUCKETS: Final = 1 << 30
HOUR: Final = 3_600_000_000  # microseconds


def sample(rows: DataFrame, dataset: Dataset, most: int = MOST) -> pa.Table:
    """The features of up to ``most`` of silver's rows that lie in the contract's window and that its where takes, by
    the hash of their key."""

    def found(careful: bool) -> pa.Table:
        wanted = rows.where(taken(dataset, careful))
        within, count = _window(wanted, dataset)
        return some(wanted.where(within), dataset, [*features(dataset, careful).values()], count, most)

    return carefully(found)


def some(rows: DataFrame, dataset: Dataset, columns: Sequence[Column], count: int, most: int) -> pa.Table:
    """``columns`` of up to ``most`` of some ``count`` rows, of fewer where there are more than VALUES; always the same
    ones: those whose key's hash is least."""
    anomaly, key = dataset.anomaly, dataset.identity or silver.POSITION
    assert anomaly
    most = min(most, VALUES // len(columns))
    places = F.xxhash64(F.lit(anomaly.seed), *[F.col(name).cast("string") for name in key])
    near = F.pmod(places, F.lit(BUCKETS)) < int(min(1.0, most * SPARE / max(count, 1)) * BUCKETS)
    tied = [F.col(name).alias(f"_tied_{name}") for name in key]
    placed = rows.where(near).select(*columns, places.alias("_hash"), *tied)
    found = placed.orderBy("_hash", *[f"_tied_{name}" for name in key]).limit(most).toArrow()
    return found.select(range(len(columns)))


def _window(rows: DataFrame, dataset: Dataset) -> tuple[Column, int]:
    """Whether a row lies in the reference window, the last days of events or the last loads, by default all; and how
    many do, to the hour. What lies in the future is no newest event."""
    anomaly = dataset.anomaly
    assert anomaly
    if anomaly.loads is not None:
        newest = rows.groupBy("_load").count().orderBy(F.desc("_load")).limit(anomaly.loads).collect()
        first = newest[0]["_load"] - anomaly.loads if newest else 0
        return F.col("_load") > first, sum(one["count"] for one in newest if one["_load"] > first)
    if anomaly.days is None:
        return F.lit(True), rows.count()
    event = F.unix_micros(F.col(str(dataset.event_time)).cast("timestamp"))
    past = event <= int(ops.now().timestamp() * 1e6)
    counts = F.count(F.lit(1)).alias("rows"), F.max(event).alias("newest")
    hours = rows.where(past).groupBy(F.floor(event / HOUR).alias("hour")).agg(*counts)
    found = hours.orderBy(F.desc("hour")).limit(math.ceil(anomaly.days * 24) + 1).collect()
    first = int(found[0]["newest"] - anomaly.days * 24 * HOUR) if found else 0
    return past & (event > first), sum(one["rows"] for one in found if one["newest"] > first)
