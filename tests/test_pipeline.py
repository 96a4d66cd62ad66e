"""The flow as a whole, where it goes wrong and where it goes on. `Shop` is the small pipeline of other tests too."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from pyspark.errors import PySparkException
from tiny import Tiny

from drivetrain import conf as reader
from drivetrain import plan
from drivetrain.pipeline import Outcome, Pipeline
from drivetrain.progress import Progress

pytestmark = pytest.mark.spark

CONTRACT = """\
apiVersion: v3.1.0
kind: DataContract
id: {name}
version: 1.0.0
status: active
servers:
  - {{server: local, type: local, path: "${{landing}}/{name}", format: csv}}
schema:
  - name: {name}
    logicalType: object
    quality:
      - {{name: sane, type: sql, query: "SELECT COUNT(*) FROM {{object}} WHERE qty > 100", mustBe: 0,
         customProperties: [{{property: action, value: stop}}]}}
      - {{name: many, metric: rowCount, mustBeGreaterThan: 2}}
    properties:
      - {{name: id, logicalType: string, primaryKey: true}}
      - {{name: qty, logicalType: integer, required: true}}
      - {{name: who, logicalType: string, classification: personal}}
      - {{name: at, logicalType: integer, required: true}}
customProperties:
  - {{property: sequence, value: at}}
"""
SALES = "SELECT COUNT(*) AS n, COALESCE(SUM(qty), 0) AS units FROM orders"
SALES_YAML = """\
owner: me
key: [n]
checks:
  - {name: not_thirteen, type: sql, query: "SELECT COUNT(*) FROM {object} WHERE units = 13", mustBe: 0}
