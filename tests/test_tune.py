"""Settings from forecasts: the rules, what is learned, and what a pipeline does with them."""

from __future__ import annotations

import json
import runpy
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.errors import PySparkException
from test_pipeline import Shop

from drivetrain import history, job, ops, tune
from drivetrain.contracts import ROOT
from drivetrain.errors import DrivetrainError
from drivetrain.files import LOCAL
from drivetrain.history import History, Run, observed, step_key
from drivetrain.sink import Table, Txn, session_confs
from drivetrain.tune import MB, Machine, Relation

LAPTOP = Machine(2, 2048 * MB)
SMALL = Machine(2, 512 * MB)
RUN = Run(100 * MB, 200 * MB, 0, 10.0, 8, 200 * MB, 3)
GIB = 1 << 30


def values(decisions: list[tune.Decision]) -> dict[str, str]:
    return {one.setting: one.value for one in decisions}


# --- the rules ---


@pytest.mark.parametrize(
    ("volume", "cores", "number"),
    [(0, 2, 1), (300_000, 2, 1), (2 * MB, 2, 2), (10 * MB, 2, 4), (100 * MB, 2, 4), (GIB, 2, 32), (GIB, 16, 32),
     (100 * MB, 16, 32), (40 * GIB, 16, 1280), (1 << 50, 16, tune.MOST_PARTITIONS)],
)  # fmt: skip
def test_partitions_by_volume_and_cores(volume: int, cores: int, number: int) -> None:
    assert tune.partitions(volume, cores) == number


@given(st.integers(0, 1 << 45), st.integers(0, 1 << 45), st.integers(1, 512))
def test_more_volume_never_takes_fewer_partitions(one: int, other: int, cores: int) -> None:
    """And none is over 32 MB where their number is not at its end."""
    low, high = sorted((one, other))
    few, many = tune.partitions(low, cores), tune.partitions(high, cores)
    assert 1 <= few <= many <= tune.MOST_PARTITIONS
    assert high / many <= tune.FULL or many == tune.MOST_PARTITIONS


def test_a_table_that_memory_cannot_hold_is_not_broadcast() -> None:
    """A 9.8 MB Parquet side of 2.4 million rows fails a driver of 512 MB under Spark's own threshold."""
    fact, side = Relation(900 * MB, 0, 10, 0), Relation(int(9.8 * MB), 2_400_000, 1, 24)
    own = int(tune.SPARKS_OWN[tune.BROADCAST])
    small = tune.broadcast_threshold(SMALL, [fact, side])
    assert int(small.value) < side.bytes and "9.8 MB stored" in small.because
    assert int(tune.broadcast_threshold(Machine(2, 4096 * MB), [fact, side]).value) == own
    both = tune.broadcast_threshold(SMALL, [side, replace(side, bytes=3 * MB)])
    assert int(both.value) < 3 * MB


def test_nor_are_a_few_columns_or_files_of_a_larger_one() -> None:
    """Two of 40 columns of a 60 MB table are 4 MB to Spark, and 200 MB of 2.4 million rows in memory; a hundredth of
    the files of 24 GB is less than the threshold, and ten million rows."""
    wide = Relation(60 * MB, 2_400_000, 1, 320)
    two = int(wide.stored_as(16))
    assert two == 60 * MB * (8 + 16) // (8 + 320), "Spark counts 8 bytes for a row beside its columns"
    assert two < int(tune.SPARKS_OWN[tune.BROADCAST]) and wide.in_memory(16) > SMALL.room
    assert int(tune.broadcast_threshold(SMALL, [wide]).value) < two
    assert int(tune.broadcast_threshold(SMALL, [Relation(24 * GIB, 10**9, 9_000, 320)]).value) < 2 * MB
    tiny = tune.broadcast_threshold(Machine(2, 128 * MB), [Relation(MB, 10, 1, 8)])
    assert int(tiny.value) < 16 * MB / tune.TEXT and "text" in tiny.because


