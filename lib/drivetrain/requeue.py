"""Quarantined rows through again: released (their rules waived) or repaired, each once."""

from __future__ import annotations

import json
from pathlib import Path

from pyspark.sql import functions as F

from drivetrain import quarantine, sqltext
from drivetrain.contracts import Dataset
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.pipeline import Pipeline
from drivetrain.sink import Txn


def release(pipeline: Pipeline, condition: str) -> int:
    """Mark open rows that fulfil the SQL condition as released. Returns how many those are."""
    fix = "write e.g. \"dataset = 'orders' AND rule = 'bounds'\""
    sqltext.check_condition(condition, list(quarantine.COLUMNS), "quarantine has", "--release", fix)
    _need_quarantine(pipeline)
    where = f"state = 'open' AND _load IS NOT NULL AND ({condition})"
    count = pipeline.quarantine.read().where(where).count()
    pipeline.quarantine.update(
        where, {"state": "'released'"}, Txn(f"release:{pipeline.outcome.run}", 1), {"run": pipeline.outcome.run}
    )
    return count


def repair(pipeline: Pipeline, path: Path) -> int:
    """Take repaired records from a file of JSON lines, {"quarantine_id": …, "raw": …}. Returns how many were open."""
    _need_quarantine(pipeline)
    found = _repairs(path)
    repairs = pipeline.spark.createDataFrame(found, "quarantine_id string, state string, repaired string")
    held = pipeline.quarantine.read().where("_load IS NOT NULL").drop("repaired")
    known = held.join(F.broadcast(repairs.select("quarantine_id")), "quarantine_id").select("quarantine_id", "state")
    states = {row["quarantine_id"]: row["state"] for row in known.collect()}
    if unknown := [quarantine_id for quarantine_id, _, _ in found if quarantine_id not in states]:
        what = f"no row of quarantine has the id {', '.join(unknown[:5])}{' …' if len(unknown) > 5 else ''}"
        raise DrivetrainError(Problem("repair", str(path), what, "copy quarantine_id from ops.quarantine"))
    held = held.where("state = 'open'").drop("state")  # the others have been on their way since an earlier call
    rows = held.join(F.broadcast(repairs), "quarantine_id").select(*quarantine.COLUMNS)
    txn = Txn(f"repair:{pipeline.outcome.run}", 1)
    pipeline.quarantine.merge(rows, ["quarantine_id"], txn, {"run": pipeline.outcome.run})
    return sum(states[quarantine_id] == "open" for quarantine_id, _, _ in found)


def _repairs(path: Path) -> list[tuple[str, str, str]]:
    found, problems = {}, []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        problem = Problem(
            "repair", str(path), f"the file cannot be read: {error}", "name a file of JSON lines, in UTF-8"
        )
        raise DrivetrainError(problem) from None
    for number, line in enumerate(lines, 1):
        try:
            item = json.loads(line)
            if not isinstance(item["raw"], str):
                raise TypeError("raw is not a text")
            found[str(item["quarantine_id"])] = item["raw"]
        except (ValueError, KeyError, TypeError) as error:
            problems.append(
                Problem(
                    "repair", f"{path}:{number}", f"not a repair: {error}", 'write {"quarantine_id": "…", "raw": "…"}'
                )
            )
    if problems:
        raise DrivetrainError(*problems)
    return [(key, "repaired", raw) for key, raw in found.items()]


def _need_quarantine(pipeline: Pipeline) -> None:
    if not pipeline.quarantine.exists():
        raise DrivetrainError(
            Problem(
                "quarantine", pipeline.quarantine.path, "nothing has been quarantined yet", "run etl or batch first"
            )
        )


def requeue(pipeline: Pipeline) -> None:
    """Append the released and repaired records of each dataset to the log, then mark them; transform takes them on.

    The log is the truth of what was requeued: a row that it has is marked, never appended again.
    """
    if not pipeline.quarantine.exists():
        return
    for dataset in pipeline.conf.datasets.values():
        with pipeline.problem_of(dataset.name):
            _requeue(pipeline, dataset)


def _requeue(pipeline: Pipeline, dataset: Dataset) -> None:
    log = pipeline.table("bronze", dataset.name)
    waiting = pipeline.quarantine.read().where(
        F.col("state").isin("released", "repaired") & (F.col("dataset") == dataset.name)
    )
    if waiting.isEmpty() or not log.exists():
        return
    entries = log.read().where(F.col("_entry") == "record")
    taken = entries.where(F.col("_requeued").isNotNull()).select(F.col("_requeued").alias("quarantine_id"))
    # Of rows from one place the others wait for the next time: a load holds a place once.
    todo = waiting.join(taken, "quarantine_id", "left_anti").dropDuplicates(["_file", "_block", "_line"])
    place = ["_load", "_file", "_block", "_line"]
    origin = entries.select(*place, "_layout", F.col("raw").alias("_raw"), F.col("raw_bytes").alias("_bytes"))
    records = todo.join(origin, place).select(
        F.coalesce("repaired", "_raw").alias("raw"),
        F.when(F.col("repaired").isNull(), F.col("_bytes")).alias("raw_bytes"),
        "_file", "_block", "_line", "_layout", F.col("quarantine_id").alias("_requeued"),
        (F.col("state") == "released").alias("_released"),
    )  # fmt: skip
    run = pipeline.outcome.run
    with pipeline.step("requeue", dataset.name) as step:
        if not todo.isEmpty():
            step.rows = pipeline.append_log(dataset, records, {"files": 0}, pipeline.layouts(dataset))
        ids = entries.where(F.col("_requeued").isNotNull()).select(F.col("_requeued").alias("quarantine_id")).distinct()
        done = pipeline.quarantine.read().join(ids, "quarantine_id").where(F.col("state") != "requeued")
        txn = Txn(f"{dataset.name}:requeued:{run}", 1)
        marked = done.withColumn("state", F.lit("requeued")).select(*quarantine.COLUMNS)
        pipeline.quarantine.merge(marked, ["quarantine_id"], txn, {"run": run})
