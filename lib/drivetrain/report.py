"""The report of a run, one HTML file: ``collect`` asks the warehouse, ``render`` makes the page, ``write`` saves it."""

from __future__ import annotations

import math
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta, timezone
from functools import reduce
from importlib import resources
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from zoneinfo import ZoneInfo

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import DataType, DateType, NumericType, TimestampNTZType, TimestampType

from drivetrain.anomaly import shown as anomalies
from drivetrain.contracts import Conf, Dataset, GoldTable
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import LOCAL, Files
from drivetrain.ops import CheckRow, LedgerRow, ProfileRow, Step
from drivetrain.sink import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUNS, DATES, SAMPLE, KINDS, ROWS, TEXT = 30, 90, 8, 50, 2000, 120
MASK: Final = "•••"
CUT: Final = ("good", "quarantined", "duplicate", "late")
WRITTEN: Final = ("inserted", "updated", "superseded")
T = TypeVar("T")


@dataclass(frozen=True)
class RunTotals:
    """The ledger of one run, summed over its datasets."""

    run: str
    rows_in: int
    good: int
    quarantined: int
    duplicate: int
    late: int


@dataclass(frozen=True)
class StepSeconds:
    """What one kind of step took in one run."""

    run: str
    step: str
    seconds: float


@dataclass(frozen=True)
class KeptBack:
    """Open rows of the quarantine that share dataset and rule, with one of them as the example."""

    dataset: str
    rule: str
    rows: int
    new: int
    reason: str
    position: str


@dataclass(frozen=True)
class Series:
    """The numbers of a gold table summed by date; a sum that is not finite is NaN."""

    dates: tuple[date, ...]
    sums: tuple[tuple[str, tuple[float, ...]], ...]


@dataclass(frozen=True)
class GoldInfo:
    """A gold table as it stands. ``state``: published, unchanged, kept back, failed or missing."""

    name: str
    owner: str
    description: str
    path: str
    state: str
    built_by: str = ""
    rows: int = 0
    columns: tuple[tuple[str, str], ...] = ()
    sla_hours: float | None = None
    newest: str | None = None
    newest_column: str | None = None
    age_hours: float | None = None
    sample: tuple[tuple[str | None, ...], ...] = ()
    series: Series | None = None
    command: str = "./spark-submit.sh sql"

    @property
    def query(self) -> str:
        return f'{self.command} "select * from gold.{self.name} limit 100"'

    @property
    def late(self) -> bool:
        return self.sla_hours is not None and self.age_hours is not None and self.age_hours > self.sla_hours


