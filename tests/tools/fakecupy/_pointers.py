"""`cupy.cuda.MemoryPointer`, the memory pool's face, and copies between addresses."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.tools.fakecupy import _state
from tests.tools.fakecupy._errors import CUDARuntimeError
from tests.tools.fakecupy._memory import BaseMemory, Block, PooledMemory
from tests.tools.fakecupy._streams import Node

HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = 1, 2, 3, 4
KINDS = {
    0: "host to host",
    HOST_TO_DEVICE: "host to device",
    DEVICE_TO_HOST: "device to host",
    DEVICE_TO_DEVICE: "device to device",
}


class MemoryPointer:
    """A place in a piece of memory, which it keeps alive."""

    def __init__(self, mem: BaseMemory, offset: int) -> None:
        if mem.ptr == 0 and offset:
            raise AssertionError("an offset into no memory")
        self.mem, self.ptr, self.device_id = mem, mem.ptr + offset, mem.device_id

    def __int__(self) -> int:
        return self.ptr

    @property
    def device(self) -> Any:
        return self.mem.device

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    __radd__ = __add__

    def __sub__(self, offset: int) -> MemoryPointer:
        return self + -offset

    def block(self) -> Block | None:
        """The allocation behind it, None for no memory. Raises FakeError where it is freed."""
        if self.ptr == 0:
            return None
        own = getattr(self.mem, "block", None)
        return own if own is not None else _state.machine().memories[self.device_id].find(self.ptr)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Any = None) -> None:
        memcpy_async(self.ptr, src.ptr, size, DEVICE_TO_DEVICE, _ptr(stream), (self, src))

    def copy_from_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        memcpy_async(self.ptr, int(getattr(mem, "value", mem)), size, HOST_TO_DEVICE, _ptr(stream), (self,))

    def copy_to_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        memcpy_async(int(getattr(mem, "value", mem)), self.ptr, size, DEVICE_TO_HOST, _ptr(stream), (self,))

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        memset_async(self.ptr, value, size, _ptr(stream), (self,))

    def copy_from_async(self, mem: Any, size: int, stream: Any = None) -> None:
        if isinstance(mem, MemoryPointer):
            self.copy_from_device_async(mem, size, stream)
        else:
            self.copy_from_host_async(mem, size, stream)


def _ptr(stream: Any) -> int:
    return (_state.machine().streams.current() if stream is None else stream).ptr


class _Allocator(threading.local):
    """What this thread allocates with inside `using_allocator`; None for the pool."""

    malloc: Any = None


_allocator = _Allocator()


def alloc(size: int) -> MemoryPointer:
    """`cupy.cuda.alloc`: poisoned memory of the current device."""
    malloc = _allocator.malloc
    return MemoryPointer(PooledMemory(int(size)), 0) if malloc is None else malloc(int(size))


@contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    """`cupy.cuda.using_allocator`: for this thread."""
    before = _allocator.malloc
    _allocator.malloc = allocator
    try:
        yield
    finally:
        _allocator.malloc = before


class PythonFunctionAllocator:
    """`cupy.cuda.PythonFunctionAllocator`: `malloc_func(size, device_id)` gives memory, and `free_func(ptr, device_id)`
    frees it."""

    def __init__(self, malloc_func: Any, free_func: Any) -> None:
        self._malloc, self._free = malloc_func, free_func

    def malloc(self, size: int) -> MemoryPointer:
        device = _state.machine().device()
        memory = BaseMemory(self._malloc(size, device), size, device)
        weakref.finalize(memory, self._free, memory.ptr, device).atexit = False
        return MemoryPointer(memory, 0)


def _bytes_at(address: int, size: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))


def _device_block(address: int, size: int) -> Block:
    machine = _state.machine()
    for memory in machine.memories:
        if memory.holds(address):
            return memory.find(address, size)
    return machine.memory().find(address, size)  # raises, and says whether it was freed


def memcpy_async(dst: int, src: int, size: int, kind: int, stream: int, owners: tuple[Any, ...] = ()) -> None:
    """`runtime.memcpyAsync`. Bytes from the host are read now, as a copy out of pageable memory reads them.

    In a capture a copy from the host is refused: CuPy stages it in pinned memory that its pool takes back, so that a
    replay would read what is there by then.
    """
    if size == 0:
        return
    kind = _resolve(dst, src) if kind == DEFAULT else kind
    blocks: list[Block] = []
    if kind in (HOST_TO_DEVICE, DEVICE_TO_DEVICE):
        blocks.append(_device_block(dst, size))
    if kind in (DEVICE_TO_HOST, DEVICE_TO_DEVICE):
        blocks.append(_device_block(src, size))
    capture = _state.machine().streams.queue(stream).capture
    if capture is not None and kind == HOST_TO_DEVICE:
        raise capture.invalidate(900, "a copy from the host: upload before the capture")
    target = _bytes_at(dst, size)
    source = _bytes_at(src, size)
    if kind == HOST_TO_DEVICE:
        source = source.copy()

    def work() -> None:
        target[...] = source

    _state.machine().streams.submit(Node("memcpy", ("memcpys", KINDS[kind]), work, tuple(blocks)), stream, owners)


def _resolve(dst: int, src: int) -> int:
    holds = [any(memory.holds(address) for memory in _state.machine().memories) for address in (dst, src)]
    return {(True, True): DEVICE_TO_DEVICE, (True, False): HOST_TO_DEVICE, (False, True): DEVICE_TO_HOST}.get(
        (holds[0], holds[1]), 0
    )


def memset_async(address: int, value: int, size: int, stream: int, owners: tuple[Any, ...] = ()) -> None:
    """`runtime.memsetAsync`."""
    if size == 0:
        return
    block = _device_block(address, size)
    if block.device != _state.machine().device():
        raise CUDARuntimeError(1, f"{block!r} while device {_state.machine().device()} is current")
    target = _bytes_at(address, size)

    def work() -> None:
        target[...] = value

    _state.machine().streams.submit(Node("memset", ("memsets", None), work, (block,)), stream, owners)


class MemoryPool:
    """`cupy.get_default_memory_pool()`: of the current device, as CuPy's."""

    def malloc(self, size: int) -> MemoryPointer:
        return alloc(size)

    def used_bytes(self) -> int:
        return _state.machine().memory().used

    def free_bytes(self) -> int:
        return _state.machine().memory().pooled()

    def total_bytes(self) -> int:
        return self.used_bytes() + self.free_bytes()

    def n_free_blocks(self) -> int:
        return sum(sum(pool.values()) for pool in _state.machine().memory()._free_sizes.values())

    def free_all_blocks(self, stream: Any = None) -> None:
        _state.machine().memory().free_pooled()

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if (size is None) == (fraction is None):
            raise ValueError("exactly one of size and fraction must be given")
        total = _state.machine().attributes["TotalMemory"]
        _state.machine().memory().limit = (size or None) if fraction is None else int(fraction * total)

    def get_limit(self) -> int:
        return _state.machine().memory().limit or 0
