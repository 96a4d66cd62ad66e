"""Whatever arrives: it is read right or put into quarantine with its reason, good rows go on, and nothing is lost."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import DAY, KEY, MONEY, WHOLE, Tiny

from drivetrain import source
from drivetrain.pipeline import Outcome

pytestmark = pytest.mark.spark

HEADER = "id,n,amount,day,text"
COLUMNS = {"id": {"required": True}, "n": WHOLE, "amount": MONEY, "day": DAY, "text": {}}
WIDE = 5000


def line(name: str, n: object = 1, amount: str = "2.50", day: str = "2026-01-31", text: str = "ok") -> str:
    return f"{name},{n},{amount},{day},{text}"


def lines(*given: str, header: str = HEADER, end: str = "\n") -> str:
    return "".join(f"{one}{end}" for one in (header, *given))


def among_good(bad: str | bytes) -> bytes:
    return lines(line("a")).encode() + (bad if isinstance(bad, bytes) else bad.encode()) + f"\n{line('z')}\n".encode()


@dataclass
class Case:
    """A file, the ids that silver has of it, and what quarantine has: (rule, line, part of the reason)."""

    content: bytes
    silver: list[str] = field(default_factory=lambda: ["a", "z"])
    bad: list[tuple[str, int | None, str]] = field(default_factory=list)


def parquet(ids: list[Any], name: str = "id", **columns: Any) -> bytes:
    buffer = io.BytesIO()
    table = pa.table({name: ids, "n": [1] * len(ids), "amount": [Decimal("2.50")] * len(ids), **columns})
    pq.write_table(table, buffer, compression="zstd", row_group_size=1000, use_dictionary=False)
    return buffer.getvalue()


def torn_page() -> bytes:
    """A file whose footer is whole and whose second row group is not."""
    content = bytearray(parquet([f"{i:09}" for i in range(2000)]))
    begin = pq.read_metadata(io.BytesIO(bytes(content))).row_group(1).column(0).data_page_offset
    content[begin + 40 : begin + 400] = bytes(360)
    return bytes(content)


SHAPE = "5 fields expected, "
WIDE_HEADER = HEADER + "".join(f",c{i}" for i in range(WIDE - 5))
TORN_GZIP = gzip.compress(lines(*map(line, map(str, range(999)))).encode())[:-100]
EVENTS = [  # a line, and its rule and reason where it is bad
    ('{"id":"a","n":1,"amount":2.5}',),
    ('{"id":"b","n":', "shape", "it is not one JSON object"),
    ('{"id":"b","n":1,"amount":2.5} x', "shape", "it is not one JSON object"),
    ('{"id":"b","n":1,"amount":2}{"id":"c","n":1,"amount":2}', "shape", "it is not one JSON object"),
    ('{"id":"b","n":1,"amount":2},{"id":"c","n":1,"amount":2}', "shape", "it is not one JSON object"),
    ('["b"]', "shape", "it is not one JSON object"),
    ("null", "shape", "it is not one JSON object"),
    ("7", "shape", "it is not one JSON object"),
    ("}", "shape", "it is not one JSON object"),
    ('{"id":"b","id":"c","n":1,"amount":1}', "shape", "it is not one JSON object"),
    ('{"id":"b","n":100000000000000000000,"amount":1}', "type", f"n: '{10**20}'"),
    ('{"id":"b","n":1,"amount":2.505}', "type", "amount: '2.505'"),
    ('{"id":"b","n":1}', "shape", "amount is missing from the record"),
    ('{"id":"b","n":{"m":1},"amount":1}', "type", "n: '{\"m\":1}'"),
    ('{"id":"m","ID":"M","n":1,"amount":1}',),
    ('{"id":"z","n":1,"amount":0.1}',),
]
CASES = {
    "lines/good.csv": Case(lines(line("a"), line("z")).encode()),
    "lines/other order.csv": Case(lines("ok,2026-01-31,a,2.50,1", header="text,day,id,amount,n").encode(), ["a"]),
    "lines/empty.csv": Case(b"", [], [("empty_file", None, "empty.csv has no bytes")]),
    "lines/header_only.csv": Case(lines().encode(), []),
    "lines/header_again.csv": Case(among_good(HEADER), bad=[("shape", 3, "it repeats the header")]),
    "lines/name_twice.csv": Case(lines(f"{line('a')},x", f"{line('z')},y", header=f"{HEADER},text").encode()),
    "lines/name_twice_in_capitals.csv": Case(lines(f"{line('a')},x", header=f"{HEADER},TEXT").encode(), ["a"]),
    "lines/too_few.csv": Case(among_good("b,1"), bad=[("shape", 3, f"{SHAPE}2 found")]),
    "lines/too_many.csv": Case(among_good(line("b") + ",,"), bad=[("shape", 3, f"{SHAPE}7 found")]),
    "lines/unclosed.csv": Case(among_good(line("b", text='"on')), bad=[("shape", 3, "quotes that do not close")]),
    "lines/not_utf8.csv": Case(
        among_good(line("b").encode() + b"\xff\xfe"), bad=[("encoding", 3, "its encoding does not have")]
    ),
    "lines/utf16.csv": Case(lines(line("a", text="größe"), line("z")).encode("utf-16")),
    "lines/utf16_be_crlf.csv": Case(b"\xfe\xff" + lines(line("a"), line("z"), end="\r\n").encode("utf-16-be")),
    "lines/utf8_mark.csv": Case(b"\xef\xbb\xbf" + lines(line("a"), line("z")).encode()),
    "lines/nul.csv": Case(among_good(line("b", text="x\0y")), bad=[("nul_byte", 3, "a NUL character")]),
    "lines/huge.csv": Case(
        among_good(line("b", text="x" * (64 << 20))), bad=[("record_too_large", 3, "the record has 67108")]
    ),
    "lines/too_large.csv": Case(among_good(line("b", n=10**20)), bad=[("type", 3, f"n: '{10**20}' is not a bigint")]),
    "lines/digits.csv": Case(
        among_good(line("b", amount="1.234") + "\n" + line("c", amount="12345.00")),
        bad=[("type", 3, "amount: '1.234' is not a decimal"), ("type", 4, "amount: '12345.00' is not a decimal")],
    ),
    "lines/no_such_day.csv": Case(
        among_good(line("b", day="2026-02-30")), bad=[("type", 3, "day: '2026-02-30' is not a date")]
    ),
    "lines/windows_ends.csv": Case(lines(line("a"), line("z"), end="\r\n").encode()),
    "lines/mac_ends.csv": Case(lines(line("a"), line("z"), end="\r").encode()),
    "lines/5000.csv": Case(lines(line("a") + ",x" * (WIDE - 5), header=WIDE_HEADER).encode(), ["a"]),
    "lines/sub dir/a b ü+%25 [1]{2}.csv": Case(lines(line("a"), line("z")).encode()),
    "lines/whole.csv.gz": Case(gzip.compress(lines(line("a"), line("z")).encode())),
    "lines/torn.csv.gz": Case(TORN_GZIP, [], [("truncated_gzip", None, "torn.csv.gz is not a whole gzip file")]),
    "western/1252.csv": Case(
        b"id,text\na,gr\xfcn \x80\nb,\x81\nz,ok\n", bad=[("encoding", 3, "its encoding does not have")]
    ),
    "letters/quoted.csv": Case(
        b'id,text\na,"one\ntwo ""2""\n,three"\nb,x,y\nz,ok\n', bad=[("shape", 5, "2 fields expected, 3 found")]
    ),
    "letters/quoted_windows.csv": Case(b'id,text\r\na,"one\r\ntwo"\r\nz,ok\r\n'),
    "letters/unclosed.csv": Case(b'id,text\na,ok\nb,"one\nc,two\n', ["a"], [("shape", 3, "quotes that do not close")]),
    "letters/mac_ends.csv": Case(b"id,text\ra,ok\r", [], [("header", None, "is not a line of CSV")]),
    "cubes/good.parquet": Case(parquet(["a", "z"])),
    "cubes/torn.parquet": Case(parquet(["a"])[:-20], [], [("torn_parquet", None, "is not a whole Parquet file")]),
    "cubes/page.parquet": Case(torn_page(), [], [("unreadable", None, "page.parquet: ")]),
    "cubes/not.parquet": Case(b"PAR1 it says", [], [("torn_parquet", None, "is not a whole Parquet file")]),
    "cubes/digits.parquet": Case(
        parquet(["a", "b"], amount=[Decimal("2.500"), Decimal("2.505")]), ["a"], [("type", 2, "amount: '2.505'")]
    ),
    "cubes/kinds.parquet": Case(
        parquet(["a", "b", "c"], n=["1", "one", str(10**20)]),
        ["a"],
        [("type", 2, "n: 'one'"), ("type", 3, f"n: '{10**20}'")],
    ),
    "cubes/in_capitals_too.parquet": Case(
        parquet(["a"], ID=["b"]), [], [("unreadable", None, "in_capitals_too.parquet: ")]
    ),
    "events/good.json": Case(b'{"id":"a","n":1,"amount":2.50}\n{"amount":"2.5","n":1.0,"id":"z"}\n'),
    "events/bad.json": Case(
        "\n".join(event[0] for event in EVENTS).encode(),  # the last line has no end
        ["a", "m", "z"],
        [(event[1], at, event[2]) for at, event in enumerate(EVENTS, 1) if len(event) > 1],
    ),
}


@pytest.fixture(scope="module")
def ran(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Outcome]:
    """Every file of CASES, in one run."""
    tiny = Tiny(spark, tmp_path_factory.mktemp("bad"))
    tiny.dataset("lines", COLUMNS)
    tiny.dataset("western", {"id": {"required": True}, "text": {}}, options={"encoding": "windows-1252"})
    tiny.dataset("letters", {"id": {"required": True}, "text": {}}, options={"multiLine": True})
    some = {name: COLUMNS[name] for name in ("id", "n", "amount")}
    tiny.dataset("cubes", some, format="parquet")
    tiny.dataset("events", some, format="json")
    for name, case in CASES.items():
        tiny.land(name, case.content)
    return tiny, tiny.run()


@pytest.mark.parametrize("name", CASES)
def test_a_file(ran: tuple[Tiny, Outcome], name: str) -> None:
    tiny, case = ran[0], CASES[name]
    dataset, file = name.split("/", 1)
    assert tiny.rows(f"silver/{dataset}", "id", where=f"_file = '{file}'") == [(one,) for one in case.silver]
    found = tiny.quarantined(dataset, "rule", "_line", "reason", where=f"_file = '{file}'")
    found.sort(key=lambda row: row[1] or 0)
    assert [row[:2] for row in found] == [bad[:2] for bad in case.bad]
    for (*_, reason), (*_, part) in zip(found, case.bad, strict=True):
        assert part in reason


def test_nothing_is_lost(ran: tuple[Tiny, Outcome]) -> None:
    """The run has no problems, every record has one place, and each bad one is kept byte by byte."""
    tiny, outcome = ran
    assert outcome.problems == []
    for dataset in ("lines", "western", "letters", "cubes", "events"):
        tiny.nothing_is_lost(dataset)
    small = "_load IS NOT NULL AND rule <> 'record_too_large'"
    for dataset, file, raw, raw_bytes in tiny.rows("quarantine", "dataset", "_file", "raw", "raw_bytes", where=small):
        if dataset != "cubes":
            assert bytes(raw_bytes or raw.encode()) in CASES[f"{dataset}/{file}"].content, raw
    length, ends = tiny.rows("quarantine", "length(raw)", "right(raw, 3)", where="rule = 'record_too_large'")[0]
    assert (length, ends) == (len(line("b", text="")) + (64 << 20), "xxx")


def test_what_was_read_is_what_was_written(ran: tuple[Tiny, Outcome]) -> None:
    tiny = ran[0]
    assert set(tiny.rows("silver/lines", "n", "amount", "day")) == {(1, Decimal("2.50"), date(2026, 1, 31))}
    assert tiny.rows("silver/lines", "id", "text", where="_file = 'utf16.csv'") == [("a", "größe"), ("z", "ok")]
    assert {text for (text,) in tiny.rows("silver/lines", "text")} == {"ok", "größe"}
    assert tiny.rows("silver/western", "id", "text") == [("a", "grün €"), ("z", "ok")]
    texts = tiny.rows("silver/letters", "_file", "text", where="id = 'a'")
    three = ("quoted.csv", 'one\ntwo "2"\n,three')
    assert texts == [three, ("quoted_windows.csv", "one\r\ntwo"), ("unclosed.csv", "ok")]
    amounts = dict(tiny.rows("silver/events", "concat(_file, id)", "amount"))
    assert (amounts["good.jsonz"], amounts["bad.jsonz"]) == (Decimal("2.50"), Decimal("0.10"))


def test_the_next_run_has_nothing_to_do(ran: tuple[Tiny, Outcome]) -> None:
    """Bad files too are put down once, though they lie there still."""
    tiny, _ = ran
    before = tiny.rows("quarantine", "quarantine_id")
    outcome = tiny.run()
    assert (outcome.ledger, outcome.problems) == ([], [])
    assert tiny.rows("quarantine", "quarantine_id") == before


def test_many_columns_in_the_contract(spark: Any, tmp_path: Path) -> None:
    """A thousand; five thousand pass too, and take minutes."""
    tiny = Tiny(spark, tmp_path)
    wide = 1000
    names = [f"c{i}" for i in range(wide)]
    tiny.dataset("wide", dict.fromkeys(names, WHOLE))
    rows = [",".join(str(i + row) for i in range(wide)) for row in (0, 1)]
    tiny.land("wide/1.csv", ",".join(names), *rows, rows[0] + ",1", rows[0].replace("77,", "x,", 1))
    assert tiny.run().problems == []
    assert tiny.rows("silver/wide", "c0", "c500", "c999") == [(0, 500, 999), (1, 501, 1000)]
    assert [rule for (rule,) in tiny.quarantined("wide", "rule")] == ["shape", "type"]
    tiny.nothing_is_lost("wide")


# --- Files that do not stay as they are ---


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Any:
    """meanwhile(act): have ``act`` done after the files are looked into, before they are read."""

    def between(act: Any) -> None:
        real, done = source.read, []

        def read(*given: Any) -> Any:
            if not done:
                done.append(act())
            return real(*given)

        monkeypatch.setattr(source, "read", read)

    return between


def test_files_that_change_or_vanish_while_they_are_read(spark: Any, tmp_path: Path, meanwhile: Any) -> None:
    tiny = Tiny(spark, tmp_path)
    tiny.dataset("keyed", {"id": KEY, "n": WHOLE, "at": WHOLE}, sequence="at")
    for name in ("gone", "grows", "stays"):
        tiny.land(f"keyed/{name}.csv", "id,n,at", f"{name},1,1")

    def act() -> None:
        (tmp_path / "landing/keyed/gone.csv").unlink()
        tiny.land("keyed/grows.csv", "id,n,at", "grows,1,1", "more,1,1", "grows,2,2")

    meanwhile(act)
    outcome = tiny.run()
    assert outcome.problems == []
    assert "keyed: grows.csv changed while it was read; the next run takes it again" in outcome.notes
    assert [note for note in outcome.notes if note.startswith("keyed: gone.csv")]
    everything = [("grows", 2), ("more", 1), ("stays", 1)]
    assert tiny.rows("silver/keyed", "id", "n") == everything
    outcome = tiny.run()  # it takes the changed file again, and finds that it knows all of it
    assert [(row.rows_in, row.duplicate + row.superseded) for row in outcome.ledger] == [(3, 3)]
    assert tiny.rows("silver/keyed", "id", "n") == everything and tiny.rows("quarantine", "rule") == []
    assert tiny.run().ledger == []
    tiny.nothing_is_lost("keyed")


NO_RIGHTS = """
import sys
from drivetrain.landing import Arrival, inspect
from test_contracts import make_dataset
found = inspect(make_dataset(), Arrival("secret.csv", sys.argv[1], 9, 0, 0))
print(type(found).__name__, found.rule, found.reason)
"""


def test_a_file_without_permission(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said clearly by a process that may not read it; taken once it may."""
    tiny = Tiny(spark, tmp_path)
    tiny.dataset("lines", COLUMNS)
    tiny.land("lines/open.csv", HEADER, line("a"))
    secret = tiny.land("lines/secret.csv", HEADER, line("b"))
    secret.chmod(0)
    command = [sys.executable, "-c", NO_RIGHTS, str(secret)]
    if os.geteuid() == 0:
        rights = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}", *command]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(command, env=environ, capture_output=True, text=True)
    if "setpriv" in said.stderr:
        pytest.skip(f"capabilities cannot be dropped here: {said.stderr}")
    assert said.stdout.startswith("Rejected no_permission secret.csv may not be read"), said.stderr

    from drivetrain import landing

    real = landing._read_through

    def read_through(path: Path) -> Any:  # root may read it all the same
        if not path.stat().st_mode & 0o400:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(landing, "_read_through", read_through)
    tiny.run()
    assert tiny.rows("silver/lines", "id") == [("a",)] and tiny.quarantined("lines", "rule") == [("no_permission",)]
    secret.chmod(0o600)
    assert tiny.run().problems == []
    assert tiny.rows("silver/lines", "id") == [("a",), ("b",)]
    assert tiny.quarantined("lines", "rule", "state") == [("no_permission", "loaded")]


