"""Quality rules as Columns: which rows break which rule, and the measures of rules on whole tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from drivetrain import contracts
from drivetrain.odcs import OBJECT
from drivetrain.session import FAILURES, is_data_error

WITHIN, BETWEEN = "\x1f", "\x1e"  # between a rule and its reason, and between two of them


@dataclass(frozen=True)
class Violation:
    """A condition that is true for a row which breaks ``rule``, and the text that says how."""

    rule: str
    broken: Column
    reason: Column


@dataclass(frozen=True)
class Measured:
    """A rule's measure on one table."""

    rule: contracts.Rule
    value: float | None

    @property
    def passed(self) -> bool:
        return self.rule.holds(self.value)

    def __str__(self) -> str:
        unit = " %" if self.rule.percent else ""
        return f"{self.rule.name}: {self.value}{unit}, {self.rule.operator} {self.rule.threshold}{unit}"


def attempted(text: str) -> Column:
    """A Spark SQL expression's value as an array of one; NULL where computing it raises an error.

    The lambda keeps Spark from computing what several expressions share before, and so outside of, the attempt.
    """
    column = F.transform(F.array(F.lit(0)), lambda _: F.expr(text))
    jvm = SparkSession.active()._jvm
    convert = jvm.org.apache.spark.sql.classic.ExpressionUtils  # type: ignore[union-attr]
    attempt = jvm.org.apache.spark.sql.catalyst.expressions.TryEval(convert.expression(column._jc))  # type: ignore[union-attr]
    return Column(convert.column(attempt))


def row_violations(
    columns: Sequence[contracts.Column],
    key: Sequence[str],
    rules: Iterable[contracts.Rule],
    careful: bool = False,
) -> list[Violation]:
    """What the contract says of single typed rows: required, enum, bounds, and the rules that quarantine.

    With ``careful`` a row on which a rule's SQL raises an error breaks that rule; else it ends the query.
    """
    found = [violation for column in columns for violation in _column_violations(column, key)]
    types = {column.name: column.type for column in columns}
    for rule in rules:
        if rule.action == "quarantine":
            text = F.lit(f"breaks {rule.name}: {rule.predicate}") if rule.predicate else _value_reason(rule, columns)
            found.append(Violation(rule.name, broken(rule, types, careful), text))
    return found


def broken(rule: contracts.Rule, types: Mapping[str, str], careful: bool = False) -> Column:
    """True for a row that breaks the rule; a predicate that is NULL counts as kept, as in SQL's WHERE.

    ``types`` are those of the columns: values that the contract lists are compared as such, not as text.
    """
    if rule.predicate is not None and careful:
        attempt = attempted(rule.predicate)
        return F.coalesce(F.get(attempt, F.lit(0)), attempt.isNull())
    if rule.predicate is not None:
        return F.coalesce(F.expr(rule.predicate), F.lit(False))
    return reduce(Column.__or__, [_broken_by_metric(rule, F.col(name), types[name]) for name in rule.columns])


def _broken_by_metric(rule: contracts.Rule, value: Column, kind: str) -> Column:
    if rule.metric == "nullValues":
        return value.isNull()
    if rule.metric == "missingValues":  # one that is not of the column's type cannot stand there
        said = [value.eqNullSafe(F.lit(text).try_cast(kind)) for text in rule.missing_values]
        return reduce(Column.__or__, said, value.isNull())
    invalid = F.lit(False)
    if rule.valid_values:
        invalid = invalid | ~_among(value, rule.valid_values, kind)
    if rule.pattern is not None:
        invalid = invalid | ~value.cast("string").rlike(_whole(rule.pattern))
    return F.coalesce(invalid, F.lit(False))


def _among(value: Column, texts: Sequence[str], kind: str) -> Column:
    return value.isin(*[F.lit(text).cast(kind) for text in texts])


