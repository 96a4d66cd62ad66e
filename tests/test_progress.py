"""Talk on stderr: JSON lines for collectors, plain lines for people."""

from __future__ import annotations

import contextlib
import io
import json
import os

from drivetrain.ops import Step, now
from drivetrain.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def step(**changes: object) -> Step:
    return Step(
        **{
            "run": "r",
            "job": "batch",
            "step": "silver",
            "dataset": "orders",
            "started": now(),
            "seconds": 1.5,
            "rows": 1234,
            **changes,
        }
    )  # type: ignore[arg-type]


def test_json_lines() -> None:
    stream = io.StringIO()
    progress = Progress("r", stream)
    progress.begin("silver", "orders")
    progress.end("silver", "orders", step())
    progress.say('it is [odd]\n"quoted"')
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert {key: first[key] for key in first if key != "at"} == {
        "run": "r",
        "step": "silver",
        "dataset": "orders",
        "rows": 1234,
        "seconds": 1.5,
        "failed": False,
    }
    assert second["note"] == 'it is [odd]\n"quoted"'


def test_a_terminal_has_a_line_for_each_step() -> None:
    stream = Terminal()
    progress = Progress("r", stream)
    progress.begin("silver", "orders")
    progress.end("silver", "orders", step())
    progress.end("silver", "stock", step(dataset="stock", failed=True))
    text = stream.getvalue()
    assert "✓" in text and "1,234 rows" in text and "✗" in text and "stock" in text


def test_steps_beside_each_other_share_the_live_line() -> None:
    progress = Progress("r", Terminal())
    progress.begin("silver", "orders")
    progress.begin("unify", "orders")
    assert progress.status and "silver   orders, unify    orders" in str(progress.status.status)
    progress.end("silver", "orders", step())
    assert "silver" not in str(progress.status.status) and "unify" in str(progress.status.status)
    progress.end("unify", "orders", None)
    assert progress.running == []


def test_what_is_said_is_shown_as_it_is() -> None:
    """Names of files come from outside, and may look like markup."""
    stream = Terminal()
    Progress("r", stream).say("a[red]b[/red].csv and [/] and [link=x]")
    assert "a[red]b[/red].csv and [/] and [link=x]" in stream.getvalue()


def test_nobody_listens() -> None:
    """A pipe that is closed at its other end does not end the run."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", buffering=1) as stream:
        progress = Progress("r1", stream=stream)
        progress.begin("silver", "orders")
        progress.say("something")
        progress.end("silver", "orders", Step("r1", "etl", "silver", "orders", now()))
        with contextlib.suppress(OSError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)
