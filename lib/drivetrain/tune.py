"""Settings from forecasts, each with its reason: a rule from sizes and cores first, and what earlier runs showed.

Adaptive execution joins partitions that a plan has too many of; it seldom makes more, and knows neither the last runs
nor how large a table is in memory. So the number of partitions at the start, and what may be broadcast, are set for
each step before it is planned, and never while it runs.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, TypeVar

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from drivetrain import explore, history
from drivetrain.decision import Decision
from drivetrain.history import KEPT_RUNS, SURPRISE, History, Run, step_key
from drivetrain.launch import BY_HAND
from drivetrain.ops import Step
from drivetrain.session import FAILURES, causes, files_of
from drivetrain.sink import Table, session_confs

SHUFFLE: Final = "spark.sql.shuffle.partitions"
BROADCAST: Final = "spark.sql.autoBroadcastJoinThreshold"
SNAPSHOT: Final = "spark.databricks.delta.snapshotPartitions"
SPARKS_OWN: Final = {
    SHUFFLE: "200", BROADCAST: "10485760", SNAPSHOT: "50", "spark.sql.adaptive.enabled": "true",
    "spark.sql.adaptive.skewJoin.enabled": "true", "spark.sql.adaptive.autoBroadcastJoinThreshold": "the other's",
}  # fmt: skip

MANY: Final = 200  # partitions of a step that cannot be foreseen, at least
# Such a step's other settings, and a second try's after memory was short.
CONSERVATIVE: Final = {
    BROADCAST: "-1", "spark.sql.adaptive.enabled": "true", "spark.sql.adaptive.skewJoin.enabled": "true",
    "spark.sql.adaptive.autoBroadcastJoinThreshold": "-1",
}  # fmt: skip

MB: Final = 1 << 20
LEAST: Final = MB  # of shuffled bytes for a partition of its own
FULL: Final = 32 * MB  # of shuffled bytes in a partition, which are several times as many as objects
MOST_PARTITIONS: Final = 10_000
PRIOR: Final = 3.0  # shuffled bytes / stored ones, of a step that has not run yet
ACTIONS: Final = 50_000  # files of a Delta table for each partition of its snapshot
HEAP_SHARE: Final = 8  # a broadcast table may fill this part of a heap; the driver holds it more than once
UNHEARD_OF: Final = 200.0  # bytes in memory / stored ones; only long texts that repeat themselves reach that
TEXT: Final = 5.0  # the same, of other text, whose length no type tells
ROW_OVERHEAD: Final = 64  # bytes of a hashed row beside its values
ROW_HEADER: Final = 8  # Spark's estimate of a row beside its columns
NARROWEST: Final = 8  # bytes of the columns that a query may be left with
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
        """The least that Spark takes so many columns and files of it for as fill ``room`` in memory; infinite where
        all of it does not."""
        if self.in_memory(self.width) <= room:
            return math.inf
        width = max(room / self.rows - ROW_OVERHEAD, min(NARROWEST, self.width))
        return self.stored_as(width) * min(1.0, room / self.in_memory(width))


@dataclass(frozen=True)
class Machine:
    """What the application may use at most: cores over all executors, and the heap in bytes of the driver or an
    executor, whichever is less; and the broadcast threshold that it is configured with."""

    cores: int
    heap: int
    threshold: int = 10 * MB

    @property
    def room(self) -> float:
        """Bytes that one broadcast table may take in memory."""
        return self.heap / HEAP_SHARE


@dataclass(frozen=True)
class Forecast:
    """Bytes that a step will shuffle: the most that is likely; and the number of runs that tell so."""

    bytes: int
    runs: int


# --- what will be ---


def forecast(input_bytes: int, runs: Sequence[Run]) -> Forecast:
    """From the ratio of shuffled to read bytes: the largest of the runs at most 10 times larger or smaller, else the
    prior's, or history's where that is more: no run tells of such a size."""
    whole = [run for run in runs[-KEPT_RUNS:] if run.input_bytes and not run.short]
    ratios = [run.shuffle_bytes / run.input_bytes for run in whole]
    near = [run.shuffle_bytes / run.input_bytes for run in whole if _alike(run.input_bytes, input_bytes)]
    ratio = max(near) if near else max([PRIOR, *ratios])
    return Forecast(math.ceil(ratio * input_bytes), len(near))


def _alike(one: int, other: int) -> bool:
    return other / 10 <= one <= other * 10


def drifted(runs: Sequence[Run]) -> str | None:
    """Why history is no guide, if it is none: in one of the last three runs much more came than forecast, or memory was
    short. Three others end that."""
    if any(run.short for run in runs[-3:]):
        return "one of its last 3 runs was short of memory"
    if any(run.surprised for run in runs[-3:]):
        return f"one of its last 3 runs shuffled over {SURPRISE:g} times what was forecast"
    return None


# --- what to set ---


def decide(
    machine: Machine, relations: Sequence[Relation], input_bytes: int, runs: Sequence[Run],
    frozen: Mapping[str, str] = MappingProxyType({}),
) -> list[Decision]:  # fmt: skip
    """Every setting of a step that reads the relations, of which ``input_bytes`` go into its shuffles."""
    if frozen:
        return [_fixed(key, value, "tune freeze has fixed it", "frozen") for key, value in frozen.items()]
    why = drifted(runs)
    if why:
        number = max(MANY, partitions(forecast(input_bytes, runs).bytes, machine.cores, FULL // 2))
        return [_fixed(key, value, why, "conservative") for key, value in conservative(number).items()]
    made = [shuffle_partitions(machine, input_bytes, runs), snapshot_partitions(relations)]
    return [*made, broadcast_threshold(machine, relations)] if relations else made


def conservative(partitions: int) -> dict[str, str]:
    return {SHUFFLE: str(partitions), **CONSERVATIVE}


def _fixed(setting: str, value: str, because: str, confidence: str) -> Decision:
    return Decision(setting, value, because, SPARKS_OWN.get(setting, ""), (), confidence)


def shuffle_partitions(machine: Machine, input_bytes: int, runs: Sequence[Run]) -> Decision:
    """Of small volumes one partition for each MB, of others twice the cores, of large ones what keeps a partition
    below 32 MB; half of that where such a run spilled. From there on what earlier runs showed to be better, or worth a
    try."""
    told = forecast(input_bytes, runs)
    spilled = any(run.spill_bytes and _alike(run.input_bytes, input_bytes) for run in runs[-KEPT_RUNS:])
    full = FULL // 2 if spilled else FULL
    rule = partitions(told.bytes, machine.cores, full)
    choice = explore.choose(rule, lambda n: told.bytes <= n * full and n <= MOST_PARTITIONS, input_bytes, runs)
    why = f"{told.bytes / MB:,.1f} MB to shuffle on {machine.cores} cores"
    why += f", by {told.runs} run{'s' if told.runs != 1 else ''}" if told.runs else ", by a rule: no such run yet"
    why += "; smaller ones, as it spilled before" if spilled else ""
    rests_on = "learned" if told.runs else "rule"
    if choice.why:
        why, rests_on = told_of(choice, rule), "try" if choice.why == "try" else "learned"
    others = sorted({machine.cores, 2 * machine.cores, 200, rule} - {choice.number})
    return Decision(SHUFFLE, str(choice.number), why, SPARKS_OWN[SHUFFLE], tuple(map(str, others)), rests_on)


def told_of(choice: explore.Choice, rule: int) -> str:
    ratio = f"{choice.ratio:.2f} ({choice.low:.2f} to {choice.high:.2f}) of the CPU of {rule}"
    if choice.why == "try":
        return f"a try: it may take {ratio}"
    because = f", whose last run took over {explore.AT_WORST:g} times what others take" if choice.why == "worse" else ""
    return f"by runs it takes {ratio}{because}"


def partitions(volume: int, cores: int, full: int = FULL) -> int:
    """The number for that many shuffled bytes."""
    if volume > full * 2 * cores:
        return min(math.ceil(volume / full / cores) * cores, MOST_PARTITIONS)
    return max(1, min(2 * cores, math.ceil(volume / LEAST)))


def snapshot_partitions(relations: Sequence[Relation]) -> Decision:
    """Delta computes a table's state in as many tasks; with its 50 these cost small tables more than all else."""
    files = max((relation.files for relation in relations), default=0)
    number = max(2, min(50, math.ceil(files / ACTIONS)))
    return Decision(SNAPSHOT, str(number), f"{files:,} files at most in a table", SPARKS_OWN[SNAPSHOT], ("50",), "rule")


