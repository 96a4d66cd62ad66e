"""What every job shares: arguments, the lock, problems, tables for people."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_plan import conf_of

from drivetrain import job, ops
from drivetrain.contracts import Conf
from drivetrain.errors import DrivetrainError, Problem
from drivetrain.files import LOCAL
from drivetrain.pipeline import Outcome

ROOT = Path(__file__).resolve().parents[1]


def conf_at(folder: Path) -> Conf:
    plain = conf_of([])
    return replace(plain, settings=replace(plain.settings, warehouse=str(folder)))


def test_run_ids_sort_by_time() -> None:
    first = job.run_id()
    time.sleep(0.002)
    assert first < job.run_id() and len(first) == 18


def test_only_one_job_writes(tmp_path: Path) -> None:
    conf = conf_at(tmp_path / "made" / "here")
    with job.lock(conf, LOCAL, "test"):
        with pytest.raises(DrivetrainError) as error, job.lock(conf, LOCAL, "test"):
            pytest.fail("two have the lock")
        assert error.value.problems[0].code == "locked"
    with job.lock(conf, LOCAL, "test"):
        pass


def test_the_lock_goes_with_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), job.lock(conf_at(tmp_path), LOCAL, "test"):
        raise RuntimeError
    with job.lock(conf_at(tmp_path), LOCAL, "test"):
        pass


def test_a_warehouse_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DrivetrainError) as error, job.lock(conf_at(tmp_path / "file" / "warehouse"), LOCAL, "test"):
        pytest.fail("there is no such folder")
    assert error.value.problems[0].code == "warehouse"


def test_names_that_are_no_datasets() -> None:
    from test_contracts import make_dataset

    conf = conf_of([make_dataset(name="orders")])
    job.check_names(["orders"], conf)
    with pytest.raises(DrivetrainError) as error:
        job.check_names(["order", "orders", "zzz"], conf)
    assert [(p.what, p.fix) for p in error.value.problems] == [
        ("no dataset is named 'order'", "did you mean 'orders'?"),
        ("no dataset is named 'zzz'", "known here: orders"),
    ]


def run_main(monkeypatch: pytest.MonkeyPatch, words: list[str], run: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["job", *words])
    with pytest.raises(SystemExit) as end:
        job.main(run, job.parser("A job."))
    return int(end.value.code or 0)


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    seen: list[Any] = []

    def fine(given: argparse.Namespace, conf: Conf) -> int:
        seen.append((given.env, conf.settings.sample_rows))
        return 0

    def fails(given: argparse.Namespace, conf: Conf) -> int:
        raise DrivetrainError(
            Problem("a", "here", "this is wrong", "do that"), Problem("b", "there", "so is this", "do this")
        )

    for name in [name for name in __import__("os").environ if name.startswith("DRIVETRAIN_")]:
        monkeypatch.delenv(name)
    assert run_main(monkeypatch, ["--set", "sample_rows=5"], fine) == 0 and seen == [("local", 5)]
    assert run_main(monkeypatch, [], fails) == job.FAILED
    assert (
        capsys.readouterr().err
        == "✗ here: this is wrong [a]\n    → do that\n✗ there: so is this [b]\n    → do this\n2 problems\n"
    )
    assert run_main(monkeypatch, ["--conf-dir", str(tmp_path / "gone")], fine) == job.USAGE
    assert "1 problem\n" in capsys.readouterr().err
    assert run_main(monkeypatch, ["--wrong"], fine) == job.USAGE


def test_the_end_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert job.end(Outcome("r")) == 0
    assert job.end(Outcome("r", problems=[Problem("x", "y", "z", "w")])) == job.FAILED
    assert "y: z [x]" in capsys.readouterr().err


def test_hints_are_for_the_same_conf(tmp_path: Path) -> None:
    conf = Conf(None, {}, {}, "yarn", tmp_path / "my conf", ("warehouse=/w x",))  # type: ignore[arg-type]
    words = shlex.split(conf.command("sql"))
    assert words == ["./spark-submit.sh", "sql", "--env", "yarn", "--conf-dir", f"{tmp_path}/my conf", "--set",
                     "warehouse=/w x"]  # fmt: skip
    shipped = Conf(None, {}, {}, "local", ROOT / "conf")  # type: ignore[arg-type]
    assert shipped.command("sql") == "./spark-submit.sh sql"


def test_a_table_shows_what_is_in_it() -> None:
    stream = io.StringIO()
    job.table(("name", "[b]n[/b]"), [("[red]x[/red]", None), ("y", 3)], stream)
    text = stream.getvalue()
    assert "[b]n[/b]" in text and "[red]x[/red]" in text and "NULL" in text and text.count("\n") >= 4


def test_a_run_with_nothing_to_do_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    job.summary(Outcome("r"), conf_of([]), Path("/w/report.html"))
    text = capsys.readouterr().out
    assert text.startswith("Nothing new") and "/w/report.html" in text and "Published" not in text


def test_what_models_did_is_told_with_the_way_to_review_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Not of models in the shadow, nor where nothing was flagged."""
    loads = (("orders", "enforce", 11), ("stock", "shadow", 5), ("leads", "advisory", 0))
    given = [
        ops.VerdictRow("r", name, 1, 1, 2, stage, 900, flagged, flagged, None, "{}", "[]", ops.now())
        for name, stage, flagged in loads
    ]
    job.summary(Outcome("r", verdicts=given), conf_of([]), None)
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Anomalies:")]
    assert [line.split(": ./")[0] for line in told] == [
        "Anomalies: orders: model 2 (enforce) flagged 11 of 900, removed 11"
    ] and told[0].endswith(" review orders")


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    """`… | head -1` ends the job without a trace."""
    program = (
        "import sys\nfrom drivetrain import job\n"
        "def run(given, conf):\n    [print('x' * 1000) for _ in range(1000)]\n    return 0\n"
        "job.main(run, job.parser('Prints.'))\n"
    )
    words = f'{sys.executable} -c "$PROGRAM" | head -1 >{tmp_path}/out; exit ${{PIPESTATUS[0]}}'
    environ = {**os.environ, "PROGRAM": program, "PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run(["bash", "-c", words], env=environ, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (job.NOBODY_READS, "")
