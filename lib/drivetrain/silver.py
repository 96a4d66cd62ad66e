"""Silver: records of the log -> typed, checked rows with an outcome each. Pure: DataFrame -> DataFrame.

Outcomes of `classify` and `against`: quarantined, duplicate, superseded (good, but a newer version is there already),
insert and update (good, and to be written).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import reduce
from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.window import WindowSpec

from drivetrain import bronze, contracts
from drivetrain.bronze import Load
from drivetrain.checks import Violation, attempted, explained, problem, row_violations, shown_value
from drivetrain.contracts import ANOMALY, DATE_FIELDS, META_COLUMNS, SCD2_COLUMNS, TIME_FIELDS, Dataset, fixed_places
from drivetrain.drift import Fit, column_name, fit

OUTCOMES: Final = ("quarantined", "duplicate", "superseded", "insert", "update")
STAGED_ONLY: Final = ("_rule", "_reason", "_unknown", "_outcome", "_score", "_anomaly", "raw", "raw_bytes")
BLANKS: Final = " \t\r\n"
POSITION: Final = ("_file", "_block", "_line")
ARRIVAL: Final = ("_load", "_file", "_block", "_line")
CARRIED: Final = (
    *META_COLUMNS, "_arrived", "_released", "_score", "_anomaly", "raw", "raw_bytes", "_shape", "_unknown",
)  # fmt: skip
# A lone year would pass for the first of January, and a date would drop its time.
MIDNIGHT: Final = r"[T ]0?0:00(:00)?(\.0+)?Z?$"
ISO_LENGTH: Final = {"date": (8, 10), "timestamp": (8, 35)}

Verdict = Callable[[DataFrame], DataFrame]  # sets _score and _anomaly of typed rows, and _rule of those it removes


def as_given(rows: DataFrame) -> DataFrame:
    """The verdicts that the log has; none where it has none."""
    return rows


def parse(
    log: DataFrame,
    dataset: Dataset,
    layouts: Mapping[str, Sequence[str]],
    max_record_bytes: int,
    new: Mapping[str, str],
    careful: bool = False,
    verdict: Verdict = as_given,
) -> DataFrame:
    """Records of the log -> the contract's columns, typed, with _rule, _reason (null for good rows),
    _unknown (names of columns that the contract does not have; null for none), _score and _anomaly (`ruled`).

    A record on which the contract's own SQL raises an error ends the query; with ``careful``, which is slower, it is
    a bad row like others.

    ``layouts`` gives the header of each _layout among the records; JSON has none. ``new`` maps columns that the
    contract does not have, and which silver takes, to their feed names. raw and raw_bytes are kept for rows that are
    bad, or an anomaly, only.
    """
    rows = ruled(verdict(_judged(log, dataset, layouts, max_record_bytes, new, careful)), removed())
    odd = F.col("_rule").isNotNull() | F.col("_anomaly").isNotNull()
    return rows.select(
        *[column.name for column in dataset.columns], *new, *META_COLUMNS, "_rule", "_reason", "_unknown", "_score",
        "_anomaly", F.when(odd, F.col("raw")).alias("raw"), F.when(odd, F.col("raw_bytes")).alias("raw_bytes"),
    )  # fmt: skip


def ruled(rows: DataFrame, gone: Column) -> DataFrame:
    """Of good rows that are an anomaly those that are ``gone`` break a rule of that name.

    _anomaly is JSON, a `judge.VERDICT`, null for rows that are none.
    """
    taken = F.col("_rule").isNull() & F.col("_anomaly").isNotNull() & gone
    return _told(rows, taken, {"_rule": F.lit(ANOMALY), "_reason": F.get_json_object("_anomaly", "$.reason")})


def kept(rows: DataFrame) -> DataFrame:
    """Rows of `ruled` -> the same, but none was removed as an anomaly, unless it is known from before as one."""
    gone, nothing = F.col("_rule") == ANOMALY, F.lit(None).cast("string")
    if "_outcome" in rows.columns:
        gone &= F.col("_outcome") == "quarantined"
    told = F.regexp_replace("_anomaly", '"removed":true}$', '"removed":false}')
    return _told(rows, gone, {"_rule": nothing, "_reason": nothing, "_anomaly": told})


def _told(rows: DataFrame, which: Column, said: Mapping[str, Column]) -> DataFrame:
    """Of a stream's rows nobody asks for the reason yet."""
    there = {name: F.when(which, value).otherwise(F.col(name)) for name, value in said.items() if name in rows.columns}
    return rows.withColumns(there)


