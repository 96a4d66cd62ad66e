"""Replay: tables built again, beside, from the immutable log, by the streaming engine; compared; then swapped in.

Nothing of what readers see is touched until a swap, which is one manifest; and what a swap replaced can be had back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from drivetrain import bronze, gold, logend, ops, publish, quarantine, silver
from drivetrain.anomaly import flow
from drivetrain.anomaly.judge import Decision, Judge
from drivetrain.contracts import META_COLUMNS, Dataset, GoldTable
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import plain
from drivetrain.pipeline import Loads, Pipeline, silver_properties
from drivetrain.report import personal_columns
from drivetrain.session import FAILURES, reason
from drivetrain.sink import NO_STATISTICS, Table, Txn, again

SAMPLES: Final = 5
KINDS: Final = ("same", "only now", "only replayed", "changed")
EVENTS: Final = "replay string, at timestamp, what string, tables string, before string, by string"
MASK: Final = "•••"


@dataclass(frozen=True)
class Difference:
    """How a table that was built again differs from the one that stands, row by row by its key. ``samples`` are a few
    of each kind: (kind, row as text); personal values are masked."""

    layer: str
    table: str
    same: int
    only_now: int
    only_replayed: int
    changed: int
    samples: tuple[tuple[str, str], ...]

    @property
    def is_none(self) -> bool:
        """Whether both hold the same rows."""
        return not (self.only_now or self.only_replayed or self.changed)


@dataclass(frozen=True)
class Event:
    """What happened to a replay: ``what`` is built, swapped or rolled back; ``tables`` maps datasets to the first and
    the last load that were built, ``before`` to the version of silver that a swap replaced, that one's last load, and
    the quarantine's version; ``by`` names the run."""

    replay: str
    at: datetime
    what: str
    tables: Mapping[str, tuple[int, int]]
    before: Mapping[str, tuple[int, int, int]]
    by: str


class Beside(Pipeline):
    """A pipeline over the same log whose silver, gold and quarantine stand in a folder of their own."""

    def __init__(self, over: Pipeline, replay: str) -> None:
        super().__init__(over.spark, over.conf, over.outcome.run, "replay", over.progress)
        self.over, self.folder = over, f"{over.warehouse}/_replay/{replay}"

    def table(self, layer: str, name: str) -> Table:
        if layer in ("bronze", "ops"):
            return super().table(layer, name)
        return Table(self.spark, f"{self.folder}/{layer}/{name}")

    @property
    def quarantine(self) -> Table:
        return Table(self.spark, f"{self.folder}/quarantine")

    @property
    def staged(self) -> str:
        return f"{self.folder}/_staging"  # a batch may stage the same dataset meanwhile

    def judge(self, dataset: Dataset) -> Judge | None:
        """Nobody: verdicts were given once, and a replay gives the same."""
        return None

    def decision(self, dataset: Dataset, staged: DataFrame, loads: Loads, judge: Judge | None) -> Decision | None:
        """What was decided is written down already."""
        return None

    def records(self, dataset: Dataset, log: DataFrame, loads: Loads) -> DataFrame:
        """The loads' records with the verdicts that were given on them: a stream's stand in the log, a batch's in
        ops.anomalies."""
        return flow.with_verdicts(super().records(dataset, log, loads), self.table("ops", "anomalies"), dataset)

    def rebuild(self, dataset: Dataset, first: int, upto: int) -> None:
        """Loads from ``first`` to ``upto`` into silver, as the streaming engine brings them.

        Raises:
            DrivetrainError: loads are gone from the log.
        """
        log = self.table("bronze", dataset.name)
        first = max(first, self.table("silver", dataset.name).last_txn(dataset.name) + 1)  # what an ended one has left
        check_whole(dataset, log, first, upto)
        if first > upto:
            return
        taker = Taker(self, dataset, first, upto)
        # From the table as it stands, in one piece: the files of its first commits may have been joined and removed.
        rows = self.spark.readStream.format("delta").option("maxFilesPerTrigger", 1 << 30).load(log.path)
        rows = rows.select(*[name for name in rows.columns if name in bronze.TYPES])  # not what streams have typed
        folder = f"{self.folder}/_checkpoint/{dataset.name}"
        self.files(folder).remove(folder)
        writer = rows.where(F.col("_load").between(first, upto)).writeStream.foreachBatch(taker.take)
        writer = writer.option("checkpointLocation", plain(folder) if ":///" in folder else folder)
        query = writer.trigger(availableNow=True).start()
        query.awaitTermination()
        taker.finish()
        self.files(folder).remove(folder)

    def start_from(self, dataset: Dataset, rows: DataFrame, number: int) -> None:
        """Silver as ``rows``, which are what loads up to ``number`` gave once."""
        metadata = {"app": dataset.name, "number": number, "run": self.outcome.run}
        try:
            table, properties = self.table("silver", dataset.name), silver_properties(dataset)
            table.append(rows, Txn(dataset.name, number), metadata, properties)
        except FAILURES as error:
            what = f"silver as it was at load {number} cannot be read any more: {reason(error)}"
            fix = "replay --from beginning, or from a later load"  # or, after a swap, with the contract of then
            raise DrivetrainError(Problem("replay", dataset.name, what, fix)) from error


