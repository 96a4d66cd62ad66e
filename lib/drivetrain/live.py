"""How streams do: a table that stays in its place on a terminal, elsewhere a line of JSON every few seconds."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from types import TracebackType
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.live import Live as Screen
from rich.table import Table

from drivetrain.appender import Figures
from drivetrain.progress import Progress

COLUMNS: Final = (  # short, so that all of them stand on a terminal of 80 columns
    "stream", "in/s", "out/s", "lag", "lag s", "took s", "state", "late <", "rows", "late", "bad",
)  # fmt: skip
EVERY: Final = 10.0  # seconds between two lines of JSON


class Live:
    """Shows figures as they come, below what ``progress`` tells."""

    def __init__(self, progress: Progress) -> None:
        self.run, self.stream, self.told = progress.run, progress.stream, -EVERY
        progress.spins = False  # steps of several threads run beside each other
        self.screen = Screen(console=progress.console, refresh_per_second=2) if progress.console else None

    def __enter__(self) -> Live:
        if self.screen:
            self.screen.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self.screen:
            self.screen.stop()

    def show(self, figures: Sequence[Figures]) -> None:
        """The figures as they are now."""
        if self.screen:
            self.screen.update(table(figures))
        elif time.monotonic() - self.told >= EVERY:
            self.told = time.monotonic()
            at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            with suppress(OSError):
                for one in figures:
                    print(json.dumps({"at": at, "run": self.run, "stream": one.dataset, **asdict(one)}, default=str),
                          file=self.stream, flush=True)  # fmt: skip


def table(figures: Sequence[Figures]) -> Table:
    """One line a stream; what is not known is a dash."""
    made = Table(*COLUMNS, box=SIMPLE_HEAD, show_edge=False, padding=0)
    made.columns[0].no_wrap = True
    for one in figures:
        made.add_row(f"{one.dataset} ✗" if one.failure else one.dataset, *[_shown(value) for value in (
            one.input_rows_per_second, one.processed_rows_per_second, one.lag_offsets, one.lag_seconds,
            one.batch_seconds, one.state_rows, one.watermark, one.rows_in, one.late, one.quarantined,
        )])  # fmt: skip
    return made


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.{0 if value >= 100 else 1}f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:%H:%M:%S}"
