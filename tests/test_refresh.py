"""A refreshed gold table is the table that a full build gives, whatever changed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tiny import KEY, WHOLE, Tiny

from drivetrain import gold, refresh, sqltext

SQL = """SELECT shop, n % 3 AS kind, SUM(n) AS total, COUNT(DISTINCT day) AS days
FROM sales WHERE n > 1 GROUP BY shop, n % 3"""


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        (SQL, {"shop": "shop", "kind": "n % 3"}),
        ("SELECT s.day AS d, MAX(s.n) AS m FROM sales s GROUP BY s.day HAVING m > 1 ORDER BY d", {"d": "day"}),
        ("SELECT n + 1 AS next, COUNT(*) AS c FROM sales GROUP BY next", {"next": "n + 1"}),
        ("SELECT COUNT(*) AS c FROM sales", None),
        ("SELECT shop, n FROM sales GROUP BY ALL", None),
        ("SELECT shop, COUNT(*) AS c FROM sales GROUP BY 1", None),
        ("SELECT shop, COUNT(*) AS c FROM sales GROUP BY ROLLUP (shop)", None),
        ("SELECT shop, COUNT(*) AS c FROM sales GROUP BY shop LIMIT 3", None),
        ("SELECT DISTINCT shop FROM sales GROUP BY shop, day", None),
        ("SELECT shop, SUM(COUNT(*)) OVER () AS c FROM sales GROUP BY shop", None),
        ("SELECT shop, COUNT(*) AS c FROM sales JOIN other USING (shop) GROUP BY shop", None),
        ("SELECT shop, COUNT(*) AS c FROM sales WHERE n > (SELECT 1) GROUP BY shop", None),
        ("WITH s AS (SELECT * FROM sales) SELECT shop, COUNT(*) AS c FROM s GROUP BY shop", None),
    ],
)
def test_only_plain_groups_of_one_table_are_refreshed(sql: str, columns: dict[str, str] | None) -> None:
    assert sqltext.group_columns(sqltext.select(sql)) == columns


def some_changes(rng: random.Random, run: int) -> list[str]:
    """Versions of some of 40 keys, which move between shops, kinds and in and out of the query's filter."""
    return [
        f"{rng.randrange(40)},{rng.choice(('a', 'b', ''))},{rng.randrange(8)},2026-01-0{rng.randrange(1, 9)},{run}"
        for _ in range(25 if run == 1 else 4)
    ]


@pytest.mark.spark
def test_a_refresh_equals_a_full_build(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, rng, refreshed = Tiny(spark, tmp_path), random.Random(3), []
    columns = {"id": KEY, "shop": {}, "n": WHOLE, "day": {"logicalType": "date"}, "at": {**WHOLE, "required": True}}
    tiny.dataset("sales", columns, sequence="at")
    tiny.gold(
        "totals",
        SQL.replace("shop,", "COALESCE(shop, '-') AS shop,", 1).replace("BY shop", "BY COALESCE(shop, '-')"),
        ["shop", "kind"],
    )
    replaced = refresh.replaced
    monkeypatch.setattr(refresh, "replaced", lambda *args: refreshed.append(1) or replaced(*args))
    for run in range(1, 5):
        tiny.land(f"sales/{run}.csv", "id,shop,n,day,at", *dict.fromkeys(some_changes(rng, run)))
        pipeline = tiny.pipeline()
        assert pipeline.transform().problems == []
        table = pipeline.conf.gold["totals"]
        whole = gold.build(spark, table, {"sales": tiny.frame("silver/sales")})
        assert tiny.rows("gold/totals", *whole.columns) == sorted(map(tuple, whole.collect()), key=str)
    assert len(refreshed) == 3, "every run after the first refreshes"
