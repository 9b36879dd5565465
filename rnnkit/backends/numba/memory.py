"""Memory that the Numba backend keeps between calls: a thread's scratch, and weights packed for inference.

Packed weights are looked up by the arrays they came from and stay good while those hold what they held: the kernels
read a digest of the weights at every call (kernels/cpu/digest.py), which takes a fraction of packing them anew. Of
arrays that nothing can write to (rnnkit/core/read_only.py) they need none.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

# Scratch memory stays with a thread for its next call, up to this many bytes: fresh memory costs a page fault for each
# 4 KiB, which is as long as packing the weights takes.
KEPT_SCRATCH = 64 << 20
# Packed weights are kept from so many bytes on, below which packing costs what a digest does; and so many in all, those
# used last.
KEPT_PACKED_FROM, KEPT_PACKED = 96 << 10, 128 << 20
LINE = 64
TRUSTED = 2  # the word of that line which says that no digest is needed


class Room(NamedTuple):
    """Memory and its address, which is good as long as the memory is held."""

    memory: np.ndarray
    address: int


NOTHING = Room(np.empty(0, np.uint8), 0)


def aligned(size: int) -> Room:
    """`size` bytes of any contents, from an address that vectors do not straddle."""
    whole = np.empty(size + LINE, np.uint8)
    start = -whole.ctypes.data % LINE
    return Room(whole[start : start + size], whole.ctypes.data + start)


class Scratch(threading.local):
    """Each thread's scratch memory."""

    def __init__(self) -> None:
        self.room = NOTHING

    def get(self, size: int) -> Room:
        """`size` bytes, or more."""
        room = self.room
        if room.memory.nbytes < size:
            del room
            self.room = NOTHING  # the old memory goes before the new comes
            room = aligned(size)
            if size <= KEPT_SCRATCH:
                self.room = room
        return room

    def clear(self) -> None:
        """Gives the calling thread's memory back."""
        self.room = NOTHING


class Packed:
    """One layer's packed weights: a line for their digest, then themselves. One call at a time may have them.

    claims: OWNER -> the call that has them, empty where none has; claimed and given back as rnnkit/core/thread_pool.py
    says.
    """

    def __init__(self, size: int) -> None:
        self.claims: dict[str, object] = {}
        self.room = aligned(LINE + size)
        self._line = self.room.memory[:LINE].view(np.int64)
        self._line[:] = 0
        self._packed: tuple[weakref.ref[np.ndarray], ...] = ()

    def trust(self, arrays: tuple[np.ndarray, ...]) -> None:
        """Before a call: tells the kernels whether these constant arrays are those of `note_packed`."""
        packed = self._packed
        self._line[TRUSTED] = len(packed) == len(arrays) > 0 and all(
            r() is a for r, a in zip(packed, arrays, strict=True)
        )

    def note_packed(self, arrays: tuple[np.ndarray, ...]) -> None:
        """After a call with them. Held weakly: an array that is gone is no other one, whatever that one's id."""
        if not self._line[TRUSTED]:
            self._packed = tuple(map(weakref.ref, arrays))


class PackedWeights:
    """Those used last, by any hashable key that decides their size and layout."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held: OrderedDict[Hashable, Packed] = OrderedDict()

    def of(self, key: Hashable, size: int) -> Packed:
        """The memory under `key`, which another call may have."""
        with self._lock:
            found = self._held.get(key)
            if found is None:
                found = self._held[key] = Packed(size)
                # Counted anew: a count that is kept would be wrong after an exception between it and what it counts.
                while len(self._held) > 1 and sum(p.room.memory.nbytes for p in self._held.values()) > KEPT_PACKED:
                    self._held.popitem(last=False)
            else:
                self._held.move_to_end(key)
        return found

    def clear(self) -> None:
        """Gives all of it back."""
        with self._lock:
            self._held.clear()

    def start_anew(self) -> None:
        """In a forked child: locks may be held, and weights half packed, by threads that do not exist there."""
        self._lock = threading.RLock()
        self._held = OrderedDict()


def is_kept(size: Any) -> bool:
    """Whether packed weights of so many bytes stay between calls."""
    return KEPT_PACKED_FROM <= size <= KEPT_PACKED
