"""The launcher: arguments, jobs, and the Spark settings that it writes down."""

from __future__ import annotations

import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from drivetrain import launch
from drivetrain.errors import DrivetrainError
from drivetrain.settings import layer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "etl.py").write_text('"""Loads everything.\n\nMore."""\nraise SystemExit("must not run")\n')
    (tmp_path / "jobs" / "assess.py").write_text("x = 1\n")
    (tmp_path / "jobs" / "bad.py").write_text("def\n")
    (tmp_path / "jobs" / "_common.py").write_text('"""Not a job."""\n')
    return tmp_path


def read_java_properties(text: str) -> dict[str, str]:
    """As java.util.Properties reads what we write: escapes, and the first = or : ends the key."""
    result = {}
    for line in text.splitlines():
        key, value = re.split("[=:]", line, maxsplit=1)
        result[key], result[key] = value, unescape(value)
        result[unescape(key)] = result.pop(key)
    return result


def unescape(text: str) -> str:
    units = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), text)
    return units.encode("utf-16", "surrogatepass").decode("utf-16")


def test_help_lists_jobs_without_running_them(root: Path) -> None:
    listed = launch.help_text(root).split("jobs:\n")[1].split("\n\n")[0]
    assert listed.splitlines()[::2] == ["  assess  ", "  etl     Loads everything."]
    assert listed.splitlines()[1].startswith("  bad     (cannot be read: ")


def test_an_unknown_job_gets_the_nearest_name(root: Path) -> None:
    with pytest.raises(DrivetrainError, match="did you mean assess"):
        launch.find_job(root, "asses")
    with pytest.raises(DrivetrainError, match="--help lists"):
        launch.find_job(root, "zzzzzz")
    with pytest.raises(DrivetrainError):
        launch.find_job(root, "_common")


def test_own_options_are_told_from_the_jobs(root: Path) -> None:
    words = ["etl", "--days", "3", "--env", "yarn", "--set", "a=1", "x", "--set=b=2", "--print", "--", "--env", "mine"]
    call = launch.parse(words, root)
    assert call == launch.Call(
        "etl", "yarn", root / "conf", ["a=1", "b=2"], None, True, None, ["--days", "3", "x", "--env", "mine"]
    )


