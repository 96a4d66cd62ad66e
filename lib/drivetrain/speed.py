"""The speed layer: one stream for each dataset that has one, beside them the merges into silver and gold's refreshing.

Streams only append. Merging what they appended, publishing gold and the manifest is the batch layer's work and done by
its own code under its lock, here every so often, or by a batch job that runs beside this one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from drivetrain import job, kafka, landing, logend, ops, silver
from drivetrain.appender import Appender, Batch, Figures, Resume
from drivetrain.contracts import Conf, Dataset
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import is_remote, plain
from drivetrain.pipeline import Outcome, Pipeline
from drivetrain.progress import Progress
from drivetrain.session import FAILURES, cloned, files_of, reason

LONGEST_WAIT: Final = 60.0  # seconds before a failed stream is tried again
AGAIN: Final = 5.0  # seconds before merging is tried again, where a batch job holds the lock or it failed
TICK: Final = 0.2
PATIENCE: Final = 600.0  # seconds in which a batch job may end that holds the lock at the end
SILENCE: Final = 60.0  # seconds; Spark tells of an idle stream every 10
FINAL: Final = frozenset({"lost", "taken-over", "cores"})  # what time does not mend
COUNTED: Final = ("batches", "commits", "rows_in", "good", "quarantined", "late", "busy_seconds", "busy_squares")


def place(conf: Conf, dataset: Dataset) -> str:
    """The folder of what belongs to a dataset's stream: its lease, and Spark's checkpoint of this start."""
    return f"{conf.settings.warehouse}/_speed/{dataset.name}"


class Source:
    """One dataset's stream, in a thread of its own, until it is told to stop or has read what was there (``once``)."""

    def __init__(
        self, pipeline: Pipeline, dataset: Dataset, once: bool, stop: threading.Event, accepted: Sequence[str] = ()
    ) -> None:
        self.pipeline, self.dataset, self.once, self.stop, self.accepted = pipeline, dataset, once, stop, accepted
        self.appender = Appender(pipeline, dataset)
        self.batches, self.settled = 0, replace(self.figures)
        self.query: StreamingQuery | None = None
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self.run, name=f"speed-{dataset.name}", daemon=True)

    @property
    def figures(self) -> Figures:
        return self.appender.figures

    def run(self) -> None:
        """Read until the end; what fails for a passing cause is tried again, and goes on where the log ends."""
        self.pipeline.spark.sparkContext.setLocalProperty("spark.scheduler.pool", "speed")  # beside merges, not behind
        wait, begun = 0.5, True
        while not self.stop.is_set():
            batches = self.batches
            try:
                begun = begun or bool(self.appender.begin())
                self.read()
                return
            except Resume:
                begun = False
            except Exception as error:  # a thread that ends without a word would be a stream that stands still
                codes = {problem.code for problem in error.problems} if isinstance(error, DrivetrainError) else set()
                self.figures.failure = told(error)
                if self.once or codes & FINAL:
                    self.failure = error
                    self.pipeline.progress.say(f"{self.dataset.name}: {self.figures.failure}")
                    return
                wait = min(2 * wait, LONGEST_WAIT) if self.batches == batches else 1.0
                self.pipeline.progress.say(f"{self.dataset.name}: {self.figures.failure}; again in {wait:g} s")
                self.stop.wait(wait)
                begun = False

    def read(self) -> None:
        raise NotImplementedError

    def append(self, batch: Batch) -> None:
        began = time.monotonic()
        self.appender.append(batch)
        self.batches += 1
        self.figures.batch_seconds = time.monotonic() - began
        self.figures.busy_seconds += self.figures.batch_seconds
        self.figures.busy_squares += self.figures.batch_seconds**2
        self.figures.failure = None
        self.settled = replace(self.figures)  # whole: who asks in mid-batch would cut between rows and their seconds


