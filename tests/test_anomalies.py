"""Anomalies in the flow, on real Spark and Delta: what each stage does to rows, and that a verdict is given once."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import random
import resource
import shutil
import signal
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import functions as F
from test_unified import Streamed, event
from tiny import KEY, Tiny

from drivetrain import conf as reader
from drivetrain import replay, requeue
from drivetrain.anomaly import drift, fit, flow, look, reference, review, shown, udf
from drivetrain.anomaly.judge import Judge, features
from drivetrain.anomaly.modelfile import ALL, dump
from drivetrain.anomaly.registry import Registry, Stage
from drivetrain.anomaly.udf import Fitted, scorer
from drivetrain.contracts import DEFAULT_CONF, ROOT
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.pipeline import Pipeline

pytestmark = pytest.mark.spark
NUMBER = {"logicalType": "number"}
COLUMNS = {"id": KEY, "place": {}, "x": NUMBER, "y": NUMBER}
FEATURES = ["x", {"name": "both", "sql": "x + y"}, {"name": "ratio", "sql": "x / (y - 1000000)"}]
ANOMALY = {"features": FEATURES, "share": 0.001, "group": "place", "limit": {"overall": 0.05, "group": 0.3}}
ODD = [("odd1", "A", 90, -80), ("odd2", "B", -70, 95)]


def rows(first: int, count: int, shift: float = 0.0) -> list[tuple[Any, ...]]:
    """The first of all, which are the reference, lie further out than any that come later."""
    made, spread = random.Random(first), 0.4 if first else 1.0
    points = [(round(made.gauss(shift, spread), 3), round(made.gauss(shift, spread), 3)) for _ in range(count)]
    return [(f"r{n}", "AB"[n % 2], *point) for n, point in enumerate(points, first)]


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


def module(path: str) -> Any:
    """A program, as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec and spec.loader
    made = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


class Judged(Tiny):
    """A dataset of points around zero, its models, and files that come."""

    def __init__(self, spark: Any, home: Path, **anomaly: Any) -> None:
        super().__init__(spark, home)
        self.dataset("points", COLUMNS, anomaly={**ANOMALY, **anomaly})
        self.files = 0

    def bring(self, *found: tuple[Any, ...]) -> None:
        self.files += 1
        self.land(f"points/{self.files}.csv", "id,place,x,y", *[",".join(map(str, row)) for row in found])

    def load(self, *found: tuple[Any, ...]) -> Any:
        self.bring(*found)
        outcome = self.run()
        assert outcome.problems == []
        return outcome

    def fit(self) -> int:
        pipeline = self.pipeline()
        return fit.fit(pipeline, pipeline.conf.datasets["points"], "a test").version

    @property
    def registry(self) -> Registry:
        return Registry(self.spark, f"{self.home}/warehouse")

    def promote(self, version: int, stage: Stage) -> None:
        self.registry.promote("points", version, stage, "test", "a test")

    def odd(self) -> list[str]:
        return [id_ for (id_,) in self.rows("silver/points", "id", where="id LIKE 'odd%'")]

    def replayed(self) -> list[Any]:
        pipeline = self.pipeline()
        return replay.replay(pipeline, list(pipeline.conf.datasets.values()), 0)


