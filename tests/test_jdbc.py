"""Tables of a PostgreSQL database as feeds: their contracts; no row is lost, no value changed, no secret told."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from database import PASSWORD, REFERENCES, USER, Database, contract
from test_acme import _acme
from test_crash import job_environ
from test_crash import killed as killed_at
from tiny import DAY, KEY, MONEY, WHOLE, Tiny

from drivetrain import plan, source
from drivetrain.contracts import Dataset, Jdbc
from drivetrain.errors import Problem
from drivetrain.findings import Findings
from drivetrain.odcs import read_dataset
from drivetrain.settings import load_yaml

ROOT = Path(__file__).resolve().parents[1]
MOMENT = {"logicalType": "timestamp"}
COLUMNS = {"id": KEY, "amount": MONEY, "at": MOMENT}
SERVER = {
    "server": "local", "type": "postgres", "host": "db.example.com", "port": 5432, "database": "shop", "schema": "sap",
}  # fmt: skip
PULL = {"overlap": "15m", "partitions": 3}


# --- The contract ---


def read(folder: Path, document: dict[str, Any]) -> tuple[Dataset | None, list[Problem]]:
    path, problems = folder / "orders.yaml", []  # type: ignore[var-annotated]
    path.write_text(json.dumps(document, indent=1), "utf-8")
    return read_dataset(*load_yaml(path)[:1], Findings(path, load_yaml(path)[1], problems), "local", {}), problems


def test_what_a_contract_says(tmp_path: Path) -> None:
    jdbc = {**PULL, "partitionColumn": "amount", "sslMode": "verify-full", "fetchSize": 50}
    dataset, problems = read(tmp_path, contract("orders", COLUMNS, SERVER, jdbc, "/BIC/AZSD001", sequence="at"))
    assert problems == [] and dataset
    assert dataset.jdbc == Jdbc(
        host="db.example.com", port=5432, database="shop", schema="sap", table="/BIC/AZSD001", user="env:SHOP_USER",
        password="env:SHOP_PASSWORD", overlap=900.0, partitions=3, partition_column="amount", fetch_size=50,
        ssl_mode="verify-full", ssl_root_cert=None,
    )  # fmt: skip
    assert (dataset.format, dataset.identity, dataset.history) == ("jdbc", ("id", "at"), "latest")
    moved, _ = read(tmp_path, contract("orders", COLUMNS, {**SERVER, "host": "other"}, PULL, sequence="at"))
    assert moved and moved.jdbc and moved.jdbc.table == "orders"
    assert moved.fingerprint == dataset.fingerprint, "the same records, from another place"


def test_an_integer_sequence_has_an_overlap_in_its_unit(tmp_path: Path) -> None:
    columns = {"id": KEY, "seq": WHOLE}
    dataset, _ = read(tmp_path, contract("orders", columns, SERVER, {"overlap": 1000}, sequence="seq"))
    assert dataset and dataset.jdbc and dataset.jdbc.overlap == 1000


BASE: dict[str, Any] = {"columns": COLUMNS, "server": SERVER, "jdbc": PULL, "sequence": "at"}
WRONG: list[tuple[dict[str, Any], str, str, str]] = [  # what differs, code, what the problem says, its remedy
    ({"jdbc": {**PULL, "password": "hunter2"}}, "secret", "password is not a reference", "env:NAME"),
    ({"jdbc": {**PULL, "password": 12345}}, "bad-value", "jdbc.password", ""),
    ({"jdbc": {**PULL, "user": "env:A B"}}, "secret", "user is not a reference", "env:NAME"),
    ({"jdbc": {"overlap": "15m", "pasword": "hunter2"}}, "unknown-key", "pasword", "password"),
    ({"jdbc": {**PULL, "overlap": 15}}, "jdbc", "overlap 15 is not a duration", "transaction"),
    ({"jdbc": {**PULL, "overlap": "0m"}}, "jdbc", "overlap '0m'", "transaction"),
    ({"jdbc": {**PULL, "overlap": "15 minutes"}}, "jdbc", "15 minutes", "transaction"),
    ({"jdbc": {"partitions": 3}}, "missing-key", "jdbc.overlap", "overlap"),
    ({"jdbc": {**PULL, "partitions": 0}}, "bad-value", "jdbc.partitions", ""),
    ({"jdbc": {**PULL, "partitionColumn": "amout"}}, "unknown-column", "'amout'", "'amount'"),
    ({"jdbc": {**PULL, "partitionColumn": "id"}}, "jdbc", "partitionColumn id is string", "numbers"),
    ({"sequence": None}, "sequence", "by a sequence column", "sequence"),
    ({"sequence": "id"}, "sequence", "sequence id is string", "integer"),
    ({"columns": {"id": {}, "at": MOMENT}}, "identity", "nothing tells these apart", "primaryKey"),
    ({"identity": "position", "history": "append"}, "identity", "nothing tells these apart", "primaryKey"),
    ({"columns": {"id": KEY, "at": {**MOMENT, "classification": "personal"}}}, "sequence", "personal", "another"),
    ({"columns": {"id": KEY, "at": {**MOMENT, "physicalName": 'a"; DROP'}}}, "name", "DROP", "letters"),
    ({"columns": {"id": KEY, "at": {**MOMENT, "logicalTypeOptions": {"format": "yyyy"}}}}, "sequence", "format", ""),
    ({"table": 'orders"; DROP TABLE x'}, "name", "table name", "letters"),
    ({"server": {**SERVER, "schema": "a b"}}, "name", "schema name 'a b'", "letters"),
    ({"server": {**SERVER, "database": "shop?user=x"}}, "name", "database name", "letters"),
    ({"server": {**SERVER, "host": "db/x?password=y"}}, "jdbc", "host", "10.0.0.1"),
    ({"server": {**SERVER, "port": "${PORT}"}}, "jdbc", "port '${PORT}'", "5432"),
    ({"server": {**SERVER, "port": 65536}}, "jdbc", "65536", "5432"),
    ({"server": {**SERVER, "password": "hunter2"}}, "unknown-key", "password", ""),
    ({"files": "*.csv"}, "jdbc", "files is for files", "leave it out"),
    ({"format": "csv"}, "jdbc", "format is for files", "leave it out"),
    ({"server": {"server": "local", "type": "local", "path": "/a", "format": "csv"}}, "jdbc", "type postgres", "leave"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "code", "what", "fix"), WRONG)
def test_mistakes_are_told_with_line_and_remedy(
    tmp_path: Path, changes: dict[str, Any], code: str, what: str, fix: str
) -> None:
    given = {**BASE, **changes}
    document = contract("orders", **{key: value for key, value in given.items() if value is not None})
    dataset, problems = read(tmp_path, document)
    assert dataset is None
    told = [p for p in problems if p.code == code and what in p.what and fix in p.fix]
    assert len(told) == 1, problems
    assert re.search(r"orders.yaml:\d+$", told[0].where)
    for secret in ("hunter2", "12345"):
        assert secret not in "\n".join(map(str, problems))


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    jdbc = {"user": "me", "password": "hunter2", "overlap": -1, "partitionColumn": "nope"}
    document = contract(
        "orders", COLUMNS, {**SERVER, "port": 0, "schema": "a b"}, jdbc, "a b", sequence="at", files="*"
    )
    _, problems = read(tmp_path, document)
    assert sorted(p.code for p in problems) == [
        "jdbc", "jdbc", "jdbc", "name", "name", "secret", "secret", "unknown-column",
    ]  # fmt: skip
    lines = {problem.where for problem in problems}
    assert len(lines) == len(problems), "each at its own line"


def test_no_jdbc_no_pull(tmp_path: Path) -> None:
    document = contract("orders", COLUMNS, SERVER, PULL, sequence="at")
    document["customProperties"] = document["customProperties"][1:]
    _, problems = read(tmp_path, document)
    assert [(p.code, p.what) for p in problems] == [("jdbc", "how the table is pulled is not said")]
    document["customProperties"].append({"property": "jdbc", "value": "postgres://me:hunter2@db"})
    _, problems = read(tmp_path, document)
    assert [p.code for p in problems] == ["bad-value"] and "hunter2" not in str(problems[0])


# --- The database ---


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    if not shutil.which("postgres") and not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    made = Database(shutil.which("java") or "java")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP_USER", USER)
        patch.setenv("SHOP_PASSWORD", PASSWORD)
        yield made
    made.down()


class Shop(Tiny):
    """A tiny pipeline whose feed is the table ``orders`` of a schema of its own, named like the folder."""

    def __init__(self, spark: Any, home: Path, database: Database, **settings: Any) -> None:
        super().__init__(spark, home, **settings)
        self.database, self.schema = database, re.sub(r"[^a-z0-9]", "_", home.name.lower())
        self.sql(f"CREATE SCHEMA {self.schema}")

    def sql(self, *statements: str) -> str:
        return self.database.sql(f"SET search_path = {getattr(self, 'schema', 'public')}", *statements)

    def pulls_from(
        self, name: str, columns: dict[str, Any], jdbc: dict[str, Any] = PULL, server: Any = None, **more: Any
    ) -> None:
        server = self.database.server(schema=self.schema, **(server or {}))
        self._write(f"datasets/{name}.yaml", contract(name, columns, server, jdbc, **more))

    def pulls(self) -> list[tuple[Any, ...]]:
        """Bounds of each pull, and whether rows without a sequence were in it."""
        said = [json.loads(raw) for (raw,) in self.rows("bronze/orders", "raw", where="_entry = 'file'")]
        return [(one["lower"], one["upper"], one["strays"]) for one in sorted(said, key=lambda one: one["number"])]


ORDERS = "CREATE TABLE orders (id text, amount numeric(6,2), at timestamptz)"


@pytest.fixture
def shop(spark: Any, database: Database, tmp_path: Path) -> Shop:
    made = Shop(spark, tmp_path, database)
    made.sql(ORDERS)
    made.pulls_from("orders", COLUMNS, sequence="at")
    return made


def put(shop: Shop, *rows: tuple[str, float, str | None]) -> None:
    """Rows of an id, an amount and a time of a day in January 2026 (as 05 10:00)."""
    for id_, amount, at in rows:
        moment = f"'2026-01-{at}Z'" if at else "NULL"
        shop.sql(f"INSERT INTO orders VALUES ('{id_}', {amount}, {moment})")


def orders(shop: Shop) -> list[tuple[Any, ...]]:
    return shop.rows("silver/orders", "id", "CAST(amount AS string)", "date_format(at, 'dd HH:mm')")


@pytest.mark.cluster
def test_only_what_is_new_is_pulled(shop: Shop) -> None:
    put(shop, ("a", 1, "05 10:00"), ("b", 2, "05 11:00"))
    first = shop.run()
    assert first.problems == [] and [row.rows_in for row in first.ledger] == [2]
    put(shop, ("c", 3, "05 12:00"))
    shop.sql("UPDATE orders SET amount = 9, at = '2026-01-05 12:30Z' WHERE id = 'a'")
    second = shop.run()
    assert [(r.rows_in, r.duplicate, r.inserted, r.updated) for r in second.ledger] == [(3, 1, 1, 1)]
    assert orders(shop) == [("a", "9.00", "05 12:30"), ("b", "2.00", "05 11:00"), ("c", "3.00", "05 12:00")]
    assert shop.pulls() == [
        (None, "2026-01-05 11:00:00+00", False),
        ("2026-01-05 10:45:00+00", "2026-01-05 12:30:00+00", False),
    ]
    files = {row[0] for row in shop.rows("bronze/orders", "_file")}
    assert files == {f"{shop.schema}.orders/pull-1", f"{shop.schema}.orders/pull-2"}
    versions = {path: len(list(path.glob("*.json"))) for path in (shop.home / "warehouse").rglob("_delta_log")}
    third = shop.run()
    assert (third.ledger, third.problems, third.published) == ([], [], [])
    assert {path: len(list(path.glob("*.json"))) for path in versions} == versions, "nothing new writes nothing"
    shop.nothing_is_lost("orders")


@pytest.mark.cluster
def test_rows_that_come_late_within_the_overlap_are_found(shop: Shop) -> None:
    """A transaction that began before a pull and ends after it; the newest row stays the newest."""
    put(shop, ("a", 1, "05 10:00"), ("b", 2, "05 11:00"))
    shop.run()
    put(shop, ("late", 3, "05 10:50"))
    assert [(r.rows_in, r.inserted) for r in shop.run().ledger] == [(2, 1)]
    shop.sql("DELETE FROM orders WHERE id = 'late'")
    put(shop, ("later", 4, "05 10:55"))  # as many rows as before, and the same newest one
    assert [(r.rows_in, r.inserted) for r in shop.run().ledger] == [(2, 1)]
    put(shop, ("same", 5, "05 11:00"))  # at the bound itself
    assert [(r.rows_in, r.inserted) for r in shop.run().ledger] == [(3, 1)]
    assert shop.run().ledger == []
    assert [row[0] for row in orders(shop)] == ["a", "b", "late", "later", "same"], "a deleted row stays in silver"
    shop.nothing_is_lost("orders")


@pytest.mark.cluster
def test_a_deleted_newest_row_does_not_turn_the_bound_back(shop: Shop) -> None:
    put(shop, ("a", 1, "05 10:00"), ("b", 2, "05 12:00"))
    shop.run()
    shop.sql("DELETE FROM orders WHERE id = 'b'")
    shop.run()
    put(shop, ("c", 3, "05 12:10"))
    shop.run()
    assert [row[0] for row in orders(shop)] == ["a", "b", "c"]
    assert [upper for _, upper, _ in shop.pulls()] == [
        "2026-01-05 12:00:00+00", "2026-01-05 12:00:00+00", "2026-01-05 12:10:00+00",
    ]  # fmt: skip


@pytest.mark.cluster
def test_rows_without_a_sequence_are_not_lost_nor_told_twice(shop: Shop) -> None:
    put(shop, ("n", 1, None))
    shop.sql("INSERT INTO orders VALUES ('i', 2, 'infinity'), ('m', 3, '-infinity')")
    assert [(r.rows_in, r.quarantined) for r in shop.run().ledger] == [(3, 3)], "before any row has a sequence"
    put(shop, ("a", 1, "05 10:00"))
    assert [(r.rows_in, r.quarantined, r.inserted) for r in shop.run().ledger] == [(1, 0, 1)], "they are as they were"
    put(shop, ("o", 4, None))
    assert [(r.rows_in, r.quarantined, r.duplicate) for r in shop.run().ledger] == [(5, 1, 4)]
    found = shop.quarantined("orders", "get_json_object(raw, '$.id')", "rule")
    assert found == [("i", "type"), ("m", "type"), ("n", "required"), ("o", "required")]
    shop.sql("UPDATE orders SET at = '2026-01-05 10:01Z' WHERE id = 'n'")
    shop.run()
    assert [row[0] for row in orders(shop)] == ["a", "n"]
    assert shop.run().ledger == []
    shop.nothing_is_lost("orders")


@pytest.mark.cluster
def test_a_bad_row_within_the_overlap_is_quarantined_once(shop: Shop) -> None:
    shop.sql("ALTER TABLE orders ALTER amount TYPE text")
    shop.sql("INSERT INTO orders VALUES ('a', 'x', '2026-01-05 10:00Z'), ('b', '1', '2026-01-05 10:01Z')")
    shop.run()
    shop.sql("INSERT INTO orders VALUES ('c', '2', '2026-01-05 10:02Z')")
    assert [(r.quarantined, r.duplicate, r.inserted) for r in shop.run().ledger] == [(0, 2, 1)]
    assert len(shop.quarantined("orders", "raw")) == 1
    shop.nothing_is_lost("orders")


TYPES = {  # column -> its type in the database, a value, the same as text in the log, and the contract's type and value
    "id": ("uuid", "0f000000-0000-4000-8000-000000000001", None, {}, None),
    "exact": ("numeric", "12345678901234567890123456789012345678.90", None, {}, None),
    "money6": ("numeric(38,6)", "99999999999999999999999999999999.123456", None,
               {"logicalType": "number", "physicalType": "decimal(38,6)"}, None),
    "tiny": ("numeric(40,30)", "0.000000000000000000000000000001", None, {}, None),
    "cash": ("money", "1234.50", None, {"logicalType": "number", "physicalType": "decimal(8,2)"}, None),
    "ratio": ("float8", "0.1", None, {"logicalType": "number"}, None),
    "big": ("bigint", "9223372036854775807", None, WHOLE, None),
    "at": ("timestamptz", "2026-03-29 03:30:00.123456+02", "2026-03-29T01:30:00.123456+00:00", MOMENT,
           "2026-03-29 01:30:00.123456"),
    "local": ("timestamp", "2026-03-29 02:30:00", None,
              {"logicalType": "timestamp", "physicalType": "timestamp_ntz"}, None),
    "day": ("date", "0099-12-31", None, DAY, None),
    "ok": ("boolean", "true", None, {"logicalType": "boolean"}, None),
    "doc": ("jsonb", '{"a": [1.10, null], "b": "ü\\"\\n"}', None, {}, None),
    "plain": ("json", '{"z":1,  "a":2.50}', None, {}, None),
    "tags": ("text[]", '{a,"b,c"}', '["a","b,c"]', {}, None),
    "bytes": ("bytea", "\\x00ff", None, {}, None),
    "code": ("char(6)", "ab", None, {}, None),
    "said": ("text", "line\nbreak\t\"quote\" \\ 😀 'x'", None, {}, None),
    "nothing": ("text", None, None, {}, None),
    "Mixed Name": ("int", "7", None, WHOLE, None),
}  # fmt: skip


@pytest.fixture
def new_york(spark: Any) -> Iterator[None]:
    """The JVM, from which the driver takes the time zone of its connections, elsewhere than in UTC."""
    zone = spark._jvm.java.util.TimeZone
    before = zone.getDefault()
    zone.setDefault(zone.getTimeZone("America/New_York"))
    yield
    zone.setDefault(before)


@pytest.mark.cluster
def test_types_are_kept(spark: Any, database: Database, tmp_path: Path, new_york: None) -> None:
    """Every value arrives digit by digit."""
    shop = Shop(spark, tmp_path, database)
    named = {name: re.sub("[^a-z0-9]", "_", name.lower()) for name in TYPES}
    columns = ", ".join(f'"{name}" {kind}' for name, (kind, *_) in TYPES.items())
    values = ", ".join(
        "NULL" if value is None else f"$v${value}$v$::text::{kind}" if kind != "money" else f"{value}::numeric::money"
        for kind, value, *_ in TYPES.values()
    )
    shop.sql(f"CREATE TABLE orders ({columns})", f"INSERT INTO orders VALUES ({values})")
    described = {named[name]: {"physicalName": name, **more} for name, (*_, more, _) in TYPES.items()}
    shop.pulls_from("orders", {**described, "id": {**described["id"], **KEY}}, sequence="at")
    outcome = shop.run()
    assert outcome.problems == [] and shop.quarantined("orders", "reason") == []
    logged = json.loads(shop.rows("bronze/orders", "raw", where="_entry = 'record'")[0][0])
    wanted = {name: text if text is not None else value for name, (_, value, text, *_) in TYPES.items()}
    assert logged == wanted
    silver = shop.rows("silver/orders", *[f"CAST({column} AS string)" for column in named.values()])
    found = dict(zip(TYPES, silver[0], strict=True))
    expected = {name: typed or wanted[name] for name, (*_, typed) in TYPES.items()}
    assert found == expected


# --- Partitions ---


@pytest.mark.cluster
@pytest.mark.parametrize("column", [None, "number"])
def test_partitions_are_bounded_and_together_the_whole(
    spark: Any, database: Database, tmp_path: Path, column: str | None
) -> None:
    """A thousand rows in four partitions of like size, none in two of them, and no two at one place."""
    shop = Shop(spark, tmp_path, database)
    shop.sql(
        "CREATE TABLE orders (id int, number numeric, seq bigint)",
        "INSERT INTO orders SELECT i, nullif(1001 - i, 500), i FROM generate_series(1, 1000) i",
        "INSERT INTO orders VALUES (0, 5, NULL), (1001, 'NaN', 500)",
    )
    columns = {"id": {**KEY, **WHOLE}, "number": {"logicalType": "number"}, "seq": WHOLE}
    jdbc = {"overlap": 10, "partitions": 4, **({"partitionColumn": column} if column else {})}
    shop.pulls_from("orders", columns, jdbc, sequence="seq")
    assert shop.run().problems == []
    where = "_entry = 'record'"
    ids = [row[0] for row in shop.rows("bronze/orders", "int(get_json_object(raw, '$.id'))", where=where)]
    assert sorted(ids) == list(range(1002))
    places = shop.rows("bronze/orders", "_file", "_block", "_line", where=where)
    assert len(set(places)) == 1002
    sizes = {block: sum(place[1] == block for place in places) for block in range(5)}
    assert sizes.pop(4) == 1, "the row without a sequence"
    assert all(240 <= size <= 262 for size in sizes.values()) and sum(sizes.values()) == 1001, sizes
    pull = next(one for entries in shop.pipeline().taken(shop.conf("orders")).values() for one in entries)
    frame = source.read(spark, shop.conf("orders"), [pull])
    assert frame.rdd.getNumPartitions() == 5
    shop.nothing_is_lost("orders")


# --- What goes wrong ---


@pytest.mark.cluster
def test_each_failure_is_one_problem_without_a_secret(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the other datasets go on."""
    put(shop, ("a", 1, "05 10:00"))
    monkeypatch.setenv("WRONG_PASSWORD", "wr0ng-Pa55")
    missing = {"id": KEY, "sum": MONEY, "at": MOMENT}
    text = {"id": {**KEY, "physicalName": "at"}, "at": {**MOMENT, "physicalName": "id"}}
    shop.pulls_from("down", COLUMNS, server={"port": 1}, sequence="at", table="orders")
    shop.pulls_from("refused", COLUMNS, {**PULL, "password": "env:WRONG_PASSWORD"}, sequence="at", table="orders")
    shop.pulls_from("unset", COLUMNS, {**PULL, "password": "env:NOT_SET"}, sequence="at", table="orders")
    shop.pulls_from("nowhere", COLUMNS, server={"database": "shopp"}, sequence="at", table="orders")
    shop.pulls_from("tableless", COLUMNS, sequence="at", table="Orders")
    shop.pulls_from("columnless", missing, sequence="at", table="orders")
    shop.pulls_from("texted", text, sequence="at", table="orders")
    pipeline = shop.pipeline()
    pipeline.assess()
    outcome = pipeline.transform()
    told = {problem.where.split("(")[-1].rstrip(")"): problem for problem in outcome.problems}
    assert {name: problem.code for name, problem in told.items()} == {
        "down": "database-down", "refused": "database-login", "env:NOT_SET": "secret-missing",
        "nowhere": "database-missing", "tableless": "table-missing", "columnless": "column-missing",
        "texted": "database-type",
    }  # fmt: skip
    assert len(outcome.problems) == len(told), "each once, though assess met it too"
    assert "127.0.0.1:1 does not answer" in told["down"].what
    assert "did you mean 'orders'" in told["tableless"].fix
    assert "column sum is missing" in told["columnless"].what
    assert "env:WRONG_PASSWORD" in told["refused"].what
    said = "\n".join([*map(str, outcome.problems), *capfd.readouterr()])
    assert not [secret for secret in (PASSWORD, USER, "wr0ng-Pa55") if secret in said]
    assert orders(shop) == [("a", "1.00", "05 10:00")]


