"""Records as they came, and where each stood."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions as F
from test_contracts import make_column, make_dataset

from drivetrain import source
from drivetrain.contracts import Dataset, Options
from drivetrain.landing import Landed, arrivals, inspect_all

pytestmark = pytest.mark.spark


def feed(folder: Path, files: dict[str, bytes], **changes: Any) -> tuple[Dataset, list[Landed]]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    dataset = make_dataset(**{"path": str(folder), **changes})
    landed = inspect_all(dataset, arrivals(dataset, 0))
    assert all(isinstance(file, Landed) for file in landed)
    return dataset, landed  # type: ignore[return-value]


def records(spark: Any, dataset: Dataset, landed: list[Landed]) -> dict[tuple[str, int, int], tuple[str, bytes | None]]:
    with source.one_split_a_task(spark):
        rows = source.read(spark, dataset, landed).collect()
    found = {
        (row["_file"], row["_block"], row["_line"]): (row["raw"], row["raw_bytes"] and bytes(row["raw_bytes"]))
        for row in rows
    }
    assert len(found) == len(rows), "no two records stand at one place"
    return found


def test_lines_files_and_headers(spark: Any, tmp_path: Path) -> None:
    """Several files of two layouts and three charsets, odd names, empty lines, CRLF, and no line feed at the end."""
    files = {
        "a b.csv": b"id,at,value\r\n1,2,x\r\n\r\n2,3,y",
        "sub/100%+[1].csv": b"id,value,at\n3,z,4\n",
        "ä{x}*?.csv": b"\xef\xbb\xbfid,at,value\n\n4,5,\xff\n",
        "only.csv": b"id,at,value\n",
        "utf16.csv": "id,at,value\r\n5,6,ü\r\n".encode("utf-16"),
    }
    dataset, landed = feed(tmp_path, files)
    found = records(spark, dataset, landed)
    assert {place: raw for place, (raw, _) in found.items()} == {
        ("a b.csv", 0, 2): "1,2,x",
        ("a b.csv", 0, 4): "2,3,y",
        ("sub/100%+[1].csv", 0, 2): "3,z,4",
        ("ä{x}*?.csv", 0, 3): "4,5,\ufffd",
        ("utf16.csv", 0, 2): "5,6,ü\r",
    }
    assert {place[0]: raw_bytes for place, (_, raw_bytes) in found.items() if raw_bytes} == {"ä{x}*?.csv": b"4,5,\xff"}


def test_other_formats(spark: Any, tmp_path: Path) -> None:
    text = (make_column("text"),)
    changes = {"columns": text, "key": (), "identity": (), "sequence": None, "history": "append"}
    for form, expected in (
        ("text", [("one\\", 1), ("two", 3)]),
        ("document", [("one\\\n\ntwo\n", 1)]),
        ("json", [("one\\", 1), ("two", 3)]),
    ):
        dataset = make_dataset(
            path=str(tmp_path / form), format=form, **{k: v for k, v in changes.items() if k != "columns"}, columns=text
        )
        dataset, landed = feed(tmp_path / form, {"f": b"one\\\n\ntwo\n"}, format=form, **changes)
        assert sorted((raw, line) for (_, _, line), (raw, _) in records(spark, dataset, landed).items()) == sorted(
            expected
        ), form


def test_no_header_is_no_record_less(spark: Any, tmp_path: Path) -> None:
    dataset, landed = feed(tmp_path, {"f.csv": b"1,2,x\n3,4,y\n"}, options=Options(header=False))
    assert {line: raw for (_, _, line), (raw, _) in records(spark, dataset, landed).items()} == {1: "1,2,x", 2: "3,4,y"}


def test_windows_encoding_that_loses_bytes(spark: Any, tmp_path: Path) -> None:
    dataset, landed = feed(
        tmp_path, {"f.csv": b"id,at,value\n1,2,gr\xf6\xdfe\n2,3,\x81\n"}, options=Options(encoding="windows-1252")
    )
    found = list(records(spark, dataset, landed).values())
    assert ("1,2,größe", None) in found
    assert [raw_bytes for _, raw_bytes in found if raw_bytes] == [b"2,3,\x81"]


def test_parquet(spark: Any, tmp_path: Path) -> None:
    table = pa.table({"id": ["1", None], "at": pa.array([1, 2], pa.int64()), "value": ['a"b', ""]})
    pq.write_table(table, tmp_path / "f.parquet")
    dataset, landed = feed(tmp_path, {}, format="parquet")
    assert {place: raw for place, (raw, _) in records(spark, dataset, landed).items()} == {
        ("f.parquet", 0, 1): r'{"id":"1","at":1,"value":"a\"b"}',
        ("f.parquet", 0, 2): '{"id":null,"at":2,"value":""}',
    }


def test_a_file_of_several_splits(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record is told by its block and the line in it, and the lines of every block count from 1."""
    monkeypatch.setattr(source, "SPLIT_BYTES", 1000)
    lines = [f"{i},{i},{'x' * (i % 37)}" for i in range(400)]
    content = "\n".join(["id,at,value", *lines, ""]).encode()
    dataset, landed = feed(tmp_path, {"big.csv": content, "small.csv": b"id,at,value\n1,2,x\n"})
    found = records(spark, dataset, landed)
    assert sorted(raw for (name, _, _), (raw, _) in found.items() if name == "big.csv") == sorted(lines)
    blocks = sorted({block for name, block, _ in found if name == "big.csv"})
    assert len(blocks) > 5 and blocks[0] == 0 and all(block % 1000 == 0 for block in blocks)
    starts = [0, *[i + 1 for i, byte in enumerate(content) if byte == 10]][:-1]
    expected = {}
    for block, end in zip(blocks, [*blocks[1:], len(content)], strict=True):
        # A split has the lines that begin after its first byte up to its end; the first split has the first line too.
        mine = [start for start in starts if block < start <= end or start == block == 0]
        expected |= {
            ("big.csv", block, i): content[start:].split(b"\n", 1)[0].decode() for i, start in enumerate(mine, 1)
        }
    del expected["big.csv", 0, 1]  # the header
    assert {place: raw for place, (raw, _) in found.items() if place[0] == "big.csv"} == expected
    assert found["small.csv", 0, 2] == ("1,2,x", None)


