"""Why a row was flagged: the features whose splits isolated it, with its values against the reference, in words.

Each split on a row's way sends it to a side on which paths are shorter or longer than was expected before; what they
are shorter by is credited to the split's feature. So the credits of a row add up to how much shorter its path is than
the mean path of the sample. The method is A. Saabas' (Interpreting random forests, 2014), on path lengths. On planted
causes it is within 1.5 points of occluding each feature at a fraction of the work; DIFFI (M. Carletti,
M. Terzi, G. A. Susto, 2023) names single causes 1 to 4 per cent more often, and three together 6 less often. A split by
a plane is shared out among its features by how far each took the row from it.

For flagged rows only: 100 trees cost some 0.1 ms a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from drivetrain.anomaly.features import Encoder, Encoding, arrow
from drivetrain.anomaly.forest import LEFT_LEAF, LEFT_MISSING, OBLIQUE, RIGHT_LEAF, ROOT, Floats, Forest, Singles

PROBABILITIES: Final = (0.0, 0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)
LEAST_SHARE: Final = 0.1  # of what isolated a row, below which a feature is not worth a word
PAIRS: Final = 1 << 18  # rows times trees (or features) at a time
LONGEST: Final = 100  # characters of a category, as a rule's reason shows
WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Range:
    """A feature's values in the reference: quantiles at PROBABILITIES (none where all are missing), share missing."""

    quantiles: tuple[float, ...]
    missing: float


@dataclass(frozen=True)
class Reason:
    """``share``: how much of the row's isolation this feature made (0 to 1)."""

    feature: str
    share: float
    text: str


def range_of(values: Floats) -> Range:
    """Of one feature's values (rows,); quantiles are values that occur."""
    known = values[~np.isnan(values)]
    missing = 1 - len(known) / len(values) if len(values) else 0.0
    if not len(known):
        return Range((), missing)
    return Range(tuple(np.quantile(known, PROBABILITIES, method="inverted_cdf").tolist()), missing)


def ranges_of(encoding: Encoding, columns: Sequence[Floats]) -> tuple[Range, ...]:
    """Of all features; of personal ones only how many are missing, so that a model holds no one person's value."""
    spreads = zip(encoding.encoders, map(range_of, columns), strict=True)
    return tuple(Range((), spread.missing) if one.feature.personal else spread for one, spread in spreads)


