"""Small feeds of two days, and by hand what must come of them: tests/golden/<case>/{conf,input/<day>,expected}.

All cases go through one pipeline, which runs once for each day. To add one, add a folder.
"""

from __future__ import annotations

import csv
import os
import shutil
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from drivetrain import conf as reader
from drivetrain.pipeline import Outcome, Pipeline
from drivetrain.progress import Progress

pytestmark = pytest.mark.spark

GOLDEN = Path(__file__).resolve().parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())
DAYS = ("1", "2")


@pytest.fixture(scope="module")
def ran(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pipeline, list[Outcome]]:
    home = tmp_path_factory.mktemp("golden")
    for case in CASES:
        shutil.copytree(GOLDEN / case / "conf", home / "conf", dirs_exist_ok=True)
    (home / "conf" / "base.yaml").write_text("company: Golden\nlanding: landing\nwarehouse: warehouse\n")
    (home / "conf" / "local.yaml").write_text("")
    outcomes = []
    for day in DAYS:
        for case in CASES:
            shutil.copytree(GOLDEN / case / "input" / day, home / "landing" / case, dirs_exist_ok=True)
        conf = reader.load(home / "conf", "local", environ={})
        pipeline = Pipeline(spark, conf, f"day{day}", "batch", Progress(f"day{day}"))
        outcomes.append(pipeline.transform())
    return pipeline, outcomes


def expected(case: str, name: str) -> tuple[list[str], list[tuple[str, ...]]]:
    with (GOLDEN / case / "expected" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, sorted(map(tuple, rows))


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(timezone.utc).replace(tzinfo=None).isoformat()
    return (
        value.isoformat() if isinstance(value, date) else str(value).lower() if isinstance(value, bool) else str(value)
    )


def found(rows: Any, header: list[str]) -> list[tuple[str, ...]]:
    return sorted(tuple(shown(value) for value in row) for row in rows.select(*header).collect())


def dataset_of(case: str) -> str:
    return next((GOLDEN / case / "conf" / "datasets").glob("*.yaml")).stem


def test_no_run_has_problems(ran: tuple[Pipeline, list[Outcome]]) -> None:
    assert [outcome.problems for outcome in ran[1]] == [[] for _ in DAYS]


@pytest.mark.parametrize("case", CASES)
def test_silver(ran: tuple[Pipeline, list[Outcome]], case: str) -> None:
    header, rows = expected(case, "silver")
    assert found(ran[0].table("silver", dataset_of(case)).read(), header) == rows


@pytest.mark.parametrize("case", CASES)
def test_quarantine(ran: tuple[Pipeline, list[Outcome]], case: str) -> None:
    header, rows = expected(case, "quarantine")
    held = ran[0].quarantine.read().where(f"dataset = '{dataset_of(case)}' AND state = 'open'")
    assert found(held, header) == rows


@pytest.mark.parametrize("case", CASES)
def test_quarantine_holds_the_record_as_it_came(ran: tuple[Pipeline, list[Outcome]], case: str) -> None:
    """Its raw form is that line of that file, byte for byte."""
    for row in ran[0].quarantine.read().where(f"dataset = '{dataset_of(case)}'").collect():
        path = next(path for day in DAYS if (path := GOLDEN / case / "input" / day / row["_file"]).exists())
        kept = bytes(row["raw_bytes"]) if row["raw_bytes"] is not None else row["raw"].encode()
        assert path.read_bytes().split(b"\n")[row["_line"] - 1] == kept


@pytest.mark.parametrize("case", CASES)
def test_ledger(ran: tuple[Pipeline, list[Outcome]], case: str) -> None:
    header, rows = expected(case, "ledger")
    ledger = ran[0].table("ops", "ledger").read().where(f"dataset = '{dataset_of(case)}'")
    assert found(ledger, header) == rows
    told = [row for outcome in ran[1] for row in outcome.ledger if row.dataset == dataset_of(case)]
    assert sorted(tuple(shown(getattr(row, name)) for name in header) for row in told) == rows
    assert all(row.adds_up for row in told)


GOLD = [
    (case, path.stem.removeprefix("gold_"))
    for case in CASES
    for path in sorted((GOLDEN / case / "expected").glob("gold_*.csv"))
]


@pytest.mark.parametrize(("case", "name"), GOLD)
def test_gold(ran: tuple[Pipeline, list[Outcome]], case: str, name: str) -> None:
    header, rows = expected(case, f"gold_{name}")
    table = ran[0].table("gold", name).read()
    assert table.columns == header
    assert found(table, header) == rows


def test_nothing_is_left_behind(ran: tuple[Pipeline, list[Outcome]]) -> None:
    staging = Path(ran[0].warehouse) / "_staging"
    assert not [name for _, folders, names in os.walk(staging) for name in names]
