"""Makes the feeds of ACME Auto Dealer, a fictional company of 1,000 people in 20 locations, and keeps the truth.

Every file follows from the arguments alone: same arguments, same bytes. What begins on a day (an order line, a lead, an
appointment) is made together with all its later versions, each of which waits for the file of the day on which it
arrives; so days can be added later (--from-day), and what silver must hold in the end is known.
Rows are numpy columns of codes until they are written. `OUT/_truth` keeps what the pipeline must find; see `Truth`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Frame = dict[str, np.ndarray]  # columns of codes; "_" marks what only the maker knows
Rng = np.random.Generator

DAY = 86_400
CHUNK = 250_000
NEVER = -1_000_000  # a day that is null
FIRST_DAY = 1001  # document numbers begin with their day and have one width, so that they sort as they were given
WEEK = np.array([20, 20, 20, 21, 22, 27, 10])  # twentieths of a usual day, Monday first: busy Saturdays, quiet Sundays
BAD_KINDS = {  # kind: the class of rule that must catch it
    "missing_field": "ragged", "extra_field": "ragged", "malformed_json": "malformed", "invalid_utf8": "encoding",
    "nul_byte": "encoding", "text_in_number": "type", "number_too_large": "type", "impossible_date": "type",
    "negative_quantity": "range", "unknown_location": "values", "wrong_enum": "enum", "missing_key": "required",
}  # fmt: skip

LOCATIONS = [f"L{i:02d}" for i in range(1, 21)]
CITIES = """Aachen Bremen Chemnitz Dresden Erfurt Freiburg Görlitz Hannover Ingolstadt Jena Köln Lübeck München
    Nürnberg Osnabrück Potsdam Rostock Stuttgart Tübingen Würzburg""".split()  # noqa: SIM905
VEHICLES = "BOLT BOLT-E COMET COMET-S DUNE DUNE-X ECHO-E FALCON GALE HARRIER-E IBEX JUNO-E".split()  # noqa: SIM905
PARTS = [f"{part}-{size}" for part in ("BRAKE-PAD", "BATTERY", "FILTER", "TYRE", "WIPER", "LAMP", "CLUTCH", "SHOCK",
         "PUMP", "SENSOR") for size in ("S", "M", "L")]  # fmt: skip
SERVICES = [f"SVC-{job}" for job in ("OIL", "BRAKES", "TYRES", "INSPECTION", "BATTERY", "SOFTWARE", "PAINT", "TOWING")]
MODELS = VEHICLES + PARTS + SERVICES
CATEGORIES = ["vehicle", "part", "service"]
CATEGORY = np.repeat([0, 1, 2], [len(VEHICLES), len(PARTS), len(SERVICES)])
MODEL_WEIGHT = np.repeat([0.08 / len(VEHICLES), 0.57 / len(PARTS), 0.35 / len(SERVICES)], np.bincount(CATEGORY))
LOCATION_WEIGHT = np.linspace(1.6, 0.4, len(LOCATIONS)) / len(LOCATIONS)
QTY_MAX = np.array([1, 8, 1])[CATEGORY]
PRICE = np.concatenate([np.linspace(18e5, 95e5, len(VEHICLES)), np.linspace(900, 90_000, len(PARTS)),
                        np.linspace(6_000, 150_000, len(SERVICES))])  # fmt: skip
ORDER_STATUS = ["open", "confirmed", "delivered", "cancelled"]
STAGES = ["new", "contacted", "test_drive", "won", "lost"]
CHANNELS = ["web", "phone", "walk_in", "fair", "partner"]
CAMPAIGNS = ["spring-drive", "electric-week", "trade-in", "loyalty", "family-days", "fleet"]
SEGMENTS = ["private", "business", "fleet", "vip"]
SUPPLIERS = ["Müller Bremsen GmbH", "Société Générale des Pièces", "Škoda Teile", "Gärtner & Söhne", "Peças São João",
             "Åkerlund Motor AB", "Batterie Français", "Lörrach Reifen", "Núñez Recambios", "Brown Filters Ltd",
             "Überlingen Lacke", "Dvořáček Lampy".replace("ř", "r").replace("č", "c")]  # fmt: skip
EVENTS = ["booked", "arrived", "started", "finished", "cancelled"]
QUEUES = ["etl", "reports", "adhoc", "ml"]
FIRST = "Anna Björn Chloé Dieter Élodie Fatma Günther Hélène Jürgen Katja Luís Marie Noël Olga Paul Zoë".split()  # noqa: SIM905
LAST = "Albrecht Böhm Çelik Dürr Ebert Fischer Groß Hübner Ivanova Jäger Krüger López Meyer Núñez Özdemir".split()  # noqa: SIM905
STREETS = ["Hauptstraße", "Am Markt", "Königsallee", "Bahnhofstraße", "Gartenweg", "Mühlenweg", "Lindenallee"]
TOPICS = {  # topic: what unhappy and what happy customers write; each text names its own topic only
    "brakes": ("The brakes squeal\nand nobody fixed it.", "New brakes, smooth stops."),
    "battery": ('The battery is empty after "just" one cold night.', "The battery lasts all week."),
    "engine": ("The engine stalls at every light.", "The engine is quiet\nand strong."),
    "infotainment": ("The touchscreen freezes, no Bluetooth.", "I like the touchscreen."),
    "delivery": ("Delivery slipped by six weeks;\n\nno call.", 'Delivery on the day, "as promised".'),
    "price": ("The invoice was twice the quote.", "A fair price, no haggling."),
    "staff": ('Rude staff, "come back tomorrow" they said.', "The staff took their time, thank you."),
}
OPENINGS = ["", "Honestly: ", "Second visit. ", "After three months, ", "Well… ", "Für mich: "]


HELP = {
    "days": "how many days",
    "order_lines": "order lines that begin in all these days together (in whole weeks exactly); other feeds follow",
    "seed": "another seed, another company history",
    "start": "the first day",
    "bad_share": "records that no contract lets pass",
    "anomaly_share": "records that pass, but should not be believed",
    "late_share": "records that arrive in the file of a later day",
    "repeat_share": "records that are written twice",
    "from_day": "write only the files of this day (0 is the first) and later. To add days to a folder, keep everything "
    "else and raise --days and --order-lines in proportion: 10 days of 1000 lines in all become 12 of 1200",
}


@dataclass(frozen=True)
class Plan:
    """What is asked for; see HELP."""

    days: int = 14
    order_lines: int = 20_000
    seed: int = 7
    start: date = date(2026, 1, 5)
    bad_share: float = 0.005
    anomaly_share: float = 0.001
    late_share: float = 0.02
    repeat_share: float = 0.01
    from_day: int = 0

    def __post_init__(self) -> None:
        if self.days < 1 or self.order_lines < 0 or self.from_day < 0:
            raise ValueError("days must be 1 or more; order_lines and from_day 0 or more")
        shares = (self.bad_share, self.anomaly_share, self.late_share, self.repeat_share)
        if not all(0 <= share <= 0.5 for share in shares):
            raise ValueError("every share must lie between 0 and 0.5")

    @property
    def first(self) -> int:
        return (self.start - date(1970, 1, 1)).days

    @property
    def daily(self) -> float:
        return self.order_lines / self.days

    def until(self, day: int, per: int) -> int:
        """How many had begun before this day, one for each ``per`` order lines; the same whatever days come later."""
        weights = np.roll(WEEK, -self.start.weekday())
        passed = day // 7 * int(WEEK.sum()) + int(weights[: day % 7].sum())
        return self.order_lines * passed // (20 * self.days * per)

    def count(self, day: int, per: int = 1) -> int:
        return self.until(day + 1, per) - self.until(day, per)

    def accounts(self, day: int) -> int:
        """Customers known at the end of the day."""
        return max(20, self.order_lines // (2 * self.days)) + self.until(day + 1, 50)

    def midnight(self, day: np.ndarray | int) -> np.ndarray | int:
        return (np.int64(self.first) + day) * DAY

    def stamp(self, day: int) -> str:
        return str(np.datetime64(self.first + day, "D")).replace("-", "")

    def rng(self, *what: str | int) -> Rng:
        """Randomness of its own for each use, so that one feed or day never shifts another."""
        return np.random.default_rng([self.seed, *(zlib.crc32(str(part).encode()) for part in what)])


@dataclass
class Tally:
    """Records of a file or feed, headers left out: records = good + repeats + all bad. Late and odd ones are good."""

    records: int = 0
    good: int = 0
    repeats: int = 0
    late: int = 0
    anomalies: int = 0
    bad: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        for name in ("records", "good", "repeats", "late", "anomalies"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.bad = dict(sorted((Counter(self.bad) + Counter(other.bad)).items()))


@dataclass
class FeedTruth:
    """One feed: where it is, its files in order, their sum, and how many rows silver must have in the end."""

    folder: str
    history: str
    files: dict[str, Tally] = field(default_factory=dict)
    total: Tally = field(default_factory=Tally)
    silver_rows: int = 0


@dataclass
class Truth:
    """What is in OUT/_truth: truth.json, silver/<feed>.parquet, anomalies/<feed>.parquet, gold/<table>.parquet."""

    out: Path
    plan: dict[str, object]
    feeds: dict[str, FeedTruth]
    bad_kinds: dict[str, str] = field(default_factory=lambda: dict(BAD_KINDS))

    def table(self, kind: str, name: str) -> pa.Table:
        """``kind`` is silver, anomalies or gold."""
        return pq.read_table(self.out / "_truth" / kind / f"{name}.parquet")

    def save(self) -> None:
        body = {"plan": self.plan, "bad_kinds": self.bad_kinds, "feeds": {k: asdict(v) for k, v in self.feeds.items()}}
        _replace(self.out / "_truth" / "truth.json", [json.dumps(body, indent=1, default=str, sort_keys=True).encode()])


# Columns: codes to Arrow, Arrow to text ------------------------------------------------------------------------------


def pick(frame: Frame, rows: np.ndarray) -> Frame:
    return {name: values[rows] for name, values in frame.items()}


def stack(frames: list[Frame]) -> Frame:
    return {name: np.concatenate([frame[name] for frame in frames]) for name in frames[0]}


def coded(codes: np.ndarray, values: list[str]) -> pa.Array:
    """A code below zero is null."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=codes < 0), pa.array(values))