class Taker:
    """Takes micro-batches of the log into silver, load by whole load: the engine may cut a load in two."""

    def __init__(self, beside: Beside, dataset: Dataset, first: int, upto: int) -> None:
        self.beside, self.dataset, self.done, self.upto = beside, dataset, first - 1, upto
        self.open: int | None = None

    def take(self, rows: DataFrame, _: int) -> None:
        """All loads of which a later one has come are whole; so is the last one, where all its rows have come."""
        newest, last = rows.agg(F.max("_load"), F.count_if(F.col("_load") == self.upto)).collect()[0]
        if newest is None or newest == self.open:
            return
        if self.open is not None:
            rows = rows.where(F.col("_load") > self.open).unionByName(self.load(self.open))
        whole = newest if last and last == self.rows_of_last() else newest - 1
        self.refine(rows.where(F.col("_load") <= whole), whole)
        self.open = newest

    def finish(self) -> None:
        """The last load, behind which none comes."""
        if self.open is not None:
            self.refine(self.load(self.open), self.open)

    def rows_of_last(self) -> int | None:
        """How many rows the last load has, by Delta's own count; None where the log does not hold its commit."""
        log = self.beside.table("bronze", self.dataset.name)
        return next((log.rows_written(v) for v, m in log.commits() if m["number"] == self.upto), None)

    def load(self, number: int) -> DataFrame:
        return self.beside.table("bronze", self.dataset.name).read().where(F.col("_load") == number)

    def refine(self, rows: DataFrame, upto: int) -> None:
        if upto <= self.done:
            return
        table, log = self.beside.table("silver", self.dataset.name), self.beside.table("bronze", self.dataset.name)
        version = table.version() if table.exists() else -1
        self.beside.refine_loads(self.dataset, rows, Loads(self.done + 1, upto, log.version(), version))
        self.done = upto


def check_whole(dataset: Dataset, log: Table, first: int, upto: int) -> None:
    """Raises:
    DrivetrainError: of the loads from ``first`` to ``upto`` the log has not every one.
    """
    there = log.read().where(F.col("_load").between(first, upto)).select("_load").distinct()
    missing = log.spark.range(first, upto + 1).join(there, F.col("id") == F.col("_load"), "left_anti")
    found = missing.agg(F.min("id"), F.max("id"), F.count(F.lit(1))).collect()[0]
    if found[2]:
        what = (
            f"{found[2]} loads between {found[0]} and {found[1]} are gone from the log, so it cannot be replayed whole"
        )
        fix = f"replay --from {found[1]}, if silver of that load is still kept; or restore the log's table"
        raise DrivetrainError(Problem("retention", dataset.name, what, fix))


