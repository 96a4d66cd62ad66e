"""Tuning: ACME's orders through the layers, tuned and with the defaults of Spark and Delta (AQE on), in turn.

Each round loads a feed into an empty warehouse and then one day more, in one session; CPU seconds are the JVM's.
  small_vs_default, medium_vs_default   wall time, ours / default, of 10 MB and of 100 MB
  small_cpu_vs_default, medium_cpu_vs_default   the same, CPU seconds
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Final

from _forest_job import cpu_seconds
from _shared import ROOT, median_ratio, pipeline, say, session, timed
from batch import bench_conf, land, make
from pyspark.sql import SparkSession

from drivetrain import tune
from drivetrain.conf import load
from drivetrain.contracts import Conf
from drivetrain.sink import session_confs

LINES: Final = {"small": 90_000, "medium": 900_000}  # of about 10 and 100 MB
DEFAULT: Final = {key: tune.SPARKS_OWN[key] for key in (tune.SHUFFLE, tune.SNAPSHOT)}


def through(spark: SparkSession, conf: Conf, loads: tuple[list[Path], list[Path]]) -> None:
    for files in loads:
        land(files, conf)
        outcome = pipeline(spark, conf, "batch").transform()
        assert outcome.ledger and not outcome.problems, outcome.problems


def untuned(conf: Conf, work: Path) -> Conf:
    places = [f"landing={work / 'landing'}", f"warehouse={work / 'warehouse'}", "make_feeds=null", "tune=false"]
    return load(conf.conf_dir, "local", environ={}, sets=places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 MB only, one round")
    parser.add_argument("--rounds", type=int, help="rounds (default 3)")
    given = parser.parse_args()
    rounds = given.rounds or (1 if given.quick else 3)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT) as folder:
        spark = session(bench_conf(Path(folder), "session"))
        for size in ("small",) if given.quick else LINES:
            ratios |= compare(spark, Path(folder, size), size, rounds)
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


def compare(spark: SparkSession, work: Path, size: str, rounds: int) -> dict[str, float]:
    loads = make(work / "feed", LINES[size])
    jvm = int(spark._jvm.java.lang.ProcessHandle.current().pid())
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "default": []}
    for i in range(rounds + 1):  # the first only warms both sides up
        for side in ("ours", "default") if i % 2 else ("default", "ours"):
            own = bench_conf(work, side)
            conf = own if side == "ours" else untuned(own, work / side)
            with session_confs(spark, {} if side == "ours" else DEFAULT):
                began = cpu_seconds(jvm)
                seconds = timed(lambda conf=conf: through(spark, conf, loads))
                used = cpu_seconds(jvm) - began
            say(f"{size}, round {i}, {side}: {seconds:.1f} s, {used:.1f} CPU s")
            if i:
                found[side].append((seconds, used))
            shutil.rmtree(work / side)
    wall, used_ = (
        median_ratio([one[k] for one in found["ours"]], [one[k] for one in found["default"]]) for k in (0, 1)
    )
    return {f"{size}_vs_default": wall, f"{size}_cpu_vs_default": used_}


if __name__ == "__main__":
    main()
