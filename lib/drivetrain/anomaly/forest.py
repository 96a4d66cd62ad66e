"""Isolation forests as flat arrays, which is what is stored, broadcast and scored.

A tree becomes a program in post-order for a machine with a stack of rows. Each inner node is one step, which selects
between its sides for every row: a side that is a leaf is a constant, the path length that ends there; any other side is
what an earlier step left on the stack. The deeper side is computed first, so that the stack stays small.

The score of a row is 2^(-E(h) / c(n)): E(h) the mean path length over the trees, c(n) that of an unsuccessful search
among the n rows of a tree's sample; it lies in (0, 1), and more is stranger.
F. T. Liu, K. M. Ting, Z.-H. Zhou: Isolation Forest, ICDM 2008.

What float32 costs: values are compared as float32, as scikit-learn does, so two values closer than 6e-8 of their size
may fall on the same side (amounts beyond 16.7 million to the unit, timestamps of our time to 2 minutes). Scaling is not
needed: a split looks at the order of one feature's values, which no scale changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from drivetrain.errors import DrivetrainError, Problem

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

LARGEST: Final = float(np.finfo(np.float32).max)  # what an infinite value counts as
BLOCK: Final = 640  # rows; ten columns of it and the stack take about 48 KB, a first-level cache
LEFT_LEAF: Final = 1
RIGHT_LEAF: Final = 2
LEFT_MISSING: Final = 4  # a missing value goes left
ROOT: Final = 8  # the tree ends here
SWAPPED: Final = 16  # the right side was computed first
OBLIQUE: Final = 32  # ``feature`` is the number of a plane


@dataclass(frozen=True)
class Forest:
    """``trees`` programs, one after the other, of S steps; planes (P) and their terms (T) where splits are oblique.

    Attributes:
        features: how many columns a row has.
        trees: how many trees.
        sample: rows that each tree was grown on.
        op: (S,) what a step does, in bits: LEFT_LEAF, RIGHT_LEAF, LEFT_MISSING, ROOT, SWAPPED, OBLIQUE.
        feature: (S,) the column, or the plane, that it compares.
        threshold: (S,) the largest float32 that goes left.
        left, right: (S,) path lengths of the leaves; 0 for a side that is none.
        left_rows, right_rows: (S,) how many rows of the sample went there.
        start: (P + 1,) where each plane's terms begin.
        at, weight, centre: (T,) a plane's distance is the sum of (x[at] - centre) * weight, in float32, in this order.

    Raises:
        DrivetrainError: the arrays are no programs. The kernel, which checks nothing, relies on this.
    """

    features: int
    trees: int
    sample: int
    op: NDArray[np.uint8]
    feature: NDArray[np.int32]
    threshold: Singles
    left: Singles
    right: Singles
    left_rows: NDArray[np.uint32]
    right_rows: NDArray[np.uint32]
    start: NDArray[np.int32]
    at: NDArray[np.int32]
    weight: Singles
    centre: Singles

    def __post_init__(self) -> None:
        for name, kind in ARRAYS.items():
            given = getattr(self, name)
            fixed = np.ascontiguousarray(given, kind).copy()
            if fixed.ndim != 1 or not np.array_equal(fixed, given):
                raise _broken(f"{name} is no list of {kind.__name__}")
            fixed.flags.writeable = False
            object.__setattr__(self, name, fixed)
        _check(self)

    @cached_property
    def depth(self) -> int:
        """Rows of stack that the programs need."""
        return int(_heights(self.op).max(initial=1))

    @cached_property
    def oblique(self) -> bool:
        return bool(len(self.start) > 1)

    @cached_property
    def normaliser(self) -> float:
        """The sum over the trees of c(sample)."""
        return self.trees * float(average_path([self.sample])[0])

    def score(self, total: Floats) -> Floats:
        """Scores of rows whose path lengths add up to ``total`` (any shape), to 12 digits: the last ones of numpy's
        exp2 are others on other processors, and a threshold is a score that occurred."""
        if not self.normaliser:  # trees of one row each
            return np.full(total.shape, 0.5)
        scores: Floats = np.round(np.exp2(total / -self.normaliser), 12)
        return scores

    def run(self, columns: Singles, total: Floats) -> None:
        """Add each row's path length in each tree to ``total`` (rows,); columns (features, rows). The plain form of
        the kernel: equal to it in every bit, as sums of float32 are exact in float64 here."""
        stack: list[Singles] = []
        for step, what in enumerate(self.op.tolist()):
            index, threshold = self.feature[step], self.threshold[step]
            x = self.distance(columns, int(index)) if what & OBLIQUE else columns[index]
            goes_left = ~(x > threshold) if what & LEFT_MISSING else x <= threshold
            right = self.right[step] if what & RIGHT_LEAF else None
            left = self.left[step] if what & LEFT_LEAF else None
            if what & SWAPPED:
                left = stack.pop() if left is None else left
            right = stack.pop() if right is None else right
            left = stack.pop() if left is None else left
            stack.append(_either(goes_left, left, right))
            if what & ROOT:
                total += stack.pop()

    def distance(self, columns: Singles, plane: int) -> Singles:
        """(rows,) of rows from a plane; a missing value lies on it."""
        found = np.zeros(columns.shape[1], np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for term in range(self.start[plane], self.start[plane + 1]):
                away = (columns[self.at[term]] - self.centre[term]) * self.weight[term]
                found += np.where(np.isnan(away), np.float32(0), away)
        return found

    @cached_property
    def children(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """(S,) each: the step that computes the left and the right side, -1 for a leaf."""
        sides = np.full((2, len(self.op)), -1, np.int32)
        stack: list[int] = []
        for step, what in enumerate(self.op.tolist()):
            inner = [side for side, leaf in enumerate((LEFT_LEAF, RIGHT_LEAF)) if not what & leaf]
            for side in inner if what & SWAPPED else reversed(inner):
                sides[side, step] = stack.pop()
            stack = [] if what & ROOT else [*stack, step]
        return sides[0], sides[1]

    @cached_property
    def expected(self) -> tuple[Floats, Floats]:
        """(S,) the mean path length of the sample's rows that come to a step, and (2, S) of those on each side."""
        after = np.stack([self.left, self.right]).astype(float)
        rows = np.stack([self.left_rows, self.right_rows]).astype(float)
        weights = np.where(rows.sum(0) > 0, rows, 1.0)  # no row of the sample came here: either side is as likely
        before = np.zeros(len(self.op))
        for step, sides in enumerate(zip(*self.children, strict=True)):
            for side, child in enumerate(sides):
                if child >= 0:
                    after[side, step] = before[child]
            before[step] = after[:, step] @ weights[:, step] / weights[:, step].sum()
        return before, after


