"""The main job: assess the sources, transform them to bronze, silver and gold, and report."""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

from drivetrain import job
from drivetrain.contracts import Conf
from drivetrain.errors import DrivetrainError, Problem

MAKER = Path(job.__file__).resolve().parents[2] / "scripts" / "acme_sources.py"  # on a node, this file stands alone


def make_feeds(conf: Conf) -> None:
    """Where there are no feeds yet and the conf wants them made: ACME's, which are made up."""
    landing = Path(conf.settings.landing)
    if conf.settings.make_feeds is None or (landing.is_dir() and any(landing.iterdir())):
        return
    print(f"making feeds in {landing} (made up, by {MAKER.name})", file=sys.stderr)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in conf.settings.make_feeds.items()]
    first = date.today() - timedelta(days=conf.settings.make_feeds["days"])  # so that the last day is yesterday
    options.append(f"--start={first}")
    made = subprocess.run([sys.executable, MAKER, "--out", landing, *options], stdout=sys.stderr)
    if made.returncode:
        raise DrivetrainError(Problem("feeds", str(landing), "making the feeds failed", "see the lines above"))


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain import report
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress
    from drivetrain.session import open_session

    with job.lock(conf):
        make_feeds(conf)
        run_id = job.run_id()
        spark = open_session(conf, "etl")
        pipeline = Pipeline(spark, conf, run_id, "etl", Progress(run_id))
        pipeline.assess()
        outcome = pipeline.transform()
        page = Path(conf.settings.warehouse, "reports", "latest.html")
        if pipeline.steps.done:
            page = report.write(report.collect(spark, conf, run_id, outcome.problems, outcome.notes), conf)
    job.summary(outcome, conf, page if page.exists() else None)
    return job.end(outcome)


if __name__ == "__main__":
    job.main(run, job.parser(__doc__))