def words(codes: np.ndarray, values: list[str]) -> pa.Array:
    return coded(codes, values).cast(pa.string())


def glue(*parts: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def ident(prefix: str, numbers: np.ndarray) -> pa.Array:
    return glue(prefix, pc.cast(pa.array(numbers.astype(np.int64), mask=numbers < 0), pa.string()))


def money(cents: np.ndarray, precision: int = 12) -> pa.Array:
    words = np.empty((len(cents), 2), np.int64)
    words[:, 0], words[:, 1] = cents, cents >> 63
    return pa.Array.from_buffers(pa.decimal128(precision, 2), len(cents), [None, pa.py_buffer(words)])


def whole(numbers: np.ndarray) -> pa.Array:
    return pa.array(numbers.astype(np.int64))


def moment(seconds: np.ndarray) -> pa.Array:
    return pa.array(seconds.astype(np.int64)).cast(pa.timestamp("s"))


def dates(days: np.ndarray) -> pa.Array:
    return pa.array(days.astype(np.int32), mask=days == NEVER).cast(pa.date32())


def text(column: pa.Array, date_format: str, encoding: str) -> pa.Array:
    """The column as bytes, before quoting."""
    if pa.types.is_date(column.type):  # few different ones: format each once
        column = pc.dictionary_encode(column)
        values = [value.strftime(date_format) for value in column.dictionary.to_pylist()]
        column = pa.DictionaryArray.from_arrays(column.indices, pa.array(values, pa.string()))
    if pa.types.is_dictionary(column.type):
        values = pa.array([value.encode(encoding) for value in column.dictionary.to_pylist()], pa.binary())
        return values.take(column.indices)
    return pc.cast(pc.cast(column, pa.string()), pa.binary())


def spoil(column: pa.Array, bad: np.ndarray, value: object) -> pa.Array:
    return pc.if_else(pa.array(bad), pa.scalar(value, column.type), column)


def content(lines: pa.Array) -> memoryview:
    """The bytes of all values, one behind the other: Arrow already holds the file as it is to be."""
    end = np.frombuffer(lines.buffers()[1], np.int32)[len(lines)]
    return memoryview(lines.buffers()[2])[:end] if end else memoryview(b"")


def _replace(path: Path, blocks: list[bytes] | Iterator[bytes | memoryview]) -> None:
    """A reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        for block in blocks:
            file.write(block)
    part.replace(path)


# Feeds ---------------------------------------------------------------------------------------------------------------


class Feed:
    """A feed: what begins on a day, how it looks as columns, how a bad row is broken, how the file is written."""

    name: str
    folder: str
    stem: str
    history = "latest"
    suffix = ".csv"
    delimiter = ","
    upper = False
    null = b""
    date_format = "%Y-%m-%d"
    encoding = "utf-8"
    keys: tuple[str, ...]
    own: tuple[str, int]  # the column that gives bad rows keys of their own, and from where on
    anomalies: tuple[str, ...] = ()
    breaks: tuple[tuple[str, str, object], ...]  # kind, column, and what stands there instead

    def __init__(self, plan: Plan, out: Path) -> None:
        self.plan, self.out = plan, out
        self.truth = FeedTruth(self.folder, self.history)
        self.waiting: dict[int, list[Frame]] = {}
        self.found: list[pa.Table] = []
        self.silver: pq.ParquetWriter | None = None

    def create(self, day: int, rng: Rng) -> Frame:
        """All versions, oldest first, of what begins on this day, with _entity and the day on which each _arrives."""
        raise NotImplementedError

    def columns(self, frame: Frame) -> dict[str, pa.Array]:
        raise NotImplementedError

    def files(self, day: int, frame: Frame) -> Iterator[tuple[str, np.ndarray | slice]]:
        yield f"{self.stem}_{self.plan.stamp(day)}{self.suffix}", slice(None)

    def gold(self, frame: Frame) -> None:
        """Room for a feed to add up what gold must hold."""

    def run(self, day: int) -> None:
        made = self._versions(day)
        self._remember(made)
        for arrives in np.unique(made["_arrives"]):
            if arrives < self.plan.days:
                self.waiting.setdefault(int(arrives), []).append(pick(made, made["_arrives"] == arrives))
        today = stack(self.waiting.pop(day, [pick(made, slice(0))]))
        self._deliver(day, *self._with_repeats_and_bad(day, today))

    def finish(self) -> None:
        if self.silver:
            self.silver.close()
        if self.found:
            _parquet(self.out / "_truth" / "anomalies" / f"{self.name}.parquet", pa.concat_tables(self.found))

    def _versions(self, day: int) -> Frame:
        rng = self.plan.rng(self.name, day, "make")
        made = self.create(day, rng)
        size = len(made["_arrives"])
        for flag in ("_late", "_fixed", "_repeat", "_anomaly"):
            made.setdefault(flag, np.zeros(size, np.int8))
        if self.history == "latest":
            return made
        again = pick(made, rng.random(size) < self.plan.repeat_share / 2)
        again["_arrives"] = again["_arrives"] + rng.integers(1, 4, len(again["_arrives"]))
        again["_repeat"] = np.ones(len(again["_arrives"]), np.int8)
        return stack([made, again])

    def _remember(self, made: Frame) -> None:
        """What silver must hold of these in the end, and which of them are anomalies."""
        seen = pick(made, (made["_arrives"] < self.plan.days) & (made["_repeat"] == 0))
        kept = self._kept(seen)
        self._write_silver(self.table(kept))
        self.gold(kept)
        odd = pick(kept, kept["_anomaly"] > 0)
        if self.anomalies:
            kinds = words(odd["_anomaly"] - 1, list(self.anomalies))
            self.found.append(self.table(odd).select(self.keys).append_column("kind", kinds))

    def _kept(self, seen: Frame) -> Frame:
        if self.history != "latest":
            return seen
        newest = np.full(int(seen["_entity"].max(initial=-1)) + 1, -1)
        newest[seen["_entity"]] = np.arange(len(seen["_entity"]))  # oldest first, so the newest stays
        return pick(seen, newest[newest >= 0])

    def table(self, frame: Frame) -> pa.Table:
        """As silver has it."""
        table = pa.table(self.columns(frame))
        return table.cast(pa.schema([(name, _silver_type(table[name].type)) for name in table.column_names]))

    def _write_silver(self, table: pa.Table) -> None:
        if self.silver is None:
            path = self.out / "_truth" / "silver" / f"{self.name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            self.silver = pq.ParquetWriter(path, table.schema, store_schema=False)
        self.truth.silver_rows += len(table)
        self.silver.write_table(table)

    def _with_repeats_and_bad(self, day: int, today: Frame) -> tuple[Frame, np.ndarray]:
        """The day's records in no order, and for each the kind of break or -1."""
        plan, rng, size = self.plan, self.plan.rng(self.name, day, "deliver"), len(today["_arrives"])
        share = plan.repeat_share if self.history == "latest" else plan.repeat_share / 2
        free = np.flatnonzero((today["_fixed"] == 0) & (today["_repeat"] == 0))
        again = free[rng.random(len(free)) < share]
        bad = rng.integers(0, max(size, 1), rng.binomial(size, plan.bad_share))
        order = rng.permutation(size + len(again) + len(bad))
        rows = np.concatenate([np.arange(size), again, bad])[order]
        kind = np.concatenate([np.full(size + len(again), -1), rng.integers(0, len(self.breaks), len(bad))])[order]
        frame = pick(today, rows)
        frame["_repeat"] = np.where(order < size, frame["_repeat"], 1).astype(np.int8)
        column, start = self.own
        frame[column] = frame[column].astype(np.int64)
        frame[column][kind >= 0] += start + np.arange(len(bad))
        return frame, kind

    def _deliver(self, day: int, frame: Frame, kind: np.ndarray) -> None:
        for name, rows in self.files(day, frame):
            part, broken = pick(frame, rows), kind[rows]
            tally = self._tally(part, broken)
            self.truth.files[f"{self.folder}/{name}"] = tally
            self.truth.total.add(tally)
            if day >= self.plan.from_day:
                self.write(self.out / self.folder / name, part, broken)

    def _tally(self, frame: Frame, kind: np.ndarray) -> Tally:
        fine = kind < 0
        good = fine & (frame["_repeat"] == 0)
        counts = np.bincount(kind[~fine], minlength=len(self.breaks))
        bad = {kind[0]: int(count) for kind, count in zip(self.breaks, counts, strict=True) if count}
        late, odd = (int((good & (frame[flag] > 0)).sum()) for flag in ("_late", "_anomaly"))
        return Tally(len(kind), int(good.sum()), int(fine.sum() - good.sum()), late, odd, bad)

    def write(self, path: Path, frame: Frame, kind: np.ndarray) -> None:
        starts = range(0, max(len(kind), 1), CHUNK)
        with ThreadPoolExecutor(2) as pool:
            blocks = pool.map(lambda at: self._lines(pick(frame, slice(at, at + CHUNK)), kind[at : at + CHUNK]), starts)
            if path.suffix == ".gz":
                _replace(path, [gzip.compress(b"".join([self.header(frame), *blocks]), mtime=0)])
            else:
                _replace(path, (block for part in ([self.header(frame)], blocks) for block in part))

    def header(self, frame: Frame) -> bytes:
        names = self.delimiter.join(self.columns(pick(frame, slice(0))))
        return ((names.upper() if self.upper else names) + "\n").encode()

    def _lines(self, frame: Frame, kind: np.ndarray) -> memoryview:
        columns = {name: self.cell(name, column) for name, column in self.columns(frame).items()}
        for code, (_, name, value) in enumerate(self.breaks):
            if (bad := kind == code).any():
                columns[name] = spoil(columns[name], bad, value)
        return content(self.join(list(columns.values())))

    def cell(self, name: str, column: pa.Array) -> pa.Array:
        return pc.fill_null(text(column, self.date_format, self.encoding), self.null)

    def join(self, cells: list[pa.Array]) -> pa.Array:
        cells[-1] = pc.binary_join_element_wise(cells[-1], b"", b"\n")
        return pc.binary_join_element_wise(*cells, self.delimiter.encode(), null_handling="skip")


class JsonFeed(Feed):
    suffix = ".jsonl"
    null = b"null"

    def header(self, frame: Frame) -> bytes:
        return b""

    def cell(self, name: str, column: pa.Array) -> pa.Array:
        cells = text(column, self.date_format, self.encoding)
        if pa.types.is_timestamp(column.type):
            cells = pc.binary_join_element_wise(pc.replace_substring(cells, b" ", b"T"), b"Z", b"")
        if not pa.types.is_boolean(column.type):
            cells = pc.binary_join_element_wise(b'"', cells, b'"', b"")
        return pc.binary_join_element_wise(f'"{name}":'.encode(), pc.fill_null(cells, self.null), b"")

    def join(self, cells: list[pa.Array]) -> pa.Array:
        return pc.binary_join_element_wise(b"{", pc.binary_join_element_wise(*cells, b","), b"}\n", b"")


def _silver_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC")
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, store_schema=False)


