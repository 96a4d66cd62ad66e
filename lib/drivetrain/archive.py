"""Archives whose bytes follow from their contents alone: names in order, one time, one owner."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

TIME: Final = 315_532_800  # 1980-01-01, the first day that a zip file knows
LEVEL: Final = 6  # 9 takes three times as long for one per cent
LARGE: Final = 64 << 10  # of files from this size on a second copy becomes a link
ELF: Final = b"\x7fELF\x02\x01"  # 64 bits, little-endian: the only ones that are made shorter


@dataclass(frozen=True)
class Entry:
    """One file of an archive; ``group`` says to whom its size is charged."""

    name: str
    group: str
    content: Path | bytes
    mode: int = 0o644

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else trimmed(self.content.read_bytes())


@dataclass
class Contents:
    """What was written: bytes before and after compression for each group, and the least glibc 2.x that it runs on."""

    groups: dict[str, list[int]] = field(default_factory=dict)
    glibc: int = 0
    digest: str = ""


def trimmed(data: bytes) -> bytes:
    """A program or library without symbols for debuggers: no segment that is ever loaded reaches so far."""
    if not data.startswith(ELF):
        return data
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    ends = [table + size * count]
    for at in range(table, table + size * count, size):
        (offset,), (length,) = struct.unpack_from("<Q", data, at + 8), struct.unpack_from("<Q", data, at + 32)
        ends.append(offset + length)
    header = bytearray(data[: max(ends)])
    struct.pack_into("<Q", header, 40, 0)  # where the sections are listed: nowhere
    struct.pack_into("<HH", header, 60, 0, 0)
    return bytes(header)


def machine(head: bytes) -> int | None:
    """For which processor a program or library is, by the number in its first 20 bytes; None where it is no ELF of 64
    bits."""
    return int(struct.unpack_from("<H", head, 18)[0]) if head.startswith(ELF) else None


def write_tar(entries: Iterable[Entry], file: BinaryIO) -> Contents:
    """As .tar.gz, with symbolic links in place of second copies."""
    contents, first = Contents(), dict[bytes, str]()
    with (
        gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for entry, data in _counted(entries, file, contents):
            info = tarfile.TarInfo(entry.name)
            info.mode, info.mtime, info.size = entry.mode, TIME, len(data)
            same = first.setdefault(hashlib.sha256(data).digest(), entry.name) if len(data) >= LARGE else entry.name
            if same != entry.name:
                info.type, info.size = tarfile.SYMTYPE, 0
                info.linkname = os.path.relpath(same, Path(entry.name).parent)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return contents


def write_zip(entries: Iterable[Entry], file: BinaryIO, compression: int = zipfile.ZIP_DEFLATED) -> Contents:
    contents = Contents()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for entry, data in _counted(entries, file, contents):
            info = zipfile.ZipInfo(entry.name)  # its time is that of TIME
            info.compress_type, info.create_system, info.external_attr = compression, 3, (0o100000 | entry.mode) << 16
            archive.writestr(info, data)
    return contents


def _counted(entries: Iterable[Entry], file: BinaryIO, contents: Contents) -> Iterator[tuple[Entry, bytes]]:
    """Each entry with its bytes, by name; while the caller writes them, ``contents`` is filled in."""
    digest = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.name):
        data, before = entry.read(), file.tell()
        digest.update(f"{entry.name}\0{entry.mode:o}\0{len(data)}\0".encode())
        digest.update(data)
        yield entry, data
        sizes = contents.groups.setdefault(entry.group, [0, 0])
        sizes[0] += len(data)
        sizes[1] += file.tell() - before
        if data.startswith(ELF):
            needed = map(int, re.findall(rb"\0GLIBC_2\.(\d+)", data))
            contents.glibc = max(contents.glibc, *needed, 0)
    contents.digest = digest.hexdigest()[:12]
