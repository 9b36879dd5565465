"""Arrays that detect data races: two threads access one address without a barrier between, and at least one writes.

Addresses identify the elements, so races between arrays that share memory are found. Whether two accesses race does not
depend on the order in which the threads ran, so one run finds races that a device exposes only occasionally. No
barrier orders threads of different blocks, so any two such accesses race.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from tests.tools.greenlets.block import Grid, KernelError

Who = tuple[int, int, int]  # block, thread, phase


class Log:
    """The last write to each address, and the reads of it in the current phase."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._written: dict[int, Who] = {}
        self._read: dict[int, set[Who]] = {}

    def read(self, address: int) -> None:
        me = self._me()
        writer = self._written.get(address)
        if writer is not None and _unordered(me, writer):
            raise KernelError(f"race: thread {me[1]} of block {me[0]} reads an element that thread {writer[1]} wrote")
        readers = self._read.setdefault(address, set())
        readers.difference_update([r for r in readers if r[0] == me[0] and r[2] < me[2]])
        readers.add(me)

    def write(self, address: int) -> None:
        me = self._me()
        writes = [self._written[address]] if address in self._written else []
        for other in (*self._read.get(address, ()), *writes):
            if _unordered(me, other):
                where = f"thread {me[1]} of block {me[0]}"
                raise KernelError(f"race: {where} writes an element that thread {other[1]} used")
        self._written[address] = me

    def _me(self) -> Who:
        return self._grid.block, self._grid.thread, self._grid.phase


def _unordered(one: Who, other: Who) -> bool:
    """Whether neither a barrier nor the program order of one thread separates the two accesses."""
    return one[0] != other[0] or (one[1] != other[1] and one[2] == other[2])


class Watched:
    """An array or a part of one, as a kernel uses it: indexing, slicing, reads and writes of single elements."""

    def __init__(self, array: np.ndarray, log: Log, addresses: np.ndarray | None = None) -> None:
        self._array = array
        self._log = log
        self.shape = array.shape
        if addresses is None:
            offsets = [np.arange(n) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
            addresses = array.__array_interface__["data"][0] + sum(np.ix_(*offsets))
        self._addresses = addresses

    def __getitem__(self, index: Any) -> Any:
        index = self._checked(index)
        addresses = self._addresses[index]
        if addresses.ndim:
            return Watched(self._array[index], self._log, addresses)
        self._log.read(int(addresses))
        return self._array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        index = self._checked(index)
        if self._addresses[index].ndim:
            raise KernelError("a kernel can assign only one element")
        self._log.write(int(self._addresses[index]))
        self._array[index] = value

    def _checked(self, index: Any) -> tuple[Any, ...]:
        index = index if isinstance(index, tuple) else (index,)
        for i, n in zip(index, self.shape, strict=False):
            if not isinstance(i, slice) and not 0 <= operator.index(i) < n:
                raise KernelError(f"index {index} of an array of shape {self.shape}")
        return index
