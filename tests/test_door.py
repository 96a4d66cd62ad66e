"""spark-submit.sh from outside: what it needs, what it prepares, what it says when something is missing.

Most tests run a copy of the project against stand-ins for uv and java, found on a PATH that holds nothing else of use.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("DRIVETRAIN_HOME") or ROOT / ".drivetrain")
TOOLS = (
    "bash",
    "env",
    "dirname",
    "readlink",
    "cat",
    "sha256sum",
    "sed",
    "mkdir",
    "sleep",
    "touch",
    "chmod",
    "basename",
)

FAKE_UV = """#!/bin/bash
echo "$*" >>"$DIARY"
case "$1 ${2-}" in
  --version*) echo uv 1.0 ;;
  venv*)
    mkdir -p "${@: -1}/bin" "${@: -1}/lib/python3/site-packages/pyspark/jars"
    touch "${@: -1}/lib/python3/site-packages/pyspark/jars/ivy-1.jar"
    printf '#!/bin/bash\\nexec "$REAL_PYTHON" "$@"\\n' >"${@: -1}/bin/python"
    chmod +x "${@: -1}/bin/python" ;;
  pip*) sleep "${SLOW-0}" ;;
esac
"""
FAKE_JAVA = """#!/bin/bash
if [[ $1 == -version ]]; then
  echo "asked for version" >>"$DIARY"
  echo "openjdk version \\"${JAVA_IS-17.0.1}\\" x" >&2
  exit