def test_small_files_share_tasks(spark: Any, tmp_path: Path) -> None:
    """A task writes a file: many small ones in the feed do not become as many in the log; lines count in each."""
    files = {f"{i:02}.csv": f"id,at,value\n{i},1,x\n{i},2,y\n".encode() for i in range(20)}
    dataset, landed = feed(tmp_path, files)
    with source.one_split_a_task(spark):
        assert source.read(spark, dataset, landed).rdd.getNumPartitions() == spark.sparkContext.defaultParallelism
    expected = {(name, 0, line): f"{int(name[:2])},{line - 1},{'_xy'[line - 1]}" for name in files for line in (2, 3)}
    assert {place: raw for place, (raw, _) in records(spark, dataset, landed).items()} == expected


def random_field(rng: random.Random) -> str:
    return "".join(rng.choice(['"', '""', "\n", "\n\n", ",", "a", "é", " ", "'"]) for _ in range(rng.randrange(6)))


@pytest.mark.parametrize("split", [128 << 20, 200])
def test_multi_line_records_are_what_was_written(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: int
) -> None:
    """Whatever Python's csv writes is read back record by record, each at the line on which it begins."""
    monkeypatch.setattr(source, "SPLIT_BYTES", split)
    rng, files, expected = random.Random(5), {}, {}
    for n in range(25):
        rows = [[str(i), *(random_field(rng) for _ in range(2))] for i in range(rng.randrange(12))]
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n", quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        writer.writerow(["id", "at", "value"])
        for row in rows:
            line, before = text.getvalue().count("\n") + 1, len(text.getvalue())
            writer.writerow(row)
            expected[f"{n}.csv", line] = text.getvalue()[before:-1]
        files[f"{n}.csv"] = text.getvalue().encode()
    dataset, landed = feed(tmp_path, files, options=Options(multi_line=True))
    found = records(spark, dataset, landed)
    assert sorted(raw for raw, _ in found.values()) == sorted(expected.values())
    if split > 200:
        assert {(name, line): raw for (name, _, line), (raw, _) in found.items()} == expected
    assert all(raw_bytes is None for _, raw_bytes in found.values())


def test_multi_line_bytes_are_kept(spark: Any, tmp_path: Path) -> None:
    dataset, landed = feed(
        tmp_path, {"f.csv": b'id,at,value\n1,2,"a\n\xff\nb"\n2,3,"open\n4,5,x\n'}, options=Options(multi_line=True)
    )
    found = records(spark, dataset, landed)
    assert found["f.csv", 0, 2][1] == b'1,2,"a\n\xff\nb"'
    assert found["f.csv", 0, 5] == ('2,3,"open\n4,5,x', None), "a quote that never closes takes the rest of the file"


def test_joined_by_itself(spark: Any) -> None:
    lines = [(1, 'a,"b'), (2, 'c""d'), (3, 'e",f'), (4, "g"), (5, '"h"')]
    rows = spark.createDataFrame(
        [(raw, None, "p", 0, line) for line, raw in lines],
        "raw string, raw_bytes binary, _path string, _block bigint, _line bigint",
    )
    found = source.joined(rows.orderBy(F.desc("_line")), '"', '"').orderBy("_line").collect()
    assert [(row["_line"], row["raw"]) for row in found] == [(1, 'a,"b\nc""d\ne",f'), (4, "g"), (5, '"h"')]


def test_joined_where_another_character_escapes(spark: Any) -> None:
    lines = [(1, r'"a\"b"'), (2, r'"c\\"'), (3, r'"d\"'), (4, 'e"'), (5, "f")]
    rows = spark.createDataFrame(
        [(raw, None, "p", 0, line) for line, raw in lines],
        "raw string, raw_bytes binary, _path string, _block bigint, _line bigint",
    )
    found = source.joined(rows, '"', "\\").orderBy("_line").collect()
    assert [(row["_line"], row["raw"]) for row in found] == [
        (1, r'"a\"b"'), (2, r'"c\\"'), (3, '"d\\"\ne"'), (5, "f"),
    ]  # fmt: skip


def test_settings_are_given_back(spark: Any) -> None:
    key = "spark.sql.files.maxPartitionBytes"
    before = spark.conf.get(key)
    with pytest.raises(RuntimeError), source.one_split_a_task(spark):
        assert spark.conf.get(key) == str(source.SPLIT_BYTES)
        raise RuntimeError
    assert spark.conf.get(key) == before
