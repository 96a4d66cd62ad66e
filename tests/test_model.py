"""The protocol under every interleaving that Hypothesis finds, and those that broke earlier drafts of it, step by step.

A machine's moves: events come, a writer or reader starts, goes some steps, runs to its end, or dies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count, islice
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from model import CONTRACTS, Broken, Gone, Rules, Steps, World
from oracle import Record

LIVE = 5  # more than so many at once add nothing but time
WRITERS: dict[str, Callable[[World, int], Steps]] = {
    "stream": lambda world, size: world.stream(size),
    "settle": lambda world, size: world.settle(),
    "publish": lambda world, size: world.publish(),
    "requeue": lambda world, size: world.requeue(),
    "replay": lambda world, size: world.replay(),
    "rollback": lambda world, size: world.rollback(size),
    "reader": lambda world, size: world.reader(),
    "cleanup": lambda world, size: world.cleanup(max(1, size - 1)),
}
OFTEN = ("stream", "stream", "settle", "publish", "publish", "reader", "cleanup", "requeue", "replay", "rollback")
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(("new", "new", "new", "new", "late", "future", "bad", "repeat")),
        st.integers(0, 2),  # its key
        st.integers(0, 4),  # its sequence, before or after others
        st.integers(0, 7),  # its identity
        st.integers(-2, 2),  # its time, around the clock
        st.integers(0, 1),  # its shop
    ),
    min_size=1,
    max_size=4,
)
CROWDS = st.sampled_from(
    (
        ("stream", "stream"), ("stream", "requeue", "stream"), ("requeue", "requeue"),
        ("stream", "settle", "stream", "settle"),
        ("publish", "stream", "settle", "publish"), ("publish", "stream", "publish"), ("publish", "replay"),
        ("settle", "cleanup", "publish"),
        ("reader", "publish", "cleanup"), ("replay", "settle", "rollback"), ("replay", "cleanup", "rollback"),
    )
)  # fmt: skip
PAUSES = st.sampled_from((1, 1, 2, 3, 4, 4, 5, 20, 20, 20))


def paused(names: Sequence[str]) -> st.SearchStrategy[Any]:
    """For each a size, and the steps after which it falls asleep."""
    return st.tuples(*[st.tuples(st.just(name), st.integers(1, 3), PAUSES) for name in names])


Event = tuple[str, int, int, int, int, int]


def ingest(world: World, events: Sequence[Event]) -> None:
    for kind, key, at, event, around, shop in events:
        position = len(world.source)
        time = position + around + {"late": -9, "future": 9}.get(kind, 0)
        row = {"id": key, "at": at, "event": event, "time": time, "amount": position, "shop": shop}
        raw: Any = row
        if kind == "repeat" and position:
            raw = world.source[(key * 5 + event) % position].raw
        elif kind in ("bad", "future"):
            raw = f"bad {position}" if kind == "bad" else row
            world.repairs[position] = {**row, "time": min(time, position)}
        world.source.append(Record(position, raw, position))


class ProtocolMachine(RuleBasedStateMachine):
    def __init__(self, rules: Rules | None = None) -> None:
        super().__init__()
        self.rules, self.live, self.sound = rules or Rules(), list[Steps](), True
        self.world = World(CONTRACTS["latest"], self.rules)

    @initialize(name=st.sampled_from(sorted(CONTRACTS)), events=EVENTS)
    def begin(self, name: str, events: Sequence[Event]) -> None:
        self.world = World(CONTRACTS[name], self.rules)
        ingest(self.world, events)

    @rule(events=EVENTS)
    def ingest(self, events: Sequence[Event]) -> None:
        ingest(self.world, events)

    @rule(name=st.sampled_from(OFTEN), size=st.integers(1, 3), steps=st.integers(1, 6))
    def start(self, name: str, size: int, steps: int) -> None:
        if len(self.live) == LIVE:
            self.live.pop(0).close()
        self.live.append(WRITERS[name](self.world, size))
        self.finish(self.live[-1], steps)

    @rule(which=st.integers(0, LIVE - 1), steps=st.integers(1, 8), crash=st.booleans())
    def advance(self, which: int, steps: int, crash: bool) -> None:
        if self.live:
            writer = self.live[which % len(self.live)]
            self.finish(writer, steps)
            if crash:
                self.live.remove(writer)
                writer.close()

    @rule(name=st.sampled_from(OFTEN), size=st.integers(1, 3))
    def run(self, name: str, size: int) -> None:
        self.finish(WRITERS[name](self.world, size))

    @rule(events=EVENTS, crowd=CROWDS.flatmap(paused), turned=st.booleans(), crash=st.booleans())
    def race(self, events: Sequence[Event], crowd: Sequence[tuple[str, int, int]], turned: bool, crash: bool) -> None:
        """Each goes some steps and falls asleep; then they wake, one after the other, the last one first if turned."""
        racing = [WRITERS[name](self.world, size) for name, size, _ in crowd]
        for writer, (_, _, steps) in zip(racing, crowd, strict=True):
            ingest(self.world, events)
            self.finish(writer, steps)
        for writer in reversed(racing) if turned else racing:
            self.finish(writer, 2 if crash else None)
            writer.close()

    @rule(table=st.integers(0, 9))
    def disturb(self, table: int) -> None:
        self.world.compact(table)
        self.world.checkpoint = None

    @invariant()
    def laws_hold(self) -> None:
        with self.watched():
            self.world.check()

    def teardown(self) -> None:
        for steps in self.live:
            steps.close()
        if self.sound:
            self.world.drain()

    def finish(self, writer: Steps, steps: int | None = None) -> None:
        for _ in count() if steps is None else range(steps):
            if self.ended(writer):
                return
            self.laws_hold()

    def ended(self, writer: Steps) -> bool:
        """After one step; a writer whose version was cleaned up under it ends too, and did nothing."""
        with self.watched():
            try:
                return next(writer, None) is None
            except Gone:
                return True

    def watched(self) -> Any:
        return _Watch(self)


class _Watch:
    """Remembers that a law was broken, so that teardown does not tell of another."""

    def __init__(self, machine: ProtocolMachine) -> None:
        self.machine = machine

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.machine.sound = self.machine.sound and kind is None


TestProtocol = ProtocolMachine.TestCase
TestProtocol.settings = settings(
    max_examples=200, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- Interleavings step by step -------------------------------------------------------------------------------------


class Script:
    """A machine that is led by hand: "w 3" takes writer w three steps on, "w" to its end, "!w" lets it crash."""

    def __init__(self, rules: Rules, contract: str = "latest") -> None:
        self.world, self.writers = World(CONTRACTS[contract], rules), dict[str, Steps]()

    def events(self, number: int = 2, late: bool = False) -> None:
        """Each of a key and identity of its own."""
        at = len(self.world.source)
        ingest(self.world, [("late" if late else "new", at + n, 1, at + n, 0, n % 2) for n in range(number)])

    def start(self, name: str, kind: str, size: int = 9) -> None:
        self.writers[name] = WRITERS[kind](self.world, size)

    def go(self, moves: str) -> None:
        for move in moves.split(", "):
            name, _, steps = move.partition(" ")
            if name.startswith("!"):
                self.writers[name[1:]].close()
                continue
            with suppress(Gone):
                for _ in islice(self.writers[name], int(steps) if steps else None):
                    self.world.check()

    def run(self, *kinds: str) -> None:
        for kind in kinds:
            self.start("", kind)
            self.go("")
        self.world.check()


def zombie_stream(script: Script) -> None:
    """A stream that slept with its batch in hand wakes up after another has taken its offsets."""
    script.events()
    script.start("zombie", "stream")
    script.start("new", "stream")
    script.go("zombie 4, new, zombie")


def two_starts(script: Script) -> None:
    """Two starts see the same end of the log; the one with the shorter batch comes first."""
    script.events(3)
    script.start("long", "stream", 3)
    script.start("short", "stream", 2)
    script.go("long 2, short 5, long")


def silent_skip(script: Script) -> None:
    """A load's number is taken before its write begins: Delta skips it without a word."""
    script.events(3)
    script.start("long", "stream", 3)
    script.start("short", "stream", 2)
    script.go("long 3, short 5, long")


