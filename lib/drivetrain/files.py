"""Files where conf says they lie: on this machine, or on a file system that Hadoop's client reaches (HDFS)."""

from __future__ import annotations

import fcntl
import os
import posixpath
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

from py4j.protocol import Py4JError, Py4JJavaError

SCHEME: Final = "^(file:/+|[a-z][a-z0-9+.-]*:(//[^/]*)?/+)"  # of Spark's SQL too
REMOTE: Final = re.compile("(?!file:)[a-z][a-z0-9+.-]*:")
LOCK: Final = ".lock"
RECOVERY_SECONDS: Final = 60  # in which HDFS closes the file of a writer that is gone
HELD, RECOVERING = ("AlreadyBeingCreatedException", "FileAlreadyExistsException"), "RecoveryInProgressException"


@dataclass(frozen=True)
class File:
    """A file as its folder lists it: size in bytes (-1 for a folder that may not be listed), times in ns since 1970;
    ``touched`` moves with its permissions too."""

    path: str
    size: int
    modified: int
    touched: int


class Files(Protocol):
    """One file system. Paths that are not there raise FileNotFoundError, those that may not be used PermissionError,
    and all else that fails OSError."""

    def is_folder(self, path: str) -> bool: ...

    def walk(self, folder: str) -> Iterator[File]:
        """Every file at any depth, but for hidden ones (. or _ before the name)."""
        ...

    def find(self, path: str) -> File | None: ...

    def copy(self, path: str) -> AbstractContextManager[Path]:
        """A context that gives the file as a local Path, to be read only."""
        ...

    def put(self, source: Path, path: str, replace: bool = True) -> None:
        """A copy of a local file or folder at ``path``, whole or not at all. Without ``replace`` a file that is there
        stays as it is."""
        ...

    def remove(self, path: str) -> None:
        """A file or a whole folder, if it is there."""
        ...

    def lock(self, folder: str, holder: str) -> AbstractContextManager[None]:
        """A context in which nobody else holds the folder; it ends with the process, however that ends (on HDFS a
        minute later). ``holder``, one line, tells others who has it; a holder of the same name takes over at once what
        an earlier process left.

        Raises:
            BlockingIOError: another holds it; ``strerror`` says who.
        """
        ...


def is_remote(path: str) -> bool:
    """Whether the path is not this machine's."""
    return bool(REMOTE.match(path))


def plain(path: str) -> str:
    """The path without scheme and host, and without what says nothing (//, a / at its end)."""
    return posixpath.normpath(re.sub(SCHEME, "/", path))


class LocalFiles:
    """This machine's files."""

    def is_folder(self, path: str) -> bool:
        return Path(plain(path)).is_dir()

    def walk(self, folder: str) -> Iterator[File]:
        root = plain(folder)
        try:
            entries = sorted(os.scandir(root), key=lambda e: e.name)
        except PermissionError:
            yield _local(root, Path(root).stat(), -1)
            return
        for entry in entries:
            if entry.name.startswith((".", "_")):
                continue
            if entry.is_dir(follow_symlinks=False):  # a link to a folder above would never end
                yield from self.walk(entry.path)
            else:
                try:
                    there = entry.stat()
                    if not stat.S_ISFIFO(there.st_mode):  # opening one would wait for ever
                        yield _local(entry.path, there, there.st_size)
                except FileNotFoundError:
                    continue
                except PermissionError:  # the folder can be listed, but not gone into
                    yield _local(root, Path(root).stat(), -1)
                    return

    def find(self, path: str) -> File | None:
        try:
            there = Path(plain(path)).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _local(plain(path), there, there.st_size)

    @contextmanager
    def copy(self, path: str) -> Iterator[Path]:
        yield Path(plain(path))

    def put(self, source: Path, path: str, replace: bool = True) -> None:
        target = Path(plain(path))
        if target.exists() and not replace:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
            return
        handle, draft = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(handle)
        try:
            shutil.copyfile(source, draft)
            Path(draft).chmod(0o644)
            Path(draft).replace(target)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise

    def remove(self, path: str) -> None:
        target = Path(plain(path))
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    @contextmanager
    def lock(self, folder: str, holder: str) -> Iterator[None]:
        root = Path(plain(folder))
        root.mkdir(parents=True, exist_ok=True)
        with (root / LOCK).open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                handle.seek(0)
                raise BlockingIOError(0, handle.read().strip()) from None
            handle.truncate(0)
            handle.write(holder)
            handle.flush()
            yield


