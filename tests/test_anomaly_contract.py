"""The customProperty anomaly: what it says, what it leaves out, and everything that is wrong in it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import KEY, MONEY, WHOLE, Tiny

from drivetrain.contracts import Anomaly, Feature
from drivetrain.errors import ConfError

COLUMNS = {
    "id": KEY, "at": {"logicalType": "timestamp"}, "qty": WHOLE, "price": MONEY, "place": {},
    "salary": {**MONEY, "classification": "personal"}, "name": {"classification": "personal"},
    "sold": {"logicalType": "date"},
}  # fmt: skip


def read(home: Path, anomaly: dict[str, Any], **more: Any) -> Anomaly:
    tiny = Tiny(None, home)
    tiny.dataset("sales", COLUMNS, eventTime="at", anomaly=anomaly, **more)
    found = tiny.conf("sales").anomaly
    assert found
    return found


def wrong(home: Path, anomaly: dict[str, Any], **more: Any) -> list[str]:
    with pytest.raises(ConfError) as raised:
        read(home, anomaly, **more)
    return [f"{problem.code}: {problem.what} | {problem.fix}" for problem in raised.value.problems]


def test_defaults(tmp_path: Path) -> None:
    found = read(tmp_path, {"features": ["qty", "place"]})
    assert found.features == (
        Feature("qty", "`qty`", "number", "value", True), Feature("place", "`place`", "category", "value", True),
    )  # fmt: skip
    assert (found.share, found.clean, found.limit, found.group_limit) == (0.001, False, 0.01, 0.05)
    assert (found.trees, found.sample, found.kind, found.days, found.loads) == (100, 256, "standard", None, None)


def test_a_limit_below_the_share_would_remove_nothing(tmp_path: Path) -> None:
    found = wrong(tmp_path, {"features": ["qty"], "share": 0.02, "limit": {"overall": 0.01, "group": 0.019}})
    assert [line.split(":")[0] for line in found] == ["bad-value"] * 2
    assert "limit overall 0.01 is below the share 0.02" in found[0] and "better 0.04" in found[0]
    usual = wrong(tmp_path, {"features": ["qty"], "limit": {"overall": 0.0005}})
    assert "below the share 0.001" in usual[0]


def test_everything_said(tmp_path: Path) -> None:
    found = read(tmp_path, {
        "features": ["price", "sold", {"name": "hour", "sql": "at", "kind": "timestamp", "part": "hour"},
                     {"name": "amount", "sql": "qty * price"}, {"name": "paid", "sql": "ln(salary)"}, "name"],
        "reference": {"days": 28}, "where": "place <> 'test'", "group": "place", "falseAlarmRate": 0.02,
        "limit": {"overall": 0.1, "group": 0.2}, "trees": 50, "sample": 128, "seed": 1, "kind": "extended",
    })  # fmt: skip
    assert [(one.name, one.kind, one.part, one.is_open) for one in found.features] == [
        ("price", "number", "value", True), ("sold", "date", "value", True), ("hour", "timestamp", "hour", True),
        ("amount", "number", "value", True), ("paid", "number", "value", False), ("name", "category", "value", False),
    ]  # fmt: skip
    assert (found.days, found.where, found.group, found.share, found.clean) == (
        28,
        "place <> 'test'",
        "place",
        0.02,
        True,
    )
    assert (found.limit, found.group_limit, found.kind) == (0.1, 0.2, "extended")


def test_the_limit_follows_the_share(tmp_path: Path) -> None:
    found = read(tmp_path, {"features": ["qty"], "share": 0.02})
    assert (found.limit, found.group_limit) == (0.04, 0.2)


def test_how_rows_are_judged_does_not_change_how_they_are_read(tmp_path: Path) -> None:
    tiny = Tiny(None, tmp_path)
    tiny.dataset("sales", COLUMNS)
    plain = tiny.conf("sales").fingerprint
    tiny.dataset("sales", COLUMNS, anomaly={"features": ["qty"]})
    assert tiny.conf("sales").fingerprint == plain


WRONG = {
    "unknown key": ({"features": ["qty"], "tree": 5}, "unknown key 'anomaly.tree' | did you mean 'trees'?"),
    "unknown key below": (
        {"features": ["qty"], "limit": {"over": 1}}, "unknown key 'anomaly.limit.over' | did you mean 'overall'?"
    ),
    "no features": ({"features": []}, "at least 1"),
    "none at all": ({}, "'anomaly.features' is missing"),
    "unknown column": ({"features": ["qtty"]}, "the feature names no column: 'qtty' | did you mean 'qty'?"),
    "unknown in sql": ({"features": [{"name": "x", "sql": "qty * prize"}]}, "'prize' | did you mean 'price'?"),
    "not an expression": ({"features": [{"name": "x", "sql": "sum(qty)"}]}, "an aggregate"),
    "changes": ({"features": [{"name": "x", "sql": "rand()"}]}, "rand() is not allowed"),
    "where": ({"features": ["qty"], "where": "pplace = 'a'"}, "where names no column: 'pplace' | did you mean"),
    "sub-query": ({"features": ["qty"], "where": "qty IN (SELECT 1)"}, "a sub-query cannot stand here"),
    "group": ({"features": ["qty"], "group": "plaice"}, "group names no column: 'plaice' | did you mean 'place'?"),
    "personal group": ({"features": ["qty"], "group": "name"}, "group 'name' is a classified column"),
    "two thresholds": ({"features": ["qty"], "share": 0.1, "falseAlarmRate": 0.1}, "share and falseAlarmRate are two"),
    "two windows": ({"features": ["qty"], "reference": {"days": 1, "loads": 1}}, "days and loads are two windows"),
    "twice": ({"features": ["qty", "qty"]}, "two features are named 'qty'"),
    "part": ({"features": [{"name": "qty", "part": "hour"}]}, "feature qty is a number, which has no hour"),
    "name": ({"features": [{"name": "Ä b", "sql": "qty"}]}, "feature name 'Ä b' is not allowed"),
    "share": ({"features": ["qty"], "share": 0.9}, "less than or equal to 0.5"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    anomaly, said = WRONG[case]
    assert any(said in line for line in wrong(tmp_path, anomaly)), wrong(tmp_path, anomaly)


def test_days_need_a_time(tmp_path: Path) -> None:
    tiny = Tiny(None, tmp_path)
    tiny.dataset("sales", COLUMNS, anomaly={"features": ["qty"], "reference": {"days": 3}})
    with pytest.raises(ConfError, match="a reference of days needs an eventTime"):
        tiny.conf("sales")


def test_all_of_it_at_once_with_lines(tmp_path: Path) -> None:
    with pytest.raises(ConfError) as raised:
        read(tmp_path, {"features": ["qtty"], "group": "name", "where": "nope"})
    assert len(raised.value.problems) == 3 and all("sales.yaml:" in str(p.where) for p in raised.value.problems)


def test_a_rule_is_not_called_anomaly(tmp_path: Path) -> None:
    tiny = Tiny(None, tmp_path)
    quality = [{"name": "anomaly", "type": "sql", "query": "SELECT COUNT(*) FROM {object} WHERE qty < 0", "mustBe": 0}]
    tiny.dataset("sales", COLUMNS, quality=quality)
    with pytest.raises(ConfError, match="anomaly"):
        tiny.conf("sales")