@pytest.mark.cluster
def test_a_database_that_goes_while_it_is_read(shop: Shop) -> None:
    """One problem, nothing written; the next run reads on."""
    put(shop, ("a", 1, "05 10:00"), ("b", 0, "05 10:01"))
    shop.sql(
        "ALTER TABLE orders RENAME TO orders_",
        "CREATE VIEW orders AS SELECT id, amount / (CASE WHEN id = 'b' THEN 0 ELSE 1 END) AS amount, at FROM orders_",
    )
    shop.sql(
        "UPDATE orders_ SET at = '2026-01-01Z' WHERE id = 'b'"
    )  # outside of the overlap, whose hash reads all columns
    outcome = shop.run()
    assert [(p.code, "division by zero" in p.what, "22012" in p.what) for p in outcome.problems] == [
        ("database", True, True)
    ]
    assert not (shop.home / "warehouse" / "silver").exists() and shop.pulls() == []
    shop.sql("CREATE OR REPLACE VIEW orders AS SELECT id, amount / 1 AS amount, at FROM orders_")
    assert [row.rows_in for row in shop.run().ledger] == [2]


# --- Columns that come and go, plan and assess ---


@pytest.mark.cluster
def test_new_columns_go_by_the_contracts_evolution(shop: Shop) -> None:
    shop.sql("ALTER TABLE orders ADD extra int DEFAULT 7")
    put_one = "INSERT INTO orders VALUES ('{}', 1, '2026-01-05 10:0{}Z')"
    for number, evolution in enumerate(("keep", "add", "quarantine", "refuse")):
        shop.pulls_from("orders", COLUMNS, sequence="at", evolution=evolution, jdbc={"overlap": "1s"})
        shop.sql(put_one.format(evolution, number))
        outcome = shop.run()
        assert bool(outcome.problems) == (evolution == "refuse"), evolution
    assert shop.rows("silver/orders", "id", "extra") == [("add", "7"), ("keep", None)]
    # The row of before stands at the bound, and is read again under the new contract.
    assert shop.quarantined("orders", "rule", "get_json_object(raw, '$.id')") == [
        ("drift", None), ("drift", "add"), ("drift", "quarantine"),
    ]  # fmt: skip
    shop.run()
    assert len(shop.quarantined("orders", "rule")) == 3, "a refused table is told once"
    shop.pulls_from("orders", COLUMNS, sequence="at", jdbc={"overlap": "1s"})
    shop.run()
    assert shop.quarantined("orders", "state", where="_load IS NULL") == [("loaded",)]


