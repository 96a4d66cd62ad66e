"""Assess: what is in the new files of a feed, before anything is loaded. A bounded look at the newest file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from drivetrain.contracts import Dataset
from drivetrain.drift import fit
from drivetrain.landing import Landed
from drivetrain.ops import ProfileRow

KINDS: Final = ("integer", "number", "date", "timestamp", "boolean")
CASTS: Final = {"integer": "bigint", "number": "double", "date": "date", "timestamp": "timestamp", "boolean": "boolean"}
NULLS_MOVED: Final = 0.2


def profile(texts: DataFrame) -> dict[str, dict[str, Any]]:
    """Text columns -> for each: sampled, nulls, kind (the narrowest that all its values fit), smallest, largest."""
    names = texts.columns
    figures = [part for i, name in enumerate(names) for part in _figures(i, F.col(f"`{name}`"))]
    row = texts.agg(F.count(F.lit(1)).alias("sampled"), *figures).collect()[0]
    return {
        name: {
            "sampled": row["sampled"], "nulls": row["sampled"] - row[f"there{i}"], "smallest": row[f"low{i}"],
            "largest": row[f"high{i}"], "kind": _kind(row.asDict(), i),
        }
        for i, name in enumerate(names)
    }  # fmt: skip


def _figures(i: int, value: Column) -> list[Column]:
    # Spark takes a time stamp for a date, and drops its time.
    given = {kind: F.when(F.length(value) <= 10, value) if kind == "date" else value for kind in KINDS}
    fits = [F.count(given[kind].try_cast(CASTS[kind])).alias(f"{kind}{i}") for kind in KINDS]
    shown = F.substring(value, 1, 40)
    return [F.count(value).alias(f"there{i}"), F.min(shown).alias(f"low{i}"), F.max(shown).alias(f"high{i}"), *fits]


def _kind(row: Mapping[str, Any], i: int) -> str:
    there = row[f"there{i}"]
    return next((kind for kind in KINDS if there and row[f"{kind}{i}"] == there), "string" if there else "empty")


def notes(
    dataset: Dataset, newest: Landed, found: Mapping[str, Mapping[str, Any]], last: Mapping[str, Any]
) -> dict[str, str]:
    """What to say of columns: drift against the contract, and against the last run (column -> its ProfileRow)."""
    said: dict[str, str] = {}
    if newest.header:
        fitted = fit(newest.header, dataset)
        said |= dict.fromkeys(fitted.unknown, "not in the contract")
        said |= dict.fromkeys(fitted.missing, "missing from the header")
        said |= dict.fromkeys(fitted.absent, "not in this file (optional)")
    for name, now in found.items():
        before = last.get(name)
        if before is None or name in said:
            continue
        if before["kind"] not in (now["kind"], "empty"):
            said[name] = f"was {before['kind']}, is {now['kind']}"
        elif abs(_share(before) - _share(now)) > NULLS_MOVED:
            said[name] = f"nulls went from {_share(before):.0%} to {_share(now):.0%}"
    return said


def _share(figures: Any) -> float:
    return float(figures["nulls"]) / figures["sampled"] if figures["sampled"] else 0.0


def rows(
    run: str,
    dataset: Dataset,
    newest: Landed,
    found: Mapping[str, Mapping[str, Any]],
    last: Mapping[str, Any],
    at: datetime,
) -> Sequence[ProfileRow]:
    """The rows of ops.profiles for one dataset."""
    said = notes(dataset, newest, found, last)
    arrived = datetime.fromtimestamp(newest.modified / 1e9, timezone.utc)
    empty = {"sampled": 0, "nulls": 0, "kind": "empty", "smallest": None, "largest": None}
    every = {**found, **{name: empty for name in said if name not in found}}
    return [
        ProfileRow(
            run,
            dataset.name,
            name,
            f["sampled"],
            f["nulls"],
            f["kind"],
            *_edges(dataset, name, f),
            arrived,
            said.get(name, ""),
            at,
        )
        for name, f in every.items()
    ]


def _edges(dataset: Dataset, name: str, figures: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Smallest and largest value; of personal columns none, since ops tables are for everybody."""
    private = any(
        column.classification in ("personal", "restricted") and name in (column.feed_name, *column.sources)
        for column in dataset.columns
    )
    return (None, None) if private else (figures["smallest"], figures["largest"])
