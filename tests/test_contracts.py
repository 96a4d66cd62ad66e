"""The frozen models: what follows from a contract, and when its fingerprint moves. Other tests use the makers here."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.contracts import Column, CycleError, Dataset, GoldTable, Options, Rule, build_order, castable, digest

TYPES = {"id": "string", "at": "bigint", "value": "string"}


def make_column(name: str, kind: str = "string", **changes: Any) -> Column:
    return Column(**{"name": name, "feed_name": name, "type": kind, **changes})


def make_dataset(*columns: Column, **changes: Any) -> Dataset:
    """A CSV feed keyed by id and ordered by at, but for what ``changes`` say."""
    plain = {
        "name": "feed",
        "version": "1.0.0",
        "owner": "me",
        "path": "/nowhere",
        "format": "csv",
        "files": "*",
        "options": Options(),
        "columns": columns or tuple(make_column(name, kind) for name, kind in TYPES.items()),
        "key": ("id",),
        "identity": ("id", "at"),
        "sequence": "at",
        "event_time": None,
        "history": "latest",
        "evolution": "keep",
        "unify": False,
        "spark": (),
        "rules": (),
        "freshness_hours": None,
        "latency_hours": None,
        "where": "conf/datasets/feed.yaml:1",
    }
    return Dataset(**{**plain, **changes})


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("string", ("", "x"), ()),
        ("boolean", ("true", "False"), ("1", "yes")),
        ("tinyint", ("127", "-128", "+1"), ("128", "-129", "1.0", "1_0", "")),
        ("bigint", ("9223372036854775807", "-9223372036854775808"), ("9223372036854775808", "1e3")),
        ("decimal(4,2)", ("99.99", "-1.5", "1e1", ".5"), ("100", "1.234", "NaN", "1_0", "inf")),
        ("double", ("1.5", "-1e300", "7"), ("1e999", "nan", "1_0", "x", "1d")),
        ("date", ("2026-02-28",), ("2026-02-29", "20260228", "2026-W01-1", "2026-2-8")),
        ("timestamp", ("2026-02-28", "2026-02-28T10:00:00Z", "2026-02-28 10:00:00.5"), ("2026-02-28T25:00:00",)),
        ("timestamp_ntz", ("2026-02-28 10:00:00",), ("2026-02-30 10:00:00",)),
    ],
)  # fmt: skip
def test_texts_that_are_values_of_a_type(kind: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    assert [text for text in good if not castable(text, kind)] == []
    assert [text for text in bad if castable(text, kind)] == []


def make_gold(name: str, *inputs: str, **changes: Any) -> GoldTable:
    plain = {
        "sql": "SELECT 1",
        "inputs": inputs,
        "columns": ("id",),
        "description": "",
        "owner": "me",
        "key": ("id",),
        "rules": (),
        "freshness_hours": None,
        "lineage": (),
        "where": f"conf/gold/{name}.sql:1",
    }
    return GoldTable(**{"name": name, **plain, **changes})


COMPARED = {
    "mustBe": operator.eq,
    "mustNotBe": operator.ne,
    "mustBeGreaterThan": operator.gt,
    "mustBeGreaterOrEqualTo": operator.ge,
    "mustBeLessThan": operator.lt,
    "mustBeLessOrEqualTo": operator.le,
}
NUMBERS = st.integers(-5, 5) | st.floats(-5, 5)


@given(st.sampled_from(sorted(COMPARED)), NUMBERS, NUMBERS)
def test_operators_mean_what_they_say(name: str, measured: float, limit: float) -> None:
    assert Rule("r", "flag", name, limit).holds(measured) is COMPARED[name](measured, limit)


@given(NUMBERS, st.tuples(NUMBERS, NUMBERS))
def test_between_has_both_ends(measured: float, limits: tuple[float, float]) -> None:
    inside = measured in limits if limits[0] == limits[1] else measured - limits[0] >= 0 >= measured - limits[1]
    assert Rule("r", "flag", "mustBeBetween", list(limits)).holds(measured) is inside
    assert Rule("r", "flag", "mustNotBeBetween", list(limits)).holds(measured) is not inside


@pytest.mark.parametrize("name", [*COMPARED, "mustBeBetween", "mustNotBeBetween"])
def test_what_was_not_measured_does_not_pass(name: str) -> None:
    assert not Rule("r", "flag", name, [0, 1] if "Between" in name else 0).holds(None)


@pytest.mark.parametrize(
    ("rule", "by_row"),
    [
        ({"metric": "nullValues"}, True),
        ({"metric": "missingValues"}, True),
        ({"metric": "invalidValues"}, True),
        ({"metric": "rowCount"}, False),
        ({"metric": "duplicateValues"}, False),
        ({"predicate": "a < 0"}, True),
        ({"query": "SELECT 1"}, False),
    ],
)
def test_which_rules_judge_rows(rule: dict[str, Any], by_row: bool) -> None:
    assert Rule("r", "flag", "mustBe", 0, **rule).by_row is by_row


def test_feed_columns_are_the_feeds_own_each_once() -> None:
    columns = (
        make_column("id", feed_name="ID"),
        make_column("day", "date", transform="to_date(substr(_file, 8, 8))", sources=("_file",)),
        make_column("sum", "double", transform="NET + TAX", sources=("NET", "TAX")),
        make_column("net", feed_name="NET"),
    )
    assert make_dataset(*columns).feed_columns == ("ID", "NET", "TAX")


def test_silver_types_of_each_history() -> None:
    own = {
        "id": "string",
        "at": "bigint",
        "value": "string",
        "_file": "string",
        "_block": "bigint",
        "_line": "bigint",
        "_load": "bigint",
    }
    assert make_dataset().silver_types == own
    kept = {"valid_from": "bigint", "valid_to": "bigint", "is_current": "boolean"}
    assert make_dataset(history="scd2").silver_types == own | kept


@pytest.mark.parametrize(
    "change",
    [
        {"owner": "x"},
        {"path": "/x"},
        {"where": "x"},
        {"spark": (("k", "v"),)},
        {"freshness_hours": 1.0},
        {"latency_hours": 1.0},
    ],
)
def test_fingerprint_ignores_what_does_not_change_rows(change: dict[str, Any]) -> None:
    assert replace(make_dataset(), **change).fingerprint == make_dataset().fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"format": "json"},
        {"options": Options(delimiter=";")},
        {"key": ("id", "at")},
        {"history": "append"},
        {"rules": (Rule("r", "flag", "mustBe", 0, metric="rowCount"),)},
        {"evolution": "add"},
    ],
)
def test_fingerprint_follows_what_changes_rows(change: dict[str, Any]) -> None:
    assert replace(make_dataset(), **change).fingerprint != make_dataset().fingerprint


def test_gold_fingerprint_follows_query_key_and_checks() -> None:
    table, rule = make_gold("g", "a"), Rule("r", "stop", "mustBe", 0, predicate="id < 0")
    others = [
        make_gold("g", "a", **change) for change in ({"sql": "SELECT 2"}, {"key": ("id", "x")}, {"rules": (rule,)})
    ]
    assert len({table.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert make_gold("g", "a", description="x", owner="x", freshness_hours=2.0).fingerprint == table.fingerprint


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.none() | st.text(max_size=5), max_size=5))
def test_digest_does_not_depend_on_order(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(list(value.items()))))
    assert digest(value) != digest([value])


@given(st.permutations(range(6)), st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5))))
def test_build_order_has_inputs_first(order: list[int], edges: set[tuple[int, int]]) -> None:
    reads = {f"t{i}": [f"t{a}" for b, a in edges if b == i and a < i] + ["orders"] for i in range(6)}
    built = [table.name for table in build_order([make_gold(f"t{i}", *reads[f"t{i}"]) for i in order])]
    assert sorted(built) == sorted(reads)
    assert all(
        built.index(name) < built.index(table) for table, names in reads.items() for name in names if name != "orders"
    )


def test_a_ring_is_named() -> None:
    with pytest.raises(CycleError) as error:
        build_order([make_gold("a", "b"), make_gold("b", "c"), make_gold("c", "a")])
    assert set(error.value.args[1]) == {"a", "b", "c"}
