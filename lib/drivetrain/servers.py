"""Where a dataset's records are, and how they come: a folder of files, a table of a database, or a topic of Kafka."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast

from pydantic import BeforeValidator, Field

from drivetrain.contracts import Column, Format, Jdbc, Kafka, Options, SslMode, Stream
from drivetrain.findings import Findings, Model, Path_, as_text, nearest

POSTGRES: Final = ("postgres", "postgresql")
KAFKA: Final = "kafka"
FILE_FORMATS: Final = ("csv", "json", "parquet", "text", "document")
TOPIC_FORMATS: Final = ("csv", "json", "text")
SECRET: Final = re.compile(r"(env:[A-Za-z_][A-Za-z0-9_]*|file:[^\x00-\x1f]+)")
DURATION: Final = re.compile(r"(\d+(?:\.\d+)?) ?(s|m|min|h|d)")
SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")
TABLE_NAME: Final = re.compile(r"[A-Za-z_/][A-Za-z0-9_/$]{0,62}")  # SAP's own namespaces stand between slashes
TOPIC_NAME: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
# Of Kafka's consumer: how to get in, and how much to take at a time. Where to begin and what to keep is Drivetrain's.
# A key of a certificate has to come in a file: Spark shows it in its plans, where it hides what SECRET_OPTIONS name.
CONSUMER_OPTIONS: Final = re.compile(
    r"(?!ssl\.keystore\.key$)(security|sasl|ssl|fetch)\.[a-z0-9.]+|max\.partition\.fetch\.bytes"
    r"|(request|session|default\.api)\.timeout\.ms"
)
SECRET_OPTIONS: Final = re.compile(r"password|secret|jaas")
# Properties -> the kinds of feeds that they are for, and how a person calls those.
BELONGS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "format": (("folder", "topic"), "files and topics"), "files": (("folder",), "files"),
    "options": (("folder", "topic"), "files and topics"), "stream": (("folder", "topic"), "files and topics"),
    "jdbc": (("table",), "a server of type postgres"), "kafka": (("topic",), "a server of type kafka"),
}  # fmt: skip
MOMENTS: Final = ("date", "timestamp", "timestamp_ntz")
WHOLE: Final = ("tinyint", "smallint", "int", "bigint")


def seconds(text: str) -> float | None:
    """A duration as 90s, 10 min, 2 h or 1d, in seconds; None where the text is none."""
    said = DURATION.fullmatch(text)
    return float(said[1]) * SECONDS[said[2]] if said else None


def _duration(given: Any) -> float:
    if (found := seconds(str(given))) is None:
        raise ValueError(f"{given!r} is not a duration as 1 s, 10 min, 2 h or 1 d")
    return found


Duration = Annotated[float, BeforeValidator(_duration)]


class CsvOptions(Model):
    header: bool = True
    delimiter: str = Field(",", min_length=1, max_length=8)
    quote: str = Field('"', max_length=1)
    escape: str = Field('"', max_length=1)
    encoding: str = "UTF-8"
    multi_line: bool = False
    null_values: tuple[str, ...] = ()


class JdbcExtras(Model):
    """How a table is pulled, and who as: ``user`` and ``password`` are named, never written."""

    user: str
    password: str | None = None
    overlap: int | str
    partitions: int = Field(4, ge=1, le=256)
    partition_column: str | None = None
    fetch_size: int = Field(1000, ge=1)
    ssl_mode: SslMode = "prefer"
    ssl_root_cert: str | None = None


class KafkaExtras(Model):
    """How a topic is read; what is secret of ``options`` is named, never written."""

    max_messages: int = Field(100_000, ge=1)
    options: dict[str, str | int | float | bool] = {}


class StreamExtras(Model):
    """How a dataset is taken as it comes."""

    trigger: Duration = Field("1 s", gt=0, validate_default=True)
    delay: Duration | None = None
    ahead: Duration | None = None
    merge_after: Duration = Field("10 min", gt=0, validate_default=True)
    merge_rows: int = Field(100_000, ge=1)
    output: str | None = None
    latency: Duration | None = Field(None, gt=0)


class SourceExtras(Model):
    """Of the customProperties of a dataset, those that say where its records are and how they come."""

    format: Literal["csv", "json", "parquet", "text", "document"] | None = None
    files: str = Field("*", pattern=r"^[^/\x00-\x1f]+$")
    options: CsvOptions = CsvOptions()
    sequence: str | None = None
    event_time: str | None = None
    jdbc: JdbcExtras | None = None
    kafka: KafkaExtras | None = None
    stream: StreamExtras | None = None


@dataclass(frozen=True)
class Feed:
    """What a contract says of its feed: the ``server``, which stands ``at`` a place, the ``name`` of the table or topic
    there, the properties, which stand at ``spots``, and the columns. What is wrong goes into ``found``."""

    server: Mapping[str, Any]
    at: Path_
    name: str
    extra: SourceExtras
    spots: Mapping[str, Path_]
    columns: Sequence[Column]
    identity: Sequence[str]
    found: Findings

    @property
    def kind(self) -> Literal["folder", "table", "topic"]:
        given = self.server.get("type")
        return "table" if given in POSTGRES else "topic" if given == KAFKA else "folder"

    def column(self, name: str | None) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True)
class Source:
    """Of a Dataset, where its records are and how they come."""

    path: str
    format: Format
    options: Options
    jdbc: Jdbc | None = None
    kafka: Kafka | None = None
    stream: Stream | None = None


def choose(document: Mapping[str, Any], env: str, found: Findings) -> tuple[Mapping[str, Any], Path_]:
    """The contract's server for the environment, and where it stands; nothing where there is none."""
    servers = document.get("servers") or []
    chosen = [i for i, server in enumerate(servers) if server.get("server") == env] or (
        [0] if len(servers) == 1 else []
    )
    if not chosen or not (servers[chosen[0]].get("path") or servers[chosen[0]]["type"] in (*POSTGRES, KAFKA)):
        fix = f"add {{server: {env}, type: local, path: …, format: …}}, or one of type postgres or kafka"
        found.add("server", ("servers",), f"no server for --env {env} with a path", fix)
        return {}, ("servers",)
    return dict(servers[chosen[0]]), ("servers", chosen[0])


