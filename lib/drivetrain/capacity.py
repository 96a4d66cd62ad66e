"""Executors and memory for a deadline: how long a job takes on some cores, learned from its runs, and what is least.

The model of time is Ernest's (Venkataraman et al., "Ernest: Efficient Performance Prediction for Large-Scale Advanced
Analytics", NSDI 2016): a fixed part, work divided by cores, and what grows with the logarithm and the number of cores,
fitted by non-negative least squares. Work is the tasks' own time, which Spark tells of every run, so that one run on
one number of cores shows already which part of it more cores would shorten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import t as student

from drivetrain.history import Took

Floats = NDArray[np.float64]

IN_TIME: Final = 0.95
# What is thought of each part's share of the whole before any run, as a standard deviation: that it is fixed, that
# tasks leave cores idle, and that it grows with the logarithm or the number of cores.
SHARES: Final = (1.0, 0.3, 0.05, 0.02)
WORK_SHARES: Final = (0.5, 1.0)  # of task time: fixed, and by the input's size
USUAL_SPREAD: Final = 0.1  # standard deviation of log(measured / predicted), as if seen in so many runs:
USUAL_RUNS: Final = 3
WIDEST: Final = 20.0  # of log(measured / predicted): beyond that nothing is known
LATEST: Final = 7  # runs whose largest input the next one is thought to have
MB: Final = 1 << 20


@dataclass(frozen=True)
class Fit:
    """Coefficients, at least 0, of columns that add up to a positive measure; errors are relative to that."""

    coefficients: Floats
    information: Floats  # (n x n) of the scaled columns, prior included
    spread: float
    freedom: float

    def value(self, columns: Sequence[float]) -> float:
        return float(np.dot(columns, self.coefficients))

    def variance(self, columns: Sequence[float], value: float) -> float:
        """Of log(measured / predicted) at ``columns``, where the measure is predicted to be ``value``: it grows with
        the distance from what was measured."""
        scaled = np.asarray(columns) / max(value, 1e-9)
        leverage = float(scaled @ np.linalg.solve(self.information, scaled))
        return self.spread**2 * (1 + leverage)


def fit(columns: Floats, measured: Floats, known: Floats, shares: Sequence[float]) -> Fit:
    """Non-negative least squares of relative errors, (runs x n) and (runs,), with a normal prior on each share.

    ``known`` is the part of each measure that needs no column; ``shares`` are standard deviations around 0.
    """
    scaled = columns / measured[:, None]
    weights = np.diag(USUAL_SPREAD / np.asarray(shares) * np.maximum(scaled.mean(axis=0), 1e-6))
    wanted = np.concatenate([1 - known / measured, np.zeros(len(weights))])
    coefficients, _ = nnls(np.vstack([scaled, weights]), wanted)
    errors = np.log(measured / np.maximum(known + columns @ coefficients, 1e-9))
    freedom = float(USUAL_RUNS + len(measured))
    spread = math.sqrt((USUAL_RUNS * USUAL_SPREAD**2 + float(errors @ errors)) / freedom)
    return Fit(coefficients, scaled.T @ scaled + weights.T @ weights, spread, freedom)


@dataclass(frozen=True)
class Duration:
    """Seconds that a run is likely to take, and those that 95 of 100 such runs stay below."""

    seconds: float
    at_worst: float


@dataclass(frozen=True)
class Scaling:
    """How a job's time follows from its input and its cores, by at least one run."""

    runs: Sequence[Took]

    @cached_property
    def _work(self) -> Fit:
        columns = np.array([[1.0, run.input_bytes / MB] for run in self.runs])
        measured = np.array([max(run.task_seconds, 1e-3) for run in self.runs])
        return fit(columns, measured, np.zeros(len(measured)), WORK_SHARES)

    @cached_property
    def _time(self) -> Fit:
        columns = np.array([_columns(run.task_seconds, run.cores) for run in self.runs])
        measured = np.array([max(run.seconds, 1e-3) for run in self.runs])
        return fit(columns, measured, columns[:, 1], SHARES)

    def duration(self, input_bytes: int, cores: int) -> Duration:
        of_work = (1.0, input_bytes / MB)
        work = self._work.value(of_work)
        columns = _columns(work, cores)
        seconds = max(work / cores + self._time.value(columns), 1e-3)
        share = work / cores * (1 + float(self._time.coefficients[1])) / seconds
        variance = self._time.variance(columns, seconds) + share**2 * self._work.variance(of_work, work)
        margin = float(student.ppf(IN_TIME, self._time.freedom)) * math.sqrt(variance)
        return Duration(seconds, seconds * math.exp(min(margin, WIDEST)))


def _columns(work: float, cores: int) -> tuple[float, float, float, float]:
    """The model's parts at so much work, in task seconds: what is fixed, what it takes with all cores busy all the time
    (of which the coefficient is what comes on top of that), and what grows with the cores; none is 0 on one core."""
    return (1.0, work / cores, math.log2(1 + cores), float(cores))


@dataclass(frozen=True)
class Choice:
    """Executors, what they cost in core seconds, how long the run will take with them, and whether that is in time."""

    executors: int
    cost: float
    duration: Duration
    in_time: bool


def choose(scaling: Scaling, input_bytes: int, deadline: float, cores_each: int, numbers: Sequence[int]) -> Choice:
    """Of those numbers of executors, with so many cores each, the one that costs the fewest core seconds among those
    with which 95 of 100 runs take less than ``deadline`` seconds; where none does, the one that is fastest at worst."""
    found = []
    for executors in numbers:
        cores = executors * cores_each
        duration = scaling.duration(input_bytes, cores)
        found.append(Choice(executors, cores * duration.seconds, duration, duration.at_worst <= deadline))
    in_time = [choice for choice in found if choice.in_time]
    if in_time:
        return min(in_time, key=lambda choice: (choice.cost, choice.executors))
    return min(found, key=lambda choice: (choice.duration.at_worst, choice.executors))


def next_input(runs: Sequence[Took]) -> int:
    """Stored bytes that the next run is thought to take in: as many as the largest of the last ones did."""
    return max((run.input_bytes for run in runs[-LATEST:]), default=0)
