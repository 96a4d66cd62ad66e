"""Idempotent writes to Delta tables, and what the tables' logs say of earlier ones."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple

from delta.exceptions import (
    ConcurrentAppendException,
    ConcurrentDeleteDeleteException,
    ConcurrentDeleteReadException,
    ConcurrentTransactionException,
    ConcurrentWriteException,
    MetadataChangedException,
    ProtocolChangedException,
)
from delta.tables import DeltaTable
from py4j.protocol import Py4JJavaError
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from drivetrain.extent import Extent

METADATA = "spark.databricks.delta.commitInfo.userMetadata"
TXN_APP = "spark.databricks.delta.write.txnAppId"
TXN_VERSION = "spark.databricks.delta.write.txnVersion"
# Personal data must not stand in Delta's log as minima and maxima; tables with this are read whole anyway.
NO_STATISTICS = {"delta.dataSkippingNumIndexedCols": "0"}
# Of every table whose own properties do not tell otherwise. Delta refuses to read a version that is older than this,
# whether its files are there or not; and somebody's plain VACUUM removes what is older. `Table.vacuum` removes what
# nobody needs.
KEPT = {"delta.deletedFileRetentionDuration": "interval 3650 days", "delta.logRetentionDuration": "interval 3650 days"}
# Delta looks for deletion vectors, by a job, at each step of a plan that reads a table which may have some, and does
# not split its files: reading becomes slower by half a second and more, which a small table's changes do not save.
VECTORS = {"delta.enableDeletionVectors": "true"}
LARGE = 64 * 1024**2  # bytes
RECENT = 20
VACUUM = {  # else Delta ignores the hours that it is told, and refuses those below the table's own
    "spark.databricks.delta.vacuum.retentionWindowIgnore.enabled": "false",
    "spark.databricks.delta.retentionDurationCheck.enabled": "false",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "8",  # else 10,000 tasks
}
LOG_HOURS = 30 * 24.0  # also more milliseconds than an Integer, as which py4j would pass fewer
CONFLICTS = 5  # with other writers, after which a change fails
CONFLICT = (  # they have no base class in common that tells them from other failures
    ConcurrentAppendException, ConcurrentDeleteDeleteException, ConcurrentDeleteReadException,
    ConcurrentTransactionException, ConcurrentWriteException, MetadataChangedException, ProtocolChangedException,
)  # fmt: skip


def again(commit: Callable[[], object]) -> None:
    """Do it once more, a few times, where another writer came between."""
    for _ in range(CONFLICTS):
        try:
            commit()
            return
        except CONFLICT:
            continue
    commit()


@contextmanager
def session_confs(spark: SparkSession, confs: Mapping[str, str]) -> Iterator[None]:
    """A context in which the session has these settings, and after which it has what it had."""
    before = {key: spark.conf.get(key, None) for key in confs}
    try:
        for key, value in confs.items():
            spark.conf.set(key, value)
        yield
    finally:
        for key, old in before.items():
            spark.conf.unset(key) if old is None else spark.conf.set(key, old)


@dataclass(frozen=True)
class Txn:
    """One writer's number for one commit: Delta skips a commit whose number its table has seen from that writer."""

    app: str
    version: int


class Stored(NamedTuple):
    """Of a version of a table: bytes of its files, and how many these are."""

    bytes: int
    files: int