def test_an_expression_that_raises(spark: Any, tmp_path: Path) -> None:
    """Records on which the contract's own SQL fails are bad records: the others go on, and so does a flag's count."""
    tiny = Tiny(spark, tmp_path)
    ratio = {"name": "ratio", "type": "sql", "query": "SELECT COUNT(*) FROM {object} WHERE 10 / n > 5", "mustBe": 0}
    odd = {"name": "odd", "type": "sql", "query": "SELECT COUNT(*) FROM {object} WHERE 1 / (n - 7) > 5", "mustBe": 0}
    odd |= {"customProperties": [{"property": "action", "value": "flag"}]}
    columns = {"id": KEY, "n": WHOLE, "twice": {**WHOLE, "transformLogic": "cast(text as bigint) * 2"}}
    tiny.dataset("lines", columns, quality=[ratio, odd])
    tiny.land("lines/1.csv", "id,n,text", "good,5,1", "zero,0,1", "low,1,1", "text,5,x", "null,5,", "seven,7,3")
    outcome = tiny.run()
    assert outcome.problems == []
    assert tiny.rows("silver/lines", "id", "twice") == [("good", 2), ("null", None), ("seven", 6)]
    assert tiny.quarantined("lines", "rule", "raw") == [
        ("ratio", "low,1,1"), ("ratio", "zero,0,1"), ("transform", "text,5,x"),
    ]  # fmt: skip
    assert [(row.rule, row.measured) for row in outcome.checks] == [("odd", 1.0)]
    tiny.nothing_is_lost("lines")


