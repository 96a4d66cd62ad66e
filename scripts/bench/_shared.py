"""What the benchmarks share: the session, times, a dataset of events, and how results are printed."""

from __future__ import annotations

import gc
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, Final

from pyspark.sql import SparkSession

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "lib"), str(ROOT / "scripts")]

from drivetrain import conf as conf_reader  # noqa: E402
from drivetrain import job  # noqa: E402
from drivetrain.contracts import Conf  # noqa: E402
from drivetrain.pipeline import Pipeline  # noqa: E402
from drivetrain.progress import Progress  # noqa: E402
from drivetrain.session import COSTS, open_session  # noqa: E402

KINDS: Final = [f"k{number:02}" for number in range(20)]
COLUMNS: Final[list[dict[str, Any]]] = [
    {"name": "id", "logicalType": "string", "logicalTypeOptions": {"pattern": "^D[0-9]+$"}, "primaryKey": True},
    {"name": "seq", "logicalType": "integer", "logicalTypeOptions": {"minimum": 0}, "required": True},
    {"name": "at", "logicalType": "timestamp", "required": True},
    {"name": "day", "logicalType": "date", "required": True},
    {"name": "kind", "logicalType": "string", "required": True, "quality": [
        {"name": "kinds", "metric": "invalidValues", "arguments": {"validValues": KINDS}, "mustBe": 0}]},
    {"name": "amount", "logicalType": "number", "physicalType": "decimal(12,2)", "logicalTypeOptions": {"minimum": 0}},
    {"name": "note", "logicalType": "string"},
]  # fmt: skip
NOTE: Final = "what a person has written of it, which nobody reads again"


def events_conf(
    home: Path, server: Mapping[str, Any], topic: str = "events", gold: str = "", key: Sequence[str] = (), **more: Any
) -> Conf:
    """The project's own settings over one dataset of events, and over a gold table of it if there is a query."""
    folder = home / "conf"
    for part in ("datasets", "gold"):
        (folder / part).mkdir(parents=True)
    for name in ("base.yaml", "local.yaml"):
        shutil.copy(ROOT / "conf" / name, folder / name)
    properties = {"sequence": "seq", "eventTime": "at", **more}
    schema = {"name": "events", "physicalName": topic, "logicalType": "object", "properties": COLUMNS}
    contract = {
        "apiVersion": "v3.1.0", "kind": "DataContract", "id": "events", "version": "1.0.0", "status": "active",
        "servers": [server], "schema": [schema],
        "customProperties": [{"property": name, "value": value} for name, value in properties.items()],
    }  # fmt: skip
    (folder / "datasets" / "events.yaml").write_text(json.dumps(contract))
    if gold:
        (folder / "gold" / "daily.sql").write_text(gold)
        (folder / "gold" / "daily.yaml").write_text(json.dumps({"owner": "bench", "key": list(key), "checks": []}))
    (home / "landing" / "events").mkdir(parents=True)
    places = [f"landing={home / 'landing'}", f"warehouse={home / 'warehouse'}", "make_feeds=null"]
    return conf_reader.load(folder, "local", environ={}, sets=places)


def session(conf: Conf) -> SparkSession:
    builder = SparkSession.builder.config("spark.sql.catalogImplementation", "in-memory")
    for key, value in {**conf.settings.spark, **COSTS}.items():
        builder = builder if key == "spark.sql.catalogImplementation" else builder.config(key, value)
    builder.config("spark.ui.showConsoleProgress", "false").getOrCreate().sparkContext.setLogLevel("ERROR")
    return open_session(conf, "bench", "in-memory")


def quiet(run: str) -> Progress:
    return Progress(run, stream=StringIO())


def pipeline(spark: SparkSession, conf: Conf, name: str = "bench") -> Pipeline:
    run = job.run_id()
    return Pipeline(spark, conf, run, name, quiet(run))


def timed(action: Callable[[], object]) -> float:
    gc.collect()
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def say(text: str) -> None:
    """For the person who waits; with how busy the machine is."""
    print(f"[load {os.getloadavg()[0]:.1f}] {text}", file=sys.stderr, flush=True)


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(mine / peer for mine, peer in zip(ours, theirs, strict=True))


def show(keys: Mapping[str, float]) -> None:
    for name, value in keys.items():
        print(f"{name} {value:.3f}")
