"""The conf folder: everything that is wrong in it, told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drivetrain import conf as reader
from drivetrain.errors import ConfError, Problem

BASE = "company: Shop\nlanding: landing\nwarehouse: warehouse\n"
DATASET = """\
apiVersion: v3.1.0
kind: DataContract
id: {name}
version: 1.0.0
status: active
servers:
  - {{server: local, type: local, path: "${{landing}}/{name}", format: csv}}
schema:
  - name: {name}
    properties:
      - {{name: id, logicalType: string, primaryKey: true}}
      - {{name: qty, logicalType: integer}}
      - {{name: day, logicalType: date}}
customProperties:
  - {{property: sequence, value: day}}
"""
SALES = "SELECT day, SUM(qty) AS units FROM orders GROUP BY day"
SALES_YAML = "owner: me\nkey: [day]\nsla: {freshness: 90m}\n"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder / "conf"


def plain(**changes: str | None) -> dict[str, str]:
    files: dict[str, str | None] = {
        "base.yaml": BASE,
        "local.yaml": "",
        "datasets/orders.yaml": DATASET.format(name="orders"),
        "gold/sales.sql": SALES,
        "gold/sales.yaml": SALES_YAML,
        **changes,
    }
    return {name: text for name, text in files.items() if text is not None}


def problems_of(folder: Path, files: dict[str, str], **given: Any) -> list[Problem]:
    with pytest.raises(ConfError) as error:
        reader.load(write(folder, files), "local", **{"environ": {}, **given})
    return list(error.value.problems)


def test_a_whole_folder(tmp_path: Path) -> None:
    gold = {
        "gold/best.sql": "-- the best\nSELECT MAX(units) AS units FROM sales;\n",
        "gold/best.yaml": "owner: me\nkey: [units]\n",
    }
    conf = reader.load(
        write(tmp_path, plain(**gold)), "local", environ={}, sets=["sample_rows=7", "spark.spark.x.y=true"]
    )
    settings = conf.settings
    assert (settings.company, settings.timezone, settings.sample_rows, settings.spark) == (
        "Shop",
        "UTC",
        7,
        {"spark.x.y": "True"},
    )
    assert (settings.landing, settings.warehouse) == (str(tmp_path / "landing"), str(tmp_path / "warehouse"))
    assert (settings.settle_seconds, settings.max_record_bytes, settings.unified_table, settings.make_feeds) == (
        0,
        16 << 20,
        "raw_unified_data",
        None,
    )
    assert conf.datasets["orders"].path == str(tmp_path / "landing" / "orders")
    assert list(conf.gold) == ["sales", "best"], "what is read stands before what reads it"
    sales = conf.gold["sales"]
    assert (sales.sql, sales.inputs, sales.columns, sales.key, sales.freshness_hours) == (
        SALES,
        ("orders",),
        ("day", "units"),
        ("day",),
        1.5,
    )
    assert dict(sales.lineage) == {"day": (("orders", "day"),), "units": (("orders", "qty"),)}
    assert dict(conf.gold["best"].lineage) == {"units": (("sales", "units"),)}


def test_a_scheme_is_left_alone(tmp_path: Path) -> None:
    conf = reader.load(
        write(tmp_path, plain(**{"base.yaml": BASE.replace("landing: landing", "landing: hdfs://n/landing")})),
        "local",
        environ={},
    )
    assert conf.settings.landing == "hdfs://n/landing"
    assert conf.datasets["orders"].path == "hdfs://n/landing/orders"


def test_gold_rules_stop_and_have_no_quarantine(tmp_path: Path) -> None:
    check = '{{name: {0}, type: sql, query: "SELECT COUNT(*) FROM {{object}} WHERE units < 0", mustBe: 0{1}}}'
    flag = ", customProperties: [{property: action, value: flag}]"
    text = SALES_YAML + "checks:\n" + "".join(f"  - {check.format(*given)}\n" for given in (("one", ""), ("two", flag)))
    conf = reader.load(write(tmp_path, plain(**{"gold/sales.yaml": text})), "local", environ={})
    assert [(rule.name, rule.action) for rule in conf.gold["sales"].rules] == [("one", "stop"), ("two", "flag")]
    wrong = text.replace("value: flag", "value: quarantine")
    found = problems_of(tmp_path, plain(**{"gold/sales.yaml": wrong}))
    assert [problem.code for problem in found] == ["rule"] and found[0].where.endswith("gold/sales.yaml:6")


ONE = {
    "settings: unknown key": ({"base.yaml": BASE + "timezoen: UTC\n"}, "settings", "base.yaml:4", "'timezone'"),
    "settings: missing key": ({"base.yaml": "company: x\nlanding: y\n"}, "settings", "base.yaml:1", "Settings"),
    "settings: bad value": ({"base.yaml": BASE + "sample_rows: many\n"}, "settings", "base.yaml:4", "Settings"),
    "settings: time zone": (
        {"base.yaml": BASE + "timezone: Europe/Berlni\n"},
        "timezone",
        "base.yaml:4",
        "'Europe/Berlin'",
    ),
    "settings: over the top": ({"local.yaml": "\nwarehuose: x\n"}, "settings", "local.yaml:2", "'warehouse'"),
    "settings: in a block": (
        {"base.yaml": BASE + "make_feeds:\n  days: 3\n  orders: 3\n  order_lines: 2\n"},
        "settings",
        "base.yaml:6",
        "'order_lines'",
    ),
    "settings: table name taken": (
        {"base.yaml": BASE + "unified_table: silver\n"},
        "settings",
        "base.yaml:4",
        "another name",
    ),
    "settings: table name": ({"base.yaml": BASE + "unified_table: x;drop\n"}, "settings", "base.yaml:4", "Settings"),
    "duplicate key": (
        {"datasets/orders.yaml": DATASET.format(name="orders") + "status: active\n"},
        "yaml-duplicate-key",
        "orders.yaml:16",
        "one",
    ),
    "no YAML": ({"datasets/orders.yaml": "a: [1\n"}, "yaml-syntax", "orders.yaml:2", ""),
    "not a mapping": ({"datasets/orders.yaml": "- 1\n"}, "odcs", "orders.yaml:1", ""),
    "an empty file": ({"datasets/orders.yaml": ""}, "odcs", "orders.yaml:1", ""),
    "a stray file": ({"datasets/orders.yml": "a: 1\n"}, "stray-file", "datasets/orders.yml", ".yaml"),
    "gold without YAML": ({"gold/sales.yaml": None}, "gold-pair", "gold/sales.sql", "gold/sales.yaml"),
    "gold without SQL": ({"gold/sales.sql": None}, "gold-pair", "gold/sales.yaml", "gold/sales.sql"),
    "gold: unknown table": ({"gold/sales.sql": "SELECT day FROM oders"}, "unknown-table", "sales.sql:1", "'orders'"),
    "gold: unknown column": (
        {"gold/sales.sql": "SELECT day, SUM(qyt) AS units FROM orders GROUP BY day"},
        "unknown-column",
        "sales.sql:1",
        "'qty'",
    ),
    "gold: no query": ({"gold/sales.sql": "DROP TABLE orders"}, "sql", "sales.sql:1", "SELECT"),
    "gold: bad SQL": ({"gold/sales.sql": "SELECT day\nFROM orders\nWHERE (qty > 1"}, "sql", "sales.sql:3", "SELECT"),
    "gold: a path": ({"gold/sales.sql": "SELECT * FROM parquet.`/etc`"}, "sql", "sales.sql:1", "SELECT"),
    "gold: now": ({"gold/sales.sql": "SELECT current_date() AS day FROM orders"}, "sql", "sales.sql:1", "SELECT"),
    "gold: a dataset's name": (
        {"gold/orders.sql": "SELECT 1 AS day", "gold/orders.yaml": "owner: me\nkey: [day]\n"},
        "name",
        "orders.yaml:1",
        "another",
    ),
    "gold: a check's number": (
        {"gold/sales.yaml": SALES_YAML + "checks:\n  - {name: c, metric: rowCount, mustBeBetween: 3}\n"},
        "odcs",
        "sales.yaml:5",
        "standard",
    ),
    "gold: column name": (
        {"gold/sales.sql": "SELECT day, SUM(qty) FROM orders GROUP BY day"},
        "name",
        "sales.sql:1",
        "a-z",
    ),
    "gold: key": (
        {"gold/sales.yaml": "owner: me\nkey:\n  - day\n  - unit\n"},
        "unknown-column",
        "sales.yaml:4",
        "'units'",
    ),
    "gold: unknown key": (
        {"gold/sales.yaml": SALES_YAML + "desription: x\n"},
        "unknown-key",
        "sales.yaml:4",
        "'description'",
    ),
    "gold: unknown key inside": (
        {"gold/sales.yaml": "owner: me\nkey: [day]\nsla:\n  freshnes: 1h\n"},
        "unknown-key",
        "sales.yaml:4",
        "'freshness'",
    ),
    "gold: no owner": ({"gold/sales.yaml": "key: [day]\n"}, "missing-key", "sales.yaml:1", "owner"),
    "gold: SLA": (
        {"gold/sales.yaml": "owner: me\nkey: [day]\nsla: {freshness: soon}\n"},
        "bad-value",
        "sales.yaml:3",
        "",
    ),
    "gold: check": (
        {
            "gold/sales.yaml": SALES_YAML
            + 'checks:\n  - {name: c, type: sql, query: "SELECT COUNT(*) FROM {object} WHERE x < 0", mustBe: 0}\n'
        },
        "sql",
        "sales.yaml:5",
        "WHERE",
    ),
    "gold: check is no mapping": ({"gold/sales.yaml": SALES_YAML + "checks: [x]\n"}, "bad-value", "sales.yaml:4", ""),
    "gold: a check's unknown key": (
        {"gold/sales.yaml": SALES_YAML + "checks:\n  - {name: c, metric: rowCount, mustbe: 0}\n"},
        "unknown-key",
        "sales.yaml:5",
        "'mustBe'",
    ),
    "gold: a table that reads itself, and one that reads it": (
        {
            "gold/sales.sql": "SELECT day, 1 AS units FROM sales",
            "gold/x.sql": "SELECT * FROM sales",
            "gold/x.yaml": "owner: me\nkey: [day]\n",
        },
        "gold-cycle",
        "sales.sql",
        "ring",
    ),
    "gold: itself": ({"gold/sales.sql": "SELECT day, 1 AS units FROM sales"}, "gold-cycle", "sales.sql", "ring"),
}


@pytest.mark.parametrize("case", ONE)
def test_one_mistake(tmp_path: Path, case: str) -> None:
    files, code, where, fix = ONE[case]
    found = problems_of(tmp_path, plain(**files))
    mine = [problem for problem in found if problem.code == code]
    assert len(mine) == 1 and mine[0].where.endswith(where) and fix in mine[0].fix and mine[0].fix, found
    # The standard has its own words for a rule without a known operator.
    assert len(found) == 1 or (
        case == "gold: a check's unknown key" and {problem.where for problem in found} == {mine[0].where}
    ), found


def test_a_ring_does_not_hide_the_rest(tmp_path: Path) -> None:
    gold = {"gold/a.sql": "SELECT * FROM b", "gold/b.sql": "SELECT * FROM a", "gold/c.sql": "SELECT * FROM a"}
    yamls = {name.replace(".sql", ".yaml"): "owner: me\nkey: [x]\n" for name in gold}
    found = problems_of(tmp_path, plain(**gold, **yamls, **{"gold/sales.sql": "SELECT dya AS day FROM orders"}))
    assert sorted(problem.code for problem in found) == ["gold-cycle", "unknown-column"]


def test_everything_at_once(tmp_path: Path) -> None:
    """A folder in which nearly everything is wrong: one error, a problem for each mistake, each at its line."""
    orders = DATASET.format(name="orders").replace("status: active", "statos: active")
    stock = (
        DATASET.format(name="stock")
        .replace("/stock", "/../stock")
        .replace("{name: qty, logicalType: integer}", "{name: x;drop, logicalType: integer, physicalType: varchar(9)}")
        .replace("value: day}", "value: dya}")
        + "  - {property: evolutoin, value: keep}\n"
        + "  - {property: spark, value: {spark.driver.extraJavaOptions: -X, spark.jars: x.jar,"
        + " spark.redaction.regex: x}}\n"
    )
    leads = DATASET.format(name="leads").replace(
        "      - {name: day, logicalType: date}\n",
        "      - name: day\n        logicalType: date\n        transformLogic: uuid()\n        quality:\n"
        '          - {name: a, type: sql, query: "SELECT COUNT(*) FROM {object} WHERE dai IS NULL", mustBe: 0}\n'
        '          - {name: b, type: sql, query: "DROP TABLE {object}", mustBe: 0}\n'
        "          - {metric: duplicateValues, arguments: {properties: [idd]}, mustBe: 0}\n",
    )
    files = plain(
        **{
            "base.yaml": BASE + "sample_row: 3\nspark:\n  spark.x: 1\n",
            "datasets/orders.yaml": orders,
            "datasets/stock.yaml": stock,
            "datasets/leads.yaml": leads,
            "datasets/twice.yaml": DATASET.format(name="twice") + "id: again\n",
            "gold/lonely.sql": "SELECT 1 AS x",
            "gold/a.sql": "SELECT * FROM b",
            "gold/a.yaml": "owner: me\nkey: [x]\n",
            "gold/b.sql": "SELECT * FROM a",
            "gold/b.yaml": "owner: me\nkey: [x]\n",
            "gold/bad.sql": "SELECT\n  (day\nFROM orders",
            "gold/bad.yaml": "owner: me\nkey: [day]\n",
            "gold/rnd.sql": "SELECT rand() AS day FROM orders",
            "gold/rnd.yaml": "owner: me\nkey: [day]\n",
        }
    )
    found = problems_of(tmp_path, files)
    shown = {(problem.code, "/".join(Path(problem.where).parts[-2:])): problem for problem in found}
    expected = {
        ("settings", "conf/base.yaml:4"): "sample_rows",
        ("unknown-key", "datasets/orders.yaml:5"): "'status'",
        ("path", "datasets/stock.yaml:7"): "folder",
        ("name", "datasets/stock.yaml:12"): "a-z",
        ("type", "datasets/stock.yaml:12"): "int",
        ("unknown-column", "datasets/stock.yaml:15"): "'day'",
        ("unknown-key", "datasets/stock.yaml:16"): "'evolution'",
        ("sql", "datasets/leads.yaml:15"): "expression",
        ("sql", "datasets/leads.yaml:17"): "WHERE",
        ("sql", "datasets/leads.yaml:18"): "WHERE",
        ("unknown-column", "datasets/leads.yaml:19"): "'id'",
        ("yaml-duplicate-key", "datasets/twice.yaml:16"): "one",
        ("gold-pair", "gold/lonely.sql"): "lonely.yaml",
        ("gold-cycle", "gold/a.sql"): "ring",
        ("sql", "gold/bad.sql:3"): "SELECT",
        ("sql", "gold/rnd.sql:1"): "SELECT",
    }
    missing = [place for place in expected if place not in shown and place != ("gold-cycle", "gold/a.sql")]
    assert not missing, "\n".join(map(str, found))
    assert any(problem.code == "gold-cycle" and "a" in problem.what and "b" in problem.what for problem in found)
    for place, fix in expected.items():
        assert place not in shown or fix in shown[place].fix
    spark = [problem.what for problem in found if problem.code == "spark-key"]
    assert len(spark) == 3 and all(
        any(key in what for what in spark) for key in ("extraJavaOptions", "jars", "redaction")
    )
    assert len(str(ConfError(*found)).splitlines()) == 2 * len(found), "each has a line, and a line of advice"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfError) as error:
        reader.load(tmp_path / "gone", "local", environ={})
    assert error.value.problems[0].code == "conf-missing"


def test_the_projects_own_conf() -> None:
    """Every dataset and gold table of ACME, in an order in which they can be built."""
    conf = reader.load(Path(__file__).resolve().parents[1] / "conf", "local", environ={})
    assert len(conf.datasets) == 8
    names = list(conf.gold)
    assert len(names) == 7 and names.index("daily_sales") < names.index("stock_cover")
    assert (
        conf.datasets["reviews"].options.multi_line and conf.datasets["procurement"].options.encoding == "windows-1252"
    )
