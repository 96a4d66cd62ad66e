"""Gold tables of one silver table by groups: only the groups that changed are computed again, by the same SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from drivetrain import sqltext
from drivetrain.contracts import Dataset, GoldTable
from drivetrain.extent import extent
from drivetrain.sink import Table


@dataclass(frozen=True)
class Groups:
    """The silver table that a query groups, and each group column: gold name -> Spark SQL over silver columns."""

    table: str
    columns: dict[str, str]


def groups(gold: GoldTable) -> Groups | None:
    """The query's groups, where it is one table's rows grouped by the key; None where it says more than that."""
    if len(gold.inputs) != 1:
        return None
    found = sqltext.group_columns(sqltext.select(gold.sql))
    return Groups(gold.inputs[0], found) if found and set(found) == set(gold.key) else None


def touched(silver: Table, after: int, upto: int, by: Groups) -> DataFrame | None:
    """Groups with a row that changed in the versions after ``after``, up to ``upto``; None where the log has a gap."""
    if not all(silver.has_commit(version) for version in range(after + 1, upto + 1)):
        return None  # reading a change feed does not fail on a gap: it leaves the rows out
    return grouped(silver.changes(after + 1, upto), by)


def grouped(changes: DataFrame, by: Groups) -> DataFrame:
    """The groups of silver's rows, each once."""
    return changes.select(*[F.expr(text).alias(name) for name, text in by.columns.items()]).distinct()


def restricted(silver: DataFrame, changed: DataFrame, by: Groups, dataset: Dataset) -> DataFrame:
    """Silver's rows of the changed groups, all of them."""
    open_ = {name: text for name, text in by.columns.items() if all(map(dataset.is_open, sqltext.columns(text)))}
    reach = extent(changed, list(open_))
    near = silver.where(reach.covers({name: F.expr(text) for name, text in open_.items()}))
    named = changed.select(*[F.col(name).alias(f"_g_{name}") for name in by.columns])
    same = [F.expr(text).eqNullSafe(F.col(f"_g_{name}")) for name, text in by.columns.items()]
    return near.join(F.broadcast(named) if reach.few else named, reduce(Column.__and__, same), "left_semi")


def replaced(old: DataFrame, new: DataFrame, changed: DataFrame, key: Sequence[str]) -> DataFrame:
    """Gold with the changed groups' rows taken out and their new ones put in."""
    return old.join(changed, list(key), "left_anti").select(*new.columns).unionByName(new)
