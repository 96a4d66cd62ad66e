"""Columns of any of Spark's simple types -> what a forest compares: float64 columns, one a feature, missing as NaN.

Nothing is scaled: a split looks at the order of one feature's values, which no scale changes. (The planes of an
extended forest, which mix features, take their own units from the sample.)

Categories become how surprising they are: -log2 of their share of the reference, in bits. Rare ones lie apart and
common ones together, which is what isolates them; one column stays one column, so that a feature of a thousand
categories is not chosen a thousand times as often; and an identifier, all of whose values are as rare as each other,
says nothing, even where a value is new. An unseen category counts as half a row: one bit beyond a category that was
seen once. What is lost: categories that are equally common are not told apart, and as a forest knows no value beyond
those of its sample, an unseen category counts as the rarest that it saw; where none was rare, let a rule of the
contract list the valid ones.

Dates and timestamps become days since the reference's first, so that float32 keeps them to seconds for some years;
personal ones since 1970, to minutes, as the first is somebody's; or a part of them, in UTC. A date that only grows
makes each new row look late: prefer a part, or a duration.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drivetrain.anomaly.forest import LARGEST, Floats
from drivetrain.errors import DrivetrainError, Problem

Kind = Literal["number", "category", "date", "timestamp"]
Part = Literal["value", "hour", "weekday", "hour_of_week"]
PARTS: Final = get_args(Part)
MOST_LEVELS: Final = 1000  # categories that a model remembers of a feature
HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
MONDAY: Final = 3  # 1970-01-01 was a Thursday

# Which families of types a kind takes.
FAMILIES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "number": ("number", "boolean"),
    "category": ("text", "integer", "boolean"),
    "date": ("date", "timestamp"),
    "timestamp": ("date", "timestamp"),
}


@dataclass(frozen=True)
class Feature:
    """A column and how it is read. ``part``, of a date or timestamp, in UTC: hour (0 to 24, with its fraction), weekday
    (0 is Monday), hour_of_week (0 to 168). What is ``personal`` is never shown, and its categories are kept as
    hashes."""

    name: str
    kind: Kind = "number"
    part: Part = "value"
    personal: bool = False


@dataclass(frozen=True)
class Encoder:
    """What was learned of a feature: the family of its type; the shares of its categories, the most common first, and
    the share that any other counts as; the day from which its dates count (days since 1970)."""

    feature: Feature
    family: str
    levels: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    rest: float = 1.0
    origin: float = 0.0

    def values(self, column: Any) -> Floats:
        """(rows,) of a pandas Series, an Arrow array, or what Arrow makes an array of; what float32 cannot hold, as
        infinite values, is the largest that it can.

        Raises:
            DrivetrainError: the column is not of the type that it had.
        """
        array = arrow(column)
        accepted = FAMILIES[self.feature.kind] if self.family == "null" else (self.family,)
        if family(array.type, self.feature.kind) not in (*accepted, "null"):
            raise _wrong_type(self.feature, f"is {array.type}, the model was fitted on {' or '.join(accepted)}")
        values: Floats = np.clip(self._values(array), -LARGEST, LARGEST)
        return values

    @property
    def time(self) -> str:
        """date or timestamp, which its column is; nothing where it is neither."""
        if self.feature.kind not in ("date", "timestamp"):
            return ""
        return self.feature.kind if self.family == "null" else self.family

    def codes(self, column: Any) -> NDArray[np.int64]:
        """(rows,) of a category: its place in ``levels``, one more for any other, -1 for missing."""
        distinct, places = _distinct(arrow(column), self.feature)
        known = {level: place for place, level in enumerate(self.levels)}
        codes = np.array([*[known.get(level, len(known)) for level in distinct], -1], np.int64)
        found: NDArray[np.int64] = codes[places]
        return found

    def _values(self, array: pa.Array) -> Floats:
        if self.feature.kind == "category":
            bits = 0 - np.log2(np.array([*self.shares, self.rest, np.nan]))  # 0 - x, as -log2(1) is -0.0
            found: Floats = bits[self.codes(array)]
            return found
        if self.feature.kind == "number":
            return _floats(array)
        return _time(_seconds(array), self.feature.part, self.origin)


@dataclass(frozen=True)
class Encoding:
    """The encoders of all features, in the order of the forest's columns."""

    encoders: tuple[Encoder, ...] = field(default_factory=tuple)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(encoder.feature.name for encoder in self.encoders)

    def columns(self, data: Any) -> list[Floats]:
        """The features' columns, each (rows,), of an Arrow table or batch, a pandas DataFrame, or a dict of columns.

        Raises:
            DrivetrainError: what is missing, or not of the type that it had, all of it by name.
        """
        features = [encoder.feature for encoder in self.encoders]
        _check_names(features, data)
        problems: list[Problem] = []
        found: list[Floats] = []
        for encoder in self.encoders:
            try:
                found.append(encoder.values(data[encoder.feature.name]))
            except DrivetrainError as error:
                problems += error.problems
        if problems:
            raise DrivetrainError(*problems)
        return found


