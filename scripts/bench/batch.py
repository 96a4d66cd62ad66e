"""Batch: ours beside the same work hand-written in plain PySpark, and beside the floor (one read, one Delta write).

ACME's order lines. Each round runs all sides in one Spark session, in turn; the medians of the rounds are compared.
  vs_handwritten        ours / hand-written: log, unified table, checks, quarantine, dedup, MERGE, gold; all files
  vs_floor              ours / reading the same CSV files and writing them to one Delta table
  one_percent_vs_full   ours, second run with 1 % more rows / ours, first run
Also printed: Spark jobs and shuffles of each of our steps, a run with nothing new, and the driver's memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from _shared import ROOT, pipeline, session, timed
from acme_sources import Orders, Plan
from delta.tables import DeltaTable
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from drivetrain import conf as conf_reader
from drivetrain import job
from drivetrain.contracts import Conf
from drivetrain.ops import Step

DAYS = 100  # so that the last one is 1 %


def make(folder: Path, lines: int) -> tuple[list[Path], list[Path]]:
    """The feed's files: those of the first load, and those of the last day."""
    feed = Orders(Plan(days=DAYS, order_lines=lines), folder)
    for day in range(DAYS):
        feed.run(day)
    files = sorted((folder / "sap_orders").glob("*.csv"))
    return files[:-1], files[-1:]


def bench_conf(work: Path, name: str) -> Conf:
    """The project's own conf, with the orders and their gold table only."""
    folder = work / name / "conf"
    for part in ("base.yaml", "local.yaml", "datasets/orders.yaml", "gold/daily_sales.sql", "gold/daily_sales.yaml"):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "conf" / part, folder / part)
    places = [f"landing={work / name / 'landing'}", f"warehouse={work / name / 'warehouse'}", "make_feeds=null"]
    return conf_reader.load(folder, "local", environ={}, sets=places)


def land(files: list[Path], conf: Conf) -> None:
    folder = Path(conf.settings.landing, "sap_orders")
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).hardlink_to(file)


def ours(spark: SparkSession, conf: Conf) -> list[Step]:
    made = pipeline(spark, conf)
    made.assess()
    outcome = made.transform()
    assert not outcome.problems, outcome.problems
    return made.steps.done


NAMES = """ORDER_ID LINE ORDER_DATE CHANGED_AT LOCATION CUSTOMER_ID MODEL CATEGORY QTY UNIT_PRICE DISCOUNT CURRENCY
    STATUS SALES_REP""".split()  # noqa: SIM905
KEY = ("order_id", "line")


def read_csv(spark: SparkSession, files: list[Path]) -> DataFrame:
    schema = ", ".join(f"{name} string" for name in NAMES) + ", _corrupt string"
    reader = (
        spark.read.schema(schema)
        .option("header", True)
        .option("sep", ";")
        .option("columnNameOfCorruptRecord", "_corrupt")
    )
    return reader.csv([str(file) for file in files])


def handwritten(spark: SparkSession, files: list[Path], out: Path, load: int) -> None:
    """What a good engineer writes for this one feed: typed columns by hand, one cached pass, a MERGE, one aggregate."""
    tables = ("bronze", "silver", "quarantine", "gold", "unified")
    bronze, silver, quarantine, gold, unified = (str(out / name) for name in tables)
    raw = read_csv(spark, files).select(
        "*", "_metadata.file_name", F.lit(load).alias("load"), F.current_timestamp().alias("loaded_at")
    )
    raw.write.format("delta").mode("append").save(bronze)

    new = spark.read.format("delta").load(bronze).where(F.col("load") == load)
    named = [F.trim(name).alias(name.lower()) for name in NAMES]
    source = (F.lit("orders").alias("source"), F.lit("1.0.0").alias("schema_version"))
    new.where("_corrupt IS NULL").select(*named, *source, "file_name", "load").write.format("delta").mode(
        "append"
    ).save(unified)

    checked = checked_by_hand(new)
    checked = checked.persist(StorageLevel.DISK_ONLY)
    bad = checked.where("error IS NOT NULL")
    bad.write.format("delta").mode("append").save(quarantine)
    newest = Window.partitionBy(*KEY).orderBy(F.desc("changed_at"))
    good = checked.where("error IS NULL").withColumn("n", F.row_number().over(newest)).where("n = 1")
    good = good.drop("n", "error", "_corrupt")
    if not DeltaTable.isDeltaTable(spark, silver):
        made = DeltaTable.create(spark).location(silver).addColumns(good.schema)
        made.property("delta.enableChangeDataFeed", "true").property("delta.enableDeletionVectors", "true").execute()
    (DeltaTable.forPath(spark, silver).alias("t").merge(good.alias("s"), "t.order_id = s.order_id AND t.line = s.line")
     .whenMatchedUpdateAll("s.changed_at > t.changed_at").whenNotMatchedInsertAll().execute())  # fmt: skip
    checked.unpersist()

    spark.read.format("delta").load(silver).createOrReplaceTempView("orders")
    daily = spark.sql((ROOT / "conf/gold/daily_sales.sql").read_text())
    daily.write.format("delta").mode("overwrite").save(gold)