def test_errors_of_javas_own(spark: Any, tmp_path: Path) -> None:
    """Some functions raise what is no error class of SQL: it counts as one all the same."""
    tiny = Tiny(spark, tmp_path)
    moment = {"logicalType": "timestamp", "transformLogic": "timestamp_millis(try_cast(ms AS bigint))"}
    tiny.dataset("lines", {"id": KEY, "moment": moment})
    tiny.land("lines/1.csv", "id,ms", "good,0", "nanoseconds,9223372036854775807")
    assert tiny.run().problems == []
    assert tiny.rows("silver/lines", "id", "unix_millis(moment)") == [("good", 0)]
    assert tiny.quarantined("lines", "rule") == [("transform",)]


def test_names_and_values_that_meet_our_own(spark: Any, tmp_path: Path) -> None:
    """A feed may have columns named as Drivetrain's own, and values that hold its separators."""
    tiny = Tiny(spark, tmp_path)
    columns = {
        "id": KEY,
        "text": {"physicalName": "raw"},
        "place": {"physicalName": "_line", "enum": [{"value": "a"}, {"value": "b"}]},
        "both": {"transformLogic": "concat(raw, `_load`, `a.b``c`)"},
        "odd": {"physicalName": "a.b`c"},
    }
    tiny.dataset("lines", columns)
    tiny.land("lines/1.csv", "id,raw,_line,_load,a.b`c", "1,r,a,l,o", "2,r,\x1eC\x1f,l,o")
    assert tiny.run().problems == []
    assert tiny.rows("silver/lines", "id", "text", "place", "both", "odd") == [("1", "r", "a", "rlo", "o")]
    assert tiny.quarantined("lines", "rule", "reason") == [("enum", "place is '\x1eC\x1f', not one of a, b")]


