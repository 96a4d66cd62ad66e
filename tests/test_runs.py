"""Runs that are not like the others: found among quiet histories, told in words, and quiet otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import Tiny

from drivetrain import conf as reader
from drivetrain import ops
from drivetrain.anomaly import runs
from drivetrain.anomaly.runs import Metrics
from drivetrain.pipeline import Pipeline
from drivetrain.progress import Progress

AT = datetime(2026, 3, 1, 4, tzinfo=timezone.utc)
ROW = ops.LedgerRow("r", "orders", 1, 1, 1, 1000, 980, 10, 10, 0, 980, 0, 0, 0, 1, 0, 1, AT)


def quiet(random: np.random.Generator, count: int) -> list[Metrics]:
    """Daily runs with small weekends, and nothing odd in them."""
    rates = {"quarantined": 0.01, "duplicate": 0.02, "late": 0.0, "updated": 0.2}
    found = []
    for day in range(count):
        rows = round((0.5 if day % 7 > 4 else 1.0) * 1000 * math.exp(random.normal(0, 0.15)))
        run = {"rows": float(rows), "files": float(random.integers(1, 4)), "missing share": math.nan}
        run |= {f"{name} share": random.binomial(rows, rate) / rows for name, rate in rates.items()}
        run["seconds"] = 5 + rows / 100 * math.exp(random.normal(0, 0.2))
        run["hours since the last run"] = 24 + random.normal(0, 0.2)
        found.append(run)
    return found


HISTORY = quiet(np.random.default_rng(1), 60)
PAST, NOW = HISTORY[:-1], HISTORY[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 2.0}, "rows 2 is below all of the last 59 runs"),
        ({"rows": 20_000.0}, "rows 20000 is above all of the last 59 runs"),
        ({"quarantined share": 0.4}, "quarantined share 0.4 is above all of the last 59 runs"),
        ({"late share": 0.1}, "late share 0.1 is above all of the last 59 runs"),
        ({"seconds": 400.0}, "seconds 400 is above all of the last 59 runs"),
        ({"hours since the last run": 96.0}, "hours since the last run 96 is above all of the last 59 runs"),
    ],
)
def test_an_odd_run_is_told_of_with_its_reason(change: Metrics, words: str) -> None:
    odd = runs.judge(PAST, {**NOW, **change})
    assert odd and odd.past == 59 and words in odd.why


@pytest.mark.parametrize(("name", "factor"), [("rows", 1.5), ("seconds", 1.6), ("quarantined share", 1.3)])
def test_the_highest_so_far_is_not_odd_for_that(name: str, factor: float) -> None:
    assert runs.judge(PAST, {**NOW, name: factor * max(one[name] for one in PAST)}) is None


def test_a_quiet_history_is_quiet() -> None:
    """Measured: 2 alarms in 100 runs with 20 before them, none in 200 with 40 or 60."""
    random = np.random.default_rng(2)
    alarms = sum(runs.judge(past[:-1], past[-1]) is not None for past in (quiet(random, 31) for _ in range(30)))
    assert alarms <= 1


def test_too_few_runs_tell_nothing() -> None:
    odd = {**NOW, "rows": 0.0, "quarantined share": 1.0}
    assert runs.judge(PAST[: runs.LEAST], odd) and not runs.judge(PAST[: runs.LEAST - 1], odd)
    assert runs.judge([], odd) is None


def test_runs_that_are_all_the_same_and_metrics_that_nobody_knows() -> None:
    same: Sequence[Metrics] = [{"rows": 10.0, "late share": math.nan}] * 30
    assert runs.judge(same, same[0]) is None
    assert runs.judge(same, {"rows": 10.0, "late share": 0.5}) is None, "the past does not know it"
    assert runs.judge(same, {"rows": 5000.0, "late share": math.nan})


def test_one_odd_run_of_the_past_does_not_hide_the_next() -> None:
    """Its range is wide, its scores are not: another of another kind is seen."""
    past = [*PAST[:-1], {**PAST[-1], "quarantined share": 0.9}]
    assert runs.judge(past, {**NOW, "rows": 2.0})


def test_metrics_of_a_ledger_row() -> None:
    row = {**ROW.__dict__, "seconds": 5.0, "nulls": 5, "sampled": 50, "before": AT - timedelta(hours=6)}
    found = runs.metrics(row)
    assert found == {
        "rows": 1000.0, "files": 1.0, "quarantined share": 0.01, "duplicate share": 0.01, "late share": 0.0,
        "updated share": 0.0, "missing share": 0.1, "seconds": 5.0, "hours since the last run": 6.0,
    }  # fmt: skip
    unknown = runs.metrics({**row, "rows_in": 0, "seconds": None, "nulls": None, "sampled": None, "before": None})
    assert [name for name, value in unknown.items() if math.isnan(value)] == [
        "quarantined share", "duplicate share", "late share", "updated share", "missing share", "seconds",
        "hours since the last run",
    ]  # fmt: skip


@pytest.mark.spark
def test_a_run_is_compared_with_the_tables_of_those_before(spark: Any, tmp_path: Path) -> None:
    """Of the odd dataset a note and an alert; the other, and one with a short past, are quiet."""
    tiny = Tiny(spark, tmp_path)
    tiny.dataset("orders", {"id": {}})
    pipeline = Pipeline(spark, reader.load(tmp_path / "conf", "local", environ={}), "now", "batch", Progress("now"))
    ledger, steps = pipeline.table("ops", "ledger"), pipeline.table("ops", "steps")
    for day in range(runs.LEAST):
        names = ("orders", "stock", *(["new"] if day > 15 else []))
        at = AT + timedelta(days=day)
        rows = [replace(ROW, run=f"r{day}", dataset=name, at=at, rows_in=1000 + day % 5) for name in names]
        ops.write(ledger, rows, {}, f"r{day}")
    took = [ops.Step(f"r{day}", "batch", "silver", "orders", AT, 20.0 + day % 3) for day in range(runs.LEAST)]
    ops.write(steps, took, {}, "r0")
    at = AT + timedelta(days=runs.LEAST)
    pipeline.outcome.ledger += [
        replace(ROW, run="now", dataset="orders", at=at, rows_in=3), replace(ROW, run="now", dataset="stock", at=at),
        replace(ROW, run="now", dataset="new", rows_in=3), replace(ROW, run="older", dataset="stock", rows_in=3),
    ]  # fmt: skip
    runs.look(pipeline)
    assert [note[:38] for note in pipeline.outcome.notes] == ["orders: this run is not like the 20 be"]
    alerts = pipeline.table("ops", "alerts").read().select("kind", "dataset").collect()
    assert [tuple(row) for row in alerts] == [("run", "orders")] and not pipeline.outcome.problems


def test_metrics_of_a_gold_table() -> None:
    step = {"rows": 900, "seconds": 4.0, "started": AT, "before": AT - timedelta(hours=24), "rows_before": 1100}
    found = runs.table_metrics(step)
    assert found == {
        "lost share": 0.15, "new share": 0.0, "seconds": 4.0, "hours since the last run": 24.0,
    }  # fmt: skip
    grown = runs.table_metrics({**step, "rows": 2300})
    assert (grown["lost share"], grown["new share"]) == (0.0, 0.5)
    first = runs.table_metrics({**step, **runs.NO_RUN})
    assert math.isnan(first["lost share"]) and math.isnan(first["hours since the last run"])


def tables(*rows: int) -> list[Metrics]:
    """Daily publications with so many rows."""
    told = [
        {"rows": now, "seconds": 5.0 + day % 3, "started": AT + timedelta(days=day),
         "before": AT + timedelta(days=day - 1), "rows_before": before}
        for day, (before, now) in enumerate(pairwise(rows))
    ]  # fmt: skip
    return [runs.table_metrics(one) for one in told]


@pytest.mark.parametrize("first", [[], [10], [500, 3, 900]], ids=["as always", "small at first", "once torn"])
@pytest.mark.parametrize(("last", "words"), [(700, "lost share 0.45"), (28_000, "new share 0.9")])
def test_a_gold_table_that_loses_rows_or_gets_many_is_odd(first: list[int], last: int, words: str) -> None:
    *past, now = tables(*first, *range(1000, 1400, 10), last)
    odd = runs.judge(past, now)
    assert odd and words in odd.why


@pytest.mark.parametrize("first", [[], [10], [500, 3, 900]], ids=["as always", "small at first", "once torn"])
def test_a_gold_table_that_grows_as_ever_is_not(first: list[int]) -> None:
    for last in (1390, 1400, 1420, 1450):
        *past, now = tables(*first, *range(1000, 1400, 10), last)
        assert runs.judge(past, now) is None, last


def test_a_small_gold_table_may_get_or_lose_a_row() -> None:
    for rows in (0, 3, 20):
        for other in (rows + 1, max(rows - 1, 0)):
            *past, now = tables(*[rows] * 30, other)
            assert runs.judge(past, now) is None, (rows, other)


@pytest.mark.spark
def test_gold_tables_in_the_flow(spark: Any, tmp_path: Path) -> None:
    """Of one that loses rows a note and an alert; a failed publication, a replay's and a stream's say nothing."""
    tiny = Tiny(spark, tmp_path)
    tiny.dataset("orders", {"id": {}})
    pipeline = Pipeline(spark, reader.load(tmp_path / "conf", "local", environ={}), "now", "batch", Progress("now"))
    steps = pipeline.table("ops", "steps")

    def step(run: str, day: int, rows: int, name: str = "daily", **more: Any) -> ops.Step:
        made = ops.Step(run, "batch", "gold", name, AT + timedelta(days=day), 5.0 + day % 3, rows)
        return replace(made, **more)

    last = runs.LEAST + 5
    for day in range(last):
        rows = 1000 + 10 * day
        ran = [step(f"r{day}", day, rows, name) for name in ("daily", "steady", "bad")]
        beside = [step(f"p{day}", day, 5, job="replay"), step(f"s{day}", day, 5, job="speed")]
        ops.write(steps, [*ran, *beside, step(f"r{day}", day, 0, failed=True)], {}, f"r{day}")
    done = [step("now", last, 1150), step("now", last, 1000 + 10 * last, "steady")]
    pipeline.steps.done += [*done, step("now", last, 0, "bad", failed=True)]
    runs.look(pipeline)
    (note,) = pipeline.outcome.notes
    assert note.startswith("daily: this run is not like the 25 before it: lost share 0.05"), note
    alerts = pipeline.table("ops", "alerts").read().select("kind", "dataset").collect()
    assert [tuple(row) for row in alerts] == [("run", "daily")]
    pipeline.steps.job = "speed"
    runs.look(pipeline)
    assert len(pipeline.outcome.notes) == 1
