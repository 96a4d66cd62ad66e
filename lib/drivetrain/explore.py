"""Other numbers of partitions than the rule's: what they would cost, and whether one is worth a try.

The cost of a step, CPU seconds for each byte read, is a Gaussian process over the number of partitions, the size of
its input and time (Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, 2.2). Of interest is only
what one number costs compared with another on the same input, in which sizes and time cancel out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
FAR: Final = 4.0  # times an input's size; runs of others do not tell what was worse
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


def choose(rule: int, fits: Callable[[int], bool], input_bytes: int, runs: Sequence[Run]) -> Choice:
    """The number for the next run: the rule's, or one that is surely better, by a twentieth as far as is known; or for
    a try one near the rule's that may be, and is at worst 1.2 times the incumbent. One that was worse than that in a
    late run is not used, nor one that does not fit; where the rule's was worse, it is one that ran."""
    told = [run for run in runs if run.input_bytes and run.cpu_seconds and run.partitions and not run.short]
    if not told or statistics.median(run.cpu_seconds for run in told) < LEAST:
        return Choice(rule)
    bad, ran = worse(rule, told), {run.partitions for run in told}
    near = {max(1, round(rule * 2.0**step)) for step in STEPS}
    numbers = [rule, *sorted(number for number in (near | ran) - {rule, *bad} if fits(number))]
    asked = [(number, max(input_bytes, 1), len(told)) for number in numbers]
    mean, covariance = posterior(rule, asked, told)

    def against(one: int, other: int) -> tuple[float, float]:
        """By how much one is more than the other, and the standard deviation of that; of logarithms."""
        variance = covariance[one, one] + covariance[other, other] - 2 * covariance[one, other]
        return float(mean[one] - mean[other]), math.sqrt(max(0.0, variance))

    def choice(index: int, why: str) -> Choice:
        more, sd = against(index, 0)
        return Choice(numbers[index], why, *(math.exp(more + sign * SURE * sd) for sign in (0, -1, 1)))

    others = range(1, len(numbers))
    known = [index for index in others if numbers[index] in ran]
    better = [index for index in known if gains(*against(index, 0))]
    instead = [index for index in known if mean[index] < mean[0]] if rule in bad else []
    best = min(better or instead, key=lambda index: mean[index], default=0)
    hopeful = {}
    for index in (i for i in others if i != best and numbers[i] in near):
        more, sd = against(index, best)
        if more + SURE * sd <= math.log(AT_WORST) and more - sd < -math.log(WORTH):
            hopeful[index] = more - sd
    if hopeful and len(told) >= FIRST:
        return choice(min(hopeful, key=hopeful.__getitem__), "try")
    return choice(best, "worse" if rule in bad else "gain") if best else Choice(rule)


def gains(more: float, sd: float) -> bool:
    return more < -math.log(WORTH) and more + SURE * sd < 0


def worse(rule: int, runs: Sequence[Run]) -> set[int]:
    """Numbers whose last run, if it is a late one, took over 1.2 times what another number that ran would have taken
    there, by the other runs."""
    last = {run.partitions: i for i, run in enumerate(runs)}
    found = set()
    for number, at in last.items():
        size = runs[at].input_bytes
        rest = [run for i, run in enumerate(runs) if i != at and size / FAR <= run.input_bytes <= size * FAR]
        others = {run.partitions for run in rest} - {number}
        if others and at >= len(runs) - LATEST:
            mean, covariance = posterior(rule, [(other, size, at) for other in others], rest)
            best = int(np.argmin(mean))
            usual = float(mean[best]) + math.sqrt(max(0.0, covariance[best, best]))
            if math.log(runs[at].cpu_seconds / size) - usual > math.log(AT_WORST):
                found.add(number)
    return found


def posterior(rule: int, asked: Sequence[tuple[int, int, int]], runs: Sequence[Run]) -> tuple[Array, Array]:
    """Mean (n,) and covariance (n, n) of the logarithm of the cost at n points: partitions, input bytes, and the place
    among the runs."""
    seen = np.array([[math.log2(run.partitions), math.log2(run.input_bytes), i] for i, run in enumerate(runs)])
    points = np.array([[math.log2(number), math.log2(size), i] for number, size, i in asked])
    costs = np.array([math.log(run.cpu_seconds / run.input_bytes) for run in runs])
    center = float(costs.mean())

    def prior(at: Array) -> Array:
        return np.asarray(SLOPE * np.abs(at[:, 0] - math.log2(rule)))

    noisy, cross = kernel(seen, seen) + NOISE**2 * np.eye(len(runs)), kernel(points, seen)
    mean = center + prior(points) + cross @ np.linalg.solve(noisy, costs - center - prior(seen))
    return mean, kernel(points, points) - cross @ np.linalg.solve(noisy, cross.T)


def kernel(one: Array, other: Array) -> Array:
    """Covariance (n, m) of the costs at n and m points: doublings of partitions, of bytes, and runs."""
    apart = (one[:, None, :] - other[None, :, :]) ** 2 / 2
    partitions, size, time = apart[..., 0], apart[..., 1], apart[..., 2]
    total = LEVEL**2 + SIZE**2 * np.exp(-size / SIZE_LENGTH**2) + TREND**2 * np.exp(-time / TREND_LENGTH**2)
    return np.asarray(total + SHAPE**2 * np.exp(-partitions / SHAPE_LENGTH**2))
