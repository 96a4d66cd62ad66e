"""What runs have taught, as commits carry it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from drivetrain import history, ops, tune
from drivetrain.files import LOCAL
from drivetrain.history import History, Run, Took
from drivetrain.tune import MB, Machine

RUN = Run(100 * MB, 200 * MB, 0, 10.0, 8, 200 * MB, 2, 5)


def step(**changes: Any) -> ops.Step:
    made = ops.Step("r", "batch", "silver", "orders", ops.now(), cpu_seconds=2.0, shuffle_write_bytes=5 * MB)
    tune.plan(Machine(2, 2048 * MB), [], 10 * MB, []).note(made, 4)
    return replace(made, **{"seconds": 4.0, "task_seconds": 6.0, "cores": 2, **changes})


def test_the_latest_runs_that_ended_well_are_kept() -> None:
    made = History().with_run("batch", [step(), step(failed=True), step(decisions=""), step(dataset="leads")], 9.0)
    assert set(made.steps) == {"silver orders", "silver leads"} and len(made.steps["silver orders"]) == 1
    assert made.steps["silver orders"][0] == Run(10 * MB, 5 * MB, 0, 2.0, 4, 30 * MB, 0)
    many = made.with_run("batch", [step(cpu_seconds=float(i)) for i in range(20)], 9.0)
    assert [run.cpu_seconds for run in many.steps["silver orders"]] == [float(i) for i in range(12, 20)]
    assert len(made.steps["silver orders"]) == 1


def test_what_a_number_of_partitions_cost_is_kept_while_others_run() -> None:
    """Of each the latest three, and 24 in all."""
    other = [replace(RUN, partitions=4, cpu_seconds=float(i)) for i in range(5)]
    runs = history.kept([*other, *[RUN] * 20])
    assert [run.cpu_seconds for run in runs if run.partitions == 4] == [2.0, 3.0, 4.0] and len(runs) == 11
    assert runs == history.kept(runs), "kept again it is the same"
    each = history.kept([replace(RUN, partitions=i) for i in range(1, 99)])
    assert [run.partitions for run in each] == list(range(75, 99))


def test_a_run_that_was_short_of_memory_teaches_only_that() -> None:
    """Even one that failed: else the next would be tried as it was."""
    known = History().with_run("batch", [step()], 9.0)
    made = known.with_run("batch", [step(failed=True, short_of_memory=True, shuffle_write_bytes=500 * MB)], 9.0)
    runs = made.steps["silver orders"]
    assert [run.short for run in runs] == [False, True] and len(made.jobs["batch"]) == 1
    assert tune.forecast(10 * MB, runs) == tune.forecast(10 * MB, runs[:1]) and tune.drifted(runs)


def test_a_whole_run_tells_of_its_job() -> None:
    gold = step(step="gold", dataset="sales", seconds=12.0, cores=6)
    made = History().with_run("batch", [step(), gold], 30.0)
    assert made.jobs == {"batch": [Took(10 * MB, 5, 30.0, 12.0)]}
    assert not History().with_run("batch", [gold], 30.0).jobs
    assert not History().with_run("batch", [step(), replace(gold, failed=True)], 30.0).jobs
    for _ in range(30):
        made = made.with_run("batch", [step()], 20.0)
    assert [len(made.jobs["batch"]), made.jobs["batch"][-1].seconds] == [history.KEPT_JOBS, 20.0]


def test_executors_that_have_gone_by_the_end_of_a_step_are_counted_by_their_work() -> None:
    """A tail of idle seconds lets dynamic allocation take all but one; 60 task seconds in 6 s were ten cores'."""
    made = History().with_run("batch", [step(seconds=6.0, task_seconds=60.0, cores=1)], 6.0)
    assert made.jobs["batch"] == [Took(10 * MB, 10, 6.0, 60.0)]


def commit(folder: Path, version: int, metadata: dict[str, Any] | None) -> None:
    log = folder / "_delta_log"
    log.mkdir(parents=True, exist_ok=True)
    info = {"operation": "WRITE", **({"userMetadata": json.dumps(metadata)} if metadata is not None else {})}
    lines = [{"commitInfo": info}, {"add": {"path": "x"}}]
    (log / f"{version:020d}.json").write_text("\n".join(map(json.dumps, lines)))


def test_the_newest_commit_that_tells_is_read(tmp_path: Path) -> None:
    """Not only by who writes the table: a launcher has no Spark."""
    table = str(tmp_path / "steps")
    assert history.read(LOCAL, table) == History()
    old = History({"silver orders": [RUN]}, {"batch": [Took(1, 2, 3.0, 4.0)]}, {"gold sales": {tune.SHUFFLE: "4"}})
    commit(tmp_path / "steps", 0, History({"silver leads": [RUN]}).metadata())
    commit(tmp_path / "steps", 1, {"run": "r", **old.metadata()})
    commit(tmp_path / "steps", 2, {"run": "s"})
    commit(tmp_path / "steps", 3, None)
    assert history.read(LOCAL, table) == old
    commit(tmp_path / "steps", 4, {"learned": {"steps": [1]}})
    (tmp_path / "steps/_delta_log" / f"{5:020d}.json").write_text('{"commitInfo": {"userMetadata": "by hand"}}')
    assert history.read(LOCAL, table) == old, "what cannot be read is not ours"


def test_a_version_that_knows_other_figures_is_read(tmp_path: Path) -> None:
    told: dict[str, Any] = json.loads(json.dumps(History({"silver orders": [RUN]}).metadata()))
    told["learned"]["steps"]["figures"].append("heat")
    told["learned"]["steps"]["runs"]["silver orders"][0].append(7)
    commit(tmp_path / "steps", 0, told)
    assert history.read(LOCAL, str(tmp_path / "steps")).steps == {"silver orders": [RUN]}


def test_a_step_can_be_fixed_and_forgotten() -> None:
    known = History({"silver orders": [RUN], "gold sales": [RUN]})
    fixed = known.frozen_as("silver orders", {tune.SHUFFLE: "3"})
    assert fixed.frozen == {"silver orders": {tune.SHUFFLE: "3"}} and fixed.steps == known.steps
    assert fixed.with_run("batch", [], 1.0).frozen == fixed.frozen
    assert fixed.without("silver orders") == History({"gold sales": [RUN]})