def test_each_stage_and_the_way_back(spark: Any, tmp_path: Path) -> None:
    one = Judged(spark, tmp_path)
    one.load(*rows(0, 400))
    assert one.rows("ops/verdicts", "*") == [], "without a model nobody judges"
    assert one.fit() == 1
    # In shadow: counted, nothing else.
    one.load(*ODD, *rows(400, 100))
    assert one.odd() == ["odd1", "odd2"] and one.rows("ops/anomalies", "*") == []
    verdicts = ("version", "stage", "judged", "flagged", "removed", "held")
    assert one.rows("ops/verdicts", *verdicts) == [(1, "shadow", 102, 2, 0, None)]
    # Advisory: the row goes on, and is told of.
    one.promote(1, "advisory")
    one.load(("odd3", "A", 88, -90), *rows(500, 100))
    assert one.odd() == ["odd1", "odd2", "odd3"]
    (told,) = one.rows("ops/anomalies", "removed", "version", "score > threshold", "key", "reason", "_file")
    assert told[:4] == (False, 1, True, "id odd3") and "x" in told[4] and told[5].endswith("3.csv")
    # Enforced: it is quarantined, with its raw record, and the ledger adds up.
    one.promote(1, "enforce")
    one.load(("odd4", "A", 91, -85), ("bad", "A", "no number", 1), *rows(600, 100))
    assert one.odd() == ["odd1", "odd2", "odd3"]
    found = one.quarantined("points", "rule", "raw", "state")
    assert found == [("anomaly", "odd4,A,91,-85", "open"), ("type", "bad,A,no number,1", "open")]
    commit = next(m["anomaly"] for _, m in one.pipeline().table("silver", "points").commits())
    assert (commit["version"], commit["stage"], commit["judged"], commit["removed"]) == (1, "enforce", 101, 1)
    check_shown(one)
    # Released, it enters once, though the model has not changed its mind.
    pipeline = one.pipeline()
    dataset = pipeline.conf.datasets["points"]
    assert review.label(pipeline, dataset, "removed", "released") == 1
    assert review.label(pipeline, dataset, "removed", "released") == 0
    assert review.label(pipeline, dataset, "NOT removed", "confirmed") == 1
    for _ in range(2):
        again = one.pipeline()
        requeue.requeue(again)
        assert again.transform().problems == []
    assert one.odd() == ["odd1", "odd2", "odd3", "odd4"]
    assert one.quarantined("points", "rule", "state") == [("anomaly", "requeued"), ("type", "open")]
    (week,) = review.weeks(pipeline, dataset)
    assert (week.version, week.flagged, week.confirmed, week.released, week.precision) == (1, 2, 1, 1, 0.5)
    one.nothing_is_lost("points")
    # Another stands in its shadow: it judges the same rows, and nothing comes of it.
    pipeline = one.pipeline()
    threshold = pipeline.judges.fitted(dataset, 1).threshold
    assert fit.recut(pipeline, dataset, 1, threshold - 1e-6, "a test").version == 2
    one.load(("odd5", "A", 92, -85), *rows(700, 100))
    assert one.rows("ops/verdicts", "version", "judged", "removed", where="last_load = 6") == [(1, 101, 1)]
    assert set(one.rows("ops/anomalies", "version")) == {(1,)}
    tried = ("last_load", "version", "acting", "rows", "both", "only_old", "only_new")
    assert one.rows("ops/trials", *tried) == [(6, 2, 1, 101, 1, 0, 0)]
    # Of many rows a sample; one that would flag all of them; and one that is broken, which is told of once.
    assert fit.recut(pipeline, dataset, 1, 0.1, "a test").version == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "MOST", 50)
        one.load(("odd6", "A", 93, -85), *rows(800, 100))
    ((_, *trial),) = one.rows("ops/trials", *tried, where="version = 3")
    assert trial[:2] == [3, 1] and 25 < trial[2] <= 50 and trial[4] == 0 and trial[3] + trial[5] == trial[2]
    assert look.trial(one.pipeline(), one.registry.history("points")) == fit.Comparison(1, *trial[2:])
    spark.sql(f"UPDATE delta.`{tmp_path}/warehouse/models` SET model = X'00' WHERE model IS NOT NULL AND version = 3")
    for number in range(2):
        one.load(("odd7", "A", 94 + number, -85), *rows(900 + 100 * number, 100))
    alert = "what LIKE 'model 3, in the shadow, cannot be tried: %'"
    assert one.rows("ops/alerts", "kind", where=alert) == [("not-judged",)]
    (last,) = one.rows("ops/verdicts", "judged", "removed", "scores = '{}'", where="last_load = 9")
    assert last == (101, 1, False) and len(one.rows("ops/trials", "1")) == 2
    # A newer model changes nothing of what was decided.
    assert one.fit() == 4
    one.promote(4, "enforce")
    assert [(d.same, d.is_none) for d in one.replayed()] == [(1103 + 1, True)]
    assert one.registry.history("points").stages == {1: "retired", 2: "retired", 3: "retired", 4: "enforce"}


def check_shown(tiny: Judged) -> None:
    """What the report tells of these loads."""
    (model,) = shown.collect(tiny.spark, f"{tiny.home}/warehouse", ["points", "unheard_of"])
    assert (model.version, model.stage, model.declared, model.held) == (1, "enforce", 0.001, ())
    assert [(one.judged, one.flagged, one.removed) for one in model.loads] == [(102, 2, 0), (101, 1, 0), (101, 1, 1)]
    assert len(model.scores) == len(model.edges) + 1 and sum(model.scores) == 304
    assert model.groups == (("A", 153, 3), ("B", 151, 1))
    assert {name for name, _ in model.reasons} <= {"x", "both", "ratio"} and model.reasons[0][1] == 2
    assert [example.removed for example in model.examples] in ([True, False], [False, True])
    assert {example.place for example in model.examples} == {"3.csv line 2", "4.csv line 2"}
    assert model.drift is not None


def test_a_key_is_shown_as_far_as_everybody_may_see_it(spark: Any, tmp_path: Path) -> None:
    one, hidden = Tiny(spark, tmp_path), {**KEY, "classification": "personal"}
    one.dataset("mails", {"line": KEY, "mail": hidden, "x": NUMBER})
    one.dataset("people", {"mail": hidden, "x": NUMBER})
    one.dataset("sums", {"x": NUMBER})
    row = spark.createDataFrame([("7" * 200, "a@b.example", 1.0)], "line string, mail string, x double")
    shown = [row.select(flow.open_key(one.conf(name))).first()[0] for name in ("mails", "people", "sums")]
    assert shown == [f"line {'7' * 100}, mail •••", "mail •••", ""]