def choose(rng: Rng, weights: np.ndarray, size: int) -> np.ndarray:
    """Codes by weight, through a table of 4,096: much faster than Generator.choice."""
    shares = np.rint(np.cumsum(weights) / np.sum(weights) * 4096).astype(int)
    lookup = np.repeat(np.arange(len(weights), dtype=np.int16), np.diff(shares, prepend=0))
    return lookup[rng.integers(0, 4096, size, dtype=np.int16)]


class Orders(Feed):
    name, folder, stem = "orders", "sap_orders", "orders"
    delimiter, upper, date_format = ";", True, "%Y%m%d"
    keys, own = ("order_id", "line"), ("order", 50_000_000)
    anomalies = ("price_x20", "units_300", "discount_95")
    breaks = (
        ("missing_field", "location", None),
        ("extra_field", "sales_rep", b"E0001;surplus"),
        ("text_in_number", "qty", b"two"),
        ("number_too_large", "unit_price", b"123456789012345678901.00"),
        ("impossible_date", "order_date", b"20260230"),
        ("negative_quantity", "qty", b"-3"),
        ("unknown_location", "location", b"L99"),
        ("missing_key", "order_id", b""),
        ("invalid_utf8", "customer_id", b"C1\xff\xfe0001"),
        ("nul_byte", "customer_id", b"C1\x000001"),
        ("wrong_enum", "status", b"teleported"),
    )

    def __init__(self, plan: Plan, out: Path) -> None:
        super().__init__(plan, out)
        self.sales: list[pa.Table] = []

    def create(self, day: int, rng: Rng) -> Frame:
        plan = self.plan
        base = self._lines_of(day, rng)
        size = len(base["order"])
        draw = rng.random(size)
        late = np.flatnonzero(draw < plan.late_share)
        flags = {flag: np.zeros(len(late), np.int8) for flag in ("_late", "_fixed")}
        moved = np.flatnonzero((draw >= plan.late_share) & (draw < plan.late_share + 0.1))
        wait = rng.integers(1, 6, len(moved), dtype=np.int16)
        # Of the late ones, the first change arrives in the file after that of the second.
        first = self._change(base, late, rng, day + 1, 7) | {name: flag + np.int8(1) for name, flag in flags.items()}
        second = self._change(first, slice(None), rng, day + 1, 15) | flags
        first["_arrives"] = first["_arrives"] + np.int16(1)
        return stack([base, first, self._change(base, moved, rng, day + wait, 9), second])

    def _lines_of(self, day: int, rng: Rng) -> Frame:
        plan, size = self.plan, self.plan.count(day)
        starts = rng.random(size) < 0.6
        starts[:1] = True
        number = np.cumsum(starts) - 1
        orders = int(number[-1]) + 1 if size else 0
        location = choose(rng, LOCATION_WEIGHT, orders)
        rep = location * np.int16(50) + rng.integers(1, 16, orders, dtype=np.int16)
        model = choose(rng, MODEL_WEIGHT, size)
        at = np.arange(size)
        frame = {
            "order": (FIRST_DAY + day) * 100_000_000 + number,
            "line": (at - np.maximum.accumulate(np.where(starts, at, 0)) + 1).astype(np.int16),
            "date": np.full(size, plan.first + day, np.int32),
            "changed": (plan.midnight(day) + rng.integers(7 * 3600, 20 * 3600, orders))[number],
            "location": location[number],
            "customer": rng.integers(0, plan.accounts(day), orders)[number],
            "model": model,
            "qty": (1 + rng.integers(0, 840, size, dtype=np.int16) % QTY_MAX[model]).astype(np.int32),
            "price": (PRICE[model] * rng.uniform(0.9, 1.1, size)).astype(np.int64),
            "discount": rng.integers(0, 31, size, dtype=np.int16) * np.int16(50),
            "status": choose(rng, np.array([6, 3, 1]), size).astype(np.int8),
            "rep": rep[number],
            "_entity": at,
            "_arrives": np.full(size, day, np.int16),
            "_late": np.zeros(size, np.int8),
            "_fixed": np.zeros(size, np.int8),
            "_repeat": np.zeros(size, np.int8),
        }
        return frame | self._anomalies(frame, rng)

    def _anomalies(self, frame: Frame, rng: Rng) -> Frame:
        size = len(frame["order"])
        odd = np.where(rng.random(size) < self.plan.anomaly_share, rng.integers(1, 4, size, dtype=np.int8), 0)
        price = np.where(odd == 1, frame["price"] * 20, frame["price"])
        qty = np.where(odd == 2, 300, frame["qty"]).astype(np.int32)
        discount = np.where(odd == 3, 9_500, frame["discount"]).astype(np.int16)
        return {"price": price, "qty": qty, "discount": discount, "_anomaly": odd.astype(np.int8)}

    def _change(self, base: Frame, rows: np.ndarray | slice, rng: Rng, day: np.ndarray | int, hour: int) -> Frame:
        frame = pick(base, rows)
        size = len(frame["order"])
        frame["changed"] = self.plan.midnight(day) + rng.integers(hour * 3600, (hour + 6) * 3600, size)
        frame["status"] = (1 + choose(rng, np.array([3, 5, 2]), size)).astype(np.int8)
        frame["_arrives"] = np.broadcast_to(np.asarray(day, np.int16), size)
        return frame

    def columns(self, frame: Frame) -> dict[str, pa.Array]:
        return {
            "order_id": ident("SO", frame["order"]),
            "line": whole(frame["line"]),
            "order_date": dates(frame["date"]),
            "changed_at": moment(frame["changed"]),
            "location": coded(frame["location"], LOCATIONS),
            "customer_id": ident("C", 10_000_000 + frame["customer"]),
            "model": coded(frame["model"], MODELS),
            "category": coded(CATEGORY[frame["model"]], CATEGORIES),
            "qty": whole(frame["qty"]),
            "unit_price": money(frame["price"]),
            "discount": money(frame["discount"], 5),
            "currency": coded(np.zeros(len(frame["order"]), np.int32), ["EUR"]),
            "status": coded(frame["status"], ORDER_STATUS),
            "sales_rep": coded(frame["rep"] - 1, EMPLOYEES),
        }

    def gold(self, frame: Frame) -> None:
        """daily_sales: an order line keeps its date, so a day's sales are known when its lines are."""
        sold = pick(frame, frame["status"] != ORDER_STATUS.index("cancelled"))
        worth = sold["qty"] * sold["price"] * (10_000 - sold["discount"].astype(np.int64))
        lines = pa.table({"day": sold["date"], "location": sold["location"], "model": sold["model"],
                          "order": sold["order"], "qty": sold["qty"].astype(np.int64), "worth": worth})  # fmt: skip
        wanted = [("order", "count_distinct"), ("order", "count"), ("qty", "sum"), ("worth", "sum")]
        self.sales.append(lines.group_by(["day", "location", "model"], use_threads=False).aggregate(wanted))

    def finish(self) -> None:
        super().finish()
        columns = pa.concat_tables(self.sales).columns
        sums = {name: column.to_numpy() for name, column in zip(SUMS, columns, strict=True)}
        cents = (sums["worth"] + 5_000) // 10_000
        table = {"day": dates(sums["day"]), "location": coded(sums["location"], LOCATIONS),
                 "model": coded(sums["model"], MODELS), "orders": whole(sums["orders"]), "lines": whole(sums["lines"]),
                 "units": whole(sums["units"]), "revenue": money(cents, 18)}  # fmt: skip
        _parquet(self.out / "_truth" / "gold" / "daily_sales.parquet", pa.table(table))


