"""Tuning: the layers and queries of TPC-H, tuned and by the defaults of Spark and Delta (AQE on), in turn.

Wall time, ours / default; with _cpu_ the same of the JVM's CPU seconds, which a busy machine disturbs less.
  small_vs_default, medium_vs_default, large_vs_default
                           ACME's orders, 10 MB, 100 MB and 1 GB, into an empty warehouse and then one day more;
                           with _planning the part of ours that planning took
  tpch_vs_default          the queries of TPC-H (scale factor 1) that shuffle most, the sum of their medians
  worst_query_vs_default   of these the one that is worst
  vs_grid_oracle           CPU on a grid of shuffle partitions, of the numbers that ours had come to / the best of each
                           query, by repeats held out
  regret_10, regret_25     CPU after so many runs that learn, on that grid / the best of it for each query, less 1: each
                           run takes one repeat, and is judged by the others; worst_vs_default is the worst of them
Ours begins with the rule and learns from round to round, as a job does from run to run.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest import mock

import _tpch
from _forest_job import cpu_seconds
from _shared import ROOT, median_ratio, pipeline, say, session, timed
from batch import bench_conf, land, make
from pyspark.sql import SparkSession

from drivetrain import explore, job, ops, tune
from drivetrain.conf import load
from drivetrain.contracts import Conf
from drivetrain.history import History, Run, kept, step_key
from drivetrain.sink import Table, session_confs

LINES: Final = {"small": 90_000, "medium": 900_000, "large": 9_000_000}  # of about 10 MB, 100 MB and 1 GB
DEFAULT: Final = {key: tune.SPARKS_OWN[key] for key in (tune.SHUFFLE, tune.SNAPSHOT)}
GRID: Final = (2, 4, 8, 16, 32, 64, 200)
PARTS: Final = (*LINES, "tpch", "grid")


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
    parser.add_argument("--quick", action="store_true", help="10 MB, and TPC-H at scale factor 0.1, one round")
    parser.add_argument("--rounds", type=int, help="rounds (default 3, of the queries 5)")
    parser.add_argument("--only", action="append", choices=PARTS, help="(default: all; grid takes half an hour)")
    given = parser.parse_args()
    parts = given.only or (("small", "tpch") if given.quick else PARTS)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT) as folder:
        work = Path(folder)
        spark = session(bench_conf(work, "session"))
        for size in [part for part in parts if part in LINES]:
            ratios |= compare(spark, work / size, size, given.rounds or (1 if given.quick else 3))
        if {"tpch", "grid"} & set(parts):
            tables = _tpch.make(spark, work / "tpch", 0.1 if given.quick else 1)
            rounds = given.rounds or (1 if given.quick else 5)
            seconds, history = queries(spark, tables, rounds)
            ratios |= against_default(seconds)
            if "grid" in parts:
                costs = grid(spark, rounds)
                ratios["vs_grid_oracle"] = against_grid(history, costs)
                ratios |= regrets(costs, history, tune.machine(spark).cores)
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


@contextmanager
def planning(spent: list[float]) -> Iterator[None]:
    """Adds the seconds of each plan, and of reading and keeping what runs teach."""
    with ExitStack() as held:
        for name in ("plan", "metadata"):
            held.enter_context(mock.patch.object(tune.Tuner, name, measured(getattr(tune.Tuner, name), spent)))
        yield


def measured(real: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def call(*given: Any) -> Any:
        began = time.perf_counter()
        try:
            return real(*given)
        finally:
            spent.append(time.perf_counter() - began)

    return call


def compare(spark: SparkSession, work: Path, size: str, rounds: int) -> dict[str, float]:
    loads = make(work / "feed", LINES[size])
    jvm = int(spark._jvm.java.lang.ProcessHandle.current().pid())
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "default": []}
    shares = list[float]()
    for i in range(rounds + 1):  # the first only warms both sides up
        for side in ("ours", "default") if i % 2 else ("default", "ours"):
            own = bench_conf(work, side)
            conf = own if side == "ours" else untuned(own, work / side)
            spent = list[float]()
            with session_confs(spark, {} if side == "ours" else DEFAULT), planning(spent):
                began = cpu_seconds(jvm)
                seconds = timed(lambda conf=conf: through(spark, conf, loads))
                used = cpu_seconds(jvm) - began
            say(f"{size}, round {i}, {side}: {seconds:.1f} s, {used:.1f} CPU s, planning {sum(spent):.2f} s")
            if i and side == "ours":
                shares.append(sum(spent) / seconds)
            if i:
                found[side].append((seconds, used))
            shutil.rmtree(work / side)
    wall, used_ = (
        median_ratio([one[k] for one in found["ours"]], [one[k] for one in found["default"]]) for k in (0, 1)
    )
    planned = {f"{size}_planning": statistics.median(shares)}
    return {f"{size}_vs_default": wall, f"{size}_cpu_vs_default": used_, **planned}


@dataclass(frozen=True)
class Cost:
    """Seconds, and CPU seconds of the JVM."""

    wall: float
    cpu: float


Costs = dict[str, list[Cost]]  # query -> its rounds


def cost(spark: SparkSession, query: str) -> Cost:
    jvm: Any = spark._jvm
    pid = int(jvm.java.lang.ProcessHandle.current().pid())
    began = cpu_seconds(pid)
    wall = timed(lambda: spark.sql(_tpch.QUERIES[query]).collect())
    return Cost(wall, cpu_seconds(pid) - began)


def queries(spark: SparkSession, tables: dict[str, Table], rounds: int) -> tuple[dict[str, Costs], History]:
    """Each side's rounds, and what ours learned; the first only warms both up, and gives ours a run to learn from."""
    found: dict[str, Costs] = {side: {query: [] for query in _tpch.QUERIES} for side in ("ours", "default")}
    history, machine = History(), tune.machine(spark)
    for i in range(rounds + 1):
        for query in _tpch.QUERIES:
            relations = [tune.relation(table, machine) for table in _tpch.read_by(query, tables)]
            for side in ("ours", "default") if i % 2 else ("default", "ours"):
                if side == "default":
                    with session_confs(spark, DEFAULT):
                        took = cost(spark, query)
                else:
                    runs = history.steps.get(step_key("gold", query), ())
                    plan = tune.plan(machine, relations, sum(one.bytes for one in relations), runs)
                    steps = ops.Steps(spark, str(i), "bench")
                    with session_confs(spark, plan.settings), steps.step("gold", query) as step:
                        plan.note(step, int(plan.settings[tune.SHUFFLE]))
                        took = cost(spark, query)
                    history = history.with_run("bench", steps.done, took.wall)
                if i:
                    found[side][query].append(took)
                told = f", {plan.settings[tune.SHUFFLE]} partitions" if side == "ours" else ""
                say(f"round {i}, {query}, {side}: {took.wall:.2f} s, {took.cpu:.2f} CPU s{told}")
    return found, history


