"""One ODCS 3 file -> Dataset. What is wrong is added to a Findings, which knows the file's lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final, Literal

import jsonschema
from pydantic import ValidationError

from drivetrain import sqltext
from drivetrain.anomaly.contract import AnomalyExtras, read_anomaly
from drivetrain.contracts import (
    ANOMALY,
    META_COLUMNS,
    SCD2_COLUMNS,
    Column,
    Dataset,
    Rule,
    castable,
    fixed_places,
)
from drivetrain.findings import Findings, Model, Path_, as_text, check_name, extras, nearest, repeated
from drivetrain.servers import Feed, SourceExtras, choose, read_source

TYPES: Final = {
    "string": "string", "integer": "bigint", "number": "double", "boolean": "boolean", "date": "date",
    "timestamp": "timestamp",
}  # fmt: skip
PHYSICAL: Final = {
    "string": {"string"},
    "integer": {"tinyint", "smallint", "int", "bigint"},
    "number": {"float", "double", "decimal", "int", "bigint"},
    "boolean": {"boolean"},
    "date": {"date"},
    "timestamp": {"timestamp", "timestamp_ntz"},
}
OPERATORS: Final = (
    "mustBe", "mustNotBe", "mustBeGreaterThan", "mustBeGreaterOrEqualTo", "mustBeLessThan", "mustBeLessOrEqualTo",
    "mustBeBetween", "mustNotBeBetween",
)  # fmt: skip
DATASET_SPARK_KEYS: Final = re.compile(
    r"spark\.sql\.(shuffle\.partitions|autoBroadcastJoinThreshold|adaptive\.[A-Za-z.]+|files\.maxPartitionBytes)"
    r"|spark\.databricks\.delta\.(optimizeWrite\.enabled|autoCompact\.enabled|snapshotPartitions)"
)
CLASSIFICATIONS: Final = ("public", "internal", "confidential", "restricted", "personal")
OBJECT: Final = "__object__"
OWN_IN_FEED: Final = ("_file", "_row")  # what a transformLogic meets beside the feed's columns


class DatasetExtras(SourceExtras):
    """customProperties of a dataset."""

    identity: tuple[str, ...] | Literal["position"] | None = None
    history: Literal["latest", "scd2", "append"] | None = None
    evolution: Literal["keep", "add", "quarantine", "refuse"] = "keep"
    unify: bool = False
    spark: dict[str, str | int | float | bool] = {}
    anomaly: AnomalyExtras | None = None


class ColumnExtras(Model):
    """customProperties of a column."""

    aliases: tuple[str, ...] = ()
    optional: bool = False
    null_values: tuple[str, ...] = ()
    trim: bool = True


class RuleExtras(Model):
    """customProperties of a rule."""

    action: Literal["quarantine", "flag", "stop"] | None = None


class RuleArguments(Model):
    """arguments of a library metric."""

    valid_values: tuple[str | int | float | bool, ...] = ()
    missing_values: tuple[str | int | float | bool | None, ...] = ()
    pattern: str | None = None
    properties: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def _standard() -> tuple[jsonschema.protocols.Validator, frozenset[str]]:
    schema = json.loads(files("open_data_contract_standard").joinpath("schema.json").read_text("utf-8"))
    known = set(schema["properties"])
    for part in _walk(schema):
        known |= set(part.get("properties", {})) if isinstance(part.get("properties"), dict) else set()
    return jsonschema.validators.validator_for(schema)(schema), frozenset(known)


def _walk(node: Any) -> Iterable[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from _walk(child)


UNKNOWN: Final = ("additionalProperties", "unevaluatedProperties")


def _definitions(validator: jsonschema.protocols.Validator) -> Any:
    schema: Any = validator.schema
    return schema["$defs"]


def check_standard(document: Any, found: Findings, part: str | None = None, at: Path_ = ()) -> None:
    """Add what the standard's own JSON Schema rejects; of a ``part`` by its name there, which stands at ``at``."""
    validator, known = _standard()
    if part:
        validator = validator.evolve(schema={"$ref": f"#/$defs/{part}", "$defs": _definitions(validator)})
    errors = sorted(validator.iter_errors(document), key=lambda e: [str(p) for p in e.absolute_path])
    others = {tuple(error.absolute_path) for error in errors if error.validator not in UNKNOWN}
    told: set[tuple[str | int, ...]] = set()  # several parts of the standard may refuse the same key
    for error in errors:
        place = [*at, *error.absolute_path]
        if error.validator in UNKNOWN:
            for name in re.findall(r"'([^']+)'", error.message.split("(", 1)[-1]):
                # Where a part is refused for another reason, jsonschema counts all its keys as unknown.
                if (*place, name) not in told and not (name in known and tuple(error.absolute_path) in others):
                    found.add("unknown-key", [*place, name], f"ODCS knows no key {name!r} here", nearest(name, known))
                told.add((*place, name))
        else:
            fix = "see the standard, or docs/contracts.md"
            if error.validator == "enum":
                options: Any = error.validator_value
                fix = nearest(str(error.instance), map(str, options), f"{fix}; did you mean")
            found.add("odcs", place, f"ODCS: {error.message[:200]}", fix)


