"""A model from the reference: a sample of it on the driver, one forest, one threshold, and what to compare later rows
with."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame

from drivetrain import ops
from drivetrain.anomaly import features as encoding
from drivetrain.anomaly import grow, reference
from drivetrain.anomaly.distribution import count_feature, intervals, of_feature
from drivetrain.anomaly.features import Encoder, Encoding, Feature
from drivetrain.anomaly.forest import Floats
from drivetrain.anomaly.judge import check_expressions
from drivetrain.anomaly.modelfile import ALL, Model, Reference, dump
from drivetrain.anomaly.reasons import ranges_of
from drivetrain.anomaly.registry import Stage
from drivetrain.anomaly.scoring import Scorer
from drivetrain.anomaly.thresholds import Threshold, threshold
from drivetrain.anomaly.udf import kernel
from drivetrain.contracts import Anomaly, Dataset
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.settings import resolve_secret

if TYPE_CHECKING:
    from drivetrain.pipeline import Pipeline


ENOUGH: Final = 10  # rows of the reference above the threshold, below which chance sets it


Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    """Of the same rows those that the model which acts, a version, flags, and those that the new one does."""

    version: int
    rows: int
    both: int
    only_old: int
    only_new: int


@dataclass(frozen=True)
class Result:
    version: int
    card: Mapping[str, Any]
    comparison: Comparison | None


def fit(pipeline: Pipeline, dataset: Dataset, why: str) -> Result:
    """Fit a model on silver as it stands, and keep it in the shadow; compared with the one that acts.

    Raises:
        DrivetrainError: the contract has no anomaly, Spark does not know one of its expressions, or silver has no rows
            of the reference.
    """
    anomaly = _wanted(dataset)
    check_expressions(pipeline.spark, dataset)
    with pipeline.step("fit", dataset.name) as step:
        version, sample = _reference_now(pipeline, dataset)
        model = fitted(sample, anomaly, version, {"dataset": dataset.name, "run": pipeline.outcome.run})
        step.rows = sample.num_rows
    return _kept(pipeline, dataset, model, sample, why)


def recut(pipeline: Pipeline, dataset: Dataset, version: int, value: float, why: str) -> Result:
    """The forest of a version with another threshold, in the shadow as a version of its own; compared with the one that
    acts over silver's reference window of now.

    Raises:
        DrivetrainError: there is no such model, it does not fit the contract, no score can lie above the threshold, or
            silver has no rows of the reference.
    """
    if not 0 < value < 1:
        what, fix = f"no threshold is {value:g}: scores lie between 0 and 1", "anomalies review shows some"
        raise DrivetrainError(Problem("anomaly-threshold", dataset.name, what, fix))
    model = pipeline.judges.fitted(dataset, version).model
    with pipeline.step("fit", dataset.name) as step:
        _, sample = _reference_now(pipeline, dataset)
        step.rows = sample.num_rows
    before = model.thresholds[ALL]
    card = {
        **model.card, "run": pipeline.outcome.run, "at": ops.now().isoformat(), "threshold": value,
        "interval": [value, value], "flagged": int((scores(model, sample) > value).sum()),
        "recut": {"of": version, "threshold": before.value},
    }  # fmt: skip
    cut = replace(before, value=value, low=value, high=value)
    return _kept(pipeline, dataset, replace(model, thresholds={ALL: cut}, card=card), sample, why)


def _reference_now(pipeline: Pipeline, dataset: Dataset) -> tuple[int, pa.Table]:
    """Silver's version, and the sample of its reference window.

    Raises:
        DrivetrainError: silver has no rows of it.
    """
    silver = pipeline.table("silver", dataset.name)
    version = silver.version() if silver.exists() else -1
    if version < 0:
        raise _no_rows(dataset, "silver has no rows yet")
    return version, sampled(silver.read(version), dataset)


def _kept(pipeline: Pipeline, dataset: Dataset, model: Model, sample: pa.Table, why: str) -> Result:
    card = json.dumps(model.card, sort_keys=True)
    number = pipeline.judges.registry.add(dataset.name, dump(model, key(pipeline)), card, pipeline.outcome.run, why)
    return Result(number, model.card, compared(pipeline, dataset, model, sample))


def key(pipeline: Pipeline) -> bytes | None:
    """With which models are signed; None where conf names none.

    Raises:
        DrivetrainError: conf names one that is not there.
    """
    named = pipeline.conf.settings.model_key
    return resolve_secret(named).encode() if named else None


def sampled(rows: DataFrame, dataset: Dataset) -> pa.Table:
    """Raises:
    DrivetrainError: the reference window is empty.
    """
    sample = reference.sample(rows, dataset)
    if not sample.num_rows:
        raise _no_rows(dataset, "no row of silver lies in the reference window and fulfils where")
    return sample


def fitted(sample: pa.Table, anomaly: Anomaly, version: int, card: Mapping[str, Any]) -> Model:
    """A model of the rows of ``sample``, which is of silver's ``version``."""
    encoded = encoder(sample, anomaly)
    columns = encoded.columns(sample)
    grown = grow.extended if anomaly.kind == "extended" else grow.isolation
    forest = grown(np.column_stack(columns), trees=anomaly.trees, rows=anomaly.sample, seed=anomaly.seed)
    scores = Scorer(forest, kernel()).score(columns)
    cut = cut_at(scores, anomaly)
    said = {
        **card, "features": [asdict(one) for one in anomaly.features], "at": ops.now().isoformat(),
        "silver_version": version, "rows": sample.num_rows, "trees": forest.trees, "sample": forest.sample,
        "seed": anomaly.seed, "kind": anomaly.kind, "share": anomaly.share, "clean": anomaly.clean,
        "threshold": cut.value, "interval": [_plain(cut.low), _plain(cut.high)],
        "flagged": int((scores > cut.value).sum()),
    }  # fmt: skip
    bins = intervals(scores)
    references = tuple(_reference(encoder, sample[encoder.feature.name]) for encoder in encoded.encoders)
    return Model(
        forest, encoded, str(version), {ALL: cut}, ranges_of(encoded, columns), references,
        Reference(bins, tuple(bins.count(scores).tolist())), said,
    )  # fmt: skip


