"""Counts in bins, and what they tell of drift."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from drivetrain.anomaly import distribution
from drivetrain.anomaly.distribution import Bins, Drift, Report, compare, distance, intervals, psi
from drivetrain.anomaly.features import Feature, fit

RANDOM = np.random.default_rng(0)
VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(np.nan)), min_size=1, max_size=60).map(np.array)


@given(VALUES, VALUES, st.integers(1, 30))
def test_each_value_is_counted_once_where_it_belongs(reference: np.ndarray, found: np.ndarray, most: int) -> None:
    bins = intervals(reference, most)
    counts = bins.count(found)
    assert counts.shape == (bins.size,) and counts.sum() == len(found)
    assert counts[-1] == np.isnan(found).sum()
    edges = np.array(bins.edges)
    assert (np.diff(edges) > 0).all() and len(edges) <= most + 1
    for place, edge in enumerate(edges):
        assert counts[: place + 1].sum() == (found <= edge).sum()


@given(st.lists(st.integers(-9, 99) | st.just(np.nan), max_size=99).map(lambda found: np.array(found, float)))
def test_personal_values_are_told_by_the_crowd(values: np.ndarray) -> None:
    bins = distribution.crowds(values, 5)
    counts = bins.count(values)
    if bins.edges != (0.0,):
        assert (counts[:-1] >= distribution.CROWD).all() and not {*bins.edges} & {*values.tolist()}
    assert counts.sum() == len(values) and len(bins.edges) <= 5 and (np.diff(bins.edges) > 0).all()


@given(VALUES)
def test_the_ends_lie_outside_of_the_reference(reference: np.ndarray) -> None:
    bins = intervals(reference)
    counts = bins.count(reference)
    if not np.isnan(reference).all():
        assert counts[0] == counts[-2] == 0
        assert bins.count(np.array([np.nanmin(reference) - 1, -np.inf]))[0] == 2
        assert bins.count(np.array([np.nanmax(reference) + 1, np.inf]))[-2] == 2


@given(VALUES, VALUES)
def test_counts_of_parts_add_up(one: np.ndarray, other: np.ndarray) -> None:
    bins = intervals(one)
    assert np.array_equal(bins.count(one) + bins.count(other), bins.count(np.concatenate([one, other])))


def test_intervals_hold_as_much_each() -> None:
    values = RANDOM.lognormal(size=10_000)
    counts = intervals(values, 20).count(values)
    assert counts[1:-2].tolist() == [500] * 20


def test_one_value_has_a_bin_and_all_missing_too() -> None:
    bins = intervals(np.full(9, 7.0))
    assert bins.count(np.array([7.0, 6.9, 7.1, np.nan])).tolist() == [1, 1, 1, 1]
    empty = intervals(np.full(9, np.nan))
    assert empty.count(np.array([np.nan, 1.0])).tolist() == [0, 1, 1]
    assert intervals(np.zeros(0)) == empty


def test_categories_unseen_ones_and_missing_have_bins() -> None:
    (encoder,) = fit([Feature("x", "category")], {"x": ["a"] * 3 + ["b"] * 2 + ["c"]}).encoders
    bins = distribution.of_feature(encoder, ["a"], most=2)
    assert bins == Bins(levels=("a", "b"))
    found = distribution.count_feature(bins, encoder, pa.array(["b", "c", "z", None, "a", "a"]))
    assert found.tolist() == [2, 1, 2, 1]
    (number,) = fit([Feature("x")], {"x": [1.0, 2.0]}).encoders
    spread = distribution.of_feature(number, [1.0, 2.0])
    assert distribution.count_feature(spread, number, [2.0, None]).tolist() == [0, 0, 1, 0, 1]


def test_bins_of_a_personal_feature_do_not_tell_its_extremes() -> None:
    values = np.arange(1000.0) ** 2
    mine, open_ = (
        distribution.of_feature(fit([Feature("x", personal=personal)], {"x": values}).encoders[0], values)
        for personal in (True, False)
    )
    assert len(mine.edges) == len(open_.edges) - 2 and not {*mine.edges} & {*values.tolist()}
    (encoder,) = fit([Feature("x", personal=True)], {"x": [7.0, 7.0]}).encoders
    assert len(distribution.of_feature(encoder, [7.0, 7.0]).edges) == 1


@given(st.lists(st.integers(0, 1000), min_size=3, max_size=9), st.integers(0, 2**32))
def test_psi_and_distance_are_those_of_their_definitions(counts: list[int], seed: int) -> None:
    one = np.array(counts) + 1
    other = np.random.default_rng(seed).integers(0, 1000, len(one)) + 1
    p, q = (counts + 0.5 for counts in (one, other))
    p, q = p / p.sum(), q / q.sum()
    assert psi(one, other) == pytest.approx(sum((b - a) * np.log(b / a) for a, b in zip(p, q, strict=True)))
    assert psi(one, other) == pytest.approx(psi(other, one)) and psi(one, other) >= 0
    assert psi(one, one * 7) < 0.02 and distance(one, one * 7, True) == pytest.approx(0)
    assert distance(one, other, False) == pytest.approx(abs(one / one.sum() - other / other.sum()).sum() / 2)


@given(st.integers(0, 2**32), st.floats(-2, 2))
def test_the_distance_is_never_more_than_kolmogorov_smirnovs(seed: int, shift: float) -> None:
    random = np.random.default_rng(seed)
    reference, found = random.normal(size=2000), random.normal(size=1500) + shift
    bins = intervals(reference)
    true = stats.ks_2samp(reference, found).statistic
    binned = distance(bins.count(reference), bins.count(found), True)
    assert true - 0.06 <= binned <= true + 1e-12


def test_missing_values_are_drift_too() -> None:
    reference = RANDOM.normal(size=5000)
    found = reference.copy()
    found[:1000] = np.nan
    bins = intervals(reference)
    told = compare("x", bins, bins.count(reference), bins.count(found))
    assert told.distance == pytest.approx(0.2) and told.drifted


def test_what_has_not_moved_is_no_drift_in_999_of_1000() -> None:
    reference = RANDOM.normal(size=3000)
    bins = intervals(reference)
    counts = bins.count(reference)
    for rows in (5, 20, 100, 1000):
        false = sum(compare("x", bins, counts, bins.count(RANDOM.normal(size=rows))).drifted for _ in range(1000))
        assert false <= 8, rows


def test_categories_that_have_not_moved_are_no_drift_either() -> None:
    bins, likely = Bins(levels=tuple("abcdefghijklmnopqrst")), [0.05] * 20 + [0, 0]
    reference = RANDOM.multinomial(3000, likely)
    for rows in (5, 20, 100, 1000):
        found = [RANDOM.multinomial(rows, likely) for _ in range(1000)]
        assert sum(compare("x", bins, reference, counts).drifted for counts in found) <= 8, rows
    assert compare("x", bins, reference, RANDOM.multinomial(100, [0.1] * 10 + [0] * 12)).drifted


def test_chance_is_told_as_it_is() -> None:
    """Of evenly filled bins: the 0.999 quantile of PSI is found in simulations where the formula says."""
    reference = RANDOM.multinomial(4000, [0.1] * 10)
    found = [psi(reference, RANDOM.multinomial(1000, [0.1] * 10)) for _ in range(4000)]
    chance = distribution.psi_by_chance(reference, np.full(10, 100))
    assert np.quantile(found, 0.99) < chance < 1.3 * np.quantile(found, 0.999)
    assert chance == pytest.approx(stats.chi2.ppf(0.999, 9) * (1 / 4000 + 1 / 1000), rel=0.01)


@pytest.mark.parametrize(
    "change", [lambda x: x + 1, lambda x: x * 3, lambda x: np.abs(x), lambda x: np.where(x > 1, np.nan, x)]
)
def test_what_has_moved_is_drift(change: object) -> None:
    reference, found = RANDOM.normal(size=3000), RANDOM.normal(size=1000)
    bins = intervals(reference)
    told = compare("x", bins, bins.count(reference), bins.count(change(found)))  # type: ignore[operator]
    assert told.drifted and told.psi > 0.1 and told.distance > 0.1


def test_a_small_change_in_many_rows_is_none() -> None:
    reference = RANDOM.normal(size=200_000)
    bins = intervals(reference)
    assert not compare("x", bins, bins.count(reference), bins.count(reference + 0.05)).drifted


def test_no_rows_tell_nothing() -> None:
    bins = intervals(np.arange(9.0))
    counts, none = bins.count(np.arange(9.0)), np.zeros(bins.size, np.int64)
    assert compare("x", bins, counts, none) == compare("x", bins, none, counts) == Drift("x", 0, 0, False)


def test_counts_of_other_bins_are_refused() -> None:
    bins = Bins(levels=("a",))
    with pytest.raises(ValueError, match="x has 3 bins"):
        compare("x", bins, np.ones(3, np.int64), np.ones(4, np.int64))
    with pytest.raises(ValueError, match="x has 3 bins"):
        compare("x", bins, np.ones(2, np.int64), np.ones(3, np.int64))


def made(drifted: int, features: int, scores: float = 0.0) -> Report:
    each = tuple(Drift(str(number), 0.5, 0.5, number < drifted) for number in range(features))
    return Report(each, Drift("score", 0.5, scores, scores > 0.1))


def test_the_rate_is_of_features_or_of_the_scores() -> None:
    assert (made(0, 10).rate, made(2, 10).rate, made(3, 10).rate) == (0, 0.2, 0.3)
    assert (made(2, 10).stale, made(3, 10).stale) == (False, True)
    assert made(0, 10, 0.25).rate == 0.25 and made(0, 10, 0.25).stale
    assert made(0, 10, 0.05).rate == 0 and made(3, 10, 0.25).rate == 0.3
    assert made(0, 0).rate == 0 and not made(1, 2000).stale


def test_a_report_is_of_all_features_and_the_scores() -> None:
    values = RANDOM.normal(size=(2, 1000))
    bins = [intervals(column) for column in values]
    reference = {name: (one, one.count(column)) for name, one, column in zip("ab", bins, values, strict=True)}
    found = {"a": bins[0].count(values[0]), "b": bins[1].count(values[1] + 9), "other": np.ones(3)}
    told = distribution.report(reference, found, reference["a"], found["a"])
    assert [(one.name, one.drifted) for one in (*told.features, told.scores)] == [
        ("a", False), ("b", True), ("score", False),
    ]  # fmt: skip
    assert told.rate == 0.5 and told.stale
    del found["b"]
    with pytest.raises(ValueError, match="no counts of b"):
        distribution.report(reference, found, reference["a"], found["a"])
