"""Plan: what would be read, written and recomputed, and why; or every error of the conf. Writes nothing."""

from __future__ import annotations

import argparse

from drivetrain import job
from drivetrain.contracts import Conf


def arguments() -> argparse.ArgumentParser:
    parser = job.parser(__doc__)
    parser.add_argument("--graph", action="store_true", help="print the lineage, column by column, as Mermaid")
    return parser


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain import plan

    if given.graph:
        print(plan.graph(conf))
        return 0
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress
    from drivetrain.session import open_session

    run_id = job.run_id()
    pipeline = Pipeline(open_session(conf, "plan", "in-memory"), conf, run_id, "plan", Progress(run_id))
    lines = plan.intents(pipeline)
    job.table(plan.COLUMNS, [(line.table, line.action, line.reads, line.why) for line in lines])
    return job.end(pipeline.outcome)


if __name__ == "__main__":
    job.main(run, arguments())
