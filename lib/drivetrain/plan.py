"""What a run would read, write and recompute, and why, from the tables as they are. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drivetrain.contracts import Conf, Dataset
from drivetrain.drift import fit
from drivetrain.landing import Intake, Landed, Pull
from drivetrain.pipeline import Pipeline

COLUMNS = ("table", "action", "reads", "why")


@dataclass(frozen=True)
class Intent:
    """What would be done to one table."""

    table: str
    action: str
    reads: str
    why: str


def intents(pipeline: Pipeline) -> list[Intent]:
    """One line for each table, in the order of the flow."""
    moving: set[str] = set()
    found = []
    for dataset in pipeline.conf.datasets.values():
        lines = list(_dataset(pipeline, dataset))
        found += lines
        if any(line.table == f"silver.{dataset.name}" and line.action != "keep" for line in lines):
            moving.add(dataset.name)
    return found + list(_gold(pipeline, moving))


def _dataset(pipeline: Pipeline, dataset: Dataset) -> Iterator[Intent]:
    log, table = pipeline.table("bronze", dataset.name), pipeline.table("silver", dataset.name)
    with pipeline.problem_of(dataset.name):
        new, rejected = pipeline.new_files(dataset)
        next_load = max(log.last_txn(dataset.name), 0) + 1
        if dataset.kafka:
            why = f"speed takes it as it comes; at load {next_load - 1}"
            yield Intent(f"bronze.{dataset.name}", "stream", f"topic {dataset.kafka.topic}", why)
        elif new:
            yield Intent(f"bronze.{dataset.name}", "append", *_append(new, next_load))
        else:
            none = "no new rows" if dataset.jdbc else "no new files"
            yield Intent(f"bronze.{dataset.name}", "keep", "", f"{none}; at load {next_load - 1}")
        for file in rejected:
            yield Intent("ops.quarantine", "append", file.name, f"{file.rule}: {file.reason}")
        for reason in sorted({reason for file in new for reason in _drift(file, dataset)}):
            yield Intent(f"bronze.{dataset.name}", "drift", dataset.evolution, reason)
        yield _silver(dataset, table.last_txn(dataset.name), next_load - 1, bool(new))
        yield from _contract(pipeline, dataset)


def _append(new: Sequence[Intake], load: int) -> tuple[str, str]:
    """What is read, and why."""
    files = [file for file in new if isinstance(file, Landed)]
    if not files:
        why = (
            "rows are new, or came within the overlap" if any(pull.lower for pull in _pulls(new)) else "the first pull"
        )
        return "; ".join(map(str, new)), f"load {load}: {why}"
    size = sum(file.size for file in files)
    return f"{len(files)} files, {size:,} bytes", f"load {load}: {len(files)} new of the feed's files"


def _pulls(new: Sequence[Intake]) -> list[Pull]:
    return [one for one in new if isinstance(one, Pull)]


def _silver(dataset: Dataset, done: int, last: int, more: bool) -> Intent:
    first, end = max(done, 0) + 1, last + more
    name, how = f"silver.{dataset.name}", "append or merge" if dataset.history != "append" else "append"
    if end < first:
        return Intent(name, "keep", "", f"up to date with load {last}")
    reads = f"load {first}" if first == end else f"loads {first} to {end}"
    why = "new records" if last < first else "records of a run that did not end"
    return Intent(name, "create" if done < 0 else how, reads, f"{why}; history {dataset.history}")


def _contract(pipeline: Pipeline, dataset: Dataset) -> Iterator[Intent]:
    table = pipeline.table("silver", dataset.name)
    built = next((m.get("contract") for _, m in table.commits()), None) if table.exists() else None
    if built not in (None, dataset.fingerprint):
        why = "the contract changed: rows from now on follow it, rows before keep their form until a replay"
        yield Intent(f"silver.{dataset.name}", "note", "", why)


def _drift(file: Intake, dataset: Dataset) -> Iterator[str]:
    if file.header:
        fitted = fit(file.header, dataset)
        if fitted.reason:
            yield f"rows will be quarantined: {fitted.reason}"
        if fitted.absent:
            yield f"optional columns that are not there: {', '.join(fitted.absent)}"
        if fitted.unknown:
            more = " …" if len(fitted.unknown) > 8 else ""
            yield f"columns that the contract does not have: {', '.join(fitted.unknown[:8])}{more}"


def _gold(pipeline: Pipeline, moving: set[str]) -> Iterator[Intent]:
    versions = {name: pipeline.content_version("silver", name) for name in pipeline.conf.datasets}
    for table in pipeline.conf.gold.values():
        stale, coming = pipeline.stale(table, versions), [name for name in table.inputs if name in moving]
        why = stale or (
            f"its inputs will change: {', '.join(coming)}" if coming else "its query and inputs are unchanged"
        )
        action = "build" if stale or coming else "keep"
        yield Intent(f"gold.{table.name}", action, ", ".join(table.inputs) if action == "build" else "", why)
        if action == "build":
            moving.add(table.name)
        versions[table.name] = pipeline.content_version("gold", table.name)


def graph(conf: Conf) -> str:
    """The lineage from feed columns to gold columns, as a Mermaid flowchart."""
    lines, edges = ["flowchart LR"], []
    for dataset in conf.datasets.values():
        lines += _group(f"feed_{dataset.name}", f"{dataset.name} (feed)", dataset.feed_columns)
        lines += _group(dataset.name, f"silver.{dataset.name}", [column.name for column in dataset.columns])
        for column in dataset.columns:
            sources = column.sources if column.transform else (column.feed_name,)
            edges += [
                (f"feed_{dataset.name}", source, dataset.name, column.name) for source in sources if source != "_file"
            ]
    for table in conf.gold.values():
        lines += _group(f"gold_{table.name}", f"gold.{table.name}", table.columns)
        for made, sources_ in table.lineage:
            for source_table, source in sources_:
                holder = f"gold_{source_table}" if source_table in conf.gold else source_table
                edges.append((holder, source, f"gold_{table.name}", made))
    ids = [(_node(a, b), _node(c, d)) for a, b, c, d in edges]
    return "\n".join([*lines, *[f"  {left} --> {right}" for left, right in dict.fromkeys(ids)]])


def _group(key: str, title: str, columns: tuple[str, ...] | list[str]) -> list[str]:
    nodes = [f'    {_node(key, column)}["{_escaped(column)}"]' for column in columns]
    return [f'  subgraph {key}["{_escaped(title)}"]', *nodes, "  end"]


def _node(key: str, column: str) -> str:
    plain = "".join(char if char.isascii() and char.isalnum() else f"_{ord(char):x}_" for char in column)
    return f"{key}__{plain}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace("#", "&num;")
