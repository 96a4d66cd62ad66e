"""The report: what it asks, what it says, and that nothing in a feed can act in it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date, datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from drivetrain import conf as reader
from drivetrain import report
from drivetrain.anomaly.shown import Example, Judged, Shown
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.ops import CheckRow, LedgerRow, ProfileRow, Step
from drivetrain.report import GoldInfo, KeptBack, Report, RunTotals, Series, StepSeconds

AT = datetime(2026, 3, 1, 12, 0, tzinfo=timezone.utc)
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>$x_{1}$&amp;"
EMPTY = Report("ACME", "local", "/w", "UTC", "20260301T120000000", AT)


def ledger(dataset: str = "orders", **changes: Any) -> LedgerRow:
    row = LedgerRow(EMPTY.run, dataset, 1, 2, 3, 100, 90, 6, 4, 0, 80, 5, 5, 0, 1, -1, 0, AT)
    return replace(row, **changes)


def step(name: str, dataset: str, **changes: Any) -> Step:
    return replace(Step(EMPTY.run, "batch", name, dataset, AT, seconds=2.5, rows=100), **changes)


def check(action: str = "stop", dataset: str = "sales", **changes: Any) -> CheckRow:
    return replace(CheckRow(EMPTY.run, "gold", dataset, "no_loss", action, 3.0, "mustBe 0", False, AT), **changes)


def model(text: str = "plain", **changes: Any) -> Shown:
    loads = (Judged(AT, 1000, 2, 2), Judged(AT + timedelta(days=1), 1000, 90, 0, text))
    made = Shown(
        text, 3, "enforce", 0.62, 0.001, loads, (0.3, 0.4, 0.6), (0, 1000, 900, 100), ((text, 80),),
        ((text, 500, 60),), (Example(0.71, True, text, text),), 0.25, (text,),
    )  # fmt: skip
    return replace(made, **changes)


def full(text: str = "plain") -> Report:
    """A report with something in every part, and ``text`` wherever a feed or a person could have put it."""
    days = tuple(date(2026, 1, 1) + timedelta(days=n) for n in range(30))
    gold = GoldInfo(
        "sales", text, text, f"/w/{text}", "published", text, 12, ((text, "string"), ("units", "bigint")), 26.0,
        "2026-01-30", text, 700.0, ((text, None), ("•••", "1")),
        Series(days, ((text, tuple(float(n) for n in range(30))), ("odd", (math.nan,) * 30))),
    )  # fmt: skip
    return replace(
        EMPTY, company=text, notes=(text,), problems=(Problem(text, text, text, text),),
        ledger=(ledger(text), ledger("stock")), steps=(step("bronze", text), step("gold", "sales")),
        checks=(check("flag", text, rule=text, expected=text),),
        profiles=(ProfileRow(EMPTY.run, text, text, 10, 1, text, text, text, AT, text, AT),),
        history=tuple(RunTotals(run, 10, 8, 1, 1, 0) for run in (text, EMPTY.run)),
        step_history=tuple(StepSeconds(run, text, 1.0) for run in (text, EMPTY.run)),
        quarantine=(KeptBack("orders", text, 6, 2, text, text),), quarantine_rows=6, gold=(gold,),
        models=(model(text),),
    )  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_feeds_hold_is_inert() -> None:
    harmless, page = Page(report.render(full())), Page(report.render(full(EVIL)))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in harmless.tags}, "a text became an element"
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(EVIL) > 15, "and yet it is there to be read"


def test_characters_that_turn_a_line_or_end_a_text_are_shown_as_such() -> None:
    page = report.render(full("a\u202eb\x00c\udcff: #0000af"))
    assert "\u202e" not in page and "\x00" not in page
    assert "a�b�c�: #0000af" in page
    page.encode("utf-8")


def test_the_page_fetches_nothing() -> None:
    html = report.render(full())
    assert not re.search(r"https?://|@import|url\((?!#)", html)
    fetching = ("src", "href", "xlink:href", "srcset", "data", "poster", "action")
    links = [value for _, given in Page(html).tags for name, value in given.items() if name in fetching]
    assert links and all(value and value.startswith("#") for value in links)
    assert "default-src 'none'" in html


def test_plots_take_their_colours_from_the_page() -> None:
    html = report.render(full())
    assert html.count("<svg ") == 6
    assert "var(--quarantined)" in html and "#0000a" not in html
    assert all(f"--{name}:" in html for name in report.PALETTE)


def test_models_are_shown_with_what_they_did() -> None:
    page = Page(report.render(replace(EMPTY, models=(model("orders"),)))).text
    assert "Anomalies" in page and "0.6200, for 0.1 %" in page and "92 (4.6 %)" in page and "0.25 (orders)" in page
    assert "1 held" in page and "nothing was removed: orders" in page and "stale" in page


def test_a_model_that_has_judged_nothing_has_a_place_and_without_models_there_is_none() -> None:
    html = report.render(replace(EMPTY, models=(Shown("orders", 1, "shadow", 0.6, 0.001),)))
    assert "It has judged no rows yet" in html and "<svg" not in html
    assert "Anomalies" not in report.render(EMPTY)


def test_the_same_report_makes_the_same_page() -> None:
    assert report.render(full()) == report.render(full())


def test_a_run_that_found_nothing_has_a_page() -> None:
    html = report.render(EMPTY)
    assert "found nothing new" in html and "<svg" not in html
    assert "Nothing is in quarantine" in html


def test_gold_tables_that_are_missing_or_empty_have_a_place() -> None:
    missing = GoldInfo("a", "me", "", "/w/gold/a", "missing")
    empty = GoldInfo("b", "me", "", "/w/gold/b", "published", columns=(("x", "int"),), series=Series((), ()))
    html = report.render(replace(EMPTY, gold=(missing, empty), steps=(step("gold", "b"),)))
    assert "The table is not there yet" in html and "The table has no rows" in html


def test_big_numbers_stay_exact_in_tables_and_short_in_plots() -> None:
    row = ledger(rows_in=10**15 + 1, good=10**15 + 1, quarantined=0, duplicate=0, inserted=10**15 - 9)
    big = step("silver", "orders", seconds=400_000.0, peak_memory_bytes=3 << 40, rows=10**15)
    html = report.render(replace(EMPTY, ledger=(row,), steps=(big,)))
    assert "1,000,000,000,000,001" in html and "3.0 TiB" in html and "111 h 06 min" in html
    assert "orders  1 P" in html


def test_the_ledger_says_whether_it_adds_up() -> None:
    wrong = replace(EMPTY, ledger=(ledger(), ledger("stock", good=91)))
    html, (mood, sentences) = report.render(wrong), report.verdict(wrong)
    assert html.count("✓ yes") == 1 and html.count("✗ no") == 1
    assert mood == "bad" and "The ledger does not add up for stock" in " ".join(sentences)


def test_the_verdict_tells_what_is_published_and_what_was_kept_back_and_why() -> None:
    gold = tuple(GoldInfo(name, "", "", "", state) for name, state in (("sales", "kept back"), ("cover", "published")))
    kept = (KeptBack("orders", "type", 9, 4, "", ""), KeptBack("orders", "enum", 2, 2, "", ""))
    mood, sentences = report.verdict(replace(EMPTY, ledger=(ledger(),), gold=gold, checks=(check(),), quarantine=kept))
    assert mood == "bad"
    assert sentences == [
        "1 of 2 gold tables published.",
        "Gold table sales stays as it was: no_loss was 3, it must be 0.",
        "100 records came in and 90 are good; 6 were kept back in quarantine (orders type 4, orders enum 2);"
        " 4 were there already.",
    ]


@pytest.mark.parametrize(
    ("changes", "mood"),
    [
        ({"ledger": (ledger(good=96, quarantined=0, inserted=86),)}, "good"),
        ({"ledger": (ledger(),)}, "watch"),
        ({"checks": (check("flag"),)}, "watch"),
        ({"steps": (step("silver", "orders", failed=True),)}, "bad"),
        ({"problems": (Problem("spark", "orders", "gone", "run again"),)}, "bad"),
    ],
)
def test_the_mood(changes: dict[str, Any], mood: str) -> None:
    assert report.verdict(replace(EMPTY, **changes))[0] == mood


# --- from a warehouse ---

CONTRACT = """
apiVersion: v3.1.0
kind: DataContract
id: visits
name: Visits
version: 1.0.0
status: active
servers: [{server: local, type: local, path: "${landing}/visits", format: csv}]
schema:
  - name: visits
    logicalType: object
    properties:
      - {name: id, logicalType: integer, required: true, primaryKey: true, primaryKeyPosition: 1}
      - {name: day, logicalType: date, required: true}
      - {name: email, logicalType: string, classification: personal}
      - {name: spent, logicalType: number, logicalTypeOptions: {minimum: 0}}
