"""Topics of Kafka as feeds: every message once, where it stood; what is gone is named; no secret is told."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from broker import LOGIN, PASSWORD, USER, Broker
from database import cluster_module
from hypothesis import given
from hypothesis import strategies as st
from test_servers import read as contract

from drivetrain import kafka
from drivetrain.contracts import Dataset
from drivetrain.errors import DrivetrainError
from drivetrain.kafka import EXPIRED, RECREATED, TRUNCATED, VANISHED, Lost, Topic, lost, starts

# --- What is lost ---

NOW = Topic("a", {0: 10, 1: 0}, {0: 50, 1: 5})
CASES: list[tuple[dict[int, int], str, Topic, list[Lost], dict[int, int]]] = [
    ({}, "", NOW, [], {0: 10, 1: 0}),  # nothing has been read yet: what went before is not ours
    ({0: 10, 1: 5}, "a", NOW, [], {0: 10, 1: 5}),
    ({0: 7, 1: 5}, "a", NOW, [Lost(0, 7, 10, EXPIRED)], {0: 10, 1: 5}),
    ({0: 50, 1: 8}, "a", NOW, [Lost(1, 5, 8, TRUNCATED)], {0: 50, 1: 5}),
    ({1: 5}, "a", NOW, [Lost(0, 0, 10, EXPIRED)], {0: 10, 1: 5}),  # added since, and expired since
    ({0: 20, 1: 1, 2: 9}, "a", NOW, [Lost(2, 9, None, VANISHED)], {0: 20, 1: 1}),
    ({0: 20, 1: 1}, "b", NOW, [Lost(0, 0, 10, EXPIRED), Lost(0, 20, None, RECREATED), Lost(1, 1, None, RECREATED)],
     {0: 10, 1: 0}),
]  # fmt: skip


@pytest.mark.parametrize(("done", "done_id", "now", "gone", "start"), CASES)
def test_what_is_lost_is_named(
    done: dict[int, int], done_id: str, now: Topic, gone: list[Lost], start: dict[int, int]
) -> None:
    assert lost(done, done_id, now) == gone
    assert starts(done, done_id, now) == start


@st.composite
def topics(draw: st.DrawFn) -> Topic:
    ends = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3))
    bounds = [tuple(sorted(pair)) for pair in ends]
    return Topic(draw(st.sampled_from("ab")), *({p: pair[i] for p, pair in enumerate(bounds)} for i in (0, 1)))


@given(st.dictionaries(st.integers(0, 3), st.integers(0, 12), min_size=1), topics())
def test_every_offset_is_done_or_lost_or_read(done: dict[int, int], now: Topic) -> None:
    start = starts(done, "a", now)
    for partition, latest in now.latest.items():
        gone = [(one.since, one.until) for one in lost(done, "a", now) if one.partition == partition and one.until]
        read_before = done.get(partition, 0) if now.id == "a" else 0
        for offset in range(latest):
            was_lost = any(since <= offset < until for since, until in gone if until is not None)
            assert [offset < read_before, was_lost, offset >= start[partition]].count(True) == 1
        assert now.earliest[partition] <= start[partition] <= latest


# --- Real messages ---


class Plant:
    """A topic of a test's own, and its dataset."""

    def __init__(self, spark: Any, broker: Broker, folder: Path, partitions: int, **config: str) -> None:
        self.spark, self.broker, self.folder = spark, broker, folder
        self.topic = f"plant.{folder.name}"
        broker.create(self.topic, partitions, **config)

    def dataset(self, server: dict[str, Any] | None = None, **properties: Any) -> Dataset:
        dataset, problems = contract(self.folder, server or self.broker.server(), self.topic, **properties)
        assert dataset, problems
        return dataset

    def send(self, values: list[bytes | None], partition: int = 0, **more: Any) -> None:
        self.broker.send(self.topic, values, partition, **more)

    def batch(self, ranges: dict[int, tuple[int, int]], dataset: Dataset | None = None) -> list[Any]:
        rows = kafka.batch(self.spark, dataset or self.dataset(), ranges).collect()
        return sorted(rows, key=lambda row: (row["_block"], row["_line"]))

    def stream(self, start: dict[int, int], dataset: Dataset | None = None) -> tuple[list[list[Any]], str]:
        """The rows of each micro-batch until nothing is left, and the checkpoint."""
        taken: list[list[Any]] = []
        checkpoint = str(self.folder / f"checkpoint-{time.monotonic_ns()}")
        records = kafka.read(self.spark, dataset or self.dataset(), start)
        with kafka.explained(dataset or self.dataset()):
            query = (
                records.writeStream.foreachBatch(lambda rows, _: taken.append(rows.collect()))
                .option("checkpointLocation", checkpoint)
                .trigger(availableNow=True)
                .start()
            )
            query.awaitTermination()
        return [sorted(rows, key=lambda row: (row["_block"], row["_line"])) for rows in taken], checkpoint

    def look(self, dataset: Dataset | None = None) -> Topic:
        return kafka.look(self.spark, dataset or self.dataset())