@dataclass(frozen=True)
class Report:
    """All that the page shows."""

    company: str
    env: str
    warehouse: str
    timezone: str
    run: str
    at: datetime
    ledger: tuple[LedgerRow, ...] = ()
    steps: tuple[Step, ...] = ()
    checks: tuple[CheckRow, ...] = ()
    profiles: tuple[ProfileRow, ...] = ()
    history: tuple[RunTotals, ...] = ()
    step_history: tuple[StepSeconds, ...] = ()
    quarantine: tuple[KeptBack, ...] = ()
    quarantine_rows: int = 0
    gold: tuple[GoldInfo, ...] = ()
    models: tuple[anomalies.Shown, ...] = ()
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    command: str = "./spark-submit.sh sql"

    def total(self, column: str) -> int:
        return sum(getattr(row, column) for row in self.ledger)

    @property
    def seconds(self) -> float:
        """From the start of the first step to the end of the last one."""
        ends = [step.started + timedelta(seconds=step.seconds) for step in self.steps]
        return (max(ends) - min(step.started for step in self.steps)).total_seconds() if ends else 0.0

    @property
    def broken(self) -> tuple[CheckRow, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def did_nothing(self) -> bool:
        return not (self.ledger or self.steps or self.checks or self.profiles or self.problems)


# --- collect: a few bounded queries ---


def collect(
    spark: SparkSession, conf: Conf, run: str, problems: Sequence[Problem] = (), notes: Sequence[str] = ()
) -> Report:
    """What the warehouse says of a run; ``problems`` and ``notes`` are its outcome's, which no table keeps.

    Raises:
        DrivetrainError: the warehouse has seen no run.
    """
    warehouse = conf.settings.warehouse
    ops = {name: _frame(spark, f"{warehouse}/ops/{name}") for name in ("ledger", "steps", "checks", "profiles")}
    if not any(ops.values()):
        fix = "run ./spark-submit.sh etl first; it fills the warehouse and writes the report"
        raise DrivetrainError(Problem("no-runs", warehouse, "there is no run to report on", fix))
    with _quick_queries(spark):
        return _collect(spark, conf, run, ops, problems, notes)


@contextmanager
def _quick_queries(spark: SparkSession) -> Iterator[None]:
    """The queries are many, their results small: compiling and re-planning them would take longer than running them."""
    quick = {"codegen.wholeStage": "false", "adaptive.enabled": "false", "shuffle.partitions": "1"}
    before = {f"spark.sql.{key}": spark.conf.get(f"spark.sql.{key}") for key in quick}
    try:
        for key, value in quick.items():
            spark.conf.set(f"spark.sql.{key}", value)
        yield
    finally:
        for key, old in before.items():
            spark.conf.set(key, str(old))


def _collect(
    spark: SparkSession, conf: Conf, run: str, ops: Mapping[str, DataFrame | None],
    problems: Sequence[Problem], notes: Sequence[str],
) -> Report:  # fmt: skip
    warehouse = conf.settings.warehouse
    ledger, steps = _of_run(ops["ledger"], LedgerRow, run), _of_run(ops["steps"], Step, run)
    checks, profiles = _of_run(ops["checks"], CheckRow, run), _of_run(ops["profiles"], ProfileRow, run)
    seen = [s.started for s in steps] + [c.at for c in checks] + [r.at for r in ledger] + [p.at for p in profiles]
    at = _time_of(run, seen)
    total, kept = _quarantine(spark, warehouse, run)
    return Report(
        company=conf.settings.company, env=conf.env, warehouse=warehouse, timezone=conf.settings.timezone,
        run=run, at=at,
        ledger=tuple(sorted(ledger, key=lambda row: (row.dataset, row.first_load))),
        steps=tuple(sorted(steps, key=lambda step: step.started)), checks=tuple(checks),
        profiles=tuple(_masked(profile, conf.datasets.get(profile.dataset)) for profile in profiles),
        history=_history(ops["ledger"]), step_history=_step_history(ops["steps"]),
        quarantine=kept, quarantine_rows=total, gold=_gold(spark, conf, steps, checks, at),
        models=anomalies.collect(spark, warehouse, [one.name for one in conf.datasets.values() if one.anomaly]),
        problems=tuple(problems), notes=tuple(notes), command=conf.command("sql"),
    )  # fmt: skip


def _frame(spark: SparkSession, path: str) -> DataFrame | None:
    table = Table(spark, path)
    return table.read() if table.exists() else None


def _of_run(frame: DataFrame | None, kind: type[T], run: str) -> list[T]:
    if frame is None:
        return []
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    rows = frame.where(F.col("run") == run).select(*names).limit(ROWS).collect()
    return [kind(**{name: _utc(value) for name, value in row.asDict().items()}) for row in rows]


def _utc(value: Any) -> Any:
    """Spark hands out time stamps as naive local time of this process."""
    return value.astimezone(timezone.utc) if isinstance(value, datetime) else value


def _time_of(run: str, seen: Sequence[datetime]) -> datetime:
    """When the run began; one that found nothing to do left no rows, but its id tells."""
    try:
        return datetime.strptime(f"{run}000", "%Y%m%dT%H%M%S%f").replace(tzinfo=timezone.utc)
    except ValueError:
        return min(seen, default=datetime.now(timezone.utc))


def _history(ledger: DataFrame | None) -> tuple[RunTotals, ...]:
    """Oldest first."""
    if ledger is None:
        return ()
    sums = [F.sum(field.name).alias(field.name) for field in fields(RunTotals)[1:]]
    rows = ledger.groupBy("run").agg(*sums).orderBy(F.desc("run")).limit(RUNS).collect()
    return tuple(RunTotals(**row.asDict()) for row in reversed(rows))


def _step_history(steps: DataFrame | None) -> tuple[StepSeconds, ...]:
    if steps is None:
        return ()
    by_step = steps.groupBy("run", "step").agg(F.sum("seconds").alias("seconds"))
    by_run = by_step.groupBy("run").agg(F.collect_list(F.struct("step", "seconds")).alias("steps"))
    rows = by_run.orderBy(F.desc("run")).limit(RUNS).collect()
    return tuple(StepSeconds(row["run"], name, seconds) for row in reversed(rows) for name, seconds in row["steps"])


def _quarantine(spark: SparkSession, warehouse: str, run: str) -> tuple[int, tuple[KeptBack, ...]]:
    """How many rows are open, and their most frequent kinds. What they hold is never read."""
    table = _frame(spark, f"{warehouse}/quarantine")
    if table is None:
        return 0, ()
    block, line = F.concat(F.lit("block "), F.nullif("_block", F.lit(0))), F.concat(F.lit("line "), "_line")
    place, reason = F.concat_ws(" ", "_file", block, line), F.left("reason", F.lit(TEXT))
    example = F.struct("_load", "_file", "_block", "_line", reason.alias("reason"), place.alias("place"))
    found = table.where("state = 'open'").withColumns({"example": example, "is_new": F.col("_run") == run})
    kinds = found.rollup("dataset", "rule").agg(
        F.count("*").alias("rows"), F.count_if("is_new").alias("new"), F.min("example").alias("example"),
        F.grouping_id().alias("level"),
    )  # fmt: skip
    # the row of level 3 is the sum of all: it counts at least as many rows as any kind
    ordered = kinds.where("level <> 1").orderBy(F.desc("rows"), F.desc("level"), "dataset", "rule")
    rows = ordered.limit(KINDS + 1).collect()
    return sum(row["rows"] for row in rows if row["level"] == 3), tuple(_kept(row) for row in rows if row["level"] == 0)


def _kept(row: Any) -> KeptBack:
    example = row["example"]
    return KeptBack(row["dataset"], row["rule"], row["rows"], row["new"], example["reason"] or "", example["place"])


def _masked(profile: ProfileRow, dataset: Dataset | None) -> ProfileRow:
    """Smallest and largest of a column that is personal, or that no contract classifies, are not for the page."""
    name = profile.column.lower()
    of_feed = [
        column for column in (dataset.columns if dataset else ())
        if name in (known.lower() for known in (column.name, column.feed_name, *column.aliases, *column.sources))
    ]  # fmt: skip
    if of_feed and all(column.is_open for column in of_feed):
        return profile
    values = {field.name: getattr(profile, field.name) for field in fields(profile)}
    return ProfileRow(**{**values, "smallest": profile.smallest and MASK, "largest": profile.largest and MASK})


# --- gold: as it stands, in three queries over all tables ---


@dataclass(frozen=True)
class _Shown:
    """A gold table that is there, and which of its columns may be shown."""

    table: GoldTable
    frame: DataFrame
    open: tuple[str, ...]

    def of_type(self, *kinds: type[DataType]) -> list[str]:
        fields_ = (field for field in self.frame.schema if field.name in self.open)
        return [field.name for field in fields_ if isinstance(field.dataType, kinds)]

    @property
    def date_key(self) -> str | None:
        times = self.of_type(DateType, TimestampType, TimestampNTZType)
        return next((name for name in self.table.key if name in times), None)

    @property
    def time(self) -> str | None:
        """What tells how fresh the table is: a date or time of the key, else of the other columns."""
        return self.date_key or next(iter(self.of_type(DateType, TimestampType, TimestampNTZType)), None)

    @property
    def numbers(self) -> list[str]:
        return [name for name in self.of_type(NumericType) if name not in self.table.key]


def personal_columns(conf: Conf, table: GoldTable) -> set[str]:
    """Columns of a gold table that are made from personal data, also by way of other gold tables."""
    return {column for column, sources in table.lineage if any(_is_personal(conf, *source) for source in sources)}


def _is_personal(conf: Conf, table: str, column: str) -> bool:
    if table in conf.datasets:
        return not conf.datasets[table].is_open(column)
    return table not in conf.gold or column in personal_columns(conf, conf.gold[table])


def _gold(
    spark: SparkSession, conf: Conf, steps: Sequence[Step], checks: Sequence[CheckRow], at: datetime
) -> tuple[GoldInfo, ...]:
    paths = {name: f"{conf.settings.warehouse}/gold/{name}" for name in conf.gold}
    shown = {}
    for name, table in conf.gold.items():
        frame = _frame(spark, paths[name])
        if frame is not None:
            # a column that the query no longer has, of an older version that stands, has no known source
            known = set(table.columns) - personal_columns(conf, table)
            shown[name] = _Shown(table, frame, tuple(column for column in frame.columns if column in known))
    facts, samples, series = _facts(shown, at), _samples(shown), _series(shown)

    def info(name: str, table: GoldTable) -> GoldInfo:
        schema = shown[name].frame.schema if name in shown else ()
        return GoldInfo(
            name=name, owner=table.owner, description=table.description, path=paths[name],
            state=_state(name, name in shown, steps, checks), sla_hours=table.freshness_hours,
            built_by=_built_by(spark, paths[name]) if name in shown else "",
            columns=tuple((field.name, field.dataType.simpleString()) for field in schema),
            sample=samples.get(name, ()), series=series.get(name), command=conf.command("sql"), **facts.get(name, {}),
        )  # fmt: skip

    return tuple(info(name, table) for name, table in conf.gold.items())


def _state(name: str, there: bool, steps: Sequence[Step], checks: Sequence[CheckRow]) -> str:
    broken = [check for check in checks if check.action == "stop" and not check.passed]
    if any((check.layer, check.dataset) == ("gold", name) for check in broken):
        return "kept back"
    mine = [step for step in steps if step.step == "gold" and step.dataset == name]
    if any(step.failed for step in mine):
        return "failed"
    return "missing" if not there else "published" if mine else "unchanged"


def _built_by(spark: SparkSession, path: str) -> str:
    return next((str(metadata.get("run", "")) for _, metadata in Table(spark, path).commits()), "")


def _union(frames: Iterable[DataFrame]) -> list[Any]:
    """All rows of frames of one shape, by one query."""
    wanted = list(frames)
    return reduce(DataFrame.unionAll, wanted).collect() if wanted else []


def _facts(shown: Mapping[str, _Shown], at: datetime) -> dict[str, dict[str, Any]]:
    def ask(name: str, it: _Shown) -> DataFrame:
        newest = F.max(it.time) if it.time else F.lit(None)
        until = _end(it, it.time) if it.time else F.lit(None)
        return it.frame.agg(
            F.lit(name).alias("name"), F.count("*").alias("rows"), newest.cast("string").alias("newest"),
            F.unix_seconds(until.cast("timestamp")).alias("until"),
        )  # fmt: skip

    facts = {}
    for row in _union(ask(name, it) for name, it in shown.items()):
        age = None if row["until"] is None else max(0.0, (at.timestamp() - row["until"]) / 3600)
        column = shown[row["name"]].time
        facts[row["name"]] = {"rows": row["rows"], "newest": row["newest"], "newest_column": column, "age_hours": age}
    return facts


def _end(it: _Shown, column: str) -> SparkColumn:
    """Up to when a table's newest row tells: a date stands for its day; where all are a first, for the month."""
    newest = F.max(column)
    if not isinstance(it.frame.schema[column].dataType, DateType):
        return newest
    return F.when(F.count_if(F.day(column) != 1) == 0, F.add_months(newest, 1)).otherwise(F.date_add(newest, 1))


def _samples(shown: Mapping[str, _Shown]) -> dict[str, tuple[tuple[str | None, ...], ...]]:
    """The first rows of each table, newest date first; personal values do not leave Spark."""

    def ask(name: str, it: _Shown) -> DataFrame:
        order = [F.desc(it.date_key)] if it.date_key else []
        order += [F.col(key) for key in it.table.key if key in it.frame.columns and key != it.date_key]
        cells = [
            F.left(F.col(f"`{column}`").cast("string"), F.lit(TEXT)) if column in it.open else F.lit(MASK)
            for column in it.frame.columns
        ]
        return it.frame.orderBy(*order).limit(SAMPLE).select(F.lit(name).alias("name"), F.array(*cells).alias("cells"))

    found: dict[str, tuple[tuple[str | None, ...], ...]] = {}
    for row in _union(ask(name, it) for name, it in shown.items()):
        found[row["name"]] = (*found.get(row["name"], ()), tuple(row["cells"]))
    return found


def _series(shown: Mapping[str, _Shown]) -> dict[str, Series]:
    def ask(name: str, it: _Shown) -> DataFrame:
        day = F.col(str(it.date_key)).cast("date").alias("day")
        sums = F.array(*[F.sum(F.col(f"`{column}`").cast("double")) for column in it.numbers]).alias("sums")
        days = it.frame.where(F.year(str(it.date_key)).between(1, 9999)).groupBy(day).agg(sums)
        return days.orderBy(F.desc("day")).limit(DATES).select(F.lit(name).alias("name"), "day", "sums")

    dated = {name: it for name, it in shown.items() if it.date_key and it.numbers}
    found: dict[str, list[tuple[date, list[float | None]]]] = {}
    for row in _union(ask(name, it) for name, it in dated.items()):
        found.setdefault(row["name"], []).append((row["day"], row["sums"]))
    return {name: _one_series(dated[name].numbers, sorted(rows)) for name, rows in found.items()}


def _one_series(names: Sequence[str], rows: Sequence[tuple[date, Sequence[float | None]]]) -> Series:
    sums = tuple((name, tuple(_finite(values[n]) for _, values in rows)) for n, name in enumerate(names))
    return Series(tuple(day for day, _ in rows), sums)


def _finite(value: float | None) -> float:
    return value if value is not None and abs(value) < 1e300 else math.nan


# --- the verdict, in words ---


def verdict(report: Report) -> tuple[str, list[str]]:
    """How the run ended (good, watch or bad), and what it published and kept back, in sentences."""
    if report.did_nothing:
        return "good", ["This run found nothing new and wrote nothing; every table stands as the runs before left it."]
    sentences = [_published(report), *_kept_tables(report), _records(report), *_flags(report)]
    sentences += [_ledger_complaint(report)]
    failed = [f"{step.step} of {step.dataset}" for step in report.steps if step.failed]
    if failed:
        sentences.append(f"These steps failed: {', '.join(failed)}.")
    stopped = any(check.action == "stop" for check in report.broken)
    bad = bool(failed or report.problems or stopped or any(not row.adds_up for row in report.ledger))
    watch = report.broken or report.total("quarantined") or any(table.late for table in report.gold)
    return "bad" if bad else "watch" if watch else "good", [sentence for sentence in sentences if sentence]


def _published(report: Report) -> str:
    states = Counter(table.state for table in report.gold)
    if not report.gold:
        return "There are no gold tables in this conf."
    parts = [f"{states['published']} of {_count(len(report.gold), 'gold table')} published"]
    parts += [f"{states[state]} {state}" for state in ("unchanged", "missing") if states[state]]
    return "; ".join(parts) + "."


def _kept_tables(report: Report) -> list[str]:
    return [
        f"{_layer(check.layer)} {check.dataset} stays as it was: {check.rule} was {_measured(check.measured)}, "
        f"it {_rule(check.expected)}."
        for check in report.broken
        if check.action == "stop"
    ]


def _records(report: Report) -> str:
    if not report.ledger:
        return "No new records came in."
    text = f"{_count(report.total('rows_in'), 'record')} came in and {_number(report.total('good'))} are good"
    if report.total("quarantined"):
        text += f"; {_number(report.total('quarantined'))} were kept back in quarantine{_why(report)}"
    if report.total("duplicate"):
        text += f"; {_number(report.total('duplicate'))} were there already"
    if report.total("late"):
        text += f"; {_number(report.total('late'))} came too late"
    return text + "."


def _why(report: Report) -> str:
    new = sorted((kind for kind in report.quarantine if kind.new), key=lambda kind: -kind.new)
    named = [f"{kind.dataset} {kind.rule} {_number(kind.new)}" for kind in new[:4]]
    named += [f"{_count(len(new) - 4, 'other kind')}"] if len(new) > 4 else []
    return f" ({', '.join(named)})" if named else ""


def _flags(report: Report) -> list[str]:
    flagged = [f"{check.dataset} {check.rule}" for check in report.broken if check.action != "stop"]
    late = [f"{g.name} ({_hours(g.age_hours)}, allowed {_hours(g.sla_hours)})" for g in report.gold if g.late]
    texts = [f"These checks, which only flag, did not hold: {', '.join(flagged)}."] if flagged else []
    return texts + ([f"Older than their SLA: {', '.join(late)}."] if late else [])


def _ledger_complaint(report: Report) -> str:
    wrong = [row.dataset for row in report.ledger if not row.adds_up]
    return f"The ledger does not add up for {', '.join(wrong)}: do not trust these tables." if wrong else ""


def _layer(name: str) -> str:
    return f"{name.capitalize()} table" if name in ("silver", "gold") else name.capitalize()


def _measured(value: float | None) -> str:
    return "not measurable" if value is None else f"{value:,.6g}" if value % 1 else _number(value)


def _rule(expected: str) -> str:
    """``mustBeLessThan 3`` as words."""
    return re.sub(r"([a-z])([A-Z])", lambda m: f"{m[1]} {m[2].lower()}", expected)


# --- numbers for people ---


def _number(value: float) -> str:
    return f"{value:,.0f}"


def _count(value: int, noun: str) -> str:
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def _short(value: float) -> str:
    """At most four characters and a letter, for plots."""
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g} {letter}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024:
            return f"{value:,.0f} {unit}" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} PiB"


