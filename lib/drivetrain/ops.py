"""What each run did: a row for each step, with Spark's own figures, and the ledger. Forecasts learn from it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from drivetrain.sink import Table, Txn

SETTINGS: Final = ("spark.sql.shuffle.partitions", "spark.sql.adaptive.enabled", "spark.sql.autoBroadcastJoinThreshold")
SUMMED: Final = ("files", "rows_in", "good", "quarantined", "duplicate", "late", "inserted", "updated", "superseded",
                 "requeued")  # fmt: skip
TYPES: Final = {"str": "string", "int": "bigint", "float": "double", "bool": "boolean", "datetime": "timestamp"}


@dataclass
class Step:
    """One step of a run. Bytes, rows and task seconds are sums over its Spark tasks; memory is the largest task's peak.
    ``slowest`` is, of the stage with most task seconds, the longest task / the median. What was expected is of before
    it ran, by so many earlier runs; ``decisions`` are those of tune, as JSON, and ``partitions`` those of a shuffle."""

    run: str
    job: str
    step: str
    dataset: str
    started: datetime
    seconds: float = 0.0
    rows: int = 0
    input_rows: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    shuffle_read_bytes: int = 0
    shuffle_write_bytes: int = 0
    spill_bytes: int = 0
    peak_memory_bytes: int = 0
    cpu_seconds: float = 0.0
    spark_jobs: int = 0
    stages: int = 0
    shuffles: int = 0
    tasks: int = 0
    settings: str = ""
    failed: bool = False
    expected_bytes: int = 0
    expected_shuffle_bytes: int = 0
    decisions: str = ""
    forecast_runs: int = 0
    partitions: int = 0
    short_of_memory: bool = False
    cores: int = 0
    task_seconds: float = 0.0
    gc_seconds: float = 0.0
    slowest: float = 0.0


@dataclass(frozen=True)
class LedgerRow:
    """What became of the records of one dataset in one run: rows_in = good + quarantined + duplicate + late."""

    run: str
    dataset: str
    first_load: int
    last_load: int
    files: int
    rows_in: int
    good: int
    quarantined: int
    duplicate: int
    late: int
    inserted: int
    updated: int
    superseded: int
    requeued: int
    bronze_version: int
    silver_version_read: int
    silver_version: int
    at: datetime

    @property
    def adds_up(self) -> bool:
        written = self.inserted + self.updated + self.superseded
        return self.rows_in == self.good + self.quarantined + self.duplicate + self.late and self.good == written


@dataclass(frozen=True)
class SpeedRow:
    """What a stream brought up to a load, since its row before: rows_in = good + quarantined + late. The batch that
    takes those loads counts them in the ledger, the late ones among the good; which are repeats is known then.
    ``busy_squares`` is the sum of the squares of the micro-batches' seconds, which add up to ``busy_seconds``."""

    run: str
    dataset: str
    last_load: int
    batches: int
    commits: int
    rows_in: int
    good: int
    quarantined: int
    late: int
    lag_offsets: int | None
    lag_seconds: float | None
    watermark: datetime | None
    at: datetime
    busy_seconds: float
    busy_squares: float

    @property
    def adds_up(self) -> bool:
        return self.rows_in == self.good + self.quarantined + self.late


@dataclass(frozen=True)
class CheckRow:
    """A rule's measure in one run."""

    run: str
    layer: str
    dataset: str
    rule: str
    action: str
    measured: float | None
    expected: str
    passed: bool
    at: datetime


@dataclass(frozen=True)
class ProfileRow:
    """What assess saw of one column of a feed; ``note`` tells of drift against the contract or the last run."""

    run: str
    dataset: str
    column: str
    sampled: int
    nulls: int
    kind: str
    smallest: str | None
    largest: str | None
    newest_file: datetime | None
    note: str
    at: datetime


@dataclass(frozen=True)
class VerdictRow:
    """What a model at its stage did to some loads: rows that it judged, flagged, and of these removed; ``held`` tells
    why none was removed although it enforces. ``scores`` is a histogram as JSON: edges, and rows up to each; ``groups``
    a JSON list of [group, judged, flagged], those of which most was flagged."""

    run: str
    dataset: str
    first_load: int
    last_load: int
    version: int
    stage: str
    judged: int
    flagged: int
    removed: int
    held: str | None
    scores: str
    groups: str
    at: datetime


@dataclass(frozen=True)
class DriftRow:
    """How far a feature of the judged rows, or their score, lies from the model's reference: the population stability
    index, and the largest difference of the two distributions (Kolmogorov, Smirnov). ``rate`` is of all together: above
    0.2 the model is stale."""

    run: str
    dataset: str
    version: int
    feature: str
    judged: int
    psi: float
    distance: float
    drifted: bool
    rate: float
    at: datetime


@dataclass(frozen=True)
class TrialRow:
    """Of ``rows`` judged rows of some loads, of many a sample, those that the ``version`` in shadow would flag, and
    those that the ``acting`` one has flagged: both, only one, only the other."""

    run: str
    dataset: str
    first_load: int
    last_load: int
    version: int
    acting: int
    rows: int
    both: int
    only_old: int
    only_new: int
    at: datetime


