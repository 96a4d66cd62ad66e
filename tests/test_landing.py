"""Which files have arrived, and what is said of each before Spark reads it."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_contracts import make_column, make_dataset

from drivetrain.contracts import Options
from drivetrain.errors import DrivetrainError
from drivetrain.landing import (
    Arrival,
    Landed,
    Rejected,
    arrivals,
    changed,
    grown,
    inspect,
    inspect_all,
    listing,
    numbered,
)


@given(st.lists(st.sampled_from(["a", "A", "b", "a#2", "A#3", "", "#2", "ä", "Ä"])))
@example(["a", "a#2", "a"])
@example(["a", "a", "a#2"])
def test_numbered_names_are_unique(names: list[str]) -> None:
    made = list(numbered(names))
    assert len({name.lower() for name in made}) == len(names)
    assert all(new == old or new.startswith(f"{old}#") for new, old in zip(made, names, strict=True))
    first = {name.lower(): i for i, name in reversed(list(enumerate(names)))}
    plain = [i for name, i in first.items() if "#" not in name]
    assert all(made[i] == names[i] for i in plain), "the first of a name keeps it"


def test_numbering_is_as_documented() -> None:
    assert list(numbered(["Price", "qty", "PRICE", "price"])) == ["Price", "qty", "PRICE#2", "price#3"]


def test_a_million_equal_names_do_not_take_for_ever() -> None:
    began = time.perf_counter()
    assert len(set(numbered([""] * 300_000))) == 300_000
    assert time.perf_counter() - began < 10


def put(folder: Path, name: str, content: bytes = b"id,at,value\n") -> Arrival:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    stat = path.stat()
    return Arrival(name, str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def test_arrivals_are_the_wanted_files_by_name(tmp_path: Path) -> None:
    for name in (
        "b.csv",
        "a.csv",
        "sub/deep/c.csv",
        "d.txt",
        ".hidden.csv",
        "_temporary/e.csv",
        "_SUCCESS",
        ".x/f.csv",
    ):
        put(tmp_path, name)
    dataset = make_dataset(path=str(tmp_path), files="*.csv")
    assert [file.name for file in arrivals(dataset, 0)] == ["a.csv", "b.csv", "sub/deep/c.csv"]
    assert [file.name for file in arrivals(make_dataset(path=f"file://{tmp_path}"), 0)] == [
        "a.csv",
        "b.csv",
        "d.txt",
        "sub/deep/c.csv",
    ]


def test_what_is_no_readable_file_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "good.csv")
    put(tmp_path, "closed/a.csv")
    put(tmp_path, "two\nlines.csv")
    put(tmp_path, "売上\u3000\u202f2024 \u200d.csv")
    (tmp_path / os.fsdecode(b"latin-\xe9.csv")).write_bytes(b"id,at,value\n")
    os.mkfifo(tmp_path / "pipe.csv")
    real = os.scandir

    def scandir(folder: Path) -> Any:  # root may list it all the same
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    dataset = make_dataset(path=str(tmp_path), files="*.csv")
    found = {file.name: file for file in inspect_all(dataset, arrivals(dataset, 0))}
    rules = {name: file.rule for name, file in found.items() if isinstance(file, Rejected)}
    assert rules == {"closed": "no_permission", r"latin-\udce9.csv": "file_name", r"two\nlines.csv": "file_name"}
    assert isinstance(found["good.csv"], Landed) and len(found) == 5
    assert found["closed"].reason.startswith("the folder closed may not be listed")  # type: ignore[union-attr]


def test_a_young_file_is_left_to_settle(tmp_path: Path) -> None:
    put(tmp_path, "young.csv")
    old = put(tmp_path, "old.csv")
    os.utime(old.path, (time.time() - 100, time.time() - 100))
    dataset = make_dataset(path=str(tmp_path))
    assert [file.name for file in arrivals(dataset, 60)] == ["old.csv"]
    assert len(arrivals(dataset, 0)) == 2


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DrivetrainError) as error:
        arrivals(make_dataset(path=str(tmp_path / "gone")), 0)
    problem = error.value.problems[0]
    assert (problem.code, problem.where) == ("landing", "conf/datasets/feed.yaml:1 (feed)")
    assert str(tmp_path / "gone") in problem.what


def test_listing_moves_with_any_file(tmp_path: Path) -> None:
    dataset = make_dataset(path=str(tmp_path))
    seen = [listing(arrivals(dataset, 0))]
    put(tmp_path, "a.csv")
    seen.append(listing(arrivals(dataset, 0)))
    put(tmp_path, "b.csv")
    seen.append(listing(arrivals(dataset, 0)))
    put(tmp_path, "b.csv", b"longer,than,before\n")
    seen.append(listing(arrivals(dataset, 0)))
    (tmp_path / "a.csv").chmod(0o600)
    seen.append(listing(arrivals(dataset, 0)))
    assert len(set(seen)) == 5
    assert listing(arrivals(dataset, 0)) == seen[-1]


CONTENT = b"id,at,value\n1,2,x\n"


@pytest.mark.parametrize(
    ("name", "content", "options", "header", "charset"),
    [
        ("a.csv", CONTENT, {}, ("id", "at", "value"), "UTF-8"),
        ("a.csv", b"\xef\xbb\xbf" + CONTENT, {}, ("id", "at", "value"), "UTF-8"),
        ("a.csv", b"id,at,value\r\n", {}, ("id", "at", "value"), "UTF-8"),
        ("a.csv", b"id,at,value", {}, ("id", "at", "value"), "UTF-8"),
        ("a.csv", b'"id" , "a,t","va""lue"\n', {}, ("id", '"a', 't"', 'va"lue'), "UTF-8"),
        ("a.csv", b"id;AT;at\n", {"delimiter": ";"}, ("id", "AT", "at#2"), "UTF-8"),
        ("a.csv", b"'i|d'|at\n", {"delimiter": "|", "quote": "'"}, ("i|d", "at"), "UTF-8"),
        ("a.csv", b"'id'||at||value\n", {"delimiter": "||", "quote": "'"}, ("id", "at", "value"), "UTF-8"),
        (
            "a.csv",
            'größe,"x'.encode("windows-1252"),
            {"encoding": "windows-1252", "quote": ""},
            ("größe", '"x'),
            "windows-1252",
        ),
        ("a.csv", "id,größe\n1,2".encode("utf-16"), {}, ("id", "größe"), "UTF-16LE"),
        ("a.csv", b"\xfe\xff" + "id,größe\n1,2".encode("utf-16-be"), {}, ("id", "größe"), "UTF-16BE"),
        ("a.csv", "id,größe\n".encode("utf-16-le"), {"encoding": "UTF-16"}, ("id", "größe"), "UTF-16LE"),
        ("a.csv", b"1,2,x\n", {"header": False}, ("id", "at", "value"), "UTF-8"),
        ("a.csv.gz", gzip.compress(CONTENT), {}, ("id", "at", "value"), "UTF-8"),
        ("a.csv.gz", gzip.compress(CONTENT[:5]) + gzip.compress(CONTENT[5:]), {"quote": '"'}, None, "UTF-8"),
    ],
)
def test_headers(
    tmp_path: Path, name: str, content: bytes, options: dict[str, Any], header: tuple[str, ...] | None, charset: str
) -> None:
    landed = inspect(make_dataset(options=Options(**options)), put(tmp_path, name, content))
    assert isinstance(landed, Landed)
    assert landed.charset == charset
    assert landed.sha256 == hashlib.sha256(content).hexdigest()
    assert header is None or landed.header == header


def test_without_header_the_columns_stand_as_in_the_contract(tmp_path: Path) -> None:
    """Those with transformLogic left out, though one stands before what it reads."""
    columns = (
        make_column("day", transform="to_date(TS)", sources=("TS",)),
        make_column("id"),
        make_column("ts", feed_name="TS"),
    )
    dataset = make_dataset(*columns, options=Options(header=False), sequence=None, identity=("id",))
    landed = inspect(dataset, put(tmp_path, "a.csv", b"1,2026-01-05\n"))
    assert isinstance(landed, Landed) and landed.header == ("id", "TS")


NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufeff"), max_size=8)


@given(st.lists(NAMES, min_size=2, max_size=8), st.sampled_from(",;|\t"))
def test_header_is_what_python_writes(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], delimiter: str
) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerow(names)
    folder = tmp_path_factory.getbasetemp()
    landed = inspect(
        make_dataset(options=Options(delimiter=delimiter)),
        put(folder, "header.csv", (text.getvalue() + "1\n").encode()),
    )
    assert isinstance(landed, Landed)
    assert [name.split("#")[0] for name in landed.header] == [name.strip().split("#")[0] for name in names]
    assert len(landed.header) == len({name.lower() for name in landed.header})


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


TABLE = _parquet(pa.table({"id": ["1"], "At": [2]}))


def test_other_formats(tmp_path: Path) -> None:
    def header(form: Any, content: bytes) -> tuple[str, ...]:
        landed = inspect(make_dataset(format=form), put(tmp_path, f"a.{form}", content))
        assert isinstance(landed, Landed)
        return landed.header

    assert header("parquet", TABLE) == ("id", "At")
    assert header("json", b'{"id": 1}\n') == ()
    assert header("text", b"hello\n") == header("document", b"hello\n") == ("text",)


@pytest.mark.parametrize(
    ("name", "form", "content", "rule"),
    [
        ("a.csv", "csv", b"", "empty_file"),
        ("a.csv.gz", "csv", gzip.compress(CONTENT * 999)[:-9], "truncated_gzip"),
        ("a.csv.gz", "csv", gzip.compress(CONTENT)[:4], "truncated_gzip"),
        ("a.csv.gz", "csv", CONTENT, "truncated_gzip"),
        ("a.csv.gz", "csv", gzip.compress(CONTENT) + gzip.compress(CONTENT * 99)[:-20], "truncated_gzip"),
        ("a.csv.gz", "csv", gzip.compress(CONTENT) + b"rubbish", "truncated_gzip"),
        ("a.parquet", "parquet", TABLE[:-8], "torn_parquet"),
        ("a.parquet", "parquet", b"PAR1", "torn_parquet"),
        ("a.csv", "csv", b"id,gr\xf6\xdfe\n", "header_encoding"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, form: Any, content: bytes, rule: str) -> None:
    rejected = inspect(make_dataset(format=form), put(tmp_path, name, content))
    assert isinstance(rejected, Rejected)
    assert rejected.rule == rule
    assert name in rejected.reason
    assert (rejected.name, rejected.size) == (name, len(content))


def test_a_file_that_went_away(tmp_path: Path) -> None:
    file = put(tmp_path, "a.csv")
    Path(file.path).unlink()
    rejected = inspect(make_dataset(), file)
    assert isinstance(rejected, Rejected) and rejected.rule == "vanished"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    file = put(tmp_path, "a.csv")
    Path(file.path).chmod(0)
    rejected = inspect(make_dataset(), file)
    assert isinstance(rejected, Rejected) and rejected.rule == "no_permission"


def test_layout_is_the_headers_and_the_formats(tmp_path: Path) -> None:
    files = [
        put(tmp_path, "a.csv", b"id,at\n1,2\n"),
        put(tmp_path, "b.csv", b"id,at\n3,4\n"),
        put(tmp_path, "c.csv", b"at,id\n"),
    ]
    a, b, c = inspect_all(make_dataset(), files)
    assert isinstance(a, Landed) and isinstance(b, Landed) and isinstance(c, Landed)
    assert a.layout == b.layout != c.layout
    assert [a.name, b.name, c.name] == ["a.csv", "b.csv", "c.csv"]


@pytest.mark.parametrize(
    ("name", "before", "now", "is_grown"),
    [
        ("a.csv", b"a\n1\n", b"a\n1\n2\n", True),
        ("a.csv", b"a\r\n1\r\n", b"a\r\n1\r\n2", True),
        ("a.csv", b"a\n1\n", b"a\n1\n", True),
        ("a.csv", b"a\n1", b"a\n1\n2\n", False),  # its last line may have been half a line
        ("a.csv", b"a\n1\n", b"a\n2\n3\n", False),
        ("a.csv", b"a\n1\n", b"a\n", False),
        ("a.csv", "a\n1\n".encode("utf-16-le"), "a\n1\n2\n".encode("utf-16-le"), True),
    ],
)
def test_a_grown_file_holds_what_it_held(tmp_path: Path, name: str, before: bytes, now: bytes, is_grown: bool) -> None:
    earlier = inspect(make_dataset(), put(tmp_path, name, before))
    later = inspect(make_dataset(), put(tmp_path, name, now))
    assert isinstance(earlier, Landed) and isinstance(later, Landed)
    assert grown(later, earlier) is is_grown


def test_changed_files_are_noticed(tmp_path: Path) -> None:
    landed = inspect(make_dataset(), put(tmp_path, "a.csv", CONTENT))
    assert isinstance(landed, Landed) and not changed(landed)
    put(tmp_path, "a.csv", CONTENT + b"3,4,y\n")
    assert changed(landed)
    Path(landed.path).unlink()
    assert changed(landed)
