"""Reads a conf folder whole: settings, datasets and gold tables, and every error of all of them at once."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import available_timezones

from pydantic import Field, ValidationError

from drivetrain import sqltext
from drivetrain.contracts import BUILT_IN_CHECKS, NAME, Conf, CycleError, Dataset, GoldTable, Settings, build_order
from drivetrain.errors import ConfError, Problem
from drivetrain.files import is_remote
from drivetrain.findings import Findings, Model, check_name, keys, nearest, repeated
from drivetrain.odcs import check_standard, read_dataset, read_rules
from drivetrain.settings import Layered, layer, load_yaml, shown

TAKEN_NAMES = (
    "bronze",
    "silver",
    "gold",
    "speed",
    "ops",
    "quarantine",
    "late",
    "manifest",
    "models",
    "reports",
    "hive",
    "metastore_db",
)


class MakeFeeds(Model):
    """What etl gives to scripts/acme_sources.py."""

    days: int = Field(ge=1)
    order_lines: int = Field(alias="order_lines", ge=1)
    seed: int = 7


class SettingsModel(Model):
    """base.yaml and what is laid over it."""

    company: str
    landing: str
    warehouse: str
    timezone: str = "UTC"
    settle_seconds: float = Field(0, ge=0, alias="settle_seconds")
    max_record_bytes: int = Field(16 << 20, ge=1024, alias="max_record_bytes")
    sample_rows: int = Field(10_000, ge=1, alias="sample_rows")
    unified_table: str = Field("raw_unified_data", pattern=f"^{NAME.pattern}$", alias="unified_table")
    refresh_seconds: float = Field(60, gt=0, alias="refresh_seconds")
    keep_hours: float = Field(168, ge=1, alias="keep_hours")
    model_key: str | None = Field(None, pattern=r"^(env|file):.", alias="model_key")
    tune: bool = True
    database_prefix: str = Field("", pattern=f"^({NAME.pattern})?$", alias="database_prefix")
    make_feeds: MakeFeeds | None = Field(None, alias="make_feeds")
    queues: dict[str, str] = {}
    deadline_minutes: dict[str, Annotated[float, Field(gt=0)]] = Field({}, alias="deadline_minutes")
    staging: str | None = None
    package_java: bool = Field(True, alias="package_java")
    spark: dict[str, str | int | float | bool | None] = {}


class Sla(Model):
    freshness: str | None = Field(None, pattern=r"^\d+(\.\d+)?[mhd]$")


class GoldModel(Model):
    """gold/<name>.yaml; the checks are read as a dataset's rules are."""

    description: str = ""
    owner: str
    key: tuple[str, ...] = Field(min_length=1)
    sla: Sla = Sla()
    checks: list[dict[str, Any]] = []


def load(conf_dir: Path, env: str, environ: Mapping[str, str] | None = None, sets: Sequence[str] = ()) -> Conf:
    """Read and check the folder.

    Raises:
        ConfError: with every problem of every file.
    """
    problems: list[Problem] = []
    try:
        layered = layer(conf_dir, env, os.environ if environ is None else environ, sets)
    except ConfError as error:
        problems += error.problems
        layered = Layered({}, {}, Path(os.path.abspath(conf_dir)).parent)
    settings = None if problems else _settings(layered, problems)
    root = str(layered.root)
    places = {
        "root": root,
        "landing": settings.landing if settings else root,
        "warehouse": settings.warehouse if settings else root,
    }
    datasets = [_dataset(path, env, places, problems) for path in _files(conf_dir / "datasets", ".yaml", problems)]
    whole = {dataset.name: dataset for dataset in datasets if dataset}
    gold = _gold(conf_dir / "gold", whole, all(datasets), problems)
    if problems or settings is None:
        raise ConfError(*problems)
    return Conf(
        settings, whole, {table.name: table for table in gold}, env, Path(os.path.abspath(conf_dir)), tuple(sets)
    )


def _files(folder: Path, suffix: str, problems: list[Problem]) -> list[Path]:
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".yaml", ".sql") or (
            suffix == ".yaml" and folder.name == "datasets" and path.suffix == ".sql"
        ):
            problems.append(
                Problem(
                    "stray-file", shown(path), "this file is not read", "name it <name>.yaml, or move it out of conf"
                )
            )
    return sorted(folder.glob(f"*{suffix}"))


