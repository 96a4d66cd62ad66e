"""Anomalies: models fitted, promoted and rolled back; what they flag, reviewed; how far the data has moved."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from drivetrain import job
from drivetrain.contracts import Conf, Dataset
from drivetrain.errors import DrivetrainError, Problem

if TYPE_CHECKING:
    from drivetrain.anomaly.fit import Comparison, Result
    from drivetrain.pipeline import Pipeline

SHOWN = 20


def arguments() -> argparse.ArgumentParser:
    parser = job.parser(__doc__)
    do = parser.add_subparsers(dest="do", required=True, metavar="WHAT")
    fit = do.add_parser("fit", help="fit a model on silver as it stands; it begins in the shadow")
    fit.add_argument("datasets", nargs="*", help="(default: all whose contract has anomaly)")
    shown = do.add_parser("list", help="the models, what each may do, and how one in shadow does")
    shown.add_argument("datasets", nargs="*")
    promote = do.add_parser("promote", help="shadow only counts, advisory tells, enforce removes; retired does nothing")
    promote.add_argument("dataset")
    promote.add_argument("version", type=int)
    promote.add_argument("--stage", required=True, choices=("shadow", "advisory", "enforce", "retired"))
    back = do.add_parser("rollback", help="have back what acted before the last promotion")
    back.add_argument("dataset")
    score = do.add_parser("score", help="score silver as it stands; only tells")
    score.add_argument("dataset")
    score.add_argument("--version", type=int, help="(default: the model that judges now)")
    review = do.add_parser("review", help="what waits for a person, and what people have said; or say it")
    review.add_argument("dataset")
    said = review.add_mutually_exclusive_group()
    said.add_argument("--release", metavar="WHICH", help="ids parted by commas, or a condition: no anomaly, take it in")
    said.add_argument("--confirm", metavar="WHICH", help="as --release: an anomaly")
    said.add_argument("--missed", metavar="CONDITION", help="SQL: silver's rows that are anomalies, though not flagged")
    recut = do.add_parser("recut", help="the same forest with another threshold; it begins in the shadow")
    recut.add_argument("dataset")
    recut.add_argument("--version", type=int, help="(default: the model that judges now)")
    recut.add_argument("--threshold", type=float, help="(default: what the reviewed rows propose)")
    backtest = do.add_parser("backtest", help="which kind of forest finds the anomalies that are known")
    backtest.add_argument("dataset")
    backtest.add_argument("--truth", required=True, metavar="CONDITION", help="SQL: silver's rows that are anomalies")
    drift = do.add_parser("drift", help="how far what is judged has moved from the reference")
    drift.add_argument("datasets", nargs="*")
    drift.add_argument("--refit", action="store_true", help="where a model is stale, fit another into the shadow")
    for one in (promote, back, recut):
        one.add_argument("--why", default="", help="kept with the step")
    return parser


def run(given: argparse.Namespace, conf: Conf) -> int:
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress
    from drivetrain.session import files_of, open_session

    datasets = wanted(given, conf)
    spark = open_session(conf, "anomalies", "in-memory")
    run_id = job.run_id()
    pipeline = Pipeline(spark, conf, run_id, "anomalies", Progress(run_id))
    if given.do == "review" and (given.release or given.confirm or given.missed):
        with job.lock(conf, files_of(conf.settings.warehouse, spark), spark.sparkContext.applicationId):
            label(pipeline, datasets[0], given)
    else:
        DO[given.do](pipeline, datasets, given)
    return job.end(pipeline.outcome)


def wanted(given: argparse.Namespace, conf: Conf) -> list[Dataset]:
    """The datasets that were asked for, by default all that can have models.

    Raises:
        DrivetrainError: one is unknown, or its contract says nothing of anomalies.
    """
    names = given.datasets if "datasets" in given else [given.dataset]
    job.check_names(names, conf)
    silent = [name for name in names if conf.datasets[name].anomaly is None]
    if silent:
        fix = "give it the customProperty anomaly with its features"
        what = "its contract says nothing of anomalies"
        raise DrivetrainError(*[Problem("no-anomaly", conf.datasets[name].where, what, fix) for name in silent])
    return [one for one in conf.datasets.values() if one.anomaly and (not names or one.name in names)]


def fit(pipeline: Pipeline, datasets: list[Dataset], given: argparse.Namespace) -> None:
    for dataset in datasets:
        with pipeline.problem_of(dataset.name):
            fit_one(pipeline, dataset)
    pipeline.write_ops()


def fit_one(pipeline: Pipeline, dataset: Dataset) -> None:
    from drivetrain.anomaly import fit as fitting

    say_fitted(pipeline, dataset, fitting.fit(pipeline, dataset, "asked for"))


def say_fitted(pipeline: Pipeline, dataset: Dataset, found: Result) -> None:
    card, low, high = found.card, *found.card["interval"]
    print(f"{dataset.name}: model {found.version} of {card['rows']} rows, in the shadow; above"
          f" {card['threshold']:.4f} ({low or 0:.4f} to {high or 1:.4f}) lie {card['flagged']}")  # fmt: skip
    if found.comparison:
        print(f"  {told(found.comparison)}")
    command = pipeline.conf.command("anomalies")
    print(f"  Let it speak: {command} promote {dataset.name} {found.version} --stage advisory")


def told(found: Comparison) -> str:
    new, old = found.both + found.only_new, found.both + found.only_old
    apart = f"{found.both} both, {found.only_new} only the new one, {found.only_old} only the old one"
    return f"of {found.rows} rows it flags {new}, model {found.version} flags {old}: {apart}"


def list_models(pipeline: Pipeline, datasets: list[Dataset], given: argparse.Namespace) -> None:
    from drivetrain.anomaly import look

    found = pipeline.judges.registry.histories([dataset.name for dataset in datasets])
    if not found:
        print(f"No models yet: {pipeline.conf.command('anomalies')} fit {' '.join(one.name for one in datasets)}")
        return
    newest = [({step.version: step for step in history.steps}).values() for history in found]
    columns = ("dataset", "version", "stage", "since", "because", "why")
    rows = [(s.dataset, s.version, s.stage, f"{s.at:%Y-%m-%d %H:%M}", s.what, s.why) for steps in newest for s in steps]
    job.table(columns, rows)
    for history in found:
        if trial := look.trial(pipeline, history):
            print(f"{history.dataset}: model {history.shadow}, in the shadow: {told(trial)}")


def promote(pipeline: Pipeline, datasets: list[Dataset], given: argparse.Namespace) -> None:
    from drivetrain.anomaly.fit import check_stage

    name, registry = datasets[0].name, pipeline.judges.registry
    if given.stage != "retired":  # a model that cannot judge must not be set to
        registry.history(name).checked(given.version)
        pipeline.judges.checked(datasets[0], given.version)
        check_stage(pipeline.judges.fitted(datasets[0], given.version).model, datasets[0], given.stage)
    for step in registry.promote(name, given.version, given.stage, pipeline.outcome.run, given.why):
        print(f"{name}: model {step.version} is {step.what}, now in {step.stage}")


def rollback(pipeline: Pipeline, datasets: list[Dataset], given: argparse.Namespace) -> None:
    name, registry = datasets[0].name, pipeline.judges.registry
    if then := registry.history(name).last:
        pipeline.judges.checked(datasets[0], then.version)
    for step in registry.rollback(name, pipeline.outcome.run, given.why):
        print(f"{name}: model {step.version} is {step.what}, now in {step.stage}")


def score(pipeline: Pipeline, datasets: list[Dataset], given: argparse.Namespace) -> None:
    from drivetrain.anomaly import look

    found = look.look(pipeline, datasets[0], given.version, SHOWN)
    share = found.flagged / found.judged if found.judged else 0
    print(f"{datasets[0].name}: model {found.version} flags {found.flagged} of {found.judged} rows ({share:.3%})")
    if found.groups:
        job.table((datasets[0].anomaly.group, "rows", "flagged"), found.groups)  # type: ignore[union-attr]
    job.table(("score", *found.names, "reason"), found.examples)


def review(pipeline: Pipeline, datasets: list[Dataset], given: argparse.Namespace) -> None:
    from drivetrain.anomaly import review as reviewing

    dataset, command = datasets[0], f"{pipeline.conf.command('anomalies')} review {datasets[0].name}"
    if not reviewing.any_flagged(pipeline, dataset):
        print(f"{dataset.name}: no row has been flagged yet; ops.verdicts has what was judged")
    if waiting := reviewing.examples(pipeline, dataset, SHOWN):
        job.table(("id", "key", "model", "score", "removed", "reason", "file", "line"), waiting)
        print(f"Say of each: {command} --release ids, or a condition, of what is none; --confirm of what is one")
    weeks = reviewing.weeks(pipeline, dataset)
    if not weeks:
        return
    columns = ("model", "week of", "flagged", "confirmed", "released", "missed", "precision", "recall")
    counts = [(w.version, w.week, w.flagged, w.confirmed, w.released, w.missed) for w in weeks]
    shares = [(_percent(w.precision), _percent(w.recall)) for w in weeks]
    job.table(columns, [(*count, *share) for count, share in zip(counts, shares, strict=True)])
    for version in sorted({week.version for week in weeks}):
        proposed = reviewing.proposal(pipeline, dataset, version)
        better = f" with the threshold {proposed.proposed.threshold:.4f}" if proposed.proposed else ""
        print(f"model {version}: {proposed.why}{better}")
        if proposed.proposed:
            print(f"  Take it: {pipeline.conf.command('anomalies')} recut {dataset.name} --version {version}")


def label(pipeline: Pipeline, dataset: Dataset, given: argparse.Namespace) -> None:
    from drivetrain.anomaly import review as reviewing

    if given.missed:
        count = reviewing.missed(pipeline, dataset, given.missed)
        print(f"missed, as is known now: {count}; they stay in silver, and the next proposal counts them")
        return
    said = "confirmed" if given.confirm else "released"
    count = reviewing.label(pipeline, dataset, given.confirm or given.release, said)
    print(f"{said} now: {count}")
    if not count:
        listed = f"{pipeline.conf.command('anomalies')} review {dataset.name}"
        print(f"  No anomaly fulfils that and is not {said} yet; {listed} lists those that wait")
    elif given.release:
        print(f"  What was removed goes in by {pipeline.conf.command('batch')} --requeue")


def recut(pipeline: Pipeline, datasets: list[Dataset], given: argparse.Namespace) -> None:
    from drivetrain.anomaly import fit as fitting
    from drivetrain.anomaly import look
    from drivetrain.anomaly import review as reviewing

    dataset = datasets[0]
    version, value, why = look.chosen(pipeline, dataset, given.version), given.threshold, given.why
    if value is None:
        proposal = reviewing.proposal(pipeline, dataset, version)
        if proposal.proposed is None:
            fix = "review more rows, or give --threshold"
            raise DrivetrainError(Problem("anomaly-threshold", dataset.name, f"model {version}: {proposal.why}", fix))
        value, why = proposal.proposed.threshold, why or proposal.why
    say_fitted(pipeline, dataset, fitting.recut(pipeline, dataset, version, value, why or "asked for"))
    pipeline.write_ops()


def backtest(pipeline: Pipeline, datasets: list[Dataset], given: argparse.Namespace) -> None:
    from drivetrain.anomaly import look

    found = look.tried(pipeline, datasets[0], given.truth)
    anomaly = datasets[0].anomaly
    wanted = "extended" if found.extended else "standard"
    said = "as the contract has it" if anomaly and anomaly.kind == wanted else f"write kind: {wanted} in the contract"
    print(f"{datasets[0].name}: {found}: {said}")


def drift(pipeline: Pipeline, datasets: list[Dataset], given: argparse.Namespace) -> None:
    from drivetrain.anomaly import look

    for dataset in datasets:
        with pipeline.problem_of(dataset.name):
            found = look.moved(pipeline, dataset)
            said = {True: "yes", False: ""}
            shown = [(one.name, f"{one.psi:.3f}", f"{one.distance:.3f}", said[one.drifted]) for one in found.each]
            print(f"{dataset.name}: model {found.version}, drift rate {found.rate:.2f}")
            job.table(("feature", "PSI", "distance", "drifted"), shown)
            if found.stale and given.refit:
                fit_one(pipeline, dataset)
            elif found.stale:
                print(f"It is stale: {pipeline.conf.command('anomalies')} drift {dataset.name} --refit")
    pipeline.write_ops()


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


DO = {
    "fit": fit, "list": list_models, "promote": promote, "rollback": rollback, "score": score, "review": review,
    "recut": recut, "backtest": backtest, "drift": drift,
}  # fmt: skip


if __name__ == "__main__":
    job.main(run, arguments())
