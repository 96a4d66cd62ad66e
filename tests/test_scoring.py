"""Scores depend on the row and the forest alone."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from forests import compiled, forest, random_rows, runnable
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.anomaly import scoring
from drivetrain.anomaly.forest import BLOCK
from drivetrain.anomaly.native import Code
from drivetrain.anomaly.scoring import Scorer

ROWS = random_rows(5 * BLOCK + 77, 4, seed=9, missing=0.1)


def scorers() -> list[Scorer]:
    found = [Scorer(forest(extended=extended)) for extended in (False, True)]
    for level, extended in itertools.product(runnable(), (False, True)):
        found.append(Scorer(forest(extended=extended), Code({level: compiled().objects[level]})))
        assert found[-1].kernel.level == level
    return found


@pytest.mark.parametrize("extended", [False, True])
def test_kernels_agree_in_every_bit(extended: bool) -> None:
    each = [one.score(ROWS) for one in scorers() if one.forest.oblique == extended]
    assert len(each) >= 2
    assert all(np.array_equal(one, each[0]) for one in each)


PROGRAM = """
import sys
from forests import forest, random_rows
from drivetrain.anomaly.scoring import Scorer
for extended in (False, True):
    sys.stdout.buffer.write(Scorer(forest(extended=extended)).score(random_rows(2000, 4, seed=9)).tobytes())
"""


def test_processors_agree_in_every_bit() -> None:
    """numpy has code of its own for some; without it, as on an older one, it must not matter."""
    found = []
    for without in ("", " ".join(np._core._multiarray_umath.__cpu_dispatch__)):  # type: ignore[attr-defined]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NPY_DISABLE_CPU_FEATURES": without}
        done = subprocess.run([sys.executable, "-c", PROGRAM], env=environ, check=True, capture_output=True)
        found.append(done.stdout)
    assert found[0] == found[1] and len(found[0]) == 2 * 2000 * 8


LAYOUTS: dict[str, Any] = {
    "Fortran": np.asfortranarray,
    "columns": lambda rows: list(np.ascontiguousarray(rows.T)),
    "strided columns": lambda rows: list(rows.T),
    "float32": lambda rows: rows.astype(np.float32),
    "float32 Fortran": lambda rows: np.asfortranarray(rows, np.float32),
    "every other": lambda rows: np.repeat(np.repeat(rows, 2, 0), 3, 1)[::2, ::3],
    "backwards": lambda rows: rows[::-1].copy()[::-1],
    "read-only": lambda rows: np.frombuffer(rows.tobytes()).reshape(rows.shape),
    "big-endian": lambda rows: rows.astype(">f8"),
    "mixed": lambda rows: [rows[:, 0], rows[:, 1].astype(np.float32), *rows[:, 2:].T],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_does_not_matter(layout: str) -> None:
    given = LAYOUTS[layout](ROWS)
    before = np.array(given, dtype=float)
    for scorer in scorers():
        assert np.array_equal(scorer.score(given), scorer.score(ROWS))
    assert np.array_equal(np.array(given, dtype=float), before, equal_nan=True)


def test_integers_and_booleans_count_as_numbers() -> None:
    whole = np.arange(40).reshape(10, 4)
    truth = whole % 3 > 1
    for scorer in scorers():
        for one in (whole, truth):
            assert np.array_equal(scorer.score(one), scorer.score(one.astype(float)))


@given(st.data())
@settings(max_examples=25)
def test_neither_batches_nor_their_order_matter(data: st.DataObject) -> None:
    scorer = Scorer(forest(extended=data.draw(st.booleans())), compiled())
    whole = scorer.score(ROWS)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ROWS)), max_size=6)))
    parts = [scorer.score(ROWS[start:stop]) for start, stop in itertools.pairwise([0, *cuts, len(ROWS)])]
    assert np.array_equal(np.concatenate(parts), whole)
    order = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(len(ROWS))
    assert np.array_equal(scorer.score(ROWS[order]), whole[order])


@pytest.mark.parametrize("rows", [0, 1, 3, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_any_number_of_rows(rows: int) -> None:
    for scorer in scorers():
        found = scorer.score(ROWS[:rows])
        assert found.shape == (rows,) and np.array_equal(found, scorer.score(ROWS)[:rows])


def test_chunks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for scorer in scorers():
        whole = scorer.score(ROWS)
        for size in (1, 2 * 4 * BLOCK, 1 << 30):
            monkeypatch.setattr(scoring, "CHUNK", size)
            assert np.array_equal(scorer.score(ROWS), whole)


def test_infinite_and_huge_values_count_as_the_largest_without_a_word() -> None:
    largest = float(np.finfo(np.float32).max)
    rows = np.array([[np.inf, -np.inf, 1e300, -1e39], [1, np.inf, np.nan, 2]])
    mapped = np.array([[largest, -largest, largest, -largest], [1, largest, np.nan, 2]])
    for scorer in scorers():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(scorer.score(rows), scorer.score(mapped))


def test_2000_features_take_little_memory() -> None:
    wide = forest(features=2000)
    assert Scorer(wide, compiled()).score(random_rows(1500, 2000)).shape == (1500,)


@pytest.mark.parametrize(
    "rows", [np.zeros((3, 5)), np.zeros((3, 3)), [np.zeros(3)] * 3, [np.zeros(3)] * 3 + [np.zeros(4)], [], np.zeros(4),
             [np.zeros((3, 1))] * 4],
)  # fmt: skip
def test_other_numbers_of_columns_and_lengths_are_refused(rows: Any) -> None:
    with pytest.raises(ValueError, match="the forest takes 4 columns of one length"):
        Scorer(forest()).score(rows)
