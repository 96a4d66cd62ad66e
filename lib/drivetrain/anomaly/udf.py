"""A model on the executors: broadcast once, loaded once in a Python worker, the same scores in batch and stream.

Workers import drivetrain.anomaly.worker and nothing of this. Only the features go to Python, as Arrow arrays, and
whatever else a row has stays where it is; `scorer` is for anyone, in any select.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Final, TypeVar

import pyarrow as pa
from pyspark.core.broadcast import Broadcast
from pyspark.sql import Column, SparkSession
from pyspark.sql.pandas.functions import arrow_udf

from drivetrain.anomaly import modelfile
from drivetrain.anomaly.modelfile import ALL, Model
from drivetrain.anomaly.native import Code, code
from drivetrain.anomaly.worker import loaded
from drivetrain.errors import DrivetrainError, Problem

TOLD: Final = "score double, features array<string>, reason string"
MOST: Final = 64  # broadcasts that are kept
T = TypeVar("T")
_SHARED: dict[tuple[str, str], Broadcast[Any]] = {}  # by application and name; what was used last stands last
_SHARES: Final = Lock()  # streams ask in threads of their own


@dataclass(frozen=True)
class Fitted:
    """A model and its bytes, which are what travels."""

    data: bytes
    key: bytes | None = field(default=None, repr=False)

    @cached_property
    def model(self) -> Model:
        """Raises:
        DrivetrainError: they are none that judges, were altered, or, where there is a key, were not signed with it. A
            worker, which gets what has passed this, needs no key.
        """
        return modelfile.load(self.data, self.key).judging()

    @property
    def threshold(self) -> float:
        return float(self.model.thresholds[ALL].value)


@cache
def kernel() -> Code:
    """The compiled kernel. It is kept where nobody else writes, or not at all: workers run what is in it."""
    home = os.environ.get("DRIVETRAIN_HOME")
    if home and _is_private(folder := Path(home, "cache").absolute()):
        return code(folder)
    with tempfile.TemporaryDirectory() as passing:
        return code(Path(passing))


def _is_private(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return False
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def scorer(spark: SparkSession, fitted: Fitted) -> Callable[..., Column]:
    """An Arrow UDF: a model's features, in its order, as columns or their names -> scores (double), of every row.

    It raises a DrivetrainError where it is given more columns, or fewer, than the model has features.
    """
    shared, compiled = _shared(spark, fitted)

    def score(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        model = loaded(shared.value, compiled.value)
        for given in batches:
            yield pa.array(model.score(model.columns(given)))

    scored: Callable[..., Column] = arrow_udf(score, "double")  # type: ignore[call-overload]
    names = fitted.model.encoding.names

    def checked(*columns: Column | str) -> Column:
        if len(columns) != len(names):
            what = f"the model has the features {', '.join(names)}, and {len(columns)} columns were given"
            raise DrivetrainError(Problem("model-features", "scorer", what, "give one for each, in that order"))
        return scored(*columns)

    return checked


def teller(spark: SparkSession, fitted: Fitted) -> Callable[[Mapping[str, Column]], Column]:
    """The features' values by their names -> scores as of `scorer`, with the reasons of those above the threshold:
    TOLD."""
    shared, compiled = _shared(spark, fitted)

    def tell(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        model = loaded(shared.value, compiled.value)
        for given in batches:
            yield model.tell(model.columns(given))

    told: Callable[..., Column] = arrow_udf(tell, TOLD)  # type: ignore[call-overload]
    names = fitted.model.encoding.names
    return lambda values: told(*[values[name] for name in names])


def _shared(spark: SparkSession, fitted: Fitted) -> tuple[Broadcast[bytes], Broadcast[Code]]:
    fitted.model  # noqa: B018  executors get no bytes that it refuses
    return _once(spark, modelfile.name_of(fitted.data), fitted.data), _once(spark, "kernel", kernel())


def _once(spark: SparkSession, name: str, value: T) -> Broadcast[T]:
    """One broadcast of a name in an application. The one that was used least lately leaves the executors; it is not
    destroyed by us, as a plan may hold it yet, which sends it again: Spark does so once none does."""
    context = spark.sparkContext
    with _SHARES:
        for key in [key for key in _SHARED if key[0] != context.applicationId]:
            del _SHARED[key]
        key = str(context.applicationId), name
        found = _SHARED[key] = _SHARED.pop(key) if key in _SHARED else context.broadcast(value)
        if len(_SHARED) > MOST:
            _SHARED.pop(next(iter(_SHARED))).unpersist()
        return found
