"""Small forests and rows for the tests of the isolation forest."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from drivetrain.anomaly import grow
from drivetrain.anomaly.forest import Floats, Forest
from drivetrain.anomaly.native import LEVELS, Code, code, load

ROOT = Path(__file__).resolve().parents[1]
TABULAR = ROOT.parent / "shared" / "data" / "anomaly" / "tabular"


def random_rows(rows: int, features: int, seed: int = 0, missing: float = 0.0) -> Floats:
    random = np.random.default_rng(seed)
    made = random.normal(size=(rows, features)) * random.lognormal(0, 2, features)
    made[:, ::3] = np.round(made[:, ::3])  # ties
    made[random.random(made.shape) < missing] = np.nan
    return made


@cache
def forest(features: int = 4, extended: bool = False, missing: float = 0.1, trees: int = 20, seed: int = 0) -> Forest:
    fit = grow.extended if extended else grow.isolation
    return fit(random_rows(500, features, seed, missing), trees=trees, rows=64, seed=seed)


@cache
def compiled() -> Code:
    """The kernel for each level, compiled once into a folder that scripts/test keeps."""
    made = code(ROOT / ".drivetrain" / "kernels")
    if not made.objects:
        pytest.skip(made.why)
    return made


def runnable() -> list[str]:
    """The levels that this processor runs."""
    given = compiled()
    return [level for level in LEVELS if load(Code({level: given.objects[level]})).level == level]


def tabular(name: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """X (rows, features) and which rows are outliers, of one published set."""
    found = sorted(TABULAR.glob(f"*_{name}.npz"))
    if not found:
        pytest.skip(f"no published data: {TABULAR} holds no {name}")
    with np.load(found[0]) as data:
        return data["X"].astype(float), data["y"].astype(bool)