def _either(goes_left: NDArray[np.bool_], left: Singles, right: Singles) -> Singles:
    """What np.where gives, by bits: that one branches at each row, and guesses every other one wrong."""
    mask = np.negative(goes_left.view(np.int8)).astype(np.int32)
    one, other = left.view(np.int32), right.view(np.int32)
    chosen: Singles = (other ^ ((one ^ other) & mask)).view(np.float32)
    return chosen


ARRAYS: Final[dict[str, type[Any]]] = {
    "op": np.uint8, "feature": np.int32, "threshold": np.float32, "left": np.float32, "right": np.float32,
    "left_rows": np.uint32, "right_rows": np.uint32, "start": np.int32, "at": np.int32, "weight": np.float32,
    "centre": np.float32,
}  # fmt: skip


def average_path(rows: Sequence[int] | NDArray[Any]) -> Floats:
    """c(n): the mean length of an unsuccessful search in a binary tree of n rows (Liu et al. 2008, equation 1)."""
    n = np.asarray(rows, np.float64)
    more = np.maximum(n, 2.5)
    inner = 2 * (np.log(more - 1) + np.euler_gamma) - 2 * (more - 1) / more
    return np.where(n <= 1, 0.0, np.where(n == 2, 1.0, inner))


def _heights(op: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(S,) rows on the stack after each step, counted from the start of its tree."""
    moves = (op & LEFT_LEAF > 0).astype(np.int64) + (op & RIGHT_LEAF > 0) - 1
    upto = np.cumsum(moves)
    begins = np.concatenate(([True], op[:-1] & ROOT > 0))
    before = np.where(begins, upto - moves, 0)
    heights: NDArray[np.int64] = upto - before[np.maximum.accumulate(np.where(begins, np.arange(len(op)), 0))]
    return heights


def _check(forest: Forest) -> None:
    """Raises where a program would read or write what it must not."""
    steps, planes, terms = len(forest.op), len(forest.start) - 1, len(forest.at)
    if forest.features < 1 or forest.sample < 1 or not steps or planes < 0:
        raise _broken("it has no features, no trees or no sample")
    sizes = {"start": planes + 1, "at": terms, "weight": terms, "centre": terms}
    for name in ARRAYS:
        found, wanted = len(getattr(forest, name)), sizes.get(name, steps)
        if found != wanted:
            raise _broken(f"{name} has {found} values, not {wanted}")
    heights, root, oblique = _heights(forest.op), forest.op & ROOT > 0, forest.op & OBLIQUE > 0
    if heights.min() < 1 or (heights[root] != 1).any() or not root[-1] or root.sum() != forest.trees:
        raise _broken("op is not the steps of its trees")
    if (oblique & (forest.op & LEFT_MISSING > 0)).any():
        raise _broken("op sends missing values somewhere at a plane, on which they lie")
    if ((forest.feature < 0) | (forest.feature >= np.where(oblique, planes, forest.features))).any():
        raise _broken("feature names columns that are not there")
    if forest.start[0] != 0 or forest.start[-1] != terms or (np.diff(forest.start) < 0).any():
        raise _broken("start does not divide the terms")
    if ((forest.at < 0) | (forest.at >= forest.features)).any():
        raise _broken("at names columns that are not there")
    if not all(np.isfinite(getattr(forest, name)).all() for name in ("threshold", "left", "right", "weight", "centre")):
        raise _broken("a number is not finite")


def _broken(what: str) -> DrivetrainError:
    return DrivetrainError(Problem("forest-broken", "isolation forest", what, "restore the model, or fit it anew"))
