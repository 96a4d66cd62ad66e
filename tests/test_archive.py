"""archive.py: the same contents make the same bytes, and libraries lose only what nothing loads."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import os
import random
import subprocess
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from drivetrain import archive
from drivetrain.archive import Entry

LARGE = random.Random(1).randbytes(archive.LARGE)


def entries(folder: Path) -> list[Entry]:
    folder.mkdir()
    (folder / "a").write_bytes(b"one")
    (folder / "b").write_bytes(LARGE)
    return [
        Entry("x/b", "first", folder / "b", 0o755),
        Entry("a", "second", folder / "a"),
        Entry("y/z/c", "second", LARGE),
    ]


def written(found: list[Entry], kind: str) -> tuple[bytes, archive.Contents]:
    file = io.BytesIO()
    contents = getattr(archive, kind)(found, file)
    return file.getvalue(), contents


@pytest.mark.parametrize("kind", ["write_tar", "write_zip"])
def test_the_same_contents_make_the_same_bytes(tmp_path: Path, kind: str) -> None:
    first = entries(tmp_path / "first")
    second = entries(tmp_path / "second")
    os.utime(tmp_path / "second" / "a", (1, 1))
    assert written(first, kind) == written(second[::-1], kind)


@pytest.mark.parametrize(
    "other", [Entry("a", "second", b"two"), Entry("a", "second", b"one", 0o755), Entry("b", "second", b"one")]
)
def test_the_digest_knows_name_mode_and_bytes(tmp_path: Path, other: Entry) -> None:
    found = entries(tmp_path / "found")
    changed = [found[0], other, found[2]]
    assert written(found, "write_tar")[1].digest != written(changed, "write_tar")[1].digest


def test_a_second_copy_is_a_link_that_works(tmp_path: Path) -> None:
    data, contents = written(entries(tmp_path / "found"), "write_tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert [(m.name, m.mode, m.linkname, m.mtime, m.uid) for m in tar] == [
            ("a", 0o644, "", archive.TIME, 0),
            ("x/b", 0o755, "", archive.TIME, 0),
            ("y/z/c", 0o644, "../../x/b", archive.TIME, 0),
        ]
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xz", "-C", tmp_path / "out"], input=data, check=True)
    assert (tmp_path / "out" / "y" / "z" / "c").read_bytes() == LARGE
    assert contents.groups["second"][0] == 3 + len(LARGE)
    assert contents.groups["second"][1] < contents.groups["first"][1], "a link takes no room"


def test_zip_files_keep_modes(tmp_path: Path) -> None:
    data, _ = written(entries(tmp_path / "found"), "write_zip")
    with zipfile.ZipFile(io.BytesIO(data)) as made:
        assert {i.filename: i.external_attr >> 16 & 0o777 for i in made.infolist()} == {
            "a": 0o644,
            "x/b": 0o755,
            "y/z/c": 0o644,
        }
        assert made.read("y/z/c") == LARGE


def test_a_trimmed_library_is_shorter_and_works(tmp_path: Path) -> None:
    """The yaml reader's, which comes with its symbols."""
    suffix = str(sysconfig.get_config_var("EXT_SUFFIX"))
    data = Path(sysconfig.get_path("platlib"), "yaml", f"_yaml{suffix}").read_bytes()
    path = tmp_path / f"_yaml{suffix}"
    path.write_bytes(archive.trimmed(data))
    assert path.stat().st_size < len(data) * 0.9
    loader = importlib.machinery.ExtensionFileLoader("yaml._yaml", str(path))
    spec = importlib.util.spec_from_loader("yaml._yaml", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    assert module.get_version_string()
    assert archive.trimmed(b"#!/bin/sh\n") == b"#!/bin/sh\n"
