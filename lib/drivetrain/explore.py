"""Other numbers of partitions than the rule's: what they would cost, and whether one is worth a try.

The cost of a step, CPU seconds for each byte read, is a Gaussian process over the number of partitions, the size of
its input and time (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, 2.2). Of interest is only
what one number costs compared with another on the same input, in which sizes and time cancel out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from drivetrain.history import Run

Array = NDArray[np.float64]

# Of the logarithm of the cost, all as standard deviations; lengths in doublings, of time in runs.
LEVEL: Final = 3.0  # of a step's costs as a whole
SIZE: Final = 0.5  # as they follow from the input's size
SIZE_LENGTH: Final = 2.0
TREND: Final = 0.1  # as they change while tables grow
TREND_LENGTH: Final = 10.0
SHAPE: Final = 0.15  # as the number of partitions matters
SHAPE_LENGTH: Final = 2.0
NOISE: Final = 0.08  # between runs that are alike
SLOPE: Final = 0.02  # more for each doubling away from the rule, before any run

AT_WORST: Final = 1.2  # of what is tried, against the incumbent; what was worse is taken back
WORTH: Final = 1.05  # of a gain
SURE: Final = 1.645  # standard deviations: 95 of 100 are below
LEAST: Final = 1.0  # CPU seconds of a step that tries are worth it for
FIRST: Final = 3  # runs before the first try
LATEST: Final = 8  # runs; for as many is not used what was worse
STEPS: Final = (-2, -1, 1, 2)  # doublings around the rule


@dataclass(frozen=True)
class Choice:
    """A number of partitions, and why it is not the rule's: a ``try``, a ``gain``, or that the rule's was ``worse``;
    with what it is thought to cost / the rule's cost, and the bounds of that (90 of 100 are within)."""

    number: int
    why: str = ""
    ratio: float = 1.0
    low: float = 1.0
    high: float = 1.0


def choose(rule: int, allowed: Iterable[int], input_bytes: int, runs: Sequence[Run]) -> Choice:
    """The number for the next run among the rule's and ``allowed``: the rule's, or one that is surely better by a
    twentieth; or for a try one that may be, and is at worst 1.2 times the incumbent. One that was worse than that in a
    late run is not used."""
    told = [run for run in runs if run.input_bytes and run.cpu_seconds and run.partitions and not run.short]
    if not told or statistics.median(run.cpu_seconds for run in told) < LEAST:
        return Choice(rule)
    bad = worse(input_bytes, told[-LATEST:])
    numbers = [rule, *sorted({*allowed, *(run.partitions for run in told if rule in bad)} - {rule, *bad})]
    mean, covariance = posterior(rule, numbers, input_bytes, told)

    def against(one: int, other: int) -> tuple[float, float]:
        """By how much one is more than the other, and the standard deviation of that; of logarithms."""
        variance = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
        return float(mean[one] - mean[other]), math.sqrt(max(0.0, variance))

    def choice(index: int, why: str) -> Choice:
        more, sd = against(index, 0)
        return Choice(numbers[index], why, *(math.exp(more + sign * SURE * sd) for sign in (0, -1, 1)))

    others = range(1, len(numbers))
    better = [i for i in others if against(i, 0)[0] < -math.log(WORTH) and sum(against(i, 0)) < 0]
    best = min(better or (others if rule in bad else ()), key=lambda i: mean[i], default=0)
    hopeful = {}
    for index in (*others, *(() if rule in bad else (0,))):
        more, sd = against(index, best)
        if index != best and more + SURE * sd <= math.log(AT_WORST) and more - sd < -math.log(WORTH):
            hopeful[index] = more - sd
    if hopeful and len(told) >= FIRST:
        return choice(min(hopeful, key=hopeful.__getitem__), "try")
    return choice(best, "worse" if rule in bad else "gain") if best else Choice(rule)


def worse(input_bytes: int, runs: Sequence[Run]) -> set[int]:
    """Numbers whose last run, on an input of about this size, took over 1.2 times the CPU of another's."""
    costs: dict[int, list[float]] = {}
    for run in runs:
        if input_bytes / 2 <= run.input_bytes <= input_bytes * 2:
            costs.setdefault(run.partitions, []).append(run.cpu_seconds / run.input_bytes)
    least = min(map(statistics.median, costs.values()), default=0.0)
    return {number for number, found in costs.items() if found[-1] > AT_WORST * least}


def posterior(rule: int, numbers: Sequence[int], input_bytes: int, runs: Sequence[Run]) -> tuple[Array, Array]:
    """Mean (n,) and covariance (n, n) of the logarithm of each number's cost at the next run."""
    seen = np.array([[math.log2(run.partitions), math.log2(run.input_bytes), i] for i, run in enumerate(runs)])
    asked = np.array([[math.log2(number), math.log2(max(input_bytes, 1)), len(runs)] for number in numbers])
    costs = np.array([math.log(run.cpu_seconds / run.input_bytes) for run in runs])
    center = float(costs.mean())

    def prior(points: Array) -> Array:
        return np.asarray(SLOPE * np.abs(points[:, 0] - math.log2(rule)))

    factor: Any = cho_factor(kernel(seen, seen) + NOISE**2 * np.eye(len(runs)))
    cross = kernel(asked, seen)
    mean = prior(asked) + cross @ cho_solve(factor, costs - center - prior(seen))
    return mean, kernel(asked, asked) - cross @ cho_solve(factor, cross.T)


def kernel(one: Array, other: Array) -> Array:
    """Covariance (n, m) of the costs at n and m points: doublings of partitions, of bytes, and runs."""
    apart = (one[:, None, :] - other[None, :, :]) ** 2 / 2
    partitions, size, time = apart[..., 0], apart[..., 1], apart[..., 2]
    total = LEVEL**2 + SIZE**2 * np.exp(-size / SIZE_LENGTH**2) + TREND**2 * np.exp(-time / TREND_LENGTH**2)
    return np.asarray(total + SHAPE**2 * np.exp(-partitions / SHAPE_LENGTH**2))
