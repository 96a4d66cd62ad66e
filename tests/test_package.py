"""scripts/package: archives that are the same each time, and run where nothing of ours stands, also as YARN's nodes."""

from __future__ import annotations

import ast
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from drivetrain import launch, package, runtime
from drivetrain.archive import Contents, Entry
from drivetrain.errors import DrivetrainError

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(os.environ.get("DRIVETRAIN_HOME") or ROOT / ".drivetrain")


# --- The folder ---------------------------------------------------------------------------------------------------


def recipe(key: str, data: bytes, name: str = "app") -> package.Recipe:
    def write(_: Path, file: Any) -> Contents:
        file.write(data)
        return Contents(digest=data.hex().ljust(12, "0"))

    return package.Recipe(name, name, ".zip", key, write)


def test_an_archive_is_made_once_for_each_key(tmp_path: Path) -> None:
    first = package._get(tmp_path, recipe("1", b"\x01"))
    assert package._get(tmp_path, recipe("1", b"\x02")) == first, "the key is the same: nothing is made"
    other = package._get(tmp_path, recipe("1", b"\x03", "spark"))
    second = package._get(tmp_path, recipe("2", b"\x02"))
    assert first.exists(), "another call may be about to send it"
    os.utime(first, (0, 0))
    third = package._get(tmp_path, recipe("3", b"\x04"))
    assert {p.name for p in tmp_path.glob("*.zip")} == {second.name, third.name, other.name}, "the old one is gone"
    second = package._get(tmp_path, recipe("2", b"\x02"))
    second.unlink()
    assert package._get(tmp_path, recipe("2", b"\x02")).exists()
    (tmp_path / package.KEPT).write_text("{")
    assert package._get(tmp_path, recipe("2", b"\x02")) == second
    assert package.contents(second).digest == "020000000000"


def test_a_failed_or_killed_call_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(_: Path, file: Any) -> Contents:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    kept = package._get(tmp_path, recipe("1", b"\x01"))
    with pytest.raises(OSError, match="No space"):
        package._get(tmp_path, package.Recipe("app", "app", ".zip", "2", fail))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([kept.name, package.KEPT])
    (tmp_path / ".work-killed").mkdir()
    (tmp_path / ".work-killed" / "new").write_bytes(b"half")
    package._get(tmp_path, recipe("2", b"\x02"))
    assert not (tmp_path / ".work-killed").exists()


def test_the_application_holds_code_and_conf_alone(tmp_path: Path) -> None:
    conf = tmp_path / "my conf"
    shutil.copytree(ROOT / "conf", conf)
    for name in ("notes.txt", "secret.pem", ".base.yaml.swp"):
        (conf / name).write_text("not for nodes")
    (conf / "log4j2.properties").unlink()
    file = tmp_path / "app.zip"
    with file.open("wb") as out:
        package.application(ROOT, conf).write(tmp_path, out)
    with zipfile.ZipFile(file) as made:
        names = set(made.namelist())
        assert made.read("conf/base.yaml") == (ROOT / "conf" / "base.yaml").read_bytes()
    assert {"lib/drivetrain/launch.py", "lib/drivetrain/templates/report.html.j2", "jobs/etl.py"} <= names
    assert {"scripts/acme_sources.py", "conf/log4j2.properties", "conf/gold/daily_sales.sql"} <= names
    assert {n.split("/")[0] for n in names} == {"lib", "jobs", "scripts", "conf"}
    assert not [n for n in names if n.endswith((".txt", ".pem", ".swp", ".pyc"))]


def test_a_changed_conf_changes_the_key(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(ROOT / "conf", conf)
    before = package.application(ROOT, conf).key
    assert package.application(ROOT, conf).key == before
    with (conf / "local.yaml").open("a") as file:
        file.write("# more\n")
    assert package.application(ROOT, conf).key != before


def test_what_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DrivetrainError, match=r"the archives cannot be written: .*\n.*--out"):
        package.build(ROOT, HOME, ROOT / "conf", out=tmp_path / "file" / "out")
    lock = tmp_path / "run.txt"
    lock.write_text("pandas==2.3.3 \\\n    --hash=sha256:00\nno-such-package==1 \\\n")
    with pytest.raises(DrivetrainError, match="not installed: no-such-package"):
        list(runtime.package_entries(lock))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(DrivetrainError, match=f"JAVA_HOME={tmp_path}: there is no Java to pack"):
        package.environment(ROOT, java=True)


