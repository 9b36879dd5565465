"""Times by CUDA events, of many calls back to back, each between two events; and by the host's clock, with a wait each.

rnnkit and torch run on the null stream, where CuPy's events time the work of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

FEWEST = 5
MOST = 200


class Samples(NamedTuple):
    """Milliseconds of each call on the device, and of the host per launched call."""

    device: list[float]
    host: float


def wait() -> None:
    import cupy

    cupy.cuda.get_current_stream().synchronize()


def measure(call: Callable[[], Any], seconds: float, fewest: int = FEWEST) -> Samples:
    """About `seconds` of calls, but at least `fewest`."""
    import cupy

    cupy_event = cupy.cuda.Event
    once = wall(call, 1)
    count = int(np.clip(seconds * 1e3 / max(once, 1e-3), fewest, MOST))
    events = [(cupy_event(), cupy_event()) for _ in range(count)]
    wait()
    started = time.perf_counter()
    for begin, finish in events:
        begin.record()
        call()
        finish.record()
    host = (time.perf_counter() - started) * 1e3 / count
    wait()
    return Samples([cupy.cuda.get_elapsed_time(begin, finish) for begin, finish in events], host)


def wall(call: Callable[[], Any], count: int) -> float:
    """Median milliseconds of a call and the wait for its end."""
    found = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        wait()
        found.append((time.perf_counter() - started) * 1e3)
    return float(np.median(found))


def summary(samples: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    p25, median, p75 = (float(q) for q in np.percentile(samples, (25, 50, 75)))
    return {"median": median, "p25": p25, "p75": p75, "calls": len(samples)}