def replay(pipeline: Pipeline, datasets: Sequence[Dataset], after: int) -> list[Difference]:
    """Build the datasets' silver and the gold tables over them again, from the loads after ``after`` (0: all), up to
    what silver has now; and compare.

    Raises:
        DrivetrainError: the log, or silver at load ``after``, is not there any more.
    """
    beside = Beside(pipeline, pipeline.outcome.run)
    # Pinned, as batches may run meanwhile.
    stands = {dataset.name: _latest(pipeline.table("silver", dataset.name), dataset.name) for dataset in datasets}
    above = {table.name: pipeline.table("gold", table.name).version() for table in _gold_above(pipeline, datasets)}
    built: dict[str, tuple[int, int]] = {}
    differences = []
    for dataset in datasets:
        now = pipeline.table("silver", dataset.name)
        version, upto = stands[dataset.name]
        if upto < 1:
            continue
        if after:
            beside.start_from(dataset, _at_load(dataset, now, after), after)
        beside.rebuild(dataset, after + 1, upto)
        built[dataset.name] = (after + 1, upto)
        differences.append(compare_silver(now.read(version), beside.table("silver", dataset.name).read(), dataset))
    for name, version in above.items():
        differences.append(compare_gold(pipeline, beside, pipeline.conf.gold[name], version))
    if beside.outcome.problems:
        raise DrivetrainError(*beside.outcome.problems)
    ops.write(pipeline.table("ops", "steps"), beside.steps.done, {}, pipeline.outcome.run)
    record(pipeline, Event(pipeline.outcome.run, ops.now(), "built", built, {}, pipeline.outcome.run))
    return differences


def _latest(silver_: Table, dataset: str) -> tuple[int, int]:
    """Its version, and the last load in that; -1 where there is none."""
    return (silver_.version(), silver_.last_txn(dataset)) if silver_.exists() else (-1, -1)


def _at_load(dataset: Dataset, silver_: Table, number: int) -> DataFrame:
    for version, metadata in silver_.commits():
        if metadata["number"] == number:
            return silver_.read(version)
    what = f"no version of silver ends with load {number}"
    kept = sorted({int(m["number"]) for _, m in silver_.commits()})
    raise DrivetrainError(
        Problem("replay", dataset.name, what, f"use beginning, or one of {', '.join(map(str, kept))}")
    )


def _gold_above(pipeline: Pipeline, datasets: Sequence[Dataset]) -> list[GoldTable]:
    names = {dataset.name for dataset in datasets}
    found = []
    for table in pipeline.conf.gold.values():
        if names & set(table.inputs):
            names.add(table.name)
            found.append(table)
    return found


# --- comparing ---


def compare_silver(now: DataFrame, then: DataFrame, dataset: Dataset) -> Difference:
    """Silver that stands, and the one built again, by what identifies a row."""
    key = dataset.key if dataset.history == "latest" else dataset.identity or silver.POSITION
    own = set(META_COLUMNS) - set(key)
    hidden = {column.name for column in dataset.columns if not column.is_open}
    return compare("silver", dataset.name, now.drop(*own), then.drop(*own), tuple(key), hidden)


def compare_gold(pipeline: Pipeline, beside: Beside, table: GoldTable, version: int) -> Difference:
    """A gold table that stands, and what its query gives over what was built again."""
    inputs = {}
    for name in table.inputs:
        layer = "silver" if name in pipeline.conf.datasets else "gold"
        there = beside.table(layer, name)
        inputs[name] = (there if there.exists() else pipeline.table(layer, name)).read()
    built = beside.table("gold", table.name)
    built.replace(gold.build(pipeline.spark, table, inputs), {"run": pipeline.outcome.run}, NO_STATISTICS)
    rows = pipeline.table("gold", table.name).read(version) if version >= 0 else built.read().limit(0)
    return compare("gold", table.name, rows, built.read(), table.key, personal_columns(pipeline.conf, table))


def compare(layer: str, name: str, now: DataFrame, then: DataFrame, key: Sequence[str], hidden: set[str]) -> Difference:
    """Rows of both by ``key``, and a look for samples of each kind of difference; a column that one lacks is NULL
    there."""
    columns = list(dict.fromkeys((*now.columns, *then.columns)))
    left, right = (_packed(frame, columns, key, side) for frame, side in ((now, "now"), (then, "then")))
    same = reduce(Column.__and__, [F.col(f"now.{k}").eqNullSafe(F.col(f"then.{k}")) for k in key])
    kind = (
        F.when(F.col("_then").isNull(), KINDS[1])
        .when(F.col("_now").isNull(), KINDS[2])
        .when(F.col("_now") == F.col("_then"), KINDS[0])
        .otherwise(KINDS[3])
    )
    joined = left.alias("now").join(right.alias("then"), same, "full_outer").select(kind.alias("kind"), "_now", "_then")
    counts = {row["kind"]: int(row["count"]) for row in joined.groupBy("kind").count().collect()}
    samples = []
    for wanted in KINDS[1:]:
        if counts.get(wanted):
            rows = joined.where(F.col("kind") == wanted).limit(SAMPLES).collect()
            samples += [(wanted, _shown(row["_now"], row["_then"], hidden)) for row in rows]
    alike, here, there, changed = (counts.get(name, 0) for name in KINDS)
    return Difference(layer, name, alike, here, there, changed, tuple(samples))


