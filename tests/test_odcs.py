"""One contract file: what it becomes, and what is wrong with it at which line."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.contracts import Column, Dataset, Options, Rule
from drivetrain.errors import Problem
from drivetrain.findings import Findings, nearest
from drivetrain.odcs import read_dataset
from drivetrain.settings import load_yaml

PLAIN = """\
apiVersion: v3.1.0
kind: DataContract
id: shop-orders
name: Shop orders
version: 2.1.0
status: active
team:
  name: shop@acme.example
servers:
  - {server: local, type: local, path: "${landing}/shop", format: csv}
  - {server: yarn, type: local, path: /data/shop, format: csv}
schema:
  - name: orders
    logicalType: object
    properties:
      - {name: order_id, physicalName: ID, logicalType: string, primaryKey: true, primaryKeyPosition: 2}
      - {name: shop, logicalType: string, primaryKey: true, primaryKeyPosition: 1, unique: true}
      - name: amount
        logicalType: number
        physicalType: decimal(12, 2)
        classification: personal
        logicalTypeOptions: {minimum: 0, exclusiveMaximum: 100}
        quality:
          - {name: sane, type: sql, query: "SELECT COUNT(*) FROM {object} WHERE {property} < 0 OR kind = 1", mustBe: 0}
          - {metric: missingValues, mustBe: 0, arguments: {missingValues: ["n/a", "", null]}}
          - {metric: nullValues, mustBeLessThan: 5, unit: percent}
          - {type: text, description: For people.}
        customProperties:
          - {property: aliases, value: [sum, total]}
          - {property: optional, value: true}
          - {property: nullValues, value: ["-"]}
          - {property: trim, value: false}
      - {name: kind, logicalType: string, required: true, enum: [{value: a}, {value: b}]}
      - {name: day, logicalType: date, transformLogic: "to_date(_file, KIND)", logicalTypeOptions: {format: yyyyMMdd}}
      - {name: at, logicalType: timestamp}
    quality:
      - {name: enough, metric: rowCount, mustBeGreaterThan: 10, customProperties: [{property: action, value: stop}]}
      - {metric: duplicateValues, arguments: {properties: [shop, kind]}, mustBe: 0}
slaProperties:
  - {property: freshness, value: 2, unit: d}
  - {property: latency, value: 30, unit: min}
customProperties:
  - {property: sequence, value: at}
  - {property: options, value: {delimiter: ";", multiLine: true, nullValues: [unknown]}}
  - {property: spark, value: {spark.sql.shuffle.partitions: 3, spark.sql.adaptive.enabled: false}}
  - {property: other, value: 1, vendor: somebody}
