"""Speed: ours beside the bare stream (Kafka's columns appended to a Delta table), on the same broker, in turn.

Latency: events come at a steady rate, and one counts as visible when the commit that holds it can be read, which for
ours is when the unified view shows it. Throughput: a full topic, read to its end.
  p50_vs_bare, p99_vs_bare  seconds from a message's own time to its being visible, ours / bare
  throughput_vs_bare        rows a second, ours / bare; bare_over_throughput is bare / ours
  commits_per_batch         Delta commits of ours for each micro-batch, all tables counted
  state_partitions_ratio    seconds of a stateful micro-batch of 2,000 rows, 200 partitions / 2. Ours has no stateful
                            operator at all, as silver and the view remove repeats: it shows what that saves.
  last_over_first_batches   seconds of a micro-batch among the last tenth / among the second, of many one after the
                            other, with merges and compaction beside
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import _shared as bench
import cluster
from one_broker import OneBroker
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from drivetrain import job
from drivetrain.contracts import Conf
from drivetrain.sink import session_confs
from drivetrain.speed import Speed, Topic

POLL: Final = 0.02  # seconds
PARTITIONS: Final = 2
BATCH: Final = 100_000  # messages at most, of both sides
PATIENCE: Final = 120.0  # seconds for a stream to begin, and to come to its end
STATE_ROWS, STATE_BATCHES = 2_000, 6


def event(number: int) -> bytes:
    now = datetime.now(timezone.utc)
    row = {
        "id": f"D{number:010}", "seq": 1, "at": now.isoformat(), "day": now.date().isoformat(),
        "kind": bench.KINDS[number % len(bench.KINDS)], "amount": f"{number % 100_000 / 100:.2f}", "note": bench.NOTE,
    }  # fmt: skip
    return json.dumps(row).encode()


# --- What a Delta table's log says ---


@dataclass
class Watch:
    """When each version of a table could be read first."""

    table: Path
    seen: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def commit(self, version: int) -> Path:
        return self.table / "_delta_log" / f"{version:020}.json"

    def run(self) -> None:
        while not self.stop.wait(POLL):
            while self.commit(len(self.seen)).exists():
                self.seen.append(time.time())

    def added(self, version: int) -> list[dict[str, Any]]:
        """The files that the version brought."""
        actions = map(json.loads, self.commit(version).read_text().splitlines())
        return [action["add"] for action in actions if "add" in action]

    def rows(self) -> int:
        return sum(json.loads(add["stats"])["numRecords"] for v in range(len(self.seen)) for add in self.added(v))

    def lags(self, spark: SparkSession, sent: str, since: float, until: float) -> list[float]:
        """Seconds from each message's time until it could be read, of those sent in that span; in order."""
        files = {unquote(add["path"]): self.seen[v] for v in range(len(self.seen)) for add in self.added(v)}
        names = {Path(name).name: at for name, at in files.items()}
        rows = spark.read.format("delta").load(str(self.table)).where(F.col(sent).isNotNull())
        found = rows.select("_metadata.file_name", F.unix_micros(sent) / 1e6).collect()
        return sorted(names[name] - at for name, at in found if since <= at < until)


@contextmanager
def watching(table: Path) -> Iterator[Watch]:
    watch = Watch(table)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop.set()
        thread.join()


# --- The two sides ---


@dataclass
class Plant:
    """The session, the broker, and a folder for each stream."""

    spark: SparkSession
    broker: OneBroker
    work: Path
    trigger: float

    def conf(self, home: Path, topic: str) -> Conf:
        stream = {"delay": "10 min", "ahead": "1 h", "trigger": f"{self.trigger:g} s"}
        server = self.broker.server(format="json")
        return bench.events_conf(home, server, topic, stream=stream, kafka={"maxMessages": BATCH})

    def bare(self, home: Path, topic: str, **trigger: Any) -> StreamingQuery:
        options = {
            "kafka.bootstrap.servers": self.broker.bootstrap, "subscribe": topic, "startingOffsets": "earliest",
            "maxOffsetsPerTrigger": str(BATCH), "kafka.isolation.level": "read_committed",
        }  # fmt: skip
        messages = self.spark.readStream.format("kafka").options(**options).load()
        rows = messages.select("key", "value", "topic", "partition", "offset", "timestamp")
        writer = rows.writeStream.format("delta").option("checkpointLocation", str(home / "checkpoint"))
        return writer.trigger(**trigger).start(str(home / "table"))


