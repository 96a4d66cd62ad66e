"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Holds the folder's lock; the system lets go of it when this process and its children are gone."""
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"drivetrain: another call is {doing} {folder}, waiting for it …", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)  # uv or pip may outlive a killed parent: the lock lasts as long
        yield
