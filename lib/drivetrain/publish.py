"""Publishing: what was touched since the batch, computed again for gold; then one manifest; then the views' text."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from drivetrain import gold, logend, ops, refresh, silver
from drivetrain.contracts import Dataset, GoldTable
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.sink import NO_STATISTICS, Txn
from drivetrain.unified import MANIFEST, PRESENT, Entry, Manifest, Unified

if TYPE_CHECKING:
    from drivetrain.pipeline import Pipeline


def publish(pipeline: Pipeline) -> Manifest:
    """Write the next manifest over the tables as they stand, where one of them has moved; and show it.

    The caller holds the warehouse's lock, so that silver and gold stand still; the log may grow, and is pinned.
    """
    unified = Unified(pipeline.spark, pipeline.conf)
    before = unified.manifest()
    number = max((entry.number for entry in before.values()), default=0) + 1
    entries: dict[str, Entry] = {}
    for dataset in pipeline.conf.datasets.values():
        entry = _dataset(pipeline, dataset, number)
        if entry:
            entries[dataset.name] = entry
    if not _moved(entries, before) and not _gold_moved(pipeline, before):
        return before
    for table in pipeline.conf.gold.values():
        with pipeline.problem_of(table.name):
            entry = _gold(pipeline, unified, table, number, entries, before.get(table.name))
            if entry:
                entries[table.name] = entry
    frame = pipeline.spark.createDataFrame(list(entries.values()), _schema()).coalesce(1)
    unified.table.append(frame, Txn(MANIFEST, number), {"run": pipeline.outcome.run}, {})
    _, newest = next(unified.table.commits())
    if newest["run"] != pipeline.outcome.run:  # Delta says nothing where it leaves out a number that it has seen
        what = f"run {newest['run']} has published manifest {number} meanwhile"
        raise DrivetrainError(Problem("taken-over", MANIFEST, what, "readers follow that one; run again"))
    return entries


def _schema() -> str:
    kinds = {"int": "bigint", "str": "string", "datetime": "timestamp"}
    said = Entry.__annotations__
    return ", ".join(f"{name} {kinds[str(kind).split(' ')[0]]}" for name, kind in said.items())


def _dataset(pipeline: Pipeline, dataset: Dataset, number: int) -> Entry | None:
    """A dataset's silver as it stands, and its log; None where neither is there."""
    table, log = pipeline.table("silver", dataset.name), pipeline.table("bronze", dataset.name)
    if not log.exists():
        return None
    held, end = table.exists(), logend.end(log)
    cut = max(table.last_txn(dataset.name), 0)
    row = silver.row_column(dataset) if dataset.stream else None
    if row and not end.shows(row, cut):
        what = "a stream still writes in the form that the contract had before"
        fix = "end the speed job and start it again; until then the view shows what silver has"
        pipeline.outcome.problems.append(Problem("contract", f"{dataset.where} ({dataset.name})", what, fix))
        row = None
    elif row and row not in log.read().columns:
        row = None
    upto = end.number if row else cut
    return Entry(
        number, ops.now(), pipeline.outcome.run, "silver", dataset.name, table.version() if held else None, None,
        row, json.dumps({dataset.name: [cut, upto]}), dataset.fingerprint, "",
    )  # fmt: skip


def _moved(now: Manifest, before: Manifest) -> bool:
    def place(entry: Entry) -> tuple[object, ...]:
        return entry.version, entry.row, entry.reads, entry.fingerprint

    return any(name not in before or place(before[name]) != place(entry) for name, entry in now.items())


def _gold_moved(pipeline: Pipeline, before: Manifest) -> bool:
    return any(
        pipeline.table("gold", name).version() != (before[name].version if name in before else -1)
        for name in pipeline.conf.gold
    )


def _gold(
    pipeline: Pipeline, unified: Unified, table: GoldTable, number: int, now: Manifest, before: Entry | None
) -> Entry | None:
    """A gold table as the batch left it, with what was touched since, written to its speed table.

    A table that its checks keep back stays as the last manifest had it.
    """
    target = pipeline.table("gold", table.name)
    built = next((m for _, m in target.commits()), None) if target.exists() else None
    current = built is not None and _is_current(pipeline, table)
    version = target.version() if built is not None else None
    reads, kept_back = _reads(table, now)
    entry = Entry(
        number, ops.now(), pipeline.outcome.run, "gold", table.name, version, None, None, json.dumps(reads),
        table.fingerprint, json.dumps(table.key),
    )  # fmt: skip
    if kept_back or (built is not None and not current):
        return replace(before, number=number) if before else None
    touched = any(cut < upto for cut, upto in reads.values())
    if not touched:
        return entry if built is not None else None
    try:
        return replace(entry, speed=_speed(pipeline, unified, table, entry, now))
    except DrivetrainError as error:
        pipeline.outcome.problems += error.problems
        return replace(before, number=number) if before else None


