"""Arrays of other libraries: `__cuda_array_interface__` and DLPack.

A DLPack capsule is a Python object here, not a PyCapsule. Only this package reads it: no other library can use
simulated CUDA memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.tools.fakecupy import _launch, _state
from tests.tools.fakecupy._array import ndarray
from tests.tools.fakecupy._memory import UnownedMemory
from tests.tools.fakecupy._pointers import MemoryPointer
from tests.tools.fakecupy._stream_api import LEGACY, _BaseStream


class Capsule:
    """The result of `ndarray.__dlpack__`; it can be consumed once."""

    def __init__(self, array: ndarray) -> None:
        self.array: ndarray | None = array


def export(array: ndarray, stream: Any) -> Capsule:
    """`array` for a consumer on `stream` (None or an int), which waits for CuPy's current stream unless it is -1."""
    if stream is not None and (not isinstance(stream, int) or stream < -1):
        raise ValueError(
            f"On CUDA, the valid stream for the DLPack protocol is -1, 1, 2, or any larger value, but {stream} was "
            "provided"
        )
    consumer = LEGACY if stream in (None, 0) else stream
    current = _state.machine().streams.current()
    if consumer >= 0 and consumer != (current.ptr or LEGACY):
        _BaseStream(consumer, -1).wait_event(current.record())
    return Capsule(array)


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    """A device array over the memory of another one. Raises TypeError for host memory."""
    if not hasattr(array, "__dlpack_device__"):
        return _taken(array)
    kind, index = array.__dlpack_device__()
    if device is not None:
        raise NotImplementedError("from_dlpack() does not support device yet.")
    if kind == 1:
        raise TypeError(
            "CPU arrays cannot be directly imported to CuPy. Use `cupy.array(numpy.from_dlpack(input))` instead."
        )
    if kind not in (2, 13):
        raise TypeError(f"Unsupported array type: {kind}")
    machine = _state.machine()
    before = machine.device()
    machine.set_device(index)
    try:
        stream = machine.streams.current().ptr or LEGACY
        try:
            capsule = array.__dlpack__(stream=stream, max_version=(1, 1), copy=copy)
        except TypeError:  # a producer older than DLPack 1.0
            if copy is not None:
                raise
            capsule = array.__dlpack__(stream=stream)
    finally:
        machine.set_device(before)
    return _taken(capsule)


def _taken(capsule: Any) -> ndarray:
    if not isinstance(capsule, Capsule) or capsule.array is None:
        raise ValueError("A DLPack tensor object cannot be consumed multiple times")
    array, capsule.array = capsule.array, None
    memory = UnownedMemory(array.data.ptr, array.nbytes, array, array.data.device_id)
    return ndarray(array.shape, array.dtype, MemoryPointer(memory, 0), array.strides)


def from_interface(obj: Any) -> ndarray:
    """A device array over the memory that `obj.__cuda_array_interface__` describes. Waits for the stream in it."""
    described = obj.__cuda_array_interface__
    if described.get("mask") is not None:
        raise ValueError("CuPy currently does not support masked arrays.")
    dtype = np.dtype(described["typestr"])
    if dtype == np.dtype("V2") and _launch.bfloat16() is not None:
        dtype = _launch.bfloat16()
    shape, strides, address = described["shape"], described.get("strides"), described["data"][0]
    size = int(np.prod(shape)) * dtype.itemsize
    memory = UnownedMemory(address, size, obj, -1 if size else _state.machine().device())
    if described.get("stream") is not None:
        _state.machine().streams.synchronise(described["stream"], "interface")
    return ndarray(shape, dtype, MemoryPointer(memory, 0), strides)
