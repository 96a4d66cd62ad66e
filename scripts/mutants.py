"""Break each decision of the protocol in turn, and see that the tests find out: a test that passes proves nothing until
it fails.

Prints mutant, and the law that killed it or ALIVE; the exit code is 1 if any lives, or the protocol itself fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from model import Batch, Broken, Load, Manifest, Rules, Stamped, Table, Txn, merged
from oracle import Contract, Record, Row
from test_model import ProtocolMachine, scripted

# --- the seam ---


class TailTakesV(Rules):
    """>= for > at the seam: the tail takes load V again"""

    def in_tail(self, load: Load, one: Stamped, settled: int, upto: int, silver: Sequence[Row]) -> bool:
        return settled <= load.number <= upto and not one.late


class TailLeavesFirst(Rules):
    """> V + 1 for > V at the seam: the tail leaves the first load out"""

    def in_tail(self, load: Load, one: Stamped, settled: int, upto: int, silver: Sequence[Row]) -> bool:
        return settled + 1 < load.number <= upto and not one.late


class TailLeavesH(Rules):
    """< for <= at the seam: the tail leaves load H out"""

    def in_tail(self, load: Load, one: Stamped, settled: int, upto: int, silver: Sequence[Row]) -> bool:
        return settled < load.number < upto and not one.late


class TailBeyondH(Rules):
    """the tail goes to the log's end, not to H"""

    def in_tail(self, load: Load, one: Stamped, settled: int, upto: int, silver: Sequence[Row]) -> bool:
        return settled < load.number and not one.late


class TailByTime(Rules):
    """cut by event time instead of load"""

    def in_tail(self, load: Load, one: Stamped, settled: int, upto: int, silver: Sequence[Row]) -> bool:
        newest = max((row["time"] for row in silver), default=None)
        after = newest is None or (one.row is not None and one.row["time"] > newest)
        return after and load.number <= upto and not one.late


class TailTakesLate(Rules):
    """the tail takes late records too"""

    def in_tail(self, load: Load, one: Stamped, settled: int, upto: int, silver: Sequence[Row]) -> bool:
        return settled < load.number <= upto


class DedupePerLayer(Rules):
    """duplicates removed after the seam, per layer only"""

    def unified(self, silver: Sequence[Row], tail: Sequence[Row], contract: Contract) -> list[Row]:
        return [*silver, *merged((), tail, contract)]


class TouchedByTailOnly(Rules):
    """a group is touched only where a new row stands, not where one is replaced"""

    def touched(self, silver: Sequence[Row], tail: Sequence[Row], contract: Contract) -> set[Any]:
        return {row["shop"] for row in tail}


class SettleTakesV(Rules):
    """>= for > in settling: load V once more"""

    def unsettled(self, load: int, settled: int, upto: int) -> bool:
        return settled <= load <= upto


class SettleLeavesLast(Rules):
    """< for <= in settling: the last load is said to be settled and is not"""

    def unsettled(self, load: int, settled: int, upto: int) -> bool:
        return settled < load < upto


class LateByOwn(Rules):
    """late cut by the load's own newest event time"""

    def horizon(self, before: int | None, mine: Sequence[int], delay: int) -> int | None:
        times = [*mine, *([] if before is None else [before])]
        return max(times) - delay if times else None


# --- the log's end ---


class ConstantId(Rules):
    """constant transaction id over epochs: the batch's number alone tells what is done"""

    def verdict(self, last: Batch | None, mine: Batch) -> str:
        return "there" if last and last.number >= mine.number else super().verdict(last, mine)


class NotFenced(Rules):
    """zombie not fenced: append without compare-and-swap"""

    def load_txn(self, number: int) -> Txn | None:
        return None


class EpochsAlike(Rules):
    """two starts have one epoch, and a batch is known by it and its number"""

    def epoch(self, last: Batch | None, token: int) -> tuple[int, int]:
        return (last.epoch[0] + 1 if last else 1, 0)

    def verdict(self, last: Batch | None, mine: Batch) -> str:
        there = last is not None and last[:2] == mine[:2]
        return "there" if there else super().verdict(last, mine)


class AnyOffsets(Rules):
    """appended without a look at the offsets of the last commit"""

    def verdict(self, last: Batch | None, mine: Batch) -> str:
        if last == mine:
            return "there"
        return "stop" if last and last.epoch > mine.epoch else "append"


class AppendsAgain(Rules):
    """a batch that is there is appended again, as where the answer got lost"""

    def verdict(self, last: Batch | None, mine: Batch) -> str:
        return "append" if last == mine else super().verdict(last, mine)


class TrustsSilence(Rules):
    """an append that was not refused is believed, though Delta skips a known number without a word"""

    def looks_again(self) -> bool:
        return False


class ResumesBefore(Rules):
    """resume from offsets one batch old"""

    def resume(self, last: Batch | None, checkpoint: int | None) -> int:
        return last.start if last else 0


