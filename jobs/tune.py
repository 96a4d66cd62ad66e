"""Tune: the settings that steps ran with, and why; what another size or a deadline takes; fixing, forgetting."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from drivetrain import job
from drivetrain.contracts import Conf
from drivetrain.errors import DrivetrainError, Problem

if TYPE_CHECKING:
    from drivetrain.history import History
    from drivetrain.sink import Table

MB = 1 << 20
FAR = 10  # times the largest input that was seen


def arguments() -> argparse.ArgumentParser:
    parser = job.parser(__doc__)
    do = parser.add_subparsers(dest="do", required=True, metavar="WHAT")
    explain = do.add_parser("explain", help="each step's last settings, why, and what came of them")
    explain.add_argument("job", nargs="?", help="etl, batch (default: whichever ran the step last), or speed")
    what_if = do.add_parser("what-if", help="the partitions that the steps would have with another input, or executors")
    what_if.add_argument("--input-bytes", type=positive, required=True, help="stored bytes of new records, or a step's")
    of = what_if.add_mutually_exclusive_group()
    of.add_argument("--cores", type=positive, help="(default: as many as the application may come to use)")
    of.add_argument("--deadline", type=minutes, metavar="MINUTES", help="the executors that it takes")
    what_if.add_argument("--job", default="batch", help="whose deadline (default: batch)")
    for name, help_ in (
        ("properties", "a step's last settings, as a file that spark-submit reads"),
        ("freeze", "a step's last settings stay what they are, whatever its runs show"),
        ("reset", "what a step's runs have shown is forgotten, and nothing is fixed for it: the rule holds again"),
    ):
        of_step = do.add_parser(name, help=help_)
        of_step.add_argument("step", choices=("silver", "gold"), help="silver or gold")
        of_step.add_argument("dataset", help="the dataset, or the gold table")
    return parser


def minutes(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError("it must be more than 0")
    return number


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return number


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain.session import open_session
    from drivetrain.sink import Table

    steps = Table(open_session(conf, "tune", "in-memory"), f"{conf.settings.warehouse}/ops/steps")
    DO[given.do](given, conf, steps)
    return 0


def explain(given: argparse.Namespace, conf: Conf, steps: Table) -> None:
    if given.job == "speed":
        explain_streams(conf, steps)
        return
    rows = tuned(conf, steps, given.job)
    columns, keys = (
        ("step", "setting", "value", "Spark's own", "rests on", "because"),
        ("value", "default", "confidence"),
    )
    job.table(columns, [
        (f"{row['step']} {row['dataset']}", one["setting"], *(one[key] for key in keys), one["because"])
        for row in rows for one in json.loads(row["decisions"])
    ])  # fmt: skip
    figures = ("shuffle MB expected", "measured", "spill MB", "CPU s", "GC s", "s", "tasks", "slowest/median")
    measured = ("run", "step", *figures)
    job.table(measured, [
        (row["run"], f"{row['step']} {row['dataset']}", f"{row['expected_shuffle_bytes'] / MB:,.1f}",
         f"{row['shuffle_write_bytes'] / MB:,.1f}", f"{row['spill_bytes'] / MB:,.1f}", f"{row['cpu_seconds']:.2f}",
         *[f"{row[name] or 0:.2f}" for name in ("gc_seconds", "seconds")], row["tasks"], f"{row['slowest'] or 0:.1f}")
        for row in rows
    ])  # fmt: skip


def explain_streams(conf: Conf, steps: Table) -> None:
    """What each topic's stream would begin with now; a running one keeps what it has said at its start."""
    from drivetrain import pace
    from drivetrain.sink import Table

    streams = [(one.name, one.stream, one.kafka) for one in conf.datasets.values() if one.stream and one.kafka]
    if not streams:
        raise DrivetrainError(Problem("no-stream", "conf", "no dataset reads a topic", "see docs/contracts.md"))
    table = Table(steps.spark, f"{conf.settings.warehouse}/ops/speed")
    made = [(name, pace.bound(stream, topic.max_messages, pace.known(table, name))) for name, stream, topic in streams]
    columns = ("stream", "setting", "value", "Spark's own", "rests on", "because")
    rows = [(name, one.setting, one.value, one.default, one.confidence, one.because) for name, one in made]
    job.table(columns, rows)
    print("Streams keep no state in Spark: their partitions may change with each start")


def what_if(given: argparse.Namespace, conf: Conf, steps: Table) -> None:
    from dataclasses import replace

    from drivetrain import tune

    machine, history = tune.machine(steps.spark), tune.known(steps)
    if given.deadline:
        in_time(given, conf, steps, history)
        return
    machine = replace(machine, cores=given.cores or machine.cores)
    if not history.steps:
        raise nothing(conf, steps)
    rows = []
    for step, runs in sorted(history.steps.items()):
        every = tune.decide(machine, [], given.input_bytes, runs, history.frozen.get(step, {}))
        made = [one for one in every if one.setting == tune.SHUFFLE]  # none where other settings of it are frozen
        told = tune.forecast(given.input_bytes, runs)
        why = [(one.value, one.confidence, one.because) for one in made] or [("conf's", "frozen", "others had set it")]
        rows.append((step, f"{told.bytes / MB:,.1f}", *why[0]))
    job.table(("step", "shuffle MB expected", tune.SHUFFLE, "rests on", "because"), rows)


