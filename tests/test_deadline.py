"""Executors and memory for a job's deadline, as settings with their reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drivetrain import deadline
from drivetrain.capacity import MB
from drivetrain.errors import DrivetrainError
from drivetrain.history import History, Run, Took

GIB = 1 << 30
CONF = {
    deadline.DYNAMIC: "true", deadline.MOST: "8", deadline.CORES: "2", deadline.MEMORY: "2g",
}  # fmt: skip
# Half a second of task time for each MB, and a minute that is no task's.
RUNS = [
    Took(size * MB, cores, 60 + 0.5 * size / cores, 0.5 * size) for size, cores in ((1000, 4), (2000, 8), (2000, 4))
]
STEP = Run(100 * MB, 200 * MB, 0, 10.0, 8, 200 * MB, 1, 100 * MB)


def known(*steps: Run) -> History:
    return History({"silver orders": list(steps)}, {"batch": RUNS})


def values(history: History, minutes: float, **changes: str) -> dict[str, str]:
    return {one.setting: one.value for one in deadline.decide(history, "batch", minutes, CONF | changes)}


def test_a_tighter_deadline_takes_more_executors_up_to_the_bound_of_conf() -> None:
    chosen = [int(values(known(STEP), minutes)[deadline.MOST]) for minutes in (60, 5, 4, 3, 0.5)]
    assert chosen == sorted(chosen) and chosen[0] == 1 and 1 < chosen[2] < 8 and chosen[-1] == 8
    made = deadline.decide(known(STEP), "batch", 0.5, CONF)
    assert {one.setting for one in made} == {deadline.MOST, deadline.FIRST} and made[0].confidence == "learned"
    assert "no number up to 8 is surely within 0.5 min" in made[0].because and "by 3 runs" in made[0].because
    (fixed,) = deadline.decide(
        known(STEP), "batch", 60, {deadline.CORES: "2", deadline.MEMORY: "2g", deadline.FIXED: "4"}
    )
    assert (fixed.setting, fixed.value) == (deadline.FIXED, "1")


def test_a_job_that_has_not_run_is_left_as_conf_has_it() -> None:
    assert deadline.decide(known(STEP), "etl", 5, CONF) == []


def test_bounds_are_those_of_conf() -> None:
    """Spark refuses a highest number below the lowest; none at all means any."""
    assert deadline.bounds({}) == deadline.Bounds(1, 2, 1)
    assert deadline.bounds({**CONF, deadline.LEAST: "4"}) == deadline.Bounds(4, 8, 2)
    assert values(known(STEP), 60, **{deadline.LEAST: "4"})[deadline.MOST] == "4"
    free = deadline.bounds({deadline.DYNAMIC: "true", deadline.CORES: "2"})
    assert free.most == deadline.UNBOUNDED and free.numbers[0] == 1
    many = int(values(known(STEP), 2.5, **{deadline.MOST: "infinity"})[deadline.MOST])
    assert 8 < many < 100


def test_memory_follows_the_largest_peak_and_is_never_less_than_conf_says() -> None:
    """2 tasks of 500 MB, half as much again, are 60 % of a heap less 300 MB: 2.8 GB, in steps of 256 MB."""
    assert values(known(replace(STEP, peak_memory_bytes=500 * MB)), 60)[deadline.MEMORY] == "2816m"
    assert deadline.MEMORY not in values(known(*[STEP] * 8), 60)
    for had_too_little in (replace(STEP, spill_bytes=1), replace(STEP, short=True)):
        spilled = deadline.decide(known(*[STEP] * 7, had_too_little), "batch", 60, CONF)[-1]
        assert (spilled.setting, spilled.value) == (deadline.MEMORY, "3072m") and "too little" in spilled.because
    assert values(known(replace(STEP, peak_memory_bytes=90 * GIB)), 60)[deadline.MEMORY] == "8192m"


@pytest.mark.parametrize(
    ("text", "size"), [("2g", 2 * GIB), ("512m", 512 * MB), ("1536", 1536 * MB), ("2GB", 2 * GIB), ("100k", 102_400)]
)
def test_sizes_as_spark_writes_them(text: str, size: int) -> None:
    assert deadline.size_of(text) == size


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(DrivetrainError, match="'much' is no size"):
        values(known(STEP), 60, **{deadline.MEMORY: "much"})
