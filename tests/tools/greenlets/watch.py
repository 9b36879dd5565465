"""Arrays that notice a data race: two threads at one place, at least one of them writing, and no barrier between them.

A place is an address, so that arrays which share memory share it here too. Whether two accesses race does not depend on
the order in which the threads ran, so one run finds what would show on a device now and then. Threads of different
blocks have no barrier in common: any two of them race.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from tests.tools.greenlets.block import Grid, KernelError

Who = tuple[int, int, int]  # block, thread, phase


class Log:
    """The last write and the reads of one phase at every place."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._written: dict[int, Who] = {}
        self._read: dict[int, set[Who]] = {}

    def read(self, place: int) -> None:
        me = self._me()
        writer = self._written.get(place)
        if writer is not None and _unordered(me, writer):
            raise KernelError(f"race: thread {me[1]} of block {me[0]} reads what thread {writer[1]} has just written")
        readers = self._read.setdefault(place, set())
        readers.difference_update([r for r in readers if r[0] == me[0] and r[2] < me[2]])
        readers.add(me)

    def write(self, place: int) -> None:
        me = self._me()
        for other in (*self._read.get(place, ()), *([self._written[place]] if place in self._written else ())):
            if _unordered(me, other):
                raise KernelError(f"race: thread {me[1]} of block {me[0]} writes what thread {other[1]} has just used")
        self._written[place] = me

    def _me(self) -> Who:
        return self._grid.block, self._grid.thread, self._grid.phase


def _unordered(one: Who, other: Who) -> bool:
    """Whether no barrier, and no thread's own order, stands between the two."""
    return one[0] != other[0] or (one[1] != other[1] and one[2] == other[2])


class Watched:
    """An array, or a part of one, as a kernel sees it: indices and slices, reads and writes of single numbers."""

    def __init__(self, array: np.ndarray, log: Log, places: np.ndarray | None = None) -> None:
        self._array, self._log = array, log
        self.shape = array.shape
        if places is None:
            steps = [np.arange(n) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
            places = array.__array_interface__["data"][0] + sum(np.ix_(*steps))
        self._places = places

    def __getitem__(self, index: Any) -> Any:
        index = self._checked(index)
        places = self._places[index]
        if places.ndim:
            return Watched(self._array[index], self._log, places)
        self._log.read(int(places))
        return self._array[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        index = self._checked(index)
        if self._places[index].ndim:
            raise KernelError("a whole row assigned at once")
        self._log.write(int(self._places[index]))
        self._array[index] = value

    def _checked(self, index: Any) -> tuple[Any, ...]:
        index = index if isinstance(index, tuple) else (index,)
        for i, n in zip(index, self.shape, strict=False):
            if not isinstance(i, slice) and not 0 <= operator.index(i) < n:
                raise KernelError(f"index {index} of an array of shape {self.shape}")
        return index
