"""The protocol of log, silver, gold and manifest in memory, small enough to try thousands of interleavings.

`Rules` holds its decisions, one method each. `Table` is as much of Delta as the protocol leans on. Writers and readers
of `World` are generators: between two of their yields stands one atomic step, so whoever drives them chooses the
interleaving, a crash is a generator that is closed, and a zombie one that is left alone for a while.
`World.check` compares all that can be read with `oracle`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from typing import Any, NamedTuple

import oracle
from oracle import Contract, Record, Row, values

Steps = Generator[str, None, None]
COLUMNS = ("id", "at", "event", "time", "amount", "shop")
CONTRACTS: Mapping[str, Contract] = {
    "latest": Contract(("id",), ("id", "at"), "at", "latest", "time", 3, 5),
    "latest without sequence": Contract(("id",), COLUMNS, None, "latest", "time", 3, 5),
    "append": Contract((), ("event",), None, "append", "time", 3, 5),
    "append by position": Contract((), (), None, "append", "time", 3, 5),
    "scd2": Contract(("id",), ("id", "at"), "at", "scd2", "time", 3, 5),
}


class Refused(Exception):
    """Another writer's commit came between."""


class Gone(Exception):
    """The version is not there, or has been cleaned up."""


class Broken(AssertionError):
    """A law of the protocol that does not hold."""

    def __init__(self, law: str, *told: object) -> None:
        super().__init__(law, *told)
        self.law = law


def must(holds: bool, law: str, *told: object) -> None:
    if not holds:
        raise Broken(law, *told)


# --- What is written ---


class Txn(NamedTuple):
    app: str
    number: int


class Batch(NamedTuple):
    """A micro-batch: whose it is and which offsets of the source it holds."""

    epoch: tuple[int, int]
    number: int
    start: int
    end: int


class Stamped(NamedTuple):
    """A record of the log with its typed row, None where it is bad."""

    record: Record
    row: Row | None
    late: bool
    requeued: bool


@dataclass(frozen=True)
class Load:
    """One commit to the log. ``newest`` is the newest event time of all loads up to this one."""

    number: int
    batch: Batch | None
    newest: int | None
    records: tuple[Stamped, ...]


@dataclass(frozen=True)
class Manifest:
    """What readers follow: gold covers the loads up to ``settled``, gold with speed those up to ``upto``."""

    number: int = 0
    generation: int = 0
    settled: int = 0
    upto: int = 0
    silver: int = 0
    gold: int = 0
    speed: int = 0
    run: int = 0


class Fate(NamedTuple):
    """What a load holds: good records, bad ones, and the positions of those good ones that are late."""

    good: int
    bad: int
    late: list[Any]


@dataclass(frozen=True)
class Commit:
    content: Any
    txn: Txn | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Table:
    """A Delta table: versions, transactions by application, conflicts."""

    def __init__(self, content: Any) -> None:
        self.commits, self.oldest = [Commit(content)], 0

    @property
    def version(self) -> int:
        return len(self.commits) - 1

    @property
    def content(self) -> Any:
        return self.commits[-1].content

    def read(self, version: int) -> Any:
        if not self.oldest <= version <= self.version:
            raise Gone(version)
        return self.commits[version].content

    def last(self, app: str, version: int) -> int:
        """The highest number of that application, as of a version; 0 for none."""
        found = [one.txn.number for one in self.commits[: version + 1] if one.txn and one.txn.app == app]
        return max(found, default=0)

    def commit(
        self,
        began: int,
        change: Callable[[Any], Any],
        txn: Txn | None = None,
        metadata: Mapping[str, Any] | None = None,
        blind: bool = True,
    ) -> None:
        """``began`` is the version at which the write began. A number that was there by then is skipped without a word;
        one of the same application since is a conflict, and so is any commit for a write that is not a blind append."""
        if txn and self.last(txn.app, began) >= txn.number:
            return
        since = self.commits[began + 1 :]
        if any(not blind or (txn and one.txn and one.txn.app == txn.app) for one in since):
            raise Refused
        self.commits.append(Commit(change(self.content), txn, metadata or {}))

    def compact(self) -> None:
        self.commits.append(Commit(self.content))

    def vacuum(self, floor: int) -> None:
        self.oldest = max(self.oldest, min(floor, self.version))