# --- The archives -------------------------------------------------------------------------------------------------


def start(out: Path, **environ: str) -> subprocess.Popen[str]:
    words = [ROOT / "scripts" / "package", "--java", "--out", out]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environ})


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, str, str]]]:
    """A folder with the archives, Java among them, and what two calls said that made them at once."""
    out = tmp_path_factory.mktemp("two calls") / "made here"
    calls = [start(out), start(out)]
    said = [call.communicate(timeout=500) for call in calls]
    return out, [(call.returncode, *texts) for call, texts in zip(calls, said, strict=True)]


def archives(folder: Path) -> dict[str, Path]:
    return {path.name.split("-")[0]: path for path in folder.glob("*-*.*")}


def test_two_calls_at_once_make_each_archive_once(packed: tuple[Path, list[tuple[int, str, str]]]) -> None:
    out, said = packed
    assert [code for code, _, _ in said] == [0, 0], said
    assert said[0][1] == said[1][1]
    assert sum("waiting for it" in err for _, _, err in said) == 1
    assert sorted(archives(out)) == ["app", "env", "pyspark", "spark"]
    assert not list(out.glob(".work-*"))
    for path in archives(out).values():
        assert str(path) in said[0][1]


def test_the_same_inputs_make_the_same_archives(packed: Any, tmp_path: Path) -> None:
    call = start(tmp_path, PYTHONHASHSEED="7", TZ="Asia/Tokyo")
    assert call.communicate(timeout=500) and call.returncode == 0
    for kind, path in archives(packed[0]).items():
        again = tmp_path / path.name
        assert again.exists(), f"{kind} has another name"
        assert subprocess.run(["cmp", path, again]).returncode == 0


def test_a_call_with_nothing_changed_writes_nothing(packed: Any) -> None:
    before = {path: path.stat().st_ino for path in packed[0].iterdir()}  # a new file gets another number
    assert start(packed[0]).wait(timeout=60) == 0
    assert {path: path.stat().st_ino for path in packed[0].iterdir()} == before


def test_tests_headers_and_sparks_own_are_left_out(packed: Any) -> None:
    names = subprocess.run(["tar", "-tzf", archives(packed[0])["env"]], capture_output=True, text=True).stdout.split(
        "\n"
    )
    wrong = ("/tests/test_", "/include/", ".h", ".pyi", ".a", ".pyx", "/pip/", "/setuptools/", "/pytest/", "/mypy/")
    assert not [name for name in names if name.endswith(wrong) or any(part in name for part in wrong if "/" in part)]
    assert not [name for name in names if "/pyspark/" in name or "/py4j/" in name]
    assert not [name for name in names if name.endswith(("/json/decoder.py", "/rich/console.py"))], "they are in a zip"
    assert [name for name in names if name.endswith("/numpy/__init__.py")], "it has native code"
    with zipfile.ZipFile(archives(packed[0])["spark"]) as spark:
        jars = spark.infolist()
    assert {info.compress_type for info in jars} == {zipfile.ZIP_STORED}
    have = {info.filename for info in jars}
    assert {path.name for path in (HOME / "jars").glob("*.jar")} < have
    assert not [name for name in have if name.startswith(("kubernetes", "breeze", "spark-mllib_")) or "/" in name]


