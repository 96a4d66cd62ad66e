"""SQL over the published tables: one query, or a shell where none is given."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator

from drivetrain import job, sqltext
from drivetrain.contracts import Conf

PROMPT = "sql> "


def arguments() -> argparse.ArgumentParser:
    parser = job.parser(__doc__)
    parser.add_argument(
        "query", nargs="?", help="a SELECT, SHOW TABLES or DESCRIBE; without it a shell, or statements from stdin"
    )
    parser.add_argument("--format", choices=("table", "csv", "json"), help="default: table on a terminal, else csv")
    parser.add_argument(
        "--limit", type=int, default=100, help="rows of a table at most (default 100; csv and json have no limit)"
    )
    return parser


def statements() -> Iterator[str]:
    """Statements of a shell or of stdin, each ended by a semicolon."""
    text, asking = "", sys.stdin.isatty()
    if asking:
        print("A semicolon ends a statement; show tables; lists the tables; exit; leaves.", file=sys.stderr)
    while True:
        if asking:
            print(PROMPT if not text else "...> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        whole, text = sqltext.statements(text + line)
        if not line:
            whole, text = [*whole, text], ""
        text = text if text.strip() else ""
        for statement in [one for one in whole if not sqltext.is_blank(one)]:
            if statement.lower() in ("exit", "quit"):
                return
            yield statement
        if not line:
            return


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain.query import Queries
    from drivetrain.session import open_session

    queries = Queries(open_session(conf, "sql", "in-memory"), conf)
    shown = given.format or ("table" if sys.stdout.isatty() else "csv")
    code = 0
    for statement in [given.query] if given.query else statements():
        try:
            columns, rows = queries.run(statement, given.limit if shown == "table" else None)
            show(shown, columns, rows)
        except job.DrivetrainError as error:
            job.show(error.problems)
            code = job.FAILED
    return code


def show(shown: str, columns: list[str], rows: Iterator[tuple[object, ...]]) -> None:
    if shown == "csv":
        writer = csv.writer(sys.stdout)
        writer.writerow(columns)
        writer.writerows(rows)
    elif shown == "json":
        for row in rows:
            print(json.dumps(dict(zip(columns, row, strict=True)), default=str, ensure_ascii=False))
    else:
        job.table(columns, rows)


if __name__ == "__main__":
    job.main(run, arguments())
