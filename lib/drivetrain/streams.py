"""The standard streams of the process that the user started.

Spark's launcher joins a Python driver's stderr to its stdout and gives it an empty stdin (PythonRunner), so nobody
could tell data from talk, answer a shell, or see a live line. The driver opens its parent's own streams instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
from typing import Final

DOOR: Final = "DRIVETRAIN_DOOR"
READ, WRITE = os.O_RDONLY | os.O_NOCTTY, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY


def offer() -> None:
    """Let the driver write to the streams of this process, which spark-submit is about to take over."""
    os.environ[DOOR] = str(os.getpid())
    for stream in (1, 2):  # two writers to one file must both append, or they overwrite each other
        with contextlib.suppress(OSError):  # it may be closed
            if stat.S_ISREG(os.fstat(stream).st_mode):
                fcntl.fcntl(stream, fcntl.F_SETFL, fcntl.fcntl(stream, fcntl.F_GETFL) | os.O_APPEND)


def take() -> None:
    """In the driver: make the offered streams one's own; without an offer (no /proc, cluster mode) keep Spark's."""
    door = os.environ.pop(DOOR, None)
    if door != str(os.getppid()):
        return
    for stream, how in ((0, READ), (1, WRITE), (2, WRITE)):
        try:
            opened = os.open(f"/proc/{door}/fd/{stream}", how | os.O_NONBLOCK)  # a pipe's other end may be gone
        except OSError:  # a socket, or closed
            continue
        os.set_blocking(opened, True)
        os.dup2(opened, stream)
        os.close(opened)
    if sys.stdout.isatty():
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