def test_verbs_ask_after_a_job_on_yarn(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = launch.parse(["wait", "etl", "--set", "a=1", "orders"], root)
    assert (call.verb, call.job, call.env, call.sets, call.rest) == ("wait", "etl", "yarn", ["a=1"], ["orders"])
    assert launch.parse(["kill", "etl", "--env", "local"], root).env == "local"
    with pytest.raises(SystemExit):
        launch.parse(["logs"], root)
    assert "logs of which job? there are: assess, bad, etl" in capsys.readouterr().err


def test_where_a_driver_runs_is_asked_of_yarn_only(root: Path) -> None:
    assert launch.parse(["etl", "--deploy-mode", "cluster"], root).mode == "cluster"
    with pytest.raises(SystemExit):
        launch.parse(["etl", "--deploy-mode", "moon"], root)
    (root / "conf").mkdir()
    for name in ("base", "local"):
        (root / "conf" / f"{name}.yaml").write_text("spark:\n  spark.master: local[2]\n")
    for words in (["etl", "--deploy-mode", "cluster"], ["status", "etl", "--env", "local"]):
        with pytest.raises(DrivetrainError, match="is for jobs on YARN"):
            launch.run([*words, "--conf-dir", str(root / "conf")], root)


def test_own_options_may_come_first_and_are_not_abbreviated(root: Path) -> None:
    call = launch.parse(["--env", "yarn", "etl", "--conf", "x"], root)
    assert (call.job, call.env, call.rest) == ("etl", "yarn", ["--conf", "x"])


def test_the_conf_folder_is_made_absolute(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    assert launch.parse(["etl", "--conf-dir", "my conf"], root).conf_dir == root / "my conf"


def test_a_call_without_a_job(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        launch.parse(["--days", "3"], root)
    assert caught.value.code == 2
    assert "must be a job; there are: assess, bad, etl" in capsys.readouterr().err


def test_properties_survive_javas_reading() -> None:
    settings = {
        "spark.a": r"C:\x = y: #1 !",
        "spark.b": "größer 🚗\nnext\ttab",
        "spark.odd key=:": "",
        "spark.c": "1,2",
    }
    assert read_java_properties(launch.render(settings)) == settings
    assert launch.render(settings).isascii()


def test_values_as_spark_reads_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PASSWORD_OF_TEST", "s3cret")
    (tmp_path / "key").write_text("k3y\n")
    spark = {
        "spark.ui.enabled": False,
        "spark.executor.cores": 2,
        "spark.memory.fraction": 0.5,
        "spark.master": None,
        "spark.hadoop.x.password": "env:PASSWORD_OF_TEST",
        "spark.hadoop.fs.s3a.secret.key": f"file:{tmp_path}/key",
        "spark.eventLog.dir": "file:/tmp/events",
        "spark.kerberos.keytab": "file:/etc/x.keytab",
        "spark.driver.extraJavaOptions": "-Dmine=1",
    }
    assert launch.properties(spark, "-Dours=1") == {
        "spark.ui.enabled": "false",
        "spark.executor.cores": "2",
        "spark.memory.fraction": "0.5",
        "spark.hadoop.x.password": "s3cret",
        "spark.hadoop.fs.s3a.secret.key": "k3y",
        "spark.eventLog.dir": "file:/tmp/events",
        "spark.kerberos.keytab": "file:/etc/x.keytab",
        "spark.driver.extraJavaOptions": "-Dours=1 -Dmine=1",
    }


def test_all_missing_secrets_are_named_at_once() -> None:
    with pytest.raises(DrivetrainError) as caught:
        launch.properties({"spark.a": "env:NOT_SET_A", "spark.b.token": "file:/nonexistent"}, "")
    assert [problem.where for problem in caught.value.problems] == ["env:NOT_SET_A", "file:/nonexistent"]


def test_the_properties_file_is_private_named_by_content_and_old_ones_go(tmp_path: Path) -> None:
    old = tmp_path / "old.properties"
    old.write_text("spark.x.password=s3cret\n")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    first, again, other = (launch.write_properties(tmp_path, text) for text in ("a=1\n", "a=1\n", "a=2\n"))
    assert first == again != other
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == sorted({first, other})


def test_java_options_quote_paths(tmp_path: Path) -> None:
    root = tmp_path / "a b"
    call = launch.Call("etl", "local", root / "my conf")
    assert launch.java_options(call, root, root / "home") == (
        f'"-Dlog4j2.configurationFile=file://{tmp_path}/a%20b/conf/log4j2.properties" '
        f'"-Dderby.stream.error.file={tmp_path}/a b/home/run/derby.log"'
    )
    call.conf_dir.mkdir(parents=True)
    (call.conf_dir / "log4j2.properties").touch()
    assert "a%20b/my%20conf/log4j2.properties" in launch.java_options(call, root, root)


def test_what_a_call_sets_is_told_from_what_conf_says(tmp_path: Path) -> None:
    """By name, and never the value, which may be a secret."""
    (tmp_path / "base.yaml").write_text("spark: {spark.a: 1, spark.b: 1}")
    (tmp_path / "local.yaml").write_text("{}")

    def named(sets: list[str], **environ: str) -> Any:
        layered = layer(tmp_path, "local", environ, sets)
        return launch.with_hands(layered.values.get("spark") or {}, layered.origin).get(launch.BY_HAND)

    assert named([]) is None
    assert named(["spark.spark.b=2"], DRIVETRAIN_SPARK="{spark.c: secret}") == "spark.b,spark.c"
    assert named(["spark=null"]) is None
