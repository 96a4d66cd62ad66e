"""Quality rules as Columns: which rows break which rule, and the measures of rules on whole tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from drivetrain import contracts
from drivetrain.odcs import OBJECT

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


def row_violations(
    columns: Sequence[contracts.Column], key: Sequence[str], rules: Iterable[contracts.Rule]
) -> list[Violation]:
    """What the contract says of single typed rows: required, enum, bounds, and the rules that quarantine."""
    found = [violation for column in columns for violation in _column_violations(column, key)]
    for rule in rules:
        if rule.action == "quarantine":
            text = F.lit(f"breaks {rule.name}: {rule.predicate}") if rule.predicate else _value_reason(rule, columns)
            found.append(Violation(rule.name, broken(rule), text))
    return found


def broken(rule: contracts.Rule) -> Column:
    """True for a row that breaks the rule; a predicate that is NULL counts as kept, as in SQL's WHERE."""
    if rule.predicate is not None:
        return F.coalesce(F.expr(rule.predicate), F.lit(False))
    return reduce(Column.__or__, [_broken_by_metric(rule, F.col(name)) for name in rule.columns])


def _broken_by_metric(rule: contracts.Rule, value: Column) -> Column:
    text = value.cast("string")
    if rule.metric == "nullValues":
        return value.isNull()
    if rule.metric == "missingValues":
        return value.isNull() | text.isin(*rule.missing_values)
    invalid = F.lit(False)
    if rule.valid_values:
        invalid = invalid | ~text.isin(*rule.valid_values)
    if rule.pattern is not None:
        invalid = invalid | ~text.rlike(_whole(rule.pattern))
    return F.coalesce(invalid, F.lit(False))


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
        found.append(Violation("enum", _true(~value.cast("string").isin(*column.enum)), reason))
    for name, limit in column.bounds:
        reason = F.concat(F.lit(f"{column.name} is '"), shown, F.lit(f"', its {name} is {limit}"))
        found.append(Violation("bounds", _true(_outside(value, column.type, name, limit)), reason))
    return found


def shown_value(column: contracts.Column, value: Column) -> Column:
    """The value as a reason may show it: reasons are for everybody, so personal data is not in them."""
    hidden = column.classification in ("personal", "restricted")
    return F.lit("•••") if hidden else F.substring(value.cast("string"), 1, 100)


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
    reasons = F.transform(F.split(told, BETWEEN), lambda part: F.regexp_replace(part, f"^[^{WITHIN}]*{WITHIN}", ""))
    reason = F.when(told != "", F.array_join(reasons, "; "))
    return rows.select(
        *[name for name in rows.columns if name != "_problem"], rule.alias("_rule"), reason.alias("_reason")
    )


def measure(rows: DataFrame, rules: Sequence[contracts.Rule]) -> list[Measured]:
    """The measure of each rule on ``rows``: one pass for all that are aggregates, one query for each other SQL rule."""
    queries = [rule for rule in rules if rule.query and rule.predicate is None]
    aggregates = [rule for rule in rules if rule not in queries]
    values: dict[str, float | None] = {}
    if aggregates:
        row = rows.agg(*[_aggregate(rule).alias(rule.name) for rule in aggregates]).first()
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


def _aggregate(rule: contracts.Rule) -> Column:
    if rule.metric == "rowCount":
        return F.count(F.lit(1))
    if rule.metric == "duplicateValues":
        counted = F.count(F.lit(1)) - F.count_distinct(F.struct(*map(F.col, rule.columns)))
    else:
        counted = F.count_if(broken(rule))
    return F.try_divide(counted * 100, F.count(F.lit(1))) if rule.percent else counted
