"""What runs have taught: each step's and each job's latest, and what a person has fixed. Each commit to the table of
steps carries the whole of it, so that a launcher reads it too, without Spark."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from drivetrain.capacity import Took
from drivetrain.files import Files
from drivetrain.ops import Step

KEY: Final = "learned"  # in a commit's metadata
KEPT_RUNS: Final = 8
KEPT_JOBS: Final = 16
SURPRISE: Final = 4.0  # measured / forecast, or the other way round
NOTABLE: Final = 8 << 20  # below that many bytes shuffled nothing is a surprise
COMMIT: Final = re.compile(r"\d{20}\.json$")


@dataclass(frozen=True)
class Run:
    """What one run of a step was given and did."""

    input_bytes: int
    shuffle_bytes: int
    spill_bytes: int
    cpu_seconds: float
    partitions: int
    forecast_bytes: int
    learned: bool
    peak_memory_bytes: int = 0

    @property
    def surprised(self) -> bool:
        """Whether history had told another volume."""
        high, low = max(self.shuffle_bytes, self.forecast_bytes), min(self.shuffle_bytes, self.forecast_bytes)
        return self.learned and high > NOTABLE and high > SURPRISE * low


@dataclass(frozen=True)
class History:
    """Latest runs of each step ("silver orders") and of each job, oldest first; and settings that a person has fixed
    for a step."""

    steps: Mapping[str, Sequence[Run]] = field(default_factory=dict)
    jobs: Mapping[str, Sequence[Took]] = field(default_factory=dict)
    frozen: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def metadata(self) -> dict[str, Any]:
        """As a commit carries it."""
        rows = {
            name: {key: [list(asdict(run).values()) for run in runs] for key, runs in part.items()}
            for name, part in (("steps", self.steps), ("jobs", self.jobs))
        }
        return {KEY: {**rows, "frozen": self.frozen}}

    def with_run(self, job: str, steps: Sequence[Step], seconds: float) -> History:
        """With what a run of the job did, which took that many seconds in all."""
        made = {key: list(runs) for key, runs in self.steps.items()}
        for step in steps:
            run = observed(step)
            if run:
                made.setdefault(step_key(step.step, step.dataset), []).append(run)
        kept = {key: runs[-KEPT_RUNS:] for key, runs in made.items()}
        took = took_of(steps, seconds)
        jobs = {**self.jobs, job: [*self.jobs.get(job, ()), took][-KEPT_JOBS:]} if took else self.jobs
        return History(kept, jobs, self.frozen)

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
    """What a tuned step tells of the next; None of a failed one, or one that was not tuned."""
    if step.failed or not step.decisions:
        return None
    learned = any(decision["confidence"] == "learned" for decision in json.loads(step.decisions))
    return Run(
        step.expected_bytes, step.shuffle_write_bytes, step.spill_bytes, round(step.cpu_seconds, 3), step.partitions,
        step.expected_shuffle_bytes, learned, step.peak_memory_bytes,
    )  # fmt: skip


def took_of(steps: Sequence[Step], seconds: float) -> Took | None:
    """What a run tells of its job's next; None of one that failed somewhere, or brought no new records to silver."""
    brought = sum(step.expected_bytes for step in steps if step.step == "silver")
    if not brought or any(step.failed for step in steps):
        return None
    spent = sum(step.seconds for step in steps) or 1.0
    cores = round(sum(step.cores * step.seconds for step in steps) / spent)
    return Took(brought, max(1, cores), round(seconds, 3), round(sum(step.task_seconds for step in steps), 3))


def read(files: Files, steps: str) -> History:
    """What the newest commit that tells says; ``steps`` is the place of the table of steps."""
    log = f"{steps}/_delta_log"
    if not files.is_folder(log):
        return History()
    paths = sorted((file.path for file in files.walk(log) if COMMIT.search(file.path)), reverse=True)
    return next((told for path in paths if (told := _told(files, path))), History())


def _told(files: Files, path: str) -> History | None:
    with files.copy(path) as copy:
        actions = map(json.loads, copy.read_text("utf-8").splitlines())
        texts = [action["commitInfo"].get("userMetadata") for action in actions if "commitInfo" in action]
    found = json.loads(texts[0]).get(KEY) if texts and texts[0] else None
    if not found:
        return None
    steps = {key: [Run(*values) for values in runs] for key, runs in found["steps"].items()}
    jobs = {key: [Took(*values) for values in runs] for key, runs in found["jobs"].items()}
    return History(steps, jobs, found["frozen"])
