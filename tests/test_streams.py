"""The driver's streams: what a job prints arrives where the user's shell put it, through a launcher that joins them."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Stands for Spark's PythonRunner: the child's stderr joined to its stdout, which is copied on; stdin a pipe.
LAUNCHER = """
import subprocess, sys
from drivetrain import streams
{offer}
sys.stderr.write("launcher\\n")
child = subprocess.run([sys.executable, "-c", {driver!r}], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
sys.stdout.buffer.write(child.stdout)
sys.stderr.write("launcher again\\n")
"""  # noqa: E501
DRIVER = """
import sys
from drivetrain import streams
streams.take()
print("data", sys.stdin.read().strip() if not sys.stdin.isatty() else "asked")
print("talk", sys.stdout.isatty(), sys.stderr.isatty(), file=sys.stderr)
"""


def words(offer: str = "streams.offer()") -> list[str]:
    return [sys.executable, "-c", LAUNCHER.format(offer=offer, driver=DRIVER)]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}


def test_three_pipes() -> None:
    done = subprocess.run(words(), input="given", capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout == "data given\n"
    assert done.stderr == "launcher\ntalk False False\nlauncher again\n"


def test_without_an_offer_they_are_joined() -> None:
    done = subprocess.run(words("0"), input="given", capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout == "data \ntalk False False\n" or done.stdout == "talk False False\ndata \n"


def test_two_writers_to_one_file_overwrite_nothing(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with file.open("w") as log:
        subprocess.run(words(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENVIRONMENT, check=True)
    lines = file.read_text().splitlines()
    assert sorted(lines) == [
        "data ", "launcher", "launcher again", "talk False False",
    ]  # fmt: skip


def test_a_terminal_is_seen() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(words(), stdin=theirs, stdout=theirs, stderr=theirs, env=ENVIRONMENT) as running:
        assert running.wait(30) == 0
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert "data asked" in said
    assert "talk True True" in said


def test_a_pipe_whose_writer_has_gone_is_empty(tmp_path: Path) -> None:
    """Opening it again would wait for a writer."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    done = subprocess.run(words(), stdin=held, capture_output=True, text=True, env=ENVIRONMENT, check=True, timeout=30)
    os.close(held)
    assert done.stdout == "data \n"


def test_a_closed_stream_is_no_reason_to_fail() -> None:
    command = f"{sys.executable} -c 'from drivetrain import streams; streams.offer(); streams.take()' <&- >&-"
    assert subprocess.run(["bash", "-c", command], env=ENVIRONMENT, timeout=30).returncode == 0


def test_an_offer_of_another_process_is_not_taken() -> None:
    driver = "import os; from drivetrain import streams; streams.take(); print('kept')"
    done = subprocess.run(
        [sys.executable, "-c", driver],
        env={**ENVIRONMENT, "DRIVETRAIN_DOOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "kept\n"
