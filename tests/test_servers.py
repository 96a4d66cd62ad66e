"""Topics and streams in a contract: what they become, and what is wrong with them at which line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import KEY, MONEY

from drivetrain.contracts import Dataset, Kafka, Stream
from drivetrain.errors import Problem
from drivetrain.findings import Findings
from drivetrain.odcs import read_dataset
from drivetrain.servers import SECONDS, seconds
from drivetrain.settings import load_yaml

MOMENT = {"logicalType": "timestamp"}
COLUMNS = {"id": KEY, "amount": MONEY, "at": MOMENT, "day": {"logicalType": "date"},
           "there": {**MOMENT, "physicalType": "timestamp_ntz"}}  # fmt: skip
TOPIC = {"server": "local", "type": "kafka", "host": "k1.example.com:9092,[::1]:9093"}
FOLDER = {"server": "local", "type": "local", "path": "/a", "format": "csv"}
TABLE = {"server": "local", "type": "postgres", "host": "db", "port": 5432, "database": "shop", "schema": "sap"}
DEFAULTS = Stream(
    trigger_seconds=1, delay_seconds=None, ahead_seconds=None, merge_seconds=600, merge_rows=100_000, output=None
)


def read(
    folder: Path, server: dict[str, Any], topic: str | None = None, **properties: Any
) -> tuple[Dataset | None, list[Problem]]:
    columns = [{"name": name, "logicalType": "string", **more} for name, more in COLUMNS.items()]
    schema = {"name": "sensors", "logicalType": "object", "properties": columns}
    document = {
        "apiVersion": "v3.1.0", "kind": "DataContract", "id": "sensors", "version": "1.0.0", "status": "active",
        "servers": [server], "schema": [{**schema, "physicalName": topic} if topic else schema],
        "customProperties": [{"property": key, "value": value} for key, value in properties.items()],
    }  # fmt: skip
    path, problems = folder / "sensors.yaml", []  # type: ignore[var-annotated]
    path.write_text(json.dumps(document, indent=1), "utf-8")
    value, lines = load_yaml(path)
    return read_dataset(value, Findings(path, lines, problems), "local", {"root": "/"}), problems


def test_a_topic_with_everything(tmp_path: Path) -> None:
    options = {"security.protocol": "SASL_SSL", "sasl.jaas.config": "env:KAFKA_JAAS", "fetch.max.bytes": 1 << 20,
               "ssl.truststore.password": "file:/run/secrets/trust", "request.timeout.ms": 5000,
               "ssl.truststore.location": "/etc/trust.jks"}  # fmt: skip
    stream = {"trigger": "5 s", "delay": "10 min", "ahead": "1 h", "mergeAfter": "2d", "mergeRows": 5,
              "output": "sensors.good"}  # fmt: skip
    dataset, problems = read(
        tmp_path, {**TOPIC, "format": "csv"}, "plant-1.sensors", kafka={"maxMessages": 7, "options": options},
        stream=stream, eventTime="at",
    )  # fmt: skip
    assert problems == [] and dataset
    named = tuple((f"kafka.{key}", str(value)) for key, value in options.items())
    assert dataset.kafka == Kafka(TOPIC["host"], "plant-1.sensors", named, 7)
    assert dataset.stream == Stream(5, 600, 3600, 172_800, 5, "sensors.good")
    assert (dataset.format, dataset.options.header, dataset.path, dataset.jdbc) == ("csv", False, "", None)
    assert dataset.identity == ("id", "amount", "at", "day", "there"), "as for files"


def test_a_topic_with_nothing_said(tmp_path: Path) -> None:
    dataset, problems = read(tmp_path, TOPIC)
    assert problems == [] and dataset
    assert dataset.kafka == Kafka(TOPIC["host"], "sensors", (), 100_000)
    assert (dataset.format, dataset.stream) == ("json", DEFAULTS), "JSON is the standard's default for messages"
    moved, _ = read(tmp_path, {**TOPIC, "host": "other:1"}, "elsewhere")
    assert moved and moved.fingerprint == dataset.fingerprint, "the same records, from another place"


def test_files_are_a_stream_only_if_the_contract_says_so(tmp_path: Path) -> None:
    dataset, problems = read(tmp_path, FOLDER)
    assert problems == [] and dataset and dataset.stream is None and dataset.kafka is None
    dataset, problems = read(tmp_path, FOLDER, stream={})
    assert problems == [] and dataset and dataset.stream == DEFAULTS


def test_a_vendors_property_is_not_ours(tmp_path: Path) -> None:
    _, problems = read(tmp_path, FOLDER)
    document = json.loads((tmp_path / "sensors.yaml").read_text())
    document["customProperties"] = [{"property": "kafka", "value": 1, "vendor": "somebody"}]
    dataset = read_dataset(document, Findings(tmp_path / "sensors.yaml", {}, problems), "local", {"root": "/"})
    assert dataset and problems == []


WRONG: list[tuple[dict[str, Any], str, str, str]] = [  # what differs, code, what the problem says, its remedy
    ({"server": {**TOPIC, "host": "k1.example.com"}}, "kafka", "'k1.example.com' is not a broker", ":9092"),
    ({"server": {**TOPIC, "host": "k1:9092, k2:9092"}}, "kafka", "' k2:9092'", ":9092"),
    ({"server": {**TOPIC, "host": "k1:65536"}}, "kafka", "'k1:65536'", ":9092"),
    ({"server": {**TOPIC, "host": "u:hunter2@k1"}}, "kafka", "'k1' is not a broker", ":9092"),
    ({"server": {**TOPIC, "format": "avro"}}, "format", "'avro'", "json"),
    ({"server": {**TOPIC, "format": "parquet"}}, "format", "'parquet'", "csv, json, text"),
    ({"format": "document"}, "format", "'document'", "csv, json, text"),
    ({"server": {**TOPIC, "encoding": "UTF-16"}}, "kafka", "in UTF-16", "UTF-8"),
    ({"options": {"encoding": "windows-1252"}}, "kafka", "in windows-1252", "UTF-8"),
    ({"options": {"header": True}}, "kafka", "header is for files", "leave it out"),
    ({"options": {"multiLine": True}}, "kafka", "multiLine is for files", "leave it out"),
    ({"files": "*.csv"}, "kafka", "files is for files", "leave it out"),
    ({"topic": "a b"}, "name", "topic name 'a b'", "letters"),
    ({"topic": ".."}, "name", "topic name '..'", "letters"),
    ({"kafka": {"maxMessages": 0}}, "bad-value", "kafka.maxMessages", ""),
    ({"kafka": {"max_messages": 1}}, "unknown-key", "max_messages", "maxMessages"),
    ({"kafka": {"options": {"group.id": "ours"}}}, "kafka", "'group.id' is refused", "security"),
    ({"kafka": {"options": {"isolation.level": "read_uncommitted"}}}, "kafka", "'isolation.level'", "security"),
    ({"kafka": {"options": {"auto.offset.reset": "latest"}}}, "kafka", "'auto.offset.reset'", "security"),
    ({"kafka": {"options": {"sasl.jaas.config": "… password=hunter2"}}}, "secret", "sasl.jaas.config is not", "env:"),
    ({"kafka": {"options": {"ssl.key.password": "hunter2"}}}, "secret", "ssl.key.password is not", "env:"),
    ({"kafka": {"options": {"ssl.keystore.key": "hunter2"}}}, "kafka", "'ssl.keystore.key' is refused", ""),
    ({"kafka": {"options": {"sasl.oauthbearer.client.credentials.client.secret": "hunter2"}}}, "secret", "is not", ""),
    ({"kafka": "kafka://me:hunter2@k1"}, "bad-value", "kafka", ""),
    ({"server": FOLDER, "kafka": {}}, "kafka", "kafka is for a server of type kafka", "servers"),
    ({"jdbc": {"user": "env:A", "overlap": 1}}, "jdbc", "jdbc is for a server of type postgres", "servers"),
    ({"server": TABLE, "stream": {}}, "stream", "stream is for files and topics", "leave it out"),
    ({"stream": {"trigger": "0 s"}}, "bad-value", "stream.trigger", ""),
    ({"stream": {"trigger": "1 second"}}, "bad-value", "'1 second' is not a duration", ""),
    ({"stream": {"mergeAfter": 10}}, "bad-value", "10 is not a duration", ""),
    ({"stream": {"latency": "1 s"}}, "stream", "a latency of 1 s cannot be had with a trigger of 1 s", "half of it"),
    ({"stream": {"mergeRows": 0}}, "bad-value", "stream.mergeRows", ""),
    ({"stream": {"mergeafter": "1 s"}}, "unknown-key", "stream.mergeafter", "mergeAfter"),
    ({"stream": {"delay": "1 h"}}, "stream", "delay needs an eventTime that is a timestamp; there is none", "add"),
    ({"stream": {"delay": "1 h"}, "eventTime": "day"}, "stream", "day is date", "leave delay out"),
    ({"stream": {"ahead": "1 h"}, "eventTime": "there"}, "stream", "there is timestamp_ntz", "leave ahead out"),
    ({"server": FOLDER, "stream": {"output": "good"}}, "stream", "output needs a server of type kafka", "leave"),
    ({"stream": {"output": "sensors"}}, "stream", "the topic that is read", "another"),
    ({"stream": {"output": "a/b"}}, "name", "topic name 'a/b'", "letters"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "code", "what", "fix"), WRONG)
def test_mistakes_are_told_with_line_and_remedy(
    tmp_path: Path, changes: dict[str, Any], code: str, what: str, fix: str
) -> None:
    dataset, problems = read(tmp_path, **{"server": TOPIC, **changes})
    assert dataset is None
    told = [p for p in problems if p.code == code and what in p.what and fix in p.fix]
    assert len(told) == 1, problems
    place = re.search(r"sensors.yaml:(\d+)$", told[0].where)
    assert place and int(place[1]) > 1
    assert "hunter2" not in "\n".join(map(str, problems))


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    _, problems = read(
        tmp_path, {**TOPIC, "host": "k1", "format": "avro", "encoding": "UTF-16"}, "a b", files="*.csv",
        kafka={"options": {"group.id": "x", "sasl.jaas.config": "x"}}, stream={"delay": "1 h", "output": "c d"},
        eventTime="amuont",
    )  # fmt: skip
    assert sorted(problem.code for problem in problems) == [
        "format", "kafka", "kafka", "kafka", "kafka", "name", "name", "secret", "stream", "unknown-column",
    ]  # fmt: skip
    assert len({problem.where for problem in problems}) == len(problems), "each at its own line"


@given(st.integers(0, 10**6), st.sampled_from(["", " "]), st.sampled_from(sorted(SECONDS)))
def test_durations(number: int, blank: str, unit: str) -> None:
    assert seconds(f"{number}{blank}{unit}") == number * SECONDS[unit]
    assert seconds(f"{number}.5{blank}{unit}") == (number + 0.5) * SECONDS[unit]
    for wrong in (f"-{number}{unit}", f"{number}  {unit}", f"{number}", f"{number}{unit}s", f"{number} {unit.upper()}"):
        assert seconds(wrong) is None
