"""The scoring kernel in numba: all trees over blocks of rows, without a branch that depends on data.

A tree is a program in post-order (drivetrain.anomaly.forest). A step selects between what its two sides have given,
for all rows of a block, so that the compiler turns it into vector instructions: comparing and blending 16 rows at once
costs less than finding out for one row where to go. Both sides are loaded before the choice; with a load inside of it
the compiler keeps the branch, and the kernel runs at a tenth of its speed.

Only the driver that compiles imports this module, in a process of its own: ``python -m drivetrain.anomaly.kernel``
writes LLVM IR, which drivetrain.anomaly.native makes object code of, for each kind of processor. Arrays are pointers
here, without bounds or exceptions, so that the code needs nothing of numba or Python when it runs; what bounds them is
checked where a Forest is made.
"""

from __future__ import annotations

import sys
from typing import Any

from numba import cfunc, float32, float64, int32, int64, njit, types, uint8

from drivetrain.anomaly.forest import BLOCK, LEFT_LEAF, LEFT_MISSING, OBLIQUE, RIGHT_LEAF, ROOT, SWAPPED

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"


@njit
def at_most(x, threshold):
    """NaN goes right."""
    return x <= threshold


@njit
def not_above(x, threshold):
    """NaN goes left."""
    return not x > threshold


@njit
def two_leaves(goes_left, data, x, threshold, left, right, stack, out):
    for i in range(BLOCK):
        stack[out + i] = left if goes_left(data[x + i], threshold) else right


@njit
def left_leaf(goes_left, data, x, threshold, left, stack, out):
    for i in range(BLOCK):
        right = stack[out + i]
        stack[out + i] = left if goes_left(data[x + i], threshold) else right


@njit
def right_leaf(goes_left, data, x, threshold, right, stack, out):
    for i in range(BLOCK):
        left = stack[out + i]
        stack[out + i] = left if goes_left(data[x + i], threshold) else right


@njit
def no_leaf(goes_left, data, x, threshold, stack, lefts, rights, out):
    for i in range(BLOCK):
        left = stack[lefts + i]
        right = stack[rights + i]
        stack[out + i] = left if goes_left(data[x + i], threshold) else right


@njit
def select(goes_left, op, data, x, threshold, left, right, stack, top):
    """One step; returns where the stack's new top is."""
    sides = op & (LEFT_LEAF | RIGHT_LEAF)
    if sides == LEFT_LEAF | RIGHT_LEAF:
        two_leaves(goes_left, data, x, threshold, left, right, stack, top + BLOCK)
        return top + BLOCK
    if sides == LEFT_LEAF:
        left_leaf(goes_left, data, x, threshold, left, stack, top)
        return top
    if sides == RIGHT_LEAF:
        right_leaf(goes_left, data, x, threshold, right, stack, top)
        return top
    below = top - BLOCK
    if op & SWAPPED:
        no_leaf(goes_left, data, x, threshold, stack, top, below, below)
    else:
        no_leaf(goes_left, data, x, threshold, stack, below, top, below)
    return below


@njit
def project(data, block, start, stop, at, weight, centre, plane):
    """The distances from a plane; a missing value lies on it."""
    for i in range(BLOCK):
        plane[i] = 0
    for term in range(start, stop):
        x, heavy, middle = block + at[term] * BLOCK, weight[term], centre[term]
        for i in range(BLOCK):
            away = (data[x + i] - middle) * heavy
            plane[i] += away if away == away else float32(0)


def entry() -> Any:
    """The kernel as a C function: adds each row's path length in each tree to ``total``.

    data (blocks, features, BLOCK), total (blocks, BLOCK); the program's arrays are those of Forest. ``stack`` is
    scratch of Forest.depth + 1 rows of BLOCK, the first of which is never read; ``plane`` is one of BLOCK.
    """
    floats, ints = types.CPointer(float32), types.CPointer(int32)
    program = (types.CPointer(uint8), ints, floats, floats, floats)
    planes = (ints, ints, floats, floats)

    @cfunc(types.void(int64, int64, int64, floats, *program, *planes, floats, floats, types.CPointer(float64)))
    def drivetrain_score(
        blocks, features, steps, data, op, feature, threshold, left, right, start, at, weight, centre, stack, plane,
        total,
    ):  # fmt: skip
        for block in range(blocks):
            base, top = block * features * BLOCK, int64(0)
            for step in range(steps):
                what, of = op[step], int64(feature[step])
                if what & OBLIQUE:
                    project(data, base, start[of], start[of + 1], at, weight, centre, plane)
                    top = select(at_most, what, plane, int64(0), threshold[step], left[step], right[step], stack, top)
                elif what & LEFT_MISSING:
                    x = base + of * BLOCK
                    top = select(not_above, what, data, x, threshold[step], left[step], right[step], stack, top)
                else:
                    x = base + of * BLOCK
                    top = select(at_most, what, data, x, threshold[step], left[step], right[step], stack, top)
                if what & ROOT:
                    for i in range(BLOCK):
                        total[block * BLOCK + i] += stack[top + i]
                    top = int64(0)

    return drivetrain_score


if __name__ == "__main__":
    made = entry()
    sys.stdout.write(made.inspect_llvm().replace(made.native_name, "drivetrain_score"))