class HadoopFiles:
    """What Hadoop's client reaches, by the configuration of its Java process."""

    def __init__(self, jvm: Any, configuration: Any) -> None:
        # By their whole names: step by step, py4j asks Java for each part of that.
        self.path_of, self.io = (getattr(jvm, f"org.apache.{one}") for one in ("hadoop.fs.Path", "commons.io.IOUtils"))
        self.configuration = configuration

    def is_folder(self, path: str) -> bool:
        there = self._status(path)
        return bool(there and there.isDirectory())

    def walk(self, folder: str) -> Iterator[File]:
        try:
            with _translated(folder):
                found = self._system(folder).listStatus(self._path(folder))
        except PermissionError:
            yield self._file(self._status(folder), -1)
            return
        for there in found:
            if there.getPath().getName().startswith((".", "_")):
                continue
            if there.isDirectory():
                yield from self.walk(there.getPath().toString())
            else:
                yield self._file(there, there.getLen())

    def find(self, path: str) -> File | None:
        there = self._status(path)
        return self._file(there, there.getLen()) if there else None

    @contextmanager
    def copy(self, path: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="drivetrain-") as folder:
            local = Path(folder, path.rsplit("/", 1)[-1])
            with _translated(path):
                self._system(path).copyToLocalFile(False, self._path(path), self._path(f"file:{local}"), True)
            yield local

    def put(self, source: Path, path: str, replace: bool = True) -> None:
        system, target = self._system(path), self._path(path)
        draft = self._path(f"{path}.{uuid4().hex}.new")
        with _translated(path):
            system.mkdirs(target.getParent())
            system.copyFromLocalFile(False, True, self._path(f"file:{source.absolute()}"), draft)
            if replace:
                system.delete(target, True)
            if not system.rename(draft, target):  # another process was first
                system.delete(draft, True)

    def remove(self, path: str) -> None:
        with _translated(path):
            self._system(path).delete(self._path(path), True)

    @contextmanager
    def lock(self, folder: str, holder: str) -> Iterator[None]:
        path = f"{folder}/{LOCK}"
        with _translated(path):
            self._system(path).mkdirs(self._path(folder))
        stream = self._opened(path, holder)
        try:
            with _translated(path):
                stream.write(bytearray(f"{holder}\n", "utf-8"))
                stream.hflush()
            yield
        finally:
            with suppress(Py4JError):  # it is gone already where another took it over, or Java has ended
                stream.close()

    def _opened(self, path: str, holder: str) -> Any:
        """The lock file, open for writing: HDFS lets one client do that, as long as it lives."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            with _translated(path):
                system, target = self._system(path), self._path(path)
                try:
                    return system.append(target) if system.exists(target) else system.create(target, False)
                except Py4JJavaError as error:
                    said = str(error.java_exception)
                    if not any(name in said for name in (*HELD, RECOVERING)):
                        raise
            last = self._last_line(path)
            if time.monotonic() > deadline or (RECOVERING not in said and last != holder):
                raise BlockingIOError(0, last)
            if last == holder:  # an earlier attempt of this very application, which YARN has given up
                with _translated(path):
                    system.recoverLease(target)
            time.sleep(1)

    def _last_line(self, path: str) -> str:
        with _translated(path):
            stream = self._system(path).open(self._path(path))
            try:
                text = self.io.toString(stream, "UTF-8")
            finally:
                stream.close()
        return str(text).strip().rsplit("\n", 1)[-1]

    def _path(self, path: str) -> Any:
        return self.path_of(path)

    def _system(self, path: str) -> Any:
        return self._path(path).getFileSystem(self.configuration)

    def _status(self, path: str) -> Any:
        try:
            with _translated(path):
                return self._system(path).getFileStatus(self._path(path))
        except FileNotFoundError:
            return None

    def _file(self, there: Any, size: int) -> File:
        modified = there.getModificationTime() * 1_000_000
        allowed = int(there.getPermission().toShort())  # HDFS keeps no time for a change of permissions
        return File(there.getPath().toString(), size, modified, modified + allowed)


@contextmanager
def _translated(path: str) -> Iterator[None]:
    """Java's errors as Python's own."""
    try:
        yield
    except Py4JJavaError as error:
        name, said = error.java_exception.getClass().getName(), str(error.java_exception.getMessage())
        kind = {"FileNotFoundException": FileNotFoundError, "AccessControlException": PermissionError}
        text = said.split("\n")[0]
        raise kind.get(name.rsplit(".", 1)[-1], OSError)(0, text, path) from None


LOCAL: Final = LocalFiles()


def files(path: str, hadoop: Callable[[], HadoopFiles]) -> Files:
    """The file system of ``path``; ``hadoop`` is called for one that is not this machine's."""
    return hadoop() if is_remote(path) else LOCAL


def _local(path: str, there: os.stat_result, size: int) -> File:
    return File(path, size, there.st_mtime_ns, there.st_ctime_ns)