def removed() -> Column:
    """Whether the verdict on a row says that it was removed."""
    return F.coalesce(F.get_json_object("_anomaly", "$.removed") == "true", F.lit(False))


def judged(
    records: DataFrame,
    dataset: Dataset,
    layouts: Mapping[str, Sequence[str]],
    max_record_bytes: int,
    careful: bool = False,
) -> DataFrame:
    """Records of source.read -> the same, each with its typed row in `row_column`, which is null for a bad record, and
    the record's _rule (null for good ones). For streams: the log then shows its newest rows by itself.

    It is the same for every load, so that a stream has it planned and compiled once.
    """
    found = _judged(records.withColumn("_log", F.struct("*")), dataset, layouts, max_record_bytes, {}, careful)
    row = F.struct(*[column.name for column in dataset.columns])
    return found.select("_log.*", F.when(F.col("_rule").isNull(), row).alias(row_column(dataset)), "_rule")


def beside(
    judged: DataFrame, dataset: Dataset, load: Load, late_before: datetime | None, verdict: Verdict = as_given
) -> DataFrame:
    """Records of `judged` -> rows of the log, with their typed rows, _rule, and _late, which stands in those too.

    Late is an event from before ``late_before``; and one may lie too far after the record's arrival.
    """
    name, row = dataset.event_time, F.col(row_column(dataset))
    rows = bronze.log_records(judged, load, row_column(dataset), "_rule")
    if dataset.stream and dataset.stream.ahead_seconds is not None:
        violation = _future(row[str(name)], str(name), dataset.stream.ahead_seconds)
        rule = F.coalesce("_rule", F.when(violation.broken, F.lit(violation.rule)))
        rows = rows.withColumn("_rule", rule)
    rows = verdict(rows)
    late = F.coalesce(row[name] < F.lit(late_before), F.lit(False)) if name and late_before else F.lit(False)
    good = F.col("_rule").isNull()
    typed = F.when(good, row.withField("_late", late)).alias(row_column(dataset))
    return rows.select(*bronze.TYPES, typed, "_rule", (good & late).alias("_late"))


def row_column(dataset: Dataset) -> str:
    """The log's column of typed rows, by one form of the contract: another form may give a column another type."""
    return f"_row_{dataset.fingerprint[:8]}"


def _judged(
    log: DataFrame,
    dataset: Dataset,
    layouts: Mapping[str, Sequence[str]],
    max_record_bytes: int,
    new: Mapping[str, str],
    careful: bool,
) -> DataFrame:
    """As `parse`, with every column that was carried along."""
    too_long = F.octet_length("raw") > max_record_bytes
    fields = _fields(log, dataset, layouts, max_record_bytes, new)
    typed = _typed(_texts(fields, dataset, new), dataset, careful)
    unreadable = [
        Violation(
            "record_too_large", too_long, F.concat(F.lit("the record has "), F.octet_length("raw"), F.lit(" bytes"))
        ),
        Violation("encoding", F.col("raw_bytes").isNotNull(), F.lit("bytes that its encoding does not have")),
        Violation("nul_byte", F.contains("raw", F.lit("\0")), F.lit("a NUL character")),
        Violation("shape", F.col("_shape").isNotNull(), F.col("_shape")),
    ]
    if dataset.evolution in ("quarantine", "refuse"):
        names = F.concat(F.lit("columns that the contract does not have: "), F.col("_unknown"))
        unreadable.append(Violation("drift", F.col("_unknown").isNotNull(), names))
    return _checked(typed, dataset, unreadable, careful)


