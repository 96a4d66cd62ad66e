"""The two labelled series of the Numenta Anomaly Benchmark (A. Lavin, S. Ahmad, 2015), by one declaration for both."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from drivetrain.anomaly.fit import fitted, flagged
from drivetrain.anomaly.thresholds import Share
from drivetrain.contracts import Anomaly, Feature

pytestmark = pytest.mark.real

NAB: Final = Path(__file__).resolve().parents[3] / "shared" / "data" / "anomaly"
RATE: Final = 0.03
FEATURES: Final = {  # each of the past only
    "value": lambda s: s,
    "mean_of_day": lambda s: s.rolling("24h").mean(),
    "spread_of_day": lambda s: s.rolling("24h").std(),
    "change_of_week": lambda s: s.rolling("24h").mean() - s.rolling("7D").mean(),
    "place_in_week": lambda s: (s - s.rolling("7D").mean()) / s.rolling("7D").std(),
}
ANOMALY: Final = Anomaly(
    tuple(Feature(name, name, "number", "value", True) for name in FEATURES), days=None, loads=None, where=None,
    group=None, share=RATE, clean=False, limit=1.0, group_limit=1.0, trees=100, sample=2048, seed=7, kind="standard",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """Flagged rows of each labelled window, and of all rows outside of them."""

    windows: Sequence[Share]
    outside: Share

    @property
    def beyond_chance(self) -> list[bool]:
        """A window is found where its share is for certain above that outside."""
        return [one.interval[0] > self.outside.interval[1] for one in self.windows]


def series(name: str) -> Any:
    with (NAB / f"{name}.csv").open() as stream:
        rows = {datetime.fromisoformat(row["timestamp"]): float(row["value"]) for row in csv.DictReader(stream)}
    return pd.Series(rows).sort_index()


def find(name: str, values: Any) -> Found:
    table = pa.table({feature: pa.array(made(values), from_pandas=True) for feature, made in FEATURES.items()})
    odd = flagged(fitted(table, ANOMALY, 0, {}), table)
    labels = json.loads((NAB / "combined_windows.json").read_text())[f"realKnownCause/{name}.csv"]
    inside = [np.array((values.index >= start) & (values.index <= stop)) for start, stop in labels]
    outside = ~np.logical_or.reduce(inside)
    windows = [Share(int(odd[window].sum()), int(window.sum())) for window in inside]
    return Found(windows, Share(int(odd[outside].sum()), int(outside.sum())))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # The third is the subtle fault that came before the failure of the fourth; these features do not show it.
        ("machine_temperature_system_failure", [True, True, False, True]),
        ("ambient_temperature_system_failure", [True, True]),
    ],
)
def test_labelled_windows_are_found_at_the_declared_rate(name: str, expected: list[bool]) -> None:
    found = find(name, series(name))
    print(name, *found.windows, "outside:", found.outside, sep="\n  ")
    assert found.outside.value <= RATE
    assert found.beyond_chance == expected


def test_a_series_whose_order_is_lost_shows_nothing() -> None:
    """Else the windows above could be found by chance."""
    name = "ambient_temperature_system_failure"
    values = series(name)
    values[:] = np.random.default_rng(0).permutation(values.to_numpy())
    found = find(name, values)
    assert not any(found.beyond_chance) and found.outside.value <= RATE * 1.1
