"""The way back from quarantine: released or repaired, through again once, and judged again. Plans write nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import KEY, WHOLE, Tiny

from drivetrain import plan, requeue
from drivetrain.errors import DrivetrainError
from drivetrain.pipeline import Outcome
from drivetrain.sink import Table

pytestmark = pytest.mark.spark

LOW = {"name": "low", "type": "sql", "query": "SELECT COUNT(*) FROM {object} WHERE n < 0", "mustBe": 0}


@pytest.fixture(scope="module")
def start(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Two feeds, the one with keys and the other with positions only, with three good rows and seven bad ones."""
    tiny = Tiny(spark, tmp_path_factory.mktemp("start"))
    tiny.dataset("keyed", {"id": KEY, "n": WHOLE}, quality=[LOW])
    tiny.dataset("placed", {"id": {"required": True}, "n": WHOLE}, quality=[LOW])
    tiny.land("keyed/1.csv", "id,n", "a,1", "low1,-1", "low2,-2", "kind,x", b"bytes\xff,1\n", "short")
    tiny.land("keyed/empty.csv")
    tiny.land("placed/1.csv", "n,id", "1,a", "-1,low", "1,")
    tiny.land("placed/2.csv", "id,n", "b,2")
    assert tiny.run().problems == []
    assert len(tiny.rows("quarantine", "rule", where="_load IS NOT NULL")) == 7
    return tiny


@pytest.fixture
def tiny(start: Tiny, tmp_path: Path) -> Tiny:
    return start.copy(tmp_path)


def ids(tiny: Tiny) -> dict[str, str]:
    """What stands first in a quarantined record of the keyed feed -> its quarantine_id."""
    found = tiny.quarantined("keyed", "raw", "quarantine_id", where="raw IS NOT NULL")
    return {raw.split(",")[0].rstrip("\ufffd"): key for raw, key in found}


def repair(tiny: Tiny, **records: str) -> int:
    known, path = ids(tiny), tiny.home / "repairs.jsonl"
    repairs = [{"quarantine_id": known.get(name, name), "raw": raw} for name, raw in records.items()]
    path.write_text("".join(f"{json.dumps(one)}\n" for one in repairs))
    return requeue.repair(tiny.pipeline(), path)


def through(tiny: Tiny) -> Outcome:
    pipeline = tiny.pipeline()
    requeue.requeue(pipeline)
    return pipeline.transform()


def test_back_once(tiny: Tiny, tmp_path: Path) -> None:
    assert requeue.release(tiny.pipeline(), "rule = 'low' AND raw LIKE '%low%' OR rule = 'empty_file'") == 3
    with pytest.raises(DrivetrainError, match="no row of quarantine has the id unknown"):
        repair(tiny, kind="kind,6", unknown="z,1")
    assert repair(tiny, kind="kind,7", bytes="bytes,8", short="short") == 3
    assert repair(tiny, kind="kind,9") == 0, "said again, as after a crash: what is on its way stays as it is"
    assert tiny.rows("silver/keyed", "id") == [("a",)], "only marked as yet"
    outcome = through(tiny)
    assert outcome.problems == []
    assert [(row.dataset, row.rows_in, row.good, row.quarantined, row.requeued) for row in outcome.ledger] == [
        ("keyed", 5, 4, 1, 5), ("placed", 1, 1, 0, 1),
    ]  # fmt: skip
    keyed = [("a", 1), ("bytes", 8), ("kind", 7), ("low1", -1), ("low2", -2)]
    assert tiny.rows("silver/keyed", "id", "n") == keyed
    placed = [("a", 1, "1.csv", 2), ("b", 2, "2.csv", 2), ("low", -1, "1.csv", 3)]
    assert tiny.rows("silver/placed", "id", "n", "_file", "_line") == placed

    # What is still bad is in quarantine again, what is through is marked, and a file has no way back but a new one.
    states = tiny.quarantined("keyed", "rule", "state", "_load", where="state <> 'requeued'")
    assert sorted(map(str, states)) == sorted(map(str, [("empty_file", "open", None), ("shape", "open", 2)]))
    assert len(tiny.quarantined("keyed", "rule", where="state = 'requeued'")) == 5
    assert tiny.quarantined("placed", "rule", "state") == [("low", "requeued"), ("required", "open")]
    for name in ("keyed", "placed"):
        tiny.nothing_is_lost(name)

    # Once only: nothing waits any more, and what is requeued can be neither released nor repaired.
    log = tiny.rows("bronze/keyed", "raw", "_load", where="_entry = 'record'")
    assert requeue.release(tiny.pipeline(), "rule = 'low'") == 0
    outcome = through(tiny)
    assert (outcome.ledger, outcome.problems) == ([], [])
    assert tiny.rows("bronze/keyed", "raw", "_load", where="_entry = 'record'") == log

    # The row that came back has a second chance.
    waiting = tiny.quarantined("keyed", "quarantine_id", where="state = 'open' AND _load = 2")[0][0]
    assert repair(tiny, **{waiting: "short,9"}) == 1
    assert [(row.rows_in, row.good, row.requeued) for row in through(tiny).ledger] == [(1, 1, 1)]
    assert tiny.rows("silver/keyed", "id", "n") == sorted([*keyed, ("short", 9)])
    tiny.nothing_is_lost("keyed")


