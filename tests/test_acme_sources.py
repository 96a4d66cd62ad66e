"""ACME's feeds are what their truth says, read here by the contracts alone and without Spark."""

from __future__ import annotations

import csv
import gzip
import hashlib
import importlib.util
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime, timezone
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
import pytest
import sqlglot
import yaml

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("acme_sources", ROOT / "scripts" / "acme_sources.py")
assert SPEC and SPEC.loader
acme = importlib.util.module_from_spec(SPEC)
sys.modules["acme_sources"] = acme
SPEC.loader.exec_module(acme)

CONTRACTS = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in (ROOT / "conf" / "datasets").glob("*.yaml")}
GOLD = sorted((ROOT / "conf" / "gold").glob("*.sql"))
FORMATS = {"yyyyMMdd": "%Y%m%d", "dd.MM.yyyy": "%d.%m.%Y", "yyyy-MM-dd HH:mm:ss": "%Y-%m-%d %H:%M:%S"}
FEEDS = ["accounts", "cluster_use", "leads", "orders", "procurement", "reviews", "service_events", "stock"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    shares = {"bad_share": 0.05, "late_share": 0.1, "repeat_share": 0.05, "anomaly_share": 0.01}
    return acme.make_feeds(tmp_path_factory.mktemp("landing"), days=9, order_lines=4000, seed=11, **shares)


def hashes(folder: Path) -> dict[str, str]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


# The contracts, read by hand ----------------------------------------------------------------------------------------


class Contract:
    """What a feed's records must be, straight from its YAML."""

    def __init__(self, name: str) -> None:
        document = CONTRACTS[name]
        self.extras = {item["property"]: item["value"] for item in document["customProperties"]}
        self.options = self.extras.get("options", {})
        self.columns = document["schema"][0]["properties"]
        keys = [column for column in self.columns if column.get("primaryKey")]
        self.key = [column["name"] for column in sorted(keys, key=lambda column: column.get("primaryKeyPosition", 0))]
        sequence = [self.extras["sequence"]] if "sequence" in self.extras else []
        self.identity = self.extras.get("identity", self.key + sequence)

    def records(self, path: Path) -> Iterator[dict[str, Any] | None]:
        """Every record of a file as silver would have it, None for a bad one."""
        if path.suffix == ".parquet":
            yield from (self.silver(row) for row in pq.read_table(path).to_pylist())
            return
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode(self.options.get("encoding", "utf-8"), "surrogateescape").replace("\0", "\ufffe")
        if path.suffix == ".jsonl":
            yield from (self.silver(_json(line)) for line in text.splitlines())
            return
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=self.options.get("delimiter", ","))
        header = next(rows)
        for row in rows:
            yield self.silver(dict(zip(header, row, strict=True))) if len(row) == len(header) else None

    def silver(self, raw: dict[str, Any] | None) -> dict[str, Any] | None:
        if raw is None:
            return None
        try:
            return {c["name"]: self._value(c, raw[c.get("physicalName", c["name"])]) for c in self.columns}
        except (ValueError, ArithmeticError):
            return None

    def _value(self, column: dict[str, Any], raw: Any) -> Any:
        if raw is None or raw == "" or raw in self.options.get("nullValues", []):
            if column.get("required"):
                raise ValueError("null")
            return None
        value = _typed(column, raw)
        limits = column.get("logicalTypeOptions", {})
        allowed = [item["value"] for item in column.get("enum", [])]
        for rule in column.get("quality", []):
            allowed += rule.get("arguments", {}).get("validValues", [])
        if (
            (allowed and value not in allowed)
            or ("pattern" in limits and not re.search(limits["pattern"], value))
            or ("minimum" in limits and value < limits["minimum"])
            or ("maximum" in limits and value > limits["maximum"])
        ):
            raise ValueError("not allowed")
        return value


