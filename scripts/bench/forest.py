"""The isolation forest beside scikit-learn's, in CPU time: the kernel alone on one thread, and as a job of Spark's.

Both score the same rows; each round runs every side in turn, and the medians of the rounds' ratios are compared.
Casting and transposing to the kernel's blocks are within its time; of the job all that the JVM and its Python workers
take from Parquet to the count of flagged rows, on two threads.
  sklearn_over_kernel   scikit-learn's rate / ours, at 10 features, float64 in rows (C order)
  job_vs_floor, job_vs_pandas_floor
                        the public scorer / the same job with an Arrow, and a pandas, UDF that does nothing
  job_vs_sklearn_udf    the public scorer / the same job with a pandas UDF that loads scikit-learn's model once
  reasons_vs_floor, reasons_vs_sklearn_udf
                        the pipeline's UDF, which tells reasons of what it flags too / an Arrow UDF that does nothing,
                        and scikit-learn's
Also printed: 50 features, other layouts and levels of vector instructions, numpy without the kernel, agreement, other
UDFs, what fitting costs, the model's size, and what a cold worker pays.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import _forest_job
import numpy as np
from _shared import ROOT, say
from sklearn.ensemble import IsolationForest

from drivetrain import job
from drivetrain.anomaly import grow
from drivetrain.anomaly.native import LEVELS, Code, code
from drivetrain.anomaly.scoring import Scorer

FEATURES: Final = (10, 50)
TREES: Final = 100
SAMPLE: Final = 256
OF_THEIRS: Final = 8  # scikit-learn scores one row of so many, its rate being the same for any number
LAYOUTS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "rows, float64": np.ascontiguousarray,
    "columns, float64": lambda rows: list(np.ascontiguousarray(rows.T)),
    "rows, float32": lambda rows: rows.astype(np.float32),
    "columns, float32": lambda rows: list(np.ascontiguousarray(rows.T, np.float32)),
}
COLD: Final = """
import pickle, sys, time
began = time.process_time()
from drivetrain.anomaly.worker import Scorer  # all that a worker imports
import numpy
with open(sys.argv[1], "rb") as broadcast:
    scorer = Scorer(*pickle.load(broadcast))
scorer.score(numpy.zeros((1, scorer.forest.features)))
print(time.process_time() - began)
"""


def made_rows(count: int, features: int, seed: int = 0) -> Any:
    """Like measures of a business: skewed, correlated, some of few values, one in a hundred missing."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(count, features)) + random.normal(size=(count, 1))
    rows[:, ::3] = np.exp(rows[:, ::3])
    rows[:, 1::5] = np.round(rows[:, 1::5] * 3)
    rows[random.random(rows.shape) < 0.01] = np.nan
    return rows


def seconds_a_row(action: Callable[[], Any], rows: int) -> float:
    began = time.process_time()
    action()
    return (time.process_time() - began) / rows


def measure(features: int, count: int, rounds: int, given: Code) -> dict[str, list[float]]:
    """Side -> CPU seconds a row, by round; prints how well the sides agree."""
    rows = made_rows(count, features)
    few = rows[: count // OF_THEIRS]
    forest = grow.isolation(rows[:20_000], trees=TREES, rows=SAMPLE)
    state = np.random.RandomState(np.random.SeedSequence(0).generate_state(624))
    theirs = IsolationForest(n_estimators=TREES, max_samples=SAMPLE, random_state=state).fit(
        rows[:20_000].astype(np.float32)
    )
    best, plain = Scorer(forest, given), Scorer(forest)
    sides: dict[str, Callable[[], Any]] = {"scikit-learn": partial(theirs.score_samples, few)}
    for name, layout in LAYOUTS.items():
        sides[f"{best.kernel.level}, {name}"] = partial(best.score, layout(rows))
    for level in LEVELS:
        scorer = Scorer(forest, Code({level: given.objects[level]})) if level in given.objects else plain
        if scorer.kernel.level == level != best.kernel.level:
            sides[f"{level}, {next(iter(LAYOUTS))}"] = partial(scorer.score, rows)
    sides["numpy"] = partial(plain.score, few)
    apart = np.abs(best.score(few) + theirs.score_samples(few)).max()
    say(f"{features} features: scores differ from scikit-learn's by {apart:.1e} at most")
    assert apart < 1e-6, apart
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, action in list(sides.items())[:: 1 if number % 2 else -1]:
            whole = len(few) if name in ("scikit-learn", "numpy") else count
            taken[name].append(seconds_a_row(action, whole))
        say(f"{features} features: round {number + 1} of {rounds}")
    return taken


def cold(features: int, given: Code) -> float:
    """CPU seconds from an empty Python process to the first score."""
    forest = grow.isolation(made_rows(2000, features), trees=TREES, rows=SAMPLE)
    with tempfile.NamedTemporaryFile() as broadcast:
        broadcast.write(pickle.dumps((forest, given)))
        broadcast.flush()
        program = [sys.executable, "-c", COLD, broadcast.name]
        environ = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
        said = subprocess.run(program, env=environ, check=True, capture_output=True, text=True).stdout
    return float(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 rows and 3 rounds; of the job 500,000 and one")
    parser.add_argument("--rows", type=int, help="rows (default 1 million; of the job 10 times as many)")
    parser.add_argument("--rounds", type=int, help="rounds (default 7; of the job 3)")
    parser.add_argument("--only", choices=("kernel", "job"), help="one of the two")
    options = parser.parse_args()
    count, rounds = (100_000, 3) if options.quick else (1_000_000, 7)
    keys = {} if options.only == "job" else kernel(options.rows or count, options.rounds or rounds)
    if options.only != "kernel":
        count, rounds = (500_000, 1) if options.quick else (10_000_000, 3)
        count = options.rows * 10 if options.rows else count
        data = ROOT / ".drivetrain" / "bench" / "forest"
        keys |= _forest_job.measure(count, options.rounds or rounds, made_rows, data)
    print(json.dumps(keys))


def kernel(count: int, rounds: int) -> dict[str, float]:
    given = code(Path(os.environ.get("DRIVETRAIN_HOME", ROOT / ".drivetrain"), "kernels"))
    if given.why:
        say(given.why)
    keys = {}
    for features in FEATURES:
        taken = measure(features, count, rounds, given)
        peer = taken["scikit-learn"]
        lines = []
        for name, each in taken.items():
            ratio = statistics.median(theirs / ours for ours, theirs in zip(each, peer, strict=True))
            lines.append((name, f"{1 / statistics.median(each):,.0f}", f"{ratio:.1f}"))
        job.table((f"{features} features, {count:,} rows", "rows / CPU s", "of scikit-learn's"), lines)
        first = next(name for name in taken if name.endswith(next(iter(LAYOUTS))))
        over = statistics.median(ours / theirs for ours, theirs in zip(taken[first], peer, strict=True))
        keys["sklearn_over_kernel" if features == FEATURES[0] else f"sklearn_over_kernel_{features}"] = round(over, 4)
    waits = statistics.median(cold(FEATURES[0], given) for _ in range(3))
    say(f"a cold worker: {waits:.2f} s of CPU to the first score")
    return keys


if __name__ == "__main__":
    main()
