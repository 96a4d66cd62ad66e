"""Talk for the person or the log collector, on stderr: a line for each step. Data goes to stdout, never here."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from drivetrain.ops import Step


class Progress:
    """On a terminal a live line for the running step and a plain one for each that ended; elsewhere JSON lines."""

    def __init__(self, run: str, stream: TextIO = sys.stderr) -> None:
        self.run, self.stream = run, stream
        self.console = Console(file=stream, highlight=False) if stream.isatty() else None
        self.status: Status | None = None

    def begin(self, step: str, dataset: str) -> None:
        if self.console:
            self.status = self.console.status(f"{step:8} {dataset}")
            self.status.start()

    def end(self, step: Step) -> None:
        if not self.console:
            self._log(step=step.step, dataset=step.dataset, rows=step.rows, seconds=step.seconds, failed=step.failed)
            return
        if self.status:
            self.status.stop()
        mark = "[red]✗[/red]" if step.failed else "[green]✓[/green]"
        self.console.print(f"{mark} {step.step:8} {step.dataset:24} {step.rows:>12,} rows {step.seconds:8.1f} s")

    def say(self, text: str) -> None:
        if self.console:
            self.console.print(f"[yellow]⚠[/yellow] {escape(text)}", markup=True, soft_wrap=True)
        else:
            self._log(note=text)

    def _log(self, **fields: object) -> None:
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        print(json.dumps({"at": at, "run": self.run, **fields}), file=self.stream, flush=True)