def _packed(frame: DataFrame, columns: Sequence[str], key: Sequence[str], side: str) -> DataFrame:
    """The key, and all values as one text; as texts, since a contract that changed may have changed their types."""
    there = set(frame.columns)
    values = [(F.col(name) if name in there else F.lit(None)).cast("string").alias(name) for name in columns]
    return frame.select(*key, F.to_json(F.struct(*values), {"ignoreNullFields": "false"}).alias(f"_{side}"))


def _shown(now: str | None, then: str | None, hidden: set[str]) -> str:
    """A row that one side has; or of a row that both have, what differs, behind its first columns."""
    before, after = ({} if text is None else json.loads(text) for text in (now, then))
    if not before or not after:
        return json.dumps(
            {name: MASK if name in hidden else v for name, v in (before or after).items()}, ensure_ascii=False
        )
    moved = [name for name in before if before[name] != after[name]]
    told = {name: MASK if name in hidden else before[name] for name in [n for n in before if n not in moved][:3]}
    told |= {name: MASK if name in hidden else f"{before[name]} -> {after[name]}" for name in moved}
    return json.dumps(told, ensure_ascii=False)


# --- swapping ---


def record(pipeline: Pipeline, event: Event) -> None:
    """Add what happened to a replay to its history."""
    table = pipeline.table("ops", "replays")
    values = (event.replay, event.at, event.what, json.dumps(event.tables), json.dumps(event.before), event.by)
    rows = pipeline.spark.createDataFrame([values], EVENTS)
    table.append(rows, Txn(f"{event.replay}:{event.what}:{pipeline.outcome.run}", 1), {"run": pipeline.outcome.run}, {})


def history(pipeline: Pipeline, replay_id: str) -> list[Event]:
    """What happened to a replay, oldest first.

    Raises:
        DrivetrainError: there is no such replay.
    """
    table = pipeline.table("ops", "replays")
    rows = table.read().where(F.col("replay") == replay_id).orderBy("at").collect() if table.exists() else []
    if not rows:
        fix = 'sql "select * from ops.replays" lists them'
        raise DrivetrainError(Problem("replay", replay_id, "there is no such replay", fix))
    return [
        Event(r["replay"], r["at"], r["what"], json.loads(r["tables"]), json.loads(r["before"]), r["by"]) for r in rows
    ]


def swap(pipeline: Pipeline, replay_id: str) -> None:
    """Put what a replay built in the place of what stands, by one manifest.

    Silver takes the whole log first, and what has come since the replay is built beside. What will be replaced is
    written down before anything is, so that `rollback` can have it back wherever this ends.

    Raises:
        DrivetrainError: the replay is not there, was swapped before, or cannot be brought up to the present; or a check
            keeps a gold table back.
    """
    past = history(pipeline, replay_id)
    if past[-1].what != "built":
        what = f"it was {past[-1].what} on {past[-1].at:%Y-%m-%d %H:%M}"
        raise DrivetrainError(Problem("replay", replay_id, what, "start another replay"))
    beside = Beside(pipeline, replay_id)
    _settle(pipeline, past[-1].tables)
    before = {}
    for name in past[-1].tables:
        version, last = _latest(pipeline.table("silver", name), name)
        beside.rebuild(pipeline.conf.datasets[name], 1, last)
        before[name] = (version, last, pipeline.quarantine.version())
    record(pipeline, Event(replay_id, ops.now(), "swapping", past[-1].tables, before, pipeline.outcome.run))
    for name, (first, _) in past[-1].tables.items():
        _replace(pipeline, beside, pipeline.conf.datasets[name], first, None)
    _publish(pipeline)
    record(pipeline, Event(replay_id, ops.now(), "swapped", past[-1].tables, before, pipeline.outcome.run))
    pipeline.files(beside.folder).remove(beside.folder)