def fit(features: Sequence[Feature], data: Any) -> Encoding:
    """Learn the encoding from a sample of the reference; ``data`` as for Encoding.columns.

    Raises:
        DrivetrainError: what is missing or of a type that its kind does not take, all of it by name.
    """
    _check_names(features, data)
    problems: list[Problem] = []
    encoders: list[Encoder] = []
    for feature in features:
        array = arrow(data[feature.name])
        found = family(array.type, feature.kind)
        if found not in (*FAMILIES[feature.kind], "null"):
            problems += _wrong_type(feature, f"is {array.type}, which is no {feature.kind}").problems
        else:
            encoders.append(_encoder(feature, found, array))
    if problems:
        raise DrivetrainError(*problems)
    return Encoding(tuple(encoders))


def _encoder(feature: Feature, found: str, array: pa.Array) -> Encoder:
    if feature.kind == "category":
        distinct, places = _distinct(array, feature)
        counts = np.bincount(places[places >= 0], minlength=len(distinct))
        order = sorted(range(len(distinct)), key=lambda place: (-counts[place], distinct[place]))[:MOST_LEVELS]
        rows = max(int(counts.sum()), 1)
        rest = counts[order[-1]] if len(distinct) > MOST_LEVELS else 0.5
        shares = tuple(float(counts[place] / rows) for place in order)
        return Encoder(feature, found, tuple(distinct[place] for place in order), shares, float(rest / rows))
    if feature.kind in ("date", "timestamp") and feature.part == "value" and not feature.personal:
        first = np.fmin.reduce(_seconds(array), initial=np.inf)
        return Encoder(feature, found, origin=math.floor(first / DAY) if np.isfinite(first) else 0.0)
    return Encoder(feature, found)


def arrow(column: Any) -> pa.Array:
    """One array, dictionaries decoded; NaN in a Series is missing."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    array = column if isinstance(column, pa.Array) else pa.array(column, from_pandas=True)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


@cache
def family(found: pa.DataType, kind: Kind) -> str:
    """What types are taken for each other: an int may become a bigint, and as a number a decimal or a double too."""
    tests = {
        "null": (pa.types.is_null,), "boolean": (pa.types.is_boolean,), "integer": (pa.types.is_integer,),
        "number": (pa.types.is_floating, pa.types.is_decimal), "date": (pa.types.is_date,),
        "text": (pa.types.is_string, pa.types.is_large_string), "timestamp": (pa.types.is_timestamp,),
    }  # fmt: skip
    name = next((name for name, of in tests.items() if any(test(found) for test in of)), str(found))
    return "number" if (name, kind) == ("integer", "number") else name


def _floats(array: pa.Array) -> Floats:
    plain = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array
    found: Floats = plain.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return found


def _seconds(array: pa.Array) -> Floats:
    """Since 1970, in UTC."""
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if pa.types.is_date(array.type):  # not by way of microseconds, which hold fewer years than dates do
        return _floats(array.cast(pa.date32()).cast(pa.int32())) * DAY
    micros = array.cast(pa.timestamp("us", getattr(array.type, "tz", None)), safe=False).cast(pa.int64())
    return _floats(micros) / 1e6


def _time(seconds: Floats, part: Part, origin: float) -> Floats:
    if part == "hour":
        return seconds % DAY / HOUR
    if part == "weekday":
        return (np.floor(seconds / DAY) + MONDAY) % 7
    if part == "hour_of_week":
        return (seconds + MONDAY * DAY) % (7 * DAY) / HOUR
    return seconds / DAY - origin


def _distinct(array: pa.Array, feature: Feature) -> tuple[list[str], NDArray[np.int64]]:
    """The categories as text, and for each row its place among them, -1 for missing."""
    coded = array.cast(pa.string()).dictionary_encode()
    texts = [feature_hash(feature.name, text) if feature.personal else text for text in coded.dictionary.to_pylist()]
    return texts, pc.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)


def feature_hash(name: str, text: str) -> str:
    """What stands for a personal category: no name to be read in a model, though one that is guessed can be tested."""
    return hashlib.blake2b(text.encode(), digest_size=8, key=name.encode()[:64]).hexdigest()


def _check_names(features: Sequence[Feature], data: Any) -> None:
    there = set(data.column_names if isinstance(data, pa.Table | pa.RecordBatch) else data.keys())
    lacking = [feature for feature in features if feature.name not in there]
    if lacking:
        fix = "add it to the rows that are scored, or fit a model without it"
        raise DrivetrainError(
            *[Problem("feature-missing", f"feature {one.name}", "the rows have no such column", fix) for one in lacking]
        )


def _wrong_type(feature: Feature, what: str) -> DrivetrainError:
    fix = "cast the column, change the feature's kind, or fit a new model"
    return DrivetrainError(Problem("feature-type", f"feature {feature.name}", f"the column {what}", fix))
