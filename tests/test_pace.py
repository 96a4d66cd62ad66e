"""How many messages a micro-batch takes, for a latency."""

from __future__ import annotations

import math
import random
import runpy
from argparse import Namespace
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tiny import KEY, Tiny

from drivetrain import job, ops, pace
from drivetrain.contracts import ROOT, Stream
from drivetrain.errors import DrivetrainError
from drivetrain.pace import Brought, bound
from drivetrain.sink import Table
from drivetrain.speed import Topic

STREAM = Stream(1.0, None, None, 600.0, 100_000, None, 5.0)
FIXED, EACH = 0.4, 1 / 20_000  # seconds of a micro-batch, and for each message


def seconds(rows: int, batches: int = 1) -> float:
    return FIXED * batches + EACH * rows


def brought(*rows: int, batches: int = 10, spread: float = 0.05, elapsed: float = 600.0) -> list[Brought]:
    """Rows of that many messages each, whose micro-batches vary by ``spread``."""
    noise, found = random.Random(1), []
    for n in rows:
        each = [seconds(n // batches) * math.exp(noise.gauss(0, spread)) for _ in range(batches)]
        found.append(Brought(batches, n, sum(each), sum(one**2 for one in each), elapsed))
    return found


STEADY = brought(10_000, 50_000, 20_000, 100_000, 5_000)


def test_micro_batches_are_as_large_as_the_latency_allows() -> None:
    """Of 5 s half is for the micro-batch that has just begun when a message comes."""
    made = bound(STREAM, 1_000_000, STEADY)
    number = int(made.value)
    assert made.confidence == "learned" and "for 5 s in all" in made.because and made.alternatives == ("1000000",)
    assert 1.5 < seconds(number) < 2.2 < seconds(2 * number)
    assert bound(STREAM, 100, STEADY).value == "100"
    close = int(bound(replace(STREAM, trigger_seconds=2.0, latency_seconds=3.2), 1_000_000, STEADY).value)
    assert 0.6 < seconds(close) < 0.9, "its trigger's two seconds are gone before it begins"


@pytest.mark.parametrize(
    ("stream", "rows", "said", "rests_on"),
    [
        (replace(STREAM, latency_seconds=None), STEADY, "asks for no latency", "rule"),
        (STREAM, [], "nothing has run yet", "rule"),
        (replace(STREAM, trigger_seconds=0.1, latency_seconds=0.3), STEADY, "in time for 0.3 s", "learned"),
        (replace(STREAM, latency_seconds=1.2), STEADY, "in time for 1.2 s", "learned"),
        (STREAM, brought(900_000, 20_000, 950_000, elapsed=50.0), "too many for 5 s", "learned"),
    ],
)
def test_where_no_bound_helps_it_is_the_contracts(
    stream: Stream, rows: list[Brought], said: str, rests_on: str
) -> None:
    made = bound(stream, 1_000_000, rows)
    assert (made.value, made.confidence, made.alternatives) == ("1000000", rests_on, ()) and said in made.because


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.5])
def test_19_of_20_micro_batches_of_that_size_end_in_time(spread: float) -> None:
    """However many a row of ops.speed adds up."""
    known, noise = brought(*[20_000 * n for n in range(1, 30)], batches=100, spread=spread), random.Random(2)
    number = int(bound(STREAM, 10**7, known).value)
    took = [seconds(number) * math.exp(noise.gauss(0, spread)) for _ in range(2_000)]
    assert number < 10**7 and sum(one <= 2.5 for one in took) > 0.94 * len(took)


def test_what_comes_in_bursts_is_no_flood() -> None:
    """60,000 in three seconds of each minute are 1,000 in a second; what nobody timed, as in a run of its own, counts
    for nothing."""
    bursts = [replace(one, elapsed=60.0) for one in brought(60_000, 60_000, 55_000, 10_000, batches=2)]
    assert bound(STREAM, 1_000_000, bursts).value != "1000000"
    once = [replace(one, elapsed=None) for one in brought(900_000, 20_000, 950_000)]
    assert bound(STREAM, 1_000_000, once).value != "1000000"


@pytest.mark.spark
def test_the_newest_rows_of_a_dataset_tell(spark: Any, tmp_path: Path) -> None:
    table = Table(spark, str(tmp_path / "speed"))
    assert pace.known(table, "events") == []
    row = ops.SpeedRow("r", "events", 1, 3, 3, 30, 30, 0, 0, None, None, None, ops.now(), 1.5, 0.8)
    later = replace(row, at=row.at + timedelta(seconds=9), batches=2)
    rows = [row, later, replace(row, dataset="other"), replace(row, batches=0, rows_in=0), replace(row, run="s")]
    ops.write(table, rows, {}, "r")
    first = Brought(3, 30, 1.5, 0.8, None)
    assert pace.known(table, "events") == [Brought(2, 30, 1.5, 0.8, 9.0), first, first]


@pytest.mark.spark
def test_the_bound_is_explained(spark: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(spark, tmp_path)
    tiny.dataset("plain", {"id": KEY})
    explain = runpy.run_path(str(ROOT / "jobs" / "tune.py"))["explain"]
    monkeypatch.setattr(job, "table", lambda columns, rows: print(columns, *rows))

    def told() -> str:
        pipeline = tiny.pipeline()
        explain(Namespace(job="speed"), pipeline.conf, pipeline.table("ops", "steps"))
        return str(capsys.readouterr().out)

    with pytest.raises(DrivetrainError, match="no dataset reads a topic"):
        told()
    topic = {"server": "k", "type": "kafka", "host": "127.0.0.1:9", "format": "json"}
    tiny.dataset("events", {"id": KEY}, "json", server=topic, stream={"latency": "5 s"}, kafka={"maxMessages": 50_000})
    assert "('events', 'maxOffsetsPerTrigger', '50000', 'no bound', 'rule', 'maxMessages: nothing has run yet" in told()
    row = ops.SpeedRow("r", "events", 1, 10, 10, 200_000, 200_000, 0, 0, None, None, None, ops.now(), 14.0, 20.0)
    each = [(n, seconds(n, 10)) for n in (10_000, 200_000, 50_000)]
    rows = [replace(row, rows_in=n, busy_seconds=took, busy_squares=took**2 / 10) for n, took in each]
    ops.write(tiny.pipeline().table("ops", "speed"), rows, {}, "r")
    assert "'learned', '95 of 100 are thought to end within" in told()
    source = Namespace(dataset=(pipeline := tiny.pipeline()).conf.datasets["events"], pipeline=pipeline, once=False)
    assert 1_000 < Topic.most(source) < 50_000, "and a stream begins with that"
    assert Topic.most(Namespace(**{**vars(source), "once": True})) == 50_000, "but where nobody waits"
