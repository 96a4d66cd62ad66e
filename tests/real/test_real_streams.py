"""Real feeds as events through a real broker: their tables end as those of the batch that read the files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pyspark.testing import assertDataFrameEqual

from drivetrain import conf as reader
from drivetrain import job
from drivetrain.contracts import META_COLUMNS, Conf
from drivetrain.pipeline import Pipeline
from drivetrain.progress import Progress
from drivetrain.speed import Speed
from drivetrain.unified import Unified

pytestmark = [pytest.mark.real, pytest.mark.cluster, pytest.mark.spark, pytest.mark.timeout(900)]
CONF = Path(__file__).parent / "conf"
PARTITIONS, PARTS = 2, 3
Event = Mapping[str, str]


@dataclass(frozen=True)
class Feed:
    """Datasets, each over a folder of the landing area, and the gold table above them; events go by ``key`` to a
    partition, which keeps their order, in the order of ``by``."""

    folders: Mapping[str, str]
    gold: str
    key: str
    by: Callable[[Event], Any]


def updated_at(event: Event) -> datetime:
    return datetime.strptime(event["sys_updated_at"], "%d/%m/%Y %H:%M")


FEEDS: Mapping[str, Feed] = {
    "crash reports": Feed(
        {"sgo_reports": "sgo", "sgo_adas_archive": "sgo_adas_archive"}, "crash_reports", "Report ID",
        lambda event: int(event["Report Version"]),
    ),
    "incident log": Feed(
        {"ticket_events": "incidents", "tickets": "incidents"}, "service_levels", "number", updated_at
    ),
    "online retail": Feed(
        {"online_retail": "online_retail"}, "retail_daily", "InvoiceNo", lambda event: event["InvoiceDate"]
    ),
}  # fmt: skip


def read(path: Path) -> Iterator[Event]:
    """A CSV file's records by its header's names; where one stands twice, the second is name#2."""
    data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    text = data.decode("cp1252" if "archive" in path.name else "utf-8-sig")
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    names = [name if name not in header[:i] else f"{name}#2" for i, name in enumerate(header)]
    return (dict(zip(names, row, strict=True)) for row in rows)


def written(home: Path, contracts: Mapping[str, Any], gold: str, landing: Path) -> Conf:
    """The conf of the real feeds with those contracts and that gold table only."""
    for part in ("datasets", "gold"):
        (home / "conf" / part).mkdir(parents=True)
    for name, contract in contracts.items():
        (home / f"conf/datasets/{name}.yaml").write_text(json.dumps(contract))
    for file in (f"gold/{gold}.sql", f"gold/{gold}.yaml", "base.yaml", "local.yaml"):
        shutil.copy(CONF / file, home / "conf" / file)
    sets = [f"landing={landing}", f"warehouse={home / 'warehouse'}"]
    return reader.load(home / "conf", "local", environ={}, sets=sets)


def streamed(contract: Any, server: Mapping[str, Any], topic: str) -> Any:
    """The same contract, whose records come from that topic as JSON."""
    given = {item["property"]: item["value"] for item in contract["customProperties"]}
    nulls = given.pop("options", {}).get("nullValues", [])
    given = {name: value for name, value in given.items() if name != "files"}
    given |= {"options": {"nullValues": nulls}, "stream": {"trigger": "1 s"}}
    schema = {**contract["schema"][0], "physicalName": topic}
    properties = [{"property": name, "value": value} for name, value in given.items()]
    return {**contract, "servers": [server], "schema": [schema], "customProperties": properties}


def send(broker: Any, topic: str, events: Sequence[Event], key: str) -> None:
    producer = broker.producer(**{"linger.ms": 50})
    for event in events:
        name = event[key]
        producer.produce(topic, json.dumps(event), name, zlib.crc32(name.encode()) % PARTITIONS)
        while len(producer) > 50_000:
            producer.poll(0.1)
    assert producer.flush(60) == 0


@pytest.mark.skipif(not os.environ.get("LONG"), reason="so many messages take minutes for each feed: LONG=1 sends them")
@pytest.mark.parametrize("name", FEEDS)
def test_the_tables_of_a_stream_are_those_of_the_batch(
    spark: Any, compiled: None, tmp_path: Path, broker: Any, landing: Path, retail_days: Sequence[Path], name: str
) -> None:
    feed, files, topics = FEEDS[name], dict[str, list[Path]](), dict[str, str]()
    for folder in set(feed.folders.values()):
        files[folder] = list(retail_days) if folder == "online_retail" else sorted((landing / folder).iterdir())
        topics[folder] = f"{folder}-{time.time_ns()}"
        (tmp_path / "landing" / folder).mkdir(parents=True)
        for file in files[folder]:
            (tmp_path / "landing" / folder / file.name).symlink_to(file.resolve())
    contracts = {one: yaml.safe_load((CONF / f"datasets/{one}.yaml").read_text()) for one in feed.folders}
    batch = written(tmp_path / "batch", contracts, feed.gold, tmp_path / "landing")
    run = job.run_id()
    assert not Pipeline(spark, batch, run, "batch", Progress(run)).transform().problems

    server = broker.server(format="json")
    live = {one: streamed(contracts[one], server, topics[folder]) for one, folder in feed.folders.items()}
    speed = written(tmp_path / "speed", live, feed.gold, tmp_path / "landing")
    events = {}
    for folder, topic in topics.items():
        broker.create(topic, PARTITIONS)
        events[folder] = sorted((event for file in files[folder] for event in read(file)), key=feed.by)
    for i in range(PARTS):  # each is merged before the next comes
        for folder, topic in topics.items():
            all_ = events[folder]
            send(broker, topic, all_[i * len(all_) // PARTS : (i + 1) * len(all_) // PARTS], feed.key)
        assert not Speed(spark, speed, [], Progress("speed"), once=True).run(lambda _: None).problems

    ours, theirs = (Unified(spark, conf) for conf in (speed, batch))
    for one in feed.folders:
        rows, expected = ours.read(one), spark.read.format("delta").load(theirs.path("silver", one))
        columns = [column for column in expected.columns if column not in META_COLUMNS]
        missing = expected.select(columns).exceptAll(rows.select(columns))
        more = rows.select(columns).exceptAll(expected.select(columns))
        assert (missing.count(), more.count()) == (0, 0), (one, missing.take(2), more.take(2))
    gold = spark.read.format("delta").load(theirs.path("gold", feed.gold))
    assertDataFrameEqual(ours.read(feed.gold).select(gold.columns), gold)
    counted = (
        spark.read.format("delta").load(f"{tmp_path}/speed/warehouse/ops/ledger").groupBy("dataset").sum("rows_in")
    )
    assert dict(map(tuple, counted.collect())) == {one: len(events[folder]) for one, folder in feed.folders.items()}
