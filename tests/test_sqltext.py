"""What is read from SQL text without running it."""

from __future__ import annotations

import pytest

from drivetrain import sqltext
from drivetrain.sqltext import FORBIDDEN_FUNCTIONS, SqlProblem

SCHEMA = {"orders": {"id": "string", "qty": "bigint", "price": "double"}, "people": {"id": "string", "name": "string"}}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a + b * a", ["a", "b"]),
        ("to_date(substr(_file, 8, 8), 'yyyyMMdd')", ["_file"]),
        ("`Net Price` / 100", ["Net Price"]),
        ("CASE WHEN x > 1 THEN y ELSE 'x' END", ["x", "y"]),
        ("1 + 1", []),
    ],
)
def test_columns_of_an_expression(text: str, names: list[str]) -> None:
    assert sqltext.columns(text) == names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a, b",
        "a FROM t",
        "(SELECT 1)",
        "a; DROP TABLE t",
        "a +",
        "rand()",
        "a WHERE",
        "(SELECT max(x) FROM t) + 1",
        "a UNION SELECT 1",
        "a LIMIT 1",
        "DISTINCT a",
        "a WHERE b",
        "a AS b",
        "*",
        "max(a)",
        "count_if(a > 1)",
        "collect_list(a)",
        "row_number() OVER (ORDER BY a)",
        "explode(a)",
        "inline(a)",
    ],
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(SqlProblem):
        sqltext.expression(text)


@pytest.mark.parametrize(
    "text", ["SELECT 1", "SELECT a FROM t UNION ALL SELECT b FROM u", "WITH x AS (SELECT 1) SELECT * FROM x"]
)
def test_queries_pass(text: str) -> None:
    assert sqltext.select(text)


@pytest.mark.parametrize(
    "text",
    [
        "DROP TABLE t",
        "INSERT INTO t SELECT 1",
        "SELECT 1; SELECT 2",
        "DELETE FROM t",
        "CREATE TABLE t AS SELECT 1",
        "",
        "SELEC 1",
        "UPDATE t SET a = 1",
        "SELECT FROM WHERE",
        "SELECT * FROM t TABLESAMPLE (5 ROWS)",
        "SELECT * FROM t VERSION AS OF 3",
        "SELECT * FROM t TIMESTAMP AS OF '2026-01-01'",
        "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE",
    ],
)
def test_what_is_no_query(text: str) -> None:
    with pytest.raises(SqlProblem):
        sqltext.select(text)


def test_a_mistake_names_its_line() -> None:
    with pytest.raises(SqlProblem, match="line 3"):
        sqltext.select("SELECT a\nFROM t\nWHERE (a > 1")


ARGUMENTS = {
    "randn": "1",
    "random": "1",
    "uniform": "1, 2",
    "randstr": "3",
    "shuffle": "array(1)",
    "reflect": "'a', 'b'",
    "java_method": "'a', 'b'",
    "try_reflect": "'a', 'b'",
    "read_files": "'/x'",
}


FORBIDDEN = """curdate current_date current_time current_timestamp current_user input_file_name java_method
    localtimestamp monotonically_increasing_id now rand randn random randstr read_files reflect session_user shuffle
    spark_partition_id try_reflect uniform user uuid"""


def test_the_list_is_whole() -> None:
    assert set(FORBIDDEN.split()) == FORBIDDEN_FUNCTIONS


@pytest.mark.parametrize("name", FORBIDDEN.split())
def test_forbidden_functions(name: str) -> None:
    """However it is written and wherever it stands."""
    call = f"{name}({ARGUMENTS.get(name, '')})"
    for text in (
        f"SELECT {call} FROM t",
        f"SELECT a FROM t WHERE length({call.upper()}) > 0",
        f"WITH x AS (SELECT {call} AS y) SELECT y FROM x",
    ):
        with pytest.raises(SqlProblem, match="not allowed"):
            sqltext.select(text)
    with pytest.raises(SqlProblem, match="not allowed"):
        sqltext.expression(f"concat(a, {call})")


@pytest.mark.parametrize("text", ["SELECT CURRENT_DATE", "SELECT current_timestamp", "SELECT CURRENT_USER FROM t"])
def test_forbidden_functions_without_brackets(text: str) -> None:
    with pytest.raises(SqlProblem, match="not allowed"):
        sqltext.select(text)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("SELECT * FROM a JOIN b ON a.x = b.x", ["a", "b"]),
        ("WITH a AS (SELECT * FROM b) SELECT * FROM a JOIN c", ["c", "b"]),
        ("SELECT (SELECT MAX(x) FROM b) FROM a", ["a", "b"]),
        ("SELECT * FROM a WHERE x IN (SELECT x FROM b)", ["a", "b"]),
        ("SELECT 1", []),
        ("SELECT * FROM VALUES (1, 2) AS v(a, b)", []),
    ],
)
def test_tables(text: str, names: list[str]) -> None:
    assert sorted(sqltext.tables(sqltext.select(text))) == sorted(names)