def read_source(feed: Feed, places: Mapping[str, str]) -> Source:
    """Where the records are and how they come; what ``feed.found`` says is wrong may be missing."""
    _check_belonging(feed)
    options = Options(**feed.extra.options.model_dump())
    if feed.kind == "table":
        return Source("", "jdbc", options, jdbc=_jdbc(feed))
    if feed.kind == "topic":  # each message is a record, none of them a header
        form, headless = _format(feed, TOPIC_FORMATS), replace(options, header=False)
        return Source("", form, headless, kafka=_kafka(feed), stream=_stream(feed, feed.extra.stream or StreamExtras()))
    path = _expand(str(feed.server.get("path", "")), feed.at, places, feed.found)
    stream = _stream(feed, feed.extra.stream) if feed.extra.stream else None
    return Source(path, _format(feed, FILE_FORMATS), options, stream=stream)


def _format(feed: Feed, known: Sequence[str]) -> Format:
    default = "json" if feed.kind == "topic" else ""  # as the standard has it
    given = feed.extra.format or str(feed.server.get("format", default))
    if (feed.server or given) and given not in known:
        at = feed.spots["format"] if feed.extra.format else (*feed.at, "format")
        feed.found.add("format", at, f"format {given!r} is not read", nearest(given, known))
    return cast(Format, given)


def _check_belonging(feed: Feed) -> None:
    """No property stands there which is for a feed of another kind."""
    for name, (kinds, said) in BELONGS.items():
        if feed.server and name in feed.spots and feed.kind not in kinds:
            code = name if name in ("jdbc", "kafka", "stream") else "jdbc" if feed.kind == "table" else "kafka"
            what = f"{name} is for {said}, and this server is of type {feed.server['type']}"
            feed.found.add(code, feed.spots[name], what, "leave it out, or name another server under servers")


# --- Files ---


def _expand(path: str, server_at: Path_, places: Mapping[str, str], found: Findings) -> str:
    unknown = [name for name in re.findall(r"\$\{([^}]*)\}", path) if name not in places]
    for name in unknown:
        found.add("path", (*server_at, "path"), f"${{{name}}} stands for nothing", nearest(name, places))
    full = re.sub(r"\$\{([^}]*)\}", lambda match: places.get(match[1], ""), path)
    if ".." in Path(full).parts or re.search(r"[\x00-\x1f*?\[\]{}]", full):
        found.add("path", (*server_at, "path"), f"path {full!r} holds '..', a wildcard or a control character",
                  "write the folder itself; which files, is customProperties files")  # fmt: skip
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", full) and not re.match(r"(file|hdfs|viewfs):/", full):
        found.add(
            "path",
            (*server_at, "path"),
            f"path {full!r} has a scheme that is not read",
            "use a plain path, file:/ or hdfs://",
        )
    if not re.match(r"/|[a-z]+:", full):
        full = str(Path(places["root"]) / full)
    return full


# --- Tables of a database ---


