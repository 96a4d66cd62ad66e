"""Small files into larger ones, and files that nobody can need any more away.

What a reader may still need is known: the versions that the newest manifest and pinned ones name, and those within the
window that conf keeps. The tables' own properties keep everything for years, so that nobody else's VACUUM takes it.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyspark.sql import functions as F

from drivetrain import bronze, ops
from drivetrain.catalog import OPS
from drivetrain.files import Files
from drivetrain.session import files_of
from drivetrain.sink import Table, Txn, again, session_confs
from drivetrain.unified import MANIFEST, Entry, Unified

if TYPE_CHECKING:
    from drivetrain.pipeline import Pipeline

FEW_FILES: Final = 64
MARGIN: Final = timedelta(hours=1)
BOOKS: Final = (
    (".", "quarantine"), (".", "late"), (".", MANIFEST), (".", "models"), *(("ops", name) for name in OPS),
)  # fmt: skip
SIZES: Final = {
    "spark.databricks.delta.optimize.minFileSize": str(64 << 20),
    "spark.databricks.delta.optimize.maxFileSize": str(128 << 20),
}


def compact(pipeline: Pipeline) -> None:
    """Join the small files of tables that are appended to and have many. Appends never conflict with that; it is tried
    again where another change came between."""
    grown = [(layer, name) for layer, name in _tables(pipeline) if layer in ("bronze", "silver")]
    for layer, name in (*grown, *BOOKS):
        table = pipeline.table(layer, name)
        if table.exists() and table.stored().files > FEW_FILES:
            with (
                pipeline.problem_of(name),
                session_confs(pipeline.spark, SIZES),
                pipeline.step("compact", name) as step,
            ):
                before = table.stored().files
                again(table.optimize)
                step.rows = before - table.stored().files


@dataclass(frozen=True)
class Kept:
    """What VACUUM left of a table: everything of the last ``hours``, because of ``reason``."""

    table: str
    hours: float
    reason: str


def vacuum(pipeline: Pipeline) -> list[Kept]:
    """Remove files of versions that nobody can need any more."""
    forget(pipeline)
    needed, kept = _needed(pipeline), []
    for layer, name in (*_tables(pipeline), *BOOKS):
        table = pipeline.table(layer, name)
        if table.exists():
            hours, why = _hours(table, needed.get((layer, name), {}), pipeline.conf.settings.keep_hours)
            oldest = min(needed.get((layer, name), {}), default=None)
            table.vacuum(hours, oldest, bronze.PROPERTIES if layer == "bronze" else {})
            kept.append(Kept(name if layer == "." else f"{layer}.{name}", hours, why))
    return kept


def forget(pipeline: Pipeline) -> None:
    """Take old manifests out that nobody reads: each has a row for every table."""
    unified, run = Unified(pipeline.spark, pipeline.conf), pipeline.outcome.run
    newest = unified.newest()
    if newest:
        numbers = ", ".join(str(number) for number in {newest, *(number for number, _ in pins(unified))})
        since = ops.now() - timedelta(hours=pipeline.conf.settings.keep_hours)
        old = f"number NOT IN ({numbers}) AND at < TIMESTAMP'{since.isoformat()}'"
        unified.table.delete(old, Txn(f"forget:{run}", 1), {"run": run})


def _tables(pipeline: Pipeline) -> list[tuple[str, str]]:
    conf = pipeline.conf
    layers = [("bronze", conf.datasets), ("silver", conf.datasets), ("gold", conf.gold), ("speed", conf.gold)]
    return [(layer, name) for layer, names in layers for name in names]


def _needed(pipeline: Pipeline) -> dict[tuple[str, str], dict[int, str]]:
    """Table -> version that is needed -> who needs it."""
    unified, found = Unified(pipeline.spark, pipeline.conf), dict[tuple[str, str], dict[int, str]]()
    newest = unified.newest()
    wanted = {newest: f"manifest {newest}, which readers follow"} if newest else {}
    wanted |= {number: f"manifest {number}, which {who} has pinned" for number, who in pins(unified)}
    for name, version, why in replaced(pipeline):
        found.setdefault(("silver", name), {})[version] = why
    for number, why in wanted.items():
        for entry in unified.manifest(number).values():
            for place, version in _versions(entry):
                found.setdefault(place, {}).setdefault(version, why)
    return found


def replaced(pipeline: Pipeline) -> Iterator[tuple[str, int, str]]:
    """Dataset and version of silver that a swap replaced, and may be asked to give back."""
    table = pipeline.table("ops", "replays")
    rows = table.read().orderBy("at").collect() if table.exists() else []
    newest = {row["replay"]: row for row in rows}
    for replay, row in newest.items():
        if row["what"] in ("swapping", "swapped"):
            for name, (version, *_) in json.loads(row["before"]).items():
                yield name, version, f"replay {replay}, which was swapped in and may be rolled back"


def _versions(entry: Entry) -> Iterator[tuple[tuple[str, str], int]]:
    pairs = ((entry.layer, entry.version), ("speed", entry.speed))
    return (((layer, entry.name), version) for layer, version in pairs if version is not None)


def _hours(table: Table, needed: Mapping[int, str], least: float) -> tuple[float, str]:
    """How far back files must be kept, and why."""
    hours, why = least, f"keep_hours is {least:g}"
    for version, reason in needed.items():
        left = table.left_since(version)
        if left is not None:
            back = (ops.now() - left + MARGIN).total_seconds() / 3600
            if back > hours:
                hours, why = back, reason
    return hours, why


# --- readers that hold on to a manifest ---


@contextmanager
def pinned(unified: Unified, files: Files, hours: float, who: str) -> Iterator[int]:
    """A context in which what the newest manifest names is kept, for ``hours`` at most; its number."""
    number, path = unified.newest(), f"{_pins(unified)}/{uuid.uuid4().hex}.json"
    until = ops.now() + timedelta(hours=hours)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "pin"
        written.write_text(json.dumps({"manifest": number, "until": until.isoformat(), "who": who}))
        files.put(written, path)
    try:
        yield number
    finally:
        files.remove(path)


def pins(unified: Unified) -> list[tuple[int, str]]:
    """Manifests that are pinned now, and by whom."""
    found = []
    for row in _pin_rows(unified):
        if datetime.fromisoformat(row["until"]) > ops.now():
            found.append((int(row["manifest"]), str(row["who"])))
    return found


def _pins(unified: Unified) -> str:
    return f"{unified.conf.settings.warehouse}/_pins"


def _pin_rows(unified: Unified) -> list[Mapping[str, str]]:
    files = files_of(_pins(unified), unified.spark)
    if not files.is_folder(_pins(unified)):
        return []
    rows = unified.spark.read.text(_pins(unified), wholetext=True).select(F.col("value")).collect()
    return [json.loads(row["value"]) for row in rows]