def test_what_may_be_removed(spark: Any, tmp_path: Path) -> None:
    """A surge in which all rows move is no anomaly, nor is a group that is right but rare; nothing odd stops a job."""
    one = Judged(spark, tmp_path)
    one.load(*rows(0, 400))
    one.promote(one.fit(), "enforce")
    verdicts = ("first_load", "judged", "flagged", "removed", "held IS NOT NULL")
    # Every location doubles, and more.
    outcome = one.load(*rows(400, 60, shift=60.0))
    assert one.rows("ops/verdicts", *verdicts) == [(2, 60, 60, 0, True)] and one.quarantined("points", "1") == []
    assert any("nothing was removed: overall: 60 of 60 rows" in note for note in outcome.notes)
    kinds = [kind for (kind,) in one.rows("ops/alerts", "kind")]
    assert kinds == ["anomalies", "stale"] and len(one.rows("silver/points", "1")) == 460
    assert {removed for (removed,) in one.rows("ops/anomalies", "removed")} == {False}
    # A group of its own, few beside the others.
    special = [(f"s{n}", "C", 60 + n / 10, 60 - n / 10) for n in range(8)]
    one.load(*rows(500, 1000), *special)
    (third,) = one.rows("ops/verdicts", "removed", "held LIKE 'place C: 8 of 8 rows%'", where="first_load = 3")
    assert third == (0, True)
    # A small load of which much is odd; keys, groups and features that are missing, infinite or not to be computed.
    nothing = ("n1", "", 0.1, 0.2), ("n2", "A", "", ""), ("i1", "", "", 1000000), ("i2", "A", "-1e308", "-1e308")
    one.load(ODD[0], *nothing, ("bad", "A", "no number", 0))
    assert ("odd1,A,90,-80",) in one.quarantined("points", "raw", where="rule = 'anomaly'")
    found = {id_ for (id_,) in one.rows("silver/points", "id", where="_load = 4")}
    assert {"n1", "n2", "i1"} <= found and "odd1" not in found
    one.nothing_is_lost("points")
    assert one.replayed()[0].is_none


@pytest.mark.parametrize(("how", "least", "most"), [("share", 13, 67), ("falseAlarmRate", 0, 40)])
def test_clean_data_is_flagged_at_the_declared_rate(
    spark: Any, tmp_path: Path, how: str, least: int, most: int
) -> None:
    """Rows that come later, of the same kind: 40 of them, and three deviations of both samples; or at most 40."""
    made = random.Random(5)

    def usual(first: int) -> list[tuple[Any, ...]]:
        return [(f"u{n}", "AB"[n % 2], made.gauss(0, 1), made.gauss(0, 1)) for n in range(first, first + 2000)]

    one = Judged(spark, tmp_path)
    one.dataset("points", COLUMNS, anomaly={"features": ["x", "y"], how: 0.02})
    one.load(*usual(0))
    one.promote(one.fit(), "enforce")
    one.load(*usual(2000))
    [(flagged, removed, held)] = one.rows("ops/verdicts", "flagged", "removed", "held")
    assert least <= flagged == removed <= most and held is None


