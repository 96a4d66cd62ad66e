"""Thresholds, the guard, and what reviewed rows tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from drivetrain.anomaly.thresholds import (
    FEW,
    Flagged,
    Share,
    Verdict,
    auroc,
    guard,
    measure,
    propose,
    tail,
    threshold,
)
from drivetrain.errors import DrivetrainError

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=200).map(np.array)


@given(SCORES, st.floats(0.001, 0.999))
def test_at_most_the_share_is_flagged_and_no_lower_score_would_do(scores: np.ndarray, share: float) -> None:
    made = threshold(scores, share)
    assert made.value in scores and (made.share, made.rows) == (share, len(scores))
    assert (scores > made.value).sum() <= len(scores) * share + 1e-9
    below = scores[scores < made.value]
    if len(below):
        assert (scores > below.max()).sum() > len(scores) * share
    assert made.low <= made.value <= made.high


def test_shares_that_are_no_binary_fractions_are_exact() -> None:
    scores = np.arange(100.0)
    for percent in range(1, 100):
        assert (scores > threshold(scores, percent / 100).value).sum() == percent


@given(SCORES, st.floats(0.01, 0.5))
def test_the_tail_is_enough(scores: np.ndarray, share: float) -> None:
    highest = np.sort(scores)[::-1][: tail(len(scores), share)]
    assert threshold(highest, share, len(scores)) == threshold(scores, share)


def test_the_tail_of_many_rows_is_small() -> None:
    assert tail(130_000_000, 0.001) < 131_000


@pytest.mark.parametrize(("rows", "share"), [(200, 0.1), (1000, 0.01), (5000, 0.001), (50, 0.5), (30, 0.01)])
def test_the_interval_holds_the_true_threshold_19_times_of_20(rows: int, share: float) -> None:
    random, truth = np.random.default_rng(rows), 1 - share
    made = [threshold(random.random(rows), share) for _ in range(1000)]
    assert np.mean([one.low <= truth <= one.high for one in made]) >= 0.94
    missed = [np.mean([one.low > truth for one in made]), np.mean([one.high < truth for one in made])]
    assert max(missed) < 0.04


@pytest.mark.parametrize(("rows", "share"), [(2000, 0.1), (1000, 0.05), (100_000, 0.001)])
def test_the_interval_is_no_wider_than_it_must_be(rows: int, share: float) -> None:
    ranks = stats.binom.ppf([0.025, 0.975], rows, share)
    made = threshold(np.arange(float(rows)), share)
    assert rows - 1 - made.low == ranks[1] and rows - 1 - made.high == ranks[0] - 1


def test_a_reference_that_is_too_small_says_so() -> None:
    made = threshold(np.arange(10.0), 0.01)
    assert (made.value, made.high) == (9, math.inf)
    assert threshold(np.arange(3.0), 0.9).low == -math.inf


@pytest.mark.parametrize(
    ("scores", "share", "rows"),
    [([], 0.1, None), ([1], 0, None), ([1], 1, None), ([1], math.nan, None), ([1] * 5, 0.1, 1000)],
)
def test_what_gives_no_threshold_is_refused(scores: list[float], share: float, rows: int | None) -> None:
    with pytest.raises(DrivetrainError, match="cannot be told"):
        threshold(np.array(scores), share, rows)


@given(st.integers(1, 500), st.data())
def test_shares_have_wilsons_interval(whole: int, data: st.DataObject) -> None:
    share = Share(data.draw(st.integers(0, whole)), whole)
    expected = stats.binomtest(share.part, whole).proportion_ci(0.95, "wilson")
    assert share.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert share.interval[0] <= share.value <= share.interval[1]


def test_a_share_of_nothing_may_be_anything() -> None:
    assert Share(0, 0).interval == (0, 1) and math.isnan(Share(0, 0).value)
    assert str(Share(5, 1000)) == "5 of 1,000 rows (0.21% to 1.17%)"


NONE: dict[str, Flagged] = {}
NOTHING = Flagged(0, 0)


def test_the_declared_share_is_enforced() -> None:
    groups = {"north": Flagged(6, 500), "south": Flagged(4, 500)}
    assert guard(0.05, Flagged(10, 1000), groups, NOTHING, NONE) == Verdict(True)


def test_a_surge_is_only_flagged() -> None:
    verdict = guard(0.05, Flagged(100, 1000), NONE, NOTHING, NONE)
    assert not verdict.enforce
    assert verdict.reasons == ("overall: 100 of 1,000 rows (7.81% to 12.71%) flagged, the limit is 5.00%",)


def test_a_surge_in_one_group_is_only_flagged() -> None:
    groups = {"north": Flagged(30, 60), "south": Flagged(0, 9940)}
    verdict = guard(0.05, Flagged(30, 10_000), groups, NOTHING, NONE)
    assert not verdict.enforce
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["north"]


@given(st.integers(0, FEW - 1), st.integers(0, 10))
def test_a_few_odd_rows_in_a_small_load_are_no_surge(flagged: int, more: int) -> None:
    one = Flagged(flagged, flagged + more)
    assert guard(0.01, one, {"north": one}, NOTHING, NONE).enforce


@pytest.mark.parametrize("group", [False, True])
def test_a_surge_in_many_small_loads_is_one(group: bool) -> None:
    """In the whole, or in a group of a whole that is quiet."""
    before, held = NOTHING, 0
    for _ in range(100):
        now = Flagged(3, 4)
        counts = (NOTHING, {"north": now}, NOTHING, {"north": before}) if group else (now, NONE, before, NONE)
        held += now.flagged * guard(0.05, *counts).enforce
        before = before + now
    assert held < FEW


def test_small_loads_at_the_declared_rate_are_enforced() -> None:
    random = np.random.default_rng(0)
    before, only_flagged = NOTHING, 0
    for _ in range(2000):
        now = Flagged(int(random.binomial(20, 0.01)), 20)
        only_flagged += not guard(0.05, now, {"north": now}, before, {"north": before}).enforce
        before = Flagged(before.flagged, before.rows) + now if before.rows < 5000 else now
    assert only_flagged <= 5


def test_a_share_just_above_the_limit_is_seen_in_many_rows() -> None:
    assert guard(0.05, Flagged(52, 1000), NONE, NOTHING, NONE).enforce
    assert not guard(0.05, Flagged(52_000, 1_000_000), NONE, NOTHING, NONE).enforce


def test_many_groups_are_not_as_many_alarms() -> None:
    random = np.random.default_rng(1)
    alarms = 0
    for _ in range(50):
        groups = {str(number): Flagged(int(random.binomial(200, 0.045)), 200) for number in range(200)}
        alarms += not guard(0.05, NOTHING, groups, NOTHING, NONE).enforce
    assert alarms <= 3


def test_what_has_nothing_to_hold_back_raises_no_alarm() -> None:
    before = Flagged(900, 1000)
    assert guard(0.05, Flagged(0, 10), {}, before, {"north": before}).enforce
    assert not guard(0.05, Flagged(1, 10), {"north": Flagged(1, 10)}, before, {"north": before}).enforce


def test_precision_and_recall_are_of_the_reviewed_rows() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    anomalies = np.array([True, False, True, True, False])
    made = measure(scores, anomalies, 0.65)
    assert (made.precision, made.recall) == (Share(2, 3), Share(2, 3))
    assert measure(scores, anomalies, 0.7).precision == Share(1, 2)


def reviewed(many: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row above 0.6 is an anomaly, and none below."""
    scores = np.linspace(0, 1, many)
    return scores, scores > 0.6


