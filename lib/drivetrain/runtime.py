"""What a node needs to run us: Python with its library, the packages of a lock and, if asked, a Java runtime.

Each function gives entries of one archive. What only serves to build, test or document is left out, and so is what
Spark brings to the nodes by itself.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from drivetrain import archive
from drivetrain.archive import Entry
from drivetrain.errors import DrivetrainError, Problem

LIBRARY: Final = f"{sys.platlibdir}/python{sys.version_info[0]}.{sys.version_info[1]}"
# Where each Python looks for its library before the folder; by os.py it finds that folder.
LIBRARY_ZIP: Final = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
MODULE: Final = re.compile(rf"{re.escape(LIBRARY)}/(?!os\.py$|__pycache__/os\.|lib-dynload/).*\.pyc?")
PURE: Final = "packages.zip"
PYTHON, JAVA = "Python and its library", "Java"
PACKED: Final = "this machine's libraries"

# Of Spark's: spark-submit puts both on the nodes itself.
SPARKS_OWN: Final = ("pyspark", "py4j")

# Of the standard library: what tests it, installs packages, or needs a screen or a terminal.
NOT_OF_LIBRARY: Final = re.compile(
    r"(?:.*/)?(?:test|tests|idle_test|__pycache__)/"
    r"|(?:site-packages|dist-packages|idlelib|tkinter|turtledemo|lib2to3|ensurepip|pydoc_data|curses|config-[^/]*)/"
    r"|(?:turtle|sitecustomize)\.py$|EXTERNALLY-MANAGED$"
    r"|lib-dynload/(?:_test|_ctypes_test|_xx|xx|_tkinter|_curses|readline|nis|ossaudiodev|_crypt|_dbm|_gdbm)"
)
# Of the packages: tests, sample data, what a compiler reads or a type checker; Arrow's network protocol; fonts
# for formats other than SVG and PNG; and RECORD, which would list all of that.
NOT_OF_PACKAGES: Final = re.compile(
    r"\.\./|(?:.*/)?(?:test|tests|__pycache__|include)/(?!_natype\.py$)"  # numpy itself imports that one
    r"|.*\.(?:pyc|pyi|pyx|pxd|pxi|tp|in|c|cc|cpp|h|hpp|f|f90|a|build|rst)$"
    r"|[^/]+\.dist-info/RECORD$"
    r"|pyarrow/(?:src/|includes/|_pyarrow_cpp_tests|(?:_|lib)?(?:arrow_)?(?:python_)?flight)"
    r"|sklearn/datasets/(?:data|images|descr)/"
    r"|matplotlib/mpl-data/(?:sample_data|fonts/afm|fonts/pdfcorefonts)/"
)
# Of Java: sources, modules to link again, the compiler's view of old versions, what needs a screen, a printer or a
# sound card, and the class archive for heaps above 32 GB (they start without one).
NOT_OF_JAVA: Final = re.compile(
    r"(?:demo|docs|include|jmods|man|sample)/|(?:lib/)?src\.zip$|lib/ct\.sym$|.*\.(?:debuginfo|diz)$"
    r"|lib/server/classes_nocoops\.jsa$|lib/psfont.*"
    r"|lib/lib(?:awt_xawt|atk-wrapper|fontmanager|freetype|j2pcsc|javajpeg|jawt|jsound|lcms|mlib_image|splashscreen)\.so$"
    r"|bin/(?!(?:java|jcmd|jfr|jinfo|jmap|jps|jstack|jstat|keytool)$)[^/]+"
)
# What every node has that can run programs of this kind at all: the C and C++ libraries and their loader.
PLATFORM: Final = re.compile(
    r"(?:linux-vdso|ld-linux.*|libc|libm|libdl|libpthread|librt|libutil|libresolv|libanl|libstdc\+\+|libgcc_s)\.so"
)

# Only built-ins of the shell: a node's PATH may be empty.
START: Final = """#!/bin/sh
# Starts the Python of this folder, wherever it was unpacked.
case $0 in
*/*) drivetrain_env=${0%/*} ;;
*) drivetrain_env=. ;;
esac
drivetrain_env=$(CDPATH= cd -- "$drivetrain_env/.." && pwd -P) || exit
unset PYTHONHOME
LD_LIBRARY_PATH=$drivetrain_env/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export LD_LIBRARY_PATH
exec "$drivetrain_env/bin/PROGRAM" -s "$@"
"""
# Programs that this Python starts must not find its libraries, and sys.executable must start it as it was started.
STARTED: Final = '''"""Run at the start of this Python by drivetrain_env.pth."""
import os
import sys

own, _, other = os.environ.get("LD_LIBRARY_PATH", "").partition(":")
if own == sys.prefix + "/lib":
    del os.environ["LD_LIBRARY_PATH"]
    if other:
        os.environ["LD_LIBRARY_PATH"] = other
sys.executable = sys._base_executable = sys.prefix + "/bin/python"
'''


def environment(lock: Path, java: Path | None, work: Path) -> list[Entry]:
    """Everything of the one archive, without the names that occur twice; ``work`` is an empty folder to compile in.

    Raises:
        DrivetrainError: a package of the lock is not installed, or ldd is not there.
    """
    packages = list(package_entries(lock))
    python = list(python_entries())
    own = [entry for entry in python + packages if isinstance(entry.content, Path)]
    found = [*zipped([*python, *packages, *compiled(own, work)], work), *libraries(own, "lib")]
    if java:
        runtime = list(java_entries(java))
        found += [*runtime, *libraries(runtime, "java/lib")]
    return list({entry.name: entry for entry in found}.values())


# --- Python -------------------------------------------------------------------------------------------------------


def interpreter() -> Path:
    """The program itself, behind the links of a virtual environment."""
    return Path(os.path.realpath(getattr(sys, "_base_executable", sys.executable)))


def python_entries() -> Iterator[Entry]:
    """Beside its library the interpreter finds it without being told where: that makes the folder movable."""
    program = interpreter()
    yield Entry(f"bin/{program.name}", PYTHON, program, 0o755)
    yield Entry("bin/python", PYTHON, START.replace("PROGRAM", program.name).encode(), 0o755)
    library = Path(os.__file__).parent
    for path in _files(library, NOT_OF_LIBRARY):
        yield Entry(f"{LIBRARY}/{path.relative_to(library).as_posix()}", PYTHON, path, _mode(path))
    site = site_packages()
    yield Entry(f"{site}/drivetrain_env.pth", PYTHON, f"{PURE}\nimport drivetrain_env\n".encode())
    yield Entry(f"{site}/drivetrain_env.py", PYTHON, STARTED.encode())


def site_packages() -> str:
    """Where this interpreter looks for packages below its folder; Debian's has a place of its own."""
    ask = "import site; print(site.getsitepackages(['/.'])[0])"
    said = subprocess.run([interpreter(), "-I", "-c", ask], capture_output=True, text=True, check=True)
    return said.stdout.strip().removeprefix("/./")


def package_entries(lock: Path) -> Iterator[Entry]:
    site, missing = site_packages(), []
    for name in locked(lock):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        for file in distribution.files or ():
            path = Path(str(distribution.locate_file(file)))
            if not NOT_OF_PACKAGES.match(file.as_posix()) and path.is_file():
                yield Entry(f"{site}/{file.as_posix()}", name, path, _mode(path))
    if missing:
        what = f"not installed: {', '.join(missing)}"
        raise DrivetrainError(Problem("package", sys.prefix, what, "delete this folder and call again"))


def locked(lock: Path) -> list[str]:
    """The lock's packages that this Python needs, without Spark's own."""
    names = re.findall(r"^([a-z0-9.-]+)==", lock.read_text("utf-8"), re.MULTILINE)
    return [name for name in names if name not in SPARKS_OWN]


def compiled(entries: Iterable[Entry], work: Path) -> Iterator[Entry]:
    """Byte code of the modules. It is taken unasked, since unpacking changes the times by which it is checked."""
    modules = {str(entry.content): entry for entry in entries if entry.name.endswith(".py")}
    roots = [str(Path(os.__file__).parent), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    # Before Python 3.11 the order of a set, which follows from hashes, is part of the code.
    environ = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPYCACHEPREFIX": str(work)}
    running = []
    for i, root in enumerate(dict.fromkeys(roots)):
        names = [path for path in modules if path.startswith(f"{root}/")]
        listed = work / f"{i}.list"
        listed.write_text("\n".join(names))
        options = ["-qq", "--invalidation-mode", "unchecked-hash", "-s", root, "-i", str(listed)]
        running.append(subprocess.Popen([sys.executable, "-m", "compileall", *options], env=environ))
    for process in running:
        process.wait()  # not 0 where some file is no Python of this version; the others are compiled
    for path, entry in modules.items():
        name = f"{Path(path).stem}.{sys.implementation.cache_tag}.pyc"
        made = work.joinpath(*Path(path).parent.parts[1:], name)
        if made.is_file():
            yield Entry(f"{Path(entry.name).parent}/__pycache__/{name}", entry.group, made)


def zipped(entries: Iterable[Entry], work: Path) -> Iterator[Entry]:
    """The same, but what Python can import from a zip file in two of those: its library's modules, and packages without
    native code. A node unpacks file by file, and where it lacks Hadoop's native library starts a process for each.
    """
    site, found = site_packages(), {entry.name: entry for entry in entries}.values()
    names = {entry.name for entry in found}
    native = {_package(name, site) for name in names if ".so" in Path(name).suffixes}
    packages, modules = list[Entry](), list[Entry]()
    for entry in found:
        package = _package(entry.name, site)
        if package not in native and f"{site}/{package}/__init__.py" in names:
            packages.append(_inside(entry, site))
        elif not package and MODULE.fullmatch(entry.name):
            modules.append(_inside(entry, LIBRARY))
        else:
            yield entry
    yield _zip(f"{site}/{PURE}", "packages without native code", packages, work)
    yield _zip(f"{sys.platlibdir}/{LIBRARY_ZIP}", PYTHON, modules, work)


def _package(name: str, site: str) -> str:
    """To which package of the site's a file belongs; empty for none."""
    return name.removeprefix(f"{site}/").split("/")[0] if name.startswith(f"{site}/") else ""


def _inside(entry: Entry, folder: str) -> Entry:
    """The entry as it is named in a zip file of the folder: byte code lies beside its module there."""
    name = entry.name.removeprefix(f"{folder}/")
    return replace(entry, name=re.sub(r"__pycache__/([^/]+)\.[^./]+\.pyc$", r"\1.pyc", name))


def _zip(name: str, group: str, entries: Iterable[Entry], work: Path) -> Entry:
    path = work / Path(name).name
    with path.open("wb") as file:
        archive.write_zip(entries, file, zipfile.ZIP_STORED)
    return Entry(name, group, path)


# --- Shared libraries ---------------------------------------------------------------------------------------------


def libraries(entries: Iterable[Entry], folder: str) -> Iterator[Entry]:
    """What the programs and libraries among the entries need of this machine and another may not have."""
    paths = [entry.content for entry in entries if isinstance(entry.content, Path) and _is_elf(entry)]
    carried = {path.resolve() for path in paths}
    if not (ldd := shutil.which("ldd")):
        what = "ldd is not there, which tells what shared libraries Python needs"
        raise DrivetrainError(Problem("package", os.environ.get("PATH", ""), what, "install it (package libc-bin)"))
    said = subprocess.run([ldd, *paths], capture_output=True, text=True).stdout
    for name, path in sorted(set(re.findall(r"^\s+(\S+) => (/\S.*) \(0x", said, re.MULTILINE))):
        if not PLATFORM.match(name) and Path(path).resolve() not in carried:
            yield Entry(f"{folder}/{name}", PACKED, Path(path), 0o755)


def _is_elf(entry: Entry) -> bool:
    with Path(str(entry.content)).open("rb") as file:
        return file.read(4) == b"\x7fELF"


# --- Java ---------------------------------------------------------------------------------------------------------


def java_home() -> Path:
    """The one that scripts/env.sh finds."""
    named = os.environ.get("JAVA_HOME")
    program = shutil.which(f"{named}/bin/java" if named else "java")
    if not program:
        where = f"JAVA_HOME={named}" if named else "PATH"
        fix = "correct JAVA_HOME or unset it, or install one: apt-get install openjdk-17-jre-headless"
        raise DrivetrainError(Problem("package", where, "there is no Java to pack", fix))
    return Path(program).resolve().parents[1]


def java_entries(home: Path) -> Iterator[Entry]:
    """Some are links into /etc, so that all links are followed."""
    for path in _files(home, NOT_OF_JAVA):
        yield Entry(f"java/{path.relative_to(home).as_posix()}", JAVA, path, _mode(path))


# --- Files --------------------------------------------------------------------------------------------------------


def _files(folder: Path, without: re.Pattern[str]) -> Iterator[Path]:
    """All below the folder, also behind links, but for names that ``without`` matches from their beginning."""
    for here, below, names in os.walk(folder, followlinks=True):
        at = Path(here).relative_to(folder)
        below[:] = [name for name in below if not without.fullmatch(f"{(at / name).as_posix()}/")]
        for name in names:
            path = Path(here, name)
            if not without.match((at / name).as_posix()) and path.is_file():
                yield path


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o100 else 0o644
