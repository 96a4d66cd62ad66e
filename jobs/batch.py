"""Batch: sources to bronze, silver and gold; and quarantined rows through again."""

from __future__ import annotations

import argparse

from drivetrain import job
from drivetrain.contracts import Conf


def arguments() -> argparse.ArgumentParser:
    parser = job.parser(__doc__)
    parser.add_argument("datasets", nargs="*", help="only these datasets (default: all)")
    return parser


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress
    from drivetrain.session import open_session

    with job.lock(conf):
        spark, run_id = open_session(conf, "batch"), job.run_id()
        outcome = Pipeline(spark, conf, run_id, "batch", Progress(run_id)).transform(given.datasets)
    if outcome.problems:
        job.show(outcome.problems)
    return job.FAILED if outcome.problems else 0


if __name__ == "__main__":
    job.main(run, arguments())