# --- The decisions ---


class Rules:
    """Each decision of the protocol, so that a mutant can take another one."""

    # the log

    def load_txn(self, number: int) -> Txn | None:
        """What makes an append to the log a compare-and-swap on its end."""
        return Txn("log", number)

    def epoch(self, last: Batch | None, token: int) -> tuple[int, int]:
        """Newer than the last commit's, and no other start's."""
        return (last.epoch[0] + 1 if last else 1, token)

    def resume(self, last: Batch | None, checkpoint: int | None) -> int:
        """The offset at which a start begins."""
        return last.end if last else 0

    def verdict(self, last: Batch | None, mine: Batch) -> str:
        """What to do with a micro-batch at the log's end: append, it is there, or stop as another has taken over."""
        if last == mine:
            return "there"
        if last and last.epoch > mine.epoch:
            return "stop"
        return "append" if mine.start == (last.end if last else 0) else "stop"

    def looks_again(self) -> bool:
        """Whether an append that was not refused is believed only when the log shows it."""
        return True

    def horizon(self, before: int | None, mine: Sequence[int], delay: int) -> int | None:
        """Of the newest event time before a load, and its own ones: the time below which its records are late."""
        return None if before is None else before - delay

    def waiting(self, loads: Sequence[Load]) -> list[Record]:
        """Bad records that the log has not taken again."""
        every = [one for load in loads for one in load.records]
        taken = {one.record.position for one in every if one.requeued}
        return [one.record for one in every if one.row is None and one.record.position not in taken]

    # silver

    def unsettled(self, load: int, settled: int, upto: int) -> bool:
        return settled < load <= upto

    def settle_txn(self, steps: int, upto: int) -> Txn:
        """What makes a commit to silver a compare-and-swap on what it covers."""
        return Txn("settle", steps + 1)

    # the unified view

    def in_tail(self, load: Load, one: Stamped, settled: int, upto: int, silver: Sequence[Row]) -> bool:
        return settled < load.number <= upto and not one.late

    def unified(self, silver: Sequence[Row], tail: Sequence[Row], contract: Contract) -> list[Row]:
        return merged(silver, tail, contract)

    def touched(self, silver: Sequence[Row], tail: Sequence[Row], contract: Contract) -> set[Any]:
        """Groups that the tail changes: those of its rows, and those of the rows that they replace or close."""
        names = contract.key or contract.identity
        keys = {values(row, names) for row in tail}
        return {row["shop"] for row in tail} | {row["shop"] for row in silver if names and values(row, names) in keys}

    # publishing

    def order(self) -> tuple[str, ...]:
        return ("gold", "speed", "manifest")

    def version_of(self, table: Table, run: int) -> int:
        """The version that a run has written (or would, had it not)."""
        mine = [version for version, one in enumerate(table.commits) if one.metadata.get("run") == run]
        return mine[0] if mine else table.version + 1

    def manifest_txn(self, newest: Manifest, mine: Manifest) -> Txn | None:
        """What makes publishing a compare-and-swap on the manifest that was there at its beginning."""
        return Txn("manifest", mine.number)

    # reading

    def speed_version(self, manifest: Manifest, speed: Table) -> int:
        return manifest.speed

    def pinned(self, manifest: Manifest, oldest: int) -> bool:
        """Whether a manifest that a reader has just pinned will be kept: looked at after pinning."""
        return manifest.number >= oldest

    # cleaning

    def floor(self, needed: Sequence[int]) -> int:
        """The oldest version of a table that stays, of those that are needed."""
        return min(needed, default=0)


# --- Rows, step by step as silver does it ---


def match(row: Row, contract: Contract) -> Any:
    names = contract.key if contract.history == "latest" else contract.identity
    return values(row, names) if names else row["_place"]