def crash_after_append(script: Script) -> None:
    """A stream dies between its append and all that would tell of it; so does one between reading and its append."""
    for steps in (5, 2):
        script.events()
        script.start("dies", "stream")
        script.go(f"dies {steps}, !dies")
        script.world.checkpoint = None
    script.run("stream")


def two_settles(script: Script) -> None:
    """One settles to V, another to a later V from the same silver: the second began to write after the first ended."""
    script.events()
    script.run("stream")
    script.start("first", "settle")
    script.go("first 1")
    script.events()
    script.run("stream")
    script.start("second", "settle")
    script.go("second 1, first, second")


def two_publishers(script: Script) -> None:
    """Both have written gold and speed, of different V and H, when the first writes its manifest."""
    script.events()
    script.run("stream")
    script.start("first", "publish")
    script.go("first 4")
    script.events()
    script.run("stream", "settle")
    script.start("second", "publish")
    script.go("second 4, first, second")


def old_publisher(script: Script) -> None:
    """One that looked long ago publishes after a newer manifest."""
    script.events()
    script.run("stream")
    script.start("old", "publish")
    script.go("old 4")
    script.events()
    script.run("stream", "settle", "publish")
    script.go("old")


def late_pin(script: Script) -> None:
    """A reader has found its manifest, and pins it when cleanup has looked at the pins already."""
    script.events()
    script.run("stream", "settle", "publish")
    script.start("reader", "reader")
    script.go("reader 1")
    script.events()
    script.run("stream", "settle", "publish")
    script.start("cleanup", "cleanup", 1)
    script.go("cleanup 2, reader 3, cleanup, reader")