class Folder(Source):
    """A landing folder: what the batch would load is loaded at each trigger."""

    listed = ""

    def read(self) -> None:
        assert self.dataset.stream
        while True:
            began = time.monotonic()
            rows = self.figures.rows_in
            self.look()
            seconds = max(time.monotonic() - began, 1e-9)
            self.figures.processed_rows_per_second = (self.figures.rows_in - rows) / seconds
            if self.once or self.stop.wait(max(0.0, self.dataset.stream.trigger_seconds - seconds)):
                return

    def look(self) -> None:
        """Load what is new, if the folder has changed at all: what was refused once is not refused at each trigger."""
        files = self.pipeline.files(self.dataset.path)
        there = landing.arrivals(self.dataset, self.pipeline.conf.settings.settle_seconds, files)
        if (listed := landing.listing(there)) != self.listed:
            self.pipeline.looked_into.pop(self.dataset.name, None)
            self.pipeline.ingest(self.dataset, self.take)
            self.pipeline.steps.done.clear()  # ops.speed tells of it
            self.listed = listed

    def take(self, dataset: Dataset, records: DataFrame, metadata: Any, layouts: Any, files: Sequence[Any] = ()) -> int:
        before = self.figures.rows_in
        self.append(Batch(records, self.batches, layouts, files=files, metadata=metadata))
        return self.figures.rows_in - before + len(files)


