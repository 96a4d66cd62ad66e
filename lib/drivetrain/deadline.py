"""Executors, and memory for each, by which a job on YARN ends in time at least cost. They are set when it is submitted:
a running application cannot change the bounds of its dynamic allocation, nor an executor its memory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from drivetrain.capacity import Choice, Scaling, choose, next_input
from drivetrain.decision import Decision
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.history import KEPT_RUNS, History, Run, Took

DYNAMIC: Final = "spark.dynamicAllocation.enabled"
MOST: Final = "spark.dynamicAllocation.maxExecutors"
LEAST: Final = "spark.dynamicAllocation.minExecutors"
FIRST: Final = "spark.dynamicAllocation.initialExecutors"
FIXED: Final = "spark.executor.instances"
CORES: Final = "spark.executor.cores"
MEMORY: Final = "spark.executor.memory"
SPARKS_OWN: Final = {MOST: "infinity", FIRST: "0", FIXED: "2", MEMORY: "1g"}

MB: Final = 1 << 20
UNITS: Final = {"": 1, "b": 1, "k": 1 << 10, "m": MB, "g": 1 << 30, "t": 1 << 40}
SPARKS_SHARE: Final = 0.6  # of an executor's heap, less what it reserves (spark.memory.fraction)
RESERVED: Final = 300 * MB
SPARE: Final = 1.5  # of the largest peak that was seen
MOST_MEMORY: Final = 4  # times conf's, beyond which a node may have no place for the executor
STEP: Final = 256 * MB
UNBOUNDED: Final = 1000  # executors


@dataclass(frozen=True)
class Bounds:
    """Executors that conf allows, and cores of each."""

    least: int
    most: int
    each: int

    @property
    def numbers(self) -> range:
        return range(self.least, self.most + 1)


def bounds(settings: Mapping[str, str]) -> Bounds:
    """Of dynamic allocation, or up to the fixed number."""
    each = int(settings.get(CORES, "1"))
    if not _dynamic(settings):
        return Bounds(1, int(settings.get(FIXED, SPARKS_OWN[FIXED])), each)
    most = settings.get(MOST, SPARKS_OWN[MOST])
    least = max(1, int(settings.get(LEAST, "0")))
    return Bounds(least, max(least, UNBOUNDED if most == SPARKS_OWN[MOST] else min(int(most), UNBOUNDED)), each)


def decide(history: History, job: str, minutes: float, settings: Mapping[str, str]) -> list[Decision]:
    """What the job's next run is to have; nothing where no run of it tells."""
    took = history.jobs.get(job, ())
    if not took:
        return []
    allowed, size = bounds(settings), next_input(took)
    choice = choose(Scaling(took), size, minutes * 60, allowed.each, allowed.numbers)
    return [*executors(choice, size, took, minutes, settings), *memory(history.steps, settings)]


def executors(
    choice: Choice, input_bytes: int, took: Sequence[Took], minutes: float, settings: Mapping[str, str]
) -> list[Decision]:
    """The number of executors, as dynamic allocation's first and highest, or as a fixed number."""
    most = bounds(settings).most
    ends, worst = choice.duration.seconds / 60, choice.duration.at_worst / 60
    why = f"{input_bytes / MB:,.0f} MB will take {ends:.1f} min, 95 of 100 times less than {worst:.1f}"
    why += f", by {len(took)} run{'s' if len(took) != 1 else ''}"
    why += "" if choice.in_time else f"; no number up to {most} is surely within {minutes:g} min: this one is fastest"
    keys = (MOST, FIRST) if _dynamic(settings) else (FIXED,)
    number = str(choice.executors)
    return [Decision(key, number, why, SPARKS_OWN[key], (str(most),), "learned") for key in keys]


def memory(steps: Mapping[str, Sequence[Run]], settings: Mapping[str, str]) -> list[Decision]:
    """An executor's heap, where the largest task's peak needs more than conf's, or a step spilled or was short with
    it. Never less: that what holds broadcasts, caches and Python's batches is free cannot be told from tasks."""
    runs = [run for known in steps.values() for run in known[-KEPT_RUNS:]]
    told, cores = size_of(settings.get(MEMORY, SPARKS_OWN[MEMORY])), bounds(settings).each
    peak = max((run.peak_memory_bytes for run in runs), default=0)
    need, why = SPARE * peak * cores / SPARKS_SHARE + RESERVED, f"{cores} tasks of at most {peak / MB:,.0f} MB each"
    if any(run.spill_bytes or run.short for run in runs):
        need, why = max(need, SPARE * told), f"{why}; a step had too little"
    number = math.ceil(min(need, MOST_MEMORY * told) / STEP) * STEP // MB
    if number * MB <= told:
        return []
    return [Decision(MEMORY, f"{number}m", why, SPARKS_OWN[MEMORY], (f"{told // MB}m",), "learned")]


def _dynamic(settings: Mapping[str, str]) -> bool:
    return settings.get(DYNAMIC, "false") == "true"


def size_of(text: str) -> int:
    """Bytes of a size as Spark writes it: 2g, 512m, 1536 (MB).

    Raises:
        DrivetrainError: it is none.
    """
    found = re.fullmatch(r"(\d+)([bkmgt]?)b?", text.strip().lower())
    if not found:
        raise DrivetrainError(Problem("spark-value", MEMORY, f"{text!r} is no size", "write a number and m or g: 2g"))
    return int(found[1]) * (UNITS[found[2]] if found[2] else MB)