def test_a_full_disk(spark: Any, tmp_path: Path) -> None:
    """The run fails and says why, nothing is half there, and with more space the next one does all of it."""
    tiny = Tiny(spark, tmp_path)
    tiny.dataset("lines", COLUMNS)
    tiny.dataset("small", {"id": KEY, "n": WHOLE})
    tiny.land("small/1.csv", "id,n", "x,1")
    warehouse = tmp_path / "warehouse"
    warehouse.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", warehouse]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr}")
    try:
        rng = random.Random(1)
        tiny.land("lines/big.csv", HEADER, *[line(str(i), text=rng.randbytes(500).hex()) for i in range(8000)])
        outcome = tiny.run()
        first, *_ = outcome.problems  # what comes after it finds no space either, or some
        assert (first.code, first.where) == ("spark", "lines") and "No space left on device" in first.what
        assert {problem.code for problem in outcome.problems} == {"spark"}
        assert tiny.rows("bronze/lines", "_entry") == tiny.rows("silver/lines", "id") == []
        subprocess.run(["mount", "-o", "remount,size=200m", warehouse], check=True)
        assert tiny.run().problems == []
        assert (len(tiny.rows("silver/lines", "id")), tiny.rows("silver/small", "id")) == (8000, [("x",)])
        for name in ("lines", "small"):
            tiny.nothing_is_lost(name)
    finally:
        subprocess.run(["umount", "-l", warehouse], check=True)


