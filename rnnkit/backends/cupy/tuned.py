"""Schedules that were measured: what `rnnkit.autotune` turns on.

The times of every schedule that serves a call are kept in memory, and on disk in the folder of CuPy's compiled kernels:
one JSON file per card, driver and version of rnnkit, of a line per key. Calls whose numbers of steps have the same
power of two share a key.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import rnnkit
from rnnkit.backends.cupy.card import card_of
from rnnkit.backends.cupy.cost import slug
from rnnkit.backends.cupy.schedules import Work

# Runs of a schedule that are not measured, for they compile and capture, and runs that are: the median counts.
FIRST_RUNS = 2
RUNS = 5

Times = dict[str, float]  # seconds of a call, by schedule


class Measured:
    """The times of one device, from its file and from this process."""

    def __init__(self, device: int) -> None:
        import cupy

        card = card_of(device)
        driver = cupy.cuda.runtime.driverGetVersion()
        self.file = folder() / f"rnnkit-{rnnkit.__version__}-{slug(card.name)}-driver-{driver}.json"
        self.times = self._read()

    def _read(self) -> dict[str, Times]:
        """What the file holds; nothing if there is none, or if it is damaged."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {key: times for key, times in entries if _is_times(times)}

    def add(self, key: str, times: Times) -> None:
        """Also to the file, with what other processes have added to it. A warning if it cannot be written."""
        self.times = {**self._read(), **self.times, key: times}
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=self.file.parent, prefix=self.file.name, suffix=".tmp", delete=False, encoding="utf-8"
            ) as new:
                json.dump(self.times, new, indent=1, sort_keys=True)
            os.replace(new.name, self.file)
        except OSError as problem:
            warnings.warn(f"measured times are kept for this process only: {problem}", RuntimeWarning, stacklevel=2)


def _is_times(times: Any) -> bool:
    return isinstance(times, dict) and bool(times) and all(isinstance(t, float) for t in times.values())


def folder() -> Path:
    """CuPy's folder of compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR") or "~/.cupy/kernel_cache").expanduser()


_measured: dict[int, Measured] = {}  # by device

# Held while a thread measures, so that no other measurement disturbs it.
_measuring = threading.Lock()


def key_of(work: Work, layers: int = 1) -> str:
    """T and the share of live steps count by powers of two and quarters; the other sizes as they are.

    layers: of a stack in one direction whose first layer has this work.
    """
    T, B, I, H, R, N = work.sizes
    live = -(-4 * N // max(1, T * B))
    sizes = f"T={1 << (T - 1).bit_length() if T else 0} B={B} I={I} H={H} R={R} live={live}/4"
    stack = f" {layers} layers" if layers > 1 else ""
    return f"{work.cell.key} {work.dtype.name} {sizes} {'both passes' if work.keep else 'forward'}{stack}"


def times_of(work: Work, device: int, layers: int = 1) -> Times | None:
    """The measured times for this work, or None. layers: as in `key_of`."""
    if device not in _measured:
        _measured[device] = Measured(device)
    return _measured[device].times.get(key_of(work, layers))


def fastest(times: Times, serving: list[str]) -> str | None:
    """The fastest of the schedules that serve the call, or None if one of them was not measured."""
    if any(name not in times for name in serving):
        return None
    return min(serving, key=lambda name: times[name])


def measure(work: Work, device: int, runs: Mapping[str, Callable[[], None]], layers: int = 1) -> Times:
    """The times of the runs, of one call each, which are remembered. Waits for the device. layers: as in `key_of`."""
    with _measuring:
        found = {name: _median_seconds(run) for name, run in runs.items()}
        times_of(work, device)
        _measured[device].add(key_of(work, layers), found)
    return found


def _median_seconds(run: Callable[[], None]) -> float:
    for _ in range(FIRST_RUNS):
        run()
    return statistics.median(_seconds(run) for _ in range(RUNS))


def _seconds(run: Callable[[], None]) -> float:
    """The time of a run on the current stream, by the device's clock."""
    import cupy

    start = cupy.cuda.Event()
    end = cupy.cuda.Event()
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1e-3 * float(cupy.cuda.get_elapsed_time(start, end))
