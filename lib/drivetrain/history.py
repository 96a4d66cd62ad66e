"""What runs have taught: each step's and each job's latest, and what a person has fixed. Each commit to the table of
steps carries the whole of it, so that a launcher reads it too, without Spark."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from typing import Any, Final, TypeVar

from drivetrain.files import Files
from drivetrain.ops import Step

KEY: Final = "learned"  # in a commit's metadata
KEPT_RUNS: Final = 8
KEPT_ALIKE: Final = 3  # for each number of partitions, beside these
KEPT_MOST: Final = 24
KEPT_JOBS: Final = 16
SURPRISE: Final = 4.0  # measured / forecast
NOTABLE: Final = 8 << 20  # below that many bytes shuffled nothing is a surprise
COMMIT: Final = re.compile(r"\d{20}\.json$")


@dataclass(frozen=True)
class Run:
    """What one run of a step was given and did. ``forecast_runs`` are those that its forecast rested on. ``short``
    tells that memory was: then it failed, or did its work twice, and its other figures are no guide."""

    input_bytes: int
    shuffle_bytes: int
    spill_bytes: int
    cpu_seconds: float
    partitions: int
    forecast_bytes: int
    forecast_runs: int
    peak_memory_bytes: int = 0
    short: bool = False

    @property
    def surprised(self) -> bool:
        """Whether it was much more than history had told. Much less does no harm."""
        told = self.forecast_runs and self.shuffle_bytes > NOTABLE and not self.short
        return bool(told and self.shuffle_bytes > SURPRISE * self.forecast_bytes)


@dataclass(frozen=True)
class Took:
    """One run of a job: stored bytes that its steps took in, cores that it had, seconds, and seconds of its tasks."""

    input_bytes: int
    cores: int
    seconds: float
    task_seconds: float


@dataclass(frozen=True)
class History:
    """Latest runs of each step ("silver orders") and of each job, oldest first; and settings that a person has fixed
    for a step."""

    steps: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    jobs: Mapping[str, Sequence[Took]] = field(default_factory=dict)
    frozen: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """As a commit carries it."""
        return {KEY: {"steps": _rows(Run, self.steps), "jobs": _rows(Took, self.jobs), "frozen": self.frozen}}

    def with_run(self, job: str, steps: Sequence[Step], seconds: float) -> History:
        """With what a run of the job did, which took that many seconds in all."""
        made = {key: list(runs) for key, runs in self.steps.items()}
        for step in steps:
            run = observed(step)
            if run:
                made.setdefault(step_key(step.step, step.dataset), []).append(run)
        took = took_of(steps, seconds)
        jobs = {**self.jobs, job: [*self.jobs.get(job, ()), took][-KEPT_JOBS:]} if took else self.jobs
        return History({key: kept(runs) for key, runs in made.items()}, jobs, self.frozen)

    def frozen_as(self, key: str, settings: Mapping[str, str]) -> History:
        """With a step's settings fixed."""
        return History(self.steps, self.jobs, {**self.frozen, key: settings})

    def without(self, key: str) -> History:
        """With nothing known of a step, and nothing fixed for it."""
        steps = {name: runs for name, runs in self.steps.items() if name != key}
        return History(steps, self.jobs, {name: fixed for name, fixed in self.frozen.items() if name != key})


def step_key(step: str, dataset: str) -> str:
    return f"{step} {dataset}"


def observed(step: Step) -> Run | None:
    """What a tuned step tells of the next; None of one that was not tuned, or failed for another cause than memory."""
    if not step.decisions or (step.failed and not step.short_of_memory):
        return None
    return Run(
        step.expected_bytes, step.shuffle_write_bytes, step.spill_bytes, round(step.cpu_seconds, 3), step.partitions,
        step.expected_shuffle_bytes, step.forecast_runs, step.peak_memory_bytes, step.short_of_memory,
    )  # fmt: skip


def kept(runs: Sequence[Run]) -> list[Run]:
    """The latest, and of each number of partitions the latest that there are: what a number costs is not forgotten
    while others run."""
    number, found = Counter[int](), list[Run]()
    for back, run in enumerate(reversed(runs)):
        number[run.partitions] += 1
        if back < KEPT_RUNS or number[run.partitions] <= KEPT_ALIKE:
            found.append(run)
    return found[:KEPT_MOST][::-1]


def took_of(steps: Sequence[Step], seconds: float) -> Took | None:
    """What a run tells of its job's next; None of one that failed somewhere, or brought no new records to silver."""
    brought = sum(step.expected_bytes for step in steps if step.step == "silver")
    spent, worked = (sum(getattr(step, name) for step in steps) for name in ("seconds", "task_seconds"))
    if not brought or not spent or any(step.failed for step in steps):
        return None
    # Executors that were idle at a step's end have gone by then: it had as many cores as its tasks kept busy, at least.
    had = sum(max(step.cores * step.seconds, step.task_seconds) for step in steps) / spent
    return Took(brought, max(1, round(had), math.ceil(worked / seconds)), round(seconds, 3), round(worked, 3))


# --- in commits ---

T = TypeVar("T", Run, Took)


def _rows(kind: type[T], runs: Mapping[str, Sequence[T]]) -> dict[str, Any]:
    names = [one.name for one in fields(kind)]
    return {"figures": names, "runs": {key: [astuple(run) for run in latest] for key, latest in runs.items()}}


def _runs(kind: type[T], told: Mapping[str, Any]) -> dict[str, list[T]]:
    """Runs as a version of ours put them down that knew of other figures, or of fewer."""
    known = {one.name for one in fields(kind)}

    def run(values: Sequence[Any]) -> T:
        return kind(**{name: value for name, value in zip(told["figures"], values, strict=True) if name in known})

    return {key: [run(values) for values in latest] for key, latest in told["runs"].items()}


def read(files: Files, steps: str) -> History:
    """What the newest commit that tells says; ``steps`` is the place of the table of steps."""
    log = f"{steps}/_delta_log"
    if not files.is_folder(log):
        return History()
    paths = sorted((file.path for file in files.walk(log) if COMMIT.search(file.path)), reverse=True)
    return next((told for path in paths if (told := _told(files, path))), History())


def _told(files: Files, path: str) -> History | None:
    """What a commit says; None of one that is not ours, or that this version cannot read."""
    with files.copy(path) as copy:
        actions = map(json.loads, copy.read_text("utf-8").splitlines())
        texts = [action["commitInfo"].get("userMetadata") for action in actions if "commitInfo" in action]
    try:
        told = json.loads(texts[0])[KEY]
        return History(_runs(Run, told["steps"]), _runs(Took, told["jobs"]), told["frozen"])
    except (KeyError, TypeError, ValueError, IndexError):
        return None
