"""A model in a Python worker, loaded once. What is imported here every cold worker pays for: neither pandas nor Spark,
and no more of the forest's libraries than scoring needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa

from drivetrain.anomaly import modelfile, reasons
from drivetrain.anomaly.forest import Floats
from drivetrain.anomaly.modelfile import ALL
from drivetrain.anomaly.native import Code
from drivetrain.anomaly.scoring import Scorer

SCORE: Final = "_score"  # no feature's name begins so


class Loaded:
    """A model in a worker."""

    def __init__(self, data: bytes, kernel: Code) -> None:
        self.model, self.kernel = modelfile.load(data), kernel

    @cached_property
    def scorer(self) -> Scorer:
        return Scorer(self.model.forest, self.kernel)

    def columns(self, given: Any) -> dict[str, Any]:
        """The columns of a UDF's batch by the features' names; of a single one Spark gives no tuple."""
        columns = given if isinstance(given, tuple) else (given,)
        return dict(zip(self.model.encoding.names, columns, strict=True))

    def score(self, data: Mapping[str, Any]) -> Floats:
        return self.scorer.score(self.model.encoding.columns(data))

    def tell(self, data: Mapping[str, pa.Array]) -> pa.StructArray:
        """Of each row its score; of those above the threshold the features that isolated them, and why."""
        scores = self.score(data)
        flags = scores > self.model.thresholds[ALL].value
        odd = pa.array(np.flatnonzero(flags))
        names, texts = self.told({name: column.take(odd) for name, column in data.items()})
        places = pa.array(np.cumsum(flags) - 1, mask=~flags)  # a missing place gives a missing value
        columns = [pa.array(scores), names.take(places), texts.take(places)]
        return pa.StructArray.from_arrays(columns, ["score", "features", "reason"])

    def told(self, odd: Mapping[str, pa.Array]) -> tuple[pa.Array, pa.Array]:
        """Of rows above the threshold the features and the reasons. Rows that are not judged come without values: there
        may be many, and all would be told the same."""
        empty = np.logical_and.reduce([column.is_null().to_numpy(zero_copy_only=False) for column in odd.values()])
        whole = {name: column.filter(pa.array(~empty)) for name, column in odd.items()}
        found = iter(
            reasons.reasons(self.model.forest, self.model.encoding, self.model.ranges, whole) if (~empty).any() else ()
        )
        names: list[list[str]] = []
        texts: list[str] = []
        for nothing in empty.tolist():
            one = () if nothing else next(found)
            names.append([reason.feature for reason in one])
            texts.append(MISSING if nothing else "; ".join(reason.text for reason in one))
        return pa.array(names, pa.list_(pa.string())), pa.array(texts, pa.string())


MISSING: Final = "all of its features are missing"
MOST: Final = 16  # models that a worker keeps
_LOADED: dict[str, Loaded] = {}  # of this process, which lives for many tasks; what was used last stands last


def loaded(data: bytes, kernel: Code) -> Loaded:
    name = modelfile.name_of(data)
    _LOADED[name] = _LOADED.pop(name) if name in _LOADED else Loaded(data, kernel)
    if len(_LOADED) > MOST:
        del _LOADED[next(iter(_LOADED))]
    return _LOADED[name]