fi
echo "ivy" >>"$DIARY"
printf '%s' "${CONTENT-right}" >jars/thing-1.0.jar
"""
PYTHON_LINK = '#!/bin/bash\necho $$ >"$DIARY.pid"\nexec "$REAL_PYTHON" "$@"\n'


@dataclass
class Copy:
    """A copy of the project with its own PATH, HOME and diary of what the stand-ins were asked."""

    root: Path
    bin: Path
    env: dict[str, str]

    def start(self, *words: str, script: Path | None = None, **env: str) -> subprocess.Popen[str]:
        command = [str(script or self.root / "spark-submit.sh"), *words]
        pipe = subprocess.PIPE
        where, merged = self.bin, {**self.env, **env}
        return subprocess.Popen(
            command, stdout=pipe, stderr=pipe, text=True, cwd=where, env=merged, start_new_session=True
        )

    def call(self, *words: str, script: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*words, script=script, **env)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def program(self, name: str, text: str) -> None:
        (self.bin / name).unlink(missing_ok=True)
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def diary(self, word: str) -> int:
        diary = Path(self.env["DIARY"])
        return sum(line.startswith(word) for line in diary.read_text().splitlines()) if diary.exists() else 0

    @property
    def stamp(self) -> Path:
        return self.root / ".drivetrain" / "stamp"


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    root = tmp_path / "a project" / "with blanks"
    for part in ("scripts", "lib", "conf", "locks", "jobs"):
        (root / part).mkdir(parents=True)
    for file in ("spark-submit.sh", "scripts/env.sh", "scripts/prepare.py"):
        shutil.copy(ROOT / file, root / file)
    shutil.copytree(ROOT / "lib" / "drivetrain", root / "lib" / "drivetrain", dirs_exist_ok=True)
    for lock in ("build", "run", "dev"):
        (root / "locks" / f"{lock}.txt").write_text(f"{lock}==1\n")
    (root / "locks" / "jars.txt").write_text(f"# jars\ng.h:thing:1.0 {hashlib.sha256(b'right').hexdigest()}\n")
    (root / "conf" / "base.yaml").write_text("company: A\nspark: {spark.master: 'local[1]'}\n")
    (root / "conf" / "local.yaml").touch()
    (root / "jobs" / "count.py").write_text(
        '"""Counts."""\nimport argparse\nparser = argparse.ArgumentParser()\n'
        'parser.add_subparsers().add_parser("up")\nparser.parse_args()\n'
    )
    programs, home = tmp_path / "bin", tmp_path / "home"
    programs.mkdir()
    home.mkdir()
    for tool in TOOLS:
        (programs / tool).symlink_to(shutil.which(tool) or "/missing")
    result = Copy(
        root,
        programs,
        {"PATH": str(programs), "HOME": str(home), "DIARY": str(tmp_path / "diary"), "REAL_PYTHON": sys.executable},
    )
    for name, text in (("uv", FAKE_UV), ("java", FAKE_JAVA), ("python3", PYTHON_LINK)):
        result.program(name, text)
    return result


# --- Preparing


def test_the_first_call_prepares_and_later_ones_do_not(copy: Copy) -> None:
    first = copy.call("count", "--print")
    assert (first.returncode, copy.diary("venv"), copy.diary("pip install"), copy.diary("ivy")) == (0, 1, 2, 1)
    assert "done in" in first.stderr
    assert "--require-hashes" in Path(copy.env["DIARY"]).read_text()
    asked = copy.diary("")
    again = copy.call("count", "--print", PATH=f"{copy.bin}:/nowhere")
    assert (again.returncode, again.stderr, again.stdout) == (0, "", first.stdout)
    assert copy.diary("") - asked <= 1, "a later call may ask java for its version, once, and nothing else"
    asked = copy.diary("")
    copy.call("count", "--print")
    assert copy.diary("") == asked


def test_the_tests_tools_come_on_top(copy: Copy) -> None:
    prepare_dev = 'source "$0"; prepare dev'
    for _ in range(2):
        done = copy.call("-c", prepare_dev, str(copy.root / "scripts" / "env.sh"), script=copy.bin / "bash")
        assert done.returncode == 0, done.stderr
    assert (copy.diary("venv"), copy.diary("pip install")) == (1, 3)
    assert copy.call("count", "--print").stderr == ""


def test_a_changed_lock_or_python_prepares_again(copy: Copy) -> None:
    copy.call("count", "--print")
    (copy.root / "locks" / "run.txt").write_text("run==2\n")
    assert copy.call("count", "--print").returncode == 0
    assert copy.diary("venv") == 2
    copy.program("python3.12", PYTHON_LINK)
    copy.call("count", "--print")
    assert copy.diary("venv") == 2, "a newer Python that appears is no reason to install all anew"
    (copy.root / "locks" / "run.txt").write_text("run==3\n")
    copy.call("count", "--print")
    assert (copy.diary("venv"), copy.stamp.read_text().splitlines()[1]) == (3, "python3")
    copy.call("count", "--print", DRIVETRAIN_PYTHON="python3.12")
    assert (copy.diary("venv"), copy.stamp.read_text().splitlines()[1]) == (4, "python3.12")


def test_two_first_calls_at_once_prepare_once(copy: Copy) -> None:
    calls = [copy.start("count", "--print", SLOW="0.5") for _ in range(2)]
    said = [call.communicate(timeout=60) for call in calls]
    assert [call.returncode for call in calls] == [0, 0], said
    assert copy.diary("venv") == 1
    assert sum("waiting for it" in err for _, err in said) == 1
    assert said[0][0] == said[1][0]


def wait_for_installer(copy: Copy) -> None:
    deadline = time.monotonic() + 20
    while copy.diary("pip install") == 0 and time.monotonic() < deadline:
        time.sleep(0.05)


def test_a_call_that_is_killed_midway_is_repaired_by_the_next(copy: Copy) -> None:
    killed = copy.start("count", "--print", SLOW="30")
    wait_for_installer(copy)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert (copy.root / ".drivetrain" / "venv" / "bin" / "python").exists() and not copy.stamp.exists()
    repaired = copy.call("count", "--print")
    assert (repaired.returncode, copy.diary("venv")) == (0, 2), repaired.stderr


def test_a_lock_that_comes_back_after_a_killed_change_is_prepared_again(copy: Copy) -> None:
    copy.call("count", "--print")
    lock = copy.root / "locks" / "run.txt"
    lock.write_text("run==2\n")
    Path(copy.env["DIARY"]).unlink()
    killed = copy.start("count", "--print", SLOW="30")
    wait_for_installer(copy)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    lock.write_text("run==1\n")
    assert copy.call("count", "--print").returncode == 0
    assert copy.diary("venv") == 2


def test_the_lock_lasts_as_long_as_an_installer_that_lost_its_parent(copy: Copy) -> None:
    orphaning = copy.start("count", "--print", SLOW="2")
    wait_for_installer(copy)
    os.kill(int(Path(copy.env["DIARY"] + ".pid").read_text()), signal.SIGKILL)
    assert orphaning.wait(timeout=20) != 0
    orphaned = time.monotonic()
    repaired = copy.call("count", "--print")
    assert (repaired.returncode, copy.diary("venv")) == (0, 2), repaired.stderr
    assert "waiting for it" in repaired.stderr and time.monotonic() - orphaned > 1
    orphaning.communicate()


def test_a_jar_with_another_checksum_is_deleted_and_said(copy: Copy) -> None:
    wrong = copy.call("count", "--print", CONTENT="evil")
    assert wrong.returncode == 1
    assert "thing-1.0.jar: the SHA-256 is not the one in" in wrong.stderr and "deleted" in wrong.stderr
    assert not list((copy.root / ".drivetrain" / "jars").iterdir()) and not copy.stamp.exists()
    assert copy.call("count", "--print").returncode == 0


def test_a_failed_installation_shows_the_end_of_its_output(copy: Copy) -> None:
    copy.program("uv", FAKE_UV.replace("pip*) ", "pip*) echo no route to index >&2; exit 9;"))
    failed = copy.call("count", "--print")
    assert failed.returncode == 1
    assert "uv failed with exit code 9" in failed.stderr and "no route to index" in failed.stderr
    assert "Call again" in failed.stderr and "Traceback" not in failed.stderr


def test_a_folder_that_cannot_be_made(copy: Copy) -> None:
    failed = copy.call("count", DRIVETRAIN_HOME="/dev/null/x")
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "/dev/null/x" in failed.stderr and "DRIVETRAIN_HOME" in failed.stderr


def test_a_folder_that_spark_cannot_use(copy: Copy) -> None:
    failed = copy.call("count", DRIVETRAIN_HOME=str(copy.bin / "a,b"))
    assert failed.returncode == 1 and "comma" in failed.stderr


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_caches_move_into_our_folder_without_a_home(copy: Copy, home: str | None) -> None:
    copy.program("uv", FAKE_UV.replace('echo "$*"', 'echo "cache ${UV_CACHE_DIR-}"'))
    copy.env.pop("HOME")
    if home:
        copy.env["HOME"] = home
    assert copy.call("count", "--print").returncode == 0
    assert copy.diary(f"cache {copy.root}/.drivetrain/cache/uv") >= 3


# --- What the machine lacks


def test_no_java_and_no_python_are_said_at_once(copy: Copy) -> None:
    for name in ("java", "python3", "uv"):
        (copy.bin / name).unlink()
    failed = copy.call("count")
    assert failed.returncode == 3
    lines = failed.stderr.splitlines()
    assert len(lines) == 2
    assert "no Java found" in lines[0] and "apt-get install openjdk-17-jre-headless" in lines[0]
    assert "no Python 3.10 to 3.12" in lines[1] and "apt-get install python3" in lines[1]


def test_old_java_and_unfit_pythons(copy: Copy) -> None:
    for name in ("python3.12", "python3", "python"):
        version = "2.7" if name == "python" else "3.9"
        text = "echo 'pyenv: command not found' >&2; exit 127" if name == "python3.12" else f"echo is {version}; exit 1"
        copy.program(name, f"#!/bin/bash\n{text}\n")
    failed = copy.call("count", JAVA_IS="1.8.0_292", DRIVETRAIN_PYTHON="/opt/none")
    assert failed.returncode == 3
    assert "Java 1.8.0_292, 17 or newer is needed" in failed.stderr
    assert (
        "DRIVETRAIN_PYTHON=/opt/none is not there; python3.12 does not run; python3 is 3.9; python is 2.7"
        in failed.stderr
    )


def test_the_java_of_java_home_comes_first_and_must_be_there(copy: Copy, tmp_path: Path) -> None:
    failed = copy.call("count", JAVA_HOME="/nonexistent")
    assert failed.returncode == 3 and "JAVA_HOME=/nonexistent holds no bin/java" in failed.stderr
    (tmp_path / "jdk" / "bin").mkdir(parents=True)
    shutil.copy(copy.bin / "java", tmp_path / "jdk" / "bin" / "java")
    (tmp_path / "jdk" / "release").write_text('IMPLEMENTOR="x"\nJAVA_VERSION="11.0.2"\n')
    failed = copy.call("count", JAVA_HOME=str(tmp_path / "jdk"))
    assert failed.returncode == 3 and "jdk/bin/java is Java 11.0.2" in failed.stderr
    assert copy.diary("asked") == 0, "the release file tells it without a JVM"


def test_a_java_that_was_replaced_is_asked_again(copy: Copy) -> None:
    for _ in range(3):
        assert copy.call("count", "--print").returncode == 0
    asked = copy.diary("asked")
    time.sleep(1.1)  # bash compares whole seconds on some file systems
    copy.program("java", FAKE_JAVA.replace("17.0.1", "11.0.1"))
    assert copy.call("count", "--print").returncode == 3
    assert copy.diary("asked") == asked + 1


def test_a_python_that_does_not_run_is_passed_over(copy: Copy) -> None:
    copy.program("python3.12", "#!/bin/bash\nexit 127\n")
    assert copy.call("count", "--print").returncode == 0
    assert copy.stamp.read_text().splitlines()[1] == "python3"


# --- Calling it


def test_help_needs_nothing_prepared(copy: Copy) -> None:
    for words in ([], ["--help"], ["-h"]):
        shown = copy.call(*words)
        assert shown.returncode == 0
        assert "  count  Counts." in shown.stdout
    assert not copy.stamp.parent.exists()


def test_a_jobs_own_help(copy: Copy) -> None:
    shown = copy.call("count", "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: count.py")
    shown = copy.call("count", "up", "--help")
    assert shown.returncode == 0 and shown.stdout.startswith("usage: count.py up")


def test_an_unknown_job(copy: Copy) -> None:
    failed = copy.call("cuont")
    assert failed.returncode == 2
    assert "did you mean count?" in failed.stderr and failed.stdout == ""


def test_a_broken_conf_is_said_and_nothing_starts(copy: Copy) -> None:
    failed = copy.call("count", "--print", "--env", "yarn", "--set", "x")
    assert failed.returncode == 2
    assert "[env-unknown]" in failed.stderr and "[settings-set]" in failed.stderr and failed.stdout == ""


def test_print_shows_one_command_that_a_shell_reads_right(copy: Copy, tmp_path: Path) -> None:
    link = tmp_path / "a link"
    link.symlink_to(copy.root / "spark-submit.sh")
    shutil.copytree(copy.root / "conf", tmp_path / "my conf")
    shown = copy.call("count", "--print", "--conf-dir", "../my conf", "--set", "company=B C", "--n", "1 2", script=link)
    assert shown.returncode == 0, shown.stderr
    words = shlex.split(shown.stdout)
    submit = next(i for i, word in enumerate(words) if word.endswith("bin/spark-submit"))
    assert f"PYTHONPATH={copy.root}/lib" in words[:submit]
    assert f"PYSPARK_PYTHON={copy.root}/.drivetrain/venv/bin/python" in words[:submit]
    options, own = words[submit + 1 :], str(copy.root / "jobs" / "count.py")
    jar = (copy.root / ".drivetrain" / "jars" / "thing-1.0.jar").as_uri()
    assert options[0] == "--properties-file" and options[2:] == [
        *("--load-spark-defaults", "--jars", jar, own, "--env", "local", "--conf-dir", str(tmp_path / "my conf")),
        *("--set", "company=B C", "--n", "1 2"),
    ]
    assert "spark.master=local[1]" in Path(options[1]).read_text()


# --- The real thing


@pytest.fixture(scope="module")
def prepare() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", ROOT / "scripts" / "prepare.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def place_with_poisoned_maven_cache(prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """An empty folder to prepare, beside a ~/.m2 that holds POMs without their jars, as other tools leave it."""
    for jar in prepare.read_jars(ROOT / "locks" / "jars.txt"):
        folder = tmp_path / "home" / ".m2" / "repository" / jar.group.replace(".", "/") / jar.name / jar.version
        folder.mkdir(parents=True)
        (folder / f"{jar.name}-{jar.version}.pom").write_text(
            f"<project><modelVersion>4.0.0</modelVersion><groupId>{jar.group}</groupId>"
            f"<artifactId>{jar.name}</artifactId><version>{jar.version}</version></project>"
        )
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", f'-Duser.home="{tmp_path}/home"')
    ours = tmp_path / "our [own] folder"
    ours.mkdir()
    (ours / "venv").symlink_to(HOME / "venv")
    return prepare.Place(
        ours,
        ROOT / "locks",
        "python3",
        os.environ.get("JAVA_HOME", "") + "/bin/java" if os.environ.get("JAVA_HOME") else "java",
    )


@pytest.mark.spark
def test_jars_are_fetched_whatever_the_maven_cache_holds(
    prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_with_poisoned_maven_cache(prepare, tmp_path, monkeypatch)
    jars = prepare.read_jars(ROOT / "locks" / "jars.txt")
    prepare.provide_jars(place, jars)
    assert prepare.wrong_jars(tmp_path / "our [own] folder" / "jars", jars) == []
    assert not (tmp_path / "home" / ".ivy2").exists()


@pytest.mark.spark
def test_a_sites_own_repository(prepare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = place_with_poisoned_maven_cache(prepare, tmp_path, monkeypatch)
    settings = tmp_path / "ivysettings.xml"
    settings.write_text(
        '<ivysettings><settings defaultResolver="site"/><resolvers><filesystem name="site">'
        f'<artifact pattern="{HOME}/jars/[artifact]-[revision].[ext]"/></filesystem></resolvers></ivysettings>'
    )
    monkeypatch.setenv("DRIVETRAIN_IVY_SETTINGS", str(settings))
    jars = prepare.read_jars(ROOT / "locks" / "jars.txt")
    prepare.provide_jars(place, jars)
    assert prepare.wrong_jars(tmp_path / "our [own] folder" / "jars", jars) == []


@pytest.mark.spark
def test_a_job_runs_with_its_settings_and_its_exit_code_comes_back(copy: Copy, tmp_path: Path) -> None:
    """With blanks in every path, no HOME, a secret from a variable, and nothing left behind in the working folder."""
    for lock in ("build.txt", "run.txt", "jars.txt"):
        shutil.copy(ROOT / "locks" / lock, copy.root / "locks" / lock)
    shutil.copy(ROOT / "conf" / "log4j2.properties", copy.root / "conf")
    (copy.root / ".drivetrain").symlink_to(HOME)
    (copy.root / "conf" / "base.yaml").write_text(
        "spark:\n  spark.master: local[1]\n  spark.ui.enabled: false\n  spark.driver.host: 127.0.0.1\n"
        "  spark.sql.extensions: io.delta.sql.DeltaSparkSessionExtension\n"
        "  spark.sql.catalog.spark_catalog: org.apache.spark.sql.delta.catalog.DeltaCatalog\n"
        "  spark.databricks.delta.snapshotPartitions: 1\n  spark.sql.shuffle.partitions: 1\n"
        "  spark.x.password: env:PASSWORD_OF_TEST\n  spark.x.text: 'a\\b=c: ü # 🚗'\n"
    )
    (copy.root / "jobs" / "count.py").write_text(
        '"""Counts."""\nimport sys\nfrom pyspark.sql import SparkSession\nfrom drivetrain import streams\n'
        "streams.take()\nprint('talk of', sys.stdin.read(), file=sys.stderr)\n"
        "spark = SparkSession.builder.getOrCreate()\nconf = spark.sparkContext.getConf()\n"
        f"spark.range(3).write.format('delta').save({str(tmp_path / 'a table')!r})\n"
        f"rows = spark.read.format('delta').load({str(tmp_path / 'a table')!r}).count()\n"
        "print(rows, conf.get('spark.x.password'), conf.get('spark.x.text'), sys.argv[-1])\nsys.exit(7)\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    env = {**os.environ, "PASSWORD_OF_TEST": "s3cret"}
    for name in ("HOME", "DRIVETRAIN_HOME", "PYTHONPATH", "PYSPARK_SUBMIT_ARGS", "SPARK_HOME"):
        env.pop(name, None)
    done = subprocess.run(
        [copy.root / "spark-submit.sh", "count", "an argument"],
        input="what was typed",
        cwd=work,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == "3 s3cret a\\b=c: ü # 🚗 an argument"
    said = [line for line in done.stderr.splitlines() if "incubator modules" not in line]
    assert said == ["talk of what was typed"]
    assert list(work.iterdir()) == []
