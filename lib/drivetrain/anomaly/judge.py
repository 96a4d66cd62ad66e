"""A model's verdicts on typed rows, and how far they may go.

Every row is scored by itself; what is above the threshold is an anomaly. Whether anomalies are removed is decided for a
load as a whole: where more of it would go than the contract's limit allows, it is the data that changed, or the model
that is wrong, and nothing is removed. A verdict is given once and recorded with the row, so that a replay gives what
was given, whatever model is there by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Final

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from drivetrain.anomaly.registry import Stage
from drivetrain.anomaly.thresholds import Flagged, guard
from drivetrain.checks import attempted
from drivetrain.contracts import Anomaly, Dataset, Feature
from drivetrain.errors import DrivetrainError, Problem

VERDICT: Final = (  # in this order: what is last can be changed in the text
    "version bigint, stage string, score double, threshold double, features array<string>, reason string,"
    " removed boolean"
)
RECENT: Final = 1_000  # judged rows that show how much is removed; a smaller load is seen with some before it
GROUPS: Final = 50  # of which counts are carried on
NAMED: Final = 3
NOTHING: Final = Flagged(0, 0)

Counts = tuple[int, int]  # flagged, judged


@dataclass(frozen=True)
class Decision:
    """What came of some loads: how many rows the ``version`` judged at its ``stage``, how many it flagged, and how many
    of these were removed; ``held`` tells why it was none although it enforces.

    ``recent`` and ``groups`` are what the next load is seen with: counts of some RECENT rows up to here, and of as many
    of each group that was flagged, the worst ones.
    """

    version: int
    stage: Stage
    judged: int
    flagged: int
    removed: int
    held: str | None = None
    recent: Counts = (0, 0)
    groups: Mapping[str, Counts] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """One version at one stage over one dataset. ``told`` is the UDF of `udf.teller`."""

    dataset: Dataset
    version: int
    stage: Stage
    threshold: float
    told: Callable[[Mapping[str, Column]], Column]

    @property
    def anomaly(self) -> Anomaly:
        assert self.dataset.anomaly
        return self.dataset.anomaly

    def scored(self, rows: DataFrame, careful: bool = False, row: str | None = None) -> DataFrame:
        """Set _score of the rows that are judged: good ones that nobody has released, and which the contract's where
        takes; and _anomaly of those above the threshold. The typed columns stand beside _rule, or in the struct
        ``row``.

        An expression that raises an error ends the query; with ``careful``, which is slower, its value is missing.
        """
        flat, prefix = (rows.select(F.struct("*").alias("_own"), f"{row}.*"), "_own.") if row else (rows, "")
        judged = F.col(f"{prefix}_score").isNull()  # what the log has a verdict on keeps it
        judged = judged & F.col(f"{prefix}_rule").isNull() & ~F.coalesce(f"{prefix}_released", F.lit(False))
        flat = flat.select("*", (judged & taken(self.dataset, careful)).alias("_judged"))
        values = features(self.dataset, careful).items()
        told = self.told({name: F.when(F.col("_judged"), value) for name, value in values})
        found = flat.select("*", told.alias("_told"))
        score = F.when(F.col("_judged"), F.col("_told.score"))
        said = F.struct(
            F.lit(self.version).cast("bigint").alias("version"), F.lit(self.stage).alias("stage"),
            F.col("_told.score").alias("score"), F.lit(self.threshold).alias("threshold"),
            F.col("_told.features").alias("features"), F.col("_told.reason").alias("reason"),
            F.lit(self.stage == "enforce").alias("removed"),
        )  # fmt: skip
        verdict = {"_score": score, "_anomaly": F.when(score > self.threshold, F.to_json(said))}
        kept = [F.col(f"{prefix}`{name}`") for name in rows.columns if name not in verdict]
        given = [F.coalesce(f"{prefix}{name}", new).alias(name) for name, new in verdict.items()]
        return found.select(*kept, *given)

    def decide(self, rows: DataFrame, before: Decision | None, row: str | None = None) -> Decision:
        """What comes of rows that are `scored`; ``before`` is the decision on the load before."""
        now = Flagged(*rows.agg(F.count("_anomaly"), F.count("_score")).collect()[0])
        known = before.groups if before and before.version == self.version else {}
        return self.decided(now, self.by_group(rows, known, row) if now.flagged or known else {}, before)

    def decided(self, now: Flagged, groups: Mapping[str, Flagged], before: Decision | None) -> Decision:
        """As `decide`, by the load's counts: ``groups`` are those that were flagged, now or before."""
        same = before if before and before.version == self.version else None
        earlier = Flagged(*same.recent) if same else NOTHING
        earlier_groups = {name: Flagged(*counts) for name, counts in same.groups.items()} if same else {}
        held = self.held(now, groups, earlier, earlier_groups) if self.stage == "enforce" else None
        removed = now.flagged if self.stage == "enforce" and not held else 0
        names = groups.keys() | earlier_groups.keys()
        seen = {name: pooled(groups.get(name, NOTHING), earlier_groups.get(name, NOTHING)) for name in names}
        worst = sorted(seen, key=lambda name: (-(seen[name].flagged ** 2) / max(seen[name].rows, 1), name))[:GROUPS]
        carried = {name: astuple(seen[name]) for name in worst if seen[name].flagged}
        recent = astuple(pooled(now, earlier))
        return Decision(self.version, self.stage, now.rows, now.flagged, removed, held, recent, carried)

    def held(
        self, now: Flagged, groups: Mapping[str, Flagged], before: Flagged, groups_before: Mapping[str, Flagged]
    ) -> str | None:
        """Why nothing may be removed of a load, of which, or of one of whose groups, too much would go."""
        name, limit, group_limit = self.anomaly.group, self.anomaly.limit, self.anomaly.group_limit
        named, named_before = (
            {f"{name} {group}": counts for group, counts in some.items()} for some in (groups, groups_before)
        )
        overall = guard(limit, now, {}, before if now.rows < RECENT else NOTHING, {})
        small = {one: counts for one, counts in named_before.items() if named.get(one, NOTHING).rows < RECENT}
        each = guard(group_limit, NOTHING, named, NOTHING, small)
        return "; ".join([*overall.reasons, *each.reasons[:NAMED]]) or None

    def by_group(self, rows: DataFrame, known: Iterable[str], row: str | None) -> dict[str, Flagged]:
        """Of the most flagged groups, and of those that are ``known``."""
        name = self.anomaly.group
        if name is None:
            return {}
        found = group_counts(rows, f"{row}.{name}" if row else name)
        worst = F.desc(F.col("flagged") * F.col("flagged") / F.col("judged"))  # many of few
        most = found.where("flagged > 0").orderBy(worst, "name").limit(GROUPS)
        wanted = most.union(found.where(F.col("name").isin(*known))).distinct()
        return {one["name"]: Flagged(one["flagged"], one["judged"]) for one in wanted.collect()}


