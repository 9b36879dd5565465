"""Launches, arguments, sources and buffers that the emulator rejects; its cache; threads that share a module."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.tools.emulator import EmulatorError, Memory, Module, available, launch
from tests.tools.emulator.cases import module
from tests.tools.emulator.compile import cache_folder

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

F, I, U = np.float32, np.int32, np.uint32


def ones(n: int = 64) -> np.ndarray:
    return np.ones(n, F)


def counter() -> np.ndarray:
    return np.zeros(1, U)


AXPY = 'extern "C" __global__ void __launch_bounds__(256) axpy(float* y, const float* x, float a, int n) {\n'
AXPY += "  __shared__ float tile[64];\n  tile[0] = 0;\n"
AXPY += "  const int i = blockIdx.x * blockDim.x + threadIdx.x;\n  if (i < n) y[i] += a * x[i];\n}\n"


@pytest.fixture(scope="module")
def axpy():
    return Module(AXPY).get_function("axpy")


@pytest.mark.parametrize(
    ("grid", "block", "shared"),
    [
        ((1,), (257,), 0),
        ((1,), (0,), 0),
        ((1,), (1, 1, 65), 0),
        ((0,), (32,), 0),
        ((1, 0), (32,), 0),
        ((1, 65536), (32,), 0),
        ((1, 1, 65536), (32,), 0),
        ((2**31,), (32,), 0),
        ((1,), (32,), 227 * 1024 - 256 + 1),
        ((1,), (32,), -1),
    ],
)
def test_launches_that_a_driver_rejects(axpy, grid: tuple, block: tuple, shared: int) -> None:
    args = (ones(), ones(), F(2), I(64))
    with pytest.raises(EmulatorError) as caught:
        axpy(grid, block, args, shared_mem=shared)
    assert caught.value.kind == "launch"


def test_the_limits_are_accepted(axpy) -> None:
    y = ones()
    axpy((1, 2, 1), (256,), (y, ones(), F(2), I(0)), shared_mem=227 * 1024 - 256)
    axpy((1,), (64,), (y, ones(), F(2), I(64)))
    np.testing.assert_array_equal(y, 3 * ones())


def test_too_many_threads_clusters_and_cooperative_blocks() -> None:
    features = module("features", "fast")
    with pytest.raises(EmulatorError, match="1024 at most"):
        features.get_function("arrivals")((1,), (1025,), (counter(), counter()))
    with pytest.raises(EmulatorError, match="clusters"):
        features.get_function("cluster_ring")((3, 2), (32,), (ones(),), shared_mem=128)
    with pytest.raises(EmulatorError, match="cooperative launch runs all blocks"):
        features.get_function("grid_rounds")((10000,), (1024,), (ones(), ones(), I(1)), cooperative=True)


@pytest.mark.parametrize(
    "args",
    [
        (),
        (ones(), ones(), F(2)),
        (ones(), ones(), F(2), I(1), I(1)),
        (ones(), ones(), 2.0, I(64)),
        (ones(), ones(), np.float64(2), I(64)),
        (ones(), ones(), I(2), I(64)),
        (ones(), ones(), F(2), 64),
        (ones(), ones(), F(2), np.int64(64)),
        (ones(), ones(), F(2), F(64)),
        (ones(), I(0), F(2), I(64)),
        (ones(), "x", F(2), I(64)),
    ],
)
def test_arguments_that_do_not_fit(axpy, args: tuple) -> None:
    with pytest.raises(EmulatorError) as caught:
        axpy((1,), (64,), args)
    assert caught.value.kind == "arguments"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ('extern "C" __global__ void f(int* a) {\n  *a = nothing;\n}', r"kernel\.cu:2"),
        ("#include <cstdint>\n", "cstdint"),  # NVRTC has no host headers
        ('extern "C" __global__ void f(float* a) { *a = __half2float(__float2half(1)); }', "half"),
        ('extern "C" __global__ void f(int* a) { static_assert(SIZE == 4, "size"); }', "SIZE"),
    ],
)
def test_a_source_that_does_not_compile(code: str, words: str) -> None:
    with pytest.raises(EmulatorError, match=words) as caught:
        Module(code)
    assert caught.value.kind == "compile"


def test_the_architecture_is_defined() -> None:
    code = 'extern "C" __global__ void f(int* a) { *a = __CUDA_ARCH__; }'
    for options, want in (((), 900), (("-arch=sm_75",), 750), (("--gpu-architecture=compute_100a",), 1000)):
        a = np.zeros(1, I)
        Module(code, options).get_function("f")((1,), (1,), (a,))
        assert a[0] == want


def test_a_kernel_with_a_mangled_name_is_not_found() -> None:
    with pytest.raises(EmulatorError, match="no extern"):
        Module("__global__ void f(int* a) { *a = 1; }").get_function("f")


def test_memory_registers_buffers() -> None:
    memory = Memory()
    memory.add(1000, 100)
    memory.add(1100, 50, writable=False)
    assert (1000 in memory, 1099 in memory, 1149 in memory, 1150 in memory, 999 in memory) == (
        True,
        True,
        True,
        False,
        False,
    )
    for address, size in ((1050, 1), (990, 11), (900, 1000)):
        with pytest.raises(EmulatorError, match="overlap"):
            memory.add(address, size)
    memory.remove(1000)
    with pytest.raises(EmulatorError, match="no live buffer"):
        memory.remove(1000)
    np.testing.assert_array_equal(memory.table(), [[1100, 50, 0]])


@pytest.mark.slow
def test_processes_share_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Module(AXPY)
    for runtime in cache_folder().glob("runtime-*"):  # saves its compilation
        shutil.copytree(runtime, tmp_path / runtime.name)
    monkeypatch.setenv("RNNKIT_EMULATOR_CACHE", str(tmp_path))
    script = (
        "import numpy as np\nfrom tests.tools.emulator import Module\n"
        f"code = {AXPY!r}\ny = np.ones(4, np.float32)\n"
        "Module(code).get_function('axpy')((1,), (4,), (y, y.copy(), np.float32(2), np.int32(4)))\nprint(y.sum())"
    )
    running = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["12.0"] * 3
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert set(names) == {"kernels", "runtime"}
    assert names.count("kernels") == 1


def test_concurrent_launches_are_serialised(axpy) -> None:
    """Two Python threads launch one kernel, whose shared memory is one object. Results must not mix."""
    results = [ones() for _ in range(4)]

    def work(y: np.ndarray) -> None:
        for _ in range(50):
            axpy((1,), (64,), (y, ones(), F(2), I(64)))

    workers = [threading.Thread(target=work, args=(y,)) for y in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    np.testing.assert_array_equal(results, np.full((4, 64), 101, F))


@pytest.mark.slow
def test_least_recently_launched_libraries_free_their_memory_and_can_launch_again() -> None:
    launched = launch._launched
    results = [np.zeros(64, np.int32) for _ in range(launch._CACHING_LIBRARIES + 2)]
    code = 'extern "C" __global__ void put(int* out) { out[threadIdx.x] = NUMBER; }'
    modules = [Module(code, (f"-DNUMBER={k}",)) for k in range(len(results))]
    for turn in range(2):
        for k, (one, out) in enumerate(zip(modules, results, strict=True)):
            out[:] = -1
            one.get_function("put")((1,), (64,), (out,))
            assert (out == k).all(), turn
            assert len(launched) <= launch._CACHING_LIBRARIES
