"""One file-system layer: the same calls give the same answers here and on HDFS (there in tests/cluster)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from drivetrain.files import LOCAL, files, is_remote, plain


@pytest.mark.parametrize(
    ("path", "without", "remote"),
    [
        ("/a//b/", "/a/b", False),
        ("file:/a/b", "/a/b", False),
        ("file:///a/b", "/a/b", False),
        ("hdfs://nn.example:8020/a/b/", "/a/b", True),
        ("hdfs:///a/b", "/a/b", True),
        ("viewfs://one/a", "/a", True),
        ("/odd:name/x", "/odd:name/x", False),
    ],
)
def test_paths(path: str, without: str, remote: bool) -> None:
    assert (plain(path), is_remote(path)) == (without, remote)


def test_a_client_is_started_for_remote_paths_only() -> None:
    asked = []
    assert files("/here", lambda: asked.append(1)) is LOCAL  # type: ignore[arg-type, return-value, func-returns-value]
    files("hdfs:///there", lambda: asked.append(2))  # type: ignore[arg-type, return-value, func-returns-value]
    assert asked == [2]


def test_put_find_and_remove(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("one")
    target = f"file:{tmp_path}/deep/er/target"
    assert LOCAL.find(target) is None
    LOCAL.put(source, target)
    source.write_text("other")
    LOCAL.put(source, target, replace=False)
    with LOCAL.copy(target) as copy:
        assert copy.read_text() == "one"
    LOCAL.put(source, target)
    assert (tmp_path / "deep" / "er" / "target").read_text() == "other"
    assert [file.size for file in LOCAL.walk(str(tmp_path / "deep"))] == [5], "no draft is left"
    LOCAL.remove(target)
    LOCAL.remove(target)
    LOCAL.remove(str(tmp_path / "deep"))
    assert not LOCAL.is_folder(str(tmp_path / "deep"))


def test_a_folder_is_put_whole(tmp_path: Path) -> None:
    (tmp_path / "from" / "sub").mkdir(parents=True)
    (tmp_path / "from" / "sub" / "a.csv").write_text("1")
    LOCAL.put(tmp_path / "from", str(tmp_path / "to"))
    assert [file.path for file in LOCAL.walk(str(tmp_path / "to"))] == [str(tmp_path / "to" / "sub" / "a.csv")]


def test_the_lock_says_who_has_it_and_goes_with_the_process(tmp_path: Path) -> None:
    code = (
        "import sys; from drivetrain.files import LOCAL\n"
        f"with LOCAL.lock({str(tmp_path)!r}, 'local-1'): print('held', flush=True); sys.stdin.read()"
    )
    environ = {**os.environ, "PYTHONPATH": "lib"}
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    )
    assert other.stdout and other.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError) as error, LOCAL.lock(str(tmp_path), "mine"):
        pytest.fail("two have the lock")
    assert error.value.strerror == "local-1"
    other.kill()
    other.wait()
    with LOCAL.lock(str(tmp_path), "mine"):
        pass
