"""Queries over the tables by name: what they read is looked up in conf, and nothing is written."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import sqlglot
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from sqlglot import exp

from drivetrain import catalog, sqltext
from drivetrain.catalog import UNIFIED
from drivetrain.contracts import Conf
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.findings import nearest
from drivetrain.sink import Table
from drivetrain.unified import STATE_VIEW, Manifest, Unified

SEARCHED = (UNIFIED, "gold", "silver", "default", "ops", "bronze")


logging.getLogger("sqlglot").setLevel(logging.ERROR)  # it warns of SHOW, which is Spark's to parse


class Queries:
    """A session in which tables are known as they are named; a name without a database is gold's, then silver's."""

    def __init__(self, spark: SparkSession, conf: Conf) -> None:
        self.spark, self.places, self.unified = spark, catalog.places(conf), Unified(spark, conf)
        self.known: set[tuple[str, str]] = set()
        self.manifest: Manifest = {}

    def run(self, statement: str, limit: int | None) -> tuple[list[str], Iterator[tuple[object, ...]]]:
        """Column names and rows, at most ``limit``.

        Raises:
            DrivetrainError: the statement writes, names an unknown table, or fails.
        """
        self.manifest = self.unified.manifest()
        if sqltext.words(statement) == ["SHOW", "TABLES"]:
            return ["database", "table"], iter(sorted(self.listed()))
        self.prepare(statement)
        try:
            frame = self.spark.sql(statement)
            return frame.columns, _rows(frame if limit is None else frame.limit(limit))
        except PySparkException as error:
            raise _failed(str(error)) from None

    def prepare(self, statement: str) -> None:
        """Make the tables that the statement names known."""
        try:
            parsed = sqlglot.parse_one(statement, read=sqltext.DIALECT)
        except sqlglot.errors.SqlglotError as error:
            raise _problem(str(error).splitlines()[0], "write one SELECT, SHOW or DESCRIBE in Spark SQL") from None
        first = next(iter(sqltext.words(statement)), "nothing")
        if not (isinstance(parsed, exp.Query | exp.Describe) or first == "SHOW"):
            raise _problem(f"{first} is not run here", "sql only reads: SELECT, SHOW or DESCRIBE")
        if first == "SHOW":
            wanted = self.listed()
        else:
            own = {cte.alias_or_name.lower() for cte in parsed.find_all(exp.CTE)}
            named = [(table.db.lower(), table.name.lower()) for table in parsed.find_all(exp.Table)]
            named = [(database, name) for database, name in named if database or name not in own]
            wanted = [self.place(database, name) for database, name in named]
        for database, name in wanted:
            self.make_known(database, name)
        self.show_unified([name for database, name in wanted if database == UNIFIED])
        for asked, found in zip(named, wanted, strict=True) if first != "SHOW" else ():
            if not asked[0]:
                self.frame(*found).createOrReplaceTempView(asked[1])

    def listed(self) -> list[tuple[str, str]]:
        """Database and name of every table that is there."""
        there = [key for key in self.places if self.there(key)]
        return there + [(UNIFIED, name) for name in (*self.manifest, STATE_VIEW) if self.there((UNIFIED, name))]

    def frame(self, database: str, name: str) -> DataFrame:
        if database == UNIFIED:
            return self.spark.table(f"`{UNIFIED}`.`{name}`")
        return Table(self.spark, self.places[database, name]).read()

    def show_unified(self, names: Sequence[str]) -> None:
        """Views of one manifest. Where a statement reads datasets only, they go up to their logs' ends; gold has come
        as far as the manifest, and what is read together must have come equally far."""
        live = all(name == STATE_VIEW or self.manifest[name].layer == "silver" for name in names)
        for name in dict.fromkeys(names):
            text = self.unified.state_text if name == STATE_VIEW else self.unified.pinned(self.manifest[name], live)
            self.spark.sql(f"CREATE DATABASE IF NOT EXISTS `{UNIFIED}`")
            self.spark.sql(f"CREATE OR REPLACE VIEW `{UNIFIED}`.`{name}` AS {text}")

    def place(self, database: str, name: str) -> tuple[str, str]:
        candidates = [(database, name)] if database else [(layer, name) for layer in SEARCHED]
        found = next((key for key in candidates if self.there(key)), None)
        if found is None:
            shown = f"{database}.{name}" if database else name
            known = [f"{d}.{n}" for d, n in self.listed()]
            elsewhere = next((f"{layer}.{name}" for layer in SEARCHED if f"{layer}.{name}" in known), None)
            fix = nearest(elsewhere or shown, known) if known else "run etl first: there are no tables yet"
            raise _problem(f"there is no table {shown}", fix)
        return found

    def there(self, key: tuple[str, str]) -> bool:
        if key[0] == UNIFIED:
            entry = self.manifest.get(key[1])
            return bool(entry and entry.is_there) or (key[1] == STATE_VIEW and bool(self.manifest))
        return key in self.places and Table(self.spark, self.places[key]).exists()

    def make_known(self, database: str, name: str) -> None:
        if database != UNIFIED and (database, name) not in self.known and self.there((database, name)):
            catalog.add(self.spark, database, name, self.places[database, name])
            self.known.add((database, name))


def _rows(frame: DataFrame) -> Iterator[tuple[object, ...]]:
    try:
        yield from (tuple(row) for row in frame.toLocalIterator())
    except PySparkException as error:
        raise _failed(str(error)) from None
    except Py4JJavaError as error:  # what fails in the middle of the rows comes as Java's own
        cause = error.java_exception
        while cause.getCause() is not None:
            cause = cause.getCause()
        raise _failed(str(cause.getMessage())) from None


def _failed(text: str) -> DrivetrainError:
    return _problem(text.strip().split("\n\n")[0].split(" SQLSTATE")[0], "see the message")


def _problem(what: str, fix: str) -> DrivetrainError:
    return DrivetrainError(Problem("sql", "statement", what, fix))
