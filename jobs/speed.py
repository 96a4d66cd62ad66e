"""Speed: what streams bring, visible within seconds; merged into silver and gold every so often."""

from __future__ import annotations

import argparse

from drivetrain import job
from drivetrain.contracts import Conf


def arguments() -> argparse.ArgumentParser:
    parser = job.parser(__doc__)
    parser.add_argument("datasets", nargs="*", help="only these datasets (default: all that have a stream)")
    parser.add_argument("--once", action="store_true", help="take what is there, publish it and end")
    told = "go on behind messages that are gone, which an error named so; it is written down"
    parser.add_argument("--accept-loss", metavar="RANGE", action="append", default=[], help=told)
    return parser


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain.ending import Ending
    from drivetrain.live import Live
    from drivetrain.progress import Progress
    from drivetrain.session import embedded, open_session
    from drivetrain.speed import Speed

    job.check_names(given.datasets, conf)
    spark = open_session(conf, "speed", "in-memory" if embedded(conf) else None)
    progress = Progress(job.run_id())
    speed = Speed(spark, conf, given.datasets, progress, given.once, given.accept_loss)
    Ending(spark, speed.stop, progress.say)
    with Live(progress) as live:
        outcome = speed.run(live.show)
    job.summary(outcome, conf, None)
    return job.end(outcome)


if __name__ == "__main__":
    job.main(run, arguments())
