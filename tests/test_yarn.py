"""The whole ACME job on YARN, in both deploy modes and through faults: the tables of local mode, row for row."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import functions as F

from drivetrain import conf as reader
from drivetrain.anomaly import fit, flow, udf
from drivetrain.anomaly.judge import features, taken
from drivetrain.pipeline import Pipeline
from drivetrain.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
SUBMIT = str(ROOT / "spark-submit.sh")
SILVER = ("accounts", "cluster_use", "leads", "orders", "procurement", "reviews", "service_events", "stock")
GOLD = (
    "complaint_topics", "daily_sales", "lead_conversion", "segment_sales", "service_backlog", "stock_cover",
    "supplier_performance",
)  # fmt: skip
TABLES = (*[f"silver/{name}" for name in SILVER], *[f"gold/{name}" for name in GOLD])

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def feeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of ACME's feeds."""
    folder = tmp_path_factory.mktemp("acme") / "landing"
    maker = [sys.executable, str(ROOT / "scripts" / "acme_sources.py"), "--out", str(folder)]
    subprocess.run([*maker, "--days=2", "--order-lines=500", "--seed=5", "--start=2026-01-05"], check=True)
    return folder


def hashes(spark: Any, warehouse: str, unified: str = "raw_unified_data") -> dict[str, tuple[int, Any]]:
    """Rows, and the sum of their hashes, of each table."""
    found = {}
    for table in (*TABLES, unified):
        rows = spark.read.format("delta").load(f"{warehouse}/{table}")
        columns = ", ".join(f"`{name}`" for name in sorted(rows.columns))
        row = rows.selectExpr("count(1)", f"sum(cast(xxhash64({columns}) as decimal(20)))").first()
        found["unified" if table == unified else table] = tuple(row)
    return found


@pytest.fixture(scope="module")
def local(spark: Any, feeds: Path) -> Pipeline:
    """Local mode, in the tests' warm session."""
    sets = [f"landing={feeds}", f"warehouse={feeds.parent / 'warehouse'}"]
    conf = reader.load(ROOT / "conf", "local", environ={}, sets=sets)
    return Pipeline(spark, conf, "local", "batch", Progress("local"))


@pytest.fixture(scope="module")
def expected(spark: Any, local: Pipeline) -> dict[str, tuple[int, Any]]:
    """What local mode makes of the feeds."""
    assert local.transform().problems == []
    found = hashes(spark, local.warehouse)
    assert all(rows for rows, _ in found.values())
    return found


@pytest.fixture
def warehouse(spark: Any, cluster: Any, feeds: Path, request: pytest.FixtureRequest) -> str:
    """A warehouse on HDFS of the test's own; its landing folder holds the feeds."""
    folder = f"{cluster.root}/drivetrain/{request.node.name}"
    upload(spark, str(feeds), f"{folder}/landing")
    return folder


def upload(spark: Any, folder: str, path: str) -> None:
    there = hadoop_path(spark, path)
    system = there.getFileSystem(spark._jsc.hadoopConfiguration())
    system.mkdirs(there.getParent())
    system.copyFromLocalFile(hadoop_path(spark, folder), there)


