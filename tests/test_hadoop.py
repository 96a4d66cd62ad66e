"""HDFS and YARN as the launcher meets them, on real daemons; each failure is made to happen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from database import cluster_module

from drivetrain import hadoop, launch
from drivetrain.errors import DrivetrainError
from drivetrain.files import LOCAL
from drivetrain.hadoop import Hadoop

pytestmark = pytest.mark.cluster
JARS = launch.spark_home() / "jars"
QUARTER_MB = 3 * cluster_module().NODE_MEMORY_MB // 4  # of the three nodes' memory, which the queue adhoc is given


@pytest.fixture(scope="module")
def client(spark: Any, cluster: Any) -> Iterator[Hadoop]:
    with cluster.client({"spark.hadoop.dfs.client.retry.max.attempts": "1"}) as found:
        yield found


def test_files_on_hdfs(client: Hadoop, cluster: Any, tmp_path: Path) -> None:
    """The same calls as in test_files give the same answers."""
    files, root = client.files, f"{cluster.root}/tmp/files"
    source = tmp_path / "a b+%.csv"
    source.write_bytes(b"one")
    target = f"{root}/deep/a b+%.csv"
    assert files.find(target) is None and not files.is_folder(root)
    files.put(source, target)
    source.write_bytes(b"other")
    files.put(source, target, replace=False)
    with files.copy(target) as copy:
        assert copy.read_bytes() == b"one"
    before = files.find(target)
    files.put(source, target)
    now = files.find(target)
    assert before and now and (before.size, now.size) == (3, 5) and now.modified >= before.modified
    files.put(source, f"{root}/deep/_hidden")
    assert [file.path for file in files.walk(root)] == [target]
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "x.csv").write_text("1")
    files.put(folder, f"{root}/folder")
    assert [file.path for file in files.walk(f"{root}/folder")] == [f"{root}/folder/sub/x.csv"]
    files.remove(root)
    files.remove(root)
    assert not files.is_folder(root)
    with pytest.raises(FileNotFoundError), files.copy(target):
        pass


def test_permissions_are_told_and_noticed(client: Hadoop, cluster: Any, tmp_path: Path) -> None:
    files, folder = client.files, f"{cluster.root}/tmp/closed"
    (tmp_path / "x").write_text("1")
    files.put(tmp_path / "x", f"{folder}/x")
    path = client.jvm.org.apache.hadoop.fs.Path(f"{folder}/x")
    system = path.getFileSystem(client.configuration)
    before = files.find(f"{folder}/x")
    allow = client.jvm.org.apache.hadoop.fs.permission.FsPermission
    system.setPermission(path, allow("000"))
    system.setPermission(path.getParent(), allow("700"))
    after = files.find(f"{folder}/x")
    assert before and after and before.modified == after.modified and before.touched != after.touched
    environ = {**os.environ, **cluster.environ, "HADOOP_USER_NAME": "stranger", "PYTHONPATH": "lib"}
    code = f"""
from drivetrain import hadoop, launch
from pathlib import Path
with hadoop.connected(launch.spark_home() / "jars", {{}}) as client:
    print([(f.size, f.path) for f in client.files.walk({folder!r})])
    try:
        client.files.put(Path({str(tmp_path / "x")!r}), {folder + "/y"!r})
    except PermissionError as error:
        print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    listed, refused = done.stdout.splitlines()
    assert listed == str([(-1, folder)]) and refused.startswith("Permission denied: user=stranger"), done.stderr


HOLD = """
import sys
from drivetrain import hadoop, launch
with hadoop.connected(launch.spark_home() / "jars", {}) as client:
    with client.files.lock(sys.argv[1], sys.argv[2]):
        print("held", flush=True)
        sys.stdin.read()
"""


def test_the_lock_on_hdfs(client: Hadoop, cluster: Any) -> None:
    """One has it; who else comes is told who; it is free again afterwards, and at once for the same holder's next
    attempt after a kill -9."""
    folder = f"{cluster.root}/tmp/locked"
    environ = {**os.environ, **cluster.environ, "PYTHONPATH": "lib"}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder, "application_1"], env=environ,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert other.stdout and other.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError) as error, client.files.lock(folder, "application_2"):
        pytest.fail("two have the lock")
    assert error.value.strerror == "application_1"
    os.killpg(other.pid, 9)  # with its Java process
    other.wait()
    with pytest.raises(BlockingIOError), client.files.lock(folder, "application_2"):
        pytest.fail("HDFS cannot know yet that the holder is gone")
    with client.files.lock(folder, "application_1"):
        pass
    with client.files.lock(folder, "application_2"):
        pass