def _settings(layered: Layered, problems: list[Problem]) -> Settings | None:
    try:
        model = SettingsModel.model_validate(layered.values)
    except ValidationError as error:
        for item in error.errors():
            path = tuple(str(part) for part in item["loc"])
            where = next((layered.origin[leaf] for leaf in layered.origin if leaf[: len(path)] == path), "base.yaml:1")
            fix = (
                nearest(path[-1], keys(SettingsModel, path[:-1]))
                if item["type"] == "extra_forbidden"
                else "see docs/contracts.md, Settings"
            )
            what = (
                f"unknown key {'.'.join(path)!r}"
                if item["type"] == "extra_forbidden"
                else f"{'.'.join(path)}: {item['msg']}"
            )
            problems.append(Problem("settings", where, what, fix))
        return None
    if model.timezone not in available_timezones():
        where = layered.origin.get(("timezone",), "base.yaml:1")
        problems.append(
            Problem(
                "timezone",
                where,
                f"time zone {model.timezone!r} is unknown",
                nearest(model.timezone, available_timezones()),
            )
        )
    if model.unified_table in TAKEN_NAMES:
        where = layered.origin.get(("unified_table",), "base.yaml:1")
        what = f"unified_table {model.unified_table!r} is a folder of the warehouse already"
        problems.append(Problem("settings", where, what, "choose another name"))
    for name, place in (("landing", model.landing), ("warehouse", model.warehouse)):
        if is_remote(place) and not re.match("(hdfs|viewfs):/", place):
            where = layered.origin.get((name,), "base.yaml:1")
            what = f"{name} {place!r} has a scheme that is not used"
            problems.append(Problem("path", where, what, "use a plain path, hdfs:// or viewfs://"))
    return Settings(
        company=model.company, landing=_absolute(model.landing, layered.root),
        warehouse=_absolute(model.warehouse, layered.root),
        timezone=model.timezone, settle_seconds=model.settle_seconds, max_record_bytes=model.max_record_bytes,
        sample_rows=model.sample_rows, unified_table=model.unified_table, database_prefix=model.database_prefix,
        refresh_seconds=model.refresh_seconds, keep_hours=model.keep_hours,
        model_key=model.model_key, tune=model.tune,
        make_feeds=model.make_feeds.model_dump() if model.make_feeds else None,
        spark={key: str(value) for key, value in model.spark.items() if value is not None},
    )  # fmt: skip


def _absolute(path: str, root: Path) -> str:
    return path if re.match(r"[a-z][a-z0-9+.-]*:", path) else os.path.abspath(root / path)


def _dataset(path: Path, env: str, places: Mapping[str, str], problems: list[Problem]) -> Dataset | None:
    try:
        document, lines = load_yaml(path)
    except ConfError as error:
        problems += error.problems
        return None
    return read_dataset(document, Findings(path, lines, problems), env, places)


def _gold(
    folder: Path, datasets: Mapping[str, Dataset], datasets_whole: bool, problems: list[Problem]
) -> list[GoldTable]:
    sqls = {path.stem: path for path in _files(folder, ".sql", problems)}
    yamls = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    for name in sorted(set(sqls) ^ set(yamls)):
        there, missing = (sqls, ".yaml") if name in sqls else (yamls, ".sql")
        problems.append(
            Problem(
                "gold-pair", shown(there[name]), f"{name}{missing} is missing", f"write {folder.name}/{name}{missing}"
            )
        )
    texts = {name: sqls[name].read_text("utf-8").strip().rstrip(";") for name in sorted(set(sqls) & set(yamls))}
    schema = {name: dataset.silver_types for name, dataset in datasets.items()}
    tables: list[GoldTable] = []
    for name in _sql_order(texts, sqls, problems):
        table = _gold_table(name, texts, sqls[name], yamls[name], schema, datasets_whole, problems)
        if table:
            tables.append(table)
            schema[name] = dict.fromkeys(table.columns, "string")
    return build_order(tables)