@pytest.mark.cluster
def test_names_are_matched_without_regard_to_case(shop: Shop) -> None:
    columns = {"id": {**KEY, "physicalName": "ID"}, "amount": MONEY, "at": {**MOMENT, "physicalName": "AT"}}
    columns["gone"] = {"customProperties": [{"property": "optional", "value": True}]}
    shop.pulls_from("orders", columns, sequence="at")
    put(shop, ("a", 1, "05 10:00"))
    assert shop.run().problems == []
    assert orders(shop) == [("a", "1.00", "05 10:00")]


@pytest.mark.cluster
def test_plan_and_assess(shop: Shop) -> None:
    put(shop, ("a", 1, "05 10:00"))
    assert next((i.table, i.action, i.reads, i.why) for i in plan.intents(shop.pipeline())) == (
        "bronze.orders", "append", f'rows of shop.{shop.schema}.orders: "at" timestamptz up to 2026-01-05 10:00:00+00',
        "load 1: the first pull",
    )  # fmt: skip
    pipeline = shop.pipeline()
    pipeline.assess()
    assert [(row.column, row.sampled, row.kind) for row in pipeline.outcome.profiles] == [
        ("id", 1, "string"), ("amount", 1, "number"), ("at", 1, "timestamp"),
    ]  # fmt: skip
    assert not (shop.home / "warehouse").exists(), "nothing is written"
    shop.run()
    assert [(i.action, i.why) for i in plan.intents(shop.pipeline())] == [
        ("keep", "no new rows; at load 1"), ("keep", "up to date with load 1"),
    ]  # fmt: skip


