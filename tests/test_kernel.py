"""The kernel's source: as plain Python, without numba's compiler, it does what numpy does."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from forests import ROOT, forest, random_rows

from drivetrain.anomaly.forest import BLOCK

RUN = """
import sys
import numpy as np
from drivetrain.anomaly import kernel
kernel.cfunc = lambda signature: lambda function: function
score, given = kernel.entry(), np.load(sys.argv[1])
names = "data op feature threshold left right start at weight centre stack plane total".split()
arrays = [given[name].reshape(-1) for name in names]
score(len(given["data"]), given["data"].shape[1], len(given["op"]), *arrays)
np.save(sys.argv[2], arrays[-1])
"""


@pytest.mark.parametrize("extended", [False, True])
def test_uncompiled_it_agrees_with_numpy(extended: bool, tmp_path: object) -> None:
    made = forest(extended=extended, trees=2)
    rows = random_rows(BLOCK, 4, seed=5, missing=0.1)
    data = np.ascontiguousarray(rows.T, np.float32)[None]
    names = ("op", "feature", "threshold", "left", "right", "start", "at", "weight", "centre")
    given = {name: getattr(made, name) for name in names}
    scratch = {"stack": np.zeros((made.depth + 1, BLOCK), np.float32), "plane": np.zeros(BLOCK, np.float32)}
    np.savez(f"{tmp_path}/given.npz", data=data, total=np.zeros(BLOCK), **given, **scratch)
    environ = {**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(ROOT / "lib")}
    program = [sys.executable, "-c", RUN, f"{tmp_path}/given.npz", f"{tmp_path}/found.npy"]
    subprocess.run(program, env=environ, check=True, timeout=300)
    expected = np.zeros(BLOCK)
    made.run(data[0], expected)
    assert np.array_equal(np.load(f"{tmp_path}/found.npy"), expected)