class Job:
    """A job on YARN, and what the cluster knows of it."""

    def __init__(self, cluster: Any, folder: str, log: Path, name: str, *words: str) -> None:
        self.cluster, self.log = cluster, log
        sets = {
            "landing": f"{folder}/landing", "warehouse": f"{folder}/warehouse", "make_feeds": "null",
            "spark.spark.driver.memory": "1g", "spark.spark.executor.memory": "1g",
            "spark.spark.dynamicAllocation.maxExecutors": "2", "spark.spark.sql.shuffle.partitions": "2",
        }  # fmt: skip
        given = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [SUBMIT, name, "--env", "yarn", *given, *words], stdout=file, stderr=file,
                env={**os.environ, **cluster.environ}, start_new_session=True,
            )  # fmt: skip

    def yarn(self, path: str) -> Any:
        address = f"http://127.0.0.1:{self.cluster.port('resourcemanager_http')}/ws/v1/cluster{path}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return json.load(answer)

    @property
    def app(self) -> dict[str, Any]:
        """The newest application that runs."""
        found = (self.yarn("/apps?states=RUNNING")["apps"] or {}).get("app", [])
        return max(found, key=lambda app: app["startedTime"], default={})

    def processes(self, kind: str) -> list[int]:
        """Java processes of the application's containers that run that class."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if words[0].endswith(b"java") and any(kind.encode() in word for word in words):
                found.append(int(entry.name))
        return found

    def until(self, what: str, seen: Callable[[], Any], seconds: float = 400) -> Any:
        """What ``seen`` sees as soon as it does."""
        deadline = time.monotonic() + seconds
        while not (found := seen()):
            assert self.process.poll() is None, f"ended before {what}: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"not seen: {what}: {self.log.read_text()[-3000:]}"
            time.sleep(0.3)
        return found

    def end(self) -> str:
        """What it wrote; it must have ended well."""
        code = self.process.wait(900)
        text = self.log.read_text()
        assert code == 0, text[-5000:]
        return text


@pytest.fixture
def started(cluster: Any, warehouse: str, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def start(*words: str, name: str = "etl") -> Job:
        jobs.append(Job(cluster, warehouse, tmp_path / f"log{len(jobs)}", name, *words))
        return jobs[-1]

    yield start
    for job in jobs:
        if job.process.poll() is None:
            os.killpg(job.process.pid, signal.SIGKILL)


def hadoop_path(spark: Any, path: str) -> Any:
    return spark._jvm.org.apache.hadoop.fs.Path(path)


def has(spark: Any, path: str) -> bool:
    there = hadoop_path(spark, path)
    return bool(there.getFileSystem(spark._jsc.hadoopConfiguration()).exists(there))


@pytest.mark.skipif(not os.environ.get("LONG"), reason="it takes six minutes: LONG=1 runs it")
def test_client_mode_through_the_loss_of_an_executor_and_of_nodes(
    spark: Any, cluster: Any, warehouse: str, started: Callable[..., Job], expected: dict[str, tuple[int, Any]]
) -> None:
    job = started("--set", "database_prefix=etl_")
    job.until("silver", lambda: has(spark, f"{warehouse}/warehouse/silver/accounts/_delta_log"))
    app = job.app
    assert app["queue"] == "root.critical" and app["name"] == "drivetrain etl"
    sent = hadoop_path(spark, f"{cluster.root}/user/{app['user']}/.sparkStaging/{app['id']}")
    size = sent.getFileSystem(spark._jsc.hadoopConfiguration()).getContentSummary(sent).getLength()
    assert 0 < size < 5 << 20, "all that is large is staged"
    victim = job.until("an executor", lambda: job.processes("YarnCoarseGrainedExecutorBackend"))[0]
    os.kill(victim, signal.SIGKILL)
    others = job.until(
        "another executor", lambda: [p for p in job.processes("YarnCoarseGrainedExecutorBackend") if p != victim]
    )
    node = Path(f"/proc/{others[0]}/cwd").resolve()
    name = next(part for part in node.parts if part.startswith("nodemanager"))
    cluster.kill(name)
    cluster.kill("datanode2")
    try:
        job.until("the lost node", lambda: job.yarn("/nodes?states=LOST")["nodes"], 120)
        job.end()
    finally:
        cluster.call("up", "hdfs", "yarn")
    assert hashes(spark, f"{warehouse}/warehouse") == expected


def test_cluster_mode_through_the_death_of_the_driver(
    spark: Any, cluster: Any, warehouse: str, started: Callable[..., Job], expected: dict[str, tuple[int, Any]]
) -> None:
    """YARN starts the driver again, which goes on; who submits the same in the meantime waits for the same."""
    names = ("--set", "database_prefix=again_", "--set", "unified_table=unified_again")  # a metastore has a name once
    first = started("--deploy-mode", "cluster", *names)
    first.until("silver", lambda: has(spark, f"{warehouse}/warehouse/silver/orders/_delta_log"))
    app = first.app
    (driver,) = first.processes("org.apache.spark.deploy.yarn.ApplicationMaster")
    os.kill(driver, signal.SIGKILL)
    second = started("--deploy-mode", "cluster", *names)
    second.until("attached", lambda: f"runs already, as {app['id']}" in second.log.read_text())
    first.until(
        "the second attempt",
        lambda: len(first.yarn(f"/apps/{app['id']}/appattempts")["appAttempts"]["appAttempt"]) == 2,
    )
    assert "Published:" in first.end() and "Published:" in second.end()
    assert hashes(spark, f"{warehouse}/warehouse", "unified_again") == expected
    assert [a["id"] for a in first.yarn("/apps?states=FINISHED")["apps"]["app"]].count(app["id"]) == 1


OTHER = """
import sys
from pyspark.sql import SparkSession
builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").config("spark.jars", sys.argv[1])
builder = builder.config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
builder = builder.config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
spark = builder.enableHiveSupport().getOrCreate()
for table in ("default.unified_again", "again_gold.daily_sales", "again_silver.orders"):
    print(table, spark.table(table).count())
