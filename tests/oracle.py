"""What the tables must hold, told by plain loops over plain values: no Spark, nothing of lib/, nothing incremental.

Loads are a list of lists of records, in the order of their arrival; load number n is ``loads[n - 1]``. Values are of
any kind that compares: int, str, Decimal, datetime. A repeated event is taken to have the same key and sequence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal

Row = dict[str, Any]
Answer = dict[tuple[Any, ...], Any]  # group -> what the query says of it


@dataclass(frozen=True)
class Contract:
    """The part of a dataset's contract that decides what becomes of a record. Without ``identity`` a record is known by
    its position. ``delay`` and ``ahead`` are what can be taken from and added to an event time."""

    key: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    sequence: str | None = None
    history: Literal["latest", "append", "scd2"] = "latest"
    event_time: str | None = None
    delay: Any = None
    ahead: Any = None


@dataclass(frozen=True)
class Record:
    """One record of the log: its values, or the text that could not be read."""

    position: Any
    raw: Mapping[str, Any] | str
    arrival: Any = None


Loads = Sequence[Sequence[Record]]


# --- Single records ---


def good(record: Record, contract: Contract) -> bool:
    """Whether it can be read, has its key and sequence, and does not come from the future."""
    if isinstance(record.raw, str):
        return False
    needed = (*contract.key, *((contract.sequence,) if contract.sequence else ()))
    if any(record.raw.get(name) is None for name in needed):
        return False
    when = event_time(record, contract)
    return when is None or contract.ahead is None or bool(when <= record.arrival + contract.ahead)


def event_time(record: Record, contract: Contract) -> Any:
    return record.raw.get(contract.event_time) if contract.event_time and not isinstance(record.raw, str) else None


def quarantined(loads: Loads, contract: Contract) -> list[tuple[int, Any]]:
    """Load and position of each bad record."""
    return [(n, record.position) for n, load in enumerate(loads, 1) for record in load if not good(record, contract)]


# --- Late ones ---


def horizon(loads: Loads, contract: Contract, number: int) -> Any:
    """The event time below which that load's records are late; None where none can be."""
    earlier = [record for load in loads[: number - 1] for record in load if good(record, contract)]
    times = [when for record in earlier if (when := event_time(record, contract)) is not None]
    return max(times) - contract.delay if times and contract.delay is not None else None


def late(loads: Loads, contract: Contract, number: int) -> list[Any]:
    """Positions of that load's late records, all of them good."""
    limit = horizon(loads, contract, number)
    return [
        record.position
        for record in loads[number - 1]
        if good(record, contract)
        and limit is not None
        and (when := event_time(record, contract)) is not None
        and when < limit
    ]


# --- Rows ---


def silver(loads: Loads, contract: Contract, upto: int) -> list[Row]:
    """Silver after the loads up to that one, late records and all."""
    return resolved(_good(loads[:upto], contract), contract)


def unified(loads: Loads, contract: Contract, settled: int, upto: int) -> list[Row]:
    """The unified view: all of the loads up to ``settled``, and those after it up to ``upto`` without late records."""
    seen = list(_good(loads[:settled], contract))
    for number in range(settled + 1, upto + 1):
        absent = late(loads, contract, number)
        seen += [record for record in _good(loads[number - 1 : number], contract) if record.position not in absent]
    return resolved(seen, contract)


def _good(loads: Loads, contract: Contract) -> list[Record]:
    return [record for load in loads for record in load if good(record, contract)]


def resolved(records: Iterable[Record], contract: Contract) -> list[Row]:
    """What stays of good records, in the order of their arrival."""
    if contract.history == "latest":
        return [dict(_winner(group, contract).raw) for group in grouped(records, contract.key).values()]  # type: ignore[arg-type]
    first = [group[0] for group in grouped(records, contract.identity).values()]
    rows = [dict(record.raw) for record in first]  # type: ignore[arg-type]
    return versions(rows, contract) if contract.history == "scd2" else rows


def grouped(records: Iterable[Record], names: Sequence[str]) -> dict[Any, list[Record]]:
    """By the values of the columns, or by position where there are no columns."""
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(values(record.raw, names) if names else record.position, []).append(record)
    return groups


def _winner(group: Sequence[Record], contract: Contract) -> Record:
    if contract.sequence is None:
        return group[-1]
    newest = max(record.raw[contract.sequence] for record in group)  # type: ignore[index]
    return next(record for record in group if record.raw[contract.sequence] == newest)  # type: ignore[index]


