"""RawModule of the stand-in for CuPy: kernels in the emulator, with CuPy's rules for arguments and sizes."""

import numpy as np
import pytest

from tests.tools import emulator, fakecupy

pytestmark = pytest.mark.skipif(bool(emulator.available()), reason=f"no emulator: {emulator.available()}")

SOURCE = r"""
extern "C" __global__ void axpy(float* y, const float* x, SCALAR a, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] += float(a) * x[i];
}
extern "C" __global__ void reversed(double* y, int n) {
    extern __shared__ double held[];
    if (threadIdx.x < n) held[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    if (threadIdx.x < n) y[threadIdx.x] = held[n - 1 - threadIdx.x];
}
extern "C" __global__ void through(float** places, int n) {
    if (threadIdx.x < n) places[1][threadIdx.x] = 10 * places[0][threadIdx.x];
}
template <int N> __global__ void fill(int* y) { y[threadIdx.x] = N; }
"""


@pytest.fixture
def cp():
    with fakecupy.installed(devices=2) as module:
        yield module


def module_of(cp, **more):
    return cp.RawModule(code=SOURCE, options=("-std=c++17", "-DSCALAR=float"), **more)


def test_a_kernel_runs_on_device_memory(cp):
    axpy = module_of(cp).get_function("axpy")
    x, y = cp.arange(100, dtype=np.float32), cp.ones(100, np.float32)
    with cp.fake.counting() as counts:
        axpy((4,), (32,), (y, x, np.float32(2), np.int32(100)))
        axpy((4,), (32,), (y.data.ptr, x.data, np.array(1, np.float32), np.int32(50)))
    want = 1 + 2 * np.arange(100.0) + np.arange(100) * (np.arange(100) < 50)
    np.testing.assert_array_equal(y.get(), want)
    assert counts.launches == {"axpy": 2}
    assert [(a.name, a.grid, a.block, a.args[3]) for a in cp.fake.launches] == [
        ("axpy", (4, 1, 1), (32, 1, 1), 100),
        ("axpy", (4, 1, 1), (32, 1, 1), 50),
    ]


def test_captured_launches_keep_their_arguments_but_not_their_memory_alive(cp):
    axpy, stream = module_of(cp).get_function("axpy"), cp.cuda.Stream(non_blocking=True)
    x, y = cp.ones(8, np.float32), cp.zeros(8, np.float32)
    with stream:
        stream.begin_capture()
        for scale in (1, 2):
            axpy((1,), (8,), (y.data.ptr, x, np.float32(scale), np.int32(8)))
        graph = stream.end_capture()
        with cp.fake.counting() as counts:
            graph.launch()
            graph.launch()
    assert y.get().tolist() == [6] * 8
    assert (counts.replayed, counts.launches) == ({"axpy": 4}, {})
    del y
    with pytest.raises(fakecupy.FakeError, match="axpy touches freed memory"):
        graph.launch()


def test_pointers_may_be_loaded_from_memory(cp):
    x, y = cp.arange(4, dtype=np.float32), cp.zeros(4, np.float32)
    places = cp.asarray(np.array([x.data.ptr, y.data.ptr], np.uint64))
    module_of(cp).get_function("through")((1,), (4,), (places, np.int32(4)))
    assert y.get().tolist() == [0, 10, 20, 30]


def test_templates_by_name_expressions(cp):
    y = cp.zeros(3, np.int32)
    module_of(cp, name_expressions=("fill<7>",)).get_function("fill<7>")((1,), (3,), (y,))
    assert y.get().tolist() == [7, 7, 7]


