"""How many messages a micro-batch of a topic takes at most, so that they are in the log as soon as its contract asks.

A micro-batch costs a fixed time and some for each message, which earlier ones tell. Small ones are soon done, large
ones do more in the same time: so the bound is the largest with which a message is shown in time, and where more comes
than that allows there is none but the contract's, as waiting in the topic is no better.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from pyspark.sql import Window
from pyspark.sql import functions as F
from scipy.stats import t as student

from drivetrain.capacity import IN_TIME, WIDEST, Fit, fit
from drivetrain.contracts import Stream
from drivetrain.decision import Decision
from drivetrain.sink import Table

SETTING: Final = "maxOffsetsPerTrigger"
LATEST: Final = 50  # rows of ops.speed
SPARKS_OWN: Final = 0.3  # seconds of a micro-batch that are Spark's: offsets before it, its checkpoint behind
SHARES: Final = (1.0, 1.0)  # of a micro-batch's time: fixed, and by its messages


@dataclass(frozen=True)
class Brought:
    """What a stream did between two rows of ops.speed: micro-batches, their messages, seconds that they took, and the
    sum of these seconds' squares; and the seconds since the row before, None where the stream began between."""

    batches: int
    rows: int
    seconds: float
    squares: float
    elapsed: float | None

    @property
    def variance(self) -> float:
        """Of a micro-batch's seconds / their mean."""
        return max(0.0, self.squares * self.batches / self.seconds**2 - 1)


class Pace:
    """What a micro-batch takes, by at least one such row."""

    def __init__(self, brought: Sequence[Brought]) -> None:
        columns = np.array([[float(one.batches), float(one.rows)] for one in brought])
        measured = np.array([max(one.seconds, 1e-3) for one in brought])
        self.model: Fit = fit(columns, measured, np.zeros(len(measured)), SHARES)
        self.variance = sum(one.variance * one.batches for one in brought) / sum(one.batches for one in brought)

    def at_worst(self, messages: int) -> float:
        """Seconds that 95 of 100 micro-batches of so many stay below."""
        columns = (1.0, float(messages))
        seconds = max(self.model.value(columns), 1e-3)
        spread = math.sqrt(self.model.variance(columns, seconds) + self.variance)
        margin = float(student.ppf(IN_TIME, self.model.freedom)) * spread
        return seconds * math.exp(min(margin, WIDEST))

    def most_within(self, seconds: float, most: int) -> int | None:
        """The largest number of messages up to ``most``, to a twentieth, that is done in that time; None where none is
        for sure. Fewer are not surer always: what ran may tell of large ones only."""
        while most and self.at_worst(most) > seconds:
            most = most * 19 // 20
        return most or None


def known(table: Table, dataset: str) -> list[Brought]:
    """What ops.speed tells of a dataset, the newest first."""
    if not table.exists() or "busy_seconds" not in (frame := table.read()).columns:
        return []
    mine = frame.where((F.col("dataset") == dataset) & (F.col("busy_seconds") > 0) & (F.col("batches") > 0))
    before = F.lag("at").over(Window.partitionBy("run").orderBy("at"))
    elapsed = F.col("at").cast("double") - before.cast("double")
    shown = ("batches", "rows_in", "busy_seconds", "busy_squares", elapsed)
    return [Brought(*row) for row in mine.select("at", *shown).orderBy(F.desc("at")).limit(LATEST).drop("at").collect()]


def bound(stream: Stream, most: int, brought: Sequence[Brought]) -> Decision:
    """Messages of a micro-batch at most, never more than ``most``, which the contract has as ``maxMessages``."""
    goal, trigger = stream.latency_seconds, stream.trigger_seconds

    def decision(number: int, why: str, rests_on: str) -> Decision:
        others = (str(most),) if number != most else ()
        return Decision(SETTING, str(number), why, "no bound", others, rests_on)

    if goal is None:
        return decision(most, "maxMessages, as the contract asks for no latency", "rule")
    if not brought:
        return decision(most, f"maxMessages: nothing has run yet that tells what is done in {goal:g} s", "rule")
    pace = Pace(brought)
    # One that comes when a micro-batch has just begun waits for the next, and for the end of that.
    room = (goal - trigger if goal <= 2 * trigger else goal / 2) - SPARKS_OWN
    number = pace.most_within(room, most)
    if not number:
        why = f"maxMessages: by what has run no micro-batch, however small, is surely done in time for {goal:g} s"
        return decision(most, why, "learned")
    rates = [one.rows / one.elapsed for one in brought if one.elapsed]
    rate = statistics.median(rates) if rates else 0.0
    if number < most and number < rate * max(room + SPARKS_OWN, trigger):
        why = f"maxMessages: {rate:,.0f} come in a second, too many for {goal:g} s, and what waits must not grow"
        return decision(most, why, "learned")
    ends = pace.at_worst(number)
    return decision(number, f"95 of 100 are thought to end within {ends:.2f} s, for {goal:g} s in all", "learned")