def rollback(pipeline: Pipeline, replay_id: str) -> None:
    """Have back what a swap replaced, with the loads that silver has taken since, by one manifest.

    Raises:
        DrivetrainError: the replay was not swapped, or what it replaced is not kept any more.
    """
    past = history(pipeline, replay_id)
    if past[-1].what not in ("swapping", "swapped"):
        raise DrivetrainError(Problem("replay", replay_id, "it is not swapped in", "see ops.replays"))
    beside = Beside(pipeline, f"{replay_id}-back-{pipeline.outcome.run}")
    _settle(pipeline, past[-1].tables)
    for name, (version, number, _) in past[-1].before.items():
        dataset, now = pipeline.conf.datasets[name], pipeline.table("silver", name)
        beside.start_from(dataset, now.read(version), number)
        beside.rebuild(dataset, number + 1, now.last_txn(name))
    for name, (_, number, quarantined) in past[-1].before.items():
        bad = pipeline.quarantine.read(quarantined).where(f"_load <= {number}") if quarantined >= 0 else None
        _replace(pipeline, beside, pipeline.conf.datasets[name], 1, bad)
    _publish(pipeline)
    record(pipeline, Event(replay_id, ops.now(), "rolled back", past[-1].tables, {}, pipeline.outcome.run))
    pipeline.files(beside.folder).remove(beside.folder)


def _settle(pipeline: Pipeline, names: Mapping[str, object]) -> None:
    """Silver and the ledger up to the log's end, by the batch's own way.

    Raises:
        DrivetrainError: they cannot be brought there.
    """
    pipeline.transform(list(names), ingest=False)
    behind = [name for name in names if pipeline.table("silver", name).last_txn(name)
              < logend.end(pipeline.table("bronze", name)).number]  # fmt: skip
    if pipeline.outcome.problems or behind:
        what = f"{', '.join(behind) or 'a table'} could not be brought up to the log's end first"
        raise DrivetrainError(*pipeline.outcome.problems, Problem("replay", "swap", what, "see the problems above"))


def _replace(pipeline: Pipeline, beside: Beside, dataset: Dataset, first: int, bad: DataFrame | None) -> None:
    """Silver as it was built beside; and what is open in quarantine from the loads from ``first`` on, which are
    ``bad`` and what was found beside."""
    built, now = beside.table("silver", dataset.name), pipeline.table("silver", dataset.name)
    number = built.last_txn(dataset.name)
    metadata = {"app": dataset.name, "number": number, "run": pipeline.outcome.run, "contract": dataset.fingerprint}
    now.replace(built.read(), metadata, {})
    parts = [
        part for part in (bad, beside.quarantine.read() if beside.quarantine.exists() else None) if part is not None
    ]
    run, table = {"run": pipeline.outcome.run}, pipeline.quarantine
    txn = f"{dataset.name}:{pipeline.outcome.run}:swap"
    wanted = [part.where((F.col("dataset") == dataset.name) & (F.col("state") == "open")) for part in parts]
    if table.exists():
        mine = f"dataset = '{dataset.name}' AND _load BETWEEN {first} AND {number}"
        table.delete(f"{mine} AND state = 'open'", Txn(txn, 1), run)
    if wanted:
        rows = reduce(DataFrame.unionByName, wanted)
        if table.exists():
            rows = rows.join(table.read().select("quarantine_id"), "quarantine_id", "left_anti")
        rows = rows.select(*quarantine.COLUMNS)
        again(lambda: table.append(rows, Txn(txn, 2), run, quarantine.PROPERTIES))


def _publish(pipeline: Pipeline) -> None:
    """Gold over the new silver by the batch's own way, and one manifest over all."""
    pipeline.publish_all()
    if pipeline.outcome.problems:
        raise DrivetrainError(*pipeline.outcome.problems)
    publish.publish(pipeline)
    pipeline.show_names()