def test_a_verdict_once_given_stays(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a run is killed, whoever judges by then, and whatever people have done meanwhile."""
    one, third = Judged(spark, tmp_path), ("odd3", "A", 88, -90)
    one.load(*rows(0, 400))
    one.promote(one.fit(), "enforce")
    dataset = one.conf("points")

    def killed(step: str, *found: tuple[Any, ...]) -> None:
        one.bring(*found)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Pipeline, step, interrupted)
            one.run()

    killed("write_quarantine", ODD[0])
    assert review.label(one.pipeline(), dataset, "removed", "released") == 0, "silver does not have its load yet"
    one.promote(1, "retired")
    one.load(ODD[1])
    assert one.odd() == ["odd2"] and one.quarantined("points", "raw", "_load") == [("odd1,A,90,-80", 2)]
    one.promote(1, "enforce")
    killed("write_silver", third)
    assert requeue.release(one.pipeline(), "raw LIKE 'odd3%'") == 1
    one.promote(1, "advisory")
    pipeline = one.pipeline()
    requeue.requeue(pipeline)
    assert pipeline.transform().problems == [] and one.odd() == ["odd2", "odd3"]
    assert one.rows("ops/verdicts", "first_load", "last_load", "removed") == [(2, 2, 1), (4, 4, 1)]
    # They come again: those that silver has are no new anomalies, and nobody is asked about them.
    one.promote(1, "enforce")
    one.load(*ODD, third)
    assert one.rows("ops/verdicts", "judged", "removed", where="last_load = 6") == [(1, 1)]
    states = [("odd1,A,90,-80", 2, "open"), ("odd1,A,90,-80", 6, "open"), ("odd3,A,88,-90", 4, "requeued")]
    assert one.quarantined("points", "raw", "_load", "state") == states
    (scores,) = one.rows("ops/verdicts", "scores", where="last_load = 6")
    assert sum(json.loads(scores[0])["rows"]) == 1, "of those that were judged"
    said = {(row["_load"], row["_line"]): row["label"] for row in review.entries(one.pipeline(), dataset).collect()}
    assert said == {(2, 2): None, (4, 2): "released", (6, 2): None}, "by requeue, as by review"
    assert review.label(one.pipeline(), dataset, "removed AND _load = 6", "confirmed") == 1
    one.nothing_is_lost("points")
    # A replay is put in the place of silver and taken back, and verdicts are what they were.
    pipeline = one.pipeline()
    assert replay.replay(pipeline, [dataset], 0)[0].is_none
    replay.swap(one.pipeline(), pipeline.outcome.run)
    assert one.odd() == ["odd2", "odd3"]
    replay.rollback(one.pipeline(), pipeline.outcome.run)
    assert one.odd() == ["odd2", "odd3"]
    assert one.replayed()[0].is_none


def test_what_an_overlap_reads_again(spark: Any, tmp_path: Path) -> None:
    """Of a table that is pulled, a row that was removed is neither removed twice, nor put back by a held load."""
    one = Judged(spark, tmp_path)
    one.load(*rows(0, 400))
    one.promote(one.fit(), "enforce")

    def pipeline() -> Pipeline:
        made = one.pipeline()
        pulled = replace(made.conf.datasets["points"], jdbc=object())
        made.conf = replace(made.conf, datasets={"points": pulled})
        return made

    def pull(*found: tuple[Any, ...]) -> None:
        one.bring(*found)
        one.pipeline().ingest(one.conf("points"))
        assert pipeline().transform(ingest=False).problems == []

    pull(ODD[0], *rows(400, 50))
    pull(ODD[0], *rows(440, 50))
    pull(ODD[0], ODD[1], *rows(500, 60, shift=60.0))
    assert one.rows("ops/verdicts", "last_load", "removed", "held IS NOT NULL") == [
        (2, 1, False), (3, 0, False), (4, 0, True)]  # fmt: skip
    assert one.quarantined("points", "raw", "_load") == [("odd1,A,90,-80", 2)] and one.odd() == ["odd2"]
    made = pipeline()
    assert review.label(made, made.conf.datasets["points"], "removed", "confirmed") == 1
    assert replay.replay(made, list(made.conf.datasets.values()), 0)[0].is_none
    one.nothing_is_lost("points")


@pytest.mark.parametrize("kept", [{"history": "append"}, {"history": "scd2", "sequence": "y"}])
def test_other_histories(spark: Any, tmp_path: Path, kept: dict[str, str]) -> None:
    one = Judged(spark, tmp_path)
    one.dataset("points", COLUMNS, anomaly=ANOMALY, **kept)
    one.load(*rows(0, 400))
    one.promote(one.fit(), "enforce")
    one.load(ODD[0], *rows(400, 50))
    assert one.odd() == [] and len(one.quarantined("points", "1")) == 1
    pipeline = one.pipeline()
    assert review.label(pipeline, one.conf("points"), "removed", "released") == 1
    requeue.requeue(pipeline)
    one.load(ODD[0], *rows(400, 50))
    assert one.odd() == ["odd1"] and len(one.quarantined("points", "1")) == 1, "in the same step, and by identity"
    assert one.replayed()[0].is_none
    one.nothing_is_lost("points")


def test_nothing_about_a_model_stops_a_load(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what was decided lost where a run is killed, or its drift cannot be measured."""
    one = Judged(spark, tmp_path)
    one.load(*rows(0, 400))
    one.promote(one.fit(), "enforce")
    broken, typed = F.udf(lambda _: 1 / 0, "double"), "_rule string, _score double, _anomaly string"
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "scored", lambda _, rows, *more, **named: rows.withColumn("_score", broken("_score")))
        one.bring(ODD[0])
        outcome = one.run()
        assert [problem.code for problem in outcome.problems] == ["not-judged"] and one.odd() == ["odd1"]
        pipeline, frame = one.pipeline(), spark.createDataFrame([("r", None, None)], typed)
        judge = pipeline.judge(one.conf("points"))
        with flow.Sitting(pipeline, judge, pipeline.table("bronze", "points"), False) as sitting:
            assert sitting.verdict(frame) is frame and sitting.said == {}
    problem = Problem("wrong", "points", "the contract has changed", "")
    with monkeypatch.context() as patch:
        patch.setattr(flow.drift, "sample", lambda *_: (_ for _ in ()).throw(DrivetrainError(problem)))
        outcome = one.load(ODD[1])
    assert "points: its drift was not measured: the contract has changed" in outcome.notes
    assert one.rows("ops/verdicts", "last_load", "removed", "scores") == [(3, 1, "{}")]
    # A surge, of which a run that is killed before it writes what it did has told nobody.
    one.bring(*rows(400, 60, shift=60.0))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Pipeline, "write_ops", interrupted)
        one.run()
    for _ in range(2):
        assert one.run().problems == []
    assert one.rows("ops/verdicts", "last_load", "flagged", "held IS NOT NULL") == [(3, 1, False), (4, 60, True)]
    (model,) = shown.collect(spark, f"{tmp_path}/warehouse", ["points"])
    assert [load.judged for load in model.loads] == [1, 60] and model.scores == (), "nothing was measured"
    told = [kind for (kind,) in one.rows("ops/alerts", "kind") if kind != "stale"]
    assert told == ["anomalies", "not-judged", "not-judged"]
    spark.sql(f"DELETE FROM delta.`{tmp_path}/warehouse/models` WHERE model IS NOT NULL AND version = 1")
    pipeline = one.pipeline()
    assert pipeline.judge(one.conf("points")) is None and "the bytes of model 1 are gone" in str(pipeline.outcome)