def versions(rows: Iterable[Row], contract: Contract) -> list[Row]:
    """Rows with valid_from, valid_to (exclusive, None for the last) and is_current."""
    rows, sequence = list(rows), str(contract.sequence)
    found = []
    for row in rows:
        mine = [other for other in rows if values(other, contract.key) == values(row, contract.key)]
        later = min((other[sequence] for other in mine if other[sequence] > row[sequence]), default=None)
        found.append({**row, "valid_from": row[sequence], "valid_to": later, "is_current": later is None})
    return found


def values(row: Any, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in names)


def counted(rows: Iterable[Mapping[str, Any]]) -> Counter[Any]:
    """Rows in no order, each as often as it stands there."""
    return Counter(tuple(sorted(row.items())) for row in rows)


# --- The ledger of one step from the log to silver ---


def ledger(loads: Loads, contract: Contract, first: int, last: int) -> dict[str, int]:
    """What became of the records of the loads from ``first`` to ``last``, settled in one step."""
    taken = loads[first - 1 : last]
    mine, before = _good(taken, contract), silver(loads, contract, first - 1)
    rows_in, repeats = sum(map(len, taken)), _duplicates(mine, loads[: first - 1], contract)
    after = silver(loads, contract, last)
    inserted = len(after) - len(before)
    updated = 0
    if contract.history == "latest":
        held = {values(row, contract.key): row for row in before}
        updated = sum(held.get(values(row, contract.key), row) != row for row in after)
    return {
        "rows_in": rows_in, "good": len(mine) - repeats, "quarantined": rows_in - len(mine), "duplicate": repeats,
        "inserted": inserted, "updated": updated, "superseded": len(mine) - repeats - inserted - updated,
    }  # fmt: skip


def _duplicates(mine: Sequence[Record], before: Loads, contract: Contract) -> int:
    """Histories of every event know all that came; latest knows what the step brings and what silver holds."""
    if contract.history != "latest":
        earlier = _good(before, contract)
        return len(mine) - len(grouped([*earlier, *mine], contract.identity)) + len(grouped(earlier, contract.identity))
    found = 0
    held = {values(row, contract.key): row for row in resolved(_good(before, contract), contract)}
    for key, group in grouped(mine, contract.key).items():
        names = [values(record.raw, contract.identity) for record in group]
        there = values(held[key], contract.identity) if key in held else None
        for at, name in enumerate(names):
            again = name in names[:at] if contract.sequence else name in names[at + 1 : at + 2]
            found += again or name == there
    return found


# --- Gold: queries by plain loops ---


def by_group(rows: Iterable[Row], by: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(values(row, by), []).append(row)
    return groups


def _given(rows: Iterable[Row], by: Sequence[str], value: str) -> dict[tuple[Any, ...], list[Any]]:
    """The values of each group that are not None."""
    return {g: [row[value] for row in mine if row[value] is not None] for g, mine in by_group(rows, by).items()}


def total(rows: Iterable[Row], by: Sequence[str], value: str) -> Answer:
    """SUM, which is None for a group that has no value."""
    return {group: sum(given[1:], given[0]) if given else None for group, given in _given(rows, by, value).items()}


def average(rows: Iterable[Row], by: Sequence[str], value: str, places: int | None = None) -> Answer:
    """AVG; of decimals it is rounded half up to that many places (Spark: four more than the column's)."""
    found: Answer = {}
    for group, given in _given(rows, by, value).items():
        mean = sum(given[1:], given[0]) / len(given) if given else None
        rounds = places is not None and isinstance(mean, Decimal)
        found[group] = mean.quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP) if rounds else mean  # type: ignore
    return found


def distinct(rows: Iterable[Row], by: Sequence[str], value: str) -> Answer:
    """COUNT(DISTINCT value)."""
    return {group: len(set(given)) for group, given in _given(rows, by, value).items()}


def top(rows: Iterable[Row], by: Sequence[str], value: str, n: int) -> Answer:
    """The n largest values, largest first."""
    return {group: sorted(given, reverse=True)[:n] for group, given in _given(rows, by, value).items()}


def latest(rows: Iterable[Row], by: Sequence[str], order: str, value: str) -> Answer:
    """MAX_BY(value, order): the largest of the values that stand at the newest."""
    found = {}
    for group, mine in by_group(rows, by).items():
        newest = max(row[order] for row in mine)
        found[group] = max(row[value] for row in mine if row[order] == newest)
    return found
