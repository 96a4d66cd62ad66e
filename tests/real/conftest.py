"""Real and published data from ../shared/data, laid out as feeds: linked in place, or unpacked for the tests."""

from __future__ import annotations

import csv
import re
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not DATA.is_dir():
        skip = pytest.mark.skip(reason=f"the real data is not here: no folder {DATA}")
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def landing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A landing folder with every feed but the retail orders, of which the tests add days."""
    root = tmp_path_factory.mktemp("landing")
    link(root / "adventure_works", "stock_procurement/*.csv")
    link(root / "crm", "crm/ProspectiveBuyer.csv", "crm/Customer.csv", "crm/Store.csv")
    link(root / "bank_leads", "crm/bank-additional-full.csv.gz")
    link(root / "complaints", "text/nhtsa_complaints_sample.tsv")
    link(root / "sgo", "events/nhtsa_sgo/*_ADAS.csv.gz", "events/nhtsa_sgo/*_ADS*.csv.gz")
    link(root / "sgo_adas_archive", "events/nhtsa_sgo/*_ADAS_archive.csv.gz")
    link(root / "incidents", "events/incident_event_log.csv.gz")
    with zipfile.ZipFile(DATA / "text/RCL_FROM_2020_2024.zip") as recalls:
        recalls.extractall(root / "recalls")
    (root / "online_retail").mkdir()
    for table, rows in mysql_tables((DATA / "orders/classicmodels.sql").read_text("utf-8")):
        folder = root / "classicmodels" / table
        folder.mkdir(parents=True)
        with (folder / f"{table}.csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(rows)
    return root


@pytest.fixture(scope="session")
def retail_days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The daily files of the retail orders, by day, outside of the landing folder."""
    folder = tmp_path_factory.mktemp("retail")
    with tarfile.open(DATA / "orders/online_retail_by_day.tar.gz") as days:
        days.extractall(folder, filter="data")
    return sorted(folder.rglob("*.csv"))


@pytest.fixture(scope="session")
def run_real(spark: object, landing: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """run_real(*datasets) -> Outcome of one batch run over conf/ and the landing folder; one warehouse for all."""
    from drivetrain import conf as reader
    from drivetrain import job
    from drivetrain.pipeline import Pipeline
    from drivetrain.progress import Progress

    warehouse = tmp_path_factory.mktemp("warehouse")
    sets = [f"landing={landing}", f"warehouse={warehouse}"]
    conf = reader.load(HERE / "conf", "local", environ={}, sets=sets)

    def run(*datasets: str) -> object:
        run_id, began = job.run_id(), time.perf_counter()
        pipeline = Pipeline(spark, conf, run_id, "batch", Progress(run_id))  # type: ignore[arg-type]
        outcome = pipeline.transform(datasets)
        for step in pipeline.steps.done:
            print(f"{step.step:8}{step.dataset:24}{step.seconds:8.1f} s {step.rows:9,} rows {step.tasks:5} tasks")
        print(f"{time.perf_counter() - began:.1f} s")
        return outcome

    run.warehouse = warehouse  # type: ignore[attr-defined]
    return run


def link(folder: Path, *patterns: str) -> None:
    """Make the folder, with links to files of the shared data."""
    folder.mkdir(parents=True)
    for pattern in patterns:
        found = sorted(DATA.glob(pattern))
        assert found, f"no {pattern} in {DATA}"
        for path in found:
            (folder / path.name).symlink_to(path)


VALUE = re.compile(r"NULL|'((?:[^'\\]|\\.)*)'|(-?[0-9.]+)", re.DOTALL)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "Z": "\x1a"}


def mysql_tables(dump: str) -> Iterator[tuple[str, list[Sequence[str]]]]:
    """Each table that a MySQL dump fills: its name, then its header and rows as text; NULL is empty."""
    for start in re.finditer(r"insert\s+into `(\w+)`\(([^)]*)\) values", dump):
        rows: list[Sequence[str]] = [start[2].replace("`", "").split(",")]
        at = start.end()
        while (opened := re.compile(r"[\s,]*\(").match(dump, at)) is not None:
            at, row = opened.end(), []
            while (value := VALUE.match(dump, at)) is not None:
                quoted = re.sub(r"\\(.)", lambda m: ESCAPES.get(m[1], m[1]), value[1] or "", flags=re.DOTALL)
                row.append(value[2] or quoted)
                at = value.end() + 1
                if dump[value.end()] == ")":
                    break
            rows.append(row)
        yield start[1], rows
