"""How far a few rows reach in a large table, so that a query reads only the pages of it that can hold their like.

Parquet keeps the least and the greatest value of each page. A range that stands as literals in a query's condition
skips the others; a join does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

FEW: Final = 500_000  # rows of some keys: below 100 MB, which a driver and its executors hold
# Others have no order that pages keep exactly (NaN, time zones of literals).
ORDERED: Final = ("string", "tinyint", "smallint", "int", "bigint", "decimal", "date")


@dataclass(frozen=True)
class Extent:
    """Number of rows, and column -> (type, least, greatest) of those columns that have an order; values as Spark's
    text, since Python has no year 0 or 10000."""

    rows: int
    bounds: Mapping[str, tuple[str, str, str]]

    @property
    def few(self) -> bool:
        """Whether the rows may be broadcast."""
        return self.rows <= FEW

    def covers(self, values: Mapping[str, Column]) -> Column:
        """True for a row whose ``values`` (by our columns' names) lie within the bounds, or are NULL."""
        known = [(value, *self.bounds[name]) for name, value in values.items() if name in self.bounds]
        within = [
            value.isNull() | value.between(F.lit(low).cast(kind), F.lit(high).cast(kind))
            for value, kind, low, high in known
        ]
        return reduce(Column.__and__, within, F.lit(True))


def extent(rows: DataFrame, columns: Sequence[str]) -> Extent:
    """The extent of ``rows`` in those columns, by one Spark job."""
    types = dict(rows.dtypes)
    ordered = [name for name in columns if types[name].split("(")[0] in ORDERED]
    edges = [edge(name).cast("string").alias(f"{edge.__name__}_{name}") for name in ordered for edge in (F.min, F.max)]
    found = rows.agg(F.count(F.lit(1)).alias("rows"), *edges).collect()[0]
    bounds = {name: (types[name], found[f"min_{name}"], found[f"max_{name}"]) for name in ordered}
    return Extent(found["rows"], {name: bound for name, bound in bounds.items() if bound[1] is not None})
