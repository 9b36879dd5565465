"""Device memory: blocks of host memory that act as allocations, registered while they have an owner.

A block is filled with 0xFF bytes, NaN in every float dtype and -1 in every integer dtype, when it is allocated and when
it is freed. The address of a freed block is not reused until QUARANTINE_BYTES more are freed, so an access through a
stale pointer is detected and does not reach another array.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from collections import Counter, deque
from typing import Any

import numpy as np

from tests.tools.fakecupy import _state
from tests.tools.fakecupy._errors import CUDARuntimeError, FakeError, OutOfMemoryError

POISON = 0xFF
GUARD = 0xA5
GUARD_BYTES = 64
ALIGNMENT = 512  # cudaMalloc's
QUARANTINE_BYTES = 32 << 20


class Block:
    """One allocation: `buffer` is its bytes, `alive` until it is freed."""

    def __init__(self, nbytes: int, device: int) -> None:
        self.nbytes, self.device, self.alive = nbytes, device, True
        whole = np.empty(nbytes + 2 * ALIGNMENT + GUARD_BYTES, np.uint8)
        start = -whole.ctypes.data % ALIGNMENT
        self.buffer = whole[start : start + nbytes]
        self.guard = whole[start + nbytes : start + nbytes + GUARD_BYTES]
        self.buffer[...], self.guard[...] = POISON, GUARD
        self.address: int = self.buffer.ctypes.data

    def __repr__(self) -> str:
        return f"<{self.nbytes} bytes at {self.address:#x} on device {self.device}>"


class DeviceMemory:
    """The live blocks of one device, by address, and also in the emulator's registry once a kernel ran."""

    def __init__(self, machine: Any, device: int) -> None:
        self.machine, self.device = machine, device
        self.limit: int | None = None
        self.used = 0
        self._free_sizes: dict[int, Counter[int]] = {}  # stream -> sizes of its free blocks in the pool
        self._addresses: list[int] = []
        self._blocks: dict[int, Block] = {}
        self._quarantine: deque[Block] = deque()
        self._quarantined = 0
        self._emulated: Any = None
        self._lock = threading.RLock()

    def allocate(self, nbytes: int, stream: int) -> Block:
        with self._lock:
            size = -(-nbytes // ALIGNMENT) * ALIGNMENT
            if self.limit is not None and self.used + size > self.limit:
                raise OutOfMemoryError(size, self.used, self.limit)
            self.used += size
            self.machine.tallies.add("allocations")
            self.machine.tallies.add("allocated_bytes", amount=nbytes)
            pool = self._free_sizes.setdefault(stream, Counter())
            if pool[size]:
                pool[size] -= 1
            else:
                self.machine.tallies.add("device_mallocs")
                self.machine.streams.reject_malloc_in_strict_capture()
            block = Block(nbytes, self.device)
            bisect.insort(self._addresses, block.address)
            self._blocks[block.address] = block
            if self._emulated is not None:
                self._emulated.add(block.address, block.nbytes, writable=True)
            return block

    def free(self, block: Block, stream: int) -> None:
        """Frees a block in stream order, on the stream of its allocation, as CuPy's pool does."""
        if not self.machine.streams.free_later(self.device, stream, lambda: self.release(block, stream)):
            self.release(block, stream)

    def release(self, block: Block, stream: int) -> None:
        with self._lock:
            if not block.alive:
                return
            block.alive = False
            size = -(-block.nbytes // ALIGNMENT) * ALIGNMENT
            self.used -= size
            self._free_sizes.setdefault(stream, Counter())[size] += 1
            self._addresses.pop(bisect.bisect_left(self._addresses, block.address))
            del self._blocks[block.address]
            if self._emulated is not None:
                self._emulated.remove(block.address)
            if (block.guard != GUARD).any():
                self.machine.problems.append(f"a write past the end of {block!r}")
            block.buffer[...] = POISON
            self._quarantine.append(block)
            self._quarantined += block.nbytes
            while self._quarantined > QUARANTINE_BYTES:
                self._quarantined -= self._quarantine.popleft().nbytes

    def find(self, address: int, nbytes: int = 1) -> Block:
        """The live block that contains [address, address + nbytes). Raises FakeError if there is none."""
        with self._lock:
            index = bisect.bisect_right(self._addresses, address) - 1
            if index >= 0:
                block = self._blocks[self._addresses[index]]
                if address + nbytes <= block.address + block.nbytes:
                    return block
            freed = [b for b in self._quarantine if b.address <= address < b.address + b.nbytes]
        where = f"freed memory, {freed[-1]!r}" if freed else f"no live allocation of device {self.device}"
        raise FakeError(f"[{address:#x}, {address + nbytes:#x}) lies in {where}")

    def holds(self, address: int) -> bool:
        with self._lock:
            index = bisect.bisect_right(self._addresses, address) - 1
            if index < 0:
                return False
            block = self._blocks[self._addresses[index]]
            return address < block.address + block.nbytes

    def check_guards(self) -> list[str]:
        """Messages for the live blocks with a write past their end."""
        with self._lock:
            return [f"a write past the end of {b!r}" for b in self._blocks.values() if (b.guard != GUARD).any()]

    def live(self) -> int:
        """The number of allocated blocks."""
        return len(self._blocks)

    def pooled(self) -> int:
        """Bytes of the free blocks in the pool."""
        return sum(size * count for pool in self._free_sizes.values() for size, count in pool.items())

    def free_pooled(self) -> None:
        self._free_sizes.clear()

    def emulated(self) -> Any:
        """The `tests.tools.emulator.Memory` of this device, which from now on contains every live block."""
        with self._lock:
            if self._emulated is None:
                from tests.tools.emulator import Memory

                self._emulated = Memory()
                for block in self._blocks.values():
                    self._emulated.add(block.address, block.nbytes, writable=True)
            return self._emulated


class BaseMemory:
    """`cupy.cuda.BaseMemory`: ptr, size and device of memory that it keeps alive."""

    def __init__(self, ptr: int, size: int, device_id: int) -> None:
        self.ptr, self.size, self.device_id = ptr, size, device_id

    def __int__(self) -> int:
        return self.ptr

    @property
    def device(self) -> Any:
        from tests.tools.fakecupy._device import Device

        return Device(self.device_id)


class PooledMemory(BaseMemory):
    """Memory from the pool; freed with the last reference to it."""

    def __init__(self, size: int) -> None:
        machine = _state.machine()
        device = machine.device()
        super().__init__(0, size, device)
        self.block: Block | None = None
        if size > 0:
            stream = machine.streams.current().ptr
            memory = machine.memories[device]
            self.block = memory.allocate(size, stream)
            self.ptr = self.block.address
            weakref.finalize(self, memory.free, self.block, stream).atexit = False


class Memory(PooledMemory):
    """`cupy.cuda.Memory`: from cudaMalloc, which the simulation treats as the pool."""


class UnownedMemory(BaseMemory):
    """`cupy.cuda.UnownedMemory`: memory that `owner` keeps alive. It must lie in a live allocation of a fake device."""

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        if device_id < 0:
            if ptr == 0:
                raise RuntimeError("UnownedMemory requires explicit device ID for a null pointer.")
            device_id = device_of_pointer(ptr)
        super().__init__(ptr, size, device_id)
        self._owner = owner


def device_of_pointer(ptr: int) -> int:
    """The device of `ptr`, as cudaPointerGetAttributes returns it. Raises CUDARuntimeError for host memory."""
    for memory in _state.machine().memories:
        if memory.holds(ptr):
            return memory.device
    raise CUDARuntimeError(1, f"{ptr:#x} is not device memory")
