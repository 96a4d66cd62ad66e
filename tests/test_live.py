"""What a person sees of streams."""

from __future__ import annotations

import io
import json
from datetime import datetime, timezone

from rich.console import Console

from drivetrain.appender import Figures
from drivetrain.live import COLUMNS, Live, table
from drivetrain.progress import Progress

BUSY = Figures(
    "service_events", 812, 1_234_567, 1_230_000, 4_000, 567, 820, 1.4, 812.3, 810.9, 3_456, 2.9, 0,
    datetime(2026, 1, 5, 12, 30, tzinfo=timezone.utc),
)  # fmt: skip


def test_all_of_it_stands_on_a_terminal_of_80_columns() -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(table([BUSY, Figures("leads", failure="the brokers are gone")]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in text and "service_events" in text and "leads ✗" in text and "1,234,567" in text
    assert all(word in text for name in COLUMNS for word in name.split())


def test_elsewhere_it_is_a_line_of_json_now_and_then() -> None:
    stream = io.StringIO()
    with Live(Progress("run1", stream)) as live:
        live.show([BUSY])
        live.show([BUSY])
    [line] = stream.getvalue().splitlines()
    assert (json.loads(line)["stream"], json.loads(line)["rows_in"]) == ("service_events", 1_234_567)