def merged(silver: Iterable[Row], new: Iterable[Row], contract: Contract) -> list[Row]:
    """Silver's rows after further ones, which come in the order of their arrival."""
    table = {match(row, contract): row for row in silver}
    for row in new:
        there = table.setdefault(match(row, contract), row)
        if contract.history == "latest" and _replaces(row, there, contract):
            table[match(row, contract)] = row
    return _chained(list(table.values()), contract) if contract.history == "scd2" else list(table.values())


def _replaces(row: Row, there: Row, contract: Contract) -> bool:
    if contract.sequence:
        return bool(row[contract.sequence] > there[contract.sequence])
    return values(row, contract.identity) != values(there, contract.identity)


def _chained(rows: list[Row], contract: Contract) -> list[Row]:
    """Versions that end where the next of their key begins."""
    ends: dict[Any, Any] = {}
    found = []
    for row in sorted(rows, key=lambda row: row[str(contract.sequence)], reverse=True):
        end = ends.get(values(row, contract.key))
        ends[values(row, contract.key)] = begin = row[str(contract.sequence)]
        found.append({**row, "valid_from": begin, "valid_to": end, "is_current": end is None})
    return found


def plain(rows: Iterable[Row]) -> Any:
    return oracle.counted([{k: v for k, v in row.items() if k != "_place"} for row in rows])


def summary(rows: Iterable[Row]) -> dict[Any, Any]:
    """The gold table: for each shop aggregates that add up and such that do not."""
    rows, by = list(rows), ("shop",)
    parts = [
        oracle.total(rows, by, "amount"), oracle.average(rows, by, "amount"), oracle.distinct(rows, by, "id"),
        oracle.top(rows, by, "amount", 2), oracle.latest(rows, by, "at", "amount"),
    ]  # fmt: skip
    return {group: tuple(part[group,] for part in parts) for (group,) in parts[0]}


# --- The tables and those who work on them ---


