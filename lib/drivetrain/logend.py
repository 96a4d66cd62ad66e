"""The log's end: who may append the next load, and where a stream goes on.

A load's number is its transaction number, so Delta takes one writer's load of that number and refuses every other's:
appending is a compare-and-swap on the end. Each load carries a mark forward, which says up to where the streams have
come; data and position are one commit, and no checkpoint can be lost, be older, or belong to another process.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pyspark.sql import DataFrame

from drivetrain import bronze
from drivetrain.sink import CONFLICT, Table, Txn


@dataclass(frozen=True)
class Mark:
    """How far the streams of a dataset have come: the stream's ``epoch`` (1 for the first start) and ``run``, its
    ``batch`` and the ``load`` that this was; ``offsets``, the first that is not in the log, by partition of the topic
    with the id ``source``; and the ``newest`` event time (ISO 8601, UTC) of all loads before that one."""

    epoch: int
    run: str
    batch: int
    load: int
    source: str
    offsets: Mapping[str, int]
    newest: str | None


@dataclass(frozen=True)
class End:
    """The last load, 0 for none; the newest mark; the log's column of typed rows in that load, and ``since`` which load
    every one has had them there."""

    number: int = 0
    mark: Mark | None = None
    row: str | None = None
    since: int = 1

    def next(self, mark: Mark | None, row: str | None) -> End:
        """The end behind one more load."""
        number = self.number + 1
        return End(number, mark, row, self.since if row == self.row and self.number else number)

    def shows(self, row: str | None, after: int) -> bool:
        """Whether each load after that one has its typed rows in the column."""
        return row is not None and (self.number <= after or (self.row == row and self.since <= after + 1))


class Taken(Exception):
    """Another writer appended the load of this number."""


def end(log: Table) -> End:
    """Where the log ends now."""
    newest = next((m for _, m in log.commits()), None) if log.exists() else None
    if newest is None:
        return End()
    mark = newest.get("mark")
    number = int(newest["number"])
    return End(number, Mark(**mark) if mark else None, newest.get("row"), newest.get("since", number))


def append(
    log: Table, dataset: str, after: End, rows: DataFrame, metadata: Mapping[str, Any], then: End
) -> int:
    """Append ``rows``, which have the next number, as the load behind ``after``; the log's end is ``then``. The
    version.

    Raises:
        Taken: the log has gone on since ``after``; nothing was written.
    """
    number, own = after.number + 1, uuid.uuid4().hex
    said = {
        **metadata,
        "mark": asdict(then.mark) if then.mark else None,
        "row": then.row,
        "since": then.since,
        "commit": own,
    }
    with suppress(*CONFLICT):
        log.append(rows, Txn(dataset, number), said, bronze.PROPERTIES)
    # Delta says nothing where it leaves out a number that it has seen, and takes its own commit for another's where the
    # answer to it was lost: what the log shows is what is so.
    for version, metadata in log.commits():
        if metadata["number"] <= number:
            if metadata.get("commit") == own:
                return version
            break
    raise Taken(str(number))


Verdict = Literal["append", "resume", "stop"]


def verdict(mine: Mark, now: Mark | None, followed: Mark | None) -> Verdict:
    """What a stream does whose load was refused. ``mine`` is the mark that it wanted to write and ``followed`` the one
    that it stood on; ``now`` is the log's.

    The streams have come no further: a load that is no stream's came between, append behind it. A stream that started
    earlier committed once more: resume from there. One that started later has taken over: stop.
    """
    if now == followed:
        return "append"
    return "resume" if now and (now.epoch, now.run) < (mine.epoch, mine.run) else "stop"
