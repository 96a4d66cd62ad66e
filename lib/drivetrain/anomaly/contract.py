"""The customProperty ``anomaly`` of a dataset -> Anomaly. What is wrong is added to a Findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field

from drivetrain import sqltext
from drivetrain.contracts import Anomaly, Column, Feature
from drivetrain.findings import Findings, Model, Path_, check_name, nearest, repeated

Kind = Literal["number", "category", "date", "timestamp"]
Part = Literal["value", "hour", "weekday", "hour_of_week"]
KINDS: Final[dict[str, Kind]] = {"string": "category", "date": "date", "timestamp": "timestamp"}
SHARE: Final = 0.001
LIMIT: Final = 0.01  # of all rows: a share above which it is the data that changed
GROUPS: Final = 5  # how many times as much of one group may be removed


class FeatureExtras(Model):
    """A column by its name, or an expression with a name of its own."""

    name: str
    sql: str | None = None
    kind: Kind | None = None
    part: Part = "value"


Named = Annotated[FeatureExtras, BeforeValidator(lambda given: {"name": given} if isinstance(given, str) else given)]


class ReferenceExtras(Model):
    """Of silver's rows those by which the others are judged; without either all of them."""

    days: float | None = Field(None, gt=0)
    loads: int | None = Field(None, ge=1)


class LimitExtras(Model):
    """How much of a load may be removed: a share of its rows, and one of a group's."""

    overall: float | None = Field(None, gt=0, le=1)
    group: float | None = Field(None, gt=0, le=1)


class AnomalyExtras(Model):
    """How rows are found that are not like the others."""

    features: tuple[Named, ...] = Field(min_length=1)
    reference: ReferenceExtras = ReferenceExtras()
    where: str | None = None
    group: str | None = None
    share: float | None = Field(None, gt=0, le=0.5)
    false_alarm_rate: float | None = Field(None, gt=0, le=0.5)
    limit: LimitExtras = LimitExtras()
    trees: int = Field(100, ge=1, le=1000)
    sample: int = Field(256, ge=2, le=1 << 20)
    seed: int = Field(7, ge=0, lt=1 << 32)
    kind: Literal["standard", "extended"] = "standard"


def read_anomaly(
    extra: AnomalyExtras, at: Path_, columns: Sequence[Column], event_time: str | None, found: Findings
) -> Anomaly:
    """The part as a whole; of what is wrong in it something stands there that nobody will use."""
    known = {column.name: column for column in columns}
    features = [_feature(item, (*at, "features", i), known, found) for i, item in enumerate(extra.features)]
    for name in repeated([feature.name for feature in features]):
        found.add("twice", (*at, "features"), f"two features are named {name!r}", "rename one")
    if extra.where is not None:
        _sources(extra.where, (*at, "where"), "where", known, found)
    _check_group(extra.group, (*at, "group"), known, found)
    share = extra.share or extra.false_alarm_rate or SHARE
    _check_one(extra, share, at, known.get(event_time or ""), found)
    overall = extra.limit.overall or max(LIMIT, 2 * share)
    return Anomaly(
        features=tuple(features), days=extra.reference.days, loads=extra.reference.loads, where=extra.where,
        group=extra.group, share=share, clean=extra.false_alarm_rate is not None, limit=overall,
        group_limit=extra.limit.group or min(1.0, GROUPS * overall), trees=extra.trees, sample=extra.sample,
        seed=extra.seed, kind=extra.kind,
    )  # fmt: skip


def _feature(item: FeatureExtras, at: Path_, known: dict[str, Column], found: Findings) -> Feature:
    check_name(item.name, (*at, "name"), "feature", found)
    if item.sql is not None:
        sources = _sources(item.sql, (*at, "sql"), f"feature {item.name}", known, found)
        feature = Feature(item.name, item.sql, item.kind or "number", item.part, all(c.is_open for c in sources))
    elif (column := known.get(item.name)) is None:
        what, fix = f"the feature names no column: {item.name!r}", nearest(item.name, known)
        found.add("unknown-column", (*at, "name"), what, f"{fix} or give it sql: an expression")
        return Feature(item.name, "NULL", "number", "value", True)
    else:
        kind = item.kind or KINDS.get(column.type.removesuffix("_ntz"), "number")
        feature = Feature(column.name, f"`{column.name}`", kind, item.part, column.is_open)
    if feature.part != "value" and feature.kind not in ("date", "timestamp"):
        what = f"feature {feature.name} is a {feature.kind}, which has no {feature.part}"
        found.add("bad-value", (*at, "part"), what, "leave part out, or let kind be date or timestamp")
    return feature


def _sources(sql: str, at: Path_, what: str, known: dict[str, Column], found: Findings) -> list[Column]:
    """The columns that an expression reads."""
    try:
        names = sqltext.columns(sql)
    except sqltext.SqlProblem as problem:
        found.add("sql", at, f"{what}: {problem}", "write one Spark SQL expression over the dataset's columns")
        return []
    spelled = {name.lower(): column for name, column in known.items()}
    for name in [name for name in names if name.lower() not in spelled]:
        found.add("unknown-column", at, f"{what} names no column: {name!r}", nearest(name, known))
    return [spelled[name.lower()] for name in names if name.lower() in spelled]


def _check_group(group: str | None, at: Path_, known: dict[str, Column], found: Findings) -> None:
    if group is None:
        return
    if group not in known:
        found.add("unknown-column", at, f"group names no column: {group!r}", nearest(group, known))
    elif not known[group].is_open:
        what = f"group {group!r} is a classified column, and groups are named in alerts and reports"
        found.add("classification", at, what, "take a column that everybody may see, or leave group out")


def _check_one(extra: AnomalyExtras, share: float, at: Path_, event: Column | None, found: Findings) -> None:
    if extra.share is not None and extra.false_alarm_rate is not None:
        found.add("bad-value", (*at, "share"), "share and falseAlarmRate are two thresholds", "keep one")
    for name, limit in (("overall", extra.limit.overall), ("group", extra.limit.group)):
        if limit is not None and limit < share:
            what = f"limit {name} {limit:g} is below the share {share:g}: of usual loads nothing would ever be removed"
            found.add("bad-value", (*at, "limit", name), what, f"write {share:g} or more, better {2 * share:g}")
    days, loads = extra.reference.days, extra.reference.loads
    if days is not None and loads is not None:
        found.add("bad-value", (*at, "reference"), "days and loads are two windows", "keep one")
    if days is not None and (event is None or not event.type.startswith(("date", "timestamp"))):
        what = "a reference of days needs an eventTime that is a date or a timestamp"
        found.add("event-time", (*at, "reference", "days"), what, "add {property: eventTime, value: …}, or use loads")