class ResumesByCheckpoint(Rules):
    """resume from the checkpoint, which knows what was read and not what was appended"""

    def resume(self, last: Batch | None, checkpoint: int | None) -> int:
        return checkpoint or 0


class RequeuesTwice(Rules):
    """requeue does not ask the log what it has taken again"""

    def waiting(self, loads: Sequence[Load]) -> list[Record]:
        return [one.record for load in loads[:2] for one in load.records if one.row is None]


# --- silver and the manifest ---


class SettleByV(Rules):
    """silver's transaction is V alone: it tells nothing of what the commit was computed from"""

    def settle_txn(self, steps: int, upto: int) -> Txn:
        return Txn("settle", upto)


class ManifestFirst(Rules):
    """publish before the speed commit"""

    def order(self) -> tuple[str, ...]:
        return ("gold", "manifest", "speed")


class ManifestBeforeGold(Rules):
    """publish before the gold commit"""

    def order(self) -> tuple[str, ...]:
        return ("speed", "manifest", "gold")


class VersionAtEnd(Rules):
    """a writer takes the table's newest version for its own"""

    def version_of(self, table: Table, run: int) -> int:
        return table.version


class ManifestAlways(Rules):
    """publish without compare-and-swap on the manifest"""

    def manifest_txn(self, newest: Manifest, mine: Manifest) -> Txn | None:
        return None


# --- readers and cleanup ---


class SpeedNotPinned(Rules):
    """reader that does not pin the speed version"""

    def speed_version(self, manifest: Manifest, speed: Table) -> int:
        return speed.version


class PinsBlindly(Rules):
    """reader that does not look again after pinning"""

    def pinned(self, manifest: Manifest, oldest: int) -> bool:
        return True


class CleansTooEarly(Rules):
    """cleanup one version too early"""

    def floor(self, needed: Sequence[int]) -> int:
        return min(needed, default=0) + 1


class CleansUnneeded(Rules):
    """cleanup of all but the newest needed version"""

    def floor(self, needed: Sequence[int]) -> int:
        return max(needed, default=0)


class CleansOldGenerations(Rules):
    """cleanup of all old versions of a generation that no manifest needs"""

    def floor(self, needed: Sequence[int]) -> int:
        return min(needed, default=sys.maxsize)


MUTANTS: tuple[type[Rules], ...] = tuple(Rules.__subclasses__())


class Verdict(NamedTuple):
    law: str | None  # that was broken
    seconds: float


def tried(rules: type[Rules], examples: int, number: int = 1) -> Verdict:
    """Run the machine under these rules, with the same moves for the same number."""

    @seed(number)
    def machine() -> ProtocolMachine:
        return ProtocolMachine(rules())

    how = settings(
        max_examples=examples, stateful_step_count=30, deadline=None, database=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet, report_multiple_bugs=False,
    )  # fmt: skip
    began = time.perf_counter()
    try:
        run_state_machine_as_test(machine, settings=how)  # type: ignore[no-untyped-call]
        law = None
    except Broken as broken:
        law = broken.law
    return Verdict(law, time.perf_counter() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="runs of the machine at most (default: 1000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--real", action="store_true", help="mutants of the code itself, on Spark: a minute or two each"
    )
    given = parser.parse_args(arguments)
    if given.real:
        import wrong  # which needs Spark

        return int(not all([*map(survives_not, [None, *wrong.MUTANTS])]))
    print(f"{'mutant':90} {'the machine':50} {'':9}scripts")
    control = shown(Rules, given.examples, given.seed)
    killed = [shown(rules, given.examples, given.seed) for rules in MUTANTS]
    return int(control or not all(killed))


def survives_not(mutant: str | None) -> bool:
    """Run the suite of the seam with a mutant of the code, print what became of it, and tell whether it was as it
    should be: the code itself (None) passes, a mutant fails."""
    environ = {**os.environ, **({"MUTANT": mutant} if mutant else {})}
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "tests/test_seam.py"]
    began = time.monotonic()
    done = subprocess.run(tests, cwd=Path(__file__).resolve().parents[1], env=environ, capture_output=True, text=True)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    expected = done.returncode == (1 if mutant else 0)
    told = failed[0].split(" - ")[0] if failed else ("holds" if expected else "ALIVE")
    print(f"{mutant or '(no mutant)':45} {time.monotonic() - began:5.0f} s  {told}", flush=True)
    return expected


def shown(rules: type[Rules], examples: int, number: int) -> bool:
    """Try one, print its line, and tell whether anything killed it."""
    machine, script = tried(rules, examples, number), scripted(rules())
    killed = bool(machine.law or script)
    missing, name = ("holds", "(no mutant)") if rules is Rules else ("" if killed else "ALIVE", rules.__doc__)
    told = f"{script[0]}: {script[1]}" if script else missing
    print(f"{name:90} {machine.law or missing or '-':50} {machine.seconds:5.1f} s  {told or '-'}", flush=True)
    return killed


if __name__ == "__main__":
    sys.exit(main())