class World:
    def __init__(self, contract: Contract, rules: Rules) -> None:
        self.contract, self.rules = contract, rules
        self.source: list[Record] = []
        self.repairs: dict[Any, Row] = {}
        self.log, self.manifests = Table(()), Table((Manifest(),))
        self.silver, self.gold, self.speed = [Table(())], Table({}), Table({})
        self.checkpoint: int | None = None
        self.acknowledged, self.oldest = 0, 0
        self.pins: dict[int, Manifest] = {}
        self.reading: dict[int, Manifest] = {}
        self.tokens = count(1)
        self.truths: dict[Any, Any] = {}
        self.fates: dict[int, Fate] = {}
        self.checked: Any = None

    @property
    def loads(self) -> tuple[Load, ...]:
        return tuple(self.log.content)

    @property
    def last(self) -> int:
        return max((load.number for load in self.loads), default=0)

    @property
    def newest(self) -> Manifest:
        found: Manifest = self.manifests.content[-1]
        return found

    def last_batch(self) -> Batch | None:
        return next((load.batch for load in reversed(self.loads) if load.batch), None)

    # the log

    def stream(self, size: int) -> Steps:
        last = self.last_batch()
        epoch = self.rules.epoch(last, next(self.tokens))
        at = self.rules.resume(last, self.checkpoint)
        yield "started"
        for number in count():
            mine = Batch(epoch, number, at, min(at + size, len(self.source)))
            if mine.start >= mine.end:
                return
            self.checkpoint = mine.end  # Spark writes offsets ahead
            yield "read"
            if not (yield from self.append_batch(mine)):
                return
            self.acknowledged = max(self.acknowledged, mine.end)
            yield "acknowledged"
            at = mine.end

    def append_batch(self, mine: Batch) -> Generator[str, None, bool]:
        """Append and look again until the log's end shows the batch, or another's: an append may be refused, skipped
        without a word, or made without an answer."""
        while True:
            verdict = self.rules.verdict(self.last_batch(), mine)
            if verdict != "append":
                return verdict == "there"
            refused = yield from self.append(self.load(mine, self.source[mine.start : mine.end]))
            if not refused and not self.rules.looks_again():
                return True

    def append(self, load: Load) -> Generator[str, None, bool]:
        """One try; returns whether Delta refused it. That it did not does not say that the load is there."""
        yield "load stamped"
        began = self.log.version
        yield "append began"
        refused = False
        try:
            self.log.commit(began, lambda loads: (*loads, load), self.rules.load_txn(load.number))
        except Refused:
            refused = True
        yield "appended"
        return refused

    def load(self, batch: Batch | None, records: Sequence[Record]) -> Load:
        before = self.loads[-1].newest if self.loads else None
        sound = [record for record in records if oracle.good(record, self.contract)]
        times = [int(oracle.event_time(record, self.contract)) for record in sound]
        limit = self.rules.horizon(before, times, int(self.contract.delay))
        number = self.last + 1
        rows = []
        for record in records:
            row = {**dict(record.raw), "_place": record.position} if record in sound else None  # type: ignore[arg-type]
            late = row is not None and limit is not None and row["time"] < limit
            rows.append(Stamped(record, row, late, batch is None))
        newest = max([*times, *([] if before is None else [before])], default=None)
        return Load(number, batch, newest, tuple(rows))

    def requeue(self) -> Steps:
        """Append repaired records to the log, each once."""
        while True:
            settled = [load for load in self.loads if load.number <= self.newest.settled or load.batch is None]
            todo = [record for record in self.rules.waiting(settled) if record.position in self.repairs]
            if not todo:
                return
            yield from self.append(self.load(None, [replace(one, raw=self.repairs[one.position]) for one in todo]))

    # silver

    def covered(self, silver: Table, version: int) -> int:
        """The last load that the version of silver covers."""
        found = [one.metadata["upto"] for one in silver.commits[: version + 1] if "upto" in one.metadata]
        return max(found, default=0)

    def settle(self, generation: int | None = None, upto: int | None = None) -> Steps:
        """One step from the log to silver: of the published generation, or of one that is made beside."""
        silver = self.silver[self.newest.generation if generation is None else generation]
        seen = silver.version
        done, steps = self.covered(silver, seen), silver.last("settle", seen)
        last = self.last if upto is None else upto
        if last <= done:
            return
        records = [one for load in self.loads if self.rules.unsettled(load.number, done, last) for one in load.records]
        held = silver.read(seen)
        after = merged(held, [one.row for one in records if one.row is not None], self.contract)
        known = {match(row, self.contract): row for row in held}
        writes = [row for row in after if known.get(match(row, self.contract)) != row]
        inserted = sum(match(row, self.contract) not in known for row in writes)
        ledger = (len(records), sum(one.row is None for one in records), inserted)
        yield "staged"
        began = silver.version
        yield "settle began"
        blind = inserted == len(writes)
        change = self.plus(writes) if blind else self.upsert(writes)
        with suppress(Refused):
            metadata = {"upto": last, "ledger": ledger}
            silver.commit(began, change, self.rules.settle_txn(steps, last), metadata, blind)
        yield "settled"

    def plus(self, rows: Sequence[Row]) -> Callable[[Any], Any]:
        return lambda held: (*held, *rows)

    def upsert(self, rows: Sequence[Row]) -> Callable[[Any], Any]:
        mine = {match(row, self.contract) for row in rows}
        return lambda held: (*[row for row in held if match(row, self.contract) not in mine], *rows)

    def compact(self, table: int) -> None:
        [*self.silver, self.gold, self.speed, self.log][table % (len(self.silver) + 3)].compact()

    # the unified view and gold

    def tail(self, manifest: Manifest, silver: Sequence[Row]) -> list[Row]:
        return [
            one.row
            for load in self.loads
            for one in load.records
            if one.row is not None
            and self.rules.in_tail(load, one, manifest.settled, manifest.upto, silver)
        ]  # fmt: skip

    def unified(self, manifest: Manifest) -> list[Row]:
        silver = self.silver[manifest.generation].read(manifest.silver)
        return self.rules.unified(silver, self.tail(manifest, silver), self.contract)

    def answer(self, manifest: Manifest) -> dict[Any, Any]:
        """The gold table as a reader gets it: groups that speed has from there, all others as batch built them."""
        speed = self.speed.read(self.rules.speed_version(manifest, self.speed))
        every = self.gold.read(manifest.gold) | speed
        return {group: row for group, row in every.items() if row is not None}

    def fresh(self, manifest: Manifest) -> dict[Any, Any]:
        """Each touched group over the unified rows; None for one that has none left."""
        silver = self.silver[manifest.generation].read(manifest.silver)
        tail = self.tail(manifest, silver)
        found = summary(self.rules.unified(silver, tail, self.contract))
        return {group: found.get(group) for group in self.rules.touched(silver, tail, self.contract)}

    def publish(self, generation: int | None = None) -> Steps:
        newest, run = self.newest, next(self.tokens)
        generation = newest.generation if generation is None else generation
        silver = self.silver[generation]
        version = silver.version
        settled = self.covered(silver, version)
        yield "looked"
        upto = max(self.last, settled)
        mine = Manifest(newest.number + 1, generation, settled, upto, version, run=run)
        yield "log's end seen"
        for part in self.rules.order():
            yield from self.publish_part(part, newest, mine)

    def publish_part(self, part: str, newest: Manifest, mine: Manifest) -> Steps:
        run = {"run": mine.run}
        if part == "gold":
            built = summary(self.silver[mine.generation].read(mine.silver))
            self.gold.commit(self.gold.version, lambda _: built, None, run)
        elif part == "speed":
            fresh = self.fresh(mine)
            self.speed.commit(self.speed.version, lambda _: fresh, None, run)
        else:
            gold = self.rules.version_of(self.gold, mine.run)
            made = replace(mine, gold=gold, speed=self.rules.version_of(self.speed, mine.run))
            began = self.manifests.version
            yield "manifest began"
            with suppress(Refused):
                self.manifests.commit(began, lambda held: (*held, made), self.rules.manifest_txn(newest, made))
        yield f"{part} written"

    # replay

    def replay(self) -> Steps:
        """Rebuild silver beside from the first load, compare, swap."""
        old = self.silver[self.newest.generation]
        version = old.version
        upto = self.covered(old, version)
        rows = old.read(version)
        self.silver.append(Table(()))
        generation = len(self.silver) - 1
        yield "began beside"
        yield from self.settle(generation, upto // 2)
        yield from self.settle(generation, upto)
        must(plain(self.silver[generation].content) == plain(rows), "replay gives the same")
        yield from self.publish(generation)

    def rollback(self, choice: int) -> Steps:
        """Publish what was published before: never what a replay is still building, or has left unfinished."""
        published = sorted({one.generation for one in self.manifests.content})
        return self.publish(published[choice % len(published)])

    # readers and cleaning

    def reader(self) -> Steps:
        """Pin the newest manifest, and read by it as long as one is let."""
        token, manifest = next(self.tokens), self.newest
        yield "manifest found"
        self.pins[token] = manifest
        try:
            yield "pinned"
            if not self.rules.pinned(manifest, self.oldest):
                return
            self.reading[token] = manifest
            for _ in range(30):
                yield "reading"
        finally:
            self.pins.pop(token, None)
            self.reading.pop(token, None)

    def cleanup(self, keep: int) -> Steps:
        """Say first which manifests are no longer to be pinned, then look who has pinned, then clean."""
        self.oldest = max(self.oldest, self.newest.number - keep + 1)
        oldest = self.oldest
        yield "announced"
        needed = [one for one in self.manifests.content if one.number >= oldest] + list(self.pins.values())
        yield "decided"
        for generation, table in enumerate(list(self.silver)):
            table.vacuum(self.rules.floor([one.silver for one in needed if one.generation == generation]))
            yield "silver cleaned"
        self.gold.vacuum(self.rules.floor([one.gold for one in needed]))
        self.speed.vacuum(self.rules.floor([one.speed for one in needed]))
        yield "cleaned"

    # --- the laws ---

    def check(self) -> None:
        tables = (self.log, self.manifests, self.gold, self.speed, *self.silver)
        state = (*[(table.version, table.oldest) for table in tables], self.acknowledged, tuple(self.reading))
        if state == self.checked:
            return
        self.checked = state
        self.check_log()
        for silver in self.silver:
            self.check_silver(silver)
        self.check_manifests()
        for manifest in (self.newest, *self.reading.values()):
            self.check_answer(manifest)

    def raw(self) -> list[list[Record]]:
        return [[one.record for one in load.records] for load in self.loads]

    def check_log(self) -> None:
        must([load.number for load in self.loads] == list(range(1, len(self.loads) + 1)), "loads are numbered on")
        records = [one.record for load in self.loads if load.batch for one in load.records]
        must(records == self.source[: len(records)], "each offset stands once in the log", records)
        must(self.acknowledged <= len(records), "what is acknowledged is in the log")
        again = [one.record.position for load in self.loads if not load.batch for one in load.records]
        must(len(again) == len(set(again)), "each record is requeued once")
        if self.loads:
            load = self.loads[-1]
            late = [one.record.position for one in load.records if one.late]
            must(late == self.fate(load.number).late, "the log's late ones are the oracle's", load)

    def check_silver(self, silver: Table) -> None:
        upto, rows = self.covered(silver, silver.version), silver.content
        must(plain(rows) == self.truth(upto, upto), "silver is the oracle's", rows)
        totals = [one.metadata["ledger"] for one in silver.commits if "ledger" in one.metadata]
        fates = [self.fate(number) for number in range(1, upto + 1)]
        bad = sum(fate.bad for fate in fates)
        wanted = (bad + sum(fate.good for fate in fates), bad, len(rows))
        told = tuple(sum(total[part] for total in totals) for part in range(3))
        must(told == wanted, "the ledger adds up", totals)

    def check_manifests(self) -> None:
        made = self.manifests.content
        must([one.number for one in made] == list(range(len(made))), "manifests are numbered on")
        for before, after in pairwise(made):
            forward = after.upto >= before.upto
            if after.generation == before.generation:
                forward = forward and after.settled >= before.settled and after.silver >= before.silver
            must(forward, "V and H never go back", before, after)

    def check_answer(self, manifest: Manifest) -> None:
        law = "the newest manifest's answer is the oracle's" if manifest is self.newest else "a pinned answer stays"
        try:
            rows, answer = self.unified(manifest), self.answer(manifest)
        except Gone:
            raise Broken(law, "a version is gone", manifest) from None
        must(plain(rows) == self.truth(manifest.settled, manifest.upto), law, manifest, rows)
        wanted = self.truth(manifest.settled, manifest.upto, gold=True)
        must(answer == wanted, law, manifest, answer, wanted)
        tail = self.tail(manifest, self.silver[manifest.generation].read(manifest.silver))
        fates = [self.fate(number) for number in range(manifest.settled + 1, manifest.upto + 1)]
        due = sum(fate.good - len(fate.late) for fate in fates)
        must(len(tail) == due, "a record stands in one layer", manifest, tail)

    def truth(self, settled: int, upto: int, gold: bool = False) -> Any:
        """The oracle's unified rows, or its gold; the log is append-only, so they are computed once."""
        if (settled, upto) not in self.truths:
            rows = oracle.unified(self.raw(), self.contract, settled, upto)
            self.truths[settled, upto] = plain(rows), summary(rows)
        return self.truths[settled, upto][gold]

    def fate(self, number: int) -> Fate:
        """What the oracle says of a load."""
        if number not in self.fates:
            raw = self.raw()[:number]
            good = sum(oracle.good(record, self.contract) for record in raw[-1])
            self.fates[number] = Fate(good, len(raw[-1]) - good, oracle.late(raw, self.contract, number))
        return self.fates[number]

    def drain(self) -> None:
        """Once nobody disturbs, everything arrives."""
        for steps in (self.stream(2), self.settle(), self.publish()):
            for _ in steps:
                self.check()
        self.check()
        last = self.last_batch()
        must((last.end if last else 0) == len(self.source), "everything arrives", "in the log")
        newest = self.newest
        must(newest.settled == newest.upto == self.last, "everything arrives", "in silver and gold", newest)
