"""A topic of Kafka as a feed: its messages as records, what of it is gone, and how far a micro-batch went.

A message is known for good by topic, partition and offset. Which offsets have been taken stands in the log's commits
and nowhere else: none is committed to Kafka, and Spark's checkpoint is only asked what a micro-batch held.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pydantic import NonNegativeInt, TypeAdapter, ValidationError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from drivetrain.contracts import Dataset, Kafka
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import HadoopFiles
from drivetrain.servers import SECRET_OPTIONS
from drivetrain.session import FAILURES, causes, reason
from drivetrain.settings import resolve_secret

LAYOUT: Final = "kafka"
# Of AdminClient: the brokers have this long for a question, all tries together and each by itself.
API_TIMEOUT, REQUEST_TIMEOUT = "default.api.timeout.ms", "request.timeout.ms"
PATIENCE: Final = {API_TIMEOUT: 20_000, REQUEST_TIMEOUT: 5_000}
ADMIN_OPTIONS: Final = re.compile(r"kafka\.((security|sasl|ssl)\..+|(request|default\.api)\.timeout\.ms)")
LOGIN_OPTIONS: Final = re.compile(r"kafka\.(security|sasl|ssl)\..+")
REAL_TIME: Final = "30 seconds"  # between two checkpoints of a query that sends each message at once
OFFSETS: Final = TypeAdapter(dict[str, dict[int, NonNegativeInt]])

EXPIRED: Final = "the topic's retention, or somebody, deleted them before they were read"
RECREATED: Final = "the topic was deleted and made again"
VANISHED: Final = "the topic has this partition no more"
TRUNCATED: Final = "the brokers lost them after they had been read"


@dataclass(frozen=True)
class Topic:
    """What the brokers hold: the topic's id, which a topic that is made again does not have, and of each partition the
    first offset, and the one behind the last message that can be read (an open transaction holds it back)."""

    id: str
    earliest: dict[int, int]
    latest: dict[int, int]


@dataclass(frozen=True)
class Lost:
    """Offsets of a partition that are gone, from ``since`` to before ``until`` (None: nobody knows)."""

    partition: int
    since: int
    until: int | None
    why: str

    def __str__(self) -> str:
        end = "on" if self.until is None else f"to before {self.until}"
        return f"partition {self.partition} from {self.since} {end} ({self.why})"


# --- Records ---


def read(spark: SparkSession, dataset: Dataset, start: Mapping[int, int], most: int | None = None) -> DataFrame:
    """A stream of the topic's records from those offsets on, at most so many in a micro-batch (default: as the contract
    has it); ``start`` names every partition that there is, and those that come later are read from their beginning.

    Columns: raw string ('' where a message has no value), raw_bytes binary (null where raw says it all), _file (the
    topic), _block (the partition), _line (the offset), _layout, _key string (null where there is none) and _sent
    timestamp (the message's own). Aborted transactions are left out. The query fails where messages are gone before
    they could be read; `lost` tells which.
    """
    kafka = _of(dataset)
    bounds = {"startingOffsets": _offsets(kafka, start), "maxOffsetsPerTrigger": str(most or kafka.max_messages)}
    stream = spark.readStream.format("kafka").options(**_options(kafka), **bounds)
    return _records(stream.option("subscribe", kafka.topic).load())


def read_now(spark: SparkSession, dataset: Dataset, start: Mapping[int, int]) -> DataFrame:
    """As `read`, for a query in real-time mode, which reads each message as it comes and has no micro-batches."""
    kafka = _of(dataset)
    stream = spark.readStream.format("kafka").options(**_options(kafka), startingOffsets=_offsets(kafka, start))
    return _records(stream.option("subscribe", kafka.topic).load())


def write_now(messages: DataFrame, dataset: Dataset, topic: str, checkpoint: str) -> StreamingQuery:
    """Start sending key and value of each row to a topic of the dataset's brokers, in real-time mode, at least once."""
    kafka = _of(dataset)
    login = {key: resolve_secret(value) for key, value in kafka.options if LOGIN_OPTIONS.fullmatch(key)}
    writer = messages.writeStream.format("kafka").options(**login, topic=topic).outputMode("update")
    writer = writer.option("kafka.bootstrap.servers", kafka.bootstrap).option("checkpointLocation", checkpoint)
    named = writer.queryName(f"{dataset.name} to {topic}")
    return named.trigger(realTime=REAL_TIME).start()  # type: ignore[call-overload, no-any-return]  # stubs lack it


def batch(spark: SparkSession, dataset: Dataset, ranges: Mapping[int, tuple[int, int]]) -> DataFrame:
    """The same records of exactly those partitions, each from its first offset to before its second."""
    kafka = _of(dataset)
    bounds = {
        "startingOffsets": _offsets(kafka, {partition: first for partition, (first, _) in ranges.items()}),
        "endingOffsets": _offsets(kafka, {partition: until for partition, (_, until) in ranges.items()}),
    }
    reader = spark.read.format("kafka").options(**_options(kafka), **bounds)
    return _records(reader.option("assign", json.dumps({kafka.topic: sorted(ranges)})).load())


def _records(messages: DataFrame) -> DataFrame:
    text, key = F.col("value").cast("string"), F.col("key").cast("string")
    return messages.select(
        F.coalesce(F.make_valid_utf8(text), F.lit("")).alias("raw"),
        F.when(~F.is_valid_utf8(text), F.col("value")).alias("raw_bytes"),
        F.col("topic").alias("_file"),
        F.col("partition").cast("bigint").alias("_block"),
        F.col("offset").alias("_line"),
        F.lit(LAYOUT).alias("_layout"),
        F.make_valid_utf8(key).alias("_key"),
        F.col("timestamp").alias("_sent"),
    )


def _offsets(kafka: Kafka, offsets: Mapping[int, int]) -> str:
    return json.dumps({kafka.topic: {str(partition): offset for partition, offset in sorted(offsets.items())}})


def _options(kafka: Kafka) -> dict[str, str]:
    """What Spark's source is given. It shows none of the secrets: their keys or values tell it what they are."""
    return {
        **{key: resolve_secret(value) for key, value in kafka.options},
        "kafka.bootstrap.servers": kafka.bootstrap,
        "kafka.isolation.level": "read_committed",
        "failOnDataLoss": "true",
    }


# --- What the brokers hold ---


def look(spark: SparkSession, dataset: Dataset) -> Topic:
    """The topic as it is now.

    Raises:
        DrivetrainError: the brokers do not answer, or refuse; or there is no such topic.
    """
    kafka, jvm = _of(dataset), _jvm(spark)
    with explained(dataset), _admin(jvm, kafka) as admin:
        described = admin.describeTopics(jvm.java.util.List.of(kafka.topic)).allTopicNames().get()[kafka.topic]
        partitions = [int(info.partition()) for info in described.partitions()]
        spec = jvm.org.apache.kafka.clients.admin.OffsetSpec
        earliest, latest = (_ask(jvm, admin, kafka, partitions, at) for at in (spec.earliest(), spec.latest()))
        return Topic(str(described.topicId().toString()), earliest, latest)


def _ask(jvm: Any, admin: Any, kafka: Kafka, partitions: list[int], at: Any) -> dict[int, int]:
    """Partition -> its offset at that end, as a consumer sees it that reads committed messages only."""
    places = {number: jvm.org.apache.kafka.common.TopicPartition(kafka.topic, number) for number in partitions}
    wanted = jvm.java.util.HashMap()
    for place in places.values():
        wanted.put(place, at)
    committed = jvm.org.apache.kafka.common.IsolationLevel.READ_COMMITTED
    said = admin.listOffsets(wanted, jvm.org.apache.kafka.clients.admin.ListOffsetsOptions(committed)).all().get()
    return {number: int(said[place].offset()) for number, place in places.items()}


@contextmanager
def _admin(jvm: Any, kafka: Kafka) -> Iterator[Any]:
    given = {key.removeprefix("kafka."): value for key, value in kafka.options if ADMIN_OPTIONS.fullmatch(key)}
    settings = jvm.java.util.HashMap()
    for key, value in {**given, **_patience(given), "bootstrap.servers": kafka.bootstrap}.items():
        settings.put(key, resolve_secret(value))
    admin = jvm.org.apache.kafka.clients.admin.AdminClient.create(settings)
    try:
        yield admin
    finally:
        admin.close(jvm.java.time.Duration.ofSeconds(1))


def _patience(given: Mapping[str, str]) -> dict[str, str]:
    """How long the brokers have; Kafka wants the time of all tries to be no shorter than that of one."""
    request = int(given.get(REQUEST_TIMEOUT, PATIENCE[REQUEST_TIMEOUT]))
    return {
        API_TIMEOUT: str(max(request, int(given.get(API_TIMEOUT, PATIENCE[API_TIMEOUT])))),
        REQUEST_TIMEOUT: str(request),
    }


def lost(done: Mapping[int, int], done_id: str, now: Topic) -> list[Lost]:
    """What can never be read any more, where the log has all before the offsets ``done`` of the topic with that id;
    nothing where nothing has been read yet."""
    found = [Lost(p, offset, None, RECREATED) for p, offset in done.items()] if done_id != now.id else []
    same = {} if found else done
    found += [Lost(p, offset, None, VANISHED) for p, offset in same.items() if p not in now.latest]
    for partition, earliest in now.earliest.items() if done else ():
        offset = same.get(partition, 0)
        if earliest > offset:
            found.append(Lost(partition, offset, earliest, EXPIRED))
        elif now.latest[partition] < offset:
            found.append(Lost(partition, now.latest[partition], offset, TRUNCATED))
    return sorted(found, key=lambda one: (one.partition, one.since))


def starts(done: Mapping[int, int], done_id: str, now: Topic) -> dict[int, int]:
    """Where to read on, for every partition that there is: behind what is done or lost, and a new partition or topic
    from its beginning."""
    same = done if done_id == now.id else {}
    return {p: min(max(same.get(p, 0), first), now.latest[p]) for p, first in now.earliest.items()}


# --- How far a micro-batch went ---


def ends(checkpoint: str, batch_id: int, spark: SparkSession) -> dict[int, int]:
    """Partition -> the offset behind the last message of the micro-batch, as Spark wrote down before it began.

    Raises:
        DrivetrainError: Spark's log of offsets does not hold one topic for that batch, in the form that is known.
    """
    path = f"{checkpoint}/offsets/{batch_id}"
    try:
        with HadoopFiles(_jvm(spark), spark._jsc.hadoopConfiguration()).copy(path) as file:
            version, _, *sources = file.read_text("utf-8").splitlines()
        if version != "v1" or len(sources) != 1:
            raise ValueError(f"version {version}, {len(sources)} sources")
        [offsets] = OFFSETS.validate_json(sources[0]).values()
    except OSError as error:
        raise _unknown_offsets(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # ValidationError is one
        said = "its last line names no offsets" if isinstance(error, ValidationError) else str(error)
        raise _unknown_offsets(path, f"is not what Spark 4.2 writes for one topic: {said}") from None
    return offsets


def _unknown_offsets(path: str, what: str) -> DrivetrainError:
    fix = "start the stream again; it goes on from the log's last commit, and makes a new checkpoint"
    return DrivetrainError(Problem("offsets-log", path, f"Spark's log of offsets {what}", fix))


# --- What Kafka refuses ---

# Also within a text: what goes through Python on its way, as from a foreachBatch, is no chain of causes any more.
REFUSAL: Final = re.compile(r"org\.apache\.(?:kafka|spark\.sql\.kafka010)\.[\w.]*?(\w+Exception)\b(?:: ([^\n]*))?")
MISSING: Final = ("UnknownTopicOrPartitionException", "UnknownTopicIdException")
UNANSWERED: Final = ("TimeoutException", "DisconnectException")
GONE: Final = ("OffsetOutOfRangeException", "KafkaIllegalStateException")


@contextmanager
def explained(dataset: Dataset) -> Iterator[None]:
    """Turns what Kafka refuses, also while a stream runs, into one DrivetrainError, in which no secret stands."""
    try:
        yield
    except FAILURES as error:
        refusals = REFUSAL.findall("\n".join(f"{kind}: {said}" for kind, said in causes(error)))
        if dataset.kafka is None or not refusals:
            raise
        kind, said = refusals[-1]  # the first cause
        code, what, fix = _explanation(dataset.kafka, kind, said, reason(error))
        what = _without_secrets(dataset.kafka, what)
        raise DrivetrainError(Problem(code, f"{dataset.where} ({dataset.name})", what, fix)) from None


def _explanation(kafka: Kafka, kind: str, said: str, whole: str) -> tuple[str, str, str]:
    topic, brokers = kafka.topic, kafka.bootstrap
    if kind in MISSING:
        fix = "correct the schema object's physicalName, or create the topic"
        return "topic-missing", f"there is no topic {topic} at {brokers}, or not for this user", fix
    if kind.endswith("AuthorizationException"):
        fix = f"let the user READ and DESCRIBE the topic {topic}"
        return "kafka-permission", f"the brokers at {brokers} do not let this user read {topic}: {said}", fix
    if kind.endswith("AuthenticationException"):
        fix = "correct what the sasl and ssl options of customProperties kafka refer to"
        return "kafka-login", f"the brokers at {brokers} refuse this user: {said}", fix
    if kind in UNANSWERED or "bootstrap" in said:
        fix = "are they up, and are host and security.protocol right? What has been loaded is safe; run again then"
        return "kafka-down", f"the brokers at {brokers} do not answer: {said}", fix
    if kind in GONE:
        fix = "start again: what is gone is named then, and the rest is read"
        return "topic-loss", f"messages of {topic} are gone that had not been read: {said}", fix
    return "kafka", f"reading {topic} at {brokers} failed: {whole}", "correct the options of customProperties kafka"


def _without_secrets(kafka: Kafka, text: str) -> str:
    """Without their parts too, as Kafka quotes some of a login that it cannot parse; a login's own keys are none."""
    secrets = [resolve_secret(value) for key, value in kafka.options if SECRET_OPTIONS.search(key)]
    parts = {part for secret in secrets for part in (secret, *re.split(r'["=;\s]+', secret)) if len(part) > 3}
    parts |= {value for secret in secrets for value in re.findall(r'"([^"]+)"', secret)}
    parts -= {key for secret in secrets for key in re.findall(r'(\w+)="', secret)}
    for part in sorted(parts, key=len, reverse=True):
        text = text.replace(part, "•••")
    return text


def _of(dataset: Dataset) -> Kafka:
    assert dataset.kafka, f"{dataset.name} is no topic"
    return dataset.kafka


def _jvm(spark: SparkSession) -> Any:
    return spark._jvm
