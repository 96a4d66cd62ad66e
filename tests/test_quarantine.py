"""Quarantine's rows, and the ids by which they are known again."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from test_contracts import make_dataset

from drivetrain import quarantine
from drivetrain.landing import Rejected

FILE = Rejected("bad.csv", 3, 4, "empty_file", "it has no bytes")


@pytest.mark.parametrize("change", [{"name": "x"}, {"size": 9}, {"modified": 9}, {"rule": "torn_parquet"}])
def test_a_file_is_known_by_name_content_and_rule(change: dict[str, Any]) -> None:
    known = quarantine.file_id(make_dataset(), FILE)
    assert quarantine.file_id(make_dataset(), replace(FILE, reason="other words")) == known
    assert quarantine.file_id(make_dataset(), replace(FILE, **change)) != known
    assert quarantine.file_id(make_dataset(name="other"), FILE) != known


@pytest.mark.spark
def test_quarantine_rows(spark: Any) -> None:
    rng = random.Random(3)
    places = [(f"f{rng.randrange(3)}", block, line) for block in (0, 100) for line in range(1, 6)]
    rows = [(f, b, n, 1, "type", "no", "raw", None, "quarantined" if n % 2 else "insert") for f, b, n in places]
    schema = (
        "_file string, _block bigint, _line bigint, _load bigint, _rule string, _reason string, raw string,"
        " raw_bytes binary, _outcome string"
    )
    found = quarantine.of_rows(spark.createDataFrame(rows, schema), make_dataset(), "run")
    assert found.columns == list(quarantine.COLUMNS)
    kept = found.collect()
    assert len({row["quarantine_id"] for row in kept}) == len(kept) == 6 and all(
        len(row["quarantine_id"]) == 32 for row in kept
    )
    assert {(row["_file"], row["_block"], row["_line"]) for row in kept} == {place for place in places if place[2] % 2}
    again = quarantine.of_rows(spark.createDataFrame(rows, schema), make_dataset(), "other run").collect()
    assert {row["quarantine_id"] for row in again} == {row["quarantine_id"] for row in kept}, (
        "the same record, the same id"
    )
    other = quarantine.of_rows(spark.createDataFrame(rows, schema), make_dataset(name="other"), "run").collect()
    assert not {row["quarantine_id"] for row in other} & {row["quarantine_id"] for row in kept}
    row = quarantine.of_files(spark, make_dataset(), [FILE], "run").collect()[0]
    assert (row["rule"], row["_file"], row["_load"], row["raw"], row["state"]) == (
        "empty_file",
        "bad.csv",
        None,
        None,
        "open",
    )