def unified(log: DataFrame, dataset: Dataset, layouts: Mapping[str, Sequence[str]], max_record_bytes: int) -> DataFrame:
    """Readable records of the log -> the feed's columns as text by the contract's names, _source and _schema_version.

    Frames of several feeds go together by name; a column that one of them lacks is NULL there.
    """
    named = {column.feed_name: column.name for column in dataset.columns if not column.transform}
    return texts(log, dataset, layouts, max_record_bytes).select(
        *[_feed(feed).alias(named.get(feed, column_name(feed))) for feed in dataset.feed_columns],
        F.lit(dataset.name).alias("_source"), F.lit(dataset.version).alias("_schema_version"), *META_COLUMNS,
    )  # fmt: skip


def texts(log: DataFrame, dataset: Dataset, layouts: Mapping[str, Sequence[str]], max_record_bytes: int) -> DataFrame:
    """Readable records of the log -> the feed's columns as trimmed text by their feed names, and the position."""
    fields = _fields(log, dataset, layouts, max_record_bytes, {}).where(
        F.col("_shape").isNull() & F.col("_fields").isNotNull()
    )
    return _texts(fields, dataset, {}).select(*map(_feed, dataset.feed_columns), *[f"_row.{n}" for n in META_COLUMNS])


def _fields(
    log: DataFrame,
    dataset: Dataset,
    layouts: Mapping[str, Sequence[str]],
    max_record_bytes: int,
    new: Mapping[str, str],
) -> DataFrame:
    usable = log.withColumn("_text", F.when(F.octet_length("raw") <= max_record_bytes, F.col("raw")))
    if dataset.format == "csv":
        return _csv_fields(usable, dataset, layouts, new)
    if dataset.format in ("json", "parquet", "jdbc"):
        return _json_fields(usable, dataset, new)
    return usable.select("*", F.array("_text").alias("_fields"), _nothing("_shape"), _nothing("_unknown"))


def _checked(typed: DataFrame, dataset: Dataset, unreadable: Sequence[Violation], careful: bool) -> DataFrame:
    required = (*dataset.key, *((dataset.sequence,) if dataset.sequence else ()))
    raised = [_raised(column) for column in dataset.columns if careful and column.transform]
    casts = [*raised, *[_failure(column, careful) for column in dataset.columns]]
    released = F.coalesce(F.col("_released"), F.lit(False))
    rules = [
        Violation(v.rule, v.broken if v.rule == "required" else ~released & v.broken, v.reason)
        for v in row_violations(dataset.columns, required, dataset.rules, careful)
    ]
    if dataset.stream and dataset.stream.ahead_seconds is not None:
        name = str(dataset.event_time)
        rules.append(_future(F.col(name), name, dataset.stream.ahead_seconds))
    # A record that cannot be read has no values to judge, and a value of the wrong type is not a missing one. Each
    # stage is a column of its own, so that Spark evaluates it once and not within every later condition.
    told = typed.withColumn("_problem", problem(unreadable))
    for violations in (casts, rules):
        sound = F.col("_problem") == ""
        told = told.withColumn("_problem", F.when(sound, problem(violations)).otherwise(F.col("_problem")))
    return explained(told)


def _future(event: Column, name: str, ahead_seconds: float) -> Violation:
    """One clock that is wrong would make every other event late."""
    latest = F.col("_arrived").cast("timestamp") + F.make_dt_interval(secs=F.lit(ahead_seconds))
    what = f"{name} lies more than {ahead_seconds:g} s after the record's arrival"
    return Violation("future", event > latest, F.lit(what))


# --- From records to texts: _fields in the order of the feed's columns; _shape says why a record has none ---


def _nothing(name: str) -> Column:
    return F.lit(None).cast("string").alias(name)


