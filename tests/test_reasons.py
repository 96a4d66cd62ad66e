"""Why rows were flagged: credits that add up, causes that are named, and words."""

from __future__ import annotations

import datetime as dt
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from forests import forest, random_rows
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.anomaly import grow
from drivetrain.anomaly import reasons as why
from drivetrain.anomaly.features import Feature, fit
from drivetrain.anomaly.forest import Forest
from drivetrain.anomaly.reasons import Range, range_of, reasons

ROWS = random_rows(300, 4, seed=3, missing=0.1)


def paths(made: Forest, rows: np.ndarray) -> np.ndarray:
    total = np.zeros(len(rows))
    made.run(np.ascontiguousarray(rows.T.astype(np.float32)), total)
    return total / made.trees


def expected(made: Forest) -> float:
    """The mean path of the sample's rows, leaf by leaf, over the trees; each tree's rows are the sample."""
    left = made.left.astype(float) * made.left_rows * (made.op & 1 > 0)
    right = made.right.astype(float) * made.right_rows * (made.op & 2 > 0)
    return (left + right).sum() / made.sample / made.trees


@pytest.mark.parametrize("extended", [False, True])
def test_credits_add_up_to_the_path_that_was_saved(extended: bool) -> None:
    made = forest(extended=extended)
    found = why.credits(made, list(ROWS.T))
    assert found.shape == ROWS.shape
    assert np.allclose(found.sum(1), expected(made) - paths(made, ROWS), atol=1e-5)


@pytest.mark.parametrize("extended", [False, True])
def test_credits_do_not_depend_on_the_other_rows(extended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made = forest(extended=extended)
    whole = why.credits(made, list(ROWS.T))
    monkeypatch.setattr(why, "PAIRS", 100)
    assert np.allclose(why.credits(made, list(ROWS.T)), whole)
    assert np.allclose(why.credits(made, list(ROWS[5:6].T)), whole[5:6])
    assert why.credits(made, [np.zeros(0)] * 4).shape == (0, 4)


def test_a_feature_without_a_split_has_no_credit() -> None:
    rows = random_rows(500, 3)
    rows[:, 1] = 7
    assert not why.credits(grow.isolation(rows), list(rows.T))[:, 1].any()


@pytest.mark.parametrize(("fit_forest", "least"), [(grow.isolation, 0.9), (grow.extended, 0.85)])
@pytest.mark.parametrize("causes", [1, 3])
def test_planted_causes_are_named(fit_forest: Any, causes: int, least: float) -> None:
    random = np.random.default_rng(causes)
    rows = random.normal(size=(4000, 10))
    rows[:, 3] = rows[:, 2] * 0.9 + 0.3 * rows[:, 3]
    rows[:, 5:] = np.round(np.abs(rows[:, 5:]) * 3)
    odd, truth = rows[:200].copy(), np.array([random.choice(10, causes, replace=False) for _ in range(200)])
    for row, features in enumerate(truth):
        odd[row, features] = rows[:, features].max(0) * 1.3
    best = np.argsort(-why.credits(fit_forest(rows), list(odd.T)), axis=1)[:, :causes]
    named = np.mean([len({*mine} & {*theirs}) / causes for mine, theirs in zip(best, truth, strict=True)])
    assert named >= least


def test_hundreds_of_rows_take_little_time() -> None:
    made, rows = grow.isolation(random_rows(1000, 10)), list(random_rows(2000, 10, seed=1).T)
    began = time.process_time()
    why.credits(made, rows)
    assert time.process_time() - began < 4


TODAY, NOON = dt.date(2024, 3, 1), dt.datetime(2024, 3, 1, 12, 30)


def told(feature: Feature, reference: Any, value: Any) -> str:
    encoding = fit([feature], {feature.name: reference})
    spread = range_of(encoding.columns({feature.name: reference})[0])
    data = {feature.name: pa.array([value], pa.array(reference).type)}
    return why._teller(encoding.encoders[0], spread, data, encoding.columns(data)[0])(0)


DISCOUNTS = np.round(np.linspace(0, 30, 3001), 6).tolist()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (95.0, "discount 95 is above all of the reference (0 to 30)"),
        (-5.5, "discount -5.5 is below all of the reference (0 to 30)"),
        (29.99, "discount 29.99 is above 99.9 % of the reference (0.03 to 29.97)"),
        (30.0, "discount 30 is above 99.9 % of the reference (0.03 to 29.97)"),
        (0.0, "discount 0 is below 99.9 % of the reference (0.03 to 29.97)"),
        (29.0, "discount 29 is above 95 % of the reference (0.03 to 29.97)"),
        (0.2, "discount 0.2 is below 99 % of the reference (0.03 to 29.97)"),
        (15.0, "discount 15 is usual by itself, not together with the others (0.03 to 29.97)"),
        (None, "discount is missing, as in 0 % of the reference"),
        (np.inf, "discount 3.40282e+38 is above all of the reference (0 to 30)"),
    ],
)
def test_numbers_in_words(value: float | None, words: str) -> None:
    assert told(Feature("discount"), DISCOUNTS, value) == words