"""
SALES = "SELECT day, MAX(email) AS contact, COUNT(*) AS visits, SUM(spent) AS spent FROM visits GROUP BY day"
BEST = "SELECT day, MAX(UPPER(contact)) AS shouted, MAX(visits) AS visits FROM sales GROUP BY day"


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A conf folder with one feed and two gold tables, the second made from the first."""
    conf = tmp_path / "conf"
    for name in ("conf/datasets", "conf/gold", "landing/visits"):
        (tmp_path / name).mkdir(parents=True)
    (conf / "base.yaml").write_text("company: Tiny & Co\nlanding: landing\nwarehouse: warehouse\n")
    (conf / "local.yaml").write_text("timezone: UTC\n")
    (conf / "datasets/visits.yaml").write_text(CONTRACT)
    for name, sql in (("sales", SALES), ("best", BEST)):
        (conf / f"gold/{name}.sql").write_text(sql + "\n")
        (conf / f"gold/{name}.yaml").write_text("owner: me\nkey: [day]\nsla: {freshness: 26h}\n")
    rows = ["id,day,email,spent", "1,2026-01-05,ann@x.example,2.5", "2,2026-01-06,bob@x.example,4", "3,2026-01-06,,-1"]
    (tmp_path / "landing/visits/a.csv").write_text("\n".join(rows) + "\n")
    return conf


