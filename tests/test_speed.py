"""The speed layer over a real broker and over folders: everything once, whoever starts, ends or comes back."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from test_unified import event
from tiny import KEY, WHOLE, Tiny

from drivetrain import conf as reader
from drivetrain import pace, requeue
from drivetrain.anomaly import fit, review
from drivetrain.appender import Figures
from drivetrain.pipeline import Outcome
from drivetrain.progress import Progress
from drivetrain.sink import Table
from drivetrain.speed import Speed
from drivetrain.unified import Unified

COLUMNS = {"id": KEY, "n": WHOLE, "seq": WHOLE, "at": {"logicalType": "timestamp", "required": True}}
EVENTS = {"sequence": "seq", "eventTime": "at"}
TOTAL = "SELECT n % 3 AS part, count(*) AS events, sum(n) AS total FROM events GROUP BY n % 3"


class Plant:
    """A small pipeline with one stream."""

    def __init__(self, spark: Any, home: Path, server: Any = None, **stream: Any) -> None:
        self.spark, self.tiny = spark, Tiny(spark, home)
        self.tiny.dataset("events", COLUMNS, "json", server=server, stream=stream, **EVENTS)
        self.tiny.gold("total", TOTAL, ["part"])

    def conf(self) -> Any:
        return reader.load(self.tiny.home / "conf", "local", environ={})

    def speed(self, once: bool = False, accepted: Sequence[str] = ()) -> Speed:
        return Speed(self.spark, self.conf(), [], Progress("speed"), once, accepted)

    def once(self, *accepted: str) -> Outcome:
        return self.speed(True, accepted).run(lambda _: None)

    def rows(self) -> list[tuple[Any, ...]]:
        found = Unified(self.spark, self.conf()).read("events", live=True).select("id", "n", "seq").collect()
        return sorted(map(tuple, found))

    def total(self) -> list[tuple[Any, ...]]:
        return sorted(map(tuple, Unified(self.spark, self.conf()).read("total").collect()))


class Running:
    """A speed layer in a thread, until the block ends."""

    def __init__(self, speed: Speed) -> None:
        self.speed, self.figures = speed, list[Figures]()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        self.outcome = self.speed.run(self.seen)

    def seen(self, figures: Sequence[Figures]) -> None:
        self.figures = list(figures)

    def __enter__(self) -> Running:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.speed.stop.set()
        self.thread.join(120)

    def until(self, rows: int, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while sum(one.rows_in for one in self.figures) < rows:
            assert time.monotonic() < deadline, self.figures
            time.sleep(0.1)


def sent(*events: Any) -> list[bytes]:
    return [one if isinstance(one, bytes) else json.dumps(one).encode() for one in events]


@pytest.mark.spark
def test_a_folder_streams(spark: Any, tmp_path: Path) -> None:
    plant = Plant(spark, tmp_path, delay="10 min", trigger="1 s")
    plant.tiny.land("events/1.json", json.dumps(event("a", 1)), json.dumps(event("b", 2, minutes=30)))
    with Running(plant.speed()) as running:
        running.until(2)
        plant.tiny.land("events/2.json", json.dumps(event("a", 4, 2, minutes=25)), json.dumps(event("c", 3)), "{no")
        running.until(5)
        assert [(f.good, f.quarantined, f.late) for f in running.figures] == [(3, 1, 1)]
        assert not plant.tiny.rows("silver/events", "id"), "nothing has been merged yet"
    assert not running.outcome.problems
    assert plant.rows() == [("a", 4, 2), ("b", 2, 1), ("c", 3, 1)] and plant.total() == [
        (0, 1, 3),
        (1, 1, 4),
        (2, 1, 2),
    ]
    assert plant.tiny.rows("late", "_line") == [(2,)] and plant.tiny.rows("ops/alerts", "kind") == [("late",)]
    brought = plant.tiny.rows("ops/speed", "rows_in", "good", "quarantined", "late", "batches")
    assert brought == [(5, 3, 1, 1, 2)]
    assert not plant.tiny.run().problems
    plant.tiny.nothing_is_lost("events")


@contextmanager
def edited(plant: Plant) -> Iterator[Any]:
    """The dataset's contract, which is what the block has made of it from then on."""
    path = plant.tiny.home / "conf/datasets/events.yaml"
    contract = json.loads(path.read_text())
    yield contract
    path.write_text(json.dumps(contract))


def named(plant: Plant, topic: str, **stream: Any) -> None:
    """The dataset reads that topic."""
    with edited(plant) as contract:
        contract["schema"][0]["physicalName"] = topic
        for item in contract["customProperties"]:
            if item["property"] == "stream":
                item["value"] |= stream


def declared(plant: Plant, **more: Any) -> None:
    """With these customProperties too."""
    with edited(plant) as contract:
        contract["customProperties"] += [{"property": name, "value": value} for name, value in more.items()]


@pytest.fixture
def topic(spark: Any, tmp_path: Path, broker: Any, request: pytest.FixtureRequest) -> Iterator[tuple[Plant, str]]:
    name = f"events-{time.time_ns()}"
    broker.create(name, 2)
    server = broker.server(format="json")
    plant = Plant(spark, tmp_path, server, delay="10 min", ahead="1 h", trigger="0.5 s", latency="5 s")
    named(plant, name)
    yield plant, name


