"""Parts of the compiled CPU path: partial vectors, and the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from rnnkit.kernels.cpu.activations import activations
from rnnkit.kernels.cpu.jit import entry
from rnnkit.kernels.cpu.simd import vectors

DTYPES = ("float32", "float64")


def apply(name: str, dtype: str, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The vector function `name` over x, into `out` if given."""
    v, function = vectors(dtype), getattr(activations(dtype), name)
    load, store, lanes, size = v.first.load, v.first.store, v.lanes, v.itemsize

    @entry(("test", name, dtype))
    def over(x, y):
        for j in range(0, x.size, lanes):
            n = x.size - j
            store(function(load(x.ctypes.data + j * size, n)), y.ctypes.data + j * size, n)

    y = np.full_like(x, np.nan) if out is None else out
    over(x, y)
    return y


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_lane_past_the_end_is_written(dtype):
    lanes = vectors(dtype).lanes
    for n in range(1, 2 * lanes + 2):
        x, room = np.linspace(-1, 1, n).astype(dtype), np.full(n + lanes, 7, dtype)
        apply("tanh", dtype, x, room[:n])
        np.testing.assert_array_equal(room, np.concatenate([apply("tanh", dtype, x), np.full(lanes, 7, dtype)]))


# In a separate process, since an access past the end terminates it by a signal.
UP_TO_A_FORBIDDEN_PAGE = """
import ctypes, mmap, sys
import numpy as np
from tests.cpu.test_kernels import apply, vectors

PROT_NONE = 0
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

def at_the_end(dtype):
    pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    array = np.frombuffer(pages, dtype)
    if libc.mprotect(array.ctypes.data + mmap.PAGESIZE, mmap.PAGESIZE, PROT_NONE):
        sys.exit(f"mprotect: error {ctypes.get_errno()}")
    return array[: mmap.PAGESIZE // array.itemsize]

for dtype in ("float32", "float64"):
    x, y = at_the_end(dtype), at_the_end(dtype)
    x[...] = np.linspace(-1, 1, x.size)
    for n in range(1, 2 * vectors(dtype).lanes + 2):
        apply("tanh", dtype, x[-n:], y[-n:])
        np.testing.assert_array_equal(y[-n:], apply("tanh", dtype, x[-n:].copy()))
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs mprotect, which Windows does not have")
def test_no_lane_past_the_end_is_read():
    command = [sys.executable, "-c", UP_TO_A_FORBIDDEN_PAGE]
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


@pytest.mark.slow
def test_kernels_are_cached_between_processes_and_recompiled_when_a_source_changes(tmp_path):
    """Counts compilations of new processes with a copy of the package: first some, then none, then some again."""
    root = Path(__file__).parents[2] / "rnnkit"
    copy = tmp_path / "rnnkit"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = textwrap.dedent("""
        import numpy as np, rnnkit
        from rnnkit.backends.numba import layer as numba
        from rnnkit.core.cells import CELLS
        layer = rnnkit.RNN(3, 4, rng=0)
        layer(np.ones((1, 1, 3), "float32"))
        launch, job = numba.launch_forward.stats, numba.job(CELLS["rnn_tanh"], "float32", False, True)
        print(sum(launch.cache_misses.values()), sum(launch.cache_hits.values()), job.cache_hits)
    """)

    def compilations() -> str:
        command = [sys.executable, "-c", script]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, env=environment)
        return done.stdout.split()

    assert compilations() == ["1", "0", "0"]
    assert compilations() == ["0", "1", "1"]
    source = copy / "kernels" / "cells" / "rnn.py"
    source.write_text(source.read_text() + "\n# changed\n")
    assert compilations() == ["1", "0", "0"]


@pytest.mark.slow
def test_kernels_compiled_by_several_processes_load_in_one(tmp_path: Path) -> None:
    """Cached machine code is linked by symbols, so processes must not use one symbol for two functions."""
    script = textwrap.dedent("""
        import sys
        from rnnkit.functional import direction
        from rnnkit.testing import Case, assert_close, make_inputs
        for dtype in sys.argv[1:]:
            given = make_inputs(Case("rnn_tanh", T=1), dtype)  # a single step compiles in a second or two
            ours, oracle = (
                direction.forward("rnn_tanh", given.x, given.state0, given.weights, backend=backend, keep=False)
                for backend in ("numba", "numpy")
            )
            assert_close("y", ours[0], oracle[0], dtype)
    """)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).resolve().parents[2]
    for dtypes in (["float32"], ["float64"], ["float32", "float64"]):
        subprocess.run([sys.executable, "-c", script, *dtypes], cwd=root, env=environment, check=True)


@pytest.mark.slow
def test_loading_compiled_code_does_not_import_the_compiler(tmp_path: Path) -> None:
    """Numba's array functions and SciPy take half the time of a first call. Later compilations still import them."""
    script = textwrap.dedent("""
        import sys
        import numpy as np
        import rnnkit
        layer = rnnkit.RNN(3, 4, backend="numba")
        layer(np.ones((1, 2, 3), np.float32))
        print(int("numba.np.arraymath" in sys.modules))
        import numba
        total = numba.njit(lambda a: a.sum() + np.sort(a)[0])
        assert total(np.arange(3.0)) == 3
    """)
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script]
    runs = [subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True) for _ in range(2)]
    assert [int(done.stdout) for done in runs] == [1, 0]
