"""Names for the tables: which table stands where, and the catalog entries by which SQL finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pyspark.sql import SparkSession

from drivetrain.contracts import Conf
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import plain
from drivetrain.session import embedded
from drivetrain.sink import Table
from drivetrain.unified import Unified

UNIFIED: Final = "unified"
OPS: Final = (
    "ledger", "checks", "steps", "profiles", "speed", "alerts", "replays", "verdicts", "anomalies", "drift", "trials",
    "labels",
)  # fmt: skip


def places(conf: Conf) -> dict[tuple[str, str], str]:
    """(database, table) -> path, of every table that this conf can have."""
    root = conf.settings.warehouse
    found = {(layer, name): f"{root}/{layer}/{name}" for layer in ("bronze", "silver") for name in conf.datasets}
    found |= {("gold", name): f"{root}/gold/{name}" for name in conf.gold}
    found |= {("ops", name): f"{root}/ops/{name}" for name in OPS}
    found |= {("ops", name): f"{root}/{name}" for name in ("quarantine", "late", "manifest", "models")}
    found["default", conf.settings.unified_table] = f"{root}/{conf.settings.unified_table}"
    return found


def register(spark: SparkSession, conf: Conf) -> None:
    """Make the tables that have appeared since the last time known to the session's catalog, under databases whose
    names begin with conf's prefix.

    Raises:
        DrivetrainError: a name is taken by a table that stands elsewhere.
    """
    marks = Path(plain(conf.settings.warehouse), "_catalog") if embedded(conf) else None
    if not marks and not spark._jsc.hadoopConfiguration().get("hive.metastore.uris"):
        what = "no metastore is configured, so the tables have no names for others"
        fix = "put hive-site.xml into HADOOP_CONF_DIR, or set spark.hadoop.hive.metastore.uris under spark:"
        raise DrivetrainError(Problem("catalog", "hive.metastore.uris", what, fix))
    problems: list[Problem] = []
    for (layer, name), path in places(conf).items():
        database = layer if layer == "default" else f"{conf.settings.database_prefix}{layer}"
        mark = marks / f"{database}.{name}" if marks else None
        # An embedded metastore is ours alone, and asking it costs seconds: a mark tells what it knows.
        if (mark and mark.exists()) or not Table(spark, path).exists():
            continue
        if not mark and _is_known(spark, database, name, path, problems):
            continue
        add(spark, database, name, path)
        if mark:
            mark.parent.mkdir(exist_ok=True)
            mark.touch()
    if problems:
        raise DrivetrainError(*problems)


def show(spark: SparkSession, conf: Conf) -> None:
    """The unified tables as views in the database `unified`: their text is what a manifest says, changed in one step,
    so that a reader of one has the old or the new and never some of both."""
    views = Unified(spark, conf).views()
    database = f"{conf.settings.database_prefix}{UNIFIED}"
    marks = Path(plain(conf.settings.warehouse), "_catalog") if embedded(conf) else None
    due = {name: text for name, text in views.items() if not marks or _marked(marks / f"{database}.{name}") != text}
    if due and not spark.catalog.databaseExists(database):
        spark.sql(f"CREATE DATABASE IF NOT EXISTS `{database}`")
    for name, text in due.items():
        known = spark._jsparkSession.sharedState().externalCatalog()
        if not known.tableExists(database, name):
            spark.sql(f"CREATE VIEW IF NOT EXISTS `{database}`.`{name}` AS {text}")
        elif not (shown := known.getTable(database, name).viewText()).isDefined() or shown.get() != text:
            spark.sql(f"ALTER VIEW `{database}`.`{name}` AS {text}")
        if marks:
            (marks / f"{database}.{name}").write_text(text)


def _marked(mark: Path) -> str | None:
    return mark.read_text() if mark.exists() else None


def _is_known(spark: SparkSession, database: str, name: str, path: str, problems: list[Problem]) -> bool:
    known = spark._jsparkSession.sharedState().externalCatalog()  # asked directly, no Spark job is needed
    if not known.databaseExists(database) or not known.tableExists(database, name):
        return False
    location = str(known.getTable(database, name).location().toString())
    if plain(location) != plain(path):
        what = f"the metastore has another table of this name, at {location}"
        fix = "set database_prefix, or unified_table, to a name that is free; or drop that table"
        problems.append(Problem("catalog", f"{database}.{name}", what, fix))
    return True


def add(spark: SparkSession, database: str, name: str, path: str) -> None:
    """One catalog entry for the Delta table at ``path``; names come from conf, which has checked them."""
    if not spark.catalog.databaseExists(database):
        spark.sql(f"CREATE DATABASE IF NOT EXISTS `{database}`")
    spark.sql(f"CREATE TABLE IF NOT EXISTS `{database}`.`{name}` USING DELTA LOCATION '{_quoted(path)}'")


def _quoted(path: str) -> str:
    return path.replace("\\", "\\\\").replace("'", "\\'")
