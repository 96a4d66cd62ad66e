"""The flow on one page: landing -> bronze -> silver -> gold, each step idempotent, each record accounted for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from threading import Lock
from typing import TypeVar

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from drivetrain import (
    assess,
    bronze,
    catalog,
    checks,
    gold,
    jdbc,
    logend,
    maintain,
    ops,
    publish,
    quarantine,
    refresh,
    silver,
    source,
    sqltext,
    tune,
)
from drivetrain.anomaly import flow, runs
from drivetrain.anomaly.judge import Decision, Judge
from drivetrain.contracts import ANOMALY, META_COLUMNS, Conf, Dataset, GoldTable, digest
from drivetrain.drift import fit, new_columns
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.extent import Extent, extent
from drivetrain.files import LOCAL, Files
from drivetrain.landing import (
    Arrival,
    Intake,
    Landed,
    Pull,
    Rejected,
    arrivals,
    changed,
    grown,
    inspect_all,
    listing,
)
from drivetrain.progress import Progress
from drivetrain.session import FAILURES, carefully, cloned, embedded, files_of, reason
from drivetrain.sink import CONFLICT, NO_STATISTICS, Table, Txn, again, session_confs

LEDGER = "ledger"
TEXT_WIDTH, NUMBER_WIDTH = 20, 8  # bytes that Spark takes them for
UNLOCKED = ("replay", "anomalies")  # write while others may, whose history must stand
UNTUNED = ("speed", *UNLOCKED)  # what they run in streams keeps the settings of its first start
FILES = ":files:"  # in the names of commits to quarantine that tell of files

T = TypeVar("T")
# Appends records to a dataset's log, with what the commit says, the records' layouts and their files; rows written.
Append = Callable[[Dataset, DataFrame, Mapping[str, object], Mapping[str, Sequence[str]], Sequence[Intake]], int]


@dataclass
class Outcome:
    """What a run did."""

    run: str
    ledger: list[ops.LedgerRow] = field(default_factory=list)
    checks: list[ops.CheckRow] = field(default_factory=list)
    verdicts: list[ops.VerdictRow] = field(default_factory=list)
    drifts: list[ops.DriftRow] = field(default_factory=list)
    trials: list[ops.TrialRow] = field(default_factory=list)
    profiles: list[ops.ProfileRow] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


class Pipeline:
    """One run over one conf: holds the session and the outcome; the steps are its methods, in the order of the flow."""

    def __init__(self, spark: SparkSession, conf: Conf, run: str, job: str, progress: Progress) -> None:
        self.spark, self.conf, self.progress = spark, conf, progress
        self.warehouse = conf.settings.warehouse
        self.outcome, self.steps = Outcome(run), ops.Steps(spark, run, job)
        self.listings: dict[str, str] = {}
        self.looked_into: dict[str, tuple[list[Intake], list[Rejected]]] = {}
        self.known_files: dict[str, dict[str, list[Intake]]] = {}
        self.judges, self.turn = flow.Judges(self), Lock()
        tuned = conf.settings.tune and job not in UNTUNED
        self.tuner = tune.Tuner(spark, self.table("ops", "steps")) if tuned else None

    def table(self, layer: str, name: str) -> Table:
        return Table(self.spark, f"{self.warehouse}/{layer}/{name}")

    def files(self, path: str) -> Files:
        return files_of(path, self.spark)

    @property
    def quarantine(self) -> Table:
        return Table(self.spark, f"{self.warehouse}/quarantine")

    def transform(self, names: Sequence[str] = (), ingest: bool = True) -> Outcome:
        """Bronze and silver of each dataset, then the gold tables whose inputs changed. A failing dataset does not stop
        the others; its problem is in the outcome. Without ``ingest`` the log is taken as it is."""
        self.recover_ledger()
        for dataset in self.conf.datasets.values():
            if not names or dataset.name in names:
                if ingest:
                    with self.problem_of(dataset.name):
                        self.ingest_alone(dataset)
                self.refine_and_unify(dataset)
        with self.problem_of("quarantine"):
            self.mark_loaded()
        self.publish_all()
        with self.problem_of("manifest"):
            self.publish_manifest()
        with self.problem_of("catalog"):
            self.show_names()
        if self.steps.done:
            maintain.compact(self)
        runs.look(self)
        with self.problem_of("ops"):
            self.write_ops()
        return self.outcome

    def assess(self) -> None:
        """Look at a sample of the newest new file of each feed: nulls, kinds, drift."""
        profiles = self.table("ops", "profiles")
        for dataset in self.conf.datasets.values():
            with self.problem_of(dataset.name):
                new, _ = self.new_files(dataset)
                if new:
                    self.assess_one(dataset, max(new, key=lambda file: (file.modified, file.name)), profiles)

    def assess_one(self, dataset: Dataset, newest: Intake, profiles: Table) -> None:
        explained, whole = jdbc.explained(dataset), source.one_split_a_task(self.spark)
        with self.step("assess", dataset.name) as step, explained, whole:
            records = source.read(self.spark, dataset, [newest]).limit(self.conf.settings.sample_rows)
            layouts = {newest.layout: newest.header}
            texts = silver.texts(records, dataset, layouts, self.conf.settings.max_record_bytes)
            found = assess.profile(texts.drop(*META_COLUMNS))
            last = {}
            if profiles.exists():
                mine = profiles.read().where(F.col("dataset") == dataset.name)
                newest_run = F.max_by(F.struct("*"), "run").alias("last")
                last = {row["column"]: row["last"] for row in mine.groupBy("column").agg(newest_run).collect()}
            rows = assess.rows(self.outcome.run, dataset, newest, found, last, ops.now())
            step.rows = max((row.sampled for row in rows), default=0)
        self.outcome.profiles += rows
        self.outcome.notes += [f"{dataset.name}.{row.column}: {row.note}" for row in rows if row.note]

    @contextmanager
    def problem_of(self, name: str) -> Iterator[None]:
        met: Sequence[Problem] = ()
        try:
            yield
        except DrivetrainError as error:
            met = error.problems
        except (*FAILURES, OSError, UnicodeError) as error:
            fix = "run again when the cause is gone: what was committed is not written twice"
            met = [Problem("spark", name, reason(error), fix)]
        with self.turn:  # steps beside each other, and assess, may meet the same
            self.outcome.problems += [problem for problem in met if problem not in self.outcome.problems]

    # --- landing -> bronze ---

    def ingest_alone(self, dataset: Dataset) -> None:
        """`ingest`, unless a stream does it."""
        if not dataset.stream:
            self.ingest(dataset)
            return
        try:
            with self.leased(dataset):
                self.ingest(dataset)
        except BlockingIOError as error:
            self.progress.say(
                f"{dataset.name}: {error.strerror or 'another process'} streams it; its log is taken as it is"
            )

    def leased(self, dataset: Dataset) -> AbstractContextManager[None]:
        """A context in which nobody else brings records from the dataset's source.

        Raises:
            BlockingIOError: another does; ``strerror`` says who.
        """
        folder = f"{self.warehouse}/_speed/{dataset.name}"
        return self.files(folder).lock(folder, self.spark.sparkContext.applicationId)

    def ingest(self, dataset: Dataset, append: Append | None = None) -> None:
        """Append what is new in the feed's folder or table to the log, as one commit; a stream appends by its own."""
        if dataset.kafka:
            return
        new, rejected = self.new_files(dataset)
        self.reject(dataset, rejected)
        while new:
            try:
                with jdbc.explained(dataset):
                    self.load(dataset, new, append or self.append_log)
                return
            except FAILURES as error:
                new = self.without_offenders(dataset, new, error)

    def new_files(self, dataset: Dataset) -> tuple[list[Intake], list[Rejected]]:
        """What the log has not taken: files, and those that cannot be read, or a pull; looked into once a run."""
        if dataset.kafka:
            return [], []
        if dataset.name not in self.looked_into:
            self.looked_into[dataset.name] = self.look_at_table(dataset) if dataset.jdbc else self.look(dataset)
        return self.looked_into[dataset.name]

    def look_at_table(self, dataset: Dataset) -> tuple[list[Intake], list[Rejected]]:
        """The pull that is due, now; none where nothing came since the last."""
        taken = [one for entries in self.taken(dataset).values() for one in entries]
        pull, newest = jdbc.look(self.spark, dataset, taken, self.conf.settings.timezone)
        if newest is not None or (pull is None and not taken):
            self.note_age(dataset, newest, "row")
        if pull is None:
            return [], []
        verdict = _refusal(dataset, pull, (), LOCAL)
        return ([], [verdict]) if verdict else ([pull], [])

    def look(self, dataset: Dataset) -> tuple[list[Intake], list[Rejected]]:
        """As `new_files`, now. A file whose name and content the log has is not new."""
        files = self.files(dataset.path)
        there = arrivals(dataset, self.conf.settings.settle_seconds, files)
        self.note_age(dataset, max((file.modified for file in there), default=None), "file")
        self.listings[dataset.name] = digest([dataset.fingerprint, listing(there)])
        if self.listings[dataset.name] == self.last_listing(dataset):
            return [], []
        taken = self.taken(dataset)
        latest = {name: versions[-1] for name, versions in taken.items()}
        fresh = [a for a in there if not _same(a, latest.get(a.name))]
        looked = inspect_all(dataset, fresh, files)
        landed: list[Intake] = [f for f in looked if isinstance(f, Landed) and not _same(f, latest.get(f.name))]
        rejected = [f for f in looked if isinstance(f, Rejected)]
        for file in list(landed):
            verdict = _refusal(dataset, file, taken.get(file.name, ()), files)
            if verdict:
                landed.remove(file)
                rejected.append(verdict)
        return landed, rejected

    def note_age(self, dataset: Dataset, newest: int | None, what: str) -> None:
        """Say so where the newest file or row (its time in ns since 1970) is older than the contract's freshness."""
        hours = (time.time_ns() - newest) / 3.6e12 if newest else None
        if dataset.freshness_hours is not None and (hours is None or hours > dataset.freshness_hours):
            age = f"no {what} has come" if hours is None else f"the newest {what} is {hours:.1f} h old"
            self.outcome.notes.append(f"{dataset.name}: {age}, its SLA is {dataset.freshness_hours:g} h")
            self.progress.say(self.outcome.notes[-1])

    def last_listing(self, dataset: Dataset) -> str | None:
        """The listing that the last load saw, and took whole."""
        log = self.table("bronze", dataset.name)
        return next((metadata.get("listing") for _, metadata in log.commits()), None) if log.exists() else None

    def taken(self, dataset: Dataset) -> dict[str, list[Intake]]:
        """What the log says of files or pulls, by name, in the order of their loads; read once a run."""
        if dataset.kafka:
            return {}
        if dataset.name not in self.known_files:
            files: dict[str, list[Intake]] = {}
            table = self.table("bronze", dataset.name)
            entries = bronze.file_entries(table.read()).collect() if table.exists() else []
            for row in sorted(entries, key=lambda entry: entry["_load"]):
                file = bronze.landed(row["raw"])
                files.setdefault(file.name, []).append(file)
            self.known_files[dataset.name] = files
        return self.known_files[dataset.name]

    def load(self, dataset: Dataset, files: Sequence[Intake], append: Append) -> None:
        layouts = {**self.layouts(dataset), **{file.layout: file.header for file in files}}
        with self.step("bronze", dataset.name) as step, source.one_split_a_task(self.spark):
            records = source.read(self.spark, dataset, files)
            metadata = {"listing": self.listings.get(dataset.name), "files": len(files)}
            known = self.taken(dataset)
            del self.known_files[dataset.name]  # if the append fails, or its end is not seen, the log is asked again
            step.rows = append(dataset, records, metadata, layouts, files) - len(files)
            for file in files:
                known.setdefault(file.name, []).append(file)
            self.known_files[dataset.name] = known
        for file in files:
            if isinstance(file, Landed) and changed(file, self.files(dataset.path)):
                self.outcome.notes.append(
                    f"{dataset.name}: {file.name} changed while it was read; the next run takes it again"
                )

    def append_log(
        self,
        dataset: Dataset,
        records: DataFrame,
        metadata: Mapping[str, object],
        layouts: Mapping[str, Sequence[str]],
        files: Sequence[Intake] = (),
    ) -> int:
        """Append records, and the entries of the files they are from, as the next load; the number of rows written."""
        table = self.table("bronze", dataset.name)
        while True:
            after = logend.end(table)
            load = bronze.Load(after.number + 1, self.outcome.run, ops.now())
            then = after.next(after.mark, silver.row_column(dataset) if dataset.stream else None)
            with flow.Sitting(self, self.judge(dataset) if dataset.stream else None, table, careful=True) as sitting:
                if dataset.stream:  # else the unified view could not show them before silver has them
                    judged = silver.judged(records, dataset, layouts, self.conf.settings.max_record_bytes, careful=True)
                    rows = silver.beside(judged, dataset, load, None, sitting.verdict).drop("_rule", "_late")
                else:
                    rows = bronze.log_records(records, load)
                if files:
                    rows = rows.unionByName(bronze.log_files(self.spark, files, load), allowMissingColumns=True)
                said = {"run": self.outcome.run, **metadata, **sitting.said}
                with suppress(logend.Taken):  # by a stream, which runs beside this job
                    return table.rows_written(logend.append(table, dataset.name, after, rows, said, then))

    def without_offenders(self, dataset: Dataset, files: Sequence[Intake], error: Exception) -> list[Intake]:
        """After a failed load: the files that can be read alone. The others go to quarantine.

        Raises:
            Exception: ``error``, where no single file is to blame.
        """
        good: list[Intake] = []
        bad: list[Rejected] = []
        for file in files:
            if isinstance(file, Pull):
                raise error
            try:
                with source.one_split_a_task(self.spark):
                    source.read(self.spark, dataset, [file]).write.format("noop").mode("overwrite").save()
                good.append(file)
            except FAILURES as own:
                rule = "unreadable" if self.files(dataset.path).find(file.path) else "vanished"
                bad.append(Rejected(file.name, file.size, file.modified, rule, f"{file.name}: {reason(own)}"))
        if not bad:
            raise error
        self.reject(dataset, bad)
        return good

    def reject(self, dataset: Dataset, files: Sequence[Rejected]) -> None:
        """Put files into quarantine, each once, and say so; a refused file fails the job too."""
        for file in files:
            self.listings.pop(dataset.name, None)  # the next run looks again: the cause may be gone by then
            self.progress.say(f"{dataset.name}: {file.reason} [{file.rule}]")
            self.outcome.notes.append(f"{dataset.name}: {file.reason}")
            if file.rule == "drift":
                self.refuse(dataset, file.reason)
        files = [file for file in files if file.rule != "vanished"]
        if files and self.quarantine.exists():
            known = self.quarantine.read().where((F.col("dataset") == dataset.name) & F.col("_load").isNull())
            ids = {row[0] for row in known.select("quarantine_id").collect()}
            files = [file for file in files if quarantine.file_id(dataset, file) not in ids]
        if files:
            rows = quarantine.of_files(self.spark, dataset, files, self.outcome.run)
            txn = Txn(f"{dataset.name}{FILES}{self.outcome.run}:{len(self.outcome.notes)}", 1)
            self.quarantine.append(rows, txn, {"run": self.outcome.run}, quarantine.PROPERTIES)

    def mark_loaded(self) -> None:
        """A file that was rejected once and has been taken since is no longer open in quarantine; nor is a folder that
        could not be listed, once a file of it has been taken."""
        if not self.steps.done or not self.quarantine.exists():
            return
        known = self.quarantine.txns_if_known()
        if known is not None and not any(FILES in app for app in known):
            return
        open_ = self.quarantine.read().where("state = 'open' AND _load IS NULL")
        ids = []
        rows = open_.select("quarantine_id", "dataset", "_file", "_run").collect()
        for name in {row["dataset"] for row in rows} & set(self.conf.datasets):
            mine = [row for row in rows if row["dataset"] == name]
            log, oldest = self.table("bronze", name), min(row["_run"] for row in mine)
            if not log.exists():
                continue
            entries = bronze.file_entries(log.read()).where(F.col("_run") > oldest)
            since = entries.select("_file", "_run").collect()
            ids += [
                row["quarantine_id"]
                for row in mine
                if any(run > row["_run"] and f"{file}/".startswith(f"{row['_file']}/") for file, run in since)
            ]
        if ids:
            listed = ", ".join(f"'{quarantine_id}'" for quarantine_id in ids)
            txn = Txn(f"loaded:{self.outcome.run}", 1)
            run = {"run": self.outcome.run}
            self.quarantine.update(f"quarantine_id IN ({listed})", {"state": "'loaded'"}, txn, run)

    def refuse(self, dataset: Dataset, what: str) -> None:
        """The job fails for a column that the contract does not have."""
        fix = "correct the feed, or let the contract's evolution be keep, add or quarantine"
        self.outcome.problems.append(Problem("drift", f"{dataset.where} ({dataset.name})", what, fix))

    # --- bronze -> silver, and the unified table ---

    def refine_and_unify(self, dataset: Dataset) -> None:
        """Both beside each other: neither reads what the other writes, and each waits a lot."""
        with ThreadPoolExecutor(1) as beside:
            # In a session of its own, since silver's step and merge change the settings of this one.
            unified = beside.submit(self.unify_alone, dataset, cloned(self.spark)) if dataset.unify else None
            with self.problem_of(dataset.name):
                self.refine(dataset)
        if unified:
            unified.result()

    def refine(self, dataset: Dataset) -> None:
        """Bring silver up to the log: one pass over the new records, staged with their outcomes, then written."""
        log, table = self.table("bronze", dataset.name), self.table("silver", dataset.name)
        if not log.exists():
            return
        done, last = max(table.last_txn(dataset.name), 0), log.last_txn(dataset.name)
        if last <= done:
            return
        given = flow.given(self, dataset, done)
        upto = min(last, given.last) if given else flow.judged_alike(self, dataset, done, last)
        version = table.version() if table.exists() else -1
        loads = Loads(done + 1, upto, log.version(), version, given.decision if given else None)
        self.refine_loads(dataset, log.read(), loads)
        if upto < last:
            self.refine(dataset)

    def refine_loads(self, dataset: Dataset, log: DataFrame, loads: Loads) -> None:
        """Take those loads, which ``log`` has whole, and others too, into silver."""
        logged = self.logged(dataset, loads)
        width = sum(TEXT_WIDTH if kind == "string" else NUMBER_WIDTH for kind in dataset.silver_types.values())
        new = tune.Relation(logged.bytes, logged.records, 0, width)
        there = [self.table("silver", dataset.name)] if loads.silver_version >= 0 else []
        reads = tune.Reads([new, *there], logged.bytes, settings=dict(dataset.spark))
        with self.staging(dataset) as folder, self.step("silver", dataset.name, reads) as step:
            given = dataset.stream or loads.given  # a stream's rows are judged as they come
            judge = None if given else self.judge(dataset)

            def stage(by: Judge | None) -> DataFrame:
                return self.in_memory(step, lambda: self.stage(dataset, log, loads, folder, by))

            try:
                staged = stage(judge)
            except FAILURES as error:
                if not judge:
                    raise
                staged, judge = stage(None), None
                flow.unjudged(self, dataset, error)
            with self.compared(dataset, staged, loads) as (rows, known):
                decision = self.decision(dataset, rows, loads, judge)
                held = judge and decision and decision.held
                if not held:
                    step.rows = self.commit(dataset, rows, known, loads, logged, decision)
                else:
                    kept = silver.classify(silver.kept(rows).drop("_outcome"), dataset, self.may_be_known(dataset))
                    staged = self.written(kept, f"{folder}/kept")
            if held:
                with self.compared(dataset, staged, loads) as (rows, known):
                    step.rows = self.commit(dataset, rows, known, loads, logged, decision)

    @contextmanager
    def compared(self, dataset: Dataset, staged: DataFrame, loads: Loads) -> Iterator[tuple[DataFrame, Known | None]]:
        """The staged rows with their outcomes against all that came before; and what silver holds near them."""
        if dataset.jdbc:
            staged = silver.read_before(staged, self.quarantined_before(dataset, loads))
        if loads.last > loads.first and not staged.where(F.col("_rule") == ANOMALY).isEmpty():
            staged = silver.removed_again(staged, dataset)
        known = self.known(dataset, staged, loads)
        if known:
            staged = silver.against(staged, known.rows, dataset, known.reach.few).persist()
        try:
            yield staged, known
        finally:
            staged.unpersist()

    def quarantined_before(self, dataset: Dataset, loads: Loads) -> DataFrame | None:
        """The dataset's rows of the quarantine from earlier loads."""
        mine = (F.col("dataset") == dataset.name) & (F.col("_load") < loads.first)
        return self.quarantine.read().where(mine) if self.quarantine.exists() else None

    def known(self, dataset: Dataset, staged: DataFrame, loads: Loads) -> Known | None:
        """What silver holds near the staged rows; None where it can hold none of them."""
        if loads.silver_version < 0 or not self.may_be_known(dataset):
            return None
        first = [name for name in silver.match_columns(dataset)[:1] if dataset.is_open(name)]
        reach = extent(staged.where(silver.comparable()), first)
        held = self.table("silver", dataset.name).read(loads.silver_version)
        return Known(held.where(reach.covers({name: F.col(name) for name in first})), reach)

    def judge(self, dataset: Dataset) -> Judge | None:
        """The model by which the dataset's rows are judged now."""
        return self.judges.of(dataset)

    def decision(self, dataset: Dataset, staged: DataFrame, loads: Loads, judge: Judge | None) -> Decision | None:
        """What comes of the verdicts on the staged rows."""
        return flow.decision(self, dataset, staged, loads, judge)

    def records(self, dataset: Dataset, log: DataFrame, loads: Loads) -> DataFrame:
        """The loads' records, with the verdicts that an earlier run has given on them."""
        records = bronze.records(log, loads.first - 1).where(F.col("_load") <= loads.last)
        return flow.with_verdicts(records, self.table("ops", "anomalies"), dataset) if loads.given else records

    def stage(self, dataset: Dataset, log: DataFrame, loads: Loads, folder: str, judge: Judge | None) -> DataFrame:
        """The loads' records with their outcomes as far as they tell by themselves, computed once, into the folder."""
        entries = self.layouts(dataset)
        records = self.records(dataset, log, loads)
        new, again = self.added_columns(dataset, entries, records), self.may_be_known(dataset)

        def staged(careful: bool) -> DataFrame:
            verdict = partial(judge.scored, careful=careful) if judge else silver.as_given
            parsed = silver.parse(records, dataset, entries, self.conf.settings.max_record_bytes, new, careful, verdict)
            return self.written(silver.classify(parsed, dataset, again), f"{folder}/rows")

        return carefully(staged)

    def written(self, rows: DataFrame, folder: str) -> DataFrame:
        """The rows, computed into the folder and read from there."""
        rows.write.mode("overwrite").option("compression", "lz4").parquet(folder)
        return self.spark.read.schema(rows.schema).parquet(folder)

    def layouts(self, dataset: Dataset) -> dict[str, tuple[str, ...]]:
        """The header of each layout that the log has seen."""
        if dataset.kafka:
            return {"kafka": dataset.feed_columns}
        return {file.layout: file.header for files in self.taken(dataset).values() for file in files}

    def added_columns(
        self, dataset: Dataset, layouts: Mapping[str, Sequence[str]], records: DataFrame
    ) -> dict[str, str]:
        """Columns that silver takes though the contract does not have them: silver name -> feed name."""
        if dataset.evolution != "add":
            return {}
        if dataset.format == "json":
            keys = records.select(F.explode(F.expr("json_object_keys(raw)")).alias("key")).distinct()
            layouts = {"": [row["key"] for row in keys.collect()]}
        unknown = [name for header in layouts.values() for name in fit(header, dataset).unknown]
        return new_columns(list(dict.fromkeys(unknown)), dataset)

    def may_be_known(self, dataset: Dataset) -> bool:
        """Whether silver can hold some of the records already: by position only if a file came again."""
        if dataset.identity:
            return True
        return any(len(versions) > 1 for versions in self.taken(dataset).values())

    def commit(
        self, dataset: Dataset, staged: DataFrame, known: Known | None, loads: Loads, logged: Logged,
        decision: Decision | None,
    ) -> int:  # fmt: skip
        """Write what was staged: verdicts, which are given once they stand, then quarantine, then silver, whose commit
        carries the ledger row and the decision."""
        example = F.first("_unknown", ignorenulls=True).alias("unknown")
        counted = F.count(F.lit(1)).alias("count"), F.count("_anomaly").alias("flagged")
        found = staged.groupBy("_outcome").agg(*counted, example).collect()
        counts = {row["_outcome"]: row["count"] for row in found}
        unknown = next((row["unknown"] for row in found if row["unknown"]), None)
        if unknown:
            self.outcome.notes.append(f"{dataset.name}: columns that the contract does not have, as {unknown}")
            if dataset.evolution == "refuse":
                self.refuse(dataset, f"records have columns that the contract does not have, as {unknown}")
        good = staged.where(F.col("_outcome").isin("insert", "update"))
        self.measure(dataset, good)
        row = self.ledger_row(dataset, counts, loads, logged)
        if not row.adds_up:
            raise DrivetrainError(
                Problem(
                    "ledger",
                    dataset.name,
                    f"the ledger does not add up: {row}",
                    "silver was left as it was; report this",
                )
            )
        if decision and any(row["flagged"] for row in found):
            flow.write_anomalies(self, dataset, staged, loads, decision)
        self.write_quarantine(dataset, staged, counts, loads)
        self.write_silver(dataset, good, known, row, loads, decision)
        self.outcome.ledger.append(row)
        if decision:
            flow.note(self, dataset, staged, loads, decision)
        return row.rows_in

    def measure(self, dataset: Dataset, good: DataFrame) -> None:
        rules = [rule for rule in dataset.rules if rule.action != "quarantine"]
        measured = checks.measure(good, rules)
        self.note_checks("silver", dataset.name, measured)
        broken = [item for item in measured if item.rule.action == "stop" and not item.passed]
        if broken:
            where, fix = (
                f"{dataset.where} ({dataset.name})",
                "silver was left as it was; the log keeps the records: correct the rule, or quarantine",
            )
            raise DrivetrainError(
                *[Problem("check", where, f"a check stops this dataset: {item}", fix) for item in broken]
            )

    def ledger_row(self, dataset: Dataset, counts: Mapping[str, int], loads: Loads, total: Logged) -> ops.LedgerRow:
        found = {name: int(counts.get(name, 0)) for name in silver.OUTCOMES}
        return ops.LedgerRow(
            run=self.outcome.run, dataset=dataset.name, first_load=loads.first, last_load=loads.last,
            files=total.files, rows_in=total.records,
            good=found["insert"] + found["update"] + found["superseded"], quarantined=found["quarantined"],
            duplicate=found["duplicate"], late=0, inserted=found["insert"], updated=found["update"],
            superseded=found["superseded"], requeued=total.requeued, bronze_version=loads.bronze_version,
            silver_version_read=loads.silver_version, silver_version=loads.silver_version + 1, at=ops.now(),
        )  # fmt: skip

    def logged(self, dataset: Dataset, loads: Loads) -> Logged:
        """What those loads put into the log, by Delta's own count: the other side of the ledger."""
        log, total = self.table("bronze", dataset.name), Logged(0, 0, 0, 0)
        for version, metadata in log.commits():
            if metadata["number"] < loads.first:
                break
            if metadata["number"] > loads.last:  # a stream has gone on
                continue
            records = log.rows_written(version) - metadata["files"]
            requeued = records if metadata["files"] == 0 and "batch" not in metadata else 0
            total = Logged(
                total.records + records, total.files + metadata["files"], total.requeued + requeued,
                total.bytes + log.bytes_written(version),
            )  # fmt: skip
        return total

    def write_quarantine(self, dataset: Dataset, staged: DataFrame, counts: Mapping[str, int], loads: Loads) -> None:
        rows = quarantine.of_rows(staged, dataset, self.outcome.run)
        txn = Txn(dataset.name, loads.last)
        if self.quarantine.last_txn(dataset.name) >= loads.first or (dataset.stream and self.quarantine.exists()):
            # A run ended between quarantine and silver, or a stream has put down what it met. Verdicts may differ from
            # today's, so they are replaced.
            txn = Txn(f"{dataset.name}:{self.outcome.run}", loads.last)
            mine = f"dataset = '{dataset.name}' AND _load BETWEEN {loads.first} AND {loads.last}"
            self.quarantine.delete(f"{mine} AND state = 'open'", txn, {"run": self.outcome.run})
            held = self.quarantine.read().where(mine).select("quarantine_id")
            rows = rows.join(held, "quarantine_id", "left_anti").select(*quarantine.COLUMNS)
            txn = Txn(f"{txn.app}:again", loads.last)
        if counts.get("quarantined"):
            # What it reads is what it appends to: if a stream puts down a row meanwhile, Delta has it done again.
            again(lambda: self.quarantine.append(rows, txn, {"run": self.outcome.run}, quarantine.PROPERTIES))

    def write_silver(
        self, dataset: Dataset, good: DataFrame, known: Known | None, row: ops.LedgerRow, loads: Loads,
        decision: Decision | None,
    ) -> None:  # fmt: skip
        # Named by the load before: of two that start from the same silver, Delta takes one.
        table, txn = self.table("silver", dataset.name), Txn(f"{dataset.name} after {loads.first - 1}", 1)
        metadata = {
            "app": dataset.name, "number": loads.last, "run": row.run, "contract": dataset.fingerprint,
            "ledger": asdict(row), **({"anomaly": asdict(decision)} if decision else {}),
        }  # fmt: skip
        rows = good.drop(*silver.STAGED_ONLY)
        first = loads.silver_version < 0
        if dataset.history == "scd2":
            rows = silver.versions(rows, known.rows if known else None, dataset)
        if first or (dataset.history != "scd2" and row.updated == 0):
            table.append(rows, txn, metadata, silver_properties(dataset))
        else:
            on = dataset.identity if dataset.history == "scd2" else dataset.key
            table.merge(rows, on, txn, metadata, known.reach if known else None)
        self.check_written(dataset, table, row)
        table.keep_changes_cheap()

    def check_written(self, dataset: Dataset, table: Table, row: ops.LedgerRow) -> None:
        """Raises:
        DrivetrainError: silver was written by another job, or other than the ledger says.
        """
        version, metadata = next(table.commits())
        if (metadata["number"], metadata["run"]) != (row.last_load, row.run):
            what = f"run {metadata['run']} has taken load {row.first_load} into silver meanwhile"
            fix = "nothing was written twice; see why two jobs hold the warehouse's lock, and run again"
            raise DrivetrainError(Problem("taken-over", dataset.name, what, fix))
        written = table.rows_written(version)
        if row.updated == 0 and dataset.history != "scd2" and written != row.inserted:
            what = f"{written} rows were written where the ledger says {row.inserted}"
            fix = "report this; RESTORE silver to the version before"
            raise DrivetrainError(Problem("ledger", dataset.name, what, fix))

    # --- the unified table: raw columns of several feeds by name ---

    def unify_alone(self, dataset: Dataset, spark: SparkSession) -> None:
        """`unify`, whose problem is in the outcome."""
        with self.problem_of(dataset.name):
            self.unify(dataset, spark)

    def unify(self, dataset: Dataset, spark: SparkSession) -> None:
        """Append the new records of a dataset with `unify` to the unified table, each column as text."""
        log = Table(spark, f"{self.warehouse}/bronze/{dataset.name}")
        table = Table(spark, f"{self.warehouse}/./{self.conf.settings.unified_table}")
        if not log.exists():
            return
        done, last = max(table.last_txn(dataset.name), 0), log.last_txn(dataset.name)
        if last <= done:
            return
        with self.step("unify", dataset.name) as step:
            # A released record went in when it first came: the unified table knows no rules.
            records = bronze.records(log.read(), done).where(F.col("_load") <= last)
            records = records.where(~F.coalesce("_released", F.lit(False)))
            rows = silver.unified(records, dataset, self.layouts(dataset), self.conf.settings.max_record_bytes)
            table.append(rows, Txn(dataset.name, last), {"run": self.outcome.run}, NO_STATISTICS)
            step.rows = table.rows_written(table.version())

    # --- silver -> gold ---

    def publish_all(self) -> None:
        """Build the gold tables whose query or inputs changed, over one set of silver versions."""
        versions = {name: self.content_version("silver", name) for name in self.conf.datasets}
        pinned = {name: self.table("silver", name).version() for name in self.conf.datasets}
        for table in self.conf.gold.values():
            with self.problem_of(table.name):
                if self.stale(table, versions):
                    self.publish(table, versions, pinned)
            versions[table.name] = self.content_version("gold", table.name)
            pinned[table.name] = self.table("gold", table.name).version()

    def content_version(self, layer: str, name: str) -> int:
        """The version at which the table's rows last changed; -1 where there are none."""
        table = self.table(layer, name)
        for version, metadata in table.commits() if table.exists() else ():
            ledger = metadata.get("ledger")
            if ledger is None or ledger["inserted"] + ledger["updated"] > 0:
                return version
        return -1

    def stale(self, table: GoldTable, versions: Mapping[str, int]) -> str | None:
        """Why the table is to be built; None where it is up to date."""
        inputs = {name: versions[name] for name in table.inputs}
        there = self.table("gold", table.name)
        built = next((m for _, m in there.commits()), None) if there.exists() else None
        if built is None:
            return "it is not there yet" if any(version >= 0 for version in inputs.values()) else None
        if built["query"] != table.fingerprint:
            return "its query or checks changed"
        changed_ = [
            f"{name} {built['inputs'].get(name)} → {v}" for name, v in inputs.items() if built["inputs"].get(name) != v
        ]
        return f"its inputs changed: {', '.join(changed_)}" if changed_ else None

    def publish(self, table: GoldTable, versions: Mapping[str, int], pinned: Mapping[str, int]) -> None:
        """Write aside, audit, then make it the new version; a failed check leaves the old one."""
        inputs = [self.table("gold" if name in self.conf.gold else "silver", name) for name in table.inputs]
        inputs = [one for one in inputs if one.exists()]
        # A query of one table is refreshed by groups, which are joined with it.
        joined = refresh.groups(table) is not None or sqltext.reads_twice(sqltext.select(table.sql))
        reads = tune.Reads(inputs, joined=joined)
        with self.staging(table) as folder, self.step("gold", table.name, reads) as step:

            def build() -> DataFrame:
                return self.written(self.candidate(table, pinned, f"{folder}/groups"), f"{folder}/rows")

            candidate = self.in_memory(step, build)
            measured = gold.audit(candidate, table)
            self.note_checks("gold", table.name, measured)
            metadata = {
                "run": self.outcome.run, "query": table.fingerprint, "inputs": {n: versions[n] for n in table.inputs},
                "read": {name: pinned[name] for name in table.inputs},
            }  # fmt: skip
            failed = gold.fails(measured)
            if failed:
                self.table("gold/_rejected", table.name).replace(candidate, metadata, NO_STATISTICS)
                where = f"{table.where} ({table.name})"
                fix = f"the old version stands; the candidate is in gold/_rejected/{table.name}"
                raise DrivetrainError(
                    *[Problem("check", where, f"a check keeps the new version back: {item}", fix) for item in failed]
                )
            target = self.table("gold", table.name)
            target.replace(candidate, metadata, NO_STATISTICS)
            step.rows = target.rows_written(target.version())
        self.outcome.published.append(table.name)

    def candidate(self, table: GoldTable, pinned: Mapping[str, int], folder: str) -> DataFrame:
        """The table's new content; of a query that groups one silver table only the changed groups are computed, which
        are kept in ``folder``."""
        inputs = {name: self.input(name, pinned[name]) for name in table.inputs}
        by, target = refresh.groups(table), self.table("gold", table.name)
        built = next((m for _, m in target.commits()), None) if target.exists() else None
        if by is None or by.table not in self.conf.datasets or built is None or built["query"] != table.fingerprint:
            return gold.build(self.spark, table, inputs)
        dataset = self.conf.datasets[by.table]
        source_, read = self.table("silver", by.table), built["read"][by.table]
        touched = refresh.touched(source_, read, pinned[by.table], by) if read >= 0 else None
        if touched is None:
            return gold.build(self.spark, table, inputs)
        changed_ = self.written(touched, folder)
        part = gold.build(self.spark, table, {by.table: refresh.restricted(inputs[by.table], changed_, by, dataset)})
        return refresh.replaced(target.read(), part, changed_, table.key)

    def input(self, name: str, version: int) -> DataFrame:
        """A gold table's input at a version; a dataset that has no rows yet is an empty table."""
        if name in self.conf.gold:
            return self.table("gold", name).read(version)
        if version >= 0:
            return self.table("silver", name).read(version)
        types = self.conf.datasets[name].silver_types
        return self.spark.createDataFrame([], ", ".join(f"`{column}` {kind}" for column, kind in types.items()))

    def show_names(self) -> None:
        """Names for the tables that have come, and views that show the newest manifest. At a site's metastore one may
        be due since an earlier run; an embedded one serves one process, which a stream leaves to batch jobs."""
        if (self.steps.done and self.steps.job != "speed") or not embedded(self.conf):
            catalog.register(self.spark, self.conf)
            catalog.show(self.spark, self.conf)

    def publish_manifest(self) -> None:
        """Make the tables as they stand, and what streams have brought since, one answer; where there are streams."""
        if any(dataset.stream for dataset in self.conf.datasets.values()):
            publish.publish(self)

    # --- what every step shares ---

    @contextmanager
    def step(self, name: str, dataset: str, reads: tune.Reads | None = None) -> Iterator[ops.Step]:
        """A step of the run, tuned where it is known what it reads; what conf sets for it goes before that."""
        plan = self.tuner.plan(name, dataset, reads) if self.tuner and reads else tune.NO_PLAN
        self.progress.begin(name, dataset)
        step = None
        try:
            confs = {**plan.settings, **(reads.settings if reads else {})}
            with session_confs(self.spark, confs), self.steps.step(name, dataset) as step:
                if plan.decisions:
                    plan.note(step, int(str(self.spark.conf.get(tune.SHUFFLE))))
                try:
                    yield step
                except FAILURES as error:
                    step.short_of_memory |= tune.is_out_of_memory(error)
                    raise
        finally:
            self.progress.end(name, dataset, step)

    def in_memory(self, step: ops.Step, compute: Callable[[], T]) -> T:
        """What it computes, where memory was short once more and conservatively."""
        return tune.carefully_in_memory(self.spark, compute, self.progress.say, step)

    @property
    def staged(self) -> str:
        """The folder of all intermediate rows."""
        return f"{self.warehouse}/_staging"

    @contextmanager
    def staging(self, of: Dataset | GoldTable) -> Iterator[str]:
        """A folder for one step's intermediate rows, gone when the step ends; a killed step's goes with the next. It is
        this run's own: one that has lost the lock and does not know yet must not put its rows in another's place."""
        root = f"{self.staged}/{'gold' if isinstance(of, GoldTable) else 'silver'}/{of.name}"
        self.files(root).remove(root)
        try:
            yield f"{root}/{self.outcome.run}"
        finally:
            self.files(root).remove(root)

    def note_checks(self, layer: str, name: str, measured: Sequence[checks.Measured]) -> None:
        for item in measured:
            expected = f"{item.rule.operator} {item.rule.threshold}{' percent' if item.rule.percent else ''}"
            self.outcome.checks.append(
                ops.CheckRow(
                    self.outcome.run,
                    layer,
                    name,
                    item.rule.name,
                    item.rule.action,
                    item.value,
                    expected,
                    item.passed,
                    ops.now(),
                )
            )
            if not item.passed:
                self.progress.say(f"{name}: {item} does not hold ({item.rule.action})")

    def recover_ledger(self) -> None:
        """Ledger rows, and verdicts, of silver commits whose run ended before it could write them."""
        known = self.ledger_known()
        for name in self.conf.datasets:
            table = self.table("silver", name)
            for _, metadata in table.commits() if table.exists() else ():
                if metadata["number"] <= known.get(name, 0) or "ledger" not in metadata:  # a swap brings no new load
                    break
                self.outcome.ledger.append(ops.ledger_row(metadata["ledger"]))
                if "anomaly" in metadata:
                    flow.recover(self, name, metadata)

    def ledger_known(self) -> dict[str, int]:
        """Dataset -> the last load that the ledger has; each commit to the ledger carries the whole of it."""
        ledger = self.table("ops", "ledger")
        return next((dict(m["known"]) for _, m in ledger.commits()), {}) if ledger.exists() else {}

    def write_ops(self) -> None:
        """Append what the run did; a run that did nothing writes nothing."""
        tables: dict[str, Sequence[object]] = {
            "checks": self.outcome.checks, "profiles": self.outcome.profiles, "steps": self.steps.done,
            "drift": self.outcome.drifts, "trials": self.outcome.trials,
        }  # fmt: skip
        self.write_verdicts()
        learned = {"steps": self.learned()} if self.steps.done and self.steps.job not in UNLOCKED else {}
        with ThreadPoolExecutor(len(tables) + 1) as pool:  # small commits, whose time is mostly waiting
            jobs = [pool.submit(self.write_ledger)]
            for name, rows in tables.items():
                said = learned.get(name, {})
                jobs.append(pool.submit(ops.write, self.table("ops", name), rows, said, self.outcome.run))
        for job in jobs:
            job.result()

    def learned(self) -> dict[str, object]:
        """What the commit of the run's steps is to carry: what runs have taught, this one too where it was tuned."""
        if self.tuner:
            return self.tuner.metadata(self.steps.job, self.steps.done)
        return tune.known(self.table("ops", "steps")).metadata()

    def write_verdicts(self) -> None:
        """Append them, each in the name of the run that gave it, which may have written it too; before the ledger, by
        which it is known what is to be recovered."""
        for run in sorted({row.run for row in self.outcome.verdicts}):
            rows = [verdict for verdict in self.outcome.verdicts if verdict.run == run]
            ops.write(self.table("ops", "verdicts"), rows, {}, run, Txn(run, 1))

    def write_ledger(self) -> None:
        """Append what the ledger does not have. For a run that stood still another has written (`recover_ledger`), so
        this is a compare-and-swap on the ledger's end, and done again where another came first."""
        table, run = self.table("ops", "ledger"), self.outcome.run
        while True:
            number, known = table.last_txn(LEDGER) + 1, self.ledger_known()
            rows = [row for row in self.outcome.ledger if row.last_load > known.get(row.dataset, 0)]
            if not rows:
                return
            for row in rows:
                known[row.dataset] = max(row.last_load, known.get(row.dataset, 0))
            with suppress(*CONFLICT):
                ops.write(table, rows, {"known": known}, run, Txn(LEDGER, number))


