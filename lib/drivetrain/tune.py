"""Settings from forecasts, each with its reason: a rule from sizes and cores first, and what earlier runs showed.

Adaptive execution joins partitions that a plan has too many of; it seldom makes more, and knows neither the last runs
nor how large a table is in memory. So the number of partitions at the start, and what may be broadcast, are set for
each step before it is planned, and never while it runs.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, TypeVar

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from drivetrain import history
from drivetrain.decision import Decision
from drivetrain.history import SURPRISE, History, Run, step_key
from drivetrain.ops import Step
from drivetrain.session import FAILURES, causes, files_of
from drivetrain.sink import Table, session_confs

SHUFFLE: Final = "spark.sql.shuffle.partitions"
BROADCAST: Final = "spark.sql.autoBroadcastJoinThreshold"
SNAPSHOT: Final = "spark.databricks.delta.snapshotPartitions"
SPARKS_OWN: Final = {SHUFFLE: "200", BROADCAST: "10485760", SNAPSHOT: "50"}

# A drifted step's, and a second try's after memory was short: slower than others, but they need the least of it.
CONSERVATIVE: Final = {
    SHUFFLE: "200", BROADCAST: "-1", "spark.sql.adaptive.enabled": "true",
    "spark.sql.adaptive.skewJoin.enabled": "true", "spark.sql.adaptive.autoBroadcastJoinThreshold": "-1",
}  # fmt: skip

MB: Final = 1 << 20
LEAST: Final = MB  # of shuffled bytes for a partition of its own
FULL: Final = 32 * MB  # of shuffled bytes in a partition, which are several times as many as objects
MOST_PARTITIONS: Final = 10_000
PRIOR: Final = 3.0  # shuffled bytes / stored ones, of a step that has not run yet
ACTIONS: Final = 50_000  # files of a Delta table for each partition of its snapshot
HEAP_SHARE: Final = 8  # a broadcast table may fill this part of the driver's heap; it is held there more than once
UNHEARD_OF: Final = 200.0  # bytes in memory / stored ones that tables with real columns do not reach
TEXT: Final = 5.0  # the same, of text, whose length no type tells
ROW_OVERHEAD: Final = 64  # bytes of a hashed row beside its values
ROW_HEADER: Final = 8  # Spark's estimate of a row beside its columns
NARROWEST: Final = 8  # bytes of the columns that a query may be left with
WORSE: Final = 1.2
OUT_OF_MEMORY: Final = ("OutOfMemory", "Not enough memory to build and broadcast", "UNABLE_TO_ACQUIRE_MEMORY")


@dataclass(frozen=True)
class Relation:
    """A table that a step reads: stored bytes and files; rows, 0 where they do not matter, and bytes in one by its
    types."""

    bytes: int
    rows: int
    files: int
    width: int

    def stored_as(self, width: float) -> float:
        """Bytes that Spark takes it for where a query reads columns of so many bytes a row."""
        return self.bytes * (ROW_HEADER + width) / (ROW_HEADER + self.width)

    def in_memory(self, width: float) -> float:
        """Bytes that those columns take as a hashed table."""
        return self.rows * (width + ROW_OVERHEAD)

    def too_large_from(self, room: float) -> float:
        """What Spark takes it for when, with as few columns as that, it fills ``room`` in memory; infinite where it
        does not even with all of them."""
        if self.in_memory(self.width) <= room:
            return math.inf
        return self.stored_as(max(room / self.rows - ROW_OVERHEAD, min(NARROWEST, self.width)))


@dataclass(frozen=True)
class Machine:
    """What the application may use at most: cores over all executors, and the driver's heap in bytes."""

    cores: int
    driver_heap: int

    @property
    def room(self) -> float:
        """Bytes that one broadcast table may take in memory."""
        return self.driver_heap / HEAP_SHARE


@dataclass(frozen=True)
class Forecast:
    """Bytes that a step will shuffle: the most that is likely; and the number of runs that tell so."""

    bytes: int
    runs: int


# --- what will be ---


def forecast(input_bytes: int, runs: Sequence[Run]) -> Forecast:
    """From the ratio of shuffled to read bytes: the largest of the runs at most 10 times larger or smaller, else the
    prior's, or history's where that is more: no run tells of such a size."""
    ratios = [run.shuffle_bytes / run.input_bytes for run in runs if run.input_bytes]
    near = [
        run.shuffle_bytes / run.input_bytes for run in runs if run.input_bytes and _alike(run.input_bytes, input_bytes)
    ]
    ratio = max(near) if near else max([PRIOR, *ratios])
    return Forecast(math.ceil(ratio * input_bytes), len(near))


def _alike(one: int, other: int) -> bool:
    return other / 10 <= one <= other * 10


