"""SQL over the tables by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_pipeline import shared_shop

from drivetrain.errors import DrivetrainError
from drivetrain.query import Queries

pytestmark = pytest.mark.spark


@pytest.fixture
def queries(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Queries:
    shop = shared_shop(spark, tmp_path_factory)
    for database in ("bronze", "silver", "gold", "ops"):  # other tests' warehouses are in this catalog too
        spark.sql(f"DROP DATABASE IF EXISTS {database} CASCADE")
    return Queries(spark, shop.pipeline().conf)


@pytest.mark.parametrize(
    ("statement", "columns", "rows"),
    [
        ("select id, qty from orders order by id", ["id", "qty"], [("a", 3), ("b", 2)]),
        ("select o.id from silver.orders o join gold.sales s on s.n = o.qty", ["id"], [("b",)]),
        ("with sales as (select 7 as n) select n from sales", ["n"], [(7,)]),
        ("select count(*) n from bronze.orders where _entry = 'record'", ["n"], [(5,)]),
        ("select rule, reason from quarantine", ["rule", "reason"], [("type", "qty: 'x' is not a bigint")]),
        ("select rows_in from ops.ledger union all select units from best", ["rows_in"], [(5,), (5,)]),
        ("SELECT 1 AS one", ["one"], [(1,)]),
    ],
)
def test_reading(queries: Queries, statement: str, columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    found, values = queries.run(statement, None)
    assert (found, list(values)) == (columns, rows)


def test_limit_and_description(queries: Queries) -> None:
    assert len(list(queries.run("select id from orders", 1)[1])) == 1
    assert "qty" in [row[0] for row in queries.run("describe silver.orders", None)[1]]
    assert "orders" in [row[1] for row in queries.run("show tables in silver", None)[1]]
    columns, rows = queries.run("-- all; of them\nSHOW TABLES ;", None)
    assert columns == ["database", "table"] and {("gold", "sales"), ("ops", "quarantine")} < set(rows)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from orders",
        "drop table orders",
        "insert into silver.orders select * from orders",
        "update orders set qty = 1",
        "create table x as select 1",
        "truncate table silver.orders",
        "set spark.x=1",
        "alter table silver.orders add columns (x int)",
        "merge into silver.orders using sales on 1=1 when matched then delete",
        "with x as (select 1) insert into silver.orders select * from x",
        "optimize silver.orders",
        "vacuum silver.orders",
    ],
)
def test_writing_is_refused(queries: Queries, statement: str) -> None:
    before = list(queries.run("select * from orders order by id", None)[1])
    with pytest.raises(DrivetrainError):
        queries.run(statement, None)
    assert list(queries.run("select * from orders order by id", None)[1]) == before


@pytest.mark.parametrize(
    ("statement", "what", "fix"),
    [
        ("select * from oders", "there is no table oders", "silver.orders"),
        ("select * from silver.stock", "there is no table silver.stock", "did you mean"),
        ("select * from gold.orders", "there is no table gold.orders", "silver.orders"),
        ("select qyt from orders", "qyt", "message"),
        ("select (1", "", "write one SELECT, SHOW or DESCRIBE"),
        ("select 1; select 2", "", ""),
        ("select raise_error('no')", "no", "message"),
    ],
)
def test_mistakes_are_told(queries: Queries, statement: str, what: str, fix: str) -> None:
    with pytest.raises(DrivetrainError) as error:
        list(queries.run(statement, None)[1])
    problem = error.value.problems[0]
    assert problem.code == "sql" and what in problem.what and fix in problem.fix
    assert "\tat org.apache" not in problem.what


def test_an_empty_warehouse(queries: Queries, spark: Any, tmp_path: Any) -> None:
    conf = shared_shop(spark, None).pipeline().conf  # type: ignore[arg-type]
    empty = Queries(spark, replace(conf, settings=replace(conf.settings, warehouse=str(tmp_path))))
    with pytest.raises(DrivetrainError) as error:
        empty.run("select * from orders", None)
    assert error.value.problems[0].fix.startswith("run etl first")
