"""Jobs on YARN, before they start: what is staged, what may go, and the settings by which nodes use it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_history import commit

from drivetrain import launch, submit
from drivetrain.deadline import DYNAMIC, FIRST, MOST
from drivetrain.errors import DrivetrainError
from drivetrain.files import LOCAL
from drivetrain.hadoop import Application, Hadoop, sections
from drivetrain.history import History, Took
from drivetrain.launch import Call
from drivetrain.submit import Staged, Work

ROOT = Path(__file__).resolve().parents[1]
PLACES = Staged(*[f"hdfs://h/s/{name}" for name in ("env-1.tar.gz", "app-2.zip", "spark-3.zip", "pyspark-4.zip")])


def test_a_job_is_known_by_its_warehouse_and_its_arguments() -> None:
    one, two = Work("batch", "orders", "hdfs://h/w"), Work("batch", "leads", "hdfs://h/w")
    other = Work("batch", "orders", "hdfs://h/other")
    assert one.tag == two.tag != other.tag and len({one.exact_tag, two.exact_tag, other.exact_tag}) == 3
    assert one.exact_tag == Work("batch", "orders", "hdfs://h/w").exact_tag
    assert all(len(tag) <= 100 and tag.isascii() for tag in (one.exact_tag, submit.use_tag(PLACES.environment)))


def test_nodes_use_what_is_staged_and_the_driver_where_it_runs(tmp_path: Path) -> None:
    site = {"spark.yarn.tags": "c", "spark.executorEnv.PYTHONPATH": "/site", "spark.x": "1"}
    client = submit.yarn_settings(site, "etl", PLACES, ["a", "b"], "critical", "client", tmp_path, java=True)
    cluster = submit.yarn_settings(site, "etl", PLACES, ["a", "b"], "critical", "cluster", tmp_path, java=True)
    for made in (client, cluster):
        assert made["spark.yarn.archive"] == PLACES.spark
        assert made["spark.yarn.dist.archives"] == f"{PLACES.environment}#env,{PLACES.application}#app"
        assert (made["spark.yarn.tags"], made["spark.yarn.queue"]) == ("a,b,c", "critical")
        assert (made["spark.executorEnv.PYTHONPATH"], made["spark.x"]) == ("./app/lib:/site", "1")
        assert made["spark.executorEnv.JAVA_HOME"] == made["spark.yarn.appMasterEnv.JAVA_HOME"] == "./env/java"
        assert made["spark.pyspark.python"] == "./env/bin/python"
    assert client["spark.pyspark.driver.python"] == sys.executable
    assert client["spark.driver.extraClassPath"] == f"{tmp_path}/jars/*"
    assert cluster["spark.pyspark.driver.python"] == "./env/bin/python"
    assert "spark.driver.extraClassPath" not in cluster
    without = submit.yarn_settings({}, "etl", PLACES, [], "critical", "client", tmp_path, java=False)
    assert not [key for key in without if "JAVA_HOME" in key], "the nodes' own Java is to be used"


def test_a_driver_on_a_node_is_told_what_the_environment_says() -> None:
    environ = {"DRIVETRAIN_LANDING": "/x", "DRIVETRAIN_MAKE_FEEDS__DAYS": "3", "DRIVETRAIN_HOME": "/h", "PATH": "/bin"}
    environ["DRIVETRAIN_SPARK"] = "{spark.hadoop.x.password: s3cret}"
    call = Call("etl", "yarn", Path("/conf"), ["landing=/y", "spark.spark.hadoop.y.password=s3cret"])
    assert submit.sets_of(call, environ) == ["landing=/x", "make_feeds.days=3", "landing=/y"]


def test_a_job_with_a_deadline_gets_what_that_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its earlier runs tell; --set goes before, and conf's highest number is not passed."""
    values = {"warehouse": str(tmp_path), "deadline_minutes": {"batch": 5}}
    settings = {DYNAMIC: "true", MOST: "8", "spark.executor.cores": "2", "spark.executor.memory": "2g"}
    cluster: Any = SimpleNamespace(files=LOCAL)

    def asked(job: str, by_hand: str = "", **changes: Any) -> dict[str, str]:
        given = {**settings, **({launch.BY_HAND: by_hand} if by_hand else {})}
        return submit.in_time(cluster, Call(job, "yarn", Path("/conf")), {**values, **changes}, given)

    assert asked("batch") == settings and "no run of batch tells yet" in capsys.readouterr().err
    told = History(jobs={"batch": [Took(1 << 30, 4, 310.0, 1000.0), Took(1 << 30, 8, 185.0, 1000.0)]})
    commit(tmp_path / "ops/steps", 0, told.metadata())
    made = asked("batch")
    assert 2 < int(made[MOST]) < 8 and made[FIRST] == made[MOST] and made["spark.executor.memory"] == "2g"
    assert f"{MOST}={made[MOST]}: 1,024 MB will take" in capsys.readouterr().err
    assert asked("batch", f"spark.x,{MOST}")[MOST] == "8" and asked("batch", MOST)[FIRST] == made[FIRST]
    with pytest.raises(DrivetrainError, match="'30m' are no minutes"):
        asked("batch", deadline_minutes={"batch": "30m"})
    assert asked("etl") == asked("batch", tune=False) == settings and not capsys.readouterr().err.count("etl")


def test_logs_without_the_frame_that_yarn_puts_around_them() -> None:
    one = "LogType:{0}\nLogLastModifiedTime:x\nLogLength:4\nLogContents:\n{1}\nEnd of LogType:{0}\n*****\n\n"
    text = "Container: c on n\n===\n" + one.format("stderr", "two\nlines\n") + one.format("stdout", "LogType:x\n")
    assert sections(text) == [("stderr", "two\nlines\n"), ("stdout", "LogType:x\n")]