def _sql_order(texts: Mapping[str, str], paths: Mapping[str, Path], problems: list[Problem]) -> list[str]:
    drafts = []
    for name, text in texts.items():
        try:
            inputs = tuple(sqltext.tables(sqltext.select(text)))
        except sqltext.SqlProblem as problem:
            line = re.search(r"line (\d+)", str(problem))
            problems.append(
                Problem(
                    "sql",
                    f"{shown(paths[name])}:{line[1] if line else 1}",
                    str(problem),
                    "write one SELECT over silver names",
                )
            )
            continue
        drafts.append(GoldTable(name, text, inputs, (), "", "", (), (), None, (), ""))
    while True:
        try:
            return [draft.name for draft in build_order(drafts)]
        except CycleError as error:
            ring = error.args[1]
            problems.append(
                Problem(
                    "gold-cycle",
                    shown(paths[ring[0]]),
                    f"gold tables read each other: {' → '.join(ring)}",
                    "break the ring",
                )
            )
            drafts = _without(drafts, set(ring))


def _without(drafts: Sequence[GoldTable], names: set[str]) -> list[GoldTable]:
    """The tables but for those, and for what reads them."""
    left = [draft for draft in drafts if draft.name not in names]
    readers = {draft.name for draft in left if names & set(draft.inputs)}
    return _without(left, names | readers) if readers else left


def _gold_table(
    name: str, texts: Mapping[str, str], sql_path: Path, yaml_path: Path, schema: Mapping[str, Mapping[str, str]],
    datasets_whole: bool, problems: list[Problem],
) -> GoldTable | None:  # fmt: skip
    before = len(problems)
    try:
        document, lines = load_yaml(yaml_path)
    except ConfError as error:
        problems += error.problems
        return None
    found, in_sql = Findings(yaml_path, lines, problems), Findings(sql_path, {(): 1}, problems)
    check_name(name, (), "gold table", found)
    if name in schema:
        found.add("name", (), f"{name!r} is a dataset too", "give the gold table another name")
    query = sqltext.select(texts[name])
    inputs = sqltext.tables(query)
    for unknown in [table for table in inputs if table not in schema]:
        if datasets_whole:
            in_sql.add("unknown-table", (), f"no dataset or gold table is named {unknown!r}", nearest(unknown, schema))
    model = None
    try:
        model = GoldModel.model_validate(document)
        check_standard(model.checks, found, "DataQualityChecks", ("checks",))
    except ValidationError as error:
        found.add_pydantic(error, (), GoldModel, {})
    if model and not query.is_star:
        _check_key(model.key, query.named_selects, found)
    if not datasets_whole or any(table not in schema for table in inputs):
        return None
    complaint = sqltext.unknown_columns(query, schema)
    if complaint:
        known = [column for table in inputs for column in schema[table]]
        missing = re.search(r"'([^']+)'|: (\w+)", complaint)
        in_sql.add("unknown-column", (), complaint, nearest((missing[1] or missing[2]) if missing else "", known))
        return None
    columns = sqltext.output_columns(query, schema)
    for column in columns:
        check_name(column, (), f"column of {name}:", in_sql)
    if model and query.is_star:
        _check_key(model.key, columns, found)
    if model is None or len(problems) > before:
        return None
    rules = read_rules(
        model.checks, ("checks",), None, dict.fromkeys(columns, "string"), found, ("flag", "stop"), "stop"
    )
    for name_ in repeated([*[rule.name for rule in rules], *BUILT_IN_CHECKS]):
        found.add("twice", ("checks",), f"two checks are named {name_!r}", "give each check a name of its own")
    if len(problems) > before:
        return None
    sources = tuple((column, tuple(pairs)) for column, pairs in sqltext.column_lineage(query, schema).items())
    return GoldTable(
        name=name, sql=texts[name], inputs=tuple(inputs), columns=tuple(columns), description=model.description,
        owner=model.owner, key=model.key, rules=tuple(rules), freshness_hours=_hours(model.sla.freshness),
        lineage=sources, where=shown(sql_path),
    )  # fmt: skip


def _check_key(key: Sequence[str], columns: Sequence[str], found: Findings) -> None:
    known = [column.lower() for column in columns]
    for i, column in enumerate(key):
        if column not in known:
            what = f"the key names no column of the query: {column!r}"
            found.add("unknown-column", ("key", i), what, nearest(column, known))


def _hours(text: str | None) -> float | None:
    return float(text[:-1]) * {"m": 1 / 60, "h": 1.0, "d": 24.0}[text[-1]] if text else None
