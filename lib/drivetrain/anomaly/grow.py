"""Growing forests on a bounded sample, on the driver: by scikit-learn, and with oblique splits by our own code.

Infinite values count as the largest that float32 has, in a sample as in scoring: they are extreme, and must not end a
job. Missing values stay missing: scikit-learn sends them to one side or the other at random where a node's rows have
some, else to the larger side; in an extended forest they lie on every plane, which is left of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from drivetrain.anomaly.flatten import Tree, flatten
from drivetrain.anomaly.forest import LARGEST, Floats, Forest, Singles
from drivetrain.errors import DrivetrainError, Problem


def isolation(sample: Floats, *, trees: int = 100, rows: int = 256, seed: int = 0) -> Forest:
    """scikit-learn's IsolationForest on ``sample`` (rows, features); each tree on ``rows`` of it, or on all there are.

    Neighbouring seeds share no trees: a seed is spread over the whole state of the generator.

    Raises:
        DrivetrainError: no rows or no features, or numbers of trees or rows below 1.
    """
    from sklearn.ensemble import IsolationForest  # its import takes seconds, and workers must not pay them

    data, size = _singles(sample), min(rows, len(sample))
    _check(data, trees, rows)
    state = np.random.RandomState(np.random.SeedSequence(seed).generate_state(624))
    fitted = IsolationForest(n_estimators=trees, max_samples=size, random_state=state).fit(data)
    grown = []
    for estimator in fitted.estimators_:
        nodes = estimator.tree_
        grown.append(
            Tree(
                nodes.children_left, nodes.children_right, nodes.feature, nodes.threshold,
                nodes.missing_go_to_left.astype(bool), nodes.n_node_samples,
            )
        )  # fmt: skip
    return flatten(grown, data.shape[1], size)


def extended(sample: Floats, *, trees: int = 100, rows: int = 256, seed: int = 0, terms: int = 2) -> Forest:
    """Splits by random planes over ``terms`` features each. S. Hariri, M. C. Kind, R. J. Brunner: Extended Isolation
    Forest, IEEE TKDE 33(4), 2021 (their extension level is terms - 1).

    A plane mixes features, so each counts in units of its standard deviation in the sample.

    Raises:
        DrivetrainError: as isolation(), or ``terms`` below 1.
    """
    data, size = _singles(sample), min(rows, len(sample))
    _check(data, trees, min(rows, terms))
    spread = _spread(data)
    grown = []
    for child in np.random.SeedSequence(seed).spawn(trees):
        random = np.random.default_rng(child)
        chosen = data[random.choice(len(data), size, replace=False)]
        grown.append(_Growth(chosen, spread, terms, random).tree())
    return flatten(grown, data.shape[1], size)


class _Growth:
    """One tree as it grows, depth first, to the depth that a balanced one would have."""

    def __init__(self, rows: Singles, spread: Floats, terms: int, random: np.random.Generator) -> None:
        self.rows, self.spread, self.terms, self.random = rows, spread, terms, random
        self.limit = int(np.ceil(np.log2(max(len(rows), 2))))
        self.sides: list[list[int]] = []
        self.counts: list[int] = []
        self.planes: list[tuple[tuple[int, float, float], ...]] = []

    def tree(self) -> Tree:
        self.grow(np.arange(len(self.rows)), 0)
        left, right = np.array(self.sides).T
        none = np.zeros(len(left))
        return Tree(
            left, right, none.astype(int), none, none.astype(bool), np.array(self.counts),
            self.planes if left[0] >= 0 else (),
        )  # fmt: skip

    def grow(self, rows: NDArray[np.int64], depth: int) -> int:
        node = len(self.counts)
        self.counts.append(len(rows))
        self.sides.append([-1, -1])
        self.planes.append(())
        plane = self.plane(self.rows[rows]) if depth < self.limit and len(rows) > 1 else ()
        if plane:
            self.planes[node] = plane
            goes_left = distance(self.rows[rows], plane) <= 0
            self.sides[node] = [self.grow(rows[side], depth + 1) for side in (goes_left, ~goes_left)]
        return node

    def plane(self, rows: Singles) -> tuple[tuple[int, float, float], ...]:
        """A random one through the box of ``rows``; nothing where all rows are alike."""
        low, high = np.fmin.reduce(rows), np.fmax.reduce(rows)
        usable = np.flatnonzero(high > low)  # false where all are missing
        chosen = self.random.choice(usable, min(self.terms, len(usable)), replace=False)
        weights = self.random.standard_normal(len(chosen)) / self.spread[chosen]
        centres = self.random.uniform(low[chosen].astype(float), high[chosen].astype(float))
        return tuple(zip(chosen.tolist(), weights.tolist(), centres.tolist(), strict=True))


def distance(rows: Singles, plane: tuple[tuple[int, float, float], ...]) -> Singles:
    """(rows,) from a plane, computed as the kernel does."""
    found = np.zeros(len(rows), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for at, weight, centre in plane:
            away = (rows[:, at] - np.float32(centre)) * np.float32(weight)
            found += np.where(np.isnan(away), np.float32(0), away)
    return found


def _singles(sample: Floats) -> Singles:
    return np.clip(sample, -LARGEST, LARGEST).astype(np.float32)


def _spread(data: Singles) -> Floats:
    """(features,) how far values lie apart, as a standard deviation would tell were they normal: from the quartiles,
    which extreme values do not move; from the whole range where those are equal, and 1 where all values are."""
    found = np.ones(data.shape[1])
    for place, column in enumerate(data.T.astype(float)):
        known = column[~np.isnan(column)]
        low, first, third, high = np.quantile(known, (0, 0.25, 0.75, 1)) if len(known) else (0, 0, 0, 0)
        found[place] = (third - first) / 1.349 or (high - low) or 1.0
    return found


def _check(data: Singles, trees: int, rows: int) -> None:
    if data.ndim != 2 or not data.size or trees < 1 or rows < 1:
        what = f"{trees} trees cannot be grown on {rows} rows of a sample of shape {data.shape}"
        fix = "widen the reference window, or its filter, until it holds rows; a few hundred make a useful forest"
        raise DrivetrainError(Problem("forest-empty", "isolation forest", what, fix))
