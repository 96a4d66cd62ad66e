"""The unified view: at any moment what a recompute of the log would give, at the loads that it states."""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from tiny import KEY, WHOLE, Tiny

from drivetrain import catalog, maintain
from drivetrain import conf as reader
from drivetrain.appender import Appender, Batch
from drivetrain.contracts import Kafka, Stream
from drivetrain.files import LOCAL
from drivetrain.pipeline import Pipeline
from drivetrain.progress import Progress
from drivetrain.query import Queries
from drivetrain.unified import Unified

pytestmark = pytest.mark.spark
STREAM = Stream(1.0, 600.0, 3600.0, 600.0, 100_000, None)
READERS = int(os.environ.get("READERS", "1"))
NOON = datetime(2026, 1, 5, 12, tzinfo=timezone.utc)


class Streamed:
    """A dataset with a stream, fed by hand."""

    def __init__(self, spark: Any, home: Path, **properties: Any) -> None:
        self.tiny = Tiny(spark, home)
        columns = {"id": KEY, "n": WHOLE, "seq": WHOLE, "at": {"logicalType": "timestamp", "required": True}}
        self.tiny.dataset("events", columns, "json", eventTime="at", **properties)
        self.tiny.gold(
            "total", "SELECT n % 3 AS part, count(*) AS events, sum(n) AS total FROM events GROUP BY n % 3", ["part"]
        )
        self.tiny.gold(
            "top",
            "SELECT n, id, seq FROM"
            " (SELECT n, id, seq, row_number() OVER (ORDER BY n DESC, id) r FROM events) WHERE r <= 2",
            ["id", "seq"],
        )
        self.spark, self.runs = spark, 0

    def conf(self) -> Any:
        conf = reader.load(self.tiny.home / "conf", "local", environ={})
        events = replace(conf.datasets["events"], stream=STREAM)
        if not events.identity:  # known by their places, which of a topic are never taken twice
            events = replace(events, kafka=Kafka("127.0.0.1:9", "topic", (), 1))
        return replace(conf, datasets={"events": events})

    def pipeline(self, job: str = "speed") -> Pipeline:
        self.runs += 1
        run = f"run{self.runs}"
        return Pipeline(self.spark, self.conf(), run, job, Progress(run))

    def appender(self) -> Appender:
        pipeline = self.pipeline()
        return Appender(pipeline, pipeline.conf.datasets["events"])

    def records(self, *records: Any, file: str = "topic", first: int = 0) -> Any:
        rows = [
            (r if isinstance(r, str) else json.dumps(r), None, file, 0, first + i, "json")
            for i, r in enumerate(records)
        ]
        return self.spark.createDataFrame(
            rows, "raw string, raw_bytes binary, _file string, _block bigint, _line bigint, _layout string"
        )

    def append(self, appender: Appender, *records: Any) -> None:
        first = appender.after.mark.offsets["0"] if appender.after.mark else 0
        appender.append(Batch(self.records(*records, first=first), 0, {"json": ()}, {"0": first + len(records)}, "t"))

    def unified(self) -> Unified:
        return Unified(self.spark, self.conf())

    def live(self) -> list[tuple[Any, ...]]:
        return sorted(map(tuple, self.unified().read("events", live=True).select("id", "n", "seq").collect()))

    def gold(self, name: str) -> list[tuple[Any, ...]]:
        return sorted(map(tuple, self.unified().read(name).collect()))


def event(id: str, n: int, seq: int = 1, minutes: float = 0) -> dict[str, Any]:
    return {"id": id, "n": n, "seq": seq, "at": (NOON + timedelta(minutes=minutes)).isoformat()}


def test_what_is_appended_is_there_at_once(spark: Any, tmp_path: Path) -> None:
    one = Streamed(spark, tmp_path, sequence="seq")
    appender = one.appender()
    one.append(appender, event("a", 1), event("b", 2), "{not json")
    one.pipeline().publish_manifest()
    assert one.live() == [("a", 1, 1), ("b", 2, 1)]
    assert one.gold("total") == [(1, 1, 1), (2, 1, 2)]
    assert one.tiny.quarantined("events", "rule", "_line") == [("shape", 2)]
    one.append(appender, event("a", 5, 2), event("c", 9), event("b", 7, 0))
    assert one.live() == [("a", 5, 2), ("b", 2, 1), ("c", 9, 1)]
    assert one.gold("total") == [(1, 1, 1), (2, 1, 2)], "gold is as its manifest knew"
    one.pipeline().publish_manifest()
    assert one.gold("total") == [(0, 1, 9), (2, 2, 7)]
    assert one.gold("top") == [(5, "a", 2), (9, "c", 1)]
    outcome = one.pipeline("batch").transform(ingest=False)
    assert not outcome.problems
    assert one.unified().state("events").reads == {"events": (2, 2)}
    assert one.live() == [("a", 5, 2), ("b", 2, 1), ("c", 9, 1)]
    assert one.gold("total") == [(0, 1, 9), (2, 2, 7)]
    one.append(appender, event("a", 6, 3), event("d", 0))
    assert one.live() == [("a", 6, 3), ("b", 2, 1), ("c", 9, 1), ("d", 0, 1)]
    one.pipeline().publish_manifest()
    assert one.gold("total") == [(0, 3, 15), (2, 1, 2)]
    assert one.gold("top") == [(6, "a", 3), (9, "c", 1)]
    assert not one.pipeline("batch").transform(ingest=False).problems
    one.tiny.nothing_is_lost("events")