def in_time(given: argparse.Namespace, conf: Conf, steps: Table, history: History) -> None:
    """Each number of executors that conf allows, how long it takes and costs, and the cheapest that is in time."""
    from drivetrain import deadline
    from drivetrain.capacity import Scaling, choose
    from drivetrain.tune import machine

    took = history.jobs.get(given.job, ())
    if not took:
        raise nothing(conf, steps, f"no run of {given.job} that brought new records was tuned")
    settings = {key: str(value).lower() for key, value in conf.settings.spark.items()}
    on_yarn = settings.get("spark.master") == "yarn"
    here = deadline.Bounds(1, 1, machine(steps.spark).cores)  # a local master is one executor, with all cores
    allowed = deadline.bounds(settings) if on_yarn else here
    scaling, limit = Scaling(took), given.deadline * 60
    chosen = choose(scaling, given.input_bytes, limit, allowed.each, allowed.numbers)
    shown = sorted({*allowed.numbers[:8], *allowed.numbers[8 :: max(1, len(allowed.numbers) // 8)], chosen.executors})
    rows = []
    for executors in shown:
        cores = executors * allowed.each
        lasts = scaling.duration(given.input_bytes, cores)
        told = "cheapest in time" if chosen.in_time else "fastest at worst; none is surely in time"
        marks = (cores, f"{lasts.seconds / 60:.1f}", f"{lasts.at_worst / 60:.1f}", f"{cores * lasts.seconds / 60:,.0f}")
        verdict = told if executors == chosen.executors else "in time" if lasts.at_worst <= limit else ""
        rows.append((executors, *marks, verdict))
    columns = ("executors", "cores", "minutes", "95 of 100 below", "core minutes", f"within {given.deadline:g} min")
    job.table(columns, rows)
    cores_, sizes = sorted(one.cores for one in took), sorted(one.input_bytes for one in took)
    reach = f"{sizes[0] / MB:,.1f} to {sizes[-1] / MB:,.1f} MB with {cores_[0]} to {cores_[-1]} cores"
    print(f"By runs: {len(took)}, of {reach}")
    if given.input_bytes > FAR * sizes[-1] or given.input_bytes * FAR < sizes[0]:
        print(f"{given.input_bytes / MB:,.1f} MB is far from all of them: take it for a guess")
    if on_yarn:
        print(f"As a setting: deadline_minutes: {{{given.job}: {given.deadline:g}}}")


def properties(given: argparse.Namespace, conf: Conf, steps: Table) -> None:
    for one in last_decisions(given, conf, steps):
        print(f"# {one['because']}\n{one['setting']}={one['value']}")


def freeze(given: argparse.Namespace, conf: Conf, steps: Table) -> None:
    from drivetrain.history import step_key

    settings = {one["setting"]: one["value"] for one in last_decisions(given, conf, steps)}
    key = step_key(given.step, given.dataset)
    change(conf, steps, lambda history: history.frozen_as(key, settings))
    print(f"{key} keeps {', '.join(f'{name}={value}' for name, value in settings.items())}; tune reset ends it")


def reset(given: argparse.Namespace, conf: Conf, steps: Table) -> None:
    from drivetrain.history import step_key

    last_decisions(given, conf, steps)
    key = step_key(given.step, given.dataset)
    change(conf, steps, lambda history: history.without(key))
    print(f"{key}: its runs are forgotten and nothing is fixed for it")


def change(conf: Conf, steps: Table, made: Callable[[History], History]) -> None:
    """Put down another history, while no job runs that would put down its own."""
    from drivetrain.session import files_of
    from drivetrain.sink import Txn
    from drivetrain.tune import known

    spark, run_id = steps.spark, job.run_id()
    with job.lock(conf, files_of(conf.settings.warehouse, spark), spark.sparkContext.applicationId):
        metadata = {"run": run_id, **made(known(steps)).metadata()}
        steps.append(steps.read().limit(0), Txn(f"tune:{run_id}", 1), metadata, {})


def last_decisions(given: argparse.Namespace, conf: Conf, steps: Table) -> list[dict[str, Any]]:
    """Those of the step's newest run that was no try."""
    rows = [
        row
        for row in tuned(conf, steps, None, "NOT contains(decisions, '\"try\"')")
        if (row["step"], row["dataset"]) == (given.step, given.dataset)
    ]
    if not rows:
        raise nothing(conf, steps, f"no {given.step} of {given.dataset} was tuned but for tries")
    return list(json.loads(rows[0]["decisions"]))


def tuned(conf: Conf, steps: Table, job_name: str | None, which: str = "true") -> Sequence[Any]:
    """The newest row of each tuned step; of one job where that is named, and of those rows for which SQL holds."""
    from pyspark.sql import functions as F

    if not steps.exists() or "decisions" not in (frame := steps.read()).columns:
        raise nothing(conf, steps)
    mine = frame.where("decisions <> ''").where(F.col("job") == job_name if job_name else F.lit(True))
    newest = mine.where(which).groupBy("step", "dataset").agg(F.max_by(F.struct("*"), "started").alias("row"))
    rows = newest.select("row.*").orderBy(F.desc("step"), "dataset").collect()
    if not rows:
        raise nothing(conf, steps, f"no step of {job_name} was tuned" if job_name else None)
    return rows


def nothing(conf: Conf, steps: Table, what: str | None = None) -> DrivetrainError:
    fix = f"run {conf.command('batch')} on new input first; steps are not tuned with --set tune=false"
    return DrivetrainError(Problem("not-tuned", steps.path, what or "no step was tuned yet", fix))


DO = {"explain": explain, "what-if": what_if, "properties": properties, "freeze": freeze, "reset": reset}

if __name__ == "__main__":
    job.main(run, arguments())