def read_dataset(document: Any, found: Findings, env: str, places: Mapping[str, str]) -> Dataset | None:
    """The contract as a Dataset, or None where it has errors (which are in ``found``)."""
    before = len(found.problems)
    check_standard(document, found)
    malformed = any(problem.code == "odcs" for problem in found.problems[before:])
    if malformed or not isinstance(document, dict):  # a key too many does not keep the rest from being checked
        return None
    schema = (document.get("schema") or [{}])[0]
    name = str(schema.get("name"))
    if len(document.get("schema") or []) != 1:
        found.add("one-schema", ("schema",), "a dataset file has exactly one schema object", "split it into files")
        return None
    check_name(name, ("schema", 0, "name"), "dataset", found)
    if name != found.path.stem:
        found.add("name", ("schema", 0, "name"), f"the schema object is {name!r}, the file {found.path.stem!r}",
                  f"name the file {name}.yaml, or the object {found.path.stem}")  # fmt: skip
    extra: DatasetExtras = extras(document.get("customProperties"), ("customProperties",), DatasetExtras, found)
    spots = {
        str(item.get("property")): ("customProperties", i, "value")
        for i, item in enumerate(document.get("customProperties") or [])
        if "vendor" not in item
    }
    server, server_at = choose(document, env, found)
    columns = [
        _column(item, ("schema", 0, "properties", i), found) for i, item in enumerate(schema.get("properties") or [])
    ]
    names = [column.name for column in columns]
    for name_ in repeated(names):
        second = [i for i, other in enumerate(names) if other == name_][1]
        found.add("twice", ("schema", 0, "properties", second, "name"), f"column {name_!r} stands twice", "rename one")
    columns = _one_case(columns, found)
    _check_extras(extra, names, spots, found)
    key = _key(schema, names)
    rules = _rules(schema, {column.name: column.type for column in columns}, found)
    history = extra.history or ("latest" if key else "append")
    if history != "append" and not key:
        found.add(
            "key", ("schema", 0), f"history {history} needs a primary key", "mark the key columns primaryKey: true"
        )
    if history == "latest" and extra.identity == "position":
        found.add("identity", spots["identity"], "history latest keeps one row a key, position tells all apart",
                  "leave identity out, or let history be append")  # fmt: skip
    if history == "scd2" and extra.identity is not None:
        found.add(
            "identity", spots["identity"], "history scd2 knows an event by key and sequence", "leave identity out"
        )
    if history == "scd2" and not extra.sequence:
        found.add(
            "sequence", spots["history"], "history scd2 needs a sequence column", "add {property: sequence, value: …}"
        )
    identity = _identity(extra, key, history, names)
    physical = str(schema.get("physicalName") or name)
    source = read_source(Feed(server, server_at, physical, extra, spots, columns, identity, found), places)
    anomaly = (
        read_anomaly(extra.anomaly, spots["anomaly"], columns, extra.event_time, found) if extra.anomaly else None
    )
    freshness, latency = _hours(document, "freshness", found), _hours(document, "latency", found)
    if len(found.problems) > before:
        return None
    return Dataset(
        name=name, version=str(document["version"]), owner=_owner(document),
        path=source.path, format=source.format, files=extra.files,
        options=source.options, columns=tuple(columns), key=key,
        identity=identity, sequence=extra.sequence, event_time=extra.event_time,
        history=history, evolution=extra.evolution, unify=extra.unify,
        spark=tuple((k, as_text(v)) for k, v in extra.spark.items()), rules=tuple(rules),
        freshness_hours=freshness, latency_hours=latency,
        where=found.where(()), jdbc=source.jdbc, kafka=source.kafka, stream=source.stream,
        anomaly=anomaly,
    )  # fmt: skip


