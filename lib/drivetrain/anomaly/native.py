"""The kernel as object code: compiled once on a driver, run by workers that have neither numba nor a compiler.

numba gives the kernel's LLVM IR in a process of its own, so that the driver keeps free of it. LLVM makes object code of
it for three kinds of x86-64 processors, some 50 KB, which are kept in a folder and broadcast with the model. A worker
takes the best one that its processor can run, loads it with llvmlite alone, and tries it on a few rows against numpy
before it believes it. Where that cannot be, numpy scores: the same numbers, some 20 times slower.

Object code is run as it comes: the folder must be one that only its owner writes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final

import numpy as np

from drivetrain.anomaly import forest as programs
from drivetrain.anomaly.forest import BLOCK, Floats, Forest, Singles

NAME: Final = "drivetrain_score"
KERNEL: Final = "drivetrain.anomaly.kernel"
TRIPLE: Final = "x86_64-unknown-linux-gnu"
ALIGNED: Final = 64  # bytes of a cache line, and of a vector: loads that straddle two lines take twice as long
SUM: Final = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Level:
    """Processors that have ``needs``, as LLVM names them; ``cpu`` and ``features`` are what it compiles for."""

    cpu: str
    features: str
    needs: tuple[str, ...]


LEVELS: Final = {  # the best first
    "avx512": Level("x86-64-v4", "-prefer-256-bit", ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")),
    "avx2": Level("x86-64-v3", "", ("avx2", "fma", "bmi", "bmi2", "f16c", "lzcnt", "movbe")),
    "baseline": Level("x86-64", "", ()),
}


@dataclass(frozen=True)
class Code:
    """Object code by level, each behind its SHA-256, ready to be broadcast; where there is none, ``why`` tells."""

    objects: Mapping[str, bytes] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Kernel:
    """What adds up path lengths: ``level`` is one of LEVELS, or numpy; ``why`` tells why it is none better.

    ``run(forest, data, total)``: data (blocks, features, BLOCK) and total (blocks, BLOCK), both C-contiguous.
    """

    level: str
    run: Callable[[Forest, Singles, Floats], None]
    why: str = ""


def plain(forest: Forest, data: Singles, total: Floats) -> None:
    """The kernel in numpy."""
    columns = np.ascontiguousarray(data.transpose(1, 0, 2)).reshape(forest.features, -1)
    sums = total.reshape(-1)
    forest.run(columns, sums)


# --- on the driver ---


def code(folder: Path) -> Code:
    """The kernel's object code from ``folder``, compiled into it where it is not there (some 3 s of CPU, once)."""
    if platform.machine() not in ("x86_64", "AMD64") or sys.platform != "linux":
        return Code(why=f"the kernel is compiled for Linux on x86-64, not for {sys.platform} on {platform.machine()}")
    try:
        kept = folder / f"kernel-{_key()}"
        objects = _read(kept)
        if objects is None:
            objects = _compiled()
            _write(kept, objects)
    except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Code(why=f"the kernel cannot be compiled: {_told(error)}")
    return Code(objects)


def _key() -> str:
    """What the object code depends on."""
    found = [(name, util.find_spec(name)) for name in (KERNEL, __name__)]
    sources = [spec.loader.get_source(name) for name, spec in found if spec and spec.loader]  # type: ignore[attr-defined]
    versions = [metadata.version(name) for name in ("numba", "llvmlite")]
    bits = {name: value for name, value in vars(programs).items() if name.isupper() and isinstance(value, int)}
    return hashlib.sha256(repr((sources, versions, bits)).encode()).hexdigest()[:16]


def _read(kept: Path) -> dict[str, bytes] | None:
    """None where it is not all there, and whole."""
    objects = {}
    for level in LEVELS:
        try:
            data = (kept / f"{level}.o").read_bytes()
        except FileNotFoundError:
            return None
        if not _opened(data):
            return None
        objects[level] = data
    return objects


def _write(kept: Path, objects: Mapping[str, bytes]) -> None:
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    for level, data in objects.items():
        with tempfile.NamedTemporaryFile(dir=kept, delete=False) as file:
            file.write(data)
        Path(file.name).replace(kept / f"{level}.o")


