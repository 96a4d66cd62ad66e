"""Who ends a job that runs until it is told to; what kills do is in test_kills.py."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from drivetrain import ending
from drivetrain.ending import Ending

ROOT = Path(__file__).resolve().parents[1]
ORPHAN = "import os; from drivetrain.ending import follow; print('up', flush=True); follow(os.getppid())"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ORPHAN!r}])"


def test_it_ends_with_its_parent() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    with subprocess.Popen([sys.executable, "-c", PARENT], env=environ, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout and parent.stdout.readline() == "up\n"
        parent.kill()
        assert parent.stdout.read() == "", "which ends with the last who could write"


def test_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    one, said, ended = Ending.__new__(Ending), list[str](), list[int]()
    one.stop, one.say, one.asked = threading.Event(), said.append, 0.0
    monkeypatch.setattr(ending.os, "_exit", ended.append)
    one.handle()
    one.handle()  # the same Ctrl-C, by way of Java
    assert one.stop.is_set() and len(said) == 1 and not ended
    monkeypatch.setattr(ending, "ECHO_SECONDS", 0.0)
    one.handle()
    assert ended == [ending.INTERRUPTED]