def broadcast_threshold(machine: Machine, relations: Sequence[Relation]) -> Decision:
    """Spark compares the threshold with stored bytes, of the columns and files that a query reads; these are a fiftieth
    of those in memory at times. So it is the largest, up to the configured one, below which every table, whole or in
    part, fits into its part of a heap."""
    room, own = machine.room, machine.threshold
    limits = [(relation.too_large_from(room), relation) for relation in relations]
    limit, worst = min(limits, key=lambda one: one[0], default=(math.inf, None))
    value, why = own, f"no part of a table that Spark takes for less fills {room / MB:,.0f} MB in memory"
    if worst and limit <= min(own, room / TEXT):
        value = math.ceil(limit) - 1
        why = f"{worst.rows:,} rows, {worst.bytes / MB:,.1f} MB stored, fill {room / MB:,.0f} MB in memory in part"
    elif room / TEXT <= own:
        value = math.ceil(room / TEXT) - 1
        why = f"text may take {TEXT:g} times its stored size, and a table has {room / MB:,.0f} MB"
    others = tuple(str(other) for other in (-1, own) if other != value)
    return Decision(BROADCAST, str(max(value, -1)), why, SPARKS_OWN[BROADCAST], others, "rule")


# --- the session ---


def machine(spark: SparkSession) -> Machine:
    """What the session's application may come to use, by its settings."""
    conf, cores = spark.sparkContext.getConf(), spark.sparkContext.defaultParallelism
    if conf.get("spark.dynamicAllocation.enabled", "false") == "true":
        most = conf.get("spark.dynamicAllocation.maxExecutors")
        cores = int(most) * int(conf.get("spark.executor.cores", "1") or 1) if most else cores
    jvm: Any = spark._jvm
    heap = int(jvm.java.lang.Runtime.getRuntime().maxMemory())
    if not spark.sparkContext._jsc.sc().isLocal():
        told = conf.get("spark.executor.memory", "1g")
        heap = min(heap, int(jvm.org.apache.spark.network.util.JavaUtils.byteStringAsBytes(told)))
    session: Any = spark._jsparkSession
    return Machine(max(1, cores), heap, int(session.sessionState().conf().autoBroadcastJoinThreshold()))


