"""Quarantine: what could not be taken, with its reason and its raw form, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from drivetrain.contracts import Dataset, digest
from drivetrain.landing import Rejected

SCHEMA: Final = (
    "quarantine_id string, dataset string, rule string, reason string, raw string, raw_bytes binary, _file string,"
    " _block bigint, _line bigint, _load bigint, _run string, state string, repaired string"
)
PROPERTIES: Final = {"delta.dataSkippingStatsColumns": "quarantine_id,dataset,rule,_file,_load,state"}
COLUMNS: Final = tuple(part.split()[0] for part in SCHEMA.split(","))


def of_rows(staged: DataFrame, dataset: Dataset, run: str) -> DataFrame:
    """Quarantined rows of silver -> rows of the quarantine table."""
    bad = staged.where(F.col("_outcome") == "quarantined")
    return bad.select(
        row_id(dataset).alias("quarantine_id"), F.lit(dataset.name).alias("dataset"),
        F.col("_rule").alias("rule"), F.col("_reason").alias("reason"), "raw", "raw_bytes", "_file", "_block", "_line",
        "_load", F.lit(run).alias("_run"), F.lit("open").alias("state"), F.lit(None).cast("string").alias("repaired"),
    )  # fmt: skip


def row_id(dataset: Dataset) -> Column:
    """Names a record of the log by where it stands."""
    place = F.concat_ws("|", F.lit(dataset.name), F.col("_load"), "_file", "_block", "_line")
    return F.sha2(place, 256).substr(1, 32)


def file_id(dataset: Dataset, file: Rejected) -> str:
    """The same for the same content of the same file, so that it is put down once."""
    return digest([dataset.name, file.name, file.size, file.modified, file.rule])


def of_files(spark: SparkSession, dataset: Dataset, files: Sequence[Rejected], run: str) -> DataFrame:
    """Files that cannot be taken -> rows of the quarantine table; the raw form is the file itself."""
    rows = [
        (file_id(dataset, f), dataset.name, f.rule, f.reason, None, None, f.name, None, None, None, run, "open", None)
        for f in files
    ]
    return spark.createDataFrame(rows, SCHEMA).coalesce(1)
