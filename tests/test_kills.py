"""Speed through kills, as real processes: drivers, a broker, executors and nodes; and what two drivers do to one log.

A seed chooses the moments. Each fault must be seen, else the case fails; then every message that the broker has
acknowledged stands exactly once where it belongs. The last cases take a defence away: then it does not; these run by
default. KILL_SEEDS=1,2,3 runs all of them, twenty minutes for each seed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from test_speed import Plant
from test_unified import Streamed, event

from drivetrain import bronze, logend
from drivetrain.appender import Appender, Batch
from drivetrain.errors import DrivetrainError
from drivetrain.logend import End, Mark
from drivetrain.session import files_of
from drivetrain.sink import Table, Txn

ROOT = Path(__file__).resolve().parents[1]
SUBMIT = str(ROOT / "spark-submit.sh")
ASKED = os.environ.get("KILL_SEEDS")
SEEDS = [int(seed) for seed in (ASKED or "1").split(",")]
when_asked = pytest.mark.skipif(not ASKED, reason="it takes minutes for each seed: KILL_SEEDS=1,2,3 runs it")
HOWS = ("java", "python", "both")
BACKEND = "YarnCoarseGrainedExecutorBackend"
on_the_broker = pytest.mark.timeout(1500)


# --- Who sends ---


class Feed:
    """Sends numbered events until the block ends: some twice, some wrong, and late ones as soon as it ``may_be_late``.
    ``acked`` tells what the broker has acknowledged: kind and id by partition and offset."""

    def __init__(self, broker: Any, topic: str, seed: int) -> None:
        self.broker, self.topic, self.random = broker, topic, random.Random(seed)
        self.acked: dict[tuple[int, int], tuple[str, str]] = {}
        self.may_be_late, self.stop, self.failures = threading.Event(), threading.Event(), list[str]()
        self.good, self.number = list[bytes](), 0
        self.thread = threading.Thread(target=self.run)

    def __enter__(self) -> Feed:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stop.set()
        self.thread.join(180)
        assert not self.thread.is_alive()

    def run(self) -> None:
        told = {"enable.idempotence": True, "error_cb": lambda error: self.failures.append(str(error))}
        self.producer = self.broker.producer(**told)
        while not self.stop.is_set():
            for _ in range(self.random.randint(1, 12)):
                self.send()
            self.producer.poll(0)
            self.stop.wait(self.random.uniform(0.05, 0.4))
        self.producer.flush(120)

    def send(self) -> None:
        kind = self.random.choices(("good", "again", "bad", "late"), (80, 8, 7, 5))[0]
        if (kind == "again" and not self.good) or (kind == "late" and not self.may_be_late.is_set()):
            kind = "good"
        value = self.random.choice(self.good) if kind == "again" else self.event(kind)
        id = json.loads(value)["id"]

        def acknowledged(error: Any, message: Any) -> None:
            assert not error, error
            self.acked[message.partition(), message.offset()] = kind, id

        self.producer.produce(self.topic, value, partition=self.random.randint(0, 1), on_delivery=acknowledged)

    def event(self, kind: str) -> bytes:
        at, self.number = datetime.now(timezone.utc), self.number + 1
        made = {"id": f"e{self.number:06}", "n": self.number, "seq": 1, "at": at.isoformat()}
        if kind == "bad":
            made["n"] = "x"
        elif kind == "late":
            made["at"] = (at - timedelta(hours=3)).isoformat()
        value = json.dumps(made).encode()
        if kind == "good":
            self.good.append(value)
        return value

    def of(self, *kinds: str) -> list[tuple[int, int]]:
        return sorted(place for place, (kind, _) in self.acked.items() if kind in kinds)


# --- Who reads ---


def processes(kind: str) -> list[int]:
    """Those with that word on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if kind.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def parent(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def state(process: int) -> str:
    """As /proc has it: T is stopped, Z has ended, as good as the empty one of a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def until(what: str, seen: Callable[[], Any], said: Callable[[], str], seconds: float = 400) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < deadline, f"not seen: {what}\n{said()[-4000:]}"
        time.sleep(0.05)
    return found


class Driver:
    """`spark-submit.sh speed`: the process is Java, and Python its child."""

    def __init__(self, log: Path, environ: dict[str, str], *words: str) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [SUBMIT, "speed", *words], stdout=file, stderr=file, env=environ, start_new_session=True
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def python(self) -> int | None:
        return next((p for p in processes("speed.py") if parent(p) == self.process.pid), None)

    def until(self, what: str, seen: Callable[[], Any], seconds: float = 400) -> Any:
        def seen_alive() -> Any:
            assert self.process.poll() is None, f"ended before {what}: {self.said()[-4000:]}"
            return seen()

        return until(what, seen_alive, self.said, seconds)

    def kill(self, how: str) -> None:
        """kill -9 of one process, or of both; the other must end by itself."""
        java, python = self.process.pid, self.until("its Python", self.python)
        if how == "both":
            os.killpg(java, signal.SIGKILL)
        else:
            os.kill(java if how == "java" else python, signal.SIGKILL)
        assert self.process.wait(120) == (137 if how == "python" else -signal.SIGKILL), self.said()[-2000:]
        until("the end of its Python", lambda: state(python) in "Z", self.said, 120)

    def freeze(self) -> None:
        both = self.process.pid, self.until("its Python", self.python)
        os.killpg(self.process.pid, signal.SIGSTOP)
        until("that it stands still", lambda: {state(p) for p in both} == {"T"}, self.said, 10)

    def ends(self, code: int, seconds: float = 300) -> str:
        assert self.process.wait(seconds) == code, self.said()[-4000:]
        return self.said()


class Bench(Plant):
    """A stream of one topic of two partitions, its drivers, and what they have made."""

    def __init__(self, spark: Any, home: Path, broker: Any, *words: str, **environ: str) -> None:
        self.spark, self.words, self.environ = spark, words, {**os.environ, **environ}
        super().__init__(spark, home, broker.server(format="json"), delay="1 h", ahead="1 h", trigger="0.5 s",
                         mergeAfter="8 s")  # fmt: skip
        self.topic, self.warehouse, self.drivers = f"kills-{uuid4().hex[:8]}", f"{home}/warehouse", list[Driver]()
        broker.create(self.topic, 2)
        contract = home / "conf/datasets/events.yaml"
        described = json.loads(contract.read_text())
        described["schema"][0]["physicalName"] = self.topic
        contract.write_text(json.dumps(described))
        base = yaml.safe_load((ROOT / "conf/base.yaml").read_text())
        for name in ("local.yaml", "yarn.yaml"):
            shipped = yaml.safe_load((ROOT / "conf" / name).read_text())
            shipped["spark"] = {**base["spark"], **shipped["spark"]}
            (home / "conf" / name).write_text(json.dumps(shipped))

    def start(self, *words: str) -> Driver:
        log = self.tiny.home / f"driver{len(self.drivers)}.log"
        place = ("--conf-dir", str(self.tiny.home / "conf"))
        self.drivers.append(Driver(log, self.environ, *place, *self.words, *words))
        return self.drivers[-1]

    def end(self) -> None:
        for driver in self.drivers:
            if driver.process.poll() is None:
                os.killpg(driver.process.pid, signal.SIGKILL)
                driver.process.wait()

    def commits(self, table: str) -> int:
        path = f"{self.warehouse}/{table}/_delta_log"
        with suppress(FileNotFoundError):
            return sum(file.path.endswith(".json") for file in files_of(path, self.spark).walk(path))
        return 0

    def more(self, driver: Driver, commits: int = 2, table: str = "bronze/events") -> None:
        """Wait until the driver, or another, has committed more."""
        wanted = self.commits(table) + commits
        driver.until(f"{commits} more commits to {table}", lambda: self.commits(table) >= wanted)

    def moment(self, driver: Driver, chosen: random.Random) -> str:
        """Wait for two commits, then somewhere behind one of them, or within a merge."""
        self.more(driver)
        within = chosen.choice(("a batch", "a merge"))
        if within == "a merge":
            staging = Path(f"{self.warehouse}/_staging/silver/events")
            driver.until("a merge", staging.exists)
        time.sleep(chosen.uniform(0, 2))
        return within

    def frame(self, table: str) -> Any:
        return self.spark.read.format("delta").load(f"{self.warehouse}/{table}")

    def places(self, table: str, where: str = "true") -> list[tuple[int, int]]:
        return sorted(map(tuple, self.frame(table).where(where).select("_block", "_line").collect()))

    def check(self, feed: Feed) -> None:
        """Each acknowledged message is where it belongs, once."""
        sent = feed.of("good", "again", "bad", "late")
        counts = Counter(partition for partition, _ in sent)
        assert sent == [(p, offset) for p in sorted(counts) for offset in range(counts[p])], "the broker's own account"
        assert self.places("bronze/events") == sent
        assert self.places("quarantine") == feed.of("bad")
        assert self.places("late") == feed.of("late")
        once = sorted(feed.acked[place][1] for place in feed.of("good", "late"))
        assert sorted(row[0] for row in self.frame("silver/events").select("id").collect()) == once
        ledger = [row.asDict() for row in self.frame("ops/ledger").where("dataset = 'events'").collect()]
        for row in ledger:
            assert row["rows_in"] == row["good"] + row["quarantined"] + row["duplicate"] + row["late"], row
        total = {name: sum(row[name] for row in ledger) for name in ("rows_in", "good", "quarantined", "duplicate")}
        assert total == {
            "rows_in": len(sent), "good": len(once), "quarantined": len(feed.of("bad")),
            "duplicate": len(feed.of("again")),
        }  # fmt: skip
        assert feed.of("again") and feed.of("bad") and feed.of("late")
        shown = self.frame("gold/total").agg({"events": "sum"}).first()[0]
        assert shown == len(once), "gold after the last merge"


@pytest.fixture
def bench(spark: Any, tmp_path: Path, broker: Any) -> Iterator[Bench]:
    small = {"spark.master": "local[2]", "spark.driver.memory": "1g", "spark.sql.shuffle.partitions": "2"}
    words = [word for key, value in small.items() for word in ("--set", f"spark.{key}={value}")]
    made = Bench(spark, tmp_path, broker, *words)
    yield made
    made.end()


# --- On one machine ---


@when_asked
@on_the_broker
@pytest.mark.cluster
@pytest.mark.parametrize("seed", SEEDS)
def test_drivers_and_the_broker_are_killed(bench: Bench, broker: Any, seed: int) -> None:
    chosen = random.Random(seed)
    with Feed(broker, bench.topic, seed) as feed:
        for how in chosen.sample(HOWS, 3):
            driver = bench.start()
            bench.more(driver)
            feed.may_be_late.set()
            print(f"seed {seed}: {how} is killed within {bench.moment(driver, chosen)}")
            driver.kill(how)
        driver = bench.start()
        bench.more(driver)
        second = bench.start()
        assert "[streaming]" in second.ends(1) and driver.process.poll() is None
        bench.more(driver, 1)

        victim = broker.cluster.pid("kafka")
        os.kill(victim, signal.SIGKILL)
        until("the broker's end", lambda: state(victim) in "Z", driver.said, 10)
        until("that nobody can send", lambda: feed.failures, driver.said, 60)
        time.sleep(chosen.uniform(0, 20))
        broker.up()
        bench.more(driver)
    os.kill(driver.process.pid, signal.SIGTERM)
    assert "ending: " in driver.ends(0)
    bench.start("--once").ends(0)
    bench.check(feed)


@when_asked
@on_the_broker
@pytest.mark.cluster
@pytest.mark.parametrize("seed", SEEDS)
def test_a_zombie_wakes_up(bench: Bench, broker: Any, seed: int) -> None:
    """It has lost its locks, as on HDFS after a minute, and holds what it was about to write."""
    chosen = random.Random(seed)
    with Feed(broker, bench.topic, seed) as feed:
        zombie = bench.start()
        bench.more(zombie)
        feed.may_be_late.set()
        print(f"seed {seed}: it stands still within {bench.moment(zombie, chosen)}")
        zombie.freeze()
        assert "[streaming]" in bench.start().ends(1), "its lease holds"
        for lock in (f"{bench.warehouse}/.lock", f"{bench.warehouse}/_speed/events/.lock"):
            Path(lock).unlink()
        driver = bench.start()
        bench.more(driver)
        bench.more(driver, 1, "silver/events")
        os.killpg(zombie.process.pid, signal.SIGCONT)
        assert "[taken-over]" in zombie.ends(1)
        bench.more(driver)
    os.kill(driver.process.pid, signal.SIGTERM)
    driver.ends(0)
    bench.start("--once").ends(0)
    bench.check(feed)


# --- On a cluster ---


@pytest.fixture
def on_yarn(spark: Any, tmp_path: Path, cluster: Any, broker: Any) -> Iterator[Bench]:
    folder = f"{cluster.root}/drivetrain/kills"
    sets = {
        "warehouse": f"{folder}/warehouse", "landing": f"{folder}/landing", "database_prefix": "kills_",
        "spark.spark.driver.memory": "1g", "spark.spark.executor.memory": "1g", "spark.spark.executor.cores": "1",
        "spark.spark.dynamicAllocation.maxExecutors": "2", "spark.spark.sql.shuffle.partitions": "2",
    }  # fmt: skip
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    made = Bench(spark, tmp_path, broker, "--env", "yarn", *words, **cluster.environ)
    made.warehouse = sets["warehouse"]
    yield made
    made.end()


def executors() -> set[int]:
    """A shell, which has the same words, starts each."""
    found = processes(BACKEND)
    return {process for process in found if parent(process) in found}


@when_asked
@on_the_broker
@pytest.mark.cluster
@pytest.mark.parametrize("seed", SEEDS)
def test_executors_nodes_and_the_driver_are_killed(on_yarn: Bench, cluster: Any, broker: Any, seed: int) -> None:
    bench, chosen = on_yarn, random.Random(seed)
    with Feed(broker, bench.topic, seed) as feed:
        driver = bench.start()
        bench.more(driver)
        feed.may_be_late.set()
        victim = chosen.choice(sorted(driver.until("an executor", executors)))
        time.sleep(chosen.uniform(0, 3))
        os.kill(victim, signal.SIGKILL)
        driver.until("another executor", lambda: executors() - {victim})
        bench.more(driver)
        cluster.kill("datanode2")
        try:
            bench.more(driver)
        finally:
            cluster.call("up", "hdfs")
        time.sleep(chosen.uniform(0, 3))
        driver.kill("both")
        driver = restarted(bench)
        bench.more(driver)
    driver.until("all of it", lambda: len(bench.places("bronze/events")) == len(feed.acked))
    os.kill(driver.process.pid, signal.SIGTERM)
    driver.ends(0)
    bench.check(feed)


def restarted(bench: Bench) -> Driver:
    """A driver that streams: HDFS keeps the lease of one that was killed for up to a minute, YARN its application."""
    before, deadline = bench.commits("bronze/events"), time.monotonic() + 300
    while time.monotonic() < deadline:
        driver = bench.start()
        until("its end, or a commit", lambda d=driver: d.process.poll() or bench.commits("bronze/events") > before,
              driver.said, 300)  # fmt: skip
        if driver.process.poll() is None:
            return driver
        assert "[streaming]" in driver.said() or "runs already" in driver.said(), driver.said()[-4000:]
    raise AssertionError("it was refused for five minutes")


# --- Without a defence ---


class Fed(Streamed):
    """A stream that reads a topic of one partition by hand: ``take`` is one micro-batch of all that it has not read."""

    def __init__(self, spark: Any, home: Path) -> None:
        super().__init__(spark, home, sequence="seq")
        self.topic: list[Any] = []

    def send(self, *ids: str) -> None:
        self.topic += [event(id, len(self.topic)) for id in ids]

    def take(self, appender: Appender, number: int = 0) -> None:
        mark = appender.after.mark
        first = mark.offsets["0"] if mark else 0
        records = self.records(*self.topic[first:], first=first)
        appender.append(Batch(records, number, {"json": ()}, {"0": len(self.topic)}, "t"))

    def offsets(self) -> list[int]:
        return sorted(row[0] for row in self.tiny.frame("bronze/events").select("_line").collect())


def zombie(one: Fed) -> None:
    """It holds a micro-batch that another start has committed meanwhile."""
    one.send("a", "b")
    first = one.appender()
    one.take(first)
    one.send("c", "d")
    one.take(one.appender())
    with suppress(DrivetrainError):
        one.take(first)


def restart(one: Fed) -> None:
    """The second start counts its micro-batches from 0 again."""
    one.send("a", "b")
    one.take(one.appender())
    second = one.appender()
    for number, ids in enumerate(("cd", "ef")):
        one.send(*ids)
        one.take(second, number)


def uncompared(log: Table, dataset: str, after: End, rows: Any, metadata: dict[str, Any], then: End) -> None:
    """Append, wherever the log ends."""
    _append(log, Txn(uuid4().hex, 1), rows, metadata, then)


def by_batch(log: Table, dataset: str, after: End, rows: Any, metadata: dict[str, Any], then: End) -> None:
    """Append once for each number of a micro-batch, the usual way in a foreachBatch."""
    assert then.mark
    rows.write.format("noop").mode("overwrite").save()  # what Delta leaves out is never counted
    _append(log, Txn("stream", then.mark.batch), rows, metadata, then)


def _append(log: Table, txn: Txn, rows: Any, metadata: dict[str, Any], then: End) -> None:
    assert then.mark
    said = {"mark": asdict(then.mark), "row": then.row, "app": "events", "number": then.number}
    log.append(rows, txn, {**metadata, **said}, bronze.PROPERTIES)


END = logend.end


def older(log: Table) -> End:
    """The log's end, but with the mark before the newest: a checkpoint that was brought back."""
    marks = [metadata["mark"] for _, metadata in log.commits()] if log.exists() else []
    return replace(END(log), mark=Mark(**marks[1]) if len(marks) > 1 else None)


@pytest.mark.spark
@pytest.mark.parametrize(
    ("play", "name", "broken", "found"),
    [
        (zombie, None, None, [0, 1, 2, 3]),
        (restart, None, None, [0, 1, 2, 3, 4, 5]),
        (zombie, "append", uncompared, [0, 1, 2, 2, 3, 3]),
        (restart, "end", older, [0, 0, 1, 1, 2, 3, 4, 5]),
        (restart, "append", by_batch, [0, 1, 4, 5]),
    ],
)
def test_each_defence_is_needed(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, play: Callable[[Fed], None], name: str | None,
    broken: Any, found: list[int],
) -> None:  # fmt: skip
    one = Fed(spark, tmp_path)
    if name:
        monkeypatch.setattr(logend, name, broken)
    play(one)
    assert one.offsets() == found


@pytest.mark.spark
def test_one_that_stood_still_before_its_ledger(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run writes for it; when it wakes up, it sees that."""
    one = Fed(spark, tmp_path)
    one.send("a", "b")
    one.take(one.appender())
    slow = one.pipeline("batch")
    with monkeypatch.context() as patch:
        patch.setattr(slow, "write_ops", lambda: None)
        slow.transform(ingest=False)
    assert not one.pipeline("batch").transform(ingest=False).problems
    slow.write_ops()
    assert one.tiny.rows("ops/ledger", "rows_in", "last_load") == [(2, 1)]
    one.tiny.nothing_is_lost("events")