# --- Drift ---

POLICIES = ("keep", "add", "quarantine", "refuse")


@pytest.fixture(scope="module")
def drifted(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, Outcome]:
    """A CSV and a JSON feed under each policy, with a column that no contract knows, and CSV files that lack one."""
    tiny = Tiny(spark, tmp_path_factory.mktemp("drift"))
    city = {"customProperties": [{"property": "aliases", "value": ["town"]}]}
    columns = {"id": {"required": True}, "n": WHOLE, "city": city}
    new = '{"id":"b","n":1,"city":"Ulm","Credit Limit":900}'
    for policy in POLICIES:
        tiny.dataset(f"c_{policy}", columns, evolution=policy)
        tiny.land(f"c_{policy}/1.csv", "id,n,city", "a,1,Ulm")
        tiny.land(f"c_{policy}/2 new.csv", "id,Credit Limit,n,city", "b,900,1,Ulm")
        tiny.dataset(f"j_{policy}", columns, format="json", evolution=policy)
        tiny.land(f"j_{policy}/1.json", '{"id":"a","n":1,"city":"Ulm"}', new)
    tiny.land("c_keep/3 missing.csv", "id,n", "c,1")
    tiny.land("c_keep/4 renamed.csv", "id,n,citys", "d,1,Ulm")
    tiny.land("c_keep/5 alias.csv", "id,n,TOWN", "e,1,Ulm")
    tiny.land("c_keep/6 kind.csv", "id,n,city", "f,one,Ulm", "g,,Ulm")
    tiny.land("j_keep/2.json", '{"id":"c","n":1}', '{"id":"d","n":1,"town":"Ulm"}', '{"id":"e","n":"one","city":null}')
    return tiny, tiny.run()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_column_that_the_contract_does_not_know(drifted: tuple[Tiny, Outcome], policy: str) -> None:
    tiny, _ = drifted
    for feed in (f"c_{policy}", f"j_{policy}"):
        silver = tiny.rows(f"silver/{feed}", "id", where="id IN ('a', 'b')")
        bad = tiny.quarantined(feed, "rule", "reason", where="rule = 'drift'")
        if policy in ("keep", "add"):
            assert (silver, bad) == ([("a",), ("b",)], [])
            assert [one for (one,) in tiny.rows(f"bronze/{feed}", "raw", where="_entry = 'record'") if "900" in one]
        else:
            assert silver == [("a",)] and [rule for rule, _ in bad] == ["drift"]
            assert "columns that the contract does not have: Credit Limit" in bad[0][1]
        if policy == "add":
            assert tiny.rows(f"silver/{feed}", "id", "credit_limit") == [("a", None), ("b", "900")]
        else:
            assert "credit_limit" not in tiny.frame(f"silver/{feed}").columns
        tiny.nothing_is_lost(feed)