def _csv_fields(
    log: DataFrame, dataset: Dataset, layouts: Mapping[str, Sequence[str]], new: Mapping[str, str]
) -> DataFrame:
    fits = {layout: fit(header, dataset) for layout, header in layouts.items()}
    # A column of its own, so that Spark splits a record once: without it each wanted field would repeat the parser,
    # which for a header of a hundred columns is a plan that takes minutes to make.
    split = log.withColumn(
        "_split", _by_layout({layout: _csv_split(dataset, len(header)) for layout, header in layouts.items()})
    )
    shapes = {layout: _csv_shape(dataset, header, fits[layout]) for layout, header in layouts.items()}
    wanted = [*dataset.feed_columns, *new.values()]
    columns = {layout: _arranged(fits[layout], layouts[layout], wanted) for layout in layouts}
    unknown = {layout: F.lit(", ".join(fits[layout].unknown) or None).cast("string") for layout in layouts}
    return split.select(
        *log.columns,
        _by_layout(columns).alias("_fields"),
        _by_layout(shapes).alias("_shape"),
        _by_layout(unknown).alias("_unknown"),
    )


def _by_layout(choices: Mapping[str, Column]) -> Column:
    if len(choices) == 1:
        return next(iter(choices.values()))
    return F.coalesce(*[F.when(F.col("_layout") == layout, choice) for layout, choice in choices.items()])


def _csv_split(dataset: Dataset, width: int) -> Column:
    """Array of the record's fields; null, or of another size than ``width``, where there are more or fewer.

    Only a record that holds a quote needs the CSV parser; splitting the others is three times as fast.
    """
    options = dataset.options
    plain = F.split("_text", _separator(options.delimiter), -1)
    if not options.quote:
        return plain
    names = [f"c{i}" for i in range(width)]
    reader = {
        "sep": options.delimiter, "quote": options.quote, "escape": options.escape, "multiLine": "true",
        "columnNameOfCorruptRecord": "bad", "mode": "PERMISSIVE", "maxCharsPerColumn": "-1",
        "maxColumns": str(width + 1024), "inputBufferSize": "65536",
    }  # fmt: skip
    parsed = F.array(F.from_csv("_text", ", ".join(f"{name} string" for name in [*names, "bad"]), reader))
    escaped_quote = F.lit(options.escape + options.quote)

    def whole(record: Column) -> Column:
        last = record[names[-1]]  # the parser closes a quote that is open at the end: a torn record looks whole
        torn = (last != "") & F.endswith(
            "_text", F.concat(F.lit(options.quote), F.replace(last, F.lit(options.quote), escaped_quote))
        )
        return F.when(
            record["bad"].isNull() & ~F.coalesce(torn, F.lit(False)), F.array(*[record[name] for name in names])
        )

    # transform() gives the parsed record a name; Spark would parse it again for each field.
    return F.when(F.contains("_text", F.lit(options.quote)), F.transform(parsed, whole)[0]).otherwise(plain)


def _is_whole(width: int) -> Column:
    return F.coalesce(F.size("_split") == width, F.lit(False))


def _separator(delimiter: str) -> str:
    return "".join(
        f"\\{char}" if not char.isalnum() and char.isascii() and not char.isspace() else char for char in delimiter
    )


def _csv_shape(dataset: Dataset, header: Sequence[str], fitted: Fit) -> Column:
    if fitted.reason:
        return F.lit(fitted.reason)
    found = F.size(F.split("_text", _separator(dataset.options.delimiter), -1)).cast("string")
    ragged = F.concat(F.lit(f"{len(header)} fields expected, "), found, F.lit(" found (or quotes that do not close)"))
    shape = F.when(F.col("_text").isNotNull() & ~_is_whole(len(header)), ragged)
    if dataset.options.header:
        names = [F.lit(re.sub(r"#\d+$", "", name)) for name in header]
        same = F.transform("_split", lambda text: F.trim(text)) == F.array(*names)
        shape = shape.when((F.trim(F.get("_split", F.lit(0))) == names[0]) & same, F.lit("it repeats the header"))
    return shape