def credits(forest: Forest, columns: Sequence[Floats]) -> Floats:
    """(rows, features): the path length that each feature's splits saved, on average over the trees.

    Rows add up to the expected path length less their own.
    """
    step = max(1, PAIRS // max(forest.trees, forest.features))
    rows = len(columns[0])
    parts = [_credits(forest, np.array([column[at : at + step] for column in columns])) for at in range(0, rows, step)]
    return np.concatenate(parts) if parts else np.zeros((0, forest.features))


def _credits(forest: Forest, values: Floats) -> Floats:
    """All trees of all rows walk down together, a level at a time; values (features, rows)."""
    count = values.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        columns = values.astype(np.float32)
    before, after = forest.expected
    children, leaf = np.stack(forest.children), np.array([LEFT_LEAF, RIGHT_LEAF])
    roots = np.flatnonzero(forest.op & ROOT)
    at, row = np.tile(roots, count), np.repeat(np.arange(count), len(roots))
    found = np.zeros(count * forest.features)
    while len(at):
        side = (~_goes_left(forest, columns, at, row)).astype(int)
        saved = before[at] - after[side, at]
        for feature, share, who in _shares(forest, columns, at, row):
            found += np.bincount(row[who] * forest.features + feature, saved[who] * share, len(found))
        on = forest.op[at] & leaf[side] == 0
        at, row = children[side, at][on], row[on]
    return found.reshape(count, -1) / forest.trees


def _goes_left(forest: Forest, columns: Singles, at: NDArray[Any], row: NDArray[Any]) -> NDArray[np.bool_]:
    oblique = forest.op[at] & OBLIQUE > 0
    x = columns[np.where(oblique, 0, forest.feature[at]), row]
    for plane in np.unique(forest.feature[at[oblique]]):
        those = oblique & (forest.feature[at] == plane)
        x[those] = forest.distance(columns[:, row[those]], plane)
    left: NDArray[np.bool_] = np.where(np.isnan(x), forest.op[at] & LEFT_MISSING > 0, x <= forest.threshold[at])
    return left


def _shares(forest: Forest, columns: Singles, at: NDArray[Any], row: NDArray[Any]) -> list[tuple[Any, Any, Any]]:
    """(feature, share of the split, which of ``at``) for all that take part in the splits."""
    oblique = forest.op[at] & OBLIQUE > 0
    plain = np.flatnonzero(~oblique)
    found: list[tuple[Any, Any, Any]] = [(forest.feature[at[plain]], 1.0, plain)] if len(plain) else []
    those = np.flatnonzero(oblique)
    if not len(those):
        return found
    start, stop = forest.start[forest.feature[at[those]]], forest.start[forest.feature[at[those]] + 1]
    most = int((stop - start).max())
    terms = np.minimum(start[:, None] + np.arange(most), stop[:, None] - 1)
    values = columns[forest.at[terms], row[those, None]].astype(float)  # an infinite one's distance is beyond float32
    away = np.abs((values - forest.centre[terms]) * forest.weight[terms])
    away = np.where((np.arange(most) < (stop - start)[:, None]) & np.isfinite(away), away, 0)
    whole = away.sum(1, keepdims=True)
    share = np.where(whole > 0, away / np.where(whole > 0, whole, 1), 1 / most)
    return found + [(forest.at[terms[:, term]], share[:, term], those) for term in range(most)]


def reasons(
    forest: Forest, encoding: Encoding, ranges: Sequence[Range], data: Any, most: int = 3
) -> list[tuple[Reason, ...]]:
    """For each row of ``data`` (as Encoding.columns takes it) at most ``most`` reasons, the strongest first.

    Raises:
        DrivetrainError: what is missing or of the wrong type in ``data``, by name.
    """
    columns = encoding.columns(data)
    found = np.maximum(credits(forest, columns), 0)
    shares = found / np.where(found.sum(1, keepdims=True) > 0, found.sum(1, keepdims=True), 1)
    best = np.argsort(-shares, axis=1, kind="stable")[:, :most]
    texts = [_teller(encoder, ranges[place], data, columns[place]) for place, encoder in enumerate(encoding.encoders)]
    return [
        tuple(
            Reason(encoding.names[place], float(shares[row, place]), texts[place](row))
            for place in places
            if shares[row, place] >= LEAST_SHARE
        )
        for row, places in enumerate(best)
    ]


def _teller(encoder: Encoder, spread: Range, data: Any, values: Floats) -> Callable[[int], str]:
    """The words for a row's value of one feature; nothing of what is personal but its name."""
    name = encoder.feature.name
    if encoder.feature.personal:
        return lambda row: f"{name} is unusual (it is personal: neither value nor range is shown)"
    if encoder.feature.kind == "category":
        raw = arrow(data[name])
        return lambda row: f"{name} {_category(encoder, spread, raw[row].as_py())}"
    return lambda row: f"{name} {_number(encoder, spread, float(values[row]))}"


def _category(encoder: Encoder, spread: Range, value: Any) -> str:
    if value is None:
        return _missing(spread)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    shown = text[:LONGEST]
    if text not in encoder.levels:
        return f"{shown} is {'rare' if encoder.rest >= min(encoder.shares, default=1) else 'not'} in the reference"
    return f"{shown} is {_percent(encoder.shares[encoder.levels.index(text)])} of the reference"


def _number(encoder: Encoder, spread: Range, value: float) -> str:
    if np.isnan(value):
        return _missing(spread)
    shown = _shown(encoder, value)
    if not spread.quantiles:
        return f"{shown} is there, and missing in all of the reference"
    quantiles = np.array(spread.quantiles)
    low, high = _shown(encoder, quantiles[1]), _shown(encoder, quantiles[-2])
    below, above = np.flatnonzero(quantiles < value), np.flatnonzero(quantiles > value)
    if not len(below) or not len(above):
        if value == quantiles[0] == quantiles[-1]:
            return f"{shown} is what all of the reference has"
        if value not in (quantiles[0], quantiles[-1]):
            side, whole = ("above", quantiles) if len(below) else ("below", quantiles)
            return (
                f"{shown} is {side} all of the reference ({_shown(encoder, whole[0])} to {_shown(encoder, whole[-1])})"
            )
    over = PROBABILITIES[below[-1]] if len(below) else 0.0
    under = 1 - PROBABILITIES[above[0]] if len(above) else 0.0
    if max(over, under) >= 0.95:
        side, share = ("above", over) if over > under else ("below", under)
        return f"{shown} is {side} {_percent(share)} of the reference ({low} to {high})"
    return f"{shown} is usual by itself, not together with the others ({low} to {high})"


def _missing(spread: Range) -> str:
    return f"is missing, as in {_percent(spread.missing)} of the reference"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _shown(encoder: Encoder, value: float) -> str:
    if encoder.feature.part == "weekday":
        return WEEKDAYS[int(value) % 7]
    if encoder.feature.part == "hour_of_week":
        return f"{WEEKDAYS[int(value // 24) % 7]} {_clock(value % 24)}"
    if encoder.feature.part == "hour":
        return _clock(value)
    if encoder.feature.kind == "date":  # numpy's calendar knows every year that Spark's does, Python's 1 to 9999 only
        return str(np.datetime64(round(encoder.origin + value), "D"))
    if encoder.feature.kind == "timestamp":
        return str(np.datetime64(round((encoder.origin + value) * 86400), "s")).replace("T", " ")
    return f"{value:.6g}"


def _clock(hours: float) -> str:
    minutes = int(hours * 60 + 1e-6)  # 23:59 is 23.983333333333334 hours, a little less than 1,439 minutes
    return f"{minutes // 60:02}:{minutes % 60:02}"
