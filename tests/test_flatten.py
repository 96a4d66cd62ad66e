"""Grown trees as programs."""

from __future__ import annotations

import numpy as np
import pytest

from drivetrain.anomaly.flatten import Tree, flatten
from drivetrain.anomaly.forest import (
    LEFT_LEAF,
    LEFT_MISSING,
    OBLIQUE,
    RIGHT_LEAF,
    ROOT,
    SWAPPED,
    average_path,
)


def tree(left: list[int], right: list[int], rows: list[int], missing: tuple[int, ...] = (), planes: tuple = ()) -> Tree:
    nodes = np.arange(len(left))
    return Tree(
        np.array(left), np.array(right), nodes % 3, nodes + 0.5, np.isin(nodes, missing), np.array(rows), planes
    )


def test_a_leaf_alone_is_a_step_that_always_ends_there() -> None:
    made = flatten([tree([-1], [-1], [5])], 3, 5)
    assert made.op.tolist() == [LEFT_LEAF | RIGHT_LEAF | ROOT]
    assert made.left.tolist() == made.right.tolist() == [np.float32(average_path([5])[0])]


def test_the_deeper_side_comes_first() -> None:
    """0 -> (1: leaves), (2 -> (3: leaves), (4: leaves)): the right side needs two rows of stack, the left one."""
    left = [1, 5, 3, 7, 9, *[-1] * 6]
    right = [2, 6, 4, 8, 10, *[-1] * 6]
    rows = [16, 6, 10, 4, 6, 2, 4, 1, 3, 5, 1]
    made = flatten([tree(left, right, rows, missing=(2,))], 3, 16)
    both = LEFT_LEAF | RIGHT_LEAF
    assert made.op.tolist() == [both, both, LEFT_MISSING, both, SWAPPED | ROOT]
    assert made.threshold.tolist() == [3.5, 4.5, 2.5, 1.5, 0.5]
    assert made.feature.tolist() == [0, 1, 2, 1, 0]
    assert made.depth == 2
    c = average_path(rows)
    assert made.left.tolist() == pytest.approx([3 + c[7], 3 + c[9], 0, 2 + c[5], 0])
    assert made.right.tolist() == pytest.approx([3 + c[8], 3 + c[10], 0, 2 + c[6], 0])
    assert made.left_rows.tolist() == [1, 5, 4, 2, 6]
    assert made.right_rows.tolist() == [3, 1, 6, 4, 10]
    assert [side.tolist() for side in made.children] == [[-1, -1, 0, -1, 3], [-1, -1, 1, -1, 2]]


def test_the_side_that_needs_more_comes_first_not_the_deeper_one() -> None:
    """Left of the root a chain of four, which one row of stack is enough for; right of it two forks under one."""
    left = [1, 3, 9, 5, -1, 7, -1, -1, -1, 11, 13, *[-1] * 4]
    right = [2, 4, 10, 6, -1, 8, -1, -1, -1, 12, 14, *[-1] * 4]
    made = flatten([tree(left, right, [9] * 15)], 3, 9)
    assert made.depth == 2
    assert made.op[-1] == SWAPPED | ROOT


def test_a_side_that_is_a_leaf_is_a_constant() -> None:
    made = flatten([tree([1, 3, -1, -1, -1], [2, 4, -1, -1, -1], [9, 7, 2, 4, 3])] * 2, 3, 9)
    assert made.op.tolist() == [LEFT_LEAF | RIGHT_LEAF, RIGHT_LEAF | ROOT] * 2
    assert made.right.tolist() == pytest.approx([2 + average_path([3])[0], 1 + 1] * 2)
    assert made.trees == 2


def test_planes_are_numbered_through() -> None:
    planes = (((0, 1.0, 2.0), (2, 3.0, 4.0)), ((1, 5.0, 6.0),), (), (), ())
    one = tree([1, 3, -1, -1, -1], [2, 4, -1, -1, -1], [9, 7, 2, 4, 3], planes=planes)
    made = flatten([one, one], 3, 9)
    assert (made.op & OBLIQUE > 0).all()
    assert made.feature.tolist() == [0, 1, 2, 3]
    assert made.start.tolist() == [0, 1, 3, 4, 6]
    assert made.at.tolist() == [1, 0, 2] * 2
    assert made.weight.tolist() == [5, 1, 3] * 2
    assert made.centre.tolist() == [6, 2, 4] * 2
