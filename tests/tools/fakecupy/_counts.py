"""Counts of the work submitted to the simulated GPU."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Counts:
    """Work recorded in a capture counts under `captured`, and under `replayed` each time its graph runs.

    launches          the library's own kernels, by name
    operations        CuPy's own kernels (element-wise, reductions, copies with a stride), by function
    gemms             cuBLAS products, CuPy's own `@` and `dot` among them
    graph_launches    Graph.launch
    captures          begin_capture
    captured          nodes recorded, by name
    replayed          nodes run by graphs, by name
    allocations       requests to the memory pool; allocated_bytes: their size; device_mallocs: calls of cudaMalloc
    synchronisations  by kind: get, stream, device, event, nonzero, mask
    memcpys           by kind: host to device, device to host, device to device; memsets
    compiles          compiled modules, by their options
    """

    launches: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    gemms: int = 0
    graph_launches: int = 0
    captures: int = 0
    captured: Counter[str] = field(default_factory=Counter)
    replayed: Counter[str] = field(default_factory=Counter)
    allocations: int = 0
    allocated_bytes: int = 0
    device_mallocs: int = 0
    synchronisations: Counter[str] = field(default_factory=Counter)
    memcpys: Counter[str] = field(default_factory=Counter)
    memsets: int = 0
    compiles: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, key: str | None = None, amount: int = 1) -> None:
        if key is None:
            setattr(self, what, getattr(self, what) + amount)
        else:
            getattr(self, what)[key] += amount


class Tallies:
    """All active Counts: one for the whole run, and one for each open `counting()` block."""

    def __init__(self) -> None:
        self.whole = Counts()
        self._open = [self.whole]
        self._lock = threading.Lock()

    def add(self, what: str, key: str | None = None, amount: int = 1) -> None:
        with self._lock:
            for counts in self._open:
                counts.add(what, key, amount)

    @contextmanager
    def counting(self) -> Iterator[Counts]:
        counts = Counts()
        with self._lock:
            self._open.append(counts)
        try:
            yield counts
        finally:
            with self._lock:  # by identity, since two empty Counts are equal
                self._open = [held for held in self._open if held is not counts]
