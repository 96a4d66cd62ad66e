"""Several processes that write to one Delta table on HDFS: the table is as one after the other would have left it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
HOME = Path(os.environ.get("DRIVETRAIN_HOME") or Path(__file__).resolve().parents[1] / ".drivetrain")
KEYS, ROUNDS = 6, 6

WRITER = """
import sys, time
from pathlib import Path
from pyspark.sql import SparkSession
from drivetrain.sink import CONFLICT, Table, Txn
kind, path, rounds, keys, start = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])
spark = (SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
    .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
    .config("spark.sql.shuffle.partitions", "1").config("spark.databricks.delta.snapshotPartitions", "1").getOrCreate())
spark.sparkContext.setLogLevel("ERROR")
table = Table(spark, path)
table.version()
print("ready", flush=True)
while not start.exists():
    time.sleep(0.05)
for i in range(rounds):
    if kind == "merge":
        rows = [(key, f"merge {i}") for key in range(i % 2, keys, 2)]
        table.merge(spark.createDataFrame(rows, "id int, by string"), ["id"], Txn("merge", i), {"what": f"merge {i}"})
    elif kind == "delete":
        table.delete(f"id = {i % keys}", Txn("delete", i), {"what": f"delete {i % keys}"})
    else:
        try:
            spark.sql(f"OPTIMIZE delta.`{path}`")
        except CONFLICT:  # somebody else's OPTIMIZE may lose; what it was to do waits
            pass
"""


def replayed(commits: list[str]) -> dict[int, str]:
    """What those commits make, one after the other."""
    rows: dict[int, str] = {}
    for what in commits:
        kind, number = what.split()
        if kind == "delete":
            rows.pop(int(number), None)
        else:
            rows |= dict.fromkeys(range(int(number) % 2, KEYS, 2), what)
    return rows


def test_writers_end_as_in_some_order(spark: Any, cluster: Any, tmp_path: Path) -> None:
    path, start = f"{cluster.root}/tmp/shared", tmp_path / "start"
    frame = spark.createDataFrame([(key, "merge 0") for key in range(0, KEYS, 2)], "id int, by string")
    made = (
        frame.write.format("delta")
        .option("delta.enableDeletionVectors", "true")
        .option("delta.dataSkippingNumIndexedCols", "0")
    )
    made.option("userMetadata", json.dumps({"what": "merge 0"})).save(path)
    environ = {**os.environ, **cluster.environ, "PYTHONPATH": "lib"}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, kind, path, str(ROUNDS), str(KEYS), str(start)], env=environ,
            stdout=subprocess.PIPE, stderr=(tmp_path / kind).open("w"), text=True,
        )
        for kind in ("merge", "delete", "optimize")
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == "ready\n"
    start.touch()
    for writer, kind in zip(writers, ("merge", "delete", "optimize"), strict=True):
        assert writer.wait(600) == 0, (tmp_path / kind).read_text()[-3000:]
    history = spark.sql(f"DESCRIBE HISTORY delta.`{path}`").orderBy("version").collect()
    ours = [json.loads(row["userMetadata"])["what"] for row in history if row["userMetadata"]]
    assert sum(what.startswith("merge") for what in ours) == 1 + ROUNDS, "each merge was committed once"
    found = {row["id"]: row["by"] for row in spark.read.format("delta").load(path).collect()}
    assert found == replayed(ours)