def _arranged(fitted: Fit, header: Sequence[str], wanted: Sequence[str]) -> Column:
    extra = {name: i for i, name in enumerate(header)}
    places = [fitted.positions.get(name, extra.get(name)) for name in wanted]
    fields = F.col("_split")
    if places != list(range(len(header))):
        fields = F.array(*[_nothing("x") if place is None else F.col("_split")[place] for place in places])
    return F.when(_is_whole(len(header)), fields)


def _json_fields(log: DataFrame, dataset: Dataset, new: Mapping[str, str]) -> DataFrame:
    """Variant keeps every digit of a number; the brackets make whatever follows the object an error."""
    one = F.expr("try_cast(try_parse_json(concat('[', _text, ']')) as array<map<string,string>>)")
    fields = log.withColumn("_objects", one)
    fields = fields.withColumn("_map", F.when(F.size("_objects") == 1, F.col("_objects")[0]))
    keys = F.map_keys("_map")
    named = {name: (name, *_aliases(dataset, name)) for name in dataset.feed_columns}
    values = [
        F.coalesce(*[F.col("_map")[alias] for alias in named.get(name, (name,))]) for name in (*named, *new.values())
    ]
    fields = fields.withColumn("_fields", F.array(*values))
    # As many keys as there are values: none is missing or unknown. To find which is slower, and rarely needed.
    plain = reduce(Column.__and__, [F.col("_fields")[i].isNotNull() for i in range(len(values))])
    other = ~(plain & (F.size(keys) == len(values)))
    known = [alias for names in named.values() for alias in names]
    must = [name for name in dataset.feed_columns if name not in dataset.may_lack]
    lacking = F.filter(F.array(*map(F.lit, must)).cast("array<string>"), lambda name: ~_has(keys, name, named))
    is_missing = F.concat(F.array_join(lacking, ", "), F.lit(" is missing from the record"))
    shape = F.when(F.col("_text").isNotNull() & F.col("_map").isNull(), F.lit("it is not one JSON object"))
    shape = shape.when(other & (F.size(lacking) > 0), is_missing)
    unknown = F.array_except(keys, F.array(*map(F.lit, known)))
    return fields.select(
        *log.columns,
        "_fields",
        shape.alias("_shape"),
        F.when(other & (F.size(unknown) > 0), F.array_join(unknown, ", ")).alias("_unknown"),
    )


def _has(keys: Column, name: Column, named: Mapping[str, Sequence[str]]) -> Column:
    aliased = {feed: names for feed, names in named.items() if len(names) > 1}
    found = F.array_contains(keys, name)
    for feed, names in aliased.items():
        found = found | ((name == feed) & F.arrays_overlap(keys, F.array(*map(F.lit, names))))
    return found


def _aliases(dataset: Dataset, feed_name: str) -> tuple[str, ...]:
    return next((column.aliases for column in dataset.columns if column.feed_name == feed_name), ())


# --- From texts to typed columns ---


def _feed(name: str) -> Column:
    return F.col(f"`{name.replace('`', '``')}`")


def _texts(fields: DataFrame, dataset: Dataset, new: Mapping[str, str]) -> DataFrame:
    """The feed's columns by their own names, and all else in one column, so that no name of theirs can meet ours."""
    untrimmed = {column.feed_name for column in dataset.columns if not column.trim}
    names, nulls = (*dataset.feed_columns, *new), ("", *dataset.options.null_values)
    meta = [F.col(name) if name in fields.columns else _absent(name) for name in CARRIED]
    meta += [F.col("_log")] if "_log" in fields.columns else []
    given = [F.col("_fields")[i] for i in range(len(names))]
    trimmed = [
        value if name in untrimmed else F.btrim(value, F.lit(BLANKS)) for name, value in zip(names, given, strict=True)
    ]
    # In two steps: an expression that is both tested and returned would be evaluated twice.
    row = F.struct(*meta).alias("_row")
    texts = fields.select(*[text.alias(name) for name, text in zip(names, trimmed, strict=True)], row)
    return texts.select(*[F.when(~_feed(name).isin(*nulls), _feed(name)).alias(name) for name in names], "_row")