def relation(table: Table, machine: Machine, joined: bool = True) -> Relation:
    """The table as Delta's log tells of it, without a scan. Rows are asked for where some of it might be broadcast, and
    might not fit."""
    (size, files), rows, width = table.stored(), 0, 0
    if joined and size > machine.room / UNHEARD_OF:
        read = table.read()
        rows, width = read.count(), int(read._jdf.schema().defaultSize())
    return Relation(size, rows, files, width)


@dataclass(frozen=True)
class Reads:
    """What a step reads: tables, or what is known of them; the stored bytes that go into its shuffles, None where those
    are the tables'; whether it joins them, or one with itself; and settings that conf gives it."""

    tables: Sequence[Table | Relation]
    bytes: int | None = None
    joined: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a step is to run with, and what is expected of it, by so many earlier runs."""

    decisions: Sequence[Decision]
    input_bytes: int
    shuffle: Forecast

    @property
    def settings(self) -> dict[str, str]:
        return {decision.setting: decision.value for decision in self.decisions}

    def without(self, settings: Container[str]) -> Plan:
        """Where these are set by others."""
        return replace(self, decisions=[one for one in self.decisions if one.setting not in settings])

    def note(self, step: Step, partitions: int) -> None:
        """Keep it with the step, before that runs with so many partitions of a shuffle."""
        step.expected_bytes, step.partitions = self.input_bytes, partitions
        step.expected_shuffle_bytes, step.forecast_runs = self.shuffle.bytes, self.shuffle.runs
        step.decisions = json.dumps([asdict(decision) for decision in self.decisions])


NO_PLAN: Final = Plan((), 0, Forecast(0, 0))


def plan(
    machine: Machine, relations: Sequence[Relation], input_bytes: int, runs: Sequence[Run],
    frozen: Mapping[str, str] = MappingProxyType({}),
) -> Plan:  # fmt: skip
    """What a step is to run with that reads the relations, after such runs."""
    made = decide(machine, relations, input_bytes, runs, frozen)
    return Plan(made, input_bytes, forecast(input_bytes, runs))


def known(steps: Table) -> History:
    """What runs have taught, by the table of steps as it is now."""
    return history.read(files_of(steps.path, steps.spark), steps.path)


class Tuner:
    """Plans the steps of one run, from what the table of steps tells of earlier ones."""

    def __init__(self, spark: SparkSession, steps: Table) -> None:
        self.spark, self.steps, self.began = spark, steps, time.perf_counter()

    @cached_property
    def by_hand(self) -> list[str]:
        return str(self.spark.sparkContext.getConf().get(BY_HAND, "")).split(",")

    @cached_property
    def machine(self) -> Machine:
        return machine(self.spark)

    @cached_property
    def history(self) -> History:
        return known(self.steps)

    def plan(self, step: str, dataset: str, reads: Reads) -> Plan:
        key, machine = step_key(step, dataset), self.machine
        relations = [one if isinstance(one, Relation) else relation(one, machine, reads.joined) for one in reads.tables]
        read = sum(one.bytes for one in relations) if reads.bytes is None else reads.bytes
        runs, frozen = self.history.steps.get(key, ()), self.history.frozen.get(key, {})
        return plan(machine, relations, read, runs, frozen).without({*reads.settings, *self.by_hand})

    def metadata(self, job: str, steps: Sequence[Step]) -> dict[str, Any]:
        """What the commit of a run's steps is to carry: history with them."""
        return self.history.with_run(job, steps, time.perf_counter() - self.began).metadata()


T = TypeVar("T")


def carefully_in_memory(spark: SparkSession, compute: Callable[[], T], say: Callable[[str], None], step: Step) -> T:
    """What it computes; where memory was short, what it computes with the conservative settings. The step tells."""
    try:
        return compute()
    except FAILURES as error:
        if not is_out_of_memory(error):
            raise
        number = max(MANY, 2 * int(str(spark.conf.get(SHUFFLE))))
        say(f"memory was short: once more with nothing broadcast and {number} partitions")
        step.short_of_memory, step.partitions = True, number
        with session_confs(spark, conservative(number)):
            return compute()


def is_out_of_memory(failure: Exception) -> bool:
    told = [str(failure)] if not isinstance(failure, Py4JJavaError) else []
    told += [f"{kind} {message}" for kind, message in causes(failure)]
    return any(sign in line for line in told for sign in OUT_OF_MEMORY)