def test_arguments_that_cupy_or_the_kernel_refuses(cp):
    axpy = module_of(cp).get_function("axpy")
    x = cp.ones(4, np.float32)
    good = [x, x, np.float32(1), np.int32(4)]
    for place, bad, error in (
        (0, np.ones(4, np.float32), TypeError),
        (0, "x", TypeError),
        (2, 1.0, emulator.EmulatorError),  # 8 bytes for a float
        (3, 4, emulator.EmulatorError),  # 8 bytes for an int
        (3, np.float32(4), emulator.EmulatorError),
    ):
        with pytest.raises(error):
            axpy((1,), (4,), tuple(bad if k == place else arg for k, arg in enumerate(good)))
    with pytest.raises(emulator.EmulatorError):
        axpy((1,), (4,), tuple(good[:3]))
    with cp.cuda.Device(1), pytest.raises(ValueError, match="different from the current device"):
        axpy((1,), (4,), tuple(good))


def test_sizes_that_the_driver_refuses(cp):
    kernels, driver = module_of(cp), cp.cuda.driver
    back, y = kernels.get_function("reversed"), cp.arange(8.0)
    back((1,), (8,), (y, np.int32(8)), shared_mem=64)
    assert y.get().tolist() == list(range(7, -1, -1))
    for grid, block, shared in (((1,), (2048,), 64), ((1, 70000), (8,), 64), ((1,), (8,), 50000)):
        with pytest.raises(driver.CUDADriverError, match="INVALID_VALUE"):
            back(grid, block, (y, np.int32(8)), shared_mem=shared)
    back.max_dynamic_shared_size_bytes = 50000
    back((1,), (8,), (y, np.int32(8)), shared_mem=50000)
    assert y.get().tolist() == list(range(8))
    with pytest.raises(driver.CUDADriverError):
        back.max_dynamic_shared_size_bytes = 300000
    assert back.attributes["max_dynamic_shared_size_bytes"] == 50000
    assert driver.occupancyMaxActiveBlocksPerMultiprocessor(back.kernel.ptr, 256, 50000) == 4


def test_a_cooperative_grid_that_is_too_large_is_reduced_with_a_warning(cp):
    kernel = module_of(cp, enable_cooperative_groups=True).get_function("axpy")
    x = cp.ones(4, np.float32)
    arguments = (x, x, np.float32(0), np.int32(4))
    with pytest.warns(UserWarning, match="The grid size will be reduced from 5000 to 264"):
        kernel((5000,), (1024,), arguments)
    assert cp.fake.launches[-1].grid == (264, 1, 1)
    with pytest.raises(ValueError, match="exceeds the limit"):
        kernel((500, 2), (1024,), arguments)


def test_sources_that_do_not_compile_and_missing_kernels(cp):
    with pytest.raises(cp.cuda.compiler.CompileException, match="SCALAR"):
        cp.RawModule(code=SOURCE).get_function("axpy")
    with pytest.raises(cp.cuda.driver.CUDADriverError, match="NOT_FOUND"):
        module_of(cp).get_function("absent")
    with pytest.raises(TypeError, match="Exactly one of"):
        cp.RawModule()
    with pytest.raises(TypeError, match="options"):
        cp.RawModule(code=SOURCE, options=["-DSCALAR=float"])


def test_out_of_bounds_and_freed_memory_are_found_in_check_mode():
    with fakecupy.installed(mode="check") as cp:
        axpy, x, y = module_of(cp).get_function("axpy"), cp.ones(5, np.float32), cp.ones(4, np.float32)
        axpy((1,), (8,), (y, x, np.float32(1), np.int32(4)))
        assert y.get().tolist() == [2, 2, 2, 2]
        with pytest.raises(emulator.EmulatorError, match="axpy"):
            axpy((1,), (8,), (y, x, np.float32(1), np.int32(5)))
        address = y.data.ptr
        del y
        with pytest.raises(emulator.EmulatorError, match="axpy"):
            axpy((1,), (8,), (address, x, np.float32(1), np.int32(4)))


def test_modules_compile_once_per_device(cp):
    with cp.fake.counting() as counts:
        for device in (0, 1, 0, 1):
            with cp.cuda.Device(device):
                module_of(cp).get_function("axpy")
    assert sum(counts.compiles.values()) == 2
