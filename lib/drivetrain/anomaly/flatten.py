"""From grown trees to the programs of a Forest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drivetrain.anomaly.forest import (
    LEFT_LEAF,
    LEFT_MISSING,
    OBLIQUE,
    RIGHT_LEAF,
    ROOT,
    SWAPPED,
    Floats,
    Forest,
    Singles,
    average_path,
)


@dataclass(frozen=True)
class Tree:
    """A grown tree, by node; node 0 is the root, and ``left`` of a leaf is -1. ``plane`` of a node is given by rows of
    (feature, weight, centre) where the forest is oblique."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: Floats
    left_missing: NDArray[np.bool_]
    rows: NDArray[np.int64]
    planes: Sequence[Sequence[tuple[int, float, float]]] = ()


def flatten(trees: Sequence[Tree], features: int, sample: int) -> Forest:
    """The forest of ``trees``, each grown on ``sample`` rows of ``features`` columns."""
    steps = [step for tree in trees for step in _steps(tree)]
    planes = [step.plane for step in steps if step.plane]
    terms = [term for plane in planes for term in plane]
    numbers = np.cumsum([bool(step.plane) for step in steps]) - 1
    columns = [number if step.plane else step.feature for step, number in zip(steps, numbers, strict=True)]
    return Forest(
        features, len(trees), sample,
        op=np.array([step.op for step in steps], np.uint8),
        feature=np.array(columns, np.int32),
        threshold=rounded_down(np.array([step.threshold for step in steps])),
        left=np.array([step.left for step in steps], np.float32),
        right=np.array([step.right for step in steps], np.float32),
        left_rows=np.array([step.left_rows for step in steps], np.uint32),
        right_rows=np.array([step.right_rows for step in steps], np.uint32),
        start=np.cumsum([0, *map(len, planes)], dtype=np.int32),
        at=np.array([at for at, _, _ in terms], np.int32),
        weight=np.array([weight for _, weight, _ in terms], np.float32),
        centre=np.array([centre for _, _, centre in terms], np.float32),
    )  # fmt: skip


def rounded_down(threshold: Floats) -> Singles:
    """The largest float32 values that are not above: x <= threshold is the same for each float32 x."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)


class _Step(NamedTuple):
    op: int
    feature: int
    threshold: float
    left: float
    right: float
    left_rows: int
    right_rows: int
    plane: Sequence[tuple[int, float, float]]


def _steps(tree: Tree) -> Iterator[_Step]:
    """In post-order; a tree that is one leaf is a step with the same leaf on both sides."""
    lone = average_path(tree.rows)
    if tree.left[0] < 0:
        leaf, rows = float(lone[0]), int(tree.rows[0])
        yield _Step(LEFT_LEAF | RIGHT_LEAF | ROOT, 0, 0.0, leaf, leaf, rows, 0, ())
        return
    heights = _stack_heights(tree)

    def visit(node: int, depth: int) -> Iterator[_Step]:
        left, right = int(tree.left[node]), int(tree.right[node])
        swapped = heights[right] > heights[left]
        for side in (right, left) if swapped else (left, right):
            if tree.left[side] >= 0:
                yield from visit(side, depth + 1)
        leaves = [tree.left[side] < 0 for side in (left, right)]
        op = (
            LEFT_LEAF * leaves[0] | RIGHT_LEAF * leaves[1] | LEFT_MISSING * bool(tree.left_missing[node])
            | ROOT * (node == 0) | SWAPPED * (swapped and not any(leaves)) | OBLIQUE * bool(tree.planes)
        )  # fmt: skip
        ends = [float(depth + 1 + lone[side]) * leaf for side, leaf in zip((left, right), leaves, strict=True)]
        yield _Step(
            op, int(tree.feature[node]), float(tree.threshold[node]), ends[0], ends[1], int(tree.rows[left]),
            int(tree.rows[right]), tree.planes[node] if tree.planes else (),
        )  # fmt: skip

    yield from visit(0, 0)


def _stack_heights(tree: Tree) -> list[int]:
    """For each node the rows of stack that its subtree needs when the needier side goes first; children come later."""
    heights = [0] * len(tree.left)
    for node in range(len(tree.left) - 1, -1, -1):
        if tree.left[node] >= 0:
            low, high = sorted((heights[tree.left[node]], heights[tree.right[node]]))
            heights[node] = max(1, high + (low == high))
    return heights