def encoder(sample: pa.Table, anomaly: Anomaly) -> Encoding:
    wanted = [Feature(one.name, one.kind, one.part, personal=not one.is_open) for one in anomaly.features]
    return encoding.fit(wanted, sample)


def cut_at(scores: Floats, anomaly: Anomaly) -> Threshold:
    """Of a clean reference the end of the interval that keeps the rate in 39 of 40 cases; where there are too few rows
    to tell, the highest score."""
    found = threshold(scores, anomaly.share)
    if not anomaly.clean:
        return found
    value = found.high if math.isfinite(found.high) else float(scores.max())
    return replace(found, value=max(found.value, value))


def _reference(encoder: Encoder, column: pa.ChunkedArray) -> Reference:
    bins = of_feature(encoder, column)
    return Reference(bins, tuple(count_feature(bins, encoder, column).tolist()))


def check_features(model: Model, dataset: Dataset) -> None:
    """Raises:
    DrivetrainError: for each feature that the model needs and the contract of now lacks, or has otherwise; and for
        each that the model does not know.
    """
    assert dataset.anomaly
    now = {one.name: asdict(one) for one in dataset.anomaly.features}
    then = {str(one["name"]): one for one in model.card["features"]}
    where, fix = f"{dataset.where} ({dataset.name})", "fit another model, or have the feature back as it was"
    problems = [
        Problem("model-features", where, f"the model's feature {name} {_change(one, now.get(name))}", fix)
        for name, one in then.items()
        if one != now.get(name)
    ]
    for name in [name for name in now if name not in then]:
        problems.append(Problem("model-features", where, f"the model does not know the feature {name}", fix))
    if problems:
        raise DrivetrainError(*problems)


def check_stage(model: Model, dataset: Dataset, stage: Stage) -> None:
    """Raises:
    DrivetrainError: it is to remove rows, and its reference is too small to tell where to cut: that few of its rows
        are expected above the threshold.
    """
    rows, needed = int(model.card["rows"]), math.ceil(ENOUGH / float(model.card["share"]))
    if stage == "enforce" and rows < needed:
        what = f"its reference of {rows} rows is too small for a share of {model.card['share']:g}: {needed} are needed"
        fix = "widen the reference or raise the share, and fit another; or leave this one at advisory"
        raise DrivetrainError(Problem("reference-small", f"{dataset.where} ({dataset.name})", what, fix))


def _change(then: Mapping[str, Any], now: Mapping[str, Any] | None) -> str:
    if now is None:
        return "is not in the contract any more"
    changed = [key for key in then if now.get(key) != then[key]]
    return ", ".join(f"has {key} {now.get(key)!r} where it had {then[key]!r}" for key in changed)


def compared(pipeline: Pipeline, dataset: Dataset, new: Model, sample: pa.Table) -> Comparison | None:
    """The new model beside the one that acts; None where none acts, or where its features are not the contract's."""
    acting = pipeline.judges.registry.history(dataset.name).acting
    if acting is None:
        return None
    try:
        old = pipeline.judges.fitted(dataset, acting.version).model
    except DrivetrainError:
        return None
    return comparison(acting.version, flagged(old, sample), flagged(new, sample))


def comparison(version: int, old: Flags, new: Flags) -> Comparison:
    """Of what that version and another one flag of the same rows, (rows,) each."""
    counts = [int(found.sum()) for found in (old & new, old & ~new, new & ~old)]
    return Comparison(version, len(old), *counts)


def flagged(model: Model, sample: pa.Table) -> Flags:
    found: Flags = scores(model, sample) > model.thresholds[ALL].value
    return found


def scores(model: Model, sample: pa.Table) -> Floats:
    return Scorer(model.forest, kernel()).score(model.encoding.columns(sample))


def _wanted(dataset: Dataset) -> Anomaly:
    if dataset.anomaly is None:
        what, fix = "its contract says nothing of anomalies", "give it the customProperty anomaly with its features"
        raise DrivetrainError(Problem("no-anomaly", f"{dataset.where} ({dataset.name})", what, fix))
    return dataset.anomaly


def _no_rows(dataset: Dataset, what: str) -> DrivetrainError:
    return DrivetrainError(Problem("no-reference", dataset.name, what, "load some first, or widen the reference"))


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
