"""The log's end: who appends, who resumes, who stops; and what Delta does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivetrain import logend
from drivetrain.logend import End, Mark, Taken, verdict
from drivetrain.sink import Table


def mark(epoch: int, run: str = "20260101T000000000", batch: int = 0, load: int = 1) -> Mark:
    return Mark(epoch, run, batch, load, "topic", {"0": 7}, None)


def test_what_came_between_decides() -> None:
    mine, followed = mark(3, "c"), mark(2, "b")
    assert verdict(mine, followed, followed) == "append", "a load that is no stream's"
    assert verdict(mine, mark(2, "b", 5), followed) == "resume", "the stream of before committed once more"
    assert verdict(mine, mark(3, "d"), followed) == "stop", "a later start has taken over"
    assert verdict(mine, mark(3, "a"), followed) == "resume", "an earlier start that was asleep, of the same epoch"
    assert verdict(mine, mark(4, "a"), followed) == "stop"
    assert verdict(mine, None, followed) == "stop", "the log is not the one that it was"


def test_typed_rows_count_from_where_they_are_unbroken() -> None:
    end = End().next(None, None).next(mark(1), "_row_a").next(mark(1), "_row_a")
    assert (end.number, end.row, end.since) == (3, "_row_a", 2)
    assert end.shows("_row_a", 1) and not end.shows("_row_a", 0) and not end.shows("_row_b", 2)
    assert end.shows("_row_b", 3), "silver has them all"
    assert End(9, None, "_row_a", 4).next(None, "_row_b").since == 10
    assert not end.shows(None, 3)


@pytest.mark.spark
def test_a_number_is_taken_once(spark: Any, tmp_path: Path) -> None:
    log = Table(spark, str(tmp_path / "log"))

    def append(after: End, value: int) -> int:
        columns = ("_entry", "_file", "_layout", "_load", "_requeued")  # of which the log's statistics are
        rows = spark.createDataFrame([(value,)], "n int").selectExpr("n", *[f"'' AS {name}" for name in columns])
        return logend.append(log, "orders", after, rows, {"files": 0}, after.next(mark(1), "_row_a"))

    assert logend.end(log) == End()
    assert append(End(), 1) == 0
    now = logend.end(log)
    assert (now.number, now.mark, now.row, now.since) == (1, mark(1), "_row_a", 1)
    with pytest.raises(Taken):  # Delta itself says nothing
        append(End(), 2)
    log.optimize()
    assert logend.end(log) == now, "commits that are not ours do not count"
    append(now, 3)
    assert sorted(row["n"] for row in log.read().collect()) == [1, 3] and logend.end(log).number == 2