def _compiled() -> dict[str, bytes]:
    """Raises what ``code`` reports."""
    environ = {**os.environ, "NUMBA_OPT": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = [sys.executable, "-m", KERNEL]
    text = subprocess.run(program, env=environ, capture_output=True, text=True, check=True, timeout=300).stdout
    return {name: _object(text, level) for name, level in LEVELS.items()}


def _object(text: str, level: Level) -> bytes:
    llvm = _llvm()
    target = llvm.Target.from_triple(TRIPLE)
    machine = target.create_target_machine(cpu=level.cpu, features=level.features, opt=3, reloc="pic")
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = TRIPLE, str(machine.target_data)
    if NAME not in {function.name for function in module.functions}:
        raise RuntimeError("numba gave no kernel")
    for one in (*module.functions, *module.global_variables):
        if not one.is_declaration and one.name != NAME:
            one.linkage = "internal"  # so that what is not used goes, and with it what calls Python
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    strangers = [function.name for function in module.functions if function.is_declaration]
    if any(not name.startswith("llvm.") for name in strangers):
        raise RuntimeError(f"it would call {', '.join(strangers)}")
    made: bytes = machine.emit_object(module)
    return hashlib.sha256(made).digest() + made


def _opened(data: bytes) -> bytes:
    """The object code, or nothing where it was altered: LLVM would not survive that."""
    return data[SUM:] if hashlib.sha256(data[SUM:]).digest() == data[:SUM] else b""


def _told(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) else str(error)
    return (str(said).strip().splitlines() or [type(error).__name__])[-1]


# --- in a worker ---


@cache
def _llvm() -> Any:
    """llvmlite's binding, ready for this processor. Its import must not be paid by who does not score."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm


def load(given: Code) -> Kernel:
    """The best kernel that runs here and passes its test; numpy's where there is none."""
    if not given.objects:
        return Kernel("numpy", plain, given.why)
    why = []
    for level, data in given.objects.items():
        try:
            if missing := _missing(level):
                why.append(f"{level}: this processor lacks {missing}")
                continue
            run = _loaded(data)
            if _agrees(run):
                return Kernel(level, run, "; ".join(why))
            why.append(f"{level}: it does not agree with numpy")
        except (ImportError, OSError, RuntimeError) as error:
            why.append(f"{level}: {_told(error)}")
    return Kernel("numpy", plain, "; ".join(why))


def _missing(level: str) -> str:
    """What this processor lacks for code of this level."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "x86-64"
    has = _llvm().get_host_cpu_features()
    return ", ".join(name for name in LEVELS[level].needs if not has.get(name))


def _loaded(data: bytes) -> Callable[[Forest, Singles, Floats], None]:
    opened, llvm = _opened(data), _llvm()
    if not opened:
        raise RuntimeError("the object code was altered")
    machine = llvm.Target.from_default_triple().create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(opened))
    engine.finalize_object()
    address = engine.get_function_address(NAME)
    if not address:
        raise RuntimeError("the object code has no kernel in it")
    call = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3, *[ctypes.c_void_p] * 13)(address)

    def run(forest: Forest, data: Singles, total: Floats) -> None:
        _check(forest, data, total)
        stack, plane = aligned((forest.depth + 1, BLOCK)), aligned((1, BLOCK))
        arrays = (
            data, forest.op, forest.feature, forest.threshold, forest.left, forest.right, forest.start, forest.at,
            forest.weight, forest.centre, stack, plane, total,
        )  # fmt: skip
        call(len(data), forest.features, len(forest.op), *[array.ctypes.data for array in arrays])

    run.engine = engine  # type: ignore[attr-defined]  # the code lives as long as its engine
    return run


def _check(forest: Forest, data: Singles, total: Floats) -> None:
    """What the code would not survive."""
    shape = (len(data), forest.features, BLOCK)
    fit = data.shape == shape and total.shape == (len(data), BLOCK)
    plain = data.flags.c_contiguous and total.flags.c_contiguous and total.flags.writeable
    if not (fit and plain and data.dtype == np.float32 and total.dtype == np.float64):
        raise ValueError(f"the kernel takes float32 {shape}, not {data.dtype} {data.shape}")


def aligned(shape: tuple[int, ...]) -> Singles:
    """Zeros that begin where a cache line does."""
    size = int(np.prod(shape)) * 4
    memory = np.zeros(size + ALIGNED, np.uint8)
    begin = -memory.ctypes.data % ALIGNED
    return memory[begin : begin + size].view(np.float32).reshape(shape)


def _agrees(run: Callable[[Forest, Singles, Floats], None]) -> bool:
    forest, data = _trial()
    found, expected = np.zeros((2, *data[:, 0].shape))
    run(forest, data, found)
    plain(forest, data, expected)
    return np.array_equal(found, expected)


@cache
def _trial() -> tuple[Forest, Singles]:
    """Each kind of step once and more, and rows with missing values and infinite ones."""
    both, left, right = programs.LEFT_LEAF | programs.RIGHT_LEAF, programs.LEFT_LEAF, programs.RIGHT_LEAF
    trees = ((both, both, programs.ROOT), (both, left, right | programs.ROOT),
             (both, both, programs.SWAPPED | programs.ROOT))  # fmt: skip
    kinds = (0, programs.LEFT_MISSING, programs.OBLIQUE)
    op = np.array([step | kind for kind in kinds for tree in trees for step in tree], np.uint8)
    random = np.random.default_rng(0)
    threshold, lefts, rights, weight, centre = random.standard_normal((5, len(op))).astype(np.float32)
    left_rows, right_rows = random.integers(1, 9, (2, len(op)), np.uint32)
    feature = np.arange(len(op), dtype=np.int32) % 3
    start = np.array([0, 2, 3, 5], np.int32)
    forest = Forest(
        3, 3 * len(kinds), 9, op, feature, threshold, lefts, rights, left_rows, right_rows, start,
        np.array([0, 1, 2, 0, 2], np.int32), weight[:5], centre[:5],
    )  # fmt: skip
    data = aligned((2, 3, BLOCK))
    data[:] = random.standard_normal(data.shape)
    data[random.random(data.shape) < 0.1] = np.nan
    data[random.random(data.shape) < 0.02] = np.inf
    return forest, data
