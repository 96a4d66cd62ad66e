"""Rules as Columns: which rows break them, and what they measure."""

from __future__ import annotations

from typing import Any

import pytest
from pyspark.sql import DataFrame
from test_contracts import make_column

from drivetrain.checks import Measured, Violation, broken, explained, measure, problem, row_violations
from drivetrain.contracts import Rule

ROWS = [("a", 1, 1.5), ("b", None, 2.5), ("a", 3, None), ("", 4, -1.0), (None, 4, 0.0)]
SCHEMA = "name string, qty bigint, price double"
TYPES = {"name": "string", "qty": "bigint", "price": "double"}


def rule(name: str, **changes: Any) -> Rule:
    return Rule(**{"name": name, "action": "flag", "operator": "mustBe", "threshold": 0, **changes})


OF_ROWS = [
    (rule("nulls", metric="nullValues", columns=("qty",)), [1]),
    (rule("nulls_of_two", metric="nullValues", columns=("qty", "price")), [1, 2]),
    (rule("missing", metric="missingValues", columns=("name",), missing_values=("", "a")), [0, 2, 3, 4]),
    (rule("missing_numbers", metric="missingValues", columns=("qty",), missing_values=("4",)), [1, 3, 4]),
    (rule("values", metric="invalidValues", columns=("name",), valid_values=("a", "")), [1]),
    (rule("numbers", metric="invalidValues", columns=("qty",), valid_values=("1", "3")), [3, 4]),
    (rule("pattern", metric="invalidValues", columns=("name",), pattern="[a-z]"), [3]),
    (rule("pattern_is_whole", metric="invalidValues", columns=("name",), pattern="|x"), [0, 1, 2]),
    (rule("both", metric="invalidValues", columns=("name",), valid_values=("a", "b", ""), pattern="[b-z]*"), [0, 2]),
    (rule("sql", predicate="qty < price"), [0]),
    (rule("sql_nulls_pass", predicate="NOT (qty > 3)"), [0, 2]),
]
AGGREGATES = [
    (rule("rows", metric="rowCount"), 5),
    (rule("twice", metric="duplicateValues", columns=("qty",)), 1),
    (rule("twice_percent", metric="duplicateValues", columns=("name",), percent=True), 20),
    (rule("twice_of_two", metric="duplicateValues", columns=("name", "qty")), 0),
    (rule("nulls_percent", metric="nullValues", columns=("qty",), percent=True), 20),
    (rule("sql_percent", predicate="qty >= 3", percent=True), 60),
    (rule("own_query", query="SELECT MAX(qty) - MIN(qty) FROM __object__"), 3),
    (rule("other_query", query="SELECT AVG(price) FROM __object__ WHERE name = 'a'"), 1.5),
    (rule("null_query", query="SELECT MAX(qty) FROM __object__ WHERE name = 'zzz'"), None),
    (rule("no_row_query", query="SELECT qty FROM __object__ WHERE name = 'zzz'"), None),
]


@pytest.mark.spark
def test_which_rows_break_which_rule(spark: Any) -> None:
    rows = spark.createDataFrame([(i, *row) for i, row in enumerate(ROWS)], f"i int, {SCHEMA}")
    found = rows.select("i", *[broken(r, TYPES).alias(r.name) for r, _ in OF_ROWS]).collect()
    assert {r.name: [row["i"] for row in found if row[r.name]] for r, _ in OF_ROWS} == {
        r.name: which for r, which in OF_ROWS
    }
    assert all(row[r.name] is not None for row in found for r, _ in OF_ROWS)


@pytest.mark.spark
def test_every_metric_is_measured(spark: Any) -> None:
    rows = spark.createDataFrame(ROWS, SCHEMA)
    expected = [(r, len(which)) for r, which in OF_ROWS] + AGGREGATES
    measured = measure(rows, [r for r, _ in expected])
    assert [(item.rule.name, item.value) for item in measured] == [(r.name, value) for r, value in expected]
    assert not spark.catalog.tableExists("__object__")


