"""Scores of rows in whatever form they come: cast, transposed and cut into the kernel's blocks, chunk by chunk.

A row's score depends on the row and the forest alone, in every bit: not on the batch, its order, or the kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from drivetrain.anomaly.forest import BLOCK, LARGEST, Floats, Forest, Singles
from drivetrain.anomaly.native import Code, aligned, load

CHUNK: Final = 1 << 18  # values that are cast before the kernel reads them, so that they are still in the cache


class Scorer:
    """A forest with the best kernel that runs here; make it once per process."""

    def __init__(self, forest: Forest, code: Code | None = None) -> None:
        self.forest, self.kernel = forest, load(code or Code(why="no object code was given"))

    def score(self, rows: NDArray[Any] | Sequence[NDArray[Any]]) -> Floats:
        """(rows,) scores of a matrix (rows, features), or of a list of columns; float or integer, of any layout.

        Raises:
            ValueError: other than the forest's number of features, or columns of different lengths.
        """
        count, features = self._length(rows), self.forest.features
        total = np.zeros((-(-count // BLOCK), BLOCK))
        step = max(1, min(CHUNK // (BLOCK * features), len(total)))
        data = aligned((step, features, BLOCK))
        for first in range(0, len(total), step):
            blocks = min(step, len(total) - first)
            start, stop = first * BLOCK, min((first + blocks) * BLOCK, count)
            self._gather(rows, start, stop, data)
            self.kernel.run(self.forest, data[:blocks], total[first : first + blocks])
        return self.forest.score(total.reshape(-1)[:count])

    def _length(self, rows: NDArray[Any] | Sequence[NDArray[Any]]) -> int:
        columns = list(rows.T) if isinstance(rows, np.ndarray) else rows
        shapes = {column.shape for column in columns}
        if len(columns) != self.forest.features or len(shapes) != 1 or columns[0].ndim != 1:
            raise ValueError(f"the forest takes {self.forest.features} columns of one length, not {len(columns)}")
        return len(columns[0])

    def _gather(self, rows: NDArray[Any] | Sequence[NDArray[Any]], start: int, stop: int, data: Singles) -> None:
        """Rows start..stop into blocks; what stands behind them in the last one is nobody's."""
        whole, rest = divmod(stop - start, BLOCK)
        middle = start + whole * BLOCK
        with np.errstate(over="ignore", invalid="ignore"):
            if isinstance(rows, np.ndarray):  # all columns at once: 50 walks through the rows take half as long again
                data[:whole] = rows[start:middle].reshape(whole, BLOCK, data.shape[1]).transpose(0, 2, 1)
                data[whole : whole + 1, :, :rest] = rows[middle:stop].T
            else:
                for place, column in enumerate(rows):
                    data[:whole, place] = column[start:middle].reshape(whole, BLOCK)
                    data[whole : whole + 1, place, :rest] = column[middle:stop]
        if self.forest.oblique:  # elsewhere an infinite value compares as the largest finite one does
            np.clip(data, -LARGEST, LARGEST, out=data)
