"""Memory that the Numba backend caches between calls: a workspace per thread, and weights packed for inference.

Packed weights are cached under the arrays that they were packed from. They are valid while those arrays hold the same
values: the kernels compute a digest of the weights at every call (kernels/cpu/digest.py), which takes a fraction of the
time of packing. Arrays that nothing can write to (rnnkit/core/read_only.py) need no digest.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np

# A thread's workspace stays allocated for its next call up to this many bytes. Fresh memory costs a page fault per
# 4 KiB, which takes as long as packing the weights does.
MAX_CACHED_WORKSPACE = 64 << 20
# Packed weights are cached from the first number of bytes on: below it packing costs as much as the digest. The cache
# holds at most the second number in all, and drops the least recently used weights.
MIN_CACHED_PACKED = 96 << 10
MAX_CACHED_PACKED = 128 << 20
LINE = 64  # bytes of a cache line
TRUSTED = 2  # index of the header word that is 1 if no digest is needed


class AlignedBuffer(NamedTuple):
    """Memory and its address. The address is valid while `memory` is referenced."""

    memory: np.ndarray  # (size,) uint8
    address: int


EMPTY_BUFFER = AlignedBuffer(np.empty(0, np.uint8), 0)


def aligned(size: int) -> AlignedBuffer:
    """`size` uninitialised bytes, aligned to a cache line, so that no vector crosses one."""
    whole = np.empty(size + LINE, np.uint8)
    start = -whole.ctypes.data % LINE
    return AlignedBuffer(whole[start : start + size], whole.ctypes.data + start)


class Workspaces(threading.local):
    """Each thread's workspace."""

    def __init__(self) -> None:
        self.buffer = EMPTY_BUFFER

    def get(self, size: int) -> AlignedBuffer:
        """At least `size` bytes, the cached ones if they suffice."""
        buffer = self.buffer
        if buffer.memory.nbytes < size:
            del buffer
            self.buffer = EMPTY_BUFFER  # frees the old memory before the new memory is allocated
            buffer = aligned(size)
            if size <= MAX_CACHED_WORKSPACE:
                self.buffer = buffer
        return buffer

    def clear(self) -> None:
        """Frees the calling thread's memory."""
        self.buffer = EMPTY_BUFFER


class PackedLayer:
    """One layer's packed weights, after a header of one cache line for their digest. One call at a time owns them.

    claims: OWNER -> the call that owns them, empty if none does. Calls claim and release them as
    rnnkit/core/thread_pool.py describes.
    """

    def __init__(self, size: int) -> None:
        self.claims: dict[str, object] = {}
        self.buffer = aligned(LINE + size)
        self._header = self.buffer.memory[:LINE].view(np.int64)
        self._header[:] = 0
        self._packed: tuple[weakref.ref[np.ndarray], ...] = ()

    def set_trusted(self, arrays: tuple[np.ndarray, ...]) -> None:
        """Before a call: tells the kernels whether these read-only arrays are the ones given to `record_packed`."""
        packed = self._packed
        self._header[TRUSTED] = len(packed) == len(arrays) > 0 and all(
            r() is a for r, a in zip(packed, arrays, strict=True)
        )

    def record_packed(self, arrays: tuple[np.ndarray, ...]) -> None:
        """After a call: records the read-only arrays whose values are packed here.

        Weak references: a new array that reuses a freed array's id is not mistaken for it.
        """
        if not self._header[TRUSTED]:
            self._packed = tuple(map(weakref.ref, arrays))


class PackedWeightsCache:
    """The most recently used packed weights, under any hashable key that determines their size and layout."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: OrderedDict[Hashable, PackedLayer] = OrderedDict()

    def get(self, key: Hashable, size: int) -> PackedLayer:
        """The entry under `key`, new if there is none. Another call may own it."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                found = PackedLayer(size)
                self._entries[key] = found
                # The total is summed anew: a running total would be wrong after an exception between two updates.
                while len(self._entries) > 1 and self._total_bytes() > MAX_CACHED_PACKED:
                    self._entries.popitem(last=False)
            else:
                self._entries.move_to_end(key)
        return found

    def _total_bytes(self) -> int:
        return sum(entry.buffer.memory.nbytes for entry in self._entries.values())

    def clear(self) -> None:
        """Frees all packed weights."""
        with self._lock:
            self._entries.clear()

    def reset_after_fork(self) -> None:
        """In a forked child: threads that do not exist there may hold locks or have left weights half packed."""
        self._lock = threading.RLock()
        self._entries = OrderedDict()


def is_cached(size: int) -> bool:
    """Whether packed weights of this many bytes are cached between calls."""
    return MIN_CACHED_PACKED <= size <= MAX_CACHED_PACKED