@dataclass
class Steps:
    """Collects the steps of one run."""

    spark: SparkSession
    run: str
    job: str
    done: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, dataset: str) -> Iterator[Step]:
        """Time what happens inside and read Spark's figures for it; the caller sets ``rows``."""
        settings = ", ".join(f"{key}={self.spark.conf.get(key, None)}" for key in SETTINGS)
        step = Step(self.run, self.job, name, dataset, now(), settings=settings)
        # Several threads of a run may be at a step at once.
        tag, context, began = uuid.uuid4().hex, self.spark.sparkContext, time.perf_counter()
        context.addJobTag(tag)
        try:
            yield step
        except BaseException:
            step.failed = True
            raise
        finally:
            context.removeJobTag(tag)
            step.seconds = round(time.perf_counter() - began, 3)
            _add_figures(self.spark, tag, step)
            self.done.append(step)


def together(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    """One row for each dataset, from the first load of its rows to their last: what a long run has done in all."""
    found: dict[str, LedgerRow] = {}
    for row in rows:
        before = found.get(row.dataset)
        sums = {name: getattr(before, name) + getattr(row, name) for name in SUMMED} if before else {}
        first = min(before.first_load, row.first_load) if before else row.first_load
        found[row.dataset] = replace(row, first_load=first, **sums)
    return list(found.values())


def now() -> datetime:
    """The present, in UTC, as Spark takes it."""
    return datetime.now(timezone.utc)


def _add_figures(spark: SparkSession, tag: str, step: Step) -> None:
    """Sum up the stages of the tagged jobs from Spark's status store, which is kept with the UI off too."""
    scala = spark.sparkContext._jsc.sc()
    tracker, store = scala.statusTracker(), scala.statusStore()
    step.cores, ran = cores(spark), list[_Stage]()
    for job_id in tracker.getJobIdsForTag(tag):
        found = tracker.getJobInfo(job_id)
        if found.isEmpty():
            continue
        step.spark_jobs += 1
        for stage_id in found.get().stageIds():
            try:
                stage = store.lastStageAttempt(stage_id)
            except Py4JJavaError:  # Spark keeps the latest stages only; a step does not fail for its figures
                continue
            if stage.numCompleteTasks() == 0:
                continue
            step.stages += 1
            step.tasks += stage.numCompleteTasks()
            step.input_rows += stage.inputRecords()
            step.input_bytes += stage.inputBytes()
            step.output_bytes += stage.outputBytes()
            step.shuffle_read_bytes += stage.shuffleReadBytes()
            step.shuffle_write_bytes += stage.shuffleWriteBytes()
            step.shuffles += stage.shuffleWriteBytes() > 0
            step.spill_bytes += stage.diskBytesSpilled()
            step.cpu_seconds += stage.executorCpuTime() / 1e9
            step.gc_seconds += stage.jvmGcTime() / 1e3
            spent = stage.executorRunTime() / 1e3
            step.task_seconds += spent
            ran.append(_Stage(stage_id, stage.attemptId(), spent, stage.peakExecutionMemory()))
    for stage in sorted(ran, key=lambda one: one.peaks, reverse=True):
        if stage.peaks <= step.peak_memory_bytes:  # the sum of its tasks' peaks is not above what one had
            break
        step.peak_memory_bytes = max(step.peak_memory_bytes, int(_most(spark, stage, "peakExecutionMemory")[1]))
    if ran:
        median, longest = _most(spark, max(ran, key=lambda one: one.seconds), "executorRunTime")
        step.slowest = round(longest / median, 2) if median else 0.0


@dataclass(frozen=True)
class _Stage:
    """Of its tasks: all their seconds, and the sum of their peaks of memory, in bytes."""

    id: int
    attempt: int
    seconds: float
    peaks: int


def cores(spark: SparkSession) -> int:
    """Those of all executors that there are now."""
    found = spark.sparkContext._jsc.sc().statusStore().executorList(True)
    return sum(int(found.apply(i).totalCores()) for i in range(found.size()))


def _most(spark: SparkSession, stage: _Stage, what: str) -> tuple[float, float]:
    """Median and largest of one figure of the stage's tasks; zeros where Spark has let them go."""
    gateway: Any = spark.sparkContext._gateway
    quantiles = gateway.new_array(gateway.jvm.double, 2)
    quantiles[0], quantiles[1] = 0.5, 1.0
    found = spark.sparkContext._jsc.sc().statusStore().taskSummary(stage.id, stage.attempt, quantiles)
    if not found.isDefined():
        return 0.0, 0.0
    figures = getattr(found.get(), what)()
    return float(figures.apply(0)), float(figures.apply(1))


def write(table: Table, rows: Sequence[Any], metadata: Mapping[str, Any], run: str, txn: Txn | None = None) -> None:
    """Append dataclass rows, all of one kind, to an ops table; no rows, no commit. Without ``txn`` Delta does not look
    for an earlier commit, for which it would compute the table's state: a run that writes once needs none."""
    if not rows:
        return
    kinds = {f.name: TYPES[str(f.type).split(" ")[0]] for f in fields(rows[0])}
    schema = ", ".join(f"`{column}` {kind}" for column, kind in kinds.items())
    frame = table.spark.createDataFrame([tuple(asdict(row).values()) for row in rows], schema).coalesce(1)
    table.append(frame, txn, {"run": run, **metadata}, {})


def alert(table: Table, run: str, kind: str, dataset: str, what: str) -> None:
    """Append one alert, for a person or a program that watches."""
    row = [(now(), run, kind, dataset, what)]
    frame = table.spark.createDataFrame(row, "at timestamp, run string, kind string, dataset string, what string")
    table.append(frame.coalesce(1), Txn(f"{run}:{kind}:{dataset}:{what}", 1), {"run": run}, {})


def ledger_row(values: Mapping[str, Any]) -> LedgerRow:
    """A ledger row from a silver commit's metadata."""
    return LedgerRow(**{**values, "at": datetime.fromisoformat(str(values["at"]))})
