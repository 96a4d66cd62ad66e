"""Prepares what Drivetrain needs below one folder: a virtual environment and the Delta jars, both pinned by hash.

Called by scripts/env.sh where the stamp is missing or old; only the standard library and lib/ are there yet. The stamp
is written last, so that a run that was killed midway is done again by the next call.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from drivetrain.locking import alone

ROOT = Path(__file__).resolve().parent.parent
RUN_LOCKS = ("build.txt", "run.txt", "jars.txt")
DEV_LOCKS = (*RUN_LOCKS, "dev.txt")


class PrepareError(Exception):
    """Says what could not be prepared, why, and what to do."""


@dataclass(frozen=True)
class Jar:
    group: str
    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        return f"{self.name}-{self.version}.jar"


@dataclass(frozen=True)
class Place:
    """Where everything is: the folder to prepare, the locks, and the programs to do it with."""

    home: Path
    locks: Path
    python: str
    java: str

    @property
    def venv(self) -> Path:
        return self.home / "venv"

    @property
    def venv_python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def log(self) -> Path:
        return self.home / "prepare.log"

    def stamp(self, what: str) -> Path:
        return self.home / ("stamp-dev" if what == "dev" else "stamp")

    def key(self, locks: Sequence[str]) -> str:
        """The stamp's text; fresh() in env.sh compares it."""
        content = b"".join((self.locks / name).read_bytes() for name in locks)
        return f"{hashlib.sha256(content).hexdigest()}\n{self.python}\n"