def late_record_at_the_seam(script: Script) -> None:
    """Late records wait for silver; publishing shows them only when they are settled."""
    script.events(9)
    script.run("stream")
    script.events(1, late=True)
    script.run("stream", "publish", "settle", "publish")


def moved_row(script: Script) -> None:
    """A key's new version stands in another group: the old group changes too."""
    ingest(script.world, [("new", 0, 1, 0, 0, 0), ("new", 1, 1, 1, 0, 0)])
    script.run("stream", "settle", "publish")
    ingest(script.world, [("new", 0, 2, 2, 0, 1)])
    script.run("stream", "publish")


def zombie_settle(script: Script) -> None:
    """One that settles the old generation wakes up after the swap; then the old generation is published again."""
    script.events()
    script.run("stream", "settle", "publish")
    script.events()
    script.run("stream")
    script.start("zombie", "settle")
    script.go("zombie 2")
    script.run("replay")
    script.start("back", "rollback", 2)
    script.start("cleanup", "cleanup", 1)
    script.go("back 4, zombie, cleanup, back")


SCRIPTS: tuple[Callable[[Script], None], ...] = (
    zombie_stream, two_starts, silent_skip, crash_after_append, two_settles, two_publishers, old_publisher, late_pin,
    late_record_at_the_seam, moved_row, zombie_settle,
)  # fmt: skip


def scripted(rules: Rules) -> tuple[str, str] | None:
    """The first script that ends with a broken law, and the law."""
    for play in SCRIPTS:
        script = Script(rules)
        try:
            play(script)
            script.world.drain()
        except Broken as broken:
            return play.__name__, broken.law
    return None


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("play", SCRIPTS, ids=lambda play: play.__name__)
def test_scripts(play: Callable[[Script], None], contract: str) -> None:
    script = Script(Rules(), contract)
    play(script)
    script.world.drain()