def _one_case(columns: Sequence[Column], found: Findings) -> list[Column]:
    """Spark's names do not differ by case: what a transformLogic names is the feed's column, however it is written."""
    spelled: dict[str, str] = {}
    for i, column in enumerate(columns):
        other = column.transform is not None or spelled.setdefault(column.feed_name.lower(), column.feed_name)
        if other not in (True, column.feed_name):
            found.add("twice", ("schema", 0, "properties", i), f"{other!r} and {column.feed_name!r} differ by case",
                      "leave one out; of a header that has both, the second is NAME#2")  # fmt: skip
    return [replace(c, sources=tuple(spelled.setdefault(name.lower(), name) for name in c.sources)) for c in columns]


def _identity(extra: DatasetExtras, key: tuple[str, ...], history: str, names: Sequence[str]) -> tuple[str, ...]:
    if extra.identity == "position" or (extra.identity is None and not key):
        return ()
    if extra.identity is not None:
        return tuple(extra.identity)
    if history == "latest" and not extra.sequence:
        return tuple(names)  # with nothing to order versions by, a record that says the same again is the repeat
    return tuple(dict.fromkeys((*key, *((extra.sequence,) if extra.sequence and history != "append" else ()))))


def _key(schema: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...]:
    marked = [
        (p.get("primaryKeyPosition") or 0, i)
        for i, p in enumerate(schema.get("properties") or [])
        if p.get("primaryKey")
    ]
    return tuple(names[i] for _, i in sorted(marked))


def _owner(document: Mapping[str, Any]) -> str:
    team = document.get("team")
    return str(team.get("name") or "") if isinstance(team, dict) else ""


def _hours(document: Mapping[str, Any], name: str, found: Findings) -> float | None:
    scale = {
        "h": 1.0,
        "hour": 1.0,
        "hours": 1.0,
        "d": 24.0,
        "day": 24.0,
        "days": 24.0,
        "m": 1 / 60,
        "min": 1 / 60,
        "s": 1 / 3600,
    }
    for i, item in enumerate(document.get("slaProperties") or []):
        if item.get("property") == name:
            if isinstance(item.get("value"), (int, float)) and item.get("unit") in scale:
                return float(item["value"]) * scale[item["unit"]]
            found.add(
                "sla",
                ("slaProperties", i),
                f"{name} is not a number with a unit",
                f"write a value and one of {', '.join(scale)}",
            )
    return None


def _column(item: Mapping[str, Any], at: Path_, found: Findings) -> Column:
    name, logical = str(item.get("name")), str(item.get("logicalType", "string"))
    if name in (*META_COLUMNS, *SCD2_COLUMNS):
        found.add(
            "name",
            (*at, "name"),
            f"column {name!r} is one of Drivetrain's own",
            "rename it; physicalName keeps the feed's name",
        )
    else:
        check_name(name, (*at, "name"), "column", found)
    if (feed_name := str(item.get("physicalName") or name)) in OWN_IN_FEED:
        found.add("name", (*at, "physicalName"), f"feed column {feed_name!r} cannot be told from Drivetrain's own",
                  "rename it in the feed")  # fmt: skip
    extra: ColumnExtras = extras(item.get("customProperties"), (*at, "customProperties"), ColumnExtras, found)
    options = dict(item.get("logicalTypeOptions") or {})
    classification = item.get("classification")
    if classification is not None and classification not in CLASSIFICATIONS:
        found.add(
            "classification",
            (*at, "classification"),
            f"classification {classification!r}",
            nearest(classification, CLASSIFICATIONS),
        )
    form = options.pop("format", None) if logical in ("date", "timestamp") else None
    options.pop("format", None)  # of other types: it says more than is checked, and nothing false
    for unknown in [key for key in options if key not in BOUNDS]:
        found.add(
            "bad-value",
            (*at, "logicalTypeOptions", unknown),
            f"{unknown} is not checked here",
            nearest(unknown, BOUNDS),
        )
    _check_pattern(options.get("pattern"), (*at, "logicalTypeOptions"), found)
    transform, sources = item.get("transformLogic"), tuple[str, ...]()
    if transform is not None:
        try:
            sources = tuple(sqltext.columns(str(transform)))
        except sqltext.SqlProblem as problem:
            found.add(
                "sql", (*at, "transformLogic"), f"transformLogic of {name}: {problem}", "write one Spark SQL expression"
            )
    kind = _type(item, logical, at, found)
    if kind == "timestamp_ntz" and form and not fixed_places(form):
        found.add("format", (*at, "logicalTypeOptions", "format"), f"format {form!r} is not read as timestamp_ntz",
                  "use yyyy, MM, dd, HH, mm, ss, each once, or physicalType timestamp")  # fmt: skip
    enum = tuple(as_text(v.get("value") if isinstance(v, dict) else v) for v in item.get("enum") or [])
    for i, text in enumerate(enum):
        _check_value(text, kind, "enum", (*at, "enum", i), found)
    for key in [key for key in options if key.lower().endswith("imum")]:
        _check_value(as_text(options[key]), kind, key, (*at, "logicalTypeOptions", key), found)
    return Column(
        name=name, feed_name=feed_name, type=kind,
        aliases=extra.aliases, transform=transform, sources=sources, format=form,
        required=bool(item.get("required") or item.get("primaryKey")), optional=extra.optional,
        classification=classification, null_values=extra.null_values, trim=extra.trim,
        enum=enum,
        bounds=tuple(options.items()),
    )  # fmt: skip


BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern")


def _check_value(text: str, kind: str, what: str, at: Path_, found: Findings) -> None:
    if not castable(text, kind):
        found.add("bad-value", at, f"{what}: {text!r} is not a {kind}", "write a value of the column's type")


def _check_pattern(pattern: Any, at: Path_, found: Findings) -> None:
    try:
        re.compile(str(pattern or ""))
    except re.error as error:
        found.add("pattern", at, f"pattern {pattern!r}: {error}", "write a regular expression")


def _type(item: Mapping[str, Any], logical: str, at: Path_, found: Findings) -> str:
    if logical not in TYPES:
        found.add("type", (*at, "logicalType"), f"logicalType {logical!r} is not read", nearest(logical, TYPES))
        return "string"
    physical = str(item.get("physicalType") or TYPES[logical]).lower().replace(" ", "")
    physical = {"integer": "int", "long": "bigint"}.get(physical, physical)
    physical = "string" if re.fullmatch(r"(var)?char\(\d+\)|text", physical) else physical
    base, sized = re.sub(r"\(.*", "", physical), re.fullmatch(r"decimal\((\d+),(\d+)\)", physical)
    if (
        base not in PHYSICAL[logical]
        or (base == "decimal") != bool(sized)
        or (sized and not int(sized[2]) <= int(sized[1]) <= 38)
    ):
        found.add("type", (*at, "physicalType"), f"physicalType {physical!r} does not go with {logical}",
                  nearest(base, PHYSICAL[logical], "use one of these, or did you mean"))  # fmt: skip
        return TYPES[logical]
    return physical


def _check_extras(extra: DatasetExtras, names: Sequence[str], spots: Mapping[str, Path_], found: Findings) -> None:
    named = {"sequence": [extra.sequence], "eventTime": [extra.event_time],
             "identity": [] if isinstance(extra.identity, str) else extra.identity or []}  # fmt: skip
    for key, values in named.items():
        for value in values:
            if value is not None and value not in names:
                found.add("unknown-column", spots[key], f"{key} names no column: {value!r}", nearest(value, names))
    for key in extra.spark:
        if not DATASET_SPARK_KEYS.fullmatch(key):
            found.add("spark-key", (*spots["spark"], key), f"Spark key {key!r} is refused in a dataset",
                      "only planning keys (spark.sql.shuffle.partitions …) go here; others into base.yaml")  # fmt: skip
    try:
        "".encode(extra.options.encoding)
    except LookupError:
        found.add(
            "encoding",
            (*spots["options"], "encoding"),
            f"encoding {extra.options.encoding!r} is unknown",
            "write UTF-8, windows-1252, UTF-16 …",
        )


def _rules(schema: Mapping[str, Any], types: Mapping[str, str], found: Findings) -> list[Rule]:
    at: Path_ = ("schema", 0)
    rules = read_rules(schema.get("quality"), (*at, "quality"), None, types, found)
    spots: dict[str, Path_] = {}
    for i, item in enumerate(schema.get("properties") or []):
        place = (*at, "properties", i, "quality")
        spots |= {str(rule.get("name")): (*place, j) for j, rule in enumerate(item.get("quality") or [])}
        rules += read_rules(item.get("quality"), place, str(item.get("name")), types, found)
        if item.get("unique"):
            column = str(item["name"])
            rules.append(Rule(f"{column}_unique", "flag", "mustBe", 0, metric="duplicateValues", columns=(column,)))
    for name in repeated([rule.name for rule in rules]):
        found.add("twice", spots.get(name, at), f"two rules are named {name!r}", "rename one")
    return rules


def read_rules(
    items: Any, at: Path_, column: str | None, types: Mapping[str, str], found: Findings,
    actions: Sequence[str] = ("quarantine", "flag", "stop"), default: Literal["flag", "stop"] = "flag",
) -> list[Rule]:  # fmt: skip
    """The rules of one quality list; ``types`` has the columns that they may name, ``default`` is for those that cannot
    quarantine."""
    rules = [_rule(item, (*at, i), column, types, found, actions, default) for i, item in enumerate(items or [])]
    return [rule for rule in rules if rule is not None]


