"""What people name: ids, or a condition over what an anomaly's entry has."""

from __future__ import annotations

import pytest

from drivetrain.anomaly.review import condition
from drivetrain.errors import DrivetrainError

ID = "0123456789abcdef0123456789abcdef"


def test_ids_and_conditions() -> None:
    assert condition(ID, "release") == f"anomaly_id IN ('{ID}')"
    assert condition(f"{ID},{ID[::-1]}", "release") == f"anomaly_id IN ('{ID}', '{ID[::-1]}')"
    given = "score < 0.6 AND _load = 3 AND label IS NULL"
    assert condition(given, "release") == given


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("scoer < 1", "anomalies have no column 'scoer'"),
        ("score <", "--confirm"),
        ("EXISTS (SELECT 1)", "a sub-query cannot stand here"),
        ("true; DROP TABLE x", "2 statements"),
        ("rand() < 1", "not allowed"),
    ],
)
def test_what_is_no_condition(which: str, said: str) -> None:
    with pytest.raises(DrivetrainError, match=r"ids parted by commas") as raised:
        condition(which, "confirm")
    assert said in str(raised.value)