@pytest.fixture
def plant(spark: Any, broker: Broker, tmp_path: Path) -> Callable[..., Plant]:
    return lambda partitions=1, **config: Plant(spark, broker, tmp_path, partitions, **config)


def places(rows: list[Any]) -> list[tuple[str, int, int]]:
    return [(row["raw"], row["_block"], row["_line"]) for row in rows]


COLUMNS = {
    "raw": "string", "raw_bytes": "binary", "_file": "string", "_block": "bigint", "_line": "bigint",
    "_layout": "string", "_key": "string", "_sent": "timestamp",
}  # fmt: skip


@pytest.mark.cluster
def test_records_are_what_was_sent_and_where_it_stood(plant: Callable[..., Plant]) -> None:
    here = plant(2)
    here.send(['{"a": "ü"}'.encode(), None, b"\xff\xfeb", b""])
    here.send([b"keyed"], 1, key=b"k\xff")
    [rows], _ = here.stream({0: 0, 1: 0})
    assert places(rows) == [('{"a": "ü"}', 0, 0), ("", 0, 1), ("��b", 0, 2), ("", 0, 3), ("keyed", 1, 0)]
    assert [row["raw_bytes"] for row in rows] == [None, None, b"\xff\xfeb", None, None]
    assert [row["_key"] for row in rows] == [None] * 4 + ["k�"]
    assert {(row["_file"], row["_layout"]) for row in rows} == {(here.topic, "kafka")}
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    assert all(abs(now - row["_sent"]) < timedelta(minutes=5) for row in rows), "the session is in UTC"

    found = kafka.batch(here.spark, here.dataset(), {0: (0, 4), 1: (0, 1)})
    assert dict(found.dtypes) == COLUMNS
    assert here.batch({0: (0, 4), 1: (0, 1)}) == rows
    assert places(here.batch({0: (1, 3)})) == places(rows[1:3]), "no other partition, no other offset"
    assert here.look().latest == {0: 4, 1: 1}


@pytest.mark.cluster
def test_any_size_and_any_compression(plant: Callable[..., Plant]) -> None:
    here = plant()
    huge = b"x" * (20 << 20)
    here.send([huge])
    for i, codec in enumerate(("gzip", "lz4", "snappy", "zstd")):
        here.send([codec.encode() * 1000], **{"compression.type": codec})
        assert here.look().latest == {0: i + 2}
    [rows], _ = here.stream({0: 0})
    assert [len(row["raw"]) for row in rows] == [20 << 20, 4000, 3000, 6000, 4000]
    assert rows[0]["raw"] == huge.decode()


@pytest.mark.cluster
def test_a_micro_batch_is_bounded_and_its_end_is_known(plant: Callable[..., Plant]) -> None:
    here = plant(2)
    here.send([b"%d" % i for i in range(10)])
    here.send([b"%d" % i for i in range(4)], 1)
    batches, checkpoint = here.stream({0: 3, 1: 0}, here.dataset(kafka={"maxMessages": 4}))
    assert len(batches) > 2 and all(len(rows) <= 5 for rows in batches), "shares are rounded up"
    assert places([row for rows in batches for row in rows if row["_block"] == 0]) == [
        (str(i), 0, i) for i in range(3, 10)
    ]
    ends = [kafka.ends(checkpoint, i, here.spark) for i in range(len(batches))]
    assert ends[-1] == {0: 10, 1: 4} == here.look().latest
    for rows, end in zip(batches, ends, strict=True):
        for partition in {row["_block"] for row in rows}:
            assert max(row["_line"] for row in rows if row["_block"] == partition) + 1 == end[partition]
    [rest], _ = here.stream(ends[0])
    after = [place for rows in batches[1:] for place in places(rows)]
    assert places(rest) == sorted(after, key=lambda place: place[1:]), "read on from there"


