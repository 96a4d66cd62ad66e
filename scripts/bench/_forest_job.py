"""The isolation forest as a Spark job: Parquet to a count of flagged rows, in CPU time of the JVM and its workers."""

from __future__ import annotations

import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import _shared as bench
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import arrow_udf, pandas_udf
from sklearn.ensemble import IsolationForest

from drivetrain import job
from drivetrain.anomaly import modelfile, udf
from drivetrain.anomaly.fit import fitted
from drivetrain.contracts import Anomaly, Feature

FEATURES: Final = 10
FILE: Final = 250_000  # rows
OF_THEIRS: Final = 4  # scikit-learn gets one file of so many, its rate being the same for any number
SCALA: Final = 60_000  # rows per CPU second of the Spark/Scala implementation, measured on such a machine
NAMES: Final = [f"x{number}" for number in range(FEATURES)]
SERVER: Final = {"server": "local", "type": "local", "path": "${landing}/events", "format": "json"}
TICK: Final = os.sysconf("SC_CLK_TCK")

Made = Callable[[int, int, int], Any]  # rows, features, seed -> (rows, features)


def written(folder: Path, rows: int, made: Made) -> list[str]:
    """The Parquet files, made where they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:04}.parquet" for number in range(rows // FILE)]
    for number, file in enumerate(files):
        if not file.exists():
            columns = [pa.array(column) for column in made(FILE, FEATURES, number).T]
            part = file.with_suffix(".part")
            pq.write_table(pa.table(columns, NAMES), part)
            part.rename(file)
    return list(map(str, files))


def cpu_seconds(root: int) -> float:
    """Of a process, of those that it and its children started, and of all of these that have ended, until now."""
    parents, ticks = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                said = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            parents[int(folder.name)], ticks[int(folder.name)] = int(said[1]), sum(map(int, said[11:15]))
    found, new = {root}, {root}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return sum(ticks[one] for one in found) / TICK


class Job:
    """The sides of the comparison, over the same files."""

    def __init__(self, spark: SparkSession, files: list[str]) -> None:
        self.spark, self.files = spark, files
        self.jvm = int(spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid())
        sample = pa.concat_tables([pq.read_table(files[0]).slice(0, 200_000)])
        began = time.process_time()
        self.model = udf.Fitted(modelfile.dump(fitted(sample, contract(), 0, {})))
        bench.say(f"fitted on {sample.num_rows:,} rows in {time.process_time() - began:.1f} s of CPU;"
                  f" the model has {len(self.model.data):,} bytes")  # fmt: skip
        rows = sample.to_pandas().to_numpy(np.float32)
        self.theirs = IsolationForest(n_estimators=100, max_samples=256, random_state=0).fit(rows)
        self.cut = float(np.quantile(-self.theirs.score_samples(rows[:50_000]), 0.999))

    def sides(self) -> dict[str, tuple[list[str], Callable[[DataFrame], Any]]]:
        """Side -> its files, and what makes a column of scores of its rows."""
        few = self.files[: max(1, len(self.files) // OF_THEIRS)]
        columns = [F.col(name) for name in NAMES]
        tell, score = udf.teller(self.spark, self.model), udf.scorer(self.spark, self.model)
        told, scored, by_pandas, floor = nothing_told(), nothing_scored(), nothing_by_pandas(), self.model.threshold
        return {
            "ours, with reasons": (self.files, lambda rows: tell(dict(zip(NAMES, columns, strict=True))).score > floor),
            "nothing, with reasons": (self.files, lambda rows: told(*columns).score > floor),
            "ours, scores only": (self.files, lambda rows: score(*columns) > floor),
            "nothing, scores only": (self.files, lambda rows: scored(*columns) > floor),
            "nothing, pandas": (self.files, lambda rows: by_pandas(*columns) > floor),
            "scikit-learn, pandas": (few, lambda rows: sklearn_udf(self.spark, self.theirs)(*columns) > self.cut),
        }

    def count(self, files: list[str], flagged: Callable[[DataFrame], Any]) -> tuple[float, int]:
        """CPU seconds a row, and rows flagged."""
        rows = self.spark.read.parquet(*files)
        began = cpu_seconds(self.jvm)
        found = rows.select(flagged(rows).alias("flagged")).where("flagged").count()
        return (cpu_seconds(self.jvm) - began) / (len(files) * FILE), found


def contract() -> Anomaly:
    features = tuple(Feature(name, name, "number", "value", True) for name in NAMES)
    return Anomaly(features, None, None, None, None, 0.001, False, 0.01, 0.05, 100, 256, 7, "standard")


def nothing_told() -> Any:
    def tell(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        kinds = {"score": pa.float64(), "features": pa.list_(pa.string()), "reason": pa.string()}
        for given in batches:
            nulls = [pa.nulls(len(given[0]), kind) for kind in list(kinds.values())[1:]]
            yield pa.StructArray.from_arrays([given[0], *nulls], list(kinds))

    return arrow_udf(tell, udf.TOLD)


def nothing_scored() -> Any:
    def score(batches: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
        for given in batches:
            yield given[0]

    return arrow_udf(score, "double")


def nothing_by_pandas() -> Any:
    def score(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        for given in batches:
            yield given[0]

    return pandas_udf(score, "double")


def sklearn_udf(spark: SparkSession, model: IsolationForest) -> Any:
    shared = spark.sparkContext.broadcast(pickle.dumps(model))

    def score(batches: Iterator[tuple[pd.Series, ...]]) -> Iterator[pd.Series]:
        forest = pickle.loads(shared.value)
        for given in batches:
            yield pd.Series(-forest.score_samples(np.column_stack(given).astype(np.float32)))

    return pandas_udf(score, "double")


def measure(count: int, rounds: int, made: Made, data: Path) -> dict[str, float]:
    """The keys of the benchmark."""
    files = written(data, count, made)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=bench.ROOT) as folder:
        conf = bench.events_conf(Path(folder) / "home", SERVER)
        conf.settings.spark["spark.master"] = "local[2]"  # type: ignore[index]
        one = Job(bench.session(conf), files)
        sides = {name: partial(one.count, *side) for name, side in one.sides().items()}
        counts = {name: action()[1] for name, action in sides.items()}  # a rehearsal
        assert counts["ours, with reasons"] == counts["ours, scores only"] > 0, counts
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            for name, action in list(sides.items())[:: 1 if number % 2 else -1]:
                taken[name].append(action()[0])
            bench.say(f"Spark: round {number + 1} of {rounds}")
    return told(taken, len(files) * FILE)


def told(taken: Mapping[str, list[float]], rows: int) -> dict[str, float]:
    reasons, nothing_told, ours, nothing, by_pandas, theirs = taken
    lines = []
    for name, each in taken.items():
        rate = 1 / statistics.median(each)
        ratio = bench.median_ratio(each, taken[theirs])
        lines.append((name, f"{rate:,.0f}", f"{1 / ratio:.2f}", f"{rate / SCALA:.1f}"))
    job.table((f"Spark, {rows:,} rows", "rows / CPU s", "of scikit-learn's", "of Spark/Scala's"), lines)
    pairs = {
        "job_vs_floor": (ours, nothing), "job_vs_pandas_floor": (ours, by_pandas), "job_vs_sklearn_udf": (ours, theirs),
        "reasons_vs_floor": (reasons, nothing_told), "reasons_vs_sklearn_udf": (reasons, theirs),
    }  # fmt: skip
    return {key: round(bench.median_ratio(taken[one], taken[other]), 4) for key, (one, other) in pairs.items()}
