"""Models by dataset and version, and what each is allowed to do, in one table that only grows.

A row is a model or a step of one: its stage from then on. What several steps of one decision change is one commit, and
of two decisions that were taken at once Delta lets the second see the first.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields
from datetime import datetime
from typing import Final, Literal, get_args

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from drivetrain import ops
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.sink import CONFLICT, NO_STATISTICS, Table, Txn

Stage = Literal["shadow", "advisory", "enforce", "retired"]
What = Literal["fitted", "promoted", "replaced", "restored", "withdrawn"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
ACTING: Final[tuple[Stage, ...]] = ("advisory", "enforce")
MODELS: Final = "models"
SCHEMA: Final = (
    "step bigint, dataset string, version bigint, stage string, what string, why string, at timestamp, run string,"
    " model binary, card string"
)


@dataclass(frozen=True)
class Step:
    """The ``stage`` of a model from the table's commit ``step`` on: because it was fitted, promoted, replaced by
    another, or restored or withdrawn by a rollback."""

    step: int
    dataset: str
    version: int
    stage: Stage
    what: What
    why: str
    at: datetime
    run: str


@dataclass(frozen=True)
class Standing:
    """A version and its stage."""

    version: int
    stage: Stage


@dataclass(frozen=True)
class History:
    """All steps of one dataset's models, oldest first."""

    dataset: str
    steps: Sequence[Step]

    @property
    def stages(self) -> dict[int, Stage]:
        """The stage of each version now."""
        return {step.version: step.stage for step in self.steps}

    @property
    def acting(self) -> Standing | None:
        """The version that has a say in what becomes of rows."""
        return _acting(self.stages)

    @property
    def judging(self) -> Standing | None:
        """The version by which rows are scored: the acting one, else the one in shadow."""
        if self.acting or self.shadow is None:
            return self.acting
        return Standing(self.shadow, "shadow")

    @property
    def shadow(self) -> int | None:
        """The version that stands in the shadow; there is one at most."""
        return next((version for version, stage in self.stages.items() if stage == "shadow"), None)

    @property
    def before(self) -> list[Standing | None]:
        """What acted, decision by decision, but for those that were taken back; now is the last."""
        past: list[Standing | None] = [None]
        stages: dict[int, Stage] = {}
        for number in dict.fromkeys(step.step for step in self.steps):
            taken = [step for step in self.steps if step.step == number]
            stages |= {step.version: step.stage for step in taken}
            if any(step.what in ("withdrawn", "restored") for step in taken):
                past.pop()
            elif _acting(stages) != past[-1]:
                past.append(_acting(stages))
        return past

    @property
    def last(self) -> Standing | None:
        """What a rollback has back."""
        return self.before[-2] if len(self.before) > 1 else None

    def checked(self, version: int) -> int:
        """Raises:
        DrivetrainError: the dataset has no model of that version.
        """
        if version not in self.stages:
            listed = ", ".join(map(str, self.stages)) or "none yet"
            what = f"there is no model {version}; there are: {listed}"
            raise DrivetrainError(Problem("model-unknown", self.dataset, what, "anomalies list shows them"))
        return version


def _acting(stages: dict[int, Stage]) -> Standing | None:
    return next((Standing(version, stage) for version, stage in stages.items() if stage in ACTING), None)


Changes = Sequence[tuple[int, Stage, What]]


def _replaced(history: History, by: int, stages: Sequence[Stage]) -> Changes:
    return [(other, "retired", "replaced") for other, its in history.stages.items() if its in stages and other != by]


