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


@pytest.mark.spark
def test_old_dates_and_names_in_another_case(spark: Any, tmp_path: Path) -> None:
    """Groups by days that Python writes otherwise than Spark, or does not have at all, under a name in capitals."""
    tiny = Tiny(spark, tmp_path)
    columns = {"id": KEY, "day": {"logicalType": "date", "logicalTypeOptions": {"format": "yyyyMMdd"}}}
    tiny.dataset("sales", columns)
    tiny.gold("totals", "SELECT day AS Day, COUNT(*) AS sales FROM sales GROUP BY day", ["day"])
    for run, day in enumerate(("20260101", "00010101", "00000101", "20260102")):
        tiny.land(f"sales/{run}.csv", "id,day", f"{run},{day}", f"x{run},20260101")
        assert tiny.run().problems == []
    found = tiny.rows("gold/totals", "cast(day AS string)", "sales")
    assert found == [("0000-01-01", 1), ("0001-01-01", 1), ("2026-01-01", 5), ("2026-01-02", 1)]


@pytest.mark.spark
def test_personal_keys_stay_out_of_deltas_log(spark: Any, tmp_path: Path) -> None:
    tiny = Tiny(spark, tmp_path)
    columns = {"email": {**KEY, "classification": "personal"}, "n": WHOLE}
    tiny.dataset("people", columns, sequence="n")
    tiny.gold("counts", "SELECT email, MAX(n) AS n FROM people GROUP BY email", ["email"])
    for n in (1, 2):
        tiny.land(f"people/{n}.csv", "email,n", f"ann@example.org,{n}", f"bob@example.org,{n}")
        assert tiny.run().problems == []
    assert tiny.rows("gold/counts", "email", "n") == [("ann@example.org", 2), ("bob@example.org", 2)]
    logs = list((tiny.home / "warehouse" / "silver").glob("**/_delta_log/*.json"))
    assert logs and not [file for file in logs if "example.org" in file.read_text()]