@pytest.mark.parametrize(
    ("feature", "reference", "value", "words"),
    [
        (Feature("x"), [7.0] * 9, 7.0, "x 7 is what all of the reference has"),
        (Feature("x"), [7.0] * 9, 8.0, "x 8 is above all of the reference (7 to 7)"),
        (Feature("x"), [None, None, 1.0, 1.0], None, "x is missing, as in 50 % of the reference"),
        (Feature("x"), pa.nulls(3, pa.float64()), 8.0, "x 8 is there, and missing in all of the reference"),
        (Feature("day", "date"), [TODAY] * 9, dt.date(2025, 1, 1),
         "day 2025-01-01 is above all of the reference (2024-03-01 to 2024-03-01)"),
        (Feature("at", "timestamp"), [NOON] * 9, dt.datetime(2024, 3, 1, 12, 30, 1),
         "at 2024-03-01 12:30:01 is above all of the reference (2024-03-01 12:30:00 to 2024-03-01 12:30:00)"),
        (Feature("at", "timestamp", "hour"), [NOON] * 9, dt.datetime(2024, 3, 1, 3, 5),
         "at 03:05 is below all of the reference (12:30 to 12:30)"),
        (Feature("at", "timestamp", "weekday"), [NOON] * 9, dt.datetime(2024, 3, 3),
         "at Sunday is above all of the reference (Friday to Friday)"),
        (Feature("at", "timestamp", "hour_of_week"), [NOON] * 9, dt.datetime(2024, 3, 3, 23, 59),
         "at Sunday 23:59 is above all of the reference (Friday 12:30 to Friday 12:30)"),
        (Feature("c", "category"), ["a"] * 199 + ["b"], "b", "c b is 0.5 % of the reference"),
        (Feature("c", "category"), ["a"] * 199 + ["b"], "z", "c z is not in the reference"),
        (Feature("c", "category"), ["a"] * 199 + ["b"], None, "c is missing, as in 0 % of the reference"),
        (Feature("c", "category"), [str(number) for number in range(1500)], "z", "c z is rare in the reference"),
        (Feature("c", "category"), [True] * 3 + [False], False, "c false is 25 % of the reference"),
        (Feature("c", "category"), ["a"] * 199 + ["b"], "z" * 999, f"c {'z' * 100} is not in the reference"),
        (Feature("c", "category"), [5, 5, 5, 6], 6, "c 6 is 25 % of the reference"),
    ],
)  # fmt: skip
def test_everything_else_in_words(feature: Feature, reference: Any, value: Any, words: str) -> None:
    assert told(feature, reference, value) == words


@pytest.mark.parametrize(
    ("feature", "reference", "value"),
    [(Feature("age", personal=True), [20.0, 31.0], 112.0), (Feature("age", "category", personal=True), ["x31"], "x112"),
     (Feature("age", "date", personal=True), [TODAY], NOON.date()), (Feature("age", personal=True), [20.0], None)],
)  # fmt: skip
def test_personal_values_and_ranges_are_not_shown(feature: Feature, reference: Any, value: Any) -> None:
    words = told(feature, reference, value)
    assert words == "age is unusual (it is personal: neither value nor range is shown)"


