"""Which table stands where, and by which name it is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_contracts import make_dataset, make_gold
from test_pipeline import shared_shop
from test_plan import conf_of

from drivetrain import catalog


def test_every_table_has_a_place() -> None:
    assert catalog.places(conf_of([make_dataset(name="orders")], [make_gold("sales", "orders")])) == {
        ("bronze", "orders"): "/w/bronze/orders",
        ("silver", "orders"): "/w/silver/orders",
        ("gold", "sales"): "/w/gold/sales",
        ("ops", "ledger"): "/w/ops/ledger",
        ("ops", "checks"): "/w/ops/checks",
        ("ops", "steps"): "/w/ops/steps",
        ("ops", "profiles"): "/w/ops/profiles",
        ("ops", "speed"): "/w/ops/speed",
        ("ops", "alerts"): "/w/ops/alerts",
        ("ops", "replays"): "/w/ops/replays",
        ("ops", "verdicts"): "/w/ops/verdicts",
        ("ops", "anomalies"): "/w/ops/anomalies",
        ("ops", "drift"): "/w/ops/drift",
        ("ops", "trials"): "/w/ops/trials",
        ("ops", "labels"): "/w/ops/labels",
        ("ops", "models"): "/w/models",
        ("ops", "late"): "/w/late",
        ("ops", "manifest"): "/w/manifest",
        ("ops", "quarantine"): "/w/quarantine",
        ("default", "raw_unified_data"): "/w/raw_unified_data",
    }


@pytest.mark.spark
def test_a_path_with_quotes(spark: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "it's a \\ folder")
    spark.range(3).write.format("delta").save(path)
    for _ in range(2):
        catalog.add(spark, "odd", "quoted", path)
    assert spark.table("odd.quoted").count() == 3


@pytest.mark.spark
def test_what_has_appeared_is_registered_once(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The marks tell what is known, so that the catalog is not asked again."""
    shop = shared_shop(spark, tmp_path_factory)
    marks = shop.home / "warehouse" / "_catalog"
    made = {path.name for path in marks.iterdir()}
    assert {"bronze.orders", "silver.orders", "gold.sales", "gold.best", "ops.quarantine"} <= made
    assert not {"silver.stock", "bronze.stock", "default.raw_unified_data"} & made
    spark.sql("DROP DATABASE IF EXISTS gold CASCADE")
    (marks / "gold.sales").unlink()
    catalog.register(spark, shop.pipeline().conf)
    assert spark.table("gold.sales").count() == 1
    assert not spark.catalog.tableExists("gold.best")
    assert (marks / "gold.sales").exists()
