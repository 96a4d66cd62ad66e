"""The unified view: batch tables at a load V, and what has come after it, as one answer that says which it is.

Silver at V is read at a pinned version. Loads after V show themselves, as their typed rows stand in the log: the view
takes those up to H, without late ones, which enter with the next batch; the log only grows, so that its loads up to H
are the same in each version. Gold at V is read at a pinned version, and groups touched after V are read from a speed
table instead. One commit to the manifest names V, H and these versions; a reader takes the newest manifest and pins
what it names, so that it never sees half of a publication.

A reader in SQL has the same as a view by the table's plain name in the database `unified`. The view's text names the
versions, so changing the text, which the metastore does in one step, publishes. That holds for each view by itself:
who joins several in another application may meet two manifests; `read` with one manifest, and the job `sql`, do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from drivetrain import logend, ops, silver
from drivetrain.contracts import META_COLUMNS, SCD2_COLUMNS, Conf, Dataset
from drivetrain.sink import Table

MANIFEST: Final = "manifest"
PRESENT: Final = "_present"
STATE_VIEW: Final = "_state"  # a name that no table can have


@dataclass(frozen=True)
class Entry:
    """What one manifest says of a table. ``version`` is that of the batch layer's table (None: not there yet),
    ``speed`` that of a gold table's speed table (None: nothing was touched); ``row`` is the log's column of typed rows.
    ``reads`` maps each dataset below the table to [V, H], and ``key`` is a gold table's, both as JSON."""

    number: int
    at: datetime
    run: str
    layer: str
    name: str
    version: int | None
    speed: int | None
    row: str | None
    reads: str
    fingerprint: str
    key: str

    @property
    def is_there(self) -> bool:
        """Whether there is anything to read."""
        return self.version is not None or self.speed is not None or self.row is not None

    def reach(self, dataset: str) -> tuple[int, int]:
        """The loads (V, H] of the dataset that come from the speed layer."""
        cut, upto = json.loads(self.reads)[dataset]
        return int(cut), int(upto)


Manifest = Mapping[str, Entry]  # by the table's name; datasets and gold tables share one space of names


@dataclass(frozen=True)
class State:
    """What a reader of one table gets now: the manifest's number and age, and (V, H) of each dataset below it.
    ``live`` is H at the log's end, which the view of a dataset shows."""

    table: str
    manifest: int
    age_seconds: float
    reads: Mapping[str, tuple[int, int]]
    live: int | None