"""


class Shop:
    """A folder with a conf, a landing folder and a warehouse; each `run` is a new Pipeline, by a name of its own."""

    def __init__(self, spark: Any, home: Path) -> None:
        self.spark, self.home, self.runs = spark, home, 0
        for name, text in {
            "base.yaml": "company: Shop\nlanding: landing\nwarehouse: warehouse\n",
            "local.yaml": "",
            "datasets/orders.yaml": CONTRACT.format(name="orders"),
            "datasets/stock.yaml": CONTRACT.format(name="stock"),
            "gold/sales.sql": SALES,
            "gold/sales.yaml": SALES_YAML,
            "gold/best.sql": "SELECT MAX(units) AS units FROM sales",
            "gold/best.yaml": "owner: me\nkey: [units]\n",
        }.items():
            self.put(f"conf/{name}", text)
        (home / "landing" / "stock").mkdir(parents=True)
        (home / "landing" / "orders").mkdir()

    def put(self, name: str, text: str) -> None:
        (self.home / name).parent.mkdir(parents=True, exist_ok=True)
        (self.home / name).write_text(text, "utf-8")

    def orders(self, name: str, *rows: str) -> None:
        self.put(f"landing/orders/{name}", "\n".join(["id,qty,who,at", *rows, ""]))

    def name(self, run: int) -> str:
        return f"{self.home.name}.{run}"

    def pipeline(self) -> Pipeline:
        self.runs += 1
        conf, run = reader.load(self.home / "conf", "local", environ={}), self.name(self.runs)
        return Pipeline(self.spark, conf, run, "batch", Progress(run))

    def run(self) -> Outcome:
        return self.pipeline().transform()

    def rows(self, path: str, *columns: str) -> list[tuple[Any, ...]]:
        return sorted(
            map(tuple, self.spark.read.format("delta").load(f"{self.home}/warehouse/{path}").select(*columns).collect())
        )


def test_days_that_go_wrong_and_are_put_right(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(spark, tmp_path)
    shop.orders("1.csv", "a,1,x,1", "b,2,y,1", "c,x,z,1")

    # A run that dies between silver and its ledger.
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "publish_all", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shop.run()
    assert shop.rows("silver/orders", "id", "qty") == [("a", 1), ("b", 2)]
    assert not (tmp_path / "warehouse" / "ops").exists()

    # The next one writes that ledger row, once, and goes on to gold.
    outcome = shop.run()
    assert [(row.run, row.rows_in, row.good, row.quarantined) for row in outcome.ledger] == [(shop.name(1), 3, 2, 1)]
    assert (outcome.published, outcome.problems) == (["sales", "best"], [])
    assert shop.run().ledger == []
    assert shop.rows("ops/ledger", "run", "dataset", "rows_in") == [(shop.name(1), "orders", 3)]
    assert shop.rows("gold/sales", "n", "units") == [(2, 3)] and shop.rows("gold/best", "units") == [(3,)]

    # Gold says which versions it was made from, and is not made again from the same.
    meta = shop.pipeline().table("gold", "sales").metadata(0)
    assert meta and (meta["inputs"], meta["read"], meta["run"]) == ({"orders": 0}, {"orders": 0}, shop.name(2))

    # A check stops the dataset: silver stays, and so does gold. Nothing is lost once the cause is gone.
    shop.orders("2.csv", "d,1000,x,2", "a,5,x,2")
    outcome = shop.run()
    assert [(p.code, p.where) for p in outcome.problems] == [
        ("check", f"{tmp_path}/conf/datasets/orders.yaml:1 (orders)")
    ]
    assert "sane: 1.0, mustBe 0" in outcome.problems[0].what
    assert (
        shop.rows("silver/orders", "id", "qty") == [("a", 1), ("b", 2)]
        and outcome.published == []
        and outcome.ledger == []
    )
    stopped = [
        row for row in shop.rows("ops/checks", "run", "rule", "action", "measured", "passed") if row[0] == outcome.run
    ]
    assert stopped == [(outcome.run, "many", "flag", 2.0, False), (outcome.run, "sane", "stop", 1.0, False)]
    lines = {line.table: (line.action, line.why) for line in plan.intents(shop.pipeline())}
    assert lines["bronze.orders"] == ("keep", "no new files; at load 2")
    assert lines["silver.orders"] == ("append or merge", "records of a run that did not end; history latest")
    assert lines["gold.sales"] == ("build", "its inputs will change: orders") and lines["gold.best"][0] == "build"
    assert lines["silver.stock"][0] == "keep"
    text = CONTRACT.format(name="orders").replace("qty > 100", "qty > 5000")
    shop.put("conf/datasets/orders.yaml", text)
    outcome = shop.run()
    assert outcome.problems == [] and [
        (row.first_load, row.last_load, row.inserted, row.updated) for row in outcome.ledger
    ] == [(2, 2, 1, 1)]
    assert shop.rows("silver/orders", "id", "qty") == [("a", 5), ("b", 2), ("d", 1000)]
    assert shop.rows("gold/sales", "n", "units") == [(3, 1007)]

    # A check of gold keeps the new version back, and what reads it stays too.
    shop.orders("3.csv", "d,6,x,3")
    outcome = shop.run()
    assert [problem.code for problem in outcome.problems] == ["check"] and outcome.published == []
    assert shop.rows("gold/sales", "n", "units") == [(3, 1007)] and shop.rows("gold/_rejected/sales", "n", "units") == [
        (3, 13)
    ]
    assert shop.rows("gold/best", "units") == [(1007,)]

    # Duplicates only change nothing that gold could see.
    shop.put("conf/gold/sales.yaml", SALES_YAML.replace("13", "-1"))
    assert shop.run().published == ["sales", "best"]
    shop.orders("4.csv", "d,6,x,3", "d,9,x,1")
    outcome = shop.run()
    assert [(row.duplicate, row.superseded, row.inserted) for row in outcome.ledger] == [(1, 1, 0)]
    assert outcome.published == []


def test_one_dataset_does_not_stop_another(spark: Any, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    (tmp_path / "landing" / "orders").rmdir()
    shop.put("landing/stock/1.csv", "id,qty,who,at\na,1,x,1\n")
    shop.put("landing/stock/2.csv", "")
    outcome = shop.run()
    assert [(problem.code, problem.where.rsplit(" ", 1)[1]) for problem in outcome.problems] == [
        ("landing", "(orders)")
    ]
    assert shop.rows("silver/stock", "id") == [("a",)]
    assert outcome.published == [], "gold of a dataset that never came is not there yet"
    assert shop.rows("quarantine", "rule", "_file") == [("empty_file", "2.csv")]
    shop.run()
    assert shop.rows("quarantine", "rule", "_file") == [("empty_file", "2.csv")], "a file is put down once"


def test_names_pick_datasets(spark: Any, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    shop.orders("1.csv", "a,1,x,1")
    shop.put("landing/stock/1.csv", "id,qty,who,at\na,1,x,1\n")
    outcome = shop.pipeline().transform(["stock"])
    assert [row.dataset for row in outcome.ledger] == ["stock"]
    assert not (tmp_path / "warehouse" / "bronze" / "orders").exists()


SHARED: dict[str, Shop] = {}


def shared_shop(spark: Any, factory: pytest.TempPathFactory) -> Shop:
    """A shop after one run, for tests that only look at it."""
    if "shop" not in SHARED:
        shop = SHARED["shop"] = Shop(spark, factory.mktemp("shop"))
        shop.orders("1.csv", "a,1,anna,1", "b,2,ben,1", "c,x,carl,1", "a,3,anna,2", "a,3,anna,2")
        shop.run()
    return SHARED["shop"]


@pytest.mark.parametrize(("fails", "goes_on"), [("refine_loads", "raw_unified_data"), ("unify", "silver/orders")])
def test_of_silver_and_the_unified_table_each_goes_on_without_the_other(
    spark: Any, tmp_path: Path, fails: str, goes_on: str
) -> None:
    """What failed comes with the next run; nothing comes twice."""
    shop = Shop(spark, tmp_path)
    shop.put("conf/datasets/orders.yaml", f"{CONTRACT.format(name='orders')}  - {{property: unify, value: true}}\n")
    shop.orders("1.csv", "a,1,x,1", "b,2,y,1", "c,3,z,1")
    made = shop.pipeline()
    with mock.patch.object(made, fails, side_effect=OSError("the disk is away")):
        outcome = made.transform()
    assert [problem.code for problem in outcome.problems] == ["spark"] and made.table(".", goes_on).read().count() == 3
    assert not made.table(".", {"refine_loads": "silver/orders", "unify": "raw_unified_data"}[fails]).exists()
    assert not shop.pipeline().transform().problems
    assert [made.table(".", name).read().count() for name in ("silver/orders", "raw_unified_data")] == [3, 3]


def test_silver_for_which_memory_is_short_is_tried_once_more(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing broadcast, and told of in the step; short again, it fails, and silver and the log are as before."""
    tiny, seen = Tiny(spark, tmp_path), list[str]()
    tiny.dataset("orders", {"id": {"primaryKey": True}, "amount": {}})
    tiny.land("orders/1.csv", "id,amount", "1,5")
    assert tiny.run().problems == []
    written, times = Pipeline.written, 1

    def short(self: Pipeline, *given: Any) -> Any:
        seen.append(spark.conf.get("spark.sql.autoBroadcastJoinThreshold"))
        if len(seen) <= times:
            raise PySparkException("java.lang.OutOfMemoryError: Java heap space")
        return written(self, *given)

    monkeypatch.setattr(Pipeline, "written", short)
    tiny.land("orders/2.csv", "id,amount", "1,6", "2,7")
    assert tiny.run().problems == []
    assert seen[0] != "-1" and seen[1:] == ["-1"]
    assert sorted(tiny.rows("silver/orders", "id", "amount")) == [("1", "6"), ("2", "7")]
    assert tiny.rows("ops/steps", "step", "failed", where="short_of_memory") == [("silver", False)]
    seen.clear()
    times = 2
    tiny.land("orders/3.csv", "id,amount", "3,8")
    assert [problem.code for problem in tiny.run().problems] != []
    assert len(seen) == 2 and len(tiny.rows("silver/orders", "id")) == 2
    assert tiny.run().problems == [] and len(tiny.rows("silver/orders", "id")) == 3