"""
PLACES = {"root": "/root", "landing": "/root/landing", "warehouse": "/w"}


def read(
    folder: Path, text: str = PLAIN, name: str = "orders", env: str = "local"
) -> tuple[Dataset | None, list[Problem]]:
    path, problems = folder / f"{name}.yaml", []  # type: ignore[var-annotated]
    path.write_text(text, "utf-8")
    document, lines = load_yaml(path)
    return read_dataset(document, Findings(path, lines, problems), env, PLACES), problems


def test_the_whole_contract(tmp_path: Path) -> None:
    dataset, problems = read(tmp_path)
    assert problems == [] and dataset
    assert (dataset.name, dataset.version, dataset.owner) == ("orders", "2.1.0", "shop@acme.example")
    assert (dataset.path, dataset.format, dataset.files) == ("/root/landing/shop", "csv", "*")
    assert dataset.options == Options(delimiter=";", multi_line=True, null_values=("unknown",))
    assert dataset.key == ("shop", "order_id"), "by primaryKeyPosition"
    assert dataset.identity == ("shop", "order_id", "at")
    assert (dataset.sequence, dataset.history, dataset.evolution, dataset.unify) == ("at", "latest", "keep", False)
    assert dataset.spark == (("spark.sql.shuffle.partitions", "3"), ("spark.sql.adaptive.enabled", "false"))
    assert (dataset.freshness_hours, dataset.latency_hours) == (48.0, 0.5)
    assert dataset.column("order_id") == Column("order_id", "ID", "string", required=True)
    assert dataset.column("amount") == Column(
        "amount",
        "amount",
        "decimal(12,2)",
        aliases=("sum", "total"),
        optional=True,
        classification="personal",
        null_values=("-",),
        trim=False,
        bounds=(("minimum", 0), ("exclusiveMaximum", 100)),
    )
    assert dataset.column("kind").enum == ("a", "b")
    day = dataset.column("day")
    assert (day.sources, day.format, day.type) == (("_file", "kind"), "yyyyMMdd", "date")
    assert dataset.column("at").type == "timestamp"


def test_its_rules(tmp_path: Path) -> None:
    dataset, _ = read(tmp_path)
    assert dataset
    rules = {rule.name: rule for rule in dataset.rules}
    assert set(rules) == {
        "enough",
        "shop_kind_duplicate_values",
        "shop_unique",
        "sane",
        "amount_missing_values",
        "amount_null_values",
    }
    sane = rules["sane"]
    assert (sane.action, sane.predicate) == ("quarantine", "`amount` < 0 OR kind = 1")
    assert rules["enough"] == Rule("enough", "stop", "mustBeGreaterThan", 10, metric="rowCount")
    assert rules["shop_unique"] == Rule("shop_unique", "flag", "mustBe", 0, metric="duplicateValues", columns=("shop",))
    missing, nulls, twice = (
        rules[name] for name in ("amount_missing_values", "amount_null_values", "shop_kind_duplicate_values")
    )
    assert (missing.action, missing.missing_values, missing.columns) == ("quarantine", ("n/a", ""), ("amount",))
    assert (nulls.action, nulls.operator, nulls.threshold, nulls.percent) == ("flag", "mustBeLessThan", 5, True)
    assert (twice.action, twice.columns) == ("flag", ("shop", "kind"))


def test_the_environments_server_is_read(tmp_path: Path) -> None:
    dataset, _ = read(tmp_path, env="yarn")
    assert dataset and dataset.path == "/data/shop"


# Each line is changed as the first two say; the third is the problem's code, the others are in its text and its advice.
MISTAKES = [
    ("status: active", "statos: active", "unknown-key", "'statos'", "status"),
    ("kind: DataContract", "kind: Contract", "odcs", "Contract", ""),
    ("      - {name: at, logicalType: timestamp}", "      - {name: at, logicalType: datetime}", "odcs", "datetime", ""),
    ("      - {name: at, logicalType: timestamp}", "      - {name: at, logicalType: array}", "type", "array", "string"),
    (
        "      - {name: at, logicalType: timestamp}",
        "      - {name: at, logicalType: time}",
        "type",
        "time",
        "timestamp",
    ),
    (
        "        physicalType: decimal(12, 2)",
        "        physicalType: decimal(2, 12)",
        "type",
        "decimal(2,12)",
        "decimal",
    ),
    ("        physicalType: decimal(12, 2)", "        physicalType: varchar(3)", "type", "string", "double"),
    ("      - {name: at, logicalType: timestamp}", "      - {name: At, logicalType: timestamp}", "name", "'At'", "a-z"),
    (
        "      - {name: at, logicalType: timestamp}",
        '      - {name: "a`; drop", logicalType: string}',
        "name",
        "drop",
        "a-z",
    ),
    ("      - {name: at, logicalType: timestamp}", "      - {name: _load, logicalType: string}", "name", "_load", ""),
    (
        "      - {name: at, logicalType: timestamp}",
        "      - {name: is_current, logicalType: string}",
        "name",
        "is_current",
        "physicalName",
    ),
    ("  - name: orders", "  - name: order", "name", "'order'", "order.yaml"),
    ("        classification: personal", "        classification: persona", "classification", "persona", "'personal'"),
    (
        "          - {property: optional, value: true}",
        "          - {property: optinal, value: true}",
        "unknown-key",
        "optinal",
        "'optional'",
    ),
    (
        "          - {property: optional, value: true}",
        "          - {property: optional, value: perhaps}",
        "bad-value",
        "perhaps",
        "",
    ),
    (
        "          - {property: trim, value: false}",
        "          - {property: aliases, value: []}",
        "twice",
        "aliases",
        "one",
    ),
    ("  - {property: sequence, value: at}", "  - {property: sequence, value: att}", "unknown-column", "'att'", "'at'"),
    (
        "  - {property: sequence, value: at}",
        "  - {property: sequenze, value: at}",
        "unknown-key",
        "sequenze",
        "'sequence'",
    ),
    (
        "  - {property: sequence, value: at}",
        "  - {property: identity, value: [order]}",
        "unknown-column",
        "'order'",
        "'order_id'",
    ),
    ("  - {property: sequence, value: at}", "  - {property: history, value: scd2}", "sequence", "scd2", "sequence"),
    ("  - {property: sequence, value: at}", "  - {property: history, value: scd3}", "bad-value", "scd3", ""),
    ("  - {property: sequence, value: at}", "  - {property: format, value: csw}", "bad-value", "csw", ""),
    ("  - {property: sequence, value: at}", '  - {property: files, value: "../*"}', "bad-value", "files", ""),
    (
        "  - {property: freshness, value: 2, unit: d}",
        "  - {property: freshness, value: 2, unit: fortnight}",
        "sla",
        "freshness",
        "days",
    ),
    (
        '  - {server: local, type: local, path: "${landing}/shop", format: csv}',
        '  - {server: local, type: local, path: "${landing}/../shop", format: csv}',
        "path",
        "..",
        "folder",
    ),
    (
        '  - {server: local, type: local, path: "${landing}/shop", format: csv}',
        '  - {server: local, type: local, path: "${landin}/shop", format: csv}',
        "path",
        "landin",
        "'landing'",
    ),
    (
        '  - {server: local, type: local, path: "${landing}/shop", format: csv}',
        '  - {server: local, type: local, path: "/a/*", format: csv}',
        "path",
        "wildcard",
        "files",
    ),
    (
        '  - {server: local, type: local, path: "${landing}/shop", format: csv}',
        '  - {server: local, type: local, path: "s3a://b/c", format: csv}',
        "path",
        "scheme",
        "hdfs",
    ),
    (
        '  - {server: local, type: local, path: "${landing}/shop", format: csv}',
        "  - {server: local, type: local, path: /a, format: cvs}",
        "format",
        "cvs",
        "'csv'",
    ),
    (
        '  - {server: local, type: local, path: "${landing}/shop", format: csv}',
        "  - {server: test, type: local, path: /a, format: csv}",
        "server",
        "local",
        "server: local",
    ),
]
# These change a value inside of a line: part, instead, code, text, advice.
PARTS = [
    (
        "spark.sql.adaptive.enabled: false",
        "spark.driver.extraJavaOptions: -x",
        "spark-key",
        "extraJavaOptions",
        "base.yaml",
    ),
    ("spark.sql.adaptive.enabled: false", "spark.jars: /x.jar", "spark-key", "spark.jars", "base.yaml"),
    ("spark.sql.adaptive.enabled: false", "spark.redaction.regex: x", "spark-key", "redaction", "base.yaml"),
    ("spark.sql.adaptive.enabled: false", "spark.sql.ansi.enabled: false", "spark-key", "ansi", "base.yaml"),
    ("multiLine: true", "multiline: true", "unknown-key", "multiline", "'multiLine'"),
    ("multiLine: true", "encoding: utf-9", "encoding", "utf-9", "UTF-8"),
    ("multiLine: true", "quote: ab", "bad-value", "quote", ""),
    ("{property} < 0 OR kind = 1", "amont < 0", "sql", "amont", "WHERE"),
    ("{property} < 0 OR kind = 1", "rand() < 0", "sql", "rand", "WHERE"),
    ("{property} < 0 OR kind = 1", "(amount < 0", "sql", "", "WHERE"),
    ("SELECT COUNT(*) FROM {object}", "SELECT COUNT(*) FROM other", "sql", "other", "WHERE"),
    ("SELECT COUNT(*) FROM {object} WHERE", "DELETE FROM {object} WHERE", "sql", "not a SELECT", "WHERE"),
    ("to_date(_file, KIND)", "to_date(", "sql", "day", "expression"),
    ("to_date(_file, KIND)", "uuid()", "sql", "uuid", "expression"),
    ("properties: [shop, kind]", "properties: [shop, kint]", "unknown-column", "'kint'", "'kind'"),
    (
        "{metric: duplicateValues, arguments: {properties: [shop, kind]}, mustBe: 0}",
        "{metric: duplicateValues, mustBe: 0}",
        "rule",
        "column",
        "",
    ),
    (
        "{metric: nullValues, mustBeLessThan: 5, unit: percent}",
        "{metric: invalidValues, mustBe: 0}",
        "rule",
        "validValues",
        "one",
    ),
    (
        "{metric: nullValues, mustBeLessThan: 5, unit: percent}",
        "{metric: invalidValues, mustBe: 0, arguments: {pattern: '('}}",
        "pattern",
        "(",
        "regular",
    ),
    (
        "{metric: nullValues, mustBeLessThan: 5, unit: percent}",
        "{name: other, metric: missingValues, mustBe: 0, arguments: {missingValue: [1]}}",
        "unknown-key",
        "missingValue",
        "'missingValues'",
    ),
    (
        "{metric: nullValues, mustBeLessThan: 5, unit: percent}",
        "{name: few, metric: rowCount, mustBe: 0, customProperties: [{property: action, value: quarantine}]}",
        "rule",
        "few",
        "flag",
    ),
    (
        "{metric: nullValues, mustBeLessThan: 5, unit: percent}",
        "{metric: nullValues, mustBe: none}",
        "rule",
        "none",
        "number",
    ),
    (
        "{metric: nullValues, mustBeLessThan: 5, unit: percent}",
        "{name: sane, metric: nullValues, mustBe: 0}",
        "twice",
        "sane",
        "rename",
    ),
    (
        "{metric: nullValues, mustBeLessThan: 5, unit: percent}",
        "{type: custom, engine: soda, implementation: x}",
        "rule",
        "custom",
        "sql",
    ),
    ("{minimum: 0, exclusiveMaximum: 100}", "{minimum: 0, multipleOf: 3}", "bad-value", "multipleOf", "maximum"),
    ("enum: [{value: a}, {value: b}]", "logicalTypeOptions: {pattern: '['}", "pattern", "[", "regular"),
    ("{minimum: 0, exclusiveMaximum: 100}", "{minimum: 0.001}", "bad-value", "'0.001' is not a decimal(12,2)", "type"),
    ("{minimum: 0, exclusiveMaximum: 100}", "{maximum: 99999999999}", "bad-value", "'99999999999'", "type"),
    (
        "logicalType: string, required: true, enum: [{value: a}, {value: b}]",
        "logicalType: integer, required: true, enum: [{value: 1.5}]",
        "bad-value",
        "'1.5' is not a bigint",
        "type",
    ),
    (
        '{metric: missingValues, mustBe: 0, arguments: {missingValues: ["n/a", "", null]}}',
        "{metric: invalidValues, mustBe: 0, arguments: {validValues: [one]}}",
        "bad-value",
        "'one' is not a dec",
        "type",
    ),
    ("physicalName: ID", "physicalName: _file", "name", "'_file'", "rename"),
    (
        "{name: at, logicalType: timestamp}",
        "{name: at, physicalName: Kind, logicalType: timestamp}",
        "twice",
        "'kind' and 'Kind'",
        "NAME#2",
    ),
    (
        "{name: at, logicalType: timestamp}",
        "{name: at, logicalType: timestamp, physicalType: timestamp_ntz, logicalTypeOptions: {format: dd MMM yyyy}}",
        "format",
        "dd MMM yyyy",
        "physicalType timestamp",
    ),
    ("to_date(_file, KIND)", "max(KIND)", "sql", "aggregate", "expression"),
]


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


@pytest.mark.parametrize(
    ("old", "new", "code", "said", "advice"),
    MISTAKES + PARTS,
    ids=[f"{m[2]}-{i}" for i, m in enumerate(MISTAKES + PARTS)],
)
def test_one_mistake_is_one_problem(tmp_path: Path, old: str, new: str, code: str, said: str, advice: str) -> None:
    assert PLAIN.count(old) == 1
    dataset, problems = read(tmp_path, PLAIN.replace(old, new))
    mine = [problem for problem in problems if problem.code == code and said in problem.what]
    assert dataset is None and len(mine) == 1, problems
    assert advice in mine[0].fix
    where, line = mine[0].where.rsplit(":", 1)
    assert where.endswith("orders.yaml")
    text = PLAIN.replace(old, new)
    assert int(line) == line_of(text, "servers:" if code == "server" else new)
    consequences = {"unknown-column"} if code == "name" else set()  # a renamed column is missing where it was named
    assert {problem.code for problem in problems} <= {code} | consequences


def test_everything_at_once(tmp_path: Path) -> None:
    """Every mistake of one file is told, in one go, each with its own line."""
    text, expected = PLAIN, []
    for old, new, code, said, _ in (
        *MISTAKES[9:10],
        *MISTAKES[12:14],
        *MISTAKES[16:17],
        *PARTS[0:1],
        *PARTS[7:8],
        *PARTS[12:13],
        *PARTS[14:15],
    ):
        text = text.replace(old, new)
        expected.append((code, said))
    _, problems = read(tmp_path, text)
    for code, said in expected:
        assert [p for p in problems if p.code == code and said in p.what], (code, said)
    assert len({problem.where for problem in problems}) >= 6


def test_what_the_standard_rejects_is_rejected(tmp_path: Path) -> None:
    """The standard's own JSON Schema has the last word, wherever the mistake stands."""
    for old, new in (
        ("version: 2.1.0\n", ""),
        ("apiVersion: v3.1.0", "apiVersion: v9"),
        ("id: shop-orders", "id: 7"),
        ("slaProperties:", "slaProperties: 1\nprice:"),
        ("required: true", "required: maybe"),
        ("status: active", "status: [1]"),
    ):
        dataset, problems = read(tmp_path, PLAIN.replace(old, new, 1))
        assert dataset is None
        assert {problem.code for problem in problems} <= {"odcs", "unknown-key"} and problems