def test_native_code_is_for_this_machine_alone(tmp_path: Path) -> None:
    (rocksdb,) = (launch.spark_home() / "jars").glob("rocksdbjni-*.jar")
    made = tmp_path / rocksdb.name
    made.write_bytes(package.for_here(rocksdb))  # type: ignore[arg-type]
    with zipfile.ZipFile(rocksdb) as before, zipfile.ZipFile(made) as after:
        assert after.testzip() is None
        left, gone = set(after.namelist()), set(before.namelist()) - set(after.namelist())
    own, other = sorted(("linux64", "linux-aarch64"), reverse=platform.machine() == "x86_64")
    assert f"librocksdbjni-{own}.so" in left and not [name for name in gone if name.endswith(".class")]
    assert {f"librocksdbjni-{other}.so", "librocksdbjni-win64.dll", "librocksdbjni-osx-arm64.jnilib"} <= gone
    assert made.stat().st_size < rocksdb.stat().st_size / 5


def test_what_python_imports_from_a_zip_file_lies_in_one(tmp_path: Path) -> None:
    """Packages that have native code, or are parts of a namespace, and single modules stay as they are."""
    site, library = runtime.site_packages(), runtime.LIBRARY
    tag = f"{sys.implementation.cache_tag}.pyc"
    outside = [
        f"{library}/os.py", f"{library}/__pycache__/os.{tag}", f"{library}/lib-dynload/_json.so", f"{site}/six.py",
        f"{site}/nat/__init__.py", f"{site}/nat/deep/core.cpython-3x-linux-gnu.so", f"{site}/nat.libs/libx.so.1",
        f"{site}/space/part.py", f"{site}/pure-1.0.dist-info/METADATA", f"{site}/drivetrain_env.pth", "bin/python3",
    ]  # fmt: skip
    inside = {
        f"{site}/packages.zip": {
            f"{site}/pure/__init__.py": "pure/__init__.py", f"{site}/pure/data.json": "pure/data.json",
            f"{site}/pure/__pycache__/__init__.{tag}": "pure/__init__.pyc",
        },
        f"{sys.platlibdir}/{runtime.LIBRARY_ZIP}": {
            f"{library}/json/decoder.py": "json/decoder.py",
            f"{library}/json/__pycache__/decoder.{tag}": "json/decoder.pyc",
        },
    }  # fmt: skip
    names = [*outside, *[name for part in inside.values() for name in part]]
    made = {e.name: e for e in runtime.zipped([Entry(name, "x", name.encode()) for name in names], tmp_path)}
    assert set(made) == {*outside, *inside}
    for name, part in inside.items():
        with zipfile.ZipFile(str(made[name].content)) as file:
            assert {one: file.read(one) for one in file.namelist()} == {new: old.encode() for old, new in part.items()}


def test_where_the_processor_is_not_known_jars_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    (rocksdb,) = (launch.spark_home() / "jars").glob("rocksdbjni-*.jar")
    monkeypatch.setattr(package, "machine", lambda: None)
    assert package.for_here(rocksdb) == rocksdb


def test_a_jar_that_is_signed_or_has_nothing_to_lose_stays_as_it_is(tmp_path: Path) -> None:
    plain, signed = tmp_path / "plain.jar", tmp_path / "signed.jar"
    for jar, names in ((plain, ("a.class",)), (signed, ("META-INF/X.SF", "libx.dll"))):
        with zipfile.ZipFile(jar, "w") as file:
            for name in names:
                file.writestr(name, b"MZ")
        assert package.for_here(jar) == jar


# --- Where nothing of ours stands ---------------------------------------------------------------------------------

HIDE = """set -e
while [ "$1" != files ]; do [ ! -d "$1" ] || mount -t tmpfs none "$1"; shift; done; shift
while [ "$1" != run ]; do [ ! -f "$1" ] || mount --bind /dev/null "$1"; shift; done; shift
cd "$1"; shift
exec env -i "$@"
"""

