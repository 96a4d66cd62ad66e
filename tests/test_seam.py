"""The seam on real Spark and Delta: whatever happens in whatever order, the unified answer is the oracle's at the
loads that it states. Its moves are those of the model (test_model.py), which tries thousands of orders; here they are
made in one order that leaves none out, and SEAM_RUNS asks for so many others, by chance."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, ClassVar

import oracle
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from test_unified import NOON, STREAM, Streamed
from wrong import MUTANTS

from drivetrain import maintain, publish, replay
from drivetrain.appender import Resume
from drivetrain.errors import DrivetrainError
from drivetrain.unified import Unified

pytestmark = pytest.mark.spark
RUNS = int(os.environ.get("SEAM_RUNS", "0"))  # for each contract
STEPS = int(os.environ.get("SEAM_STEPS", "12"))

EVENTS = st.lists(
    st.one_of(
        st.builds(
            lambda key, n, seq, minutes: {
                "id": key, "n": n, "seq": seq, "at": (NOON + timedelta(minutes=minutes)).isoformat()
            },
            st.sampled_from("abcdef"), st.integers(0, 9), st.integers(0, 5), st.integers(-40, 40),
        ),
        st.just({"id": "z", "n": 1, "seq": 1, "at": "2093-01-01T00:00:00+00:00"}),  # from the future
        st.just({"n": 1}),  # without a key
        st.just("{torn"),
    ),
    min_size=1, max_size=5,
)  # fmt: skip

KEY, IDENTITY = ("id",), ("id", "seq")
CONTRACTS = {
    "position": ({"history": "append", "identity": "position"}, oracle.Contract(KEY, (), None, "append")),
    "append": (
        {"history": "append", "identity": ["id", "seq"]},
        oracle.Contract(KEY, IDENTITY, None, "append"),
    ),
    "other identity": ({"sequence": "seq", "identity": ["n", "seq"]}, oracle.Contract(KEY, ("n", "seq"), "seq")),
    "scd2": ({"history": "scd2", "sequence": "seq"}, oracle.Contract(KEY, IDENTITY, "seq", "scd2")),
    "latest": ({"sequence": "seq"}, oracle.Contract(KEY, IDENTITY, "seq")),
}


class Crash(BaseException):
    """The process ends here."""


def crashing(*_: Any, **__: Any) -> Any:
    raise Crash


class Seam(RuleBasedStateMachine):
    """One dataset with its stream, batches, publications and replays."""

    spark: ClassVar[Any]
    history: ClassVar[str]

    @initialize()
    def begin(self) -> None:
        properties, contract = CONTRACTS[self.history]
        self.folder = tempfile.TemporaryDirectory(prefix="seam-")
        self.one = Streamed(self.spark, Path(self.folder.name), **properties)
        self.contract = oracle.Contract(
            contract.key, contract.identity, contract.sequence, contract.history, "at",
            timedelta(seconds=STREAM.delay_seconds or 0), timedelta(seconds=STREAM.ahead_seconds or 0),
        )  # fmt: skip
        self.loads: list[list[oracle.Record]] = []
        self.offset = 0
        self.appender = self.one.appender()
        self.stream([event("a", 1), event("b", 2)])  # by chance most runs would bring nothing for long

    def teardown(self) -> None:
        self.folder.cleanup()

    # --- the stream ---

    @rule(events=EVENTS)
    def stream(self, events: list[Any]) -> None:
        self.one.append(self.appender, *events)
        self.note(events)

    @rule(events=EVENTS, after=st.booleans())
    def stream_ends(self, events: list[Any], after: bool) -> None:
        """The process ends before, or right after, the commit; the next start takes what is not in the log."""
        point = "note" if after else "commit"
        setattr(self.appender, point, crashing)
        with pytest.raises(Crash):
            self.one.append(self.appender, *events)
        self.appender = self.one.appender()
        if not after:
            self.one.append(self.appender, *events)
        self.note(events)

    @precondition(lambda self: self.loads)
    @rule(events=EVENTS)
    def two_streams(self, events: list[Any]) -> None:
        """A second start takes over; what the first still holds is refused, and it ends."""
        zombie, self.appender = self.appender, self.one.appender()
        self.one.append(self.appender, *events)
        self.note(events)
        with pytest.raises((DrivetrainError, Resume)):
            self.one.append(zombie, *events)

    def note(self, events: list[Any]) -> None:
        now = datetime.now(timezone.utc)
        self.loads.append([oracle.Record(self.offset + i, plain(e), now) for i, e in enumerate(events)])
        self.offset += len(events)

    # --- the batch layer ---

    @rule()
    def batch(self) -> None:
        assert not self.one.pipeline("batch").transform(ingest=False).problems

    @rule(point=st.sampled_from(["write_silver", "check_written", "publish_all", "publish_manifest"]))
    def batch_ends(self, point: str) -> None:
        pipeline = self.one.pipeline("batch")
        setattr(pipeline, point, crashing)
        with suppress(Crash):
            pipeline.transform(ingest=False)

    @rule()
    def refresh(self) -> None:
        pipeline = self.one.pipeline()
        pipeline.publish_manifest()
        assert not pipeline.outcome.problems

    @rule()
    def refresh_ends(self) -> None:
        """Between what is computed for gold and the manifest that names it."""
        with pytest.MonkeyPatch.context() as patch, suppress(Crash):
            patch.setattr(publish, "_schema", crashing)
            self.one.pipeline().publish_manifest()

    @precondition(lambda self: self.loads)
    @rule()
    def compact(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maintain, "FEW_FILES", 1)
            maintain.compact(self.one.pipeline("batch"))

    @rule()
    def clean(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maintain, "MARGIN", timedelta(0))
            pipeline = self.one.pipeline("batch")
            object.__setattr__(pipeline.conf.settings, "keep_hours", 0)
            maintain.vacuum(pipeline)

    @precondition(lambda self: self.silver_load() > 0)
    @rule(swaps=st.booleans())
    def replay(self, swaps: bool) -> None:
        pipeline = self.one.pipeline("replay")
        found = replay.replay(pipeline, list(pipeline.conf.datasets.values()), 0)
        assert all(difference.is_none for difference in found if difference.layer == "silver"), found
        if swaps:
            replay.swap(self.one.pipeline("replay"), pipeline.outcome.run)

    def silver_load(self) -> int:
        return self.one.pipeline().table("silver", "events").last_txn("events")

    # --- what must hold ---

    @invariant()
    def the_answer_is_the_oracles(self) -> None:
        unified = Unified(self.spark, self.one.conf())
        manifest = unified.manifest()
        if "events" not in manifest:
            return
        cut, upto = manifest["events"].reach("events")
        self.compare(unified.read("events", manifest), cut, upto)
        if unified.state("events").live is not None:
            self.compare(unified.read("events", manifest, live=True), cut, len(self.loads))
        if "total" in manifest:
            cut, upto = manifest["total"].reach("events")
            rows = oracle.unified(self.loads, self.contract, cut, upto)
            grouped = oracle.by_group([{**row, "part": row["n"] % 3} for row in rows], ["part"])
            expected = sorted((part, len(mine), sum(r["n"] for r in mine)) for (part,), mine in grouped.items())
            assert sorted(map(tuple, unified.read("total", manifest).collect())) == expected

    def compare(self, frame: Any, cut: int, upto: int) -> None:
        names = ["id", "n", "seq"] + (["valid_from", "valid_to", "is_current"] if self.history == "scd2" else [])
        expected = oracle.unified(self.loads, self.contract, cut, upto)
        assert sorted(map(str, map(tuple, frame.select(*names).collect()))) == sorted(
            str(tuple(row.get(name) for name in names)) for row in expected
        ), (cut, upto)

    @invariant()
    def what_is_wrong_is_put_aside(self) -> None:
        if not self.loads or self.silver_load() < len(self.loads):
            return
        bad = [position for _, position in oracle.quarantined(self.loads, self.contract)]
        assert sorted(row[0] for row in self.one.tiny.quarantined("events", "_line")) == sorted(bad)
        late = [p for n in range(1, len(self.loads) + 1) for p in oracle.late(self.loads, self.contract, n)]
        found = self.one.tiny.rows("late", "_line") if late else []
        assert sorted(row[0] for row in found) == sorted(late)


def plain(event: Any) -> Any:
    if isinstance(event, str) or "at" not in event:
        return event
    return {**event, "at": datetime.fromisoformat(event["at"])}


def event(id: str, n: int, seq: int = 1, minutes: int = 0) -> dict[str, Any]:
    return {"id": id, "n": n, "seq": seq, "at": (NOON + timedelta(minutes=minutes)).isoformat()}


FUTURE = {"id": "z", "n": 1, "seq": 1, "at": "2093-01-01T00:00:00+00:00"}
AT_THE_SEAM: list[tuple[str, dict[str, Any]]] = [
    ("stream", {"events": [event("a", 1), event("b", 2), event("c", 3, 2), "{torn", FUTURE, {"n": 1}]}),
    ("batch", {}),
    # A repeat, a new version in another group, an older version, and what is earlier than the newest, but not late.
    ("stream", {"events": [event("a", 1), event("b", 6, 2, 1), event("c", 9, 1), event("d", 4, 1, -5)]}),
    ("refresh", {}),
    ("stream", {"events": [event("b", 7, 3, 40), event("b", 7, 3, 40), event("e", 5, 1, 40)]}),
    ("refresh_ends", {}),
    ("stream", {"events": [event("f", 8, 1, -40)]}),  # late
    ("refresh", {}),
]
BETWEEN_WRITERS: list[tuple[str, dict[str, Any]]] = [
    ("batch_ends", {"point": "publish_all"}),
    ("clean", {}),
    ("two_streams", {"events": [event("g", 1), event("a", 2, 2, 41)]}),
    ("stream_ends", {"events": [event("h", 1, 1, 42)], "after": False}),
    ("stream_ends", {"events": [event("i", 2, 1, 42)], "after": True}),
    ("compact", {}),
    ("batch_ends", {"point": "publish_manifest"}),
    ("replay", {"swaps": True}),
    ("stream", {"events": [event("a", 3, 3, 43)]}),
    ("batch", {}),
    ("clean", {}),
]


def machine_of(spark: Any, history: str) -> type[Seam]:
    if wrong := os.environ.get("MUTANT"):
        MUTANTS[wrong]()
    return type(f"Seam_{history}", (Seam,), {"spark": spark, "history": history})


@pytest.mark.parametrize("history", CONTRACTS)
def test_every_move(spark: Any, history: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if history in ("other identity", "scd2"):  # as a large table, whose files keep what is deleted from them
        monkeypatch.setattr("drivetrain.sink.LARGE", 1)
    seam = machine_of(spark, history)()
    seam.begin()
    for move, given in AT_THE_SEAM + (BETWEEN_WRITERS if history == "latest" else []):
        getattr(seam, move)(**given)
        seam.the_answer_is_the_oracles()
        seam.what_is_wrong_is_put_aside()
    seam.teardown()


@pytest.mark.skipif(not RUNS, reason="SEAM_RUNS asks for moves by chance")
@pytest.mark.parametrize("history", CONTRACTS)
def test_moves_by_chance(spark: Any, history: str) -> None:
    run_state_machine_as_test(machine_of(spark, history), settings=settings(
        max_examples=RUNS, stateful_step_count=STEPS, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    ))  # fmt: skip