def test_the_file_names_the_dataset(tmp_path: Path) -> None:
    dataset, problems = read(tmp_path, PLAIN, name="x")
    assert dataset is None and problems[0].fix == "name the file orders.yaml, or the object x"


CHANGES = {
    "no key": (
        [
            ("primaryKey: true, primaryKeyPosition: 2", "required: true"),
            ("primaryKey: true, primaryKeyPosition: 1, ", ""),
        ],
        (),
        "append",
    ),
    "no sequence": (
        [("  - {property: sequence, value: at}\n", "")],
        ("order_id", "shop", "amount", "kind", "day", "at"),
        "latest",
    ),
    "append": (
        [("property: sequence, value: at}", "property: sequence, value: at}\n  - {property: history, value: append}")],
        ("shop", "order_id"),
        "append",
    ),
    "scd2": (
        [("property: sequence, value: at}", "property: sequence, value: at}\n  - {property: history, value: scd2}")],
        ("shop", "order_id", "at"),
        "scd2",
    ),
    "named": ([("property: sequence, value: at}", "property: identity, value: [order_id]}")], ("order_id",), "latest"),
    "position": (
        [
            (
                "property: sequence, value: at}",
                "property: identity, value: position}\n  - {property: history, value: append}",
            )
        ],
        (),
        "append",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_what_tells_events_apart(tmp_path: Path, case: str) -> None:
    text = copy.copy(PLAIN)
    changes, identity, history = CHANGES[case]
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    dataset, problems = read(tmp_path, text)
    assert not problems and dataset
    assert (dataset.identity, dataset.history) == (identity, history)


@pytest.mark.parametrize(
    ("logical", "physical", "spark"),
    [
        ("string", "VARCHAR(20)", "string"),
        ("integer", "INT", "int"),
        ("integer", "integer", "int"),
        ("integer", "long", "bigint"),
        ("number", "DECIMAL(38, 10)", "decimal(38,10)"),
        ("number", "float", "float"),
        ("timestamp", "timestamp_ntz", "timestamp_ntz"),
        ("boolean", None, "boolean"),
        ("integer", None, "bigint"),
        ("number", None, "double"),
        ("date", None, "date"),
    ],
)
def test_types(tmp_path: Path, logical: str, physical: str | None, spark: str) -> None:
    kind = f"logicalType: {logical}" + (f', physicalType: "{physical}"' if physical else "")
    dataset, problems = read(
        tmp_path,
        PLAIN.replace(
            "{name: kind, logicalType: string, required: true, enum: [{value: a}, {value: b}]}",
            f"{{name: kind, {kind}}}",
        ),
    )
    assert not problems and dataset
    assert dataset.column("kind").type == spark


@given(
    st.sampled_from(["sequence", "identity", "history", "evolution", "eventTime"]),
    st.integers(0, 7),
    st.sampled_from("xyz"),
)
def test_nearest_forgives_a_typing_mistake(name: str, at: int, wrong: str) -> None:
    typed = name[: at % len(name)] + wrong + name[at % len(name) + 1 :]
    assert (
        nearest(typed.upper(), ["sequence", "identity", "history", "evolution", "eventTime", "files"])
        == f"did you mean {name!r}?"
    )


def test_nearest_lists_what_is_known() -> None:
    assert nearest("qqq", ["b", "a"]) == "known here: a, b"
    assert nearest("qqq", []) == "known here: nothing"
    assert re.fullmatch(r"known here: (c\d+, ){11}c\d+ …", nearest("qqq", [f"c{i}" for i in range(30)]))
