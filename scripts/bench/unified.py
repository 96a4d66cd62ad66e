"""Unified: the live view beside a plain Delta table with the same rows, the refreshing of gold, and replay.

A dataset of events in a log, by the stream's own appender, settled in silver but for a tail of a few loads. Queries:
count, sum by a group, sum of a day, one key.
  vs_plain            seconds of the queries on the view (its SQL, as a metastore has it) / on the plain table; the tail
                      is three loads of 1,000 rows; vs_plain_read: by Unified.read, which reads the manifest too
  vs_plain_one_percent, vs_plain_read_one_percent
                      with a tail of 1 % of the rows, half of them new versions of recent keys, half of them new keys
  refresh_vs_full     publishing gold and the manifest with that tail / gold anew from the log (parse, remove repeats)
  refresh_vs_gold     the same / the gold query over silver alone, which lacks the tail
  batch_over_replay   seconds of the batch from the whole log to silver / of a replay, which is
                      replay_vs_batch_throughput, replay's rows a second / the batch's
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import _shared as bench
from pyspark.sql import Column, DataFrame, Row, SparkSession
from pyspark.sql import functions as F

from drivetrain import bronze, gold, job, logend, publish, silver
from drivetrain.appender import Appender, Batch
from drivetrain.contracts import Conf
from drivetrain.pipeline import Pipeline
from drivetrain.replay import Beside
from drivetrain.sink import Table
from drivetrain.unified import Unified

SERVER: Final = {"server": "local", "type": "local", "path": "${landing}/events", "format": "json"}
DAILY: Final = "SELECT day, kind, count(*) AS events, sum(amount) AS amount FROM events GROUP BY day, kind"
FIRST_DAY, DAYS, LOADS = date(2025, 1, 1), 365, 10
SMALL: Final = 1_000  # rows of a load
RECENT: Final = 10  # new versions come for one key in so many, the newest


class Feed:
    """Appends events to the log, each load by its own numbers of keys."""

    def __init__(self, spark: SparkSession, conf: Conf, rows: int) -> None:
        self.spark, self.rows, self.keys, self.offset, self.version = spark, rows, 0, 0, 1
        self.appender = Appender(bench.pipeline(spark, conf, "speed"), conf.datasets["events"])

    def new(self, count: int) -> None:
        """Keys that were not there."""
        self.append(self.spark.range(self.keys, self.keys + count).withColumn("seq", F.lit(1)))
        self.keys += count

    def mixed(self, count: int) -> None:
        """Half of them new versions of recent keys, half of them new keys."""
        self.version += 1
        half, recent = count // 2, max(self.keys // RECENT, count)
        step = max(recent // half, 1)
        old = self.spark.range(self.keys - step * half, self.keys, step).withColumn("seq", F.lit(self.version))
        new = self.spark.range(self.keys, self.keys + half).withColumn("seq", F.lit(1))
        self.append(old.unionByName(new))
        self.keys += half

    def append(self, keys: DataFrame) -> None:
        records = keys.select(
            F.to_json(F.struct(*self.columns())).alias("raw"),
            F.lit(None).cast("binary").alias("raw_bytes"), F.lit("feed").alias("_file"),
            F.lit(self.offset).cast("bigint").alias("_block"), F.col("id").alias("_line"),
            F.lit("json").alias("_layout"), F.lit(None).cast("string").alias("_key"),
            F.current_timestamp().alias("_sent"),
        )  # fmt: skip
        self.offset += 1
        self.appender.append(Batch(records, self.offset, {"json": ()}, {"0": self.offset}, "feed"))

    def columns(self) -> list[Column]:
        key = F.col("id")
        day = F.date_add(F.lit(FIRST_DAY), (key * DAYS / self.rows).cast("int"))
        return [
            F.format_string("D%010d", key).alias("id"), F.col("seq"),
            F.date_format(day, "yyyy-MM-dd'T'12:00:00'Z'").alias("at"), day.alias("day"),
            F.format_string("k%02d", F.pmod(F.hash(key), F.lit(len(bench.KINDS)))).alias("kind"),
            F.format_string("%d.%02d", (key + F.col("seq")) % 10_000, key % 100).alias("amount"),
            F.lit(bench.NOTE).alias("note"),
        ]  # fmt: skip


class Bench:
    def __init__(self, spark: SparkSession, conf: Conf, work: Path, rows: int, rounds: int) -> None:
        self.spark, self.conf, self.work, self.rows, self.rounds = spark, conf, work, rows, rounds
        self.dataset, self.feed = conf.datasets["events"], Feed(spark, conf, rows)
        self.table: list[tuple[object, ...]] = []

    def run(self) -> dict[str, float]:
        for _ in range(LOADS):
            self.feed.new(self.rows // LOADS)
        bench.say(f"{self.rows:,} rows are in the log")
        seconds = bench.timed(self.settle)
        bench.say(f"and in silver and gold after {seconds:.1f} s")
        for _ in range(3):
            self.feed.mixed(SMALL)
        keys = self.queries("small tail", "")
        for _ in range(3):
            self.feed.mixed(self.rows // 300)
        keys |= self.queries("1 % tail", "_one_percent")
        keys |= self.refresh()
        self.settle()
        return keys | self.replays()

    def settle(self) -> None:
        outcome = bench.pipeline(self.spark, self.conf).transform(ingest=False)
        assert not outcome.problems, outcome.problems

    # --- The view ---

    def queries(self, tail: str, suffix: str) -> dict[str, float]:
        unified, plain = Unified(self.spark, self.conf), self.work / f"plain{suffix}"
        unified.read("events", live=True).write.format("delta").save(str(plain))
        self.spark.sql(f"CREATE OR REPLACE TEMPORARY VIEW plain AS SELECT * FROM delta.`{plain}`")
        self.spark.sql(f"CREATE OR REPLACE TEMPORARY VIEW view AS {unified.views()['events']}")
        ratios: dict[str, list[float]] = {"view": [], "read": []}
        for name, text in self.texts().items():
            sides = {
                "plain": partial(self.ask, text, "plain"), "view": partial(self.ask, text, "view"),
                "read": partial(self.ask_read, text, unified),
            }  # fmt: skip
            answers = [sorted(map(tuple, ask())) for ask in sides.values()]  # and a rehearsal
            assert answers[0] == answers[1] == answers[2], f"{name}: {[len(one) for one in answers]}"
            seconds: dict[str, list[float]] = {side: [] for side in sides}
            for i in range(self.rounds):
                for side in list(sides)[:: 1 if i % 2 == 0 else -1]:
                    seconds[side].append(bench.timed(sides[side]))
            for side, found in ratios.items():
                found.append(bench.median_ratio(seconds[side], seconds["plain"]))
            medians = [f"{statistics.median(seconds[side]):.2f}" for side in sides]
            self.table.append((tail, name, *medians, *[f"{found[-1]:.2f}" for found in ratios.values()]))
            bench.say(f"{tail}: {name}: plain {medians[0]} s, view {medians[1]} s, read {medians[2]} s")
        shutil.rmtree(plain)
        return {
            f"vs_plain{suffix}": statistics.median(ratios["view"]),
            f"vs_plain_read{suffix}": statistics.median(ratios["read"]),
        }

    def texts(self) -> dict[str, str]:
        day, key = FIRST_DAY + timedelta(days=DAYS - 5), f"D{self.feed.keys - 1:010}"
        return {
            "count": "SELECT count(*) FROM {}",
            "sum by group": "SELECT kind, sum(amount) FROM {} GROUP BY kind",
            "sum of a day": f"SELECT sum(amount), count(*) FROM {{}} WHERE day = DATE'{day}'",
            "one key": f"SELECT * FROM {{}} WHERE id = '{key}'",
        }

    def ask(self, text: str, name: str) -> Sequence[Row]:
        return self.spark.sql(text.format(name)).collect()

    def ask_read(self, text: str, unified: Unified) -> Sequence[Row]:
        return self.spark.sql(text.format("{rows}"), rows=unified.read("events", live=True)).collect()

    # --- Gold ---

    def refresh(self) -> dict[str, float]:
        seconds: dict[str, list[float]] = {"refresh": [], "full": [], "gold": []}
        sides = {"refresh": self.publish, "full": self.from_log, "gold": self.from_silver}
        for i in range(self.rounds):
            self.feed.mixed(SMALL)  # else nothing would be due
            for side in list(sides)[:: 1 if i % 2 == 0 else -1]:
                seconds[side].append(bench.timed(sides[side]))
            done = ", ".join(f"{side} {found[-1]:.1f} s" for side, found in seconds.items())
            bench.say(f"round {i + 1}: {done}")
            answer = Unified(self.spark, self.conf).read("daily")
            full = self.spark.read.format("delta").load(str(self.work / "full")).select(*answer.columns)
            assert answer.exceptAll(full).isEmpty() and full.exceptAll(answer).isEmpty()
        return {
            "refresh_vs_full": bench.median_ratio(seconds["refresh"], seconds["full"]),
            "refresh_vs_gold": bench.median_ratio(seconds["refresh"], seconds["gold"]),
        }

    def publish(self) -> None:
        pipeline = bench.pipeline(self.spark, self.conf)
        publish.publish(pipeline)
        assert not pipeline.outcome.problems, pipeline.outcome.problems

    def from_log(self) -> None:
        log = Table(self.spark, f"{self.conf.settings.warehouse}/bronze/events").read()
        limit = self.conf.settings.max_record_bytes
        parsed = silver.parse(bronze.records(log, 0), self.dataset, {"json": ()}, limit, {})
        self.write_daily(silver.classify(parsed, self.dataset).where("_outcome = 'insert'"), "full")

    def from_silver(self) -> None:
        self.write_daily(Table(self.spark, f"{self.conf.settings.warehouse}/silver/events").read(), "gold")

    def write_daily(self, rows: DataFrame, name: str) -> None:
        built = gold.build(self.spark, self.conf.gold["daily"], {"events": rows})
        built.write.format("delta").mode("overwrite").save(str(self.work / name))

    # --- Replay ---

    def replays(self) -> dict[str, float]:
        last = logend.end(self.feed.appender.log).number
        seconds: dict[str, list[float]] = {"batch": [], "replay": []}
        sides: dict[str, Any] = {"batch": self.batch, "replay": self.replay}
        rows = self.feed.appender.figures.rows_in
        for i in range(self.rounds):
            counts = []
            for side in list(sides)[:: 1 if i % 2 == 0 else -1]:
                home, pipeline = sides[side]()
                take = partial(self.take, side, pipeline, last)
                seconds[side].append(bench.timed(take))
                counts.append(pipeline.table("silver", "events").read().count())
                shutil.rmtree(home)
                bench.say(f"round {i + 1}: {side} {rows / seconds[side][-1]:,.0f} rows/s of {rows:,}")
            assert counts[0] == counts[1] == self.feed.keys
        ratio = bench.median_ratio(seconds["batch"], seconds["replay"])
        return {"batch_over_replay": ratio, "replay_vs_batch_throughput": ratio}

    def take(self, side: str, pipeline: Pipeline, last: int) -> None:
        if isinstance(pipeline, Beside):
            pipeline.rebuild(self.dataset, 1, last)
            return
        outcome = pipeline.transform(ingest=False)
        assert not outcome.problems, outcome.problems

    def batch(self) -> tuple[Path, Pipeline]:
        """A warehouse that has the same log and nothing else, and no gold to make."""
        home = self.work / "batch"
        log = Path(self.conf.settings.warehouse, "bronze/events")
        shutil.copytree(log, home / "bronze/events", copy_function=lambda old, new: Path(new).hardlink_to(old))
        conf = replace(self.conf, gold={}, settings=replace(self.conf.settings, warehouse=str(home)))
        return home, bench.pipeline(self.spark, conf, "batch")

    def replay(self) -> tuple[Path, Pipeline]:
        beside = Beside(bench.pipeline(self.spark, self.conf, "replay"), job.run_id())
        return Path(beside.folder), beside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 rows, one round")
    parser.add_argument("--rows", type=int, help="rows in silver (default 10 million)")
    parser.add_argument("--rounds", type=int, help="rounds (default 3)")
    given = parser.parse_args()
    rows = given.rows or (20_000 if given.quick else 10_000_000)
    rounds = given.rounds or (1 if given.quick else 3)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=bench.ROOT) as folder:
        work = Path(folder)
        conf = bench.events_conf(work / "home", SERVER, gold=DAILY, key=("day", "kind"), stream={"trigger": "1 s"})
        bench_ = Bench(bench.session(conf), conf, work, rows, rounds)
        keys = bench_.run()
    job.table(("tail", "query", "plain s", "view s", "read s", "view / plain", "read / plain"), bench_.table)
    bench.show(keys)


if __name__ == "__main__":
    main()
