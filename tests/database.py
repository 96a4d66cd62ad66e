"""A PostgreSQL server of a test's own, and contracts that pull from it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("DRIVETRAIN_HOME") or ROOT / ".drivetrain")
USER, PASSWORD = "reader_of_shop", "s3cret-Pa55-of-the-shop"
REFERENCES = {"user": "env:SHOP_USER", "password": "env:SHOP_PASSWORD"}


def cluster_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cluster", ROOT / "scripts" / "cluster.py")
    assert spec and spec.loader
    found = importlib.util.module_from_spec(spec)
    sys.modules["cluster"] = found
    spec.loader.exec_module(found)
    return found


class Database:
    """The service `postgres` of scripts/cluster in a folder of its own; one user has to give a password."""

    def __init__(self, java: str) -> None:
        # Not below pytest's own folder, which it closes to others, as PostgreSQL's user.
        self.home = home = Path(tempfile.mkdtemp(prefix="drivetrain-database-"))
        home.chmod(0o755)
        (home / "venv").symlink_to(HOME / "venv")
        self.cluster = cluster_module().Cluster(home, java)
        self.up()
        rules = self.cluster.postgres_data / "pg_hba.conf"
        rules.write_text(f"host all {USER} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        self.sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'", "CREATE DATABASE shop", database="postgres")
        self.sql("SELECT pg_reload_conf()", f"GRANT pg_read_all_data TO {USER}")

    @property
    def port(self) -> int:
        return int(self.cluster.ports["postgres"])

    def up(self) -> None:
        self.cluster.up(["postgres"])

    def down(self) -> None:
        self.cluster.down()
        shutil.rmtree(self.home, ignore_errors=True)

    def psql(self, *words: str, database: str = "shop") -> list[str]:
        place = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-d", database]
        return [str(self.cluster.postgres_bin / "psql"), *place, "-qAt", "-v", "ON_ERROR_STOP=1", *words]

    def sql(self, *statements: str, database: str = "shop", stdin: bytes | None = None) -> str:
        """Runs them in a session in UTC that reads days before months, each by itself; what they printed."""
        environ = {**os.environ, "PGOPTIONS": "-c timezone=UTC -c datestyle=ISO,DMY"}
        words = self.psql(*[word for text in statements for word in ("-c", text)], database=database)
        done = subprocess.run(words, input=stdin, capture_output=True, env=environ)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def server(self, **changes: Any) -> dict[str, Any]:
        place = {"host": "127.0.0.1", "port": self.port, "database": "shop", "schema": "public"}
        return {"server": "local", "type": "postgres", **place, **changes}


def contract(
    name: str, columns: Mapping[str, Mapping[str, Any]], server: Mapping[str, Any], jdbc: Mapping[str, Any],
    table: str | None = None, **properties: Any,
) -> dict[str, Any]:  # fmt: skip
    """A contract for a table; a column is a text but for what its mapping says."""
    described = [{"name": column, "logicalType": "string", **more} for column, more in columns.items()]
    schema = {"name": name, "logicalType": "object", "properties": described}
    custom = {"jdbc": {**REFERENCES, **jdbc}, **properties}
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": name,
        "version": "1.0.0",
        "status": "active",
        "servers": [server],
        "schema": [{**schema, "physicalName": table} if table else schema],
        "customProperties": [{"property": key, "value": value} for key, value in custom.items()],
    }
