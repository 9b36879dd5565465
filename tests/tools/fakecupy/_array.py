"""`cupy.ndarray`: an array in simulated device memory. Only CuPy's functions give access to its bytes."""

from __future__ import annotations

import math
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.tools.fakecupy import _launch, _state
from tests.tools.fakecupy._operators import Operators
from tests.tools.fakecupy._pointers import MemoryPointer, alloc


class Flags:
    """`ndarray.flags`: contiguity, and whether the array owns its memory."""

    def __init__(self, c_contiguous: bool, f_contiguous: bool, owndata: bool) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata

    @property
    def fnc(self) -> bool:
        return self.f_contiguous and not self.c_contiguous

    @property
    def forc(self) -> bool:
        return self.f_contiguous or self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


class ndarray(Operators):
    """`cupy.ndarray(shape, dtype, memptr, strides, order)`: memory at `memptr`, or new memory filled with NaN bytes."""

    __array_priority__ = 100

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str | None = "C"
    ) -> None:
        shape = (int(shape),) if np.ndim(shape) == 0 else tuple(int(n) for n in shape)
        if any(n < 0 for n in shape):
            raise ValueError("Negative dimensions are not allowed")
        kind = _launch.check_dtype(dtype)
        if memptr is None and strides is not None:
            raise ValueError("memptr must be given with strides")
        size = math.prod(shape) * kind.itemsize
        self.data: MemoryPointer = alloc(size) if memptr is None else memptr
        self.base: Any = None
        self._host = self._at(self.data, shape, kind, strides, order or "C", size)

    @staticmethod
    def _at(pointer: MemoryPointer, shape: Any, kind: np.dtype, strides: Any, order: str, size: int) -> np.ndarray:
        if size == 0:
            return np.empty(shape, kind, order=order)  # type: ignore[call-overload]
        before = 0  # bytes before the first element that negative strides reach
        if strides is not None:
            reach = [(n - 1) * step for n, step in zip(shape, strides, strict=True)]
            before = -sum(step for step in reach if step < 0)
            size = kind.itemsize + sum(map(abs, reach))
        block = _state.machine().memories[pointer.device_id].find(pointer.ptr - before, size)
        start = pointer.ptr - before - block.address
        return np.ndarray(shape, kind, block.buffer[start : start + size], before, strides, order)  # type: ignore[arg-type]

    def _view(self, host: np.ndarray) -> ndarray:
        """An array over the same memory. host: a NumPy view of this array's bytes."""
        view = object.__new__(ndarray)
        offset = host.ctypes.data - self._host.ctypes.data if host.size else 0
        view._host, view.data = host, self.data + offset
        view.base = self if self.base is None else self.base
        return view

    # Attributes

    strides = property(lambda self: self._host.strides)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    device = property(lambda self: self.data.device)
    T = property(lambda self: self.transpose())
    mT = property(lambda self: self.swapaxes(-1, -2))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        host = self._host.view()
        host.shape = shape
        self._host = host

    @property
    def flags(self) -> Flags:
        flags = self._host.flags
        return Flags(flags.c_contiguous, flags.f_contiguous, self.base is None)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        name = self.dtype.str if self.dtype.kind != "V" else "<V2"
        stream = _state.machine().streams.current().ptr
        return {
            "shape": self.shape,
            "typestr": name,
            "descr": [("", name)],
            "stream": stream or 1,
            "version": 3,
            "strides": None if self.flags.c_contiguous else self.strides,
            "data": (self.data.ptr if self.size else 0, False),
        }

    # Copies to the host, which synchronise

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        """A copy on the host. Waits for the stream unless `blocking` is False or the array is empty."""
        machine = _state.machine()
        stream = machine.streams.current() if stream is None else stream
        if out is not None and (not isinstance(out, np.ndarray) or out.dtype != self.dtype):
            raise TypeError(f"{getattr(out, 'dtype', type(out))} array cannot be obtained from {self.dtype} array")
        if out is not None and out.shape != self.shape:
            raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
        if out is None and self.size == 0:
            return np.empty(self.shape, self.dtype)
        order = ("F" if self.flags.fnc else "C") if order.upper() == "A" else order
        if out is None:
            out = np.empty(self.shape, self.dtype, order=order)  # type: ignore[call-overload]
        source = self._host
        self._alive()

        def work() -> None:
            out[...] = source

        node = _launch.Node("memcpy", ("memcpys", "device to host"), work, _launch.blocks_of(self))
        before = machine.device()
        machine.set_device(self.data.device_id)
        try:
            machine.streams.submit(node, stream.ptr, (self,))
            if blocking:
                machine.streams.synchronise(stream.ptr, "get")
        finally:
            machine.set_device(before)
        return out

    def _alive(self) -> None:
        for block in _launch.blocks_of(self):
            if not block.alive:
                raise _launch.FakeError(f"reads freed memory: {block!r}")

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        arr = np.ascontiguousarray(arr) if self.flags.c_contiguous else np.asfortranarray(arr)
        self.data.copy_from_host_async(arr.ctypes.data, self.nbytes, stream)

    def item(self) -> Any:
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        return self.get().item()

    def __bool__(self) -> bool:
        if self.size == 0:
            warnings.warn("The truth value of an empty array is ambiguous.", DeprecationWarning, stacklevel=2)
            return False
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self.get().tobytes(order)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __reduce__(self) -> Any:
        from tests.tools.fakecupy._functions import array

        return array, (self.get(order="A"),)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        from tests.tools.fakecupy._device import Device

        with Device(self.data.device_id):
            return self.copy()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.data.device_id)

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        """A capsule of CUDA memory. Raises BufferError for another device and, unlike CuPy, for the CPU."""
        from tests.tools.fakecupy._interop import export

        if dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("unsupported device requested.")
        return export(self, stream)

    # Containers

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[ndarray]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[index] for index in range(self.shape[0]))

    def __getitem__(self, index: Any) -> ndarray:
        from tests.tools.fakecupy._indexing import getitem

        return getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        from tests.tools.fakecupy._indexing import setitem

        setitem(self, index, value)

    def __class_getitem__(cls, item: Any) -> Any:
        return types.GenericAlias(ndarray, item)