class Topic(Source):
    """A topic of Kafka, by Structured Streaming."""

    source = folder = ""
    told: Exception | None = None
    relayed: StreamingQuery | None = None

    def read(self) -> None:
        spark = self.pipeline.spark
        with kafka.explained(self.dataset):
            start = self.start()
        old = f"{place(self.pipeline.conf, self.dataset)}/checkpoint"
        folder = f"{old}/{self.pipeline.outcome.run}-{time.monotonic_ns()}"
        files = files_of(folder, spark)
        files.remove(old)  # what killed starts have left; Spark follows one that it finds, wherever the log ends
        self.told, self.folder, self.relayed = None, folder, None
        try:
            self.query = self.started(start, folder)
            self.relayed = self.relay(start)
            self.follow(self.query)
        finally:
            for query in filter(None, (self.query, self.relayed)):
                query.stop()
            self.query = None
            files.remove(folder)

    def started(self, start: Mapping[int, int], folder: str) -> StreamingQuery:
        """Spark's query from those offsets on."""
        assert self.dataset.stream
        spark, layouts = self.pipeline.spark, self.pipeline.layouts(self.dataset)

        def take(records: DataFrame, number: int) -> None:
            if self.stop.is_set() or self.folder != folder:  # or another query has taken its place
                return
            try:
                ends = kafka.ends(folder, number, spark)
                if ends != start or number:  # what is read once, and is up to date, begins with an empty batch
                    offsets = {str(partition): end for partition, end in ends.items()}
                    self.append(Batch(records, number, layouts, offsets, self.source))
            except Exception as error:
                self.told = error  # Spark passes on its text only
                raise

        milliseconds = f"{self.dataset.stream.trigger_seconds * 1000:.0f} milliseconds"
        trigger: dict[str, Any] = {"availableNow": True} if self.once else {"processingTime": milliseconds}
        # Judged here, and not in each micro-batch: then Spark plans and compiles it once.
        judged = self.appender.judged(kafka.read(spark, self.dataset, start, self.most()), layouts)
        writer = judged.writeStream.foreachBatch(take)
        # Spark cannot make a path of hdfs:///x, which has no host.
        writer = writer.option("checkpointLocation", plain(folder) if ":///" in folder else folder)
        return writer.queryName(self.dataset.name).trigger(**trigger).start()

    def most(self) -> int:
        """Messages of a micro-batch at most; where nobody waits for them, as many as the contract allows."""
        stream, topic = self.dataset.stream, self.dataset.kafka
        assert stream
        assert topic
        if self.once or stream.latency_seconds is None:
            return topic.max_messages
        from drivetrain import pace  # half a second, of scipy, that only such streams need

        brought = pace.known(self.pipeline.table("ops", "speed"), self.dataset.name)
        made = pace.bound(stream, topic.max_messages, brought)
        self.pipeline.progress.say(f"{self.dataset.name}: at most {int(made.value):,} messages at once: {made.because}")
        return int(made.value)

    def follow(self, query: StreamingQuery) -> None:
        """Until it ends, or is told to."""
        while query.isActive and not self.stop.is_set():
            time.sleep(TICK)
            self.watch()
            if self.relayed and (failure := self.relayed.exception()):
                with kafka.explained(self.dataset):
                    raise failure
        while query.isActive and query.status["isTriggerActive"]:  # its batches are empty from now on
            time.sleep(TICK / 10)
        if self.told:
            raise self.told
        if failure := query.exception():
            with kafka.explained(self.dataset):
                raise failure

    def start(self) -> dict[int, int]:
        """The offsets to go on from: behind the log's, or where that is not possible any more, and somebody has said
        so, behind what is lost.

        Raises:
            DrivetrainError: messages are gone for good that the log does not have.
        """
        now, mark = kafka.look(self.pipeline.spark, self.dataset), self.appender.after.mark
        done = {int(p): offset for p, offset in mark.offsets.items()} if mark else {}
        before = mark.source if mark else ""
        parts = kafka.lost(done, before, now)
        lost, names = (
            "; ".join(map(str, parts)),
            {f"{self.dataset.name}:{part.partition}:{part.since}" for part in parts},
        )
        if not names <= set(self.accepted):
            words = [f"--accept-loss={name}" for name in sorted(names)]
            fix = f"restore them; or go on without, which is written down: {' '.join(words)}"
            what = f"messages are gone that the log does not have: {lost}"
            raise DrivetrainError(Problem("lost", self.dataset.name, what, fix))
        if lost:
            what = f"accepted as lost: {lost}"
            ops.alert(self.pipeline.table("ops", "alerts"), self.pipeline.outcome.run, "lost", self.dataset.name, what)
        self.source = now.id
        return kafka.starts(done, before, now)

    def relay(self, start: Mapping[int, int]) -> StreamingQuery | None:
        """Good records to the contract's output, each as it comes; the log takes them by its own way. At least once: a
        start goes on from the last of Spark's checkpoints, and consumers know a repeat by its place.

        Raises:
            DrivetrainError: there are too few cores, as in real-time mode each partition keeps one.
        """
        assert self.dataset.stream
        topic, spark = self.dataset.stream.output, self.pipeline.spark
        if not topic or self.once:
            return None
        cores = spark.sparkContext.defaultParallelism
        if cores <= len(start):
            what = f"output needs a core for each of {len(start)} partitions and one for the log; there are {cores}"
            fix = "more cores (--set 'spark.spark.master=local[8]', or executors), or leave output out"
            raise DrivetrainError(Problem("cores", self.dataset.name, what, fix))
        limit, layouts = self.pipeline.conf.settings.max_record_bytes, self.pipeline.layouts(self.dataset)
        records = kafka.read_now(spark, self.dataset, start)
        good = silver.parse(records, self.dataset, layouts, limit, {}, careful=True).where(F.col("_rule").isNull())
        columns = [column.name for column in self.dataset.columns]
        value = F.to_json(F.struct(*columns, "_file", "_block", "_line")).alias("value")
        key = F.to_json(F.struct(*self.dataset.key)) if self.dataset.key else F.lit(None).cast("string")
        folder = f"{place(self.pipeline.conf, self.dataset)}/output"
        folder = plain(folder) if ":///" in folder else folder
        return kafka.write_now(good.select(key.alias("key"), value), self.dataset, topic, folder)

    def watch(self) -> None:
        progress = self.query.lastProgress if self.query else None
        if not progress:
            return
        figures = self.figures
        figures.input_rows_per_second = progress["inputRowsPerSecond"] or 0.0
        figures.processed_rows_per_second = progress["processedRowsPerSecond"] or 0.0
        behind = (progress["sources"][0].get("metrics") or {}).get("maxOffsetsBehindLatest")
        figures.lag_offsets = None if behind is None else int(behind)
        figures.state_rows = sum(operator["numRowsTotal"] for operator in progress["stateOperators"])
        at = datetime.fromisoformat(progress["timestamp"].replace("Z", "+00:00"))
        silent = (ops.now() - at).total_seconds()
        # Where the brokers are gone, Spark waits without a word.
        figures.failure = f"nothing heard of it for {silent:.0f} s: are the brokers up?" if silent > SILENCE else None


