"""What the SQL text of contracts and gold tables says, read by sqlglot without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import sqlglot
from sqlglot import exp
from sqlglot.errors import OptimizeError, ParseError, TokenError
from sqlglot.lineage import Node, lineage
from sqlglot.optimizer.qualify import qualify

from drivetrain.errors import DrivetrainError, Problem

DIALECT: Final = "spark"
# Results that change from call to call make a replay differ from the run; the last ones reach outside of SQL.
FORBIDDEN_FUNCTIONS: Final = frozenset(
    "rand randn random uniform randstr shuffle uuid now current_timestamp current_date localtimestamp curdate"  # noqa: SIM905
    " current_time current_user user session_user monotonically_increasing_id spark_partition_id input_file_name"
    " reflect java_method try_reflect read_files".split()
)


PLAIN: Final = ("kind", "expressions", "from_")  # what a Select holds where it has no clause but FROM
TABLE_CHANGES: Final = (exp.Pivot, exp.Lateral, exp.Join)


class SqlProblem(ValueError):
    """The text is not SQL that Drivetrain runs; the message says why."""


def expression(text: str) -> exp.Expression:
    """Parse one scalar expression.

    Raises:
        SqlProblem: it is no expression, holds a sub-query, or calls a forbidden function.
    """
    parsed = _parse(f"SELECT {text}")
    clauses = [key for key, value in parsed.args.items() if value and key != "expressions"]
    if clauses or not isinstance(parsed, exp.Select) or len(parsed.expressions) != 1:
        raise SqlProblem(f"{text!r} is not one expression")
    if isinstance(parsed.expressions[0], (exp.Alias, exp.Star)):
        raise SqlProblem(f"{text!r} is not one expression")
    if parsed.expressions[0].find(exp.Select):
        raise SqlProblem("a sub-query cannot stand here")
    if parsed.expressions[0].find(exp.AggFunc, exp.Window, exp.UDTF, exp.Explode, exp.Inline):
        raise SqlProblem("it sees one row, so an aggregate, a window or explode cannot stand here")
    return _allowed(parsed.expressions[0])


def columns(text: str) -> list[str]:
    """Names of the columns that an expression reads, in order of first use."""
    return list(dict.fromkeys(column.name for column in expression(text).find_all(exp.Column, bfs=False)))


def check_condition(text: str, known: Sequence[str], has: str, option: str, fix: str) -> None:
    """A condition that a person gave by an option; ``has`` is whose columns are known, as "quarantine has".

    Raises:
        DrivetrainError: it is none, or names a column that is not known.
    """
    try:
        if unknown := [name for name in columns(text) if name not in known]:
            raise SqlProblem(f"{has} no column {unknown[0]!r}; there are {', '.join(known)}")
    except SqlProblem as problem:
        raise DrivetrainError(Problem("sql", option, str(problem), fix)) from None


def statements(text: str) -> tuple[list[str], str]:
    """Statements that a semicolon ends, and what follows the last one; one within a string or a comment ends none."""
    try:
        ends = [
            token.end
            for token in sqlglot.tokenize(text, read=DIALECT)
            if token.token_type == sqlglot.TokenType.SEMICOLON
        ]
    except TokenError:  # a string or comment that is still open
        return [], text
    starts = [0, *[end + 1 for end in ends]]
    return [text[start:end].strip() for start, end in zip(starts, ends, strict=False)], text[starts[-1] :]


def is_blank(text: str) -> bool:
    """Whether there is nothing but blanks and comments."""
    try:
        return not sqlglot.tokenize(text, read=DIALECT)
    except TokenError:
        return False


def words(text: str) -> list[str]:
    """The statement in capitals, without comments and semicolons; nothing where it cannot be told apart."""
    try:
        tokens = sqlglot.tokenize(text, read=DIALECT)
    except TokenError:
        return []
    kept = [token.text.upper() for token in tokens if token.token_type != sqlglot.TokenType.SEMICOLON]
    return " ".join(kept).split()  # of SHOW the tokenizer makes one token of all that follows


def select(text: str) -> exp.Query:
    """Parse one SELECT (or set operation of SELECTs).

    Raises:
        SqlProblem: it is not exactly one query, or calls a forbidden function.
    """
    parsed = _parse(text)
    if not isinstance(parsed, exp.Query):
        raise SqlProblem("it is not a SELECT")
    _allowed(parsed)
    return parsed


def tables(query: exp.Query) -> list[str]:
    """Names of the tables that a query reads (its own WITH names left out), in order of first use.

    Raises:
        SqlProblem: a table has a catalog or database before its name, or is a path or a function.
    """
    own = {cte.alias_or_name.lower() for cte in query.find_all(exp.CTE)}
    names = []
    for table in query.find_all(exp.Table):
        if table.args.get("db") or table.args.get("catalog") or not isinstance(table.this, exp.Identifier):
            raise SqlProblem(f"{table.sql(DIALECT)} is not a plain table name")
        if table.name.lower() not in own:
            names.append(table.name)
    return list(dict.fromkeys(names))


def reads_twice(query: exp.Query) -> bool:
    """Whether a query reads more than one table, or one of them twice: it may join them."""
    return len(list(query.find_all(exp.Table))) > 1


def violation(query: str) -> str | None:
    """The condition of ``SELECT COUNT(*) FROM {object} WHERE condition``; None where the query says more than that."""
    parsed = select(query)
    if not isinstance(parsed, exp.Select) or any(v for key, v in parsed.args.items() if key not in (*PLAIN, "where")):
        return None
    if parsed.find(*TABLE_CHANGES):
        return None
    where, counted = parsed.args.get("where"), parsed.expressions
    is_count = len(counted) == 1 and isinstance(counted[0].unalias(), exp.Count)
    if where is None or not is_count or where.find(exp.Select) or where.find(exp.AggFunc, exp.Window):
        return None
    if not isinstance(counted[0].unalias().this, exp.Star):
        return None
    condition = where.this.transform(_without_table)
    return str(condition.sql(DIALECT))


def group_columns(query: exp.Query) -> dict[str, str] | None:
    """Result name -> expression of each GROUP BY column, for a query that only filters and groups the rows of one
    table; None for any other."""
    plain = (*PLAIN, "where", "group", "having", "order")
    if not isinstance(query, exp.Select) or any(value for key, value in query.args.items() if key not in plain):
        return None
    if query.find(*TABLE_CHANGES):
        return None
    group, sub_queries = query.args.get("group"), [*query.find_all(exp.Select)][1:]
    if group is None or sub_queries or query.find(exp.Window) or len([*query.find_all(exp.Table)]) != 1:
        return None
    if not group.expressions or any(value for key, value in group.args.items() if key != "expressions"):
        return None
    results = {item.unalias().transform(_without_table).sql(DIALECT): item.alias_or_name for item in query.expressions}
    by_name = {name: text for text, name in results.items()}
    wanted = [part.transform(_without_table).sql(DIALECT) for part in group.expressions]
    texts = [text if text in results else by_name.get(text) for text in wanted]
    if any(text is None or text.isdigit() for text in texts):
        return None
    return {results[str(text)]: str(text) for text in texts}


def unknown_columns(query: exp.Query, schema: Mapping[str, Mapping[str, str]]) -> str | None:
    """What qualifying the query against ``schema`` (table -> column -> type) complains about; None when nothing."""
    try:
        qualify(query.copy(), schema=_schema(schema), dialect=DIALECT, quote_identifiers=False)
    except OptimizeError as error:
        return str(error)
    return None


def output_columns(query: exp.Query, schema: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Names of the columns that the query returns."""
    qualified = qualify(query.copy(), schema=_schema(schema), dialect=DIALECT, validate_qualify_columns=False)
    return [str(name) for name in qualified.named_selects]


