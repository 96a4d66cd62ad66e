"""Settings: what wins, where it came from, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from drivetrain.errors import ConfError, DrivetrainError
from drivetrain.settings import layer, load_yaml, resolve_secret


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "base.yaml").write_text(
        "company: ACME\n"
        "landing: landing\n"
        "make_feeds: {days: 14,\n  seed: 7}\n"
        "spark:\n"
        "  spark.ui.enabled: false\n"
        "  spark.executor.memory: 1g\n"
    )
    (folder / "local.yaml").write_text("# local\nspark:\n  spark.executor.memory: 2g\n")
    return folder


def problems(call: object) -> dict[str, str]:
    """Code to where, of the error which the call must raise."""
    with pytest.raises(DrivetrainError) as caught:
        call()  # type: ignore[operator]
    assert all(problem.what and problem.fix for problem in caught.value.problems)
    return {problem.code: problem.where for problem in caught.value.problems}


def yaml_problems(tmp_path: Path, text: str | bytes) -> dict[str, str]:
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {code: where.removeprefix(str(path)) for code, where in problems(lambda: load_yaml(path)).items()}


# --- Layers


def test_each_layer_wins_over_the_one_before(conf: Path) -> None:
    environ = {"DRIVETRAIN_LANDING": "/in", "DRIVETRAIN_MAKE_FEEDS__DAYS": "3", "DRIVETRAIN_COMPANY": "Variable"}
    layered = layer(conf, "local", environ, ["company=Set", "spark.spark.sql.shuffle.partitions=8"])
    assert layered.values == {
        "company": "Set",
        "landing": "/in",
        "make_feeds": {"days": 3, "seed": 7},
        "spark": {"spark.ui.enabled": False, "spark.executor.memory": "2g", "spark.sql.shuffle.partitions": 8},
    }
    assert layered.root == conf.parent


def test_origins_name_file_and_line_variable_or_option(conf: Path) -> None:
    layered = layer(conf, "local", {"DRIVETRAIN_LANDING": "/in"}, ["company=Set"])
    assert layered.origin == {
        ("company",): "--set company",
        ("landing",): "DRIVETRAIN_LANDING",
        ("make_feeds", "days"): "conf/base.yaml:3",
        ("make_feeds", "seed"): "conf/base.yaml:4",
        ("spark", "spark.ui.enabled"): "conf/base.yaml:6",
        ("spark", "spark.executor.memory"): "conf/local.yaml:3",
    }


def test_the_doors_own_variables_are_no_settings(conf: Path) -> None:
    own = dict.fromkeys(("DRIVETRAIN_HOME", "DRIVETRAIN_PYTHON", "DRIVETRAIN_IVY_SETTINGS"), "x")
    assert layer(conf, "local", {**own, "HOME": "/root"}, []) == layer(conf, "local", {}, [])


def test_a_mapping_and_a_single_value_replace_each_other(conf: Path) -> None:
    layered = layer(conf, "local", {"DRIVETRAIN_MAKE_FEEDS": "null"}, ["landing.inner=1"])
    assert layered.values["make_feeds"] is None
    assert layered.values["landing"] == {"inner": 1}
    assert ("landing",) not in layered.origin and ("make_feeds", "days") not in layered.origin


def test_an_empty_mapping_changes_nothing(conf: Path) -> None:
    layered = layer(conf, "local", {}, ["spark={}"])
    assert layered.values["spark"]["spark.executor.memory"] == "2g"


def test_spark_as_a_mapping_in_a_variable(conf: Path) -> None:
    layered = layer(conf, "local", {"DRIVETRAIN_SPARK": "{spark.executor.cores: 2}"}, [])
    assert layered.values["spark"]["spark.executor.cores"] == 2
    assert layered.origin[("spark", "spark.executor.cores")] == "DRIVETRAIN_SPARK"


def test_a_conf_folder_outside_is_shown_in_full(conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    layered = layer(Path("../conf"), "local", {}, [])
    assert layered.origin[("company",)] == f"{conf}/base.yaml:1"
    assert layered.root == tmp_path


def test_everything_that_is_wrong_is_said_at_once(conf: Path) -> None:
    (conf / "base.yaml").write_text("a: 1\na: 2\n")
    (conf / "local.yaml").write_text("spark:\n  executor.memory: 1g\n  spark.x: [1]\n")
    environ = {"DRIVETRAIN_A____B": "1", "DRIVETRAIN_SPARK__UI": "1", "DRIVETRAIN_X": "{"}
    with pytest.raises(ConfError) as caught:
        layer(conf, "local", environ, ["novalue", "spark.sql.x=1", "b=!!python/name:os.system"])
    assert [(problem.code, problem.where) for problem in caught.value.problems] == [
        ("yaml-duplicate-key", "conf/base.yaml:2"),
        ("spark-key", "conf/local.yaml:2"),
        ("spark-value", "conf/local.yaml:3"),
        ("settings-key", "DRIVETRAIN_A____B"),
        ("settings-key", "DRIVETRAIN_SPARK__UI"),
        ("yaml-syntax", "DRIVETRAIN_X"),
        ("settings-set", "--set novalue"),
        ("spark-key", "--set spark.sql.x"),
        ("yaml-tag", "--set b"),
    ]
    assert "--set spark.spark.sql.x=" in str(caught.value)


@pytest.mark.parametrize("env", ["yarn", "base", "../conf/local", ""])
def test_an_unknown_environment(conf: Path, env: str) -> None:
    with pytest.raises(ConfError, match="there: local") as caught:
        layer(conf, env, {}, [])
    assert [problem.code for problem in caught.value.problems] == ["env-unknown"]


def test_a_missing_folder_or_base_file(conf: Path) -> None:
    assert problems(lambda: layer(conf / "none", "local", {}, [])) == {"conf-missing": "conf/none"}
    (conf / "base.yaml").unlink()
    assert problems(lambda: layer(conf, "local", {}, [])) == {"file-unreadable": "conf/base.yaml"}


def test_a_file_that_holds_a_list_or_a_spark_block_that_does(conf: Path) -> None:
    (conf / "base.yaml").write_text("- a\n")
    (conf / "local.yaml").write_text("spark: [a]\n")
    found = problems(lambda: layer(conf, "local", {}, []))
    assert found == {"settings-shape": "conf/base.yaml:1", "spark-block": "conf/local.yaml:1"}


def test_an_empty_file_is_no_error(conf: Path) -> None:
    (conf / "local.yaml").write_text("# nothing yet\n")
    assert layer(conf, "local", {}, []).values["company"] == "ACME"


# --- YAML


def test_lines_of_every_node(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: 1\nb:\n  - x\n  - c: {d: 2026-01-02,\n        e: ~}\n")
    value, lines = load_yaml(path)
    assert str(value["b"][1]["c"]["d"]) == "2026-01-02"
    assert lines == {
        (): 1,
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 1): 4,
        ("b", 1, "c"): 4,
        ("b", 1, "c", "d"): 4,
        ("b", 1, "c", "e"): 5,
    }


def test_aliases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: &x {b: 1}\nc: *x\n")
    assert load_yaml(path)[0] == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("a: 1\nb: [1,\n", "yaml-syntax", ":3"),
        ("a: b: c\n", "yaml-syntax", ":1"),
        ("a: 1\nb: 2\na: 3\n", "yaml-duplicate-key", ":3"),
        ("x:\n  on: 1\n", "yaml-key", ":2"),
        ("1: x\n", "yaml-key", ":1"),
        ("? [a]\n: x\n", "yaml-key", ":1"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "yaml-merge", ":3"),
        ("a: !!python/object/apply:os.system [id]\n", "yaml-tag", ":1"),
        ("a: !secret x\n", "yaml-tag", ":1"),
        ("a: !!set {b, c}\n", "yaml-tag", ":1"),
        ("a: !!binary aGk=\n", "yaml-tag", ":1"),
        ("a: 2026-13-45\n", "yaml-value", ":1"),
        ("a: 1\n--- \nb: 2\n", "yaml-syntax", ":2"),
        ("a: \x07\n", "yaml-syntax", ":1"),
        (b"a: 1\nb: \xff\n", "yaml-syntax", ":2"),
        ("[" * 400_000, "yaml-too-deep", ":1"),
        ("- " * 400_000 + "x", "yaml-too-deep", ":1"),
        ("a: &x [*x]\n", "yaml-too-large", ":1"),
        ("a: '" + "x" * (1 << 20) + "'", "yaml-too-large", ""),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str | bytes, code: str, line: str) -> None:
    assert yaml_problems(tmp_path, text) == {code: line}


def test_a_billion_laughs_are_not_unfolded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    assert set(yaml_problems(tmp_path, "\n".join(lines))) == {"yaml-too-large"}


def test_all_problems_of_one_file(tmp_path: Path) -> None:
    found = yaml_problems(tmp_path, "a: 1\na: 2\nyes: 1\nc: !x y\n")
    assert found == {"yaml-duplicate-key": ":2", "yaml-key": ":3", "yaml-tag": ":4"}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert load_yaml(path)[0] == {"a": 1}


# --- Secrets


def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD_OF_TEST", "s3cret ")
    (tmp_path / "token").write_text("t0ken\n")
    assert resolve_secret("env:PASSWORD_OF_TEST") == "s3cret "
    assert resolve_secret(f"file:{tmp_path}/token") == "t0ken"
    assert resolve_secret("s3://bucket:80") == "s3://bucket:80"
    assert resolve_secret("plain") == "plain"


@pytest.mark.parametrize("reference", ["env:NOT_SET_ANYWHERE", "file:/nonexistent/token"])
def test_a_secret_that_is_not_there(reference: str) -> None:
    assert problems(lambda: resolve_secret(reference)) == {"secret-missing": reference}
