"""Whether all cores are at hand: those of a virtual machine may for seconds be the two threads of one core.

A turn that is timed meanwhile tells of the machine's other tenants. What is asked here is how fast independent
multiply-adds run on every core at the same time, against the most that was ever seen: half of it where cores are
shared, the whole where they are not.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np

SECONDS, CHUNK = 0.004, 0.0002  # of a look, and of the pieces it is made of
WHOLE = 0.85  # the share of the most ever seen from which the cores count as whole


class Cores:
    """`threads` threads, each held on a core of its own where the system can; asleep but for a look."""

    def __init__(self, threads: int) -> None:
        from bench.limits import make_kernels

        self._add_up, _ = make_kernels("float32")
        self._out = np.full((threads, 64), 0.5, np.float32)
        self._most, self._rates = 0.0, [0.0] * threads
        self._begin, self._end = (threading.Barrier(threads + 1) for _ in range(2))
        self._closed = False
        self._times = self._chunk()
        homes = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * threads
        for index in range(threads):
            arguments = (index, homes[index % len(homes)])
            threading.Thread(target=self._serve, args=arguments, daemon=True).start()
        self.look()

    def _chunk(self) -> int:
        """Multiply-adds, times ACCUMULATORS, that take one core about CHUNK."""
        at = self._out[0].ctypes.data
        self._add_up(at, 10)  # compiles
        started = time.perf_counter()
        self._add_up(at, 100_000)
        return int(100_000 * CHUNK / (time.perf_counter() - started)) + 1

    def look(self) -> float:
        """The share of the most ever seen that all cores together do at this moment."""
        self._begin.wait()
        self._end.wait()
        rate = sum(self._rates)
        self._most = max(self._most, rate)
        return rate / self._most

    def whole(self) -> bool:
        return self.look() >= WHOLE

    def close(self) -> None:
        """Ends the threads."""
        self._closed = True
        self._begin.wait()

    def _serve(self, index: int, home: Any) -> None:
        if home is not None:
            os.sched_setaffinity(0, {home})
        at = self._out[index].ctypes.data
        while True:
            self._begin.wait()
            if self._closed:
                return
            self._rates[index] = self._rate(at)
            self._end.wait()

    def _rate(self, at: int) -> float:
        """Chunks a second: the middle one of the look's second half, as others may still wake in the first."""
        taken, begin = [], time.perf_counter()
        while (now := time.perf_counter()) < begin + SECONDS:
            self._add_up(at, self._times)
            taken.append(time.perf_counter() - now)
        return 1 / float(np.median(taken[len(taken) // 2 :]))
