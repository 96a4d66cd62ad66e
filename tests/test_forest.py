"""Forests as arrays: their scores, and what is refused as one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from forests import forest, random_rows
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.anomaly import forest as programs
from drivetrain.anomaly.flatten import rounded_down
from drivetrain.anomaly.forest import ARRAYS, BLOCK, Forest, average_path
from drivetrain.errors import DrivetrainError


def run(made: Forest, rows: np.ndarray) -> np.ndarray:
    total = np.zeros(len(rows))
    made.run(np.ascontiguousarray(rows.T.astype(np.float32)), total)
    return total


def walked(made: Forest, row: np.ndarray) -> float:
    """The path lengths of a row, by following it from each root as one would by hand."""
    left, right = made.children
    whole = 0.0
    for step in np.flatnonzero(made.op & programs.ROOT).tolist():
        while True:
            what, x = int(made.op[step]), np.float32(row[made.feature[step]])
            goes_left = bool(what & programs.LEFT_MISSING) if np.isnan(x) else x <= made.threshold[step]
            if what & (programs.LEFT_LEAF if goes_left else programs.RIGHT_LEAF):
                whole += float((made.left if goes_left else made.right)[step])
                break
            step = int((left if goes_left else right)[step])
    return whole


@pytest.mark.parametrize("seed", range(3))
def test_programs_give_what_walking_the_trees_gives(seed: int) -> None:
    made, rows = forest(seed=seed), random_rows(200, 4, seed + 10, missing=0.2)
    assert np.array_equal(run(made, rows), [walked(made, row) for row in rows])


def test_rows_on_a_threshold_go_left() -> None:
    made = forest(missing=0.0)
    rows = np.tile(made.threshold[:50, None], (1, 4))
    assert np.array_equal(run(made, rows), [walked(made, row) for row in rows])


def test_both_orders_of_sides_occur() -> None:
    inner = [made.op & (programs.LEFT_LEAF | programs.RIGHT_LEAF) == 0 for made in (forest(), forest(seed=1))]
    swapped = [made.op & programs.SWAPPED > 0 for made in (forest(), forest(seed=1))]
    assert all((one & other).any() and (one & ~other).any() for one, other in zip(inner, swapped, strict=True))


def test_average_path_is_that_of_binary_search() -> None:
    harmonic = np.array([sum(1 / k for k in range(1, n)) for n in range(1, 3000)])
    n = np.arange(1, 3000)
    exact = 2 * harmonic - 2 * (n - 1) / n
    found = average_path(n)
    assert found[:2].tolist() == [0.0, 1.0]
    assert (np.abs(found[2:] - exact[2:]) < 1.05 / (n[2:] - 1)).all()  # the paper takes ln(k) + 0.5772 for the sum
    assert average_path([0])[0] == 0


def test_scores_lie_between_0_and_1_and_shorter_paths_are_stranger() -> None:
    made = forest()
    scores = made.score(np.array([0.0, 1.0, made.normaliser, 1e9]))
    assert scores.tolist() == [1.0, scores[1], 0.5, 0.0]
    assert 0.5 < scores[1] < 1


def test_trees_of_one_row_tell_nothing() -> None:
    made = dataclasses.replace(forest(), sample=1)
    assert made.score(np.array([[3.0], [4.0]])).tolist() == [[0.5], [0.5]]


@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=20), st.floats(width=32, allow_nan=False))
def test_thresholds_in_float32_divide_float32_values_as_in_float64(thresholds: list[float], x: float) -> None:
    within = np.clip(np.array(thresholds), -3e38, 3e38)
    found = rounded_down(within)
    assert found.dtype == np.float32
    assert np.array_equal(np.float32(x) <= found, np.float64(x) <= within)


def test_the_stack_stays_small() -> None:
    """The needier side first: no more rows than the logarithm of the leaves."""
    made = forest()
    assert 2 <= made.depth <= 6 < np.log2(64) + 1


def test_arrays_cannot_be_changed_afterwards() -> None:
    own = np.array(forest().threshold)
    made = dataclasses.replace(forest(), threshold=own)
    own[0] += 1
    assert made.threshold[0] == forest().threshold[0]
    with pytest.raises(ValueError):
        made.threshold[0] = 0


def changed(name: str, change: Any) -> dict[str, Any]:
    array = np.array(getattr(forest(extended=True), name))
    return {name: change(array)}


def put(place: int, value: Any) -> Any:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


@pytest.mark.parametrize("name", ARRAYS)
def test_lists_of_different_lengths_are_refused(name: str) -> None:
    with pytest.raises(DrivetrainError, match=r"has \d+ values, not \d+|start does not|not there"):
        dataclasses.replace(forest(extended=True), **changed(name, lambda array: array[:-1]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("op", put(-1, 35)), "op"),  # ends without a root
        (changed("op", put(0, 32)), "op"),  # takes from an empty stack
        (changed("op", put(0, 43)), "op"),  # one tree more
        (changed("op", lambda array: array | 4), "lie"),
        (changed("feature", put(0, -1)), "feature"),
        (changed("feature", put(0, 10**6)), "feature"),
        (changed("at", put(0, 4)), "at names"),
        (changed("at", put(0, -1)), "at names"),
        (changed("start", put(0, 1)), "start"),
        (changed("start", put(1, 10**6)), "start"),
        (changed("threshold", put(3, np.nan)), "threshold"),
        (changed("left", put(3, np.inf)), "finite"),
        (changed("weight", put(3, np.inf)), "finite"),
        (changed("feature", lambda array: array + 0.5), "feature"),
        (changed("op", lambda array: array[None]), "op"),
        ({"features": 0}, "no features"),
        ({"sample": 0}, "no sample"),
        ({"trees": 19}, "op"),
        ({name: getattr(forest(), name)[:0] for name in ARRAYS}, "no trees"),
    ],
)
def test_what_the_kernel_would_not_survive_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(DrivetrainError, match=said) as refused:
        dataclasses.replace(forest(extended=True), **change)
    assert refused.value.problems[0].code == "forest-broken"


@pytest.mark.parametrize(
    "op", [[3, 11], [0, 3, 11], [3, 3, 11], [3, 8, 3, 3, 8], [3], [11, 3], [1, 10], [2, 3, 8]], ids=str
)
def test_steps_that_are_no_trees_are_refused(op: list[int]) -> None:
    """One row is left over, or one taken where none is: 3 makes one, 1 and 2 change it, 0 takes one, 8 ends a tree."""
    steps = np.zeros(len(op))
    trees = sum(what & programs.ROOT > 0 for what in op)
    with pytest.raises(DrivetrainError, match="op is not the steps"):
        Forest(1, trees, 9, np.array(op), *[steps] * 6, np.zeros(1), *[np.zeros(0)] * 3)
    Forest(1, 2, 9, np.array([3, 3, 8, 11]), *[np.zeros(4)] * 6, np.zeros(1), *[np.zeros(0)] * 3)


def test_a_missing_value_lies_on_the_plane() -> None:
    made = forest(extended=True)
    columns = np.full((4, 3), np.nan, np.float32)
    columns[:, 1] = 5
    assert made.oblique and not forest().oblique
    assert made.distance(columns, 0)[[0, 2]].tolist() == [0, 0]
    first, last = made.start[:2]
    by_hand = sum((5 - made.centre[at]) * made.weight[at] for at in range(first, last))
    assert made.distance(columns, 0)[1] == pytest.approx(by_hand, rel=1e-5)


def test_a_block_is_what_vectors_divide() -> None:
    assert BLOCK % 64 == 0
