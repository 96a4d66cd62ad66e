"""The archives that YARN's nodes are given: our environment, the application, Spark's jars, and PySpark.

They are made once and kept; a key of what they are made of tells cheaply whether they still hold. Their names carry a
hash of their contents, so that a copy which stands on HDFS is known by its name.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

from drivetrain import archive, runtime
from drivetrain.archive import Contents, Entry
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.launch import spark_home
from drivetrain.locking import alone

KEPT: Final = "made.json"
IN_USE_SECONDS: Final = 3600.0
ARCHIVE: Final = re.compile(r"(?:env|app|spark|pyspark)-[0-9a-f]{12}\.(?:tar\.gz|zip)")
CONF: Final = ("*.yaml", "datasets/*.yaml", "gold/*.yaml", "gold/*.sql")
# Parts of Spark that no job of ours starts, each with what it alone uses: Kubernetes, Connect's server, the Scala
# shell, MLlib.
NOT_OF_SPARK: Final = re.compile(
    r"(?:kubernetes-|spark-kubernetes_|volcano-|vertx-|zjsonpatch-).*"
    r"|(?:spark-connect|spark-repl|spark-mllib|breeze|spire|cats-kernel|algebra)(?:-[a-z]+)?_2.*"
    r"|scala-compiler-.*"
)
NATIVE: Final = re.compile(r".*\.(?:so|jnilib|dylib|dll|dll\.a)")


class Archives(NamedTuple):
    """``environment`` is unpacked as env, ``application`` as app; ``spark`` is for spark.yarn.archive and ``pyspark``
    for PYSPARK_ARCHIVES_PATH, without which spark-submit uploads its own at each call.
    """

    environment: Path
    application: Path
    spark: Path
    pyspark: Path


@dataclass(frozen=True)
class Recipe:
    """How an archive is made: ``write`` is given an empty folder and the open file. As long as ``key`` is the same, so
    would be the archive. ``name`` tells recipes apart, ``kind`` begins the file's name.
    """

    name: str
    kind: str
    suffix: str
    key: str
    write: Callable[[Path, BinaryIO], Contents]


def build(root: Path, home: Path, conf_dir: Path, *, java: bool = False, out: Path | None = None) -> Archives:
    """Make what is missing or old in ``out``, by default ``home``/package; the rest stays as it is.

    Raises:
        DrivetrainError: the folder cannot be written, or what belongs to an archive is not there.
    """
    folder = out or home / "package"
    recipes = environment(root, java), application(root, conf_dir), spark(home), pyspark()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder, "packing into"):
            return Archives(*[_get(folder, recipe) for recipe in recipes])
    except OSError as error:
        where, what = str(error.filename or folder), f"the archives cannot be written: {error.strerror}"
        fix = "name a folder with room for 1 GB by --out, or in DRIVETRAIN_HOME"
        raise DrivetrainError(Problem("package-unwritable", where, what, fix)) from error


def contents(file: Path) -> Contents:
    """What ``build`` wrote into one of its archives."""
    made = _made(file.parent)
    return Contents(**next(kept["contents"] for kept in made.values() if kept["file"] == file.name))


# --- What is packed -----------------------------------------------------------------------------------------------


def environment(root: Path, java: bool) -> Recipe:
    lock, java_home = root / "locks" / "run.txt", runtime.java_home() if java else None
    site = Path(sysconfig.get_path("purelib"))
    listed = [lock, runtime.interpreter(), Path(os.__file__), *sorted(site.glob("*.dist-info/RECORD"))]
    listed += sorted(Path(str(entry.content)) for entry in runtime.java_entries(java_home)) if java_home else []
    return Recipe(
        *("env with Java" if java else "env", "env", ".tar.gz", _key(map(_state, listed))),
        lambda work, file: archive.write_tar(runtime.environment(lock, java_home, work), file),
    )


def application(root: Path, conf_dir: Path) -> Recipe:
    """What a driver on a node reads: our code and the pipeline's conf, whose folder is always called conf there."""
    code = [path for path in (root / "lib" / "drivetrain").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    code += [*(root / "jobs").glob("*.py"), root / "scripts" / "acme_sources.py"]
    entries = [Entry(path.relative_to(root).as_posix(), "code", path) for path in code]
    conf = {path.relative_to(conf_dir).as_posix(): path for pattern in CONF for path in conf_dir.glob(pattern)}
    log4j = conf_dir / "log4j2.properties"
    conf[log4j.name] = log4j if log4j.is_file() else root / "conf" / log4j.name
    entries += [Entry(f"conf/{name}", "conf", path) for name, path in conf.items()]
    key = _key(f"{entry.name} ".encode() + entry.read() for entry in entries)
    return Recipe("app", "app", ".zip", key, lambda _, file: archive.write_zip(entries, file))


def spark(home: Path) -> Recipe:
    """Spark's jars and our own, at the top and uncompressed: jars are compressed already."""
    jars = sorted([*(spark_home() / "jars").glob("*.jar"), *(home / "jars").glob("*.jar")])
    key = _key(map(_state, jars))

    def write(_: Path, file: BinaryIO) -> Contents:
        entries = (Entry(jar.name, jar.name, for_here(jar)) for jar in jars if not NOT_OF_SPARK.match(jar.name))
        return archive.write_zip(entries, file, zipfile.ZIP_STORED)

    return Recipe("spark", "spark", ".zip", key, write)


def for_here(jar: Path) -> Path | bytes:
    """The jar, without native code for other machines than this where it has such; what stays is deflated anew."""
    if machine() is None:
        return jar
    with zipfile.ZipFile(jar) as source:
        listed = source.infolist()
        foreign = {one.filename for one in listed if NATIVE.fullmatch(one.filename) and not _runs_here(source, one)}
        if not foreign or any(one.filename.endswith(".SF") for one in listed):  # a signature covers all that is there
            return jar
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
            for one in listed:
                if one.filename not in foreign:
                    target.writestr(one, source.read(one))
    return made.getvalue()


def _runs_here(jar: zipfile.ZipFile, native: zipfile.ZipInfo) -> bool:
    with jar.open(native) as file:
        return archive.machine(file.read(20)) == machine()


@cache
def machine() -> int | None:
    """For which processor this Python is; None where its program is none that `archive.machine` knows."""
    with runtime.interpreter().open("rb") as file:
        return archive.machine(file.read(20))


def pyspark() -> Recipe:
    """The two zip files that Spark puts on the nodes' PYTHONPATH, as one."""
    files = sorted((spark_home() / "python" / "lib").glob("*.zip"))

    def entries() -> Iterator[Entry]:
        for file in files:
            with zipfile.ZipFile(file) as source:
                for info in source.infolist():
                    if not info.is_dir():
                        yield Entry(info.filename, file.name, source.read(info))

    return Recipe("pyspark", "pyspark", ".zip", _key(map(_state, files)), lambda _, f: archive.write_zip(entries(), f))


def _key(parts: Iterable[bytes]) -> str:
    """Changes with the parts, and with the rules by which archives are made."""
    rules = [Path(str(module)).read_bytes() for module in (__file__, archive.__file__, runtime.__file__)]
    return hashlib.sha256(b"\0".join([*rules, *parts])).hexdigest()


def _state(path: Path) -> bytes:
    """What changes with a file, without reading it."""
    stat = path.stat()
    return f"{path} {stat.st_size} {stat.st_mtime_ns}".encode()


# --- The folder ---------------------------------------------------------------------------------------------------


def _get(folder: Path, recipe: Recipe) -> Path:
    """The recipe's archive: the one that is there, or a new one, written whole or not at all."""
    made = _made(folder)
    kept = made.get(recipe.name)
    if kept and kept["key"] == recipe.key and (folder / kept["file"]).is_file():
        os.utime(folder / kept["file"])  # when it was last asked for
        return folder / str(kept["file"])
    for left in folder.glob(".work-*"):  # of a call that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work:
        new, empty = Path(work, "new"), Path(work, "empty")
        empty.mkdir()
        with new.open("wb") as file:
            written = recipe.write(empty, file)
        path = folder / f"{recipe.kind}-{written.digest}{recipe.suffix}"
        new.replace(path)
    made[recipe.name] = {"key": recipe.key, "file": path.name, "contents": asdict(written)}
    note = folder / f"{KEPT}.new"
    note.write_text(json.dumps(made, indent=1))
    note.replace(folder / KEPT)
    for old in _old(folder, {str(one["file"]) for one in made.values()}):
        old.unlink()
    return path


def _old(folder: Path, names: set[str]) -> Iterator[Path]:
    """Archives that have been replaced, but for those which another call may be about to send to the cluster."""
    long_ago = time.time() - IN_USE_SECONDS
    others = (path for path in folder.iterdir() if ARCHIVE.fullmatch(path.name) and path.name not in names)
    return (path for path in others if path.stat().st_mtime < long_ago)


def _made(folder: Path) -> dict[str, dict[str, Any]]:
    """Recipe -> its key, its archive's file and contents; nothing where the note cannot be read."""
    try:
        known: dict[str, dict[str, Any]] = json.loads((folder / KEPT).read_text())
    except (OSError, ValueError):
        return {}
    return known
