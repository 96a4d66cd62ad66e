"""What is said of a feed before it is loaded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_contracts import make_column, make_dataset
from test_pipeline import Shop

from drivetrain import assess, ops
from drivetrain.landing import Landed

COLUMNS = (
    make_column("id", feed_name="ID"),
    make_column("mail", classification="personal"),
    make_column("note", optional=True),
)
DATASET = make_dataset(*COLUMNS, key=("id",), identity=("id",), sequence=None)


def landed(*header: str) -> Landed:
    return Landed("new.csv", "/in/new.csv", 9, 1_700_000_000 * 10**9, "ab", "UTF-8", header, "L")


def figures(kind: str = "string", sampled: int = 100, nulls: int = 0) -> dict[str, Any]:
    return {"sampled": sampled, "nulls": nulls, "kind": kind, "smallest": "a", "largest": "z"}


def test_drift_against_the_contract() -> None:
    assert assess.notes(DATASET, landed("id", "e_mail", "size"), {}, {}) == {
        "e_mail": "not in the contract",
        "size": "not in the contract",
        "mail": "missing from the header",
        "note": "not in this file (optional)",
    }
    assert assess.notes(DATASET, landed(), {}, {}) == {}, "JSON has no header"


@pytest.mark.parametrize(
    ("before", "now", "note"),
    [
        (figures("integer"), figures("integer"), None),
        (figures("integer"), figures("string"), "was integer, is string"),
        (figures("string"), figures("integer"), "was string, is integer"),
        (figures("integer"), figures("empty", nulls=100), "was integer, is empty"),
        (figures(nulls=10), figures(nulls=30), None),
        (figures(nulls=10), figures(nulls=31), "nulls went from 10% to 31%"),
        (figures(nulls=50), figures(nulls=5), "nulls went from 50% to 5%"),
        (figures(sampled=0), figures(), None),
        (None, figures("date"), None),
    ],
)
def test_drift_against_the_last_run(before: Any, now: Any, note: str | None) -> None:
    last = {} if before is None else {"ID": before}
    assert assess.notes(DATASET, landed("ID", "mail", "note"), {"ID": now}, last).get("ID") == note


def test_rows_keep_personal_data_out() -> None:
    rows = assess.rows("r", DATASET, landed("ID", "mail", "new"), {"ID": figures(), "mail": figures()}, {}, ops.now())
    found = {row.column: (row.sampled, row.smallest, row.largest, row.note) for row in rows}
    assert found == {
        "ID": (100, "a", "z", ""),
        "mail": (100, None, None, ""),
        "new": (0, None, None, "not in the contract"),
        "note": (0, None, None, "not in this file (optional)"),
    }
    assert {row.newest_file.timestamp() for row in rows if row.newest_file} == {1_700_000_000}


@pytest.mark.spark
def test_profile(spark: Any) -> None:
    texts = [
        ("1", "1.5", "2026-01-05", "2026-01-05 10:00:00", "true", "x", None),
        ("22", "2", "2026-01-06", "2026-01-06T10:00:00Z", "false", "7", None),
        (None, None, None, None, None, None, None),
    ]
    names = ("integer", "number", "date", "timestamp", "boolean", "string", "empty")
    found = assess.profile(spark.createDataFrame(texts, ", ".join(f"`{name}` string" for name in names)))
    assert {name: figures["kind"] for name, figures in found.items()} == {name: name for name in names}
    assert found["integer"] == {"sampled": 3, "nulls": 1, "smallest": "1", "largest": "22", "kind": "integer"}
    assert found["empty"]["nulls"] == 3


@pytest.mark.spark
def test_assess_looks_at_the_newest_file(spark: Any, tmp_path: Path) -> None:
    shop = Shop(spark, tmp_path)
    shop.orders("a.csv", "a,1,anna,1", "b,,ben,2")
    shop.put("landing/orders/b.csv", "id,quantity,who,at\nx,1,y,1\n")
    os.utime(tmp_path / "landing" / "orders" / "b.csv", (1, 1))
    first = shop.pipeline()
    first.assess()
    assert first.outcome.notes == [] and first.outcome.problems == []
    assert [(row.column, row.sampled, row.nulls, row.kind, row.largest) for row in first.outcome.profiles] == [
        ("id", 2, 0, "string", "b"),
        ("qty", 2, 1, "integer", "1"),
        ("who", 2, 0, "string", None),
        ("at", 2, 0, "integer", "2"),
    ]
    first.write_ops()
    shop.orders("c.csv", "a,many,anna,1", "b,2,ben,2")
    second = shop.pipeline()
    second.assess()
    assert second.outcome.notes == ["orders.qty: was integer, is string"]
    assert not (tmp_path / "warehouse" / "bronze").exists(), "nothing is loaded"


@pytest.mark.parametrize(
    ("values", "kind", "smallest", "largest"),
    [
        (["104.11", "94.51", None, "-7"], "number", "-7", "104.11"),
        (["10", "9", "+100"], "integer", "9", "+100"),
        (["1", "99999999999999999999", "-5"], "number", "-5", "99999999999999999999"),
        (["7", "1e300", "9" * 5000], "number", "7", "9" * 40),
        (["999999999999999999", "999999999999999998"], "integer", "999999999999999998", "999999999999999999"),
        (["b", "a10", "a9"], "string", "a10", "b"),
        (["2026-02-01", "2025-12-31"], "date", "2025-12-31", "2026-02-01"),
        ([None, None], "empty", None, None),
    ],
)
def test_ends_are_those_of_the_kind(
    values: list[str | None], kind: str, smallest: str | None, largest: str | None
) -> None:
    found = assess._figures(pd.Series(values, dtype=object))
    assert (found["kind"], found["smallest"], found["largest"]) == (kind, smallest, largest)