@given(
    st.lists(st.tuples(st.integers(0, 200 * MB), st.integers(0, 10_000_000), st.integers(8, 500)), max_size=5),
    st.integers(8, 500), st.floats(0.0001, 1),
)  # fmt: skip
def test_nothing_over_its_room_is_under_the_threshold(
    tables: list[tuple[int, int, int]], width: int, part: float
) -> None:
    """Whatever columns, and part of the files, a query reads."""
    found = [Relation(size, rows, 1, whole) for size, rows, whole in tables]
    threshold = int(tune.broadcast_threshold(SMALL, found).value)
    assert threshold <= int(tune.SPARKS_OWN[tune.BROADCAST])
    read = [(one, min(width, one.width)) for one in found]
    taken = [one.in_memory(few) * part for one, few in read if one.stored_as(few) * part <= threshold]
    assert all(size <= SMALL.room * 1.001 for size in taken)


def test_a_threshold_is_never_above_the_configured_one() -> None:
    assert tune.broadcast_threshold(replace(LAPTOP, threshold=-1), [Relation(MB, 10, 1, 8)]).value == "-1"
    assert tune.broadcast_threshold(replace(LAPTOP, threshold=MB), [Relation(MB, 10, 1, 8)]).value == str(MB)


@pytest.mark.parametrize(("files", "number"), [(0, "2"), (64, "2"), (100_001, "3"), (1 << 30, "50")])
def test_snapshot_partitions_by_files(files: int, number: str) -> None:
    assert tune.snapshot_partitions([Relation(1, 1, files, 1), Relation(1, 1, 0, 1)]).value == number


# --- what is learned ---


def test_without_history_a_rule_tells_and_says_so() -> None:
    told = tune.forecast(10 * MB, [])
    made = tune.shuffle_partitions(LAPTOP, 10 * MB, [])
    assert (told.bytes, told.runs) == (30 * MB, 0)
    assert (made.value, made.default, made.confidence) == ("4", "200", "rule") and "by a rule" in made.because


def test_history_tells_of_sizes_like_its_own_only() -> None:
    lean = replace(RUN, shuffle_bytes=MB)
    assert tune.forecast(200 * MB, [lean]) == tune.Forecast(2 * MB, 1)
    assert tune.forecast(200 * MB, [lean, RUN]) == tune.Forecast(400 * MB, 2)
    assert tune.forecast(5_000 * MB, [lean]) == tune.Forecast(15_000 * MB, 0)
    heavy = replace(RUN, shuffle_bytes=1_000 * MB)
    assert tune.forecast(5_000 * MB, [heavy]) == tune.Forecast(50_000 * MB, 0)


def test_a_spill_makes_partitions_smaller() -> None:
    big = replace(RUN, input_bytes=GIB, shuffle_bytes=GIB)
    assert tune.shuffle_partitions(LAPTOP, GIB, [big]).value == "32"
    spilled = tune.shuffle_partitions(LAPTOP, GIB, [replace(big, spill_bytes=1)])
    assert spilled.value == "64" and "spilled" in spilled.because


def test_what_did_worse_is_taken_back() -> None:
    """To a number that ran on such inputs, and with the reason; not for a difference that may be noise."""
    usual = tune.shuffle_partitions(LAPTOP, 100 * MB, [RUN])
    assert usual.value == "8"
    with_8, with_16 = replace(RUN, cpu_seconds=14.0), replace(RUN, partitions=16)
    back = tune.shuffle_partitions(LAPTOP, 100 * MB, [with_16, with_8])
    assert (back.value, back.confidence) == ("16", "learned") and "over 1.2 times what others take" in back.because
    assert "8" in back.alternatives
    assert tune.shuffle_partitions(LAPTOP, 100 * MB, [with_16, replace(with_8, cpu_seconds=11.0)]).value == "8"
    elsewhere = replace(with_16, input_bytes=10 * MB, shuffle_bytes=20 * MB, cpu_seconds=0.1)
    assert tune.shuffle_partitions(LAPTOP, 100 * MB, [elsewhere, with_8]).value == "8"
    full = replace(with_16, partitions=4)
    assert tune.shuffle_partitions(LAPTOP, 100 * MB, [full, with_8]).value == "8", "50 MB in a partition are too many"


def test_a_try_says_so_and_what_it_may_cost() -> None:
    """Never with more in a partition than the rule allows."""
    runs = [replace(RUN, shuffle_bytes=60 * MB)] * 3
    made = tune.shuffle_partitions(LAPTOP, 100 * MB, runs)
    assert (made.value, made.confidence) == ("8", "try") and made.because.startswith("a try: it may take 1.0")
    assert "of the CPU of 4" in made.because and "4" in made.alternatives
    full = [replace(RUN, shuffle_bytes=120 * MB, partitions=4)] * 3
    assert int(tune.shuffle_partitions(LAPTOP, 100 * MB, full).value) >= 4