def test_a_model_holds_no_persons_value() -> None:
    given = {"age": [20.0, 31.0, None, None], "price": [1.0, 2.0, 3.0, 4.0]}
    encoding = fit([Feature("age", personal=True), Feature("price")], given)
    age, price = why.ranges_of(encoding, encoding.columns(given))
    assert age == Range((), 0.5) and price == range_of(np.array(given["price"]))


@given(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_dates_of_any_year_are_told(reference: int, day: int) -> None:
    column, value = pa.array([reference], pa.date32()), pa.array([day], pa.date32())
    encoding = fit([Feature("d", "date")], {"d": column})
    (spread,) = why.ranges_of(encoding, encoding.columns({"d": column}))
    words = why._teller(encoding.encoders[0], spread, {"d": value}, encoding.columns({"d": value})[0])(0)
    assert words.startswith(f"d {np.datetime64(day, 'D')} is ") and str(np.datetime64(reference, "D")) in words


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.integers(-(2**63) + 1, 2**63 - 1))
def test_moments_of_any_year_are_told(reference: int, moment: int) -> None:
    column, value = (pa.array([micros], pa.timestamp("us", "UTC")) for micros in (reference, moment))
    for part in ("value", "hour", "weekday", "hour_of_week"):
        encoding = fit([Feature("t", "timestamp", part)], {"t": column})
        (spread,) = why.ranges_of(encoding, encoding.columns({"t": column}))
        words = why._teller(encoding.encoders[0], spread, {"t": value}, encoding.columns({"t": value})[0])(0)
        assert words.startswith("t ") and "reference" in words


@pytest.mark.parametrize(("seconds", "words"), [(-62_167_219_200, "0000-01-01"), (253_402_300_800, "10000-01-01")])
def test_what_lies_just_beyond_pythons_calendar(seconds: int, words: str) -> None:
    encoding = fit([Feature("t", "timestamp")], {"t": [NOON]})
    value = {"t": pa.array([seconds], pa.timestamp("s"))}
    assert why._shown(encoding.encoders[0], encoding.columns(value)[0][0]) == f"{words} 00:00:00"


def data(rows: int = 600) -> dict[str, Any]:
    random = np.random.default_rng(0)
    kinds = random.choice(["car", "part", "van"], rows, p=[0.8, 0.19, 0.01]).tolist()
    return {"price": random.normal(100, 10, rows), "kind": kinds, "age": random.integers(20, 60, rows)}


def test_the_strongest_reasons_come_first_and_are_few() -> None:
    given = data()
    encoding = fit([Feature("price"), Feature("kind", "category"), Feature("age", personal=True)], given)
    columns = encoding.columns(given)
    made, ranges = grow.isolation(np.array(columns).T), why.ranges_of(encoding, columns)
    odd = {"price": np.array([500.0, 100.0]), "kind": ["car", "boat"], "age": np.array([40, 99])}
    first, second = reasons(made, encoding, ranges, odd, most=2)
    assert first[0].feature == "price" and first[0].text.startswith("price 500 is above all of the reference")
    assert {one.feature for one in second} == {"kind", "age"}
    assert not any("99" in one.text for one in second)
    for row in (first, second):
        assert len(row) <= 2 and all(0.1 <= one.share <= 1 for one in row) and sum(one.share for one in row) <= 1
        assert [one.share for one in row] == sorted((one.share for one in row), reverse=True)
    assert len(reasons(made, encoding, ranges, odd, most=1)[1]) == 1
    assert reasons(made, encoding, ranges, {name: pa.array(column)[:0] for name, column in odd.items()}) == []


def test_quantiles_are_values_that_occur() -> None:
    values = np.array([3.0, 1.0, np.nan, 2.0])
    spread = range_of(values)
    assert set(spread.quantiles) == {1.0, 2.0, 3.0} and spread.missing == 0.25
    assert list(spread.quantiles) == sorted(spread.quantiles)
    assert range_of(np.full(2, np.nan)) == Range((), 1.0) and range_of(np.zeros(0)) == Range((), 0.0)
