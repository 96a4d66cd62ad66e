"""The choice between two sorts of forest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from forests import compiled
from sklearn.metrics import roc_auc_score

from drivetrain.anomaly import backtest, grow
from drivetrain.anomaly.backtest import choose
from drivetrain.anomaly.scoring import Scorer
from drivetrain.errors import DrivetrainError


def ridge(rows: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sample, rows and which of them are odd: off a diagonal, within the range of each feature."""
    along, off = np.random.default_rng(0).normal(size=(2, rows))
    sample = np.column_stack([along, along + 0.05 * off])
    return sample, np.vstack([sample, sample[:60] * [1, -1]]), np.r_[np.zeros(rows, bool), np.ones(60, bool)]


def test_planes_are_chosen_where_no_single_feature_tells() -> None:
    sample, rows, odd = ridge()
    made = choose(sample, rows, odd, trees=50, seeds=range(5), code=compiled())
    assert made.extended and np.mean(made.extended_areas) > np.mean(made.plain_areas) + 0.01
    forests = [fit(sample, trees=50, seed=3) for fit in (grow.isolation, grow.extended)]
    areas = [roc_auc_score(odd, Scorer(forest, compiled()).score(rows)) for forest in forests]
    assert (made.plain_areas[3], made.extended_areas[3]) == pytest.approx(areas)
    assert str(made).endswith("by planes, mean of 5 seeds")


def test_single_features_are_kept_where_planes_win_nothing() -> None:
    sample = np.random.default_rng(0).normal(size=(2000, 8))
    rows, odd = sample.copy(), np.arange(2000) < 50
    assert not choose(sample, rows, odd, trees=50, seeds=range(5), code=compiled()).extended  # labels mean nothing
    rows[odd] += 60
    made = choose(sample, rows, odd, trees=50, seeds=range(5), code=compiled())  # both find all
    assert not made.extended and min(made.plain_areas) > 0.999


@pytest.mark.parametrize(("gain", "worth"), [(0.0004, False), (0.002, True)])
def test_a_gain_that_nobody_sees_is_none(monkeypatch: pytest.MonkeyPatch, gain: float, worth: bool) -> None:
    areas = itertools.cycle([0.99, 0.99 + gain])
    monkeypatch.setattr(backtest, "auroc", lambda *_: next(areas))
    assert choose(*ridge(100), trees=2, seeds=range(5), code=compiled()).extended == worth


def test_one_seed_proves_nothing() -> None:
    assert not choose(*ridge(500), trees=20, seeds=[1], code=compiled()).extended


def test_rows_of_one_sort_prove_nothing() -> None:
    sample, rows, odd = ridge(100)
    with pytest.raises(DrivetrainError, match="both sorts"):
        choose(sample, rows, odd & False, trees=5, seeds=[1], code=compiled())
