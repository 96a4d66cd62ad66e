"""Names for the tables: which table stands where, and the catalog entries by which SQL finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pyspark.sql import SparkSession

from drivetrain.contracts import Conf
from drivetrain.sink import Table

OPS: Final = ("ledger", "checks", "steps", "profiles")


def places(conf: Conf) -> dict[tuple[str, str], str]:
    """(database, table) -> path, of every table that this conf can have."""
    root = conf.settings.warehouse
    found = {(layer, name): f"{root}/{layer}/{name}" for layer in ("bronze", "silver") for name in conf.datasets}
    found |= {("gold", name): f"{root}/gold/{name}" for name in conf.gold}
    found |= {("ops", name): f"{root}/ops/{name}" for name in OPS}
    found["ops", "quarantine"] = f"{root}/quarantine"
    found["default", conf.settings.unified_table] = f"{root}/{conf.settings.unified_table}"
    return found


def register(spark: SparkSession, conf: Conf) -> None:
    """Make the tables that have appeared since the last time known to the session's catalog.

    A mark for each is kept in the warehouse, since asking an embedded metastore costs seconds.
    """
    marks = Path(conf.settings.warehouse, "_catalog")
    new = [
        (database, name, path)
        for (database, name), path in places(conf).items()
        if not (marks / f"{database}.{name}").exists() and Table(spark, path).exists()
    ]
    for database, name, path in new:
        add(spark, database, name, path)
        marks.mkdir(exist_ok=True)
        (marks / f"{database}.{name}").touch()


def add(spark: SparkSession, database: str, name: str, path: str) -> None:
    """One catalog entry for the Delta table at ``path``; names come from conf, which has checked them."""
    if not spark.catalog.databaseExists(database):
        spark.sql(f"CREATE DATABASE `{database}`")
    spark.sql(f"CREATE TABLE IF NOT EXISTS `{database}`.`{name}` USING DELTA LOCATION '{_quoted(path)}'")


def _quoted(path: str) -> str:
    return path.replace("\\", "\\\\").replace("'", "\\'")