def pooled(now: Flagged, before: Flagged) -> Flagged:
    """What shows of some RECENT rows how many are flagged: a load's counts, with those before it where it is small."""
    seen = now + before if now.rows < RECENT else now
    return seen if seen.rows <= 2 * RECENT else Flagged(seen.flagged * RECENT // seen.rows, RECENT)


def group_counts(rows: DataFrame, column: str) -> DataFrame:
    """name, judged, flagged of each group of rows that are `Judge.scored`."""
    group = F.coalesce(F.col(column).cast("string"), F.lit("NULL"))
    counts = F.count("_score").alias("judged"), F.count("_anomaly").alias("flagged")
    return rows.where(F.col("_score").isNotNull()).groupBy(group.alias("name")).agg(*counts)


def features(dataset: Dataset, careful: bool = False) -> dict[str, Column]:
    """Each feature's value for a typed row by its name, of the type of its kind; missing where it cannot be computed,
    which with ``careful`` is also where its expression raises an error."""
    assert dataset.anomaly
    return {feature.name: _feature(feature, careful) for feature in dataset.anomaly.features}


def taken(dataset: Dataset, careful: bool = False) -> Column:
    """Whether the contract's where takes a typed row."""
    assert dataset.anomaly
    where = dataset.anomaly.where
    return F.coalesce(_value(where, careful).try_cast("boolean"), F.lit(False)) if where is not None else F.lit(True)


def _feature(feature: Feature, careful: bool) -> Column:
    kinds = {"number": "double", "category": "string", "date": "date", "timestamp": "timestamp"}
    return _value(feature.sql, careful).try_cast(kinds[feature.kind]).alias(feature.name)


def _value(sql: str, careful: bool) -> Column:
    return F.get(attempted(sql), F.lit(0)) if careful else F.expr(sql)


def check_expressions(spark: SparkSession, dataset: Dataset) -> None:
    """Raises:
    DrivetrainError: for each expression that Spark does not understand, as a function that it does not have.
    """
    assert dataset.anomaly
    types = ", ".join(f"`{column.name}` {column.type}" for column in dataset.columns)
    empty = spark.createDataFrame([], types)
    wanted = {f"feature {feature.name}": _feature(feature, False) for feature in dataset.anomaly.features}
    wanted["where"] = taken(dataset)
    problems = []
    for name, column in wanted.items():
        try:
            empty.select(column).schema  # noqa: B018  analyses it
        except AnalysisException as error:
            what = f"anomaly, {name}: {str(error).splitlines()[0]}"
            problems.append(Problem("sql", f"{dataset.where} ({dataset.name})", what, "write plain Spark SQL"))
    if problems:
        raise DrivetrainError(*problems)