def losing(how: str) -> Any:
    """A UDF in whose midst the worker is killed, or wants more memory than its limit allows, as
    spark.executor.pyspark.memory sets one."""

    def lose(score: float) -> float:  # within, as workers know nothing of this module
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, hard))
        try:
            return float(len(bytearray(16 << 30)))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    return F.udf(lose, "double")


@pytest.mark.parametrize(("how", "said"), [("killed", "exited unexpectedly"), ("full", "MemoryError")])
def test_a_worker_that_is_lost_in_mid_score(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, said: str
) -> None:
    """The load goes on without verdicts; the next is judged again."""
    one = Judged(spark, tmp_path)
    one.load(*rows(0, 400))
    one.promote(one.fit(), "enforce")
    lost = losing(how)
    one.bring(ODD[0], *rows(400, 50))
    with monkeypatch.context() as patch:
        patch.setattr(Judge, "scored", lambda _, rows, *more, **named: rows.withColumn("_score", lost("_line")))
        outcome = one.run()
    (problem,) = outcome.problems
    assert problem.code == "not-judged" and said in problem.what and one.odd() == ["odd1"]
    one.load(ODD[1], *rows(450, 50))
    assert one.odd() == ["odd1"] and one.rows("ops/verdicts", "judged", "removed") == [(51, 1)]
    one.nothing_is_lost("points")


def test_a_model_that_does_not_fit_judges_nobody(spark: Any, tmp_path: Path) -> None:
    one = Judged(spark, tmp_path)
    one.load(*rows(0, 300))
    one.promote(one.fit(), "enforce")

    def problems() -> str:
        pipeline = one.pipeline()
        assert pipeline.judge(pipeline.conf.datasets["points"]) is None
        return str(pipeline.outcome.problems)

    for features_, said in (
        ([*FEATURES[:2], "place"], ("feature ratio is not in the contract", "does not know the feature place")),
        ([FEATURES[0], {"name": "both", "sql": "x - y"}, FEATURES[2]], ("feature both has sql 'x - y' where it had",)),
        ([FEATURES[0], FEATURES[1], {"name": "ratio", "sql": "nope(x)"}], ("anomaly, feature ratio", "nope")),
    ):  # fmt: skip
        one.dataset("points", COLUMNS, anomaly={**ANOMALY, "features": features_})
        assert all(part in problems() for part in said), problems()
    one.dataset("points", COLUMNS, anomaly=ANOMALY)
    models = f"delta.`{tmp_path}/warehouse/models`"
    good = Fitted(one.registry.model("points", 1)).model
    for bad, said in (
        (replace(good, thresholds={}), "lacks a threshold for every row"), (replace(good, card={}), "its card"),
        (replace(good, card={**good.card, "dataset": "orders"}), "model 1 was fitted on orders"),
    ):  # fmt: skip
        spark.sql(f"UPDATE {models} SET model = X'{dump(bad).hex()}' WHERE model IS NOT NULL")
        assert said in problems(), problems()
    spark.sql(f"UPDATE {models} SET model = X'{dump(good).hex()}' WHERE model IS NOT NULL")
    spark.sql(f"UPDATE {models} SET model = overlay(model PLACING X'7f' FROM 3000) WHERE model IS NOT NULL")
    one.bring(ODD[0])
    assert "altered" in str(one.run().problems) and one.odd() == ["odd1"], "which stops no load"