def test_a_refused_column_fails_the_job(drifted: tuple[Tiny, Outcome]) -> None:
    tiny, outcome = drifted
    told = [(problem.code, problem.where.rsplit("(", 1)[1]) for problem in outcome.problems]
    assert told == [("drift", "c_refuse)"), ("drift", "j_refuse)")]
    assert all("Credit Limit" in problem.what for problem in outcome.problems)
    assert tiny.quarantined("c_refuse", "_load", "_file") == [(None, "2 new.csv")], "the file is not read"


def test_columns_that_are_missing_renamed_or_of_another_kind(drifted: tuple[Tiny, Outcome]) -> None:
    tiny, _ = drifted
    bad = {file: (rule, reason) for file, rule, reason in tiny.quarantined("c_keep", "_file", "rule", "reason")}
    assert bad == {
        "3 missing.csv": ("shape", "column city is missing from the header"),
        "4 renamed.csv": (
            "shape",
            "column city is missing from the header (renamed to citys? then add it to the column's aliases)",
        ),
        "6 kind.csv": ("type", "n: 'one' is not a bigint"),
    }
    assert tiny.rows("silver/c_keep", "id", "n", "city", where="id > 'b'") == [("e", 1, "Ulm"), ("g", None, "Ulm")]
    bad = dict(tiny.quarantined("j_keep", "_line", "reason", where="_file = '2.json'"))
    assert bad == {1: "city is missing from the record", 3: "n: 'one' is not a bigint"}
    assert tiny.rows("silver/j_keep", "id", "city", where="_file = '2.json'") == [("d", "Ulm")]


