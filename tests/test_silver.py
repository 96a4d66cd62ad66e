"""Records to typed rows, and which of them are new: against tables written by hand and models in plain Python."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from test_contracts import make_column, make_dataset

from drivetrain import silver
from drivetrain.contracts import Dataset, Options, Rule

pytestmark = pytest.mark.spark

LOG = (
    "raw string, raw_bytes binary, _file string, _block bigint, _line bigint, _layout string, _load bigint,"
    " _released boolean"
)
LIMIT = 1000


def parse(
    spark: Any,
    dataset: Dataset,
    raws: list[Any],
    header: tuple[str, ...] | None = None,
    new: dict[str, str] | None = None,
) -> list[Any]:
    """The parsed rows of these records, in their order; a record is its text, or (text, bytes, released)."""
    whole = [raw if isinstance(raw, tuple) else (raw, None, None) for raw in raws]
    rows = [(raw, raw_bytes, "f", 0, i, "L", 1, released) for i, (raw, raw_bytes, released) in enumerate(whole)]
    layouts = {"L": header if header is not None else dataset.feed_columns}
    parsed = silver.parse(spark.createDataFrame(rows, LOG), dataset, layouts, LIMIT, new or {})
    return parsed.orderBy("_line").collect()


UTC = timezone.utc
TYPED: dict[str, tuple[Any, dict[str, Any]]] = {  # column: what makes it, and text -> value (None: not of the type)
    "i": (
        make_column("i", "bigint"),
        {
            "1": 1,
            "+3": 3,
            "-0": 0,
            "007": 7,
            "9223372036854775807": 2**63 - 1,
            "9223372036854775808": None,
            "1.5": None,
            "1e3": None,
            "two": None,
            "0x10": None,
            "1_000": None,
            "1 000": None,
            "--1": None,
        },
    ),
    "s": (make_column("s", "smallint"), {"32767": 32767, "32768": None, "-32768": -32768}),
    "n": (
        make_column("n", "double"),
        {
            "1.5": 1.5,
            "1e3": 1000.0,
            "-.5": -0.5,
            "1": 1.0,
            "NaN": None,
            "Infinity": None,
            "-inf": None,
            "1e999": None,
            "1,5": None,
            "1d": None,
            "2F": None,
            "abc": None,
        },
    ),
    "d": (
        make_column("d", "decimal(6,2)"),
        {
            "1.50": Decimal("1.50"),
            "1": Decimal("1.00"),
            "-9999.99": Decimal("-9999.99"),
            "10000": None,
            "1.005": None,
            "1.5.0": None,
            "x": None,
            "1,50": None,
        },
    ),
    "b": (make_column("b", "boolean"), {"true": True, "FALSE": False, "maybe": None, "2": None}),
    "t": (
        make_column("t", "date"),
        {
            "2026-01-05": date(2026, 1, 5),
            "2024-02-29": date(2024, 2, 29),
            "2026-02-29": None,
            "2026-02-30": None,
            "2026": None,
            "05.01.2026": None,
            "2026-13-01": None,
            "tomorrow": None,
        },
    ),
    "u": (
        make_column("u", "date", format="dd.MM.yyyy"),
        {"05.01.2026": date(2026, 1, 5), "30.02.2026": None, "2026-01-05": None, "5.1.2026": None},
    ),
    "v": (
        make_column("v", "timestamp"),
        {
            "2026-01-05T10:00:00Z": datetime(2026, 1, 5, 10, tzinfo=UTC),
            "2026-01-05 10:00:00.25": datetime(2026, 1, 5, 10, 0, 0, 250000, UTC),
            "2026-01-05T10:00:00+02:00": datetime(2026, 1, 5, 8, tzinfo=UTC),
            "2026-02-30T10:00:00Z": None,
            "2026": None,
            "25:00": None,
            "now": None,
        },
    ),
    "w": (
        make_column("w", "timestamp", format="yyyyMMdd HHmmss"),
        {"20260105 101112": datetime(2026, 1, 5, 10, 11, 12, tzinfo=UTC), "20260105": None, "20260230 000000": None},
    ),
    "x": (make_column("x", "string"), {"anything": "anything", "NULL": "NULL", "ä€🚗": "ä€🚗", "'": "'"}),
}


def test_every_type(spark: Any) -> None:
    dataset = make_dataset(
        *[column for column, _ in TYPED.values()],
        key=(),
        identity=(),
        sequence=None,
        history="append",
        options=Options(delimiter="|"),
    )
    names = list(TYPED)
    cases = [(name, text, value) for name, (_, texts) in TYPED.items() for text, value in texts.items()]
    rows = parse(
        spark, dataset, ["|".join(text if other == name else "" for other in names) for name, text, _ in cases]
    )
    for (name, text, value), row in zip(cases, rows, strict=True):
        got = row[name]
        if isinstance(got, datetime):  # PySpark gives it in this machine's own zone
            got = got.astimezone(UTC)
        assert (got, row["_rule"]) == (value, None if value is not None else "type"), (name, text)
        if value is None:
            assert row["_reason"].startswith(f"{name}: '{text}' is not a ") and row["raw"].strip("|") == text
        assert all(row[other] is None for other in names if other != name)


def test_what_a_text_is_before_its_type(spark: Any) -> None:
    """Blanks, NULLs of the feed and of the column, quotes, and columns that stand elsewhere."""
    columns = (
        make_column("id"),
        make_column("kept", trim=False),
        make_column("gone", null_values=("-", "n/a")),
        make_column("old", aliases=("former",)),
        make_column("day", transform="_file || id", sources=("_file", "id")),
        make_column("may_lack", optional=True),
    )
    dataset = make_dataset(
        *columns, key=(), identity=(), sequence=None, history="append", options=Options(null_values=("unknown",))
    )
    header = ("FORMER", "strange", "kept", "ID", "gone")
    rows = parse(
        spark,
        dataset,
        [
            "o,?, k ,\t7 ,-",
            "unknown,?,unknown,8,n/a",
            '" a,""b"" ",?,"","9",x\r',
            "1,2,3,4",
            "1,2,3,4,5,6",
            '1,2,3,4,"5',
            '1,2,3,4,"a"b',
        ],
        header,
    )
    found = [tuple(row[name] for name in ("id", "kept", "gone", "old", "day", "may_lack")) for row in rows]
    assert found[:3] == [
        ("7", " k ", None, "o", "f7", None),
        ("8", None, None, None, "f8", None),
        ("9", None, "x", 'a,"b"', "f9", None),
    ]
    assert [row["_rule"] for row in rows[:6]] == [None, None, None, "shape", "shape", "shape"]
    assert [row["_reason"] for row in rows[3:5]] == [
        f"5 fields expected, {n} found (or quotes that do not close)" for n in (4, 6)
    ]
    assert {row["_unknown"] for row in rows} == {"strange"}


def test_unreadable_records(spark: Any) -> None:
    """Each under its own rule; what cannot be read is not judged by its values too."""
    dataset = make_dataset(rules=(Rule("never", "quarantine", "mustBe", 0, predicate="TRUE"),))
    raws = [
        "a,1," + "x" * LIMIT,
        ("a,1,\ufffd", b"a,1,\xff", None),
        "a,1,\0",
        "id,AT,value",
        " id ,at,value",
        "a,b,c",
        ",1,v",
        "a,,v",
        "a,1,v",
    ]
    rows = parse(spark, dataset, raws, ("id", "AT", "value"))
    assert [row["_rule"] for row in rows] == [
        "record_too_large",
        "encoding",
        "nul_byte",
        "shape",
        "type",
        "type",
        "required",
        "required",
        "never",
    ]
    assert rows[3]["_reason"] == "it repeats the header"
    assert rows[6]["_reason"] == "id is empty; breaks never: TRUE" and rows[7]["_reason"].startswith("at is empty")
    assert bytes(rows[1]["raw_bytes"]) == b"a,1,\xff" and rows[0]["raw"] == raws[0]
    assert rows[8]["raw"] == "a,1,v"


def test_good_rows_keep_no_raw(spark: Any) -> None:
    row = parse(spark, make_dataset(), ["a,1,v"])[0]
    assert (row["raw"], row["raw_bytes"], row["_rule"], row["_reason"]) == (None, None, None, None)
    assert (row["_file"], row["_block"], row["_line"], row["_load"]) == ("f", 0, 0, 1)


def test_released_records_keep_only_what_must_be(spark: Any) -> None:
    dataset = make_dataset(
        make_column("id"),
        make_column("at", "bigint", bounds=(("maximum", 5),)),
        make_column("value", enum=("v",)),
        rules=(Rule("never", "quarantine", "mustBe", 0, predicate="at > 3"),),
    )
    rows = parse(
        spark,
        dataset,
        [("a,9,w", None, True), (",9,w", None, True), ("a,x,w", None, True), ("a,9,w", None, False), ("a", None, True)],
    )
    assert [row["_rule"] for row in rows] == [None, "required", "type", "bounds", "shape"]


def test_evolution(spark: Any) -> None:
    header, raws = ("id", "at", "value", "New Col"), ["a,1,v,n"]
    for evolution, rule in (("keep", None), ("add", None), ("quarantine", "drift"), ("refuse", "drift")):
        row = parse(
            spark, make_dataset(evolution=evolution), raws, header, {"new_col": "New Col"} if evolution == "add" else {}
        )[0]
        assert row["_rule"] == rule, evolution
        assert ("new_col" in row.__fields__) == (evolution == "add") and (evolution != "add" or row["new_col"] == "n")


def test_a_missing_column_quarantines_the_rows(spark: Any) -> None:
    row = parse(spark, make_dataset(), ["a,1"], ("id", "att"))[0]
    assert row["_rule"] == "shape"
    assert (
        row["_reason"] == "column at is missing from the header (renamed to att? then add it to the column's aliases);"
        " column value is missing from the header"
    )


def test_json(spark: Any) -> None:
    columns = (
        make_column("id"),
        make_column("at", "bigint"),
        make_column("value", "decimal(38,10)"),
        make_column("o", aliases=("old",), optional=True),
    )
    dataset = make_dataset(*columns, format="json")
    good = {
        '{"id":"a","at":1,"value":12345678901234567890.1234567891}': (
            "a",
            1,
            Decimal("12345678901234567890.1234567891"),
            None,
        ),
        ' {"value":null,"at":"2","id":3,"old":"x","extra":[1,{"y":2}]} ': ("3", 2, None, "x"),
        '{"id":"a\\"\\u00e4\\n","at":-1,"value":"0.5","o":{"k":[1]}}': ('a"ä', -1, Decimal("0.5"), '{"k":[1]}'),
        '{"id":true,"at":1,"value":1e2}': ("true", 1, Decimal(100), None),
    }
    bad = {
        "[1]": "shape",
        "{": "shape",
        '{"id":"a","at":1,"value":1}{}': "shape",
        '{"id":"a","at":1,"value":1},{}': "shape",
        "null": "shape",
        '{"id":"a","value":1}': "shape",
        '{"id":null,"at":1,"value":1}': "required",
        '{"id":"a","at":1.5,"value":1}': "type",
        "7": "shape",
    }
    rows = parse(spark, dataset, [*good, *bad], ())
    for (raw, value), row in zip(good.items(), rows, strict=False):
        assert (tuple(row[name] for name in ("id", "at", "value", "o")), row["_rule"]) == (value, None), raw
    assert [row["_rule"] for row in rows[len(good) :]] == list(bad.values())
    assert rows[len(good) + 5]["_reason"] == "at is missing from the record"
    assert [row["_unknown"] for row in rows[:2]] == [None, "extra"]


def test_unified(spark: Any) -> None:
    dataset = make_dataset(
        make_column("id", feed_name="ID"),
        make_column("qty", "bigint"),
        key=(),
        identity=(),
        sequence=None,
        history="append",
    )
    rows = spark.createDataFrame([("a,x", None, "f", 0, 2, "L", 1, None), ("a", None, "f", 0, 3, "L", 1, None)], LOG)
    found = silver.unified(rows, dataset, {"L": ("ID", "qty")}, LIMIT).collect()
    assert [row.asDict() for row in found] == [
        {
            "id": "a",
            "qty": "x",
            "_source": "feed",
            "_schema_version": "1.0.0",
            "_file": "f",
            "_block": 0,
            "_line": 2,
            "_load": 1,
        }
    ]


# --- Outcomes, against models -------------------------------------------------------------------------------------

EVENT = (
    "case int, id string, at bigint, event string, value string, _rule string, _load bigint,"
    " _file string, _block bigint, _line bigint, n int"
)
CASES = 250
COLUMNS = (
    make_column("case", "int"),
    make_column("id"),
    make_column("at", "bigint"),
    make_column("event"),
    make_column("value"),
)


def random_batches(seed: int, load: int, distinct_events: bool) -> dict[int, list[dict[str, Any]]]:
    """For each case some rows, in the order of arrival."""
    rng, cases = random.Random(seed), {}
    for case in range(CASES):
        rows, place = [], sorted(rng.sample(range(100), rng.randrange(9)))
        for spot in place:
            event = rng.choice(["e1", "e2", "e3", "e4", "e5", *([None] if not distinct_events else [])])
            # An event has one key and one time wherever it is repeated.
            key, at = (
                (f"k{hash_of(case, event) % 2}", hash_of(case, event) % 4)
                if distinct_events
                else (rng.choice("ab"), rng.randrange(4))
            )
            rows.append(
                {
                    "case": case,
                    "id": key,
                    "at": at,
                    "event": event,
                    "value": rng.choice("xy"),
                    "_rule": "enum" if rng.random() < 0.15 else None,
                    "_load": load,
                    "_file": f"f{spot // 40}",
                    "_block": spot // 20 * 100,
                    "_line": spot,
                    "n": load * 1000 + spot,
                }
            )
        cases[case] = rows
    return cases


def hash_of(case: int, event: str | None) -> int:
    return random.Random(f"{case}{event}").randrange(1000)


Row = dict[str, Any]


def model_latest(rows: list[Row], held: dict[Any, Row], dataset: Dataset) -> dict[int, str]:
    """One row a key, told from sets and not from windows."""
    ident = lambda row: tuple(row[name] for name in dataset.identity)  # noqa: E731
    outcome = {row["n"]: "quarantined" for row in rows if row["_rule"]}
    groups = defaultdict(list)
    for row in rows:
        if not row["_rule"]:
            groups[row["id"]].append(row)
    for key, group in groups.items():
        there = held.get(key)
        if dataset.sequence:
            seen: set[Any] = set()
            fresh = [row for row in group if ident(row) not in seen and not seen.add(ident(row))]  # type: ignore[func-returns-value]
            top = max(row["at"] for row in fresh)
            winner = next(row for row in fresh if row["at"] == top)
        else:  # what comes again at once is the repeat, of which the last stays
            fresh = [
                row
                for row, later in zip(group, [*group[1:], None], strict=True)
                if later is None or ident(row) != ident(later)
            ]
            winner = group[-1]
        for row in group:
            if row not in fresh or (there and ident(row) == ident(there)):
                outcome[row["n"]] = "duplicate"
            elif row is winner and not there:
                outcome[row["n"]] = "insert"
            elif row is winner and (not dataset.sequence or row["at"] > there["at"]):
                outcome[row["n"]] = "update"
            else:
                outcome[row["n"]] = "superseded"
    return outcome


def model_every(rows: list[Row], held: list[Row], dataset: Dataset) -> dict[int, str]:
    """Every event stays; one that is there is a duplicate."""
    seen = {tuple(row[name] for name in dataset.identity) for row in held}
    outcome = {}
    for row in rows:
        mark = tuple(row[name] for name in dataset.identity)
        outcome[row["n"]] = "quarantined" if row["_rule"] else "duplicate" if mark in seen else "insert"
        if not row["_rule"]:
            seen.add(mark)
    return outcome


SHAPES = {
    "latest": make_dataset(*COLUMNS, key=("case", "id"), identity=("case", "id", "at")),
    "latest without sequence": make_dataset(
        *COLUMNS, key=("case", "id"), identity=("case", "id", "at", "event", "value"), sequence=None
    ),
    "latest of named events": make_dataset(*COLUMNS, key=("case", "id"), identity=("case", "event")),
    "append": make_dataset(*COLUMNS, key=("case", "id"), identity=("case", "event"), sequence=None, history="append"),
    "scd2": make_dataset(*COLUMNS, key=("case", "id"), identity=("case", "id", "at"), history="scd2"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_outcomes_are_the_models(spark: Any, name: str) -> None:
    """Two batches of 250 random cases: the first into nothing, the second against what the first left."""
    dataset, named = SHAPES[name], name == "latest of named events"
    held: dict[int, Any] = {case: {} if dataset.history == "latest" else [] for case in range(CASES)}
    seen: set[str] = set()
    for load in (1, 2):
        batches = random_batches(load * 7 + 3, load, named)
        everything = [row for rows in batches.values() for row in rows]
        random.Random(1).shuffle(everything)
        staged = silver.classify(_frame(spark, everything), dataset)
        if load == 2:
            kept = [row for state in held.values() for row in (state.values() if isinstance(state, dict) else state)]
            staged = silver.against(staged, _frame(spark, kept).drop("_rule", "n"), dataset)
        found = {row["n"] + 10_000 * row["case"]: row["_outcome"] for row in staged.collect()}
        wanted = {}
        for case, rows in batches.items():
            mine = (
                model_latest(rows, held[case], dataset)
                if dataset.history == "latest"
                else model_every(rows, held[case], dataset)
            )
            wanted |= {n + 10_000 * case: outcome for n, outcome in mine.items()}
            for row in rows:
                if mine[row["n"]] in ("insert", "update"):
                    if dataset.history == "latest":
                        held[case][row["id"]] = row
                    else:
                        held[case].append(row)
        assert found == wanted
        seen |= set(wanted.values())
    assert seen == set(silver.OUTCOMES) - ({"update", "superseded"} if dataset.history != "latest" else set())


def _frame(spark: Any, rows: list[Row]) -> Any:
    names = [part.split()[0] for part in EVENT.split(", ")]
    return spark.createDataFrame([tuple(row[name] for name in names) for row in rows], EVENT).repartition(3)


def test_without_identity_every_good_row_is_new(spark: Any) -> None:
    dataset = make_dataset(*COLUMNS, key=(), identity=(), sequence=None, history="append")
    rows = [row for rows in random_batches(1, 1, False).values() for row in rows]
    classified = silver.classify(_frame(spark, rows), dataset, repeated_files=False)
    found = {(row["case"], row["n"]): row["_outcome"] for row in classified.collect()}
    assert found == {(row["case"], row["n"]): "quarantined" if row["_rule"] else "insert" for row in rows}


def test_a_position_is_taken_once_where_a_file_came_again(spark: Any) -> None:
    dataset = make_dataset(*COLUMNS, key=(), identity=(), sequence=None, history="append")
    rows = [row for batch in random_batches(1, 1, False).values() for row in batch]
    places: dict[tuple[Any, ...], int] = defaultdict(int)
    for row in silver.classify(_frame(spark, rows), dataset).where("_outcome = 'insert'").collect():
        places[row["_file"], row["_block"], row["_line"]] += 1
    good = {(row["_file"], row["_block"], row["_line"]) for row in rows if not row["_rule"]}
    assert dict(places) == dict.fromkeys(good, 1)


def test_versions_are_the_models(spark: Any) -> None:
    """Every version ends where the next one begins, in whatever order they came."""
    dataset, rng = make_dataset(history="scd2"), random.Random(9)
    held, new = [], []
    for case in range(200):
        moments = rng.sample(range(50), rng.randrange(1, 8))
        cut = rng.randrange(len(moments) + 1)
        held += [(f"k{case}", at, f"v{at}") for at in moments[:cut]]
        new += [(f"k{case}", at, f"v{at}") for at in moments[cut:]]
    schema = "id string, at bigint, value string"

    def model(rows: list[tuple[str, int, str]]) -> set[tuple[Any, ...]]:
        every = defaultdict(list)
        for row in rows:
            every[row[0]].append(row)
        ends = {
            (key, row[1]): min((other[1] for other in group if other[1] > row[1]), default=None)
            for key, group in every.items()
            for row in group
        }
        return {(*row, row[1], ends[row[0], row[1]], ends[row[0], row[1]] is None) for row in rows}

    first = silver.versions(spark.createDataFrame(held, schema), None, dataset)
    assert {tuple(row) for row in first.collect()} == model(held)
    touched = {row[0] for row in new}
    second = silver.versions(spark.createDataFrame(new, schema), first, dataset)
    rows = [tuple(row) for row in second.collect()]
    assert set(rows) == model([row for row in [*held, *new] if row[0] in touched]) and len(set(rows)) == len(rows)
    assert second.columns == ["id", "at", "value", "valid_from", "valid_to", "is_current"]