def checked_by_hand(raw: DataFrame) -> DataFrame:
    typed = raw.select(
        F.trim("ORDER_ID").alias("order_id"), F.expr("try_cast(LINE AS BIGINT)").alias("line"),
        F.expr("try_to_date(ORDER_DATE, 'yyyyMMdd')").alias("order_date"),
        F.expr("try_to_timestamp(CHANGED_AT, 'yyyy-MM-dd HH:mm:ss')").alias("changed_at"),
        F.trim("LOCATION").alias("location"), F.trim("CUSTOMER_ID").alias("customer_id"),
        F.trim("MODEL").alias("model"),
        F.trim("CATEGORY").alias("category"), F.expr("try_cast(QTY AS BIGINT)").alias("qty"),
        F.expr("try_cast(UNIT_PRICE AS DECIMAL(12,2))").alias("unit_price"),
        F.expr("try_cast(DISCOUNT AS DECIMAL(5,2))").alias("discount"), F.trim("CURRENCY").alias("currency"),
        F.trim("STATUS").alias("status"), F.trim("SALES_REP").alias("sales_rep"), "_corrupt", "file_name", "load",
    )  # fmt: skip
    required = [name for name in typed.columns if name not in ("_corrupt", "file_name", "load")]
    locations = [f"L{i:02d}" for i in range(1, 21)]
    tests: dict[str, Column] = {
        "malformed": F.col("_corrupt").isNotNull(),
        **{f"{name} missing or of the wrong type": F.col(name).isNull() for name in required},
        "order_id": ~F.col("order_id").rlike("^SO[0-9]+$"), "customer_id": ~F.col("customer_id").rlike("^C[0-9]{8}$"),
        "line": F.col("line") < 1, "location": ~F.col("location").isin(locations),
        "category": ~F.col("category").isin("vehicle", "part", "service"), "qty": ~F.col("qty").between(1, 10_000),
        "price": F.col("unit_price") < 0, "discount": ~F.col("discount").between(0, 100),
        "currency": F.col("currency") != "EUR",
        "status": ~F.col("status").isin("open", "confirmed", "delivered", "cancelled"),
    }  # fmt: skip
    return typed.withColumn(
        "error", F.nullif(F.concat_ws("; ", *[F.when(test, name) for name, test in tests.items()]), F.lit(""))
    )


def floor(spark: SparkSession, files: list[Path], out: Path) -> None:
    read_csv(spark, files).write.format("delta").mode("append").save(str(out))


def used_heap(spark: SparkSession) -> float:
    """MB of the driver's heap that is still in use after a collection."""
    jvm = spark._jvm
    jvm.System.gc()
    runtime = jvm.java.lang.Runtime.getRuntime()
    return float(runtime.totalMemory() - runtime.freeMemory()) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300,000 order lines, one round")
    parser.add_argument("--lines", type=int, help="order lines (default 10 million)")
    parser.add_argument("--rounds", type=int, help="rounds (default 3)")
    given = parser.parse_args()
    lines = given.lines or (300_000 if given.quick else 10_000_000)
    rounds = given.rounds or (1 if given.quick else 3)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT) as folder:
        run(Path(folder), lines, rounds)


def run(work: Path, lines: int, rounds: int) -> None:
    first, last = make(work / "feed", lines)
    print(
        f"{lines:,} order lines in {len(first)} files, {sum(f.stat().st_size for f in first) / 2**20:,.0f} MB",
        file=sys.stderr,
    )
    spark = session(bench_conf(work, "session"))
    rehearse(spark, work)
    seconds: dict[str, list[float]] = {
        name: [] for name in ("ours", "handwritten", "floor", "one_percent", "nothing_new")
    }
    steps: list[Step] = []
    for i in range(rounds):
        conf = bench_conf(work, f"ours{i}")
        land(first, conf)
        sides: list[tuple[str, Callable[[], object]]] = [
            ("floor", lambda: floor(spark, first, work / "floor")),
            ("ours", lambda conf=conf: steps.extend(ours(spark, conf))),
            ("handwritten", lambda: handwritten(spark, first, work / "hand", 1)),
        ]  # fmt: skip
        for name, action in sides[i % 2 :] + sides[: i % 2]:
            seconds[name].append(timed(action))
            print(f"round {i + 1}: {name} {seconds[name][-1]:.1f} s, heap {used_heap(spark):,.0f} MB", file=sys.stderr)
        land(last, conf)
        for name in ("one_percent", "nothing_new"):
            seconds[name].append(timed(lambda conf=conf: steps.extend(ours(spark, conf))))
            print(f"round {i + 1}: {name} {seconds[name][-1]:.1f} s", file=sys.stderr)
        for done in ("floor", "hand", f"ours{i}"):
            shutil.rmtree(work / done)
    show(seconds, steps)


def rehearse(spark: SparkSession, work: Path) -> None:
    """Both sides once on little, so that neither pays for the JVM's first steps."""
    first, last = make(work / "rehearsal", 20_000)
    conf = bench_conf(work, "rehearsed")
    for files, load in ((first, 1), (last, 2)):
        land(files, conf)
        ours(spark, conf)
        handwritten(spark, files, work / "rehearsed_hand", load)
    floor(spark, first, work / "rehearsed_floor")


def show(seconds: dict[str, list[float]], steps: list[Step]) -> None:
    median = {name: statistics.median(values) for name, values in seconds.items()}
    job.table(
        ("side", "median s", "of ours"), [(n, f"{s:.2f}", f"{median['ours'] / s:.2f}") for n, s in median.items()]
    )
    rows = [
        (
            s.step,
            s.dataset,
            f"{s.rows:,}",
            f"{s.seconds:.1f}",
            s.spark_jobs,
            s.shuffles,
            f"{s.spill_bytes / 2**20:,.0f}",
        )
        for s in steps
    ]
    job.table(("step", "of", "rows", "s", "Spark jobs", "shuffles", "spill MB"), rows)
    ratios = {
        "vs_handwritten": median["ours"] / median["handwritten"],
        "vs_floor": median["ours"] / median["floor"],
        "one_percent_vs_full": median["one_percent"] / median["ours"],
    }
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