EMPLOYEES = [f"E{number:04d}" for number in range(1, 1001)]
SUMS = ("day", "location", "model", "orders", "lines", "units", "worth")
STOCKED = len(VEHICLES) + len(PARTS)


class Stock(Feed):
    """A random walk of what each location holds, written by location."""

    name, folder, stem, suffix = "stock", "sap_stock", "stock", ".csv.gz"
    upper = True
    keys, own = ("location", "model", "snapshot_date"), ("date", -10_000)
    anomalies = ("stock_jump",)
    breaks = (
        ("missing_field", "location", None),
        ("extra_field", "in_transit", b"0,0"),
        ("text_in_number", "on_hand", b"many"),
        ("number_too_large", "on_hand", b"99999999999999999999"),
        ("impossible_date", "snapshot_date", b"2026-02-30"),
        ("negative_quantity", "on_hand", b"-7"),
        ("unknown_location", "location", b"L99"),
        ("missing_key", "model", b""),
        ("invalid_utf8", "model", b"BO\xff\xfeT"),
        ("nul_byte", "model", b"BO\x00T"),
    )

    def __init__(self, plan: Plan, out: Path) -> None:
        super().__init__(plan, out)
        sold = np.outer(LOCATION_WEIGHT, (MODEL_WEIGHT * (QTY_MAX + 1) / 2)[:STOCKED]).ravel()
        self.demand = np.maximum(0.05, plan.daily * sold)
        self.held = (self.demand * plan.rng("stock").uniform(10, 40, len(sold))).astype(np.int64) + 2
        self.coming = np.zeros(len(sold), np.int64)

    def create(self, day: int, rng: Rng) -> Frame:
        size = len(self.held)
        landed = np.where(rng.random(size) < 0.3, self.coming, 0)
        self.held = np.maximum(0, self.held + landed - rng.poisson(self.demand))
        low = (self.held < 10 * self.demand) & (self.coming == landed)
        self.coming = self.coming - landed + np.where(low, np.ceil(25 * self.demand), 0).astype(np.int64)
        odd = (rng.random(size) < self.plan.anomaly_share).astype(np.int8)
        return {
            "place": np.repeat(np.arange(len(LOCATIONS)), STOCKED),
            "model": np.tile(np.arange(STOCKED), len(LOCATIONS)),
            "date": np.full(size, self.plan.first + day),
            "held": np.where(odd, (self.held + 10) * 50, self.held),
            "reserved": rng.binomial(self.held, 0.1),
            "coming": self.coming,
            "_entity": np.arange(size),
            "_arrives": np.full(size, day),
            "_anomaly": odd,
        }

    def columns(self, frame: Frame) -> dict[str, pa.Array]:
        return {
            "location": coded(frame["place"], LOCATIONS),
            "model": coded(frame["model"], MODELS),
            "snapshot_date": dates(frame["date"]),
            "on_hand": whole(frame["held"]),
            "reserved": whole(frame["reserved"]),
            "in_transit": whole(frame["coming"]),
        }

    def files(self, day: int, frame: Frame) -> Iterator[tuple[str, np.ndarray]]:
        for place, location in enumerate(LOCATIONS):
            yield f"{location}/{self.stem}_{self.plan.stamp(day)}{self.suffix}", frame["place"] == place


