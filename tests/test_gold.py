"""Gold tables: their checks, and the one set of versions that they are made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyspark.testing import assertDataFrameEqual
from test_contracts import make_gold
from test_pipeline import Shop

from drivetrain import gold
from drivetrain.checks import Measured
from drivetrain.contracts import Rule


def test_the_key_is_always_checked() -> None:
    own = Rule("own", "flag", "mustBe", 0, predicate="n < 0")
    found = gold.rules(make_gold("g", "a", key=("x", "y"), rules=(own,)))
    assert [(rule.metric, rule.columns, rule.action) for rule in found[:2]] == [
        ("duplicateValues", ("x", "y"), "stop"),
        ("nullValues", ("x", "y"), "stop"),
    ]
    assert found[2:] == [own]


def test_what_fails() -> None:
    stop, flag = (Rule(action, action, "mustBe", 0, metric="rowCount") for action in ("stop", "flag"))  # type: ignore[arg-type]
    measured = [Measured(stop, 0.0), Measured(stop, 1.0), Measured(stop, None), Measured(flag, 1.0)]
    assert gold.fails(measured) == measured[1:3]


@pytest.mark.spark
def test_build_and_audit(spark: Any) -> None:
    table = make_gold(
        "g",
        "orders",
        key=("id",),
        sql="WITH x AS (SELECT id, qty FROM orders) SELECT id, SUM(qty) AS n FROM x GROUP BY ALL",
    )
    orders = spark.createDataFrame([("a", 1), ("a", 2), (None, 3)], "id string, qty int")
    built = gold.build(spark, table, {"orders": orders})
    assertDataFrameEqual(built, spark.createDataFrame([("a", 3), (None, 3)], "id string, n bigint"))
    assert not spark.catalog.tableExists("orders")
    assert [(item.rule.name, item.value, item.passed) for item in gold.audit(built, table)] == [
        ("key_unique", 0, True),
        ("key_not_null", 1, False),
    ]
    twice = make_gold("g", "orders", key=("id",), sql="SELECT id, qty FROM orders")
    assert gold.audit(gold.build(spark, twice, {"orders": orders}), twice)[0].value == 1


@pytest.mark.spark
def test_gold_reads_the_versions_that_were_pinned(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that come to silver while gold is being built are for the next run."""
    shop = Shop(spark, tmp_path)
    shop.orders("1.csv", "a,1,x,1")
    build = gold.build

    def slow(spark_: Any, table: Any, inputs: Any) -> Any:
        if table.name == "sales" and not (tmp_path / "landing" / "orders" / "2.csv").exists():
            shop.orders("2.csv", "b,41,x,1")
            other = shop.pipeline()
            other.ingest(other.conf.datasets["orders"])
            other.refine(other.conf.datasets["orders"])
        return build(spark_, table, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(gold, "build", slow)
        assert shop.run().problems == []
    assert len(shop.rows("silver/orders", "id")) == 2, "they did come"
    assert shop.rows("gold/sales", "n", "units") == [(1, 1)]
    assert shop.run().published == ["sales", "best"]
    assert shop.rows("gold/sales", "n", "units") == [(2, 42)]
