"""The only SparkSession. Everything about it comes from conf, by way of spark-submit."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Final, TypeVar

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from drivetrain.contracts import Conf
from drivetrain.files import Files, HadoopFiles, files, is_remote

# What the tables' exactness rests on, whatever a site sets: errors and time stamps mean the same everywhere.
FIXED: Final = {
    "spark.sql.ansi.enabled": "true",
    "spark.sql.legacy.javaCharsets": "true",
    "spark.sql.legacy.codingErrorAction": "true",
    "spark.sql.mapKeyDedupPolicy": "LAST_WIN",
    "spark.sql.caseSensitive": "false",
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    "spark.sql.parquet.mergeSchema": "true",
}

# PySpark asks the JVM thrice more for each expression, to say in errors which line of ours it is from.
COSTS: Final = {"spark.python.sql.dataFrameDebugging.enabled": "false"}

# What an action of Spark's may raise: PySpark has names of its own for some of Java's exceptions only.
FAILURES: Final = (PySparkException, Py4JJavaError)

# Of Java's own, by which some of Spark's functions say that they cannot compute a value.
UNCOMPUTABLE: Final = (
    "java.lang.ArithmeticException", "java.time.DateTimeException", "java.lang.IllegalArgumentException",
)  # fmt: skip

TRACEBACK: Final = "Traceback (most recent call last):"


def reason(failure: Exception) -> str:
    """What one of FAILURES says, and what caused it in the first place, on one line."""
    said = [text for _, text in causes(failure)]
    first, last = (_told(said[i]) for i in (0, -1))
    return (first if last in first else f"{first} {last}")[:500]


def _told(text: str) -> str:
    """A message's first line; of a Python worker's traceback what that ends with."""
    lines = [line.split(" SQLSTATE")[0] for line in text.strip().split("\n")]
    start, traceback, _ = lines[0].partition(TRACEBACK)
    if not traceback:
        return start
    raised = [line for line in lines[1:] if line.strip() and not line.startswith((" ", "\t"))]
    return start + (raised[0] if raised else "no more is known")


def sql_state(failure: Exception) -> str | None:
    """The SQLSTATE by which a database refused a query of one of FAILURES; None where no database did."""
    cause = getattr(failure, "java_exception", None) or getattr(failure, "_origin", None)
    while cause is not None:
        if str(cause.getClass().getName()) == "org.postgresql.util.PSQLException":
            return str(cause.getSQLState() or "08000")
        cause = cause.getCause()
    return None


def is_data_error(failure: Exception) -> bool:
    """Whether an expression met a value that it cannot compute, or raised an error of its own accord."""
    return any(
        kind in UNCOMPUTABLE or any(f"SQLSTATE: {state}" in text for state in ("22", "P0001"))
        for kind, text in causes(failure)
    )


T = TypeVar("T")


def carefully(compute: Callable[[bool], T]) -> T:
    """What it computes; and where an expression met a value that it cannot compute, what it computes with care."""
    try:
        return compute(False)
    except FAILURES as error:
        if not is_data_error(error):
            raise
        return compute(True)


def causes(failure: Exception) -> list[tuple[str, str]]:
    """Class and message of the failure and of what caused it, the first cause last."""
    cause = getattr(failure, "java_exception", None) or getattr(failure, "_origin", None)
    found = [] if cause else [(type(failure).__name__, str(failure))]
    while cause is not None:
        found.append((str(cause.getClass().getName()), str(cause.getMessage() or cause.toString())))
        cause = cause.getCause()
    return found


def open_session(conf: Conf, job: str, catalog: str | None = None) -> SparkSession:
    """The session of this process, with the settings that conf and Drivetrain fix.

    ``catalog`` overrides conf's: a job that only reads takes in-memory, as an embedded metastore serves one process,
    and the site's is not to hear of what a reader names.
    """
    warehouse = conf.settings.warehouse
    builder = SparkSession.builder.appName(f"drivetrain {job}")
    builder = builder.config("spark.sql.session.timeZone", conf.settings.timezone)
    if conf.settings.spark.get("spark.sql.catalogImplementation") == "hive" and embedded(conf):
        place = f"jdbc:derby:;databaseName={warehouse}/metastore_db;create=true"
        builder = builder.config("spark.hadoop.javax.jdo.option.ConnectionURL", place)
        builder = builder.config("spark.sql.warehouse.dir", f"{warehouse}/hive")
    elif catalog:  # which makes a folder for each database that it is told of
        builder = builder.config("spark.sql.warehouse.dir", f"file:{tempfile.gettempdir()}/drivetrain-catalog")
    if catalog:
        builder = builder.config("spark.sql.catalogImplementation", catalog)
    for key, value in {**FIXED, **COSTS}.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def cloned(spark: SparkSession) -> SparkSession:
    """A session with the same settings, whose changes to them are its own: Delta takes a merge's number from there."""
    return SparkSession(spark.sparkContext, spark._jsparkSession.cloneSession())


def embedded(conf: Conf) -> bool:
    """Whether the Hive metastore is Spark's own, in a warehouse on this machine, and not a server of the site's."""
    keys = ("spark.hadoop.hive.metastore.uris", "spark.hadoop.javax.jdo.option.ConnectionURL")
    return not is_remote(conf.settings.warehouse) and not any(key in conf.settings.spark for key in keys)


def files_of(path: str, spark: SparkSession | None) -> Files:
    """The file system of ``path``, as the session sees it; for this machine's no session is needed."""

    def hadoop() -> HadoopFiles:
        assert spark, f"{path} is read by the session's Hadoop client"
        return HadoopFiles(spark._jvm, spark._jsc.hadoopConfiguration())

    return files(path, hadoop)