@dataclass(frozen=True)
class Loads:
    """The loads of the log that one silver step takes, and the versions that it reads. ``given`` is what was decided
    of them by a run that ended before silver had them."""

    first: int
    last: int
    bronze_version: int
    silver_version: int
    given: Decision | None = None


@dataclass(frozen=True)
class Known:
    """Rows of silver that may be like the staged ones, and how far the staged ones reach."""

    rows: DataFrame
    reach: Extent


@dataclass(frozen=True)
class Logged:
    """Records and files that some loads brought; of the records, those that came out of quarantine."""

    records: int
    files: int
    requeued: int
    bytes: int


def silver_properties(dataset: Dataset) -> dict[str, str]:
    """Of silver's table; personal data stays out of the minima and maxima in Delta's log."""
    open_ = [column.name for column in dataset.columns if column.type != "boolean" and dataset.is_open(column.name)]
    statistics = ",".join([*open_[:28], "_file", "_load"])
    return {
        "delta.enableChangeDataFeed": "true",
        "delta.dataSkippingStatsColumns": statistics,
    }


def _same(now: Arrival | Landed, before: Intake | None) -> bool:
    """Whether a file is what the log took last under its name: by content where it is known, else by size, time."""
    if not isinstance(before, Landed):
        return False
    if isinstance(now, Landed):
        return now.sha256 == before.sha256
    return (now.size, now.modified) == (before.size, before.modified)


def _refusal(dataset: Dataset, file: Intake, taken: Sequence[Intake], files: Files) -> Rejected | None:
    """Why a readable file, or a pull, is not taken; None where it is."""
    if dataset.evolution == "refuse" and file.header and (unknown := fit(file.header, dataset).unknown):
        reason = f"{file.name} has columns that the contract does not have: {', '.join(unknown)}"
        size, modified = (file.size, file.modified) if isinstance(file, Landed) else (0, 0)
        return Rejected(file.name, size, modified, "drift", reason)
    before = taken[-1] if taken else None
    if dataset.identity or not isinstance(file, Landed) or not isinstance(before, Landed):
        return None
    if dataset.format != "document" and grown(file, before, files):
        return None
    reason = (
        f"{file.name} was loaded with other content, and its records have no key to tell which changed: "
        "give it a new name if it holds new records only"
    )
    return Rejected(file.name, file.size, file.modified, "rewritten", reason)
