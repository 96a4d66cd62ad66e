"""How far rows reach: the range holds every like row of another table, and files are skipped by it."""

from __future__ import annotations

import random
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import functions as F

from drivetrain.extent import Extent, extent

pytestmark = pytest.mark.spark

SCHEMA = "text string, whole bigint, small smallint, money decimal(9,2), day date, moment timestamp, share double"


def row(rng: random.Random) -> tuple[Any, ...]:
    n = rng.randrange(50)
    some = [
        rng.choice(("", "a", "B", "é", "\U0001f697", "a'\\\"b")) * rng.randrange(3), n - 25, n - 25,
        Decimal(n) / 4, date(2026, 1, 1 + n % 28), datetime(2026, 3, 29, n % 24), float(n),
    ]  # fmt: skip
    return tuple(None if rng.random() < 0.1 else value for value in some)


@pytest.mark.parametrize("seed", range(3))
def test_no_like_row_is_left_out(spark: Any, seed: int) -> None:
    rng = random.Random(seed)
    few = spark.createDataFrame([row(rng) for _ in range(rng.choice((0, 1, 5)))], SCHEMA)
    many = spark.createDataFrame([row(rng) for _ in range(200)], SCHEMA)
    reach = extent(few, few.columns)
    near = many.where(reach.covers({name: F.col(name) for name in many.columns}))
    for name in many.columns:
        wanted = few.select(F.col(name).alias("wanted")).distinct()
        alike = many.join(wanted, F.col(name).eqNullSafe(F.col("wanted")), "left_semi")
        kept = many.where(reach.covers({name: F.col(name)}))
        assert alike.exceptAll(kept).isEmpty(), name
    assert near.exceptAll(many).isEmpty()
    assert reach.rows == few.count() and reach.few


def test_what_it_holds(spark: Any) -> None:
    rows = spark.createDataFrame([("b", 2, None), ("a", 9, None)], "text string, whole bigint, day date")
    reach = extent(rows, ["text", "whole", "day"])
    assert reach == Extent(2, {"text": ("string", "a", "b"), "whole": ("bigint", "2", "9")}), "NULLs have no bounds"
    assert not Extent(10**6, {}).few
    others = [("a", 1), ("a", 2), ("b", 9), ("c", 5), (None, 5), ("b", None), ("A", 5)]
    table = spark.createDataFrame(others, "text string, n int")
    kept = table.where(reach.covers({"text": F.col("text"), "whole": F.col("n"), "other": F.col("n")})).collect()
    assert sorted(map(tuple, kept), key=str) == sorted([("a", 2), ("b", 9), (None, 5), ("b", None)], key=str)


def test_dates_that_python_does_not_have(spark: Any) -> None:
    days = [f"date'{day}'" for day in ("0001-01-01", "0000-01-01", "9999-12-31", "+12345-01-01", "-0044-03-15")]
    table = spark.range(1).select(F.explode(F.array(*map(F.expr, days))).alias("day"))
    kept = table.where(extent(table, ["day"]).covers({"day": F.col("day")}))
    assert kept.count() == 5
    first = table.where("day = date'0000-01-01'")
    assert table.where(extent(first, ["day"]).covers({"day": F.col("day")})).count() == 1


def test_pages_are_skipped(spark: Any, tmp_path: Path) -> None:
    """A file whose rows stand in order is read in part only: what the range is for."""
    path = str(tmp_path / "sorted")
    spark.range(400_000).select(
        F.format_string("K%08d", "id").alias("key"), F.sha2(F.col("id").cast("string"), 256)
    ).coalesce(1).write.parquet(path)
    few = spark.createDataFrame([("K00390000",), ("K00395000",)], "key string")
    table = spark.read.parquet(path)
    near = table.where(extent(few, ["key"]).covers({"key": F.col("key")}))
    assert len(near.collect()) == 5001
    scan = near._jdf.queryExecution().executedPlan().collectLeaves().head()
    assert 5001 <= scan.metrics().apply("numOutputRows").value() < 60_000, "pages hold 20,000 rows"