def test_the_lowest_threshold_that_shows_the_precision_is_proposed() -> None:
    scores, anomalies = reviewed(500)
    made = propose(scores, anomalies, current=0.9, precision=0.9)
    assert made.proposed is not None and made.proposed.precision.interval[0] >= 0.9
    assert made.proposed.recall.part == 200 and made.proposed.threshold < 0.6 < 0.9
    lower = measure(scores, anomalies, made.proposed.threshold - 0.003)
    assert lower.precision.interval[0] < 0.9
    assert "50 of 200" in made.why


def test_few_labels_change_nothing() -> None:
    scores, anomalies = reviewed(19)
    made = propose(scores, anomalies, 0.9, 0.9)
    assert made.proposed is None and "too few" in made.why
    scores, anomalies = reviewed(25)  # 10 anomalies of 10 do not show 90 %
    assert propose(scores, anomalies, 0.9, 0.9).proposed is None


def test_a_precision_that_nothing_shows_changes_nothing() -> None:
    scores, _ = reviewed(100)
    made = propose(scores, np.arange(100) % 2 == 0, 0.5, 0.9)
    assert made.proposed is None and "no threshold shows" in made.why


def test_what_is_in_force_and_right_stays() -> None:
    scores, anomalies = reviewed(500)
    first = propose(scores, anomalies, 0.9, 0.9)
    assert first.proposed is not None
    again = propose(scores, anomalies, first.proposed.threshold, 0.9)
    assert again.proposed is None and "already" in again.why


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60))
def test_the_area_is_scikit_learns(rows: list[tuple[int, bool]]) -> None:
    scores, anomalies = (np.array(one) for one in zip(*rows, strict=True))
    if anomalies.all() or not anomalies.any():
        with pytest.raises(DrivetrainError, match="both sorts"):
            auroc(scores, anomalies)
    else:
        assert auroc(scores, anomalies) == pytest.approx(roc_auc_score(anomalies, scores))
