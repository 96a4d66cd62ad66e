"""conf -> frozen models: datasets, gold tables and settings, with every error of the folder reported at once."""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, Final, Literal

NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
META_COLUMNS: Final = ("_file", "_block", "_line", "_load")
ANOMALY: Final = "anomaly"  # the rule of rows that a model's verdict removes
BUILT_IN_CHECKS: Final = ("key_unique", "key_not_null")
SCD2_COLUMNS: Final = ("valid_from", "valid_to", "is_current")
ROOT: Final = Path(__file__).resolve().parents[2]
DEFAULT_CONF: Final = ROOT / "conf"
ISO_DATE: Final = r"\d{4}-\d{2}-\d{2}"
ISO_TIME: Final = r"([T ]\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})?)?"
DATE_FIELDS: Final = ("yyyy", "MM", "dd")
TIME_FIELDS: Final = ("HH", "mm", "ss")
INTEGER_BITS: Final = {"tinyint": 8, "smallint": 16, "int": 32, "bigint": 64}

Action = Literal["quarantine", "flag", "stop"]
Format = Literal["csv", "json", "parquet", "text", "document", "jdbc"]
SslMode = Literal["disable", "prefer", "require", "verify-ca", "verify-full"]
COMPARISONS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "mustBe": operator.eq,
    "mustNotBe": operator.ne,
    "mustBeGreaterThan": operator.gt,
    "mustBeGreaterOrEqualTo": operator.ge,
    "mustBeLessThan": operator.lt,
    "mustBeLessOrEqualTo": operator.le,
}


@dataclass(frozen=True)
class Rule:
    """A quality rule. ``predicate`` is the SQL condition of rows that break it, where it has one."""

    name: str
    action: Action
    operator: str
    threshold: Any
    metric: str | None = None
    column: str | None = None
    columns: tuple[str, ...] = ()
    valid_values: tuple[str, ...] = ()
    missing_values: tuple[str, ...] = ()
    pattern: str | None = None
    predicate: str | None = None
    query: str | None = None
    percent: bool = False

    @property
    def by_row(self) -> bool:
        """Whether single rows break this rule (and can go to quarantine for it)."""
        return self.predicate is not None or self.metric in ("nullValues", "missingValues", "invalidValues")

    def holds(self, measured: float | None) -> bool:
        """Whether ``measured`` passes; an unmeasured value does not."""
        if measured is None:
            return False
        if "Between" in self.operator:
            low, high = self.threshold
            return bool(low <= measured <= high) == (self.operator == "mustBeBetween")
        return bool(COMPARISONS[self.operator](measured, self.threshold))


