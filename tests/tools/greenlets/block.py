"""The threads of a block: greenlets that run one after the other between barriers."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet

ENDED = 0  # in place of a barrier's line number: the thread has ended


class KernelError(Exception):
    """A kernel did something that is not allowed."""


class Grid:
    """One launch: its `cuda` object and the scheduling of its threads. `phase` counts the barriers of a block.

    The same greenlets run all blocks, one after the other, since creating a greenlet costs more than most blocks do.
    """

    def __init__(self, blocks: int, threads: int, seed: int | None) -> None:
        self.blocks = blocks
        self.threads = threads
        self.block = self.thread = self.phase = 0
        # Makes what a kernel uses in place of an array of shared memory.
        self.watched: Callable[[np.ndarray], Any] = lambda array: array
        # By block and line of the kernel. All are kept, so that no address belongs to two blocks.
        self._shared: dict[tuple[int, int], Any] = {}
        self._random = None if seed is None else random.Random(seed)
        self._scheduler = getcurrent()
        self._waits_at = [ENDED] * threads
        self.cuda = _Cuda(self)

    def run(self, body: Callable[[], Any]) -> None:
        """Runs `body` on every thread of every block."""

        def serve() -> None:
            while True:
                body()
                self.wait(ENDED)

        threads = [greenlet(serve) for _ in range(self.threads)]
        for block in self._order(self.blocks):
            self.block, self.phase = block, 0
            self._run_block(threads)
        for thread in threads:
            thread.throw()

    def wait(self, line: int) -> None:
        """Suspends the running thread, at a barrier in line `line` of the kernel or at its end."""
        self._waits_at[self.thread] = line
        self._scheduler.switch()

    def shared(self, line: int, shape: Any, dtype: Any) -> Any:
        """The running block's array of the kernel's line `line`, of NaN at first."""
        key = (self.block, line)
        if key not in self._shared:
            self._shared[key] = self.watched(np.full(shape, np.nan, dtype))
        return self._shared[key]

    def _run_block(self, threads: list[greenlet]) -> None:
        lines: set[int] = set()
        while lines != {ENDED}:
            for thread in self._order(self.threads):
                self.thread = thread
                threads[thread].switch()
            lines = set(self._waits_at)
            if len(lines) > 1:
                ended = self._waits_at.count(ENDED)
                where = f"{ended} threads have ended and the others wait" if ended else "threads wait"
                raise KernelError(f"block {self.block}: {where} at barriers of lines {sorted(lines - {ENDED})}")
            self.phase += 1

    def _order(self, count: int) -> list[int]:
        order = list(range(count))
        if self._random is not None:
            self._random.shuffle(order)
        return order


class _Cuda:
    """The attributes of `numba.cuda` that kernels use; any other one is an AttributeError."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.blockDim, self.gridDim = SimpleNamespace(x=grid.threads), SimpleNamespace(x=grid.blocks)
        self.shared = SimpleNamespace(array=self._array)

    @property
    def threadIdx(self) -> SimpleNamespace:
        return SimpleNamespace(x=self._grid.thread)

    @property
    def blockIdx(self) -> SimpleNamespace:
        return SimpleNamespace(x=self._grid.block)

    def _array(self, shape: Any, dtype: Any) -> Any:
        return self._grid.shared(sys._getframe(1).f_lineno, shape, dtype)

    def syncthreads(self) -> None:
        self._grid.wait(sys._getframe(1).f_lineno)
