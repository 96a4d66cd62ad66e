"""What a Python worker does with a model: it loads it once, and pays for nothing that it does not need."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_fit import dataset, sample

from drivetrain.anomaly import drift, udf, worker
from drivetrain.anomaly.fit import fitted
from drivetrain.anomaly.modelfile import dump
from drivetrain.anomaly.udf import kernel
from drivetrain.contracts import ROOT
from drivetrain.errors import DrivetrainError


def test_a_cold_worker_imports_little() -> None:
    program = (
        "import sys, drivetrain.anomaly.worker;"
        "print(*{'sklearn', 'numba', 'pandas', 'pyspark', 'scipy', 'llvmlite'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": str(ROOT / "lib")}, capture_output=True)
    assert done.stdout.split() == [] and done.returncode == 0


def test_a_model_is_loaded_once_and_scores_the_reference_as_it_is(tmp_path: Path) -> None:
    wanted = dataset(tmp_path, "x", "kind").anomaly
    assert wanted
    rows = sample().select(["x", "kind"])
    data = dump(fitted(rows, wanted, 1, {}))
    one = worker.loaded(data, kernel())
    assert worker.loaded(bytes(data), kernel()) is one
    columns = {name: rows[name].combine_chunks() for name in rows.column_names}
    scores = one.score(columns)
    parts = [{name: column[part] for name, column in columns.items()} for part in (slice(0, 300), slice(300, 1000))]
    assert np.array_equal(scores, np.concatenate([one.score(part) for part in parts]))
    same = drift.measured(rows.append_column(worker.SCORE, [scores]), one.model)
    assert all(found.psi == 0 for found in (*same.report.features, same.report.scores)), "of the reference itself"
    assert sum(same.scores["rows"]) == 1000 and same.stale is None
    with pytest.raises(DrivetrainError, match="altered"):
        worker.Loaded(data[:500] + b"\0" + data[501:], kernel())
    assert one.tell({name: pa.array([], column.type) for name, column in columns.items()}).to_pylist() == []


def test_a_worker_keeps_the_models_that_it_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = dataset(tmp_path, "x").anomaly
    assert wanted
    monkeypatch.setattr(worker, "MOST", 2)
    monkeypatch.setattr(worker, "_LOADED", {})
    first, second, third = (dump(fitted(sample().select(["x"]), wanted, version, {})) for version in range(3))
    one = worker.loaded(first, kernel())
    for data in (second, first, third):
        worker.loaded(data, kernel())
    assert worker.loaded(first, kernel()) is one and len(worker._LOADED) == 2


def test_rows_without_values_are_told_as_such(tmp_path: Path) -> None:
    wanted = dataset(tmp_path, "x", share=0.01).anomaly
    assert wanted
    model = fitted(sample(300).select(["x"]), wanted, 1, {})
    every = replace(model.thresholds[worker.ALL], value=0.0)
    one = worker.Loaded(dump(replace(model, thresholds={worker.ALL: every})), kernel())
    empty, odd = one.tell({"x": pa.array([None, 99.0])}).to_pylist()
    assert empty["reason"] == "all of its features are missing" and empty["features"] == []
    assert odd["features"] == ["x"] and odd["reason"].startswith("x 99 is above all")


@pytest.mark.parametrize("mode", [0o700, 0o777])
def test_a_kernel_is_kept_where_nobody_else_writes(
    tmp_path: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "cache"
    kept.mkdir()
    kept.chmod(mode)
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    monkeypatch.setattr(udf, "code", lambda folder: folder)
    found: Any = udf.kernel.__wrapped__()
    assert (found == kept) == (mode == 0o700) and kept.exists()