"""


def test_another_application_reads_the_tables_by_name(
    cluster: Any, expected: dict[str, tuple[int, Any]], tmp_path: Path
) -> None:
    """With nothing of ours on its path but Delta; the tables are those of the test above."""
    jars = Path(os.environ.get("DRIVETRAIN_HOME") or ROOT / ".drivetrain") / "jars"
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYSPARK_SUBMIT_ARGS")}
    delta = ",".join(str(jar) for jar in jars.glob("delta-*.jar"))
    done = subprocess.run(
        [sys.executable, "-c", OTHER, delta], env={**environ, **cluster.environ}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    counts = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    wanted = {"default.unified_again": "unified", "again_gold.daily_sales": "gold/daily_sales",
              "again_silver.orders": "silver/orders"}  # fmt: skip
    assert counts == {name: str(expected[table][0]) for name, table in wanted.items()}, done.stderr[-3000:]


def test_a_model_judges_on_executors_and_without_its_metastore_a_job_says_so_and_writes_its_tables(
    spark: Any, cluster: Any, warehouse: str, started: Callable[..., Job], expected: dict[str, tuple[int, Any]],
    local: Pipeline,
) -> None:  # fmt: skip
    """The model is local mode's, and flags what it flags there, with the same scores."""
    dataset, registry = local.conf.datasets["orders"], local.judges.registry
    fit.fit(local, dataset, "a test")
    assert fit.recut(local, dataset, 1, 0.55, "to flag many").version == 2
    registry.promote("orders", 2, "advisory", "local", "a test")
    fitted = local.judges.fitted(dataset, 2)
    score = udf.scorer(spark, fitted)(*features(dataset).values())
    rows = spark.read.format("delta").load(f"{local.warehouse}/silver/orders").where(taken(dataset))
    scored = rows.select(flow.open_key(dataset), score.alias("score")).where(F.col("score") > fitted.threshold)
    flagged = sorted(map(tuple, scored.collect()))
    upload(spark, f"{local.warehouse}/models", f"{warehouse}/warehouse/models")
    cluster.kill("metastore")
    try:
        job = started("orders", name="batch")
        assert job.process.wait(600) == 1
        assert "✗ catalog: " in (text := job.log.read_text()) and "metastore" in text.lower(), text[-3000:]
        delta = spark.read.format("delta")
        silver, told = (delta.load(f"{warehouse}/warehouse/{name}") for name in ("silver/orders", "ops/anomalies"))
        assert silver.count() == expected["silver/orders"][0]
        assert len(flagged) > 5 and sorted(map(tuple, told.select("key", "score").collect())) == flagged
    finally:
        cluster.call("up", "metastore")