class Speed:
    """All streams of a job, and what is done beside them."""

    def __init__(
        self,
        spark: SparkSession,
        conf: Conf,
        names: Sequence[str],
        progress: Progress,
        once: bool,
        accepted: Sequence[str] = (),
    ) -> None:
        self.spark, self.conf, self.progress, self.once, self.accepted = spark, conf, progress, once, accepted
        self.datasets = [d for d in conf.datasets.values() if d.stream and (not names or d.name in names)]
        self.stop = threading.Event()
        self.run_id = job.run_id()
        self.outcome = Outcome(self.run_id)
        self.sources: list[Source] = []
        self.merged_at = self.refreshed_at = time.monotonic()
        self.merged_rows = self.refreshed_rows = 0
        self.counted: dict[str, Figures] = {}

    def run(self, show: Callable[[Sequence[Figures]], None]) -> Outcome:
        """Stream until told to stop, or with ``once`` until what was there is published.

        Raises:
            DrivetrainError: no dataset has a stream, or another process streams one of them.
        """
        if not self.datasets:
            fix = "give one the customProperty stream"
            raise DrivetrainError(Problem("no-stream", "arguments", "no dataset that was asked for has a stream", fix))
        with ExitStack() as held:
            for dataset in self.datasets:
                self.lease(dataset, held)
            self.catch_up()
            for dataset in self.datasets:
                kind = Topic if dataset.kafka else Folder
                self.sources.append(kind(self.pipeline(), dataset, self.once, self.stop, self.accepted))
            try:
                self.watch(show)
            finally:  # nobody streams without its lease
                self.stop.set()
                for source in self.sources:
                    if source.thread.ident:
                        source.thread.join()
            show([source.figures for source in self.sources])
            self.merge_last()
        self.note_failures()
        return self.outcome

    def watch(self, show: Callable[[Sequence[Figures]], None]) -> None:
        """Start the streams, and show and merge until they end or are told to."""
        for source in self.sources:
            source.thread.start()
        with ThreadPoolExecutor(1) as beside:
            work = beside.submit(self.beside)
            while any(source.thread.is_alive() for source in self.sources) and not self.stop.wait(TICK):
                show([source.figures for source in self.sources])
                if work.done():
                    work = beside.submit(self.beside)

    def merge_last(self) -> None:
        """Merge what is left, when a batch job that is at it has ended."""
        deadline = time.monotonic() + PATIENCE
        while not self.merge():
            if time.monotonic() > deadline:
                what = "another job holds the warehouse's lock; what came last is in the log, not yet in silver"
                fix = "the next batch takes it"
                self.outcome.problems.append(Problem("locked", self.conf.settings.warehouse, what, fix))
                return
            time.sleep(AGAIN)

    def lease(self, dataset: Dataset, held: ExitStack) -> None:
        """Raises:
        DrivetrainError: another process streams the dataset, and it says which.
        """
        try:
            held.enter_context(self.pipeline().leased(dataset))
        except BlockingIOError as error:
            what = f"{error.strerror or 'another process'} streams this dataset already"
            slow = "; HDFS frees the lock of one that was killed within a minute"
            fix = f"let it, or end it first{slow if is_remote(self.conf.settings.warehouse) else ''}"
            raise DrivetrainError(Problem("streaming", dataset.name, what, fix)) from None

    def pipeline(self) -> Pipeline:
        """Over a session of its own: streams, like merges, set what only they want."""
        return Pipeline(cloned(self.spark), self.conf, self.run_id, "speed", self.progress)

    def catch_up(self) -> None:
        """Take into silver what an earlier start has left.

        Raises:
            DrivetrainError: of that the log has rows in another form of the contract, or untyped, which the view cannot
                show, and they cannot be merged.
        """
        if any(end.number > done for _, end, done in self.ends()):
            self.merge_last()
        for dataset, end, done in self.ends():
            if not end.shows(silver.row_column(dataset), done):
                what = "the log has rows in another form of the contract, which silver has not taken"
                problem = Problem(
                    "contract", f"{dataset.where} ({dataset.name})", what, "run batch, and see why it fails"
                )
                raise DrivetrainError(*self.outcome.problems, problem)

    def ends(self) -> list[tuple[Dataset, logend.End, int]]:
        """Each dataset, its log's end, and the last load in silver."""
        pipeline = self.pipeline()
        return [
            (one, logend.end(pipeline.table("bronze", one.name)),
             max(pipeline.table("silver", one.name).last_txn(one.name), 0))
            for one in self.datasets
        ]  # fmt: skip

    def beside(self) -> None:
        """Merge, or refresh gold, where it is due."""
        rows, now = sum(source.figures.rows_in for source in self.sources), time.monotonic()
        seconds = min(d.stream.merge_seconds for d in self.datasets if d.stream)
        most = min(d.stream.merge_rows for d in self.datasets if d.stream)
        new = rows - self.merged_rows
        merge_due = new > 0 and (new >= most or now - self.merged_at >= seconds)
        refresh_due = rows > self.refreshed_rows and now - self.refreshed_at >= self.conf.settings.refresh_seconds
        if not (merge_due or refresh_due):
            return
        try:
            merged = self.merge(only_refresh=not merge_due)
        except Exception as error:  # streams go on, and what they bring waits in the log
            self.progress.say(told(error))
            merged = False
        if not merged:
            self.stop.wait(AGAIN)
            return
        self.refreshed_at, self.refreshed_rows = time.monotonic(), rows
        if merge_due:
            self.merged_at, self.merged_rows = self.refreshed_at, rows

    def merge(self, only_refresh: bool = False) -> bool:
        """The batch layer's steps for these datasets, or gold's refreshing only; not while another job does it."""
        files = files_of(self.conf.settings.warehouse, self.spark)
        try:
            with job.lock(self.conf, files, self.spark.sparkContext.applicationId):
                pipeline = Pipeline(cloned(self.spark), self.conf, job.run_id(), "speed", self.progress)
                if only_refresh:
                    with pipeline.problem_of("manifest"):
                        pipeline.publish_manifest()
                        pipeline.show_names()
                    with pipeline.problem_of("ops"):
                        pipeline.write_ops()
                else:
                    pipeline.transform([dataset.name for dataset in self.datasets], ingest=False)
        except DrivetrainError as error:
            if any(problem.code != "locked" for problem in error.problems):
                raise
            return False  # a batch job does it now
        brought = self.brought()
        ops.write(pipeline.table("ops", "speed"), brought, {}, pipeline.outcome.run)
        for row in brought:
            if row.late:
                what = f"{row.late} late events up to load {row.last_load}"
                self.progress.say(f"{row.dataset}: {what}; they enter with the next batch")
                ops.alert(pipeline.table("ops", "alerts"), pipeline.outcome.run, "late", row.dataset, what)
        self.outcome.ledger = ops.together([*self.outcome.ledger, *pipeline.outcome.ledger])
        self.outcome.published = list(dict.fromkeys((*self.outcome.published, *pipeline.outcome.published)))
        self.outcome.notes = pipeline.outcome.notes
        for problem in pipeline.outcome.problems:
            self.progress.say(str(problem))
        self.outcome.problems = list(pipeline.outcome.problems)
        return True

    def brought(self) -> list[ops.SpeedRow]:
        """What each stream has brought since the last time."""
        found = []
        for source in self.sources:
            whole = source.settled if source.thread.is_alive() else source.figures
            now = replace(whole, lag_offsets=source.figures.lag_offsets)
            then, self.counted[now.dataset] = self.counted.get(now.dataset, Figures(now.dataset)), now
            if now.batches > then.batches:
                counts = {name: getattr(now, name) - getattr(then, name) for name in COUNTED}
                shown = {name: getattr(now, name) for name in ("dataset", "lag_offsets", "lag_seconds", "watermark")}
                found.append(ops.SpeedRow(run=self.run_id, last_load=now.load, at=ops.now(), **counts, **shown))
        return found

    def note_failures(self) -> None:
        for source in self.sources:
            if isinstance(source.failure, DrivetrainError):
                self.outcome.problems += source.failure.problems
            elif source.failure:
                fix = "start it again when the cause is gone: it goes on where the log ends"
                self.outcome.problems.append(Problem("stream", source.dataset.name, told(source.failure), fix))


def told(failure: Exception) -> str:
    """What it says, on one line."""
    if isinstance(failure, FAILURES):
        return reason(failure)
    return str(failure) if isinstance(failure, (DrivetrainError, OSError)) else f"{type(failure).__name__}: {failure}"
