"""What every job does: read its arguments and conf, take the warehouse's lock, end with one list of problems."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drivetrain import conf as conf_reader
from drivetrain import streams
from drivetrain.contracts import DEFAULT_CONF, Conf
from drivetrain.errors import ConfError, DrivetrainError, Problem
from drivetrain.files import Files, is_remote
from drivetrain.findings import nearest

if TYPE_CHECKING:
    from drivetrain.pipeline import Outcome

FAILED, USAGE = 1, 2
NOBODY_READS = 141  # as a shell calls SIGPIPE


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the arguments that every job takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--env", default="local", help="environment: the file laid over base.yaml (local, yarn)")
    made.add_argument("--conf-dir", type=Path, default=DEFAULT_CONF, help="the conf folder")
    made.add_argument(
        "--set", action="append", default=[], dest="sets", metavar="KEY=VALUE", help="a setting, over all others"
    )
    return made


def main(run: Callable[[argparse.Namespace, Conf], int], arguments: argparse.ArgumentParser) -> None:
    """Run a job and exit with its code; problems go to stderr, all of them."""
    streams.take()
    given = arguments.parse_args()
    try:
        conf = conf_reader.load(given.conf_dir, given.env, sets=given.sets)
        code = run(given, conf)
    except DrivetrainError as error:
        show(error.problems)
        code = USAGE if isinstance(error, ConfError) else FAILED
    except BrokenPipeError:  # as in `… | head`: who read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = NOBODY_READS
    sys.stdout.flush()
    sys.exit(code)


def show(problems: Sequence[Problem]) -> None:
    """Print problems for a person."""
    for problem in problems:
        print(f"✗ {problem}", file=sys.stderr)
    print(f"{len(problems)} problem{'s' if len(problems) != 1 else ''}", file=sys.stderr)


def end(outcome: Outcome) -> int:
    """Show what went wrong, if anything; the exit code."""
    if outcome.problems:
        show(outcome.problems)
    return FAILED if outcome.problems else 0


def check_names(names: Sequence[str], conf: Conf) -> None:
    """Raises:
    DrivetrainError: for each name that is no dataset.
    """
    unknown = [name for name in names if name not in conf.datasets]
    if unknown:
        raise DrivetrainError(*[
            Problem("unknown-dataset", "arguments", f"no dataset is named {name!r}", nearest(name, conf.datasets))
            for name in unknown
        ])  # fmt: skip


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], stream: TextIO = sys.stdout) -> None:
    """A table for people."""
    made = Table(*map(escape, columns), box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        made.add_row(*[escape("NULL" if value is None else str(value)) for value in row])
    width = None if stream.isatty() else 200
    Console(file=stream, highlight=False, width=width).print(made)


def run_id() -> str:
    """Names one run; sorts by time."""
    return datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%f")[:-3]


@contextmanager
def lock(conf: Conf, files: Files, holder: str) -> Iterator[None]:
    """Only one job writes to a warehouse at a time; the lock goes with the process, however that ends.

    Raises:
        DrivetrainError: another job holds it, or the folder cannot be written.
    """
    folder = conf.settings.warehouse
    with ExitStack() as stack:
        try:
            stack.enter_context(files.lock(folder, holder))
        except BlockingIOError as error:
            what = f"another job is writing to this warehouse: {error.strerror or 'it did not say which'}"
            fix = "wait until it ends"
            fix += "; HDFS frees the lock of one that was killed within a minute" if is_remote(folder) else ""
            raise DrivetrainError(Problem("locked", folder, what, fix)) from None
        except OSError as error:
            what = f"the warehouse cannot be written: {error.strerror}"
            raise DrivetrainError(Problem("warehouse", folder, what, "set warehouse to a folder of yours")) from error
        yield


def summary(outcome: Outcome, conf: Conf, page: str | None) -> None:
    """What happened, where the tables are and how to query them, on stdout."""
    if not outcome.ledger and not outcome.published:
        print("Nothing new: every table is up to date.")
    if outcome.ledger:
        columns = (
            "dataset",
            "rows in",
            "good",
            "quarantined",
            "duplicate",
            "late",
            "inserted",
            "updated",
            "superseded",
        )
        table(columns, [
            (r.dataset, r.rows_in, r.good, r.quarantined, r.duplicate, r.late, r.inserted, r.updated, r.superseded)
            for r in outcome.ledger
        ])  # fmt: skip
    for row in outcome.verdicts:
        if row.flagged and row.stage != "shadow":
            told = f"model {row.version} ({row.stage}) flagged {row.flagged} of {row.judged}, removed {row.removed}"
            print(f"Anomalies: {row.dataset}: {told}: {conf.command('anomalies')} review {row.dataset}")
    if outcome.published:
        print(f"Published: {', '.join(f'gold.{name}' for name in outcome.published)}")
    print(f"Tables:    {conf.settings.warehouse}/{{bronze,silver,gold,ops}}, quarantine")
    example = next(iter(outcome.published or conf.gold or conf.datasets), "orders")
    sql = conf.command("sql")
    print(f'Query:     {sql} "select * from {example} limit 10"')
    print(f'Why not:   {sql} "select dataset, rule, count(*) n from ops.quarantine group by all"')
    if page:
        print(f"Report:    {page}")