@pytest.mark.cluster
def test_freshness_is_that_of_the_newest_row(shop: Shop) -> None:
    path = shop.home / "conf" / "datasets" / "orders.yaml"
    sla = [{"property": "freshness", "value": 2, "unit": "h"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "slaProperties": sla}))
    assert shop.run().notes == ["orders: no row has come, its SLA is 2 h"]
    shop.sql("INSERT INTO orders VALUES ('a', 1, now() - interval '3 hours')")
    assert shop.run().notes == ["orders: the newest row is 3.0 h old, its SLA is 2 h"]
    shop.sql("INSERT INTO orders VALUES ('b', 1, now())")
    assert shop.run().notes == []


# --- Secrets ---


@pytest.mark.cluster
def test_no_secret_is_told_anywhere(shop: Shop, spark: Any) -> None:
    """A job of its own, with Spark's log at INFO and its event log, from which the UI is made."""
    put(shop, ("a", 1, "05 10:00"))
    events = shop.home / "events"
    events.mkdir()
    job = Job(spark, shop.home, {"spark.eventLog.enabled": "true", "spark.eventLog.dir": events.as_uri(),
                                 "spark.eventLog.compress": "false", "spark.log.level": "INFO"})  # fmt: skip
    assert job.wait() == 0, job.said()
    assert orders(shop) == [("a", "1.00", "05 10:00")]
    files = [path for path in shop.home.rglob("*") if path.is_file()]
    assert any("JDBCRelation" in path.read_text(errors="replace") for path in events.rglob("*") if path.is_file())
    assert "INFO" in job.said()
    assert [path for path in files if any(secret.encode() in path.read_bytes() for secret in (PASSWORD, USER))] == []
    entry = shop.rows("bronze/orders", "raw", where="_entry = 'file'")[0][0]
    dataset = shop.conf("orders")
    pull = next(one for entries in shop.pipeline().taken(dataset).values() for one in entries)
    plans = source.read(spark, dataset, [pull])._jdf.queryExecution().toString()
    assert "JDBCRelation" in plans and not [s for s in (PASSWORD, USER) if s in plans or s in entry]


