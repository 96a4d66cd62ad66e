"""A PostgreSQL table as a feed: what a pull would take, and its rows as records.

PostgreSQL casts the columns to text, so that no digit meets a type which cannot hold it. A row whose transaction
commits late is found by the overlap: a hash of the rows within it is kept with each pull and compared before the next.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from drivetrain.contracts import Dataset, Jdbc, digest
from drivetrain.drift import fit
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.findings import nearest
from drivetrain.landing import Intake, Pull, numbered
from drivetrain.servers import MOMENTS
from drivetrain.session import FAILURES, reason, sql_state
from drivetrain.settings import resolve_secret

# Types of columns by which rows can be ordered and parted -> the type of the bounds, which leaves an index usable.
BOUND_TYPES: Final = {
    "smallint": "bigint", "integer": "bigint", "bigint": "bigint", "numeric": "numeric", "date": "timestamp",
    "timestamp without time zone": "timestamp", "timestamp with time zone": "timestamptz",
}  # fmt: skip
# Values that stand above or below all others, and would be the last upper bound that there ever is.
ENDLESS: Final = {"bigint": "FALSE", "numeric": "({0} >= 1e19 OR {0} <= -1e19)"}
ENDLESS_MOMENT: Final = "{0} IN ('infinity', '-infinity')"
PER_PARTITION: Final = 33  # bits of monotonically_increasing_id that count within a partition


@dataclass(frozen=True)
class Ordered:
    """A column of the table by which rows are bounded: its SQL name, and the SQL type of its bounds."""

    name: str
    type: str

    def bound(self, text: str) -> str:
        return f"CAST({_literal(text)} AS {self.type})"

    def endless(self, name: str) -> str:
        return ENDLESS.get(self.type, ENDLESS_MOMENT).format(name)

    def finite(self, name: str) -> str:
        return f"{name} IS NOT NULL AND NOT {self.endless(name)}"

    def stray(self, name: str) -> str:
        return f"({name} IS NULL OR {self.endless(name)})"

    def between(self, low: str, high: str, share: str) -> str:
        """The value that lies that share of the way from low to high."""
        if self.type in ("bigint", "numeric"):
            return f"trunc({low}::numeric + ({high}::numeric - {low}::numeric) * {share})"
        return f"{low} + ({high} - {low}) * {share}::float8"


@dataclass(frozen=True)
class Source:
    """A dataset's table as it is now: names of its columns as the contract spells them, their own, and their types."""

    dataset: Dataset
    jdbc: Jdbc
    header: tuple[str, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def table(self) -> str:
        return f"{_quoted(self.jdbc.schema)}.{_quoted(self.jdbc.table)} AS _drivetrain"

    @cached_property
    def sequence(self) -> Ordered:
        return self.ordered(self.dataset.column(str(self.dataset.sequence)).feed_name)

    @property
    def bounded(self) -> tuple[str, str]:
        """What a pull's bounds are bounds of: the table, and the column with its type."""
        table = f"{self.jdbc.database}.{self.jdbc.schema}.{self.jdbc.table}"
        return table, f"{self.sequence.name} {self.sequence.type}"

    @cached_property
    def partition(self) -> Ordered:
        return self.ordered(self.jdbc.partition_column) if self.jdbc.partition_column else self.sequence

    def ordered(self, feed_name: str) -> Ordered:
        """Raises DrivetrainError where rows cannot be bounded by the column."""
        at = fit(self.header, self.dataset).positions[feed_name]
        if self.kinds[at] not in BOUND_TYPES:
            what = (
                f"column {self.names[at]} of {_shown(self.jdbc)} is {self.kinds[at]}, so no rows can be bounded by it"
            )
            raise _problem(self.dataset, "database-type", what, f"name a column that is {', '.join(BOUND_TYPES)}")
        return Ordered(_quoted(self.names[at]), BOUND_TYPES[self.kinds[at]])

    @property
    def overlap(self) -> str:
        kind = self.dataset.column(str(self.dataset.sequence)).type
        size = f"{self.jdbc.overlap:.6f}".rstrip("0").rstrip(".")
        return f"INTERVAL '{size} seconds'" if kind in MOMENTS else size


# --- What a pull would take ---


def look(
    spark: SparkSession, dataset: Dataset, taken: Sequence[Intake], timezone: str
) -> tuple[Pull | None, int | None]:
    """The pull that is due, None where there is nothing to take; and the time of the newest row (ns since 1970; None
    where the sequence is no time). ``taken`` is what the log has taken so far; ``timezone`` is that of time stamps
    without one.

    Raises:
        DrivetrainError: the database cannot be asked, or lacks the table or a column.
    """
    with explained(dataset):
        source = _source(spark, dataset)
        pulls = [pull for pull in taken if isinstance(pull, Pull)]
        # The bounds of another table or sequence say nothing of this one.
        mine = [pull for pull in pulls if (pull.table, pull.sequence) == source.bounded]
        last = max(mine, key=lambda pull: pull.number, default=None)
        state = _ask(spark, source.jdbc, state_sql(source, last, timezone))[0]
    pull = Pull(
        name=f"{_shown(source.jdbc)}/pull-{len(pulls) + 1}", number=len(pulls) + 1,
        table=source.bounded[0], modified=time.time_ns(), header=source.header,
        names=source.names, kinds=source.kinds, layout=digest(["jdbc", source.header, source.kinds]),
        sequence=source.bounded[1],
        lower=state["lower"], upper=state["upper"],
        cuts=tuple(dict.fromkeys(cut for cut in json.loads(state["cuts"] or "[]") if cut is not None)),
        strays=bool(int(state["strays"])) and (last is None or last.seen_strays != state["seen_strays"]),
        seen=digest([source.overlap, state["seen"]]), seen_strays=state["seen_strays"],
    )  # fmt: skip
    before = (last.upper, last.seen) if last else (None, pull.seen)
    due = pull.strays or (pull.upper, pull.seen) != before
    return pull if due else None, int(state["newest"]) if state["newest"] else None


def _source(spark: SparkSession, dataset: Dataset) -> Source:
    assert dataset.jdbc
    jdbc = dataset.jdbc
    rows = sorted(_ask(spark, jdbc, columns_sql(jdbc)), key=lambda row: row["place"])
    if not rows:
        tables = [row["name"] for row in _ask(spark, jdbc, tables_sql(jdbc))]
        raise _problem(dataset, "table-missing", f"there is no table {_shown(jdbc)}, or not for this user",
                       f"correct physicalName or the server's schema; {nearest(jdbc.table, tables)}")  # fmt: skip
    names = tuple(row["name"] for row in rows)
    known = [*dataset.feed_columns, *[alias for column in dataset.columns for alias in column.aliases]]
    spelled = {name.lower(): name for name in reversed(known)}
    header = tuple(numbered([spelled.get(name.lower(), name) for name in names]))
    if missing := fit(header, dataset).reason:
        what = missing.replace("the header", f"table {_shown(jdbc)}")
        raise _problem(dataset, "column-missing", what, "correct physicalName, or let the column be optional")
    return Source(dataset, jdbc, header, names, tuple(row["kind"] for row in rows))


def columns_sql(jdbc: Jdbc) -> str:
    """Place, name and type of each column, of a domain what it is made of; no rows where there is no such table."""
    return (
        "SELECT a.attnum::int AS place, a.attname::text AS name,"
        " format_type(coalesce(nullif(t.typbasetype, 0::oid), t.oid), NULL) AS kind"
        " FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
        " JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
        f" WHERE n.nspname = {_literal(jdbc.schema)} AND c.relname = {_literal(jdbc.table)} AND a.attnum > 0"
        " AND NOT a.attisdropped"
    )


def tables_sql(jdbc: Jdbc) -> str:
    """Names of the schema's tables and views."""
    return (
        "SELECT c.relname::text AS name FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
        f" ON n.oid = c.relnamespace WHERE n.nspname = {_literal(jdbc.schema)}"
        " AND c.relkind IN ('r', 'p', 'v', 'm', 'f') LIMIT 1000"
    )


def state_sql(source: Source, last: Pull | None, timezone: str) -> str:
    """One row of texts: upper and lower bound of the next pull, what stands within the overlap below the upper one and
    beside the sequence, where to cut partitions, and the time of the newest row."""
    order, table, name = source.sequence, source.table, source.sequence.name
    known = order.bound(last.upper) if last and last.upper else f"CAST(NULL AS {order.type})"
    # The bound never goes back, also where the newest rows were deleted: what is below it has been taken.
    upper = f"greatest(max({name})::{order.type}, {known})"
    seen = "count(*)::text || ' ' || coalesce(sum(hashtextextended(_drivetrain::text, 0)), 0)::text"
    zoned = "top.upper" if order.type == "timestamptz" else f"(top.upper AT TIME ZONE {_literal(timezone)})"
    newest = (
        f"trunc(extract(epoch FROM {zoned})::numeric * 1000000000)::text"
        if order.type.startswith("time")
        else "NULL::text"
    )
    cut = order if source.partition == order else source.partition
    ends = f"min({cut.name})::{cut.type} AS low, max({cut.name})::{cut.type} AS high"
    low, high = ("coalesce(top.lower, ends.low)", "top.upper") if cut is order else ("ends.low", "ends.high")
    step = f"i::numeric / {source.jdbc.partitions}"
    return (
        f"WITH top AS (SELECT {upper} AS upper, {known} - {source.overlap} AS lower FROM {table}"
        f" WHERE {order.finite(name)}),"
        f" ends AS (SELECT {ends} FROM {table} WHERE {cut.finite(cut.name)}),"
        f" strays AS (SELECT count(*)::text AS n, {seen} AS seen FROM {table} WHERE {order.stray(name)})"
        " SELECT top.upper::text AS upper, top.lower::text AS lower,"
        f" (SELECT {seen} FROM {table} WHERE {name} > top.upper - {source.overlap} AND {name} <= top.upper) AS seen,"
        f" strays.n AS strays, strays.seen AS seen_strays, {newest} AS newest,"
        f" (SELECT json_agg(({cut.between(low, high, f'({step})')})::text ORDER BY i)::text"
        f" FROM generate_series(1, {source.jdbc.partitions - 1}) AS i) AS cuts"
        " FROM top, ends, strays"
    )


# --- Its rows ---


def read(spark: SparkSession, dataset: Dataset, pull: Pull) -> DataFrame:
    """Records of the pull, as `source.read` gives them: ``_file`` is the pull's name, ``_block`` the partition, from 0,
    and ``_line`` the place in the order in which the database gave that partition's rows, from 1."""
    assert dataset.jdbc
    source = Source(dataset, dataset.jdbc, pull.header, pull.names, pull.kinds)
    texts = [
        f"{_text(name, kind)} AS c{i}" for i, (name, kind) in enumerate(zip(source.names, source.kinds, strict=True))
    ]
    bounds = f"{source.sequence.name} AS _s, {source.partition.name} AS _p"
    rows = _frame(
        spark, source.jdbc, f"SELECT {', '.join(texts)}, {bounds} FROM {source.table}", predicates(source, pull)
    )
    row = F.struct(*[F.col(f"c{i}").alias(name) for i, name in enumerate(source.header)])
    place = F.monotonically_increasing_id()
    return rows.select(
        F.to_json(row, {"ignoreNullFields": "false"}).alias("raw"),
        F.lit(None).cast("binary").alias("raw_bytes"),
        F.lit(pull.name).alias("_file"),
        F.shiftright(place, PER_PARTITION).alias("_block"),
        (place.bitwiseAND(F.lit((1 << PER_PARTITION) - 1)) + 1).alias("_line"),
        F.lit(pull.layout).alias("_layout"),
    )


def predicates(source: Source, pull: Pull) -> list[str]:
    """The condition of each partition over _s, the sequence, and _p, the partition column. Together they are all rows
    of the pull, and none is in two of them."""
    order, found = source.sequence, []
    if pull.upper is not None:
        lower = f"_s > {order.bound(pull.lower)} AND " if pull.lower is not None else ""
        bounded = f"{lower}_s <= {order.bound(pull.upper)} AND {order.finite('_s')}"
        found = [f"{bounded} AND {part}" for part in _ranges(source.partition, pull.cuts)]
    return [*found, order.stray("_s")] if pull.strays else found


def _ranges(column: Ordered, cuts: Sequence[str]) -> list[str]:
    if not cuts:
        return ["TRUE"]
    bounds = [column.bound(cut) for cut in cuts]
    between = [f"(_p > {low} AND _p <= {high})" for low, high in pairwise(bounds)]
    return [f"(_p <= {bounds[0]} OR _p IS NULL)", *between, f"_p > {bounds[-1]}"]


def _text(name: str, kind: str) -> str:
    """A column's value as text: what PostgreSQL itself would print, but for what depends on its settings."""
    column = _quoted(name)
    if kind == "timestamp with time zone":
        return f"(to_json({column}) #>> '{{}}')"  # ISO 8601; in UTC, as the session is
    if kind == "money":
        return f"{column}::numeric::text"
    return f"to_json({column})::text" if kind.endswith("[]") else f"{column}::text"


# --- The connection ---


def _ask(spark: SparkSession, jdbc: Jdbc, query: str) -> list[Any]:
    """Rows of a query that has few."""
    return _frame(spark, jdbc, query).collect()


def _frame(spark: SparkSession, jdbc: Jdbc, query: str, conditions: Sequence[str] = ("TRUE",)) -> DataFrame:
    url = f"jdbc:postgresql://{jdbc.host}:{jdbc.port}/{jdbc.database}"
    return spark.read.jdbc(url, f"({query}) AS _q", predicates=list(conditions), properties=_properties(jdbc))


def _properties(jdbc: Jdbc) -> dict[str, str]:
    """What the connection is made with. Spark shows none of it: properties stand in no plan, setting or event."""
    found: dict[str, str | None] = {
        "user": resolve_secret(jdbc.user), "password": resolve_secret(jdbc.password) if jdbc.password else None,
        "driver": "org.postgresql.Driver", "ApplicationName": "drivetrain", "tcpKeepAlive": "true",
        "connectTimeout": "10", "sslmode": jdbc.ssl_mode, "sslrootcert": jdbc.ssl_root_cert,
        "options": "-c default_transaction_read_only=on", "sessionInitStatement": "SET TIME ZONE 'UTC'",
        "fetchsize": str(jdbc.fetch_size),  # without it the driver takes all rows into memory
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


@contextmanager
def explained(dataset: Dataset) -> Iterator[None]:
    """Turns what the database refuses into one DrivetrainError, in which no secret stands."""
    try:
        yield
    except FAILURES as error:
        state = sql_state(error)
        if dataset.jdbc is None or state is None:
            raise
        code, what, fix = _explanation(dataset.jdbc, state, _without_secrets(dataset.jdbc, reason(error)))
        raise _problem(dataset, code, what, fix) from None


def _explanation(jdbc: Jdbc, state: str, said: str) -> tuple[str, str, str]:
    place = f"{jdbc.host}:{jdbc.port}"
    named = " and ".join(name for name in (jdbc.user, jdbc.password) if name)
    explanations: Mapping[str, tuple[str, str, str]] = {
        "08": ("database-down", f"the database at {place} does not answer: {said}",
               "is it up, and are host, port and sslMode right? What has been loaded is safe; run again then"),
        "28": ("database-login", f"the database {jdbc.database} at {place} refuses the user and password of {named}",
               "set them to those of a user who may read the table"),
        "3D": ("database-missing", f"there is no database {jdbc.database} at {place}", "correct it under servers"),
        "42501": ("database-permission", f"the user of {jdbc.user} may not read {_shown(jdbc)}: {said}",
                  f"GRANT SELECT ON {_shown(jdbc)}, and USAGE on its schema"),
    }  # fmt: skip
    found = explanations.get(state) or explanations.get(state[:2])
    return found or (
        "database",
        f"reading {_shown(jdbc)} failed: {said} [SQLSTATE {state}]",
        "run again when it is mended",
    )


def _without_secrets(jdbc: Jdbc, text: str) -> str:
    for reference in (jdbc.user, jdbc.password):
        secret = resolve_secret(reference) if reference else ""
        text = text.replace(secret, "•••") if secret else text
    return text


def _problem(dataset: Dataset, code: str, what: str, fix: str) -> DrivetrainError:
    return DrivetrainError(Problem(code, f"{dataset.where} ({dataset.name})", what, fix))


def _shown(jdbc: Jdbc) -> str:
    return f"{jdbc.schema}.{jdbc.table}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
