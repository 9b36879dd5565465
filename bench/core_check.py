"""Checks whether all cores are available: a virtual machine's cores may share one physical core for seconds.

A time that is taken meanwhile depends on the host's other virtual machines. The check runs independent multiply-adds on
all cores at the same time and compares their rate with the highest that it has seen. The rate halves where two cores
share one.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import numpy as np

# Seconds of one check, and of each of the pieces of work that it times.
SECONDS = 0.004
CHUNK = 0.0002
# The share of the highest rate from which all cores count as available.
AVAILABLE = 0.85


class CoreCheck:
    """`threads` threads, each pinned to a core where the system can. They sleep between checks."""

    def __init__(self, threads: int) -> None:
        from bench.cpu_peaks import make_kernels

        self._add_up, _ = make_kernels("float32")
        self._out = np.full((threads, 64), 0.5, np.float32)
        self._highest = 0.0
        self._rates = [0.0] * threads
        self._begin = threading.Barrier(threads + 1)
        self._end = threading.Barrier(threads + 1)
        self._closed = False
        self._times = self._chunk()
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None] * threads
        for index in range(threads):
            arguments = (index, cores[index % len(cores)])
            threading.Thread(target=self._serve, args=arguments, daemon=True).start()
        self.available_share()

    def _chunk(self) -> int:
        """Repetitions of the kernel that take one core about CHUNK seconds."""
        address = self._out[0].ctypes.data
        self._add_up(address, 10)  # compiles
        started = time.perf_counter()
        self._add_up(address, 100_000)
        return int(100_000 * CHUNK / (time.perf_counter() - started)) + 1

    def available_share(self) -> float:
        """The rate of all cores together now, as a share of the highest rate so far."""
        self._begin.wait()
        self._end.wait()
        rate = sum(self._rates)
        self._highest = max(self._highest, rate)
        return rate / self._highest

    def all_available(self) -> bool:
        return self.available_share() >= AVAILABLE

    def close(self) -> None:
        """Ends the threads."""
        self._closed = True
        self._begin.wait()

    def _serve(self, index: int, core: Any) -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        address = self._out[index].ctypes.data
        while True:
            self._begin.wait()
            if self._closed:
                return
            self._rates[index] = self._rate(address)
            self._end.wait()

    def _rate(self, address: int) -> float:
        """Chunks per second: the median over the second half, since other threads may still wake up in the first."""
        durations = []
        begin = time.perf_counter()
        while (now := time.perf_counter()) < begin + SECONDS:
            self._add_up(address, self._times)
            durations.append(time.perf_counter() - now)
        return 1 / float(np.median(durations[len(durations) // 2 :]))