def column_lineage(query: exp.Query, schema: Mapping[str, Mapping[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """For each column of the query, the (table, column) pairs that it is made from."""
    result = {}
    for name in output_columns(query, schema):
        root = lineage(name, query.copy(), schema=_schema(schema), dialect=DIALECT)
        result[name] = sorted({leaf for node in root.walk() for leaf in _leaf(node)})
    return result


def _leaf(node: Node) -> list[tuple[str, str]]:
    if node.downstream or not isinstance(node.expression, exp.Table):
        return []
    return [(node.expression.name, node.name.rsplit(".", 1)[-1].strip('`"'))]


def _schema(schema: Mapping[str, Mapping[str, str]]) -> dict[str, object]:
    return {table: dict(types) for table, types in schema.items()}


def _parse(text: str) -> exp.Expression:
    try:
        statements = [statement for statement in sqlglot.parse(text, read=DIALECT) if statement is not None]
    except ParseError as error:
        detail = error.errors[0] if error.errors else {}
        raise SqlProblem(f"{detail.get('description', error)} (line {detail.get('line', 1)} of it)") from None
    except sqlglot.errors.SqlglotError as error:
        raise SqlProblem(str(error)) from None
    if len(statements) != 1:
        raise SqlProblem(f"it holds {len(statements)} statements where one is wanted")
    return statements[0]  # type: ignore[return-value]


def _allowed(parsed: exp.Expression) -> exp.Expression:
    if parsed.find(exp.TableSample):
        raise SqlProblem("TABLESAMPLE is not allowed: its result changes from run to run")
    if parsed.find(exp.Version):
        raise SqlProblem("time travel is not allowed: which version is read is for the run to say")
    for function in parsed.find_all(exp.Func):
        name = (function.name if isinstance(function, exp.Anonymous) else function.sql_name()).lower()
        if name in FORBIDDEN_FUNCTIONS:
            raise SqlProblem(f"{name}() is not allowed: its result changes from run to run or reaches outside of SQL")
    return parsed


def _without_table(node: exp.Expression) -> exp.Expression:
    return exp.column(node.this) if isinstance(node, exp.Column) else node