# --- Rules ---


def rule(name: str, condition: str, action: str) -> dict[str, Any]:
    query = f"SELECT COUNT(*) FROM {{object}} WHERE {condition}"
    chosen = [{"property": "action", "value": action}]
    return {"name": name, "type": "sql", "query": query, "mustBe": 0, "customProperties": chosen}


def test_rules_and_what_they_do(spark: Any, tmp_path: Path) -> None:
    """A row goes to quarantine, a breach is noted, a dataset stops while others go on, and gold keeps what it had."""
    tiny = Tiny(spark, tmp_path)
    rules = [rule("low", "n < 0", "quarantine"), rule("odd", "n % 2 = 1", "flag"), rule("mad", "n > 1000", "stop")]
    for name in ("ruled", "other"):
        tiny.dataset(name, {"id": KEY, "n": WHOLE}, quality=rules)
        tiny.land(f"{name}/1.csv", "id,n", "a,1", "b,-1", "c,2")
    tiny.gold("total", "SELECT SUM(n) AS n FROM other", ["n"], [rule("not_103", "n = 103", "stop")])
    outcome = tiny.run()
    assert outcome.problems == [] and outcome.published == ["total"]
    assert tiny.rows("silver/ruled", "id", "n") == [("a", 1), ("c", 2)]
    assert tiny.quarantined("ruled", "rule", "reason", "raw") == [("low", "breaks low: n < 0", "b,-1")]
    measured = tiny.rows("ops/checks", "rule", "action", "measured", "passed", where="dataset = 'ruled'")
    assert measured == [("mad", "stop", 0.0, True), ("odd", "flag", 1.0, False)]

    tiny.land("ruled/2.csv", "id,n", "d,9999", "e,5", "f,-5")
    tiny.land("other/2.csv", "id,n", "d,100")
    outcome = tiny.run()
    stopped, held = outcome.problems
    assert "a check stops this dataset: mad: 1.0, mustBe 0" in stopped.what and "(ruled)" in stopped.where
    assert tiny.rows("silver/ruled", "id", "n") == [("a", 1), ("c", 2)], "as it was"
    assert len(tiny.quarantined("ruled", "rule")) == 1, "no part of the batch"
    assert tiny.rows("silver/other", "id") == [("a",), ("c",), ("d",)], "others go on"
    assert "not_103: 1.0, mustBe 0" in held.what and "gold/_rejected/total" in held.fix and "(total)" in held.where
    assert tiny.rows("gold/total", "n") == [(3,)] and tiny.rows("gold/_rejected/total", "n") == [(103,)]

    tiny.dataset("ruled", {"id": KEY, "n": WHOLE}, quality=rules[:2])  # the rule was wrong
    tiny.land("other/3.csv", "id,n", "e,4")
    assert tiny.run().problems == []
    assert tiny.rows("silver/ruled", "id", "n") == [("a", 1), ("c", 2), ("d", 9999), ("e", 5)]
    assert tiny.rows("gold/total", "n") == [(107,)]
    for name in ("ruled", "other"):
        tiny.nothing_is_lost(name)


# --- Repeats, versions and history ---

SPLITS = {1: 1, 2: 2, 3: 2, 4: 2, 5: 3}  # runs of each split


def history(events: set[tuple[str, int, int]]) -> list[tuple[Any, ...]]:
    """Every version of every key with its time of validity, by plain Python."""
    found = []
    for key, at, value in events:
        later = [other for name, other, _ in events if name == key and other > at]
        found.append((key, at, value, min(later, default=None), not later))
    return sorted(found, key=lambda row: row[:2])


