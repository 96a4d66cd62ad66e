"""A model as bytes: JSON and arrays, signed; no pickle, so that reading one runs nothing.

    DTFOREST  format (4 bytes)  header's length (4)  header: JSON  arrays  HMAC (32; zeros without a key)  SHA-256 (32)

Numbers are little-endian. The SHA-256 is over all before it, the HMAC over all before that. One model is always the
same bytes, and its first hash digits are its name.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeVar

import numpy as np

from drivetrain.anomaly.distribution import Bins, Counts
from drivetrain.anomaly.features import FAMILIES, PARTS, Encoder, Encoding, Feature
from drivetrain.anomaly.forest import ARRAYS, Forest
from drivetrain.anomaly.reasons import PROBABILITIES, Range
from drivetrain.anomaly.thresholds import Threshold
from drivetrain.errors import DrivetrainError, Problem

MAGIC: Final = b"DTFOREST"
FORMAT: Final = 1
FIXED: Final = struct.Struct("<8sII")
DIGEST: Final = hashlib.sha256().digest_size
ALL: Final = "all"  # the name of the threshold for every row
FIT: Final = "restore it from an earlier version of the table, or fit a new one"
T = TypeVar("T")


@dataclass(frozen=True)
class Reference:
    """What a feature, or the score, was in the reference."""

    bins: Bins
    counts: tuple[int, ...]

    @property
    def array(self) -> Counts:
        return np.array(self.counts, np.int64)


@dataclass(frozen=True)
class Model:
    """All that scoring, explaining and watching need.

    Attributes:
        data_version: of the training data.
        thresholds: by name, e.g. of the group that each is for.
        ranges, references: by the order of the features; ``scores`` is the reference of the score.
        card: for people: what it was trained on, when, with what, measured; anything that JSON knows.
    """

    forest: Forest
    encoding: Encoding
    data_version: str
    thresholds: Mapping[str, Threshold]
    ranges: tuple[Range, ...]
    references: tuple[Reference, ...]
    scores: Reference
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.encoding.encoders)
        if not self.forest.features == count == len(self.ranges) == len(self.references):
            raise _broken(f"it has {self.forest.features} columns in its trees, and {count} features")
        if len(set(self.encoding.names)) != count:
            raise _broken("two of its features have one name")
        if any(len(one.counts) != one.bins.size for one in (*self.references, self.scores)):
            raise _broken("its counts are not of its bins")

    def judging(self) -> Model:
        """The same, which has what judging by it needs.

        Raises:
            DrivetrainError: it has not.
        """
        features, sizes = self.card.get("features"), (self.card.get("rows"), self.card.get("share"))
        named = isinstance(features, list) and all(isinstance(one, dict) and "name" in one for one in features)
        if ALL not in self.thresholds or not named or not all(isinstance(size, int | float) for size in sizes):
            raise _broken("it lacks a threshold for every row, or its card does not tell what it was fitted on")
        return self


def name_of(data: bytes) -> str:
    """16 hex digits: what the model of these bytes is called."""
    return data[-DIGEST:].hex()[:16]


def dump(model: Model, key: bytes | None = None) -> bytes:
    """With ``key`` signed as well, so that nobody else can make a model that load() with that key takes.

    Raises:
        ValueError: the card holds what JSON does not know.
    """
    arrays = {name: np.ascontiguousarray(getattr(model.forest, name)) for name in ARRAYS}
    header = {
        "forest": {"features": model.forest.features, "trees": model.forest.trees, "sample": model.forest.sample},
        "arrays": {name: len(array) for name, array in arrays.items()},
        "encoders": [asdict(encoder) for encoder in model.encoding.encoders],
        "data_version": model.data_version,
        "thresholds": {name: _finite(asdict(one)) for name, one in model.thresholds.items()},
        "ranges": [asdict(one) for one in model.ranges],
        "references": [asdict(one) for one in (*model.references, model.scores)],
        "card": dict(model.card),
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    packed = [array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays.values()]
    content = b"".join((FIXED.pack(MAGIC, FORMAT, len(text)), text, *packed))
    content += hmac.digest(key, content, "sha256") if key else bytes(DIGEST)
    return content + hashlib.sha256(content).digest()


def load(data: bytes, key: bytes | None = None) -> Model:
    """The model of these bytes, which are trusted only as far as their signature: with ``key`` it must be that key's.

    Raises:
        DrivetrainError: a byte was altered, the signature is of another key or is none, the format is of a newer
            version, or the contents are no model; says which.
    """
    if len(data) < FIXED.size + 2 * DIGEST or not data.startswith(MAGIC):
        raise _broken("these bytes are no model")
    if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
        raise _broken("its bytes were altered: they have not the hash that they end with", "model-altered")
    content, signature = data[: -2 * DIGEST], data[-2 * DIGEST : -DIGEST]
    if key and not hmac.compare_digest(hmac.digest(key, content, "sha256"), signature):
        what = "it is not signed" if signature == bytes(DIGEST) else "it was signed with another key, or altered"
        raise _broken(what, "model-signature")
    _, version, length = FIXED.unpack_from(content)
    if version > FORMAT:
        what = f"it is of format {version}, this program knows up to {FORMAT}"
        raise DrivetrainError(Problem("model-newer", "anomaly model", what, "update Drivetrain, or fit a new one"))
    if version < 1:
        raise _broken(f"there is no format {version}")
    return _parsed(content, length)


def _parsed(content: bytes, length: int) -> Model:
    try:
        header = json.loads(content[FIXED.size : FIXED.size + length])
        features, trees, sample = (_int(header["forest"], name) for name in ("features", "trees", "sample"))
        arrays = _arrays(content[FIXED.size + length :], header["arrays"])
        *references, scores = [_reference(one) for one in header["references"]]
        return Model(
            Forest(features, trees, sample, **arrays),
            Encoding(tuple(map(_encoder, header["encoders"]))),
            _is(header["data_version"], str),
            {name: Threshold(**_infinite(one)) for name, one in header["thresholds"].items()},
            tuple(map(_range, header["ranges"])),
            tuple(references),
            scores,
            _is(header["card"], dict),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(f"its contents are no model: {type(error).__name__} {error}") from error


def _arrays(data: bytes, lengths: Mapping[str, int]) -> dict[str, Any]:
    found, at = {}, 0
    for name, kind in ARRAYS.items():
        stored = np.dtype(kind).newbyteorder("<")
        found[name] = np.frombuffer(data, stored, _int(lengths, name), at).astype(kind)
        at += lengths[name] * stored.itemsize
    if at != len(data):
        raise ValueError(f"{len(data)} bytes of arrays, not {at}")
    return found


def _encoder(raw: Mapping[str, Any]) -> Encoder:
    feature = Feature(**raw["feature"])
    encoder = Encoder(**{**raw, "feature": feature, "levels": tuple(raw["levels"]), "shares": tuple(raw["shares"])})
    if feature.kind not in FAMILIES or feature.part not in PARTS:
        raise ValueError(f"feature {feature.name} is a {feature.kind} and its {feature.part}")
    if len(encoder.levels) != len(encoder.shares) or not all(share > 0 for share in (*encoder.shares, encoder.rest)):
        raise ValueError(f"feature {feature.name} has no share for each category")
    return encoder


def _range(raw: Mapping[str, Any]) -> Range:
    if len(raw["quantiles"]) not in (0, len(PROBABILITIES)):
        raise ValueError(f"{len(raw['quantiles'])} quantiles")
    return Range(tuple(map(float, raw["quantiles"])), float(raw["missing"]))


def _reference(raw: Mapping[str, Any]) -> Reference:
    bins = Bins(tuple(map(float, raw["bins"]["edges"])), tuple(raw["bins"]["levels"]))
    return Reference(bins, tuple(map(int, raw["counts"])))


def _finite(one: Mapping[str, float]) -> dict[str, float | str]:
    """JSON knows no infinity; an end of an interval may be one."""
    return {name: value if np.isfinite(value) else str(value) for name, value in one.items()}


def _infinite(one: Mapping[str, float | str]) -> dict[str, Any]:
    found = {name: float(value) for name, value in one.items()}
    if any(np.isnan(value) for value in found.values()):
        raise ValueError("a threshold is not a number")
    return {name: found[name] if isinstance(value, str) else value for name, value in one.items()}


def _int(given: Mapping[str, Any], name: str) -> int:
    return _is(given[name], int)


def _is(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value


def _broken(what: str, code: str = "model-broken") -> DrivetrainError:
    return DrivetrainError(Problem(code, "anomaly model", what, FIT))