def _jdbc(feed: Feed) -> Jdbc | None:
    """How the table is pulled; None where something is wrong with it."""
    server, extra, spots, found = feed.server, feed.extra, feed.spots, feed.found
    before = len(found.problems)
    _check_place(server, feed.at, feed.name, found)
    if not feed.identity:
        found.add("identity", spots.get("identity", ()), "a pull reads some rows again, and nothing tells these apart",
                  "mark the key columns primaryKey: true, or name identity columns")  # fmt: skip
    if not extra.sequence:
        found.add("sequence", (), "a table is pulled by a sequence column", "add {property: sequence, value: …}")
    if extra.jdbc is None:
        if "jdbc" not in spots:  # else what is wrong with it has been said
            found.add("jdbc", (), "how the table is pulled is not said",
                      "add {property: jdbc, value: {user: env:NAME, password: env:NAME, overlap: 15m}}")  # fmt: skip
        return None
    at, jdbc = spots["jdbc"], extra.jdbc
    for name, value in (("user", jdbc.user), ("password", jdbc.password)):
        if value is not None:
            _check_secret(name, value, (*at, name), found)
    overlap = _overlap(jdbc.overlap, feed.column(extra.sequence), spots, found)
    part = feed.column(jdbc.partition_column)
    if jdbc.partition_column and not part:
        what = f"partitionColumn names no column: {jdbc.partition_column!r}"
        fix = nearest(jdbc.partition_column, [column.name for column in feed.columns])
        found.add("unknown-column", (*at, "partitionColumn"), what, fix)
    if part and (part.transform or part.type.split("(")[0] not in (*WHOLE, *MOMENTS, "decimal", "double")):
        found.add("jdbc", (*at, "partitionColumn"), f"partitionColumn {part.name} is {part.type}, or computed",
                  "name a column of the table with numbers, dates or times, or leave it out")  # fmt: skip
    if len(found.problems) > before:
        return None
    return Jdbc(
        host=str(server["host"]), port=int(server["port"]), database=str(server["database"]),
        schema=str(server["schema"]), table=feed.name, user=jdbc.user, password=jdbc.password, overlap=overlap,
        partitions=jdbc.partitions, partition_column=part.feed_name if part else None, fetch_size=jdbc.fetch_size,
        ssl_mode=jdbc.ssl_mode, ssl_root_cert=jdbc.ssl_root_cert,
    )  # fmt: skip


def _check_secret(name: str, value: str, at: Path_, found: Findings) -> None:
    if not SECRET.fullmatch(value):
        found.add("secret", at, f"the {name} is not a reference; what stands here is not shown",
                  "write env:NAME or file:PATH, and change a password that stood in a file")  # fmt: skip


def _check_place(server: Mapping[str, Any], at: Path_, table: str, found: Findings) -> None:
    """Host, database, schema and table meet a URL and SQL, so only plain ones pass."""
    if not HOST.fullmatch(str(server["host"])):
        found.add("jdbc", (*at, "host"), f"host {str(server['host'])[:80]!r} is not a name or address of a machine",
                  "write host.example.com, 10.0.0.1 or [::1]")  # fmt: skip
    if not (str(server["port"]).isdecimal() and 0 < int(server["port"]) < 65_536):
        found.add("jdbc", (*at, "port"), f"port {server['port']!r} is not a number from 1 to 65535", "write e.g. 5432")
    names = {part: ((*at, part), str(server[part])) for part in ("database", "schema")}
    for what, (place, name) in {**names, "table": (("schema", 0, "physicalName"), table)}.items():
        if not TABLE_NAME.fullmatch(name):
            found.add("name", place, f"{what} name {name[:80]!r} is not allowed",
                      "use letters, digits, _, $ and /, begin with a letter, _ or /, at most 63")  # fmt: skip


def _overlap(given: int | str, sequence: Column | None, spots: Mapping[str, Path_], found: Findings) -> float:
    """In units of an integer sequence, or in seconds."""
    if sequence is None:  # said elsewhere
        return 0
    at = spots["sequence"]
    if sequence.transform or sequence.format or sequence.type not in (*WHOLE, *MOMENTS):
        found.add("sequence", at, f"the sequence {sequence.name} is {sequence.type}, computed, or has a format",
                  "name a column that is an integer, a date or a timestamp in the database")  # fmt: skip
        return 0
    if not sequence.is_open:
        found.add("sequence", at, f"the sequence {sequence.name} is {sequence.classification}, and its values stand in "
                  "queries and in the log", "name another column")  # fmt: skip
    if not TABLE_NAME.fullmatch(sequence.feed_name):
        found.add("name", at, f"sequence column {sequence.feed_name[:80]!r} is not allowed",
                  "use letters, digits, _, $ and /, begin with a letter, _ or /, at most 63")  # fmt: skip
    size = seconds(str(given)) if sequence.type in MOMENTS else float(given) if isinstance(given, int) else None
    if not size or size < 0:
        wanted = "a duration as 90s, 15m, 2h or 1d" if sequence.type in MOMENTS else "a whole number"
        found.add("jdbc", (*spots["jdbc"], "overlap"), f"overlap {given!r} is not {wanted} above 0",
                  "write more than the longest transaction that writes to the table takes")  # fmt: skip
    return size or 0