@pytest.mark.spark
def test_an_empty_table(spark: Any) -> None:
    """Counts are 0; a share of nothing, like the maximum of nothing, is unknown and does not pass."""
    measured = {
        item.rule.name: item
        for item in measure(spark.createDataFrame([], SCHEMA), [r for r, _ in OF_ROWS + AGGREGATES])
    }
    assert all(measured[r.name].value == 0 and measured[r.name].passed for r, _ in OF_ROWS)
    assert {name for name, item in measured.items() if item.value is None} == {
        "twice_percent", "nulls_percent", "sql_percent", "own_query", "other_query", "null_query", "no_row_query",
    }  # fmt: skip
    assert not measured["nulls_percent"].passed


COLUMNS = (
    make_column(
        "name", required=True, enum=("a", "b"), bounds=(("minLength", 1), ("maxLength", 2), ("pattern", "[a-y]*"))
    ),
    make_column("qty", "bigint", bounds=(("minimum", 1), ("maximum", 9))),
    make_column("price", "decimal(5,2)", bounds=(("exclusiveMinimum", 0), ("exclusiveMaximum", 10))),
    make_column("day", "date", bounds=(("minimum", "2026-01-05"),)),
)
JUDGED = [  # name, qty, price, day, the first rule that is broken, and all reasons
    ("a", 1, "0.01", "2026-01-05", None, None),
    ("b", 9, "9.99", None, None, None),
    ("a", None, None, None, None, None),
    (None, 1, "1", None, "required", "name is empty"),
    ("c", 1, "1", None, "enum", "name is 'c', not one of a, b"),
    ("a", 0, "1", None, "bounds", "qty is '0', its minimum is 1"),
    ("a", 10, "0", None, "bounds", "qty is '10', its maximum is 9; price is '0.00', its exclusiveMinimum is 0"),
    ("a", 1, "10", None, "bounds", "price is '10.00', its exclusiveMaximum is 10"),
    ("a", 1, "1", "2026-01-04", "bounds", "day is '2026-01-04', its minimum is 2026-01-05"),
    (
        "zzz",
        8,
        "1",
        None,
        "enum",
        "name is 'zzz', not one of a, b; name is 'zzz', its maxLength is 2; name is 'zzz', its pattern is [a-y]*",
    ),
    ("a", 7, "1", None, "unlucky", "breaks unlucky: qty = 7"),
    ("b", 5, "5", None, "fives", "breaks fives: qty, price is 5, 5.00"),
]


def judged(rows: DataFrame, violations: list[Violation]) -> DataFrame:
    return explained(rows.withColumn("_problem", problem(violations)))


@pytest.mark.spark
def test_rows_are_tagged_with_the_first_rule_and_every_reason(spark: Any) -> None:
    rules = [
        rule("unlucky", action="quarantine", predicate="qty = 7"),
        rule(
            "fives", action="quarantine", metric="missingValues", columns=("qty", "price"), missing_values=("5", "5.00")
        ),
        rule("only_flagged", predicate="qty = 1"),
    ]
    texts = spark.createDataFrame(
        [(i, *row[:4]) for i, row in enumerate(JUDGED)], "i int, name string, qty bigint, price string, day string"
    )
    rows = texts.selectExpr("i", "name", "qty", "cast(price as decimal(5,2)) price", "cast(day as date) day")
    plain = list(row_violations(COLUMNS, ("name",), rules))
    # A missing value breaks a missingValues rule too, so rows without qty or price are left to the other tests here.
    found = {row["i"]: (row["_rule"], row["_reason"]) for row in judged(rows.where("qty IS NOT NULL"), plain).collect()}
    assert found == {i: row[4:] for i, row in enumerate(JUDGED) if row[1] is not None}
    assert judged(rows, []).where("_rule IS NOT NULL OR _reason IS NOT NULL").count() == 0


def test_a_measure_says_itself() -> None:
    item = Measured(rule("few", operator="mustBeLessThan", threshold=5, percent=True), 7.5)
    assert str(item) == "few: 7.5 %, mustBeLessThan 5 %"
    assert not item.passed and Measured(item.rule, 4.9).passed
