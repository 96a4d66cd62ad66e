"""Bronze: the immutable log. Each record as it came, and one entry for each file or pull, in the same commit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from drivetrain.landing import Intake, Landed, Pull

SCHEMA: Final = (
    "_entry string, raw string, raw_bytes binary, _file string, _block bigint, _line bigint, _layout string,"
    " _load bigint, _run string, _arrived timestamp, _requeued string, _released boolean, _key string, _sent timestamp,"
    " _score double, _anomaly string"
)
TYPES: Final = dict(part.split() for part in SCHEMA.split(","))
PROPERTIES: Final = {
    "delta.appendOnly": "true",
    # Nobody reads the log as it was: a load stays what it is. What was joined into larger files is remembered for as
    # long as a query may run, since Delta reads and writes those memories with every checkpoint; and only `vacuum`
    # removes commits, as it leaves the one that tells where we are.
    "delta.deletedFileRetentionDuration": "interval 6 hours",
    "delta.enableExpiredLogCleanup": "false",
    # Statistics on the raw text would cost time and copy personal data into the log.
    "delta.dataSkippingStatsColumns": "_entry,_file,_layout,_load,_requeued",
}


@dataclass(frozen=True)
class Load:
    """One commit to bronze: its number (1 for the first), the run that made it and when."""

    number: int
    run: str
    arrived: datetime


def log_records(records: DataFrame, load: Load, *more: str) -> DataFrame:
    """Records of source.read -> rows of the log, with ``more`` of their columns."""
    rows = records.select(F.lit("record").alias("_entry"), *records.columns, *_load_columns(load))
    return rows.select(*_columns(rows), *more)


def log_files(spark: SparkSession, files: Sequence[Intake], load: Load) -> DataFrame:
    """One entry for each file or pull: what it was when it was read, as JSON in ``raw``."""
    rows = [("file", json.dumps(asdict(file)), file.name, file.layout) for file in files]
    entries = spark.createDataFrame(rows, "_entry string, raw string, _file string, _layout string")
    entries = entries.coalesce(1).select("*", *_load_columns(load))
    return entries.select(_columns(entries))


def file_entries(log: DataFrame) -> DataFrame:
    """_file, _layout, _load, _run, raw of every file or pull that the log has taken."""
    return log.where(F.col("_entry") == "file").select("_file", "_layout", "_load", "_run", "raw")


def records(log: DataFrame, after: int) -> DataFrame:
    """Records of the loads after that number."""
    return log.where((F.col("_entry") == "record") & (F.col("_load") > after))


def landed(raw: str) -> Intake:
    """The file or pull that an entry tells of."""
    said: Mapping[str, Any] = json.loads(raw)
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    return Pull(**fields) if "upper" in fields else Landed(**fields)


def _load_columns(load: Load) -> list[Column]:
    return [
        F.lit(load.number).cast("bigint").alias("_load"),
        F.lit(load.run).alias("_run"),
        F.lit(load.arrived).cast("timestamp").alias("_arrived"),
    ]


def _columns(given: DataFrame) -> list[Column]:
    there = set(given.columns)
    return [F.col(name) if name in there else F.lit(None).cast(kind).alias(name) for name, kind in TYPES.items()]