class Unified:
    """Reads the tables of a conf as its newest manifest, or one of before, tells."""

    def __init__(self, spark: SparkSession, conf: Conf) -> None:
        self.spark, self.conf = spark, conf
        self.table = Table(spark, f"{conf.settings.warehouse}/{MANIFEST}")

    def path(self, layer: str, name: str) -> str:
        return f"{self.conf.settings.warehouse}/{layer}/{name}"

    def newest(self) -> int:
        """The newest manifest's number; 0 where nothing has been published."""
        return max(self.table.last_txn(MANIFEST), 0)

    def manifest(self, number: int | None = None) -> Manifest:
        """What a manifest, by default the newest, says of each table; empty where there is none."""
        wanted = self.newest() if number is None else number
        if not wanted:
            return {}
        rows = self.table.read().where(F.col("number") == wanted).collect()
        known = (self.conf.datasets, self.conf.gold)
        return {row["name"]: Entry(**row.asDict()) for row in rows if any(row["name"] in names for names in known)}

    def read(self, name: str, manifest: Manifest | None = None, live: bool = False) -> DataFrame:
        """The unified rows of a dataset or gold table, pinned. ``live`` takes a dataset's log up to its end now, and
        not only as far as the manifest knew."""
        entry = (self.manifest() if manifest is None else manifest)[name]
        return self.spark.sql(self.pinned(entry, live))

    def pinned(self, entry: Entry, live: bool) -> str:
        """The SQL of `read`."""
        if entry.layer == "gold":
            return self.text(entry)
        return self.text(entry, self.end(entry.name) if live and entry.row else entry.reach(entry.name)[1])

    def end(self, dataset: str) -> int:
        """The last load in the dataset's log now."""
        return logend.end(Table(self.spark, self.path("bronze", dataset))).number

    def state(self, name: str) -> State:
        """Which versions an answer from the table has now, and how old it is."""
        entry = self.manifest()[name]
        age = (ops.now() - entry.at.astimezone(ops.now().tzinfo)).total_seconds()
        reads = {dataset: entry.reach(dataset) for dataset in json.loads(entry.reads)}
        live = self.end(name) if entry.layer == "silver" and entry.row else None
        return State(name, entry.number, age, reads, live)

    def text(self, entry: Entry, upto: int | None = None, staged: str | None = None) -> str:
        """The SQL of a table as the entry has it; of a dataset up to that load of the log, or (None) to its end, or as
        it is staged."""
        if entry.layer == "gold":
            batch, speed = self.path("gold", entry.name), self.path("speed", entry.name)
            place, version = (speed, entry.speed) if entry.version is None else (batch, entry.version)
            names = [name for name in Table(self.spark, place).read(version).columns if name != PRESENT]
            return _gold(entry, names, batch, speed)
        return self._rows(entry, upto, staged).rows

    def views(self) -> dict[str, str]:
        """Name and SQL of each table's view; a dataset's shows its log up to the end at any time."""
        manifest = self.manifest().values()
        shown = {entry.name: self.text(entry) for entry in manifest if entry.is_there}
        return shown | {STATE_VIEW: self.state_text} if shown else {}

    @property
    def state_text(self) -> str:
        """The SQL that says which versions readers have now, and how old they are."""
        newest = f"SELECT *, max(number) OVER () AS newest FROM {_at(self.table.path, None)}"
        age = "timestampdiff(SECOND, at, current_timestamp()) AS age_seconds"
        return f"SELECT name, layer, number AS manifest, at, {age}, reads, run FROM ({newest}) WHERE number = newest"

    def settled(self, entry: Entry) -> str | None:
        """The SQL of what is staged for ``changes`` and ``read``: see `Rows.settled`."""
        return self._rows(entry, entry.reach(entry.name)[1]).settled

    def changes(self, entry: Entry, staged: str | None) -> str:
        """The SQL of a dataset's rows that are other than at V: those of now, and those that stood in their place."""
        return self._rows(entry, entry.reach(entry.name)[1], staged).changes

    def _rows(self, entry: Entry, upto: int | None, staged: str | None = None) -> Rows:
        dataset = self.conf.datasets[entry.name]
        place = self.path("silver", entry.name)
        types = dict(Table(self.spark, place).read(entry.version).dtypes) if entry.version is not None else {}
        held = _at(place, entry.version) if entry.version is not None else None
        cut, _ = entry.reach(entry.name)
        recent = Recent(_at(self.path("bronze", entry.name), None), entry.row, cut, upto) if entry.row else None
        return Rows(dataset, types or dataset.silver_types, held, recent, staged)


@dataclass(frozen=True)
class Recent:
    """The log, its column of typed rows, the load after which they count, and the last that does (None: its end)."""

    log: str
    row: str
    cut: int
    upto: int | None


def _at(path: str, version: int | None) -> str:
    place = path if version is None else f"{path}@v{version}"
    return f"delta.`{place.replace('`', '``')}`"


def _files(folder: str) -> str:
    return f"parquet.`{folder.replace('`', '``')}`"


def _quoted(names: Iterable[str], of: str = "") -> str:
    return ", ".join(f"{of}`{name}`" for name in names)


def _same(names: Iterable[str], left: str, right: str, never_null: Iterable[str] = ()) -> str:
    """Spark takes a filter from one side of a join to the other by = only."""
    equal = dict.fromkeys(never_null, "=")
    return " AND ".join(f"{left}.`{name}` {equal.get(name, '<=>')} {right}.`{name}`" for name in names)


