"""Broadcast safety: a join whose smaller side is 1 to 100 MB stored, tuned and with Spark's default, in small drivers.

Each case has a process of its own, as a driver that ran out of memory is none to go on with. The sides compress well:
2.4 million rows are 10 MB stored. Printed for each driver and side is how either ended; of cases in which the default
ends well the medians of the rounds are compared.
  failures_vs_default   joins that failed, ours / default; 1 more of each, so that none is no division by zero
  worst_vs_default      wall time, ours / default, of the case in which that is worst, where the default does not fail
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from _shared import ROOT, say, session
from batch import bench_conf
from pyspark.sql import SparkSession

from drivetrain import job, tune
from drivetrain.conf import load
from drivetrain.contracts import Conf
from drivetrain.session import FAILURES, reason
from drivetrain.sink import Table, Txn, session_confs

ROWS: Final = {"1 MB": 240_000, "5 MB": 1_200_000, "10 MB": 2_400_000, "33 MB": 8_000_000, "100 MB": 24_000_000}
DRIVERS: Final = ("512m", "1g", "2g")
FACT_ROWS: Final = 2_000_000
SECONDS: Final = 300


def make(spark: SparkSession, work: Path) -> None:
    """The fact table, and each side: a key in order, a number and words that are often the same."""
    fact = spark.range(FACT_ROWS).selectExpr("pmod(hash(id), 24000000) AS id", "id AS n", "uuid() AS text")
    Table(spark, str(work / "fact")).append(fact, Txn("fact", 1), {}, {})
    for name, rows in ROWS.items():
        side = spark.range(rows).selectExpr("id", "id % 7 AS kind", "concat('kind ', id % 7) AS word").coalesce(2)
        table = Table(spark, str(work / name.replace(" ", "")))
        table.append(side, Txn("side", 1), {}, {})
        say(f"a side of {rows:,} rows, {table.stored().bytes / 2**20:,.1f} MB stored")


def one(work: Path, name: str, ours: bool, conf: Conf) -> None:
    """One join in this process; prints its seconds and its answer, or how it failed."""
    spark = session(conf)
    fact, side = (Table(spark, str(work / table)) for table in ("fact", name.replace(" ", "")))
    machine = tune.machine(spark)
    spark.range(1000).selectExpr("sum(id)").collect()  # Spark's own first steps are no side's

    def join() -> list[object]:
        joined = fact.read().join(side.read(), "id").groupBy("word").agg({"n": "sum", "text": "max"})
        return sorted(map(str, joined.collect()))

    began = time.perf_counter()
    try:
        if ours:
            relations = [tune.relation(table, machine) for table in (fact, side)]
            made = tune.decide(machine, relations, sum(each.bytes for each in relations), [])
            with session_confs(spark, {decision.setting: decision.value for decision in made}):
                answer = join()
        else:
            answer = join()
    except FAILURES as error:
        print(json.dumps({"failed": reason(error)[-120:]}))
        return
    print(json.dumps({"seconds": time.perf_counter() - began, "answer": answer}))


def ended(work: Path, driver: str, name: str, side: str) -> dict[str, object]:
    """How the join ended in a process of its own."""
    words = [sys.executable, __file__, "--work", str(work), "--side", name, "--driver", driver, "--who", side]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {SECONDS} s"}
    lines = done.stdout.strip().splitlines()
    return dict(json.loads(lines[-1])) if lines else {"failed": f"exit {done.returncode}: {done.stderr[-120:]}"}


def compare(work: Path, drivers: tuple[str, ...], sides: tuple[str, ...], rounds: int) -> dict[str, float]:
    failures, ratios, rows = {"ours": 0, "default": 0}, dict[str, float](), []
    for driver in drivers:
        for name in sides:
            found: dict[str, list[dict[str, object]]] = {"ours": [], "default": []}
            for i in range(rounds):
                for side in ("ours", "default") if i % 2 else ("default", "ours"):
                    found[side].append(ended(work, driver, name, side))
            failed = {side: [str(end["failed"]) for end in ends if "failed" in end] for side, ends in found.items()}
            median = {
                side: statistics.median([float(str(end["seconds"])) for end in ends if "seconds" in end] or [0.0])
                for side, ends in found.items()
            }
            answers = {json.dumps(end["answer"]) for ends in found.values() for end in ends if "answer" in end}
            assert len(answers) < 2, f"{driver}, {name}: two answers"
            for side, said in failed.items():
                failures[side] += len(said)
            if not any(failed.values()):
                ratios[f"{driver}, {name}"] = median["ours"] / median["default"]
            told = {side: said[0] if said else f"{median[side]:.1f} s" for side, said in failed.items()}
            rows.append((driver, name, told["ours"], told["default"]))
            say(f"driver {driver}, side {name}: ours {told['ours']}, default {told['default']}")
    job.table(("driver", "side stored", "ours", "default"), rows)
    assert ratios, "the default failed everywhere"
    return {
        "failures_vs_default": (failures["ours"] + 1) / (failures["default"] + 1),
        "worst_vs_default": max(ratios.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="512 MB and sides of 1 and 10 MB only, one round")
    parser.add_argument("--rounds", type=int, help="rounds (default 3)")
    for word in ("--work", "--side", "--driver", "--who"):
        parser.add_argument(word, help=argparse.SUPPRESS)  # one case, in a process of its own
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT) as folder:
        if given.work:
            own = bench_conf(Path(folder), "session")
            conf = load(
                own.conf_dir, "local", environ={}, sets=[*own.sets, f"spark.spark.driver.memory={given.driver}"]
            )
            one(Path(given.work), given.side, given.who == "ours", conf)
            return
        spark = session(bench_conf(Path(folder), "session"))
        make(spark, Path(folder))
        spark.stop()
        drivers, sides = (("512m",), ("1 MB", "10 MB")) if given.quick else (DRIVERS, tuple(ROWS))
        ratios = compare(Path(folder), drivers, sides, given.rounds or (1 if given.quick else 3))
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