@pytest.mark.spark
def test_no_run_no_report(spark: Any, pipeline: Path) -> None:
    with pytest.raises(DrivetrainError) as raised:
        report.collect(spark, reader.load(pipeline, "local", environ={}), "20260101T000000000")
    assert raised.value.problems[0].code == "no-runs" and "etl" in raised.value.problems[0].fix


@pytest.mark.spark
def test_a_run_is_collected_and_written(spark: Any, pipeline: Path, run_pipeline: Callable[..., Any]) -> None:
    outcome = run_pipeline(pipeline)
    assert not outcome.problems
    conf, partitions = reader.load(pipeline, "local", environ={}), spark.conf.get("spark.sql.shuffle.partitions")
    found = report.collect(spark, conf, outcome.run)
    assert spark.conf.get("spark.sql.shuffle.partitions") == partitions
    assert (found.total("rows_in"), found.total("good"), found.total("quarantined")) == (3, 2, 1)
    assert (found.quarantine_rows, [(k.dataset, k.rows, k.new) for k in found.quarantine]) == (1, [("visits", 1, 1)])
    assert found.quarantine[0].position == "a.csv line 4"
    assert abs(found.at - datetime.now(timezone.utc)) < timedelta(minutes=10)
    assert {step.step for step in found.steps} >= {"bronze", "silver", "gold"} and found.seconds > 0
    assert [(total.run, total.rows_in) for total in found.history] == [(outcome.run, 3)]
    _check_gold(found)
    page = Path(report.write(found, conf))
    assert page == pipeline.parent / "warehouse/reports" / f"{outcome.run}.html"
    assert page.read_text("utf-8") == page.with_name("latest.html").read_text("utf-8")
    assert sorted(path.name for path in page.parent.iterdir()) == [page.name, "latest.html"]
    assert not re.search("@x.example", page.read_text("utf-8"), re.IGNORECASE)


def _check_gold(found: Report) -> None:
    sales, best = sorted(found.gold, key=lambda table: table.name, reverse=True)
    assert (sales.state, sales.rows, sales.built_by) == ("published", 2, found.run)
    assert (sales.newest, sales.newest_column, sales.late) == ("2026-01-06", "day", True)
    assert sales.sample == (("2026-01-06", "•••", "1", "4.0"), ("2026-01-05", "•••", "1", "2.5"))
    assert best.sample[0] == ("2026-01-06", "•••", "1"), "personal by way of another gold table"
    assert sales.series == Series((date(2026, 1, 5), date(2026, 1, 6)), (("visits", (1.0, 1.0)), ("spent", (2.5, 4.0))))


@pytest.mark.spark
def test_a_run_that_wrote_nothing_and_an_old_one_leave_the_latest_page(
    spark: Any, pipeline: Path, run_pipeline: Callable[..., Any]
) -> None:
    outcome, conf = run_pipeline(pipeline), reader.load(pipeline, "local", environ={})
    idle = report.collect(spark, conf, "20200101T000000000")
    assert idle.did_nothing and idle.at == datetime(2020, 1, 1, tzinfo=timezone.utc)
    assert [table.state for table in idle.gold] == ["unchanged", "unchanged"]
    newest = Path(report.write(report.collect(spark, conf, outcome.run), conf)).read_text("utf-8")
    assert Path(report.write(idle, conf)).name == "20200101T000000000.html"
    assert (pipeline.parent / "warehouse/reports/latest.html").read_text("utf-8") == newest