class Procurement(Feed):
    """Purchase order lines: ordered, later delivered. A German SAP: windows-1252 and day.month.year."""

    name, folder, stem = "procurement", "sap_procurement", "purchases"
    delimiter, upper, date_format, encoding = ";", True, "%d.%m.%Y", "windows-1252"
    keys, own = ("po_id", "line"), ("po", 500_000)
    anomalies = ("cost_x20", "rejected_all")
    breaks = (
        ("missing_field", "supplier_id", None),
        ("extra_field", "changed_at", b"2026-01-05 08:00:00;surplus"),
        ("text_in_number", "qty_ordered", b"viele"),
        ("number_too_large", "unit_cost", b"123456789012345678901.00"),
        ("impossible_date", "ordered_at", b"30.02.2026"),
        ("negative_quantity", "qty_ordered", b"-10"),
        ("missing_key", "po_id", b""),
        ("invalid_utf8", "supplier_id", b"V\x81\x8d01"),
        ("nul_byte", "supplier_id", b"V\x0001"),
    )

    def create(self, day: int, rng: Rng) -> Frame:
        plan, size = self.plan, self.plan.count(day, 20)
        at, supplier = np.arange(size), rng.integers(0, len(SUPPLIERS), size)
        model = rng.integers(len(VEHICLES), STOCKED, size)
        odd = np.where(rng.random(size) < plan.anomaly_share, rng.integers(1, 3, size), 0)
        cost = (PRICE[model] * rng.uniform(0.5, 0.7, size)).astype(np.int64) * np.where(odd == 1, 20, 1)
        promised = day + rng.integers(1, 8, size)
        ordered = {
            "po": (FIRST_DAY + day) * 1_000_000 + at // 3, "line": at % 3 + 1, "supplier": supplier, "model": model,
            "ordered": np.full(size, plan.first + day), "promised": plan.first + promised,
            "delivered": np.full(size, NEVER), "wanted": rng.integers(1, 40, size) * 5, "received": np.zeros(size, int),
            "rejected": np.zeros(size, int), "cost": cost, "changed": self._clock(np.full(size, day), rng),
            "_entity": at, "_arrives": np.full(size, day), "_anomaly": odd.astype(np.int8),
        }  # fmt: skip
        came = np.maximum(day + 1, promised + rng.integers(-2, 3, size) + supplier % 4)
        some = rng.random(size) < 0.9
        wanted = ordered["wanted"]
        received = np.where(rng.random(size) < 0.1, wanted * 4 // 5, wanted)
        rejected = np.where(odd == 2, received, rng.binomial(received, 0.01 * (1 + supplier % 5)))
        arrival = {"delivered": plan.first + came, "received": received, "rejected": rejected,
                   "changed": self._clock(came, rng), "_arrives": came}  # fmt: skip
        return stack([ordered, pick(ordered | arrival, some)])

    def _clock(self, day: np.ndarray, rng: Rng) -> np.ndarray:
        return self.plan.midnight(day) + rng.integers(6 * 3600, 18 * 3600, len(day))

    def columns(self, frame: Frame) -> dict[str, pa.Array]:
        return {
            "po_id": ident("PO", frame["po"]),
            "line": whole(frame["line"]),
            "supplier_id": coded(frame["supplier"], [f"V{100 + i}" for i in range(len(SUPPLIERS))]),
            "supplier": coded(frame["supplier"], SUPPLIERS),
            "model": coded(frame["model"], MODELS),
            "ordered_at": dates(frame["ordered"]),
            "promised_at": dates(frame["promised"]),
            "delivered_at": dates(frame["delivered"]),
            "qty_ordered": whole(frame["wanted"]),
            "qty_received": whole(frame["received"]),
            "qty_rejected": whole(frame["rejected"]),
            "unit_cost": money(frame["cost"]),
            "changed_at": moment(frame["changed"]),
        }


class Accounts(JsonFeed):
    """Customers with every change of address, e-mail, phone, segment and consent."""

    name, folder, stem, history = "accounts", "crm_accounts", "accounts", "scd2"
    keys, own = ("account_id", "updated_at"), ("account", 50_000_000)
    breaks = (
        ("malformed_json", "updated_at", b'"updated_at":"2026-01-05T0'),
        ("invalid_utf8", "account_id", b'"account_id":"C1\xff\xfe001"'),
        ("nul_byte", "account_id", b'"account_id":"C1\x00001"'),
        ("impossible_date", "birth_date", b'"birth_date":"1980-02-30"'),
        ("unknown_location", "location", b'"location":"L99"'),
        ("missing_key", "account_id", b'"account_id":null'),
        ("wrong_enum", "segment", b'"segment":"martian"'),
    )

    def __init__(self, plan: Plan, out: Path) -> None:
        super().__init__(plan, out)
        self.now: Frame = {}
        self.due = np.zeros(0, int)  # a late change is followed by one that overtakes it
        self.every: list[pa.Table] = []

    def create(self, day: int, rng: Rng) -> Frame:
        known = len(self.now["account"]) if self.now else 0
        changed = np.union1d(np.flatnonzero(rng.random(known) < 0.01), self.due)
        self._change(changed, rng)
        fresh = self._fresh(np.arange(known, self.plan.accounts(day)), rng)
        self.now = stack([self.now, fresh]) if self.now else fresh
        late = np.setdiff1d(changed[rng.random(len(changed)) < self.plan.late_share], self.due)
        rows = np.concatenate([changed, np.arange(known, len(self.now["account"]))])
        made = pick(self.now, rows)
        made["updated"] = self.plan.midnight(day) + rng.integers(6 * 3600, 22 * 3600, len(rows))
        is_late = np.isin(rows, late)
        self.due = late
        return made | {"_entity": rows, "_late": is_late.astype(np.int8), "_arrives": day + 2 * is_late}

    def _fresh(self, account: np.ndarray, rng: Rng) -> Frame:
        size = len(account)
        segment = choose(rng, np.array([80, 14, 4, 2]), size).astype(np.int64)
        born = rng.integers(-9_000, 13_000, size)
        company = np.isin(segment, (1, 2))
        return {
            "account": account, "first": rng.integers(0, len(FIRST), size), "last": rng.integers(0, len(LAST), size),
            "mail": np.zeros(size, int), "phone": rng.integers(10**6, 10**7, size),
            "street": rng.integers(0, len(STREETS), size), "house": rng.integers(1, 200, size),
            "born": np.where(company, NEVER, born), "place": choose(rng, LOCATION_WEIGHT, size).astype(np.int64),
            "segment": segment, "out": np.zeros(size, int),
        }  # fmt: skip

    def _change(self, rows: np.ndarray, rng: Rng) -> None:
        """One thing changes; who has opted out stays out and changes the segment instead."""
        if not len(rows):
            return
        what = rng.integers(0, 5, len(rows))
        leave = (what == 4) & (self.now["out"][rows] == 0)
        self.now["house"][rows[what == 0]] += 1
        self.now["mail"][rows[what == 1]] += 1
        self.now["phone"][rows[what == 2]] += 1
        other = rows[(what >= 3) & ~leave]
        self.now["segment"][other] = (self.now["segment"][other] + 1) % len(SEGMENTS)
        self.now["out"][rows[leave]] = 1

    def columns(self, frame: Frame) -> dict[str, pa.Array]:
        account = 10_000_000 + frame["account"]
        first, last = (words(frame[part], names) for part, names in (("first", FIRST), ("last", LAST)))
        street, city = words(frame["street"], STREETS), words(frame["place"], CITIES)
        return {
            "account_id": ident("C", account),
            "name": glue(first, " ", last),
            "email": glue(ident("c", account), ident(".", frame["mail"]), "@example.com"),
            "phone": ident("+49 30 ", frame["phone"]),
            "address": glue(street, ident(" ", frame["house"]), ", ", city),
            "birth_date": dates(frame["born"]),
            "location": coded(frame["place"], LOCATIONS),
            "segment": coded(frame["segment"], SEGMENTS),
            "opted_out": pa.array(frame["out"] == 1),
            "updated_at": moment(frame["updated"]),
        }

    def _write_silver(self, table: pa.Table) -> None:
        self.every.append(table)

    def finish(self) -> None:
        """A version is valid until the next one, in whatever order they arrived."""
        table = pa.concat_tables(self.every).sort_by([(key, "ascending") for key in self.keys]).combine_chunks()
        account, updated = (table[key].combine_chunks() for key in self.keys)
        follows = pa.concat_arrays([pc.equal(account[:-1], account[1:]), pa.array([False])])
        later = pa.concat_arrays([updated[1:], pa.nulls(1, updated.type)])
        table = table.append_column("valid_from", updated)
        table = table.append_column("valid_to", pc.if_else(follows, later, pa.scalar(None, later.type)))
        super()._write_silver(table.append_column("is_current", pc.invert(follows)))
        super().finish()


class Leads(Feed):
    """Leads on their way from new to won or lost; null is written as "unknown"."""

    name, folder, stem = "leads", "crm_leads", "leads"
    delimiter, null = "|", b"unknown"
    keys, own = ("lead_id",), ("lead", 50_000_000)
    breaks = (
        ("missing_field", "location", None),
        ("extra_field", "updated_at", b"2026-01-05 08:00:00|surplus"),
        ("impossible_date", "created_at", b"2026-02-30 10:00:00"),
        ("unknown_location", "location", b"L99"),
        ("missing_key", "lead_id", b"unknown"),
        ("invalid_utf8", "lead_id", b"LD1\xff\xfe1"),
        ("nul_byte", "lead_id", b"LD1\x001"),
        ("wrong_enum", "stage", b"daydreaming"),
    )

    def __init__(self, plan: Plan, out: Path) -> None:
        super().__init__(plan, out)
        self.stages: Counter[tuple[int, int]] = Counter()

    def create(self, day: int, rng: Rng) -> Frame:
        size = self.plan.count(day, 10)
        new = self._new(day, size, rng)
        called = rng.random(size) < 0.8
        drove = called & (rng.random(size) < 0.5)
        ended = called & (rng.random(size) < 0.85)
        won = rng.random(size) < np.where(drove, 0.45, 0.1)
        days = day + np.cumsum(rng.integers(1, 3, (3, size)), axis=0)
        late = drove & (rng.random(size) < self.plan.late_share)  # the call arrives after the test drive
        contacted = self._stage(new, 1, days[0], rng) | {"_arrives": np.where(late, days[1] + 1, days[0])}
        contacted |= {"_late": late.astype(np.int8), "_fixed": late.astype(np.int8)}
        final = self._stage(new, np.where(won, 3, 4), days[2], rng)
        drive = self._stage(new, 2, days[1], rng)
        return stack([new, pick(contacted, called), pick(drive, drove), pick(final, ended)])

    def _new(self, day: int, size: int, rng: Rng) -> Frame:
        created = self.plan.midnight(day) + rng.integers(0, DAY - 60, size)
        known = rng.random(size) < 0.4
        return {
            "lead": (FIRST_DAY + day) * 100_000_000 + np.arange(size),
            "account": np.where(known, 10_000_000 + rng.integers(0, self.plan.accounts(day), size), -1),
            "first": rng.integers(0, len(FIRST), size), "last": rng.integers(0, len(LAST), size),
            "phone": np.where(rng.random(size) < 0.7, rng.integers(10**6, 10**7, size), -1),
            "campaign": rng.integers(-1, len(CAMPAIGNS), size), "channel": rng.integers(0, len(CHANNELS), size),
            "place": choose(rng, LOCATION_WEIGHT, size), "model": rng.integers(-1, len(VEHICLES), size),
            "created": created, "stage": np.zeros(size, int), "updated": created, "_entity": np.arange(size),
            "_arrives": np.full(size, day), "_late": np.zeros(size, np.int8), "_fixed": np.zeros(size, np.int8),
        }  # fmt: skip

    def _stage(self, new: Frame, stage: np.ndarray | int, day: np.ndarray, rng: Rng) -> Frame:
        size = len(day)
        updated = self.plan.midnight(day) + rng.integers(8 * 3600, 19 * 3600, size)
        return new | {"stage": np.broadcast_to(stage, size), "updated": updated, "_arrives": day}

    def columns(self, frame: Frame) -> dict[str, pa.Array]:
        first, last = (words(frame[part], names) for part, names in (("first", FIRST), ("last", LAST)))
        return {
            "lead_id": ident("LD", frame["lead"]),
            "account_id": ident("C", frame["account"]),
            "name": glue(first, " ", last),
            "email": glue(ident("lead", frame["lead"]), "@example.org"),
            "phone": ident("+49 171 ", frame["phone"]),
            "campaign": coded(frame["campaign"], CAMPAIGNS),
            "channel": coded(frame["channel"], CHANNELS),
            "location": coded(frame["place"], LOCATIONS),
            "model": coded(frame["model"], VEHICLES),
            "created_at": moment(frame["created"]),
            "stage": coded(frame["stage"], STAGES),
            "updated_at": moment(frame["updated"]),
        }

    def gold(self, frame: Frame) -> None:
        self.stages.update(zip(frame["campaign"].tolist(), frame["stage"].tolist(), strict=True))

    def finish(self) -> None:
        """lead_conversion, without its shares."""
        super().finish()
        rows = []
        for code in sorted({campaign for campaign, _ in self.stages}):
            counts = {stage: self.stages[code, at] for at, stage in enumerate(STAGES)}
            name = CAMPAIGNS[code] if code >= 0 else "(none)"
            rows.append({"campaign": name, "leads": sum(counts.values()), "won": counts["won"], "lost": counts["lost"]})
        schema = pa.schema([("campaign", pa.string()), *((name, pa.int64()) for name in ("leads", "won", "lost"))])
        table = pa.Table.from_pylist(rows, schema)
        _parquet(self.out / "_truth" / "gold" / "lead_conversion.parquet", table)


class Reviews(Feed):
    """Free text, some of it over several lines and with quotes; some reviews are edited later."""

    name, folder, stem = "reviews", "reviews", "reviews"
    keys, own = ("review_id",), ("review", 50_000_000)
    breaks = (
        ("missing_field", "location", None),
        ("extra_field", "text", b'"All fine.",surplus'),
        ("text_in_number", "stars", b"five"),
        ("number_too_large", "stars", b"99999999999999999999"),
        ("impossible_date", "posted_at", b"2026-02-30 10:00:00"),
        ("negative_quantity", "stars", b"-1"),
        ("unknown_location", "location", b"L99"),
        ("missing_key", "review_id", b""),
        ("invalid_utf8", "review_id", b"R1\xff\xfe1"),
        ("nul_byte", "review_id", b"R1\x001"),
    )

    def __init__(self, plan: Plan, out: Path) -> None:
        super().__init__(plan, out)
        self.topics: Counter[tuple[int, int]] = Counter()

    def create(self, day: int, rng: Rng) -> Frame:
        size = self.plan.count(day, 20)
        posted = {
            "review": (FIRST_DAY + day) * 100_000_000 + np.arange(size), "place": choose(rng, LOCATION_WEIGHT, size),
            "model": rng.integers(0, len(VEHICLES), size), "_entity": np.arange(size),
        } | self._words(np.full(size, day), rng)  # fmt: skip
        edited = np.flatnonzero(rng.random(size) < 0.03)
        return stack([posted, pick(posted, edited) | self._words(day + rng.integers(1, 5, len(edited)), rng)])

    def _words(self, day: np.ndarray, rng: Rng) -> Frame:
        size = len(day)
        topic = rng.integers(0, len(TOPICS), size)
        second = (topic + rng.integers(1, len(TOPICS), size)) % len(TOPICS)
        return {
            "posted": self.plan.midnight(day) + rng.integers(0, DAY, size), "_arrives": day,
            "stars": 1 + choose(rng, np.array([15, 12, 18, 30, 25]), size), "topic": topic,
            "opening": rng.integers(0, len(OPENINGS), size), "second": np.where(rng.random(size) < 0.3, second, -1),
        }  # fmt: skip

    def columns(self, frame: Frame) -> dict[str, pa.Array]:
        happy, sentences = frame["stars"] > 2, [sentence for pair in TOPICS.values() for sentence in pair]
        opening = words(frame["opening"], OPENINGS)
        first = words(2 * frame["topic"] + happy, sentences)
        second = words(np.where(frame["second"] < 0, -1, 2 * frame["second"] + happy), sentences)
        return {
            "review_id": ident("R", frame["review"]),
            "location": coded(frame["place"], LOCATIONS),
            "model": coded(frame["model"], VEHICLES),
            "posted_at": moment(frame["posted"]),
            "stars": whole(frame["stars"]),
            "text": glue(opening, first, pc.fill_null(glue("\n", second), "")),
        }

    def cell(self, name: str, column: pa.Array) -> pa.Array:
        cells = super().cell(name, column)
        if name != "text":
            return cells
        return pc.binary_join_element_wise(b'"', pc.replace_substring(cells, b'"', b'""'), b'"', b"")

    def gold(self, frame: Frame) -> None:
        unhappy = pick(frame, frame["stars"] <= 2)
        for part in ("topic", "second"):
            self.topics.update(zip(unhappy["model"].tolist(), unhappy[part].tolist(), strict=True))

    def finish(self) -> None:
        """complaint_topics, without its averages."""
        super().finish()
        names = list(TOPICS)
        rows = [{"model": VEHICLES[model], "topic": names[topic], "complaints": count}
                for (model, topic), count in sorted(self.topics.items()) if topic >= 0]  # fmt: skip
        schema = pa.schema([("model", pa.string()), ("topic", pa.string()), ("complaints", pa.int64())])
        table = pa.Table.from_pylist(rows, schema)
        _parquet(self.out / "_truth" / "gold" / "complaint_topics.parquet", table)


class ServiceEvents(JsonFeed):
    """What happens to each workshop appointment; events come late and more than once."""

    name, folder, stem, history = "service_events", "service_events", "events", "append"
    keys, own = ("event_id",), ("appointment", 50_000_000)
    breaks = (
        ("malformed_json", "arrived_at", b'"arrived_at":"2026-01-05T0'),
        ("invalid_utf8", "event_id", b'"event_id":"E1\xff\xfe1"'),
        ("nul_byte", "event_id", b'"event_id":"E1\x001"'),
        ("impossible_date", "event_time", b'"event_time":"2026-02-30T10:00:00Z"'),
        ("unknown_location", "location", b'"location":"L99"'),
        ("missing_key", "event_id", b'"event_id":null'),
        ("wrong_enum", "event_type", b'"event_type":"vanished"'),
    )

    def create(self, day: int, rng: Rng) -> Frame:
        size, hour = self.plan.count(day, 8), 3600
        visit = self.plan.midnight(day + rng.integers(1, 4, size))
        base = {
            "appointment": (FIRST_DAY + day) * 100_000_000 + np.arange(size),
            "place": choose(rng, LOCATION_WEIGHT, size),
            "model": rng.integers(0, len(VEHICLES), size), "promised": visit + 17 * hour,
        }  # fmt: skip
        booked = self.plan.midnight(day) + rng.integers(8 * hour, 18 * hour, size)
        arrived = visit + rng.integers(7 * hour, 10 * hour, size)
        started = arrived + rng.integers(600, hour, size)
        finished = started + rng.integers(hour, 9 * hour, size) + DAY * (rng.random(size) < 0.1)
        everyone, called_off = np.ones(size, bool), rng.random(size) < 0.08
        done = ~called_off & (rng.random(size) < 0.95)
        times = (booked, arrived, started, finished, visit)
        whose = (everyone, ~called_off, ~called_off, done, called_off)
        return stack([self._event(pick(base, rows), code, at[rows], rng)
                      for code, (at, rows) in enumerate(zip(times, whose, strict=True))])  # fmt: skip

    def _event(self, frame: Frame, code: int, at: np.ndarray, rng: Rng) -> Frame:
        size, plan = len(at), self.plan
        late = rng.random(size) < plan.late_share
        arrives = at // DAY - plan.first + np.where(late, rng.integers(1, 4, size), 0)
        queued = plan.midnight(arrives) + rng.integers(3600, 5 * 3600, size)
        taken = np.where(late, queued, at + rng.integers(5, 900, size))
        return frame | {"type": np.full(size, code), "at": at, "taken": taken, "_late": late.astype(np.int8),
                        "_entity": np.arange(size), "_arrives": arrives}  # fmt: skip

    def columns(self, frame: Frame) -> dict[str, pa.Array]:
        return {
            "event_id": ident("E", frame["appointment"] * 10 + frame["type"]),
            "appointment_id": ident("A", frame["appointment"]),
            "location": coded(frame["place"], LOCATIONS),
            "model": coded(frame["model"], VEHICLES),
            "event_type": coded(frame["type"], EVENTS),
            "event_time": moment(frame["at"]),
            "promised_by": moment(frame["promised"]),
            "arrived_at": moment(frame["taken"]),
        }


class ClusterUse(Feed):
    """What each YARN queue used, by the hour; the nightly pipeline, the working day and the week show."""

    name, folder, stem, suffix = "cluster_use", "cluster_use", "use", ".parquet"
    keys, own = ("queue", "hour"), ("hour", 1)
    anomalies = ("memory_jump",)
    breaks = (("negative_quantity", "cpu_share", -0.5), ("missing_key", "queue", None))

    def create(self, day: int, rng: Rng) -> Frame:
        queue, hour = np.repeat(np.arange(len(QUEUES)), 24), np.tile(np.arange(24), len(QUEUES))
        peak = np.array([2, 8, 14, 22])[queue]
        shape = np.exp(-((((hour - peak + 12) % 24) - 12) ** 2) / 18)
        busy = WEEK[(self.plan.start.weekday() + day) % 7] / 20
        share = np.clip(0.05 + 0.7 * busy * shape + rng.normal(0, 0.03, len(hour)), 0.01, 1)
        odd = rng.random(len(hour)) < self.plan.anomaly_share
        memory = (16 + 480 * share + rng.normal(0, 8, len(hour))) * np.where(odd, 20, 1)
        return {
            "queue": queue, "hour": self.plan.midnight(day) + hour * 3600, "share": share.round(4),
            "memory": np.maximum(1, memory).round(2), "apps": 1 + rng.poisson(12 * share),
            "containers": 2 + rng.poisson(90 * share), "_entity": np.arange(len(hour)),
            "_arrives": np.full(len(hour), day), "_anomaly": odd.astype(np.int8),
        }  # fmt: skip

    def columns(self, frame: Frame) -> dict[str, pa.Array]:
        return {
            "queue": coded(frame["queue"], QUEUES),
            "hour": moment(frame["hour"]),
            "cpu_share": pa.array(frame["share"]),
            "memory_gb": pa.array(frame["memory"]),
            "apps": whole(frame["apps"]),
            "containers": whole(frame["containers"]),
        }

    def write(self, path: Path, frame: Frame, kind: np.ndarray) -> None:
        table = self.table(frame)
        for code, (_, name, value) in enumerate(self.breaks):
            column = spoil(table[name].combine_chunks(), kind == code, value)
            table = table.set_column(table.column_names.index(name), name, column)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, store_schema=False)
        _replace(path, [sink.getvalue()])