@dataclass(frozen=True)
class Rows:
    """The SQL of a dataset's unified rows: what silver ``held``, and the log's ``recent`` rows resolved against it as
    the batch will resolve them (`silver.classify`, `silver.against`). ``types`` are silver's columns; ``staged`` is a
    folder of Parquet files that holds what ``settled`` gives.

    Each table is named in one WITH, so that a query that uses it twice reads one version of it. Delta lists the files
    of each scan, and of silver again after each shuffle and broadcast: small queries cost what there is of these.
    """

    dataset: Dataset
    types: Mapping[str, str]
    held: str | None
    recent: Recent | None
    staged: str | None = None

    @property
    def rows(self) -> str:
        """All rows."""
        names = self._names
        if not self.recent:
            return f"SELECT * FROM {self._held}"
        if not self._match:
            return f"{self._with()} SELECT {names} FROM held UNION ALL SELECT {names} FROM recent"
        if self.dataset.history == "append":
            return f"{self._with()} SELECT {names} FROM held UNION ALL {self._fresh}"
        touched, now = "settled", f"SELECT {names} FROM settled WHERE _now"
        if self.dataset.history == "scd2":
            touched, now = f"({self._fresh})", f"SELECT {names} FROM ({self._versions})"
        elif not self.staged:
            touched = "recent"
        kept = f"SELECT /*+ BROADCAST(t) */ h.* FROM held h LEFT ANTI JOIN {touched} t ON "
        return f"{self._with()} {kept}{self._alike(self.dataset.key, 'h', 't')} UNION ALL {now}"

    @property
    def changes(self) -> str:
        """Rows that are there now and were not in what silver held, and the other way round; some may be both."""
        names = self._names
        if not self.recent:
            return f"SELECT {names} FROM {self._held} WHERE false"
        if not self._match:
            return f"{self._with()} SELECT {names} FROM recent"
        if self.dataset.history != "scd2":
            return f"{self._with()} SELECT {names} FROM settled WHERE _held <> _now"
        match = self._alike(self.dataset.key, "h", "f")
        before = f"SELECT /*+ BROADCAST(f) */ h.* FROM held h LEFT SEMI JOIN ({self._fresh}) f ON {match}"
        before += self._within(self.dataset.key, "settled")
        return f"{self._with()} {before} UNION ALL SELECT {names} FROM ({self._versions})"

    @property
    def settled(self) -> str | None:
        """Recent rows, and those of silver that are like them: whether silver ``_held`` them, and whether they are
        there ``_now``. None where no record of the log can have its like."""
        if not self.recent or not self._match:
            return None
        return f"{self._with()} SELECT {self._names}, _held, _now FROM settled"

    @property
    def _names(self) -> str:
        return _quoted(self.types)

    @property
    def _held(self) -> str:
        if self.held:
            return self.held
        nothing = ", ".join(f"CAST(NULL AS {kind}) AS `{name}`" for name, kind in self.types.items())
        return f"(SELECT {nothing} WHERE false)"

    @property
    def _match(self) -> tuple[str, ...]:
        """The columns by which a record finds its like; none where no record of the log can have one."""
        if self.dataset.kafka and not self.dataset.identity:
            return ()
        return silver.match_columns(self.dataset)

    def _alike(self, names: Iterable[str], left: str, right: str) -> str:
        return _same(names, left, right, self.dataset.key)

    def _with(self) -> str:
        steps = {"held": f"SELECT {self._names} FROM {self._held}"}
        if self.staged:
            steps["settled"] = f"SELECT * FROM {_files(self.staged)}"
        elif self._match:
            steps |= {"recent": self._recent, "touched": self._touched, "settled": self._settled}
        else:
            steps["recent"] = self._recent
        return "WITH " + ", ".join(f"{name} AS ({text})" for name, text in steps.items())

    @property
    def _recent(self) -> str:
        """Good rows of the log after the cut that are not late, with silver's columns."""
        assert self.recent
        typed = {column.name for column in self.dataset.columns}
        row = self.recent.row
        columns = [
            f"`{row}`.`{name}` AS `{name}`" if name in typed
            else f"`{name}`" if name in META_COLUMNS
            else f"CAST(NULL AS {kind}) AS `{name}`"
            for name, kind in self.types.items()
        ]  # fmt: skip
        loads = f"_load > {self.recent.cut}"
        if self.recent.upto is not None:
            loads += f" AND _load <= {self.recent.upto}"
        wanted = f"{loads} AND `{row}` IS NOT NULL AND NOT `{row}`._late"
        return f"SELECT {', '.join(columns)} FROM {self.recent.log} WHERE {wanted}"

    @property
    def _touched(self) -> str:
        """The recent rows, one for each identity, and what silver has that is like them."""
        names, source = self._names, "recent"
        if self.dataset.history == "latest" and not set(self.dataset.key) <= set(self.dataset.identity):
            arrival = _quoted(silver.ARRIVAL)
            again = f"row_number() OVER (PARTITION BY {_quoted(self.dataset.identity)} ORDER BY {arrival}) AS _again"
            source = f"(SELECT *, {again} FROM recent) WHERE _again = 1"
        match = self._alike(self._match, "h", "r")
        like = f"SELECT /*+ BROADCAST(r) */ h.*, true AS _held FROM held h LEFT SEMI JOIN recent r ON {match}"
        return f"{like}{self._within(self._match, 'recent')} UNION ALL SELECT {names}, false AS _held FROM {source}"

    @property
    def _settled(self) -> str:
        """Of rows that are like each other, which are there now."""
        arrival, alike = _quoted(silver.ARRIVAL), f"PARTITION BY {_quoted(self._match)}"
        if self.dataset.history != "latest":
            first = f"row_number() OVER ({alike} ORDER BY _held DESC, {arrival}) = 1"
            return f"SELECT *, _held OR {first} AS _now FROM touched"
        falling = ", ".join(f"`{name}` DESC" for name in silver.ARRIVAL)
        order = f"`{self.dataset.sequence}` DESC, {arrival}" if self.dataset.sequence else falling
        newest = f"{alike} ORDER BY _held, {order}"
        compared = dict.fromkeys((*self.dataset.identity, *_maybe(self.dataset.sequence)))
        version = f"struct({_quoted(compared)})"
        ranked = (
            f"SELECT *, row_number() OVER ({newest}) AS _rank, first_value({version}) OVER ({newest}) AS _new,"
            f" max(IF(_held, {version}, NULL)) OVER ({alike}) AS _old FROM touched"
        )
        wins = f"coalesce(_old IS NULL OR ({self._beats('_new', '_old')}), false) AS _wins"
        now = "IF(_held, NOT _wins, _wins AND _rank = 1) AS _now"
        return f"SELECT * EXCEPT (_rank, _new, _old, _wins), {now} FROM (SELECT *, {wins} FROM ({ranked}))"

    def _beats(self, new: str, old: str) -> str:
        """Whether a new row of a key stands for it from now on: another event, and not an older version."""
        sequence = self.dataset.sequence
        newer = f" AND {new}.`{sequence}` > {old}.`{sequence}`" if sequence else ""
        return f"NOT ({_same(self.dataset.identity, new, old)}){newer}"

    def _within(self, names: Iterable[str], source: str) -> str:
        """What keeps pages of silver from being read that can hold nothing with the same values as the source."""
        bounded = next((name for name in self.dataset.key if name in names), None)
        if bounded is None:  # others may be NULL, which lies within no bounds
            return ""
        least, most = (f"(SELECT {which}(`{bounded}`) FROM {source})" for which in ("min", "max"))
        return f" WHERE h.`{bounded}` BETWEEN {least} AND {most}"

    @property
    def _fresh(self) -> str:
        """The recent rows that silver will take, where it keeps all: those that it has nothing like."""
        return f"SELECT {self._names} FROM settled WHERE _now AND NOT _held"

    @property
    def _versions(self) -> str:
        """Every version of the keys that have a new one, with the times from and to which it holds."""
        key, sequence = self.dataset.key, self.dataset.sequence
        plain = [name for name in self.types if name not in SCD2_COLUMNS]
        match = self._alike(key, "h", "f")
        found = f"SELECT /*+ BROADCAST(f) */ {_quoted(plain, 'h.')} FROM held h LEFT SEMI JOIN ({self._fresh}) f"
        found += f" ON {match}{self._within(key, 'settled')}"
        all_ = f"{found} UNION ALL SELECT {_quoted(plain)} FROM ({self._fresh})"
        later = f"lead(`{sequence}`) OVER (PARTITION BY {_quoted(key)} ORDER BY `{sequence}`)"
        return (
            f"SELECT *, `{sequence}` AS valid_from, valid_to IS NULL AS is_current"
            f" FROM (SELECT *, {later} AS valid_to FROM ({all_}))"
        )


def _maybe(name: str | None) -> tuple[str, ...]:
    return (name,) if name else ()


def _gold(entry: Entry, columns: Sequence[str], batch: str, speed: str) -> str:
    """The SQL of a gold table: the batch layer's rows, and for keys that were touched after it those of speed."""
    names = _quoted(columns)
    if entry.speed is None:
        return f"SELECT {names} FROM {_at(batch, entry.version)}"
    now = f"WITH speed AS (SELECT * FROM {_at(speed, entry.speed)}) SELECT {names} FROM speed WHERE {PRESENT}"
    if entry.version is None:
        return now
    key = json.loads(entry.key)
    kept = f"SELECT * FROM {_at(batch, entry.version)} b LEFT ANTI JOIN speed s ON {_same(key, 'b', 's', key)}"
    return f"{now} UNION ALL SELECT {names} FROM ({kept})"
