"""How many messages a micro-batch takes, for a latency."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain import ops, pace
from drivetrain.contracts import Stream
from drivetrain.pace import Brought, Pace, bound
from drivetrain.sink import Table

STREAM = Stream(1.0, None, None, 600.0, 100_000, None, 5.0)
FIXED, EACH = 0.4, 1 / 20_000  # seconds of a micro-batch, and for each message


def seconds(rows: int, batches: int = 1) -> float:
    return FIXED * batches + EACH * rows


def brought(*rows: int, batches: int = 10, spread: float = 0.05) -> list[Brought]:
    noise = random.Random(1)
    return [Brought(batches, n, seconds(n, batches) * math.exp(noise.gauss(0, spread))) for n in rows]


STEADY = brought(10_000, 50_000, 20_000, 100_000, 5_000)


def test_micro_batches_are_as_large_as_the_latency_allows() -> None:
    """Of 5 s half is for the micro-batch that has just begun when a message comes."""
    made = bound(STREAM, 1_000_000, STEADY)
    number = int(made.value)
    assert made.confidence == "learned" and "5 s hold" in made.because and made.alternatives == ("1000000",)
    assert 1.8 < seconds(number) < 2.5 < seconds(2 * number)
    assert bound(STREAM, 100, STEADY).value == "100"
    close = int(bound(replace(STREAM, latency_seconds=1.8), 1_000_000, STEADY).value)
    assert seconds(close) < 0.8, "its trigger's second is gone before it begins"


@pytest.mark.parametrize(
    ("stream", "rows", "said", "rests_on"),
    [
        (replace(STREAM, latency_seconds=None), STEADY, "asks for no latency", "rule"),
        (STREAM, [], "nothing has run yet", "rule"),
        (replace(STREAM, trigger_seconds=0.1, latency_seconds=0.3), STEADY, "surely done in 0.15 s", "learned"),
        (replace(STREAM, latency_seconds=1.2), STEADY, "surely done in 0.20 s", "learned"),
        (STREAM, brought(900_000, 20_000, 950_000), "too many for 5 s", "learned"),
    ],
)
def test_where_no_bound_helps_it_is_the_contracts(
    stream: Stream, rows: list[Brought], said: str, rests_on: str
) -> None:
    made = bound(stream, 1_000_000, rows)
    assert (made.value, made.confidence, made.alternatives) == ("1000000", rests_on, ()) and said in made.because


@given(st.lists(st.integers(1, 400_000), min_size=1, max_size=50), st.floats(2.5, 60), st.integers())
def test_a_micro_batch_of_that_size_ends_in_time(rows: list[int], goal: float, seed: int) -> None:
    noise = random.Random(seed)
    known = [Brought(10, n, seconds(n, 10) * math.exp(noise.gauss(0, 0.05))) for n in rows]
    made = bound(replace(STREAM, latency_seconds=goal), 10**7, known)
    if made.value != str(10**7):
        assert Pace(known).at_worst(int(made.value)) <= goal / 2


@pytest.mark.spark
def test_the_newest_rows_of_a_dataset_tell(spark: Any, tmp_path: Path) -> None:
    table = Table(spark, str(tmp_path / "speed"))
    assert pace.known(table, "events") == []
    row = ops.SpeedRow("r", "events", 1, 3, 3, 30, 30, 0, 0, None, None, None, ops.now(), 1.5)
    ops.write(table, [row, replace(row, dataset="other"), replace(row, batches=0, rows_in=0)], {}, "r")
    assert pace.known(table, "events") == [Brought(3, 30, 1.5)]