class Job:
    """A batch job of its own over a pipeline's folder."""

    def __init__(self, spark: Any, home: Path, settings: dict[str, str]) -> None:
        environ, self.log = job_environ(spark), home / "job.log"
        options = " ".join(f"--conf {key}={value}" for key, value in settings.items())
        environ["PYSPARK_SUBMIT_ARGS"] = f"{options} {environ['PYSPARK_SUBMIT_ARGS']}"
        words = [sys.executable, str(ROOT / "jobs" / "batch.py"), "--conf-dir", str(home / "conf")]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(words, env=environ, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> int:
        return self.process.wait(300)

    def kill(self) -> None:
        """The driver and its JVM at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def said(self) -> str:
        return self.log.read_text(errors="replace")


# --- ACME's SAP ---

SAP: dict[str, tuple[str, str, dict[str, Any]]] = {  # dataset -> its table's columns, how its files are read, its pull
    "orders": (
        "ORDER_ID text, LINE int, ORDER_DATE date, CHANGED_AT timestamptz, LOCATION text, CUSTOMER_ID text, MODEL text,"
        " CATEGORY text, QTY int, UNIT_PRICE numeric(12,2), DISCOUNT numeric(5,2), CURRENCY char(3),"
        " STATUS varchar(20), SALES_REP text",
        "DELIMITER ';'", {"overlap": "3d"},
    ),
    "stock": (
        "LOCATION text, MODEL text, SNAPSHOT_DATE date, ON_HAND bigint, RESERVED bigint, IN_TRANSIT bigint",
        "DELIMITER ','", {"overlap": "1d", "sequence": "snapshot_date"},
    ),
    "procurement": (
        "PO_ID text, LINE int, SUPPLIER_ID text, SUPPLIER text, MODEL text, ORDERED_AT date, PROMISED_AT date,"
        " DELIVERED_AT date, QTY_ORDERED int, QTY_RECEIVED int, QTY_REJECTED int, UNIT_COST numeric,"
        " CHANGED_AT timestamp",
        "DELIMITER ';', ENCODING 'WIN1252'", {"overlap": "3d"},
    ),
}  # fmt: skip
GATE = 4711  # an advisory lock: who holds it stops the pull in the middle of its rows


def sap_contract(database: Database, name: str) -> dict[str, Any]:
    """ACME's own contract, but for where the feed is and how its texts are written."""
    document: dict[str, Any] = load_yaml(ROOT / "conf" / "datasets" / f"{name}.yaml")[0]
    for column in document["schema"][0]["properties"]:
        if column["logicalType"] in ("date", "timestamp"):
            column.pop("logicalTypeOptions", None)
    document["schema"][0]["physicalName"] = name
    document["servers"] = [database.server(schema="sap")]
    pull = dict(SAP[name][2])
    sequence = pull.pop("sequence", None)
    kept = [one for one in document["customProperties"] if one["property"] not in ("options", "files")]
    document["customProperties"] = [*kept, {"property": "jdbc", "value": {**REFERENCES, **pull}}]
    if sequence:
        document["customProperties"].append({"property": "sequence", "value": sequence})
    return document


def arrive(database: Database, landing: Path, days: set[str]) -> None:
    """Put the rows of those days' files into the tables."""
    for name, (_, how, _) in SAP.items():
        for path in sorted((landing / f"sap_{name}").rglob("*.csv*")):
            if any(day in path.name for day in days):
                text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                database.sql(f"COPY sap.{name}_ FROM STDIN (FORMAT csv, HEADER, {how})", stdin=text)


@pytest.fixture(scope="module")
def by_files(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """ACME's SAP feeds of four days, by way of their files."""
    tiny = Tiny(spark, tmp_path_factory.mktemp("files"))
    shares = {"bad_share": 0.0, "late_share": 0.1, "repeat_share": 0.05, "anomaly_share": 0.0, "seed": 5}
    _acme().make_feeds(tiny.home / "landing", days=4, order_lines=2000, **shares)
    for name in SAP:
        tiny._write(f"datasets/{name}.yaml", (ROOT / "conf" / "datasets" / f"{name}.yaml").read_text("utf-8"))
    assert tiny.run().problems == []
    return tiny


@pytest.mark.cluster
def test_acmes_sap_tables_killed_and_resumed(spark: Any, database: Database, by_files: Tiny, tmp_path: Path) -> None:
    """kill -9 in the middle of the orders' first rows, and after a second pull was committed; silver is the same as by
    way of files."""
    landing = by_files.home / "landing"
    days = sorted({re.sub(r"\D", "", path.stem) for path in (landing / "sap_orders").glob("*.csv")})
    tiny = Tiny(spark, tmp_path)
    database.sql("CREATE SCHEMA sap")
    for name, (columns, *_) in SAP.items():
        tiny._write(f"datasets/{name}.yaml", sap_contract(database, name))
        database.sql(f"CREATE TABLE sap.{name}_ ({columns})")
    for name in ("stock", "procurement"):
        database.sql(f"CREATE VIEW sap.{name} AS SELECT * FROM sap.{name}_")
    arrive(database, landing, set(days[:2]))
    gated, others = "SO100100000003", [part.split()[0] for part in SAP["orders"][0].split(", ")]
    gate = f"CASE WHEN order_id = '{gated}' THEN pg_advisory_lock_shared({GATE})::text ELSE '' END || sales_rep"
    shown = ", ".join(f"{gate} AS sales_rep" if name == "SALES_REP" else name for name in others)
    database.sql(f"CREATE VIEW sap.orders AS SELECT {shown} FROM sap.orders_")
    database.sql(f"UPDATE sap.orders_ SET line = line WHERE order_id = '{gated}'")  # behind the others now

    with held(database):
        job = Job(spark, tiny.home, {})
        wait_for(lambda: waiting(database) > 0, job)
        job.kill()
    assert not list((tmp_path / "warehouse" / "bronze" / "orders" / "_delta_log").glob("*.json")), (
        "it was in the middle"
    )
    assert tiny.run().problems == []

    arrive(database, landing, set(days[2:]))
    assert killed_at(spark, tiny.home, "bronze/stock", "after") == -signal.SIGKILL
    bronze = tmp_path / "warehouse" / "bronze"
    assert len(list((bronze / "stock" / "_delta_log").glob("*.json"))) == 2
    assert tiny.run().problems == []
    for name in SAP:
        dataset = tiny.conf(name)
        columns = [f"CAST({column.name} AS string)" for column in dataset.columns]
        assert tiny.rows(f"silver/{name}", *columns) == by_files.rows(f"silver/{name}", *columns), name
        tiny.nothing_is_lost(name)
    again = tiny.run()
    assert (again.ledger, again.problems) == ([], [])


@contextmanager
def held(database: Database) -> Iterator[None]:
    """Inside, the gate is shut."""
    holder = subprocess.Popen(database.psql(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin and holder.stdout
    holder.stdin.write(f"SELECT 'held' || pg_advisory_lock({GATE});\n".encode())
    holder.stdin.flush()
    assert holder.stdout.readline().strip() == b"held"
    yield
    holder.communicate()


def waiting(database: Database) -> int:
    return int(database.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"))


def wait_for(ready: Callable[[], bool], job: Job) -> None:
    deadline = time.monotonic() + 300
    while not ready():
        assert job.process.poll() is None and time.monotonic() < deadline, job.said()
        time.sleep(0.2)