class Table:
    """A Delta table at a path."""

    def __init__(self, spark: SparkSession, path: str) -> None:
        self.spark, self.path = spark, path

    def exists(self) -> bool:
        tables = _java(self.spark, "io.delta.tables.DeltaTable")
        return bool(tables.isDeltaTable(self.spark._jsparkSession, self.path))

    def read(self, version: int | None = None) -> DataFrame:
        reader = self.spark.read.format("delta")
        return (reader if version is None else reader.option("versionAsOf", version)).load(self.path)

    def version(self) -> int:
        """The latest version; -1 where there is no table."""
        return int(self._snapshot().version())

    def last_txn(self, app: str) -> int:
        """The highest number that ``app`` has committed here; -1 for none.

        The newest commits tell it for the price of reading a small file, or the checksum beside the last one; Delta's
        own list of transactions, which takes Spark jobs, is for the rest.
        """
        if not self.exists():
            return -1
        for _, metadata in islice(self.commits(), RECENT):
            if metadata.get("app") == app:
                return int(metadata["number"])
        known = self.txns_if_known()
        if known is not None:
            return known.get(app, -1)
        found = self._snapshot().transactions().get(app)
        return int(found.get()) if found.isDefined() else -1

    def txns_if_known(self) -> dict[str, int] | None:
        """The highest number of each app, where that is known without Spark jobs."""
        known = self._snapshot().setTransactionsIfKnown()
        if not known.isDefined():
            return None
        txns = (known.get().apply(i) for i in range(known.get().size()))
        return {str(txn.appId()): int(txn.version()) for txn in txns}

    def metadata(self, version: int) -> dict[str, Any] | None:
        """What our commit of that version says of itself; None for a commit that is not ours, or is cleaned up."""
        for action in self._commit(version):
            text = action.get("commitInfo", {}).get("userMetadata")
            if text:
                return dict(json.loads(text))
        return None

    def rows_written(self, version: int) -> int:
        """Rows that the commit of that version added, by Delta's own count."""
        return self._metric(version, "numOutputRows")

    def bytes_written(self, version: int) -> int:
        """Bytes of the files that the append of that version added."""
        return self._metric(version, "numOutputBytes")

    def _metric(self, version: int, name: str) -> int:
        infos = [action["commitInfo"] for action in self._commit(version) if "commitInfo" in action]
        return int(infos[0].get("operationMetrics", {}).get(name, 0)) if infos else 0

    def has_commit(self, version: int) -> bool:
        """Whether the log still holds that version's commit."""
        return bool(self._commit(version))

    def changes(self, first: int, last: int) -> DataFrame:
        """Rows that the versions from ``first`` to ``last`` inserted, deleted, or updated (as before and as after)."""
        reader = self.spark.read.format("delta").option("readChangeFeed", "true")
        return reader.option("startingVersion", first).option("endingVersion", last).load(self.path)

    def commits(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Our own commits, newest first, as far as the log still holds them."""
        for version in range(self.version(), -1, -1):
            metadata = self.metadata(version)
            if metadata is not None:
                yield version, metadata

    def stored(self) -> Stored:
        """What the latest version holds; without Spark jobs where the checksum beside its commit tells."""
        snapshot = self._snapshot()
        checksum = snapshot.checksumOpt()
        if checksum.isDefined():
            return Stored(int(checksum.get().tableSizeBytes()), int(checksum.get().numFiles()))
        return Stored(int(snapshot.sizeInBytes()), int(snapshot.numOfFiles()))

    def left_since(self, version: int) -> datetime | None:
        """Since when files of that version are no longer the table's; None where all still are."""
        for later in range(version + 1, self.version() + 1):
            actions = self._commit(later)
            if any("remove" in action for action in actions):
                infos = [action["commitInfo"] for action in actions if "commitInfo" in action]
                return datetime.fromtimestamp(infos[0]["timestamp"] / 1000, timezone.utc)
        return None

    def age_hours(self, version: int) -> float:
        """How long ago the version was committed."""
        infos = [action["commitInfo"] for action in self._commit(version) if "commitInfo" in action]
        return (time.time() - infos[0]["timestamp"] / 1000) / 3600 if infos else 0.0

    def optimize(self) -> None:
        """Join small files; the rows stay what they are."""
        DeltaTable.forPath(self.spark, self.path).optimize().executeCompaction()

    def vacuum(self, hours: float, oldest: int | None, properties: Mapping[str, str]) -> None:
        """Remove files that left the table more than ``hours`` ago; and of Delta's log what is a month older than that,
        than the version ``oldest``, which somebody needs, and than our newest commit, which tells where we are. A table
        that was made before these were gets the ``properties`` with which it would be made now."""
        self.set_properties({**KEPT, **properties})
        with session_confs(self.spark, VACUUM):
            self.spark.sql(f"VACUUM {self._name} RETAIN {math.ceil(hours)} HOURS")
        log, none = self._log(), _none(self.spark)
        log.checkpoint()
        own = next((version for version, _ in self.commits()), None)
        ages = [self.age_hours(version) for version in (oldest, own) if version is not None]
        keep = _java(self.spark, "scala.Some")(int((max([hours, *ages]) + LOG_HOURS) * 3_600_000))
        log.cleanUpExpiredLogs(
            log.update(False, none, none), none, keep, getattr(log, "cleanUpExpiredLogs$default$4")()
        )

    def set_properties(self, wanted: Mapping[str, str]) -> None:
        """Give the table these properties, where it has others."""
        now = self._snapshot().metadata().configuration()
        found = {key: now.get(key) for key in wanted}
        if any(not found[key].isDefined() or found[key].get() != value for key, value in wanted.items()):
            told = ", ".join(f"'{key}' = '{value}'" for key, value in wanted.items())
            self.spark.sql(f"ALTER TABLE {self._name} SET TBLPROPERTIES ({told})")

    def keep_changes_cheap(self) -> None:
        """From a size on let changes mark rows as deleted, and not rewrite the files in which they stand."""
        if self.stored().bytes >= LARGE:
            self.set_properties(VECTORS)

    def append(
        self, rows: DataFrame, txn: Txn | None, metadata: Mapping[str, Any], properties: Mapping[str, str]
    ) -> None:
        """Add rows, new columns too; makes the table with ``properties`` where it is not there."""
        writer = rows.write.format("delta").mode("append").option("mergeSchema", "true")
        self._save(writer, txn, metadata, {} if self.exists() else {**KEPT, **properties})

    def replace(self, rows: DataFrame, metadata: Mapping[str, Any], properties: Mapping[str, str]) -> None:
        """Make ``rows`` the whole content, in one commit."""
        writer = rows.write.format("delta").mode("overwrite").option("overwriteSchema", "true")
        self._save(writer, None, metadata, {} if self.exists() else {**KEPT, **properties})

    def merge(
        self, rows: DataFrame, on: Sequence[str], txn: Txn, metadata: Mapping[str, Any], reach: Extent | None = None
    ) -> None:
        """Update the rows that have the same values in the columns ``on``, insert the others. Delta's log will show
        ``reach``, an extent of the rows in some of those columns, which spares reading what lies outside of it."""
        same = [F.col(f"t.{name}") == F.col(f"s.{name}") for name in on]
        near = reach.covers({name: F.col(f"t.{name}") for name in on}) if reach else F.lit(True)

        def merge(table: DeltaTable) -> None:
            made = table.alias("t").merge(rows.alias("s"), reduce(Column.__and__, same) & near)
            made.withSchemaEvolution().whenMatchedUpdateAll().whenNotMatchedInsertAll().execute()

        self._change(merge, txn, metadata)

    def update(self, condition: str, changes: Mapping[str, str], txn: Txn, metadata: Mapping[str, Any]) -> None:
        """Set columns to SQL expressions in rows that fulfil the condition."""
        self._change(lambda table: table.update(condition, dict(changes)), txn, metadata)

    def delete(self, condition: str, txn: Txn, metadata: Mapping[str, Any]) -> None:
        """Take out the rows that fulfil the condition."""
        self._change(lambda table: table.delete(condition), txn, metadata)

    def _change(self, change: Callable[[DeltaTable], object], txn: Txn, metadata: Mapping[str, Any]) -> None:
        """One commit of a MERGE, UPDATE or DELETE; tried again where another writer's, as an OPTIMIZE, came between."""
        # Delta takes the transaction of a MERGE or UPDATE from the session only.
        confs = {METADATA: _text(metadata, txn), TXN_APP: txn.app, TXN_VERSION: str(txn.version)}
        with session_confs(self.spark, confs):
            again(lambda: change(DeltaTable.forPath(self.spark, self.path)))

    def _save(self, writer: Any, txn: Txn | None, metadata: Mapping[str, Any], properties: Mapping[str, str]) -> None:
        writer = writer.options(**properties).option("userMetadata", _text(metadata, txn))
        if txn:
            writer = writer.option("txnAppId", txn.app).option("txnVersion", txn.version)
        writer.save(self.path)

    @property
    def _name(self) -> str:
        return f"delta.`{self.path.replace('`', '``')}`"

    def _snapshot(self) -> Any:
        return self._log().update(False, _none(self.spark), _none(self.spark))

    def _log(self) -> Any:
        logs = _java(self.spark, "org.apache.spark.sql.delta.DeltaLog")
        return logs.forTable(self.spark._jsparkSession, self.path)

    def _commit(self, version: int) -> list[dict[str, Any]]:
        path = _java(self.spark, "org.apache.hadoop.fs.Path")(f"{self.path}/_delta_log/{version:020d}.json")
        try:
            stream = path.getFileSystem(self.spark._jsc.hadoopConfiguration()).open(path)
        except Py4JJavaError as error:
            if "FileNotFoundException" in str(error.java_exception.getClass()):
                return []
            raise
        try:
            text = _java(self.spark, "org.apache.commons.io.IOUtils").toString(stream, "UTF-8")
        finally:
            stream.close()
        return [json.loads(line) for line in text.splitlines()]


def _text(metadata: Mapping[str, Any], txn: Txn | None) -> str:
    writer = {"app": txn.app, "number": txn.version} if txn else {}
    return json.dumps({**writer, **metadata}, sort_keys=True, default=str)


def _java(spark: SparkSession, name: str) -> Any:
    """A class by its whole name: step by step, py4j asks Java for each part of that, which looks through all jars."""
    return getattr(spark._jvm, name)


def _none(spark: SparkSession) -> Any:
    return getattr(_java(spark, "scala.None$"), "MODULE$")