class Ours:
    """The speed layer, streaming; at the end it merges, which is not measured."""

    sent = "_sent"

    def __init__(self, plant: Plant, home: Path, topic: str) -> None:
        self.conf = plant.conf(home, topic)
        self.table = home / "warehouse" / "bronze" / "events"
        self.warehouse = home / "warehouse"
        self.speed = Speed(plant.spark, self.conf, [], bench.quiet(job.run_id()), once=False)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        outcome = self.speed.run(lambda _: None)
        assert not outcome.problems, outcome.problems

    def commits_per_batch(self, rows: int) -> float:
        """Once all rows have come, and nothing is under way."""
        figures = self.speed.sources[0].figures
        until("not all is counted", lambda: figures.rows_in >= rows)
        commits = [
            file for folder in ("bronze/events", "quarantine", "late", "ops/alerts")
            for file in (self.warehouse / folder / "_delta_log").glob("*.json")
        ]  # fmt: skip
        return len(commits) / figures.batches

    def end(self) -> None:
        self.speed.stop.set()
        self.thread.join()


class Bare:
    sent = "timestamp"

    def __init__(self, plant: Plant, home: Path, topic: str) -> None:
        self.table = home / "table"
        self.query = plant.bare(home, topic, processingTime=f"{plant.trigger * 1000:.0f} milliseconds")

    def end(self) -> None:
        self.query.stop()


# --- Latency ---


class Sender:
    """Sends events at a steady rate, until it is told to stop."""

    def __init__(self, broker: OneBroker, topic: str, rate: float) -> None:
        self.producer, self.topic, self.rate = broker.producer(), topic, rate
        self.sent, self.stop = 0, threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        began = time.monotonic()
        while not self.stop.wait(max(0.0, began + self.sent / self.rate - time.monotonic())):
            self.producer.produce(self.topic, event(self.sent), partition=self.sent % PARTITIONS)
            self.producer.poll(0)
            self.sent += 1

    def end(self) -> None:
        self.stop.set()
        self.thread.join()
        assert self.producer.flush(60) == 0


@dataclass(frozen=True)
class Latency:
    p50: float
    p99: float
    versions: int
    commits_per_batch: float | None


