"""tests/tools/greenlets, the stand-in for Numba's device: its results, and the errors that it finds."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from tests.tools import greenlets

pytestmark = pytest.mark.skipif(greenlets.available() is not None, reason=str(greenlets.available()))


class HostArray:
    """A NumPy array with a __cuda_array_interface__."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.__cuda_array_interface__ = array.__array_interface__ | {"stream": 1}


@pytest.fixture
def cuda() -> Any:
    return importlib.import_module("numba.cuda")


def launch(kernel: Any, blocks: int, threads: int, *arrays: np.ndarray, seed: int | None = None, watch: bool = False):
    """Runs one launch with arrays passed as the backend passes them. Returns the record of `installed`."""
    cuda = importlib.import_module("numba.cuda")
    with greenlets.installed(seed, watch) as launches:
        kernel[blocks, threads, cuda.external_stream(5)](
            *(cuda.as_cuda_array(HostArray(a), sync=False) for a in arrays)
        )
    return launches[0]


def test_a_reversal_with_a_barrier_is_right_in_any_order_without_a_race(cuda: Any) -> None:
    @cuda.jit
    def mirrored(source, through, target):
        b, i, n = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        through[b, i] = source[b, i]
        cuda.syncthreads()
        target[b, i] = through[b, n - 1 - i]

    source = np.random.default_rng(0).standard_normal((3, 32))
    for seed, watch in ((None, False), (1, False), (2, True)):
        through, target = np.full((3, 32), np.nan), np.full((3, 32), np.nan)
        record = launch(mirrored, 3, 32, source, through, target, seed=seed, watch=watch)
        np.testing.assert_array_equal(target, source[:, ::-1])
        assert (record.kernel, record.blocks, record.threads, record.stream) == (mirrored, 3, 32, 5)


def test_a_reversal_without_a_barrier_is_wrong_and_a_race(cuda: Any) -> None:
    @cuda.jit
    def mirrored(source, through, target):
        i, n = cuda.threadIdx.x, cuda.blockDim.x
        through[i] = source[i]
        target[i] = through[n - 1 - i]

    for seed in (None, 1, 2):
        through, target = np.full(32, np.nan), np.full(32, np.nan)
        launch(mirrored, 1, 32, np.ones(32), through, target, seed=seed)
        assert np.isnan(target).any()
        with pytest.raises(greenlets.KernelError, match="race"):
            launch(mirrored, 1, 32, np.ones(32), through, target, seed=seed, watch=True)


def test_shared_memory_belongs_to_a_block(cuda: Any) -> None:
    float64 = importlib.import_module("numba").types.float64

    @cuda.jit
    def mirrored(source, target, waits):
        tile = cuda.shared.array((2, 32), float64)
        b, i = cuda.blockIdx.x, cuda.threadIdx.x
        target[b, 0, i] = tile[1, i]
        tile[0, i] = source[b, i]
        if waits[0] > 0:
            cuda.syncthreads()
        target[b, 1, i] = tile[0, 31 - i]

    source = np.random.default_rng(0).standard_normal((3, 32))
    target = np.zeros((3, 2, 32))
    for seed, watch in ((None, False), (1, True)):
        launch(mirrored, 3, 32, source, target, np.ones(1), seed=seed, watch=watch)
        assert np.isnan(target[:, 0]).all(), "uninitialised"
        np.testing.assert_array_equal(target[:, 1], source[:, ::-1])
    with pytest.raises(greenlets.KernelError, match="race"):
        launch(mirrored, 3, 32, source, target, np.zeros(1), watch=True)


def test_a_read_and_a_write_of_two_threads_are_a_race_in_either_order(cuda: Any) -> None:
    @cuda.jit
    def shifted(a):
        i = cuda.threadIdx.x
        a[i] = a[min(i + 1, 31)] + 1

    for seed in (None, 1, 2, 3):  # the ascending order gives the intended values
        with pytest.raises(greenlets.KernelError, match="race"):
            launch(shifted, 1, 32, np.arange(32.0), seed=seed, watch=True)