def medians(costs: Costs, of: str) -> dict[str, float]:
    return {query: statistics.median(getattr(one, of) for one in rounds) for query, rounds in costs.items()}


def against_default(found: dict[str, Costs]) -> dict[str, float]:
    ratios, rows = {}, []
    for name, of in (("", "wall"), ("cpu_", "cpu")):
        ours, default = medians(found["ours"], of), medians(found["default"], of)
        each = {query: ours[query] / default[query] for query in ours}
        ratios |= {f"tpch_{name}vs_default": sum(ours.values()) / sum(default.values())}
        ratios |= {f"worst_query_{name}vs_default": max(each.values())}
        rows += [(query, of, f"{ours[query]:.2f}", f"{default[query]:.2f}", f"{each[query]:.2f}") for query in ours]
    job.table(("query", "seconds of", "ours", "default", "ratio"), sorted(rows))
    return ratios


Grid = dict[int, Costs]  # partitions -> query -> repeats


def grid(spark: SparkSession, rounds: int) -> Grid:
    costs: Grid = {number: {query: [] for query in _tpch.QUERIES} for number in GRID}
    for i in range(2 * rounds):
        for number in GRID if i % 2 else GRID[::-1]:
            with session_confs(spark, {tune.SHUFFLE: str(number), tune.SNAPSHOT: "2"}):
                for query in _tpch.QUERIES:
                    costs[number][query].append(cost(spark, query))
            say(f"grid, repeat {i + 1} of {2 * rounds}, {number} partitions")
    return costs


def against_grid(history: History, costs: Grid) -> float:
    """Of each query the number of partitions that is best by half of the repeats, and the one that ours had last: both
    cost what the other half says, so that the JVM's warming up is neither's."""
    chosen = {number: medians({q: each[0::2] for q, each in tried.items()}, "cpu") for number, tried in costs.items()}
    held_out = {number: medians({q: each[1::2] for q, each in tried.items()}, "cpu") for number, tried in costs.items()}
    best = {query: min(GRID, key=lambda number: chosen[number][query]) for query in _tpch.QUERIES}
    say(f"best of the grid: {best}")
    oracle = sum(held_out[best[query]][query] for query in _tpch.QUERIES)
    last = {query: history.steps[step_key("gold", query)][-1].partitions for query in _tpch.QUERIES}
    return sum(held_out[on_grid(last[query])][query] for query in _tpch.QUERIES) / oracle


def on_grid(number: int) -> int:
    return min(GRID, key=lambda tried: abs(math.log2(tried / number)))


def regrets(costs: Grid, history: History, cores: int) -> dict[str, float]:
    """Of a job that learns on the grid, the mean over queries and some orders of its repeats."""
    walks = [walk(costs, query, history, cores, seed) for query in _tpch.QUERIES for seed in range(10)]
    rows = []
    for query, walked in zip(_tpch.QUERIES, [walks[i : i + 10] for i in range(0, len(walks), 10)], strict=True):
        rows.append((query, *(f"{statistics.mean(one[0][k] for one in walked):.3f}" for k in (0, 10, 25))))
    job.table(("query", "regret at first", "after 10 runs", "after 25"), rows)
    after = {f"regret_{k}": statistics.mean(regret[k] for regret, _ in walks) for k in (10, 25)}
    return {**after, "worst_vs_default": max(worst for _, worst in walks)}


def walk(costs: Grid, query: str, history: History, cores: int, seed: int) -> tuple[list[float], float]:
    """The regret of each of 30 runs, and of the worst its cost / that of 200 partitions."""
    draw, first = random.Random(seed), history.steps[step_key("gold", query)][-1]
    rule = on_grid(tune.partitions(tune.forecast(first.input_bytes, [first]).bytes, cores))
    runs, found, worst = list[Run](), list[float](), 0.0
    for _ in range(30):
        number = explore.choose(rule, GRID.__contains__, first.input_bytes, runs).number
        at = draw.randrange(len(costs[rule][query]))
        others = {tried: [one.cpu for i, one in enumerate(costs[tried][query]) if i != at] for tried in GRID}
        median = {tried: statistics.median(each) for tried, each in others.items()}
        found.append(median[number] / min(median.values()) - 1)
        worst = max(worst, median[number] / median[200])
        spent = costs[number][query][at].cpu
        runs = kept([*runs, replace(first, partitions=number, cpu_seconds=spent)])
    return found, worst


if __name__ == "__main__":
    main()