class Registry:
    """Reads and writes the table."""

    def __init__(self, spark: SparkSession, warehouse: str) -> None:
        self.spark, self.table = spark, Table(spark, f"{warehouse}/{MODELS}")

    def history(self, dataset: str) -> History:
        return next(iter(self.histories([dataset])), History(dataset, ()))

    def histories(self, datasets: Sequence[str]) -> list[History]:
        """Those of these datasets that have models."""
        if not datasets or not self.table.exists():
            return []
        names = [field.name for field in fields(Step)]
        rows = self.table.read().where(F.col("dataset").isin(*datasets)).select(*names).collect()
        steps = sorted((Step(**row.asDict()) for row in rows), key=lambda step: (step.step, step.stage in ACTING))
        named = {name: [step for step in steps if step.dataset == name] for name in datasets}
        return [History(name, found) for name, found in named.items() if found]

    def model(self, dataset: str, version: int) -> bytes:
        """Raises:
        DrivetrainError: there is no such model.
        """
        wanted = (F.col("dataset") == dataset) & (F.col("version") == version) & F.col("model").isNotNull()
        rows = self.table.read().where(wanted).select("model").collect() if self.table.exists() else []
        if not rows:
            self.history(dataset).checked(version)
            what, fix = f"the bytes of model {version} are gone", "restore the table of models, or fit another"
            raise DrivetrainError(Problem("model-unknown", dataset, what, fix))
        return bytes(rows[0]["model"])

    def add(self, dataset: str, model: bytes, card: str, run: str, why: str) -> int:
        """Keep a model in the shadow; its version."""

        def change(history: History) -> tuple[Changes, tuple[bytes, str]]:
            version = max(history.stages, default=0) + 1
            return [(version, "shadow", "fitted"), *_replaced(history, version, ("shadow",))], (model, card)

        return self._decide(dataset, change, run, why)[0].version

    def promote(self, dataset: str, version: int, stage: Stage, run: str, why: str) -> list[Step]:
        """Give a version that stage; what stood in its place is retired, in the same commit.

        Raises:
            DrivetrainError: there is no such version, or it has that stage.
        """

        def change(history: History) -> tuple[Changes, None]:
            if history.stages[history.checked(version)] == stage:
                fix = "nothing is to be done; anomalies list shows the stages"
                raise DrivetrainError(Problem("model-stage", dataset, f"model {version} is in {stage} already", fix))
            rivals = ACTING if stage in ACTING else (stage,) if stage == "shadow" else ()
            return [(version, stage, "promoted"), *_replaced(history, version, rivals)], None

        return self._decide(dataset, change, run, why)

    def rollback(self, dataset: str, run: str, why: str) -> list[Step]:
        """Have what acted before the last decision about that.

        Raises:
            DrivetrainError: there was none.
        """

        def change(history: History) -> tuple[Changes, None]:
            past = history.before
            if len(past) < 2:
                what = "no model has been promoted that could be taken back"
                raise DrivetrainError(Problem("model-stage", dataset, what, "anomalies list shows the stages"))
            now, then = past[-1], past[-2]
            back: Changes = [(then.version, then.stage, "restored")] if then else []
            same = now and then and now.version == then.version
            gone: Changes = [(now.version, "retired", "withdrawn")] if now and not same else []
            return [*gone, *back], None

        return self._decide(dataset, change, run, why)

    def _decide(
        self, dataset: str, change: Callable[[History], tuple[Changes, tuple[bytes, str] | None]], run: str, why: str
    ) -> list[Step]:
        """One commit of what ``change`` makes of the dataset's history; again where another decision came between."""
        while True:
            number, own = max(self.table.last_txn(MODELS), 0) + 1, uuid.uuid4().hex
            changes, model = change(self.history(dataset))
            at = ops.now()
            steps = [Step(number, dataset, version, stage, what, why, at, run) for version, stage, what in changes]
            rows = [(*astuple(step), *((model if step.what == "fitted" else None) or (None, None))) for step in steps]
            frame = self.spark.createDataFrame(rows, SCHEMA).coalesce(1)
            with suppress(*CONFLICT):
                self.table.append(frame, Txn(MODELS, number), {"run": run, "commit": own}, NO_STATISTICS)
            newest = next((m for _, m in self.table.commits() if m["number"] <= number), {})
            if newest.get("commit") == own:
                return steps
