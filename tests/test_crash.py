"""A run may end at any point: the next one makes everything as if nothing had happened, and nothing twice.

As a program (see `killed`): one batch job that kills itself, with its JVM, at one of its commits.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_anomalies import ODD, Judged, rows
from tiny import KEY, WHOLE, Tiny

from drivetrain import conf as reader
from drivetrain import job
from drivetrain.files import LOCAL
from drivetrain.sink import Table, Txn

pytestmark = pytest.mark.spark

ROOT = Path(__file__).resolve().parents[1]
CONTENT = {
    "bronze/orders": ("raw", "_file", "_block", "_line", "_load", "_entry = 'record'"),
    "bronze/prices": ("raw", "_file", "_block", "_line", "_load", "_entry = 'record'"),
    "silver/orders": ("*",),
    "silver/prices": ("*",),
    "quarantine": ("dataset", "rule", "reason", "raw", "_file", "_block", "_line", "_load", "state"),
    "raw_unified_data": ("*",),
    "gold/totals": ("*",),
    "ops/ledger": (
        *("dataset", "first_load", "last_load", "files", "rows_in", "good", "quarantined", "duplicate", "inserted"),
        *("updated", "superseded", "requeued", "bronze_version", "silver_version_read", "silver_version"),
    ),
}


def commits(table: Path) -> int:
    return len(list((table / "_delta_log").glob("*.json")))


def around_commits(put: Callable[..., None], before: Callable[[str], None], after: Callable[..., None]) -> None:
    """Around every commit: ``before`` gets the table's layer/name; ``after``, if it was made, also what kind it is."""

    def wrap(method: str, real: Callable[..., None]) -> Callable[..., None]:
        def commit(table: Table, *given: Any) -> None:
            path = Path(table.path)
            name, made = f"{path.parent.name}/{path.name}", commits(path)
            before(name)
            real(table, *given)
            if commits(path) > made:
                writers = [re.sub(r"run\d+.*", "", one.app) for one in given if isinstance(one, Txn)]
                after(name, method, *writers)

        return commit

    for method in ("append", "replace", "merge", "update", "delete"):
        put(Table, method, wrap(method, getattr(Table, method)))


def land(tiny: Tiny, batch: int) -> None:
    """Two batches of a feed with a history and of one without: new and newer rows, repeats, bad rows, a bad file."""
    for name in ("orders", "prices"):
        rows = {1: ("a,1,1", "b,2,1", "b,2,1", "c,x,1"), 2: ("a,5,2", "b,9,0", "c,3,1", "d,4,1", "e,-1,1")}[batch]
        tiny.land(f"{name}/{batch}.csv", "id,n,at", *rows)
    tiny.land(f"orders/empty{batch}.csv")


VERDICTS = {
    "bronze/points": CONTENT["bronze/orders"],
    "silver/points": ("*",),
    "quarantine": CONTENT["quarantine"],
    "ops/anomalies": ("anomaly_id", "key", "version", "stage", "score", "reason", "removed", "outcome", "_load"),
    "ops/verdicts": ("first_load", "last_load", "version", "stage", "judged", "flagged", "removed", "held"),
    "ops/ledger": CONTENT["ops/ledger"],
}


