"""A model from a sample: its threshold, its card, and the contract that it fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny import KEY, Tiny

from drivetrain.anomaly import drift
from drivetrain.anomaly.fit import check_features, fitted, flagged, key
from drivetrain.anomaly.forest import LARGEST
from drivetrain.anomaly.modelfile import ALL, dump, load
from drivetrain.anomaly.udf import Fitted, kernel
from drivetrain.anomaly.worker import SCORE, Loaded
from drivetrain.contracts import Dataset
from drivetrain.errors import DrivetrainError

COLUMNS: dict[str, Any] = {
    "id": KEY, "x": {"logicalType": "number"}, "kind": {}, "name": {"classification": "personal"},
    "salary": {"logicalType": "number", "classification": "personal"},
}  # fmt: skip
FEATURES: tuple[Any, ...] = ("x", "kind", "name", "salary")


def dataset(home: Path, *features: Any, **more: Any) -> Dataset:
    tiny = Tiny(None, home)
    tiny.dataset("staff", COLUMNS, anomaly={"features": list(features), **(more or {"share": 0.01})})
    return tiny.conf("staff")


def sample(rows: int = 1000) -> pa.Table:
    random = np.random.default_rng(1)
    return pa.table({
        "x": random.normal(size=rows), "kind": random.choice(["a", "b"], rows),
        "name": [f"Anna {n}" for n in range(rows)], "salary": random.normal(5000, 100, rows),
    })  # fmt: skip


def test_a_model_and_its_threshold(tmp_path: Path) -> None:
    wanted = dataset(tmp_path, *FEATURES).anomaly
    assert wanted
    rows = sample()
    model = fitted(rows, wanted, 12, {"dataset": "staff"})
    assert int(flagged(model, rows).sum()) == model.card["flagged"] == 10
    assert (model.card["silver_version"], model.card["rows"], model.data_version) == (12, 1000, "12")
    again = fitted(rows, wanted, 12, {"dataset": "staff"})
    assert np.array_equal(again.forest.threshold, model.forest.threshold) and again.thresholds == model.thresholds
    clean = dataset(tmp_path, "x", falseAlarmRate=0.01).anomaly
    assert clean and fitted(rows, clean, 1, {}).card["flagged"] < 10, "the upper end of the interval"
    few = fitted(rows.slice(0, 3), wanted, 1, {})
    assert few.card["flagged"] == 0 and few.card["interval"][1] is None


def test_personal_values_stand_nowhere(tmp_path: Path) -> None:
    wanted = dataset(tmp_path, *FEATURES).anomaly
    assert wanted
    rows = sample()
    data = dump(fitted(rows, wanted, 1, {}))
    assert b"Anna" not in data
    odd = {"x": [77.0], "kind": ["a"], "name": ["Zoë"], "salary": [987654.0]}
    told = Loaded(data, kernel()).tell({name: pa.array(values) for name, values in odd.items()}).to_pylist()[0]
    assert told["score"] > load(data).thresholds[ALL].value and "salary" in told["features"]
    assert not any(hidden in told["reason"] for hidden in ("Zoë", "987654", "5,", "4,"))


def test_nobodys_value_stands_in_the_bytes(tmp_path: Path) -> None:
    """Neither as text nor as a number of any width: the least, the greatest and all between, amounts and birthdays."""
    columns = {"id": KEY, "salary": {"logicalType": "number", "classification": "personal"},
               "born": {"logicalType": "date", "classification": "personal"}}  # fmt: skip
    tiny = Tiny(None, tmp_path)
    for kind in ("standard", "extended"):
        tiny.dataset("staff", columns, anomaly={"features": ["salary", "born"], "share": 0.01, "kind": kind})
        wanted = tiny.conf("staff").anomaly
        assert wanted
        random = np.random.default_rng(3)
        salaries = [*np.round(random.uniform(3000, 9000, 997), 2).tolist(), 12.34, 98765.43, 98765.43]
        born = random.permutation(np.arange(-14_500, -12_000, 2.5).astype(int))
        rows = pa.table({"salary": salaries, "born": pa.array(born, pa.int32()).cast(pa.date32())})
        data = dump(fitted(rows, wanted, 1, {}))
        header = json.loads(data[16 : 16 + int.from_bytes(data[12:16], "little")])
        told = {float(number) for number in numbers([header["encoders"], header["references"][:2], header["ranges"]])}
        assert not told & {*salaries}, "in the header"
        assert not {day for day in told if day < -999} & {*born.tolist()} and header["encoders"][1]["origin"] == 0
        assert not any(np.float64(value).tobytes() in data or str(value).encode() in data for value in salaries)
        extremes = (12.34, 98765.43, born.min(), born.max())
        assert not any(np.float32(value).tobytes() in data for value in extremes), "in the trees"


def test_a_model_is_signed_with_the_key_that_conf_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(None, tmp_path)
    tiny.dataset("staff", COLUMNS, anomaly={"features": ["x"], "share": 0.01})
    pipeline, wanted = tiny.pipeline(), tiny.conf("staff").anomaly
    assert wanted and key(pipeline) is None
    object.__setattr__(pipeline.conf.settings, "model_key", "env:MODEL_KEY")
    with pytest.raises(DrivetrainError, match="MODEL_KEY"):
        key(pipeline)
    monkeypatch.setenv("MODEL_KEY", "secret")
    model = fitted(sample().select(["x"]), wanted, 1, {})
    signed = Fitted(dump(model, key(pipeline)), key(pipeline))
    assert signed.threshold == model.thresholds[ALL].value and "secret" not in repr(signed)
    with pytest.raises(DrivetrainError, match="it is not signed"):
        Fitted(dump(model), key(pipeline)).threshold  # noqa: B018


def numbers(found: Any) -> Iterator[float]:
    if isinstance(found, dict | list):
        for one in found.values() if isinstance(found, dict) else found:
            yield from numbers(one)
    elif isinstance(found, int | float):
        yield found


def test_one_feature_and_rows_without_values(tmp_path: Path) -> None:
    wanted = dataset(tmp_path, "x").anomaly
    assert wanted
    model = Loaded(dump(fitted(sample().select(["x"]), wanted, 1, {})), kernel())
    given = pa.array([0.0, None, float("nan"), float("inf"), -float("inf"), 1e308])
    told = model.tell(model.columns(given)).to_pylist()
    assert all(0 < one["score"] < 1 for one in told) and told[1]["score"] == told[2]["score"]
    assert model.tell(model.columns(pa.array([], pa.float64()))).to_pylist() == []


@pytest.mark.parametrize("kind", ["standard", "extended"])
def test_a_reference_may_hold_infinite_values(tmp_path: Path, kind: str) -> None:
    wanted = dataset(tmp_path, "x", "salary", kind=kind, share=0.01).anomaly
    assert wanted
    odd = [float("inf"), -float("inf"), float("nan"), None, 1e300]
    rows = pa.table({name: [*sample()[name].to_pylist(), *odd] for name in ("x", "salary")})
    one = Loaded(dump(fitted(rows, wanted, 1, {})), kernel())
    assert one.model.ranges[0].quantiles[0] == -one.model.ranges[0].quantiles[-1] == -LARGEST
    columns = {name: rows[name].combine_chunks() for name in rows.column_names}
    told = one.tell(columns).to_pylist()
    assert all(0 < row["score"] < 1 for row in told) and any("3.40282e+38" in (row["reason"] or "") for row in told)
    assert drift.measured(rows.append_column(SCORE, [[row["score"] for row in told]]), one.model).report.rate == 0


def test_a_model_fits_the_contract_that_it_was_made_by(tmp_path: Path) -> None:
    before = dataset(tmp_path, "x", {"name": "double", "sql": "2 * x"})
    assert before.anomaly
    model = fitted(sample().select(["x"]).append_column("double", sample()["x"]), before.anomaly, 1, {})
    check_features(load(dump(model)), before)
    with pytest.raises(DrivetrainError) as raised:
        check_features(model, dataset(tmp_path, "kind", {"name": "double", "sql": "3 * x"}))
    assert [problem.what for problem in raised.value.problems] == [
        "the model's feature x is not in the contract any more",
        "the model's feature double has sql '3 * x' where it had '2 * x'",
        "the model does not know the feature kind",
    ]