@pytest.mark.cluster
def test_an_aborted_transaction_is_not_read(plant: Callable[..., Plant]) -> None:
    here = plant()
    producer = here.broker.producer(**{"transactional.id": here.topic})
    producer.init_transactions()
    for value, end in ((b"kept", "commit"), (b"aborted", "abort"), (b"kept too", "commit"), (b"last", "abort")):
        producer.begin_transaction()
        producer.produce(here.topic, value, partition=0)
        producer.flush(30)
        getattr(producer, f"{end}_transaction")(30)
    producer.begin_transaction()
    producer.produce(here.topic, b"open", partition=0)
    producer.flush(30)
    end = here.look().latest[0]
    assert end == 8, "an open transaction holds the end back: four messages with a marker each"
    [rows], checkpoint = here.stream({0: 0})
    assert places(rows) == [("kept", 0, 0), ("kept too", 0, 4)] == places(here.batch({0: (0, end)}))
    assert kafka.ends(checkpoint, 0, here.spark) == {0: end}, "markers are passed over once and for all"
    assert here.batch({0: (6, end)}) == [], "a range with nothing that was committed"
    producer.commit_transaction(30)
    assert places(here.stream({0: end})[0][0]) == [("open", 0, 8)]

    options = {"kafka.bootstrap.servers": here.broker.bootstrap, "kafka.isolation.level": "read_uncommitted"}
    everything = here.spark.read.format("kafka").options(**options).option("subscribe", here.topic).load()
    assert everything.count() == 5, "they are there for who asks for them"


@pytest.mark.cluster
def test_what_expired_is_lost_and_the_rest_is_read(plant: Callable[..., Plant]) -> None:
    here = plant()
    here.send([b"%d" % i for i in range(10)])
    before = here.look()
    assert (before.earliest, before.latest) == ({0: 0}, {0: 10})
    here.broker.delete_records(here.topic, 0, 6)
    now = here.look()
    assert now == Topic(before.id, {0: 6}, {0: 10})
    assert lost({0: 4}, before.id, now) == [Lost(0, 4, 6, EXPIRED)]
    assert places(here.stream(starts({0: 4}, before.id, now))[0][0]) == [(str(i), 0, i) for i in range(6, 10)]
    with pytest.raises(DrivetrainError) as failed:
        here.stream({0: 4})
    assert [problem.code for problem in failed.value.problems] == ["topic-loss"], failed.value
    with pytest.raises(DrivetrainError) as failed, kafka.explained(here.dataset()):
        here.batch({0: (4, 10)})
    assert [problem.code for problem in failed.value.problems] == ["topic-loss"], failed.value


@pytest.mark.cluster
def test_a_topic_that_was_made_again_has_another_id(plant: Callable[..., Plant]) -> None:
    here = plant()
    here.send([b"old"] * 5)
    before = here.look()
    here.broker.delete(here.topic)
    with pytest.raises(DrivetrainError) as failed:
        here.look()
    assert failed.value.problems[0].code == "topic-missing" and here.topic in str(failed.value)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(Exception):  # the brokers delete in their own time
            here.broker.create(here.topic)
            break
    here.send([b"new"] * 9)
    now = here.look()
    assert now.id != before.id and now.latest == {0: 9}, "its offsets alone would not tell"
    assert lost(before.latest, before.id, now) == [Lost(0, 5, None, RECREATED)]
    assert starts(before.latest, before.id, now) == {0: 0}


@pytest.mark.cluster
def test_a_partition_that_comes_later_is_read_from_its_beginning(plant: Callable[..., Plant]) -> None:
    here = plant()
    here.send([b"a", b"b"])
    before, taken = here.look(), []
    records = kafka.read(here.spark, here.dataset(), {0: 1})
    query = (
        records.writeStream.foreachBatch(lambda rows, _: taken.extend(places(rows.collect())))
        .option("checkpointLocation", str(here.folder / "running"))
        .trigger(processingTime="200 milliseconds")
        .start()
    )
    try:
        _until(lambda: ("b", 0, 1) in taken)
        here.broker.add_partitions(here.topic, 2)
        here.send([b"c"], 1)
        _until(lambda: len(taken) > 1)
    finally:
        query.stop()
    assert taken == [("b", 0, 1), ("c", 1, 0)], "while it runs"
    now = here.look()
    assert starts({0: 2}, before.id, now) == {0: 2, 1: 0} and lost({0: 2}, before.id, now) == []
    assert places(here.stream(starts({0: 2}, before.id, now))[0][0]) == [("c", 1, 0)], "and after it stood still"


def _until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- Who may read, and what is told ---


def login(password: str) -> str:
    return f'{LOGIN} username="{USER}" password="{password}";'


OPTIONS = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.jaas.config": "env:PLANT_LOGIN"}


