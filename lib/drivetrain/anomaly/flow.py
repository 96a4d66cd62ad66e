"""Anomalies in the flow: which model judges a dataset, what its verdicts did to some loads, and where that is written.

Batches are judged when silver takes their loads, streams when their records are appended to the log: the unified view
shows them at once, and what it shows must be what silver will hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from drivetrain import ops, quarantine, silver
from drivetrain.anomaly import drift, fit, reference, udf
from drivetrain.anomaly.fit import check_features
from drivetrain.anomaly.judge import VERDICT, Decision, Judge, check_expressions, group_counts
from drivetrain.anomaly.registry import ACTING, Registry
from drivetrain.anomaly.udf import Fitted
from drivetrain.anomaly.worker import SCORE
from drivetrain.checks import shown_value
from drivetrain.contracts import Dataset
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.session import FAILURES, is_data_error, reason
from drivetrain.sink import Table, Txn, again

if TYPE_CHECKING:
    from drivetrain.pipeline import Loads, Pipeline

LOOKED_AT: Final = 5  # commits in which the decision on the load before is looked for
SHOWN_GROUPS: Final = 20
REVIEWED: Final = ("quarantined", "insert", "update")  # outcomes of rows that are somewhere
PROPERTIES: Final = {"delta.dataSkippingStatsColumns": "anomaly_id,dataset,version,_load"}


class Judges:
    """The judge of each dataset, as the table of models has it now."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline, self.registry = pipeline, Registry(pipeline.spark, pipeline.warehouse)
        self.known: dict[str, tuple[int, Judge | None]] = {}
        self.models: dict[tuple[str, int], Fitted] = {}
        self.shadows: dict[str, tuple[int, int | None]] = {}

    def of(self, dataset: Dataset) -> Judge | None:
        """None where no model was fitted, or where it cannot be used, which is a problem but does not stop the load."""
        if not dataset.anomaly:
            return None
        try:
            if not self.registry.table.exists():
                return None
            version = self.registry.table.version()
            if self.known.get(dataset.name, (-1, None))[0] != version:
                self.known[dataset.name] = version, self.made(dataset)
            return self.known[dataset.name][1]
        except DrivetrainError as error:  # which is so until the table has another version
            self.known[dataset.name] = version, None
            unjudged(self.pipeline, dataset, error)
        except FAILURES as error:
            unjudged(self.pipeline, dataset, error)
        return None

    def made(self, dataset: Dataset) -> Judge | None:
        """Raises:
        DrivetrainError: the model is damaged, or does not fit the contract of now.
        """
        standing = self.registry.history(dataset.name).judging
        if not standing:
            return None
        fitted = self.checked(dataset, standing.version)
        told = udf.teller(self.pipeline.spark, fitted)
        slow = f"rows are scored some 20 times slower than they could be: {udf.kernel().why}"
        if udf.kernel().why and slow not in self.pipeline.outcome.notes:
            self.pipeline.outcome.notes.append(slow)
        return Judge(dataset, standing.version, standing.stage, fitted.threshold, told)

    def shadow(self, dataset: Dataset) -> int | None:
        """The version that stands in the shadow."""
        version = self.registry.table.version()
        if self.shadows.get(dataset.name, (-1, None))[0] != version:
            self.shadows[dataset.name] = version, self.registry.history(dataset.name).shadow
        return self.shadows[dataset.name][1]

    def checked(self, dataset: Dataset, version: int) -> Fitted:
        """A model that can judge the dataset by the contract of now.

        Raises:
            DrivetrainError: as `made`.
        """
        check_expressions(self.pipeline.spark, dataset)
        return self.fitted(dataset, version)

    def fitted(self, dataset: Dataset, version: int) -> Fitted:
        """Raises:
        DrivetrainError: as `made`.
        """
        key = dataset.name, version
        if key not in self.models:
            fitted = Fitted(self.registry.model(*key), fit.key(self.pipeline))
            if (of := fitted.model.card.get("dataset")) != dataset.name:  # it may be signed, and yet not for this
                what, fix = f"model {version} was fitted on {of}", "restore the table of models, or fit another"
                raise DrivetrainError(Problem("model-foreign", dataset.name, what, fix))
            check_features(fitted.model, dataset)
            self.models[key] = fitted
        return self.models[key]


