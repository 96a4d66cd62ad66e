"""Batch: sources to bronze, silver and gold; and quarantined rows through again."""

from __future__ import annotations

import argparse
from pathlib import Path

from drivetrain import job
from drivetrain.contracts import Conf


def arguments() -> argparse.ArgumentParser:
    parser = job.parser(__doc__)
    parser.add_argument("datasets", nargs="*", help="only these datasets (default: all)")
    parser.add_argument(
        "--release", metavar="CONDITION", help="mark open quarantined rows as right: their rules are waived"
    )
    parser.add_argument(
        "--repair", metavar="FILE", type=Path, help='JSON lines {"quarantine_id": …, "raw": …}: repaired records'
    )
    parser.add_argument("--requeue", action="store_true", help="take released and repaired rows through again, once")
    parser.add_argument(
        "--vacuum", action="store_true", help="remove files that no reader can need any more; only that"
    )
    return parser


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain import maintain, requeue
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress
    from drivetrain.session import files_of, open_session

    job.check_names(given.datasets, conf)
    spark = open_session(conf, "batch")
    with job.lock(conf, files_of(conf.settings.warehouse, spark), spark.sparkContext.applicationId):
        run_id = job.run_id()
        progress = Progress(run_id)
        pipeline = Pipeline(spark, conf, run_id, "batch", progress)
        if given.vacuum:
            pipeline.publish_manifest()  # so that views name what is kept
            pipeline.show_names()
            kept = [(one.table, f"{one.hours:g} h", one.reason) for one in maintain.vacuum(pipeline)]
            job.table(("table", "kept", "because"), kept)
            return job.end(pipeline.outcome)
        if given.release:
            progress.say(f"released now: {requeue.release(pipeline, given.release)}; --requeue takes them through")
        if given.repair:
            progress.say(f"repaired now: {requeue.repair(pipeline, given.repair)}; --requeue takes them through")
        if given.requeue:
            requeue.requeue(pipeline)
        if given.requeue or not (given.release or given.repair):
            job.summary(pipeline.transform(given.datasets), conf, None)
    return job.end(pipeline.outcome)


if __name__ == "__main__":
    job.main(run, arguments())