def _json(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _typed(column: dict[str, Any], raw: Any) -> Any:
    kind, form = column["logicalType"], column.get("logicalTypeOptions", {}).get("format", "")
    if not isinstance(raw, str):
        return raw
    if kind == "integer":
        value = int(raw)
        if abs(value) >= 2**63:
            raise ValueError("too large")
        return value
    if kind == "number":
        precision, scale = map(int, re.findall(r"\d+", column["physicalType"]))
        number = Decimal(raw)
        if abs(number) >= 10 ** (precision - scale):
            raise ValueError("too large")
        return number
    if kind == "date":
        return datetime.strptime(raw, FORMATS.get(form, "%Y-%m-%d")).date()
    if kind == "timestamp":
        return datetime.strptime(raw, FORMATS.get(form, "%Y-%m-%dT%H:%M:%SZ")).replace(tzinfo=timezone.utc)
    return raw


def expected_silver(contract: Contract, good: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Good distinct records, in order of arrival, as the contract's history keeps them."""
    sequence, history = contract.extras.get("sequence"), contract.extras["history"]
    if history == "append":
        return good
    ordered = sorted(good, key=lambda row: row[sequence]) if sequence else good
    versions: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in ordered:
        versions.setdefault(tuple(row[name] for name in contract.key), []).append(row)
    if history == "latest":
        return [rows[-1] for rows in versions.values()]
    result = []
    for rows in versions.values():
        ends = [row[sequence] for row in rows[1:]] + [None]
        for row, end in zip(rows, ends, strict=True):
            result.append(row | {"valid_from": row[sequence], "valid_to": end, "is_current": end is None})
    return result


# Tests --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEEDS)
def test_truth_is_what_the_files_hold(made: Any, name: str) -> None:
    contract, truth = Contract(name), made.feeds[name]
    seen: set[tuple[Any, ...]] = set()
    good: list[dict[str, Any]] = []
    total: Counter[str] = Counter()
    for file, tally in truth.files.items():
        count: Counter[str] = Counter()
        for record in contract.records(made.out / file):
            identity = record and tuple(record[column] for column in contract.identity)
            what = "bad" if identity is None else "repeats" if identity in seen else "good"
            count[what] += 1
            if what == "good":
                seen.add(identity)
                good.append(record)
        bad = sum(tally.bad.values())
        assert (count["good"], count["repeats"], count["bad"]) == (tally.good, tally.repeats, bad), file
        assert sum(count.values()) == tally.records, file
        total += count
    assert (total["good"], total["repeats"], total["bad"]) == (
        truth.total.good, truth.total.repeats, sum(truth.total.bad.values()),
    )  # fmt: skip
    kept = expected_silver(contract, good)
    silver = made.table("silver", name).to_pylist()
    assert len(silver) == truth.silver_rows == len(kept)
    assert Counter(frozenset(row.items()) for row in silver) == Counter(frozenset(row.items()) for row in kept)


@pytest.mark.parametrize("name", FEEDS)
def test_truth_lists_every_file(made: Any, name: str) -> None:
    folder = made.out / made.feeds[name].folder
    written = {str(path.relative_to(made.out)) for path in folder.rglob("*") if path.is_file()}
    assert written == set(made.feeds[name].files)


def test_truth_file_says_the_same(made: Any) -> None:
    body = json.loads((made.out / "_truth" / "truth.json").read_text("utf-8"))
    assert set(body) == {"plan", "bad_kinds", "feeds"}
    assert body["feeds"]["orders"]["total"]["records"] == made.feeds["orders"].total.records
    written = set().union(*(feed.total.bad for feed in made.feeds.values()))
    assert written <= set(body["bad_kinds"]), "every kind of bad row has a rule class"


def test_every_kind_of_bad_row_is_written(tmp_path: Path) -> None:
    truth = acme.make_feeds(tmp_path, days=3, order_lines=2000, bad_share=0.4)
    assert set().union(*(feed.total.bad for feed in truth.feeds.values())) == set(acme.BAD_KINDS)


@pytest.mark.parametrize("name", ["leads", "orders", "procurement", "reviews", "stock"])
def test_repeats_of_latest_feeds_do_not_depend_on_batching(made: Any, name: str) -> None:
    """A repeat stands in the file of its original, which is the newest version so far."""
    contract, first, newest = Contract(name), {}, {}
    for file in made.feeds[name].files:
        rows = list(filter(None, contract.records(made.out / file)))
        for row in rows:
            key, at = tuple(row[column] for column in contract.key), row.get(contract.extras.get("sequence", ""), 0)
            newest[key] = max(at, newest.get(key, at))
        for row in rows:
            identity = tuple(row[column] for column in contract.identity)
            if identity in first:
                assert first[identity] == file
                assert row.get(contract.extras.get("sequence", ""), 0) == newest[identity[: len(contract.key)]]
            first[identity] = file


def test_newer_versions_arrive_before_older_ones(made: Any) -> None:
    contract, overtaken = Contract("orders"), 0
    newest: dict[tuple[str, int], datetime] = {}
    for file in made.feeds["orders"].files:
        for row in filter(None, contract.records(made.out / file)):
            key = row["order_id"], row["line"]
            overtaken += row["changed_at"] < newest.get(key, row["changed_at"])
            newest[key] = max(row["changed_at"], newest.get(key, row["changed_at"]))
    assert overtaken == made.feeds["orders"].total.late > 100


def test_late_and_repeated_events_come_in_later_files(made: Any) -> None:
    contract = Contract("service_events")
    late, first, again = 0, {}, 0
    for file in made.feeds["service_events"].files:
        for row in filter(None, contract.records(made.out / file)):
            day = re.search(r"_(\d{8})", file)[1]  # type: ignore[index]
            again += first.setdefault(row["event_id"], file) != file
            late += first[row["event_id"]] == file and row["event_time"].strftime("%Y%m%d") < day
    assert late >= made.feeds["service_events"].total.late > 0
    assert again > 0


@pytest.mark.parametrize("name", ["orders", "stock", "procurement", "cluster_use"])
def test_anomalies_pass_the_contract(made: Any, name: str) -> None:
    odd = made.table("anomalies", name).to_pylist()
    keys = Contract(name).key
    silver = {tuple(row[key] for key in keys): row for row in made.table("silver", name).to_pylist()}
    assert {row["kind"] for row in odd} <= set(next(feed for feed in acme.FEEDS if feed.name == name).anomalies)
    assert all(tuple(row[key] for key in keys) in silver for row in odd)
    if name == "orders":
        rows = [silver[row["order_id"], row["line"]] for row in odd if row["kind"] == "discount_95"]
        assert rows and all(row["discount"] == 95 for row in rows)


def test_gold_of_daily_sales(made: Any) -> None:
    expected: Counter[tuple[date, str, str]] = Counter()
    for row in made.table("silver", "orders").to_pylist():
        if row["status"] != "cancelled":
            worth = row["qty"] * row["unit_price"] * (100 - row["discount"]) / 100
            expected[row["order_date"], row["location"], row["model"]] += worth  # type: ignore[assignment]
    table = made.table("gold", "daily_sales").to_pylist()
    assert len(table) == len(expected)
    for row in table:
        assert abs(row["revenue"] - expected[row["day"], row["location"], row["model"]]) <= Decimal("0.005")


def test_gold_of_leads_and_complaints(made: Any) -> None:
    stages = Counter((row["campaign"] or "(none)", row["stage"]) for row in made.table("silver", "leads").to_pylist())
    for row in made.table("gold", "lead_conversion").to_pylist():
        assert (row["won"], row["lost"]) == (stages[row["campaign"], "won"], stages[row["campaign"], "lost"])
        assert row["leads"] == sum(count for (campaign, _), count in stages.items() if campaign == row["campaign"])
    words = re.findall(r"\('(\w+)', '([^']+)'\)", (ROOT / "conf" / "gold" / "complaint_topics.sql").read_text("utf-8"))
    found: Counter[tuple[str, str]] = Counter()
    for row in made.table("silver", "reviews").to_pylist():
        if row["stars"] <= 2:
            found.update((row["model"], topic) for topic, pattern in words if re.search(pattern, row["text"].lower()))
    table = made.table("gold", "complaint_topics").to_pylist()
    assert found == {(row["model"], row["topic"]): row["complaints"] for row in table}


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        acme.make_feeds(tmp_path / name, days=3, order_lines=600, seed=seed)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") != hashes(tmp_path / "other")


def test_days_can_be_added(tmp_path: Path) -> None:
    acme.make_feeds(tmp_path / "grown", days=4, order_lines=800)
    acme.make_feeds(tmp_path / "grown", days=6, order_lines=1200, from_day=4)
    acme.make_feeds(tmp_path / "at_once", days=6, order_lines=1200)
    assert hashes(tmp_path / "grown") == hashes(tmp_path / "at_once")
    acme.make_feeds(tmp_path / "rest", days=6, order_lines=1200, from_day=5)
    assert len(list((tmp_path / "rest" / "sap_orders").iterdir())) == 1


def test_shares_are_those_asked_for(tmp_path: Path) -> None:
    shares = {"bad_share": 0.03, "repeat_share": 0.04, "anomaly_share": 0.02, "late_share": 0.05}
    orders = acme.make_feeds(tmp_path, days=7, order_lines=20_000, **shares).feeds["orders"]
    assert orders.silver_rows == 20_000
    total = orders.total
    assert sum(total.bad.values()) / total.good == pytest.approx(0.03, rel=0.15)
    assert total.repeats / total.good == pytest.approx(0.04, rel=0.15)
    assert total.anomalies / total.good == pytest.approx(0.02, rel=0.25)
    assert total.late / 20_000 == pytest.approx(0.05 * 5 / 7, rel=0.25), "the last two days' changes are yet to come"


@pytest.mark.parametrize(("days", "order_lines"), [(1, 0), (1, 1), (2, 200), (3, 7)])
def test_tiny_sizes(tmp_path: Path, days: int, order_lines: int) -> None:
    truth = acme.make_feeds(tmp_path, days=days, order_lines=order_lines, bad_share=0.2)
    assert truth.feeds["orders"].silver_rows == order_lines
    assert all(len(feed.files) >= days for feed in truth.feeds.values())
    assert len(truth.table("silver", "orders")) == order_lines


@pytest.mark.parametrize("wrong", [{"days": 0}, {"order_lines": -1}, {"bad_share": 0.9}, {"from_day": -1}])
def test_senseless_plans_are_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        acme.make_feeds(tmp_path, **wrong)
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    acme.main(["--out", str(tmp_path), "--days", "2", "--order-lines", "50", "--start", "2026-03-07"])
    assert (tmp_path / "sap_orders" / "orders_20260308.csv").exists()
    assert "orders" in capsys.readouterr().out


def test_feeds_and_contracts_go_together() -> None:
    assert sorted(CONTRACTS) == sorted(feed.name for feed in acme.FEEDS) == FEEDS
    folders = {name: contract["servers"][0]["path"] for name, contract in CONTRACTS.items()}
    assert folders == {feed.name: f"${{landing}}/{feed.folder}" for feed in acme.FEEDS}


@pytest.mark.parametrize("name", FEEDS)
def test_contracts_follow_the_standard(name: str) -> None:
    schema = json.loads(files("open_data_contract_standard").joinpath("schema.json").read_text("utf-8"))
    document = CONTRACTS[name]
    jsonschema.validators.validator_for(schema)(schema).validate(document)
    assert document["schema"][0]["name"] == name
    assert document["team"]["name"]
    assert {item["property"] for item in document["slaProperties"]} == {"freshness", "latency"}
    assert all(column["description"] for column in document["schema"][0]["properties"])


@pytest.mark.parametrize("path", GOLD, ids=lambda path: path.stem)
def test_gold_tables_parse_and_have_keys(path: Path) -> None:
    query = sqlglot.parse_one(path.read_text("utf-8"), read="spark")
    own = yaml.safe_load(path.with_suffix(".yaml").read_text("utf-8"))
    assert set(own) <= {"description", "owner", "key", "sla", "checks"}
    assert own["key"] and set(own["key"]) <= set(query.named_selects)
    defined = {cte.alias_or_name for cte in query.find_all(sqlglot.exp.CTE)}
    read = {table.name for table in query.find_all(sqlglot.exp.Table)} - defined
    assert read and read <= set(CONTRACTS) | {other.stem for other in GOLD}
    for check in own["checks"]:
        sqlglot.parse_one(check["query"].format(object=path.stem), read="spark")