def test_versions_in_any_order_and_any_batches(spark: Any, tmp_path: Path) -> None:
    """Whatever the order in which versions arrive, and the files and runs they are split into, silver is the same."""
    tiny, columns = Tiny(spark, tmp_path), {"id": KEY, "at": {**WHOLE, "required": True}, "value": WHOLE}
    rng = random.Random(0)
    events = {(f"k{rng.randrange(8)}", at, rng.randrange(100)) for at in rng.sample(range(100), 40)}
    files: dict[int, dict[str, list[str]]] = {1: {}, 2: {}, 3: {}}
    for split, runs in SPLITS.items():
        names = [f"all_{split}", *([f"last_{split}"] if split > 3 else [])]
        for name in names:
            tiny.dataset(name, columns, sequence="at", history="scd2" if name.startswith("all") else "latest")
        given = [f"{key},{at},{value}" for key, at, value in [*sorted(events), *rng.sample(sorted(events), 12)]]
        rng.shuffle(given)
        ends = [0, *sorted(rng.sample(range(1, len(given)), 2 * runs - 1)), len(given)]  # two files a run
        for i in range(2 * runs):
            files[i // 2 + 1] |= {f"{name}/{i}.csv": given[ends[i] : ends[i + 1]] for name in names}
    for batch in files.values():
        for name, part in batch.items():
            tiny.land(name, "id,at,value", *part)
        assert tiny.run().problems == []
    expected = history(events)
    for name in [path.stem for path in (tmp_path / "conf" / "datasets").iterdir()]:
        if name.startswith("all"):
            found = tiny.rows(f"silver/{name}", "id", "at", "value", "valid_to", "is_current")
            assert sorted(found, key=lambda row: row[:2]) == expected, name
            assert tiny.rows(f"silver/{name}", "id", where="valid_from <> at") == []
            assert sum(n for (n,) in tiny.rows("ops/ledger", "duplicate", where=f"dataset = '{name}'")) == 12
        else:
            assert tiny.rows(f"silver/{name}", "id", "at", "value") == [row[:3] for row in expected if row[4]], name
        tiny.nothing_is_lost(name)


def test_files_that_come_again(spark: Any, tmp_path: Path) -> None:
    """Touched: nothing to load. Other content: newer versions of a keyed feed. Of one that only knows positions: the
    new lines where it has grown, and quarantine where what was read before is no longer there."""
    tiny = Tiny(spark, tmp_path)
    tiny.dataset("keyed", {"id": KEY, "n": WHOLE, "at": WHOLE}, sequence="at")
    tiny.dataset("placed", {"id": {}, "n": WHOLE})
    feeds = {
        "keyed": tiny.land("keyed/1.csv", "id,n,at", "a,1,1", "b,1,1", "b,1,1"),
        "placed": tiny.land("placed/1.csv", "id,n", "a,1", "b,1", "b,1"),
    }
    tiny.run()
    assert tiny.rows("silver/keyed", "id", "n") == [("a", 1), ("b", 1)]
    assert tiny.rows("silver/placed", "id", "n") == [("a", 1), ("b", 1), ("b", 1)], "two events that look alike"

    for path in feeds.values():
        os.utime(path, (1, 1))
    outcome = tiny.run()
    assert (outcome.ledger, outcome.problems, outcome.notes) == ([], [], [])

    tiny.land("keyed/1.csv", "id,n,at", "a,2,2", "b,0,0", "c,1,1")  # newer, older, new
    tiny.land("placed/1.csv", "id,n", "a,1", "b,1", "b,1", "c,1")
    outcome = tiny.run()
    assert [(r.dataset, r.rows_in, r.inserted, r.updated, r.superseded, r.duplicate) for r in outcome.ledger] == [
        ("keyed", 3, 1, 1, 1, 0), ("placed", 4, 1, 0, 0, 3),
    ]  # fmt: skip
    assert tiny.rows("silver/keyed", "id", "n") == [("a", 2), ("b", 1), ("c", 1)]
    assert tiny.rows("silver/placed", "id", "_line") == [("a", 2), ("b", 3), ("b", 4), ("c", 5)]

    tiny.land("placed/1.csv", "id,n", "x,1", "b,1", "b,1", "c,1", "d,1")
    outcome = tiny.run("placed")
    assert outcome.ledger == [] and "was loaded with other content" in outcome.notes[0]
    assert tiny.quarantined("placed", "rule", "_file") == [("rewritten", "1.csv")]
    assert tiny.rows("silver/placed", "id", "_line") == [("a", 2), ("b", 3), ("b", 4), ("c", 5)]
    for name in feeds:
        tiny.nothing_is_lost(name)
