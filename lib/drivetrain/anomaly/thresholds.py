"""Where to cut the scores, how sure that is, when not to act on it, and what reviewed rows say of it.

A row is flagged where its score is above the threshold. The threshold is an order statistic of the reference's scores:
exact, a score that occurred, and fixed until somebody sets another. It is no contamination rate, by which each batch
would lose that share of its rows, clean or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from drivetrain.anomaly.forest import Floats
from drivetrain.errors import DrivetrainError, Problem

Labels = NDArray[np.bool_]
CONFIDENCE: Final = 0.95
GUARD_CONFIDENCE: Final = 0.99
FEW: Final = 5  # flagged rows that say nothing of a share
FEW_LABELS: Final = 20


@dataclass(frozen=True)
class Threshold:
    """``value`` flags at most ``share`` of the reference; at 95 % confidence the exact threshold for that share lies
    between ``low`` and ``high`` (infinite: the reference is too small to tell)."""

    value: float
    low: float
    high: float
    share: float
    rows: int


def threshold(scores: Floats, share: float, rows: int | None = None) -> Threshold:
    """The least score above which at most ``share`` of the reference's rows lie.

    ``scores`` may be the highest ones only of a reference of ``rows`` rows, so that no driver needs to hold more than
    its tail; tail() says how many. The interval is that of order statistics, which holds for any distribution: ranks l
    < u with P(l <= B < u) >= 95 % for B binomial (H. A. David, H. N. Nagaraja, Order Statistics, 2003, 7.1).

    Raises:
        DrivetrainError: no scores, fewer than tail() says, or a share that is not between 0 and 1.
    """
    total = len(scores) if rows is None else rows
    if not 0 < share < 1 or not total or len(scores) < min(tail(total, share), total):
        what = f"a threshold for {share:.4%} cannot be told from {len(scores)} scores of {total} rows"
        raise _unusable(what, "give a share between 0 and 1, and the highest scores of a reference that holds rows")
    ordered = np.sort(scores)
    above = math.floor(total * share + 1e-9)  # 0.07 * 100 is 7.000000000000001
    low, high = _ranks(total, share)

    def score(kept: int) -> float:
        """That above which ``kept`` rows lie."""
        if kept < 0:
            return math.inf
        return float(ordered[len(ordered) - 1 - kept]) if kept < len(ordered) else -math.inf

    return Threshold(score(above), score(high), score(low), share, total)


def tail(rows: int, share: float) -> int:
    """How many of the highest scores threshold() needs."""
    return min(rows, _ranks(rows, share)[1] + 1)


def _ranks(rows: int, share: float) -> tuple[int, int]:
    """How many rows lie above the ends of the interval: fewer than ``low`` + 1, and more than ``high`` - 1, each in 1
    of 40 cases at most."""
    most = (1 - CONFIDENCE) / 2
    spread = 10 * math.sqrt(rows * share * (1 - share)) + 20
    first, last = max(0, int(rows * share - spread)), min(rows, int(rows * share + spread))
    counts = np.arange(first, last + 1)
    below = np.cumsum([_binomial(count, rows, share) for count in counts.tolist()])
    low = int(counts[np.searchsorted(below, most)])
    high = int(counts[min(int(np.searchsorted(below, 1 - most)), len(counts) - 1)])
    return low - 1, high


def _binomial(count: int, rows: int, share: float) -> float:
    ways = math.lgamma(rows + 1) - math.lgamma(count + 1) - math.lgamma(rows - count + 1)
    return math.exp(ways + count * math.log(share) + (rows - count) * math.log1p(-share))


@dataclass(frozen=True)
class Share:
    """``part`` of ``whole`` with its interval by E. B. Wilson (JASA 22, 1927), which holds for few rows and for
    none."""

    part: int
    whole: int
    confidence: float = CONFIDENCE

    @property
    def value(self) -> float:
        return self.part / self.whole if self.whole else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        if not self.whole:
            return 0.0, 1.0
        z = NormalDist().inv_cdf((1 + self.confidence) / 2)
        p, n = self.value, self.whole
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.part:,} of {self.whole:,} rows ({low:.2%} to {high:.2%})"


# --- the guard ---


@dataclass(frozen=True)
class Flagged:
    """How many rows of how many were flagged."""

    flagged: int
    rows: int

    def __add__(self, other: Flagged) -> Flagged:
        return Flagged(self.flagged + other.flagged, self.rows + other.rows)


@dataclass(frozen=True)
class Verdict:
    """Whether flagged rows may be held back; where not, they are flagged only, and ``reasons`` are for the alert."""

    enforce: bool
    reasons: tuple[str, ...] = ()


def guard(
    limit: float, now: Flagged, groups: Mapping[str, Flagged], before: Flagged, groups_before: Mapping[str, Flagged]
) -> Verdict:
    """Enforce unless more than ``limit`` of the rows are flagged, overall or in a group.

    Counts of this load and of those ``before`` it (whoever calls keeps some thousand rows' worth of them, by group) are
    taken together: a surge that comes in many small loads is seen once FEW rows of it were flagged, and one odd load of
    three rows is none. A share counts as above the limit where its 99 % interval is, shared out over the groups, so
    that a thousand groups are not a thousand chances to be wrong.
    """
    surge = [_surge("overall", limit, now + before, now, 1)]
    for name in sorted(groups.keys() | groups_before.keys()):
        here, earlier = groups.get(name, Flagged(0, 0)), groups_before.get(name, Flagged(0, 0))
        surge.append(_surge(name, limit, here + earlier, here, len(groups.keys() | groups_before.keys())))
    told = tuple(one for one in surge if one)
    return Verdict(not told, told)


def _surge(name: str, limit: float, both: Flagged, now: Flagged, tries: int) -> str:
    """Nothing where the limit is kept, or this load has nothing of the group to hold back."""
    if not now.flagged or both.flagged < FEW:
        return ""
    share = Share(both.flagged, both.rows, 1 - (1 - GUARD_CONFIDENCE) / tries)
    return f"{name}: {share} flagged, the limit is {limit:.2%}" if share.interval[0] > limit else ""


# --- what reviewed rows say ---


@dataclass(frozen=True)
class Measured:
    """Of reviewed rows: how many flagged ones are anomalies, and how many anomalies are flagged. The latter holds as
    far as rows that were not flagged were reviewed too."""

    threshold: float
    precision: Share
    recall: Share


def measure(scores: Floats, anomalies: Labels, value: float) -> Measured:
    """Precision and recall of threshold ``value`` on reviewed rows; ``anomalies`` is what people said of them."""
    flagged = scores > value
    both = int((flagged & anomalies).sum())
    return Measured(value, Share(both, int(flagged.sum())), Share(both, int(anomalies.sum())))


@dataclass(frozen=True)
class Proposal:
    """A threshold to consider, beside the one in force; ``why`` says what it rests on. None: leave it as it is."""

    proposed: Measured | None
    current: Measured
    why: str


def propose(scores: Floats, anomalies: Labels, current: float, precision: float) -> Proposal:
    """The lowest threshold at which the reviewed rows show ``precision``: it finds the most. It must be shown by the
    lower end of the interval, so few labels change nothing."""
    now = measure(scores, anomalies, current)
    if len(scores) < FEW_LABELS:
        return Proposal(None, now, f"{len(scores)} reviewed rows are too few, {FEW_LABELS} are needed")
    candidates = np.unique(scores)[::-1]
    tried = [measure(scores, anomalies, float(np.nextafter(one, -math.inf))) for one in candidates]
    fit = [one for one in tried if one.precision.interval[0] >= precision]
    if not fit:
        best = max(tried, key=lambda one: one.precision.interval[0])
        return Proposal(None, now, f"no threshold shows a precision of {precision:.0%}; the best is {best.precision}")
    best = fit[-1]
    if best.recall.part == now.recall.part and best.precision.whole == now.precision.whole:
        return Proposal(None, now, "the threshold in force already does what the reviewed rows allow")
    why = f"precision {now.precision} becomes {best.precision}, recall {now.recall} becomes {best.recall}"
    return Proposal(best, now, why)


def auroc(scores: Floats, anomalies: Labels) -> float:
    """The chance that an anomaly scores higher than another row, ties half (H. B. Mann, D. R. Whitney, 1947).

    Raises:
        DrivetrainError: rows of one sort only.
    """
    many = int(anomalies.sum())
    if not 0 < many < len(anomalies):
        raise _unusable("an area under the curve needs both sorts of rows", "review rows that were not flagged too")
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[anomalies].sum() - many * (many + 1) / 2) / (many * (len(anomalies) - many)))


def _unusable(what: str, fix: str) -> DrivetrainError:
    return DrivetrainError(Problem("anomaly-threshold", "anomaly scores", what, fix))