@pytest.mark.parametrize(
    "text",
    ["SELECT * FROM silver.a", "SELECT * FROM c.d.a", "SELECT * FROM parquet.`/etc/passwd`", "SELECT * FROM range(5)"],
)
def test_tables_that_are_not_plain(text: str) -> None:
    with pytest.raises(SqlProblem, match="not a plain table name"):
        sqltext.tables(sqltext.select(text))


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("SELECT COUNT(*) FROM t WHERE a < 0", "a < 0"),
        ("select count(*) as n from t where t.a < 0 or b is null", "a < 0 OR b IS NULL"),
        ("SELECT COUNT(*) FROM t", None),
        ("SELECT COUNT(a) FROM t WHERE a < 0", None),
        ("SELECT SUM(a) FROM t WHERE a < 0", None),
        ("SELECT COUNT(*) FROM t WHERE a < 0 GROUP BY b", None),
        ("SELECT COUNT(*) FROM t WHERE a > (SELECT AVG(a) FROM t)", None),
        ("SELECT COUNT(*) FROM t JOIN u WHERE a < 0", None),
        ("SELECT COUNT(*), 1 FROM t WHERE a < 0", None),
        ("SELECT COUNT(*) FROM t WHERE a < 0 LIMIT 1", None),
        ("SELECT COUNT(*) FROM t WHERE ROW_NUMBER() OVER (ORDER BY a) > 1", None),
        ("SELECT COUNT(*) FROM t WHERE a < 0 HAVING COUNT(*) > 3", None),
        ("SELECT DISTINCT COUNT(*) FROM t WHERE a < 0", None),
        ("SELECT COUNT(*) FROM t WHERE a < 0 UNION SELECT 1", None),
        ("SELECT COUNT(DISTINCT a) FROM t WHERE a < 0", None),
        ("SELECT COUNT(*) FROM t PIVOT (SUM(a) FOR b IN (1)) WHERE a < 0", None),
        ("SELECT COUNT(*) FROM t LATERAL VIEW explode(a) x AS y WHERE y < 0", None),
    ],
)
def test_conditions_of_rules(text: str, condition: str | None) -> None:
    assert sqltext.violation(text) == condition


def test_unknown_columns_are_named() -> None:
    assert sqltext.unknown_columns(sqltext.select("SELECT id, qty * price FROM orders"), SCHEMA) is None
    for text in ("SELECT colour FROM orders", "SELECT orders.colour FROM orders JOIN people ON orders.id = people.id"):
        assert "colour" in str(sqltext.unknown_columns(sqltext.select(text), SCHEMA))


def test_output_and_lineage() -> None:
    query = sqltext.select(
        "WITH s AS (SELECT id, SUM(qty * price) AS worth FROM orders GROUP BY id) "
        "SELECT p.name, s.worth AS total, 1 AS one FROM s JOIN people p ON p.id = s.id"
    )
    assert sqltext.output_columns(query, SCHEMA) == ["name", "total", "one"]
    assert sqltext.column_lineage(query, SCHEMA) == {
        "name": [("people", "name")],
        "total": [("orders", "price"), ("orders", "qty")],
        "one": [],
    }
    assert sqltext.output_columns(sqltext.select("SELECT * FROM people"), SCHEMA) == ["id", "name"]


@pytest.mark.parametrize(
    ("text", "whole", "rest"),
    [
        ("select 1; select 2", ["select 1"], " select 2"),
        ("select 'a;b' as x;", ["select 'a;b' as x"], ""),
        ("select 1 -- one; two\n;", ["select 1 -- one; two"], ""),
        ("select /* ; */ 1;\n", ["select /* ; */ 1"], "\n"),
        ("select `a;b` from t;;", ["select `a;b` from t", ""], ""),
        ("select 'open;", [], "select 'open;"),
        ("", [], ""),
    ],
)
def test_statements(text: str, whole: list[str], rest: str) -> None:
    assert sqltext.statements(text) == (whole, rest)


def test_words() -> None:
    assert sqltext.words("show  tables ; -- all") == ["SHOW", "TABLES"]
    assert sqltext.words("select 'a") == sqltext.words(";") == sqltext.words("") == []


def test_blanks() -> None:
    assert all(map(sqltext.is_blank, ("", " \n", "-- c; d", "/* a */ -- b")))
    assert not any(map(sqltext.is_blank, ("a", "-- c\nb", "'open", ";")))


@pytest.mark.parametrize(
    ("query", "twice"),
    [("SELECT a FROM t GROUP BY a", False), ("SELECT a FROM t JOIN u USING (a)", True),
     ("SELECT a FROM t WHERE a IN (SELECT a FROM t)", True), ("SELECT a FROM t UNION ALL SELECT a FROM t", True),
     ("SELECT x FROM (SELECT a AS x FROM t)", False)],
)  # fmt: skip
def test_whether_a_query_may_join(query: str, twice: bool) -> None:
    assert sqltext.reads_twice(sqltext.select(query)) == twice