def test_a_release_waives_rules_only(tiny: Tiny) -> None:
    """A released row passes its rules; one that cannot be read, or lacks its key, comes back."""
    assert requeue.release(tiny.pipeline(), "dataset IN ('keyed', 'placed')") == 7
    through(tiny)
    assert tiny.rows("silver/keyed", "id", "n") == [("a", 1), ("low1", -1), ("low2", -2)]
    back = sorted(rule for (rule,) in tiny.rows("quarantine", "rule", where="state = 'open' AND _load > 1"))
    assert back == ["encoding", "required", "shape", "type"]
    raw = tiny.quarantined("keyed", "raw_bytes", where="rule = 'encoding' AND state = 'open'")
    assert [bytes(one) for (one,) in raw] == [b"bytes\xff,1"], "still as it came"
    for name in ("keyed", "placed"):
        tiny.nothing_is_lost(name)


@pytest.mark.parametrize("at", ["before the append", "before the marking", "after the marking"])
def test_killed_on_the_way_back(tiny: Tiny, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    requeue.release(tiny.pipeline(), "rule = 'low' AND dataset = 'keyed'")

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    def mark_and_die(*given: Any) -> None:
        real(*given)
        die()

    real = Table.merge
    method, dies = {
        "before the append": ("append", die),
        "before the marking": ("merge", die),
        "after the marking": ("merge", mark_and_die),
    }[at]
    with monkeypatch.context() as patch:
        patch.setattr(Table, method, dies)
        with pytest.raises(KeyboardInterrupt):
            requeue.requeue(tiny.pipeline())
    logged = tiny.rows("bronze/keyed", "raw", where="_requeued IS NOT NULL")
    assert len(logged) == (0 if at == "before the append" else 2)
    assert through(tiny).problems == []
    assert through(tiny).ledger == []
    assert tiny.rows("bronze/keyed", "raw", where="_requeued IS NOT NULL") == [("low1,-1",), ("low2,-2",)]
    assert tiny.rows("silver/keyed", "id", "n") == [("a", 1), ("low1", -1), ("low2", -2)]
    assert tiny.rows("quarantine", "state", where="rule = 'low' AND dataset = 'keyed'") == [("requeued",)] * 2
    assert tiny.rows("ops/ledger", "requeued", where="dataset = 'keyed' AND first_load = 2") == [(2,)]
    tiny.nothing_is_lost("keyed")


def test_what_cannot_be_done_is_said(tiny: Tiny, tmp_path: Path) -> None:
    for condition, told in (("rul = 'low'", "quarantine has no column 'rul'"), ("rule = ", "[sql]")):
        with pytest.raises(DrivetrainError) as raised:
            requeue.release(tiny.pipeline(), condition)
        assert told in str(raised.value)
    path = tmp_path / "repairs.jsonl"
    path.write_text('{"quarantine_id": "x", "raw": "y"}\nnothing\n{"raw": "y"}\n')
    with pytest.raises(DrivetrainError) as raised:
        requeue.repair(tiny.pipeline(), path)
    assert [problem.where for problem in raised.value.problems] == [f"{path}:2", f"{path}:3"]
    assert tiny.rows("quarantine", "state", where="state <> 'open'") == []


def test_a_plan_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    """With new files, files that cannot be read, gold to build and rows that wait: the folders stay as they are."""
    tiny.gold("sums", "SELECT SUM(n) AS n FROM keyed", ["n"])
    tiny.land("keyed/2.csv", "id,n", "c,1")
    tiny.land("keyed/3.csv")
    tiny.land("placed/1.csv", "n,id", "9,a")
    requeue.release(tiny.pipeline(), "rule = 'low'")

    def listing() -> list[tuple[str, int, int]]:
        return sorted((str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))

    before = listing()
    intents = plan.intents(tiny.pipeline())
    assert listing() == before
    told = {(line.table, line.action) for line in intents}
    assert told >= {("bronze.keyed", "append"), ("ops.quarantine", "append"), ("gold.sums", "build")}
    assert any("empty_file" in line.why for line in intents) and any("rewritten" in line.why for line in intents)
