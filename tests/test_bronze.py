"""The log's rows."""

from __future__ import annotations

from typing import Any

import pytest

from drivetrain import bronze
from drivetrain.landing import Landed
from drivetrain.ops import now

pytestmark = pytest.mark.spark


def landed(name: str, header: tuple[str, ...] = ("id",)) -> Landed:
    return Landed(name, f"/in/{name}", 5, 6, "ab", "UTF-8", header, f"L{len(header)}")


def test_bronze_rows(spark: Any) -> None:
    load = bronze.Load(3, "run", now())
    records = spark.createDataFrame(
        [("raw", None, "f", 0, 2, "L1")],
        "raw string, raw_bytes binary, _file string, _block bigint, _line bigint, _layout string",
    )
    files = [landed("f"), landed("ä g.csv", ("a", "b"))]
    log = bronze.log_records(records, load).unionByName(bronze.log_files(spark, files, load))
    assert log.columns == [part.split()[0] for part in bronze.SCHEMA.split(",")]
    assert {row["_load"] for row in log.collect()} == {3} and {row["_run"] for row in log.collect()} == {"run"}
    assert [bronze.landed(row["raw"]) for row in bronze.file_entries(log).orderBy("_layout").collect()] == files
    assert [row["raw"] for row in bronze.records(log, 2).collect()] == ["raw"]
    assert bronze.records(log, 3).count() == 0