USE = """
import importlib, pkgutil, sys, os, subprocess, json
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
import drivetrain
for found in pkgutil.iter_modules(drivetrain.__path__):
    importlib.import_module("drivetrain." + found.name)

files = {str(getattr(module, "__file__", None) or sys.prefix) for module in sys.modules.values()}
libraries = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if ".so" in line}
print(json.dumps([path for path in files | libraries if not path.startswith(os.getcwd())]))
assert os.environ["LD_LIBRARY_PATH"] == "/nowhere" and "PYTHONHOME" not in os.environ, os.environ
code = "import sys, numpy, ssl; print(sys.executable)"
child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
assert child.stdout == sys.executable + chr(10), child

import ssl, sqlite3, lzma, bz2, ctypes, uuid, hashlib, decimal, zoneinfo, datetime, multiprocessing
ssl.create_default_context()
assert sqlite3.connect(":memory:").execute("select 1 + 1").fetchone() == (2,)
berlin = datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
assert berlin.utcoffset() == datetime.timedelta(hours=2)

import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pyarrow.compute as pc
from importlib.metadata import version
from sklearn.ensemble import IsolationForest
frame = pd.DataFrame({"x": np.r_[np.zeros(99), 100.0], "t": pd.Timestamp("2026-07-01", tz="Europe/Berlin")})
pq.write_table(pa.Table.from_pandas(frame), "t.parquet")
back = pd.read_parquet("t.parquet")
assert (back == frame).all(axis=None) and str(back["t"].dt.tz) == "Europe/Berlin"
assert pc.sum(pa.array(back["x"])).as_py() == 100
scores = IsolationForest(n_jobs=2, random_state=0).fit(frame[["x"]]).score_samples(frame[["x"]])
assert scores.argmin() == 99
assert version("pandas") == pd.__version__
from matplotlib.figure import Figure
figure = Figure()
figure.subplots().plot([1, 2])
figure.savefig("f.svg")
figure.savefig("f.png")
"""


def third_party() -> list[str]:
    """Modules that lib/ and jobs/ import and neither Python, Spark nor we bring otherwise."""
    found = set()
    for path in [*(ROOT / "lib").rglob("*.py"), *(ROOT / "jobs").glob("*.py"), ROOT / "scripts" / "acme_sources.py"]:
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module)
    return sorted(found - {name for name in found if name.split(".")[0] in ("drivetrain", "job")})


@pytest.fixture
def hidden() -> list[str]:
    """The command that runs another where neither this checkout, nor any Python or Java, nor what we pack stands."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here (unshare -m)")
    folders = [ROOT, HOME, *Path("/usr/lib").glob("python3*"), *Path("/usr/local/lib").glob("python3*")]
    folders += [Path("/usr/share/zoneinfo"), Path("/usr/lib/jvm"), *Path("/etc").glob("java*"), runtime.java_home()]
    folders += [] if sys.base_prefix in ("/usr", "/usr/local") else [Path(sys.base_prefix)]
    files = [*Path("/usr/bin").glob("python3*"), *Path("/usr/local/bin").glob("python3*"), runtime.interpreter()]
    return [
        *("unshare", "-m", "sh", "-c", HIDE, "hide", *map(str, folders), "files", *map(str, files)),
    ]


@pytest.fixture(scope="module")
def node(packed: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A container's folder, as YARN unpacks it."""
    folder = tmp_path_factory.mktemp("a node with blanks")
    (folder / "env").mkdir()
    found = archives(packed[0])
    subprocess.run(["tar", "-xzf", found["env"], "-C", folder / "env"], check=True)
    with zipfile.ZipFile(found["app"]) as app:
        app.extractall(folder / "app")
    shutil.copy(found["pyspark"], folder / "pyspark.zip")
    return folder


def machines(names: Any) -> list[str]:
    """Where libraries of these names stand on this machine."""
    found = [path for name in names for lib in ("lib", "lib64") for path in Path("/usr", lib).glob(f"**/{name}")]
    return [str(path) for path in found if path.is_file()]