def ran(runs: list[Run], shuffled: int, **changes: Any) -> list[Run]:
    """With one run more, planned by those before it."""
    plan = tune.plan(LAPTOP, [Relation(GIB, 0, 1, 0)], 100 * MB, runs)
    step = ops.Step("r", "batch", "gold", "sales", ops.now(), cpu_seconds=1.0, shuffle_write_bytes=shuffled)
    plan.note(step, int(plan.settings[tune.SHUFFLE]))
    made = observed(replace(step, **changes))
    assert made
    return [*runs, made]


def test_a_surprise_means_conservative_until_three_runs_are_as_forecast() -> None:
    """The rule's first guess surprises nobody; nor does less than was forecast."""

    def settings(runs: list[Run]) -> dict[str, str]:
        return tune.plan(LAPTOP, [Relation(GIB, 0, 1, 0)], 100 * MB, runs).settings

    runs = ran(ran([], 20_000 * MB), 1 * MB)
    assert set(settings(runs)) == {tune.SHUFFLE, tune.SNAPSHOT, tune.BROADCAST}
    runs = ran(ran([], 100 * MB), 7_000 * MB)
    assert settings(runs) == {tune.SHUFFLE: str(7_000 // 16 + 1), **tune.CONSERVATIVE}
    again = ran(ran(ran(runs, 100 * MB), 40_000 * MB), 100 * MB)
    assert settings(again).items() > tune.CONSERVATIVE.items(), (
        "the second surprise counts, though all was conservative"
    )
    quiet = ran(ran(ran(runs, 100 * MB), 100 * MB), 100 * MB)
    assert set(settings(quiet)) == {tune.SHUFFLE, tune.SNAPSHOT, tune.BROADCAST}
    assert settings(ran(ran([], 100 * MB), 7 * MB)).keys() == settings(quiet).keys()


def test_short_memory_means_conservative_too() -> None:
    """With as many partitions as such volumes take where that is more than 200."""
    runs = ran([], 100 * MB, short_of_memory=True)
    made = tune.decide(LAPTOP, [Relation(GIB, 0, 1, 0)], 100 * MB, runs)
    assert values(made) == {tune.SHUFFLE: "200", **tune.CONSERVATIVE} and "short of memory" in made[0].because
    assert tune.drifted([*runs, RUN, RUN]) and not tune.drifted([*runs, RUN, RUN, RUN])
    huge = tune.decide(LAPTOP, [], 400 * GIB, runs)
    assert int(values(huge)[tune.SHUFFLE]) == tune.MOST_PARTITIONS


def test_what_others_have_set_is_left_alone() -> None:
    plan = tune.plan(LAPTOP, [Relation(GIB, 0, 1, 0)], 100 * MB, []).without({tune.SHUFFLE: "9"})
    step = ops.Step("r", "batch", "gold", "sales", ops.now())
    plan.note(step, 9)
    assert tune.SHUFFLE not in plan.settings and step.partitions == 9 and tune.SHUFFLE not in step.decisions


def test_what_a_person_has_fixed_stands() -> None:
    fixed = {tune.SHUFFLE: "3", tune.SNAPSHOT: "2"}
    made = tune.decide(LAPTOP, [Relation(GIB, 0, 1, 0)], 100 * MB, [replace(RUN, short=True)], fixed)
    assert values(made) == fixed and {one.confidence for one in made} == {"frozen"}


# --- short of memory ---


def short() -> PySparkException:
    return PySparkException("Not enough memory to build and broadcast the table to all worker nodes")


@pytest.mark.spark
def test_short_memory_is_tried_once_more_and_conservatively(spark: Any) -> None:
    seen, said, step = list[dict[str, str]](), list[str](), ops.Step("r", "batch", "gold", "sales", ops.now())

    def compute() -> str:
        seen.append({key: spark.conf.get(key) for key in (tune.SHUFFLE, tune.BROADCAST)})
        if len(seen) == 1:
            raise short()
        return "done"

    with session_confs(spark, {tune.SHUFFLE: "300"}):
        before = spark.conf.get(tune.BROADCAST)
        assert tune.carefully_in_memory(spark, compute, said.append, step) == "done"
        assert spark.conf.get(tune.BROADCAST) == before and "memory was short" in said[0]
    assert seen == [{tune.SHUFFLE: "300", tune.BROADCAST: before}, {tune.SHUFFLE: "600", tune.BROADCAST: "-1"}]
    assert step.short_of_memory and step.partitions == 600


@pytest.mark.spark
def test_what_the_call_has_set_is_left_alone(spark: Any, tmp_path: Path) -> None:
    reads = tune.Reads([Relation(GIB, 0, 1, 0)], 100 * MB, settings={tune.BROADCAST: "-1"})
    tuner = tune.Tuner(spark, Table(spark, str(tmp_path / "steps")))
    assert set(tuner.plan("gold", "sales", reads).settings) == {tune.SHUFFLE, tune.SNAPSHOT}
    tuner.by_hand = [tune.SHUFFLE]
    assert set(tuner.plan("gold", "sales", reads).settings) == {tune.SNAPSHOT}


@pytest.mark.spark
def test_short_memory_twice_fails_and_other_failures_at_once(spark: Any) -> None:
    tries, step = list[int](), ops.Step("r", "batch", "gold", "sales", ops.now())

    def compute(error: Exception) -> None:
        tries.append(1)
        raise error

    with pytest.raises(PySparkException, match="Not enough memory"):
        tune.carefully_in_memory(spark, lambda: compute(short()), lambda _: None, step)
    with pytest.raises(PySparkException, match="no such column"):
        tune.carefully_in_memory(spark, lambda: compute(PySparkException("no such column")), lambda _: None, step)
    assert len(tries) == 3


@pytest.mark.spark
def test_a_relation_is_told_by_its_log(spark: Any, tmp_path: Path) -> None:
    """Rows are asked for where stored size leaves open whether they fit; the threshold does to Spark what it says."""
    table = Table(spark, str(tmp_path / "t"))
    table.append(spark.range(300_000).selectExpr("id", "'same' AS word"), Txn("t", 1), {}, {})
    tight, ample = Machine(2, tune.HEAP_SHARE * MB), LAPTOP
    found = tune.relation(table, tight)
    assert (found.rows, found.files, found.bytes) == (300_000, 2, table.stored().bytes) and found.width > 8
    assert found.bytes < found.in_memory(found.width) and tune.relation(table, ample).rows == 0
    fact = Relation(GIB, 0, 1, 0)
    assert int(tune.broadcast_threshold(tight, [fact, found]).value) < found.bytes
    side = spark.read.format("delta").load(table.path)
    with session_confs(spark, {"spark.sql.adaptive.enabled": "false"}):
        for threshold, kind in ((found.bytes - 1, "SortMergeJoin"), (found.bytes * 10, "BroadcastHashJoin")):
            with session_confs(spark, {tune.BROADCAST: str(threshold)}):
                plan = side.alias("a").join(side.alias("b"), "id")._jdf.queryExecution().executedPlan().toString()
                assert kind in plan


# --- in a pipeline ---


def known(pipeline: Any) -> History:
    return history.read(LOCAL, pipeline.table("ops", "steps").path)


def told_by(pipeline: Any, *words: str) -> str:
    """What the job says of the pipeline's steps."""
    found = runpy.run_path(str(ROOT / "jobs" / "tune.py"))
    given, out = found["arguments"]().parse_args(words), StringIO()
    with redirect_stdout(out), mock.patch.object(job, "table", partial(job.table, stream=out)):
        found["DO"][given.do](given, pipeline.conf, pipeline.table("ops", "steps"))
    return out.getvalue()


@pytest.mark.spark
def test_steps_are_tuned_and_learned_from(spark: Any, tmp_path: Path) -> None:
    """Decisions stand with each step, acted upon; the next run's rest on what that one measured; the session's own
    settings are what they were."""
    shop, before = Shop(spark, tmp_path), spark.conf.get(tune.SHUFFLE)
    shop.orders("1.csv", "a,1,x,1", "b,2,y,1")
    made = shop.pipeline()
    made.transform()
    steps = [one for one in made.steps.done if one.decisions]
    assert {one.step for one in steps} == {"silver", "gold"} and spark.conf.get(tune.SHUFFLE) == before
    for one in steps:
        told = {decision["setting"]: decision for decision in json.loads(one.decisions)}
        assert f"{tune.SHUFFLE}={told[tune.SHUFFLE]['value']}," in one.settings and one.expected_bytes > 0
        assert told[tune.SHUFFLE]["confidence"] == "rule"
    assert set(known(made).steps) == {step_key(s.step, s.dataset) for s in steps}
    (took,) = known(made).jobs["batch"]
    assert took.input_bytes == steps[0].expected_bytes and took.cores == spark.sparkContext.defaultParallelism
    assert 0 < took.task_seconds < took.seconds * took.cores
    measured = max(made.steps.done, key=lambda one: one.tasks)
    assert (
        measured.task_seconds > 0
        and measured.slowest >= 1
        and measured.partitions
        == int(next(d["value"] for d in json.loads(measured.decisions) if d["setting"] == tune.SHUFFLE))
    )
    shop.orders("2.csv", "c,1,x,2")
    shop.put("conf/base.yaml", (tmp_path / "conf/base.yaml").read_text() + "tune: true\n")
    made = shop.pipeline()
    made.transform()
    (again,) = [one for one in made.steps.done if one.step == "silver"]
    assert "by 1 run" in again.decisions and '"learned"' in again.decisions

    # People are told, of the newest run of each step.
    told_, lines = told_by(made, "explain", "batch"), told_by(made, "properties", "silver", "orders")
    assert "silver orders" in told_ and "by 1 run" in told_ and "by a rule" not in told_.split("gold")[0]
    assert f"{tune.SHUFFLE}=1\n" in lines and lines.startswith("# ")
    asked = told_by(made, "what-if", "--input-bytes", str(40 << 30), "--cores", "64")
    assert "3840" in asked and "on 64 cores" in asked
    in_time = told_by(made, "what-if", "--input-bytes", str(took.input_bytes), "--deadline", "30")
    assert (
        "cheapest in time" in in_time
        and "deadline_minutes" not in in_time
        and "By runs: 2, of" in in_time
        and "guess" not in in_time
    )
    many = {"spark.master": "yarn", "spark.dynamicAllocation.enabled": True, "spark.dynamicAllocation.maxExecutors": 40}
    conf, made.conf = made.conf, replace(made.conf, settings=replace(made.conf.settings, spark=many))
    on_yarn = told_by(made, "what-if", "--input-bytes", str(took.input_bytes), "--deadline", "30")
    assert "deadline_minutes: {batch: 30}" in on_yarn and 10 < len(on_yarn.splitlines()) < 25
    made.conf = conf
    hopeless = told_by(made, "what-if", "--input-bytes", str(1 << 50), "--deadline", "0.01")
    assert "none is surely in time" in hopeless and "cheapest" not in hopeless and "take it for a guess" in hopeless
    late = ("what-if", "--input-bytes", "1", "--deadline", "1", "--job", "etl")
    for words in (("explain", "etl"), ("properties", "silver", "stock"), ("freeze", "gold", "stock"), late):
        with pytest.raises(DrivetrainError, match="was tuned"):
            told_by(made, *words)

    # What a person fixes stays, until it is reset; then the step is as one that never ran.
    assert "keeps" in told_by(made, "freeze", "silver", "orders") and known(made).frozen["silver orders"]
    shop.orders("3.csv", "d,1,x,3")
    made = shop.pipeline()
    made.transform()
    (fixed,) = [one for one in made.steps.done if one.step == "silver"]
    assert {decision["confidence"] for decision in json.loads(fixed.decisions)} == {"frozen"} and fixed.partitions == 1
    assert len(known(made).steps["silver orders"]) == 3
    told_by(made, "reset", "silver", "orders")
    assert "silver orders" not in {**known(made).steps, **known(made).frozen} and len(known(made).jobs["batch"]) == 3

    # Switched off, nothing is set, and what was learned stays.
    shop.orders("4.csv", "e,1,x,3")
    shop.put("conf/base.yaml", (tmp_path / "conf/base.yaml").read_text().replace("tune: true", "tune: false"))
    made = shop.pipeline()
    made.transform()
    assert not any(one.decisions for one in made.steps.done)
    assert len(known(made).jobs["batch"]) == 3