@pytest.fixture(scope="module")
def start(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    tiny = Tiny(spark, tmp_path_factory.mktemp("start"))
    low = {"name": "low", "type": "sql", "query": "SELECT COUNT(*) FROM {object} WHERE n < 0", "mustBe": 0}
    columns = {"id": KEY, "n": WHOLE, "at": WHOLE}
    tiny.dataset("orders", columns, quality=[low], sequence="at", unify=True)
    tiny.dataset("prices", columns, sequence="at", history="scd2")
    sql = "SELECT orders.id, orders.n, COUNT(*) AS versions FROM orders JOIN prices USING (id) GROUP BY ALL"
    tiny.gold("totals", sql, ["id"])
    land(tiny, 1)
    return tiny


@pytest.fixture(scope="module")
def after_one(start: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The first batch is in; the second has arrived."""
    tiny = start.copy(tmp_path_factory.mktemp("one"))
    assert tiny.run().problems == []
    land(tiny, 2)
    return tiny


@pytest.fixture(scope="module")
def undisturbed(after_one: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    tiny = after_one.copy(tmp_path_factory.mktemp("two"))
    assert tiny.run().problems == []
    found = content(tiny)
    assert found["gold/totals"] == [("a", 5, 2), ("b", 2, 2), ("c", 3, 1), ("d", 4, 1)]
    assert len(found["quarantine"]) == 2 + 1 + 2  # bad rows of orders and of prices, empty files
    return found


def content(tiny: Tiny, of: dict[str, tuple[str, ...]] = CONTENT) -> dict[str, Any]:
    """All that must be the same, but for the names of runs and times."""
    found = {}
    for table, columns in of.items():
        where = columns[-1] if "=" in columns[-1] else "true"
        found[table] = tiny.rows(table, *[column for column in columns if column != where], where=where)
    ids = tiny.rows("quarantine", "quarantine_id")
    assert len(ids) == len(set(ids))
    return found


class Killed(BaseException):
    """Nothing in the pipeline catches it."""


def test_runs_that_die_after_every_commit(start: Tiny, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    """Each run starts from where the last was killed, and dies after the first commit of a kind that none has died
    after: every point between two commits of both batches is met."""
    tiny = start.copy(tmp_path)
    met: dict[int, list[tuple[str, ...]]] = {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # a process that is killed does not clean up
        around_commits(patch.setattr, lambda _: None, lambda *kind: die_once(met[max(met)], kind))
        for batch in (1, 2):
            met[batch] = []
            land(tiny, batch)
            while dies(tiny):
                pass
    for kinds in met.values():
        assert {"bronze/orders", "bronze/prices", "gold/totals", "ops/ledger"} < {table for table, *_ in kinds}
        assert ("warehouse/quarantine", "append", "orders") in kinds
        assert ("warehouse/raw_unified_data", "append", "orders") in kinds
    assert {("silver/orders", "append", "orders after 0"), ("silver/prices", "append", "prices after 0")} < set(met[1])
    assert {("silver/orders", "merge", "orders after 1"), ("silver/prices", "merge", "prices after 1")} < set(met[2])
    assert content(tiny) == undisturbed
    for name in ("orders", "prices"):
        tiny.nothing_is_lost(name)


def test_verdicts_of_runs_that_die_after_every_commit(spark: Any, tmp_path: Path) -> None:
    """And of one that is killed by the system, when it has told of its anomalies and silver has nothing of them."""
    one = Judged(spark, tmp_path / "one")
    one.load(*rows(0, 400))
    one.promote(one.fit(), "enforce")
    one.bring(*ODD, ("bad", "A", "no number", 0), *rows(400, 100))
    undisturbed, killed_once = (one.copy(tmp_path / name) for name in ("undisturbed", "killed"))
    assert undisturbed.run().problems == []
    expected = content(undisturbed, VERDICTS)
    assert [row[-4:-1] for row in expected["ops/verdicts"]] == [(102, 2, 2)] and len(expected["quarantine"]) == 3

    met: list[tuple[str, ...]] = []
    with pytest.MonkeyPatch.context() as patch:
        around_commits(patch.setattr, lambda _: None, lambda *kind: die_once(met, kind))
        while dies(one):
            pass
    assert {"ops/anomalies", "warehouse/quarantine", "silver/points", "ops/verdicts"} < {table for table, *_ in met}
    assert killed(spark, killed_once.home, "ops/anomalies", "after") == -signal.SIGKILL
    assert killed_once.rows("ops/anomalies", "1") == [(1,), (1,)] and killed_once.quarantined("points", "1") == []
    assert killed_once.run().problems == []
    for tiny in (one, killed_once):
        assert content(tiny, VERDICTS) == expected
        tiny.nothing_is_lost("points")


def die_once(met: list[tuple[str, ...]], kind: tuple[str, ...]) -> None:
    if kind not in met:
        met.append(kind)
        raise Killed


def dies(tiny: Tiny) -> bool:
    try:
        assert tiny.run().problems == []
    except Killed:
        return True
    return False


POINTS = [("silver/orders", "before"), ("silver/prices", "after"), ("gold/totals", "after")]
if not os.environ.get("LONG"):  # each takes a minute
    POINTS = POINTS[1:2]


@pytest.mark.parametrize(("table", "when"), POINTS)
def test_kill_9(after_one: Tiny, undisturbed: dict[str, Any], tmp_path: Path, table: str, when: str) -> None:
    """The job and its JVM are killed by the system; the lock goes with them; the next run does the rest."""
    tiny = after_one.copy(tmp_path)
    versions = {name: commits(tmp_path / "warehouse" / name) for name in CONTENT}
    assert killed(tiny.spark, tmp_path, table, when) == -signal.SIGKILL
    now = {name: commits(tmp_path / "warehouse" / name) for name in CONTENT}
    assert now["bronze/orders"] == versions["bronze/orders"] + 1, "it was killed on its way, not before"
    assert now[table] == versions[table] + (when == "after") and now["ops/ledger"] == versions["ops/ledger"]
    with job.lock(reader.load(tmp_path / "conf", "local", environ={}), LOCAL, "test"):
        assert tiny.run().problems == []
    assert content(tiny) == undisturbed
    for name in ("orders", "prices"):
        tiny.nothing_is_lost(name)


def killed(spark: Any, home: Path, table: str, when: str) -> int:
    """The exit code of a batch job that is killed at its commit to the table."""
    command = [sys.executable, __file__, str(home / "conf"), table, when]
    environ = job_environ(spark)
    with (home / "killed.log").open("w") as log:
        return subprocess.run(command, env=environ, cwd=home, stdout=log, stderr=log, start_new_session=True).returncode


def job_environ(spark: Any) -> dict[str, str]:
    """What a job needs as a program of its own, with a session like this one."""
    ours = (
        "spark.jars",
        "spark.sql.",
        "spark.databricks.",
        "spark.ui.",
        "spark.driver.host",
        "spark.driver.bindAddress",
    )
    settings = {key: value for key, value in spark.sparkContext.getConf().getAll() if key.startswith(ours)}
    options = " ".join(f"--conf {key}={value}" for key, value in settings.items())
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "lib"), str(ROOT / "tests")]),
        "PYSPARK_SUBMIT_ARGS": f"--master local[2] --driver-memory 1g {options} pyspark-shell",
    }


def test_two_jobs_at_once(start: Tiny, tmp_path: Path) -> None:
    """The second says so, at once, and touches nothing."""
    tiny = start.copy(tmp_path)
    with job.lock(reader.load(tiny.home / "conf", "local", environ={}), LOCAL, "test"):
        before = sorted(path for path in tmp_path.rglob("*"))
        command = [sys.executable, ROOT / "jobs" / "batch.py", "--conf-dir", tiny.home / "conf"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
        second = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert sorted(path for path in tmp_path.rglob("*")) == before
    assert second.returncode == job.FAILED
    assert f"{tmp_path}/warehouse: another job is writing to this warehouse: test [locked]" in second.stderr


def _child(conf_dir: str, at: str, when: str) -> None:
    def kill(table: str, *_: str) -> None:
        if table == at:
            os.killpg(0, signal.SIGKILL)

    def live(*_: str) -> None:
        pass

    around_commits(setattr, kill if when == "before" else live, kill if when == "after" else live)
    sys.argv = ["batch.py", "--conf-dir", conf_dir]
    runpy.run_path(str(ROOT / "jobs" / "batch.py"), run_name="__main__")


if __name__ == "__main__":
    _child(*sys.argv[1:])