class Sitting:
    """One load of a stream, judged before it is appended: its rows are computed once and kept until that is done.
    ``said`` is what the commit says of it."""

    def __init__(self, pipeline: Pipeline, judge: Judge | None, log: Table, careful: bool) -> None:
        self.pipeline, self.judge, self.log, self.careful = pipeline, judge, log, careful
        self.rows: DataFrame | None = None
        self.said: Mapping[str, Any] = {}

    def __enter__(self) -> Sitting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rows is not None:
            self.rows.unpersist()

    def verdict(self, rows: DataFrame) -> DataFrame:
        if not self.judge:
            return rows
        try:
            return self.judged(rows, self.judge)
        except FAILURES as error:
            if is_data_error(error) and not self.careful:
                raise
            unjudged(self.pipeline, self.judge.dataset, error)
            return rows

    def judged(self, rows: DataFrame, judge: Judge) -> DataFrame:
        row = silver.row_column(judge.dataset)
        scored = judge.scored(rows, self.careful, row)
        self.rows = silver.ruled(scored, silver.removed()).persist()
        decision = judge.decide(self.rows, before(self.log), row)
        self.said = {"anomaly": asdict(decision)}
        return silver.kept(self.rows) if decision.held else self.rows


def before(table: Table) -> Decision | None:
    """The newest decision that the table's commits tell of."""
    commits = islice(table.commits(), LOOKED_AT) if table.exists() else ()
    return next((Decision(**metadata["anomaly"]) for _, metadata in commits if metadata.get("anomaly")), None)


@dataclass(frozen=True)
class Given:
    """What was decided of the loads up to ``last``."""

    last: int
    decision: Decision


def given(pipeline: Pipeline, dataset: Dataset, done: int) -> Given | None:
    """What a run has decided of loads after ``done``, the last that silver has, before it ended. It stands: people may
    have seen it, and acted on it."""
    table = pipeline.table("ops", "anomalies")
    last = table.last_txn(dataset.name)
    if last <= done:
        return None
    mine = (m for _, m in table.commits() if (m.get("app"), m.get("number")) == (dataset.name, last))
    return next((Given(last, Decision(**metadata["anomaly"])) for metadata in mine), None)


def judged_alike(pipeline: Pipeline, dataset: Dataset, done: int, last: int) -> int:
    """Of the loads after ``done`` up to ``last`` that a stream has judged as they came: the last one before another
    version, or the same at another stage, had the say. What is told of loads is told of one."""
    if not dataset.stream or not dataset.anomaly:
        return last
    upto, said = last, None
    for number, one in _judged(pipeline, dataset, done + 1, last):
        now = one["version"], one["stage"]
        if said not in (None, now):
            upto = number
        said = now
    return upto


