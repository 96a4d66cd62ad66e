"""What is told of Spark's failures, on one line."""

from __future__ import annotations

from pyspark.errors import PySparkException

from drivetrain.session import _told, reason

FIRST = "[PYTHON_EXCEPTION] An exception was thrown from the Python worker: Traceback (most recent call last):"


def test_a_message_is_its_first_line_without_the_state() -> None:
    assert reason(PySparkException("[CODE] it failed SQLSTATE: 22012\n\tat x.y(Z.java:1)")) == "[CODE] it failed"


def test_of_a_workers_traceback_what_it_ends_with() -> None:
    text = f'{FIRST}\n  File "a.py", line 1, in f\n    f()\nValueError: it is none\nof them\n SQLSTATE: 38000'
    assert _told(text) == "[PYTHON_EXCEPTION] An exception was thrown from the Python worker: ValueError: it is none"
    assert _told(FIRST).endswith("no more is known")
