"""How far verdicts may go: by the load, and by what came before it."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tiny import KEY, Tiny

from drivetrain.anomaly.judge import GROUPS, RECENT, Decision, Judge
from drivetrain.anomaly.thresholds import Flagged


def judge(home: Path, **limit: float) -> Judge:
    tiny = Tiny(None, home)
    columns: dict[str, Any] = {"id": KEY, "place": {}, "x": {"logicalType": "number"}}
    anomaly = {"features": ["x"], "share": 0.001, "group": "place", "limit": limit}
    tiny.dataset("points", columns, anomaly=anomaly)
    return Judge(tiny.conf("points"), 2, "enforce", 0.6, None)


def held(one: Judge, judged: int, flagged: int, *before: tuple[int, int, int]) -> bool:
    """``before`` are version, rows and flagged ones of the loads before, the newest first."""
    last = None
    for version, rows, odd in reversed(before):
        last = replace(one, version=version).decided(Flagged(odd, rows), {}, last)
    return one.decided(Flagged(flagged, judged), {}, last).held is not None


def test_a_large_load_is_held_where_its_share_is_above_the_limit(tmp_path: Path) -> None:
    one = judge(tmp_path, overall=0.01)
    assert not held(one, 100_000, 900) and held(one, 100_000, 1_200)
    assert not held(one, 1_000, 12), "that may be chance"
    assert held(one, 1_000, 40)


def test_a_few_rows_are_no_surge(tmp_path: Path) -> None:
    one = judge(tmp_path, overall=0.01)
    assert not held(one, 3, 1) and not held(one, 4, 4) and held(one, 5, 5)
    assert not held(one, 0, 0)


def test_small_loads_are_seen_with_those_before(tmp_path: Path) -> None:
    one = judge(tmp_path, overall=0.01)
    assert held(one, 3, 3, (2, 3, 3), (2, 3, 3))
    assert not held(one, 3, 1, (2, RECENT, 5)), "as many as usual"
    assert not held(one, RECENT, 5, (2, 1000, 900)), "a large load speaks for itself"
    assert not held(one, 3, 1, (1, 100, 100)), "another model's counts say nothing"
    assert not held(one, 3, 1, (2, 3, 0), (1, 100, 100))
    assert not held(one, 3, 0, (2, 3, 3), (2, 3, 3)), "nothing would be removed"


def test_a_rare_group_that_trickles_in_is_seen(tmp_path: Path) -> None:
    """Two odd rows of a new place in every sixth load of fifty, for ever; and one other odd row now and then."""
    one, last, removed = judge(tmp_path, overall=0.05, group=0.3), None, 0
    for load in range(500):
        odd, other = (2, 0) if load % 6 == 0 else (0, 1 if load % 40 == 7 else 0)
        last = one.decided(Flagged(odd + other, 50), {"C": Flagged(odd, odd), "A": Flagged(other, 25)}, last)
        last = Decision(**json.loads(json.dumps(asdict(last))))  # as a commit tells of it
        removed += odd if last.removed else 0
    assert removed == 4 and last and last.recent[1] <= 2 * RECENT
    assert last.held is None, "nothing of the last load was flagged"


def test_of_many_groups_the_worst_are_remembered(tmp_path: Path) -> None:
    one = judge(tmp_path, overall=0.05, group=0.3)
    many = {f"p{n}": Flagged(1, 300) for n in range(200)} | {"C": Flagged(2, 2)}
    last, now = one.decided(Flagged(202, 60_000), many, None), {"C": Flagged(9, 9)}
    assert len(last.groups) == GROUPS and next(iter(last.groups)) == "C"
    assert str(one.decided(Flagged(9, 1000), now, last).held).startswith("place C: 11 of 11 rows")
    few = {"C": Flagged(4, 4)}
    assert not replace(one, version=3).decided(Flagged(4, 1000), few, last).held, "of another model"
