"""The only SparkSession. Everything about it comes from conf, by way of spark-submit."""

from __future__ import annotations

from pyspark.sql import SparkSession

from drivetrain.contracts import Conf

# What the tables' exactness rests on, whatever a site sets: errors and time stamps mean the same everywhere.
FIXED = {
    "spark.sql.ansi.enabled": "true",
    "spark.sql.legacy.javaCharsets": "true",
    "spark.sql.legacy.codingErrorAction": "true",
    "spark.sql.mapKeyDedupPolicy": "LAST_WIN",
    "spark.sql.caseSensitive": "false",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.parquet.mergeSchema": "true",
}


def open_session(conf: Conf, job: str) -> SparkSession:
    """The session of this process, with the settings that conf and Drivetrain fix."""
    builder = SparkSession.builder.appName(f"drivetrain {job}")
    builder = builder.config("spark.sql.session.timeZone", conf.settings.timezone)
    for key, value in FIXED.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()