def _rule(
    item: Mapping[str, Any], at: Path_, column: str | None, types: Mapping[str, str], found: Findings,
    actions: Sequence[str], default: Literal["flag", "stop"],
) -> Rule | None:  # fmt: skip
    kind = item.get("type") or "library"
    if kind == "text":
        return None
    if kind == "custom":
        found.add("rule", at, "rules of type custom are not run", "write it as type: sql")
        return None
    extra: RuleExtras = extras(item.get("customProperties"), (*at, "customProperties"), RuleExtras, found)
    arguments = _arguments(item, at, found)
    metric = item.get("metric") if kind == "library" else None
    operator = next((o for o in OPERATORS if o in item), "mustBe")
    columns = arguments.properties or ((column,) if column else ())
    for name in columns:
        if name not in types:
            found.add("unknown-column", at, f"the rule names no column: {name!r}", nearest(name, types))
        for value in map(as_text, arguments.valid_values):
            _check_value(value, types.get(name, "string"), "validValues", (*at, "arguments"), found)
    if metric in ("nullValues", "missingValues", "invalidValues", "duplicateValues") and not columns:
        found.add("rule", at, f"{metric} needs a column", "put it under a column, or name arguments.properties")
    if metric == "invalidValues" and not (arguments.valid_values or arguments.pattern):
        found.add("rule", at, "invalidValues needs arguments.validValues or arguments.pattern", "add one")
    query, predicate = _sql(item, at, column, types, found) if kind == "sql" else (None, None)
    what = re.sub("(?=[A-Z])", "_", metric or "sql").lower()
    name = str(item.get("name") or item.get("id") or "_".join((*columns, what)))
    check_name(name, at, "rule", found)
    if name == ANOMALY:
        found.add("name", at, f"a rule named {name!r} could not be told from a model's verdict", "rename it")
    rule = Rule(
        name=name, action="flag", operator=operator, threshold=item.get(operator), metric=metric, column=column,
        columns=columns, valid_values=tuple(map(as_text, arguments.valid_values)),
        missing_values=tuple(as_text(v) for v in arguments.missing_values if v is not None),
        pattern=arguments.pattern, predicate=predicate, query=query, percent=item.get("unit") == "percent",
    )  # fmt: skip
    if operator in ("mustBe", "mustNotBe") and not isinstance(rule.threshold, (int, float)):
        found.add(
            "rule", (*at, operator), f"{operator} compares with a number, not {rule.threshold!r}", "write a number"
        )
    able = rule.by_row and operator == "mustBe" and rule.threshold == 0 and not rule.percent and "quarantine" in actions
    action = extra.action or ("quarantine" if able else default)
    if action not in actions or (action == "quarantine" and not able):
        found.add(
            "rule",
            at,
            f"rule {name} cannot {action}",
            "quarantine needs a condition on single rows and mustBe: 0; else flag or stop",
        )
    return Rule(**{**rule.__dict__, "action": action})


def _arguments(item: Mapping[str, Any], at: Path_, found: Findings) -> RuleArguments:
    try:
        arguments = RuleArguments.model_validate(item.get("arguments") or {})
    except ValidationError as error:
        found.add_pydantic(error, (*at, "arguments"), RuleArguments, {})
        return RuleArguments()
    _check_pattern(arguments.pattern, (*at, "arguments"), found)
    return arguments


def _sql(
    item: Mapping[str, Any], at: Path_, column: str | None, types: Mapping[str, str], found: Findings
) -> tuple[str | None, str | None]:
    text = (
        str(item.get("query") or "")
        .replace("{object}", OBJECT)
        .replace("{property}", f"`{column}`" if column else "{property}")
    )
    try:
        query = sqltext.select(text)
        read = sqltext.tables(query)
        if read != [OBJECT]:
            raise sqltext.SqlProblem(
                f"it reads {', '.join(read) or 'nothing'}; a rule reads {{object}} and nothing else"
            )
        complaint = sqltext.unknown_columns(query, {OBJECT: {**types, **dict.fromkeys(META_COLUMNS, "string")}})
        if complaint:
            raise sqltext.SqlProblem(f"{complaint}; {nearest(_quoted(complaint), types)}")
        return text, sqltext.violation(text)
    except sqltext.SqlProblem as problem:
        found.add(
            "sql", (*at, "query"), str(problem), "write SELECT COUNT(*) FROM {object} WHERE …, in plain Spark SQL"
        )
        return None, None


def _quoted(complaint: str) -> str:
    match = re.search(r"'([^']+)'|: (\w+)", complaint)
    return (match[1] or match[2]) if match else ""