def drifted(runs: Sequence[Run]) -> bool:
    """Whether history is no guide: one of the last three forecasts was far off. Three good ones end that."""
    return any(run.surprised for run in runs[-3:])


# --- what to set ---


def decide(
    machine: Machine, relations: Sequence[Relation], input_bytes: int, runs: Sequence[Run],
    frozen: Mapping[str, str] = MappingProxyType({}),
) -> list[Decision]:  # fmt: skip
    """Every setting of a step that reads the relations, of which ``input_bytes`` go into its shuffles."""
    if frozen:
        return [_fixed(key, value, "tune freeze has fixed it", "frozen") for key, value in frozen.items()]
    if drifted(runs):
        why = f"one of its last 3 runs shuffled over {SURPRISE:g} times more or less than forecast"
        return [_fixed(key, value, why, "conservative") for key, value in CONSERVATIVE.items()]
    made = [shuffle_partitions(machine, input_bytes, runs), snapshot_partitions(relations)]
    return [*made, broadcast_threshold(machine, relations)] if relations else made


def _fixed(setting: str, value: str, because: str, confidence: str) -> Decision:
    return Decision(setting, value, because, SPARKS_OWN.get(setting, "true"), (), confidence)


def shuffle_partitions(machine: Machine, input_bytes: int, runs: Sequence[Run]) -> Decision:
    """Of small volumes one partition for each MB, of others twice the cores, of large ones what keeps a partition
    below 32 MB; half of that where such a run spilled; and a number that did better in earlier runs before all."""
    told = forecast(input_bytes, runs)
    spilled = any(run.spill_bytes and _alike(run.input_bytes, input_bytes) for run in runs)
    number = partitions(told.bytes, machine.cores, FULL // 2 if spilled else FULL)
    why = f"{told.bytes / MB:,.1f} MB to shuffle on {machine.cores} cores"
    why += f", by {told.runs} run{'s' if told.runs != 1 else ''}" if told.runs else ", by a rule: no such run yet"
    why += "; smaller ones, as it spilled before" if spilled else ""
    better = taken_back(number, input_bytes, runs)
    alternatives = [str(n) for n in sorted({machine.cores, 2 * machine.cores, 200, *([number] if better else [])})]
    if better:
        why = f"with {number} it took {better.ratio:.1f} times the CPU of its runs with {better.partitions}"
        number = better.partitions
    kept = tuple(text for text in alternatives if text != str(number))
    return Decision(SHUFFLE, str(number), why, SPARKS_OWN[SHUFFLE], kept, "learned" if told.runs else "rule")


def partitions(volume: int, cores: int, full: int = FULL) -> int:
    """The number for that many shuffled bytes."""
    if volume > full * 2 * cores:
        return min(math.ceil(volume / full / cores) * cores, MOST_PARTITIONS)
    return max(1, min(2 * cores, math.ceil(volume / LEAST)))


@dataclass(frozen=True)
class Better:
    """A number of partitions that earlier runs did better with, and how much more CPU the other took."""

    partitions: int
    ratio: float


def taken_back(number: int, input_bytes: int, runs: Sequence[Run]) -> Better | None:
    """What is known to be better than ``number``: only numbers that ran, on inputs of about this size."""
    costs: dict[int, list[float]] = {}
    for run in runs:
        if run.input_bytes and input_bytes / 2 <= run.input_bytes <= input_bytes * 2:
            costs.setdefault(run.partitions, []).append(run.cpu_seconds / run.input_bytes)
    if number not in costs:
        return None
    median = {tried: statistics.median(found) for tried, found in costs.items()}
    best = min(median, key=lambda tried: (median[tried], tried))
    ratio = median[number] / median[best] if median[best] else 1.0
    return Better(best, ratio) if best != number and ratio > WORSE else None


def snapshot_partitions(relations: Sequence[Relation]) -> Decision:
    """Delta computes a table's state in as many tasks; with its 50 these cost small tables more than all else."""
    files = max((relation.files for relation in relations), default=0)
    number = max(2, min(50, math.ceil(files / ACTIONS)))
    return Decision(SNAPSHOT, str(number), f"{files:,} files at most in a table", SPARKS_OWN[SNAPSHOT], ("50",), "rule")


def broadcast_threshold(machine: Machine, relations: Sequence[Relation]) -> Decision:
    """Spark compares the threshold with stored bytes, of the columns that a query reads; these are a fiftieth of those
    in memory at times. So it is the largest, up to Spark's own, below which every table, whole or in part, fits into
    its part of the driver's heap."""
    room, own = machine.room, int(SPARKS_OWN[BROADCAST])
    limits = [(relation.too_large_from(room), relation) for relation in relations]
    limit, worst = min(limits, key=lambda one: one[0], default=(math.inf, None))
    if worst and limit <= min(own, room / TEXT):
        why = f"{worst.rows:,} rows, {worst.bytes / MB:,.1f} MB stored, in part fill {room / MB:,.0f} MB in memory"
    elif room / TEXT <= own:
        limit, why = room / TEXT, f"text may take {TEXT:g} times its stored size, and a table has {room / MB:,.0f} MB"
    else:
        why = f"no table below 10 MB takes over {room / MB:,.0f} MB in memory"
        return Decision(BROADCAST, str(own), why, SPARKS_OWN[BROADCAST], ("-1",), "rule")
    value = max(math.ceil(limit) - 1, -1)
    return Decision(BROADCAST, str(value), why, SPARKS_OWN[BROADCAST], ("-1", str(own)), "rule")


# --- the session ---


def machine(spark: SparkSession) -> Machine:
    """What the session's application may come to use, by its settings."""
    conf, cores = spark.sparkContext.getConf(), spark.sparkContext.defaultParallelism
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        most = conf.get("spark.dynamicAllocation.maxExecutors")
        cores = int(most) * int(conf.get("spark.executor.cores", "1") or 1) if most else cores
    jvm: Any = spark._jvm
    return Machine(max(1, cores), int(jvm.java.lang.Runtime.getRuntime().maxMemory()))


def relation(table: Table, machine: Machine) -> Relation:
    """The table as Delta's log tells of it, without a scan. Rows are asked for where it, or some columns of it, could
    be broadcast and might not fit."""
    size, rows, width = table.bytes(), 0, 0
    if size > machine.room / UNHEARD_OF:
        read = table.read()
        width = int(read._jdf.schema().defaultSize())
        if Relation(size, 0, 0, width).stored_as(NARROWEST) <= int(SPARKS_OWN[BROADCAST]):
            rows = read.count()
    return Relation(size, rows, table.files(), width)


@dataclass(frozen=True)
class Plan:
    """What a step is to run with, and what is expected of it."""

    decisions: Sequence[Decision]
    input_bytes: int
    shuffle_bytes: int

    @property
    def settings(self) -> dict[str, str]:
        return {decision.setting: decision.value for decision in self.decisions}

    def note(self, step: Step) -> None:
        """Keep it with the step, before that runs."""
        step.expected_bytes, step.expected_shuffle_bytes = self.input_bytes, self.shuffle_bytes
        step.decisions = json.dumps([asdict(decision) for decision in self.decisions]) if self.decisions else ""
        step.partitions = int(self.settings.get(SHUFFLE, 0))


NO_PLAN: Final = Plan((), 0, 0)


def plan(
    machine: Machine, relations: Sequence[Relation], input_bytes: int, runs: Sequence[Run],
    frozen: Mapping[str, str] = MappingProxyType({}),
) -> Plan:  # fmt: skip
    """What a step is to run with that reads the relations, after such runs."""
    made = decide(machine, relations, input_bytes, runs, frozen)
    return Plan(made, input_bytes, forecast(input_bytes, runs).bytes)


class Tuner:
    """Plans the steps of one run, from what the table of steps tells of earlier ones."""

    def __init__(self, spark: SparkSession, steps: Table) -> None:
        self.spark, self.steps, self.began = spark, steps, time.perf_counter()

    @cached_property
    def machine(self) -> Machine:
        return machine(self.spark)

    @cached_property
    def history(self) -> History:
        return history.read(files_of(self.steps.path, self.spark), self.steps.path)

    def plan(self, step: str, dataset: str, tables: Sequence[Table], input_bytes: int) -> Plan:
        key = step_key(step, dataset)
        relations = [relation(table, self.machine) for table in tables]
        known = self.history.steps.get(key, ()), self.history.frozen.get(key, {})
        return plan(self.machine, relations, input_bytes, *known)

    def metadata(self, job: str, steps: Sequence[Step]) -> dict[str, Any]:
        """What the commit of a run's steps is to carry: history with them."""
        return self.history.with_run(job, steps, time.perf_counter() - self.began).metadata()


T = TypeVar("T")


def carefully_in_memory(spark: SparkSession, compute: Callable[[], T], say: Callable[[str], None]) -> T:
    """What it computes; where memory was short, what it computes with the conservative settings."""
    try:
        return compute()
    except FAILURES as error:
        if not is_out_of_memory(error):
            raise
        say("memory was short: once more with nothing broadcast and 200 partitions")
        with session_confs(spark, CONSERVATIVE):
            return compute()


def is_out_of_memory(failure: Exception) -> bool:
    told = [str(failure)] if not isinstance(failure, Py4JJavaError) else []
    told += [f"{kind} {message}" for kind, message in causes(failure)]
    return any(sign in line for line in told for sign in OUT_OF_MEMORY)