def test_writes_of_two_blocks_to_one_element_are_a_race_despite_a_barrier(cuda: Any) -> None:
    @cuda.jit
    def summed(a):
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            a[0] += 1

    launch(summed, 1, 32, np.zeros(1), watch=True)
    with pytest.raises(greenlets.KernelError, match="race"):
        launch(summed, 2, 32, np.zeros(1), watch=True)


def test_races_between_arrays_that_share_memory_are_found(cuda: Any) -> None:
    @cuda.jit
    def crossed(a, b):
        i = cuda.threadIdx.x
        a[i] = 1.0
        b[31 - i] = 2.0

    launch(crossed, 1, 32, np.zeros(32), np.zeros(32), watch=True)
    one = np.zeros(32)
    with pytest.raises(greenlets.KernelError, match="race"):
        launch(crossed, 1, 32, one, one[:], watch=True)


def test_barriers_that_not_all_threads_reach_are_found(cuda: Any) -> None:
    @cuda.jit
    def some_end(a):
        if cuda.threadIdx.x < 5:
            return
        cuda.syncthreads()

    @cuda.jit
    def two_places(a):
        if cuda.threadIdx.x < 5:
            cuda.syncthreads()
        else:
            cuda.syncthreads()

    with pytest.raises(greenlets.KernelError, match="5 threads have ended"):
        launch(some_end, 1, 32, np.zeros(1))
    with pytest.raises(greenlets.KernelError, match="wait at barriers of lines"):
        launch(two_places, 1, 32, np.zeros(1))


def test_indices_out_of_bounds_are_found(cuda: Any) -> None:
    @cuda.jit
    def at(a, where):
        a[where[0]] = 1.0

    for where in (-1, 4):
        with pytest.raises(greenlets.KernelError, match="index"):
            launch(at, 1, 32, np.zeros(4), np.array([where]), watch=True)


@pytest.mark.parametrize(("blocks", "threads"), [(0, 32), (1, 0), (1, 33), (1, 1056)])
def test_launch_sizes_that_no_gpu_accepts_are_refused(cuda: Any, blocks: int, threads: int) -> None:
    with pytest.raises(greenlets.KernelError, match="blocks"):
        launch(cuda.jit(lambda a: None), blocks, threads, np.zeros(1))


def test_more_threads_than_the_kernel_is_compiled_for_are_refused(cuda: Any) -> None:
    with pytest.raises(greenlets.KernelError, match="up to 64 threads"):
        launch(cuda.jit(lambda a: None, launch_bounds=64), 1, 96, np.zeros(1))


def test_an_array_view_that_synchronises_is_refused(cuda: Any) -> None:
    with greenlets.installed(), pytest.raises(greenlets.KernelError, match="synchronisation"):
        cuda.jit(lambda a: None)[1, 32, 0](cuda.as_cuda_array(HostArray(np.zeros(1))))


def test_the_functions_that_a_kernel_calls_are_simulated_too(cuda: Any) -> None:
    import math

    from numba import types

    @cuda.jit(device=True)
    def logistic(a):
        return types.float32(1) / (types.float32(1) + math.exp(-a))

    @cuda.jit
    def everywhere(a):
        i = cuda.threadIdx.x
        a[i] = logistic(a[i])

    a = np.linspace(-200, 200, 32).astype(np.float32)  # exp gives infinity, math.exp would raise
    want = 1 / (1 + np.exp(-a.astype(np.float64)))
    launch(everywhere, 1, 32, a)
    np.testing.assert_allclose(a, want, rtol=1e-6, atol=1e-37)


def test_types_equal_numbas(cuda: Any) -> None:
    from numba import types

    a = np.zeros((4, 6), np.float32)
    record = launch(cuda.jit(lambda a, b, c, d: None), 1, 32, a, a.T, a[:, ::2], np.zeros((2, 3, 4), np.float16))
    want = (types.float32[:, ::1], types.float32[::1, :], types.float32[:, :], types.float16[:, :, ::1])
    assert record.types == want