@pytest.mark.cluster
def test_a_user_logs_in_and_nobody_hears_the_password(
    plant: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    here = plant()
    here.send([b"for those who may"])
    server = here.broker.server(host=here.broker.bootstrap_of_users)
    dataset = here.dataset(server, kafka={"options": OPTIONS})
    monkeypatch.setenv("PLANT_LOGIN", login(PASSWORD))
    with pytest.raises(DrivetrainError) as failed:
        here.look(dataset)
    assert failed.value.problems[0].code == "kafka-permission" and here.topic in str(failed.value)

    here.broker.let_read(here.topic)
    assert here.look(dataset).latest == {0: 1}
    [rows], checkpoint = here.stream({0: 0}, dataset)
    assert (
        [row["raw"] for row in rows]
        == ["for those who may"]
        == [row["raw"] for row in here.batch({0: (0, 1)}, dataset)]
    )
    kafka.read(here.spark, dataset, {0: 0}).explain(True)
    kafka.batch(here.spark, dataset, {0: (0, 1)}).explain(True)
    written = "".join(path.read_text("utf-8", "replace") for path in Path(checkpoint).rglob("*") if path.is_file())
    told = capfd.readouterr()
    assert "kafka.sasl.jaas.config" in told.out, "the plan does show options"
    assert PASSWORD not in told.out + told.err + written + repr(dataset)

    wrong = "wr0ng-Pa55"
    monkeypatch.setenv("PLANT_LOGIN", login(wrong))
    with pytest.raises(DrivetrainError) as failed:
        here.look(dataset)
    assert failed.value.problems[0].code == "kafka-login"
    assert "Invalid username or password" in str(failed.value) and here.broker.bootstrap_of_users in str(failed.value)
    monkeypatch.setenv("PLANT_LOGIN", f"{wrong} {login(wrong)}")
    with pytest.raises(DrivetrainError) as failed:
        here.look(dataset)
    assert failed.value.problems[0].code == "kafka" and "JAAS" in str(failed.value), failed.value
    assert wrong not in str(failed.value) + "".join(capfd.readouterr())
    monkeypatch.delenv("PLANT_LOGIN")
    with pytest.raises(DrivetrainError, match="PLANT_LOGIN is not set"):
        kafka.read(here.spark, dataset, {0: 0})


@pytest.mark.spark
@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-broker.invalid"])
def test_brokers_that_do_not_answer_are_named_soon(spark: Any, tmp_path: Path, host: str) -> None:
    place = f"{host}:{cluster_module()._free_ports(1)[0]}"
    patience = {"request.timeout.ms": 1000, "default.api.timeout.ms": 3000}
    server = {"server": "local", "type": "kafka", "host": place}
    dataset, _ = contract(tmp_path, server, kafka={"options": patience})
    assert dataset
    began = time.monotonic()
    with pytest.raises(DrivetrainError) as failed:
        kafka.look(spark, dataset)
    assert time.monotonic() - began < 20
    [problem] = failed.value.problems
    assert problem.code == "kafka-down" and place in problem.what and "sensors.yaml" in problem.where


def test_no_part_of_a_login_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"sasl.jaas.config": "env:PLANT_LOGIN", "ssl.key.password": "env:PLANT_KEY", "ssl.protocol": "TLSv1.3"}
    server = {"server": "local", "type": "kafka", "host": "k:1"}
    dataset, _ = contract(tmp_path, server, kafka={"options": options})
    assert dataset and dataset.kafka
    monkeypatch.setenv("PLANT_LOGIN", 'A.Module required username="me" password="ab=c d";')
    monkeypatch.setenv("PLANT_KEY", "k3y!")
    said = 'the password "ab=c d" of me, with k3y! over TLSv1.3'
    assert kafka._without_secrets(dataset.kafka, said) == 'the password "•••" of •••, with ••• over TLSv1.3'


def test_one_try_may_take_longer_than_all_did() -> None:
    assert kafka._patience({}) == {"default.api.timeout.ms": "20000", "request.timeout.ms": "5000"}
    long = {"request.timeout.ms": "60000"}
    assert kafka._patience(long) == {"default.api.timeout.ms": "60000", "request.timeout.ms": "60000"}


# --- Spark's log of offsets ---

GOOD = ["v1", '{"batchWatermarkMs":0}', '{"t":{"0":5,"1":0}}']


@pytest.mark.spark
def test_offsets_are_read_from_sparks_log(spark: Any, tmp_path: Path) -> None:
    (tmp_path / "offsets").mkdir()
    log = tmp_path / "offsets" / "3"
    log.write_text("\n".join(GOOD))
    assert kafka.ends(str(tmp_path), 3, spark) == kafka.ends(f"file:{tmp_path}", 3, spark) == {0: 5, 1: 0}
    wrong = [
        ["v2", *GOOD[1:]], [*GOOD, GOOD[2]], GOOD[:2], [], ["v1"], [*GOOD[:2], "{}"], [*GOOD[:2], "-"],
        [*GOOD[:2], '{"t":{"0":-2}}'], [*GOOD[:2], '{"t":{"0":1},"u":{"0":1}}'], [*GOOD[:2], json.dumps({"t": 3})],
    ]  # fmt: skip
    for lines in wrong:
        log.write_text("\n".join(lines))
        with pytest.raises(DrivetrainError, match="is not what Spark"):
            kafka.ends(str(tmp_path), 3, spark)
    with pytest.raises(DrivetrainError, match="cannot be read"):
        kafka.ends(str(tmp_path), 4, spark)
