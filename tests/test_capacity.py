"""How long a job takes on some cores, and the cheapest number that is in time."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain import capacity
from drivetrain.capacity import MB, Scaling, choose
from drivetrain.history import Took

SPREAD = 0.06  # of the made-up cluster's run times


def work(input_bytes: int) -> float:
    return 20 + 0.6 * input_bytes / MB


def true_seconds(input_bytes: int, cores: int) -> float:
    return 12 + 1.12 * work(input_bytes) / cores + 1.5 * math.log2(cores) + 0.12 * cores


def run(input_bytes: int, cores: int, noise: random.Random | None = None) -> Took:
    factor = math.exp(noise.gauss(0, SPREAD)) if noise else 1.0
    return Took(input_bytes, cores, true_seconds(input_bytes, cores) * factor, work(input_bytes))


def test_known_runs_are_predicted_at_sizes_and_cores_that_were_not_run() -> None:
    runs = [run(size * MB, cores) for size in (200, 1000, 4000) for cores in (2, 4, 8, 16)]
    for size, cores in ((500, 6), (2000, 12), (3000, 3)):
        told = Scaling(runs).duration(size * MB, cores)
        assert told.seconds == pytest.approx(true_seconds(size * MB, cores), rel=0.05)
        assert told.seconds < told.at_worst < 1.3 * told.seconds


def test_one_run_tells_already_what_more_cores_cannot_shorten() -> None:
    """Of 100 s on 2 cores 160 task seconds: 20 s are no task's, and even 64 cores do not undo them."""
    one = Scaling([Took(1000 * MB, 2, 100.0, 160.0)])
    assert one.duration(1000 * MB, 2).seconds == pytest.approx(100, rel=0.05)
    assert 15 < one.duration(1000 * MB, 64).seconds < 35


def test_the_farther_from_what_was_seen_the_wider_the_interval() -> None:
    scaling = Scaling([run(size * MB, 8) for size in (900, 1000, 1100, 1000)])

    def margin(size: int, cores: int) -> float:
        told = scaling.duration(size * MB, cores)
        return told.at_worst / told.seconds

    assert margin(1000, 8) < margin(10_000, 8) and margin(1000, 8) < margin(1000, 256)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 10**12), st.integers(1, 500), st.floats(0.1, 1e5), st.floats(0, 1e6)),
        min_size=1, max_size=16,
    ),
    st.integers(1, 10**13), st.integers(1, 2000),
)  # fmt: skip
def test_no_run_takes_less_than_its_work_on_all_cores(runs: list[tuple], size: int, cores: int) -> None:  # type: ignore[type-arg]
    scaling = Scaling([Took(*one) for one in runs])
    told = scaling.duration(size, cores)
    assert math.isfinite(told.at_worst) and told.at_worst >= told.seconds > 0
    assert scaling.duration(10 * size, cores).seconds >= told.seconds * 0.999


def test_deadlines_are_met_at_the_least_cost() -> None:
    """Runs of sizes from 200 MB to 4 GB, each with the executors that earlier ones let it choose: at least 95 of 100 in
    time, for at most 1.1 of the cheapest that would have been."""
    met, costs = list[bool](), list[float]()
    for seed in range(30):
        noise, runs, limit = random.Random(seed), list[Took](), 120.0
        for _ in range(25):
            size = int(noise.lognormvariate(math.log(800), 0.5)) * MB
            cores = 2 * (choose(Scaling(runs[-16:]), size, limit, 2, range(1, 17)).executors if runs else 4)
            fit = [n for n in range(2, 33, 2) if true_seconds(size, n) * math.exp(1.645 * SPREAD) <= limit]
            runs.append(run(size, cores, noise))
            if fit and len(runs) > 5:
                met.append(runs[-1].seconds <= limit)
                costs.append(cores * true_seconds(size, cores) / min(n * true_seconds(size, n) for n in fit))
    assert len(met) > 400
    assert statistics.mean(met) >= 0.95 and statistics.mean(costs) <= 1.1


def test_a_job_that_began_on_one_core_finds_what_it_takes() -> None:
    """And though its time is not of the model's form: tasks are unequal, so that cores divide less than they might."""

    def seconds(cores: int) -> float:
        return 25 + 500 / cores**0.9

    met, had = list[bool](), list[int]()
    for seed in range(20):
        noise, runs, limit = random.Random(seed), [Took(1000 * MB, 1, seconds(1), 480.0)], 150.0
        for i in range(25):
            cores = choose(Scaling(runs[-16:]), 1000 * MB, limit, 1, range(1, 17)).executors
            factor = math.exp(noise.gauss(0, SPREAD))
            runs.append(Took(1000 * MB, cores, seconds(cores) * factor, 480 * math.exp(noise.gauss(0, 0.03))))
            if i >= 3:
                met.append(runs[-1].seconds <= limit)
                had.append(cores)
    assert statistics.mean(met) >= 0.95 and statistics.mean(had) <= 7, "5 would do, by a hair"


def test_where_no_number_is_in_time_the_fastest_is_taken_and_said_to_be_late() -> None:
    scaling = Scaling([run(1000 * MB, cores) for cores in (2, 4, 8)])
    late = choose(scaling, 1000 * MB, 1.0, 2, range(1, 9))
    worst = {n: scaling.duration(1000 * MB, 2 * n).at_worst for n in range(1, 9)}
    assert not late.in_time and late.executors == min(worst, key=lambda n: worst[n]) > 2
    ample = choose(scaling, 1000 * MB, 10_000.0, 2, range(1, 9))
    assert ample.in_time and ample.executors == 1 and ample.cost == 2 * ample.duration.seconds


def test_the_next_input_is_as_large_as_the_largest_of_late() -> None:
    sizes = [900, *range(1, capacity.LATEST + 1)]
    assert capacity.next_input([run(size * MB, 2) for size in sizes]) == capacity.LATEST * MB
    assert capacity.next_input([]) == 0