def until(what: str, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"after {PATIENCE:g} s: {what}"
        time.sleep(0.1)


def latency(plant: Plant, kind: type[Ours | Bare], rate: float, skip: float, seconds: float) -> Latency:
    home = Path(tempfile.mkdtemp(dir=plant.work))
    topic = home.name
    plant.broker.create(topic, PARTITIONS)
    with watching_stream(plant, kind, home, topic) as (side, watch):
        sender = Sender(plant.broker, topic, rate)
        until("nothing is visible", lambda: watch.rows() > 0)
        time.sleep(skip)
        since = time.time()
        time.sleep(seconds)
        upto = time.time()
        sender.end()
        until("not all is visible", lambda: watch.rows() >= sender.sent)
        commits = side.commits_per_batch(sender.sent) if isinstance(side, Ours) else None
    lags = watch.lags(plant.spark, side.sent, since, upto)
    shutil.rmtree(home)
    cuts = statistics.quantiles(lags, n=100)
    return Latency(cuts[49], cuts[98], len(watch.seen), commits)


@contextmanager
def watching_stream(
    plant: Plant, kind: type[Ours | Bare], home: Path, topic: str
) -> Iterator[tuple[Ours | Bare, Watch]]:
    side = kind(plant, home, topic)
    try:
        with watching(side.table) as watch:
            yield side, watch
    finally:
        side.end()


def latencies(plant: Plant, rounds: int, rate: float, skip: float, seconds: float) -> dict[str, float]:
    found: dict[type[Ours | Bare], list[Latency]] = {Ours: [], Bare: []}
    for kind in found:  # neither pays for the JVM's first steps
        latency(plant, kind, rate, 0, 5)
    for i in range(rounds):
        for kind in [Ours, Bare][:: 1 if i % 2 == 0 else -1]:
            one = latency(plant, kind, rate, skip, seconds)
            found[kind].append(one)
            said = f"p50 {one.p50:.2f} s, p99 {one.p99:.2f} s, {one.versions} commits"
            bench.say(f"round {i + 1}: {kind.__name__} {said}")
    ours, bare = found[Ours], found[Bare]
    for name, side in (("ours", ours), ("bare", bare)):
        p50, p99 = (statistics.median(getattr(one, part) for one in side) for part in ("p50", "p99"))
        print(f"{name}: p50 {p50:.2f} s, p99 {p99:.2f} s")
    return {
        "p99_vs_bare": bench.median_ratio([one.p99 for one in ours], [one.p99 for one in bare]),
        "p50_vs_bare": bench.median_ratio([one.p50 for one in ours], [one.p50 for one in bare]),
        "commits_per_batch": statistics.median(one.commits_per_batch or 0 for one in ours),
    }


# --- Throughput ---


def fill(broker: OneBroker, topic: str, messages: int) -> None:
    broker.create(topic, PARTITIONS)
    producer = broker.producer(**{"linger.ms": 50, "queue.buffering.max.messages": 1_000_000})
    for number in range(messages):
        producer.produce(topic, event(number), partition=number % PARTITIONS)
        if number % 10_000 == 0:
            while len(producer) > 500_000:
                producer.poll(0.1)
    assert producer.flush(120) == 0


def drain_ours(plant: Plant, topic: str, home: Path) -> DataFrame:
    """The stream only, to the commit of its last load."""
    pipeline = bench.pipeline(plant.spark, plant.conf(home, topic), "speed")
    source = Topic(pipeline, pipeline.conf.datasets["events"], True, threading.Event())
    source.thread.start()
    source.thread.join()
    assert not source.failure, source.failure
    return pipeline.table("bronze", "events").read()


def drain_bare(plant: Plant, topic: str, home: Path) -> DataFrame:
    plant.bare(home, topic, availableNow=True).awaitTermination()
    return plant.spark.read.format("delta").load(str(home / "table"))


def drained(plant: Plant, drain: Callable[[Plant, str, Path], DataFrame], topic: str, messages: int) -> float:
    """Rows a second."""
    home, out = Path(tempfile.mkdtemp(dir=plant.work)), list[DataFrame]()
    seconds = bench.timed(lambda: out.append(drain(plant, topic, home)))
    assert out[0].count() == messages
    shutil.rmtree(home)
    return messages / seconds


def throughput(plant: Plant, rounds: int, messages: int) -> dict[str, float]:
    sides = {"ours": drain_ours, "bare": drain_bare}
    fill(plant.broker, "rehearsed", 20_000)
    for drain in sides.values():
        drained(plant, drain, "rehearsed", 20_000)
    topic = f"full-{messages}"
    fill(plant.broker, topic, messages)
    bench.say(f"{messages:,} messages of {len(event(0))} bytes")
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 == 0 else -1]:
            rates[name].append(drained(plant, sides[name], topic, messages))
            bench.say(f"round {i + 1}: {name} {rates[name][-1]:,.0f} rows/s")
    for name, found in rates.items():
        print(f"{name}: {statistics.median(found):,.0f} rows/s")
    return {
        "throughput_vs_bare": bench.median_ratio(rates["ours"], rates["bare"]),
        "bare_over_throughput": bench.median_ratio(rates["bare"], rates["ours"]),
    }


# --- State ---


def stateful(plant: Plant, partitions: int) -> float:
    """Median seconds of a micro-batch that remembers what it has seen."""
    spark, home = plant.spark, Path(tempfile.mkdtemp(dir=plant.work))
    source = {"rowsPerBatch": str(STATE_ROWS), "numPartitions": "2", "advanceMillisPerBatch": "1000"}
    with session_confs(spark, {"spark.sql.shuffle.partitions": str(partitions)}):
        rows = spark.readStream.format("rate-micro-batch").options(**source).load()
        once = rows.withWatermark("timestamp", "1 minute").dropDuplicatesWithinWatermark(["value"])
        query = once.writeStream.format("noop").option("checkpointLocation", str(home)).start()
        until("batches are not done", lambda: len(query.recentProgress) > STATE_BATCHES)
        query.stop()
    done = [one["durationMs"]["triggerExecution"] / 1000 for one in query.recentProgress[1 : STATE_BATCHES + 1]]
    shutil.rmtree(home)
    return statistics.median(done)


