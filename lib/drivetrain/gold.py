"""Gold: each table from its SQL over one set of silver versions; written, checked, and only then published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame, SparkSession

from drivetrain.checks import Measured, measure
from drivetrain.contracts import BUILT_IN_CHECKS, GoldTable, Rule


def build(spark: SparkSession, table: GoldTable, inputs: Mapping[str, DataFrame]) -> DataFrame:
    """The query's result over ``inputs``, which stand in for the tables that it names."""
    for name in table.inputs:
        inputs[name].createOrReplaceTempView(name)
    try:
        return spark.sql(table.sql)
    finally:
        for name in table.inputs:
            spark.catalog.dropTempView(name)


def rules(table: GoldTable) -> list[Rule]:
    """The table's checks, and those that every table has: the key is unique and nowhere null."""
    unique = Rule(BUILT_IN_CHECKS[0], "stop", "mustBe", 0, metric="duplicateValues", columns=table.key)
    whole = Rule(BUILT_IN_CHECKS[1], "stop", "mustBe", 0, metric="nullValues", columns=table.key)
    return [unique, whole, *table.rules]


def audit(candidate: DataFrame, table: GoldTable) -> list[Measured]:
    """Every check of the table, measured on the candidate."""
    return measure(candidate, rules(table))


def fails(measured: Sequence[Measured]) -> list[Measured]:
    """The checks that keep the candidate from being published."""
    return [item for item in measured if item.rule.action == "stop" and not item.passed]
