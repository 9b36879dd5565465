"""The live buffers of a "device": which addresses a kernel may touch."""

from __future__ import annotations

import bisect
import threading

import numpy as np

from tests.tools.emulator.errors import EmulatorError


class Memory:
    """A set of address ranges in host memory that act as device allocations. Thread-safe.

    In check mode each access of a kernel must lie within one of them or within shared memory, whatever the pointer's
    origin.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffers: dict[int, tuple[int, bool]] = {}
        self._starts: list[int] = []  # their addresses, in order
        self._table: np.ndarray | None = None

    def add(self, address: int, nbytes: int, writable: bool = True) -> None:
        """Registers [address, address + nbytes). Raises EmulatorError if it overlaps a live buffer."""
        address, nbytes = int(address), int(nbytes)
        if address < 0 or nbytes < 0:
            raise EmulatorError(f"a buffer of {nbytes} bytes at {address:#x}", "arguments")
        with self._lock:
            clash = self._overlap(address, nbytes)
            if clash is not None:
                raise EmulatorError(
                    f"{nbytes} bytes at {address:#x} overlap the live buffer at {clash:#x}", "arguments"
                )
            self._buffers[address] = (nbytes, bool(writable))
            bisect.insort(self._starts, address)
            self._table = None

    def remove(self, address: int) -> None:
        """Removes the buffer at `address`. Raises EmulatorError if none begins there, for example at a double free."""
        with self._lock:
            if self._buffers.pop(int(address), None) is None:
                raise EmulatorError(f"no live buffer begins at {int(address):#x}", "arguments")
            del self._starts[bisect.bisect_left(self._starts, int(address))]
            self._table = None

    def __contains__(self, address: int) -> bool:
        """Whether the byte at `address` is in a live buffer."""
        table = self.table()
        at = int(np.searchsorted(table[:, 0], np.uint64(int(address)), side="right")) - 1
        return at >= 0 and int(address) < int(table[at, 0]) + int(table[at, 1])

    def __len__(self) -> int:
        return len(self._buffers)

    def table(self) -> np.ndarray:
        """(buffers, 3) uint64: address, bytes, writable; sorted by address. Read-only."""
        with self._lock:
            if self._table is None:
                rows = [(a, n, int(w)) for a in self._starts for n, w in [self._buffers[a]] if n]
                self._table = np.array(rows, np.uint64).reshape(len(rows), 3)
            return self._table

    def _overlap(self, address: int, nbytes: int) -> int | None:
        """The address of a live buffer that overlaps these bytes, or begins with them."""
        after = bisect.bisect_left(self._starts, address)
        for other in self._starts[max(after - 1, 0) : after + 1]:
            if other == address or (address < other + self._buffers[other][0] and other < address + nbytes):
                return other
        return None