def test_scores_are_a_rows_own(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They depend on neither partitions, order nor batch size, and are the pipeline's."""
    one = Judged(spark, tmp_path)
    one.load(*rows(0, 500))
    version = one.fit()
    one.promote(version, "advisory")
    one.load(*ODD, *rows(500, 300))
    dataset, model = one.conf("points"), Fitted(one.registry.model("points", version))
    score = scorer(spark, model)
    points = one.frame("silver/points").select("id", *features(dataset).values())
    names = [feature.name for feature in dataset.anomaly.features]  # type: ignore[union-attr]
    found = []
    for parts, size in ((1, "10000"), (7, "3"), (40, "10000")):
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", size)
        scored = points.repartition(parts).select("id", score(*names).alias("score"))
        found.append(dict(map(tuple, scored.collect())))
    spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert found[0] == found[1] == found[2] and len(found[0]) == 802
    told = one.rows("ops/anomalies", "score")
    assert sorted(found[0][name] for name, *_ in ODD) == sorted(score for (score,) in told)
    with pytest.raises(DrivetrainError, match="the features x, both, ratio, and 2 columns were given"):
        score(*names[:2])
    # Nor on where a feature stands in the contract.
    one.dataset("points", COLUMNS, anomaly={**ANOMALY, "features": FEATURES[::-1]})
    one.load(("odd3", *ODD[0][1:]))
    assert one.rows("ops/anomalies", "score", where="_load = 3") == [(found[0]["odd1"],)]
    one.dataset("points", COLUMNS, anomaly=ANOMALY)
    twin = one.copy(tmp_path / "twin")
    pipeline = twin.pipeline()
    again = fit.fit(pipeline, dataset, "again")
    card = json.loads(twin.rows("models", "card", where="version = 1 AND card IS NOT NULL")[0][0])
    assert again.version == 2 and again.comparison and again.card["silver_version"] == card["silver_version"] + 2
    assert points.limit(0).select(score(*names)).collect() == []
    # Nor on whether they come as a table or as a stream, whose scorer anybody may write.
    streamed = spark.readStream.format("delta").load(f"{tmp_path}/warehouse/silver/points")
    columns = [value.alias(name) for name, value in features(dataset).items()]
    writer = streamed.select("id", *columns).select("id", score(*names).alias("score")).writeStream.format("memory")
    writer.queryName("scored").trigger(availableNow=True).start().awaitTermination()
    assert dict(map(tuple, spark.table("scored").where("id <> 'odd3'").collect())) == found[0]
    # Nor does the sample of the reference depend on how the table is partitioned.
    silver = one.frame("silver/points")
    once, again_ = (reference.sample(silver.repartition(parts), dataset, most=100) for parts in (1, 9))
    assert once.equals(again_) and 80 <= once.num_rows <= 100
    assert reference.sample(silver, dataset).num_rows == 803
    monkeypatch.setattr(reference, "VALUES", 300)
    assert reference.sample(silver, dataset).equals(once.slice(0, 100)), "of many features fewer rows"


def test_the_job(spark: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = module("jobs/anomalies.py")
    monkeypatch.setattr(job.job, "table", lambda columns, rows: print(columns, *rows))
    one = Judged(spark, tmp_path, share=0.03)
    one.load(*rows(0, 300))

    def do(*words: str) -> str:
        given, pipeline = job.arguments().parse_args(words), one.pipeline()
        job.DO[given.do](pipeline, job.wanted(given, pipeline.conf), given)
        assert pipeline.outcome.problems == []
        return str(capsys.readouterr().out)

    assert "No models yet: ./spark-submit.sh anomalies" in (told := do("list")) and told.endswith(" fit points\n")
    assert "points: no row has been flagged yet" in do("review", "points")
    assert "points: model 1 of 300 rows, in the shadow" in do("fit")
    with pytest.raises(DrivetrainError, match="300 rows is too small for a share"):
        do("promote", "points", "1", "--stage", "enforce")
    one.dataset("points", COLUMNS, anomaly={**ANOMALY, "share": 0.04})
    assert "points: model 2 of 300 rows" in do("fit")
    promoted = do("promote", "points", "2", "--stage", "enforce", "--why", "because")
    assert "model 2 is promoted, now in enforce" in promoted
    # What people have named counts also where no row was flagged yet.
    twin, dataset = one.copy(tmp_path / "twin"), one.conf("points")
    count = review.missed(twin.pipeline(), dataset, "abs(x) < 0.3 AND abs(y) < 0.3")
    (week,) = review.weeks(pipeline := twin.pipeline(), dataset)
    recall = review.proposal(pipeline, dataset, 2).current.recall
    assert 0 < count == week.missed == recall.whole and recall.part == 0 and not review.examples(pipeline, dataset, 9)
    told = do("fit", "points")
    assert "model 3 of 300 rows" in told and "it flags" in told and "model 2 flags" in told
    assert "'promoted', 'because')" in do("list") and "flags 12 of 300 rows" in do("score", "points", "--version", "2")
    one.bring(*[(f"m{n}", "A", 60 + n / 100, 60) for n in range(100)])
    assert one.run().problems == []
    assert ", 'id m" in (told := do("review", "points")) and "(2, " in told and ", 100, 0, 0, 0, '', '')" in told
    assert "--release ids" in told
    nothing = job.arguments().parse_args(["review", "points", "--release", "score > 2"])
    job.label(one.pipeline(), one.conf("points"), nothing)
    assert "released now: 0\n  No anomaly fulfils that" in capsys.readouterr().out
    with pytest.raises(DrivetrainError, match="none of its flagged rows is reviewed yet"):
        do("recut", "points")
    assert "points: model 3, in the shadow: of 100 rows it flags 100, model 2 flags 100: 100 both" in do("list")
    job.label(pipeline := one.pipeline(), one.conf("points"), job.arguments().parse_args(
        ["review", "points", "--confirm", "score > 0.5"]))  # fmt: skip
    assert "confirmed now: 100" in capsys.readouterr().out and not pipeline.outcome.problems
    told = do("review", "points")
    assert "100, 100, 0, 0, '100%', ''" in told and "model 2: the threshold in force" in told
    for which, count in (("id IN ('r0', 'm1')", 1), ("id IN ('r0', 'r1', 'm2')", 1), ("id = 'r1'", 0)):
        asked = job.arguments().parse_args(["review", "points", "--missed", which])
        job.label(one.pipeline(), one.conf("points"), asked)
        assert f"missed, as is known now: {count};" in capsys.readouterr().out, "what is flagged was not missed"
    assert "100, 100, 0, 2, '100%', '98%'" in (told := do("review", "points")) and "recut points --version 2" in told
    with pytest.raises(DrivetrainError, match="has no column 'z'"):
        review.missed(one.pipeline(), one.conf("points"), "z > 1")
    told = do("recut", "points", "--threshold", "0.5", "--why", "labels")
    assert "model 4 of 300 rows, in the shadow; above 0.5000 (0.5000 to 0.5000) lie" in told and "model 2" in told
    model = Fitted(one.registry.model("points", 4)).model
    assert model.thresholds[ALL].value == 0.5 and model.card["recut"]["of"] == 2
    with pytest.raises(DrivetrainError, match="no threshold is 1"):
        do("recut", "points", "--threshold", "1")
    assert "mean of 10 seeds: as the contract has it" in do("backtest", "points", "--truth", "x > 50")
    for wrong, said in (("z > 1", "has no column 'z'"), ("x > 5000", "needs both sorts of rows")):
        with pytest.raises(DrivetrainError, match=said):
            do("backtest", "points", "--truth", wrong)
    assert "It is stale" in do("drift")
    assert "model 5" in do("drift", "points", "--refit")
    assert "model 2 is withdrawn, now in retired" in do("rollback", "points")
    with pytest.raises(DrivetrainError, match="there is no model 9"):
        do("promote", "points", "9", "--stage", "enforce")


def test_events_of_any_year_are_scored_and_none_of_the_future_sets_the_window(spark: Any, tmp_path: Path) -> None:
    """By `scorer` as by `teller`, which send a model to the executors once; the window's rows are the same however
    cut."""
    tiny = Tiny(spark, tmp_path)
    columns = {"id": KEY, "day": {"logicalType": "date"}, "at": {"logicalType": "timestamp"}, "open": {}}
    wanted = {"features": ["day", "at"], "reference": {"days": 1}, "where": "open = 'yes'", "share": 0.01}
    tiny.dataset("events", columns, anomaly=wanted, eventTime="at")
    dataset = tiny.conf("events")
    odd = [("0000-01-01", "0001-01-01"), ("9999-12-31", "9999-12-31"), ("10000-01-01", "10000-01-01"), (None, None)]
    usual = spark.range(3000).selectExpr(
        "CAST(id AS STRING) AS id", "DATE '2024-05-01' - INT(id % 9) AS day",
        "TIMESTAMP '2024-05-01 12:00:00' - MAKE_INTERVAL(0, 0, 0, 0, 0, INT(id)) AS at",
        "IF(id % 2 = 0, 'yes', 'no') AS open",
    )  # fmt: skip
    dates = spark.createDataFrame([(f"odd{n}", *one, "yes") for n, one in enumerate(odd)], usual.columns)
    rows = usual.unionByName(dates.selectExpr("id", "CAST(day AS DATE)", "CAST(at AS TIMESTAMP)", "open"))
    sample = fit.sampled(rows, dataset)
    assert sample.num_rows == 720 and sample.equals(fit.sampled(rows.repartition(7), dataset))
    model = fit.fitted(sample, dataset.anomaly, 0, {})  # type: ignore[arg-type]
    every = {ALL: dataclasses.replace(model.thresholds[ALL], value=0.0)}
    one = Fitted(dump(dataclasses.replace(model, thresholds=every)))
    score, tell = scorer(spark, one), udf.teller(spark, one)
    told = tell({name: F.col(name) for name in ("at", "day")})
    found = rows.select("id", score("day", "at").alias("score"), told.alias("told")).collect()
    assert len(found) == 3004 and all(row["score"] == row["told"]["score"] for row in found)
    reasons = {row["id"]: row["told"]["reason"] for row in found if row["id"].startswith("odd")}
    assert "10000-01-01 is above all" in reasons["odd2"] and "0000-01-01 is below all" in reasons["odd0"]
    assert reasons["odd3"] == "all of its features are missing"
    known = dict(udf._SHARED)
    udf.teller(spark, Fitted(one.data))
    assert known == udf._SHARED


def test_acmes_anomalies_are_found(spark: Any, tmp_path: Path) -> None:
    """By the contract as it ships, of its generator's truth: of those flagged and of those planted, how many are."""
    truth = module("scripts/acme_sources.py").make_feeds(tmp_path, days=14, order_lines=20_000, seed=7)
    dataset = reader.load(DEFAULT_CONF, "local", environ={}).datasets["orders"]
    assert dataset.anomaly
    orders = spark.read.parquet(f"{tmp_path}/_truth/silver/orders.parquet")
    model = fit.fitted(fit.sampled(orders, dataset), dataset.anomaly, 0, {})
    data = dump(model)
    assert len(data) < 2_000_000
    score = scorer(spark, Fitted(data))
    found = orders.select("order_id", "line", score(*features(dataset).values()).alias("score"))
    odd = found.where(F.col("score") > model.thresholds[ALL].value)
    flagged = {(row["order_id"], row["line"]) for row in odd.collect()}
    planted = {(row["order_id"], row["line"]) for row in truth.table("anomalies", "orders").to_pylist()}
    precision, recall = len(flagged & planted) / len(flagged), len(flagged & planted) / len(planted)
    assert (len(planted), len(flagged)) == (18, 20) and precision >= 0.6 and recall >= 0.7, (precision, recall)


def test_a_streams_verdict_is_given_as_it_comes(spark: Any, tmp_path: Path) -> None:
    """What the unified view shows is what silver will hold, and a replay gives; whoever has a say by then."""
    one = Streamed(spark, tmp_path, sequence="seq", anomaly={"features": ["n"], "share": 0.02})
    shutil.rmtree(tmp_path / "conf" / "gold")
    registry, appender = Registry(spark, f"{tmp_path}/warehouse"), one.appender()
    made = random.Random(1)
    one.append(appender, *[event(f"k{n}", int(made.gauss(0, 100))) for n in range(200)])
    assert one.pipeline("batch").transform(ingest=False).problems == []
    pipeline = one.pipeline("batch")
    dataset = pipeline.conf.datasets["events"]
    registry.promote("events", fit.fit(pipeline, dataset, "a test").version, "enforce", "test", "")
    one.append(appender, event("odd", 5000), event("k0", 3, 2), "{torn")
    assert one.tiny.quarantined("events", "rule", "_line") == [("anomaly", 200), ("shape", 202)], "at once"
    live = one.live()
    assert ("odd", 5000, 1) not in live and ("k0", 3, 2) in live and len(live) == 200
    assert one.tiny.rows("bronze/events", "count(_score)", "count(_anomaly)") == [(2, 1)]
    # Before silver takes the load, another model comes, which would judge otherwise.
    registry.promote("events", 1, "retired", "test", "")
    one.append(appender, event("odd2", 7000))
    outcome = one.pipeline("batch").transform(ingest=False)
    assert outcome.problems == [] and [(row.judged, row.removed) for row in outcome.verdicts] == [(2, 1)]
    assert one.live() == sorted([*live, ("odd2", 7000, 1)])
    one.tiny.nothing_is_lost("events")
    assert one.tiny.quarantined("events", "rule", "_line") == [("anomaly", 200), ("shape", 202)], "once"
    assert one.tiny.rows("ops/anomalies", "removed", "version") == [(True, 1)]
    # Released, and judged by nobody again; a surge in small loads is seen as one.
    registry.promote("events", 1, "enforce", "test", "")
    pipeline = one.pipeline("batch")
    assert review.label(pipeline, dataset, "removed", "released") == 1
    requeue.requeue(pipeline)
    assert ("odd", 5000, 1) in one.live()
    appender.begin()
    for load in range(4):
        one.append(appender, *[event(f"s{load}{n}", 900 + n, minutes=1) for n in range(2)])
    commits = [m["anomaly"] for _, m in islice(appender.log.commits(), 4)]
    assert (commits[-1]["removed"], commits[0]["removed"], commits[0]["flagged"]) == (2, 0, 2)
    before = one.live()
    assert one.pipeline("batch").transform(ingest=False).problems == []
    (told,) = one.tiny.rows("ops/alerts", "what", where="kind = 'anomalies'")
    assert told[0].startswith("nothing was removed of some loads, and 2 rows of others: overall: ")
    # What is told of loads is told of one model at one stage.
    appender.begin()
    one.append(appender, event("odd3", 6000))
    registry.promote("events", 1, "advisory", "test", "")
    appender.begin()
    one.append(appender, event("odd4", 6000), event("k1", 1, 2))
    before = one.live()
    outcome = one.pipeline("batch").transform(ingest=False)
    assert [(row.stage, row.judged, row.flagged) for row in outcome.verdicts] == [("enforce", 1, 1), ("advisory", 2, 1)]
    assert one.live() == before and replay.replay(one.pipeline("replay"), [dataset], 0)[0].is_none
    one.tiny.nothing_is_lost("events")
