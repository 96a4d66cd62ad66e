"""Replay: silver and gold built again beside, from the log; compared with what stands; swapped in when you say so."""

from __future__ import annotations

import argparse

from drivetrain import job
from drivetrain.contracts import Conf
from drivetrain.errors import DrivetrainError, Problem


def arguments() -> argparse.ArgumentParser:
    parser = job.parser(__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--from", dest="after", metavar="LOAD", default="beginning",
                      help="silver as it was at this load, and on from there (default: beginning)")  # fmt: skip
    what.add_argument("--swap", metavar="REPLAY", help="put what this replay built in the place of what stands")
    what.add_argument("--rollback", metavar="REPLAY", help="have back what the swap of this replay replaced")
    parser.add_argument("--tables", metavar="DATASETS", default="", help="only these datasets, parted by commas")
    return parser


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain import replay
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress
    from drivetrain.session import files_of, open_session

    names = [name for name in given.tables.split(",") if name]
    job.check_names(names, conf)
    after = _load(given.after)
    moves = bool(given.swap or given.rollback)
    spark = open_session(conf, "replay", None if moves else "in-memory")
    run_id = job.run_id()
    pipeline = Pipeline(spark, conf, run_id, "replay", Progress(run_id))
    if not moves:
        datasets = [dataset for dataset in conf.datasets.values() if not names or dataset.name in names]
        _show(replay.replay(pipeline, datasets, after), run_id, conf)
        return job.end(pipeline.outcome)
    with job.lock(conf, files_of(conf.settings.warehouse, spark), spark.sparkContext.applicationId):
        if given.swap:
            replay.swap(pipeline, given.swap)
            print(f"Swapped in. To have back what stood before: {conf.command('replay')} --rollback {given.swap}")
        else:
            replay.rollback(pipeline, given.rollback)
            print("Rolled back.")
    return job.end(pipeline.outcome)


def _load(text: str) -> int:
    if text == "beginning":
        return 0
    if text.isdigit():
        return int(text)
    raise DrivetrainError(Problem("arguments", "--from", f"{text!r} is no load", "write beginning, or a load's number"))


def _show(differences: list, run_id: str, conf: Conf) -> None:  # type: ignore[type-arg]
    columns = ("table", "same", "only now", "only replayed", "changed")
    job.table(columns, [(f"{d.layer}.{d.table}", d.same, d.only_now, d.only_replayed, d.changed) for d in differences])
    for difference in differences:
        for kind, row in difference.samples:
            print(f"{difference.layer}.{difference.table}: {kind}: {row}")
    if all(difference.is_none for difference in differences):
        print("The replay gives what stands.")
    print(f"To publish the replay: {conf.command('replay')} --swap {run_id}")


if __name__ == "__main__":
    job.main(run, arguments())
