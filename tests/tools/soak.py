"""A long run of everything at once: python -m tests.tools.soak --minutes 10 [--seed N]

In turns until the time is up, in one process and its children: calls of random shapes against the float64 oracle,
exceptions from signal handlers at random moments, threads that share layers, forked children, and new processes whose
kernel cache is damaged. At the end nothing may have been wrong, and memory must be where it was after a quarter of the
time.
Exit status: 0 nothing was wrong, 1 something was, and what.
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
# What memory may grow by: the allocator's, as shapes differ from turn to turn, and the caches' bounds.
GROWTH_BYTES = 96 << 20
# The share of the time after which memory is first measured: caches are full, and all kernels compiled.
WARM_UP = 0.25
TURNS_A_LOOK = 10
# After which a child process is taken to hang.
SECONDS_OF_A_CHILD = 120.0

# A first call in a new process, by its own copy of the cache.
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
said = [str(w.message) for w in caught]
assert len(set(said)) == len(said) and all(".nbc" in text for text in said), said
"""


class Interrupt(Exception):
    """What the signal handler raises."""


class Wrong(Exception):
    """What must not be."""


def require(right: bool, what: str) -> None:
    if not right:
        raise Wrong(what)


def shapes(rng: random.Random) -> None:
    """A random shape of a random cell, forward and backward."""
    cell = rng.choice(list(CELLS))
    H = rng.choice([1, 5, 16, 33, 64, 100])
    P = rng.randrange(1, H) if CELLS[cell].projects and H > 1 and rng.random() < 0.3 else 0
    # In so few units a rounding error may grow from step to step, and no tolerance holds for many.
    T = rng.randrange(0, 40 if H > 5 else 8)
    sizes = {"T": T, "B": rng.randrange(1, 20), "I": rng.randrange(0, 50 if H > 5 else 10), "H": H, "P": P}
    flags = {name: rng.random() < 0.5 for name in ("bias", "reverse", "ragged")}
    case = Case(cell, **sizes, **flags)
    worst = parity("numba", case, rng.choice(["float32", "float64"]), seed=rng.randrange(1000))
    bad = {name: ratio for name, ratio in worst.items() if not ratio <= 1}
    # A relu's slope where rounding turns a sign is nobody's error.
    require(not bad or (cell == "rnn_relu" and all(name.startswith("d") for name in bad)), f"{case}: {bad}")


def interrupts(rng: random.Random) -> None:
    """Exceptions at random moments: each arrives, and the call after them is right."""
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
                # An exception that is swallowed ends this loop too: it is counted below.
                while raised == caught:
                    layer.zero_grad()  # a call that was cut off before its backward is not answered any more
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
    """Threads that call one layer at once, each with a backward of its own."""
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
        worker.join(SECONDS_OF_A_CHILD)
        require(not worker.is_alive(), f"{worker.name} hangs")
    require(not problems, f"{len(problems)} of 80 results were of other threads' calls")


def forks(rng: random.Random) -> None:
    """Forked children, which have none of the parent's threads."""
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
    """The forked child's exit status; -SIGKILL where it had to be ended."""
    until = time.monotonic() + SECONDS_OF_A_CHILD
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(1e-3)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def caches(rng: random.Random) -> None:
    """A new process with a damaged kernel cache: files emptied, cut or garbled."""
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
            timeout=SECONDS_OF_A_CHILD,
        )
        require(ran.returncode == 0, f"a damaged cache: {ran.stderr[-500:]}")


def _cache() -> Path:
    """A cache with what FIRST_CALL needs, filled once."""
    global _filled
    if _filled is None:
        _filled = tempfile.TemporaryDirectory()
        environment = os.environ | {"NUMBA_CACHE_DIR": _filled.name, "RNNKIT_QUIET": "1"}
        subprocess.run([sys.executable, "-c", FIRST_CALL], cwd=ROOT, env=environment, check=True)
    return Path(_filled.name)


_filled: tempfile.TemporaryDirectory[str] | None = None


def _damage(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    how = rng.choice(["empty", "cut", "garbled"])
    if how == "garbled" and data:
        for _ in range(8):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data[: 0 if how == "empty" else rng.randrange(len(data) + 1) if how == "cut" else None]))


# A turn of the last takes seconds, one of the others a fraction of one.
ACTIVITIES: tuple[tuple[Callable[[random.Random], None], int], ...] = (
    (shapes, 40),
    (interrupts, 6),
    (threads, 6),
    (forks, 6),
    (caches, 1),
)


def resident_bytes() -> int:
    """This process's memory now, by Linux; 0 elsewhere."""
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
    said = started
    counts: Counter[str] = Counter()
    problems: list[str] = []
    first = now = 0
    names = [activity for activity, weight in ACTIVITIES for _ in range(weight)]
    while time.monotonic() < started + 60 * options.minutes:
        activity = rng.choice(names)
        try:
            activity(rng)
        except (Wrong, subprocess.TimeoutExpired) as problem:
            problems.append(f"{activity.__name__}: {problem}")
        counts[activity.__name__] += 1
        turns = counts.total()
        if turns % TURNS_A_LOOK == 0:
            gc.collect()
            now = resident_bytes()
            if time.monotonic() > started + 60 * options.minutes * WARM_UP:
                first = first or now
        if time.monotonic() > said + SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            print(f"{said - started:5.0f} s  {_line(counts)}  {now >> 20} MiB  {len(problems)} wrong", flush=True)
    if first and now > first + GROWTH_BYTES:
        problems.append(f"memory grew from {first >> 20} to {now >> 20} MiB")
    print(f"{_line(counts)}; memory {first >> 20} to {now >> 20} MiB; {len(problems)} wrong")
    for problem in problems[:20]:
        print(f"  {problem}")
    return int(bool(problems))


def _line(counts: Counter[str]) -> str:
    return ", ".join(f"{activity.__name__} {counts[activity.__name__]}" for activity, _ in ACTIVITIES)


if __name__ == "__main__":
    sys.exit(main())
