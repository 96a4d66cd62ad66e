"""Commits that happen once, and what a table's log says of them."""

from __future__ import annotations

from typing import Any

import pytest
from delta.exceptions import ConcurrentAppendException
from pyspark.testing import assertDataFrameEqual

from drivetrain.sink import METADATA, TXN_APP, Table, Txn, session_confs

pytestmark = pytest.mark.spark


def frame(spark: Any, *rows: tuple[Any, ...], schema: str = "id int, v string") -> Any:
    return spark.createDataFrame(list(rows), schema)


def test_the_same_commit_twice_adds_nothing(spark: Any, tmp_path: Any) -> None:
    """Append, merge and update, each repeated with its number, as after a crash."""
    table = Table(spark, str(tmp_path / "t"))
    assert (table.exists(), table.version(), table.last_txn("a")) == (False, -1, -1)
    for _ in range(2):
        table.append(frame(spark, (1, "x"), (2, "y")), Txn("a", 1), {"run": "r1"}, {"delta.appendOnly": "false"})
    for _ in range(2):
        table.merge(frame(spark, (2, "z"), (3, "new")), ["id"], Txn("a", 2), {"run": "r2"})
    for _ in range(2):
        table.update("id = 1", {"v": "v || '!'"}, Txn("b", 1), {"run": "r3"})
    assertDataFrameEqual(table.read(), frame(spark, (1, "x!"), (2, "z"), (3, "new")))
    assert (table.version(), table.last_txn("a"), table.last_txn("b"), table.last_txn("c")) == (2, 2, 1, -1)
    assertDataFrameEqual(table.read(0), frame(spark, (1, "x"), (2, "y")))
    assert [(version, m["run"], m["app"], m["number"]) for version, m in table.commits()] == [
        (2, "r3", "b", 1),
        (1, "r2", "a", 2),
        (0, "r1", "a", 1),
    ]
    assert table.rows_written(0) == 2
    assert (spark.conf.get(TXN_APP, None), spark.conf.get(METADATA, None)) == (None, None), "the session is as it was"
    detail = spark.sql(f"DESCRIBE DETAIL delta.`{table.path}`").collect()[0]
    assert detail["properties"]["delta.appendOnly"] == "false"


def test_an_older_number_is_told_by_deltas_own_list(spark: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drivetrain.sink.RECENT", 1)
    table = Table(spark, str(tmp_path / "t"))
    table.append(frame(spark, (1, "x")), Txn("old", 7), {}, {})
    table.append(frame(spark, (2, "x")), Txn("new", 1), {}, {})
    assert (table.last_txn("old"), table.last_txn("new")) == (7, 1)


def test_others_commits_are_not_ours(spark: Any, tmp_path: Any) -> None:
    table = Table(spark, str(tmp_path / "t"))
    frame(spark, (1, "x")).write.format("delta").save(table.path)
    table.append(frame(spark, (2, "y", True), schema="id int, v string, new boolean"), Txn("a", 1), {"run": "r"}, {})
    assert table.metadata(0) is None and table.metadata(9) is None
    assert [version for version, _ in table.commits()] == [1]
    assertDataFrameEqual(
        table.read(), frame(spark, (1, "x", None), (2, "y", True), schema="id int, v string, new boolean")
    )


def test_replace_is_one_commit(spark: Any, tmp_path: Any) -> None:
    table = Table(spark, str(tmp_path / "t"))
    table.replace(frame(spark, (1, "x")), {"inputs": {"a": 1}}, {})
    table.replace(frame(spark, (2.5,), schema="other double"), {"inputs": {"a": 2}}, {})
    assertDataFrameEqual(table.read(), frame(spark, (2.5,), schema="other double"))
    assertDataFrameEqual(table.read(0), frame(spark, (1, "x")))
    assert [m["inputs"]["a"] for _, m in table.commits()] == [2, 1]


def test_a_change_is_tried_again_where_another_writer_came_between(spark: Any, tmp_path: Any) -> None:
    table = Table(spark, str(tmp_path / "t"))
    table.append(frame(spark, (1, "x")), Txn("a", 1), {}, {})
    tries = []

    def change(target: Any) -> None:
        tries.append(target)
        if len(tries) < 3:
            raise ConcurrentAppendException("another writer came between")
        target.update("id = 1", {"v": "'y'"})

    table._change(change, Txn("b", 1), {})
    assert (len(tries), [row["v"] for row in table.read().collect()]) == (3, ["y"])
    tries.clear()
    with pytest.raises(ConcurrentAppendException):
        table._change(lambda _: change(None) if len(tries) < 2 else change(tries.clear()), Txn("b", 2), {})


def test_a_table_that_has_grown_large_marks_what_it_deletes(
    spark: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def marked() -> int:
        return len(list((tmp_path / "t").glob("deletion_vector*.bin")))

    table = Table(spark, str(tmp_path / "t"))
    table.append(frame(spark, (1, "x"), (2, "y")).coalesce(1), Txn("a", 1), {"run": "r1"}, {})
    table.keep_changes_cheap()
    table.merge(frame(spark, (1, "z")), ["id"], Txn("a", 2), {"run": "r2"})
    assert (table.version(), marked()) == (1, 0)
    monkeypatch.setattr("drivetrain.sink.LARGE", table.stored().bytes)
    table.keep_changes_cheap()
    table.keep_changes_cheap()
    assert table.version() == 2, "said once"
    table.merge(frame(spark, (2, "z")), ["id"], Txn("a", 3), {"run": "r3"})
    assert marked() == 1
    assertDataFrameEqual(table.read(), frame(spark, (1, "z"), (2, "z")))
    assert table.last_txn("a") == 3


def test_settings_are_as_before_also_after_one_that_spark_refuses(spark: Any) -> None:
    before = spark.conf.get("spark.sql.shuffle.partitions")
    wrong = {"spark.sql.shuffle.partitions": "7", "spark.sql.adaptive.enabled": "perhaps"}
    with pytest.raises(Exception, match="perhaps"), session_confs(spark, wrong):
        pytest.fail("it was taken")
    assert spark.conf.get("spark.sql.shuffle.partitions") == before