@dataclass(frozen=True)
class Column:
    """One column of a silver table and how it comes from the feed."""

    name: str
    feed_name: str
    type: str
    aliases: tuple[str, ...] = ()
    transform: str | None = None
    sources: tuple[str, ...] = ()
    format: str | None = None
    required: bool = False
    optional: bool = False
    classification: str | None = None
    null_values: tuple[str, ...] = ()
    trim: bool = True
    enum: tuple[str, ...] = ()
    bounds: tuple[tuple[str, Any], ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether its values may stand where everybody reads: in logs, plans, reasons and statistics."""
        return self.classification not in ("personal", "restricted")


@dataclass(frozen=True)
class Options:
    """How the bytes of a feed become records."""

    header: bool = True
    delimiter: str = ","
    quote: str = '"'
    escape: str = '"'
    encoding: str = "UTF-8"
    multi_line: bool = False
    null_values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Jdbc:
    """A table of a PostgreSQL database that is pulled. ``user`` and ``password`` are references, never the secrets;
    ``overlap`` is in units of an integer sequence, or in seconds."""

    host: str
    port: int
    database: str
    schema: str
    table: str
    user: str
    password: str | None
    overlap: float
    partitions: int
    partition_column: str | None
    fetch_size: int
    ssl_mode: SslMode
    ssl_root_cert: str | None


@dataclass(frozen=True)
class Kafka:
    """A topic that is read. ``options`` are those of Kafka's consumer, with kafka. before them; the secret ones are
    references. ``max_messages`` bounds a micro-batch."""

    bootstrap: str
    topic: str
    options: tuple[tuple[str, str], ...]
    max_messages: int


@dataclass(frozen=True)
class Stream:
    """How a dataset is taken as it comes. An event is late which is older than the newest before its micro-batch by
    more than ``delay_seconds``, and wrong where it lies more than ``ahead_seconds`` after its arrival (None: neither).
    What has come is merged into silver after ``merge_seconds`` or ``merge_rows``, whichever is first. ``output`` is the
    topic of the same brokers to which good records go within milliseconds. A message of a topic is to be in the log
    after ``latency_seconds``, as far as that is to be had."""

    trigger_seconds: float
    delay_seconds: float | None
    ahead_seconds: float | None
    merge_seconds: float
    merge_rows: int
    output: str | None
    latency_seconds: float | None = None


@dataclass(frozen=True)
class Feature:
    """What a forest looks at: a Spark SQL expression over silver's columns, and how its value is read; ``part`` is of a
    date or timestamp. Values of one that is not open stand nowhere that people look."""

    name: str
    sql: str
    kind: Literal["number", "category", "date", "timestamp"]
    part: Literal["value", "hour", "weekday", "hour_of_week"]
    is_open: bool


@dataclass(frozen=True)
class Anomaly:
    """How rows are found that are not like the others.

    The reference is silver's rows of the last ``days`` before its newest event, or of the last ``loads``; rows that do
    not fulfil ``where`` are neither in it nor judged. Of the reference the ``share`` with the highest scores lies above
    the threshold, or, with ``clean``, at most that share does so by chance. Nothing of a load is removed where that
    would be more than ``limit`` of its judged rows, or more than ``group_limit`` of a ``group``.
    """

    features: tuple[Feature, ...]
    days: float | None
    loads: int | None
    where: str | None
    group: str | None
    share: float
    clean: bool
    limit: float
    group_limit: float
    trees: int
    sample: int
    seed: int
    kind: Literal["standard", "extended"]


@dataclass(frozen=True)
class Dataset:
    """A feed and the silver table that it becomes."""

    name: str
    version: str
    owner: str
    path: str
    format: Format
    files: str
    options: Options
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    identity: tuple[str, ...]
    sequence: str | None
    event_time: str | None
    history: Literal["latest", "scd2", "append"]
    evolution: Literal["keep", "add", "quarantine", "refuse"]
    unify: bool
    spark: tuple[tuple[str, str], ...]
    rules: tuple[Rule, ...]
    freshness_hours: float | None
    latency_hours: float | None
    where: str
    jdbc: Jdbc | None = None
    kafka: Kafka | None = None
    stream: Stream | None = None
    anomaly: Anomaly | None = None

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    def is_open(self, name: str) -> bool:
        """Whether values of silver's column may stand where everybody reads; those that Drivetrain adds may."""
        return all(column.is_open for column in self.columns if column.name == name)

    @cached_property
    def feed_columns(self) -> tuple[str, ...]:
        """The columns that the feed itself has, in the order of the contract."""
        names = [name for c in self.columns for name in (c.sources if c.transform else (c.feed_name,))]
        return tuple(dict.fromkeys(name for name in names if name != "_file"))

    @cached_property
    def may_lack(self) -> frozenset[str]:
        """The feed's columns that a record may come without."""
        optional = [column for column in self.columns if column.optional]
        return frozenset(name for c in optional for name in (c.sources if c.transform else (c.feed_name,)))

    @cached_property
    def silver_types(self) -> dict[str, str]:
        """Column -> Spark type of the silver table, own columns of Drivetrain included."""
        types = {column.name: column.type for column in self.columns}
        types |= {"_file": "string", "_block": "bigint", "_line": "bigint", "_load": "bigint"}
        if self.history == "scd2":
            moment = self.column(self.sequence).type if self.sequence else "bigint"
            types |= {"valid_from": moment, "valid_to": moment, "is_current": "boolean"}
        return types

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the contract reads records otherwise; moving a feed or renaming an owner does not count."""
        ignored = {"owner", "path", "where", "spark", "freshness_hours", "latency_hours"}
        ignored |= {"jdbc", "kafka", "stream", "anomaly"}
        ahead = {"ahead": self.stream.ahead_seconds} if self.stream and self.stream.ahead_seconds else {}
        return digest({key: value for key, value in asdict(self).items() if key not in ignored} | ahead)


@dataclass(frozen=True)
class GoldTable:
    """One query over silver and gold names, and what must hold of its result."""

    name: str
    sql: str
    inputs: tuple[str, ...]
    columns: tuple[str, ...]
    description: str
    owner: str
    key: tuple[str, ...]
    rules: tuple[Rule, ...]
    freshness_hours: float | None
    lineage: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    where: str

    @cached_property
    def fingerprint(self) -> str:
        """Changes when the query, its key or its checks change."""
        return digest([self.sql, self.key, [asdict(rule) for rule in self.rules]])


@dataclass(frozen=True)
class Settings:
    """base.yaml with everything laid over it. Paths are absolute, or have a scheme."""

    company: str
    landing: str
    warehouse: str
    timezone: str
    settle_seconds: float
    max_record_bytes: int
    sample_rows: int
    unified_table: str
    database_prefix: str
    make_feeds: Mapping[str, Any] | None
    spark: Mapping[str, str]
    refresh_seconds: float = 60
    keep_hours: float = 168
    model_key: str | None = None  # a reference, as all secrets
    tune: bool = True


@dataclass(frozen=True)
class Conf:
    """A whole conf folder. ``gold`` stands in an order in which it can be built."""

    settings: Settings
    datasets: Mapping[str, Dataset]
    gold: Mapping[str, GoldTable]
    env: str
    conf_dir: Path
    sets: tuple[str, ...] = ()

    def command(self, job: str) -> str:
        """How a person calls a job on this same conf."""
        words = ["./spark-submit.sh", job]
        words += [] if self.env == "local" else ["--env", self.env]
        words += [] if self.conf_dir == DEFAULT_CONF else ["--conf-dir", str(self.conf_dir)]
        return shlex.join([*words, *[word for text in self.sets for word in ("--set", text)]])


def fixed_places(pattern: str) -> list[str] | None:
    """The parts of a date pattern whose year, month, day (and time) stand at fixed places; None for any other."""
    parts = re.findall(r"yyyy|MM|dd|HH|mm|ss|'[^']+'|[^A-Za-z']", pattern)
    fields = sorted(part for part in parts if part.isalpha())
    fixed = fields in (sorted(DATE_FIELDS), sorted((*DATE_FIELDS, *TIME_FIELDS)))
    return parts if fixed and "".join(parts) == pattern else None


def castable(text: str, kind: str) -> bool:
    """Whether the text is a value of the Spark type."""
    if kind == "boolean":
        return text.lower() in ("true", "false")
    if kind == "string":
        return True
    if kind == "date" or kind.startswith("timestamp"):
        form = ISO_DATE if kind == "date" else ISO_DATE + ISO_TIME
    else:
        form = r"[+-]?\d+" if kind in INTEGER_BITS else r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
    if not re.fullmatch(form, text):
        return False
    try:
        if kind == "date":
            date.fromisoformat(text)
        elif kind.startswith("timestamp"):
            datetime.fromisoformat(text[:19])
        elif kind in INTEGER_BITS:
            limit = 1 << INTEGER_BITS[kind] - 1
            return -limit <= int(text) < limit
        elif kind.startswith("decimal"):
            precision, scale = map(int, re.findall(r"\d+", kind))
            shifted = Decimal(text).scaleb(scale)
            return bool(shifted == shifted.to_integral_value() and abs(shifted) < 10**precision)
        else:
            return math.isfinite(float(text))
    except (ValueError, ArithmeticError):
        return False
    return True


def digest(value: Any) -> str:
    """Short stable hash of plain data (16 hex digits)."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def build_order(gold: Sequence[GoldTable]) -> list[GoldTable]:
    """Gold tables with those that they read before them.

    Raises:
        CycleError: tables read each other; ``args[1]`` lists them.
    """
    by_name = {table.name: table for table in gold}
    graph = {table.name: [name for name in table.inputs if name in by_name] for table in gold}
    return [by_name[name] for name in TopologicalSorter(graph).static_order()]


__all__ = [
    "ANOMALY",
    "META_COLUMNS",
    "NAME",
    "SCD2_COLUMNS",
    "Action",
    "Anomaly",
    "Column",
    "Conf",
    "CycleError",
    "Dataset",
    "Feature",
    "Format",
    "GoldTable",
    "Jdbc",
    "Kafka",
    "Options",
    "Rule",
    "Settings",
    "SslMode",
    "Stream",
    "build_order",
    "digest",
]  # fmt: skip
