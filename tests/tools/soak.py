"""A long random test of everything together: python -m tests.tools.soak --minutes 10 [--seed N]

Until the time limit it runs random activities, in one process and its children: calls of random shapes against the
float64 oracle, exceptions from signal handlers at random moments, threads that share layers, forked children, and new
processes with a damaged kernel cache. No result may be wrong, and memory must not grow after the first quarter of the
time.
Exit status: 0 if there was no problem, else 1, after the list of problems.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import rnnkit
from rnnkit.core.cells import CELLS
from rnnkit.testing import Case, parity

ROOT = Path(__file__).resolve().parents[2]
SECONDS_BETWEEN_LINES = 10.0
# The allowed growth of memory: fragmentation from different shapes, and the bounds of the caches.
GROWTH_BYTES = 96 << 20
# The share of the time after which memory is first measured: then caches are full, and all kernels are compiled.
WARM_UP = 0.25
ACTIVITIES_PER_MEASUREMENT = 10
# The time limit of a child process.
CHILD_TIMEOUT_S = 120.0

# A first call in a new process, with a copy of the cache.
FIRST_CALL = """
import sys, warnings
import numpy as np
import rnnkit
layer = rnnkit.GRU(8, 24, backend="numba", rng=3)
x = np.random.default_rng(4).standard_normal((6, 3, 8)).astype(np.float32)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    y, _ = layer(x)
want, _ = rnnkit.GRU(8, 24, backend="numpy", rng=3)(x)
assert np.abs(y - want).max() < 1e-5, "a wrong result"
messages = [str(w.message) for w in caught]
assert len(set(messages)) == len(messages) and all(".nbc" in text for text in messages), messages
"""


class Interrupt(Exception):
    """Raised by the signal handler."""


class Problem(Exception):
    """A violated requirement."""


def require(right: bool, what: str) -> None:
    if not right:
        raise Problem(what)


def shapes(rng: random.Random) -> None:
    """A random shape of a random cell, forward and backward."""
    cell = rng.choice(list(CELLS))
    H = rng.choice([1, 5, 16, 33, 64, 100])
    P = rng.randrange(1, H) if CELLS[cell].projects and H > 1 and rng.random() < 0.3 else 0
    # With few units rounding errors may grow from step to step, so T must be small for the tolerances to hold.
    T = rng.randrange(0, 40 if H > 5 else 8)
    sizes = {"T": T, "B": rng.randrange(1, 20), "I": rng.randrange(0, 50 if H > 5 else 10), "H": H, "P": P}
    flags = {name: rng.random() < 0.5 for name in ("bias", "reverse", "ragged")}
    case = Case(cell, **sizes, **flags)
    worst = parity("numba", case, rng.choice(["float32", "float64"]), seed=rng.randrange(1000))
    bad = {name: ratio for name, ratio in worst.items() if not ratio <= 1}
    # Where the gradient of a cell jumps, rounding decides which one it is.
    require(not bad or (CELLS[cell].jumps and all(name.startswith("d") for name in bad)), f"{case}: {bad}")


def interrupts(rng: random.Random) -> None:
    """Exceptions from a signal handler at random moments: none is lost, and the next call is right."""
    layer = rnnkit.LSTM(24, 96, backend="numba", rng=0)
    x = np.random.default_rng(1).standard_normal((8, 6, 24)).astype(np.float32)
    want, _ = layer(x)
    dwant, _ = layer.backward(np.ones_like(want))
    raised = caught = 0

    def handler(number: int, frame: Any) -> None:
        nonlocal raised
        raised += 1
        raise Interrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(2e-6, 1e-3))
                # A swallowed exception ends this loop too, and is counted below.
                while raised == caught:
                    layer.zero_grad()  # drops an interrupted call that has had no backward
                    y, _ = layer(x)
                    require(bool((y == want).all()), "a forward after an interrupt")
                    dx, _ = layer.backward(np.ones_like(want))
                    require(bool((dx == dwant).all()), "a backward after an interrupt")
            except Interrupt:
                caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    require(raised == caught, f"{raised - caught} exceptions were swallowed")


def threads(rng: random.Random) -> None:
    """Threads that call one layer concurrently; each backward must differentiate its thread's call."""
    layer = rnnkit.GRU(12, 40, backend="numba", rng=5)
    inputs = [np.random.default_rng(k).standard_normal((7, 4, 12)).astype(np.float32) for k in range(4)]
    wanted = []
    for x in inputs:
        y, _ = layer(x)
        wanted.append((y, layer.backward(y)[0]))
    problems: list[str] = []
    pauses = [rng.uniform(0, 3e-3) for _ in inputs]

    def work(k: int) -> None:
        for _ in range(20):
            y, _ = layer(inputs[k])
            time.sleep(pauses[k])
            dx, _ = layer.backward(y)
            if not (np.array_equal(y, wanted[k][0]) and np.array_equal(dx, wanted[k][1])):
                problems.append(f"thread {k}")

    workers = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(CHILD_TIMEOUT_S)
        require(not worker.is_alive(), f"{worker.name} hangs")
    require(not problems, f"{len(problems)} of 80 results differ from the thread's own call")


