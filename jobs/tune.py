"""Tune: the settings that steps ran with, and why; what they would be at another size; as a file for others."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from drivetrain import job
from drivetrain.contracts import Conf
from drivetrain.errors import DrivetrainError, Problem

if TYPE_CHECKING:
    from drivetrain.sink import Table

MB = 1 << 20


def arguments() -> argparse.ArgumentParser:
    parser = job.parser(__doc__)
    do = parser.add_subparsers(dest="do", required=True, metavar="WHAT")
    explain = do.add_parser("explain", help="each step's last settings, why, and what came of them")
    explain.add_argument("job", nargs="?", help="etl or batch (default: whichever ran the step last)")
    what_if = do.add_parser("what-if", help="the partitions that the steps would have with another input")
    what_if.add_argument("--input-bytes", type=positive, required=True, help="stored bytes that a step takes in")
    what_if.add_argument("--cores", type=positive, help="(default: as many as the application may come to use)")
    properties = do.add_parser("properties", help="a step's last settings, as a file that spark-submit reads")
    properties.add_argument("step", help="silver or gold")
    properties.add_argument("dataset", help="the dataset, or the gold table")
    return parser


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain.session import open_session
    from drivetrain.sink import Table

    steps = Table(open_session(conf, "tune", "in-memory"), f"{conf.settings.warehouse}/ops/steps")
    {"explain": explain, "what-if": what_if, "properties": properties}[given.do](given, conf, steps)
    return 0


def explain(given: argparse.Namespace, conf: Conf, steps: Table) -> None:
    rows = tuned(conf, steps, given.job)
    columns, keys = (
        ("step", "setting", "value", "Spark's own", "rests on", "because"),
        ("value", "default", "confidence"),
    )
    job.table(columns, [
        (f"{row['step']} {row['dataset']}", one["setting"], *(one[key] for key in keys), one["because"])
        for row in rows for one in json.loads(row["decisions"])
    ])  # fmt: skip
    measured = ("run", "step", "shuffle MB expected", "measured", "spill MB", "CPU s", "s", "tasks")
    job.table(measured, [
        (row["run"], f"{row['step']} {row['dataset']}", f"{row['expected_shuffle_bytes'] / MB:,.1f}",
         f"{row['shuffle_write_bytes'] / MB:,.1f}", f"{row['spill_bytes'] / MB:,.1f}", f"{row['cpu_seconds']:.2f}",
         f"{row['seconds']:.2f}", row["tasks"])
        for row in rows
    ])  # fmt: skip


def what_if(given: argparse.Namespace, conf: Conf, steps: Table) -> None:
    from dataclasses import replace

    from drivetrain import tune

    machine, history = tune.machine(steps.spark), tune.read_history(steps)
    machine = replace(machine, cores=given.cores or machine.cores)
    if not history:
        raise nothing(conf, steps)
    rows = []
    for step, runs in sorted(history.items()):
        made = tune.decide(machine, [], given.input_bytes, runs)[0]
        told = tune.forecast(given.input_bytes, runs)
        rows.append((step, f"{told.bytes / MB:,.1f}", made.value, made.confidence, made.because))
    job.table(("step", "shuffle MB expected", tune.SHUFFLE, "rests on", "because"), rows)


def properties(given: argparse.Namespace, conf: Conf, steps: Table) -> None:
    rows = [row for row in tuned(conf, steps, None) if (row["step"], row["dataset"]) == (given.step, given.dataset)]
    if not rows:
        raise nothing(conf, steps, f"no {given.step} of {given.dataset} was tuned")
    for one in json.loads(rows[0]["decisions"]):
        print(f"# {one['because']}\n{one['setting']}={one['value']}")


def tuned(conf: Conf, steps: Table, job_name: str | None) -> Sequence[Any]:
    """The newest row of each tuned step; of one job where that is named."""
    from pyspark.sql import functions as F

    if not steps.exists() or "decisions" not in (frame := steps.read()).columns:
        raise nothing(conf, steps)
    mine = frame.where("decisions <> ''").where(F.col("job") == job_name if job_name else F.lit(True))
    newest = mine.groupBy("step", "dataset").agg(F.max_by(F.struct("*"), "started").alias("row"))
    rows = newest.select("row.*").orderBy(F.desc("step"), "dataset").collect()
    if not rows:
        raise nothing(conf, steps, f"no step of {job_name} was tuned" if job_name else None)
    return rows


def nothing(conf: Conf, steps: Table, what: str | None = None) -> DrivetrainError:
    fix = f"run {conf.command('batch')} on new input first; steps are not tuned with --set tune=false"
    return DrivetrainError(Problem("not-tuned", steps.path, what or "no step was tuned yet", fix))


if __name__ == "__main__":
    job.main(run, arguments())
