"""Columns of every type as what a forest compares."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.anomaly import features
from drivetrain.anomaly.features import Encoding, Feature, fit
from drivetrain.anomaly.forest import LARGEST
from drivetrain.errors import DrivetrainError

DAY = dt.date(2024, 1, 3)  # a Wednesday
NOON = dt.datetime(2024, 1, 3, 12, 30)


def encoded(feature: Feature, reference: Any, column: Any = None) -> list[float]:
    encoding = fit([feature], {feature.name: reference})
    return encoding.columns({feature.name: reference if column is None else column})[0].tolist()


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None, 3], pa.int8()), [1, np.nan, 3]),
        (pa.array([1, None, 2**62], pa.int64()), [1, np.nan, 2.0**62]),
        (pa.array([1.5, None, np.nan], pa.float32()), [1.5, np.nan, np.nan]),
        (pa.array([1.5, np.inf, -1e300], pa.float64()), [1.5, LARGEST, -LARGEST]),
        (pa.array([Decimal("12.34"), None, Decimal("-0.01")], pa.decimal128(12, 2)), [12.34, np.nan, -0.01]),
        (pa.array([Decimal("1" * 38), None, Decimal(2)], pa.decimal128(38, 0)), [float("1" * 38), np.nan, 2]),
        (pa.array([True, None, False]), [1, np.nan, 0]),
        (pd.Series([1, 2, 3]), [1, 2, 3]),
        (pd.Series([1, None, 3], dtype="Int64"), [1, np.nan, 3]),
        (pd.Series([Decimal("1.5"), None, Decimal("2")]), [1.5, np.nan, 2]),
        (pd.Series([True, None, False], dtype="boolean"), [1, np.nan, 0]),
        (pd.Series([None, None, None]), [np.nan] * 3),
        (pa.nulls(3), [np.nan] * 3),
        (pa.chunked_array([[1], [2, None]]), [1, 2, np.nan]),
        (np.array([1, 2, 3], np.float32), [1, 2, 3]),
        ([1, 2, None], [1, 2, np.nan]),
    ],
)
def test_numbers_of_every_kind(column: Any, expected: list[float]) -> None:
    assert encoded(Feature("x"), column) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_parts_of_time_are_utcs(zone: str | None) -> None:
    moments = pd.Series([NOON, None, NOON - dt.timedelta(days=2, hours=12, minutes=30)])
    column = moments if zone is None else moments.dt.tz_localize("UTC").dt.tz_convert(zone)
    for part, expected in {
        "hour": [12.5, np.nan, 0], "weekday": [2, np.nan, 0], "hour_of_week": [60.5, np.nan, 0],
        "value": [2 + 12.5 / 24, np.nan, 0],
    }.items():  # fmt: skip
        assert encoded(Feature("x", "timestamp", part), column) == pytest.approx(expected, nan_ok=True)  # type: ignore[arg-type]


def test_dates_count_from_the_references_first_day() -> None:
    column = pa.array([DAY + dt.timedelta(days=4), None, DAY])
    assert encoded(Feature("x", "date"), column) == pytest.approx([4, np.nan, 0], nan_ok=True)
    assert encoded(Feature("x", "date"), column, pa.array([DAY - dt.timedelta(days=1)])) == [-1]
    assert encoded(Feature("x", "date", "weekday"), column) == pytest.approx([6, np.nan, 2], nan_ok=True)


def test_moments_keep_their_seconds_in_float32() -> None:
    column = pa.array([NOON, NOON + dt.timedelta(days=700), NOON + dt.timedelta(days=700, seconds=10)])
    found = np.array(encoded(Feature("x", "timestamp"), column), np.float32)
    assert found[2] > found[1]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_units_of_time_do_not_matter(unit: str) -> None:
    column = pa.array([NOON, None], pa.timestamp(unit))
    assert encoded(Feature("x", "timestamp", "hour"), column) == pytest.approx([12.5, np.nan], nan_ok=True)


TEXTS = ["b"] * 4 + ["a"] * 2 + ["c"] * 2


def test_categories_are_as_surprising_as_they_are_rare() -> None:
    column = pa.array([*TEXTS, None])
    assert encoded(Feature("x", "category"), column) == pytest.approx([1] * 4 + [2] * 4 + [np.nan], nan_ok=True)
    assert encoded(Feature("x", "category"), column, ["zebra", "b", None]) == pytest.approx([4, 1, np.nan], nan_ok=True)


def test_an_identifier_says_nothing_even_where_it_is_new() -> None:
    column = [f"id{number}" for number in range(3 * features.MOST_LEVELS)]
    found = encoded(Feature("x", "category"), column, [*column, "new"])
    assert len(set(found)) == 1


def test_one_category_and_none_at_all() -> None:
    assert encoded(Feature("x", "category"), ["a"] * 3) == [0, 0, 0]
    assert str(encoded(Feature("x", "category"), ["a"])[0]) == "0.0"
    assert encoded(Feature("x", "category"), pa.nulls(2), ["a", None]) == pytest.approx([1, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    "column",
    [pa.array(TEXTS).dictionary_encode(), pd.Series(TEXTS, dtype="category"), pa.array(TEXTS, pa.large_string()),
     pa.chunked_array([TEXTS[:3], TEXTS[3:]]), pd.Series(TEXTS, dtype="string"),
     pa.chunked_array([pa.array(TEXTS).dictionary_encode()])],
)  # fmt: skip
def test_text_of_every_kind(column: Any) -> None:
    assert encoded(Feature("x", "category"), TEXTS, column) == [1] * 4 + [2] * 4


def test_integers_and_booleans_may_be_categories() -> None:
    assert encoded(Feature("x", "category"), pa.array([7, 7, 8, 9])) == [1, 1, 2, 2]
    assert encoded(Feature("x", "category"), pa.array([True, False])) == [1, 1]


def test_codes_number_the_categories_by_how_common_they_are() -> None:
    (encoder,) = fit([Feature("x", "category")], {"x": TEXTS}).encoders
    assert encoder.levels == ("b", "a", "c")
    assert encoder.codes(pa.array(["c", "b", None, "new"])).tolist() == [2, 0, -1, 3]


def test_personal_categories_are_kept_as_hashes() -> None:
    given = {"x": TEXTS, "y": TEXTS}
    encoding = fit([Feature("x", "category", personal=True), Feature("y", "category")], given)
    secret, open_ = encoding.encoders
    assert not set(secret.levels) & set(TEXTS) and sorted(secret.shares) == sorted(open_.shares)
    assert sorted(encoding.columns(given)[0]) == sorted(encoding.columns(given)[1])
    other = fit([Feature("z", "category", personal=True)], {"z": TEXTS}).encoders[0]
    assert not set(other.levels) & set(secret.levels)  # nobody sees that two columns hold the same names


@given(st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=50))
def test_rarer_is_never_less_surprising(texts: list[str | None]) -> None:
    values = dict(zip(texts, encoded(Feature("x", "category"), pa.array(texts, pa.string())), strict=True))
    known = [text for text in texts if text is not None]
    for one in known:
        for other in known:
            assert (known.count(one) < known.count(other)) <= (values[one] > values[other])
        assert values[one] == pytest.approx(-np.log2(known.count(one) / len(known)))


DATA = {"n": [1, 2], "t": ["a", "b"], "d": [DAY, DAY], "m": [NOON, NOON], "b": [True, False]}
FEATURES = [Feature("n"), Feature("t", "category"), Feature("d", "date"), Feature("m", "timestamp"), Feature("b")]


@pytest.mark.parametrize("shape", [dict, pd.DataFrame, pa.table, lambda data: pa.table(data).to_batches()[0]])
def test_tables_of_every_shape(shape: Any) -> None:
    encoding = fit(FEATURES, shape(DATA))
    assert encoding.names == ("n", "t", "d", "m", "b")
    found = encoding.columns(shape(DATA))
    assert [column.dtype for column in found] == [np.float64] * 5
    assert np.array_equal(np.array(found), np.array(encoding.columns(pa.table(DATA))))


def test_no_rows_are_no_error() -> None:
    table = pa.table(DATA)
    assert [len(column) for column in fit(FEATURES, table).columns(table[:0])] == [0] * 5
    assert [len(column) for column in fit(FEATURES, table[:0]).columns(table)] == [2] * 5


def test_2000_features() -> None:
    data = {f"f{number}": [1.0, None] for number in range(2000)}
    assert len(fit([Feature(name) for name in data], data).columns(data)) == 2000


def test_all_that_is_missing_is_named_at_once() -> None:
    encoding = fit(FEATURES, DATA)
    with pytest.raises(DrivetrainError) as refused:
        encoding.columns({"n": [1], "d": [DAY], "b": [True]})
    assert [(one.code, one.where) for one in refused.value.problems] == [
        ("feature-missing", "feature t"), ("feature-missing", "feature m"),
    ]  # fmt: skip
    with pytest.raises(DrivetrainError, match="feature q"):
        fit([Feature("q")], pa.table(DATA))


@pytest.mark.parametrize(
    ("feature", "good", "bad"),
    [
        (Feature("x"), [1], ["1"]), (Feature("x"), [1.5], [True]), (Feature("x"), [True], [1]),
        (Feature("x"), [1], [DAY]), (Feature("x", "category"), ["a"], [1]), (Feature("x", "category"), ["a"], [1.5]),
        (Feature("x", "category"), [1], [1.5]), (Feature("x", "date"), [DAY], [NOON]),
        (Feature("x", "date"), [DAY], ["2024-01-01"]), (Feature("x", "timestamp"), [NOON], [1]),
        (Feature("x"), [None], ["a"]), (Feature("x", "category"), [None], [DAY]), (Feature("x"), [1], [[1]]),
    ],
)  # fmt: skip
def test_a_changed_type_is_refused_by_name(feature: Feature, good: Any, bad: Any) -> None:
    encoding = fit([feature], {"x": good})
    with pytest.raises(DrivetrainError, match="the model was fitted on") as refused:
        encoding.columns({"x": bad})
    assert [(one.code, one.where) for one in refused.value.problems] == [("feature-type", "feature x")]
    encoding.columns({"x": pa.nulls(3)})


@pytest.mark.parametrize(
    ("before", "after"),
    [(pa.int32(), pa.int64()), (pa.int32(), pa.float64()), (pa.float32(), pa.decimal128(5, 2)),
     (pa.int8(), pa.decimal128(38, 0))],
)  # fmt: skip
def test_a_wider_number_is_none(before: pa.DataType, after: pa.DataType) -> None:
    assert encoded(Feature("x"), pa.array([1, 2], before), pa.array([1, 2], after)) == [1, 2]


def test_a_type_that_its_kind_does_not_take_is_refused_at_the_fit() -> None:
    wrong = {"n": ["a"], "t": [1.5], "d": [1], "m": [True], "b": [[1]]}
    with pytest.raises(DrivetrainError) as refused:
        fit(FEATURES, wrong)
    assert [one.where for one in refused.value.problems] == [f"feature {name}" for name in wrong]
    assert all("which is no" in one.what for one in refused.value.problems)


def test_all_wrong_types_are_named_at_once() -> None:
    with pytest.raises(DrivetrainError) as refused:
        fit(FEATURES, DATA).columns({**DATA, "n": ["a", "b"], "m": [1, 2]})
    assert [one.where for one in refused.value.problems] == ["feature n", "feature m"]


def test_an_encoding_of_nothing_has_no_columns() -> None:
    assert Encoding().columns({}) == []