@pytest.mark.cluster
def test_a_topic_streams(topic: tuple[Plant, str], broker: Any) -> None:
    plant, name = topic
    broker.send(name, sent(event("a", 1), event("b", 2)))
    broker.send(name, [*sent(b"\xff\xfe", event("c", 3)), None], 1)
    outcome = plant.once()
    assert not outcome.problems and plant.rows() == [("a", 1, 1), ("b", 2, 1), ("c", 3, 1)]
    assert plant.tiny.quarantined("events", "_block", "_line", "rule") == [(1, 0, "encoding"), (1, 2, "shape")]
    assert plant.once().ledger == [], "nothing new"
    broker.send(name, sent(event("a", 5, 2), event("d", 9), event("b", 7, 2, minutes=-30)))
    with Running(plant.speed()) as running:
        running.until(3)
        assert plant.rows() == [("a", 5, 2), ("b", 2, 1), ("c", 3, 1), ("d", 9, 1)], "b's update is late"
        with Running(plant.speed()) as second:
            second.thread.join(60)
        assert not hasattr(second, "outcome"), "the lease is held"
        assert plant.tiny.run().problems == [], "a batch beside the stream"
        assert plant.rows() == [("a", 5, 2), ("b", 7, 2), ("c", 3, 1), ("d", 9, 1)], "late ones enter with the batch"
        broker.send(name, sent(event("e", 6)))
        running.until(4)
        assert ("e", 6, 1) in plant.rows()
    assert not running.outcome.problems
    assert plant.total() == [(0, 3, 18), (1, 1, 7), (2, 1, 5)]
    brought = pace.known(Table(plant.spark, f"{plant.tiny.home}/warehouse/ops/speed"), "events")
    assert sum(one.rows for one in brought) >= 9 and all(0 < one.seconds < 60 * one.batches for one in brought)
    plant.tiny.nothing_is_lost("events")


@pytest.mark.cluster
def test_a_topics_anomalies_are_removed_as_they_come(topic: tuple[Plant, str], broker: Any) -> None:
    """By the model that acts; released they enter once, though the stream runs."""
    plant, name = topic
    declared(plant, anomaly={"features": ["n"], "share": 0.02})
    made = random.Random(1)
    broker.send(name, sent(*[event(f"k{n}", int(made.gauss(0, 100))) for n in range(200)]))
    assert not plant.once().problems
    pipeline = plant.tiny.pipeline()
    dataset = pipeline.conf.datasets["events"]
    version = fit.fit(pipeline, dataset, "a test").version
    pipeline.judges.registry.promote("events", version, "enforce", "test", "")
    with Running(plant.speed()) as running:
        broker.send(name, sent(event("odd", 5000), event("k0", 3, 2)))
        running.until(2)
        assert ("odd", 5000, 1) not in plant.rows() and ("k0", 3, 2) in plant.rows()
        assert plant.tiny.quarantined("events", "rule", "_line") == [("anomaly", 200)]
        assert plant.tiny.run().problems == [], "a batch takes the load with its verdict"
        pipeline = plant.tiny.pipeline()
        assert review.label(pipeline, dataset, "removed", "released") == 1
        requeue.requeue(pipeline)
        broker.send(name, sent(event("e", 6)))
        running.until(3)
        assert {("odd", 5000, 1), ("e", 6, 1)} < set(plant.rows())
    assert not running.outcome.problems and plant.tiny.rows("ops/anomalies", "removed", "version") == [(True, version)]
    plant.tiny.nothing_is_lost("events")


@pytest.mark.cluster
def test_what_is_lost_is_named_and_accepted_by_a_person_only(topic: tuple[Plant, str], broker: Any) -> None:
    plant, name = topic
    broker.send(name, sent(event("a", 1)))
    assert not plant.once().problems
    broker.send(name, sent(event("b", 2), event("c", 3), event("d", 4)))
    broker.delete_records(name, 0, 3)
    [problem] = plant.once().problems
    assert problem.code == "lost" and "partition 0 from 1 to before 3" in str(problem)
    assert plant.rows() == [("a", 1, 1)]
    assert "--accept-loss=events:0:1" in problem.fix
    assert not plant.once("events:0:1").problems
    assert plant.rows() == [("a", 1, 1), ("d", 4, 1)] and plant.tiny.rows("ops/alerts", "kind") == [("lost",)]
    assert not plant.once().problems


@pytest.mark.cluster
def test_good_records_go_on_at_once(spark: Any, tmp_path: Path, broker: Any) -> None:
    name = f"events-{time.time_ns()}"
    for one in (name, f"{name}.good"):
        broker.create(one)
    plant = Plant(spark, tmp_path, broker.server(format="json"), trigger="1 s")
    named(plant, name, output=f"{name}.good")
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": name, "auto.offset.reset": "earliest"})
    consumer.subscribe([f"{name}.good"])
    with Running(plant.speed()) as running:
        broker.send(name, sent(event("a", 1), b"{torn", event("b", 2)))
        found: list[Any] = []
        deadline = time.monotonic() + 90
        while len(found) < 2 and time.monotonic() < deadline:
            found += consumer.consume(10, 1)
        running.until(3)
    consumer.close()
    values = [json.loads(message.value()) for message in found]
    assert [(value["id"], value["n"], value["_line"]) for value in values] == [("a", 1, 0), ("b", 2, 2)]
    assert [json.loads(message.key()) for message in found] == [{"id": "a"}, {"id": "b"}]
    assert not running.outcome.problems and plant.rows() == [("a", 1, 1), ("b", 2, 1)]


@pytest.mark.cluster
def test_a_stream_that_needs_more_cores_says_so(topic: tuple[Plant, str]) -> None:
    plant, name = topic
    named(plant, name, output=f"{name}.good")
    [problem] = plant.speed().run(lambda _: None).problems
    assert problem.code == "cores" and "2 partitions" in problem.what