def _judged(pipeline: Pipeline, dataset: Dataset, first: int, last: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Of a stream's loads from ``first`` to ``last`` those that were judged as they came, and their decisions, newest
    first."""
    for _, metadata in pipeline.table("bronze", dataset.name).commits():
        if metadata["number"] < first:
            return
        if metadata["number"] <= last and "anomaly" in metadata:
            yield metadata["number"], metadata["anomaly"]


def with_verdicts(records: DataFrame, anomalies: Table, dataset: Dataset) -> DataFrame:
    """Records of the log, of which those are removed as an anomaly that were, whatever has become of them since."""
    if not anomalies.exists():
        return records
    gone = anomalies.read().where((F.col("dataset") == dataset.name) & F.col("removed"))
    if gone.isEmpty():
        return records
    said = F.to_json(F.struct(F.col("reason"), F.lit(True).alias("removed")))
    told = gone.select(*[F.col(name).alias(f"_v_{name}") for name in silver.ARRIVAL], said.alias("_said"))
    told = told.dropDuplicates([f"_v_{name}" for name in silver.ARRIVAL])
    same = [F.col(name).eqNullSafe(F.col(f"_v_{name}")) for name in silver.ARRIVAL]
    given = F.col("_anomaly") if "_anomaly" in records.columns else F.lit(None).cast("string")
    joined = records.join(told, reduce(Column.__and__, same), "left")
    kept = [name for name in records.columns if name != "_anomaly"]
    return joined.select(*kept, F.coalesce(given, "_said").alias("_anomaly"))


def decision(
    pipeline: Pipeline, dataset: Dataset, staged: DataFrame, loads: Loads, judge: Judge | None
) -> Decision | None:
    """What comes of the staged rows' verdicts, but for rows that came before; of a stream's, what has come of them.
    None where nobody judged them."""
    if loads.given:
        return loads.given
    if judge:
        return judge.decide(staged.where("_outcome <> 'duplicate'"), before(pipeline.table("silver", dataset.name)))
    if not dataset.stream:
        return None
    total: Decision | None = None
    for _, one in _judged(pipeline, dataset, loads.first, loads.last):
        total = _sum(total, Decision(**one))
    return total


def _sum(later: Decision | None, earlier: Decision) -> Decision:
    if later is None:
        return earlier
    sums = {name: getattr(later, name) + getattr(earlier, name) for name in ("judged", "flagged", "removed")}
    return replace(later, held=later.held or earlier.held, **sums)


def write_anomalies(pipeline: Pipeline, dataset: Dataset, staged: DataFrame, loads: Loads, decision: Decision) -> None:
    """An entry for each row that was flagged, unless in shadow. One that came before has one only if it was removed, as
    a replay must know; people are not asked about that."""
    if loads.given:  # they stand
        return
    place = ("_file", "_block", "_line", "_load")
    told = staged.where(F.col("_anomaly").isNotNull()).select(
        quarantine.row_id(dataset).alias("anomaly_id"), F.lit(dataset.name).alias("dataset"), open_key(dataset),
        F.from_json("_anomaly", VERDICT).alias("told"), F.col("_outcome").alias("outcome"), *place,
        F.lit(pipeline.outcome.run).alias("run"), F.lit(ops.now()).alias("at"),
    )  # fmt: skip
    wanted = (F.col("told.stage") != "shadow") & (F.col("told.removed") | F.col("outcome").isin(*REVIEWED))
    rows = told.where(wanted).select("anomaly_id", "dataset", "key", "told.*", "outcome", *place, "run", "at")
    if not rows.isEmpty():
        said, txn = {"run": pipeline.outcome.run, "anomaly": asdict(decision)}, Txn(dataset.name, loads.last)
        again(lambda: pipeline.table("ops", "anomalies").append(rows, txn, said, PROPERTIES))


def open_key(dataset: Dataset) -> Column:
    """``key``: the row's, by column, as far as everybody may see it."""
    shown = [(name, shown_value(dataset.column(name), F.col(name))) for name in dataset.key]
    return F.concat_ws(", ", *[F.concat(F.lit(f"{name} "), value) for name, value in shown]).alias("key")


def note(pipeline: Pipeline, dataset: Dataset, staged: DataFrame, loads: Loads, decision: Decision) -> None:
    """What was decided, and how far the rows have moved from the reference: into the outcome, and alerts where a person
    should look. Silver has the rows by now: that the latter cannot be told stops nothing."""
    if not decision.judged:
        return
    staged = staged.where("_outcome <> 'duplicate'")  # as they were not judged
    row = verdict(pipeline.outcome.run, dataset.name, loads.first, loads.last, decision)
    pipeline.outcome.verdicts.append(row)
    try:
        if decision.held:
            say(pipeline, dataset, "anomalies", told_of(decision))
        if not loads.given:  # else its rows have no scores any more
            sample = drift.sample(staged, dataset, decision.judged)
            if row.stage in ACTING:
                try_shadow(pipeline, dataset, sample, row)
            scores = note_drift(pipeline, dataset, sample, decision)
            groups = json.dumps(flagged_by_group(staged, dataset))
            pipeline.outcome.verdicts[-1] = replace(row, scores=json.dumps(scores), groups=groups)
    except (DrivetrainError, *reference.FAILED) as error:
        pipeline.outcome.notes.append(f"{dataset.name}: its drift was not measured: {_because(error)}")


def try_shadow(pipeline: Pipeline, dataset: Dataset, sample: pa.Table, acting: ops.VerdictRow) -> None:
    """What the version in the shadow of the one that acts would have flagged of the sample. That it cannot be tried is
    an alert, once."""
    version = pipeline.judges.shadow(dataset)
    if version is None:
        return
    try:
        new = fit.flagged(pipeline.judges.fitted(dataset, version).model, sample)
        old = sample[SCORE].to_numpy() > pipeline.judges.fitted(dataset, acting.version).threshold
    except (DrivetrainError, *reference.FAILED) as error:
        what = f"model {version}, in the shadow, cannot be tried"
        say(pipeline, dataset, "not-judged", f"{what}: {_because(error)}", once=what)
        return
    found = fit.comparison(acting.version, old, new)
    pipeline.outcome.trials.append(ops.TrialRow(
        pipeline.outcome.run, dataset.name, acting.first_load, acting.last_load, version, acting.version, found.rows,
        found.both, found.only_old, found.only_new, ops.now(),
    ))  # fmt: skip


def note_drift(pipeline: Pipeline, dataset: Dataset, sample: pa.Table, decision: Decision) -> Mapping[str, Any]:
    """How far the rows have moved; the histogram of their scores."""
    measured = drift.measured(sample, pipeline.judges.fitted(dataset, decision.version).model)
    pipeline.outcome.drifts += [
        ops.DriftRow(
            pipeline.outcome.run, dataset.name, decision.version, one.name, decision.judged, one.psi, one.distance,
            one.drifted, measured.report.rate, ops.now(),
        )
        for one in (*measured.report.features, measured.report.scores)
    ]  # fmt: skip
    if (stale := measured.stale) is not None:
        refit = f"{pipeline.conf.command('anomalies')} fit {dataset.name}"
        what = f"model {decision.version} is stale: {stale}; {refit} proposes another"
        say(pipeline, dataset, "stale", what, once=f"model {decision.version} is stale")
    return measured.scores


def verdict(run: str, dataset: str, first: int, last: int, decision: Decision) -> ops.VerdictRow:
    """A row of ops.verdicts; scores and groups are not known yet."""
    return ops.VerdictRow(
        run, dataset, first, last, decision.version, decision.stage, decision.judged, decision.flagged,
        decision.removed, decision.held, "{}", "[]", ops.now(),
    )  # fmt: skip


def told_of(decision: Decision) -> str:
    """Of a stream's loads some may have been held, and others not."""
    others = f" of some loads, and {decision.removed} rows of others" if decision.removed else ""
    return f"nothing was removed{others}: {decision.held}; look at ops.anomalies"


def recover(pipeline: Pipeline, dataset: str, metadata: Mapping[str, Any]) -> None:
    """The verdict and the alert of a commit to silver whose run may have ended before it could write them. Both are
    written in that run's name, and what it did write is not written twice."""
    found = Decision(**metadata["anomaly"])
    if found.judged:
        first, last, run = metadata["ledger"]["first_load"], metadata["number"], metadata["run"]
        pipeline.outcome.verdicts.append(verdict(run, dataset, first, last, found))
        if found.held:
            with pipeline.problem_of("ops"):
                ops.alert(pipeline.table("ops", "alerts"), run, "anomalies", dataset, told_of(found))


def unjudged(pipeline: Pipeline, dataset: Dataset, error: Exception) -> None:
    """Say, once a run, that rows go on without a verdict, as a problem and as an alert, since nobody reads a stream's
    problems."""
    fix = f"{pipeline.conf.command('anomalies')} list shows the models; rollback has back what acted before"
    own = Problem("not-judged", dataset.name, _because(error), fix)
    problems = error.problems if isinstance(error, DrivetrainError) else (own,)
    for problem in problems:
        if problem not in pipeline.outcome.problems:
            pipeline.outcome.problems.append(problem)
            pipeline.progress.say(f"{dataset.name}: rows are not judged: {problem.what}")
            with suppress(*FAILURES):
                ops.alert(
                    pipeline.table("ops", "alerts"), pipeline.outcome.run, "not-judged", dataset.name,
                    f"rows are not judged: {problem.what}",
                )  # fmt: skip


def _because(error: Exception) -> str:
    return error.problems[0].what if isinstance(error, DrivetrainError) else reason(error)


def flagged_by_group(staged: DataFrame, dataset: Dataset) -> list[tuple[str, int, int]]:
    """(group, judged, flagged) of those of which most was flagged, for people."""
    assert dataset.anomaly
    if dataset.anomaly.group is None:
        return []
    worst = group_counts(staged, dataset.anomaly.group).orderBy(F.desc("flagged"), F.desc("judged"), "name")
    return [tuple(row) for row in worst.limit(SHOWN_GROUPS).collect()]


def say(pipeline: Pipeline, dataset: Dataset, kind: str, what: str, once: str = "") -> None:
    """In the run's notes, and as an alert to whoever watches: not again where one began as ``once`` does."""
    pipeline.outcome.notes.append(f"{dataset.name}: {what}")
    alerts = pipeline.table("ops", "alerts")
    mine = (F.col("kind") == kind) & (F.col("dataset") == dataset.name) & F.startswith("what", F.lit(once))
    if not once or not alerts.exists() or alerts.read().where(mine).isEmpty():
        ops.alert(alerts, pipeline.outcome.run, kind, dataset.name, what)
