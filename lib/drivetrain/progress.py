"""Talk for the person or the log collector, on stderr: a line for each step. Data goes to stdout, never here."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from threading import Lock
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from drivetrain.ops import Step


class Progress:
    """On a terminal a live line for the running steps and a plain one for each that ended; elsewhere JSON lines.

    A run does not end because nobody listens any more: what cannot be said is left out.
    """

    def __init__(self, run: str, stream: TextIO = sys.stderr) -> None:
        self.run, self.stream = run, stream
        self.console = Console(file=stream, highlight=False) if stream.isatty() else None
        self.status: Status | None = None
        self.running: list[str] = []
        self.turn = Lock()  # steps may run beside each other
        self.spins = self.console is not None

    def begin(self, step: str, dataset: str) -> None:
        with self.turn:
            self.running.append(_named(step, dataset))
            self._show()

    def end(self, step: str, dataset: str, done: Step | None) -> None:
        """``done`` is what came of it; None where it failed before it began."""
        with self.turn:
            name = _named(step, dataset)
            self.running = [other for other in self.running if other != name]
            self._show()
        if not done:
            return
        mark = "[red]✗[/red]" if done.failed else "[green]✓[/green]"
        line = f"{mark} {name:33} {done.rows:>12,} rows {done.seconds:8.1f} s"
        fields = ("step", "dataset", "rows", "seconds", "failed")
        self._tell(line, {name: getattr(done, name) for name in fields})

    def _show(self) -> None:
        """A terminal has one live line."""
        with suppress(OSError):
            if self.status:
                self.status.stop()
            if self.console and self.spins and self.running:
                self.status = self.console.status(", ".join(self.running))
                self.status.start()

    def say(self, text: str) -> None:
        self._tell(f"[yellow]⚠[/yellow] {escape(text)}", {"note": text})

    def _tell(self, line: str, fields: Mapping[str, object]) -> None:
        at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        with suppress(OSError), self.turn:
            if self.console:
                self.console.print(line, soft_wrap=True)
            else:
                self.stream.write(json.dumps({"at": at, "run": self.run, **fields}) + "\n")
                self.stream.flush()


def _named(step: str, dataset: str) -> str:
    return f"{step:8} {dataset}"