def _reads(table: GoldTable, now: Manifest) -> tuple[dict[str, list[int]], bool]:
    """[V, H] of each dataset below the table, and whether its inputs have come equally far: one that a check keeps back
    has not."""
    found: dict[str, list[int]] = {}
    apart = False
    for name in table.inputs:
        for dataset, reach in json.loads(now[name].reads).items() if name in now else ():
            apart = apart or found.setdefault(dataset, reach) != reach or now[dataset].reach(dataset) != tuple(reach)
    return found, apart


def _is_current(pipeline: Pipeline, table: GoldTable) -> bool:
    """Whether the batch built the table by this query from silver and gold as they stand."""
    layers = {name: "silver" if name in pipeline.conf.datasets else "gold" for name in table.inputs}
    versions = {name: pipeline.content_version(layer, name) for name, layer in layers.items()}
    return pipeline.stale(table, versions) is None


def _speed(pipeline: Pipeline, unified: Unified, table: GoldTable, entry: Entry, now: Manifest) -> int:
    """Compute and write the rows of the keys that were touched after the batch; the speed table's version."""
    with pipeline.staging(table) as folder, pipeline.step("speed", table.name) as step:
        rows = pipeline.written(_touched_rows(pipeline, unified, table, entry, now, folder), f"{folder}/rows")
        step.rows = rows.count()
        _audit(pipeline, unified, table, entry, rows)
        target = pipeline.table("speed", table.name)
        target.replace(rows, {"run": pipeline.outcome.run, "number": entry.number}, NO_STATISTICS)
        return next(v for v, m in target.commits() if m["run"] == pipeline.outcome.run)


def _touched_rows(
    pipeline: Pipeline, unified: Unified, table: GoldTable, entry: Entry, now: Manifest, folder: str
) -> DataFrame:
    """Rows of touched keys, marked present; and keys that are no more, marked absent."""
    by = refresh.groups(table)
    if by and by.table in pipeline.conf.datasets and entry.version is not None:
        below, staged = now[by.table], None
        if settled := unified.settled(below):
            staged = f"{folder}/settled"
            pipeline.written(pipeline.spark.sql(settled), staged)
        changes = pipeline.spark.sql(unified.changes(below, staged))
        rows = pipeline.spark.sql(unified.text(below, below.reach(by.table)[1], staged))
        touched = pipeline.written(refresh.grouped(changes, by), f"{folder}/groups")
        near = refresh.restricted(rows, touched, by, pipeline.conf.datasets[by.table])
        part = gold.build(pipeline.spark, table, {by.table: near})
        return _marked(part, touched.join(part, list(table.key), "left_anti"))
    frames = {name: unified.read(name, now) for name in table.inputs if name in now}
    frames |= {name: pipeline.input(name, -1) for name in table.inputs if name not in frames}
    whole = gold.build(pipeline.spark, table, frames)
    if entry.version is None:
        return whole.withColumn(PRESENT, F.lit(True))
    whole = pipeline.written(whole, f"{folder}/whole")
    batch = pipeline.table("gold", table.name).read(entry.version).select(*whole.columns)
    return _marked(whole.exceptAll(batch), batch.join(whole, list(table.key), "left_anti").select(*table.key))


def _marked(present: DataFrame, gone: DataFrame) -> DataFrame:
    absent = gone.withColumn(PRESENT, F.lit(False))
    return present.withColumn(PRESENT, F.lit(True)).unionByName(absent, allowMissingColumns=True)


def _audit(pipeline: Pipeline, unified: Unified, table: GoldTable, entry: Entry, rows: DataFrame) -> None:
    """Raises:
    DrivetrainError: a check of the table does not hold with those rows.
    """
    now = rows.where(PRESENT).drop(PRESENT)
    if entry.version is not None:
        batch = pipeline.table("gold", table.name).read(entry.version)
        now = refresh.replaced(batch, now, rows.select(*table.key), table.key)
    measured = gold.audit(now, table)
    pipeline.note_checks("speed", table.name, measured)
    failed = gold.fails(measured)
    if failed:
        fix = "readers keep the last rows that passed; see what the stream brings"
        where = f"{table.where} ({table.name})"
        raise DrivetrainError(*[Problem("check", where, f"a check keeps new rows back: {i}", fix) for i in failed])
