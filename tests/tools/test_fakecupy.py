"""Arrays of the stand-in for CuPy: values, rejected operations, and memory."""

import sys
import threading

import numpy as np
import pytest

from tests.tools import fakecupy

REFUSED = r"Unsupported type <class 'numpy.ndarray'>"


@pytest.fixture
def cp():
    with fakecupy.installed(devices=2) as module:
        yield module


def test_it_replaces_cupy_only_while_installed():
    import importlib.util

    before = {name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends")}
    with fakecupy.installed(devices=3, arch="75") as cp:
        import cupy
        from cupy.cuda import runtime

        assert cupy is cp
        assert importlib.util.find_spec("cupy") is cupy.__spec__
        assert runtime.getDeviceCount() == 3
        assert cp.cuda.is_available()
        assert cp.cuda.Device(2).compute_capability == "75"
        with pytest.raises(ImportError):
            import cupyx  # noqa: F401
    assert {name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx", "cupy_backends")} == before


def test_arithmetic_indexing_and_reductions_equal_numpy(cp):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4, 5)).astype(np.float32)
    x, y = cp.asarray(a), cp.asarray(b)
    which, mask = np.array([3, 0, 3]), a > 0
    pairs = [
        (2 - x * y / 3, 2 - a * b / 3),
        (np.float64(2) * x, np.float64(2) * a),
        (x[1:, ::-2].T, a[1:, ::-2].T),
        (x[None, ..., 2], a[None, ..., 2]),
        (x[cp.asarray(which), 1], a[which, 1]),
        (x[[0, 2]], a[[0, 2]]),
        (x[which], a[which]),  # CuPy uploads a NumPy index
        (x[cp.asarray(mask)], a[mask]),
        (x.sum(axis=0), a.sum(axis=0)),
        (x.max(axis=1, keepdims=True), a.max(axis=1, keepdims=True)),
        (x.argsort(kind="stable"), a.argsort(kind="stable")),
        (cp.where(x > 0, 1, x), np.where(a > 0, 1, a)),
        (x.reshape(2, -1), a.reshape(2, -1)),
        (x.T.reshape(-1), a.T.reshape(-1)),
        (cp.concatenate((x, y), axis=1), np.concatenate((a, b), axis=1)),
        (cp.cumsum(x > 0), np.cumsum(a > 0)),
        (x @ y.T, a @ b.T),
        (x.take(cp.asarray(which), axis=0), a.take(which, axis=0)),
    ]
    for got, want in pairs:
        assert isinstance(got, cp.ndarray)
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(got.get(), want, rtol=1e-6, atol=1e-6)
    for got, want in ((x, a), (y, b)):  # in place
        got += 1
        got[1:3] *= 2
        got[cp.asarray(mask)] = 7
        got[cp.asarray(which)] = 0
        got[-1] = got[1]
        want += 1
        want[1:3] *= 2
        want[mask] = 7
        want[which] = 0
        want[-1] = want[1]
        np.testing.assert_array_equal(got.get(), want)


def test_sixteen_bit_sums_are_accumulated_in_float32(cp):
    many = np.full(4096, 1, np.float16)
    many[0] = 2048  # in float16, 2048 + 1 is 2048
    assert float(cp.asarray(many).sum()) == np.float16(2048 + 4095)
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    x = cp.asarray(np.full(512, 1, bfloat16))
    assert (x + 1).dtype == bfloat16
    assert x.sum().dtype == bfloat16
    assert float(x.sum()) == 512


def test_integer_indices_wrap_around(cp):
    x = cp.arange(3)
    assert x[cp.asarray([1, 3, -1])].get().tolist() == [1, 0, 2]
    assert x.take(cp.asarray([4])).get().tolist() == [1]
    x[cp.asarray([4])] = 9
    assert x.get().tolist() == [0, 9, 2]


@pytest.mark.parametrize(
    "mix",
    [
        lambda cp, x, a: x + a,
        lambda cp, x, a: a + x,
        lambda cp, x, a: x.__iadd__(a),
        lambda cp, x, a: x @ a,
        lambda cp, x, a: cp.where(x > 0, x, a),
        lambda cp, x, a: cp.maximum(x, a),
        lambda cp, x, a: cp.add(x, 1, out=a),
        lambda cp, x, a: x.__add__([1, 2]),
    ],
)
def test_host_arrays_are_refused(cp, mix):
    with pytest.raises(TypeError):
        mix(cp, cp.ones(2), np.ones(2))


