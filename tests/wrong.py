"""Mutants of the real code: each takes one decision of the seam wrongly. scripts/mutants.py --real runs the suite with
each of them, and the suite must find every one out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from drivetrain import logend, maintain, publish, unified
from drivetrain.appender import Appender, Batch
from drivetrain.sink import Table
from drivetrain.unified import Entry, Rows, Unified


def shifted(by: int) -> Callable[[], None]:
    """The tail begins one load too early, or too late."""

    def apply() -> None:
        right = Unified._rows

        def rows(self: Unified, entry: Entry, *rest: Any) -> Rows:
            found = right(self, entry, *rest)
            return replace(found, recent=found.recent and replace(found.recent, cut=found.recent.cut + by))

        Unified._rows = rows  # type: ignore[method-assign]

    return apply


def cut_by_event_time() -> None:
    right = Rows._recent.fget  # type: ignore[attr-defined]

    def recent(self: Rows) -> str:
        newest = f"(SELECT coalesce(max(at), timestamp'1970-01-01') FROM {self._held})"
        return str(right(self)).replace(f"_load > {self.recent.cut}", f"`{self.recent.row}`.at > {newest}")  # type: ignore

    Rows._recent = property(recent)  # type: ignore[assignment, method-assign]


def dedupe_after_the_seam() -> None:
    """Each layer for itself."""

    def settled(self: Rows) -> str:
        mine = ", ".join(f"`{name}`" for name in ("_held", *self._match))
        return f"SELECT *, row_number() OVER (PARTITION BY {mine} ORDER BY _load, _line) = 1 AS _now FROM touched"

    Rows._settled = property(settled)  # type: ignore[assignment, method-assign]


def tail_takes_late_rows() -> None:
    right = Rows._recent.fget  # type: ignore[attr-defined]
    Rows._recent = property(lambda self: str(right(self)).replace(f" AND NOT `{self.recent.row}`._late", ""))  # type: ignore


def publish_before_the_speed_commit() -> None:
    right = publish._speed

    def speed(pipeline: Any, *rest: Any) -> int:
        before = pipeline.table("speed", rest[1].name).version()
        now = right(pipeline, *rest)
        return before if before >= 0 else now

    publish._speed = speed


def speed_is_not_pinned() -> None:
    right = unified._gold
    unified._gold = lambda entry, table, batch, speed: right(entry, table, batch, speed).replace(
        f"{speed}@v{entry.speed}", speed
    )


def constant_transaction_over_epochs() -> None:
    """As with Spark's batch ids as the numbers of one writer: what a new epoch begins with is taken for done."""
    right = Appender.append

    def append(self: Appender, batch: Batch) -> None:
        mark = self.after.mark
        if mark is None or batch.number > mark.batch or mark.epoch == self.epoch:
            right(self, batch)

    Appender.append = append  # type: ignore[method-assign]


def zombies_may_write() -> None:
    """Whoever is refused takes the next number."""
    logend.verdict = lambda mine, now, followed: "append"


def delta_is_believed() -> None:
    """What Delta left out without a word counts as written."""
    right = logend.append

    def append(log: Table, *rest: Any) -> int:
        try:
            return right(log, *rest)
        except logend.Taken:
            return log.version()

    logend.append = append


def cleanup_forgets_who_reads() -> None:
    maintain._hours = lambda table, needed, least: (least, "")


MUTANTS: Final[dict[str, Callable[[], None]]] = {
    "tail from >= V": shifted(-1),
    "tail from > V + 1": shifted(1),
    "cut by event time": cut_by_event_time,
    "dedupe after the seam": dedupe_after_the_seam,
    "tail takes late rows": tail_takes_late_rows,
    "publish before the speed commit": publish_before_the_speed_commit,
    "reader does not pin the speed version": speed_is_not_pinned,
    "constant transaction id over epochs": constant_transaction_over_epochs,
    "zombies may write": zombies_may_write,
    "Delta is believed": delta_is_believed,
    "cleanup forgets who reads": cleanup_forgets_who_reads,
}