def forks(rng: random.Random) -> None:
    """Forked children, which do not have the parent's threads, compute the same result."""
    layer = rnnkit.LSTM(10, 64, backend="numba", rng=7)
    x = np.random.default_rng(8).standard_normal((9, 5, 10)).astype(np.float32)
    want, _ = layer(x)
    children = []
    for _ in range(rng.randrange(1, 4)):
        child = os.fork()
        if child == 0:
            os._exit(0 if np.array_equal(layer(x)[0], want) else 1)
        children.append(child)
    codes = [_exit_code(child) for child in children]
    require(not any(codes), f"forked children ended with {codes}")
    require(bool((layer(x)[0] == want).all()), "the parent after a fork")


def _exit_code(child: int) -> int:
    """The forked child's exit status, or -SIGKILL if it reached the time limit."""
    until = time.monotonic() + CHILD_TIMEOUT_S
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(1e-3)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def caches(rng: random.Random) -> None:
    """A new process whose kernel cache has emptied, truncated or corrupted files."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(_cache(), folder, dirs_exist_ok=True)
        files = sorted(path for path in Path(folder).rglob("*.nb?"))
        for path in rng.sample(files, min(len(files), rng.randrange(1, 6))):
            _damage(path, rng)
        environment = os.environ | {"NUMBA_CACHE_DIR": folder, "RNNKIT_QUIET": "1"}
        ran = subprocess.run(
            [sys.executable, "-c", FIRST_CALL],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=CHILD_TIMEOUT_S,
        )
        require(ran.returncode == 0, f"a damaged cache: {ran.stderr[-500:]}")


def _cache() -> Path:
    """A cache that contains the kernels of FIRST_CALL, filled once."""
    global _filled
    if _filled is None:
        _filled = tempfile.TemporaryDirectory()
        environment = os.environ | {"NUMBA_CACHE_DIR": _filled.name, "RNNKIT_QUIET": "1"}
        subprocess.run([sys.executable, "-c", FIRST_CALL], cwd=ROOT, env=environment, check=True)
    return Path(_filled.name)


_filled: tempfile.TemporaryDirectory[str] | None = None


def _damage(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    how = rng.choice(["empty", "truncate", "corrupt"])
    if how == "corrupt" and data:
        for _ in range(8):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    sizes = {"empty": 0, "truncate": rng.randrange(len(data) + 1), "corrupt": len(data)}
    path.write_bytes(bytes(data[: sizes[how]]))


# (activity, weight). One call of `caches` takes seconds, of the others a fraction of a second.
ACTIVITIES: tuple[tuple[Callable[[random.Random], None], int], ...] = (
    (shapes, 40),
    (interrupts, 6),
    (threads, 6),
    (forks, 6),
    (caches, 1),
)


def resident_bytes() -> int:
    """The resident memory of this process; 0 if the system is not Linux."""
    try:
        text = Path("/proc/self/statm").read_text()
    except OSError:
        return 0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    started = time.monotonic()
    printed = started
    counts: Counter[str] = Counter()
    problems: list[str] = []
    first = now = 0
    names = [activity for activity, weight in ACTIVITIES for _ in range(weight)]
    while time.monotonic() < started + 60 * options.minutes:
        activity = rng.choice(names)
        try:
            activity(rng)
        except (Problem, subprocess.TimeoutExpired) as problem:
            problems.append(f"{activity.__name__}: {problem}")
        counts[activity.__name__] += 1
        if counts.total() % ACTIVITIES_PER_MEASUREMENT == 0:
            gc.collect()
            now = resident_bytes()
            if time.monotonic() > started + 60 * options.minutes * WARM_UP:
                first = first or now
        if time.monotonic() > printed + SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            print(f"{printed - started:5.0f} s  {_line(counts)}  {now >> 20} MiB  {len(problems)} problems", flush=True)
    if first and now > first + GROWTH_BYTES:
        problems.append(f"memory grew from {first >> 20} to {now >> 20} MiB")
    print(f"{_line(counts)}; memory {first >> 20} to {now >> 20} MiB; {len(problems)} problems")
    for problem in problems[:20]:
        print(f"  {problem}")
    return int(bool(problems))


def _line(counts: Counter[str]) -> str:
    return ", ".join(f"{activity.__name__} {counts[activity.__name__]}" for activity, _ in ACTIVITIES)


if __name__ == "__main__":
    sys.exit(main())
