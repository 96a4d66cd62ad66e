"""What a stream brings, into the log as it comes: each micro-batch one commit that shows its typed rows at once.

A stream keeps no checkpoint. Where it stands is in the log, in the same commit as the data (`logend.Mark`), so a start
after any kind of end goes on where the log ends. Each start is a new epoch; the commit of an older one that wakes up
again is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Final

from pyspark.sql import Column, DataFrame, Observation
from pyspark.sql import functions as F

from drivetrain import bronze, logend, ops, quarantine, silver
from drivetrain.anomaly import flow
from drivetrain.contracts import Dataset
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.landing import Intake
from drivetrain.logend import End, Mark
from drivetrain.pipeline import Pipeline
from drivetrain.session import FAILURES, is_data_error
from drivetrain.sink import NO_STATISTICS, Table, Txn, again

EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Resume(Exception):
    """The stream begins again where the log ends now."""


@dataclass
class Figures:
    """What a stream has done since its start, for people and for ops. ``lag_seconds`` is how old the newest message was
    when its batch had been committed."""

    dataset: str
    batches: int = 0
    rows_in: int = 0
    good: int = 0
    quarantined: int = 0
    late: int = 0
    commits: int = 0
    batch_seconds: float = 0.0
    busy_seconds: float = 0.0
    busy_squares: float = 0.0
    input_rows_per_second: float = 0.0
    processed_rows_per_second: float = 0.0
    lag_offsets: int | None = None
    lag_seconds: float | None = None
    state_rows: int = 0
    watermark: datetime | None = None
    load: int = 0
    failure: str | None = None


@dataclass(frozen=True)
class Batch:
    """One micro-batch: its records (columns of source.read, or `silver.judged`) and their layouts, its number in this
    epoch; of a topic the offsets behind it and its id, of a folder the files and what the commit says of them."""

    records: DataFrame
    number: int
    layouts: Mapping[str, Sequence[str]]
    offsets: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    files: Sequence[Intake] = ()
    metadata: Mapping[str, object] = field(default_factory=dict)


class Appender:
    """Appends a dataset's micro-batches to its log."""

    def __init__(self, pipeline: Pipeline, dataset: Dataset) -> None:
        assert dataset.stream, "only datasets with a stream have an appender"
        self.pipeline, self.dataset, self.stream = pipeline, dataset, dataset.stream
        self.log = pipeline.table("bronze", dataset.name)
        self.row = silver.row_column(dataset)
        self.figures, self.epoch, self.careful = Figures(dataset.name), 0, False
        self.begin()

    def begin(self) -> End:
        """Take the log's end as the place to go on from, as a new epoch; end what an earlier one left undone.

        Raises:
            DrivetrainError: another start of this stream has taken over since this one began.
        """
        self.after = logend.end(self.log)
        mark = self.after.mark
        if self.epoch and mark and mark.epoch >= self.epoch and mark.run != self.pipeline.outcome.run:
            raise self.taken_over(mark)
        self.epoch = mark.epoch + 1 if mark else 1
        if mark and self.after.row == self.row:
            self.newest = _parsed(mark.newest)
            self.put_down(mark.load)
            self.put_late(mark.load)
        self.newest = self.newest_event()
        return self.after

    def newest_event(self) -> datetime | None:
        """The newest event time of the log's good rows: of the loads since the mark, and what the mark says."""
        name, mark = self.dataset.event_time, self.after.mark
        if not name or not self.log.exists() or self.row not in (log := self.log.read()).columns:
            return None
        rows = log.where(F.col("_load") >= (mark.load if mark else 0))
        found = rows.agg(_newest(F.col(f"{self.row}.{name}"))).collect()[0][0]
        before = _parsed(mark.newest) if mark else None
        return max((time for time in (before, _time(found)) if time), default=None)

    @property
    def late_before(self) -> datetime | None:
        """Events from before are late."""
        delay = self.stream.delay_seconds
        return self.newest - timedelta(seconds=delay) if self.newest and delay is not None else None

    def append(self, batch: Batch) -> None:
        """One commit of the micro-batch to the log, whatever it holds; then what went wrong with single records.

        Raises:
            Resume: a stream of an earlier epoch has committed since, its records are in the log; or the records were
                judged before, and that fails on one of them.
            DrivetrainError: another start of this stream has taken over.
        """
        while True:
            try:
                seen = self.commit(batch)
                break
            except logend.Taken:
                self.look_again(batch)
            except FAILURES as error:
                if self.careful or not is_data_error(error):
                    raise
                self.careful = True  # a record on which the contract's own SQL fails: slower, but it is found
                if self.row in batch.records.columns:
                    raise Resume from error
        self.note(seen)

    def judged(self, records: DataFrame, layouts: Mapping[str, Sequence[str]]) -> DataFrame:
        limit = self.pipeline.conf.settings.max_record_bytes
        return silver.judged(records, self.dataset, layouts, limit, self.careful)

    def commit(self, batch: Batch) -> Mapping[str, object]:
        """Append it; what was counted on the way."""
        seen, records = Observation(), batch.records
        load = bronze.Load(self.after.number + 1, self.pipeline.outcome.run, ops.now())
        judged = records if self.row in records.columns else self.judged(records, batch.layouts)
        with flow.Sitting(self.pipeline, self.pipeline.judge(self.dataset), self.log, self.careful) as sitting:
            rows = silver.beside(judged, self.dataset, load, self.late_before, sitting.verdict)
            rows = rows.observe(seen, *self.counts()).drop("_rule", "_late")
            if batch.files:
                entries = bronze.log_files(self.pipeline.spark, batch.files, load)
                rows = rows.unionByName(entries, allowMissingColumns=True)
            then = self.after.next(self.mark(batch), self.row)
            said = {"run": load.run, "files": 0, "batch": batch.number, **batch.metadata, **sitting.said}
            logend.append(self.log, self.dataset.name, self.after, rows, said, then)
        self.after = then
        return seen.get

    def mark(self, batch: Batch) -> Mark:
        newest = self.newest.isoformat() if self.newest else None
        run, load = self.pipeline.outcome.run, self.after.number + 1
        return Mark(self.epoch, run, batch.number, load, batch.source, dict(batch.offsets), newest)

    def counts(self) -> list[Column]:
        bad, late = F.col("_rule").isNotNull(), F.col("_late")
        found = [F.count(F.lit(1)).alias("rows"), F.count_if(bad).alias("quarantined"), F.count_if(late).alias("late")]
        found.append(_newest(F.col("_sent")).alias("sent"))
        if self.dataset.event_time:
            found.append(_newest(F.col(f"{self.row}.{self.dataset.event_time}")).alias("newest"))
        return found

    def look_again(self, batch: Batch) -> None:
        """After a load that was refused: stand behind what came between, if that was no other start of this stream."""
        followed, self.after = self.after.mark, logend.end(self.log)
        verdict = logend.verdict(self.mark(batch), self.after.mark, followed)
        if verdict == "resume":
            raise Resume
        if verdict == "stop":
            assert self.after.mark
            raise self.taken_over(self.after.mark)
        self.newest = self.newest_event()

    def taken_over(self, by: Mark) -> DrivetrainError:
        what = f"run {by.run} has started this stream since and writes it now"
        fix = "let that one go on; this one has lost nothing and written nothing twice"
        return DrivetrainError(Problem("taken-over", self.dataset.name, what, fix))

    def note(self, seen: Mapping[str, object]) -> None:
        """Figures of the load that was just committed; its bad and its late records into their tables."""
        rows, bad, late = (int(str(seen[name])) for name in ("rows", "quarantined", "late"))
        if bad:
            self.put_down(self.after.number)
        if late:
            self.put_late(self.after.number)
        newest = _time(seen.get("newest"))
        self.newest = max((time for time in (self.newest, newest) if time), default=None)
        figures = self.figures
        figures.batches, figures.rows_in, figures.commits = (
            figures.batches + 1,
            figures.rows_in + rows,
            figures.commits + 1,
        )
        figures.quarantined, figures.late = figures.quarantined + bad, figures.late + late
        figures.good += rows - bad - late
        figures.watermark, figures.load = self.late_before, self.after.number
        if sent := _time(seen["sent"]):
            figures.lag_seconds = (ops.now() - sent).total_seconds()

    def put_down(self, number: int) -> None:
        """The load's bad records into quarantine now; the batch judges them again when it takes the load."""
        pipeline, name, layouts = self.pipeline, self.dataset.name, self.pipeline.layouts(self.dataset)
        if number <= pipeline.table("silver", name).last_txn(name):
            return
        bad = bronze.records(self.log.read(), number - 1).where((F.col("_load") == number) & F.col(self.row).isNull())
        limit = pipeline.conf.settings.max_record_bytes
        judged = silver.parse(bad, self.dataset, layouts, limit, {}, careful=True)
        rows = quarantine.of_rows(
            judged.withColumn("_outcome", F.lit("quarantined")), self.dataset, pipeline.outcome.run
        )
        self.put(pipeline.quarantine, rows, number, quarantine.PROPERTIES)

    def put_late(self, number: int) -> None:
        """The load's late records into the table of late ones."""
        pipeline, name = self.pipeline, self.dataset.name
        found = self.log.read().where((F.col("_load") == number) & F.col(f"{self.row}._late"))
        rows = found.select(
            F.lit(name).alias("dataset"), F.col(f"{self.row}.{self.dataset.event_time}").alias("event_time"),
            F.lit(self.late_before).cast("timestamp").alias("late_before"),
            "raw", "_file", "_block", "_line", "_load", "_run",
        )  # fmt: skip
        self.put(pipeline.table(".", "late"), rows, number, NO_STATISTICS)

    def put(self, table: Table, rows: DataFrame, number: int, properties: Mapping[str, str]) -> None:
        """Append those of a load's rows that the table does not have yet."""
        if rows.isEmpty():
            return
        place = ["_file", "_block", "_line"]

        def append() -> None:
            new = rows
            if table.exists():
                held = table.read().where((F.col("dataset") == self.dataset.name) & (F.col("_load") == number))
                new = rows.join(held.select(*place), place, "left_anti").select(*rows.columns)
            txn = Txn(f"{self.dataset.name}:speed", number)
            table.append(new, txn, {"run": self.pipeline.outcome.run}, properties)

        again(append)  # it reads what it appends to, so Delta refuses it where another writer came between
        self.figures.commits += 1


def _newest(time: Column) -> Column:
    """Microseconds since 1970, as any timestamp, also one that Python's calendar does not have, comes over whole."""
    return F.max(F.unix_micros(time.cast("timestamp")))


def _time(micros: object) -> datetime | None:
    """None also for what lies beyond Python's calendar: such a clock says nothing of others."""
    try:
        return None if micros is None else EPOCH + timedelta(microseconds=int(str(micros)))
    except OverflowError:
        return None


def _parsed(time: str | None) -> datetime | None:
    return datetime.fromisoformat(time) if time else None
