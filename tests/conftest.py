"""One Spark session for all tests, and a small pipeline to run in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from broker import Broker
from database import cluster_module
from hypothesis import HealthCheck, settings
from py4j import java_gateway, protocol
from xdist.scheduler import LoadScopeScheduling

from drivetrain import hadoop, launch
from drivetrain.hadoop import Hadoop

# How busy the machine is says nothing of the code.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")

ROOT = Path(__file__).resolve().parents[1]
STATE = Path(os.environ.get("DRIVETRAIN_HOME", ROOT / ".drivetrain"))


# Modules whose tests ask for HDFS and YARN, a broker or a database.
DAEMONS = {f"test_{name}" for name in (
    "cluster", "concurrent", "hadoop", "jdbc", "kafka", "kills", "real_streams", "speed", "submit", "yarn",
)}  # fmt: skip

# Tables of a few rows: compiling costs more than it saves. What tests start as processes runs as it is delivered.
INTERPRETED = {"spark.sql.codegen.wholeStage": "false", "spark.sql.codegen.factoryMode": "NO_CODEGEN"}


class Daemons:
    """A cluster that scripts/cluster.py keeps in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home, self.state = home, home / "cluster"

    def call(self, *words: str) -> str:
        program = [sys.executable, ROOT / "scripts" / "cluster.py", "--home", self.home, "--java", shutil.which("java")]
        done = subprocess.run([*map(str, program), *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def environ(self) -> dict[str, str]:
        return {"HADOOP_CONF_DIR": str(self.state / "conf" / "client")}

    def port(self, name: str) -> int:
        return int(json.loads((self.state / "ports.json").read_text())[name])

    @property
    def root(self) -> str:
        return f"hdfs://127.0.0.1:{self.port('namenode')}"

    @contextmanager
    def client(self, settings: Mapping[str, str]) -> Iterator[Hadoop]:
        """As the launcher meets it, which has no Spark: PySpark looks for any JVM's errors in its own."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environ.items():
                patch.setenv(name, value)
            patch.setattr(java_gateway, "get_return_value", protocol.get_return_value)
            with hadoop.connected(launch.spark_home() / "jars", settings) as found:
                yield found

    def kill(self, name: str) -> None:
        """kill -9; returns when the process is gone."""
        pid = json.loads((self.state / "run" / f"{name}.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]:
            time.sleep(0.05)


class Halves(LoadScopeScheduling):
    """For two processes (scripts/test): one starts the daemons, and waits for them a lot, the other does the rest."""

    def _split_scope(self, nodeid: str) -> str:
        return "daemons" if Path(nodeid.split("::")[0]).stem in DAEMONS else "here"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return Halves(config, log)


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """local[2], 2 shuffle partitions, no UI, Delta from the prepared jars."""
    from pyspark.sql import SparkSession

    from drivetrain.session import COSTS, FIXED

    jars = sorted((STATE / "jars").glob("*.jar"))
    assert jars, "no Delta jars: run the tests by scripts/test, which prepares them"
    home = tmp_path_factory.mktemp("spark")
    builder = SparkSession.builder.master("local[2]").appName("tests").config("spark.ui.enabled", "false")
    settings = {
        "spark.jars": ",".join(map(str, jars)),
        "spark.driver.memory": "4g",
        **INTERPRETED,
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.databricks.delta.snapshotPartitions": "2",
        # Each test has tables of its own. Left to itself Delta keeps those of the last hour in memory.
        "spark.databricks.delta.delta.log.cacheSize": "100",
        "spark.databricks.delta.delta.log.cacheRetentionMinutes": "5",
        "spark.sql.warehouse.dir": str(home / "hive"),
        "spark.ui.showConsoleProgress": "false",
    }
    for key, value in {**settings, **FIXED, **COSTS}.items():
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="module")
def compiled(spark: Any) -> Iterator[None]:
    """For a module whose tables have more than a few rows."""
    for key, value in zip(INTERPRETED, ("true", "FALLBACK"), strict=True):
        spark.conf.set(key, value)
    yield
    for key, value in INTERPRETED.items():
        spark.conf.set(key, value)


@pytest.fixture
def run_pipeline(spark: object) -> Callable[..., object]:
    """run_pipeline(conf_dir, *datasets) -> Outcome of one batch run over that conf folder."""
    from drivetrain import conf as reader
    from drivetrain import job
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress

    def run(conf_dir: Path, *datasets: str) -> object:
        conf, run_id = reader.load(conf_dir, "local", environ={}), job.run_id()
        return Pipeline(spark, conf, run_id, "batch", Progress(run_id)).transform(datasets)  # type: ignore[arg-type]

    return run


@pytest.fixture(scope="session")
def cluster() -> Iterator[Daemons]:
    """HDFS, YARN and the metastore, for all tests that need them."""
    for program, package in (("mvn", "maven"), ("psql", "postgresql")):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed: apt-get install {package}")
    # Not below pytest's own folder, which its next run closes to PostgreSQL's user.
    home = Path(tempfile.mkdtemp(prefix="drivetrain-daemons-"))
    home.chmod(0o755)
    (home / "cluster").mkdir()
    cluster_module().Cluster(STATE, "java").provide_jars()
    for part in ("venv", "jars", "cluster/jars"):
        (home / part).symlink_to(STATE / part)
    daemons = Daemons(home)
    try:
        daemons.call("up")
        yield daemons
    finally:
        daemons.call("down")
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A Kafka broker for all tests that need one; each makes topics of its own."""
    if not shutil.which("mvn"):
        pytest.skip("mvn is not installed: apt-get install maven")
    home = Path(tempfile.mkdtemp(prefix="drivetrain-broker-"))
    made = Broker(home, shutil.which("java") or "java")
    try:
        made.up()
        yield made
    finally:
        made.down()
        shutil.rmtree(home, ignore_errors=True)
