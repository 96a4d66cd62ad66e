"""read(dataset, files): the records of a feed, each as it came, with where it stood."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import groupby

from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as F

from drivetrain import jdbc
from drivetrain.contracts import Dataset
from drivetrain.files import SCHEME, plain
from drivetrain.landing import Intake, Landed, Pull

# One split for each partition that is read: the number that monotonically_increasing_id counts up is then the line in
# the split. A task may read several such partitions, one after the other.
SPLIT_BYTES = 128 << 20
IN_SPLIT = (1 << 33) - 1


def read(spark: SparkSession, dataset: Dataset, intake: Sequence[Intake]) -> DataFrame:
    """Records of files or pulls: raw string, raw_bytes binary (null where raw says it all), _file, _block, _line and
    _layout.

    The header is no record, nor is an empty line. ``_line`` counts from 1 within ``_block``, the byte at which the
    block starts (0 but for the later blocks of a large file); of a table's rows `jdbc.read` tells.
    """
    pulls = [jdbc.read(spark, dataset, pull) for pull in intake if isinstance(pull, Pull)]
    files = [file for file in intake if isinstance(file, Landed)]

    def kind(file: Landed) -> tuple[str, str]:
        return file.layout, file.charset

    groups = [(key, list(group)) for key, group in groupby(sorted(files, key=kind), kind)]
    return reduce(DataFrame.unionByName, [*pulls, *[_read_alike(spark, dataset, group, *key) for key, group in groups]])


@contextmanager
def one_split_a_task(spark: SparkSession) -> Iterator[None]:
    """Around the action that runs a ``read``: without it the line numbers count over several files."""
    confs = ("spark.sql.files.maxPartitionBytes", "spark.sql.files.openCostInBytes")
    before = {key: spark.conf.get(key) for key in confs}
    for key in confs:
        spark.conf.set(key, str(SPLIT_BYTES))
    try:
        yield
    finally:
        for key, value in before.items():
            spark.conf.set(key, str(value))


def _read_alike(spark: SparkSession, dataset: Dataset, files: Sequence[Landed], layout: str, charset: str) -> DataFrame:
    paths = [_literal(file.path) for file in files]
    rows = _parquet(spark, paths) if dataset.format == "parquet" else _text(spark, dataset, paths, charset)
    # Spark writes file:/ or file:///, as the file was listed.
    path = F.regexp_replace(F.expr("url_decode(replace(_path, '+', '%2B'))"), SCHEME, "/")
    name = F.substring(path, len(f"{plain(dataset.path)}/") + 1, 1 << 30)
    named = rows.select("raw", "raw_bytes", name.alias("_file"), "_block", "_line", F.lit(layout).alias("_layout"))
    return named.coalesce(_tasks(spark, files))


def _tasks(spark: SparkSession, files: Sequence[Landed]) -> int:
    """As many as Spark would take if it joined small splits itself: each task writes a file."""
    return max(spark.sparkContext.defaultParallelism, math.ceil(sum(file.size for file in files) / SPLIT_BYTES))


def _literal(path: str) -> str:
    """The path with what Hadoop would take for a wildcard escaped."""
    return "".join(f"\\{char}" if char in "*?[]{}\\" else char for char in path)


def _parquet(spark: SparkSession, paths: Sequence[str]) -> DataFrame:
    rows = spark.read.parquet(*paths)
    as_text = F.to_json(
        F.struct("*"), {"ignoreNullFields": "false", "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX"}
    )
    return rows.select(
        as_text.alias("raw"),
        F.lit(None).cast("binary").alias("raw_bytes"),
        F.col("_metadata.file_path").alias("_path"),
        F.lit(0).cast("bigint").alias("_block"),
        (F.col("_metadata.row_index") + 1).alias("_line"),
    )


def _text(spark: SparkSession, dataset: Dataset, paths: Sequence[str], charset: str) -> DataFrame:
    whole, options = dataset.format == "document", dataset.options
    reader = spark.read.format("text").option("wholetext", whole).option("recursiveFileLookup", "true")
    if charset != "UTF-8":
        reader = reader.option("encoding", charset)
    if charset.startswith(("UTF-16", "UTF-32")) or options.multi_line:
        reader = reader.option("lineSep", "\n")
    lines = reader.load(list(paths)).select(
        *_decoded(charset),
        F.col("_metadata.file_path").alias("_path"),
        F.lit(0).cast("bigint").alias("_block") if whole else F.col("_metadata.file_block_start").alias("_block"),
        F.lit(1).cast("bigint").alias("_line") if whole else _line_in_split().alias("_line"),
    )
    first = (F.col("_block") == 0) & (F.col("_line") == 1)
    lines = lines.withColumn("raw", F.when(first, F.regexp_replace("raw", "^\ufeff", "")).otherwise(F.col("raw")))
    if options.multi_line:
        lines = joined(lines, options.quote, options.escape)
    if dataset.format == "csv" and options.header:
        lines = lines.where(~first)
    return lines.where(~F.col("raw").isin("", "\r"))


def _line_in_split() -> Column:
    return F.monotonically_increasing_id().bitwiseAND(F.lit(IN_SPLIT)) + 1


def _decoded(charset: str) -> tuple[Column, Column]:
    value = F.col("value")
    if charset == "UTF-8":
        lossless = F.is_valid_utf8(value)
        return F.make_valid_utf8(value).alias("raw"), F.when(~lossless, value.cast("binary")).alias("raw_bytes")
    text = F.decode(value.cast("binary"), charset)
    lossless = F.encode(text, charset) == value.cast("binary")
    return text.alias("raw"), F.when(~lossless, value.cast("binary")).alias("raw_bytes")


def joined(lines: DataFrame, quote: str, escape: str) -> DataFrame:
    """Lines of a file joined to records: a line feed between an odd quote and the next one belongs to the field.

    Counting quotes is RFC 4180's reading: an escaped quote is two of them and so changes nothing. Behind an ``escape``
    of its own a quote does not count.
    """
    in_file = Window.partitionBy("_path").orderBy("_block", "_line")
    before = in_file.rowsBetween(Window.unboundedPreceding, -1)
    text = F.col("raw")
    if escape not in ("", quote):
        text = F.regexp_replace(text, f"{re.escape(escape)}.", "")
    quotes = F.length(text) - F.length(F.replace(text, F.lit(quote), F.lit("")))
    opens = F.coalesce(F.sum(quotes).over(before), F.lit(0)) % 2 == 0
    numbered = lines.withColumn("_start", F.when(opens, F.struct("_block", "_line")))
    numbered = numbered.withColumn("_record", F.last("_start", ignorenulls=True).over(in_file))
    parts = F.sort_array(F.collect_list(F.struct("_block", "_line", "raw", "raw_bytes")))
    records = numbered.groupBy("_path", "_record").agg(parts.alias("parts"))
    lossy = F.exists("parts", lambda part: part["raw_bytes"].isNotNull())
    as_bytes = F.transform("parts", lambda part: F.coalesce(part["raw_bytes"], part["raw"].cast("binary")))
    all_bytes = F.aggregate(
        F.slice(as_bytes, 2, F.size(as_bytes)), as_bytes[0], lambda whole, part: F.concat(whole, F.lit(b"\n"), part)
    )
    return records.select(
        F.array_join("parts.raw", "\n").alias("raw"),
        F.when(lossy, all_bytes).alias("raw_bytes"),
        "_path",
        F.col("_record._block").alias("_block"),
        F.col("_record._line").alias("_line"),
    )