def test_python_runs_where_nothing_of_ours_stands(node: Path, hidden: list[str]) -> None:
    carried = machines(path.name for path in (node / "env" / "lib").glob("*.so*"))
    assert carried, "the interpreter needs no library that this machine would have to lend?"
    words = ["PYTHONPATH=app/lib:pyspark.zip", "LD_LIBRARY_PATH=/nowhere", "PYTHONHOME=/nowhere", "./env/bin/python"]
    done = subprocess.run(
        [*hidden, *carried, "run", str(node), *words, "-c", USE, json.dumps(third_party())],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    outside = [path for path in json.loads(done.stdout) if not runtime.PLATFORM.match(Path(path).name)]
    assert outside == [], "these come from the machine"


@pytest.mark.parametrize("way", ["elsewhere", "linked", "beside"])
def test_python_is_found_from_anywhere(node: Path, tmp_path: Path, way: str) -> None:
    """By its path, through YARN's link to the folder, and from its own folder."""
    (tmp_path / "env").symlink_to(node / "env")
    where, program = {
        "elsewhere": (tmp_path, str(node / "env" / "bin" / "python")),
        "linked": (tmp_path, "env/bin/python"),
        "beside": (node / "env" / "bin", "./python"),
    }[way]
    words = [program, "-c", "import sys, pandas; print(sys.prefix, sys.executable)"]
    done = subprocess.run(words, cwd=where, env={"CDPATH": "/"}, capture_output=True, text=True)
    assert done.stdout == f"{node}/env {node}/env/bin/python\n", done.stderr


@pytest.mark.spark
def test_java_runs_where_no_java_stands(node: Path, hidden: list[str]) -> None:
    carried = machines(path.name for path in (node / "env" / "java" / "lib").glob("*.so.*"))
    words = [*hidden, *carried, "run", node, "env/java/bin/java", "-version"]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    assert (done.returncode, "Runtime Environment" in done.stderr) == (0, True), done.stderr


# --- YARN ---------------------------------------------------------------------------------------------------------

JOB = '''
import json, os, shutil, subprocess, sys
import pandas as pd
from pyspark.sql import SparkSession, functions as F
import drivetrain

spark = SparkSession.builder.getOrCreate()

def place():
    """Where this process comes from, and the Java that is the first above it."""
    above, program = os.getppid(), ""
    while above > 1 and not program.endswith("/java"):
        program = os.readlink(f"/proc/{above}/exe")
        above = int(open(f"/proc/{above}/stat").read().rpartition(")")[2].split()[1])
    found = [shutil.which(name) for name in ("python3", "python", "java")]
    return {"python": sys.executable, "code": drivetrain.__file__, "found": found, "cwd": os.getcwd(), "jvm": program}

@F.pandas_udf("string")
def score(x: pd.Series) -> pd.Series:
    from sklearn.ensemble import IsolationForest
    values = x.to_numpy().reshape(-1, 1)
    scores = IsolationForest(n_estimators=5, random_state=0).fit(values).score_samples(values)
    return pd.Series([json.dumps({**place(), "finite": bool(pd.Series(scores).notna().all())})] * len(x))

out = sys.argv[1]
spark.range(0, 1000, 1, 2).withColumn("at", score("id")).write.format("delta").save(out + "/table")
back = spark.read.format("delta").load(out + "/table")
at = [json.loads(row[0]) for row in back.select("at").distinct().collect()]
said = json.dumps({"rows": back.count(), "driver": place(), "executors": at})
spark.createDataFrame([(said,)], "said string").coalesce(1).write.text(out + "/said")
'''


@dataclass(frozen=True)
class Yarn:
    """A cluster with the archives on its HDFS."""

    conf: str
    jars: Path
    archives: dict[str, str]

    def files(self, *words: str, cwd: Path = HOME) -> str:
        """The file system's own command line, which takes no blanks in a path."""
        java = str(runtime.java_home() / "bin" / "java")
        main = [java, "-cp", f"{self.conf}:{self.jars}/*", "org.apache.hadoop.fs.FsShell"]
        return subprocess.run([*main, *words], cwd=cwd, capture_output=True, text=True, check=True).stdout

    def submit(self, mode: str, job: Path, *words: str) -> subprocess.CompletedProcess[str]:
        spark = launch.spark_home()
        settings = {
            "spark.yarn.archive": self.archives["spark"],
            "spark.yarn.dist.archives": f"{self.archives['env']}#env,{self.archives['app']}#app",
            "spark.pyspark.python": "./env/bin/python",
            "spark.pyspark.driver.python": "./env/bin/python" if mode == "cluster" else sys.executable,
            "spark.yarn.appMasterEnv.JAVA_HOME": "./env/java",
            "spark.executorEnv.JAVA_HOME": "./env/java",
            "spark.yarn.appMasterEnv.PYTHONPATH": "./app/lib",
            "spark.executorEnv.PYTHONPATH": "./app/lib",
            "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
            "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
            "spark.executor.memory": "700m",
            "spark.driver.memory": "700m",
            "spark.executor.instances": "1",
            "spark.ui.enabled": "false",
        }
        if mode == "client":
            settings["spark.driver.extraClassPath"] = ":".join(map(str, sorted((HOME / "jars").glob("*.jar"))))
        ours = ("PYSPARK_SUBMIT_ARGS", "PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "PYTHONPATH")
        environ = {name: value for name, value in os.environ.items() if name not in ours}
        environ |= {"HADOOP_CONF_DIR": self.conf, "SPARK_HOME": str(spark)}
        environ |= {"PYSPARK_ARCHIVES_PATH": self.archives["pyspark"]}
        environ |= {"PYTHONPATH": str(ROOT / "lib")} if mode == "client" else {}
        options = [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
        command = [spark / "bin" / "spark-submit", "--master", "yarn", "--deploy-mode", mode, *options, job, *words]
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def yarn(packed: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yarn]:
    if not shutil.which("mvn"):
        pytest.skip("Maven is not installed: apt-get install maven")
    home = tmp_path_factory.mktemp("home")
    (home / "venv").symlink_to(HOME / "venv")
    java = str(runtime.java_home() / "bin" / "java")
    words = [sys.executable, str(ROOT / "scripts" / "cluster.py"), "--home", str(home), "--java", java]
    try:
        subprocess.run([*words, "up", "hdfs", "yarn"], check=True, timeout=300)
        conf = str(home / "cluster" / "conf" / "client")
        made = Yarn(conf, home / "cluster" / "jars", {})
        made.files("-mkdir", "-p", "/apps")
        made.files("-put", *(path.name for path in archives(packed[0]).values()), "/apps", cwd=packed[0])
        found = {kind: f"hdfs:///apps/{path.name}" for kind, path in archives(packed[0]).items()}
        yield Yarn(conf, made.jars, found)
    finally:
        subprocess.run([*words, "down"], check=True, timeout=60)


@pytest.mark.cluster
@pytest.mark.timeout(1200)  # the archives, the cluster and their way to HDFS are counted in
@pytest.mark.skipif(not os.environ.get("LONG"), reason="it takes minutes, and test_yarn's nodes have neither: LONG=1")
@pytest.mark.parametrize("mode", ["client", "cluster"])
def test_nodes_without_python_and_java_run_a_job(yarn: Yarn, tmp_path: Path, mode: str) -> None:
    job = tmp_path / "job.py"
    job.write_text(JOB)
    done = yarn.submit(mode, job, f"/tmp/{mode}")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    said = json.loads(yarn.files("-cat", f"/tmp/{mode}/said/*.txt"))
    assert said["rows"] == 1000
    on_nodes = said["executors"] + ([said["driver"]] if mode == "cluster" else [])
    for at in on_nodes:
        assert at["found"] == [None] * 3, "the PATH of a node here holds no Python and no Java"
        assert "/cluster/data/nodemanager" in at["python"] and at["python"].endswith("/bin/python")
        assert "/cluster/data/nodemanager" in at["jvm"] and at["jvm"].endswith("/java/bin/java")
        assert at["code"] == f"{at['cwd']}/app/lib/drivetrain/__init__.py"
    assert all(at["finite"] for at in said["executors"])
    uploads = [line.split(" -> ")[0].rpartition("/")[2] for line in done.stderr.splitlines() if "Uploading" in line]
    assert not [name for name in uploads if not name.startswith(("__spark_conf__", "job.py"))]
