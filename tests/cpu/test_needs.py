"""Requirements of the Numba backend. If one is missing, the NumPy oracle runs, and explain gives the reason."""

from __future__ import annotations

import importlib
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import rnnkit
from rnnkit import backends
from rnnkit.backends import registry

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """if 1:
    import numpy as np
    import rnnkit, rnnkit.functional.direction, rnnkit.testing, rnnkit.io.files
    x = np.ones((4, 2, 3), np.float32)
    for kind in (rnnkit.RNN, rnnkit.GRU, rnnkit.LSTM):
        layer = rnnkit.Bidirectional(kind(3, 4, num_layers=2, rng=0))
        y, state = layer(x, lengths=[4, 2])
        layer.backward(np.ones_like(y))
        rnnkit.Adam(layer).step()
        layer.zero_grad()
    layer = rnnkit.LSTM(3, 4, rng=0)
    layer.freeze()
    with rnnkit.no_grad():
        layer(x)
    rnnkit.LSTMCell(3, 4)(x[0])
    explained = rnnkit.explain(layer, x)
    print(explained.backend, explained.threads)
    print(explained.why)
    rnnkit.get_num_threads()
    try:
        rnnkit.GRU(3, 4, backend="numba")
    except RuntimeError as problem:
        print(problem)
"""


def in_process(tmp_path: Path, numba: str | None = None, **environment: str) -> list[str]:
    """The output of the script in a process with these variables. numba: text of a numba.py that shadows Numba."""
    path = [str(ROOT)]
    if numba is not None:
        (tmp_path / "numba.py").write_text(numba)
        path.insert(0, str(tmp_path))
    variables = os.environ | environment | {"PYTHONPATH": os.pathsep.join(path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    return done.stdout.splitlines()


NO_NUMBA = "import sys; sys.modules['numba'] = None; raise ModuleNotFoundError('planted: No module named numba')"
OLD = "__version__ = '0.60.0'"
BROKEN = "raise ImportError('Numba needs NumPy 2.9 or less. Got NumPy 3.1.')"
CRASHING = "raise OSError('libllvmlite.so: cannot open shared object file')"
FOREIGN = "import types; __version__ = '9.0.0'; config = types.SimpleNamespace(DISABLE_JIT=0)"


@pytest.mark.parametrize(
    ("numba", "environment", "reason"),
    [
        (None, {"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set, so Numba compiles nothing"),
        (OLD, {}, "Numba 0.60.0 is too old: 0.61.2 or later is needed (pip install --upgrade numba)"),
        (BROKEN, {}, "cannot be imported (ImportError: Numba needs NumPy 2.9 or less. Got NumPy 3.1.)"),
        (CRASHING, {}, "cannot be imported (OSError: libllvmlite.so: cannot open shared object file)"),
        (NO_NUMBA, {}, "cannot be imported (ModuleNotFoundError: planted: No module named numba)"),
        (FOREIGN, {}, "Numba 9.0.0 does not fit this rnnkit (ModuleNotFoundError: No module named 'numba."),
    ],
    ids=["jit disabled", "too old", "broken", "crashing", "half missing", "too new"],
)
def test_without_numba_the_oracle_runs_and_explain_gives_the_reason(numba, environment, reason, tmp_path) -> None:
    backend, why, error = in_process(tmp_path, numba, **environment)
    assert backend == "numpy None"
    assert why.startswith("first backend for numpy arrays that serves float32 lstm; passed over numba: ")
    assert reason in why
    assert error.startswith("backend 'numba' cannot run here: ")
    assert reason in error


@pytest.fixture
def uncached_reasons() -> Iterator[None]:
    """Clears the cached results before and after the test."""
    needs = importlib.import_module("rnnkit.backends.needs")
    caches = (needs._first_problem, backends.select)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_numba_is_missing(uncached_reasons, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find(name))
    explained = rnnkit.explain(rnnkit.LSTM(3, 4), np.zeros((2, 5, 3), np.float32))
    assert explained.backend == "numpy"
    assert "numba: Numba is not installed (pip install --upgrade numba)" in explained.why
    with pytest.raises(RuntimeError, match="backend 'numba' cannot run here: Numba is not installed"):
        rnnkit.LSTM(3, 4, backend="numba")


@pytest.mark.parametrize(
    ("machine", "pointer", "order", "message"),
    [
        ("ppc64le", 8, "little", "its kernels are for 64-bit x86 and ARM, and this is a 64-bit Python on ppc64le"),
        ("riscv64", 8, "little", "on riscv64"),
        ("s390x", 8, "big", "on s390x"),
        ("x86_64", 4, "little", "this is a 32-bit Python on x86_64"),
        ("", 8, "little", "on no known CPU"),
        ("AMD64", 8, "little", None),
        ("arm64", 8, "little", None),
        ("aarch64", 8, "little", None),
        ("aarch64", 8, "big", "on aarch64"),
    ],
)
def test_processors(machine, pointer, order, message, uncached_reasons, monkeypatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(struct, "calcsize", lambda _: pointer)
    monkeypatch.setattr(sys, "byteorder", order)
    problem = backends.BACKENDS["numba"].problem()
    assert (problem is None) if message is None else (problem is not None and message in problem)
    assert backends.available("numpy")


@pytest.mark.parametrize(
    ("version", "old"),
    [("0.61.2", False), ("0.61.1", True), ("0.60", True), ("0.62.0rc1", False), ("1.0", False), ("0+unknown", False)],
)
def test_versions(version, old, uncached_reasons, monkeypatch) -> None:
    monkeypatch.setattr("numba.__version__", version)
    problem = backends.BACKENDS["numba"].problem()
    assert ("too old" in (problem or "")) == old
    assert old or problem is None


def test_numba_cuda_needs_a_numba_that_can_be_imported(uncached_reasons, monkeypatch) -> None:
    needs = importlib.import_module("rnnkit.backends.needs")
    monkeypatch.setattr(registry, "cuda_problem", lambda: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(needs, "import_problem", lambda: "planted")
    assert backends.BACKENDS["numba_cuda"].problem() == "planted"