def test_other_operations_that_cupy_refuses(cp):
    x = cp.ones((2, 3))
    with pytest.raises(TypeError, match=REFUSED):
        x + np.ones(3)
    with pytest.raises(TypeError, match=r"Implicit conversion to a NumPy array is not allowed"):
        np.asarray(x)
    with pytest.raises(ValueError, match=r"non-scalar numpy.ndarray cannot be used for fill"):
        x[:] = np.zeros((2, 3))
    with pytest.raises(ValueError, match="kind can only be None or 'stable'"):
        x.argsort(kind="quicksort")
    with pytest.raises(TypeError, match="casting is not supported yet"):
        x.astype(np.float32, casting="safe")
    with pytest.raises(TypeError, match="could not be coerced"):
        cp.add(x, 1, out=cp.zeros((2, 3), int))
    with pytest.raises(ValueError, match="mismatch"):
        cp.add(x, 1, out=cp.zeros((3, 2)))
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cp.asarray(["a"])
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)
    with pytest.raises(TypeError, match="CPU arrays"):
        cp.from_dlpack(np.ones(2))
    assert not hasattr(cp, "errstate")


def test_new_memory_and_freed_memory_are_poisoned(cp):
    assert np.isnan(cp.empty((2, 3), np.float32).get()).all()
    assert np.isnan(cp.empty_like(cp.zeros(3, np.float16)).get()).all()
    assert (cp.empty(3, np.int64).get() == -1).all()
    x = cp.arange(4)
    behind = x._host
    view = x[1:]
    del x
    assert view.get().tolist() == [1, 2, 3], "a view keeps its memory alive"
    del view
    assert (behind == -1).all()


def test_allocations_are_registered_on_their_device_and_dropped_when_freed(cp):
    memories = cp.fake.machine.memories
    with cp.cuda.Device(1):
        x = cp.zeros((3, 5), np.float32)
    block = memories[1].find(x.data.ptr, 60)
    assert (block.address, block.nbytes, x.device.id) == (x.data.ptr, 60, 1)
    with pytest.raises(fakecupy.FakeError, match="no live allocation of device 0"):
        memories[0].find(x.data.ptr)
    with pytest.raises(fakecupy.FakeError):
        memories[1].find(x.data.ptr, 61)
    ptr = x.data.ptr
    assert memories[1].live() == 1
    del x
    assert memories[1].live() == 0
    with pytest.raises(fakecupy.FakeError, match="freed memory"):
        memories[1].find(ptr)


def test_writing_past_the_end_is_detected():
    def overrun(freed):
        with fakecupy.installed() as cp:
            x = cp.zeros(3, np.float32)
            x.data.block().guard[0] = 0
            if freed:
                del x

    for freed in (False, True):
        with pytest.raises(fakecupy.FakeError, match="past the end of <12 bytes"):
            overrun(freed)


def test_out_of_memory(cp):
    keep = cp.zeros(1000)
    cp.fake.limit_memory(1024)
    cp.zeros(64)
    with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="Out of memory allocating 2,048 bytes"):
        cp.zeros(256)
    cp.fake.limit_memory(None)
    cp.zeros(256)
    assert keep.size == 1000
    assert isinstance(cp.cuda.memory.OutOfMemoryError(1, 2), MemoryError)


def test_memory_pointers_and_foreign_arrays(cp):
    x = cp.arange(12, dtype=np.int32)
    y = cp.ndarray((3, 2), np.int32, x.data + 16, strides=(8, 4))
    assert y.get().tolist() == [[4, 5], [6, 7], [8, 9]]

    class Foreign:
        __cuda_array_interface__ = {**x[::2].__cuda_array_interface__, "stream": None}  # noqa: RUF012

    z = cp.asarray(Foreign())
    assert z.data.ptr == x.data.ptr
    assert z.get().tolist() == list(range(0, 12, 2))
    again = cp.from_dlpack(x[3:])
    again[0] = 100
    assert int(x[3]) == 100
    with pytest.raises(cp.cuda.runtime.CUDARuntimeError, match="InvalidValue"):
        cp.cuda.UnownedMemory(np.ones(2).ctypes.data, 16, None)


def test_another_devices_arrays_are_refused(cp):
    x = cp.ones(3)
    with cp.cuda.Device(1):
        for use in (lambda: x + 1, lambda: x.fill(0), lambda: x[cp.asarray([0])], lambda: x.sum()):
            with pytest.raises(ValueError, match="different from the current device"):
                use()
        copy = cp.asarray(x)
        assert (copy.device.id, copy.get().tolist()) == (1, [1, 1, 1])
        assert x.get().tolist() == [1, 1, 1]
    assert cp.cuda.Device().id == 0


def test_devices_streams_and_handles_are_per_thread(cp):
    seen = []

    def other():
        seen.append((cp.cuda.Device().id, cp.cuda.get_current_stream().ptr, cp.cuda.device.get_cublas_handle()))

    with cp.cuda.Device(1), cp.cuda.Stream():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        mine = cp.cuda.device.get_cublas_handle()
        assert mine == cp.cuda.device.get_cublas_handle()
    assert seen[0][:2] == (0, 0)
    assert len({mine, seen[0][2], cp.cuda.device.get_cublas_handle()}) == 3, "one per thread and device"
