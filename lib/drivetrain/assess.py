"""Assess: what is in the new files of a feed, before anything is loaded. A bounded look at the newest file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final

import pandas as pd
from pyspark.sql import DataFrame

from drivetrain.contracts import Dataset
from drivetrain.drift import fit
from drivetrain.landing import Intake
from drivetrain.ops import ProfileRow

KINDS: Final = {
    "integer": r"[+-]?\d{1,18}",
    "number": r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?",
    "date": r"\d{4}-\d{1,2}-\d{1,2}",
    "timestamp": r"\d{4}-\d{1,2}-\d{1,2}([T ]\d{1,2}(:\d{1,2}){1,2}(\.\d+)?(Z|[+-]\d{2}:?\d{2})?)?",
    "boolean": r"(?i:true|false|t|f|yes|no|y|n)",
}
NULLS_MOVED: Final = 0.2
SHOWN: Final = 40


def profile(texts: DataFrame) -> dict[str, dict[str, Any]]:
    """Text columns of a sample, small enough for the driver -> for each: sampled, nulls, kind (the narrowest that
    all its values fit), smallest, largest."""
    sample = texts.toPandas()
    return {name: _figures(sample.iloc[:, i]) for i, name in enumerate(texts.columns)}


def _figures(values: pd.Series[Any]) -> dict[str, Any]:
    there = values.dropna().astype(str)
    kind = _kind(there)
    ranked = there.iloc[_comparable(there, kind).argsort()].str[:SHOWN] if len(there) else pd.Series([None])
    figures = {"sampled": len(values), "nulls": len(values) - len(there), "kind": kind}
    return {**figures, "smallest": ranked.iloc[0], "largest": ranked.iloc[-1]}


def _comparable(there: pd.Series[Any], kind: str) -> pd.Series[Any]:
    if kind == "integer":
        return there.astype("int64")
    return there.astype("float64") if kind == "number" else there


def _kind(there: pd.Series[Any]) -> str:
    if there.empty:
        return "empty"
    return next((kind for kind, pattern in KINDS.items() if _fits(there, kind, pattern)), "string")


def _fits(there: pd.Series[Any], kind: str, pattern: str) -> bool:
    if not there.str.fullmatch(pattern).all():
        return False
    return kind not in ("date", "timestamp") or bool(pd.to_datetime(there.str[:10], errors="coerce").notna().all())


def notes(
    dataset: Dataset, newest: Intake, found: Mapping[str, Mapping[str, Any]], last: Mapping[str, Any]
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
    newest: Intake,
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
        not column.is_open and name in (column.feed_name, *column.aliases, *column.sources)
        for column in dataset.columns
    )
    return (None, None) if private else (figures["smallest"], figures["largest"])