def application(state: str, final: str) -> Application:
    return Application("application_1", "etl", "me", "q", state, final, 1, 0.0, frozenset(), "", "it broke")


def test_the_exit_code_tells_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert submit.code(application("FINISHED", "SUCCEEDED")) == 0
    for final in ("FAILED", "KILLED"):
        assert submit.code(application("FINISHED", final)) == 1
    assert "application_1 ended FAILED: it broke" in capsys.readouterr().err


# --- On the cluster ---


@pytest.fixture(scope="module")
def client(spark: Any, cluster: Any) -> Iterator[Hadoop]:
    with cluster.client({}) as found:
        yield found


@pytest.mark.cluster
def test_archives_are_staged_once_and_go_when_nobody_uses_them(
    client: Hadoop, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"{cluster.root}/tmp/staging"
    old, used, new = (tmp_path / f"{name}.zip" for name in ("app-old", "app-used", "app-new"))
    for archive in (old, used, new):
        archive.write_bytes(archive.name.encode())
    submit.stage(client, folder, [old, used])
    before = client.files.find(f"{folder}/app-used.zip")
    capsys.readouterr()
    submit.stage(client, folder, [used])
    assert client.files.find(f"{folder}/app-used.zip") == before, "YARN refuses a resource whose time has changed"
    assert capsys.readouterr().err == "", "nothing was sent again"
    assert client.files.find(f"{folder}/app-old.zip"), "somebody may be about to submit with it"

    monkeypatch.setattr(submit, "UNUSED_SECONDS", -60)
    lives = application("RUNNING", "UNDEFINED")
    tags = frozenset({"drivetrain", submit.use_tag(f"{folder}/app-used.zip")})
    alive = Application(**{**lives.__dict__, "tags": tags})
    monkeypatch.setattr(client, "applications", lambda *_, **__: [alive])
    submit.stage(client, folder, [new])
    assert [file.path.rsplit("/", 1)[-1] for file in client.files.walk(folder)] == [
        "app-new.zip", "app-new.zip.used", "app-used.zip", "app-used.zip.used",
    ]  # fmt: skip

    client.files.remove(f"{folder}/app-used.zip")
    submit.stage(client, folder, [used])
    assert client.files.find(f"{folder}/app-used.zip"), "one that is missing is sent again"


@pytest.mark.cluster
def test_a_quota_that_is_exceeded(client: Hadoop, cluster: Any, tmp_path: Path) -> None:
    archive = tmp_path / "app-1.zip"
    archive.write_bytes(b"x" * 1000)
    path = client.jvm.org.apache.hadoop.fs.Path(f"{cluster.root}/tmp/small")
    system = path.getFileSystem(client.configuration)
    system.mkdirs(path)
    system.setQuota(path, client.jvm.Long.MAX_VALUE, 100)
    with pytest.raises(DrivetrainError, match=r"it cannot be written: .*quota"):
        submit.stage(client, f"{cluster.root}/tmp/small", [archive])


def call(cluster: Any, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **cluster.environ, **more}
    return subprocess.run([ROOT / "spark-submit.sh", *words], env=environ, capture_output=True, text=True)


@pytest.mark.cluster
def test_what_is_wrong_is_said_before_anything_is_submitted(cluster: Any) -> None:
    queue = call(cluster, "etl", "--env", "yarn", "--set", "queues.etl=critcal")
    assert queue.returncode == 2 and "critcal: YARN has no such queue" in queue.stderr
    staging = call(cluster, "etl", "--env", "yarn", "--set", "staging=hdfs:///user", HADOOP_USER_NAME="stranger")
    assert staging.returncode == 2 and "Permission denied: user=stranger" in staging.stderr
    conf = call(cluster, "etl", "--env", "yarn", "--deploy-mode", "cluster", "--set", "timezone=Mars")
    assert conf.returncode == 2 and "time zone 'Mars' is unknown" in conf.stderr
    local = call(cluster, "etl", "--env", "yarn", "--set", "warehouse=/data/warehouse")
    assert local.returncode == 2 and "'/data/warehouse' is no place that all nodes see" in local.stderr
    unknown = call(cluster, "status", "batch")
    assert unknown.returncode == 2 and "YARN knows of no batch over hdfs://" in unknown.stderr


@pytest.mark.cluster
def test_print_shows_the_command_and_sends_nothing(client: Hadoop, cluster: Any) -> None:
    staging = f"{cluster.root}/tmp/printed"
    keytab = ("spark.spark.kerberos.principal=etl@ACME", "spark.spark.kerberos.keytab=/etc/etl.keytab")
    sets = [word for text in (f"staging={staging}", *keytab) for word in ("--set", text)]
    shown = call(cluster, "etl", "--env", "yarn", "--print", *sets, "--set", "spark.spark.yarn.queue=adhoc")
    assert shown.returncode == 0, shown.stderr
    assert "spark-submit --properties-file" in shown.stdout and not client.files.is_folder(staging)
    file = shown.stdout.split("--properties-file ")[1].split(" ")[0]
    text = Path(file).read_text()
    for line in (
        "spark.yarn.queue=adhoc",
        "spark.kerberos.principal=etl@ACME",
        "spark.kerberos.keytab=/etc/etl.keytab",
    ):
        assert f"{line}\n" in text
    assert f"spark.yarn.archive={staging}/spark-" in text
