"""A pipeline small enough to read at a glance: a conf, a landing folder and a warehouse below one folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drivetrain import conf as reader
from drivetrain.contracts import Dataset
from drivetrain.pipeline import Outcome, Pipeline
from drivetrain.progress import Progress

KEY = {"primaryKey": True}
WHOLE = {"logicalType": "integer"}
MONEY = {"logicalType": "number", "physicalType": "decimal(6,2)"}
DAY = {"logicalType": "date"}
PLACE = ("_load", "_file", "_block", "_line")


class Tiny:
    """``run`` is one batch run, by a Pipeline of its own, over whatever has been put there until then."""

    def __init__(self, spark: Any, home: Path, **settings: Any) -> None:
        self.spark, self.home, self.runs = spark, home, 0
        self._write("base.yaml", {"company": "Tiny", "landing": "landing", "warehouse": "warehouse", **settings})
        self._write("local.yaml", {})

    def _write(self, name: str, content: Any) -> None:
        path = self.home / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")  # YAML knows all of JSON

    def dataset(
        self,
        name: str,
        columns: Mapping[str, Mapping[str, Any]],
        format: str = "csv",
        quality: Sequence[Mapping[str, Any]] = (),
        server: Mapping[str, Any] | None = None,
        **properties: Any,
    ) -> None:
        """A contract, and the empty folder of its feed; a column is a text but for what its mapping says."""
        (self.home / "landing" / name).mkdir(parents=True, exist_ok=True)
        described = [{"name": column, "logicalType": "string", **more} for column, more in columns.items()]
        contract = {
            "apiVersion": "v3.1.0",
            "kind": "DataContract",
            "id": name,
            "version": "1.0.0",
            "status": "active",
            "servers": [
                server or {"server": "local", "type": "local", "path": f"${{landing}}/{name}", "format": format}
            ],
            "schema": [{"name": name, "logicalType": "object", "quality": list(quality), "properties": described}],
            "customProperties": [{"property": key, "value": value} for key, value in properties.items()],
        }
        self._write(f"datasets/{name}.yaml", contract)

    def gold(self, name: str, sql: str, key: Sequence[str], checks: Sequence[Mapping[str, Any]] = ()) -> None:
        self._write(f"gold/{name}.sql", sql)
        self._write(f"gold/{name}.yaml", {"owner": "me", "key": list(key), "checks": list(checks)})

    def land(self, name: str, *content: str | bytes) -> Path:
        """A feed's file: its bytes, or its lines."""
        path = self.home / "landing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = [part if isinstance(part, bytes) else f"{part}\n".encode() for part in content]
        path.write_bytes(b"".join(parts))
        return path

    def conf(self, dataset: str) -> Dataset:
        """The dataset as its contract reads now."""
        return reader.load(self.home / "conf", "local", environ={}).datasets[dataset]

    def pipeline(self) -> Pipeline:
        self.runs += 1
        conf = reader.load(self.home / "conf", "local", environ={})
        return Pipeline(self.spark, conf, f"run{self.runs}", "batch", Progress(f"run{self.runs}"))

    def run(self, *datasets: str) -> Outcome:
        return self.pipeline().transform(datasets)

    def frame(self, table: str) -> Any:
        return self.spark.read.format("delta").load(f"{self.home}/warehouse/{table}")

    def rows(self, table: str, *columns: str, where: str = "true") -> list[tuple[Any, ...]]:
        """Sorted rows of a table; none where there is no table."""
        if not list((self.home / "warehouse" / table / "_delta_log").glob("*.json")):
            return []
        found = self.frame(table).where(where).selectExpr(*columns).collect()
        return sorted(map(tuple, found), key=lambda row: [(value is not None, str(value)) for value in row])

    def quarantined(self, dataset: str, *columns: str, where: str = "true") -> list[tuple[Any, ...]]:
        return self.rows("quarantine", *columns, where=f"dataset = '{dataset}' AND {where}")

    def nothing_is_lost(self, dataset: str) -> None:
        """Each record of the log is in silver or in quarantine, or the ledger says why not; and the ledger adds up."""
        log = self.rows(f"bronze/{dataset}", *PLACE, where="_entry = 'record'")
        silver = self.rows(f"silver/{dataset}", *PLACE)
        bad = self.quarantined(dataset, *PLACE, where="_load IS NOT NULL")
        counts = ("rows_in", "good", "quarantined", "duplicate", "late", "inserted", "updated", "superseded")
        written = self.rows("ops/ledger", *counts, where=f"dataset = '{dataset}'")
        ledger = [dict(zip(counts, row, strict=True)) for row in written]
        total = {name: sum(row[name] for row in ledger) for name in counts}
        for row in ledger:
            assert row["rows_in"] == row["good"] + row["quarantined"] + row["duplicate"] + row["late"], row
        assert len(set(log)) == len(log) == total["rows_in"]
        assert len(silver) == len(set(silver)) and len(bad) == len(set(bad)) == total["quarantined"]
        assert set(silver) <= set(log) and set(bad) <= set(log) and not set(silver) & set(bad)
        elsewhere = set(log) - set(silver) - set(bad)
        assert len(elsewhere) == total["duplicate"] + total["superseded"] + total["updated"]

    def copy(self, home: Path) -> Tiny:
        """The same pipeline in another folder, as it stands."""
        shutil.copytree(self.home, home, dirs_exist_ok=True)
        twin = Tiny.__new__(Tiny)
        twin.spark, twin.home, twin.runs = self.spark, home, self.runs
        return twin