def test_many_readers_see_one_state_each(spark: Any, tmp_path: Path) -> None:
    """Each load moves x on by one and adds a row of 1: whatever is seen at once must fit together."""
    one = Streamed(spark, tmp_path, sequence="seq")
    one.tiny.gold("sums", "SELECT 1 AS k, count(*) AS events, sum(n) AS total FROM events", ["k"])
    appender, ends = one.appender(), threading.Event()

    def bring(number: int) -> None:
        one.append(appender, event("x", number, number), event(f"k{number}", 1))

    bring(1)
    assert not one.pipeline("batch").transform(ingest=False).problems
    catalog.show(spark, one.conf())
    seen: dict[str, set[tuple[int, int]]] = {"events": set(), "sums": set()}
    queries = {
        "events": "SELECT count(*), sum(n) FROM unified.events",
        "sums": "SELECT events, total FROM unified.sums",
    }

    def read(number: int) -> int:
        session, reads = spark.newSession() if number % 2 else spark, 0
        while not ends.wait(0.5):  # on two cores, more would only hold up what is published
            for name, query in queries.items():
                seen[name].add(tuple(session.sql(query).collect()[0]))
                reads += 1
        return reads

    with ThreadPoolExecutor(READERS) as readers:
        tasks = [readers.submit(read, number) for number in range(READERS)]
        try:
            for number in range(2, 5):
                bring(number)
                pipeline = one.pipeline("batch")
                outcome = pipeline.transform(ingest=False) if number == 3 else pipeline.outcome
                pipeline.publish_manifest()
                assert not outcome.problems
                catalog.show(spark, one.conf())
        finally:
            ends.set()
        assert sum(task.result() for task in tasks) > 4
    for name, answers in seen.items():
        assert all(total == 2 * (events - 1) for events, total in answers), (name, answers)
        assert len(answers) > 1, (name, answers)
    [state] = spark.sql("SELECT reads, age_seconds FROM unified._state WHERE name = 'events'").collect()
    assert json.loads(state["reads"]) == {"events": [3, 4]} and 0 <= state["age_seconds"] < 600


def test_sql_reads_what_is_unified(spark: Any, tmp_path: Path) -> None:
    one = Streamed(spark, tmp_path, sequence="seq")
    appender = one.appender()
    one.append(appender, event("a", 1))
    assert not one.pipeline("batch").transform(ingest=False).problems
    one.append(appender, event("b", 2))
    for database in ("bronze", "silver", "gold", "ops", "unified"):  # other tests' warehouses are in this catalog too
        spark.sql(f"DROP DATABASE IF EXISTS {database} CASCADE")
    queries = Queries(spark, one.conf())
    assert list(queries.run("SELECT id FROM events ORDER BY id", None)[1]) == [("a",), ("b",)]
    assert list(queries.run("SELECT id FROM silver.events", None)[1]) == [("a",)]
    both = "SELECT e.id, t.total FROM events e JOIN total t ON t.part = e.n % 3"
    assert list(queries.run(both, None)[1]) == [("a", 1)], "gold has come as far as the manifest, and so must the rest"
    assert ("unified", "total") in queries.run("SHOW TABLES", None)[1]
    assert list(queries.run("SELECT name FROM unified._state WHERE layer = 'silver'", None)[1]) == [("events",)]


def test_a_pinned_manifest_outlives_cleaning(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Streamed(spark, tmp_path, sequence="seq")
    appender, unified = one.appender(), one.unified()
    monkeypatch.setattr(maintain, "MARGIN", timedelta(0))

    def clean() -> dict[str, str]:
        pipeline = one.pipeline("batch")
        object.__setattr__(pipeline.conf.settings, "keep_hours", 0)
        return {kept.table: kept.reason for kept in maintain.vacuum(pipeline)}

    for number in (1, 2):
        one.append(appender, event("a", number, number))
        assert not one.pipeline("batch").transform(ingest=False).problems
    with maintain.pinned(unified, LOCAL, 1, "the monthly report") as number:
        old = unified.manifest(number)
        one.append(appender, event("a", 3, 3))
        assert not one.pipeline("batch").transform(ingest=False).problems
        assert clean()["silver.events"] == f"manifest {number}, which the monthly report has pinned"
        assert unified.read("events", old).select("n").collect() == [(2,)]
    assert clean()["silver.events"] == "keep_hours is 0"
    with pytest.raises(Exception, match=r"FILE_NOT_EXIST|FILE_NOT_FOUND|does not exist"):
        unified.read("events", old).select("n").collect()
    assert one.live() == [("a", 3, 3)], "what the newest manifest names is always kept"


def test_a_log_that_lay_idle_is_read_all_the_same(spark: Any, tmp_path: Path) -> None:
    """Delta refuses to read a version that is older than what it remembers, be it the newest."""
    one = Streamed(spark, tmp_path, sequence="seq")
    one.append(one.appender(), event("a", 1))
    log = f"delta.`{tmp_path}/warehouse/bronze/events`"
    spark.sql(f"ALTER TABLE {log} SET TBLPROPERTIES ('delta.deletedFileRetentionDuration' = 'interval 0 seconds')")
    time.sleep(1)
    with pytest.raises(Exception, match=r"(?i)time travel"):
        spark.sql(f"SELECT * FROM {log} VERSION AS OF 0").collect()
    one.pipeline().publish_manifest()
    assert one.live() == [("a", 1, 1)] and one.gold("total") == [(1, 1, 1)]
    assert not one.pipeline("batch").transform(ingest=False).problems
    assert one.tiny.rows("silver/events", "id") == [("a",)]
