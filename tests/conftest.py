"""One Spark session for all tests, and a small pipeline to run in a folder of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STATE = Path(os.environ.get("DRIVETRAIN_HOME", ROOT / ".drivetrain"))


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """local[2], 2 shuffle partitions, no UI, Delta from the prepared jars."""
    from pyspark.sql import SparkSession

    from drivetrain.session import FIXED

    jars = sorted((STATE / "jars").glob("*.jar"))
    assert jars, "no Delta jars: run the tests by scripts/test, which prepares them"
    home = tmp_path_factory.mktemp("spark")
    builder = SparkSession.builder.master("local[2]").appName("tests").config("spark.ui.enabled", "false")
    settings = {
        "spark.jars": ",".join(map(str, jars)),
        "spark.driver.memory": "2g",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.warehouse.dir": str(home / "hive"),
        "spark.ui.showConsoleProgress": "false",
    }
    for key, value in {**settings, **FIXED}.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture
def run_pipeline(spark: object) -> Callable[..., object]:
    """run_pipeline(conf_dir, *datasets) -> Outcome of one batch run over that conf folder."""
    from drivetrain import conf as reader
    from drivetrain import job
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress

    def run(conf_dir: Path, *datasets: str) -> object:
        conf, run_id = reader.load(conf_dir, "local", environ={}), job.run_id()
        return Pipeline(spark, conf, run_id, "batch", Progress(run_id)).transform(datasets)  # type: ignore[arg-type]

    return run