def _whole(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _value_reason(rule: contracts.Rule, columns: Sequence[contracts.Column]) -> Column:
    shown = {column.name: shown_value(column, F.col(column.name)) for column in columns}
    values = F.concat_ws(", ", *[F.coalesce(shown[name], F.lit("NULL")) for name in rule.columns])
    return F.concat(F.lit(f"breaks {rule.name}: {', '.join(rule.columns)} is "), values)


def _column_violations(column: contracts.Column, key: Sequence[str]) -> list[Violation]:
    value, found = F.col(column.name), []
    shown = shown_value(column, value)
    if column.required or column.name in key:
        found.append(Violation("required", value.isNull(), F.lit(f"{column.name} is empty")))
    if column.enum:
        listed = ", ".join(column.enum[:10])
        reason = F.concat(F.lit(f"{column.name} is '"), shown, F.lit(f"', not one of {listed}"))
        found.append(Violation("enum", _true(~_among(value, column.enum, column.type)), reason))
    for name, limit in column.bounds:
        reason = F.concat(F.lit(f"{column.name} is '"), shown, F.lit(f"', its {name} is {limit}"))
        found.append(Violation("bounds", _true(_outside(value, column.type, name, limit)), reason))
    return found


def shown_value(column: contracts.Column, value: Column) -> Column:
    """The value as a reason may show it: reasons are for everybody, so personal data is not in them."""
    return F.substring(value.cast("string"), 1, 100) if column.is_open else F.lit("•••")


def _true(condition: Column) -> Column:
    return F.coalesce(condition, F.lit(False))


def _outside(value: Column, kind: str, name: str, limit: Any) -> Column:
    bound = F.lit(str(limit)).cast(kind if name.endswith("imum") else "string")
    tests: Mapping[str, Any] = {
        "minimum": lambda: value < bound,
        "maximum": lambda: value > bound,
        "exclusiveMinimum": lambda: value <= bound,
        "exclusiveMaximum": lambda: value >= bound,
        "minLength": lambda: F.length(value) < limit,
        "maxLength": lambda: F.length(value) > limit,
        "pattern": lambda: ~value.rlike(_whole(str(limit))),
    }
    return tests[name]()  # type: ignore[no-any-return]


def problem(violations: Sequence[Violation]) -> Column:
    """One text that names each broken rule and its reason, empty for a good row; each condition is evaluated once."""
    return F.concat_ws(BETWEEN, *[F.when(v.broken, F.concat(F.lit(v.rule + WITHIN), v.reason)) for v in violations])


def explained(rows: DataFrame) -> DataFrame:
    """_problem -> _rule (the first rule that the row breaks, null for a good row) and _reason (all of them)."""
    told = F.col("_problem")
    rule = F.when(told != "", F.substring_index(told, WITHIN, 1))
    begins = f"[a-z][a-z0-9_]*{WITHIN}"  # looked for with the separator, which may stand in data too
    parts = F.split(told, f"{BETWEEN}(?={begins})")
    reasons = F.transform(parts, lambda part: F.regexp_replace(part, f"^{begins}", ""))
    reason = F.when(told != "", F.array_join(reasons, "; "))
    return rows.select(
        *[name for name in rows.columns if name != "_problem"], rule.alias("_rule"), reason.alias("_reason")
    )


def measure(rows: DataFrame, rules: Sequence[contracts.Rule]) -> list[Measured]:
    """The measure of each rule on ``rows``: one pass for all that are aggregates, one query for each other SQL rule."""
    queries = [rule for rule in rules if rule.query and rule.predicate is None]
    aggregates = [rule for rule in rules if rule not in queries]
    types = {name.lower(): kind for name, kind in rows.dtypes}  # a gold query may write them in any case
    values: dict[str, float | None] = {}
    if aggregates:
        try:
            row = rows.agg(*[_aggregate(rule, types).alias(rule.name) for rule in aggregates]).first()
        except FAILURES as error:
            if not is_data_error(error):
                raise
            row = rows.agg(*[_aggregate(rule, types, careful=True).alias(rule.name) for rule in aggregates]).first()
        values = {rule.name: _number(row[rule.name] if row else None) for rule in aggregates}
    for rule in queries:
        rows.createOrReplaceTempView(OBJECT)
        try:
            first = rows.sparkSession.sql(str(rule.query)).first()
        finally:
            rows.sparkSession.catalog.dropTempView(OBJECT)
        values[rule.name] = _number(first[0] if first else None)
    return [Measured(rule, values[rule.name]) for rule in rules]


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _aggregate(rule: contracts.Rule, types: Mapping[str, str], careful: bool = False) -> Column:
    if rule.metric == "rowCount":
        return F.count(F.lit(1))
    if rule.metric == "duplicateValues":
        counted = F.count(F.lit(1)) - F.count_distinct(F.struct(*map(F.col, rule.columns)))
    else:
        counted = F.count_if(broken(rule, types, careful))
    return F.try_divide(counted * 100, F.count(F.lit(1))) if rule.percent else counted