def _absent(name: str) -> Column:
    return F.lit(None).cast(bronze.TYPES.get(name, "string")).alias(name)


def _typed(texts: DataFrame, dataset: Dataset, careful: bool) -> DataFrame:
    new = [name for name in texts.columns if name not in (*dataset.feed_columns, "_row")]
    given = [_source(column, careful).alias(f"_in_{column.name}") for column in dataset.columns]
    cast = [_cast(column, _given(column, careful)).alias(column.name) for column in dataset.columns]
    return texts.withColumn("_file", F.col("_row._file")).select("_row.*", *new, *given).select("*", *cast)


def _given(column: contracts.Column, careful: bool) -> Column:
    given = F.col(f"_in_{column.name}")
    return F.get(given, F.lit(0)) if careful and column.transform else given


def _source(column: contracts.Column, careful: bool) -> Column:
    if column.transform:
        return attempted(column.transform) if careful else F.expr(column.transform)
    value = _feed(column.feed_name)
    return F.when(~value.isin(*column.null_values), value) if column.null_values else value


def _cast(column: contracts.Column, value: Column) -> Column:
    kind = column.type
    if column.transform:
        return value.try_cast(kind)
    if column.format:
        iso = _iso(value, column.format)
        if iso is not None:
            return iso.try_cast(kind)
        return (
            F.try_to_date(value, column.format) if kind == "date" else F.try_to_timestamp(value, F.lit(column.format))
        )
    if kind in ISO_LENGTH:
        fits = F.length(value).between(*ISO_LENGTH[kind])
        return F.when(fits | value.rlike(MIDNIGHT) if kind == "date" else fits, value.try_cast(kind))
    if kind.startswith("decimal"):
        scale = int(kind.rstrip(")").split(",")[1])
        digits = F.length(F.substring_index(value, ".", -1))
        fits = ~F.contains(value, F.lit(".")) | (digits <= scale) | F.contains(F.lower(value), F.lit("e"))
        return F.when(fits, value.try_cast(kind))
    if kind in ("double", "float"):
        number = value.try_cast(kind)
        return F.when(number.between(-1.7976931348623157e308, 1.7976931348623157e308) & ~value.rlike("[dDfF]$"), number)
    return value.try_cast(kind)


def _iso(value: Column, pattern: str) -> Column | None:
    """The text rearranged to ISO 8601, where the pattern has fixed places for year, month, day (and time); NULL where
    the text does not fit it. Casting that is faster than a DateTimeFormatter."""
    parts = fixed_places(pattern)
    if parts is None:
        return None
    places, literals, at = {}, [], 1
    for part in parts:
        text = part.strip("'")
        if part.isalpha():
            places[part] = F.substring(value, at, len(text))
        else:
            literals.append(F.substring(value, at, len(text)) == text)
        at += len(text)
    day = F.concat_ws("-", *[places[name] for name in DATE_FIELDS])
    moment = (
        F.concat(day, F.lit(" "), F.concat_ws(":", *[places[name] for name in TIME_FIELDS])) if "HH" in places else day
    )
    return F.when(reduce(Column.__and__, [F.length(value) == at - 1, *literals]), moment)


def _raised(column: contracts.Column) -> Violation:
    reason = F.lit(f"{column.name}: its transformLogic cannot be computed from this record")
    return Violation("transform", F.col(f"_in_{column.name}").isNull(), reason)


def _failure(column: contracts.Column, careful: bool) -> Violation:
    given, value = _given(column, careful), F.col(column.name)
    shown = shown_value(column, given)
    what = column.type + (f" as {column.format}" if column.format else "")
    reason = F.concat(F.lit(f"{column.name}: '"), shown, F.lit(f"' is not a {what}"))
    return Violation("type", given.isNotNull() & value.isNull(), reason)


