"""The figures of each step, and the ledger."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import functions as F
from test_pipeline import shared_shop

from drivetrain import job, ops
from drivetrain.sink import Table, Txn

ROW = ops.LedgerRow("r", "orders", 1, 1, 1, 10, 6, 3, 1, 0, 4, 1, 1, 0, 0, -1, 0, ops.now())
PARTS = ("rows_in", "good", "quarantined", "duplicate", "late", "inserted", "updated", "superseded")


@given(st.sampled_from(PARTS), st.integers(-3, 3))
def test_a_ledger_adds_up_or_not(part: str, by: int) -> None:
    """Any one number that is off is noticed."""
    assert replace(ROW, **{part: getattr(ROW, part) + by}).adds_up is (by == 0)


def test_a_ledger_row_goes_through_a_commits_metadata() -> None:
    import json

    assert ops.ledger_row(json.loads(json.dumps(asdict(ROW), default=str))) == ROW


@pytest.mark.spark
def test_a_steps_figures(spark: Any, tmp_path: Path) -> None:
    """Counted by Spark itself: rows read, shuffles, bytes written; of jobs in the step and of no others."""
    steps, path = ops.Steps(spark, job.run_id(), "batch"), str(tmp_path / "in")
    spark.range(1000).selectExpr("id", "id % 7 AS k").repartition(4).write.parquet(path)
    with steps.step("scan", "none") as step:
        assert spark.read.parquet(path).where("id >= 0").agg(F.sum("id")).collect()[0][0] == 499_500
        step.rows = 1
    with steps.step("group", "keys"):
        spark.conf.set("spark.sql.adaptive.enabled", "true")
        spark.read.parquet(path).groupBy("k").count().write.format("noop").mode("overwrite").save()
    with steps.step("write", "out"):
        spark.read.parquet(path).write.parquet(str(tmp_path / "out"))
    spark.range(10).count()
    scan, group, write = steps.done
    assert (scan.step, scan.dataset, scan.rows, scan.failed) == ("scan", "none", 1, False)
    assert scan.input_rows == group.input_rows == write.input_rows == 1000
    assert (
        group.shuffles == 1 and group.shuffle_write_bytes > 0 and group.shuffle_read_bytes == group.shuffle_write_bytes
    )
    assert write.shuffles == 0 and write.output_bytes > 1000 and scan.output_bytes == 0
    assert all(
        s.spark_jobs >= 1 and s.stages >= 1 and s.tasks >= s.stages and s.cpu_seconds > 0 and s.seconds > 0
        for s in steps.done
    )
    assert "spark.sql.shuffle.partitions=2" in scan.settings


@pytest.mark.spark
def test_a_step_that_fails(spark: Any) -> None:
    steps = ops.Steps(spark, job.run_id(), "batch")
    with pytest.raises(RuntimeError), steps.step("silver", "orders"):
        raise RuntimeError
    assert [(step.step, step.failed) for step in steps.done] == [("silver", True)]
    with steps.step("next", "one"):
        pass
    assert steps.done[1].spark_jobs == 0


@pytest.mark.spark
def test_rows_are_written_once_by_one_name(spark: Any, tmp_path: Path) -> None:
    table = Table(spark, str(tmp_path / "ledger"))
    ops.write(table, [], {}, "r")
    assert not table.exists()
    for _ in range(2):
        ops.write(table, [ROW, replace(ROW, dataset="stock")], {"known": {"orders": 1}}, "r", Txn("r", 1))
    rows = table.read().orderBy("dataset").collect()
    assert [row["dataset"] for row in rows] == ["orders", "stock"]
    assert rows[0]["rows_in"] == 10 and rows[0]["silver_version_read"] == -1
    assert next(table.commits())[1]["known"] == {"orders": 1}


@pytest.mark.spark
def test_a_run_has_a_row_for_each_step(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    shop = shared_shop(spark, tmp_path_factory)
    steps = shop.rows("ops/steps", "step", "dataset", "rows", "failed")
    assert steps == [
        ("bronze", "orders", 5, False),
        ("gold", "best", 1, False),
        ("gold", "sales", 1, False),
        ("silver", "orders", 5, False),
    ]
    ledger = shop.rows("ops/ledger", *PARTS)
    assert ledger == [(5, 3, 1, 1, 0, 2, 0, 1)]
    assert [row[0] for row in shop.rows("ops/checks", "rule", "layer") if row[1] == "gold"].count("key_unique") == 2
