"""The oracle against examples that were worked out by hand, and laws that it must keep."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Contract, Record, counted, silver, unified

NOON = datetime(2026, 1, 1, 12)
LATEST = Contract(("id",), ("id", "at"), "at", "latest", "time", timedelta(minutes=10), timedelta(hours=1))
ARRIVED = Contract(("id",), ("id", "value"), None, "latest")
EVENTS = Contract(identity=("event",), history="append")
PLACES = Contract(history="append")
VERSIONS = Contract(("id",), ("id", "at"), "at", "scd2")


def loads(*given: Sequence[Any]) -> list[list[Record]]:
    """Loads of rows or texts, whose positions count on from 0, all of which arrive at noon."""
    found, at = [], 0
    for load in given:
        found.append([Record(at + i, raw, NOON) for i, raw in enumerate(load)])
        at += len(load)
    return found


def row(id: str, at: int, value: str = "", **more: Any) -> dict[str, Any]:
    return {"id": id, "at": at, "value": value, **more}


def seen(minutes: int) -> dict[str, Any]:
    """A row of that time, in minutes around noon."""
    return row(f"k{minutes}", 1, time=NOON + timedelta(minutes=minutes))


# --- By hand ---


def test_bad_records() -> None:
    without = {"id": None, "at": 1}
    log = loads(["no JSON", row("a", 1)], [without, {"id": "a", "at": None}, seen(60), seen(61)])
    assert oracle.quarantined(log, LATEST) == [(1, 0), (2, 2), (2, 3), (2, 5)]


def test_late_is_told_by_earlier_loads_alone() -> None:
    log = loads([seen(0), seen(-30)], [seen(30), seen(-10), seen(-11)], [seen(20), seen(19), seen(61)], [seen(20)])
    assert [oracle.late(log, LATEST, n) for n in (1, 2, 3, 4)] == [[], [4], [6], []]
    assert oracle.horizon(log, LATEST, 1) is None
    assert oracle.horizon(log, LATEST, 4) == NOON + timedelta(minutes=20)  # the future's is bad, and moves nothing


def test_no_delay_no_late() -> None:
    assert oracle.late(loads([seen(0)], [seen(-99)]), Contract(("id",), event_time="time"), 2) == []


def test_latest_by_sequence() -> None:
    log = loads([row("a", 2, "x"), row("b", 1, "y")], [row("a", 1, "old"), row("a", 2, "second"), row("b", 3, "z")])
    assert silver(log, LATEST, 1) == [row("a", 2, "x"), row("b", 1, "y")]
    assert silver(log, LATEST, 2) == [row("a", 2, "x"), row("b", 3, "z")]


def test_latest_by_arrival() -> None:
    log = loads([row("a", 9, "x")], [row("a", 1, "y"), row("a", 2, "x")])
    assert silver(log, ARRIVED, 2) == [row("a", 2, "x")]


def test_every_event_once() -> None:
    log = loads([{"event": 1, "v": "first"}, {"event": None}], [{"event": 1, "v": "again"}, {"event": None}])
    assert silver(log, EVENTS, 2) == [{"event": 1, "v": "first"}, {"event": None}]


def test_every_position_once() -> None:
    first, second = Record(("f", 1), {"v": 1}), Record(("f", 2), {"v": 1})
    assert silver([[first], [first, second]], PLACES, 2) == [{"v": 1}, {"v": 1}]


def test_versions_end_where_the_next_begins() -> None:
    found = silver(loads([row("a", 5, "z"), row("b", 1)], [row("a", 2, "x"), row("a", 5, "again")]), VERSIONS, 2)
    ends = [(r["id"], r["value"], r["valid_from"], r["valid_to"], r["is_current"]) for r in found]
    assert ends == [("a", "z", 5, None, True), ("b", "", 1, None, True), ("a", "x", 2, 5, False)]


def test_unified_leaves_late_ones_to_silver() -> None:
    log = loads([seen(0)], [seen(-20), seen(-5)])
    assert unified(log, LATEST, 1, 2) == [seen(0), seen(-5)]
    assert unified(log, LATEST, 2, 2) == silver(log, LATEST, 2) == [seen(0), seen(-20), seen(-5)]
    assert unified(log, LATEST, 0, 1) == [seen(0)] and unified(log, LATEST, 0, 0) == []


LOG = loads([row("a", 1, "x"), row("a", 1, "x"), "bad"], [row("a", 1, "x"), row("a", 3), row("a", 2), row("b", 1)])


@pytest.mark.parametrize(
    ("contract", "first", "last", "wanted"),  # rows_in, good, quarantined, duplicate, inserted, updated, superseded
    [
        (LATEST, 1, 1, (3, 1, 1, 1, 1, 0, 0)),
        (LATEST, 2, 2, (4, 3, 0, 1, 1, 1, 1)),
        (LATEST, 1, 2, (7, 4, 1, 2, 2, 0, 2)),
        (ARRIVED, 1, 1, (3, 1, 1, 1, 1, 0, 0)),
        (ARRIVED, 2, 2, (4, 2, 0, 2, 1, 1, 0)),
        (VERSIONS, 2, 2, (4, 3, 0, 1, 3, 0, 0)),
        (PLACES, 2, 2, (4, 4, 0, 0, 4, 0, 0)),
    ],
)
def test_ledger(contract: Contract, first: int, last: int, wanted: tuple[int, ...]) -> None:
    assert tuple(oracle.ledger(LOG, contract, first, last).values()) == wanted


def test_gold() -> None:
    rows: list[dict[str, Any]] = [
        {"shop": "n", "car": "x", "price": Decimal("10.00"), "at": 1},
        {"shop": "n", "car": "y", "price": Decimal("0.01"), "at": 3},
        {"shop": "n", "car": "x", "price": Decimal("5.00"), "at": 2},
        {"shop": "s", "car": None, "price": None, "at": 1},
    ]
    assert oracle.total(rows, ["shop"], "price") == {("n",): Decimal("15.01"), ("s",): None}
    assert oracle.average(rows, ["shop"], "price", 6) == {("n",): Decimal("5.003333"), ("s",): None}
    assert oracle.average(rows, [], "at") == {(): 1.75}
    assert oracle.distinct(rows, ["shop"], "car") == {("n",): 2, ("s",): 0}
    assert oracle.top(rows, ["shop"], "price", 2) == {("n",): [Decimal("10.00"), Decimal("5.00")], ("s",): []}
    assert oracle.latest(rows, ["shop"], "at", "price") == {("n",): Decimal("0.01"), ("s",): None}


# --- Laws ---

KINDS = st.sampled_from((LATEST, ARRIVED, EVENTS, PLACES, VERSIONS))
ROWS = st.one_of(
    st.builds(
        lambda id, at, minutes: row(id, at, f"{id}{at}", event=f"{id}{at}", time=NOON + timedelta(minutes=minutes)),
        st.sampled_from("abc"),
        st.integers(1, 4),
        st.integers(-30, 70),
    ),
    st.just("bad"),
)
BATCHES = st.lists(st.lists(ROWS, max_size=5), max_size=5)


@given(KINDS, BATCHES, st.data())
def test_unified_without_late_is_silver(contract: Contract, batches: Any, data: Any) -> None:
    log = loads(*batches)
    upto = data.draw(st.integers(0, len(log)))
    settled = data.draw(st.integers(0, upto))
    if not any(oracle.late(log, contract, number) for number in range(settled + 1, upto + 1)):
        assert unified(log, contract, settled, upto) == silver(log, contract, upto)
    assert unified(log, contract, upto, upto) == silver(log, contract, upto)


@given(KINDS, BATCHES)
def test_how_the_log_is_cut_changes_no_row(contract: Contract, batches: Any) -> None:
    log = loads(*batches)
    whole = [[record for load in log for record in load]]
    single = [[record] for record in whole[0]]
    wanted = silver(log, contract, len(log))
    assert silver(whole, contract, 1) == silver(single, contract, len(single)) == wanted


@given(st.sampled_from((LATEST, EVENTS, VERSIONS)), BATCHES)
def test_a_repeat_changes_no_row(contract: Contract, batches: Any) -> None:
    once, twice = loads(*batches), loads(*batches, *batches)
    wanted = counted(silver(once, contract, len(once)))
    # Another time would make another record of it, but the same event.
    assert counted(silver(twice, contract, len(twice))) == wanted


@given(KINDS, BATCHES)
def test_ledgers_add_up(contract: Contract, batches: Any) -> None:
    # A repeat is one to the last value; with other times these would be other records of the same event.
    log = loads(*[[one if isinstance(one, str) else {**one, "time": NOON} for one in batch] for batch in batches])
    steps = [oracle.ledger(log, contract, n, n) for n in range(1, len(log) + 1)]
    for step in [*steps, oracle.ledger(log, contract, 1, len(log))]:
        assert step["rows_in"] == step["good"] + step["quarantined"] + step["duplicate"]
        assert step["good"] == step["inserted"] + step["updated"] + step["superseded"]
        assert min(step.values()) >= 0
    assert sum(step["inserted"] for step in steps) == len(silver(log, contract, len(log)))
    assert sum(step["quarantined"] for step in steps) == len(oracle.quarantined(log, contract))