def test_safe_mode_is_waited_for_and_then_told(client: Hadoop, capsys: pytest.CaptureFixture[str]) -> None:
    action = client.jvm.org.apache.hadoop.hdfs.protocol.HdfsConstants.SafeModeAction
    system = client.jvm.org.apache.hadoop.fs.FileSystem.get(client.configuration)
    assert system.setSafeMode(action.SAFEMODE_ENTER)
    try:
        with pytest.raises(DrivetrainError, match="has been in safe mode for more than 2 s"):
            client.await_writable(2)
        leaving = threading.Timer(2, lambda: system.setSafeMode(action.SAFEMODE_LEAVE))
        leaving.start()
        client.await_writable(30)
        assert "HDFS is in safe mode; waiting up to 30 s" in capsys.readouterr().err
    finally:
        system.setSafeMode(action.SAFEMODE_LEAVE)


def test_queues(client: Hadoop) -> None:
    assert client.check_queue("critical") is None and client.check_queue("root.adhoc") is None
    with pytest.raises(DrivetrainError, match=r"YARN has no such queue(.|\n)*adhoc, critical, default"):
        client.check_queue("critcal")


def test_a_full_queue_is_told(client: Hadoop, cluster: Any) -> None:
    """One container with all that a queue may have, by YARN's REST: what is submitted behind it would wait."""
    api = f"http://127.0.0.1:{cluster.port('resourcemanager_http')}/ws/v1/cluster"

    def ask(path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        data = None if method == "GET" else json.dumps(body or {}).encode()
        asked = urllib.request.Request(f"{api}{path}", data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(asked, timeout=20) as answer:
            said = answer.read()  # a change of the queues is answered by a sentence
        return json.loads(said) if said.startswith(b"{") else None

    def until(seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not seen():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    ask("/scheduler-conf", {"update-queue": [limited(25)]}, "PUT")
    new = ask("/apps/new-application")["application-id"]
    try:
        ask("/apps", {
            "application-id": new, "application-name": "fills the queue", "queue": "adhoc", "max-app-attempts": 1,
            "am-container-spec": {"commands": {"command": "sleep 300"}},
            "resource": {"memory": QUARTER_MB, "vCores": 1},
        })  # fmt: skip
        until(lambda: ask(f"/apps/{new}", method="GET")["app"]["allocatedMB"] >= QUARTER_MB)
        assert client.check_queue("adhoc") == "queue adhoc is full: the job waits there until others end"
        assert client.check_queue("critical") is None
    finally:
        ask(f"/apps/{new}/state", {"state": "KILLED"}, "PUT")
        ask("/scheduler-conf", {"update-queue": [limited(100)]}, "PUT")
        until(lambda: client.check_queue("adhoc") is None)


def limited(percent: int) -> dict[str, Any]:
    """The queue adhoc, with that share of the cluster at the most."""
    entry = [{"key": "maximum-capacity", "value": str(percent)}]
    return {"queue-name": "root.adhoc", "params": {"entry": entry}}


def test_a_manager_that_is_down(client: Hadoop, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.kill("resourcemanager")
    try:
        for name, value in cluster.environ.items():
            monkeypatch.setenv(name, value)
        with hadoop.connected(JARS, {}) as found, pytest.raises(DrivetrainError) as error:
            found.applications("drivetrain")
        problem = error.value.problems[0]
        assert problem.code == "resourcemanager" and f":{cluster.port('resourcemanager')}" in problem.where
        assert "HADOOP_CONF_DIR" in problem.fix
    finally:
        cluster.call("up", "yarn")
    assert client.applications("drivetrain") == []


def test_without_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DrivetrainError, match="neither HADOOP_CONF_DIR nor"), hadoop.connected(JARS, {}):
        pass


def test_local_paths_need_no_cluster() -> None:
    assert LOCAL.find("/") is not None
