"""Tables of a PostgreSQL database as feeds: what their contracts must say; no row is lost or changed, no secret told."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from database import PASSWORD, REFERENCES, USER, Database, contract
from test_acme import _acme
from test_crash import job_environ
from test_crash import killed as killed_at
from tiny import DAY, KEY, MONEY, WHOLE, Tiny

from drivetrain import conf as reader
from drivetrain import plan
from drivetrain.contracts import Dataset, Jdbc
from drivetrain.errors import Problem
from drivetrain.odcs import Findings, read_dataset
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
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    if not shutil.which("postgres") and not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")):
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    made = Database(tmp_path_factory.mktemp("database"), shutil.which("java") or "java")
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


@pytest.mark.cluster
def test_types_are_kept(spark: Any, database: Database, tmp_path: Path) -> None:
    """With the session and the JVM in another time zone, too: every value arrives digit by digit."""
    shop = Shop(spark, tmp_path, database, timezone="America/New_York")
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
