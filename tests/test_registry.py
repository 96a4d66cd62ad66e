"""Models and their stages: one commit for each decision, whoever else decides; and the way back."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from drivetrain.anomaly.registry import History, Registry, Standing, Step
from drivetrain.errors import DrivetrainError

NOW = datetime(2026, 1, 5)


def history(*steps: tuple[int, int, str, str]) -> History:
    found = [Step(step, "orders", version, stage, what, "", NOW, "") for step, version, stage, what in steps]  # type: ignore[arg-type]
    return History("orders", found)


def test_what_acts_and_what_judges() -> None:
    assert history().judging is None
    only = history((1, 1, "shadow", "fitted"))
    assert only.acting is None and only.judging == Standing(1, "shadow")
    both = history((1, 1, "shadow", "fitted"), (2, 1, "advisory", "promoted"), (3, 2, "shadow", "fitted"))
    assert both.acting == both.judging == Standing(1, "advisory")


def test_what_acted_before() -> None:
    steps = [
        (1, 1, "shadow", "fitted"), (2, 1, "advisory", "promoted"), (3, 2, "shadow", "fitted"),
        (4, 1, "retired", "replaced"), (4, 2, "enforce", "promoted"),
    ]  # fmt: skip
    assert history(*steps).before == [None, Standing(1, "advisory"), Standing(2, "enforce")]
    back = (5, 2, "retired", "withdrawn"), (5, 1, "advisory", "restored")
    assert history(*steps, *back).before == [None, Standing(1, "advisory")]
    assert history(*steps, *back, (6, 1, "retired", "withdrawn")).before == [None]


@pytest.mark.spark
def test_decisions(spark: Any, tmp_path: Path) -> None:
    one = Registry(spark, str(tmp_path))
    assert one.history("orders").stages == {}
    with pytest.raises(DrivetrainError, match="no model has been promoted"):
        one.rollback("orders", "run", "")
    assert [one.add("orders", bytes([n]), "{}", "run", "first") for n in (1, 2)] == [1, 2]
    assert one.add("stock", b"s", "{}", "run", "") == 1
    assert one.history("orders").stages == {1: "retired", 2: "shadow"}
    with pytest.raises(DrivetrainError, match="there is no model 7; there are: 1, 2"):
        one.promote("orders", 7, "enforce", "run", "")
    one.promote("orders", 2, "advisory", "run", "")
    with pytest.raises(DrivetrainError, match="model 2 is in advisory already"):
        one.promote("orders", 2, "advisory", "run", "")
    one.promote("orders", 2, "enforce", "run", "")
    one.promote("orders", 1, "enforce", "run", "")
    assert one.history("orders").stages == {1: "enforce", 2: "retired"}
    for expected in ({1: "retired", 2: "enforce"}, {1: "retired", 2: "advisory"}, {1: "retired", 2: "retired"}):
        before = one.table.version()
        one.rollback("orders", "run", "")
        assert one.history("orders").stages == expected and one.table.version() == before + 1
    with pytest.raises(DrivetrainError, match="no model has been promoted"):
        one.rollback("orders", "run", "")
    assert (one.model("orders", 1), one.model("orders", 2), one.model("stock", 1)) == (b"\x01", b"\x02", b"s")


@pytest.mark.spark
def test_two_decide_at_once(spark: Any, tmp_path: Path) -> None:
    """The second sees what the first has done, and decides again."""
    one, other = Registry(spark, str(tmp_path)), Registry(spark, str(tmp_path))
    one.add("orders", b"1", "{}", "run", "")
    one.add("orders", b"2", "{}", "run", "")
    right = one.history
    asked = []

    def history(dataset: str) -> History:
        found = right(dataset)
        if not asked:
            asked.append(other.promote("orders", 1, "enforce", "other", ""))
        return found

    one.history = history  # type: ignore[method-assign]
    one.promote("orders", 2, "advisory", "run", "")
    assert right("orders").stages == {1: "retired", 2: "advisory"} and one.table.version() == 3
    assert right("orders").before == [None, Standing(1, "enforce"), Standing(2, "advisory")]
