"""What has arrived: the files of a feed, their content's hash and header, and which of them cannot be read."""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import re
import time
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final, Literal

import pyarrow
import pyarrow.parquet

from drivetrain.contracts import Dataset, digest
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import LOCAL, Files, plain

BLOCK: Final = 1 << 20
MARKS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32LE"), (codecs.BOM_UTF32_BE, "UTF-32BE"), (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"), (codecs.BOM_UTF16_BE, "UTF-16BE"),
)  # fmt: skip


@dataclass(frozen=True)
class Arrival:
    """One file as the folder lists it. ``name`` is relative to the dataset's folder; times are ns since 1970, and
    ``touched`` moves with its permissions too."""

    name: str
    path: str
    size: int
    modified: int
    touched: int


@dataclass(frozen=True)
class Landed:
    """A file that can be read. ``header`` names the feed's columns where the format has names; ``layout``
    is its hash, and that of the columns' kinds in a format that has kinds."""

    name: str
    path: str
    size: int
    modified: int
    sha256: str
    charset: str
    header: tuple[str, ...]
    layout: str


@dataclass(frozen=True)
class Pull:
    """One reading of a table: the rows whose ``sequence`` lies above ``lower`` and not above ``upper`` (None: without
    bound), by partitions that ``cuts`` part; and, with ``strays``, those whose sequence is NULL or infinite.

    ``header`` has the columns' names as the contract spells them, ``names`` as the database does, ``kinds`` their types
    there. ``seen`` and ``seen_strays`` are hashes of the rows within the overlap below ``upper``, and of the strays, as
    they were before the reading. ``modified`` is ns since 1970.
    """

    name: str
    number: int
    table: str
    modified: int
    header: tuple[str, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    layout: str
    sequence: str
    lower: str | None
    upper: str | None
    cuts: tuple[str, ...]
    strays: bool
    seen: str
    seen_strays: str

    def __str__(self) -> str:
        after = f" after {self.lower}" if self.lower else ""
        parts = [f"{self.sequence}{after} up to {self.upper}"] if self.upper else []
        return f"rows of {self.table}: {', '.join([*parts, *(['without a sequence'] if self.strays else [])])}"


Intake = Landed | Pull  # what a load takes


@dataclass(frozen=True)
class Rejected:
    """A file that cannot be taken, and why."""

    name: str
    size: int
    modified: int
    rule: str
    reason: str


def arrivals(dataset: Dataset, settle_seconds: float, files: Files = LOCAL) -> list[Arrival]:
    """Files of the dataset's folder and its sub-folders that match its glob, by name; hidden ones are not files.

    Raises:
        DrivetrainError: the folder cannot be listed.
    """
    root = plain(dataset.path)
    if not files.is_folder(dataset.path):
        raise DrivetrainError(
            Problem(
                "landing",
                f"{dataset.where} ({dataset.name})",
                f"the feed's folder {root} does not exist",
                "make it, or correct the path under servers",
            )
        )
    newest = time.time_ns() - int(settle_seconds * 1e9)
    found = [
        Arrival(plain(file.path)[len(root) + 1 :] or ".", file.path, file.size, file.modified, file.touched)
        for file in files.walk(dataset.path)
    ]
    wanted = [a for a in found if a.size < 0 or fnmatch(a.name.rsplit("/", 1)[-1], dataset.files)]
    return sorted((a for a in wanted if settle_seconds == 0 or a.modified <= newest), key=lambda a: a.name)


def listing(files: Iterable[Arrival]) -> str:
    """Hash of a whole listing: the same means that nothing has come, changed or been allowed since."""
    return digest([[file.name, file.size, file.modified, file.touched] for file in files])


def inspect_all(dataset: Dataset, found: Iterable[Arrival], files: Files = LOCAL) -> list[Landed | Rejected]:
    """Look into each file: two at a time, since hashing and unzipping let go of the interpreter's lock."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda file: inspect(dataset, file, files), found))


def inspect(dataset: Dataset, file: Arrival, files: Files = LOCAL) -> Landed | Rejected:
    """Read the file once through: its hash, its header, and whether it is whole."""

    def reject(rule: str, reason: str) -> Rejected:
        return Rejected(file.name, file.size, file.modified, rule, reason)

    if file.size < 0:
        return reject("no_permission", f"the folder {file.name} may not be listed: chmod it, or run as a user who may")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in file.name):
        plain = file.name.encode("unicode_escape").decode()
        what = f"the name of {plain} holds a control character, or is not UTF-8: rename it"
        return Rejected(plain, file.size, file.modified, "file_name", what)
    if file.size == 0:
        return reject("empty_file", f"{file.name} has no bytes")
    try:
        with files.copy(file.path) as path:
            head, sha256 = _read_through(path)
            charset = _charset(head, dataset.options.encoding)
            header, kinds = _header(dataset, path, head, charset)
    except FileNotFoundError:
        return reject("vanished", f"{file.name} was listed but is gone")
    except PermissionError:
        return reject("no_permission", f"{file.name} may not be read: chmod it, or run as a user who may")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return reject("truncated_gzip", f"{file.name} is not a whole gzip file: {error}")
    except pyarrow.ArrowException as error:
        return reject("torn_parquet", f"{file.name} is not a whole Parquet file: {str(error).splitlines()[0]}")
    except UnicodeDecodeError as error:
        return reject("header_encoding", f"the header of {file.name} is not {error.encoding}: byte {error.start}")
    except csv.Error as error:
        return reject("header", f"the header of {file.name} is not a line of CSV: {error}")
    except OSError as error:
        return reject("unreadable", f"{file.name}: {error.strerror or error}")
    layout = digest([dataset.format, header, *kinds])
    return Landed(file.name, file.path, file.size, file.modified, sha256, charset, header, layout)


def grown(file: Landed, before: Landed, files: Files = LOCAL) -> bool:
    """Whether the file is what it was ``before``, whole lines, and more lines behind them."""
    if file.size < before.size or file.name.endswith(".gz"):
        return False
    hashed, size, last = hashlib.sha256(), before.size, b""
    with files.copy(file.path) as path, path.open("rb") as stream:
        while size > 0 and (block := stream.read(min(size, BLOCK))):
            hashed.update(block)
            size, last = size - len(block), block[-1:]
    return hashed.hexdigest() == before.sha256 and last in (b"\n", b"\r", b"\0")  # UTF-16 ends a line with a zero byte


def changed(file: Landed, files: Files = LOCAL) -> bool:
    """Whether the file is no longer the one that was inspected."""
    try:
        now = files.find(file.path)
    except OSError:
        return True
    return now is None or (now.size, now.modified) != (file.size, file.modified)


def _read_through(path: Path) -> tuple[bytes, str]:
    hashed, head = hashlib.sha256(), b""
    unzip = zlib.decompressobj(zlib.MAX_WBITS | 16) if path.name.endswith(".gz") else None
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            hashed.update(block)
            for part in _unzipped(unzip, block) if unzip else (block,):
                head = head + part if len(head) < BLOCK else head
    if unzip is not None:
        _check_whole(path, unzip)
    return head, hashed.hexdigest()


def _unzipped(unzip: zlib._Decompress, block: bytes) -> Iterator[bytes]:
    while block:
        yield unzip.decompress(block, BLOCK)
        block = unzip.unconsumed_tail
        if unzip.eof and unzip.unused_data:
            return


def _check_whole(path: Path, unzip: zlib._Decompress) -> None:
    if not unzip.eof:
        raise EOFError("it ends before its end marker")
    if unzip.unused_data:  # several members: let the library follow them
        with gzip.open(path) as stream:
            while stream.read(BLOCK):
                pass


def _charset(head: bytes, declared: str) -> str:
    mark = next((charset for bom, charset in MARKS if head.startswith(bom)), None)
    if mark:
        return mark
    name = codecs.lookup(declared).name
    return {"utf-8": "UTF-8", "utf-16": "UTF-16LE", "utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}.get(
        name, declared
    )


def _header(dataset: Dataset, path: Path, head: bytes, charset: str) -> tuple[tuple[str, ...], list[str]]:
    if dataset.format == "parquet":
        with path.open("rb") as stream:
            schema = pyarrow.parquet.read_schema(stream)
        return tuple(schema.names), [str(kind) for kind in schema.types]
    if dataset.format in ("text", "document"):
        return ("text",), []
    if dataset.format == "json":
        return (), []
    if not dataset.options.header:  # not feed_columns: a transformation may name its sources before they stand
        return tuple(column.feed_name for column in dataset.columns if not column.transform), []
    return tuple(numbered(_fields(dataset, _first_line(dataset, head, charset)))), []


def _first_line(dataset: Dataset, head: bytes, charset: str) -> str:
    if dataset.options.multi_line or charset.startswith(("UTF-16", "UTF-32")):
        line = head.split("\n".encode(charset), 1)[0]
    else:  # as Spark takes lines to end
        line = re.split(b"[\r\n]", head, maxsplit=1)[0]
    return line.decode(charset).removeprefix("\ufeff").rstrip("\r")


def _fields(dataset: Dataset, line: str) -> list[str]:
    options = dataset.options
    if len(options.delimiter) == 1:
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if options.quote else csv.QUOTE_NONE
        csv.field_size_limit(1 << 30)
        rows = csv.reader(
            io.StringIO(line), delimiter=options.delimiter, quotechar=options.quote or None, quoting=quoting
        )
        return [name.strip() for name in next(rows, [])]
    return [name.strip().strip(options.quote or None) for name in line.split(options.delimiter)]


def numbered(names: Iterable[str]) -> Iterator[str]:
    """Names that stand again, whatever their case, get #2, #3 …"""
    taken: set[str] = set()
    last: dict[str, int] = {}
    for name in names:
        shown, key = name, name.lower()
        while shown.lower() in taken:  # on from the last number, as a header may be one name a million times
            last[key] = last.get(key, 1) + 1
            shown = f"{name}#{last[key]}"
        taken.add(shown.lower())
        yield shown
