"""ACME's feeds through the project's own conf: every record accounted for, every table equal to the maker's truth."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.testing import assertDataFrameEqual

from drivetrain import conf as reader
from drivetrain.pipeline import Outcome, Pipeline
from drivetrain.progress import Progress

pytestmark = pytest.mark.spark

ROOT = Path(__file__).resolve().parents[1]
FEEDS = ["accounts", "cluster_use", "leads", "orders", "procurement", "reviews", "service_events", "stock"]
RULES = {  # the rule that each kind of bad record breaks first
    "missing_field": "shape",
    "extra_field": "shape",
    "malformed_json": "shape",
    "invalid_utf8": "encoding",
    "nul_byte": "nul_byte",
    "text_in_number": "type",
    "number_too_large": "type",
    "impossible_date": "type",
    "negative_quantity": "bounds",
    "unknown_location": "known_location",
    "wrong_enum": "enum",
    "missing_key": "required",
}


def _acme() -> Any:
    spec = importlib.util.spec_from_file_location("acme_sources", ROOT / "scripts" / "acme_sources.py")
    assert spec and spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Grown:
    """The same company after three days, and after a fourth was added and the pipeline ran again."""

    truths: dict[int, Any]
    outcomes: dict[int, Outcome]
    versions: dict[int, dict[str, int]]
    pipeline: Pipeline


@pytest.fixture(scope="module")
def grown(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    acme, home = _acme(), tmp_path_factory.mktemp("acme")
    shares = {"bad_share": 0.12, "late_share": 0.1, "repeat_share": 0.05, "anomaly_share": 0.01, "seed": 11}
    sets = [f"landing={home / 'landing'}", f"warehouse={home / 'warehouse'}"]
    made = Grown({}, {}, {}, None)  # type: ignore[arg-type]
    for days, from_day in ((3, 0), (4, 3)):
        made.truths[days] = acme.make_feeds(
            home / "landing", days=days, order_lines=500 * days, from_day=from_day, **shares
        )
        for name in FEEDS:  # the next day overwrites the truth, so keep it
            path = home / "landing" / "_truth" / "silver" / f"{name}.parquet"
            (home / f"truth{days}").mkdir(exist_ok=True)
            path.rename(home / f"truth{days}" / path.name)
        conf = reader.load(ROOT / "conf", "local", environ={}, sets=sets)
        run = f"day{days}"
        made.pipeline = Pipeline(spark, conf, run, "batch", Progress(run))
        made.outcomes[days] = made.pipeline.transform()
        made.versions[days] = {name: made.pipeline.table("silver", name).version() for name in FEEDS}
        made.truths[days].silver = {name: pq.read_table(home / f"truth{days}" / f"{name}.parquet") for name in FEEDS}
    return made


def test_nothing_failed(grown: Grown) -> None:
    assert {days: outcome.problems for days, outcome in grown.outcomes.items()} == {3: [], 4: []}


def test_every_kind_of_bad_record_is_there(grown: Grown) -> None:
    written = set().union(*(feed.total.bad for feed in grown.truths[4].feeds.values()))
    assert written == set(RULES)


@pytest.mark.parametrize("name", FEEDS)
def test_ledger_is_the_makers_count(grown: Grown, name: str) -> None:
    """The first run against three days, both runs together against four."""
    for days, runs in ((3, (3,)), (4, (3, 4))):
        truth, rows = (
            grown.truths[days].feeds[name],
            [r for d in runs for r in grown.outcomes[d].ledger if r.dataset == name],
        )
        found = {
            key: sum(getattr(row, key) for row in rows)
            for key in ("files", "rows_in", "good", "duplicate", "quarantined")
        }
        total = truth.total
        assert found == {
            "files": len(truth.files),
            "rows_in": total.records,
            "good": total.good,
            "duplicate": total.repeats,
            "quarantined": sum(total.bad.values()),
        }, f"after {days} days"
        assert len(rows) == len(runs)


@pytest.mark.parametrize("name", FEEDS)
def test_quarantine_has_each_bad_record_under_its_rule(grown: Grown, name: str) -> None:
    rows = grown.pipeline.quarantine.read().where(f"dataset = '{name}'").groupBy("_file", "rule").count().collect()
    found: dict[str, Counter[str]] = {}
    for row in rows:
        found.setdefault(row["_file"], Counter())[row["rule"]] += row["count"]
    truth = grown.truths[4].feeds[name]
    for file, tally in truth.files.items():
        expected: Counter[str] = Counter()
        for kind, count in tally.bad.items():
            expected[RULES[kind]] += count
        assert found.get(file.removeprefix(f"{truth.folder}/"), Counter()) == expected, file


@pytest.mark.parametrize("days", [3, 4])
@pytest.mark.parametrize("name", FEEDS)
def test_silver_is_the_truth(spark: Any, grown: Grown, name: str, days: int) -> None:
    truth = grown.truths[days].silver[name]
    silver = grown.pipeline.table("silver", name).read(grown.versions[days][name]).select(*truth.column_names)
    assert silver.count() == grown.truths[days].feeds[name].silver_rows
    assertDataFrameEqual(silver, _frame(spark, truth, silver.schema), rtol=0, atol=0)


def _frame(spark: Any, table: pa.Table, schema: Any) -> Any:
    return spark.createDataFrame([tuple(row.values()) for row in table.to_pylist()], schema)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("daily_sales", ["day", "location", "model"]),
        ("lead_conversion", ["campaign"]),
        ("complaint_topics", ["model", "topic"]),
    ],
)
def test_gold_is_the_truth(spark: Any, grown: Grown, name: str, key: list[str]) -> None:
    truth = grown.truths[4].table("gold", name)
    gold = grown.pipeline.table("gold", name).read().select(*truth.column_names)
    assertDataFrameEqual(
        gold.orderBy(*key), _frame(spark, truth, gold.schema).orderBy(*key), checkRowOrder=True, rtol=0, atol=0
    )


def test_a_run_with_nothing_new_does_nothing(spark: Any, grown: Grown) -> None:
    before = {name: grown.pipeline.table("silver", name).version() for name in FEEDS}
    again = Pipeline(spark, grown.pipeline.conf, "again", "batch", Progress("again"))
    outcome = again.transform()
    assert (outcome.ledger, outcome.published, outcome.problems, again.steps.done) == ([], [], [], [])
    assert {name: again.table("silver", name).version() for name in FEEDS} == before
