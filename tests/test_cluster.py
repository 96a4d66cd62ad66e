"""scripts/cluster: real daemons that come up, come back after a kill, keep their ports, and leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient, NewTopic
from database import cluster_module

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("DRIVETRAIN_HOME") or ROOT / ".drivetrain")


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return cluster_module()


def test_a_process_is_known_by_its_start(module: ModuleType, tmp_path: Path) -> None:
    cluster = module.Cluster(tmp_path, "java")
    record = tmp_path / "cluster" / "run" / "namenode.json"
    record.write_text(json.dumps({"pid": os.getpid(), "started": module._started(os.getpid())}))
    assert cluster.pid("namenode") == os.getpid()
    record.write_text(json.dumps({"pid": os.getpid(), "started": "1"}))
    assert cluster.pid("namenode") is None, "another process with that number is not ours to end"
    record.write_text(json.dumps({"pid": 2**30, "started": None}))
    assert cluster.pid("namenode") is None, "it had ended before its start could be read"
    cluster.down()
    assert cluster.pid("datanode1") is None


def test_ports_are_free_kept_and_may_be_given(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = module.Cluster(tmp_path, "java").ports
    assert len(set(first.values())) == len(first)
    monkeypatch.setenv("CLUSTER_PORT_NAMENODE", "4321")
    assert module.Cluster(tmp_path, "java").ports == {**first, "namenode": 4321}


def test_what_is_missing_is_named_with_its_remedy(
    module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = module.Cluster(tmp_path, "java")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(module.ClusterError, match="apt-get install maven"):
        cluster.provide_jars()


def test_a_daemon_that_dies_is_told_with_its_last_words(module: ModuleType, tmp_path: Path) -> None:
    cluster = module.Cluster(tmp_path, shutil.which("java") or "java")
    daemon = module.Daemon("broken", "hdfs", ["sh", "-c", "echo no disk >&2; exit 1"], lambda: False)
    cluster.start(daemon)
    with pytest.raises(module.ClusterError, match=r"broken ended at once; see .*broken.log\n.*no disk"):
        module.wait("broken", daemon.ready, 30, lambda: cluster.alive(daemon))


@pytest.fixture(scope="module")
def call() -> Iterator[Any]:
    """scripts/cluster.py with a state folder of its own, whose jars are this checkout's."""
    if not shutil.which("mvn"):
        pytest.skip("Maven is not installed: apt-get install maven")
    if not shutil.which("postgres") and not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # Not below pytest's own folder, which its next run closes to PostgreSQL's user.
    home = Path(tempfile.mkdtemp(prefix="drivetrain-daemons-"))
    home.chmod(0o755)
    (home / "venv").symlink_to(HOME / "venv")
    words = [sys.executable, ROOT / "scripts" / "cluster.py", "--home", home, "--java", shutil.which("java") or "java"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*map(str, words), *arguments], capture_output=True, text=True, timeout=300)

    yield home / "cluster", run
    run("down")
    shutil.rmtree(home, ignore_errors=True)


def serving(status: str) -> set[str]:
    return {line.split()[0] for line in status.splitlines() if line.endswith("serves")}


ALL = {
    "namenode", "datanode1", "datanode2", "resourcemanager", "nodemanager1", "nodemanager2", "nodemanager3",
    "postgres", "metastore",
}  # fmt: skip


@pytest.mark.cluster
def test_up_kill_up_down(call: Any, module: ModuleType) -> None:
    state, run = call
    done = run("up")
    assert done.returncode == 0, done.stderr
    status = run("status").stdout
    assert serving(status) == ALL
    assert float(status.splitlines()[-1].split()[-2]) < 2500, status
    ports = json.loads((state / "ports.json").read_text())
    queues = f"http://127.0.0.1:{ports['resourcemanager_http']}/ws/v1/cluster/scheduler"
    with urllib.request.urlopen(queues, timeout=10) as answer:
        found = json.load(answer)["scheduler"]["schedulerInfo"]["queues"]["queue"]
    assert {q["queueName"]: (q["capacity"], q["maxCapacity"]) for q in found} == {
        "critical": (40, 100), "adhoc": (25, 100), "default": (35, 100),
    }  # fmt: skip

    victim = json.loads((state / "run" / "datanode2.json").read_text())["pid"]
    os.kill(victim, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while "datanode2" in serving(run("status").stdout) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "datanode2" not in serving(run("status").stdout)
    assert run("up", "hdfs").returncode == 0
    assert serving(run("status").stdout) == ALL
    assert json.loads((state / "ports.json").read_text()) == ports

    pids = [json.loads(file.read_text())["pid"] for file in (state / "run").glob("*.json")]
    assert run("down").returncode == 0
    assert not [pid for pid in pids if module._started(pid)]
    assert serving(run("status").stdout) == set()


@pytest.mark.cluster
def test_env_is_for_the_shell(call: Any) -> None:
    state, run = call
    words = subprocess.run(
        ["bash", "-c", f'eval "{run("env").stdout}"; echo "$HADOOP_CONF_DIR"'], capture_output=True, text=True
    )
    assert words.stdout.strip() == str(state / "conf" / "client")
    known = "hdfs, yarn, postgres, metastore, kafka"
    assert run("up", "hdsf").stderr == f"cluster: no service is named 'hdsf'; there are {known}\n"


@pytest.mark.cluster
def test_kafka_comes_alone_and_comes_back_with_its_data(
    call: Any, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, run = call
    port = str(module._free_ports(1)[0])
    monkeypatch.setenv("CLUSTER_PORT_KAFKA", port)
    assert "KAFKA" not in run("env").stdout
    done = run("up", "kafka")
    assert done.returncode == 0, done.stderr
    assert serving(run("status").stdout) == {"kafka"}
    bootstrap = f"127.0.0.1:{port}"
    assert f"export KAFKA_BOOTSTRAP={bootstrap}\n" in run("env").stdout

    admin = AdminClient({"bootstrap.servers": bootstrap})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(30)
    producer = Producer({"bootstrap.servers": bootstrap})
    producer.produce("kept", b"still here")
    assert producer.flush(30) == 0
    os.kill(json.loads((state / "run" / "kafka.json").read_text())["pid"], signal.SIGKILL)
    assert run("up", "kafka").returncode == 0
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", "auto.offset.reset": "earliest"})
    consumer.subscribe(["kept"])
    [message] = consumer.consume(1, 60)
    assert (message.value(), message.offset()) == (b"still here", 0)
    consumer.subscribe(["nobody-made-it"])
    [failure] = consumer.consume(1, 60)
    assert failure.error().code() == KafkaError.UNKNOWN_TOPIC_OR_PART, "a misspelt topic is not made"
    consumer.close()

    assert run("down").returncode == 0
    assert serving(run("status").stdout) == set() and "KAFKA" not in run("env").stdout