def say(text: str) -> None:
    print(f"drivetrain: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    say(f"{what} …")
    start = time.monotonic()
    yield
    say(f"    done in {time.monotonic() - start:.1f} s")


def run(place: Place, command: Sequence[str | Path], advice: str) -> None:
    """Runs a command with its output in the log, whose end is shown if it fails."""
    words = [str(word) for word in command]
    with place.log.open("a+", encoding="utf-8", errors="replace") as log:
        log.write(f"$ {' '.join(words)}\n")
        log.flush()
        start = log.tell()
        # Inside our own folder: paths that Ivy is given are then free of characters which its patterns use.
        null, where, env = subprocess.DEVNULL, place.home, environment(place)
        code = subprocess.run(words, stdin=null, stdout=log, stderr=log, cwd=where, env=env, close_fds=False).returncode
        log.seek(start)
        tail = log.read().splitlines()[-12:]
    if code:
        said = "\n".join(f"    {line}" for line in tail)
        raise PrepareError(
            f"{Path(words[0]).name} failed with exit code {code}:\n{said}\n{advice} Whole output: {place.log}"
        )


def environment(place: Place) -> dict[str, str]:
    """The caller's, with caches below our own folder where there is no home to keep them in."""
    env = dict(os.environ)
    for misleading in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX"):
        env.pop(misleading, None)
    # uv brings certificates of its own; the machine's may be the ones that a company's proxy needs.
    for name in ("UV_SYSTEM_CERTS", "UV_NATIVE_TLS") if any(ssl.get_default_verify_paths()[:2]) else ():
        env.setdefault(name, "1")
    if not ("HOME" in env and os.access(env["HOME"], os.W_OK)):
        env.setdefault("UV_CACHE_DIR", str(place.home / "cache" / "uv"))
        env.setdefault("PIP_CACHE_DIR", str(place.home / "cache" / "pip"))
    return env


def find_uv() -> str | None:
    uv = shutil.which("uv")
    works = uv and subprocess.run([uv, "--version"], capture_output=True, stdin=subprocess.DEVNULL).returncode == 0
    return uv if works else None


def make_venv(place: Place, uv: str | None) -> None:
    if place.venv.exists():
        shutil.rmtree(place.venv)
    advice = "See the log, then call again."
    if uv:
        python = shutil.which(place.python) or place.python
        run(place, [uv, "venv", "--quiet", "--no-python-downloads", "--python", python, place.venv], advice)
    else:
        run(place, [place.python, "-m", "venv", place.venv], advice)


def install(place: Place, uv: str | None, lock: str) -> None:
    """The locks are complete, so nothing is resolved; pyspark's source is built with the setuptools of build.txt."""
    advice = "Is the package index reachable? Call again to go on."
    pip: list[str | Path] = [place.venv_python, "-m", "pip", "install", "--use-pep517", "--disable-pip-version-check"]
    command = [uv, "pip", "install", "--python", place.venv_python] if uv else pip
    run(place, [*command, "--require-hashes", "--no-deps", "--no-build-isolation", "-r", place.locks / lock], advice)


def read_jars(path: Path) -> list[Jar]:
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = (line.replace(":", " ").split() for line in lines if line and not line.startswith("#"))
    return [Jar(group, name, version, sha256) for group, name, version, sha256 in fields]


def ivy_file(jars: Sequence[Jar]) -> str:
    """Asks for the jars alone: what they depend on, Spark has, and Ivy may stumble over other tools' caches."""
    same = 'conf="default->master(*)" transitive="false"'
    wanted = [f'<dependency org="{jar.group}" name="{jar.name}" rev="{jar.version}" {same}/>' for jar in jars]
    return (
        '<ivy-module version="2.0"><info organisation="drivetrain" module="jars"/>'
        f"<dependencies>{''.join(wanted)}</dependencies></ivy-module>"
    )


def wrong_jars(folder: Path, jars: Sequence[Jar]) -> list[Jar]:
    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""

    return [jar for jar in jars if digest(folder / jar.file) != jar.sha256]


def ivy_jar(place: Place) -> Path:
    return next(place.venv.glob("lib/python*/site-packages/pyspark/jars/ivy-*.jar"))


def fetch_jars(place: Place, jars: Sequence[Jar]) -> None:
    """By the Ivy that pyspark brings, with a cache that is thrown away: neither ~/.m2 nor ~/.ivy2 is looked at."""
    cache = place.home / "ivy"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    wanted = cache / "ivy.xml"
    wanted.write_text(ivy_file(jars), encoding="utf-8")
    settings = os.environ.get("DRIVETRAIN_IVY_SETTINGS")
    command = [
        *(place.java, f"-Divy.default.ivy.user.dir={cache}", "-cp", ivy_jar(place), "org.apache.ivy.Main"),
        *(("-settings", Path(settings).absolute()) if settings else ()),
        *("-cache", cache / "cache", "-ivy", wanted),
        *("-retrieve", "jars/[artifact]-[revision].[ext]"),
    ]
    run(
        place,
        command,
        "Is the jar repository reachable? A site's own is named in the Ivy settings file DRIVETRAIN_IVY_SETTINGS.",
    )
    shutil.rmtree(cache)


def provide_jars(place: Place, jars: Sequence[Jar]) -> None:
    folder = place.home / "jars"
    folder.mkdir(exist_ok=True)
    keep = {jar.file for jar in jars} - {jar.file for jar in wrong_jars(folder, jars)}
    for old in folder.iterdir():
        if old.name not in keep:
            old.unlink()
    if wrong_jars(folder, jars):
        with step(f"Fetching {', '.join(jar.file for jar in jars)}"):
            fetch_jars(place, jars)
    wrong = wrong_jars(folder, jars)
    for jar in wrong:
        (folder / jar.file).unlink(missing_ok=True)
    if wrong:
        names = ", ".join(str(folder / jar.file) for jar in wrong)
        raise PrepareError(
            f"{names}: the SHA-256 is not the one in {place.locks / 'jars.txt'}, so it was deleted. "
            "Find out what serves another file under this version (a mirror?), then call again."
        )


def prepare(place: Place, what: str) -> None:
    locks = DEV_LOCKS if what == "dev" else RUN_LOCKS
    stamp = place.stamp(what)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == place.key(locks) and place.venv_python.exists():
        return  # another call did it while this one waited
    uv = find_uv()
    ready = place.stamp("run")
    if not (
        ready.is_file() and ready.read_text(encoding="utf-8") == place.key(RUN_LOCKS) and place.venv_python.exists()
    ):
        for old in (ready, place.stamp("dev")):
            old.unlink(missing_ok=True)
        place.log.write_text("", encoding="utf-8")
        say(f"preparing {place.home} once; later calls need neither this nor the network")
        with step(f"Making a virtual environment with {place.python}"):
            make_venv(place, uv)
            install(place, uv, "build.txt")
        with step(f"Installing Python packages with {'uv' if uv else 'pip'}; pyspark is large, this can take minutes"):
            install(place, uv, "run.txt")
        provide_jars(place, read_jars(place.locks / "jars.txt"))
        write_stamp(ready, place.key(RUN_LOCKS))
    if what == "dev":
        with step("Installing the tests' tools"):
            install(place, uv, "dev.txt")
        write_stamp(stamp, place.key(locks))


def write_stamp(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def open_home(home: Path) -> None:
    if "," in str(home) or ":" in f"{home}{ROOT}":
        raise PrepareError(
            f"{home} cannot be used: Spark takes a comma for the end of a jar's path, and Python a colon for the end "
            "of a folder's. Name a folder without them in DRIVETRAIN_HOME, and keep the project in one without a colon."
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / "run").mkdir(mode=0o700, exist_ok=True)
        (home / "lock").touch()
    except OSError as error:
        raise PrepareError(
            f"cannot write to {home} ({error.strerror}). Name a folder that can be written in DRIVETRAIN_HOME."
        ) from error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "dev"))
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--java", required=True)
    parser.add_argument("--python", required=True, help="the Python to build with, as it was found")
    args = parser.parse_args()
    place = Place(args.home, ROOT / "locks", args.python, args.java)
    try:
        open_home(place.home)
        with alone(place.home, "preparing"):
            prepare(place, args.what)
    except PrepareError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next call goes on")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