# --- Which rows are new ---


def classify(parsed: DataFrame, dataset: Dataset, repeated_files: bool = True) -> DataFrame:
    """Add _outcome as far as the batch alone tells: quarantined, duplicate, superseded, or insert.

    Without ``repeated_files`` no position stands twice, and records known by position need no comparing.
    """
    bad = F.col("_rule").isNotNull()
    given = F.when(bad, F.lit("quarantined"))
    if not dataset.identity and not repeated_files:
        return parsed.withColumn("_outcome", F.coalesce(given, F.lit("insert")))
    arrival = [F.col(name) for name in ARRIVAL]
    if dataset.history != "latest":
        again = F.row_number().over(_within(dataset.identity or POSITION, arrival)) > 1
        return parsed.withColumn("_outcome", F.coalesce(given, F.when(again, "duplicate").otherwise("insert")))
    if not set(dataset.key) <= set(dataset.identity):
        again = F.row_number().over(_within(dataset.identity, arrival)) > 1
        parsed = parsed.withColumn("_again", ~bad & again)
    newest = _within(dataset.key, _newest_first(dataset), "_again" in parsed.columns)
    same = reduce(Column.__and__, [F.lag(name).over(newest).eqNullSafe(F.col(name)) for name in dataset.identity])
    repeated = F.col("_again") if "_again" in parsed.columns else same & (F.row_number().over(newest) > 1)
    older = F.row_number().over(newest) > 1
    outcome = F.coalesce(given, F.when(repeated, "duplicate").when(older, "superseded").otherwise("insert"))
    return parsed.withColumn("_outcome", outcome).drop("_again")


def _newest_first(dataset: Dataset) -> list[Column]:
    """Newest version first; of equal versions the one that arrived first, which is the one that stays."""
    if dataset.sequence:
        return [F.desc(dataset.sequence), *[F.col(name) for name in ARRIVAL]]
    return [F.desc(name) for name in ARRIVAL]


def _within(names: Sequence[str], order: Iterable[Column], also_again: bool = False) -> WindowSpec:
    # Bad rows have a group of their own, so that they never outrank a good one.
    apart = [F.col("_rule").isNotNull(), *([F.col("_again")] if also_again else [])]
    return Window.partitionBy(*apart, *names).orderBy(*order)


def removed_again(staged: DataFrame, dataset: Dataset) -> DataFrame:
    """Outcomes of `classify` -> the same, but a row removed as an anomaly is a duplicate where an earlier load brought
    the same one and it was taken: it was released meanwhile, or came while nothing was removed."""
    names = dataset.identity or POSITION
    known = [F.col(name).alias(f"_k_{name}") for name in names]
    first = staged.where(F.col("_rule").isNull()).groupBy(*known).agg(F.min(F.struct(*ARRIVAL)).alias("_first"))
    same = reduce(Column.__and__, [F.col(name).eqNullSafe(F.col(f"_k_{name}")) for name in names])
    joined = staged.join(first, (F.col("_rule") == ANOMALY) & same, "left")
    again = F.coalesce(F.col("_first._load") < F.col("_load"), F.lit(False))
    outcome = F.when(again, F.lit("duplicate")).otherwise(F.col("_outcome"))
    return joined.select(*[outcome.alias(n) if n == "_outcome" else F.col(n) for n in staged.columns])


def comparable() -> Column:
    """Whether a row says what identifies it: a good one, or one that only a verdict removes."""
    return F.coalesce("_rule", F.lit(ANOMALY)) == ANOMALY