def _seconds(value: float) -> str:
    if value < 60:
        return f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60:02} min"


def _hours(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value * 60:.0f} min" if value < 1 else f"{value:.3g} h" if value < 72 else f"{value / 24:,.0f} days"


# --- plots: matplotlib draws, the page's style sheet colours ---

PALETTE: Final = (
    "ink", "soft", "line", "good", "quarantined", "duplicate", "late", "inserted", "updated", "superseded",
    "bronze", "silver", "gold", "unify", "other",
)  # fmt: skip
# A colour of the palette is drawn as #0000a0 and up, and becomes var(--name): light and dark are the page's affair.
COLOUR: Final = {name: f"#0000{0xA0 + n:02x}" for n, name in enumerate(PALETTE)}
STYLE: Final = {
    "svg.fonttype": "none", "svg.hashsalt": "drivetrain", "text.parse_math": False, "font.family": "DejaVu Sans",
    "font.size": 8, "axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 8,
    "text.color": COLOUR["ink"], "axes.titlecolor": COLOUR["ink"], "axes.edgecolor": COLOUR["line"],
    "xtick.color": COLOUR["soft"], "ytick.color": COLOUR["ink"], "grid.color": COLOUR["line"], "grid.linewidth": 0.5,
    "xtick.major.size": 0, "ytick.major.size": 0, "figure.facecolor": "none", "axes.facecolor": "none",
    "axes.xmargin": 0.02, "hatch.linewidth": 0.5,
}  # fmt: skip
WIDTH: Final = 10.0
CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def _plot(height: float, draw: Callable[[Figure], None]) -> Markup:
    """An inline SVG. matplotlib escapes texts; what would fetch or clash in a page of many plots is taken out."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    out = StringIO()
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks: the browser has them
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', svg)
    svg = re.sub(r"^<svg[^>]*>", f'<svg {box[0] if box else ""} aria-hidden="true">', svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"(?<=: )#0000(a[0-9a-e])", lambda m: f"var(--{PALETTE[int(m[1], 16) - 0xA0]})", svg)
    return Markup(svg)


def _label(text: str, limit: int = 38) -> str:
    text = CONTROL.sub("�", text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _bars(axes: Axes, names: Sequence[str]) -> None:
    """Named bars from top to bottom."""
    axes.set_yticks(range(len(names)), [_label(name) for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(axis="x")


def flow_plot(report: Report) -> Markup:
    """Records in, by what became of them (upper bar), and good ones by how they were written (lower bar)."""
    names = list(dict.fromkeys(row.dataset for row in report.ledger))
    sums = {name: _sums([row for row in report.ledger if row.dataset == name]) for name in names}

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _bars(axes, [f"{name}  {_short(sums[name]['rows_in'])}" for name in names])
        for y, name in enumerate(names):
            whole = max(sums[name]["rows_in"], 1)
            _stack(axes, y - 0.17, 0.34, sums[name], CUT, whole)
            _stack(axes, y + 0.19, 0.2, sums[name], WRITTEN, whole)
            parts = [f"{_short(sums[name][part])} {part}" for part in (*CUT[1:], *WRITTEN) if sums[name][part]]
            axes.text(101.5, y, " · ".join(parts), va="center", fontsize=7.5)
        axes.set_xlim(0, 150)
        axes.set_xticks(range(0, 101, 25), [f"{share} %" for share in range(0, 101, 25)])
        figure.legend(*_keys((*CUT, *WRITTEN)), loc="outside upper left", ncols=7, handlelength=1, columnspacing=1.4)

    return _plot(0.75 + 0.5 * len(names), draw)


def _sums(rows: Sequence[LedgerRow]) -> dict[str, int]:
    return {part: sum(getattr(row, part) for row in rows) for part in ("rows_in", *CUT, *WRITTEN)}


def _stack(axes: Axes, y: float, height: float, values: Mapping[str, int], parts: Sequence[str], whole: int) -> None:
    """Parts of a whole as per cent, those there are at least as wide as can be seen."""
    left = 0.0
    for part in parts:
        width = max(100 * values[part] / whole, 0.4) if values[part] else 0.0
        axes.barh(y, width, height, left, color=COLOUR[part])
        left += width


def _keys(names: Sequence[str]) -> tuple[list[Any], list[str]]:
    from matplotlib.patches import Patch

    return [Patch(color=COLOUR[name]) for name in names], list(names)


def quarantine_plot(report: Report) -> Markup:
    """Open rows by rule; what this run added is the solid part."""
    kinds = report.quarantine[:20]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _bars(axes, [f"{kind.dataset} · {kind.rule}" for kind in kinds])
        longest = max(kind.rows for kind in kinds)
        for y, kind in enumerate(kinds):
            axes.barh(y, kind.new, 0.62, color=COLOUR["quarantined"])
            axes.barh(y, kind.rows - kind.new, 0.62, kind.new, color=COLOUR["quarantined"], alpha=0.35)
            text = _short(kind.rows) + (f" ({_short(kind.new)} new)" if 0 < kind.new < kind.rows else "")
            axes.text(kind.rows + longest / 100, y, text, va="center")
        axes.set_xlim(0, longest * 1.12)
        axes.xaxis.set_major_formatter(lambda value, _: _short(value))

    return _plot(0.4 + 0.24 * len(kinds), draw)


def step_plot(report: Report) -> Markup:
    """Seconds of each step, in the order of the flow."""
    longest = sorted(report.steps, key=lambda step: -step.seconds)[:40]
    steps = [step for step in report.steps if step in longest]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _bars(axes, [f"{step.step} {step.dataset}" for step in steps])
        most = max(step.seconds for step in steps) or 1.0
        for y, step in enumerate(steps):
            axes.barh(y, step.seconds, 0.66, color=COLOUR[_of_layer(step.step)])
            text = _seconds(step.seconds) + (" failed" if step.failed else "")
            axes.text(step.seconds + most / 100, y, text, va="center")
        axes.set_xlim(0, most * 1.12)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s")

    return _plot(0.4 + 0.21 * len(steps), draw)


def _of_layer(step: str) -> str:
    return step if step in ("bronze", "silver", "gold", "unify") else "other"


def series_plot(table: GoldInfo) -> Markup:
    """Small multiples: one line for each number of a table, over its dates."""
    assert table.series
    sums, dates = table.series.sums[:12], table.series.dates
    across = min(len(sums), 4)
    down = math.ceil(len(sums) / across)

    def draw(figure: Figure) -> None:
        for n, (name, values) in enumerate(sums):
            axes = figure.add_subplot(down, 4, n // across * 4 + n % across + 1)
            size = 3.2 if len(dates) < 20 else 0
            axes.plot(dates, values, color=COLOUR["gold"], lw=1.4, marker="o", ms=size)  # type: ignore[arg-type]
            axes.set_title(_label(name, 24))
            there = [value for value in values if math.isfinite(value)] or [0.0]
            low, high = min(0.0, *there), max(0.0, *there)
            axes.set_ylim(low * 1.1, high * 1.1 or 1)
            marks = sorted({dates[0], dates[len(dates) // 2], dates[-1]} if len(dates) > 8 else {dates[0], dates[-1]})
            axes.set_xticks(marks, [mark.isoformat() for mark in marks])  # type: ignore[arg-type]
            axes.yaxis.set_major_formatter(lambda value, _: _short(value))
            axes.locator_params(axis="y", nbins=4)
            axes.grid(axis="y")
            axes.spines["left"].set_visible(False)
            axes.tick_params(labelsize=7, labelcolor=COLOUR["soft"])
            axes.tick_params(axis="x", pad=6)

    return _plot(0.2 + 1.35 * down, draw)


def model_plot(model: anomalies.Shown) -> Markup:
    """Scores against the threshold, the flagged share of each load, and of each group."""

    def draw(figure: Figure) -> None:
        scores, loads, groups = figure.subplots(1, 3)
        _scores(scores, model)
        shares = [100 * load.share for load in model.loads]
        loads.bar(range(len(shares)), shares, 0.72, color=COLOUR["quarantined"])
        loads.axhline(100 * model.declared, color=COLOUR["ink"], lw=0.8, ls="--")
        loads.set_title("Flagged, % of a load's rows; dashed: declared")
        marks = sorted({0, len(shares) - 1})
        loads.set_xticks(marks, [f"{model.loads[mark].at:%m-%d %H:%M}" for mark in marks])
        loads.set_xlim(-0.6, max(len(shares), 4) - 0.4)
        worst = model.groups[:8]
        _bars(groups, [name for name, _, _ in worst])
        groups.set_title("Flagged, % of a group's rows" if worst else "")
        groups.barh(range(len(worst)), [100 * odd / rows for _, rows, odd in worst], 0.62, color=COLOUR["quarantined"])
        if not worst:
            groups.set_axis_off()

    return _plot(2.1, draw)


def _scores(axes: Axes, model: anomalies.Shown) -> None:
    """Rows by unit of score, as the bins are of unequal widths; the last one ends at the highest score there can be."""
    edges = [max(0.0, 2 * model.edges[0] - model.edges[-1]), *model.edges, 1.0]
    widths = [high - low or 1e-9 for low, high in pairwise(edges)]
    heights = [rows / width for rows, width in zip(model.scores, widths, strict=True)]
    axes.bar(edges[:-1], heights, widths, align="edge", color=COLOUR["inserted"])
    axes.axvline(model.threshold, color=COLOUR["quarantined"], lw=1.2)
    axes.set_xlim(edges[0], max(model.threshold, model.edges[-1]) + 0.05)
    axes.set_title("Scores; line: threshold")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def history_plot(report: Report) -> Markup:
    """Records and seconds of the last runs, side by side."""
    rows = {total.run: {part: float(getattr(total, part)) for part in CUT} for total in report.history}
    seconds: dict[str, dict[str, float]] = {}
    for item in report.step_history:
        of_run = seconds.setdefault(item.run, {})
        of_run[_of_layer(item.step)] = of_run.get(_of_layer(item.step), 0.0) + item.seconds
    runs = sorted({*rows, *seconds})[-RUNS:]

    def draw(figure: Figure) -> None:
        records, times = figure.subplots(1, 2)
        _columns(records, "Records in", runs, rows, CUT)
        _columns(times, "Seconds in steps", runs, seconds, ("bronze", "silver", "unify", "gold", "other"))

    return _plot(2.6, draw)


def _columns(
    axes: Axes, title: str, runs: Sequence[str], values: Mapping[str, Mapping[str, float]], parts: Sequence[str]
) -> None:
    base = [0.0] * len(runs)
    there = [part for part in parts if any(of_run.get(part) for of_run in values.values())]
    for part in there:
        heights = [values.get(run, {}).get(part, 0.0) for run in runs]
        axes.bar(range(len(runs)), heights, 0.72, base, color=COLOUR[part], label=part)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    marks = range(0, len(runs), math.ceil(len(runs) / 5))
    axes.set_xticks(marks, [_run_label(runs[mark]) for mark in marks])
    axes.set_xlim(-0.6, max(len(runs), 4) - 0.4)
    axes.set_title(title, pad=22)
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    axes.tick_params(axis="y", labelcolor=COLOUR["soft"])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="y")
    if there:
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=5, handlelength=1, columnspacing=1.2)


def _run_label(run: str) -> str:
    found = re.fullmatch(r"\d{4}(\d\d)(\d\d)T(\d\d)(\d\d)\d*", run)
    return f"{found[1]}-{found[2]}\n{found[3]}:{found[4]}" if found else _label(run, 12)


# --- the page ---


def render(report: Report) -> str:
    """The whole page, with nothing that it would have to fetch."""
    zone = ZoneInfo(report.timezone)
    page = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_clean
    )  # fmt: skip
    page.filters |= {
        "n": _number, "b": _bytes, "s": _seconds, "h": _hours, "m": _measured, "rule": _rule,
        "t": lambda moment: moment.astimezone(zone).strftime("%Y-%m-%d %H:%M:%S"),
    }  # fmt: skip
    text = resources.files("drivetrain").joinpath("templates/report.html.j2").read_text("utf-8")
    mood, sentences = verdict(report)
    return page.from_string(text).render(r=report, mood=mood, sentences=sentences, plots=_plots(report))


def _clean(value: Any) -> Any:
    """Feeds may hold characters that turn a line around or end a text; show that there is one."""
    return CONTROL.sub("�", value) if type(value) is str else value


def _plots(report: Report) -> dict[str, Any]:
    runs = {total.run for total in report.history} | {item.run for item in report.step_history}
    dated = [table for table in report.gold if table.series and len(table.series.dates) > 1]
    return {
        "flow": flow_plot(report) if report.ledger else None,
        "quarantine": quarantine_plot(report) if report.quarantine else None,
        "steps": step_plot(report) if report.steps else None,
        "history": history_plot(report) if len(runs) > 1 else None,
        "models": {model.dataset: model_plot(model) for model in report.models if model.scores},
        "series": {table.name: series_plot(table) for table in dated},
    }


def write(report: Report, conf: Conf, files: Files = LOCAL) -> str:
    """Put the page into the warehouse's reports, whole or not at all; also as latest.html, if no run is newer."""
    path = f"{conf.settings.warehouse}/reports/{re.sub(r'[^A-Za-z0-9_-]', '_', report.run)}.html"
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as folder:
        page = Path(folder, "page.html")
        page.write_bytes(render(report).encode("utf-8", "replace"))
        files.put(page, path)
        if all(total.run <= report.run for total in report.history):
            files.put(page, latest(conf))
    return path


def latest(conf: Conf) -> str:
    """Where the newest page stands."""
    return f"{conf.settings.warehouse}/reports/latest.html"