# --- Topics of Kafka ---


def _kafka(feed: Feed) -> Kafka | None:
    """How the topic is read; None where something is wrong with it."""
    found, before = feed.found, len(feed.found.problems)
    for machine in str(feed.server["host"]).split(","):
        host, _, port = machine.rpartition(":")
        if not (HOST.fullmatch(host) and re.fullmatch(r"\d{1,5}", port) and 0 < int(port) < 65_536):
            said = machine.rpartition("@")[2][:80]  # before an @ stands a password
            what = f"host: {said!r} is not a broker with its port"
            found.add("kafka", (*feed.at, "host"), what, "write broker1.example.com:9092,broker2.example.com:9092")
    _check_topic(feed.name, ("schema", 0, "physicalName"), found)
    _check_messages(feed)
    extra = feed.extra.kafka or KafkaExtras()
    options = {key: as_text(value) for key, value in extra.options.items()}
    for key, value in options.items():
        at = (*feed.spots["kafka"], "options", key)
        if not CONSUMER_OPTIONS.fullmatch(key):
            fix = "only security.*, sasl.*, ssl.*, fetch.*, max.partition.fetch.bytes and timeouts go here"
            found.add("kafka", at, f"option {key!r} is refused for a topic", fix)
        if SECRET_OPTIONS.search(key):
            _check_secret(key, value, at, found)
    if len(found.problems) > before:
        return None
    named = tuple((f"kafka.{key}", value) for key, value in options.items())
    return Kafka(str(feed.server["host"]), feed.name, named, extra.max_messages)


def _check_topic(name: str, at: Path_, found: Findings) -> None:
    if not TOPIC_NAME.fullmatch(name):
        fix = "use letters, digits, ., _ and -, at most 249"
        found.add("name", at, f"topic name {name[:80]!r} is not allowed", fix)


def _check_messages(feed: Feed) -> None:
    """Nothing is said of messages that is true of files only."""
    given, at = feed.extra.options, feed.spots.get("options", ())
    told = {"header": given.header and "header" in given.model_fields_set, "multiLine": given.multi_line}
    for name in (name for name, said in told.items() if said):
        what = f"{name} is for files: a message is a record, whole and without a header"
        feed.found.add("kafka", (*at, name), what, "leave it out")
    encodings = {(*at, "encoding"): given.encoding, (*feed.at, "encoding"): str(feed.server.get("encoding", "UTF-8"))}
    for place, encoding in encodings.items():
        if encoding.upper().replace("-", "") != "UTF8":
            feed.found.add("kafka", place, f"messages in {encoding} are not read", "let them be written in UTF-8")


# --- Streams ---


def _stream(feed: Feed, extra: StreamExtras) -> Stream:
    at, found = feed.spots.get("stream", ()), feed.found
    event_time = feed.column(feed.extra.event_time)
    for name, value in (("delay", extra.delay), ("ahead", extra.ahead)):
        if value is not None and (event_time is None or event_time.type != "timestamp"):
            said = f"{event_time.name} is {event_time.type}" if event_time else "there is none"
            found.add("stream", (*at, name), f"{name} needs an eventTime that is a timestamp; {said}",
                      f"add {{property: eventTime, value: …}}, or leave {name} out")  # fmt: skip
    if extra.output is not None:
        _check_topic(extra.output, (*at, "output"), found)
        if feed.kind != "topic":
            found.add("stream", (*at, "output"), "output needs a server of type kafka", "leave it out")
        elif extra.output == feed.name:
            found.add("stream", (*at, "output"), "output is the topic that is read", "name another topic")
    if extra.latency is not None:
        if feed.kind != "topic":
            found.add("stream", (*at, "latency"), "latency needs a server of type kafka", "leave it out")
        elif extra.latency <= extra.trigger:
            what = f"a latency of {extra.latency:g} s cannot be had with a trigger of {extra.trigger:g} s"
            found.add("stream", (*at, "latency"), what, "let trigger be less, better half of it or less")
    merging = (extra.merge_after, extra.merge_rows)
    return Stream(extra.trigger, extra.delay, extra.ahead, *merging, extra.output, extra.latency)