def states(plant: Plant, rounds: int) -> dict[str, float]:
    seconds: dict[int, list[float]] = {200: [], 2: []}
    for i in range(rounds):
        for partitions, found in seconds.items():
            found.append(stateful(plant, partitions))
            bench.say(f"round {i + 1}: {partitions} state partitions, {found[-1]:.2f} s a batch")
    return {"state_partitions_ratio": bench.median_ratio(seconds[200], seconds[2])}


# --- Flatness ---


def flatness(plant: Plant, batches: int) -> dict[str, float]:
    """Seconds of a micro-batch, with merges and compaction beside: of the last tenth, over those of the second."""
    home = Path(tempfile.mkdtemp(dir=plant.work))
    topic = home.name
    plant.broker.create(topic, PARTITIONS)
    eager = replace(plant, trigger=0.01)
    side, seconds = Ours(eager, home, topic), dict[int, float]()
    sender = Sender(plant.broker, topic, 100)
    told = 0
    try:
        until("nothing streams", lambda: bool(side.speed.sources))
        figures = side.speed.sources[0].figures
        while figures.batches < batches and side.thread.is_alive():
            seconds[figures.batches] = figures.batch_seconds
            if figures.batches >= told + batches // 10:
                told = figures.batches
                bench.say(f"{told:,} batches, {statistics.median(list(seconds.values())[-batches // 20 :]):.3f} s each")
            time.sleep(POLL)
    finally:
        sender.end()
        side.end()
    shutil.rmtree(home)
    first = [one for number, one in seconds.items() if batches // 10 <= number < batches // 5]
    last = [one for number, one in seconds.items() if number >= batches - batches // 10]
    return {"last_over_first_batches": statistics.median(last) / statistics.median(first)}


# --- All ---


@contextmanager
def broker() -> Iterator[OneBroker]:
    home = Path(tempfile.mkdtemp(prefix="drivetrain-broker-"))
    java = Path(os.environ["JAVA_HOME"], "bin/java") if "JAVA_HOME" in os.environ else shutil.which("java")
    made = OneBroker(cluster, home, Path(os.environ["DRIVETRAIN_HOME"]), str(java))
    try:
        made.up()
        yield made
    finally:
        made.down()
        shutil.rmtree(home, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, help="rounds (default 3)")
    parser.add_argument("--seconds", type=float, help="for which latency is measured in each round (default 60)")
    parser.add_argument("--skip", type=float, default=5.0, help="seconds before that (default 5)")
    parser.add_argument("--rate", type=float, default=50.0, help="events a second (default 50)")
    parser.add_argument("--trigger", type=float, default=1.0, help="seconds, of both sides (default 1)")
    parser.add_argument("--messages", type=int, help="of the full topic (default 1 million)")
    parser.add_argument("--batches", type=int, help="of the run that must stay flat (default 10,000: over an hour)")
    parser.add_argument("--only", choices=("latency", "throughput", "state", "flat"))
    given = parser.parse_args()
    rounds = given.rounds or (1 if given.quick else 3)
    seconds = given.seconds or (10 if given.quick else 60)
    messages = given.messages or (20_000 if given.quick else 1_000_000)
    batches = given.batches or (100 if given.quick else 10_000)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=bench.ROOT) as folder, broker() as node:
        conf = bench.events_conf(Path(folder) / "session", node.server(format="json"))
        plant = Plant(bench.session(conf), node, Path(folder), given.trigger)
        parts = {
            "latency": partial(latencies, plant, rounds, given.rate, given.skip, seconds),
            "throughput": partial(throughput, plant, rounds, messages),
            "state": partial(states, plant, rounds),
            "flat": partial(flatness, plant, batches),
        }
        keys: dict[str, float] = {}
        for name, part in parts.items():
            if given.only in (None, name):
                keys |= part()
    bench.show(keys)


if __name__ == "__main__":
    main()
