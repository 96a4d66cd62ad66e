"""Replay: built beside from the log, compared by key, swapped in by one manifest, and had back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_unified import Streamed, event

from drivetrain import replay
from drivetrain.errors import DrivetrainError

pytestmark = pytest.mark.spark


def test_replay_swap_and_rollback(spark: Any, tmp_path: Path) -> None:
    one = Streamed(spark, tmp_path, sequence="seq")
    appender = one.appender()
    one.append(appender, event("a", 1), event("b", 2), "{not json")
    one.pipeline("batch").transform(ingest=False)
    one.append(appender, event("a", 5, 2), event("c", 9), event("b", 7, 0))
    one.pipeline("batch").transform(ingest=False)
    pipeline = one.pipeline("replay")
    again = replay.replay(pipeline, list(pipeline.conf.datasets.values()), 0)
    assert [(d.table, d.same, d.is_none) for d in again] == [("events", 3, True), ("top", 2, True), ("total", 2, True)]
    one.tiny.spark.sql(f"DELETE FROM delta.`{tmp_path}/warehouse/silver/events` WHERE id = 'b'")
    one.tiny.spark.sql(f"UPDATE delta.`{tmp_path}/warehouse/silver/events` SET n = 6 WHERE id = 'a'")
    pipeline = one.pipeline("replay")
    found = replay.replay(pipeline, list(pipeline.conf.datasets.values()), 0)[0]
    assert (found.same, found.only_now, found.only_replayed, found.changed) == (1, 0, 1, 1)
    assert found.samples[1][0] == "changed" and '"n": "6 -> 5"' in found.samples[1][1]
    one.append(appender, event("d", 4))
    one.pipeline("batch").transform(ingest=False)
    built = pipeline.outcome.run
    swapping = one.pipeline("replay")
    replay.swap(swapping, built)
    expected = [("a", 5, 2), ("b", 2, 1), ("c", 9, 1), ("d", 4, 1)]
    assert one.live() == expected and one.gold("total") == [(0, 1, 9), (1, 1, 4), (2, 2, 7)]
    one.append(appender, event("e", 8))
    assert one.live() == [*expected, ("e", 8, 1)]
    one.pipeline("batch").transform(ingest=False)
    assert one.live() == [*expected, ("e", 8, 1)]
    with pytest.raises(DrivetrainError, match="it was swapped"):
        replay.swap(one.pipeline("replay"), built)
    replay.rollback(one.pipeline("replay"), built)
    assert one.live() == [("a", 6, 2), ("c", 9, 1), ("d", 4, 1), ("e", 8, 1)]
    assert one.tiny.quarantined("events", "rule", "_line") == [("shape", 2)]


def test_a_log_with_a_gap_is_not_replayed(spark: Any, tmp_path: Path) -> None:
    one = Streamed(spark, tmp_path, sequence="seq")
    appender = one.appender()
    for number in range(3):
        one.append(appender, event("a", number, number))
    one.pipeline("batch").transform(ingest=False)
    log = f"delta.`{tmp_path}/warehouse/bronze/events`"
    spark.sql(f"ALTER TABLE {log} SET TBLPROPERTIES (delta.appendOnly = false)")
    spark.sql(f"DELETE FROM {log} WHERE _load = 2")
    pipeline = one.pipeline("replay")
    with pytest.raises(DrivetrainError, match="1 loads between 2 and 2 are gone"):
        replay.replay(pipeline, list(pipeline.conf.datasets.values()), 0)
