"""How far rows have moved from the reference: counts in bins that the reference fixes, and what counts tell.

Counts add up, so that Spark (or each worker) may count, and only small arrays come to the driver. P-values would call
any difference drift at a million rows; sizes of effect do not: PSI, the population stability index, whose 0.1 and 0.2
are conventions (S. Siddiqi, Credit Risk Scorecards, 2006), and the distance of Kolmogorov and Smirnov.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from drivetrain.anomaly.features import Encoder
from drivetrain.anomaly.forest import Floats

Counts = NDArray[np.int64]
PSI_LIMIT: Final = 0.2
KS_LIMIT: Final = 0.1
CROWD: Final = 10  # personal values that are told only together
STALE: Final = 0.2  # drift rate
SURE: Final = NormalDist().inv_cdf(0.999)  # chance alone must not look like drift


@dataclass(frozen=True)
class Bins:
    """Where values are counted: up to each of ``edges``, and beyond the last; or each of ``levels``, and any other. The
    last bin counts what is missing. The first and the last interval lie outside of the reference, but for what is
    personal."""

    edges: tuple[float, ...] = ()
    levels: tuple[str, ...] = ()

    @property
    def ordered(self) -> bool:
        return bool(self.edges)

    @property
    def size(self) -> int:
        return len(self.edges) + len(self.levels) + 2

    def count(self, values: Floats) -> Counts:
        """(size,) of values (rows,), NaN as missing; of a category the codes of Encoder.codes."""
        if self.ordered:
            places = np.searchsorted(self.edges, values)
            places[np.isnan(values)] = self.size - 1
        else:
            places = np.where(values < 0, self.size - 1, np.minimum(values, self.size - 2)).astype(np.int64)
        return np.bincount(places, minlength=self.size)


def intervals(values: Floats, most: int = 20) -> Bins:
    """About ``most`` intervals that hold as much each of the reference's known values, and one beyond at each end."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return Bins(edges=(0.0,))
    upto = np.ceil(np.arange(1, most + 1) / most * len(known)).astype(int) - 1
    return Bins(edges=(float(np.nextafter(known[0], -np.inf)), *np.unique(known[upto]).tolist()))


def crowds(values: Floats, most: int = 20) -> Bins:
    """As `intervals`, of values that are personal: at least CROWD of them lie in each interval, the first and the last
    as well, and the edges lie half way between two values, so that they are nobody's."""
    known = np.sort(values[~np.isnan(values)])
    between = np.flatnonzero(known[1:] > known[:-1]) + 1  # how many values lie below each gap
    least = max(CROWD, len(known) // most)
    edges, below = [], 0
    for upto in between[between <= len(known) - CROWD].tolist():
        if upto - below >= least:
            edges.append(float((known[upto - 1] + known[upto]) / 2))
            below = upto
    return Bins(edges=tuple(edges) or (0.0,))


def of_feature(encoder: Encoder, column: Any, most: int = 20) -> Bins:
    """The bins of a feature from the reference's column; the most common categories have one each."""
    if encoder.feature.kind == "category":
        return Bins(levels=encoder.levels[:most])
    return (crowds if encoder.feature.personal else intervals)(encoder.values(column), most)


def count_feature(bins: Bins, encoder: Encoder, column: Any) -> Counts:
    """Counts of a column that is not yet encoded."""
    return bins.count(encoder.values(column) if bins.ordered else encoder.codes(column).astype(float))


def psi(reference: Counts, found: Counts) -> float:
    """Sum of (q - p) ln(q / p) over the bins. Half a row is added to each, so that an empty one is not infinite."""
    p, q = ((counts + 0.5) / (counts.sum() + 0.5 * len(counts)) for counts in (reference, found))
    return float(((q - p) * np.log(q / p)).sum())


def psi_by_chance(reference: Counts, found: Counts) -> float:
    """What PSI stays below 999 times of 1,000 where nothing has changed: (1/n + 1/m) chi-squared (B. Yurdakul,
    Statistical properties of population stability index, 2018), by the approximation of Wilson and Hilferty."""
    free = max(int(((reference + found) > 0).sum()) - 1, 1)
    high = free * (1 - 2 / (9 * free) + SURE * np.sqrt(2 / (9 * free))) ** 3
    return float(high * (1 / max(reference.sum(), 1) + 1 / max(found.sum(), 1)))


def distance(reference: Counts, found: Counts, ordered: bool) -> float:
    """The largest difference of the shares of rows: up to any edge, or in any set of categories; or of those missing.

    For intervals it is the Kolmogorov-Smirnov distance as far as bins can tell (never more than the true one), for
    categories the total variation.
    """
    p, q = (counts / max(counts.sum(), 1) for counts in (reference, found))
    if not ordered:
        return float(abs(q - p).sum() / 2)
    known = [counts[:-1] / max(counts[:-1].sum(), 1) for counts in (reference, found)]
    return float(max(abs(np.cumsum(known[1] - known[0])).max(), abs(q[-1] - p[-1])))


@dataclass(frozen=True)
class Drift:
    """One feature, or the scores, against the reference."""

    name: str
    psi: float
    distance: float
    drifted: bool


def compare(name: str, bins: Bins, reference: Counts, found: Counts) -> Drift:
    """It has drifted where an effect is large, and larger than chance makes it in so few rows.

    Raises:
        ValueError: counts of other bins.
    """
    if reference.shape != (bins.size,) or found.shape != (bins.size,):
        raise ValueError(f"{name} has {bins.size} bins, not {reference.shape} and {found.shape}")
    if not found.sum() or not reference.sum():
        return Drift(name, 0.0, 0.0, False)
    moved, apart = psi(reference, found), distance(reference, found, bins.ordered)
    rows = 1 / reference.sum() + 1 / found.sum()
    by_chance = psi_by_chance(reference, found)
    drifted = moved > max(PSI_LIMIT, by_chance) or (apart > max(KS_LIMIT, 1.95 * np.sqrt(rows)) and moved > by_chance)
    return Drift(name, moved, apart, bool(drifted))


@dataclass(frozen=True)
class Report:
    """``rate`` is the larger of two shares: of features that drifted, and of rows by which the scores' distribution
    moved (0 where it did not drift). Features alone would miss that they moved together; the scores alone, that rows
    left the reference to where the forest cannot tell rows apart. A maximum over features would call a model of 2,000
    features stale for one of them."""

    features: tuple[Drift, ...]
    scores: Drift

    @property
    def rate(self) -> float:
        share = sum(one.drifted for one in self.features) / max(len(self.features), 1)
        return max(share, self.scores.distance if self.scores.drifted else 0.0)

    @property
    def stale(self) -> bool:
        return self.rate > STALE


def report(
    features: Mapping[str, tuple[Bins, Counts]], found: Mapping[str, Counts], scores: tuple[Bins, Counts],
    found_scores: Counts,
) -> Report:  # fmt: skip
    """All features and the scores; ``features`` and ``scores`` are the reference's bins and counts.

    Raises:
        ValueError: a feature that was not counted, or counts of other bins.
    """
    lacking: Sequence[str] = sorted(features.keys() - found.keys())
    if lacking:
        raise ValueError(f"no counts of {', '.join(lacking)}")
    each = tuple(compare(name, bins, counts, found[name]) for name, (bins, counts) in features.items())
    return Report(each, compare("score", *scores, found_scores))
