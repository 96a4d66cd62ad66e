"""The compiled kernel: made once, loaded by workers without numba, and distrusted."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from forests import ROOT, compiled, forest, runnable

from drivetrain.anomaly import native
from drivetrain.anomaly.forest import BLOCK
from drivetrain.anomaly.native import LEVELS, Code, aligned, code, load, plain


def test_each_level_that_runs_here_agrees_with_numpy_in_every_bit() -> None:
    assert "baseline" in runnable()
    for level in runnable():
        kernel = load(Code({level: compiled().objects[level]}))
        for made in (forest(), forest(missing=0.0), forest(extended=True)):
            data = aligned((3, 4, BLOCK))
            data[:] = np.random.default_rng(1).normal(size=data.shape) * 3
            data[0, 1, ::5], data[1, 2, ::7], data[2, 3, 0], data[2, 2, 1] = np.nan, 1e38, np.inf, -np.inf
            found, expected = np.ones((2, 3, BLOCK))
            kernel.run(made, data, found)
            plain(made, data, expected)
            assert np.array_equal(found, expected), level


def test_the_best_level_is_taken() -> None:
    kernel = load(compiled())
    assert kernel.level == runnable()[0]
    assert not kernel.why or kernel.level != next(iter(LEVELS))


def test_a_worker_imports_neither_numba_nor_scikit_learn_and_is_ready_in_a_second(tmp_path: Path) -> None:
    broadcast = tmp_path / "broadcast"
    broadcast.write_bytes(pickle.dumps((compiled(), forest())))
    program = (
        "import sys, time, pickle\n"
        f"given = open({str(broadcast)!r}, 'rb').read()\n"
        "from drivetrain.anomaly import features, modelfile, reasons, scoring, thresholds\n"
        "code, forest = pickle.loads(given)\n"
        "import numpy as np\n"
        "scorer = scoring.Scorer(forest, code)\n"
        "scorer.score(np.zeros((10, 4)))\n"
        "print(scorer.kernel.level, time.process_time(), *sys.modules)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    said = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    level, seconds, *modules = said.stdout.split()
    assert level == runnable()[0]
    assert not {"numba", "sklearn", "scipy", "pandas", "pyspark", "drivetrain.anomaly.kernel"} & set(modules)
    assert float(seconds) < 1


def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled()  # skips where nothing compiles
    made = code(tmp_path)
    assert made == compiled()  # the same bytes each time
    (folder,) = tmp_path.iterdir()
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{level}.o" for level in LEVELS)
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(native, "_compiled", lambda: pytest.fail("compiled again"))
    assert code(tmp_path) == made


def test_what_is_kept_broken_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, times = compiled(), []
    monkeypatch.setattr(native, "_compiled", lambda: times.append(1) or made.objects)
    assert code(tmp_path) == made
    (folder,) = tmp_path.iterdir()
    for change in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:100], lambda data: b""):
        file = folder / "avx2.o"
        file.write_bytes(change(file.read_bytes()))
        assert code(tmp_path) == made
        assert file.read_bytes() == made.objects["avx2"]
    (folder / "baseline.o").unlink()
    assert code(tmp_path) == made
    assert len(times) == 5


def test_another_version_has_other_object_code(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {native._key()}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 0")
    keys.add(native._key())
    monkeypatch.setattr("drivetrain.anomaly.forest.BLOCK", 512)
    keys.add(native._key())
    assert len(keys) == 3


def missing_package(name: str) -> str:
    raise importlib.metadata.PackageNotFoundError(name)


def test_without_numba_there_is_a_reason_and_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", missing_package)
    made = code(tmp_path)
    assert not made.objects and "numba" in made.why
    kernel = load(made)
    assert kernel.level == "numpy" and kernel.why == made.why


def test_a_compiler_that_fails_or_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(native, "KERNEL", "drivetrain.anomaly.features")  # prints no IR
        assert "cannot be compiled" in code(tmp_path / "other").why
    with monkeypatch.context() as patched:
        patched.setattr(native, "_compiled", lambda: {"baseline": b"x"})
        (tmp_path / "file").write_text("")
        assert "cannot be compiled" in code(tmp_path / "file" / "below").why
    with monkeypatch.context() as patched:
        patched.setattr(native, "_compiled", lambda: {})
        patched.setattr(native.platform, "machine", lambda: "aarch64")
        assert "aarch64" in code(tmp_path).why


def test_code_that_would_call_python_is_not_kept() -> None:
    compiled()
    text = "declare i32 @PyErr_Clear()\ndefine i32 @drivetrain_score() {\n %r = call i32 @PyErr_Clear()\n ret i32 %r\n}"
    with pytest.raises(RuntimeError, match="PyErr_Clear"):
        native._object(text, LEVELS["baseline"])


def test_another_architecture_scores_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    given = compiled()
    monkeypatch.setattr(native.platform, "machine", lambda: "aarch64")
    kernel = load(given)
    assert kernel.level == "numpy" and "lacks x86-64" in kernel.why


def test_a_processor_without_vectors_takes_the_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    given, llvm = compiled(), native._llvm()
    has = dict(llvm.get_host_cpu_features())
    for lacks, level in (("avx512vl", "avx2"), ("fma", "baseline")):
        if has.get(lacks):
            has[lacks] = False
            monkeypatch.setattr(llvm, "get_host_cpu_features", lambda has=dict(has): has)
            kernel = load(given)
            assert kernel.level == level and f"lacks {lacks}" in kernel.why


def test_a_worker_without_llvmlite_scores_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    given = compiled()
    native._llvm.cache_clear()
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    kernel = load(given)
    native._llvm.cache_clear()
    assert kernel.level == "numpy" and "llvmlite" in kernel.why


def test_code_that_is_none_or_computes_something_else_is_passed_over() -> None:
    given = compiled().objects
    nothing = "define void @drivetrain_score() {\n ret void\n}"
    idle = native._object(nothing, LEVELS["baseline"])
    altered = bytearray(given["baseline"])
    altered[5000] ^= 1
    for bad, said in ((idle, "does not agree"), (b"no object", "altered"), (b"", "altered"),
                      (bytes(altered), "altered")):  # fmt: skip
        kernel = load(Code({"baseline": bad}))
        assert kernel.level == "numpy" and said in kernel.why and kernel.why.startswith("baseline: ")
    assert load(Code({"avx2": idle, "baseline": given["baseline"]})).level == "baseline"


def test_code_without_the_kernel_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    given = compiled()
    monkeypatch.setattr(native, "NAME", "another")
    assert "no kernel in it" in load(given).why
    with pytest.raises(RuntimeError, match="numba gave no kernel"):
        native._object("", LEVELS["baseline"])


def test_the_trial_has_every_kind_of_step() -> None:
    made, data = native._trial()
    sides = {(int(what) & 3, int(what) & 52) for what in made.op}
    assert {kind for side, kind in sides if side == 3} == {0, 4, 32}
    assert {kind for side, kind in sides if side == 0} == {0, 4, 16, 20, 32, 48}
    assert {side for side, _ in sides} == {0, 1, 2, 3}
    assert np.isnan(data).any() and np.isinf(data).any()


def test_wrong_arrays_do_not_reach_the_code() -> None:
    kernel, made = load(compiled()), forest()
    data, total = aligned((2, 4, BLOCK)), np.zeros((2, BLOCK))
    for wrong, into in [
        (data[:, :3], total), (data, total[:1]), (data.astype(float), total), (data, total.astype(np.float32)),
        (data[::-1], total), (data, np.zeros((BLOCK, 2)).T), (data[..., :1], total[..., :1]),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match="the kernel takes"):
            kernel.run(made, wrong, into)
    fixed = total.copy()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="the kernel takes"):
        kernel.run(made, data, fixed)


def test_memory_is_aligned() -> None:
    for shape in ((1, 1), (3, 5, 7), (2, 1000)):
        made = aligned(shape)
        assert made.ctypes.data % 64 == 0 and made.shape == shape and not made.any()


def test_code_outlives_the_one_who_loaded_it() -> None:
    runs = [load(compiled()).run for _ in range(3)]
    data, expected = aligned((1, 4, BLOCK)), np.zeros((1, BLOCK))
    plain(forest(), data, expected)
    for run in runs:
        found = np.zeros((1, BLOCK))
        run(forest(), data, found)
        assert np.array_equal(found, expected)


def test_code_is_plain_data() -> None:
    assert dataclasses.asdict(Code({"a": b"b"}, "c")) == {"objects": {"a": b"b"}, "why": "c"}
