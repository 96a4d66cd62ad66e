"""The main job: assess the sources, transform them to bronze, silver and gold, and report."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path

from drivetrain import job
from drivetrain.contracts import ROOT, Conf
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import Files

MAKER = ROOT / "scripts" / "acme_sources.py"  # ROOT, for on a node this file stands alone


def make_feeds(conf: Conf, files: Files) -> None:
    """Where there are no feeds yet and the conf wants them made: ACME's, which are made up."""
    landing = conf.settings.landing
    if conf.settings.make_feeds is None or (files.is_folder(landing) and any(files.walk(landing))):
        return
    print(f"making feeds in {landing} (made up, by {MAKER.name})", file=sys.stderr)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in conf.settings.make_feeds.items()]
    first = date.today() - timedelta(days=conf.settings.make_feeds["days"])  # so that the last day is yesterday
    options.append(f"--start={first}")
    with tempfile.TemporaryDirectory(prefix="drivetrain-") as folder:
        made = subprocess.run([sys.executable, MAKER, "--out", folder, *options], stdout=sys.stderr)
        if made.returncode:
            raise DrivetrainError(Problem("feeds", landing, "making the feeds failed", "see the lines above"))
        for feed in sorted(Path(folder).iterdir()):
            files.put(feed, f"{landing}/{feed.name}")


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain import report
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress
    from drivetrain.session import files_of, open_session

    spark = open_session(conf, "etl")
    files = files_of(conf.settings.warehouse, spark)
    with job.lock(conf, files, spark.sparkContext.applicationId):
        make_feeds(conf, files_of(conf.settings.landing, spark))
        run_id = job.run_id()
        pipeline = Pipeline(spark, conf, run_id, "etl", Progress(run_id))
        pipeline.assess()
        outcome = pipeline.transform()
        page = report.latest(conf) if files.find(report.latest(conf)) else None
        if pipeline.steps.done:
            page = report.write(report.collect(spark, conf, run_id, outcome.problems, outcome.notes), conf, files)
    job.summary(outcome, conf, page)
    return job.end(outcome)


if __name__ == "__main__":
    job.main(run, job.parser(__doc__))