def against(staged: DataFrame, silver: DataFrame, dataset: Dataset, few: bool = False) -> DataFrame:
    """Outcomes of `classify` -> outcomes against what ``silver`` holds: an insert may turn out to be an update,
    duplicate or superseded; a row that only a verdict removes, a duplicate. With ``few`` the keys of ``staged`` are
    broadcast, so that silver is not shuffled."""
    keys = match_columns(dataset)
    compared = tuple(dict.fromkeys((*dataset.identity, *((dataset.sequence,) if dataset.sequence else ()))))
    wanted = staged.where(comparable()).select(*keys)
    named = [F.col(name).alias(f"_t_{name}") for name in dict.fromkeys((*keys, *compared))]
    held, asked = (
        silver.select(F.lit(True).alias("_t_"), *named),
        wanted.select(*[F.col(n).alias(f"_w_{n}") for n in keys]),
    )
    there = held.join(
        F.broadcast(asked) if few else asked,
        reduce(Column.__and__, [F.col(f"_t_{n}").eqNullSafe(F.col(f"_w_{n}")) for n in keys]),
        "left_semi",
    )
    # An identity may hold columns that are NULL, which are the same here as they are within a batch.
    on = reduce(Column.__and__, [F.col(name).eqNullSafe(F.col(f"_t_{name}")) for name in keys])
    joined = staged.join(F.broadcast(there) if few else there, on & comparable(), "left")
    found = F.col("_t_").isNotNull()
    if dataset.history == "latest":
        same = reduce(Column.__and__, [F.col(n).eqNullSafe(F.col(f"_t_{n}")) for n in dataset.identity])
        older = F.col(dataset.sequence) <= F.col(f"_t_{dataset.sequence}") if dataset.sequence else F.lit(False)
    else:
        same, older = F.lit(True), F.lit(False)
    first = F.col("_outcome") == "insert"
    outcome = (
        F.when(found & same & comparable(), F.lit("duplicate"))
        .when(first & found & older, F.lit("superseded"))
        .when(first & found, F.lit("update"))
        .otherwise(F.col("_outcome"))
    )
    return joined.select(*[outcome.alias(n) if n == "_outcome" else F.col(n) for n in staged.columns])


def read_before(staged: DataFrame, quarantined: DataFrame | None) -> DataFrame:
    """Outcomes of `classify` -> the same, but a bad row that an earlier pull brought in the same raw form is a
    duplicate: within the overlap rows are read again, and one that cannot be read has no identity but its text.

    ``quarantined`` are earlier rows of the quarantine. A row that was requeued keeps its place: it is none of these.
    """
    bad = F.col("_rule").isNotNull()
    place = [F.col("raw").alias("_known"), F.struct(*ARRIVAL).alias("_place")]
    places = [table.select(*place) for table in (staged.where(bad), quarantined) if table is not None]
    first = reduce(DataFrame.unionByName, places).groupBy("_known").agg(F.min("_place").alias("_first"))
    joined = staged.join(first, bad & (F.col("raw") == F.col("_known")), "left")
    again = F.coalesce(F.col("_first._file") != F.col("_file"), F.lit(False))
    outcome = F.when(again, F.lit("duplicate")).otherwise(F.col("_outcome"))
    return joined.select(*[outcome.alias(n) if n == "_outcome" else F.col(n) for n in staged.columns])


def match_columns(dataset: Dataset) -> tuple[str, ...]:
    """The columns by which a record finds its like in silver."""
    if dataset.history == "latest":
        return dataset.key
    return dataset.identity or POSITION


def versions(new: DataFrame, silver: DataFrame | None, dataset: Dataset) -> DataFrame:
    """New versions of some keys, and what silver holds of those keys -> every version with valid_from, valid_to
    (exclusive, null for the last) and is_current."""
    sequence = str(dataset.sequence)
    rows = new
    if silver is not None:
        keys = new.select(*dataset.key).distinct()
        held = silver.join(keys, list(dataset.key), "left_semi").drop(*SCD2_COLUMNS)
        rows = new.unionByName(held, allowMissingColumns=True)
    later = F.lead(sequence).over(Window.partitionBy(*dataset.key).orderBy(sequence))
    return rows.withColumns({"valid_from": F.col(sequence), "valid_to": later, "is_current": later.isNull()})