FEEDS: tuple[Callable[[Plan, Path], Feed], ...] = (
    Orders, Stock, Procurement, Accounts, Leads, Reviews, ServiceEvents, ClusterUse,
)  # fmt: skip


def make_feeds(out: Path, **wanted: object) -> Truth:
    """Writes the feeds below ``out``; the names of ``wanted`` are those of `Plan`."""
    plan = Plan(**wanted)  # type: ignore[arg-type]
    truth = Truth(out, {**asdict(plan), "start": plan.start.isoformat()}, {})
    truth.plan.pop("from_day")  # the truth is about all days, whichever were written now
    for feed in (kind(plan, out) for kind in FEEDS):
        for day in range(plan.days):
            feed.run(day)
        feed.finish()
        truth.feeds[feed.name] = feed.truth
    truth.save()
    return truth


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make ACME Auto Dealer's feeds, and the truth about them.")
    parser.add_argument("--out", type=Path, required=True, help="landing folder")
    for name, default in asdict(Plan()).items():
        kind = date.fromisoformat if isinstance(default, date) else type(default)
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{HELP[name]} [{default}]")
    truth = make_feeds(**vars(parser.parse_args(arguments)))
    for name, feed in truth.feeds.items():
        total = feed.total
        print(f"{name:15}{total.records:>12,} records  {total.good:>12,} good  {total.repeats:>9,} repeats"
              f"  {sum(total.bad.values()):>9,} bad  {feed.silver_rows:>12,} rows in silver")  # fmt: skip


if __name__ == "__main__":
    main()
